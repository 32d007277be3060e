"""Vacancies of a periodic box that stay in basins, each, or each close pair, with its own clock.

A *walker* is a vacancy, or a pair of them, with a basin (:mod:`mpiflow.solvers.vacancy.basin`): the
configurations that it has been in of late, between which it flickers. A walker has more than one
state only while none of the sites that its vacancies can be at is among the 112 around a site that
those of another walker can be at: no rate of either then depends on where the other is, so their
stays are independent. ``owner`` knows for each site which walker can be there. One that comes into
the sight of others *interrupts* them: each is put where its path has it at that time, and starts
anew from there, which by the Markov property is exact. Two vacancies that see each other and nobody
else then are one walker, until they are well apart; three or more are *crowded*: each has one
state, a stay is a plain hop, and it is drawn anew whenever a hop of another one changes its
surroundings.

Links of a basin are those of a tree. A hop that closes a ring, as two vacancies that hop in turn
make one, is known, but ends the stay: the next one begins in the state that it leads to. Of each
ring the link with the least flux is the one left out.

The grid shows every walker in one of the states of its basin; which, is of no meaning between
events. Moving it there and back along the links moves the same atoms.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.noise import Word, threefry
from mpiflow.solvers.vacancy.basin import (
    HOP,
    NOWHERE,
    ORDER,
    PARENT,
    STATES,
    Walk,
    draw,
    place_at,
    put_in_order,
)
from mpiflow.solvers.vacancy.events import Events, hop, write
from mpiflow.solvers.vacancy.lists import Triple, put
from mpiflow.solvers.vacancy.rates import Evaluator, find
from mpiflow.systems.alloy import NEIGHBOURS, REACH, VACANCY
from mpiflow.systems.barriers import SITES

#: Rows of a log that an event may need for each vacancy that it moves.
ROWS = STATES + 1
#: Hops of a walker: those of its first vacancy, and of its second one.
WAYS = 2 * NEIGHBOURS
#: States that a single vacancy has at most.
_SINGLE = 12
#: Gap along an axis, in steps of the grid, from which a pair is two walkers again.
_APART = REACH + 3
_PERIODIC = (1, 1, 1)
NOBODY = -1
#: Columns of :class:`Stays`.
AT, COUNT, START, CROWDED, MATE, LEADER, _LAST, _WAY, _MADE = range(9)


class Stays(NamedTuple):
    """The vacancies of a box. A walker is known by the vacancy that leads it.

    Few arrays, as in :class:`mpiflow.solvers.vacancy.basin.Walk`.

    Attributes
    ----------
    place, flat : (n, 3) and (n,) int64, where the grid shows them, as indices of the padded box
    whole : (n, 9) int64; AT: the slot that this is; COUNT: stays so far; START: the slot that the
        present one began in; CROWDED: whether others are in sight; MATE: the second vacancy, or
        -1; LEADER: the walker that it belongs to; LAST, WAY, MADE: the slot and the hop that it
        ends with, and its hops
    begun : (n,) float64, when it began, s
    spot : (n, K, 2) int64, places of both vacancies in each slot as flat indices; -1 for none
    code : (n, K) uint64, tells configurations apart
    link, rates : (n, K, 16) int64 and float64, see :func:`mpiflow.solvers.vacancy.basin.draw`; a
        link is -1 where it leads to no known state, and -2 - slot where it leads to one but is none
        of the tree's
    tree : (2 m,) float64, the least of the ends of stays; leaves from m on
    owner : padded box, int32, which walker can be at a site
    found, met : (n,) int64, room for numbers of vacancies
    """

    place: np.ndarray
    flat: np.ndarray
    whole: np.ndarray
    begun: np.ndarray
    spot: np.ndarray
    code: np.ndarray
    link: np.ndarray
    rates: np.ndarray
    tree: np.ndarray
    owner: np.ndarray
    found: np.ndarray
    met: np.ndarray


def stays(place: np.ndarray, flat: np.ndarray, grid: np.ndarray) -> Stays:
    """Of vacancies at places of a grid, each alone in its basin, at slot 0."""
    n = len(flat)
    whole, spot = np.zeros((n, 9), np.int64), np.full((n, STATES, 2), -1, np.int64)
    whole[:, MATE], whole[:, LEADER], spot[:, 0, 0] = NOBODY, np.arange(n), flat
    return Stays(
        place.copy(), flat.copy(), whole, np.zeros(n), spot, np.zeros((n, STATES), np.uint64),
        np.full((n, STATES, WAYS), -1, np.int64), np.zeros((n, STATES, WAYS)),
        np.full(2 << max(0, n - 1).bit_length(), np.inf),
        np.full(grid.shape, NOBODY, np.int32), np.zeros(n, np.int64), np.zeros(n, np.int64),
    )  # fmt: skip


class Box(NamedTuple):
    """What the events of a box are made with.

    Attributes
    ----------
    grid, origin : padded box (nx, ny, nz) int8, and the lattice's point at its first index
    keys : seed, stream and member
    log : where hops that the grid shows are written
    """

    grid: np.ndarray
    origin: np.ndarray
    evaluator: Evaluator
    stays: Stays
    walk: Walk
    keys: tuple[Word, Word]
    log: Events


# -- who can be where ----------------------------------------------------------------------


@kernel
def _own(owner: np.ndarray, sides: Triple, spot: int, v: int) -> None:
    ny, nz = owner.shape[1], owner.shape[2]
    put(owner, sides, spot // (ny * nz), spot // nz % ny, spot % nz, np.int32(v))


@kernel
def _leave(spot: np.ndarray, owner: np.ndarray, sides: Triple, place: int) -> None:
    """A place is nobody's, unless it is in another state of the basin."""
    elsewhere = False
    for i in range(STATES):
        elsewhere |= (spot[i, 0] == place) | (spot[i, 1] == place)
    if not elsewhere:
        _own(owner, sides, place, NOBODY)


