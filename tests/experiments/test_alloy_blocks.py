"""What drivers of alloys share: the ordered state, and blocks of a lattice."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from mpiflow.experiments.alloy import bonds_of_blocks, joined, left_over, ordered, spread_of
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.systems import barriers
from mpiflow.systems.alloy import (
    Alloy,
    bonds_of,
    long_range_order,
    row_sums,
    short_range_order,
)


def lattice(cells: int, seed: int = 0, members: int = 1) -> AlloySimulation:
    sim = AlloySimulation(
        Alloy(2000.0), barriers.constant([1.0] * 3), cells, seed=seed, members=members,
        comm=MPI.COMM_SELF,
    )  # fmt: skip
    sim.set_species(random_alloy, counts=counts_of(sim.sites, max(1, sim.sites // 1024)))
    return sim


def test_the_ordered_state_has_no_like_pairs_of_mo_and_ta() -> None:
    sim = lattice(12)
    before = sim.numbers()
    sim.set_species(ordered, counts=tuple(before))
    assert np.array_equal(sim.numbers(), before)
    bonds = sim.measure().bonds
    sro, order = short_range_order(bonds), long_range_order(bonds)
    np.testing.assert_allclose(sro[[3, 5]], -8 / 3)
    assert order.tolist()[1:] == [1.0, -1.0]
    assert abs(order[0]) < 0.01  # Nb is on both
    # Mo has Ta or Nb around it, and Nb is without order.
    assert abs(row_sums(sro, 3)).max() < 0.02
    assert abs(sro[0]) < 4 * 8 / 1152**0.5
    again = lattice(12)
    again.set_species(ordered, counts=tuple(before), seed=1)
    assert (again.species() != sim.species()).mean() > 0.1


def test_blocks_add_up_to_the_lattice() -> None:
    sites = lattice(12).species()[0]
    parts = bonds_of_blocks(sites, 12, 3, 4)
    whole = bonds_of(sites, (12, 12, 12), 4)
    assert np.array_equal(parts.sum(axis=(0, 1, 2)), whole)
    assert np.array_equal(joined(parts), bonds_of_blocks(sites, 12, 6, 4))
    # One block, bond by bond: a corner's centres lie before and behind it along each axis.
    planes, wanted = sites.reshape(24, 12, 12), np.zeros((4, 4), np.int64)
    for x, y, z in np.ndindex(3, 3, 3):
        at = x + 9, y, z + 6
        for back in np.ndindex(2, 2, 2):
            i, j, k = (np.array(at) - back) % 12
            wanted[planes[2 * at[0], at[1], at[2]], planes[2 * i + 1, j, k]] += 1
    assert np.array_equal(parts[3, 0, 2], wanted)


def test_open_blocks_less_their_numbers_of_atoms_spread_like_closed_lattices() -> None:
    """Of random mixtures; what the numbers of atoms explain is much more than that."""
    bonds = bonds_of_blocks(lattice(32, seed=3).species()[0], 32, 8, 4)
    rest = spread_of(left_over(bonds))
    closed = short_range_order(lattice(8, seed=4, members=64).measure().bonds)[:, [0, 3, 5]]
    alone = closed.std(axis=0, ddof=1)
    error = 2 / np.sqrt(2 * 3 * 60)  # of the mean of three ratios of spreads of 64
    assert abs((rest / alone).mean() - 1) < 4 * error / np.sqrt(2)
    like = bonds.reshape(-1, 4, 4)[:, [1, 2, 3], [1, 2, 3]]
    raw = (8 / 3 * like / like.mean(axis=0)).std(axis=0, ddof=1)
    assert (raw / alone).mean() > 1.5
