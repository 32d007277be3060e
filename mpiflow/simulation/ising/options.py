"""Options of ``mpiflow simulate ising``."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import model_validator

from mpiflow.simulation import common_options as common
from mpiflow.simulation.option_values import Grid, Step
from mpiflow.simulation.options import idle, option
from mpiflow.simulation.spins.options import SpinConfig


class IsingConfig(SpinConfig):
    """``mpiflow simulate ising``: what to simulate, and what to save of it."""

    system: Literal["ising"] = "ising"

    temperature: float = common.temperature(remedy="Try 2.269 (critical).")
    coupling: float = common.coupling()
    solver: Literal["sublattice", "nfold", "tiled-nfold"] = option(
        "sublattice",
        "sublattice: fixed step, any number of ranks. nfold: exact, one rank for each lattice. "
        "tiled-nfold: events in tiles, any number of ranks, for low temperature.",
    )
    kernel: Literal["auto", "packed", "sliced", "plain"] = option(
        "auto",
        "Of the sublattice solver: packed (bits; even sides from 64 columns on), sliced "
        "(bits; many small lattices) or plain (bytes, any size). Same law, each its own bits.",
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
    dt: Step | None = common.dt(
        description="Time step of the sublattice solver in attempts per spin, inf for "
        "checkerboard sweeps; window of tiled-nfold; of nfold the time for which it holds what a "
        "schedule changes.",
        shown="0.25, tiled-nfold 1",
    )
    ranks_grid: Grid | None = common.ranks_grid()

    @model_validator(mode="after")
    def _check(self) -> Self:
        lattice = self._check_lattice()
        if self.solver == "sublattice":
            lattice.require_bipartite()
            self._fill("dt", 0.25)
            if self.in_site_field and self.kernel not in ("auto", "plain"):
                raise idle("kernel", self.kernel, "with fields of sites, which have the plain one")
        elif self.kernel != "auto":
            raise idle("kernel", self.kernel, f"with the {self.solver} solver, which has one")
        if self.solver == "tiled-nfold":
            self._fill("dt", 1.0)  # no bias seen at this window (docs/performance.md)
            self._fill("tile", 64)
        else:
            self._refuse(f"with the {self.solver} solver, which has none", "tile")
        whole = 1.0 if self.dt is not None and math.isinf(self.dt) else self.dt
        if self.solver == "nfold":
            whole = None
            if self.schedule is None:
                self._refuse("with the nfold solver, which has no step", "dt")
            self._fill("dt", None if self.schedule is None else 0.25)
        if self.drive is not None:
            from mpiflow.systems.ising import Ising  # compiles: not for the sake of --help

            self.drive.check(Ising(self.temperature, self.field, self.coupling))
        self._check_intervals(self.time, whole, "dt")
        self._check_initial()
        return self
