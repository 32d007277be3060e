r"""Short-range order of NbMoTa from 400 to 3000 K, from random, ordered and slowly cooled states.

Flicker is drawn as a whole (the absorbing solver), so that vacancies get anywhere in the cold. At
each temperature runs begin with

- **random**: a random mixture, quenched, as the published runs are;
- **ordered**: Mo on one sublattice, Ta on the other, Nb in the places that are left on both, the
  order of the B2 kind with the fewest pairs MoMo and TaTa, -8 / 3 both;
- **cooled**: the last state of the next higher temperature, the first that of the random run at
  --cool-from, or of the ordered one (--cool-start): what was quenched and cooled may keep domains
  for ever, what was ordered and gently heated has none.

The work of a run is counted in stays of vacancies, which cost much the same at all temperatures;
frames lie k^2 stays after the start. Where runs from both sides end with the same order, that is
the order of equilibrium. Where they do not, it lies between them as long as each still goes
towards the other. What a run has after --budget hops of a vacancy, as many as the published ones
have, shows how far from equilibrium those ended.

Means are of the second half of the stays of a run: in four blocks, in each of which a frame counts
as long as it lasted. Errors are those of the blocks of all runs or of the runs, whichever are
larger. Writes into --out: results.json, table.md, alloy_equilibrium.png, parts/ (a stopped
driver goes on). Full cost: about 20 minutes of a core.

    mpirun -n 2 .venv/bin/python drivers/alloy_equilibrium.py --out results/alloy_equilibrium
"""

from __future__ import annotations

import argparse
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.alloy import PAIRS, ordered, published_temperatures
from mpiflow.experiments.figures import temperature_figure
from mpiflow.experiments.options import add_barriers, at_least, driver_parser, list_of
from mpiflow.experiments.results import FinishedParts, Report, farm, results_directory
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.simulation.alloy.barrier_model import BarrierModel, load_barrier_model
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.systems.alloy import Alloy, long_range_order, short_range_order

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT.parent / "shared" / "reference" / "paper_alloy_sro_vs_T_8192.csv"
STARTS = ("random", "ordered", "cooled")
#: Temperatures in K; stays of a run and number of runs at each, where nothing else is asked for.
TEMPERATURES = (400, 500, 600, 700, 800, 900, 1000, 1200, 1600, 2000, 3000)
STAYS = {
    700: 1_500_000, 800: 5_000_000, 1000: 6_000_000, 1200: 4_000_000, 1600: 1_200_000,
}  # fmt: skip
SEEDS = {1200: 1, 1600: 2}
HOT_STAYS, HOT_SEEDS = 400_000, 4
#: Frames of a run, and blocks of its second half.
FRAMES, BLOCKS = 160, 4
Parts = dict[Any, dict[str, np.ndarray]]


def up_to(table: dict[int, int], temperature: float, above: int) -> int:
    """The entry of the least temperature of a table that is not below this one."""
    return next((n for limit, n in table.items() if temperature <= limit), above)


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, seeds=1, budget=1)
        if not options.work > 0:
            raise InputError("work", options.work, "above 0", "Leave it out.")
        model = load_barrier_model(options.barriers, options.axis_order)
    out = results_directory(options.out, comm, options.device)
    work = Runs(options, model, out)
    parts: Parts = {}
    for seed in range(max(map(work.seeds, options.temperatures))):  # a stopped driver has few
        hot = sorted((t for t in options.temperatures if seed < work.seeds(t)), reverse=True)
        tasks = [*product(hot, STARTS[:2], [seed])]
        parts |= farm(tasks, lambda task: work.kept(*task), comm)
        cold = [t for t in hot if t <= options.cool_from]
        if cold:  # each begins where the one before ended
            first = parts[cold[0], options.cool_start, seed]["grid"]
            chain = farm([seed], lambda s, t=cold[1:], g=first: work.chain(t, s, g), comm)
            parts |= {(t, "cooled", seed): part for t, part in chain[seed].items()}
    if comm.rank == 0:
        write(out, options, model, parts)


