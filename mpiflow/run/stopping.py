"""When a run looks up from its work: signals, the walltime, checkpoints that are due."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from mpiflow.core import signals
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.signals import STOPPED

#: Between two looks at the clock, seconds of work, where the work can be divided.
LOOK = 0.25
#: Some of it costs as much however short it is: that is to be a small part of a stretch, which is
#: still short enough for those who wait.
SHARE, LONGEST = 0.25, 1.0
#: Between checkpoints, in seconds, unless their distance is given in the run's own unit.
CHECKPOINT_SECONDS = 600.0


class Stopped(SystemExit):
    """A run that stopped early, on all ranks, with a checkpoint. Uncaught, exit code 75.

    Attributes
    ----------
    reason : the name of the signal, or walltime
    """

    def __init__(self, reason: str) -> None:
        super().__init__(STOPPED)
        self.reason = reason


@dataclass(frozen=True)
class Keep:
    """How a run is kept from loss.

    Parameters
    ----------
    every : distance of checkpoints in the unit of the run, time or hops; None: ten minutes
    walltime : seconds from the start of the process after which it stops with a checkpoint

    Raises
    ------
    InputError : a number is not above 0
    """

    every: float | None = None
    walltime: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("checkpoint_every", self.every), ("walltime", self.walltime)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(name, value, "a finite number above 0, or None", "Leave it out.")


@dataclass(frozen=True)
class Verdict:
    """What all ranks do next; ``stride`` is how far to go until the next look."""

    reason: str
    checkpoint: bool
    stride: float


class Watch:
    """Looks at signals and clocks, with one answer for all ranks.

    In a ``with`` block the signals of :mod:`mpiflow.core.signals` on any rank are a wish to stop; a
    second SIGTERM or SIGINT, two seconds later, acts at once.

    A stretch of work between two looks is measured in the unit of the run, or in events where
    their rate may change: a vacancy that leaves a trap makes a time ten thousand times longer to
    compute, but not a number of hops.

    Parameters
    ----------
    keep : None: no checkpoints, and unless the program listens to signals no looks between frames
    stride : first distance between looks, in the unit of the run or in events
    """

    def __init__(self, keep: Keep | None, comm: MPI.Intracomm, stride: float, now: float) -> None:
        self.keep, self.comm = keep, comm
        self.stride = stride
        self._looks, self._listens = keep is not None or signals.listening(), False
        self._position = self._due = now
        if keep is not None and keep.every is not None:
            self._due = now + keep.every
        self._looked = self._saved = time.monotonic()
        self._recent: deque[float] = deque(maxlen=10)
        self._shortest = math.inf, 0.0  # seconds, and how far it went
        self._each = math.inf  # cost of a stretch of any length, s
        self._compiled = False
        self._cost = 0.0  # of a checkpoint, s

    def __enter__(self) -> Self:
        self._listens = self.keep is not None and signals.listen()
        self._set_deadline()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signals.something_to_lose()
        signals.deadline(math.inf)
        if self._listens:
            signals.stop_listening()

    def _set_deadline(self) -> None:
        """The last time at which work that can be taken back is to be left."""
        if self.keep is not None and self.keep.walltime is not None:
            # It comes to the clock as late as any work, and before what ends a program with nothing
            # to lose. The clock of rank 0 decides: others are not to come to an end before it.
            left = self.keep.walltime - uptime() - self._end - LONGEST
            signals.deadline(time.monotonic() + left - (0.0 if self.comm.rank else LOOK))

    @property
    def _end(self) -> float:
        """Seconds that the end of the program takes."""
        return 2.0 * self._cost + 1.0

    def ahead(self, position: float) -> float:
        """How far to go now: to the next look or the next checkpoint."""
        return min(self.stride, self.to_checkpoint(position)) if self._looks else math.inf

    def to_checkpoint(self, position: float) -> float:
        """Distance of the next checkpoint; infinite if that is a matter of minutes."""
        if self.keep is None or self.keep.every is None:
            return math.inf
        return self._due - position

    @property
    def events(self) -> int | None:
        """How many events to make now at most, where a stretch is measured in them."""
        return max(1, int(min(self.stride, 2.0**62))) if self._looks else None

    def look(self, position: float, events: float | None = None) -> Verdict:
        """Once after each stretch of work. Collective.

        Parameters
        ----------
        events : of the busiest member of this rank since the last look, where they are counted
        """
        if not self._looks:
            return Verdict("", False, math.inf)
        now = time.monotonic()
        spent, self._looked = now - self._looked, now
        moved, self._position = position - self._position, position
        if self._compiled:
            self._recent.append(spent)
        late = due = False
        if self.keep is not None:
            due = now - self._saved >= CHECKPOINT_SECONDS
            if self.keep.every is not None:
                due = position >= self._due * (1 - 1e-12)
            if self.keep.walltime is not None:
                needed = max(self._recent, default=0.0) + self._end
                late = uptime() + needed >= self.keep.walltime
                late |= not (moved if events is None else events) and signals.over()  # taken back
        mine = np.array([signals.received(), 0.0, 0.0, 0.0, moved if events is None else events])
        if self.comm.rank == 0:  # clocks differ between ranks: that of rank 0 decides
            mine[1:4] = late, due, spent
        if self.comm.size > 1:
            self.comm.Allreduce(MPI.IN_PLACE, mine, op=MPI.MAX)
        number, late, due, spent, moved = mine.tolist()
        if moved > 0:
            self._pace(spent, moved)
        reason = signals.name_of(int(number)) if number or late else ""
        if reason or moved > 0:
            signals.something_to_lose()
        return Verdict(reason, bool(due), self.stride)

    def _pace(self, spent: float, moved: float) -> None:
        """Choose the next stride from the time of this one. All ranks have the same numbers."""
        if self._compiled:
            self._shortest = min(self._shortest, (spent, moved))
        self._compiled = True
        least, way = self._shortest
        if moved > 1.5 * way > 0:
            # What the shortest stretch took beside its part of this one: work that cannot be
            # divided is not a cost of dividing it. Before that is known, all of it may be.
            self._each = least - way * spent / moved
        aim = max(LOOK, min(min(least, self._each) / SHARE, LONGEST))
        self.stride = min(moved * aim / max(spent, 1e-9), 4.0 * moved)

    def saved(self, position: float, seconds: float) -> None:
        """A checkpoint has been written; it took so long."""
        self._cost = max(self._cost, seconds)
        self._set_deadline()
        self._saved = self._looked = time.monotonic()
        if self.keep is not None and self.keep.every is not None:
            passed = math.floor((position * (1 + 1e-12) - self._due) / self.keep.every)
            self._due += max(0, passed + 1) * self.keep.every


def begin(keep: Keep | None) -> None:
    """A program that has nothing to lose yet is over at its walltime, too."""
    if keep is not None and keep.walltime is not None:
        signals.until(time.monotonic() + keep.walltime - uptime() - 1.0)


def uptime() -> float:
    """Seconds since this process started."""
    try:
        with open("/proc/self/stat") as file:
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _IMPORTED


_IMPORTED = time.monotonic()
