r"""Steps of a field of block means on a CUDA device, a thread for each block.

CUDA: simulated and assembled, not yet run on a GPU (docs/hpc.md).

The arithmetic is the rules of :mod:`~mpiflow.solvers.field.langevin`,
:mod:`~mpiflow.solvers.field.flips` and :mod:`~mpiflow.solvers.field.binomials`, and noise is of the
same counters, so that from the same J*m a step makes the bits of the CPU. What J*m is made by is
the caller's: see :class:`~mpiflow.solvers.field.transforms.Pulls`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mpiflow.core.device import CudaKernel, Device, rule, simulated, unravel
from mpiflow.core.functions import artanh, cosine_of_root, exp, sinc_of_root, tanh
from mpiflow.core.noise import site_counter, threefry, to_unit
from mpiflow.solvers.field import binomials
from mpiflow.solvers.field.flips import FlipSteps, ahead_of, felt, share_of
from mpiflow.solvers.field.langevin import (
    LangevinSteps,
    aside,
    inside_ends,
    mean_of,
    rates_at,
    squared_radius,
    turned_height,
)
from mpiflow.solvers.field.steps import Noise

#: u of block means, both (B, n, nx) float64 on the device; u next to each other in memory.
DeviceDrive = Callable[[Any], Any]


class Motion(Protocol):
    """What advances a state on a device: (B, n, nx), next to each other in memory."""

    def means(self, state: Any) -> Any:
        """m of each block, float64; to be used before the next call."""

    def step(self, state: Any, drive: DeviceDrive, dt: float, noise: Noise) -> None:
        """One step of the state, in place; arguments as on the CPU, the noise's on the host."""


def on_device(motion: LangevinSteps | FlipSteps, device: Device) -> Motion:
    """Steps of the same law there."""
    if isinstance(motion, LangevinSteps):
        return CudaLangevin(motion, device)
    return CudaFlips(motion, device)


class _Arrays:
    """Arrays of float64 on a device, made once for fields of one shape."""

    def __init__(self, device: Device, number: int) -> None:
        self._device, self._number = device, number
        self._made: list[Any] = []

    def of(self, shape: tuple[int, ...]) -> list[Any]:
        """As many of that shape; what is in them is not known."""
        if not self._made or self._made[0].shape != shape:
            self._made = []  # these first, or both would be in memory
            empty = np.empty(shape)
            self._made = [self._device.put(empty) for _ in range(self._number)]
        return self._made


class CudaLangevin:
    """Steps of ``langevin`` on a device."""

    def __init__(self, steps: LangevinSteps, device: Device) -> None:
        self._steps, self._device = steps, device
        self._cubics = device.put(steps.cubics)
        self._space = _Arrays(device, 4)

    def means(self, state: Any) -> Any:
        m = self._space.of(state.shape)[3]
        _means.launch(_blocks(state), state, self._cubics, m)
        return m

    def step(self, state: Any, drive: DeviceDrive, dt: float, noise: Noise) -> None:
        b, a, by, m = self._space.of(state.shape)
        key, members, step, top = noise
        width, halvings = self._steps.turn(dt)
        turning = width, halvings, width * width / 4.0**halvings
        there, many = (key[0], key[1], self._device.put(members), top), _blocks(state)
        _depart.launch(many, state, self._cubics, *turning, *there, step, b, a, by, m)
        _half_way.launch(many, b, drive(m), self._cubics, dt, a, by, m)
        step += np.uint64(1)
        _arrive.launch(many, b, a, by, drive(m), dt, *turning, *there, step, state)


class CudaFlips:
    """Steps of ``cosh`` on a device."""

    def __init__(self, steps: FlipSteps, device: Device) -> None:
        self._steps, self._device = steps, device
        self._tables = device.put(steps.rates), device.put(steps.log_factorials)
        self._space = _Arrays(device, 3)

    def means(self, state: Any) -> Any:
        m = self._space.of(state.shape)[2]
        _counted_means.launch(_blocks(state), state, 2 / self._steps.spins, m)
        return m

    def step(self, state: Any, drive: DeviceDrive, dt: float, noise: Noise) -> None:
        steps, (old_up, old_down, _) = self._steps, self._space.of(state.shape)
        key, members, step, top = noise
        members = self._device.put(members)
        for half in range(2):
            m = self.means(state)
            pull = drive(m)
            _flip.launch(
                _blocks(state), state, m, pull, *self._tables, steps.beta, steps.own, steps.alone,
                dt / 2, half, old_up, old_down, key[0], key[1], members,
                step + np.uint64(half), top,
            )  # fmt: skip


