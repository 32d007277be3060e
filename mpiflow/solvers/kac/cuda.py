r"""Steps of a Kac model on a CUDA device: the integers of the CPU, so the same bits.

CUDA: simulated and assembled, not yet run on a GPU (docs/hpc.md).

Sums over neighbours are made along one axis after the other, by one kernel for both: its threads
stand side by side across the axis and walk along it, each row from the one before by

.. math:: n_{y+1} - n_y = \sum_k (w_k - w_{k+1}) (s_{y+1+k} - s_{y-k}),

four rows at a time so that a step of the staircase is fetched once for the four. It reads rows
side by side and writes its sums transposed; called twice it has turned the lattice back. A site
is read some hundred times but written once: it is the reading that must be side by side. Sums
along one axis fit 16 bits. They include the site itself, which is taken off where they are used.

The spins stay on the device. With one lattice over several ranks only the rows in reach pass
through host memory: 2 * reach rows down and as many up, in each evaluation of the fields. What
needs none of these is added up along y meanwhile, in a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import CudaKernel, Streams, rule, simulated, unravel
from mpiflow.core.noise import site_counter, threefry
from mpiflow.core.slabs import Slabs
from mpiflow.solvers.kac.fields import Fields
from mpiflow.solvers.kac.tables import RESIDUAL, ROOM, Table, digits_at, falls_below
from mpiflow.systems.kac import lookup

#: Rows that a thread adds up together, and spare rows so that it may read beyond the last one.
TOGETHER = 4
#: Threads that keep a device busy.
BUSY = 2**17
#: Sites of one call of the generator, which one thread does.
SITES = 4
_NONE = 2**62
_WORD = 2**32 - 1
_Index = np.uint64  # no index is negative: the compiler need not ask


class CudaSites:
    """The spins of a block on a CUDA device, sums over their neighbours and flips.

    Parameters
    ----------
    fields : of the model
    block : on a CUDA device; its spins have a halo of 1, which is not used
    shift, offset : of tables, for :func:`mpiflow.systems.kac.lookup`
    """

    def __init__(self, fields: Fields, block: Block, shift: int, offset: int) -> None:
        self.fields, self.block, self._device = fields, block, block.device
        self._reading = shift, offset
        kernel, reach, put = fields.system.kernel, fields.reach, block.device.put
        batch, (n, nx) = block.batch, block.shape
        self._padded = put(np.zeros((batch, n + 2 * reach + TOGETHER, nx), np.int8))
        self._along_y: Any = None  # nearest neighbours are added up at once
        if not kernel.nearest:
            self._along_y = put(np.zeros((batch, nx + 2 * reach + TOGETHER, n), np.int16))
        self._sums = put(np.zeros((batch, n, nx), np.int32))
        self._before: Any = None  # of the midpoint, made when it asks for them
        self._half: Any = None
        self._members = put(block.members)
        self._weights = put(kernel.weights.astype(np.int32))
        steps = np.flatnonzero(kernel.drops)
        self._heights = put(kernel.drops[steps].astype(np.int32))
        self._places = put(steps * nx), put(steps * n)  # in elements of what is read
        scale, own = fields.scale, int(kernel.weights[0]) ** 2
        self._field = own, put(fields.external), scale.multiplier, scale.shift
        # The first row of a chunk costs all the weights; short chunks keep a device busy.
        rows = min(max(batch * n * nx // BUSY, reach // 8), 64 + reach // 8)
        self._chunk = max(1, -(-rows // TOGETHER)) * TOGETHER
        slabs = fields.slabs
        self._top = 0 if slabs is None else slabs.rows.start
        self._edges: Slabs | None = None
        if slabs is not None and len(slabs.edges) > 2:
            self._edges, self._streams = edge_rows(slabs, reach), Streams()
            self._came = block.device.pinned((2, reach, nx), np.int8)
            self._near = block.device.empty((2, reach, nx), np.int8)
        self._table: Table | None = None

    def begin(self, steps: np.ndarray, key: np.ndarray) -> None:
        """Count flips from 0; members have made ``steps`` (B,), noise has the key (2,) uint64."""
        self._key = key[0], key[1]
        self._begun = self._device.put(2 * steps.astype(np.uint64))
        self._counts = self._device.put(np.zeros((self.block.batch, self.block.shape[0]), np.int64))
        self.choose(slice(0, self.block.batch))

    def choose(self, members: slice) -> None:
        """All that follows is of these members."""
        self._here = members

    @property
    def spins(self) -> Any:
        """The state: (b, n + 2, nx + 2) int8 on the device."""
        return self.block.array[self._here]

    @property
    def half(self) -> Any:
        """Another state of the same shape, for the solver's use."""
        if self._half is None:
            self._half = self._device.duplicate(self.block.array)
        return self._half[self._here]

    def keep_sums(self) -> None:
        """What was added up last is that of :attr:`spins`, for :meth:`flip` after the next."""
        if self._before is None:
            self._before = self._device.duplicate(self._sums)
        self._sums, self._before = self._before, self._sums

    def flips(self) -> np.ndarray:
        """Flips of each member since :meth:`begin`, (B,) int64."""
        return np.asarray(self._device.get(self._counts).sum(axis=1))

    # -- fields --------------------------------------------------------------------------

    def add_up(self, spins: Any) -> None:
        """Sums over the neighbours of a state, for :meth:`lowest` and :meth:`flip`. Collective."""
        padded, sums, reach = self._padded[self._here], self._sums[self._here], self.fields.reach
        batch, n, nx = sums.shape
        self._device.copy_box(padded[:, reach : reach + n], spins[:, 1:-1, 1:-1])
        if self._edges is None:
            self._wrap(padded, n)
            self._first_sums(padded, sums, slice(0, n), 0)
        else:
            self._with_rows_of_others(self._edges, padded, sums)
        if not self.fields.system.kernel.nearest:
            along_y = self._along_y[self._here]
            self._wrap(along_y, nx)
            self._walk(along_y, self._places[1], sums, 0, slice(0, nx), 0)
        self.fields.computed += batch * n * nx

    def _first_sums(self, padded: Any, sums: Any, rows: slice, stream: Any) -> None:
        """Sums along y in some rows of all; of nearest neighbours those along x, too."""
        if not self.fields.system.kernel.nearest:
            out = self._along_y[self._here]
            self._walk(padded, self._places[0], out, self.fields.reach, rows, stream)
            return
        count = rows.stop - rows.start
        threads = sums.shape[0] * count * sums.shape[2]
        _nearest.launch(threads, padded, sums, rows.start, count, stream=stream)

    def _walk(self, source: Any, places: Any, out: Any, pad: int, some: slice, stream: Any) -> None:
        batch, rows, width = source.shape
        n, count = rows - 2 * self.fields.reach - TOGETHER, some.stop - some.start
        threads = batch * -(-count // self._chunk) * width
        flat, to = source.reshape(batch * rows * width), out.reshape(batch * out.shape[1] * n)
        shape = (batch, n, width, out.shape[1])
        steps = self._weights, places, self._heights
        _walk.launch(
            threads, flat, shape, *steps, self._chunk, pad, to, some.start, count, stream=stream
        )

    def _wrap(self, padded: Any, n: int) -> None:
        """Fill the rows above and below n periodic ones."""
        reach = self.fields.reach
        self._device.copy_box(padded[:, :reach], padded[:, n : n + reach])
        self._device.copy_box(padded[:, reach + n : 2 * reach + n], padded[:, reach : 2 * reach])

    def _with_rows_of_others(self, edges: Slabs, padded: Any, sums: Any) -> None:
        """Sums of a slab: the inside while the rows in reach of the rest travel. Collective."""
        reach, n, device, streams = self.fields.reach, sums.shape[1], self._device, self._streams
        kept = edges.local[0]
        pieces = [(reach, reach + n)]
        if kept < n:
            pieces = [(reach, 2 * reach), (n, n + reach)]
        own = np.concatenate([device.get(padded[0, a:b]) for a, b in pieces])
        streams.join()
        top = min(reach, n)
        bottom = max(top, n - reach)
        self._first_sums(padded, sums, slice(top, bottom), streams.inside)
        around = edges.around(own, reach, reach)
        self._came[0], self._came[1] = around[:reach], around[reach + kept :]
        self._near.copy_to_device(self._came, stream=streams.edges)
        for part, first in enumerate((0, reach + n)):
            rows = padded[:, first : first + reach]
            device.copy_box(rows, self._near[part : part + 1], streams.edges)
        for rest in (slice(0, top), slice(bottom, n)):
            self._first_sums(padded, sums, rest, streams.edges)
        streams.join()

    # -- flips ---------------------------------------------------------------------------

    def lowest(self) -> int:
        """The smallest s U of this rank: of the fastest spin."""
        sums = self._sums[self._here]
        least = self._device.put(np.full(sums.shape[:2], _NONE, np.int64))
        _lowest.launch(_threads(sums), self.spins, sums, *self._field, least)
        return int(self._device.get(least).min())

    def flip(
        self,
        state: Any,
        turn: int,
        table: Table,
        out: Any,
        *,
        ahead: bool = False,
        count: bool = False,
    ) -> None:
        """Flip spins of the state whose sums were added up last; ``out`` may be the state itself.

        Parameters
        ----------
        turn : half steps since :meth:`begin`, which choose the random numbers
        table : chances of flipping
        ahead : extrapolate chances: twice these less those in the fields of the sums kept
        count : count flips
        """
        if table is not self._table:
            self._table = table
            self._on_device = self._device.put(table.bounds), self._device.put(table.digits)
        here = self._here
        sums = self._sums[here]
        before = sums if self._before is None else self._before[here]
        noise = *self._key, self._members[here], self._begun[here], np.uint64(turn), self._top
        _flip.launch(
            _threads(sums), state, sums, self.spins, before, ahead, *self._field,
            *self._on_device, *self._reading, *noise, out, self._counts[here], count,
        )  # fmt: skip

    def adopt(self, new: Any) -> None:
        """Take the spins of another state; those that differ count as flips."""
        _adopt.launch(_threads(self._sums[self._here]), new, self.spins, self._counts[self._here])


def edge_rows(slabs: Slabs, reach: int) -> Slabs:
    """A field of the rows alone that other ranks may need: ``reach`` at each end of a slab.

    What is in reach of a slab is the same in it as in the whole field, on two ranks or more.
    """
    rows = np.minimum(np.diff(slabs.edges), 2 * reach)
    edges = np.concatenate([[0], np.cumsum(rows)])
    return Slabs(slabs.comm, (int(edges[-1]), slabs.shape[1]), edges.tolist())


def _threads(sums: Any) -> int:
    batch, n, nx = sums.shape
    return int(batch * n * (-(-nx // SITES)))


@CudaKernel
def _walk(cuda: Any) -> Callable[..., None]:
    def walk(  # type: ignore[no-untyped-def]
        source, shape, weights, places, heights, chunk, pad, out, first, rows
    ):
        """Weighted sums along the rows' axis: a thread for each column and chunk of some rows.

        ``source`` is (batch, reach + n + reach + TOGETHER, width), ``out`` (batch, lines, n), of
        which row ``pad + x`` gets the sums of column x.
        """
        i = cuda.grid(1)
        batch, n, width, lines = shape
        chunks = (rows + chunk - 1) // chunk
        if i < batch * chunks * width:
            b, c, x = unravel(i, chunks, width)
            reach = weights.size - 1
            y = first + c * chunk
            stop = min(y + chunk, first + rows)
            at = (b * (n + 2 * reach + TOGETHER) + y + reach) * width + x
            to = (b * lines + pad + x) * n
            total = np.int32(0)
            for k in range(-reach, reach + 1):
                spin = np.int32(source[_Index(at + k * width)])
                total = np.int32(total + weights[_Index(abs(k))] * spin)
            w2, w3 = 2 * width, 3 * width
            while y < stop:
                c0 = c1 = c2 = c3 = np.int32(0)
                for j in range(places.size):
                    d = heights[_Index(j)]
                    high, low = at + width + places[_Index(j)], at - places[_Index(j)]
                    a0, b0 = source[_Index(high)], source[_Index(low)]
                    a1, b1 = source[_Index(high + width)], source[_Index(low + width)]
                    a2, b2 = source[_Index(high + w2)], source[_Index(low + w2)]
                    a3, b3 = source[_Index(high + w3)], source[_Index(low + w3)]
                    c0 = np.int32(c0 + d * (np.int32(a0) - np.int32(b0)))
                    c1 = np.int32(c1 + d * (np.int32(a1) - np.int32(b1)))
                    c2 = np.int32(c2 + d * (np.int32(a2) - np.int32(b2)))
                    c3 = np.int32(c3 + d * (np.int32(a3) - np.int32(b3)))
                out[_Index(to + y)] = total
                total = np.int32(total + c0)
                if y + 1 < stop:
                    out[_Index(to + y + 1)] = total
                total = np.int32(total + c1)
                if y + 2 < stop:
                    out[_Index(to + y + 2)] = total
                total = np.int32(total + c2)
                if y + 3 < stop:
                    out[_Index(to + y + 3)] = total
                total = np.int32(total + c3)
                y += TOGETHER
                at += TOGETHER * width

    return walk


@CudaKernel
def _nearest(cuda: Any) -> Callable[..., None]:
    def nearest(padded: Any, out: Any, first: int, rows: int) -> None:
        """Four neighbours, in some rows; a row above and below all is in ``padded``."""
        i, nx = cuda.grid(1), out.shape[2]
        b, y, x = unravel(i, rows, nx)
        if b < out.shape[0]:
            y += first
            left, right = (x - 1 if x > 0 else nx - 1), (x + 1 if x + 1 < nx else 0)
            total = np.int32(padded[b, y, x]) + np.int32(padded[b, y + 2, x])
            total += np.int32(padded[b, y + 1, left]) + np.int32(padded[b, y + 1, right])
            out[b, y, x] = total

    return nearest


@rule
def _site(thread: int, n: int, nx: int) -> tuple[int, int, int]:
    """Box, row and group of four columns of a thread."""
    return unravel(thread, n, (nx + SITES - 1) // SITES)


@rule
def _field(near: int, own: int, spin: int, multiplier: int, down: int, extra: int) -> int:
    """U of a site from the sum over its neighbours, which has it itself too."""
    return ((near - own * spin) * multiplier >> down) + extra


@CudaKernel
def _lowest(cuda: Any) -> Callable[..., None]:
    def lowest(spins, sums, own, external, multiplier, down, least):  # type: ignore[no-untyped-def]
        """The smallest s U of each row, of four sites a thread."""
        n, nx = sums.shape[1], sums.shape[2]
        b, y, q = _site(cuda.grid(1), n, nx)
        if b < sums.shape[0]:
            row = y if external.shape[0] > 1 else 0
            smallest = np.int64(_NONE)
            for x in range(SITES * q, min(SITES * q + SITES, nx)):
                spin = np.int64(spins[b, y + 1, x + 1])
                extra = np.int64(external[row, x if external.shape[1] > 1 else 0])
                u = _field(np.int64(sums[b, y, x]), own, spin, multiplier, down, extra)
                smallest = min(smallest, spin * u)
            cuda.atomic.min(least, (b, y), smallest)

    return lowest


@CudaKernel
def _flip(cuda: Any) -> Callable[..., None]:
    # The simulator calls compiled rules, which do not know its arrays.
    find = lookup.py_func if simulated() else lookup
    part = digits_at.py_func if simulated() else digits_at

    def flip(  # type: ignore[no-untyped-def]
        state, sums, old, before, ahead, own, external, multiplier, down, bounds, digits, shift,
        offset, k0, k1, members, begun, turn, top, out, counts, count,
    ):  # fmt: skip
        """One call of the generator for four sites; flips are counted for each row."""
        n, nx = sums.shape[1], sums.shape[2]
        b, y, q = _site(cuda.grid(1), n, nx)
        if b < sums.shape[0]:
            row = y if external.shape[0] > 1 else 0
            site = np.uint64(site_counter(top + y, q))  # the simulator returns Python ints
            w0, w1 = threefry(k0, k1 + members[b], begun[b] + turn, site)
            flips = 0
            for x in range(SITES * q, min(SITES * q + SITES, nx)):
                both = np.uint64(w0 if x & 2 == 0 else w1)  # two halves, the low one first
                word = np.int64((both >> np.uint64(32 * (x & 1))) & np.uint64(_WORD))
                spin = np.int64(state[b, y + 1, x + 1])
                extra = np.int64(external[row, x if external.shape[1] > 1 else 0])
                u = _field(np.int64(sums[b, y, x]), own, spin, multiplier, down, extra)
                v, v0 = spin * u, spin * u
                limit = find(bounds, shift, offset, v)
                if ahead:
                    near, then = np.int64(before[b, y, x]), np.int64(old[b, y + 1, x + 1])
                    v0 = spin * _field(near, own, then, multiplier, down, extra)
                    # It may be below 0; steps of at most 1 keep it below the largest word.
                    limit = 2 * limit - find(bounds, shift, offset, v0) + 2
                flip = word < limit
                if flip and limit - word <= ROOM:
                    site = np.uint64(site_counter(top + y, x))
                    turned = begun[b] + turn | RESIDUAL
                    more = np.uint64(threefry(k0, k1 + members[b], turned, site)[0])
                    d0, d1, d2 = part(digits, shift, offset, v)
                    if ahead:
                        e0, e1, e2 = part(digits, shift, offset, v0)
                        d0, d1, d2 = 2 * d0 - e0, 2 * d1 - e1, 2 * d2 - e2
                    flip = falls_below(word, more, d0, d1, d2)
                if flip:
                    spin = -spin
                    flips += 1
                out[b, y + 1, x + 1] = spin
            if count and flips > 0:
                cuda.atomic.add(counts, (b, y), flips)

    return flip


@CudaKernel
def _adopt(cuda: Any) -> Callable[..., None]:
    def adopt(new: Any, spins: Any, counts: Any) -> None:
        """Overwrite spins and count, for each row, those that change; four sites a thread."""
        n, nx = spins.shape[1] - 2, spins.shape[2] - 2
        b, y, q = _site(cuda.grid(1), n, nx)
        if b < spins.shape[0]:
            changed = 0
            for x in range(SITES * q, min(SITES * q + SITES, nx)):
                if spins[b, y + 1, x + 1] != new[b, y + 1, x + 1]:
                    spins[b, y + 1, x + 1] = new[b, y + 1, x + 1]
                    changed += 1
            if changed > 0:
                cuda.atomic.add(counts, (b, y), changed)

    return adopt
