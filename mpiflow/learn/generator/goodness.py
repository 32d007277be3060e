r"""Whether a learned generator holds for the rates that it is from.

If it does, the residuals :math:`e = r - F` of observed rates are noise that nothing of before
tells. A generator has no noise of its own to compare their variance with; otherwise figures,
words and limits are those of :mod:`mpiflow.learn.goodness`:

``explained_drift``
    Of the predictable rates the part that F has. The rest is the most of what a richer law finds
    in the residuals: cubic polynomials of m, of the mean of the four neighbours, of
    :math:`\tanh \beta (J * m + h)`, beta and h, and what m and its neighbours did before, with
    coefficients of one half of the data, in the other; and of what residuals of a point have in
    common with later ones.
``time_correlation``
    Of residuals of a point whose rates share no frame, 0. It is in units of the variance of
    residuals and a twentieth of the mean square of F together, so that errors of 3 % of the rates
    do no harm where there is no noise.
``drift_of_parts``
    The slope of r on F in the quarters of runs by time, 1. In quenches what an equation of m
    cannot know changes with time.
``residual``
    The root mean square of e over that of F.

All functions are of the instrument, of which the errors are independent of those of r. Forward
increments of measured fields share an error with their neighbours, which is told as a correlation:
order 1 is for microscopic runs. Errors are those of the jackknife over groups of points, sixteen
squares of the field of each run.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch

from mpiflow.learn.generator.data import Rates
from mpiflow.learn.generator.model import DOUBLE, Generator
from mpiflow.learn.residuals import around, doubts, found_by, ratio, several, share, sure, warn_of

#: Points looked at, at most; groups of them; fields at a time; squares of a field a side.
POINTS, GROUPS, CHUNK, SQUARES = 2**20, 128, 32, 4
#: What the mean square of F counts as noise in the correlation in time.
QUIET = 0.05
REMEDY = "another prior, runs farther from quenches, larger blocks or a shorter interval may do"
_NAMES = ("known", "noise", "along", "later", "both")


def judge(model: Generator, rates: Rates) -> dict[str, Any]:
    """What the card of a generator says of how well it fits, with a warning if it does not.

    Returns
    -------
    ``goodness``, the figures of the module, and ``doubts``, those that are beyond their limits
    """
    report = goodness(model, rates)
    found = doubts(report)
    warn_of(found, REMEDY)
    return {"goodness": report, "doubts": found}


def goodness(model: Generator, rates: Rates) -> dict[str, Any]:
    """The figures of the module, each with its error; None where data are too few."""
    stride = 1
    while rates.state.size > POINTS * stride**2:
        stride += 1
    some = np.s_[:, ::stride, ::stride]
    residual, value = _residuals(model, rates, some)
    runs, first, count = np.unique(rates.run, return_index=True, return_counts=True)
    place = np.arange(len(rates.run)) - np.repeat(first, count)
    quarter = place * 4 // np.repeat(count, count)
    number = np.repeat(np.arange(len(runs)), count)
    line = np.arange(residual.shape[-1]) * SQUARES // residual.shape[-1]
    square_of = np.add.outer(SQUARES * line, line)
    group = (SQUARES**2 * number[:, None, None] + square_of) % GROUPS

    def summed(values: np.ndarray, of: np.ndarray = group) -> np.ndarray:
        return np.bincount(of.ravel(), values.ravel(), GROUPS)

    sums = dict(zip(_NAMES, np.zeros((len(_NAMES), GROUPS)), strict=True))
    sums["known"], sums["noise"] = summed(value**2), summed(residual**2)
    apart = rates.apart
    here = np.arange(max(0, len(residual) - apart))
    here = here[rates.run[here] == rates.run[here + apart]]
    if len(here):
        one, two = residual[here], residual[here + apart]
        both = 0.5 * (one**2 + two**2) + QUIET * value[here] ** 2
        sums["later"], sums["both"] = (summed(v, group[here]) for v in (one * two, both))
    used = np.flatnonzero(sums["known"] > 0)
    found = []
    if min(np.sum(used % 2 == half) for half in (0, 1)) >= 2:
        found.append(found_by(*_richer(model, rates, some, residual, group, place), used))
    if len(here) and len(used) > 1:
        scale = len(residual) / len(here)
        common = scale * sums["later"][used]
        error = float(np.sqrt(len(used)) * common.std(ddof=1))
        found.append((float(common.sum()), error))
    known, noise = sums["known"].sum(), sums["noise"].sum()
    along, of_parts = residual * value, []
    for part in range(4):
        mine = (quarter == part)[:, None, None]
        columns = (summed(along * mine), summed(value**2 * mine))
        of_parts.append(ratio(lambda a: 1 + a[0] / a[1], *columns))
    return {
        "explained_drift": share(float(known), found) if found else None,
        "time_correlation": ratio(lambda a: a[0] / a[1], sums["later"], sums["both"]),
        "drift_of_parts": of_parts,
        "residual": float(np.sqrt(noise / max(known, 1e-300))),
        "sure": sure(len(used)),
    }


def table(cards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of the cards of models by name, lines that say how well they fit."""
    lines = ["| model | drift explained | correlation in time | residual over rates | in doubt |"]
    lines.append("|---|---|---|---|---|")
    for name, card in cards.items():
        of, cells = card["goodness"], []
        for key, form in (("explained_drift", ".2%"), ("time_correlation", ".4f")):
            told = [f"{v:{form}} ± {e:{form}}" for v, e in several(of[key])]
            cells.append(told[0] if told else "unknown")
        said = "; ".join(card["doubts"]) or "no"
        lines.append(f"| {name} | {' | '.join(cells)} | {of['residual']:.2g} | {said} |")
    return lines


