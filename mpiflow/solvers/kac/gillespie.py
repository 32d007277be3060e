r"""Gillespie's algorithm for a Kac model: one flip after the other, in exact continuous time.

With the rate r_x of each site and their sum R, the time to the next flip and its site are
[Gillespie, J. Comput. Phys. 22, 403 (1976)]

.. math:: \Delta t = -\ln(u) / R, \qquad P(x) = r_x / R.

A flip changes the fields of all sites in reach, by twice the weight of the pair, and with them
their rates. Sums of weighted spins, rates (in units of 2^-32) and sums of rates are integers:
they gather no rounding errors however many flips there are. Sums of rows lead to its row, the
rates there to the site.

What is added up are bounds of the rates, above them by at most 2^-31. A site is drawn by its bound
and flips with the probability rate / bound; otherwise time has passed and nothing happened: exact
[Lewis, Shedler, Nav. Res. Logist. Q. 26, 403 (1979)], and where nothing is frozen once in some
10^9 draws. Where all sites are, draws are in vain more often than not: then units become finer, in
steps of 2^-16 as far as the fastest rate allows, until the next event.

Draw n since event e of a box uses the noise at (its member, step n, site e), so that a draw beyond
the end of a call is made again, the same, in the next.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.noise import Word, exponential, stream_key, threefry, upper_half
from mpiflow.solvers.event_limits import last_events
from mpiflow.solvers.kac.tables import (
    BITS,
    LANES,
    RESIDUAL,
    ROOM,
    digits_at,
    falls_below,
    flip_table,
    in_32_bits,
    refresh,
    uniform_field,
)
from mpiflow.systems.kac import Kac, KacKernel, Scale, lookup

#: Finer units of rates: 2^-32 times 2 to minus these powers.
FINER = (0, 16, 32, 48, 64)
_UNITS = 2.0 ** (BITS + np.array(FINER))


class Sites(NamedTuple):
    """What is known of the sites of a box, or with an axis (B,) before them of all boxes.

    Attributes
    ----------
    spins : (Ly, Lx) int8
    sums : (Ly, Lx) int32, of the weighted spins around
    external : (Ly, Lx) int32, H, the same for all boxes
    rates : (Ly, Lx) uint32, bounds of the rates
    rows : (Ly,) int64, their sums over rows
    """

    spins: np.ndarray
    sums: np.ndarray
    external: np.ndarray
    rates: np.ndarray
    rows: np.ndarray


class Rates(NamedTuple):
    """What rates follow from the sums: tables of all units in FINER, and how they are read.

    Attributes
    ----------
    bounds : (FINER, points) int64
    packed : of the first, for the intrinsics
    digits : (FINER, points, 3) int64
    numbers : of :func:`mpiflow.solvers.kac.tables.in_32_bits`
    """

    bounds: np.ndarray
    packed: np.ndarray
    digits: np.ndarray
    numbers: tuple[int, ...]


@kernel
def _box(sites: Sites, b: int) -> Sites:
    """The sites of one box."""
    return Sites(sites.spins[b], sites.sums[b], sites.external, sites.rates[b], sites.rows[b])


@kernel
def _fill_rates(box: Sites, law: Rates, finer: int) -> None:
    """Bounds of the rates of all sites of a box, and their sums over rows."""
    spins, sums, external, rates, rows = box
    multiplier, down, lowest, _, shift, _, _ = law.numbers
    for y in range(spins.shape[0]):
        rows[y] = 0
        for x in range(spins.shape[1]):
            u = (multiplier * np.int64(sums[y, x]) >> down) + external[y, x]
            v = u if spins[y, x] > 0 else -u
            rate = lookup(law.bounds[finer], shift, -lowest, v)
            rates[y, x] = rate
            rows[y] += rate


@kernel
def _all_rates(sites: Sites, law: Rates) -> None:
    for b in range(sites.spins.shape[0]):
        _fill_rates(_box(sites, b), law, 0)


@kernel
def _refine(box: Sites, law: Rates) -> int:
    """Give the rates of a box the finest units that have room for them: which of FINER."""
    finer = 0
    while finer + 1 < len(FINER) and box.rates.max() < 2**16:
        finer += 1
        _fill_rates(box, law, finer)
    return finer


# -- events ---------------------------------------------------------------------------------


@kernel
def find(amounts: np.ndarray, number: np.uint64) -> tuple[int, np.uint64]:
    """The first entry with more than ``number`` up to it, and how far into it the number lies."""
    i = 0
    while i + LANES < amounts.size:
        several = np.uint64(0)
        for j in range(LANES):
            several += np.uint64(amounts[i + j])
        if number < several:
            break
        number -= several
        i += LANES
    while number >= np.uint64(amounts[i]):
        number -= np.uint64(amounts[i])
        i += 1
    return i, number


@kernel
def _flip(y: int, x: int, box: Sites, stamp: np.ndarray, law: Rates, gained: np.ndarray) -> int:
    """Flip a spin and bring all rates up to date; what their sum has gained."""
    spins, sums, external, rates, rows = box
    table, numbers = law.packed, law.numbers
    ny, nx = spins.shape
    width = stamp.shape[0]
    reach = width // 2
    spins[y, x] = -spins[y, x]
    sign = np.int64(spins[y, x])
    before = (x - reach) % nx
    total = 0
    for i in range(width):
        row = (y + i - reach) % ny
        gained[0] = 0
        done, column = 0, before
        while done < width:
            # As many as fit a vector and the row: it goes on at the other edge.
            count = min(LANES, width - done, nx - column)
            refresh(
                spins, sums, external, rates, row * nx + column, stamp, i * width + done, count,
                sign, table, numbers, gained,
            )  # fmt: skip
            done += count
            column = column + count if column + count < nx else 0
        rows[row] += gained[0]
        total += gained[0]
    return total


@kernel
def _happens(
    y: int,
    x: int,
    rest: Word,
    noise: tuple[Word, Word, Word, Word],
    box: Sites,
    law: Rates,
    finer: int,
) -> bool:
    """Whether the number drawn within a site's bound is also within its rate."""
    multiplier, down, lowest, _, shift, _, _ = law.numbers
    k0, k1, step, site = noise
    u = (multiplier * np.int64(box.sums[y, x]) >> down) + box.external[y, x]
    v = u if box.spins[y, x] > 0 else -u
    first, second, third = digits_at(law.digits[finer], shift, -lowest, v)
    more = threefry(k0, k1, step | RESIDUAL, site)[0]
    return falls_below(np.int64(rest), more, first, second, third)


