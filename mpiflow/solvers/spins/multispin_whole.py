"""Passes over packed lattices of short rows: whole ones, and tiles of those whose rows run on.

Rows of one word or a few do not fill vectors, and what is done for each row costs more than its
sites. So words are kept in another order while passes last, in which vectors are full:

* Where rows are words of their own the bits are those of :mod:`~mpiflow.solvers.spins.multispin`.
  The same row of all bands draws at once, each from the stream of its band: the order is row of the
  band, word of the row, band.
* Where rows run on (:func:`~mpiflow.core.packed.runs_on`) the sites of a colour follow one another
  without a gap, row by row, and so do the words. Neighbours above and below are as many bits away
  as a row has, those at the other end of a row one less: words that are read from two.

A vector holds words whose neighbours are equally far, so that all of a pass is done in vectors, but
for the sites that the planes leave undecided. These wait until a chunk of words is done.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any

import numpy as np

from mpiflow.core.device import in_threads, intrinsic, kernel, split
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import split as split_evenly
from mpiflow.core.messages import NO_LINES
from mpiflow.core.noise import site_counter, threefry
from mpiflow.core.packed import BAND, LANES, MOST_SITES, PackedBlock, words_across
from mpiflow.core.packed_words import close, popcount
from mpiflow.solvers.spins import running_cuda
from mpiflow.solvers.spins.bitplanes import (  # fmt: skip
    CHUNK,
    EQUAL,
    PLANES,
    RESIDUAL,
    SPACE,
    STATE_A,
    STATE_B,
    STATE_C,
    WIDE,
    Masks,
    Thresholds,
    Vectors,
)
from mpiflow.solvers.spins.multispin import exchange, seed_streams
from mpiflow.solvers.spins.word_order import Order, bit_at, move, order_of, place, wrap

#: Words of a colour in a row up to which this is faster where rows do not run on.
MOST_WORDS = 6


def fits(block: PackedBlock) -> bool:
    """Whether a block is of this module: its rows run on, or it is whole lattices of short rows on
    the CPU that stay in the cache in the order of this module."""
    short = words_across(block.columns) <= MOST_WORDS and math.prod(block.shape) <= MOST_SITES
    return block.runs_on or (block.closed and short and not block.device.is_cuda)


# Words of the working space: flips, which slots have undecided sites, and the first word of each
# vector of slots.
FLIPS = np.uint64(SPACE)
LEFT = np.uint64(SPACE + WIDE)
FIRST = np.uint64(SPACE + WIDE + CHUNK // 64)
_SPACE = SPACE + WIDE + CHUNK // 64 + CHUNK // WIDE


def _updating(words: int) -> Any:
    """The intrinsic that updates so many words."""

    @intrinsic
    def update(  # type: ignore[no-untyped-def]
        ir, builder, space, bits, inside, i, slot, state, places, far, odd, shift, setting, count,
        masks,
    ):  # fmt: skip
        """Decide what the planes decide, and flip or set it; note what is undecided in a slot.

        Parameters
        ----------
        bits, inside : words of all colours, and masks of sites, in the order of this module
        i, slot, state : number of the first of the words; its slot, and place of their streams in
            the working space
        places : where the words begin: in ``bits`` those of this colour, those that are changed,
            and of the other colour the same word; in ``inside`` the masks of their sites. Then,
            where rows run on, in ``inside`` the two other masks; else in ``bits`` the words above
            and below, and the one with the fourth neighbour that is not in the same word
        far : how far neighbours are: :func:`order_of`
        odd, shift : where rows do not run on, whether fourth neighbours are a bit to the right, and
            how far the one in another word is from the place where it belongs
        """
        v, b, i64 = Vectors(ir, builder, words), builder, ir.IntType(64)
        own, out, here, sites = places[:4]

        def across(way, high, low, by):  # type: ignore[no-untyped-def]
            kind = ir.FunctionType(v.kind, [v.kind] * 3)
            function = b.module.declare_intrinsic(f"llvm.fsh{way}.v{words}i64", (), kind)
            return b.call(function, [high, low, v.every(by)])

        def load(array, place, *more):  # type: ignore[no-untyped-def]
            for number in more:
                place = b.add(place, number)
            return v.load(array, b.add(place, i))

        def choose(mask, one, other):  # type: ignore[no-untyped-def]
            return b.xor(other, b.and_(mask, b.xor(one, other)))

        def before(n, bits_, *more):  # type: ignore[no-untyped-def]
            n = b.neg(n)
            return across("l", load(bits, here, n), load(bits, here, n, i64(-1)), bits_)

        def after(n, bits_):  # type: ignore[no-untyped-def]
            return across("r", load(bits, here, n, i64(1)), load(bits, here, n), bits_)

        o = load(bits, here)
        if far:
            row, less = far[:2], far[2:]
            north, south = before(*row), after(*row)
            left, ends = (load(inside, place) for place in places[4:])
            near = choose(left, before(i64(0), 1), after(i64(0), 1))
            fourth = choose(ends, choose(left, after(*less), before(*less)), near)
        else:
            north, south, other = (load(bits, place) for place in places[4:])
            shift = v.every(shift)
            to_left = b.or_(b.shl(o, v.every(1)), b.lshr(other, shift))
            to_right = b.or_(b.lshr(o, v.every(1)), b.shl(other, shift))
            fourth = b.select(b.trunc(odd, ir.IntType(1)), to_right, to_left)
        setting, ones = v.every(setting), v.every(2**64 - 1)
        s = b.and_(load(bits, own), b.xor(setting, ones))
        n = [b.xor(word, s) for word in (north, south, o, fourth)]
        # count_neighbours
        x, y, z, q = b.xor(n[0], n[1]), b.and_(n[0], n[1]), b.xor(n[2], n[3]), b.and_(n[2], n[3])
        s2 = b.and_(y, q)
        s1 = b.and_(b.xor(b.xor(y, q), b.and_(x, z)), b.xor(s2, ones))
        classes = b.xor(x, z), s1, s2, s
        rows = STATE_A, STATE_B, STATE_C
        streams = [v.load(space, state, row) for row in rows]
        streams, below, equal = v.compare(streams, count, masks, classes)
        for row, value in zip(rows, streams, strict=True):
            v.store(value, space, state, row)
        of_sites = load(inside, sites)
        equal = b.and_(equal, of_sites)
        old = load(bits, out)
        change = b.xor(below, b.and_(old, setting))
        change = b.and_(b.and_(change, of_sites), b.xor(equal, ones))
        v.store(b.xor(old, change), bits, b.add(out, i))
        flips = b.add(v.load(space, i64(int(FLIPS))), v.popcount(change))
        v.store(flips, space, i64(int(FLIPS)))
        v.store(equal, space, slot, EQUAL)
        some = b.bitcast(b.icmp_unsigned("!=", equal, v.every(0)), ir.IntType(words))
        some = some if words == WIDE else b.zext(some, ir.IntType(WIDE))
        place = b.bitcast(b.gep(space, [i64(int(LEFT))]), some.type.as_pointer())
        b.store(some, b.gep(place, [b.udiv(slot, i64(WIDE))]))

    return update


_update_wide, _update_half = _updating(WIDE), _updating(WIDE // 2)


@kernel
def _settle(  # type: ignore[no-untyped-def]
    space, bits, areas, order, top, step_word, key0, key1, number, residual, setting
):
    """Decide the sites in the slots that the planes left undecided; returns how many change.

    Parameters
    ----------
    areas : of the colour, of the other one, and of what is changed
    top : row of the lattice that the box begins with
    step_word : how far a word is from the one before in a slot, as words are numbered
    """
    flips, one, colour = np.uint64(0), np.uint64(1), number & 1
    for part in range(CHUNK // 64):
        left = space[LEFT + np.uint64(part)]
        space[LEFT + np.uint64(part)] = 0
        while left:
            only = left & (~left + one)
            left ^= only
            slot = popcount(only - one) + np.uint64(64 * part)
            word = np.int64(space[FIRST + slot // np.uint64(WIDE)])
            word += np.int64(slot % np.uint64(WIDE)) * step_word
            undecided = space[EQUAL + slot]
            while undecided:
                only = undecided & (~undecided + one)
                undecided ^= only
                bit = 64 * word + np.int64(popcount(only - one))
                y, j = split(bit - order.first, order.pitch)
                odd = (y + colour) & 1
                if odd:
                    side = bit + 1 if j + 1 < order.half else bit + 1 - order.half
                else:
                    side = bit - 1 if j else bit - 1 + order.half
                spin = bit_at(bits, areas[0], bit, order) & ~setting
                kind = np.uint64(5) * spin
                for other in (bit - order.pitch, bit + order.pitch, bit, side):
                    kind += spin ^ bit_at(bits, areas[1], other, order)
                site = site_counter(top + y, 2 * j + odd)
                drawn = threefry(key0, key1, np.uint64(number) | RESIDUAL, site)[0]
                change = bit_at(bits, areas[2], bit, order) & setting
                change = change ^ np.uint64(drawn < residual[np.int64(kind)]) & one
                at = areas[2] * order.size + place(word, order)
                bits[at] ^= change << np.uint64(bit & 63)
                flips += change
    return flips


def _kernel(constants: Masks | None) -> Any:
    """The kernel with the thresholds as an argument, or compiled in."""

    def update_packed(  # type: ignore[no-untyped-def]
        target, black, white, first, passes, looks, closed, lines, sent, order, far, inside, top,
        key, members, masks, residual, setting, flips,
    ):  # fmt: skip
        """Passes over boxes, black where their number is even; adds the flips of each.

        Parameters
        ----------
        target : gets the flips of black sites; ``black`` itself in a step
        black, white : (B, ny + 2, words + 2) uint64, see :mod:`mpiflow.core.packed`. Their halos
            are current before. So are they afterwards, but for the rows of a box not ``closed``
        first, passes : number of the first pass, and how many; one if rows come from elsewhere
        looks : whether ``target`` is another array than ``black``
        closed : whether boxes are whole lattices, and meet themselves at their ends
        lines, sent : as of :func:`mpiflow.solvers.spins.multispin.update_packed`
        order, far, inside : :func:`order_of` the boxes
        top : row of the lattice that boxes begin with
        """
        m = masks if constants is None else constants
        order = Order(*order)
        runs_on, half, size = len(far) > 0, order.half, order.size
        end, sends = order.rows + 1, lines.size > 0
        space = np.empty(_SPACE, np.uint64)
        for part in range(CHUNK // 64):
            space[LEFT + np.uint64(part)] = 0
        bits = np.empty(3 * size, np.uint64)  # black, white, the target
        # Words that start together, and how they follow one another in a vector.
        bands = (order.rows + BAND - 1) // BAND
        most = CHUNK // order.across // WIDE * WIDE
        parts = (order.words + order.length - 1) // order.length
        step_word = 1
        if not runs_on:
            parts, step_word = (bands + most - 1) // most, order.length
        for b in range(black.shape[0]):
            bits[:] = 0
            move(black[b], bits, 0, order, 0, end + 1, False)
            move(white[b], bits, 1, order, 0, end + 1, False)
            if looks:
                move(target[b], bits, 2, order, 0, end + 1, False)
            key1 = key[1] + members[b]
            for number in range(first, first + passes):
                colour = number & 1
                if sends and number > first:
                    theirs = white if colour == 0 else black
                    if not exchange(lines, 1 - colour, theirs, half, sent, True):
                        return
                    move(theirs[b], bits, 1 - colour, order, 0, 1, False)
                    move(theirs[b], bits, 1 - colour, order, end, end + 1, False)
                areas = colour, 1 - colour, 2 if looks else colour
                mine, others, out = areas[0] * size, areas[1] * size, areas[2] * size
                for i in range(WIDE):
                    space[FLIPS + np.uint64(i)] = 0
                for part in range(parts):
                    low = part * most
                    n = LANES if runs_on else min(most, bands - low)
                    wide = (n + WIDE - 1) // WIDE * WIDE
                    columns = 1 if runs_on else order.across
                    for w in range(columns):
                        for i in range(wide):
                            band, column = (order.band + part, i) if runs_on else (low + i, w)
                            stream = np.uint64(band) << np.uint64(32) | np.uint64(column)
                            space[STATE_C + np.uint64(w * wide + i)] = stream
                    seed_streams(space, columns * wide, key[0], key1, np.uint64(number))
                    slot = 0
                    for row in range(BAND):
                        odd, count = (row + colour) & 1, np.uint64(PLANES * row + 1)
                        for w in range(columns):
                            if runs_on:
                                word = part * order.length + row * LANES
                                n = min(LANES, order.words - word)
                                here, shift = order.before + word, 0
                                places: tuple[int, ...] = (
                                    mine + here, out + here, others + here, here,
                                    (1 + colour) * size + here, (3 + colour) * size + here,
                                )  # fmt: skip
                            else:
                                word = low * order.length + row * order.across + w
                                here = (row * order.across + w) * order.stride + low + 1
                                north = here - order.across * order.stride
                                south = here + order.across * order.stride
                                if row == 0:
                                    north += size - 1
                                if row == BAND - 1:
                                    south -= size - 1
                                # Of the fourth neighbours one is in another word, or at the other
                                # end.
                                side, ends = (w + 1, columns) if odd else (w - 1, -1)
                                shift = half - 1 & 63 if side == ends else 63
                                side += 0 if side != ends else -columns if odd else columns
                                other = here + (side - w) * order.stride
                                places = (
                                    mine + here, out + here, others + here, here,
                                    others + north, others + south, others + other,
                                )  # fmt: skip
                            for i in range(0, n, WIDE):
                                state = w * wide + i
                                if n - i > WIDE // 2:
                                    _update_wide(
                                        space, bits, inside, i, slot, state, places, far, odd,
                                        shift, setting, count, m,
                                    )  # fmt: skip
                                else:
                                    _update_half(
                                        space, bits, inside, i, slot, state, places, far, odd,
                                        shift, setting, count, m,
                                    )  # fmt: skip
                                begins = np.uint64(word + i * step_word)
                                space[FIRST + np.uint64(slot // WIDE)] = begins
                                slot += WIDE
                                if slot == CHUNK:
                                    slot = 0
                                    space[FLIPS] += _settle(
                                        space, bits, areas, order, top, step_word, key[0], key1,
                                        number, residual, setting,
                                    )  # fmt: skip
                    if space[LEFT] | space[LEFT + np.uint64(1)]:
                        space[FLIPS] += _settle(
                            space, bits, areas, order, top, step_word, key[0], key1, number,
                            residual, setting,
                        )  # fmt: skip
                for i in range(WIDE):
                    flips[b] += np.int64(space[FLIPS + np.uint64(i)])
                if closed and not looks:
                    wrap(bits, colour, order)
                if sends and number + 1 < first + passes:
                    ours = white if colour else black
                    move(ours[b], bits, colour, order, 1, 2, True)
                    move(ours[b], bits, colour, order, end - 1, end, True)
                    if not exchange(lines, colour, ours, half, sent, False):
                        return
            move(target[b], bits, 2 if looks else 0, order, 1, end, True)
            move(white[b], bits, 1, order, 1, end, True)
        close(target, half, closed, True)
        close(white, half, closed, True)
        if sends and passes > 0:  # nothing may change what is on its way
            colour = (first + passes - 1) & 1
            exchange(lines, colour, white if colour else black, half, sent, False)

    return kernel(update_packed)


update_packed = _kernel(None)


@lru_cache(maxsize=8)
def packed_with(masks: Masks) -> Any:
    """:data:`update_packed` with thresholds compiled in."""
    return _kernel(masks)


def advance(
    block: PackedBlock,
    target: Any,
    kernel: Any,
    masks: Masks,
    thresholds: Thresholds,
    key: np.ndarray,
    passes: range,
    looks: bool,
    workers: int,
) -> np.ndarray:
    """Passes of these numbers over a block, with what goes to other ranks.

    Parameters
    ----------
    target : gets the flips of black sites; the block's own black words in a step
    kernel : :func:`update_packed` or that of :mod:`~mpiflow.solvers.spins.running_cuda`, or one
        with the masks compiled in, for which ``masks`` is empty
    looks : whether the target is another array than the block's
    workers : threads that may share the boxes

    Returns
    -------
    (B,) int64, the flips in each box

    Raises
    ------
    InputError : rows run on, and boxes have parts of them
    MPI.Exception : a message could not be sent or received
    """
    if block.columns != block.lattice.shape[1]:
        allowed = f"tiles of whole rows of {block.lattice.shape[1]} sites"
        raise InputError("tile", block.shape, allowed, "Use a grid of ranks with one column.")
    put, (ny, half), top = block.device.put, (block.shape[0], block.columns // 2), _top(block)
    residual, members, key = map(put, (thresholds.residual, block.members, key))
    counts = put(np.zeros(block.batch, np.int64))
    arrays, decision = (target, *block.words), (masks, residual, thresholds.setting)

    def launch(number: int) -> None:
        colours = arrays if number % 2 == 0 else (arrays[2], arrays[2], arrays[1])
        kernel.launch(
            running_cuda.threads_of(block.batch, top, ny, half), *colours, number, half, top, key,
            members, *decision, counts,
        )  # fmt: skip

    lines = None if looks or block.device.is_cuda else block.lines
    numbers = NO_LINES if lines is None else lines.numbers

    def call(boxes: slice, first: int, number: int) -> None:
        kernel(
            *(array[boxes] for array in arrays), first, number, looks, block.closed, numbers,
            block.columns_sent, *order_of(ny, half, top, block.runs_on), top, key, members[boxes],
            *decision, counts[boxes],
        )  # fmt: skip

    if block.closed and not block.device.is_cuda:
        parts = min(workers, max(1, block.batch))
        shares = (slice(*split_evenly(block.batch, parts, i)) for i in range(parts))
        in_threads([partial(call, share) for share in shares], passes.start, len(passes))
        return counts
    if lines is not None:
        for colour in (0, 1):
            block.finish_exchange(colour)
        call(slice(None), passes.start, len(passes))
        lines.check()
        if passes:
            block.exchange_started(passes[-1] % 2)
        return counts
    for number in passes:
        block.finish_exchange(1 - number % 2)
        if block.device.is_cuda:
            launch(number)
        else:
            call(slice(None), number, 1)
        if not looks:
            block.start_exchange(number % 2)
    return block.device.get(counts)


def _top(block: PackedBlock) -> int:
    """Row of the lattice that boxes begin with."""
    return int(block.origins[0, 0]) if block.batch else 0
