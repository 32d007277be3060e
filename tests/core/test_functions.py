"""Elementary functions against long doubles, where they are meant to be used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpiflow.core import functions
from mpiflow.core.device import kernel

RNG = np.random.default_rng(1)
LONG = np.longdouble


@kernel
def _all(x: np.ndarray, out: np.ndarray) -> None:
    for i in range(x.shape[1]):
        out[0, i] = functions.exp(x[0, i])
        out[1, i] = functions.log(x[1, i])
        out[2, i] = functions.artanh(x[2, i])
        out[3, i] = functions.tanh(x[3, i])
        out[4, i] = functions.sine(x[4, i])
        out[5, i] = functions.cosine_of_root(x[5, i])
        out[6, i] = functions.sinc_of_root(x[6, i])
        out[7, i] = functions.log_of_rest(x[7, i])
        out[8, i] = functions.decay(x[8, i])


#: Reference, arguments, and the largest error: relative to the value, or to 1 if that is more.
CASES: list[tuple[Callable[..., Any], np.ndarray, float, bool]] = [
    (np.exp, RNG.uniform(-708, 709, 3000), 4e-16, True),
    (np.log, np.exp(RNG.uniform(-700, 700, 3000)), 3e-16, True),
    (np.arctanh, np.tanh(RNG.uniform(-18, 18, 3000)), 2e-15, False),
    (np.tanh, RNG.standard_cauchy(3000), 3e-16, False),
    (np.sin, RNG.uniform(-np.pi / 2, np.pi / 2, 3000), 3e-16, True),
    (lambda y: np.cos(np.sqrt(y)), RNG.uniform(0, 0.62, 3000), 3e-16, True),
    (lambda y: np.sin(np.sqrt(y)) / np.sqrt(y), RNG.uniform(1e-9, 0.5, 3000), 3e-16, True),
    (lambda q: np.log1p(-q), 0.5 * RNG.uniform(size=3000) ** 20, 5e-16, True),
    (lambda x: -np.expm1(-x) / x, np.exp(RNG.uniform(-30, 5, 3000)), 5e-16, True),
]


@pytest.mark.skipif(np.finfo(LONG).eps > 1e-18, reason="long doubles are no longer than doubles")
def test_they_are_right_to_a_few_units_in_the_last_place() -> None:
    x = np.array([case[1] for case in CASES])
    out = np.empty_like(x)
    _all(x, out)
    for row, (reference, given, most, relative) in enumerate(CASES):
        exact = reference(given.astype(LONG))
        error = abs(out[row] - exact) / (abs(exact) if relative else 1)
        assert error.max() < most, (row, given[error.argmax()], error.max())


def test_ends() -> None:
    x = np.array(
        [[-1e4, -708.0, 0.0, 1e4], [1.0, 2.0, 0.5, 1e-300], [0.0, 1 - 2.0**-53, -0.5, 0.5],
         [0.0, 1e3, -1e3, 700.0], [0.0, np.pi / 2, -np.pi / 2, 1.0], [0.0, 0.5, 0.1, 0.2],
         [0.0, 0.5, 0.1, 0.2], [0.0, 0.5, 0.1, 0.2], [0.0, 0.5, 1e4, 0.2]]
    )  # fmt: skip
    out = np.empty_like(x)
    _all(x, out)
    assert out[0, 0] == out[0, 1] == pytest.approx(np.exp(-708.0), rel=1e-15)
    assert out[0, 2] == 1.0
    assert np.isfinite(out[0, 3])
    assert out[1, 0] == 0.0
    assert out[2, 0] == 0.0
    assert out[2, 2] == -out[2, 3]
    assert list(out[3]) == [0.0, 1.0, -1.0, 1.0]
    assert out[4, 0] == 0.0
    assert out[5, 0] == out[6, 0] == out[8, 0] == 1.0
    assert out[7, 0] == 0.0
    assert out[8, 2] == 1e-4


@kernel
def _turn(u: np.ndarray, out: np.ndarray) -> None:
    for i in range(u.size):
        out[0, i], out[1, i] = functions.turned(u[i])


def test_turns_at_the_borders_of_quarters_and_between() -> None:
    edges = np.arange(9) / 8.0
    near = np.concatenate([edges, edges + 1e-12, edges - 1e-12])
    u = np.concatenate([near[(near >= 0) & (near <= 1)], RNG.random(4000)])
    out = np.empty((2, u.size))
    _turn(u, out)
    angle, quarter = 2.0 * np.pi * (u % 0.25), np.floor(4.0 * u).astype(int) % 4  # exact rests
    right = np.stack([np.cos(angle), -np.sin(angle), -np.cos(angle), np.sin(angle)])
    each = np.arange(u.size)
    np.testing.assert_allclose(out[0], right[quarter, each], atol=4e-16)
    np.testing.assert_allclose(out[1], right[(quarter + 3) % 4, each], atol=4e-16)
