"""mpiflow: microscopic lattice dynamics on many ranks, and macroscopic dynamics learned from it.

    from mpiflow import Ising, Simulation, initial, record

Names load their modules when they are first used, so ``import mpiflow`` is quick and
needs neither MPI nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpiflow._version import __version__ as __version__

if TYPE_CHECKING:
    from mpiflow import initial as initial
    from mpiflow.commands.importing.run import import_array as import_array
    from mpiflow.commands.importing.run import import_trajectory as import_trajectory
    from mpiflow.commands.twins import certify as certify
    from mpiflow.commands.twins import export as export
    from mpiflow.commands.twins import info as info
    from mpiflow.commands.twins import learn_alloy as learn_alloy
    from mpiflow.commands.twins import learn_closure as learn_closure
    from mpiflow.commands.twins import learn_generator as learn_generator
    from mpiflow.commands.twins import learn_onsagerflow as learn_onsagerflow
    from mpiflow.commands.twins import plan as plan
    from mpiflow.commands.twins import plot as plot
    from mpiflow.commands.twins import predict as predict
    from mpiflow.commands.twins import verify as verify
    from mpiflow.core.block import Block as Block
    from mpiflow.core.errors import InputError as InputError
    from mpiflow.core.lattice import Lattice as Lattice
    from mpiflow.core.lattice import Layout as Layout
    from mpiflow.files.runs import Runs as Runs
    from mpiflow.files.runs import open_path
    from mpiflow.files.schema import STANDARD as STANDARD
    from mpiflow.files.schema import block_centres as block_centres
    from mpiflow.files.trajectory import Trajectory as Trajectory
    from mpiflow.files.writer import TrajectoryWriter as TrajectoryWriter
    from mpiflow.initial.alloy import counts_of as counts_of
    from mpiflow.initial.alloy import random_alloy as random_alloy
    from mpiflow.learn.closure.model import MacroscopicModel as MacroscopicModel
    from mpiflow.learn.models import load_model as load_model
    from mpiflow.learn.run_dataset import RunDataset as RunDataset
    from mpiflow.learn.splitting import Passage as Passage
    from mpiflow.learn.splitting import first_passage as first_passage
    from mpiflow.learn.splitting import step_of as step_of
    from mpiflow.run.resume import resume as resume
    from mpiflow.run.simulate import record as record
    from mpiflow.run.simulate import simulate as simulate
    from mpiflow.run.stopping import Keep as Keep
    from mpiflow.run.sweep import sweep as sweep
    from mpiflow.scaleup.spins import local_relax as local_relax
    from mpiflow.scaleup.spins import partial_evolution as partial_evolution
    from mpiflow.scaleup.spins import upsample as upsample
    from mpiflow.simulation.alloy.barrier_model import load_barrier_model as load_barrier_model
    from mpiflow.simulation.alloy.barrier_model import network_model as network_model
    from mpiflow.simulation.alloy.barrier_model import pairwise_model as pairwise_model
    from mpiflow.simulation.alloy.barrier_model import save_barrier_model as save_barrier_model
    from mpiflow.simulation.alloy.simulation import AlloySimulation as AlloySimulation
    from mpiflow.simulation.field.simulation import FieldSimulation as FieldSimulation
    from mpiflow.simulation.ising.simulation import Simulation as Simulation
    from mpiflow.simulation.kac.simulation import KacSimulation as KacSimulation
    from mpiflow.simulation.rules.simulation import RuleSimulation as RuleSimulation
    from mpiflow.simulation.tempering import Tempering as Tempering
    from mpiflow.solvers.field.mesoscopic import NonlocalEquation as NonlocalEquation
    from mpiflow.solvers.spins.nfold import NFold as NFold
    from mpiflow.solvers.spins.sublattice import Sublattice as Sublattice
    from mpiflow.systems.alloy import Alloy as Alloy
    from mpiflow.systems.binary_chain import BinaryChain as BinaryChain
    from mpiflow.systems.blume_capel import BlumeCapel as BlumeCapel
    from mpiflow.systems.curie_weiss import CurieWeiss as CurieWeiss
    from mpiflow.systems.drive import Drive as Drive
    from mpiflow.systems.ising import Ising as Ising
    from mpiflow.systems.ising import onsager_energy as onsager_energy
    from mpiflow.systems.kac import Kac as Kac
    from mpiflow.systems.kac import kac_kernel as kac_kernel
    from mpiflow.systems.linear_chain import LinearChain as LinearChain
    from mpiflow.systems.potts import Potts as Potts
    from mpiflow.systems.predator_prey import PredatorPrey as PredatorPrey
    from mpiflow.systems.rule import SpinRule as SpinRule
    from mpiflow.systems.site_field import RandomField as RandomField

    open = open_path
    record_alloy = record

#: Public name: the module it lives in, and its name there.
_PUBLIC = {
    "Alloy": ("mpiflow.systems.alloy", "Alloy"),
    "AlloySimulation": ("mpiflow.simulation.alloy.simulation", "AlloySimulation"),
    "BinaryChain": ("mpiflow.systems.binary_chain", "BinaryChain"),
    "Block": ("mpiflow.core.block", "Block"),
    "BlumeCapel": ("mpiflow.systems.blume_capel", "BlumeCapel"),
    "Callback": ("mpiflow.run.callbacks", "Callback"),
    "CurieWeiss": ("mpiflow.systems.curie_weiss", "CurieWeiss"),
    "Drive": ("mpiflow.systems.drive", "Drive"),
    "FieldSimulation": ("mpiflow.simulation.field.simulation", "FieldSimulation"),
    "InputError": ("mpiflow.core.errors", "InputError"),
    "Ising": ("mpiflow.systems.ising", "Ising"),
    "Kac": ("mpiflow.systems.kac", "Kac"),
    "KacSimulation": ("mpiflow.simulation.kac.simulation", "KacSimulation"),
    "Keep": ("mpiflow.run.stopping", "Keep"),
    "Lattice": ("mpiflow.core.lattice", "Lattice"),
    "Layout": ("mpiflow.core.lattice", "Layout"),
    "LinearChain": ("mpiflow.systems.linear_chain", "LinearChain"),
    "MacroscopicModel": ("mpiflow.learn.closure.model", "MacroscopicModel"),
    "NFold": ("mpiflow.solvers.spins.nfold", "NFold"),
    "NonlocalEquation": ("mpiflow.solvers.field.mesoscopic", "NonlocalEquation"),
    "Observable": ("mpiflow.observables.observable", "Observable"),
    "Passage": ("mpiflow.learn.splitting", "Passage"),
    "Potts": ("mpiflow.systems.potts", "Potts"),
    "PredatorPrey": ("mpiflow.systems.predator_prey", "PredatorPrey"),
    "RandomField": ("mpiflow.systems.site_field", "RandomField"),
    "RuleSimulation": ("mpiflow.simulation.rules.simulation", "RuleSimulation"),
    "RunDataset": ("mpiflow.learn.run_dataset", "RunDataset"),
    "Runs": ("mpiflow.files.runs", "Runs"),
    "STANDARD": ("mpiflow.files.schema", "STANDARD"),
    "Simulation": ("mpiflow.simulation.ising.simulation", "Simulation"),
    "SpinRule": ("mpiflow.systems.rule", "SpinRule"),
    "Sublattice": ("mpiflow.solvers.spins.sublattice", "Sublattice"),
    "Tempering": ("mpiflow.simulation.tempering", "Tempering"),
    "Trajectory": ("mpiflow.files.trajectory", "Trajectory"),
    "TrajectoryWriter": ("mpiflow.files.writer", "TrajectoryWriter"),
    "block_centres": ("mpiflow.files.schema", "block_centres"),
    "certify": ("mpiflow.commands.twins", "certify"),
    "counts_of": ("mpiflow.initial.alloy", "counts_of"),
    "export": ("mpiflow.commands.twins", "export"),
    "first_passage": ("mpiflow.learn.splitting", "first_passage"),
    "import_array": ("mpiflow.commands.importing.run", "import_array"),
    "import_trajectory": ("mpiflow.commands.importing.run", "import_trajectory"),
    "info": ("mpiflow.commands.twins", "info"),
    "kac_kernel": ("mpiflow.systems.kac", "kac_kernel"),
    "learn_alloy": ("mpiflow.commands.twins", "learn_alloy"),
    "learn_closure": ("mpiflow.commands.twins", "learn_closure"),
    "learn_generator": ("mpiflow.commands.twins", "learn_generator"),
    "learn_onsagerflow": ("mpiflow.commands.twins", "learn_onsagerflow"),
    "load_barrier_model": ("mpiflow.simulation.alloy.barrier_model", "load_barrier_model"),
    "load_model": ("mpiflow.learn.models", "load_model"),
    "local_relax": ("mpiflow.scaleup.spins", "local_relax"),
    "network_model": ("mpiflow.simulation.alloy.barrier_model", "network_model"),
    "onsager_energy": ("mpiflow.systems.ising", "onsager_energy"),
    "open": ("mpiflow.files.runs", "open_path"),
    "pairwise_model": ("mpiflow.simulation.alloy.barrier_model", "pairwise_model"),
    "partial_evolution": ("mpiflow.scaleup.spins", "partial_evolution"),
    "plan": ("mpiflow.commands.twins", "plan"),
    "plot": ("mpiflow.commands.twins", "plot"),
    "predict": ("mpiflow.commands.twins", "predict"),
    "random_alloy": ("mpiflow.initial.alloy", "random_alloy"),
    "record": ("mpiflow.run.simulate", "record"),
    "record_alloy": ("mpiflow.run.simulate", "record"),
    "resume": ("mpiflow.run.resume", "resume"),
    "save_barrier_model": ("mpiflow.simulation.alloy.barrier_model", "save_barrier_model"),
    "simulate": ("mpiflow.run.simulate", "simulate"),
    "step_of": ("mpiflow.learn.splitting", "step_of"),
    "sweep": ("mpiflow.run.sweep", "sweep"),
    "upsample": ("mpiflow.scaleup.spins", "upsample"),
    "verify": ("mpiflow.commands.twins", "verify"),
}
#: Modules that are public as a whole, and where they live.
_MODULES = {
    "checkpoint": "mpiflow.files.checkpoint",
    "initial": "mpiflow.initial",
    "metrics": "mpiflow.metrics",
    "observables": "mpiflow.observables",
    "parallel": "mpiflow.core.parallel",
    "scaleup": "mpiflow.scaleup",
}
#: A star must not replace the ``open`` of the language.
__all__ = [*sorted({*_PUBLIC, *_MODULES} - {"open"})]


def __getattr__(name: str) -> Any:
    if name not in _MODULES and name not in _PUBLIC:
        raise AttributeError(f"module 'mpiflow' has no attribute {name!r}")
    from mpiflow.core.packages import explained

    with explained():
        if name in _MODULES:
            return import_module(_MODULES[name])
        module, attribute = _PUBLIC[name]
        return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "open"])
