"""When a run looks up from its work: signals, the walltime, checkpoints that are due."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from mpi4py import MPI

from mpiflow import signals

#: Exit code of a run that has written a checkpoint and wants to be started again (EX_TEMPFAIL).
STOPPED = 75
#: Between two looks at the clock, seconds of work, where the work can be divided.
LOOK = 0.25
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
    """

    every: float | None = None
    walltime: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What all ranks do next; ``stride`` is how far to go until the next look."""

    reason: str
    checkpoint: bool
    stride: float


class Watch:
    """Looks at signals and clocks, with one answer for all ranks.

    In a ``with`` block SIGTERM, SIGUSR1 or SIGINT on any rank is a wish to stop; a second SIGTERM
    or SIGINT, two seconds later, acts at once (:mod:`mpiflow.signals`).

    Parameters
    ----------
    keep : None: no looks between frames, and signals are left alone
    stride : first distance between looks, in the unit of the run
    """

    def __init__(self, keep: Keep | None, comm: MPI.Intracomm, stride: float, now: float) -> None:
        self.keep, self.comm = keep, comm
        self.stride = stride
        self._listens = False
        self._position = self._due = now
        if keep is not None and keep.every is not None:
            self._due = now + keep.every
        self._looked = self._saved = time.monotonic()
        self._recent: deque[float] = deque(maxlen=10)
        self._compiled = False
        self._cost = 0.0  # of a checkpoint, s

    def __enter__(self) -> Self:
        self._listens = self.keep is not None and signals.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._listens:
            signals.stop_listening()

    def ahead(self, position: float) -> float:
        """How far to go now: to the next look or the next checkpoint."""
        if self.keep is None:
            return math.inf
        if self.keep.every is None:
            return self.stride
        return min(self.stride, self._due - position)

    def look(self, position: float) -> Verdict:
        """Once after each stretch of work. Collective."""
        if self.keep is None:
            return Verdict("", False, math.inf)
        now = time.monotonic()
        spent, self._looked = now - self._looked, now
        moved, self._position = position - self._position, position
        if self._compiled:
            self._recent.append(spent)
        self._compiled = True
        stride = self.stride
        if moved > 0:
            stride = min(moved * LOOK / max(spent, 1e-9), 4.0 * moved)
        due = late = False
        if self.keep.every is not None:
            due = position >= self._due * (1 - 1e-12)
        else:
            due = now - self._saved >= CHECKPOINT_SECONDS
        if self.keep.walltime is not None:
            needed = max(self._recent, default=0.0) + 2.0 * self._cost + 1.0
            late = uptime() + needed >= self.keep.walltime
        mine = np.array([signals.received(), 0.0, 0.0, 0.0])
        if self.comm.rank == 0:  # clocks differ between ranks: that of rank 0 decides
            mine[1:] = late, due, stride
        if self.comm.size > 1:
            self.comm.Allreduce(MPI.IN_PLACE, mine, op=MPI.MAX)
        self.stride = float(mine[3])
        reason = "walltime" if mine[1] else ""
        if mine[0]:
            reason = signal.Signals(int(mine[0])).name
        return Verdict(reason, bool(mine[2]), self.stride)

    def saved(self, position: float, seconds: float) -> None:
        """A checkpoint has been written; it took so long."""
        self._cost = max(self._cost, seconds)
        self._saved = self._looked = time.monotonic()
        if self.keep is not None and self.keep.every is not None:
            while self._due <= position * (1 + 1e-12):
                self._due += self.keep.every


def uptime() -> float:
    """Seconds since this process started."""
    try:
        with open("/proc/self/stat") as file:
            started = int(file.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _IMPORTED


_IMPORTED = time.monotonic()


def say(comm: MPI.Intracomm, text: str) -> None:
    """A line on standard error, from rank 0."""
    if comm.rank == 0:
        print(f"mpiflow: {text}", file=sys.stderr, flush=True)
