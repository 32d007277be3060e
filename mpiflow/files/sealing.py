"""The two forms of a Trajectory, and the way from one to the other.

=========  =====================================================================================
live       HDF5's default format: it survives a killed writer, and readers follow it
sealed     v110 format with a checksum on every part: no damage goes unseen. A finished run
=========  =====================================================================================
"""

from __future__ import annotations

import contextlib
import errno
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.files import footer, manifest, storage
from mpiflow.files.schema import Schema, plain, storable

_BATCH_BYTES = 2**23
_SAMPLE = 2**14
#: Filters that a chunk went without: those before the checksum, shuffle and gzip.
_NOT_COMPRESSED = 0b011
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Continuation:
    """Where to go on with a Trajectory that exists.

    Attributes
    ----------
    frames : to keep, from the beginning; what is behind them is written anew
    run : of the checkpoint; the file must have the same
    """

    frames: int
    run: str


def place(path: Path, schema: Schema, overwrite: bool) -> None:
    """Put a new live file at ``path``; an old one stays whole until the new one is on the disk."""
    remedy = "Choose another name, or use --overwrite or --resume."
    exists = InputError("out", str(path), "a file that does not exist yet", remedy)
    if path.exists() and not overwrite:
        raise exists
    try:
        storage.commit(path, lambda file: file.write(schema.image()), replace=overwrite)
    except FileExistsError:
        raise exists from None
    except OSError as error:
        raise storage.refusal(path, error) from error
    _forget(path)


def seal(path: Path, listed: bool = True) -> None:
    """Rewrite a finished live file as a sealed one, ``complete``; then enter it in the manifest.

    Parameters
    ----------
    listed : whether it is entered; not yet, for a file that has not its name yet

    Raises
    ------
    OSError : for example if there is no room; the live file is as it was
    """
    with h5py.File(path, "r", locking=False) as live:
        schema = Schema.of(live)
        schema.attributes = {**schema.attributes, "complete": 1}
        _rewrite(path, live, schema, len(live["time"]), sealed=True)
    if listed:
        manifest.enter(path)


def reopen(path: Path, schema: Schema, where: Continuation) -> float:
    """Make an existing file live again, with the first frames only; the time of the last of them.

    Raises
    ------
    InputError : it is missing, corrupt, of another run, or has not these frames or variables
    """
    name = "trajectory"
    if not path.is_file():
        remedy = "Its checkpoints are there: bring it back, or start again with --overwrite."
        raise InputError(name, str(path), "the file that the checkpoint belongs to", remedy)
    try:
        with h5py.File(path, "r+" if _grows(path) else "r", locking=False) as file:
            old = Schema.of(file)
            if old.attributes.get("run") != where.run:
                remedy = "Its checkpoints are of another run: bring back the file of that one."
                raise InputError(name, str(path), f"run {where.run}", remedy)
            if old.layout() != schema.layout():
                wanted = schema.layout()
                differing = {k: v for k, v in old.layout().items() if v != wanted[k]}
                remedy = "Save the same variables, or start a new file."
                raise InputError(name, differing, f"what it has: {wanted}", remedy)
            frames = min(len(file[v.name]) for v in (old.time, *old.variables) if v.per_frame)
            if frames < where.frames:
                remedy = "It was damaged or replaced: bring back a copy, or choose another name."
                raise InputError(name, frames, f"{where.frames} frames or more", remedy)
            last = float(file["time"][where.frames - 1]) if where.frames else -math.inf
            kept = {n: v for n, v in old.attributes.items() if n != "stopped_early"}  # it goes on
            schema.attributes = {**kept, **schema.attributes, "complete": 0}
            if file.mode == "r":
                schema.coordinates = old.coordinates
                _rewrite(path, file, schema, where.frames)
            else:
                _truncate(file, schema, where.frames)
    except InputError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
            raise storage.refusal(path, error, name) from error
        remedy = "It is corrupt: use a copy, or run it again under another name; a run is its seed."
        raise InputError(name, str(path), "an intact file", f"{error}. {remedy}") from error
    _forget(path)
    return last


def _forget(path: Path) -> None:
    """The entry is of the old file. A broken manifest is not this run's matter: verify says so."""
    with contextlib.suppress(InputError):
        manifest.forget(path)


