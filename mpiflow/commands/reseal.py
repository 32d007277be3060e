"""``mpiflow verify --seal``: a run that another program has changed is sealed anew."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from mpiflow.commands.verify import Finding, verify_file
from mpiflow.core.errors import InputError
from mpiflow.files import footer, manifest, storage
from mpiflow.files.runs import files_of


class _Refused(Exception):
    """What is found about a file that is left as it is."""


def seal(paths: Sequence[str | os.PathLike[str]]) -> Iterator[Finding]:
    """Seal finished runs that have no footer any more; a finding for each file.

    Everything that can be checked is checked first, values and physics among it, and against the
    entry in the manifest if there is one: a file that fails is left as it is. Its bytes are kept
    but for the mark of a file that is open; so a run that was only opened for writing gets the
    bytes, and the SHA-256, that it had.

    Parameters
    ----------
    paths : of files, or of folders of runs
    """
    for path in map(Path, paths):
        for file in files_of(path) if path.is_dir() else [path]:
            yield _seal(file)


def _seal(path: Path) -> Finding:
    if not os.path.isfile(path):
        return Finding(path, False, "not found")
    real = Path(os.path.realpath(path))
    lock = None
    try:
        lock = storage.Lock(real)
        entry = manifest.read(real.parent).get(real.name)
        state = footer.examine(real)
        if state == "sealed":
            return verify_file(path, entry=entry)
        _check_closed(real)
        with storage.fresh(real) as target:
            _copy(real, target, state)
            finding = verify_file(target)
            if not finding.good or "NOT complete" in finding.text:
                raise _Refused(finding.text)
            made = manifest.describe(target)
            if entry is not None and _facts(made) != _facts(entry):
                raise _Refused(f"{_facts(made)}, but {_facts(entry)} in {manifest.NAME}")
        manifest.enter(real)
    except _Refused as error:
        return Finding(path, False, f"left as it is: {error}")
    except InputError as error:
        return Finding(path, False, f"left as it is: {error.remedy}")
    except OSError as error:
        return Finding(path, False, f"left as it is: {error.strerror or error}")
    finally:
        if lock is not None:
            lock.release()
    same = ", the bytes of before" if entry == made else ""
    return Finding(path, True, f"sealed anew{same}: {finding.text}")


def _facts(entry: manifest.Entry) -> tuple[object, ...]:
    return entry.frames, entry.time, entry.system, entry.seed


def _check_closed(path: Path) -> None:
    """Refuse a file that HDF5 has open for writing elsewhere, where there are locks."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "another program has it open for writing: close it there"
            raise InputError("file", str(path), "a file that is closed", remedy) from None
        except OSError:
            return  # no locks here


def _copy(path: Path, target: Path, state: footer.State) -> None:
    """The HDF5 file at ``path``, with a footer."""
    with open(path, "rb") as source, open(target, "r+b") as file:
        shutil.copyfileobj(source, file, 2**22)
        if state == "open":
            file.seek(0)
            head = file.read(footer.SUPERBLOCK)
            about = footer.superblock(head)
            if about is None or about.end > os.fstat(file.fileno()).st_size:
                raise _Refused("corrupt: it ends too early")
            file.truncate(about.end)  # before its old footer, if that is still there
            file.seek(0)
            file.write(footer.closed(head))
            file.flush()
        footer.append(file)
