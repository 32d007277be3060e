"""Gaussian elimination of a banded matrix with partial pivoting, by rows.

The same factors as LAPACK's gbtrf finds, in a kernel, so that whole steps of an integrator need no
interpreter. For bands of some 20 entries, as here, contiguous rows are also faster than LAPACK's
columns, each of which is a call of BLAS.

A matrix (n, n) with ``half`` entries on each side of the diagonal is kept as (n, 3 half + 1)
float64: entry (i, j) is at [i, j - i + half]. The last ``half`` columns take what pivoting fills
in, and need not be set.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import kernel


@kernel
def factor(band: np.ndarray, half: int, lower: np.ndarray, pivots: np.ndarray) -> bool:
    """Replace a matrix by its upper factor. False if it is singular or no number.

    Parameters
    ----------
    band : (n, 3 half + 1) or wider
    half : entries on each side of the diagonal
    lower : (n, half) or wider, takes the lower factor by columns
    pivots : (2, n) int64, takes the row that was exchanged with each, and the length of its rows
    """
    n, stride = band.shape
    entries = band.reshape(band.size)  # of one row after the other: indices that are quick to find
    band[:, 2 * half + 1 :] = 0.0
    reach = 0  # how far right of the diagonal rows go so far that were brought up
    for k in range(n):
        rows = min(half, n - 1 - k)
        best, pivot = abs(band[k, half]), 0
        for r in range(1, rows + 1):
            size = abs(band[k + r, half - r])
            if size > best:
                best, pivot = size, r
        if not best > 0.0:
            return False
        reach = max(reach - 1, half + pivot)
        width = min(reach, n - 1 - k) + 1
        pivots[0, k], pivots[1, k] = k + pivot, width
        if pivot:
            for c in range(width):
                upper = band[k, half + c]
                band[k, half + c] = band[k + pivot, half - pivot + c]
                band[k + pivot, half - pivot + c] = upper
        inverse = 1.0 / band[k, half]
        above = entries[k * stride + half : k * stride + half + width]
        for r in range(1, rows + 1):
            at = (k + r) * stride + half - r
            if entries[at] != 0.0:
                ratio = entries[at] * inverse
                row = entries[at : at + width]
                for c in range(1, width):
                    row[c] -= ratio * above[c]
                row[0] = ratio
            lower[k, r - 1] = entries[at]
    return True


@kernel
def solve(
    band: np.ndarray, half: int, lower: np.ndarray, pivots: np.ndarray, right: np.ndarray
) -> None:
    """Replace the right side (n,) by the solution, with the factors of :func:`factor`."""
    n = band.shape[0]
    for k in range(n):
        pivot = pivots[0, k]
        value = right[pivot]
        right[pivot] = right[k]
        right[k] = value
        below = right[k + 1 : min(k + half, n - 1) + 1]
        for r in range(below.size):
            below[r] -= lower[k, r] * value
    for k in range(n - 1, -1, -1):
        width = pivots[1, k]
        value = right[k]
        even = odd = 0.0  # two sums, because each addition waits for the one before
        for c in range(1, width - 1, 2):
            even += band[k, half + c] * right[k + c]
            odd += band[k, half + c + 1] * right[k + c + 1]
        if width % 2 == 0:
            even += band[k, half + width - 1] * right[k + width - 1]
        right[k] = (value - (even + odd)) / band[k, half]
