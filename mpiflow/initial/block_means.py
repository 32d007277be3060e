"""Initial states of learned fields: means of blocks, from the files of runs or of arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiflow.core import arrays
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.files.moments import Moment
from mpiflow.files.trajectory import Trajectory

#: Values of a file that are in memory at once, about.
VALUES = 2**22

#: Means (n, nx) float64 of a member and of rows of blocks.
Read = Callable[[int, slice], np.ndarray]


@contextmanager
def means_of_file(path: Path, moment: Moment, block: int, shape: Shape) -> Iterator[Read]:
    """A function that reads rows of the means of blocks from a file.

    Blocks in the file that are smaller are averaged, and a smaller lattice is repeated
    periodically. A file with members gives to each its own, unless the moment names one.

    Parameters
    ----------
    path : a Trajectory with ``coarse_magnetization``, ``spin`` or ``spin_bits``; or a .npy of
        means of blocks of ``block`` sites, (sy, sx)
    moment : of a Trajectory
    block : sites a side
    shape : (ny, nx) blocks that are wanted

    Raises
    ------
    InputError : it is no such file, or its blocks or its lattice do not fit
    """
    try:
        if arrays.is_array_file(path):
            allowed = "a readable .npy of means of blocks, (ny, nx)"
            values = arrays.mapped("initial", path, allowed)
            if values.ndim != 2:
                raise InputError("initial", f"{path}: {values.shape}", allowed, "Look at it.")
            yield _Means(str(path), lambda _, rows: values[rows], values.shape, block, block, shape)
            return
        with Trajectory(path) as run:
            name, dims, unit = _fields_of(run)
            at = moment.frame_of(path, run.time)
            sizes = [run.sizes[d] for d in dims]
        with h5py.File(path, "r", locking=False) as file:
            data, several = file[name], len(sizes) == 3
            ny, nx = sizes[-2:]

            def piece(member: int, rows: slice) -> np.ndarray:
                own = moment.members_of(path, sizes[0] if several else 0, np.array([member]))
                values = data[(at, *(own if several else []), rows)]
                if name != "spin_bits":
                    return np.asarray(values)
                return 2 * np.unpackbits(values, axis=-1).view(np.int8) - 1

            sides = ny, nx * (8 if name == "spin_bits" else 1)
            yield _Means(str(path), piece, sides, unit, block, shape)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        allowed = "a readable .npy or Trajectory"
        raise InputError("initial", str(path), allowed, f"Reading said: {error}.") from error


def _fields_of(run: Trajectory) -> tuple[str, tuple[str, ...], int]:
    """Which variable of a run, its dimensions, and the sites a side of what it is over."""
    names = [n for n in ("coarse_magnetization", "spin_bits", "spin") if n in run.variables]
    if not names:
        allowed = "a run with block means or spins"
        raise InputError("initial", str(run.path), allowed, "Save it with --coarse 8.")
    unit: Any = 1
    if names[0] == "coarse_magnetization":
        unit = run.config.get("coarse")
        if not isinstance(unit, int) or unit < 1:
            allowed = "a run whose configuration says the size of its blocks"
            raise InputError("initial", str(run.path), allowed, "Use a run of mpiflow simulate.")
    return names[0], run.variables[names[0]].dims, unit


class _Means:
    """Rows of means of blocks, made of rows of smaller blocks of a smaller lattice."""

    def __init__(
        self, path: str, piece: Read, sides: Shape, unit: int, block: int, shape: Shape
    ) -> None:
        self.piece, self.path, self.shape = piece, path, shape
        self.times, rest = divmod(block, unit)
        if rest:
            allowed = f"a multiple of the {unit} sites a side of the blocks of {path}"
            raise InputError("block", block, allowed, "Use another --block, or another file.")
        lattice = tuple(side * unit for side in sides)
        if any(side % block for side in lattice):
            allowed = f"a lattice in blocks of {block} sites"
            raise InputError("initial", f"{path}: {lattice}", allowed, "Use another --block.")
        self.period = tuple(side // block for side in lattice)
        if any(n % p for n, p in zip(shape, self.period, strict=True)):
            wanted = tuple(n * block for n in shape)
            allowed = f"a multiple of {lattice}, the lattice of {path}"
            raise InputError("size", wanted, allowed, "The file is repeated whole times.")

    def __call__(self, member: int, rows: slice) -> np.ndarray:
        (ny, nx), count = self.period, rows.stop - rows.start
        few = min(count, ny)
        known = np.empty((few, nx))
        step = max(1, VALUES // max(1, nx * self.times**2))
        done = 0
        while done < few:
            first = (rows.start + done) % ny
            n = min(step, few - done, ny - first)
            known[done : done + n] = self._averaged(member, slice(first, first + n))
            done += n
        if not (abs(known) <= 1).all():
            raise InputError("initial", self.path, "means of -1 to 1", "Look at the file.")
        return np.tile(known[np.arange(count) % max(1, few)], (1, self.shape[1] // nx))

    def _averaged(self, member: int, rows: slice) -> np.ndarray:
        """Added up in one order: the same bits however rows are cut."""
        q, n, nx = self.times, rows.stop - rows.start, self.period[1]
        values = self.piece(member, slice(rows.start * q, rows.stop * q)).reshape(n, q, nx, q)
        down, out = np.zeros((n, nx, q)), np.zeros((n, nx))
        for i in range(q):
            down += values[:, i]
        for i in range(q):
            out += down[..., i]
        return out / q**2