@kernel
def _free(spot: np.ndarray, link: np.ndarray, owner: np.ndarray, sides: Triple, slot: int) -> None:
    """Forget a state of a basin, and its links."""
    first, second = spot[slot, 0], spot[slot, 1]
    spot[slot, 0] = spot[slot, 1] = -1
    _leave(spot, owner, sides, first)
    if second >= 0:
        _leave(spot, owner, sides, second)
    for d in range(WAYS):
        other = link[slot, d]
        if other != -1:
            other = other if other >= 0 else -2 - other
            link[other, d ^ 7] = link[slot, d] = -1


@kernel
def _room(  # type: ignore[no-untyped-def]
    spot, link, owner, sides, ways, at, w
) -> int:
    """A free slot, in place of one of the farthest states if there are too many."""
    for slot in range(STATES if ways > NEIGHBOURS else _SINGLE):
        if spot[slot, 0] < 0:
            return slot
    slot = w[ORDER, put_in_order(link, ways, at, w) - 1]
    _free(spot, link, owner, sides, slot)
    return slot


@kernel
def _others(
    owner: np.ndarray, offsets: np.ndarray, place: int, v: int, found: np.ndarray, count: int
) -> int:
    """Add the walkers but v that can be in sight of a place to the first of ``found``."""
    flat, at = owner.reshape(-1), np.uint64(place)
    near = 0
    for i in range(SITES):
        u = flat[at + offsets[i]]
        near += (u != v) & (u != NOBODY)
    if near == 0:
        return count
    for i in range(SITES):
        u = np.int64(flat[at + offsets[i]])
        if u != NOBODY and u != v:
            new = True
            for k in range(count):
                new &= found[k] != u
            if new:
                found[count] = u
                count += 1
    return count


@kernel
def _apart(place: np.ndarray, sides: Triple, v: int, u: int) -> bool:
    """Whether two vacancies are so far from each other that a pair is none any more."""
    far = False
    for a in range(3):
        gap = (place[v, a] - place[u, a]) % sides[a]
        far |= min(gap, sides[a] - gap) > _APART
    return far


# -- what the grid shows -------------------------------------------------------------------


@kernel
def _hop(  # type: ignore[no-untyped-def]
    grid, origin, halo, sides, place, flat, x, d, time, log, logged
):
    """Let the grid show a hop; returns the rows of the log, and what it changes of a code."""
    before = flat[x]
    i, j, k, atom = hop(grid, halo, sides, _PERIODIC, place, flat, x, d & 7)
    if logged < log.time.size:
        write(log, logged, time, origin, sides, i, j, k, d & 7, atom)
        logged += 1
    return logged, before, flat[x], atom


@kernel
def _change(before: int, after: int, atom: int) -> np.uint64:
    """What a hop changes of a code: each site has a random word for each species."""
    change, zero = np.uint64(0), np.uint64(0)
    for species in (np.uint64(VACANCY), np.uint64(atom)):
        for site in (np.uint64(before), np.uint64(after)):
            change ^= threefry(site, species, zero, zero)[0]
    return change


