"""The time of a planned run, from a few of its steps on the ranks that are here."""

from __future__ import annotations

import math
import time as clock
from dataclasses import replace
from statistics import median

from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.simulation import catalogue
from mpiflow.simulation.base import Motion, Simulated
from mpiflow.simulation.options import RunConfig
from mpiflow.simulation.sizes import Plan, Timing

#: Seconds of a repeat at least.
SECONDS = 0.4


def estimate(
    made: Plan, comm: MPI.Intracomm, *, seconds: float | None = None, repeats: int = 5
) -> Plan:
    """The plan with a time: builds the simulation on these ranks and measures it. Collective.

    ``seconds`` and ``repeats`` as of :func:`measure`.
    """
    begun = clock.perf_counter()
    sim = catalogue.build(made.config, comm).sim
    begun = clock.perf_counter() - begun
    return measure(made, sim, start=begun, seconds=seconds, repeats=repeats)


def measure(
    made: Plan,
    sim: Simulated,
    *,
    start: float = 0.0,
    seconds: float | None = None,
    repeats: int = 5,
) -> Plan:
    """The plan with a time, from a few steps of the simulation that was built for it. Collective.

    The first steps, which compile, do not count. Early steps may cost more or less than late
    ones, most of all where events are counted.

    Parameters
    ----------
    sim : in its initial state; it is advanced
    start : seconds that building it took
    seconds, repeats : of a repeat at least, :data:`SECONDS` unless given, and how many
    """
    config, seconds = made.config, SECONDS if seconds is None else seconds
    run = _Strides(config, sim)
    begun = clock.perf_counter()
    for _ in range(2):  # the first stride is special, so is the look after it
        run.go(1)
        run.look()
    start += clock.perf_counter() - begun
    strides, (spent, done) = 1, run.go(1)
    while (spent < seconds or done <= 0) and strides < run.most:
        # All ranks see the same time, and so choose the same number.
        factor = min(10.0, 1.2 * seconds / max(spent, 1e-6)) if done > 0 else 10.0
        strides = min(run.most, math.ceil(strides * max(1.1, factor)))
        spent, done = run.go(strides)
    costs, looks = [], []
    for _ in range(repeats):
        spent, done = run.go(strides)
        looks.append(run.look())
        if done > 0:
            costs.append(spent / done)
    if not costs:
        raise InputError("measure", "no events", "a run in which something happens", "Leave it.")
    frame, far = median(looks), run.end
    ends = [far * cost + made.frames * frame for cost in (median(costs), min(costs), max(costs))]
    return replace(
        made,
        timing=Timing(
            (ends[0], ends[1], ends[2]), median(costs) * run.pace.scale, run.pace.unit, frame, start
        ),
    )


class _Strides:
    """Equal small parts of a run, and how far each got in the unit that the run counts in."""

    def __init__(self, config: RunConfig, sim: Simulated) -> None:
        self.sim, self.motion = sim, Motion.of(sim, **config.extent(), begun=config.resume)
        self.pace, self.content = sim.pace(self.motion), sim.content(**config.saved())
        self.end = self.motion.schedule.end - self.motion.schedule.start
        #: Strides of a repeat at most: a measurement must not become a run.
        self.most = max(1, int(self.end / self.pace.stride / 10))
        # Of hops in windows of one length nobody knows how many a stride makes.
        self.by_time = self.motion.unit == "hops" and bool(sim.stop_interval)
        if self.by_time:
            self.most = 10**6

    def go(self, strides: int) -> tuple[float, float]:
        """Advance; seconds of the slowest rank, and how far."""
        sim, before = self.sim, self.motion.position()
        sim.comm.Barrier()
        start, far = clock.perf_counter(), strides * self.pace.stride
        if self.by_time:
            sim.advance_to(sim.time + far)
        else:
            self.motion.move(before + far)
        spent = sim.comm.allreduce(clock.perf_counter() - start, op=MPI.MAX)
        return spent, self.motion.position() - before

    def look(self) -> float:
        """Seconds for what a frame holds."""
        self.sim.comm.Barrier()
        start = clock.perf_counter()
        self.content.frame()
        return float(self.sim.comm.allreduce(clock.perf_counter() - start, op=MPI.MAX))
