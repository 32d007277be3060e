"""Systems that are whole on a rank, as recordings and checkpoints see them.

Several are dealt to the ranks. A single one is computed by every rank: the same bits, and no
rank has to tell the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import numpy as np
from mpi4py import MPI

from mpiflow.chain_simulation import ChainSimulation
from mpiflow.ensemble_config import (
    ChainConfig,
    CurieWeissConfig,
    EnsembleConfig,
    PredatorPreyConfig,
)
from mpiflow.lattice import Lattice, split
from mpiflow.noise import RNG
from mpiflow.parallel import agreed, arrival
from mpiflow.predator_prey_simulation import PredatorPreySimulation
from mpiflow.schedule import Clock, State
from mpiflow.solvers.mean_field import MeanField


class Rows:
    """What checkpoints see of the systems of a rank: an array (B, n) or (B, ny, nx).

    Parameters
    ----------
    read : the array
    write : takes rows of it, and new values for them
    """

    layout = None  # nothing is cut

    def __init__(
        self, read: Callable[[], np.ndarray], write: Callable[[slice, np.ndarray], None]
    ) -> None:
        self._read, self.store = read, write

    def spins(self) -> np.ndarray:
        """The array, to be read: :attr:`store` sets it."""
        view = self._read().view()
        view.flags.writeable = False
        return view

    @property
    def batch(self) -> int:
        """Systems on this rank."""
        return len(self.spins())

    def bands(self) -> list[slice]:
        """Rows that are read together."""
        return [slice(0, self.spins().shape[1])]

    def fill_halo(self) -> None:
        """There is none."""


class Ensemble(ABC):
    """Independent systems that are run, recorded and resumed.

    Attributes
    ----------
    local_members : those of this rank
    lattice, block : of what a checkpoint calls sites
    grain : it can be interrupted after whole multiples of this; 0: anywhere
    """

    rng = RNG
    lattice: Lattice
    block: Rows
    grain: float

    def __init__(self, config: EnsembleConfig, comm: MPI.Intracomm) -> None:
        self.comm, self.members = comm, config.members
        first, last = split(config.members, comm.size, comm.rank)
        self.local_members = slice(first, last) if config.members > 1 else slice(0, 1)

    @property
    @abstractmethod
    def time(self) -> float:
        """Since the beginning."""

    @abstractmethod
    def advance_to(self, time: float) -> None:
        """Go on to a time."""

    #: Whether it is interrupted after so many events, by :meth:`advance_some`.
    counts_events = False

    def advance_some(self, time: float, most: int, target: float) -> int:
        """As :meth:`mpiflow.simulation.SpinSimulation.advance_some`. Collective."""
        raise NotImplementedError

    @abstractmethod
    def measure(self) -> dict[str, np.ndarray]:
        """The ``scalars`` of the configuration, (B,) each."""

    def remarks(self) -> list[str]:
        """What whoever reads its results should know of its errors: lines for the log."""
        return []

    def profiles(self) -> dict[str, np.ndarray]:
        """Its ``profiles``, (B, n) each."""
        return {}

    @abstractmethod
    def state_of(self) -> State:
        """What, with :attr:`block`, the systems go on from."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Go on from such a state; that of :attr:`block` is there already."""


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
    def time(self) -> float:
        return self.clock.time(self.sim.step)

    def advance_to(self, time: float) -> None:
        self.sim.advance(max(0, self.clock.step(time) - self.sim.step))

    def state_of(self) -> State:
        return State({"time": self.time, "step": self.sim.step, **self.clock.numbers()})

    def restore(self, state: State) -> None:
        self.sim.step = int(state.numbers["step"])
        self.clock = Clock.restored(state.numbers, self.sim.dt)


class Chains(Stepped):
    """Linear chains (:class:`~mpiflow.chain_simulation.ChainSimulation`)."""

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
        self.grain, self.lattice = config.dt, Lattice(config.shape)

        def store(sites: slice, values: np.ndarray) -> None:
            sim.x[:, sites] = values

        self.block = Rows(lambda: sim.x, store)

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
    """Lines of prey and predators (:class:`~mpiflow.predator_prey_simulation`)."""

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
        self.grain, self.lattice = config.dt, Lattice((2, config.size))

        def store(fields: slice, values: np.ndarray) -> None:
            sim.x[:, fields] = values

        self.block = Rows(lambda: sim.x, store)

    def remarks(self) -> list[str]:
        prey, _ = self.sim.system.start(*self.start)
        mean, wave = prey.mean(), 0.5 * np.ptp(prey)
        asked, height = self.start
        said = self._errors()
        if not height or (prey.size > 10 and abs(mean - asked) <= 0.005 * asked):
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
        self.system, self.sites, self.seed = config.model(), config.sites, config.seed
        numbers = np.arange(self.local_members.start, self.local_members.stop)
        # As initial.shuffled counts.
        up = round(0.5 * (1.0 + config.initial_magnetization) * self.sites)
        self.solver = MeanField(self.system, self.sites, np.full(len(numbers), up), numbers)
        self.asked, self.got = config.initial_magnetization, 2 * up / self.sites - 1
        self._time = self.grain = 0.0
        self.lattice, self.block = Lattice((2,)), Rows(self._counts, self._set_counts)

    def remarks(self) -> list[str]:
        if abs(self.got - self.asked) <= 0.005 * (abs(self.asked) or 1.0):
            return []
        return [
            f"the initial magnetization is {self.got:.6g}, not {self.asked:g}: the nearest that "
            f"{self.sites} spins have"
        ]

    def _counts(self) -> np.ndarray:
        return np.stack([self.sites - self.solver.up, self.solver.up], axis=1)

    def _set_counts(self, kinds: slice, counts: np.ndarray) -> None:
        self.solver.up[:] = self.solver.group_up[:] = counts[:, 1]

    @property
    def time(self) -> float:
        return self._time

    def advance_to(self, time: float) -> None:
        self.solver.advance(seed=self.seed, until=time)
        self._time = time

    counts_events = True

    def advance_some(self, time: float, most: int, target: float) -> int:
        made = self.solver.advance(seed=self.seed, until=time, flips=most)
        self._time = arrival(self.comm, self._time, time, self.solver.clock[made >= most])
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
        self._time = float(state.numbers["time"])
        self.solver.clock[:] = state.arrays["clock"]
        self.solver.events[:] = state.arrays["flips"]
