"""How wrong a prediction is, and how sure one can be."""

from __future__ import annotations

import numpy as np


def mean_error(predicted: np.ndarray, true: np.ndarray) -> float:
    r"""Relative squared error of mean trajectories, the published test error.

    .. math:: \frac{\langle (\bar z_{pred} - \bar z_{true})^2 \rangle}
                   {\langle \bar z_{true}^2 \rangle},

    averages over time and all variables together (arXiv:2511.12842, Fig. 3, with
    its code: the paper calls it a mean relative error, the code squares).

    Parameters
    ----------
    predicted, true : ensemble means, (times, variables)
    """
    return float(np.mean((predicted - true) ** 2) / np.mean(true**2))


def spread_error(predicted: np.ndarray, true: np.ndarray) -> float:
    """Relative error of standard deviations, root mean square over time and variables.

    ``sqrt(<(s_pred - s_true)^2> / <s_true^2>)``; arrays are (times, variables).
    """
    return float(np.sqrt(np.mean((predicted - true) ** 2) / np.mean(true**2)))


def noise_floor(variance: np.ndarray, samples: int, true: np.ndarray) -> float:
    """What :func:`mean_error` of a perfect model would be, from sampling alone.

    Two means of ``samples`` independent trajectories of the given variance differ
    by ``2 variance / samples`` in the mean square.

    Parameters
    ----------
    variance, true : variance over the ensemble and its mean, (times, variables)
    """
    return float(np.mean(2.0 * variance / samples) / np.mean(true**2))


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of independent values; nan for a single one."""
    values = np.asarray(values, float)
    if values.size < 2:
        return float("nan")
    return float(values.std(ddof=1) / np.sqrt(values.size))


def integrated_autocorrelation_time(series: np.ndarray, window: float = 5.0) -> float:
    r"""Integrated autocorrelation time, in samples.

    .. math:: \tau = 1 + 2 \sum_{t=1}^{M} \rho(t),

    with the window M the first that exceeds ``window`` times tau [Sokal, Monte Carlo
    Methods in Statistical Mechanics, 1996]. ``series`` is (times,).
    """
    x = np.asarray(series, float)
    x = x - x.mean()
    size = 2 ** int(np.ceil(np.log2(2 * x.size)))
    spectrum = np.fft.rfft(x, size)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum), size)[: x.size]
    if covariance[0] <= 0.0:
        return 1.0
    tau = 2.0 * np.cumsum(covariance / covariance[0]) - 1.0
    cut = np.arange(x.size) >= window * tau
    return float(max(1.0, tau[np.argmax(cut)] if cut.any() else tau[-1]))


def correlated_error(series: np.ndarray) -> float:
    """Standard error of the mean of a correlated series, ``sqrt(var tau / n)``."""
    x = np.asarray(series, float)
    return float(np.sqrt(x.var(ddof=1) * integrated_autocorrelation_time(x) / x.size))
