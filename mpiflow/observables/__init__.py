"""What is measured of a state: sums over its sites, and observables to record with a run.

Sums of spins and bonds are functions of blocks (:mod:`mpiflow.observables.sums`). An
:class:`Observable`, one of your own or one of those that are ready, goes into a file with
``record(..., observables={...})``: see docs/observables.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mpiflow.observables.sums import (
    block_sums,
    bond_counts,
    class_counts,
    domain_wall_density,
    intensive,
    lattice_class_counts,
    observe,
    patch_sums,
    spin_bits,
    spin_sums,
)

#: What is loaded when it is asked for, and where it lives.
_LATER = {
    "Observable": "mpiflow.observables.observable",
    "READY": "mpiflow.observables.ready",
    "cluster_sizes": "mpiflow.observables.ready",
    "clusters": "mpiflow.observables.ready",
    "correlation": "mpiflow.observables.ready",
    "interface_length": "mpiflow.observables.ready",
    "magnetization_histogram": "mpiflow.observables.ready",
    "structure_factor": "mpiflow.observables.ready",
}

__all__ = [
    "block_sums",
    "bond_counts",
    "class_counts",
    "domain_wall_density",
    "intensive",
    "lattice_class_counts",
    "observe",
    "patch_sums",
    "spin_bits",
    "spin_sums",
    *_LATER,
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
