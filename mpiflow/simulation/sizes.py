"""Bytes that a run takes in memory and in files, by what they are for.

Of spins and species they follow from how arrays are laid out; of the rest they were measured on
the reference machine. tests/run/test_plan.py holds them against real runs.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import h5py
import numpy as np

from mpiflow.core import inputs
from mpiflow.core.lattice import Layout, Shape, split
from mpiflow.files.schema import STANDARD
from mpiflow.simulation import catalogue
from mpiflow.simulation import disk as plan_disk
from mpiflow.simulation.options import RunConfig

#: Bytes that the kernels of a run take, from the cache, and more where they are compiled: 25 to 47
#: MB and up to 115 MB in all systems. Of Python, MPI and the packages see :func:`interpreter`.
KERNELS, COMPILING = 32_000_000, 115_000_000
#: Bytes of a GPU that CUDA itself takes for a process, kernels with it: assumed, not yet measured.
CONTEXT = 600_000_000
#: The most that an interpreter may take, for a look whether it has to be measured, and what it took
#: where it cannot be: with and without PyTorch.
LARGE, _WITH_TORCH, _WITHOUT = 2_000_000_000, 480_000_000, 245_000_000
_EMPTY = """
import importlib, sys
from mpiflow.core.mpi import MPI
importlib.import_module("mpiflow.run.simulate")
importlib.import_module(sys.argv[1])
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""
#: Bytes that frames may take together before they are written (as of the writer).
HELD = 2**23
#: A frame below this many bytes is stored as it is (as of the schema), larger ones compressed.
COMPRESSED_FROM = 4096
#: Checkpoints of a run on disk: the last two, and a new one until it replaces the older.
CHECKPOINTS = 3
#: Copies of a checkpoint in the memory of rank 0: gathered, as a file, and that file's bytes.
IMAGES = 3
#: Measured bytes after compression of a spin, of a site's species, and of the mean of a block of
#: so many sites a side (Ising at T = 1.8 to 5, Kac, alloy of four species); about 20 % either way.
SPIN, SPECIES = 0.2, 0.29
MEANS = ((1, 0.25), (2, 0.5), (4, 0.75), (8, 1.05), (16, 1.3), (64, 1.7), (256, 2.4))
#: The counts of a learned field of ``cosh`` are such means (0.6 to 1 of these); of ``langevin``
#: they are real numbers (2.1 to 3.5).
REAL = 3.2
#: The same of float64 (profiles of linear chains).
DOUBLE = 7.5


@dataclass(frozen=True)
class Stored:
    """A variable of the file: bytes of a frame, of all frames, and of these when compressed."""

    name: str
    frame: int
    total: int
    compressed: int


def interpreter(config: RunConfig) -> tuple[int, int]:
    """Bytes of a rank without a state, and where kernels are compiled.

    Python, MPI and the packages take what they do on this machine: a process that imports what the
    run will is started once, for a second or two. That of the caller may hold anything.
    """
    run = empty_process(catalogue.entry(config.system).build.partition(":")[0])
    return run + KERNELS, run + KERNELS + COMPILING


@functools.cache
def empty_process(module: str) -> int:
    """Largest resident set of a process that is ready to build a system there, in bytes."""
    mpi = ("OMPI_", "PMI", "PRTE_", "SLURM_", "HYD")  # a process of its own, no rank of this job
    env = {k: v for k, v in os.environ.items() if not k.startswith(mpi)}
    command = [sys.executable, "-c", _EMPTY, module]
    try:
        done = subprocess.run(  # noqa: S603 - this very Python
            command, env=env, capture_output=True, text=True, timeout=120, check=True
        )
        return 1024 * int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return _WITH_TORCH if ".learn." in module else _WITHOUT


# -- memory ----------------------------------------------------------------------------------


