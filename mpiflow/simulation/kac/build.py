"""A Kac simulation from its options."""

from __future__ import annotations

import numpy as np

from mpiflow.core import arrays
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
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
        external=_field_of(config, comm),
        **arguments,
    )
    # What tells a file of an external field from another.
    digest = config.inputs.get("field_file")
    told = {} if digest is None else {"field_sha256": digest}
    return started(sim, config, point is None, **told)


def _field_of(config: KacConfig, comm: MPI.Intracomm) -> np.ndarray | None:
    """The external field of a file, mapped: ranks read their own rows. Collective."""
    path = config.field_file
    if path is None:
        return None
    allowed = f"a .npy file of real numbers of shape {config.size}"
    with agreed(comm):
        field = arrays.mapped("field_file", path, allowed)
        if field.shape != config.size:
            found = f"{path}: {field.shape}"
            raise InputError("field_file", found, allowed, "Use a matching --size.")
    return field
