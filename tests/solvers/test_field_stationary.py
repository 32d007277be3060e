"""The stationary laws of the longest steps that a stochastic field makes, without noise.

One block of ``langevin`` in Legendre polynomials of z, on which the drift acts by the kernels
themselves; blocks of ``cosh`` by the transition matrix of their counts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from numpy.polynomial import legendre
from test_stochastic_field import Counts, bent, symbol

from mpiflow.core.errors import InputError
from mpiflow.core.noise import stream_key
from mpiflow.simulation.field.simulation import FieldSimulation
from mpiflow.solvers.field.flips import FlipSteps
from mpiflow.solvers.field.langevin import LangevinSteps
from mpiflow.solvers.field.steps import Pull
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import ExactLaw, FiniteLaw, Law, Structure

SELF = MPI.COMM_SELF
BOTH: Any = pytest.mark.parametrize("structure", ["langevin", "cosh"])
TERMS = 200
NODES, WEIGHTS = legendre.leggauss(2 * TERMS)
PROJECT = (legendre.legvander(NODES, TERMS - 1) * WEIGHTS[:, None]).T
PROJECT *= np.arange(TERMS)[:, None] + 0.5


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*learned")
        yield


def moments(m: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The variance and the root of the fourth moment."""
    m = m - weight @ m
    return np.array([weight @ m**2, math.sqrt(max(0.0, weight @ m**4))])


def turned(law: Law, spins: int, j: float, h: float, share: float) -> np.ndarray:
    """Relative errors of moments of one block of ``langevin``, at a share of the longest step."""
    motion = LangevinSteps(law, spins)
    dt = share * min(1.0, motion.longest(Pull(j, j, j, 0.0, abs(h))))
    t, motion.rate = 0.5 * dt * motion.rate, 0.0  # the drift alone, by the kernels
    z = NODES[None, None].copy()
    noise = stream_key(0, "stochastic-field"), np.zeros(1, np.uint64), np.uint64(0), 0
    motion.step(z, lambda m: j * m + h, dt, noise)
    # Turns of half a step multiply the polynomials by means over angles, as in LangevinSteps.step.
    r = np.linspace(0, 9, 2001)
    chance = r * np.exp(-r * r / 2)
    cosines = np.cos(math.sqrt(2 * t * (1 - min(t, 1) / 3)) * r)
    turn = legendre.legvander(cosines, TERMS - 1).T @ (chance / chance.sum())
    step = turn[:, None] * (PROJECT @ legendre.legvander(z[0, 0], TERMS - 1)) * turn
    balance = (step - np.eye(TERMS)).T
    balance[0] = np.eye(TERMS)[0]
    found = np.linalg.solve(balance, np.eye(TERMS)[0]) @ PROJECT
    # The density of m, on the nodes of z.
    m = motion.means(NODES)
    slope = np.gradient(m, NODES, edge_order=2) if np.ptp(m - NODES) > 1e-9 else 1.0
    energy = law.entropy(m) - j * m * m / 2 - h * m
    density = WEIGHTS * slope * np.exp(-law.beta * spins * (energy - energy.min()))
    return moments(m, found) / moments(m, density / density.sum()) - 1


def laws(structure: Structure, spins: int, beta: float) -> list[Law]:
    known: list[Law] = [ExactLaw(beta, structure), bent(structure, beta)]
    return known + (
        [FiniteLaw(known[0], spins, 0.5)] if structure == "langevin" and spins > 1 else []
    )


@pytest.mark.parametrize("spins", [1, 2, 4, 16, 64])
def test_the_longest_langevin_steps_keep_the_stationary_law(spins: int) -> None:
    """Warm and cold, coupled to itself with either sign, in fields: 1 % of a variance."""
    for beta in (0.2, 1.0, 2.0, 5.0):
        for law in laws("langevin", spins, beta):
            for j, h in ((0, 0), (0.95 / beta, 0), (-1, 0), (0, 1), (-1, 0.5)):
                off = turned(law, spins, j, h, 1.0)
                assert np.abs(off).max() < 0.0125, (law, beta, j, h, off)


def test_a_longer_langevin_step_would_not() -> None:
    """Free blocks of 16 at dt = 0.5, as found: 12 %. And second order: a half has a quarter."""
    law = ExactLaw(1.0)
    one = LangevinSteps(law, 16).longest(Pull(0, 0, 0, 0, 0))
    assert 0.1 <= one < 0.16
    assert turned(law, 16, 0, 0, 0.5 / one)[0] == pytest.approx(0.12, abs=0.02)
    assert turned(law, 16, 0, 0, 0.5)[0] == pytest.approx(turned(law, 16, 0, 0, 1)[0] / 4, rel=0.05)


