r"""How spreads of short-range order fall with size: one run of 33.5 million sites, cut into blocks.

NbMoTa relaxes from a random state of 256^3 cells with a vacancy for each 1024 sites (the tiled
solver). Every look cuts the lattice into blocks of 8^3 to 64^3 cells, each bond in that of its
corner, so that the blocks add up to the whole. Blocks are open: atoms come and go over their
edges, while a closed lattice of the same size has so many of each. What the numbers of atoms
explain of the numbers of like pairs, by linear regression, is therefore taken away: what is left
is the spread of a closed lattice, up to terms of the edges [Lebowitz, Percus, Verlet, Phys. Rev.
153, 250 (1967)]. An ensemble of closed lattices of 8192 sites stands beside it.

A spread of M blocks is known to 1 / sqrt(2 M). The memory of the initial state is the correlation
of what is left with the same of the first look. Writes into --out: results.json, table.md,
alloy_spread.png, run.h5 and closed.h5, which go on if they were stopped. Full cost: 6 minutes of a
core.

    mpirun -n 2 .venv/bin/python drivers/alloy_spread.py --out results/alloy_spread
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.alloy import PAIRS, bonds_of_blocks, joined, left_over, spread_of
from mpiflow.experiments.options import add_barriers, at_least, driver_parser
from mpiflow.experiments.results import Report, results_directory
from mpiflow.experiments.style import figure
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.simulate import simulate

LIKE = [PAIRS.index(name) for name in ("NbNb", "MoMo", "TaTa")]
#: Cells a side of the least blocks, and of the closed lattices, which all sizes are compared with.
LEAST, CLOSED = 8, 16
#: Blocks at least, of which a spread is told.
FEWEST = 32


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, looks=1, members=2)
        if options.cells % LEAST or options.cells < 4 * LEAST:
            allowed = f"a multiple of {LEAST} from {4 * LEAST} on"
            raise InputError("cells", options.cells, allowed, "Try 256.")
    out = results_directory(options.out, comm, options.device)
    run(options, out / "run.h5", comm, cells=options.cells, solver="tiled", species=True)
    run(options, out / "closed.h5", comm, cells=CLOSED, members=options.members, seed=1)
    if comm.rank == 0:
        write(out, options)


def run(
    options: argparse.Namespace, path: Path, comm: MPI.Intracomm, *, cells: int, **more: Any
) -> None:
    """A run that goes on where it was stopped, or ended earlier. Collective."""
    done = False
    if comm.rank == 0 and path.is_file():
        with Trajectory(path) as file:
            done = file.complete and file.time[-1] > options.time * (1 - 1e-9)
    if not comm.bcast(done):
        settings = {
            "cells": cells, "vacancies": max(1, 2 * cells**3 // 1024),
            "temperature": options.temperature, "time": options.time,
            "save_every": options.time / options.looks, "barriers": options.barriers,
            "axis_order": options.axis_order, "seed": 0, "resume": True, "quiet": options.smoke,
        }  # fmt: skip
        simulate("alloy", comm, changed={"time"}, out=str(path), **(settings | more))


# -- what is left behind -------------------------------------------------------------------


def write(out: Path, options: argparse.Namespace) -> None:
    """Print and write the tables, results.json and the figure."""
    report, kinds = Report(out), 1 + 3
    with Trajectory(out / "run.h5") as file, Trajectory(out / "closed.h5") as closed:
        times, hops = file.time, int(file["hops"][-1])
        spreads: list[dict[int, np.ndarray]] = []
        memories, whole, start = [], [], np.zeros(0)
        for look in range(len(times)):
            bonds, side = None, LEAST
            found: dict[int, np.ndarray] = {}
            while side <= CLOSED or (options.cells // side) ** 3 >= FEWEST:
                bonds = (
                    bonds_of_blocks(np.asarray(file["species"][look]), options.cells, side, kinds)
                    if bonds is None
                    else joined(bonds)
                )
                rest = left_over(bonds)
                found[side] = spread_of(rest)
                if side == CLOSED:
                    start = rest if look == 0 else start
                    both = (rest * start).mean(axis=0)
                    size = np.sqrt((rest**2).mean(axis=0) * (start**2).mean(axis=0))
                    memories.append(both / size)
                side *= 2
            spreads.append(found)
            whole.append(np.asarray(file["sro"][look])[LIKE])
        members = np.asarray(closed["sro"])[..., LIKE].std(axis=1, ddof=1)
    names = [PAIRS[i] for i in LIKE]
    report.table(
        "time [s]", "sites", "blocks", *(f"{n} spread" for n in names),
        "spread n^(1/2), of 8192 sites", "error",
    )  # fmt: skip
    for time, found, alone in zip(times, spreads, members, strict=True):
        for side, spread in found.items():
            sites, blocks = 2 * side**3, (options.cells // side) ** 3
            ratio = spread * math.sqrt(sites) / (found[CLOSED] * math.sqrt(2 * CLOSED**3))
            error = math.sqrt((1 / blocks + (CLOSED / options.cells) ** 3) / 6) * (side != CLOSED)
            add(report, f"{time:.3g}", sites, f"{blocks}", names, spread, ratio.mean(), error)
        ratio, error = alone / found[CLOSED], 1 / math.sqrt(6 * options.members)
        name = f"{options.members} closed"
        add(report, f"{time:.3g}", 2 * CLOSED**3, name, names, alone, ratio.mean(), error)
    slopes(report, times, spreads, options)
    report.table("time [s]", *(f"{n} mean" for n in names), *(f"{n} memory" for n in names))
    for time, value, memory_of in zip(times, whole, memories, strict=True):
        cells = [f"{x:.5f}" for x in value] + [f"{x:.3f}" for x in memory_of]
        report.row(f"{time:.3g}", *cells)
        for name, mean, left in zip(names, value, memory_of, strict=True):
            report.add(f"{time:.3g} s {name} mean", mean)
            report.add(f"{time:.3g} s {name} memory", left)
    report.say(
        f"{2 * options.cells**3} sites, {max(1, 2 * options.cells**3 // 1024)} vacancies, "
        f"{options.temperature:g} K, barriers {options.barriers}, {hops:.4g} hops. "
        "Ratios are means of three pairs; their errors those of so many blocks, taken as "
        "independent. Memory: correlation of blocks of 8192 sites with the first look."
    )
    report.write()
    draw(out / "alloy_spread.png", times, spreads, names)


def add(
    report: Report, time: str, sites: int, blocks: str, names: list[str],
    spread: np.ndarray, ratio: float, error: float,
) -> None:  # fmt: skip
    """A row of the table and its entries."""
    cells = [f"{x:.5f}" for x in spread]
    report.row(time, f"{sites}", blocks, *cells, f"{ratio:.3f}", f"{error:.3f}")
    for name, value in zip(names, spread, strict=True):
        report.add(f"{time} s {sites} {name} spread, {blocks} blocks", value)
    report.add(f"{time} s {sites} ratio, {blocks} blocks", ratio, error, exact=1.0)


def slopes(
    report: Report,
    times: np.ndarray,
    spreads: list[dict[int, np.ndarray]],
    options: argparse.Namespace,
) -> None:
    """The exponent of each look: a fit of all sizes from 8192 sites on, with their errors."""
    report.table("time [s]", "exponent of n", "error")
    for time, found in zip(times, spreads, strict=True):
        sides = [side for side in found if side >= CLOSED] or list(found)
        x = np.log([2.0 * side**3 for side in sides])
        y = np.array([np.log(found[side]).mean() for side in sides])
        weight = np.array([6.0 * (options.cells // side) ** 3 for side in sides])
        centre = (weight * x).sum() / weight.sum()
        slope = (weight * (x - centre) * y).sum() / (weight * (x - centre) ** 2).sum()
        error = 1 / math.sqrt((weight * (x - centre) ** 2).sum()) if len(sides) > 1 else math.nan
        report.row(f"{time:.3g}", f"{slope:.4f}", f"{error:.4f}")
        report.add(f"{time:.3g} s exponent", slope, error, exact=-0.5)


def draw(
    path: Path, times: np.ndarray, spreads: list[dict[int, np.ndarray]], names: list[str]
) -> None:
    """Spread times the root of the size, at the last look."""
    page = figure(4.6, 3.6)
    axes = page.subplots()
    sites = np.array([2 * side**3 for side in spreads[-1]])
    for i, name in enumerate(names):
        values = [spread[i] for spread in spreads[-1].values()]
        axes.loglog(sites, values, "o-", label=name)
    axes.set(xlabel="sites", ylabel="spread", title=f"blocks of one run, {times[-1]:.3g} s")
    axes.legend()
    page.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/alloy_spread")
    add = parser.add_argument
    add("--cells", type=int, default=256, help="cells a side")
    add("--temperature", type=float, default=2000.0, help="K")
    add("--time", type=float, default=1e-7, help="s; half-times are 4e-7 to 5e-7")
    add("--looks", type=int, default=1, help="looks after the first")
    add("--members", type=int, default=256, help="closed lattices of 8192 sites")
    add_barriers(parser)
    options = parser.parse_args()
    if options.smoke:
        options.cells, options.time, options.looks, options.members = 32, 2e-9, 1, 4
    return options


if __name__ == "__main__":
    main()
