"""Passes over a batch of small boxes: one word for each site, one box a bit.

Boxes of equal shape and colouring go together, box ``member`` at bit ``member % 64`` of
word ``member // 64``, so that the noise of a box does not depend on the others that are
there. The noise of a row of a box is one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mpiflow.core.device import CudaKernel, copy_line, kernel, split, unravel
from mpiflow.core.errors import InputError
from mpiflow.core.noise import Word, site_counter, threefry
from mpiflow.solvers.spins.bitplanes import (  # fmt: skip
    BELOW,
    CHUNK,
    EQUAL,
    PLANES,
    QUEUE,
    S0,
    S1,
    S2,
    SLICED_AB,
    SLICED_C,
    SLICED_RESIDUAL,
    SPACE,
    SPIN,
    STATE_A,
    STATE_B,
    STATE_C,
    Masks,
    class_at,
    compare,
    compare_words,
    compared,
    count_neighbours,
    settle,
)

#: Words of a batch's field that are handled together, to fit the second-level cache.
CACHE_WORDS = 2**17


@dataclass(frozen=True)
class Lanes:
    """Where some boxes of a batch are in a field of words.

    Attributes
    ----------
    groups : (words,) uint64, member // 64 of each word, ascending
    boxes : (n,) int64, indices of boxes in the batch, by member
    lane : (n,) int64, 64 times the word plus the bit of each
    """

    groups: np.ndarray
    boxes: np.ndarray
    lane: np.ndarray

    def by_box(self) -> np.ndarray:
        """The lane of each box of the batch, (n,) int64, where all of it is here."""
        out = np.empty(len(self.boxes), np.int64)
        out[self.boxes] = self.lane
        return out

    def pack(self, boxes: np.ndarray) -> np.ndarray:
        """The field (sites, words) uint64 of boxes (B, sites) of +1 and -1."""
        field = np.zeros((boxes.shape[1], len(self.groups)), np.uint64)
        _pack(boxes, self.boxes, self.lane, field)
        return field

    def unpack(self, field: np.ndarray, boxes: np.ndarray) -> None:
        """The reverse, into boxes (B, sites) int8."""
        _unpack(field.reshape(boxes.shape[1], -1), self.boxes, self.lane, boxes)


def all_lanes(members: np.ndarray) -> Lanes:
    """All boxes of a batch."""
    order = np.argsort(members, kind="stable")
    ordered = members[order]
    same = ordered[1:] == ordered[:-1]
    if np.any(same):
        twice = int(ordered[1:][same][0])
        raise InputError("members", twice, "each number once in a batch", "Give every box its own.")
    group = ordered >> np.uint64(6)
    new = np.ones(len(group), bool)  # of a million boxes np.unique would take longer than a GPU
    new[1:] = group[1:] != group[:-1]
    bit = (ordered & np.uint64(63)).astype(np.int64)
    return Lanes(group[new], order, 64 * (np.cumsum(new) - 1) + bit)


def lanes(members: np.ndarray, sites: int) -> Iterator[Lanes]:
    """All boxes of a batch, as many words at a time as fit the cache."""
    whole = all_lanes(members)
    # Whole vectors of words.
    most = min(CHUNK, max(8, CACHE_WORDS // sites // 8 * 8))
    for start in range(0, len(whole.groups), most):
        low, high = np.searchsorted(whole.lane, (64 * start, 64 * (start + most)))
        lane = whole.lane[low:high] - 64 * start
        yield Lanes(whole.groups[start : start + most], whole.boxes[low:high], lane)


@kernel
def _gather_lane(box: np.ndarray, bit: int, out: np.ndarray) -> None:
    for s in range(box.size):
        out[s] |= np.uint8(box[s] > 0) << np.uint8(bit)


@kernel
def _join_lanes(parts: np.ndarray, column: int, field: np.ndarray) -> None:
    for s in range(parts.shape[1]):
        word = np.uint64(0)
        for part in range(8):
            word |= np.uint64(parts[part, s]) << np.uint64(8 * part)
        field[s, column] = word


@kernel
def _pack(boxes: np.ndarray, order: np.ndarray, lane: np.ndarray, field: np.ndarray) -> None:
    parts = np.zeros((8, boxes.shape[1]), np.uint8)
    for i in range(order.size):
        column, bit = lane[i] >> 6, lane[i] & 63
        _gather_lane(boxes[order[i]], bit & 7, parts[bit >> 3])
        if i + 1 == order.size or lane[i + 1] >> 6 != column:
            _join_lanes(parts, column, field)
            parts[:] = 0


@kernel
def _split_lanes(field: np.ndarray, column: int, parts: np.ndarray) -> None:
    for s in range(parts.shape[1]):
        word = field[s, column]
        for part in range(8):
            parts[part, s] = np.uint8((word >> np.uint64(8 * part)) & np.uint64(255))


@kernel
def _scatter_lane(part: np.ndarray, bit: int, box: np.ndarray) -> None:
    for s in range(box.size):
        box[s] = np.int8(((part[s] >> np.uint8(bit)) & np.uint8(1)) << np.uint8(1)) - np.int8(1)


@kernel
def _unpack(field: np.ndarray, order: np.ndarray, lane: np.ndarray, boxes: np.ndarray) -> None:
    parts = np.empty((8, boxes.shape[1]), np.uint8)
    for i in range(order.size):
        column, bit = lane[i] >> 6, lane[i] & 63
        if i == 0 or lane[i - 1] >> 6 != column:
            _split_lanes(field, column, parts)
        _scatter_lane(parts[bit >> 3], bit & 7, boxes[order[i]])


@kernel
def _seed_streams(
    space: np.ndarray,
    to: int,
    key0: Word,
    key1: Word,
    groups: np.ndarray,
    step: Word,
    row: Word,
) -> None:
    """Put the streams of a row of some words into the working space from word ``to`` on."""
    for i in range(groups.size):
        w, key = np.uint64(to + i), key1 + groups[i]
        space[STATE_A + w], space[STATE_B + w] = threefry(key0, key, step | SLICED_AB, row)
        space[STATE_C + w] = threefry(key0, key, step | SLICED_C, row)[0]


@kernel
def _classes(
    space: np.ndarray,
    to: int,
    n: int,
    field: np.ndarray,
    at: Word,
    down: Word,
    right: Word,
    setting: Word,
) -> None:
    """Classes of n words of one site; steps to its neighbours are `down` and `right` words."""
    for i in range(n):
        k, w = np.uint64(to + i), at + np.uint64(i)
        s = compared(field[w], setting)
        s0, s1, s2 = count_neighbours(
            field[w - down] ^ s, field[w + down] ^ s, field[w - right] ^ s, field[w + right] ^ s
        )
        space[S0 + k], space[S1 + k], space[S2 + k], space[SPIN + k] = s0, s1, s2, s


@kernel
def _settle(
    space: np.ndarray,
    to: int,
    key0: Word,
    key1: Word,
    groups: np.ndarray,
    step: Word,
    site: Word,
    residual: np.ndarray,
) -> None:
    """Decide the lanes that the planes left undecided."""
    for i in range(groups.size):
        w = np.uint64(to + i)
        if space[EQUAL + w]:
            first, kind = key1 + (groups[i] << np.uint64(6)), step | SLICED_RESIDUAL
            space[BELOW + w] |= settle(
                space[EQUAL + w], key0, first, np.uint64(1), kind, site, np.uint64(0),
                space[S0 + w], space[S1 + w], space[S2 + w], space[SPIN + w], residual,
            )  # fmt: skip


@kernel
def _flip(space: np.ndarray, to: int, n: int, target: np.ndarray, at: Word, setting: Word) -> None:
    """Flip or set a site of n words; what is below becomes what flips."""
    for i in range(n):
        k, w = np.uint64(to + i), at + np.uint64(i)
        space[BELOW + k] ^= target[w] & setting
        target[w] ^= space[BELOW + k]


@kernel
def _no_flips(space: np.ndarray, to: int, n: int) -> None:
    for i in range(n):
        space[BELOW + np.uint64(to + i)] = np.uint64(0)


@kernel
def _add_bit(space: np.ndarray, n: int, digit: np.ndarray) -> None:
    """Add the flips to a binary digit of each lane's counter; they become the carry."""
    for i in range(n):
        carry = space[BELOW + np.uint64(i)]
        space[BELOW + np.uint64(i)] = carry & digit[i]
        digit[i] ^= carry


