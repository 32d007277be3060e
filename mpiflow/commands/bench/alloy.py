"""What ``mpiflow bench alloy`` measures: hops of vacancies per second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from mpiflow.core.mpi import MPI
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.simulation.alloy.barrier_model import BarrierModel
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.solvers.vacancy.absorbing import AbsorbingKMC
from mpiflow.solvers.vacancy.barrier_kernels import evaluate_many
from mpiflow.systems.alloy import Alloy
from mpiflow.systems.barriers import SITES

#: Cells a side and vacancies: the sizes of arXiv:2511.12842, a vacancy for each 1024 sites.
SIZES = ((8, 1), (16, 8), (64, 512))
#: Points along each axis of a tile on a GPU.
TILE_ON_GPU = 8
#: Hops, or stays in basins, before anything is measured, so that vacancies have left their random
#: places.
WARM_UP = 20_000
#: Temperatures in K of the solver for the cold.
COLD = (2000.0, 800.0, 650.0, 500.0, 400.0)

Case = tuple[str, str, Callable[[int], int]]


def cases(comm: MPI.Intracomm, model: BarrierModel, device: str, small: bool) -> Iterator[Case]:
    """Name, unit and work of each case; ``work(n)`` does n rounds and returns what was done."""
    sizes = ((4, 1),) if small else SIZES
    if comm.size == 1 and device == "cpu":
        yield f"barriers {model.name}", "evaluations/s", _evaluations(model)
        for temperature in (2000.0, 800.0):
            for cells, vacancies in sizes:
                sim = _start(comm, model, temperature, cells, vacancies)
                sim.advance_hops(100 if small else WARM_UP)
                name = f"serial, {sim.sites} sites, {vacancies} vacancies, {temperature:g} K"
                yield f"{name}, {model.name}", "hops/s", _serial(sim)
        for temperature in COLD:
            for cells, vacancies in sizes[:2]:
                sim = _start(comm, model, temperature, cells, vacancies, solver="absorbing")
                work = _absorbing(sim)
                work(1 if small else WARM_UP // 500)
                name = f"absorbing, {sim.sites} sites, {vacancies} vacancies, {temperature:g} K"
                yield f"{name}, {model.name}", "hops/s", work
    cells, vacancies = (8 * comm.size, comm.size) if small else SIZES[-1]
    for temperature in (2000.0, 800.0):
        tiled: dict[str, Any] = {"solver": "tiled", "device": device}
        if device == "cuda":  # slabs would be too few to keep it busy
            tiled["tile"] = TILE_ON_GPU
        sim = _start(comm, model, temperature, cells, vacancies, **tiled)
        sim.advance_hops((1 if small else 5) * 2 * vacancies)
        name = f"tiled, {sim.sites} sites, {vacancies} vacancies, {temperature:g} K"
        # A small one is to be measured on a CPU, and to be seen to run in the simulator of a GPU.
        rounds = 50 if small and device == "cpu" else 1
        yield f"{name}, {model.name}", "hops/s", _tiled(sim, rounds * 2 * vacancies)


def _start(
    comm: MPI.Intracomm,
    model: BarrierModel,
    temperature: float,
    cells: int,
    vacancies: int,
    **options: Any,
) -> AlloySimulation:
    sim = AlloySimulation(
        Alloy(temperature, model.species), model.parameters, cells, comm=comm, **options
    )
    counts = counts_of(sim.sites, vacancies, elements=len(model.species))
    sim.set_species(random_alloy, counts=counts)
    return sim


def _evaluations(model: BarrierModel) -> Callable[[int], int]:
    types = np.random.default_rng(0).integers(1, len(model.species) + 1, (100, SITES), np.uint8)
    out = np.empty((len(types), 8), np.float32)

    def work(rounds: int) -> int:
        for _ in range(rounds):
            evaluate_many(model.parameters, types, out)
        return rounds * len(types)

    return work


def _serial(sim: AlloySimulation) -> Callable[[int], int]:
    def work(rounds: int) -> int:
        sim.advance_hops(sim.local_hops + 1000 * rounds)
        return 1000 * rounds

    return work


def _absorbing(sim: AlloySimulation) -> Callable[[int], int]:
    solver = sim.solver
    assert isinstance(solver, AbsorbingKMC)  # noqa: S101 - for the type checker

    def work(rounds: int) -> int:
        return int(solver.advance(sim.block, seed=sim.seed, most=500 * rounds)[0])

    return work


def _tiled(sim: AlloySimulation, hops: int) -> Callable[[int], int]:
    def work(rounds: int) -> int:
        before = sim.local_hops
        sim.advance_hops(sim.hops_made + rounds * hops)
        return sim.local_hops - before

    return work
