"""``manifest.json``: what the finished runs of a folder are, with the sha256 of each file.

    {"schema": 1, "runs": {"run.h5": {"sha256": ..., "bytes": ..., "frames": 101,
     "time": [0.0, 50.0], "system": "ising", "seed": 7, "mpiflow_version": "0.1.0"}}}

A run enters its file when it is done; ``mpiflow verify`` compares. Jobs of an array may enter
at the same time: each holds a lock while it reads, changes and replaces the whole manifest.
One rank of a job calls these functions.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.files import footer, storage
from mpiflow.files.schema import plain

NAME = "manifest.json"
LOCK = ".manifest.lock"
SCHEMA = 1

#: A larger manifest is refused unread. An entry has about 300 bytes.
MAX_BYTES = 2**26
#: Seconds to wait for other jobs that are writing the manifest; each needs milliseconds.
PATIENCE = 60.0

# What flock says where the file system has no locks; the last is what NFS may say.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, 524}
_TEXT = 200


@dataclass(frozen=True)
class Entry:
    """What the manifest says about a file.

    Parameters
    ----------
    sha256 : of the whole file, 64 hexadecimal digits
    bytes : size of the file
    frames : number of frames
    time : of the first and of the last frame; None without frames
    system, seed, mpiflow_version : root attributes of the file
    """

    sha256: str
    bytes: int
    frames: int
    time: tuple[float, float] | None
    system: str
    seed: int
    mpiflow_version: str


def enter(path: str | os.PathLike[str]) -> Entry:
    """Add the entry of a finished run, or replace it. Reads the whole file.

    Raises
    ------
    InputError : the file is not a complete Trajectory; the folder cannot be written; or its
        manifest is corrupt, which then stays as it is
    """
    path = Path(path).absolute()
    _check_name(path.name, path.parent)
    entry = describe(path)
    with _locked(path.parent):
        _write(path.parent, read(path.parent) | {path.name: entry})
    return entry


def forget(path: str | os.PathLike[str]) -> None:
    """Remove the entry of a file, if there is one: a new run starts at that path.

    Raises
    ------
    InputError : as for :func:`enter`
    """
    path = Path(path).absolute()
    if not (path.parent / NAME).exists():
        return
    with _locked(path.parent):
        entries = read(path.parent)
        if entries.pop(path.name, None) is not None:
            _write(path.parent, entries)


def read(folder: str | os.PathLike[str]) -> dict[str, Entry]:
    """The entries of a folder by file name; none without a manifest.

    Names are those of files in the folder itself, whoever wrote the manifest.

    Raises
    ------
    InputError : the manifest cannot be read, or anything in it is not what it should be
    """
    path = Path(folder) / NAME
    try:
        # Not blocking: a pipe of that name must not hang the run.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _refused(path, f"a readable {NAME}", f"{error.strerror}.") from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        os.close(handle)
        raise _corrupt(path, f"it is no regular file of at most {MAX_BYTES} bytes")
    with open(handle, "rb") as file:
        try:
            text = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise _refused(path, f"a readable {NAME}", f"{error.strerror}.") from error
    try:
        document = json.loads(
            text.decode("utf-8"), object_pairs_hook=_no_twins, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"it is no strict JSON ({error})") from None
    return _entries(path, document)


def describe(path: Path) -> Entry:
    """The entry of a complete Trajectory file, from its bytes and its content.

    Raises
    ------
    InputError : the file is missing, corrupt, no Trajectory, or not complete
    """
    try:
        footer.check(path)  # before HDF5 sees a damaged file
        with open(path, "rb") as file:
            digest, size = fingerprint(file)
            # From the same bytes, even if another job renames a new file to this path.
            with h5py.File(file, "r") as content:
                about = {name: plain(value) for name, value in content.attrs.items()}
                times = content["time"][:]
                if int(about["complete"]) != 1:
                    raise _refused(path, "a complete run", "It is running, or was interrupted.")
                fields = {
                    "sha256": digest,
                    "bytes": size,
                    "frames": len(times),
                    "time": [float(times[0]), float(times[-1])] if len(times) else None,
                    "system": _text(about["system"]),
                    "seed": int(about["seed"]),
                    "mpiflow_version": _text(about["mpiflow_version"]),
                }
        return _entry(path, path.name, fields)
    except FileNotFoundError as error:
        raise _refused(path, "an existing trajectory", "It was not found.") from error
    except InputError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _refused(path, "an intact trajectory", "It is corrupt, or none.") from error


def fingerprint(file: BufferedReader) -> tuple[str, int]:
    """The sha256 of an open file, in hexadecimal digits, and its size in bytes."""
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest, os.fstat(file.fileno()).st_size


# -- checking ----------------------------------------------------------------------------


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes | np.bytes_) else str(value)


def _refused(path: Path, allowed: str, remedy: str) -> InputError:
    return InputError("file", str(path), allowed, remedy)


def _corrupt(path: Path, what: str) -> InputError:
    remedy = f"It is corrupt: {what}. Move it away and let mpiflow verify check the runs."
    return InputError("manifest", str(path), f"a {NAME} as mpiflow writes it", remedy)


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _check_name(name: str, folder: Path) -> None:
    """Refuse all but the plain name of a file in the folder."""
    try:
        size = len(os.fsencode(name))  # the bytes of a name need not be UTF-8
    except UnicodeEncodeError:
        size = 0
    if not 0 < size < 256 or name in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise _corrupt(folder / NAME, f"{name[:_TEXT]!r} is no name of a file in its folder")


def _entries(path: Path, document: Any) -> dict[str, Entry]:
    if not isinstance(document, dict) or set(document) != {"schema", "runs"}:
        raise _corrupt(path, "it does not hold schema and runs")
    if type(document["schema"]) is not int or document["schema"] < 1:
        raise _corrupt(path, "schema is no positive integer")
    if document["schema"] > SCHEMA:
        raise _refused(path, f"schema up to {SCHEMA}", "A newer mpiflow wrote it: update.")
    if not isinstance(document["runs"], dict):
        raise _corrupt(path, "runs is no object")
    entries = {}
    for name, fields in document["runs"].items():
        _check_name(name, path.parent)
        entries[name] = _entry(path, name, fields)
    return entries


def _entry(path: Path, name: str, fields: Any) -> Entry:
    """The entry of a name, once all its fields are what they should be."""
    if not isinstance(fields, dict) or set(fields) != set(Entry.__dataclass_fields__):
        raise _corrupt(path, f"the entry {name} has not the fields of an entry")
    wrong = [field for field, value in fields.items() if not _fits(field, value)]
    if wrong or (fields["frames"] > 0) != (fields["time"] is not None):
        raise _corrupt(path, f"the entry {name} has bad values: {wrong or 'frames, time'}")
    span = fields["time"] and (float(fields["time"][0]), float(fields["time"][1]))
    return Entry(**fields | {"time": span})


def _fits(field: str, value: Any) -> bool:
    """Whether a field of an entry has the right type and range."""
    if field in ("bytes", "frames", "seed"):
        return type(value) is int and 0 <= value < 2**64
    if field == "time":
        return value is None or (
            isinstance(value, list)
            and len(value) == 2
            and all(type(t) in (int, float) and abs(t) < 1e300 and math.isfinite(t) for t in value)
            and value[0] <= value[1]
        )
    if field == "sha256":
        return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
    return isinstance(value, str) and 0 < len(value) <= _TEXT and value.isprintable()


# -- writing -----------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other jobs out of the manifest, where the file system has locks."""
    try:
        # The lock file stays: two jobs must never lock two different files.
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        _take(handle, folder)
        yield
    finally:
        os.close(handle)


def _take(handle: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise _unwritable(folder, error) from error
            if time.monotonic() > deadline:
                remedy = f"Another job has held {LOCK} for {PATIENCE:g} s: is it stopped?"
                raise _refused(folder / NAME, "a manifest that is free", remedy) from error
        time.sleep(0.01)


def _write(folder: Path, entries: dict[str, Entry]) -> None:
    """Replace the manifest as a whole; the old one stays until the new one is on the disk."""
    # A line for each run.
    lines = [f"{json.dumps(k)}: {json.dumps(asdict(entries[k]))}" for k in sorted(entries)]
    text = f'{{"schema": {SCHEMA}, "runs": {{\n' + ",\n".join(lines) + "\n}}\n"
    try:
        storage.commit(folder / NAME, lambda file: file.write(text.encode()))
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> InputError:
    remedy = f"{error.strerror}. The runs and the old manifest are as they were."
    return InputError("manifest", str(folder / NAME), "a folder that can be written", remedy)
