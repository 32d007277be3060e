"""Initial sites from files: a ``.npy`` array, or a frame of the HDF5 file of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from mpiflow.core import arrays
from mpiflow.core.errors import InputError
from mpiflow.files import footer
from mpiflow.files.moments import Moment, times_of
from mpiflow.initial.site_words import Spins
from mpiflow.initial.spins import store_profile

_CACHE = 2**24  # bytes: a row of compressed chunks of a large frame, which several bands share


def from_file(block: Spins, path: str | Path, seed: int = 0, *, moment: Moment = Moment()) -> None:
    """Spins from a ``.npy`` file, or from a frame of the ``spin`` or ``spin_bits`` of a run.

    The array must be (Ly, Lx) of +1 and -1. Each rank reads only its own box, and all
    stop together if one cannot use what it finds. A ``.npy`` of floating-point numbers holds
    the means of a :func:`profile` with this ``seed``. Of an ensemble each member starts from its
    own, unless the moment names one.

    Parameters
    ----------
    moment : which frame and member of a run; the last frame by default
    """
    path = Path(path)
    top, left = (int(o) for o in block.origins[0]) if block.batch else (0, 0)
    with block.agreed(), opened(path, block, moment) as read:
        if isinstance(read, np.ndarray):
            store_profile(block, seed, read, "initial", str(path))
        else:
            for rows in block.bands():
                box = slice(top + rows.start, top + rows.stop), slice(left, left + block.shape[1])
                spins = read(box)  # (members or 1, rows, columns)
                if not ((spins == 1) | (spins == -1)).all():
                    raise InputError(
                        "initial", str(path), "values +1 and -1 only", "Check the file."
                    )
                every = (block.batch, *spins.shape[1:])
                block.store(rows, np.ascontiguousarray(np.broadcast_to(spins, every), np.int8))
    block.fill_halo()


@contextmanager
def opened(
    path: Path,
    block: Spins,
    moment: Moment,
    names: Sequence[str] = ("spin_bits", "spin"),
    remedy: str = "Save with --spins or --spin-bits.",
) -> Iterator[Callable[[tuple[slice, ...]], np.ndarray] | np.ndarray]:
    """A function that reads a box of the lattice from the file, or all means, mapped.

    Parameters
    ----------
    names : variables of a run that hold sites, the best first
    """
    if not path.is_file():
        raise InputError("initial", str(path), "an existing file", "Check the path.")
    try:
        if arrays.is_array_file(path):
            if _mapped(path).dtype.kind == "f":
                yield _mapped(path)
                return
            # Mapped anew for each box: the pages that were read leave the memory.
            _require_shape(path, _mapped(path).shape, block)
            yield lambda box: np.array(_mapped(path)[box])[None]
            return
        footer.check(path)
        with h5py.File(path, "r", locking=False, rdcc_nbytes=_CACHE) as file:
            name = next((n for n in names if n in file), names[-1])
            if not isinstance(file.get(name), h5py.Dataset):
                found = f"{path}, of {file.attrs.get('system', 'another program')}"
                allowed = f"a Trajectory that holds {' or '.join(map(repr, names[::-1]))}"
                raise InputError("initial", found, allowed, remedy)
            data = file[name]
            if data.ndim not in (3, 4):
                allowed = f"{name} over time, y and x, perhaps members, not {data.ndim} dimensions"
                raise InputError("initial", str(path), allowed, "Check the file.")
            *shape, last = data.shape[-2:]
            _require_shape(path, (*shape, last * (8 if name == "spin_bits" else 1)), block)
            count = data.shape[1] if data.ndim == 4 else 0
            places = moment.places(path, times_of(file, len(data)), count, block.members)
            read = _from_bits if name == "spin_bits" else _values
            yield lambda box: np.array([read(data, place, *box) for place in places])
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "initial", str(path), "a readable .npy or mpiflow HDF5 file", f"Reading said: {error}."
        ) from error


def _values(data: h5py.Dataset, place: tuple[int, ...], rows: slice, columns: slice) -> np.ndarray:
    """Spins of a box of a frame, of a member, of ``spin``."""
    return np.asarray(data[(*place, rows, columns)])


def _from_bits(
    data: h5py.Dataset, place: tuple[int, ...], rows: slice, columns: slice
) -> np.ndarray:
    """Spins of a box of a frame, of a member, of ``spin_bits``."""
    bytes_ = data[(*place, rows, slice(columns.start // 8, -(-columns.stop // 8)))]
    first = columns.start % 8
    bits = np.unpackbits(bytes_, axis=-1)[:, first : first + columns.stop - columns.start]
    return 2 * bits.view(np.int8) - 1


def _mapped(path: Path) -> np.ndarray:
    return arrays.mapped(
        "initial", path, "a readable .npy of spins +1 and -1, or of means of -1 to 1"
    )


def _require_shape(path: Path, shape: tuple[int, ...], block: Spins) -> None:
    if tuple(shape) != block.lattice.shape:
        raise InputError(
            "initial",
            str(path),
            f"spins of shape {block.lattice.shape}, the file has {tuple(shape)}",
            "Use a matching --size.",
        )
