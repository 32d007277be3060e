r"""Learning of :class:`~mpiflow.learn.onsagerflow.model.OnsagerFlow` from increments.

1. **K** from the conditional variance of increments in bins of m, at lag 0: the mean of
   :math:`q + m r` (:mod:`mpiflow.learn.onsagerflow.increments`).
2. **J and s'** from the drift with that K, which is linear in them (Langevin): weighted least
   squares. m has no error here, only increments have, so that no instruments are needed.
3. **All together**: Gaussian increments of mean d and variance 2 V / N of the *same* K,

.. math:: \sum \frac{q + m r - K / \beta}{2 V^2}\, \partial_\kappa \frac K\beta = 0, \qquad
          \sum \frac{\tau N}{2 V} (r - d)\, \partial_y d\; \partial_\theta y = 0,

at lag 0, so without the bias of finite lags, by Newton's method: a pass over the data per step,
over a part of them until it has converged there, with the Jacobian from some frames. Sums over
space with the kernels of J are taken from one transform of the score and one of m, whatever their
number. The likelihood of drifts has a term in
K too, and q - V one in s' and J: they hold about a twentieth of the information, and with them the
equations have wrong roots (measured: K off by 40 % near \|m\| = 1 from the start of step 2).

The Langevin law is exact near local equilibrium only. Its steps take its own variance, q in place
of q + m r, and of the blocks those with \|y\| within ``within`` standard deviations of it in
equilibrium, :math:`1 / \sqrt{N (1 - m^2)}`. The choice depends on m(t) alone: increments keep
their means. Better: learn the cosh law, and use its K, s' and J in the Langevin equation
(:meth:`~mpiflow.learn.onsagerflow.model.OnsagerFlow.with_structure`).

J is as smooth as the data allow (weight of its Laplacian by evidence [MacKay, Neural Computation
4, 415 (1992)]). Errors are :math:`I^{-1} (S + b b^T) I^{-1}`: S the scatter of the equations, b
what smoothness adds to them, so that the bias that it may have made counts. Equations at
successive frames share increments, with weights of either sign. So S is summed over the increments
between lags, each with the equations of all frames that it is in, :math:`S = \sum_t e_t e_t^T`:
given what was before they are uncorrelated if the law holds, which
:mod:`mpiflow.learn.goodness` looks at. (Groups of parts of runs are few, and gave errors of J
that were up to 30 % too small.)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.fft
import scipy.linalg

from mpiflow.core.errors import InputError
from mpiflow.learn.goodness import goodness
from mpiflow.learn.onsagerflow.increments import (
    LAGS,
    FieldRun,
    IncrementSums,
    Local,
    lag_weights,
    rates,
    total,
)
from mpiflow.learn.onsagerflow.model import EDGE, Form, OnsagerFlow, Structure, _rows
from mpiflow.learn.residuals import doubts

if TYPE_CHECKING:
    from mpi4py import MPI

#: Cells of m that functions are looked up in; increments that the Jacobian by J is taken from.
CELLS, SOME = 2**13, 2**18
#: Increments of the part of the data that steps begin with.
PART = 2**22
#: Bytes of fields that a rank keeps in memory between passes.
HELD = 2**31
#: Blocks with fewer spins than this of the rarer sign, about, are no Gaussians (Langevin).
FEWEST = 8.0
#: Prior precision of coefficients, which are of order 1: decides what the data do not show.
PRIOR = 1.0
#: Square of the relative error of kappa from one increment, extrapolated to lag 0, about.
SCATTER = 20.0
#: Of steps, in standard errors.
TOLERANCE = 0.1
Parts = Literal["linear", "all"]


def binned(
    runs: Sequence[FieldRun],
    lags: Sequence[int] = LAGS,
    edges: np.ndarray | None = None,
    comm: MPI.Intracomm | None = None,
) -> dict[float, IncrementSums]:
    """Sums in bins of m for each temperature. Collective: ranks take runs in turn."""
    out = {t: IncrementSums(edges, lags) for t in sorted({run.temperature for run in runs})}
    for number in _mine(runs, comm):
        out[runs[number].temperature].add(runs[number], number)
    if comm is not None:
        for sums in out.values():
            sums.reduce(comm)
    return out


def learn(
    runs: Sequence[FieldRun],
    *,
    structure: Structure = "cosh",
    lags: Sequence[int] = LAGS,
    smoothing: float | None = None,
    within: float = 3.0,
    iterations: int = 12,
    comm: MPI.Intracomm | None = None,
    **form: Any,
) -> OnsagerFlow:
    """Learn K, s' and J; see the module.

    Parameters
    ----------
    runs : of any temperatures, fields, block sizes and lengths; on ranks the same list
    structure : ``langevin`` or ``cosh``
    lags : in frames
    smoothing : weight of the Laplacian of J; by evidence for None
    within : see the module (Langevin)
    iterations : most steps of Fisher's method
    comm : ranks that share the runs. Collective
    form : the rest of :class:`~mpiflow.learn.onsagerflow.model.Form`

    Raises
    ------
    InputError : no runs, lags of different length in time, or no convergence
    """
    if not runs:
        raise InputError("runs", "none", "one or more", "Simulate some with --coarse.")
    if np.ptp([run.interval for run in runs]) > 1e-6 * runs[0].interval:
        raise InputError("interval", "several", "one for all runs", "Use the same --save-every.")
    runs = _held(runs, comm)
    temperatures = tuple(sorted({run.temperature for run in runs}))
    Form(structure, temperatures)  # says what is wrong
    form.setdefault("temperature_degree", min(len(temperatures) - 1, 2))
    fit = _Fit(Form("langevin", temperatures, **form), runs, lags, within, comm)
    tables = {t: sums.local() for t, sums in binned(runs, lags, comm=comm).items()}
    fit.start(tables)
    thin = max(1, fit.total // PART)
    fit.iterate("linear", iterations, smoothing, thin)
    fit.form = replace(fit.form, structure=structure)
    if thin > 1:
        fit.iterate("all", iterations, smoothing, thin)
    done = fit.iterate("all", iterations, smoothing)
    if not done < 1.0:
        raise InputError(
            "iterations", iterations, "enough for steps below an error bar", "Use more, or data."
        )
    largest = max(float(np.abs(t.m[t.count > 0]).max()) for t in tables.values())
    model = OnsagerFlow(fit.form, fit.theta, fit.covariance, largest)
    model.card = _card(model, runs, lags, tables, fit.smoothing, done)
    judge(model, runs, lags, within, comm)
    return model


def judge(
    model: OnsagerFlow,
    runs: Sequence[FieldRun],
    lags: Sequence[int],
    within: float,
    comm: MPI.Intracomm | None,
) -> None:
    """Say on the card whether the law holds for its data, and warn if not. Collective."""

    def kept(m: np.ndarray, y: np.ndarray, run: FieldRun) -> np.ndarray:
        return _kept(model.form.structure, m, y, run, within)

    card, found = model.card, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        reports = goodness(model, runs, lags, kept, comm)
    for t, report in reports.items():
        card["temperatures"][f"{t:g}"]["goodness"] = report
        found += [f"T = {t:g}: {text}" for text in doubts(report)]
    card["doubts"] = found
    model.warn_of_doubts()


class _Fit:
    """The state of the fit: coefficients and what the passes over the data need."""

    def __init__(
        self,
        form: Form,
        runs: Sequence[FieldRun],
        lags: Sequence[int],
        within: float,
        comm: MPI.Intracomm | None,
    ) -> None:
        self.form, self.runs, self.lags, self.within = form, runs, tuple(lags), within
        self.comm, self.smoothing, self.seen = comm, 0.0, 0
        self.edges = np.cumsum([0, *form.sizes()])
        size = int(self.edges[-1])
        self.theta, self.covariance = np.zeros(size), np.zeros((size, size))
        self.total = sum(int(np.prod(run.fields.shape)) for run in runs)
        self.thin = self.every = 1
        self.bases = {n: form.kernel_basis(n) for n in {run.fields.shape[-1] for run in runs}}
        self.symbols = {n: scipy.fft.rfft2(basis).real for n, basis in self.bases.items()}
        small = form.kernel_basis(2 * form.radius + 3)
        self.sums = small.sum(axis=(1, 2))
        self.theta[self.edges[2] :] = self.sums / (self.sums @ self.sums)
        around = sum(np.roll(small, by, axis) for by in (1, -1) for axis in (1, 2))
        rough = np.reshape(around - 4.0 * small, (len(small), -1))
        self.curvature = np.zeros((size, size))
        self.curvature[self.edges[2] :, self.edges[2] :] = rough @ rough.T
        self.prior = np.diag(np.r_[np.full(self.edges[2], PRIOR), np.zeros(len(small))])

    def start(self, tables: dict[float, Local]) -> None:
        """ln kappa from the tables, by least squares with their errors."""
        rows, values = [], []
        for t, table in tables.items():
            kappa, share = table.equilibrium, 1.0 - table.m**2
            # A few increments can agree by chance: their error is that of a variance at least.
            least = share * np.maximum(1e-3, np.sqrt(SCATTER / np.maximum(table.count, 1)))
            error = np.maximum(table.equilibrium_error, least)
            good = (table.count > 0) & (kappa > 2 * error) & (share > 0.05)
            weight = kappa[good] / error[good]
            basis = _rows(self.form.mobility_basis(table.m[good]), self.form.temperature_basis(t))
            rows.append((basis * weight).T)
            values.append(np.log(kappa[good] / share[good]) * weight)
        a, b = np.concatenate(rows), np.concatenate(values)
        c = np.linalg.solve(a.T @ a + PRIOR * np.eye(a.shape[1]), a.T @ b)
        self.theta[: self.edges[1]] = c

    def iterate(
        self, parts: Parts, iterations: int, smoothing: float | None, thin: int = 1
    ) -> float:
        """Steps until they are short against the errors; the length of the last one.

        ``thin`` takes one of so many frames.
        """
        self.thin, self.every = thin, max(1, self.total // thin // SOME)
        first = 0 if parts == "all" else int(self.edges[1])
        gauge = scipy.linalg.null_space(self.sums[None])
        free = scipy.linalg.block_diag(np.eye(self.edges[2]), gauge)[:, first:]
        length = np.inf
        for _ in range(iterations):
            score, info = self._pass(parts)
            if smoothing is not None:
                self.smoothing = smoothing
            penalty = self.prior + self.smoothing * self.curvature
            inner = free.T @ (info + penalty) @ free
            step = free @ np.linalg.solve(inner, free.T @ (score - penalty @ self.theta))
            before = length
            length = float(np.sqrt(max(0.0, step @ info @ step) / max(1, free.shape[1])))
            # Steps that go to and fro, since the choice of blocks moves too, meet in the middle.
            share = 0.5 if length > 0.7 * before else 1.0
            self.theta = self.theta + share * step
            inverse = free @ np.linalg.solve(inner, free.T)
            if smoothing is None:
                self._set_smoothing(inverse)
            if length < TOLERANCE:
                break
        if parts == "all" and thin == 1:
            pulled = penalty @ self.theta  # what smoothing J may have made of it
            found = self._scatter() + np.outer(pulled, pulled)
            self.covariance = inverse @ found @ inverse.T
        return length

    def _scatter(self) -> np.ndarray:
        """The covariance (P, P) of the equations: see the module. Collective."""
        size, lags = len(self.theta), np.asarray(self.lags)
        steps = np.diff(lags, prepend=0)
        sums, seen = np.zeros((int(steps.max()), size, size)), np.zeros(2)
        every, place = max(1, self.total // PART), 0
        for number in _mine(self.runs, self.comm):
            run = self.runs[number]
            at = _Tables(self, run, select=True)
            members = int(np.prod(run.fields.shape[1:-2]))
            for m, increments, _ in run.windows(self.lags):
                place += 1
                used = place % every == 0 or every == 1
                seen += len(m), len(m) * used
                if used:
                    rows = self._rows_in_time(at, m, increments, members)
                    for apart in range(min(len(sums), len(rows))):
                        later = rows[apart:].reshape(-1, size)
                        sums[apart] += later.T @ rows[: len(rows) - apart].reshape(-1, size)
        sums, seen = total(sums, self.comm), total(seen, self.comm)
        whole = sums + np.swapaxes(sums, 1, 2)
        found = (0.5 * whole[0] + whole[1:].sum(axis=0)) * (seen[0] / max(1.0, seen[1]))
        # Of few frames it may come out negative somewhere, which no covariance is.
        values, vectors = np.linalg.eigh(found)
        return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)

    def _rows_in_time(
        self, at: _Tables, m: np.ndarray, increments: np.ndarray, members: int
    ) -> np.ndarray:
        """The equations by the time at which their noise arises, (times, members, P)."""
        steps = np.diff(self.lags, prepend=0)
        frames = len(m) // members
        out = np.zeros((frames + int(self.lags[-1]), members, len(self.theta)))
        # The weights of r, of what each lag adds to the one before.
        scaled = lag_weights(self.lags) / np.asarray(self.lags)
        shares = np.cumsum(scaled[::-1])[::-1]
        before = np.zeros_like(m)
        for increment, step, lag, share in zip(increments, steps, self.lags, shares, strict=True):
            r = share * (increment - before) / at.run.interval
            q = 0.5 * at.run.spins * share * (increment**2 - before**2) / at.run.interval
            for i in range(len(m)):
                row, one = out[i // members + lag - step, i % members], np.s_[i : i + 1]
                at.add(m[one], r[one], q[one], row, None, share * step)
            before = increment
        return out

    def _set_smoothing(self, inverse: np.ndarray) -> None:
        c = self.curvature
        used = self.smoothing * np.trace(inverse @ c)
        known = max(1.0, len(self.sums) - 1 - float(used))
        self.smoothing = known / float(self.theta @ c @ self.theta)

    # -- passes over the data -------------------------------------------------------------------

    def _pass(self, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
        """The equations (P,), less their Jacobian (P, P), over all ranks."""
        size = len(self.theta)
        score, info, self.seen = np.zeros(size), np.zeros((size, size)), 0
        place = 0
        for number in _mine(self.runs, self.comm):
            run = self.runs[number]
            at = _Tables(self, run, select=parts == "all")
            for whole, all_steps, _ in run.windows(self.lags):
                mine = np.arange(-place % self.thin, len(whole), self.thin)
                place += len(whole)
                if not len(mine):
                    continue
                m, increments = whole[mine], all_steps[:, mine]
                r, q = rates(increments, run.interval, run.spins, self.lags)
                at.add(m, r, q, score, info)
        return total(score, self.comm), total(info, self.comm)


class _Tables:
    """The functions of one run on cells of m, and the sums over its fields.

    Cells are fine, and the means of N spins are in their middles exactly.
    """

    def __init__(self, fit: _Fit, run: FieldRun, select: bool) -> None:
        self.fit, self.run, self.select = fit, run, select
        form, (c, a, _) = fit.form, np.split(fit.theta, fit.edges[1:3])
        self.cells = run.spins * max(1, CELLS // run.spins)
        m = np.linspace(-1.0, 1.0, self.cells + 1)
        by = form.temperature_basis(run.temperature)
        # artanh of whole blocks as if half a spin were other.
        limit = max(1.0 - 0.5 / run.spins, 1.0 - 1.0 / self.cells)
        self.inside = np.clip(m, -min(limit, EDGE), min(limit, EDGE))
        self.artanh = np.arctanh(self.inside)
        self.of_k = _rows(form.mobility_basis(m), by)
        self.of_s = _rows(form.entropy_basis(self.inside), by)
        self.kappa, self.s = np.exp(c @ self.of_k), a @ self.of_s
        slope = c @ _rows(form.mobility_basis(m, derivative=True), by)
        self.ito = self.kappa * (slope * (1.0 - m * m) - 2.0 * m) / (2.0 * run.spins)
        self.symbol = np.tensordot(fit.theta[fit.edges[2] :], fit.symbols[run.fields.shape[-1]], 1)

    def add(
        self,
        m: np.ndarray,
        r: np.ndarray,
        q: np.ndarray,
        score: np.ndarray,
        info: np.ndarray | None,
        share: float = 1.0,
    ) -> None:
        """Add the fields (n, M, M) of a window to the sums; ``share`` of r and q are expected."""
        fit, run = self.fit, self.run
        edges, points = fit.edges, m.shape[-1]
        cell = np.rint((m + 1.0) * (0.5 * self.cells)).astype(np.int64).clip(0, self.cells)
        spectrum = scipy.fft.rfft2(m)
        u = scipy.fft.irfft2(spectrum * self.symbol, s=m.shape[-2:]) + run.field
        y = self.s[cell] - run.beta * u
        kappa = self.kappa[cell]
        rest = kappa * (1.0 - m * m)
        if fit.form.structure == "langevin":
            v, d, d_y = rest, self.ito[cell] - rest * y, -rest
            of_k = q
        else:
            th = np.tanh(self.artanh[cell] - y)
            v, d, d_y = kappa * (1.0 - m * th), kappa * (th - m), kappa * (th * th - 1.0)
            of_k = q + m * r
        keep = _kept(fit.form.structure, m, y, self.run, fit.within if self.select else np.inf)
        # Blocks about to be uniform have no Gaussian increments: no infinite weights.
        v_safe = v + 1.0 / run.spins
        w_d = keep * (run.interval * fit.lags[0] * run.spins / 2.0) / v_safe
        w_v = keep / (2.0 * v_safe**2)
        by_l = w_v * (of_k - share * rest) * rest
        by_y = w_d * (r - share * d) * d_y
        for values, basis, first in ((by_l, self.of_k, 0), (by_y, self.of_s, edges[1])):
            sums = np.bincount(cell.ravel(), values.ravel(), self.cells + 1)
            score[first : first + len(basis)] += basis @ sums
        both = (scipy.fft.rfft2(by_y) * spectrum.conj()).sum(axis=0)
        product = scipy.fft.irfft2(both, s=(points, points))
        score[edges[2] :] -= run.beta * np.tensordot(fit.bases[points], product, 2)
        if info is None:
            return
        # The Jacobian: what depends on cells from all fields, what J is in from a few of them.
        k, s = edges[1], edges[2]
        for at, values, left, right in (
            (np.s_[:k, :k], w_v * rest**2, self.of_k, self.of_k),
            (np.s_[k:s, :k], w_d * d * d_y, self.of_s, self.of_k),
            (np.s_[k:s, k:s], w_d * d_y**2, self.of_s, self.of_s),
        ):
            by_cell = np.bincount(cell.ravel(), values.ravel(), self.cells + 1)
            info[at] += (left * by_cell) @ right.T
        some = np.arange(-fit.seen % fit.every, len(m), fit.every)
        fit.seen += len(m)
        for i in some:
            of_j = scipy.fft.irfft2(spectrum[i] * fit.symbols[points], s=(points, points))
            f_j = -run.beta * fit.every * of_j.reshape(len(of_j), -1)
            steep, mixed = (w_d[i] * d_y[i] ** 2).ravel(), (w_d[i] * d_y[i] * d[i]).ravel()
            info[s:, :k] += (f_j * mixed) @ self.of_k[:, cell[i].ravel()].T
            cross = (f_j * steep) @ self.of_s[:, cell[i].ravel()].T
            info[s:, k:s] += cross
            info[k:s, s:] += cross.T
            info[s:, s:] += (f_j * steep) @ f_j.T / fit.every


def _kept(
    structure: Structure, m: np.ndarray, y: np.ndarray, run: FieldRun, within: float
) -> np.ndarray:
    """Which blocks count, 1 or 0: all of ``cosh``, those near equilibrium of ``langevin``."""
    if structure == "cosh":
        return np.ones_like(m)
    share = run.spins * (1.0 - m * m)
    return ((share > FEWEST) & (y * y * share < within**2)).astype(float)


def _held(runs: Sequence[FieldRun], comm: MPI.Intracomm | None) -> list[FieldRun]:
    """Fields of this rank's runs in memory, if they have room: passes over them are many."""
    out, mine = list(runs), _mine(runs, comm)
    if sum(4 * int(np.prod(runs[number].fields.shape)) for number in mine) <= HELD:
        for number in mine:
            fields = runs[number].fields
            out[number] = replace(runs[number], fields=np.asarray(fields[: fields.shape[0]]))
    return out


