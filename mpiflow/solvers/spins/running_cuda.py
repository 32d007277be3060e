"""Passes on GPUs over packed lattices whose rows run on: the bits of
:mod:`~mpiflow.solvers.spins.multispin_whole`.

A thread does the eight words that a stream draws for. Their sites are in up to three rows of the
words in memory, each of which is read and changed for itself: such lattices are small, and a GPU
has room to spare for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from mpiflow.core.device import CudaKernel, called, rule, split
from mpiflow.core.noise import Word, site_counter, threefry
from mpiflow.core.packed import BAND, LANES
from mpiflow.solvers.spins.bitplanes import (
    PLANES,
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

#: Sites of a colour that the streams of a number draw for.
SITES = 64 * BAND * LANES


@rule
def _part(word: Word, size: int, shift: int) -> Word:
    """The first bits of a word, so many, moved to where they belong."""
    return (word & (~np.uint64(0) >> np.uint64(64 - size))) << np.uint64(shift)


def threads_of(boxes: int, top: int, rows: int, half: int) -> int:
    """Threads for the rows from `top` on of so many boxes."""
    return boxes * LANES * (-(-(top + rows) * half // SITES) - top * half // SITES)


def _factory(constants: Masks | None) -> Callable[[Any], Callable[..., None]]:
    """The kernel with the thresholds as an argument, or compiled in."""

    def factory(cuda: Any) -> Callable[..., None]:
        def bits_from(words: Any, b: int, y: int, j: int) -> Any:
            """64 bits of a row from bit j on, which may be -1."""
            shift, w = np.uint64(j & 63), (j >> 6) + 1
            word = np.uint64(words[b, y, w]) >> shift
            if shift:
                word |= np.uint64(words[b, y, w + 1]) << (np.uint64(64) - shift)
            return word

        bits_from = called(cuda, bits_from)

        def update(  # type: ignore[no-untyped-def]
            out, spins, other, number, half, top, key, members, masks, residual, setting, flips
        ):
            """One pass over boxes from row `top` of their lattices on.

            Parameters
            ----------
            out : gets the flips; ``spins`` itself in a step
            spins, other : words of the pass's colour and of the other one, (B, ny + 2, words + 2)
                uint64
            """
            m = masks if constants is None else constants
            begin, end = top * half, (top + spins.shape[1] - 2) * half
            first = begin // SITES
            b, i = split(cuda.grid(1), ((end + SITES - 1) // SITES - first) * LANES)
            if b >= members.shape[0]:
                return
            part, lane = split(i, LANES)
            step, colour, one = np.uint64(number), number & 1, np.uint64(1)
            key0, key1 = key[0], key[1] + members[b]
            stream = np.uint64(first + part) << np.uint64(32) | np.uint64(lane)
            state_a, state_b = threefry(key0, key1, step | SEED_AB, stream)
            state_c = threefry(key0, key1, step | SEED_C, stream)[0]
            # The simulator's rules return Python ints.
            state_a, state_b = np.uint64(state_a), np.uint64(state_b)
            state_c = np.uint64(state_c)
            flipped = 0
            for row in range(BAND):
                start = (first + part) * SITES + 64 * (row * LANES + lane)
                count = PLANES * row + 1
                if start + 64 <= begin:  # of the box above
                    for draw in range(count, count + PLANES):
                        state_a, state_b, state_c = skip(state_a, state_b, state_c, np.uint64(draw))
                        state_a, state_b = np.uint64(state_a), np.uint64(state_b)
                        state_c = np.uint64(state_c)
                    continue
                low, high = max(start, begin), min(start + 64, end)
                s = north = south = here = side = sites = np.uint64(0)
                n = low
                while n < high:
                    y, j = split(n, half)
                    size, shift = min(half - j, high - n), n - start
                    at, ahead = y - top + 1, 2 * ((y + colour) & 1) - 1
                    s |= np.uint64(_part(bits_from(spins, b, at, j), size, shift))
                    north |= np.uint64(_part(bits_from(other, b, at - 1, j), size, shift))
                    south |= np.uint64(_part(bits_from(other, b, at + 1, j), size, shift))
                    here |= np.uint64(_part(bits_from(other, b, at, j), size, shift))
                    side |= np.uint64(_part(bits_from(other, b, at, j + ahead), size, shift))
                    sites |= np.uint64(_part(~np.uint64(0), size, shift))
                    n += size
                spin = s
                s = np.uint64(compared(spin, setting))
                s0, s1, s2 = count_neighbours(north ^ s, south ^ s, here ^ s, side ^ s)
                s0, s1, s2 = np.uint64(s0), np.uint64(s1), np.uint64(s2)
                state_a, state_b, state_c, below, undecided = compare(
                    state_a, state_b, state_c, np.uint64(count), m, s0, s1, s2, s
                )
                state_a, state_b = np.uint64(state_a), np.uint64(state_b)
                state_c = np.uint64(state_c)
                undecided = np.uint64(undecided) & sites
                change = (np.uint64(below) ^ (spin & setting)) & sites & ~undecided
                while undecided:
                    bit = np.uint64(cuda.popc(~undecided & (undecided - one)))  # the lowest one
                    undecided &= undecided - one
                    kind = np.int64(class_at(bit, s0, s1, s2, s))
                    y, j = split(start + np.int64(bit), half)
                    site = np.uint64(site_counter(y, 2 * j + ((y + colour) & 1)))
                    word = threefry(key0, key1, step | RESIDUAL, site)[0]
                    up = (spin & setting) >> bit & one
                    change |= (np.uint64(word < residual[kind]) ^ up) << bit
                n = low
                while n < high:
                    y, j = split(n, half)
                    size = min(half - j, high - n)
                    some = np.uint64(_part(change >> np.uint64(n - start), size, 0))
                    shift, w = np.uint64(j & 63), (j >> 6) + 1
                    if some:
                        cuda.atomic.xor(out, (b, y - top + 1, w), some << shift)
                    if shift and some >> (np.uint64(64) - shift):
                        more = some >> (np.uint64(64) - shift)
                        cuda.atomic.xor(out, (b, y - top + 1, w + 1), more)
                    n += size
                flipped += cuda.popc(change)
            if flipped:
                cuda.atomic.add(flips, b, flipped)

        return update

    return factory


update_running_cuda = CudaKernel(_factory(None))


@lru_cache(maxsize=8)
def running_cuda_with(masks: Masks) -> CudaKernel:
    """:data:`update_running_cuda` with thresholds compiled in."""
    return CudaKernel(_factory(masks))
