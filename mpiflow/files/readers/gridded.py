"""Variables of netCDF (with CF's conventions) and of zarr, through xarray.

The last two dimensions of a variable are y and x; one before them that is called ``time`` or ``t``,
has the axis T, or is the only one of a size above 1, is time. Another one is the component.
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

_TIMES = ("time", "t")


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
    lone = [d for d in values.dims[:-2] if values.sizes[d] == 1 and not _is_time(values, d)]
    values = values.squeeze(lone)
    *others, _, _ = values.dims
    time = next((d for d in others if _is_time(values, d)), None)
    if time is None and len(others) == 1 and wanted.component is None:
        time = others[0]
    rest = [d for d in others if d != time]
    if len(rest) > 1:
        allowed = "a variable over time, a component, y and x at most"
        raise Unfit(allowed, f"{name} is over {', '.join(map(str, values.dims))}.")
    component = 0
    if rest:
        labels = values[rest[0]].values if rest[0] in values.coords else []
        component, _ = Axes(values.sizes[rest[0]], 1, [str(label) for label in labels]).place(
            wanted
        )
    elif wanted.component not in (None, "0"):
        Axes(1).place(wanted)
    times = values[time].values if time in values.coords else None
    for k in range(values.sizes[time] if time else 1):
        place = {d: component for d in rest} | ({time: k} if time else {})
        try:
            frame = np.asarray(values.isel(place).values)
        except Exception as error:  # whatever a library raises at a broken chunk
            raise Unfit(f"a readable {kind} file", f"{name}, frame {k}: {_said(error)}") from None
        own = None if times is None or times.dtype.kind not in "iuf" else float(times[k])
        yield Frame(as_numbers(frame), own, f"frame {k} of {name}")


def _is_time(values: Any, dim: Any) -> bool:
    if str(dim).lower() in _TIMES:
        return True
    return dim in values.coords and values[dim].attrs.get("axis") == "T"
