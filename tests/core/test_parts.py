"""What surrounds a rank's part of a state, and sums that do not depend on how it is cut."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.core.block import cartesian
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.parts import Part, exact_sum


def part_of(whole: np.ndarray, comm: MPI.Intracomm, granularity: int = 1) -> Part:
    """This rank's tile of a lattice; tiles differ by up to one unit."""
    layout = Layout.balanced(Lattice(whole.shape), comm.size, granularity)
    part = Part(comm, whole.shape, layout.slices(comm.rank), cut=True)
    part.state = whole[None][(slice(None), *part.box)]
    return part


@pytest.mark.parametrize("scale", [1.0, 1e300, 1e-300, 5e-324])
def test_exact_sums_are_right_and_do_not_depend_on_order_or_cuts(scale: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 1001)) * 10.0 ** rng.integers(-12, 1, (3, 1001)) * scale
    values[1] = 0.0
    values[2, 500:1000] = -values[2, :500]  # almost all of it cancels
    total = exact_sum(values, 1001)
    for row, found in zip(values, total, strict=True):
        exact = sum(map(Fraction, row.tolist()))
        largest = Fraction(float(abs(row).max()))
        # That of the documentation, and half of the last bit of the result.
        assert abs(Fraction(float(found)) - exact) <= largest / 2**60 + Fraction(
            math.ulp(float(found)) / 2 if found else 0
        )
    assert np.array_equal(exact_sum(values[:, ::-1], 1001), total)

    cuts = [values[:, :7], values[:, 7:7], values[:, 7:]]
    top = np.max([abs(cut).max(axis=1, initial=0.0) for cut in cuts], axis=0)
    parts: list[np.ndarray] = []
    for cut in cuts:
        exact_sum(cut, 1001, lambda _: top, lambda sums: parts.append(sums) or sums)
    sums = np.sum(parts, axis=0)
    assert np.array_equal(exact_sum(cuts[0], 1001, lambda _: top, lambda _: sums), total)


def test_a_sum_beyond_all_floats_is_infinite() -> None:
    assert exact_sum(np.full((1, 4), -1.7e308), 4).tolist() == [-math.inf]


@pytest.mark.mpi
def test_surroundings_are_periodic_neighbours_of_any_width(comm: MPI.Intracomm) -> None:
    whole = np.arange(13 * 17).reshape(13, 17).astype(np.int16)
    part = part_of(whole, comm)
    thinnest = min(edges.stop - edges.start for box in part.boxes for edges in box)
    for halo in (0, 1, 2, thinnest):
        wide = np.pad(whole, halo, mode="wrap")
        here = tuple(slice(e.start, e.stop + 2 * halo) for e in part.box)
        assert np.array_equal(part.padded(halo)[0], wide[here])
    with pytest.raises(InputError, match="halo"):
        part.require_halo(thinnest + 1)


@pytest.mark.mpi
def test_sums_and_means_are_those_of_the_whole(comm: MPI.Intracomm) -> None:
    whole = np.random.default_rng(2).integers(-9, 9, (12, 20)).astype(np.int8)
    part = part_of(whole, comm)
    assert part.sites == whole.size
    assert part.sum_of(part.state).tolist() == [whole.sum()]
    real = np.sin(whole.astype(float))
    here = real[None][(slice(None), *part.box)]
    assert np.array_equal(part.sum_of(here), exact_sum(real.reshape(1, -1), whole.size))
    for side in (1, 2, 4):  # also where blocks lie on several ranks
        means = part.coarse(side)
        if comm.rank == 0:
            blocks = whole.reshape(12 // side, side, 20 // side, side).mean(axis=(1, 3))
            assert np.array_equal(means[0], blocks)
        else:
            assert means is None


@pytest.mark.mpi
def test_grids_of_ranks_are_those_of_blocks(comm: MPI.Intracomm) -> None:
    whole = np.zeros((8, 12), np.int8)
    layout = Layout.balanced(Lattice(whole.shape), comm.size, 1)
    part = part_of(whole, comm)
    cart = cartesian(layout, comm)
    if part.cart is not None:
        assert part.cart.dims == cart.dims
        assert part.cart.coords == cart.coords