GRIDS = [
    *((n, np.array([[j]])) for n in (2, 4, 9, 16) for j in (1.0, -1.0, 0.3)),
    *((n, np.array(pair)) for n in (1, 2) for pair in ([[0.0], [1.0]], [[0.3], [0.5]])),
    (4, np.array([[0.0], [1.0]])),
    pytest.param(4, np.array([[0.3], [0.5]]), marks=pytest.mark.validate),
    (4, np.array([[0.0], [-1.0]])),
]


@pytest.mark.parametrize(("spins", "dense"), GRIDS)
def test_the_longest_cosh_steps_keep_the_stationary_law(spins: int, dense: np.ndarray) -> None:
    """One block, or two that are coupled; their means, and the mean of both."""
    hat = symbol(dense)
    other = abs(np.append(dense.ravel()[1:], 0.0)).max()
    for beta in (0.5, 1.0, 2.0):
        for law in laws("cosh", spins, beta):
            for h in (0.0, 0.3):
                pull = Pull(hat.min(), hat.max(), dense[0, 0], other, h)
                dt = min(1.0, FlipSteps(law, spins, dense[0, 0]).longest(pull))
                chain = Counts(law, spins, dense, h)
                step, exact = chain.step(dt), chain.gibbs()
                balance = (step - np.eye(len(exact))).T
                balance[0] = 1.0
                found = np.linalg.solve(balance, np.eye(len(exact))[0])
                m = 2 * chain.states / spins - 1
                for values in (m[:, 0], m.mean(axis=1)):
                    off = moments(values, found) / moments(values, exact) - 1
                    assert np.abs(off).max() < 0.0125, (law, beta, h, off)


@BOTH
def test_free_blocks_have_their_variance_at_any_step(structure: Structure) -> None:
    """10,240 blocks, 8 times: 0.5 % of a variance by chance, so 2 % and six of them, 1e-9."""
    for dt in (0.5, 1.0):
        field = StochasticField(
            ExactLaw(1.0, structure), np.zeros((128, 41)), (128, 80), block=4, dt=dt, comm=SELF
        )
        field.set(0.0)
        field.advance(round(4 / dt))
        found = []
        for _ in range(8):
            field.advance(round(2 / dt))
            found.append(float(np.mean(field.m**2)))
        z, weight = legendre.leggauss(200)
        density = weight * np.exp(-16 * field.law.entropy(z))
        expected = 1 / 16 if structure == "cosh" else density @ z**2 / density.sum()
        assert abs(np.mean(found) / expected - 1) < 0.02 + 6 * 0.005


def test_a_single_spin_does_not_feel_itself() -> None:
    """Its stationary law is that of the field alone, whatever J_0 is: here it was 4 % off."""
    field = StochasticField(
        ExactLaw(1.0, "cosh"), np.full((128, 41), 0.5), (128, 80), block=1, field=0.2, comm=SELF
    )
    field.set(0.0)
    field.advance(60)
    # 0.01 is the error of a mean of 10,240 spins.
    assert abs(field.m.mean() - math.tanh(0.2)) < 6 * 0.01
    assert FlipSteps(field.law, 1, 0.5).longest(Pull(0.5, 0.5, 0.5, 0.0, 0.2)) == math.inf


@BOTH
def test_inner_steps_and_what_is_refused(structure: Structure) -> None:
    def field(h: float, dt: float, beta: float = 1.0) -> StochasticField:
        law = ExactLaw(beta, structure)
        return StochasticField(law, np.ones((4, 3)), (4, 4), block=2, field=h, dt=dt, comm=SELF)

    assert field(0.0, 1.0).inner > field(0.0, 0.2).inner >= field(0.0, 0.01).inner == 1
    assert field(0.0, 0.5, 20.0).inner > field(0.0, 0.5).inner
    long = field(0.0, 1.0)
    assert f"each dt in {long.inner} inner steps" in FieldSimulation(long, 0).describe()
    with pytest.raises(InputError, match=r"^dt=1.*at most .*inner steps of .* keep") as refused:
        field(1e3, 1.0, 1e3)
    longest = float(str(refused.value).split("at most ")[1].split()[0])
    assert field(1e3, 0.99 * longest, 1e3).inner > 4000
    with pytest.raises(InputError, match="^dt="):
        field(1e3, 1.02 * longest, 1e3)
