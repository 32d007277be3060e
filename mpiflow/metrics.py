"""How wrong a prediction is, and how sure one can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpiflow.core.errors import InputError


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
    r"""Integrated autocorrelation time, in samples: see :func:`autocorrelation_time`."""
    return autocorrelation_time(series, window)[0]


def autocorrelation_time(series: np.ndarray, window: float = 5.0) -> tuple[float, float]:
    r"""Integrated autocorrelation time of a stationary series in samples, and its standard error.

    .. math:: \tau = 1 + 2 \sum_{t=1}^{W} \rho(t), \qquad
        \Delta\tau = \tau \sqrt{2 (2 W + 1) / n},

    with the window W the first that exceeds ``window`` times tau [Madras and Sokal, J. Stat. Phys.
    50, 109 (1988); Sokal, Monte Carlo Methods in Statistical Mechanics, 1996] and n samples in
    all. Multiply it with the time between frames for a time.

    Parameters
    ----------
    series : (times,), or (times, members) of independent members with one law
    """
    x = np.asarray(series, float)
    x = (x - x.mean()).reshape(len(x), -1)
    size = 2 ** int(np.ceil(np.log2(2 * len(x))))
    waves = np.fft.rfft(x, size, axis=0)
    covariance = np.fft.irfft((waves * np.conj(waves)).sum(axis=1), size)[: len(x)]
    if covariance[0] <= 0.0:
        return 1.0, float("nan")
    tau = 2.0 * np.cumsum(covariance / covariance[0]) - 1.0
    cut = np.arange(len(x)) >= window * tau
    last = int(np.argmax(cut)) if cut.any() else len(x) - 1
    value = max(1.0, float(tau[last]))
    return value, value * float(np.sqrt(2.0 * (2 * last + 1) / x.size))


def correlated_error(series: np.ndarray) -> float:
    """Standard error of the mean of a correlated series, ``sqrt(var tau / n)``."""
    x = np.asarray(series, float)
    return float(np.sqrt(x.var(ddof=1) * integrated_autocorrelation_time(x) / x.size))


def fluctuation(series: np.ndarray) -> tuple[float, float]:
    """Variance of a stationary series and its standard error, correlation in time allowed for.

    The jackknife over blocks of ten integrated autocorrelation times, of the series or of its
    squares, whichever is longer; it takes away the bias of the mean being that of the sample, too.

    Parameters
    ----------
    series : (times,), or (times, members) of independent members with one law

    Returns
    -------
    the variance, and its error; nan of fewer than two blocks
    """
    x = np.asarray(series, float)
    x = (x - x.mean()).reshape(len(x), -1)
    tau = max(autocorrelation_time(x)[0], autocorrelation_time(x * x)[0])
    count = max(1, len(x) // int(np.ceil(10.0 * tau)))
    parts = [part for half in np.array_split(x, count) for part in half.T]
    sizes = np.array([part.size for part in parts])
    sums = np.array([[part.sum(), (part * part).sum()] for part in parts])
    blocks, variance = len(parts), float((x * x).mean() - x.mean() ** 2)
    if blocks < 2:
        return variance, float("nan")
    first, second = ((sums.sum(axis=0) - sums) / (x.size - sizes)[:, None]).T
    left = second - first * first
    error = np.sqrt((blocks - 1) / blocks * ((left - left.mean()) ** 2).sum())
    return float(blocks * variance - (blocks - 1) * left.mean()), float(error)


def specific_heat(
    run: Any, *, after: float = 0.0, temperature: float | None = None, sites: int | None = None
) -> tuple[float, float]:
    r"""Specific heat per site from fluctuations of the energy, and its standard error.

    .. math:: c = \frac{N}{T^2} (\langle e^2 \rangle - \langle e \rangle^2),

    with e the energy per site of N sites, in equilibrium, and k_B = 1; see :func:`fluctuation`.

    Parameters
    ----------
    run : a Trajectory with ``energy``; or e itself, (times,) or (times, members), with
        ``temperature`` and ``sites``
    after : frames of a Trajectory before this time are left out

    Raises
    ------
    InputError : it has no energies, or not one temperature
    """
    energy, temperature, sites = _thermal(run, "energy", after, temperature, sites)
    value, error = fluctuation(energy)
    return value * sites / temperature**2, error * sites / temperature**2


def susceptibility(
    run: Any,
    *,
    after: float = 0.0,
    temperature: float | None = None,
    sites: int | None = None,
    absolute: bool = False,
) -> tuple[float, float]:
    r"""Susceptibility per site from fluctuations of the magnetization, and its standard error.

    .. math:: \chi = \frac{N}{T} (\langle m^2 \rangle - \langle m \rangle^2)

    Parameters
    ----------
    run : a Trajectory with ``magnetization``; or m itself, as of :func:`specific_heat`
    after, temperature, sites : as of :func:`specific_heat`
    absolute : of the absolute value of m, as below a transition
    """
    m, temperature, sites = _thermal(run, "magnetization", after, temperature, sites)
    value, error = fluctuation(abs(m) if absolute else m)
    return value * sites / temperature, error * sites / temperature


def _thermal(
    run: Any, name: str, after: float, temperature: float | None, sites: int | None
) -> tuple[np.ndarray, float, int]:
    """A series of a run or as it is given, its temperature and number of sites."""
    if isinstance(run, np.ndarray | list | tuple):
        if temperature is None or sites is None:
            given = temperature, sites
            allowed = "both, of numbers that are no run"
            raise InputError("temperature, sites", given, allowed, "Give them.")
        return np.asarray(run, float), temperature, sites
    known = {part.config.get("temperature") for part in run.segments}
    if name not in run.variables or len(known) != 1 or None in known or "size" not in run.config:
        found = f"{name}, " if name in run.variables else ""
        shown = f"{run.path}: {found}temperatures {sorted(map(str, known))}"
        allowed = f"a run with {name}, one temperature and the size of its lattice"
        raise InputError("run", shown, allowed, "Give the numbers themselves.")
    size = run.config["size"]
    sides = size if isinstance(size, list | tuple) else (size, size)
    number = int(np.prod(sides)) if sites is None else sites
    warm = run.time >= after
    if np.count_nonzero(warm) < 2:
        allowed = f"a time that leaves 2 frames or more of those to {run.time[-1]:g}"
        raise InputError("after", after, allowed, "Leave it out.")
    return run[name][warm], float(temperature or known.pop()), number


def half_time(times: np.ndarray, values: np.ndarray, final: np.ndarray) -> np.ndarray:
    """When each variable has come half the way from its first value to ``final``.

    Parameters
    ----------
    times : (times,)
    values : (times, variables); interpolated linearly
    final : (variables,)

    Returns
    -------
    (variables,) float64, nan where it never does
    """
    distance = np.asarray(final, float) - values[0]
    way = (values - values[0]) / np.where(distance == 0.0, np.nan, distance)
    out = np.full(way.shape[1], np.nan)
    for i, share in enumerate(way.T):
        k = int(np.argmax(share >= 0.5))
        if share[k] >= 0.5 and k > 0:
            weight = (0.5 - share[k - 1]) / (share[k] - share[k - 1])
            out[i] = times[k - 1] + weight * (times[k] - times[k - 1])
    return out


def relaxation(times: np.ndarray, runs: np.ndarray, stationary: float) -> dict[str, np.ndarray]:
    """Stationary mean and spread, and half-time, of an ensemble of relaxing runs.

    Error bars are over runs: of the mean from the runs' own time averages, of the rest by the
    jackknife. With a single run they are nan.

    Parameters
    ----------
    times : (times,)
    runs : (runs, times, variables)
    stationary : from this time on

    Returns
    -------
    ``mean``, ``spread`` and ``half_time``, each (variables,), and the same with ``_error``
    """
    late = times >= stationary

    def spread(values: np.ndarray) -> np.ndarray:
        """Root of the variance between runs, mean over time; of a single run, over time."""
        part = values[:, late]
        if len(part) == 1:
            return part[0].std(axis=0)
        return np.sqrt(part.var(axis=0, ddof=1).mean(axis=0))

    def half(values: np.ndarray) -> np.ndarray:
        return half_time(times, values.mean(axis=0), values[:, late].mean(axis=(0, 1)))

    means = runs[:, late].mean(axis=1)
    out = {"mean": means.mean(axis=0), "spread": spread(runs), "half_time": half(runs)}
    number = len(runs)
    if number < 2:
        return out | {f"{name}_error": np.full(runs.shape[-1], np.nan) for name in out}
    out["mean_error"] = means.std(axis=0, ddof=1) / np.sqrt(number)
    groups = np.array_split(np.arange(number), min(number, 20))
    for name, function in (("spread", spread), ("half_time", half)):
        kept = np.array([function(np.delete(runs, group, axis=0)) for group in groups])
        squares = ((kept - kept.mean(axis=0)) ** 2).sum(axis=0)
        out[f"{name}_error"] = np.sqrt(squares * (len(groups) - 1) / len(groups))
    if number == 2:  # what is left of two has no spread between runs
        out["spread_error"] = np.full(runs.shape[-1], np.nan)
    return out


def squared_mmd(
    x: np.ndarray,
    y: np.ndarray,
    widths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    *,
    biased: bool = False,
) -> float:
    r"""Squared maximum mean discrepancy of two samples, mean over Gaussian kernels.

    .. math:: E\,k(x, x') + E\,k(y, y') - 2 E\,k(x, y), \qquad
        k(x, y) = e^{-|x - y|^2 / 2 s^2}

    [Gretton et al., J. Mach. Learn. Res. 13, 723 (2012)]; ``biased`` counts each point's
    distance to itself, as the published evaluation does.

    Parameters
    ----------
    x, y : (n,) or (n, d) and (m,) or (m, d), already in comparable units
    widths : s
    """
    x, y = (np.asarray(a, float).reshape(len(a), -1) for a in (x, y))

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2.0 * a @ b.T
        np.maximum(square, 0.0, out=square)
        if same:
            np.fill_diagonal(square, 0.0)
        kernels = [np.exp(square / (-2.0 * s * s)) for s in widths]
        own = len(a) if same and not biased else 0
        return float(np.mean([(k.sum() - own) / (k.size - own) for k in kernels]))

    return mean(x, x, True) + mean(y, y, True) - 2.0 * mean(x, y, False)


def permutation_test(
    x: np.ndarray,
    y: np.ndarray,
    widths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    *,
    rounds: int = 999,
    seed: int = 0,
) -> tuple[float, float, float]:
    r"""Are two ensembles of trajectories distinguishable? By their squared MMD, mean over time.

    The time average of :func:`squared_mmd` is that of one kernel between whole trajectories. The
    test deals these, not frames, to the two sides at random, so that correlation in time does no
    harm; trajectories of different groups (initial conditions) stay in their group.

    Parameters
    ----------
    x, y : (T, G, n, d) and (T, G, m, d), n and m 2 or more, in comparable units
    widths : of the Gaussian kernels
    rounds : random divisions

    Returns
    -------
    biased and unbiased squared MMD, mean over times and groups, and the share p of divisions with
    an unbiased one not below it, itself among them
    """
    first, rng = x.shape[2], np.random.default_rng(seed)
    number = first + y.shape[2]
    biased, unbiased = 0.0, np.zeros(rounds + 1)
    for group in range(x.shape[1]):
        kernel = np.zeros((number, number))
        for a, b in zip(x[:, group], y[:, group], strict=True):
            z = np.concatenate([a, b])
            square = ((z[:, None] - z) ** 2).sum(axis=-1)
            for s in widths:
                kernel += np.exp(square / (-2.0 * s * s))
        kernel /= len(x) * len(widths)
        side = np.zeros((rounds + 1, number))
        side[:, :first] = 1.0
        side[1:] = rng.permuted(side[1:], axis=1)
        rows = side @ kernel
        own, total = (rows * side).sum(axis=1), rows.sum(axis=1)
        cross = total - own
        other = kernel.sum() - own - 2.0 * cross
        n, m = first, number - first
        biased += own[0] / n**2 + other[0] / m**2 - 2.0 * cross[0] / (n * m)
        unbiased += (own - n) / (n * (n - 1)) + (other - m) / (m * (m - 1))
        unbiased -= 2.0 * cross / (n * m)
    # Divisions that are the one at hand again differ by rounding only.
    extreme = np.count_nonzero(unbiased >= unbiased[0] - 1e-12)
    groups = x.shape[1]
    return biased / groups, float(unbiased[0]) / groups, float(extreme) / (rounds + 1)


def structure_factor(fields: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""S(k) = <\|m_k\|^2> of periodic fields, mean over rings of wave vectors.

    :math:`m_k = N^{-1/2} \sum_x m(x) e^{-i k x}` over N = My x Mx points, so that S of independent
    points of variance v is v, and the mean of S over all k is the mean of m^2 (Parseval).

    Parameters
    ----------
    fields : (..., My, Mx)
    edges : (bins + 1,) of \|k\| in units of 2 pi / min(My, Mx), rising; k = 0 is in no bin

    Returns
    -------
    S (..., bins), and how many wave vectors a bin has (bins,), each with its negative
    """
    sides = fields.shape[-2:]
    y, x = (np.fft.fftfreq(points, 1.0 / min(sides)) for points in sides)
    size = np.hypot(y[:, None], x).ravel()
    ring = np.digitize(size, edges) - 1
    inside = (size > 0) & (ring >= 0) & (ring < len(edges) - 1)
    ring, bins = ring[inside], len(edges) - 1
    count = np.bincount(ring, minlength=bins)
    flat = spectrum(fields).reshape(-1, size.size)[:, inside]
    sums = np.array([np.bincount(ring, row, bins) for row in flat])
    with np.errstate(invalid="ignore"):
        mean = sums.reshape(*fields.shape[:-2], bins) / count
    return mean, count


