"""Run an alloy simulation and record it in a Trajectory file."""

from __future__ import annotations

import json
import math
import time as clock
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiflow.core.errors import InputError
from mpiflow.core.noise import RNG
from mpiflow.core.parallel import agreed
from mpiflow.files import checkpoint
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.files.schema import STANDARD, TIME
from mpiflow.files.trajectory import Backend, Value
from mpiflow.initial.alloy import counts_of, from_structure, place_vacancies, random_alloy
from mpiflow.run.follow import (
    Content,
    Walk,
    beginning,
    differences,
    facts_of,
    follow,
    keep_of,
    refuse,
    unchanged,
)
from mpiflow.run.plan import one_line
from mpiflow.run.stopping import Keep, say
from mpiflow.simulation.alloy.barrier_model import BarrierModel, load_barrier_model
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.alloy.simulation import AlloyFrame, AlloySimulation
from mpiflow.solvers.vacancy.tiled import STRETCH
from mpiflow.solvers.vacancy.window_choice import AIM, implied_bias
from mpiflow.systems import alloy
from mpiflow.systems.alloy import Alloy

_TIME = replace(TIME, units="s", long_name="time")


def simulate_alloy(
    config: AlloyConfig, comm: MPI.Intracomm | None = None, *, changed: Container[str] = ()
) -> Path:
    """Run what a configuration says and write its file. Collective; see :func:`run.simulate`.

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
    with agreed(comm):
        model = load_barrier_model(config.barriers, config.axis_order)
    sim = build_alloy(config, model, comm, point)
    if comm.rank == 0 and not config.quiet:
        print(f"{config.out}: {sim.describe()}, barriers {model.name}")
        print(f"{config.out}: {one_line(config, comm.size)}")
    remarks = sim.remarks() if point is None else []
    if comm.rank == 0 and not config.quiet:
        for remark in remarks:
            print(f"{config.out}: {remark}")
    record_alloy(
        sim,
        config.out,
        time=config.time,
        hops=config.hops,
        save_every=config.save_every,
        species=config.species,
        overwrite=overwrite,
        writer=config.writer,
        attributes={
            "config_json": config.model_dump_json(),
            "barriers": model.name,
            "barriers_sha256": model.sha256,
        },
        progress=not config.quiet,
        keep=keep_of(config),
        point=point,
        changed=changed,
    )
    load = sim.load()
    if comm.rank == 0 and not config.quiet:
        print(f"{config.out}: to {sim.time:g} s in {clock.monotonic() - start:.1f} s\n{load}")
    return config.out


def build_alloy(
    config: AlloyConfig,
    model: BarrierModel,
    comm: MPI.Intracomm,
    point: Checkpoint | None = None,
) -> AlloySimulation:
    """The simulation of a configuration, in its initial state, unless a checkpoint has another.

    Collective.
    """
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
    )
    if point is not None:
        return sim
    set_initial(sim, config)
    if sim.chooses:
        sim.choose_windows()
    return sim


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


def record_alloy(
    sim: AlloySimulation,
    out: str | Path,
    *,
    time: float | None = None,
    hops: int | None = None,
    save_every: float | None = None,
    species: bool = False,
    overwrite: bool = False,
    writer: Backend = "auto",
    attributes: Mapping[str, Any] | None = None,
    progress: bool = True,
    keep: Keep | None = None,
    point: Checkpoint | None = None,
    changed: Container[str] = (),
) -> None:
    """Advance a simulation and write a frame now, every ``save_every``, and at the end.

    The values do not depend on the number of ranks or on the writer. Collective.

    Parameters
    ----------
    time, hops : how far, in s or in hops; one of the two
    save_every : in the same unit, by default all of it
    species : also save the species of every site
    overwrite, writer, attributes, progress, keep, point, changed : as in
        :func:`mpiflow.run.simulate.record`
    """
    if (time is None) == (hops is None):
        raise InputError("time, hops", (time, hops), "one of the two", "Give one.")
    if hops is not None:
        count = hops if save_every is None else save_every
        if not float(count).is_integer():
            raise InputError("save_every", count, "a whole number of hops", "Round it.")
        schedule = sim.schedule_of_hops(hops, int(count))
        unit, grain = "hops", 1.0
    else:
        end = time or 0.0
        schedule = sim.schedule(end, end if save_every is None else save_every, point is not None)
        unit, grain = "time", sim.grain or 0.0
    facts = facts_of(sim.facts(), _attributes(sim) | dict(attributes or {}))
    if point is not None:
        unchanged(point, facts, changed)
        window = point.numbers.get("window")
        refuse(differences({"window": window}, {"window": sim.window or window}), changed)
        checkpoint.load(point, sim)
    sim.require_state(anew=True)  # before a file is made
    if sim.chooses and sim.choice is None:
        sim.choose_windows()
    about = _attributes(sim) | dict(attributes or {})
    ensemble: dict[str, int] = {"member": sim.members} if sim.members > 1 else {}
    names = ("vacancy", *sim.system.elements)
    pairs = alloy.pair_names(sim.system.elements)
    coordinates = {
        "pair": np.array(pairs),
        "element": np.array(sim.system.elements),
        "corner_species": np.array(names),
        "centre_species": np.array(names),
    }
    dims = ensemble | {name: len(values) for name, values in coordinates.items()}
    variables = [
        STANDARD[name].over(*ensemble, *STANDARD[name].dims)
        for name in ("sro", "warren_cowley", "long_range_order", "bonds", "hops")
    ]
    # An older version knew one window for the whole run.
    windows = sim.tiled and (point is None or "windows" in point.numbers)
    if windows:
        variables += [STANDARD["window"], STANDARD["windows"]]
    if species:
        with agreed(sim.comm):
            sim.local_sites()  # ranks may not be slabs
        dims["site"] = sim.sites
        variables.append(STANDARD["species"].over(*ensemble, "site"))

    def frame() -> tuple[float, dict[str, Value], dict[str, Any]]:
        now = sim.measure()
        shown = {"hops": int(now.hops[0])} if now.hops.size else {}
        values = _values(sim, now, species)
        if windows:
            values |= {"window": now.window, "windows": now.windows}
        return now.time, values, shown

    def position() -> float:
        return sim.time if unit == "time" else float(sim.hops_made)

    def move(place: float) -> None:
        if unit == "time":
            sim.advance_to(place)
        else:
            sim.advance_hops(int(place))

    def some(place: float, most: int, target: float) -> int:
        if unit == "time":
            made = sim.advance_some(place, most, target)
        else:
            made = sim.advance_some_hops(math.ceil(place), most)
        if sim.taken_back > STRETCH:
            advice = "resume with a shorter --override window=... if it takes too long"
            say(
                sim.comm,
                f"the window that was begun is taken back after {sim.taken_back} hops, to be made "
                f"anew{f'; {advice}' if sim.window else ''}",
            )
        return made

    follow(
        Walk(sim, schedule, position, move, grain, unit, some),
        Content(dims, coordinates, variables, about, frame, _TIME),
        out,
        facts=facts,
        point=point,
        keep=keep,
        overwrite=overwrite,
        writer=writer,
        progress=progress,
        changed=changed,
    )


def _values(sim: AlloySimulation, frame: AlloyFrame, species: bool) -> dict[str, Value]:
    """This rank's part of everything that a frame holds."""
    one = sim.members == 1
    values: dict[str, Value] = {}
    for name, value in frame.scalars().items():
        rest = tuple(slice(0, n) for n in value.shape[1:])
        values[name] = value[0] if one else (value, (sim.local_members, *rest))
    if species:
        field = sim.species()
        place = (sim.local_sites(),)
        values["species"] = (field[0], place) if one else (field, (sim.local_members, *place))
    return values


def _attributes(sim: AlloySimulation) -> dict[str, Any]:
    """Standard attributes, with the configuration as far as the simulation knows it."""
    facts: dict[str, Any] = {
        "system": "alloy",
        "config_json": json.dumps(sim.facts()),
        "seed": sim.seed,
        "rng": RNG,
        "lattice_constant_angstrom": sim.lattice_constant,
        "decomposition_invariant": 1,
    }
    if sim.tiled:
        facts["tile_points"] = sim.tile
        facts |= _window_attributes(sim)
    return facts


def _window_attributes(sim: AlloySimulation) -> dict[str, Any]:
    """How windows are chosen, and the bias that they imply."""
    law = "about -0.1 % h^2 sum over cut axes of 16 / (3 tile) for h hops of a vacancy in a window"
    facts: dict[str, Any] = {"window_bias": f"mean square displacements of atoms: {law}, up to 4"}
    if sim.window is not None:
        return facts | {"window_s": sim.window}
    aim = sim.choice.aim if sim.choice else AIM
    bias = implied_bias(sim.tile, sim.lattice.shape, aim)
    return facts | {"window_hops": aim, "window_bias_percent": -bias}
