"""Plain kernels of one heat-bath pass over one sublattice: CPU and CUDA, one byte a spin.

They take boxes of any size and origin and agree bit for bit: the CPU runs along the rows
of a box, CUDA gives every site a thread. Fast kernels with the same law for large lattices
and for many small boxes: :mod:`~mpiflow.solvers.spins.multispin`,
:mod:`~mpiflow.solvers.spins.sliced`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.device import CudaKernel, kernel
from mpiflow.solvers.spins.half_lattice import draw_words, place_in, site_of, word_of
from mpiflow.systems.ising import resample


@kernel
def _draw_row(
    north: np.ndarray,
    row: np.ndarray,
    south: np.ndarray,
    count: int,
    words: np.ndarray,
    thresholds: tuple[np.uint64, ...],
    change: np.ndarray,
) -> None:
    """-1 for each of the sites 1, 3, 5, ... of `row` that flips, 1 for the others."""
    for j in range(count):
        k = north[2 * j + 1] + south[2 * j + 1] + row[2 * j] + row[2 * j + 2]
        spin = row[2 * j + 1]
        change[j] = spin * resample(spin, k, words[j], thresholds)


@kernel
def _change_row(row: np.ndarray, count: int, change: np.ndarray) -> np.int64:
    """Apply changes to the sites 1, 3, 5, ...; returns how many flipped."""
    flips = np.int64(0)
    for j in range(count):
        row[2 * j + 1] *= change[j]
        flips += np.int64(change[j] < 0)
    return flips


@kernel
def update_rows(
    target: np.ndarray,
    field: np.ndarray,
    halo: int,
    origins: np.ndarray,
    members: np.ndarray,
    ly: int,
    lx: int,
    key: np.ndarray,
    step: np.uint64,
    colour: int,
    thresholds: tuple[np.uint64, ...],
    flips: np.ndarray,
) -> None:
    """Resample one colour of every box; adds the flips of each box.

    ``target`` gets the flips that ``field`` makes: the same array for a step.
    """
    ny, nx = field.shape[1] - 2 * halo, field.shape[2] - 2 * halo
    words = np.empty((2, nx // 2 + 2), np.uint64)
    change = np.empty(nx // 2 + 2, np.int8)
    for b in range(field.shape[0]):
        box_key = key[0], key[1] + members[b]
        # A box may run over the periodic edge: take the stretches of columns
        # that are contiguous in the lattice one after the other.
        ix = 0
        while ix < nx:
            gx = (origins[b, 1] + ix) % lx
            width = min(nx - ix, lx - gx)
            first = gx >> 1
            filled = -1
            for iy in range(ny):
                gy = (origins[b, 0] + iy) % ly
                if gy >> 1 != filled:
                    filled = gy >> 1
                    draw_words(box_key, step, gy, gx, width, words[0], words[1])
                skip = (gx + gy + colour) & 1
                start = ix + skip + halo - 1
                count = (width - skip + 1) // 2
                _draw_row(
                    field[b, iy + halo - 1, start:],
                    field[b, iy + halo, start:],
                    field[b, iy + halo + 1, start:],
                    count,
                    words[gy & 1, ((gx + skip) >> 1) - first :],
                    thresholds,
                    change,
                )
                flips[b] += _change_row(target[b, iy + halo, start:], count, change)
            ix += width


@CudaKernel
def update_cuda(cuda: Any) -> Callable[..., None]:
    def update(  # type: ignore[no-untyped-def]
        target, field, halo, origins, members, ly, lx, key, step, colour, thresholds, flips, span
    ):
        """One thread for each site of the colour in a span; same bits as the CPU kernel."""
        b, iy, j = place_in(cuda.grid(1), span)
        if b < field.shape[0]:
            gy, gx, ix = site_of(iy, j, origins[b, 0], origins[b, 1], ly, lx, colour)
            if span[4] <= ix < span[5]:
                y, x = iy + halo, ix + halo
                k = (
                    field[b, y - 1, x]
                    + field[b, y + 1, x]
                    + field[b, y, x - 1]
                    + field[b, y, x + 1]
                )
                spin = field[b, y, x]
                word = word_of(key[0], key[1] + members[b], step, gy, gx)
                # The simulator's rules return Python ints.
                new = resample(spin, k, np.uint64(word), thresholds)
                if new != spin:
                    target[b, y, x] = -target[b, y, x]
                    cuda.atomic.add(flips, b, 1)

    return update
