"""Exact references for spin rules on small tori, written from the definitions.

A state of a torus of N sites and q states is a number: digit i to the base q, from the last, is the
state of site N - 1 - i (row-major), counted from the lowest. A side of two sites has two bonds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import expm_multiply

from mpiflow.systems.rule import SpinRule

Shape = tuple[int, int]

#: Smallest p-value that is accepted: the chance of a false alarm when a test was written.
RARE = 1e-9


# -- rules from outside ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Voter(SpinRule):
    """Takes the state of a neighbour, or any other at a small rate: no energy, no balance."""

    noise: float = 0.1
    states: int = 3

    @property
    def parameters(self) -> tuple[float, ...]:
        return (self.noise,)

    @staticmethod
    def rate(own, new, north, west, east, south, parameters):  # type: ignore[no-untyped-def]
        like = (north == new) + (west == new) + (east == new) + (south == new)
        return 0.25 * like + parameters[0]


@dataclass(frozen=True)
class Epidemic(SpinRule):
    """Susceptible 1, infected 2, immune 3: a cycle that never runs back, wind from the west."""

    contagion: float = 0.8
    states = 3
    lowest = 1

    @property
    def parameters(self) -> tuple[float, ...]:
        return (self.contagion,)

    @staticmethod
    def rate(own, new, north, west, east, south, parameters):  # type: ignore[no-untyped-def]
        if own == 1 and new == 2:
            ill = (north == 2) + 2.0 * (west == 2) + 0.5 * (east == 2) + (south == 2)
            return 0.01 + parameters[0] * ill
        if own == 2 and new == 3:
            return 1.0
        return 0.3 if own == 3 and new == 1 else 0.0


@dataclass(frozen=True)
class Clock(SpinRule):
    """Planar spins at q angles, E = -sum cos(angle between neighbours), weights."""

    temperature: float = 0.9
    states: int = 4

    @property
    def parameters(self) -> tuple[float, ...]:
        return self.temperature, 2.0 * math.pi / self.states

    @staticmethod
    def weight(state, north, west, east, south, parameters):  # type: ignore[no-untyped-def]
        temperature, angle = parameters
        total = math.cos(angle * (state - north)) + math.cos(angle * (state - west))
        total += math.cos(angle * (state - east)) + math.cos(angle * (state - south))
        return math.exp(total / temperature)

    def pair_energy(self, a: int, b: int) -> float:
        return -math.cos(2.0 * math.pi * (a - b) / self.states)


# -- states ---------------------------------------------------------------------------------------


def states(rule: SpinRule, shape: Shape) -> np.ndarray:
    """Every state, (q^N, Ly, Lx) int8."""
    every = list(product(rule.values.tolist(), repeat=math.prod(shape)))
    return np.array(every, np.int8).reshape(-1, *shape)


def index(rule: SpinRule, spins: np.ndarray) -> np.ndarray:
    """The number of each state of a batch (B, Ly, Lx), (B,) int64."""
    digits = spins.reshape(len(spins), -1).astype(np.int64) - rule.lowest
    return digits @ (rule.states ** np.arange(digits.shape[1] - 1, -1, -1))


def random_states(rule: SpinRule, seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(rule.values, shape)


def neighbours(spins: np.ndarray) -> np.ndarray:
    """North, west, east, south of every site of periodic lattices, (..., Ly, Lx, 4)."""
    return np.stack(
        [np.roll(spins, by, axis) for by, axis in ((1, -2), (1, -1), (-1, -1), (-1, -2))], axis=-1
    )


def energies(rule: SpinRule, spins: np.ndarray) -> np.ndarray:
    """Sum of the energies of the 2N bonds and of the sites, bond by bond."""
    pair = np.array([[rule.pair_energy(a, b) for b in rule.values.tolist()] for a in rule.values])
    single = np.array([rule.site_energy(a) for a in rule.values.tolist()])
    at = spins.astype(np.int64) - rule.lowest
    total = single[at].sum((-2, -1))
    for axis in (-2, -1):
        total = total + pair[at, np.roll(at, -1, axis)].sum((-2, -1))
    return total


def gibbs(rule: SpinRule, shape: Shape, temperature: float) -> np.ndarray:
    """Probability of every state, (q^N,)."""
    energy = energies(rule, states(rule, shape))
    weight = np.exp(-(energy - energy.min()) / temperature)
    return weight / weight.sum()


# -- dynamics -------------------------------------------------------------------------------------


def site_rates(rule: SpinRule) -> Callable[..., list[float]]:
    """Rates from a state to each, in a neighbourhood, from the rule's own function."""
    values = rule.values.tolist()

    def rates(own: int, around: tuple[int, ...]) -> list[float]:
        if rule.by_rate:
            return [
                0.0 if new == own else rule.rate(own, new, *around, rule.parameters)
                for new in values
            ]
        weights = [rule.weight(new, *around, rule.parameters) for new in values]
        return [
            0.0 if new == own else weight / sum(weights)
            for new, weight in zip(values, weights, strict=True)
        ]

    return rates


def generator(rule: SpinRule, shape: Shape, colour: int | None = None) -> sparse.csr_array:
    """Rates Q[from, to] of all sites, or of one colour; rows add up to 0."""
    every, sites = states(rule, shape), math.prod(shape)
    around = neighbours(every).reshape(len(every), sites, 4)
    flat, rates = every.reshape(len(every), sites), site_rates(rule)
    known: dict[tuple[int, ...], list[float]] = {}
    rows, columns, values = [], [], []
    for site in range(sites):
        if colour is not None and sum(divmod(site, shape[1])) % 2 != colour:
            continue
        place = rule.states ** (sites - 1 - site)
        for number, (own, near) in enumerate(zip(flat[:, site], around[:, site], strict=True)):
            key = (int(own), *near.tolist())
            if key not in known:
                known[key] = rates(key[0], key[1:])
            for new, rate in zip(rule.values.tolist(), known[key], strict=True):
                if rate:
                    rows += [number, number]
                    columns += [number + (new - key[0]) * place, number]
                    values += [rate, -rate]
    size = len(every)
    return sparse.csr_array((values, (rows, columns)), shape=(size, size))


def evolve(law: np.ndarray, rates: sparse.csr_array, time: float) -> np.ndarray:
    """The law after a time of the master equation."""
    return np.asarray(expm_multiply(rates.T.tocsc() * time, law))


def strang(
    law: np.ndarray, black: sparse.csr_array, white: sparse.csr_array, dt: float, steps: int
) -> np.ndarray:
    """The law after steps of the splitting."""
    for _ in range(steps):
        law = evolve(evolve(evolve(law, black, dt / 2), white, dt), black, dt / 2)
    return law


def of_one_state(rule: SpinRule, spins: np.ndarray) -> np.ndarray:
    """The law that is certain of one state."""
    law = np.zeros(rule.states**spins.size)
    law[index(rule, spins[None])] = 1.0
    return law
