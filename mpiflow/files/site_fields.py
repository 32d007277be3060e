"""Fields of sites from files: arrays of NumPy, and variables of HDF5 and netCDF4 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from mpiflow.core import arrays
from mpiflow.core.errors import InputError, did_you_mean


def opened(path: Path, variable: str | None, shape: tuple[int, ...]) -> Any:
    """An array of real numbers of a shape, of which nothing is read yet.

    Parameters
    ----------
    variable : its name in a file of HDF5 or netCDF4; None of a ``.npy`` file

    Raises
    ------
    InputError : there is none
    """
    allowed = f"a .npy file of real numbers of shape {shape}"
    if variable is None:
        field: Any = arrays.mapped("field_file", path, allowed)
    else:
        allowed = f"a .npy, HDF5 or netCDF4 file with real numbers of shape {shape}"
        field = _variable(path, variable, allowed)
    if field.shape != shape:
        found = f"{path}: {field.shape}"
        raise InputError("field_file", found, allowed, "Use a matching --size.")
    return field


def _variable(path: Path, name: str, allowed: str) -> h5py.Dataset:
    if not path.is_file():
        raise InputError("field_file", str(path), "an existing file", "Check the path.")
    try:
        file = h5py.File(path)
    except OSError as error:
        remedy = f"Reading said: {str(error).rstrip('.')}."
        raise InputError("field_file", str(path), allowed, remedy) from error
    if not isinstance(file.get(name), h5py.Dataset):
        known = [key for key, item in file.items() if isinstance(item, h5py.Dataset)]
        remedy = did_you_mean(name, known) or "Name another: --field-variable."
        raise InputError("field_variable", name, f"one of {', '.join(known)}", remedy)
    return file[name]
