"""What builders of spins share: the lattice, how it is cut, and the initial state."""

from __future__ import annotations

import math
from typing import Any

from mpiflow import initial, observables
from mpiflow.core.device import Device
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.simulation.base import Built
from mpiflow.simulation.spins.options import SpinConfig
from mpiflow.simulation.spins.simulation import SpinSimulation


def common(config: SpinConfig, comm: MPI.Intracomm) -> dict[str, Any]:
    """Arguments that simulations of spins have in common. Collective."""
    with agreed(comm):
        Device(config.device)  # a machine without a GPU may be one of many
    return {
        "size": config.size,
        "seed": config.seed,
        "members": config.members,
        "comm": comm,
        # A byte of spins belongs to one rank.
        "granularity": math.lcm(config.coarse or 1, 8 if config.spin_bits else 1),
        "device": config.device,
        "schedule": config.drive,
        "site_field": config.site_field(comm),
    }


def started(sim: SpinSimulation, config: SpinConfig, fresh: bool, **attributes: Any) -> Built:
    """A simulation in the initial state of its options if ``fresh``. Collective."""
    if not fresh:
        return Built(sim, attributes)
    set_initial(sim, config)
    return Built(sim, attributes, _remarks(sim, config))


def set_initial(sim: SpinSimulation, config: SpinConfig) -> None:
    """Set the spins that a configuration starts from. Collective."""
    m = config.initial_magnetization
    if config.initial == "shuffled":
        sim.set_spins(initial.shuffled, magnetization=m)
    elif config.initial == "random":
        sim.set_spins(initial.independent, magnetization=m)
    elif config.initial == "up":
        sim.set_spins(initial.uniform_up)
    elif config.initial == "gaussian":
        sim.set_spins(
            initial.gaussian, magnetization=m, correlation_length=config.correlation_length
        )
    else:
        sim.set_spins(initial.from_file, path=config.initial, moment=config.moment)


def _remarks(sim: SpinSimulation, config: SpinConfig) -> list[str]:
    """Where the spins of one lattice cannot have the magnetization asked for. Collective."""
    asked = config.initial_magnetization
    if sim.members > 1 or config.initial not in ("shuffled", "random", "gaussian"):
        return []
    got = float(observables.spin_sums(sim.block)[0, 0]) / sim.lattice.sites
    if abs(got - asked) <= 0.005 * (abs(asked) or 1.0):
        return []
    why = f"the nearest that {sim.lattice.sites} spins have"
    if config.initial == "random":
        why = "spins of random are independent; shuffled has the nearest"
    return [f"the initial magnetization is {got:.6g}, not {asked:g}: {why}"]
