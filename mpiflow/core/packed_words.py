"""Kernels on rows of packed spins: their halos, their sums, and the way from bytes and back.

A row of a colour is ``half`` sites in words of 64, with a word on either side; see
:mod:`mpiflow.core.packed`, whose arrays these are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.device import CudaKernel, kernel, rule, split
from mpiflow.core.noise import Word


@rule
def popcount(word: Word) -> Word:
    """Number of bits that are set (compilers know this pattern as one instruction)."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    low = np.uint64(0x3333333333333333)
    word = (word & low) + ((word >> np.uint64(2)) & low)
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (word * np.uint64(0x0101010101010101)) >> np.uint64(56)


@rule
def bits_at(half: int) -> Word:
    """Sites in the last word of a row of ``half`` sites of a colour, 1 to 64."""
    return np.uint64(((half - 1) & 63) + 1)


@rule
def last_site(word: Word, half: int) -> Word:
    """The last site of a row, of its last word."""
    return (word >> (bits_at(half) - np.uint64(1))) & np.uint64(1)


@rule
def with_next(word: Word, half: int, bit: Word) -> Word:
    """The word that has the site after the last one, with that site set to a bit."""
    at = np.uint64(half & 63)
    one = np.uint64(1)
    return (word & ~(one << at)) | ((bit & one) << at)


@rule
def sites_of_last(half: int) -> Word:
    """Mask of the sites in the last word of a row."""
    return ~np.uint64(0) >> (np.uint64(64) - bits_at(half))


@kernel
def close(array: np.ndarray, half: int, rows: bool, columns: bool) -> None:
    """Copy the opposite edges of each box, of rows of ``half`` sites, into its halo."""
    ny, nw = array.shape[1] - 2, array.shape[2] - 2
    after = (half >> 6) + 1
    for b in range(array.shape[0]):
        if columns:
            for y in range(1, ny + 1):
                array[b, y, 0] = last_site(array[b, y, nw], half) << np.uint64(63)
                array[b, y, after] = with_next(array[b, y, after], half, array[b, y, 1])
        if rows:
            for w in range(nw + 2):
                array[b, 0, w] = array[b, ny, w]
                array[b, ny + 1, w] = array[b, 1, w]


@kernel
def move_columns(array: np.ndarray, half: int, buffers: np.ndarray, into: bool) -> None:
    """The first bit of the first and the last bit of the last word of each row of the only box,
    into the second and the third buffer; or ``into`` its halo the neighbours', the others."""
    ny, nw = array.shape[1] - 2, array.shape[2] - 2
    after = (half >> 6) + 1
    for word in range(buffers.shape[1]):
        low, high = buffers[0, word], buffers[3, word]
        for y in range(64 * word, min(64 * word + 64, ny)):
            bit, row = np.uint64(y & 63), array[0, y + 1]
            if into:
                row[0] = (low >> bit) << np.uint64(63)
                row[after] = with_next(row[after], half, high >> bit)
            else:
                only = np.uint64(1) << bit
                low = (low & ~only) | (row[1] & np.uint64(1)) << bit
                high = (high & ~only) | last_site(row[nw], half) << bit
        if not into:
            buffers[1, word], buffers[2, word] = low, high


@kernel
def _pack_word(spins: np.ndarray, bits: int) -> Word:
    """Spins, every other one, as bits."""
    word = np.uint64(0)
    for bit in range(bits):
        word |= np.uint64(spins[2 * bit] > 0) << np.uint64(bit)
    return word


@kernel
def pack_rows(spins: np.ndarray, first: int, packed: np.ndarray) -> None:
    half = spins.shape[2] // 2
    for b in range(spins.shape[0]):
        for y in range(spins.shape[1]):
            for colour in range(2):
                skip = (colour + first + y) & 1
                for w in range(packed.shape[3]):
                    sites = spins[b, y, 128 * w + skip :]
                    packed[colour, b, y, w] = _pack_word(sites, min(64, half - 64 * w))


