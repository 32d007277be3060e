r"""How long the next window of the tiled solver is, from the hops in those before.

The error of a window grows with the hops that a vacancy makes in it, and rates of vacancies
differ by many orders of magnitude, between places and in time: at 300 K a window of one length
for a whole run has anything from 0.002 to 33,000 hops. So each window is

.. math:: W = \frac{a\,n\,T}{H}

for a number a of hops of each of n vacancies, H being the hops counted in the last time T:
windows as long ago as :data:`MEMORY` hops of a vacancy are forgotten, at once if the last one had
as many. After windows without any hop, the next is as long as all of these together.

A window depends on counts of the past alone, so the law of each pass is exact, and the error is of
second order as for given windows. There is one exception. A vacancy may fall into a trap, where it
goes to and fro between two sites: ten orders of magnitude faster than before, at 300 K. A window
in which a tile makes :data:`LIMIT` times the hops that all vacancies are to make is done again with
the same noise, up to just before that hop: the way into the trap is kept, and the next windows are
those of the trap.

Counts are integers, summed over all ranks and members, and the arithmetic is IEEE: the same
windows on any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mpiflow.core.errors import InputError
from mpiflow.core.schedule import Number

#: Hops of a vacancy in a window, unless another number is asked for.
AIM = 2.0
#: Hops of a vacancy in a window up to which its bias was measured to be of second order.
MOST_HOPS = 4.0
#: Hops of a vacancy that the rate is taken from.
MEMORY = 16.0
#: Hops of a tile in a pass, in those that all vacancies are to make in a window, that cut it short.
LIMIT = 16.0


class WindowChoice:
    """Chooses windows one after the other.

    Parameters
    ----------
    vacancies : of all lattices together
    first : the first window in s, above 0
    aim : hops of a vacancy in a window

    Attributes
    ----------
    last : the last window in s, the first one before there is any
    """

    def __init__(self, vacancies: int, first: float, aim: float = AIM) -> None:
        if not (aim > 0 and math.isfinite(aim)):
            raise InputError("hops", aim, "a finite number of hops above 0", f"Try {AIM:g}.")
        self.vacancies, self.aim = vacancies, aim
        self.last = self._next = first
        self._hops = self._time = self._silent = 0.0

    @property
    def limit(self) -> int:
        """Hops of a tile in a pass that are too many."""
        return max(2, math.ceil(LIMIT * self.aim * self.vacancies))

    def ahead(self, left: float = math.inf) -> tuple[float, bool]:
        """The next window, one of equal parts of what is left of the time, and if it is all."""
        if left <= self._next:
            return left, True
        if math.isinf(left):
            return self._next, False
        return left / math.ceil(left / self._next), False

    def count(self, window: float, hops: int) -> None:
        """Take a window with so many hops of all vacancies into account."""
        most = MEMORY * self.vacancies
        kept = 1.0
        if self._hops + hops > most:
            kept = max(0.0, most - hops) / self._hops if self._hops > 0 else 0.0
        self._hops, self._time = self._hops * kept + hops, self._time * kept + window
        self._silent = 0.0 if hops else self._silent + window
        self.last, wanted = window, self._silent
        if self._hops > 0:
            wanted = max(wanted, self.aim * self.vacancies * self._time / self._hops)
        # Where windows are cut short by frames, nothing is known of longer ones.
        self._next = max(wanted, self._next if self._hops == 0 else 0.0)

    def numbers(self) -> dict[str, Number]:
        """What a checkpoint keeps."""
        return {
            "window_vacancies": self.vacancies,
            "window_aim": self.aim,
            "window_last": self.last,
            "window_next": self._next,
            "window_hops": self._hops,
            "window_time": self._time,
            "window_silent": self._silent,
        }

    @classmethod
    def restored(cls, numbers: Mapping[str, Number]) -> WindowChoice:
        """That of a checkpoint."""
        choice = cls(
            int(numbers["window_vacancies"]),
            float(numbers["window_last"]),
            float(numbers["window_aim"]),
        )
        choice._next = float(numbers["window_next"])
        choice._hops, choice._time = (float(numbers[f"window_{n}"]) for n in ("hops", "time"))
        choice._silent = float(numbers["window_silent"])
        return choice


def implied_bias(tile: Sequence[int], sides: Sequence[int], hops: float) -> float:
    r"""About how much a window lowers the mean square displacement of atoms, in percent.

    .. math:: 0.1 h^2 \sum_a \frac{16}{3\, b_a}

    for h hops of a vacancy in a window, up to 4, and tiles of b points along the axes a that are
    cut: the measurement of ``drivers/alloy_window.py`` in docs/alloy.md. Short-range order is
    off by less.
    """
    cut = sum(16.0 / (3.0 * t) for t, side in zip(tile, sides, strict=True) if t < side)
    return 0.1 * hops**2 * cut
