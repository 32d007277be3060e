r"""Parameters that change in time: what value each of them has when.

A drive says of parameters of a system, as its temperature and its field, how they go:

=============================== ==================================================================
``quench A B at T``             A before the time T, B from then on
``ramp A B over T [from T0]``   A to B along a straight line, and B from then on
``hysteresis H over T``         the loop 0, H, -H, H at one rate, and H from then on
``ac A period P [offset C]``    :math:`C + A \sin(2 \pi t / P)`
``points T V T V ...``          V at each time T, straight lines between, constant beyond the ends
=============================== ==================================================================

or a function of the time. It is a function of the time alone, never a sum over steps: a run is the
same however it is cut, and wherever it is stopped and goes on.

Solvers of fixed steps hold each value for a pass or a step, taken at the middle of its time: of
second order in the step, as they are. Exact ones hold it for a stated interval, taken at the
middle, too. A jump, as that of a quench, at the end of a step is one there exactly.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.core.schedule import Clock, after

System = TypeVar("System")


class Form(NamedTuple):
    """How a kind is written: so many numbers, or pairs (None), and then some with names."""

    text: str
    plain: int | None = None
    named: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


FORMS = {
    "quench": Form("quench A B at T", 2, ("at",)),
    "ramp": Form("ramp A B over T [from T0]", 2, ("over",), ("from",)),
    "hysteresis": Form("hysteresis H over T", 1, ("over",)),
    "ac": Form("ac A period P [offset C]", 1, ("period",), ("offset",)),
    "points": Form("points T V T V ..."),
}


class Curve(Protocol):
    """One parameter as a function of time."""

    def at(self, time: float) -> float:
        """Its value from a time on."""

    def before(self, time: float) -> float:
        """Its value up to a time: another one only where it jumps."""

    def jumps(self) -> Sequence[float]:
        """The times at which it may jump, increasing."""

    def bounds(self) -> tuple[float, float] | None:
        """The smallest and the largest value; None if that cannot be known."""

    def text(self) -> str:
        """As it is written: the same text is the same curve."""


@dataclass(frozen=True)
class Line:
    """Straight lines between points; two points at one time are a jump.

    Parameters
    ----------
    times : not decreasing
    values : one at each time
    """

    times: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.times or len(self.times) != len(self.values):
            raise InputError("schedule", "points", "a value at each time, one at least", "Add it.")
        for number in (*self.times, *self.values):
            if not math.isfinite(number):
                raise InputError("schedule", number, "finite numbers", "Correct it.")
        for first, second in itertools.pairwise(self.times):
            if second < first:
                allowed = "times that do not decrease"
                raise InputError("schedule", f"{second:g} after {first:g}", allowed, "Sort them.")

    def at(self, time: float) -> float:
        return self._between(bisect_right(self.times, time), time)

    def before(self, time: float) -> float:
        return self._between(bisect_left(self.times, time), time)

    def _between(self, following: int, time: float) -> float:
        if following == 0:
            return self.values[0]
        if following == len(self.times):
            return self.values[-1]
        (t0, t1), (v0, v1) = (a[following - 1 : following + 1] for a in (self.times, self.values))
        return v0 + (v1 - v0) * ((time - t0) / (t1 - t0))

    def jumps(self) -> Sequence[float]:
        pairs = itertools.pairwise(self.times)
        return sorted({first for first, second in pairs if first == second})

    def bounds(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    def text(self) -> str:
        both = zip(self.times, self.values, strict=True)
        return "points " + " ".join(f"{number!r}" for pair in both for number in pair)


@dataclass(frozen=True)
class Wave:
    """``offset + amplitude sin(2 pi t / period)``."""

    amplitude: float
    period: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (self.period > 0 and math.isfinite(self.period)):
            raise InputError("schedule", self.period, "a period above 0", "Try 20.")
        for number in (self.amplitude, self.offset):
            if not math.isfinite(number):
                raise InputError("schedule", number, "finite numbers", "Correct it.")

    def at(self, time: float) -> float:
        # The rest of a division is exact: all periods are alike, however late.
        return self.offset + self.amplitude * math.sin(
            2.0 * math.pi * (math.fmod(time, self.period) / self.period)
        )

    before = at

    def jumps(self) -> Sequence[float]:
        return ()

    def bounds(self) -> tuple[float, float]:
        return self.offset - abs(self.amplitude), self.offset + abs(self.amplitude)

    def text(self) -> str:
        return f"ac {self.amplitude!r} period {self.period!r} offset {self.offset!r}"


@dataclass(frozen=True)
class Free:
    """A function of the time that a user wrote; without jumps."""

    function: Callable[[float], float]

    def at(self, time: float) -> float:
        name = getattr(self.function, "__name__", "function")
        try:
            value = float(self.function(time))
        except Exception as error:
            raise InputError(
                "schedule",
                f"{name}({time:g})",
                "a function of the time that returns a number",
                f"It raised {type(error).__name__}: {error}.",
            ) from error
        if not math.isfinite(value):
            raise InputError("schedule", value, "finite numbers", f"Look at {name}({time:g}).")
        return value

    before = at

    def jumps(self) -> Sequence[float]:
        return ()

    def bounds(self) -> None:
        return None

    def text(self) -> str:
        return f"function {getattr(self.function, '__qualname__', type(self.function).__name__)}"


class Drive:
    """Parameters of a system as functions of time.

    Parameters
    ----------
    curves : by the name of a parameter: a text of the module's table, a function of the time, a
        pair of times and values (:class:`Line`), or a number

    Raises
    ------
    InputError : one of them is none of that

    Examples
    --------
    >>> drive = Drive(temperature="ramp 3 1.5 over 100", field=lambda t: 0.1 * math.sin(t))
    >>> drive.at(50.0)["temperature"]
    2.25
    """

    def __init__(self, **curves: Any) -> None:
        if not curves:
            allowed = "a parameter, and how it goes"
            raise InputError("schedule", None, allowed, "Try temperature='ramp 3 1.5 over 100'.")
        self.curves: dict[str, Curve] = {name: _curve(name, c) for name, c in curves.items()}

    @classmethod
    def read(cls, text: str) -> Drive:
        """Of a text: ``NAME KIND NUMBERS``, several of them with a semicolon between."""
        curves: dict[str, str] = {}
        for part in text.split(";"):
            name, _, rest = part.strip().partition(" ")
            if name in curves:
                raise InputError("schedule", text, f"{name} once", "Give it all its points.")
            if not name or not rest:
                raise InputError("schedule", text, "NAME KIND NUMBERS; ...", _try(rest and name))
            curves[name] = rest
        return cls(**curves)

    @property
    def text(self) -> str:
        """As :meth:`read` takes it, but for functions."""
        return "; ".join(f"{name} {curve.text()}" for name, curve in sorted(self.curves.items()))

    def __repr__(self) -> str:
        return f"Drive({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Drive) and self.curves == other.curves

    __hash__ = None  # type: ignore[assignment]

    @property
    def jumps(self) -> list[float]:
        """Times at which a value may jump, increasing."""
        return sorted({time for curve in self.curves.values() for time in curve.jumps()})

    def at(self, time: float) -> dict[str, float]:
        """All values from a time on."""
        return {name: curve.at(time) for name, curve in self.curves.items()}

    def before(self, time: float) -> dict[str, float]:
        """All values up to a time."""
        return {name: curve.before(time) for name, curve in self.curves.items()}

    def largest(self, name: str, otherwise: float) -> float:
        """The largest absolute value of a parameter, which is ``otherwise`` if it is not driven.

        Raises
        ------
        InputError : it is that of a function
        """
        if name not in self.curves:
            return abs(otherwise)
        found = self.curves[name].bounds()
        if found is None:
            raise InputError(
                "schedule",
                self.curves[name].text(),
                f"a bound of the {name} before the run: fields are integers here",
                "Give its points instead: Drive(field=(times, values)).",
            )
        return max(map(abs, found))

    # -- of a system -----------------------------------------------------------------------

    def check(self, system: Any) -> None:
        """Raise unless a system has these parameters and may have all their values."""
        known = _numbers(system)
        for name in self.curves:
            if name not in known:
                allowed = f"parameters of {type(system).__name__}: {', '.join(known)}"
                remedy = did_you_mean(name, known) or "Leave it out."
                raise InputError("schedule", name, allowed, remedy)
        start = self.at(0.0)
        ends = [curve.bounds() or (start[name],) for name, curve in self.curves.items()]
        for values in itertools.product(*map(set, ends)):
            replace(system, **dict(zip(self.curves, values, strict=True)))

    def system(self, system: System, time: float) -> System:
        """A system with its values from a time on."""
        return replace(system, **self.at(time))  # type: ignore[type-var]

    def system_before(self, system: System, time: float) -> System:
        """A system with its values up to a time."""
        return replace(system, **self.before(time))  # type: ignore[type-var]


# -- for solvers of steps --------------------------------------------------------------------------


def stretches(
    drive: Drive | None, system: System, clock: Clock, first: int, steps: int
) -> Iterator[tuple[System, int, int]]:
    """Steps of one law together: a system, the number of the first step, and how many.

    Each step has the values of the middle of its time.
    """
    if drive is None:
        yield system, first, steps
        return
    begun, law = first, drive.system(system, clock.middle(first))
    for step in range(first + 1, first + steps):
        if (new := drive.system(system, clock.middle(step))) != law:
            yield law, begun, step - begun
            begun, law = step, new
    yield law, begun, first + steps - begun


# -- for exact solvers -----------------------------------------------------------------------------


class Piece(NamedTuple):
    """A time for which exact solvers hold all values.

    Attributes
    ----------
    end : of it
    middle : the time whose values hold
    """

    end: float
    middle: float


def piece(drive: Drive, interval: float, time: float) -> Piece:
    """The piece that a time is in, or begins: cut at multiples of the interval and at jumps."""
    number = math.floor(time / interval)
    while after(0.0, number + 1, interval) <= time:  # the quotient rounds
        number += 1
    start = max(after(0.0, number, interval), *(j for j in drive.jumps if j <= time), -math.inf)
    end = min(after(0.0, number + 1, interval), *(j for j in drive.jumps if j > time), math.inf)
    return Piece(end, 0.5 * (start + end))


# -- texts -----------------------------------------------------------------------------------------


def _curve(name: str, given: Any) -> Curve:
    if isinstance(given, str):
        return _read(name, given)
    if isinstance(given, Line | Wave | Free):
        return given
    if callable(given):
        return Free(given)
    if isinstance(given, int | float | np.number) and not isinstance(given, bool):
        return Line((0.0,), (float(given),))
    try:
        times, values = (tuple(float(number) for number in part) for part in given)
    except (TypeError, ValueError):
        shown = f"{name}={given!r}"
        allowed = "a text, a function of the time, or times and values"
        raise InputError("schedule", shown, allowed, _try(name)) from None
    return Line(times, values)


def _read(name: str, text: str) -> Curve:
    kind, *words = text.replace(",", " ").split()
    if kind not in FORMS:
        remedy = did_you_mean(kind, FORMS) or _try(name)
        raise InputError("schedule", f"{name} {text}", f"one of {', '.join(FORMS)}", remedy)
    form = FORMS[kind]
    try:
        values, named = _matched(form, words)
    except ValueError:
        shown = f"{name} {text}"
        raise InputError("schedule", shown, f"{name} {form.text}", _try(name)) from None
    if kind == "points":
        return Line(tuple(values[::2]), tuple(values[1::2]))
    if kind == "quench":
        return Line((named["at"],) * 2, (values[0], values[1]))
    if kind == "ac":
        return Wave(values[0], named["period"], named.get("offset", 0.0))
    if not named["over"] > 0:
        raise InputError(
            "schedule", f"{name} {text}", "a time above 0", f"Write {name} {form.text}."
        )
    if kind == "ramp":
        start = named.get("from", 0.0)
        return Line((start, start + named["over"]), (values[0], values[1]))
    fifth = named["over"] / 5
    return Line((0.0, fifth, 3 * fifth, named["over"]), (0.0, values[0], -values[0], values[0]))


def _matched(form: Form, words: list[str]) -> tuple[list[float], dict[str, float]]:
    """The numbers of a form: those without a name, and those with one.

    Raises
    ------
    ValueError : the words are not of that form
    """
    count = len(words) if form.plain is None else form.plain
    values, rest = [float(word) for word in words[:count]], words[count:]
    named = dict(zip(rest[::2], map(float, rest[1::2]), strict=True))
    if 2 * len(named) != len(rest) or not set(named) <= set(form.named) | set(form.optional):
        raise ValueError(words)
    if len(values) < count or not set(form.named) <= set(named):
        raise ValueError(words)
    if form.plain is None and (not values or len(values) % 2):
        raise ValueError(words)
    return values, named


def _try(name: str) -> str:
    return f"Try '{name or 'temperature'} ramp 3 1.5 over 100'."


def _numbers(system: Any) -> list[str]:
    """The parameters of a system that are real numbers and may change."""
    if not is_dataclass(system):
        return []
    fixed = getattr(system, "FIXED", ())
    return [f.name for f in fields(system) if f.type in ("float", float) and f.name not in fixed]
