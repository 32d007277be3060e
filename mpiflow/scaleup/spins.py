r"""From small systems to large ones: upsample, relax locally, evolve one patch.

All three follow Chen et al., "Scalable learning of macroscopic stochastic
dynamics" (arXiv:2511.12842), sections II.1 and II.2, and all are Blocks cut from
whole lattices. Each rank works on its own members of a data set; a member's
noise is keyed by its index, so nothing depends on the number of ranks.

Where the program computes on a GPU (:mod:`mpiflow.core.gpu`), boxes of up to 98^2 sites that evolve
for a time do so there, one a bit of words that stay on it
(:class:`~mpiflow.solvers.spins.lane_block.LaneBlock`): the same bits. Exact events, and what has
no such boxes, stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mpiflow.core import gpu
from mpiflow.core.block import Block, HaloPolicy
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.noise import uniform_below, words
from mpiflow.observables import patch_sums
from mpiflow.solvers.spins.lane_block import LaneBlock
from mpiflow.solvers.spins.nfold import NFold
from mpiflow.solvers.spins.sublattice import SLICED_SITES, Sublattice
from mpiflow.systems.ising import Ising

#: States handled together: bounds the memory of the cut boxes.
CHUNK = 4096
#: The same on a device, where a bit is a spin.
LANES = 2**18


@lru_cache(maxsize=8)
def _solver(system: Ising, dt: float, plain: bool = False) -> Sublattice:
    """One solver for all calls: once they have done enough, it compiles its thresholds in."""
    return Sublattice(system, dt, plain=plain)


def device() -> Device | None:
    """The GPU that the program computes on, if there is one."""
    choice = gpu.chosen()
    return Device(choice.name, choice.gpu) if choice.is_cuda else None


def fits_lanes(shape: tuple[int, int]) -> bool:
    """Whether boxes of that many sites are of those that go one a bit."""
    return (shape[0] + 2) * (shape[1] + 2) <= SLICED_SITES


def upsample(states: np.ndarray, factor: int = 2) -> np.ndarray:
    """Replace each spin by a block of equal ones, as Algorithm 1 of arXiv:2511.12842 does.

    Parameters
    ----------
    states : (B, ny, nx)
    factor : f, side of the blocks

    Returns
    -------
    (B, f ny, f nx), of the same type

    Raises
    ------
    InputError : the factor is below 1
    """
    if factor < 1:
        raise InputError("factor", factor, "an integer of 1 or more", "Try 2.")
    return states.repeat(factor, axis=-2).repeat(factor, axis=-1)


def window_origins(sides: tuple[int, ...], window: int, stride: int) -> Iterator[tuple[int, int]]:
    """Upper left corners of the windows, row-major, over the whole periodic lattice."""
    if sides == (window, window):  # the window is the whole lattice
        return iter([(0, 0)])
    if not 1 <= stride <= window or any(side % stride or side < window for side in sides):
        raise InputError(
            "window, stride",
            (window, stride),
            f"stride <= window <= side, stride dividing the sides {sides}",
            "Try a stride of half the window.",
        )
    return ((y, x) for y in range(0, sides[0], stride) for x in range(0, sides[1], stride))


def local_relax(
    states: np.ndarray,
    members: np.ndarray,
    system: Ising,
    *,
    seed: int,
    window: int = 16,
    stride: int | None = None,
    halo: HaloPolicy = "frozen",
    duration: float | None = 1.0,
    flips: int | None = None,
    dt: float = 0.25,
    level: int = 0,
) -> None:
    """Relax whole lattices in overlapping windows, one after the other, in place.

    Algorithm 1's LocalRelax. With ``halo="frozen"`` each window evolves in its true
    surroundings, so the Gibbs measure stays invariant; ``wrap`` closes it on
    itself as the published code does. A whole lattice that relaxes for 4 t
    (:func:`mpiflow.experiments.upsampling.relax`) gets as far as windows of time t with this
    stride, at a small part of their cost (docs/results.md).

    Parameters
    ----------
    states : (B, Ly, Lx) int8, changed in place
    members : (B,) noise keys, the index of each state in the data set
    system : the model that they relax by
    seed : of the noise
    window, stride : sites; windows overlap when the stride (default window / 2) is smaller
    duration : time of each window; or
    flips : number of flips of each window (exact dynamics), with ``duration=None``
    dt : step of the sublattice solver, a divisor of the duration
    level : number of this relaxation, so that repeated ones draw fresh noise
    """
    stride = max(1, window // 2) if stride is None else stride
    steps = _steps(duration, flips, dt)
    solver = _solver(system, dt)
    sides = states.shape[1:]
    origins = list(window_origins(sides, window, stride))
    if sides == (window, window):
        halo = "wrap"  # the true surroundings of a whole lattice
    there = device()
    if there is not None and steps is not None and fits_lanes((window, window)):
        for chunk in _chunks(len(states), LANES):
            lattices = LaneBlock.periodic(states[chunk], members[chunk], there)
            relax_windows(lattices, solver, window, stride, halo, steps, seed=seed, level=level)
            states[chunk] = lattices.spins()
        return
    for chunk in _chunks(len(states)):
        for number, origin in enumerate(origins):
            block = Block.cut(states[chunk], origin, (window, window), members[chunk], policy=halo)
            # Every window of every level draws noise of its own.
            first = level << 32
            if steps is not None:
                first += number * steps
                solver.advance(block, steps, seed=seed, first_step=first, stream="relax")
            else:
                first += number * (flips or 0)
                _flip_events(block, system, flips, seed, "nfold-relax", first)
            block.paste(states[chunk])


def relax_windows(
    lattices: LaneBlock,
    solver: Sublattice,
    window: int,
    stride: int,
    halo: HaloPolicy,
    steps: int,
    *,
    seed: int,
    level: int,
) -> None:
    """What :func:`local_relax` does, of lattices on a device, in place."""
    for number, origin in enumerate(window_origins(lattices.shape, window, stride)):
        box = lattices.window(origin, (window, window), halo)
        first = (level << 32) + number * steps
        solver.advance(box, steps, seed=seed, first_step=first, stream="relax")
        lattices.put_back(box)
    lattices.fill_halo()


@dataclass(frozen=True)
class Patches:
    """Patches before and after partial evolution.

    Attributes
    ----------
    before, after : (B, n + 2, n + 2) int8, patches with one site of surroundings.
        With frozen surroundings the frame is the true one, at the time of the cut,
        in both; of a closed patch it is the patch's own far edge.
    closed : whether the patches are closed on themselves
    elapsed : (B,) float64, time that passed
    index : (B,) int64, which of the K patches (row-major)
    """

    before: np.ndarray
    after: np.ndarray
    elapsed: np.ndarray
    index: np.ndarray
    closed: bool

    def __getitem__(self, some: slice) -> Patches:
        """Those of some members."""
        return Patches(
            self.before[some], self.after[some], self.elapsed[some], self.index[some], self.closed
        )

    def changes(self) -> np.ndarray:
        """Exact changes of the lattice's sums of spins and of bonds, (B, 2) int64.

        A patch in its surroundings changes every bond that touches it, the ones
        that leave it too; a closed patch has its own bonds only. With a buffer this leaves an error
        of first order in the drift of the bonds, of which both ends may flip: each patch sees one
        (:class:`mpiflow.experiments.short_time.Increments`).
        """
        return patch_sums(self.after, touching=not self.closed) - patch_sums(
            self.before, touching=not self.closed
        )


def partial_evolution(
    states: np.ndarray,
    members: np.ndarray,
    system: Ising,
    patch: int,
    *,
    seed: int,
    halo: HaloPolicy = "frozen",
    buffer: int = 0,
    duration: float | None = 0.5,
    flips: int | None = None,
    dt: float = 0.25,
) -> Patches:
    """Evolve one uniformly chosen patch of each state for a short time.

    The lattice is divided into ``K = (Ly / patch) (Lx / patch)`` aligned patches.

    Parameters
    ----------
    states : (B, Ly, Lx) int8, not changed
    members : (B,) noise keys
    system : the model
    seed : of the noise, and of the choice of patches
    patch : side in sites, a divisor of the lattice's sides
    halo : ``frozen`` for true surroundings, ``wrap`` for a patch closed on itself
    buffer : sites around the patch that evolve with it and are thrown away
    duration : time, a multiple of ``dt``; or
    flips : number of flips (exact dynamics, true waiting times), with ``duration=None``

    Raises
    ------
    InputError : the patch, the buffer or the duration does not fit the lattice or the step
    """
    ly, lx = states.shape[1:]
    halo = require_patch((ly, lx), patch, halo, buffer)
    steps = _steps(duration, flips, dt)
    index, corner = choose_patches((ly, lx), patch, members, seed)
    count = len(states)
    before = np.empty((count, patch + 2, patch + 2), np.int8)
    after = np.empty_like(before)
    elapsed = np.empty(count)
    # Patches of an odd side differ in their colouring, so in which of them go together.
    solver = _solver(system, dt, plain=patch % 2 == 1)
    side = patch + 2 * buffer
    there = device() if steps is not None and patch % 2 == 0 and fits_lanes((side, side)) else None
    framed = slice(buffer, buffer + 2 + patch)
    for chunk in _chunks(count, LANES if there else CHUNK):
        block = Block.cut(
            states[chunk], corner[chunk] - buffer, (side, side), members[chunk], policy=halo
        )
        before[chunk] = block.array[:, framed, framed]
        if steps is not None:
            boxes = block if there is None else LaneBlock.of(block, there)
            solver.advance(boxes, steps, seed=seed, stream="partial")
            elapsed[chunk] = steps * solver.time_per_step
            after[chunk] = boxes.host()[:, framed, framed]
        else:
            elapsed[chunk] = _flip_events(block, system, flips, seed, "nfold-partial", 0)
            after[chunk] = block.array[:, framed, framed]
        if buffer:  # it has changed the frame
            _copy_frames(before[chunk], after[chunk])
    return Patches(before, after, elapsed, index, closed=halo == "wrap")


def require_patch(sides: tuple[int, int], patch: int, halo: HaloPolicy, buffer: int) -> HaloPolicy:
    """Raise unless such a patch can evolve; what it evolves in: a whole lattice is periodic."""
    ly, lx = sides
    if patch < 2 or ly % patch or lx % patch:
        raise InputError("patch", patch, f"a divisor of the lattice's sides {(ly, lx)}", "Try 16.")
    if halo == "wrap" and patch % 2:
        raise InputError("patch", patch, "an even side for a patch closed on itself", "Try 16.")
    if buffer < 0 or (buffer and halo == "wrap") or patch + 2 * buffer > min(ly, lx):
        raise InputError(
            "buffer",
            buffer,
            f"0 to {(min(ly, lx) - patch) // 2} sites with a frozen halo, 0 with wrap",
            "Use a thinner buffer.",
        )
    return "wrap" if sides == (patch, patch) else halo


def _copy_frames(source: np.ndarray, target: np.ndarray) -> None:
    """Copy the outermost sites of windows."""
    for edge in (0, -1):
        target[:, edge] = source[:, edge]
        target[:, :, edge] = source[:, :, edge]


def choose_patches(
    sides: tuple[int, int], patch: int, members: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which patch each member evolves, (B,), and its first site, (B, 2) int64."""
    ly, lx = sides
    index = choose_patch(members, (ly // patch) * (lx // patch), seed)
    return index, patch * np.stack(np.divmod(index, lx // patch), axis=1)


def choose_patch(members: np.ndarray, patches: int, seed: int) -> np.ndarray:
    """A uniform patch number 0..K-1 for each member, (B,) int64."""
    word = words(seed, "patch", 0, 0, np.asarray(members))[..., 0]
    return np.asarray(uniform_below.py_func(word, patches))


def _flip_events(
    block: Block, system: Ising, flips: int | None, seed: int, stream: str, first: int
) -> np.ndarray:
    """Advance by exact events, numbered from ``first``; returns the times they took."""
    solver = NFold(system, block.batch)
    solver.events[:] = first
    solver.advance(block, seed=seed, flips=flips, stream=stream)
    return solver.clock


def _steps(duration: float | None, flips: int | None, dt: float) -> int | None:
    """Steps of the sublattice solver, or None for a run counted in flips."""
    if (duration is None) == (flips is None):
        raise InputError(
            "duration, flips", (duration, flips), "one of the two", "Set the other to None."
        )
    if flips is not None:
        if flips < 1:
            raise InputError("flips", flips, "1 or more", "Try the number of sites.")
        return None
    return steps_of(duration or 0.0, dt)


def steps_of(duration: float, dt: float) -> int:
    """Steps of a duration, which must be a multiple of dt."""
    step = dt if np.isfinite(dt) else 1.0
    steps = round(duration / step)
    if steps < 1 or not np.isclose(steps * step, duration, rtol=1e-9):
        raise InputError("duration", duration, f"a multiple of dt={dt:g}", "Change one of them.")
    return steps


def _chunks(count: int, size: int = CHUNK) -> Iterator[slice]:
    return (slice(i, i + size) for i in range(0, count, size))
