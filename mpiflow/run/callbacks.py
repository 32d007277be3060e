"""Functions that look at a run at its frames or between them: to steer it, and to end it early."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiflow.core.errors import InputError, place_of
from mpiflow.core.parallel import raise_together
from mpiflow.core.schedule import after
from mpiflow.observables.observable import name_of
from mpiflow.simulation.base import Motion, Sample, Simulated


@dataclass(frozen=True)
class Callback:
    """A function that is called at frames of a run, right after each was saved, or between them.

    It is called on all ranks together with the simulation and the frame, ``function(sim, sample)``:
    ``sample.time``, and ``sample.here("magnetization")``, this rank's part of a variable. It may
    call methods of the simulation, which are collective, and change its state: the run goes on
    from there. If it returns True on any rank, the run ends with this frame, which is saved,
    complete.

    An exception on any rank ends all ranks with one message; the file keeps all frames so far, and
    is that of an interrupted run.

    Parameters
    ----------
    function : what is called; it returns True to end the run, else False or None
    every : at each frame whose number, from 0 at the beginning of the run, is a multiple of this
    interval : instead, at the beginning of the run and then each time that so much more has
        passed, in the unit of the run: time, or hops; also between frames. Where the run cannot
        stop then, as within a time step, it is called when the run next can

    Raises
    ------
    InputError : these make no sense
    """

    function: Callable[[Any, Sample], Any]
    every: int | None = None
    interval: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            allowed = "a function of a simulation and a frame"
            raise InputError("callback", self.function, allowed, "Pass one.")
        if self.every is not None and self.interval is not None:
            both = self.every, self.interval
            raise InputError("every, interval", both, "one of the two", "Leave one out.")
        every, interval = self.every, self.interval
        whole = isinstance(every, int | np.integer) and not isinstance(every, bool)
        if every is not None and not (whole and every > 0):
            raise InputError("every", every, "a whole number above 0", "Leave it out for 1.")
        if interval is not None and not (math.isfinite(interval) and interval > 0):
            raise InputError("interval", interval, "a finite number above 0", "Leave it out.")


class Calls:
    """When the callbacks of a run are called.

    Parameters
    ----------
    motion : of the run
    origin : where the run began; intervals are counted from there
    begun : whether it goes on from a checkpoint, so that what was due there has been called
    """

    def __init__(
        self, callbacks: Sequence[Callback], motion: Motion, origin: float, begun: bool
    ) -> None:
        self.callbacks, self._motion, self._origin = callbacks, motion, origin
        self._intervals = {
            i: one.interval for i, one in enumerate(callbacks) if one.interval is not None
        }
        here = motion.position()
        #: Of each of these, how many intervals have passed when it is called next.
        self._count = {i: self._passed(i, here) + begun for i in self._intervals}

    def _passed(self, i: int, place: float) -> int:
        return math.floor((place - self._origin) / self._intervals[i] * (1 + 1e-12))

    def _place(self, i: int) -> float:
        """Where the run can stop and a callback with an interval is due next."""
        place = after(self._origin, self._count[i], self._intervals[i])
        grain = self._motion.stop_interval
        if not grain:
            return place if grain == 0 else math.inf  # at frames only
        here = self._motion.position()
        return after(here, math.ceil((place - here) / grain * (1 - 1e-9)), grain)

    def next(self) -> float:
        """The next place at which one is due that is called between frames, too."""
        return min(map(self._place, self._intervals), default=math.inf)

    def due(self, number: int | None) -> list[Callback]:
        """Those that are due here, at the frame of this number or, if None, between two."""
        here = self._motion.position()
        out = []
        for i, one in enumerate(self.callbacks):
            if i not in self._intervals:
                if number is not None and number % (one.every or 1) == 0:
                    out.append(one)
            elif (passed := self._passed(i, here)) >= self._count[i]:
                self._count[i] = passed + 1
                out.append(one)
        return out


def chosen(callbacks: Sequence[Callback | Callable[..., Any]]) -> list[Callback]:
    """Callbacks, also of plain functions, which are called at every frame."""
    if callable(callbacks) or isinstance(callbacks, Callback):
        callbacks = [callbacks]
    return [one if isinstance(one, Callback) else Callback(one) for one in callbacks]


def ends(due: Sequence[Callback], sim: Simulated, sample: Sample) -> str:
    """Call what is due; the names of those that end the run. Collective.

    Raises
    ------
    InputError : on all ranks, if a function raised on any, or returned what means nothing
    """
    wants = np.zeros(len(due), np.int64)
    for i, one in enumerate(due):
        error = None
        try:
            wants[i] = _called(one, sim, sample)
        except InputError as caught:
            error = caught
        # Others may wait for this rank in a method of the simulation.
        raise_together(sim.comm, error, alone=True)
    if due and sim.comm.size > 1:
        wants = sim.comm.allreduce(wants)
    return ", ".join(name_of(one.function) for one, want in zip(due, wants, strict=True) if want)


def _called(callback: Callback, sim: Simulated, sample: Sample) -> bool:
    name = f"callback {name_of(callback.function)}"
    try:
        wish = callback.function(sim, sample)
    except InputError as error:
        got = f"{error.name}={error.value!r}"
        raise InputError(name, got, error.allowed, error.remedy) from error
    except Exception as error:
        got = f"{type(error).__name__}: {error}{place_of(error)}"
        remedy = "Correct the function; all frames so far are saved."
        raise InputError(name, got, "a function that returns", remedy) from error
    if wish is not None and not isinstance(wish, bool | np.bool_):
        allowed = "True to end the run, else False or None"
        raise InputError(name, f"{type(wish).__name__} {wish!r}", allowed, "Return one of these.")
    return bool(wish)
