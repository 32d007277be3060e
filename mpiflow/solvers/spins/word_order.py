"""The order of packed words while passes over short rows last:
:mod:`~mpiflow.solvers.spins.multispin_whole`.

Rows of a colour are ``pitch`` bits apart, in words that are numbered one after the other. Where
rows are words of their own, the words lie in memory by their place in the band of eight rows, then
by band; else as they are numbered.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mpiflow.core.device import kernel, rule, split
from mpiflow.core.noise import Word
from mpiflow.core.packed import BAND, LANES
from mpiflow.core.packed_words import sites_of_last
from mpiflow.solvers.spins.bitplanes import WIDE


class Order(NamedTuple):
    """Where the words of a colour are while passes last."""

    #: Rows of the box, sites of a colour in one, bits from one to the next and before the first.
    rows: int
    half: int
    pitch: int
    first: int
    #: Words of a row of a band, and of a band; from one place in a band to the next.
    across: int
    length: int
    stride: int
    #: Words before the first one, all that memory is taken for, and those of sites.
    before: int
    size: int
    words: int
    #: Number of the first band.
    band: int


@lru_cache(maxsize=8)
def order_of(
    rows: int, half: int, top: int, runs_on: bool
) -> tuple[tuple[int, ...], Any, np.ndarray]:
    """Order of a box from row ``top`` of its lattice on, how far neighbours are, and masks.

    How far: nothing where rows are words of their own; else words and bits of a row, and of a row
    less a site. Masks, each ``size`` words: sites; then, where rows run on, of black and white
    those whose fourth neighbour is to the left, and those that have it at the other end of a row.
    """
    if not runs_on:
        across = -(-half // 64)
        length = BAND * across
        bands = -(-rows // BAND)
        stride = -(-bands // WIDE) * WIDE + 2
        order = Order(
            rows, half, 64 * across, 0, across, length, stride, 1, length * stride, rows * across, 0
        )
        masks = np.zeros(order.size, np.uint64)
        _mark_sites(order, masks)
        return tuple(order), (), masks
    length = BAND * LANES
    band, first = divmod(top * half, 64 * length)
    reach = half // 64 + 2
    before = -(-reach // 8) * 8
    words = -(-(first + rows * half) // 64)
    size = before + words + reach + LANES
    order = Order(
        rows, half, half, first, LANES, length, LANES, before, -(-size // 8) * 8, words, band
    )
    masks = np.zeros(5 * order.size, np.uint64)
    _mark_sites(order, masks)
    _mark_ends(order, masks)
    return tuple(order), (*divmod(half, 64), *divmod(half - 1, 64)), masks


@rule
def place(word: int, order: Order) -> Any:
    """Where a word is, which may be up to a row before the first one or after the last one."""
    if order.pitch & 63:
        return order.before + word
    band, at = split(word + order.length, order.length)
    return order.before + band - 1 + at * order.stride


@kernel
def _mark(order: Order, masks: np.ndarray, area: int, start: int, stop: int) -> None:
    """Set the bits from `start` up to `stop`."""
    ones = ~np.uint64(0)
    for word in range(start >> 6, (stop + 63) >> 6):
        bits = ones
        if word == start >> 6:
            bits &= ones << np.uint64(start & 63)
        if word == (stop - 1) >> 6:
            bits &= ones >> np.uint64(63 - ((stop - 1) & 63))
        masks[area * order.size + place(word, order)] |= bits


@kernel
def _mark_sites(order: Order, masks: np.ndarray) -> None:
    for y in range(order.rows):
        start = order.first + y * order.pitch
        _mark(order, masks, 0, start, start + order.half)


@kernel
def _mark_ends(order: Order, masks: np.ndarray) -> None:
    for y in range(order.rows):
        start, stop = order.first + y * order.half, order.first + (y + 1) * order.half
        left, right = y & 1, 1 - (y & 1)  # colours of the sites whose neighbour is there
        _mark(order, masks, 1 + left, start, stop)
        _mark(order, masks, 3 + left, start, start + 1)
        _mark(order, masks, 3 + right, stop - 1, stop)


@kernel
def wrap(bits: np.ndarray, area: int, order: Order) -> None:
    """Copy the rows at the ends of a colour to beyond the other end."""
    words, area = order.words, area * order.size
    # Of the last word of sites; where rows run on it has some of the first row, too.
    sites = np.uint64((order.rows * order.pitch - 1 & 63) + 1)
    rest = np.uint64(64) - sites
    full = rest == np.uint64(0)
    if not full:
        at = area + place(words - 1, order)
        bits[at] = (bits[at] & (~np.uint64(0) >> rest)) | (bits[area + place(0, order)] << sites)
    for word in range((order.pitch + 63) >> 6):
        low, high = bits[area + place(word, order)], bits[area + place(word + 1, order)]
        bits[area + place(words + word, order)] = low if full else (low >> rest) | (high << sites)
        low = bits[area + place(words - word - 2, order)]
        high = bits[area + place(words - word - 1, order)]
        bits[area + place(-1 - word, order)] = high if full else (low >> sites) | (high << rest)


@kernel
def move(
    rows: np.ndarray, bits: np.ndarray, area: int, order: Order, start: int, stop: int, out: bool
) -> None:
    """Rows of a colour, (ny + 2, words + 2), into the order of this module, or ``out`` of it."""
    words, last, area = rows.shape[1] - 2, sites_of_last(order.half), area * order.size
    for y in range(start, stop):
        for w in range(words):
            bit = order.first + (y - 1) * order.pitch + 64 * w
            shift = np.uint64(bit & 63)
            rest = np.uint64(64) - shift
            at, after = area + place(bit >> 6, order), area + place((bit >> 6) + 1, order)
            if out:
                rows[y, w + 1] = bits[at] >> shift
                if shift:
                    rows[y, w + 1] |= bits[after] << rest
            else:
                sites = last if w == words - 1 else ~np.uint64(0)
                word = rows[y, w + 1] & sites
                bits[at] = (bits[at] & ~(sites << shift)) | word << shift
                if shift:
                    bits[after] = (bits[after] & ~(sites >> rest)) | word >> rest


@rule
def bit_at(bits: np.ndarray, area: int, bit: int, order: Order) -> Word:
    word = bits[area * order.size + place(bit >> 6, order)]
    return word >> np.uint64(bit & 63) & np.uint64(1)
