"""What simulations of lattices share where parameters change in time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mpiflow.core.errors import InputError
from mpiflow.files.schema import Variable, parameter
from mpiflow.files.writer import Value
from mpiflow.systems.drive import Drive, piece


class Driven:
    """A simulation of a system, whose parameters a drive may change.

    Attributes
    ----------
    system : the model, of a drive with the values of time 0
    drive : parameters that change in time, None if none does
    hold : exact solvers hold these between whole multiples of this time
    """

    system: Any
    solver: Any
    block: Any
    time: float
    drive: Drive | None = None
    hold: float

    @property
    def law(self) -> Any:
        """The model with the values of the present time."""
        return self.system if self.drive is None else self.drive.system(self.system, self.time)

    def _set_drive(self, system: Any, schedule: Drive | str | None) -> None:
        """Take the model, and what changes in it."""
        self.system = system
        if schedule is not None:
            self.drive = Drive.read(schedule) if isinstance(schedule, str) else schedule
            self.drive.check(system)
            self.system = self.drive.system(system, 0.0)

    def _set_hold(self, name: str, interval: float) -> None:
        """For how long an exact solver holds what changes, by the option of that name."""
        if self.drive is not None and not (interval > 0 and math.isfinite(interval)):
            allowed = "a finite time above 0, for which values are held"
            raise InputError(name, interval, allowed, "Try 0.25.")
        self.hold = interval

    def _held(self, time: float | None = None) -> Any:
        """The model that an exact solver holds from a time on, now unless given."""
        if self.drive is None:
            return self.system
        now = piece(self.drive, self.hold, self.time if time is None else time)
        return self.drive.system(self.system, now.middle)

    def _ends(self, time: float) -> Iterator[float]:
        """Where what an exact solver holds changes on the way to a time, and that time."""
        if self.drive is not None:
            here, law = self.time, self._held()
            while (here := piece(self.drive, self.hold, here).end) < time:
                if self._held(here) != law:
                    yield here
                    law = self._held(here)
        yield time

    def _hold_next(self) -> None:
        """Let an exact solver go on with the next piece, where one ends."""
        if self.drive is not None and (law := self._held()) != self.solver.system:
            self.solver.become(self.block, law, self.time)

    def _driven_facts(self) -> dict[str, Any]:
        return {} if self.drive is None else {"schedule": self.drive.text}

    def _driven_variables(self) -> list[Variable]:
        """What a file holds of parameters that change."""
        return [] if self.drive is None else [parameter(name) for name in self.drive.curves]

    def _driven_values(self) -> dict[str, Value]:
        return {} if self.drive is None else dict(self.drive.at(self.time))
