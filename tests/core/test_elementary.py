"""Elementary functions that vectorise, against those of the C library."""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.elementary import logarithm, turned


@kernel
def _fill(x: np.ndarray, u: np.ndarray, log: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> None:
    for i in range(x.size):
        log[i] = logarithm(x[i])
        cos[i], sin[i] = turned(u[i])


def test_they_are_right_to_the_last_places() -> None:
    """Over all magnitudes, around 1, and at the borders of quarters; whatever the lane."""
    rng = np.random.default_rng(0)
    edges = np.arange(9) / 8.0
    near = np.concatenate([edges, edges + 1e-12, edges - 1e-12])
    u = np.concatenate([near[(near > 0) & (near <= 1)], rng.random(4000)])
    x = np.exp(rng.uniform(-700, 700, u.size))
    x[:1000] = rng.uniform(0.5, 2.0, 1000)
    x[0] = 1.0
    log, cos, sin = (np.empty_like(u) for _ in range(3))
    _fill(x, u, log, cos, sin)
    assert np.all(np.abs(log - np.log(x)) <= 2e-16 + 4e-16 * np.abs(np.log(x)))
    angle = 2.0 * np.pi * (u % 0.25)  # the rest of a quarter is exact
    quarter = np.floor(4.0 * u).astype(int) % 4
    right = np.stack([np.cos(angle), -np.sin(angle), -np.cos(angle), np.sin(angle)])
    each = np.arange(u.size)
    np.testing.assert_allclose(cos, right[quarter, each], atol=4e-16)
    np.testing.assert_allclose(sin, right[(quarter + 3) % 4, each], atol=4e-16)
    alone = [np.empty(1) for _ in range(3)]
    _fill(x[7:8], u[7:8], *alone)
    assert [a[0] for a in alone] == [log[7], cos[7], sin[7]]
