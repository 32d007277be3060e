"""The simulation loop of a stochastic field of block means, as recordings and checkpoints see it.

The initial state comes from a number, or from means of blocks in a file (:func:`means_of_file`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiflow.core import arrays
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Shape
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.core.schedule import Clock, Number, Schedule, State, whole_steps
from mpiflow.files.moments import Moment
from mpiflow.files.schema import STANDARD, block_centres
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import Value
from mpiflow.simulation.base import Content, Sample, Simulated
from mpiflow.solvers.field.stochastic import FieldSample, StochasticField

#: Values of an initial file that are in memory at once, about.
VALUES = 2**22


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
        law, ranks, inner = self.field.law, self.comm.size, self.field.inner
        steps = f"each dt in {inner} inner steps, " if inner > 1 else ""
        return (
            f"{fields}{ny} x {nx} blocks of {side} x {side} sites, {law.structure} at "
            f"T = {1 / law.beta:g}, {steps}{ranks} rank{'s' * (ranks > 1)}"
        )

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
        """Observables of the present state. Collective."""
        return replace(self.field.measure(), time=self.time)

    def outside(self) -> int:
        """Blocks on all ranks whose m is not among those the law was learned from. Collective."""
        low, high = getattr(self.field.law, "range", (-1.0, 1.0))
        m = self.field.m
        return self.field.slabs.total(int(np.count_nonzero((m < low) | (m > high))))

    def content(self) -> Content:
        """Magnetization, free energy and the field itself.

        Where m leaves what was learned it is said once, with the time.
        """
        one, side = self.members == 1, self.field.block
        dims = {} if one else {"member": self.members}
        ensemble = tuple(dims)
        variables = [STANDARD[name].over(*ensemble) for name in ("magnetization", "free_energy")]
        variables.append(STANDARD["coarse_magnetization"].over(*ensemble, "y", "x"))
        dims |= dict(zip("yx", self.lattice.shape, strict=True))
        coordinates = {axis: block_centres(dims[axis] * side, side) for axis in "yx"}
        members = () if one else (self.local_members,)

        def frame() -> Sample:
            said = self._left()
            now, m = self.measure(), self.field.m
            values: dict[str, Value] = {
                name: value[0] if one else (value, members)
                for name, value in (
                    ("magnetization", now.magnetization),
                    ("free_energy", now.free_energy),
                )
            }
            values["coarse_magnetization"] = (m[0] if one else m, (*members, *self.local_box()))
            shown = {"m": float(now.magnetization[0])} if now.magnetization.size else {}
            return Sample(now.time, values, shown, said)

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
        path, moment : see :func:`means_of_file`
        """
        with agreed(self.comm):
            field, (rows, _) = self.field, self.local_box()
            m = np.empty(field.local)
            with means_of_file(path, moment, field.block, field.slabs.shape) as read:
                for i, member in enumerate(field.numbers):
                    m[i] = read(int(member), rows)
        self.field.set(m)


#: Means (n, nx) float64 of a member and of rows of blocks.
Read = Callable[[int, slice], np.ndarray]


