"""The training data of :mod:`~mpiflow.learn.closure.dataset` on a GPU, to the same bits.

States go there once, as they are drawn: small ones, and the random large ones. They are doubled,
relaxed and cut into patches that evolve, one state or patch a bit of words
(:class:`~mpiflow.solvers.spins.lane_block.LaneBlock`); what comes back are sums and class counts.
States of the same word stop at different times: all go on, and a mask keeps those that stop.

CUDA: simulated and assembled, not yet run on a GPU (docs/hpc.md).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.block import HaloPolicy
from mpiflow.core.device import Device
from mpiflow.learn.closure.plans import DataPlan, draw_starts, last_durations, shuffled_states
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.lane_block import LaneBlock
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import Ising

#: Patches that evolve together: of 16^2 sites they take 43 MB.
PAIRS = 2**20


def fits(plan: DataPlan) -> bool:
    """Whether the states and patches of a plan go one a bit, on the device from first to last."""
    side = plan.patch + 2 * plan.buffer
    fit = scaleup.fits_lanes((plan.large, plan.large)) and scaleup.fits_lanes((side, side))
    return fit and plan.flips is None and plan.patch % 2 == 0


# -- states ----------------------------------------------------------------------------------


def training_states(
    system: Ising, plan: DataPlan, members: np.ndarray, seed: int, device: Device
) -> LaneBlock:
    """Those of :func:`mpiflow.learn.closure.dataset.training_states`."""
    magnetization, age, random = draw_starts(plan, plan.random_fraction, members, seed)
    small = shuffled_states(plan.patch, members, magnetization, seed)
    states = LaneBlock.periodic(small, members, device)
    _snapshots(Sublattice(system, plan.dt), states, np.where(random, 0, plan.ticks(age)), seed)
    for level in range(plan.doublings):
        if level > 0:
            durations = np.full(len(members), plan.relax)
            _relax(system, plan, states, seed, durations, level)
        states = states.upsampled()
    if plan.doublings > 0:
        if random.any():
            large = np.ones((len(members), plan.large, plan.large), np.int8)
            some = members[random], magnetization[random]
            large[random] = shuffled_states(plan.large, *some, seed)
            states.take(LaneBlock.periodic(large, members, device), random)
        durations = last_durations(random, members, seed)
        _relax(system, plan, states, seed, durations, plan.doublings)
    return states


def _snapshots(solver: Sublattice, states: LaneBlock, ticks: np.ndarray, seed: int) -> None:
    """Each state after its number of ticks (B,), one unit of time each, in place."""
    steps, going = round(1.0 / solver.dt), states.copy()
    for tick in range(int(ticks.max(initial=0))):
        solver.advance(going, steps, seed=seed, first_step=tick * steps)
        states.take(going, ticks == tick + 1)


def _relax(
    system: Ising,
    plan: DataPlan,
    states: LaneBlock,
    seed: int,
    durations: np.ndarray,
    level: int,
) -> None:
    """Relax states in place, each for its duration (B,), as the plan says."""
    solver = Sublattice(system, plan.relax_dt)
    if plan.relaxation == "lattice":
        _relax_lattices(solver, states, seed, plan.lattice_steps(durations), level << 32)
        return
    whole = states.shape == (plan.patch, plan.patch)
    halo: HaloPolicy = "wrap" if whole else "frozen"
    for duration in np.unique(durations[durations > 0]):
        going, steps = states.copy(), scaleup.steps_of(float(duration), plan.relax_dt)
        where = plan.patch, max(1, plan.patch // 2), halo
        scaleup.relax_windows(going, solver, *where, steps, seed=seed, level=level)
        states.take(going, durations == duration)


def _relax_lattices(
    solver: Sublattice, states: LaneBlock, seed: int, steps: np.ndarray, first: int
) -> None:
    """Whole lattices, each for its number of steps (B,)."""
    going, done = states.copy(), 0
    for end in map(int, np.unique(steps[steps > 0])):
        solver.chain(
            going, end - done, seed=seed, first_step=first + done, opening=not done, stream="relax"
        )
        seen = going.copy()
        solver.look(seen, first + end, seed=seed, stream="relax")
        states.take(seen, steps == end)
        done = end


# -- pairs -----------------------------------------------------------------------------------


class Counts(NamedTuple):
    """What is known of n partial evolutions, (n, ...), without their spins.

    Attributes
    ----------
    patch : which one evolved
    changes : (n, 2) exact changes of the lattice's sums
    sums : (n, 2) sums of the patch itself, afterwards
    classes : (n, 10) its class counts afterwards
    elapsed : time
    """

    patch: np.ndarray
    changes: np.ndarray
    sums: np.ndarray
    classes: np.ndarray
    elapsed: float


def partial_evolutions(
    states: LaneBlock,
    of: np.ndarray,
    keys: np.ndarray,
    solver: Sublattice,
    patch: int,
    *,
    seed: int,
    halo: HaloPolicy = "frozen",
    buffer: int = 0,
    duration: float = 0.5,
) -> Counts:
    """:func:`mpiflow.scaleup.spins.partial_evolution` of states on a device.

    Parameters
    ----------
    of : (n,) which state each is of
    keys : (n,) noise keys
    solver : of the step dt, of which the duration is a multiple
    """
    sides = states.shape[0], states.shape[1]
    halo = scaleup.require_patch(sides, patch, halo, buffer)
    index, corner = scaleup.choose_patches(sides, patch, keys, seed)
    side, steps = patch + 2 * buffer, scaleup.steps_of(duration, solver.dt)
    boxes = states.cut(of, corner - buffer, (side, side), keys, halo)
    frame = boxes.copy() if buffer else boxes  # it evolves with the patch
    touching = halo != "wrap"
    before = boxes.sums(buffer, touching=touching)
    solver.advance(boxes, steps, seed=seed, stream="partial")
    after = boxes.sums(buffer, frame=frame, touching=touching)
    own = boxes.sums(buffer, frame=frame) if touching else after
    classes = boxes.class_counts(patch, buffer)[:, 0]
    return Counts(index, after - before, own, classes, steps * solver.time_per_step)


def measured(
    system: Ising,
    plan: DataPlan,
    members: np.ndarray,
    seed: int,
    device: Device,
    kind: np.dtype,
) -> np.ndarray:
    """Records of some states and their partial evolutions, as of the CPU."""
    states = training_states(system, plan, members, seed, device)
    out = np.zeros(len(members), kind)
    out["sums"] = states.sums()
    out["counts"] = states.class_counts(plan.patch)
    solver = Sublattice(system, plan.dt)
    together = max(1, PAIRS // len(members))
    for first in range(0, plan.repeats, together):
        repeats = slice(first, min(first + together, plan.repeats))
        keys = members[:, None] * plan.repeats + np.arange(repeats.start, repeats.stop)
        of = np.repeat(np.arange(len(members)), keys.shape[1])
        done = partial_evolutions(
            states, of, keys.ravel(), solver, plan.patch, seed=seed, halo=plan.halo,
            buffer=plan.buffer, duration=plan.duration,
        )  # fmt: skip
        for name, values in (
            ("index", done.patch),
            ("changes", done.changes),
            ("patch_sums", done.sums),
            ("after", done.classes),
        ):
            out[name][:, repeats] = values.reshape(*keys.shape, *values.shape[1:])
        out["elapsed"][:, repeats] = done.elapsed
    return out
