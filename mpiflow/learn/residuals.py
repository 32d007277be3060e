r"""Figures of residuals, with errors, and what is said of a law by them.

What :mod:`mpiflow.learn.goodness` (fields of blocks), :mod:`mpiflow.learn.pair_goodness` (pairs of
partial evolution) and :mod:`mpiflow.learn.generator.goodness` (rates of fields) have in common.
They add up sums over groups of data that are independent if the law holds, and report values with
their errors. A value is a doubt if it is off by more than matters, and by ``sure`` errors, too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy

#: A law does not hold beyond these, if it is beyond the errors of ``sure``, too.
LEAST_EXPLAINED, MOST_OFF, MOST_CORRELATED, SURE = 0.95, 0.05, 0.02, 5.0
PART_OFF = 0.1
#: Chance that one value of a law that holds is beyond ``sure(groups)`` errors of a jackknife.
CHANCE = 1e-10


def sure(groups: int) -> float:
    """How many errors of a jackknife over groups a value is off with :data:`CHANCE`: Student's t.

    A report has fewer than 50 values, so that a law that holds is doubted once in 2e8 times.
    """
    return -float(scipy.special.stdtrit(max(1, groups - 1), CHANCE / 2))


def ratio(of: Callable[[list[float]], float], *columns: np.ndarray) -> list[float] | None:
    """A function of sums over groups, and its error by the jackknife; None of fewer than two."""
    columns = tuple(c[columns[-1] != 0] for c in columns)
    n = len(columns[0])
    if n < 2:
        return None
    value = of([c.sum() for c in columns])
    left = np.array([of([c.sum() - c[i] for c in columns]) for i in range(n)])
    return [float(value), float(np.sqrt((n - 1) / n * ((left - left.mean()) ** 2).sum()))]


def found_by(square: np.ndarray, score: np.ndarray, used: np.ndarray) -> tuple[float, float]:
    r"""What a richer law explains of the residuals, squares in units of the noise; its error.

    Its coefficients c are those of one half of the groups, of even and odd number; what they
    explain, :math:`2 c^T s - c^T A c`, is that of the other: 0 or less where there is nothing.

    Parameters
    ----------
    square, score : A (groups, k, k) and s (groups, k), of least squares
    used : numbers of the groups that have data, two of each half or more
    """
    gain = np.zeros(len(used))
    for half in (0, 1):
        other = square[1 - half :: 2].sum(axis=0)
        size = np.sqrt(np.maximum(np.diag(other), 1e-300))
        scaled = other / np.outer(size, size) + 1e-6 * np.eye(len(other))
        c = np.linalg.solve(scaled, score[1 - half :: 2].sum(axis=0) / size) / size
        for place in np.flatnonzero(used % 2 == half):
            group = used[place]
            gain[place] = 2 * c @ score[group] - c @ square[group] @ c
    return float(gain.sum()), float(np.sqrt(len(gain)) * gain.std(ddof=1))


def share(known: float, found: list[tuple[float, float]]) -> list[float]:
    """What a law explains, of itself and of the most that was found besides; and its error."""
    missing, error = max(found)
    whole = max(known + max(0.0, missing), 1e-300)
    return [1 - max(0.0, missing) / whole, error / whole]


def around(m: np.ndarray) -> np.ndarray:
    """The mean of the four neighbours of each point of periodic fields (..., M, M)."""
    rolled = [np.roll(m, by, axis) for by in (1, -1) for axis in (-1, -2)]
    return np.asarray(sum(rolled) / 4)


def several(known: Any) -> list[list[float]]:
    """Values with their errors, of one or of a list; those that are known."""
    if known and not isinstance(known[0], float):
        return [one for one in known if one is not None]
    return [known] if known else []


def doubts(report: dict[str, Any]) -> list[str]:
    """In which respects a law does not hold, by one report; none if it does.

    A report has ``explained_drift`` and any of the other names below, [value, error], a list of
    these (of each latent, or of each quarter), or None. It may have ``sure`` (5 else), and
    ``parts_of``, what is quartered ("runs" else).
    """
    found, errors = [], report.get("sure", SURE)
    explained = report["explained_drift"]
    if explained is not None:
        value, error = explained
        if value < LEAST_EXPLAINED and 1 - value > errors * error:
            found.append(f"it explains {value:.0%} of the predictable drift")
    for name, what in (("drift_of_parts", "drift"), ("variance_of_parts", "noise")):
        known = several(report.get(name))
        off = [(abs(v - 1), v) for v, e in known if abs(v - 1) > max(PART_OFF, errors * e)]
        if off:
            found.append(
                f"in a quarter of the {report.get('parts_of', 'runs')} its {what} is off by a "
                f"factor of {max(off)[1]:.2f}"
            )
    expected = report.get("expected_kurtosis")
    for name, right, most, text in (
        ("variance", 1.0, MOST_OFF, "the noise has {:.2f} times its variance"),
        ("mean", 0.0, MOST_OFF, "residuals have the mean {:.2f} in units of the noise"),
        ("time_correlation", 0.0, MOST_CORRELATED, "residuals are correlated in time: {:.3f}"),
        ("space_correlation", 0.0, MOST_CORRELATED, "neighbours' residuals are correlated: {:.3f}"),
        ("state_correlation", 0.0, MOST_CORRELATED,
         "residuals of pairs of one state are correlated: {:.3f}"),
        ("latent_correlation", 0.0, MOST_OFF, "residuals of two latents are correlated: {:.2f}"),
        ("kurtosis", expected, 0.1 * (expected or 0.0),
         f"the kurtosis of residuals is {{:.2f}}, not {expected or 0:.2f}"),
    ):  # fmt: skip
        if right is None:
            continue
        # Fewer extremes than expected, as of Gaussian noise, do no harm.
        gaps = [
            (v - right if name == "kurtosis" else abs(v - right), v, e)
            for v, e in several(report.get(name))
        ]
        beyond = [(gap, v) for gap, v, e in gaps if gap > max(most, errors * e)]
        if beyond:
            found.append(text.format(max(beyond)[1]))
    return found


def warn_of(found: list[str], remedy: str, stacklevel: int = 3) -> None:
    """Warn of doubts, if there are any."""
    if not found:
        return
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    warnings.warn(
        "the data do not obey an equation of this kind, so that errors of the law say nothing of "
        f"its predictions: {'; '.join(found[:3])}{more}. Its card has the rest; {remedy}",
        UserWarning, stacklevel=stacklevel + 1,
    )  # fmt: skip
