"""``mpiflow import``: frames of other programs, checked one by one, into the file of a run.

The file is written beside its place under another name and sealed; it takes its place when it is
whole. On several ranks rank 0 reads and writes, the others wait.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiflow._version import __version__
from mpiflow.commands.importing.content import Content, content_of
from mpiflow.commands.importing.options import ImportConfig
from mpiflow.core import arrays
from mpiflow.core.errors import InputError
from mpiflow.core.parallel import agreed, world
from mpiflow.files import manifest
from mpiflow.files.readers.arrays import frames_of
from mpiflow.files.readers.formats import Format, digest, digest_of, format_of
from mpiflow.files.readers.frames import Frame, Wanted
from mpiflow.files.schema import CLOCK
from mpiflow.files.sealing import seal
from mpiflow.files.storage import Lock, probe, whole_file
from mpiflow.files.structure import Structure
from mpiflow.files.structure_files import Unfit
from mpiflow.files.writer import TrajectoryWriter

if TYPE_CHECKING:
    from mpi4py import MPI

#: Frames, each with the name of its file.
_Frames = Generator[tuple[str, Frame], None, None]
#: What the attribute ``system`` of the file says.
SYSTEM = "imported"
#: Characters of the list of files that an attribute has room for.
_LISTED = 2**14
#: Options that the file keeps, where they were given.
_KEPT = (
    "variable", "component", "layer", "offset", "scale", "spacing", "time_step", "time_unit",
    "temperature", "field", "coupling",
)  # fmt: skip


@dataclass(frozen=True)
class _Origin:
    """Where frames come from: files with their digests, or an array of this program."""

    name: str
    reader: str
    files: Sequence[Path] = ()
    digests: Sequence[str] = ()

    def config(self) -> dict[str, Any]:
        about: dict[str, Any] = {"format": self.name, "reader": self.reader}
        if self.files:
            about |= {"source": str(self.files[0]), "sources": len(self.files)}
            about["inputs"] = {"files": digest_of(self.digests)}
        return about

    def attributes(self) -> dict[str, Any]:
        """The files as ``sha256sum`` lists them, as many as there is room for."""
        lines, size = [], 0
        for path, known in zip(self.files, self.digests, strict=True):
            lines.append(f"{known}  {os.fsencode(path).decode(errors='replace')}")
            size += len(lines[-1]) + 1
            if size > _LISTED:
                lines[-1] = f"and {len(self.files) - len(lines) + 1} more"
                break
        return {"source_files": "\n".join(lines)} if lines else {}


def import_trajectory(
    files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    comm: MPI.Intracomm | None = None,
    **options: Any,
) -> Path:
    """Write trajectories of other programs to the file of a run; returns its path.

    Parameters
    ----------
    files : of one format, in the order of time; names may be patterns. NumPy stacks, OVF, LAMMPS
        and SPPARKS dumps, LAMMPS data, extended XYZ, POSCAR, CIF, netCDF or zarr
    out : the file to write
    comm : ranks that call this together, all by default; rank 0 does the work
    options : of :class:`~mpiflow.commands.importing.options.ImportConfig`

    Raises
    ------
    InputError : on all ranks: a file is at fault, with the place; or an option. There is no file
        then, or the old one
    """
    named = [files] if isinstance(files, str | os.PathLike) else list(files)
    return run(ImportConfig(files=tuple(map(Path, named)), out=Path(out), **options), comm)[0]


def import_array(
    values: Any,
    out: str | os.PathLike[str],
    *,
    time: Any = None,
    comm: MPI.Intracomm | None = None,
    **options: Any,
) -> Path:
    """Write an array to the file of a run; returns its path.

    Parameters
    ----------
    values : (time, y, x), (y, x), or (time, component, y, x) with a ``component``. Anything with
        a shape that gives arrays for a frame: one at a time is looked at
    out : the file to write
    time : (frames,) rising; or give ``time_step``
    comm : ranks that call this together; rank 0 does the work
    options : of :class:`~mpiflow.commands.importing.options.ImportConfig`, but those of files

    Raises
    ------
    InputError : on all ranks: values, times or an option do not fit
    """
    config = ImportConfig(files=(Path("array"),), out=Path(out), **options)
    array, times = _array(values), None if time is None else arrays.real("time", time)

    def frames() -> _Frames:
        with _faults("values", f"an array of shape {tuple(array.shape)}"):
            for frame in frames_of(array, _wanted(config), times):
                yield "values", frame

    origin = _Origin("array", f"mpiflow {__version__}")
    return _together(config, comm, lambda: _write(config, frames(), origin, "array"))[0]


def _array(values: Any) -> Any:
    """What gives arrays of NumPy as it is, so that it may be read frame by frame; else an array."""
    if hasattr(values, "shape") and isinstance(getattr(values, "dtype", None), np.dtype):
        return values
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise InputError("values", "no array", "numbers", f"NumPy said: {said}.") from None


def run(config: ImportConfig, comm: MPI.Intracomm | None = None) -> tuple[Path, int]:
    """What the command does: the path of the file, and on rank 0 its frames. Collective."""

    def work() -> int:
        files = list(_expanded(config.files))
        probe(config.out, overwrite=config.overwrite, inputs=files)
        formats = [_format(path) for path in files]
        if len({one.name for one in formats}) > 1:
            other = next(i for i, one in enumerate(formats) if one.name != formats[0].name)
            allowed = f"{formats[0].name}, as {files[0]}"
            found = f"It is {formats[other].name}: import each format by itself."
            raise InputError("file", str(files[other]), allowed, found)
        origin = _Origin(formats[0].name, formats[0].reader, files, [digest(p) for p in files])
        return _write(config, _frames(files, formats[0], config), origin, str(files[0]))

    return _together(config, comm, work)


def _together(config: ImportConfig, comm: MPI.Intracomm | None, work: Any) -> tuple[Path, int]:
    """Let rank 0 work; an error of it is one of all."""
    comm, frames = comm or world(), 0
    if comm is None or comm.size == 1:
        return config.out, work()
    with agreed(comm):
        if comm.rank == 0:
            frames = work()
    return config.out, frames


def _wanted(config: ImportConfig) -> Wanted:
    chosen = ("variable", "component", "layer", "lattice", "elements")
    values = {name: getattr(config, name) for name in chosen}
    return Wanted(**{name: value for name, value in values.items() if value is not None})


@contextlib.contextmanager
def _faults(name: str, value: str) -> Iterator[None]:
    """What is wrong with a file, as the error of a user."""
    try:
        yield
    except Unfit as error:
        raise InputError(name, value, error.allowed, error.remedy) from None
    except (OSError, UnicodeDecodeError, MemoryError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise InputError(name, value, "a readable file", f"Reading said: {said}.") from error


def _expanded(files: Sequence[Path]) -> Iterator[Path]:
    """The files, absolute; a name that is none may be a pattern."""
    for path in files:
        if path.exists():
            yield path.resolve()
            continue
        matches = sorted(glob.glob(os.fspath(path)))
        if not matches:
            raise InputError("file", str(path), "an existing file", "Check the path.")
        yield from (Path(match).resolve() for match in matches)


def _format(path: Path) -> Format:
    with _faults("file", str(path)):
        return format_of(path)


def _frames(files: Sequence[Path], form: Format, config: ImportConfig) -> _Frames:
    """The frames of all files, each with the path of its file."""
    for path in files:
        found = 0
        with _faults("file", str(path)):
            for frame in form.read(path, _wanted(config)):
                yield str(path), frame
                found += 1
            if not found:
                raise Unfit("a file with a frame", "It has none.")


def _write(config: ImportConfig, frames: _Frames, origin: _Origin, first_name: str) -> int:
    """Write the frames; returns how many. Nothing is left of a file that could not be finished."""
    with contextlib.closing(frames):  # and with it the file that is being read
        return _write_all(config, frames, origin, first_name)


def _write_all(config: ImportConfig, frames: _Frames, origin: _Origin, first_name: str) -> int:
    path, first = next(frames, (first_name, None))
    if first is None:
        raise InputError("file", path, "a file with a frame", "It has none.")
    with _faults("file" if origin.files else "values", path):
        content = content_of(first, config)
    rest = _chained((path, first), frames)
    with contextlib.ExitStack() as stack:
        target = probe(config.out, overwrite=config.overwrite, inputs=origin.files)
        lock = Lock(target)
        stack.callback(lock.release)
        with whole_file(config.out, overwrite=config.overwrite, inputs=origin.files) as fresh:
            try:
                count = _fill(fresh, config, content, rest, origin)
                seal(fresh, listed=False)
            except InputError as error:
                if error.name == "out":  # the file under its other name
                    raise InputError("out", str(config.out), error.allowed, error.remedy) from None
                raise
        manifest.forget(target)
        manifest.enter(target)
    return count


def _chained(
    first: tuple[str, Frame], rest: Iterator[tuple[str, Frame]]
) -> Iterator[tuple[str, Frame]]:
    yield first
    yield from rest


def _fill(
    path: Path,
    config: ImportConfig,
    content: Content,
    frames: Iterator[tuple[str, Frame]],
    origin: _Origin,
) -> int:
    """Append all frames to a new live file; returns how many."""
    options = {name: getattr(config, name) for name in _KEPT}
    defaults = {"offset": 0.0, "scale": 1.0}
    about: Mapping[str, Any] = {
        "system": SYSTEM,
        **content.config,
        **{k: v for k, v in options.items() if v != defaults.get(k)},
        **origin.config(),
    }
    writer = TrajectoryWriter(
        path,
        dims=content.dims,
        variables=content.variables,
        coordinates=content.coordinates,
        attributes={
            "system": SYSTEM,
            "config_json": _json(about),
            "seed": 0,
            "rng": "none",
            "decomposition_invariant": True,
            **content.attributes,
            **origin.attributes(),
        },
        overwrite=True,
        backend="gather",
        time=CLOCK,
    )
    clock, count = _Clock(config), 0
    try:
        for name, frame in frames:
            with _faults("file" if origin.files else "values", name):
                _require_alike(content, frame)
                time = clock.time(frame, count)
                values = content.values(frame)
            writer.append(time, values)
            count += 1
    finally:
        writer.close(complete=False)
    return count


def _json(about: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in about.items() if value is not None})


def _require_alike(content: Content, frame: Frame) -> None:
    """All frames are of one kind and shape."""
    values: Any = frame.values
    shape = values.grid.shape if isinstance(values, Structure) else values.shape
    if tuple(shape) != tuple(content.shape):
        found = " x ".join(map(str, shape))
        first = " x ".join(map(str, content.shape))
        raise Unfit(f"frames of {first} values, as the first", f"{frame.where}: it has {found}.")


class _Clock:
    """Times of frames, in the unit that the options make."""

    def __init__(self, config: ImportConfig) -> None:
        self.step, self.unit, self.last = config.time_step, config.time_unit, -math.inf

    def time(self, frame: Frame, number: int) -> float:
        """The time of a frame, after that of the one before; or Unfit."""
        if self.step is not None:
            return number * self.step
        if frame.time is None:
            if number:
                allowed = "given, as the files say no times"
                raise InputError("time_step", None, allowed, "Try --time-step 1.")
            if self.unit is not None:
                raise InputError("time_unit", self.unit, "no value where the files say no times",
                                 "Use --time-step.")  # fmt: skip
            self.last = 0.0
            return 0.0
        time = frame.time * (self.unit or 1.0)
        if not self.last < time < math.inf:
            found = f"{frame.where}: time {time:g} comes after {self.last:g}."
            allowed = "finite times that rise from frame to frame"
            raise Unfit(allowed, f"{found} Order the files, or use --time-step.")
        self.last = time
        return time
