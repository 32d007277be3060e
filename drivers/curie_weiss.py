"""Curie-Weiss: error of the learned dynamics of M against patch side, beside exact laws: Fig. 8, 9.

Chen et al., arXiv:2511.12842, appendix D.1: 64^2 spins at T = 1.1, h = 0.1, learned from n_s = 8^2
to 64^2. Three methods: ours (patches evolve for a short time), the published length of n_s flips
with lambda = K, and the naive baseline with that length. There is no sampling in the comparison:
the truth is the exact law of M, the law of a learned SDE comes from quadrature, so that what is
left is the error of learning; error bars are over seeds.

The published error compares frame i of the truth, after i n flips, with the model at i times
their mean time in equilibrium. Far from it the first frames are shorter, so this truth runs behind
the clock, by up to 0.1 in M, and so do models that relax too slowly. "Error as published" is that
with the noise of 20 + 20 trajectories, whose mean is calculated: 3.6e-4 of an exact model, of which
2.5e-4 are noise. "Error alone" is against the truth at the right times, without noise.

Why the published protocol was 1.2, 1.8 and 1.6 times the published errors at 8, 16 and 32: we had
compared at the right times. As published it has (three seeds) 0.0046(4), 0.00131(4), 0.00075(0)
and 0.00040(1), published 0.00438, 0.00106, 0.00079 and 0.00041. Of what else differs, one at a time
at 16 and 32: snapshots at all 200 frames alike, -0.00004(6) and -0.00001(1); LocalRelax in windows
of 16^2 on their own for 256 flips, +0.0001(1) and +0.00002(1); the published network, constant
sigma, loss with its floor of 1e-4 and last epoch, 30 epochs instead of 100, +0.0000(1) and
+0.0002(1), with single seeds 0.0002 apart. Six sampled evaluations of one model, 20 + 20 runs each,
scatter by 0.00008 at 16 and 0.00006 at 32. So the single 0.00106 at 16 may be chance; we know no
other reason for it.

Why the stationary mean of ours is high, by 0.0011(2) at 32 and 0.0025(8) at 16 in five seeds: the
fit of the network. The mean rests where the drift is 0, and polynomials of degree 7 fitted to the
same pairs have that zero within 0.0002(2) and 0.0002(3) of the exact one; so it is not the states
nor the duration. It is an error of the drift of 3e-4 to 8e-4. Learned from pairs without sampling
noise, at 32, the zero is 0.0009(4) high, in four times the steps 0.0004(2); of sampled pairs more
steps only add scatter, 0.002(2). What in the training makes its sign is open.

Writes into --out: results.json, table.md, curie_weiss.png, rollout.h5, models/, and parts/, by
which a run that was stopped goes on.
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
import torch

from mpiflow import metrics
from mpiflow.core import parallel
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import (
    FinishedParts,
    Report,
    farm,
    results_directory,
    trajectory,
    with_error,
)
from mpiflow.experiments.style import figure
from mpiflow.files.schema import STANDARD
from mpiflow.learn import pair_goodness
from mpiflow.learn.closure.curie_weiss import (
    LearnedLaw,
    MagnetizationModel,
    MeanFieldPlan,
    after_flips,
    generate_pairs,
    learn,
    learned_law,
)
from mpiflow.learn.sde import MacroscopicSDE
from mpiflow.learn.training import Schedule
from mpiflow.run.progress import Progress
from mpiflow.solvers import master_equation
from mpiflow.systems.curie_weiss import CurieWeiss

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
SAMPLED = "error as published"
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
    """Exact laws: mean and std of M (times, groups), the mean after i n flips, and what stays."""

    times: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    by_flips: np.ndarray
    stationary: tuple[float, float]
    gap: float

    def as_published(self, mean: np.ndarray, std: np.ndarray) -> float:
        """The published error of a model, against frames of n flips and with its noise."""
        groups = range(len(MAGNETIZATIONS))
        errors = [metrics.mean_error(mean[:, g], self.by_flips[:, g]) for g in groups]
        return float(np.mean(errors)) + self.noise(std)

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
        at_least(options, seeds=1, steps=1, frames=1)
        tasks = list(product(options.patches, METHODS, range(options.seeds)))
        plans = {task: plan_of(task, options) for task in tasks}
    out = results_directory(options.out, comm, options.device)
    facts = {"states": options.states, "repeats": options.repeats, "steps": options.steps}
    facts |= {"frames": options.frames, "epochs": options.epochs, "cards": True}
    kept = FinishedParts(out / "parts", facts)
    epochs = Schedule(epochs=options.epochs)
    total = len(tasks[comm.rank :: comm.size])
    with Progress(max(1, total), f"learn {len(tasks)} models", comm) as progress:
        done = 0

        def work(task: Task) -> dict[str, np.ndarray]:
            nonlocal done
            patch, method, seed = task
            pairs = generate_pairs(SYSTEM, plans[task], seed=seed)
            assert pairs is not None
            kind = "naive" if method == "naive" else "partial"
            steps = steps_of(method, options)
            model = learn(
                SYSTEM, pairs, method=kind, seed=seed, dt=FRAME / steps, schedule=epochs  # type: ignore[arg-type]
            )  # fmt: skip
            sde, card = model.sde, np.array(json.dumps(model.card | {"method": method}))
            law = learned_law(
                sde, MAGNETIZATIONS, dt=FRAME / steps, steps=steps, frames=options.frames
            )
            done += 1
            progress.update(done, patch=patch, method=method, seed=seed)
            rest = np.array([*law.stationary, law.gap])
            weights = {f"sde.{name}": value.numpy() for name, value in sde.state_dict().items()}
            return {
                "grid": law.grid,
                "mean": law.mean,
                "std": law.std,
                "rest": rest,
                "card": card,
                **weights,
            }

        results = farm(tasks, work, comm, kept)
    if comm.rank == 0:
        exact = solve(options.frames)
        cards: dict[str, list[dict[str, Any]]] = {}
        for task, part in results.items():
            model = model_of(task, part, plans[task], options)
            patch, method, seed = task
            cards.setdefault(f"{method}, {patch}", []).append(model.card)
            model.save(out / "models" / f"{method.replace(' ', '_')}_{patch}_{seed}")
            if task == tasks[0]:
                write_rollout(out / "rollout.h5", model, exact, options)
        laws = {task: law_of(part) for task, part in results.items()}
        write(out, laws, exact, pair_goodness.table(cards), options)


def law_of(part: dict[str, np.ndarray]) -> LearnedLaw:
    mean, std, gap = map(float, part["rest"])
    return LearnedLaw(part["grid"], part["mean"], part["std"], (mean, std), gap)


def model_of(
    task: Task, part: dict[str, np.ndarray], plan: MeanFieldPlan, options: argparse.Namespace
) -> MagnetizationModel:
    _, method, _ = task
    sde = MacroscopicSDE(1, width=32, factor=1.0 if method == "naive" else float(plan.patches))
    sde.load_state_dict(
        {k[4:]: torch.as_tensor(value) for k, value in part.items() if k.startswith("sde.")}
    )
    card = json.loads(str(part["card"]))
    return MagnetizationModel(sde, plan, FRAME / steps_of(method, options), card)


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
    means: list[np.ndarray] = []
    for law in after_flips(start, birth, death, sites):
        means.append(law @ values)
        settled = len(means) > 1 and abs(means[-1] - means[-2]).max() < 1e-9
        if settled or len(means) > frames:
            break
    by_flips = np.concatenate([means, np.repeat(means[-1:], frames + 1 - len(means), axis=0)])
    rest = moments(master_equation.stationary(birth, death))
    gap = master_equation.spectral_gap(birth, death)
    return Exact(times, mean, std, by_flips, (float(rest[0]), float(rest[1])), gap)


def compare(law: LearnedLaw, exact: Exact) -> dict[str, float]:
    """The quantities of one model; errors are means over the initial magnetisations."""
    groups = range(len(MAGNETIZATIONS))
    error = [metrics.mean_error(law.mean[:, g], exact.mean[:, g]) for g in groups]
    spread = [metrics.spread_error(law.std[:, g], exact.std[:, g]) for g in groups]
    sampled = exact.as_published(law.mean, law.std)
    errors = (sampled, float(np.mean(error)), float(np.mean(spread)))
    return dict(zip(QUANTITIES, (*errors, *law.stationary, 1.0 / law.gap), strict=True))


def write(
    out: Path, laws: dict[Task, LearnedLaw], exact: Exact, fits: str, options: argparse.Namespace
) -> None:
    """Print and write the table, how well models fit, results.json and the figure."""
    perfect = exact.as_published(exact.mean, exact.std)
    known = dict(zip(QUANTITIES[3:], (*exact.stationary, 1.0 / exact.gap), strict=True))
    rest = [f"{value:.5f}" for value in known.values()]
    report = Report(out)
    report.table("patch", "method", "published", SAMPLED, "error alone", *QUANTITIES[2:])
    report.row("", "exact", "", f"{perfect:.2e}", "0", "0", *rest)
    errors: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    for patch, method in product(options.patches, METHODS):
        found = [compare(laws[patch, method, seed], exact) for seed in range(options.seeds)]
        published = PUBLISHED.get(patch, (None, None))[method == "naive"]
        row = [f"{patch}", method, "" if published is None else f"{published:.2e}"]
        for name in QUANTITIES:
            values = np.array([each[name] for each in found])
            small = name in (SAMPLED, "error")
            row.append(with_error(values, ".2e" if small else ".5f"))
            report.add(
                f"{name} patch {patch} {method}",
                values,
                published=published if name == SAMPLED else None,
                exact=perfect if name == SAMPLED else known.get(name),
            )
            if name == SAMPLED:
                errors[method].append(values)
        report.row(*row)
    report.add(f"{SAMPLED}, of the exact law", perfect, exact=perfect)
    report.say(fits)
    report.write()
    draw(out / "curie_weiss.png", laws, exact, errors, options)


def draw(
    path: Path,
    laws: dict[Task, LearnedLaw],
    exact: Exact,
    errors: dict[str, list[np.ndarray]],
    options: argparse.Namespace,
) -> None:
    """Errors against patch side (Fig. 8), then mean and spread in time for one side (Fig. 9)."""
    page = figure(13, 3.4)
    axes = page.subplots(1, 1 + len(METHODS))
    for method, found in errors.items():
        mean = [values.mean() for values in found]
        bars = [np.nan_to_num(metrics.standard_error(values)) for values in found]
        axes[0].errorbar(options.patches, mean, bars, fmt="o-", capsize=3, label=method)
    for column, (name, style) in enumerate((("published", "ks--"), ("published naive", "k^:"))):
        points = [(p, PUBLISHED[p][column]) for p in options.patches if p in PUBLISHED]
        if points:
            axes[0].plot(*zip(*points, strict=True), style, ms=4, lw=1, label=name)
    axes[0].axhline(exact.as_published(exact.mean, exact.std), color="0.6", lw=0.8)
    axes[0].set(xscale="log", yscale="log", xlabel="side of a patch", ylabel=SAMPLED)
    axes[0].set_xticks(options.patches, [f"{p}" for p in options.patches], minor=False)
    axes[0].legend()
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
        panel.set(xlabel="time (attempts per spin)", ylabel="magnetization", ylim=(-0.6, 0.8))
        panel.set_title(f"{method}, from {patch}^2")
    page.suptitle("Curie-Weiss 64^2, T=1.1, h=0.1   shaded: exact, black: learned")
    page.savefig(path, dpi=130)


def write_rollout(
    path: Path, model: MagnetizationModel, exact: Exact, options: argparse.Namespace
) -> None:
    """Sampled trajectories of one model, as many as in the published evaluation."""
    start = np.repeat(MAGNETIZATIONS, TRAJECTORIES)
    members = np.arange(len(start))
    values, _ = model.sde.rollout_at(
        start[:, None], members, exact.times, dt=model.dt, seed=options.seed
    )
    config = {"size": SIDE, "temperature": SYSTEM.temperature, "field": SYSTEM.field}
    with trajectory(
        path,
        "macroscopic curie-weiss",
        {**config, **model.card, "patch": model.plan.patch},
        options.seed,
        dims={"member": len(start)},
        variables=[STANDARD["initial_magnetization"], STANDARD["magnetization"].over("member")],
    ) as writer:
        writer.write_static("initial_magnetization", start)
        for time, frame in zip(exact.times, values, strict=True):
            writer.append(float(time), {"magnetization": frame[:, 0]})


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/curie_weiss")
    add = parser.add_argument
    add("--patches", type=int, nargs="+", default=[8, 16, 32, 64], help="patch sides")
    add("--seeds", type=int, default=3, help="independent data sets and trainings")
    add("--states", type=int, default=10_000, help="large states in each training set")
    add("--repeats", type=int, default=64, help="partial evolutions of a state; 1/8 if long ones")
    add("--steps", type=int, default=10, help="short partial evolutions that make a frame")
    add("--frames", type=int, default=500, help=f"frames, {FRAME} units of time apart")
    add("--epochs", type=int, default=60, help="most epochs of a training")
    add("--seed", type=int, default=20251112, help="seed of the rollout")
    options = parser.parse_args()
    if options.smoke:
        options.patches, options.seeds, options.states, options.repeats = [16], 2, 200, 8
        options.epochs, options.frames = 3, 8
    return options


if __name__ == "__main__":
    main()