@kernel
def _run(
    members: np.ndarray,
    key: np.ndarray,
    until: float,
    most: np.ndarray,
    clock: np.ndarray,
    events: np.ndarray,
    vain: np.ndarray,
    units: np.ndarray,
    sites: Sites,
    stamp: np.ndarray,
    law: Rates,
) -> None:
    """Advance every box to time ``until``, or to a total of ``most`` events if that is first."""
    gained = np.zeros(1, np.int64)
    for b in range(members.size):
        box = _box(sites, b)
        rates, rows = box.rates, box.rows
        # As many draws in vain cost what new units cost.
        patience = 16 + rates.size // 16
        refined, finer = False, 0
        total = rows.sum()
        while total > 0 and events[b] < most[b]:
            if vain[b] >= patience and not refined:
                finer = _refine(box, law)
                refined, total = True, rows.sum()
            step, event = np.uint64(vain[b]), np.uint64(events[b])
            k1 = key[1] + members[b]
            w0, w1 = threefry(key[0], k1, step, event)
            wait = exponential(w0) * (units[finer] / np.float64(total))
            if clock[b] + wait > until:
                break
            clock[b] += wait
            y, rest = find(rows, upper_half(w1, np.uint64(total)))
            x, rest = find(rates[y], rest)
            if rest + np.uint64(ROOM) >= np.uint64(rates[y, x]):
                noise = key[0], k1, step, event
                if not _happens(y, x, rest, noise, box, law, finer):
                    vain[b] += 1
                    continue
            events[b] += 1
            vain[b] = 0
            if finer > 0:
                _fill_rates(box, law, 0)
                total = rows.sum()
            refined, finer = False, 0
            total += _flip(y, x, box, stamp, law, gained)
        if finer > 0:  # between calls units are those of the table
            _fill_rates(box, law, 0)


