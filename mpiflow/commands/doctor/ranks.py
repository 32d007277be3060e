"""Checks of ranks: MPI and its launcher, cores, memory and GPUs of a machine, messages."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time as clock
from pathlib import Path

from mpiflow.commands.doctor import check as settings
from mpiflow.commands.doctor.check import FAIL, OK, WARNING, Check, Site, count
from mpiflow.core import gpu, mpi, parallel
from mpiflow.core.errors import InputError
from mpiflow.core.machine import machine_memory
from mpiflow.core.mpi import MPI, Alone

_LAUNCHERS = {"orterun", "orted", "mpirun", "mpiexec", "prterun", "prted", "hydra_pmi_proxy"}


def check_mpi(site: Site) -> list[Check]:
    """The library, the launcher, and whether they belong together."""
    if isinstance(site.comm, Alone):
        try:
            mpi.require()
        except Exception as error:
            text = " ".join(str(getattr(error, "value", error)).split())[:300]
            return [Check("mpi", FAIL, f"mpi4py does not start: {text}", "Run make setup.")]
    library = mpi.library()
    level = {
        MPI.THREAD_SINGLE: "no threads",
        MPI.THREAD_FUNNELED: "threads funneled",
        MPI.THREAD_SERIALIZED: "threads serialized",
        MPI.THREAD_MULTIPLE: "threads",
    }[MPI.Query_thread()]
    standard = ".".join(map(str, MPI.Get_version()))
    out = [Check("mpi", OK, f"{library}, MPI {standard}, {level}")]
    started, seen = parallel.launched_size(), MPI.COMM_WORLD.size
    if started > 1 and started != seen:
        text = f"{started} launched, {seen} seen by each"
        remedy = f"Launcher and library differ: use the mpirun (or srun --mpi=...) of {library}."
        out.append(Check("ranks", FAIL, text, remedy))
    else:
        out.append(Check("ranks", OK, f"{seen}, as launched" if started > 1 else f"{seen}"))
    if site.first:
        out.append(_launcher(library))
    return out


def _launcher(library: str) -> Check:
    """What started this process: the program of its parent, or else the mpirun that would."""
    parent = ""
    with contextlib.suppress(OSError):
        parent = os.readlink(f"/proc/{os.getppid()}/exe")
    there = shutil.which("mpirun")
    if os.environ.get("SLURM_STEP_NUM_TASKS") and "slurm" in parent:
        return Check("launcher", OK, f"srun ({parent})")
    alone = parallel.launched_size() == 1 and Path(parent).name not in _LAUNCHERS
    program = parent if Path(parent).name in _LAUNCHERS else there
    if program is None:
        text, remedy = "no mpirun in PATH", "Fine for one rank; for more, activate .venv."
        return Check("launcher", WARNING, text, remedy)
    version = _first_line(program, "--version")
    text = f"{program}: {version}" + (" (one process, started without it)" if alone else "")
    named, known = re.search(r"\d+\.\d+\.\d+", version), re.search(r"\d+\.\d+\.\d+", library)
    ours = "Open MPI" in library
    if (ours and not re.search(r"Open ?(MPI|RTE)|PRRTE", version)) or (
        ours and named and known and named[0] != known[0] and "PRRTE" not in version
    ):
        remedy = f"mpi4py uses {library}: take its mpirun."
        return Check("launcher", WARNING, text, remedy)
    return Check("launcher", OK, text)


def _first_line(program: str, *arguments: str) -> str:
    """What a program of this machine says first; it gets no MPI variables of ours."""
    clean = {k: v for k, v in os.environ.items() if not re.match(r"OMPI_|PMIX_|PMI_|PRTE_", k)}
    try:
        done = subprocess.run(  # noqa: S603 - the launcher that is running, or found in PATH
            [program, *arguments], capture_output=True, text=True, timeout=20, env=clean
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not start ({type(error).__name__})"
    return next(iter((done.stdout or done.stderr).splitlines()), "no version")


def _quota() -> int:
    """Cores that a container allows all processes together."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, round(int(quota) / int(period)))
    return 2**31


def check_machine(site: Site) -> list[Check]:
    """Ranks of this machine against its cores, binding, threads and memory."""
    from mpiflow.core.device import threads

    here = platform.node()
    mine = here, set(os.sched_getaffinity(0)), threads()
    everyone = [row for row in site.comm.allgather(mine) if row[0] == here]
    ranks, sets = len(everyone), [cores for _, cores, _ in everyone]
    union = set().union(*sets)
    cores = min(len(union), _quota())
    anywhere, apart = all(s == sets[0] for s in sets), sum(map(len, sets)) == len(union)
    text = f"{count(ranks, 'rank')} on {count(cores, 'core')} of {here}"
    if ranks > 1:
        text += ", each bound to its own" if apart else ", not bound" if anywhere else ", bound"
    remedy = ""
    if ranks > cores:
        remedy = "Start fewer ranks here: those beyond the cores only slow the others down."
    elif not anywhere and not apart:
        remedy = "Ranks are bound to the same cores: try mpirun --bind-to core."
    out = [Check("cores", WARNING if remedy else OK, text, remedy)]
    workers, remedy = sum(n for *_, n in everyone), ""
    if workers > max(cores, ranks):
        remedy = "Set OMP_NUM_THREADS=1 and NUMBA_NUM_THREADS=1: ranks are the parallelism."
    text = f"{mine[2]} a rank, {workers} on {count(cores, 'core')}"
    out.append(Check("threads", WARNING if remedy else OK, text, remedy))
    memory, shared = machine_memory() / 1e9, shutil.disk_usage("/dev/shm").free  # noqa: S108
    text = f"{memory:.3g} GB, {memory / ranks:.3g} GB a rank; /dev/shm {shared / 1e9:.3g} GB free"
    # Containers give 64 MB; Open MPI takes several a rank and ends in a bus error without.
    remedy = "" if shared > ranks * 16e6 else "Messages need it: docker run --shm-size=1g."
    return [*out, Check("memory", WARNING if remedy else OK, text, remedy)]


