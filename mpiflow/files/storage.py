"""Files that survive: whole or not at all, one writer, and no surprise from a full disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import resource
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from mpiflow.core.errors import InputError

#: Whether folders that a new file is to lie in are made where they are missing.
_PARENTS: ContextVar[bool] = ContextVar("parents", default=False)
#: Of file systems that have no locks: then there is nothing to hold. 524 is what NFS may say.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, 524)
_ACCESS_LIST = "system.posix_acl_access"
#: Of file systems that cannot give room to a file: they have to be asked in another way.
_NO_ROOM_HELD = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE


@contextlib.contextmanager
def making_parents(wanted: bool = True) -> Iterator[None]:
    """Within, folders that new files are to lie in are made: ``--parents`` of the command line."""
    token = _PARENTS.set(wanted)
    try:
        yield
    finally:
        _PARENTS.reset(token)


def refusal(path: Path, error: OSError, name: str = "out") -> InputError:
    """The message for a file that cannot be written."""
    allowed = "a file in an existing directory that can be written, with room for it"
    remedy = "Make room or choose another place."
    if error.errno == errno.ENAMETOOLONG:
        allowed, remedy = "a name with room for a few letters more", "Choose a shorter one."
    elif error.errno == errno.ENOENT and not os.path.isdir(path.parent):
        remedy = f"Create {path.parent} first, on the command line with --parents."
    elif error.errno in (errno.ENOTDIR, errno.ELOOP):
        remedy = "A part of the path is a file, or a link that leads nowhere: choose another name."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Choose a place where you may write, or change its permissions."
    return InputError(name, str(path), allowed, f"{error.strerror or error}. {remedy}")


def probe(
    path: str | os.PathLike[str],
    name: str = "out",
    *,
    overwrite: bool = True,
    inputs: Iterable[str | os.PathLike[str]] = (),
    suffixes: Iterable[str] = (),
    remedy: str = "Choose another name, or use --overwrite.",
) -> Path:
    """Where a new file will lie, links followed, once it is sure that it can. Changes nothing, but
    within :func:`making_parents` makes the folder.

    To be called before the work: what cannot be written is refused then, not after it.

    Parameters
    ----------
    name : of the option, for the message
    overwrite : whether a file that is there may be replaced
    inputs : files that are read, and so must be others
    suffixes : of files that will lie beside it
    remedy : where there is a file already

    Raises
    ------
    InputError : says what stands in the way
    """
    path = Path(path)
    try:
        target = Path(os.path.realpath(path))
        if _PARENTS.get():
            target.parent.mkdir(parents=True, exist_ok=True)
        there = _status(target)
        if there is not None:
            if not stat.S_ISREG(there.st_mode):
                found = ", but a directory" if stat.S_ISDIR(there.st_mode) else ""
                found = f"It is not a regular file{found}."
                raise InputError(name, str(path), "the name of a file", found)
            for file in inputs:
                if os.path.exists(file) and os.path.samefile(file, target):
                    remedy = "It is read here: choose another name."
                    raise InputError(name, str(path), "another file than the input", remedy)
            if not overwrite:
                raise InputError(name, str(path), "a file that does not exist yet", remedy)
            os.close(os.open(target, os.O_WRONLY))  # as it is; a file may be immutable
        for suffix in suffixes:
            _status(target.with_name(target.name + suffix))
        with _fresh(target):
            pass
    except OSError as error:
        raise refusal(path, error, name) from error
    return target


def probe_folder(
    path: str | os.PathLike[str], name: str = "out", files: Iterable[str] = ()
) -> Path:
    """As :func:`probe`, of a folder that may still have to be made. Returns the path.

    Parameters
    ----------
    files : names of those that will be written there

    Raises
    ------
    InputError : says what stands in the way
    """
    path = Path(path)
    try:
        folder, missing = Path(os.path.realpath(path)), []
        while (there := _status(folder)) is None:
            missing.append(folder.name)
            folder = folder.parent
        if not stat.S_ISDIR(there.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if any(len(os.fsencode(part)) > os.pathconf(folder, "PC_NAME_MAX") for part in missing):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with _fresh(folder / "any"):
            pass
    except OSError as error:
        raise refusal(path, error, name) from error
    for file in () if missing else files:
        probe(path / file, name)
    return path


def write_folder(path: str | os.PathLike[str], files: Mapping[str, bytes | str]) -> None:
    """Put files into a folder, each whole; the folder is made where it is missing.

    Raises
    ------
    InputError : one cannot be written
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(path, error) from error
    for file, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        with whole_file(path / file, overwrite=True) as target:
            target.write_bytes(data)


