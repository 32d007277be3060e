"""Sizes of a run before it runs: how it is cut, memory, bytes on disk, and time if measured.

It works on numbers alone, in milliseconds: a lattice that fits no machine is planned like any
other. tests/run/test_plan.py holds the sizes against real runs. Times come from a few real steps,
see
:mod:`mpiflow.run.plan_time`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import h5py

from mpiflow.core import inputs
from mpiflow.core.device import threads
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, Shape
from mpiflow.core.machine import machine_memory
from mpiflow.core.schedule import Schedule
from mpiflow.core.toml_files import read_toml
from mpiflow.files.trajectory import Trajectory
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.alloy.simulation import AlloySimulation, default_tile
from mpiflow.simulation.cuts import Ranks, Unbuilt, kernel_of, share, spin_steps
from mpiflow.simulation.ensemble_options import (
    ChainConfig,
    CurieWeissConfig,
    EnsembleConfig,
    PredatorPreyConfig,
)
from mpiflow.simulation.field.options import FieldConfig, describe
from mpiflow.simulation.field.simulation import FieldSimulation
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.options import IsingConfig, did_you_mean
from mpiflow.simulation.sizes import (
    CHECKPOINTS,
    COMPRESSED_FROM,
    IMAGES,
    LARGE,
    RunConfigs,
    Stored,
    alloy_memory,
    alloy_variables,
    ensemble_memory,
    ensemble_variables,
    field_memory,
    field_variables,
    file_bytes,
    file_memory,
    interpreter,
    spin_memory,
    spin_variables,
)
from mpiflow.solvers.field.steps import MOST

SYSTEMS: dict[str, type[RunConfigs]] = {
    "ising": IsingConfig,
    "kac": KacConfig,
    "alloy": AlloyConfig,
    "onsagerflow": FieldConfig,
    "linear-chain": ChainConfig,
    "curie-weiss": CurieWeissConfig,
    "predator-prey": PredatorPreyConfig,
}


@dataclass(frozen=True)
class Timing:
    """What :func:`mpiflow.run.plan_time.measure` found.

    Attributes
    ----------
    seconds : of the whole run: the median of a few repeats, the least and the most
    step, unit : seconds of a unit of the run ("step", "hop", ...)
    frame : seconds of the observables of a frame, without writing it
    start : seconds to build the initial state and to compile
    """

    seconds: tuple[float, float, float]
    step: float
    unit: str
    frame: float
    start: float


@dataclass(frozen=True)
class Plan:
    """What a run will need. Bytes and sites are those of the rank that has the most.

    Attributes
    ----------
    shape, grid : sides of the lattice, and ranks along them (all 1 for an ensemble)
    smallest, largest : sides of the smallest and of the largest tile, in :attr:`unit`
    members, members_here : lattices, and the fewest and the most on a rank
    kernel : which kernel or solver advances it
    steps : how many, with their length; "" where a solver has none
    frames, exact : how many, and whether that is known beforehand
    memory : bytes of rank 0 by what they are for, without the interpreter
    first_only : bytes of these that other ranks do without
    stored : what the file holds
    checkpoint : bytes of one
    warnings : what stands in the way on this machine
    """

    config: RunConfigs
    ranks: int
    shape: Shape
    grid: Shape
    smallest: Shape
    largest: Shape
    members_here: tuple[int, int]
    kernel: str
    steps: str
    frames: int
    exact: bool
    memory: dict[str, int]
    first_only: int
    stored: tuple[Stored, ...]
    checkpoint: int
    warnings: tuple[str, ...] = ()
    timing: Timing | None = field(default=None)

    @property
    def unit(self) -> str:
        """What sides are counted in."""
        if isinstance(self.config, FieldConfig):
            return f"blocks of {self.config.block} x {self.config.block} sites"
        return "points" if isinstance(self.config, AlloyConfig) else "sites"

    @property
    def rank_bytes(self) -> int:
        """Memory of rank 0, which needs the most, beyond the interpreter."""
        return sum(self.memory.values())

    def machine_bytes(self, ranks: int) -> int:
        """Memory of a machine with so many of the ranks, rank 0 among them."""
        each = self.rank_bytes - self.first_only + interpreter(self.config)[0]
        return ranks * each + self.first_only

    @property
    def raw_bytes(self) -> int:
        """Of the file's data, before compression."""
        return sum(s.total for s in self.stored)

    @property
    def disk_bytes(self) -> int:
        """Of the file, estimated after compression."""
        return file_bytes(self.config, self.stored, self.frames)

    def one_line(self) -> str:
        """Frames, disk and memory."""
        return (
            f"{_about(self.exact)}{self.frames} frame{'s' * (self.frames != 1)}, "
            f"{_size(self.raw_bytes)} on disk before compression, "
            f"{_size(self.rank_bytes)} a rank beyond the interpreter"
        )

    def text(self) -> str:
        """A page for people."""
        config = self.config
        total = self.machine_bytes(self.ranks)
        running, compiling = interpreter(config)
        origin = inputs.origin(config.model_dump()) if "initial" in config.files() else ""
        rows = [
            ("system", f"{config.system}, {self.kernel} on {config.device}, {_ranks(self.ranks)}"),
            ("lattice", self._cut()),
            ("steps", self.steps),
            ("start", origin),
            ("frames", f"{_about(self.exact)}{self.frames}, one every {config.save_every:g}"),
            ("memory", f"{_size(self.rank_bytes)} of rank 0: " + _parts(self.memory)),
            ("", f"{_size(self.rank_bytes - self.first_only)} of other ranks" * (self.ranks > 1)),
            (
                "",
                f"{_size(running)} more a rank for Python and MPI, "
                f"{_size(compiling)} where kernels are compiled",
            ),
            ("", f"{_size(total)} in all" + " and on the GPU" * (config.device == "cuda")),
            (
                "disk",
                f"{config.out}: {_size(sum(s.frame for s in self.stored))} a frame, "
                f"{_size(self.raw_bytes)} before compression, "
                f"about {_size(self.disk_bytes)} after",
            ),
            *(
                ("", f"{s.name}: {_size(s.total)}, about {_size(s.compressed)} after")
                for s in self.stored
                if s.frame >= COMPRESSED_FROM
            ),
            ("", f"checkpoint {_size(self.checkpoint)}; the last two are kept"),
            ("time", self._time()),
            *(("warning", warning) for warning in self.warnings),
        ]
        return "\n".join(f"{name:9} {row}" for name, row in rows if row)

    def _cut(self) -> str:
        size, unit = _sides(self.shape), self.unit
        few, most = self.members_here
        if self.config.members > 1:
            here = f"{few}" if few == most else f"{few} to {most}"
            what = "fields" if isinstance(self.config, FieldConfig) else "lattices"
            what = "systems" if isinstance(self.config, EnsembleConfig) else what
            return f"{self.config.members} {what} of {size} {unit}, {here} a rank"
        tiles = _sides(self.largest)
        if self.smallest != self.largest:
            tiles = f"{_sides(self.smallest)} to {tiles}"
        if isinstance(self.config, EnsembleConfig):
            return f"{size} {unit}, whole on every rank"
        grid = f" in a grid of {_sides(self.grid)} tiles" if self.ranks > 1 else ""
        return f"{size} {unit}{grid}, {tiles} a rank"

    def _time(self) -> str:
        t = self.timing
        if t is None:
            return "not measured: --measure makes a few steps here"
        value, low, high = map(_duration, t.seconds)
        return (
            f"about {value} ({low} to {high}) from {t.step:.3g} s a {t.unit} and {t.frame:.3g} s a "
            f"frame, without writing; {t.start:.1f} s to start"
        )


