"""The simulation loop of a stochastic field of block means, as runs and checkpoints see it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.core.schedule import Clock, Number, Schedule, State, whole_steps
from mpiflow.files.moments import Moment
from mpiflow.files.schema import STANDARD, block_centres
from mpiflow.initial.block_means import means_of_file
from mpiflow.simulation.base import Content, Sample, Simulated
from mpiflow.solvers.field.stochastic import FieldSample, StochasticField


class Sites:
    """The state of a field in the way that checkpoints see a block of sites."""

    def __init__(self, field: StochasticField, cut: bool) -> None:
        self.field, self.cut = field, cut

    @property
    def batch(self) -> int:
        """Fields on this rank."""
        return len(self.field.numbers)

    @property
    def layout(self) -> Sites | None:
        """Where the slabs are; None if all of a field is on one rank."""
        return self if self.cut else None

    def slices(self, rank: int, unit: int = 1) -> tuple[slice, slice]:
        """Rows and columns of a rank."""
        slabs = self.field.slabs
        first, last = (int(edge) for edge in slabs.edges[rank : rank + 2])
        return slice(first, last), slice(0, slabs.shape[1])

    def spins(self) -> np.ndarray:
        """(B, n, nx): z, or counts of spins that are up; to be read."""
        view = self.field.state.view()
        view.flags.writeable = False
        return view

    def bands(self) -> list[slice]:
        """Rows that are read together."""
        rows = self.field.local[1]
        return [slice(0, rows)] if rows else []

    def store(self, rows: slice, values: np.ndarray) -> None:
        """Set rows of the state."""
        self.field.state[:, rows] = values

    def fill_halo(self) -> None:
        """There is none."""


class FieldSimulation(Simulated):
    """A :class:`~mpiflow.solvers.field.stochastic.StochasticField` run, recorded and resumed.

    Parameters
    ----------
    field : what moves. Its own warnings are kept quiet: :meth:`outside` counts for all ranks
    seed, members : those it was made with
    law : facts about the law, for files and checkpoints

    Attributes
    ----------
    lattice : of blocks

    Raises
    ------
    InputError : by its methods: means beyond -1 and 1, times that are not above 0
    """

    def __init__(
        self,
        field: StochasticField,
        seed: int,
        members: int = 1,
        law: Mapping[str, Any] | None = None,
    ) -> None:
        self.law = dict(law or {})
        self.field, self.seed, self.members = field, seed, members
        self.comm: MPI.Intracomm = field.slabs.comm
        self.lattice = Lattice(field.slabs.shape)
        self.block = Sites(field, members == 1)
        self.clock = Clock(field.dt)
        self._inside = True

    def _check_state(self) -> None:
        self.field.require_state()

    @property
    def state(self) -> np.ndarray:
        """Means of this rank's blocks, (members here, rows, nx) float64, to be read."""
        self.require_state()
        return self.field.m

    def _require_values(self, values: np.ndarray) -> None:
        wrong = values[~(abs(values) <= 1)]
        if wrong.size:
            raise InputError("state", wrong[0].item(), "means from -1 to 1", "Look at the state.")

    def _put(self, values: np.ndarray) -> None:
        step, parts = self.field.step, self.field.parts
        self.field.set(np.asarray(values, float))
        self.field.go_on(step, 0, parts)

    @property
    def time(self) -> float:  # type: ignore[override]  # it follows from the step
        """Of the whole steps that were made, in attempts per spin."""
        return self.clock.time(self.field.step)

    counts_events = True

    @property
    def stop_interval(self) -> float:
        return self.field.dt

    def describe(self) -> str:
        """One line: size, structure and how the work is divided."""
        side = self.field.block
        ny, nx = self.lattice.shape
        fields = f"{self.members} fields of " if self.members > 1 else ""
        law, inner = self.field.law, self.field.inner
        steps = f"each dt in {inner} inner steps, " if inner > 1 else ""
        return (
            f"{fields}{ny} x {nx} blocks of {side} x {side} sites, {law.structure} at "
            f"T = {1 / law.beta:g}, {steps}{self._ranks_in_words()}"
        )

    @property
    def rng(self) -> str:
        return self.field.rng

    def facts(self) -> dict[str, Any]:
        """What makes it the same run, but for the law."""
        return {
            "system": "onsagerflow",
            "size": [n * self.field.block for n in self.lattice.shape],
            "block": self.field.block,
            "structure": self.field.law.structure,
            "temperature": 1 / self.field.law.beta,
            "dt": self.field.dt,
            "kernel": self.field.law.structure,
            "members": self.members,
            "seed": self.seed,
            **self.law,
        }

    # -- time --------------------------------------------------------------------------------

    def schedule(self, time: float, every: float, begun: bool = False) -> Schedule:
        """Frames now, every ``every``, and after ``time``; raises if steps do not fit.

        Of a run that has ``begun``, perhaps with another step, only ``every`` is looked at.
        """
        for name, value in (("time", every if begun else time), ("save_every", every)):
            steps = whole_steps(name, value, self.field.dt, other="another dt")
            if not steps:
                raise InputError(name, value, "a number above 0", "Try 1.")
        return Schedule.of(self.time, time, every)

    def advance_to(self, time: float) -> None:
        """Make the steps up to a time. Collective."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.field.advance(self.clock.step(time) - self.field.step)

    def advance_some(self, time: float, most: int, target: float) -> int:
        """Advance towards a time by at most so many inner steps, and say how many. Collective.

        A step may be made of thousands: it can be interrupted between any two of them.

        Parameters
        ----------
        time : some whole steps before ``target``, or inside of a step, which is then ended
        target : when the next frame is due
        """
        field = self.field
        ahead = math.ceil((time - self.time) / field.dt * (1 - 1e-9))
        steps = min(max(1, ahead), self.clock.step(target) - field.step)
        made = min(most, field.parts - field.begun + (steps - 1) * field.inner)
        field.advance_some(made)
        return made

    def measure(self) -> FieldSample:
        """Observables of the present state; numbers of a single field. Collective."""
        now = replace(self.field.measure(), time=self.time)
        if self.members > 1:
            return now
        return replace(now, magnetization=now.magnetization[0], free_energy=now.free_energy[0])

    def outside(self) -> int:
        """Blocks on all ranks whose m is not among those the law was learned from. Collective."""
        low, high = getattr(self.field.law, "range", (-1.0, 1.0))
        m = self.field.m
        return self.field.slabs.total(int(np.count_nonzero((m < low) | (m > high))))

    def content(self) -> Content:
        """Magnetization, free energy and the field itself.

        Where m leaves what was learned it is said once, with the time.
        """
        side = self.field.block
        dims = {} if self.members == 1 else {"member": self.members}
        ensemble = tuple(dims)
        variables = [STANDARD[name].over(*ensemble) for name in ("magnetization", "free_energy")]
        variables.append(STANDARD["coarse_magnetization"].over(*ensemble, "y", "x"))
        dims |= dict(zip("yx", self.lattice.shape, strict=True))
        coordinates = {axis: block_centres(dims[axis] * side, side) for axis in "yx"}

        def frame() -> Sample:
            said = self._left()
            now, m = self.field.measure(), self.field.m
            values = {
                "magnetization": self._of_members(now.magnetization),
                "free_energy": self._of_members(now.free_energy),
                "coarse_magnetization": self._of_box(m, *self.local_box()),
            }
            shown = {"m": float(now.magnetization[0])} if now.magnetization.size else {}
            return Sample(self.time, values, shown, said)

        return Content(dims, coordinates, variables, self.attributes(), frame)

    def _left(self) -> list[str]:
        """What to say where m has left what was learned, once. Collective."""
        count = self.outside() if self._inside else 0
        if not count:
            return []
        self._inside = False
        low, high = self.field.law.range  # type: ignore[attr-defined]
        blocks = self.members * self.lattice.sites
        return [
            f"at time {self.time:g} m of {count} of {blocks} blocks is beyond {low:.4g} to "
            f"{high:.4g}, where the law was learned"
        ]

    # -- to go on later ----------------------------------------------------------------------

    def state_of(self) -> State:
        """What, with the state of :attr:`block`, the run goes on from."""
        self.field.require_state()
        numbers: dict[str, Number] = {"time": self.time, "step": self.field.step}
        numbers |= {"begun": self.field.begun, "parts": self.field.parts, **self.clock.numbers()}
        return State(numbers)

    def restore(self, state: State) -> None:
        """Go on from such a state; that of :attr:`block` is there already."""
        numbers, field = dict(state.numbers), self.field
        step, begun = int(numbers["step"]), int(numbers.get("begun", 0))
        parts, dt = int(numbers.get("parts", 1)), float(numbers.get("clock_dt", field.dt))
        if begun and dt != field.dt:  # steps of the new length begin here, inside of an old one
            numbers |= {"time": float(numbers["time"]) + begun * dt / parts, "step": step + 1}
            step, begun = step + 1, 0
        field.go_on(step, begun, parts)
        self.clock = Clock.restored(numbers, field.dt)

    # -- the beginning -----------------------------------------------------------------------

    def set_means(self, path: Path, moment: Moment = Moment()) -> None:
        """Start from the means of blocks in a file. Collective; each rank reads its rows.

        Parameters
        ----------
        path, moment : see :func:`~mpiflow.initial.block_means.means_of_file`
        """
        with agreed(self.comm):
            field, (rows, _) = self.field, self.local_box()
            m = np.empty(field.local)
            with means_of_file(path, moment, field.block, field.slabs.shape) as read:
                for i, member in enumerate(field.numbers):
                    m[i] = read(int(member), rows)
        self.field.set(m)
