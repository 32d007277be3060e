"""Exact laws of a chain of eight atoms whose bonds are independent, from the definitions.

With a cut-off below the length of two bonds only neighbours interact: the partition function of
spins is a product of integrals over single bonds, and an exchange changes the kinds of two bonds,
those on either side of the pair.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.linalg import expm

from mpiflow.systems.binary_chain import BinaryChain, confinement_terms, pair_terms

#: Bonds of three kinds whose weights differ.
NEIGHBOURS = BinaryChain(8, cutoff=4.0, depth_aa=0.8, depth_bb=1.2, depth_ab=0.5)
#: Deep wells of different kinds: rates depend much on positions, and exchanges jolt the bonds.
DEEP = BinaryChain(
    8, beta=40.0, cutoff=3.6, confinement=2.7, depth_aa=3.0, depth_bb=4.0, depth_ab=1.5
)
#: All states of the six interior spins, three of them up, between -1 and 1: (20, 8).
STATES = np.array(
    [
        [-1, *(1 if i in up else -1 for i in range(6)), 1]
        for up in itertools.combinations(range(6), 3)
    ]
)
_NUMBER = {tuple(state): n for n, state in enumerate(STATES.tolist())}


def numbers(spins: np.ndarray) -> np.ndarray:
    """Which of the states each row is."""
    return np.array([_NUMBER[tuple(row)] for row in spins.tolist()])


class BondLaw:
    """The law of a system of eight sites with rates that are "tanh" or "arrhenius"."""

    def __init__(self, system: BinaryChain, rates: str = "tanh") -> None:
        beta = system.beta
        # From where the weight is nothing to where it is nothing again.
        nodes, weights = np.polynomial.legendre.leggauss(400)
        pieces = [0.8, 2.5, min(system.cutoff, system.confinement)]
        pieces += [max(system.cutoff, system.confinement), 7.0]
        edges = list(itertools.pairwise(pieces))
        self.r = np.concatenate([a + (b - a) * (nodes + 1) / 2 for a, b in edges])
        self.w = np.concatenate([weights * (b - a) / 2 for a, b in edges])
        aa, bb, ab = system.pairs()
        pairs = {(1, 1): aa, (-1, -1): bb, (1, -1): ab, (-1, 1): ab}
        held = np.array([confinement_terms(r, system.confinement)[0] for r in self.r])
        self.energy = {
            kind: np.array([pair_terms(r, pair)[0] for r in self.r]) + held
            for kind, pair in pairs.items()
        }
        self.z = {k: float(self.w @ np.exp(-beta * e)) for k, e in self.energy.items()}
        self.density = {k: np.exp(-beta * e) / self.z[k] for k, e in self.energy.items()}
        self.gibbs = np.array([math.prod(self.z[a, b] for a, b in _bonds(s)) for s in STATES])
        self.gibbs /= self.gibbs.sum()
        self.rates = np.zeros((len(STATES), len(STATES)))
        for n, state in enumerate(STATES.tolist()):
            for i in range(1, 6):
                if state[i] != state[i + 1]:
                    new = [*state[:i], state[i + 1], state[i], *state[i + 2 :]]
                    self.rates[n, _NUMBER[tuple(new)]] = self._mean_rate(state, new, i, beta, rates)
        self.generator = self.rates - np.diag(self.rates.sum(axis=1))

    def _mean_rate(
        self, state: list[int], new: list[int], i: int, beta: float, rates: str
    ) -> float:
        """The rate averaged over the lengths of the bonds left and right of the pair."""
        left, right = (state[i - 1], state[i]), (state[i + 1], state[i + 2])
        left_gain = self.energy[new[i - 1], new[i]] - self.energy[left]
        right_gain = self.energy[new[i + 1], new[i + 2]] - self.energy[right]
        gain = np.clip(beta * (left_gain[:, None] + right_gain), -500, 500)
        rate = np.exp(-gain / 2) if rates == "arrhenius" else 1 / (1 + np.exp(gain))
        before, after = self.w * self.density[left], self.w * self.density[right]
        return float(before @ rate @ after)

    def mean_bond(self, kind: tuple[int, int]) -> float:
        """The mean length of a bond."""
        return float(self.w @ (self.density[kind] * self.r))

    def at(self, start: np.ndarray, time: float) -> np.ndarray:
        """The law of the averaged process at a time, from a state or a law."""
        law = start
        if len(start) == 8:
            law = np.eye(len(STATES))[numbers(start[None])[0]]
        return np.asarray(law @ expm(self.generator * time))


def _bonds(state: np.ndarray) -> list[tuple[int, int]]:
    return list(itertools.pairwise(state.tolist()))
