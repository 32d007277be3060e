"""Many runs at once: the files of a folder, a pattern or a list, and a table of what they are."""

from __future__ import annotations

import glob
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.files import foreign, manifest, segments
from mpiflow.files.trajectory import Trajectory

SUFFIXES = (".h5", ".hdf5")

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def find_runs(where: Paths) -> list[Path]:
    """The files of runs, each once: of a file, a folder, a pattern (``runs/*.h5``) or several.

    The files of a folder are those of runs, whatever they are called, and those of its manifest;
    folders and patterns are sorted by name. Hidden files are left out, and files with a suffix of
    :data:`SUFFIXES` that other programs wrote, with a warning.

    Raises
    ------
    InputError : there are none
    """
    several = [where] if isinstance(where, str | os.PathLike) else list(where)
    found = dict.fromkeys(path for one in several for path in _expanded(one))
    if not found:
        raise InputError("runs", several, "at least one run", "Check the paths.")
    return list(found)


def _expanded(where: str | os.PathLike[str]) -> list[Path]:
    path = Path(where)
    if path.is_dir():
        return files_of(path)
    if path.exists():
        return [path]
    matches = sorted(map(Path, glob.glob(os.fspath(where))))  # a pattern
    if not matches:
        raise InputError("runs", str(where), "existing runs", "It was not found: check the path.")
    return [file for match in matches for file in (_expanded(match) if match.is_dir() else [match])]


def files_of(folder: Path, listed: bool = True, strict: bool = True) -> list[Path]:
    """The files of runs in a folder, by name; of those that its manifest lists some may be lost.

    Parameters
    ----------
    listed : also those of the manifest
    strict : leave out files that only have the suffix of a run, with a warning
    """
    names = set(manifest.read(folder)) if listed else set()
    for item in folder.iterdir():
        if item.name in names or item.name.startswith(".") or not item.is_file():
            continue
        what = foreign.of_run(item)
        if item.suffix in SUFFIXES:
            if what and strict:
                warnings.warn(f"{item} is left out. {what}", stacklevel=3)
                continue
        elif what is None or what:
            continue
        names.add(item.name)
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def open_path(path: Paths) -> Trajectory | Runs:
    """Open a Trajectory file for reading; of a folder, a pattern or a list, all :class:`Runs`.

    ``mpiflow.open`` is this function.

    Parameters
    ----------
    path : a file, a folder, a pattern such as ``"runs/*.h5"``, or a list of these

    Raises
    ------
    InputError : nothing is there; or the file is corrupt, or not a Trajectory
    """
    if not isinstance(path, str | os.PathLike) or os.path.isdir(path):
        return Runs(path)
    pattern = glob.has_magic(os.fspath(path)) and not os.path.exists(path)
    return Runs(path) if pattern else Trajectory(path)


class Runs(Sequence[Trajectory]):
    """The runs of a folder, read-only. ``runs[i]`` opens a Trajectory, each time anew.

    Parameters
    ----------
    where : a folder, a file, a pattern, or several of them, as for :func:`find_runs`

    Attributes
    ----------
    paths : of the files; a slice of runs has some of them

    Raises
    ------
    InputError : there is no run, or what is there is none
    """

    def __init__(self, where: Paths) -> None:
        self.paths = find_runs(where)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Trajectory: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Trajectory | Self:
        return type(self)(self.paths[index]) if isinstance(index, slice) else self.open(index)

    def open(self, index: int) -> Trajectory:
        """Open a run; close it, or let it go."""
        return Trajectory(self.paths[index])

    def __iter__(self) -> Iterator[Trajectory]:
        """Each run in turn, open until the next one."""
        for path in self.paths:
            with Trajectory(path) as run:
                yield run

    def table(self, *names: str) -> dict[str, list[Any]]:
        """Facts about the runs: a list for each name, with a value for each run.

        Names are those of the configurations and of root attributes, and ``path``, ``frames``
        and ``complete``; by default these three, ``system``, ``seed``, and every option that is
        not the same in all runs. None stands for an option that a run does not have. Of a run that
        was resumed with another value there is a list, with the value of each part.
        """
        rows = []
        for run in self:
            own = {"path": str(run.path), "frames": len(run), "complete": run.complete}
            rows.append(run.attributes | run.config | segments.changes(run.segments) | own)
        known = list(dict.fromkeys(name for row in rows for name in row))
        if unknown := [name for name in names if name not in known]:
            raise InputError("names", unknown, f"some of {known}", "Correct them.")
        if not names:
            always = ("path", "system", "seed", "frames", "complete")
            hidden = {"config_json", "segments_json", "title", "git_hash", "out", "run", *always}
            varying = [n for n in known if n not in hidden and _vary(row.get(n) for row in rows)]
            names = (*always, *varying)
        return {name: [row.get(name) for row in rows] for name in names}

    def to_xarray(self) -> Any:
        """All runs in one ``xarray.Dataset`` in memory, along a new dimension ``run``.

        Numbers and words that differ between the runs become coordinates along ``run``. Runs
        with their frames at different times get a dimension ``frame``, and times of their own;
        behind the end of shorter ones there is NaN, so that whole numbers become floats, and
        ``frames`` along ``run`` says how many are there.

        Raises
        ------
        InputError : variables or shapes differ, or there is no xarray
        """
        if not self:
            raise InputError("runs", [], "at least one run", "There is nothing to join.")
        sets = []
        for run in self:
            with run.to_xarray() as data:
                sets.append(data.load())
        import xarray

        first = sets[0]
        for path, data in zip(self.paths, sets, strict=True):
            if _shapes(data) != _shapes(first):
                given = f"{path.name}: {_shapes(data)}"
                allowed = f"the variables and shapes of {self.paths[0].name}: {_shapes(first)}"
                raise InputError("runs", given, allowed, "Choose runs of one kind.")
        if any(not np.array_equal(data.time, first.time) for data in sets):
            sets = [data.drop_indexes("time").reset_coords("time") for data in sets]
            sets = [data.rename_dims(time="frame") for data in sets]
            longest = max(data.sizes["frame"] for data in sets)
            sets = [
                data.pad(frame=(0, longest - data.sizes["frame"]))
                if data.sizes["frame"] < longest
                else data
                for data in sets
            ]
        joined = xarray.concat(sets, dim="run", combine_attrs="drop_conflicts", join="exact")
        if "frame" in joined.dims:
            joined = joined.set_coords("time")
        facts = {k: v for k, v in self.table().items() if all(_plain(x) for x in v)}
        taken = {"complete", *joined.dims, *joined.variables}
        if "frame" not in joined.dims:
            taken.add("frames")
        return joined.assign_coords({k: ("run", v) for k, v in facts.items() if k not in taken})

    def __repr__(self) -> str:
        return f"<Runs: {len(self)} files from {self.paths[0]} on>" if self else "<Runs: none>"


def _vary(values: Iterable[Any]) -> bool:
    return len({json.dumps(value) for value in values}) > 1


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _shapes(data: Any) -> dict[str, dict[str, int]]:
    sizes = {str(name): dict(v.sizes) for name, v in data.data_vars.items()}
    return {name: {d: n for d, n in some.items() if d != "time"} for name, some in sizes.items()}
