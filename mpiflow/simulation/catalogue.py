"""The one table of systems: where the options, the simulation and the sizes of each one are.

Every command and every run finds a system here, so no other module names one. A package outside
of mpiflow adds a system with an entry point of the group ``mpiflow.systems``, whose name is that
of the system and whose value names an :class:`Entry`. Modules are named, not imported: options
are wanted where nothing should be compiled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, NamedTuple

from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.core.packages import explained

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiflow.files.checkpoint import Checkpoint
    from mpiflow.simulation.base import Built, Simulated
    from mpiflow.simulation.options import RunConfig

#: Entry points in which other packages have systems.
GROUP = "mpiflow.systems"


class Entry(NamedTuple):
    """A system; each place is "module:name".

    Attributes
    ----------
    help : a line for ``mpiflow simulate --help``
    options : a subclass of :class:`~mpiflow.simulation.options.RunConfig`
    build : a function of these, a communicator and a checkpoint or None, that returns
        :class:`~mpiflow.simulation.base.Built`
    plan : a function of the options and a number of ranks that returns
        :class:`~mpiflow.simulation.sizes.Plan`
    command : where it is run: ``simulate NAME``, or another command
    system : the class of the system, if a script may run it
    simulation : what makes such a system, a size and options into a
        :class:`~mpiflow.simulation.base.Simulated`
    short : options of runs as short as can be, for ``mpiflow warmup``
    """

    help: str
    options: str
    build: str
    plan: str
    command: str = "simulate"
    system: str = ""
    simulation: str = ""
    short: tuple[Mapping[str, Any], ...] = ()


_HERE = "mpiflow.simulation"
_OWN = {
    "ising": Entry(
        "Nearest-neighbour Ising model with Glauber dynamics.",
        f"{_HERE}.ising.options:IsingConfig",
        f"{_HERE}.ising.build:build",
        f"{_HERE}.ising.sizes:plan",
        system="mpiflow.systems.ising:Ising",
        simulation=f"{_HERE}.ising.simulation:Simulation",
        short=(
            {"size": 64, "temperature": 2.3, "time": 1, "coarse": 8},
            {"size": 1024, "temperature": 2.3, "time": 1, "coarse": 8},
            {"size": 8, "temperature": 2.3, "time": 1, "solver": "nfold"},
        ),
    ),
    "kac": Entry(
        "Ising model whose spins feel many others (Kac coupling).",
        f"{_HERE}.kac.options:KacConfig",
        f"{_HERE}.kac.build:build",
        f"{_HERE}.kac.sizes:plan",
        system="mpiflow.systems.kac:Kac",
        simulation=f"{_HERE}.kac.simulation:KacSimulation",
        short=({"size": 32, "temperature": 1, "gamma": 4, "tau": 0.25, "time": 1, "coarse": 8},),
    ),
    "potts": Entry(
        "Potts model of 2 to 127 states with heat-bath dynamics.",
        f"{_HERE}.rules.options:PottsConfig",
        f"{_HERE}.rules.build:build",
        f"{_HERE}.rules.sizes:plan",
        system="mpiflow.systems.potts:Potts",
        simulation=f"{_HERE}.rules.simulation:RuleSimulation",
        short=({"size": 8, "states": 3, "temperature": 1, "time": 1},),
    ),
    "blume-capel": Entry(
        "Blume-Capel model: spins -1, 0 and 1 with a crystal field.",
        f"{_HERE}.rules.options:BlumeCapelConfig",
        f"{_HERE}.rules.build:build",
        f"{_HERE}.rules.sizes:plan",
        system="mpiflow.systems.blume_capel:BlumeCapel",
        simulation=f"{_HERE}.rules.simulation:RuleSimulation",
        short=({"size": 8, "temperature": 1, "crystal_field": 1, "time": 1},),
    ),
    "alloy": Entry(
        "Body-centred cubic alloy whose vacancies hop (KMC).",
        f"{_HERE}.alloy.options:AlloyConfig",
        f"{_HERE}.alloy.build:build",
        f"{_HERE}.alloy.sizes:plan",
        system="mpiflow.systems.alloy:Alloy",
        simulation=f"{_HERE}.alloy.build:of_system",
        short=(
            {"cells": 4, "temperature": 2000, "vacancies": 1, "hops": 2},
            {"cells": 4, "temperature": 800, "solver": "absorbing", "hops": 2},
        ),
    ),
    "onsagerflow": Entry(
        "Run a learned model. A field, a closure or an alloy's order; writes a Trajectory file.",
        f"{_HERE}.field.options:FieldConfig",
        # What learns builds on runs, and needs PyTorch: it is found when a field is wanted.
        "mpiflow.learn.onsagerflow.build:build",
        f"{_HERE}.field.sizes:plan",
        command="predict",
    ),
    "linear-chain": Entry(
        "Chains of springs with noise, pushed at one end.",
        f"{_HERE}.ensemble.options:ChainConfig",
        f"{_HERE}.ensemble.simulation:build_chains",
        f"{_HERE}.ensemble.sizes:plan",
        system="mpiflow.systems.linear_chain:LinearChain",
        simulation=f"{_HERE}.ensemble.front:of_system",
        short=({"size": 10, "dt": 0.05, "time": 0.1},),
    ),
    "curie-weiss": Entry(
        "Spins that feel all others alike, by exact events.",
        f"{_HERE}.ensemble.options:CurieWeissConfig",
        f"{_HERE}.ensemble.simulation:build_mean_fields",
        f"{_HERE}.ensemble.sizes:plan",
        system="mpiflow.systems.curie_weiss:CurieWeiss",
        simulation=f"{_HERE}.ensemble.front:of_system",
        short=({"size": 8, "temperature": 1.1, "time": 1},),
    ),
    "predator-prey": Entry(
        "Prey and predators on a line, with noise.",
        f"{_HERE}.ensemble.options:PredatorPreyConfig",
        f"{_HERE}.ensemble.simulation:build_lines",
        f"{_HERE}.ensemble.sizes:plan",
        system="mpiflow.systems.predator_prey:PredatorPrey",
        simulation=f"{_HERE}.ensemble.front:of_system",
        short=({"size": 40, "time": 0.25},),
    ),
    "spin-diffusion": Entry(
        "Chains of atoms of two species. They exchange places; also mean-field models of them.",
        f"{_HERE}.spin_diffusion.options:SpinDiffusionConfig",
        f"{_HERE}.spin_diffusion.build:build",
        f"{_HERE}.spin_diffusion.sizes:plan",
        system="mpiflow.systems.binary_chain:BinaryChain",
        simulation=f"{_HERE}.spin_diffusion.build:of_system",
    ),
}


@cache
def systems() -> dict[str, Entry]:
    """All systems by name: our own, then those of other packages."""
    found = dict(_OWN)
    for point in entry_points(group=GROUP):
        if point.name not in found and (made := _loaded(point)):  # ours cannot be replaced
            found[point.name] = made
    return found


def _loaded(point: EntryPoint) -> Entry | None:
    """The row of another package; None, with a warning, if it is broken: all others must run."""
    try:
        made = point.load()
        if not isinstance(made, Entry):
            raise TypeError(f"{point.value} is no mpiflow.simulation.catalogue.Entry")
        _load(made.options)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        warnings.warn(f"system {point.name!r} of {GROUP} is left out: {why}", stacklevel=2)
        return None
    return made


def entry(system: str) -> Entry:
    """That of a system.

    Raises
    ------
    InputError : there is none of that name
    """
    known = systems()
    if system not in known:
        hint = did_you_mean(system, known) or "Name it: system = 'ising', or --system ising."
        raise InputError("system", system, f"one of {', '.join(known)}", hint)
    return known[system]


def options(system: str) -> type[RunConfig]:
    """The options of a system, a pydantic model."""
    return _load(entry(system).options)


def build(config: RunConfig, comm: MPI.Intracomm, point: Checkpoint | None = None) -> Built:
    """The simulation of a configuration; in its initial state without a checkpoint. Collective."""
    return _load(entry(config.system).build)(config, comm, point)


def simulation_of(system: object) -> Callable[..., Simulated] | None:
    """What makes a system into a simulation; None of something else, as a rule of one's own."""
    bases = {f"{base.__module__}:{base.__qualname__}" for base in type(system).__mro__}
    found = (entry for entry in systems().values() if entry.system in bases)
    known = next(found, None)
    return None if known is None else _load(known.simulation)


def plan(config: RunConfig, ranks: int) -> Any:
    """A :class:`~mpiflow.simulation.sizes.Plan`, without the warnings of this machine."""
    return _load(entry(config.system).plan)(config, ranks)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    with explained():
        return getattr(import_module(module), name)
