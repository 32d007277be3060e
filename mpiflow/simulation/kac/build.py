"""A Kac simulation from its options."""

from __future__ import annotations

from mpiflow.core.mpi import MPI
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.simulation.base import Built
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.simulation.spins.build import common, started
from mpiflow.systems.kac import Kac


def build(config: KacConfig, comm: MPI.Intracomm, point: Checkpoint | None = None) -> Built:
    """The simulation of a configuration; in its initial state without a checkpoint. Collective."""
    arguments = common(config, comm)
    sim = KacSimulation(
        Kac(config.temperature, config.gamma, config.field),
        solver=config.solver,
        tau=config.tau,
        eps=config.eps,
        method=config.method,
        **arguments,
    )
    # What tells a file of an external field from another.
    digest = config.inputs.get("field_file")
    told = {} if digest is None else {"field_sha256": digest}
    return started(sim, config, point is None, **told)