def count_wrong(device: Device, state: Any, low: float, high: float) -> int:
    """Blocks whose number is not from low to high."""
    out = device.put(np.zeros(1, np.int64))
    _count_wrong.launch(_blocks(state), state, low, high, out)
    return int(device.get(out)[0])


def _blocks(state: Any) -> int:
    batch, n, nx = state.shape
    return int(batch * n * nx)


# -- rules and kernels ---------------------------------------------------------------------------


def _of_arrays(function: Any) -> Any:
    """A rule that reads a table: in the simulator as Python, whose arrays compiled ones refuse."""
    return function.py_func if simulated() else function


@CudaKernel
def _count_wrong(cuda: Any) -> Callable[..., None]:
    def count_wrong(state: Any, low: float, high: float, out: Any) -> None:
        b, y, x = unravel(cuda.grid(1), state.shape[1], state.shape[2])
        if b < state.shape[0] and not (low <= state[b, y, x] <= high):
            cuda.atomic.add(out, 0, 1)

    return count_wrong


@CudaKernel
def _means(cuda: Any) -> Callable[..., None]:
    look_up = _of_arrays(rates_at)

    def means(z: Any, table: Any, m: Any) -> None:
        b, y, x = unravel(cuda.grid(1), z.shape[1], z.shape[2])
        if b < z.shape[0]:
            _, _, excess = look_up(table, artanh(z[b, y, x]))
            m[b, y, x] = mean_of(z[b, y, x], excess)

    return means


@rule
def _turned(  # type: ignore[no-untyped-def]
    z, width, halvings, part, k0, k1, step, site
):
    """A point turned by the noise of half a step; ``part`` is that of the angle's square."""
    first, second = threefry(k0, k1, step, site)
    squared, side = squared_radius(first), aside(second, width)
    cosine, sinc = cosine_of_root(part * squared), sinc_of_root(part * squared)
    for _ in range(halvings):
        sinc *= cosine
        cosine = 2.0 * cosine * cosine - 1.0
    return turned_height(z, squared, side, cosine, sinc)


@CudaKernel
def _depart(cuda: Any) -> Callable[..., None]:
    look_up = _of_arrays(rates_at)

    def depart(  # type: ignore[no-untyped-def]
        z, table, width, halvings, part, k0, k1, members, top, step, start, a, by, m
    ):
        """Half a step of noise, and what the drift starts from: artanh z, its rates, and m."""
        b, y, x = unravel(cuda.grid(1), z.shape[1], z.shape[2])
        if b < z.shape[0]:
            site = np.uint64(site_counter(top + y, x))  # the simulator's rules return Python ints
            now = _turned(z[b, y, x], width, halvings, part, k0, k1 + members[b], step, site)
            z[b, y, x] = now
            place = artanh(now)
            start[b, y, x] = place
            a[b, y, x], by[b, y, x], excess = look_up(table, place)
            m[b, y, x] = mean_of(now, excess)

    return depart


@CudaKernel
def _half_way(cuda: Any) -> Callable[..., None]:
    look_up = _of_arrays(rates_at)

    def half_way(  # type: ignore[no-untyped-def]
        start, drive, table, dt, a, by, m
    ):
        """The rates after half a step of Euler, in place, and m there."""
        b, y, x = unravel(cuda.grid(1), start.shape[1], start.shape[2])
        if b < start.shape[0]:
            force = a[b, y, x] + by[b, y, x] * drive[b, y, x]
            place = start[b, y, x] + 0.5 * dt * force
            a[b, y, x], by[b, y, x], excess = look_up(table, place)
            m[b, y, x] = tanh(place) + excess

    return half_way


@CudaKernel
def _arrive(cuda: Any) -> Callable[..., None]:
    def arrive(  # type: ignore[no-untyped-def]
        start, a, by, drive, dt, width, halvings, part, k0, k1, members, top, step, z
    ):
        """z after a whole step at the rates of its middle, and half a step of noise."""
        b, y, x = unravel(cuda.grid(1), z.shape[1], z.shape[2])
        if b < z.shape[0]:
            force = a[b, y, x] + by[b, y, x] * drive[b, y, x]
            now = inside_ends(tanh(start[b, y, x] + dt * force))
            site = np.uint64(site_counter(top + y, x))
            z[b, y, x] = _turned(now, width, halvings, part, k0, k1 + members[b], step, site)

    return arrive