class Gillespie:
    """Exact event-driven solver of a Kac model on whole lattices, on the CPU.

    One object follows one batch of boxes. To go on with a trajectory bit for bit, keep the
    spins and the first three attributes.

    Parameters
    ----------
    system : the model
    batch : number of boxes
    external : H, the external field as integers in units of 1 / ``scale.unit``, (Ly, Lx) or
        (1, 1); by default the model's uniform one
    scale : of the fields as integers; with ``external``, ``system.scale`` of its largest value

    Attributes
    ----------
    clock : (B,) float64, the time of each box's last draw, after ``flips`` its last event
    events : (B,) int64, how many there were
    vain : (B,) int64, draws since then after which nothing happened
    neighbours : sites that a flip acts on
    """

    name = "gillespie"

    def __init__(
        self,
        system: Kac,
        batch: int = 1,
        *,
        external: np.ndarray | None = None,
        scale: Scale | None = None,
    ) -> None:
        require_rule(system, Kac)
        self.system = system
        self.clock = np.zeros(batch)
        self.events = np.zeros(batch, np.int64)
        self.vain = np.zeros(batch, np.int64)
        self.scale = system.scale(abs(system.field)) if scale is None else scale
        field = uniform_field(system, self.scale) if external is None else np.asarray(external)
        # Rounding may add 1 to the largest field that the scale has room for.
        room = 2**30 + 1 - self.scale.unit
        if field.ndim != 2 or field.dtype.kind not in "iu" or abs(field).max() > room:
            raise InputError(
                "external",
                f"{field.dtype} {field.shape}",
                f"(Ly, Lx) or (1, 1) integers of at most {room:.0f}",
                "Round it to the units of a scale with room for it: system.scale(largest).",
            )
        self.external = field.astype(np.int32)
        self._stamp = stamp(system.kernel)
        self.neighbours = int(np.count_nonzero(self._stamp))
        self._sites: Sites | None = None

    @property
    def operations(self) -> int:
        """Fields that were updated in all boxes so far: events times neighbours."""
        return int(self.events.sum()) * self.neighbours

    def advance(
        self,
        block: Block,
        *,
        seed: int,
        until: float = np.inf,
        flips: int | None = None,
        stream: str = "kac-gillespie",
    ) -> np.ndarray:
        """Advance every box to the absolute time ``until`` or by ``flips`` events, in place.

        With ``flips``, :attr:`clock` is afterwards the time of each box's last event. The halo
        is current afterwards. Spins may be changed between calls.

        Returns
        -------
        (B,) int64, the number of flips of each box
        """
        self.check(block)
        block.require_spins()
        before, most = self.events.copy(), last_events(self.events, block.batch, until, flips)
        sites = self._follow(block.spins())
        _run(
            block.members, stream_key(seed, stream), until, most, self.clock, self.events,
            self.vain, _UNITS, sites, self._stamp, self._law,
        )  # fmt: skip
        block.load(sites.spins)
        return self.events - before

    def become(self, block: Block, system: Kac, time: float) -> None:
        """Go on by another law from a time on, which all boxes have come to.

        The draws that are due then are made anew, with other numbers: waiting has no memory.
        """
        self.adopt(system)
        self.clock[...] = time
        self.vain += 1

    def adopt(self, system: Kac) -> None:
        """Take another temperature or uniform field, as that of a checkpoint."""
        change = uniform_field(system, self.scale) - uniform_field(self.system, self.scale)
        self.external += change.astype(np.int32)
        self.system = system
        self._sites = None  # no rate is known any more

    def _follow(self, spins: np.ndarray) -> Sites:
        """Take the spins, and compute all anew if they are not those of the last call."""
        if self._sites is not None and np.array_equal(self._sites.spins, spins):
            return self._sites
        own = np.array(spins, np.int8, order="C")
        external = np.array(np.broadcast_to(self.external, own.shape[1:]), np.int32, order="C")
        sums = weighted_sums(own, self.system.kernel)
        rates, rows = np.empty(own.shape, np.uint32), np.empty(own.shape[:2], np.int64)
        tables = [flip_table(self.system, self.scale, finer) for finer in FINER]
        bounds = np.stack([table.bounds for table, _, _ in tables])
        digits = np.stack([table.digits for table, _, _ in tables])
        packed, numbers = in_32_bits(bounds[0], *tables[0][1:], self.scale)
        self._sites = Sites(own, sums, external, rates, rows)
        self._law = Rates(bounds, packed, digits, numbers)
        _all_rates(self._sites, self._law)
        return self._sites

    def check(self, block: Block) -> None:
        """Raise if the blocks cannot be advanced by this solver."""
        if block.device.is_cuda:
            raise InputError("device", "cuda", "'cpu' for Gillespie", "Use --solver sublattice.")
        if not block.closed:
            raise InputError(
                "ranks",
                block.layout.ranks if block.layout else 0,
                "1 rank per lattice for Gillespie, which is closed on itself",
                "Use one rank, several members, or --solver sublattice.",
            )
        if self.external.shape not in ((1, 1), block.shape):
            raise InputError(
                "external", self.external.shape, f"(1, 1) or {block.shape}", "Use a matching field."
            )
        self.system.kernel.require_room(block.shape)


def stamp(kernel: KacKernel) -> np.ndarray:
    """What a spin that turns up adds to the sums around it: (2 reach + 1, 2 reach + 1) int32."""
    return np.rint(2 * kernel.norm * kernel.dense()).astype(np.int32)


def weighted_sums(spins: np.ndarray, kernel: KacKernel) -> np.ndarray:
    """The sum of the integer weights times the spins of all neighbours, (B, Ly, Lx) int32."""

    def along(field: np.ndarray, axis: int) -> np.ndarray:
        out = int(kernel.weights[0]) * field
        for k, weight in enumerate(kernel.weights[1:].tolist(), 1):
            out += weight * (np.roll(field, k, axis) + np.roll(field, -k, axis))
        return out

    wide = spins.astype(np.int32)
    if kernel.nearest:
        return along(wide, 1) + along(wide, 2)
    return along(along(wide, 1), 2) - int(kernel.weights[0]) ** 2 * wide
