"""The time of a planned run, from a few of its steps on the ranks that are here."""

from __future__ import annotations

import math
import time as clock
from dataclasses import replace
from statistics import median

from mpi4py import MPI

from mpiflow.core.errors import InputError
from mpiflow.core.parallel import agreed
from mpiflow.run import predict
from mpiflow.run.alloy import build_alloy
from mpiflow.run.ensemble import build_ensemble
from mpiflow.run.plan import Plan, Timing
from mpiflow.run.simulate import build
from mpiflow.simulation.alloy.barrier_model import load_barrier_model
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.simulation.ensemble import Ensemble
from mpiflow.simulation.ensemble_options import EnsembleConfig
from mpiflow.simulation.field.options import FieldConfig
from mpiflow.simulation.field.simulation import FieldSimulation
from mpiflow.simulation.ising.simulation import SpinSimulation
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.options import SpinConfig
from mpiflow.simulation.sizes import RunConfigs

#: Seconds of a repeat at least.
SECONDS = 0.4

Simulations = SpinSimulation | AlloySimulation | FieldSimulation | Ensemble


def estimate(
    made: Plan, comm: MPI.Intracomm, *, seconds: float | None = None, repeats: int = 5
) -> Plan:
    """The plan with a time: builds the simulation on these ranks and measures it. Collective.

    ``seconds`` and ``repeats`` as of :func:`measure`.
    """
    config, begun = made.config, clock.perf_counter()
    sim: Simulations
    if isinstance(config, AlloyConfig):
        with agreed(comm):
            model = load_barrier_model(config.barriers, config.axis_order)
        sim = build_alloy(config, model, comm)
    elif isinstance(config, FieldConfig):
        sim = predict.build(config, comm)
    elif isinstance(config, EnsembleConfig):
        sim = build_ensemble(config, comm)
    else:
        sim = build(config, comm)
    begun = clock.perf_counter() - begun
    return measure(made, sim, start=begun, seconds=seconds, repeats=repeats)


def measure(
    made: Plan,
    sim: Simulations,
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
            (ends[0], ends[1], ends[2]), median(costs) * run.scale, run.unit, frame, start
        ),
    )


class _Strides:
    """Equal small parts of a run, and how far each got in the unit that the run counts in."""

    def __init__(self, config: RunConfigs, sim: Simulations) -> None:
        self.config, self.sim = config, sim
        self.scale, self.unit = 1.0, "attempt per spin"
        self.hops = isinstance(config, AlloyConfig) and config.hops is not None
        if isinstance(config, AlloyConfig):
            self.unit = "hop" if self.hops else "s of the lattice"
            self.end = float(config.hops or config.time or 0.0)
        else:
            self.end = config.time
        #: What an advance goes by: a step, a hop, or so little time that nothing may happen.
        self.stride = self.end * 1e-9
        window = sim.window if isinstance(sim, AlloySimulation) else None
        if isinstance(sim, FieldSimulation | Ensemble):
            window = sim.grain or None
        elif isinstance(sim, SpinSimulation):
            window = sim.step_length
        self.by_hops = self.hops and window is None
        if window is not None:
            self.stride = window
            if not self.hops:
                self.scale, self.unit = window, "step"
        elif self.by_hops:
            self.stride = 1.0
        elif isinstance(config, KacConfig) and config.eps is not None:
            self.stride = min(self.end, 10 * config.eps)  # some whole leaps
        #: Strides of a repeat at most: a measurement must not become a run.
        whole = self.hops and window is not None
        self.most = 10**6 if whole else max(1, int(self.end / self.stride / 10))

    def go(self, strides: int) -> tuple[float, float]:
        """Advance; seconds of the slowest rank, and how far."""
        sim, before = self.sim, self._done()
        sim.comm.Barrier()
        start = clock.perf_counter()
        if self.by_hops and isinstance(sim, AlloySimulation):
            sim.advance_hops(int(before + strides * self.stride))
        elif isinstance(sim, FieldSimulation | Ensemble):
            sim.advance_to(sim.time + strides * self.stride)
        else:
            sim.advance(strides * self.stride)
        spent = sim.comm.allreduce(clock.perf_counter() - start, op=MPI.MAX)
        return spent, self._done() - before

    def _done(self) -> float:
        if self.hops and isinstance(self.sim, AlloySimulation):
            return float(self.sim.measure().hops[0])
        return self.sim.time

    def look(self) -> float:
        """Seconds for what a frame holds."""
        sim, config = self.sim, self.config
        sim.comm.Barrier()
        start = clock.perf_counter()
        sim.measure()
        if isinstance(sim, AlloySimulation):
            if isinstance(config, AlloyConfig) and config.species:
                sim.species()
        elif isinstance(sim, FieldSimulation):
            sim.outside()
        elif isinstance(sim, Ensemble):
            sim.profiles()
        elif isinstance(config, SpinConfig):
            if config.coarse is not None:
                sim.coarse_sums(config.coarse)
            if config.spins:
                sim.spins()
        return float(sim.comm.allreduce(clock.perf_counter() - start, op=MPI.MAX))
