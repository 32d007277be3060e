r"""First passages of boxes of nearest-neighbour spins, and of a learned law of their m and bonds.

A box of L x L spins waits with its spins up until m is -1/2 for the first time. The law of its
magnetization and bonds (mpiflow.learn.onsagerflow.boxes) is learned once for each box, from
equilibrium states made by clusters at five temperatures, and used at others and in a field; its
mean passages solve a linear system. They are compared with those of spins: exact ones of 4 x 4 (all
65,536 states), else events by the n-fold way, which has no time step. M alone, with bonds in
equilibrium at each M, is compared too.

Errors of the laws are over seeds, each with states of its own; of spins, the mean over the root of
the number of passages. Spins are looked at 20,000 times in the time that the law expects.

Writes into --out: results.json, table.md, nearest_passages.png, parts/ (a stopped driver goes on).

    mpirun -n 2 .venv/bin/python drivers/nearest_passages.py --out results/nearest_passages
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from mpi4py import MPI

from mpiflow import Ising, Simulation, initial, metrics
from mpiflow.core import parallel
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.passages import LARGEST, SmallLattice, watched
from mpiflow.experiments.results import FinishedParts, Report, Results, farm, results_directory
from mpiflow.experiments.style import figure
from mpiflow.learn.onsagerflow.boxes import BoxLaw
from mpiflow.observables.sums import lattice_class_counts
from mpiflow.solvers.spins.cluster import flip_clusters

Parts = dict[str, np.ndarray]
Case = tuple[float, float]
BOXES = (4, 6, 8, 10)
#: T and h of passages; the goal, a magnetization.
CASES: tuple[Case, ...] = ((1.8, 0.0), (1.8, -0.05), (2.0, 0.0), (2.2, 0.0))
GOAL = -0.5
#: Of the states that laws are learned from: temperatures, boxes at each, looks at each, clusters
#: that are flipped before the first and between two.
LADDER, STATES, LOOKS, BURN, BETWEEN = (1.8, 2.0, 2.2, 2.4, 2.8), 4000, 100, 40, 2
#: Direct runs by side, in so many parts; 7 of 10 are waited for. Looks at them, and the least time
#: between two.
RUNS, PARTS, SEEN, SHORTEST = {6: 6400, 8: 3200, 10: 800}, 4, 20_000, 0.05


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, seeds=2)
    out = results_directory(options.out, comm, options.device)
    settings = [CASES, GOAL, LADDER, STATES, LOOKS, BURN, BETWEEN, RUNS, PARTS, SEEN, SHORTEST]
    kept = FinishedParts(
        out / "parts", {"seed": options.seed, "less": options.less, "settings": settings}
    )
    laws = [("law", side, seed) for side in options.boxes for seed in range(options.seeds)]
    learned = farm(laws, lambda task: law_of(task, options), comm, kept, "laws")
    direct = [
        ("spins", side, *case, part)
        for side, case, part in product(options.boxes[::-1], CASES, range(PARTS))
        if side > LARGEST
    ]
    seen = farm(direct, lambda task: passages(task, learned, options), comm, kept, "spins")
    if comm.rank == 0:
        write(out, learned, seen, options)


# -- laws and spins ------------------------------------------------------------------------


def law_of(task: tuple[str, int, int], options: argparse.Namespace) -> Parts:
    """Mean passages of the law of one seed and of M alone, (cases, 2); its cells and misfit."""
    _, side, seed = task
    counts, count = [], max(100, STATES // options.less)
    for i, temperature in enumerate(LADDER):
        system, key = Ising(temperature), 100 * (options.seed + seed) + i
        states, members = np.ones((count, side, side), np.int8), np.arange(count)
        counts.append(lattice_class_counts(states[:1]))
        flip_clusters(states, members, system, seed=key, clusters=BURN)
        for look in range(max(10, LOOKS // options.less)):
            first = BURN + BETWEEN * look
            flip_clusters(states, members, system, seed=key, clusters=BETWEEN, first=first)
            counts.append(lattice_class_counts(states))
    law = BoxLaw.of_counts(np.concatenate(counts))
    times = [
        (law.passage_time(system, GOAL), law.passage_time_of_m(system, GOAL))
        for system in (Ising(t, field=h) for t, h in CASES)
    ]
    return {
        "times": np.array(times), "cells": np.array(len(law.cells)), "misfit": np.array(law.misfit),
    }  # fmt: skip


def passages(
    task: tuple[str, int, float, float, int], learned: Results[Parts], options: argparse.Namespace
) -> Parts:
    """How long spins waited, and whether they got there."""
    _, side, temperature, field, part = task
    expected = learned["law", side, 0]["times"][CASES.index((temperature, field)), 0]
    every = max(SHORTEST, expected * options.less / SEEN)
    members = max(4, RUNS[side] // PARTS // options.less)
    sim = Simulation(
        Ising(temperature, field=field), side, solver="nfold", members=members,
        seed=1000 * options.seed + part, comm=MPI.COMM_SELF,
    )  # fmt: skip
    sim.set_spins(initial.uniform_up)
    waited, passed = watched(
        lambda: sim.advance(every),
        lambda: sim.coarse_sums(side).reshape(members) <= GOAL * side**2,
        members, every, 100 * expected,
    )  # fmt: skip
    return {"waited": waited, "passed": passed}


# -- what is left behind -------------------------------------------------------------------


def truth(side: int, case: Case, seen: Results[Parts]) -> tuple[float, float]:
    """Mean passage of spins and its error, none if it is exact."""
    if side <= LARGEST:
        down = int(np.ceil(side**2 * (1 - GOAL) / 2))
        return SmallLattice(Ising(case[0], field=case[1]), side).mean_passage(down), 0.0
    parts = [seen["spins", side, *case, part] for part in range(PARTS)]
    both = [np.concatenate([part[name] for part in parts]) for name in ("waited", "passed")]
    return metrics.exponential_mean(*both)


def write(
    out: Path, learned: Results[Parts], seen: Results[Parts], options: argparse.Namespace
) -> None:
    report, points = Report(out), []
    report.table("box", "T", "h", "spins", "law of m and c", "off", "of m alone", "off")
    for case, side in product(CASES, options.boxes):
        mean, error = truth(side, case, seen)
        times = np.array([
            learned["law", side, seed]["times"][CASES.index(case)] for seed in range(options.seeds)
        ])  # fmt: skip
        cells = [f"{side}^2", f"{case[0]:g}", f"{case[1]:g}"]
        cells.append(f"{mean:.4g}" + (f" ± {error:.2g}" if error else ", exact"))
        for name, column in zip(("m and c", "m alone"), times.T, strict=True):
            value, spread = column.mean(), column.std(ddof=1) / np.sqrt(options.seeds)
            off = 100 * (value / mean - 1)
            both = 100 * np.hypot(spread, error) / mean
            cells += [f"{value:.4g} ± {spread:.2g}", f"{off:+.1f} ± {both:.1f} %"]
            report.add(f"{side}^2, T = {case[0]:g}, h = {case[1]:g}, {name}", column, exact=mean)
            if name == "m and c":
                points.append((case, side, mean, error, value, spread))
        report.row(*cells)
    report.table("box", "cells", "misfit of a pair of them")
    for side in options.boxes:
        of = [learned["law", side, seed] for seed in range(options.seeds)]
        cells = [np.mean([float(one[name]) for one in of]) for name in ("cells", "misfit")]
        report.row(f"{side}^2", f"{cells[0]:.0f}", f"{cells[1]:.2f}")
    report.write()
    draw(out / "nearest_passages.png", points)


def draw(path: Path, points: list[tuple[Case, int, float, float, float, float]]) -> None:
    """Passages against the side of the box, and the law's relative to those of spins."""
    page, places = figure(10, 4), sorted({point[1] for point in points})
    times, ratios = page.subplots(1, 2)
    for i, case in enumerate(CASES):
        _, sides, mean, error, value, spread = map(
            np.array, zip(*(p for p in points if p[0] == case), strict=True)
        )
        name = f"T = {case[0]:g}" + (f", h = {case[1]:g}" if case[1] else "")
        (line,) = times.plot(sides, value, label=name)
        look = {"color": line.get_color(), "capsize": 2}
        times.errorbar(sides, mean, error, fmt="o", ms=5, **look)
        both = value / mean * np.hypot(spread / value, error / mean)
        ratios.errorbar(sides + 0.08 * i, value / mean, both, fmt="o-", ms=4, lw=1, **look)
    times.set(
        xlabel="spins a side",
        ylabel="mean first passage",
        yscale="log",
        xticks=places,
    )
    times.legend(title="lines: law; dots: spins")
    ratios.axhline(1, color="k", lw=0.5)
    ratios.set(xlabel="spins a side", ylabel="law / spins", xticks=places)
    page.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/nearest_passages")
    parser.add_argument("--seeds", type=int, default=4, help="independent sets of states")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.boxes, options.less = BOXES, 1
    if options.smoke:
        options.boxes, options.seeds, options.less = (4, 6), 2, 100
    return options


if __name__ == "__main__":
    main()
