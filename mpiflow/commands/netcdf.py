"""Trajectories as netCDF files.

===================  ==============================================================================
``netcdf4``          values, types, coordinates and attributes as they are in the run
``netcdf4-classic``  the classic model in an HDF5 file, compressed
``64bit``            CDF-2: a variable may have 4 GiB, or 4 GiB a frame
``classic``          CDF-1, which everything reads: 2 GiB a file
===================  ==============================================================================

The last three are for readers of the classic model and of the conventions for climate and forecast
(CF), as ncview, ParaView's CF reader, GrADS and CDO: no whole numbers of 64 bits, none without a
sign, no strings, and coordinates with the standard names and units that CF has. CF knows
coordinates on Earth only: a unit of time is written as a second, a site as a metre, and ``comment``
says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow.commands.selected import attributes_of, chosen, steps_of
from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.files import segments, spin_bits
from mpiflow.files.schema import Variable
from mpiflow.files.storage import whole_file
from mpiflow.files.trajectory import Trajectory

#: Names of the forms, as the option has them, and as the netCDF library.
FORMATS: dict[str, Any] = {
    "netcdf4": "NETCDF4",
    "netcdf4-classic": "NETCDF4_CLASSIC",
    "64bit": "NETCDF3_64BIT_OFFSET",
    "classic": "NETCDF3_CLASSIC",
}
# Frames are copied in batches of about this size; a large field one by one.
_BATCH_BYTES = 2**23
_CHUNK_BYTES = 2**20
# What CDF-1 has for a file, and CDF-2 for a variable, or a frame of one.
_FILE_BYTES, _VARIABLE_BYTES = 2**31 - 2**20, 2**32 - 2**20
#: Of values that were never written; NaN, which many readers of the classic model draw.
FILL = 9.969209968386869e36
_ORIGIN = "since 1970-01-01 00:00:00"
_STANDARD_NAMES = {
    "X": "projection_x_coordinate",
    "Y": "projection_y_coordinate",
    "Z": "height",
}
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class _Array:
    """A variable of the new file.

    Attributes
    ----------
    dims : with ``time`` first, where it has frames
    shape : of a frame, or of the whole
    read : gives the values of some frames, or all values
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: Any
    attributes: Mapping[str, Any]
    read: Callable[[slice], np.ndarray]
    fill: Any = None

    @property
    def in_time(self) -> bool:
        return self.dims[:1] == ("time",)

    @property
    def frame_bytes(self) -> int:
        return math.prod(self.shape) * (1 if self.dtype is str else np.dtype(self.dtype).itemsize)

    def batches(self, steps: range) -> Iterable[tuple[int, range]]:
        """Where each batch of frames begins in the new file, and the frames."""
        batch = max(1, _BATCH_BYTES // max(1, self.frame_bytes))
        for start in range(0, len(steps), batch):
            yield start, steps[start : start + batch]


def to_netcdf(
    run: Trajectory,
    out: str | Path | None = None,
    form: str = "netcdf4",
    *,
    variables: Iterable[str] | None = None,
    frames: slice = slice(None),
    overwrite: bool = False,
) -> tuple[Path, int]:
    """Write a netCDF file, compressed where its form allows: its path and number of frames.

    ``history`` is added to the attributes. Of the frames, only a batch of 8 MiB (or one) is in
    memory at a time.

    Parameters
    ----------
    out : default is the path of the run with the suffix .nc
    form : one of :data:`FORMATS`
    variables : names; default is all
    frames : which of them, in steps forward

    Raises
    ------
    InputError : netCDF4 is not installed, no such form, variable or frame, more than the form can
        hold, bad output
    """
    if form not in FORMATS:
        remedy = did_you_mean(form, FORMATS) or "Choose one of them."
        raise InputError("netcdf_format", form, f"one of {', '.join(FORMATS)}", remedy)
    try:
        import netCDF4
    except ImportError as error:
        remedy = "Install mpiflow[plot], or read the run's own file: it opens as netCDF-4."
        raise InputError("to", "netcdf", "a format whose library is here", remedy) from error
    kept = chosen(run, variables, list(run.variables))
    steps = steps_of(run, frames)
    path = Path(out) if out is not None else run.path.with_suffix(".nc")
    about = attributes_of(run.path)
    root = _root(run.path, steps, about.pop(""), form)
    arrays = _arrays(run, kept, about)
    if form != "netcdf4":
        arrays, root = _in_classic(arrays, steps), _root_in_classic(root)
        _require_small(arrays, len(steps), form)
    with whole_file(path, overwrite=overwrite, inputs=[run.path]) as target:
        try:
            # Its bytes as they are: a path need not be UTF-8.
            name = os.fsencode(target).decode("latin-1")
            with netCDF4.Dataset(name, "w", format=FORMATS[form], encoding="latin-1") as file:
                _fill_file(file, arrays, steps, root, compressed=form.startswith("netcdf4"))
        except RuntimeError as error:  # the netCDF library's word for a failed write
            raise OSError(None, str(error)) from error
    return path, len(steps)


# -- as in the run -----------------------------------------------------------------------------


def _root(source: Path, steps: range, about: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Attributes of the file."""
    root = {**about}
    if "segments_json" in root:
        root["segments_json"] = segments.of_frames(root["segments_json"], steps)
    root.pop("schema_version", None)  # no Trajectory any more
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    name = os.fsencode(source.name).decode(errors="replace")
    option = "" if form == "netcdf4" else f"--netcdf-format {form} "
    root["history"] = f"{now}: mpiflow export --to netcdf {option}{name}"
    return root


def _arrays(
    run: Trajectory, kept: Sequence[Variable], about: Mapping[str, Mapping[str, Any]]
) -> list[_Array]:
    """Coordinates of the variables that are kept, and these."""
    used = {"time"}.union(*(v.dims for v in kept))
    axes = [Variable(name, (name,), per_frame=False) for name in run.sizes if name in used]
    out = []
    for v in (*axes, *kept):
        in_time = v.per_frame or v.name == "time"
        first = run.read(v.name, slice(0, 1)) if in_time else run.read(v.name)
        is_text = first.dtype.kind == "U"
        out.append(
            _Array(
                v.name,
                ("time", *v.dims) if v.per_frame else v.dims,
                first.shape[1:] if in_time else first.shape,
                str if is_text else first.dtype,
                about[v.name],
                partial(run.read, v.name),
                # In the run a NaN is a value that was never written. Coordinates have no such.
                np.nan if first.dtype.kind == "f" and v.name not in used else None,
            )
        )
    return out


def _fill_file(
    file: Any, arrays: Sequence[_Array], steps: range, root: Mapping[str, Any], compressed: bool
) -> None:
    for array in arrays:
        sizes = (None, *array.shape) if array.in_time else array.shape
        for name, size in zip(array.dims, sizes, strict=True):
            if name not in file.dimensions:
                file.createDimension(name, size)
    file.setncatts(root)
    for array in arrays:
        made = _create(file, array, len(steps), compressed)
        made.setncatts(array.attributes)
        if not array.in_time:
            values = array.read(slice(None))
            made[...] = values.astype(object) if array.dtype is str else values
            continue
        for start, part in array.batches(steps):
            made[start : start + len(part)] = array.read(_slice(part))


def _create(file: Any, array: _Array, frames: int, compressed: bool) -> Any:
    """An empty netCDF variable."""
    if array.dtype is str:
        return file.createVariable(array.name, str, array.dims)
    settings: dict[str, Any] = {}
    if compressed and array.in_time:
        settings["chunksizes"] = _chunks(array.shape, array.dtype.itemsize, frames)
        settings["chunk_cache"] = 4 * _CHUNK_BYTES  # the default of the library is many times that
    if compressed and array.dims:
        settings |= {"compression": "zlib", "complevel": 4, "shuffle": True, "fletcher32": True}
    made = file.createVariable(
        array.name, array.dtype, array.dims, fill_value=array.fill, **settings
    )
    made.set_auto_maskandscale(False)
    made.set_auto_chartostring(False)
    return made


def _slice(steps: range) -> slice:
    return slice(steps.start, steps.stop, steps.step)


def _chunks(shape: Sequence[int], itemsize: int, frames: int) -> list[int]:
    """Many small frames to a chunk, or parts of a large one; about 64 KiB to 1 MiB."""
    sides = list(shape)
    while math.prod(sides) * itemsize > _CHUNK_BYTES:
        longest = sides.index(max(sides))
        sides[longest] = -(-sides[longest] // 2)
    return [max(1, min(frames, 2**16 // (math.prod(sides) * itemsize))), *sides]


# -- in the classic model ----------------------------------------------------------------------


def _in_classic(arrays: Sequence[_Array], steps: range) -> list[_Array]:
    """The same in types, names and attributes that readers of the classic model know."""
    labels = {a.name: f"{a.name}_name" for a in arrays if a.dtype is str and a.name in a.dims}
    out = []
    for array in arrays:
        if array.name == spin_bits.NAME:
            array = _unpacked(array)
        elif array.name == spin_bits.AXIS:
            array = _sites(array, next(a for a in arrays if a.name == spin_bits.NAME))
        if array.dtype is str:
            array = _characters(array, labels.get(array.name, array.name))
        else:
            array = _numbers(array, steps)
        attributes = {name: _value(value) for name, value in array.attributes.items()}
        if array.dims == (array.name,):
            attributes = _coordinate(array.name, attributes)
            if attributes.get("axis") in _STANDARD_NAMES and (edges := _bounds(array)):
                out.append(edges)
                attributes["bounds"] = edges.name
        elif array.dtype.kind != "S" and (there := [labels[d] for d in array.dims if d in labels]):
            attributes["coordinates"] = " ".join(there)
        out.append(replace(array, attributes=attributes))
    return out


def _coordinate(name: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of an axis, with a standard name and units that CF has for such."""
    units, axis = attributes.get("units", "1"), attributes.get("axis")
    if name == "time":
        said = "from the start of the run" if units == "s" else "a unit of time is written as one"
        return {
            **attributes,
            "axis": "T",
            "standard_name": "time",
            "units": f"seconds {_ORIGIN}",
            "calendar": "standard",
            "units_metadata": "leap_seconds: none",
            "comment": f"seconds: {said}; the date means nothing",
        }
    if axis not in _STANDARD_NAMES or units != "1":
        return {"units": "1", **attributes}
    made = {"standard_name": _STANDARD_NAMES[axis], "units": "m"}
    made |= {"positive": "up"} if axis == "Z" else {}
    return {**attributes, **made, "comment": "a unit of length, as a site, is written as a metre"}


def _bounds(axis: _Array) -> _Array | None:
    """Edges of the cells of an axis, with which readers place them; none of uneven ones."""
    centres = np.asarray(axis.read(slice(None)), np.float64)
    steps = np.diff(centres)
    if not len(steps) or not np.allclose(steps, steps[0], rtol=1e-9):
        return None
    edges = centres[:, None] + np.array([-0.5, 0.5]) * steps[0]
    name, dims = f"{axis.name}_bounds", (axis.name, "bnds")
    return _Array(name, dims, edges.shape, edges.dtype, {}, lambda _: edges)


def _unpacked(array: _Array) -> _Array:
    """Spins, of a variable of bits."""
    v = spin_bits.as_spins(Variable(array.name, array.dims))

    def read(frames: slice) -> np.ndarray:
        return spin_bits.unpacked(array.read(frames))

    shape = (*array.shape[:-1], spin_bits.SPINS * array.shape[-1])
    about = {**array.attributes, "long_name": v.long_name}
    return _Array(v.name, v.dims, shape, np.dtype("i1"), about, read)


def _sites(axis: _Array, bits: _Array) -> _Array:
    """The axis of these spins, of that of bytes."""
    name, size = _unpacked(bits).dims[-1], spin_bits.SPINS * axis.shape[0]
    about = {"axis": "X", "units": "1", "long_name": "x in sites"}
    return _Array(name, (name,), (size,), np.dtype("f8"), about, lambda _: np.arange(size) + 0.0)


def _characters(array: _Array, name: str) -> _Array:
    """Text as characters in UTF-8, with a dimension for their number."""
    texts = np.char.encode(array.read(slice(None)), "utf-8")
    width = max(1, texts.dtype.itemsize)
    letters = texts.astype(f"S{width}").reshape(-1).view("S1").reshape(*array.shape, width)
    about = {**array.attributes, "_Encoding": "utf-8"}
    dims = (*array.dims, f"{name}_length")
    return _Array(name, dims, letters.shape, letters.dtype, about, lambda _: letters)


def _numbers(array: _Array, steps: range) -> _Array:
    """Numbers in a type of the classic model that holds them all."""
    dtype = np.dtype(array.dtype)
    if dtype.kind == "f":
        dtype = np.dtype("f4" if dtype.itemsize < 8 else "f8")
        if array.fill is None:
            return replace(array, dtype=dtype)

        def written(frames: slice) -> np.ndarray:
            values = array.read(frames).astype(dtype)
            values[np.isnan(values)] = FILL
            return values

        return replace(array, dtype=dtype, read=written, fill=dtype.type(FILL))
    if dtype.kind == "b":
        return replace(array, dtype=np.dtype("i1"))
    if dtype.kind == "u" and dtype.itemsize < 4:
        return replace(array, dtype=np.dtype(f"i{2 * dtype.itemsize}"))
    if dtype.itemsize < 4 or dtype == np.int32:
        return array
    parts = [_slice(part) for _, part in array.batches(steps)] if array.in_time else [slice(None)]
    fits = all(_in_32_bits(array.read(part)) for part in parts)
    return replace(array, dtype=np.dtype("i4" if fits else "f8"))


def _in_32_bits(values: np.ndarray) -> bool:
    return not values.size or bool(values.min() >= _INT32.min and values.max() <= _INT32.max)


def _value(value: Any) -> Any:
    """That of an attribute: text, or numbers in a type of the classic model."""
    array = np.asarray(value)
    if array.dtype.kind == "b":
        return array.astype("i1")
    if array.dtype.kind == "f":
        return value
    if array.dtype.kind in "iu" and _in_32_bits(array):
        return array.astype("i4")
    return "\n".join(map(str, array.ravel()))  # larger ones, as seeds may be, digit by digit


def _root_in_classic(root: Mapping[str, Any]) -> dict[str, Any]:
    source = {"source": f"mpiflow {root.get('mpiflow_version', '')}".rstrip()}
    return {name: _value(value) for name, value in {**source, **root}.items()}


def _require_small(arrays: Sequence[_Array], frames: int, form: str) -> None:
    """Refuse what the form has no room for; of a record every variable is padded to 4 bytes."""
    padded = {a.name: -(-a.frame_bytes // 4) * 4 * (frames if a.in_time else 1) for a in arrays}
    total, gib = sum(padded.values()), 2**30
    if form == "classic" and total > _FILE_BYTES:
        allowed = f"classic for up to 2 GiB; this is {total / gib:.3g} GiB"
        remedy = "Use 64bit or netcdf4-classic, or choose --variables and --frames."
        raise InputError("netcdf_format", form, allowed, remedy)
    large = next((a for a in arrays if a.frame_bytes > _VARIABLE_BYTES), None)
    if form == "64bit" and large is not None:
        allowed = f"64bit for up to 4 GiB a frame; {large.name} has {large.frame_bytes / gib:.3g}"
        raise InputError("netcdf_format", form, allowed, "Use netcdf4-classic.")
