"""Checks of the folder to write to: HDF5, disk, locks; and of limits on files and memory."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import tempfile
import time as clock
from pathlib import Path

from mpiflow.commands.doctor.check import FAIL, OK, WARNING, Check, Site, numbers
from mpiflow.core.mpi import Alone

#: File systems over a network. Those of the second kind are made for parallel writing.
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "sshfs", "glusterfs", "virtiofs"}
_PARALLEL = {"lustre", "gpfs", "beegfs", "ceph", "pvfs2", "orangefs", "panfs", "wekafs", "daos"}
_MB = 1_000_000


def check_folder(site: Site) -> list[Check]:
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
        blind = numbers([rank for rank, there in enumerate(seen) if not there])
        remedy = "Write to a file system that all machines share."
        return [Check("folder", FAIL, f"{site.folder} of rank 0 is not seen by {blind}", remedy)]
    if not site.first:
        site.scratch = Path(made)
    return [Check("folder", OK, f"{Path(site.folder).resolve()}, seen by all ranks")]


def check_hdf5(site: Site) -> list[Check]:
    """A small compressed file, written by all ranks together and read by each."""
    import h5py

    parallel_here = bool(h5py.get_config().mpi)
    text = f"h5py {h5py.__version__}, HDF5 {h5py.version.hdf5_version}"
    text += ", with MPI" if parallel_here else ", without MPI"
    many, out = site.comm.size > 1, []
    agreed = site.comm.allgather(parallel_here and not isinstance(site.comm, Alone))
    if many and not all(agreed):
        remedy = "Frames go through rank 0 (gather writer). For parallel HDF5 see docs/install.md."
        out.append(Check("h5py", WARNING, text, remedy))
    else:
        out.append(Check("h5py", OK, text))
    if (scratch := _scratch(site)) is None:
        return [*out, Check("mpio", WARNING, "not tried: no folder", "See folder.")]
    return [*out, _file_of_all(site, scratch / "all.h5", all(agreed))]


def _scratch(site: Site) -> Path | None:
    """The folder to try things in, if all ranks have it. Collective."""
    here = site.scratch is not None and site.scratch.is_dir()
    return site.scratch if all(site.comm.allgather(here)) else None


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
        bad = numbers([rank for rank, (ok, _) in enumerate(results) if not ok])
        return Check(name, FAIL, f"written through {how}, read back wrong by {bad}", remedy)
    return Check(name, OK, f"written through {how} in {1e3 * max(comm.allgather(spent)):.0f} ms")


def check_file_system(site: Site) -> list[Check]:
    """What the folder is on, how much is free, and how fast a file is safe on the disk."""
    if (scratch := _scratch(site)) is None:
        return [Check("files", WARNING, "not tried: no folder", "See folder.")]
    if not site.first:
        return []
    facts = os.statvfs(scratch)
    free = facts.f_bavail * facts.f_frsize
    kind, mount = mount_of(scratch)
    out = [Check("file system", *_judge(kind, mount))]
    text = f"{free / 1e9:.3g} GB free, {facts.f_favail} files more"
    short = free < 1e9 or (0 < facts.f_files and facts.f_favail < 100)
    remedy = "Make room: mpiflow plan says what a run needs." if short else ""
    out.append(Check("free space", WARNING if short else OK, text, remedy))
    return [*out, _commits(scratch), _reserves(scratch)]


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


def check_locks(site: Site) -> list[Check]:
    """flock: rank 0 holds a lock that no other open file may get, on any machine."""
    if (scratch := _scratch(site)) is None:
        return [Check("flock", WARNING, "not tried: no folder", "See folder.")]
    path, error, holder = scratch / "lock", "", -1
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
        through = numbers([rank for rank, ok in enumerate(everyone) if not ok])
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


def check_limits(site: Site) -> list[Check]:
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
