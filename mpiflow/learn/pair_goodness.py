r"""Whether a learned SDE holds for the pairs of partial evolution that it is from.

If it does, the residuals :math:`w = (\lambda \delta t \Sigma)^{-1/2} (\Delta - \mu\,\delta t)` of
pairs are white: independent of z and of each other, with the mean 0 and the variance 1. Of the
data of all states together, words and limits as of :mod:`mpiflow.learn.goodness`:

``explained_drift``
    Of the predictable drift, squares in units of the noise, the part that the SDE has. The rest is
    the most of what cubic polynomials of z (and of the temperature, if there are several) find in
    the residuals of one half of the states with coefficients of the other; and of what pairs that
    start from one state share, which is the drift that a state has and its z does not tell: what
    would be memory.
``variance``, ``mean``
    Of the residuals of each latent, 1 and 0.
``latent_correlation``
    Of the residuals of any two latents of a pair, 0.
``state_correlation``
    Of the residuals of two pairs of one state, mean over latents, 0. Pairs have no order in time:
    this takes the place of the correlation in time, and is the limit of it for short times.
``drift_of_parts``, ``variance_of_parts``
    The slope of increments on the drift, and the variance of residuals, in the quarters of states
    by the size of the drift (in units of the noise): 1.
``kurtosis``
    Of the residuals of each latent. It is 3 for Gaussian noise and larger for few jumps in a pair,
    of which sums over time lose it; so it is told and never a doubt.

Errors are those of the jackknife over groups of states. The data cannot tell lambda, of which only
the product with Sigma matters (:mod:`mpiflow.learn.sde`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np

from mpiflow.learn.residuals import doubts, found_by, ratio, several, share, sure, warn_of
from mpiflow.learn.sde import LearnedSDE

#: States looked at, at most, and groups of them.
STATES, GROUPS = 8192, 128
REMEDY = "more closures, larger patches, other times of pairs or longer training may do"


def judge(
    sde: LearnedSDE,
    z: np.ndarray,
    increments: np.ndarray,
    dt: np.ndarray,
    context: np.ndarray | None = None,
) -> dict[str, Any]:
    """What the card of a model says of how well it fits, with a warning if it does not.

    Parameters
    ----------
    z, increments, dt, context : the pairs, as of :meth:`mpiflow.learn.sde.LearnedSDE.forward`

    Returns
    -------
    ``goodness``, the figures of the module, and ``doubts``, those that are beyond their limits
    """
    figures = goodness(sde, z, increments, dt, context)
    found = doubts(figures)
    warn_of(found, REMEDY)
    return {"goodness": figures, "doubts": found}


def goodness(
    sde: LearnedSDE,
    z: np.ndarray,
    increments: np.ndarray,
    dt: np.ndarray,
    context: np.ndarray | None = None,
) -> dict[str, Any]:
    """The figures of the module, each with its error; None where data are too few."""
    some = np.linspace(0, len(z) - 1, min(len(z), STATES)).astype(int)
    at = None if context is None else context[some]
    rest, drift = sde.white(z[some], increments[some], dt[some], at)
    n, pairs, dim = rest.shape
    groups = max(1, min(GROUPS, n // 8))
    known, noise = (drift**2).sum(axis=(1, 2)), (rest**2).sum(axis=(1, 2))
    rank = np.argsort(np.argsort(known, kind="stable"))
    parts, group = rank * 4 // n, rank % groups  # each group has some of each quarter

    def summed(values: np.ndarray) -> np.ndarray:
        """Sums over the states of each group, of (n, ...)."""
        out = np.zeros((groups, *values.shape[1:]))
        np.add.at(out, group, values)
        return out

    count = pairs * np.bincount(group, minlength=groups).astype(float)
    whole = rest.sum(axis=1)
    found = []
    if groups >= 4:
        functions = _functions(z[some] if at is None else np.concatenate([z[some], at], axis=1))
        square = pairs * _products(functions, group, groups)
        scores = summed(whole[:, :, None] * functions[:, None])
        each = [found_by(square, scores[:, k], np.arange(groups)) for k in range(dim)]
        found.append((sum(v for v, _ in each), float(np.hypot.reduce([e for _, e in each]))))
    shared = None
    if pairs > 1:
        alike = summed(((whole**2).sum(axis=1) - noise) / (pairs - 1))
        shared = ratio(lambda a: a[0] / a[1], alike, summed(noise))
        if groups > 1:
            found.append((float(alike.sum()), float(np.sqrt(groups) * alike.std(ddof=1))))

    def mean(values: np.ndarray) -> list[list[float] | None]:
        """Of each latent, of (n, pairs, latents)."""
        return [ratio(lambda a: a[0] / a[1], c, count) for c in summed(values.sum(axis=1)).T]

    moments = [summed((rest**power).sum(axis=1)) for power in (2, 4)]
    along = (drift * rest).sum(axis=(1, 2))
    return {
        "explained_drift": share(float(known.sum()), found) if found else None,
        "variance": mean(rest**2),
        "mean": mean(rest),
        "latent_correlation": [
            ratio(
                lambda a: a[0] / (a[1] * a[2]) ** 0.5,
                summed((rest[..., i] * rest[..., j]).sum(axis=1)), *moments[0][:, [i, j]].T,
            )
            for i, j in combinations(range(dim), 2)
        ],
        "state_correlation": shared,
        "drift_of_parts": [
            ratio(lambda a: 1 + a[0] / a[1], *(summed(v * (parts == p)) for v in (along, known)))
            for p in range(4)
        ],
        "variance_of_parts": [
            ratio(
                lambda a: a[0] / a[1],
                summed(noise * (parts == p)), dim * pairs * summed(1.0 * (parts == p)),
            )
            for p in range(4)
        ],
        "kurtosis": [
            ratio(lambda a: a[2] * a[0] / a[1] ** 2, b, a, count)
            for a, b in zip(moments[0].T, moments[1].T, strict=True)
        ],
        "parts_of": "states",
        "sure": sure(groups),
    }  # fmt: skip


def _products(functions: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Sums over the states of each group of the products of any two functions: (groups, k, k)."""
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(1, groups))
    return np.stack([f.T @ f for f in np.split(functions[order], ends)])


