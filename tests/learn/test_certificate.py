"""The terms of certificates against sums over all changes of small lattices, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from scipy.linalg import expm

import mpiflow
from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.learn.certificate import alloy as alloy_terms
from mpiflow.learn.certificate import spins as spin_terms
from mpiflow.learn.certificate.proposal import Aim, best, proposals
from mpiflow.learn.certificate.terms import Terms
from mpiflow.scaleup.spins import partial_evolution
from mpiflow.simulation.alloy.barrier_model import BarrierModel, pairwise_model
from mpiflow.systems.alloy import (
    BOLTZMANN,
    DIRECTIONS,
    NOT_A_SITE,
    VACANCY,
    Alloy,
    is_site,
    short_range_order,
)
from mpiflow.systems.ising import Ising
from mpiflow.systems.potts import Potts
from mpiflow.systems.rule import SpinRule

SIDE, PATCH = 6, 2
SQUARE = list(product(range(SIDE), repeat=2))


@dataclass(frozen=True)
class Voter(SpinRule):
    """Without an energy, by rates."""

    states: int = 3

    @staticmethod
    def rate(
        own: int, new: int, north: int, west: int, east: int, south: int, parameters: Any
    ) -> float:
        return 0.25 * ((north == new) + (west == new) + (east == new) + (south == new)) + 0.01 * new


SYSTEMS = [
    Ising(1.8, 0.1),
    Ising(2.27),
    Ising(3.5, -0.2),
    Potts(0.9, 3, field=0.1),
    Voter(),
]


# -- spins, from the definitions -----------------------------------------------------------------


def around(y: int, x: int) -> list[tuple[int, int]]:
    """North, west, east, south."""
    return [
        ((y - 1) % SIDE, x), (y, (x - 1) % SIDE), (y, (x + 1) % SIDE), ((y + 1) % SIDE, x),
    ]  # fmt: skip


def values(system: Ising | SpinRule) -> list[int]:
    return [-1, 1] if isinstance(system, Ising) else system.values.tolist()


def changes(system: Ising | SpinRule, s: np.ndarray, y: int, x: int) -> list[tuple[int, float]]:
    """New states of a site, and their rates."""
    own, near = int(s[y, x]), [int(s[n]) for n in around(y, x)]
    others = [v for v in values(system) if v != own]
    if isinstance(system, Ising):
        cost = 2 * own * (sum(near) + system.field)
        return [(others[0], 1 / (1 + np.exp(cost / system.temperature)))]
    if system.by_rate:
        return [(v, system.rate(own, v, *near, ())) for v in others]
    total = sum(system.weight(v, *near, system.parameters) for v in values(system))
    return [(v, system.weight(v, *near, system.parameters) / total) for v in others]


def parts_of(system: Ising | SpinRule) -> tuple[np.ndarray, np.ndarray]:
    """What sites and bonds have, (q, d) and (q, q, d)."""
    known = values(system)
    q, pairs = len(known), list(product(range(len(known)), repeat=2))
    site, bond = np.eye(q), np.zeros((q, q, q))
    if isinstance(system, Ising):
        site, bond = np.array([[-1.0, 0.0], [1.0, 0.0]]), np.zeros((2, 2, 2))
        bond[0, 1, 1] = bond[1, 0, 1] = 0.5
    elif not system.by_rate:
        site = np.array([[*row, system.site_energy(v)] for row, v in zip(site, known, strict=True)])
        bond = np.zeros((q, q, q + 1))
        for i, j in pairs:
            bond[i, j, q] = system.pair_energy(known[i], known[j])
    return site, bond


def counted(
    system: Ising | SpinRule, sites: list[tuple[int, int]], outside: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """What some sites have, with every bond that touches them, the rest being as ``outside``."""
    site, bond = parts_of(system)
    low, step = values(system)[0], values(system)[1] - values(system)[0]
    at = tuple(np.array(sites).T)
    near = [tuple(np.array(side).T) for side in zip(*(around(y, x) for y, x in sites), strict=True)]
    inside = [np.array([one in sites for one in zip(*side, strict=True)]) for side in near]
    weights = [np.where(within, 0.5, 1.0) for within in inside]  # a bond within is met twice

    def sums(s: np.ndarray) -> np.ndarray:
        own = (s[at].astype(int) - low) // step
        total = site[own].sum(axis=0)
        for side, within, weight in zip(near, inside, weights, strict=True):
            other = (np.where(within, s[side], outside[side]).astype(int) - low) // step
            total = total + weight @ bond[own, other]
        return np.asarray(total / SIDE**2)

    return sums


def applied(
    system: Ising | SpinRule, moving: list[tuple[int, int]], f: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """The generator of some moving sites on a function of the state."""

    def result(s: np.ndarray) -> np.ndarray:
        here = f(s)
        total = np.zeros_like(here)
        for y, x in moving:
            for new, rate in changes(system, s, y, x):
                there = s.copy()
                there[y, x] = new
                total += rate * (f(there) - here)
        return total

    return result


def box(corner: tuple[int, int], buffer: int) -> list[tuple[int, int]]:
    span = range(-buffer, PATCH + buffer)
    return [((corner[0] + j) % SIDE, (corner[1] + i) % SIDE) for j in span for i in span]


def state_of(system: Ising | SpinRule, seed: int) -> np.ndarray:
    """Not at random: neighbours are like each other more often than not."""
    rng = np.random.default_rng(seed)
    s = rng.choice(values(system), (SIDE, SIDE)).astype(np.int8)
    for y, x in SQUARE:
        if rng.random() < 0.5:
            s[y, x] = s[around(y, x)[rng.integers(4)]]
    return s


CORNERS = list(product(range(0, SIDE, PATCH), repeat=2))


@pytest.mark.parametrize("system", SYSTEMS[1:], ids=lambda s: type(s).__name__)
def test_terms_of_spins_are_those_of_the_generator(system: Ising | SpinRule) -> None:
    s = state_of(system, 1)
    made = spin_terms.terms(system, s[None], [PATCH, SIDE])
    z = counted(system, SQUARE, s)
    once = applied(system, SQUARE, z)
    np.testing.assert_allclose(made.drift[0], once(s), atol=1e-12)
    second = applied(system, SQUARE, once)(s)
    np.testing.assert_allclose(made.second[0], second, atol=1e-12)
    square = applied(system, SQUARE, lambda at: (z(at) - z(s)) ** 2)(s)
    np.testing.assert_allclose(made.square[0], square, atol=1e-12)
    none, wide, whole = made.cuts
    assert [(c.patch, c.buffer, int(c.parts[0])) for c in made.cuts] == [
        (2, 0, 9), (2, 2, 9), (6, 0, 1),
    ]  # fmt: skip
    assert not whole.surroundings.any()
    for cut in (none, wide):
        parts = np.zeros_like(second)
        for corner in CORNERS:
            f = counted(system, box(corner, 0), s)
            # Only sites of the patch change what is counted in it.
            own = applied(system, box(corner, 0), f)
            parts += applied(system, list(set(box(corner, cut.buffer))), own)(s)
        np.testing.assert_allclose(cut.surroundings[0], 0.5 * (parts - second), atol=1e-12)
    each = np.array([applied(system, box(c, 0), counted(system, box(c, 0), s))(s) for c in CORNERS])
    np.testing.assert_allclose(none.between[0], 9 * (each**2).sum(0) - once(s) ** 2, atol=1e-12)
    np.testing.assert_allclose(each.sum(0), once(s), atol=1e-12)


def exact_increment(system: Ising | SpinRule, s: np.ndarray, dt: float) -> np.ndarray:
    """Sum over frozen patches of the mean change over dt, from the semigroup of each."""
    every = list(product(values(system), repeat=PATCH**2))
    number = {one: i for i, one in enumerate(every)}
    total: Any = 0.0
    for corner in CORNERS:
        sites = box(corner, 0)
        f, start = counted(system, sites, s), number[tuple(int(s[at]) for at in sites)]
        q, value = np.zeros((len(every),) * 2), []
        for i, one in enumerate(every):
            now = s.copy()
            for at, a in zip(sites, one, strict=True):
                now[at] = a
            value.append(f(now))
            for k, (y, x) in enumerate(sites):
                for new, rate in changes(system, now, y, x):
                    q[i, number[(*one[:k], new, *one[k + 1 :])]] += rate
        q -= np.diag(q.sum(axis=1))
        total = total + (expm(dt * q) @ np.array(value) - value)[start]
    return np.asarray(total)


@pytest.mark.parametrize("system", SYSTEMS[:4], ids=lambda s: f"{type(s).__name__}-{s.temperature}")
def test_a_certificate_holds(system: Any) -> None:
    """At the proposed dt the drift of frozen patches is off by what was stated, 1 %."""
    states = np.array([state_of(system, seed) for seed in range(4)])
    made = spin_terms.terms(system, states, [PATCH])
    one = proposals(made, np.zeros(4), Aim(error=0.01))[0]
    assert one.error.max() == pytest.approx(0.01)
    shown = np.array([exact_increment(system, s, one.duration) for s in states]) / one.duration
    off = np.sqrt(np.mean((shown - made.drift) ** 2, axis=0) / np.mean(made.drift**2, axis=0))
    np.testing.assert_allclose(off, one.error, rtol=0.03)


def test_the_spread_of_a_pair() -> None:
    """Its variance over patches and noise, of real partial evolutions of one state."""
    system, count, dt = Ising(2.5, 0.1), 20_000, 0.03125
    state = np.where(np.random.default_rng(2).random((16, 16)) < 0.7, 1, -1).astype(np.int8)
    made = spin_terms.terms(system, state[None], [4])
    cut = made.cuts[0]
    many, members = np.repeat(state[None], count, axis=0), np.arange(count)
    patches = partial_evolution(many, members, system, 4, seed=3, duration=dt, dt=dt / 2)
    shown = patches.changes() * np.array([1.0, -0.25]) * cut.parts[0] / 256 / dt
    expected = cut.parts[0] * made.square[0] / dt + cut.between[0]
    # The next term is smaller by dt times rates; one error bar of a variance is 1.5 %.
    np.testing.assert_allclose(shown.var(axis=0), expected, rtol=0.08)
    drift = made.drift[0] + dt * (cut.surroundings[0] + 0.5 * made.second[0])
    assert np.all(abs(shown.mean(axis=0) - drift) < 4 * np.sqrt(expected / count))


# -- alloys --------------------------------------------------------------------------------------


def model() -> BarrierModel:
    bonds = np.zeros((4, 4))
    bonds[1:, 1:] = [[0.02, -0.05, 0.01], [-0.05, 0.03, -0.1], [0.01, -0.1, 0.0]]
    return pairwise_model([1.0, 1.1, 0.9], bonds)


def crystal(places: list[tuple[int, int, int]]) -> np.ndarray:
    grid = np.full((8, 8, 8), NOT_A_SITE, np.int8)
    sites = is_site(grid.shape)
    grid[sites] = np.random.default_rng(4).integers(1, 4, int(sites.sum()))
    for place in places:
        grid[place] = VACANCY
    return grid


def order(grid: np.ndarray) -> np.ndarray:
    return short_range_order(observables.bond_counts(Block.periodic(grid[None], [0]), 4))[0]


Move = tuple[float, np.ndarray]


def hops(grid: np.ndarray, barriers: BarrierModel, only: tuple[int, ...] | None) -> list[Move]:
    """Rates, and the states that all vacancies, or the one at a place, hop to."""
    out = []
    for place in map(tuple, np.argwhere(grid == VACANCY)):
        if only is not None and place != only:
            continue
        energies = barriers.barriers(grid, place)
        for direction, energy in zip(DIRECTIONS, energies, strict=True):
            target = tuple((np.array(place) + direction) % 8)
            if grid[target] == VACANCY:
                continue
            there = grid.copy()
            there[place], there[target] = grid[target], VACANCY
            out.append((1e13 * np.exp(-float(energy) / (BOLTZMANN * 1000.0)), there))
    return out


def moved(before: np.ndarray, after: np.ndarray) -> tuple[int, ...]:
    """Where the vacancy went."""
    return tuple(np.argwhere((after == VACANCY) & (before != VACANCY))[0].tolist())


def power(grid: np.ndarray, barriers: BarrierModel, n: int, only: Any = None) -> np.ndarray:
    """L^n z, or L_u^n z of the vacancy at a place."""
    if n == 0:
        return order(grid)
    here, total = power(grid, barriers, n - 1, only), np.zeros(6)
    for rate, there in hops(grid, barriers, only):
        then = None if only is None else moved(grid, there)
        total += rate * (power(there, barriers, n - 1, then) - here)
    return total


def test_terms_of_alloys_are_those_of_the_generator() -> None:
    barriers, places = model(), [(2, 2, 2), (4, 4, 4)]
    grid = crystal(places)
    made = alloy_terms.terms(Alloy(1000.0), barriers.parameters, grid[None])
    assert made.names == ("NbNb", "NbMo", "NbTa", "MoMo", "MoTa", "TaTa")
    size = abs(made.second).max()
    np.testing.assert_allclose(made.drift[0], power(grid, barriers, 1), rtol=1e-5)
    second = power(grid, barriers, 2)
    np.testing.assert_allclose(made.second[0], second, atol=1e-5 * size)
    square = sum(rate * (order(at) - order(grid)) ** 2 for rate, at in hops(grid, barriers, None))
    np.testing.assert_allclose(made.square[0], square, rtol=1e-5)
    (cut,) = made.cuts
    own = sum(power(grid, barriers, 2, place) for place in places)
    np.testing.assert_allclose(cut.surroundings[0], 0.5 * (own - second), atol=1e-5 * size)
    assert abs(cut.surroundings).max() > 1e-3 * size  # they are near each other
    each = np.array([power(grid, barriers, 1, place) for place in places])
    between = 2 * (each**2).sum(0) - each.sum(0) ** 2
    np.testing.assert_allclose(cut.between[0], between, rtol=1e-4, atol=1e-6 * between.max())


def test_a_certificate_of_an_alloy_holds() -> None:
    """The next term of the expansion is small at the proposed dt."""
    barriers, grid = model(), crystal([(3, 3, 3)])
    made = alloy_terms.terms(Alloy(1000.0), barriers.parameters, grid[None])
    one = best(proposals(made, np.zeros(1), Aim(error=0.01)))
    assert one.parts == 1
    dt = one.duration
    off = 0.5 * dt * made.second[0] + dt**2 / 6 * power(grid, barriers, 3)
    np.testing.assert_allclose(abs(off / made.drift[0]), one.error, rtol=0.05, atol=1e-4)


# -- what is proposed ----------------------------------------------------------------------------


def many(seed: int = 0, count: int = 8, side: int = 32) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random((count, side, side)) < 0.6, 1, -1).astype(
        np.int8
    )


def found(**aim: Any) -> tuple[Terms, Any]:
    made = spin_terms.terms(Ising(2.5, 0.1), many(), [4, 8, 16, 32])
    return made, proposals(made, np.zeros(8), Aim(**aim))


def test_what_is_proposed_follows_its_rules() -> None:
    _, ours = found()
    _, tenth = found(error=0.001)
    _, more = found(pairs=4 * 320_000, numbers=40)
    _, steps = found(drift="increment")
    for one, short, other, step in zip(ours, tenth, more, steps, strict=True):
        assert one.error.max() == pytest.approx(0.01)
        assert short.duration == pytest.approx(0.1 * one.duration)
        np.testing.assert_allclose(other.noise, one.noise)
        # Ten times more spread, ten times the precision.
        assert short.wanted == pytest.approx(1000 * one.wanted, rel=0.2)
        assert step.duration >= one.duration
        assert step.error.max() <= 0.01 * (1 + 1e-9)
        np.testing.assert_allclose(step.error, step.surroundings_error)
    chosen = best(ours)
    assert chosen.work <= 1.25 * min(one.work for one in ours)
    smaller = [one.work for one in ours if one.patch < chosen.patch]
    assert not smaller or min(smaller) > 1.25 * min(one.work for one in ours)


@pytest.mark.parametrize(
    ("aim", "name"),
    [
        ({"error": 0}, "error"),
        ({"error": 1.5}, "error"),
        ({"drift": "x"}, "drift"),
        ({"pairs": 0}, "pairs"),
    ],
)
def test_what_makes_no_sense_is_refused(aim: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=name):
        Aim(**aim)


def test_states_that_have_no_certificate() -> None:
    with pytest.raises(InputError, match="patch=5"):
        spin_terms.terms(Ising(2.5), many(), [5])
    with pytest.raises(InputError, match="states=9"):
        spin_terms.tables(Potts(1.0, 9))
    with pytest.raises(InputError, match="vacancies"):
        alloy_terms.terms(Alloy(1000.0), model().parameters, crystal([])[None])
    still = np.zeros((2, 8, 8), np.int8)
    with pytest.raises(InputError, match="at rest"):
        proposals(spin_terms.terms(Quiet(), still, [4]), np.zeros(2), Aim())


@dataclass(frozen=True)
class Quiet(SpinRule):
    """Where all are alike nothing happens."""

    states: int = 2

    @staticmethod
    def rate(
        own: int, new: int, north: int, west: int, east: int, south: int, parameters: Any
    ) -> float:
        return float((north == new) + (west == new) + (east == new) + (south == new))


@pytest.mark.mpi
@pytest.mark.parametrize("system", ["ising", "alloy"])
def test_a_certificate_is_the_same_on_any_ranks(system: str) -> None:
    options = {
        "ising": {"size": 16, "temperature": 2.5, "time": 1, "save_every": 0.5},
        "alloy": {"cells": 4, "temperature": 2000, "vacancies": 1, "time": 1e-10, "members": 4},
    }[system]
    ours = mpiflow.certify(system, **options)
    every = MPI.COMM_WORLD.allgather(str(ours))
    if MPI.COMM_WORLD.rank == 0:
        alone = mpiflow.certify(system, comm=MPI.COMM_SELF, **options)
        assert ours.facts() == alone.facts()
        assert set(every) == {str(alone)}
