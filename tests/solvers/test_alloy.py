"""The alloy's lattice and order parameters against their definitions and exactly known states."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from exact import Z_CEILING

from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.observables import bond_counts
from mpiflow.systems.alloy import (
    BOLTZMANN,
    DIRECTIONS,
    NEIGHBOURS,
    NOT_A_SITE,
    ORIENTATIONS,
    SURROUNDINGS,
    VACANCY,
    Alloy,
    index_of,
    is_site,
    long_range_order,
    neighbour_numbers,
    pair_names,
    row_sums,
    short_range_order,
    species_numbers,
    warren_cowley,
)

STEPS = list(product((-1, 1), repeat=3))
#: Numbers of the elements of each pair, in the published order.
PAIRS = [(i, j) for i in range(3) for j in range(i, 3)]


def random_states(
    count: int,
    sides: tuple[int, int, int],
    shares: tuple[float, ...],
    rng: np.random.Generator,
) -> np.ndarray:
    """Lattices (B, nx, ny, nz) of exact composition, in random order; species 0 are vacancies."""
    site = is_site(sides)
    total = int(site.sum())
    numbers = np.floor(np.array(shares) * total).astype(int)
    numbers[-1] += total - numbers.sum()
    atoms = np.repeat(np.arange(len(shares)), numbers)
    grids = np.full((count, *sides), NOT_A_SITE, np.int8)
    for grid in grids:
        grid[site] = rng.permutation(atoms)
    return grids


def bonds_of(grids: np.ndarray, species: int = 4) -> np.ndarray:
    return bond_counts(Block.periodic(grids, np.arange(len(grids))), species)


# -- geometry ------------------------------------------------------------------------------


def test_sites_are_corners_and_centres_of_cells() -> None:
    site = is_site((6, 8, 10))
    assert site.sum() == 2 * 3 * 4 * 5
    points = np.argwhere(site)
    assert np.all(points % 2 == points[:, :1] % 2)
    assert (points % 2 == 0).all(axis=1).sum() == 3 * 4 * 5
    wide = np.pad(site, ((6, 6), (8, 8), (10, 10)), mode="wrap")
    for x, y, z in product((-1, 0, 3), repeat=3):
        part = wide[6 + x : 10 + x, 8 + y : 13 + y, 10 + z : 12 + z]
        assert np.array_equal(is_site((4, 5, 2), (x, y, z)), part)


def test_surroundings_are_eight_shells() -> None:
    square = (SURROUNDINGS**2).sum(axis=1)
    radii, sizes = np.unique(square, return_counts=True)
    assert radii.tolist() == [3, 4, 8, 11, 12, 16, 19, 20]
    assert sizes.tolist() == [8, 6, 12, 24, 8, 6, 24, 24]
    assert np.all(np.diff(square) >= 0)
    assert len(np.unique(SURROUNDINGS, axis=0)) == len(SURROUNDINGS) == 112
    # No other site is as near: all points of a cube that reaches farther.
    points = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = points[(points % 2 == points[:, :1] % 2).all(axis=1)]
    near = (points**2).sum(axis=1)
    assert ((near > 0) & (near <= 20)).sum() == 112
    assert {tuple(p) for p in SURROUNDINGS} == {tuple(-p) for p in SURROUNDINGS}


def test_directions_are_the_nearest_neighbours() -> None:
    assert [tuple(d) for d in DIRECTIONS] == STEPS
    assert len(DIRECTIONS) == NEIGHBOURS
    assert np.array_equal(SURROUNDINGS[:8], DIRECTIONS)


def test_index_of_points() -> None:
    assert np.array_equal(index_of(SURROUNDINGS), np.arange(112))
    assert index_of(np.array([[0, 0, 0], [1, 0, 0], [5, 1, 1], [-4, -4, 0]])).tolist() == [-1] * 4


@pytest.mark.parametrize("d", range(8))
def test_orientations_turn_a_direction_to_111(d: int) -> None:
    """A rotation about z, or one with a mirror of z: lengths and angles stay."""
    order = ORIENTATIONS[d]
    assert sorted(order) == list(range(112))
    # The site at number order[k] is turned to place k.
    before, after = SURROUNDINGS[order], SURROUNDINGS
    turn, *_ = np.linalg.lstsq(before.astype(float), after.astype(float), rcond=None)
    turn = np.rint(turn.T).astype(int)
    assert np.array_equal(before @ turn.T, after)
    assert np.array_equal(turn @ turn.T, np.eye(3, dtype=int))
    assert (turn @ DIRECTIONS[d]).tolist() == [1, 1, 1]
    assert turn[2].tolist() == [0, 0, DIRECTIONS[d][2]]
    assert round(np.linalg.det(turn[:2, :2])) == 1


def test_the_direction_111_is_not_turned() -> None:
    assert np.array_equal(ORIENTATIONS[7], np.arange(112))
    assert len(np.unique(ORIENTATIONS, axis=0)) == 8


# -- bonds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [(0.001, 0.333, 0.333, 0.333), (0.2, 0.1, 0.3, 0.4)])
@pytest.mark.parametrize("sides", [(8, 8, 8), (8, 10, 14), (4, 2, 6)])
def test_bonds_one_by_one(sides: tuple[int, int, int], shares: tuple[float, ...]) -> None:
    """From the definition, vacancies included, over every periodic edge."""
    grids = random_states(3, sides, shares, np.random.default_rng(1))
    expected = np.zeros((3, 4, 4), np.int64)
    for b, grid in enumerate(grids):
        for x, y, z in product(*(range(0, n, 2) for n in sides)):
            for step in STEPS:
                place = tuple((np.array([x, y, z]) + step) % sides)
                expected[b, grid[x, y, z], grid[place]] += 1
    bonds = bonds_of(grids)
    assert bonds.dtype == np.int64
    assert np.array_equal(bonds, expected)
    assert np.all(bonds.sum(axis=(1, 2)) == 8 * np.prod(sides) // 8)


def test_rows_are_exact() -> None:
    """sum_j N_ij = 8 n_i - N_i0 over the elements j, for any composition."""
    rng = np.random.default_rng(2)
    for shares in ((0.001, 0.333, 0.333, 0.333), (0.2, 0.1, 0.3, 0.4), (0.5, 0.0, 0.1, 0.4)):
        grids = random_states(4, (8, 10, 12), shares, rng)
        bonds = bonds_of(grids)
        numbers, counts = neighbour_numbers(bonds), species_numbers(bonds)
        found = [np.bincount(grid[grid >= 0], minlength=4) for grid in grids]
        assert np.array_equal(counts, found)
        assert np.array_equal(numbers, np.swapaxes(numbers, -1, -2))
        rows = numbers[:, 1:, 1:].sum(axis=-1)
        assert np.array_equal(rows, 8 * counts[:, 1:] - numbers[:, 1:, VACANCY])


def test_bonds_that_cannot_be_are_found() -> None:
    bonds = bonds_of(
        random_states(1, (8, 8, 8), (0.01, 0.33, 0.33, 0.33), np.random.default_rng(3))
    )
    bonds[0, 1, 2] += 1
    with pytest.raises(AssertionError, match="eight"):
        species_numbers(bonds)


# -- order parameters ------------------------------------------------------------------------


def test_pairs_are_named_in_the_published_order() -> None:
    assert pair_names(("Nb", "Mo", "Ta")) == ["NbNb", "NbMo", "NbTa", "MoMo", "MoTa", "TaTa"]
    assert pair_names(("A",)) == ["AA"]
    assert len(pair_names(tuple("ABCD"))) == 10


def crystal(corner: int, centre: int, cells: int = 4) -> np.ndarray:
    """The B2 crystal: one species on the corners, another on the centres."""
    grid = np.full((1, *(2 * cells,) * 3), NOT_A_SITE, np.int8)
    grid[:, ::2, ::2, ::2] = corner
    grid[:, 1::2, 1::2, 1::2] = centre
    return grid


@pytest.mark.parametrize(("corner", "centre", "sign"), [(1, 2, 1.0), (2, 1, -1.0)])
def test_an_ordered_crystal(corner: int, centre: int, sign: float) -> None:
    """All neighbours unlike: delta of 12 is 8 - 8/2, alpha of 12 is -1, of the like pairs 1."""
    bonds = bonds_of(crystal(corner, centre), 3)
    np.testing.assert_array_equal(short_range_order(bonds)[0], [-4.0, 4.0, -4.0])
    np.testing.assert_array_equal(warren_cowley(bonds)[0], [1.0, -1.0, 1.0])
    np.testing.assert_array_equal(long_range_order(bonds)[0], [sign, -sign])


@pytest.mark.parametrize("counts", [(8, 3000, 600, 488), (0, 1366, 1365, 1365), (40, 56, 4000, 0)])
def test_signs_and_limits_for_any_composition(counts: tuple[int, ...]) -> None:
    """Of a random mixture of 4096 sites, as the docstrings say; alpha alone is 0 and symmetric.

    By chance N_ij differs from 8 n_i c_j by sqrt(8 n_i c_j); seven of these are never seen.
    """
    grid = np.full((1, 32, 16, 32), NOT_A_SITE, np.int8)
    grid[:, is_site(grid.shape[1:])] = np.random.default_rng(3).permutation(
        np.repeat(np.arange(4, dtype=np.int8), counts)
    )
    bonds = bonds_of(grid)
    delta, alpha = short_range_order(bonds)[0], warren_cowley(bonds)[0]
    n, (i, j) = np.array(counts[1:]), np.triu_indices(3)
    c = n / sum(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = np.sqrt(8 * n[i] * c[j])
        known = chance > 0
        same = 8 * c[j] * (1 - alpha) - 8 / 3
        np.testing.assert_allclose(delta[known], same[known], atol=1e-12)
        assert (abs(delta - 8 * (c[j] - 1 / 3)) <= 7 * chance / n[i])[known].all()
        assert (abs(alpha) <= 7 / chance)[known].all()
        assert (delta >= -8 / 3)[known].all()
        assert (delta <= np.minimum(8, 8 * n[j] / n[i]) - 8 / 3 + 1e-12)[known].all()
        assert (alpha >= 1 - 1 / np.maximum(c[i], c[j]) - 1e-12)[known].all()
        assert (alpha <= 1)[known].all()
    swapped = [0, 2, 1, 3]
    other = warren_cowley(bonds[:, swapped][:, :, swapped])[0]
    np.testing.assert_allclose(other, alpha[[3, 1, 4, 0, 2, 5]])


def test_absent_species_have_no_order() -> None:
    """Of three elements one is not there: its parameters are nan, the others as ever."""
    bonds = bonds_of(crystal(1, 2))
    sro, alpha, lro = (f(bonds)[0] for f in (short_range_order, warren_cowley, long_range_order))
    np.testing.assert_allclose(sro[:2], [-8 / 3, 8 - 8 / 3])
    np.testing.assert_allclose(sro[2:5], [-8 / 3, -8 / 3, -8 / 3])
    assert np.isnan(sro[5])
    np.testing.assert_array_equal(alpha[[0, 1, 3]], [1.0, -1.0, 1.0])
    assert np.isnan(alpha[[2, 4, 5]]).all()
    np.testing.assert_array_equal(lro[:2], [1.0, -1.0])
    assert np.isnan(lro[2])


def test_a_pure_crystal_with_a_vacancy() -> None:
    """Eight of its atoms miss a neighbour."""
    grid = crystal(1, 1)
    grid[0, 2, 4, 6] = VACANCY
    bonds = bonds_of(grid, 2)
    assert bonds.tolist() == [[[0, 8], [0, 504]]]
    np.testing.assert_allclose(short_range_order(bonds), [[-8 / 127]])
    np.testing.assert_allclose(warren_cowley(bonds), [[1 - (8 - 8 / 127) / (8 * 127 / 128)]])
    np.testing.assert_allclose(long_range_order(bonds), [[-1 / 127]])


def test_random_alloys_have_no_order() -> None:
    """Exactly known means of all parameters over arrangements of n sites, all equally likely."""
    rng, n = np.random.default_rng(4), 250
    shares = (0.02, 0.18, 0.3, 0.5)
    grids = random_states(2000, (10, 10, 10), shares, rng)
    bonds = bonds_of(grids)
    counts = species_numbers(bonds)[0]
    assert counts.tolist() == [5, 45, 75, 125]
    # A neighbour is one of the other n - 1 sites.
    near = np.array([8 * (counts[1 + j] - (i == j)) / (n - 1) for i, j in PAIRS])
    shares_of_j = np.array([counts[1 + j] / n for _, j in PAIRS])
    for values, expected in (
        (short_range_order(bonds), near - 8 / 3),
        (warren_cowley(bonds), 1 - near / (8 * shares_of_j)),
        (long_range_order(bonds), np.zeros(3)),
    ):
        error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        assert np.all(np.abs(values.mean(axis=0) - expected) < Z_CEILING * error)


def test_row_sums_of_equal_numbers() -> None:
    """They are minus the mean number of vacancies next to an atom."""
    grids = random_states(5, (10, 10, 10), (0.04, 0.32, 0.32, 0.32), np.random.default_rng(5))
    bonds = bonds_of(grids)
    assert species_numbers(bonds)[0].tolist() == [10, 80, 80, 80]
    sums = row_sums(short_range_order(bonds), 3)
    assert sums.shape == (5, 3)
    np.testing.assert_allclose(sums, -neighbour_numbers(bonds)[:, 1:, VACANCY] / 80, atol=1e-13)


# -- parameters ------------------------------------------------------------------------------


def test_beta_is_in_electron_volts() -> None:
    assert Alloy(2000.0).beta == pytest.approx(1 / (BOLTZMANN * 2000.0))
    assert Alloy(11604.52).beta == pytest.approx(1.0, rel=1e-5)
    assert Alloy(300.0).elements == ("Nb", "Mo", "Ta")


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.inf, np.nan])
def test_temperatures_that_are_none(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        Alloy(temperature)


@pytest.mark.parametrize("elements", [(), ("Nb", "Nb"), tuple(map(str, range(101)))])
def test_elements_that_are_none(elements: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="elements"):
        Alloy(2000.0, elements)
