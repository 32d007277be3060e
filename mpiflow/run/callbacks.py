"""Functions that look at a run at its frames: to steer it, and to end it early."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiflow.core.errors import InputError, place_of
from mpiflow.core.parallel import raise_together
from mpiflow.core.schedule import Schedule
from mpiflow.observables.observable import name_of
from mpiflow.simulation.base import Sample, Simulated


@dataclass(frozen=True)
class Callback:
    """A function that is called at frames of a run, right after each was saved.

    It is called on all ranks together with the simulation and the frame, ``function(sim, sample)``:
    ``sample.time``, and ``sample.here("magnetization")``, this rank's part of a variable. It may
    call methods of the simulation, which are collective, and change its state: the run goes on
    from there. If it returns True on any rank, the run ends with this frame, complete.

    An exception on any rank ends all ranks with one message; the file keeps all frames so far, and
    is that of an interrupted run.

    Parameters
    ----------
    function : what is called; it returns True to end the run, else False or None
    every : at each frame whose number, from 0 at the beginning of the run, is a multiple of this
    interval : instead, at the first frame and then at the first in each interval of this length,
        in the unit of the run: time, or hops

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

    def due(self, schedule: Schedule, number: int) -> bool:
        """Whether it is called at a frame."""
        if self.interval is None:
            return number % (self.every or 1) == 0
        here, before = (
            math.floor((schedule.target(n) - schedule.start) / self.interval * (1 + 1e-12))
            for n in (number, number - 1)
        )
        return number == 0 or here > before


def chosen(callbacks: Sequence[Callback | Callable[..., Any]]) -> list[Callback]:
    """Callbacks, also of plain functions, which are called at every frame."""
    if callable(callbacks) or isinstance(callbacks, Callback):
        callbacks = [callbacks]
    return [one if isinstance(one, Callback) else Callback(one) for one in callbacks]


def ends(
    callbacks: Sequence[Callback],
    sim: Simulated,
    sample: Sample,
    schedule: Schedule,
    number: int,
) -> str:
    """Call what is due at a frame; the names of those that end the run. Collective.

    Raises
    ------
    InputError : on all ranks, if a function raised on any, or returned what means nothing
    """
    due = [one for one in callbacks if one.due(schedule, number)]
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
