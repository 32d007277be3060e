r"""Sums of spins over the neighbours of a Kac coupling: exact integers, by any method.

.. math:: n_x = \sum_{y \ne x} w_{|x_1 - y_1|} w_{|x_2 - y_2|} s_y.

``steps`` adds one axis after the other. A kernel of few levels is a stack of boxes, and from one
site to the next a box gains one spin and loses one, so that

.. math:: n_{y+1} - n_y = \sum_k (w_k - w_{k+1}) (s_{y+1+k} - s_{y-k}),

with one term for each step of the staircase w: some fifty, however wide the kernel is. Along the
rows the same is a difference of running sums. ``fft`` rounds a convolution in float64, whose
error is far below 1/2. Both give the same integers; see docs/performance.md for the costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import scipy

from mpiflow.core.device import inlined, kernel
from mpiflow.core.guards import require_rule
from mpiflow.core.slabs import Slabs
from mpiflow.solvers.kac.tables import uniform_field
from mpiflow.systems.kac import Kac, KacKernel

Method = Literal["steps", "fft"]

#: Bytes of the strip of columns that is worked on: it stays in a core's cache.
_CACHE = 2**21
#: Sites of a band of rows, its fewest rows, and sites that are made ready together.
_BAND, _ROWS, _AT_ONCE = 2**21, 128, 2**17
_Index = np.uint64  # no index is negative: the compiler need not ask


class Steps(NamedTuple):
    """The steps of a staircase of weights, four by four.

    Attributes
    ----------
    places : (G, 4) int64, k of steps w_k > w_{k+1}
    heights : (G, 4) int64, w_k - w_{k+1}; 0 fills the last group up
    alike : (G,) bool, whether the four heights are one number
    """

    places: np.ndarray
    heights: np.ndarray
    alike: np.ndarray


def steps_of(kernel: KacKernel) -> Steps:
    """Groups of four steps, of one height where there are four such."""
    drops = kernel.drops
    places: list[list[int]] = []
    rest: list[int] = []
    for height in np.unique(drops[drops > 0]):
        same = [int(k) for k in np.flatnonzero(drops == height)]
        whole = len(same) // 4 * 4
        places += [same[i : i + 4] for i in range(0, whole, 4)]
        rest += same[whole:]
    alike = len(places)
    places += [rest[i : i + 4] for i in range(0, len(rest), 4)]
    heights = [[int(drops[k]) for k in four] for four in places]
    for four, high in zip(places, heights, strict=True):
        high += [0] * (4 - len(four))
        four += [0] * (4 - len(four))
    return Steps(
        np.array(places, np.int64).reshape(-1, 4),
        np.array(heights, np.int64).reshape(-1, 4),
        np.arange(len(places)) < alike,
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
        self.steps = steps_of(kernel)

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
        pairs of rows (of the n) and sums (B, rows, nx) int32, which the next pair overwrites
        """
        batch, rows, nx = padded.shape
        n = rows - 2 * self.reach if batch else 0  # a rank may have no member, or no row
        height = max(_ROWS, 2 * self.reach, _BAND // (batch * nx)) if n else 1
        out = np.empty((batch, min(height, n), nx), np.int32)
        short = max(1, _AT_ONCE // (batch * nx)) if n else 1
        for start in range(0, n, height):
            stop = min(start + height, n)
            around, sums = padded[:, start : stop + 2 * self.reach], out[:, : stop - start]
            self._along_columns(around, sums)
            for top in range(0, stop - start, short):
                part = slice(top, min(top + short, stop - start))
                self._along_rows(around[:, self.reach :], sums, part)
                yield slice(start + part.start, start + part.stop), sums[:, part]

    def _along_columns(self, padded: np.ndarray, out: np.ndarray) -> None:
        """Sums along y, of the rows between ``reach`` others above and below, to ``out`` int32."""
        w = self.kernel.weights
        if self.kernel.nearest:
            _nearest(padded, out)
            return
        # A row gains at most 2 w_0 over the one above it, and as many bytes must hold that.
        change = np.int8 if w[0] < 64 else np.int16
        room = _CACHE // ((2 * self.reach + 2) * np.dtype(change).itemsize)
        width = max(64, min(padded.shape[2], room))
        for b in range(len(padded)):
            _columns(padded[b], w, *self.steps, np.empty(width, change), out[b])

    def _along_rows(self, spins: np.ndarray, sums: np.ndarray, rows: slice) -> None:
        """Sums along x of some rows of ``sums``, in place: then they are whole."""
        if not self.kernel.nearest:
            own = np.int32(self.kernel.weights[0] ** 2)
            for b in range(len(sums)):
                _rows(spins[b, rows], self.reach, own, *self.steps, sums[b, rows])

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
def _copy_strip(spins: np.ndarray, left: int, strip: np.ndarray) -> None:
    for y in range(strip.shape[0]):
        for x in range(strip.shape[1]):
            strip[y, x] = spins[y, left + x]


@kernel
def _add_row(weight: np.int32, row: np.ndarray, out: np.ndarray) -> None:
    for x in range(out.size):
        out[x] += weight * np.int32(row[x])


@kernel
def _gain(
    flat: np.ndarray,
    count: int,
    plus: tuple[int, int, int, int],
    minus: tuple[int, int, int, int],
    d: tuple[int, int, int, int],
    out: np.ndarray,
) -> None:
    """Add d_j (flat[plus_j + i] - flat[minus_j + i]) over j to out[i]; steps of any heights."""
    a0, a1, a2, a3 = _Index(plus[0]), _Index(plus[1]), _Index(plus[2]), _Index(plus[3])
    b0, b1, b2, b3 = _Index(minus[0]), _Index(minus[1]), _Index(minus[2]), _Index(minus[3])
    d0, d1, d2, d3 = d
    for i in range(count):
        x = _Index(i)
        first = d0 * (flat[a0 + x] - flat[b0 + x]) + d1 * (flat[a1 + x] - flat[b1 + x])
        second = d2 * (flat[a2 + x] - flat[b2 + x]) + d3 * (flat[a3 + x] - flat[b3 + x])
        out[x] += first + second


@kernel
def _gain_alike(
    flat: np.ndarray,
    count: int,
    plus: tuple[int, int, int, int],
    minus: tuple[int, int, int, int],
    d: int,
    out: np.ndarray,
) -> None:
    """The same for four steps of one height: a product instead of four."""
    a0, a1, a2, a3 = _Index(plus[0]), _Index(plus[1]), _Index(plus[2]), _Index(plus[3])
    b0, b1, b2, b3 = _Index(minus[0]), _Index(minus[1]), _Index(minus[2]), _Index(minus[3])
    for i in range(count):
        x = _Index(i)
        gain = (flat[a0 + x] - flat[b0 + x]) + (flat[a1 + x] - flat[b1 + x])
        gain += (flat[a2 + x] - flat[b2 + x]) + (flat[a3 + x] - flat[b3 + x])
        out[x] += d * gain


@kernel
def _gain_one(
    flat: np.ndarray,
    count: int,
    plus: tuple[int, int, int, int],
    minus: tuple[int, int, int, int],
    out: np.ndarray,
) -> None:
    """The same for four steps of height 1: no CPU multiplies bytes."""
    a0, a1, a2, a3 = _Index(plus[0]), _Index(plus[1]), _Index(plus[2]), _Index(plus[3])
    b0, b1, b2, b3 = _Index(minus[0]), _Index(minus[1]), _Index(minus[2]), _Index(minus[3])
    for i in range(count):
        x = _Index(i)
        gain = (flat[a0 + x] - flat[b0 + x]) + (flat[a1 + x] - flat[b1 + x])
        out[x] += gain + (flat[a2 + x] - flat[b2 + x]) + (flat[a3 + x] - flat[b3 + x])


@inlined
def _gain_group(flat, count, plus, minus, alike, heights, kind, out):  # type: ignore[no-untyped-def]
    """Add four steps, whose heights become numbers of this kind, the cheapest way."""
    if alike and heights[0] == 1:
        _gain_one(flat, count, plus, minus, out)
    elif alike:
        _gain_alike(flat, count, plus, minus, kind(heights[0]), out)
    else:
        d = kind(heights[0]), kind(heights[1]), kind(heights[2]), kind(heights[3])
        _gain(flat, count, plus, minus, d, out)


@kernel
def _columns(
    padded: np.ndarray,
    weights: np.ndarray,
    places: np.ndarray,
    heights: np.ndarray,
    alike: np.ndarray,
    change: np.ndarray,
    out: np.ndarray,
) -> None:
    """Weighted sums along y, in strips of columns: each row from the one above it.

    ``change`` is room for a row of a strip; its type is that of all differences.
    """
    reach, width = weights.size - 1, change.size
    n, nx = out.shape
    strip = np.empty((padded.shape[0], width), change.dtype)
    flat = strip.reshape(-1)
    for left in range(0, nx, width):
        w = min(width, nx - left)
        _copy_strip(padded, left, strip[:, :w])
        first = out[0, left : left + w]
        first[:] = 0
        for k in range(-reach, reach + 1):
            _add_row(np.int32(weights[abs(k)]), strip[reach + k], first)
        for y in range(1, n):
            change[:w] = 0
            low = (reach + y - 1) * width
            high = low + width
            for g in range(alike.size):
                k0, k1 = places[g, 0] * width, places[g, 1] * width
                k2, k3 = places[g, 2] * width, places[g, 3] * width
                plus = (high + k0, high + k1, high + k2, high + k3)
                minus = (low - k0, low - k1, low - k2, low - k3)
                _gain_group(flat, w, plus, minus, alike[g], heights[g], np.int16, change)
            _add_to(change, out[y - 1, left : left + w], out[y, left : left + w])


@kernel
def _add_to(change: np.ndarray, before: np.ndarray, out: np.ndarray) -> None:
    for x in range(out.size):
        out[x] = before[x] + np.int32(change[x])


@kernel
def _rows(
    spins: np.ndarray,
    reach: int,
    own: np.int32,
    places: np.ndarray,
    heights: np.ndarray,
    alike: np.ndarray,
    out: np.ndarray,
) -> None:
    """Weighted sums along x of each row of ``out``, in place, without the site itself."""
    n, nx = out.shape
    running = np.empty(nx + 2 * reach + 1, np.int32)  # may wrap round: differences do not
    for y in range(n):
        row = out[y]
        total = np.int32(0)
        running[0] = 0
        for i in range(reach):
            total += row[nx - reach + i]
            running[i + 1] = total
        for i in range(nx):
            total += row[i]
            running[reach + 1 + i] = total
        for i in range(reach):
            total += row[i]
            running[reach + nx + 1 + i] = total
        for x in range(nx):
            row[x] = -own * np.int32(spins[y, x])
        for g in range(alike.size):
            k0, k1, k2, k3 = places[g, 0], places[g, 1], places[g, 2], places[g, 3]
            high = reach + 1
            plus = (high + k0, high + k1, high + k2, high + k3)
            minus = (reach - k0, reach - k1, reach - k2, reach - k3)
            _gain_group(running, nx, plus, minus, alike[g], heights[g], np.int32, row)
