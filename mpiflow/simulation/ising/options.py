"""Options of ``mpiflow simulate ising``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, Self

from pydantic import (
    model_validator,
)

from mpiflow.core.schedule import spacing
from mpiflow.simulation.spins.options import SpinConfig

if TYPE_CHECKING:  # it imports h5py: not for the sake of --help
    pass
from mpiflow.simulation.options import FRAMES, Grid, Step, idle, option


class IsingConfig(SpinConfig):
    """``mpiflow simulate ising``: what to simulate, and what to save of it."""

    system: Literal["ising"] = "ising"

    temperature: float = option(
        ...,
        "Temperature in units of J / k_B.",
        gt=0,
        allowed="a finite number above 0",
        remedy="Try 2.269 (critical).",
    )
    coupling: float = option(
        1.0,
        "Coupling J: 1 is the ferromagnet, -1 the antiferromagnet.",
        allowed="a finite number",
        remedy="Try 1.",
    )
    solver: Literal["sublattice", "nfold", "tiled-nfold"] = option(
        "sublattice",
        "sublattice: fixed step, any number of ranks. nfold: exact, one rank for each lattice. "
        "tiled-nfold: events in tiles, any number of ranks, for low temperature.",
        allowed="'sublattice', 'nfold' or 'tiled-nfold'",
        remedy="Use sublattice.",
    )
    kernel: Literal["auto", "packed", "sliced", "plain"] = option(
        "auto",
        "Of the sublattice solver: packed (bits; a multiple of 8 rows and 128 columns), sliced "
        "(bits; many small lattices) or plain (bytes, any size). Same law, each its own bits.",
        allowed="'auto', 'packed', 'sliced' or 'plain'",
        remedy="Leave it out.",
    )
    tile: int | None = option(
        None,
        "Side of the tiles of tiled-nfold, in sites.",
        shown="64 for tiled-nfold",
        ge=2,
        allowed="2 to 255, an even number of times in every side",
        remedy="Try 64.",
    )
    dt: Step | None = option(
        None,
        "Time step of the sublattice solver in attempts per spin, inf for checkerboard sweeps; "
        "window of tiled-nfold.",
        shown="0.25, tiled-nfold 1",
        gt=0,
        allow_inf_nan=True,
        allowed="a number above 0, or inf",
        remedy="Try 0.25.",
    )
    ranks_grid: Grid | None = option(
        None,
        "Ranks along y and x.",
        metavar="NY,NX",
        shown="the shortest boundaries",
        allowed="two positive numbers NY,NX whose product is the number of ranks",
        remedy="Leave it out to let mpiflow choose.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        lattice = self._check_lattice()
        if self.solver == "sublattice":
            lattice.require_bipartite()
            self._fill("dt", 0.25)
        elif self.kernel != "auto":
            raise idle("kernel", self.kernel, f"with the {self.solver} solver, which has one")
        if self.solver == "tiled-nfold":
            self._fill("dt", 1.0)  # no bias seen at this window (docs/performance.md)
            self._fill("tile", 64)
        elif self.tile is not None:
            raise idle("tile", self.tile, f"with the {self.solver} solver, which has none")
        if self.solver == "nfold" and self.dt is not None:
            raise idle("dt", self.dt, "with the nfold solver, which has no step")
        step = self.dt if self.dt is not None and math.isfinite(self.dt) else 1.0
        if self.solver == "nfold":
            self._fill("save_every", spacing(self.time, FRAMES))
        self._fill("save_every", spacing(self.time, FRAMES, step))
        self._check_intervals(self.time, self.save_every, "dt")
        self._check_initial()
        if self.ranks_grid is not None and self.members > 1:
            raise idle("ranks_grid", self.ranks_grid, "with several members, dealt to the ranks")
        return self
