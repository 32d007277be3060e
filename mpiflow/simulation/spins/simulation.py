"""What simulations of lattices share: members and boxes, times, initial states, frames."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.guards import is_spins, spin_fault
from mpiflow.core.lattice import Lattice, Layout, Shape
from mpiflow.core.packed import WORD_SITES, PackedBlock
from mpiflow.core.parallel import arrival
from mpiflow.core.schedule import Schedule, whole_steps
from mpiflow.files.schema import STANDARD, block_centres
from mpiflow.files.writer import Value
from mpiflow.simulation.base import Content, Sample, Simulated
from mpiflow.simulation.spins.driven import Driven
from mpiflow.simulation.spins.in_field import InSiteField


@dataclass(frozen=True)
class Frame:
    """The state's observables at one time.

    Arrays have one entry for each member that this rank holds; for a single
    distributed lattice (one member) they are the values of the whole lattice.
    """

    time: float
    magnetization: np.ndarray
    energy: np.ndarray
    domain_wall_density: np.ndarray
    flips: np.ndarray

    #: What a file holds of it.
    NAMES = ("magnetization", "energy", "domain_wall_density", "flips")

    def scalars(self) -> dict[str, np.ndarray]:
        """Arrays by name."""
        return {name: getattr(self, name) for name in self.NAMES}


class LatticeSimulation(Driven, InSiteField, Simulated):
    """Sites on a square lattice, or on many: cut into tiles over the ranks, or dealt to them.

    Attributes
    ----------
    lattice, block, members, comm, seed, time : see :class:`mpiflow.Simulation`
    """

    block: Block | PackedBlock
    _flips: np.ndarray

    @property
    def step_length(self) -> float | None:
        """The time that durations must be multiples of; None if there is no such."""
        raise NotImplementedError

    @property
    def stop_interval(self) -> float | None:
        return self.step_length or 0.0

    @property
    def present(self) -> Block | PackedBlock:
        """The sites at the present time. Collective."""
        return self.block

    @property
    def state(self) -> np.ndarray:
        self.require_state()
        return self.present.spins()

    def advance(self, duration: float) -> None:
        """Advance the state by ``duration``. Collective."""
        raise NotImplementedError

    def measure(self) -> Any:
        """Observables of the present state. Collective."""
        raise NotImplementedError

    def set_spins(self, fill: Callable[..., None], **options: Any) -> None:
        """Set the initial state with a function of :mod:`mpiflow.initial`.

        Functions that draw random numbers get this simulation's seed.
        """
        if "seed" in inspect.signature(fill).parameters:
            options.setdefault("seed", self.seed)
        self._sound = False
        fill(self.block, **options)

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

    def steps_in(self, duration: float, name: str = "time") -> int:
        """Whole steps in ``duration``; raises if it is not a multiple of the step."""
        return whole_steps(name, duration, self.step_length, now=self.time)

    def advance_to(self, time: float) -> None:
        """Advance the state to a time, in whole steps from now. Collective."""
        self.advance(time - self.time)

    def _arrive(self, time: float, most: int, made: np.ndarray, clock: np.ndarray) -> int:
        """Set the present time after events of all members of this rank. Collective."""
        self._flips = self._flips + made  # a new array: frames keep theirs
        self.time = arrival(self.comm, self.time, time, clock[made >= most])
        return int(made.max(initial=0))

    def schedule(self, time: float, every: float, begun: bool = False) -> Schedule:
        """Frames now, every ``every``, and after ``time``; raises if steps do not fit.

        Of a run that has ``begun``, perhaps with another step, only ``every`` is looked at.
        """
        if not begun:
            self.steps_in(time, "time")
        if self.steps_in(every, "save_every") == 0:
            raise InputError("save_every", every, "a number above 0", "Try 1.")
        return Schedule.of(self.time, time, every)

    def frames(self, time: float, every: float) -> Iterator[Any]:
        """Run to ``time``, yielding the observables now, every ``every``, and at the end."""
        schedule = self.schedule(time, every)
        self.require_state()
        yield self.measure()
        for number in range(1, schedule.last + 1):
            self.advance_to(schedule.target(number))
            yield self.measure()

    def _shares(self, totals: np.ndarray) -> np.ndarray:
        """Counts of this rank: of a lattice that is cut, rank 0 has all so far."""
        return totals if self.members > 1 or self.comm.rank == 0 else np.zeros_like(totals)

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


class SpinSimulation(LatticeSimulation):
    """Spins +1 and -1: their observables, and what a file holds of them."""

    def _check_state(self) -> None:
        self.block.check_spins()

    def _require_values(self, values: np.ndarray) -> None:
        if not is_spins(values):
            raise spin_fault(values)

    def coarse_sums(self, size: int) -> np.ndarray:
        """Sums of spins over coarse blocks, this rank's part, (members, ny, nx) int32."""
        self.require_state()
        return observables.block_sums(self.present, size)

    def site_bits(self) -> np.ndarray:
        return observables.spin_bits(self.block)

    def content(
        self, *, coarse: int | None = None, spins: bool = False, spin_bits: bool = False
    ) -> Content:
        """Magnetization, energy, walls and flips, and fields.

        Parameters
        ----------
        coarse : also means over blocks of this many sites a side; the simulation's
            ``granularity`` must be a multiple of it
        spins : also every spin, a byte each
        spin_bits : also every spin, a bit each; needs a ``granularity`` of a multiple of 8
        """
        if coarse is not None:
            self._require_whole_blocks("coarse", coarse)
        if spin_bits:
            self._require_whole_blocks("spin_bits", 8)
        dims: dict[str, int] = {"member": self.members} if self.members > 1 else {}
        ensemble = tuple(dims)
        coordinates: dict[str, np.ndarray] = {}
        variables = [STANDARD[name].over(*ensemble) for name in Frame.NAMES]
        variables += self._driven_variables()
        fields = [("coarse_magnetization", coarse)] if coarse is not None else []
        for name, unit in [*fields, *([("spin", 1)] if spins else [])]:
            axes = self._axes(dims, coordinates, unit)
            variables.append(STANDARD[name].over(*ensemble, *axes))
        if spin_bits:
            ly, lx = self.lattice.shape
            y = next(name for name in ("y", "site_y") if dims.get(name, ly) == ly)
            variables.append(STANDARD["spin_bits"].over(*ensemble, y, "x_byte"))
            dims |= {y: ly, "x_byte": lx // 8}
            coordinates |= {y: block_centres(ly, 1), "x_byte": np.arange(0.0, lx, 8.0)}

        def frame() -> Sample:
            now = self.measure()
            # With more ranks than members rank 0 may have none.
            shown = {"m": float(now.magnetization[0])} if now.magnetization.size else {}
            return Sample(now.time, self._values(now, coarse, spins, spin_bits), shown)

        about = self.attributes({"coarse": coarse})
        own, static = self._field_variable(dims, coordinates)
        return Content(dims, coordinates, variables + own, about, frame, static=static)

    def _values(
        self, frame: Frame, coarse: int | None, spins: bool, spin_bits: bool
    ) -> dict[str, Value]:
        """This rank's part of everything that a frame holds."""
        one = self.members == 1
        members = () if one else (self.local_members,)
        values: dict[str, Value] = {
            name: value[0] if one else (value, members) for name, value in frame.scalars().items()
        }
        values |= self._driven_values()
        if coarse is not None:
            # Exact sums, divided once: the same bits however the lattice is cut.
            means = self.coarse_sums(coarse) / coarse**2
            values["coarse_magnetization"] = (
                means[0] if one else means,
                members + self.local_box(coarse),
            )
        if spins:
            field = self.spins()
            values["spin"] = (field[0] if one else field, members + self.local_box())
        if spin_bits:
            bits, (rows, columns) = observables.spin_bits(self.present), self.local_box()
            place = (*members, rows, slice(columns.start // 8, columns.stop // 8))
            values["spin_bits"] = (bits[0] if one else bits, place)
        return values


def cut(
    lattice: Lattice,
    ranks: int,
    *,
    ranks_grid: Shape | None = None,
    granularity: int = 1,
    unit: Shape = (1, 1),
) -> Layout:
    """Which rank has which tile; tiles are cut in multiples of both units."""
    both = tuple(math.lcm(max(1, granularity), n) for n in unit)
    together: int | Shape = granularity if both == (granularity,) * 2 else both
    if granularity < 1 or any(side % granularity for side in lattice.shape):
        together = granularity  # say so in the words of the option
    if ranks_grid is not None:
        layout = Layout(lattice, tuple(ranks_grid), together)
    elif unit[1] == WORD_SITES and ranks <= lattice.shape[0] // both[0]:
        # Whole rows of words: only two neighbours, and no vector is cut.
        layout = Layout(lattice, (ranks, 1), together)
    else:
        layout = Layout.balanced(lattice, ranks, together)
    if layout.ranks != ranks:
        raise InputError(
            "ranks_grid",
            layout.ranks_grid,
            f"a grid of {ranks} ranks",
            "Start as many ranks as the grid has.",
        )
    return layout
