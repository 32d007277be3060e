r"""Training data: states of the large lattice from small ones, and patch increments.

Everything a member of the data set needs is drawn from noise keyed by its
index: each rank makes its share, and one collective brings the statistics (not
the spins) to rank 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from mpiflow import observables
from mpiflow.core.block import Block, gather_records
from mpiflow.core.lattice import split
from mpiflow.core.mpi import MPI
from mpiflow.learn.closure import lanes
from mpiflow.learn.closure.plans import (
    DataPlan,
    PatchPlan,
    draw_starts,
    last_durations,
    shuffled_states,
)
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import CLASSES, Ising

#: Makes large states of the given members, of their magnetisations and ages from 0 to 1.
Grow = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def start_states(
    plan: PatchPlan, share: float, members: np.ndarray, seed: int, grow: Grow
) -> tuple[np.ndarray, np.ndarray]:
    """Large states, (B, large, large) int8: a ``share`` is random, the others are grown.

    Magnetisations are uniform on -1 to 1. Also returned is which states are random, (B,).
    """
    magnetization, age, random = draw_starts(plan, share, members, seed)
    states = np.empty((len(members), plan.large, plan.large), np.int8)
    states[random] = shuffled_states(plan.large, members[random], magnetization[random], seed)
    grown = ~random
    states[grown] = grow(members[grown], magnetization[grown], age[grown])
    return states, random


def training_states(system: Ising, plan: DataPlan, members: np.ndarray, seed: int) -> np.ndarray:
    """Large states of the given members of the data set, (B, large, large) int8.

    Algorithm 1 of arXiv:2511.12842: snapshots of small systems started at a
    uniform magnetisation, doubled and relaxed until they are large; a share starts as
    random large states, relaxed for a random time. On a GPU where they fit it, to the same bits.
    """
    if (device := scaleup.device()) is not None and lanes.fits(plan):
        return lanes.training_states(system, plan, members, seed, device).spins()
    states, random = start_states(
        plan,
        plan.random_fraction,
        members,
        seed,
        partial(_upsampled, system, plan, seed),
    )
    if (level := plan.doublings) > 0:
        duration = last_durations(random, members, seed)
        _relax(system, plan, states, members, seed, duration, level)
    return states


def _relax(
    system: Ising,
    plan: DataPlan,
    states: np.ndarray,
    members: np.ndarray,
    seed: int,
    durations: np.ndarray,
    level: int,
) -> None:
    """Relax large states in place, each for its duration (B,), as the plan says."""
    if plan.relaxation == "lattice":
        steps = plan.lattice_steps(durations)
        for start in range(0, len(states), scaleup.CHUNK):
            some = slice(start, start + scaleup.CHUNK)
            solver = Sublattice(system, plan.relax_dt)
            _relax_lattices(solver, states[some], members[some], seed, steps[some], level)
        return
    for duration in np.unique(durations[durations > 0]):
        chosen = durations == duration
        windows = states[chosen]
        scaleup.local_relax(
            windows,
            members[chosen],
            system,
            seed=seed,
            window=plan.patch,
            duration=float(duration),
            dt=plan.relax_dt,
            level=level,
        )
        states[chosen] = windows


def _relax_lattices(
    solver: Sublattice,
    states: np.ndarray,
    members: np.ndarray,
    seed: int,
    steps: np.ndarray,
    level: int,
) -> None:
    """Relax whole lattices, each for its number of steps (B,).

    All go on together until it is their turn to stop: the members of a word of the kernel have
    different numbers, and to relax those of each number by themselves took twice as long.
    """
    first, done = level << 32, 0
    running, going = np.flatnonzero(steps), states[steps > 0]
    for end in np.unique(steps[running]):
        block = Block.periodic(going, members[running])
        solver.chain(
            block, end - done, seed=seed, first_step=first + done, opening=not done, stream="relax"
        )
        last, going = steps[running] == end, block.inner()
        finished = Block.periodic(going[last], members[running[last]])
        solver.look(finished, first + end, seed=seed, stream="relax")
        states[running[last]] = finished.inner()
        running, going, done = running[~last], going[~last], end


def _upsampled(
    system: Ising,
    plan: DataPlan,
    seed: int,
    members: np.ndarray,
    magnetization: np.ndarray,
    age: np.ndarray,
) -> np.ndarray:
    """Hierarchical upsampling: double, relax, and double again until the states are large."""
    states = _small_snapshots(system, plan, members, magnetization, age, seed)
    for level in range(plan.doublings):
        if level > 0:
            _relax(system, plan, states, members, seed, np.full(len(states), plan.relax), level)
        states = scaleup.upsample(states)
    return states


def _small_snapshots(
    system: Ising,
    plan: DataPlan,
    members: np.ndarray,
    magnetization: np.ndarray,
    age: np.ndarray,
    seed: int,
) -> np.ndarray:
    """One snapshot of each member's own small system."""
    states = shuffled_states(plan.patch, members, magnetization, seed)
    solver = Sublattice(system, plan.dt)
    ticks = plan.ticks(age)
    steps = round(1.0 / plan.dt)
    order = np.argsort(-ticks, kind="stable")
    states, members, ticks = states[order], members[order], ticks[order]
    for tick in range(int(ticks.max(initial=0))):
        running = int(np.count_nonzero(ticks > tick))
        block = Block.periodic(states[:running], members[:running])
        solver.advance(block, steps, seed=seed, first_step=tick * steps)
        block.paste(states)
    out = np.empty_like(states)
    out[order] = states
    return out


