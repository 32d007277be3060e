"""Walkers: vacancies and close groups of them, each with the states that it flickers between.

A *walker* is a vacancy, or a few close ones, with a basin (:mod:`mpiflow.solvers.vacancy.basin`):
the configurations that it has been in of late. ``owner`` knows for each site which walker can be
there.

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
from mpiflow.solvers.vacancy.basin import HOP, ORDER, PARENT, STATES, Walk, put_in_order
from mpiflow.solvers.vacancy.events import Events, hop, write
from mpiflow.solvers.vacancy.lists import Triple, put
from mpiflow.solvers.vacancy.rates import Evaluator
from mpiflow.systems.alloy import NEIGHBOURS, REACH, VACANCY
from mpiflow.systems.barriers import SITES

#: Rows of a log that an event may need for each vacancy that it moves.
ROWS = STATES + 1
#: Vacancies of a walker, at most, and its hops: those of its first vacancy, then of its second...
GROUP = 6
WAYS = GROUP * NEIGHBOURS
#: States that a single vacancy has at most.
_SINGLE = 12
#: Gap along an axis, in steps of the grid, beyond which a vacancy leaves a group.
_APART = REACH + 3
_PERIODIC = (1, 1, 1)
NOBODY = -1
#: Columns of :class:`Stays`.
AT, COUNT, START, CROWDED, SIZE, LEADER, LAST, WAY, MADE, MEMBERS = range(10)
COLUMNS = MEMBERS + GROUP


class Stays(NamedTuple):
    """The vacancies of a box. A walker is known by the vacancy that leads it.

    Few arrays, as in :class:`mpiflow.solvers.vacancy.basin.Walk`.

    Attributes
    ----------
    place, flat : (n, 3) and (n,) int64, where the grid shows them, as indices of the padded box
    whole : (n, 15) int64; AT: the slot that this is; COUNT: stays so far; START: the slot that the
        present one began in; CROWDED: whether others are in sight; SIZE: how many vacancies the
        walker has; LEADER: the walker that it belongs to; LAST, WAY, MADE: the slot and the hop
        that it ends with, and its hops; MEMBERS + i: the vacancies of the walker
    begun : (n,) float64, when it began, s
    spot : (n, K, 6) int64, places of its vacancies in each slot as flat indices; -1 for none
    code : (n, K) uint64, tells configurations apart
    link, rates : (n, K, 48) int64 and float64, see :func:`mpiflow.solvers.vacancy.basin.draw`; a
        link is -1 where it leads to no known state, and -2 - slot where it leads to one but is none
        of the tree's
    tree : (2 m,) float64, the least of the ends of stays; leaves from m on
    owner : padded box, int32, which walker can be at a site
    found, met, group : (n,) int64, room for numbers of vacancies
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
    group: np.ndarray


