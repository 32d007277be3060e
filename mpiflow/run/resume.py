"""Go on with a run from its file: ``mpiflow resume run.h5``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.files import checkpoint
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.simulate import simulate
from mpiflow.simulation import catalogue
from mpiflow.simulation.options import RunConfig


def resume(
    path: str | Path, comm: MPI.Intracomm | None = None, changes: Mapping[str, Any] | None = None
) -> Path:
    """Go on with a run, on any number of ranks, as if it had never stopped. Collective.

    Parameters
    ----------
    path : the Trajectory; its checkpoints are in ``checkpoints/`` beside it
    changes : options in place of those of the run; ``time`` (or ``hops``) counts from its start

    Raises
    ------
    InputError : on all ranks: there is nothing to go on with, or a change makes no sense
    Stopped : on all ranks, after the next checkpoint
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    changes = dict(changes or {})
    out = Path(path).resolve()
    point = checkpoint.newest(out, comm)
    with agreed(comm):
        if point is not None:
            stored = point.config
        else:
            with Trajectory(path) as trajectory:
                stored = trajectory.config
        config = configuration(stored, out, changes)
    return simulate(config, comm, changed=changes)


def configuration(stored: Mapping[str, Any], out: Path, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from the one in its file, with changes."""
    system = stored.get("system")
    if "out" not in stored or "system" not in stored:
        remedy = "A run that Python made goes on in Python: see record(point=...)."
        if system == "imported":
            remedy = "It was imported, and has no checkpoints: start a run from it with --initial."
        raise InputError("file", str(out), "a run of mpiflow simulate or predict", remedy)
    model = catalogue.options(str(system))
    values = {**stored, "overwrite": False, **changes, "out": out, "resume": True}
    if "time" in changes and stored.get("hops") is not None:
        raise InputError("time", changes["time"], "hops", "The run counts hops: give --hops.")
    for name in ("solver", "kernel"):
        if values.get(name) != stored.get(name):
            remedy = "What it is in the middle of is its own: start a run from a frame, --initial."
            raise InputError(name, values.get(name), f"{stored.get(name)}, as before", remedy)
    return model(**values)
