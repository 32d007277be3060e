"""How training data of Ising closures are to be made, and what is drawn for each member."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpiflow import initial
from mpiflow.core.block import Block, HaloPolicy
from mpiflow.core.errors import InputError
from mpiflow.core.noise import uniforms

#: Durations of the last LocalRelax, as of a window, one drawn for each state: from states that
#: are far from local equilibrium, as early ones are, to states that are close to it.
GROWN_RELAX = (0.5, 1.0, 2.0, 4.0, 8.0)
RANDOM_RELAX = (0.0, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class PatchPlan:
    """Large states that are made of small ones, and patches of them that evolve.

    Parameters
    ----------
    large : side of the lattice whose dynamics is learned
    patch : side n_s^(1/2) of the small systems and of the patches, large / 2^j
    states : number of large states
    repeats : independent partial evolutions of each state
    """

    large: int = 64
    patch: int = 16
    states: int = 10_000
    repeats: int = 64

    def __post_init__(self) -> None:
        ratio = self.large / self.patch
        if self.patch < 4 or ratio < 1 or ratio != 2 ** round(np.log2(ratio)):
            allowed = f"4 or more, and {self.large} divided by a power of two"
            raise InputError("patch", self.patch, allowed, "Try 16.")
        if self.states < 10 or self.repeats < 1:
            usual = f"Try {type(self).states} and {type(self).repeats}."
            raise InputError("states", self.states, "10 or more, repeats 1 or more", usual)

    @property
    def patches(self) -> int:
        """K, the number of patches in the large lattice."""
        return (self.large // self.patch) ** 2

    @property
    def doublings(self) -> int:
        """How often small states are doubled until they are large."""
        return round(np.log2(self.large / self.patch))


@dataclass(frozen=True)
class DataPlan(PatchPlan):
    """How the training set is made.

    Parameters
    ----------
    large, patch, states, repeats : see :class:`PatchPlan`
    duration, dt : length of a partial evolution and its time step
    flips : length of a partial evolution in flips instead (exact dynamics); the
        published code uses patch^2
    halo, buffer : surroundings of the evolving patch
    small_time : small systems are observed at times up to this one
    random_fraction : share of states that start as random large ones (FACTS: the
        published code adds such a half); none when patch = large
    relax, relax_dt : duration of LocalRelax at all levels but the last, the time that a window
        would evolve, and the time step at all of them
    relaxation : ``lattice``, the whole lattice for four times that duration, or ``windows``, the
        published form, which gets as far at 60 to 130 times the price (docs/results.md)
    """

    states: int = 20_000
    repeats: int = 16
    duration: float = 0.5
    dt: float = 0.25
    flips: int | None = None
    halo: HaloPolicy = "frozen"
    buffer: int = 0
    small_time: float = 100.0
    random_fraction: float = 0.5
    relax: float = 2.0
    relax_dt: float = 0.5
    relaxation: Literal["lattice", "windows"] = "lattice"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.relaxation not in ("lattice", "windows"):
            raise InputError(
                "relaxation", self.relaxation, "'lattice' or 'windows'", "Leave it out."
            )

    def lattice_steps(self, durations: np.ndarray) -> np.ndarray:
        """Steps of whole lattices that get as far as windows of such durations, (B,) int64.

        With a stride of half a window each site is in four windows.
        """
        return np.rint(4.0 * durations / self.relax_dt).astype(np.int64)

    def ticks(self, age: np.ndarray) -> np.ndarray:
        """Units of time at which small systems are observed: more of them early, when the state
        changes fast; (B,) int64."""
        return np.rint(age**2 * self.small_time).astype(np.int64)


def draw_starts(
    plan: PatchPlan, share: float, members: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Magnetisation, age from 0 to 1, and whether it is a random state, of each member, (B,)."""
    first, second = (uniforms(seed, "sample", 0, step, members) for step in (0, 1))
    random = (second[:, 0] < share) & (plan.patch < plan.large)
    return 2.0 * first[:, 0] - 1.0, first[:, 1], random


def last_durations(random: np.ndarray, members: np.ndarray, seed: int) -> np.ndarray:
    """Of the last relaxation of each state, as of a window, (B,)."""
    draw = (uniforms(seed, "sample", 0, 1, members)[:, 1] * len(GROWN_RELAX)).astype(int)
    return np.where(random, np.take(RANDOM_RELAX, draw), np.take(GROWN_RELAX, draw))


def shuffled_states(
    side: int, members: np.ndarray, magnetization: np.ndarray, seed: int
) -> np.ndarray:
    """Square lattices of shuffled spins with given magnetisations, (B, side, side) int8."""
    block = Block.periodic(np.zeros((len(members), side, side), np.int8), members)
    initial.shuffled(block, seed, magnetization)
    return np.array(block.inner())
