"""What simulations of lattices share: members and tiles, times, counts of events, frames."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from mpiflow.core import gpu
from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import COARSE, Lattice, Layout, Shape, other_cut
from mpiflow.core.mpi import MPI
from mpiflow.core.packed import BAND, PackedBlock, cut_of
from mpiflow.core.parallel import arrival
from mpiflow.core.schedule import Clock, Number, Schedule, State, whole_steps
from mpiflow.files.schema import block_centres
from mpiflow.simulation.base import Simulated
from mpiflow.simulation.driven import Driven
from mpiflow.simulation.in_field import InSiteField


class LatticeSimulation(Simulated):
    """One lattice cut into tiles over the ranks, or many lattices dealt to them."""

    block: Block | PackedBlock
    #: A time between frames that makes sense, for messages.
    example_time = "1"

    def _set_up(
        self, lattice: Lattice, seed: int, members: int, comm: MPI.Intracomm | None
    ) -> None:
        """Set what every simulation of a lattice is told."""
        self.lattice, self.seed, self.members = lattice, seed, members
        self.comm = MPI.COMM_WORLD if comm is None else comm
        if members < 1:
            raise InputError("members", members, "1 or more", "Leave it out for one lattice.")

    def _make_block(
        self, layout: Layout | None, *, halo: int = 1, unset: int = 0, device: Device | None = None
    ) -> Block:
        """Sites that nothing has set yet: a tile, or without a layout whole lattices."""
        if layout is not None:
            block = Block.tile(layout, self.comm, halo=halo, device=device)
            if unset:
                block.load(np.full((1, *block.shape), unset, np.int8))
            return block
        numbers = self._member_numbers()
        shape = (len(numbers), *self.lattice.shape)
        none = np.full(shape, unset, np.int8) if unset else np.zeros(shape, np.int8)
        return Block.periodic(none, numbers, halo=halo, device=device)

    def _member_numbers(self) -> np.ndarray:
        return np.arange(self.local_members.start, self.local_members.stop)

    def _fill(self, fill: Callable[..., Any], options: dict[str, Any]) -> Any:
        """Set the initial state with a function that may want this simulation's seed."""
        if "seed" in inspect.signature(fill).parameters:
            options.setdefault("seed", self.seed)
        self._sound = False
        return fill(self.block, **options)

    @property
    def present(self) -> Block | PackedBlock:
        """The sites at the present time. Collective."""
        return self.block

    @property
    def state(self) -> np.ndarray:
        self.require_state()
        return self.present.spins()

    def _shares(self, totals: np.ndarray) -> np.ndarray:
        """Counts of this rank: of a lattice that is cut, rank 0 has all so far."""
        return totals if self.members > 1 or self.comm.rank == 0 else np.zeros_like(totals)

    def _tiles_in_words(self) -> str:
        layout = self.block.layout
        grid = f" in a grid of {layout.ranks_grid}" if layout and layout.ranks > 1 else ""
        return self._ranks_in_words() + grid

    # -- times -----------------------------------------------------------------------

    def steps_in(self, duration: float, name: str = "time") -> int:
        """Whole steps in ``duration``; raises if it is not a multiple of the step."""
        raise NotImplementedError

    def measure(self) -> Any:
        """Observables of the present state. Collective."""
        raise NotImplementedError

    def schedule(self, time: float, every: float, begun: bool = False) -> Schedule:
        """Frames now, every ``every``, and after ``time``; raises if steps do not fit.

        Of a run that has ``begun``, perhaps with another step, only ``every`` is looked at.
        """
        if not begun:
            self.steps_in(time, "time")
        if self.steps_in(every, "save_every") == 0:
            raise InputError("save_every", every, "a number above 0", f"Try {self.example_time}.")
        return Schedule.of(self.time, time, every)

    def frames(self, time: float, every: float) -> Iterator[Any]:
        """Run for ``time``, yielding the observables now, every ``every``, and at the end."""
        schedule = self.schedule(time, every)
        yield self.measure()
        for number in range(1, schedule.last + 1):
            self.advance_to(schedule.target(number))
            yield self.measure()


