"""Lattice and layout: tiles cover every site once, and impossible cuts say what to do."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import MAX_SIDE, Lattice, Layout, divisors, factorisations, split


def cover(layout: Layout) -> np.ndarray:
    """How many ranks own each site."""
    owners = np.zeros(layout.lattice.shape, int)
    for rank in range(layout.ranks):
        owners[layout.slices(rank)] += 1
    return owners


@pytest.mark.parametrize("shape", [(2, 2), (5, 3), (50, 50), (60, 8), (7, 64)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 7, 12])
def test_balanced_tiles_cover_every_site_once(shape: tuple[int, int], ranks: int) -> None:
    lattice = Lattice(shape)
    if not [g for g in factorisations(ranks, 2) if g[0] <= shape[0] and g[1] <= shape[1]]:
        with pytest.raises(InputError, match=f"^ranks={ranks}"):
            Layout.balanced(lattice, ranks)
        return
    layout = Layout.balanced(lattice, ranks)
    assert layout.ranks == ranks
    assert (cover(layout) == 1).all()


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (5, 1), (2, 3), (4, 4)])
@pytest.mark.parametrize("granularity", [1, 2, 3, 6])
def test_tiles_are_whole_coarse_blocks(grid: tuple[int, int], granularity: int) -> None:
    layout = Layout(Lattice((60, 84)), grid, granularity)
    assert (cover(layout) == 1).all()
    coarse = np.zeros((60 // granularity, 84 // granularity), int)
    for rank in range(layout.ranks):
        for start, stop in layout.bounds(rank):
            assert start % granularity == 0
            assert stop % granularity == 0
        coarse[layout.slices(rank, granularity)] += 1
        assert layout.offset(rank) == tuple(start for start, _ in layout.bounds(rank))
        box = layout.slices(rank)
        assert layout.shape(rank) == tuple(s.stop - s.start for s in box)
        assert min(layout.shape(rank)) >= granularity
    assert (coarse == 1).all()


@pytest.mark.parametrize("grid", [(1, 1), (5, 1), (1, 3), (3, 2)])
def test_tiles_are_cut_in_units_of_each_axis(grid: tuple[int, int]) -> None:
    layout = Layout(Lattice((48, 384)), grid, (8, 128))
    assert layout.units == (8, 128)
    assert (cover(layout) == 1).all()
    coarse = np.zeros((6, 3), int)
    for rank in range(layout.ranks):
        for bounds, unit in zip(layout.bounds(rank), (8, 128), strict=True):
            assert all(edge % unit == 0 for edge in bounds)
        rows, columns = layout.slices(rank)
        coarse[rows.start // 8 : rows.stop // 8, columns.start // 128 : columns.stop // 128] += 1
    assert (coarse == 1).all()


def test_one_unit_serves_every_axis() -> None:
    one, each = (Layout(Lattice((24, 36)), (2, 2), unit) for unit in (6, (6, 6)))
    assert one.units == each.units == (6, 6)
    assert [one.bounds(rank) for rank in range(4)] == [each.bounds(rank) for rank in range(4)]


def test_balanced_respects_the_units_of_each_axis() -> None:
    """Two tiles across are all that two words allow."""
    assert Layout.balanced(Lattice((64, 256)), 4, (8, 128)).ranks_grid in ((4, 1), (2, 2))
    assert Layout.balanced(Lattice((8, 512)), 4, (8, 128)).ranks_grid == (1, 4)
    assert Layout.balanced(Lattice((512, 128)), 8, (8, 128)).ranks_grid == (8, 1)
    for ranks in range(1, 17):
        lattice = Lattice((64, 256))
        fitting = [g for g in factorisations(ranks, 2) if g[0] <= 8 and g[1] <= 2]
        if fitting:
            assert Layout.balanced(lattice, ranks, (8, 128)).ranks_grid in fitting
        else:
            with pytest.raises(InputError, match=rf"^ranks={ranks}.*at most 16 tiles.*fewer ranks"):
                Layout.balanced(lattice, ranks, (8, 128))


def test_impossible_units_of_an_axis() -> None:
    for units in ((8, 100), (7, 128), (0, 128), (8, -1)):
        with pytest.raises(InputError, match=r"^coarse="):
            Layout(Lattice((64, 256)), (1, 1), units)
    with pytest.raises(InputError, match=r"^ranks_grid=\(2, 3\).*at most \(8, 2\) ranks"):
        Layout(Lattice((64, 256)), (2, 3), (8, 128))


def test_ranks_are_numbered_row_major() -> None:
    layout = Layout(Lattice((12, 12)), (2, 3))
    assert [layout.coordinates(r) for r in range(6)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)
    ]  # fmt: skip
    assert layout.bounds(4) == ((6, 12), (4, 8))


def test_tiles_differ_by_at_most_one_unit() -> None:
    layout = Layout(Lattice((50, 50)), (4, 3), 2)
    for axis in range(2):
        sides = {layout.shape(rank)[axis] for rank in range(12)}
        assert max(sides) - min(sides) <= 2


@pytest.mark.parametrize(("units", "parts"), [(0, 1), (1, 1), (3, 5), (10, 3), (97, 8)])
def test_split_deals_evenly(units: int, parts: int) -> None:
    pieces = [split(units, parts, i) for i in range(parts)]
    assert pieces[0][0] == 0
    assert pieces[-1][1] == units
    assert all(a[1] == b[0] for a, b in pairwise(pieces))
    assert {stop - start for start, stop in pieces} <= {units // parts, -(-units // parts)}


@pytest.mark.parametrize(
    ("shape", "ranks", "grid"),
    [
        ((64, 64), 1, (1, 1)),
        ((64, 64), 2, (2, 1)),
        ((64, 64), 16, (4, 4)),
        ((64, 16), 2, (2, 1)),
        ((16, 64), 2, (1, 2)),
    ],
)
def test_balanced_has_the_shortest_boundary_and_long_rows(
    shape: tuple[int, int], ranks: int, grid: tuple[int, int]
) -> None:
    assert Layout.balanced(Lattice(shape), ranks).ranks_grid == grid


def test_balanced_uses_a_grid_that_fits() -> None:
    # Five ranks do not fit across four units, so they are stacked the other way.
    assert Layout.balanced(Lattice((8, 80)), 5, 2).ranks_grid == (1, 5)


def test_factorisations_and_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert factorisations(6, 2) == [(1, 6), (2, 3), (3, 2), (6, 1)]
    assert all(math.prod(f) == 24 for f in factorisations(24, 3))


def test_sites_and_dimensions() -> None:
    lattice = Lattice((6, 4))
    assert (lattice.sites, lattice.ndim) == (24, 2)
    lattice.require_bipartite()
    assert Lattice((MAX_SIDE, MAX_SIDE)).sites == 2**62


@pytest.mark.parametrize("shape", [(), (1, 8), (8, 0), (8, -2), (2 * MAX_SIDE, 8)])
def test_impossible_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^size=.*2 to 2147483648 sites a side"):
        Lattice(shape)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (5, 5)])
def test_odd_sizes_name_the_even_ones(shape: tuple[int, int]) -> None:
    even = tuple(side + side % 2 for side in shape)
    with pytest.raises(InputError, match="even number of sites") as caught:
        Lattice(shape).require_bipartite()
    assert str(even) in str(caught.value)
    assert "n-fold" in str(caught.value)


@pytest.mark.parametrize("grid", [(2,), (1, 1, 1), (0, 4), (-1, 2)])
def test_impossible_grids(grid: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^ranks_grid=.*2 positive numbers"):
        Layout(Lattice((8, 8)), grid)


@pytest.mark.parametrize("granularity", [0, -1, 3, 16])
def test_impossible_granularity(granularity: int) -> None:
    lattice = Lattice((8, 8))
    with pytest.raises(InputError, match=r"^coarse=.*Use one of \[1, 2, 4, 8\]"):
        Layout(lattice, (1, 1), granularity)
    with pytest.raises(InputError, match=r"^coarse=.*Use one of \[1, 2, 4, 8\]"):
        Layout.balanced(lattice, 1, granularity)


def test_more_ranks_than_tiles() -> None:
    with pytest.raises(InputError, match=r"^ranks_grid=.*at most \(2, 4\) ranks.*fewer ranks"):
        Layout(Lattice((8, 16)), (3, 1), 4)
    with pytest.raises(InputError, match=r"^ranks=9: allowed is at most 8 tiles.*fewer ranks"):
        Layout.balanced(Lattice((8, 16)), 9, 4)
    # Seven is fewer than eight tiles, but no grid of seven fits into 2 x 4 units.
    with pytest.raises(InputError, match=r"^ranks=7"):
        Layout.balanced(Lattice((8, 16)), 7, 4)
