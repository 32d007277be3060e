"""Passes over packed boxes: 64 neighbouring sites of one colour in a word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from mpiflow.core.device import inlined, kernel
from mpiflow.core.messages import CODE, NO_LINES, call_mpi
from mpiflow.core.noise import Word, site_counter, threefry
from mpiflow.core.packed import BAND, WORD_SITES, PackedBlock, words_across
from mpiflow.core.packed_words import (
    close,
    last_site,
    move_columns,
    popcount,
    sites_of_last,
    with_next,
)
from mpiflow.solvers.spins.bitplanes import (  # fmt: skip
    BELOW,
    CHUNK,
    EQUAL,
    PLANES,
    RESIDUAL,
    S0,
    S1,
    S2,
    SEED_AB,
    SEED_C,
    SPACE,
    SPIN,
    STATE_A,
    STATE_B,
    STATE_C,
    Masks,
    Thresholds,
    compare_words,
    compared,
    count_neighbours,
    settle,
)


class Region(NamedTuple):
    """Bands of rows of a box (start, stop, step) and words of them (start, stop).

    The first band of a box is the one that its first row is in. ``needs``: the row of a band from
    which on edges of other boxes are needed; :data:`BAND` where none are.
    """

    bands: tuple[int, int, int]
    words: tuple[int, int]
    needs: int = BAND

    @property
    def number_of_bands(self) -> int:
        return len(range(*self.bands))

    @property
    def empty(self) -> bool:
        return self.number_of_bands == 0 or self.words[0] >= self.words[1]

    def shares(self, workers: int) -> list[Region]:
        """The region cut into parts of as many bands for each worker."""
        low, high, step = self.bands
        parts = min(workers, self.number_of_bands)
        cuts = [low + self.number_of_bands * i // parts * step for i in range(parts)] + [high]
        return [self._replace(bands=(start, stop, step)) for start, stop in pairwise(cuts)]


class Work:
    """Passes over a packed block with one set of thresholds.

    Parameters
    ----------
    target : gets the flips of black sites; the block's own black words in a step
    kernel : :func:`update_packed` or that of :mod:`~mpiflow.solvers.spins.multispin_cuda`, or one
        with the masks compiled in, for which ``masks`` is empty
    """

    def __init__(
        self,
        block: PackedBlock,
        target: Any,
        kernel: Any,
        masks: Masks,
        thresholds: Thresholds,
        key: np.ndarray,
    ) -> None:
        self.block, self.kernel = block, kernel
        put = block.device.put
        self.arrays = (target, *block.words)
        constants = (block.origins, key, block.members)
        decision = masks, put(thresholds.residual), thresholds.setting
        self.rest = (block.columns // 2, *map(put, constants), *decision)
        self.counts: list[Any] = []

    def on(self, region: Region) -> Callable[[int], None]:
        """A function that does the pass of a given number over a region. The halo is the caller's,
        but for columns that a box wraps onto itself."""
        counts = self._counter()  # threads must not share one
        kernel, arrays, rest = self.kernel, self.arrays, self.rest
        if self.block.device.is_cuda:
            bands = region.bands[0], region.bands[2], region.number_of_bands
            words = region.words[0], region.words[1] - region.words[0]
            threads = self.block.batch * bands[2] * words[1]
            rows, width = (int(n) for n in arrays[1].shape[1:])
            target, black, white = (array.reshape(-1) for array in arrays)
            colours = (target, black, white), (white, white, black)
            stream: Any = 0
            if self.block.streams:
                streams = self.block.streams
                stream = streams.edges if region.needs < BAND else streams.inside

            def launch(number: int) -> None:
                of, place = colours[number % 2], (rows - 2, width, number, bands, words)
                kernel.launch(threads, *of, *place, *rest, counts, stream=stream)

            return launch
        places, columns, sent = _places([region]), self.block.wraps[1], self.block.columns_sent

        def call(number: int) -> None:
            kernel(*arrays, number, 1, places, False, columns, NO_LINES, sent, *rest, counts)

        return call

    def all_of(self, regions: Sequence[Region], first: int, count: int, looks: bool) -> None:
        """Passes over all of the boxes in one call, on the CPU, with what goes to other ranks.

        The edges of the last pass are on their way afterwards.

        Raises
        ------
        MPI.Exception : a message could not be sent or received
        """
        block, places, counts = self.block, _places(regions), self._counter()
        rows_wrap, columns_wrap = block.wraps
        lines = None if looks else block.lines
        for colour in (0, 1):
            block.finish_exchange(colour)
        self.kernel(
            *self.arrays, first, count, places, rows_wrap and not looks, columns_wrap,
            NO_LINES if lines is None else lines.numbers, block.columns_sent, *self.rest, counts,
        )  # fmt: skip
        if lines is not None:
            lines.check()
            if count:
                block.exchange_started((first + count - 1) % 2)

    def _counter(self) -> Any:
        self.counts.append(self.block.device.put(np.zeros(self.block.batch, np.int64)))
        return self.counts[-1]

    def flips(self) -> np.ndarray:
        """Flips of each box so far, (B,) int64."""
        get = self.block.device.get
        total = np.zeros(self.block.batch, np.int64)
        for counts in self.counts:
            total += get(counts)
        return total


def _places(regions: Sequence[Region]) -> np.ndarray:
    """Regions as kernels take them, (n, 6) int64."""
    return np.array([(*r.bands, *r.words, r.needs) for r in regions], np.int64).reshape(-1, 6)


def bands_of(block: PackedBlock) -> int:
    """Bands that the rows of a box are in; the first and the last may be in other boxes too."""
    return -(-(int(block.origins[0, 0]) % BAND + block.shape[0]) // BAND) if block.batch else 0


def inside_and_edges(block: PackedBlock) -> tuple[list[Region], list[Region]]:
    """What can be updated without the neighbours' edges, and what cannot."""
    wrap_y, wrap_x = block.wraps
    bands, words = bands_of(block), words_across(block.columns)
    if not wrap_y:
        inner, outer = (1, bands - 1, 1), (0, bands, max(1, bands - 1))
    else:
        inner, outer = (0, bands, 1), (0, 0, 1)
    # Of words a whole vector, not to waste the rest of it.
    left = 0 if wrap_x else min(8, words)
    right = max(left, words - left)
    inside = Region(inner, (left, right))
    columns = Region(inner, (0, left), 0), Region(inner, (right, words), 0)
    edges = Region(outer, (0, words), 0), *columns
    return [r for r in (inside,) if not r.empty], [r for r in edges if not r.empty]


