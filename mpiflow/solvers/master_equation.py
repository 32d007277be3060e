r"""The law of a birth-death chain: what its master equation says, without sampling.

A chain on 0..n moves up at rates :math:`b_i` and down at rates :math:`d_i`, with :math:`b_n = d_0
= 0`. Its probabilities obey

.. math:: \dot p_i = b_{i-1} p_{i-1} + d_{i+1} p_{i+1} - (b_i + d_i) p_i.

Every function takes the rates ``birth`` and ``death``, (n + 1,) float64 each. All rates but those
two must be above 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy

from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError

#: Distance (sum of absolute differences) at which a law counts as the stationary one.
STATIONARY = 1e-11


def stationary(birth: np.ndarray, death: np.ndarray) -> np.ndarray:
    """The stationary law, (n + 1,): detailed balance, ``pi_i b_i = pi_{i+1} d_{i+1}``."""
    _check(birth, death)
    logarithm = np.concatenate([[0.0], np.cumsum(np.log(birth[:-1]) - np.log(death[1:]))])
    weight = np.exp(logarithm - logarithm.max())
    return np.asarray(weight / weight.sum())


def spectral_gap(birth: np.ndarray, death: np.ndarray) -> float:
    """The smallest relaxation rate: minus the second eigenvalue of the generator.

    Weighted by the roots of the stationary law the generator is symmetric; eigenvalues of its
    tridiagonal form are good to 1e-16 times the largest, about 2 (b + d).
    """
    _check(birth, death)
    beside = np.sqrt(birth[:-1] * death[1:])
    largest = len(birth) - 1
    found = scipy.linalg.eigvalsh_tridiagonal(
        -(birth + death), beside, select="i", select_range=(largest - 1, largest)
    )
    return float(-found[0])


def passage_times(birth: np.ndarray, death: np.ndarray) -> np.ndarray:
    r"""Mean times from i to i + 1 for the first time, (n,), for i = 0..n - 1.

    :math:`\tau_i = (1 + d_i \tau_{i-1}) / b_i`; the way from i to j > i takes the sum of them.
    """
    _check(birth, death)
    out = np.empty(len(birth) - 1)
    before = 0.0
    for i in range(len(out)):
        before = out[i] = (1.0 + death[i] * before) / birth[i]
    return out


def evolve(
    law: np.ndarray, birth: np.ndarray, death: np.ndarray, times: Sequence[float] | np.ndarray
) -> Iterator[np.ndarray]:
    r"""Yield the laws at increasing times from 0 on, (B, n + 1) float64 each.

    By uniformisation: with :math:`\Lambda = \max(b + d)` and :math:`P = 1 + Q / \Lambda`,

    .. math:: p(t) = \sum_k e^{-\Lambda t} \frac{(\Lambda t)^k}{k!} p(0) P^k,

    a sum of positive terms, cut where 1e-16 of the weight is left. Once a law is within 1e-11 of
    the stationary one, it is that one.

    Parameters
    ----------
    law : (B, n + 1) probabilities at time 0
    """
    _check(birth, death)
    law, last = np.array(law, float), 0.0
    if law.ndim != 2 or law.shape[1] != len(birth):
        raise InputError("law", law.shape, f"(B, {len(birth)})", "Give one row for each start.")
    rest = stationary(birth, death)
    largest = float((birth + death).max())
    for time in times:
        if time < last:
            raise InputError("times", time, f"increasing times, from {last} on", "Sort them.")
        done = abs(law - rest).sum(axis=1) < STATIONARY
        law[done] = rest
        if time > last and not done.all():
            mean = largest * (time - last)
            weights = scipy.stats.poisson.pmf(
                np.arange(int(mean + 9.0 * np.sqrt(mean) + 30.0)), mean
            )
            moving = law[~done]
            _uniformise(moving, birth / largest, death / largest, weights / weights.sum())
            law[~done] = moving
        last = time
        yield law.copy()


@kernel
def _uniformise(law: np.ndarray, birth: np.ndarray, death: np.ndarray, weights: np.ndarray) -> None:
    """``law <- sum_k weights[k] law P^k``, row by row."""
    n = law.shape[1] - 1
    now, then = np.zeros(n + 3), np.zeros(n + 3)  # a border of zeros
    # Probabilities to come from below, to stay, to come from above.
    below, stay, above = np.zeros(n + 1), np.empty(n + 1), np.zeros(n + 1)
    for i in range(n + 1):
        stay[i] = 1.0 - birth[i] - death[i]
        if i > 0:
            below[i] = birth[i - 1]
        if i < n:
            above[i] = death[i + 1]
    for b in range(law.shape[0]):
        for i in range(n + 1):
            now[i + 1] = law[b, i]
            law[b, i] *= weights[0]
        for k in range(1, weights.size):
            w = weights[k]
            for i in range(n + 1):
                moved = below[i] * now[i] + stay[i] * now[i + 1] + above[i] * now[i + 2]
                then[i + 1] = moved
                law[b, i] += w * moved
            now, then = then, now


def _check(birth: np.ndarray, death: np.ndarray) -> None:
    ends = len(birth) == len(death) > 1 and birth[-1] == 0 == death[0]
    if not (ends and (birth[:-1] > 0).all() and (death[1:] > 0).all()):
        raise InputError(
            "birth, death",
            (np.shape(birth), np.shape(death)),
            "(n + 1,) rates above 0, but for birth[-1] = death[0] = 0",
            "Use the rates of a chain that reaches all of 0..n.",
        )
