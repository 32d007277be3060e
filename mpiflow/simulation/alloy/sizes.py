"""Sizes of runs of alloys."""

from __future__ import annotations

import math

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, Shape
from mpiflow.simulation.alloy.layout import cut, default_tile
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.sizes import (
    IMAGES,
    SPECIES,
    Plan,
    Stored,
    _fixed,
    _numbers,
    _sides,
    _stored,
    cut_as,
    frames_of,
    planned,
    share,
)
from mpiflow.solvers.vacancy.absorbing import KEPT_BYTES, STATE_BYTES
from mpiflow.solvers.vacancy.cuda import KNOWN, LISTED, places
from mpiflow.solvers.vacancy.rates import table_sets
from mpiflow.solvers.vacancy.tiled import TiledKMC

#: Bytes of the largest barrier models, and more.
MODEL = 16_000_000


def alloy_memory(config: AlloyConfig, tile: Shape, batch: int) -> dict[str, int]:
    """Bytes of the state and of what knows its vacancies."""
    points, padded = math.prod(tile), math.prod(n + 2 * TiledKMC.halo for n in tile)
    mine = -(-(config.vacancies or 1) * points // math.prod(2 * n for n in config.cells))
    tiled, absorbing = config.solver == "tiled", config.solver == "absorbing"
    lists = 1 if tiled else batch
    return {
        "field": batch * points,
        "halo": batch * (padded - points),
        # The boxes, kept so that a window can be taken back.
        "before a window": (tiled and config.device == "cpu") * batch * padded,
        # The list, the tree and the table of known rates of vacancies.
        "vacancies": lists * (160 * mine + 1536 * min(1024, 4 * mine)),
        # States, links and rates of basins; who can be at a site, and the grid that was left.
        "basins": absorbing * batch * (STATE_BYTES * mine + 5 * padded),
    }


def _on_device(
    config: AlloyConfig, box: Shape, tile: Shape, batch: int, cut: bool
) -> dict[str, int]:
    """Bytes on a GPU of the boxes, twice where windows are tried, and of what is known of tiles."""
    padded = batch * math.prod(n + 2 * TiledKMC.halo for n in box)
    tiles = batch * math.prod(box) // math.prod(tile)
    everyone = max(1, batch * (config.vacancies or 1))
    classes = 2 ** sum(n > t for n, t in zip(box, tile, strict=True))
    listed = places(everyone, tiles, tiles // classes)
    return {
        "field": padded * 2,
        "vacancies": LISTED * listed + tiles * (96 + KNOWN * table_sets(-(-everyone // tiles))),
        "sites for other ranks": cut * 32 * tiles * math.prod(n // 2 + 1 for n in tile),
        "barriers": MODEL,
    }


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


def plan(config: AlloyConfig, ranks: int) -> Plan:
    """What a run will need."""
    lattice, batch = Lattice(tuple(2 * n for n in config.cells)), -(-config.members // ranks)
    absorbing = config.solver == "absorbing"
    sites, serial, one = lattice.sites // 4, config.solver != "tiled", config.members == 1
    if serial and one and ranks > 1:
        allowed = f"1 for a lattice with the {config.solver} solver"
        raise InputError("ranks", ranks, allowed, "Use tiled.")
    tile = lattice.shape
    if not serial:
        tile = default_tile(lattice.shape) if config.tile is None else config.tile
    layout = Layout(lattice, (1, 1, 1))
    if one:
        layout = cut(lattice, ranks, tile, config.ranks_grid)
    largest = share(layout, most=True)
    # All points of the grid, of which one in four is a site; the rest compresses to nothing.
    own = math.prod(largest) // 4 * batch * config.species
    windows = ""
    if config.window is not None and config.time is not None:
        windows = f", {round(config.time / config.window)} windows of {config.window:g} s"
    far = f"{config.hops} hops" if config.hops is not None else f"{config.time:g} s"
    memory = alloy_memory(config, largest, batch)
    return planned(
        config,
        ranks,
        memory,
        alloy_variables(config, sites, frames_of(config)),
        own=own,
        making=29 * own,  # of a site also its place: a mask of all points, and three indices
        checkpoint=(sites + KEPT_BYTES * (config.vacancies or 1) * absorbing) * config.members,
        gathered=IMAGES * lattice.sites * config.members,
        kernel=f"{config.solver} solver"
        if serial
        else f"tiled solver, tiles of {_sides(tile)} points",
        steps=far + windows,
        # A window of the tiled solver may hold more hops than lie between frames.
        exact=serial or config.hops is None,
        on_device=_on_device(config, largest, tile, batch, layout.ranks > 1),
        unit="points",
        **cut_as(layout),
    )
