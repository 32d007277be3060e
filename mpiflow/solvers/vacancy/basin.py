r"""Stays of a vacancy in a basin: exact, at a cost that does not depend on the hops.

A *basin* is a tree of up to :data:`STATES` configurations between which one vacancy flickers, a
hop along each link. A *stay* begins in one of them, and ends with the first hop that is no link.
Number and times of the hops of a stay follow from the rates k of all its states alone: it is an
absorbing Markov chain [Novotny, Phys. Rev. Lett. 74, 1 (1995)], of which states are eliminated one
by one, as in [Athenes, Bulatov, Phys. Rev. Lett. 113, 230601 (2014)]. In a tree that is short. Seen
from the state where the stay begins, let state c lie above its parent p. A walk that has come to c
returns to p with chance R, or ends beyond c with chance X = 1 - R:

.. math:: R_c = \frac{k_{cp}}{k_{cp} + x_c}, \qquad
          x_c = \sum_{\text{no link}} k_{cd} + \sum_{\text{above } c} k_{cd} X_d, \qquad
          l_c = \sum_{\text{above } c} k_{cd} R_d .

From state c the walk makes loops, which return to c, before it goes down or on for good: their
number is geometric with chance :math:`l_c / (l_c + k_{cp} + x_c)` and does not depend on what comes
then. A loop goes to state d with chance :math:`k_{cd} R_d / l_c`. So m visits from below have, all
together, a negative binomial number of loops, and shares of them by binomial numbers. A stay is
loops at its first state, a step on for good, loops there, and so on. With V visits to a state of
total rate T, the time there is a gamma number of shape V over T. Nothing is subtracted, so basins
may be as deep as they like [Grassmann, Taksar, Heyman, Oper. Res. 33, 1107 (1985)].

**Where it is at a time** inside the stay is found from the same numbers. Loops at a state follow
each other in random order: of their first half, the numbers and times have hypergeometric,
negative hypergeometric and beta laws. Halving goes on in the half that holds the time, down to one
hop. The noise of each half is a function of its place, so the path is a function of the seed alone,
and looking at it changes nothing.

Stays that would have about :data:`MOST` hops or more end early, in the state where they began; a
link to states that hold the vacancy for so many is taken like a hop that is no link.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.functions import log, log_of_rest
from mpiflow.core.noise import Word, exponential, threefry
from mpiflow.solvers.vacancy.draws import beta, binomial, gamma, hypergeometric, poisson, two

#: Configurations of a basin, at most.
STATES = 16
#: Hops of a stay, in the mean, from which it is cut.
MOST = 2.0**24
#: Where a stay has ended that was cut.
NOWHERE = -1
#: Rows of :class:`Walk`, of whole numbers.
ORDER, PARENT, HOP, CUT, _KIDS, _KIDS_END, _SPINE, _VISITS, _FIRST_ENTERED, _FIRST_LOOPED = range(
    10
)
_ENTERED = 10
_LOOPED = _ENTERED + STATES
#: And of real ones.
_DOWN, _UP, _LOOPS, _AWAY, _ON, _TOTAL, _SIZE, _SPENT, _FIRST_SPENT = range(9)


class Walk(NamedTuple):
    """Scratch: a basin seen from the state where a stay begins, and the numbers of a stay.

    A basin has slots for its states. What is known of a slot is a column; the rows of ``whole`` are

    ORDER (by number, not by slot): slots, parents first
    PARENT, HOP : slot below, and the hop that leads from there
    CUT : 1 where that link counts as none
    KIDS, KIDS_END : the slots above are these numbers of the order
    SPINE (by number) : slots that the stay goes on to for good
    VISITS : to the slot
    ENTERED + i, LOOPED + i : visits from below and loops during the loops at slot i of the spine
    FIRST_ENTERED, FIRST_LOOPED : those of a first half

    and those of ``real``

    DOWN, UP : chances times rates, :math:`k_{pc} R_c` and :math:`k_{pc} X_c`
    LOOPS, AWAY, ON, TOTAL : l, x, x + k_cp and the sum of all rates
    SIZE : the mean number of hops in loops, times l
    SPENT, FIRST_SPENT : time at the slot in s, and that of a first half

    Few arrays, because a kernel that is given one counts that it has it.

    Attributes
    ----------
    whole : (10 + 2 K, K) int64
    real : (9, K) float64
    """

    whole: np.ndarray
    real: np.ndarray


def walk() -> Walk:
    return Walk(np.zeros((_LOOPED + STATES, STATES), np.int64), np.zeros((9, STATES)))


@kernel
def put_in_order(link: np.ndarray, ways: int, start: int, whole: np.ndarray) -> int:
    """List the slots from one on, parents first, so that the last is one of the farthest.

    Parameters
    ----------
    link : (K, W) int64, slot that each hop leads to, negative where it is no link; d ^ 7 is the
        reverse of hop d
    """
    whole[ORDER, 0], whole[PARENT, start], whole[HOP, start] = start, -1, -1
    count, looked = 1, 0
    while looked < count:
        slot = whole[ORDER, looked]
        looked += 1
        whole[_KIDS, slot] = count
        for d in range(ways):
            other = link[slot, d]
            if other >= 0 and other != whole[PARENT, slot]:
                whole[ORDER, count], whole[PARENT, other], whole[HOP, other] = other, slot, d
                count += 1
        whole[_KIDS_END, slot] = count
    return count


@kernel
def _weigh(
    link: np.ndarray,
    rates: np.ndarray,
    ways: int,
    start: int,
    whole: np.ndarray,
    real: np.ndarray,
) -> int:
    """Eliminate the states one after the other; returns how many there are."""
    count = put_in_order(link, ways, start, whole)
    for i in range(count):
        slot = whole[ORDER, i]
        away = everything = 0.0
        for d in range(ways):
            everything += rates[slot, d]
            if link[slot, d] < 0:
                away += rates[slot, d]
        real[_AWAY, slot], real[_TOTAL, slot] = away, everything
        real[_LOOPS, slot] = real[_SIZE, slot] = 0.0
        whole[CUT, slot] = whole[_VISITS, slot] = 0
    for i in range(count - 1, 0, -1):
        slot = whole[ORDER, i]
        below, d = whole[PARENT, slot], whole[HOP, slot]
        into, back = rates[below, d], rates[slot, d ^ 7]
        x = real[_AWAY, slot]
        on = back + x
        real[_ON, slot] = on
        hops = 1.0 + (real[_LOOPS, slot] + real[_SIZE, slot]) / on
        if not (on > 0.0 and hops <= MOST):
            whole[CUT, slot] = 1
            real[_AWAY, below] += into
            continue
        down, up = into * (back / on), into * (x / on)
        real[_DOWN, slot], real[_UP, slot] = down, up
        real[_LOOPS, below] += down
        real[_AWAY, below] += up
        real[_SIZE, below] += down * hops
    real[_ON, start] = real[_AWAY, start]
    return count


@kernel
def _loops(back: float, on: float, k0: Word, k1: Word, j: int) -> float:
    """How many loops a walk makes before it goes down or on, as a float: it may be inf."""
    end = on / (back + on)
    rate = log_of_rest(end) if end < 0.5 else log(back / (back + on))
    return np.floor(exponential(threefry(k0, k1, np.uint64(j), np.uint64(0))[0]) / -rate)


@kernel
def _loops_to(other: int, whole: np.ndarray, real: np.ndarray) -> bool:
    """Whether loops at the slot below go to a slot."""
    return whole[CUT, other] == 0 and real[_DOWN, other] > 0.0


@kernel
def _share(
    row: int, root: int, count: int, whole: np.ndarray, real: np.ndarray, k0: Word, k1: Word, j: int
) -> int:
    """Share out the loops at a slot of the spine among all that lies above it."""
    entered, looped = _ENTERED + row, _LOOPED + row
    for i in range(count):
        slot = whole[ORDER, i]
        left = whole[looped, slot]
        if left == 0:
            continue
        weight, last = real[_LOOPS, slot], -1
        for above in range(whole[_KIDS, slot], whole[_KIDS_END, slot]):
            if _loops_to(whole[ORDER, above], whole, real):
                last = above
        for above in range(whole[_KIDS, slot], last + 1):
            other = whole[ORDER, above]
            if not _loops_to(other, whole, real):
                continue
            m = left
            if above < last:  # which takes the rest, whatever the rounding
                m, j = binomial(left, real[_DOWN, other] / weight, k0, k1, j)
            weight -= real[_DOWN, other]
            left -= m
            whole[entered, other] = m
            if m > 0 and real[_LOOPS, other] > 0.0:
                g, j = gamma(m, k0, k1, j)
                mean = g * (real[_LOOPS, other] / real[_ON, other])
                whole[looped, other], j = poisson(mean, k0, k1, j)
            if left == 0:
                break
    return j


@kernel
def draw(  # type: ignore[no-untyped-def]
    link: np.ndarray, rates: np.ndarray, ways: int, start: int, w: Walk, k0: Word, k1: Word
):
    """A stay.

    Parameters
    ----------
    link : (K, W) int64, slot that each hop leads to, negative where it is no link of the basin
    rates : (K, W) float64 in 1 / s
    ways : hops that there are
    start : slot where it begins
    k0, k1 : key of its numbers

    Returns
    -------
    hops, time in s, slot where it ends and the hop that ends it, which is counted, or
    :data:`NOWHERE`; how many states there are, and how many are on the spine
    """
    whole, real = w
    count = _weigh(link, rates, ways, start, whole, real)
    slot, length, j, way = start, 0, 0, NOWHERE
    if not real[_TOTAL, start] > 0.0:
        return 0, np.inf, start, NOWHERE, count, 0
    while True:
        whole[_SPINE, length] = slot
        entered, looped, back = _ENTERED + length, _LOOPED + length, real[_LOOPS, slot]
        for i in range(count):
            whole[entered, whole[ORDER, i]] = whole[looped, whole[ORDER, i]] = 0
        whole[entered, slot] = 1
        if back > 0.0:
            n = _loops(back, real[_ON, slot], k0, k1, j)
            j += 1
            most = np.floor(MOST / (1.0 + real[_SIZE, slot] / back)) + 1.0
            if length == 0 and n > most:
                n, whole[entered, slot] = most, 0
            whole[looped, slot] = np.int64(n)
            if n > 0.0:
                j = _share(length, slot, count, whole, real, k0, k1, j)
        for i in range(count):
            state = whole[ORDER, i]
            whole[_VISITS, state] += whole[entered, state] + whole[looped, state]
        length += 1
        if whole[_ENTERED, start] == 0:
            break
        # The step that is not undone: out of the basin, or on to a state above.
        target = two(k0, k1, j)[0] * real[_AWAY, slot]
        j += 1
        for d in range(ways):
            other, part = link[slot, d], rates[slot, d]
            if other >= 0 and other == whole[PARENT, slot]:
                part = 0.0
            elif other >= 0 and whole[CUT, other] == 0:
                part = real[_UP, other]
            if part > 0.0:  # the last possible one stands if rounding leaves a rest
                way = d
                if target < part:
                    break
                target -= part
        other = link[slot, way]
        if other < 0 or whole[CUT, other] == 1:
            break
        slot = other
    hops, time = 0, 0.0
    for i in range(count):
        state = whole[ORDER, i]
        real[_SPENT, state] = 0.0
        if whole[_VISITS, state] > 0:
            g, j = gamma(whole[_VISITS, state], k0, k1, j)
            real[_SPENT, state] = g / real[_TOTAL, state]
            hops += whole[_VISITS, state]
            time += real[_SPENT, state]
    return hops, time, slot, way, count, length


# -- where it is at a time -----------------------------------------------------------------


@kernel
def _sub_key(k0: Word, k1: Word, which: int) -> tuple[Word, Word]:
    """A key that no other number of this key is made with."""
    return threefry(k0, k1, np.uint64(which), np.uint64(1))


@kernel
def _first_loops(  # type: ignore[no-untyped-def]
    root: int, part: int, count: int, w: Walk, row: int, k0: Word, k1: Word
):
    """Of the loops at a slot, and the stays before each of them, what belongs to the first ones."""
    whole, real = w
    entered, looped, j = _ENTERED + row, _LOOPED + row, 0
    for i in range(count):
        slot = whole[ORDER, i]
        whole[_FIRST_ENTERED, slot] = whole[_FIRST_LOOPED, slot] = 0
        real[_FIRST_SPENT, slot] = 0.0
    whole[_FIRST_LOOPED, root] = part
    share, j = beta(part, whole[looped, root] - part, k0, k1, j)
    real[_FIRST_SPENT, root] = real[_SPENT, root] * share
    for i in range(count):
        slot = whole[ORDER, i]
        left, first = whole[looped, slot], whole[_FIRST_LOOPED, slot]
        if first == 0:
            continue
        for above in range(whole[_KIDS, slot], whole[_KIDS_END, slot]):
            other = whole[ORDER, above]
            m = whole[entered, other]
            if m == 0:
                continue
            e1, j = hypergeometric(m, left - m, first, k0, k1, j)
            left -= m
            first -= e1
            # Loops of m visits, one geometric number for each: a chance of Polya's urn.
            p, j = beta(e1, m - e1, k0, k1, j)
            l1, j = binomial(whole[looped, other], p, k0, k1, j)
            share, j = beta(e1 + l1, m + whole[looped, other] - e1 - l1, k0, k1, j)
            whole[_FIRST_ENTERED, other], whole[_FIRST_LOOPED, other] = e1, l1
            real[_FIRST_SPENT, other] = real[_SPENT, other] * share


@kernel
def _keep_part(first: bool, count: int, w: Walk, row: int) -> int:
    """Go on with the first loops or with the others; returns the hops of those left behind."""
    whole, real = w
    entered, looped, hops = _ENTERED + row, _LOOPED + row, 0
    for i in range(count):
        slot = whole[ORDER, i]
        e1, l1, s1 = (
            whole[_FIRST_ENTERED, slot],
            whole[_FIRST_LOOPED, slot],
            real[_FIRST_SPENT, slot],
        )
        if first:
            whole[entered, slot], whole[looped, slot], real[_SPENT, slot] = e1, l1, s1
        else:
            hops += e1 + l1
            whole[entered, slot] -= e1
            whole[looped, slot] -= l1
            real[_SPENT, slot] = max(real[_SPENT, slot] - s1, 0.0)
    return hops


@kernel
def _sum(values: int, count: int, w: Walk) -> float:
    """Of a row of real numbers."""
    total = 0.0
    for i in range(count):
        total += w.real[values, w.whole[ORDER, i]]
    return total


@kernel
def _hops(count: int, w: Walk, row: int) -> int:
    """During the loops at a slot of the spine."""
    total = 0
    for i in range(count):
        slot = w.whole[ORDER, i]
        total += w.whole[_ENTERED + row, slot] + w.whole[_LOOPED + row, slot]
    return total


@kernel
def _to_its_row(  # type: ignore[no-untyped-def]
    tau: float, count: int, length: int, w: Walk, k0: Word, k1: Word
):
    """Which loops of the spine hold a time: their row, the time left, and the hops before.

    The time spent is then that during these.
    """
    whole, real = w
    hops = 0
    for row in range(length - 1):
        j = 0
        for i in range(count):
            slot = whole[ORDER, i]
            here = whole[_ENTERED + row, slot] + whole[_LOOPED + row, slot]
            share, j = beta(here, whole[_VISITS, slot] - here, k0, k1, j)
            real[_FIRST_SPENT, slot] = real[_SPENT, slot] * share
        time = _sum(_FIRST_SPENT, count, w)
        if tau < time:
            for i in range(count):
                slot = whole[ORDER, i]
                real[_SPENT, slot] = real[_FIRST_SPENT, slot]
            return row, tau, hops
        tau -= time
        hops += _hops(count, w, row)
        for i in range(count):
            slot = whole[ORDER, i]
            real[_SPENT, slot] = max(real[_SPENT, slot] - real[_FIRST_SPENT, slot], 0.0)
            whole[_VISITS, slot] -= whole[_ENTERED + row, slot] + whole[_LOOPED + row, slot]
        k0, k1 = _sub_key(k0, k1, 2)
    return length - 1, tau, hops


@kernel
def place_at(  # type: ignore[no-untyped-def]
    link: np.ndarray,
    rates: np.ndarray,
    ways: int,
    start: int,
    tau: float,
    w: Walk,
    k0: Word,
    k1: Word,
):
    """The slot that holds it at a time tau of the stay of this key, and the hops before that."""
    whole, real = w
    _, _, _, _, count, length = draw(link, rates, ways, start, w, k0, k1)
    if length == 0:
        return start, 0
    k0, k1 = _sub_key(k0, k1, 0)
    row, tau, hops = _to_its_row(tau, count, length, w, k0, k1)
    k0, k1 = _sub_key(k0, k1, 1)
    slot, entered, looped = whole[_SPINE, row], _ENTERED + row, _LOOPED + row
    while True:
        # The loops at this slot, each after a stay in it, then a last stay.
        n = whole[looped, slot]
        if whole[entered, slot] > 0:
            share, _ = beta(1, n, k0, k1, 0)
            real[_SPENT, slot] = max(real[_SPENT, slot] * (1.0 - share), 0.0)
            if n == 0 or tau >= _sum(_SPENT, count, w):
                return slot, hops + _hops(count, w, row) - 1
            whole[entered, slot] = 0
            k0, k1 = _sub_key(k0, k1, 3)
        while n > 1:
            _first_loops(slot, n // 2, count, w, row, k0, k1)
            time = _sum(_FIRST_SPENT, count, w)
            first = tau < time
            tau = tau if first else tau - time
            hops += _keep_part(first, count, w, row)
            n = whole[looped, slot]
            k0, k1 = _sub_key(k0, k1, 4 if first else 5)
        if tau < real[_SPENT, slot]:
            return slot, hops
        tau -= real[_SPENT, slot]
        hops += 1
        whole[looped, slot], real[_SPENT, slot] = 0, 0.0
        for i in range(count):
            if whole[entered, whole[ORDER, i]] > 0:
                slot = whole[ORDER, i]
                break
        k0, k1 = _sub_key(k0, k1, 6)
