"""Stays of walkers, one after the other, each walker with its own clock.

A walker (:mod:`mpiflow.solvers.vacancy.walkers`) has more than one state only while none of the
sites that its vacancies can be at is among the 112 around a site that those of another walker can
be at: no rate of either then depends on where the other is, so their stays are independent. One
that comes into the sight of others *interrupts* them: each is put where its path has it at that
time, and starts anew from there, which by the Markov property is exact. Two vacancies that see each
other and nobody else then are one walker, until they are well apart; three or more are *crowded*:
each has one state, a stay is a plain hop, and it is drawn anew whenever a hop of another one
changes its surroundings.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.noise import threefry
from mpiflow.solvers.vacancy.basin import NOWHERE, STATES, draw, place_at
from mpiflow.solvers.vacancy.lists import Triple
from mpiflow.solvers.vacancy.rates import find
from mpiflow.solvers.vacancy.walkers import (
    AT,
    COUNT,
    CROWDED,
    LAST,
    LEADER,
    MADE,
    MATE,
    START,
    WAY,
    WAYS,
    Box,
    Stays,
    apart,
    change,
    close_ring,
    hop_shown,
    join,
    leave,
    only,
    others,
    own,
    part,
    room_for,
    set_end,
    show,
)
from mpiflow.systems.alloy import NEIGHBOURS

#: What :func:`run` does first: nothing, begin all stays, or find again those that were kept.
GO_ON, BEGIN, RESUME = range(3)
#: What :func:`_renew` finds out: nothing, the rates of the state that is shown, those of all.
_NONE, _SHOWN, _ALL = range(3)


@kernel
def _renew(box: Box, many: int, what: int, time: float) -> None:
    """Find rates and draw stays of the first walkers of ``met``: new ones, unless of all states."""
    grid, _, evaluator, s, w, keys, log = box
    whole, link, rates, types, sides = (
        s.whole,
        s.link,
        s.rates,
        grid.reshape(-1),
        evaluator.law.sides,
    )
    for i in range(many):
        v = s.met[i]
        if whole[v, LEADER] != v:
            continue
        mate, shown = whole[v, MATE], whole[v, AT]
        ways = NEIGHBOURS if mate < 0 else WAYS
        for slot in range(STATES):
            wanted = what == _SHOWN and slot == shown
            if what == _ALL and s.spot[v, slot, 0] >= 0:
                wanted = True
                show(box, v, slot, 0.0, log.time.size)
                own(s.owner, sides, s.flat[v], v)
                s.spot[v, slot, 0] = s.flat[v]
                if mate >= 0:
                    own(s.owner, sides, s.flat[mate], v)
                    s.spot[v, slot, 1] = s.flat[mate]
            first = 0
            while wanted and first < ways:  # of one vacancy, then of the other
                x = v if first == 0 else mate
                find(types, s.flat[x], evaluator, rates[v, slot], first)
                first += NEIGHBOURS
        if what == _ALL:
            show(box, v, shown, 0.0, log.time.size)
        else:
            whole[v, START], s.begun[v] = shown, time
            whole[v, COUNT] += 1
        k0, k1 = threefry(keys[0], keys[1], np.uint64(v), np.uint64(whole[v, COUNT]))
        hops, lasts, slot, way, _, _ = draw(link[v], rates[v], ways, whole[v, START], w, k0, k1)
        whole[v, LAST], whole[v, WAY], whole[v, MADE] = slot, way, hops
        set_end(s.tree, v, s.begun[v] + lasts)


@kernel
def _look(box: Box, many: int, time: float, logged: int) -> tuple[int, int]:
    """Show the first walkers of ``found`` where they are at a time of their stays.

    Returns the hops of these so far, and the rows of the log.
    """
    s, whole, total = box.stays, box.stays.whole, 0
    for i in range(many):
        v, states = s.found[i], 0
        for slot in range(STATES):
            states += s.spot[v, slot, 0] >= 0
        if states > 1:
            k0, k1 = threefry(box.keys[0], box.keys[1], np.uint64(v), np.uint64(whole[v, COUNT]))
            ways = NEIGHBOURS if whole[v, MATE] < 0 else WAYS
            tau, start = time - s.begun[v], whole[v, START]
            slot, hops = place_at(s.link[v], s.rates[v], ways, start, tau, box.walk, k0, k1)
            total += hops
            if whole[v, AT] != slot:
                logged = show(box, v, slot, time, logged)
    return total, logged


@kernel
def _meet(s: Stays, sides: Triple, offsets: np.ndarray, v: int, count: int) -> int:
    """Let a walker of one state, and the first ones of ``found``, see each other as they now are.

    Returns how many vacancies these are, the first of ``met``.
    """
    whole, met, many = s.whole, s.met, 0
    for i in range(count + 1):
        u = v
        if i < count:
            u = s.found[i]
            only(s, sides, u)
        met[many] = u
        mate = part(s, sides, u)
        if mate >= 0:
            many += 1
            met[many] = mate
        many += 1
    for i in range(many):
        u = met[i]
        if whole[u, LEADER] == u and whole[u, MATE] < 0:
            near = others(s.owner, offsets, s.flat[u], u, s.found, 0)
            other = s.found[0]
            whole[u, CROWDED] = near > 0
            if (
                near == 1
                and whole[other, MATE] < 0
                and others(s.owner, offsets, s.flat[other], other, s.found, 0) == 1
            ):
                join(s, sides, u, other)
    return many


@kernel
def _all(s: Stays, listed: np.ndarray) -> int:
    """List all walkers; returns how many there are."""
    many = 0
    for v in range(s.flat.size):
        if s.whole[v, LEADER] == v:
            listed[many] = v
            many += 1
    return many


@kernel
def run(
    box: Box, first: int, clock: float, until: float, hops: int, most: int, room: int
) -> tuple[int, int, float, int, int]:
    """Let the stays of a box end, one after the other, then show where all walkers are.

    Parameters
    ----------
    first : :data:`GO_ON`, :data:`BEGIN` or :data:`RESUME`
    clock : time of the last event, s
    until : ends that would come after this time wait
    hops, most : stop when stays with so many hops have ended, or after so many events
    room : stop when so many rows of the log are full, and show nothing

    Returns
    -------
    hops of the stays that have ended, events, time that is shown, rows of the log, and hops of the
    stays that have not ended
    """
    # Names for all arrays: reading one from its tuple costs as much as a division.
    grid, origin, evaluator, stays, w, _, log = box
    place, flat, whole, _, spot, code, link, rates, tree, owner, found, met = stays
    law = evaluator.law
    halo, sides, offsets = law.halo, law.sides, law.offsets
    ended, events, logged, partly = 0, 0, 0, 0
    many, what = 0, _ALL
    if first != GO_ON:
        many = _all(stays, met)
    if first == BEGIN:
        what = _SHOWN
        for i in range(many):
            own(owner, sides, flat[i], i)
        for i in range(many):
            whole[i, CROWDED] = others(owner, offsets, flat[i], i, found, 0) > 0
    while True:
        if many > 0:
            _renew(box, many, what, clock)
            many = 0
        time = tree[1]
        if not (
            ended < hops and events < most and logged < room and time <= until and time < np.inf
        ):
            break
        node = 1
        while node < tree.size >> 1:
            node *= 2
            if tree[node] > time:
                node += 1
        v = node - (tree.size >> 1)
        clock = time
        events += 1
        ended += whole[v, MADE]
        if whole[v, AT] != whole[v, LAST]:
            logged = show(box, v, whole[v, LAST], time, logged)
        met[0], many, what = v, 1, _NONE
        here, d, mate = whole[v, AT], whole[v, WAY], whole[v, MATE]
        if d == NOWHERE:
            continue
        x = v if d < NEIGHBOURS else mate
        logged, before, after, atom = hop_shown(
            grid, origin, halo, sides, place, flat, x, d, time, log, logged
        )  # fmt: skip
        to = link[v, here, d]
        if to != -1:
            whole[v, AT] = to if to >= 0 else -2 - to
            continue
        near = others(owner, offsets, after, v, found, 0)
        crowded = whole[v, CROWDED] == 1
        other = -1 if mate < 0 else flat[mate]
        if near > 0 or crowded or (mate >= 0 and apart(place, sides, v, mate)):
            if crowded:  # those that saw it leave
                near = others(owner, offsets, before, v, found, near)
            only(stays, sides, v)
            spot[v, here, 0], spot[v, here, 1] = flat[v], other
            leave(spot[v], owner, sides, before)
            own(owner, sides, after, v)
            more, logged = _look(box, near, time, logged)
            ended += more
            many, what = _meet(stays, sides, offsets, v, near), _SHOWN
            continue
        ways = NEIGHBOURS if mate < 0 else WAYS
        new, slot = code[v, here] ^ change(before, after, atom), -1
        for i in range(STATES):
            if code[v, i] == new and spot[v, i, 0] == flat[v] and spot[v, i, 1] == other:
                slot = i
        if slot >= 0:
            close_ring(link[v], rates[v], ways, here, d, slot, w)
        else:
            slot, what = room_for(spot[v], link[v], owner, sides, ways, here, w.whole), _SHOWN
            spot[v, slot, 0], spot[v, slot, 1], code[v, slot] = flat[v], other, new
            link[v, here, d], link[v, slot, d ^ 7] = slot, here
            own(owner, sides, after, v)
        whole[v, AT] = slot
    if logged < room:
        if ended < hops and events < most and until < np.inf:
            clock = max(clock, until)
        partly, logged = _look(box, _all(stays, found), clock, logged)
    return ended, events, clock, logged, partly