def stays(place: np.ndarray, flat: np.ndarray, grid: np.ndarray) -> Stays:
    """Of vacancies at places of a grid, each alone in its basin, at slot 0."""
    n = len(flat)
    whole, spot = np.zeros((n, COLUMNS), np.int64), np.full((n, STATES, GROUP), -1, np.int64)
    whole[:, SIZE], whole[:, LEADER], spot[:, 0, 0] = 1, np.arange(n), flat
    whole[:, MEMBERS] = np.arange(n)
    return Stays(
        place.copy(), flat.copy(), whole, np.zeros(n), spot, np.zeros((n, STATES), np.uint64),
        np.full((n, STATES, WAYS), -1, np.int64), np.zeros((n, STATES, WAYS)),
        np.full(2 << max(0, n - 1).bit_length(), np.inf),
        np.full(grid.shape, NOBODY, np.int32), np.zeros(n, np.int64), np.zeros(n, np.int64),
        np.zeros(n, np.int64),
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
def own(owner: np.ndarray, sides: Triple, spot: int, v: int) -> None:
    ny, nz = owner.shape[1], owner.shape[2]
    put(owner, sides, spot // (ny * nz), spot // nz % ny, spot % nz, np.int32(v))


@kernel
def leave(spot: np.ndarray, owner: np.ndarray, sides: Triple, place: int) -> None:
    """A place is nobody's, unless it is in another state of the basin."""
    elsewhere = False
    for i in range(STATES):
        for k in range(GROUP):
            elsewhere |= spot[i, k] == place
    if not elsewhere:
        own(owner, sides, place, NOBODY)


@kernel
def free(spot: np.ndarray, link: np.ndarray, owner: np.ndarray, sides: Triple, slot: int) -> None:
    """Forget a state of a basin, and its links."""
    for k in range(GROUP):
        place = spot[slot, k]
        spot[slot, k] = -1
        if place >= 0:
            leave(spot, owner, sides, place)
    for d in range(WAYS):
        other = link[slot, d]
        if other != -1:
            other = other if other >= 0 else -2 - other
            link[other, d ^ 7] = link[slot, d] = -1


@kernel
def room_for(  # type: ignore[no-untyped-def]
    spot, link, owner, sides, ways, at, w
) -> int:
    """A free slot, in place of one of the farthest states if there are too many."""
    for slot in range(STATES if ways > NEIGHBOURS else _SINGLE):
        if spot[slot, 0] < 0:
            return slot
    slot = w[ORDER, put_in_order(link, ways, at, w) - 1]
    free(spot, link, owner, sides, slot)
    return slot


@kernel
def others(
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
def scattered(s: Stays, sides: Triple, v: int) -> bool:
    """Whether a vacancy of a walker is far from all others of it."""
    whole, place, size = s.whole, s.place, s.whole[v, SIZE]
    alone = False
    for i in range(size):
        least = sides[0] + sides[1] + sides[2]
        for j in range(size):
            widest = 0
            for a in range(3):
                gap = place[whole[v, MEMBERS + i], a] - place[whole[v, MEMBERS + j], a]
                gap %= sides[a]
                widest = max(widest, min(gap, sides[a] - gap))
            if i != j:
                least = min(least, widest)
        alone |= size > 1 and least > _APART
    return alone


@kernel
def only(s: Stays, sides: Triple, v: int) -> None:
    """Forget all states of a basin but the one that the grid shows."""
    for slot in range(STATES):
        if s.spot[v, slot, 0] >= 0 and slot != s.whole[v, AT]:
            free(s.spot[v], s.link[v], s.owner, sides, slot)


# -- what the grid shows -------------------------------------------------------------------


@kernel
def hop_shown(  # type: ignore[no-untyped-def]
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
def change(before: int, after: int, atom: int) -> np.uint64:
    """What a hop changes of a code: each site has a random word for each species."""
    change, zero = np.uint64(0), np.uint64(0)
    for species in (np.uint64(VACANCY), np.uint64(atom)):
        for site in (np.uint64(before), np.uint64(after)):
            change ^= threefry(site, species, zero, zero)[0]
    return change


@kernel
def show(box: Box, v: int, slot: int, time: float, logged: int) -> int:
    """Let the grid show a walker in another state of its basin; returns the rows of the log."""
    grid, origin, evaluator, stays, w, _, log = box
    law, whole, place, flat = evaluator.law, stays.whole, stays.place, stays.flat
    ordered, here = w.whole, whole[v, AT]
    put_in_order(stays.link[v], NEIGHBOURS * whole[v, SIZE], slot, ordered)
    while here != slot:
        back = ordered[HOP, here] ^ 7
        x = whole[v, MEMBERS + back // NEIGHBOURS]
        logged, _, _, _ = hop_shown(
            grid, origin, law.halo, law.sides, place, flat, x, back, time, log, logged
        )  # fmt: skip
        here = ordered[PARENT, here]
    whole[v, AT] = slot
    return logged


@kernel
def set_end(tree: np.ndarray, v: int, end: float) -> None:
    node = (tree.size >> 1) + v
    tree[node] = end
    node >>= 1
    while node > 0:
        tree[node] = min(tree[2 * node], tree[2 * node + 1])
        node >>= 1


# -- groups and rings ----------------------------------------------------------------------


@kernel
def part(s: Stays, sides: Triple, v: int) -> None:
    """Let the vacancies of a walker of one state be walkers of their own."""
    whole, slot = s.whole, s.whole[v, AT]
    for k in range(1, whole[v, SIZE]):
        u = whole[v, MEMBERS + k]
        whole[u, SIZE], whole[u, LEADER], whole[u, AT], whole[u, MEMBERS] = 1, u, 0, u
        s.spot[v, slot, k], s.spot[u, 0, 0] = -1, s.flat[u]
        own(s.owner, sides, s.flat[u], u)
    whole[v, SIZE] = 1


@kernel
def join(s: Stays, sides: Triple, v: int, u: int) -> None:
    """Let a vacancy of one state belong to a walker of one state."""
    whole, size = s.whole, s.whole[v, SIZE]
    whole[v, MEMBERS + size], whole[v, SIZE], whole[u, LEADER] = u, size + 1, v
    whole[v, CROWDED] = whole[u, CROWDED] = 0
    s.spot[u, whole[u, AT], 0], s.spot[v, whole[v, AT], size] = -1, s.flat[u]
    own(s.owner, sides, s.flat[u], v)
    set_end(s.tree, u, np.inf)


@kernel
def close_ring(
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
