"""Windows of frames of many runs as a torch Dataset.

    data = RunDataset("runs/", ("coarse_magnetization",), window=2, parameters=("temperature",))
    loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=4)

A dataset knows the times and shapes of all runs, and holds no open file when it is copied to
another process: each process opens files itself when it first needs them.
"""

from __future__ import annotations

import copy
import json
import math
import os
import threading
import time as clock
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from mpiflow.core.errors import InputError
from mpiflow.files import footer, spin_bits
from mpiflow.files.drives import require_constant
from mpiflow.files.runs import Paths, find_runs
from mpiflow.files.schema import Variable
from mpiflow.files.trajectory import Trajectory

Item = dict[str, Any]
Members = Literal["all", "together"] | Sequence[int]

#: Options that change what is saved of a run, or how fast it is, but not the run.
_NOT_THE_RUN = (
    "out", "overwrite", "writer", "quiet", "device", "ranks_grid", "save_every", "coarse",
    "spins", "spin_bits", "species", "time", "hops", "checkpoints", "checkpoint_every", "walltime",
    "resume",
)  # fmt: skip
_TAKEN = ("time", "dt", "run", "member", "frame")
# Of an open file: room for the chunks of a window of moderate fields.
_CACHE_BYTES = 2**22


@dataclass(frozen=True)
class Part:
    """Frames of a run that were made with the same parameters, at the same distance.

    Attributes
    ----------
    frames : their numbers
    parameters : numbers of the configuration or of attributes
    """

    frames: range
    parameters: Mapping[str, float | int]


@dataclass(frozen=True)
class Run:
    """What a dataset knows about a run without its file being open.

    Attributes
    ----------
    path : absolute
    time : (frames,) float64
    variables : as they are given; those of bits as spins
    stored : what they are called in the file
    shapes : of the variables, without time and member
    member_axis : of the variables, the axis along members; None for those without
    members : how many lattices; 1 without a member dimension
    parts : one, unless the run was resumed with other options
    identity : the same for two files of one run
    complete : whether the file stays as it is
    """

    path: Path
    time: np.ndarray
    variables: Mapping[str, Variable]
    stored: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    members: int
    parts: tuple[Part, ...]
    identity: str
    complete: bool


