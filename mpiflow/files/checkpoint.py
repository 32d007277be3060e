"""Checkpoints: all that a run needs to go on, written on any number of ranks, read on any other.

A checkpoint of ``run.h5`` is ``checkpoints/run.h5.000012`` beside it: an HDF5 file (v110, with
checksums), and behind it 128 bytes with the SHA-256 of all before, which HDF5 ignores. The number
counts up; the last two are kept. The bytes do not depend on the number of ranks.

============  ================================================================================
attributes    ``config_json``, ``facts_json``, ``segments_json``, ``run`` (name of this run, also in
              its Trajectory), versions, and the numbers of the simulation and of its recording
``sites``     the state of the simulation, one number of any kind a site, (members, *sides); of
              spins (members, Ly, Lx / 8 rounded up) uint8, a bit a spin, the first in the highest
              bit
others        a row for each member: flips, clocks, order of events
============  ================================================================================
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from mpiflow._version import __version__
from mpiflow.core.boxes import gather_boxes
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Shape
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.core.schedule import Number, State
from mpiflow.files import storage
from mpiflow.files.schema import git_hash

FORMAT = 1
#: Newest ones that are kept.
KEPT = 2
_TAIL_BYTES = 128
_TAIL = re.compile(rb"mpiflow checkpoint (\d+)\nsha256 ([0-9a-f]{64})\nbytes (\d+)\n\0*", re.DOTALL)
_CHUNK = 2**20


class Resumable(Protocol):
    """What a simulation offers to be kept and continued."""

    comm: MPI.Intracomm
    members: int
    lattice: Lattice

    @property
    def time(self) -> float: ...
    @property
    def local_members(self) -> slice: ...
    @property
    def block(self) -> Any: ...
    def site_bits(self) -> np.ndarray | None: ...
    def local_box(self) -> tuple[slice, ...]: ...
    def state_of(self) -> State: ...
    def restore(self, state: State) -> None: ...


# -- files -----------------------------------------------------------------------------------------


def folder_of(out: Path) -> Path:
    return out.parent / "checkpoints"


def paths(out: str | os.PathLike[str]) -> list[Path]:
    """Checkpoints of a run, the newest first."""
    out = Path(out)
    pattern = re.compile(re.escape(out.name) + r"\.(\d{6,})")
    found = []
    if folder_of(out).is_dir():
        for path in folder_of(out).iterdir():
            if match := pattern.fullmatch(path.name):
                found.append((int(match[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


def adopt(out: Path) -> list[Path]:
    """Checkpoints of a run that were written while its file had another name, the newest first.

    They have the name of the run that is in the file, and get the new name of the file, unless
    there is a file of the old name still, or the folder cannot be written.
    """
    run = _run_of(out) if out.is_file() else ""
    if not run or not folder_of(out).is_dir():
        return []
    found = []
    for path in folder_of(out).iterdir():
        match = re.fullmatch(r"(.+)\.(\d{6,})", path.name)
        if match and not path.name.startswith(".") and _run_of(path) == run:
            found.append((int(match[2]), path, out.parent / match[1]))
    kept = []
    for number, path, old in sorted(found, reverse=True):
        new = folder_of(out) / f"{out.name}.{number:06d}"
        if not old.exists():
            try:
                path = path.rename(new)
            except OSError:
                pass  # it can be read where it is
        kept.append(path)
    return kept


def _run_of(path: Path) -> str:
    """The name of the run that a file is of; nothing if it does not say one."""
    try:
        with _opened(path) as file:
            return str(file.attrs["run"])
    except (OSError, LookupError, RuntimeError, TypeError, ValueError):
        return ""


def forget(out: Path) -> None:
    """Remove the checkpoints of a run, and the folder if nothing is left in it."""
    for path in paths(out):
        path.unlink(missing_ok=True)
    try:
        folder_of(out).rmdir()
    except OSError:
        return


def probe(out: Path, overwrite: bool, keep: bool) -> None:
    """Refuse a place where a run, and its checkpoints if it keeps some, cannot be written."""
    remedy = "Choose another name, or use --overwrite or --resume."
    # The names of a checkpoint and of the lock are longer than that of the run.
    target = storage.probe(out, overwrite=overwrite, suffixes=[".000001"], remedy=remedy)
    if keep:
        storage.probe_folder(folder_of(target), "checkpoints")


# -- writing ---------------------------------------------------------------------------------------


def write(
    out: Path, sim: Resumable, attributes: Mapping[str, Any], numbers: Mapping[str, Number]
) -> Path:
    """Write the next checkpoint of a run and remove those that are too old. Collective.

    Parameters
    ----------
    out : the Trajectory, already flushed: a checkpoint must not be newer
    attributes : texts; at least config_json and run
    numbers : of the recording, beside those of the simulation

    Raises
    ------
    InputError : on all ranks, for example if the disk is full; older checkpoints are as they were
    """
    state, comm = sim.state_of(), sim.comm
    whole = _gather_sites(sim)
    arrays = {name: _gather_members(array, sim) for name, array in state.arrays.items()}
    path = folder_of(out)
    with agreed(comm):
        if comm.rank == 0:
            texts = {
                "mpiflow_version": __version__,
                "git_hash": git_hash(),
                **attributes,
                "numbers_json": json.dumps({**state.numbers, **numbers}),
                "shape": np.array((sim.members, *sim.lattice.shape)),
            }
            present = paths(out)
            number = 1 + (int(present[0].name.rpartition(".")[2]) if present else 0)
            path = path / f"{out.name}.{number:06d}"
            _write_file(path, {"sites": whole, **arrays}, texts, like=next(iter(present), None))
            for old in present[KEPT - 1 :]:
                old.unlink(missing_ok=True)
    return Path(comm.bcast(str(path)))


def _write_file(
    path: Path, arrays: Mapping[str, Any], texts: Mapping[str, Any], like: Path | None
) -> None:
    body = _image(arrays, texts)
    tail = f"mpiflow checkpoint {FORMAT}\nsha256 {hashlib.sha256(body).hexdigest()}\n"
    tail += f"bytes {len(body)}\n"

    def fill(file: Any) -> None:
        file.write(body)
        file.write(tail.encode().ljust(_TAIL_BYTES, b"\0"))

    try:
        path.parent.mkdir(exist_ok=True)
        storage.commit(path, fill, like=like)
    except OSError as error:
        raise storage.refusal(path, error, "checkpoint") from error


def _image(arrays: Mapping[str, np.ndarray], texts: Mapping[str, Any]) -> memoryview:
    """The HDF5 file in memory: writing to a full disk through HDF5 would end the process."""
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v110", "v110")) as file:
        for name, value in texts.items():
            file.attrs[name] = value
        for name, array in arrays.items():
            options: dict[str, Any] = {}
            if array.size:
                options = {"chunks": _chunks(array), "fletcher32": True}
            if array.dtype == np.int8:  # bits of spins do not get smaller, bytes of species do
                options |= {"compression": "gzip", "compression_opts": 1}
            file.create_dataset(name, data=array, **options)
    return image.getbuffer()


def _chunks(array: np.ndarray) -> Shape:
    """About a MiB each, whole trailing axes first."""
    left, sides = max(1, _CHUNK // array.itemsize), []
    for side in reversed(array.shape):
        sides.append(max(1, min(side, left)))
        left = max(1, left // sides[-1])
    return tuple(reversed(sides))


def _gather_sites(sim: Resumable) -> np.ndarray:
    """All sites on rank 0, packed where they are before they travel; elsewhere nothing."""
    comm, bits = sim.comm, sim.site_bits()
    place, shape = (sim.local_members, *sim.local_box()), (sim.members, *sim.lattice.shape)
    if bits is None:
        piece = sim.block.spins()
        whole = gather_boxes(piece, place, shape, comm)
        return piece if whole is None else whole
    places = comm.gather(place)
    if places is None:
        if bits.size:
            comm.Send([bits, MPI.BYTE], 0, tag=1)
        return bits
    if comm.size == 1:
        return bits
    whole = np.zeros((*shape[:-1], -(-shape[-1] // 8)), bits.dtype)
    for rank, (members, *box) in enumerate(places):
        if rank > 0:
            sides = [s.stop - s.start for s in (members, *box)]
            bits = np.empty((*sides[:-1], -(-sides[-1] // 8)), bits.dtype)
            if bits.size:
                comm.Recv([bits, MPI.BYTE], rank, tag=1)
        _or_bits(whole[members, box[0]], bits, box[1].start)
    return whole


def _or_bits(target: np.ndarray, piece: np.ndarray, first: int) -> None:
    """Put packed rows into zeros from bit ``first`` on; the last byte of a row may be shared."""
    byte, shift = divmod(first, 8)
    target[..., byte : byte + piece.shape[-1]] |= piece >> shift
    if shift:
        rest = target[..., byte + 1 : byte + 1 + piece.shape[-1]]
        rest |= (piece << (8 - shift))[..., : rest.shape[-1]]


def _gather_members(array: np.ndarray, sim: Resumable) -> np.ndarray:
    """Rows of all members on rank 0."""
    if sim.members == 1:
        return array  # all ranks know it
    rows = sim.comm.gather(array)
    if rows is None:
        return array
    rows = [row for row in rows if len(row)]
    return np.concatenate(rows)


# -- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose SHA-256 has been found right.

    Attributes
    ----------
    config, facts : what was run, as in the Trajectory
    numbers : of the simulation and of its recording
    shape : (members, sides of the lattice)
    run : the name that the Trajectory has too
    segments : its ``segments_json``; empty of an older mpiflow
    """

    path: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    numbers: dict[str, Number]
    shape: Shape
    run: str
    version: str
    segments: str = ""

    def describe(self) -> str:
        size = " x ".join(map(str, self.shape[1:]))
        many = f"{self.shape[0]} lattices of " if self.shape[0] > 1 else ""
        what = self.config.get("system", "?")
        return f"{self.path}: {what}, {many}{size}, time {self.numbers['time']:g}"


