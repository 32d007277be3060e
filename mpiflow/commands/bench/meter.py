"""Times work on all ranks and keeps what was measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mpiflow.core.device import threads
from mpiflow.core.mpi import MPI

Row = dict[str, Any]


class Meter:
    """Times work on all ranks and collects the rows of one benchmark."""

    def __init__(self, bench: str, comm: MPI.Intracomm, *, repeats: int, seconds: float) -> None:
        self.bench, self.comm = bench, comm
        self.repeats, self.seconds = repeats, seconds
        self.rows: list[Row] = []

    def rate(self, case: str, unit: str, scale: float, work: Callable[[int], int]) -> None:
        """Record work per time; ``work(n)`` does n rounds and returns what this rank did."""
        self.record(case, unit, [scale * done / spent for done, _, spent in self._times(work)])

    def cost(self, case: str, unit: str, scale: float, work: Callable[[int], int]) -> None:
        """Record time per round."""
        self.record(case, unit, [scale * spent / rounds for _, rounds, spent in self._times(work)])

    def _times(self, work: Callable[[int], int]) -> Iterator[tuple[int, int, float]]:
        """(work of all ranks, rounds, seconds of the slowest rank) of each repeat."""
        self._time(work, 1)  # compiles
        rounds = 1
        while (spent := self._time(work, rounds)[1]) < self.seconds:
            # Every rank sees the same time and so chooses the same number.
            rounds = math.ceil(rounds * min(10.0, 1.2 * self.seconds / max(spent, 1e-9)))
        for _ in range(self.repeats):
            done, spent = self._time(work, rounds)
            yield done, rounds, spent

    def _time(self, work: Callable[[int], int], rounds: int) -> tuple[int, float]:
        self.comm.Barrier()
        start = time.perf_counter()
        done = work(rounds)
        spent = time.perf_counter() - start
        return self.comm.allreduce(done), self.comm.allreduce(spent, op=MPI.MAX)

    def ratio(self, case: str, reference: str) -> None:
        """Record how many times faster a case is than another of the same run."""
        values = {row["case"]: row for row in self.rows}
        above, below = values[self._named(case)], values[self._named(reference)]
        self.rows.append(
            {
                "bench": self.bench,
                "case": self._named(f"{case} / {reference.split(', ')[-1]}"),
                "value": above["value"] / below["value"],
                "unit": "times",
                "min": above["min"] / below["max"],
                "max": above["max"] / below["min"],
            }
        )

    def _named(self, case: str) -> str:
        ranks = f", {self.comm.size} ranks" if self.comm.size > 1 else ""
        return case + ranks + (f", {threads()} threads" if threads() > 1 else "")

    def record(self, case: str, unit: str, values: list[float]) -> None:
        """Record the median, smallest and largest of some measured values."""
        self.rows.append(
            {
                "bench": self.bench,
                "case": self._named(case),
                "value": float(np.median(values)),
                "unit": unit,
                "min": min(values),
                "max": max(values),
            }
        )
