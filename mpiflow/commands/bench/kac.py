"""What ``mpiflow bench kac`` measures: time of a step for each site and core, and of an event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mpiflow import initial
from mpiflow.core.mpi import MPI
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.systems.kac import Kac

#: Standard deviations of the coupling in sites, and their lattice.
GAMMAS, SIZE = (0.0, 1.0, 4.0, 16.0, 64.0, 256.0), 4096

Case = tuple[str, str, float, Callable[[int], int]]


def cases(comm: MPI.Intracomm, device: str, small: bool) -> Iterator[Case]:
    """Name, unit, what to scale the time of a round with, and work of each case."""
    size, gammas = (64, (0.0, 4.0)) if small else (SIZE, GAMMAS)
    for gamma in gammas:
        yield _steps(comm, size, gamma, device=device)
    if device != "cpu":
        return
    yield _steps(comm, size, gammas[-2], method="fft")
    yield _steps(comm, size, gammas[-2], solver="midpoint")
    if comm.size == 1:
        for gamma in (2.0, 4.0):
            sim = _start(comm, 64 if small else 128, gamma, solver="gillespie")
            yield f"{_name(sim)}, gillespie", "us/event", 1e6 / 1000, _events(sim)


def _start(comm: MPI.Intracomm, size: int, gamma: float, **options: Any) -> KacSimulation:
    sim = KacSimulation(Kac(1.0, gamma, 0.2), size, seed=1, comm=comm, **options)
    sim.set_spins(initial.shuffled, magnetization=0.4)
    return sim


def _name(sim: KacSimulation) -> str:
    return f"{sim.lattice.shape[0]}^2, gamma={sim.system.gamma:g}"


def _steps(comm: MPI.Intracomm, size: int, gamma: float, **options: Any) -> Case:
    sim = _start(comm, size, gamma, tau=0.05, **options)

    def work(rounds: int) -> int:
        sim.advance(0.05 * rounds)
        return rounds

    how = f"{sim.solver.name}, {options['method']}" if "method" in options else sim.solver.name
    scale = 1e9 * comm.size / sim.lattice.sites
    return f"{_name(sim)}, {how}", "ns/site/core", scale, work


def _events(sim: KacSimulation) -> Callable[[int], int]:
    def work(rounds: int) -> int:
        sim.solver.advance(sim.block, seed=1, flips=1000 * rounds)  # type: ignore[call-arg,arg-type]
        return rounds

    return work
