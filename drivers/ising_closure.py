"""Test error of the learned macroscopic dynamics against patch side: Fig. 3 and 4.

Chen et al., arXiv:2511.12842, section III.2, first part: the large system is 64^2
at T = 2.5, h = 0.1; the microscopic simulator may be as small as 8^2. Prints ours
and the naive baseline beside the published numbers and writes into --out:
results.json, table.md, closure_<patch>.png, models/, truth.h5, parts/ (a driver that was stopped
goes on; 1 GB in full, to be deleted afterwards).

    mpirun -n 2 .venv/bin/python drivers/ising_closure.py --out results/ising_closure
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow.core import parallel
from mpiflow.experiments import ising as experiment
from mpiflow.experiments.figures import latent_figure
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import (
    FinishedParts,
    Report,
    Results,
    results_directory,
    with_error,
)
from mpiflow.learn import pair_goodness
from mpiflow.learn.closure.dataset import DataPlan
from mpiflow.learn.training import Schedule
from mpiflow.systems.ising import Ising

#: Published test errors (relative squared errors, one seed, 20 trajectories): ours, naive.
PUBLISHED = {
    8: (0.028369, 0.130593),
    16: (0.000798, 0.032041),
    32: (0.000450, 0.001286),
    64: (0.001953, 0.002089),
}
MAGNETIZATIONS = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
SYSTEM = Ising(temperature=2.5, field=0.1)
#: Options on which no training set or model depends.
LATER = ("out", "patches", "seeds", "replicas", "steps", "seed", "smoke")


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        plan = DataPlan(
            states=options.states,
            repeats=options.repeats,
            duration=options.duration,
            halo="wrap" if options.published else options.halo,
            buffer=options.buffer,
        )
        plans = {
            (patch, seed): replace(plan, patch=patch, flips=patch**2 if options.published else None)
            for patch in options.patches
            for seed in range(options.seeds)
        }
        schedule = Schedule(epochs=options.epochs)
        at_least(options, seeds=1, replicas=2, steps=1)
    out = results_directory(options.out, comm, options.device)
    facts = {name: value for name, value in vars(options).items() if name not in LATER}
    kept = FinishedParts(out / "parts", facts)
    data = experiment.generate(SYSTEM, plans, comm, kept)
    tasks: list[experiment.Task] = [
        (patch, method, seed) for patch, seed in plans for method in ("partial", "naive")
    ]
    models = experiment.learn(
        SYSTEM, data, tasks, comm=comm, factor=options.factor, schedule=schedule, kept=kept
    )
    # One step of the published grid is 4096 flips, 6.2 units of time on average.
    times = 6.0 * np.arange(options.steps + 1)
    encoders = {(p, s): models[p, "partial", s] for p, s in plans}
    truth = experiment.simulate_truth(
        SYSTEM,
        plan.large,
        MAGNETIZATIONS,
        options.replicas,
        times,
        encoders,
        seed=options.seed,
        comm=comm,
        # The closures of a truth are those of all models.
        kept=FinishedParts(out / "parts", {**vars(options), "out": None}),
    )
    results, _ = experiment.evaluate(models, truth, seed=options.seed, comm=comm)
    if comm.rank == 0:
        assert truth is not None
        experiment.write_truth(out / "truth.h5", truth, SYSTEM, plan.large, options.seed)
        for (patch, method, seed), model in models.items():
            model.save(out / "models" / f"{method}_{patch}_{seed}")
        cards: dict[str, list[dict[str, Any]]] = {}
        for (patch, method, _), model in models.items():
            cards.setdefault(f"{method}, {patch}", []).append(model.card)
        write(out, results, pair_goodness.table(cards), options, times)


def write(
    out: Path,
    results: Results[experiment.Comparison],
    fits: str,
    options: argparse.Namespace,
    times: np.ndarray,
) -> None:
    """Print and write the tables, results.json and one figure for each patch side."""
    report = Report(out)
    report.table(
        *("patch", "method", "published", "test error", "observables alone", "spread error"),
        *("noise floor", "clipped"),
    )
    for patch in options.patches:
        for column, method in enumerate(("partial", "naive")):
            runs = [results[patch, method, seed] for seed in range(options.seeds)]
            published = PUBLISHED.get(patch, (None, None))[column]
            error = [r.error for r in runs]
            report.row(
                f"{patch}",
                "ours" if method == "partial" else "naive",
                "" if published is None else f"{published:.5f}",
                with_error(error),
                with_error([r.observable_error for r in runs]),
                with_error([r.spread_error for r in runs]),
                f"{np.mean([r.floor for r in runs]):.1e}",
                f"{sum(r.clipped for r in runs)}",
            )
            for name in ("error", "observable_error", "spread_error"):
                values = [getattr(r, name) for r in runs]
                known = published if name == "error" else None
                report.add(f"{name} patch {patch} {method}", values, published=known)
        early = times <= 240.0
        first = results[patch, "partial", 0]
        latent_figure(
            out / f"closure_{patch}.png",
            times[early],
            tuple(m[early] for m in first.truth),  # type: ignore[arg-type]
            {
                label: tuple(m[early] for m in results[patch, method, 0].prediction)  # type: ignore[misc]
                for label, method in (("ours", "partial"), ("naive", "naive"))
            },
            groups=MAGNETIZATIONS,
            title=f"Ising 64^2, T=2.5, h=0.1, learned from {patch}^2",
        )
    report.say(fits)
    report.write()


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/ising_closure")
    add = parser.add_argument
    add("--patches", type=int, nargs="+", default=[8, 16, 32, 64], help="patch sides")
    add("--seeds", type=int, default=3, help="independent data sets and trainings")
    add("--states", type=int, default=20_000, help="large states in each training set")
    add("--repeats", type=int, default=16, help="partial evolutions of each state")
    add("--duration", type=float, default=0.5, help="length of a partial evolution")
    add("--halo", choices=["frozen", "wrap"], default="frozen", help="surroundings of a patch")
    add("--factor", type=float, help="lambda of our loss (default: K, the number of patches)")
    add(
        "--published",
        action="store_true",
        help="published partial evolution: a patch closed on itself, for patch^2 flips",
    )
    add("--buffer", type=int, default=0, help="sites around a patch that evolve with it")
    add("--epochs", type=int, default=60, help="most epochs of the SDE training")
    add("--replicas", type=int, default=500, help="true trajectories for each magnetization")
    add("--steps", type=int, default=500, help="frames, 6 units of time apart")
    add("--seed", type=int, default=20251112, help="seed of the truth and of the rollouts")
    options = parser.parse_args()
    if options.smoke:
        options.patches, options.seeds, options.states, options.repeats = [16], 2, 200, 2
        options.epochs, options.replicas, options.steps = 3, 4, 5
    return options


if __name__ == "__main__":
    main()
