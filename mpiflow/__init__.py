"""mpiflow: microscopic lattice dynamics on many ranks, and macroscopic dynamics learned from it.

    from mpiflow import Ising, Simulation, initial, record

Names load their modules when they are first used, so ``import mpiflow`` is quick and
needs neither MPI nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpiflow import initial as initial
    from mpiflow.barrier_files import load_barrier_model as load_barrier_model
    from mpiflow.block import Block as Block
    from mpiflow.errors import InputError as InputError
    from mpiflow.lattice import Lattice as Lattice
    from mpiflow.lattice import Layout as Layout
    from mpiflow.learn.model import MacroscopicModel as MacroscopicModel
    from mpiflow.learn.models import load_model as load_model
    from mpiflow.learn.runs import RunDataset as RunDataset
    from mpiflow.run import record as record
    from mpiflow.run import simulate as simulate
    from mpiflow.runs import Runs as Runs
    from mpiflow.runs import open_path
    from mpiflow.scaleup import local_relax as local_relax
    from mpiflow.scaleup import partial_evolution as partial_evolution
    from mpiflow.scaleup import upsample as upsample
    from mpiflow.simulation import Simulation as Simulation
    from mpiflow.solvers.nfold import NFold as NFold
    from mpiflow.solvers.sublattice import Sublattice as Sublattice
    from mpiflow.systems.ising import Ising as Ising
    from mpiflow.trajectory import Trajectory as Trajectory
    from mpiflow.trajectory import TrajectoryWriter as TrajectoryWriter

    open = open_path

__version__ = "0.1.0"

#: Public name: the module it lives in, and its name there.
_PUBLIC = {
    "Block": ("mpiflow.block", "Block"),
    "InputError": ("mpiflow.errors", "InputError"),
    "Ising": ("mpiflow.systems.ising", "Ising"),
    "Lattice": ("mpiflow.lattice", "Lattice"),
    "Layout": ("mpiflow.lattice", "Layout"),
    "MacroscopicModel": ("mpiflow.learn.model", "MacroscopicModel"),
    "NFold": ("mpiflow.solvers.nfold", "NFold"),
    "RunDataset": ("mpiflow.learn.runs", "RunDataset"),
    "Runs": ("mpiflow.runs", "Runs"),
    "Simulation": ("mpiflow.simulation", "Simulation"),
    "Sublattice": ("mpiflow.solvers.sublattice", "Sublattice"),
    "Trajectory": ("mpiflow.trajectory", "Trajectory"),
    "TrajectoryWriter": ("mpiflow.trajectory", "TrajectoryWriter"),
    "load_barrier_model": ("mpiflow.barrier_files", "load_barrier_model"),
    "load_model": ("mpiflow.learn.models", "load_model"),
    "local_relax": ("mpiflow.scaleup", "local_relax"),
    "open": ("mpiflow.runs", "open_path"),
    "partial_evolution": ("mpiflow.scaleup", "partial_evolution"),
    "record": ("mpiflow.run", "record"),
    "simulate": ("mpiflow.run", "simulate"),
    "upsample": ("mpiflow.scaleup", "upsample"),
}
__all__ = [*_PUBLIC, "initial"]


def __getattr__(name: str) -> Any:
    if name == "initial":
        return import_module("mpiflow.initial")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mpiflow' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
