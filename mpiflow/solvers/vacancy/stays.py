"""Stays of walkers, one after the other, each walker with its own clock.

A walker (:mod:`mpiflow.solvers.vacancy.walkers`) has more than one state only while none of the
sites that its vacancies can be at is among the 112 around a site that those of another walker can
be at: no rate of either then depends on where the other is, so their stays are independent. One
that comes into the sight of others *interrupts* them: each is put where its path has it at that
time, and starts anew from there, which by the Markov property is exact. Vacancies that see each
other, directly or by others, then are one walker, until one is well apart; too many for a walker
are *crowded*: each has one state, a stay is a plain hop, and it is drawn anew whenever a hop of
another one changes its surroundings.
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
    GROUP,
    LAST,
    LEADER,
    MADE,
    MEMBERS,
    SIZE,
    START,
    WAY,
    Box,
    Stays,
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
    scattered,
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
        size, shown = whole[v, SIZE], whole[v, AT]
        for slot in range(STATES):
            wanted = what == _SHOWN and slot == shown
            if what == _ALL and s.spot[v, slot, 0] >= 0:
                wanted = True
                show(box, v, slot, 0.0, log.time.size)
            for k in range(size if wanted else 0):
                place = s.flat[whole[v, MEMBERS + k]]
                if what == _ALL:
                    own(s.owner, sides, place, v)
                    s.spot[v, slot, k] = place
                find(types, place, evaluator, rates[v, slot], NEIGHBOURS * k)
        if what == _ALL:
            show(box, v, shown, 0.0, log.time.size)
        else:
            whole[v, START], s.begun[v] = shown, time
            whole[v, COUNT] += 1
        k0, k1 = threefry(keys[0], keys[1], np.uint64(v), np.uint64(whole[v, COUNT]))
        hops, lasts, slot, way, _, _ = draw(
            link[v], rates[v], NEIGHBOURS * size, whole[v, START], w, k0, k1
        )
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
            ways, start = NEIGHBOURS * whole[v, SIZE], whole[v, START]
            tau = time - s.begun[v]
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
        for k in range(whole[u, SIZE]):
            met[many] = whole[u, MEMBERS + k]
            many += 1
    for i in range(many):
        part(s, sides, met[i])
    group, found = s.group, s.found
    for i in range(many):
        u = met[i]
        if whole[u, LEADER] != u:
            continue
        # All that see each other, as far as a walker may have so many.
        group[0], size, looked = u, 1, 0
        while looked < size <= GROUP:
            near = others(s.owner, offsets, s.flat[group[looked]], group[looked], found, 0)
            if looked == 0:
                whole[u, CROWDED] = near > 0
            looked += 1
            for j in range(near):
                new = True
                for k in range(size):
                    new &= group[k] != found[j]
                if new:
                    group[size] = found[j]
                    size += 1
        if size <= GROUP:
            for k in range(1, size):
                join(s, sides, u, group[k])
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
    place, flat, whole, _, spot, code, link, rates, tree, owner, found, met, _ = stays
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
        here, d, size = whole[v, AT], whole[v, WAY], whole[v, SIZE]
        if d == NOWHERE:
            continue
        x = whole[v, MEMBERS + d // NEIGHBOURS]
        logged, before, after, atom = hop_shown(
            grid, origin, halo, sides, place, flat, x, d, time, log, logged
        )  # fmt: skip
        to = link[v, here, d]
        if to != -1:
            whole[v, AT] = to if to >= 0 else -2 - to
            continue
        near = others(owner, offsets, after, v, found, 0)
        crowded = whole[v, CROWDED] == 1
        if near > 0 or crowded or (size > 1 and scattered(stays, sides, v)):
            if crowded:  # those that saw it leave
                near = others(owner, offsets, before, v, found, near)
            only(stays, sides, v)
            spot[v, here, d // NEIGHBOURS] = after
            leave(spot[v], owner, sides, before)
            own(owner, sides, after, v)
            more, logged = _look(box, near, time, logged)
            ended += more
            many, what = _meet(stays, sides, offsets, v, near), _SHOWN
            continue
        ways = NEIGHBOURS * size
        new, slot = code[v, here] ^ change(before, after, atom), -1
        for i in range(STATES):
            same = code[v, i] == new
            for k in range(size):
                same &= spot[v, i, k] == flat[whole[v, MEMBERS + k]]
            slot = i if same else slot
        if slot >= 0:
            close_ring(link[v], rates[v], ways, here, d, slot, w)
        else:
            slot, what = room_for(spot[v], link[v], owner, sides, ways, here, w.whole), _SHOWN
            for k in range(size):
                spot[v, slot, k] = flat[whole[v, MEMBERS + k]]
            code[v, slot] = new
            link[v, here, d], link[v, slot, d ^ 7] = slot, here
            own(owner, sides, after, v)
        whole[v, AT] = slot
    if logged < room:
        if ended < hops and events < most and until < np.inf:
            clock = max(clock, until)
        partly, logged = _look(box, _all(stays, found), clock, logged)
    return ended, events, clock, logged, partly
