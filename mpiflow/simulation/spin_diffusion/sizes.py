"""Sizes of runs of chains of two species."""

from __future__ import annotations

from mpiflow.simulation.ensemble.sizes import ensemble_variables, whole_systems
from mpiflow.simulation.sizes import Plan
from mpiflow.simulation.spin_diffusion.options import SpinDiffusionConfig


def plan(config: SpinDiffusionConfig, ranks: int) -> Plan:
    """Of chains that are whole on a rank, a single one on every rank."""
    batch, sites = -(-config.members // ranks), config.size
    stored = ensemble_variables(config, {"s": 1} if config.stochastic else None)
    rows, steps = (2, "events") if config.stochastic else (3, "as long as their errors allow")
    return whole_systems(config, ranks, _memory(config, batch), stored, 8 * rows * sites, steps)


def _memory(config: SpinDiffusionConfig, batch: int) -> dict[str, int]:
    """Bytes of the chains, and of what advances one or, of the process, all of them."""
    sites = config.size
    if config.stochastic:
        return {"field": 16 * sites * batch, "scratch": 160 * sites * batch}
    reach = config.chain().bonds_within
    bands = 3 * (3 * reach + 5) + 1  # of the matrix of 3 sites unknowns
    return {"field": 24 * sites * batch, "matrix": 2 * 8 * 3 * sites * bands}
