"""``mpiflow doctor``: what of this installation and this machine works, and what to do if not.

Each check runs on all ranks and says ok, warning or FAIL; the worst rank counts. A check of one
rank must not communicate, one of all ranks agrees on its errors before it goes on, and a watchdog
ends what still hangs. Nothing is imported before the check that is about it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time as clock
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module, metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiflow.core import parallel
from mpiflow.core.machine import machine_memory

if TYPE_CHECKING:
    from mpi4py import MPI

OK, WARNING, FAIL = "ok", "warning", "FAIL"
_ORDER = {OK: 0, WARNING: 1, FAIL: 2}

#: Seconds after which a check is taken to hang, and the program ends.
PATIENCE = 120.0
#: Of each launcher: the variable that tells a process its number.
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
_LAUNCHERS = {"orterun", "orted", "mpirun", "mpiexec", "prterun", "prted", "hydra_pmi_proxy"}
#: File systems over a network. Those of the second kind are made for parallel writing.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "sshfs", "glusterfs", "virtiofs"}
_PARALLEL = {"lustre", "gpfs", "beegfs", "ceph", "pvfs2", "orangefs", "panfs", "wekafs", "daos"}
_MB = 1_000_000


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes
    ----------
    state : ``ok``, ``warning`` or ``FAIL``
    found : in words
    remedy : what to do, "" if nothing
    """

    name: str
    state: str
    found: str
    remedy: str = ""

    def line(self) -> str:
        text = f"{self.state:8} {self.name:12} {self.found}"
        return f"{text}\n{'':21} -> {self.remedy}" if self.remedy else text


class _Alone:
    """Takes the place of a communicator where MPI does not start."""

    rank, size = 0, 1

    def allgather(self, value: Any) -> list[Any]:
        return [value]

    def bcast(self, value: Any, root: int = 0) -> Any:
        return value

    def Barrier(self) -> None:
        """Nobody to wait for."""


