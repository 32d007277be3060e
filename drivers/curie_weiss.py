"""Curie-Weiss: error of the learned dynamics of M against patch side, beside exact laws: Fig. 8, 9.

Chen et al., arXiv:2511.12842, appendix D.1: 64^2 spins at T = 1.1, h = 0.1, learned from n_s = 8^2
to 64^2. Three methods: ours (patches evolve for a short time), the published length of n_s flips
with lambda = K, and the naive baseline with that length. There is no sampling in the comparison:
the truth is the master equation of M, the law of a learned SDE comes from quadrature, so that what
is left is the error of learning; error bars are over seeds. The published errors hold the noise
of 20 trajectories of the model and 20 of the truth too: what it adds on average is calculated.
Writes into --out: results.json, table.md, curie_weiss.png, rollout.h5.
Full cost: 2 minutes on two cores.

    mpirun -n 2 .venv/bin/python drivers/curie_weiss.py --out results/curie_weiss
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow import metrics, parallel
from mpiflow.errors import InputError
from mpiflow.learn.curie_weiss import (
    LearnedLaw,
    MeanFieldPlan,
    generate_pairs,
    learned_law,
    train_magnetization,
)
from mpiflow.learn.experiment import farm, results_directory
from mpiflow.learn.sde import MacroscopicSDE
from mpiflow.learn.training import Schedule
from mpiflow.noise import RNG
from mpiflow.progress import Progress
from mpiflow.schema import STANDARD
from mpiflow.solvers import master_equation
from mpiflow.systems.curie_weiss import CurieWeiss
from mpiflow.trajectory import TrajectoryWriter

#: Published test errors (relative squared errors, one seed, 20 + 20 trajectories): ours, naive.
PUBLISHED = {
    8: (0.0043770904, 0.012569587),
    16: (0.0010638589, 0.002531292),
    32: (0.00078521454, 0.0010135694),
    64: (0.00040542916, 0.00040812767),
}
#: Trajectories of each magnetisation in the published evaluation, of model and of truth.
TRAJECTORIES = 20
METHODS = ("ours", "n_s flips", "naive")
MAGNETIZATIONS = np.array([-0.5, -0.25, 0.0, 0.25, 0.5])
SYSTEM, SIDE = CurieWeiss(temperature=1.1, field=0.1), 64
#: Time between frames, of n flips on average in the published runs.
FRAME = 2.6272

#: Patch side, method, seed.
Task = tuple[int, str, int]
SAMPLED = f"error from {TRAJECTORIES} + {TRAJECTORIES} runs"
QUANTITIES = (
    SAMPLED,
    "error",
    "spread error",
    "stationary mean",
    "stationary spread",
    "relaxation time",
)


@dataclass(frozen=True)
class Exact:
    """The master equation: mean and std of M (times, groups), and what stays."""

    times: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    stationary: tuple[float, float]
    gap: float

    def noise(self, std: np.ndarray) -> float:
        """What the noise of trajectories adds to the published error of a model, std as ours."""
        groups = range(len(MAGNETIZATIONS))
        # A mean of so many of either kind: the mean of both variances stands for each.
        variance = 0.5 * (self.std**2 + std**2)
        floors = [
            metrics.noise_floor(variance[:, g], TRAJECTORIES, self.mean[:, g]) for g in groups
        ]
        return float(np.mean(floors))


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        for name, least in (("seeds", 1), ("steps", 1), ("frames", 1)):
            if getattr(options, name) < least:
                raise InputError(name, getattr(options, name), f"{least} or more", "Leave it out.")
        tasks = list(product(options.patches, METHODS, range(options.seeds)))
        plans = {task: plan_of(task, options) for task in tasks}
    out = results_directory(options.out, comm)
    epochs = Schedule(epochs=options.epochs)
    total = len(tasks[comm.rank :: comm.size])
    with Progress(max(1, total), f"learn {len(tasks)} models", comm) as progress:
        done = 0

        def work(task: Task) -> tuple[MacroscopicSDE, LearnedLaw]:
            nonlocal done
            patch, method, seed = task
            pairs = generate_pairs(SYSTEM, plans[task], seed=seed)
            assert pairs is not None
            kind = "naive" if method == "naive" else "partial"
            sde, _ = train_magnetization(pairs, method=kind, seed=seed, schedule=epochs)  # type: ignore[arg-type]
            steps = steps_of(method, options)
            law = learned_law(
                sde, MAGNETIZATIONS, dt=FRAME / steps, steps=steps, frames=options.frames
            )
            done += 1
            progress.update(done, patch=patch, method=method, seed=seed)
            return sde, law

        results = farm(tasks, work, comm)
    if comm.rank == 0:
        exact = solve(options.frames)
        write_rollout(out / "rollout.h5", results[tasks[0]][0], plans[tasks[0]], exact, options)
        report(out, {task: law for task, (_, law) in results.items()}, exact, options)


def steps_of(method: str, options: argparse.Namespace) -> int:
    """Steps of a prediction in a frame: one is as long as a partial evolution."""
    return options.steps if method == "ours" else 1


def plan_of(task: Task, options: argparse.Namespace) -> MeanFieldPlan:
    patch, method, _ = task
    short = method == "ours"
    return MeanFieldPlan(
        large=SIDE,
        patch=patch,
        states=options.states,
        repeats=options.repeats if short else max(1, options.repeats // 8),
        duration=FRAME / options.steps,
        flips=None if short else patch**2,
    )


def solve(frames: int) -> Exact:
    """The exact law of M at every frame, from each initial magnetisation."""
    sites = SIDE**2
    birth, death = SYSTEM.chain(sites)
    values = 2.0 * np.arange(sites + 1) / sites - 1.0
    start = np.zeros((len(MAGNETIZATIONS), sites + 1))
    up = np.rint(0.5 * (1.0 + MAGNETIZATIONS) * sites).astype(int)
    start[np.arange(len(up)), up] = 1.0
    times = FRAME * np.arange(frames + 1)

    def moments(law: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = law @ values
        return mean, np.sqrt(np.maximum(law @ values**2 - mean**2, 0.0))

    rows = [moments(law) for law in master_equation.evolve(start, birth, death, times)]
    mean, std = (np.stack(column) for column in zip(*rows, strict=True))
    rest = moments(master_equation.stationary(birth, death))
    gap = master_equation.spectral_gap(birth, death)
    return Exact(times, mean, std, (float(rest[0]), float(rest[1])), gap)


def compare(law: LearnedLaw, exact: Exact) -> dict[str, float]:
    """The quantities of one model; errors are means over the initial magnetisations."""
    groups = range(len(MAGNETIZATIONS))
    error = [metrics.mean_error(law.mean[:, g], exact.mean[:, g]) for g in groups]
    spread = [metrics.spread_error(law.std[:, g], exact.std[:, g]) for g in groups]
    sampled = np.mean(error) + exact.noise(law.std)
    values = (sampled, np.mean(error), np.mean(spread), *law.stationary, 1.0 / law.gap)
    return dict(zip(QUANTITIES, map(float, values), strict=True))


def report(
    out: Path, laws: dict[Task, LearnedLaw], exact: Exact, options: argparse.Namespace
) -> None:
    """Print and write the table, results.json and the figure."""
    known = dict(zip(QUANTITIES[3:], (*exact.stationary, 1.0 / exact.gap), strict=True))
    lines = [
        f"| patch | method | published | {SAMPLED} | error alone | spread error | stationary mean "
        "| stationary spread | relaxation time |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| | exact | | {exact.noise(exact.std):.2e} | 0 | 0 "
        f"| {exact.stationary[0]:.5f} | {exact.stationary[1]:.5f} | {1.0 / exact.gap:.3f} |",
    ]
    entries: list[dict[str, Any]] = []
    errors: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    for patch, method in product(options.patches, METHODS):
        found = [compare(laws[patch, method, seed], exact) for seed in range(options.seeds)]
        published = PUBLISHED.get(patch, (None, None))[method == "naive"]
        cells = []
        for name in QUANTITIES:
            values = np.array([each[name] for each in found])
            stderr = metrics.standard_error(values)
            digits = 3 if name == "relaxation time" else 5
            small = name in (SAMPLED, "error")
            mean = f"{values.mean():.2e}" if small else f"{values.mean():.{digits}f}"
            bar = f"{stderr:.1e}" if small else f"{stderr:.{digits}f}"
            cells.append(mean if np.isnan(stderr) else f"{mean} ± {bar}")
            entries.append(
                {
                    "quantity": f"{name} patch {patch} {method}",
                    "ours": float(values.mean()),
                    "stderr": None if np.isnan(stderr) else stderr,
                    "published": published if name == SAMPLED else None,
                    "exact": known.get(name),
                }
            )
            if name == SAMPLED:
                errors[method].append(values)
        lines.append(
            f"| {patch} | {method} | {'' if published is None else f'{published:.2e}'} | "
            + " | ".join(cells)
            + " |"
        )
    entries.append(
        {
            "quantity": f"{SAMPLED}, of the exact law",
            "ours": exact.noise(exact.std),
            "stderr": None,
            "published": None,
            "exact": exact.noise(exact.std),
        }
    )
    lines.append("")
    table = "\n".join(lines)
    print(table)
    (out / "table.md").write_text(table)
    (out / "results.json").write_text(json.dumps(entries, indent=2) + "\n")
    draw(out / "curie_weiss.png", laws, exact, errors, options)


def draw(
    path: Path,
    laws: dict[Task, LearnedLaw],
    exact: Exact,
    errors: dict[str, list[np.ndarray]],
    options: argparse.Namespace,
) -> None:
    """Errors against patch side (Fig. 8), then mean and spread in time for one side (Fig. 9)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 1 + len(METHODS))
    for method, found in errors.items():
        mean = [values.mean() for values in found]
        bars = [np.nan_to_num(metrics.standard_error(values)) for values in found]
        axes[0].errorbar(options.patches, mean, bars, fmt="o-", capsize=3, label=method)
    for column, (name, style) in enumerate((("published", "ks--"), ("published naive", "k^:"))):
        points = [(p, PUBLISHED[p][column]) for p in options.patches if p in PUBLISHED]
        if points:
            axes[0].plot(*zip(*points, strict=True), style, ms=4, lw=1, label=name)
    axes[0].axhline(exact.noise(exact.std), color="0.6", lw=0.8)
    axes[0].set(xscale="log", yscale="log", xlabel="side of a patch", ylabel=SAMPLED)
    axes[0].set_xticks(options.patches, [f"{p}" for p in options.patches], minor=False)
    axes[0].legend(fontsize=7)
    patch = 16 if 16 in options.patches else options.patches[0]
    early = exact.times <= 25.0
    for panel, method in zip(axes[1:], METHODS, strict=True):
        law = laws[patch, method, 0]
        for g, start in enumerate(MAGNETIZATIONS):
            mean, std = exact.mean[early, g], exact.std[early, g]
            (line,) = panel.plot(exact.times[early], mean, lw=1.2, label=f"{start:g}")
            panel.fill_between(
                exact.times[early], mean - std, mean + std, color=line.get_color(), alpha=0.25, lw=0
            )
            mean, std = law.mean[early, g], law.std[early, g]
            panel.plot(exact.times[early], mean, "k--", lw=1)
            for sign in (-1, 1):
                panel.plot(exact.times[early], mean + sign * std, "k:", lw=0.6)
        panel.set(xlabel="time (attempts per spin)", ylim=(-0.6, 0.8))
        panel.set_title(f"{method}, from {patch}^2", fontsize=9)
    axes[1].set_ylabel("magnetization")
    figure.suptitle("Curie-Weiss 64^2, T=1.1, h=0.1   shaded: exact, black: learned", fontsize=10)
    figure.savefig(path, dpi=130)


