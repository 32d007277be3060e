"""The simulation loop of alloys: vacancies on a body-centred cubic lattice, over MPI ranks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mpiflow import observables
from mpiflow.core import signals
from mpiflow.core.block import Block, gather_records
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.lattice import Lattice, Layout, Shape, factorisations, split
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed, arrival, local_rank
from mpiflow.core.schedule import Clock, Number, Schedule, State, whole_steps
from mpiflow.files.schema import STANDARD, TIME
from mpiflow.files.writer import Value
from mpiflow.simulation.base import Content, Motion, Pace, Sample, Simulated
from mpiflow.solvers.event_limits import NO_LIMIT
from mpiflow.solvers.vacancy.events import check, check_species
from mpiflow.solvers.vacancy.serial import VacancyKMC, total_rates
from mpiflow.solvers.vacancy.tiled import TiledKMC
from mpiflow.solvers.vacancy.tiles import SMALLEST_TILE
from mpiflow.solvers.vacancy.window_choice import AIM, MOST_HOPS, WindowChoice, implied_bias
from mpiflow.systems import alloy
from mpiflow.systems.alloy import Alloy
from mpiflow.systems.barriers import Barriers

AlloySolver = Literal["serial", "tiled"]
#: Part of the time of a hop at which it has not been made yet, whatever the rounding.
BEFORE = 1.0 - 2.0**-40
TIME_IN_S = replace(TIME, units="s", long_name="time")
#: Points of a tile along x, where the lattice is not smaller.
TILE = 16


@dataclass(frozen=True)
class AlloyFrame:
    """The state's observables at one time; one entry for each member that this rank holds.

    Attributes
    ----------
    time : s
    bonds : (M, S + 1, S + 1) int64, bonds by species of the corner and of the centre
    hops : (M,) int64, since time 0
    window, windows : the last window of the tiled solver in s, and how many there were; 0 if none
    """

    time: float
    bonds: np.ndarray
    hops: np.ndarray
    window: float = 0.0
    windows: int = 0

    #: What a file holds of it, for each member.
    NAMES = ("sro", "warren_cowley", "long_range_order", "bonds", "hops")

    def scalars(self) -> dict[str, np.ndarray]:
        """What a Trajectory holds of a frame, by name, with a leading member axis."""
        return {
            "sro": alloy.short_range_order(self.bonds),
            "warren_cowley": alloy.warren_cowley(self.bonds),
            "long_range_order": alloy.long_range_order(self.bonds),
            "bonds": self.bonds,
            "hops": self.hops,
        }


class AlloySimulation(Simulated):
    """Vacancy kinetic Monte Carlo of one lattice, or of many lattices dealt to ranks.

    Parameters
    ----------
    system : temperature and elements
    barriers : model of the barriers, see :mod:`mpiflow.systems.barriers`
    cells : cubic cells along each axis, one number or three; a cell has two sites
    solver : ``serial`` (exact; one rank for each lattice) or ``tiled`` (windows, any number of
        ranks)
    window : of the tiled solver in s; if left out, each window is chosen from the hops before,
        see :meth:`choose_windows`
    tile : of the tiled solver, points along each axis, two to a cell
    seed : a trajectory is its seed
    members : number of independent lattices
    comm : communicator, ``COMM_WORLD`` unless given; every method is collective on it
    ranks_grid : ranks along each axis, slabs along x if left out and possible
    device : where the tiled solver evaluates barriers, ``cpu`` or ``cuda``
    barriers_name : of the model, for the log

    Attributes
    ----------
    lattice_constant : Angstrom, of the file that the state came from; for files, no rate has it
    choice : how windows are chosen, None before that or where the window is given

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
        device: str = "cpu",
        barriers_name: str = "",
    ) -> None:
        require_rule(system, Alloy)
        self.barriers_name = barriers_name
        self.system, self.barriers = system, barriers
        self.seed, self.members = seed, members
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.cells = (cells,) * 3 if isinstance(cells, int) else tuple(cells)
        least = 2 * alloy.REACH // 2
        if len(self.cells) != 3 or min(self.cells) < least:
            raise InputError("cells", cells, f"{least} or more along each of three axes", "Try 8.")
        self.lattice = Lattice(tuple(2 * n for n in self.cells))
        self.sites = self.lattice.sites // 4
        if members < 1:
            raise InputError("members", members, "1 or more", "Leave it out for one lattice.")
        self.tile: Shape = self.lattice.shape
        if solver == "tiled":
            if tile is None:
                tile = default_tile(self.lattice.shape)
            self.tile = (tile,) * 3 if isinstance(tile, int) else tuple(tile)
        elif solver != "serial":
            raise InputError("solver", solver, "'serial' or 'tiled'", "Use tiled.")
        else:
            self._check_serial(window, tile, device)
        halo = TiledKMC.halo
        if members == 1:
            layout = cut(self.lattice, self.comm.size, self.tile, ranks_grid)
            self.block = Block.tile(layout, self.comm, halo=halo)
            self.block.load(np.full((1, *self.block.shape), alloy.NOT_A_SITE, np.int8))
        else:
            numbers = np.arange(*split(members, self.comm.size, self.comm.rank))
            none = np.full((len(numbers), *self.lattice.shape), alloy.NOT_A_SITE, np.int8)
            self.block = Block.periodic(none, numbers, halo=halo)
        self.solver: VacancyKMC | TiledKMC
        if solver == "tiled":
            local = local_rank(self.comm) if device == "cuda" else 0
            self.solver = TiledKMC(system, barriers, window, self.tile, Device(device, local))
            self.solver.check(self.block)
        else:
            check(system, barriers, self.block)
            self.solver = VacancyKMC(system, barriers, self.block.batch)
        self.time = 0.0
        self.step = 0
        self._clock = Clock(self.window or 0.0)
        self.choice: WindowChoice | None = None
        self.lattice_constant = alloy.LATTICE_CONSTANT
        self._started = False
        self._rest = 0.0  # of chosen windows: the time is this much later than its float
        #: Whether its file has them: an older version knew one window for the whole run.
        self.knows_windows = self.tiled
        self._hops = np.zeros(self.block.batch, np.int64)
        self._counts: np.ndarray | None = None

    def _check_serial(self, window: float | None, tile: int | Shape | None, device: str) -> None:
        """What is for the tiled solver alone would do nothing: refuse it."""
        if self.comm.size > 1 and self.members == 1:
            raise InputError(
                "ranks", self.comm.size, "1 for a lattice with the serial solver", "Use tiled."
            )
        for name, value in (("window", window), ("tile", tile)):
            if value is not None:
                raise InputError(name, value, "no value with the serial solver", "Leave it out.")
        if device != "cpu":
            raise InputError("device", device, "'cpu' for the serial solver", "Use tiled.")

    # -- state ---------------------------------------------------------------------

    def set_species(self, fill: Callable[..., float | None], **options: Any) -> None:
        """Set the initial state with a function of :mod:`mpiflow.initial.alloy`.

        Functions that draw random numbers get this simulation's seed. One that reads a file
        returns its lattice constant, which the simulation then has.
        """
        if "seed" in inspect.signature(fill).parameters:
            options.setdefault("seed", self.seed)
        self._counts, self._sound, self._started = None, False, True
        constant = fill(self.block, **options)
        if constant is not None:
            self.lattice_constant = constant

    def _check_state(self) -> None:
        check_species(self.block, len(self.system.elements))

    def _require_values(self, values: np.ndarray) -> None:
        """Values are those of a grid of points, of which a quarter are sites."""
        parities = [at % 2 for at in np.ogrid[self.local_box()]]
        site = (parities[0] == parities[1]) & (parities[1] == parities[2])
        elements = len(self.system.elements)
        species = (values >= alloy.VACANCY) & (values <= elements) & (values == np.rint(values))
        wrong = values[~np.where(site, species, values == alloy.NOT_A_SITE)]
        if wrong.size:
            where = f"where coordinates have equal parity, else {alloy.NOT_A_SITE}"
            allowed = f"0 (vacancy) to {elements} {where}"
            raise InputError("species", wrong[0].item(), allowed, "Look at the state.")

    def _put(self, values: np.ndarray) -> None:
        species = np.ascontiguousarray(values, np.int8)
        self.set_species(lambda block: block.load(species))

    @property
    def window(self) -> float | None:
        """The window of the tiled solver in s that was given, None where there is none."""
        return self.solver.window if isinstance(self.solver, TiledKMC) else None

    @property
    def tiled(self) -> bool:
        """Whether it evolves in windows."""
        return isinstance(self.solver, TiledKMC)

    @property
    def chooses(self) -> bool:
        """Whether windows are chosen from the hops before."""
        return isinstance(self.solver, TiledKMC) and self.solver.window is None

    def choose_windows(self, hops: float = AIM) -> WindowChoice:
        """From now on choose each window so that a vacancy makes about so many hops in it.

        The first one is that of the rates of the present state, the others are those of
        :mod:`mpiflow.solvers.vacancy.window_choice`, all the same on any number of ranks. The first
        advance calls this if nobody did. Collective.
        """
        if not self.chooses:
            raise InputError(
                "window", self.window, "the tiled solver without a window", "Leave it out."
            )
        number, total = self._rate()
        if not total > 0:
            raise InputError("window", None, "vacancies that can hop", "Give the window.")
        self.choice = WindowChoice(number, hops * number / total, hops)
        return self.choice

    def _rate(self) -> tuple[int, float]:
        """Vacancies of all lattices, and the sum of their rates as they are now. Collective."""
        self.require_state()
        rates = total_rates(self.system, self.barriers, self.block).reshape(-1, 1)
        everyone = gather_records(rates, self.comm)
        # fsum is exact, so the order of ranks does not matter.
        facts = None if everyone is None else (len(everyone), math.fsum(everyone[:, 0]))
        number, total = self.comm.bcast(facts)
        return int(number), float(total)

    def remarks(self) -> list[str]:
        if not self._started:  # it goes on from elsewhere: there are no rates yet
            return []
        """What a user should know about the window that was given. Collective."""
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

    def numbers(self) -> np.ndarray:
        """Numbers of vacancies and of atoms of each element, of the first lattice. Collective."""
        self.require_state()
        bonds = observables.bond_counts(self.block, len(self.system.elements) + 1)
        root, size = 0, self.comm.size
        while self.members > 1 and split(self.members, size, root)[1] == 0:  # has no member
            root += 1
        counts = self.comm.bcast(alloy.species_numbers(bonds)[:1], root=root)
        return np.asarray(counts[0])

    def species(self) -> np.ndarray:
        """Species of this rank's sites in C order of their places, (members here, sites) int8.

        To be read: writing to them raises, :meth:`set_species` sets the state.
        """
        if not self._sound:
            self._check_state()
        field = self.block.spins()
        out: np.ndarray = field[:, alloy.is_site(field.shape[1:])]
        out.flags.writeable = False
        return out

    def is_site(self) -> np.ndarray:
        return alloy.is_site(self.block.shape)

    def local_sites(self) -> slice:
        """This rank's part of all sites in C order; ranks must be slabs along x."""
        layout = self.block.layout
        if layout is None:
            return slice(0, self.sites)
        if layout.ranks_grid[1:] != (1, 1):
            raise InputError(
                "ranks_grid",
                layout.ranks_grid,
                "slabs along x, (ranks, 1, 1), to save species",
                "Leave the grid out, use fewer ranks, or do not save species.",
            )
        (start, stop), *_ = layout.bounds(self.comm.rank)
        return slice(
            self.sites * start // self.lattice.shape[0], self.sites * stop // self.lattice.shape[0]
        )

    def describe(self) -> str:
        """One line: size, vacancies, solver and how the work is divided."""
        one = f"{self.sites} sites of {' x '.join(map(str, self.cells))} cells"
        what = one if self.members == 1 else f"{self.members} lattices of {one}"
        how = "serial"
        if isinstance(self.solver, TiledKMC):
            tile = " x ".join(map(str, self.tile))
            aim = AIM if self.choice is None else self.choice.aim
            chosen = f"windows of about {aim:g} hops of a vacancy"
            window = chosen if self.window is None else f"window {self.window:.3g} s"
            how = f"tiles of {tile} points, {window}"
        layout = self.block.layout
        grid = f" in a grid of {layout.ranks_grid}" if layout and layout.ranks > 1 else ""
        ranks = f"{self.comm.size} rank{'s' if self.comm.size > 1 else ''}{grid}"
        name = f", barriers {self.barriers_name}" if self.barriers_name else ""
        return f"{what}, {self.system.temperature:g} K, {how}, {ranks}{name}"

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

    # -- dynamics ------------------------------------------------------------------

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
        elif not isinstance(self.solver, VacancyKMC):
            self.advance(time - self.time)
        else:
            self.require_state()
            self.time = time  # exactly: not a sum of durations, which rounds
            made = self.solver.advance(self.block, seed=self.seed, until=time)
            self._hops = self._hops + made

    def _through_windows(
        self,
        *,
        time: float = math.inf,
        end: float = math.inf,
        hops: float = math.inf,
        most: float = math.inf,
        over: Callable[[], bool] = lambda: False,
    ) -> int:
        """Windows until a time in s or a number of hops, or until there were so many of both.

        Those that are chosen go a whole number of times into what is left until ``end``, wherever
        calls end. A window that is ``over`` before its end on any rank is taken back.
        """
        work, made, could = 0, 0, -1
        if math.isfinite(hops):
            made = self.hops_made
        with self._at_work():
            while self.time < time and made < hops and work < most:
                new = self._given_window(over) if self.window else self._chosen_window(end, over)
                if new is None:
                    break
                if new == 0 and math.isfinite(hops) and made != could:  # no hop changes that
                    if not self._can_hop():
                        raise self._stuck(int(hops), made)
                    could = made
                made, work = made + new, work + 1 + new
        return work

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """In the block, windows may be made. Collective."""
        assert isinstance(self.solver, TiledKMC)  # noqa: S101 - for the type checker
        self.require_state()
        if self.chooses and self.choice is None:
            self.choose_windows()
        if self.block.batch:  # more ranks than members leave some with none
            self.solver.prepare(self.block)
        self._before = np.empty_like(self.block.array)
        yield
        del self._before

    def _given_window(self, over: Callable[[], bool]) -> int | None:
        """A window of the length that was given; the hops of all lattices, None if taken back."""
        window = self.window or 0.0
        hops, made, share = self._try(window, self.step * window, NO_LIMIT, over)
        if share == 0.0:
            return None
        self._hops = self._hops + hops
        self.step += 1
        self.time = self._clock.time(self.step)
        return made

    def _chosen_window(self, end: float, over: Callable[[], bool]) -> int | None:
        """A chosen window; the hops of all lattices, None if it is taken back."""
        solver, choice = self.solver, self.choice
        assert isinstance(solver, TiledKMC)  # noqa: S101 - for the type checker
        assert choice is not None  # noqa: S101 - for the type checker
        window, all_of_it = choice.ahead(end - self.time - self._rest)
        known, asked = len(solver.log or ()), window
        while True:
            hops, made, share = self._try(window, 0.0, choice.limit, over)
            if share == 0.0:
                return None
            if share == 1.0:
                break
            # The same again as far as it goes before the hop that is too much.
            window *= share * BEFORE
        for events in (solver.log or [])[known:]:
            events.time[...] += self.time
        self._hops = self._hops + hops
        choice.count(window, made)
        self.step += 1
        self.time, self._rest = _later(self.time, self._rest, window)
        if all_of_it and window == asked:
            self.time, self._rest = end, 0.0
        return made

    def _try(
        self, window: float, start: float, limit: int, over: Callable[[], bool]
    ) -> tuple[np.ndarray, int, float]:
        """A window; hops of each lattice here, those of all, and the part of it that was made.

        If that is not all of it, the state is as before. 0: it was told to stop, which
        :attr:`taken_back` knows.
        """
        solver = self.solver
        assert isinstance(solver, TiledKMC)  # noqa: S101 - for the type checker
        np.copyto(self._before, self.block.array)
        known, hops, share = len(solver.log or ()), np.zeros(0, np.int64), 1.0
        if self.block.batch:
            hops = solver.step(
                self.block, self.step, start, window, seed=self.seed, limit=limit, over=over
            )
            solver.settle(self.block)
            share = 0.0 if solver.abandoned else solver.share
        made, stopped = self.comm.allreduce(np.array([hops.sum(), share < 1.0], np.int64))
        if stopped:
            share = float(self.comm.allreduce(share, op=MPI.MIN))
            np.copyto(self.block.array, self._before)
            if solver.log is not None:
                del solver.log[known:]
        self.taken_back = int(made) if share == 0.0 else None
        return hops, int(made), share

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
        assert isinstance(self.solver, VacancyKMC)  # noqa: S101 - for the type checker
        self.require_state()
        made = self.solver.advance(self.block, seed=self.seed, until=time, hops=most)
        self._hops = self._hops + made
        self.time = arrival(self.comm, self.time, time, self.solver.clock[made >= most])
        return int(made.max(initial=0))

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

    @property
    def hops_made(self) -> int:
        """Hops of the first lattice since time 0. Collective."""
        return int(self.block.total(self._hops)[0])

    def _windows(self, steps: int) -> None:
        assert isinstance(self.solver, TiledKMC)  # noqa: S101 - for the type checker
        if self.block.batch:  # more ranks than members leave some with none
            hops = self.solver.advance(self.block, steps, seed=self.seed, first_step=self.step)
            self._hops = self._hops + hops
        self.step += steps
        self.time = self._clock.time(self.step)

    def advance_hops(self, hops: int) -> None:
        """Advance until this lattice has made so many hops since time 0.

        The serial solver stops exactly there, the tiled one at the end of the window.
        """
        self._require_one_clock(hops)
        self.require_state()
        if isinstance(self.solver, VacancyKMC):
            left = hops - int(self._hops[0])
            if left <= 0:  # time does not go back to that hop
                return
            self._hops = self._hops + self.solver.advance(self.block, seed=self.seed, hops=left)
            self.time = float(self.solver.clock[0])
            if self._hops[0] < hops:
                raise self._stuck(hops, int(self._hops[0]))
            return
        self._through_windows(hops=hops)

    def _stuck(self, hops: int, made: int) -> InputError:
        return InputError("hops", hops, f"{made}: no vacancy can hop any more", "Use --time.")

    def _require_one_clock(self, hops: int) -> None:
        if self.members > 1:
            raise InputError(
                "hops", hops, "a time, with several members: their clocks differ", "Use --time."
            )

    def _can_hop(self) -> bool:
        rates = total_rates(self.system, self.barriers, self.block)
        return bool(self.comm.allreduce(bool(rates.any()), op=MPI.LOR))

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

    # -- what its file holds ---------------------------------------------------------

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

    def content(self, *, species: bool = False) -> Content:
        """Order, bonds and hops.

        Parameters
        ----------
        species : also the species of every site
        """
        if self.chooses and self.choice is None:
            self.choose_windows()
        ensemble: dict[str, int] = {"member": self.members} if self.members > 1 else {}
        names = ("vacancy", *self.system.elements)
        coordinates = {
            "pair": np.array(alloy.pair_names(self.system.elements)),
            "element": np.array(self.system.elements),
            "corner_species": np.array(names),
            "centre_species": np.array(names),
        }
        dims = ensemble | {name: len(values) for name, values in coordinates.items()}
        variables = [
            STANDARD[name].over(*ensemble, *STANDARD[name].dims) for name in AlloyFrame.NAMES
        ]
        if self.knows_windows:
            variables += [STANDARD["window"], STANDARD["windows"]]
        if species:
            with agreed(self.comm):
                self.local_sites()  # ranks may not be slabs
            dims["site"] = self.sites
            variables.append(STANDARD["species"].over(*ensemble, "site"))

        def frame() -> Sample:
            now = self.measure()
            shown = {"hops": int(now.hops[0])} if now.hops.size else {}
            values = self._values(now, species)
            if self.knows_windows:
                values |= {"window": now.window, "windows": now.windows}
            return Sample(now.time, values, shown)

        return Content(dims, coordinates, variables, self.attributes(), frame, TIME_IN_S)

    def _values(self, frame: AlloyFrame, species: bool) -> dict[str, Value]:
        """This rank's part of everything that a frame holds."""
        one = self.members == 1
        values: dict[str, Value] = {}
        for name, value in frame.scalars().items():
            rest = tuple(slice(0, n) for n in value.shape[1:])
            values[name] = value[0] if one else (value, (self.local_members, *rest))
        if species:
            field = self.species()
            place = (self.local_sites(),)
            values["species"] = (field[0], place) if one else (field, (self.local_members, *place))
        return values

    def measure(self) -> AlloyFrame:
        """Observables of the present state; checks that no atom was lost. Collective."""
        self.require_state(anew=True)
        bonds = observables.bond_counts(self.block, len(self.system.elements) + 1)
        counts = alloy.species_numbers(bonds)
        if self._counts is None:
            self._counts = counts
        if np.any(counts != self._counts) or np.any(counts.sum(axis=-1) != self.sites):
            raise RuntimeError(f"atoms were lost: {self._counts} became {counts}")
        window = self.choice.last if self.choice else self.window or 0.0
        return AlloyFrame(self.time, bonds, self.block.total(self._hops), window, self.step)

    def schedule(self, time: float, every: float, begun: bool = False) -> Schedule:
        """Frames now, every ``every`` s, and after ``time``; raises if windows do not fit.

        Of a run that has ``begun``, perhaps with another window, only ``every`` is looked at.
        """
        if not begun:
            self.steps_in(time, "time")
        if self.steps_in(every, "save_every") == 0:
            raise InputError("save_every", every, "a number above 0", "Try 1e-8.")
        return Schedule.of(self.time, time, every)

    def schedule_of_hops(self, hops: int, every: int) -> Schedule:
        """Frames now, every so many hops, and after ``hops``. Collective."""
        self._require_one_clock(hops)
        for name, number in (("hops", hops), ("save_every", every)):
            if number < 1:
                raise InputError(name, number, "a whole number above 0", "Try 1000.")
        start = self.hops_made
        return Schedule.of(start, hops, every, "hops")

    def frames(self, time: float, every: float) -> Iterator[AlloyFrame]:
        """Run for a time, yielding the observables now, every ``every`` s, and at the end."""
        schedule = self.schedule(time, every)
        yield self.measure()
        for number in range(1, schedule.last + 1):
            self.advance_to(schedule.target(number))
            yield self.measure()

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
        if isinstance(self.solver, VacancyKMC):
            arrays |= {"clock": self.solver.clock, "order": self.solver.order(self.block)}
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
        whole = self.members > 1 or self.comm.rank == 0
        self._hops, self._counts = hops if whole else np.zeros_like(hops), None
        self._sound = False
        self.knows_windows = self.tiled and "windows" in state.numbers
        if isinstance(self.solver, VacancyKMC):
            self.solver.clock = state.arrays["clock"].astype(np.float64)
            self.solver.hops = hops.copy()
            self.solver.set_order(self.block, state.arrays["order"])
        elif self.solver.window is None and "window_last" in state.numbers:
            self.choice = WindowChoice.restored(state.numbers)
            self._rest = float(state.numbers["rest"])
        else:
            if self.solver.window is None:  # chosen once, by an older version
                self.solver.window = float(state.numbers["window"])
            self._clock = Clock.restored(state.numbers, self.solver.window)


