r"""Elementary functions for loops over many numbers: arithmetic that vectorises.

Calls of a library in a loop keep the compiler from using vectors, and its last bits depend on the
machine. These are sums, products and quotients in IEEE arithmetic: the same bits everywhere, a few
units in the last place from the true values. The series of Taylor, in ranges where they are short.
"""

from __future__ import annotations

import math

import numpy as np

from mpiflow.core.device import inlined

_LOG2_E = 1.0 / math.log(2.0)
#: ln 2 in two numbers: the first has few bits, so that its products with whole numbers are exact.
_LN2, _LN2_REST = 6.93147180369123816490e-01, 1.90821492927058770002e-10
#: Added to a number below 2^51 it leaves the nearest whole number in the last bits.
_ROUND = 1.5 * 2.0**52
#: 1 / 2!, 1 / 3!, ...
_E2, _E3, _E4, _E5, _E6, _E7, _E8 = (1.0 / math.factorial(n) for n in range(2, 9))
_E9, _E10, _E11, _E12, _E13, _E14, _E15 = (1.0 / math.factorial(n) for n in range(9, 16))
_E16, _E17, _E19, _E21 = (1.0 / math.factorial(n) for n in (16, 17, 19, 21))


@inlined
def exp(x):  # type: ignore[no-untyped-def]
    """The exponential of -708 to 709; of what is below or above, that of these."""
    inside = min(max(x, -708.0), 709.0)
    shifted = inside * _LOG2_E + _ROUND
    k = shifted - _ROUND
    r = (inside - k * _LN2) - k * _LN2_REST
    # Two halves, which need not wait for each other.
    r2 = r * r
    r4 = r2 * r2
    low = (1.0 + r) + r2 * (0.5 + r * _E3) + r4 * ((_E4 + r * _E5) + r2 * (_E6 + r * _E7))
    high = (_E8 + r * _E9) + r2 * (_E10 + r * _E11) + r4 * (_E12 + r * _E13)
    value = low + (r4 * r4) * high
    bits = np.float64(value).view(np.int64) + (np.float64(shifted).view(np.int64) << 52)
    return np.int64(bits).view(np.float64)


@inlined
def floor(x):  # type: ignore[no-untyped-def]
    r"""The largest whole number up to x, of \|x\| up to 2^51; CUDA has no :func:`numpy.floor`."""
    nearest = (x + _ROUND) - _ROUND
    return nearest - 1.0 if nearest > x else nearest


@inlined
def half_log_ratio(p, q):  # type: ignore[no-untyped-def]
    r""":math:`\tfrac12 \ln (p / q)` of two positive numbers that are not denormal.

    With :math:`p / q = 2^k m` and m within a factor of 1.55 of 1, :math:`\tfrac12 \ln m =
    \operatorname{artanh} s`, s = (m - 1) / (m + 1).
    """
    p_bits, q_bits = np.float64(p).view(np.int64), np.float64(q).view(np.int64)
    k = (p_bits - q_bits + (1 << 51)) >> 52
    near = np.int64(p_bits - (k << 52)).view(np.float64)
    s = (near - q) / (near + q)
    z = s * s
    z2 = z * z
    z4 = z2 * z2
    low = (1.0 / 3 + z * (1.0 / 5)) + z2 * (1.0 / 7 + z * (1.0 / 9))
    high = (1.0 / 11 + z * (1.0 / 13)) + z2 * (1.0 / 15 + z * (1.0 / 17))
    rest = (low + z4 * high) + (z4 * z4) * (1.0 / 19 + z * (1.0 / 21))
    whole = np.float64(k)
    return s + (s * z * rest + whole * (0.5 * _LN2_REST)) + whole * (0.5 * _LN2)


@inlined
def log(x):  # type: ignore[no-untyped-def]
    """The natural logarithm of a positive number that is not denormal."""
    return 2.0 * half_log_ratio(x, 1.0)


@inlined
def log_of_rest(q):  # type: ignore[no-untyped-def]
    """ln(1 - q) of q up to 1/2, to a few units in the last place for small q too."""
    rest = 1.0 - q
    return 2.0 * half_log_ratio(rest, 1.0) + ((1.0 - rest) - q) / rest


@inlined
def decay(x):  # type: ignore[no-untyped-def]
    """(1 - exp(-x)) / x of x from 0 on."""
    z = min(x, 0.5)
    z2 = z * z
    z4 = z2 * z2
    low = (1.0 - z * _E2) + z2 * (_E3 - z * _E4) + z4 * ((_E5 - z * _E6) + z2 * (_E7 - z * _E8))
    high = (_E9 - z * _E10) + z2 * (_E11 - z * _E12) + z4 * (_E13 - z * _E14)
    series = low + (z4 * z4) * high
    return series if x <= 0.5 else (1.0 - exp(-x)) / x


@inlined
def artanh(x):  # type: ignore[no-untyped-def]
    """The inverse of tanh, of numbers between -1 and 1."""
    return half_log_ratio(1.0 + x, 1.0 - x)


@inlined
def tanh(x):  # type: ignore[no-untyped-def]
    """To about 1e-16, of small numbers too: not in units of their own last place."""
    e = exp(-2.0 * abs(x))
    value = (1.0 - e) / (1.0 + e)
    return value if x >= 0.0 else -value


@inlined
def sine(x):  # type: ignore[no-untyped-def]
    r"""The sine of \|x\| up to pi / 2."""
    z = x * x
    z2 = z * z
    z4 = z2 * z2
    low = (-_E3 + z * _E5) + z2 * (-_E7 + z * _E9)
    high = (-_E11 + z * _E13) + z2 * (-_E15 + z * _E17)
    return x + x * z * ((low + z4 * high) + (z4 * z4) * (-_E19 + z * _E21))


@inlined
def cosine_of_root(y):  # type: ignore[no-untyped-def]
    r""":math:`\cos \sqrt y` of y up to 0.62, which is (pi / 4)^2."""
    y2 = y * y
    y4 = y2 * y2
    low = (1.0 - y * _E2) + y2 * (_E4 - y * _E6)
    return low + y4 * ((_E8 - y * _E10) + y2 * (_E12 - y * _E14) + y4 * _E16)


@inlined
def sinc_of_root(y):  # type: ignore[no-untyped-def]
    r""":math:`\sin \sqrt y / \sqrt y` of y up to 1/2."""
    y2 = y * y
    y4 = y2 * y2
    low = (1.0 - y * _E3) + y2 * (_E5 - y * _E7)
    return low + y4 * ((_E9 - y * _E11) + y2 * (_E13 - y * _E15))


@inlined
def turned(turns):  # type: ignore[no-untyped-def]
    r"""cos and sin of :math:`2 \pi u` for u from 0 to 1.

    4 u less the nearest whole number, which is exact, is a part of a quarter: at most pi / 4.
    """
    fours = 4.0 * turns
    quarter = (fours + _ROUND) - _ROUND
    a = (fours - quarter) * (0.5 * math.pi)
    along, aside = cosine_of_root(a * a), sine(a)
    across = quarter == 1.0 or quarter == 3.0
    first, second = (aside, along) if across else (along, aside)
    first = -first if quarter == 1.0 or quarter == 2.0 else first
    second = -second if quarter == 2.0 or quarter == 3.0 else second
    return first, second
