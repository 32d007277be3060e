r"""Learning of :class:`~mpiflow.learn.onsagerflow.model.OnsagerFlow` with networks for K and s'.

The equations are those of :mod:`mpiflow.learn.onsagerflow.fit`, as gradients of a loss by
minibatches of fields. With r and q of :mod:`mpiflow.learn.onsagerflow.increments`, each sample adds

.. math:: \frac{(q + m r)\, \beta}{K} + \ln \frac K\beta, \qquad
          \frac{\tau N}{4 V_0} (r - d)^2,

the mean over its blocks. Only K learns from the first term, only s' and J from the second: its
kappa is a constant. V_0 is the variance of the *polynomials*, which are learned first,
so that the loss can be compared between epochs. The Langevin law takes q in place of q + m r, and
blocks that are near equilibrium with the polynomials.

The networks begin as free spins, J as that of the polynomials: from the linear J it is a long way
for minibatches (measured: off by 10 % after 12 epochs, where the polynomials are by 7 %). Its sum
stays 1, and the weight of its Laplacian is what the polynomials found by evidence. The last frames
of all runs, a tenth, are held out: the weights with the least loss there are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft
import scipy.linalg
import torch
from torch import nn

from mpiflow.core.errors import InputError
from mpiflow.learn.onsagerflow.fit import FEWEST, PART, _card, _Fit, _held, binned, judge
from mpiflow.learn.onsagerflow.functions import DOUBLE, Networks
from mpiflow.learn.onsagerflow.increments import LAGS, FieldRun, rates
from mpiflow.learn.onsagerflow.model import Form, OnsagerFlow
from mpiflow.learn.training import Schedule, fit
from mpiflow.systems.field_law import Structure

if TYPE_CHECKING:
    from mpi4py import MPI

#: Cells of m that functions are interpolated in; fields at a time; steps of the start.
CELLS, FIELDS, ITERATIONS = 512, 256, 12
#: Blocks farther from equilibrium than this are left out, in standard deviations (Langevin).
WITHIN = 3.0
#: Passes over the data, steps at least, fields a step.
PASSES, STEPS, BATCH = 30, 600, 32


def learn_network(
    runs: Sequence[FieldRun],
    *,
    structure: Structure = "cosh",
    lags: Sequence[int] = LAGS,
    radius: int = 8,
    width: int = 32,
    monotone: bool = True,
    symmetric: bool = True,
    start: float = 0.0,
    seed: int = 0,
    schedule: Schedule | None = None,
    comm: MPI.Intracomm | None = None,
) -> OnsagerFlow:
    """Learn K, s' and J with networks of m and T; see the module.

    Parameters
    ----------
    runs : of any temperatures, fields, block sizes and lengths, of one number of blocks
    structure : ``langevin`` or ``cosh``
    lags : in frames
    radius : reach of J in blocks
    width : of the networks' two hidden layers
    monotone : s' rises in m by construction
    symmetric : K is even and s' odd in m
    start : ln kappa and ln rho that the networks begin with; 0 is free spins, the exact law of
        some data, of which another start tells what was learned
    seed : of the networks and the order of batches
    schedule : of training; ``batch`` counts fields. 30 passes, or 600 steps, for None
    comm : ranks that share the work, each with the same runs. Collective

    Raises
    ------
    InputError : no runs, or of several intervals or numbers of blocks; width not above 0
    """
    if not runs:
        raise InputError("runs", "none", "one or more", "Simulate some with --coarse.")
    runs = _held(runs, None)  # every rank learns from all of them
    for name, values in (
        ("interval", {round(float(run.interval), 9) for run in runs}),
        ("blocks", {run.fields.shape[-1] for run in runs}),
    ):
        if len(values) > 1:
            raise InputError(name, sorted(values), "one for all runs", "Learn from some of them.")
    if width < 1:
        raise InputError("width", width, "1 or more", "Use 32.")
    temperatures = tuple(sorted({float(run.temperature) for run in runs}))
    form = Form(structure, temperatures, symmetric=symmetric, radius=radius, width=width,
                monotone=monotone)  # fmt: skip
    degree = min(len(temperatures) - 1, 2)
    first = replace(form, structure="langevin", width=0, temperature_degree=degree)
    begin = _Fit(first, runs, lags, WITHIN, comm)
    tables = {t: sums.local() for t, sums in binned(runs, lags, comm=comm).items()}
    begin.start(tables)
    thin = max(1, begin.total // PART)
    begin.iterate("linear", ITERATIONS, None, thin)
    linear, begin.form = begin.theta, replace(first, structure=structure)
    begin.iterate("all", ITERATIONS, None, thin)
    done = begin.iterate("all", ITERATIONS, None)
    if not done < 1.0:  # polynomials do not do for this law: a start all the same
        begin.theta = linear
    largest = max(float(np.abs(t.m[t.count > 0]).max()) for t in tables.values())
    polynomials = OnsagerFlow(begin.form, begin.theta, begin.covariance, largest)
    data = _samples(polynomials, runs, lags)

    torch.manual_seed(seed)
    loss = _Loss(form, runs, begin, data[1].shape)
    loss.networks.set_start(start)
    if schedule is None:
        epochs = max(PASSES, STEPS * BATCH // len(data[0]))
        schedule = Schedule(epochs, BATCH, learning_rate=5e-3, patience=epochs)
    log = fit(loss, data, seed=seed, schedule=schedule, comm=comm)
    of_j = np.s_[begin.edges[2] :]
    weights = loss.kernel().detach().numpy()
    covariance = begin.covariance[of_j, of_j].copy()
    model = OnsagerFlow(form, weights, covariance, largest, networks=loss.networks)
    model.card = _card(model, runs, lags, tables, begin.smoothing, done)
    for about in model.card["temperatures"].values():
        about |= {"mobility_error": None, "entropy_error": None}  # JSON has no nan
    model.card["errors"] = "of J those of the polynomials; of K and s' unknown"
    model.card["training"] = asdict(log)
    judge(model, runs, lags, WITHIN, comm)
    return model


def _samples(
    start: OnsagerFlow, runs: Sequence[FieldRun], lags: Sequence[int]
) -> tuple[np.ndarray, ...]:
    """Of all windows: run (n,), and fields (n, M, M) of m, r, q and tau N / 4 V_0, float32.

    By their place in time in their run. Weights of blocks that are left out are 0.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    for number, run in enumerate(runs):
        symbol = start.symbol(run.fields.shape[-2:])
        law, limit = start.at(run.temperature), 1.0 - 0.5 / run.spins
        for m, increments, _ in run.windows(lags):
            r, q = rates(increments, run.interval, run.spins, lags)
            u = scipy.fft.irfft2(scipy.fft.rfft2(m) * symbol, s=m.shape[-2:]) + run.field
            inside = np.clip(m, -limit, limit)
            y = run.beta * (law.entropy_derivative(inside) - u)
            v = start.half_variance(inside, y, run.temperature) + 1.0 / run.spins
            weight = 0.25 * run.interval * lags[0] * run.spins / v
            if start.form.structure == "langevin":
                share = run.spins * (1.0 - m * m)
                weight *= (share > FEWEST) & (y * y * share < WITHIN**2)
            runs_of = np.full(len(m), number, np.float32)
            parts.append((runs_of, *(a.astype(np.float32) for a in (m, r, q, weight))))
    data = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    del parts
    count = np.bincount(data[0].astype(int))
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in count])
    order = np.argsort(place, kind="stable")
    return tuple(a[order] for a in data)


