"""Stacks of NumPy, read frame by frame: ``.npy`` and ``.npz``.

(y, x) is one frame, (time, y, x) are many, (time, component, y, x) have a component to be chosen.
An array ``time`` in an ``.npz``, with a value for each frame, has their times. Truth values are
spins: true is up.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from mpiflow.files.readers.frames import Axes, Frame, Wanted, one_of
from mpiflow.files.structure_files import Unfit

#: Name of the array of times in an archive.
TIME = "time"
_SHAPES = "an array (y, x), (time, y, x) or (time, component, y, x)"


def as_numbers(values: np.ndarray) -> np.ndarray:
    """Real numbers as they are, truth values as spins; or Unfit."""
    if values.dtype.kind == "b":
        return np.where(values, np.int8(1), np.int8(-1))
    check_numbers(values.dtype)
    return values


def check_numbers(dtype: np.dtype) -> None:
    """Unfit unless these are real numbers or truth values."""
    if dtype.kind not in "biuf":
        raise Unfit("real numbers", f"It holds {dtype}: convert it, for example to float32.")


def frames_of(values: Any, wanted: Wanted, times: np.ndarray | None = None) -> Iterator[Frame]:
    """The frames of an array in memory or mapped; see the module."""
    shape = tuple(values.shape)
    check_numbers(values.dtype)
    count, component = _layout(shape, wanted)
    if times is not None and times.shape != (count,):
        raise Unfit(f"a time for each of {count} frames", f"It has times of shape {times.shape}.")
    for k in range(count):
        frame = values if len(shape) == 2 else values[k]
        frame = frame[component] if len(shape) == 4 else frame
        if np.ma.is_masked(frame):
            raise Unfit("a number at every site", f"frame {k}: some are masked. Fill them.")
        time = None if times is None else float(times[k])
        yield Frame(as_numbers(np.asarray(frame)), time, f"frame {k}")


def _layout(shape: tuple[int, ...], wanted: Wanted) -> tuple[int, int]:
    """How many frames there are, and which component is wanted."""
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise Unfit(_SHAPES, f"It has the shape {shape}.")
    component, _ = Axes(shape[1] if len(shape) == 4 else 1).place(wanted)
    return (1 if len(shape) == 2 else shape[0]), component


def read_npy(path: Path, wanted: Wanted) -> Iterator[Frame]:
    """The frames of an ``.npy``; only one is in memory at a time."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, TypeError, OverflowError) as error:
        size, said = path.stat().st_size, str(error).rstrip(".")
        found = f"It ends at byte {size}, or its header is damaged. NumPy said: {said}."
        raise Unfit("a whole .npy file of numbers", found) from None
    if wanted.variable is not None:
        raise Unfit(f"an array {wanted.variable!r}", "An .npy has one: leave --variable out.")
    if not values.flags.c_contiguous:
        yield from frames_of(values, wanted)
        return
    del values  # pages of a map that were looked at count as memory
    with path.open("rb") as file:
        yield from _unpacked(file, "the array", wanted, None)


def read_npz(path: Path, wanted: Wanted) -> Iterator[Frame]:
    """The frames of an array of an ``.npz``; only one is in memory at a time."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            several = [name for name in names if name != TIME or wanted.variable == TIME]
            name = one_of(several, wanted.variable, "array")
            times = None
            if TIME in names and name != TIME:
                with archive.open(f"{TIME}.npy") as file:
                    times = np.lib.format.read_array(file, allow_pickle=False)
                if times.dtype.kind not in "iuf" or times.ndim != 1:
                    raise Unfit("an array time of numbers", f"It is {times.dtype} {times.shape}.")
            with archive.open(f"{name}.npy") as file:
                yield from _unpacked(file, name, wanted, times)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        found = f"Unpacking said: {str(error).rstrip('.')}."
        raise Unfit("a whole .npz file of arrays of numbers", found) from None


def _unpacked(
    file: IO[bytes], name: str, wanted: Wanted, times: np.ndarray | None
) -> Iterator[Frame]:
    """The frames of an array that is read from its beginning to its end."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version >= (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    check_numbers(dtype)
    if by_columns and len(shape) > 1:
        found = f"{name} is in Fortran's: save numpy.ascontiguousarray of it."
        raise Unfit("an array in the order of C", found)
    count, component = _layout(shape, wanted)
    if times is not None and times.shape != (count,):
        raise Unfit(f"a time for each of {count} frames", f"It has times of shape {times.shape}.")
    inner = shape if len(shape) == 2 else shape[1:]
    of = f" of {name}" if name != "the array" else ""
    size = math.prod(inner) * dtype.itemsize
    for k in range(count):
        data = file.read(size)
        if len(data) < size:
            found = f"{name} ends in frame {k}, after {len(data)} of {size} bytes."
            raise Unfit("a whole array", found)
        frame = np.frombuffer(data, dtype).reshape(inner)
        time = None if times is None else float(times[k])
        frame = frame[component] if len(inner) == 3 else frame
        yield Frame(as_numbers(frame), time, f"frame {k}{of}")
