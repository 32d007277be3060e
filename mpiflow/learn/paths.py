r"""Trajectories of a learned SDE of two networks, compiled, and of which of them leave the data.

A step of Euler and Maruyama, :math:`z \leftarrow z + \mu\,dt + L \sqrt{dt}\,\xi`, for a block of
trajectories: they go through the networks together, and have a lane each in everything else. What
a trajectory does depends on no other one, so that its bits are the same in any ensemble, on any
ranks and on any CPU. The normals :math:`\xi` are those of :func:`mpiflow.core.noise.normals`, up to
the last digits of their logarithm, cosine and sine.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.functions import log, turned
from mpiflow.core.noise import Word, stream_key, threefry, to_unit
from mpiflow.learn.layers import BLOCK, fill_table, kept_size, padded, run_block, table_size
from mpiflow.learn.likelihood import Scales, diagonal_of


class OutsideData(UserWarning):
    """A prediction goes where the model has no data."""


class Leaving:
    """Which of a number of trajectories left the range of the training data, and the first."""

    def __init__(self, trajectories: int) -> None:
        self.left = np.zeros(trajectories, bool)
        #: Its step, number, latent, and value there.
        self.first: tuple[int, int, int, float] | None = None

    def look(self, step: int, start: int, free: np.ndarray, held: np.ndarray) -> int:
        """States (b, d) of trajectories from ``start`` on as they are and held; how many differ."""
        away = free != held
        rows = away.any(axis=1)
        count = int(rows.sum())
        if count:
            self.left[start : start + len(rows)] |= rows
            if self.first is None or step < self.first[0]:
                row, latent = (int(i) for i in np.argwhere(away)[0])
                self.first = step, start + row, latent, float(free[row, latent])
        return count

    def warn(self, validity: Mapping[str, list[float]], dt: np.ndarray) -> None:
        """Say it, if it was so; ``dt`` (B,) is the duration of a step."""
        if self.first is None:
            return
        step, which, latent, value = self.first
        name, (low, high) = list(validity.items())[latent]
        warnings.warn(
            f"{self.left.sum()} of {len(self.left)} trajectories leave the range of the data that "
            f"the model was learned from, first at time {step * dt[which]:.6g} with {name} = "
            f"{value:.6g}; it is held in {low:.6g} to {high:.6g}, the range of the data widened by "
            "a tenth. Do not trust them from there on",
            OutsideData, stacklevel=3,
        )  # fmt: skip


class Law(NamedTuple):
    """An SDE of two networks, as kernels take it.

    Attributes
    ----------
    drift, sigma : sizes of the networks, (L + 1,) int64
    of_drift, of_sigma : tables of their parameters
    scales : units
    low, high : (d,) float64, the range in which states are held
    """

    drift: np.ndarray
    sigma: np.ndarray
    of_drift: np.ndarray
    of_sigma: np.ndarray
    scales: Scales
    low: np.ndarray
    high: np.ndarray


def law_of(
    sizes: tuple[np.ndarray, np.ndarray],
    parameters: tuple[np.ndarray, np.ndarray],
    scales: Scales,
    low: np.ndarray,
    high: np.ndarray,
) -> Law:
    """The law of networks of these sizes with these flat parameters, float32."""
    drift, sigma = (np.empty(table_size(s), np.float32) for s in sizes)
    for table, size, values in zip((drift, sigma), sizes, parameters, strict=True):
        fill_table(size, values, table)
    return Law(*sizes, drift, sigma, scales, low.astype(float), high.astype(float))


@kernel
def normal_lanes(
    key: np.ndarray, members: np.ndarray, step: Word, words: np.ndarray, out: np.ndarray
) -> None:
    """Normals (d or d + 1, lanes) of a step; ``words`` (2, lanes) uint64 is scratch."""
    first, second, k0, k1 = words[0], words[1], key[0], key[1]
    for pair in range(out.shape[0] // 2):
        site = np.uint64(pair)
        for s in range(members.size):
            w0, w1 = threefry(k0, k1 + members[s], step, site)
            first[s] = w0
            second[s] = w1
        one, other = out[2 * pair], out[2 * pair + 1]
        for s in range(members.size):
            radius = np.sqrt(-2.0 * log(to_unit(first[s])))
            cosine, sine = turned(to_unit(second[s]))
            one[s] = radius * cosine
            other[s] = radius * sine


@kernel
def _move(
    law: Law, z: np.ndarray, kept: np.ndarray, at: int, entries: np.ndarray, normals: np.ndarray,
    dt: float, root: float, space: np.ndarray, count: int,
) -> int:  # fmt: skip
    """A step without limits; returns how many numbers are beyond them.

    Parameters
    ----------
    z : (d, BLOCK), becomes the next state
    kept, at : the drift network's outputs, padded rows
    entries : (d (d + 1) / 2, BLOCK), of the other
    normals : (d, BLOCK)
    root : of dt, times the factor of the noise
    space : (3, BLOCK)
    """
    d, beyond = z.shape[0], 0
    wide, kick, top, slope = padded(d), space[0], space[1], space[2]
    e = 0
    for i in range(d):
        kick[:] = 0.0
        for j in range(i):
            entry, xi = entries[e], normals[j]
            for s in range(count):
                kick[s] += entry[s] * xi[s]
            e += 1
        diagonal_of(entries[e], top, slope, count)
        e += 1
        here, xi = z[i], normals[i]
        drift, noise = law.scales.std[i] * dt, law.scales.std[i] * law.scales.noise[i] * root
        low, high = law.low[i], law.high[i]
        for s in range(count):
            rate = np.float64(kept[at + s * wide + i])
            here[s] += rate * drift + (kick[s] + top[s] * xi[s]) * noise
            beyond += 0 if (here[s] >= low and here[s] <= high) else 1
    return beyond


@kernel
def _hold(
    law: Law, z: np.ndarray, count: int, start: int, step: int, left: np.ndarray,
    first: np.ndarray, value: np.ndarray, move: bool,
) -> int:  # fmt: skip
    """Put states inside the limits; returns how many were not, see :func:`follow`."""
    beyond = 0
    for s in range(count):
        away = False
        for i in range(z.shape[0]):
            if not (z[i, s] >= law.low[i] and z[i, s] <= law.high[i]):
                away = True
                if first[0] < 0 or step < first[0]:
                    first[0], first[1], first[2], value[0] = step, start + s, i, z[i, s]
                if move:
                    z[i, s] = min(max(z[i, s], law.low[i]), law.high[i])
        if away:
            left[start + s] = True
            beyond += 1
    return beyond


@kernel
def follow(
    law: Law, z0: np.ndarray, context: np.ndarray, key: np.ndarray, members: np.ndarray,
    dt: float, noise: float, steps: int, save: np.ndarray, out: np.ndarray, left: np.ndarray,
    first: np.ndarray, value: np.ndarray, kept: np.ndarray, lanes: np.ndarray, words: np.ndarray,
) -> int:  # fmt: skip
    """Trajectories; returns how many of their states had to be held.

    Parameters
    ----------
    z0, context : (B, d) and (B, c) float64
    members : (B,) uint64
    noise : factor of L
    save : (n,) steps to keep in ``out``, (n, B, d)
    left : (B,) bool, who was ever outside of the limits
    first : (3,) int64, -1 before: step, trajectory and latent of the first that was; its ``value``
    kept : of :func:`~mpiflow.learn.layers.kept_size` of a block, of the larger network
    lanes : (2 d + 1 + d (d + 1) / 2 + 3, BLOCK)
    words : (2, BLOCK) uint64
    """
    d, c = z0.shape[1], context.shape[1]
    even, e = (d + 1) // 2 * 2, d * (d + 1) // 2
    z, normals = lanes[:d], lanes[d : d + even]
    entries, space = lanes[d + even : d + even + e], lanes[d + even + e : d + even + e + 3]
    mean, std, root = law.scales.mean, law.scales.std, noise * np.sqrt(dt)
    deep, wide, held = padded(d + c), padded(e), 0
    for start in range(0, z0.shape[0], BLOCK):
        count = min(BLOCK, z0.shape[0] - start)
        own = members[start : start + count]
        for s in range(count):
            for i in range(d):
                z[i, s] = z0[start + s, i]
            for i in range(deep):
                k = i - d
                kept[s * deep + i] = (
                    (context[start + s, k] - mean[i]) / std[i] if 0 <= k < c else 0.0
                )
        _hold(law, z, count, start, 0, left, first, value, False)
        frame = 0
        for step in range(steps + 1):
            if frame < save.size and save[frame] == step:
                for s in range(count):
                    for i in range(d):
                        out[frame, start + s, i] = z[i, s]
                frame += 1
            if step == steps:
                break
            for i in range(d):
                here, centre, unit = z[i], mean[i], std[i]
                for s in range(count):
                    kept[s * deep + i] = (here[s] - centre) / unit
            at = run_block(law.sigma, law.of_sigma, kept, BLOCK, 0, count)
            for i in range(e):
                entry = entries[i]
                for s in range(count):
                    entry[s] = kept[at + s * wide + i]
            normal_lanes(key, own, np.uint64(step), words, normals)
            at = run_block(law.drift, law.of_drift, kept, BLOCK, 0, count)
            if _move(law, z, kept, at, entries, normals, dt, root, space, count) > 0:
                held += _hold(law, z, count, start, step + 1, left, first, value, True)
    return held


def walk(
    law: Law,
    z0: np.ndarray,
    context: np.ndarray | None,
    members: np.ndarray,
    *,
    dt: float,
    noise: float,
    steps: int,
    save: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, Leaving, int]:
    """Trajectories of a law, (len(save), B, d) float64; who left; how many states were held.

    Arguments as of :meth:`mpiflow.learn.sde.LearnedSDE.rollout`.
    """
    trajectories, d = z0.shape
    given = np.empty((trajectories, 0)) if context is None else np.ascontiguousarray(context, float)
    out, leaving = np.empty((len(save), trajectories, d)), Leaving(trajectories)
    first, value = np.full(3, -1), np.zeros(1)
    # Rows beyond the last trajectory go through the networks, too, and are not looked at.
    kept = np.zeros(max(kept_size(s, BLOCK) for s in (law.drift, law.sigma)), np.float32)
    lanes = np.zeros((2 * d + 1 + d * (d + 1) // 2 + 3, BLOCK))
    held = follow(
        law, np.ascontiguousarray(z0, float), given, stream_key(seed, "sde"),
        np.ascontiguousarray(members, np.uint64), float(dt), float(noise), int(steps),
        np.ascontiguousarray(save, np.int64), out, leaving.left, first, value, kept, lanes,
        np.zeros((2, BLOCK), np.uint64),
    )  # fmt: skip
    if first[0] >= 0:
        leaving.first = int(first[0]), int(first[1]), int(first[2]), float(value[0])
    return out, leaving, int(held)