def _residuals(
    model: Generator, rates: Rates, some: tuple[slice, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """r - F, and F at the instrument, at some points: both (n, points, points)."""
    out: list[tuple[np.ndarray, np.ndarray]] = []
    symbol = model.symbol().detach()
    with torch.no_grad():
        for start in range(0, len(rates.state), CHUNK):
            chunk = slice(start, start + CHUNK)
            m, z = (torch.as_tensor(v[chunk]) for v in (rates.state, rates.instrument))
            beta, h = (_column(v[chunk]) for v in (rates.beta, rates.field))
            if rates.interval > 0:
                there = value = (model.flow(m, beta, h, rates.interval, 1) - m) / rates.interval
            else:
                value = model.rate(m, beta, h, symbol)
                there = value if rates.instrument is rates.state else model.rate(z, beta, h, symbol)
            out.append((rates.rate[chunk][some] - value.numpy()[some], there.numpy()[some]))
    return np.concatenate([rest for rest, _ in out]), np.concatenate([there for _, there in out])


def _column(values: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(values, dtype=DOUBLE)[:, None, None]


def _richer(
    model: Generator,
    rates: Rates,
    some: tuple[slice, ...],
    residual: np.ndarray,
    group: np.ndarray,
    place: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of least squares of the richer law by groups, for :func:`found_by`."""
    symbol = model.symbol().detach()
    beta, h = (_scaled(v) for v in (rates.beta, rates.field))
    square, score = np.zeros((GROUPS, 1, 1)), np.zeros((GROUPS, 1))
    for start in range(0, len(residual), CHUNK):
        chunk = slice(start, min(start + CHUNK, len(residual)))
        z = rates.instrument[chunk]
        before = np.arange(chunk.start, chunk.stop) - rates.apart
        before = np.where(place[chunk] >= rates.apart, before, np.arange(chunk.start, chunk.stop))
        past = z - rates.instrument[before]
        with torch.no_grad():
            drive = model.drive(torch.as_tensor(z), symbol).numpy()
        felt = np.tanh(rates.beta[chunk, None, None] * (drive + rates.field[chunk, None, None]))
        one = [np.ones_like(z), z, around(z), felt]
        one += [np.broadcast_to(v[chunk, None, None], z.shape) for v in (beta, h) if v.any()]
        functions = [
            a[some] * b[some] * c[some] for a, b, c in combinations_with_replacement(one, 3)
        ]
        functions += [v[some] for v in (past, past * z**2, around(past), past * around(z) ** 2)]
        columns = np.stack([f.ravel() for f in functions])
        where, e = group[chunk].ravel(), residual[chunk].ravel()
        if start == 0:
            square = np.zeros((GROUPS, len(columns), len(columns)))
            score = np.zeros((GROUPS, len(columns)))
        for g in np.unique(where):
            mine = columns[:, where == g]
            square[g] += mine @ mine.T
            score[g] += mine @ e[where == g]
    return square, score


def _scaled(values: np.ndarray) -> np.ndarray:
    """Standardised; 0 if all are the same."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-9 else np.zeros(len(values))
