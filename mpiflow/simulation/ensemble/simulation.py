"""Systems that are whole on a rank, as recordings and checkpoints see them.

Several are dealt to the ranks. A single one is computed by every rank: the same bits, and no
rank has to tell the others.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed, arrival
from mpiflow.core.schedule import Clock, State
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.files.schema import CLOCK, STANDARD, TIME, Variable
from mpiflow.initial.ensemble import StateForm, states_of_file
from mpiflow.simulation.base import Built, Content, Rows, Sample, Simulated
from mpiflow.simulation.ensemble.options import (
    ChainConfig,
    CurieWeissConfig,
    EnsembleConfig,
    PredatorPreyConfig,
)
from mpiflow.simulation.options import StartConfig
from mpiflow.solvers.lines.chain import ChainSimulation
from mpiflow.solvers.lines.predator_prey import PredatorPreySimulation
from mpiflow.solvers.mean_field import MeanField

#: Options that say how long, what is saved and from where, not what moves.
_RECORDED = {"time", "save_every", "frames_per_decade", "profile"}


class Ensemble(Simulated):
    """Independent systems that are run, recorded and resumed.

    Attributes
    ----------
    config : what it was made from
    from_file : it is to start from a file, not as it was made
    """

    block: Rows
    stop_interval = 0.0

    def __init__(self, config: EnsembleConfig, comm: MPI.Intracomm) -> None:
        self.config, self.comm = config, comm
        self.members, self.seed = config.members, config.seed
        self.from_file = "initial" in config.files()

    def _check_state(self) -> None:
        """It has had one since it was made."""

    def _require_values(self, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            raise InputError("state", "infinity or no number", "finite numbers", "Look at it.")

    def describe(self) -> str:
        config = self.config
        size = " x ".join(map(str, config.shape))
        many = f"{config.members} systems of " if config.members > 1 else ""
        dt = "" if config.step is None else f" with dt = {config.step:g}"
        return f"{config.system}, {many}{size} sites, {config.moves}{dt}, {self._ranks_in_words()}"

    def facts(self) -> dict[str, Any]:
        """What makes it the same run; the initial state is that of the checkpoint."""
        options = json.loads(self.config.model_dump_json())
        shared = set(StartConfig.model_fields) - {"members", "seed"} | _RECORDED
        return {n: v for n, v in options.items() if n not in shared and not n.startswith("initial")}

    def content(self, *, profile: bool = False) -> Content:
        """Numbers of every member.

        Parameters
        ----------
        profile : also what lies along the axis
        """
        config = self.config
        dims = {} if self.members == 1 else {"member": self.members}
        ensemble = tuple(dims)
        variables = [self._variable(name).over(*ensemble) for name in config.scalars]
        coordinates: dict[str, np.ndarray] = {}
        if profile:
            dims[config.axis] = along = config.shape[-1]
            if config.axis == "position":
                coordinates["position"] = (np.arange(along) + 0.5) / along
            axes = (*ensemble, config.axis)
            variables += [self._variable(name).over(*axes) for name in config.profiles]

        def frame() -> Sample:
            now = self.measure()
            along = self.profiles() if profile else {}
            values = {name: self._of_members(value) for name, value in (now | along).items()}
            first = now[config.scalars[0]]
            # With more ranks than members rank 0 may have none.
            shown = {config.scalars[0]: float(first[0])} if first.size else {}
            return Sample(self.time, values, shown)

        return Content(dims, coordinates, variables, self.attributes(), frame, self.clock_variable)

    #: The variable of its times.
    clock_variable = CLOCK

    def _variable(self, name: str) -> Variable:
        """What a file says of one."""
        return STANDARD[name]

    def begin(self) -> None:
        """Go to the initial state, if that is another than it was made with. Collective."""
        if self.from_file:
            with agreed(self.comm):
                self.begin_from_file(self.config)

    def begin_from_file(self, config: EnsembleConfig) -> None:
        """Read the states of the file of a configuration. Without communication.

        Raises
        ------
        InputError : it cannot be read, or holds no states of such systems
        """
        own = np.arange(self.local_members.start, self.local_members.stop)
        form = StateForm(config.system, config.states, config.shape, config.part, config.axis)
        for members, states in states_of_file(Path(config.initial), config.moment, form, own):
            fine = np.isfinite(states).all()
            if allowed := self.put(members, states) if fine else "finite numbers":
                raise InputError("initial", config.initial, allowed, "Look at the file.")

    @abstractmethod
    def put(self, members: slice, states: np.ndarray) -> str:
        """Set some of this rank's members to finite states, as :func:`states_of_file` yields them.

        Returns
        -------
        what states have to be, if these can be none: then nothing is set
        """

    @abstractmethod
    def measure(self) -> dict[str, np.ndarray]:
        """The ``scalars`` of the configuration, (B,) each."""

    def profiles(self) -> dict[str, np.ndarray]:
        """Its ``profiles``, (B, n) each."""
        return {}


class Stepping(Protocol):
    """A batch of systems that makes steps of one length."""

    step: int
    dt: float

    def advance(self, steps: int) -> None: ...


class Stepped(Ensemble):
    """Systems that make steps of one length, which may change where a run goes on."""

    sim: Stepping
    clock: Clock

    @property
    def time(self) -> float:  # type: ignore[override]  # it follows from the step
        return self.clock.time(self.sim.step)

    def advance_to(self, time: float) -> None:
        self.sim.advance(max(0, self.clock.step(time) - self.sim.step))

    def state_of(self) -> State:
        return State({"time": self.time, "step": self.sim.step, **self.clock.numbers()})

    def restore(self, state: State) -> None:
        self.sim.step = int(state.numbers["step"])
        self.clock = Clock.restored(state.numbers, self.sim.dt)


class Chains(Stepped):
    """Linear chains (:class:`~mpiflow.solvers.lines.chain.ChainSimulation`)."""

    def __init__(self, config: ChainConfig, comm: MPI.Intracomm) -> None:
        super().__init__(config, comm)
        chain = config.chain()
        dealt = comm if config.members > 1 else None
        sim = ChainSimulation(
            chain, dt=config.dt, seed=config.seed, members=config.members, comm=dealt
        )
        start = config.initial_displacement
        sim.set(chain.resting() if start is None else start)
        self.sim: ChainSimulation = sim
        self.clock = Clock(config.dt)
        self.stop_interval, self.lattice = config.dt, Lattice(config.shape)

        def store(sites: slice, values: np.ndarray) -> None:
            sim.x[:, sites] = values

        self.block = Rows(lambda: sim.x, store)

    def put(self, members: slice, states: np.ndarray) -> str:
        self.sim.x[members] = states[:, 0]
        return ""

    def remarks(self) -> list[str]:
        """Of a mode with rate r, steps of Euler make the variance 1 / (1 - r dt / 2) times as
        large."""
        chain, dt = self.sim.system, self.sim.dt
        slow, fast = (
            100 / (2 / (rate * dt) - 1)
            for rate in (chain.friction, chain.friction + 4 * chain.coupling)
        )
        if slow < 0.5 and fast < 5:
            return []
        return [
            f"dt {dt:g} makes the stationary variance of the mean displacement {slow:.2g} % too "
            f"large, and that of the shortest waves {fast:.2g} %"
        ]

    def measure(self) -> dict[str, np.ndarray]:
        return {"displacement": self.sim.mean_displacement()}

    def profiles(self) -> dict[str, np.ndarray]:
        return {"displacement_profile": self.sim.x}


class Lines(Stepped):
    """Lines of prey and predators (:class:`~mpiflow.solvers.lines.predator_prey`)."""

    def __init__(self, config: PredatorPreyConfig, comm: MPI.Intracomm) -> None:
        super().__init__(config, comm)
        line = config.line()
        dealt = comm if config.members > 1 else None
        sim = PredatorPreySimulation(
            line, dt=config.dt, seed=config.seed, members=config.members, comm=dealt
        )
        self.start = config.initial_prey, config.initial_wave
        sim.set(line.start(*self.start))
        self.sim: PredatorPreySimulation = sim
        self.clock = Clock(config.dt)
        self.stop_interval, self.lattice = config.dt, Lattice((2, config.size))

        def store(fields: slice, values: np.ndarray) -> None:
            sim.x[:, fields] = values

        self.block = Rows(lambda: sim.x, store)

    def put(self, members: slice, states: np.ndarray) -> str:
        if states.mean(axis=-1).min(initial=0.0) < 0:  # a cell may be, where noise has put it
            return "means of prey and of predators of 0 or more"
        self.sim.x[members] = states
        return ""

    def _require_values(self, values: np.ndarray) -> None:
        super()._require_values(values)
        if (least := values.mean(axis=-1).min(initial=0.0)) < 0:
            allowed = "means of prey and of predators of 0 or more"
            raise InputError("state", float(least), allowed, "Look at the state.")

    def remarks(self) -> list[str]:
        prey, _ = self.sim.system.start(*self.start)
        mean, wave = prey.mean(), 0.5 * np.ptp(prey)
        asked, height = self.start
        said = self._errors()
        if self.from_file or not height or (prey.size > 10 and abs(mean - asked) <= 0.005 * asked):
            return said
        return [
            *said,
            f"{prey.size} cells are too few for a wave of five periods: prey start with a mean of "
            f"{mean:.6g} and a wave of {wave:.6g}, not {asked:g} and {height:g}",
        ]

    def _errors(self) -> list[str]:
        """What the length of a step does to the noise round coexistence."""
        dt, excess = self.sim.dt, self.sim.system.excess(self.sim.dt)
        if excess is None or not self.sim.system.noise or excess.max() < 0.02:
            return []
        mean, cell = 100 * excess.max(axis=1)
        return [
            f"dt {dt:g} makes stationary variances near coexistence too large: of the means "
            f"{mean:.2g} %, of a cell {cell:.2g} %"
        ]

    def advance_to(self, time: float) -> None:
        with agreed(self.comm):  # a line may run to infinity
            super().advance_to(time)

    def measure(self) -> dict[str, np.ndarray]:
        prey, predator = self.sim.means().T
        return {"prey": prey, "predator": predator}

    def profiles(self) -> dict[str, np.ndarray]:
        return {"prey_profile": self.sim.x[:, 0], "predator_profile": self.sim.x[:, 1]}


class MeanFields(Ensemble):
    """Curie-Weiss systems (:class:`~mpiflow.solvers.mean_field.MeanField`).

    What checkpoints call sites are the numbers of spins that are down, and up.
    """

    def __init__(self, config: CurieWeissConfig, comm: MPI.Intracomm) -> None:
        super().__init__(config, comm)
        self.system, self.sites = config.model(), config.sites
        numbers = np.arange(self.local_members.start, self.local_members.stop)
        # As initial.shuffled counts.
        up = round(0.5 * (1.0 + config.initial_magnetization) * self.sites)
        self.solver = MeanField(self.system, self.sites, np.full(len(numbers), up), numbers)
        self.asked, self.got = config.initial_magnetization, 2 * up / self.sites - 1
        self.time = 0.0
        self.lattice, self.block = Lattice((2,)), Rows(self._counts, self._set_counts)

    def put(self, members: slice, states: np.ndarray) -> str:
        exact = 0.5 * (1.0 + states[:, 0]) * self.sites
        up = np.rint(exact)
        if (abs(exact - up) > 1e-3).any() or ((up < 0) | (up > self.sites)).any():
            return f"magnetizations that {self.sites} spins can have"
        self.solver.up[members] = self.solver.group_up[members] = up
        return ""

    def remarks(self) -> list[str]:
        if self.from_file or abs(self.got - self.asked) <= 0.005 * (abs(self.asked) or 1.0):
            return []
        return [
            f"the initial magnetization is {self.got:.6g}, not {self.asked:g}: the nearest that "
            f"{self.sites} spins have"
        ]

    def _require_values(self, values: np.ndarray) -> None:
        whole = (values >= 0) & (values == np.rint(values))
        if not whole.all() or (values.sum(axis=1) != self.sites).any():
            allowed = f"numbers of spins that are down and up, {self.sites} together"
            raise InputError("state", values[0].tolist(), allowed, "Look at the state.")

    def _counts(self) -> np.ndarray:
        return np.stack([self.sites - self.solver.up, self.solver.up], axis=1)

    def _set_counts(self, kinds: slice, counts: np.ndarray) -> None:
        self.solver.up[:] = self.solver.group_up[:] = counts[:, 1]

    def advance_to(self, time: float) -> None:
        self.solver.advance(seed=self.seed, until=time)
        self.time = time

    counts_events = True
    clock_variable = TIME

    def advance_some(self, time: float, most: int, target: float) -> int:
        made = self.solver.advance(seed=self.seed, until=time, flips=most)
        self.time = arrival(self.comm, self.time, time, self.solver.clock[made >= most])
        return int(made.max(initial=0))

    def measure(self) -> dict[str, np.ndarray]:
        solver = self.solver
        energy = self.system.energy(solver.up, self.sites) / self.sites
        return {
            "magnetization": solver.magnetization,
            "energy": energy,
            "flips": solver.events.copy(),
        }

    def state_of(self) -> State:
        arrays = {"clock": self.solver.clock, "flips": self.solver.events}
        return State({"time": self.time}, arrays)

    def restore(self, state: State) -> None:
        self.time = float(state.numbers["time"])
        self.solver.clock[:] = state.arrays["clock"]
        self.solver.events[:] = state.arrays["flips"]


def build_chains(
    config: ChainConfig, comm: MPI.Intracomm, point: Checkpoint | None = None
) -> Built:
    """The chains of a configuration. Collective."""
    return built(Chains, config, comm, point)


def build_lines(
    config: PredatorPreyConfig, comm: MPI.Intracomm, point: Checkpoint | None = None
) -> Built:
    """The lines of a configuration. Collective."""
    return built(Lines, config, comm, point)


def build_mean_fields(
    config: CurieWeissConfig, comm: MPI.Intracomm, point: Checkpoint | None = None
) -> Built:
    """The mean fields of a configuration. Collective."""
    return built(MeanFields, config, comm, point)


def built(
    kind: Callable[[Any, MPI.Intracomm], Ensemble],
    config: EnsembleConfig,
    comm: MPI.Intracomm,
    point: Checkpoint | None,
) -> Built:
    """A simulation of a configuration, from its file unless a checkpoint has another state."""
    with agreed(comm):
        sim = kind(config, comm)
    if point is None:
        sim.begin()
    return Built(sim)
