"""Run a simulation and record it in a Trajectory file."""

from __future__ import annotations

import json
import math
import time as clock
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiflow import initial
from mpiflow.block import Block
from mpiflow.config import IsingConfig
from mpiflow.device import Device
from mpiflow.lattice import Layout
from mpiflow.parallel import agreed
from mpiflow.progress import Progress
from mpiflow.simulation import Frame, Simulation
from mpiflow.systems.ising import Ising
from mpiflow.trajectory import STANDARD, TrajectoryWriter

#: Name of the generator of :mod:`mpiflow.noise`, for the file's attributes.
RNG = "threefry2x64-13"


def simulate(config: IsingConfig, comm: MPI.Intracomm | None = None) -> Path:
    """Run what a configuration says and write its file. Collective.

    Raises
    ------
    InputError
        on all ranks, before the first step and before anything is written
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    start = clock.monotonic()
    sim = build(config, comm)
    record(
        sim,
        config.out,
        time=config.time,
        save_every=_given(config.save_every),
        coarse=config.coarse,
        spins=config.spins,
        overwrite=config.overwrite,
        writer=config.writer,
        attributes={"config_json": config.model_dump_json()},
        progress=not config.quiet,
    )
    if comm.rank == 0 and not config.quiet:
        print(f"{config.out}: to time {config.time:g} in {clock.monotonic() - start:.1f} s")
    return config.out


def build(config: IsingConfig, comm: MPI.Intracomm) -> Simulation:
    """The simulation of a configuration, in its initial state. Collective."""
    with agreed(comm):
        Device(config.device)  # a machine without a GPU may be one of many
    sim = Simulation(
        Ising(config.temperature, config.field, config.coupling),
        config.size,
        dt=math.inf if config.dt is None else config.dt,
        solver=config.solver,
        seed=config.seed,
        members=config.members,
        comm=comm,
        ranks_grid=config.ranks_grid,
        granularity=config.coarse or 1,
        device=config.device,
    )
    _check_times(sim, config.time, _given(config.save_every))
    set_initial(sim, config)
    return sim
