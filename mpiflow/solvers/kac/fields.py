r"""Sums of spins over the neighbours of a Kac coupling: exact integers, by any method.

.. math:: n_x = \sum_{y \ne x} w_{|x_1 - y_1|} w_{|x_2 - y_2|} s_y.

``steps`` adds one axis after the other. A kernel of few levels is a stack of boxes, and from one
site to the next a box gains one spin and loses one, so that

.. math:: n_{y+1} - n_y = \sum_k (w_k - w_{k+1}) (s_{y+1+k} - s_{y-k}),

with one term for each step of the staircase w: some fifty, however wide the kernel is. Along rows
it is the same, for which they are laid side by side. ``fft`` rounds a convolution in float64, whose
error is far below 1/2. Both give the same integers; see docs/performance.md for the costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from mpiflow.core.device import copy_line, kernel
from mpiflow.core.guards import require_rule
from mpiflow.core.slabs import Slabs
from mpiflow.solvers.kac.tables import uniform_field
from mpiflow.solvers.kac.walks import (
    BYTES,
    TOGETHER,
    WORDS,
    aligned,
    stairs_of,
    transpose_sums,
    transpose_words,
    walk_bytes,
    walk_plain,
    walk_words,
)
from mpiflow.systems.kac import Kac, KacKernel

Method = Literal["steps", "fft"]

#: Sites of a band of rows, its fewest rows, and sites that are made ready together.
_BAND, _ROWS, _AT_ONCE = 2**21, 128, 2**17
#: Bytes of the strips that are filled together: they stay in a core's cache.
_CACHE = 2**19
#: Sums that are written together.
_SQUARE = WORDS // 2


@dataclass(frozen=True, eq=False)
class _Room:
    """What sums are made in, kept from one step to the next.

    Attributes
    ----------
    made_for : batch, rows of a band and of a part of it, columns
    strips, total : of sums along y: some strips of spins, and a row of sums
    between : (batch, strips, rows, BYTES) int16, sums along y
    strip, sums : of sums along x: a strip of those along y, and a square of sums
    out : (batch, rows, columns) int32
    """

    made_for: tuple[int, int, int, int]
    strips: np.ndarray
    total: np.ndarray
    between: np.ndarray
    strip: np.ndarray
    sums: np.ndarray
    out: np.ndarray

    @classmethod
    def of(cls, batch: int, height: int, short: int, nx: int, reach: int) -> _Room:
        """Of a kernel of this reach; -1 for one that needs nothing but the sums."""
        strips = -(-nx // BYTES)
        wide, rows = strips * BYTES, height + 2 * reach + TOGETHER
        some = 0 if reach < 0 else max(1, min(strips, _CACHE // (rows * BYTES)))
        return cls(
            (batch, height, short, nx),
            aligned((some, rows, BYTES), np.int8),
            aligned((BYTES,), np.int16),
            # Rows that are done with others, of which nothing is used, are spare.
            aligned((batch, min(some, 1) * strips, height + short + TOGETHER, BYTES), np.int16),
            aligned((wide + 2 * reach + _SQUARE + TOGETHER, WORDS), np.int16),
            aligned((_SQUARE + 1, WORDS), np.int32),
            aligned((batch, short, wide), np.int32),
        )


class Sums:
    """Sums over neighbours for one kernel.

    Parameters
    ----------
    kernel : the weights
    method : ``steps`` or ``fft``
    """

    def __init__(self, kernel: KacKernel, method: Method = "steps") -> None:
        self.kernel, self.method = kernel, method
        if not kernel.nearest:
            self._stairs = (
                stairs_of(kernel, BYTES, 127),
                stairs_of(kernel, WORDS, 32767 // kernel.sum),
            )
            self._plain = bool((self._stairs[1].heights == 1).all())
        self._room: _Room | None = None

    @property
    def reach(self) -> int:
        """Rows above and below that are needed."""
        return self.kernel.reach

    def of(
        self, padded: np.ndarray, slabs: Slabs | None = None
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """The sums by the method chosen, in one or more bands as :meth:`bands` has them.

        ``slabs`` says how one lattice is cut; the method ``fft`` is then collective.
        """
        if self.method == "steps":
            return self.bands(padded)
        n = padded.shape[1] - 2 * self.reach
        return iter([(slice(0, n), self.by_fft(padded[:, self.reach : self.reach + n], slabs))])

    def bands(self, padded: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """The sums, band by band, so that memory need not hold them all.

        Parameters
        ----------
        padded : (B, reach + n + reach, nx) int8 spins, periodic along x

        Returns
        -------
        pairs of rows (of the n) and sums (B, rows, nx) int32, which the next pair overwrites,
        and so do later bands
        """
        batch, rows, nx = padded.shape
        n = rows - 2 * self.reach if batch else 0  # a rank may have no member, or no row
        if n == 0:
            return
        height = min(max(_ROWS, 2 * self.reach, _BAND // (batch * nx)), n)
        short = max(1, _AT_ONCE // (batch * nx) // WORDS) * WORDS
        room, self._room = self._room, None  # another iterator makes its own
        if room is None or room.made_for != (batch, height, short, nx):
            room = _Room.of(batch, height, short, nx, -1 if self.kernel.nearest else self.reach)
        for start in range(0, n, height):
            stop = min(start + height, n)
            around = padded[:, start : stop + 2 * self.reach]
            if not self.kernel.nearest:
                self._along_columns(around, room)
            for top in range(0, stop - start, short):
                end = min(top + short, stop - start)
                sums = room.out[:, : end - top, :nx]
                if self.kernel.nearest:
                    _nearest(around[:, top : end + 2], sums)
                else:
                    self._along_rows(around[:, self.reach + top : self.reach + end], room, top)
                yield slice(start + top, start + end), sums
        self._room = room

    def _along_columns(self, padded: np.ndarray, room: _Room) -> None:
        """Sums of spins that are up along y, with ``reach`` rows above and below, in strips."""
        for b in range(len(padded)):
            _columns(
                padded[b], self.kernel.weights, *self._stairs[0], room.strips, room.total,
                room.between[b],
            )  # fmt: skip

    def _along_rows(self, spins: np.ndarray, room: _Room, top: int) -> None:
        """Whole sums of rows of spins, from those along columns from row ``top`` on."""
        for b in range(len(spins)):
            _rows(
                spins[b], self.kernel.weights, *self._stairs[1], self._plain, room.between[b], top,
                room.strip, room.sums, room.out[b],
            )  # fmt: skip

    def by_fft(self, spins: np.ndarray, slabs: Slabs | None) -> np.ndarray:
        """All sums at once by a rounded float64 transform, (B, n, nx) int32.

        Parameters
        ----------
        spins : (B, n, nx) int8: whole lattices, or this rank's slab of one
        slabs : how the one lattice is cut; None for whole lattices. Collective if given.
        """
        shape = spins.shape[1:] if slabs is None else slabs.shape
        a_y, a_x, c = self.kernel.symbol((shape[0], shape[1]))
        if slabs is None:
            factor = self._factor(a_y, a_x, c)
            spectrum = scipy.fft.rfft2(spins.astype(np.float64)) * factor
            return np.rint(scipy.fft.irfft2(spectrum, s=shape)).astype(np.int32)
        factor = self._factor(a_y, a_x[slabs.columns], c)
        sums = slabs.backward(slabs.forward(spins[0].astype(np.float64)) * factor)
        return np.rint(sums).astype(np.int32)[None]

    def _factor(self, a_y: np.ndarray, a_x: np.ndarray, c: float) -> np.ndarray:
        both = a_y[:, None] + a_x if self.kernel.nearest else a_y[:, None] * a_x
        return (both - c) * self.kernel.norm


class Fields:
    r"""Fields :math:`U_x = (n_x M \gg a) + H_x` of a model as integers, and what they cost.

    Parameters
    ----------
    system : the model
    method : how sums over neighbours are made
    external : h(x) of this rank's sites (n, nx) float64, added to the uniform field
    slabs : how one lattice is cut over ranks; None for whole lattices
    largest : bound of the uniform field, if that may change: |h| unless given

    Attributes
    ----------
    largest : bound of the external field
    scale : M, a, and the field's unit
    external : H, (n, nx) or (1, 1) int32
    computed : sites whose fields were added up so far on this rank
    """

    def __init__(
        self,
        system: Kac,
        *,
        method: Method = "steps",
        external: np.ndarray | None = None,
        slabs: Slabs | None = None,
        largest: float | None = None,
    ) -> None:
        require_rule(system, Kac)
        self.system, self.slabs, self.computed = system, slabs, 0
        self._sums = Sums(system.kernel, method)
        self.largest = abs(system.field) if largest is None else largest
        if external is not None:
            there = float(np.abs(external).max(initial=0.0))
            self.largest += there if slabs is None else slabs.largest(there)
        self.scale = system.scale(self.largest)
        extra = uniform_field(system, self.scale)
        if external is not None:
            extra = extra + np.rint(external * self.scale.unit).astype(np.int64)
        self.external = np.ascontiguousarray(extra.astype(np.int32))

    def become(self, system: Kac) -> None:
        """Go on with another temperature or uniform field, in place."""
        if system == self.system:
            return
        change = uniform_field(system, self.scale) - uniform_field(self.system, self.scale)
        self.external += change.astype(np.int32)
        self.system = system

    @property
    def reach(self) -> int:
        """Rows that are felt on each side."""
        return self._sums.reach

    def at(self, rows: slice) -> np.ndarray:
        """H of some of this rank's rows, or (1, 1) of all."""
        return self.external if self.external.size == 1 else self.external[rows]

    def surrounded(self, spins: np.ndarray) -> np.ndarray:
        """Spins (B, n, nx) with the rows in reach above and below. Collective."""
        if self.slabs is not None:
            return self.slabs.around(spins, self.reach, self.reach)
        return np.concatenate([spins[:, -self.reach :], spins, spins[:, : self.reach]], axis=1)

    def bands(self, padded: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows and sums over neighbours, see :meth:`Sums.bands`. Collective for ``fft``."""
        batch, rows, nx = padded.shape
        self.computed += batch * (rows - 2 * self.reach) * nx
        return self._sums.of(padded, self.slabs)

    def energy(self, spins: np.ndarray) -> np.ndarray:
        """-1/2 sum s u' - sum s h of this rank's sites, u' without h: (B,) float64. Collective.

        Two exact integers for each member, summed over ranks before they are divided.
        """
        pairs = np.zeros(len(spins), np.int64)
        fields = np.zeros(len(spins), np.int64)
        padded = self.surrounded(spins)
        for rows, sums in self.bands(padded):
            for b in range(len(spins)):
                pairs[b] += _product(spins[b, rows], sums[b])
                fields[b] += _product(spins[b, rows], self.at(rows))
        if self.slabs is not None:
            pairs[0], fields[0] = self.slabs.total(pairs[0]), self.slabs.total(fields[0])
        return -0.5 * pairs / self.system.kernel.norm - fields / self.scale.unit


@kernel
def _product(spins: np.ndarray, values: np.ndarray) -> np.int64:
    total = np.int64(0)
    for y in range(spins.shape[0]):
        row = values[y % values.shape[0]]
        for x in range(spins.shape[1]):
            total += np.int64(spins[y, x]) * np.int64(row[x % row.size])
    return total


@kernel
def _nearest(padded: np.ndarray, out: np.ndarray) -> None:
    for b in range(out.shape[0]):
        for y in range(out.shape[1]):
            nx = out.shape[2]
            above, row, below = padded[b, y], padded[b, y + 1], padded[b, y + 2]
            for x in range(nx):
                out[b, y, x] = np.int32(above[x]) + np.int32(below[x])
            for x in range(nx - 1):
                out[b, y, x] += np.int32(row[x + 1])
                out[b, y, x + 1] += np.int32(row[x])
            out[b, y, 0] += np.int32(row[nx - 1])
            out[b, y, nx - 1] += np.int32(row[0])


@kernel
def _add_row(weight: int, row: np.ndarray, out: np.ndarray) -> None:
    for x in range(out.size):
        out[x] += weight * row[x]


@kernel
def _first(weights: np.ndarray, strip: np.ndarray, out: np.ndarray) -> None:
    """The sums of the first place, all terms of them."""
    reach = weights.size - 1
    out[:] = 0
    for k in range(-reach, reach + 1):
        _add_row(weights[abs(k)], strip[reach + k], out)


@kernel
def _copy_ups(spins: np.ndarray, left: int, strips: np.ndarray) -> None:
    """1 for a spin that is up, 0 for another, of neighbouring strips."""
    nx = spins.shape[1]
    for y in range(spins.shape[0]):
        row = spins[y]
        for s in range(strips.shape[0]):
            begin = left + s * BYTES
            part, to = row[begin : min(begin + BYTES, nx)], strips[s, y]
            if part.size == BYTES:
                for x in range(BYTES):
                    to[x] = np.int8(part[x] + np.int8(1)) >> np.int8(1)
            else:
                for x in range(part.size):
                    to[x] = part[x] > 0


@kernel
def _columns(
    padded: np.ndarray,
    weights: np.ndarray,
    places: np.ndarray,
    ends: np.ndarray,
    heights: np.ndarray,
    strips: np.ndarray,
    total: np.ndarray,
    out: np.ndarray,
) -> None:
    """Weighted sums along y of what is up, to (strips, rows, BYTES); four rows are spare."""
    reach = weights.size - 1
    n = padded.shape[0] - 2 * reach
    for first in range(0, out.shape[0], strips.shape[0]):
        _copy_ups(padded, first * BYTES, strips)
        for s in range(min(strips.shape[0], out.shape[0] - first)):
            strip, sums = strips[s], out[first + s]
            _first(weights, strip, total)
            copy_line(sums[0], total)
            flat, to = strip.reshape(-1), sums.reshape(-1)
            for y in range(0, n - 1, TOGETHER):
                walk_bytes(
                    flat, (reach + y) * BYTES, places, ends, heights, heights.size, total, to,
                    (y + 1) * BYTES, BYTES,
                )  # fmt: skip


@kernel
def _lay(source: np.ndarray, y: int, nx: int, reach: int, strip: np.ndarray) -> None:
    """Rows from y on side by side, and what is in reach beyond either end of them."""
    flat, to, rows = source.reshape(-1), strip.reshape(-1), source.shape[1]
    for x in range(0, nx, WORDS):
        place = (x // BYTES * rows + y) * BYTES + x % BYTES
        transpose_words(flat, place, BYTES, to, (reach + x) * WORDS, WORDS)
    for i in range(reach):
        copy_line(strip[i], strip[nx + i])
    for i in range(reach):
        copy_line(strip[reach + nx + i], strip[reach + i])


@kernel
def _rows(
    spins: np.ndarray,
    weights: np.ndarray,
    places: np.ndarray,
    ends: np.ndarray,
    heights: np.ndarray,
    plain: bool,
    source: np.ndarray,
    top: int,
    strip: np.ndarray,
    sums: np.ndarray,
    out: np.ndarray,
) -> None:
    """Weighted sums along x of spins without the site itself, from those along y in ``source``.

    Rows are made 32 at a time: ``out`` has a multiple of them, and of 64 columns.
    """
    reach, wide = weights.size - 1, out.shape[1]
    n, nx = spins.shape
    flat, some, to = strip.reshape(-1), sums.reshape(-1), out.reshape(-1)
    for y in range(0, n, WORDS):
        _lay(source, top + y, nx, reach, strip)
        total = sums[_SQUARE]
        _first(weights, strip, total)
        for x in range(0, nx, _SQUARE):
            copy_line(sums[0], total)
            for i in range(0, _SQUARE, TOGETHER):
                at, row = (reach + x + i) * WORDS, (i + 1) * WORDS
                if plain:
                    walk_plain(flat, at, places, ends, heights.size, total, some, row, WORDS)
                else:
                    walk_words(
                        flat, at, places, ends, heights, heights.size, total, some, row, WORDS
                    )
            transpose_sums(some, 0, WORDS, to, y * wide + x, wide)
            transpose_sums(some, _SQUARE, WORDS, to, (y + _SQUARE) * wide + x, wide)
    whole = 2 * weights.sum() - weights[0]
    all_up, own = np.int32(whole * whole), np.int32(weights[0] ** 2)
    for y in range(n):
        here, row = spins[y], out[y]
        for x in range(nx):
            row[x] = np.int32(2) * row[x] - all_up - own * np.int32(here[x])
