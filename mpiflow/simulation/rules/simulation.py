"""The simulation loop of a spin rule of q states: one lattice cut into tiles, or many lattices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal, get_args

import numpy as np

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, Shape, split
from mpiflow.core.mpi import MPI
from mpiflow.core.noise import RNG
from mpiflow.core.parallel import local_rank
from mpiflow.core.schedule import Clock, Number, State
from mpiflow.files.schema import STANDARD, Variable
from mpiflow.files.writer import Value
from mpiflow.simulation.base import Content, Sample
from mpiflow.simulation.spins.simulation import LatticeSimulation, cut
from mpiflow.solvers.spins.rule_nfold import RuleNFold
from mpiflow.solvers.spins.rule_sublattice import LONG_STEP_ERROR, RuleSublattice, check_states
from mpiflow.solvers.spins.site_field import SiteFieldSublattice, require_steps
from mpiflow.solvers.spins.sublattice import LONG_STEP
from mpiflow.systems.drive import Drive, stretches
from mpiflow.systems.rule import SpinRule
from mpiflow.systems.site_field import SiteField

SolverName = Literal["sublattice", "nfold"]


@dataclass(frozen=True)
class RuleFrame:
    """The observables at one time, each (members here,) or (members here, q), also by attribute.

    Attributes
    ----------
    values : by the names of the rule's ``OBSERVABLES``
    flips : changes of a site's state so far
    """

    time: float
    values: dict[str, np.ndarray]
    flips: np.ndarray

    def scalars(self) -> dict[str, np.ndarray]:
        """What a file holds of it, by name."""
        return {**self.values, "flips": self.flips}

    def __getattr__(self, name: str) -> np.ndarray:
        values = self.__dict__.get("values", {})
        if name not in values:
            raise AttributeError(f"{type(self).__name__} has no {name!r}: it has {list(values)}")
        return values[name]


class RuleSimulation(LatticeSimulation):
    """Dynamics of any :class:`~mpiflow.systems.rule.SpinRule`: Potts, Blume-Capel, your own.

    Parameters
    ----------
    system : the rule, a frozen dataclass
    size : sites a side, or (Ly, Lx)
    name : of the system, for files; that of its class in lower case unless given
    dt : step of the sublattice solver, ``math.inf`` for full sweeps (time counts sweeps)
    solver : ``sublattice`` (fixed step, any number of ranks) or ``nfold`` (exact, rules of up to
        12 states, 8 if given by rates)
    schedule : parameters that change in time, a :class:`mpiflow.Drive` or its text. Each step has
        the values of its middle; nfold holds them for times of ``dt``
    site_field : a field of each site's own, as of :class:`mpiflow.Simulation`; it favours what the
        rule's ``coupled`` says. For the sublattice solver, and rules of up to 12 states that are
        given by weights
    seed, members, comm, ranks_grid, granularity, device : as of :class:`mpiflow.Simulation`

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
        device: str = "cpu",
        schedule: Drive | str | None = None,
        site_field: SiteField | None = None,
    ) -> None:
        if not is_dataclass(type(system)):
            kind = type(system).__name__
            raise InputError("system", kind, "a frozen dataclass", "Decorate the rule's class.")
        self._set_drive(system, schedule)
        system = self.system
        self.seed, self.members = seed, members
        self.name = name or type(system).__name__.lower()
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.lattice = Lattice((size, size) if isinstance(size, int) else tuple(size))
        self.device = Device(device, local_rank(self.comm) if device == "cuda" else 0)
        if members < 1:
            raise InputError("members", members, "1 or more", "Leave it out for one lattice.")
        if solver not in get_args(SolverName):
            raise InputError("solver", solver, f"one of {get_args(SolverName)}", "Use sublattice.")
        if solver == "sublattice":
            self.lattice.require_bipartite()
        self._make_block(ranks_grid, granularity)
        self.time, self.step = 0.0, 0
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
        self._clock = Clock(self.step_length or 0.0)
        self._flips = np.zeros(self.block.batch, np.int64)

    def _make_block(self, ranks_grid: Shape | None, granularity: int) -> None:
        """Sites that nothing has set yet."""
        halo, unset = self.system.halo, self.system.unset
        if self.members == 1:
            layout = cut(
                self.lattice, self.comm.size, ranks_grid=ranks_grid, granularity=granularity
            )
            self.block = Block.tile(layout, self.comm, halo=halo, device=self.device)
            self.block.load(np.full((1, *self.block.shape), unset, np.int8))
            return
        Layout(self.lattice, (1, 1), granularity)  # checks divisibility
        numbers = np.arange(*split(self.members, self.comm.size, self.comm.rank))
        none = np.full((len(numbers), *self.lattice.shape), unset, np.int8)
        self.block = Block.periodic(none, numbers, halo=halo, device=self.device)

    @property
    def step_length(self) -> float | None:
        return None if isinstance(self.solver, RuleNFold) else self.solver.time_per_step

    @property
    def dt(self) -> float | None:
        """Time step; of the n-fold way that for which it holds what changes, or None."""
        if isinstance(self.solver, RuleNFold):
            return None if self.drive is None else self.hold
        return self.solver.dt

    @property
    def rng(self) -> str:
        return RNG

    def describe(self) -> str:
        size = " x ".join(map(str, self.lattice.shape))
        what = f"{size} sites" if self.members == 1 else f"{self.members} lattices of {size} sites"
        layout = self.block.layout
        grid = f" in a grid of {layout.ranks_grid}" if layout and layout.ranks > 1 else ""
        ranks = f"{self.comm.size} rank{'s' * (self.comm.size > 1)}{grid}"
        return (
            f"{self.name}, {what} of {self.system.states} states, {self.solver.name} on "
            f"{self.device.name}, {ranks}"
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

    def advance(self, duration: float) -> None:
        """Advance the state by ``duration``, a multiple of dt unless the solver is n-fold."""
        self.require_state()
        steps = self.steps_in(duration)
        if isinstance(self.solver, RuleNFold):
            self.advance_to(self.time + duration)
            return
        for law, first, count in stretches(self.drive, self.system, self._clock, self.step, steps):
            self.solver.become(law)
            made = self.solver.advance(self.block, count, seed=self.seed, first_step=first)
            self._flips = self._flips + made  # a new array: frames keep theirs
        self.step += steps
        self.time = self._clock.time(self.step)

    def advance_to(self, time: float) -> None:
        if not isinstance(self.solver, RuleNFold):
            super().advance_to(time)
            return
        self.require_state()
        for end in self._ends(time):
            self.time = end  # exactly: not a sum of durations, which rounds
            self._flips = self._flips + self.solver.advance(self.block, seed=self.seed, until=end)
            self._hold_next()

    @property
    def counts_events(self) -> bool:
        return isinstance(self.solver, RuleNFold)

    def advance_some(self, time: float, most: int, target: float) -> int:
        assert isinstance(self.solver, RuleNFold)  # noqa: S101 - for the type checker
        self.require_state()
        time = next(self._ends(time))
        made = self.solver.advance(self.block, seed=self.seed, until=time, flips=most)
        busiest = self._arrive(time, most, made, self.solver.clock)
        self._hold_next()
        return busiest

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
        return RuleFrame(self.time, values, self.block.total(self._flips))

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
            shown = {first: float(now.values[first].flat[0])} if now.flips.size else {}
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
        one, states = self.members == 1, slice(0, len(self.system.values))
        members = () if one else (self.local_members,)
        values: dict[str, Value] = {}
        for name, value in frame.scalars().items():
            place = (*members, *[states] * (value.ndim - 1))
            values[name] = value[0] if one else (value, place)
        values |= self._driven_values()
        if coarse is not None:
            parts = self.coarse_fractions(coarse)
            place = (*members, states, *self.local_box(coarse))
            values["coarse_fraction"] = (parts[0] if one else parts, place)
        if spins:
            field = self.spins()
            values["site_state"] = (field[0] if one else field, (*members, *self.local_box()))
        return values

    # -- to go on later ------------------------------------------------------------

    def state_of(self) -> State:
        self.require_state()
        numbers: dict[str, Number] = {"time": self.time, "step": self.step, **self._clock.numbers()}
        arrays = {"flips": self.block.total(self._flips)}
        if isinstance(self.solver, RuleNFold):
            solver = self.solver
            arrays |= {"clock": solver.clock, "events": solver.events, "order": solver.order}
        return State(numbers, arrays)

    def restore(self, state: State) -> None:
        self.time, self.step = float(state.numbers["time"]), int(state.numbers["step"])
        self._clock = Clock.restored(state.numbers, self._clock.dt)
        self._flips, self._sound = self._shares(state.arrays["flips"]), False
        if isinstance(self.solver, RuleNFold):
            self.solver.adopt(self._held())
            self.solver.clock = state.arrays["clock"].astype(np.float64)
            self.solver.events = state.arrays["events"].astype(np.int64)
            if state.arrays["order"].size:
                self.solver.order = state.arrays["order"]