def spectrum(fields: np.ndarray) -> np.ndarray:
    r"""\|m_k\|^2 of periodic fields as :func:`structure_factor` has it, (..., My, Mx) float64."""
    points = fields.shape[-2] * fields.shape[-1]
    return np.asarray(abs(np.fft.fft2(fields)) ** 2 / points)


def two_point_correlation(fields: np.ndarray) -> np.ndarray:
    r"""<m(x) m(x + r)> - <m>^2 of periodic fields, r along an axis, mean over both axes.

    Parameters
    ----------
    fields : (..., My, Mx)

    Returns
    -------
    (..., min(My, Mx) // 2) for r = 0, 1, ...
    """
    away = fields - fields.mean(axis=(-2, -1), keepdims=True)
    c, most = np.fft.ifft2(spectrum(away)).real, min(fields.shape[-2:]) // 2
    return np.asarray(0.5 * (c[..., 0, :most] + c[..., :most, 0]))


def exponential_mean(waited: np.ndarray, happened: np.ndarray) -> tuple[float, float]:
    """Mean waiting time of exponential ones, and its standard error; some were not seen to end.

    The time of all together over the number of ends: the estimate of largest likelihood, without
    bias if all were watched until a given number of ends.

    Parameters
    ----------
    waited : (n,), up to the end or as long as it was watched
    happened : (n,) whether it ended
    """
    ends = int(np.count_nonzero(happened))
    if not ends:
        return float("inf"), float("nan")
    mean = float(np.sum(waited)) / ends
    return mean, mean / float(np.sqrt(ends))