@kernel
def _empty_counters(digits: np.ndarray, n: int, words: int, counts: np.ndarray) -> None:
    """Add binary numbers, one a lane, digit p in row p, to ordinary ones, and clear them.

    There are n words of lanes: several rows of sites, each with the same ``words`` words.
    """
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    for i in range(n):
        first = 64 * (i % words)
        d0, d1, d2, d3 = digits[0, i], digits[1, i], digits[2, i], digits[3, i]
        d4, d5, d6, d7 = digits[4, i], digits[5, i], digits[6, i], digits[7, i]
        for bit in range(64):
            k = np.uint64(bit)
            low = d0 >> k & one | (d1 >> k & one) << one | (d2 >> k & one) << two
            high = d4 >> k & one | (d5 >> k & one) << one | (d6 >> k & one) << two
            low, high = low | (d3 >> k & one) << three, high | (d7 >> k & one) << three
            counts[first + bit] += np.int64(low | high << four)
    digits[:] = 0


@kernel
def wrap(field: np.ndarray, halo: int) -> None:
    """Close every box of a (H, W, words) field on itself."""
    ny, nx = field.shape[0] - 2 * halo, field.shape[1] - 2 * halo
    for i in range(halo):
        for j in range(halo, nx + halo):
            copy_line(field[i, j], field[i + ny, j])
            copy_line(field[i + ny + halo, j], field[i + halo, j])
    for i in range(field.shape[0]):
        for j in range(halo):
            copy_line(field[i, j], field[i, j + nx])
            copy_line(field[i, j + nx + halo], field[i, j + halo])


