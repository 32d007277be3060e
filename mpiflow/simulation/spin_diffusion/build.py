"""A simulation of chains of two species from its options, or from the system in scripts."""

from __future__ import annotations

from typing import Any

from mpiflow.core.mpi import MPI
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.simulation.base import Built
from mpiflow.simulation.ensemble.front import of_options
from mpiflow.simulation.ensemble.simulation import built
from mpiflow.simulation.spin_diffusion.options import SpinDiffusionConfig
from mpiflow.simulation.spin_diffusion.process import AveragedRun, LangevinRun
from mpiflow.simulation.spin_diffusion.simulation import BinaryChains, MeanFieldRun
from mpiflow.systems.binary_chain import BinaryChain

_KINDS: dict[str, type[BinaryChains]] = {"langevin": LangevinRun, "averaged": AveragedRun}


def build(
    config: SpinDiffusionConfig, comm: MPI.Intracomm, point: Checkpoint | None = None
) -> Built:
    """The chains of a configuration. Collective."""
    return built(_made, config, comm, point)


def _made(config: SpinDiffusionConfig, comm: MPI.Intracomm) -> BinaryChains:
    return _KINDS.get(config.model, MeanFieldRun)(config, comm)


def of_system(
    system: BinaryChain,
    size: None = None,
    *,
    comm: MPI.Intracomm | None = None,
    **options: Any,
) -> BinaryChains:
    """The simulation of a chain. Collective.

    Parameters
    ----------
    size : none: the system knows its own
    options : those of ``mpiflow simulate spin-diffusion``: ``model``, ``epsilon``, ``members``, ...

    Raises
    ------
    InputError : on all ranks, for options that make no sense
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    return of_options(SpinDiffusionConfig, _made, system, size, comm, options)
