"""Multilevel splitting against exact mean first passages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.core.errors import InputError
from mpiflow.learn.splitting import first_passage, step_of
from mpiflow.simulation.field.simulation import FieldSimulation
from mpiflow.solvers import master_equation
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import ExactLaw

#: Spins of a Curie-Weiss system, beta J, and where its magnetisation is at home: k spins up.
SPINS, BETA = 40, 1.35


def chain() -> tuple[np.ndarray, np.ndarray]:
    """Rates of the number of spins down, Glauber flips in the field of all others."""
    down = np.arange(SPINS + 1)
    m = 1 - 2 * down / SPINS
    of_one = BETA / SPINS
    birth = (SPINS - down) / (1 + np.exp(2 * (BETA * m - of_one)))
    death = down / (1 + np.exp(-2 * (BETA * m + of_one)))
    return birth, death


def by_events(birth: np.ndarray, death: np.ndarray) -> Any:
    def step(at: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        total = birth[at] + death[at]
        up = rng.random(len(at)) * total < birth[at]
        return at + np.where(up, 1, -1), rng.exponential(size=len(at)) / total

    return step


@pytest.mark.parametrize("placed", [True, False], ids=["placed", "given"])
def test_of_a_chain_as_its_master_equation_has_it(placed: bool) -> None:
    birth, death = chain()
    home, goal = 6, 20
    exact = master_equation.passage_times(birth, death)[home:goal].sum()
    assert exact > 50  # rare: a single flip takes 1 / 40
    levels = None if placed else [8, 11, 14, 17]
    found = first_passage(
        by_events(birth, death), lambda k: k.astype(float), np.array(home), home=home, goal=goal,
        levels=levels, trials=200, repeats=8, seed=3,
    )  # fmt: skip
    assert found.error < 0.15 * exact
    assert abs(found.mean - exact) < 4 * found.error
    # The chance is that of a chain that is stopped at both ends.
    start = int(np.ceil(found.levels[0][0]))
    ratio = np.cumprod(np.r_[1.0, (death / np.maximum(birth, 1e-300))[home + 1 : goal]])
    chance = ratio[: start - home].sum() / ratio.sum()
    assert abs(found.chance - chance) < 4 * found.chance_error


def test_what_cannot_work_is_refused() -> None:
    birth, death = chain()
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
            first_passage(
                by_events(birth, death), lambda k: k.astype(float), np.array(6), **good | wrong
            )


def box(seed: int, members: int = 100) -> FieldSimulation:
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
    waited, passed = np.zeros(100), np.zeros(100, bool)
    while not passed.all():
        direct.advance_to(direct.time + 0.25)
        waited[~passed] += 0.25
        passed |= direct.state.mean(axis=(1, 2)) <= 0.0
    sim = box(2)
    found = first_passage(
        step_of(sim, 0.25), lambda m: -m.mean(axis=(1, 2)), sim.state[0].copy(), home=-0.6,
        goal=0.0, trials=100, repeats=5, seed=2,
    )  # fmt: skip
    truth, error = waited.mean(), waited.std() / 10
    assert truth > 20
    assert abs(found.mean - truth) < 4 * np.hypot(found.error, error)
