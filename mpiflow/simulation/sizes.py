"""Bytes that a run takes in memory and in files, by what they are for.

Of spins and species they follow from how arrays are laid out; of the rest they were measured on
the reference machine. tests/run/test_plan.py holds them against real runs.
"""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np

from mpiflow.core.lattice import Shape
from mpiflow.core.packed import WORD_SITES
from mpiflow.files.schema import STANDARD
from mpiflow.simulation import disk as plan_disk
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.ensemble_options import CurieWeissConfig, EnsembleConfig
from mpiflow.simulation.field.options import FieldConfig
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.options import IsingConfig, RunConfig, SpinConfig
from mpiflow.solvers.vacancy.tiled import TiledKMC
from mpiflow.systems.ising import CLASSES
from mpiflow.systems.kac import kac_kernel

RunConfigs = IsingConfig | KacConfig | AlloyConfig | FieldConfig | EnsembleConfig

#: Bytes that the kernels of a run take, from the cache, and more where they are compiled: 25 to 47
#: MB and up to 115 MB in all systems. Of Python, MPI and the packages see :func:`interpreter`.
KERNELS, COMPILING = 32_000_000, 115_000_000
#: The most that an interpreter may take, for a look whether it has to be measured, and what it took
#: where it cannot be: with and without PyTorch.
LARGE, _WITH_TORCH, _WITHOUT = 2_000_000_000, 480_000_000, 245_000_000
_EMPTY = """
import importlib, sys
from mpi4py import MPI
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


def interpreter(config: RunConfigs) -> tuple[int, int]:
    """Bytes of a rank without a state, and where kernels are compiled.

    Python, MPI and the packages take what they do on this machine: a process that imports what the
    run will is started once, for a second or two. That of the caller may hold anything.
    """
    run = empty_process(
        "mpiflow.run.predict" if isinstance(config, FieldConfig) else "mpiflow.run.simulate"
    )
    return run + KERNELS, run + KERNELS + COMPILING


@functools.cache
def empty_process(module: str) -> int:
    """Largest resident set of a process that has started MPI and imported a module, in bytes."""
    mpi = ("OMPI_", "PMI", "PRTE_", "SLURM_", "HYD")  # a process of its own, no rank of this job
    env = {k: v for k, v in os.environ.items() if not k.startswith(mpi)}
    command = [sys.executable, "-c", _EMPTY, module]
    try:
        done = subprocess.run(  # noqa: S603 - this very Python
            command, env=env, capture_output=True, text=True, timeout=120, check=True
        )
        return 1024 * int(done.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError):
        return _WITH_TORCH if module == "mpiflow.run.predict" else _WITHOUT


# -- memory ----------------------------------------------------------------------------------


def spin_memory(
    config: IsingConfig | KacConfig, kernel: str, tile: Shape, batch: int
) -> dict[str, int]:
    """Bytes of the state and of what advances it."""
    ny, nx = tile
    sites = batch * ny * nx
    padded = batch * (ny + 2) * (nx + 2)
    if kernel == "packed":
        padded = 16 * batch * (ny + 2) * (nx // WORD_SITES + 2)
        sites_bytes, black = sites // 8, padded // 2
    else:
        sites_bytes, black = sites, padded
    memory = {"field": sites_bytes, "halo": padded - sites_bytes}
    if isinstance(config, KacConfig):
        return memory | {"fields of sites": _kac_memory(config, ny, nx, batch)}
    if config.solver == "sublattice" and not math.isinf(config.dt or 1.0):
        # A copy of what is looked at, and for a moment one more.
        memory["looking at a frame"] = 2 * black
    elif config.solver == "nfold":
        memory["lists of sites"] = 13 * sites + 160 * batch
    elif config.solver == "tiled-nfold":
        side = config.tile or 64
        tiles = sites // side**2
        memory["counts of tiles"] = (
            tiles * CLASSES * (side + 8) + sites // 8 + 4 * batch * (ny + nx)
        )
    return memory


def _kac_memory(config: KacConfig, ny: int, nx: int, batch: int) -> int:
    """The spins in reach, sums over neighbours and external fields."""
    sites = batch * ny * nx
    padded = batch * (ny + 2 * kac_kernel(config.gamma).reach) * nx
    external = 0 if config.field_file is None else 4 * ny * nx
    if config.solver == "gillespie":
        return 14 * sites + external
    band = 4 * min(sites, max(2**21, batch * 128 * nx))
    if config.method == "fft":
        band = 40 * sites
    kept = 4 * sites if config.solver == "midpoint" or config.eps is not None else 0
    return padded * (2 if config.solver == "midpoint" else 1) + band + kept + external


def alloy_memory(config: AlloyConfig, tile: Shape, batch: int) -> dict[str, int]:
    """Bytes of the state and of what knows its vacancies."""
    points, padded = math.prod(tile), math.prod(n + 2 * TiledKMC.halo for n in tile)
    mine = -(-(config.vacancies or 1) * points // math.prod(2 * n for n in config.cells))
    lists = batch if config.solver == "serial" else 1
    return {
        "field": batch * points,
        "halo": batch * (padded - points),
        # The list, the tree and the table of known rates of vacancies.
        "vacancies": lists * (160 * mine + 1536 * min(1024, 4 * mine)),
    }


def field_memory(
    config: FieldConfig, structure: str, rows: int, batch: int, ranks: int
) -> dict[str, int]:
    """Bytes of the state, of J and of what is needed for a moment.

    Measured with tracemalloc in bytes a block.
    """
    (ny, nx), langevin = config.shape, structure == "langevin"
    blocks, cut = batch * rows * nx, ranks if config.members == 1 else 1
    step = 56 if cut > 1 else 40  # transposes need copies
    looking = 64 if langevin else 48
    return {
        "field": (8 if langevin else 4) * blocks,
        "coupling": 8 * ny * -(-(nx // 2 + 1) // cut),
        "means": 8 * blocks,
        "step or frame": max(step, looking) * blocks,
    }


def ensemble_memory(config: EnsembleConfig, batch: int) -> dict[str, int]:
    """Bytes of the state, and of the table of rates of a mean field."""
    if isinstance(config, CurieWeissConfig):
        return {"field": 40 * batch, "rates": 16 * config.sites}
    row = 8 * (config.shape[-1] + 2) * len(config.profiles)  # with its halo
    return {"field": batch * row, "scratch": 2 * row}


def file_memory(
    stored: Sequence[Stored], config: RunConfigs, sites: int, frames: int, ranks: int
) -> dict[str, int]:
    """A frame in the making, and those that wait to be written, of the rank that has the most.

    ``sites`` are its own; of profiles their bytes.
    """
    frame = max(1, sum(s.frame for s in stored))
    waiting = min(frames, -(-HELD // frame))
    # Rank 0 alone writes without parallel HDF5, and then receives whole frames.
    alone = config.writer == "gather" or (ranks > 1 and not h5py.get_config().mpi)
    spins = getattr(config, "spins", False) or getattr(config, "species", False)
    coarse = getattr(config, "coarse", None)
    own = sites * spins + 4 * sites // coarse**2 if coarse else sites * spins
    # Of an alloy also the places of its sites: a mask of all points, and three indices.
    making = sites * (spins + 28 * isinstance(config, AlloyConfig) * spins)
    field = isinstance(config, FieldConfig)  # its means are counted, and a step needs more
    making += 16 * sites // coarse**2 if coarse and not field else 0
    if isinstance(config, EnsembleConfig):
        own = making = sites * config.saves_profiles
    # Several are stacked before they are written.
    held = waiting * min(frame, own + 512) * (2 if waiting > 1 and not field else 1)
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


def spin_variables(config: SpinConfig, frames: int) -> tuple[Stored, ...]:
    """What a file of spins holds."""
    members: Shape = (config.members,) if config.members > 1 else ()
    (ly, lx), coarse = config.size, config.coarse
    out = [_numbers(config, "time", (), frames)]
    for name in ("magnetization", "energy", "domain_wall_density", "flips"):
        out.append(_numbers(config, name, members, frames))
    axes = 0
    if coarse is not None:
        sides = ly // coarse, lx // coarse
        name, kept = "coarse_magnetization", _kept(coarse)
        out.append(_stored(name, (*members, *sides), _itemsize(name), frames, kept))
        axes += sum(sides)
    if config.spins:
        out.append(_stored("spin", (*members, ly, lx), _itemsize("spin"), frames, SPIN))
        axes += ly + lx
    if config.spin_bits:
        out.append(_stored("spin_bits", (*members, ly, lx // 8), 1, frames))
        axes += ly * (not coarse or coarse > 1) + lx // 8
    return (*out, _fixed("coordinates", axes + sum(members), 8))


def field_variables(config: FieldConfig, structure: str, frames: int) -> tuple[Stored, ...]:
    """What a file of a learned field holds."""
    members: Shape = (config.members,) if config.members > 1 else ()
    kept = _kept(config.block or 1) if structure == "cosh" else REAL / 4
    name = "coarse_magnetization"
    return (
        _numbers(config, "time", (), frames),
        *(_numbers(config, n, members, frames) for n in ("magnetization", "free_energy")),
        _stored(name, (*members, *config.shape), _itemsize(name), frames, kept),
        _fixed("coordinates", sum(config.shape) + sum(members), 8),
    )


def ensemble_variables(config: EnsembleConfig, frames: int) -> tuple[Stored, ...]:
    """What a file of systems that are whole on a rank holds."""
    members: Shape = (config.members,) if config.members > 1 else ()
    out = [_numbers(config, "time", (), frames)]
    out += [_numbers(config, name, members, frames) for name in config.scalars]
    along = 0
    if config.saves_profiles:
        along = config.shape[-1]
        for name in config.profiles:
            out.append(_stored(name, (*members, along), _itemsize(name), frames, DOUBLE / 8))
    return (*out, _fixed("coordinates", along + sum(members), 8))


def alloy_variables(config: AlloyConfig, sites: int, frames: int) -> tuple[Stored, ...]:
    """What a file of an alloy holds."""
    members: Shape = (config.members,) if config.members > 1 else ()
    kinds = len(config.elements)
    pairs = kinds * (kinds + 1) // 2
    shapes: dict[str, Shape] = {
        "sro": (pairs,),
        "warren_cowley": (pairs,),
        "long_range_order": (kinds,),
        "bonds": (kinds + 1, kinds + 1),
        "hops": (),
    }
    out = [_numbers(config, "time", (), frames)]
    out += [_numbers(config, name, (*members, *shape), frames) for name, shape in shapes.items()]
    if config.solver == "tiled":
        out += [_numbers(config, name, (), frames) for name in ("window", "windows")]
    if config.species:
        out.append(_stored("species", (*members, sites), 1, frames, SPECIES))
    places = sites if config.species else 0
    # Names are references of 16 bytes to text elsewhere in the file.
    names = pairs + kinds + 2 * (kinds + 1)
    return (*out, _fixed("coordinates", places + sum(members), 8), _fixed("names", names, 16))


def file_bytes(config: RunConfigs, stored: Sequence[Stored], frames: int) -> int:
    """Bytes of a finished file, estimated after compression."""
    variables = [(s.frame, frames) for s in stored if s.frame]
    names = {s.name for s in stored}
    dimensions = 1 + (config.members > 1) + 2 * ("coarse_magnetization" in names)
    dimensions += 2 * bool(names & {"spin", "spin_bits"}) + ("species" in names)
    dimensions += any(name.endswith("_profile") for name in names)
    dimensions += 4 * isinstance(config, AlloyConfig)
    return plan_disk.around(variables, dimensions) + sum(s.compressed for s in stored)
