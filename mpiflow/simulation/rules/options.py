"""Options of systems that are a spin rule, and those of the Potts and Blume-Capel models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.schedule import spacing
from mpiflow.simulation.options import (
    FRAMES,
    Grid,
    Sides,
    StartConfig,
    Step,
    idle,
    listed,
    option,
)

if TYPE_CHECKING:  # they compile: not for the sake of --help
    from mpiflow.systems.rule import SpinRule

Fractions = Annotated[tuple[float, ...], BeforeValidator(listed)]


class RuleConfig(StartConfig):
    """Options of all systems that are a spin rule on a square lattice.

    A system of its own adds its parameters, and says with :meth:`rule` what they make.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("coarse", "spins")
    kinds: ClassVar[tuple[str, ...]] = ("shuffled", "random", "ordered")

    size: Sides = option(
        ...,
        "Sites a side, or LYxLX.",
        metavar="SIZE",
        allowed="a number of sites a side, or LYxLX",
        remedy="Try 64, or 64x128.",
    )
    solver: Literal["sublattice", "nfold"] = option(
        "sublattice",
        "sublattice: fixed step, any number of ranks. nfold: exact, one rank for each lattice, "
        "rules of up to 12 states.",
        allowed="'sublattice' or 'nfold'",
        remedy="Use sublattice.",
    )
    dt: Step | None = option(
        None,
        "Time step of the sublattice solver in attempts per site, inf for checkerboard sweeps.",
        shown="0.25",
        gt=0,
        allow_inf_nan=True,
        allowed="a number above 0, or inf",
        remedy="Try 0.25.",
    )
    time: float = option(
        ...,
        "Time to simulate, in attempts per site.",
        gt=0,
        allowed="a finite number above 0",
        remedy="Try 10.",
    )
    save_every: float = option(
        None,
        "Time between saved frames.",
        shown=f"a {FRAMES}th of the time, in whole steps",
        gt=0,
        allowed="a finite number above 0",
        remedy="Try 1.",
    )
    coarse: int | None = option(
        None,
        "Save the fraction of each state in blocks of this many sites a side too.",
        shown="none",
        ge=1,
        allowed="a divisor of every side of the lattice",
        remedy="Try 8.",
    )
    spins: bool = option(
        False,
        "Save the state of every site too, one byte each.",
        allowed="true or false",
        remedy="Try true.",
    )
    initial: str = option(
        "shuffled",
        "shuffled (exact numbers of sites in each state), random (independent sites), ordered "
        "(all in one state), or the path of a .npy file of states or of a run saved with --spins.",
        metavar="KIND|PATH",
        allowed="shuffled, random, ordered, or the path of a file",
        remedy="Try shuffled.",
    )
    initial_fractions: Fractions | None = option(
        None,
        "Fraction of the sites in each state at the start, A,B,..., of shuffled and random.",
        metavar="A,B,...",
        shown="equal ones",
        allowed="a number for each state, 0 or more, adding up to 1",
        remedy="Leave it out for equal ones.",
    )
    initial_state: int | None = option(
        None,
        "State of all sites at the start, of ordered.",
        shown="the first one",
        allowed="a state of the system",
        remedy="Leave it out.",
    )
    ranks_grid: Grid | None = option(
        None,
        "Ranks along y and x.",
        metavar="NY,NX",
        shown="the shortest boundaries",
        allowed="two positive numbers NY,NX whose product is the number of ranks",
        remedy="Leave it out to let mpiflow choose.",
    )

    def rule(self) -> SpinRule:
        """The system; raises :class:`~mpiflow.core.errors.InputError` for bad parameters."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _check(self) -> Self:
        lattice = Lattice(self.size)
        Layout(lattice, (1, 1), self.coarse or 1)
        step = None
        if self.solver == "sublattice":
            lattice.require_bipartite()
            self._fill("dt", 0.25)
            step = self.dt if self.dt is not None and math.isfinite(self.dt) else 1.0
        elif self.dt is not None:
            raise idle("dt", self.dt, "with the nfold solver, which has no step")
        self._fill("save_every", spacing(self.time, FRAMES, step))
        self._check_intervals(self.time, self.save_every, "dt")
        self._check_file()
        for name, kinds in (
            ("initial_fractions", ("shuffled", "random")),
            ("initial_state", ("ordered",)),
        ):
            if getattr(self, name) is not None and self.initial not in kinds:
                raise idle(name, getattr(self, name), f"with initial {self.initial}")
        if self.ranks_grid is not None and self.members > 1:
            raise idle("ranks_grid", self.ranks_grid, "with several members, dealt to the ranks")
        self._check_rule()
        return self

    def _check_rule(self) -> None:
        """The rule can be run, and has the states that are asked for."""
        rule = self.rule()
        if self.solver == "nfold":
            from mpiflow.solvers.spins.rule_tables import require_table

            require_table(rule)
        if self.initial_fractions is not None:
            from mpiflow.systems.rule import require_fractions

            require_fractions("initial_fractions", self.initial_fractions, rule.states)
        last = rule.lowest + rule.states - 1
        if self.initial_state is not None and not rule.lowest <= self.initial_state <= last:
            allowed = f"a state of the system, {rule.lowest} to {last}"
            raise InputError("initial_state", self.initial_state, allowed, "Leave it out.")


class PottsConfig(RuleConfig):
    """``mpiflow simulate potts``: what to simulate, and what to save of it."""

    system: Literal["potts"] = "potts"

    states: int = option(
        3, "Number of states q.", ge=2, le=127, allowed="2 to 127", remedy="Try 3."
    )
    temperature: float = option(
        ...,
        "Temperature in units of J / k_B.",
        gt=0,
        allowed="a finite number above 0",
        remedy="Try 0.995 (critical for 3 states).",
    )
    field: float = option(
        0.0, "External field h on the state 0.", allowed="a finite number", remedy="Try 0.1."
    )
    coupling: float = option(
        1.0,
        "Coupling J: 1 is the ferromagnet, -1 the antiferromagnet.",
        allowed="a finite number",
        remedy="Try 1.",
    )

    def rule(self) -> SpinRule:
        from mpiflow.systems.potts import Potts

        return Potts(self.temperature, self.states, self.coupling, self.field)


class BlumeCapelConfig(RuleConfig):
    """``mpiflow simulate blume-capel``: what to simulate, and what to save of it."""

    system: Literal["blume-capel"] = "blume-capel"

    temperature: float = option(
        ...,
        "Temperature in units of J / k_B.",
        gt=0,
        allowed="a finite number above 0",
        remedy="Try 1.",
    )
    crystal_field: float = option(
        0.0,
        "Crystal field D: the energy of a site that is not 0.",
        allowed="a finite number",
        remedy="Try 1.9.",
    )
    field: float = option(0.0, "External field h.", allowed="a finite number", remedy="Try 0.1.")
    coupling: float = option(
        1.0,
        "Coupling J: 1 is the ferromagnet, -1 the antiferromagnet.",
        allowed="a finite number",
        remedy="Try 1.",
    )

    def rule(self) -> SpinRule:
        from mpiflow.systems.blume_capel import BlumeCapel

        return BlumeCapel(self.temperature, self.crystal_field, self.coupling, self.field)
