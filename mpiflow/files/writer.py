"""Writing of Trajectory files: HDF5 that is also netCDF4, written by all ranks, read by any tool.

Rank 0 builds the empty file, in memory, with serial HDF5; both writers then only
append to it, so their schema cannot differ:

============  ==========================================================
``parallel``  every rank writes its own part through MPI-IO (``mpio``)
``gather``    rank 0 alone holds the file and receives the other parts;
              for an h5py without MPI
============  ==========================================================

docs/file-format.md describes the format for users.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import re
import time as clock
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.core.mpi import MPI, datatype
from mpiflow.core.parallel import agreed, leave_files_open
from mpiflow.files.schema import (
    TIME,
    Schema,
    Variable,
    own_attributes,
    storable,
)
from mpiflow.files.sealing import Continuation, place, reopen, seal
from mpiflow.files.storage import Lock, hold, lead_nowhere, probe, require_limit, reserve

Box = tuple[slice, ...]
Backend = Literal["auto", "parallel", "gather"]
Value = np.ndarray | float | tuple[np.ndarray, Box]

# Frames held back between flushes never take more memory than this, over all ranks.
_HELD_BYTES = 2**23
# Free space that HDF5 may need for its own tables in a flush, and with each chunk: its place in
# the index, and what a chunk that does not compress has more.
_ROOM, _CHUNK_ROOM = 2**20, 2**12
# Files that could not be written: garbage collection would close them on one rank, and that waits
# for the others.
_abandoned: list[h5py.File] = []


def _parallel(backend: Backend, ranks: int) -> bool:
    """Whether to write through MPI-IO. MPIFLOW_WRITER decides where ``auto`` is asked for."""
    choice = os.environ.get("MPIFLOW_WRITER", "auto") if backend == "auto" else backend
    if choice not in ("auto", "parallel", "gather"):
        raise InputError("backend", choice, "auto, parallel or gather", "Use auto.")
    available = bool(h5py.get_config().mpi)
    if choice == "parallel" and not available:
        remedy = "Use the gather writer, or build h5py with MPI (jobs/setup.sh)."
        raise InputError("backend", choice, "auto or gather: this h5py has no MPI", remedy)
    return available and (choice == "parallel" or (choice == "auto" and ranks > 1))


class TrajectoryWriter:
    """Appends frames to a new Trajectory file.

    All methods are collective and all ranks pass the same arguments, except for their
    parts of distributed variables. Use it in a ``with`` block: a run that ends with an
    exception leaves a readable file with ``complete`` = 0.

    Parameters
    ----------
    path : file to make; its directory must exist
    comm : the ranks that write; none means this process alone
    dims : size of each dimension but ``time``
    variables : what each frame holds, and the static variables
    coordinates : values along dimensions, numbers or text; default is the index
    attributes : of the file; at least system, config_json, seed, rng, decomposition_invariant
    overwrite : replace an existing file, once the new one has been created
    resume : go on with an existing file instead, after the frames that it says
    backend : how ranks write; MPIFLOW_WRITER in the environment replaces ``auto``
    time : name, units and meaning of the time axis
    flush_interval : seconds for which frames may be held back in memory. A flush costs
        milliseconds, so a fast run writes frames in batches; the first frame, and every
        frame of a slower run, is readable at once. 0 flushes every frame.

    Attributes
    ----------
    run : name of this run, 16 hexadecimal digits; its checkpoints have it too
    last_time : of the last frame

    Raises
    ------
    InputError : on all ranks, before anything on disk has changed
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        comm: MPI.Intracomm | None = None,
        dims: Mapping[str, int],
        variables: Sequence[Variable],
        coordinates: Mapping[str, np.ndarray] | None = None,
        attributes: Mapping[str, Any],
        overwrite: bool = False,
        resume: Continuation | None = None,
        backend: Backend = "auto",
        time: Variable = TIME,
        flush_interval: float = 1.0,
    ) -> None:
        comm = MPI.COMM_SELF if comm is None else comm
        made: tuple[Path, bool, str, float] | None = None
        self._lock: Lock | None = None
        with agreed(comm):
            if comm.rank == 0:
                title = {"title": f"mpiflow trajectory: {attributes.get('system')}"}
                # Links are followed: the file is replaced where it lies.
                target = probe(path)
                parallel, last = _parallel(backend, comm.size), -math.inf
                everything = title | own_attributes(comm.size) | dict(attributes)
                schema = Schema(dict(dims), variables, time, coordinates or {}, everything)
                schema.check()
                self._lock = Lock(target)
                try:
                    if resume is None:
                        place(target, schema, overwrite)
                    else:
                        schema.attributes = {"run": resume.run, **attributes}
                        last = reopen(target, schema, resume)
                except BaseException:
                    self._lock.release()
                    raise
                made = target, parallel, schema.attributes["run"], last
        self.path, self.parallel, self.run, last_time = comm.bcast(made)
        self.comm = comm.Dup()
        self._file: h5py.File | None = None
        if self.parallel:
            self._file = h5py.File(self.path, "r+", driver="mpio", comm=self.comm)
        elif comm.rank == 0:
            # A lock would keep readers out of the live file.
            self._file = h5py.File(self.path, "r+", locking=False)

        self._static = {v.name: v for v in variables if not v.per_frame}
        self._per_frame = {v.name: v for v in variables if v.per_frame}
        self._shapes = {v.name: tuple(dims[d] for d in v.dims) for v in variables}
        self._frame_bytes = sum(
            math.prod(self._shapes[v.name]) * np.dtype(v.dtype).itemsize
            for v in self._per_frame.values()
        )
        # Every rank's part of each variable, none for values that all ranks know.
        self._boxes: dict[str, list[Box] | None] = {"time": None}
        self._missing = set(self._static) if resume is None else set()
        self._held: list[tuple[float, dict[str, np.ndarray]]] = []
        self.last_time, self._open = last_time, True
        self._frames = 0 if resume is None else resume.frames
        self._flush_interval, self._last_flush = flush_interval, -math.inf

    def append(self, time: float, values: Mapping[str, Value]) -> None:
        """Add a frame.

        Parameters
        ----------
        time : later than that of the frame before
        values : for every per-frame variable either its value, known on all ranks, or
            ``(local, slices)``: this rank's part and where it lies in the whole. The
            parts of all ranks cover the variable once and stay the same in every
            frame; a part may be empty. Arrays are copied.
        """
        if not self.last_time < time < math.inf:
            allowed = f"a finite time after {self.last_time}"
            raise InputError("time", time, allowed, "Append frames in order.")
        if set(values) != set(self._per_frame):
            allowed = f"exactly {sorted(self._per_frame)}"
            raise InputError("values", sorted(values), allowed, "Give all, in every frame.")
        frame = self._parts([(v, values[name]) for name, v in self._per_frame.items()])
        self._held.append((float(time), frame))
        self.last_time = time
        full = len(self._held) * self._frame_bytes >= _HELD_BYTES
        late = clock.monotonic() - self._last_flush >= self._flush_interval
        # Clocks differ between ranks: that of rank 0 decides.
        if full or self._flush_interval <= 0 or self.comm.bcast(late):
            self.flush()

    def write_static(self, name: str, value: Value) -> None:
        """Write a variable without time, whole or in parts as in :meth:`append`."""
        if name not in self._static:
            raise InputError("name", name, f"one of {sorted(self._static)}", "Declare it first.")
        values = self._parts([(self._static[name], value)])[name]
        self._require_room(math.prod(self._shapes[name]) * values.itemsize)
        with self._written():
            self._store(name, values)
        self._missing.discard(name)

    def note(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes of the file, which was made without them. Collective."""
        with self._written():
            if self._file is not None:
                for name, value in attributes.items():
                    self._file.attrs[name] = storable(name, value)

    def flush(self) -> None:
        """Bring all frames to the file, so that readers and a crash find them.

        To be called before a checkpoint, which must not be newer than the trajectory.
        """
        try:
            self._flush()
        except InputError:  # nothing more can be written; the file is that of the last flush
            self._open = False
            if self._file is not None:  # nothing has been tried
                if self.parallel and self.comm.size > 1:
                    # Closing writes, too: if that fails on one rank, HDF5 waits on others for ever.
                    self._abandon()
                else:
                    self._file.close()
            self._release()
            raise
        self._last_flush = clock.monotonic()

    def _flush(self) -> None:
        held, self._held = self._held, []
        if held:
            self._require_room(self._needed(len(held)))
            for name in self._per_frame:
                # A large field is held alone: no second copy.
                parts = [frame[name] for _, frame in held]
                values = np.stack(parts) if len(parts) > 1 else parts[0][None]
                with self._written():
                    self._store(name, values, self._frames)
            # Last: a frame exists once it has a time.
            with self._written():
                self._store("time", np.array([time for time, _ in held]), self._frames)
        with self._written():
            if self._file is not None:
                self._file.flush()
                if not self.parallel:  # what was reserved and is not needed
                    os.truncate(self.path, self._file.id.get_filesize())
        self._frames += len(held)

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        """An error of a write on any rank is a message on all. Collective.

        Quotas, limits and file systems may change between the probe and the write. Then HDF5 may
        fail on one rank and wait for it on the others, for ever: that one ends them.
        """
        try:
            with agreed(self.comm, alone=True):
                try:
                    yield
                except (OSError, RuntimeError) as error:
                    number = re.search(r"errno = (\d+)", str(error))  # of HDF5, among addresses
                    said = os.strerror(int(number[1])) if number else error
                    reason = f"Writing said: {said}"
                    raise self._lost(reason, "a file that takes the next frames") from error
        except InputError:
            self._abandon()
            raise

    def _abandon(self) -> None:
        """Leave the file as it is, never closed: as it would be had the program been killed."""
        leave_files_open()
        lead_nowhere(self.path)
        if self._file is not None:
            _abandoned.append(self._file)
        self._file = None

    def _needed(self, frames: int) -> int:
        """Bytes of the chunks that so many frames more will allocate, on a rank with the file."""
        if self._file is None:
            return 0
        size = 0
        for name in ("time", *self._per_frame):
            dataset = self._file[name]
            lead, *sides = dataset.chunks
            new = -(-(self._frames + frames) // lead) - -(-self._frames // lead)
            pieces = (-(-n // c) for n, c in zip(dataset.shape[1:], sides, strict=True))
            chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
            size += new * math.prod(pieces) * (chunk + _CHUNK_ROOM)
        return size

    def _require_room(self, size: int) -> None:
        """Let the file hold room for so many bytes more, or raise on all ranks. Collective."""
        size += _ROOM
        with agreed(self.comm):
            try:
                if self.comm.rank > 0:
                    if self.parallel:  # limits may differ
                        require_limit(self.path, self.path.stat().st_size + size)
                elif self.parallel or self._file is None:  # MPI-IO does not say where it ends
                    hold(self.path, size)
                else:
                    reserve(self.path, self._file.id.get_filesize(), size)
            except OSError as error:
                allowed = f"{size / 1e6:.3g} MB of room for the next frames"
                raise self._lost(str(error.strerror), allowed) from error

    def _lost(self, reason: str, allowed: str) -> InputError:
        text = f"{self._frames} frames are saved. {reason}: make room, then resume."
        return InputError("out", str(self.path), allowed, text)

    @property
    def frames(self) -> int:
        """Number of frames appended, whether or not they are in the file yet."""
        return self._frames + len(self._held)

    def close(self, complete: bool = True) -> None:
        """Flush and close; ``complete``: the run came to its planned end, and the file is sealed.

        Where there is no room to seal it, it stays a live file.
        """
        if not self._open:
            return
        self._open = False
        self.flush()
        if self._file is not None:
            self._file.close()
        self.comm.Barrier()
        with agreed(self.comm):
            if self.comm.rank == 0 and complete and not self._missing:
                # Never complete for a file that lacks data.
                self._seal()
        self._release()
        self.comm.Free()
        if complete and self._missing:
            allowed = f"all of {sorted(self._static)} written before close"
            raise InputError("missing", sorted(self._missing), allowed, "Call write_static.")

    def _seal(self) -> None:
        try:
            seal(self.path)
        except OSError as error:
            warnings.warn(f"{self.path} is not sealed: {error.strerror or error}", stacklevel=2)
            with (
                contextlib.suppress(OSError),
                h5py.File(self.path, "r+", locking=False) as file,
            ):
                file.attrs.modify("complete", np.int8(1))
        except InputError as error:
            warnings.warn(f"{self.path} is not in the manifest. {error}", stacklevel=2)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._open:
            return
        if kind is None:
            self.close()
        elif self.comm.size == 1:
            # The first error is the one to see.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self.close(complete=False)
            self._release()
        else:
            # Other ranks may be anywhere: nothing collective. The file is that of the last flush.
            self._open = False
            self._release()
            if self._file is not None and self.parallel:
                # Closing waits for the other ranks, and so does garbage collection: not before
                # this rank ends, but then before MPI does.
                atexit.register(self._file.close)
            elif self._file is not None:
                self._file.close()

    def _parts(self, values: list[tuple[Variable, Value]]) -> dict[str, np.ndarray]:
        """Check values and copy them, as (this rank's part of) the array in the file."""
        arrays: dict[str, np.ndarray] = {}
        boxes: dict[str, Box | None] = {}
        first = any(v.name not in self._boxes for v, _ in values)
        # All ranks hear of a mistake in the first frame; later ones are not worth a message.
        with agreed(self.comm) if first else contextlib.nullcontext():
            for v, value in values:
                local, slices = value if isinstance(value, tuple) else (value, None)
                array, whole = np.asarray(local), self._shapes[v.name]
                box = None if slices is None else _normal(v.name, slices, whole)
                shape = whole if box is None else tuple(s.stop - s.start for s in box)
                if array.shape != shape or not np.can_cast(array.dtype, v.dtype, "same_kind"):
                    given, allowed = f"{array.dtype}{array.shape}", f"{v.dtype}{shape}"
                    raise InputError(v.name, given, allowed, "For a part, pass (part, slices).")
                parts = self._boxes.get(v.name)
                known = parts and parts[self.comm.rank]
                if not first and box != known:
                    raise InputError(
                        v.name, box, f"the part of the first frame, {known}", "Keep it."
                    )
                arrays[v.name], boxes[v.name] = array.astype(v.dtype, order="C"), box
        if first:
            self._agree_on_parts(boxes)
        return arrays

    def _agree_on_parts(self, boxes: dict[str, Box | None]) -> None:
        """Learn where every rank's part lies, and that the parts cover each variable once."""
        everyone = self.comm.allgather(boxes)
        for name in boxes:
            parts = [theirs[name] for theirs in everyone]
            present = [box for box in parts if box is not None]
            if present and (len(present) < len(parts) or not _tile(self._shapes[name], present)):
                allowed = f"parts that cover {self._shapes[name]} once, on all ranks or on none"
                raise InputError(
                    name, parts[:8], allowed, "Check the slices that each rank passes."
                )
            self._boxes[name] = present or None

    def _store(self, name: str, values: np.ndarray, first: int | None = None) -> None:
        """Write this rank's part, of frames from ``first`` on or of a static variable."""
        boxes, lead = self._boxes[name], [] if first is None else [first]
        if not self.parallel and boxes is not None:
            values = self._gather(values, boxes, values.shape[: len(lead)] + self._shapes[name])
            boxes = None
        if self._file is None:
            return
        dataset = self._file[name]
        if first is not None:
            dataset.resize(first + len(values), axis=0)
        # Filtered writes need every rank, also those without data. For small common values
        # rank 0 alone is several times faster.
        transfer = h5py.h5p.create(h5py.h5p.DATASET_XFER)
        if self.parallel and (boxes is not None or dataset.compression):
            transfer.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
        elif self.comm.rank > 0:
            return
        source, target = h5py.h5s.create_simple(values.shape), dataset.id.get_space()
        if values.size == 0 or (boxes is None and self.comm.rank > 0):
            source.select_none()
            target.select_none()
        elif values.ndim:
            inner = [0] * (values.ndim - len(lead))
            corner = [s.start for s in boxes[self.comm.rank]] if boxes else inner
            target.select_hyperslab((*lead, *corner), values.shape)
        dataset.id.write(source, target, values, dxpl=transfer)

    def _gather(self, values: np.ndarray, boxes: list[Box], shape: Shape) -> np.ndarray:
        """The whole array on rank 0; other ranks only send their part.

        Rank 0 receives each part in its place: it needs no memory beyond the whole, and
        no message has more elements than one part.
        """
        comm, mpi_type = self.comm, datatype(values.dtype)
        if comm.size == 1:
            return values
        if comm.rank > 0:
            if values.size:
                comm.Send([values, mpi_type], 0)
            return values
        whole = np.empty(shape, values.dtype)
        frames = (slice(0, shape[0]),) * (len(shape) - len(boxes[0]))
        requests = []
        for rank, box in enumerate(boxes):
            place = (*frames, *box)
            sides = [s.stop - s.start for s in place]
            if rank == 0:
                whole[place] = values
            elif all(sides):
                tile = mpi_type.Create_subarray(shape, sides, [s.start for s in place]).Commit()
                requests.append(comm.Irecv([whole, 1, tile], rank))
                tile.Free()
        MPI.Request.Waitall(requests)
        return whole


def _normal(name: str, slices: Box, shape: Shape) -> Box:
    """Slices with plain start and stop."""
    ranges = [range(n)[s] for s, n in zip(slices, shape, strict=False)]
    if len(slices) != len(shape) or any(r.step != 1 for r in ranges):
        raise InputError(name, slices, f"{len(shape)} slices of step 1", "Give one a dimension.")
    return tuple(slice(r.start, r.start + len(r)) for r in ranges)


def _tile(shape: Shape, boxes: list[Box]) -> bool:
    """Whether the boxes cover the shape exactly once. Works on their edges, not on sites."""
    boxes = [box for box in boxes if all(s.stop > s.start for s in box)]
    edges = []
    for axis, n in enumerate(shape):
        ends = {0, n}.union(*({box[axis].start, box[axis].stop} for box in boxes))
        edges.append({end: i for i, end in enumerate(sorted(ends))})
    count = np.zeros([len(e) - 1 for e in edges], np.int64)
    for box in boxes:
        cells = zip(edges, box, strict=True)
        count[tuple(slice(index[s.start], index[s.stop]) for index, s in cells)] += 1
    return bool((count == 1).all())
