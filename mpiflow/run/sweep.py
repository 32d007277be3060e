"""Many runs of one configuration: a grid or a list of parameters, dealt to the ranks.

    system = "ising"
    size = 64
    time = 100
    save_every = 1

    [sweep]
    temperature = [2.0, 2.2, 2.4]
    seed = {start = 1, stop = 3, count = 3}

Each point is the run that ``mpiflow simulate`` would make of its options: the same bits on any
number of ranks. With fewer points than ranks several ranks share a point.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import netCDF4
import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.gpu import computing_on
from mpiflow.core.lattice import split
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed, raise_together
from mpiflow.core.toml_files import read_toml
from mpiflow.files import checkpoint
from mpiflow.files.storage import probe_folder, whole_file
from mpiflow.files.trajectory import Trajectory
from mpiflow.metrics import correlated_error
from mpiflow.run.follow import differences, keep_of
from mpiflow.run.simulate import record, simulate
from mpiflow.run.stopping import Stopped
from mpiflow.simulation import catalogue
from mpiflow.simulation.options import RunConfig
from mpiflow.simulation.tempering import Tempering

Mode = Literal["grid", "list"]
#: Options of a run that a sweep has itself, or that would be the same file for all points.
_NOT_SWEPT = ("out", "system", "resume", "overwrite", "quiet")
#: What a run may be started with in one way and go on with in another.
_OF_A_CALL = frozenset({"out", "resume", "overwrite", "quiet", "inputs", "walltime"})
#: The table, and the data set, in the folder of a sweep.
TABLE, DATA = "sweep.csv", "sweep.nc"


class Point(NamedTuple):
    """A run of a sweep: its number, the values of what is swept, and its options.

    With parallel tempering ``copies`` has the options for each temperature.
    """

    number: int
    values: dict[str, Any]
    config: RunConfig
    copies: tuple[RunConfig, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """A sweep that was read.

    Attributes
    ----------
    axes : values of each parameter that is swept, in the order of the grid
    mode : ``grid``: all combinations, the last axis running fastest; ``list``: the first values of
        all, the second ones and so on
    points : the runs
    every : time between exchanges of parallel tempering, None without
    """

    folder: Path
    axes: dict[str, list[Any]]
    mode: Mode
    points: list[Point]
    every: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along each axis; of a list they have one axis."""
        if self.mode == "list":
            return (len(self.points),)
        return tuple(len(values) for values in self.axes.values())


