"""The simulation loop of a Kac model: one lattice cut into slabs of rows, or many lattices."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Literal, get_args

import numpy as np

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.lattice import Lattice, Layout, Shape, split
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import arrival, local_rank
from mpiflow.core.schedule import Clock, Number, State
from mpiflow.core.slabs import Slabs
from mpiflow.simulation.base import Motion, Pace
from mpiflow.simulation.spins.simulation import Frame, SpinSimulation
from mpiflow.solvers.kac.fields import Fields, Method
from mpiflow.solvers.kac.gillespie import Gillespie
from mpiflow.solvers.kac.steps import KacSteps
from mpiflow.solvers.kac.tables import DIGITS
from mpiflow.systems.drive import Drive, stretches
from mpiflow.systems.kac import Kac
from mpiflow.systems.site_field import SiteField

SolverName = Literal["sublattice", "midpoint", "tau-leap", "gillespie"]
#: Steps unless given; of tau-leap, whose error is twice as large and more, also its eps.
STEP, LEAP = 0.1, 0.01
#: How much nearer to 0 a step of 1 brings energies in equilibrium at most, in %: found with small
#: steps (docs/kac.md). That of midpoint holds where a flip more than halves a rate nearby.
ERRORS = {"sublattice": 50.0, "midpoint": 12.0, "tau-leap": 100.0}


class KacSimulation(SpinSimulation):
    """Glauber dynamics with a Kac coupling.

    With ``members=1`` each rank has a slab of whole rows of the lattice; fields need the rows in
    reach, from as many ranks as it takes. With more members every rank holds whole lattices.

    Parameters
    ----------
    system : the model
    size : sites a side, or (Ly, Lx)
    solver : ``sublattice``, ``midpoint``, ``tau-leap`` (:mod:`mpiflow.solvers.kac.steps`) or
        ``gillespie`` (exact; a lattice is on one rank)
    tau : step of the first three; 0.1 unless given, 0.01 of ``tau-leap``
    eps : of tau-leap instead of tau: tau = eps / largest rate, in each step anew
    method : how fields are added up, ``steps`` or ``fft`` (on the CPU): the same bits
    site_field : h(x) in addition to the system's field, as of :class:`mpiflow.Simulation`
    schedule : temperature and field that change in time, a :class:`mpiflow.Drive` or its text. Each
        step of a given tau has the values of its middle; gillespie holds them for times of tau
    seed, members, comm, granularity, device : as of :class:`mpiflow.Simulation`

    Examples
    --------
    >>> sim = KacSimulation(Kac(temperature=0.8, gamma=8), size=512, tau=0.05, seed=7)
    >>> sim.set_spins(initial.gaussian, magnetization=0.1, correlation_length=32)
    >>> for frame in sim.frames(time=5, every=0.5):
    ...     ...
    """

    def __init__(
        self,
        system: Kac,
        size: int | Shape,
        *,
        solver: SolverName = "sublattice",
        tau: float | None = None,
        eps: float | None = None,
        method: Method = "steps",
        site_field: SiteField | None = None,
        seed: int = 0,
        members: int = 1,
        comm: MPI.Intracomm | None = None,
        granularity: int = 1,
        device: str = "cpu",
        schedule: Drive | str | None = None,
    ) -> None:
        require_rule(system, Kac)
        self._set_drive(system, schedule)
        system = self.system
        self.seed, self.members = seed, members
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.lattice = Lattice((size, size) if isinstance(size, int) else tuple(size))
        self.device = Device(device, local_rank(self.comm) if device == "cuda" else 0)
        if members < 1:
            raise InputError("members", members, "1 or more", "Leave it out for one lattice.")
        if solver not in get_args(SolverName):
            raise InputError("solver", solver, f"one of {get_args(SolverName)}", "Use sublattice.")
        if self.device.is_cuda and method != "steps":
            raise InputError("method", method, "'steps' on a CUDA device", "Leave it out.")
        system.kernel.require_room(self.lattice.shape)
        slabs = None
        if members == 1:
            layout = Layout(self.lattice, (self.comm.size, 1), granularity)
            self.block = Block.tile(layout, self.comm, device=self.device)
            edges = [layout.offset(rank)[0] for rank in range(layout.ranks)]
            shape = self.lattice.shape[0], self.lattice.shape[1]
            slabs = Slabs(self.comm, shape, [*edges, shape[0]])
        else:
            Layout(self.lattice, (1, 1), granularity)  # checks divisibility
            numbers = np.arange(*split(members, self.comm.size, self.comm.rank))
            zeros = np.zeros((len(numbers), *self.lattice.shape), np.int8)
            self.block = Block.periodic(zeros, numbers, device=self.device)
        self.time, self.step = 0.0, 0
        self._set_site_field(site_field)
        self.fields = Fields(
            system,
            method=method,
            external=self.site_field,
            slabs=slabs,
            largest=self.drive.largest("field", system.field) if self.drive else None,
        )
        self.solver: KacSteps | Gillespie
        if solver == "gillespie":
            if (tau is not None and self.drive is None) or eps is not None:
                raise InputError("tau, eps", (tau, eps), "none with gillespie", "Leave them out.")
            self._set_hold("tau", STEP if tau is None else tau)
            self.solver = Gillespie(
                system, self.block.batch, external=self.fields.external, scale=self.fields.scale
            )
            self.solver.adopt(self._held())
            self.solver.check(self.block)
        else:
            if tau is not None and eps is not None:
                raise InputError("tau, eps", (tau, eps), "one of the two", "Give one.")
            if self.drive is not None and (eps is not None or (tau or 0.0) > 1.0):
                allowed = "a tau of at most 1 with a schedule"
                raise InputError("tau, eps", (tau, eps), allowed, "Try tau 0.01.")
            if eps is None and tau is None:
                tau = LEAP if solver == "tau-leap" else STEP
            if eps is not None and solver != "tau-leap":
                raise InputError("eps", eps, "none but with tau-leap", "Leave it out.")
            self.solver = KacSteps(self.fields, solver, tau=tau, eps=eps)
        self._clock = Clock(self.step_length or 0.0)
        self._flips = np.zeros(self.block.batch, np.int64)

    @property
    def step_length(self) -> float | None:
        return self.solver.tau if isinstance(self.solver, KacSteps) else None

    @property
    def operations(self) -> int:
        """Fields of sites computed or changed so far on this rank: what the run costs."""
        return self.solver.operations

    def describe(self) -> str:
        """One line: size, kernel and how the work is divided."""
        size = " x ".join(map(str, self.lattice.shape))
        what = f"{size} spins" if self.members == 1 else f"{self.members} lattices of {size} spins"
        kernel = self.system.kernel
        text = "nearest neighbours" if kernel.nearest else f"kernel of {2 * kernel.reach + 1}^2"
        if not kernel.nearest:
            text += f" sites, {100 * kernel.distance():.1f} % from the Gaussian"
        ranks = f"{self.comm.size} rank{'s' if self.comm.size > 1 else ''}"
        return f"{what}, {text}, {self.solver.name} on {self.device.name}, {ranks}"

    def remarks(self) -> list[str]:
        solver = self.solver
        if isinstance(solver, Gillespie):
            return []
        system, name, tau = self.system, solver.name, solver.tau
        if tau is None:
            tau = (solver.eps or 0.0) / float(system.rates(-(1.0 + self.fields.largest)))
        strength = 4 * system.beta * float(system.kernel.largest)
        error = ERRORS[name] * tau
        if error < 1.2 or (name == "midpoint" and strength <= math.log(2)):
            return []
        where = "" if name != "midpoint" else f", as 4 beta max J = {strength:.2g} exceeds ln 2"
        better = {"sublattice": "midpoint or ", "midpoint": ""}.get(
            name, "midpoint, sublattice or "
        )
        return [
            f"{name} is of first order{where}: steps of {tau:.2g} leave energies in equilibrium "
            f"up to {error:.2g} % too near to 0; {better}a smaller "
            f"--{'tau' if solver.eps is None else 'eps'} is better"
        ]

    def facts(self) -> dict[str, Any]:
        steps = self.solver if isinstance(self.solver, KacSteps) else None
        return {
            "system": "kac",
            "size": self.lattice.shape,
            **asdict(self.system),
            **self._driven_facts(),
            **self._field_facts(),
            "solver": self.solver.name,
            "tau": steps.tau if steps else None if self.drive is None else self.hold,
            "eps": steps.eps if steps else None,
            "rate_bits": 32 * DIGITS,  # a checkpoint of other bits would go on with other events
            "members": self.members,
            "seed": self.seed,
        }

    def pace(self, motion: Motion) -> Pace:
        eps = self.solver.eps if isinstance(self.solver, KacSteps) else None
        if eps is None:
            return super().pace(motion)
        end = motion.schedule.end - motion.schedule.start
        return Pace(min(end, 10 * eps), "attempt per spin")  # some whole leaps

    def advance(self, duration: float) -> None:
        """Advance the state by ``duration``, a multiple of tau if there is one. Collective."""
        self.require_state()
        steps = self.steps_in(duration)
        if self.step_length is None:
            self.advance_to(self.time + duration)
            return
        assert isinstance(self.solver, KacSteps)  # noqa: S101 - for the type checker
        for law, _, count in stretches(self.drive, self.system, self._clock, self.step, steps):
            self.solver.become(law)
            self._count(self.solver.advance(self._bytes, count, seed=self.seed))
        self.step += steps
        self.time = self._clock.time(self.step)

    def advance_to(self, time: float) -> None:
        self.require_state()
        solver = self.solver
        if isinstance(solver, Gillespie):
            for end in self._ends(time):
                self._count(solver.advance(self._bytes, seed=self.seed, until=end))
                self.time = end
                self._hold_next()
        elif solver.tau is None:
            self._count(solver.leap(self._bytes, time, seed=self.seed))
        else:
            super().advance_to(time)
            return
        self.time = time

    @property
    def counts_events(self) -> bool:
        return isinstance(self.solver, Gillespie) or self.solver.tau is None

    def advance_some(self, time: float, most: int, target: float) -> int:
        self.require_state()
        solver = self.solver
        if isinstance(solver, Gillespie):
            time = next(self._ends(time))
            made = solver.advance(self._bytes, seed=self.seed, until=time, flips=most)
            busiest = self._arrive(time, most, made, solver.clock)
            self._hold_next()
            return busiest
        solver.begin(self._bytes)
        before = solver.steps.copy()
        self._count(solver.leap(self._bytes, target, seed=self.seed, until=time, most=most))
        self.time = arrival(self.comm, self.time, target, solver.clock[solver.clock < target])
        return int((solver.steps - before).max(initial=0))

    def _count(self, flips: np.ndarray) -> None:
        self._flips = self._flips + flips  # a new array: frames keep theirs

    @property
    def _bytes(self) -> Block:
        if not isinstance(self.block, Block):
            raise AssertionError("a block of bytes")  # for the type checker
        return self.block

    def state_of(self) -> State:
        self.require_state()
        arrays = {"flips": self.block.total(self._flips)}
        if isinstance(self.solver, Gillespie):
            solver = self.solver
            arrays |= {"clock": solver.clock, "events": solver.events, "vain": solver.vain}
        else:
            self.solver.begin(self._bytes)
            arrays["steps"] = self.solver.steps
            if self.solver.tau is None:
                arrays["clock"] = self.solver.clock
        numbers: dict[str, Number] = {"time": self.time, "step": self.step, **self._clock.numbers()}
        return State(numbers, arrays)

    def restore(self, state: State) -> None:
        self.time, self.step = float(state.numbers["time"]), int(state.numbers["step"])
        self._clock = Clock.restored(state.numbers, self._clock.dt)
        self._flips, self._sound = self._shares(state.arrays["flips"]), False
        if isinstance(self.solver, Gillespie):
            self.solver.adopt(self._held())
            self.solver.clock = state.arrays["clock"].astype(np.float64)
            self.solver.events = state.arrays["events"].astype(np.int64)
            self.solver.vain = state.arrays["vain"].astype(np.int64)
        else:
            self.solver.steps = state.arrays["steps"].astype(np.int64)
            # A run that had steps of one length until now has no others' clock.
            now = np.full(self.solver.steps.shape, self.time)
            self.solver.clock = state.arrays.get("clock", now).astype(np.float64)

    def measure(self) -> Frame:
        self.require_state(anew=True)
        self.block.fill_halo()
        sums = observables.spin_sums(self.block)
        sites = self.lattice.sites
        if self.drive is not None:
            self.fields.become(self.law)
        return Frame(
            time=self.time,
            magnetization=sums[:, 0] / sites,
            energy=self.fields.energy(self._bytes.inner(self._bytes.host())) / sites,
            domain_wall_density=observables.domain_wall_density(sums[:, 1], sites),
            flips=self.block.total(self._flips),
        )