@kernel
def _unpack_word(word: Word, bits: int, out: np.ndarray) -> None:
    for bit in range(bits):
        out[2 * bit] = np.int8(((word >> np.uint64(bit)) & np.uint64(1)) * np.uint64(2)) - 1


@kernel
def unpack_rows(black: np.ndarray, white: np.ndarray, first: int, out: np.ndarray) -> None:
    half = out.shape[2] // 2
    for b in range(out.shape[0]):
        for y in range(out.shape[1]):
            skip = (first + y) & 1
            for w in range((half + 63) // 64):
                row, bits = first + y + 1, min(64, half - 64 * w)
                _unpack_word(black[b, row, w + 1], bits, out[b, y, 128 * w + skip :])
                _unpack_word(white[b, row, w + 1], bits, out[b, y, 128 * w + 1 - skip :])


@kernel
def _row_sums(
    black: np.ndarray,
    white: np.ndarray,
    north: np.ndarray,
    south: np.ndarray,
    side: np.ndarray,
    left: np.uint64,
    half: int,
) -> tuple[Word, Word]:
    """Spins that are up, and pairs of a black site and an opposite neighbour, in a row."""
    up, opposite = np.uint64(0), np.uint64(0)
    right = np.uint64(64) - left
    sites = ~np.uint64(0)
    for w in range(black.size):
        s, o = black[w], white[w]
        if w == black.size - 1:
            sites = sites_of_last(half)
        # Sites at even x have their fourth neighbour a bit to the left, else to the right.
        n = (o << left) | (side[w] >> right) if left == 1 else (o >> right) | (side[w] << left)
        up += popcount(s & sites) + popcount(o & sites)
        opposite += popcount((north[w] ^ s) & sites) + popcount((south[w] ^ s) & sites)
        opposite += popcount((o ^ s) & sites) + popcount((n ^ s) & sites)
    return up, opposite


@kernel
def sums_of_box(black: np.ndarray, white: np.ndarray, half: int, out: np.ndarray) -> None:
    ny, nw = black.shape[1] - 2, black.shape[2] - 2
    for b in range(black.shape[0]):
        up, opposite = np.uint64(0), np.uint64(0)
        for y in range(1, ny + 1):
            even = (y - 1) & 1 == 0
            start = 0 if even else 2
            left = np.uint64(1 if even else 63)
            more_up, more_opposite = _row_sums(
                black[b, y, 1 : nw + 1],
                white[b, y, 1 : nw + 1],
                white[b, y - 1, 1 : nw + 1],
                white[b, y + 1, 1 : nw + 1],
                white[b, y, start : start + nw],
                left,
                half,
            )
            up += more_up
            opposite += more_opposite
        sites = 2 * ny * half
        out[b, 0] = 2 * np.int64(up) - sites
        out[b, 1] = 2 * sites - 2 * np.int64(opposite)


@kernel
def _bits_between(row: np.ndarray, start: int, stop: int) -> np.int64:
    """Number of bits set from bit `start` up to bit `stop` of a row of words."""
    first, last = start >> 6, (stop - 1) >> 6
    ones = ~np.uint64(0)
    total = np.uint64(0)
    for w in range(first, last + 1):
        word = row[w]
        if w == first:
            word &= ones << np.uint64(start & 63)
        if w == last:
            word &= ones >> np.uint64(63 - ((stop - 1) & 63))
        total += popcount(word)
    return np.int64(total)


@kernel
def sums_of_blocks(black: np.ndarray, white: np.ndarray, size: int, out: np.ndarray) -> None:
    for b in range(out.shape[0]):
        for y in range(black.shape[1] - 2):
            # In this row the black sites are 2 j + p, the white ones 2 j + 1 - p.
            p = y & 1
            for x in range(out.shape[2]):
                low, high = x * size, (x + 1) * size
                up = 0
                start, stop = (low - p + 1) // 2, (high - p + 1) // 2
                if stop > start:
                    up += _bits_between(black[b, y + 1, 1:], start, stop)
                start, stop = (low + p) // 2, (high + p) // 2
                if stop > start:
                    up += _bits_between(white[b, y + 1, 1:], start, stop)
                out[b, y // size, x] += 2 * up - size


@rule
def _counts_in_fields(word: Word, bits: int) -> Word:
    """Number of bits set in each field of 1, 2, 4, ... 64 bits, in that field."""
    for half in (1, 2, 4, 8, 16, 32):
        if half < bits:
            low = ~np.uint64(0) // np.uint64(2**half + 1)  # every other field of that many bits
            word = (word & low) + ((word >> np.uint64(half)) & low)
    return word


@kernel
def _add_row(black: np.ndarray, white: np.ndarray, bits: int, words: int, out: np.ndarray) -> None:
    """Add the up spins of a row to its blocks: fields of `bits` bits, or so many words."""
    ones = ~np.uint64(0) >> np.uint64(64 - bits)
    fields = 64 // bits
    for w in range(black.size):
        b, o = _counts_in_fields(black[w], bits), _counts_in_fields(white[w], bits)
        first = w // words * fields
        for j in range(min(fields, out.size - first)):  # the last word may have fewer
            shift = np.uint64(j * bits)
            up = ((b >> shift) & ones) + ((o >> shift) & ones)
            out[first + j] += np.int32(2 * up)


@kernel
def sums_of_aligned(black: np.ndarray, white: np.ndarray, size: int, out: np.ndarray) -> None:
    """Blocks that start and end with words or with equal fields of them, in both colours."""
    bits, words = min(64, size // 2), max(1, size // 128)
    for b in range(out.shape[0]):
        for y in range(black.shape[1] - 2):
            if y % size == 0:
                out[b, y // size] = -size * size
            _add_row(black[b, y + 1, 1:-1], white[b, y + 1, 1:-1], bits, words, out[b, y // size])


@CudaKernel
def close_cuda(cuda: Any) -> Callable[..., None]:
    def close_halo(array: Any, half: int, rows: int, columns: int) -> None:
        """One thread for each row or column of each box, whichever are more."""
        ny, nw = array.shape[1] - 2, array.shape[2] - 2
        b, n = split(cuda.grid(1), max(ny, nw) + 2)
        if b < array.shape[0]:
            if columns and 1 <= n <= ny:
                after = (half >> 6) + 1
                array[b, n, 0] = np.uint64(last_site(array[b, n, nw], half)) << np.uint64(63)
                array[b, n, after] = with_next(array[b, n, after], half, array[b, n, 1])
            if rows and 1 <= n <= nw:
                array[b, 0, n] = array[b, ny, n]
                array[b, ny + 1, n] = array[b, 1, n]

    return close_halo


@CudaKernel
def copy_edges_cuda(cuda: Any) -> Callable[..., None]:
    def copy(array: Any, half: int, axis: int, edges: Any, out: int) -> None:
        """Edges of the only box into `edges` (out = 1), or from there into the halo (0)."""
        i = cuda.grid(1)
        ny, nw = array.shape[1] - 2, array.shape[2] - 2
        if i < edges.shape[1]:
            if axis == 0:
                if out:
                    edges[0, i] = array[0, 1, i]
                    edges[1, i] = array[0, ny, i]
                else:
                    array[0, 0, i] = edges[0, i]
                    array[0, ny + 1, i] = edges[1, i]
            elif out:
                low, high = np.uint64(0), np.uint64(0)
                for bit in range(min(64, ny - 64 * i)):
                    y = 64 * i + bit + 1
                    low |= (array[0, y, 1] & np.uint64(1)) << np.uint64(bit)
                    high |= np.uint64(last_site(array[0, y, nw], half)) << np.uint64(bit)
                edges[0, i], edges[1, i] = low, high
            else:
                for bit in range(min(64, ny - 64 * i)):
                    y = 64 * i + bit + 1
                    array[0, y, 0] = (edges[0, i] >> np.uint64(bit)) << np.uint64(63)
                    after = (half >> 6) + 1
                    one = edges[1, i] >> np.uint64(bit)
                    array[0, y, after] = with_next(array[0, y, after], half, one)

    return copy
