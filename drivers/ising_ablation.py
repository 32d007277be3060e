"""What may be left out: kinds of x_t against kinds of evolution, Table 3 and Fig. 11.

Chen et al., arXiv:2511.12842, appendix D.4: 64^2 Ising spins at T = 2.25, h = 0, from patches of
16^2. States are snapshots of 64^2 trajectories, 16^2 snapshots blown up, or 16^2 snapshots doubled
and relaxed; they evolve (a) whole, with loss L, (b) in one patch, with L, (c) in one patch, with
L_p and lambda = K. Beyond the paper: (d) is (c) with the covariance about the means of each
patch, without what their different drifts add to it; distances, errors over seeds, reversals,
and what a second truth of the same size has. The paper shows histograms only.
Every trajectory starts at a true state; held: what had to be held inside the training range;
lost: trajectories that leave it for good if they are not held (the paper's NaN).
Models: M alone with polynomials (mpiflow.learn.closure.mirror.MagnetizationSDE; how many terms was
chosen after looking), and the published latents with networks, for 20 epochs: chosen after
60 (on other pairs) gave too small a density near M = 0.
Writes into --out: results.json, table.md, ising_ablation.png, truth.h5, parts/.
Full cost: about 900 CPU seconds (estimated from parts).

    mpirun -n 2 .venv/bin/python drivers/ising_ablation.py --out results/ising_ablation
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow.experiments import equilibrium
from mpiflow.experiments.results import (
    Report,
    farm,
    with_error,
)
from mpiflow.learn.closure import equilibrium as eq
from mpiflow.learn.closure import mirror
from mpiflow.systems.ising import Ising

SYSTEM, LARGE, PATCH = Ising(temperature=2.25), 64, 16
SOURCES: tuple[eq.Source, ...] = ("snapshots", "naive", "hierarchical")
#: Evolution, loss and the published panels of each column.
METHODS = {
    "a": "whole, L",
    "b": "patch, L",
    "c": "patch, L_p",
    "d": "patch, L_p, within patches",
}
PUBLISHED = {"snapshots": "shown", "naive": "NaN", "hierarchical": "shown"}


def main() -> None:
    options = parse()
    comm, out, kept = equilibrium.begin(options)
    truths = farm(
        [("truth", i) for i in range(2)], lambda task: true_law(task[1], options), comm, kept
    )
    spins = truths["truth", 0]["spins"]
    tasks = list(product(SOURCES, range(options.seeds)))
    results = farm(tasks, lambda task: cells(task, spins, options), comm, kept)
    if comm.rank == 0:
        equilibrium.write_truth(
            out / "truth.h5", SYSTEM, LARGE, options.watch, truths["truth", 0]["m"], options.seed
        )
        write(out, results, truths["truth", 0]["m"], truths["truth", 1]["m"], options)


def true_law(number: int, options: argparse.Namespace) -> dict[str, Any]:
    m, spins = equilibrium.truth(SYSTEM, LARGE, options.watch, seed=options.seed + number)
    return {"m": m, "spins": spins}


def cells(
    task: tuple[eq.Source, int], spins: np.ndarray, options: argparse.Namespace
) -> dict[str, Any]:
    """Train and predict with one kind of states: M of every column and what was held."""
    source, number = task
    seed = 1000 * options.seed + number
    states = eq.training_states(
        SYSTEM, source, options.states, burn=options.burn, every=options.every, seed=seed
    )
    whole = eq.evolve(SYSTEM, states, kind="full", patch=PATCH, repeats=options.repeats, seed=seed)
    patches = (LARGE // PATCH) ** 2
    part = eq.evolve(
        SYSTEM, states, kind="partial", patch=PATCH, repeats=patches * options.repeats, seed=seed
    )
    closures = mirror.train_closures(whole.z, seed=seed)
    y = eq.features(spins, PATCH)
    out: dict[str, Any] = {}
    for method in METHODS:
        found = mirror.models(
            whole if method == "a" else part,
            closures,
            factor=float(patches) if method in "cd" else 1.0,
            within=method == "d",
            seed=seed,
            epochs=options.epochs,
        )
        for model, (sde, latents) in found.items():
            z0 = mirror.starts(y @ latents.T, mirror.signs(latents))
            free = options.predicted.burn
            done = equilibrium.predict(
                sde, z0, options.predicted, dt=whole.duration, seed=seed, free=free
            )
            out[f"m_{method}_{model}"] = done.m.astype(np.float32)
            out[f"shares_{method}_{model}"] = np.array([done.held, done.edge, done.lost])
    return out


def write(
    out: Path,
    results: dict[Any, dict[str, np.ndarray]],
    true: np.ndarray,
    again: np.ndarray,
    options: argparse.Namespace,
) -> None:
    """Tables, results.json and the figure."""
    shares = ("held", "edge", "lost")
    exact = equilibrium.summary(true, options.watch, true)
    report = Report(out)
    report.table("case", "published", *equilibrium.QUANTITIES, *shares)
    rows, entries = equilibrium.truth_rows(true, again, options.watch, blank=2)
    report.entries += entries
    for row in rows:
        report.row(*row, *[""] * len(shares))
    for model, source, method in product(mirror.MODELS, SOURCES, METHODS):
        runs = [results[source, number] for number in range(options.seeds)]
        found = [
            equilibrium.summary(run[f"m_{method}_{model}"], options.predicted, true) for run in runs
        ]
        name = f"{source} {method} {model}"
        cells_, more = equilibrium.model_row(name, found, exact)
        held = np.array([run[f"shares_{method}_{model}"] for run in runs])
        published = PUBLISHED[source] if method != "d" else ""
        case = f"{source}, {METHODS[method]}, {mirror.MODELS[model]}"
        report.row(case, published, *cells_, *(with_error(column, ".2g") for column in held.T))
        report.entries += more
        for i, share in enumerate(shares):
            report.add(f"{share} {name}", held[:, i])
    report.say(equilibrium.note(options.watch, options.predicted, true))
    report.write()
    panels = {
        f"{mirror.MODELS[model]}, {source}\n{METHODS[method]}": np.concatenate(
            [results[source, number][f"m_{method}_{model}"] for number in range(options.seeds)],
            axis=1,
        )
        for model, source, method in product(mirror.MODELS, SOURCES, METHODS)
    }
    equilibrium.draw(out / "ising_ablation.png", panels, dict.fromkeys(panels, true), len(METHODS))


def parse() -> argparse.Namespace:
    repeats = "whole evolutions of a state; K times that of patches"
    return equilibrium.parse(__doc__, "results/ising_ablation", repeats, 101)


if __name__ == "__main__":
    main()
