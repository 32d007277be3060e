r"""Kernel and network of the weak prior learned together, by loss (19) on all points.

The two steps of :mod:`mpiflow.learn.generator.law` come first. Their polynomials :math:`F_0`, with
the kernel :math:`w_0`, and their cells of (I, m) make the whole of the loss cheap: what the rates
are more than :math:`F_0` is small, and within a cell linear in :math:`x = (\varphi_1 * m, \ldots,
\varphi_P * m, m)`, so that the sum over the n points of a cell needs their means and covariances
only. With :math:`e = r - F_0`, D the difference of F and :math:`F_0` at the mean x, and v that of
their slopes :math:`(w\,\partial_I F, \partial_m F)`,

.. math:: \sum (F - r)^2 = n\,\{(D - \bar e)^2 + v^T C_{xx} v - 2\,v^T C_{xe}\} + \ldots

holds the weights w and the network alike, and has as many terms as there are cells, for 1e4 points
or 1e8. The means tell F, the covariances its slopes and the kernel: points of one cell share I
and m, not the fields that I is from.

**Noise.** Errors of m add their own covariance to :math:`C_{xx}`, and the least square is
a wrong kernel with a flat F. With two readings a, b, whose errors are independent of each other and
of those of r, the square is replaced by the product :math:`(F(a) - r)(F(b) - r)`:
:math:`C_{xx}` is the covariance of a with b, :math:`C_{xe}` that of b with e, and cells are of b.
The expectation is that without noise, but for the curvature of F over the size of the errors. A
product has no lower bound: cells must have many points, and runs that are held out say when
to stop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mpiflow.learn.generator.data import Rates
from mpiflow.learn.generator.fit import Solution, features
from mpiflow.learn.generator.goodness import judge
from mpiflow.learn.generator.law import (
    BINS,
    Polynomials,
    find_kernel,
    grouped,
    split,
    stopped,
    train_network,
)
from mpiflow.learn.generator.model import Generator
from mpiflow.learn.training import Schedule

#: Cells along I and m, fewer than those of means: each has (P + 1)^2 covariances.
CELLS = 24
#: Slopes are differences over this share of the spread of I and m.
STEP = 1e-2


@dataclass(frozen=True)
class Moments:
    """Of the points of cells, float64; see the module.

    Attributes
    ----------
    mean : (n, P + 1), of x
    rest : (n,), of e
    beta, field, count : (n,), conditions and numbers of points
    within : (n, P + 1, P + 1), covariances of x, between the two readings, symmetric
    along : (n, P + 1), those of x and e
    """

    mean: torch.Tensor
    rest: torch.Tensor
    beta: torch.Tensor
    field: torch.Tensor
    count: torch.Tensor
    within: torch.Tensor
    along: torch.Tensor


def learn_joint(
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
    """Kernel and network of a generator with the prior ``mlp`` together; see the module.

    Parameters and what is returned are those of :func:`~mpiflow.learn.generator.law.learn_weak`,
    which it begins with; the covariance is that of its kernel.
    """
    law, solution = find_kernel(model, rates, degree, tolerance)
    train_network(model, law, rates, bins, schedule, rounds, seed)
    train_together(model, law, rates, rounds)
    model.card |= judge(model, rates)
    return solution


def train_together(
    model: Generator, law: Polynomials, rates: Rates, rounds: int = 12, bins: int = CELLS
) -> None:
    """Minimise the loss of the module from what the two steps found."""
    own, other = (Excess(law, moments(law, rates, runs, bins)) for runs in split(rates))
    stopped(model, lambda: own(model), lambda: other(model), rounds)
    with torch.no_grad():
        model.weights.copy_(model.own_weights())
    model.eval()


def moments(law: Polynomials, rates: Rates, runs: np.ndarray, bins: int = CELLS) -> Moments:
    """Of the points of some runs, in cells by the kernel of ``law``."""
    p = len(law.weights)
    out: list[list[np.ndarray]] = [[] for _ in range(7)]
    for (beta, h), parts in grouped(law, rates, runs, bins):
        first, other = np.zeros((bins * bins, p + 2)), np.zeros((bins * bins, p + 1))
        product, count = np.zeros((bins * bins, p + 1, p + 2)), np.zeros(bins * bins)
        for m, z, rest, where in parts:
            x = np.concatenate([_columns(law, m.numpy()), rest.numpy().reshape(1, -1)]).T
            y = x[:, :-1] if z is m else _columns(law, z.numpy()).T
            order = np.argsort(where.numpy(), kind="stable")
            x, y = x[order], y[order]
            numbers = np.bincount(where.numpy(), minlength=bins * bins)
            ends = np.cumsum(numbers)
            for cell in np.flatnonzero(numbers):
                mine = slice(ends[cell] - numbers[cell], ends[cell])
                product[cell] += y[mine].T @ x[mine]
                first[cell] += x[mine].sum(axis=0)
                other[cell] += y[mine].sum(axis=0)
            count += numbers
        full = count > 0
        n = count[full]
        mean, of_other = first[full] / n[:, None], other[full] / n[:, None]
        covariance = product[full] / n[:, None, None] - of_other[:, :, None] * mean[:, None]
        square = covariance[:, :, :-1]
        values = [mean[:, :-1], mean[:, -1], np.full(len(n), beta), np.full(len(n), h), n]
        values += [0.5 * (square + square.swapaxes(1, 2)), covariance[:, :, -1]]
        for column, value in zip(out, values, strict=True):
            column.append(value)
    return Moments(*(torch.as_tensor(np.concatenate(column)) for column in out))


def _columns(law: Polynomials, m: np.ndarray) -> np.ndarray:
    """x at all points of fields (n, M, M): (P + 1, n M M)."""
    own = features(law, m).swapaxes(0, 1).reshape(len(law.weights), -1)
    return np.concatenate([own, m.reshape(1, -1)])


class Excess:
    """Loss (19) a point in cells, less what does not depend on the model."""

    def __init__(self, law: Polynomials, cells: Moments) -> None:
        self.cells = cells
        self.share = cells.count / cells.count.sum()
        drive = cells.mean[:, :-1] @ law.own_weights().detach()
        self.steps = [STEP * float(v.std()) for v in (drive, cells.mean[:, -1])]
        with torch.no_grad():
            self.value, self.slopes = self._at(law)

    def _at(self, model: Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """F and its slopes by x at the means of cells, (n,) and (n, P + 1)."""
        own, cells = model.own_weights(), self.cells
        drive, m = cells.mean[:, :-1] @ own, cells.mean[:, -1]
        by_drive, by_m = self.steps
        of_drive = [drive + by_drive, drive - by_drive, drive, drive]
        of_m = [m, m, m + by_m, m - by_m]
        both = (torch.cat(v) for v in (of_drive, of_m, 4 * [cells.beta], 4 * [cells.field]))
        up, down, above, below = model.at_points(*both).view(4, -1)
        slopes = (up - down)[:, None] / (2 * by_drive) * own, (above - below)[:, None] / (2 * by_m)
        return 0.25 * (up + down + above + below), torch.cat(slopes, dim=1)

    def __call__(self, model: Generator) -> torch.Tensor:
        """In units of the rates' variance."""
        value, slopes = self._at(model)
        v, cells = slopes - self.slopes, self.cells
        within = ((cells.within @ v[:, :, None])[:, :, 0] - 2 * cells.along) * v
        losses = (value - self.value - cells.rest) ** 2 + within.sum(dim=1)
        return (self.share * losses).sum() / model.unit[0] ** 2
