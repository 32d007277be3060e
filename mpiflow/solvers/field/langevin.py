r"""Steps of ``langevin``, whose equations are in :mod:`mpiflow.solvers.field.steps`.

A step goes three times over the blocks, between which J*m is taken, and each time a few at a time
through loops that vectorise: noise and rates where the step starts, the middle, and the end with
noise again. What depends on the law is in one table of cubics.
"""

from __future__ import annotations

import math

import numpy as np
import scipy

from mpiflow.core.device import inlined, kernel
from mpiflow.core.errors import InputError
from mpiflow.core.functions import (
    artanh,
    cosine_of_root,
    exp,
    log,
    sinc_of_root,
    sine,
    tanh,
)
from mpiflow.core.noise import RNG, Word, to_unit
from mpiflow.solvers.field.steps import TOGETHER, Drive, Noise, Pull, draw
from mpiflow.systems.field_law import Law

#: Half the width of a chart in artanh z, its intervals, and points of the integral behind it.
_EDGE, _INTERVALS, _POINTS = 8.0, 4096, 8193
#: The largest |z|; artanh of it is 18.7.
_TOP = 1.0 - 2.0**-53
#: The longest step times the rate at which z relaxes. Errors of variances are half its square,
#: 0.7 %.
_RELAXED = 0.12
#: Twice what the logarithm of a word can be: the largest square of a Gaussian radius.
_FARTHEST = 2 * 53 * math.log(2)
_Index = np.uint64  # no index is negative: the compiler need not ask


class LangevinSteps:
    """Steps of ``langevin``: tables of the drift over artanh z, and turns of the sphere.

    With phi = asin m, Phi = asin z and K = beta (1 - m^2) g: d phi / d Phi = sqrt(g / c), so
    1 / sqrt(c) is the mean of 1 / sqrt(g) over phi. dm / dz = sqrt(g / c) cos phi / cos Phi is
    positive and finite at the ends, g / c.

    Attributes
    ----------
    rng : name of the generator and of what is made of its words, for files
    rate : c / N
    table : (nodes, 3), A, B and D at evenly spaced b = artanh z, of d b / dt = A + B u and
        m = z + D
    """

    rng = f"{RNG}, a sine for each turn"

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
        b = np.linspace(-_EDGE, _EDGE, _INTERVALS + 1)
        at = np.arcsin(np.tanh(b))
        m = np.sin(scipy.interpolate.CubicSpline(turned, phi)(at))
        push = law.beta * self._root**2 * np.exp(log_weight(at))
        self.rate = self._root**2 / spins
        ito = self.rate * log_weight(at, 1) * np.cosh(b)
        self.table = np.stack(
            [ito - push * law.entropy_derivative(m), push, m - np.tanh(b)], axis=1
        )
        if not np.isfinite(self.table).all():
            raise InputError("law", "its s'", "finite for |m| < 1", "Look at the law.")
        # Of each interval the cubics of A, B and D in the share of it that is passed.
        cubics = scipy.interpolate.CubicSpline(np.arange(_INTERVALS + 1), self.table).c[::-1]
        self._cubics = np.ascontiguousarray(cubics.transpose(1, 2, 0).reshape(_INTERVALS, 12))
        self._space = tuple(np.empty(0) for _ in range(4))
        self._words = tuple(np.empty(TOGETHER, np.uint64) for _ in range(4))
        self._lines = tuple(np.empty(TOGETHER) for _ in range(4))

    def _turned(self, phi: np.ndarray) -> np.ndarray:
        """Phi of phi."""
        return self._root * self._path(phi) - np.pi / 2

    def state(self, m: np.ndarray) -> np.ndarray:
        return np.clip(np.sin(self._turned(np.arcsin(m))), -_TOP, _TOP)

    def means(self, state: np.ndarray) -> np.ndarray:
        m = np.empty(state.size)
        _means(np.ravel(state), self._cubics, m, self._lines)
        return m.reshape(state.shape)

    def longest(self, pull: Pull) -> float:
        """The longest step that keeps the stationary law.

        It goes by the largest relaxation rate of z, minus the slope of its drift, as a root mean
        square over the stationary law of one block in a field u, for u as strong as it can be.
        Near the ends of z at low temperatures that is :math:`2 \\beta u` and more, although
        artanh z relaxes at the rate 1.
        """
        a, by, excess = self.table.T
        apart = 2 * _EDGE / _INTERVALS
        b = np.linspace(-_EDGE, _EDGE, _INTERVALS + 1)
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

    @property
    def cubics(self) -> np.ndarray:
        """(intervals, 12): of each interval of b the cubics of A, B and D."""
        return self._cubics

    def turn(self, dt: float) -> tuple[float, int]:
        """Width of the angle of the noise of half a step, and how often it is halved."""
        t = 0.5 * dt * self.rate
        # Spherical harmonics decay by exp(-l (l + 1) t) up to t^3: the sphere's curvature makes
        # the last factor.
        width = math.sqrt(2 * t * (1 - min(t, 1.0) / 3))
        halvings = 0  # of the angle: then its square is 1/2 at most
        while width * width * _FARTHEST > 0.5 * 4.0**halvings:
            halvings += 1
        return width, halvings

    def step(self, z: np.ndarray, drive: Drive, dt: float, noise: Noise) -> None:
        """One step of z, in place; z next to each other in memory."""
        if self._space[0].size != z.size:  # kept: new memory costs as much as half a loop
            self._space = tuple(np.empty(z.size) for _ in range(4))
        b, a, by, m = self._space
        key, members, step, top = noise
        flat, means, shape = z.reshape(-1), m.reshape(z.shape), z.shape[1:]
        turning = *self.turn(dt), shape, key, members, top, self._words, self._lines
        _depart(flat, self._cubics, *turning, step, b, a, by, m)
        _half_way(b, _flat(drive(means)), self._cubics, dt, a, by, m, self._lines)
        _arrive(b, a, by, _flat(drive(means)), dt, *turning, step + np.uint64(1), flat)


