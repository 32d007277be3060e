r"""Fixed-step dynamics of a Kac model: all spins at once, fields frozen for a step.

With fields frozen every spin is a chain of two states whose two rates add up to 1. A step of
length tau does, by ``solver``:

``sublattice``
    the exact solution of the frozen chains, one sublattice of all sites: a spin flips with
    probability :math:`(1 - e^{-\tau}) r_x`. First order in law.
``tau-leap``
    Algorithm 2 of the seed [Gillespie, J. Chem. Phys. 115, 1716 (2001)]: Poisson numbers of
    flips of mean :math:`r_x \tau`, an odd number turns the spin, with probability
    :math:`(1 - e^{-2 r_x \tau}) / 2`. First order. With ``eps``, tau is
    :math:`\epsilon / \max_x r_x`, in each step anew.
``midpoint``
    a frozen half step from x to y, then a half step from y with rates
    :math:`2 r(s; u(y)) - r(s; u(x))`, those of the end of a step by extrapolation, cut at 0.
    Second order in law as long as no single flip more than halves the rate of another spin,
    :math:`4 \beta \max J \le \ln 2`: rates are then cut in steps that have many flips, only.
    It keeps the sums of x, 4 bytes a site.

A flip is a random number below an entry of a table of integers
(:mod:`mpiflow.solvers.kac.tables`): the bits do not depend on ranks, nor on
the method that adds up the fields.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.noise import Word, site_counter, stream_key, threefry
from mpiflow.solvers.kac.cuda import CudaSites
from mpiflow.solvers.kac.fields import Fields
from mpiflow.solvers.kac.tables import (
    LANES,
    RESIDUAL,
    ROOM,
    Table,
    digits_at,
    falls_below,
    in_32_bits,
    look_up,
)
from mpiflow.systems.kac import Kac

KacSolver = Literal["sublattice", "tau-leap", "midpoint"]
_NONE = np.empty((0, 0, 0), np.int32)


class KacSteps:
    """Steps of one of the solvers above.

    Parameters
    ----------
    fields : of the model
    solver : its name
    tau : step; for tau-leap ``eps`` may be given instead
    eps : largest expected number of flips of a spin in a step of tau-leap

    Attributes
    ----------
    steps : (B,) int64, steps made by each member, set by :meth:`begin`
    clock : (B,) float64, how far each member has come with steps of its own length
    """

    def __init__(
        self,
        fields: Fields,
        solver: KacSolver,
        *,
        tau: float | None,
        eps: float | None = None,
    ) -> None:
        self.fields, self.name, self.tau, self.eps = fields, solver, tau, eps
        self._scale = fields.scale
        self._cuda: CudaSites | None = None
        self._take(fields.system)
        self._check_step()
        self.steps, self.clock = np.empty(0, np.int64), np.empty(0)

    def become(self, system: Kac) -> None:
        """Go on with another temperature or uniform field."""
        self.fields.become(system)
        if system != self.system:
            self._cuda = None  # it keeps the fields of the old one
            self._take(system)

    def _take(self, system: Kac) -> None:
        self.system = system
        self._points, self._shift, self._offset = system.grid(self._scale)
        self._rates = system.rates(self._points)
        self._table, self._table_tau = Table.of(np.empty(0)), math.nan
        self._packed_of = self._table
        self._packed: tuple[np.ndarray, tuple[int, ...]] = self._table.bounds, ()

    def _check_step(self) -> None:
        if self.eps is not None:
            if not 0 < self.eps <= 1:
                raise InputError("eps", self.eps, "above 0, at most 1", "Try 0.01.")
            return
        bound = 1.0
        if self.name == "tau-leap":  # an expected flip or less of each spin
            bound = 1.0 / float(self.fields.system.rates(-(1.0 + self.fields.largest)))
        if self.tau is None or not 0 < self.tau <= bound:
            raise InputError(
                "tau",
                self.tau,
                f"above 0, at most {bound:.4g} (one expected flip of the fastest spin)"
                if self.name == "tau-leap"
                else "above 0, at most 1 (fields are frozen for a step)",
                "Try 0.1.",
            )

    @property
    def operations(self) -> int:
        """Fields of sites computed so far on this rank."""
        return self.fields.computed

    # -- one step --------------------------------------------------------------------------

    def advance(self, block: Block, steps: int, *, seed: int) -> np.ndarray:
        """Make steps of length tau with all members; flips of each member here, (B,) int64."""
        if self.tau is None:
            raise InputError("tau", None, "a step, for a number of steps", "Use leap.")
        self.begin(block)
        if block.device.is_cuda:
            sites = self._sites(block, seed)
            for i in range(steps):
                self._step_on_device(sites, i, self.tau)
            self.steps += steps
            return sites.flips()
        flips = np.zeros(block.batch, np.int64)
        for _ in range(steps):
            self._step(block.inner(), block.members, self.steps, self.tau, seed, flips)
            self.steps += 1
        return flips

    def leap(
        self,
        block: Block,
        target: float,
        *,
        seed: int,
        until: float = math.inf,
        most: int | None = None,
    ) -> np.ndarray:
        """Advance to a time in leaps of eps / max r, the last one cut short; flips (B,).

        Each member has leaps of its own, on the way to the target no more than ``most``, and none
        that starts at ``until`` or later: that has no effect on the trajectory. Collective if one
        lattice is cut over ranks.
        """
        self.begin(block)
        ends = min(until, target), (np.iinfo(np.int64).max if most is None else most)
        if block.device.is_cuda:
            return self._leap_on_device(self._sites(block, seed), target, *ends)
        flips = np.zeros(block.batch, np.int64)
        for b in range(block.batch):
            one, spins = slice(b, b + 1), block.inner()[b : b + 1]
            made = 0
            while self.clock[b] < ends[0] and made < ends[1]:
                left = target - self.clock[b]
                tau = self._step(
                    spins, block.members[one], self.steps[one], left, seed, flips[one], True
                )
                self._passed(b, tau, left, target)
                self.steps[b] += 1
                made += 1
        return flips

    def _passed(self, member: int, tau: float, left: float, target: float) -> None:
        self.clock[member] = target if tau == left else self.clock[member] + tau

    def begin(self, block: Block) -> None:
        """Count from 0 for the members of a block, unless that is done."""
        block.require_spins()
        if self.steps.size != block.batch:
            self.steps, self.clock = np.zeros(block.batch, np.int64), np.zeros(block.batch)

    def _step(
        self,
        spins: np.ndarray,
        members: np.ndarray,
        steps: np.ndarray,
        tau: float,
        seed: int,
        flips: np.ndarray,
        adaptive: bool = False,
    ) -> float:
        """One step of at most tau, in place; returns its length."""
        key = stream_key(seed, "kac")
        fields = self.fields
        old = fields.surrounded(spins)
        inner = old[:, fields.reach : fields.reach + spins.shape[1]]
        bands = fields.bands(old)
        if adaptive:
            kept = [(rows, sums.copy()) for rows, sums in bands]
            lowest = 2**62
            for rows, sums in kept:
                least = _lowest(inner[:, rows], sums, self.fields.at(rows), *self._integers)
                lowest = min(lowest, least)
            tau = min(tau, self._leap_length(lowest))
            bands = iter(kept)
        if self.name != "midpoint":
            for rows, sums in bands:
                self._flip(inner, rows, sums, members, key, 2 * steps, tau, spins, flips)
            return tau
        none, first = np.zeros_like(flips), []
        for rows, sums in bands:
            first.append(sums.copy())
            self._flip(inner, rows, sums, members, key, 2 * steps, tau / 2, spins, none)
        half = fields.surrounded(spins)
        for before, (rows, sums) in zip(first, fields.bands(half), strict=True):
            self._flip(spins, rows, sums, members, key, 2 * steps + 1, tau / 2, spins, none, before)
        for b in range(len(flips)):
            flips[b] += _differences(inner[b], spins[b])
        return tau

    def _leap_length(self, lowest: int) -> float:
        """eps / max r, where ``lowest`` is the smallest s U of this rank. Collective."""
        if self.fields.slabs is not None:
            lowest = -int(self.fields.slabs.largest(-lowest))
        fastest = float(self.fields.system.rates(lowest / self._scale.unit))
        return self.eps / fastest if self.eps else math.inf

    def _table_of(self, tau: float) -> Table:
        """Chances to flip in a step: one object for as long as tau stays."""
        if tau != self._table_tau:
            chance = -np.expm1(-tau) * self._rates
            if self.name == "tau-leap":
                chance = -0.5 * np.expm1(-2.0 * tau * self._rates)
            self._table, self._table_tau = Table.of(chance), tau
        return self._table

    @property
    def _integers(self) -> tuple[int, int]:
        return self._scale.multiplier, self._scale.shift

    def _flip(
        self,
        source: np.ndarray,
        rows: slice,
        sums: np.ndarray,
        members: np.ndarray,
        key: np.ndarray,
        counters: np.ndarray,
        tau: float,
        out: np.ndarray,
        flips: np.ndarray,
        before: np.ndarray = _NONE,
    ) -> None:
        top = 0 if self.fields.slabs is None else self.fields.slabs.rows.start
        table = self._table_of(tau)
        if table is not self._packed_of:
            self._packed = in_32_bits(table.bounds, self._shift, self._offset, self._scale)
            self._packed_of = table
        most = int(table.bounds.max())
        if before.size:  # limits are then twice one of the table's, less another, and a little more
            most = min(2 * most + 2, 2**32 - 1)
        _flip_rows(
            source[:, rows], sums, before, self.fields.at(rows), *self._packed, table.digits, most,
            key, members, counters.astype(np.uint64), top + rows.start, out[:, rows], flips,
        )  # fmt: skip

    # -- on a CUDA device ------------------------------------------------------------------

    def _sites(self, block: Block, seed: int) -> CudaSites:
        if self._cuda is None or self._cuda.block is not block:
            self._cuda = CudaSites(self.fields, block, self._shift, self._offset)
        self._cuda.begin(self.steps, stream_key(seed, "kac"))
        return self._cuda

    def _step_on_device(
        self, sites: CudaSites, made: int, tau: float, adaptive: bool = False
    ) -> float:
        """What :meth:`_step` does, ``made`` steps after the sites began."""
        sites.add_up(sites.spins)
        if adaptive:
            tau = min(tau, self._leap_length(sites.lowest()))
        if self.name != "midpoint":
            sites.flip(sites.spins, 2 * made, self._table_of(tau), sites.spins, count=True)
            return tau
        table = self._table_of(tau / 2)
        sites.flip(sites.spins, 2 * made, table, sites.half)
        sites.keep_sums()
        sites.add_up(sites.half)
        sites.flip(sites.half, 2 * made + 1, table, sites.half, ahead=True)
        sites.adopt(sites.half)
        return tau

    def _leap_on_device(
        self, sites: CudaSites, target: float, until: float, most: int
    ) -> np.ndarray:
        for b in range(len(self.steps)):
            sites.choose(slice(b, b + 1))
            made = 0
            while self.clock[b] < until and made < most:
                left = target - self.clock[b]
                self._passed(
                    b, self._step_on_device(sites, made, left, adaptive=True), left, target
                )
                made += 1
            self.steps[b] += made
        return sites.flips()


@kernel
def _differences(a: np.ndarray, b: np.ndarray) -> np.int64:
    total = np.int64(0)
    for y in range(a.shape[0]):
        for x in range(a.shape[1]):
            total += np.int64(a[y, x] != b[y, x])
    return total


@kernel
def _lowest(
    spins: np.ndarray, sums: np.ndarray, external: np.ndarray, multiplier: int, down: int
) -> np.int64:
    """The smallest s U: of the fastest spin."""
    lowest = np.int64(2**62)
    for b in range(spins.shape[0]):
        for y in range(spins.shape[1]):
            extra = external[y % external.shape[0]]
            for x in range(spins.shape[2]):
                u = (np.int64(sums[b, y, x]) * multiplier >> down) + extra[x % extra.size]
                lowest = min(lowest, np.int64(spins[b, y, x]) * u)
    return lowest


@kernel
def _draw_row(k0: Word, k1: Word, step: Word, gy: int, out: np.ndarray) -> None:
    """Two words for each four sites of a row."""
    for i in range(out.size // 2):
        out[2 * i], out[2 * i + 1] = threefry(k0, k1, step, site_counter(gy, i))


@kernel
def _candidates(words: np.ndarray, most: int, places: np.ndarray) -> int:
    """Where words are below what no limit exceeds: how many. No other spin can flip."""
    found, bound = 0, np.uint32(most)
    for x in range(words.size):
        places[found] = x
        found += 1 if words[x] < bound else 0
    return found


@kernel
def _limits_of(
    spins: np.ndarray,
    sums: np.ndarray,
    external: np.ndarray,
    table: np.ndarray,
    numbers: tuple[int, ...],
    out: np.ndarray,
) -> None:
    """A spin flips if its 32-bit word is below this."""
    for x in range(0, spins.size, LANES):
        look_up(spins, sums, external, x, min(LANES, spins.size - x), table, numbers, out)


@kernel
def _extrapolate(before: np.ndarray, limits: np.ndarray) -> None:
    for x in range(limits.size):
        # What bounds exceed probabilities by is added twice and taken off once.
        ahead = 2 * np.int64(limits[x]) - np.int64(before[x]) + 2
        limits[x] = min(max(ahead, np.int64(0)), np.int64(2**32 - 1))


@kernel
def _all_bits_allow(
    word: int,
    x: int,
    spin: int,
    total: int,
    before: int,
    ahead: bool,
    extra: int,
    digits: np.ndarray,
    numbers: tuple[int, ...],
    noise: tuple[Word, Word, Word],
    gy: int,
) -> bool:
    """Whether all bits of its probability allow a flip whose word is near the limit."""
    multiplier, down, lowest, _, shift, _, _ = numbers
    k0, k1, step = noise
    more = threefry(k0, k1, step | RESIDUAL, site_counter(gy, x))[0]
    v = np.int64(spin) * ((np.int64(total) * multiplier >> down) + extra)
    first, second, third = digits_at(digits, shift, -lowest, v)
    if ahead:
        v = np.int64(spin) * ((np.int64(before) * multiplier >> down) + extra)
        a, b, c = digits_at(digits, shift, -lowest, v)
        first, second, third = 2 * first - a, 2 * second - b, 2 * third - c
    return bool(falls_below(word, more, first, second, third))


@kernel
def _flip_rows(
    spins: np.ndarray,
    sums: np.ndarray,
    before: np.ndarray,
    external: np.ndarray,
    table: np.ndarray,
    numbers: tuple[int, ...],
    digits: np.ndarray,
    most: int,
    key: np.ndarray,
    members: np.ndarray,
    steps: np.ndarray,
    top: int,
    out: np.ndarray,
    flips: np.ndarray,
) -> None:
    """Flip rows from global row ``top`` on, in ``out``, which holds ``spins`` or a copy of them.

    With sums ``before``, chances are extrapolated: twice those of ``sums`` less those of them.
    Spins whose words are below ``most``, the largest limit, are looked up one next to the other.
    """
    nx, ahead = spins.shape[2], before.size > 0
    drawn = np.empty((nx + 3) // 4 * 2, np.uint64)
    words, places = drawn.view(np.uint32)[:nx], np.empty(nx, np.int64)
    limits, old_limits = np.empty(nx, np.uint32), np.empty(nx, np.uint32)
    source, extra = np.empty(nx, np.int8), np.empty(nx, np.int32)
    found, old = np.empty(nx, np.int32), np.zeros(nx, np.int32)
    extra[:] = external[0, 0]
    for b in range(spins.shape[0]):
        noise = key[0], key[1] + members[b], steps[b]
        for y in range(spins.shape[1]):
            _draw_row(*noise, top + y, drawn)
            many = _candidates(words, most, places)
            for j in range(many):
                x = places[j]
                source[j], found[j] = spins[b, y, x], sums[b, y, x]
                if external.size > 1:
                    extra[j] = external[y, x]
                if ahead:
                    old[j] = before[b, y, x]
            _limits_of(source[:many], found, extra, table, numbers, limits)
            if ahead:
                _limits_of(source[:many], old, extra, table, numbers, old_limits)
                _extrapolate(old_limits[:many], limits[:many])
            for j in range(many):
                x, word, spin = places[j], words[places[j]], source[j]
                if word < limits[j] and (
                    limits[j] - word > np.uint32(ROOM)
                    or _all_bits_allow(
                        word, x, spin, found[j], old[j], ahead, extra[j], digits, numbers, noise,
                        top + y,
                    )
                ):  # fmt: skip
                    out[b, y, x] = -spin
                    flips[b] += 1
