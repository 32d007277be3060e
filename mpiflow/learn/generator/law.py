r"""The weak prior: a kernel and a law :math:`F(I, m)` of which nothing is known but smoothness.

A network that is trained on points together with its kernel follows the noise: microscopic rates
have errors larger than themselves, and 1e4 points leave as many errors as 1e4 points have. The
problem is an *index model* with two indices, which separates:

1. **Kernel.** With any complete set of functions for F, here polynomials :math:`\sum_{ab} c_{ab}
   I^a m^b` of bounded degree with coefficients of their own for each (beta, h), J and all c
   solve the estimating equations of :mod:`mpiflow.learn.generator.fit` together, on all of the
   data and with instruments where values have errors.
2. **Law.** Given J, F is a function of two numbers at each (beta, h). Points are grouped in cells
   of (I, m), by the instruments: the mean rate of a cell belongs to its mean I and m, without
   the bias that errors of m cause [Wald, Ann. Math. Stat. 11, 284 (1940)], and with errors that
   the number of points makes small. The network is trained on the cells, weighted by their
   points, by loss (19); runs that are held out say when to stop.

Rates that are increments over dt are corrected in step 2 by what the law of step 1 says of the
difference between the two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from mpiflow.core import noise
from mpiflow.core.errors import InputError
from mpiflow.learn import devices
from mpiflow.learn.generator.data import Rates
from mpiflow.learn.generator.fit import CHUNK, Solution, conditions, polish, set_units, solve
from mpiflow.learn.generator.goodness import judge
from mpiflow.learn.generator.model import DOUBLE, Generator
from mpiflow.learn.training import Schedule, fit

#: Cells along I and along m.
BINS = 40


class Polynomials(Generator):
    """A generator with a polynomial for each (beta, h) of some data; see the module.

    Parameters
    ----------
    model : a generator with the prior ``mlp``, of which it takes the kernel
    degree : largest a + b
    """

    def __init__(self, model: Generator, rates: Rates, degree: int = 6) -> None:
        super().__init__("mlp", model.kernel, model.points, model.radius, width=1)
        if degree < 1:
            raise InputError("degree", degree, "1 or more", "Try 6.")
        self.degree = degree
        self.powers = [(a, b) for b in range(degree + 1) for a in range(degree + 1 - b)]
        self.known = np.unique(np.stack([rates.beta, rates.field], axis=1), axis=0)
        start = torch.zeros(len(self.known), len(self.powers), dtype=DOUBLE)
        start[:, self.powers.index((1, 0))] = 1.0
        start[:, self.powers.index((0, 1))] = -1.0
        self.constants = nn.Parameter(start.ravel())
        with torch.no_grad():
            self.weights.copy_(model.own_weights())

    def _condition(self, beta: torch.Tensor, h: torch.Tensor) -> np.ndarray:
        given = np.stack([beta.numpy().ravel(), h.numpy().ravel()], axis=1)
        return np.asarray(abs(given[:, None] - self.known).sum(axis=2).argmin(axis=1))

    def slots(self, beta: torch.Tensor, h: torch.Tensor) -> np.ndarray:
        k = len(self.powers)
        return self._condition(beta, h)[:, None] * k + np.arange(k)

    def law(
        self, drive: torch.Tensor, m: torch.Tensor, beta: torch.Tensor, h: torch.Tensor
    ) -> torch.Tensor:
        c = self.constants.detach().view(len(self.known), -1)[self._condition(beta, h)]
        at = dict(zip(self.powers, c.T[:, :, None, None], strict=True))
        value = torch.zeros(())
        for b in range(self.degree, -1, -1):
            inner = at[self.degree - b, b]
            for a in range(self.degree - b - 1, -1, -1):
                inner = inner * drive + at[a, b]
            value = value * m + inner
        return value

    def at_points(self, *given: torch.Tensor) -> torch.Tensor:
        return self.law(*(v[:, None, None] for v in given))[:, 0, 0]

    def slopes(
        self, drive: torch.Tensor, m: torch.Tensor, beta: torch.Tensor, h: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        c = self.constants.detach().view(len(self.known), -1)[self._condition(beta, h)]
        of_drive, of_m = [torch.ones_like(m)], [torch.ones_like(m)]
        for _ in range(self.degree):
            of_drive.append(of_drive[-1] * drive)
            of_m.append(of_m[-1] * m)
        value, by_drive, terms = torch.zeros_like(m), torch.zeros_like(m), []
        for k, (a, b) in enumerate(self.powers):
            terms.append(of_drive[a] * of_m[b] if a and b else of_drive[a] if a else of_m[b])
            value.addcmul_(c[:, k, None, None], terms[-1])
            if a:
                by_drive.addcmul_(a * c[:, k, None, None] * of_m[b], of_drive[a - 1])
        return value, by_drive, terms


@dataclass(frozen=True)
class Cells:
    """Means over the points of cells, (n,) float64: I, m, rate, with beta, h and their number."""

    drive: np.ndarray
    m: np.ndarray
    beta: np.ndarray
    field: np.ndarray
    rate: np.ndarray
    count: np.ndarray


def grouped(
    law: Polynomials, rates: Rates, runs: np.ndarray, bins: int
) -> Iterator[tuple[tuple[float, float], Iterator[tuple[torch.Tensor, ...]]]]:
    """Points of some runs, grouped at each (beta, h) in ``bins`` x ``bins`` cells of (I, m).

    Half of the edges are at equal distances, half at equal shares of the points. For each
    (beta, h) parts of its fields follow: states, instruments, and what the rates are more than
    those of ``law`` (n, M, M); and the cells of all their points (n M M,).
    """
    symbol = law.symbol().detach()

    def parts(places: np.ndarray) -> Iterator[tuple[torch.Tensor, ...]]:
        probe = torch.as_tensor(rates.instrument[places[:: max(1, len(places) // 24)]])
        edges = [_edges(v.numpy(), bins) for v in (law.drive(probe, symbol), probe)]
        for start in range(0, len(places), CHUNK):
            some = places[start : start + CHUNK]
            m, z, r = (
                torch.as_tensor(v[some]) for v in (rates.state, rates.instrument, rates.rate)
            )
            given = conditions(rates, some)
            with torch.no_grad():
                if rates.interval > 0:
                    rest = r - (law.flow(m, *given, rates.interval, 1) - m) / rates.interval
                else:
                    rest = r - law.law(law.drive(m, symbol), m, *given)
            where = np.digitize(law.drive(z, symbol).numpy().ravel(), edges[0]) * bins
            where += np.digitize(z.numpy().ravel(), edges[1])
            yield m, z, rest, torch.as_tensor(where)

    for beta, h in law.known:
        mine = (rates.beta == beta) & (rates.field == h) & np.isin(rates.run, runs)
        if mine.any():
            yield (beta, h), parts(np.flatnonzero(mine))


def cells(law: Polynomials, rates: Rates, runs: np.ndarray, bins: int = BINS) -> Cells:
    """Means over the points of some runs in cells; see :func:`grouped`.

    Their rates are those at their mean I and m, for ``law`` tells how rates bend over a cell.
    """
    symbol = law.symbol().detach()
    columns: list[list[np.ndarray]] = [[] for _ in range(6)]
    for (beta, h), parts in grouped(law, rates, runs, bins):
        sums = np.zeros((4, bins * bins))
        for m, _, rest, where in parts:
            for total, value in zip(sums, (law.drive(m, symbol), m, rest, None), strict=True):
                weight = None if value is None else value.numpy().ravel()
                total += np.bincount(where.numpy(), weight, bins * bins)
        full = sums[3] > 0
        means = sums[:3, full] / sums[3, full]
        at = [means[0], means[1], np.full(full.sum(), beta), np.full(full.sum(), h)]
        values = (*at, law.at_points(*map(torch.as_tensor, at)).numpy() + means[2], sums[3, full])
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return Cells(*(np.concatenate(column) for column in columns))


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    half = bins // 2
    equal = np.linspace(values.min(), values.max(), half + 1)[1:-1]
    shares = np.quantile(values, np.linspace(0, 1, bins - half + 2)[1:-1])
    return np.sort(np.concatenate([equal, shares]))[: bins - 1]


def learn_weak(
    model: Generator,
    rates: Rates,
    *,
    degree: int = 6,
    bins: int = BINS,
    schedule: Schedule | None = None,
    rounds: int = 12,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> Solution:
    """Kernel and network of a generator with the prior ``mlp``; see the module.

    Parameters
    ----------
    degree : of the polynomials that the kernel is found with
    bins : cells along I and along m
    schedule : of AdamW, which 20 steps of L-BFGS follow, up to ``rounds`` times

    Returns
    -------
    What :func:`~mpiflow.learn.generator.fit.solve` found, with the covariance of the kernel.
    """
    law, solution = find_kernel(model, rates, degree, tolerance)
    train_network(model, law, rates, bins, schedule, rounds, seed)
    model.card |= judge(model, rates)
    return solution


def find_kernel(
    model: Generator, rates: Rates, degree: int, tolerance: float
) -> tuple[Polynomials, Solution]:
    """The first step: sets the kernel of the model; the polynomials that it was found with."""
    if model.network is None:
        raise InputError("prior", model.prior, "mlp", "Use solve for the strong ones.")
    law = Polynomials(model, rates, degree)
    solution = solve(law, rates, tolerance=tolerance, judged=False)
    with torch.no_grad():
        model.weights.copy_(law.own_weights())
    p = len(model.weights)
    return law, replace(solution, covariance=solution.covariance[:p, :p])


def train_network(
    model: Generator,
    law: Polynomials,
    rates: Rates,
    bins: int,
    schedule: Schedule | None,
    rounds: int,
    seed: int,
) -> None:
    """The second step: the network on cells, with the kernel as it is."""
    train, held = (cells(law, rates, runs, bins) for runs in split(rates))
    columns = []
    for part in (train, held):
        weight = part.count / part.count.mean()
        whole = (part.drive, part.m, part.beta, part.field, part.rate, weight)
        order = np.argsort(noise.uniforms(seed, "sample", 5, 0, np.arange(len(weight)))[:, 0])
        columns.append([v[order] for v in whole])
    set_units(model, *columns[0][:5])
    model.weights.requires_grad_(False)
    data = [np.concatenate(pair) for pair in zip(*columns, strict=True)]
    schedule = schedule or Schedule(epochs=60, batch=256, validation=0.1)
    share = len(held.count) / len(data[0])
    model.float()
    fit(model, data, seed=seed, schedule=Schedule(**(vars(schedule) | {"validation": share})))
    model.double()
    device = devices.here()
    own, other = ([torch.as_tensor(v).to(device) for v in part] for part in columns)
    with devices.placed(model, device):
        stopped(model, lambda: model(*own).mean(), lambda: model(*other).mean(), rounds)
    model.weights.requires_grad_(True)
    model.eval()


def stopped(
    model: Generator,
    loss: Callable[[], torch.Tensor],
    held_out: Callable[[], torch.Tensor],
    rounds: int,
) -> None:
    """Rounds of 20 steps of L-BFGS, while the loss of what is held out falls; the best is kept."""
    best, state, worse = float("inf"), copy.deepcopy(model.state_dict()), 0
    for _ in range(rounds):
        polish(model, loss, 20)
        with torch.no_grad():
            now = held_out().item()
        worse = 0 if now < 0.98 * best else worse + 1
        if now < best:
            best, state = now, copy.deepcopy(model.state_dict())
        if worse == 3:
            break
    model.load_state_dict(state)


def split(rates: Rates) -> tuple[np.ndarray, np.ndarray]:
    """Runs to train on, and to stop by: one of each four at (beta, h) that other runs have."""
    runs, first = np.unique(rates.run, return_index=True)
    pairs = np.stack([rates.beta[first], rates.field[first]], axis=1)
    seen = [bool((pairs[:i] == pairs[i]).all(axis=1).any()) for i in range(len(runs))]
    again = runs[np.array(seen)]
    out = again[::4] if len(again) else runs[-1:]
    return runs[~np.isin(runs, out)] if len(again) else runs, out
