r"""Hierarchical upsampling, level by level, and how far its states are from direct ones.

Each level doubles every state (each spin becomes a 2 x 2 block) and relaxes it [Algorithm 1 of
arXiv:2511.12842]. A good state of side L has the law of direct states of side L at the same
magnetisation, whatever its own history: relaxation changes M slowly and the rest fast. So all
differences are taken at fixed M, from the mean of the truth as a polynomial in M.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpiflow import metrics, observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.packed import PackedBlock, fits
from mpiflow.learn.closure.dataset import class_densities
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.sublattice import SLICED_SITES, Sublattice
from mpiflow.systems.ising import CLASSES, Ising

Kind = Literal["none", "closed flips", "frozen flips", "windows", "lattice", "sweeps"]
#: Side of the patches whose classes are counted, and of the windows of a local relaxation.
PATCH = 16
#: Distances of the two-point correlation, along an axis.
RADII = (1, 2, 4, 8, 16, 32)
#: Longest wavelengths of the octaves of the structure factor: (2, 4], (4, 8], ... sites.
WAVELENGTHS = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
#: Sites measured together: bounds the memory of their Fourier transforms.
CHUNK_SITES = 2**20

#: Columns of :func:`measure`.
COLUMNS = {
    "magnetization": slice(0, 1),
    "walls": slice(1, 2),
    "classes": slice(2, 2 + CLASSES),
    "patch spread": slice(2 + CLASSES, 3 + CLASSES),
    "correlation": slice(3 + CLASSES, 3 + CLASSES + len(RADII)),
    "structure": slice(3 + CLASSES + len(RADII), 3 + CLASSES + len(RADII) + len(WAVELENGTHS)),
}
WIDTH = COLUMNS["structure"].stop


@dataclass(frozen=True)
class Relaxation:
    """What follows each doubling.

    Parameters
    ----------
    kind : ``none``; ``closed flips`` or ``frozen flips``, the published windows of 16 x 16 at a
        stride of 8 for 256 flips each, closed on themselves or in frozen surroundings;
        ``windows``, frozen ones for a time; ``lattice``, the whole lattice for a time; ``sweeps``,
        the whole lattice by so many checkerboard sweeps, which leave the same Gibbs measure
        invariant and resample every site each time
    duration : time, of the last three; a sweep counts as one unit
    """

    kind: Kind
    duration: float = 0.0

    def __post_init__(self) -> None:
        timed = self.kind in ("windows", "lattice", "sweeps")
        if timed != (self.duration > 0):
            allowed = "above 0 for windows, lattice and sweeps, else 0"
            raise InputError("duration", self.duration, allowed, "Try 8.")

    @property
    def name(self) -> str:
        return f"{self.kind} {self.duration:g}" if self.duration else self.kind

    def updates(self, dt: float) -> float:
        """Trials to resample a site at each level; for flips, flips of a site."""
        share = (PATCH / (PATCH // 2)) ** 2  # windows that a site is in
        if self.kind == "none":
            return 0.0
        if self.kind == "sweeps":
            return self.duration
        return (
            share
            if self.duration == 0
            else {"windows": share}.get(self.kind, 1.0) * (self.duration / dt)
        )


def relax(
    states: np.ndarray,
    members: np.ndarray,
    system: Ising,
    how: Relaxation,
    *,
    seed: int,
    level: int,
    dt: float = 0.25,
) -> None:
    """Relax whole periodic lattices in place.

    Parameters
    ----------
    states : (B, L, L) int8, L a multiple of 16 and above it
    members : (B,) noise keys
    level : number of this relaxation, so that repeated ones draw fresh noise
    dt : step of the sublattice solver, a divisor of the duration
    """
    if how.kind == "none":
        return
    if how.kind in ("lattice", "sweeps"):
        block = whole_lattices(states, members)
        step = math.inf if how.kind == "sweeps" else dt
        relax_block(block, system, how.duration, seed=seed, level=level, dt=step)
        states[...] = block.spins()
        return
    timed = how.kind == "windows"
    scaleup.local_relax(
        states,
        members,
        system,
        seed=seed,
        window=PATCH,
        halo="wrap" if how.kind == "closed flips" else "frozen",
        duration=how.duration if timed else None,
        flips=None if timed else PATCH**2,
        dt=dt,
        level=level,
    )


def whole_lattices(states: np.ndarray, members: np.ndarray) -> Block | PackedBlock:
    """A block of periodic lattices, (B, L, L) int8, that is fast for their side."""
    lattice = Lattice(states.shape[1:])
    if not fits(lattice) or math.prod(n + 2 for n in lattice.shape) <= SLICED_SITES:
        return Block.periodic(states, members)
    block = PackedBlock.periodic(lattice, members)
    block.store(slice(0, lattice.shape[0]), states)
    block.fill_halo()
    return block


def relax_block(
    block: Block | PackedBlock,
    system: Ising,
    duration: float,
    *,
    seed: int,
    level: int,
    dt: float = 0.25,
) -> None:
    """Relax a block as a whole, in place: also one cut into tiles over ranks. Collective then.

    ``dt`` may be inf, for sweeps of one unit of time each. The spins of a packed block are the same
    however it is cut.
    """
    unit = dt if math.isfinite(dt) else 1.0
    steps = round(duration / unit)
    if steps < 1 or not np.isclose(steps * unit, duration, rtol=1e-9):
        raise InputError("duration", duration, f"a multiple of dt={dt:g}", "Change one of them.")
    solver = Sublattice(system, dt)
    solver.advance(block, steps, seed=seed, first_step=level << 32, stream="relax")


def double_tile(block: PackedBlock) -> PackedBlock:
    """A distributed lattice of twice the side, each spin a 2 x 2 block. Collective.

    Each rank doubles its own tile, so every tile starts at twice its old origin.
    """
    old = block.layout
    if old is None or block.cart is None:
        raise InputError("block", block.policy, "a tile of a lattice", "Use scaleup.upsample.")
    ny, nx = old.lattice.shape
    units = tuple(2 * unit for unit in old.units)
    new = Layout(Lattice((2 * ny, 2 * nx)), old.ranks_grid, units, partial=old.partial)
    large = PackedBlock.tile(new, block.cart, device=block.device, member=int(block.members[0]))
    for rows in block.bands():
        large.store(slice(2 * rows.start, 2 * rows.stop), scaleup.upsample(block.spins(rows)))
    large.fill_halo()
    return large


def hierarchy(
    states: np.ndarray,
    members: np.ndarray,
    system: Ising,
    how: Relaxation,
    counts: Mapping[int, int],
    *,
    seed: int,
    dt: float = 0.25,
) -> Iterator[tuple[int, np.ndarray]]:
    """Double and relax again and again; yields (side, states) of each level.

    Parameters
    ----------
    states : (B, L, L) int8, not changed
    counts : how many states, the first ones, go on to each side 2 L, 4 L, ...
    """
    for side, count in counts.items():
        if side != 2 * states.shape[-1]:
            raise InputError("counts", side, f"{2 * states.shape[-1]} next", "Double each side.")
        states = scaleup.upsample(states[:count])
        # The side tells levels apart: of ladders that start higher up, too.
        relax(states, members[:count], system, how, seed=seed, level=side // PATCH, dt=dt)
        yield side, states


# -- what states look like -----------------------------------------------------------------------


def measure(states: np.ndarray, *, oriented: bool = False) -> np.ndarray:
    """Observables of each state as :data:`COLUMNS` says, (B, WIDTH) float64.

    Magnetisation; domain-wall density; of the class densities of patches of 16 x 16 (what
    closures are made of) the mean, and the root of the sum of their variances over patches;
    connected two-point correlation at :data:`RADII`; structure factor in octaves. nan where the
    lattice is too small.

    Parameters
    ----------
    states : (B, L, L) int8, L a multiple of 16, 32 or more
    oriented : turn states of negative magnetisation over, for h = 0
    """
    side = states.shape[-1]
    step = max(1, CHUNK_SITES // side**2)
    return np.concatenate(
        [_measure(states[i : i + step], oriented) for i in range(0, len(states), step)]
    )


def _measure(states: np.ndarray, oriented: bool) -> np.ndarray:
    count, side = len(states), states.shape[-1]
    if oriented:
        down = states.sum(axis=(1, 2), dtype=np.int64) < 0
        states = np.where(down[:, None, None], -states, states)
    out = np.full((count, WIDTH), np.nan)
    sums = observables.spin_sums(Block.periodic(states, np.arange(count)))
    out[:, :2] = observables.intensive(sums, side**2)
    densities = class_densities(observables.class_counts(states, PATCH), PATCH).astype(float)
    out[:, COLUMNS["classes"]] = densities.mean(axis=1)
    variance = densities.var(axis=1, ddof=1).sum(axis=1, keepdims=True)
    out[:, COLUMNS["patch spread"]] = np.sqrt(variance)
    correlation = metrics.two_point_correlation(states)
    near = [r for r in RADII if r < side // 2]
    start = COLUMNS["correlation"].start
    out[:, start : start + len(near)] = correlation[:, near]
    # |k| in units of 2 pi / L from L / 2 down: wavelengths in (2, 4], (4, 8], ... , (L / 2, L].
    octaves = round(np.log2(side)) - 1
    edges = 2.0 ** np.arange(octaves + 1)
    power, _ = metrics.structure_factor(states, edges)
    start, known = COLUMNS["structure"].start, min(octaves, len(WAVELENGTHS))
    out[:, start : start + known] = power[:, ::-1][:, :known]
    return out


# -- against direct states -----------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far states are from direct ones at their own magnetisation, Q observables.

    Attributes
    ----------
    mean : (Q,) mean of the states less that of the truth at the same M
    error : (Q,) standard error, of the states and of the truth
    truth : (Q,) mean of the truth at the magnetisations of the states
    spread : (Q,) standard deviation of direct states at fixed M
    used : states that lie where there are direct ones
    """

    mean: np.ndarray
    error: np.ndarray
    truth: np.ndarray
    spread: np.ndarray
    used: int


