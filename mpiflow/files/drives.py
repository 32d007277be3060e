"""Drives from files: tables of times and values, in CSV, NumPy's format or TOML.

============ ======================================================================================
``.csv``     a line of names, ``time`` and those of parameters, then lines of numbers
``.npy``     an array of columns: time, temperature and field, or only the first two; or a
             structured array, whose names say it
``.toml``    the same columns as lists by name; or, by name, texts as of
             :meth:`mpiflow.Drive.read`, ``field = "ac 0.5 period 20"``
============ ======================================================================================

Between the times of a table there are straight lines; a time that comes twice is a jump.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.toml_files import read_toml
from mpiflow.systems.drive import Drive

if TYPE_CHECKING:
    from mpiflow.files.trajectory import Trajectory

SUFFIXES = (".csv", ".npy", ".toml")
#: Columns of a plain array.
COLUMNS = ("time", "temperature", "field")


def is_file(text: str) -> bool:
    """Whether a schedule is the path of a file, which its ending says."""
    return Path(text).suffix.lower() in SUFFIXES


def read(text: str) -> Drive:
    """The drive of a text, or of the file that it names.

    Raises
    ------
    InputError : it is none, with the line of the file
    """
    if not is_file(text):
        return Drive.read(text)
    path = Path(text)
    if not path.is_file():
        raise InputError("schedule", text, "the path of an existing file", "Check the path.")
    kind = path.suffix.lower()
    read_as: dict[str, Callable[[Path], Any]] = {".csv": _csv, ".npy": _npy, ".toml": read_toml}
    columns: dict[str, Any] = read_as[kind](path)
    times = columns.pop("time", None)
    curves = {
        name: given if isinstance(given, str) else (_numbers(path, "time", times), given)
        for name, given in columns.items()
    }
    for name, given in curves.items():
        if not isinstance(given, str):
            curves[name] = (given[0], _numbers(path, name, given[1]))
    if not curves:
        raise InputError("schedule", text, "columns beside the time", "Add one: temperature.")
    return Drive(**curves)


def require_constant(file: Trajectory, names: Iterable[str]) -> None:
    """Raise for a parameter that changes in a run, where one number is wanted.

    Raises
    ------
    InputError : it says which, and in which file
    """
    for name in names:
        if name in file.variables and file.variables[name].per_frame:
            found = f"{name} of {file.path}, which changes in time"
            remedy = f"Use runs without a schedule of it, or its values: the variable {name}."
            raise InputError("parameters", found, f"one {name} in a whole run", remedy)


def _csv(path: Path) -> dict[str, list[float]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file, skipinitialspace=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _fault(path, f"Reading said: {error}.") from error
    if not lines:
        raise _fault(path, "It is empty.")
    names, columns = [name.strip() for name in lines[0]], []
    for number, line in enumerate(lines[1:], 2):
        if not any(word.strip() for word in line):
            continue
        try:
            row = [float(word) for word in line]
        except ValueError as error:
            raise _fault(path, f"Line {number}: {error}.") from None
        if len(row) != len(names):
            raise _fault(path, f"Line {number} has {len(row)} numbers, the first line {names}.")
        columns.append(row)
    return dict(zip(names, map(list, zip(*columns, strict=True)), strict=bool(columns)))


def _npy(path: Path) -> dict[str, np.ndarray]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _fault(path, f"Reading said: {error}.") from error
    if not isinstance(array, np.ndarray):
        raise _fault(path, "It is an archive of arrays (.npz): numpy.save writes one.")
    if array.dtype.names:
        return {name: array[name] for name in array.dtype.names}
    if array.ndim != 2 or array.shape[1] not in (2, 3):
        raise _fault(path, f"Its shape is {array.shape}; columns are {', '.join(COLUMNS)}.")
    return dict(zip(COLUMNS, array.T, strict=False))


def _numbers(path: Path, name: str, values: Any) -> tuple[float, ...]:
    """The numbers of a column."""
    if values is None:
        raise _fault(path, f"It has no {name}.")
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise _fault(path, f"{name} is no list of numbers.") from None


def _fault(path: Path, remedy: str) -> InputError:
    allowed = "a table of times and values of parameters, or texts by name"
    return InputError("schedule", str(path), allowed, remedy)
