"""Steps of ``cosh``, whose equations are in :mod:`mpiflow.solvers.field.steps`."""

from __future__ import annotations

import math

import numpy as np
import scipy

from mpiflow.core.device import inlined, kernel
from mpiflow.core.errors import InputError
from mpiflow.core.functions import decay, exp
from mpiflow.core.noise import RNG, Word
from mpiflow.solvers.field.binomials import Space, draw_binomials, space
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
        self._before = np.empty(0), np.empty(0)
        self._words = tuple(np.empty(TOGETHER, np.uint64) for _ in range(4))
        self._lines = tuple(np.empty(TOGETHER) for _ in range(8))
        self._space = space(TOGETHER)

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
        flat, shape = counts.reshape(-1), counts.shape[1:]
        if self._before[0].size != flat.size:  # kept: new memory takes its time
            self._before = np.empty(flat.size), np.empty(flat.size)
        key, members, step, top = noise
        for half in range(2):
            m = self.means(counts)
            pull = drive(m) - self.alone * m if self.alone else drive(m)
            _flip(
                flat, np.ascontiguousarray(pull).reshape(-1), self.rates, self.beta, self.own,
                dt / 2, half == 1, *self._before, self.log_factorials, key, members,
                step + np.uint64(half), top, shape, self._words, self._lines, self._space,
            )  # fmt: skip


# -- rules: the same on the CPU and on CUDA ----------------------------------------------------


@inlined
def felt(down, u, spins, beta, own):  # type: ignore[no-untyped-def]
    """What the pull on a block adds to 2 x of a flip up and of one down; ``down`` are up now."""
    part = 2.0 * down / spins  # 1 + m
    return 2.0 * beta * (u + own * part), 2.0 * beta * (u - own * (2.0 - part))


@inlined
def share_of(a, b, dt):  # type: ignore[no-untyped-def]
    """What rates are multiplied with, of two that are frozen for dt, to be chances."""
    return dt * decay((a + b) * dt)


@inlined
def ahead_of(now, before):  # type: ignore[no-untyped-def]
    """A rate extrapolated to the end of a step, cut at 0."""
    return max(0.0, 2.0 * now - before)


# -- CPU ----------------------------------------------------------------------------------------


@kernel
def _flip(
    counts: np.ndarray,
    drive: np.ndarray,
    rates: np.ndarray,
    beta: float,
    own: float,
    dt: float,
    ahead: bool,
    old_up: np.ndarray,
    old_down: np.ndarray,
    log_factorials: np.ndarray,
    key: np.ndarray,
    members: np.ndarray,
    step: Word,
    top: int,
    shape: tuple[int, int],
    words: tuple[np.ndarray, ...],
    lines: tuple[np.ndarray, ...],
    space: Space,
) -> None:
    """Every spin for dt at frozen rates; ``ahead`` extrapolates them from the old ones."""
    keys, sites, first, second = words
    up, down, a, b, x_up, x_down, gain, loss = lines
    for start in range(0, counts.size, TOGETHER):
        many = min(TOGETHER, counts.size - start)
        _rates_of(start, many, counts, drive, rates, beta, own, up, down, x_up, x_down, a, b)
        _extrapolate(start, many, ahead, old_up, a)
        _extrapolate(start, many, ahead, old_down, b)
        for k in range(many):
            share = share_of(a[k], b[k], dt)
            a[k] *= share
            b[k] *= share
        draw(key, members, step, top, shape, start, many, keys, sites, first, second)
        for part in range(2):
            n, p = (down, b) if part else (up, a)
            word, moved = (second, loss) if part else (first, gain)
            draw_binomials(
                many, n, p, word, key[0], keys, step, sites, np.uint64(part), log_factorials, space,
                moved,
            )  # fmt: skip
        at = _Index(start)
        for k in range(many):
            counts[at + _Index(k)] = np.int32(down[k] + gain[k] - loss[k])


@kernel
def _rates_of(
    start: int,
    many: int,
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
    spins, at = rates.shape[0], _Index(start)
    for i in range(many):
        k = int(counts[at + _Index(i)])
        over, under = _Index(min(k, spins - 1)), _Index(max(k - 1, 0))  # the jumps from k
        a[i], x_up[i] = rates[over, 0], rates[over, 1]
        b[i], x_down[i] = rates[under, 0], rates[under, 1]
        down[i] = k
    for i in range(many):
        more, less = felt(down[i], drive[at + _Index(i)], spins, beta, own)
        up[i] = spins - down[i]
        x_up[i] += more
        x_down[i] += less
    for i in range(many):
        a[i] /= 1.0 + exp(-x_up[i])
        b[i] /= 1.0 + exp(x_down[i])


@kernel
def _extrapolate(start: int, many: int, ahead: bool, before: np.ndarray, now: np.ndarray) -> None:
    """Rates ahead of now from those before; without ``ahead``, keep them for that."""
    at = _Index(start)
    if ahead:
        for k in range(many):
            now[k] = ahead_of(now[k], before[at + _Index(k)])
    else:
        for k in range(many):
            before[at + _Index(k)] = now[k]
