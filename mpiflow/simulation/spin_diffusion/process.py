"""The stochastic process of chains of two species, as recordings and checkpoints see it.

Langevin's equation with exchanges goes in steps of one length, its averaged limit by events.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import arrival
from mpiflow.core.schedule import Clock, State
from mpiflow.files.schema import BINARY_CHAIN, Variable
from mpiflow.simulation.ensemble.simulation import Stepped
from mpiflow.simulation.spin_diffusion.options import SpinDiffusionConfig
from mpiflow.simulation.spin_diffusion.simulation import BinaryChains
from mpiflow.solvers.binary_chain.averaged import AveragedSpins
from mpiflow.solvers.binary_chain.langevin import SpinDiffusion


class _Process(BinaryChains):
    """The stochastic process and its averaged limit: spins of 1 and -1, and their exchanges."""

    ROWS = ("spins", "x")

    def _common(self) -> dict[str, Any]:
        """What both processes are made from."""
        config = self.config
        return {
            "rates": config.rates,
            "tau": config.tau,
            "seed": config.seed,
            "members": config.members,
            "comm": self.comm if config.members > 1 else None,
        }

    def _not_spins(self, spins: np.ndarray) -> str:
        return "" if (abs(spins) == 1).all() else "spins of 1 and -1"

    def _set(self) -> None:
        self.sim.set(self.starts.astype(np.int8))

    def _rows(self) -> np.ndarray:
        return np.stack([self.sim.spins.astype(float), self.sim.x], axis=1)

    def _set_rows(self, rows: slice, values: np.ndarray) -> None:
        self.sim.spins[:] = values[:, 0]
        self.sim.x[:] = values[:, 1]

    def _variable(self, name: str) -> Variable:
        known = BINARY_CHAIN[name]
        return known.of("int8", "spin of a site, 1 is A and -1 is B") if name == "s" else known

    def measure(self) -> dict[str, np.ndarray]:
        sim = self.sim
        names = self.config.scalars[:-1]
        return {name: getattr(sim, name)() for name in names} | {"exchanges": sim.exchanges.copy()}

    def profiles(self) -> dict[str, np.ndarray]:
        return {"s": self.sim.spins, "x": self.sim.x}


class LangevinRun(_Process, Stepped):
    """Positions that move (:class:`~mpiflow.solvers.binary_chain.langevin.SpinDiffusion`)."""

    KEPT = ("exchanges", "reference")

    def __init__(self, config: SpinDiffusionConfig, comm: MPI.Intracomm) -> None:
        super().__init__(config, comm)
        assert config.dt is not None  # noqa: S101 - for the type checker
        assert config.epsilon is not None  # noqa: S101 - for the type checker
        self.sim: SpinDiffusion = SpinDiffusion(
            config.chain(),
            epsilon=config.epsilon,
            dt=config.dt,
            preconditioned=config.precondition,
            **self._common(),
        )
        self.clock, self.stop_interval = Clock(config.dt), config.dt

    def state_of(self) -> State:
        return State(super().state_of().numbers, self._kept())

    def restore(self, state: State) -> None:
        super().restore(state)
        self._go_on_from(state)


class AveragedRun(_Process):
    """Positions averaged over (:class:`~mpiflow.solvers.binary_chain.averaged.AveragedSpins`)."""

    KEPT = ("clock", "events", "beyond", "exchanges", "reference")
    counts_events = True

    def __init__(self, config: SpinDiffusionConfig, comm: MPI.Intracomm) -> None:
        super().__init__(config, comm)
        self.sim: AveragedSpins = AveragedSpins(config.chain(), **self._common())
        self.time = 0.0

    def closing(self) -> list[str]:
        counts = np.array([self.sim.beyond.sum(), self.sim.events.sum()])
        if self.members > 1:
            counts = self.comm.allreduce(counts)
        beyond, events = counts.tolist()
        if not beyond:
            return []
        return [f"at {beyond} of {events} attempts the rate was above its bound, and was cut there"]

    def advance_to(self, time: float) -> None:
        self.sim.advance(time)
        self.time = time

    def advance_some(self, time: float, most: int, target: float) -> int:
        made = self.sim.advance(time, most=most)
        self.time = arrival(self.comm, self.time, time, self.sim.clock[made >= most])
        return int(made.max(initial=0))

    def state_of(self) -> State:
        return State({"time": self.time}, self._kept())

    def restore(self, state: State) -> None:
        self.time = float(state.numbers["time"])
        self._go_on_from(state)
