r"""Random numbers of the laws by which stays of vacancies are drawn: exact, at a constant cost.

Gamma numbers of whole shapes: a logarithm of a product, or Marsaglia's and Tsang's method [ACM
Trans. Math. Softw. 26, 363 (2000)]. Poisson, binomial and hypergeometric numbers: inversion for
means below 10, else the ratio of uniforms [Stadlober, J. Comput. Appl. Math. 31, 181 (1990)]: with
mean mu and variance V,

.. math:: k = \lfloor \mu + \tfrac12 + h (v - \tfrac12) / u \rfloor, \qquad
          h = 2 \sqrt{2 / e} \sqrt{V + \tfrac12} + 3 - 2 \sqrt{3 / e},

is taken if :math:`2 \ln u \le \ln f(k) - \ln f(\text{mode})`.

Every number takes its words from a key, from the ``j``-th on, and returns the next j. The
arithmetic is IEEE everywhere, in fixed order.
"""

from __future__ import annotations

import math

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.functions import exp, log, log_of_rest, turned
from mpiflow.core.noise import Word, exponential, threefry, to_unit

_SMALL = 10.0  # means that inversion is for
_WIDTH, _MORE = 2.0 * math.sqrt(2.0 / math.e), 3.0 - 2.0 * math.sqrt(3.0 / math.e)
_LOG_FACTORIALS = np.array([math.lgamma(n + 1.0) for n in range(16)])
_HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)
#: The laws of whole numbers that :func:`_whole` knows.
_POISSON, _BINOMIAL, _HYPERGEOMETRIC = range(3)


@kernel
def two(k0: Word, k1: Word, j: int) -> tuple[float, float]:
    """Two uniform numbers, the j-th of a key."""
    w0, w1 = threefry(k0, k1, np.uint64(j), np.uint64(0))
    return to_unit(w0), to_unit(w1)


@kernel
def gamma(shape: int, k0: Word, k1: Word, j: int) -> tuple[float, int]:
    """The sum of so many exponential numbers of mean 1; 0 of none."""
    if shape <= 0:
        return 0.0, j
    if shape == 1:
        return exponential(threefry(k0, k1, np.uint64(j), np.uint64(0))[0]), j + 1
    if shape <= 6:
        product = 1.0
        for i in range(0, shape, 2):
            u, v = two(k0, k1, j)
            product *= u * v if i + 1 < shape else u
            j += 1
        return -log(product), j
    d = shape - 1.0 / 3.0
    c = 1.0 / np.sqrt(9.0 * d)
    while True:
        w0, w1 = threefry(k0, k1, np.uint64(j), np.uint64(0))
        u, _ = two(k0, k1, j + 1)
        j += 2
        x = np.sqrt(2.0 * exponential(w0)) * turned(to_unit(w1))[0]
        v = 1.0 + c * x
        if v <= 0.0:
            continue
        v = v * v * v
        if u < 1.0 - 0.0331 * x * x * x * x or log(u) < 0.5 * x * x + d * (1.0 - v + log(v)):
            return d * v, j


@kernel
def beta(a: int, b: int, k0: Word, k1: Word, j: int) -> tuple[float, int]:
    """The part that the first a of a + b exponential numbers have in their sum."""
    if a <= 0 or b <= 0:
        return (0.0 if a <= 0 else 1.0), j
    x, j = gamma(a, k0, k1, j)
    y, j = gamma(b, k0, k1, j)
    return x / (x + y), j


@kernel
def log_factorial(k: float) -> float:
    """ln k! of whole numbers."""
    if k < 16.0:
        return _LOG_FACTORIALS[np.int64(k)]
    r = 1.0 / k
    z = r * r
    rest = r * (1.0 / 12.0 - z * (1.0 / 360.0 - z * (1.0 / 1260.0 - z / 1680.0)))
    return (k + 0.5) * log(k) - k + (_HALF_LOG_2_PI + rest)


