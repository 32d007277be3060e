"""Whether two HDF5 files hold the same: names, types and bits of all their datasets."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def contents(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "r") as file:
        return {name: np.asarray(data) for name, data in file.items()}


def assert_same(first: Path, second: Path) -> None:
    a, b = contents(first), contents(second)
    assert a.keys() == b.keys()
    for name, values in a.items():
        assert values.dtype == b[name].dtype, name
        np.testing.assert_array_equal(values, b[name], err_msg=name)
