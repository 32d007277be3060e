"""Elementary functions by arithmetic that vectorises and is IEEE everywhere.

Unlike those of a C library they have the same bits on every CPU and in any lane of a loop.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import inlined, kernel


@kernel
def decay(x: float) -> float:
    r"""exp(-x) for \|x\| < 700.

    2^k e^r with \|r\| <= ln 2 / 2 and the Taylor series of e^r to the 13th power; the error is
    below two units in the last place.
    """
    k = np.floor(0.5 - x * 1.4426950408889634)
    r = (-x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    s = 1.0 / 6227020800.0
    s = s * r + 1.0 / 479001600.0
    s = s * r + 1.0 / 39916800.0
    s = s * r + 1.0 / 3628800.0
    s = s * r + 1.0 / 362880.0
    s = s * r + 1.0 / 40320.0
    s = s * r + 1.0 / 5040.0
    s = s * r + 1.0 / 720.0
    s = s * r + 1.0 / 120.0
    s = s * r + 1.0 / 24.0
    s = s * r + 1.0 / 6.0
    s = s * r + 0.5
    s = s * r + 1.0
    s = s * r + 1.0
    return s * np.int64((np.int64(k) + 1023) << 52).view(np.float64)


@inlined
def logarithm(x):  # type: ignore[no-untyped-def]
    r"""ln x of a normal number x > 0, absolute error below 2e-16 + 2e-16 \|ln x\|.

    x = 2^k m with m from \sqrt 1/2 to \sqrt 2, and ln m = 2 artanh s, s = (m - 1) / (m + 1), by its
    Taylor series: s^2 is below 0.0295.
    """
    shift = np.int64(0x3FE6A09E667F3BCD)
    bits = np.float64(x).view(np.int64) - shift
    k = np.float64(bits >> 52)
    m = np.int64((bits & np.int64(0xFFFFFFFFFFFFF)) + shift).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    t = 1.0 / 23.0
    t = t * z + 1.0 / 21.0
    t = t * z + 1.0 / 19.0
    t = t * z + 1.0 / 17.0
    t = t * z + 1.0 / 15.0
    t = t * z + 1.0 / 13.0
    t = t * z + 1.0 / 11.0
    t = t * z + 1.0 / 9.0
    t = t * z + 1.0 / 7.0
    t = t * z + 1.0 / 5.0
    t = t * z + 1.0 / 3.0
    low = 2.0 * s * (z * t) + k * 1.90821492927058770002e-10
    return (low + 2.0 * s) + k * 6.93147180369123816490e-01


@inlined
def turned(turns):  # type: ignore[no-untyped-def]
    r"""cos and sin of :math:`2 \pi u` for u from 0 to 1, errors below 3e-16.

    4 u less the nearest whole number is a part of a quarter, which is exact; the Taylor series of
    at most pi / 4.
    """
    fours = 4.0 * turns
    quarter = np.floor(fours + 0.5)
    a = (fours - quarter) * (0.5 * np.pi)
    z = a * a
    p = -1.0 / 1307674368000.0
    p = p * z + 1.0 / 6227020800.0
    p = p * z - 1.0 / 39916800.0
    p = p * z + 1.0 / 362880.0
    p = p * z - 1.0 / 5040.0
    p = p * z + 1.0 / 120.0
    p = p * z - 1.0 / 6.0
    sine = a + a * (z * p)
    q = 1.0 / 20922789888000.0
    q = q * z - 1.0 / 87178291200.0
    q = q * z + 1.0 / 479001600.0
    q = q * z - 1.0 / 3628800.0
    q = q * z + 1.0 / 40320.0
    q = q * z - 1.0 / 720.0
    q = q * z + 1.0 / 24.0
    q = q * z - 0.5
    cosine = 1.0 + z * q
    across = quarter == 1.0 or quarter == 3.0
    first, second = (sine, cosine) if across else (cosine, sine)
    first = -first if quarter == 1.0 or quarter == 2.0 else first
    second = -second if quarter == 2.0 or quarter == 3.0 else second
    return first, second
