r"""Whether a law of :class:`~mpiflow.learn.onsagerflow.model.OnsagerFlow` holds for the data it is
from.

Standard errors say how far data of the same kind would move the coefficients, not whether block
means obey such an equation at all. If they do, the residuals of rates, :math:`r - d`, are white
noise of the variance :math:`2 V / N \tau` given all that was before. Of each temperature:

``explained_drift``
    Of the predictable drift, squares in units of the noise, the part that d has. The rest is what
    a richer law finds in the residuals: cubic polynomials of m, of the mean of the four
    neighbours and of :math:`\tanh \beta (J*m + h)`, and what m and its neighbours did in the
    frame before. Its coefficients are those of one half of the data, what they explain is that of
    the other. Or what a factor of d in each quarter of the runs finds, if that is more.
``variance``
    The mean of q over that of V, 1.
``drift_of_parts``, ``variance_of_parts``
    The slope of r on d, and the mean of q over that of V, in the quarters of runs by time: 1. In
    quenches what an equation of m cannot know changes with time.
``mean``
    The mean residual of an increment over its standard deviation, 0.
``time_correlation``, ``space_correlation``
    Of residuals that are one longest lag apart in time, and of those of neighbours at lag 0; in
    units of the variance of the noise of one frame, 0.
``kurtosis``, ``expected_kurtosis``
    Of an increment over its standard deviation; 3, and 2 / N V tau more for flips (``cosh``).

Rates and variances are extrapolated to lag 0 (:mod:`mpiflow.learn.onsagerflow.increments`), rates
by the first and the last lag only, which is half as noisy. Weights are :math:`1 / (V + \bar V)`
with the mean over a window: blocks in which hardly a spin flips do not count more than others.
Errors are those of the jackknife over groups of parts of runs; the halves are those of even and
odd number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft

from mpiflow.learn.onsagerflow.increments import (
    GROUPS,
    SEGMENTS,
    FieldRun,
    lag_weights,
    rates,
    total,
)
from mpiflow.learn.onsagerflow.model import OnsagerFlow
from mpiflow.learn.residuals import around, found_by, ratio, share

if TYPE_CHECKING:
    from mpi4py import MPI

#: Increments looked at, at most.
MOST = 2**22
#: Names of scalar sums, in order.
_NAMES: tuple[str, ...] = (
    "n",
    "drift",
    "q",
    "v",
    "z",
    "z2",
    "z4",
    "flips",
    "time",
    "noise",
    "space",
)
_NAMES += ("along", "along2", "q2")
#: How many functions the richer law has.
_TERMS = 20 + 4
#: Which blocks count, from m and y = beta mu: (n, M, M) to the same.
Selection = Callable[[np.ndarray, np.ndarray, FieldRun], np.ndarray]


class Goodness:
    """Sums over residuals of one temperature."""

    def __init__(self) -> None:
        self.sums = np.zeros((GROUPS, len(_NAMES)))
        self.square = np.zeros((GROUPS, _TERMS, _TERMS))
        self.score = np.zeros((GROUPS, _TERMS))

    def add(
        self,
        model: OnsagerFlow,
        run: FieldRun,
        lags: Sequence[int],
        group: int,
        m: np.ndarray,
        increments: np.ndarray,
        kept: Selection,
    ) -> None:
        """Add the fields (n, M, M) of a window, frames of members, and increments (lags, ...)."""
        limit, symbol = 1.0 - 0.5 / run.spins, model.symbol(m.shape[-2:])
        u = run.beta * (scipy.fft.irfft2(scipy.fft.rfft2(m) * symbol, s=m.shape[-2:]) + run.field)
        law = model.at(run.temperature)
        inside = np.clip(m, -limit, limit)
        y = run.beta * law.entropy_derivative(inside) - u
        d = model.drift(inside, y, run.temperature, run.spins)
        v = model.half_variance(inside, y, run.temperature)
        keep = kept(m, y, run)
        tau, n = run.interval * lags[0], 0.5 * run.spins
        weight = keep / (v + (keep * v).sum() / max(1.0, keep.sum()) + 1.0 / run.spins)
        _, q = rates(increments, run.interval, run.spins, lags)
        ends = sorted({0, len(lags) - 1})
        few = [lags[i] for i in ends]
        r, _ = rates(increments[ends], run.interval, run.spins, few)
        rest = np.sqrt(weight * n * tau) * (r - d)
        z = np.sqrt(n * tau / (v + 1.0 / run.spins)) * (increments[0] / tau - d)

        shape = (-1, int(np.prod(run.fields.shape[1:-2])), *m.shape[-2:])
        apart, whole = int(lags[-1]), rest.reshape(shape)
        noise = (weight * v).reshape(shape)
        space: float = 0.0
        scale = lag_weights(lags) / np.asarray(lags) * (n / run.interval)
        for w, lag, step in zip(scale, lags, increments, strict=True):
            of_lag = np.sqrt(weight) * (step - lag * run.interval * d)
            space += w * sum(float((of_lag * np.roll(of_lag, 1, a)).sum()) for a in (1, 2)) / 2
        sure = keep * (n * v * tau > 0.5)  # of others an increment has no shape
        self.sums[group] += (
            sure.sum(), (weight * n * tau * d * d).sum(),
            (weight * q).sum(), (weight * v).sum(), (sure * z).sum(), (sure * z**2).sum(),
            (sure * z**4).sum(), (sure / (n * np.maximum(v, 1e-9) * tau)).sum(),
            (whole[apart:] * whole[:-apart]).sum(), noise[apart:].sum(), space,
            (weight * n * tau * d * (r - d)).sum(), ((weight * n * tau * d * (r - d)) ** 2).sum(),
            ((weight * (q - v)) ** 2).sum(),
        )  # fmt: skip
        functions, some = _functions(m.reshape(shape), u.reshape(shape))
        weighted = functions * (weight * n * tau).reshape(shape)[some].ravel()
        self.square[group] += weighted @ functions.T
        self.score[group] += weighted @ (r - d).reshape(shape)[some].ravel()

    def reduce(self, comm: MPI.Intracomm | None) -> None:
        """Add up what all ranks have. Collective."""
        self.sums, self.square, self.score = (
            total(a, comm) for a in (self.sums, self.square, self.score)
        )

    def report(self, flips: bool, apart: int) -> dict[str, Any]:
        """The figures of the module, each with its error; None where data are too few."""
        of = dict(zip(_NAMES, self.sums.T, strict=True))
        out: dict[str, Any] = {"explained_drift": self._explained(of, apart)}
        for name, above, below in (
            ("variance", of["q"], of["v"]),
            ("mean", of["z"], of["n"]),
            ("time_correlation", of["time"], of["noise"]),
            ("space_correlation", of["space"], of["v"]),
        ):
            out[name] = ratio(lambda a: a[0] / a[1], above, below)
        for name, rest, square, size in (
            ("drift_of_parts", "along", "along2", "drift"),
            ("variance_of_parts", None, "q2", "v"),
        ):
            off = of[rest] if rest else of["q"] - of["v"]
            out[name] = [
                [1 + float(off[p::SEGMENTS].sum() / at), float(error / at)]
                for p in range(SEGMENTS)
                if (at := of[size][p::SEGMENTS].sum()) > 0
                # Successive increments share frames.
                and (error := np.sqrt(apart * of[square][p::SEGMENTS].sum())) > 0
            ]
        out["kurtosis"] = ratio(lambda a: a[0] * a[2] / a[1] ** 2, of["z4"], of["z2"], of["n"])
        extra = of["flips"].sum() / max(1.0, of["n"].sum()) if flips else 0.0
        out["expected_kurtosis"] = 3.0 + float(extra)
        return out

    def _explained(self, of: dict[str, np.ndarray], apart: int) -> list[float] | None:
        """The drift that the law has, as a part of all that is found, and its error."""
        used = np.flatnonzero(of["v"] > 0)
        if min(np.sum(used % 2 == half) for half in (0, 1)) < 2:
            return None
        found = [found_by(self.square, self.score, used)]
        # What the four quarters of runs find by a factor of d each, less what noise would.
        known, along, noise = (
            of[name].reshape(-1, SEGMENTS).sum(axis=0) for name in ("drift", "along", "along2")
        )
        known_there, along, noise = (a[known > 0] for a in (known, along, apart * noise))
        off = along / known_there
        error = 2 * math.sqrt(float((off**2 * noise).sum()))
        found.append((float((along * off - noise / known_there).sum()), error))
        return share(float(known.sum()), found)


def _functions(m: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, slice]:
    """Those of the richer law, (functions, values), and of which frames they are."""
    some = slice(min(1, len(m) - 1), None)
    past = np.diff(m, axis=0, prepend=m[:1])[some]
    here, near = m[some], around(m[some])
    first = (np.ones_like(here), here, near, np.tanh(u[some]))
    functions = [a * b * c for a, b, c in combinations_with_replacement(first, 3)]
    functions += [past, past * here**2, around(past), past * near**2]
    return np.stack([f.ravel() for f in functions]), some


def goodness(
    model: OnsagerFlow,
    runs: Sequence[FieldRun],
    lags: Sequence[int],
    kept: Selection,
    comm: MPI.Intracomm | None = None,
) -> dict[float, dict[str, Any]]:
    """The figures of the module for each temperature of the runs. Collective."""
    sums = {t: Goodness() for t in sorted({run.temperature for run in runs})}
    size = sum(int(np.prod(run.fields.shape)) for run in runs)
    every = max(1, -(-size // MOST))
    rank, ranks = (comm.rank, comm.size) if comm is not None else (0, 1)
    for number in range(rank, len(runs), ranks):
        run = runs[number]
        for place, (m, increments, part) in enumerate(run.windows(lags)):
            if (place + number) % every == 0:
                group = (number * SEGMENTS + part) % GROUPS
                sums[run.temperature].add(model, run, lags, group, m, increments, kept)
    flips = model.form.structure == "cosh"
    out = {}
    for t, of in sums.items():
        of.reduce(comm)
        out[t] = of.report(flips, int(lags[-1]))
    return out
