"""Where networks compute: PyTorch's side of :mod:`mpiflow.core.gpu`.

Networks live on the CPU, and go to the GPU of their rank only while they are trained or run: what
is saved knows no device. On the CPU our own kernels take the place of PyTorch where they know a
network, with bits that are promised. On a GPU PyTorch computes, by its order of sums: the same law,
and not the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from mpiflow.core import gpu
from mpiflow.core.device import simulated
from mpiflow.core.errors import InputError

if TYPE_CHECKING:
    from mpi4py import MPI

CPU = torch.device("cpu")
#: Share of a GPU's free memory that training data may take; more of it goes there in batches.
SHARE = 0.5


def gpus() -> list[str]:
    """Identities of the GPUs that PyTorch may use. None in Numba's simulator, where its part of the
    work stays on the CPU.

    Raises
    ------
    InputError : there are none
    """
    if simulated():
        return []
    if not torch.cuda.is_available():
        raise InputError(
            "device",
            "cuda",
            f"a GPU that PyTorch {torch.__version__} can see",
            remedy(),
        )
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


def remedy() -> str:
    """What to do where PyTorch sees no GPU."""
    if torch.version.cuda is None:
        return "Use --device cpu, or install PyTorch's CUDA build (docs/install.md)."
    return (
        f"Use --device cpu, or a driver that knows CUDA {torch.version.cuda} (nvidia-smi says "
        "which it knows)."
    )


def here() -> torch.device:
    """Where networks of this rank compute now."""
    choice = gpu.chosen()
    if not choice.is_cuda or simulated():
        return CPU
    torch.cuda.set_device(choice.gpu)  # for NCCL, and for what names no number
    return torch.device("cuda", choice.gpu)


def learning_on(name: str, comm: MPI.Intracomm) -> AbstractContextManager[gpu.Choice]:
    """:func:`mpiflow.core.gpu.computing_on` of what needs PyTorch alone. Collective."""
    return gpu.computing_on(name, comm, (gpus,))


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """A network there as long as this lasts, and then back on the CPU."""
    if device == CPU:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(CPU)


def kept_near(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Training data on a device if they fit there, else where they are."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if sum(t.nbytes for t in tensors) > SHARE * free:
            return list(tensors)
    return [t.to(device) for t in tensors]


def backend(device: torch.device, shared: bool) -> str:
    """What carries gradients between ranks: NCCL between GPUs, gloo between CPUs.

    NCCL refuses two ranks on one GPU; gloo carries what lies there through host memory.
    """
    nccl = device.type == "cuda" and not shared and torch.distributed.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if nccl else "gloo"
