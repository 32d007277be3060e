"""The Potts model at its transition: a jump of the energy for ten states, none for three."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpiflow.core.block import Block
from mpiflow.observables import observe
from mpiflow.solvers.spins.rule_sublattice import RuleSublattice
from mpiflow.systems.potts import Potts, critical_energy, critical_temperature, latent_heat


def energy_at_transition(
    states: int, size: int, members: int, ordered: bool, sweeps: int
) -> np.ndarray:
    """Mean energy per site of each member over the second half of a run from one of the phases."""
    rule = Potts(critical_temperature(states), states)
    start = np.zeros((members, size, size), np.int8)
    if not ordered:
        start = np.random.default_rng(3).choice(rule.values, start.shape)
    block, solver = Block.periodic(start, np.arange(members)), RuleSublattice(rule, math.inf)
    solver.advance(block, sweeps, seed=1)
    seen = []
    for first in range(sweeps, 2 * sweeps, 50):
        solver.advance(block, 50, seed=1, first_step=first)
        seen.append(observe(block, rule)["energy"])
    return np.asarray(np.mean(seen, axis=0))


@pytest.mark.parametrize("ordered", [True, False])
def test_ten_states_have_two_phases_of_baxters_energies(ordered: bool) -> None:
    """Of lattices twelve correlation lengths wide, which stay in the phase that they start in.

    The standard error is 0.003 (four blocks of a run scatter by 0.005 to 0.015), so that 0.03
    would be ten of them; the other phase is 0.7 away.
    """
    ours = energy_at_transition(10, 128, members=2, ordered=ordered, sweeps=1500).mean()
    due = critical_energy(10) + (-0.5 if ordered else 0.5) * latent_heat(10)
    assert abs(ours - due) < 0.03


def test_three_states_have_one_energy() -> None:
    """From both starts, within 7 standard errors of 64 members each; it is the exact one of the
    infinite lattice but for a term of about 0.4 size^-(2 - 1 / nu), nu = 5 / 6."""
    hot, cold = (
        energy_at_transition(3, 16, members=64, ordered=ordered, sweeps=1000)
        for ordered in (False, True)
    )
    error = math.sqrt((hot.var() + cold.var()) / 64)
    assert error < 0.008
    assert abs(hot.mean() - cold.mean()) < 7 * error
    finite = (hot.mean() + cold.mean()) / 2 - critical_energy(3)
    assert abs(finite + 0.4 * 16**-0.8) < 7 * error
