"""Two laws of nature at 16384 x 16384 spins: coarsening and critical decay.

After a quench from a random state to T < Tc the domains grow as t^(1/2) [Bray, Adv. Phys.
43, 357 (1994)]. Their length is taken from the energy of their walls, 1 / (e(t) - e_eq) with
Onsager's e_eq, and fitted with l0 + a t^n: l0 is the leading correction. From the ordered
state at Tc the magnetisation decays as t^(-beta / (nu z)), 0.0577 for z = 2.167 [Nightingale,
Bloete, Phys. Rev. Lett. 76, 4548 (1996)]. Error bars are over independent seeds. Writes into
--out: results.json, table.md, large_ising.png, and each run with its coarse field.

    mpirun -n 2 .venv/bin/python drivers/large_ising.py --out results/large_ising
"""

from __future__ import annotations

import argparse
import math
import resource
from pathlib import Path

import numpy as np
from mpi4py import MPI
from scipy.optimize import curve_fit

from mpiflow import Ising, Simulation, initial
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.figures import power_law_figure
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import Report, results_directory, with_error
from mpiflow.experiments.runs import recorded
from mpiflow.files.trajectory import Trajectory
from mpiflow.systems.ising import CRITICAL_TEMPERATURE, onsager_energy

GROWTH, DECAY = 0.5, 0.125 / 2.167


def main() -> None:
    options = parse()
    comm = parallel.start()
    imported = peak_memory()
    with parallel.agreed(comm):
        at_least(options, seeds=1)
        if not 0 < options.temperature < CRITICAL_TEMPERATURE:
            raise InputError("temperature", options.temperature, "below 2.269", "Try 1.")
        if not options.sweeps >= 4 * options.first >= 4 * options.every:
            raise InputError(
                "first", options.first, "from --every to a quarter of --sweeps", "Leave it out."
            )
    out = results_directory(options.out, comm, options.device)
    results = {
        "quench": [run(options, "quench", seed, out, comm) for seed in range(options.seeds)],
        "critical": [run(options, "critical", seed, out, comm) for seed in range(options.seeds)],
    }
    memory = comm.gather(peak_memory() - imported)
    if comm.rank == 0:
        finish(out, options, results, comm.size, max(memory or [0.0]))


def run(
    options: argparse.Namespace, name: str, seed: int, out: Path, comm: MPI.Intracomm
) -> tuple[Path, float]:
    """One trajectory; its file and the seconds it took. Collective."""
    temperature = options.temperature if name == "quench" else CRITICAL_TEMPERATURE
    sim = Simulation(
        Ising(temperature),
        options.size,
        dt=math.inf,
        seed=seed,
        comm=comm,
        granularity=options.coarse,
    )
    if name == "quench":
        sim.set_spins(initial.shuffled, magnetization=0.0)
    else:
        sim.set_spins(initial.uniform_up)
    path = out / f"{name}_{seed}.h5"
    spent = recorded(
        sim,
        path,
        time=options.sweeps,
        save_every=options.every,
        coarse=options.coarse,
        progress=True,
    )
    return path, spent.wall


def fit_growth(times: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(l0, a, n) of the law l0 + a t^n, relative errors weighted equally."""
    law, _ = curve_fit(
        lambda t, l0, a, n: l0 + a * t**n, times, length, p0=(0.5, 1.0, 0.5), sigma=length
    )
    return np.asarray(law)


def finish(
    out: Path,
    options: argparse.Namespace,
    results: dict[str, list[tuple[Path, float]]],
    ranks: int,
    memory: float,
) -> None:
    """Print and write the table, results.json and the figure."""
    equilibrium = onsager_energy(options.temperature)
    lengths, moments = [], []
    for path, _ in results["quench"]:
        with Trajectory(path) as file:
            times = np.asarray(file["time"])
            lengths.append(1.0 / (np.asarray(file["energy"]) - equilibrium))
    for path, _ in results["critical"]:
        with Trajectory(path) as file:
            moments.append(np.asarray(file["magnetization"]))
    late = times >= options.first
    times, length, moment = times[late], np.array(lengths)[:, late], np.array(moments)[:, late]
    growth = np.array([fit_growth(times, values) for values in length])
    decay = np.array([np.polyfit(np.log(times), np.log(m), 1) for m in moment])
    report = Report(out)
    report.table("law", "ours", "expected", "runs")
    for name, exponents, exact in (
        ("domain length ~ t^n", growth[:, 2], GROWTH),
        ("critical m(t) ~ t^-x", -decay[:, 0], DECAY),
    ):
        report.add(name, exponents, exact=exact)
        report.row(name, with_error(exponents, ".4f"), f"{exact:.4f}", f"{options.seeds}")
    seconds = [spent for runs in results.values() for _, spent in runs]
    sites = options.size**2
    report.say(
        f"{options.size} x {options.size} spins, {options.sweeps} sweeps, a frame every "
        f"{options.every} with means of {options.coarse} x {options.coarse} sites, {ranks} ranks: "
        f"{np.median(seconds):.1f} s a run (median; {min(seconds):.1f} to {max(seconds):.1f}), "
        f"{sites * options.sweeps / np.median(seconds) * 1e-9:.1f} updates/ns all in, "
        f"at most {memory:.0f} MB a rank beyond the imported packages in what was run this time."
    )
    report.write()
    l0, a, n = growth.mean(axis=0)
    # The mean of the fits: the fit of mean parameters, which depend on each other, is none of them.
    fitted = np.mean([of[0] + of[1] * times ** of[2] for of in growth], axis=0)
    slope, offset = decay.mean(axis=0)
    power_law_figure(
        out / "large_ising.png",
        [
            ("domain length", times, length, fitted, f"{l0:.2f} + {a:.2f} t^{n:.3f}"),
            ("magnetization", times, moment, np.exp(offset) * times**slope, f"t^{slope:.4f}"),
        ],
    )


def peak_memory() -> float:
    """Largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/large_ising")
    add = parser.add_argument
    add("--size", type=int, default=16384, help="sites a side")
    add("--temperature", type=float, default=1.0, help="temperature of the quench, below Tc")
    add("--sweeps", type=int, default=1000, help="checkerboard sweeps of each run")
    add("--every", type=int, default=10, help="sweeps between frames")
    add("--first", type=int, default=50, help="first sweep that the fits use")
    add("--coarse", type=int, default=128, help="sites a side of a coarse block")
    add("--seeds", type=int, default=4, help="independent runs of each law")
    options = parser.parse_args()
    if options.smoke:
        options.size, options.sweeps, options.every, options.first = 256, 80, 4, 8
        options.seeds = 2
    return options


if __name__ == "__main__":
    main()