@kernel
def _log_chance(law: int, k: float, n: float, m: float, s: float) -> float:
    """ln f(k) up to a constant: :func:`_whole` has the parameters."""
    value = -log_factorial(k)
    if law == _POISSON:
        return value + k * s
    value -= log_factorial(n - k)
    if law == _BINOMIAL:
        return value + k * s
    return value - log_factorial(m - k) - log_factorial(s + k)


@kernel
def _whole(  # type: ignore[no-untyped-def]
    law, n, m, s, mean, variance, mode, zero, odds, k0, k1, j
):
    """A whole number of one of the laws.

    Parameters
    ----------
    n, m : most that it can be, if there is such
    s : logarithm of the mean or of the odds; rest of what is not drawn, of a hypergeometric law
    zero, odds : ln f(0), and of small means the factor of f(k + 1) / f(k) without k
    """
    if mean < _SMALL:
        u, _ = two(k0, k1, j)
        chance, k = exp(zero), 0.0
        while u > chance and k < n:
            u -= chance
            if law == _POISSON:
                ratio = odds / (k + 1.0)
            elif law == _BINOMIAL:
                ratio = odds * (n - k) / (k + 1.0)
            else:
                ratio = (n - k) * (m - k) / ((k + 1.0) * (s + k + 1.0))
            chance *= ratio
            k += 1.0
            if chance < 1e-300:  # all that rounding left of u
                break
        return np.int64(k), j + 1
    most = min(n, m)
    width = _WIDTH * np.sqrt(variance + 0.5) + _MORE
    top = _log_chance(law, mode, n, m, s)
    while True:
        u, v = two(k0, k1, j)
        j += 1
        k = np.floor(mean + 0.5 + width * (v - 0.5) / u)
        if k < 0.0 or k > most:
            continue
        if 2.0 * log(u) <= _log_chance(law, k, n, m, s) - top:
            return np.int64(k), j


@kernel
def poisson(mean: float, k0: Word, k1: Word, j: int) -> tuple[int, int]:
    if mean <= 0.0:
        return 0, j
    return _whole(
        _POISSON, np.inf, np.inf, log(mean), mean, mean, np.floor(mean), -mean, mean, k0, k1, j
    )


@kernel
def binomial(n: int, p: float, k0: Word, k1: Word, j: int) -> tuple[int, int]:
    """Successes in n trials of chance p."""
    if n <= 0 or p <= 0.0:
        return 0, j
    if p >= 1.0:
        return n, j
    q = 1.0 - p if p > 0.5 else p
    mean = n * q
    found, j = _whole(
        _BINOMIAL, float(n), np.inf, log(q / (1.0 - q)), mean, mean * (1.0 - q),
        np.floor((n + 1.0) * q), n * log_of_rest(q), q / (1.0 - q), k0, k1, j,
    )  # fmt: skip
    return (n - found if p > 0.5 else found), j


@kernel
def hypergeometric(good: int, bad: int, drawn: int, k0: Word, k1: Word, j: int) -> tuple[int, int]:
    """How many good ones are among so many that are drawn from all."""
    everything = good + bad
    if good <= 0 or drawn <= 0:
        return 0, j
    if bad <= 0 or drawn >= everything:
        return min(good, drawn), j
    few, part = min(good, bad), min(drawn, everything - drawn)
    n, m, s = float(few), float(part), float(everything - few - part)
    mean = n * m / everything
    variance = mean * (everything - n) / everything * (everything - m) / max(everything - 1.0, 1.0)
    zero = log_factorial(s + m) + log_factorial(s + n)
    zero -= log_factorial(float(everything)) + log_factorial(s)
    mode = np.floor((n + 1.0) * (m + 1.0) / (everything + 2.0))
    found, j = _whole(_HYPERGEOMETRIC, n, m, s, mean, variance, mode, zero, 0.0, k0, k1, j)
    if part < drawn:
        found = few - found
    return (drawn - found if few < good else found), j
