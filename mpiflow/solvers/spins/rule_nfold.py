r"""The n-fold way of any spin rule: exact continuous time, without rejections.

As :mod:`~mpiflow.solvers.spins.nfold`, whose lists it shares, with a class for every total rate at
which a site can change (:func:`~mpiflow.solvers.spins.rule_tables.classes`):

.. math:: \Delta t = -\ln(u) / R, \qquad R = \sum_c n_c r_c,

a class with probability :math:`n_c r_c / R`, a site uniformly in it, and its new state in
proportion to the rates of that site. The shares :math:`n_c r_c` are the leaves of a tree of sums,
which is a function of the lists alone: a trajectory depends on the states and the order of the
lists, not on how it was cut into calls.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import inlined, kernel
from mpiflow.core.noise import exponential, threefry, to_unit
from mpiflow.solvers.spins.nfold import NFold
from mpiflow.solvers.spins.rule_sublattice import require_states
from mpiflow.solvers.spins.rule_tables import Classes, check_rule, classes, require_table
from mpiflow.solvers.spins.site_lists import (
    NOWHERE,
    ONE,
    SiteLists,
    lay_out,
    lists_in,
    make_room,
    ordered,
    surroundings,
)
from mpiflow.systems.rule import SpinRule

#: Events whose noise is drawn at once.
_AHEAD = 64
#: The class of a site is above these bits of its word of 64, its place in the list in them.
_SHIFT = np.uint64(32)
_PLACE = np.uint64(2**32 - 1)


# -- noise ----------------------------------------------------------------------------------


@kernel
def _draw(k0: np.uint64, k1: np.uint64, first: np.uint64, out: np.ndarray) -> None:
    """Unit exponentials, and uniforms for the site and its new state, of events from `first` on."""
    for i in range(out.shape[1]):
        event = first + np.uint64(i)
        w0, w1 = threefry(k0, k1, event, np.uint64(0))
        out[0, i], out[1, i] = exponential(w0), to_unit(w1)
        out[2, i] = to_unit(threefry(k0, k1, event, ONE)[0])


# -- lists ----------------------------------------------------------------------------------


class Rule(NamedTuple):
    """A rule of q states, of which one is the ``lowest``, and its table."""

    q: int
    lowest: int
    table: Classes


@kernel
def _around(field: np.ndarray, y: int, x: int, rule: Rule) -> int:
    """The number of the neighbourhood of a point of a box with its halo."""
    q = rule.q
    near = np.int64(field[y - 1, x]) * q + field[y, x - 1]
    near = (near * q + field[y, x + 1]) * q + field[y + 1, x]
    return near - rule.lowest * (q * q * q + q * q + q + 1)


@kernel
def _class(field: np.ndarray, y: int, x: int, rule: Rule) -> np.uint64:
    own = np.int64(field[y, x]) - rule.lowest
    return np.uint64(rule.table.of[_around(field, y, x, rule) * rule.q + own])


@kernel
def _differ(field: np.ndarray, halo: int, rule: Rule, info: np.ndarray) -> bool:
    """Whether the class of any site is not that of its state and neighbours."""
    nx = field.shape[1] - 2 * halo
    for y in range(halo, field.shape[0] - halo):
        for x in range(halo, nx + halo):
            word = np.uint64(info[(y - halo) * nx + x - halo])
            if word >> _SHIFT != _class(field, y, x, rule):
                return True
    return False


@kernel
def _sort(field: np.ndarray, halo: int, rule: Rule, lists: SiteLists) -> None:
    """Sort the sites into their classes, within a class in their present order."""
    nx, counts = field.shape[1] - 2 * halo, lists.counts
    order = ordered(lists)
    counts[:] = 0
    for i in range(order.size):
        site = np.int64(order[i])
        c = _class(field, site // nx + halo, site % nx + halo, rule)
        lists.info[site] = c << _SHIFT | counts[c]
        counts[c] += ONE
    lay_out(order, lists, _SHIFT)


@inlined
def _move(
    site: np.uint64,
    new: np.uint64,
    info: np.ndarray,
    pool: np.ndarray,
    base: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Move a site to the end of the list of another class; the last of its own takes its place."""
    word = np.uint64(info[site])
    old = word >> _SHIFT
    last = counts[old] - ONE
    filler = pool[base[old] + last]
    pool[base[old] + (word & _PLACE)] = filler
    info[filler] = word
    counts[old] = last
    end = counts[new]
    if base[new] + end == base[new + ONE]:
        make_room(new, pool, base, counts)
    pool[base[new] + end] = site
    info[site] = new << _SHIFT | end
    counts[new] = end + ONE


