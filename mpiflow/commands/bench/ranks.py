"""All ranks together against one alone, and a model of many of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from mpiflow import initial
from mpiflow.commands.bench.meter import Meter
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.mpi import MPI
from mpiflow.core.packed import BAND, WORD_SITES, PackedBlock
from mpiflow.solvers.spins.sublattice import PASSES, Sublattice
from mpiflow.systems.ising import Ising

#: Side of a large lattice, and how many ranks share it in slabs of two bands.
LARGE, MANY = 16384, 1024
#: Turns of a measurement, in each of which one rank, all apart and all together work for a few
#: milliseconds: other work on the machine slows them alike, and leaves many turns alone.
TURNS = 101


def rows_to_each(lattice: Lattice, ranks: int) -> Layout:
    """Whole rows of words to every rank."""
    return Layout(lattice, (ranks, 1), (BAND, WORD_SITES), partial=True)


def scaling(meter: Meter, system: Ising, small: bool) -> None:
    """Weak scaling of the packed kernel, as many sites on each rank; and what that means for many.

    A pass over S sites a rank takes S / 2r + o: r updates per time of a core when all work, o for
    messages and for waiting, the difference of all ranks together and apart. Any number of ranks
    has two neighbours each.
    """
    shapes = [(side, side) for side in ((128, 256) if small else (256, 512, 1024, 2048))]
    slab = (2 * BAND, 256 if small else LARGE)  # what one of many ranks has
    overheads = {}
    for shape in (*shapes, slab):
        overheads[shape] = _weak_scaling(meter, system, shape, math.inf)
    if not small:
        _weak_scaling(meter, system, shapes[-1], 0.25)
    apart, overhead = overheads[slab]
    for ranks in (64, MANY):
        work = apart * MANY / ranks
        efficiency = 100 * work / (work + overhead)
        meter.record(f"model: {LARGE}^2 on {ranks} ranks, efficiency", "%", [efficiency])
    for shape in shapes[1:]:
        apart, overhead = overheads[shape]
        efficiency = 100 * apart / (apart + overhead)
        case = f"model: {_named(shape)} a rank on 10000 ranks, efficiency"
        meter.record(case, "%", [efficiency])


def _named(shape: tuple[int, int]) -> str:
    return f"{shape[0]}^2" if shape[0] == shape[1] else f"{shape[0]} x {shape[1]}"


def _weak_scaling(
    meter: Meter, system: Ising, shape: tuple[int, int], dt: float
) -> tuple[float, float]:
    """Rows of one shape of tiles; (seconds of a pass on all ranks apart, more together)."""
    ranks = meter.comm.size
    alone = PackedBlock.tile(rows_to_each(Lattice(shape), 1), MPI.COMM_SELF)
    whole = Lattice((shape[0] * ranks, shape[1]))
    together = PackedBlock.tile(rows_to_each(whole, ranks), meter.comm)
    from_python = PackedBlock.tile(rows_to_each(whole, ranks), meter.comm)
    vars(from_python)["lines"] = None  # as where the functions of MPI are not found
    for block in (alone, together, from_python):
        initial.independent(block, seed=1)
    solver = Sublattice(system, dt, compile_in=True)

    def on(block: PackedBlock, works: bool = True) -> Callable[[int], float]:
        def spent(steps: int) -> float:
            """Seconds of a pass on the slowest rank."""
            meter.comm.Barrier()
            start = time.perf_counter()
            if works:
                solver.chain(block, steps, seed=1, opening=True)
            end = time.perf_counter() if works else start
            done = meter.comm.Ibarrier()
            while not (works or done.Test()):
                time.sleep(1e-4)  # MPI would wait busily, beside the one that is measured
            done.Wait()
            return meter.comm.allreduce(end - start, op=MPI.MAX) / (PASSES * steps)

        return spent

    ways = on(alone, meter.comm.rank == 0), on(alone), on(together), on(from_python)
    for spent in ways:
        spent(1)  # compiles
    steps = max(1, math.ceil(meter.seconds / 50 / (PASSES * ways[0](10))))
    turns = 1 if meter.seconds == 0 else TURNS
    times = np.empty((len(ways), turns))
    order = np.random.default_rng(1)  # the same on all ranks
    for turn in range(turns):
        for i in order.permutation(len(ways)):  # a scheduler would always stop the same one
            times[i, turn] = ways[i](steps)
    one, apart, all_of_them, _ = times
    case, updates = f"{_named(shape)} a rank, dt={dt:g}", math.prod(shape) / 2
    rates = 1e-9 * updates / times * np.array([[1], [ranks], [ranks], [ranks]])
    names = "one rank alone", "all ranks without messages", "all ranks", "messages from Python"
    for name, row in zip(names, rates, strict=True):
        meter.record(f"{case}, {name}", "updates/ns", row.tolist())
    for name, row in (("one rank alone", ranks * one), ("all ranks without messages", apart)):
        ratios = row / all_of_them
        meter.record(f"{case}, all ranks / {name}", "times", ratios.tolist())
    more = np.maximum(0.0, all_of_them - apart)
    meter.record(f"model: overhead of a pass, {case}", "us", (1e6 * more).tolist())
    return float(np.median(apart)), max(0.0, float(np.median(all_of_them - apart)))
