"""Kernels of field equations as sums of fixed ones, J(x) = sum_p w_p phi_p(x).

They lie on a periodic grid of M x M points and are even under all symmetries of the square:

- ``free``: one weight for each orbit of offsets up to ``radius`` points along an axis;
- ``radial``: piecewise linear in the distance, knots at 0, 1, ..., and 0 beyond ``radius``;
- ``spectral``: its transform is piecewise linear in the wave number, knots at each 2 pi / M.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

KernelKind = Literal["free", "radial", "spectral"]


def kernel_basis(kind: KernelKind, points: int, radius: float) -> np.ndarray:
    """The kernels phi_p, (P, M, M) float64, with x = 0 at [0, 0]; see the module.

    Parameters
    ----------
    points : M
    radius : in points; nothing to ``spectral``, which has no reach
    """
    line = np.minimum(np.arange(points), points - np.arange(points))
    far, near = np.maximum.outer(line, line), np.minimum.outer(line, line)
    distance = np.hypot(far, near)
    if kind == "free":
        orbit = np.where(far <= radius, far * points + near, -1)
        labels = np.unique(orbit[orbit >= 0])
        return np.array([orbit == label for label in labels], float)
    hats = np.maximum(0.0, 1.0 - abs(distance - np.arange(points)[:, None, None]))
    if kind == "radial":
        return hats[: int(np.ceil(radius))]
    return np.fft.ifft2(hats[hats.any(axis=(1, 2))]).real