def _mine(runs: Sequence[FieldRun], comm: MPI.Intracomm | None) -> range:
    rank, size = (comm.rank, comm.size) if comm is not None else (0, 1)
    return range(rank, len(runs), size)


def local_means(
    model: OnsagerFlow, runs: Sequence[FieldRun], edges: np.ndarray, y_edges: np.ndarray
) -> Local:
    """Drift and variance in bins of m and of y = beta mu of a model: what a single K(m) costs.

    Compare with :meth:`OnsagerFlow.drift` and :meth:`OnsagerFlow.half_variance`. Runs of one
    temperature and block size.
    """
    sums = IncrementSums(edges, LAGS, y_edges)

    def y_of(m: np.ndarray, run: FieldRun) -> np.ndarray:
        symbol = scipy.fft.rfft2(model.kernel_on(m.shape[-1]))
        u = scipy.fft.irfft2(scipy.fft.rfft2(m) * symbol, s=m.shape[-2:]) + run.field
        law = model.at(run.temperature)
        limit = 1.0 - 0.5 / run.spins
        return run.beta * (law.entropy_derivative(np.clip(m, -limit, limit)) - u)

    for number, run in enumerate(runs):
        sums.add(run, number, y_of)
    return sums.local()


def _card(
    model: OnsagerFlow,
    runs: Sequence[FieldRun],
    lags: Sequence[int],
    tables: dict[float, Local],
    smoothing: float,
    last_step: float,
) -> dict[str, Any]:
    """What a user should know of the data and of the result."""
    fields = [float(v) for run in runs for v in (np.min(run.field), np.max(run.field))]
    m = np.linspace(-0.9, 0.9, 37) * min(1.0, model.largest / 0.9)
    worst, monotone = {}, True
    for t in model.form.temperatures:
        k, s = model.errors(m, t)
        value = model.entropy_derivative(m, t)
        monotone &= bool((np.diff(value) > 0).all())
        seen = tables[t].m[tables[t].count > 0]
        worst[f"{t:g}"] = {
            "increments": int(tables[t].count.sum()),
            "m": [float(seen.min()), float(seen.max())],
            "mobility_error": float((k / model.mobility(m, t)).max()),
            "entropy_error": float(s.max() / abs(value).max()),
            "lag_bias": float(np.nanmedian(tables[t].lag_bias)),
        }
    return {
        "runs": len(runs),
        "blocks": sorted({run.fields.shape[-1] for run in runs}),
        "spins": sorted({int(run.spins) for run in runs}),
        "interval": float(runs[0].interval),
        "lags": [int(lag) for lag in lags],
        "field": [min(fields), max(fields)],
        "temperatures": worst,
        "kernel_error": model.kernel_error,
        "smoothing": float(smoothing),
        "last_step": float(last_step),
        "monotone": monotone,
        "gauge": "sum of J is 1; s' + c m and J(0) + c are the same law",
    }
