r"""Fourier transforms of fields that live on a device.

Of the pull J*m on block means: where PyTorch computes on the same GPU, its transforms are made
there, and nothing leaves it: the law of the CPU and not its bits, as the order of sums is another.
Else, and where one field is cut over several ranks, the means go to the host and the pull comes
back, by the transforms of the CPU: its bits. MPIFLOW_HOST_TRANSFORMS=1 asks for that. Mesoscopic
equations, which have no noise and steps under control, are solved by PyTorch as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.device import Device, cuda, simulated

#: The environment variable that has transforms made on the host.
HOST = "MPIFLOW_HOST_TRANSFORMS"


def pulls(
    device: Device,
    symbol: np.ndarray,
    shape: tuple[int, int],
    field: np.ndarray,
    whole: bool,
    on_host: Callable[[np.ndarray], np.ndarray],
) -> Callable[[Any], Any]:
    """What gives u = J*m + h of means on a device, both (B, ny, nx) there.

    Parameters
    ----------
    symbol : of J, (ny, nx // 2 + 1), or a part of it
    field : h, a number or (ny, nx)
    whole : this rank has whole fields, and all of the symbol
    on_host : the same of arrays on the host
    """
    if whole and torch_has(device) and os.environ.get(HOST, "0") in ("", "0"):
        import torch

        there = torch_device(device)
        make = TorchPulls(there, symbol, shape, field)

        return lambda m: cuda().as_cuda_array(make(torch.as_tensor(m, device=there)))
    return lambda m: device.put(on_host(device.get(m)))


def torch_has(device: Device) -> bool:
    """Whether PyTorch is here and computes on the GPU that the device is."""
    if simulated() or not device.is_cuda:
        return False
    try:
        import torch
    except ImportError:
        return False
    if not torch.cuda.is_available():
        return False
    torch.cuda.set_device(cuda().get_current_device().id)
    return True


def torch_device(device: Device) -> Any:
    """Where PyTorch computes what is on a device; in the simulator, on the CPU. None: nowhere."""
    if not simulated() and not torch_has(device):
        return None
    try:
        import torch
    except ImportError:
        return None
    return torch.device("cpu") if simulated() else torch.device("cuda", torch.cuda.current_device())


class TorchGrid:
    """The transforms of :class:`~mpiflow.core.slabs.Slabs` of a field on one rank, by PyTorch."""

    def __init__(self, shape: tuple[int, int]) -> None:
        import torch

        self._fft, self.shape = torch.fft, shape

    def forward(self, field: Any) -> Any:
        """(ny, nx) to (ny, nx // 2 + 1)."""
        return self._fft.rfft2(field)

    def backward(self, spectrum: Any, overwrite: bool = False) -> Any:
        """The inverse."""
        return self._fft.irfft2(spectrum, self.shape)

    def largest(self, value: float) -> float:
        """Of one rank."""
        return value


class TorchPulls:
    """J*m + h by PyTorch, in double precision."""

    def __init__(
        self, there: Any, symbol: np.ndarray, shape: tuple[int, int], field: np.ndarray
    ) -> None:
        import torch

        self._fft, self._shape = torch.fft, shape
        self._symbol = torch.as_tensor(symbol, dtype=torch.float64, device=there)
        self._field = torch.as_tensor(field, dtype=torch.float64, device=there)

    def __call__(self, m: Any) -> Any:
        """Of a tensor (B, ny, nx), a new one."""
        spectrum = self._fft.rfft2(m)
        spectrum *= self._symbol
        u = self._fft.irfft2(spectrum, self._shape)
        u += self._field
        return u.contiguous()
