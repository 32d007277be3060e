r"""The tiled n-fold way on a CUDA device: a block of threads lets a tile evolve for a whole pass.

What :mod:`mpiflow.solvers.spins.tiled` does for one tile after the other, blocks of threads do here
for all tiles of a class at once, by the same rules in the same order: the same bits. Numbers of
sites in classes are functions of the spins, so each block counts those of its tile anew, in its own
fast memory, and keeps none: a pass reads the lattice once, and nothing but spins and halos goes
from pass to pass. The first thread chooses classes and flips, all of them look for the site.

CUDA: simulated and assembled, not yet run on a GPU (docs/hpc.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import CudaKernel, to_bare
from mpiflow.core.noise import wait_and_choice
from mpiflow.solvers.spins.nfold import choose
from mpiflow.solvers.spins.tile_rules import (
    class_at,
    in_words,
    is_match,
    nth_site,
    row_words,
    shares_of,
    tile_number,
)
from mpiflow.systems.ising import CLASSES

#: Events of a tile whose noise is drawn at once, an event a thread.
_AHEAD = 32
#: Longest side of a tile, and one more.
_SIDE = 256
#: What threads of a block tell each other: the class of the event, the number of the site in it,
#: then in its row, the row, the column, whether the tile stops, and its flips.
_CLASS, _LEFT, _REST, _ROW, _COLUMN, _STOP, _TOLD = range(7)


class CudaTiles:
    """Passes over the tiles of a block on a CUDA device.

    Parameters
    ----------
    block : on the device
    tile : side of the tiles
    key : of the noise, (2,) uint64
    """

    def __init__(self, block: Block, tile: int, key: np.ndarray) -> None:
        put = block.device.put
        self._block, self._tile, self._key = block, tile, (key[0], key[1])
        self._corners, self._members = put(block.origins // tile), put(block.members)
        self._grid = tuple(side // tile for side in block.lattice.shape)
        self._flips = put(np.zeros(block.batch, np.int64))
        self._rates: Any = None

    def follow(self, rates: np.ndarray, inverse: np.ndarray) -> None:
        """Flip with these rates of classes from now on; what 1 / r is of each is ``inverse``."""
        self._rates = self._block.device.put(rates), self._block.device.put(inverse)

    def evolve(self, parity: tuple[int, int], number: np.uint64, window: float) -> None:
        """Let all tiles of a parity class evolve for a time; ``number`` is that of the pass."""
        block, side = self._block, self._tile
        ty, tx = (n // side for n in block.shape)
        each = (ty + 1) // 2, (tx + 1) // 2
        _evolve.launch_blocks(
            block.batch * each[0] * each[1], block.array, block.halo, side, each, parity,
            self._corners, self._grid, self._members, *self._key, number, window, *self._rates,
            self._flips,
        )  # fmt: skip

    def flips(self) -> np.ndarray:
        """Flips of each box so far, (B,) int64."""
        return np.asarray(self._block.device.get(self._flips))


@CudaKernel
def _evolve(cuda: Any) -> Callable[..., None]:
    bare = to_bare()

    def evolve_tile(  # type: ignore[no-untyped-def]
        fields, halo, side, each, parity, corners, grid, members, k0, k1, number, window, rates,
        inverse, flips,
    ):  # fmt: skip
        """A block of threads for each tile of the class: ``each`` rows, columns of them a box."""
        me, threads, q = cuda.threadIdx.x, cuda.blockDim.x, cuda.blockIdx.x
        rows = cuda.shared.array((CLASSES, _SIDE), np.int32)
        totals = cuda.shared.array((1, CLASSES), np.int64)
        match = cuda.shared.array(_SIDE, np.int32)
        waits = cuda.shared.array(_AHEAD, np.float64)
        choices = cuda.shared.array(_AHEAD, np.float64)
        told = cuda.shared.array(_TOLD, np.int64)
        fields, corners, members = bare(fields), bare(corners), bare(members)
        rates, inverse, flips = bare(rates), bare(inverse), bare(flips)
        b, row, column = q // (each[0] * each[1]), q // each[1] % each[0], q % each[1]
        cy, cx = corners[b, 0], corners[b, 1]
        ti, tj = (parity[0] + cy) % 2 + 2 * row, (parity[1] + cx) % 2 + 2 * column
        ty, tx = (fields.shape[1] - 2 * halo) // side, (fields.shape[2] - 2 * halo) // side
        if ti < ty and tj < tx:
            field = fields[b]
            y0, x0 = ti * side + halo, tj * side + halo
            for y in range(me, side, threads):
                downs, ups = row_words(field, y0 + y, x0, side)
                for c in range(CLASSES):
                    rows[c, y] = in_words(np.uint64(downs), np.uint64(ups), c)
            cuda.syncthreads()
            for c in range(me, CLASSES, threads):
                n = 0
                for y in range(side):
                    n += rows[c, y]
                totals[0, c] = n
            keys = k0, k1 + members[b], number
            counter = np.uint64(tile_number(cy + ti, cx + tj, grid)) << np.uint64(32)
            time, made = 0.0, 0
            while True:
                if made % _AHEAD == 0:
                    for i in range(me, _AHEAD, threads):
                        waits[i], choices[i] = wait_and_choice(keys, counter + np.uint64(made + i))
                cuda.syncthreads()
                if me == 0:
                    shares = shares_of(totals, 0, rates)
                    total, chosen, rest = choose(choices[made % _AHEAD], shares)
                    told[_STOP] = 1  # a total of zero waits for ever
                    if total > 0.0:
                        time += waits[made % _AHEAD] / total
                    if total > 0.0 and time <= window:
                        told[_STOP] = 0
                        old = np.int64(chosen)
                        told[_CLASS] = old
                        told[_LEFT] = nth_site(rest, inverse[old], totals[0, old])
                cuda.syncthreads()
                if told[_STOP] == 1:
                    break
                old, left = told[_CLASS], told[_LEFT]
                for y in range(me, side, threads):
                    ahead = 0
                    for other in range(y):
                        ahead += rows[old, other]
                    if ahead <= left and left < ahead + rows[old, y]:
                        told[_ROW], told[_REST] = y, left - ahead
                cuda.syncthreads()
                y, rest_of_row = told[_ROW], told[_REST]
                spin, sums = np.int8(1 if old >= 5 else -1), np.int8(2 * (old % 5) - 4)
                for x in range(me, side, threads):
                    match[x] = is_match(field, np.uint64(y0 + y), np.uint64(x0 + x), spin, sums)
                cuda.syncthreads()
                for x in range(me, side, threads):
                    ahead = 0
                    for other in range(x):
                        ahead += match[other]
                    if match[x] == 1 and ahead == rest_of_row:
                        told[_COLUMN] = x
                cuda.syncthreads()
                if me == 0:
                    x, wanted = told[_COLUMN], np.int64(spin)
                    field[y0 + y, x0 + x] = -spin
                    new = (old + 5) % CLASSES
                    rows[old, y] -= 1
                    rows[new, y] += 1
                    totals[0, old] -= 1
                    totals[0, new] += 1
                    for direction in range(4):
                        v = y + (direction == 1) - (direction == 0)
                        h = x + (direction == 3) - (direction == 2)
                        if 0 <= v and v < side and 0 <= h and h < side:
                            new = class_at(field, y0 + v, x0 + h)
                            rows[new + wanted, v] -= 1
                            rows[new, v] += 1
                            totals[0, new + wanted] -= 1
                            totals[0, new] += 1
                made += 1
            if me == 0 and made > 0:
                cuda.atomic.add(flips, b, made)

    return evolve_tile
