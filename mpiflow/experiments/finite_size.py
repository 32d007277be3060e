r"""Finite-size scaling of an Ising magnet: moments to exponents, with errors.

.. math:: \langle |M| \rangle = L^{-\beta/\nu} f(x), \quad
          \chi = \frac{N}{T} (\langle M^2 \rangle - \langle |M| \rangle^2) = L^{\gamma/\nu} g(x), \\
          U = 1 - \frac{\langle M^4 \rangle}{3 \langle M^2 \rangle^2} = u(x),

with :math:`x = (T - T_c) L^{1/\nu}`, so that :math:`dU/dT \propto L^{1/\nu}` at T_c [Binder,
Z. Phys. B 43, 119 (1981)].
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.systems.ising import CRITICAL_TEMPERATURE

#: What :func:`quantities` returns.
NAMES = ("abs(M)", "chi", "U")
#: Of the square lattice: beta / nu, gamma / nu, 1 / nu.
EXACT = {"beta/nu": 0.125, "gamma/nu": 1.75, "1/nu": 1.0}


def powers_of(m: np.ndarray) -> np.ndarray:
    """abs(M), M^2 and M^4, in a last axis."""
    return np.stack([np.abs(m), m**2, m**4], axis=-1)


def quantities(moments: np.ndarray, side: int, temperature: float) -> np.ndarray:
    """abs(M), chi and U, (..., 3), from the means of abs(M), M^2 and M^4, (..., 3)."""
    first, second, fourth = np.moveaxis(np.asarray(moments, float), -1, 0)
    chi = side**2 / temperature * (second - first**2)
    return np.stack([first, chi, 1.0 - fourth / (3.0 * second**2)], axis=-1)


def jackknife(samples: np.ndarray, side: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantities and their errors, (3,) each, from independent samples.

    Parameters
    ----------
    samples : (n, 3) of abs(M), M^2 and M^4, each the mean over a trajectory, say; n of 2 or more
    """
    n = len(samples)
    if n < 2:
        raise InputError("samples", n, "2 or more, for an error", "Simulate more of them.")
    whole = quantities(samples.mean(axis=0), side, temperature)
    left = quantities((samples.sum(axis=0) - samples) / (n - 1), side, temperature)
    return whole, np.sqrt((n - 1) * ((left - left.mean(axis=0)) ** 2).mean(axis=0))


def pool(values: np.ndarray, errors: np.ndarray) -> None:
    """Errors (l, t, 3) of few seeds, pooled over temperatures in place: they know spreads badly.

    Relative ones of abs(M) and chi, those of U as they are.
    """
    unit = np.where(np.arange(3) < 2, np.abs(values), 1.0)
    errors[:] = unit * np.sqrt(((errors / unit) ** 2).mean(axis=1, keepdims=True))


def exponents(
    sides: np.ndarray, temperatures: np.ndarray, values: np.ndarray, errors: np.ndarray
) -> dict[str, float]:
    """beta / nu, gamma / nu and 1 / nu, from straight lines in log L at T_c.

    abs(M) and chi at T_c come from a parabola of their logarithms in T, U's slope there from
    a parabola of U, all weighted by errors, as are the lines.

    Parameters
    ----------
    sides, temperatures : (l,), (t,), 2 sides and 3 temperatures or more
    values, errors : (l, t, 3) of :func:`quantities`

    Returns
    -------
    NaN where a value is not positive
    """
    if len(sides) < 2 or len(temperatures) < 3:
        raise InputError(
            "sides, temperatures", (len(sides), len(temperatures)), "2 and 3 or more", "Add some."
        )
    t = np.asarray(temperatures) - CRITICAL_TEMPERATURE
    found = {}
    for name, column, sign in (("beta/nu", 0, -1.0), ("gamma/nu", 1, 1.0), ("1/nu", 2, 1.0)):
        y, e = values[..., column], errors[..., column]
        if column < 2:
            e, y = e / y, np.log(np.where(y > 0, y, np.nan))
        level, spread = np.empty(len(sides)), np.empty(len(sides))
        for i in range(len(sides)):
            level[i], spread[i] = _parabola(t, y[i], e[i], derivative=column == 2)
        if column == 2:  # U falls
            spread = np.abs(spread / level)
            level = np.log(np.where(level < 0, -level, np.nan))
        found[name] = sign * _slope(np.log(np.asarray(sides, float)), level, spread)
    return found


def _parabola(
    t: np.ndarray, y: np.ndarray, error: np.ndarray, derivative: bool
) -> tuple[float, float]:
    """Value or derivative at t = 0 of the weighted parabola, and its error."""
    if not np.isfinite(y).all():
        return np.nan, np.nan
    scale = np.abs(t).max()
    terms = (t[:, None] / scale) ** np.arange(3) / error[:, None]
    inverse = np.linalg.inv(terms.T @ terms)
    best = inverse @ (terms.T @ (y / error))
    which, unit = (1, scale) if derivative else (0, 1.0)
    return float(best[which] / unit), float(np.sqrt(inverse[which, which]) / unit)


def _slope(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> float:
    weight = error**-2.0
    centre = np.average(x, weights=weight)
    return float((weight * (x - centre) * y).sum() / (weight * (x - centre) ** 2).sum())


def power_law(sides: np.ndarray, values: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Exponent of values that grow as L to a power, and its error; of those above 0."""
    use = (values > 0) & (errors > 0)
    if use.sum() < 2:
        return np.nan, np.nan
    x, spread = np.log(np.asarray(sides, float)[use]), errors[use] / values[use]
    centre = np.average(x, weights=spread**-2.0)
    error = ((x - centre) ** 2 / spread**2).sum() ** -0.5
    return _slope(x, np.log(values[use]), spread), float(error)


def relaxation_time(path: np.ndarray, step: float, groups: int = 8) -> tuple[float, float]:
    """Integrated autocorrelation time, half of metrics' one, and its error, in units of time.

    From zero lag to five times itself. Zero and zero where a run is too short to say, below ten
    of them, or frames are more than half of one apart.

    Parameters
    ----------
    path : (frames, members), of members that are independent
    step : time between frames
    """

    def sums(members: np.ndarray) -> np.ndarray:
        part = path[:, members] - path.mean()
        lags = np.arange(len(path) // 2)
        correlation = [(part[: len(path) - k] * part[k:]).mean() for k in lags]
        return np.asarray(np.cumsum(correlation) / correlation[0] - 0.5)

    every = np.arange(path.shape[1])
    tau = sums(every)
    enough = np.arange(len(tau)) >= 5.0 * tau
    if not enough.any() or not 0.5 <= tau[np.argmax(enough)] < 0.1 * len(path):
        return 0.0, 0.0
    last = np.argmax(enough)
    left = np.array([sums(every[every % groups != g])[last] for g in range(groups)])
    error = np.sqrt((groups - 1) * ((left - left.mean()) ** 2).mean())
    return float(tau[last] * step), float(error * step)


def with_errors(
    sides: np.ndarray,
    temperatures: np.ndarray,
    values: np.ndarray,
    errors: np.ndarray,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Exponents and their standard errors, from values redrawn within their errors."""
    best = exponents(sides, temperatures, values, errors)
    generator = np.random.default_rng(seed)
    drawn = [
        exponents(
            sides, temperatures, values + errors * generator.normal(size=values.shape), errors
        )
        for _ in range(draws)
    ]
    return {
        name: (value, float(np.nanstd([each[name] for each in drawn], ddof=1)))
        for name, value in best.items()
    }