# -- a tree of sums -------------------------------------------------------------------------
# Node i has the children 2 i and 2 i + 1; the leaves are its second half.


@kernel
def _set_leaf(tree: np.ndarray, leaf: np.uint64, value: float) -> None:
    i = np.uint64(tree.size >> 1) + leaf
    tree[i] = value
    i >>= ONE
    while i > 0:
        tree[i] = tree[i + i] + tree[i + i + ONE]
        i >>= ONE


@kernel
def _find_leaf(tree: np.ndarray, value: float) -> tuple[np.uint64, float]:
    """The leaf in whose share of the root a number lies, and how far inside."""
    i, half = ONE, np.uint64(tree.size >> 1)
    while i < half:
        i += i
        if value >= tree[i] and tree[i + ONE] > 0.0:  # by rounding, nothing may be there
            value -= tree[i]
            i += ONE
    return i - half, value


# -- events ---------------------------------------------------------------------------------


@kernel
def _new_state(own: int, q: int, shares: np.ndarray, row: int, uniform: float) -> int:
    """Another state than the present one, in proportion to a row of rates."""
    total = 0.0
    for state in range(q):
        total += shares[row, state] if state != own else 0.0
    left, new = uniform * total, own
    for state in range(q):
        share = shares[row, state] if state != own else 0.0
        if share > 0.0:  # the last of these if rounding leaves more than there is
            new = state
            if left < share:
                break
            left -= share
    return new


@kernel
def _set_state(field: np.ndarray, halo: int, y: int, x: int, closed: bool, state: int) -> None:
    """Set a site, and of a closed box its images beside the opposite edges."""
    ny, nx = field.shape[0] - 2 * halo, field.shape[1] - 2 * halo
    field[y, x] = state
    if closed:
        if y == halo:
            field[ny + halo, x] = state
        if y == ny + halo - 1:
            field[halo - 1, x] = state
        if x == halo:
            field[y, nx + halo] = state
        if x == nx + halo - 1:
            field[y, halo - 1] = state


@kernel
def _follow(
    field: np.ndarray,
    halo: int,
    closed: bool,
    rule: Rule,
    noise: np.ndarray,
    until: float,
    clock: float,
    tree: np.ndarray,
    lists: SiteLists,
) -> tuple[float, int]:
    """Events of one box with the given noise; the time of the last, and how many there were."""
    ny, nx = field.shape[0] - 2 * halo, field.shape[1] - 2 * halo
    info, pool, base, counts = lists
    lowest, rates, shares = rule.lowest, rule.table.rates, rule.table.shares
    near = np.empty(5, np.uint64)
    for i in range(noise.shape[1]):
        total = tree[1]
        wait = noise[0, i] / total
        # A state that can never change waits for ever, also for a number of events.
        if wait == np.inf or clock + wait > until:
            return clock, i
        clock += wait
        chosen, rest = _find_leaf(tree, noise[1, i] * total)
        place = min(np.uint64(rest / rates[chosen]), counts[chosen] - ONE)
        site = np.uint64(pool[base[chosen] + place])
        y, x = np.int64(site) // nx, np.int64(site) % nx
        own = np.int64(field[y + halo, x + halo]) - lowest
        row = _around(field, y + halo, x + halo, rule) * shares.around + own * shares.own
        new = _new_state(own, rule.q, shares.values, row, noise[2, i])
        _set_state(field, halo, y + halo, x + halo, closed, new + lowest)
        near[0] = site
        surroundings(site, np.uint64(ny), np.uint64(nx), closed, near)
        for j in range(5):
            mover = near[j]
            if mover != NOWHERE:
                y, x = np.int64(mover) // nx, np.int64(mover) % nx
                now = _class(field, y + halo, x + halo, rule)
                old = np.uint64(info[mover]) >> _SHIFT
                if now != old:
                    _move(mover, now, info, pool, base, counts)
                    _set_leaf(tree, old, np.int64(counts[old]) * rates[old])
                    _set_leaf(tree, now, np.int64(counts[now]) * rates[now])
    return clock, noise.shape[1]