class SquareSimulation(LatticeSimulation, Driven, InSiteField):
    """Sites on a square lattice that change one by one, in steps or by single events.

    Attributes
    ----------
    lattice, block, members, comm, seed, time : see :class:`mpiflow.Simulation`
    solver : it advances the sites, and returns how many changes it made in each lattice
    events : the solver, if it goes by single events to any time; None if it makes steps
    KEPT : what a checkpoint keeps of that
    """

    KEPT: ClassVar[dict[str, type]] = {"clock": np.float64, "events": np.int64, "order": np.uint32}
    device: Device
    solver: Any
    step: int
    _flips: np.ndarray

    def _set_up_square(
        self,
        size: int | Shape,
        seed: int,
        members: int,
        comm: MPI.Intracomm | None,
        device: str | None,
        able: bool,
    ) -> None:
        """``able`` says whether what advances it has kernels for GPUs."""
        sides = (size, size) if isinstance(size, int) else tuple(size)
        self._set_up(Lattice(sides), seed, members, comm)
        here = gpu.of_simulation(device, self.comm, able)
        self.device = Device(here.name, here.gpu)
        self.time, self.step = 0.0, 0

    def _layout(self, granularity: int, **how: Any) -> Layout | None:
        """How a single lattice is cut, by :func:`cut`; None for several, which are whole."""
        if self.members == 1:
            return cut(self.lattice, self.comm.size, granularity=granularity, **how)
        Layout(self.lattice, (1, 1), granularity)  # checks divisibility
        return None

    def _start_clock(self) -> None:
        """With the block and the solver made."""
        self._set_clock(Clock(self.step_length or 0.0))
        self._flips = np.zeros(self.block.batch, np.int64)

    def _set_clock(self, clock: Clock) -> None:
        self._clock = clock

    def _lattices_in_words(self, sites: str) -> str:
        size = f"{' x '.join(map(str, self.lattice.shape))} {sites}"
        return size if self.members == 1 else f"{self.members} lattices of {size}"

    # -- state ---------------------------------------------------------------------

    def set_spins(self, fill: Callable[..., None], **options: Any) -> None:
        """Set the initial state with a function of :mod:`mpiflow.initial.spins`.

        Functions that draw random numbers get this simulation's seed.
        """
        self._fill(fill, options)

    def spins(self) -> np.ndarray:
        """This rank's spins on the host, (members here, ny, nx) int8, to be read.

        Writing to them raises: :meth:`set_spins` sets the state.
        """
        if not self._sound:
            self._check_state()
        return self.present.spins()

    def _put(self, values: np.ndarray) -> None:
        sites = np.ascontiguousarray(values, np.int8)
        self.set_spins(lambda block: block.load(sites))

    # -- dynamics ------------------------------------------------------------------

    @property
    def events(self) -> Any:
        raise NotImplementedError

    @property
    def step_length(self) -> float | None:
        """The time that durations must be multiples of; None if there is no such."""
        raise NotImplementedError

    @property
    def stop_interval(self) -> float | None:
        return self.step_length or 0.0

    @property
    def counts_events(self) -> bool:
        return self.events is not None

    def steps_in(self, duration: float, name: str = "time") -> int:
        return whole_steps(name, duration, self.step_length, now=self.time)

    def _make_steps(self, steps: int) -> np.ndarray:
        """Make steps of one length; the changes in each lattice here, (B,)."""
        raise NotImplementedError

    def advance(self, duration: float) -> None:
        """Advance the state by ``duration``, a multiple of the step if there is one. Collective."""
        self.require_state()
        steps = self.steps_in(duration)
        if self.step_length is None:
            self.advance_to(self.time + duration)
        else:
            self._made(steps, self._make_steps(steps))

    def advance_to(self, time: float) -> None:
        """Advance the state to a time, in whole steps from now. Collective."""
        if self.events is None:
            self.advance(time - self.time)
            return
        self.require_state()
        for end in self._ends(time):
            self._count(self.events.advance(self.block, seed=self.seed, until=end))
            self.time = end  # exactly: not a sum of durations, which rounds
            self._hold_next()

    def advance_some(self, time: float, most: int, target: float) -> int:
        self.require_state()
        time = next(self._ends(time))
        made = self.events.advance(self.block, seed=self.seed, until=time, flips=most)
        self._count(made)
        self.time = arrival(self.comm, self.time, time, self.events.clock[made >= most])
        self._hold_next()
        return int(made.max(initial=0))

    def _made(self, steps: int, flips: np.ndarray) -> None:
        self._count(flips)
        self.step += steps
        self.time = self._clock.time(self.step)

    def _count(self, flips: np.ndarray) -> None:
        self._flips = self._flips + flips  # a new array: frames keep theirs

    # -- to go on later ------------------------------------------------------------

    def state_of(self) -> State:
        self.require_state()
        numbers: dict[str, Number] = {"time": self.time, "step": self.step, **self._clock.numbers()}
        arrays = {"flips": self.block.total(self._flips)}
        if self.events is not None:
            arrays |= {name: getattr(self.events, name) for name in self.KEPT}
        return State(numbers, arrays)

    def restore(self, state: State) -> None:
        self.time, self.step = float(state.numbers["time"]), int(state.numbers["step"])
        self._set_clock(Clock.restored(state.numbers, self._clock.dt))
        self._flips, self._sound = self._shares(state.arrays["flips"]), False
        if self.events is None:
            return
        self.events.adopt(self._held())
        for name, kind in self.KEPT.items():
            if state.arrays[name].size:  # a rank may have no member
                setattr(self.events, name, state.arrays[name].astype(kind))

    # -- what its file holds ---------------------------------------------------------

    def _require_whole_blocks(self, name: str, side: int) -> None:
        """Raise unless every tile is made of whole blocks of so many sites a side."""
        Layout(self.lattice, (1,) * self.lattice.ndim, side)  # divides the lattice
        layout = self.block.layout
        boxes = [] if layout is None else [layout.bounds(rank) for rank in range(layout.ranks)]
        if any(edge % side for box in boxes for edges in box for edge in edges):
            raise InputError(
                name,
                side,
                "a block size that divides the tiles of all ranks",
                f"Make the Simulation with granularity={side}.",
            )

    def _axes(
        self, dims: dict[str, int], coordinates: dict[str, np.ndarray], unit: int
    ) -> list[str]:
        """Names of the axes of a field over blocks of ``unit`` sites, with their sides.

        Coarse fields and sites are both over y and x. With both in one file, where a name has one
        length, sites are over site_y and site_x.
        """
        axes = ["y", "x"] if "y" not in dims else ["site_y", "site_x"]
        for axis, side in zip(axes, self.lattice.shape, strict=True):
            coordinates[axis] = block_centres(side, unit)
            dims[axis] = side // unit
        return axes


