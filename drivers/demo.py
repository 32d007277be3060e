"""The whole method in a quarter of a minute: learn 64^2 Ising dynamics from 16^2 patches, check it.

    mpirun -n 2 .venv/bin/python drivers/demo.py --out demo-out

Small systems on all ranks, hierarchical upsampling, partial evolution, closure
autoencoder, macroscopic SDE (and the naive baseline), microscopic truth, long
prediction, comparison. Leaves in --out: truth.h5 and rollout.h5 (Trajectory
files), demo.png, model/, table.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from mpiflow.core import parallel
from mpiflow.experiments import ising as experiment
from mpiflow.experiments.figures import latent_figure
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import Report, Results, results_directory
from mpiflow.learn.closure.dataset import DataPlan
from mpiflow.learn.closure.model import Method
from mpiflow.learn.training import Schedule
from mpiflow.systems.ising import Ising

SYSTEM = Ising(temperature=2.5, field=0.1)
MAGNETIZATIONS = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
METHODS: tuple[Method, ...] = ("partial", "naive")
PATCH, SEED = 16, 0


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        plan = DataPlan(patch=PATCH, states=options.states)
        schedule = Schedule(epochs=options.epochs)
        at_least(options, replicas=2)
    out = results_directory(options.out, comm, options.device)
    start = time.monotonic()
    data = experiment.generate(SYSTEM, {(PATCH, SEED): plan}, comm)
    tasks: list[experiment.Task] = [(PATCH, method, SEED) for method in METHODS]
    models = experiment.learn(SYSTEM, data, tasks, comm=comm, schedule=schedule)
    ours: experiment.Task = (PATCH, "partial", SEED)
    times = np.arange(0.0, options.time + 1.0, 2.0)
    truth = experiment.simulate_truth(
        SYSTEM,
        plan.large,
        MAGNETIZATIONS,
        options.replicas,
        times,
        {(PATCH, SEED): models[ours]},
        seed=options.seed,
        comm=comm,
    )
    results, kept = experiment.evaluate(models, truth, seed=options.seed, comm=comm, keep=[ours])
    if comm.rank == 0:
        assert truth is not None
        experiment.write_truth(out / "truth.h5", truth, SYSTEM, plan.large, options.seed)
        experiment.write_rollout(
            out / "rollout.h5", truth, kept[ours], models[ours], SYSTEM, options.seed
        )
        models[ours].save(out / "model")
        first = results[ours]
        latent_figure(
            out / "demo.png",
            times,
            first.truth,
            {
                "ours": first.prediction,
                "naive": results[PATCH, "naive", SEED].prediction,
            },
            groups=MAGNETIZATIONS,
            title="Ising 64^2, T=2.5, h=0.1, learned from 16^2 patches",
        )
        report_on(results, out).write()
        print(f"{out}/: truth.h5 rollout.h5 model/ results.json table.md demo.png")
        print(f"{comm.size} ranks, {time.monotonic() - start:.0f} s")


def report_on(results: Results[experiment.Comparison], out: Path) -> Report:
    """Relative squared error of the mean and relative error of the spread."""
    report = Report(out)
    report.table("method", "test error", "observables alone", "spread error", "noise floor")
    for method in METHODS:
        r, name = results[PATCH, method, SEED], "ours" if method == "partial" else "naive"
        numbers = f"{r.error:.5f}", f"{r.observable_error:.5f}", f"{r.spread_error:.3f}"
        report.row(name, *numbers, f"{r.floor:.1e}")
        report.add(f"{name}: test error", r.error)
        report.add(f"{name}: spread error", r.spread_error)
    return report


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "demo-out")
    add = parser.add_argument
    add("--states", type=int, default=16_000, help="large states in the training set")
    add("--epochs", type=int, default=50, help="most epochs of the SDE training")
    add("--replicas", type=int, default=100, help="true trajectories for each magnetization")
    add("--time", type=float, default=300.0, help="time to predict, in attempts per spin")
    add("--seed", type=int, default=20251112, help="seed of the truth and of the rollouts")
    options = parser.parse_args()
    if options.smoke:
        options.states, options.epochs, options.replicas, options.time = 200, 3, 4, 10.0
    return options


if __name__ == "__main__":
    main()
