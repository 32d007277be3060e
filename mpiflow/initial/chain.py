"""Initial spins of chains of two species, keyed by member and site: the same on any ranks."""

from __future__ import annotations

import numpy as np

from mpiflow.core import noise


def shuffled(sites: int, members: np.ndarray, seed: int) -> np.ndarray:
    """As many spins of each sign, -1 first and +1 last, all arrangements between alike.

    Parameters
    ----------
    sites : even
    members : (B,) their numbers

    Returns
    -------
    (B, sites) int8
    """
    out = np.empty((len(members), sites), np.int8)
    inner = np.arange(1, sites - 1)
    for row, member in zip(out, members.tolist(), strict=True):
        order = np.argsort(noise.words(seed, "initial", member, 0, inner)[:, 0], kind="stable")
        row[0], row[-1] = -1, 1
        row[1:-1][order] = np.where(np.arange(sites - 2) < sites // 2 - 1, 1, -1)
    return out


def perturbed(spins: np.ndarray, amplitude: float, members: np.ndarray, seed: int) -> np.ndarray:
    """Mean spins with a random perturbation that leaves their sum and both ends as they are.

    Uniform numbers from -``amplitude`` to ``amplitude``, less their mean: none is as large as twice
    the amplitude.

    Parameters
    ----------
    spins : (B, sites) float64
    members : (B,) their numbers
    """
    out = np.array(spins, float)
    inner = np.arange(1, out.shape[1] - 1)
    for row, member in zip(out, members.tolist(), strict=True):
        u = 2.0 * noise.uniforms(seed, "initial", member, 1, inner)[:, 0] - 1.0
        row[1:-1] += amplitude * (u - u.mean())
    return out
