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
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py

from mpiflow.errors import InputError

_TAIL = re.compile(rb"\nmpiflow-seal ([0-9a-f]{64}) ([0-9]{12})\n")
_TAIL_BYTES = 92
_MAX_LINE = 2**26
_READ = 2**22
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


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


def check(path: str | os.PathLike[str]) -> bool:
    """Compare a file with its footer; False for a live file, which has none.

    Reads what is not in chunks: some KB, and about 20 bytes for each chunk.

    Raises
    ------
    InputError : the file is corrupt
    OSError : it cannot be read
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(9)
        file.seek(max(0, size - _TAIL_BYTES))
        tail = _TAIL.fullmatch(file.read(_TAIL_BYTES))
        if tail is None:
            # The version of a live file's superblock is 0.
            if head[:8] == _SIGNATURE and head[8:] >= b"\x02":
                raise _corrupt(path, "the end of the file")
            return False
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
            intact = intact and edges[-1] <= end and _digest(file, parts) == about["sha256"]
        except (LookupError, TypeError, ValueError, RecursionError):
            intact = False
        if not intact:
            raise _corrupt(path, "its structure or attributes")
    return True


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
