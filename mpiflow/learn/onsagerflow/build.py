"""The stochastic field of a model and options, ready to run."""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

from mpiflow.core.parallel import agreed
from mpiflow.learn.onsagerflow.model import load_onsagerflow
from mpiflow.simulation.field.options import FieldConfig
from mpiflow.simulation.field.simulation import FieldSimulation


def build(config: FieldConfig, comm: MPI.Intracomm, fresh: bool = True) -> FieldSimulation:
    """The field of a configuration, in its initial state if ``fresh``. Collective."""
    with agreed(comm):
        model = load_onsagerflow(config.model)
    if config.structure is not None:
        model = model.with_structure(config.structure)
    field = model.field(
        config.temperature or 0.0,
        config.shape,
        block=config.block or 0,
        merge=config.merge,
        field=config.field,
        dt=config.dt,
        seed=config.seed,
        members=config.members,
        comm=comm,
    )
    sim = FieldSimulation(field, config.seed, config.members)
    if not fresh:
        return sim
    if config.initial == "uniform":
        field.set(config.initial_magnetization)
    else:
        sim.set_means(Path(config.initial), config.moment)
    return sim