def cut(
    lattice: Lattice,
    ranks: int,
    *,
    ranks_grid: Shape | None = None,
    granularity: int = 1,
    unit: Shape = (1, 1),
    smaller: str = "",
) -> Layout:
    """Which rank has which tile; tiles are cut in multiples of both units.

    ``smaller`` says what would make the ``unit`` smaller, for messages. Where ``unit`` is
    :func:`~mpiflow.core.packed.cut_of` it, of packed spins, the last unit of a side may be shorter.
    """
    ways = COARSE * (granularity > 1) + (smaller,) * bool(smaller)
    packed = unit == cut_of(lattice)
    both = tuple(math.lcm(max(1, granularity), n) for n in unit)
    together: int | Shape = granularity if both == (granularity,) * 2 else both
    if granularity < 1 or any(side % granularity for side in lattice.shape):
        together, packed = granularity, False  # say so in the words of the option
    elif packed:
        # Whole bands, if there are enough: no draw is made twice.
        bands, down = math.lcm(both[0], BAND), ranks if ranks_grid is None else ranks_grid[0]
        if down <= -(-lattice.shape[0] // bands):
            together = (bands, both[1])
    if ranks_grid is not None:
        layout = Layout(lattice, tuple(ranks_grid), together, ways, packed)
    elif packed and ranks <= -(-lattice.shape[0] // both[0]):
        # Whole rows of words: only two neighbours, and no vector is cut.
        layout = Layout(lattice, (ranks, 1), together, ways, packed)
    else:
        layout = Layout.balanced(lattice, ranks, together, ways, packed)
    if layout.ranks != ranks:
        raise InputError(
            "ranks_grid",
            layout.ranks_grid,
            f"a grid of {ranks} ranks",
            "Start as many ranks as the grid has.",
        )
    return layout


def cut_rows(lattice: Lattice, ranks: int, granularity: int) -> Layout:
    """Slabs of whole rows, one for each rank."""
    rows, rest = divmod(lattice.shape[0], max(1, granularity))
    if ranks > rows and not rest:
        allowed = f"at most {rows} slabs of {granularity} rows of a {lattice.shape} lattice"
        raise InputError("ranks", ranks, allowed, other_cut([granularity], COARSE))
    return Layout(lattice, (ranks, 1), granularity)
