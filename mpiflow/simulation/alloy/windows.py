"""How the time of the tiled solver goes on: in windows, given or chosen from the hops before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from mpiflow.core.block import gather_records
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.schedule import Clock
from mpiflow.simulation.alloy.state import AlloyState
from mpiflow.simulation.base import Content
from mpiflow.solvers.event_limits import NO_LIMIT
from mpiflow.solvers.vacancy.absorbing import AbsorbingKMC
from mpiflow.solvers.vacancy.serial import total_rates
from mpiflow.solvers.vacancy.tiled import TiledKMC
from mpiflow.solvers.vacancy.window_choice import AIM, WindowChoice
from mpiflow.systems.barriers import Barriers

#: Part of the time of a hop at which it has not been made yet, whatever the rounding.
BEFORE = 1.0 - 2.0**-40


class AlloyWindows(AlloyState):
    """An alloy whose vacancies hop in windows, if its solver has such."""

    barriers: Barriers
    _clock: Clock
    _rest: float

    def content(self, *, species: bool = False) -> Content:
        if self.chooses and self.choice is None:
            self.choose_windows()
        return super().content(species=species)

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
        yield
        if self.block.batch:
            self.solver.finish(self.block)

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
        known, hops, share = len(solver.log or ()), np.zeros(0, np.int64), 1.0
        if self.block.batch:
            solver.keep(self.block)
            hops = solver.step(
                self.block, self.step, start, window, seed=self.seed, limit=limit, over=over
            )
            solver.settle(self.block)
            share = 0.0 if solver.abandoned else solver.share
        made, stopped = self.comm.allreduce(np.array([hops.sum(), share < 1.0], np.int64))
        if stopped:
            share = float(self.comm.allreduce(share, op=MPI.MIN))
            if self.block.batch:
                solver.take_back(self.block)
            if solver.log is not None:
                del solver.log[known:]
        self.taken_back = int(made) if share == 0.0 else None
        return hops, int(made), share

    def _can_hop(self) -> bool:
        if self.block.batch and isinstance(self.solver, TiledKMC):
            self.solver.finish(self.block)
        rates = total_rates(self.system, self.barriers, self.block)
        return bool(self.comm.allreduce(bool(rates.any()), op=MPI.LOR))

    def _stuck(self, hops: int, made: int) -> InputError:
        return InputError("hops", hops, f"{made}: no vacancy can hop any more", "Use --time.")

    @property
    def hops_made(self) -> int:
        """Hops of the first lattice since time 0; of stays, those that ended. Collective."""
        if isinstance(self.solver, AbsorbingKMC):
            return int(self.solver.ended[0])
        return int(self.block.total(self._hops)[0])


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
