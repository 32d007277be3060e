"""Multilevel splitting against exact mean first passages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow import CurieWeiss, Ising, first_passage, step_of
from mpiflow.core.errors import InputError
from mpiflow.experiments.passages import SmallLattice, birth_death
from mpiflow.simulation.field.simulation import FieldSimulation
from mpiflow.solvers import master_equation
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import ExactLaw

#: Spins of a Curie-Weiss system, its temperature, and how many are down at home and at the goal.
SPINS, SYSTEM, HOME, GOAL = 40, CurieWeiss(1 / 1.35), 6, 20


def chain() -> tuple[np.ndarray, np.ndarray]:
    """Rates of the number of spins down."""
    up, down = SYSTEM.chain(SPINS)
    return down[::-1], up[::-1]


@pytest.mark.parametrize("placed", [True, False], ids=["placed", "given"])
def test_of_a_chain_as_its_master_equation_has_it(placed: bool) -> None:
    birth, death = chain()
    exact = master_equation.passage_times(birth, death)[HOME:GOAL].sum()
    assert exact > 50  # rare: a single flip takes 1 / 40
    of = birth_death(birth, death, HOME)
    levels = None if placed else [8, 11, 14, 17]
    found = first_passage(
        of.step, of.coordinate, of.start, home=HOME, goal=GOAL, levels=levels, trials=200,
        repeats=8, seed=3,
    )  # fmt: skip
    assert found.error < 0.15 * exact
    assert abs(found.mean - exact) < 4 * found.error
    # The chance is that of a chain that is stopped at both ends.
    start = int(np.ceil(found.levels[0][0]))
    ratio = np.cumprod(np.r_[1.0, (death / np.maximum(birth, 1e-300))[HOME + 1 : GOAL]])
    chance = ratio[: start - HOME].sum() / ratio.sum()
    assert abs(found.chance - chance) < 4 * found.chance_error


def test_equal_states_lumped_have_the_passages_of_all_states() -> None:
    """All 512 states of 3 x 3 spins, one by one, in a field, with rates written down here."""
    temperature, field, goal = 2.0, 0.1, 6
    spins = 1 - 2 * ((np.arange(512)[:, None] >> np.arange(9)) & 1)
    squares = spins.reshape(-1, 3, 3)
    bonds = (squares * (np.roll(squares, 1, 1) + np.roll(squares, 1, 2))).sum(axis=(1, 2))
    energy = -bonds - field * spins.sum(axis=1)
    generator = np.zeros((512, 512))
    for i in range(9):
        to = np.arange(512) ^ (1 << i)
        rate = 1 / (1 + np.exp((energy[to] - energy) / temperature))
        generator[np.arange(512), to] = rate
    generator -= np.diag(generator.sum(axis=1))
    away = (spins < 0).sum(axis=1) < goal
    exact = np.linalg.solve(generator[np.ix_(away, away)], -np.ones(away.sum()))[0]
    lumped = SmallLattice(Ising(temperature, field=field), 3).mean_passage(goal)
    assert lumped == pytest.approx(exact, rel=1e-10)


def test_of_a_lattice_of_nearest_neighbours_that_waits_for_millions() -> None:
    """A repeat takes 0.1 s, a direct run of the same length half a minute."""
    lattice = SmallLattice(Ising(1.0))
    goal = 14
    exact = lattice.mean_passage(goal)
    assert exact > 2e7
    of = lattice.process()
    found = first_passage(
        of.step, of.coordinate, of.start, home=0, goal=goal, first=1, trials=2000, seed=1
    )
    assert found.error < 0.15 * exact
    assert abs(found.mean - exact) < 4 * found.error


def test_what_cannot_work_is_refused() -> None:
    of = birth_death(*chain(), HOME)
    good: dict[str, Any] = {"home": 6, "goal": 20, "trials": 20}
    for wrong, name in (
        ({"goal": 5}, "goal"),
        ({"home": 2}, "start"),
        ({"levels": [9, 8]}, "levels"),
        ({"levels": []}, "levels"),
        ({"first": 30}, "first"),
        ({"trials": 2}, "trials"),
        ({"repeats": 1}, "repeats"),
        ({"share": 1.0}, "share"),
        ({"longest": 3}, "longest"),
        ({"levels": [8], "goal": 39}, "levels"),
    ):
        with pytest.raises(InputError, match=name):
            first_passage(of.step, of.coordinate, of.start, **good | wrong)


def box(seed: int, members: int = 50) -> FieldSimulation:
    """Blocks of one site, which is a lattice of spins in the field of all others."""
    coupling = np.zeros((4, 3))
    coupling[0, 0] = 1.0
    field = StochasticField(
        ExactLaw(1.15, "cosh"), coupling, (4, 4), block=2, dt=0.25, seed=seed, members=members,
        comm=MPI.COMM_SELF,
    )  # fmt: skip
    field.set(1.0)
    return FieldSimulation(field, seed, members)


def test_of_a_learned_field_as_direct_runs_have_it() -> None:
    """As many looks, so the same first passages."""
    direct = box(1)
    waited, passed = np.zeros(50), np.zeros(50, bool)
    while not passed.all():
        direct.advance_to(direct.time + 0.25)
        waited[~passed] += 0.25
        passed |= direct.state.mean(axis=(1, 2)) <= 0.0
    sim = box(2)
    found = first_passage(
        step_of(sim, 0.25), lambda m: -m.mean(axis=(1, 2)), sim.state[0].copy(), home=-0.6,
        goal=0.0, trials=50, repeats=5, seed=2,
    )  # fmt: skip
    truth, error = waited.mean(), waited.std() / np.sqrt(50)
    assert truth > 20
    assert abs(found.mean - truth) < 4 * np.hypot(found.error, error)