def _later(time: float, rest: float, step: float) -> tuple[float, float]:
    """time + rest + step as the float below it and what is left, exact to the last bit of that.

    A window may be shorter than the spacing of floats at a late time.
    """
    step += rest
    total = time + step
    before = total - step
    rest = (time - before) + (step - (total - before))  # Knuth's sum of two numbers
    if rest < 0:
        below = math.nextafter(total, -math.inf)
        total, rest = below, rest + (total - below)
    return total, rest


def default_tile(shape: Shape) -> Shape:
    """Slabs of about :data:`TILE` points along x: fewer boundaries and passes than cubes.

    It must not depend on the ranks. Many of them need smaller tiles, given by the user.
    """
    x, y, z = shape
    fitting = [n for n in range(SMALLEST_TILE, x // 2 + 1, 2) if x % (2 * n) == 0]
    return min(fitting, key=lambda n: abs(n - TILE), default=x), y, z


def cut(lattice: Lattice, ranks: int, tile: Shape, ranks_grid: Shape | None = None) -> Layout:
    """Whole tiles on every rank. Tiles that do not fit the lattice are the solver's matter."""
    sides = lattice.shape
    fitting = all(n > 0 and side % n == 0 for side, n in zip(sides, tile, strict=True))
    unit: Shape = tile if fitting else (2, 2, 2)
    if ranks_grid is not None and math.prod(ranks_grid) != ranks:
        raise InputError(
            "ranks_grid",
            ranks_grid,
            f"a grid of {ranks} ranks",
            "Start as many ranks as the grid has.",
        )
    most = tuple(side // n for side, n in zip(sides, unit, strict=True))
    grids = factorisations(ranks, 3) if ranks_grid is None else [tuple(ranks_grid)]
    if not any(all(n <= m for n, m in zip(grid, most, strict=False)) for grid in grids):
        raise InputError(
            "ranks" if ranks_grid is None else "ranks_grid",
            ranks if ranks_grid is None else ranks_grid,
            f"at most {most} ranks along the axes, in whole tiles of {unit} points",
            "Use fewer ranks, smaller tiles or a larger lattice.",
        )
    if ranks_grid is not None:
        return Layout(lattice, tuple(ranks_grid), unit)
    if ranks <= most[0]:
        return Layout(lattice, (ranks, 1, 1), unit)
    return Layout.balanced(lattice, ranks, unit)
