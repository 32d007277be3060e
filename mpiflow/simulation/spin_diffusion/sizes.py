"""Sizes of runs of chains of two species."""

from __future__ import annotations

from mpiflow.simulation.ensemble.sizes import ensemble_variables, whole_systems
from mpiflow.simulation.sizes import SPIN, Plan
from mpiflow.simulation.spin_diffusion.options import SpinDiffusionConfig
from mpiflow.solvers.binary_chain.lanes import TOGETHER

#: Bytes of a number of a profile, and what compression leaves of it, measured: positions of the
#: process are multiples of 2^-32; those of equations rest after a while. About 20 % either way.
_PROCESS = {"s": (1, SPIN), "x": (8, 5.1)}
_EQUATIONS = {"s": (8, 5.7), "x": (8, 5.4), "alpha": (8, 4.6)}


def plan(config: SpinDiffusionConfig, ranks: int) -> Plan:
    """Of chains that are whole on a rank, a single one on every rank."""
    batch, sites = -(-config.members // ranks), config.size
    stored = ensemble_variables(config, _PROCESS if config.stochastic else _EQUATIONS)
    rows, steps = (2, "events") if config.stochastic else (3, "as long as their errors allow")
    return whole_systems(config, ranks, _memory(config, batch), stored, 8 * rows * sites, steps)


def _memory(config: SpinDiffusionConfig, batch: int) -> dict[str, int]:
    """Bytes of the chains, and of what advances some of them."""
    sites = config.size
    if config.stochastic:
        # A stretch of work is made on copies, which replace the chains when it was good.
        together = min(sites * batch, max(sites, TOGETHER))
        return {"field": 9 * sites * batch, "copies": 16 * sites * batch, "scratch": 160 * together}
    reach = config.chain().bonds_within
    bands = 3 * (3 * reach + 5) + 1  # of a matrix over three unknowns of each site
    return {"field": 24 * sites * batch, "matrix": 2 * 8 * 3 * sites * bands}
