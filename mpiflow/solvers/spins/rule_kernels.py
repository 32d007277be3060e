"""Passes of a spin rule whose chances are in a table: CPU and CUDA, one byte a site.

They take boxes of any size and origin and agree bit for bit.

``counts`` is (B, 2) int64: the changes of each box, and trials that could not be made, of which a
table has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.device import CudaKernel, kernel
from mpiflow.solvers.spins.half_lattice import draw_words, place_in, site_of, word_of


@kernel
def renewed(own: int, word: np.uint64, thresholds: np.ndarray, states: int, row: int) -> int:
    """The state, counted from 0, after a trial that a random word decides."""
    # Unsigned: Numba then leaves out the test for negative indices.
    at, last = np.uint64(row) * np.uint64(states), np.uint64(states - 1)
    value = word >> np.uint64(1)
    if value >= thresholds[at + last]:
        return own
    new = 0
    for state in range(states - 1):
        new += int(value >= thresholds[at + np.uint64(state)])
    return new


@kernel
def _update_row(
    north: np.ndarray,
    row: np.ndarray,
    south: np.ndarray,
    count: int,
    words: np.ndarray,
    lowest: int,
    states: int,
    thresholds: np.ndarray,
    around: int,
    by_own: int,
) -> np.int64:
    """A trial of the sites 1, 3, 5, ... of `row`; returns how many changed."""
    q, changes = states, np.int64(0)
    offset = lowest * (q * q * q + q * q + q + 1)
    for j in range(count):
        # Unsigned: Numba then leaves out the test for negative indices.
        west = np.uint64(2 * j)
        x = west + np.uint64(1)
        near = (np.int64(north[x]) * q + row[west]) * q + row[x + np.uint64(1)]
        near = near * q + south[x] - offset
        own = np.int64(row[x]) - lowest
        new = renewed(own, words[np.uint64(j)], thresholds, q, near * around + own * by_own)
        row[x] = new + lowest
        changes += np.int64(new != own)
    return changes


@kernel
def update_rows(
    field: np.ndarray,
    halo: int,
    origins: np.ndarray,
    members: np.ndarray,
    ly: int,
    lx: int,
    key: np.ndarray,
    first: np.uint64,
    passes: int,
    colour: int,
    lowest: int,
    states: int,
    thresholds: np.ndarray,
    around: int,
    by_own: int,
    boxes: tuple[int, int],
    rows: tuple[int, int],
    counts: np.ndarray,
) -> None:
    """Passes of one colour over a range of boxes and rows; adds the changes of each box.

    Nothing of the other colour changes in between, so that a row may have all passes at once.
    """
    nx = field.shape[2] - 2 * halo
    words = np.empty((2 * passes, nx // 2 + 2), np.uint64)
    for b in range(boxes[0], boxes[1]):
        box_key = key[0], key[1] + members[b]
        # A box may run over the periodic edge: take the stretches of columns
        # that are contiguous in the lattice one after the other.
        ix = 0
        while ix < nx:
            gx = (origins[b, 1] + ix) % lx
            width = min(nx - ix, lx - gx)
            left = gx >> 1
            filled = -1
            for iy in range(rows[0], rows[1]):
                gy = (origins[b, 0] + iy) % ly
                skip = (gx + gy + colour) & 1
                start = ix + skip + halo - 1
                count = (width - skip + 1) // 2
                for k in range(passes):
                    if gy >> 1 != filled:
                        step = first + np.uint64(k)
                        draw_words(box_key, step, gy, gx, width, words[2 * k], words[2 * k + 1])
                    counts[b, 0] += _update_row(
                        field[b, iy + halo - 1, start:],
                        field[b, iy + halo, start:],
                        field[b, iy + halo + 1, start:],
                        count,
                        words[2 * k + (gy & 1), ((gx + skip) >> 1) - left :],
                        lowest,
                        states,
                        thresholds,
                        around,
                        by_own,
                    )
                filled = gy >> 1
            ix += width


@CudaKernel
def update_cuda(cuda: Any) -> Callable[..., None]:
    def update(  # type: ignore[no-untyped-def]
        field, halo, origins, members, ly, lx, key, first, passes, colour, lowest, states,
        thresholds, around, by_own, counts, span,
    ):  # fmt: skip
        """One thread for each site of the colour in a span; same bits as the CPU kernel."""
        b, iy, j = place_in(cuda.grid(1), span)
        if b < field.shape[0]:
            gy, gx, ix = site_of(iy, j, origins[b, 0], origins[b, 1], ly, lx, colour)
            if span[4] <= ix < span[5]:
                q, y, x = states, iy + halo, ix + halo
                near = np.int64(field[b, y - 1, x]) - lowest
                near = near * q + field[b, y, x - 1] - lowest
                near = near * q + field[b, y, x + 1] - lowest
                near = near * q + field[b, y + 1, x] - lowest
                own = np.int64(field[b, y, x]) - lowest
                for k in range(passes):
                    word = word_of(key[0], key[1] + members[b], first + np.uint64(k), gy, gx)
                    # The simulator's rules return Python ints.
                    value = np.uint64(word) >> np.uint64(1)
                    at = (near * around + own * by_own) * q
                    if value < thresholds[at + q - 1]:
                        new = np.int64(0)
                        while value >= thresholds[at + new]:
                            new += 1
                        if new != own:
                            cuda.atomic.add(counts, (b, 0), 1)
                        own = new
                field[b, y, x] = own + lowest

    return update
