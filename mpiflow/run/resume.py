"""Go on with a run from its file: ``mpiflow resume run.h5``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.files import checkpoint
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.simulate import record, simulate
from mpiflow.run.stopping import Keep
from mpiflow.simulation import catalogue
from mpiflow.simulation.base import Simulated
from mpiflow.simulation.options import RunConfig


def resume(
    path: str | os.PathLike[str],
    comm: MPI.Intracomm | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    sim: Simulated | None = None,
    **options: Any,
) -> Path:
    """Go on with a run, on any number of ranks, as if it had never stopped. Collective.

    >>> resume("run.h5", time=200)

    Parameters
    ----------
    path : the Trajectory; its checkpoints are in ``checkpoints/`` beside it
    comm : ranks that call this together, ``COMM_WORLD`` unless given
    changes, options : in place of those of the run; ``time`` (or ``hops``) counts from its start.
        Observables that are functions are given again as to :func:`mpiflow.simulate`
    sim : for a run that Python made: a simulation made like the first one, in any state. Options
        are then those of :func:`mpiflow.record`; how far and how often are as before unless given

    Raises
    ------
    InputError : on all ranks: there is nothing to go on with, or a change makes no sense
    Stopped : on all ranks, after the next checkpoint
    """
    if sim is not None:
        return _recorded_on(sim, Path(path), {**(changes or {}), **options})
    comm = MPI.COMM_WORLD if comm is None else comm
    changes = {**(changes or {}), **options}
    again: dict[str, Any] = {"callbacks": changes.pop("callbacks", ())}
    if isinstance(changes.get("observables"), Mapping):
        again["observables"] = changes.pop("observables")
    out = Path(path).resolve()
    point = checkpoint.newest(out, comm)
    with agreed(comm):
        if point is not None:
            stored = point.config
        else:
            with Trajectory(path) as trajectory:
                stored = trajectory.config
        config = configuration(stored, out, changes)
        follows = _follows(type(config), stored, changes)
    return simulate(config, comm, changed={*changes, *follows}, **again)


def _recorded_on(sim: Simulated, path: Path, options: dict[str, Any]) -> Path:
    """Go on with a run that :func:`~mpiflow.run.simulate.record` wrote."""
    point = checkpoint.newest(path.resolve(), sim.comm)
    if point is None:
        remedy = "Give keep=Keep() to record, which writes them."
        raise InputError("file", str(path), "a run with checkpoints", remedy)
    numbers, changed = point.numbers, options.keys() & {"save_every", "frames_per_decade"}
    end = float(numbers["end"]) - float(numbers.get("origin", numbers["start"]))
    far = {"hops": round(end)} if numbers["by_hops"] else {"time": end}
    far = far if options.keys().isdisjoint({"time", "hops"}) else {}
    settings = {"keep": Keep(), "save_every": float(numbers["every"]), **far, **options}
    settings.setdefault("frames_per_decade", numbers.get("per_decade") or None)
    record(sim, path, point=point, changed=changed, **settings)
    return path


def configuration(stored: Mapping[str, Any], out: Path, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from the one in its file, with changes."""
    system = stored.get("system")
    if "out" not in stored or "system" not in stored:
        remedy = "A run that Python made goes on in Python: resume(path, sim=sim)."
        if system == "imported":
            remedy = "It was imported, and has no checkpoints: start a run from it with --initial."
        raise InputError("file", str(out), "a run of mpiflow simulate or predict", remedy)
    model = catalogue.options(str(system))
    follows = _follows(model, stored, changes)
    values = {name: value for name, value in stored.items() if name not in follows}
    values |= {"overwrite": False, **changes, "out": out, "resume": True}
    if "time" in changes and stored.get("hops") is not None:
        raise InputError("time", changes["time"], "hops", "The run counts hops: give --hops.")
    for name in ("solver", "kernel"):
        if values.get(name) != stored.get(name):
            remedy = "What it is in the middle of is its own: start a run from a frame, --initial."
            raise InputError(name, values.get(name), f"{stored.get(name)}, as before", remedy)
    return model(**values)


def _follows(
    model: type[RunConfig], stored: Mapping[str, Any], changes: Mapping[str, Any]
) -> set[str]:
    """Options that change because others do that say their values."""
    new = {**stored, **changes}
    names = model.derived(new)
    try:
        old_names = model.derived(stored)
    except InputError:  # of a file that has moved: it has to be the same
        old_names = names
    if names != old_names:  # the file has a variable for each
        allowed = f"one of the same parameters as before: {', '.join(sorted(old_names)) or 'none'}"
        remedy = "Start a run from the last frame: --initial FILE."
        raise InputError("schedule", new.get("schedule"), allowed, remedy)
    says = old_names | names
    return says - changes.keys() if new.get("schedule") != stored.get("schedule") else set()