@kernel
def _run(
    fields: np.ndarray,
    halo: int,
    closed: bool,
    members: np.ndarray,
    key: np.ndarray,
    rule: Rule,
    until: float,
    most: np.ndarray,
    clock: np.ndarray,
    events: np.ndarray,
    lists: SiteLists,
) -> None:
    """Advance every box to time `until`, or to a total of `most` events if that is first."""
    rates, leaves = rule.table.rates, 1
    while leaves < rates.size:
        leaves *= 2
    tree, noise = np.empty(2 * leaves), np.empty((3, _AHEAD))
    for b in range(fields.shape[0]):
        mine = lists_in(lists, b)
        if _differ(fields[b], halo, rule, mine.info):
            _sort(fields[b], halo, rule, mine)
        tree[:] = 0.0
        for c in range(rates.size):
            tree[leaves + c] = np.int64(mine.counts[c]) * rates[c]
        for i in range(leaves - 1, 0, -1):
            tree[i] = tree[2 * i] + tree[2 * i + 1]
        running = True
        while running and events[b] < most[b]:
            ahead = min(most[b] - events[b], _AHEAD)
            _draw(key[0], key[1] + members[b], np.uint64(events[b]), noise[:, :ahead])
            some = noise[:, :ahead]
            clock[b], done = _follow(
                fields[b], halo, closed, rule, some, until, clock[b], tree, mine
            )
            events[b] += done
            running = done == ahead


class RuleNFold(NFold):
    """Exact event-driven solver for a spin rule of few states, on the CPU.

    Used as :class:`~mpiflow.solvers.spins.nfold.NFold`, whose attributes it has.

    Parameters
    ----------
    system : the rule; all its rates must fit a table
    batch : number of boxes
    """

    def __init__(self, system: SpinRule, batch: int = 1) -> None:
        check_rule(system)
        require_table(system)
        self.system = system
        self._table: Classes = classes(system)
        self._begin(batch, len(self._table.rates), np.uint64)

    def advance(
        self,
        block: Block,
        *,
        seed: int,
        until: float = np.inf,
        flips: int | None = None,
        stream: str = "rule-nfold",
    ) -> np.ndarray:
        """As :meth:`~mpiflow.solvers.spins.nfold.NFold.advance`; a flip is a change."""
        return super().advance(block, seed=seed, until=until, flips=flips, stream=stream)

    def adopt(self, system: SpinRule) -> None:
        check_rule(system)
        order = self.order
        self.system, self._table = system, classes(system)
        self._classes = len(self._table.rates)
        self.order = order  # classes are others: sorted anew by the next call

    def _totals(self) -> np.ndarray:
        return np.asarray(self._lists.counts.astype(np.float64) @ self._table.rates)

    def _require_states(self, block: Block) -> None:
        require_states(block, self.system)

    def _run(self, block: Block, key: np.ndarray, until: float, most: np.ndarray) -> None:
        rule = Rule(int(self.system.states), int(self.system.lowest), self._table)
        _run(
            block.array, block.halo, block.closed, block.members, key, rule, until, most,
            self.clock, self.events, self._lists,
        )  # fmt: skip
