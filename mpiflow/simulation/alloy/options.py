"""Options of ``mpiflow simulate alloy``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from mpiflow.core import inputs
from mpiflow.core.errors import InputError
from mpiflow.simulation import common_options as common
from mpiflow.simulation.option_values import Names, Numbers, ThreeSides
from mpiflow.simulation.options import FRAMES, StartConfig, idle, option
from mpiflow.systems.alloy import ELEMENTS, Alloy


class AlloyConfig(StartConfig):
    """``mpiflow simulate alloy``: what to simulate, and what to save of it."""

    system: Literal["alloy"] = "alloy"
    SAVED: ClassVar[tuple[str, ...]] = ("species",)
    kinds: ClassVar[tuple[str, ...]] = ("random",)

    cells: ThreeSides = option(
        ...,
        "Cubic cells a side, or LXxLYxLZ; a cell has two sites.",
        metavar="CELLS",
        allowed="a number of cells a side from 4 on, or LXxLYxLZ",
        remedy="Try 8.",
    )
    temperature: float = common.temperature(
        description="Temperature in K.",
        allowed="a finite number of K above 0",
        remedy="Try 2000.",
    )
    vacancies: int | None = option(
        None,
        "Vacancies of a lattice.",
        shown="1, or those of the initial file",
        ge=1,
        allowed="1 to half of the sites",
        remedy="Try one for each 1024 sites.",
    )
    hops: int | None = option(
        None,
        "Hops to simulate; instead of a time.",
        ge=1,
        allowed="a whole number above 0",
        remedy="Try 100000.",
    )
    time: float | None = common.time(
        default=None,
        description="Time to simulate in s; instead of hops.",
        allowed="a finite number of seconds above 0",
        remedy="Try 5e-6.",
    )
    save_every: float | None = common.save_every(
        description="Time in s, or hops, between saved frames.",
        shown=f"a {FRAMES}th of the run",
        allowed="a finite number above 0, whole for hops",
        remedy="Leave it out.",
    )
    barriers: str = option(
        "default",
        "Model of the barriers: default, the published weights.npy, or a .safetensors file of "
        "mpiflow import-nnk.",
        metavar="default|PATH",
        allowed="default, or the path of a model",
    )
    axis_order: Literal["nkk", "paper"] = option(
        "nkk",
        "Axis order of the published network: nkk, as it was trained, or paper, as it was used.",
    )
    elements: Names = option(
        ELEMENTS,
        "Names of the elements, with commas.",
        shown=",".join(ELEMENTS),
        metavar="NAMES",
        allowed="different names, with commas, as many as the barriers know",
        remedy="Leave it out.",
    )
    composition: Numbers | None = option(
        None,
        "Parts of the elements, or exact numbers of atoms, with commas.",
        shown="equal parts",
        metavar="PARTS",
        allowed="a number of 0 or more for each element",
        remedy="Try 1,1,1.",
    )
    initial: str = common.initial(
        kinds,
        "random, or the path of a LAMMPS dump or data file, an extended XYZ, POSCAR or CIF file, "
        "or of a run saved with --species.",
        file="the path of an existing file",
    )
    solver: Literal["serial", "absorbing", "tiled"] = option(
        "serial",
        "serial: exact, one rank for each lattice. absorbing: exact too, for the cold: flicker is "
        "drawn as a whole. tiled: any number of ranks.",
        remedy="Use tiled on several ranks.",
    )
    window: float | None = option(
        None,
        "Window of the tiled solver in s.",
        shown="each chosen during the run, for about 2 hops of a vacancy",
        gt=0,
        allowed="a number of seconds above 0 that divides --save-every",
    )
    tile: ThreeSides | None = option(
        None,
        "Points of a tile of the tiled solver along each axis, two to a cell; whole sides are "
        "not cut.",
        shown="slabs, 16 along x",
        metavar="TILE",
        allowed="whole sides, or even numbers from 6 that go an even number of times into them",
    )
    species: bool = option(False, "Save the species of all sites too, one byte each.")
    ranks_grid: ThreeSides | None = common.ranks_grid(
        description="Ranks along x, y and z.",
        metavar="NX,NY,NZ",
        shown="slabs along x",
        allowed="three positive numbers whose product is the number of ranks",
    )

    def files(self) -> dict[str, tuple[Path, ...]]:
        """The barriers, unless they come with mpiflow, and the initial state."""
        barriers = {} if self.barriers == "default" else {"barriers": (Path(self.barriers),)}
        return barriers | super().files()

    @model_validator(mode="after")
    def _check(self) -> Self:
        Alloy(self.temperature, self.elements)
        if min(self.cells) < 4:
            raise InputError("cells", self.cells, "4 or more a side", "Try 8.")
        if (self.hops is None) == (self.time is None):
            raise InputError(
                "hops, time", (self.hops, self.time), "one of the two", "Try --hops 100000."
            )
        if self.solver != "tiled":
            self._refuse(f"with the {self.solver} solver", "window", "tile")
        if self.device == "cuda" and self.solver != "tiled":
            raise idle("device", "cuda", f"with the {self.solver} solver; use --solver tiled")
        if self.hops is not None:
            self._check_hops(self.hops)
        elif self.time is not None:
            self._check_intervals(self.time, self.window, "window")
        if self.barriers != "default":
            self.__dict__["barriers"] = inputs.absolute(self.barriers)
        self._check_file(frames_too=True)
        if self.initial == "random":
            self._fill("vacancies", 1)
        else:
            self._refuse("with an initial file, which has one", "composition")
        return self

    def _check_hops(self, hops: int) -> None:
        self._fill("save_every", float(max(1, hops // FRAMES)))
        every = self.save_every or 0.0
        if every != math.floor(every):
            raise InputError("save_every", every, "a whole number of hops", "Round it.")
        self._check_intervals(hops, unit="hops")
        if self.members > 1:
            raise InputError(
                "hops", hops, "a time, with several members: their clocks differ", "Use --time."
            )
