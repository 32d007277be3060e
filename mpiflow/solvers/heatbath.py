"""Kernels of one heat-bath pass over one sublattice: CPU rows, CPU lanes, CUDA.

All three resample the same sites with the same words, so they agree bit for bit:

* ``rows`` runs along the rows of one large box (a rank's tile);
* ``lanes`` runs along a batch of equal small boxes, one box a lane;
* ``cuda`` gives every site a thread.

A pass draws one Threefry call for the two rows ``2r`` and ``2r + 1`` of a
compressed column ``x // 2``: its two words serve the even and the odd row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.device import CudaKernel, kernel
from mpiflow.noise import threefry
from mpiflow.systems.ising import resample

#: Boxes that ``lanes`` handles together: enough to hide the cost of a call for each
#: site, few enough for the cache (measured: flat from 512 to 2048 for 16^2 and 64^2).
LANES = 1024
#: Largest padded box for ``lanes``, in sites.
LANE_SITES = 100**2


@kernel
def _fill_words(
    key: tuple[np.uint64, np.uint64],
    step: np.uint64,
    row: np.uint64,
    first: int,
    count: int,
    even: np.ndarray,
    odd: np.ndarray,
) -> None:
    """Words of `count` sites of an even row and of the odd row below it."""
    for i in range(count):
        even[i], odd[i] = threefry(key[0], key[1], step, row | np.uint64(first + i))


@kernel
def _update_row(
    north: np.ndarray,
    row: np.ndarray,
    south: np.ndarray,
    count: int,
    words: np.ndarray,
    up: tuple[np.uint64, ...],
    attempt: np.uint64,
) -> np.int64:
    """Resample the sites 1, 3, 5, ... of `row`; returns how many flipped."""
    flips = np.int64(0)
    for j in range(count):
        k = north[2 * j + 1] + south[2 * j + 1] + row[2 * j] + row[2 * j + 2]
        spin = row[2 * j + 1]
        new = resample(spin, k, words[j], up, attempt)
        row[2 * j + 1] = new
        flips += np.int64(new != spin)
    return flips


@kernel
def update_rows(
    field: np.ndarray,
    halo: int,
    origins: np.ndarray,
    members: np.ndarray,
    ly: int,
    lx: int,
    key: np.ndarray,
    step: np.uint64,
    colour: int,
    up: tuple[np.uint64, ...],
    attempt: np.uint64,
    flips: np.ndarray,
) -> None:
    """Resample one colour of every box in place; adds the flips of each box."""
    ny, nx = field.shape[1] - 2 * halo, field.shape[2] - 2 * halo
    words = np.empty((2, nx // 2 + 2), np.uint64)
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
                    row = np.uint64(filled) << np.uint64(32)
                    count = ((gx + width - 1) >> 1) - first + 1
                    _fill_words(box_key, step, row, first, count, words[0], words[1])
                skip = (gx + gy + colour) & 1
                start = ix + skip + halo - 1
                flips[b] += _update_row(
                    field[b, iy + halo - 1, start:],
                    field[b, iy + halo, start:],
                    field[b, iy + halo + 1, start:],
                    (width - skip + 1) // 2,
                    words[gy & 1, ((gx + skip) >> 1) - first :],
                    up,
                    attempt,
                )
            ix += width


@kernel
def _lane_words(
    k0: np.uint64,
    keys: np.ndarray,
    step: np.uint64,
    origins: np.ndarray,
    y: int,
    x: int,
    ly: int,
    lx: int,
    even: np.ndarray,
    odd: np.ndarray,
) -> None:
    """Words of box coordinates (y, x) in every lane."""
    for b in range(keys.size):
        gy = origins[0, b] + y
        gx = origins[1, b] + x
        gy = gy - ly if gy >= ly else gy
        gx = gx - lx if gx >= lx else gx
        counter = (np.uint64(gy >> 1) << np.uint64(32)) | np.uint64(gx >> 1)
        even[b], odd[b] = threefry(k0, keys[b], step, counter)


@kernel
def _update_lanes(
    north: np.ndarray,
    south: np.ndarray,
    west: np.ndarray,
    east: np.ndarray,
    centre: np.ndarray,
    words: np.ndarray,
    up: tuple[np.uint64, ...],
    attempt: np.uint64,
    flips: np.ndarray,
) -> None:
    for b in range(centre.size):
        k = north[b] + south[b] + west[b] + east[b]
        spin = centre[b]
        new = resample(spin, k, words[b], up, attempt)
        centre[b] = new
        flips[b] += np.int64(new != spin)


@kernel
def update_lanes(
    field: np.ndarray,
    halo: int,
    origins: np.ndarray,
    keys: np.ndarray,
    ly: int,
    lx: int,
    k0: np.uint64,
    step: np.uint64,
    colour: int,
    up: tuple[np.uint64, ...],
    attempt: np.uint64,
    flips: np.ndarray,
) -> None:
    """The same pass for a batch of boxes with the box index last: field is (H, W, B).

    All origins must agree modulo 2, so that one site has one colour in all lanes.
    """
    ny, nx = field.shape[0] - 2 * halo, field.shape[1] - 2 * halo
    py, px = origins[0, 0] & 1, origins[1, 0] & 1
    words = np.empty((2, keys.size), np.uint64)
    for y in range(-py, ny, 2):
        for x in range(-px, nx, 2):
            _lane_words(k0, keys, step, origins, y, x, ly, lx, words[0], words[1])
            for odd in range(2):
                iy, ix = y + odd, x + ((colour + odd) & 1)
                if 0 <= iy < ny and 0 <= ix < nx:
                    i, j = iy + halo, ix + halo
                    _update_lanes(
                        field[i - 1, j],
                        field[i + 1, j],
                        field[i, j - 1],
                        field[i, j + 1],
                        field[i, j],
                        words[odd],
                        up,
                        attempt,
                        flips,
                    )


@kernel
def wrap_lanes(field: np.ndarray, halo: int) -> None:
    """Close every box of a (H, W, B) field on itself."""
    ny, nx = field.shape[0] - 2 * halo, field.shape[1] - 2 * halo
    for i in range(halo):
        field[i] = field[i + ny]
        field[i + ny + halo] = field[i + halo]
    for j in range(halo):
        field[:, j] = field[:, j + nx]
        field[:, j + nx + halo] = field[:, j + halo]


@CudaKernel
def update_cuda(cuda: Any) -> Callable[..., None]:
    def update(
        field: Any,
        halo: int,
        origins: Any,
        members: Any,
        ly: int,
        lx: int,
        key: Any,
        step: Any,
        colour: int,
        up: Any,
        attempt: Any,
        flips: Any,
    ) -> None:
        """One thread for each site of the colour; same bits as the CPU kernel."""
        i = cuda.grid(1)
        ny, nx = field.shape[1] - 2 * halo, field.shape[2] - 2 * halo
        half = (nx + 1) // 2
        if i < field.shape[0] * ny * half:
            b, iy, j = i // (ny * half), i // half % ny, i % half
            gy = (origins[b, 0] + iy) % ly
            ix = 2 * j + ((origins[b, 1] % lx + gy + colour) & 1)
            if ix < nx:
                gx = (origins[b, 1] + ix) % lx
                counter = (np.uint64(gy >> 1) << np.uint64(32)) | np.uint64(gx >> 1)
                even, odd = threefry(key[0], key[1] + members[b], step, counter)
                y, x = iy + halo, ix + halo
                k = (
                    field[b, y - 1, x]
                    + field[b, y + 1, x]
                    + field[b, y, x - 1]
                    + field[b, y, x + 1]
                )
                spin = field[b, y, x]
                word = np.uint64(odd if gy & 1 else even)  # the simulator returns Python ints
                new = resample(spin, k, word, up, attempt)
                if new != spin:
                    field[b, y, x] = new
                    cuda.atomic.add(flips, b, 1)

    return update
