"""Values of options as people write them: 64x128, A,B,..., 1:30:00."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import time as clock_time
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from mpiflow.core.schedule import number_to_json


def _crossed(value: Any) -> Any:
    """'64x32' or '64,32' to ('64', '32'); 64 is left to the caller."""
    if isinstance(value, str) and ("x" in value or "," in value):
        return tuple(value.replace("x", ",").split(","))
    return value


def _sides(axes: int) -> Callable[[Any], Any]:
    """As :func:`_crossed`, and 64 to as many of it as there are axes."""

    def sides(value: Any) -> Any:
        value = _crossed(value)
        return value if isinstance(value, list | tuple) else (value,) * axes

    return sides


def _listed(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


#: As Slurm writes times, days first: D-HH, D-HH:MM, D-HH:MM:SS; without days HH:MM:SS and MM:SS.
#: All but the first number are below 24 or 60. A plain number is left: that is seconds.
_DAYS = re.compile(r"(\d+)-([01]?\d|2[0-3])(?::([0-5]?\d))?(?::([0-5]?\d))?", re.ASCII)
_HOURS = re.compile(r"(?:(\d+):([0-5]?\d)|(\d+)):([0-5]?\d)", re.ASCII)


def _seconds(value: Any) -> Any:
    """'1:30:00' to 5400, '1-12' to 129600, also where TOML has made a time of day of it."""
    if isinstance(value, clock_time) and value.tzinfo is None:
        return value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6
    text = value.strip() if isinstance(value, str) else ""
    if match := _DAYS.fullmatch(text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((24 * days + hours) * 60 + minutes) * 60 + seconds)
    if match := _HOURS.fullmatch(text):
        hours, minutes, alone, seconds = (int(part or 0) for part in match.groups())
        return float((60 * hours + minutes + alone) * 60 + seconds)
    return value


Seconds = Annotated[float, BeforeValidator(_seconds)]
Step = Annotated[float, PlainSerializer(number_to_json, when_used="json")]
Grid = Annotated[tuple[int, int], BeforeValidator(_crossed)]
Sides = Annotated[tuple[int, int], BeforeValidator(_sides(2))]
ThreeSides = Annotated[tuple[int, int, int], BeforeValidator(_sides(3))]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Numbers = Annotated[tuple[float, ...], BeforeValidator(_listed)]
