"""Chains of two species, as recordings and checkpoints see them, and equations for their spins."""

from __future__ import annotations

import zlib
from typing import Any, ClassVar

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed, arrival
from mpiflow.core.schedule import State
from mpiflow.files.schema import BINARY_CHAIN, Variable
from mpiflow.initial.chain import perturbed, shuffled
from mpiflow.simulation.base import Motion, Pace, Rows
from mpiflow.simulation.ensemble.simulation import Ensemble
from mpiflow.simulation.spin_diffusion.options import WITH_LOGARITHM, SpinDiffusionConfig
from mpiflow.solvers.binary_chain.mean_field import MeanFieldChains


class BinaryChains(Ensemble):
    """What all models have: starts, observables and profiles.

    What checkpoints call sites are the rows of :attr:`ROWS`, each over the sites of a chain.
    """

    config: SpinDiffusionConfig
    sim: Any
    #: Rows of the state of a chain, and arrays of the solver that a checkpoint keeps besides.
    ROWS: ClassVar[tuple[str, ...]]
    KEPT: ClassVar[tuple[str, ...]]

    def __init__(self, config: SpinDiffusionConfig, comm: MPI.Intracomm) -> None:
        super().__init__(config, comm)
        self.lattice = Lattice((len(self.ROWS), config.size))
        self.numbers = np.arange(self.local_members.start, self.local_members.stop)
        self.block = Rows(self._rows, self._set_rows)
        self.starts = np.empty((0, config.size))

    def begin(self) -> None:
        with agreed(self.comm):
            self._choose_starts()
        self._set()
        self.starts = self.starts[:0]

    def _choose_starts(self) -> None:
        """Put the spins at time 0 into ``starts``. Without communication."""
        config = self.config
        self.starts = np.zeros((len(self.numbers), config.size))
        if self.from_file:
            self.begin_from_file(config)
        elif config.initial == "random":
            self.starts[:] = shuffled(config.size, self.numbers, config.seed)
        else:
            spin = 1.0 if config.initial_spin is None else config.initial_spin
            self.starts[:] = config.chain().alternating(spin)
        if config.perturb:
            self.starts = perturbed(self.starts, config.perturb, self.numbers, config.seed)
            if allowed := self._not_spins(self.starts):
                raise InputError("perturb", config.perturb, allowed, "Take a smaller one.")

    def put(self, members: slice, states: np.ndarray) -> str:
        spins = states[:, 0]
        if allowed := self._not_spins(spins):
            return allowed
        self.starts[members] = spins
        return ""

    def _not_spins(self, spins: np.ndarray) -> str:
        """What spins have to be, if these can be none."""
        raise NotImplementedError

    def _set(self) -> None:
        """Start at time 0 from ``starts``. Collective."""
        raise NotImplementedError

    def _rows(self) -> np.ndarray:
        """The state, (B, rows, sites)."""
        raise NotImplementedError

    def _set_rows(self, rows: slice, values: np.ndarray) -> None:
        raise NotImplementedError

    def _require_values(self, values: np.ndarray) -> None:
        super()._require_values(values)
        x = values[:, 1]
        if allowed := self._not_spins(values[:, 0]):
            raise InputError("state", "spins", allowed, "Look at the first row of each member.")
        if (x[:, 0] != 0).any() or (np.diff(x, axis=1) <= 0).any():
            allowed = "positions that start at 0 and rise"
            raise InputError("state", "positions", allowed, "Look at the second row.")

    def _kept(self) -> dict[str, np.ndarray]:
        """What, with the rows, the chains go on from."""
        return {name: getattr(self.sim, name) for name in self.KEPT}

    def _go_on_from(self, state: State) -> None:
        for name in self.KEPT:
            getattr(self.sim, name)[:] = state.arrays[name]

    def _variable(self, name: str) -> Variable:
        return BINARY_CHAIN[name]

    def measure(self) -> dict[str, np.ndarray]:
        names = self.config.scalars
        return {name: np.asarray(getattr(self.sim, name)()) for name in names}


class MeanFieldRun(BinaryChains):
    """Equations for mean spins (:class:`~mpiflow.solvers.binary_chain.mean_field`)."""

    ROWS = ("s", "x", "log_alpha")
    KEPT = ("clock", "next_step", "steps", "reference")
    counts_events = True

    def __init__(self, config: SpinDiffusionConfig, comm: MPI.Intracomm) -> None:
        super().__init__(config, comm)
        dealt = comm if config.members > 1 else None
        assert config.integrator is not None  # noqa: S101 - for the type checker
        self.sim: MeanFieldChains = MeanFieldChains(
            config.chain(),
            config.model,
            members=config.members,
            comm=dealt,
            tau=config.tau or 1.0,
            mobility=config.mobility,
            tolerance=config.tolerance,
            integrator=config.integrator,
        )
        self.time = 0.0

    def _not_spins(self, spins: np.ndarray) -> str:
        if self.config.model in WITH_LOGARITHM and (abs(spins[:, 1:-1]) >= 1).any():
            return f"mean spins between -1 and 1, not these, with model {self.config.model}"
        return "" if (abs(spins) <= 1).all() else "mean spins from -1 to 1"

    def _set(self) -> None:
        self.sim.set(self.starts)

    def _rows(self) -> np.ndarray:
        return self.sim.y

    def _set_rows(self, rows: slice, values: np.ndarray) -> None:
        self.sim.y[:, rows] = values

    def remarks(self) -> list[str]:
        config = self.config
        if self.from_file or config.perturb or config.size < 200:
            return []
        return [
            "far from the ends alternating spins mix, and separate again from what rounding has "
            "left: when is no property of the model. --perturb 1e-6 makes it one of the start"
        ]

    def advance_to(self, time: float) -> None:
        self.sim.advance(time)
        self.time = time

    def advance_some(self, time: float, most: int, target: float) -> int:
        made = self.sim.advance(time, most=most, target=target)
        self.time = arrival(self.comm, self.time, time, self.sim.clock[made >= most])
        return int(made.max(initial=0))

    def pace(self, motion: Motion) -> Pace:
        """Steps grow with time: a thousandth of the run has many of the short ones."""
        return Pace(1e-3 * (motion.schedule.end - motion.schedule.start), "unit of time")

    def profiles(self) -> dict[str, np.ndarray]:
        return {"s": self.sim.s, "x": self.sim.x, "alpha": np.exp(self.sim.log_alpha)}

    def _put(self, values: np.ndarray) -> None:
        super()._put(values)
        with agreed(self.comm):
            self.sim.relax()

    def state_of(self) -> State:
        return State({"time": self.time, "chain": self._chain()}, self._kept())

    def restore(self, state: State) -> None:
        self.time = float(state.numbers["time"])
        self._go_on_from(state)
        if state.numbers["chain"] != self._chain():  # positions are not at rest in this one
            with agreed(self.comm):
                self.sim.relax()

    def _chain(self) -> int:
        """A number that tells chains apart."""
        return zlib.crc32(repr(self.sim.system).encode())