def difference(
    states: np.ndarray,
    truth: np.ndarray,
    *,
    degree: int,
    window: tuple[float, float] = (-1.0, 1.0),
) -> Difference:
    """Compare states with direct ones at fixed magnetisation, the first column of both.

    The mean of the truth is a polynomial in M, fitted to states in the window; its error comes
    from leaving out one group of direct states at a time.

    Parameters
    ----------
    states : (N, Q), independent of each other
    truth : (G, n, Q), groups of direct states that are independent of each other
    degree : of the polynomial
    window : magnetisations to compare at; those that no direct state has are left out

    Returns
    -------
    Difference, all nan with fewer than two states in the window
    """
    if len(truth) < 3:
        raise InputError("truth", len(truth), "3 groups or more", "Run more of them.")
    low = max(window[0], float(truth[..., 0].min()))
    high = min(window[1], float(truth[..., 0].max()))
    scale = 2.0 / (high - low)

    def basis(m: np.ndarray) -> np.ndarray:
        return np.polynomial.legendre.legvander((m - low) * scale - 1.0, degree)

    def inside(rows: np.ndarray) -> np.ndarray:
        rows = rows.reshape(-1, rows.shape[-1])
        return np.asarray(rows[(rows[:, 0] >= low) & (rows[:, 0] <= high)])

    def fit(rows: np.ndarray) -> np.ndarray:
        return np.linalg.lstsq(basis(rows[:, 0]), np.nan_to_num(rows), rcond=None)[0]

    direct, ours = inside(truth), inside(states)
    if len(direct) <= degree + 1:
        raise InputError("truth", len(direct), "more states in the window", "Run more of them.")
    number, width = len(ours), states.shape[-1]
    if number < 2:
        nothing = np.full(width, np.nan)
        return Difference(nothing, nothing, nothing, nothing, number)
    law = fit(direct)
    free = len(direct) - degree - 1
    spread = np.sqrt(((direct - basis(direct[:, 0]) @ law) ** 2).sum(axis=0) / free)
    at = basis(ours[:, 0])
    expected = at.mean(axis=0) @ law
    residual = ours - at @ law
    groups = len(truth)
    left = np.array(
        [at.mean(axis=0) @ fit(inside(np.delete(truth, g, axis=0))) for g in range(groups)]
    )
    known = ((left - left.mean(axis=0)) ** 2).sum(axis=0) * (groups - 1) / groups
    error = np.sqrt(residual.var(axis=0, ddof=1) / number + known)
    return Difference(residual.mean(axis=0), error, expected, spread, number)
