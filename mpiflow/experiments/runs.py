"""Runs that drivers record, and keep when they are stopped."""

from __future__ import annotations

import json
import time as clock
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mpiflow.core.errors import InputError
from mpiflow.core.parallel import agreed
from mpiflow.files import storage
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.simulate import record

if TYPE_CHECKING:
    from mpiflow.simulation.base import Simulated


class Spent(NamedTuple):
    """What a run took: seconds by the clock, and of all ranks' processors together."""

    wall: float
    cores: float


def recorded(
    sim: Simulated,
    path: Path,
    *,
    attributes: Mapping[str, Any] | None = None,
    progress: bool = False,
    **asked: Any,
) -> Spent:
    """Record a run unless its file has the whole of it, as a stopped driver left it. Collective.

    A file counts if it is complete, of the same simulation, noise and attributes, and was asked
    for the same. Initial states are not compared: options that choose them belong to the
    attributes, or to the name of the file.

    Parameters
    ----------
    attributes, progress, asked : as of :func:`mpiflow.run.simulate.record`
    """
    comm, cost = sim.comm, path.with_suffix(".seconds")
    about = {**(attributes or {}), "asked_json": json.dumps(asked, sort_keys=True), "rng": sim.rng}
    spent = None
    with agreed(comm):
        if comm.rank == 0:
            spent = _recorded(path, cost, sim.facts(), about)
            if spent is None:  # the seconds of another run must not outlive it
                cost.unlink(missing_ok=True)
    spent = comm.bcast(spent)
    if spent is None:
        wall, cores = clock.monotonic(), clock.process_time()
        record(sim, path, overwrite=True, attributes=about, progress=progress, **asked)
        cores = comm.allreduce(clock.process_time() - cores)
        spent = comm.bcast(Spent(clock.monotonic() - wall, cores))
        with agreed(comm):
            if comm.rank == 0:
                storage.commit(cost, lambda file: file.write(json.dumps(spent).encode()))
    return spent


def _recorded(
    path: Path, cost: Path, facts: Mapping[str, Any], about: Mapping[str, Any]
) -> Spent | None:
    """What the run took that a file has the whole of; None if it has not."""
    wanted = json.loads(json.dumps(dict(facts)))
    try:
        with Trajectory(path) as file:
            known = file.attributes
            same = {**file.config, **wanted} == file.config and all(
                known.get(name) == value for name, value in about.items()
            )
            return Spent(*json.loads(cost.read_text())) if file.complete and same else None
    except (InputError, OSError, ValueError, TypeError, KeyError):
        return None
