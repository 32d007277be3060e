"""Gillespie's algorithm against steps of a Kac model: how far off are they, and how much cheaper?

Trials from one smooth profile at both temperatures, fields and ranges, by Gillespie (exact) and
by tau-leaping (Algorithm 2, tau = eps / largest rate) and midpoint steps. Magnetisation, energy
and domain walls are compared at whole times: z of the difference of means, Kolmogorov-Smirnov
of the final magnetisations, Hotelling's T^2 of their curves (chi^2 for samples so small), and
the ratio of spreads. An operation is a site's field and rate brought up to date: flips times
neighbours for Gillespie, sites times steps for the others (twice that for midpoint). Algorithm 1
as printed sums the rates of all sites for every flip: flips times sites. Writes into --out:
results.json, table.md, kac_solvers.png, cost.png.

    mpirun -n 2 .venv/bin/python drivers/kac_solvers.py --out results/kac_solvers
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from mpi4py import MPI
from scipy import stats

from mpiflow import initial
from mpiflow.core import parallel
from mpiflow.core.block import gather_records
from mpiflow.core.errors import InputError
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import Report, results_directory
from mpiflow.experiments.style import figure
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.systems.kac import Kac

#: T, h, gamma / L.
Case = tuple[float, float, float]
#: Name of a solver and its step.
Method = tuple[str, float]

QUANTITIES = ("magnetization", "energy", "domain_wall_density")
GILLESPIE: Method = ("gillespie", 0.0)


@dataclass(frozen=True)
class Runs:
    """All trials of a method: values (trials, times, quantities), and what they cost.

    Seconds are of CPU, on all ranks together, as are operations and flips.
    """

    values: np.ndarray
    seconds: float
    operations: float
    flips: float


@dataclass(frozen=True)
class Comparison:
    """Runs of a method against the exact ones."""

    largest_z: float
    final: tuple[float, float]
    spread: tuple[float, float]
    ks: float
    curve: float
    fewer: float
    faster: float
    fewer_than_printed: float


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, trials=max(8, comm.size))
        if options.time < 1 or options.time % 1:
            raise InputError("time", options.time, "a whole number from 1 on", "Try 5.")
    out = results_directory(options.out, comm, options.device)
    grid = 2 * round(options.size / 8)  # cells of four sites
    profile = initial.smooth_profile((grid, grid), options.seed, correlation_length=grid / 8)
    methods = [("tau-leap", eps) for eps in options.eps] + [("midpoint", t) for t in options.tau]
    seeds = iter(range(options.seed + 1, 10**9))
    results: dict[Case, dict[Method, Runs]] = {}
    for case in product(options.temperatures, options.fields, options.gammas):
        for method in (GILLESPIE, *methods):
            simulate(case, method, options, profile, comm, 0, 1)  # compiles
            results.setdefault(case, {})[method] = simulate(
                case, method, options, profile, comm, next(seeds), options.time
            )
    if comm.rank == 0:
        write(out, results, options)


def simulate(
    case: Case,
    method: Method,
    options: argparse.Namespace,
    profile: np.ndarray,
    comm: MPI.Intracomm,
    seed: int,
    end: int,
) -> Runs:
    """The trials of a method, measured at whole times: values on rank 0, costs of all ranks."""
    (temperature, field, gamma), (name, step) = case, method
    steps = {"tau-leap": {"eps": step}, "midpoint": {"tau": step}}.get(name, {})
    sim = KacSimulation(
        Kac(temperature, gamma * options.size, field),
        options.size,
        solver=name,  # type: ignore[arg-type]
        seed=seed,
        members=options.trials,
        comm=comm,
        **steps,  # type: ignore[arg-type]
    )
    sim.set_spins(initial.profile, means=profile)
    rows, seconds = [measure(sim)], 0.0
    for _ in range(int(end)):
        start = time.process_time()
        sim.advance(1.0)
        seconds += time.process_time() - start
        rows.append(measure(sim))
    values = gather_records(np.stack(rows, axis=1), comm)
    flips = sim.measure().flips.sum()
    costs = gather_records(np.array([[seconds, sim.operations, flips]]), comm)
    if values is None or costs is None:
        return Runs(np.empty(0), 0.0, 0.0, 0.0)
    return Runs(values, *costs.sum(axis=0))


def measure(sim: KacSimulation) -> np.ndarray:
    """The quantities of this rank's trials, (trials here, quantities)."""
    now = sim.measure().scalars()
    return np.stack([now[name] for name in QUANTITIES], axis=1)