def _grows(path: Path) -> bool:
    """Whether a file is live and whole: HDF5 must not free space that a torn flush never got."""
    with h5py.File(path, "r", locking=False) as file:
        schema = Schema.of(file)
        names = [v.name for v in (schema.time, *schema.variables) if v.per_frame]
        frames = [len(file[name]) for name in names]
        whole = min(frames) == max(frames) == readable(file, names, max(frames))
        return whole and not file.attrs["complete"]


def readable(file: h5py.File, names: Iterable[str], frames: int) -> int:
    """How many of these frames can be read.

    A writer that was killed inside of a flush may leave an index that knows chunks of its last
    frames, in a file whose end does not. A dataset in one piece has no such index.
    """
    names = [name for name in names if file[name].chunks]
    while frames:
        try:
            for name in names:
                for _ in _raw_chunks(file[name], frames, frames - 1):
                    pass  # one chunk at a time: a frame may be larger than memory
            return frames
        except (OSError, RuntimeError):
            frames -= 1
    return 0


def _truncate(file: h5py.File, schema: Schema, frames: int) -> None:
    for v in (schema.time, *schema.variables):
        if v.per_frame and len(file[v.name]) != frames:
            file[v.name].resize(frames, axis=0)
    for name in set(file.attrs) - set(schema.attributes):
        del file.attrs[name]
    for name, value in schema.attributes.items():
        if plain(file.attrs.get(name)) != value:
            file.attrs[name] = storable(name, value)
    file.flush()


def _rewrite(
    path: Path, source: h5py.File, schema: Schema, frames: int, sealed: bool = False
) -> None:
    """Replace a file by one of the same content in the other form."""
    storage.require_room(path.parent, path.stat().st_size + 2**20)

    def fill(file: Any) -> None:
        libver = ("v110", "v110") if sealed else None
        with h5py.File(file, "w", libver=libver) as target:
            schema.create(target, sealed)
            for v in (schema.time, *schema.variables):
                if v.per_frame:
                    target[v.name].resize(frames, axis=0)
                    _copy_frames(source[v.name], target[v.name], frames)
                else:
                    target[v.name][...] = source[v.name][...]
        if sealed:
            footer.append(file)

    storage.commit(path, fill)


def _copy_frames(source: h5py.Dataset, target: h5py.Dataset, frames: int) -> None:
    """Chunks as they are where both files pack them alike, or where to compress them would not pay,
    else values."""
    if source.chunks == target.chunks and _packing(source) == _packing(target):
        for at, mask, chunk in _raw_chunks(source, frames):
            target.id.write_direct_chunk(at, chunk, mask)
        return
    if source.chunks == target.chunks and _packing(source) == (None, False, True):
        for at, _, chunk in _raw_chunks(source, frames):
            if _pays(chunk):
                box = tuple(slice(a, a + n) for a, n in zip(at, source.chunks, strict=True))
                target[box] = source[box]
            else:
                target.id.write_direct_chunk(at, chunk, _NOT_COMPRESSED)
        return
    frame = max(1, int(np.prod(source.shape[1:])) * source.dtype.itemsize)
    step = max(1, _BATCH_BYTES // frame)
    for first in range(0, frames, step):
        here = slice(first, min(first + step, frames))
        target[here] = source[here]


def _pays(chunk: bytes) -> bool:
    """Whether to compress saves a third of it, by the middle of it."""
    middle = len(chunk) // 2
    sample = chunk[max(0, middle - _SAMPLE // 2) : middle + _SAMPLE // 2]
    return 3 * len(zlib.compress(sample, 1)) < 2 * len(sample)


def _packing(dataset: h5py.Dataset) -> tuple[Any, ...]:
    # Of chunks of many frames the last one may hold more than are wanted.
    alike = dataset.chunks[0] == 1 and dataset.fletcher32
    return (dataset.compression, dataset.shuffle, alike or dataset.file.filename)


def _raw_chunks(
    dataset: h5py.Dataset, frames: int, first: int = 0
) -> Iterator[tuple[tuple[int, ...], int, bytes]]:
    # All are there, allocated early; asking for the i-th would take time in proportion to i.
    sides, chunks = dataset.shape[1:], dataset.chunks
    lead = range(first // chunks[0] * chunks[0], frames, chunks[0])
    starts = [lead, *(range(0, n, c) for n, c in zip(sides, chunks[1:], strict=True))]
    for at in product(*starts):
        yield at, *dataset.id.read_direct_chunk(at)