def _flat(drive: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(drive).reshape(-1)


# -- rules: the same on the CPU and on CUDA ----------------------------------------------------


@inlined
def rates_at(table, b):  # type: ignore[no-untyped-def]
    """A, B and D at b by cubics; beyond the table as they go on."""
    per = _INTERVALS / (2 * _EDGE)
    inside = min(max(b, -_EDGE), _EDGE)
    place = (inside + _EDGE) * per
    i = _Index(min(int(place), _INTERVALS - 1))
    t = place - np.float64(i)
    a = table[i, 0] + t * (table[i, 1] + t * (table[i, 2] + t * table[i, 3]))
    by = table[i, 4] + t * (table[i, 5] + t * (table[i, 6] + t * table[i, 7]))
    d = table[i, 8] + t * (table[i, 9] + t * (table[i, 10] + t * table[i, 11]))
    if b != inside:
        a += (table[i, 1] + table[i, 2] + table[i, 3]) * per * (b - inside)
        d *= exp(-2.0 * abs(b - inside))  # as 1 - z^2
    return a, by, d


@inlined
def squared_radius(word):  # type: ignore[no-untyped-def]
    """The square of a Gaussian radius."""
    return -2.0 * log(to_unit(word))


@inlined
def aside(word, width):  # type: ignore[no-untyped-def]
    """The part of a turn of that width that goes towards the pole."""
    return width * sine(np.pi * (to_unit(word) - 0.5))


@inlined
def turned_height(old, squared, side, cosine, sinc):  # type: ignore[no-untyped-def]
    """Where a turn takes a point: of its angle the cosine and the sine over it."""
    across = math.sqrt((1.0 - old) * (1.0 + old) * squared) * sinc
    return inside_ends(old * cosine + across * side)


@inlined
def inside_ends(z):  # type: ignore[no-untyped-def]
    """z, which rounding may have taken to an end."""
    return min(max(z, -_TOP), _TOP)


@inlined
def mean_of(z, excess):  # type: ignore[no-untyped-def]
    """m, which rounding may have taken beyond 1."""
    return min(max(z + excess, -1.0), 1.0)


# -- CPU ----------------------------------------------------------------------------------------


@kernel
def _look_up(
    start: int,
    many: int,
    table: np.ndarray,
    b: np.ndarray,
    a: np.ndarray,
    by: np.ndarray,
    d: np.ndarray,
) -> None:
    """A and B at b, from ``start`` on, and D."""
    first = _Index(start)
    for k in range(many):
        at = first + _Index(k)
        a[at], by[at], d[k] = rates_at(table, b[k])


@kernel
def _means(z: np.ndarray, table: np.ndarray, m: np.ndarray, lines: tuple[np.ndarray, ...]) -> None:
    """m of z."""
    place, a, by, excess = lines[0], lines[1], lines[2], lines[3]
    for start in range(0, z.size, TOGETHER):
        many, first = min(TOGETHER, z.size - start), _Index(start)
        for k in range(many):
            place[k] = artanh(z[first + _Index(k)])
        _look_up(0, many, table, place, a, by, excess)
        for k in range(many):
            at = first + _Index(k)
            m[at] = mean_of(z[at], excess[k])


@kernel
def _turn(
    start: int,
    many: int,
    z: np.ndarray,
    width: float,
    halvings: int,
    words: tuple[np.ndarray, ...],
    lines: tuple[np.ndarray, ...],
) -> None:
    """Turn each point by an angle that is Gaussian along both axes of its tangent plane.

    Of the direction only the part towards the pole counts, the sine of an angle that is even
    between -pi/2 and pi/2. The turn's own angle is needed squared: a Gaussian radius is a root.
    """
    first, second = words[2], words[3]
    squared, side, cosine, sinc = lines
    for k in range(many):
        squared[k] = squared_radius(first[k])
        side[k] = aside(second[k], width)
    part = width * width / 4.0**halvings
    for k in range(many):
        cosine[k] = cosine_of_root(part * squared[k])
        sinc[k] = sinc_of_root(part * squared[k])
    for _ in range(halvings):
        for k in range(many):
            sinc[k] *= cosine[k]
            cosine[k] = 2.0 * cosine[k] * cosine[k] - 1.0
    begin = _Index(start)
    for k in range(many):
        at = begin + _Index(k)
        z[at] = turned_height(z[at], squared[k], side[k], cosine[k], sinc[k])


@kernel
def _depart(
    z: np.ndarray,
    table: np.ndarray,
    width: float,
    halvings: int,
    shape: tuple[int, int],
    key: np.ndarray,
    members: np.ndarray,
    top: int,
    words: tuple[np.ndarray, ...],
    lines: tuple[np.ndarray, ...],
    step: Word,
    b: np.ndarray,
    a: np.ndarray,
    by: np.ndarray,
    m: np.ndarray,
) -> None:
    """Half a step of noise, and what the drift starts from: b = artanh z, its rates, and m."""
    place, excess = lines[0], lines[1]
    for start in range(0, z.size, TOGETHER):
        many, first = min(TOGETHER, z.size - start), _Index(start)
        draw(key, members, step, top, shape, start, many, words[0], words[1], words[2], words[3])
        _turn(start, many, z, width, halvings, words, lines)
        for k in range(many):
            place[k] = artanh(z[first + _Index(k)])
        _look_up(start, many, table, place, a, by, excess)
        for k in range(many):
            at = first + _Index(k)
            b[at] = place[k]
            m[at] = mean_of(z[at], excess[k])


@kernel
def _half_way(
    b: np.ndarray,
    drive: np.ndarray,
    table: np.ndarray,
    dt: float,
    a: np.ndarray,
    by: np.ndarray,
    m: np.ndarray,
    lines: tuple[np.ndarray, ...],
) -> None:
    """The rates after half a step of Euler, in place, and m there."""
    place, excess = lines[0], lines[1]
    for start in range(0, b.size, TOGETHER):
        many = min(TOGETHER, b.size - start)
        _forward(start, many, b, 0.5 * dt, a, by, drive, place)
        _look_up(start, many, table, place, a, by, excess)
        first = _Index(start)
        for k in range(many):
            m[first + _Index(k)] = tanh(place[k]) + excess[k]


@kernel
def _forward(
    start: int,
    many: int,
    b: np.ndarray,
    dt: float,
    a: np.ndarray,
    by: np.ndarray,
    drive: np.ndarray,
    out: np.ndarray,
) -> None:
    first = _Index(start)
    for k in range(many):
        at = first + _Index(k)
        out[k] = b[at] + dt * (a[at] + by[at] * drive[at])


@kernel
def _arrive(
    b: np.ndarray,
    a: np.ndarray,
    by: np.ndarray,
    drive: np.ndarray,
    dt: float,
    width: float,
    halvings: int,
    shape: tuple[int, int],
    key: np.ndarray,
    members: np.ndarray,
    top: int,
    words: tuple[np.ndarray, ...],
    lines: tuple[np.ndarray, ...],
    step: Word,
    z: np.ndarray,
) -> None:
    """z after a whole step at the rates of its middle, and half a step of noise."""
    place = lines[0]
    for start in range(0, z.size, TOGETHER):
        many, first = min(TOGETHER, z.size - start), _Index(start)
        _forward(start, many, b, dt, a, by, drive, place)
        for k in range(many):
            z[first + _Index(k)] = inside_ends(tanh(place[k]))
        draw(key, members, step, top, shape, start, many, words[0], words[1], words[2], words[3])
        _turn(start, many, z, width, halvings, words, lines)
