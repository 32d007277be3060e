"""Mobility, entropic force and coupling of a field equation, learned from microscopic runs.

OnsagerFlow (seed "onsagerflow"): K(m, T), s'(m, T) and J of blocks from the increments of their
means, against the exact ones of a Kac coupling: for both structures, both kinds of kernel and for
networks, with what a single K(m) costs. Then K and s' of nearest neighbours at high and low
temperature against K = const and K = 1 - m^2. Writes into --out: the runs, models/ (one directory
each), table.md, results.json and onsagerflow_learn.png. Runs that are complete are kept.

    mpirun -n 2 .venv/bin/python drivers/onsagerflow_learn.py --out results/onsagerflow_learn
"""

from __future__ import annotations

import argparse
import json
import sys
import time as clock
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.optimize import brentq

from mpiflow import initial
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.options import driver_parser, list_of
from mpiflow.experiments.results import Report, farm, results_directory
from mpiflow.experiments.style import figure
from mpiflow.files.trajectory import Trajectory
from mpiflow.learn.generator.model import true_kernel
from mpiflow.learn.onsagerflow.fit import binned, learn, local_means
from mpiflow.learn.onsagerflow.increments import FieldRun, runs_from_files
from mpiflow.learn.onsagerflow.model import OnsagerFlow
from mpiflow.learn.onsagerflow.net import learn_network
from mpiflow.learn.training import Schedule
from mpiflow.run.simulate import simulate
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.systems.kac import Kac

#: Between frames, and of the microscopic steps.
EVERY, TAU = 0.1, 0.05
#: Where functions are compared.
M = np.linspace(-0.9, 0.9, 73)
#: Of nearest neighbours: high, nearer to the critical 2.269, and below it.
ISING_TEMPERATURES = (5.0, 3.0, 1.8)


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        if options.size % options.block or options.size // options.block < 2 * options.radius + 1:
            allowed = f"a multiple of block={options.block}, {2 * options.radius + 1} or more times"
            raise InputError("size", options.size, allowed, "Use a larger lattice.")
    out = results_directory(options.out, comm, options.device)
    report = Report(out)
    begun = clock.monotonic()
    runs = kac_runs(options, comm, out / "runs")
    spent = clock.monotonic() - begun
    report.say(
        f"{len(runs)} runs of {options.size}^2 spins to t = {options.time:g} in blocks of "
        f"{options.block}^2, gamma = {options.gamma:g} sites, T of {options.temperatures}: "
        f"{spent:.0f} s on {comm.size} ranks."
    )
    models = kac_models(options, comm, runs, report)
    cost = single_mobility(options, comm, runs, models["cosh, free"], report)
    ising = nearest_neighbours(options, comm, report)
    if comm.rank == 0:
        report.write()
        draw(out / "onsagerflow_learn.png", options, models, cost, ising)


# -- microscopic runs ----------------------------------------------------------------------


def kac_runs(options: argparse.Namespace, comm: MPI.Intracomm, out: Path) -> list[FieldRun]:
    """Runs from all kinds of states at all temperatures, dealt to ranks; what is there is kept."""
    with parallel.agreed(comm):
        if comm.rank == 0:
            out.mkdir(exist_ok=True)
    comm.Barrier()
    tasks = [(t, i) for t in options.temperatures for i in range(options.runs)]

    def run(task: tuple[float, int]) -> str:
        temperature, i = task
        path = out / f"kac_T{temperature:g}_{i}.h5"
        config = kac_config(options, temperature, i, path)
        if not complete(path, config):
            simulate(config, MPI.COMM_SELF)
        return str(path)

    return runs_from_files(list(farm(tasks, run, comm).values()))