class Runs:
    """Runs of one lattice each, kept when they are done.

    Parameters
    ----------
    options : of the driver
    model : of barriers
    out : the driver's directory
    """

    def __init__(self, options: argparse.Namespace, model: BarrierModel, out: Path) -> None:
        self.options, self.model, self.out = options, model, out

    def stays(self, temperature: float) -> int:
        """Stays of a run at a temperature."""
        return max(FRAMES**2 // 4, round(self.options.work * up_to(STAYS, temperature, HOT_STAYS)))

    def seeds(self, temperature: float) -> int:
        """Number of runs from each start at a temperature."""
        return round(self.options.seeds * up_to(SEEDS, temperature, HOT_SEEDS) / HOT_SEEDS) or 1

    def kept(
        self, temperature: float, start: str, seed: int, grid: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """A run, made unless it is there."""
        facts: dict[str, Any] = {
            "cells": self.options.cells, "stays": self.stays(temperature), "frames": FRAMES,
            "barriers": self.model.sha256, "axes": self.model.axis_order,
        }  # fmt: skip
        if start == "cooled":
            facts |= {"from": self.options.cool_from, "start": self.options.cool_start}
            way = [t for t in self.options.temperatures if temperature < t <= facts["from"]]
            facts["way"] = [(t, self.stays(t)) for t in sorted(way)]
        parts = FinishedParts(self.out / "parts" / f"{temperature:g}", facts)
        name = f"{start}-{seed}"
        part = parts.get(name)
        if part is None:
            part = self.run(temperature, start, seed, grid)
            parts.put(name, **part)
            print(f"{temperature:g} K, {start}, seed {seed}", flush=True)
        return part

    def chain(
        self, temperatures: list[float], seed: int, grid: np.ndarray
    ) -> dict[float, dict[str, np.ndarray]]:
        """Runs at falling temperatures, each from the last state of the one before."""
        done = {}
        for temperature in temperatures:
            done[temperature] = self.kept(temperature, "cooled", seed, grid)
            grid = done[temperature]["grid"]
        return done

    def run(
        self, temperature: float, start: str, seed: int, grid: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """Times, hops and bonds of the frames of a run, and its last state."""
        sim = AlloySimulation(
            Alloy(temperature, self.model.species),
            self.model.parameters,
            self.options.cells,
            solver="absorbing",
            seed=seed + 1000 * STARTS.index(start),  # so that the starts are independent
            comm=MPI.COMM_SELF,
        )
        counts = counts_of(sim.sites, max(1, sim.sites // 1024))
        if grid is not None:
            sim.set_species(lambda block: block.load(grid))
        elif start == "ordered":
            sim.set_species(ordered, counts=counts)
        else:
            sim.set_species(random_alloy, counts=counts)
        places = self.stays(temperature) * (np.arange(FRAMES + 1) / FRAMES) ** 2
        rows = []
        for more in np.diff(np.rint(places), prepend=0.0):
            if more > 0:
                sim.solver.advance(sim.block, seed=sim.seed, most=int(more))
            rows.append((sim.solver.clock[0], sim.solver.hops[0], sim.measure().bonds))
        times, hops, bonds = zip(*rows, strict=True)
        return {
            "time": np.array(times), "hops": np.array(hops), "bonds": np.array(bonds),
            "grid": sim.block.spins().copy(),
        }  # fmt: skip


# -- what is left behind -------------------------------------------------------------------


def means(part: dict[str, np.ndarray]) -> np.ndarray:
    """Order (blocks, 6) of blocks of the second half of the stays of a run."""
    sro, lasted = short_range_order(part["bonds"])[:-1], np.diff(part["time"])
    stays = (np.arange(FRAMES + 1) / FRAMES) ** 2
    which = np.minimum(np.floor((2 * stays[:-1] - 1) * BLOCKS), BLOCKS - 1)
    found = []
    for block in range(BLOCKS):
        weights = np.where(which == block, lasted, 0.0)
        found.append((weights[:, None] * sro).sum(axis=0) / weights.sum())
    return np.array(found)


def b2_of(part: dict[str, np.ndarray]) -> float:
    """How much more Mo is on one sublattice than on the other, mean of the second half of a run."""
    late = part["bonds"][FRAMES - FRAMES // 4 :]
    return float(abs(long_range_order(late)[:, 1]).mean())


def mean_of(runs: list[dict[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean order (6,) of runs, and its error."""
    blocks = np.array([means(part) for part in runs])
    each = blocks.mean(axis=1)
    within = blocks.reshape(-1, each.shape[1]).std(axis=0, ddof=1) / math.sqrt(blocks[..., 0].size)
    between = each.std(axis=0, ddof=1) / math.sqrt(len(each)) if len(each) > 1 else 0.0 * within
    return each.mean(axis=0), np.maximum(within, between)


def after(part: dict[str, np.ndarray], hops: float) -> np.ndarray:
    """Order (6,) of a run after a number of hops, nan where it is shorter, and in equilibrium."""
    sro = short_range_order(part["bonds"])
    if part["hops"][-1] < hops:
        return np.full(sro.shape[1], np.nan)
    return np.array([np.interp(hops, part["hops"], column) for column in sro.T])


def meet(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether no order of two means differs by more than three errors."""
    return bool((abs(one[0] - other[0]) <= 3 * np.hypot(one[1], other[1])).all())


def write(out: Path, options: argparse.Namespace, model: BarrierModel, parts: Parts) -> None:
    """Print and write the tables, results.json and the figure."""
    report = Report(out)
    published = published_temperatures(PUBLISHED)
    budget = options.budget * max(1, 2 * options.cells**3 // 1024)
    series: dict[str, tuple[list[float], list[np.ndarray]]] = {s: ([], []) for s in STARTS}
    found: dict[tuple[float, str], tuple[np.ndarray, np.ndarray]] = {}
    for temperature, start in product(sorted(options.temperatures), STARTS):
        runs = [part for key, part in parts.items() if key[:2] == (temperature, start)]
        if not runs:
            continue
        found[temperature, start] = value, error = mean_of(runs)
        series[start][0].append(temperature)
        series[start][1].append(value)
        for i, pair in enumerate(PAIRS):
            theirs = published.get(temperature, [None] * len(PAIRS))[i]
            name = f"{temperature:g} K {pair} {start}"
            report.add(name, value[i], error[i], published=theirs)
    for i in (PAIRS.index("MoMo"), PAIRS.index("TaTa")):
        titles = (*STARTS, "random, after the budget", "published")
        report.table(f"T [K], {PAIRS[i]}", *titles, "random and ordered meet")
        for temperature in sorted(options.temperatures):
            cells = []
            for start in STARTS:
                value = found.get((temperature, start))
                cells.append("" if value is None else f"{value[0][i]:.3f} ± {value[1][i]:.3f}")
            runs = [part for key, part in parts.items() if key[:2] == (temperature, "random")]
            early = np.array([after(part, budget)[i] for part in runs])
            report.add(f"{temperature:g} K {PAIRS[i]} random after the budget", early)
            cells.append("" if np.isnan(early).any() else f"{early.mean():.3f}")
            theirs = published.get(temperature)
            cells.append("" if theirs is None else f"{theirs[i]:.3f}")
            both = found[temperature, "random"], found[temperature, "ordered"]
            report.row(f"{temperature:g}", *cells, "yes" if meet(*both) else "no")
    report.table("T [K]", *(f"B2 order of Mo, {start}" for start in STARTS))
    for temperature in sorted(options.temperatures):
        cells = []
        for start in STARTS:
            runs = [part for key, part in parts.items() if key[:2] == (temperature, start)]
            value = float(np.mean([b2_of(part) for part in runs])) if runs else math.nan
            cells.append(f"{value:.3f}" if runs else "")
            report.add(f"{temperature:g} K B2 order {start}", value)
        report.row(f"{temperature:g}", *cells)
    report.say(
        f"{2 * options.cells**3} sites, barriers {model.name} ({model.axis_order or 'symmetric'}), "
        f"budget {options.budget:g} hops of a vacancy; cooled from {options.cool_from:g} K, "
        f"{options.cool_start} states; runs: "
        + "; ".join(
            f"{t:g} K {sum(k[:2] == (t, 'random') for k in parts)} of "
            f"{Runs(options, model, out).stays(t) / 1e6:g}"
            for t in sorted(options.temperatures)
        )
        + " million stays from each start."
    )
    report.write()
    lines = {s: (np.array(t), np.array(v)) for s, (t, v) in series.items() if t}
    temperature_figure(out / "alloy_equilibrium.png", lines, PAIRS)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/alloy_equilibrium")
    add = parser.add_argument
    add("--cells", type=int, default=16, help="cells a side")
    kelvin = [float(t) for t in TEMPERATURES]
    add("--temperatures", type=list_of(float), default=kelvin, help="K")
    add("--work", type=float, default=1.0, help="stays of a run, 1 for the default")
    add(
        "--seeds",
        type=int,
        default=HOT_SEEDS,
        help="runs from each start above 1600 K, fewer below",
    )
    add("--cool-from", type=float, default=1000.0, help="K, where slow cooling begins")
    add("--cool-start", choices=STARTS[:2], default="random", help="states that are cooled")
    add("--budget", type=float, default=620_000, help="hops of a vacancy that the published have")
    add_barriers(parser)
    options = parser.parse_args()
    if options.smoke:
        options.cells, options.temperatures, options.work = 8, [700.0, 1000.0, 2000.0], 1e-9
        options.seeds, options.budget = 2, 1000
    return options


if __name__ == "__main__":
    main()
