"""Sites drawn by random words: a word for each site, and the sites with the smallest ones.

A word is keyed by the global site, so that what is drawn does not depend on the number of ranks.
The functions fill the inner sites and the halo of a block, which may be a tile of one distributed
lattice or a batch of whole ones, in bands of rows, so that a tile may fill the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.lattice import Lattice, Shape
from mpiflow.core.noise import Word, site_counter, threefry

#: The boxes of a block: global places (B, 2) of their first sites, members (B,), the lattice.
Boxes = tuple[np.ndarray, np.ndarray, Shape]

_BINS = 2**19  # of all histograms of the selection together: 4 MB
_DIGITS = 16  # bits that a round of the selection settles at most


class Spins(Protocol):
    """What a block offers to be filled: see :class:`~mpiflow.core.block.Block`.

    A block that stores its spins in another way, as bits for example, has the same.
    """

    @property
    def lattice(self) -> Lattice: ...
    @property
    def origins(self) -> np.ndarray: ...
    @property
    def members(self) -> np.ndarray: ...
    @property
    def batch(self) -> int: ...
    @property
    def shape(self) -> Shape: ...
    def bands(self) -> Iterator[slice]: ...
    def store(self, rows: slice, spins: np.ndarray) -> None: ...
    def fill_halo(self) -> None: ...
    def total(self, values: np.ndarray) -> np.ndarray: ...
    def agreed(self) -> AbstractContextManager[None]: ...


def boxes_of(block: Spins) -> Boxes:
    """The boxes of a block, as kernels take them."""
    return block.origins, block.members, block.lattice.shape


def fill(block: Spins, bands: Iterator[slice], spins_of: Callable[[slice], np.ndarray]) -> None:
    """Set the spins band by band. ``spins_of(rows)`` is (B, rows, nx) int8."""
    for rows in bands:
        block.store(rows, spins_of(rows))
    block.fill_halo()


def empty(block: Spins, rows: slice) -> np.ndarray:
    return np.empty((block.batch, rows.stop - rows.start, block.shape[1]), np.int8)


@kernel
def _run_words(k0: Word, k1: Word, first: Word, out: np.ndarray) -> None:
    """First words of neighbouring sites (a loop of its own: it compiles 40 times faster)."""
    for i in range(out.size):
        out[i] = threefry(k0, k1, np.uint64(0), first + np.uint64(i))[0]


@kernel
def row_words(key: np.ndarray, member: Word, gy: int, gx: int, lx: int, out: np.ndarray) -> None:
    """First words of a row of sites from global (gy, gx) on, round the periodic edge."""
    done = 0
    while done < out.size:
        x = (gx + done) % lx
        width = min(out.size - done, lx - x)
        _run_words(key[0], key[1] + member, site_counter(gy, x), out[done : done + width])
        done += width


@kernel
def mark_row(words: np.ndarray, shift: Word, bound: Word, up: np.ndarray) -> None:
    for i in range(words.size):
        up[i] = 1 if words[i] >> shift < bound else -1


@kernel
def _mark(
    boxes: Boxes, key: np.ndarray, top: int, shift: Word, bounds: np.ndarray, spins: np.ndarray
) -> None:
    """Spins up where word >> shift is below the box's bound; ``top`` is the first row."""
    origins, members, (ly, lx) = boxes
    words = np.empty(spins.shape[2], np.uint64)
    for b in range(spins.shape[0]):
        for i in range(spins.shape[1]):
            gy = (origins[b, 0] + top + i) % ly
            row_words(key, members[b], gy, origins[b, 1], lx, words)
            mark_row(words, shift, bounds[b], spins[b, i])


def fill_below(block: Spins, key: np.ndarray, shift: int, bounds: np.ndarray) -> None:
    """Up are the spins whose word, without its ``shift`` lowest bits, is below a bound.

    ``bounds`` is (B,) uint64, one for each box.
    """

    def spins_of(rows: slice) -> np.ndarray:
        spins = empty(block, rows)
        _mark(boxes_of(block), key, rows.start, np.uint64(shift), bounds, spins)
        return spins

    fill(block, block.bands(), spins_of)


def bounds_of_smallest(
    block: Spins, wanted: np.ndarray, count: Callable[..., None], most: int = 64
) -> np.ndarray:
    """Bounds (B,) uint64 below which lie exactly ``wanted`` (B,) words of each box. Collective.

    Radix selection from the top digit down. It ends when all boxes are settled,
    after two or three rounds on all ranks alike. Two equal words at a bound
    (probability below 1e-9 for 1e5 sites) would be marked or left together.

    Parameters
    ----------
    count : ``count(left, bounds, shift, counts)`` adds the words of this rank's sites to the
        histograms ``counts`` (B, digits), with :func:`count_digits`; boxes with ``left`` = 0
        are settled and need no counting
    most : bits of a round at most, where ``count`` needs much memory of its own
    """
    bits = max(2, min(most, _DIGITS, (_BINS // max(1, block.batch)).bit_length() - 1))
    bounds, left, shift = np.zeros(block.batch, np.uint64), wanted.copy(), 64
    while shift > 0 and left.any():
        digits = min(bits, shift)
        shift -= digits
        counts = np.zeros((block.batch, 2**digits), np.int64)
        count(left, bounds, np.uint64(shift), counts)
        _descend(block.total(counts), np.uint64(shift), left, bounds)
    return bounds


@kernel
def count_digits(words: np.ndarray, bound: Word, shift: Word, counts: np.ndarray) -> None:
    """Add the next digits of words that share all digits above with a bound to a histogram."""
    bins = np.uint64(counts.size)
    for i in range(words.size):
        digit = (words[i] - bound) >> shift  # huge for words below the bound: they wrap round
        if digit < bins:
            counts[digit] += 1


@kernel
def count_words(
    boxes: Boxes,
    key: np.ndarray,
    shape: Shape,
    left: np.ndarray,
    bounds: np.ndarray,
    shift: Word,
    counts: np.ndarray,
) -> None:
    """Histograms (B, 2^digits) of the next digit, over the words that share the digits above."""
    origins, members, (ly, lx) = boxes
    words = np.empty(shape[1], np.uint64)
    for b in range(counts.shape[0]):
        if left[b] == 0:
            continue
        for i in range(shape[0]):
            gy = (origins[b, 0] + i) % ly
            row_words(key, members[b], gy, origins[b, 1], lx, words)
            count_digits(words, bounds[b], shift, counts[b])


@kernel
def _descend(counts: np.ndarray, shift: Word, left: np.ndarray, bounds: np.ndarray) -> None:
    """Raise each bound to the digit that holds the next word; ``left`` remain to be marked."""
    for b in range(counts.shape[0]):
        digit = 0
        while left[b] > 0 and counts[b, digit] <= left[b] and digit < counts.shape[1] - 1:
            left[b] -= counts[b, digit]
            digit += 1
        bounds[b] += np.uint64(digit) << shift