@dataclass(frozen=True)
class PairData:
    """Statistics of the training set, on one rank. N states, P repeats, K patches.

    Attributes
    ----------
    plan : how it was made
    sums : (N, 2) sums of spins and of bonds of the large states
    counts : (N, K, 10) rate-class counts of their patches
    index : (N, P) which patch evolved
    changes : (N, P, 2) exact changes of the sums
    patch_sums : (N, P, 2) sums of the evolved patch itself, for the naive baseline
    after : (N, P, 10) its class counts afterwards
    elapsed : (N, P) time
    """

    plan: DataPlan
    sums: np.ndarray
    counts: np.ndarray
    index: np.ndarray
    changes: np.ndarray
    patch_sums: np.ndarray
    after: np.ndarray
    elapsed: np.ndarray

    @property
    def observables(self) -> np.ndarray:
        """(N, 2) magnetisation and domain-wall density of the large states."""
        return observables.intensive(self.sums, self.plan.large**2)

    @property
    def step(self) -> float:
        """Mean time of a partial evolution: the natural step of a model trained on it."""
        return self.plan.duration if self.plan.flips is None else float(self.elapsed.mean())

    @property
    def densities(self) -> np.ndarray:
        """(N, K, 10) float32 class densities."""
        return class_densities(self.counts, self.plan.patch)


def class_densities(counts: np.ndarray, patch: int) -> np.ndarray:
    """Counts of observables.class_counts as fractions of the patch's inner sites."""
    return counts.astype(np.float32) / np.float32((patch - 2) ** 2)


def _record(plan: DataPlan) -> np.dtype:
    k, p = plan.patches, plan.repeats
    return np.dtype(
        [
            ("sums", np.int32, (2,)),
            ("counts", np.int32, (k, CLASSES)),
            ("index", np.int32, (p,)),
            ("changes", np.int32, (p, 2)),
            ("patch_sums", np.int32, (p, 2)),
            ("after", np.int32, (p, CLASSES)),
            ("elapsed", np.float64, (p,)),
        ]
    )


def generate_pairs(
    system: Ising,
    plan: DataPlan,
    *,
    seed: int,
    comm: MPI.Intracomm | None = None,
    progress: Callable[[float], None] | None = None,
    chunk: int = scaleup.CHUNK,
) -> PairData | None:
    """Make the training set; returned on rank 0, None on the others. Collective.

    Every rank makes its share of the states and their partial evolutions, and one
    gather collects the statistics. The result does not depend on the ranks, nor on where the
    program computes: on a GPU (:mod:`mpiflow.learn.closure.lanes`) only counts leave it.
    """
    kind = _record(plan)

    def measured(members: np.ndarray) -> np.ndarray:
        if device is not None:
            return lanes.measured(system, plan, members, seed, device, kind)
        states = training_states(system, plan, members, seed)
        return _measure(system, plan, states, members, seed, kind)

    device = scaleup.device() if lanes.fits(plan) else None
    if device is not None:
        chunk = max(chunk, lanes.PAIRS // plan.repeats)
    fields = generate(plan.states, kind, measured, comm, chunk, progress)
    return None if fields is None else PairData(plan, **fields)


def generate(
    states: int,
    kind: np.dtype,
    measured: Callable[[np.ndarray], np.ndarray],
    comm: MPI.Intracomm | None,
    chunk: int,
    progress: Callable[[float], None] | None = None,
) -> dict[str, np.ndarray] | None:
    """Records of all states, ``chunk`` at a time, by field; on rank 0, None on others. Collective.

    ``measured(members)`` makes those of some states.
    """
    comm = MPI.COMM_SELF if comm is None else comm
    start, stop = split(states, comm.size, comm.rank)
    records = np.zeros(stop - start, kind)
    for first in range(start, stop, chunk):
        members = np.arange(first, min(first + chunk, stop))
        records[members - start] = measured(members)
        if progress is not None:
            progress((int(members[-1]) + 1 - start) / (stop - start))
    gathered = gather_records(records, comm)
    if gathered is None:
        return None
    return {name: np.ascontiguousarray(gathered[name]) for name in kind.names or ()}


def evolutions(
    system: Ising, plan: DataPlan, states: np.ndarray, members: np.ndarray, seed: int
) -> Iterator[scaleup.Patches]:
    """The partial evolutions of some states, all states together, one for each repeat.

    Of few states several repeats go through the kernel at once, which takes 512 patches at a time.
    """
    count = len(states)
    together = max(1, scaleup.CHUNK // max(1, count))
    for first in range(0, plan.repeats, together):
        repeats = np.arange(first, min(first + together, plan.repeats))
        patches = scaleup.partial_evolution(
            np.tile(states, (len(repeats), 1, 1)) if len(repeats) > 1 else states,
            (members * plan.repeats + repeats[:, None]).reshape(-1),
            system,
            plan.patch,
            seed=seed,
            halo=plan.halo,
            buffer=plan.buffer,
            duration=plan.duration if plan.flips is None else None,
            flips=plan.flips,
            dt=plan.dt,
        )
        for start in range(0, len(repeats) * count, count):
            yield patches[start : start + count]


def _measure(
    system: Ising,
    plan: DataPlan,
    states: np.ndarray,
    members: np.ndarray,
    seed: int,
    kind: np.dtype,
) -> np.ndarray:
    """Partial evolutions of some states and all their statistics, as records."""
    out = np.zeros(len(members), kind)
    out["sums"] = observables.spin_sums(Block.periodic(states, members))
    out["counts"] = observables.class_counts(states, plan.patch)
    for repeat, patches in enumerate(evolutions(system, plan, states, members, seed)):
        out["index"][:, repeat] = patches.index
        out["changes"][:, repeat] = patches.changes()
        out["patch_sums"][:, repeat] = observables.patch_sums(patches.after)
        inner = patches.after[:, 1:-1, 1:-1]
        out["after"][:, repeat] = observables.class_counts(inner, plan.patch)[:, 0]
        out["elapsed"][:, repeat] = patches.elapsed
    return out