def compare(exact: Runs, other: Runs, sites: int) -> Comparison:
    """Two-sample tests of independent trials, without the start."""
    a, b = exact.values[:, 1:], other.values[:, 1:]
    error = np.sqrt(a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b))
    difference = b.mean(0) - a.mean(0)
    spreads = b[:, -1, 0].std(ddof=1) / a[:, -1, 0].std(ddof=1)
    return Comparison(
        largest_z=float(np.abs(difference / error).max()),
        final=(float(difference[-1, 0]), float(error[-1, 0])),
        # Of normal values: each spread has the relative error 1 / sqrt(2 (n - 1)).
        spread=(float(spreads), float(spreads / np.sqrt(len(a) - 1))),
        ks=float(stats.ks_2samp(a[:, -1, 0], b[:, -1, 0]).pvalue),
        curve=hotelling(a[:, :, 0], b[:, :, 0]),
        fewer=exact.operations / other.operations,
        faster=exact.seconds / other.seconds,
        fewer_than_printed=exact.flips * sites / other.operations,
    )


def hotelling(a: np.ndarray, b: np.ndarray) -> float:
    """p-value of equal means of two samples (trials, times) of correlated normal values."""
    n, m, times = len(a), len(b), a.shape[1]
    pooled = ((n - 1) * np.atleast_2d(np.cov(a.T)) + (m - 1) * np.atleast_2d(np.cov(b.T))) / (
        n + m - 2
    )
    difference = b.mean(0) - a.mean(0)
    square = n * m / (n + m) * difference @ np.linalg.solve(pooled, difference)
    freedom = n + m - times - 1
    return float(stats.f.sf(square * freedom / ((n + m - 2) * times), times, freedom))


# -- what is left behind ------------------------------------------------------------------------


def write(out: Path, results: dict[Case, dict[Method, Runs]], options: argparse.Namespace) -> None:
    compared = {
        (case, method): compare(runs[GILLESPIE], other, options.size**2)
        for case, runs in results.items()
        for method, other in runs.items()
        if method != GILLESPIE
    }
    report = Report(out)
    report.table(
        *("T", "h", "gamma", "seconds of Gillespie", "operations", "tau-leap", "fewer"),
        *("than Algorithm 1", "midpoint tau", "fewer", "than Algorithm 1"),
    )
    for row in summary(results, compared):
        report.row(*row)
    report.table(
        *("T", "h", "gamma", "solver", "eps or tau", "max z", "m(end) - exact", "spread / exact"),
        *("KS p", "T^2 p", "fewer operations", "fewer than Algorithm 1", "less time"),
    )
    for (case, (name, step)), found in compared.items():
        temperature, field, gamma = case
        where = f"T={temperature:g} h={field:g} gamma={ratio(gamma)} {name} {step:g}"
        report.add(f"m(end) less Gillespie's, {where}", *found.final, exact=0.0)
        report.add(f"fewer operations than Gillespie, {where}", found.fewer)
        report.row(
            f"{temperature:g}",
            f"{field:g}",
            ratio(gamma),
            name,
            f"{step:g}",
            f"{found.largest_z:.1f}",
            f"{found.final[0]:+.4f} ± {found.final[1]:.4f}",
            f"{found.spread[0]:.2f} ± {found.spread[1]:.2f}",
            f"{found.ks:.2g}",
            f"{found.curve:.2g}",
            f"{found.fewer:.1f}",
            f"{found.fewer_than_printed:.0f}",
            f"{found.faster:.1f}",
        )
    report.write()
    draw_curves(out / "kac_solvers.png", results)
    draw_cost(out / "cost.png", compared)


def ratio(gamma: float) -> str:
    """A range as a part of the lattice's side."""
    return f"L/{1 / gamma:g}" if gamma else "nearest"


