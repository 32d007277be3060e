r"""One step of a field of block means, by either structure of :mod:`mpiflow.systems.field_law`.

Blocks of N spins with means m feel u = J*m + h, given by ``drive``.

``langevin``
    In the coordinate z with K = beta c (1 - z^2) (dm/dz)^2 the noise alone is Brownian motion on
    a sphere: z is the height of the point, c / N the rate. Turning the point by a Gaussian angle
    leaves the sphere's measure as it is, however long the step; no boundary is ever met, so
    \|m\| < 1 needs no clipping. For K = beta (1 - m^2), z = m and c = 1.
    A step is half a step of noise, a step of the drift

    .. math:: \frac{d}{dt} \operatorname{artanh} z = \beta c \Big[ -\mu \frac{dm}{dz} +
              \frac{1}{\beta N} \frac{d}{dz} \ln \frac{dm}{dz} \Big]

    by the explicit midpoint rule, J*m at both of its stages, and half a step of noise. Of
    second order in law at a time, and of the stationary law: each part alone keeps what it
    should, both together have variances that are :math:`(\lambda \tau)^2 / 2` too large, lambda
    the rate at which z relaxes. ``longest`` bounds tau by it.

``cosh``
    Every block counts its k spins that are up. Each spin is a chain of two states,

    .. math:: a = \kappa\, \frac{1 + \tanh x_+}2 \text{ (up)}, \quad
              b = \kappa\, \frac{1 - \tanh x_-}2 \text{ (down)}, \quad
              x = \beta u + \operatorname{artanh} m - \beta s'(m),

    kappa and artanh m - beta s' halfway between the two m of the jump, and J*m without the
    spin that flips: :math:`x_\pm` have :math:`u \pm J_0 (1 \pm m) / (N - 1)`, J_0 the
    block's coupling to itself. Then what goes up and what comes down is in detailed balance with

    .. math:: \prod_i \binom{N}{k_i} \exp \Big( \beta N \big[ \tfrac12 m_i (J * m)_i + h_i m_i
              + \tfrac{J_0}{2} \tfrac{m_i^2}{N - 1} \big] + 2 \sum_{j < k_i} r_{j + 1/2} \Big),
              \quad r = \operatorname{artanh} m - \beta s',

    which has the entropy of N spins, not of infinitely many. Drift and variance are those of
    :mod:`mpiflow.systems.field_law` up to (J_0 / N)^2, and up to slopes of kappa and r over N.
    Steps as ``midpoint`` of :mod:`mpiflow.solvers.kac.steps`: half a step at frozen rates, half a
    step at rates extrapolated to its end, cut at 0. Second order in law, and exact for spins
    without coupling; m stays a multiple of 2 / N. Where one flip changes rates by a factor of two,
    the cut makes it first order: ``longest`` bounds the step by the coupling and by that factor.

How long a step may be is a matter of the stationary law. The bounds below were chosen so that
variances of blocks are within 1 % of those of the law above, and fourth moments within 2 %, for
N = 1 to 64, T = 0.05 to 5, couplings of either sign and fields: by the exact stationary laws of
the steps, which ``tests/solvers/test_field_stationary.py`` computes for the longest ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy

from mpiflow.core.device import kernel, rule
from mpiflow.core.errors import InputError
from mpiflow.core.noise import (
    Word,
    normal_radius,
    site_counter,
    threefry,
    to_unit,
    uniform_angle,
)
from mpiflow.systems.field_law import Law

#: u of block means, both (B, n, nx).
Drive = Callable[[np.ndarray], np.ndarray]
#: Key, members, half step, first row.
Noise = tuple[np.ndarray, np.ndarray, np.uint64, int]

#: Half the width of a chart in artanh z, its intervals, and points of the integral behind it.
_EDGE, _INTERVALS, _POINTS = 8.0, 4096, 8193
#: The largest |z|; artanh of it is 18.7.
_TOP = 1.0 - 2.0**-53
#: Spins a block whose flips are counted: three tables have as many entries.
MOST = 2**24
#: The longest step of ``langevin`` times the rate at which z relaxes. Errors of variances are
#: half its square, 0.7 %.
_RELAXED = 0.12
#: The longest step of ``cosh`` times the rate of flips and the slope of x by m, and how much
#: shorter it is where one flip turns all others.
_TURNED, _KICKED = 0.2, 7.0


@dataclass(frozen=True)
class Pull:
    r"""Bounds of what blocks feel from each other and from outside.

    Attributes
    ----------
    low, high : of :math:`\hat J(k)`
    own : J_0, the coupling of a block to itself
    other : the largest \|J\| between two blocks
    field : the largest \|h\|
    """

    low: float
    high: float
    own: float
    other: float
    field: float

    @property
    def strongest(self) -> float:
        """Of J*m, for m of a single wave."""
        return max(abs(self.low), abs(self.high))


# -- langevin --------------------------------------------------------------------------------


class LangevinSteps:
    """Steps of ``langevin``: tables of the drift over artanh z, and turns of the sphere.

    With phi = asin m, Phi = asin z and K = beta (1 - m^2) g: d phi / d Phi = sqrt(g / c), so
    1 / sqrt(c) is the mean of 1 / sqrt(g) over phi. dm / dz = sqrt(g / c) cos phi / cos Phi is
    positive and finite at the ends, g / c.
    """

    def __init__(self, law: Law, spins: int) -> None:
        end = np.pi / 2
        phi = np.linspace(-end, end, _POINTS)
        m = np.sin(np.clip(phi, -end + 1e-4, end - 1e-4))
        ratio = law.mobility(m) / (law.beta * (1 - m * m))
        if not (np.isfinite(ratio).all() and (ratio > 0).all()):
            raise InputError("law", "its mobility", "K above 0 for |m| < 1", "Look at the law.")
        self._path = scipy.interpolate.CubicSpline(phi, ratio**-0.5).antiderivative()
        self._root = np.pi / float(self._path(end))  # of c
        turned = self._turned(phi)
        slope = np.sqrt(ratio) / self._root
        weight = slope**2  # dm / dz, at the ends
        weight[1:-1] = slope[1:-1] * np.cos(phi[1:-1]) / np.cos(turned[1:-1])
        log_weight = scipy.interpolate.CubicSpline(turned, np.log(weight), bc_type="clamped")
        b = _EDGE * (2 * np.arange(-1, _INTERVALS + 2) / _INTERVALS - 1)
        at = np.arcsin(np.tanh(b))
        m = np.sin(scipy.interpolate.CubicSpline(turned, phi)(at))
        push = law.beta * self._root**2 * np.exp(log_weight(at))
        self.rate = self._root**2 / spins
        ito = self.rate * log_weight(at, 1) * np.cosh(b)
        #: Of d artanh(z) / dt = A + B u, and m = z + D: A, B, D.
        self.table = np.stack(
            [ito - push * law.entropy_derivative(m), push, m - np.tanh(b)], axis=1
        )
        if not np.isfinite(self.table).all():
            raise InputError("law", "its s'", "finite for |m| < 1", "Look at the law.")

    def _turned(self, phi: np.ndarray) -> np.ndarray:
        """Phi of phi."""
        return self._root * self._path(phi) - np.pi / 2

    def state(self, m: np.ndarray) -> np.ndarray:
        return np.clip(np.sin(self._turned(np.arcsin(m))), -_TOP, _TOP)

    def means(self, state: np.ndarray) -> np.ndarray:
        b, m = np.empty_like(state), np.empty_like(state)
        _enter(state, self.table, b, m)
        return m

    def longest(self, pull: Pull) -> float:
        """The longest step that keeps the stationary law.

        It goes by the largest relaxation rate of z, minus the slope of its drift, as a root mean
        square over the stationary law of one block in a field u, for u as strong as it can be.
        Near the ends of z at low temperatures that is :math:`2 \\beta u` and more, although
        artanh z relaxes at the rate 1.
        """
        a, by, excess = self.table.T
        apart = 2 * _EDGE / _INTERVALS
        b = apart * np.arange(-1, _INTERVALS + 2) - _EDGE
        z, slope_of_z = np.tanh(b), np.cosh(b) ** -2.0
        slope_of_m = slope_of_z + np.gradient(excess, apart)
        bend, bend_by = np.gradient(a, apart), np.gradient(by, apart)
        largest, strongest = 0.0, pull.strongest + pull.field
        for u in np.linspace(-strongest, strongest, 9):
            force = a + by * u
            # ln of the stationary density of z has the slope force / rate.
            rise = force * slope_of_z / self.rate
            log_density = np.append(0.0, np.cumsum(rise[1:] + rise[:-1]) * (apart / 2))
            weight = np.exp(log_density - log_density.max()) * slope_of_z
            relaxed = 2 * z * force - (bend + bend_by * u + by * slope_of_m * pull.low)
            largest = max(largest, float(weight @ relaxed**2 / weight.sum()))
        return _RELAXED / math.sqrt(largest)

    def step(self, z: np.ndarray, drive: Drive, dt: float, noise: Noise) -> None:
        """One step of z, in place."""
        t = 0.5 * dt * self.rate
        # Spherical harmonics decay by exp(-l (l + 1) t) up to t^3: the sphere's curvature makes
        # the last factor.
        width = math.sqrt(2 * t * (1 - min(t, 1.0) / 3))
        b, m, middle = np.empty_like(z), np.empty_like(z), np.empty_like(z)
        key, members, step, top = noise
        _turn(z, width, key, members, step, top)
        _enter(z, self.table, b, m)
        _half_way(b, drive(m), self.table, dt, middle, m)
        _arrive(b, middle, drive(m), self.table, dt, z)
        _turn(z, width, key, members, step + np.uint64(1), top)


@rule
def _look_up(table: np.ndarray, b: float) -> tuple[float, float, float]:
    """A, B and D at b by cubics through four points; beyond the table as they go on."""
    inside = min(max(b, -_EDGE), _EDGE)
    place = (inside + _EDGE) * (_INTERVALS / (2 * _EDGE))
    i = min(int(place), _INTERVALS - 1)
    t = place - i
    t2, t3 = t * t, t * t * t
    w0, w1 = -0.5 * t3 + t2 - 0.5 * t, 1.5 * t3 - 2.5 * t2 + 1.0
    w2, w3 = -1.5 * t3 + 2.0 * t2 + 0.5 * t, 0.5 * t3 - 0.5 * t2
    a = w0 * table[i, 0] + w1 * table[i + 1, 0] + w2 * table[i + 2, 0] + w3 * table[i + 3, 0]
    by = w0 * table[i, 1] + w1 * table[i + 1, 1] + w2 * table[i + 2, 1] + w3 * table[i + 3, 1]
    d = w0 * table[i, 2] + w1 * table[i + 1, 2] + w2 * table[i + 2, 2] + w3 * table[i + 3, 2]
    if b != inside:
        a += (table[i + 2, 0] - table[i + 1, 0]) * (_INTERVALS / (2 * _EDGE)) * (b - inside)
        d *= np.exp(-2.0 * abs(b - inside))  # as 1 - z^2
    return a, by, d


@kernel
def _turn(
    z: np.ndarray, width: float, key: np.ndarray, members: np.ndarray, step: Word, top: int
) -> None:
    """Turn each point by an angle that is Gaussian along both axes of its tangent plane."""
    for i in range(z.shape[0]):
        for y in range(z.shape[1]):
            for x in range(z.shape[2]):
                w0, w1 = threefry(key[0], key[1] + members[i], step, site_counter(top + y, x))
                angle = width * normal_radius(w0)
                old = z[i, y, x]
                new = old * np.cos(angle)
                aside = np.sqrt((1.0 - old) * (1.0 + old)) * np.sin(angle)
                new += aside * np.cos(uniform_angle(w1))
                z[i, y, x] = min(max(new, -_TOP), _TOP)  # rounding


@kernel
def _enter(z: np.ndarray, table: np.ndarray, b: np.ndarray, m: np.ndarray) -> None:
    """b = artanh z, and m."""
    for i in range(z.shape[0]):
        for y in range(z.shape[1]):
            for x in range(z.shape[2]):
                at = np.arctanh(z[i, y, x])
                b[i, y, x] = at
                mean = z[i, y, x] + _look_up(table, at)[2]
                m[i, y, x] = min(max(mean, -1.0), 1.0)  # rounding


@kernel
def _half_way(
    b: np.ndarray, drive: np.ndarray, table: np.ndarray, dt: float, out: np.ndarray, m: np.ndarray
) -> None:
    """b after half a step of Euler, and m there."""
    for i in range(b.shape[0]):
        for y in range(b.shape[1]):
            for x in range(b.shape[2]):
                a, by, _ = _look_up(table, b[i, y, x])
                at = b[i, y, x] + 0.5 * dt * (a + by * drive[i, y, x])
                out[i, y, x] = at
                m[i, y, x] = np.tanh(at) + _look_up(table, at)[2]


@kernel
def _arrive(
    b: np.ndarray,
    middle: np.ndarray,
    drive: np.ndarray,
    table: np.ndarray,
    dt: float,
    z: np.ndarray,
) -> None:
    """z after a whole step at the rates of its middle."""
    for i in range(b.shape[0]):
        for y in range(b.shape[1]):
            for x in range(b.shape[2]):
                a, by, _ = _look_up(table, middle[i, y, x])
                new = np.tanh(b[i, y, x] + dt * (a + by * drive[i, y, x]))
                z[i, y, x] = min(max(new, -_TOP), _TOP)


# -- cosh ------------------------------------------------------------------------------------


class FlipSteps:
    """Steps of ``cosh``: binomial numbers of flips at tabulated rates."""

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
        """One step of the counts, in place."""
        before = np.empty((2, *counts.shape))
        for half in range(2):
            key, members, step, top = noise
            m = self.means(counts)
            pull = drive(m) - self.alone * m if self.alone else drive(m)
            _flip(
                counts, pull, self.rates, self.beta, self.own, dt / 2, half == 1, before,
                self.log_factorials, key, members, step + np.uint64(half), top,
            )  # fmt: skip


@rule
def _binomial(n: int, p: float, u: float, log_factorials: np.ndarray) -> int:
    """The number of successes that u in (0, 1) stands for, counted outwards from the mode."""
    if n == 0 or not p > 0.0:
        return 0
    if p >= 1.0:
        return n
    q = 1.0 - p
    mode = min(int((n + 1) * p), n)
    log_chance = log_factorials[n] - log_factorials[mode] - log_factorials[n - mode]
    chance = np.exp(log_chance + mode * np.log(p) + (n - mode) * np.log1p(-p))
    up, high = chance, mode
    down, low = chance, mode
    u -= chance
    while u > 0.0:
        up *= (n - high) * p / ((high + 1) * q)  # 0 beyond n
        down *= low * q / ((n - low + 1) * p)  # 0 below 0
        if up + down < 1e-18:
            return mode  # all that rounding left of u
        high += 1
        u -= up
        if u <= 0.0:
            return high
        low -= 1
        u -= down
        if u <= 0.0:
            return low
    return mode


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
) -> None:
    """Every spin for dt at frozen rates; ``ahead`` extrapolates them from those ``before``."""
    spins = rates.shape[0]
    for i in range(counts.shape[0]):
        for y in range(counts.shape[1]):
            for x in range(counts.shape[2]):
                k, u = int(counts[i, y, x]), drive[i, y, x]
                over, under = min(k, spins - 1), max(k - 1, 0)  # the jumps from k
                part = 2.0 * k / spins  # 1 + m
                x_up = rates[over, 1] + 2.0 * beta * (u + own * part)
                x_down = rates[under, 1] + 2.0 * beta * (u - own * (2.0 - part))
                a = rates[over, 0] / (1.0 + np.exp(-x_up))
                b = rates[under, 0] / (1.0 + np.exp(x_down))
                if ahead:
                    a = max(0.0, 2.0 * a - before[0, i, y, x])
                    b = max(0.0, 2.0 * b - before[1, i, y, x])
                else:
                    before[0, i, y, x], before[1, i, y, x] = a, b
                total = a + b
                if total > 0.0:
                    share = -np.expm1(-total * dt) / total
                    w0, w1 = threefry(key[0], key[1] + members[i], step, site_counter(top + y, x))
                    up = _binomial(spins - k, a * share, to_unit(w0), log_factorials)
                    down = _binomial(k, b * share, to_unit(w1), log_factorials)
                    counts[i, y, x] = k + up - down
