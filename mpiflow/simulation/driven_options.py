"""Options of systems whose parameters may change in time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from mpiflow.core import inputs
from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.simulation.options import StartConfig, option

if TYPE_CHECKING:  # it imports NumPy: not for the sake of --help
    from mpiflow.systems.drive import Drive

#: Numbers of a run that are no parameters of its system.
_OTHERS = frozenset(["time", "save_every", "initial_magnetization"])


class DrivenConfig(StartConfig):
    """Options of systems whose parameters may change in time."""

    schedule: str | None = option(
        None,
        "Parameters that change in time: NAME KIND NUMBERS; ... as 'temperature ramp 3 1.5 over "
        "100; field ac 0.5 period 20' (quench A B at T, ramp A B over T [from T0], hysteresis H "
        "over T, ac A period P [offset C], points T V T V ...), or a table of time, temperature "
        "and field in a .csv, .npy or .toml file.",
        metavar="TEXT|PATH",
        shown="none",
        allowed="NAME KIND NUMBERS; ... or the path of a .csv, .npy or .toml file",
        remedy="Try 'temperature ramp 3 1.5 over 100'.",
    )

    @model_validator(mode="before")
    @classmethod
    def _begin_schedule(cls, values: Any) -> Any:
        """Parameters that a schedule changes have its values at time 0."""
        text = values.get("schedule") if isinstance(values, dict) else None
        if not isinstance(text, str):
            return values
        from mpiflow.files import drives

        if drives.is_file(text):
            text = inputs.absolute(text)
        values, fields = {**values, "schedule": text}, cls.model_fields
        known = [n for n, f in fields.items() if f.annotation is float and n not in _OTHERS]
        for name, curve in drives.read(text).curves.items():
            if name not in known:
                allowed = f"parameters that are numbers: {', '.join(known)}"
                remedy = did_you_mean(name, known) or "Leave it out."
                raise InputError("schedule", name, allowed, remedy)
            start, given = curve.at(0.0), values.get(name)
            if given is not None and str(given) != str(start) and float(given) != start:
                allowed = f"{start:g}, which the schedule says at time 0"
                raise InputError(name, given, allowed, "Leave it out.")
            values[name] = start
        return values

    @classmethod
    def derived(cls, config: Mapping[str, Any]) -> set[str]:
        from mpiflow.files import drives

        text = config.get("schedule")
        return set(drives.read(text).curves) if isinstance(text, str) else set()

    @cached_property
    def drive(self) -> Drive | None:
        """What changes in time, if anything does."""
        if self.schedule is None:
            return None
        from mpiflow.files import drives

        return drives.read(self.schedule)

    def files(self) -> dict[str, tuple[Path, ...]]:
        """The initial state and the schedule."""
        from mpiflow.files import drives

        of_schedule = self.schedule is not None and drives.is_file(self.schedule)
        return super().files() | ({"schedule": (Path(self.schedule or ""),)} if of_schedule else {})