@contextlib.contextmanager
def whole_file(
    path: str | os.PathLike[str],
    *,
    overwrite: bool,
    inputs: Iterable[str | os.PathLike[str]] = (),
    name: str = "out",
) -> Iterator[Path]:
    """:func:`probe`, then :func:`fresh`, with messages for users.

    Raises
    ------
    InputError : there is a file already, or none can be written there
    """
    target = probe(path, name, overwrite=overwrite, inputs=inputs)
    try:
        with fresh(target) as file:
            yield file
    except OSError as error:
        raise refusal(Path(path), error, name) from error


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power failure, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def commit(
    path: Path,
    fill: Callable[[IO[bytes]], object],
    *,
    replace: bool = True,
    like: Path | None = None,
) -> None:
    """Put a file at ``path`` that ``fill`` writes; at any moment the old or the new is there whole.

    The same as :func:`fresh`, for what is written to an open file.

    Raises
    ------
    OSError : nothing at ``path`` has changed; FileExistsError if ``replace`` is False
    """
    with fresh(path, replace=replace, like=like) as target, open(target, "r+b") as file:
        fill(file)  # HDF5 reads what it has written


@contextlib.contextmanager
def fresh(path: Path, *, replace: bool = True, like: Path | None = None) -> Iterator[Path]:
    """A new empty file beside ``path``, which takes its place when the block ends well.

    It takes over mode, owner and access list of the file that it replaces, or of the one that it is
    to be ``like``; without such it follows the umask. Links are followed. A temporary file, fsync,
    rename, fsync of the folder: a killed process may leave the temporary one, hidden; nothing
    reads it.

    Raises
    ------
    OSError : nothing at ``path`` has changed; FileExistsError if ``replace`` is False
    """
    path = Path(os.path.realpath(path))
    with _fresh(path, like) as target:
        yield target
        handle = os.open(target, os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        if replace:
            target.replace(path)
        else:
            _place(target, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def _fresh(path: Path, like: Path | None = None) -> Iterator[Path]:
    """An empty file beside ``path``, removed if it is still there when the block ends."""
    # The name may be as long as names can be; HDF5 and netCDF see it, so it stays plain.
    stem = re.sub(r"[^\w.-]", "_", path.name, flags=re.ASCII)[:100]
    target = path.with_name(f".{stem}.{secrets.token_hex(4)}.new")
    handle = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            _take_over(path if like is None else like, handle)
        finally:
            os.close(handle)
        yield target
    finally:
        target.unlink(missing_ok=True)


def _take_over(path: Path, handle: int) -> None:
    """Give a new file the owner, the mode and the access list of the one at ``path``, if any."""
    old, new = _status(path), os.fstat(handle)
    if old is None:
        return
    for owner in (old.st_uid, -1):  # the group alone is what a user may give
        if (old.st_uid, old.st_gid) == (new.st_uid, new.st_gid):
            break
        with contextlib.suppress(OSError):
            os.fchown(handle, owner, old.st_gid)
            break
    os.fchmod(handle, stat.S_IMODE(old.st_mode))
    with contextlib.suppress(OSError):
        os.setxattr(handle, _ACCESS_LIST, os.getxattr(path, _ACCESS_LIST))


def _place(target: Path, path: Path) -> None:
    """Rename unless there is something: of two jobs with the same output only one starts."""
    try:
        os.link(target, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links here
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        target.replace(path)


def reserve(file: Path, start: int, size: int) -> None:
    """Give a file room for ``size`` bytes from ``start``, its end, on; OSError if there is none.

    What :func:`require_room` has seen others may take before the write; and where HDF5 meets a full
    disk in a write the last frames may be lost. Here the file holds its room, as zeros behind its
    end, until it is cut there again.

    Raises
    ------
    OSError : no room, also by a quota; the file is immutable, or would be larger than this process
        may write. Then it is as it was
    """
    with _growing(file, start + size) as handle:
        length = os.fstat(handle).st_size
        try:
            os.posix_fallocate(handle, start, size)
        except OSError:
            os.ftruncate(handle, length)
            raise


def hold(file: Path, size: int) -> None:
    """As :func:`reserve`, behind the end of a file to which other processes are writing, too.

    The end stays where it is, and the room is the file's until it has grown into it. Not the call
    of :mod:`os`: where a file system has none, the system's library writes zeros, and an end seen
    late would put them over what others have written. There :func:`require_room` has to do.
    """
    end = file.stat().st_size
    with _growing(file, end + size) as handle:
        code = _hold(handle, end, size)
    if code in _NO_ROOM_HELD:
        require_room(file.parent, size)
    elif code:
        raise OSError(code, os.strerror(code), str(file))


def _hold(handle: int, start: int, size: int) -> int:
    """Linux's ``fallocate`` with the file's size kept; 0 or its error."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None:
        return errno.ENOSYS
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while call(handle, _KEEP_SIZE, start, size):
        if (code := ctypes.get_errno()) != errno.EINTR:  # a signal, which is noted elsewhere
            return code
    return 0


@contextlib.contextmanager
def _growing(file: Path, end: int) -> Iterator[int]:
    """A descriptor of a file that may be written, and may grow to so many bytes."""
    handle = os.open(file, os.O_WRONLY)
    try:
        require_limit(file, end)
        yield handle
    finally:
        os.close(handle)


def require_limit(file: Path, end: int) -> None:
    """Raise OSError unless this process may write files of so many bytes."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if most != resource.RLIM_INFINITY and end > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(file))


def require_room(folder: Path, size: int, file: Path | None = None) -> None:
    """Raise OSError unless ``size`` more bytes fit, quotas included.

    HDF5 ends the process when a write fails; asking first gives a message. Space is allocated
    for a moment, because free bytes of the file system say nothing about quotas.

    Parameters
    ----------
    file : what they are for, if it exists: it may have been made immutable, or be near the largest
        size that this process may write
    """
    if file is not None:
        with _growing(file, file.stat().st_size + size):
            pass
    probe = folder / f".room.{secrets.token_hex(4)}"
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.unlink(probe)
        os.posix_fallocate(handle, 0, max(1, size))
    finally:
        os.close(handle)


def lead_nowhere(path: Path) -> None:
    """Let all descriptors that this process has of a file lead to the null device.

    After a write has failed HDF5 tries again when it closes the file, and ends the process with a
    segmentation fault if that fails, too. The file stays as it is.
    """
    with contextlib.suppress(OSError):
        there, null = os.stat(path), os.open(os.devnull, os.O_RDWR)
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                here = os.fstat(int(name))
                if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                    os.dup2(null, int(name), inheritable=False)
        os.close(null)


class Lock:
    """One writer of a file: an advisory lock that ends with the process that holds it.

    On a file system without locks nothing is held.

    Raises
    ------
    InputError : another process holds it
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f".{path.name}.lock")
        self._handle = -1
        while True:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise refusal(path, error) from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(handle, 200).decode(errors="replace").strip()
                os.close(handle)
                raise InputError(
                    "out",
                    str(path),
                    "a file that no other run is writing",
                    f"{holder or 'Another process'} is; stop it or choose another name.",
                ) from None
            except OSError as error:
                os.close(handle)
                if error.errno not in _NO_LOCKS:
                    raise refusal(path, error) from error
                self.path.unlink(missing_ok=True)
                return
            # Whoever held it before may have removed the name from under us.
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == os.stat(self.path).st_ino:
                    break
            os.close(handle)
        self._handle = handle
        os.ftruncate(handle, 0)
        os.write(handle, f"Process {os.getpid()} on {os.uname().nodename}".encode())

    def release(self) -> None:
        """Remove the lock; once more does nothing."""
        if self._handle >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = -1
