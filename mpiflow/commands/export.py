"""Trajectories as files of other formats.

==========================  ================================================================
``netcdf``                  a plain netCDF-4 file (CF), of chosen variables and frames
``xdmf``                    a text file that lets ParaView and VTK read the fields in place
``lammpsdump``, ``extxyz``  the atoms of an alloy, see :mod:`mpiflow.files.structure`
==========================  ================================================================

docs/exports.md shows them for users.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.files import segments, structure
from mpiflow.files.schema import Variable
from mpiflow.files.storage import whole_file
from mpiflow.files.trajectory import Trajectory
from mpiflow.simulation.options import idle
from mpiflow.systems.alloy import LATTICE_CONSTANT, is_site

#: Formats, and the options of :func:`export` that each knows.
FORMATS: dict[str, frozenset[str]] = {
    **dict.fromkeys(structure.FORMATS, frozenset({"frame", "member", "vacancies"})),
    "netcdf": frozenset({"variables", "frames"}),
    "xdmf": frozenset({"variables", "frames", "member"}),
}

# Frames are copied in batches of about this size; a large field one by one.
_BATCH_BYTES = 2**23
_CHUNK_BYTES = 2**20
# What HDF5 and netCDF-4 keep in attributes for themselves.
_INTERNAL = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_NCProperties", "_FillValue"}


def export(
    run: Trajectory,
    to: str,
    out: str | Path | None = None,
    *,
    variables: str | None = None,
    frames: str | None = None,
    frame: str | None = None,
    member: int | None = None,
    vacancies: bool = False,
    overwrite: bool = False,
) -> tuple[Path, int]:
    """Write a run to a file of another format: its path and number of frames.

    The options are those of ``mpiflow export``, as text.

    Parameters
    ----------
    to : one of :data:`FORMATS`
    out : default is the path of the run with another suffix
    variables : names with commas between; default is all that the format can hold
    frames : ``START:STOP:STEP`` as in Python; netcdf and xdmf
    frame : a number or ``all``; formats of atoms
    member : of an ensemble; default is 0
    vacancies : also write vacancies; formats of atoms

    Raises
    ------
    InputError : an option that the format does not have, nothing to write, bad output
    """
    if to not in FORMATS:
        known = ", ".join(FORMATS)
        raise InputError(
            "to", to, f"one of {known}", did_you_mean(to, FORMATS) or "Choose one of them."
        )
    given = {"variables": variables, "frames": frames, "frame": frame, "member": member}
    for name, value in {**given, "vacancies": vacancies or None}.items():
        if value is not None and name not in FORMATS[to]:
            raise idle(name, value, f"with --to {to}")
    if to in structure.FORMATS:
        return structure.export(
            run,
            to,
            out,
            frame=structure.frame_number("-1" if frame is None else frame),
            member=member or 0,
            vacancies=vacancies,
            overwrite=overwrite,
        )
    names = None if variables is None else [name.strip() for name in variables.split(",")]
    part = frame_slice(":" if frames is None else frames)
    if to == "netcdf":
        return to_netcdf(run, out, variables=names, frames=part, overwrite=overwrite)
    return to_xdmf(run, out, variables=names, frames=part, member=member or 0, overwrite=overwrite)


def frame_slice(text: str) -> slice:
    """The frames that ``START:STOP:STEP`` or one number stands for."""
    words = text.split(":")
    if len(words) > 3 or not all(re.fullmatch(r"\s*(-?\d+\s*)?", word) for word in words):
        raise InputError("frames", text, "START:STOP:STEP, each may be left out", "Try 0:100:10.")
    numbers = [int(word) if word.strip() else None for word in words]
    if len(numbers) == 1:
        if numbers[0] is None:
            raise InputError("frames", text, "START:STOP:STEP or a number", "Try 0:100:10.")
        return slice(numbers[0], numbers[0] + 1 or None)
    chosen = slice(*numbers)
    if chosen.step is not None and chosen.step < 1:
        raise InputError("frames", text, "a step of 1 or more", "Frames keep their order.")
    return chosen


# -- what both formats need --------------------------------------------------------------------


def attributes_of(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Attributes of each variable and coordinate of a Trajectory file, of the file under ""."""

    def own(attributes: Any) -> dict[str, Any]:
        names = [n for n in attributes if n not in _INTERNAL and not n.startswith("_Netcdf4")]
        values = {name: attributes[name] for name in names}
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}

    with h5py.File(path, "r", locking=False) as file:
        return {"": own(file.attrs)} | {name: own(item.attrs) for name, item in file.items()}


