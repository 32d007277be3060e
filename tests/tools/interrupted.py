"""Runs that are stopped after so many looks at the clock, as by a signal."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from mpiflow.run.stopping import Keep, Verdict, Watch


class Interrupted(Watch):
    """Stops after a number of looks, and looks after every small part of the work."""

    left = 0
    events = 3  # where stretches are measured in them

    def __init__(self, keep: Keep | None, comm: MPI.Intracomm, stride: float, now: float) -> None:
        super().__init__(keep, comm, stride, now)
        self.first = stride / 3 if stride < 1e-3 or stride > 0.5 else stride

    def ahead(self, position: float) -> float:
        return 1e-30 + (0.0 if self.stride == np.inf else self.first)

    def look(self, position: float, events: float | None = None) -> Verdict:
        type(self).left -= 1
        return Verdict("SIGUSR1" if self.left < 0 else "", False, self.stride)
