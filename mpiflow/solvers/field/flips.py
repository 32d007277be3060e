"""Steps of ``cosh``, whose equations are in :mod:`mpiflow.solvers.field.steps`."""

from __future__ import annotations

import math

import numpy as np
import scipy

from mpiflow.core.device import copy_line, kernel
from mpiflow.core.errors import InputError
from mpiflow.core.functions import decay, exp
from mpiflow.core.noise import RNG, Word
from mpiflow.solvers.field.binomials import ROWS, draw_binomials
from mpiflow.solvers.field.steps import TOGETHER, Drive, Noise, Pull, draw
from mpiflow.systems.field_law import Law

#: Spins a block whose flips are counted: three tables have as many entries.
MOST = 2**24
#: The longest step of ``cosh`` times the rate of flips and the slope of x by m, and how much
#: shorter it is where one flip turns all others.
_TURNED, _KICKED = 0.2, 7.0
_Index = np.uint64  # no index is negative: the compiler need not ask


class FlipSteps:
    """Steps of ``cosh``: binomial numbers of flips at tabulated rates.

    Attributes
    ----------
    rng : name of the generator and of what is made of its words, for files
    """

    rng = f"{RNG}, transformed rejection"

    def __init__(self, law: Law, spins: int, own: float) -> None:
        if not 1 <= spins <= MOST:
            allowed = f"at most {math.isqrt(MOST)} sites a side, for cosh"
            raise InputError("block", math.isqrt(spins), allowed, "Use langevin for larger ones.")
        self.spins, self.beta = spins, law.beta
        # A single spin does not feel itself at all; others feel the rest of their block.
        self.own = own / (spins - 1) if spins > 1 else 0.0
        self.alone = own if spins == 1 else 0.0
        m = (2 * np.arange(spins) + 1) / spins - 1.0  # halfway between k and k + 1
        tilt = np.arctanh(m) - law.beta * law.entropy_derivative(m)
        kappa = law.prefactor(m)
        fine = np.isfinite(tilt).all() and np.isfinite(kappa).all() and (kappa > 0).all()
        if not fine:
            allowed = "finite s' and kappa above 0 for |m| < 1"
            raise InputError("law", "its values", allowed, "Look at the law.")
        self.rates = np.stack([kappa, 2 * tilt], axis=1)
        self.log_factorials = scipy.special.gammaln(np.arange(spins + 1) + 1.0)
        self._before = np.empty((2, 0, 0, 0))

    def state(self, m: np.ndarray) -> np.ndarray:
        return np.rint((m + 1) * (self.spins / 2)).astype(np.int32)

    def means(self, state: np.ndarray) -> np.ndarray:
        return state * (2 / self.spins) - 1

    def longest(self, pull: Pull) -> float:
        """The longest step that keeps the stationary law; infinite for free spins.

        Rates are extrapolated, so that errors go by how much they change in a step, and by how
        much one flip changes them, in their own block or in another.
        """
        kappa, tilt = self.rates.T
        m = (2 * np.arange(1, self.spins)) / self.spins - 1
        tilts = abs(np.diff(tilt))
        slope = (tilts * (1 - m * m)).max(initial=0.0) * self.spins / 4
        slope += self.beta * max(abs(pull.low - self.alone), abs(pull.high - self.alone))
        within = 4 * self.beta * abs(self.own) + tilts.max(initial=0.0)
        kick = max(within, 4 * self.beta * pull.other / self.spins)
        cut = max(0.0, 1 - 2 * math.exp(-kick))  # the share of a rate that the cut takes
        rate = float(kappa.max()) * slope * (1 + _KICKED * cut)
        return _TURNED / rate if rate > 0 else math.inf

    def step(self, counts: np.ndarray, drive: Drive, dt: float, noise: Noise) -> None:
        """One step of the counts, in place; counts next to each other in memory."""
        if self._before.shape[1:] != counts.shape:
            self._before = np.empty((2, *counts.shape))  # kept: new memory takes its time
        key, members, step, top = noise
        shape, flat, before = counts.shape[1:], counts.reshape(-1), self._before.reshape(2, -1)
        for half in range(2):
            m = self.means(counts)
            pull = drive(m) - self.alone * m if self.alone else drive(m)
            _flip(
                flat, np.ascontiguousarray(pull).reshape(-1), self.rates, self.beta, self.own,
                dt / 2, half == 1, before, self.log_factorials, key, members,
                step + np.uint64(half), top, shape,
            )  # fmt: skip


