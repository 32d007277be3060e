r"""The loss of an SDE of two networks and its gradient, compiled; equations as of :mod:`.sde`.

With rate a and Cholesky factor L of a state, both in units of std and noise, and for each of its P
pairs :math:`w = L^{-1} (\Delta - a\,\delta t) / \sqrt{\lambda\,\delta t}` and
:math:`v = L^{-T} w`, the loss and its derivatives are

.. math:: \frac1P \sum_p |w|^2 + 2 \sum_i \log L_{ii}, \qquad
          \frac{\partial}{\partial a} = -\frac2P \sum_p \sqrt{\delta t / \lambda}\; v, \qquad
          \frac{\partial}{\partial L} = -\frac2P \sum_p v\,w^T + 2\,\mathrm{diag}(1 / L_{ii}).

States go through in blocks, with a lane for each: sums over them have a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.functions import exp, log
from mpiflow.learn.layers import Passes

#: States side by side.
LANES = 128
#: States that go through the networks together where no gradient is wanted.
ROWS = 4096
#: Smallest diagonal of the Cholesky factor, in units of the data's own noise.
FLOOR = 1e-3
#: softplus(SHIFT) = 1: the untrained model has the data's own noise.
SHIFT = 0.5413


class Pairs(NamedTuple):
    """Training data: states of P pairs each, float32.

    Attributes
    ----------
    z : (N, d) states
    increments : (N, P, d)
    dt : (N, P)
    context : (N, c), c may be 0
    """

    z: np.ndarray
    increments: np.ndarray
    dt: np.ndarray
    context: np.ndarray


class Scales(NamedTuple):
    """Units, float64.

    Attributes
    ----------
    mean, std : (d + c,) of the states and of the context
    noise : (d,)
    factor : lambda
    """

    mean: np.ndarray
    std: np.ndarray
    noise: np.ndarray
    factor: float


@kernel
def diagonal_of(entries: np.ndarray, factor: np.ndarray, slope: np.ndarray, count: int) -> None:
    """softplus(y + SHIFT) + FLOOR of the entries y, and its slope."""
    for s in range(count):
        y = entries[s] + SHIFT
        e = exp(-abs(y))
        factor[s] = max(y, 0.0) + log(1.0 + e) + FLOOR
        slope[s] = (1.0 if y >= 0.0 else e) / (1.0 + e)


@kernel
def inputs_of(pairs: Pairs, scales: Scales, rows: np.ndarray, x: np.ndarray) -> None:
    """Standardised states and contexts of some rows, (n, d + c)."""
    d = pairs.z.shape[1]
    for r in range(rows.size):
        for k in range(x.shape[1]):
            value = pairs.z[rows[r], k] if k < d else pairs.context[rows[r], k - d]
            x[r, k] = (value - scales.mean[k]) / scales.std[k]


@kernel
def _whiten(
    pairs: Pairs, scales: Scales, rows: np.ndarray, p: int, rate: np.ndarray, factor: np.ndarray,
    inverse: np.ndarray, time: np.ndarray, w: np.ndarray,
) -> None:  # fmt: skip
    """w of pair p of each state, and ``time``, the root of its dt / lambda."""
    count, d = rows.size, w.shape[0]
    for s in range(count):
        time[s] = pairs.dt[rows[s], p]
    for i in range(d):
        one, unit = w[i], scales.noise[i] * np.sqrt(scales.factor)
        share = 1.0 / (unit * scales.std[i])
        for s in range(count):
            one[s] = pairs.increments[rows[s], p, i] * share
        a = rate[i]
        for s in range(count):
            one[s] = (one[s] - a[s] * time[s] / unit) / np.sqrt(time[s])
    for s in range(count):
        time[s] = np.sqrt(time[s] / scales.factor)
    e = 0
    for i in range(d):
        one = w[i]
        for j in range(i):
            entry, other = factor[e], w[j]
            for s in range(count):
                one[s] -= entry[s] * other[s]
            e += 1
        top = inverse[i]
        for s in range(count):
            one[s] *= top[s]
        e += 1


@kernel
def _derive(
    w: np.ndarray, v: np.ndarray, factor: np.ndarray, inverse: np.ndarray, time: np.ndarray,
    noise: np.ndarray, by_rate: np.ndarray, by_factor: np.ndarray, count: int,
) -> None:  # fmt: skip
    """Add what a pair of each state gives to the derivatives, without -2 / P."""
    d = w.shape[0]
    for i in range(d - 1, -1, -1):
        one, top = v[i], inverse[i]
        for s in range(count):
            one[s] = w[i, s]
        for j in range(i + 1, d):
            entry, other = factor[j * (j + 1) // 2 + i], v[j]
            for s in range(count):
                one[s] -= entry[s] * other[s]
        for s in range(count):
            one[s] *= top[s]
    e = 0
    for i in range(d):
        one, sums, unit = v[i], by_rate[i], noise[i]
        for s in range(count):
            sums[s] += one[s] * time[s] / unit
        for j in range(i + 1):
            both, other = by_factor[e], w[j]
            for s in range(count):
                both[s] += one[s] * other[s]
            e += 1


@kernel
def _loss_of_block(
    pairs: Pairs, scales: Scales, rows: np.ndarray, rate: np.ndarray, entries: np.ndarray,
    by_rate: np.ndarray, by_entries: np.ndarray, space: np.ndarray, derive: bool,
) -> float:  # fmt: skip
    """The sum of the losses of some states, and its derivatives; all arrays have lanes of states.

    Parameters
    ----------
    rate, by_rate : (d, LANES)
    entries, by_entries : (d (d + 1) / 2, LANES)
    space : (4 d + 2, LANES)
    """
    count, d, pairs_of_state = rows.size, rate.shape[0], pairs.dt.shape[1]
    w, v, inverse, slope = space[:d], space[d : 2 * d], space[2 * d : 3 * d], space[3 * d : 4 * d]
    time, total = space[4 * d], space[4 * d + 1]
    by_rate[:] = 0.0
    by_entries[:] = 0.0
    total[:] = 0.0
    e = -1
    for i in range(d):
        e += i + 1
        top = inverse[i]
        diagonal_of(entries[e], top, slope[i], count)
        for s in range(count):
            total[s] += 2.0 * log(top[s])
            top[s] = 1.0 / top[s]
    for p in range(pairs_of_state):
        _whiten(pairs, scales, rows, p, rate, entries, inverse, time, w)
        for i in range(d):
            one = w[i]
            for s in range(count):
                total[s] += one[s] * one[s] / pairs_of_state
        if derive:
            _derive(w, v, entries, inverse, time, scales.noise, by_rate, by_entries, count)
    if derive:
        share, e = -2.0 / pairs_of_state, 0
        for i in range(d):
            sums, top, slopes = by_rate[i], inverse[i], slope[i]
            for s in range(count):
                sums[s] *= share
            for _ in range(i + 1):
                both = by_entries[e]
                for s in range(count):
                    both[s] *= share
                e += 1
            both = by_entries[e - 1]
            for s in range(count):
                both[s] = (both[s] + 2.0 * top[s]) * slopes[s]
    loss = 0.0
    for s in range(count):
        loss += total[s]
    return loss


@kernel
def losses(
    pairs: Pairs, scales: Scales, rows: np.ndarray, rate: np.ndarray, entries: np.ndarray,
    share: float, by_rate: np.ndarray, by_entries: np.ndarray, space: np.ndarray,
) -> float:  # fmt: skip
    """The sum of the losses of some states, and the gradient of ``share`` times it.

    Parameters
    ----------
    rows : (n,) int64
    rate, entries : (n, d) and (n, d (d + 1) / 2) float32, what the networks say
    by_rate, by_entries : float32, as these, or (0, .) where no gradient is wanted
    space : (lanes_size(d), LANES)
    """
    d, e = rate.shape[1], entries.shape[1]
    a, by_a = space[:d], space[d : 2 * d]
    b, by_b = space[2 * d : 2 * d + e], space[2 * d + e : 2 * d + 2 * e]
    rest, derive = space[2 * d + 2 * e :], by_rate.shape[0] > 0
    loss = 0.0
    for first in range(0, rows.size, LANES):
        some = rows[first : first + LANES]
        for s in range(some.size):
            for i in range(d):
                a[i, s] = rate[first + s, i]
            for i in range(e):
                b[i, s] = entries[first + s, i]
        loss += _loss_of_block(pairs, scales, some, a, b, by_a, by_b, rest, derive)
        if derive:
            for s in range(some.size):
                for i in range(d):
                    by_rate[first + s, i] = share * by_a[i, s]
                for i in range(e):
                    by_entries[first + s, i] = share * by_b[i, s]
    return loss


def lanes_size(dim: int) -> int:
    """Rows of the space of :func:`losses`."""
    return 2 * dim + dim * (dim + 1) + 4 * dim + 2


class PairLoss:
    """The loss of two networks on training data, and its gradient.

    Parameters
    ----------
    drift, sigma : sizes of the networks, (L + 1,) int64
    """

    def __init__(self, drift: np.ndarray, sigma: np.ndarray, pairs: Pairs, scales: Scales) -> None:
        self.pairs, self.scales = pairs, scales
        self._drift, self._sigma = Passes(drift), Passes(sigma)
        self._space = np.zeros((lanes_size(pairs.z.shape[1]), LANES))
        self._none = np.empty((0, 0), np.float32)

    def _said(
        self, rows: np.ndarray, parameters: np.ndarray, *, keep: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """The outputs of the two networks."""
        x = np.empty((len(rows), int(self._drift.sizes[0])), np.float32)
        inputs_of(self.pairs, self.scales, rows, x)
        between = self._drift.parameters
        return (
            self._drift.forward(parameters[:between], x, keep=keep),
            self._sigma.forward(parameters[between:], x, keep=keep),
        )

    def total(self, rows: np.ndarray, parameters: np.ndarray) -> float:
        """The sum of the losses of states."""
        loss = 0.0
        for first in range(0, len(rows), ROWS):
            some = rows[first : first + ROWS]
            said = self._said(some, parameters, keep=False)
            loss += losses(
                self.pairs, self.scales, some, *said, 0.0, self._none, self._none, self._space
            )
        return loss

    def gradient(
        self, rows: np.ndarray, parameters: np.ndarray, share: float, gradient: np.ndarray
    ) -> float:
        """The sum of the losses of states; puts the gradient of ``share`` times it in its place.

        Parameters
        ----------
        rows : (n,) int64
        parameters, gradient : float32, flat, those of the drift first
        """
        said = self._said(rows, parameters, keep=True)
        by_rate, by_entries = (np.empty_like(a) for a in said)
        loss = losses(
            self.pairs, self.scales, rows, *said, share, by_rate, by_entries, self._space
        )  # fmt: skip
        between = self._drift.parameters
        self._drift.backward(by_rate, gradient[:between])
        self._sigma.backward(by_entries, gradient[between:])
        return float(loss)
