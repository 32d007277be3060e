r"""How short, in how many parts, and from how many pairs: what the terms of states propose.

Errors are in units of the drift: of an observable, the root mean square over states of what the
learned drift is off, over the root mean square of the drift. To first order in dt it is

.. math:: \frac{\mathrm{rms}(c)}{\mathrm{rms}(L z)} \, dt, \qquad
          c = s + \tfrac12 L^2 z \quad \text{or} \quad c = s,

the first if the law is to be the one of short times, the generator's, and the second if it is to be
that of increments over dt, which a rollout with steps of dt undoes. The error of each state by
itself is at least that of its mean over the states of one z, which is what a law of z can be off.

**Noise.** A law of m free numbers that is fitted to n pairs is off by :math:`\sqrt{m / n}` times
the spread of a pair, in the root mean square over the data. The spread is that of the drift that a
pair shows: :math:`K \Gamma / dt`, the variance over the parts, and over the states of a time, whose
n / repeats are less than the pairs.

**Which cut.** Work is the number of sites that evolve, over all pairs that bring the noise down to
the stated error. A larger patch needs fewer pairs of more sites, so that only its border costs:
the smallest patch is proposed whose work is at most 1.25 times the least, and so the largest K.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.learn.certificate.terms import Cut, Terms

Drift = Literal["generator", "increment"]
#: Work of the proposal, at most, over the least of all cuts.
SHARE = 1.25


@dataclass(frozen=True)
class Aim:
    """What is asked for.

    Attributes
    ----------
    error : of the drift, as a share of it, above 0 and below 1
    drift : ``generator``, that of short times, or ``increment``, that of increments over dt
    pairs, repeats : of the data set, and how many of them start from each state
    numbers : m, how many free numbers the law of one observable's drift has
    """

    error: float = 0.01
    drift: Drift = "generator"
    pairs: int = 320_000
    repeats: int = 16
    numbers: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.error < 1:
            raise InputError("error", self.error, "a share above 0 and below 1", "Try 0.01.")
        if self.drift not in get_args(Drift):
            raise InputError("drift", self.drift, f"one of {get_args(Drift)}", "Leave it out.")
        for name in ("pairs", "repeats", "numbers"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "1 or more", "Leave it out.")


@dataclass(frozen=True)
class Proposal:
    """A way to make pairs; arrays are over the observables.

    Attributes
    ----------
    patch, buffer, parts : as of :class:`~mpiflow.learn.certificate.terms.Cut`; K is the mean
    duration : dt, the longest with the stated error
    time_error, surroundings_error : shares of the drift that :math:`\\tfrac12 L^2 z \\, dt` and
        :math:`s \\, dt` are
    error : what both together are, as far as they count; the largest is the stated one
    noise : share of the drift that the stated number of pairs leaves open, one standard error
    wanted : pairs that bring the noise down to the stated error
    work : sites that evolve for those, in lattices
    """

    patch: int
    buffer: int
    parts: float
    duration: float
    time_error: np.ndarray
    surroundings_error: np.ndarray
    error: np.ndarray
    noise: np.ndarray
    wanted: float
    work: float


def proposals(terms: Terms, times: np.ndarray, aim: Aim) -> list[Proposal]:
    """A proposal for each cut.

    Parameters
    ----------
    terms : of states
    times : (B,) when they were seen: those of one time are of one law
    """
    return [_of(terms, cut, times, aim) for cut in terms.cuts]


def best(some: list[Proposal]) -> Proposal:
    """The one with the smallest patch among those whose work is near the least."""
    least = min(one.work for one in some)
    good = [one for one in some if one.work <= SHARE * least]
    return min(good, key=lambda one: (one.patch, one.work))


def _rms(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.mean(values**2, axis=0)))


def _of(terms: Terms, cut: Cut, times: np.ndarray, aim: Aim) -> Proposal:
    unit = _rms(terms.drift)
    moves = unit > 0
    if not moves.any():
        raise InputError(
            "time", "all states at rest", "a run in which the observables drift",
            "Try another initial state, or a longer run.",
        )  # fmt: skip
    unit = np.where(moves, unit, np.inf)  # what never drifts has no error
    by_time, around = 0.5 * _rms(terms.second) / unit, _rms(cut.surroundings) / unit
    counts = cut.surroundings + 0.5 * terms.second if aim.drift == "generator" else cut.surroundings
    slope = _rms(counts) / unit
    longest = _fastest(terms, unit)
    duration = min(longest, aim.error / slope.max()) if slope.max() > 0 else longest
    one = (cut.parts[:, None] * terms.square).mean(axis=0) / duration + cut.between.mean(axis=0)
    spread = one + aim.repeats * _within(terms.drift, times)
    share = aim.numbers * spread / unit**2
    wanted = float(share.max()) / aim.error**2
    return Proposal(
        cut.patch,
        cut.buffer,
        float(cut.parts.mean()),
        float(duration),
        by_time * duration,
        around * duration,
        slope * duration,
        np.sqrt(share / aim.pairs),
        wanted,
        wanted * cut.evolving,
    )


def _fastest(terms: Terms, unit: np.ndarray) -> float:
    """The time in which the drift of the fastest observable changes by half of itself.

    Where only increments count no term of first order may bound dt, but the expansion ends here.
    """
    change = (_rms(terms.second) / unit).max()
    return 0.5 / float(change) if change > 0 else math.inf


def _within(values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Variance over the states of one time, the mean over times, (d,)."""
    _, group = np.unique(times, return_inverse=True)
    counts = np.bincount(group).astype(float)
    out = np.zeros(values.shape[1])
    for i, column in enumerate(values.T):
        mean = np.bincount(group, column) / counts
        out[i] = np.mean((column - mean[group]) ** 2)
    return out * len(values) / max(1.0, len(values) - len(counts))
