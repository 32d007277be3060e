"""Where the sites of one colour are, and their words: what plain passes of all spin rules share.

A pass draws one Threefry call for the two rows ``2r`` and ``2r + 1`` of a compressed column
``x // 2``: its two words serve the even and the odd row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mpiflow.core.device import CudaKernel, kernel, rule, split, unravel
from mpiflow.core.noise import Word, site_counter, threefry


@kernel
def draw_words(
    key: tuple[Word, Word],
    step: Word,
    gy: int,
    gx: int,
    width: int,
    even: np.ndarray,
    odd: np.ndarray,
) -> None:
    """Words of the sites from global column ``gx`` on: of the row ``gy`` and its partner."""
    row, first = np.uint64(gy >> 1) << np.uint64(32), gx >> 1
    for i in range(((gx + width - 1) >> 1) - first + 1):
        even[i], odd[i] = threefry(key[0], key[1], step, row | np.uint64(first + i))


# -- for CUDA: a thread for each site of the colour ------------------------------------------------


@rule
def word_of(k0: Word, k1: Word, step: Word, gy: int, gx: int) -> Word:
    """The word of one global site."""
    even, odd = threefry(k0, k1, step, site_counter(gy >> 1, gx >> 1))
    return odd if gy & 1 else even


#: Of rows and columns of a box: the first row, rows; the first site of a colour in a row, sites;
#: the first column and the one after the last.
Span = tuple[int, int, int, int, int, int]


def span_of(rows: slice, columns: slice) -> Span:
    """What kernels need to know of a part of a box."""
    first, last = columns.start // 2, (columns.stop + 1) // 2
    count = (rows.stop - rows.start) * (columns.stop > columns.start)
    return rows.start, count, first, last - first, columns.start, columns.stop


@rule
def place_in(thread: int, span: Span) -> tuple[int, int, int]:
    """Box, row and number in the row of the site of a thread that works on a part of boxes."""
    b, iy, j = unravel(thread, span[1], span[3])
    return b, span[0] + iy, span[2] + j


@rule
def site_of(
    iy: int, j: int, origin_y: int, origin_x: int, ly: int, lx: int, colour: int
) -> tuple[int, int, int]:
    """Global row and column of site j of a colour in a box's row, and its column in the box."""
    # Remainders of 32 bits, of numbers that are not negative: origins are -ly, -lx or above.
    _, gy = split(origin_y + ly + iy, ly)
    _, left = split(origin_x + lx, lx)
    ix = 2 * j + ((left + gy + colour) & 1)
    gx = left + ix
    return gy, gx - lx if gx >= lx else gx, ix


def launch_on(
    kernel: CudaKernel,
    batch: int,
    arguments: Sequence[Any],
    rows: slice,
    columns: slice,
    stream: Any,
) -> None:
    """Run a kernel for the sites of a colour in a part of each box, which it is given last."""
    span = span_of(rows, columns)
    kernel.launch(batch * span[1] * span[3], *arguments, span, stream=stream)
