"""Microscopic short-range order of NbMoTa in time, from 1024 to 524,288 atoms.

The ground truth that the published learned models were never compared with: vacancy kinetic
Monte Carlo from random equimolar states, one vacancy for each 1024 sites. Small lattices are
exact and dealt to the ranks, large ones are cut into tiles over all ranks. With --temperatures
also the order against the number of hops at other temperatures, 1024 sites (with --cells "" and
--runs "" only that). Writes into --out:
results.json, table.md, every run (a stopped driver goes on with the next), and alloy_truth.png.

    mpirun -n 2 .venv/bin/python drivers/alloy_truth.py --out results/alloy_truth
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from mpi4py import MPI

from mpiflow import metrics
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.alloy import LARGE, PAIRS, published_order
from mpiflow.experiments.figures import relaxation_figure
from mpiflow.experiments.options import add_barriers, driver_parser, list_of
from mpiflow.experiments.results import Report, farm, results_directory
from mpiflow.experiments.runs import recorded
from mpiflow.files.trajectory import Trajectory
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.simulation.alloy.barrier_model import BarrierModel, load_barrier_model
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.systems.alloy import Alloy, row_sums

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT.parent / "shared" / "reference" / "paper_alloy_T2000_sizes.csv"
#: Lattices of up to so many cells a side are exact, larger ones tiled.
SERIAL = 16


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        if len(options.runs) != len(options.cells):
            raise InputError("runs", options.runs, "as many numbers as --cells", "Give one each.")
        if not 0 < options.stationary < options.time:
            raise InputError("stationary", options.stationary, "below --time", "Leave it out.")
        model = load_barrier_model(options.barriers, options.axis_order)
    out = results_directory(options.out, comm, options.device)
    spent: dict[int, float] = {}
    for cells, runs in zip(options.cells, options.runs, strict=True):
        if cells <= SERIAL:
            spent[cells] = run(options, model, cells, options.seed, out, comm, members=runs)
        else:
            seeds = range(options.seed, options.seed + runs)
            spent[cells] = sum(run(options, model, cells, seed, out, comm) for seed in seeds)
    tasks = [(t, seed) for t in options.temperatures for seed in range(options.seeds)]
    farm(tasks, lambda task: count_hops(options, model, *task, out), comm)
    if comm.rank == 0:
        finish(out, options, model, spent, comm.size)


def start_of(
    model: BarrierModel, temperature: float, cells: int, comm: MPI.Intracomm, **options: object
) -> AlloySimulation:
    """A random equimolar state with a vacancy for each 1024 sites."""
    sim = AlloySimulation(
        Alloy(temperature, model.species), model.parameters, cells, comm=comm, **options
    )
    sim.set_species(random_alloy, counts=counts_of(sim.sites, max(1, sim.sites // 1024)))
    return sim


def facts_of(model: BarrierModel) -> dict[str, str]:
    """What a file says of its barriers."""
    axes = model.axis_order or "symmetric"
    return {"barriers": model.name, "barriers_sha256": model.sha256, "axis_order": axes}


def run(
    options: argparse.Namespace,
    model: BarrierModel,
    cells: int,
    seed: int,
    out: Path,
    comm: MPI.Intracomm,
    members: int = 1,
) -> float:
    """The runs of one file, and the seconds they took. Collective."""
    tiled = {"solver": "tiled"} if cells > SERIAL else {"members": members}
    sim = start_of(model, options.temperature, cells, comm, seed=seed, **tiled)
    every = options.time / options.frames
    path = out / f"truth_{sim.sites}_{seed}.h5"
    return recorded(
        sim, path, time=options.time, save_every=every, progress=True, attributes=facts_of(model)
    ).wall


def count_hops(
    options: argparse.Namespace, model: BarrierModel, temperature: float, seed: int, out: Path
) -> None:
    """One lattice of 1024 sites at another temperature, counted in hops."""
    sim = start_of(model, temperature, 8, MPI.COMM_SELF, seed=options.seed + seed)
    path, every = out / f"hops_{temperature:g}_{seed}.h5", max(1, options.hops // 200)
    recorded(sim, path, hops=options.hops, save_every=every, attributes=facts_of(model))


def runs_of(out: Path, sites: int, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Times and order parameters (runs, times, 6) of the files of one size."""
    series = []
    for seed in seeds:
        path = out / f"truth_{sites}_{seed}.h5"
        if not path.is_file():  # one file holds all members
            break
        with Trajectory(path) as file:
            times, sro = file.time, np.asarray(file["sro"])
            series += [sro[:, m] for m in range(sro.shape[1])] if sro.ndim == 3 else [sro]
    return times, np.array(series)


