"""The simulation loop of alloys: vacancies on a body-centred cubic lattice, over MPI ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from mpiflow.core import gpu, signals
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.lattice import Lattice, Shape
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import arrival
from mpiflow.core.schedule import Clock, Number, Schedule, State, whole_steps
from mpiflow.simulation.alloy.layout import cut, default_tile
from mpiflow.simulation.alloy.state import AlloyFrame
from mpiflow.simulation.alloy.windows import AlloyWindows
from mpiflow.simulation.base import Motion, Pace
from mpiflow.solvers.vacancy.absorbing import AbsorbingKMC
from mpiflow.solvers.vacancy.events import check
from mpiflow.solvers.vacancy.serial import VacancyKMC
from mpiflow.solvers.vacancy.tiled import TiledKMC
from mpiflow.solvers.vacancy.window_choice import AIM, MOST_HOPS, WindowChoice, implied_bias
from mpiflow.systems import alloy
from mpiflow.systems.alloy import Alloy
from mpiflow.systems.barriers import Barriers

AlloySolver = Literal["serial", "absorbing", "tiled"]
#: The exact ones, each lattice on one rank.
EXACT: dict[str, type[VacancyKMC] | type[AbsorbingKMC]] = {
    "serial": VacancyKMC,
    "absorbing": AbsorbingKMC,
}


class AlloySimulation(AlloyWindows):
    """Vacancy kinetic Monte Carlo of one lattice, or of many lattices dealt to ranks.

    Parameters
    ----------
    system : temperature and elements
    barriers : model of the barriers, see :mod:`mpiflow.systems.barriers`
    cells : cubic cells along each axis, one number or three; a cell has two sites
    solver : ``serial`` (exact; one rank for each lattice), ``absorbing`` (the same for the cold:
        flicker is drawn as a whole) or ``tiled`` (windows, any number of ranks)
    window : of the tiled solver in s; if left out, each window is chosen from the hops before,
        see :meth:`choose_windows`
    tile : of the tiled solver, points along each axis, two to a cell
    seed : a trajectory is its seed
    members : number of independent lattices
    comm : communicator, ``COMM_WORLD`` unless given; every method is collective on it
    ranks_grid : ranks along each axis, slabs along x if left out and possible
    device : where the tiled solver computes, ``cpu`` or ``cuda``; as the program has
        chosen (:mod:`mpiflow.core.gpu`), or the CPU, unless given
    barriers_name : of the model, for the log

    Attributes
    ----------
    lattice_constant : Angstrom, of the file that the state came from; for files, no rate has it
    choice : how windows are chosen, None before that or where the window is given

    Raises
    ------
    InputError : on all ranks: options that do not fit each other, the lattice or the ranks

    Examples
    --------
    >>> model = load_barrier_model("default")
    >>> sim = AlloySimulation(Alloy(2000.0), model.parameters, cells=8, seed=7)
    >>> sim.set_species(random_alloy, counts=(1, 341, 341, 341))
    >>> for frame in sim.frames(time=5e-6, every=1e-7):
    ...     ...
    """

    def __init__(
        self,
        system: Alloy,
        barriers: Barriers,
        cells: int | Shape,
        *,
        solver: AlloySolver = "serial",
        window: float | None = None,
        tile: int | Shape | None = None,
        seed: int = 0,
        members: int = 1,
        comm: MPI.Intracomm | None = None,
        ranks_grid: Shape | None = None,
        device: str | None = None,
        barriers_name: str = "",
    ) -> None:
        require_rule(system, Alloy)
        self.barriers_name = barriers_name
        self.system, self.barriers = system, barriers
        self.cells = (cells,) * 3 if isinstance(cells, int) else tuple(cells)
        least = 2 * alloy.REACH // 2
        if len(self.cells) != 3 or min(self.cells) < least:
            raise InputError("cells", cells, f"{least} or more along each of three axes", "Try 8.")
        self._set_up(Lattice(tuple(2 * n for n in self.cells)), seed, members, comm)
        self.sites = self.lattice.sites // 4
        self.tile: Shape = self.lattice.shape
        if solver == "tiled":
            if tile is None:
                tile = default_tile(self.lattice.shape)
            self.tile = (tile,) * 3 if isinstance(tile, int) else tuple(tile)
        elif solver not in EXACT:
            allowed = "'serial', 'absorbing' or 'tiled'"
            raise InputError("solver", solver, allowed, "Use serial.")
        else:
            self._check_exact(solver, window, tile, device)
        layout = None
        if members == 1:
            layout = cut(self.lattice, self.comm.size, self.tile, ranks_grid)
        self.block = self._make_block(layout, halo=TiledKMC.halo, unset=alloy.NOT_A_SITE)
        self.solver: VacancyKMC | AbsorbingKMC | TiledKMC
        if solver == "tiled":
            here = gpu.of_simulation(device, self.comm)
            on = Device(here.name, here.gpu)
            self.solver = TiledKMC(system, barriers, window, self.tile, on)
            self.solver.check(self.block)
        else:
            check(system, barriers, self.block)
            self.solver = EXACT[solver](system, barriers, self.block.batch)
        self.time, self.step = 0.0, 0
        self._clock = Clock(self.window or 0.0)
        self.choice: WindowChoice | None = None
        self.lattice_constant = alloy.LATTICE_CONSTANT
        self._started = False
        self._rest = 0.0  # of chosen windows: the time is this much later than its float
        #: Whether its file has them: an older version knew one window for the whole run.
        self.knows_windows = self.tiled
        self._hops = np.zeros(self.block.batch, np.int64)
        self._counts: np.ndarray | None = None

    def _check_exact(
        self, solver: str, window: float | None, tile: int | Shape | None, device: str | None
    ) -> None:
        """What is for the tiled solver alone would do nothing: refuse it."""
        if self.comm.size > 1 and self.members == 1:
            allowed = f"1 for a lattice with the {solver} solver"
            raise InputError("ranks", self.comm.size, allowed, "Use tiled.")
        for name, value in (("window", window), ("tile", tile)):
            if value is not None:
                raise InputError(name, value, f"no value with the {solver} solver", "Leave it out.")
        if device not in (None, "cpu"):
            raise InputError("device", device, f"'cpu' for the {solver} solver", "Use tiled.")

    # -- in words --------------------------------------------------------------------

    def remarks(self) -> list[str]:
        """What a user should know about the window that was given. Collective."""
        if not self._started:  # it goes on from elsewhere: there are no rates yet
            return []
        bias = implied_bias(self.tile, self.lattice.shape, MOST_HOPS)
        if self.window is None or bias == 0:
            return []
        number, total = self._rate()
        if not total * self.window > MOST_HOPS * number:
            return []
        hops = total * self.window / number
        return [
            f"the window of {self.window:.3g} s has about {hops:.3g} hops of a vacancy at the "
            f"rates of the initial state: from {MOST_HOPS:g} on, which lower mean square "
            f"displacements of atoms by {bias:.1g} %, its error grows fast; try --window "
            f"{AIM * number / total:.2g}, or leave it out"
        ]

    @property
    def local_hops(self) -> int:
        """Hops so far that this rank has made."""
        return int(self._hops.sum())

    def describe(self) -> str:
        """One line: size, vacancies, solver and how the work is divided."""
        one = f"{self.sites} sites of {' x '.join(map(str, self.cells))} cells"
        what = one if self.members == 1 else f"{self.members} lattices of {one}"
        how = self.solver.name
        if isinstance(self.solver, TiledKMC):
            tile = " x ".join(map(str, self.tile))
            aim = AIM if self.choice is None else self.choice.aim
            chosen = f"windows of about {aim:g} hops of a vacancy"
            window = chosen if self.window is None else f"window {self.window:.3g} s"
            how = f"tiles of {tile} points, {window}"
        name = f", barriers {self.barriers_name}" if self.barriers_name else ""
        return f"{what}, {self.system.temperature:g} K, {how}, {self._tiles_in_words()}{name}"

    def facts(self) -> dict[str, Any]:
        return {
            "system": "alloy",
            "cells": self.cells,
            "temperature": self.system.temperature,
            "elements": self.system.elements,
            "solver": self.solver.name,
            "tile": self.tile if isinstance(self.solver, TiledKMC) else None,
            "members": self.members,
            "seed": self.seed,
        }

    def changes(self, numbers: Mapping[str, Number]) -> dict[str, tuple[Any, Any]]:
        old = numbers.get("window")
        new = self.window or old
        return {} if new == old else {"window": (old, new)}

    def closing(self) -> list[str]:
        return [self.load()]

    def load(self) -> str:
        """Work of every rank: hops, looks at a vacancy, barriers computed, seconds. Collective."""
        solver = self.solver
        if isinstance(solver, TiledKMC):
            rows = solver.load
        else:
            looks, done = solver.evaluations
            rows = {"hops": float(solver.hops.sum()), "looks": looks, "evaluations": done}
        everyone = self.comm.gather(rows)
        if everyone is None:
            return ""
        names = list(rows)
        lines = ["rank  " + "  ".join(f"{name:>12}" for name in names)]
        for rank, row in enumerate(everyone):
            lines.append(f"{rank:4}  " + "  ".join(f"{row[name]:12.6g}" for name in names))
        return "\n".join(lines)

    # -- dynamics --------------------------------------------------------------------

    def advance(self, duration: float) -> None:
        """Advance the state by a time in s, a multiple of the window of the tiled solver."""
        self.require_state()
        steps = self.steps_in(duration)
        if self.window is None:
            self.advance_to(self.time + duration)
        else:
            self._windows(steps)

    def advance_to(self, time: float) -> None:
        """Advance the state to a time in s, whole windows from now. Collective."""
        if self.chooses:
            self._through_windows(time=time, end=time)
        elif isinstance(self.solver, TiledKMC):
            self.advance(time - self.time)
        else:
            self.require_state()
            self.time = time  # exactly: not a sum of durations, which rounds
            made = self.solver.advance(self.block, seed=self.seed, until=time)
            self._hops = self._hops + made

    def advance_some(self, time: float, most: int, target: float) -> int:
        """Advance towards a time in s, by at most so many hops of each lattice. Collective.

        As :meth:`mpiflow.simulation.spins.simulation.SpinSimulation.advance_some`. Each window
        counts as a hop, and one that is begun is ended, or taken back if
        :func:`mpiflow.core.signals.over` says so.
        """
        if self.tiled:
            work = self._through_windows(time=time, end=target, most=most, over=signals.over)
            if self.window and self.step >= self._clock.step(target):
                self.time = max(self.time, target)  # whole windows may end a rounding before it
            return work
        solver = self.solver
        assert not isinstance(solver, TiledKMC)  # noqa: S101 - for the type checker
        self.require_state()
        before = solver.events.copy()
        made = solver.advance(self.block, seed=self.seed, until=time, most=most)
        self._hops = self._hops + made
        events = solver.events - before
        self.time = arrival(self.comm, self.time, time, solver.clock[events >= most])
        return int(events.max(initial=0))

    def advance_some_hops(self, hops: int, most: int) -> int:
        """Advance this lattice towards a number of hops since time 0, as :meth:`advance_some`."""
        self._require_one_clock(hops)
        if self.tiled:
            return self._through_windows(hops=hops, most=most, over=signals.over)
        before = self.hops_made
        self.advance_hops(min(hops, before + most))
        return self.hops_made - before

    time_unit = " s"

    counts_events = True

    @property
    def window_option(self) -> str | None:  # type: ignore[override]
        """The option that makes windows shorter, None if they are chosen."""
        return "window" if self.window else None

    @property
    def stop_interval(self) -> float | None:
        return self.window or 0.0

    def motion(
        self,
        *,
        time: float | None = None,
        hops: int | None = None,
        save_every: float | None = None,
        begun: bool = False,
    ) -> Motion:
        """How it goes on, in s or in hops; the frames are counted in the same unit."""
        if (time is None) == (hops is None):
            raise InputError("time, hops", (time, hops), "one of the two", "Give one.")
        if hops is None:
            return super().motion(time=time, save_every=save_every, begun=begun)
        count = hops if save_every is None else save_every
        if not float(count).is_integer():
            raise InputError("save_every", count, "a whole number of hops", "Round it.")
        return Motion(
            self,
            self.schedule_of_hops(hops, int(count)),
            lambda: float(self.hops_made),
            lambda place: self.advance_hops(int(place)),
            1.0,
            "hops",
            lambda place, most, _: self.advance_some_hops(math.ceil(place), most),
        )

    def pace(self, motion: Motion) -> Pace:
        by_hops, window = motion.unit == "hops", self.window
        if window is not None:
            return Pace(window, "hop") if by_hops else Pace(window, "step", window)
        end = motion.schedule.end - motion.schedule.start
        return Pace(1.0, "hop") if by_hops else Pace(1e-9 * end, "s of the lattice")

    def _windows(self, steps: int) -> None:
        assert isinstance(self.solver, TiledKMC)  # noqa: S101 - for the type checker
        if self.block.batch:  # more ranks than members leave some with none
            hops = self.solver.advance(self.block, steps, seed=self.seed, first_step=self.step)
            self._hops = self._hops + hops
        self.step += steps
        self.time = self._clock.time(self.step)

    def advance_hops(self, hops: int) -> None:
        """Advance until this lattice has made so many hops since time 0.

        The serial solver stops exactly there, the absorbing one at the end of the first stay in a
        basin with which that many hops belong to stays that have ended, the tiled one at the end of
        the window.
        """
        self._require_one_clock(hops)
        self.require_state()
        if not isinstance(self.solver, TiledKMC):
            left = hops - int(self.solver.ended[0])
            if left <= 0:  # time does not go back to that hop
                return
            self._hops = self._hops + self.solver.advance(self.block, seed=self.seed, hops=left)
            self.time = float(self.solver.clock[0])
            if self.solver.ended[0] < hops:
                raise self._stuck(hops, int(self.solver.ended[0]))
            return
        self._through_windows(hops=hops)

    def _require_one_clock(self, hops: int) -> None:
        if self.members > 1:
            raise InputError(
                "hops", hops, "a time, with several members: their clocks differ", "Use --time."
            )

    def steps_in(self, duration: float, name: str = "time") -> int:
        """Whole windows in ``duration``; raises if it is not a multiple of the window."""
        return whole_steps(
            name,
            duration,
            self.window,
            now=self.time,
            what="the window",
            other="another --window",
            unit=" s",
        )

    def attributes(self, saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
        about = super().attributes(saved)
        about["lattice_constant_angstrom"] = self.lattice_constant
        if not self.tiled:
            return about
        law = "about -0.1 % h^2 sum over cut axes of 16 / (3 tile) for h hops of a vacancy in a"
        about["tile_points"] = self.tile
        about["window_bias"] = f"mean square displacements of atoms: {law} window, up to 4"
        if self.window is not None:
            return about | {"window_s": self.window}
        aim = self.choice.aim if self.choice else AIM
        bias = implied_bias(self.tile, self.lattice.shape, aim)
        return about | {"window_hops": aim, "window_bias_percent": -bias}

    def schedule_of_hops(self, hops: int, every: int) -> Schedule:
        """Frames now, every so many hops, and after ``hops``. Collective."""
        self._require_one_clock(hops)
        for name, number in (("hops", hops), ("save_every", every)):
            if number < 1:
                raise InputError(name, number, "a whole number above 0", "Try 1000.")
        start = self.hops_made
        return Schedule.of(start, hops, every, "hops")

    def frames_by_hops(self, hops: int, every: int) -> Iterator[AlloyFrame]:
        """Run for a number of hops, yielding the observables now, every so many, and at the end."""
        schedule = self.schedule_of_hops(hops, every)
        yield self.measure()
        for number in range(1, schedule.last + 1):
            before = self.time
            self.advance_hops(int(schedule.target(number)))
            if self.time > before:  # a window may hold more hops than lie between frames
                yield self.measure()

    # -- to go on later --------------------------------------------------------------

    def state_of(self) -> State:
        """What, with the species of :attr:`block`, the trajectory goes on from. Collective."""
        self.require_state()
        numbers: dict[str, Number] = {"time": self.time, "step": self.step}
        numbers["lattice_constant"] = self.lattice_constant
        arrays = {"hops": self.block.total(self._hops)}
        if not isinstance(self.solver, TiledKMC):
            arrays |= self.solver.kept(self.block)
        elif self.window is not None:
            numbers |= {"window": self.window, "windows": self.step, **self._clock.numbers()}
        else:
            numbers["windows"] = self.step
            numbers |= {"rest": self._rest, **(self.choice or self.choose_windows()).numbers()}
        return State(numbers, arrays)

    def restore(self, state: State) -> None:
        """Go on from such a state; the species are there already. Collective."""
        self.time, self.step = float(state.numbers["time"]), int(state.numbers["step"])
        default = self.lattice_constant
        self.lattice_constant = float(state.numbers.get("lattice_constant", default))
        hops = state.arrays["hops"].astype(np.int64)
        self._hops, self._counts = self._shares(hops), None
        self._sound = False
        self.knows_windows = self.tiled and "windows" in state.numbers
        if not isinstance(self.solver, TiledKMC):
            self.solver.take(self.block, hops, state.arrays)
        elif self.solver.window is None and "window_last" in state.numbers:
            self.choice = WindowChoice.restored(state.numbers)
            self._rest = float(state.numbers["rest"])
        else:
            if self.solver.window is None:  # chosen once, by an older version
                self.solver.window = float(state.numbers["window"])
            self._clock = Clock.restored(state.numbers, self.solver.window)
