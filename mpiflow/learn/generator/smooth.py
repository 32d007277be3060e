r"""A smooth m(.) that is learned: filters in space from two readings of the same fields.

:math:`a = m + \epsilon_a` and :math:`b = m + \epsilon_b` with independent errors
(:meth:`mpiflow.learn.generator.data.FieldData.rates` with instruments) have the cross spectrum
:math:`\langle a_k \bar b_k \rangle = S(k)`, that of m, while their powers are S + N. What a filter
g does to a law is seen where it is linear, :math:`r_k = \lambda(k)\,m_k` with
:math:`\lambda = -A + \hat J(k)`:

=======================================  ==========================================
g a in I and m, least squares            :math:`\lambda\,S / (g\,(S + N))`
g a in I and m, instrument g b           :math:`\lambda / g`
g a and g r, instrument g b              :math:`\lambda`
=======================================  ==========================================

So a filter and instruments do not go together, unless g is 0 or 1 (``band``), or rates are filtered
as well, which changes the law where it bends: :math:`g * F(m) - F(g * m)`. But with
:math:`g = S / (S + N)` (``gain``) least squares are right: g a is the mean of m that a lets expect
[Wiener, Extrapolation, Interpolation and Smoothing (1949)], and to regress on it is *regression
calibration* [Carroll et al., Measurement Error in Nonlinear Models, 2nd ed. (2006), ch. 4]. What
both leave is :math:`\tfrac12 F'' \mathrm{var}(m - g a)`, for what a filter takes away, or leaves
in, is missing or noise in an argument of F that bends; and, of fields that are not Gaussian, what
the mean of m, given a, is more than linear in a.

That is for errors of *measurement*. The noise of block means of spins is m itself, which the
increments forward in time obey, and the frames before and after share it: their cross spectrum
finds it to be signal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import scipy.fft
import scipy.ndimage

from mpiflow.core.errors import InputError
from mpiflow.learn.generator.data import Rates

Filter = Literal["gain", "band"]
#: Fields and shells that powers are averaged over.
AROUND = (7, 3)


@dataclass(frozen=True)
class Spectra:
    """Powers on shells of wave numbers |k| = 0, 1, ... in 2 pi / M, as means over their waves.

    Attributes
    ----------
    waves : (shells,), how many waves
    both : (n, shells), of the mean of the two readings, by their errors, of each field
    error : (shells,), of its errors, over all fields
    weight : of the reading ``state`` in that mean; 1 - weight is the instrument's
    cross, own : (n, shells), cross spectrum of the readings, and power of ``state``
    """

    waves: np.ndarray
    both: np.ndarray
    error: np.ndarray
    weight: float
    cross: np.ndarray
    own: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """S / (S + N) of the mean of the readings, (n, shells)."""
        return np.clip(1.0 - self.error / np.maximum(self.both, 1e-300), 0.0, 1.0)

    @property
    def limit(self) -> np.ndarray:
        """The last shell (n,) of the band in which one reading foretells the other best.

        Of all band limits it makes the sum of :math:`|g a - b|^2` least: cross validation.
        """
        change = np.cumsum(self.waves * (self.own - 2.0 * self.cross), axis=1)
        return np.asarray(change.argmin(axis=1))


def spectra(rates: Rates) -> Spectra:
    """Of rates with two readings.

    Raises
    ------
    InputError : there is one reading only
    """
    if rates.instrument is rates.state:
        raise InputError("rates", "one reading", "rates with instruments", "Use instrument=True.")
    shell = shells(rates.state.shape[-1])
    # A sum over rfft2's half of the spectrum counts inner columns twice.
    twice = np.full(shell.shape, 2.0)
    twice[:, 0] = 1.0
    if rates.state.shape[-1] % 2 == 0:
        twice[:, -1] = 1.0
    waves = np.bincount(shell.ravel(), twice.ravel())
    a, b = (scipy.fft.rfft2(v, norm="forward") for v in (rates.state, rates.instrument))

    def powers(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        products = twice * (one * other.conj()).real
        total = [np.bincount(shell.ravel(), p.ravel()) for p in products]
        out = np.empty((len(total), len(waves)))
        for run in np.unique(rates.run):  # signals fade in time, and change little between shells
            mine = rates.run == run
            sums = scipy.ndimage.uniform_filter(np.stack(total)[mine], AROUND, mode="nearest")
            near = scipy.ndimage.uniform_filter1d(waves, AROUND[1], mode="nearest")
            out[mine] = sums / near
        return out

    own, theirs, cross = powers(a, a), powers(b, b), powers(a, b)
    of_a, of_b = ((waves * (p - cross)).sum() for p in (own, theirs))
    weight = float(np.clip(of_b / (of_a + of_b), 0.0, 1.0))
    mean = weight * a + (1 - weight) * b
    noise_a, noise_b = (np.maximum((p - cross).mean(axis=0), 0.0) for p in (own, theirs))
    error = weight**2 * noise_a + (1 - weight) ** 2 * noise_b
    return Spectra(waves, powers(mean, mean), error, weight, cross, own)


def shells(points: int) -> np.ndarray:
    """The shell of each wave of :func:`numpy.fft.rfft2`, (M, M // 2 + 1)."""
    line = np.fft.fftfreq(points, 1 / points)
    return np.rint(np.hypot(line[:, None], line[: points // 2 + 1])).astype(int)


def smooth(rates: Rates, how: Filter = "gain") -> Rates:
    """The same rates with smooth fields in I and m; see the module.

    Parameters
    ----------
    rates : with instruments, of measured noise
    how : ``gain``, both readings by S / (S + N), for least squares (there is no instrument then);
        or ``band``, the waves up to a limit for each field, with the instrument's as instrument
    """
    if how not in get_args(Filter):
        raise InputError("how", how, f"one of {get_args(Filter)}", "Choose one.")
    if rates.interval > 0:
        raise InputError("rates", "increments", "rates of measured fields", "Use a window.")
    found, shell = spectra(rates), shells(rates.state.shape[-1])

    def filtered(fields: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return scipy.fft.irfft2(scipy.fft.rfft2(fields) * gain[:, shell], s=fields.shape[-2:])

    if how == "gain":
        mean = found.weight * rates.state + (1 - found.weight) * rates.instrument
        state = filtered(mean, found.gain)
        return replace(rates, state=state, instrument=state)
    band = (np.arange(len(found.waves)) <= found.limit[:, None]).astype(float)
    state, instrument = (filtered(v, band) for v in (rates.state, rates.instrument))
    return replace(rates, state=state, instrument=instrument)
