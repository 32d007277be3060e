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
_WORDS = 2**16  # that are drawn at once: 512 kB


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
def _words_of_row(k0: Word, k1: Word, row: Word, columns: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.size):
        out[i] = threefry(k0, k1, np.uint64(0), row | columns[i])[0]


@kernel
def _draw(
    key: np.ndarray, members: np.ndarray, rows: np.ndarray, columns: np.ndarray, out: np.ndarray
) -> None:
    for b in range(out.shape[0]):
        for i in range(out.shape[1]):
            _words_of_row(key[0], key[1] + members[b], rows[b, i], columns[b], out[b, i])


def words_of(block: Spins, key: np.ndarray, band: slice) -> Iterator[tuple[slice, np.ndarray]]:
    """First words of the sites of a band, (B, rows, nx) uint64, of so few rows that they stay in
    the cache. The next ones take their place.

    NumPy does the rest: what is compiled here is the generator alone, as every run waits for it.
    """
    (ly, lx), width = block.lattice.shape, block.shape[1]
    height = max(1, min(band.stop - band.start, _WORDS // max(1, block.batch * width)))
    columns = ((block.origins[:, 1, None] + np.arange(width)) % lx).astype(np.uint64)
    room = np.empty(block.batch * height * width, np.uint64)
    for top in range(band.start, band.stop, height):
        rows = slice(top, min(top + height, band.stop))
        gy = (block.origins[:, 0, None] + np.arange(rows.start, rows.stop)) % ly
        words = room[: gy.size * width].reshape(*gy.shape, width)
        _draw(key, block.members, gy.astype(np.uint64) << np.uint64(32), columns, words)
        yield rows, words


def fill_below(block: Spins, key: np.ndarray, shift: int, bounds: np.ndarray) -> None:
    """Up are the spins whose word, without its ``shift`` lowest bits, is below a bound.

    ``bounds`` is (B,) uint64, one for each box.
    """

    shifted = bounds[:, None, None]

    def spins_of(band: slice) -> np.ndarray:
        spins = empty(block, band)
        for rows, words in words_of(block, key, band):
            if shift:
                words >>= np.uint64(shift)
            up = spins[:, rows.start - band.start : rows.stop - band.start]
            np.less(words, shifted, out=up.view(np.bool_))
            up *= 2
            up -= 1
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
def _count(
    words: np.ndarray, left: np.ndarray, bounds: np.ndarray, shift: Word, counts: np.ndarray
) -> None:
    for b in range(counts.shape[0]):
        if left[b] > 0:
            count_digits(words[b], bounds[b], shift, counts[b])


def counting(block: Spins, key: np.ndarray) -> Callable[..., None]:
    """The ``count`` of :func:`bounds_of_smallest` for the first words of all sites.

    Words are drawn anew in each round, which is faster than to store them.
    """

    def count(left: np.ndarray, bounds: np.ndarray, shift: Word, counts: np.ndarray) -> None:
        for band in block.bands():
            for _, words in words_of(block, key, band):
                _count(words.reshape(len(words), -1), left, bounds, shift, counts)

    return count


def _descend(counts: np.ndarray, shift: Word, left: np.ndarray, bounds: np.ndarray) -> None:
    """Raise each bound to the digit that holds the next word; ``left`` remain to be marked."""
    boxes, last = np.arange(len(counts)), counts.shape[1] - 1
    below = np.cumsum(counts, axis=1)
    digit = np.minimum((below < left[:, None]).sum(axis=1), last)
    settled = (left > 0) & (below[boxes, digit] == left)
    digit = np.minimum(digit + settled, last)
    left -= np.where(digit > 0, below[boxes, digit - 1], 0)
    bounds += digit.astype(np.uint64) << shift