def _cpu_kernel(constants: Masks | None) -> Any:
    """The kernel with the thresholds as an argument, or compiled in."""

    def update_sliced(  # type: ignore[no-untyped-def]
        target, field, halo, parity, close, first, passes, groups, key, masks, residual, setting,
        flips,
    ):  # fmt: skip
        """Passes over sliced boxes, black where their number is even.

        Parameters
        ----------
        target : gets the flips that ``field`` makes; ``field`` itself in a step
        field : (H, W, words) uint64, boxes with their halo, at most CHUNK words
        parity : colour of the first inner site, 0 for black
        close : close each box on itself after each pass; else the halo stays as it is
        first, passes : number of the first pass, and how many
        groups : (words,) uint64, member // 64 of each word
        flips : (64 words,) int64, gets the flips of each lane
        """
        m = masks if constants is None else constants
        space = np.empty(SPACE, np.uint64)
        height, width, words = field.shape
        down, right = np.uint64(width * words), np.uint64(words)
        flat, out = field.reshape(-1), target.reshape(-1)
        digits = np.zeros((8, CHUNK), np.uint64)
        # Rows go together that fill the working space: of few words a single one would wait for
        # its own random numbers at every site.
        blocks = -(-(height - 2 * halo) // max(1, CHUNK // words))
        together = -(-(height - 2 * halo) // blocks)
        counted = 0
        for number in range(first, first + passes):
            step = np.uint64(number)
            for top in range(halo, height - halo, together):
                rows = min(together, height - halo - top)
                for r in range(rows):
                    row = np.uint64(top + r - halo)
                    _seed_streams(space, r * words, key[0], key[1], groups, step, row)
                draws = 1
                for column in range(halo, width - halo, 2):
                    for r in range(rows):
                        x = column + ((number + parity + top + r - halo) & 1)
                        at = np.uint64(((top + r) * width + x) * words)
                        _classes(space, r * words, words, flat, at, down, right, setting)
                    compare_words(space, rows * words, np.uint64(draws), m)
                    draws += PLANES
                    for r in range(rows):
                        x = column + ((number + parity + top + r - halo) & 1)
                        if x == width - halo:  # of an odd side: this row has no such site
                            _no_flips(space, r * words, words)
                            continue
                        at = np.uint64(((top + r) * width + x) * words)
                        site = site_counter(top + r - halo, x - halo)
                        _settle(space, r * words, key[0], key[1], groups, step, site, residual)
                        _flip(space, r * words, words, out, at, setting)
                    for p in range(8):
                        _add_bit(space, rows * words, digits[p])
                    counted += 1
                    if counted == 255:
                        _empty_counters(digits, together * words, words, flips)
                        counted = 0
            if close:
                wrap(target, halo)
        _empty_counters(digits, together * words, words, flips)

    return kernel(update_sliced)


update_sliced = _cpu_kernel(None)


@lru_cache(maxsize=8)
def sliced_with(masks: Masks) -> Any:
    """:data:`update_sliced` with thresholds compiled in: faster, after a few
    seconds of compiling, which are kept on disk."""
    return _cpu_kernel(masks)


@CudaKernel
def wrap_sliced_cuda(cuda: Any) -> Callable[..., None]:
    def wrap(field: Any, halo: int) -> None:
        """Close every box on itself; one thread for each site of the halo and word."""
        i = cuda.grid(1)
        height, width, words = field.shape
        if i < height * width * words:
            y, x, w = unravel(i, width, words)
            ny, nx = height - 2 * halo, width - 2 * halo
            iy = y + ny if y < halo else y - ny if y >= ny + halo else y
            ix = x + nx if x < halo else x - nx if x >= nx + halo else x
            if iy != y or ix != x:
                field[y, x, w] = field[iy, ix, w]

    return wrap


def _cuda_factory(constants: Masks | None) -> Callable[[Any], Callable[..., None]]:
    """The kernel with the thresholds as an argument, or compiled in."""

    def factory(cuda: Any) -> Callable[..., None]:
        def update(  # type: ignore[no-untyped-def]
            target, field, height, width, halo, parity, number, groups, key, masks, residual,
            setting, flips,
        ):  # fmt: skip
            """One pass; one thread for each row of a box and word. Same bits as the CPU kernel.

            What the planes leave undecided waits in a queue, as in
            :mod:`~mpiflow.solvers.spins.multispin_cuda`.

            Parameters
            ----------
            target, field : (height * width * words,) uint64
            """
            queue = cuda.shared.array(QUEUE, np.uint32)
            waiting = cuda.shared.array(1, np.int32)
            me, i, words = cuda.threadIdx.x, cuda.grid(1), groups.shape[0]
            if me == 0:
                waiting[0] = 0
            cuda.syncthreads()
            m = masks if constants is None else constants
            step, one, key0 = np.uint64(number), np.uint64(1), key[0]
            down, right = np.uint64(width * words), np.uint64(words)
            if i < (height - 2 * halo) * words:
                y, w = split(i, words)
                row, group = np.uint64(y), groups[w]
                a, b = threefry(key0, key[1] + group, step | SLICED_AB, row)
                c = threefry(key0, key[1] + group, step | SLICED_C, row)[0]
                # The simulator's rules return Python ints.
                a, b, c, draws = np.uint64(a), np.uint64(b), np.uint64(c), np.uint64(1)
                d0 = d1 = d2 = d3 = d4 = d5 = np.uint64(0)
                counted, first = 0, (number + parity + y) & 1
                at = np.uint64(((halo + y) * width + halo + first) * words + w)
                for x in range(first, width - 2 * halo, 2):
                    spin = field[at]
                    s = np.uint64(compared(spin, setting))
                    s0, s1, s2 = count_neighbours(
                        field[at - down] ^ s, field[at + down] ^ s,
                        field[at - right] ^ s, field[at + right] ^ s,
                    )  # fmt: skip
                    s0, s1, s2 = np.uint64(s0), np.uint64(s1), np.uint64(s2)
                    a, b, c, below, undecided = compare(a, b, c, draws, m, s0, s1, s2, s)
                    a, b, c = np.uint64(a), np.uint64(b), np.uint64(c)
                    undecided = np.uint64(undecided)
                    draws += np.uint64(PLANES)
                    change = (np.uint64(below) ^ (spin & setting)) & ~undecided
                    left = np.uint64(0)
                    while undecided:
                        bit = np.uint64(cuda.popc(~undecided & (undecided - one)))  # the lowest one
                        undecided &= undecided - one
                        kind = np.int64(class_at(bit, s0, s1, s2, s))
                        slot = QUEUE
                        if x < 2**15:  # more does not fit an entry
                            slot = cuda.atomic.add(waiting, 0, 1)
                        if slot < QUEUE:
                            queue[slot] = kind | np.int64(bit) << 4 | x << 10 | me << 25
                        else:
                            left |= one << bit
                    while left:
                        bit = np.uint64(cuda.popc(~left & (left - one)))
                        left &= left - one
                        kind = np.int64(class_at(bit, s0, s1, s2, s))
                        member = key[1] + (group << np.uint64(6)) + bit
                        site = np.uint64(site_counter(y, x))
                        word = threefry(key0, member, step | SLICED_RESIDUAL, site)[0]
                        up = (spin & setting) >> bit & one
                        change ^= (np.uint64(word < residual[kind]) ^ up) << bit
                    target[at] ^= change
                    at += right + right
                    # A number of six binary digits for each lane.
                    d0, change = d0 ^ change, d0 & change
                    d1, change = d1 ^ change, d1 & change
                    d2, change = d2 ^ change, d2 & change
                    d3, change = d3 ^ change, d3 & change
                    d4, change = d4 ^ change, d4 & change
                    d5 ^= change
                    counted += 1
                    if counted == 63 or x + 2 >= width - 2 * halo:
                        for lane in range(64):
                            k = np.uint64(lane)
                            n = d0 >> k & one | (d1 >> k & one) << one
                            n |= (d2 >> k & one) << np.uint64(2) | (d3 >> k & one) << np.uint64(3)
                            n |= (d4 >> k & one) << np.uint64(4) | (d5 >> k & one) << np.uint64(5)
                            if n:
                                cuda.atomic.add(flips, 64 * w + lane, np.int64(n))
                        d0 = d1 = d2 = d3 = d4 = d5 = np.uint64(0)
                        counted = 0
            cuda.syncthreads()
            next_one = np.uint32(me)
            while next_one < min(np.uint32(waiting[0]), np.uint32(QUEUE)):
                entry = np.int64(queue[next_one])
                kind, bit, x = entry & 15, np.uint64(entry >> 4 & 63), int(entry >> 10 & 2**15 - 1)
                y, w = split(i - me + (entry >> 25), words)
                member = key[1] + (groups[w] << np.uint64(6)) + bit
                site = np.uint64(site_counter(y, x))
                word = threefry(key0, member, step | SLICED_RESIDUAL, site)[0]
                at = np.uint64(((halo + y) * width + halo + x) * words + w)
                up = (field[at] & setting) >> bit & one
                change = np.uint64(word < residual[kind]) ^ up
                if change:
                    cuda.atomic.xor(target, at, change << bit)
                    cuda.atomic.add(flips, 64 * w + np.int64(bit), 1)
                next_one = np.uint32(next_one + np.uint32(cuda.blockDim.x))

        return update

    return factory


update_sliced_cuda = CudaKernel(_cuda_factory(None))


@lru_cache(maxsize=8)
def sliced_cuda_with(masks: Masks) -> CudaKernel:
    """:data:`update_sliced_cuda` with thresholds compiled in."""
    return CudaKernel(_cuda_factory(masks))