def file_memory(
    stored: Sequence[Stored],
    config: RunConfig,
    frames: int,
    ranks: int,
    *,
    own: int,
    making: int,
    stacked: int = 2,
) -> dict[str, int]:
    """A frame in the making, and those that wait to be written, of the rank that has the most.

    Parameters
    ----------
    own : bytes of a rank's part of the fields of a frame
    making : bytes that are needed to make it
    stacked : copies of frames that wait, where there are several
    """
    frame = max(1, sum(s.frame for s in stored))
    waiting = min(frames, -(-HELD // frame))
    # Rank 0 alone writes without parallel HDF5, and then receives whole frames.
    alone = config.writer == "gather" or (ranks > 1 and not h5py.get_config().mpi)
    held = waiting * min(frame, own + 512) * (stacked if waiting > 1 else 1)
    received = waiting * frame if alone and ranks > 1 else 0
    return {"frame": making, "frames held": held, "frames received": received}


# -- disk -------------------------------------------------------------------------------------


def _numbers(config: RunConfig, name: str, shape: Shape, frames: int) -> Stored:
    """A variable of numbers, of so many frames: observables, clocks, counters."""
    itemsize = _itemsize(name) if name in STANDARD else 8
    frame = math.prod(shape) * itemsize
    size = plan_disk.numbers(config, name, shape, frames)
    return Stored(name, frame, frames * frame, size)


def _stored(name: str, shape: Shape, itemsize: int, frames: int, kept: float = 1.0) -> Stored:
    """A field, of which compression keeps a part."""
    frame = math.prod(shape) * itemsize
    total = frames * frame
    return Stored(name, frame, total, math.ceil(kept * total))


def _fixed(name: str, count: int, itemsize: int) -> Stored:
    """Coordinates: written once, and not compressed."""
    return Stored(name, 0, count * itemsize, count * itemsize)


def _itemsize(name: str) -> int:
    return np.dtype(STANDARD[name].dtype).itemsize


def _kept(block: int) -> float:
    """What compression leaves of float32 means of blocks."""
    blocks, means = np.array(MEANS).T
    return float(np.interp(math.log2(block), np.log2(blocks), means / 4))


def file_bytes(config: RunConfig, stored: Sequence[Stored], frames: int) -> int:
    """Bytes of a finished file, estimated after compression."""
    variables = [(s.frame, frames) for s in stored if s.frame]
    names = {s.name for s in stored}
    dimensions = 1 + (config.members > 1) + 2 * ("coarse_magnetization" in names)
    dimensions += 2 * bool(names & {"spin", "spin_bits"}) + ("species" in names)
    axis = getattr(config, "axis", "")  # of systems that are never cut, if they have one
    dimensions += bool(axis) and bool(config.saved().get("profile"))
    dimensions += 4 * ("sro" in names)
    return plan_disk.around(variables, dimensions) + sum(s.compressed for s in stored)


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
    unit, what : what sides are counted in, and what members are, in words
    whole : a single one is computed by every rank
    on_device : bytes on the GPU of the rank that has the most, by what they are for; {} without
    """

    config: RunConfig
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
    on_device: dict[str, int] = field(default_factory=dict)
    unit: str = "sites"
    what: str = "lattices"
    whole: bool = False

    @property
    def rank_bytes(self) -> int:
        """Memory of rank 0, which needs the most, beyond the interpreter."""
        return sum(self.memory.values())

    def machine_bytes(self, ranks: int) -> int:
        """Memory of a machine with so many of the ranks, rank 0 among them."""
        each = self.rank_bytes - self.first_only + interpreter(self.config)[0]
        return ranks * each + self.first_only

    @property
    def device_bytes(self) -> int:
        """Memory of a GPU that a rank takes."""
        return sum(self.on_device.values())

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

    def facts(self) -> dict[str, Any]:
        """What :meth:`text` tells, for programs: bytes, numbers, texts, lists and dicts."""
        numbers = asdict(replace(self, config=None))  # type: ignore[arg-type]
        return numbers | {
            "config": json.loads(self.config.model_dump_json()),
            "rank_bytes": self.rank_bytes,
            "device_bytes": self.device_bytes,
            "machine_bytes": self.machine_bytes(self.ranks),
            "raw_bytes": self.raw_bytes,
            "disk_bytes": self.disk_bytes,
        }

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
            ("frames", f"{_about(self.exact)}{self.frames}, {_spacing(config)}"),
            ("memory", f"{_size(self.rank_bytes)} of rank 0: " + _parts(self.memory)),
            ("", f"{_size(self.rank_bytes - self.first_only)} of other ranks" * (self.ranks > 1)),
            (
                "",
                f"{_size(running)} more a rank for Python and MPI, "
                f"{_size(compiling)} where kernels are compiled",
            ),
            ("", f"{_size(total)} in all"),
            ("", self._device()),
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
            return f"{self.config.members} {self.what} of {size} {unit}, {here} a rank"
        tiles = _sides(self.largest)
        if self.smallest != self.largest:
            tiles = f"{_sides(self.smallest)} to {tiles}"
        if self.whole:
            return f"{size} {unit}, whole on every rank"
        grid = f" in a grid of {_sides(self.grid)} tiles" if self.ranks > 1 else ""
        return f"{size} {unit}{grid}, {tiles} a rank"

    def _device(self) -> str:
        size = f"{_size(self.device_bytes)} on the GPU a rank: {_parts(self.on_device)}"
        return size if self.on_device else ""

    def _time(self) -> str:
        t = self.timing
        if t is None:
            return "not measured: --measure makes a few steps here"
        value, low, high = map(_duration, t.seconds)
        return (
            f"about {value} ({low} to {high}) from {t.step:.3g} s a {t.unit} and {t.frame:.3g} s a "
            f"frame, without writing; {t.start:.1f} s to start"
        )


def _about(exact: bool) -> str:
    return "" if exact else "at most "


def _spacing(config: RunConfig) -> str:
    """How far frames are apart."""
    growing = getattr(config, "frames_per_decade", None)
    if growing is None:
        return f"one every {config.save_every:g}"
    return f"the first after {config.save_every:g}, then {growing} a decade"


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


def planned(
    config: RunConfig,
    ranks: int,
    memory: dict[str, int],
    stored: tuple[Stored, ...],
    *,
    own: int,
    making: int,
    checkpoint: int,
    gathered: int,
    stacked: int = 2,
    on_device: dict[str, int] | None = None,
    **said: Any,
) -> Plan:
    """The plan of a run, from what is known of the state and of the file.

    Parameters
    ----------
    memory : bytes of the state and of what advances it
    on_device : bytes on a GPU, which count where the run computes there
    own, making, stacked : of a frame, see :func:`file_memory`
    checkpoint : bytes of one in its file
    gathered : bytes of all that rank 0 has in memory while it makes one, as far as it is more
    said : the other attributes of :class:`Plan`, of which many follow from the options
    """
    batch, frames = -(-config.members // ranks), frames_of(config)
    memory = memory | file_memory(
        stored, config, frames, ranks, own=own, making=making, stacked=stacked
    )
    known: dict[str, Any] = {"exact": True, "members_here": (config.members // ranks, batch)}
    named = said.pop("gathered_as", "checkpoint")
    if on_device and config.device == "cuda":
        known["on_device"] = on_device | {"CUDA": CONTEXT}
    return Plan(
        config=config,
        ranks=ranks,
        frames=frames,
        memory=memory | {named: gathered},
        first_only=memory["frames received"] + gathered,
        stored=stored,
        checkpoint=checkpoint,
        **(known | said),
    )


def frames_of(config: RunConfig) -> int:
    """How many a run will have, at most."""
    return config.frames_due().last + 1


def cut_as(layout: Layout) -> dict[str, Any]:
    """What a plan says of a lattice that is cut."""
    return {
        "shape": layout.lattice.shape,
        "grid": layout.ranks_grid,
        "smallest": share(layout, most=False),
        "largest": share(layout, most=True),
    }


def share(layout: Layout, most: bool) -> Shape:
    """Sides of the largest (smallest) tile. Of a layout with many ranks too: without a loop, unless
    the last unit of a side is shorter than others."""
    out = []
    for side, unit, n in zip(layout.lattice.shape, layout.units, layout.ranks_grid, strict=True):
        units = -(-side // unit)
        if side % unit == 0:
            out.append(unit * (-(-units // n) if most else units // n))
            continue
        edges = [split(units, n, part) for part in range(n)]
        sides = [min(unit * end, side) - unit * start for start, end in edges]
        out.append(max(sides) if most else min(sides))
    return tuple(out)
