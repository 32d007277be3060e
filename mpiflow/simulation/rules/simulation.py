"""The simulation loop of a spin rule of q states: one lattice cut into tiles, or many lattices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal, get_args

import numpy as np

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.core.mpi import MPI
from mpiflow.files.schema import STANDARD, Variable
from mpiflow.files.writer import Value
from mpiflow.simulation.base import Content, Observed, Sample
from mpiflow.simulation.lattice import SquareSimulation
from mpiflow.solvers.spins.rule_nfold import RuleNFold
from mpiflow.solvers.spins.rule_sublattice import LONG_STEP_ERROR, RuleSublattice, check_states
from mpiflow.solvers.spins.site_field import SiteFieldSublattice, require_steps
from mpiflow.solvers.spins.sublattice import LONG_STEP
from mpiflow.systems.drive import Drive, stretches
from mpiflow.systems.rule import SpinRule
from mpiflow.systems.site_field import SiteField

SolverName = Literal["sublattice", "nfold"]


@dataclass(frozen=True)
class RuleFrame(Observed):
    """The observables at one time, each (members here,) or (members here, q), also by attribute.

    Of a single lattice they have no axis of members.

    Attributes
    ----------
    values : by the names of the rule's ``OBSERVABLES``
    flips : changes of a site's state so far
    """

    time: float
    values: dict[str, Any]
    flips: Any
    single: bool = False

    def __post_init__(self) -> None:
        self._give_up_members("flips")
        if self.single:
            for name in self.values:
                self.values[name] = self.values[name][0]

    def scalars(self) -> dict[str, np.ndarray]:
        """What a file holds of it, by name, with the axis of members."""
        every = {**self.values, "flips": self.flips}
        return {name: self._with_members(value) for name, value in every.items()}

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("values", {})
        if name not in values:
            raise AttributeError(f"{type(self).__name__} has no {name!r}: it has {list(values)}")
        return values[name]


class RuleSimulation(SquareSimulation):
    """Dynamics of any :class:`~mpiflow.systems.rule.SpinRule`: Potts, Blume-Capel, your own.

    Parameters
    ----------
    system : the rule, a frozen dataclass
    size : sites a side, or (Ly, Lx)
    name : of the system, for files; that of its class unless given, MyRule being my-rule
    dt : step of the sublattice solver, ``math.inf`` for full sweeps (time counts sweeps)
    solver : ``sublattice`` (fixed step, any number of ranks) or ``nfold`` (exact, rules of up to
        12 states, 8 if given by rates)
    schedule : parameters that change in time, a :class:`mpiflow.Drive` or its text. Each step has
        the values of its middle; nfold holds them for times of ``dt``
    site_field : a field of each site's own, as of :class:`mpiflow.Simulation`; it favours what the
        rule's ``coupled`` says. For the sublattice solver, and rules of up to 12 states that are
        given by weights
    seed, members, comm, ranks_grid, granularity, device : as of :class:`mpiflow.Simulation`

    Raises
    ------
    InputError : on all ranks: options that do not fit each other, the lattice or the ranks

    Examples
    --------
    >>> sim = RuleSimulation(Potts(temperature=1.1, states=3), size=64, seed=7)
    >>> sim.set_states(initial.rule.independent)
    >>> for frame in sim.frames(time=10, every=1):
    ...     frame.energy, frame.fraction
    """

    block: Block

    def __init__(
        self,
        system: SpinRule,
        size: int | Shape,
        *,
        name: str = "",
        dt: float = 0.25,
        solver: SolverName = "sublattice",
        seed: int = 0,
        members: int = 1,
        comm: MPI.Intracomm | None = None,
        ranks_grid: Shape | None = None,
        granularity: int = 1,
        device: str | None = None,
        schedule: Drive | str | None = None,
        site_field: SiteField | None = None,
    ) -> None:
        if not is_dataclass(type(system)):
            kind = type(system).__name__
            raise InputError("system", kind, "a frozen dataclass", "Decorate the rule's class.")
        self._set_drive(system, schedule)
        system = self.system
        # BlumeCapel is the blume-capel of the catalogue, whose laws its files obey.
        self.name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", type(system).__name__).lower()
        self._set_up_square(size, seed, members, comm, device, solver == "sublattice")
        if solver not in get_args(SolverName):
            raise InputError("solver", solver, f"one of {get_args(SolverName)}", "Use sublattice.")
        if solver == "sublattice":
            self.lattice.require_bipartite()
        layout = self._layout(granularity, ranks_grid=ranks_grid)
        self.block = self._make_block(
            layout, halo=system.halo, unset=system.unset, device=self.device
        )
        self.solver: RuleSublattice | RuleNFold
        self._set_site_field(site_field)
        if self.site_field is not None:
            require_steps(solver)
            self.solver = SiteFieldSublattice(system, dt, self.site_field)
        elif solver == "sublattice":
            self.solver = RuleSublattice(system, dt)
        else:
            self._set_hold("dt", dt)
            self.solver = RuleNFold(self._held(), self.block.batch)
            self.solver.check(self.block)
        self._start_clock()

    @property
    def events(self) -> RuleNFold | None:
        """The solver of exact events, None if this one takes steps."""
        return self.solver if isinstance(self.solver, RuleNFold) else None

    @property
    def step_length(self) -> float | None:
        return None if isinstance(self.solver, RuleNFold) else self.solver.time_per_step

    @property
    def dt(self) -> float | None:
        """Time step; of the n-fold way that for which it holds what changes, or None."""
        if isinstance(self.solver, RuleNFold):
            return None if self.drive is None else self.hold
        return self.solver.dt

    def describe(self) -> str:
        return (
            f"{self.name}, {self._lattices_in_words('sites')} of {self.system.states} states, "
            f"{self.solver.name} on {self.device.name}, {self._tiles_in_words()}"
        )

    def remarks(self) -> list[str]:
        dt = self.solver.dt if isinstance(self.solver, RuleSublattice) else 0.0
        if math.isinf(dt):
            return [
                "dt inf is the classic checkerboard: right in equilibrium, but its sweeps are no "
                "time of heat-bath dynamics"
            ]
        return [f"dt {dt:g} is long: {LONG_STEP_ERROR}"] if dt > LONG_STEP else []

    def facts(self) -> dict[str, Any]:
        system: Any = self.system
        return {
            "system": self.name,
            "size": self.lattice.shape,
            **asdict(system),
            "states": self.system.states,
            **self._driven_facts(),
            **self._field_facts(),
            "solver": self.solver.name,
            "dt": self.dt,
            "members": self.members,
            "seed": self.seed,
        }

    # -- state ---------------------------------------------------------------------

    def set_states(self, fill: Callable[..., None], **options: Any) -> None:
        """Set the initial state with a function of :mod:`mpiflow.initial.rule`.

        Functions that draw random numbers get this simulation's seed.
        """
        self.set_spins(fill, rule=self.system, **options)

    def _check_state(self) -> None:
        check_states(self.block, self.system)

    def _require_values(self, values: np.ndarray) -> None:
        wrong = values[~np.isin(values, self.system.values)]
        if wrong.size:
            lowest, highest = self.system.values[[0, -1]]
            allowed = f"whole numbers from {lowest} to {highest}"
            raise InputError("states", wrong[0].item(), allowed, "Look at the initial state.")

    # -- dynamics ------------------------------------------------------------------

    def _make_steps(self, steps: int) -> np.ndarray:
        assert isinstance(self.solver, RuleSublattice)  # noqa: S101 - for the type checker
        flips = np.zeros_like(self._flips)
        for law, first, count in stretches(self.drive, self.system, self._clock, self.step, steps):
            self.solver.become(law)
            made = self.solver.advance(self.block, count, seed=self.seed, first_step=first)
            flips = flips + made
        return flips

    def measure(self) -> RuleFrame:
        """Observables of the present state. Collective."""
        self.require_state(anew=True)
        self.block.fill_halo()
        values = observables.observe(self.block, self.law)
        if self.site_field is not None and "energy" in values:
            rule = self.system
            sums = self._site_sums(self.block.spins(), rule.lowest, 1, rule.states)
            coupled = np.array([rule.coupled(state) for state in rule.values.tolist()])
            values["energy"] = values["energy"] - sums @ coupled / self.lattice.sites
        flips = self.block.total(self._flips)
        return RuleFrame(self.time, values, flips, self.members == 1)

    # -- what its file holds -------------------------------------------------------

    def coarse_fractions(self, side: int) -> np.ndarray:
        """Fraction of each state in blocks of this many sites, (members, q, ny, nx) float64."""
        states = self.spins()
        b, ny, nx = states.shape
        blocks = states.reshape(b, ny // side, side, nx // side, side)
        counts = [(blocks == value).sum(axis=(2, 4)) for value in self.system.values]
        return np.stack(counts, axis=1) / side**2

    def content(self, *, coarse: int | None = None, spins: bool = False) -> Content:
        """The observables of the rule and the number of changes.

        Parameters
        ----------
        coarse : also the fraction of each state in blocks of this many sites a side; the
            simulation's ``granularity`` must be a multiple of it
        spins : also the state of every site, a byte each
        """
        if coarse is not None:
            self._require_whole_blocks("coarse", coarse)
        values = self.system.values
        dims: dict[str, int] = {"member": self.members} if self.members > 1 else {}
        ensemble, several = tuple(dims), {"state": len(values)}
        dims |= several
        coordinates: dict[str, np.ndarray] = {"state": values.astype(np.int64)}
        variables = [
            Variable(name, (*ensemble, *axes), long_name=self.system.OBSERVABLES[name])
            for name, axes in self._axes_of_observables().items()
        ]
        variables += [STANDARD["flips"].over(*ensemble), *self._driven_variables()]
        if coarse is not None:
            axes = self._axes(dims, coordinates, coarse)
            variables.append(STANDARD["coarse_fraction"].over(*ensemble, "state", *axes))
        if spins:
            axes = self._axes(dims, coordinates, 1)
            variables.append(STANDARD["site_state"].over(*ensemble, *axes))

        def frame() -> Sample:
            now = self.measure()
            first = next(iter(now.values))
            shown = {first: np.ravel(now.values[first])[0].item()} if np.size(now.flips) else {}
            return Sample(now.time, self._values(now, coarse, spins), shown)

        about = self.attributes({"coarse": coarse})
        own, static = self._field_variable(dims, coordinates)
        return Content(dims, coordinates, variables + own, about, frame, static=static)

    def _axes_of_observables(self) -> dict[str, tuple[str, ...]]:
        """Which observables are a number for each state."""
        q = len(self.system.values)
        bonds = np.ones((1, q, q), np.int64)
        example = self.system.observables(bonds.sum(axis=2), bonds)
        return {name: ("state",) * (value.ndim - 1) for name, value in example.items()}

    def _values(self, frame: RuleFrame, coarse: int | None, spins: bool) -> dict[str, Value]:
        """This rank's part of everything that a frame holds."""
        values = {name: self._of_members(value) for name, value in frame.scalars().items()}
        values |= self._driven_values()
        if coarse is not None:
            states = slice(0, len(self.system.values))
            parts = self.coarse_fractions(coarse)
            values["coarse_fraction"] = self._of_box(parts, states, *self.local_box(coarse))
        if spins:
            values["site_state"] = self._of_box(self.spins(), *self.local_box())
        return values
