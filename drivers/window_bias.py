"""Bias of the tiled n-fold way against the serial one, by window: how large may a window be?

Quench from m = 0 to low temperature, where domains coarsen; the relative change of the
domain-wall density of the tiled solver against the exact serial one at the same times, from
independent lattices. Tiles of 8 sites, where every site is near an edge, magnify it. Writes
into --out: results.json, table.md.

    mpirun -n 2 .venv/bin/python drivers/window_bias.py --out results/window_bias
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from mpiflow import Ising, initial, metrics, observables
from mpiflow.core import parallel
from mpiflow.core.block import Block, gather_records
from mpiflow.core.lattice import split
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import Report, results_directory
from mpiflow.solvers.spins.nfold import NFold
from mpiflow.solvers.spins.tiled import TiledNFold

TIMES = (8.0, 20.0)
WINDOWS = (4.0, 2.0, 1.0, 0.5)

Solver = Callable[[Block, float], object]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, replicas=4 * comm.size)
    out = results_directory(options.out, comm, options.device)
    report = Report(out)
    report.table("T", "tile", "t", *(f"W = {w:g}" for w in WINDOWS))
    for temperature in options.temperatures:
        exact = walls(options, comm, 1, lambda seed, n, t=temperature: serial(t, seed, n))
        for tile in options.tiles:
            tiled = [
                walls(
                    options,
                    comm,
                    2,
                    lambda seed, n, t=temperature, w=w, tile=tile: windows(t, w, tile, seed),
                )
                for w in WINDOWS
            ]
            if comm.rank != 0:
                continue
            for i, time in enumerate(TIMES):
                mean, error = exact[:, i].mean(), metrics.standard_error(exact[:, i])
                cells = []
                for window, values in zip(WINDOWS, tiled, strict=True):
                    bias = 100 * (values[:, i].mean() / mean - 1)
                    stderr = 100 * np.hypot(metrics.standard_error(values[:, i]), error) / mean
                    cells.append(f"{bias:+.2f} ± {stderr:.2f}")
                    case = f"T={temperature:g} tile={tile} t={time:g} W={window:g}"
                    report.add(f"bias in percent, {case}", bias, stderr, exact=0.0)
                report.row(f"{temperature:g}", f"{tile}", f"{time:g}", *cells)
    if comm.rank == 0:
        report.write()


def walls(
    options: argparse.Namespace,
    comm: MPI.Intracomm,
    seed: int,
    make: Callable[[int, int], Solver],
) -> np.ndarray:
    """Domain-wall densities of all replicas at the times, (replicas, times), on rank 0."""
    start, stop = split(options.replicas, comm.size, comm.rank)
    rows = []
    for first in range(start, stop, 250):  # as many as fit the cache and memory
        members = np.arange(first, min(first + 250, stop))
        block = Block.periodic(
            np.ones((len(members), options.size, options.size), np.int8), members
        )
        initial.shuffled(block, seed=seed)
        solve = make(seed, len(members))
        densities = []
        for time in TIMES:
            solve(block, time)
            bonds = observables.spin_sums(block)[:, 1]
            densities.append(observables.domain_wall_density(bonds, options.size**2))
        rows.append(np.stack(densities, axis=1))
    gathered = gather_records(np.concatenate(rows), comm)
    return np.empty((0, len(TIMES))) if gathered is None else gathered


def serial(temperature: float, seed: int, boxes: int) -> Solver:
    solver = NFold(Ising(temperature), boxes)
    return lambda block, time: solver.advance(block, seed=seed, until=time)


def windows(temperature: float, window: float, tile: int, seed: int) -> Solver:
    solver, done = TiledNFold(Ising(temperature), window, tile), [0]

    def advance(block: Block, time: float) -> None:
        steps = round(time / window) - done[0]
        solver.advance(block, steps, seed=seed, first_step=done[0])
        done[0] += steps

    return advance


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/window_bias")
    add = parser.add_argument
    add("--size", type=int, default=128, help="sites a side")
    add("--replicas", type=int, default=2000, help="lattices for each solver")
    add("--temperatures", type=float, nargs="+", default=[1.0, 1.5], help="below Tc")
    add("--tiles", type=int, nargs="+", default=[64, 8], help="sides of the tiles")
    options = parser.parse_args()
    if options.smoke:
        options.size, options.replicas, options.tiles = 32, 16, [8]
        options.temperatures = [1.0]
    return options


if __name__ == "__main__":
    main()