def check_messages(site: Site) -> list[Check]:
    """Short and long messages round a ring, a sum over all ranks, and who starts messages."""
    import numpy as np

    from mpiflow.core.messages import functions_of_mpi

    comm = site.comm
    right, left, wrong, speed = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size, [], 0.0
    for words in (16, 2**18):  # sent at once, and by appointment
        given = np.arange(words, dtype=np.int64) + comm.rank
        taken = np.full(words, -1, np.int64)
        start = clock.perf_counter()
        requests = [comm.Irecv(taken, left, 5), comm.Isend(given, right, 5)]
        _finish(requests)
        speed = given.nbytes / max(clock.perf_counter() - start, 1e-9) / 1e9
        if not np.array_equal(taken, np.arange(words) + left):
            wrong.append(f"{given.nbytes} bytes from rank {left} arrived changed")
    total = np.zeros(1, np.int64)
    _finish([comm.Iallreduce(np.array([comm.rank + 1]), total)])
    if total[0] != comm.size * (comm.size + 1) // 2:
        wrong.append(f"a sum over ranks is {total[0]}")
    # By all ranks, before one of them leaves.
    speeds = comm.allgather(speed)
    found = comm.allreduce(functions_of_mpi() is not None, op=MPI.LAND)
    if wrong:
        remedy = "The network or the MPI library is broken: try --mca pml ob1 --mca btl self,tcp."
        return [Check("messages", FAIL, "; ".join(wrong), remedy)]
    text = "ring of 128 B and 2 MB, sum over ranks: right"
    text += f"; {min(speeds):.2g} GB/s or more; edges of packed spins are sent by "
    text += "compiled loops" if found else "Python: functions of MPI were not found in its library"
    return [Check("messages", OK, text)]


def _finish(requests: list[MPI.Request]) -> None:
    """Wait, but not for ever."""
    end = clock.monotonic() + settings.PATIENCE / 8
    while not MPI.Request.Testall(requests):
        if clock.monotonic() > end:
            print(
                "FAIL     messages     none arrives: see the network", file=sys.stderr, flush=True
            )
            MPI.COMM_WORLD.Abort(1)
        clock.sleep(1e-5)


def check_cuda(site: Site) -> list[Check]:
    """Devices of this machine, and whether each rank has one of its own."""
    from mpiflow.core import device

    wanted = site.device == "cuda"
    try:
        seen, reason = device.gpus(), ""
        if not seen and device.simulated():
            reason = "simulated (NUMBA_ENABLE_CUDASIM)"
        capabilities = device.gpu_capabilities()
    except Exception as error:
        seen, capabilities, reason = [], [], str(error).splitlines()[0]
    everyone = [
        row for name, row in site.comm.allgather((platform.node(), seen)) if name == platform.node()
    ]
    if not seen:
        text = f"no CUDA device{': ' if reason else ''}{reason}"
        if wanted and not device.simulated():
            remedy = "Use --device cpu, or install mpiflow[cuda] (docs/install.md)."
            return [Check("cuda", FAIL, text, remedy)]
        return [Check("cuda", OK, text)]
    number = len({name for row in everyone for name in row})
    ranks = count(len(everyone), "rank")
    text = f"{ranks} on {count(number, 'device')} of {platform.node()}"
    own = [everyone[:rank].count(row) % len(row) for rank, row in enumerate(everyone) if row]
    text += f", device of each {', '.join(map(str, own))}"
    text += f", compute capability {', '.join(sorted(set(capabilities)))}"
    state, remedy = OK, ""
    if gpu.shared_devices(everyone):
        text += ", some ranks share one"
        if wanted and os.environ.get("MPIFLOW_SHARE_GPU", "0") in ("", "0"):
            state = WARNING
            remedy = f"Start {number} here, or set MPIFLOW_SHARE_GPU=1 to share on purpose."
    return [Check("cuda", state, text, remedy), _cuda_mpi()]


def _cuda_mpi() -> Check:
    """Whether MPI itself reaches the memory of GPUs."""
    aware = gpu.cuda_aware_mpi()
    said = {True: "yes", False: "no", None: "not offered by this library"}[aware]
    try:
        way = "as they are" if gpu.mpi_takes_device_memory() else "through pinned host memory"
    except InputError as error:
        return Check("cuda mpi", FAIL, str(error), "Unset MPIFLOW_CUDA_AWARE_MPI.")
    return Check("cuda mpi", OK, f"CUDA-aware: {said}; halos travel {way}")
