"""When frames are due, and what a simulation is between two steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

Number = float | int


@dataclass(frozen=True)
class Schedule:
    """Frames at ``start``, every ``every`` after it, and at ``end``.

    In the unit that a run counts in: time, or hops.
    """

    start: float
    end: float
    every: float

    @property
    def regular(self) -> int:
        """Number of whole intervals."""
        return math.floor((self.end - self.start) / self.every * (1 + 1e-12))

    @property
    def last(self) -> int:
        """Number of the last frame; the first is 0."""
        extra = not math.isclose(self.start + self.regular * self.every, self.end, rel_tol=1e-12)
        return self.regular + extra

    def target(self, frame: int) -> float:
        """Where a frame is due. Written as it always was: its bits are those of the file."""
        return self.start + frame * self.every if frame <= self.regular else self.end


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
