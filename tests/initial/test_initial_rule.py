"""Initial states of spin rules: fractions, exact counts, and the same on any ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact import chi_square
from mpi4py import MPI
from rule_law import RARE

from mpiflow import initial
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.initial import rule as rule_initial
from mpiflow.systems.blume_capel import BlumeCapel
from mpiflow.systems.potts import Potts

POTTS, CAPEL = Potts(0.9, states=3), BlumeCapel(0.8)


def test_independent_states_have_their_fractions() -> None:
    """Counts of 4e5 sites, a fixed seed; a state of fraction 0 is not drawn at all."""
    block = Block.periodic(np.zeros((4, 320, 320), np.int8), np.arange(4))
    for fractions in ([0.5, 0.2, 0.3], [0.0, 0.25, 0.75], [1.0, 0.0, 0.0], None):
        rule_initial.independent(block, CAPEL, seed=12, fractions=fractions)
        due = 4 * 320**2 * np.array(fractions or [1 / 3] * 3)
        seen = np.array([(block.spins() == value).sum() for value in CAPEL.values])
        assert ((seen == 0) == (due == 0)).all()
        if (due > 0).sum() > 1:
            assert chi_square(seen, due) > RARE
    rule_initial.uniform(block, CAPEL, value=-1)
    assert (block.array == -1).all()


@pytest.mark.parametrize(
    "fractions", [[0.5, 0.5], [0.5, 0.2, 0.2], [1.2, -0.2, 0.0], [math.nan] * 3]
)
def test_impossible_fractions(fractions: list[float]) -> None:
    block = Block.periodic(np.zeros((1, 4, 4), np.int8), np.arange(1))
    with pytest.raises(InputError, match="3 numbers, 0 or more, that add up to 1"):
        rule_initial.independent(block, POTTS, seed=0, fractions=fractions)
    with pytest.raises(InputError, match="value=3: allowed is 0 to 2"):
        rule_initial.uniform(block, POTTS, value=3)


def test_shuffled_states_have_exact_counts() -> None:
    """Of each member, in an arrangement of its own; counts of the places are independent."""
    block = Block.periodic(np.zeros((50, 12, 10), np.int8), np.arange(50))
    for fractions in ([0.5, 0.2, 0.3], [0.0, 0.25, 0.75], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], None):
        rule_initial.shuffled(block, CAPEL, seed=4, fractions=fractions)
        due = np.rint(120 * np.array(fractions or [1 / 3] * 3))
        for value, number in zip(CAPEL.values, due, strict=True):
            assert ((block.spins() == value).sum((1, 2)) == number).all()
    assert len(np.unique(block.spins().reshape(50, -1), axis=0)) == 50
    assert np.array_equal(block.array, np.pad(block.spins(), ((0, 0), (1, 1), (1, 1)), "wrap"))


def test_two_shuffled_states_are_shuffled_spins() -> None:
    """The first state where Ising has spins up: the same words and the same count."""
    ours, theirs = (Block.periodic(np.zeros((3, 8, 6), np.int8), np.arange(3)) for _ in range(2))
    rule_initial.shuffled(ours, Potts(1.0, states=2), seed=7, fractions=[0.25, 0.75])
    initial.shuffled(theirs, seed=7, magnetization=-0.5)
    assert np.array_equal(1 - 2 * ours.array, theirs.array)


@pytest.mark.mpi
@pytest.mark.parametrize("fill", [rule_initial.independent, rule_initial.shuffled])
def test_the_same_on_any_ranks(comm: MPI.Intracomm, fill: object) -> None:
    def whole(on: MPI.Intracomm, grid: tuple[int, int]) -> np.ndarray:
        layout = Layout(Lattice((9, 14)), grid)
        block = Block.tile(layout, on)
        fill(block, Potts(1.0, states=4), seed=3, fractions=[0.4, 0.3, 0.2, 0.1])  # type: ignore[operator]
        out = np.empty((9, 14), np.int8)
        for box, piece in on.allgather((layout.slices(on.rank), block.spins()[0].copy())):
            out[box] = piece
        return out

    due = whole(MPI.COMM_SELF, (1, 1))
    for grid in ((comm.size, 1), (1, comm.size)):
        assert np.array_equal(whole(comm, grid), due)
