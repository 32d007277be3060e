"""What ``mpiflow bench field`` measures: time of a step of a stochastic field, a block and core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from mpiflow.core.mpi import MPI
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import ExactLaw, Structure
from mpiflow.systems.kac import kac_kernel

#: Blocks a side, and sites a side of a block: small blocks, and those of 16384^2 spins.
SIZE, BLOCKS = 512, (8, 128)

Case = tuple[str, str, float, Callable[[int], int]]


def cases(comm: MPI.Intracomm, small: bool) -> Iterator[Case]:
    """Name, unit, what to scale the time of a round with, and work of each case."""
    size = 16 if small else SIZE
    for structure in get_args(Structure):
        for block in BLOCKS:
            kernel = kac_kernel(0.5 * block)
            law = ExactLaw(1.25, structure)
            field = StochasticField(law, kernel, (size, size), block=block, comm=comm)
            field.set(0.3)

            def work(rounds: int, field: StochasticField = field) -> int:
                field.advance(rounds)
                return rounds

            name = f"{size}^2 blocks of {block}^2, {structure}"
            yield name, "ns/block/core", 1e9 * comm.size / size**2, work