@dataclass
class Site:
    """What checks work on.

    Attributes
    ----------
    comm : all ranks
    folder : to write to
    device : cpu or cuda, what runs are meant for
    scratch : a new folder in it that all ranks see, None if there is none
    """

    comm: Any
    folder: Path
    device: str = "cpu"
    scratch: Path | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that does what one rank must do."""
        return bool(self.comm.rank == 0)


def main(folder: Path, device: str = "cpu", as_json: bool = False) -> int:
    """Run all checks and print them. Returns the exit code: 0, or 1 if any fails. Collective."""
    comm = _communicator()
    if not isinstance(comm, _Alone):
        parallel.install_abort_hook()
        parallel.mute_other_ranks()
    if comm.size == 1 and _launched_rank() > 0:
        sys.stdout = open(os.devnull, "w")  # each process is alone: one voice is enough
    show = (lambda check: None) if as_json else (lambda check: print(check.line(), flush=True))
    checks = examine(Site(comm, folder, device), show)
    failed = sum(check.state == FAIL for check in checks)
    if as_json:
        print(json.dumps({"ok": failed == 0, "checks": [asdict(check) for check in checks]}))
    else:
        warned = sum(check.state == WARNING for check in checks)
        print(f"{len(checks)} checks: {failed} failed, {warned} warnings")
    return 1 if failed else 0


def examine(site: Site, show: Callable[[Check], object] = lambda check: None) -> list[Check]:
    """All checks, the same on all ranks. Collective. ``show`` gets each when it is done."""
    done: list[Check] = []
    try:
        for check, modules in CHECKS:
            for merged in _run(check, modules, site):
                show(merged)
                done.append(merged)
    finally:
        if site.scratch is not None and site.first:
            shutil.rmtree(site.scratch, ignore_errors=True)
    return done


def _run(check: Callable[[Site], list[Check]], modules: tuple[str, ...], site: Site) -> list[Check]:
    """One check on all ranks, its results merged. Ends the process if it takes too long."""
    # Written in C: it works while a library holds the interpreter. It ends the process, and
    # with it the launcher's job.
    faulthandler.dump_traceback_later(PATIENCE, exit=True, file=2)
    name = check.__name__.strip("_")
    mine = [missing for module in modules if (missing := _import(name, module))]
    everyone = site.comm.allgather(mine)
    # A rank without a module must not leave the others waiting inside the check.
    if not any(everyone):
        try:
            mine = check(site)
        except Exception as error:  # a check that breaks is a finding
            mine = [Check(name, FAIL, f"{type(error).__name__}: {error}", "Report it.")]
        everyone = site.comm.allgather(mine)
    faulthandler.cancel_dump_traceback_later()
    names = dict.fromkeys(found.name for row in everyone for found in row)
    return [
        _merge([(rank, f) for rank, row in enumerate(everyone) for f in row if f.name == name])
        for name in names
    ]


def _import(check: str, module: str) -> Check | None:
    try:
        import_module(module)
    except Exception as error:
        text = f"{module} does not import: {' '.join(str(error).split())[:300]}"
        return Check(check, FAIL, text, "Run make setup.")
    return None


def _merge(found: list[tuple[int, Check]]) -> Check:
    """The worst state, and what each group of ranks that found the same has to say."""
    worst = max((check for _, check in found), key=lambda check: _ORDER[check.state])
    groups: dict[str, list[int]] = {}
    for rank, check in found:
        groups.setdefault(check.found, []).append(rank)
    text = worst.found
    if len(groups) > 1:
        parts = [f"{_numbers(ranks)}: {what}" for what, ranks in groups.items()]
        text = "; ".join(parts[:4]) + ("; ..." if len(parts) > 4 else "")
    return Check(worst.name, worst.state, text, worst.remedy)


def _numbers(ranks: list[int]) -> str:
    few = ", ".join(map(str, ranks[:4])) + (", ..." if len(ranks) > 4 else "")
    return f"rank{'s' * (len(ranks) > 1)} {few}"


def _communicator() -> Any:
    try:
        from mpi4py import MPI
    except Exception:  # the check of MPI says what is wrong
        return _Alone()
    return MPI.COMM_WORLD


def _launched_rank() -> int:
    values = (os.environ.get(name, "") for name in _RANKS)
    return next((int(value) for value in values if value.isdecimal()), 0)


# -- the installation ------------------------------------------------------------------------


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def _python(site: Site) -> list[Check]:
    """Python and the packages against what the installed mpiflow asks for."""
    try:
        wanted = metadata.requires("mpiflow") or []
        needed = metadata.metadata("mpiflow")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return [
            Check("packages", WARNING, "mpiflow is not installed", "pip install it: see README.md.")
        ]
    version = platform.python_version()
    fine = _version(version) >= _version(needed)
    remedy = "" if fine else "Make a virtual environment with a newer Python."
    out = [Check("python", OK if fine else FAIL, f"{version}, wanted {needed}", remedy)]
    have: list[str] = []
    bad: list[str] = []
    absent: list[str] = []
    for line in wanted:
        parsed = re.match(r"([A-Za-z0-9_.-]+)\s*([^;]*)(?:;(.*))?", line)
        if parsed is None:
            continue
        name, bounds, marker = parsed[1], parsed[2], parsed[3] or ""
        if "dev" in marker:
            continue
        lower = re.search(r">=\s*([\d.]+)", bounds)
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            (absent if "extra" in marker else bad).append(name)
            continue
        have.append(f"{name} {found}")
        if lower and _version(found) < _version(lower[1]):
            bad.append(f"{name} {found} < {lower[1]}")
    text = ", ".join(have) + (f"; without {', '.join(absent)}" if absent else "")
    if bad:
        out.append(
            Check("packages", FAIL, f"missing or too old: {', '.join(bad)}", "Run make setup.")
        )
    else:
        out.append(Check("packages", OK, text))
    return out


def _compiles(site: Site) -> list[Check]:
    """Numba compiles, to the vectors of this CPU."""
    from mpiflow.core import device

    facts = device.compiler()
    wide = [name for name in ("avx512f", "avx2") if device.cpu_has(name)]
    text = f"numba {facts['version']}, {wide[0] if wide else 'no AVX'}"
    text += f", SVML {'used' if facts['svml'] else 'not used'}, cache {facts['cache']}"
    remedy = "Point NUMBA_CACHE_DIR to a folder that can be written."
    try:
        start = clock.perf_counter()
        right = device.kernel(_triangle)(1000) == 500500
        text += f", {clock.perf_counter() - start:.1f} s for a small kernel"
    except Exception as error:
        return [Check("compiler", FAIL, f"{text}: {error}", remedy)]
    if not right:
        return [Check("compiler", FAIL, f"{text}, wrong result", "Reinstall numba and llvmlite.")]
    if not wide:
        return [Check("compiler", WARNING, text, "Kernels are slow here: use a newer CPU.")]
    return [Check("compiler", OK, text)]


def _triangle(n: int) -> int:
    total = 0
    for i in range(n + 1):
        total += i
    return total


def _torch(site: Site) -> list[Check]:
    """Whether networks can be trained. One rank imports it: that takes seconds and memory."""
    if util.find_spec("torch") is None:
        return [Check("torch", OK, "absent: simulations do not need it")]
    if not site.first:
        return []
    import torch

    text, each = f"{torch.__version__}, {torch.get_num_threads()} threads a rank", ""
    if site.comm.size > 1 and torch.get_num_threads() > 1:
        each = "Set OMP_NUM_THREADS=1 to train on several ranks."
    return [Check("torch", WARNING if each else OK, text, each)]


# -- MPI -----------------------------------------------------------------------------------------


def _mpi(site: Site) -> list[Check]:
    """The library, the launcher, and whether they belong together."""
    if isinstance(site.comm, _Alone):
        try:
            from mpi4py import MPI
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            return [Check("mpi", FAIL, f"mpi4py does not start: {text}", "Run make setup.")]
    from mpi4py import MPI

    library = MPI.Get_library_version().split(",")[0].strip("\0 \n").splitlines()[0]
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


def _machine(site: Site) -> list[Check]:
    """Ranks of this machine against its cores, binding, threads and memory."""
    from mpiflow.core.device import threads

    here = platform.node()
    mine = here, set(os.sched_getaffinity(0)), threads()
    everyone = [row for row in site.comm.allgather(mine) if row[0] == here]
    ranks, sets = len(everyone), [cores for _, cores, _ in everyone]
    union = set().union(*sets)
    cores = min(len(union), _quota())
    anywhere, apart = all(s == sets[0] for s in sets), sum(map(len, sets)) == len(union)
    text = f"{_count(ranks, 'rank')} on {_count(cores, 'core')} of {here}"
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
    text = f"{mine[2]} a rank, {workers} on {_count(cores, 'core')}"
    out.append(Check("threads", WARNING if remedy else OK, text, remedy))
    memory, shared = machine_memory() / 1e9, shutil.disk_usage("/dev/shm").free  # noqa: S108
    text = f"{memory:.3g} GB, {memory / ranks:.3g} GB a rank; /dev/shm {shared / 1e9:.3g} GB free"
    # Containers give 64 MB; Open MPI takes several a rank and ends in a bus error without.
    remedy = "" if shared > ranks * 16e6 else "Messages need it: docker run --shm-size=1g."
    return [*out, Check("memory", WARNING if remedy else OK, text, remedy)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _messages(site: Site) -> list[Check]:
    """Short and long messages round a ring, and a sum over all ranks."""
    import numpy as np

    comm = site.comm
    right, left, wrong, speed = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size, [], 0.0
    for count in (16, 2**18):  # sent at once, and by appointment
        given = np.arange(count, dtype=np.int64) + comm.rank
        taken = np.full(count, -1, np.int64)
        start = clock.perf_counter()
        requests = [comm.Irecv(taken, left, 5), comm.Isend(given, right, 5)]
        _finish(requests)
        speed = given.nbytes / max(clock.perf_counter() - start, 1e-9) / 1e9
        if not np.array_equal(taken, np.arange(count) + left):
            wrong.append(f"{given.nbytes} bytes from rank {left} arrived changed")
    total = np.zeros(1, np.int64)
    _finish([comm.Iallreduce(np.array([comm.rank + 1]), total)])
    if total[0] != comm.size * (comm.size + 1) // 2:
        wrong.append(f"a sum over ranks is {total[0]}")
    speeds = comm.allgather(speed)  # by all, before one of them leaves
    if wrong:
        remedy = "The network or the MPI library is broken: try --mca pml ob1 --mca btl self,tcp."
        return [Check("messages", FAIL, "; ".join(wrong), remedy)]
    text = "ring of 128 B and 2 MB, sum over ranks: right"
    return [Check("messages", OK, f"{text}; {min(speeds):.2g} GB/s or more")]


def _finish(requests: list[MPI.Request]) -> None:
    """Wait, but not for ever."""
    from mpi4py import MPI

    end = clock.monotonic() + PATIENCE / 8
    while not MPI.Request.Testall(requests):
        if clock.monotonic() > end:
            print(
                "FAIL     messages     none arrives: see the network", file=sys.stderr, flush=True
            )
            MPI.COMM_WORLD.Abort(1)
        clock.sleep(1e-5)


# -- files -----------------------------------------------------------------------------------------


def _folder(site: Site) -> list[Check]:
    """Make a folder to try things in, that all ranks see."""
    error = ""
    made: str | None = None
    if site.first:
        try:
            made = tempfile.mkdtemp(prefix=".mpiflow-doctor-", dir=site.folder)
        except OSError as caught:
            error = f"{site.folder}: {caught.strerror}"
    made, error = site.comm.bcast((made, error))
    if made is None:
        remedy = "Choose another with --folder, or create it."
        return [Check("folder", FAIL, error, remedy)]
    if site.first:
        site.scratch = Path(made)  # to be removed, whatever comes next
    seen = site.comm.allgather(os.path.isdir(made) and os.access(made, os.W_OK))
    if not all(seen):
        blind = _numbers([rank for rank, there in enumerate(seen) if not there])
        remedy = "Write to a file system that all machines share."
        return [Check("folder", FAIL, f"{site.folder} of rank 0 is not seen by {blind}", remedy)]
    if not site.first:
        site.scratch = Path(made)
    return [Check("folder", OK, f"{Path(site.folder).resolve()}, seen by all ranks")]


def _hdf5(site: Site) -> list[Check]:
    """A small compressed file, written by all ranks together and read by each."""
    import h5py

    parallel_here = bool(h5py.get_config().mpi)
    text = f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}"
    text += ", with MPI" if parallel_here else ", without MPI"
    many, out = site.comm.size > 1, []
    agreed = site.comm.allgather(parallel_here and not isinstance(site.comm, _Alone))
    if many and not all(agreed):
        remedy = "Frames go through rank 0 (gather writer). For parallel HDF5 see docs/install.md."
        out.append(Check("h5py", WARNING, text, remedy))
    else:
        out.append(Check("h5py", OK, text))
    if not _all_have_scratch(site):
        return [*out, Check("mpio", WARNING, "not tried: no folder", "See folder.")]
    assert site.scratch is not None  # noqa: S101 - for the type checker
    return [*out, _file_of_all(site, site.scratch / "all.h5", all(agreed))]


def _all_have_scratch(site: Site) -> bool:
    return all(site.comm.allgather(site.scratch is not None and site.scratch.is_dir()))


def _file_of_all(site: Site, path: Path, together: bool) -> Check:
    """Write it, through MPI-IO if all ranks can, and read it back on every rank."""
    import h5py
    import numpy as np

    comm, rows, start = site.comm, 1000, clock.perf_counter()
    name, how = ("mpio", "MPI-IO") if together else ("hdf5 file", "rank 0")
    whole = np.arange(comm.size * rows, dtype=np.int32)
    shape = {"chunks": (rows // 2,), "compression": "gzip", "shuffle": True}
    mine = slice(comm.rank * rows, (comm.rank + 1) * rows)
    error = ""
    # Every step may fail on one rank alone: all agree before the next.
    try:
        if together:
            with h5py.File(path, "w", driver="mpio", comm=comm) as file:
                dataset = file.create_dataset("x", whole.shape, whole.dtype, **shape)
                with dataset.collective:
                    dataset[mine] = whole[mine]
        elif site.first:
            with h5py.File(path, "w") as file:
                file.create_dataset("x", data=whole, **shape)
    except (OSError, RuntimeError, ValueError) as caught:
        error = str(caught).splitlines()[0]
    remedy = "Use another folder, or MPIFLOW_WRITER=gather."
    if any(errors := comm.allgather(error)):
        return Check(name, FAIL, f"writing through {how}: {next(filter(None, errors))}", remedy)
    spent = clock.perf_counter() - start
    try:
        with h5py.File(path, "r", locking=False) as file:
            right = np.array_equal(file["x"][()], whole)
    except (OSError, RuntimeError, KeyError) as caught:
        right, error = False, str(caught).splitlines()[0]
    results = comm.allgather((right, error))
    if not all(ok for ok, _ in results):
        bad = _numbers([rank for rank, (ok, _) in enumerate(results) if not ok])
        return Check(name, FAIL, f"written through {how}, read back wrong by {bad}", remedy)
    return Check(name, OK, f"written through {how} in {1e3 * max(comm.allgather(spent)):.0f} ms")


def _file_system(site: Site) -> list[Check]:
    """What the folder is on, how much is free, and how fast a file is safe on the disk."""
    if not _all_have_scratch(site):
        return [Check("files", WARNING, "not tried: no folder", "See folder.")]
    assert site.scratch is not None  # noqa: S101 - for the type checker
    if not site.first:
        return []
    facts = os.statvfs(site.scratch)
    free = facts.f_bavail * facts.f_frsize
    kind, mount = mount_of(site.scratch)
    out = [Check("file system", *_judge(kind, mount))]
    text = f"{free / 1e9:.3g} GB free, {facts.f_favail} files more"
    short = free < 1e9 or (0 < facts.f_files and facts.f_favail < 100)
    remedy = "Make room: mpiflow plan says what a run needs." if short else ""
    out.append(Check("free space", WARNING if short else OK, text, remedy))
    return [*out, _commits(site.scratch), _reserves(site.scratch)]


def _judge(kind: str, mount: str) -> tuple[str, str, str]:
    text = f"{kind} at {mount}"
    base = kind.removeprefix("fuse.")
    if base in _NETWORK:
        return (
            WARNING,
            f"{text}, over a network",
            "MPI-IO and locks are unreliable there: prefer a parallel file system or a local "
            "disk, or set MPIFLOW_WRITER=gather.",
        )
    if base in _PARALLEL:
        return OK, f"{text}, a parallel file system", ""
    if kind in ("tmpfs", "ramfs"):
        return WARNING, f"{text}, in memory", "Files are gone after a restart: copy what is kept."
    return OK, text, ""


def mount_of(path: Path, table: str | None = None) -> tuple[str, str]:
    """Type and mount point of the file system of a path, from /proc/mounts."""
    if table is None:
        try:
            table = Path("/proc/self/mounts").read_text()
        except OSError:
            return "unknown", "?"
    target, best = str(path.resolve()), ("unknown", "?")
    for line in table.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        # Blanks in names are written as octal numbers.
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[1])
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        # Of two mounts at one point the later one hides the other.
        if inside and (best[1] == "?" or len(point) >= len(best[1])):
            best = fields[2], point
    return best


def _commits(folder: Path) -> Check:
    """Write, fsync and rename over an old file, as checkpoints are written."""
    data, old, new = os.urandom(8 * _MB), folder / "old", folder / "new"
    try:
        old.write_bytes(b"old")
        start = clock.perf_counter()
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(old)
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        spent = clock.perf_counter() - start
        right = old.read_bytes() == data
    except OSError as error:
        return Check("commit", FAIL, f"8 MB: {error.strerror}", "Make room, or use another folder.")
    speed = f"8 MB written, synced and renamed in {1e3 * spent:.0f} ms, {8 / spent:.0f} MB/s"
    if not right:
        return Check("commit", FAIL, f"{speed}, read back wrong", "Use another folder.")
    slow = spent > 2
    return Check(
        "commit", WARNING if slow else OK, speed, "Write checkpoints less often." if slow else ""
    )


def _reserves(folder: Path) -> Check:
    """posix_fallocate: with it a full disk is noticed before HDF5 meets it."""
    try:
        with open(folder / "reserved", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, _MB)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        remedy = "A full disk may end a run without a message: watch the space."
        return Check("fallocate", WARNING, f"posix_fallocate: {error.strerror}", remedy)
    return Check("fallocate", OK if size == _MB else WARNING, f"posix_fallocate of {size} bytes")


def _locks(site: Site) -> list[Check]:
    """flock: rank 0 holds a lock that no other open file may get, on any machine."""
    if not _all_have_scratch(site):
        return [Check("flock", WARNING, "not tried: no folder", "See folder.")]
    assert site.scratch is not None  # noqa: S101 - for the type checker
    path, error, holder = site.scratch / "lock", "", -1
    if site.first:
        try:
            holder = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as caught:
            error = caught.strerror or str(caught)
    error = site.comm.bcast(error)
    refused = error == "" and _is_locked(path)
    everyone = site.comm.allgather(refused)  # rank 0 holds on until all have tried
    if holder >= 0:
        os.close(holder)
    remedy = "Never start two runs on one output here: nothing would stop the second."
    if error:
        return [Check("flock", WARNING, f"no locks: {error}", remedy)]
    if not all(everyone):
        through = _numbers([rank for rank, ok in enumerate(everyone) if not ok])
        return [Check("flock", WARNING, f"a lock of rank 0 did not stop {through}", remedy)]
    return [Check("flock", OK, "a held lock stops every rank")]


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        return False
    finally:
        os.close(handle)


# -- CUDA, limits -----------------------------------------------------------------------------


def _cuda(site: Site) -> list[Check]:
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
            return [Check("cuda", FAIL, text, "Use --device cpu, or install mpiflow[cuda].")]
        return [Check("cuda", OK, text)]
    number = len({name for row in everyone for name in row})
    ranks = _count(len(everyone), "rank")
    text = f"{ranks} on {_count(number, 'device')} of {platform.node()}"
    own = [everyone[:rank].count(row) % len(row) for rank, row in enumerate(everyone) if row]
    text += f", device of each {', '.join(map(str, own))}"
    text += f", compute capability {', '.join(sorted(set(capabilities)))}"
    if parallel.shared_devices(everyone):
        if wanted and os.environ.get("MPIFLOW_SHARE_GPU", "0") in ("", "0"):
            remedy = f"Start {number} here, or set MPIFLOW_SHARE_GPU=1 to share on purpose."
            return [Check("cuda", FAIL, f"{text}: ranks would share", remedy)]
        text += ", some ranks would share one"
    return [Check("cuda", OK, text)]


def _limits(site: Site) -> list[Check]:
    """Limits that end long runs: sizes of files, open files; and what is kept of a crash."""

    def words(limit: int, unit: float = 1.0, name: str = "") -> str:
        return "any" if limit == resource.RLIM_INFINITY else f"{limit / unit:.3g}{name}"

    size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    core, _ = resource.getrlimit(resource.RLIMIT_CORE)
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    text = f"file size {words(size, 1e9, ' GB')}, open files {words(files)}"
    text += f", stack {words(stack, 1e6, ' MB')}, memory {words(memory, 1e9, ' GB')}"
    text += f", core dumps {words(core, 1e6, ' MB')}"
    few = resource.RLIM_INFINITY != files < 256
    if size != resource.RLIM_INFINITY and size < 1e9:
        return [Check("limits", WARNING, text, "Longer files end a run: ulimit -f unlimited.")]
    if few:
        return [Check("limits", WARNING, text, "Raise it: ulimit -n 4096.")]
    return [Check("limits", OK, text)]


#: The checks, in order, and the modules without which they cannot be made.
CHECKS: tuple[tuple[Callable[[Site], list[Check]], tuple[str, ...]], ...] = (
    (_python, ()),
    (_mpi, ()),
    (_machine, ("mpiflow.core.device",)),
    (_messages, ("mpi4py.MPI", "numpy")),
    (_compiles, ("mpiflow.core.device",)),
    (_torch, ()),
    (_cuda, ("mpiflow.core.device",)),
    (_limits, ()),
    (_folder, ()),
    (_file_system, ()),
    (_locks, ()),
    (_hdf5, ("h5py", "numpy")),
)
