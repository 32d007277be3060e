r"""What a short time teaches: moments of increments, of whole lattices and of patches.

The minimisers of the losses of arXiv:2511.12842 (eqs. 6, 7; Theorem 1) are conditional moments,

.. math:: \mu = E[\Delta z | x] / dt, \qquad \Sigma = Cov[\Delta z | x] / dt,

of the whole lattice, and for patches with the factor lambda = K those of
:math:`\Delta z_I`, the K-fold change that patch I alone makes, over I too. Whole and partial
evolution are driven here by the same noise at the same sites, so that their difference is seen
above the noise. As dt tends to 0 both tend to sums over sites of rates (the generator).

**Orders.** What a frozen outside leaves out of the drift must pass a buffer of b sites, one flip
each: its order is b + 1. Two more errors are of first order whatever the buffer. Increments of
neighbouring patches are correlated, which the sum of variances of patches leaves out; and of a
bond between two patches whose ends both flip each patch sees one. ``exact`` and ``box`` mend
them: the bonds that a patch owns, seen with the buffer's own spins; and the covariance of a
patch's increment with that of the patch and its buffer together.

**The factor and the variance.** A patch in frozen surroundings leaves the Gibbs measure
invariant, as the whole dynamics does. Then E[(z + dz)^2] = E[z^2], so the linear drift and the
variance of increments are tied, -2 E[z dz] = E[dz^2]. A linear SDE with lambda = K then has the
true variance times (2 - a dt / K) / (2 - a dt), a the rate of its drift: lambda = K is right as
long as a dt is small, whatever the error of the drift. Patches closed on themselves, durations
that are counted in flips, and variances without those of the buffer break it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mpiflow import observables
from mpiflow.core.block import Block, HaloPolicy
from mpiflow.core.errors import InputError
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import Ising


@dataclass(frozen=True)
class Surroundings:
    """What a patch evolves in.

    Parameters
    ----------
    halo : ``frozen`` for its true surroundings, ``wrap`` for a patch closed on itself
    buffer : sites around it that evolve with it, with a frozen halo
    """

    halo: HaloPolicy = "frozen"
    buffer: int = 0

    def __str__(self) -> str:
        if self.halo == "wrap":
            return "self-periodic"
        return f"buffer {self.buffer}" if self.buffer else "frozen"


class Increments(NamedTuple):
    """Changes of the sums of spins and of bonds, each (times, B, K, 2) int64.

    Attributes
    ----------
    touching : of the spins of a patch and of every bond that touches it, as
        :meth:`mpiflow.scaleup.spins.Patches.changes`; the outside of the patch as it was
    exact : of the spins and of the bonds that a patch owns (to the right and down of its
        sites), the buffer's spins as they are now: without boundary errors they add up to the
        change of the lattice. Without a buffer, the same as ``touching``
    box : ``touching`` of the patch and its buffer together
    """

    touching: np.ndarray
    exact: np.ndarray
    box: np.ndarray


def steps_between(
    times: Sequence[float] | np.ndarray, longest: float = 0.25
) -> list[tuple[float, int]]:
    """Step and number of steps up to each time: at least four, none longer than ``longest``."""
    gaps = np.diff(np.asarray(times, float), prepend=0.0)
    if gaps.size == 0 or np.any(gaps <= 0):
        raise InputError("times", list(times), "ascending times above 0", "Try [0.5, 1, 2].")
    counts = np.maximum(4, np.ceil(gaps / longest - 1e-9)).astype(int)
    return [(float(gap / count), int(count)) for gap, count in zip(gaps, counts, strict=True)]


def evolve(
    block: Block, system: Ising, steps: Sequence[tuple[float, int]], seed: int
) -> Iterator[Block]:
    """The block at each of the times of :func:`steps_between`, changed in place.

    Boxes of the same member draw the same noise at the same sites of the lattice.
    """
    done = 0
    for dt, count in steps:
        solver = Sublattice(system, dt, plain=True)
        solver.advance(block, count, seed=seed, first_step=done, stream="partial")
        done += count
        yield block


def patch_increments(
    states: np.ndarray,
    members: np.ndarray,
    system: Ising,
    patch: int,
    surroundings: Surroundings,
    steps: Sequence[tuple[float, int]],
    seed: int,
) -> Increments:
    """Evolve every one of the K aligned patches of each state, each by itself.

    Parameters
    ----------
    states : (B, L, L) int8, not changed
    members : (B,) noise keys
    patch : side; L for the whole lattice, whose surroundings are its own
    steps : of :func:`steps_between`
    """
    side, buffer = states.shape[1], surroundings.buffer
    if side % patch or patch % 2:
        raise InputError("patch", patch, f"an even divisor of {side}", "Try 16.")
    whole = patch == side
    if buffer and (surroundings.halo == "wrap" or whole or patch + 2 * buffer > side):
        allowed = f"0 to {(side - patch) // 2}, and 0 for a patch closed on itself"
        raise InputError("buffer", buffer, allowed, "Use a thinner buffer.")
    corners = patch * np.stack(np.divmod(np.arange((side // patch) ** 2), side // patch), axis=1)
    count, patches = len(states), len(corners)
    block = Block.cut(
        np.repeat(states, patches, axis=0),
        np.tile(corners, (count, 1)) - buffer,
        (patch + 2 * buffer,) * 2,
        np.repeat(members, patches),
        policy="wrap" if whole else surroundings.halo,
        device=scaleup.device(),
    )
    closed = block.closed
    frame = slice(buffer, buffer + patch + 2)

    def sums(of: np.ndarray, touching: bool) -> np.ndarray:
        return observables.patch_sums(of, touching=touching)

    first = block.host()
    inner = first[:, frame, frame].copy()
    start = sums(inner, not closed), sums(inner, False), sums(first, not closed)
    rows: list[list[np.ndarray]] = [[], [], []]
    for now in evolve(block, system, steps, seed):
        boxes = now.host()
        window = boxes[:, frame, frame]
        seen = window
        if buffer:  # the frame as it was at the cut
            seen = inner.copy()
            seen[:, 1:-1, 1:-1] = window[:, 1:-1, 1:-1]
        touching = sums(seen, not closed) - start[0]
        rows[0].append(touching)
        rows[1].append(sums(window, False) - start[1] if buffer else touching)
        rows[2].append(sums(boxes, not closed) - start[2] if buffer else touching)
    shape = (len(steps), count, patches, 2)
    return Increments(*(np.stack(row).reshape(shape) for row in rows))


def generator_moments(states: np.ndarray, system: Ising) -> tuple[np.ndarray, np.ndarray]:
    """Limits of drift and diffusion of M and rho for dt to 0 (:meth:`Ising.short_time`).

    Parameters
    ----------
    states : (B, L, L) int8

    Returns
    -------
    drift (B, 2), diffusion (B, 2, 2)
    """
    drift, square = system.short_time(observables.lattice_class_counts(states))
    return drift, square[:, [[0, 1], [1, 2]]]


class Moments(NamedTuple):
    """Moments of the increments of patches over replicas of a state, of sums, (..., 2) each.

    Attributes
    ----------
    variance : sum over patches of their variances (or covariances with ``box``)
    between : K times the variance over patches of the mean increments, which the random choice
        of a patch adds. Of whole lattices, the variance over the states of one z adds as much, if
        patches differ from each other as independently as that
    """

    variance: np.ndarray
    between: np.ndarray


def patch_moments(own: np.ndarray, box: np.ndarray | None = None) -> Moments:
    """Unbiased moments of increments (..., R, K, 2) of K patches in R replicas of a state.

    ``variance + between``, over N^2 dt, is the diffusion at the minimum of L_p with lambda = K.
    """
    replicas, patches = own.shape[-3], own.shape[-2]
    away = own - own.mean(axis=-3, keepdims=True)
    total = own.sum(axis=-2)
    other = away if box is None else box - box.mean(axis=-3, keepdims=True)
    single = (away**2).sum(axis=(-3, -2)) / (replicas - 1)
    squares = (own.mean(axis=-3) ** 2).sum(axis=-2) - single / replicas
    square = total.mean(axis=-2) ** 2 - total.var(axis=-2, ddof=1) / replicas
    joint = (away * other).sum(axis=(-3, -2)) / (replicas - 1)
    return Moments(joint, squares - square / patches)


def linear_minimiser(
    z: np.ndarray, change: np.ndarray, elapsed: np.ndarray | float, factor: float
) -> tuple[float, float]:
    r"""Minimum of L_p over dz = -a z dt + s dB: rate a and diffusion s^2.

    .. math:: a = -E[z \Delta z] / E[z^2 dt], \qquad
              s^2 = E[(\Delta z + a z dt)^2 / dt] / \lambda .

    Parameters
    ----------
    z, change : (n,) the variable, from its mean, and its increments
    elapsed : (n,) or one time
    factor : lambda
    """
    rate = -float(np.mean(z * change) / np.mean(z * z * elapsed))
    return rate, float(np.mean((change + rate * z * elapsed) ** 2 / elapsed)) / factor


def stationary_variance(rate: float, diffusion: float, dt: float) -> float:
    """Variance of z' = z - a z dt + s sqrt(dt) xi: s^2 dt / (1 - (1 - a dt)^2), or inf."""
    shrink = 1.0 - (1.0 - rate * dt) ** 2
    return diffusion * dt / shrink if rate > 0.0 and shrink > 0.0 else float("inf")
