"""Where a program computes: on the CPU, or each rank on a GPU of its own.

A program chooses once (:func:`choose`, or :func:`computing_on` for a part of it). Simulations and
learners that are not told otherwise follow: what has a path for GPUs goes there, all else stays on
the CPU. The same function says which GPU is a rank's for Numba's kernels and for PyTorch: both see
the same devices in the same order, of which CUDA_VISIBLE_DEVICES may leave some out.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, get_args

from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI, launched_local_rank
from mpiflow.core.parallel import agreed

#: What ``--device`` takes.
DeviceName = Literal["cpu", "cuda"]
DEVICES: tuple[str, ...] = get_args(DeviceName)
#: The same, in helps of commands.
METAVAR = "|".join(DEVICES)
#: What is known of the second, in helps too.
ON_GPUS = "cuda: simulated and assembled, not yet run on a GPU"
#: What lists the GPUs that a library sees; raises :class:`InputError` where there are none.
Lists = Callable[[], list[str]]


@dataclass(frozen=True)
class Choice:
    """Where this rank computes.

    Attributes
    ----------
    name : ``cpu`` or ``cuda``
    gpu : which of the GPUs that it sees
    sharing : how many ranks of the program compute on that one, with this rank
    shared : some GPU has several ranks
    """

    name: str = "cpu"
    gpu: int = 0
    sharing: int = 1
    shared: bool = False

    @property
    def is_cuda(self) -> bool:
        return self.name == "cuda"


#: The choice of the program, and those of its parts that run now.
_choices: list[Choice] = [Choice()]
_warned: set[str] = set()


def chosen() -> Choice:
    """Where the program computes, unless told otherwise."""
    return _choices[-1]


def choose(name: str, comm: MPI.Intracomm, needs: Sequence[Lists] = ()) -> Choice:
    """Compute there from now on. Collective.

    Parameters
    ----------
    needs : of the libraries that compute, by default Numba alone. The first one's devices are dealt

    Raises
    ------
    InputError : on all ranks: no such device, or one of them has none
    """
    _choices[-1] = resolved(name, comm, needs)
    return chosen()


@contextmanager
def computing_on(name: str, comm: MPI.Intracomm, needs: Sequence[Lists] = ()) -> Iterator[Choice]:
    """Compute there as long as this lasts, as of :func:`choose`. Collective."""
    _choices.append(resolved(name, comm, needs))
    try:
        yield chosen()
    finally:
        _choices.pop()


def resolved(name: str, comm: MPI.Intracomm, needs: Sequence[Lists] = ()) -> Choice:
    """The choice of a device on each rank, which is not made yet; as of :func:`choose`."""
    require_known(name)
    if name == "cpu":
        return Choice()
    with agreed(comm):
        seen, *_ = [need() for need in needs or (kernels,)]
    return Choice(name, *_dealt(seen, comm))


def require_known(name: str) -> None:
    """Raise :class:`InputError` for what is no name of a device."""
    if name not in DEVICES:
        raise InputError("device", name, " or ".join(map(repr, DEVICES)), "Use --device cpu.")


def of_simulation(name: str | None, comm: MPI.Intracomm, able: bool = True) -> Choice:
    """Where a simulation of some ranks computes. Collective.

    Parameters
    ----------
    name : as it was told; None: as the program has chosen, if the simulation is ``able`` to

    Raises
    ------
    InputError : on all ranks, as of :func:`choose`
    """
    if name is None:
        return chosen() if able else Choice()
    # The program knows all ranks of a machine, the simulation perhaps only its own.
    return chosen() if name == chosen().name else resolved(name, comm)


def kernels() -> list[str]:
    """Identities of the GPUs that Numba's kernels may use. None is touched.

    Raises
    ------
    InputError : there are none, and no simulator of one
    """
    from mpiflow.core import device

    device.Device("cuda")
    return device.gpus()


def _dealt(seen: list[str], comm: MPI.Intracomm) -> tuple[int, int, bool]:
    """Which of its GPUs is a rank's, how many ranks have it, whether any share one. Collective.

    Ranks of a machine that see the same devices take them in turn. Of a communicator of one the
    launcher knows which rank of the machine it is.
    """
    if comm.size == 1:
        return launched_local_rank() % max(1, len(seen)), 1, False
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    everyone = node.allgather(seen)
    own, number = everyone[: node.rank].count(seen) % max(1, len(seen)), shared_devices(everyone)
    sharing = _taken(everyone).count(seen[own]) if seen else 1
    node.Free()
    crowds = [(size, few) for size, few in comm.allgather((len(everyone), number)) if few]
    if crowds and comm.rank == 0:
        _warn_of(*max(crowds))
    return own, sharing, bool(crowds)


def _warn_of(ranks: int, number: int) -> None:
    """Once, unless MPIFLOW_SHARE_GPU says that it is meant so."""
    text = f"{ranks} ranks of a machine share {number} GPU{'s' * (number > 1)}"
    if text in _warned or os.environ.get("MPIFLOW_SHARE_GPU", "0") not in ("", "0"):
        return
    _warned.add(text)
    warnings.warn(
        f"{text}, and wait for one another there: start {number} on a machine, or set "
        "MPIFLOW_SHARE_GPU=1 to share without this warning", UserWarning, stacklevel=4,
    )  # fmt: skip


def shared_devices(everyone: list[list[str]]) -> int:
    """Number of devices of a machine if its ranks must share any, else 0.

    Parameters
    ----------
    everyone : devices that each rank sees. A launcher may show each rank its own only.
    """
    taken = _taken(everyone)
    return len({d for devices in everyone for d in devices}) if len(set(taken)) < len(taken) else 0


def _taken(everyone: list[list[str]]) -> list[str]:
    """The device of each rank that sees any, in turn of those that see the same."""
    return [
        devices[everyone[:rank].count(devices) % len(devices)]
        for rank, devices in enumerate(everyone)
        if devices
    ]


def memory(number: int = 0) -> int | None:
    """Bytes of memory of one of the GPUs that this process sees; None where there is none.

    The driver is asked, which takes no memory there.
    """
    total, handle = ctypes.c_size_t(), ctypes.c_int()
    with suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(handle), number)
            or driver.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
        )
        return None if failed else total.value
    return None


def mpi_takes_device_memory() -> bool:
    """Whether messages of a CUDA field go to MPI as they are on the GPU, not by way of the host.

    Where MPI says that it can; MPIFLOW_CUDA_AWARE_MPI is 0 or 1 to decide it otherwise. In the
    simulator only if that is 1.

    Raises
    ------
    InputError : the variable is something else
    """
    said = os.environ.get("MPIFLOW_CUDA_AWARE_MPI", "")
    if said not in ("", "0", "1"):
        raise InputError("MPIFLOW_CUDA_AWARE_MPI", said, "0 or 1", "Unset it to let MPI say.")
    from mpiflow.core.device import simulated

    return said == "1" if said or simulated() else cuda_aware_mpi() is True


def cuda_aware_mpi() -> bool | None:
    """Whether MPI reads and writes the memory of GPUs itself; None: the library does not say.

    Open MPI and those made of it have a function for it, ``MPIX_Query_cuda_support``.
    """
    with open("/proc/self/maps") as maps:
        loaded = {line.split()[-1] for line in maps if "libmpi" in line}
    for path in sorted(loaded):
        with suppress(OSError, AttributeError):
            return bool(ctypes.CDLL(path).MPIX_Query_cuda_support())
    return None
