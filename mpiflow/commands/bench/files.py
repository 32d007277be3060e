"""What ``mpiflow bench files`` measures: frames of spins as bits, and checkpoints."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from mpiflow import initial
from mpiflow.core.mpi import MPI
from mpiflow.files import checkpoint
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.simulation.base import Content
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.systems.ising import Ising

#: Sites a side.
SIZE = 16384

Case = tuple[str, str, float, Callable[[int], int]]


def cases(comm: MPI.Intracomm, small: bool) -> Iterator[Case]:
    """Name, unit, what to scale the time of a round with, and work of each case.

    The files are in the temporary folder, ``TMPDIR``. Spins are those after two sweeps at
    T = 2.5, which gzip hardly makes smaller, and all up.
    """
    size = 256 if small else SIZE
    sim = Simulation(Ising(2.5), size, dt=math.inf, seed=1, comm=comm, granularity=8)
    sim.set_spins(initial.shuffled)
    sim.advance(2.0)
    with tempfile.TemporaryDirectory() as own:
        out = Path(comm.bcast(own)) / "bench.h5"
        frames = _Frames(sim, out)
        yield f"{size}^2, frame of bits", "s", 1.0, frames.written
        yield f"{size}^2, frame of bits, sealed", "s", 1.0, frames.sealed

        def write(rounds: int) -> int:
            for _ in range(rounds):
                texts = {"config_json": "{}", "facts_json": "{}", "run": "bench"}
                checkpoint.write(out, sim, texts, {})
            return rounds

        def load(rounds: int) -> int:
            for _ in range(rounds):
                point = checkpoint.newest(out, comm)
                if point is not None:
                    checkpoint.load(point, sim)
            return rounds

        yield f"{size}^2, checkpoint written", "s", 1.0, write
        yield f"{size}^2, checkpoint read", "s", 1.0, load
        sim.set_spins(initial.uniform_up)
        yield f"{size}^2, all up, frame of bits, sealed", "s", 1.0, _Frames(sim, out).sealed
        comm.Barrier()


class _Frames:
    """Frames of one state, in a file that is made anew for each round of measurements."""

    def __init__(self, sim: Simulation, out: Path) -> None:
        self.sim, self.out = sim, out
        self.content: Content = sim.content(spin_bits=True)

    def written(self, rounds: int) -> int:
        return self._write(rounds, complete=False)

    def sealed(self, rounds: int) -> int:
        return self._write(rounds, complete=True)

    def _write(self, rounds: int, complete: bool) -> int:
        content, about = self.content, {"system": "ising", "config_json": "{}", "seed": 1}
        writer = TrajectoryWriter(
            self.out,
            comm=self.sim.comm,
            dims=content.dims,
            variables=content.variables,
            coordinates=content.coordinates,
            attributes={**about, "rng": self.sim.rng, "decomposition_invariant": True},
            overwrite=True,
            flush_interval=0.0,
        )
        for number in range(rounds):
            writer.append(float(number), content.frame().values)
        writer.close(complete=complete)
        return rounds