class RunDataset(Dataset[Item]):
    """Windows of frames of one or many runs.

    An item is a dict of

    =================  =====================================================================
    a variable         (window, ...); without ``window`` for one that has no frames
    ``time``           (window,) float64, in the run's unit of time
    ``dt``             (window - 1,) float64, between the frames of the window
    a parameter        () float64, or int64 for whole numbers
    ``run``            number of the run in :attr:`paths`
    ``member``         number of the lattice in an ensemble, 0 for a single one; left out with
                       ``members="together"``
    ``frame``          number of the first frame
    =================  =====================================================================

    Items go through the runs in order, through the windows of a run, then through members. A run
    that was resumed with other options has parts: no window has frames of two of them, and
    parameters are those of the window's part.

    Runs of any length fit together, if their variables have the same shapes. A run that is
    still going gives the frames that it had when the dataset was made.

    Parameters
    ----------
    runs : files, a folder, a pattern, or several, as for :func:`mpiflow.files.runs.find_runs`
    variables : names; ``spin`` (or ``spins``) is -1 or 1 also of runs that saved bits
    window : frames in an item
    stride : frames from the start of one window to the next
    step : frames from one frame of a window to the next; dt grows with it
    members : of an ensemble: ``all`` as items of their own, ``together`` in one item with a
        leading axis (behind time), or the numbers of some
    parameters : names of options or root attributes that are numbers
    transform : applied to each item, in the process that reads it
    dtype : of the variables; by default as in the files
    allow_incomplete : also take runs that are going, or were interrupted
    max_open : files that a process keeps open

    Raises
    ------
    InputError : there is nothing to read, a run is not complete, or shapes differ
    """

    def __init__(
        self,
        runs: Paths,
        variables: Sequence[str] = ("coarse_magnetization",),
        *,
        window: int = 2,
        stride: int = 1,
        step: int = 1,
        members: Members = "all",
        parameters: Sequence[str] = (),
        transform: Callable[[Item], Any] | None = None,
        dtype: torch.dtype | None = None,
        allow_incomplete: bool = False,
        max_open: int = 16,
    ) -> None:
        counts = {"window": window, "stride": stride, "step": step, "max_open": max_open}
        for name, count in counts.items():
            if count < 1:
                raise InputError(name, count, "1 or more", "Try 2." if name == "window" else "")
        self.variables = (variables,) if isinstance(variables, str) else tuple(variables)
        self.parameters = (parameters,) if isinstance(parameters, str) else tuple(parameters)
        names = (*self.variables, *self.parameters)
        if len({*names, *_TAKEN}) < len(names) + len(_TAKEN) or not self.variables:
            allowed = f"one variable or more, each name once, none of {_TAKEN}"
            raise InputError("variables", names, allowed, "Rename in transform.")
        self.window, self.stride, self.step = window, stride, step
        self.members, self.transform, self.dtype = members, transform, dtype
        self._files = _Files(max_open)
        self._set_runs(
            [
                _describe(p, self.variables, self.parameters, allow_incomplete)
                for p in find_runs(runs)
            ]
        )
        for run in self.runs[1:]:
            _require_same(self.runs[0], run)
        if len(self) == 0:
            span = (window - 1) * step + 1
            longest = max(len(part.frames) for run in self.runs for part in run.parts)
            remedy = "Use a smaller window or step."
            raise InputError("window", window, f"{span} frames; runs have {longest}", remedy)

    def _set_runs(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)
        windows = [self._windows(run) * len(self._members(run)) for run in self.runs]
        self._ends = np.cumsum(windows, dtype=np.int64)

    def _windows(self, run: Run) -> int:
        return sum(map(self._windows_in, run.parts))

    def _windows_in(self, part: Part) -> int:
        span = (self.window - 1) * self.step + 1
        return max(0, (len(part.frames) - span) // self.stride + 1)

    def _part(self, run: Run, window: int) -> tuple[Part, int]:
        """The part that a window of a run lies in, and its first frame."""
        for part in run.parts:
            if window < self._windows_in(part):
                return part, part.frames.start + window * self.stride
            window -= self._windows_in(part)
        raise IndexError(window)

    def _members(self, run: Run) -> Sequence[int | None]:
        if self.members == "together":
            return (None,)
        if self.members == "all":
            return range(run.members)
        chosen = [int(m) for m in self.members]
        if not chosen or not all(0 <= m < run.members for m in chosen):
            allowed = f"'all', 'together', or numbers from 0 to {run.members - 1} ({run.path})"
            raise InputError("members", self.members, allowed, "Correct it.")
        return chosen

    @property
    def paths(self) -> list[Path]:
        """The files, in the order of ``run`` in the items."""
        return [run.path for run in self.runs]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, index: int) -> tuple[int, int, int | None]:
        """Number of the run, first frame and member of an item."""
        number, _, first, member = self._place(index)
        return number, first, member

    def _place(self, index: int) -> tuple[int, Part, int, int | None]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        within = index - (int(self._ends[number - 1]) if number else 0)
        run = self.runs[number]
        chosen = self._members(run)
        part, first = self._part(run, within // len(chosen))
        return number, part, first, chosen[within % len(chosen)]

    def __getitem__(self, index: int) -> Any:
        number, part, first, member = self._place(index)
        run = self.runs[number]
        frames = slice(first, first + (self.window - 1) * self.step + 1, self.step)
        item: Item = {}
        for name, values in self._read(run, frames, member).items():
            item[name] = torch.from_numpy(values).to(self.dtype)
        times = run.time[frames]
        item["time"], item["dt"] = torch.from_numpy(times.copy()), torch.from_numpy(np.diff(times))
        for name, value in part.parameters.items():
            item[name] = torch.tensor(
                value, dtype=torch.int64 if isinstance(value, int) else torch.float64
            )
        item |= {"run": number, "frame": first} | ({} if member is None else {"member": member})
        return item if self.transform is None else self.transform(item)

    def frames(self, number: int, frames: slice) -> dict[str, np.ndarray]:
        """Any frames of a run with all of its members, as they are in the file.

        Returns
        -------
        Of each variable (frames, ...), or (frames, members, ...) of an ensemble
        """
        return self._read(self.runs[number], frames, None)

    def _read(self, run: Run, frames: slice, member: int | None) -> dict[str, np.ndarray]:
        """One read of the file for each variable."""
        for patience in (0.1, 0.5, None):
            try:
                with self._files.opened(run) as file:
                    return {n: _window(file, run, n, frames, member) for n in self.variables}
            except InputError:
                # A reader that meets the middle of a writer's flush may see nonsense.
                if run.complete or patience is None:
                    raise
                clock.sleep(patience)
        raise AssertionError

    def of_runs(self, numbers: Sequence[int]) -> Self:
        """The same windows of some of the runs, by their numbers."""
        part = copy.copy(self)
        part._files = _Files(self._files.limit)
        part._set_runs([self.runs[i] for i in numbers])
        return part

    def split(self, fractions: Sequence[float] = (0.8, 0.2), seed: int = 0) -> tuple[Self, ...]:
        """Datasets of different runs: no frame of a run in one of them is in another.

        Files of the same run, saved with other options, stay together. The same runs in any
        order are split in the same way.

        Parameters
        ----------
        fractions : of the runs in each dataset, adding up to 1; rounded to whole runs, and at
            least one each

        Raises
        ------
        InputError : there are fewer runs than datasets
        """
        if min(fractions, default=0) <= 0 or not math.isclose(sum(fractions), 1):
            raise InputError(
                "fractions", fractions, "numbers above 0 that add to 1", "Try 0.8, 0.2."
            )
        groups: dict[str, list[int]] = {}
        for number, run in enumerate(self.runs):
            groups.setdefault(run.identity, []).append(number)
        if len(groups) < len(fractions):
            found = f"{len(groups)} different runs"
            raise InputError("fractions", fractions, f"at most {found}", "Make more runs.")
        order = np.random.default_rng(seed).permutation(len(groups))
        keys = [sorted(groups)[i] for i in order]
        sizes = [1] * len(fractions)
        for _ in range(len(keys) - len(sizes)):  # to the one that lacks most
            short = [f * len(keys) - n for f, n in zip(fractions, sizes, strict=True)]
            sizes[int(np.argmax(short))] += 1
        parts = []
        for size in sizes:
            chosen, keys = keys[:size], keys[size:]
            parts.append(self.of_runs(sorted(n for key in chosen for n in groups[key])))
        return tuple(parts)

    def close(self) -> None:
        """Close the files of this process; they are opened again when needed."""
        self._files.close()

    def __repr__(self) -> str:
        return f"<RunDataset: {len(self)} windows of {self.window} frames, {len(self.runs)} runs>"


def _describe(
    path: Path, variables: Sequence[str], parameters: Sequence[str], allow_incomplete: bool
) -> Run:
    """Read all about a run but its fields."""
    path = path.absolute()
    with Trajectory(path) as file:
        if not file.complete and not allow_incomplete:
            remedy = "It is running or was interrupted: wait, resume it, or allow_incomplete=True."
            raise InputError("run", str(path), "a complete run", remedy)
        stored = {name: _stored(name, file) for name in variables}
        if unknown := [name for name in variables if stored[name] not in file.variables]:
            allowed = f"some of {sorted(file.variables)} in {path}"
            raise InputError("variables", unknown, allowed, "See mpiflow info.")
        about = {name: file.variables[stored[name]] for name in variables}
        if texts := [name for name, v in about.items() if np.dtype(v.dtype).kind not in "fiu"]:
            raise InputError("variables", texts, "variables of numbers", "Leave them out.")
        require_constant(file, parameters)
        known = file.attributes | file.config
        shapes = {
            name: tuple(file.sizes[d] for d in v.dims if d != "member") for name, v in about.items()
        }
        for name in (n for n in about if _is_unpacked(n, stored)):
            *lead, last = shapes[name]
            about[name] = spin_bits.as_spins(about[name])
            shapes[name] = (*lead, spin_bits.SPINS * last)
        members = file.sizes.get("member", 1)
        parts = []
        for part in file.segments:
            own = {**known, "save_every": part.save_every, **part.config}
            chosen = {name: _number(own, name, path) for name in parameters}
            parts.append(Part(part.frames, chosen))
        first = file.segments[0].config  # it is the beginning that two files may have in common
        config = {k: v for k, v in first.items() if k not in _NOT_THE_RUN}
        seed = first.get("seed", known["seed"])
        identity = json.dumps([known["system"], seed, config], sort_keys=True)
        time = file.time.copy()
        return Run(
            path, time, about, stored, shapes, members, tuple(parts), identity, file.complete
        )


def _stored(name: str, file: Trajectory) -> str:
    """What a variable is called in a file: spins are there as bytes or as bits."""
    if name in file.variables or name not in ("spin", "spins"):
        return name
    return spin_bits.NAME if spin_bits.NAME in file.variables else "spin"


def _is_unpacked(name: str, stored: Mapping[str, str]) -> bool:
    return stored[name] == spin_bits.NAME != name


def _number(known: Mapping[str, Any], name: str, path: Path) -> float | int:
    value = known.get(name)
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or (isinstance(value, int) and abs(value) >= 2**63):
        numbers = sorted(k for k, v in known.items() if isinstance(v, int | float))
        raise InputError("parameters", f"{name}: {value!r}", f"some of {numbers}", f"See {path}.")
    return value  # type: ignore[return-value]


def _require_same(first: Run, other: Run) -> None:
    for name, shape in first.shapes.items():
        one, two = first.variables[name], other.variables[name]
        if (shape, one.dims, one.dtype) != (other.shapes[name], two.dims, two.dtype):
            given = f"{name}{two.dims} {two.dtype} of shape {other.shapes[name]} in {other.path}"
            allowed = f"{one.dims} {one.dtype} of shape {shape}, as in {first.path}"
            raise InputError("runs", given, allowed, "Make one dataset for each shape.")


def _window(file: h5py.File, run: Run, name: str, frames: slice, member: int | None) -> np.ndarray:
    """The values of a window, in one read."""
    variable = run.variables[name]
    index: list[Any] = [frames] if variable.per_frame else []
    if member is not None and "member" in variable.dims:
        index += [slice(None)] * variable.dims.index("member") + [member]
    try:
        values = np.asarray(file[run.stored[name]][tuple(index)])
    except (OSError, LookupError, RuntimeError, ValueError) as error:
        where = f"{name} at frames {frames.start} to {frames.stop - 1}"
        remedy = f"It is corrupt: {where} cannot be read. Use mpiflow verify."
        raise InputError("run", str(run.path), "an intact trajectory", remedy) from error
    if _is_unpacked(name, run.stored):
        return spin_bits.unpacked(values)
    return values if values.flags.writeable else values.copy()


# -- open files ----------------------------------------------------------------------------

_ALL: weakref.WeakSet[_Files] = weakref.WeakSet()
# Objects of HDF5 that a process inherited: never used, and never freed, which would call HDF5.
_INHERITED: list[Any] = []


class _Files:
    """The open files of a process, the least recently used closed first. Safe among threads.

    A copy made by pickle starts empty. A process closes its files before it forks, since HDF5
    would take files of the parent for its own.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._start()

    def _start(self) -> None:
        self.lock = threading.RLock()
        self._open: OrderedDict[Path, h5py.File] = OrderedDict()
        self._process = os.getpid()
        _ALL.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.limit = state["limit"]
        self._start()

    def opened(self, run: Run) -> _Held:
        """The file of a run, for a ``with`` block in which no other thread reads."""
        if self._process != os.getpid():  # forked in a way that Python did not see
            _INHERITED.append(self._open)
            self._start()
        return _Held(self, run)

    def file(self, run: Run) -> h5py.File:
        file = self._open.get(run.path)
        if file is None:
            while len(self._open) >= self.limit:
                self._open.popitem(last=False)[1].close()
            file = self._open[run.path] = _open(run)
        self._open.move_to_end(run.path)
        return file

    def drop(self, run: Run) -> None:
        self._open.pop(run.path).close()

    def close(self) -> None:
        with self.lock:
            while self._open:
                self._open.popitem()[1].close()


class _Held:
    """The open file of a run while it is read: nobody may close it, the lock of all is held."""

    def __init__(self, files: _Files, run: Run) -> None:
        self.files, self.run = files, run

    def __enter__(self) -> h5py.File:
        self.files.lock.acquire()
        try:
            return self.files.file(self.run)
        except BaseException:
            self.files.lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        if not self.run.complete:
            # Its writer changes what an open file remembers of its structure.
            self.files.drop(self.run)
        self.files.lock.release()


def _open(run: Run) -> h5py.File:
    """Open the file of a run, which must be the one that the dataset was made of."""
    try:
        footer.check(run.path)
        file = h5py.File(run.path, "r", locking=False, rdcc_nbytes=_CACHE_BYTES)
    except OSError as error:
        remedy = f"It was moved, or is corrupt: {error}."
        raise InputError("run", str(run.path), "the file as it was", remedy) from error
    try:
        same = np.array_equal(file["time"][: len(run.time)], run.time) and all(
            file[run.stored[name]].shape[run.variables[name].per_frame :] == _whole(run, name)
            for name in run.shapes
        )
    except (OSError, LookupError, RuntimeError, ValueError):
        same = False
    if not same:
        file.close()
        remedy = "It has changed since the dataset was made: make it anew."
        raise InputError("run", str(run.path), "the file as it was", remedy)
    return file


def _whole(run: Run, name: str) -> tuple[int, ...]:
    """Shape in the file of a frame with its members."""
    dims, sides = run.variables[name].dims, iter(run.shapes[name])
    whole = tuple(run.members if dim == "member" else next(sides) for dim in dims)
    return (*whole[:-1], whole[-1] // spin_bits.SPINS) if _is_unpacked(name, run.stored) else whole


def _each() -> Iterator[_Files]:
    return iter(list(_ALL))


_locked: list[_Files] = []


def _before_fork() -> None:
    for files in _each():
        files.lock.acquire()
        _locked.append(files)
        if files._process == os.getpid():
            files.close()


def _after_fork() -> None:
    while _locked:
        _locked.pop().lock.release()


def _after_fork_in_child() -> None:
    _after_fork()
    for files in _each():
        files._process = os.getpid()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
)
