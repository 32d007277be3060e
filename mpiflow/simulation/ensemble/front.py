"""Simulations of systems that are whole on a rank from the system itself, for scripts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.simulation.ensemble.options import (
    ChainConfig,
    CurieWeissConfig,
    EnsembleConfig,
    PredatorPreyConfig,
)
from mpiflow.simulation.ensemble.simulation import Chains, Ensemble, Lines, MeanFields
from mpiflow.systems.curie_weiss import CurieWeiss
from mpiflow.systems.linear_chain import LinearChain
from mpiflow.systems.predator_prey import PredatorPrey

Made = TypeVar("Made", bound=Ensemble)

#: Of a system, its options and its simulation.
_KINDS: dict[type, tuple[type[EnsembleConfig], Any]] = {
    LinearChain: (ChainConfig, Chains),
    CurieWeiss: (CurieWeissConfig, MeanFields),
    PredatorPrey: (PredatorPreyConfig, Lines),
}


def of_system(
    system: LinearChain | CurieWeiss | PredatorPrey,
    size: Any = None,
    *,
    comm: MPI.Intracomm | None = None,
    **options: Any,
) -> Ensemble:
    """The simulation of a system. Collective.

    Parameters
    ----------
    size : spins of a Curie-Weiss model; chains and lines know their own
    options : those of ``mpiflow simulate``: ``dt``, ``members``, ``seed``, ``initial_...``

    Raises
    ------
    InputError : on all ranks, for options that make no sense
    """
    kind, made = next(pair for base, pair in _KINDS.items() if isinstance(system, base))
    return of_options(kind, made, system, size, MPI.COMM_WORLD if comm is None else comm, options)


def of_options(
    kind: type[EnsembleConfig],
    made: Callable[[Any, MPI.Intracomm], Made],
    system: Any,
    size: Any,
    comm: MPI.Intracomm,
    options: dict[str, Any],
) -> Made:
    """What ``made`` makes of options of a ``kind``, the parameters of a system among them.

    Collective.
    """
    values = {name: value for name, value in asdict(system).items() if name != "sites"}
    size = getattr(system, "sites", size)
    if size is not None:
        values["size"] = size
    with agreed(comm):
        # How far it is to run is no matter of the simulation.
        far = kind.short_time(options)
        config = kind(**values, **options, out=Path("run.h5"), time=far, save_every=far)
        sim = made(config, comm)
    sim.begin()
    return sim