def finish(
    out: Path,
    options: argparse.Namespace,
    model: BarrierModel,
    spent: dict[int, float],
    ranks: int,
) -> None:
    """Print and write the table, results.json and the figure."""
    report = Report(out)
    report.table("sites", "quantity", "ours", "published model")

    def add(sites: int, name: str, value: float, error: float, other: float | None) -> None:
        scale = 1e7 if "half-time" in name else 1.0
        report.add(f"{sites} {name}", value, error, published=other)
        ours = f"{value * scale:.4f}" + ("" if np.isnan(error) else f" ± {error * scale:.4f}")
        theirs = "" if other is None or np.isnan(other) else f"{other * scale:.4f}"
        report.row(f"{sites}", name, ours, theirs)

    curves = {}
    for cells, count in zip(options.cells, options.runs, strict=True):
        sites = 2 * cells**3
        seeds = range(options.seed, options.seed + count)
        times, runs = runs_of(out, sites, seeds)
        facts = metrics.relaxation(times, runs, options.stationary)
        other = published_order(PUBLISHED, sites, PAIRS)
        curves[f"{sites} sites"] = times, runs.mean(axis=0), runs.std(axis=0)
        for i, pair in enumerate(PAIRS):
            mean = None if other is None else other[0][i]
            add(sites, f"{pair} mean", facts["mean"][i], facts["mean_error"][i], mean)
        for i, pair in enumerate(PAIRS):
            spread = None if other is None else other[1][i]
            add(sites, f"{pair} spread", facts["spread"][i], facts["spread_error"][i], spread)
        for pair in LARGE:
            i, name = PAIRS.index(pair), f"{pair} half-time [1e-7 s]"
            half = None if other is None else other[2][i]
            add(sites, name, facts["half_time"][i], facts["half_time_error"][i], half)
        sums = row_sums(facts["mean"], 3)
        theirs = [None] * 3 if other is None else row_sums(other[0], 3)
        for element, value, wrong in zip(model.species, sums, theirs, strict=True):
            add(sites, f"{element} row sum", value, np.nan, wrong)
    for temperature in options.temperatures:
        series = [hops_of(out, temperature, seed) for seed in range(options.seeds)]
        values = np.array([sro[len(sro) // 2 :].mean(axis=0) for _, sro in series])
        for i, pair in enumerate(PAIRS):
            error = metrics.standard_error(values[:, i])
            add(1024, f"{temperature:g} K {pair}, last half", values[:, i].mean(), error, None)
    size = ", ".join(f"{2 * c**3}: {s:.0f} s" for c, s in spent.items())
    about = f"Barriers {model.name} ({model.axis_order or 'symmetric'}), {ranks} ranks."
    if size:
        about += (
            f" {options.temperature:g} K to {options.time:g} s, stationary from "
            f"{options.stationary:g} s, runs {', '.join(map(str, options.runs))}. Wall time of all "
            f"runs: {size}."
        )
    if options.temperatures:
        about += f" {options.seeds} runs of {options.hops} hops at each other temperature."
    report.say(about)
    report.write()
    if curves:
        relaxation_figure(out / "alloy_truth.png", curves, PAIRS, title="microscopic SRO")


def hops_of(out: Path, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hops and order parameters of one run that was counted in hops."""
    with Trajectory(out / f"hops_{temperature:g}_{seed}.h5") as file:
        return np.asarray(file["hops"]), np.asarray(file["sro"])


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/alloy_truth")
    add = parser.add_argument
    numbers, floats = list_of(int, empty=True), list_of(float, empty=True)
    add("--cells", type=numbers, default=[8, 16, 32, 64], help="cells a side of each size")
    add("--runs", type=numbers, default=[256, 64, 16, 8], help="independent runs of each size")
    add("--temperature", type=float, default=2000.0, help="K")
    add("--time", type=float, default=5e-6, help="s")
    add("--stationary", type=float, default=3e-6, help="means from this time on, s")
    add("--frames", type=int, default=100, help="frames of each run")
    add_barriers(parser)
    add("--temperatures", type=floats, default=[], help="K, of runs counted in hops")
    add("--hops", type=int, default=20_000_000, help="hops of these")
    add("--seeds", type=int, default=4, help="of these")
    add("--seed", type=int, default=0, help="first seed")
    options = parser.parse_args()
    if options.smoke:
        options.cells, options.runs, options.frames = [4, 20], [4, 2], 5
        options.time, options.stationary = 2e-8, 1e-8
        options.temperatures, options.hops, options.seeds = [2000.0, 800.0], 400, 2
    return options


if __name__ == "__main__":
    main()