def plan(config: RunConfigs, ranks: int = 1, *, here: int | None = None) -> Plan:
    """Plan a run. Nothing of the size of the lattice is allocated.

    Parameters
    ----------
    config : of the run
    ranks : how many
    here : how many of them on this machine, for the warning about memory; all unless given

    Raises
    ------
    InputError : the run would be refused for its size, its ranks or its times
    """
    if ranks < 1:
        raise InputError("ranks", ranks, "1 or more", "Leave it out for those that run this.")
    if isinstance(config, AlloyConfig):
        made = _alloy(config, ranks)
    elif isinstance(config, FieldConfig):
        made = _field(config, ranks)
    elif isinstance(config, EnsembleConfig):
        made = _ensemble(config, ranks)
    else:
        made = _spins(config, ranks)
    return replace(made, warnings=tuple(_warnings(made, ranks if here is None else here)))


def one_line(config: RunConfigs, ranks: int) -> str:
    """Frames, disk and memory of a run, in milliseconds."""
    return plan(config, ranks).one_line()


def read(path: str | Path, system: str | None = None, options: Sequence[str] = ()) -> RunConfigs:
    """The configuration of a TOML file, or that of a Trajectory.

    Parameters
    ----------
    system : its system, where the file does not say it
    options : "name=value" each, replacing those of the file. ``out`` may be left out.
    """
    values: dict[str, Any] = {"out": "run.h5"}
    path = Path(path)
    if path.is_file() and h5py.is_hdf5(path):
        with Trajectory(path) as run:
            stored = run.config
            # A Python script may have recorded less, or facts that are no options.
            system = system or run.attributes["system"]
            known = {*SYSTEMS[system].options(), "inputs"} if system in SYSTEMS else set()
            values |= {k: v for k, v in stored.items() if k in known and v is not None}
    else:
        values |= read_toml(path)
    for text in options:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError("option", text, "name=value", f"Try {text}=..., without dashes.")
        values[name.lstrip("-").replace("-", "_")] = value
    system = system or values.get("system")
    if system not in SYSTEMS:
        known_names = ", ".join(SYSTEMS)
        hint = did_you_mean(str(system), SYSTEMS) or "Add system = 'ising', or use --system."
        raise InputError("system", system, f"one of {known_names}", hint)
    return SYSTEMS[system](**values | {"system": system})