def _corrupt(path: Path, why: str) -> InputError:
    remedy = "It is corrupt: use another one."
    return InputError("checkpoint", str(path), "an intact checkpoint", f"{why}. {remedy}")


def read(path: Path) -> Checkpoint:
    """Check a checkpoint, all of its bytes, and read what is small.

    Raises
    ------
    InputError : it is missing or corrupt, or of a newer mpiflow
    """
    if not path.is_file():
        raise InputError("checkpoint", str(path), "an existing file", "There is none.")
    try:
        with open(path, "rb") as file:
            size = max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES)
            file.seek(size)
            found = _TAIL.fullmatch(file.read())
            if found is None:
                raise _corrupt(path, "Its last bytes are not those of a checkpoint")
            if int(found[1]) > FORMAT:
                allowed = f"a checkpoint of format {FORMAT} or older"
                raise InputError("checkpoint", str(path), allowed, "Update mpiflow.")
            file.seek(0)
            digest, left = hashlib.sha256(), size
            while part := file.read(min(left, 2**22)):
                digest.update(part)
                left -= len(part)
        if size != int(found[3]) or digest.hexdigest() != found[2].decode():
            raise _corrupt(path, "Its SHA-256 or its length is not the one written in it")
        with _opened(path) as content:
            about = dict(content.attrs)
            return Checkpoint(
                path,
                json.loads(about["config_json"]),
                json.loads(about["facts_json"]),
                json.loads(about["numbers_json"]),
                tuple(int(n) for n in about["shape"]),
                str(about["run"]),
                str(about["mpiflow_version"]),
                str(about.get("segments_json", "")),
            )
    except InputError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _corrupt(path, f"Reading said: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    with h5py.File(path, "r", locking=False) as file:
        yield file


def verify(path: str | os.PathLike[str]) -> str:
    """A line about a good checkpoint; InputError for another."""
    return read(Path(path)).describe()


def newest(out: Path, comm: MPI.Intracomm, say: Any = None) -> Checkpoint | None:
    """The newest good checkpoint of a run; None if it has none. Collective.

    Bad ones are reported by ``say``, a function of a text, and the one before is used.

    Raises
    ------
    InputError : on all ranks, if there are checkpoints and all are bad
    """
    point: Checkpoint | None = None
    with agreed(comm):
        if comm.rank == 0:
            problems = []
            for path in paths(out) or adopt(out):
                try:
                    point = read(path)
                    break
                except InputError as error:
                    problems.append(error)
                    if say is not None:
                        say(f"{error}")
            if problems and point is None:
                raise problems[0]
    point = comm.bcast(point)
    return point


def load(point: Checkpoint, sim: Resumable) -> None:
    """Put a simulation into the state of a checkpoint. Collective; any number of ranks."""
    with agreed(sim.comm):
        wanted = (sim.members, *sim.lattice.shape)
        if point.shape != wanted:
            raise InputError(
                "checkpoint", point.shape, f"one of {wanted} (members, sides)", "Do not resize."
            )
        try:
            with _opened(point.path) as file:
                state = _read_state(file, point, sim)
        except (OSError, LookupError, RuntimeError, ValueError) as error:
            raise _corrupt(point.path, f"Reading said: {error}") from error
    sim.block.fill_halo()
    sim.restore(state)


def _read_state(file: h5py.File, point: Checkpoint, sim: Resumable) -> State:
    members, (first, *rest) = sim.local_members, sim.local_box()
    block, sites = sim.block, file["sites"]
    whole = (sim.members, *sim.lattice.shape)
    packed = sites.shape != whole  # a bit a site
    for rows in block.bands():
        there = slice(first.start + rows.start, first.start + rows.stop)
        if not block.batch:
            break
        if packed:
            columns = rest[0]
            part = sites[members, there, columns.start // 8 : -(-columns.stop // 8)]
            skip = columns.start % 8
            bits = np.unpackbits(part, axis=-1)[..., skip : skip + columns.stop - columns.start]
            block.store(rows, 2 * bits.view(np.int8) - 1)
        else:
            block.store(rows, sites[(members, there, *rest)])
    own = slice(None) if sim.members == 1 else members
    arrays = {name: file[name][own] for name in file if name != "sites"}
    return State(dict(point.numbers), arrays)