@kernel
def _flip(
    counts: np.ndarray,
    drive: np.ndarray,
    rates: np.ndarray,
    beta: float,
    own: float,
    dt: float,
    ahead: bool,
    before: np.ndarray,
    log_factorials: np.ndarray,
    key: np.ndarray,
    members: np.ndarray,
    step: Word,
    top: int,
    shape: tuple[int, int],
) -> None:
    """Every spin for dt at frozen rates; ``ahead`` extrapolates them from those ``before``."""
    words, space = np.empty((4, TOGETHER), np.uint64), np.empty((8 + ROWS, TOGETHER))
    scratch = space[8:]
    old_up, old_down = before[0], before[1]
    for start in range(0, counts.size, TOGETHER):
        end = min(start + TOGETHER, counts.size)
        many, here = end - start, slice(start, end)
        keys, sites = words[0], words[1]
        first, second = words[2][:many], words[3][:many]
        up, down, a, b = space[0][:many], space[1][:many], space[2][:many], space[3][:many]
        x_up, x_down, gain, loss = space[4], space[5], space[6][:many], space[7][:many]
        _rates_of(counts[here], drive[here], rates, beta, own, up, down, x_up, x_down, a, b)
        if ahead:
            _extrapolate(old_up[here], a)
            _extrapolate(old_down[here], b)
        else:
            copy_line(old_up[here], a)
            copy_line(old_down[here], b)
        for k in range(many):
            share = dt * decay((a[k] + b[k]) * dt)
            a[k] *= share
            b[k] *= share
        draw(key, members, step, top, shape, start, keys, sites, first, second)
        more = key[0], keys, step, sites
        draw_binomials(up, a, first, *more, np.uint64(0), log_factorials, scratch, gain)
        draw_binomials(down, b, second, *more, np.uint64(1), log_factorials, scratch, loss)
        new = counts[here]
        for k in range(many):
            new[k] = np.int32(down[k] + gain[k] - loss[k])


@kernel
def _rates_of(
    counts: np.ndarray,
    drive: np.ndarray,
    rates: np.ndarray,
    beta: float,
    own: float,
    up: np.ndarray,
    down: np.ndarray,
    x_up: np.ndarray,
    x_down: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
) -> None:
    """Numbers of spins that may go up and down, and how fast each of them does."""
    spins = rates.shape[0]
    for i in range(counts.size):
        k = int(counts[i])
        over, under = _Index(min(k, spins - 1)), _Index(max(k - 1, 0))  # the jumps from k
        a[i], x_up[i] = rates[over, 0], rates[over, 1]
        b[i], x_down[i] = rates[under, 0], rates[under, 1]
    for i in range(counts.size):
        up_now, u = np.float64(counts[i]), drive[i]
        part = 2.0 * up_now / spins  # 1 + m
        up[i], down[i] = spins - up_now, up_now
        x_up[i] += 2.0 * beta * (u + own * part)
        x_down[i] += 2.0 * beta * (u - own * (2.0 - part))
    for i in range(counts.size):
        a[i] /= 1.0 + exp(-x_up[i])
        b[i] /= 1.0 + exp(x_down[i])


@kernel
def _extrapolate(before: np.ndarray, now: np.ndarray) -> None:
    for k in range(now.size):
        now[k] = max(0.0, 2.0 * now[k] - before[k])