def sweep(
    what: str | os.PathLike[str],
    over: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str],
    mode: Mode = "grid",
    discard: float = 0.0,
    exchange_every: float | None = None,
    comm: MPI.Intracomm | None = None,
    **options: Any,
) -> Path:
    """Run a configuration for many values of its parameters. Collective.

    >>> sweep("ising", {"temperature": [2.0, 2.4], "seed": [1, 2]}, out="sweep", size=64, time=100)

    Parameters
    ----------
    what : the name of a system, or a TOML file with a table ``[sweep]``
    over : parameters and their values: a list, or ``{"start", "stop", "count"}``, evenly spaced
        with both ends; in place of those of the file
    out : folder for the runs, ``0000.h5`` and so on, the table :data:`TABLE` with means and their
        errors, and the data set :data:`DATA` with all that is a number at a time
    mode : ``grid`` or ``list``
    discard : means are of frames after this time
    exchange_every : the temperatures of the sweep are copies that exchange states this often, in
        one file for each combination of the others: see :mod:`mpiflow.simulation.tempering`
    comm : ranks that call this together, ``COMM_WORLD`` unless given
    options : of every run; with ``resume=True`` finished points stay and others go on

    Returns
    -------
    the folder

    Raises
    ------
    InputError : on all ranks, before the first run if an option of any makes no sense
    Stopped : on all ranks, after checkpoints
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    with agreed(comm):
        given: dict[str, Any] = {"mode": mode, "options": options}
        given["exchange_every"] = exchange_every
        made = read(what, over, out=Path(out), **given)
        if not (math.isfinite(discard) and discard >= 0):
            raise InputError("discard", discard, "0 or more", "Leave it out.")
    # Groups of ranks run side by side, and would take the same GPUs if each dealt them anew.
    on_gpus = any(point.config.device == "cuda" for point in made.points)
    with computing_on("cuda" if on_gpus else "cpu", comm):
        with agreed(comm):
            if comm.rank == 0:
                probe_folder(made.folder)
                made.folder.mkdir(parents=True, exist_ok=True)
        _run_all(made, comm)
    with agreed(comm):
        if comm.rank == 0:
            _write(made, discard)
    return made.folder


# -- what to run -------------------------------------------------------------------------------


def read(
    what: str | os.PathLike[str],
    over: Mapping[str, Any] | None = None,
    *,
    out: Path,
    mode: Mode = "grid",
    options: Mapping[str, Any] | None = None,
    exchange_every: float | None = None,
) -> Sweep:
    """The points of a sweep, all options checked; see :func:`sweep`."""
    values: dict[str, Any] = {}
    if isinstance(what, str) and what in catalogue.systems():
        values["system"] = what
    else:
        values = read_toml(Path(what))
    table = values.pop("sweep", {})
    if not isinstance(table, Mapping):
        raise InputError("sweep", table, "a table of parameters", "Write [sweep] above them.")
    table = dict(table)
    mode = table.pop("mode", mode)
    if mode not in ("grid", "list"):
        raise InputError("mode", mode, "grid or list", "Leave it out for a grid.")
    every = table.pop("exchange_every", exchange_every)
    axes = {name: _listed(name, given) for name, given in (over or table).items()}
    if not axes:
        raise InputError("sweep", {}, "at least one parameter", "Try temperature = [2.0, 2.4].")
    values |= dict(options or {})
    model = catalogue.options(str(values.get("system")))
    for name in axes:
        if name not in model.options() or name in _NOT_SWEPT:
            known = [n for n in model.options() if n not in _NOT_SWEPT]
            raise InputError("sweep", name, f"one of {', '.join(known)}", "Check its name.")
    lengths = {len(given) for given in axes.values()}
    if mode == "list" and len(lengths) > 1:
        shown = {name: len(given) for name, given in axes.items()}
        raise InputError("sweep", shown, "lists of one length with mode list", "Or use a grid.")
    ladder = [] if every is None else _ladder(axes, mode)
    rows = zip(*axes.values(), strict=True) if mode == "list" else product(*axes.values())
    points = []
    for number, row in enumerate(rows):
        swept = dict(zip(axes, row, strict=True))
        own = values | swept | {"out": out / f"{number:04d}.h5"}
        copies = tuple(model(**own | {"temperature": of_copy}) for of_copy in ladder)
        points.append(Point(number, swept, copies[0] if copies else model(**own), copies))
    return Sweep(out, axes, mode, points, None if every is None else float(every))


def _ladder(axes: dict[str, list[Any]], mode: str) -> list[Any]:
    """The temperatures of tempering, which are then no axis any more."""
    if mode == "list" or len(axes.get("temperature", ())) < 2:
        allowed = "a grid with two or more temperatures"
        raise InputError("exchange_every", mode, allowed, "List temperatures that rise.")
    return axes.pop("temperature")


def _listed(name: str, given: Any) -> list[Any]:
    if isinstance(given, Mapping):
        if given.keys() != {"start", "stop", "count"} or int(given["count"]) < 1:
            allowed = "a list, or start, stop and count"
            raise InputError(name, dict(given), allowed, "Try {start = 2, stop = 3, count = 11}.")
        count, first, last = int(given["count"]), given["start"], given["stop"]
        values = np.linspace(first, last, count)
        whole = isinstance(first, int) and isinstance(last, int) and (values % 1 == 0).all()
        return [int(v) if whole else float(v) for v in values]
    listed = list(given) if isinstance(given, Sequence | np.ndarray) else [given]
    if isinstance(given, str) or not listed:
        raise InputError(name, given, "a list of values", "Try [1, 2, 3].")
    return [v.item() if isinstance(v, np.generic) else v for v in listed]


# -- running -----------------------------------------------------------------------------------


def _run_all(made: Sweep, comm: MPI.Intracomm) -> None:
    """Every rank takes its points; those that fail do not keep the others from running."""
    count, groups = len(made.points), min(len(made.points), comm.size)
    # With more ranks than points neighbours share one.
    edges = [split(comm.size, groups, group) for group in range(groups)]
    mine = next(g for g, (first, last) in enumerate(edges) if first <= comm.rank < last)
    group: Any = comm.Split(mine, comm.rank)
    error: InputError | None = None
    stopped: Stopped | None = None
    try:
        for number in range(mine, count, groups):
            point = made.points[number]
            try:
                _run(point, made, group)
            except Stopped as caught:
                stopped = caught
                break
            except InputError as caught:
                error = error or caught
    finally:
        group.Free()
    raise_together(comm, error)
    someone = next((s for s in comm.allgather(stopped) if s is not None), None)
    if someone is not None:
        raise someone


def _run(point: Point, made: Sweep, comm: MPI.Intracomm) -> None:
    """One run, unless it is finished and is to go on."""
    config = point.config
    if config.resume and config.out.exists():
        with agreed(comm), Trajectory(config.out) as there:
            new = json.loads(config.model_dump_json())
            known = {n: v for n, v in there.config.items() if n in new and n not in _OF_A_CALL}
            if there.complete and not differences(known, {n: new[n] for n in known}):
                return
    if made.every is None:
        simulate(config.model_copy(update={"quiet": True}), comm)  # a line for each is enough
    else:
        _temper(point, made.every, comm)
    if comm.rank == 0 and not config.quiet:
        text = ", ".join(f"{name} = {value}" for name, value in point.values.items())
        print(f"{config.out}: point {point.number + 1} of {len(made.points)}: {text}", flush=True)


def _temper(point: Point, every: float, comm: MPI.Intracomm) -> None:
    """One run of copies that exchange their states."""
    config = point.config
    known = {float(vars(of_copy)["temperature"]): of_copy for of_copy in point.copies}

    def copy(temperature: float, seed: int, alone: MPI.Intracomm) -> Any:
        return catalogue.build(known[temperature].model_copy(update={"seed": seed}), alone).sim

    sim = Tempering(copy, list(known), every=every, seed=vars(config)["seed"], comm=comm)
    out = config.out
    facts: dict[str, Any] = {"progress": False, "keep": keep_of(config), **config.saved()}
    found = checkpoint.newest(out.resolve(), comm) if config.resume else None
    record(sim, out, **config.extent(), **facts, point=found,
           overwrite=config.overwrite or config.resume, writer=config.writer)  # fmt: skip
    closing = sim.closing()
    if comm.rank == 0 and not config.quiet:
        print(f"{out}:", *closing, flush=True)


# -- results -----------------------------------------------------------------------------------


def _write(made: Sweep, discard: float) -> None:
    """The table and the data set of finished runs. On one rank."""
    runs = [_numbers_of(point.config.out) for point in made.points]
    rows = [
        row
        for point, numbers in zip(made.points, runs, strict=True)
        for row in _rows(point, numbers, discard)
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (
        whole_file(made.folder / TABLE, overwrite=True) as target,
        open(target, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    with (
        whole_file(made.folder / DATA, overwrite=True) as target,
        netCDF4.Dataset(target, "w") as data,
    ):
        _store(data, made, runs)


#: Times, numbers at these times by name (frames,) or (frames, members), and their long names.
Numbers = tuple[np.ndarray, dict[str, np.ndarray], dict[str, str]]


def _numbers_of(path: Path) -> Numbers:
    """All of a run that is a number at a time, perhaps for each member."""
    with Trajectory(path) as run:
        kept = [v for v in run.variables.values() if v.per_frame and set(v.dims) <= {"member"}]
        numbers = {v.name: np.asarray(run[v.name], float) for v in kept}
        return run.time, numbers, {v.name: v.long_name for v in kept}


def _rows(point: Point, numbers: Numbers, discard: float) -> Iterator[dict[str, Any]]:
    """A row of the table for each run, or for each temperature of one."""
    (times, values, _), about = numbers, {"file": point.config.out.name, **point.values}
    if not point.copies:
        yield about | _means(times, values, discard)
    for k, of_copy in enumerate(point.copies):
        own = {name: every[:, k] for name, every in values.items() if name != "copy_temperature"}
        yield about | {"temperature": vars(of_copy)["temperature"]} | _means(times, own, discard)


def _means(times: np.ndarray, numbers: dict[str, np.ndarray], discard: float) -> dict[str, float]:
    """Means over time, and members, and their errors with autocorrelation."""
    late, found = times >= discard, {}
    if not late.any():
        raise InputError("discard", discard, f"at most {times[-1]:g}, the end", "Use less.")
    for name, values in numbers.items():
        series = values[late].reshape(int(late.sum()), -1).T
        found[name] = float(series.mean())
        errors = [correlated_error(one) if one.size > 1 else math.nan for one in series]
        found[f"{name}_error"] = float(np.linalg.norm(errors)) / len(errors)
    return found


def _store(data: netCDF4.Dataset, made: Sweep, runs: Sequence[Numbers]) -> None:
    """Numbers over what is swept and time; over frames where times differ, with NaN at the end."""
    axes = ("point",) if made.mode == "list" else tuple(made.axes)
    for axis, count in zip(axes, made.shape, strict=True):
        data.createDimension(axis, count)
    for name, listed in made.axes.items():
        text = not all(isinstance(v, int | float) and not isinstance(v, bool) for v in listed)
        own = axes if made.mode == "list" else (name,)
        variable = data.createVariable(name, str if text else np.asarray(listed).dtype, own)
        for i, value in enumerate(listed):
            variable[i] = str(value) if text else value
    data.setncatts({"Conventions": "CF-1.11", "system": made.points[0].config.system})
    first = runs[0][0]
    same = "time" not in made.axes and all(np.array_equal(times, first) for times, *_ in runs)
    clock = "frame_time" if "time" in made.axes else "time"
    frames = "time" if same else "frame"
    data.createDimension(frames, max(len(times) for times, *_ in runs))
    if same:
        data.createVariable("time", "f8", ("time",))[:] = first
    for point, (times, numbers, titles) in zip(made.points, runs, strict=True):
        place = np.unravel_index(point.number, made.shape)
        for name, values in (numbers if same else {clock: times, **numbers}).items():
            members = ("member",) if values.ndim > 1 else ()
            if members and "member" not in data.dimensions:
                data.createDimension("member", values.shape[1])
            if name not in data.variables:
                over = (*axes, frames, *members)
                variable = data.createVariable(name, "f8", over, fill_value=np.nan)
                variable.long_name = titles.get(name, "time of the frame")
            data[name][(*place, slice(0, len(values)))] = values