# -- how a run is cut ----------------------------------------------------------------------


def _spins(config: IsingConfig | KacConfig, ranks: int) -> Plan:
    lattice, batch = Lattice(config.size), -(-config.members // ranks)
    one = config.members == 1
    kernel, unit = kernel_of(config, lattice)
    solo = config.solver in ("nfold", "gillespie")
    if solo and one and ranks > 1:
        raise InputError(
            "ranks", ranks, f"1 for a lattice with the {config.solver} solver", "Use one rank."
        )
    layout = Layout(lattice, (1, 1), config.coarse or 1)
    if one and isinstance(config, KacConfig):
        layout = Layout(lattice, (ranks, 1), config.coarse or 1)
    elif one:
        layout = Simulation._layout(
            cast(Any, Unbuilt(lattice, Ranks(ranks))),
            getattr(config, "ranks_grid", None),
            config.coarse or 1,
            unit,
        )
    steps, text = spin_steps(config)
    frames = Schedule.of(0.0, config.time, config.save_every).last + 1
    largest = share(layout, most=True)
    stored = spin_variables(config, frames)
    memory = spin_memory(config, kernel, largest, batch)
    memory |= file_memory(stored, config, math.prod(largest) * batch, frames, ranks)
    checkpoint = config.members * lattice.shape[0] * -(-lattice.shape[1] // 8)
    if config.solver == "nfold":  # it goes on with its lists of sites in their order
        checkpoint += 4 * lattice.sites * config.members
    if isinstance(config, KacConfig):
        kernel = f"{config.solver} solver, gamma {config.gamma:g}"
    elif config.solver == "sublattice":
        kernel = f"sublattice solver, {kernel} kernel"
    workers = threads() if kernel.endswith("packed kernel") and config.device == "cpu" else 1
    return Plan(
        config=config,
        ranks=ranks,
        shape=lattice.shape,
        grid=layout.ranks_grid,
        smallest=share(layout, most=False),
        largest=largest,
        members_here=(config.members // ranks, batch),
        kernel=f"{kernel}, {workers} thread{'s' * (workers > 1)}",
        steps=text if steps is None else f"{steps} {text}",
        frames=frames,
        exact=True,
        memory=memory | {"checkpoint": IMAGES * checkpoint},
        first_only=memory["frames received"] + IMAGES * checkpoint,
        stored=stored,
        checkpoint=checkpoint,
    )


def _alloy(config: AlloyConfig, ranks: int) -> Plan:
    lattice, batch = Lattice(tuple(2 * n for n in config.cells)), -(-config.members // ranks)
    sites, serial, one = lattice.sites // 4, config.solver == "serial", config.members == 1
    if serial and one and ranks > 1:
        raise InputError("ranks", ranks, "1 for a lattice with the serial solver", "Use tiled.")
    tile = lattice.shape
    if not serial:
        tile = default_tile(lattice.shape) if config.tile is None else config.tile
    layout = Layout(lattice, (1, 1, 1))
    if one:
        unbuilt = cast(Any, Unbuilt(lattice, Ranks(ranks), tile))
        layout = AlloySimulation._layout(unbuilt, config.ranks_grid)
    largest = share(layout, most=True)
    end = float(config.hops if config.hops is not None else config.time or 0.0)
    frames = Schedule.of(0.0, end, config.save_every or end).last + 1
    stored = alloy_variables(config, sites, frames)
    memory = alloy_memory(config, largest, batch)
    memory |= file_memory(stored, config, math.prod(largest) // 4 * batch, frames, ranks)
    windows = ""
    # All points of the grid, of which one in four is a site; the rest compresses to nothing.
    checkpoint, grid = sites * config.members, lattice.sites * config.members
    if config.window is not None and config.time is not None:
        windows = f", {round(config.time / config.window)} windows of {config.window:g} s"
    far = f"{config.hops} hops" if config.hops is not None else f"{config.time:g} s"
    cut = "serial solver" if serial else f"tiled solver, tiles of {_sides(tile)} points"
    return Plan(
        config=config,
        ranks=ranks,
        shape=lattice.shape,
        grid=layout.ranks_grid,
        smallest=share(layout, most=False),
        largest=largest,
        members_here=(config.members // ranks, batch),
        kernel=cut,
        steps=far + windows,
        frames=frames,
        # A window of the tiled solver may hold more hops than lie between frames.
        exact=serial or config.hops is None,
        memory=memory | {"checkpoint": IMAGES * grid},
        first_only=memory["frames received"] + IMAGES * grid,
        stored=stored,
        checkpoint=checkpoint,
    )


def _field(config: FieldConfig, ranks: int) -> Plan:
    """Of a learned field: slabs of rows of blocks, some of them empty if ranks are many."""
    (ny, nx), one, spins = config.shape, config.members == 1, (config.block or 1) ** 2
    structure = config.structure or describe(config.model)["form"]["structure"]
    if structure == "cosh" and spins > MOST:
        allowed = f"at most {math.isqrt(MOST)} sites a side, for cosh"
        raise InputError("block", config.block, allowed, "Use langevin for larger ones.")
    unbuilt = cast(Any, SimpleNamespace(field=SimpleNamespace(dt=config.dt), time=0.0))
    frames = (
        FieldSimulation.schedule(unbuilt, config.time, config.save_every, config.resume).last + 1
    )
    batch = -(-config.members // ranks)
    rows = (ny // ranks, -(-ny // ranks)) if one else (ny, ny)
    stored = field_variables(config, structure, frames)
    state = (4 if structure == "cosh" else 8) * ny * nx
    checkpoint = config.members * state
    memory = field_memory(config, structure, rows[1], batch, ranks)
    memory |= file_memory(stored, config, batch * rows[1] * nx * spins, frames, ranks)
    # It is made when no step is, and a step has more in memory than that unless ranks are many.
    beyond = max(0, IMAGES * checkpoint - memory["step or frame"])
    return Plan(
        config=config,
        ranks=ranks,
        shape=config.shape,
        grid=(ranks, 1) if one else (1, 1),
        smallest=(rows[0], nx),
        largest=(rows[1], nx),
        members_here=(config.members // ranks, batch),
        kernel=f"{structure} structure",
        steps=f"{round(config.time / config.dt)} of {config.dt:g}",
        frames=frames,
        exact=True,
        memory=memory | {"checkpoint beyond that": beyond},
        first_only=memory["frames received"] + beyond,
        stored=stored,
        checkpoint=checkpoint,
    )


def _ensemble(config: EnsembleConfig, ranks: int) -> Plan:
    """Of systems that are whole on a rank, a single one on every rank."""
    one, shape = config.members == 1, config.shape
    batch = -(-config.members // ranks)
    frames = Schedule.of(0.0, config.time, config.save_every).last + 1
    stored = ensemble_variables(config, frames)
    memory = ensemble_memory(config, batch)
    # Numbers of spins that are down and up, a clock and the flips; or all sites.
    exact = isinstance(config, CurieWeissConfig)
    profiles = 8 * shape[-1] * len(config.profiles)
    checkpoint = config.members * (32 if exact else profiles)
    memory |= file_memory(stored, config, batch * profiles, frames, ranks)
    dt = config.step
    return Plan(
        config=config,
        ranks=ranks,
        shape=shape,
        grid=(1,) * len(shape),
        smallest=shape,
        largest=shape,
        members_here=(1, 1) if one else (config.members // ranks, batch),
        kernel=config.moves,
        steps="events, not steps" if dt is None else f"{round(config.time / dt)} of {dt:g}",
        frames=frames,
        exact=True,
        memory=memory | {"checkpoint": IMAGES * checkpoint},
        first_only=memory["frames received"] + IMAGES * checkpoint,
        stored=stored,
        checkpoint=checkpoint,
    )


# -- what stands in the way -------------------------------------------------------------------


def _warnings(made: Plan, here: int) -> list[str]:
    out = []
    there = machine_memory()
    # The interpreter is measured only where it may matter: a run asks for this, too.
    close = here * (made.rank_bytes + LARGE) > there
    if close and (need := made.machine_bytes(here)) > there:
        out.append(
            f"{_ranks(here)} need {_size(need)} of memory and this machine has {_size(there)}: "
            "use more machines, or a smaller lattice"
        )
    folder = Path(made.config.out).resolve().parent
    if not folder.is_dir():
        out.append(f"{folder} does not exist: create it")
        return out
    # At its end a run is written once more, before the old file goes.
    room, fixed = shutil.disk_usage(folder).free, CHECKPOINTS * made.checkpoint
    likely, most = 2 * made.disk_bytes + fixed, 2 * made.raw_bytes + fixed
    if min(likely, most) > room:
        out.append(
            f"{folder} has {_size(room)} free, and files and checkpoints need about "
            f"{_size(min(likely, most))}: make room, or save less"
        )
    elif most > room:
        out.append(
            f"{folder} has {_size(room)} free; uncompressed it would be {_size(most)} with "
            "checkpoints and the copy at the end"
        )
    return out


# -- words --------------------------------------------------------------------------------------


def _about(exact: bool) -> str:
    return "" if exact else "at most "


def _ranks(number: int) -> str:
    return f"{number} rank{'s' * (number > 1)}"


def _sides(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _size(count: float) -> str:
    """Bytes in words: 1 MB is a million."""
    for unit, scale in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def _parts(memory: dict[str, int]) -> str:
    return ", ".join(f"{name} {_size(count)}" for name, count in memory.items() if count)


def _duration(seconds: float) -> str:
    for unit, scale in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:.2g} {unit}"
    return f"{seconds:.2g} s"
