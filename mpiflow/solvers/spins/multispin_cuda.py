"""Passes over packed boxes on GPUs: the bits of :mod:`~mpiflow.solvers.spins.multispin`.

A thread does a band of eight rows of one word. Sites that the planes leave undecided, one in
:math:`2^{12}`, would have nearly half of all warps wait in every row for the noise of one thread.
They go into a queue of their block instead, which its threads work off together at the end: whether
a site flips depends on nothing that the pass changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from mpiflow.core.device import CudaKernel, rule, split
from mpiflow.core.noise import Word, site_counter, threefry
from mpiflow.core.packed import BAND, WORD_SITES
from mpiflow.core.packed_words import sites_of_last
from mpiflow.solvers.spins.bitplanes import (
    PLANES,
    QUEUE,
    RESIDUAL,
    SEED_AB,
    SEED_C,
    Masks,
    class_at,
    compare,
    compared,
    count_neighbours,
    skip,
)


@rule
def _place(i: int, bands: tuple[int, int, int], words: tuple[int, int]) -> tuple[int, int, int]:
    """Box, band and word of a thread; bands: first, step and number; words: first and number."""
    line, word = split(i, words[1])
    box, band = split(line, bands[2])
    return box, bands[0] + band * bands[1], words[0] + word


@rule
def _late(key0: Word, key1: Word, step: Word, y: int, x: int) -> Word:
    """The noise of a site that the planes left undecided."""
    return threefry(key0, key1, step | RESIDUAL, site_counter(y, x))[0]


def _factory(constants: Masks | None) -> Callable[[Any], Callable[..., None]]:
    """The kernel with the thresholds as an argument, or compiled in."""

    def factory(cuda: Any) -> Callable[..., None]:
        def update(  # type: ignore[no-untyped-def]
            out, spins, other, rows, width, number, bands, words, half, origins, key, members,
            masks, residual, setting, flips,
        ):  # fmt: skip
            """One pass. Same bits as the CPU kernel.

            Parameters
            ----------
            out : gets the flips; ``spins`` itself in a step
            spins, other : words of the pass's colour and of the other one, all boxes one after the
                other, (B (rows + 2) width,) uint64
            rows, width : of a box, without and with its halo
            bands : first one, step and number
            words : first one and number
            """
            queue = cuda.shared.array(QUEUE, np.uint32)
            counts = cuda.shared.array(2, np.int32)  # sites in the queue, flips
            me, i = cuda.threadIdx.x, cuda.grid(1)
            if me < 2:
                counts[me] = 0
            cuda.syncthreads()
            m = masks if constants is None else constants
            step, colour, one = np.uint64(number), number & 1, np.uint64(1)
            first_box = _place(i - me, bands, words)[0]
            if i < members.shape[0] * bands[2] * words[1]:
                box, band, w = _place(i, bands, words)
                key0, key1 = key[0], key[1] + members[box]
                origin_y = np.uint64(origins[box, 0])
                stream = (origin_y // np.uint64(BAND) + np.uint64(band)) << np.uint64(32)
                stream |= np.uint64(origins[box, 1]) // np.uint64(WORD_SITES) + np.uint64(w)
                a, b = threefry(key0, key1, step | SEED_AB, stream)
                c = threefry(key0, key1, step | SEED_C, stream)[0]
                a, b, c = np.uint64(a), np.uint64(b), np.uint64(c)
                # Rows of the box above draw only to come to the draws of this one.
                top = band * BAND - np.int64(origin_y % np.uint64(BAND))
                for draw in range(1, 1 - top * PLANES):
                    a, b, c = skip(a, b, c, np.uint64(draw))
                    # The simulator's rules return Python ints.
                    a, b, c = np.uint64(a), np.uint64(b), np.uint64(c)
                sites = ~np.uint64(0)
                if w + 3 == width:
                    sites = np.uint64(sites_of_last(half))
                low, high = max(0, -top), min(BAND, rows - top)
                line = np.uint64(width)
                at = np.uint64((box * (rows + 2) + top + low + 1) * width + w + 1)
                north, here = other[at - line], other[at]
                flipped = np.uint32(0)
                for row in range(np.int32(low), np.int32(high)):
                    south, spin = other[at + line], spins[at]
                    s = np.uint64(compared(spin, setting))
                    odd = (row + colour) & 1
                    if odd:
                        side = here >> one | other[at + one] << np.uint64(63)
                    else:
                        side = here << one | other[at - one] >> np.uint64(63)
                    s0, s1, s2 = count_neighbours(north ^ s, south ^ s, here ^ s, side ^ s)
                    s0, s1, s2 = np.uint64(s0), np.uint64(s1), np.uint64(s2)
                    count = np.uint64(np.uint32(PLANES * row + 1))
                    a, b, c, below, undecided = compare(a, b, c, count, m, s0, s1, s2, s)
                    a, b, c = np.uint64(a), np.uint64(b), np.uint64(c)
                    undecided = np.uint64(undecided) & sites
                    change = (np.uint64(below) ^ (spin & setting)) & sites & ~undecided
                    left = np.uint64(0)
                    while undecided:
                        bit = np.uint64(cuda.popc(~undecided & (undecided - one)))  # the lowest one
                        undecided &= undecided - one
                        kind = np.int64(class_at(bit, s0, s1, s2, s))
                        slot = cuda.atomic.add(counts, 0, 1)
                        if slot < QUEUE:
                            queue[slot] = kind | np.int64(bit) << 4 | row << 10 | me << 13
                        else:
                            left |= one << bit
                    while left:
                        bit = np.uint64(cuda.popc(~left & (left - one)))
                        left &= left - one
                        kind = np.int64(class_at(bit, s0, s1, s2, s))
                        x = origins[box, 1] + WORD_SITES * w + 2 * np.int64(bit) + odd
                        word = _late(key0, key1, step, origins[box, 0] + top + row, x)
                        up = (spin & setting) >> bit & one
                        change ^= (np.uint64(word < residual[kind]) ^ up) << bit
                    out[at] ^= change
                    flipped = np.uint32(flipped + np.uint32(cuda.popc(change)))
                    north, here = here, south
                    at += line
                if box == first_box:
                    cuda.atomic.add(counts, 1, flipped)
                else:
                    cuda.atomic.add(flips, box, flipped)
            cuda.syncthreads()
            next_one = np.uint32(me)
            while next_one < min(np.uint32(counts[0]), np.uint32(QUEUE)):
                entry = np.int64(queue[next_one])
                kind, bit, row = entry & 15, np.uint64(entry >> 4 & 63), int(entry >> 10 & 7)
                box, band, w = _place(i - me + (entry >> 13), bands, words)
                y = band * BAND + row - np.int64(np.uint64(origins[box, 0]) % np.uint64(BAND))
                at = np.uint64((box * (rows + 2) + y + 1) * width + w + 1)
                x = origins[box, 1] + WORD_SITES * w + 2 * np.int64(bit) + ((row + colour) & 1)
                word = _late(key[0], key[1] + members[box], step, origins[box, 0] + y, x)
                up = (spins[at] & setting) >> bit & one
                change = np.uint64(word < residual[kind]) ^ up
                if change:
                    cuda.atomic.xor(out, at, change << bit)
                    if box == first_box:
                        cuda.atomic.add(counts, 1, 1)
                    else:
                        cuda.atomic.add(flips, box, 1)
                next_one = np.uint32(next_one + np.uint32(cuda.blockDim.x))
            cuda.syncthreads()
            if me == 0 and counts[1] > 0:
                cuda.atomic.add(flips, first_box, counts[1])

        return update

    return factory


update_packed_cuda = CudaKernel(_factory(None))


@lru_cache(maxsize=8)
def packed_cuda_with(masks: Masks) -> CudaKernel:
    """:data:`update_packed_cuda` with thresholds compiled in."""
    return CudaKernel(_factory(masks))
