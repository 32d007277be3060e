"""Exact laws of small Kac lattices, written from the definitions of J and of the rates.

Sites are row-major. A state is a number: bit i is 1 when site i is up, as in :mod:`exact`.
"""

from __future__ import annotations

import math

import numpy as np

from mpiflow.systems.kac import Kac

Shape = tuple[int, int]


def states(n: int) -> np.ndarray:
    """Every state of n sites, (2^n, n) int8."""
    return (2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1) - 1).astype(np.int8)


def coupling(system: Kac, shape: Shape) -> np.ndarray:
    """J between all pairs of sites of a periodic lattice, (N, N) float64, from the weights."""
    kernel, (ny, nx) = system.kernel, shape
    reach, w = kernel.reach, kernel.weights.astype(float)
    out = np.zeros((ny * nx, ny * nx))
    for site in range(ny * nx):
        y, x = divmod(site, nx)
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                other = (y + dy) % ny * nx + (x + dx) % nx
                if kernel.nearest:
                    out[site, other] += 0.25 * (abs(dy) + abs(dx) == 1)
                elif (dy, dx) != (0, 0):
                    out[site, other] += w[abs(dy)] * w[abs(dx)] / kernel.norm
    return out


def fields(
    system: Kac, states: np.ndarray, shape: Shape, external: np.ndarray | None = None
) -> np.ndarray:
    """u = h + J s for states (..., N), float64; ``external`` (N,) in place of the uniform h."""
    h = system.field if external is None else external
    return h + states @ coupling(system, shape)


def energies(
    system: Kac, states: np.ndarray, shape: Shape, external: np.ndarray | None = None
) -> np.ndarray:
    """H = -1/2 s J s - h s, (...) float64."""
    h = system.field if external is None else external
    return (-0.5 * (states @ coupling(system, shape)) * states - h * states).sum(-1)


def gibbs(system: Kac, shape: Shape, external: np.ndarray | None = None) -> np.ndarray:
    """Probability of every state, (2^N,)."""
    energy = energies(system, states(math.prod(shape)), shape, external)
    weight = np.exp(-(energy - energy.min()) / system.temperature)
    return np.asarray(weight / weight.sum())


def generator(system: Kac, shape: Shape, external: np.ndarray | None = None) -> np.ndarray:
    """Rates of the dynamics, Q[from, to] (2^N, 2^N), rows summing to 0."""
    every = states(math.prod(shape))
    u = fields(system, every, shape, external)
    rates = 1.0 / (1.0 + np.exp(2.0 * every * u / system.temperature))
    start = np.arange(len(every))
    out = np.zeros((len(every), len(every)))
    for site in range(every.shape[1]):
        out[start, start ^ (1 << site)] = rates[:, site]
    out[start, start] = -out.sum(1)
    return out
