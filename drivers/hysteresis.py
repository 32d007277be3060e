r"""The area of hysteresis loops against the rate of the field.

The field of an Ising lattice goes 0, H, -H, H at a constant rate R, and m lags behind. The loop
from H back to H has the area :math:`A = \oint h \, dm`, the heat per spin. Where m takes the time
tau(h) to follow, and R is small, it is late by :math:`R \tau \, dm/dh`, so that

.. math:: A = 2 R \int_{-H}^{H} \tau \frac{dm}{dh} dh + O(R^2),

a power law of exponent 1. Spins without a coupling have tau = 1: there
:math:`A = 4 R \tanh(H / T)`. Above T_c tau is larger and the law the same. Below T_c m goes over by
nucleation, and A has a smaller exponent, over a few decades [Lo, Pelcovits, Phys. Rev. A 42, 7471
(1990)]; the driver reports those between the two smallest rates.

Writes into --out: results.json, table.md, hysteresis.png, loops.npz, parts/ (a stopped driver goes
on). Full cost: half a minute on a core.

    mpirun -n 2 .venv/bin/python drivers/hysteresis.py --out results/hysteresis
"""

from __future__ import annotations

import argparse
import math
from itertools import product
from pathlib import Path

import numpy as np
from mpi4py import MPI
from scipy.integrate import trapezoid

from mpiflow import Drive, Ising, Simulation, initial, metrics
from mpiflow.core import parallel
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import FinishedParts, Report, farm, results_directory
from mpiflow.experiments.style import figure

#: Coupling and temperature: free spins, above T_c = 2.269, below.
CASES = {"free, T = 2": (0.0, 2.0), "T = 3.5": (1.0, 3.5), "T = 1.8": (1.0, 1.8)}
RATES = (0.2, 0.1, 0.05, 0.025, 0.0125)
LARGEST = 1.0
#: Frames of a loop, and members.
FRAMES, MEMBERS = 400, 8
Parts = dict[tuple[str, float], dict[str, np.ndarray]]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, size=4, less=1)
    out = results_directory(options.out, comm, options.device)
    about = {"seed": options.seed, "size": options.size, "less": options.less}
    kept = FinishedParts(out / "parts", about)
    tasks = list(product(CASES, (rate * options.less for rate in RATES)))
    parts = farm(tasks, lambda task: run(task, options), comm, kept, "loops")
    if comm.rank == 0:
        write(out, parts)


def run(task: tuple[str, float], options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Field (frames,) and magnetisation (frames, members) along a loop, from H to H."""
    (coupling, temperature), rate = CASES[task[0]], task[1]
    every = max(1, round(4 * LARGEST / rate / FRAMES / options.dt)) * options.dt
    frames = round(LARGEST / rate / every)
    time = 5 * frames * every
    drive = Drive(field=f"hysteresis {LARGEST} over {time}")
    sim = Simulation(
        Ising(temperature, coupling=coupling),
        options.size,
        dt=options.dt,
        seed=options.seed,
        members=MEMBERS,
        comm=MPI.COMM_SELF,
        schedule=drive,
    )
    sim.set_spins(initial.shuffled)
    loop = [f for f in sim.frames(time=time, every=every) if f.time >= time / 5 * (1 - 1e-9)]
    field = [drive.at(frame.time)["field"] for frame in loop]
    return {"field": np.array(field), "m": np.array([frame.magnetization for frame in loop])}


def area(part: dict[str, np.ndarray]) -> tuple[float, float]:
    """The area of a loop, and its error from the scatter of members."""
    each = -trapezoid(part["m"], part["field"], axis=0)
    return float(each.mean()), metrics.standard_error(each)


def exponent(parts: Parts, case: str, rates: list[float]) -> tuple[float, float]:
    """Of the two smallest rates: d ln A / d ln R, and its error."""
    (a, da), (b, db) = (area(parts[case, rate]) for rate in rates[-2:])
    span = math.log(rates[-2] / rates[-1])
    return math.log(a / b) / span, math.hypot(da / a, db / b) / span


def write(out: Path, parts: Parts) -> None:
    found, rates = Report(out), sorted({rate for _, rate in parts}, reverse=True)
    found.table("R", *(f"A, {case}" for case in CASES))
    for rate in rates:
        cells = []
        for case in CASES:
            value, error = area(parts[case, rate])
            cells.append(f"{value:.4f} ± {error:.4f}")
            found.add(f"area {case} R={rate:g}", value, error)
        found.row(f"{rate:g}", *cells)
    slope = 4 * math.tanh(LARGEST / CASES["free, T = 2"][1])
    value, error = (part / rates[-1] for part in area(parts["free, T = 2", rates[-1]]))
    found.add("A / R of free spins", value, error, exact=slope)
    found.say(f"Free spins: A / R = {value:.3f} ± {error:.3f} at R = {rates[-1]:g}; for R to 0 it "
              f"is {slope:.3f}.")  # fmt: skip
    for case in CASES:
        value, error = exponent(parts, case, rates)
        found.add(f"exponent {case}", value, error)
        found.say(f"{case}: A ~ R^{value:.3f} ± {error:.3f} at the two smallest rates.")
    found.write()
    draw(out / "hysteresis.png", parts, rates)
    loops = {f"{name} {case} R={rate:g}": a
             for (case, rate), part in parts.items() for name, a in part.items()}  # fmt: skip
    np.savez_compressed(out / "loops.npz", **loops)  # type: ignore[arg-type]


def draw(path: Path, parts: Parts, rates: list[float]) -> None:
    """The loops of each case, and areas against rates."""
    picture = figure(13, 3.6)
    *panels, last = picture.subplots(1, len(CASES) + 1)
    for panel, case in zip(panels, CASES, strict=True):
        for rate in rates:
            part = parts[case, rate]
            panel.plot(part["field"], part["m"].mean(axis=1), lw=0.9, label=f"R = {rate:g}")
        panel.set(xlabel="h", ylabel="m", title=case)
        values, errors = np.transpose([area(parts[case, rate]) for rate in rates])
        last.errorbar(rates, values, errors, fmt="o-", ms=4, lw=1, label=case)
    last.set(xlabel="R", ylabel="area", xscale="log", yscale="log")
    panels[0].legend()
    last.legend()
    picture.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/hysteresis")
    add = parser.add_argument
    add("--size", type=int, default=128)
    add("--dt", type=float, default=0.25)
    add("--less", type=int, default=1, help="so many times larger rates")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.smoke:
        options.size, options.less = 16, 10
    return options


if __name__ == "__main__":
    main()
