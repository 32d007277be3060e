r"""Binomial numbers at a constant cost, many at a time, in loops that vectorise.

Means below 10: inversion, counted up from 0, all numbers side by side. Others: transformed
rejection with a squeeze [Hoermann, J. Stat. Comput. Simul. 46, 101 (1993), BTRS]. Of

.. math:: k = \lfloor (2 a / (1/2 - |u|) + b) u + c \rfloor, \quad |u| < 1/2,

four of five are taken without a look at their chance. It is looked up for the rest, and what it
refuses, one in seven, is drawn anew until nothing is left. A chance above 1/2 is turned round.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mpiflow.core.device import inlined, kernel
from mpiflow.core.functions import exp, floor, half_log_ratio, log, log_of_rest
from mpiflow.core.noise import Word, threefry, to_unit

#: Means from which numbers are drawn by rejection, and numbers that smaller means never lead to:
#: their chances are below 1e-60.
_LARGE, MOST = 10.0, 96
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


# -- rules: the same on the CPU and on CUDA ----------------------------------------------------


@inlined
def rarer(p):  # type: ignore[no-untyped-def]
    """The chance of what is rarer, success or failure."""
    return max(1.0 - p if p > 0.5 else p, 0.0)


@inlined
def is_small(n, q):  # type: ignore[no-untyped-def]
    """Whether the mean is one of those that are drawn by inversion."""
    return n * q < _LARGE


@inlined
def chance_of_none(n, q):  # type: ignore[no-untyped-def]
    """(1 - q)^n, and the odds q / (1 - q)."""
    return exp(n * log_of_rest(q)), q / (1.0 - q)


@inlined
def next_chance(chance, rest, over, odds):  # type: ignore[no-untyped-def]
    """Of one more success, of ``rest`` trials that are left; ``over`` is one over its number."""
    return chance * (max(rest, 0.0) * over * odds)


@inlined
def mode_of(n, q):  # type: ignore[no-untyped-def]
    """The most probable number."""
    return floor((n + 1.0) * q)


@inlined
def place_and_height(word):  # type: ignore[no-untyped-def]
    """Of a trial: 40 bits of a word are its place, -1/2 to 1/2, and 24 its height."""
    place = (np.float64(np.int64(word >> np.uint64(24))) + 0.5) * 2.0**-40 - 0.5
    return place, (np.float64(np.int64(word & np.uint64(2**24 - 1))) + 0.5) * 2.0**-24


@inlined
def _numbers(n, q, u):  # type: ignore[no-untyped-def]
    """b, alpha, what the height is over, and k of a place u."""
    deviation = math.sqrt(n * q * (1.0 - q))
    b = 1.15 + 2.53 * deviation
    a = -0.0873 + 0.0248 * b + 0.01 * q
    near = 0.5 - abs(u)
    k = floor((2.0 * a / near + b) * u + (n * q + 0.5))
    return b, deviation, a / (near * near) + b, k


@inlined
def squeezed(n, q, place, up):  # type: ignore[no-untyped-def]
    """The number of a place, and whether no look at its chance is needed."""
    b, _, _, number = _numbers(n, q, place)
    return number, abs(place) <= 0.43 and up <= 0.92 - 4.2 / b


@inlined
def measured(n, q, u, height):  # type: ignore[no-untyped-def]
    """The number of a place, and what the logarithms of binomials must exceed to allow it."""
    b, deviation, over, number = _numbers(n, q, u)
    high = log(height * (2.83 + 5.1 / b) * deviation / over)
    inside = min(max(number, 0.0), n)
    return number, high - (inside - mode_of(n, q)) * 2.0 * half_log_ratio(q, 1.0 - q)


@inlined
def compared(n, q, number):  # type: ignore[no-untyped-def]
    """Of which numbers the factorials tell how probable one is, less probable than the mode:
    m! (n - m)! over k! (n - k)!."""
    inside, mode = min(max(number, 0.0), n), mode_of(n, q)
    k, m = np.uint64(np.int64(inside)), np.uint64(np.int64(mode))
    return m, k, np.uint64(np.int64(n - mode)), np.uint64(np.int64(n - inside))


@inlined
def allowed(n, number, level, m, k, m_rest, k_rest):  # type: ignore[no-untyped-def]
    """Whether the chance of a number allows it, of the logarithms of those factorials."""
    bound = m - k
    bound += m_rest - k_rest
    return number == min(max(number, 0.0), n) and level <= bound


# -- CPU ----------------------------------------------------------------------------------------


@kernel
def _turn_round(many: int, n: np.ndarray, p: np.ndarray, q: np.ndarray) -> int:
    """The chance of what is rarer, success or failure; how many means are large."""
    large = 0
    for k in range(many):
        q[k] = rarer(p[k])
        large += 0 if is_small(n[k], q[k]) else 1
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
        u[k] = to_unit(words[k]) if is_small(n[k], q[k]) else -1.0
        chance[k], odds[k] = chance_of_none(n[k], q[k])
        out[k] = 0.0
    for j in range(0, MOST, 4):  # four at a time, between which nothing goes to memory
        if _count_up(many, n, np.float64(j), odds, u, chance, out) == 0:
            break
    for k in range(many):
        out[k] = mode_of(n[k], q[k]) if u[k] > 0.0 else out[k]  # all that rounding left of u


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
        c = next_chance(c, rest, r1, o)
        left -= c
        count += 1.0 if left > 0.0 else 0.0
        c = next_chance(c, rest - 1.0, r2, o)
        left -= c
        count += 1.0 if left > 0.0 else 0.0
        c = next_chance(c, rest - 2.0, r3, o)
        left -= c
        count += 1.0 if left > 0.0 else 0.0
        c = next_chance(c, rest - 3.0, r4, o)
        u[k], chance[k], out[k] = left, c, count
        more += 1 if left > 0.0 else 0
    return more


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
    """Numbers of large means that need no look: how many do, which, and their u and height."""
    for k in range(many):
        place, up = place_and_height(words[k])
        number, sure = squeezed(n[k], q[k], place, up)
        small = is_small(n[k], q[k])
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
        found[j], level[j] = measured(trials[j], chance[j], u[j], height[j])


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
        m, k, m_rest, k_rest = compared(n, chance[j], number)
        fine = allowed(
            n, number, level[j], log_factorials[m], log_factorials[k], log_factorials[m_rest],
            log_factorials[k_rest],
        )  # fmt: skip
        found[j] = number if fine else -1.0


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
