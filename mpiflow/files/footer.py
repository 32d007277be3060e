"""A footer behind the HDF5 data of a sealed file: the SHA-256 of all that has no checksum there.

HDF5 checks the chunks (fletcher32), but not its heaps of references and texts, and reading
damaged ones can end the process. So a reader compares the footer before HDF5 sees the file.
HDF5 and netCDF ignore bytes behind their end of file.

    ... HDF5 ... {"bytes": n, "parts": [[0, 2048], ...], "sha256": "..."}
    mpiflow-seal SHA256-OF-THE-LINE-ABOVE LENGTH-OF-IT

``parts`` are the bytes of the file outside of its chunks; ``bytes`` is the size without footer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import h5py

from mpiflow.core.errors import InputError

_TAIL = re.compile(rb"\nmpiflow-seal ([0-9a-f]{64}) ([0-9]{12})\n")
_TAIL_BYTES = 92
_MAX_LINE = 2**26
_READ = 2**22
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_WORD = 2**32 - 1
#: Bytes of a superblock of version 2 or 3 with addresses of 8 bytes.
SUPERBLOCK = 48

#: ``changed``: by another program, which cut the footer off. ``open``: for writing, by another
#: program, or by one that did not close it. A live file has no footer.
State = Literal["live", "sealed", "changed", "open"]


def append(file: IO[bytes]) -> None:
    """Add the footer to a finished HDF5 file, open for reading and writing in binary."""
    with h5py.File(file, "r") as content:
        chunks = sorted(
            place
            for dataset in content.values()
            if dataset.chunks and dataset.fletcher32
            for place in _chunks(dataset)
        )
    size = file.seek(0, os.SEEK_END)
    parts, start = [], 0
    for first, length in [*chunks, (size, 0)]:
        if first > start:
            parts.append((start, first))
        start = first + length
    about = {"bytes": size, "parts": parts, "sha256": _digest(file, parts)}
    line = json.dumps(about).encode()
    tail = f"\nmpiflow-seal {hashlib.sha256(line).hexdigest()} {len(line):012d}\n"
    file.seek(0, os.SEEK_END)
    file.write(line + tail.encode())


def check(path: str | os.PathLike[str]) -> State:
    """As :func:`examine`; a file that is open elsewhere is refused.

    Raises
    ------
    InputError : the file is corrupt, or another program has it open for writing
    OSError : it cannot be read
    """
    state = examine(path)
    if state == "open":
        allowed = "a file that no other program has open for writing"
        remedy = (
            "Another program has, or ended without closing it: close it there. "
            f"If none has, mpiflow verify --seal {path} checks it and seals it anew."
        )
        raise InputError("file", str(path), allowed, remedy)
    return state


def examine(path: str | os.PathLike[str]) -> State:
    """Compare a file with its footer.

    Reads what is not in chunks: some KB, and about 20 bytes for each chunk. HDF5 cuts a footer off
    where a program opens the file for writing, and then ends it where its superblock says.

    Raises
    ------
    InputError : the file is corrupt
    OSError : it cannot be read
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(SUPERBLOCK)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = _TAIL.fullmatch(file.read(_TAIL_BYTES))
        # The version of a live file's superblock is 0.
        versioned = head[:8] == _SIGNATURE and head[8:9] >= b"\x02"
        if tail is None:
            if not versioned:
                return "live"
            if head[9:11] != b"\x08\x08":
                return "changed"  # no file of ours
            found = superblock(head)
            if found is None or found.end > size or (found.end < size and not found.open):
                raise _corrupt(path, "the end of the file")
            return "open" if found.open else "changed"
        if not _as_sealed(path, file, size, tail):
            found = superblock(head) if versioned else None
            if found is not None and found.open:
                return "open"
            raise _corrupt(path, "its structure or attributes")
    return "sealed"


def _as_sealed(path: Path, file: IO[bytes], size: int, tail: re.Match[bytes]) -> bool:
    """Whether all that the footer is about is as it was."""
    length = int(tail[2])
    end = size - _TAIL_BYTES - length
    if end < 0 or length > _MAX_LINE:
        raise _corrupt(path, "the footer")
    file.seek(end)
    line = file.read(length)
    if hashlib.sha256(line).hexdigest().encode() != tail[1]:
        raise _corrupt(path, "the footer")
    try:
        about: Any = json.loads(line)
        parts = [(int(start), int(stop)) for start, stop in about["parts"]]
        edges = [edge for part in parts for edge in part]
        intact = about["bytes"] == end and edges == sorted(edges) and 0 <= edges[0]
        return intact and edges[-1] <= end and _digest(file, parts) == about["sha256"]
    except (LookupError, TypeError, ValueError, RecursionError):
        return False


# -- superblocks ---------------------------------------------------------------------------------


class Superblock(NamedTuple):
    """Of HDF5 files of version 2 or 3: where they end, and whether one is open for writing."""

    end: int
    open: bool


def superblock(head: bytes) -> Superblock | None:
    """The first 48 bytes of a file; None if their checksum is wrong."""
    if len(head) < SUPERBLOCK or head[44:] != struct.pack("<I", _lookup3(head[:44])):
        return None
    return Superblock(int.from_bytes(head[28:36], "little"), bool(head[11]))


def closed(head: bytes) -> bytes:
    """The superblock of a file that nobody has open."""
    head = head[:11] + b"\0" + head[12:44]
    return head + struct.pack("<I", _lookup3(head))


def _lookup3(data: bytes) -> int:
    """Bob Jenkins' hash of HDF5's metadata (public domain, burtleburtle.net/bob/c/lookup3.c)."""

    def turn(value: int, by: int) -> int:
        return (value << by | value >> (32 - by)) & _WORD

    a = b = c = (0xDEADBEEF + len(data)) & _WORD
    data += b"\0" * (-len(data) % 12)
    for at in range(0, len(data), 12):
        x, y, z = struct.unpack_from("<3I", data, at)
        a, b, c = (a + x) & _WORD, (b + y) & _WORD, (c + z) & _WORD
        if at + 12 == len(data):
            break
        for by in (4, 6, 8, 16, 19, 4):
            a = ((a - c) & _WORD) ^ turn(c, by)
            c = (c + b) & _WORD
            a, b, c = b, c, a
    for by in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - turn(b, by)) & _WORD
        a, b, c = b, c, a
    return b


def _digest(file: IO[bytes], parts: list[tuple[int, int]]) -> str:
    digest = hashlib.sha256()
    for start, stop in parts:
        file.seek(start)
        while start < stop:
            block = file.read(min(_READ, stop - start))
            if not block:
                raise ValueError("the file is too short")
            digest.update(block)
            start += len(block)
    return digest.hexdigest()


def _chunks(dataset: h5py.Dataset) -> Iterator[tuple[int, int]]:
    """Offset and length of every chunk; asking for the i-th would take time in proportion to i."""
    starts = (range(0, n, c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
    for corner in itertools.product(*starts):
        chunk = dataset.id.get_chunk_info_by_coord(corner)
        if chunk.byte_offset is not None:
            yield chunk.byte_offset, chunk.size


def _corrupt(path: Path, where: str) -> InputError:
    remedy = f"It is corrupt: damage to {where}. Use another copy."
    return InputError("file", str(path), "an intact sealed file", remedy)
