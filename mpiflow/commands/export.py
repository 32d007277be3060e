"""Trajectories as files of other formats.

==========================  ================================================================
``netcdf``                  netCDF, of chosen variables and frames: :mod:`mpiflow.commands.netcdf`
``xdmf``                    a text file that lets ParaView and VTK read the fields in place
``lammpsdump``, ``extxyz``  the atoms of an alloy, see :mod:`mpiflow.files.structure`
==========================  ================================================================

docs/exports.md shows them for users.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiflow.commands.netcdf import to_netcdf
from mpiflow.commands.selected import check_member, chosen, steps_of
from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.files import structure
from mpiflow.files.schema import Variable
from mpiflow.files.storage import whole_file
from mpiflow.files.trajectory import Trajectory
from mpiflow.simulation.options import idle
from mpiflow.systems.alloy import LATTICE_CONSTANT, is_site

#: Formats, and the options of :func:`export` that each knows.
FORMATS: dict[str, frozenset[str]] = {
    **dict.fromkeys(structure.FORMATS, frozenset({"frame", "member", "vacancies"})),
    "netcdf": frozenset({"variables", "frames", "netcdf_format"}),
    "xdmf": frozenset({"variables", "frames", "member"}),
}


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
    netcdf_format: str | None = None,
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
    netcdf_format : one of :data:`mpiflow.commands.netcdf.FORMATS`; default is ``netcdf4``

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
    given |= {"vacancies": vacancies or None, "netcdf_format": netcdf_format}
    for name, value in given.items():
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
        form = netcdf_format or "netcdf4"
        return to_netcdf(run, out, form, variables=names, frames=part, overwrite=overwrite)
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
