"""Options of ``mpiflow import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from mpiflow.core.errors import InputError
from mpiflow.simulation import common_options as common
from mpiflow.simulation.option_values import Grid, Names
from mpiflow.simulation.options import Config, idle, option
from mpiflow.systems.alloy import ELEMENTS


def _paths(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


class ImportConfig(Config):
    """Write trajectories of other programs to the file of a run.

    NumPy stacks (.npy, .npz), OVF 1.0 and 2.0, LAMMPS dumps and data, SPPARKS dumps, extended XYZ,
    POSCAR, CIF, netCDF and zarr are known by their content. Several files follow one another.
    """

    files: Annotated[tuple[Path, ...], BeforeValidator(_paths)] = option(
        ...,
        "Files of one format, in the order of time.",
        metavar="FILES...",
        min_length=1,
        allowed="one file or more",
        remedy="Name them.",
    )
    out: Path = option(
        ...,
        "Trajectory file to write (HDF5, opens as netCDF4).",
        allowed="a path in an existing folder",
        remedy="Try run.h5.",
    )
    overwrite: bool = option(False, "Replace an existing file.")
    quiet: bool = option(False, "Show nothing.")
    variable: str | None = option(
        None,
        "Array of an .npz, variable of netCDF or zarr, or column of atoms.",
        shown="the only one",
        allowed="the name of an array, a variable or a column",
        remedy="Leave it out to be told the names.",
    )
    component: str | None = option(
        None,
        "Component of vectors: x, y, z, a label, or a number from 0.",
        shown="the only one",
        allowed="x, y, z, a label, or a number from 0",
        remedy="Try z.",
    )
    layer: int | None = option(
        None, "Layer along z of OVF, from 0.", shown="the only one", ge=0, remedy="Try 0."
    )
    lattice: Literal["auto", "square", "bcc"] = option(
        "auto",
        "Of atoms. square: a column of numbers; bcc: species. auto: square if all lie in a plane.",
    )
    elements: Names | None = option(
        None,
        "Names of the species of a bcc alloy, which are types 1, 2, ...",
        metavar="A,B,...",
        shown=f"those of the first frame, or {','.join(ELEMENTS)}",
        min_length=1,
        allowed="one name or more",
        remedy="Try Nb,Mo,Ta.",
    )
    kind: Literal["auto", "spins", "field", "states"] = option(
        "auto",
        "What sites hold. spins: 1 and -1. field: any numbers. states: whole numbers, as of a "
        "Potts model. auto: spins if the first frame is, else a field.",
    )
    states: Grid | None = option(
        None,
        "Lowest and highest state; implies --kind states.",
        metavar="LOW,HIGH",
        shown="those of the first frame",
        allowed="two whole numbers, the first not above the second",
        remedy="Try 1,8.",
    )
    offset: float = option(
        0.0,
        "Added to every value, before --scale.",
        remedy="Try -0.5 with --scale 2 for sites that are 0 or 1.",
    )
    scale: float = option(
        1.0,
        "Every value is multiplied by it. Learners want a field between -1 and 1.",
        allowed="a finite number but 0",
    )
    spacing: int | None = option(
        None,
        "Sites a side that a value of a field stands for: it is a mean of this number squared of "
        "spins.",
        shown="1",
        ge=1,
    )
    block: int | None = common.coarse(
        description="Sites a side of the blocks whose means are saved, as --coarse of simulate.",
        shown="of a field the spacing, of spins none",
        allowed="a multiple of the spacing that divides every side",
    )
    time_step: float | None = option(
        None,
        "Time between frames; times in the files do not count then.",
        shown="as in the files",
        gt=0,
        remedy="Try 1.",
    )
    time_unit: float | None = option(
        None,
        "What times in the files, or steps where they have none, are multiplied by.",
        shown="1",
        gt=0,
    )
    temperature: float | None = common.temperature(
        default=None,
        description="Temperature that the file says; learners want it.",
        shown="unknown",
    )
    field: float | None = common.field(
        default=None, description="External field h that the file says.", shown="unknown"
    )
    coupling: float | None = common.coupling(
        default=None,
        description="Coupling J between nearest neighbours: of spins the energy is saved, too.",
        shown="unknown",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.time_step is not None and self.time_unit is not None:
            raise idle("time_unit", self.time_unit, "with time_step")
        if self.states is not None:
            if self.kind not in ("auto", "states"):
                raise idle("states", self.states, f"with kind {self.kind}")
            if self.states[0] > self.states[1]:
                allowed = "two whole numbers, the first not above the second"
                raise InputError("states", self.states, allowed, "Try 1,8.")
            self.__dict__["kind"] = "states"
        if not self.scale:
            raise idle("scale", self.scale, "of 0, which leaves nothing")
        if self.spacing is not None and self.block is not None and self.block % self.spacing:
            raise idle("block", self.block, f"but a multiple of the spacing, {self.spacing}")
        return self
