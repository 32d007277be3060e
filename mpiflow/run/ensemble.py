"""Run systems that are whole on a rank and record them: chains, mean fields, predators and prey."""

from __future__ import annotations

import json
import time as clock
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiflow.core.parallel import agreed
from mpiflow.core.schedule import Schedule
from mpiflow.files import checkpoint
from mpiflow.files.schema import CLOCK, STANDARD, TIME
from mpiflow.files.trajectory import Value
from mpiflow.run.follow import Content, Walk, beginning, follow, keep_of, unchanged
from mpiflow.run.plan import one_line
from mpiflow.simulation.ensemble import Chains, Ensemble, Lines, MeanFields
from mpiflow.simulation.ensemble_options import (
    ChainConfig,
    CurieWeissConfig,
    EnsembleConfig,
    PredatorPreyConfig,
)
from mpiflow.simulation.options import RunConfig

#: Options that say how long, what is saved and from where, not what moves.
_RECORDED = {"time", "save_every", "profile"}


def simulate_ensemble(
    config: EnsembleConfig, comm: MPI.Intracomm | None = None, *, changed: Container[str] = ()
) -> Path:
    """Run what a configuration says and write its file. Collective.

    Parameters
    ----------
    changed : options that may differ from those of the run that ``config.resume`` goes on with

    Raises
    ------
    InputError
        on all ranks, before the first step and before anything is written
    Stopped
        on all ranks, after a checkpoint: a signal, or the walltime
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    start = clock.monotonic()
    point, overwrite = beginning(config, comm, changed)
    sim = build_ensemble(config, comm, fresh=point is None)
    facts = _facts(config, sim)
    if comm.rank == 0 and not config.quiet:
        print(f"{config.out}: {_about(config, comm)}")
        print(f"{config.out}: {one_line(config, comm.size)}")
        for remark in sim.remarks():
            print(f"{config.out}: {remark}")
    if point is not None:
        unchanged(point, facts, changed)
        checkpoint.load(point, sim)
    follow(
        Walk(
            sim,
            Schedule.of(0.0, config.time, config.save_every),
            lambda: sim.time,
            sim.advance_to,
            sim.grain,
            some=sim.advance_some if sim.counts_events else None,
        ),
        _content(config, sim),
        config.out,
        facts=facts,
        point=point,
        keep=keep_of(config),
        overwrite=overwrite,
        writer=config.writer,
        progress=not config.quiet,
        changed=changed,
    )
    if comm.rank == 0 and not config.quiet:
        print(f"{config.out}: to time {sim.time:g} in {clock.monotonic() - start:.1f} s")
    return config.out


def build_ensemble(config: EnsembleConfig, comm: MPI.Intracomm, fresh: bool = True) -> Ensemble:
    """The systems of a configuration, in their initial state if ``fresh``. Collective."""
    sim: Ensemble
    with agreed(comm):
        if isinstance(config, ChainConfig):
            sim = Chains(config, comm)
        elif isinstance(config, PredatorPreyConfig):
            sim = Lines(config, comm)
        else:
            assert isinstance(config, CurieWeissConfig)  # noqa: S101 - for the type checker
            sim = MeanFields(config, comm)
        if fresh and sim.from_file:
            sim.begin_from_file(config)
    return sim


def _about(config: EnsembleConfig, comm: MPI.Intracomm) -> str:
    """One line: size, how time advances, and how the work is divided."""
    size = " x ".join(map(str, config.shape))
    many = f"{config.members} systems of " if config.members > 1 else ""
    dt = "" if config.step is None else f" with dt = {config.step:g}"
    ranks = f"{comm.size} rank{'s' * (comm.size > 1)}"
    return f"{config.system}, {many}{size} sites, {config.moves}{dt}, {ranks}"


def _facts(config: EnsembleConfig, sim: Ensemble) -> dict[str, Any]:
    """What makes it the same run; the initial state is that of the checkpoint."""
    options = json.loads(config.model_dump_json())
    shared = set(RunConfig.model_fields) - {"members", "seed"} | _RECORDED
    own = {n: v for n, v in options.items() if n not in shared and not n.startswith("initial")}
    return own | {"rng": sim.rng}


def _content(config: EnsembleConfig, sim: Ensemble) -> Content:
    """Numbers of every member, and what lies along the axis if it is saved."""
    one = config.members == 1
    dims = {} if one else {"member": config.members}
    ensemble = tuple(dims)
    variables = [STANDARD[name].over(*ensemble) for name in config.scalars]
    coordinates: dict[str, np.ndarray] = {}
    if config.saves_profiles:
        dims[config.axis] = along = config.shape[-1]
        if config.axis == "position":
            coordinates["position"] = (np.arange(along) + 0.5) / along
        variables += [STANDARD[name].over(*ensemble, config.axis) for name in config.profiles]
    attributes = {
        "system": config.system,
        "config_json": config.model_dump_json(),
        "seed": config.seed,
        "rng": sim.rng,
        "decomposition_invariant": 1,
    }
    members, whole = sim.local_members, slice(0, config.shape[-1])

    def frame() -> tuple[float, dict[str, Value], dict[str, Any]]:
        now = sim.measure()
        values: dict[str, Value] = {
            name: value[0] if one else (value, (members,)) for name, value in now.items()
        }
        for name, value in (sim.profiles() if config.saves_profiles else {}).items():
            values[name] = value[0] if one else (value, (members, whole))
        first = now[config.scalars[0]]
        # With more ranks than members rank 0 may have none.
        shown = {config.scalars[0]: float(first[0])} if first.size else {}
        return sim.time, values, shown

    time = TIME if config.system == "curie-weiss" else CLOCK
    return Content(dims, coordinates, variables, attributes, frame, time)