def steps_of(run: Trajectory, frames: slice) -> range:
    """Numbers of the frames to write, at least one."""
    steps = range(len(run))[frames]
    if not steps:
        if not len(run):
            raise InputError("file", str(run.path), "a file with frames", "It has none yet.")
        allowed = f"a part of the frames 0 to {len(run) - 1}"
        text = ":".join("" if n is None else str(n) for n in (frames.start, frames.stop))
        raise InputError("frames", text, allowed, "Leave it out for all.")
    return steps


def check_member(run: Trajectory, member: int) -> None:
    """Refuse a member that the run does not have."""
    members = run.sizes.get("member", 1)
    if not 0 <= member < members:
        raise InputError("member", member, f"0 to {members - 1}", f"{run.path} has {members}.")


def chosen(run: Trajectory, names: Iterable[str] | None, fit: Sequence[str]) -> list[Variable]:
    """Variables of the names, or those that fit; refuses names that do not fit."""
    wanted = list(dict.fromkeys(fit if names is None else names))
    for name in wanted:
        if name not in fit:
            if name in run.variables:
                remedy = f"{name} is over ({', '.join(run.variables[name].dims)})."
            else:
                remedy = did_you_mean(name, fit) or "See mpiflow info."
            raise InputError("variable", name, f"of {', '.join(fit) or 'none'}", remedy)
    return [run.variables[name] for name in wanted]


# -- netCDF ------------------------------------------------------------------------------------


def to_netcdf(
    run: Trajectory,
    out: str | Path | None = None,
    *,
    variables: Iterable[str] | None = None,
    frames: slice = slice(None),
    overwrite: bool = False,
) -> tuple[Path, int]:
    """Write a compressed netCDF-4 file: its path and number of frames.

    Values, types, coordinates and attributes are those of the run; ``history`` is added.
    Of the frames, only a batch of 8 MiB (or one) is in memory at a time.

    Parameters
    ----------
    out : default is the path of the run with the suffix .nc
    variables : names; default is all
    frames : which of them, in steps forward

    Raises
    ------
    InputError : netCDF4 is not installed, no such variable or frame, bad output
    """
    try:
        import netCDF4
    except ImportError as error:
        remedy = "Install mpiflow[plot], or read the run's own file: it opens as netCDF-4."
        raise InputError("to", "netcdf", "a format whose library is here", remedy) from error
    kept = chosen(run, variables, list(run.variables))
    steps = steps_of(run, frames)
    path = Path(out) if out is not None else run.path.with_suffix(".nc")
    about = attributes_of(run.path)
    if "segments_json" in about[""]:
        about[""]["segments_json"] = segments.of_frames(about[""]["segments_json"], steps)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about[""].pop("schema_version", None)  # no Trajectory any more
    source = os.fsencode(run.path.name).decode(errors="replace")
    about[""]["history"] = f"{now}: mpiflow export --to netcdf {source}"
    with whole_file(path, overwrite=overwrite, inputs=[run.path]) as target:
        try:
            # Its bytes as they are: a path need not be UTF-8.
            name = os.fsencode(target).decode("latin-1")
            with netCDF4.Dataset(name, "w", format="NETCDF4", encoding="latin-1") as file:
                _fill_netcdf(file, run, kept, steps, about)
        except RuntimeError as error:  # the netCDF library's word for a failed write
            raise OSError(None, str(error)) from error
    return path, len(steps)