def summary(
    results: dict[Case, dict[Method, Runs]], compared: dict[tuple[Case, Method], Comparison]
) -> Iterator[list[str]]:
    """What a trial of Gillespie costs in each case, and what of each kind saves most of its
    operations and still agrees within 3 standard errors."""
    for case, runs in results.items():
        temperature, field, gamma = case
        exact = runs[GILLESPIE]
        seconds, operations = (x / len(exact.values) for x in (exact.seconds, exact.operations))
        row = [
            f"{temperature:g}",
            f"{field:g}",
            ratio(gamma),
            f"{seconds:.3g}",
            f"{operations:.3g}",
        ]
        for name in ("tau-leap", "midpoint"):
            agree = [
                (found.fewer, found.fewer_than_printed, method[1])
                for (other, method), found in compared.items()
                if other == case and method[0] == name and found.largest_z <= 3
            ]
            if agree:
                fewer, printed, step = max(agree)
                kind = "eps " if name == "tau-leap" else ""
                row += [f"{kind}{step:g}", f"{fewer:.1f}", f"{printed:.0f}"]
            else:
                row += ["none", "", ""]
        yield row


def draw_curves(path: Path, results: dict[Case, dict[Method, Runs]]) -> None:
    """Mean magnetisations and their spreads over the trials; a row for each range."""
    gammas = sorted({case[2] for case in results})
    columns = sorted({case[:2] for case in results})
    made = figure(3.6 * len(columns), 3.1 * len(gammas))
    axes = made.subplots(len(gammas), len(columns), squeeze=False)
    for case, runs in results.items():
        panel = axes[gammas.index(case[2]), columns.index(case[:2])]
        panel.set_title(f"T = {case[0]:g}, h = {case[1]:g}, gamma = {ratio(case[2])}")
        panel.set(xlabel="time (attempts per spin)", ylabel="magnetization")
        for i, ((name, step), run) in enumerate(runs.items()):
            m = run.values[:, :, 0]
            t, mean, spread = np.arange(m.shape[1]), m.mean(0), m.std(0, ddof=1)
            if (name, step) == GILLESPIE:
                panel.plot(t, mean, "k-", label="Gillespie")
                panel.fill_between(t, mean - spread, mean + spread, color="0.85")
            else:
                shifted = t + 0.08 * (i - 0.5 * len(runs))
                kind = "o" if name == "tau-leap" else "s"
                panel.errorbar(
                    shifted, mean, spread, fmt=kind, ms=3, lw=0.8, label=f"{name} {step:g}"
                )
    made.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    made.savefig(path, dpi=130)


def draw_cost(path: Path, compared: dict[tuple[Case, Method], Comparison]) -> None:
    """Largest deviation in standard errors against operations saved, a line for each case."""
    made = figure(9, 3.8)
    axes = made.subplots(1, 2)
    cases = list(dict.fromkeys(case for case, _ in compared))
    for panel, name in zip(axes, ("tau-leap", "midpoint"), strict=True):
        for case in cases:
            points = sorted(
                (found.fewer, found.largest_z)
                for (other, method), found in compared.items()
                if other == case and method[0] == name
            )
            if points:
                label = f"T={case[0]:g} h={case[1]:g} {ratio(case[2])}"
                panel.loglog(*zip(*points, strict=True), "o-", ms=4, label=label)
        panel.axhline(3, color="0.5", lw=0.8)
        panel.axvline(20, color="0.5", lw=0.8)
        panel.set(xlim=(0.2, 300), ylim=(0.5, 100), title=name)
        panel.set(xlabel="times fewer operations", ylabel="largest |z| of means")
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    made.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/kac_solvers")
    add = parser.add_argument
    add("--size", type=int, default=128, help="sites a side")
    add("--trials", type=int, default=20, help="lattices for each solver")
    add("--time", type=float, default=5, help="end, a whole number")
    add("--temperatures", type=float, nargs="+", default=[1.0, 4.0])
    add("--fields", type=float, nargs="+", default=[0.0, 1.0], help="uniform h")
    add("--gammas", type=float, nargs="+", default=[1 / 64, 1 / 32], help="in units of L")
    add("--eps", type=float, nargs="+", default=[0.3, 0.1, 0.03, 0.01], help="of tau-leaping")
    add("--tau", type=float, nargs="+", default=[0.5, 0.25], help="of midpoint")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.smoke:
        options.size, options.trials, options.time = 64, 8, 2
        options.temperatures, options.gammas = [1.0], [1 / 32]
        options.eps, options.tau = [0.1], [0.5]
    return options


if __name__ == "__main__":
    main()
