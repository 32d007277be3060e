r"""Binomial numbers at a constant cost, many at a time, in loops that vectorise.

Means below 10: inversion, counted up from 0, all numbers side by side. Others: transformed
rejection with a squeeze [Hoermann, J. Stat. Comput. Simul. 46, 101 (1993), BTRS]. Of

.. math:: k = \lfloor (2 a / (1/2 - |u|) + b) u + c \rfloor, \quad |u| < 1/2,

four of five are taken without a look at their chance. It is looked up for the rest, and what it
refuses, one in seven, is drawn anew until nothing is left. A chance above 1/2 is turned round.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.device import inlined, kernel
from mpiflow.core.functions import exp, half_log_ratio, log, log_of_rest
from mpiflow.core.noise import Word, threefry, to_unit

#: Means from which numbers are drawn by rejection, and numbers that smaller means never lead to:
#: their chances are below 1e-60.
_LARGE, _MOST = 10.0, 96
#: Added to the step of the noise where a number is drawn anew.
AGAIN = np.uint64(1 << 63)


class Space(NamedTuple):
    """Scratch of :func:`draw_binomials`, arrays of as many numbers as are drawn together.

    Attributes
    ----------
    q, u, height, found, trials, chance, level : float64
    pending : int64
    first, second : uint64
    """

    q: np.ndarray
    u: np.ndarray
    height: np.ndarray
    found: np.ndarray
    trials: np.ndarray
    chance: np.ndarray
    level: np.ndarray
    pending: np.ndarray
    first: np.ndarray
    second: np.ndarray


def space(many: int) -> Space:
    """Of so many numbers."""
    q, u, height, found, trials, chance, level = np.empty((7, many))
    first, second = np.empty((2, many), np.uint64)
    pending = np.empty(many, np.int64)
    return Space(q, u, height, found, trials, chance, level, pending, first, second)


@kernel
def draw_binomials(
    many: int,
    n: np.ndarray,
    p: np.ndarray,
    words: np.ndarray,
    key: Word,
    keys: np.ndarray,
    step: Word,
    sites: np.ndarray,
    which: Word,
    log_factorials: np.ndarray,
    space: Space,
    out: np.ndarray,
) -> None:
    """Successes in n trials of chance p, float64, of the first ``many`` of all arrays.

    Parameters
    ----------
    words : uint64, a random word for each
    key, keys, step, sites, which : where more words come from: the first two that
        :data:`AGAIN` brings forth are a key, with ``which`` in its counter
    log_factorials : ln 0!, ln 1!, ... up to the largest n
    """
    q, u, height, found, trials, chance, level, pending, first, second = space
    large = _turn_round(many, n, p, q)
    if large < many:
        _invert(many, n, q, words, u, height, found, out)
    if large > 0:
        left, trial = _squeeze(many, n, q, words, pending, u, height, found, out), np.uint64(0)
        while left > 0:
            _collect(left, n, q, pending, trials, chance)
            _measure(left, trials, chance, u, height, found, level)
            _look(left, trials, chance, level, log_factorials, found)
            left = _keep(left, pending, found, out)
            _draw_anew(key, keys, step, sites, which, trial, left, pending, first, second)
            for j in range(left):
                u[j], height[j] = to_unit(first[j]) - 0.5, to_unit(second[j])
            trial += np.uint64(1)
    for k in range(many):
        out[k] = n[k] - out[k] if p[k] > 0.5 else out[k]


@kernel
def _turn_round(many: int, n: np.ndarray, p: np.ndarray, q: np.ndarray) -> int:
    """The chance of what is rarer, success or failure; how many means are large."""
    large = 0
    for k in range(many):
        q[k] = max(1.0 - p[k] if p[k] > 0.5 else p[k], 0.0)
        large += 0 if n[k] * q[k] < _LARGE else 1
    return large


@kernel
def _invert(
    many: int,
    n: np.ndarray,
    q: np.ndarray,
    words: np.ndarray,
    u: np.ndarray,
    chance: np.ndarray,
    odds: np.ndarray,
    out: np.ndarray,
) -> None:
    """Numbers of small means."""
    for k in range(many):
        small = n[k] * q[k] < _LARGE
        chance[k] = exp(n[k] * log_of_rest(q[k]))
        u[k] = to_unit(words[k]) if small else -1.0
        odds[k] = q[k] / (1.0 - q[k])
        out[k] = 0.0
    for j in range(0, _MOST, 4):  # four at a time, between which nothing goes to memory
        if _count_up(many, n, np.float64(j), odds, u, chance, out) == 0:
            break
    for k in range(many):
        mode = np.floor((n[k] + 1.0) * q[k])
        out[k] = mode if u[k] > 0.0 else out[k]  # all that rounding left of u


@kernel
def _count_up(
    many: int,
    n: np.ndarray,
    j: float,
    odds: np.ndarray,
    u: np.ndarray,
    chance: np.ndarray,
    out: np.ndarray,
) -> int:
    """From j, four more; how many of the numbers are larger than that."""
    more = 0
    r1, r2, r3, r4 = 1.0 / (j + 1.0), 1.0 / (j + 2.0), 1.0 / (j + 3.0), 1.0 / (j + 4.0)
    for k in range(many):
        left, c, o, count = u[k], chance[k], odds[k], out[k]
        rest = n[k] - j
        left -= c
        count += 1.0 if left > 0.0 else 0.0
        c *= max(rest, 0.0) * r1 * o
        left -= c
        count += 1.0 if left > 0.0 else 0.0
        c *= max(rest - 1.0, 0.0) * r2 * o
        left -= c
        count += 1.0 if left > 0.0 else 0.0
        c *= max(rest - 2.0, 0.0) * r3 * o
        left -= c
        count += 1.0 if left > 0.0 else 0.0
        c *= max(rest - 3.0, 0.0) * r4 * o
        u[k], chance[k], out[k] = left, c, count
        more += 1 if left > 0.0 else 0
    return more


@inlined
def _numbers(n, q, u):  # type: ignore[no-untyped-def]
    """b, alpha, what the height is over, and k of a place u."""
    deviation = np.sqrt(n * q * (1.0 - q))
    b = 1.15 + 2.53 * deviation
    a = -0.0873 + 0.0248 * b + 0.01 * q
    near = 0.5 - abs(u)
    k = np.floor((2.0 * a / near + b) * u + (n * q + 0.5))
    return b, deviation, a / (near * near) + b, k


@kernel
def _squeeze(
    many: int,
    n: np.ndarray,
    q: np.ndarray,
    words: np.ndarray,
    pending: np.ndarray,
    u: np.ndarray,
    height: np.ndarray,
    taken: np.ndarray,
    out: np.ndarray,
) -> int:
    """Numbers of large means that need no look: how many do, which, and their u and height.

    40 bits of a word are its place, and 24 its height.
    """
    for k in range(many):
        place = (np.float64(np.int64(words[k] >> np.uint64(24))) + 0.5) * 2.0**-40 - 0.5
        up = (np.float64(np.int64(words[k] & np.uint64(2**24 - 1))) + 0.5) * 2.0**-24
        b, _, _, number = _numbers(n[k], q[k], place)
        small = n[k] * q[k] < _LARGE
        sure = abs(place) <= 0.43 and up <= 0.92 - 4.2 / b
        out[k] = out[k] if small else number
        taken[k] = 1.0 if (small or sure) else 0.0
        u[k], height[k] = place, up
    left = 0
    for k in range(many):
        pending[left] = k
        u[left], height[left] = u[k], height[k]
        left += 0 if taken[k] > 0.0 else 1
    return left


@kernel
def _collect(
    many: int,
    n: np.ndarray,
    q: np.ndarray,
    pending: np.ndarray,
    trials: np.ndarray,
    chance: np.ndarray,
) -> None:
    for j in range(many):
        i = np.uint64(pending[j])
        trials[j], chance[j] = n[i], q[i]


@kernel
def _measure(
    many: int,
    trials: np.ndarray,
    chance: np.ndarray,
    u: np.ndarray,
    height: np.ndarray,
    found: np.ndarray,
    level: np.ndarray,
) -> None:
    """What places stand for, and what the logarithms of binomials must exceed to allow it."""
    for j in range(many):
        n, q = trials[j], chance[j]
        b, deviation, over, number = _numbers(n, q, u[j])
        mode = np.floor((n + 1.0) * q)
        high = log(height[j] * (2.83 + 5.1 / b) * deviation / over)
        inside = min(max(number, 0.0), n)
        found[j] = number
        level[j] = high - (inside - mode) * 2.0 * half_log_ratio(q, 1.0 - q)


@kernel
def _look(
    many: int,
    trials: np.ndarray,
    chance: np.ndarray,
    level: np.ndarray,
    log_factorials: np.ndarray,
    found: np.ndarray,
) -> None:
    """-1 for what its chance does not allow."""
    for j in range(many):
        n, number = trials[j], found[j]
        inside, mode = min(max(number, 0.0), n), np.floor((n + 1.0) * chance[j])
        k, m = np.uint64(np.int64(inside)), np.uint64(np.int64(mode))
        k_rest, m_rest = np.uint64(np.int64(n - inside)), np.uint64(np.int64(n - mode))
        bound = log_factorials[m] - log_factorials[k]
        bound += log_factorials[m_rest] - log_factorials[k_rest]
        found[j] = number if (number == inside and level[j] <= bound) else -1.0


@kernel
def _keep(many: int, pending: np.ndarray, found: np.ndarray, out: np.ndarray) -> int:
    """Take what was found; how many are still to be drawn."""
    left = 0
    for j in range(many):
        i = pending[j]
        out[i] = found[j]  # to be replaced where it is -1
        pending[left] = i
        left += 1 if found[j] < 0.0 else 0
    return left


@kernel
def _draw_anew(
    key: Word,
    keys: np.ndarray,
    step: Word,
    sites: np.ndarray,
    which: Word,
    trial: Word,
    many: int,
    pending: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
) -> None:
    for j in range(many):
        i = np.uint64(pending[j])
        k0, k1 = threefry(key, keys[i], step | AGAIN, sites[i])
        w0, w1 = threefry(k0, k1, trial, which)
        first[j] = w0
        second[j] = w1