@kernel
def _show(box: Box, v: int, slot: int, time: float, logged: int) -> int:
    """Let the grid show a walker in another state of its basin; returns the rows of the log."""
    grid, origin, evaluator, stays, w, _, log = box
    law, whole, place, flat = evaluator.law, stays.whole, stays.place, stays.flat
    ordered, mate, here = w.whole, whole[v, MATE], whole[v, AT]
    put_in_order(stays.link[v], NEIGHBOURS if mate < 0 else WAYS, slot, ordered)
    while here != slot:
        back = ordered[HOP, here] ^ 7
        x = v if back < NEIGHBOURS else mate
        logged, _, _, _ = _hop(
            grid, origin, law.halo, law.sides, place, flat, x, back, time, log, logged
        )  # fmt: skip
        here = ordered[PARENT, here]
    whole[v, AT] = slot
    return logged


@kernel
def _find_rates(box: Box, v: int) -> None:
    """The rates of a walker in the state that the grid shows."""
    s, types, evaluator = box.stays, box.grid.reshape(-1), box.evaluator
    out, mate = s.rates[v, s.whole[v, AT]], s.whole[v, MATE]
    find(types, s.flat[v], evaluator, out, 0)
    if mate >= 0:
        find(types, s.flat[mate], evaluator, out, NEIGHBOURS)


# -- stays ---------------------------------------------------------------------------------


@kernel
def _set_end(tree: np.ndarray, v: int, end: float) -> None:
    node = (tree.size >> 1) + v
    tree[node] = end
    node >>= 1
    while node > 0:
        tree[node] = min(tree[2 * node], tree[2 * node + 1])
        node >>= 1


@kernel
def _resume(  # type: ignore[no-untyped-def]
    v, keys, whole, begun, link, rates, tree, w
) -> None:
    """Draw the stay that a walker is in."""
    k0, k1 = threefry(keys[0], keys[1], np.uint64(v), np.uint64(whole[v, COUNT]))
    ways = NEIGHBOURS if whole[v, MATE] < 0 else WAYS
    hops, time, slot, way, _, _ = draw(link[v], rates[v], ways, whole[v, START], w, k0, k1)
    whole[v, _LAST], whole[v, _WAY], whole[v, _MADE] = slot, way, hops
    _set_end(tree, v, begun[v] + time)


@kernel
def _begin(box: Box, v: int, time: float) -> None:
    """A new stay in the state that the grid shows."""
    s, whole = box.stays, box.stays.whole
    whole[v, START], s.begun[v] = whole[v, AT], time
    whole[v, COUNT] += 1
    _resume(v, box.keys, whole, s.begun, s.link, s.rates, s.tree, box.walk)


@kernel
def _only(box: Box, v: int) -> None:
    """Forget all states of a basin but the one that the grid shows."""
    s = box.stays
    for slot in range(STATES):
        if s.spot[v, slot, 0] >= 0 and slot != s.whole[v, AT]:
            _free(s.spot[v], s.link[v], s.owner, box.evaluator.law.sides, slot)


@kernel
def _path(box: Box, v: int, time: float, logged: int) -> tuple[int, int]:
    """Show a walker where it is at a time of its stay: hops so far, rows of the log."""
    s, several = box.stays, 0
    for slot in range(STATES):
        several += s.spot[v, slot, 0] >= 0
    if several == 1 or s.whole[v, LEADER] != v:
        return 0, logged
    k0, k1 = threefry(box.keys[0], box.keys[1], np.uint64(v), np.uint64(s.whole[v, COUNT]))
    ways = NEIGHBOURS if s.whole[v, MATE] < 0 else WAYS
    tau = time - s.begun[v]
    slot, hops = place_at(s.link[v], s.rates[v], ways, s.whole[v, START], tau, box.walk, k0, k1)
    return hops, _show(box, v, slot, time, logged)


@kernel
def show_all(box: Box, time: float, logged: int) -> tuple[int, int]:
    """Show every walker where it is at a time; hops of their stays so far, rows of the log."""
    total = 0
    for v in range(box.stays.flat.size):
        hops, logged = _path(box, v, time, logged)
        total += hops
    return total, logged


