"""A simulation of a spin rule from its options."""

from __future__ import annotations

from mpiflow.core.device import Device
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.initial import rule as initial
from mpiflow.simulation.base import Built
from mpiflow.simulation.rules.options import RuleConfig
from mpiflow.simulation.rules.simulation import RuleSimulation


def build(config: RuleConfig, comm: MPI.Intracomm, point: Checkpoint | None = None) -> Built:
    """The simulation of a configuration; in its initial state without a checkpoint. Collective."""
    with agreed(comm):
        Device(config.device)  # a machine without a GPU may be one of many
    sim = RuleSimulation(
        config.rule(),
        config.size,
        name=config.system,
        dt=float("inf") if config.dt is None else config.dt,
        solver=config.solver,
        seed=config.seed,
        members=config.members,
        comm=comm,
        ranks_grid=config.ranks_grid,
        granularity=config.coarse or 1,
        device=config.device,
        schedule=config.drive,
        site_field=config.site_field(comm),
    )
    if point is None:
        _set_initial(sim, config)
    return Built(sim)


def _set_initial(sim: RuleSimulation, config: RuleConfig) -> None:
    """Set the states that a configuration starts from. Collective."""
    if config.initial == "shuffled":
        sim.set_states(initial.shuffled, fractions=config.initial_fractions)
    elif config.initial == "random":
        sim.set_states(initial.independent, fractions=config.initial_fractions)
    elif config.initial == "ordered":
        value = sim.system.lowest if config.initial_state is None else config.initial_state
        sim.set_states(initial.uniform, value=value)
    else:
        sim.set_states(initial.from_file, path=config.initial, moment=config.moment)