def _fill_netcdf(
    file: Any,
    run: Trajectory,
    kept: Sequence[Variable],
    steps: range,
    about: Mapping[str, Mapping[str, Any]],
) -> None:
    used = {"time"}.union(*(v.dims for v in kept))
    for name, size in run.sizes.items():
        if name in used:
            file.createDimension(name, None if name == "time" else size)
    file.setncatts(about[""])
    axes = [Variable(name, (name,), per_frame=False) for name in run.sizes if name in used]
    for v in (*axes, *kept):
        in_time = v.per_frame or v.name == "time"
        first = run.read(v.name, slice(0, 1)) if in_time else run.read(v.name)
        made = _create(file, v, first, len(steps), is_axis=v.name in used)
        made.setncatts(about[v.name])
        if not in_time:
            made[...] = first.astype(object) if first.dtype.kind == "U" else first
            continue
        batch = max(1, _BATCH_BYTES // max(1, first.nbytes))
        for start in range(0, len(steps), batch):
            part = steps[start : start + batch]
            values = run.read(v.name, slice(part.start, part.stop, part.step))
            made[start : start + len(part)] = values


def _create(file: Any, v: Variable, first: np.ndarray, frames: int, *, is_axis: bool) -> Any:
    """An empty netCDF variable for values like these: of one frame, or of all."""
    dims = ("time", *v.dims) if v.per_frame else v.dims
    if first.dtype.kind == "U":
        return file.createVariable(v.name, str, dims)
    settings: dict[str, Any] = {}
    if v.per_frame or v.name == "time":
        settings["chunksizes"] = _chunks(first.shape[1:], first.itemsize, frames)
        settings["chunk_cache"] = 4 * _CHUNK_BYTES  # the default of the library is many times that
    if dims:
        settings |= {"compression": "zlib", "complevel": 4, "shuffle": True, "fletcher32": True}
    # In the run a NaN is a value that was never written. Coordinates have no such.
    fill = np.nan if first.dtype.kind == "f" and not is_axis else None
    made = file.createVariable(v.name, first.dtype, dims, fill_value=fill, **settings)
    made.set_auto_maskandscale(False)
    return made


def _chunks(shape: Sequence[int], itemsize: int, frames: int) -> list[int]:
    """Many small frames to a chunk, or parts of a large one; about 64 KiB to 1 MiB."""
    sides = list(shape)
    while math.prod(sides) * itemsize > _CHUNK_BYTES:
        longest = sides.index(max(sides))
        sides[longest] = -(-sides[longest] // 2)
    return [max(1, min(frames, 2**16 // (math.prod(sides) * itemsize))), *sides]


# -- XDMF --------------------------------------------------------------------------------------


def field_axes(v: Variable) -> tuple[str, ...]:
    """Dimensions of a field, as (y, x), (site_y, site_x) or (k_y, k_x); () of any other variable.

    Those before, as the states of a spin rule, number its components.
    """
    axes = tuple(name for name in v.dims if name != "member")
    plain = [name.rpartition("_")[2] for name in axes]
    for space in (["z", "y", "x"], ["y", "x"]):
        if v.per_frame and plain[-len(space) :] == space:
            return axes[-len(space) :]
    return ()


def components(run: Trajectory, v: Variable) -> dict[str, dict[str, int]]:
    """The components of a field by name: where each lies along the dimensions before space.

    One with the variable's own name for a plain field, ``coarse_fraction state 0`` and so on for
    one over states.
    """
    names: dict[str, dict[str, int]] = {v.name: {}}
    for dim in v.dims:
        if dim != "member" and dim not in field_axes(v) and not is_species(v):
            words = [str(word) for word in run.read(dim)]
            names = {
                f"{name} {dim} {word}": {**place, dim: i}
                for name, place in names.items()
                for i, word in enumerate(words)
            }
    return names


@dataclass(frozen=True)
class _Mesh:
    """Where values lie: the XML of it, the sides of its array, and what carries the values."""

    xml: str
    shape: tuple[int, ...]
    centre: str


def to_xdmf(
    run: Trajectory,
    out: str | Path | None = None,
    *,
    variables: Iterable[str] | None = None,
    frames: slice = slice(None),
    member: int = 0,
    overwrite: bool = False,
) -> tuple[Path, int]:
    """Write XDMF 2 text that refers to the fields in the run's file: its path and frames.

    Fields are cell data of a uniform mesh in sites, the cell of site i from i - 1/2 to
    i + 1/2, one site thick; each component of a field is an array of its own. Species of an
    alloy are points in Angstrom; their coordinates go into a small HDF5 file beside,
    NAME.sites.hdf. Nothing else is copied.

    Parameters
    ----------
    out : default is the path of the run with the suffix .xdmf
    variables : names of fields; default is all
    frames : which of them, in steps forward
    member : of an ensemble

    Raises
    ------
    InputError : no fields, no such variable, frame or member, bad output
    """
    atoms = run.attributes.get("system") == "alloy" or run.config.get("kind") == "species"
    shown = [v for v in run.variables.values() if field_axes(v) or (atoms and is_species(v))]
    if not shown:
        remedy = "Its system has none on a lattice: export it to netcdf."
        # Of spins, or of a spin rule.
        if atoms or run.attributes.get("system") in ("ising", "kac") or "state" in run.sizes:
            option = "--species" if atoms else "--coarse 8, or --spins"
            remedy = f"Run it again with {option}."
        raise InputError("file", str(run.path), "a run that saved fields", remedy)
    kept = chosen(run, variables, [v.name for v in shown])
    steps = steps_of(run, frames)
    check_member(run, member)
    path = Path(out) if out is not None else run.path.with_suffix(".xdmf")
    beside = path.parent / f"{path.stem}.sites.hdf"  # not .h5: it is no run
    heavy = os.path.relpath(*map(os.path.realpath, (run.path, path.parent)))
    if ":" in (names := heavy + beside.name) or not _is_utf8(names):
        remedy = "XDMF cannot name it: rename it."
        raise InputError("file", heavy, "a path in UTF-8 without a colon", remedy)
    about: dict[str, Any] = {"overwrite": overwrite, "inputs": [run.path]}
    with contextlib.ExitStack() as files:
        # Left in reverse order: the text is in place only once its points are.
        text = files.enter_context(whole_file(path, **about))
        meshes: dict[_Mesh, list[Variable]] = {}
        for v in kept:
            if is_species(v):
                points = _points(run)
                target = files.enter_context(whole_file(beside, **about))
                target.write_bytes(_points_image(points))
                mesh = _polyvertex(len(points), beside.name)
            else:
                mesh = _uniform(run, field_axes(v))
            meshes.setdefault(mesh, []).append(v)
        with text.open("w", encoding="utf-8") as file:
            file.writelines(_xdmf(run, meshes, steps, member, heavy))
    return path, len(steps)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def is_species(v: Variable) -> bool:
    """Whether a variable is the species of the sites of an alloy."""
    return v.name == "species" and v.dims[-1:] == ("site",)


def _uniform(run: Trajectory, axes: tuple[str, ...]) -> _Mesh:
    """Cells around the coordinates of a field, with z, y, x in this order."""
    origin, spacing, shape = [-0.5], [1.0], [1]
    if len(axes) == 3:
        origin, spacing, shape = [], [], []
    for name in axes:
        centres = np.asarray(run.read(name), np.float64)
        # A lone block begins at site 0.
        step = float(centres[1] - centres[0]) if len(centres) > 1 else 2 * float(centres[0]) + 1
        if step <= 0 or not np.allclose(np.diff(centres), step, rtol=1e-9):
            raise InputError(name, centres[:4], "evenly spaced coordinates", "Export to netcdf.")
        origin.append(float(centres[0]) - step / 2)
        spacing.append(step)
        shape.append(len(centres))
    # One layer of cells in 3-D: VTK lays 2-D meshes of XDMF into the plane of y and z.
    return _Mesh(
        f'<Topology TopologyType="3DCoRectMesh" Dimensions="{_row(n + 1 for n in shape)}"/>\n'
        '<Geometry GeometryType="ORIGIN_DXDYDZ">\n'
        f'<DataItem Format="XML" Dimensions="3">{_row(origin)}</DataItem>\n'
        f'<DataItem Format="XML" Dimensions="3">{_row(spacing)}</DataItem>\n</Geometry>\n',
        tuple(shape),
        "Cell",
    )


def _points(run: Trajectory) -> np.ndarray:
    """Positions x, y, z of all sites of an alloy in Angstrom, (sites, 3) float32."""
    sides = tuple(2 * n for n in structure.cells_of(run.config))
    points = np.argwhere(is_site(sides))
    if len(points) != run.sizes["site"]:
        found = f"It has {run.sizes['site']} for {sides} points."
        raise InputError("file", str(run.path), "all sites of a bcc lattice", found)
    side = float(run.attributes.get("lattice_constant_angstrom", LATTICE_CONSTANT))
    return (points * (0.5 * side)).astype(np.float32)


def _points_image(points: np.ndarray) -> bytes:
    with h5py.File("image", "w", driver="core", backing_store=False) as file:
        options = {"compression": "gzip", "shuffle": True, "fletcher32": True}
        file.create_dataset("positions", data=points, **options)
        file["positions"].attrs["units"] = "angstrom"
        file.flush()
        return file.id.get_file_image()


def _polyvertex(sites: int, beside: str) -> _Mesh:
    return _Mesh(
        f'<Topology TopologyType="Polyvertex" NumberOfElements="{sites}" NodesPerElement="1"/>\n'
        '<Geometry GeometryType="XYZ">\n'
        f'<DataItem Format="HDF" NumberType="Float" Precision="4" Dimensions="{sites} 3">'
        f"{escape(beside)}:/positions</DataItem>\n</Geometry>\n",
        (sites,),
        "Node",
    )


def _xdmf(
    run: Trajectory,
    meshes: Mapping[_Mesh, Sequence[Variable]],
    steps: range,
    member: int,
    heavy: str,
) -> Iterator[str]:
    """The lines of the text: for each mesh a collection of grids in time."""
    yield '<?xml version="1.0" encoding="utf-8"?>\n<Xdmf Version="2.0">\n<Domain>\n'
    for mesh, variables in meshes.items():
        title = escape("+".join(v.name for v in variables))
        yield f'<Grid Name="{title}" GridType="Collection" CollectionType="Temporal">\n'
        for k in steps:
            yield f'<Grid Name="{title}" GridType="Uniform">\n'
            yield f'<Time Value="{float(run.time[k])!r}"/>\n{mesh.xml}'
            for v in variables:
                for name, place in components(run, v).items():
                    at = {"time": k, "member": member, **place}
                    yield _attribute(v, name, mesh, run.sizes, at, heavy)
            yield "</Grid>\n"
        yield "</Grid>\n"
    yield "</Domain>\n</Xdmf>\n"


def _attribute(
    v: Variable, title: str, mesh: _Mesh, lengths: Mapping[str, int], at: Mapping[str, int],
    heavy: str,
) -> str:  # fmt: skip
    """The values of a component at a frame: a hyperslab of the run's dataset."""
    dims = ("time", *v.dims)
    start = [at.get(name, 0) for name in dims]
    count = [1 if name in at else lengths[name] for name in dims]
    dtype = np.dtype(v.dtype)
    kind = "Float" if dtype.kind == "f" else {1: "Char", 2: "Short"}.get(dtype.itemsize, "Int")
    return (
        f'<Attribute Name="{escape(title)}" AttributeType="Scalar" Center="{mesh.centre}">\n'
        f'<DataItem ItemType="HyperSlab" Type="HyperSlab" Dimensions="{_row(mesh.shape)}">\n'
        f'<DataItem Format="XML" NumberType="Int" Dimensions="3 {len(dims)}">'
        f"{_row([*start, *[1] * len(dims), *count])}</DataItem>\n"
        f'<DataItem Format="HDF" NumberType="{kind}" Precision="{dtype.itemsize}" '
        f'Dimensions="{_row(lengths[name] for name in dims)}">'
        f"{escape(heavy)}:/{escape(v.name)}</DataItem>\n</DataItem>\n</Attribute>\n"
    )


def _row(values: Iterable[float]) -> str:
    return " ".join(repr(value) for value in values)
