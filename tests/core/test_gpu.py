"""Which GPU is a rank's, what a program chooses, and what is said where there is none."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from mpi4py import MPI

import mpiflow.core.device
from mpiflow import InputError, Ising, Simulation
from mpiflow.core import gpu
from mpiflow.core.gpu import Choice

pytestmark = pytest.mark.filterwarnings("error::UserWarning")
#: Every rank has one.
SEEN = (lambda: ["GPU-a"],)


def dealt(comm: MPI.Intracomm, names: list[str]) -> Choice:
    return gpu.resolved("cuda", comm, (lambda: names,))


@pytest.mark.mpi
def test_every_rank_has_a_gpu_of_its_own(comm: MPI.Intracomm) -> None:
    own = dealt(comm, [f"GPU-{i}" for i in range(comm.size)])
    assert comm.allgather(own.gpu) == list(range(comm.size))
    # A launcher that binds shows each rank one, its first.
    assert dealt(comm, [f"GPU-{comm.rank}"]) == Choice("cuda", 0)
    # Pairs of ranks that see pairs of devices.
    assert dealt(comm, [f"GPU-{comm.rank % 2}-{i}" for i in range(2)]).gpu == comm.rank // 2


@pytest.mark.mpi(min_size=2)
def test_ranks_share_gpus_with_one_warning(
    comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPIFLOW_SHARE_GPU", raising=False)
    monkeypatch.setattr(gpu, "_warned", set())
    devices = [f"GPU-{i}" for i in range(comm.size - 1)]
    heard = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            here = dealt(comm, devices)
        own = comm.rank % len(devices)
        assert here == Choice("cuda", own, sharing=2 if own == 0 else 1, shared=True)
        heard += [str(one.message) for one in caught]
    assert len(heard) == (comm.rank == 0)
    assert all(f"{comm.size} ranks of a machine share {len(devices)} GPU" in h for h in heard)
    monkeypatch.setattr(gpu, "_warned", set())
    monkeypatch.setenv("MPIFLOW_SHARE_GPU", "1")
    dealt(comm, devices)


@pytest.mark.mpi
def test_a_rank_without_a_gpu_is_heard_of_on_all(comm: MPI.Intracomm) -> None:
    def seen() -> list[str]:
        if comm.rank == comm.size - 1:
            raise InputError("device", "cuda", "CUDA libraries", "Install them.")
        return ["GPU-a"]

    with pytest.raises(InputError, match="CUDA libraries"):
        gpu.resolved("cuda", comm, (seen,))


def test_who_shares() -> None:
    shared = gpu.shared_devices
    assert shared([]) == shared([[], []]) == shared([["a"]]) == 0
    assert shared([["a", "b"], ["a", "b"]]) == 0
    assert shared([["a", "b"]] * 3) == 2
    assert shared([["a"], ["b"], ["b"]]) == 2
    assert shared([["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"]]) == 0


@pytest.mark.parametrize(
    ("variable", "number", "gpu_of_two"),
    [("OMPI_COMM_WORLD_LOCAL_RANK", "3", 1), ("SLURM_LOCALID", "2", 0), ("SLURM_LOCALID", "x", 0)],
)
def test_of_one_rank_the_launcher_knows_its_place(
    variable: str, number: str, gpu_of_two: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that is dealt to ranks has a communicator of one on each."""
    for name in mpiflow.core.mpi.LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, number)
    assert dealt(MPI.COMM_SELF, ["GPU-a", "GPU-b"]).gpu == gpu_of_two


def test_parts_of_a_program_choose_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_choices", [Choice()])
    assert gpu.of_simulation(None, MPI.COMM_SELF) == gpu.chosen() == Choice()
    with gpu.computing_on("cuda", MPI.COMM_SELF, SEEN) as here:
        assert here == gpu.chosen() == gpu.of_simulation(None, MPI.COMM_SELF)
        assert here.is_cuda
        assert gpu.of_simulation("cuda", MPI.COMM_SELF) is here
        # What has no path for it stays where it is, and so does what was told to.
        assert gpu.of_simulation(None, MPI.COMM_SELF, able=False) == Choice()
        assert gpu.of_simulation("cpu", MPI.COMM_SELF) == Choice()
        with gpu.computing_on("cpu", MPI.COMM_SELF):
            assert gpu.chosen() == Choice()
    assert gpu.chosen() == Choice()
    assert gpu.choose("cuda", MPI.COMM_SELF, SEEN) == gpu.chosen() == here


@pytest.mark.kernel
def test_simulations_follow_the_program() -> None:
    """In the simulator: there is a device, and exact solvers keep to the CPU."""
    if not mpiflow.core.device.simulated():
        pytest.skip("needs NUMBA_ENABLE_CUDASIM=1")
    options = {"size": (4, 8), "comm": MPI.COMM_SELF}
    with gpu.computing_on("cuda", MPI.COMM_SELF):
        assert Simulation(Ising(2.5), **options).device.is_cuda  # type: ignore[arg-type]
        exact = Simulation(Ising(2.5), solver="nfold", **options)  # type: ignore[arg-type]
        assert not exact.device.is_cuda
        told = Simulation(Ising(2.5), device="cpu", **options)  # type: ignore[arg-type]
        assert not told.device.is_cuda
    assert not Simulation(Ising(2.5), **options).device.is_cuda  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [True, False, None])
def test_mpi_is_asked_for_cuda(answer: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.cuda_aware_mpi() in (True, False, None)  # of the library that is here

    class Library:
        def __init__(self, path: str) -> None:
            assert "libmpi" in path
            if answer is not None:
                self.MPIX_Query_cuda_support: Callable[[], int] = lambda: int(answer)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert gpu.cuda_aware_mpi() is answer
    monkeypatch.setattr(mpiflow.core.device, "simulated", lambda: False)
    assert gpu.mpi_takes_device_memory() is (answer is True)
    for said in (False, True):
        monkeypatch.setenv("MPIFLOW_CUDA_AWARE_MPI", str(int(said)))
        assert gpu.mpi_takes_device_memory() is said
    monkeypatch.setenv("MPIFLOW_CUDA_AWARE_MPI", "yes")
    with pytest.raises(InputError, match="^MPIFLOW_CUDA_AWARE_MPI='yes': .*0 or 1"):
        gpu.mpi_takes_device_memory()


def test_the_driver_says_how_much_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, name: str) -> None:
            if name != "libcuda.so.1":
                raise OSError(name)
            self.cuInit = lambda flags: 0

        def cuDeviceGet(self, handle: Any, number: int) -> int:
            handle._obj.value = 10 * number
            return 0 if number < 2 else 101

        def cuDeviceTotalMem_v2(self, total: Any, handle: Any) -> int:
            total._obj.value = 1000 + handle.value
            return 0

    monkeypatch.setattr(ctypes, "CDLL", Driver)
    assert [gpu.memory(number) for number in range(3)] == [1000, 1010, None]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert gpu.memory() is None