@kernel
def begin_all(box: Box, time: float) -> None:
    """First stays of vacancies that are alone in their basins."""
    s, law = box.stays, box.evaluator.law
    n = s.flat.size
    for v in range(n):
        _own(s.owner, law.sides, s.flat[v], v)
    for v in range(n):
        s.whole[v, CROWDED] = _others(s.owner, law.offsets, s.flat[v], v, s.found, 0) > 0
        _find_rates(box, v)
        _begin(box, v, time)


@kernel
def resume_all(box: Box) -> None:
    """Find everything that follows from the states of basins and the beginnings of stays."""
    s, law, whole, nothing = box.stays, box.evaluator.law, box.stays.whole, box.log.time.size
    for v in range(s.flat.size):
        if whole[v, LEADER] != v:
            continue
        shown, mate = whole[v, AT], whole[v, MATE]
        for slot in range(STATES):
            if s.spot[v, slot, 0] >= 0:
                _show(box, v, slot, 0.0, nothing)
                _own(s.owner, law.sides, s.flat[v], v)
                s.spot[v, slot, 0] = s.flat[v]
                if mate >= 0:
                    _own(s.owner, law.sides, s.flat[mate], v)
                    s.spot[v, slot, 1] = s.flat[mate]
                _find_rates(box, v)
        _show(box, v, shown, 0.0, nothing)
    for v in range(s.flat.size):
        if whole[v, LEADER] == v:
            _resume(v, box.keys, whole, s.begun, s.link, s.rates, s.tree, box.walk)


# -- meetings ------------------------------------------------------------------------------


@kernel
def _part(box: Box, v: int) -> int:
    """Let the vacancies of a walker of one state be walkers of their own; the second one, or -1."""
    s, whole, sides = box.stays, box.stays.whole, box.evaluator.law.sides
    u = whole[v, MATE]
    if u >= 0:
        whole[v, MATE], whole[u, LEADER], whole[u, AT] = NOBODY, u, 0
        s.spot[v, whole[v, AT], 1], s.spot[u, 0, 0] = -1, s.flat[u]
        _own(s.owner, sides, s.flat[u], u)
    return u


@kernel
def _pair(box: Box, v: int, u: int) -> None:
    """Let two vacancies of one state each be one walker."""
    s, whole, sides = box.stays, box.stays.whole, box.evaluator.law.sides
    whole[v, MATE], whole[u, LEADER] = u, v
    whole[v, CROWDED] = whole[u, CROWDED] = 0
    s.spot[u, whole[u, AT], 0], s.spot[v, whole[v, AT], 1] = -1, s.flat[u]
    _own(s.owner, sides, s.flat[u], v)
    _set_end(s.tree, u, np.inf)


@kernel
def _meet(box: Box, v: int, count: int, time: float, logged: int) -> tuple[int, int]:
    """Let a walker of one state and the first ones of ``found`` begin anew, as they now see them.

    Returns the hops of the stays of others so far, and the rows of the log.
    """
    s, whole, offsets = box.stays, box.stays.whole, box.evaluator.law.offsets
    met, hops, many = s.met, 0, 0
    for i in range(count + 1):
        u = s.found[i] if i < count else v
        if i < count:
            more, logged = _path(box, u, time, logged)
            hops += more
            _only(box, u)
        met[many] = u
        many += 1
        mate = _part(box, u)
        if mate >= 0:
            met[many] = mate
            many += 1
    for i in range(many):
        u = met[i]
        if whole[u, LEADER] == u and whole[u, MATE] < 0:
            near = _others(s.owner, offsets, s.flat[u], u, s.found, 0)
            other = s.found[0]
            whole[u, CROWDED] = near > 0
            if near == 1 and whole[other, MATE] < 0:
                if _others(s.owner, offsets, s.flat[other], other, s.found, 0) == 1:
                    _pair(box, u, other)
    for i in range(many):
        if whole[met[i], LEADER] == met[i]:
            _find_rates(box, met[i])
            _begin(box, met[i], time)
    return hops, logged


