"""The banded elimination against LAPACK."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import solve_banded

from mpiflow.solvers.binary_chain.banded import factor, solve


def banded(n: int, half: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random matrix whose diagonal is no pivot, in our form and in LAPACK's."""
    ours, theirs = np.full((n, 3 * half + 1), np.nan), np.zeros((2 * half + 1, n))
    ours[:, : 2 * half + 1] = 0.0
    for i in range(n):
        for j in range(max(0, i - half), min(n, i + half + 1)):
            ours[i, j - i + half] = theirs[half + i - j, j] = rng.normal()
    return ours, theirs


@pytest.mark.parametrize(("n", "half"), [(1, 0), (7, 6), (40, 3), (96, 17)])
def test_solutions_are_those_of_lapack(n: int, half: int) -> None:
    rng = np.random.default_rng(n)
    ours, theirs = banded(n, half, rng)
    right = rng.normal(size=n)
    expected = solve_banded((half, half), theirs, right)
    lower, pivots = np.full((n, half), np.nan), np.empty((2, n), dtype=np.int64)
    assert factor(ours, half, lower, pivots)
    if n > 7:
        assert (pivots[0] != np.arange(n)).any()  # rows were exchanged
    for _ in range(2):  # factors serve again
        found = right.copy()
        solve(ours, half, lower, pivots, found)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("fault", [0.0, np.nan])
def test_a_singular_matrix_has_no_factors(fault: float) -> None:
    ours, _ = banded(9, 2, np.random.default_rng(1))
    ours[4, :5] = fault
    assert not factor(ours, 2, np.empty((9, 2)), np.empty((2, 9), dtype=np.int64))
