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
def factor(band: np.ndarray, half: int, pivots: np.ndarray) -> bool:
    """Replace a matrix by its factors. False if it is singular or no number.

    Parameters
    ----------
    band : (n, 3 half + 1) or wider
    half : entries on each side of the diagonal
    pivots : (n,) int64, takes the row that was exchanged with each
    """
    n = band.shape[0]
    band[:, 2 * half + 1 :] = 0.0
    reach = 0  # the last column, from the diagonal, in which any row of U so far has an entry
    for k in range(n):
        rows = min(half, n - 1 - k)
        best, pivot = abs(band[k, half]), 0
        for r in range(1, rows + 1):
            size = abs(band[k + r, half - r])
            if size > best:
                best, pivot = size, r
        pivots[k] = k + pivot
        if not best > 0.0:
            return False
        reach = max(reach - 1, half + pivot)
        width = min(reach, n - 1 - k) + 1
        if pivot:
            for c in range(width):
                upper = band[k, half + c]
                band[k, half + c] = band[k + pivot, half - pivot + c]
                band[k + pivot, half - pivot + c] = upper
        inverse = 1.0 / band[k, half]
        above = band[k, half : half + width]
        for r in range(1, rows + 1):
            if band[k + r, half - r] != 0.0:
                ratio = band[k + r, half - r] * inverse
                row = band[k + r, half - r : half - r + width]
                for c in range(1, width):
                    row[c] -= ratio * above[c]
                row[0] = ratio
    return True


@kernel
def solve(band: np.ndarray, half: int, pivots: np.ndarray, right: np.ndarray) -> None:
    """Replace the right side (n,) by the solution, with the factors of :func:`factor`."""
    n = band.shape[0]
    for k in range(n):
        pivot = pivots[k]
        value = right[pivot]
        right[pivot] = right[k]
        right[k] = value
        for r in range(1, min(half, n - 1 - k) + 1):
            right[k + r] -= band[k + r, half - r] * value
    for k in range(n - 1, -1, -1):
        width = min(2 * half, n - 1 - k)
        even = odd = 0.0  # two sums, because each addition waits for the one before
        for c in range(1, width, 2):
            even += band[k, half + c] * right[k + c]
            odd += band[k, half + c + 1] * right[k + c + 1]
        if width % 2:
            even += band[k, half + width] * right[k + width]
        right[k] = (right[k] - (even + odd)) / band[k, half]
