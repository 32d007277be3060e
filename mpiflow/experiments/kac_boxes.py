"""Boxes of spins with a Kac coupling in one of two phases, and the learned law of their blocks."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq

from mpiflow import initial
from mpiflow.core.mpi import MPI
from mpiflow.learn.onsagerflow.fit import learn
from mpiflow.learn.onsagerflow.increments import FieldRun
from mpiflow.learn.onsagerflow.model import OnsagerFlow
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.systems.kac import Kac


def phase(temperature: float) -> float:
    """m > 0 of m = tanh(m / T), below T = 1."""
    return float(brentq(lambda m: m - np.tanh(m / temperature), 1e-9, 1))


def waves(
    temperature: float,
    i: int,
    *,
    size: int,
    block: int,
    gamma: float,
    frames: int,
    seed: int,
) -> FieldRun:
    """Means of blocks, 0.1 apart, of a lattice that begins with waves; at odd i a field holds them.

    Its size is far beyond that of the waves, so that it does not go over to one phase.
    """
    points = size // block
    seed = seed + 77 + 1000 * i + round(1000 * temperature)
    profile = initial.smooth_profile((points, points), seed, correlation_length=points / 12)
    means = 0.8 * np.tanh(2 * profile)
    h = np.kron(temperature * np.arctanh(means) - means, np.ones((block, block)))
    sim = KacSimulation(
        Kac(temperature, gamma, 0.0), size, solver="midpoint", tau=0.05, seed=seed,
        comm=MPI.COMM_SELF, granularity=block, site_field=h if i % 2 else None,
    )  # fmt: skip
    sim.set_spins(initial.profile, means=means)
    seen = []
    for _ in range(frames):
        seen.append(sim.coarse_sums(block)[0].astype(np.float32) / block**2)
        sim.advance(0.1)
    of_blocks = h.reshape(points, block, points, block).mean(axis=(1, 3))
    return FieldRun(np.array(seen), 0.1, temperature, block**2, of_blocks if i % 2 else 0.0)


def law_of_boxes(runs: list[FieldRun], radius: int, comm: MPI.Intracomm) -> OnsagerFlow:
    """Few terms, and beta s' the same at all of their temperatures, for N times its error counts.

    Collective.
    """
    return learn(
        runs, radius=radius, mobility_terms=2, entropy_terms=1, temperature_degree=0, comm=comm
    )
