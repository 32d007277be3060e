"""Behaviour of the whole process under MPI: who talks, and how all ranks end together.

Programs call :func:`start` first (``mpiflow`` and every driver do); the library
itself never changes a user's process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from mpiflow.core import mpi, signals, streams
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import ALONE, MPI, launched_size
from mpiflow.core.packages import MissingPackage, missing

if TYPE_CHECKING:
    import numpy as np

#: Exit codes: an input that cannot be used, Ctrl-C, and everything else.
BAD_INPUT, INTERRUPTED, FAILED = 2, 130, 1
#: Seconds that ranks with a bad input wait for the others to report the same one.
PATIENCE = 10.0

_OF_A_STEP = frozenset({"SLURM_NODELIST", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_TASKS_PER_NODE"})


def leave_srun() -> None:
    """Be a process of its own in a shell that srun runs, before MPI starts.

    Such a shell hands on the variables of its step, and MPI would take the process for a rank of
    it: Open MPI ends there or waits for the others. In a step of one task nothing is lost.
    """
    if "SLURM_STEP_ID" not in os.environ:
        return
    if any(os.environ.get(name, "1") != "1" for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")):
        return
    alone = os.environ.get("SLURM_STEP_NUM_TASKS", "1") == "1"
    if "OMPI_COMM_WORLD_SIZE" in os.environ or not (alone or _in_a_terminal()):
        return
    for name in list(os.environ):
        if name.startswith(("PMI_", "PMIX_", "SLURM_STEP")) or name in _OF_A_STEP:
            del os.environ[name]


def _in_a_terminal() -> bool:
    """Whether a person typed this, at the terminal of a step of several tasks (``srun --pty``)."""
    try:
        with open(f"/proc/{os.getppid()}/comm") as file:
            return "slurm" not in file.read() and sys.stdin is not None and sys.stdin.isatty()
    except OSError:
        return False


def world() -> MPI.Intracomm | None:
    """``COMM_WORLD``, or None while this is one process that has not needed MPI yet.

    Starting MPI takes a second, which ``mpiflow --help`` should not cost. None, too, where MPI
    does not start.
    """
    if launched_size() == 1 and "mpi4py.MPI" not in sys.modules:
        return None
    try:
        return MPI.COMM_WORLD if MPI.Is_initialized() and not MPI.Is_finalized() else None
    except MissingPackage:
        return None


def start() -> MPI.Intracomm:
    """Prepare a parallel program: abort hook, launcher check, one voice. Returns COMM_WORLD.

    Raises
    ------
    MissingPackage : there is no MPI here
    """
    streams.forgive()
    streams.plain_warnings()
    install_abort_hook()
    mpi.require_for_program()
    check_launcher()
    mute_other_ranks()
    return MPI.COMM_WORLD


def start_reading() -> MPI.Intracomm:
    """:func:`start` of a program that needs no MPI while it is one process.

    Returns
    -------
    COMM_WORLD of MPI where a launcher started this, or MPI is loaded already; else
    :data:`~mpiflow.core.mpi.ALONE`
    """
    streams.forgive()
    streams.plain_warnings()
    install_abort_hook()
    if mpi.by_itself():
        return ALONE
    try:
        return start()
    except MissingPackage:
        if launched_size() > 1:
            raise
        return ALONE


def mute_other_ranks() -> None:
    """Let only rank 0 write to standard output and show warnings. Errors stay audible."""
    comm = world()
    if comm is not None and comm.rank > 0:
        sys.stdout = open(os.devnull, "w")
        warnings.simplefilter("ignore")


def check_launcher() -> None:
    """Refuse to run when the launcher and mpi4py belong to two different MPIs.

    Every process would then be rank 0 of 1, and all would write the same file.
    """
    if launched_size() > 1 and MPI.COMM_WORLD.size == 1:
        raise InputError(
            "ranks",
            launched_size(),
            f"a launcher of the MPI that mpi4py uses ({mpi.library()}); each process sees 1 rank",
            "Use that MPI's mpirun (or srun --mpi=pmix), or reinstall mpi4py for this one.",
        )


# -- errors ----------------------------------------------------------------------------


def raise_together(comm: MPI.Intracomm, error: InputError | None, *, alone: bool = False) -> None:
    """If any rank has an error, raise the lowest rank's on all ranks. Collective.

    Parameters
    ----------
    alone : other ranks may never come, because they wait for the rank with the error elsewhere, as
        in a library that speaks MPI itself. After :data:`PATIENCE` seconds it ends all ranks with
        its message.
    """
    import numpy as np

    if comm.size == 1:
        if error is not None:
            raise error
        return
    first = np.array(comm.size if error is None else comm.rank)
    request = comm.Iallreduce(MPI.IN_PLACE, first, op=MPI.MIN)
    if error is not None and alone:
        _meet(request, comm, f"mpiflow: {error}")
    request.Wait()
    if first < comm.size:
        error = comm.bcast(error, root=int(first))
        assert error is not None  # noqa: S101 - for the type checker
        raise error


@contextmanager
def agreed(comm: MPI.Intracomm, *, alone: bool = False) -> Iterator[None]:
    """An :class:`InputError` raised inside on any rank is raised on all. Collective.

    The body must not communicate: a rank that fails in it leaves it early. A library inside of it
    may, with ``alone``: see :func:`raise_together`.
    """
    error = None
    try:
        yield
    except InputError as caught:
        error = caught
    raise_together(comm, error, alone=alone)


def _meet(request: MPI.Request, comm: MPI.Intracomm, message: str) -> None:
    """Wait until all ranks have met this error; end them, with the message, if some never come."""
    # The lowest rank that waits is the one to speak.
    deadline = time.monotonic() + PATIENCE * (1 + comm.rank / comm.size)
    while not request.Test():
        if time.monotonic() > deadline:
            _say(f"{message}\nmpiflow: only rank {comm.rank} of {comm.size} met this error")
            comm.Abort(BAD_INPUT)
        time.sleep(0.001)


def install_abort_hook() -> None:
    """Make an uncaught exception on any rank end all ranks.

    * :class:`InputError`: one message, from rank 0, and exit code 2 on every rank.
    * Anything else: a traceback that names the rank, then ``MPI_Abort``; plain
      Python would leave the other ranks waiting for ever.
    """
    sys.excepthook = _excepthook


def _excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    # SystemExit raised in here becomes the exit code of the process.
    if isinstance(error, KeyboardInterrupt):
        _say("mpiflow: interrupted")
        raise SystemExit(INTERRUPTED)
    comm = world()
    error = missing(error) or error
    if isinstance(error, InputError):
        _end_with_message(comm, f"mpiflow: {error}")
        if _at_once:
            os._exit(BAD_INPUT)
        raise SystemExit(BAD_INPUT)
    if comm is not None and comm.size > 1:
        _say(f"mpiflow: rank {comm.rank} of {comm.size} failed; ending all ranks")
    _say("".join(traceback.format_exception(kind, error, trace)).rstrip())
    if comm is not None and comm.size > 1:
        comm.Abort(FAILED)


_at_once: list[bool] = []


def leave_files_open() -> None:
    """End without closing files: HDF5 crashes in it once it could not write one of them."""
    _at_once.append(True)


def _end_with_message(comm: MPI.Intracomm | None, message: str) -> None:
    """Print on rank 0 and return once all ranks are here; abort if some never come."""
    if comm is None or comm.size == 1:
        # Several ranks may have no MPI to meet in.
        if comm is not None or launched_size() == 1 or mpi.launched_rank() == 0:
            _say(message)
        return
    if comm.rank == 0:
        _say(message)
    # A launcher kills the rest when one rank exits: rank 0 must have spoken by then.
    _meet(comm.Ibarrier(), comm, message)


def ender(code: int | None, remark: str, patience: float = 0.25) -> Callable[[int], None]:
    """What ends all ranks at once, from any thread, on a signal or at a walltime (0).

    Parameters
    ----------
    code : exit code; None: that of the signal
    remark : what is said with it
    patience : seconds that other ranks wait for rank 0 to speak and end them
    """

    def end(number: int) -> None:
        # Not world(): the main thread may be in the middle of importing MPI.
        module = sys.modules.get("mpi4py.MPI")
        comm = getattr(module, "COMM_WORLD", None)
        if comm is not None and module is not None and module.Is_initialized():
            if comm.rank > 0:  # rank 0 speaks if it can
                time.sleep(patience)
        else:
            comm = None
        _say(f"mpiflow: {signals.name_of(number)}: {remark}")
        status = 128 + number if code is None else code
        if comm is not None and comm.size > 1:
            comm.Abort(status)
        os._exit(status)

    return end


def end_on_signals(remark: str) -> None:
    """End all ranks with one line and 128 + the number of a signal, however long this runs.

    For programs that cannot go on where they were. Where signals are noted already it does nothing.
    """
    if signals.listen():
        # mpirun kills what is left a second after its own SIGTERM: one voice is enough.
        signals.nothing_to_lose(ender(None, remark, patience=1.5), lasting=True)


def arrival(comm: MPI.Intracomm, before: float, time: float, behind: np.ndarray) -> float:
    """The present time of members on their way from one time to another. Collective.

    Parameters
    ----------
    behind : times of the last events of those on this rank that are not there yet
    """
    here = max(before, float(behind.min(initial=time)))
    return here if comm.size == 1 else comm.allreduce(here, op=MPI.MIN)


def left_out(comm: MPI.Intracomm, made: int, abandoned: bool) -> int | None:
    """Events of all ranks in work that some have abandoned; None if none has. Collective.

    Parameters
    ----------
    made, abandoned : on this rank
    """
    import numpy as np

    all_made, some = comm.allreduce(np.array([made, abandoned], np.int64))
    return int(all_made) if some else None


def _say(message: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a log that cannot be written any more
        print(message, file=sys.stderr, flush=True)


def say(comm: MPI.Intracomm, text: str) -> None:
    """A line on standard error, from rank 0."""
    if comm.rank == 0:
        print(f"mpiflow: {text}", file=sys.stderr, flush=True)
