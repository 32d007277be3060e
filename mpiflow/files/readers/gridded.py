"""Variables of netCDF (with CF's conventions) and of zarr, through xarray.

Dimensions of a variable are known by CF's attribute axis, or by their names: time or t, z, y and x.
Without such the last two are y and x, and one more is time. Another one is the component.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow.files.readers.arrays import as_numbers, check_numbers
from mpiflow.files.readers.frames import Axes, Frame, Wanted, one_of
from mpiflow.files.structure_files import Unfit


def read_netcdf(path: Path, wanted: Wanted) -> Iterator[Frame]:
    """The frames of a variable of a netCDF file, of any of its formats."""
    yield from _read(path, wanted, "netCDF", None)


def read_zarr(path: Path, wanted: Wanted) -> Iterator[Frame]:
    """The frames of a variable of a zarr store, a folder."""
    yield from _read(path, wanted, "zarr", "zarr")


def library(kind: str) -> str:
    """The programs that read such a file, with their versions."""
    names = {"zarr": ("xarray", "zarr"), "netCDF": ("xarray", "netCDF4")}[kind]
    return " ".join(f"{name} {version(name)}" for name in names)


def _read(path: Path, wanted: Wanted, kind: str, engine: str | None) -> Iterator[Frame]:
    try:
        import xarray

        version("zarr" if kind == "zarr" else "netCDF4")
    except ImportError as error:
        found = f"Reading {kind} needs xarray and its libraries ({error.name or error}): "
        raise Unfit("a file whose libraries are here", found + "install mpiflow[import].") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # of a store's age
            data = xarray.open_dataset(path, engine=engine, decode_times=False, chunks=None)
    except Exception as error:  # whatever a library raises at a broken file
        raise Unfit(f"a readable {kind} file", _said(error)) from None
    with data:
        names = [str(n) for n, v in data.data_vars.items() if v.ndim > 1 and v.dtype.kind in "biuf"]
        name = one_of(names, wanted.variable, "variable")
        yield from _frames(data[name], name, wanted, kind)


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:200].rstrip(".")
    return f"xarray said: {type(error).__name__} {text}."


def _frames(values: Any, name: str, wanted: Wanted, kind: str) -> Iterator[Frame]:
    check_numbers(values.dtype)
    time, part, layer, *plane = _roles(values, name, wanted)
    axes = Axes(values.sizes.get(part, 1), values.sizes.get(layer, 1), _labels(values, part))
    component, depth = axes.place(wanted)
    chosen = {part: component, layer: depth}
    times = values[time].values if time in values.coords else None
    for k in range(values.sizes.get(time, 1)):
        place = {d: number for d, number in {**chosen, time: k}.items() if d is not None}
        try:
            frame = np.asarray(values.isel(place).transpose(*plane).values)
        except Exception as error:  # whatever a library raises at a broken chunk
            raise Unfit(f"a readable {kind} file", f"{name}, frame {k}: {_said(error)}") from None
        own = None if times is None or times.dtype.kind not in "iuf" else float(times[k])
        yield Frame(as_numbers(frame), own, f"frame {k} of {name}")


def _roles(values: Any, name: str, wanted: Wanted) -> list[Any]:
    """The dimensions that are time, component and layer, each None if there is none, and y and x.

    They are known by CF's attribute axis or by their names; y and x are the last two else.
    """
    found = {axis: next((d for d in values.dims if _is(values, d, axis)), None) for axis in "TZYX"}
    rest = [d for d in values.dims if d not in found.values()]
    if found["Y"] is None or found["X"] is None:
        rest = [d for d in values.dims if d not in (found["T"], found["Z"])]
        if len(rest) < 2:
            found_dims = ", ".join(map(str, values.dims))
            raise Unfit("a variable over y and x", f"{name} is over {found_dims}.")
        rest, found["Y"], found["X"] = rest[:-2], *rest[-2:]
    rest = [d for d in rest if values.sizes[d] > 1] or rest[:1]
    if found["T"] is None and wanted.component is None and len(rest) == 1:
        found["T"] = rest.pop()
    if len(rest) > 1:
        allowed = "a variable over time, a component, a layer, y and x at most"
        raise Unfit(allowed, f"{name} is over {', '.join(map(str, values.dims))}.")
    return [found["T"], rest[0] if rest else None, found["Z"], found["Y"], found["X"]]


def _is(values: Any, dim: Any, axis: str) -> bool:
    word = str(dim).lower()
    if dim in values.coords and values[dim].attrs.get("axis"):
        return values[dim].attrs["axis"] == axis
    return word == axis.lower() or (axis == "T" and word == "time")


def _labels(values: Any, dim: Any) -> list[str]:
    return [str(label) for label in values[dim].values] if dim in values.coords else []
