"""The simulation loop of a Kac model: one lattice cut into slabs of rows, or many lattices."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.lattice import Shape
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import arrival
from mpiflow.core.schedule import State
from mpiflow.core.slabs import Slabs
from mpiflow.simulation.base import Motion, Pace
from mpiflow.simulation.lattice import cut_rows
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

    Raises
    ------
    InputError : on all ranks: options that do not fit each other, the lattice or the ranks

    Examples
    --------
    >>> sim = KacSimulation(Kac(temperature=0.8, gamma=8), size=512, tau=0.05, seed=7)
    >>> sim.set_spins(initial.gaussian, magnetization=0.1, correlation_length=32)
    >>> for frame in sim.frames(time=5, every=0.5):
    ...     ...
    """

    KEPT: ClassVar[dict[str, type]] = {"clock": np.float64, "events": np.int64, "vain": np.int64}

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
        device: str | None = None,
        schedule: Drive | str | None = None,
    ) -> None:
        require_rule(system, Kac)
        self._set_drive(system, schedule)
        system = self.system
        able = method == "steps" and solver != "gillespie"
        self._set_up_square(size, seed, members, comm, device, able)
        if solver not in get_args(SolverName):
            raise InputError("solver", solver, f"one of {get_args(SolverName)}", "Use sublattice.")
        if self.device.is_cuda and method != "steps":
            raise InputError("method", method, "'steps' on a CUDA device", "Leave it out.")
        system.kernel.require_room(self.lattice.shape)
        cut = cut_rows(self.lattice, self.comm.size if members == 1 else 1, granularity)
        layout = cut if members == 1 else None
        self.block = self._make_block(layout, device=self.device)
        slabs = None
        if layout is not None:
            edges = [layout.offset(rank)[0] for rank in range(layout.ranks)]
            shape = self.lattice.shape[0], self.lattice.shape[1]
            slabs = Slabs(self.comm, shape, [*edges, shape[0]])
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
        self._start_clock()

    @property
    def step_length(self) -> float | None:
        return self.solver.tau if isinstance(self.solver, KacSteps) else None

    @property
    def operations(self) -> int:
        """Fields of sites computed or changed so far on this rank: what the run costs."""
        return self.solver.operations

    def describe(self) -> str:
        """One line: size, kernel and how the work is divided."""
        kernel = self.system.kernel
        text = "nearest neighbours" if kernel.nearest else f"kernel of {2 * kernel.reach + 1}^2"
        if not kernel.nearest:
            text += f" sites, {100 * kernel.distance():.1f} % from the Gaussian"
        what, ranks = self._lattices_in_words("spins"), self._ranks_in_words()
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

    @property
    def events(self) -> Gillespie | None:
        """The solver of exact events, None if this one takes steps."""
        return self.solver if isinstance(self.solver, Gillespie) else None

    def _make_steps(self, steps: int) -> np.ndarray:
        assert isinstance(self.solver, KacSteps)  # noqa: S101 - for the type checker
        flips = np.zeros_like(self._flips)
        for law, _, count in stretches(self.drive, self.system, self._clock, self.step, steps):
            self.solver.become(law)
            flips = flips + self.solver.advance(self._bytes, count, seed=self.seed)
        return flips

    def advance_to(self, time: float) -> None:
        solver = self.solver
        if isinstance(solver, Gillespie) or solver.tau is not None:
            super().advance_to(time)
            return
        self.require_state()
        self._count(solver.leap(self._bytes, time, seed=self.seed))
        self.time = time

    @property
    def counts_events(self) -> bool:
        return isinstance(self.solver, Gillespie) or self.solver.tau is None

    def advance_some(self, time: float, most: int, target: float) -> int:
        solver = self.solver
        if isinstance(solver, Gillespie):
            return super().advance_some(time, most, target)
        self.require_state()
        solver.begin(self._bytes)
        before = solver.steps.copy()
        self._count(solver.leap(self._bytes, target, seed=self.seed, until=time, most=most))
        self.time = arrival(self.comm, self.time, target, solver.clock[solver.clock < target])
        return int((solver.steps - before).max(initial=0))

    @property
    def _bytes(self) -> Block:
        if not isinstance(self.block, Block):
            raise AssertionError("a block of bytes")  # for the type checker
        return self.block

    def state_of(self) -> State:
        state, solver = super().state_of(), self.solver
        if isinstance(solver, Gillespie):
            return state
        solver.begin(self._bytes)
        arrays = {**state.arrays, "steps": solver.steps}
        if solver.tau is None:
            arrays["clock"] = solver.clock
        return State(state.numbers, arrays)

    def restore(self, state: State) -> None:
        super().restore(state)
        if isinstance(self.solver, Gillespie):
            return
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
            single=self.members == 1,
        )
