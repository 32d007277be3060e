r"""Metastable processes in experiments: small ones with exact first passages, and boxes of spins.

A lattice of 4 x 4 spins has 65,536 states. They are lumped into 805 classes of equal ones under
translations, turns and mirrors, which the rates of Glauber dynamics do not tell apart, and the mean
first passages t from all classes that are not at the goal solve :math:`\sum_j Q_{ij} t_j = -1` with
their generator Q.

A process is what :mod:`mpiflow.learn.splitting` takes: a step of copies, a coordinate and a start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from mpiflow import initial
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.learn.onsagerflow.fit import learn
from mpiflow.learn.onsagerflow.increments import FieldRun
from mpiflow.learn.onsagerflow.model import OnsagerFlow
from mpiflow.learn.splitting import Coordinate, Step
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.systems.ising import Ising
from mpiflow.systems.kac import Kac

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
        self._bits = (states[:, None] >> np.arange(self.sites)) & 1
        self.down = self._bits.sum(axis=1)
        spins = 1 - 2 * self._bits.reshape(-1, side, side)
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
        first = self._first_of_class()
        members, of = np.unique(first, return_inverse=True)
        flips = of[members[:, None] ^ (1 << np.arange(self.sites))]
        generator = np.zeros((len(members), len(members)))
        np.add.at(generator, (np.arange(len(members))[:, None], flips), self.rates[members])
        generator -= np.diag(generator.sum(axis=1))
        away = self.down[members] < goal
        times = np.linalg.solve(generator[np.ix_(away, away)], -np.ones(np.count_nonzero(away)))
        return float(times[0])

    def _first_of_class(self) -> np.ndarray:
        """(2^n,) the smallest number of a state that is equal but for where and how it lies."""
        side = int(np.sqrt(self.sites))
        places = np.arange(self.sites).reshape(side, side)
        first = np.arange(len(self.down))
        for lying in (places, places.T):
            for turns in range(4):
                for by in np.ndindex(side, side):
                    moved = np.roll(np.rot90(lying, turns), by, (0, 1)).ravel()
                    first = np.minimum(first, self._bits[:, moved] @ (1 << np.arange(self.sites)))
        return first


# -- boxes of spins with a Kac coupling, and a learned law of their blocks ---------------------


def phase(temperature: float) -> float:
    """m > 0 of m = tanh(m / T), below T = 1."""
    return float(brentq(lambda m: m - np.tanh(m / temperature), 1e-9, 1))


def waves(
    temperature: float,
    i: int,
    *,
    size: int,
    block: int,
    gamma: float,
    frames: int,
    seed: int,
) -> FieldRun:
    """Means of blocks, 0.1 apart, of a lattice that begins with waves; at odd i a field holds them.

    Its size is far beyond that of the waves, so that it does not go over to one phase.
    """
    points = size // block
    seed = seed + 77 + 1000 * i + round(1000 * temperature)
    profile = initial.smooth_profile((points, points), seed, correlation_length=points / 12)
    means = 0.8 * np.tanh(2 * profile)
    h = np.kron(temperature * np.arctanh(means) - means, np.ones((block, block)))
    sim = KacSimulation(
        Kac(temperature, gamma, 0.0), size, solver="midpoint", tau=0.05, seed=seed,
        comm=MPI.COMM_SELF, granularity=block, site_field=h if i % 2 else None,
    )  # fmt: skip
    sim.set_spins(initial.profile, means=means)
    seen = []
    for _ in range(frames):
        seen.append(sim.coarse_sums(block)[0].astype(np.float32) / block**2)
        sim.advance(0.1)
    of_blocks = h.reshape(points, block, points, block).mean(axis=(1, 3))
    return FieldRun(np.array(seen), 0.1, temperature, block**2, of_blocks if i % 2 else 0.0)


def law_of_boxes(runs: list[FieldRun], radius: int, comm: MPI.Intracomm) -> OnsagerFlow:
    """Few terms, and beta s' the same at all of their temperatures, for N times its error counts.

    Collective.
    """
    return learn(
        runs, radius=radius, mobility_terms=2, entropy_terms=1, temperature_degree=0, comm=comm
    )


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
