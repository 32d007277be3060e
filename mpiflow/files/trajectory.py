"""Reading of Trajectory files, finished or still growing. docs/file-format.md describes them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from mpiflow.core import inputs
from mpiflow.core.errors import InputError
from mpiflow.files import footer, foreign, segments, spin_bits
from mpiflow.files.schema import (
    SCHEMA_VERSION,
    describe,
    plain,
)
from mpiflow.files.sealing import readable
from mpiflow.files.segments import Segment

#: Of a file that another program has opened for writing, with its path.
CHANGED = (
    "another program has changed it since it was sealed, so damage to it may go unseen; "
    "mpiflow verify --seal {} checks it and seals it anew"
)


class Trajectory:
    """A Trajectory file opened for reading, finished or still growing.

    ``traj["magnetization"]`` is a NumPy array, time first. A file that is being
    written shows the frames that it had when it was opened; open it again for more.

    Parameters
    ----------
    path : of the file

    Attributes
    ----------
    variables : the data variables by name
    attributes : of the file, as plain Python values
    sizes : of the dimensions
    config : the configuration of the run, at its end
    segments : the parts of the run, one unless it was resumed with other options: each with its
        frames and its configuration (:class:`mpiflow.files.segments.Segment`)
    complete : whether the run came to its planned end
    changed : whether another program has opened the file for writing since it was sealed; a warning
        says so

    Raises
    ------
    InputError : the file is missing, corrupt, or not a Trajectory
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not os.path.isfile(self.path):
            raise self._refusal("an existing trajectory", "There is none: check the path.")
        with self._corrupt_if_unreadable():
            if what := foreign.kind(self.path):
                raise self._refusal("a trajectory written by mpiflow", what)
            state = footer.check(self.path)  # before HDF5 sees a damaged file
            self._file = h5py.File(self.path, "r", locking=False)
        try:
            with self._corrupt_if_unreadable():
                self._load()
        except InputError:
            self._file.close()
            raise
        self.changed = state == "changed"
        if self.changed:
            warnings.warn(f"{self.path}: {CHANGED.format(self.path)}", stacklevel=2)

    def _load(self) -> None:
        self.attributes = {name: plain(value) for name, value in self._file.attrs.items()}
        version = self.attributes.get("schema_version")
        if version is None:
            raise self._refusal("a trajectory written by mpiflow", foreign.described(self._file))
        if version > SCHEMA_VERSION:
            allowed = f"schema_version up to {SCHEMA_VERSION}"
            raise self._refusal(allowed, f"It has {version}: update mpiflow.")
        # Not items(), which leaves out what it cannot open.
        objects = {name: self._file[name] for name in self._file}
        datasets = {k: v for k, v in objects.items() if isinstance(v, h5py.Dataset)}
        self.variables = {k: describe(v) for k, v in datasets.items() if not v.is_scale}
        self._per_frame = {"time", *(v.name for v in self.variables.values() if v.per_frame)}
        # A writer that died inside a flush leaves variables of different lengths.
        frames = min(len(datasets[name]) for name in self._per_frame)
        if not self.attributes["complete"]:
            frames = readable(self._file, self._per_frame, frames)
        self.time: np.ndarray = self._file["time"][:frames]
        self.time = self.time[np.isfinite(self.time)]
        self.sizes = {k: v.size for k, v in datasets.items() if v.is_scale} | {"time": len(self)}
        self.config: dict[str, Any] = json.loads(self.attributes["config_json"])
        self.complete = bool(self.attributes["complete"])
        self.segments = self._segments()

    def _segments(self) -> list[Segment]:
        text = self.attributes.get("segments_json")
        if text is not None:
            return segments.read(text, len(self))
        start = float(self.time[0]) if len(self) else 0.0  # an older or another program wrote it
        every, unit = self.config.get("save_every"), "hops" if self.config.get("hops") else "time"
        return [Segment(range(len(self)), start, self.config, every, unit)]

    def _refusal(self, allowed: str, remedy: str) -> InputError:
        return InputError("file", str(self.path), allowed, remedy)

    @contextlib.contextmanager
    def _corrupt_if_unreadable(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise self._refusal("a readable file", "Ask its owner for access.") from error
        except InputError:
            raise
        except (OSError, LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            remedy = "It is corrupt: use another copy."
            raise self._refusal("an intact HDF5 file", remedy) from error

    def read(self, name: str, frames: int | slice = slice(None)) -> np.ndarray:
        """Values of a variable or coordinate; of some frames only, where it has frames."""
        if name not in self:
            known = sorted({*self.variables, *self.sizes})
            raise InputError("variable", name, f"one of {known}", "See mpiflow info.")
        index: Any = ()
        if name in self._per_frame:
            # Counted in whole frames: behind them there may be a broken one.
            steps = range(len(self))[frames]
            index = steps
            if not isinstance(steps, int):
                if steps.step < 0:
                    raise InputError("frames", frames, "a step forward", "Reverse the result.")
                index = slice(steps.start, max(steps.start, steps.stop), steps.step)
        with self._corrupt_if_unreadable():
            dataset = self._file[name]
            if h5py.check_string_dtype(dataset.dtype):
                return dataset.asstr()[()].astype(str)
            return dataset[index]

    def spins(self, frames: int | slice = slice(None)) -> np.ndarray:
        """Saved spins, int8 -1 or 1, (..., Ly, Lx), whether they were saved as bytes or as bits."""
        if spin_bits.NAME not in self:
            return self.read("spin", frames)
        return spin_bits.unpacked(self.read(spin_bits.NAME, frames))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.variables or name in self.sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self.variables)

    def __len__(self) -> int:
        return len(self.time)

    def to_xarray(self) -> Any:
        """The file as a lazy ``xarray.Dataset``, to be closed by the caller.

        Spins that were saved as bits are there as ``spin``, -1 or 1, and are unpacked when asked
        for.
        """
        try:
            import xarray
        except ImportError as error:
            remedy = "Install mpiflow[plot]."
            raise InputError("to_xarray", "no xarray", "with xarray", remedy) from error
        settings: dict[str, Any] = {"decode_times": False}
        if importlib.util.find_spec("h5netcdf"):  # netCDF4 minds the locks of others
            settings |= {"engine": "h5netcdf", "driver_kwds": {"locking": False}}
        whole = xarray.open_dataset(self.path, **settings)
        data = whole.isel(time=slice(len(self)))
        if spin_bits.NAME in self:
            data = spin_bits.unpack_dataset(data, self.variables[spin_bits.NAME])
        data.set_close(whole.close)
        return data

    def plot(self, out: str | Path | None = None, **options: Any) -> Any:
        """The run as a figure of matplotlib; see :func:`mpiflow.plot`."""
        import mpiflow

        return mpiflow.plot(self, out, **options)

    @property
    def _state(self) -> str:
        return "complete" if self.complete else "NOT complete"

    def summary(self) -> str:
        """A page about the file, for people."""
        about, sizes = self.attributes, (f"{name} {n}" for name, n in self.sizes.items())
        span = f", time {self.time[0]:g} to {self.time[-1]:g}" if len(self) else ""
        same = "same bits on any ranks" if about["decomposition_invariant"] else "depends on ranks"
        rows = {
            f"{v.name}({', '.join([*['time'] * v.per_frame, *v.dims])})": v
            for v in self.variables.values()
        }
        width = max(map(len, rows), default=0)
        config = self.config
        files = config.get("inputs") or {}
        return "\n".join(
            (
                f"{self.path}: {about['system']}, {self._state}",
                f"frames      {len(self)}{span}",
                f"dimensions  {', '.join(sizes)}",
                f"written by  mpiflow {about['mpiflow_version']} ({about['git_hash'][:12]}), "
                f"ranks: {about['ranks']}",
                f"imported    {inputs.imported(config)}"
                if about["system"] == "imported"
                else f"random      seed {about['seed']}, {about['rng']}, {same}",
                f"size        {self.path.stat().st_size / 1e6:.3g} MB",
                *([f"started     from {inputs.origin(config)}"] if "initial" in files else []),
                *([f"changed     {CHANGED.format(self.path)}"] if self.changed else []),
                *([f"ended       {about['stopped_early']}"] if "stopped_early" in about else []),
                *segments.describe(self.segments, self.time),
                "variables",
                *(
                    f"  {row:{width}}  {v.dtype:8} {v.long_name}"
                    + ("" if v.units == "1" else f" ({v.units})")
                    for row, v in rows.items()
                ),
            )
        )

    def facts(self) -> dict[str, Any]:
        """What :meth:`summary` tells, for programs: plain numbers, texts, lists and dicts."""
        stored = ("config_json", "segments_json")
        return {
            "path": str(self.path),
            "system": self.attributes["system"],
            "complete": self.complete,
            "changed": self.changed,
            "bytes": self.path.stat().st_size,
            "frames": len(self),
            "time": [float(t) for t in self.time[[0, -1]]] if len(self) else [],
            "sizes": self.sizes,
            "variables": {
                name: {
                    "dims": [*["time"] * v.per_frame, *v.dims],
                    "dtype": str(v.dtype),
                    "units": v.units,
                    "long_name": v.long_name,
                }
                for name, v in self.variables.items()
            },
            "config": self.config,
            "attributes": {k: v for k, v in self.attributes.items() if k not in stored},
        }

    def __repr__(self) -> str:
        names = ", ".join(self)
        return f"<Trajectory {str(self.path)!r}: {len(self)} frames, {self._state}; {names}>"

    def close(self) -> None:
        """Close the file, as the end of a ``with`` block does."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
