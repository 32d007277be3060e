"""Noise of rollouts where networks compute: the numbers of the counters, made on a GPU for it.

CUDA: simulated and assembled, not yet run on a GPU (docs/hpc.md).
"""

from __future__ import annotations

import numpy as np
import torch

from mpiflow.core import device as core
from mpiflow.core.device_noise import draw_normals
from mpiflow.core.errors import InputError
from mpiflow.core.noise import normals, stream_key


class Normals:
    """Standard normals of some members, step by step, where they are used.

    On the CPU those of :func:`mpiflow.core.noise.normals`. On a GPU a kernel draws from the same
    words, and differs in the last places: by the logarithm and the angles of
    :mod:`mpiflow.core.functions`. Without a compiler for it they come from the CPU.
    """

    def __init__(
        self,
        seed: int,
        stream: str,
        members: np.ndarray,
        components: int,
        there: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._key, self._stream, self._seed = stream_key(seed, stream), stream, seed
        self._members = np.asarray(members, np.uint64)
        self._there, self._dtype, self._components = there, dtype, components
        shape = len(members), components
        self._drawn: torch.Tensor | None = None
        if there.type == "cuda" and _compiles():
            module = core.cuda()
            module.select_device(there.index or 0)
            self._drawn = torch.empty(shape, dtype=torch.float64, device=there)
            self._keys = module.to_device(self._members)
            self._out = module.as_cuda_array(self._drawn)

    def at(self, step: int) -> torch.Tensor:
        """(members, components) of a step; to be used before the next is asked for."""
        if self._drawn is None:
            about = self._seed, self._stream, self._members, step, self._components
            values = normals(*about)
            return torch.as_tensor(values, dtype=self._dtype).to(self._there)
        draw_normals(self._key, self._keys, step, self._out)
        return self._drawn.to(self._dtype)


def _compiles() -> bool:
    """Whether Numba has what it takes to make kernels for the GPU that PyTorch sees."""
    try:
        return bool(core.cuda().is_available())
    except InputError:
        return False
