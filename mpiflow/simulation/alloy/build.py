"""An alloy from its options."""

from __future__ import annotations

from typing import Any

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.initial.alloy import counts_of, from_structure, place_vacancies, random_alloy
from mpiflow.simulation.alloy.barrier_model import load_barrier_model
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.simulation.base import Built
from mpiflow.systems.alloy import Alloy
from mpiflow.systems.barriers import Barriers


def build(config: AlloyConfig, comm: MPI.Intracomm, point: Checkpoint | None = None) -> Built:
    """The simulation of a configuration; in its initial state without a checkpoint. Collective."""
    with agreed(comm):
        model = load_barrier_model(config.barriers, config.axis_order)
    sim = AlloySimulation(
        Alloy(config.temperature, config.elements),
        model.parameters,
        config.cells,
        solver=config.solver,
        # The window that was chosen for the initial state stays.
        window=config.window or (None if point is None else point.numbers.get("window")),
        tile=config.tile,
        seed=config.seed,
        members=config.members,
        comm=comm,
        ranks_grid=config.ranks_grid,
        device=config.device,
        barriers_name=model.name,
    )
    told = {"barriers": model.name, "barriers_sha256": model.sha256}
    if point is None:
        set_initial(sim, config)
        if sim.chooses:
            sim.choose_windows()
    return Built(sim, told)


def of_system(
    system: Alloy, cells: int | Shape, *, barriers: str | Barriers = "default", **options: Any
) -> AlloySimulation:
    """The simulation of a system, for scripts; :class:`AlloySimulation` has the options.

    Parameters
    ----------
    cells : along each axis
    barriers : of hops: parameters, or the name or file of a model
    """
    if isinstance(barriers, str):
        model = load_barrier_model(barriers)
        options = {"barriers_name": model.name, **options}
        barriers = model.parameters
    return AlloySimulation(system, barriers, cells, **options)


def set_initial(sim: AlloySimulation, config: AlloyConfig) -> None:
    """Set the species that a configuration starts from. Collective."""
    if config.initial == "random":
        counts = counts_of(
            sim.sites, config.vacancies or 1, config.composition, len(config.elements)
        )
        sim.set_species(random_alloy, counts=counts)
        return
    start = {"path": config.initial, "elements": config.elements, "moment": config.moment}
    sim.set_species(from_structure, **start)
    found = int(sim.numbers()[0])
    if found == 0:
        counts_of(sim.sites, config.vacancies or 1, None, len(config.elements))  # not too many
        sim.set_species(place_vacancies, number=config.vacancies or 1)
    elif config.vacancies not in (None, found):
        raise InputError(
            "vacancies", config.vacancies, f"{found}, as in {config.initial}", "Leave it out."
        )
