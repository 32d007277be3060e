"""An Ising simulation from its options."""

from __future__ import annotations

import math

from mpiflow.core.mpi import MPI
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.simulation.base import Built
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.simulation.spins.build import common, started
from mpiflow.systems.ising import Ising


def build(config: IsingConfig, comm: MPI.Intracomm, point: Checkpoint | None = None) -> Built:
    """The simulation of a configuration; in its initial state without a checkpoint. Collective."""
    sim = Simulation(
        Ising(config.temperature, config.field, config.coupling),
        dt=math.inf if config.dt is None else config.dt,
        solver=config.solver,
        ranks_grid=config.ranks_grid,
        kernel=config.kernel,
        tile=config.tile or 64,
        **common(config, comm),
    )
    return started(sim, config, point is None)
