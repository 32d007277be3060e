"""When frames are due, what time it is after so many steps, and what a simulation is between two.

Times are what people type: with a step of 0.1 the third is at 0.3, not at 0.30000000000000004.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import count

import numpy as np

from mpiflow.core.errors import InputError

Number = float | int

#: Digits up to which a number is taken for the decimal that its shortest text says. One with
#: more, as 1 / 3 has, was computed: it is what it is in binary, so that 3 (1 / 3) is 1.
_TYPED = 15


#: No run can store more frames, write more checkpoints or make more steps in any useful time.
MOST_FRAMES, MOST_CHECKPOINTS, MOST_STEPS = 10**9, 10**6, 10**15
#: Frames a decade whose distances grow: more would lie closer than those at equal distances may.
MOST_A_DECADE = 1000
#: Of a late time: what adds less to it is lost in rounding.
_ROUNDING = 1e-12


def number_to_json(value: float | None) -> float | str | None:
    """A number as JSON has it, which knows no infinity."""
    return "inf" if value is not None and math.isinf(value) else value


@lru_cache(maxsize=256)
def _exact(value: float) -> Fraction:
    text = repr(float(value))
    digits = text.partition("e")[0].replace(".", "").replace("-", "").strip("0")
    return Fraction(text) if len(digits) <= _TYPED else Fraction(value)


def after(start: float, steps: int, every: float) -> float:
    """``start + steps * every``, rounded once, of decimals as they are typed."""
    return float(_exact(start) + steps * _exact(every))


def spacing(time: float, frames: int, step: float | None = None) -> float:
    """Time between so many frames, in whole steps if there are steps."""
    if step is None:
        return float(_exact(time) / frames)
    return after(0.0, max(1, round(time / step / frames)), step)


def require_few(name: str, every: float, duration: float, most: int, what: str) -> None:
    """Raise for an interval that is no number above 0, or would never come to an end.

    Parameters
    ----------
    name, every : the option, and its value
    duration : of the run, in the same unit
    most, what : so many of these it may hold
    """
    if not (math.isfinite(every) and every > 0):
        raise InputError(name, every, "a finite number above 0", "Leave it out.")
    if duration > most * every:
        allowed = (
            f"{duration / most:.3g} or more: at most {most:.0e} {what} in a run of {duration:g}"
        )
        raise InputError(name, every, allowed, "Leave it out, or take a longer one.")


def whole_steps(
    name: str,
    duration: float,
    step: float | None,
    *,
    now: float = 0.0,
    what: str = "the time step",
    other: str = "another step",
    unit: str = "",
) -> int:
    """Whole steps in a duration; with no steps of one length 1, and 0 for 0.

    Parameters
    ----------
    now : the time, whose differences round
    what, other, unit : of the message

    Raises
    ------
    InputError : it is no multiple of the step, or steps are too many
    """
    if not (duration >= 0 and math.isfinite(duration)):
        raise InputError(name, duration, f"a finite number{unit and ' of seconds'}, 0 or more",
            f"Try {'1e-7' if unit else '10'}.")  # fmt: skip
    if duration == 0 or step is None:
        return int(duration > 0)
    if duration > MOST_STEPS * step:
        allowed = f"at most {MOST_STEPS:.0e} steps of {step:g}{unit}"
        raise InputError(name, duration, allowed, "Take a longer step.")
    steps, rounding = round(duration / step), 1e-12 * now
    if steps < 1 or not math.isclose(steps * step, duration, rel_tol=1e-9, abs_tol=rounding):
        near = f"Use {max(1, steps) * step:.12g}, or {other}."
        raise InputError(name, duration, f"a multiple of {what} {step:g}{unit}", near)
    return steps


@dataclass(frozen=True)
class Clock:
    """The time of steps of one length, which may have been another before.

    Parameters
    ----------
    dt : length of a step
    first, start : the step that this length holds from, and the time then
    """

    dt: float
    first: int = 0
    start: float = 0.0

    def time(self, step: int) -> float:
        """The time after so many steps of the run."""
        return after(self.start, step - self.first, self.dt)

    def middle(self, step: int) -> float:
        """The time in the middle of a step, half a step after :meth:`time`."""
        return after(self.start, 2 * (step - self.first) + 1, 0.5 * self.dt)

    def step(self, time: float) -> int:
        """The step whose time is nearest, of the run."""
        return self.first + round((time - self.start) / self.dt)

    def numbers(self) -> dict[str, Number]:
        """What a checkpoint keeps of it."""
        return {"clock_dt": self.dt, "clock_first": self.first, "clock_start": self.start}

    @classmethod
    def restored(cls, numbers: Mapping[str, Number], dt: float) -> Clock:
        """That of a checkpoint, going on from its step and time if ``dt`` has changed.

        Steps are never counted anew: they are the keys of random numbers.
        """
        step, time = int(numbers["step"]), float(numbers["time"])
        if numbers.get("clock_dt") == dt:
            return cls(dt, int(numbers["clock_first"]), float(numbers["clock_start"]))
        # Before there were these numbers, the time was that of whole steps of the last length.
        old = "clock_dt" not in numbers and math.isclose(step * dt, time, rel_tol=1e-12)
        return cls(dt) if old else cls(dt, step, time)


@dataclass(frozen=True)
class Schedule:
    """Frames at ``start``, every ``every`` after it, and at ``end``.

    In the unit that a run counts in: time, or hops.

    Parameters
    ----------
    per_decade : K, of frames whose distances grow: the first after ``every``, then K up to ten
        times as far from the start, K more up to a hundred times, and so on. None: equal distances
    step : such frames lie on whole steps of this length, each on one of its own; 0 for none. Where
        there are none, those between full decades have six digits
    """

    start: float
    end: float
    every: float
    per_decade: int | None = None
    step: float = 0.0

    @classmethod
    def of(
        cls,
        start: float,
        duration: float,
        every: float,
        unit: str = "time",
        per_decade: int | None = None,
        step: float = 0.0,
    ) -> Schedule:
        """A schedule that is not endless; of an interval beyond the end, the first and last frame.

        Raises
        ------
        InputError : a number makes no sense, or frames are too many or too close
        """
        if not (math.isfinite(duration) and duration >= 0):
            raise InputError(unit, duration, "a finite number, 0 or more", "Try 10.")
        schedule = cls(start, after(start, 1, duration), every, per_decade, step)
        schedule.check()
        return schedule

    def check(self) -> None:
        """Raise if frames are too many, or so close that their times would be the same."""
        if self.per_decade is not None and not 1 <= self.per_decade <= MOST_A_DECADE:
            allowed = f"1 to {MOST_A_DECADE}"
            raise InputError("frames_per_decade", self.per_decade, allowed, "Try 10.")
        most = MOST_FRAMES if self.per_decade is None else MOST_STEPS
        require_few("save_every", self.every, self.end - self.start, most, "frames")
        if self.every < _ROUNDING * abs(self.end):
            allowed = f"{_ROUNDING * abs(self.end):.3g} or more at times up to {self.end:g}"
            raise InputError("save_every", self.every, allowed, "Times would be the same.")

    @cached_property
    def _places(self) -> tuple[float, ...]:
        """Distances from the start of frames 1, 2, ... up to the end, where they grow."""
        assert self.per_decade is not None  # noqa: S101 - for the type checker
        length, out = (self.end - self.start) * (1 + 1e-12), [0.0]
        for number in count():
            decade, part = divmod(number, self.per_decade)
            place = float(_exact(self.every) * 10**decade)
            if part:  # of all digits the last would be another on another machine
                place = float(f"{place * 10.0 ** (part / self.per_decade):.6g}")
            if self.step:
                place = after(0.0, round(place / self.step), self.step)
            if place > length:
                return tuple(out[1:])
            if place > out[-1]:
                out.append(place)
        raise AssertionError  # for the type checker

    @property
    def regular(self) -> int:
        """Number of the last frame that is due for its distance, not as the end."""
        if self.per_decade is not None:
            return len(self._places)
        return math.floor((self.end - self.start) / self.every * (1 + 1e-12))

    @property
    def last(self) -> int:
        """Number of the last frame; the first is 0."""
        regular = self.regular
        place = self.start + regular * self.every
        if self.per_decade is not None:
            place = self.start + (self._places[-1] if regular else 0.0)
        return regular + (not math.isclose(place, self.end, rel_tol=1e-12))

    def target(self, frame: int) -> float:
        """Where a frame is due."""
        if frame >= self.last:
            return self.end
        if self.per_decade is not None and frame > 0:
            return after(self.start, 1, self._places[frame - 1])
        return after(self.start, frame, self.every)

    def next(self, here: float) -> int:
        """Number of the first frame that is due here or later."""
        there = (here - self.start) * (1 - 1e-12)
        if self.per_decade is None:
            return math.ceil((here - self.start) / self.every * (1 - 1e-12))
        return 1 + bisect_left(self._places, there) if there > 0 else 0


@dataclass(frozen=True)
class State:
    """What a simulation is between two steps, without its sites.

    Attributes
    ----------
    numbers : the same on all ranks
    arrays : a row for each member of this rank; of a lattice that is cut over ranks one row, the
        same on all
    """

    numbers: dict[str, Number]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
