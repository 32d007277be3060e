"""Bias of the tiled solver of vacancies against the serial one, by window and tile.

NbMoTa relaxing from random states of 65,536 sites at 2000 K: short-range order, hops of a
vacancy, sites that hold another species than at first, and mean square displacements of
vacancies and atoms (tracer diffusion, from the logs of all hops), as relative changes against
the exact solver. Windows are chosen during the run, for the hops of a vacancy that are given.
Writes into --out: results.json, table.md.

    mpirun -n 2 .venv/bin/python drivers/alloy_window.py --out results/alloy_window
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiflow import metrics
from mpiflow.core import parallel
from mpiflow.experiments.alloy import PAIRS
from mpiflow.experiments.options import add_barriers, at_least, driver_parser, list_of
from mpiflow.experiments.results import Report, farm, results_directory
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.simulation.alloy.barrier_model import BarrierModel, load_barrier_model
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.solvers.vacancy.events import Events
from mpiflow.solvers.vacancy.hop_log import Tracers
from mpiflow.systems.alloy import Alloy, short_range_order

QUANTITIES = [
    *(f"SRO {pair}" for pair in PAIRS),
    "hops of a vacancy",
    "sites changed",
    "r^2 of vacancies",
    *(f"r^2 of {element}" for element in ("Nb", "Mo", "Ta")),
]
#: The windows of a pair of neighbours divide each other, so that the order can be seen.
SERIAL = (0, 0.0)


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, seeds=2)
        model = load_barrier_model(options.barriers, options.axis_order)
    out = results_directory(options.out, comm, options.device)
    cases = [SERIAL, *((tile, w) for tile in options.tiles for w in options.windows)]
    tasks = [(*case, seed) for seed in range(options.seeds) for case in cases]
    found = farm(tasks, lambda task: run(options, model, *task), comm)
    if comm.rank > 0:
        return
    exact = np.array([found[*SERIAL, seed] for seed in range(options.seeds)])
    mean, error = exact.mean(axis=0), exact.std(axis=0, ddof=1) / np.sqrt(options.seeds)
    report = Report(out)
    report.table("tile", "window [hops]", *QUANTITIES)
    serial = [f"{m:.4g} ± {e:.2g}" for m, e in zip(mean, error, strict=True)]
    report.row("serial", "", *serial)
    for tile, window in cases[1:]:
        values = np.array([found[tile, window, seed] for seed in range(options.seeds)])
        cells = []
        for i, name in enumerate(QUANTITIES):
            # The same initial states: the difference of pairs has the smaller error.
            ratio = 100 * (values[:, i] - exact[:, i]) / abs(mean[i])
            bias, stderr = float(ratio.mean()), metrics.standard_error(ratio)
            cells.append(f"{bias:+.2f} ± {stderr:.2f} %")
            case = f"tile {tile}, window {window:g} hops"
            report.add(f"bias in percent, {case}, {name}", bias, stderr, exact=0.0)
        report.row(f"{tile}", f"{window:g}", *cells)
    report.say(
        f"{2 * options.cells**3} sites, {options.temperature:g} K, to {options.time:g} s, "
        f"{options.seeds} seeds, barriers {model.name}, r^2 in (half a lattice constant)^2."
    )
    report.write()


def run(
    options: argparse.Namespace, model: BarrierModel, tile: int, window: float, seed: int
) -> np.ndarray:
    """All quantities at the end of one run; tile 0 is the serial solver."""
    sim = AlloySimulation(
        Alloy(options.temperature, model.species),
        model.parameters,
        options.cells,
        seed=seed,
        comm=MPI.COMM_SELF,
        **({"solver": "tiled", "tile": tile} if tile else {}),
    )
    vacancies = options.vacancies or max(1, sim.sites // 1024)
    sim.set_species(random_alloy, counts=counts_of(sim.sites, vacancies))
    if tile:
        sim.choose_windows(window)
    tracers, before = Tracers(sim.block.spins()[0]), sim.species().copy()
    # In parts: a log of all hops would take memory.
    for part in range(options.parts):
        sim.solver.log = []
        sim.advance_to(options.time * (part + 1) / options.parts)
        log: list[Any] = sim.solver.log
        logs: list[Events] = log if tile else [events for box in log for events in box]
        tracers.follow([log.hop for log in logs])
    frame = sim.measure()
    return np.concatenate(
        [
            short_range_order(frame.bonds),
            [frame.hops / vacancies, (sim.species() != before).sum()],
            tracers.mean_square(len(model.species)),
        ]
    )


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/alloy_window")
    add, floats = parser.add_argument, list_of(float)
    add("--cells", type=int, default=32, help="cells a side")
    add("--vacancies", type=int, help="of a lattice, one for each 1024 sites if left out")
    add("--temperature", type=float, default=2000.0, help="K")
    add("--time", type=float, default=4e-7, help="s: half the way to equilibrium")
    add("--tiles", type=list_of(int), default=[8, 16], help="points a side of the tiles")
    add("--windows", type=floats, default=[64.0, 32.0, 16.0, 8.0, 4.0], help="hops of a vacancy")
    add("--seeds", type=int, default=24, help="independent runs of each case")
    add("--parts", type=int, default=4, help="parts in which the log of a run is followed")
    add_barriers(parser)
    options = parser.parse_args()
    if options.smoke:
        options.cells, options.time, options.seeds = 8, 4e-9, 2
        options.tiles, options.windows = [8], [8.0, 4.0]
    return options


if __name__ == "__main__":
    main()
