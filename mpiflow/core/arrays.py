"""Arrays that users give, in memory or in ``.npy`` files: real numbers, or a reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mpiflow.core.errors import InputError

#: Kinds of NumPy that are no real numbers, in words.
_OTHERS = {
    "b": "truth values",
    "c": "complex numbers",
    "m": "durations",
    "M": "dates",
    "O": "Python objects",
    "S": "texts",
    "T": "texts",
    "U": "texts",
    "V": "records",
}
_NPY, _ZIP = np.lib.format.MAGIC_PREFIX, b"PK"


def real(name: str, values: Any) -> np.ndarray:
    """Numbers as float64, in this machine's order of bytes; whole numbers are taken, too.

    Raises
    ------
    InputError : there are no real numbers, or some are infinite or NaN
    """
    try:
        array = np.asanyarray(values)
    except ValueError as error:  # rows of different lengths
        raise InputError(name, "no array", "real numbers", f"NumPy said: {error}.") from None
    _require_real(name, f"{array.dtype} {array.shape}", array.dtype, "real numbers")
    array = np.asarray(array, np.float64)
    if not np.isfinite(array).all():
        raise InputError(name, "infinite or NaN", "finite numbers", "Look at the array.")
    return array


def is_array_file(path: Path) -> bool:
    """Whether a file is one of NumPy, by its name or by its first bytes."""
    if path.suffix in (".npy", ".npz"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(_NPY)).startswith((_NPY, _ZIP))
    except OSError:
        return False


def mapped(name: str, path: Path, allowed: str) -> np.ndarray:
    """A ``.npy`` of real numbers, mapped: only what is used is read.

    Parameters
    ----------
    name, allowed : what errors call it, and say that it has to be

    Raises
    ------
    InputError : it is no such file, or it is damaged, or empty, or of other values
    """
    if not path.is_file():
        raise InputError(name, str(path), "an existing file", "Check the path.")
    try:
        with path.open("rb") as file:
            archive = file.read(len(_ZIP)) == _ZIP
        array = None if archive else np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, TypeError, OverflowError, MemoryError) as error:
        said = str(error).rstrip(".")
        raise InputError(name, str(path), allowed, f"Reading said: {said}.") from error
    if array is None:
        remedy = "It is an archive of arrays (.npz): numpy.save writes one."
        raise InputError(name, str(path), allowed, remedy)
    _require_real(name, f"{path}: {array.dtype} {array.shape}", array.dtype, allowed)
    if array.size == 0:
        raise InputError(name, f"{path}: {array.shape}", allowed, "It is empty.")
    return array


def _require_real(name: str, shown: str, dtype: np.dtype, allowed: str) -> None:
    if dtype.kind not in "fiu":
        remedy = f"It holds {_OTHERS.get(dtype.kind, 'something else')}: convert them yourself."
        raise InputError(name, shown, allowed, remedy)
