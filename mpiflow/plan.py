"""Sizes of a run before it runs: how it is cut, memory, bytes on disk, and time if measured.

It works on numbers alone, in milliseconds: a lattice that fits no machine is planned like any
other. tests/test_plan.py holds the sizes against real runs. Times come from a few real steps, see
:mod:`mpiflow.plan_time`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np

from mpiflow.alloy_config import AlloyConfig
from mpiflow.alloy_simulation import AlloySimulation, default_tile
from mpiflow.config import IsingConfig, SpinConfig, did_you_mean, read_toml
from mpiflow.device import threads
from mpiflow.doctor import machine_memory
from mpiflow.errors import InputError
from mpiflow.kac_config import KacConfig
from mpiflow.lattice import Lattice, Layout, Shape
from mpiflow.packed import BAND, WORD_SITES, fits
from mpiflow.schedule import Schedule
from mpiflow.schema import STANDARD
from mpiflow.simulation import Simulation, SpinSimulation
from mpiflow.solvers.sublattice import SLICED_SITES
from mpiflow.solvers.tiled_vacancy import TiledKMC
from mpiflow.systems.ising import CLASSES
from mpiflow.systems.kac import kac_kernel
from mpiflow.trajectory import Trajectory

RunConfigs = IsingConfig | KacConfig | AlloyConfig
SYSTEMS: dict[str, type[RunConfigs]] = {
    "ising": IsingConfig,
    "kac": KacConfig,
    "alloy": AlloyConfig,
}

@dataclass(frozen=True)
class Timing:
    """What :func:`mpiflow.plan_time.measure` found.

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
    smallest, largest : sides of the smallest and of the largest tile, in sites (alloy: points)
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
    def rank_bytes(self) -> int:
        """Memory of rank 0, which needs the most, beyond the interpreter."""
        return sum(self.memory.values())

    def machine_bytes(self, ranks: int) -> int:
        """Memory of a machine with so many of the ranks, rank 0 among them."""
        return ranks * (self.rank_bytes - self.first_only + INTERPRETER) + self.first_only

    @property
    def raw_bytes(self) -> int:
        """Of the file's data, before compression."""
        return sum(s.total for s in self.stored)

    @property
    def disk_bytes(self) -> int:
        """Of the file, estimated after compression."""
        return FILE + sum(s.compressed for s in self.stored)

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
        rows = [
            ("system", f"{config.system}, {self.kernel} on {config.device}, {_ranks(self.ranks)}"),
            ("lattice", self._cut()),
            ("steps", self.steps),
            ("frames", f"{_about(self.exact)}{self.frames}, one every {config.save_every:g}"),
            ("memory", f"{_size(self.rank_bytes)} of rank 0: " + _parts(self.memory)),
            ("", f"{_size(self.rank_bytes - self.first_only)} of other ranks" * (self.ranks > 1)),
            (
                "",
                f"{_size(INTERPRETER)} more a rank for Python and MPI, "
                f"{_size(COMPILING)} where kernels are compiled",
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
        size, unit = _sides(self.shape), "points" if len(self.shape) == 3 else "sites"
        few, most = self.members_here
        if self.config.members > 1:
            here = f"{few}" if few == most else f"{few} to {most}"
            return f"{self.config.members} lattices of {size} {unit}, {here} a rank"
        tiles = _sides(self.largest)
        if self.smallest != self.largest:
            tiles = f"{_sides(self.smallest)} to {tiles}"
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
    made = _alloy(config, ranks) if isinstance(config, AlloyConfig) else _spins(config, ranks)
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
            known = SYSTEMS[system].model_fields if system in SYSTEMS else {}
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


@dataclass
class _Ranks:
    size: int


@dataclass
class _Unbuilt:
    """What a simulation must know to cut its lattice and to count its steps; no sites."""

    lattice: Lattice
    comm: _Ranks
    tile: Shape = ()
    step_length: float | None = None
    time: float = 0.0


def _share(layout: Layout, most: bool) -> Shape:
    """Sides of the largest (smallest) tile. Of a layout with many ranks too: without a loop."""
    return tuple(
        unit * (-(-(side // unit) // n) if most else side // unit // n)
        for side, unit, n in zip(layout.lattice.shape, layout.units, layout.ranks_grid, strict=True)
    )


def _spins(config: SpinConfig, ranks: int) -> Plan:
    assert isinstance(config, IsingConfig | KacConfig)  # noqa: S101 - for the type checker
    lattice, batch = Lattice(config.size), -(-config.members // ranks)
    one = config.members == 1
    kernel, unit = _kernel(config, lattice)
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
            cast(Any, _Unbuilt(lattice, _Ranks(ranks))),
            getattr(config, "ranks_grid", None),
            config.coarse or 1,
            unit,
        )
    steps, text = _spin_steps(config)
    frames = Schedule(0.0, config.time, config.save_every).last + 1
    largest = _share(layout, most=True)
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
        smallest=_share(layout, most=False),
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


def _kernel(config: SpinConfig, lattice: Lattice) -> tuple[str, Shape]:
    """Which kernel advances it, and in units of how many sites tiles are cut."""
    if not isinstance(config, IsingConfig):
        return "plain", (1, 1)
    if config.solver == "tiled-nfold":
        tile = config.tile or 64
        if any(n % (2 * tile) for n in lattice.shape):
            raise InputError(
                "tile", tile, f"an even number of times in every side of {lattice.shape}", "Try 32."
            )
        return config.solver, (tile, tile)
    if config.solver == "nfold":
        return config.solver, (1, 1)
    small = config.members > 1 and math.prod(n + 2 for n in lattice.shape) <= SLICED_SITES
    kernel: str = config.kernel
    if kernel == "auto":
        kernel = "packed" if fits(lattice) else "sliced" if small else "plain"
    if kernel == "packed" and not fits(lattice):
        raise InputError(
            "size",
            lattice.shape,
            f"a multiple of {BAND} rows and of {WORD_SITES} columns for the packed kernel",
            "Leave the kernel out.",
        )
    return kernel, (BAND, WORD_SITES) if kernel == "packed" else (1, 1)


def _spin_steps(config: IsingConfig | KacConfig) -> tuple[int | None, str]:
    """Number of steps, None where a solver has none of a fixed length, and a word about them."""
    step = config.tau if isinstance(config, KacConfig) else config.dt
    if step is None:
        if isinstance(config, KacConfig) and config.eps is not None:
            return None, f"of {config.eps:g} / the largest rate"
        return None, "events, not steps"
    sweeps = math.isinf(step)
    unbuilt = cast(
        Any, _Unbuilt(Lattice(config.size), _Ranks(1), step_length=1.0 if sweeps else step)
    )
    steps = SpinSimulation.steps_in(unbuilt, config.time, "time")
    SpinSimulation.steps_in(unbuilt, config.save_every, "save_every")
    return steps, "full sweeps" if sweeps else f"of {step:g}"


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
        unbuilt = cast(Any, _Unbuilt(lattice, _Ranks(ranks), tile))
        layout = AlloySimulation._layout(unbuilt, config.ranks_grid)
    largest = _share(layout, most=True)
    points, halo = math.prod(largest), TiledKMC.halo
    padded = math.prod(n + 2 * halo for n in largest)
    end = float(config.hops if config.hops is not None else config.time or 0.0)
    frames = Schedule(0.0, end, config.save_every or end).last + 1
    stored = alloy_variables(config, sites, frames)
    vacancies = config.vacancies or 1
    mine = -(-vacancies * points // lattice.sites)
    memory = {
        "field": batch * points,
        "halo": batch * (padded - points),
        # The list, the tree and the table of known rates of vacancies.
        "vacancies": (batch if serial else 1) * (160 * mine + 1536 * min(1024, 4 * mine)),
    }
    memory |= file_memory(stored, config, points // 4 * batch, frames, ranks)
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
        smallest=_share(layout, most=False),
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


# -- what stands in the way -------------------------------------------------------------------


def _warnings(made: Plan, here: int) -> list[str]:
    out = []
    need, there = made.machine_bytes(here), machine_memory()
    if need > there:
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
