"""What a run asks of a simulation: the contract between a system and all that runs it.

:class:`Simulated` is the base of every simulation. A run (:mod:`mpiflow.run`) records, stops,
resumes, plans and measures any of them without knowing which one it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpiflow.core.boxes import gather_boxes
from mpiflow.core.errors import InputError
from mpiflow.core.guards import Guarded
from mpiflow.core.lattice import Lattice, split
from mpiflow.core.mpi import MPI
from mpiflow.core.noise import RNG
from mpiflow.core.parallel import agreed
from mpiflow.core.schedule import Number, Schedule, State, number_to_json, whole_steps
from mpiflow.files.schema import TIME, Variable
from mpiflow.files.writer import Value
from mpiflow.simulation.states import Given, part_of


class Observed:
    """A frame of observables: arrays over the members that this rank holds.

    Of a single lattice, a ``single`` one, they are what they are of it, numbers for the most part,
    without the axis of members: ``f"{frame.magnetization:.3f}"`` is right.
    """

    single: bool

    def _give_up_members(self, *names: str) -> None:
        """Take that axis from attributes, where there is one member."""
        if self.single:
            for name in names:
                object.__setattr__(self, name, getattr(self, name)[0])

    def _with_members(self, value: Any) -> np.ndarray:
        return np.asarray(value)[None] if self.single else np.asarray(value)


class Sample(NamedTuple):
    """A frame on its way to the file.

    Attributes
    ----------
    values : this rank's part of every variable
    shown : what a progress bar shows
    said : lines for the log
    """

    time: float
    values: dict[str, Value]
    shown: dict[str, Any]
    said: Sequence[str] = ()

    def here(self, name: str) -> np.ndarray:
        """This rank's part of a variable."""
        if name not in self.values:
            raise InputError("variable", name, f"one of {sorted(self.values)}", "See the file.")
        value = self.values[name]
        return np.asarray(value[0] if isinstance(value, tuple) else value)


@dataclass(frozen=True)
class Content:
    """What a Trajectory holds of a simulation.

    Attributes
    ----------
    frame : measures the present state. Collective
    attributes : of the root, with ``config_json``
    static : this rank's part of variables without time
    """

    dims: dict[str, int]
    coordinates: dict[str, np.ndarray]
    variables: list[Variable]
    attributes: dict[str, Any]
    frame: Callable[[], Sample]
    time: Variable = TIME
    static: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Motion:
    """How a simulation goes on, in the unit that its frames are counted in.

    Attributes
    ----------
    sim : what moves
    schedule : of the frames, from the beginning of the run
    position, move : where it is, and go to a place. Collective
    stop_interval : it can be interrupted after whole multiples of this; 0: anywhere, None: nowhere
    unit : time or hops
    some : where stretches of work are counted in events: go on towards a place, at most so many
        of them in each member, and return how many the busiest member of this rank made. The
        place is on the way to a frame, whose place comes last. Collective
    """

    sim: Simulated
    schedule: Schedule
    position: Callable[[], float]
    move: Callable[[float], None]
    stop_interval: float | None
    unit: str = "time"
    some: Callable[[float, int, float], int] | None = None

    @classmethod
    def of(
        cls,
        sim: Simulated,
        *,
        save_every: float | None = None,
        frames_per_decade: int | None = None,
        **extent: Any,
    ) -> Motion:
        """That of a simulation, with frames at equal distances or with so many a decade.

        Parameters
        ----------
        save_every : distance of the frames, or of the first one where their distances grow
        extent : how far, as of :meth:`Simulated.motion`

        Raises
        ------
        InputError : these make no sense here
        """
        if frames_per_decade is None:
            return sim.motion(save_every=save_every, **extent)
        motion = sim.motion(**extent)  # equal distances would be far too many frames
        start, end, every = motion.schedule.start, motion.schedule.end, motion.schedule.every
        step = 1.0 if motion.unit == "hops" else motion.stop_interval or 0.0
        if save_every is not None:
            whole_steps("save_every", save_every, step or None)
            every = save_every
        schedule = Schedule(start, end, every, frames_per_decade, step)
        schedule.check()
        return replace(motion, schedule=schedule)

    def stop(self, target: float, stride: float) -> float:
        """The next place to look up at, on the way to ``target``."""
        if self.stop_interval is None or math.isinf(stride):
            return target
        here = self.position()
        if self.stop_interval > 0:
            stride = max(1, math.ceil(stride / self.stop_interval * (1 - 1e-9)))
            stride *= self.stop_interval
            target = max(target, here)  # hops of a window may have overtaken it
        place = here + stride
        return target if place > target - 0.5 * self.stop_interval or place <= here else place

    def reaches(self, target: float) -> bool:
        """Whether whole steps lead from here to a place."""
        if not self.stop_interval:
            return True
        left = target - self.position()
        steps = round(left / self.stop_interval)
        rounding = 1e-12 * abs(target)  # of a difference of two late times
        return math.isclose(steps * self.stop_interval, left, rel_tol=1e-9, abs_tol=rounding)