@kernel
def _close_ring(
    link: np.ndarray, rates: np.ndarray, ways: int, at: int, d: int, to: int, w: Walk
) -> None:
    """Know a hop that leads from one state of a basin to another.

    Of the ring that it closes, the link with the least flux leaves the tree, so as fluxes are where
    every link carries as much either way.
    """
    whole, weight = w.whole, w.real[0]
    count = put_in_order(link, ways, at, whole)
    weight[at] = 1.0
    for i in range(1, count):
        slot = whole[ORDER, i]
        below, hop = whole[PARENT, slot], whole[HOP, slot]
        back = rates[slot, hop ^ 7]
        weight[slot] = weight[below] * rates[below, hop] / back if back > 0.0 else np.inf
    least, weakest, slot = rates[at, d], -1, to
    while slot != at:
        flux = weight[slot] * rates[slot, whole[HOP, slot] ^ 7]
        if flux < least:
            least, weakest = flux, slot
        slot = whole[PARENT, slot]
    link[at, d], link[to, d ^ 7] = -2 - to, -2 - at
    if weakest >= 0:
        below, hop = whole[PARENT, weakest], whole[HOP, weakest]
        link[below, hop], link[weakest, hop ^ 7] = -2 - weakest, -2 - below
        link[at, d], link[to, d ^ 7] = to, at


@kernel
def run(
    box: Box, clock: float, until: float, hops: int, most: int, room: int
) -> tuple[int, int, float, int]:
    """Let the stays of a box end, one after the other.

    Parameters
    ----------
    clock : time of the last event, s
    until : ends that would come after this time wait
    hops, most : stop when stays with so many hops have ended, or after so many events
    room : stop when so many rows of the log are full

    Returns
    -------
    hops of the stays that have ended, events, time of the last one, rows of the log
    """
    # Names for all arrays: reading one from its tuple costs as much as a division.
    grid, origin, evaluator, stays, w, keys, log = box
    place, flat, whole, begun, spot, code, link, rates, tree, owner, found, _ = stays
    law, ordered = evaluator.law, w.whole
    halo, sides, offsets, types = law.halo, law.sides, law.offsets, grid.reshape(-1)
    ended, events, logged = 0, 0, 0
    while ended < hops and events < most and logged < room:
        time = tree[1]
        if not (time <= until and time < np.inf):
            break
        node = 1
        while node < tree.size >> 1:
            node *= 2
            if tree[node] > time:
                node += 1
        v = node - (tree.size >> 1)
        clock = time
        events += 1
        ended += whole[v, _MADE]
        if whole[v, AT] != whole[v, _LAST]:
            logged = _show(box, v, whole[v, _LAST], time, logged)
        here, d, mate = whole[v, AT], whole[v, _WAY], whole[v, MATE]
        if d != NOWHERE:
            ways = NEIGHBOURS if mate < 0 else WAYS
            x = v if d < NEIGHBOURS else mate
            logged, before, after, atom = _hop(
                grid, origin, halo, sides, place, flat, x, d, time, log, logged
            )  # fmt: skip
            to = link[v, here, d]
            if to != -1:
                whole[v, AT] = to if to >= 0 else -2 - to
            else:
                near = _others(owner, offsets, after, v, found, 0)
                if (
                    near > 0
                    or whole[v, CROWDED] == 1
                    or (mate >= 0 and _apart(place, sides, v, mate))
                ):
                    if whole[v, CROWDED] == 1:  # those that saw it leave
                        near = _others(owner, offsets, before, v, found, near)
                    _only(box, v)
                    spot[v, here, 0] = flat[v]
                    if mate >= 0:
                        spot[v, here, 1] = flat[mate]
                    _leave(spot[v], owner, sides, before)
                    _own(owner, sides, after, v)
                    more, logged = _meet(box, v, near, time, logged)
                    ended += more
                    continue
                new = code[v, here] ^ _change(before, after, atom)
                other = -1 if mate < 0 else flat[mate]
                slot = -1
                for i in range(STATES):
                    if code[v, i] == new and spot[v, i, 0] == flat[v] and spot[v, i, 1] == other:
                        slot = i
                if slot >= 0:
                    _close_ring(link[v], rates[v], ways, here, d, slot, w)
                else:
                    slot = _room(spot[v], link[v], owner, sides, ways, here, ordered)
                    spot[v, slot, 0], spot[v, slot, 1], code[v, slot] = flat[v], other, new
                    link[v, here, d], link[v, slot, d ^ 7] = slot, here
                    _own(owner, sides, after, v)
                    find(types, flat[v], evaluator, rates[v, slot], 0)
                    if mate >= 0:
                        find(types, flat[mate], evaluator, rates[v, slot], NEIGHBOURS)
                whole[v, AT] = slot
        whole[v, START], begun[v] = whole[v, AT], time
        whole[v, COUNT] += 1
        _resume(v, keys, whole, begun, link, rates, tree, w)
    return ended, events, clock, logged