@CudaKernel
def _counted_means(cuda: Any) -> Callable[..., None]:
    def means(counts: Any, twice: float, m: Any) -> None:
        b, y, x = unravel(cuda.grid(1), counts.shape[1], counts.shape[2])
        if b < counts.shape[0]:
            m[b, y, x] = np.float64(counts[b, y, x]) * twice - 1.0

    return means


@rule
def _inverted(n, q, word):  # type: ignore[no-untyped-def]
    """A number of a small mean."""
    c, odds = binomials.chance_of_none(n, q)
    left, count, j = to_unit(word), 0.0, 0.0
    while left > 0.0 and j < binomials.MOST:
        left -= c
        count += 1.0 if left > 0.0 else 0.0
        c = binomials.next_chance(c, n - j, 1.0 / (j + 1.0), odds)
        j += 1.0
    # All that rounding left of it.
    return binomials.mode_of(n, q) if left > 0.0 else count


@rule
def _drawn(  # type: ignore[no-untyped-def]
    n, p, word, k0, k1, step, site, which, log_factorials
):
    """A binomial number as of :func:`~mpiflow.solvers.field.binomials.draw_binomials`."""
    q = binomials.rarer(p)
    if binomials.is_small(n, q):
        number = _inverted(n, q, word)
    else:
        u, height = binomials.place_and_height(word)
        number, sure = binomials.squeezed(n, q, u, height)
        trial = np.uint64(0)
        while not sure:
            number, level = binomials.measured(n, q, u, height)
            m, k, m_rest, k_rest = binomials.compared(n, q, number)
            sure = binomials.allowed(
                n, number, level, log_factorials[m], log_factorials[k], log_factorials[m_rest],
                log_factorials[k_rest],
            )  # fmt: skip
            if not sure:
                again = np.uint64(step) | binomials.AGAIN
                w0, w1 = threefry(k0, k1, again, site)
                w0, w1 = threefry(np.uint64(w0), np.uint64(w1), trial, np.uint64(which))
                u, height = to_unit(np.uint64(w0)) - 0.5, to_unit(np.uint64(w1))
                trial += np.uint64(1)
    return n - number if p > 0.5 else number


@CudaKernel
def _flip(cuda: Any) -> Callable[..., None]:
    drawn = _of_arrays(_drawn)

    def flip(  # type: ignore[no-untyped-def]
        counts, m, drive, rates, log_factorials, beta, own, alone, dt, ahead, old_up, old_down,
        k0, k1, members, step, top,
    ):  # fmt: skip
        """Every spin for dt at frozen rates; ``ahead`` extrapolates them from the old ones."""
        b, y, x = unravel(cuda.grid(1), counts.shape[1], counts.shape[2])
        if b < counts.shape[0]:
            spins, k = rates.shape[0], np.int64(counts[b, y, x])
            over, under = min(k, spins - 1), max(k - 1, 0)  # the jumps from k
            u = drive[b, y, x]
            if alone != 0.0:
                u = u - alone * m[b, y, x]
            down = np.float64(k)
            up = spins - down
            more, less = felt(down, u, spins, beta, own)
            rise = rates[over, 0] / (1.0 + exp(-(rates[over, 1] + more)))
            fall = rates[under, 0] / (1.0 + exp(rates[under, 1] + less))
            if ahead:
                rise = ahead_of(rise, old_up[b, y, x])
                fall = ahead_of(fall, old_down[b, y, x])
            else:
                old_up[b, y, x], old_down[b, y, x] = rise, fall
            share = share_of(rise, fall, dt)
            site, key = np.uint64(site_counter(top + y, x)), k1 + members[b]
            first, second = threefry(k0, key, step, site)
            first, second = np.uint64(first), np.uint64(second)
            gain = drawn(up, rise * share, first, k0, key, step, site, 0, log_factorials)
            loss = drawn(down, fall * share, second, k0, key, step, site, 1, log_factorials)
            counts[b, y, x] = np.int32(down + gain - loss)

    return flip