def _functions(z: np.ndarray) -> np.ndarray:
    """All polynomials of degree 3 of the columns that vary, standardised: (n, terms)."""
    spread = z.std(axis=0)
    x = ((z - z.mean(axis=0)) / np.maximum(spread, 1e-300))[:, spread > 1e-9]
    one = [np.ones(len(z)), *x.T]
    return np.stack([a * b * c for a, b, c in combinations_with_replacement(one, 3)], axis=1)


def table(cards: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Of the cards of models by name, how well they fit: the worst values of each name.

    Cards of models that were learned before they said so are left out.
    """
    rows = []
    for name, every in cards.items():
        told = [card for card in every if "goodness" in card]

        def all_of(key: str, told: list[Mapping[str, Any]] = told) -> list[float]:
            return [v for card in told for v, _ in several(card["goodness"][key])]

        explained, noise = all_of("explained_drift"), all_of("variance")
        shared, found = all_of("state_correlation"), [card["doubts"] for card in told]
        if not explained or not noise:
            continue
        doubted = [one for one in found if one]
        said = f"{len(doubted)} of {len(told)}"
        rows.append([
            name, f"{min(explained):.1%}", f"{min(noise):.3f} to {max(noise):.3f}",
            f"{max(shared, key=abs):.4f}" if shared else "unknown",
            f"{said}: {'; '.join(doubted[0])}" if doubted else said,
        ])  # fmt: skip
    if not rows:
        return ""
    lines = [
        "| model | drift explained, at least | noise over that of the model | correlation of pairs "
        "of one state | in doubt |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
