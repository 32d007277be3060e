"""What ``mpiflow bench spin-diffusion`` measures: chains of two species, as process and as laws."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mpiflow.core.mpi import MPI
from mpiflow.experiments.chains import START, feature_time
from mpiflow.solvers.binary_chain.averaged import AveragedSpins
from mpiflow.solvers.binary_chain.langevin import SpinDiffusion
from mpiflow.solvers.binary_chain.mean_field import MeanFieldChains
from mpiflow.systems.binary_chain import BinaryChain

#: Chains of each rank, of the stochastic process.
CHAINS = 64
EPSILON, DT = 0.05, 0.0125

Case = tuple[str, str, float, Callable[[int], int]]


def cases(comm: MPI.Intracomm, small: bool) -> Iterator[Case]:
    """Name, unit, what to scale the time of a round with, and work of each case."""
    short, long, chains, end = (6, 8, 2, 1.0) if small else (32, 500, CHAINS, 1e5)
    for sites in (short, long):
        system = BinaryChain(sites)
        process = SpinDiffusion(
            system, epsilon=EPSILON, dt=DT, members=chains * comm.size, comm=comm
        )
        process.set(system.alternating())

        def steps(rounds: int, process: SpinDiffusion = process) -> int:
            process.advance(rounds)
            return rounds

        name = f"{chains} chains of {sites} sites, langevin"
        yield name, "ns/site/step/core", 1e9 / (chains * sites), steps

    system = BinaryChain(short)
    averaged = AveragedSpins(system, members=chains * comm.size, comm=comm)
    averaged.set(system.alternating())

    def attempts(rounds: int) -> int:
        # Clocks of members differ: nothing holds them back but the number of attempts.
        averaged.advance(1e300, most=rounds)
        return rounds

    yield f"{chains} chains of {short} sites, averaged", "us/attempt/core", 1e6 / chains, attempts

    def run(rounds: int) -> int:
        for _ in range(rounds):
            laws = MeanFieldChains(BinaryChain(short, beta=160.0), "mean-field")
            laws.set(laws.system.alternating(START))
            laws.advance(end)
        return rounds

    yield f"{short} sites to time {end:g}, mean-field", "s", 1.0, run

    for sites in (short, long) if small else (short, long, 2000):

        def entry(rounds: int, sites: int = sites) -> int:
            for _ in range(rounds):
                for model in ("mean-field", "free-energy"):
                    feature_time(BinaryChain(sites, beta=160.0), model)
            return rounds

        yield f"{sites} sites, an entry of Table 5.2", "s", 1.0, entry
