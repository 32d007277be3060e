"""Sizes of runs of Ising spins, and by which kernel they go."""

from __future__ import annotations

import math

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, Shape
from mpiflow.core.packed import cut_of, words_across
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.ising.simulation import SMALLER_UNITS, packs
from mpiflow.simulation.lattice import cut
from mpiflow.simulation.sizes import Plan, share
from mpiflow.simulation.spins import sizes
from mpiflow.solvers.spins.sublattice import SLICED_SITES
from mpiflow.systems.ising import CLASSES


def plan(config: IsingConfig, ranks: int) -> Plan:
    """What a run will need."""
    lattice, batch = Lattice(config.size), -(-config.members // ranks)
    kernel, unit = kernel_of(config, lattice)
    if config.solver == "nfold":
        sizes.require_one_rank(config, config.solver, ranks)
    layout = Layout(lattice, (1, 1), config.coarse or 1)
    if config.members == 1:
        layout = cut(
            lattice,
            ranks,
            ranks_grid=config.ranks_grid,
            granularity=config.coarse or 1,
            unit=unit,
            smaller=SMALLER_UNITS.get(kernel, ""),
        )
    memory = _memory(config, kernel, share(layout, most=True), batch)
    named = f"sublattice solver, {kernel} kernel" if config.solver == "sublattice" else kernel
    return sizes.plan(
        config,
        ranks,
        layout,
        memory,
        kernel=named,
        on_device=_on_device(memory, kernel),
        steps=sizes.steps_of(config, None if config.solver == "nfold" else config.dt),
        order=4 * (config.solver == "nfold"),  # it goes on with its lists of sites in their order
    )


def _on_device(memory: dict[str, int], kernel: str) -> dict[str, int]:
    """What of it lies on a GPU: the state, fields, a copy for frames; also bits, if sliced."""
    state = memory["field"] + memory["halo"]
    there = {"field": state, "fields of sites": memory.get("fields of sites", 0)}
    bits = state // 8 if kernel == "sliced" else 0
    looks = bits or memory.get("looking at a frame", 0) // 2
    back = state * (kernel == "tiled-nfold")
    return there | {"bits": bits, "looking at a frame": looks, "steps taken back": back}


def kernel_of(config: IsingConfig, lattice: Lattice) -> tuple[str, Shape]:
    """Which kernel advances it, and in units of how many sites tiles are cut."""
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
    if config.in_site_field:
        return "plain", (1, 1)
    if packs(config.kernel, lattice, config.members):
        return "packed", cut_of(lattice)
    kernel = ("sliced" if small else "plain") if config.kernel == "auto" else config.kernel
    return kernel, (1, 1)


def _memory(config: IsingConfig, kernel: str, tile: Shape, batch: int) -> dict[str, int]:
    """Bytes of the state and of what advances it."""
    ny, nx = tile
    sites = batch * ny * nx
    padded = batch * (ny + 2) * (nx + 2)
    if kernel == "packed":
        padded = 16 * batch * (ny + 2) * (words_across(nx) + 2)
        sites_bytes, black = sites // 8, padded // 2
    else:
        sites_bytes, black = sites, padded
    memory = {"field": sites_bytes, "halo": padded - sites_bytes}
    if config.in_site_field:
        memory["fields of sites"] = 8 * ny * nx
    elif config.solver == "sublattice" and not math.isinf(config.dt or 1.0):
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
