"""Numba's CUDA simulator as the suite uses it: what threads of a block have in common."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpiflow.core.device import CudaKernel, Device, simulated, to_bare

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not simulated(), reason="of the simulator alone"),
]
SOME = 8


@CudaKernel
def _sum_of_some(cuda: Any) -> Callable[..., None]:
    bare = to_bare()

    def sum_of_some(out: Any) -> None:
        out, me, threads = bare(out), cuda.threadIdx.x, cuda.blockDim.x
        shared = cuda.shared.array(SOME, np.int64)
        for i in range(me, SOME, threads):
            shared[i] = i + 1
        cuda.syncthreads()
        for i in range(me, SOME, threads):
            for k in range(SOME):
                out[cuda.blockIdx.x, i] += shared[k]

    return sum_of_some


def test_threads_that_come_together_share_one_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the first thread a while to make it, in which the others come."""
    empty = np.empty

    def slow(*given: Any) -> np.ndarray:
        time.sleep(0.01)
        return empty(*given)

    device = Device("cuda")
    out = device.put(np.zeros((2, SOME), np.int64))
    monkeypatch.setattr(np, "empty", slow)
    _sum_of_some.launch_blocks(2, out)
    monkeypatch.undo()
    assert (device.get(out) == SOME * (SOME + 1) // 2).all()
