"""Standard normals of the counters of :mod:`mpiflow.core.noise`, made on a CUDA device.

CUDA: simulated and assembled, not yet run on a GPU (docs/hpc.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.device import CudaKernel, rule, split
from mpiflow.core.functions import log, turned
from mpiflow.core.noise import Word, threefry, to_unit


def draw_normals(key: np.ndarray, members: Any, step: int, out: Any) -> None:
    """Those of :func:`mpiflow.core.noise.normals`, to some units in the last place.

    Parameters
    ----------
    key : of the stream, (2,) uint64 on the host
    members : (B,) uint64, on the device
    out : (B, components) float64 there
    """
    count, components = out.shape
    threads = count * ((components + 1) // 2)
    _draw.launch(threads, key[0], key[1], members, np.uint64(step), out)


@rule
def pair(word: Word, other: Word) -> tuple[float, float]:
    """Two independent standard normals, by Box and Muller."""
    radius = math.sqrt(-2.0 * log(to_unit(word)))
    along, across = turned(to_unit(other))
    return radius * along, radius * across


@CudaKernel
def _draw(cuda: Any) -> Callable[..., None]:
    def fill(k0: Any, k1: Any, members: Any, step: Any, out: Any) -> None:
        """A thread for each member and two components, side by side over components."""
        i = cuda.grid(1)
        pairs = (out.shape[1] + 1) // 2
        if i < out.shape[0] * pairs:
            b, p = split(i, pairs)
            w0, w1 = threefry(k0, k1 + members[b], step, np.uint64(p))
            first, second = pair(np.uint64(w0), np.uint64(w1))
            out[b, 2 * p] = first
            if 2 * p + 1 < out.shape[1]:
                out[b, 2 * p + 1] = second

    return fill
