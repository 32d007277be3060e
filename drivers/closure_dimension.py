"""How many closures, and of which encoder? Test error against the closure dimension.

Beyond arXiv:2511.12842, which has two closures throughout: section III.2's Ising model, 64^2 at
T = 2.5, h = 0.1, learned from patches of 16^2 with 0 to 6 closures of five encoders
(mpiflow.learn.closure.encoders): ours, linear, the drifts of (M, rho), a translation-invariant
convolution, and the published one with a quarter of its channels. All learn from the same states,
spins and partial evolutions; the published one is dear, so it has a small set, and ours the same
beside it.

The test error is the published one over (M, rho) alone, since closures differ, over --steps frames
of 6 units of time: 100, not the published 500, so that relaxation weighs more beside equilibrium.
"Drift left" needs no learned dynamics: of the variance of the exact drifts of M and rho that
cubics of (M, rho) leave, the share that cubics of z leave, held out, on true trajectories; 1
without closures. "1000 loss" is the one-step loss of (M, rho) on held-out pairs less that without
closures, same data and seed: below 0 is better.

Chosen after looking at one seed: closures of the convolution are made linearly independent of
(M, rho) and of one another (encoders.conditioned); without it two and four of them had spread
errors of 0.5 and 0.9 instead of 0.12 and 0.11. Those of ours and of the published encoder are as
they come: with many closures these pay for being nearly dependent, and the convolution does not.

Writes into --out: results.json, table.md, closure_dimension.png, truth.h5, and parts/, by which a
run that was stopped goes on. Full cost: about 12 CPU minutes, estimated from single models.

    mpirun -n 2 .venv/bin/python drivers/closure_dimension.py --out results/closure_dimension
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI

from mpiflow import initial
from mpiflow.core import parallel
from mpiflow.experiments import ising as experiment
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import (
    FinishedParts,
    Report,
    Results,
    farm,
    results_directory,
    with_error,
)
from mpiflow.experiments.style import figure, line
from mpiflow.learn.closure import encoders
from mpiflow.learn.closure.dataset import DataPlan
from mpiflow.learn.sde import MacroscopicSDE
from mpiflow.learn.training import Schedule, fit
from mpiflow.run.progress import Progress
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.systems.ising import Ising

#: Data set, encoder, closures, seed.
Task = tuple[str, str, int, int]
Found = Results[dict[str, np.ndarray]]
SYSTEM = Ising(temperature=2.5, field=0.1)
MAGNETIZATIONS = (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75)
#: Published test error of two closures, over all four latents and 500 frames.
PUBLISHED = 0.000798
FRAME = 6.0
#: When and of how many trajectories of each magnetisation the drifts are looked at.
DRIFT_TIMES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
DRIFT_MEMBERS = 80
#: Settings that are compared: data set, encoder, closures.
MODELS = [
    ("full", "none", (0,)),
    ("full", "ours", (1, 2, 3, 4, 6)),
    ("full", "linear", (1, 2, 3, 4, 6)),
    ("full", "drifts", (2,)),
    ("full", "convolution", (1, 2, 4)),
    ("small", "none", (0,)),
    ("small", "ours", (1, 2, 4)),
    ("small", "published", (1, 2, 4)),
]
QUANTITIES = ("error", "spread_error", "left_m", "left_rho", "loss")


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, seeds=3, replicas=2, steps=1)
        plans = {
            "full": DataPlan(states=options.states, repeats=8),
            "small": DataPlan(states=max(10, 2 * options.states // 5), repeats=8),
        }
    out = results_directory(options.out, comm, options.device)
    facts = {
        "states": options.states,
        "replicas": options.replicas,
        "steps": options.steps,
        "seed": options.seed,
        "epochs": options.epochs,
    }
    kept = FinishedParts(out / "parts", facts)
    truth = true_trajectories(options, kept, comm)
    # Tasks of the same pairs follow one another, so that a rank makes these once.
    tasks: list[Task] = [
        (data, kind, number, seed)
        for wanted in plans
        for seed in range(options.seeds)
        for data, kind, numbers in options.models
        for number in numbers
        if data == wanted
    ]
    with Progress(max(1, len(tasks[comm.rank :: comm.size])), f"{len(tasks)} models", comm) as bar:
        work = worker(plans, truth, options, bar)
        results: Found = farm(tasks, work, comm, kept)
    if comm.rank == 0:
        experiment.write_truth(out / "truth.h5", truth, SYSTEM, plans["full"].large, options.seed)
        write(out, results, truth, options)


def true_trajectories(
    options: argparse.Namespace, kept: FinishedParts, comm: MPI.Intracomm
) -> experiment.Truth:
    """The microscopic reference, on every rank. Collective."""
    part = comm.bcast(kept.get("truth") if comm.rank == 0 else None)
    if part is None:
        times = FRAME * np.arange(options.steps + 1)
        truth = experiment.simulate_truth(
            SYSTEM, 64, MAGNETIZATIONS, options.replicas, times, {}, seed=options.seed, comm=comm
        )
        if truth is not None:
            names = ("times", "magnetizations", "observed", "energy", "flips")
            part = {name: getattr(truth, name) for name in names}
            kept.put("truth", **part)
        part = comm.bcast(part)
    return experiment.Truth(**part, closures={})


def true_states(start: np.ndarray, times: tuple[float, ...], seed: int) -> np.ndarray:
    """Spins (members * times, 64, 64) on this rank, member by member, from magnetisations."""
    sim = Simulation(SYSTEM, 64, dt=0.25, seed=seed, members=len(start), comm=MPI.COMM_SELF)
    sim.set_spins(initial.shuffled, magnetization=start)
    frames = []
    for time in times:
        if time > sim.time:
            sim.advance(time - sim.time)
        frames.append(np.array(sim.spins()))
    return np.stack(frames, axis=1).reshape(-1, 64, 64)


def worker(
    plans: dict[str, DataPlan],
    truth: experiment.Truth,
    options: argparse.Namespace,
    bar: Progress,
) -> Callable[[Task], dict[str, np.ndarray]]:
    """What makes the results of one task; the pairs and states of the last ones are kept."""
    done = 0

    @lru_cache(maxsize=1)
    def pairs_of(data: str, seed: int) -> encoders.SpinPairs:
        return encoders.generate_spin_pairs(SYSTEM, plans[data], seed=seed)

    @lru_cache(maxsize=1)
    def states() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """States at the start of the truth, states of the drifts, and the drifts."""
        start = true_states(np.repeat(MAGNETIZATIONS, options.replicas), (0.0,), options.seed)
        # All magnetisations in turn, so that each is in every fold of the cross-validation.
        mixed = np.tile(MAGNETIZATIONS, options.drift_members)
        some = true_states(mixed, DRIFT_TIMES, options.seed + 1)
        return start, some, encoders.exact_drift(SYSTEM, some)

    def work(task: Task) -> dict[str, np.ndarray]:
        nonlocal done
        data, kind, number, seed = task
        pairs, patch = pairs_of(data, seed), plans[data].patch
        epochs = min(options.epochs, 5 if kind == "published" else 20)
        how = (
            Schedule(epochs=epochs, batch=32, learning_rate=1e-3)
            if kind == "published"
            else Schedule(epochs=epochs, batch=options.batch[data])
        )
        name = "linear" if kind == "none" else kind
        encoder = encoders.train_encoder(name, SYSTEM, pairs, number, seed=seed, schedule=how)
        z0, increments, dt = encoders.latent_pairs(pairs, encoder)
        torch.manual_seed(seed)
        sde = MacroscopicSDE(z0.shape[1], factor=float(pairs.plan.patches))
        sde.set_scales(z0, increments, dt)
        schedule = Schedule(epochs=options.epochs, batch=options.batch[data])
        fit(sde, (z0, increments, dt), seed=seed, schedule=schedule)
        held = slice(len(z0) - round(schedule.validation * len(z0)), None)
        loss = encoders.observable_loss(sde, z0[held], increments[held], dt[held])
        start, some, drift = states()
        left = encoders.unexplained(encoder.latents(some, patch), drift)
        left = left / encoders.unexplained(encoders.observe(some), drift)
        members = np.arange(len(start))
        path, clipped = sde.rollout_at(
            encoder.latents(start, patch),
            members,
            truth.times,
            dt=pairs.plan.duration,
            seed=options.seed,
        )
        compared = experiment.compare(truth.observed, path[..., :2], len(MAGNETIZATIONS), clipped)
        done += 1
        bar.update(done, data=data, encoder=kind, closures=number, error=compared.error)
        return {
            "error": np.array(compared.error),
            "spread_error": np.array(compared.spread_error),
            "floor": np.array(compared.floor),
            "clipped": np.array(clipped),
            "left_m": left[0],
            "left_rho": left[1],
            "loss": np.array(loss.mean()),
        }

    return work


# -- what is left behind -------------------------------------------------------------------


def write(out: Path, results: Found, truth: experiment.Truth, options: argparse.Namespace) -> None:
    """Print and write the table, results.json and the figure."""
    report = Report(out)
    report.table(
        *("states", "encoder", "closures", "published", "test error of (M, rho)", "spread error"),
        *("drift of M left", "drift of rho left", "1000 loss", "clipped"),
    )
    curves: dict[tuple[str, str], list[tuple[int, dict[str, np.ndarray]]]] = {}
    for data, kind, numbers in options.models:
        for number in numbers:
            runs = [results[data, kind, number, seed] for seed in range(options.seeds)]
            found = {name: np.array([float(run[name]) for run in runs]) for name in QUANTITIES}
            bare = [results[data, "none", 0, seed]["loss"] for seed in range(options.seeds)]
            found["loss"] = found["loss"] - np.array(bare, float)
            curves.setdefault((data, kind), []).append((number, found))
            known = PUBLISHED if (kind, number) == ("published", 2) else None
            for name in QUANTITIES:
                label = f"{name} {data} {kind} {number} closures"
                report.add(label, found[name], published=known if name == "error" else None)
            cells = [with_error(found[n], ".4f") for n in QUANTITIES[1:4]]
            report.row(
                f"{options.states if data == 'full' else 2 * options.states // 5}",
                kind,
                f"{number}",
                "" if known is None else f"{known:.5f}",
                with_error(found["error"]),
                *cells,
                with_error(1e3 * found["loss"], ".2f"),
                f"{sum(int(run['clipped']) for run in runs)}",
            )
    floor = float(next(iter(results.values()))["floor"])
    report.say(
        f"{options.seeds} seeds. A perfect model has a test error of {floor:.1e}, from sampling "
        f"{options.replicas} + {options.replicas} trajectories; {options.steps} frames of "
        f"{FRAME:g} units of time. The published error is over all latents and 500 frames."
    )
    report.write()
    draw(out / "closure_dimension.png", curves, floor)


def draw(
    path: Path,
    curves: dict[tuple[str, str], list[tuple[int, dict[str, np.ndarray]]]],
    floor: float,
) -> None:
    """Test error, spread error and drift left against the number of closures."""
    page = figure(13, 3.8)
    names = (
        ("error", "test error of (M, rho)"),
        ("spread_error", "spread error"),
        ("left_m", "share of the drift of M left"),
        ("left_rho", "share of the drift of rho left"),
    )
    for axes, (name, label) in zip(page.subplots(1, 4), names, strict=True):
        for i, ((data, kind), points) in enumerate(curves.items()):
            if kind == "none":
                continue
            points = curves[data, "none"] + points
            values = np.array([found[name] for _, found in points])
            axes.errorbar(
                [number for number, _ in points],
                values.mean(axis=1),
                values.std(axis=1, ddof=1) / np.sqrt(values.shape[1]),
                fmt="o-" if data == "full" else "s--",
                color=line(i)["color"],
                ms=3,
                lw=1,
                capsize=2,
                label=f"{kind}{'' if data == 'full' else ', small data'}",
            )
        axes.set(xlabel="closures", ylabel=label, yscale="log")
        if name == "error":
            axes.axhline(floor, color="0.6", lw=0.8)
            axes.legend()
    page.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/closure_dimension")
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="data sets and trainings, 3 or more")
    add("--states", type=int, default=10_000, help="large states; the small set has 2/5 of them")
    add("--replicas", type=int, default=140, help="true trajectories for each magnetization")
    add("--steps", type=int, default=100, help="frames, 6 units of time apart")
    add("--seed", type=int, default=20251112, help="seed of the truth and of the rollouts")
    options = parser.parse_args()
    options.models, options.epochs, options.drift_members = MODELS, 60, DRIFT_MEMBERS
    # As many steps for the small set as for the full one.
    options.batch = {"full": 512, "small": 192}
    if options.smoke:
        options.states, options.replicas, options.steps = 120, 4, 4
        options.epochs, options.drift_members = 2, 3
        options.models = [(data, kind, numbers[-1:]) for data, kind, numbers in MODELS]
    return options


if __name__ == "__main__":
    main()