class _Loss(nn.Module):
    """The loss of fields (n,); see the module."""

    first: torch.Tensor
    gauge: torch.Tensor
    symbols: torch.Tensor
    shares: torch.Tensor
    z: torch.Tensor
    beta: torch.Tensor
    spins: torch.Tensor
    h: torch.Tensor
    row: torch.Tensor

    def __init__(
        self, form: Form, runs: Sequence[FieldRun], start: _Fit, shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.langevin = form.structure == "langevin"
        self.networks = Networks(form.width, form.monotone, form.symmetric)
        edge, theta = start.edges[2], start.theta[start.edges[2] :]
        # Changes of J that keep its sum, in units of errors: steps of all are alike.
        _, info = start._pass("all")
        info = (info + start.smoothing * start.curvature)[edge:, edge:]
        gauge = scipy.linalg.null_space(start.sums[None])
        gauge = gauge @ np.linalg.inv(np.linalg.cholesky(gauge.T @ info @ gauge)).T
        self.free = nn.Parameter(torch.zeros(gauge.shape[1], dtype=DOUBLE))
        temperatures = np.array(form.temperatures)
        points = shape[-1]
        shares = start.smoothing * start.curvature[edge:, edge:] / np.prod(shape)
        constants: dict[str, Any] = {
            "first": theta,
            "gauge": gauge,
            "symbols": start.symbols[points],
            "shares": shares,
            "z": form.scaled(temperatures),
            "beta": [run.beta for run in runs],
            "spins": [float(run.spins) for run in runs],
            "h": np.stack([np.broadcast_to(run.field, (points, points)) for run in runs]),
        }
        for name, value in constants.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=DOUBLE))
        row = np.searchsorted(temperatures, [run.temperature for run in runs])
        self.register_buffer("row", torch.as_tensor(row))

    def kernel(self) -> torch.Tensor:
        """Coefficients of J, whose sum is 1."""
        return self.first + self.gauge @ self.free

    def tables(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """On edges of cells (T (cells + 1), 4): s' less its ends, ln kappa, and the same without
        a graph and its slope; rho(-1) and rho(1) for each T.
        """
        m = torch.linspace(-1.0, 1.0, CELLS + 1, dtype=DOUBLE, device=self.z.device)
        z, at = self.z[:, None].expand(-1, CELLS + 1), m.expand(len(self.z), -1)
        middle = 0.5 * (at[:, 1:] + at[:, :-1])
        low, high = (self.networks.stiffness(at[:, i], self.z) for i in (0, -1))
        slopes = self.networks.excess(middle, z[:, 1:], low[:, None], high[:, None])
        rest = nn.functional.pad(slopes.cumsum(dim=1) * (2.0 / CELLS), (1, 0))
        rest = rest - rest[:, CELLS // 2, None] + self.networks.middle(self.z)[:, None]
        log = self.networks.logarithm(at, z)
        fixed = log.detach()
        (slope,) = torch.gradient(fixed, spacing=2.0 / CELLS, dim=1)
        table = torch.stack((rest, log, fixed, slope), dim=-1)
        return table.reshape(-1, 4), low, high

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        tables, symbol = self.tables(), torch.tensordot(self.kernel(), self.symbols, 1)
        parts = zip(*(a.split(FIELDS) for a in batch), strict=True)
        total = torch.cat([self._of(tables, symbol, *part) for part in parts])
        kernel = self.kernel()
        return total + 0.5 * kernel @ self.shares @ kernel

    def _of(
        self,
        tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        symbol: torch.Tensor,
        number: torch.Tensor,
        *fields: torch.Tensor,
    ) -> torch.Tensor:
        run = number.to(self.z.device).long()
        m, r, q, weight = (a.to(self.z.device, DOUBLE) for a in fields)
        row = self.row[run][:, None, None]
        spins, beta = (a[run][:, None, None] for a in (self.spins, self.beta))
        table, low, high = tables
        place = (m + 1.0) * (0.5 * CELLS)
        cell = place.long().clamp(0, CELLS - 1)
        share = (place - cell)[..., None]
        at = (row * (CELLS + 1) + cell).flatten()
        left, right = (table.index_select(0, at + i).reshape(*m.shape, 4) for i in (0, 1))
        s, log, fixed, slope = (left + share * (right - left)).unbind(dim=-1)
        # Whole blocks as if half a spin were other.
        limit = 1.0 - 0.5 / spins
        inside = torch.minimum(torch.maximum(m, -limit), limit)
        s = s + 0.5 * (low[row] * torch.log1p(inside) - high[row] * torch.log1p(-inside))
        u = torch.fft.irfft2(torch.fft.rfft2(m) * symbol, s=m.shape[-2:]) + self.h[run]
        y = s - beta * u
        rest, kappa = 1.0 - m * m, torch.exp(fixed)
        if self.langevin:
            d = kappa * ((slope * rest - 2.0 * m) / (2.0 * spins) - rest * y)
            seen = q
        else:
            d = kappa * (torch.tanh(torch.atanh(inside) - y) - m)
            seen = q + m * r
        # Blocks that are uniform, or about to be, tell nothing of kappa: no infinite weights.
        safe = rest + 1.0 / spins
        known = (weight > 0) * rest / safe
        of_k = known**2 * log + known * seen / safe * torch.exp(-log)
        return (of_k + weight * (r - d) ** 2).mean(dim=(-2, -1))
