r"""The n-fold way: exact continuous-time Glauber dynamics without rejections.

Sites are kept in ten lists, one for each flip rate. The time to the next flip is
exponential with the total rate [Bortz, Kalos, Lebowitz, J. Comput. Phys. 17, 10
(1975)],

.. math:: \Delta t = -\ln(u) / R, \qquad R = \sum_c n_c r_c,

the class is chosen with probability :math:`n_c r_c / R` and the site uniformly
in it. Event ``e`` of box ``b`` uses the noise at (member of b, step e), and an
event that falls beyond the end of a call is drawn again, the same, in the next.
The lists keep their order from call to call: a trajectory does not depend on how
it was cut into calls.
"""

from __future__ import annotations

import math

import numpy as np

from mpiflow.block import Block
from mpiflow.device import kernel
from mpiflow.errors import InputError
from mpiflow.noise import stream_key, threefry, to_unit
from mpiflow.systems.ising import CLASSES, Ising, rate_class

_NO_LIMIT = np.iinfo(np.int64).max


@kernel
def _move(
    site: int, new: int, cls: np.ndarray, place: np.ndarray, lists: np.ndarray, counts: np.ndarray
) -> None:
    """Move a site from the list of its class to that of another, in O(1)."""
    old = cls[site]
    last = lists[old, counts[old] - 1]
    lists[old, place[site]] = last
    place[last] = place[site]
    counts[old] -= 1
    lists[new, counts[new]] = site
    place[site] = counts[new]
    counts[new] += 1
    cls[site] = new


@kernel
def _fill_lists(
    field: np.ndarray,
    b: int,
    halo: int,
    order: np.ndarray,
    cls: np.ndarray,
    place: np.ndarray,
    lists: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Sort the sites into their classes, within a class in the given order."""
    nx = field.shape[2] - 2 * halo
    counts[:] = 0
    for site in order:
        y, x = site // nx + halo, site % nx + halo
        k = field[b, y - 1, x] + field[b, y + 1, x] + field[b, y, x - 1] + field[b, y, x + 1]
        c = rate_class(field[b, y, x], k)
        cls[site] = c
        place[site] = counts[c]
        lists[c, counts[c]] = site
        counts[c] += 1


@kernel
def _store_order(lists: np.ndarray, counts: np.ndarray, order: np.ndarray) -> None:
    """The lists one after the other; filling them again in this order restores them."""
    n = 0
    for c in range(CLASSES):
        order[n : n + counts[c]] = lists[c, : counts[c]]
        n += counts[c]


@kernel
def _choose(u: float, rates: np.ndarray, counts: np.ndarray, lists: np.ndarray) -> int:
    """The site whose share of the total rate holds the number u (0 < u < total)."""
    chosen = -1
    for c in range(CLASSES):
        if counts[c] > 0 and rates[c] > 0.0:
            chosen = c
            share = rates[c] * counts[c]
            if u < share:
                break
            u -= share
    # Rounding may leave u at the very end of the last class.
    index = min(np.int64(u / rates[chosen]), counts[chosen] - 1)
    return lists[chosen, index]


@kernel
def _flip(
    field: np.ndarray,
    b: int,
    halo: int,
    closed: bool,
    site: int,
    cls: np.ndarray,
    place: np.ndarray,
    lists: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Flip a site and move it and its neighbours to their new classes."""
    ny, nx = field.shape[1] - 2 * halo, field.shape[2] - 2 * halo
    iy, ix = site // nx, site % nx
    field[b, iy + halo, ix + halo] = -field[b, iy + halo, ix + halo]
    _move(site, (cls[site] + 5) % CLASSES, cls, place, lists, counts)
    step = 1 if field[b, iy + halo, ix + halo] > 0 else -1
    for direction in range(4):
        jy = iy + (direction == 0) - (direction == 1)
        jx = ix + (direction == 2) - (direction == 3)
        if closed:
            jy, jx = (jy + ny) % ny, (jx + nx) % nx
        elif jy < 0 or jy >= ny or jx < 0 or jx >= nx:
            continue
        neighbour = jy * nx + jx
        # The class index counts neighbour sums in steps of two.
        _move(neighbour, cls[neighbour] + step, cls, place, lists, counts)


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
    order: np.ndarray,
) -> None:
    """Advance every box to time `until`, or to a total of `most` events if that is first."""
    sites = (field.shape[1] - 2 * halo) * (field.shape[2] - 2 * halo)
    cls = np.empty(sites, np.int8)
    place = np.empty(sites, np.int32)
    lists = np.empty((CLASSES, sites), np.int32)
    counts = np.empty(CLASSES, np.int64)
    for b in range(field.shape[0]):
        _fill_lists(field, b, halo, order[b], cls, place, lists, counts)
        while events[b] < most[b]:
            total = 0.0
            for c in range(CLASSES):
                total += counts[c] * rates[c]
            w0, w1 = threefry(key[0], key[1] + members[b], np.uint64(events[b]), np.uint64(0))
            wait = -np.log(to_unit(w0)) / total if total > 0.0 else np.inf
            # A state that can never change waits for ever, also for a number of flips.
            if wait == np.inf or clock[b] + wait > until:
                break
            site = _choose(to_unit(w1) * total, rates, counts, lists)
            _flip(field, b, halo, closed, site, cls, place, lists, counts)
            clock[b] += wait
            events[b] += 1
        _store_order(lists, counts, order[b])


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
    order : (B, sites) int32, the lists of sites of each box, one after the other
    """

    name = "nfold"

    def __init__(self, system: Ising, batch: int = 1) -> None:
        self.system = system
        self.clock = np.zeros(batch)
        self.events = np.zeros(batch, np.int64)
        self.order = np.zeros((batch, 0), np.int32)

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
        current and is current again afterwards.

        Returns
        -------
        (B,) int64, the number of flips of each box
        """
        self.check(block)
        if len(self.clock) != block.batch:
            raise InputError(
                "batch", len(self.clock), f"{block.batch}, as many as boxes", "Make a new solver."
            )
        if np.isnan(until) or (flips is None and np.isinf(until)):
            raise InputError("until", until, "a finite time, or flips", "Give one of them.")
        if flips is not None and flips < 0:
            raise InputError("flips", flips, "0 or more", "Try the number of sites.")
        sites = math.prod(block.shape)
        if self.order.shape[1] != sites:
            self.order = np.tile(np.arange(sites, dtype=np.int32), (block.batch, 1))
        before = self.events.copy()
        _run(
            block.array,
            block.halo,
            block.closed,
            block.members,
            stream_key(seed, stream),
            self.system.flip_rates(),
            until,
            before + flips if flips is not None else np.full_like(before, _NO_LIMIT),
            self.clock,
            self.events,
            self.order,
        )
        block.fill_halo()
        return self.events - before

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
