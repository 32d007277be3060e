"""What a GPU could do with vacancies in tiles: work that a CPU counts, laid out in time.

    python tests/tools/alloy_budget.py 8,8,128:512 8,8,8:512:16 ...

A case is a tile, a number of vacancies among 524,288 atoms of the alloy at 2000 K, and how many
such lattices there are, one unless it is said. Some windows
are made on the CPU, and for each tile in each pass is counted how many vacancies were looked at,
how many networks were evaluated, and how many hops were made. Each of these takes the cycles of
:data:`CYCLES`, estimates that are explained in docs/performance.md. Blocks of threads take tiles in
the order of the kernel (:mod:`mpiflow.solvers.vacancy.cuda_kernels`): when all of a class are done
with the last pass, as where each pass is a launch, or when those around are. Nothing is measured.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mpiflow import AlloySimulation, counts_of, load_barrier_model, random_alloy
from mpiflow.core.lattice import Shape
from mpiflow.core.noise import stream_key
from mpiflow.solvers.event_limits import NO_LIMIT
from mpiflow.solvers.vacancy import tiled
from mpiflow.solvers.vacancy.events import events
from mpiflow.solvers.vacancy.rates import table
from mpiflow.solvers.vacancy.window_choice import AIM
from mpiflow.systems.alloy import Alloy

#: Cycles of a block: a task and the waiting for its neighbours, a row of points of the lattice that
#: a thread reads and what is read of it, a vacancy looked at, the network, a hop; and between two
#: passes that wait for all.
CYCLES: dict[str, float] = {
    "task": 2000, "row": 600, "point": 10, "look": 2100, "network": 5500, "hop": 2000, "pass": 2000,
}  # fmt: skip
GIGAHERTZ = 1.755
#: Blocks that run at once: three of 168 registers and 35 KB on each of 132 multiprocessors.
BLOCKS, THREADS = 396, 128
#: Hops/s of one core, with the same windows.
CORE = 1e6 / 2.3
#: A launch from Python and what comes back, s: a guess.
LAUNCH = 1e-4


class Counted(NamedTuple):
    """The work of some windows.

    Attributes
    ----------
    passes : of each pass, (T, 4): vacancies looked at, networks, hops, number of the tile
    windows : how many of them
    grid, tile : tiles of the lattice along each axis, and points of one
    """

    passes: list[np.ndarray]
    windows: int
    grid: Shape
    tile: Shape


def counted(
    tile: Shape, vacancies: int, windows: int, cells: int = 64, aim: float = AIM, seed: int = 1
) -> Counted:
    """Make windows of so many hops a vacancy on the CPU, tile after tile."""
    model = load_barrier_model("default").parameters
    run = AlloySimulation(Alloy(2000.0), model, (cells,) * 3, solver="tiled", tile=tile, seed=seed)
    run.set_species(random_alloy, counts=counts_of(run.sites, vacancies))
    run.advance_hops(20 * vacancies)
    assert run.choice is not None
    block, solver, width = run.block, run.solver, run.choice.last * aim / AIM
    solver.prepare(block)
    plan, key, out = solver._plan, stream_key(seed, "tiled-vacancy"), []
    grid = tuple(s // n for s, n in zip(plan.evaluator.law.sides, tile, strict=True))
    # As on a GPU, each tile has a table of known rates.
    room = -(-vacancies // int(np.prod(grid)))
    known: dict[int, Any] = {}
    # Tables are filled by some windows that do not count.
    for number in range(-2 * len(plan.passes), windows * len(plan.passes)):
        group, share = plan.passes[number % len(plan.passes)]
        tiles = plan.inner[group]
        keys = key[0], key[1], np.uint64(2**20 + number)
        rows = np.zeros((len(tiles.table), 4), np.int64)
        for row, one in zip(rows, tiles.table, strict=True):
            mine = known.setdefault(int(one[3]), table(plan.evaluator.law.barriers, room))
            before, hops = mine.counts.copy(), np.zeros(1, np.int64)
            tiled._pass(
                block.array[0], block.origins[0] - block.halo, tiles._replace(table=one[None]),
                plan.evaluator._replace(table=mine), plan.lists, keys, 0.0, share * width,
                plan.near, hops, NO_LIMIT, NO_LIMIT, events(0), plan.records, events(0),
                np.array([0, -1, 0, 0, 0]), np.array([0.0, 1.0]),
            )  # fmt: skip
            row[:] = *(mine.counts - before), hops[0], one[3]
        if number >= 0:
            out.append(rows)
    return Counted(out, windows, grid, tile)


def seconds(work: Counted, members: int, *, neighbours: bool) -> float:
    """The time until it is done for so many lattices, if tiles wait for those around, or for all.

    Each lattice has the work of the one that was counted.
    """
    free = [0.0] * BLOCKS
    # Rows of points at which a vacancy may use a bond of the tile: each thread takes some.
    x, y, z = (n + 1 if g > 1 else n for n, g in zip(work.tile, work.grid, strict=True))
    listing = -(-x * y // THREADS) * (CYCLES["row"] + z * CYCLES["point"])
    costs = np.array([CYCLES["look"], CYCLES["network"], CYCLES["hop"]])
    done, end = np.zeros((members, *work.grid)), 0.0
    for rows in work.passes:
        ready = done if neighbours else np.full(done.shape, end + CYCLES["pass"])
        for axis in (1, 2, 3):
            ready = np.maximum.reduce([np.roll(ready, by, axis) for by in (-1, 0, 1)])
        begin, after = ready.reshape(members, -1), done.reshape(members, -1)
        takes = CYCLES["task"] + listing * (1 + (rows[:, 0] > 0)) + rows[:, :3] @ costs
        for member in range(members):
            for cycles, number in zip(takes.tolist(), rows[:, 3], strict=True):
                ended = max(heapq.heappop(free), begin[member, number]) + cycles
                heapq.heappush(free, ended)
                after[member, number], end = ended, max(end, ended)
    return end / GIGAHERTZ * 1e-9


def row(work: Counted, vacancies: int, members: int) -> str:
    """A line of the table, as Markdown."""
    every = np.concatenate(work.passes)
    hops = every[:, 2].sum()
    by_class, by_neighbours = (seconds(work, members, neighbours=how) for how in (False, True))
    launched = by_class + LAUNCH * len(work.passes), by_neighbours + LAUNCH * work.windows
    rates = [members * hops / time for time in (*launched, by_neighbours)]
    cells = [
        " x ".join(map(str, work.tile)),
        f"{members} x {vacancies}",
        f"{hops / work.windows / vacancies:.1f}",
        f"{every[:, 0].sum() / hops:.2f}",
        f"{every[:, 1].sum() / hops:.2f}",
        *(f"{rate * 1e-6:.1f} ({rate / CORE:.0f})" for rate in rates),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| tile | lattices x vacancies | hops of each a window | looks a hop | networks a hop "
    "| a class a launch | a window a launch | 64 windows a launch |\n|" + "---|" * 8
)


def main(cases: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("cases", nargs="+", metavar="TILE:VACANCIES[:MEMBERS]")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--hops", type=float, default=AIM, help="of a vacancy in a window")
    parser.add_argument("--cells", type=int, default=64, help="of two atoms, along each axis")
    parser.add_argument("--network", type=float, help="cycles of one, in place of CYCLES")
    options = parser.parse_args(cases)
    CYCLES["network"] = options.network or CYCLES["network"]
    print(HEAD)
    for case in options.cases:
        tile, vacancies, members = f"{case}:1".split(":")[:3]
        x, y, z = map(int, tile.split(","))
        work = counted((x, y, z), int(vacancies), options.windows, options.cells, options.hops)
        print(row(work, int(vacancies), int(members)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
