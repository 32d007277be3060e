"""Files that survive: whole or not at all, one writer, and no surprise from a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO

from mpiflow.errors import InputError

#: Of file systems that have no locks: then there is nothing to hold. 524 is what NFS may say.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, 524)


def refusal(path: Path, error: OSError, name: str = "out") -> InputError:
    """The message for a file that cannot be written."""
    allowed = "a file in an existing directory that can be written, with room for it"
    there = os.path.isdir(path.parent)
    remedy = "Make room or choose another place." if there else f"Create {path.parent} first."
    return InputError(name, str(path), allowed, f"{error.strerror or error}. {remedy}")


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power failure, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def commit(path: Path, fill: Callable[[IO[bytes]], object], *, replace: bool = True) -> None:
    """Put a file at ``path`` that ``fill`` writes; at any moment the old or the new is there whole.

    A temporary file beside it, fsync, rename, fsync of the folder. A killed process may leave the
    temporary one, hidden; nothing reads it.

    Raises
    ------
    OSError : nothing at ``path`` has changed; FileExistsError if ``replace`` is False
    """
    target = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with open(target, "x+b") as file:  # HDF5 reads what it has written
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            target.replace(path)
        else:
            _place(target, path)
    finally:
        target.unlink(missing_ok=True)
    sync_folder(path.parent)


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


def require_room(folder: Path, size: int) -> None:
    """Raise OSError unless ``size`` more bytes fit, quotas included.

    HDF5 ends the process when a write fails; asking first gives a message. Space is allocated
    for a moment, because free bytes of the file system say nothing about quotas.
    """
    probe = folder / f".room.{secrets.token_hex(4)}"
    handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.unlink(probe)
        os.posix_fallocate(handle, 0, max(1, size))
    finally:
        os.close(handle)


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
