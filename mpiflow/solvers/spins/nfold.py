r"""The n-fold way: exact continuous-time Glauber dynamics without rejections.

Sites are kept in ten lists, one for each flip rate. The time to the next flip is
exponential with the total rate [Bortz, Kalos, Lebowitz, J. Comput. Phys. 17, 10
(1975)],

.. math:: \Delta t = -\ln(u) / R, \qquad R = \sum_c n_c r_c,

the class is chosen with probability :math:`n_c r_c / R` and the site uniformly
in it. Event ``e`` of box ``b`` uses the noise at (member of b, step e), and an
event that falls beyond the end of a call is drawn again, the same, in the next.

The lists of a box share one pool with some free places between them, and one
word for each site holds its class and its place there: with the spin, 10 bytes
a site. They stay alive from call to call. Every call first compares the classes
with those of the spins, at memory speed, and sorts the sites again if anything
was changed in between: a trajectory depends on the spins and the order of the
lists, not on how it was cut into calls.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import kernel, prefetch_to_read, prefetch_to_write
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.noise import exponential, stream_key, threefry, to_unit
from mpiflow.solvers.event_limits import last_events
from mpiflow.solvers.spins.site_lists import (
    NOWHERE,
    ONE,
    SiteLists,
    lay_out,
    lists_in,
    lists_of,
    make_room,
    ordered,
    surroundings,
)
from mpiflow.systems.ising import CLASSES, Ising, rate_class

#: A total rate below is taken for this one where the law changes: nothing happens either way.
SLOWEST = 1e-200
#: Events whose noise is drawn at once.
_AHEAD = 64
#: Sites of a box that the second-level cache holds: of more, memory is asked ahead of its use.
_IN_CACHE = 2**16

_FIVE = np.uint64(5)
#: The class of a site is above these bits of its word, its place in the list in them.
_SHIFT = np.uint64(28)
_PLACE = np.uint64(2**28 - 1)
MAX_SITES = 2**28


# -- noise ----------------------------------------------------------------------------------


@kernel
def _draw(
    k0: np.uint64, k1: np.uint64, first: np.uint64, waits: np.ndarray, choices: np.ndarray
) -> None:
    """Unit exponentials and uniforms of the events from `first` on."""
    for i in range(waits.size):
        w0, w1 = threefry(k0, k1, first + np.uint64(i), np.uint64(0))
        waits[i] = exponential(w0)
        choices[i] = to_unit(w1)


# -- lists ----------------------------------------------------------------------------------


@kernel
def _differ(field: np.ndarray, halo: int, info: np.ndarray) -> bool:
    """Whether the class of any site is not that of its spin and neighbours."""
    ny, nx = field.shape[0] - 2 * halo, field.shape[1] - 2 * halo
    for y in range(ny):
        if _row_differs(
            field[y + halo - 1, halo : halo + nx],
            field[y + halo, halo - 1 : halo + nx + 1],
            field[y + halo + 1, halo : halo + nx],
            info[y * nx : (y + 1) * nx],
        ):
            return True
    return False


@kernel
def _row_differs(above: np.ndarray, row: np.ndarray, below: np.ndarray, info: np.ndarray) -> bool:
    differences = np.uint32(0)
    for x in range(info.size):
        k = above[x] + below[x] + row[x] + row[x + 2]
        differences |= np.uint32(info[x] >> np.uint32(28)) ^ np.uint32(rate_class(row[x + 1], k))
    return differences != 0


@kernel
def _sort(field: np.ndarray, halo: int, lists: SiteLists) -> bool:
    """Sort the sites into their classes, within a class in their present order.

    Returns False, with the lists in disorder, if a spin is not -1 or 1.
    """
    nx, counts = field.shape[1] - 2 * halo, lists.counts
    order = ordered(lists)
    counts[:] = 0
    for i in range(order.size):
        site = np.int64(order[i])
        y, x = site // nx + halo, site % nx + halo
        k = field[y - 1, x] + field[y + 1, x] + field[y, x - 1] + field[y, x + 1]
        if field[y, x] * field[y, x] != 1:
            return False
        c = np.uint64(rate_class(field[y, x], k))
        lists.info[site] = c << _SHIFT | counts[c]
        counts[c] += ONE
    lay_out(order, lists, _SHIFT)
    return True


@kernel
def _update(fields: np.ndarray, halo: int, lists: SiteLists) -> bool:
    """Make the lists of all boxes those of their spins; False if a spin is not -1 or 1."""
    for b in range(fields.shape[0]):
        mine = lists_in(lists, b)
        if _differ(fields[b], halo, mine.info) and not _sort(fields[b], halo, mine):
            return False
    return True


# -- events ---------------------------------------------------------------------------------


@kernel
def choose(uniform: float, shares: tuple[float, ...]) -> tuple[float, np.uint64, float]:
    """The sum of the ten shares, the class whose share holds the number `uniform` of it, the rest.

    The rest is how far inside the share the number lies. Selects instead of branches: which
    class comes next cannot be predicted. Two short chains of additions instead of a long one:
    they never decrease, also in floating point, and stay equal where a share is zero.
    """
    d0 = shares[0]
    d1 = d0 + shares[1]
    d2 = d1 + shares[2]
    d3 = d2 + shares[3]
    d4 = d3 + shares[4]
    u0 = shares[5]
    u1 = u0 + shares[6]
    u2 = u1 + shares[7]
    u3 = u2 + shares[8]
    u4 = u3 + shares[9]
    total = d4 + u4
    v = uniform * total
    w = v - d4  # negative for a down spin
    if w >= u4:  # by rounding, at the very end of the last class with a share
        last = 0
        for c in range(CLASSES):
            last = c if shares[c] > 0.0 else last
        return total, np.uint64(last), shares[last]
    below = np.uint64(v >= d0) + np.uint64(v >= d1) + np.uint64(v >= d2) + np.uint64(v >= d3)
    above = np.uint64(w >= u0) + np.uint64(w >= u1) + np.uint64(w >= u2) + np.uint64(w >= u3)
    rest = v - d0 if v >= d0 else v
    rest = v - d1 if v >= d1 else rest
    rest = v - d2 if v >= d2 else rest
    rest = v - d3 if v >= d3 else rest
    rest = w if w >= 0.0 else rest
    rest = w - u0 if w >= u0 else rest
    rest = w - u1 if w >= u1 else rest
    rest = w - u2 if w >= u2 else rest
    rest = w - u3 if w >= u3 else rest
    return total, below + np.uint64(w >= 0.0) + above, rest


@kernel
def _run(
    field: np.ndarray,
    halo: int,
    closed: bool,
    members: np.ndarray,
    key: np.ndarray,
    rates: np.ndarray,
    until: float,
    most: np.ndarray,
    clock: np.ndarray,
    events: np.ndarray,
    lists: SiteLists,
) -> None:
    """Advance every box to time `until`, or to a total of `most` events if that is first."""
    inverse = np.zeros(CLASSES)
    for c in range(CLASSES):
        if rates[c] > 0.0:
            inverse[c] = 1.0 / rates[c]
    waits, choices = np.empty(_AHEAD), np.empty(_AHEAD)
    for b in range(field.shape[0]):
        mine, running = lists_in(lists, b), True
        while running and events[b] < most[b]:
            ahead = min(most[b] - events[b], _AHEAD)
            _draw(key[0], key[1] + members[b], np.uint64(events[b]), waits[:ahead], choices[:ahead])
            noise = waits[:ahead], choices[:ahead]
            clock[b], done = _follow(
                field[b], halo, closed, rates, inverse, *noise, until, clock[b], mine
            )
            events[b] += done
            running = done == ahead


@kernel
def _fetch_places(
    near: np.ndarray, info: np.ndarray, pool: np.ndarray, base: np.ndarray, counts: np.ndarray
) -> None:
    """Ask for what moves of these sites will write to, all at once: each may be far in memory."""
    for j in range(5):
        if near[j] != NOWHERE:
            word = np.uint64(info[near[j]])
            old = word >> _SHIFT
            prefetch_to_write(pool, base[old] + (word & _PLACE))
            prefetch_to_write(info, np.uint64(pool[base[old] + counts[old] - ONE]))


@kernel
def _follow(
    field: np.ndarray,
    halo: int,
    closed: bool,
    rates: np.ndarray,
    inverse: np.ndarray,
    waits: np.ndarray,
    choices: np.ndarray,
    until: float,
    clock: float,
    lists: SiteLists,
) -> tuple[float, int]:
    """Events of one box with the given noise; the time of the last, and how many there were."""
    ny, nx = np.uint64(field.shape[0] - 2 * halo), np.uint64(field.shape[1] - 2 * halo)
    info, pool, base, counts = lists
    near, far = np.empty(5, np.uint64), info.size > _IN_CACHE
    for i in range(waits.size):
        shares = (
            np.int64(counts[0]) * rates[0],
            np.int64(counts[1]) * rates[1],
            np.int64(counts[2]) * rates[2],
            np.int64(counts[3]) * rates[3],
            np.int64(counts[4]) * rates[4],
            np.int64(counts[5]) * rates[5],
            np.int64(counts[6]) * rates[6],
            np.int64(counts[7]) * rates[7],
            np.int64(counts[8]) * rates[8],
            np.int64(counts[9]) * rates[9],
        )
        total, chosen, rest = choose(choices[i], shares)
        wait = waits[i] / total
        # A state that can never change waits for ever, also for a number of flips.
        if wait == np.inf or clock + wait > until:
            return clock, i
        clock += wait
        place = min(np.uint64(rest * inverse[chosen]), counts[chosen] - ONE)
        site = np.uint64(pool[base[chosen] + place])
        up = chosen >= _FIVE
        y, x = site // nx, site % nx
        row, column = y + np.uint64(halo), x + np.uint64(halo)
        near[0] = site
        near[1], near[2], near[3], near[4] = site - nx, site + nx, site - ONE, site + ONE
        if x == 0 or x == nx - ONE or y == 0 or y == ny - ONE:
            surroundings(site, ny, nx, closed, near)
        if far:
            prefetch_to_write(field, row * np.uint64(field.shape[1]) + column)
            _fetch_places(near, info, pool, base, counts)
            # The next site's place is near where it would be now, most often in its cache line.
            _, likely, rest = choose(choices[min(i + 1, waits.size - 1)], shares)
            there = min(np.uint64(rest * inverse[likely]), counts[likely] - ONE)
            prefetch_to_read(pool, base[likely] + there)
        # The site itself, then its neighbours. Classes count neighbour sums in steps of two.
        step = np.uint64(2**64 - 5) if up else _FIVE
        for j in range(5):
            mover = near[j]
            if mover != NOWHERE:
                # As _move of rule_nfold.py, but written out: a function took three times as long.
                word = np.uint64(info[mover])
                old = word >> _SHIFT
                last = counts[old] - ONE
                # The last of the old list goes to the place that becomes free.
                filler = pool[base[old] + last]
                pool[base[old] + (word & _PLACE)] = filler
                info[filler] = word
                counts[old] = last
                new = old + step
                end = counts[new]
                if base[new] + end == base[new + ONE]:
                    make_room(new, pool, base, counts)
                pool[base[new] + end] = mover
                info[mover] = new << _SHIFT | end
                counts[new] = end + ONE
            step = np.uint64(2**64 - 1) if up else ONE
        field[row, column] = np.int8(-1) if up else np.int8(1)
    return clock, waits.size


class NFold:
    """Exact event-driven solver for small lattices and patches, on the CPU.

    One object follows one batch of boxes. To go on with a trajectory bit for bit,
    keep the spins and the three attributes.

    Parameters
    ----------
    system : the model
    batch : number of boxes

    Attributes
    ----------
    clock : (B,) float64, the time of each box's last event
    events : (B,) int64, how many there were

    Raises
    ------
    InputError : by its methods: spins on several ranks or on a GPU, boxes too large, another system
    """

    name = "nfold"

    def __init__(self, system: Ising, batch: int = 1) -> None:
        require_rule(system, Ising)
        self.system: Any = system
        self._begin(batch, CLASSES, np.uint32)

    def _begin(self, batch: int, classes: int, word: type) -> None:
        """No event yet; words of this type hold the class of a site and its place."""
        self.clock = np.zeros(batch)
        self.events = np.zeros(batch, np.int64)
        self._classes, self._word = classes, word
        self._allocate(batch, 0)

    def _allocate(self, batch: int, sites: int) -> None:
        self._lists = lists_of(batch, sites, self._classes, self._word)

    @property
    def order(self) -> np.ndarray:
        """(B, sites) int32, the lists of sites of each box, one after the other: a copy.

        Set it to go on with a trajectory. Before the first call it is empty.
        """
        out = np.empty(self._lists.info.shape, np.int32)
        _, pool, base, counts = self._lists
        for b in range(len(out)):
            ends = zip(base[b], base[b, :-1] + counts[b], strict=False)
            out[b] = np.concatenate([pool[b, start:end] for start, end in ends])
        return out

    @order.setter
    def order(self, order: np.ndarray) -> None:
        order = np.asarray(order)
        batch, sites = len(self.clock), order.shape[-1]
        if order.shape != (batch, sites) or not np.array_equal(
            np.sort(order, axis=1), np.broadcast_to(np.arange(sites), (batch, sites))
        ):  # kernels do not check bounds
            raise InputError(
                "order",
                order.shape,
                f"({batch}, sites) numbers, each row a permutation of 0 to sites - 1",
                "Use the order of the solver to go on with.",
            )
        self._allocate(batch, sites)
        self._lists.pool[:, :sites] = order

    def advance(
        self,
        block: Block,
        *,
        seed: int,
        until: float = np.inf,
        flips: int | None = None,
        stream: str = "nfold",
    ) -> np.ndarray:
        """Advance every box to the absolute time ``until`` or by ``flips`` events, in place.

        With ``flips``, :attr:`clock` is afterwards the time of each box's last
        event; a box whose total rate is zero stays as it is. The halo must be
        current and is current again afterwards. Spins may be changed between calls.

        Returns
        -------
        (B,) int64, the number of flips of each box
        """
        self.check(block)
        self._require_states(block)
        before, most = self.events.copy(), last_events(self.events, block.batch, until, flips)
        sites = math.prod(block.shape)
        if self._lists.info.shape[1] != sites:
            self._allocate(block.batch, sites)
        self._run(block, stream_key(seed, stream), until, most)
        block.fill_halo()
        return self.events - before

    def become(self, block: Block, system: Any, time: float) -> None:
        r"""Go on by another law from a time on, which all boxes have come to.

        What the number of the pending event was drawn for is
        :math:`\int R \, dt`: what is left of it is waited for at the new total rate, as if the
        last event had been as much earlier or later.
        """
        self.check(block)
        before = self._totals()
        self.adopt(system)
        self._run(block, stream_key(0, "nfold"), -np.inf, self.events)  # sorts, and no event
        waited = (time - self.clock) * before
        self.clock = time - waited / np.maximum(self._totals(), SLOWEST)

    def adopt(self, system: Any) -> None:
        """Take another law, as that of a checkpoint; its clock is set next."""
        self.system = system

    def _totals(self) -> np.ndarray:
        """Total rates of the boxes as of the last call, (B,) float64."""
        return np.asarray(self._lists.counts.astype(np.float64) @ normal_rates(self.system))

    def _require_states(self, block: Block) -> None:
        block.require_spins()

    def _run(self, block: Block, key: np.ndarray, until: float, most: np.ndarray) -> None:
        """Bring the lists up to date, then the boxes to a time or a total of events."""
        if not _update(block.array, block.halo, self._lists):
            self._allocate(block.batch, 0)
            raise InputError("spins", "another", "-1 or 1 at every site", "Set an initial state.")
        rates = normal_rates(self.system)
        _run(
            block.array, block.halo, block.closed, block.members, key, rates, until, most,
            self.clock, self.events, self._lists,
        )  # fmt: skip

    @staticmethod
    def check(block: Block) -> None:
        """Raise if the blocks cannot be advanced by this solver."""
        if block.device.is_cuda:
            raise InputError(
                "device", "cuda", "'cpu' for the n-fold solver", "Use --solver sublattice."
            )
        if block.policy == "exchange" and not block.closed:
            raise InputError(
                "ranks",
                block.layout.ranks if block.layout else 0,
                "1 rank per lattice for the n-fold solver",
                "Use one rank, several members, or --solver sublattice.",
            )
        if math.prod(block.shape) > MAX_SITES:
            raise InputError(
                "size",
                block.shape,
                f"at most {MAX_SITES} sites in a box for the n-fold solver",
                "Use a smaller lattice, or --solver sublattice.",
            )


def normal_rates(system: Ising) -> np.ndarray:
    """Rates of the ten classes, (10,) float64; below 2e-308 they are 0, so that 1 / r exists."""
    rates = system.flip_rates()
    return np.where(rates < np.finfo(np.float64).tiny, 0.0, rates)