def kac_config(options: argparse.Namespace, temperature: float, i: int, path: Path) -> KacConfig:
    """Starts of four kinds: uniform, smooth waves, two phases, and waves held by a field h(x)."""
    size, points = options.size, options.size // options.block
    seed = options.seed + 1000 * i + round(100 * temperature)
    ways = options.runs // 4
    given: dict[str, Any] = {}
    if i % 4 == 0:
        m = -0.95 + 1.9 * (i // 4 + 0.5) / max(1, ways)
        given = {"initial": "random", "initial_magnetization": m}
    elif i % 4 == 1:
        waves = initial.smooth_profile((points, points), seed, correlation_length=points / 16)
        means, given = np.tanh(3 * waves), {"field": 0.1 * (-1) ** (i // 4)}
    elif i % 4 == 2:
        x = np.arange(points) - points / 2
        stripe = 0.9 * np.tanh((points / 4 - abs(x)) * options.block / (2 * options.gamma))
        means = np.broadcast_to(stripe, (points, points))
    else:
        waves = initial.smooth_profile((points, points), seed, correlation_length=points / 12)
        means = 0.95 * np.tanh(3 * waves)
        h = np.kron(temperature * np.arctanh(means) - means, np.ones((options.block,) * 2))
        given["field_file"] = path.with_suffix(".h.npy")
        np.save(given["field_file"], h)
    if "initial" not in given:
        given["initial"] = str(path.with_suffix(".m.npy"))
        np.save(given["initial"], np.ascontiguousarray(means, float))
    return KacConfig(
        size=size, gamma=options.gamma, temperature=temperature, solver="midpoint", tau=TAU,
        time=options.time, save_every=EVERY, coarse=options.block, seed=seed, out=path,
        overwrite=True, quiet=True, checkpoints=False, device=options.device, **given,
    )  # fmt: skip


def complete(path: Path, config: IsingConfig | KacConfig) -> bool:
    """Whether a whole run of this very configuration is there."""
    if not path.exists():
        return False
    try:
        with Trajectory(path) as file:
            return file.complete and file.config == json.loads(config.model_dump_json())
    except InputError:
        return False


# -- Kac coupling --------------------------------------------------------------------------


def kac_models(
    options: argparse.Namespace,
    comm: MPI.Intracomm,
    runs: Sequence[FieldRun],
    report: Report,
) -> dict[str, OnsagerFlow]:
    """Every way of learning, against the exact law."""
    ways: dict[str, dict[str, Any]] = {
        "cosh, free": {"structure": "cosh", "kernel": "free"},
        "cosh, radial": {"structure": "cosh", "kernel": "radial"},
        "langevin, free": {"structure": "langevin", "kernel": "free"},
        "cosh, network": {"structure": "cosh"},
    }
    points = options.size // options.block
    exact = true_kernel(Kac(1.0, options.gamma), points, options.block)
    models = {}
    report.table(
        *("learned", "K: rms, largest error", "s': rms, largest", "J: relative L2"),
        *("its own errors of K, s', J", "seconds"),
    )
    for name, form in ways.items():
        begun = clock.monotonic()
        if name.endswith("network"):
            model = learn_network(
                # Not from free spins, which are the answer here.
                runs, radius=options.radius, start=0.3, seed=options.seed, comm=comm,
                schedule=Schedule(epochs=options.epochs, batch=32), **form,
            )  # fmt: skip
        else:
            model = learn(
                runs, radius=options.radius, temperature_degree=options.degree, comm=comm, **form
            )
        spent = clock.monotonic() - begun
        models[name] = model
        if comm.rank > 0:
            continue
        print(f"{name}: learned in {spent:.0f} s", file=sys.stderr, flush=True)
        model.save(report.out / "models" / name.replace(", ", "-"))
        errors = against_exact(model, options.temperatures)
        distance = float(np.linalg.norm(model.kernel_on(points) - exact) / np.linalg.norm(exact))
        own = model.card["temperatures"].values()  # networks do not know their errors
        known = [
            np.nan if (worst := [v[k] for v in own])[0] is None else max(worst)
            for k in ("mobility_error", "entropy_error")
        ]
        report.row(
            name,
            f"{errors['K'][0]:.2%}, {errors['K'][1]:.2%}",
            f"{errors['s'][0]:.2%}, {errors['s'][1]:.2%}",
            f"{distance:.2%}",
            ", ".join(
                "unknown" if np.isnan(x) else f"{x:.2%}" for x in (*known, model.kernel_error)
            ),
            f"{spent:.0f}",
        )
        for part, (rms, largest) in errors.items():
            report.add(f"{name}: relative rms error of {part}", rms, exact=0.0)
            report.add(f"{name}: largest relative error of {part}", largest, exact=0.0)
        report.add(f"{name}: relative L2 error of J", distance, exact=0.0)
    return models


def against_exact(
    model: OnsagerFlow, temperatures: Sequence[float]
) -> dict[str, tuple[float, float]]:
    """Relative errors of K and s' for |m| <= 0.9 at all temperatures: rms, largest.

    Of s', which passes through 0, the rms is relative to its own and the largest is at
    |m| >= 0.05.
    """
    k, s, where = [], [], abs(M) >= 0.05
    for t in temperatures:
        k.append(model.mobility(M, t) * t / (1 - M * M) - 1)
        s.append(model.entropy_derivative(M, t) / t - np.arctanh(M))
    exact = np.arctanh(M)
    far = np.abs(np.array(s)[:, where] / exact[where])
    return {
        "K": (float(np.sqrt(np.mean(np.square(k)))), float(np.abs(k).max())),
        "s": (float(np.sqrt(np.mean(np.square(s)) / np.mean(exact**2))), float(far.max())),
    }


def single_mobility(
    options: argparse.Namespace,
    comm: MPI.Intracomm,
    runs: Sequence[FieldRun],
    model: OnsagerFlow,
    report: Report,
) -> dict[str, np.ndarray]:
    """Drift and variance in bins of y = beta mu against both structures with the same K, s', J."""
    t = options.temperatures[0]
    same = [run for run in runs if run.temperature == t]
    edges, y_edges = np.linspace(-0.95, 0.95, 20), np.linspace(-1.0, 1.0, 21)
    local = local_means(model, same, edges, y_edges)
    y = np.broadcast_to(0.5 * (y_edges[1:] + y_edges[:-1]), local.m.shape)
    good = (local.count > 10000 * options.share) & (abs(local.m) < 0.9)
    found: dict[str, np.ndarray] = {"y": y[0]}
    report.say(f"What a single K(m) costs, T = {t:g}, blocks in bins of m and y = beta mu:")
    report.table(
        *("structure", "drift: rms error, relative", "at 0.5 < abs(y) < 1"),
        *("variance: rms error, relative", "at 0.5 < abs(y) < 1"),
    )
    far = good & (abs(y) > 0.5)
    for name in ("cosh", "langevin"):
        law = model.with_structure(name)
        gaps = {
            "drift": (local.drift, law.drift(local.m, y, t, options.block**2)),
            "variance": (local.half_variance, law.half_variance(local.m, y, t)),
        }
        numbers = []
        for quantity, (seen, expected) in gaps.items():
            for where, text in ((good, "all"), (far, "far")):
                size = np.sqrt(np.mean(seen[where] ** 2)) if where.any() else np.nan
                off = np.sqrt(np.mean((seen - expected)[where] ** 2)) / size
                numbers.append(off)
                label = f"{name}, {text} y: relative rms error of the {quantity}"
                report.add(label, off, exact=0.0)
        report.row(name, *(f"{v:.2%}" for v in numbers))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # empty bins
            kept = np.where(good, gaps["variance"][1], np.nan)
            found[name] = np.nanmean(kept, axis=0)
            found["seen"] = np.nanmean(np.where(good, local.half_variance, np.nan), axis=0)
    return found


# -- nearest neighbours --------------------------------------------------------------------


def nearest_neighbours(
    options: argparse.Namespace, comm: MPI.Intracomm, report: Report
) -> dict[float, dict[str, np.ndarray]]:
    """K(m) and s'(m) of blocks of nearest-neighbour spins against what is usually assumed."""
    ways = 2 * options.fields + 1

    def run(task: tuple[float, int]) -> str:
        t, i = task
        path = report.out / "runs" / f"ising_T{t:g}_{i}.h5"
        # In fields that hold m from -0.93 to 0.93 at high T; at low T two phases in weak ones.
        strength = (i - options.fields) / max(1, options.fields)
        h = bethe_field(t, 0.93 * strength) if t > 2.269 else 0.1 * strength
        config = IsingConfig(
            size=options.ising_size, temperature=t, field=float(h), dt=0.05, time=options.time,
            save_every=EVERY, coarse=8, initial="random", initial_magnetization=0.9 * strength,
            seed=options.seed + i, out=path, overwrite=True, quiet=True, checkpoints=False,
            device=options.device,
        )  # fmt: skip
        if not complete(path, config):
            simulate(config, MPI.COMM_SELF)
        return str(path)

    tasks = [(t, i) for t in ISING_TEMPERATURES for i in range(ways)]
    paths = farm(tasks, run, comm)
    report.say(
        "Nearest neighbours, blocks of 8^2: K / beta is the variance rate of a block, over m "
        "from -0.9 to 0.9:"
    )
    report.table(
        *("T", "K / beta at m = 0, 0.5, 0.8", "K / beta = 1 - m^2 is off by", "best K ~ 1 - m^2"),
        *("best K = const", "learned K", "held out", "s' / T artanh(m) at 0.3, 0.8"),
        *("drift explained", "held out"),
    )
    found = {}
    for t in ISING_TEMPERATURES:
        runs = runs_from_files([paths[t, i] for i in range(ways)])
        (table,) = (sums.local() for sums in binned(runs, (1, 2, 3), comm=comm).values())
        good = (table.count > 300) & (abs(table.m) < 0.9)
        m, v = table.m[good], table.half_variance[good]
        weight = 1.0 / np.maximum(table.half_variance_error[good], 0.01 * v)
        form: dict[str, Any] = {
            "structure": "langevin", "radius": 2, "within": np.inf, "mobility_terms": 6,
            "entropy_terms": 4, "iterations": 30,
        }  # fmt: skip
        model = learn(runs, comm=comm, **form)
        explained = drift_explained(model, runs, t)
        # The same of a law that was learned without every third field, on the runs in these.
        held = runs[1::3]
        rest = [run for i, run in enumerate(runs) if i % 3 != 1]
        blind = learn(rest, comm=comm, **form)
        outside = drift_explained(blind, held, t)
        (unseen,) = (sums.local() for sums in binned(held, (1, 2, 3), comm=comm).values())
        counted = (unseen.count > 300) & (abs(unseen.m) < 0.9)
        ratio = blind.mobility(unseen.m[counted], t) * t / unseen.half_variance[counted]
        gaps = {"1 - m^2": float(np.sqrt(np.mean(((1 - m * m) / v - 1) ** 2)))}
        for name, shape in (("scaled 1 - m^2", 1 - m * m), ("constant", np.ones_like(m))):
            scale = (weight**2 * shape * v).sum() / (weight**2 * shape**2).sum()
            gaps[name] = float(np.sqrt(np.mean((scale * shape / v - 1) ** 2)))
        gaps["learned"] = float(np.sqrt(np.mean((model.mobility(m, t) * t / v - 1) ** 2)))
        gaps["learned, held out"] = float(np.sqrt(np.mean((ratio - 1) ** 2)))
        at = [float(np.interp(x, m, v)) for x in (0.0, 0.5, 0.8)]
        slope = [float(model.entropy_derivative(x, t) / (t * np.arctanh(x))) for x in (0.3, 0.8)]
        report.row(
            f"{t:g}",
            f"{at[0]:.3f}, {at[1]:.3f}, {at[2]:.3f}",
            *(f"{gaps[name]:.0%}" for name in ("1 - m^2", "scaled 1 - m^2", "constant")),
            f"{gaps['learned']:.1%}",
            f"{gaps['learned, held out']:.1%}",
            f"{slope[0]:.3f}, {slope[1]:.3f}",
            f"{explained:.1%}",
            f"{outside:.1%}",
        )
        for name, share in (("drift explained", explained), ("drift explained, held out", outside)):
            report.add(f"nearest neighbours, T={t:g}: {name}", share, exact=1.0)
        for name, gap in gaps.items():
            report.add(f"nearest neighbours, T={t:g}: rms error of K, {name}", gap, exact=0.0)
        found[t] = {"m": m, "v": v, "error": table.half_variance_error[good],
                    "learned": model.mobility(M, t) * t}  # fmt: skip
    return found


def bethe_field(temperature: float, m: float) -> float:
    """The field h at which m is the mean spin of a tree of four neighbours, about that of a square
    lattice above its critical temperature [Bethe, Proc. R. Soc. A 150, 552 (1935)]."""
    if m < 0:
        return -bethe_field(temperature, -m)

    def mean(h: float) -> float:
        felt = 1.0
        for _ in range(500):
            felt = temperature * np.arctanh(
                np.tanh(1 / temperature) * np.tanh((h + 3 * felt) / temperature)
            )
        return float(np.tanh((h + 4 * felt) / temperature)) - m

    return float(brentq(mean, 0.0, 5 * temperature)) if mean(0.0) < 0 else 0.0


def drift_explained(model: OnsagerFlow, runs: Sequence[FieldRun], t: float) -> float:
    """The share of the mean drift, in bins of m and y, that the learned law has."""
    edges, y_edges = np.linspace(-0.95, 0.95, 20), np.linspace(-1.0, 1.0, 21)
    local = local_means(model, runs, edges, y_edges)
    y = np.broadcast_to(0.5 * (y_edges[1:] + y_edges[:-1]), local.m.shape)
    good = local.count > 300
    gap = (local.drift - model.drift(local.m, y, t, runs[0].spins))[good]
    return float(1 - (local.count[good] * gap**2).sum()
                 / (local.count[good] * local.drift[good] ** 2).sum())  # fmt: skip


# -- picture -------------------------------------------------------------------------------


def draw(
    path: Path,
    options: argparse.Namespace,
    models: dict[str, OnsagerFlow],
    cost: dict[str, np.ndarray],
    ising: dict[float, dict[str, np.ndarray]],
) -> None:
    page = figure(13.0, 7.4)
    (of_k, of_s, of_j), (of_v, of_ising, of_ratio) = page.subplots(2, 3)
    points = options.size // options.block
    exact = true_kernel(Kac(1.0, options.gamma), points, options.block)
    t = options.temperatures[0]
    of_k.plot(M, (1 - M * M), "k", lw=2.5, alpha=0.3, label="exact")
    of_s.plot(M, np.arctanh(M), "k", lw=2.5, alpha=0.3, label="exact")
    reach = np.arange(options.radius + 1)
    of_j.plot(reach, exact[0, : options.radius + 1], "k", lw=2.5, alpha=0.3, label="exact")
    for name, model in models.items():
        of_k.plot(M, model.mobility(M, t) * t, lw=1, label=name)
        of_s.plot(M, model.entropy_derivative(M, t) / t, lw=1, label=name)
        of_j.plot(reach, model.kernel_on(points)[0, : options.radius + 1], ".-", lw=1, label=name)
    of_k.set(xlabel="m", ylabel="K / beta", title=f"Kac, T = {t:g}")
    of_s.set(xlabel="m", ylabel="beta s'")
    of_j.set(xlabel="distance (blocks)", ylabel="J")
    of_v.plot(cost["y"], cost["seen"], "ko", ms=4, label="spins")
    for name in ("cosh", "langevin"):
        of_v.plot(cost["y"], cost[name], label=name)
    of_v.set(xlabel="y = beta mu", ylabel="variance rate, mean over m", title="away from "
             "equilibrium")  # fmt: skip
    for temperature, seen in ising.items():
        line = of_ising.errorbar(seen["m"], seen["v"], seen["error"], fmt=".", ms=4,
                                 label=f"T = {temperature:g}")  # fmt: skip
        of_ising.plot(M, seen["learned"], color=line[0].get_color(), lw=1)
        of_ratio.plot(seen["m"], seen["v"] / (1 - seen["m"] ** 2), ".-", lw=1)
    of_ising.set(xlabel="m", ylabel="K / beta", title="nearest neighbours")
    of_ratio.set(xlabel="m", ylabel="K / beta (1 - m^2)", ylim=(0, None))
    for ax in (of_k, of_s, of_j, of_v, of_ising):
        ax.legend()
    page.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/onsagerflow_learn")
    add, floats = parser.add_argument, list_of(float)
    add("--gamma", type=float, default=16.0, help="width of the coupling in sites")
    add("--block", type=int, default=8, help="sites a side of a block")
    add("--size", type=int, default=512, help="sites a side of the Kac lattices")
    add("--radius", type=int, default=8, help="reach of the learned J, in blocks")
    add(
        "--temperatures",
        type=floats,
        default=[0.8, 1.0, 1.25, 2.0],
        help="temperatures of the Kac runs",
    )
    add("--degree", type=int, default=1, help="of the coefficients in 1 / T")
    add("--runs", type=int, default=48, help="runs at each temperature, a multiple of 4")
    add("--time", type=float, default=5.0, help="length of a run")
    add("--ising-size", type=int, default=512, help="sites a side of the nearest-neighbour runs")
    add("--fields", type=int, default=6, help="fields h > 0 of the nearest-neighbour runs")
    add("--epochs", type=int, default=6, help="passes over the data of the network")
    add("--seed", type=int, default=0, help="of all runs")
    options = parser.parse_args()
    options.share = 0.01 if options.smoke else 1.0  # of the increments that a bin needs
    if options.smoke:
        options.gamma, options.size, options.radius = 8.0, 128, 4
        options.temperatures, options.runs, options.time = [0.8, 1.25], 4, 1.5
        options.ising_size, options.fields, options.epochs = 128, 2, 3
    return options


if __name__ == "__main__":
    main()