def in_turn(block: PackedBlock) -> list[Region]:
    """The same for one thread, in the order of the kernel.

    Where only rows are cut, bands that fill the vectors stay together: the last of them come to
    the row that needs the neighbour's edge at their end, the first ones begin with it.
    """
    bands, words = bands_of(block), words_across(block.columns)
    if block.wraps != (False, True) or bands < 2:
        inside, edges = inside_and_edges(block)
        return [*inside, *edges]
    together = max(1, CHUNK // words)
    first = min(together, (bands + 1) // 2)
    last = first + (bands - 1 - first) // together * together
    end = (int(block.origins[0, 0]) + block.shape[0] - 1) % BAND
    parts = ((first, last), BAND), ((last, bands), end), ((0, first), 0)
    regions = [Region((start, stop, 1), (0, words), needs) for (start, stop), needs in parts]
    return [region for region in regions if not region.empty]


@kernel
def seed_streams(space: np.ndarray, n: int, key0: Word, key1: Word, step: Word) -> None:
    """Start the streams whose numbers are in the place of their third word."""
    for i in range(n):
        w = np.uint64(i)
        stream = space[STATE_C + w]
        space[STATE_A + w], space[STATE_B + w] = threefry(key0, key1, step | SEED_AB, stream)
        space[STATE_C + w] = threefry(key0, key1, step | SEED_C, stream)[0]


# Inlined: a call costs counting the references of its arrays, as much as a short row takes.


@inlined
def _classes(
    space: np.ndarray,
    base: Word,
    n: int,
    spins: np.ndarray,
    other: np.ndarray,
    at: Word,
    width: Word,
    odd: bool,
    setting: Word,
) -> None:
    """Classes of n words from word `at` of a row: if its sites have even x one neighbour is a bit
    to the left, else to the right."""
    for i in range(n):
        w = at + np.uint64(i)
        s, o = compared(spins[w], setting), other[w]
        if odd:
            side = (o >> np.uint64(1)) | (other[w + np.uint64(1)] << np.uint64(63))
        else:
            side = (o << np.uint64(1)) | (other[w - np.uint64(1)] >> np.uint64(63))
        s0, s1, s2 = count_neighbours(other[w - width] ^ s, other[w + width] ^ s, o ^ s, side ^ s)
        k = base + np.uint64(i)
        space[S0 + k], space[S1 + k], space[S2 + k], space[SPIN + k] = s0, s1, s2, s


@inlined
def _settle(
    space: np.ndarray,
    base: Word,
    n: int,
    key0: Word,
    key1: Word,
    step: Word,
    first: Word,
    residual: np.ndarray,
) -> None:
    """Decide the sites that the planes left undecided; `first` is the site of the first bit."""
    for i in range(n):
        w, site = base + np.uint64(i), first + np.uint64(WORD_SITES * i)
        if space[EQUAL + w]:
            space[BELOW + w] |= settle(
                space[EQUAL + w], key0, key1, np.uint64(0), step | RESIDUAL, site, np.uint64(2),
                space[S0 + w], space[S1 + w], space[S2 + w], space[SPIN + w], residual,
            )  # fmt: skip


@inlined
def _flip(
    space: np.ndarray, base: Word, n: int, target: np.ndarray, at: Word, setting: Word
) -> np.int64:
    flips = np.uint64(0)
    for i in range(n):
        w = at + np.uint64(i)
        change = space[BELOW + base + np.uint64(i)] ^ (target[w] & setting)
        target[w] ^= change
        flips += popcount(change)
    return np.int64(flips)


@kernel
def _wrap_columns(
    words: np.ndarray, first_row: int, rows: int, width: Word, half: int, top: int,
    bands: np.ndarray,
) -> None:  # fmt: skip
    """Copy the last site of each row before its first, and the first after its last."""
    last, after = width - np.uint64(2), np.uint64((half >> 6) + 1)
    for band in range(bands[0], bands[1], bands[2]):
        for y in range(max(0, band * BAND - top), min(rows, band * BAND + BAND - top)):
            at = np.uint64(first_row + y + 1) * width
            words[at] = last_site(words[at + last], half) << np.uint64(63)
            words[at + after] = with_next(words[at + after], half, words[at + np.uint64(1)])


@kernel
def exchange(
    lines: np.ndarray, colour: int, words: np.ndarray, half: int, sent: np.ndarray, waits: bool
) -> bool:
    """Start the messages of one colour's edges, or wait for the neighbours'; whether MPI could."""
    columns = sent.shape[2] > 0
    if columns and not waits:
        move_columns(words, half, sent[colour], False)
    call_mpi(lines, colour, waits)
    if columns and waits and lines[CODE] == 0:
        move_columns(words, half, sent[colour], True)
    return bool(lines[CODE] == 0)


def _cpu_kernel(constants: Masks | None) -> Any:
    """The kernel with the thresholds as an argument, or compiled in."""

    def update_packed(  # type: ignore[no-untyped-def]
        target, black, white, first, passes, regions, rows_wrap, columns_wrap, lines, sent, half,
        origins, key, members, masks, residual, setting, flips,
    ):  # fmt: skip
        """Passes over packed boxes, black where their number is even; adds the flips of each box.

        Parameters
        ----------
        target : gets the flips of black sites; ``black`` itself in a step
        black, white : (B, ny + 2, words + 2) uint64, see :mod:`mpiflow.core.packed`
        first, passes : number of the first pass, and how many
        regions : (n, 6) int64, each a :class:`Region` of the box, in this order
        rows_wrap, columns_wrap : close each box on itself after each pass; else the halo there is
            the caller's, or comes by messages
        lines : numbers of :class:`~mpiflow.core.messages.Lines`, for one box; empty without. What
            the last pass sends is left to be received
        sent : (2, 4, n) uint64, of both colours what columns send and get, see
            :class:`~mpiflow.core.packed.PackedBlock`
        half : sites of one colour in a row
        """
        m = masks if constants is None else constants
        space = np.empty(SPACE, np.uint64)
        rows, width = black.shape[1] - 2, np.uint64(black.shape[2])
        across, mask, ragged = black.shape[2] - 2, sites_of_last(half), half & 63 != 0
        colours = black.reshape(-1), white.reshape(-1)
        changing = target.reshape(-1), colours[1]
        boxes, sends = (black, white), lines.size > 0
        for number in range(first, first + passes):
            colour = number & 1
            step = np.uint64(number)
            spins, other, out = colours[colour], colours[1 - colour], changing[colour]
            coming = sends and number > first
            for part in range(black.shape[0] * regions.shape[0]):
                b, region = part // regions.shape[0], regions[part % regions.shape[0]]
                bands, words, needs = region[:3], region[3:5], region[5]
                many = len(range(bands[0], bands[1], bands[2]))
                stride = np.uint64(BAND * bands[2]) * width  # words from a band to the next
                site_stride = site_counter(BAND * bands[2], 0)
                key1 = key[1] + members[b]
                origin_y, origin_x = origins[b, 0], origins[b, 1]
                top = origin_y % BAND  # rows of the first band that are another box's
                first_row = b * (rows + 2)
                for start in range(words[0], words[1], CHUNK):
                    n = min(CHUNK, words[1] - start)
                    first_word = np.uint64(origin_x // WORD_SITES + start)
                    # Short rows: several bands together fill the vectors.
                    together = CHUNK // n
                    for low in range(0, many, together):
                        high = min(low + together, many)
                        for i in range(low, high):
                            band = bands[0] + i * bands[2]
                            number_y = np.uint64(origin_y // BAND + band)
                            stream = number_y << np.uint64(32) | first_word
                            base = STATE_C + np.uint64((i - low) * n)
                            for j in range(n):
                                space[base + np.uint64(j)] = stream + np.uint64(j)
                        seed_streams(space, (high - low) * n, key[0], key1, step)
                        begin = bands[0] + low * bands[2]
                        for row in range(BAND):
                            if coming and row == needs:
                                coming, theirs = False, 1 - colour
                                if not exchange(lines, theirs, boxes[theirs], half, sent, True):
                                    return
                            odd = np.uint64((row + colour) & 1)
                            # Bands that have this row, and where it is in the first of them.
                            y = begin * BAND + row - top
                            some, stop = low + (y < 0), high
                            if y + (high - 1 - low) * bands[2] * BAND >= rows:
                                stop -= 1
                            y += (some - low) * bands[2] * BAND
                            base = np.uint64((some - low) * n)
                            at = np.uint64(first_row + y + 1) * width + np.uint64(start + 1)
                            site = site_counter(origin_y + y, origin_x + WORD_SITES * start) | odd
                            for i in range(stop - some):
                                k, w = base + np.uint64(i * n), at + np.uint64(i) * stride
                                if odd:
                                    _classes(space, k, n, spins, other, w, width, True, setting)
                                else:
                                    _classes(space, k, n, spins, other, w, width, False, setting)
                            compare_words(space, (high - low) * n, np.uint64(PLANES * row + 1), m)
                            if ragged and start + n == across:
                                for i in range(stop - some):
                                    end = base + np.uint64(i * n + n - 1)
                                    # What is no site stays, by whichever of the two ways.
                                    same = out[at + np.uint64(i) * stride + np.uint64(n - 1)]
                                    space[BELOW + end] &= mask
                                    space[BELOW + end] |= same & setting & ~mask
                                    space[EQUAL + end] &= mask
                            for i in range(stop - some):
                                k, here = base + np.uint64(i * n), site + np.uint64(i) * site_stride
                                _settle(space, k, n, key[0], key1, step, here, residual)
                                w = at + np.uint64(i) * stride
                                flips[b] += _flip(space, k, n, out, w, setting)
                if columns_wrap:
                    _wrap_columns(out, first_row, rows, width, half, top, bands)
            if rows_wrap:
                close(white if colour else target, half, True, False)
            if sends and not exchange(lines, colour, boxes[colour], half, sent, False):
                return

    return kernel(update_packed)


update_packed = _cpu_kernel(None)


@lru_cache(maxsize=8)
def packed_with(masks: Masks) -> Any:
    """:data:`update_packed` with thresholds compiled in: faster, after a few
    seconds of compiling, which are kept on disk."""
    return _cpu_kernel(masks)
