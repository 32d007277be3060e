"""Options of systems that are a spin rule, and those of the Potts and Blume-Capel models."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.simulation import common_options as common
from mpiflow.simulation.driven_options import DrivenConfig
from mpiflow.simulation.option_values import Grid, Numbers, Sides, Step
from mpiflow.simulation.options import option

if TYPE_CHECKING:  # they compile: not for the sake of --help
    from mpiflow.systems.rule import SpinRule


class RuleConfig(DrivenConfig):
    """Options of all systems that are a spin rule on a square lattice.

    A system of its own adds its parameters, and says with :meth:`rule` what they make.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("coarse", "spins")
    kinds: ClassVar[tuple[str, ...]] = ("shuffled", "random", "ordered")

    size: Sides = common.size()
    solver: Literal["sublattice", "nfold"] = option(
        "sublattice",
        "sublattice: fixed step, any number of ranks. nfold: exact, one rank for each lattice, "
        "rules of up to 12 states.",
    )
    dt: Step | None = common.dt(
        description="Time step of the sublattice solver in attempts per site, inf for "
        "checkerboard sweeps; of nfold the time for which it holds what a schedule changes.",
        shown="0.25",
    )
    time: float = common.time(description="Time to simulate, in attempts per site.")
    save_every: float = common.save_every()
    coarse: int | None = common.coarse(
        description="Save the fraction of each state in blocks of this many sites a side too."
    )
    spins: bool = option(False, "Save the state of every site too, one byte each.")
    initial: str = common.initial(
        kinds,
        "shuffled (exact numbers of sites in each state), random (independent sites), ordered "
        "(all in one state), or the path of a .npy file of states or of a run saved with --spins.",
    )
    initial_fractions: Numbers | None = option(
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
    )
    ranks_grid: Grid | None = common.ranks_grid()

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
        elif self.schedule is None:
            self._refuse("with the nfold solver, which has no step", "dt")
        else:
            self._fill("dt", 0.25)
        self._check_intervals(self.time, step, "dt")
        self._check_file()
        for name, kinds in (
            ("initial_fractions", ("shuffled", "random")),
            ("initial_state", ("ordered",)),
        ):
            if self.initial not in kinds:
                self._refuse(f"with initial {self.initial}", name)
        self._check_rule()
        return self

    def _check_rule(self) -> None:
        """The rule can be run, and has the states that are asked for."""
        rule = self.rule()
        if self.drive is not None:
            self.drive.check(rule)
        if self.in_site_field:
            from mpiflow.solvers.spins.site_field import require_site_field

            require_site_field(rule)
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

    states: int = option(3, "Number of states q.", ge=2, le=127)
    temperature: float = common.temperature(remedy="Try 0.995 (critical for 3 states).")
    field: float = common.field(description="External field h on the state 0.")
    coupling: float = common.coupling()

    def rule(self) -> SpinRule:
        from mpiflow.systems.potts import Potts

        return Potts(self.temperature, self.states, self.coupling, self.field)


class BlumeCapelConfig(RuleConfig):
    """``mpiflow simulate blume-capel``: what to simulate, and what to save of it."""

    system: Literal["blume-capel"] = "blume-capel"

    temperature: float = common.temperature()
    crystal_field: float = option(
        0.0, "Crystal field D: the energy of a site that is not 0.", remedy="Try 1.9."
    )
    field: float = common.field()
    coupling: float = common.coupling()

    def rule(self) -> SpinRule:
        from mpiflow.systems.blume_capel import BlumeCapel

        return BlumeCapel(self.temperature, self.crystal_field, self.coupling, self.field)