def write_rollout(
    path: Path,
    sde: MacroscopicSDE,
    plan: MeanFieldPlan,
    exact: Exact,
    options: argparse.Namespace,
) -> None:
    """Sampled trajectories of one model, as many as in the published evaluation."""
    start = np.repeat(MAGNETIZATIONS, TRAJECTORIES)
    members = np.arange(len(start))
    values, _ = sde.rollout_at(
        start[:, None], members, exact.times, dt=FRAME / options.steps, seed=options.seed
    )
    config = {"size": SIDE, "temperature": SYSTEM.temperature, "field": SYSTEM.field}
    with TrajectoryWriter(
        path,
        dims={"member": len(start)},
        variables=[STANDARD["initial_magnetization"], STANDARD["magnetization"].over("member")],
        attributes={
            "system": "macroscopic curie-weiss",
            "config_json": json.dumps({**config, "patch": plan.patch, "states": plan.states}),
            "seed": options.seed,
            "rng": RNG,
            "decomposition_invariant": 1,
        },
        overwrite=True,
    ) as writer:
        writer.write_static("initial_magnetization", start)
        for time, frame in zip(exact.times, values, strict=True):
            writer.append(float(time), {"magnetization": frame[:, 0]})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--out", default="results/curie_weiss", help="directory for the results")
    add("--patches", type=int, nargs="+", default=[8, 16, 32, 64], help="patch sides")
    add("--seeds", type=int, default=3, help="independent data sets and trainings")
    add("--states", type=int, default=10_000, help="large states in each training set")
    add("--repeats", type=int, default=64, help="partial evolutions of a state; 1/8 if long ones")
    add("--steps", type=int, default=10, help="short partial evolutions that make a frame")
    add("--frames", type=int, default=500, help=f"frames, {FRAME} units of time apart")
    add("--epochs", type=int, default=60, help="most epochs of a training")
    add("--seed", type=int, default=20251112, help="seed of the rollout")
    add("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    if options.smoke:
        options.patches, options.seeds, options.states, options.repeats = [16], 2, 200, 8
        options.epochs, options.frames = 3, 8
    return options


if __name__ == "__main__":
    main()
