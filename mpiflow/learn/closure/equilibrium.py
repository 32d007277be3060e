r"""Equilibrium of M at zero field: states, pairs with little noise, and how models are judged.

Appendices D.3 and D.4 of arXiv:2511.12842. Near T_c the drift of the magnetisation of 64^2 spins
is about 1e-4, while one pair over 0.5 knows it to 0.06 only. So a state evolves many times. For
P pairs that share state and time the loss of :mod:`mpiflow.learn.sde` needs their mean and
covariance alone,

.. math:: \frac1P \sum_p r_p^T S^{-1} r_p = \bar r^T S^{-1} \bar r + \mathrm{tr}\, S^{-1} C,

so that 2 d increments :math:`\bar\Delta \pm \sqrt d\, L e_k`, :math:`L L^T = C`, stand for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mpiflow import initial, observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.noise import uniforms
from mpiflow.learn.closure.lanes import PAIRS, partial_evolutions
from mpiflow.scaleup import spins as scaleup
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.solvers.spins.lane_block import LaneBlock
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import Ising

#: Members of an ensemble: as many as the bits of a vector.
MEMBERS = 256
#: States that evolve together.
CHUNK = 2048
#: Step of full and partial evolution and of the truth.
DT = 0.25

Kind = Literal["full", "partial"]
Source = Literal["snapshots", "naive", "hierarchical"]


# -- states ----------------------------------------------------------------------------------


def snapshots(
    system: Ising, size: int, states: int, *, burn: float, every: float, seed: int
) -> np.ndarray:
    """Snapshots of ensembles that start at uniform magnetisations, (states, size, size) int8.

    The first are taken after ``burn``, the others ``every`` apart, :data:`MEMBERS` at a time.
    """
    sim = Simulation(system, size, dt=DT, seed=seed, members=MEMBERS, comm=MPI.COMM_SELF)
    start = 2.0 * uniforms(seed, "sample", 0, 0, np.arange(MEMBERS))[:, 0] - 1.0
    sim.set_spins(initial.shuffled, magnetization=start)
    out = np.empty((states, size, size), np.int8)
    for first in range(0, states, MEMBERS):
        sim.advance(every if first else burn)
        out[first : first + MEMBERS] = sim.spins()[: states - first]
    return out


def training_states(
    system: Ising,
    source: Source,
    states: int,
    *,
    large: int = 64,
    small: int = 16,
    burn: float = 1500.0,
    every: float = 50.0,
    relax: float = 8.0,
    seed: int,
) -> np.ndarray:
    """The three kinds of x_t of appendix D.4, (states, large, large) int8.

    Parameters
    ----------
    source : ``snapshots`` of large trajectories; ``naive``, those of small ones with every spin
        made a block; ``hierarchical``, those of small ones doubled and relaxed in windows until
        they are large
    burn, every : time before the first snapshots of an ensemble, and between them
    relax : time of a window; the published one has 256 flips, about 10 units of time
    """
    if source == "snapshots":
        return snapshots(system, large, states, burn=burn, every=every, seed=seed)
    out = snapshots(system, small, states, burn=burn, every=every, seed=seed)
    if source == "naive":
        return scaleup.upsample(out, large // small)
    for level in range(round(np.log2(large / small))):
        out = scaleup.upsample(out)
        scaleup.local_relax(
            out,
            np.arange(states),
            system,
            seed=seed,
            window=small,
            duration=relax,
            dt=0.5,
            level=level,
        )
    return out


# -- pairs -----------------------------------------------------------------------------------


def features(states: np.ndarray, patch: int) -> np.ndarray:
    """y = (M, rho, mean class densities of the patches), (B, L, L) int8 to (B, 12)."""
    sums = observables.spin_sums(Block.periodic(states, np.arange(len(states))))
    counts = observables.class_counts(states, patch)
    densities = counts.mean(axis=1) / (patch - 2) ** 2
    return np.concatenate([observables.intensive(sums, states[0].size), densities], axis=1)


@dataclass(frozen=True)
class Pairs:
    """Increments of N states over one time, of features or of latents, P of each.

    Attributes
    ----------
    z : (N, d) features or latents
    mean : (N, d) mean increment
    covariance : (N, d, d) of the P increments about their mean, over P
    within : (N, d, d) about the means of each patch, without bias; as it is for whole lattices
    duration : their time
    """

    z: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    within: np.ndarray
    duration: float

    def latents(self, map_: np.ndarray) -> Pairs:
        """The pairs of the latents ``map_ @ z``; map_ is (d', d)."""
        turn = map_.T
        return replace(
            self,
            z=self.z @ turn,
            mean=self.mean @ turn,
            covariance=map_ @ self.covariance @ turn,
            within=map_ @ self.within @ turn,
        )

    def increments(self, within: bool = False) -> np.ndarray:
        """(N, 2 d, d) increments with this mean and covariance, see the module."""
        d = self.z.shape[1]
        # Of P <= d pairs the covariance is singular: eigenvectors, not Cholesky.
        values, vectors = np.linalg.eigh(self.within if within else self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0) * d)[:, None]
        columns = root.transpose(0, 2, 1)
        return self.mean[:, None] + np.concatenate([columns, -columns], axis=1)


