"""Run a simulation and record it in a Trajectory file."""

from __future__ import annotations

import json
import math
import time as clock
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiflow import observables
from mpiflow.core import arrays
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Layout
from mpiflow.core.parallel import agreed
from mpiflow.files import checkpoint
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.files.schema import STANDARD, Variable, block_centres
from mpiflow.files.trajectory import Backend, Value
from mpiflow.initial import spins as initial
from mpiflow.run.follow import Content, Walk, beginning, facts_of, follow, keep_of, unchanged
from mpiflow.run.plan import one_line
from mpiflow.run.stopping import Keep
from mpiflow.simulation.ising.simulation import Frame, Simulation, SpinSimulation
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.simulation.options import IsingConfig, SpinConfig, number_to_json
from mpiflow.systems.ising import Ising
from mpiflow.systems.kac import Kac


def simulate(
    config: IsingConfig | KacConfig,
    comm: MPI.Intracomm | None = None,
    *,
    changed: Container[str] = (),
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
    sim = build(config, comm, fresh=point is None)
    attributes = {"config_json": config.model_dump_json(), **_field_attributes(config)}
    remarks = sim.remarks() + (_initial_remarks(sim, config) if point is None else [])
    if comm.rank == 0 and not config.quiet:
        for line in (sim.describe(), one_line(config, comm.size), *remarks):
            print(f"{config.out}: {line}")
    record(
        sim,
        config.out,
        time=config.time,
        save_every=config.save_every,
        coarse=config.coarse,
        spins=config.spins,
        spin_bits=config.spin_bits,
        overwrite=overwrite,
        writer=config.writer,
        attributes=attributes,
        progress=not config.quiet,
        keep=keep_of(config),
        point=point,
        changed=changed,
    )
    if comm.rank == 0 and not config.quiet:
        print(f"{config.out}: to time {sim.time:g} in {clock.monotonic() - start:.1f} s")
    return config.out


def _field_attributes(config: SpinConfig) -> dict[str, str]:
    """What tells a file of an external field from another."""
    digest = config.inputs.get("field_file")
    return {} if digest is None else {"field_sha256": digest}


def build(config: SpinConfig, comm: MPI.Intracomm, fresh: bool = True) -> SpinSimulation:
    """The simulation of a configuration, in its initial state if ``fresh``. Collective."""
    with agreed(comm):
        Device(config.device)  # a machine without a GPU may be one of many
    sim: SpinSimulation
    common: dict[str, Any] = {
        "size": config.size,
        "seed": config.seed,
        "members": config.members,
        "comm": comm,
        # A byte of spins belongs to one rank.
        "granularity": math.lcm(config.coarse or 1, 8 if config.spin_bits else 1),
        "device": config.device,
    }
    if isinstance(config, KacConfig):
        sim = KacSimulation(
            Kac(config.temperature, config.gamma, config.field),
            solver=config.solver,
            tau=config.tau,
            eps=config.eps,
            method=config.method,
            external=_field_of(config, comm),
            **common,
        )
    else:
        assert isinstance(config, IsingConfig)  # noqa: S101 - for the type checker
        sim = Simulation(
            Ising(config.temperature, config.field, config.coupling),
            dt=math.inf if config.dt is None else config.dt,
            solver=config.solver,
            ranks_grid=config.ranks_grid,
            kernel=config.kernel,
            tile=config.tile or 64,
            **common,
        )
    if fresh:
        set_initial(sim, config)
    return sim


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


def _initial_remarks(sim: SpinSimulation, config: SpinConfig) -> list[str]:
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


def record(
    sim: SpinSimulation,
    out: str | Path,
    *,
    time: float,
    save_every: float,
    coarse: int | None = None,
    spins: bool = False,
    spin_bits: bool = False,
    overwrite: bool = False,
    writer: Backend = "auto",
    attributes: Mapping[str, Any] | None = None,
    progress: bool = True,
    keep: Keep | None = None,
    point: Checkpoint | None = None,
    changed: Container[str] = (),
) -> None:
    """Advance a simulation by ``time`` and write a frame now, every ``save_every``, and at the end.

    The values do not depend on the number of ranks or on the writer. Collective.

    Parameters
    ----------
    coarse : also save means over blocks of this many sites a side; the simulation's
        ``granularity`` must be a multiple of it
    spins : also save every spin, a byte each
    spin_bits : also save every spin, a bit each; needs a ``granularity`` of a multiple of 8
    overwrite : replace an existing file
    writer : ``auto``, ``parallel`` (MPI-IO) or ``gather`` (through rank 0)
    attributes : root attributes to add to the standard ones, or to replace them with
    progress : show progress on rank 0
    keep : write checkpoints, and stop on signals or at a walltime; none by default
    point : go on from this checkpoint of the run (:func:`mpiflow.files.checkpoint.newest`) with a
        simulation made like the first one; ``time`` still counts from the beginning of the run
    changed : what may be different from then
    """
    if coarse is not None:
        _check_blocks(sim, "coarse", coarse)
    if spin_bits:
        _check_blocks(sim, "spin_bits", 8)
    # It checks the times, before a file is made.
    schedule = sim.schedule(time, save_every, begun=point is not None)
    dims, coordinates, variables = _schema(sim, coarse, spins, spin_bits)
    about = _attributes(sim, coarse) | dict(attributes or {})
    facts = facts_of(sim.facts(), about)
    if point is not None:
        unchanged(point, facts, changed)
        checkpoint.load(point, sim)
    sim.require_state(anew=True)  # before a file is made

    def frame() -> tuple[float, dict[str, Value], dict[str, Any]]:
        now = sim.measure()
        # With more ranks than members rank 0 may have none.
        shown = {"m": float(now.magnetization[0])} if now.magnetization.size else {}
        return now.time, _values(sim, now, coarse, spins, spin_bits), shown

    some = sim.advance_some if sim.counts_events else None
    walk = Walk(sim, schedule, lambda: sim.time, sim.advance_to, sim.grain, some=some)
    content = Content(dims, coordinates, variables, about, frame)
    follow(
        walk,
        content,
        out,
        facts=facts,
        point=point,
        keep=keep,
        overwrite=overwrite,
        writer=writer,
        progress=progress,
        changed=changed,
    )


def _check_blocks(sim: SpinSimulation, name: str, coarse: int) -> None:
    Layout(sim.lattice, (1,) * sim.lattice.ndim, coarse)  # divides the lattice
    layout = sim.block.layout
    boxes = [] if layout is None else [layout.bounds(rank) for rank in range(layout.ranks)]
    if any(edge % coarse for box in boxes for edges in box for edge in edges):
        raise InputError(
            name,
            coarse,
            "a block size that divides the tiles of all ranks",
            f"Make the Simulation with granularity={coarse}.",
        )


def _schema(
    sim: SpinSimulation, coarse: int | None, spins: bool, spin_bits: bool
) -> tuple[dict[str, int], dict[str, np.ndarray], list[Variable]]:
    """Dimensions, coordinates and variables; a ``member`` dimension for an ensemble.

    Coarse fields and spins are both over y and x. With both in one file, where a
    name has one length, the spins are over site_y and site_x.
    """
    dims: dict[str, int] = {"member": sim.members} if sim.members > 1 else {}
    ensemble = tuple(dims)
    coordinates: dict[str, np.ndarray] = {}
    variables = [
        STANDARD[name].over(*ensemble)
        for name in ("magnetization", "energy", "domain_wall_density", "flips")
    ]
    fields = [("coarse_magnetization", coarse)] if coarse is not None else []
    fields += [("spin", 1)] if spins else []
    for name, unit in fields:
        axes = ("y", "x") if "y" not in dims else ("site_y", "site_x")
        variables.append(STANDARD[name].over(*ensemble, *axes))
        for axis, side in zip(axes, sim.lattice.shape, strict=True):
            coordinates[axis] = block_centres(side, unit)
            dims[axis] = side // unit
    if spin_bits:
        ly, lx = sim.lattice.shape
        y = next(name for name in ("y", "site_y") if dims.get(name, ly) == ly)
        variables.append(STANDARD["spin_bits"].over(*ensemble, y, "x_byte"))
        dims |= {y: ly, "x_byte": lx // 8}
        coordinates |= {y: block_centres(ly, 1), "x_byte": np.arange(0.0, lx, 8.0)}
    return dims, coordinates, variables


def _values(
    sim: SpinSimulation, frame: Frame, coarse: int | None, spins: bool, spin_bits: bool
) -> dict[str, Value]:
    """This rank's part of everything that a frame holds."""
    one = sim.members == 1
    members = () if one else (sim.local_members,)
    values: dict[str, Value] = {
        name: value[0] if one else (value, members) for name, value in frame.scalars().items()
    }
    if coarse is not None:
        # Exact sums, divided once: the same bits however the lattice is cut.
        means = sim.coarse_sums(coarse) / coarse**2
        values["coarse_magnetization"] = (
            means[0] if one else means,
            members + sim.local_box(coarse),
        )
    if spins:
        field = sim.spins()
        values["spin"] = (field[0] if one else field, members + sim.local_box())
    if spin_bits:
        bits, (rows, columns) = observables.spin_bits(sim.state), sim.local_box()
        place = (*members, rows, slice(columns.start // 8, columns.stop // 8))
        values["spin_bits"] = (bits[0] if one else bits, place)
    return values


def _attributes(sim: SpinSimulation, coarse: int | None) -> dict[str, Any]:
    """Standard attributes, with the configuration as far as the simulation knows it."""
    facts = {
        name: number_to_json(value) if isinstance(value, float) else value
        for name, value in sim.facts().items()
    }
    named = {name: facts[name] for name in ("system", "kernel", "seed") if name in facts}
    return named | {
        "config_json": json.dumps({**facts, "coarse": coarse}),
        "rng": sim.rng,
        "decomposition_invariant": 1,
    }
