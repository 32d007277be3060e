"""Passes over whole packed lattices of short rows: the bits of
:mod:`~mpiflow.solvers.spins.multispin`.

Rows of one word or a few do not fill vectors, and what is done for each row costs more than its
sites. But the same row of all bands draws at once, each from the stream of its band. Here words are
therefore kept in this order while passes last: row of the band, word of the row, band. A vector
holds a word of that many bands, and so do those of the neighbours: a row above or below is another
place in the band, or the same of the next band. All of a pass is done in vectors but for the sites
that the planes leave undecided.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from mpiflow.core.device import intrinsic, kernel
from mpiflow.core.noise import site_counter
from mpiflow.core.packed import BAND, WORD_SITES, PackedBlock, words_across
from mpiflow.core.packed_words import bits_at, close, popcount, sites_of_last
from mpiflow.solvers.spins.bitplanes import (  # fmt: skip
    CHUNK,
    EQUAL,
    PLANES,
    RESIDUAL,
    S0,
    S1,
    S2,
    SPACE,
    SPIN,
    STATE_A,
    STATE_B,
    STATE_C,
    WIDE,
    Masks,
    Vectors,
    settle,
)
from mpiflow.solvers.spins.multispin import seed_streams

#: Words of a colour in a row up to which this is faster.
MOST_WORDS = 6
#: Sites of a lattice up to which the copies in the order of this module stay in the cache.
MOST_SITES = 2**20


def fits(block: PackedBlock) -> bool:
    """Whether a block is whole lattices of short rows, on the CPU."""
    whole = block.closed and not block.device.is_cuda
    short = words_across(block.columns) <= MOST_WORDS and math.prod(block.shape) <= MOST_SITES
    return whole and short


def _updating(words: int) -> Any:
    """The intrinsic that updates a word of so many bands."""

    @intrinsic
    def update(  # type: ignore[no-untyped-def]
        ir, builder, space, bits, i, state, places, left, shift, setting, count, masks
    ):  # fmt: skip
        """Decide what the planes decide, and flip or set it.

        The rows S0 to SPIN of the working space get the classes, EQUAL what is undecided.

        Parameters
        ----------
        bits : words of all colours in the order of this module
        i, state : number of the first of the bands, and place of their streams in the working space
        places : where in ``bits`` the bands' words begin: those of this colour, those that are
            changed, the masks of their sites, and of the other colour the same word, those above
            and below, and the one with the fourth neighbour that is not in the same word
        left, shift : whether fourth neighbours are a bit to the left; how far the one in another
            word is from the place where it belongs
        """
        v, b = Vectors(ir, builder, words), builder
        at, out, sites, here, north, south, side = (b.add(place, i) for place in places)
        setting, one, shift = v.every(setting), v.every(1), v.every(shift)
        kept = b.xor(setting, v.every(2**64 - 1))
        s = b.and_(v.load(bits, at), kept)
        o, other = v.load(bits, here), v.load(bits, side)
        to_left = b.or_(b.shl(o, one), b.lshr(other, shift))
        to_right = b.or_(b.lshr(o, one), b.shl(other, shift))
        fourth = b.select(b.trunc(left, ir.IntType(1)), to_left, to_right)
        n = [b.xor(word, s) for word in (v.load(bits, north), v.load(bits, south), o, fourth)]
        # count_neighbours
        x, y, z, q = b.xor(n[0], n[1]), b.and_(n[0], n[1]), b.xor(n[2], n[3]), b.and_(n[2], n[3])
        s2 = b.and_(y, q)
        s1 = b.and_(b.xor(b.xor(y, q), b.and_(x, z)), b.xor(s2, v.every(2**64 - 1)))
        classes = b.xor(x, z), s1, s2, s
        rows = STATE_A, STATE_B, STATE_C
        streams = [v.load(space, state, row) for row in rows]
        streams, below, equal = v.compare(streams, count, masks, classes)
        inside = v.load(bits, sites)
        equal = b.and_(equal, inside)
        old = v.load(bits, out)
        change = b.xor(below, b.and_(old, setting))
        change = b.and_(b.and_(change, inside), b.xor(equal, v.every(2**64 - 1)))
        v.store(b.xor(old, change), bits, out)
        flips = b.add(v.load(space, ir.IntType(64)(int(FLIPS))), v.popcount(change))
        v.store(flips, space, ir.IntType(64)(int(FLIPS)))
        for row, value in zip(rows, streams, strict=True):
            v.store(value, space, state, row)
        for row, value in zip((S0, S1, S2, SPIN, EQUAL), (*classes, equal), strict=True):
            v.store(value, space, ir.IntType(64)(int(row)))

    return update


# Words of the working space: what vectors of the classes and the streams take of it, and flips.
FLIPS = np.uint64(SPACE)
_SPACE = SPACE + WIDE

_update_wide, _update_half = _updating(WIDE), _updating(WIDE // 2)


@kernel
def _wrap_bands(bits: np.ndarray, first: int, stride: int, words: int, ny: int) -> None:
    """Copy the rows at the ends of a colour, which begins at `first`, to beyond the other end."""
    bands, row = (ny + BAND - 1) // BAND, (ny - 1) % BAND
    place, below = (0, bands + 1) if row + 1 == BAND else (row + 1, bands)
    for w in range(words):
        above = first + ((BAND - 1) * words + w) * stride
        bits[above] = bits[first + (row * words + w) * stride + bands]
        bits[first + (place * words + w) * stride + below] = bits[first + w * stride + 1]


@kernel
def _move(
    rows: np.ndarray, bits: np.ndarray, first: int, stride: int, half: int, out: bool
) -> None:
    """Rows (ny + 2, words + 2) of a colour into the order of this module, or back."""
    words, last = rows.shape[1] - 2, sites_of_last(half)
    for y in range(rows.shape[0] - 2):
        band, row = y // BAND, y % BAND
        for w in range(words):
            at = first + (row * words + w) * stride + band + 1
            if out:
                rows[y + 1, w + 1] = bits[at]
            else:
                bits[at] = rows[y + 1, w + 1] & (last if w == words - 1 else ~np.uint64(0))


def _kernel(constants: Masks | None) -> Any:
    """The kernel with the thresholds as an argument, or compiled in."""

    def update_packed(  # type: ignore[no-untyped-def]
        target, black, white, first, passes, looks, half, key, members, masks, residual, setting,
        flips,
    ):  # fmt: skip
        """Passes over whole lattices, black where their number is even; adds the flips of each.

        Parameters
        ----------
        target : gets the flips of black sites; ``black`` itself in a step
        black, white : (B, ny + 2, words + 2) uint64, see :mod:`mpiflow.core.packed`. Their halos
            are current afterwards, if they were before
        first, passes : number of the first pass, and how many
        looks : whether ``target`` is another array than ``black``
        half : sites of one colour in a row
        """
        m = masks if constants is None else constants
        space = np.empty(_SPACE, np.uint64)
        ny, words = black.shape[1] - 2, black.shape[2] - 2
        bands, end = (ny + BAND - 1) // BAND, np.int64(bits_at(half)) - 1
        # Bands at a time: whole vectors whose streams fit the working space.
        most = CHUNK // words // WIDE * WIDE
        stride = (bands + WIDE - 1) // WIDE * WIDE + 2
        whole = BAND * words * stride
        bits = np.zeros(4 * whole, np.uint64)  # black, white, the target, masks of sites
        for y in range(ny):
            for w in range(words):
                at = 3 * whole + (y % BAND * words + w) * stride + y // BAND + 1
                bits[at] = sites_of_last(half) if w == words - 1 else ~np.uint64(0)
        for b in range(black.shape[0]):
            _move(black[b], bits, 0, stride, half, False)
            _move(white[b], bits, whole, stride, half, False)
            if looks:
                _move(target[b], bits, 2 * whole, stride, half, False)
            for colour in range(2):
                _wrap_bands(bits, colour * whole, stride, words, ny)
            key1 = key[1] + members[b]
            for number in range(first, first + passes):
                colour = number & 1
                step = np.uint64(number)
                mine, others = colour * whole, (1 - colour) * whole
                out = 2 * whole if looks else mine
                for i in range(WIDE):
                    space[FLIPS + np.uint64(i)] = 0
                for low in range(0, bands, most):
                    n = min(most, bands - low)
                    wide = (n + WIDE - 1) // WIDE * WIDE
                    for w in range(words):
                        for i in range(wide):
                            stream = np.uint64(low + i) << np.uint64(32) | np.uint64(w)
                            space[STATE_C + np.uint64(w * wide + i)] = stream
                    seed_streams(space, words * wide, key[0], key1, step)
                    for row in range(BAND):
                        odd = (row + colour) & 1
                        for w in range(words):
                            here = (row * words + w) * stride + low + 1
                            north, south = here - words * stride, here + words * stride
                            if row == 0:
                                north += whole - 1
                            if row == BAND - 1:
                                south -= whole - 1
                            # Of the fourth neighbours one is in another word, or at the other end.
                            across = words - 1 if w == 0 else -1
                            shift = end if w == 0 else 63
                            if odd:
                                across = 1 - words if w == words - 1 else 1
                                shift = end if w == words - 1 else 63
                            places = (
                                mine + here, out + here, 3 * whole + here, others + here,
                                others + north, others + south, others + here + across * stride,
                            )  # fmt: skip
                            left, count = 1 - odd, np.uint64(PLANES * row + 1)
                            for i in range(0, n, WIDE):
                                state = w * wide + i
                                if n - i > WIDE // 2:
                                    _update_wide(
                                        space, bits, i, state, places, left, shift, setting, count,
                                        m,
                                    )  # fmt: skip
                                else:
                                    _update_half(
                                        space, bits, i, state, places, left, shift, setting, count,
                                        m,
                                    )  # fmt: skip
                                for j in range(min(WIDE, n - i)):
                                    k = np.uint64(j)
                                    undecided = space[EQUAL + k]
                                    if undecided:
                                        y, x = BAND * (low + i + j) + row, WORD_SITES * w
                                        site = site_counter(y, x) | np.uint64(odd)
                                        below = settle(
                                            undecided, key[0], key1, np.uint64(0), step | RESIDUAL,
                                            site, np.uint64(2), space[S0 + k], space[S1 + k],
                                            space[S2 + k], space[SPIN + k], residual,
                                        )  # fmt: skip
                                        at = out + here + i + j
                                        change = (below ^ (bits[at] & setting)) & undecided
                                        bits[at] ^= change
                                        space[FLIPS] += popcount(change)
                for i in range(WIDE):
                    flips[b] += np.int64(space[FLIPS + np.uint64(i)])
                if not looks:
                    _wrap_bands(bits, mine, stride, words, ny)
            _move(target[b], bits, 2 * whole if looks else 0, stride, half, True)
            _move(white[b], bits, whole, stride, half, True)
        close(target, half, True, True)
        close(white, half, True, True)

    return kernel(update_packed)


update_packed = _kernel(None)


@lru_cache(maxsize=8)
def packed_with(masks: Masks) -> Any:
    """:data:`update_packed` with thresholds compiled in."""
    return _kernel(masks)