def evolve(
    system: Ising,
    states: np.ndarray,
    *,
    kind: Kind,
    patch: int,
    repeats: int,
    duration: float = 0.5,
    seed: int,
) -> Pairs:
    """Evolve every state ``repeats`` times and keep sums over the increments of its features.

    ``full``: the whole lattice; ``partial``: one uniformly chosen patch of each, equation (3)
    of arXiv:2511.12842, in its true surroundings.
    """
    patches = states[0].size // patch**2 if kind == "partial" else 1
    if repeats < 2 * patches:
        allowed = f"{2 * patches} or more, for the covariance within a patch"
        raise InputError("repeats", repeats, allowed, "Try 32, or 512 of one of 16 patches.")
    parts = []
    for i in range(0, len(states), CHUNK):
        x, members = states[i : i + CHUNK], np.arange(i, min(i + CHUNK, len(states)))
        y, rows = features(x, patch), np.arange(len(x))
        own = observables.class_counts(x, patch)
        number = np.zeros((len(x), patches))
        first = np.zeros((len(x), patches, y.shape[1]))
        second = np.zeros((len(x), y.shape[1], y.shape[1]))
        # Neighbours share vectors of lanes.
        keys = np.arange(repeats)[:, None] * len(states) + members
        if kind == "full":
            done = _of_lattices(system, x, y, keys, patch, duration, seed)
        else:
            done = _of_patches(system, x, own, keys, patch, duration, seed)
        for index, d in done:
            number[rows, index] += 1
            first[rows, index] += d
            second += d[:, :, None] * d[:, None]
        parts.append((y, *_moments(number, first, second)))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    z, mean, covariance, within = columns
    return Pairs(z, mean, covariance, within, duration)


#: Of one repeat: which patch of each state, (B,), and the increments of its features, (B, 12).
_Repeats = Iterator[tuple[np.ndarray, np.ndarray]]


def _of_lattices(
    system: Ising, x: np.ndarray, y: np.ndarray, keys: np.ndarray, patch: int, duration: float,
    seed: int,
) -> _Repeats:  # fmt: skip
    """Whole lattices, repeat by repeat."""
    for of_repeat in keys:
        block = Block.periodic(x, of_repeat)
        solver = Sublattice(system, DT)
        solver.advance(block, round(duration / DT), seed=seed, stream="partial")
        yield np.zeros(len(x), np.int64), features(block.spins(), patch) - y


def _of_patches(
    system: Ising, x: np.ndarray, own: np.ndarray, keys: np.ndarray, patch: int, duration: float,
    seed: int,
) -> _Repeats:  # fmt: skip
    """One patch of each state, repeat by repeat; on a GPU many of them together."""
    count, rows = len(x), np.arange(len(x))

    def increments(
        index: np.ndarray, changes: np.ndarray, after: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        # From sums of spins and of bonds to M and to the density of walls.
        sums = changes / (patch**2 * np.array([1.0, -4.0]))
        classes = (after - own[rows, index]) / (patch - 2) ** 2
        return index, np.concatenate([sums, classes], axis=1)

    device = scaleup.device()
    if device is None or patch % 2 or not scaleup.fits_lanes((patch, patch)):
        for of_repeat in keys:
            done = scaleup.partial_evolution(
                x, of_repeat, system, patch, seed=seed, duration=duration, dt=DT
            )
            inner = np.ascontiguousarray(done.after[:, 1:-1, 1:-1])
            after = observables.class_counts(inner, patch)[:, 0]
            yield increments(done.index, done.changes(), after)
        return
    lattices = LaneBlock.periodic(x, np.arange(count), device)
    solver, together = Sublattice(system, DT), max(1, PAIRS // count)
    for first in range(0, len(keys), together):
        some = keys[first : first + together]
        of = np.tile(rows, len(some))
        all_of = partial_evolutions(
            lattices, of, some.ravel(), solver, patch, seed=seed, duration=duration
        )
        for start in range(0, len(of), count):
            one = slice(start, start + count)
            yield increments(all_of.patch[one], all_of.changes[one], all_of.classes[one])


def _moments(
    number: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, covariance, covariance within patches from sums (B, K), (B, K, d), (B, d, d)."""
    total = number.sum(axis=1)
    mean = first.sum(axis=1) / total[:, None]
    covariance = second / total[:, None, None] - mean[:, :, None] * mean[:, None]
    seen = np.maximum(number, 1)[..., None]
    between = np.einsum("bki,bkj->bij", first / seen, first)
    free = total - np.count_nonzero(number, axis=1)
    return mean, covariance, (second - between) / free[:, None, None]


# -- equilibrium ------------------------------------------------------------------------------


# -- what drivers write -----------------------------------------------------------------------