@contextmanager
def means_of_file(path: Path, moment: Moment, block: int, shape: Shape) -> Iterator[Read]:
    """A function that reads rows of the means of blocks from a file.

    Blocks in the file that are smaller are averaged, and a smaller lattice is repeated
    periodically. A file with members gives to each its own, unless the moment names one.

    Parameters
    ----------
    path : a Trajectory with ``coarse_magnetization``, ``spin`` or ``spin_bits``; or a .npy of
        means of blocks of ``block`` sites, (sy, sx)
    moment : of a Trajectory
    block : sites a side
    shape : (ny, nx) blocks that are wanted

    Raises
    ------
    InputError : it is no such file, or its blocks or its lattice do not fit
    """
    try:
        if arrays.is_array_file(path):
            allowed = "a readable .npy of means of blocks, (ny, nx)"
            values = arrays.mapped("initial", path, allowed)
            if values.ndim != 2:
                raise InputError("initial", f"{path}: {values.shape}", allowed, "Look at it.")
            yield _Means(str(path), lambda _, rows: values[rows], values.shape, block, block, shape)
            return
        with Trajectory(path) as run:
            name, dims, unit = _fields_of(run)
            at = moment.frame_of(path, run.time)
            sizes = [run.sizes[d] for d in dims]
        with h5py.File(path, "r", locking=False) as file:
            data, several = file[name], len(sizes) == 3
            ny, nx = sizes[-2:]

            def piece(member: int, rows: slice) -> np.ndarray:
                own = moment.members_of(path, sizes[0] if several else 0, np.array([member]))
                values = data[(at, *(own if several else []), rows)]
                if name != "spin_bits":
                    return np.asarray(values)
                return 2 * np.unpackbits(values, axis=-1).view(np.int8) - 1

            sides = ny, nx * (8 if name == "spin_bits" else 1)
            yield _Means(str(path), piece, sides, unit, block, shape)
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        allowed = "a readable .npy or Trajectory"
        raise InputError("initial", str(path), allowed, f"Reading said: {error}.") from error


def _fields_of(run: Trajectory) -> tuple[str, tuple[str, ...], int]:
    """Which variable of a run, its dimensions, and the sites a side of what it is over."""
    names = [n for n in ("coarse_magnetization", "spin_bits", "spin") if n in run.variables]
    if not names:
        allowed = "a run with block means or spins"
        raise InputError("initial", str(run.path), allowed, "Save it with --coarse 8.")
    unit: Any = 1
    if names[0] == "coarse_magnetization":
        unit = run.config.get("coarse")
        if not isinstance(unit, int) or unit < 1:
            allowed = "a run whose configuration says the size of its blocks"
            raise InputError("initial", str(run.path), allowed, "Use a run of mpiflow simulate.")
    return names[0], run.variables[names[0]].dims, unit


class _Means:
    """Rows of means of blocks, made of rows of smaller blocks of a smaller lattice."""

    def __init__(
        self, path: str, piece: Read, sides: Shape, unit: int, block: int, shape: Shape
    ) -> None:
        self.piece, self.path, self.shape = piece, path, shape
        self.times, rest = divmod(block, unit)
        if rest:
            allowed = f"a multiple of the {unit} sites a side of the blocks of {path}"
            raise InputError("block", block, allowed, "Use another --block, or another file.")
        lattice = tuple(side * unit for side in sides)
        if any(side % block for side in lattice):
            allowed = f"a lattice in blocks of {block} sites"
            raise InputError("initial", f"{path}: {lattice}", allowed, "Use another --block.")
        self.period = tuple(side // block for side in lattice)
        if any(n % p for n, p in zip(shape, self.period, strict=True)):
            wanted = tuple(n * block for n in shape)
            allowed = f"a multiple of {lattice}, the lattice of {path}"
            raise InputError("size", wanted, allowed, "The file is repeated whole times.")

    def __call__(self, member: int, rows: slice) -> np.ndarray:
        (ny, nx), count = self.period, rows.stop - rows.start
        few = min(count, ny)
        known = np.empty((few, nx))
        step = max(1, VALUES // max(1, nx * self.times**2))
        done = 0
        while done < few:
            first = (rows.start + done) % ny
            n = min(step, few - done, ny - first)
            known[done : done + n] = self._averaged(member, slice(first, first + n))
            done += n
        if not (abs(known) <= 1).all():
            raise InputError("initial", self.path, "means of -1 to 1", "Look at the file.")
        return np.tile(known[np.arange(count) % max(1, few)], (1, self.shape[1] // nx))

    def _averaged(self, member: int, rows: slice) -> np.ndarray:
        """Added up in one order: the same bits however rows are cut."""
        q, n, nx = self.times, rows.stop - rows.start, self.period[1]
        values = self.piece(member, slice(rows.start * q, rows.stop * q)).reshape(n, q, nx, q)
        down, out = np.zeros((n, nx, q)), np.zeros((n, nx))
        for i in range(q):
            down += values[:, i]
        for i in range(q):
            out += down[..., i]
        return out / q**2
