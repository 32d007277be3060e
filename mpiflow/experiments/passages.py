r"""Metastable processes in experiments: small ones with exact first passages, and long waits.

A lattice of 4 x 4 spins has 65,536 states. They are lumped into 805 classes of equal ones under
translations, turns and mirrors, which the rates of Glauber dynamics do not tell apart, and the mean
first passages t from all classes that are not at the goal solve :math:`\sum_j Q_{ij} t_j = -1` with
their generator Q.

A process is what :mod:`mpiflow.learn.splitting` takes: a step of copies, a coordinate and a start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.learn.splitting import Coordinate, Step
from mpiflow.systems.ising import Ising

#: Spins a side of the largest lattice that is enumerated.
LARGEST = 4


@dataclass(frozen=True)
class Process:
    """What can be waited for: a step of copies, their coordinate, and where they begin."""

    step: Step
    coordinate: Coordinate
    start: np.ndarray


def birth_death(birth: np.ndarray, death: np.ndarray, start: int) -> Process:
    """Events of a chain with these rates, (n + 1,) each; the coordinate is the state itself."""
    total = birth + death

    def step(at: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        up = rng.random(len(at)) * total[at] < birth[at]
        return at + np.where(up, 1, -1), rng.exponential(size=len(at)) / total[at]

    return Process(step, lambda at: at.astype(float), np.array(start))


class SmallLattice:
    """Glauber dynamics of a small periodic lattice, all of whose states are enumerated.

    Parameters
    ----------
    system : nearest-neighbour Ising model
    side : spins a side, 3 or 4

    Attributes
    ----------
    rates : (2^n, n) at which each spin of each state flips; bit i of a state's number is set where
        spin i is down
    down : (2^n,) spins that are down
    """

    def __init__(self, system: Ising, side: int = LARGEST) -> None:
        if not 3 <= side <= LARGEST:
            raise InputError("side", side, f"3 or {LARGEST}", "More states than can be listed.")
        self.sites = side * side
        states = np.arange(2**self.sites)
        bits = (states[:, None] >> np.arange(self.sites)) & 1
        self.down = bits.sum(axis=1)
        spins = 1 - 2 * bits.reshape(-1, side, side)
        k = sum(np.roll(spins, by, axis) for by in (1, -1) for axis in (1, 2))
        classes = (k + 4) // 2 + 5 * (spins > 0)
        self.rates = system.flip_rates()[classes].reshape(-1, self.sites)

    def process(self) -> Process:
        """Events, from all spins up; the coordinate is how many are down."""
        sums = np.cumsum(self.rates, axis=1)

        def step(at: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
            sum_here = sums[at]
            total = sum_here[:, -1]
            site = (sum_here <= (rng.random(len(at)) * total)[:, None]).sum(axis=1)
            return at ^ (1 << site), rng.exponential(size=len(at)) / total

        return Process(step, lambda at: self.down[at].astype(float), np.array(0))

    def mean_passage(self, goal: int) -> float:
        """The exact mean time from all spins up until ``goal`` of them are down."""
        first = _first_of_class(int(np.sqrt(self.sites)))
        members, of = np.unique(first, return_inverse=True)
        flips = of[members[:, None] ^ (1 << np.arange(self.sites))]
        generator = np.zeros((len(members), len(members)))
        np.add.at(generator, (np.arange(len(members))[:, None], flips), self.rates[members])
        generator -= np.diag(generator.sum(axis=1))
        away = self.down[members] < goal
        times = np.linalg.solve(generator[np.ix_(away, away)], -np.ones(np.count_nonzero(away)))
        return float(times[0])


@cache
def _first_of_class(side: int) -> np.ndarray:
    """(2^n,) the smallest number of a state that is equal but for where and how it lies."""
    places = np.arange(side**2).reshape(side, side)
    first = np.arange(2 ** (side**2))
    bits = (first[:, None] >> places.ravel()) & 1
    for lying in (places, places.T):
        for turns in range(4):
            for by in np.ndindex(side, side):
                moved = np.roll(np.rot90(lying, turns), by, (0, 1)).ravel()
                first = np.minimum(first, bits[:, moved] @ (1 << np.arange(side**2)))
    return first


def watched(
    advance: Callable[[], None],
    there: Callable[[], np.ndarray],
    members: int,
    every: float,
    horizon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Times until members are first seen to be there, and whether they were.

    They are looked at every ``every``. Stops when 7 of 10 have been there, or at the horizon.
    """
    waited, passed, t = np.zeros(members), np.zeros(members, bool), 0.0
    while passed.sum() < 0.7 * members and t < horizon:
        advance()
        t += every
        waited[~passed] = t
        passed |= there()
    return waited, passed