@dataclass(frozen=True)
class Pace:
    """Small equal parts of a run, by which its time is measured before it runs.

    Attributes
    ----------
    stride : a step, a hop, or so little time that nothing may happen
    unit : in words what an advance goes by
    scale : such units are of this length in the unit of the run
    """

    stride: float
    unit: str
    scale: float = 1.0


@dataclass(frozen=True)
class Built:
    """A simulation as options want it.

    Attributes
    ----------
    sim : in its initial state, unless a checkpoint has another
    attributes : what its file says beside what the simulation knows
    remarks : lines for the log about the initial state
    """

    sim: Simulated
    attributes: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


class Simulated(Guarded):
    """A simulation that is run, recorded, stopped and resumed.

    Attributes
    ----------
    comm, members, seed : every method is collective on the communicator
    lattice : sides of the state of a member, as a checkpoint keeps it
    block : this rank's part of the state, one value a site: ``spins()`` (members here, *sides),
        ``layout``, ``bands()``, ``store(rows, values)`` and ``fill_halo()``; see
        :class:`~mpiflow.core.block.Block` and :class:`Rows`
    time : of the present state
    time_unit : of its times in words for people, with a space before it
    taken_back : events of a window that a wish to stop took back, to be made anew; None if none was
    window_option : the option that makes windows shorter, None if none does
    """

    comm: MPI.Intracomm
    members: int
    seed: int
    lattice: Lattice
    block: Any
    time: float
    time_unit = ""
    taken_back: int | None = None
    window_option: str | None = None

    # -- in words --------------------------------------------------------------------

    @property
    def rng(self) -> str:
        """Name of the generator of random numbers."""
        return RNG

    def describe(self) -> str:
        """One line: what it is, how time advances, and how the work is divided."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}, time {self.time:g}{self.time_unit}>"

    def remarks(self) -> list[str]:
        """What whoever reads its results should know of its errors: lines for the log."""
        return []

    def closing(self) -> list[str]:
        """What is to be said at the end of a run: lines for the log. Collective."""
        return []

    def facts(self) -> dict[str, Any]:
        """The configuration, as far as the simulation knows it: for files and checkpoints."""
        raise NotImplementedError

    def attributes(self, saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Standard attributes of its files; ``saved`` are facts about what is saved."""
        facts = {
            name: number_to_json(value) if isinstance(value, float) else value
            for name, value in self.facts().items()
        }
        named = {name: facts[name] for name in ("system", "kernel", "seed") if name in facts}
        return named | {
            "config_json": json.dumps({**facts, **(saved or {})}),
            "rng": self.rng,
            "decomposition_invariant": 1,
        }

    def changes(self, numbers: Mapping[str, Number]) -> dict[str, tuple[Any, Any]]:
        """What differs from the numbers of a checkpoint but must not, old and new."""
        return {}

    # -- its part of the whole -------------------------------------------------------

    @property
    def local_members(self) -> slice:
        """The members that this rank holds."""
        if self.members == 1:
            return slice(0, 1)
        return slice(*split(self.members, self.comm.size, self.comm.rank))

    def local_box(self, unit: int = 1) -> tuple[slice, ...]:
        """This rank's box as slices of a global array with one entry per ``unit`` sites."""
        if self.block.layout is not None:
            return tuple(self.block.layout.slices(self.comm.rank, unit))
        return tuple(slice(0, side // unit) for side in self.lattice.shape)

    def _of_members(self, value: np.ndarray) -> Value:
        """Numbers of this rank's members, (members here, ...), for a frame."""
        if self.members == 1:
            return value[0]
        return value, (self.local_members, *(slice(0, n) for n in value.shape[1:]))

    def _of_box(self, field: np.ndarray, *box: slice) -> Value:
        """A field of this rank's members in a box of its axes, for a frame."""
        if self.members == 1:
            return field[0], box
        return field, (self.local_members, *box)

    def _ranks_in_words(self) -> str:
        return f"{self.comm.size} rank{'s' * (self.comm.size > 1)}"

    def is_site(self) -> np.ndarray | None:
        """Which places of this rank's part of a member are sites; None where all are."""
        return None

    # -- the state in and out --------------------------------------------------------

    @property
    def state(self) -> np.ndarray:
        """This rank's part of the present state, (members here, *sides here). Collective.

        It is to be read: writing to it raises, :meth:`set_state` sets it.
        """
        self.require_state()
        return self.block.spins()

    def gather(self, root: int = 0) -> np.ndarray | None:
        """The state (members, *sides) on rank ``root``, None elsewhere. Collective.

        For small systems and tests: one rank holds everything.
        """
        return gather_boxes(self.state, *self._place(), self.comm, root)

    def _place(self) -> tuple[tuple[slice, ...], tuple[int, ...]]:
        """Where this rank's part of the state is, and the shape of the whole."""
        return (self.local_members, *self.local_box()), (self.members, *self.lattice.shape)

    def set_state(self, state: Given, *, root: int = 0) -> None:
        """Go on from this state, at the present time. Collective.

        Parameters
        ----------
        state : one of three, numbers of any dtype that hold what sites can be:

            an array (members, *sides) on rank ``root``, whatever other ranks pass
            an array (members here, *sides here) on every rank
            a function of the coordinates of sites on every rank. It gets an array of whole numbers
            for each axis, which broadcast together, and ``member`` if it has a parameter of that
            name

            Without the axis of members it is the state of all of them.

        Raises
        ------
        InputError
            on all ranks, if its shape or a value is impossible; the state is then as it was
        """
        values = part_of(state, *self._place(), self.comm, root)
        with agreed(self.comm):
            self._require_values(values)
        self._put(values)

    def _require_values(self, values: np.ndarray) -> None:
        """Raise unless this rank's part of a state can be one. Without communication."""
        raise NotImplementedError

    def _put(self, values: np.ndarray) -> None:
        """Set this rank's part of the state to such values. Collective."""
        self._sound = False
        self.block.store(slice(0, values.shape[1]), values)
        self.block.fill_halo()

    # -- time ------------------------------------------------------------------------

    @property
    def counts_events(self) -> bool:
        """Whether it is interrupted after so many events, by :meth:`advance_some`."""
        return False

    @property
    def stop_interval(self) -> float | None:
        """A run may be interrupted after whole multiples of this time; 0: anywhere, None: nowhere.

        Where it is interrupted changes nothing. Frames are always places to stop.
        """
        return 0.0

    def advance_to(self, time: float) -> None:
        """Advance the state to a time, in whole steps from now. Collective."""
        raise NotImplementedError

    def advance_some(self, time: float, most: int, target: float) -> int:
        """Advance towards a time, by at most so many events of each member. Collective.

        :attr:`time` is afterwards that time if all members are there, else that of the last event
        of the member that is behind. Where it is interrupted changes nothing: what must end at a
        frame ends at ``target``, where the next one is due, not at ``time``.

        Returns
        -------
        the events of the busiest member of this rank
        """
        raise NotImplementedError

    def schedule(self, time: float, every: float, begun: bool = False) -> Schedule:
        """Frames now, every ``every``, and after ``time``; raises if steps do not fit.

        Of a run that has ``begun``, perhaps with another step, only ``every`` is looked at.
        """
        return Schedule.of(self.time, time, every)

    def motion(
        self,
        *,
        time: float | None = None,
        hops: int | None = None,
        save_every: float | None = None,
        begun: bool = False,
    ) -> Motion:
        """How it goes on for a time, with a frame every ``save_every``, unless given at the end.

        Raises
        ------
        InputError : these make no sense here
        """
        if hops is not None or time is None:
            remedy = "Only an alloy counts hops: give a time."
            raise InputError("time, hops", (time, hops), "a time alone", remedy)
        every = time if save_every is None else save_every
        some = self.advance_some if self.counts_events else None
        return Motion(
            self,
            self.schedule(time, every, begun),
            lambda: self.time,
            self.advance_to,
            self.stop_interval,
            some=some,
        )

    def pace(self, motion: Motion) -> Pace:
        """By what to measure how long a run will take."""
        end = motion.schedule.end - motion.schedule.start
        if step := self.stop_interval:
            return Pace(step, "step", step)
        return Pace(1e-9 * end, "attempt per spin")

    # -- its file --------------------------------------------------------------------

    if TYPE_CHECKING:
        #: What its file holds; keywords are options of the system about what is saved, and
        #: :class:`InputError` is raised, on all ranks alike, if it cannot save that.
        content: Callable[..., Content]

    # -- to go on later --------------------------------------------------------------

    def site_bits(self) -> np.ndarray | None:
        """This rank's sites as bits, (members here, ny, ceil(nx / 8)) uint8, if two values do.

        The first site is the highest bit of a byte; a bit is set where the site is +1, not -1. None
        keeps the sites as they are.
        """
        return None

    def state_of(self) -> State:
        """What, with the sites of :attr:`block`, the trajectory goes on from. Collective."""
        raise NotImplementedError

    def restore(self, state: State) -> None:
        """Go on from such a state; the sites are there already. Collective."""
        raise NotImplementedError


class Rows:
    """The state of systems that are whole on a rank, (members here, *sides), as a block of sites.

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
