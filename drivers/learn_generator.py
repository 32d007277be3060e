"""The generator of a Kac model learned from fields: kernel, constants, law and rollouts.

For every prior, kernel and level of noise: what is recovered from solutions of the nonlocal
equation and from microscopic runs, against the truth (mesoscopic-model, section 4). Held out are
initial states, temperatures and fields. Writes into --out: results.json, table.md,
learn_generator.png and models/.

    mpirun -n 2 .venv/bin/python drivers/learn_generator.py --out results/learn_generator

``--priors`` names what is learned, of PRIORS: beside the three forms ``joint``, the network and its
kernel together after the two steps of ``mlp``, and for measured noise the strong form from smooth
fields (``smooth``, ``band``) or by least squares without instruments (``squares``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from mpiflow import initial
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import FinishedParts, Report, farm, results_directory, with_error
from mpiflow.experiments.style import COLOURS, figure
from mpiflow.learn.generator import fit as learn
from mpiflow.learn.generator import goodness as generator_goodness
from mpiflow.learn.generator.data import FieldData, Rates, from_equation, from_files, random_starts
from mpiflow.learn.generator.from_files import REACH
from mpiflow.learn.generator.joint import CELLS, train_together
from mpiflow.learn.generator.law import BINS, find_kernel, train_network
from mpiflow.learn.generator.model import Generator, in_gauge, true_kernel
from mpiflow.learn.generator.smooth import smooth
from mpiflow.learn.training import Schedule
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.systems.kac import Kac, kac_kernel

#: (T, h) learned from; those of other initial states; and held out: three between, one outside.
LEARNED = tuple((t, h) for t in (1.0, 0.7, 1.4, 2.0) for h in (0.0, 0.25, 0.5))
TESTED = ((1.0, 0.0), (1.0, 0.5), (2.0, 0.0), (2.0, 0.5))
HELD_OUT = ((1.2, 0.4), (0.8, 0.1), (1.7, 0.1), (4.0, 1.0))
#: Correlation lengths of initial states in points; 1/4 is white.
LENGTHS = (0.25, 1.0, 4.0)
BLOCK, END, EVERY = 8, 5.0, 0.1
#: What can be learned, and the prior of its model.
PRIORS = {
    "strong": "strong", "linear": "linear", "mlp": "mlp", "joint": "mlp",
    "smooth": "strong", "band": "strong", "squares": "strong",
}  # fmt: skip
#: Of fields with measured noise only.
OF_NOISE = ("smooth", "band", "squares")
#: Options that choose what is done, not how.
CHOOSES = ("out", "priors", "kernels", "noise", "gammas", "seed", "seeds", "smoke")
Task = tuple[str, float, str, str, int]  # source or level of noise, gamma, prior, kernel, seed


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        check(options)
    out = results_directory(options.out, comm, options.device)
    micro = microscopic(options, comm)
    tasks = [
        (source, gamma, prior, kernel, seed)
        for gamma in options.gammas
        for source in [*(f"{level:g}" for level in options.noise), *(["micro"] if micro else [])]
        for kernel in options.kernels
        for seed in seeds(options)
        for prior in options.priors
        if kernel == options.kernels[0] or gamma == options.gammas[0]
        # The network's law is nothing to a kernel of hundreds of weights but time.
        if PRIORS[prior] != "mlp" or (kernel != "spectral" and gamma == options.gammas[0])
        if prior not in OF_NOISE or source not in ("0", "micro")
    ]
    # Both ways to learn a network share their first steps, and are one part of the work.
    networks = "+".join(prior for prior in options.priors if PRIORS[prior] == "mlp")
    parts: dict[tuple[Any, ...], list[Task]] = {}
    for task in tasks:
        name = networks if PRIORS[task[2]] == "mlp" else task[2]
        parts.setdefault((*task[:2], *task[3:], name), []).append(task)
    facts = {name: value for name, value in vars(options).items() if name not in CHOOSES}
    kept = FinishedParts(out / "parts", facts)

    def part(name: tuple[Any, ...]) -> dict[str, np.ndarray]:
        return {"json": np.array(json.dumps(attempted(parts[name], options, micro, out)))}

    done = farm(list(parts), part, comm, kept)
    every = {name: json.loads(str(result["json"])) for name, result in done.items()}
    found = {
        task: result
        for name, unit in parts.items()
        for task in unit
        if (result := every[name][task[2]]) is not None
    }
    names = ["order 1", "order 2", "order 4", "rollout", "least squares", "central"]
    names = names if "strong" in options.priors and micro else []
    kept = FinishedParts(out / "parts", vars(options))
    others = farm(names, lambda name: {"error": estimator(name, options, micro)}, comm, kept)
    extra = {name: float(result["error"]) for name, result in others.items()}
    if comm.rank == 0:
        finish(out, found, extra, options, [task for task in tasks if task not in found])
        draw(out / "learn_generator.png", found, options)


# -- data ----------------------------------------------------------------------------------


def seeds(options: argparse.Namespace) -> range:
    """Of initial states, noise and networks, for each its own."""
    return range(options.seed, options.seed + options.seeds)


def conditions(runs: int) -> tuple[np.ndarray, np.ndarray]:
    """Temperature and field of each run."""
    pairs = np.array([LEARNED[i % len(LEARNED)] for i in range(runs)])
    return pairs[:, 0], pairs[:, 1]


_made: dict[tuple[float, int], FieldData] = {}


def solutions(options: argparse.Namespace, gamma: float, seed: int) -> FieldData:
    """Of the nonlocal equation: initial states of all lengths at all conditions."""
    if (gamma, seed) in _made:
        return _made[gamma, seed]
    lengths = np.repeat(LENGTHS, len(LEARNED)).tolist()
    starts = random_starts(options.runs, options.points, seed, lengths=lengths)
    times = np.arange(round(options.end / EVERY) + 1) * EVERY
    _made[gamma, seed] = from_equation(
        kac_kernel(gamma), starts, times, *conditions(options.runs), block=BLOCK,
        comm=MPI.COMM_SELF,
    )  # fmt: skip
    return _made[gamma, seed]


Micro = dict[tuple[float, int], FieldData]


def microscopic(options: argparse.Namespace, comm: MPI.Intracomm) -> Micro:
    """Block means of microscopic runs by gamma and seed, on every rank. Collective."""
    if options.micro:
        data = from_files(options.micro)
        return {(options.gammas[0], seed): data for seed in seeds(options)}
    if not options.micro_runs:
        return {}
    # The last runs are held out.
    total = options.micro_runs + len(TESTED)
    learned_from = conditions(options.micro_runs)
    temperature, field = np.concatenate([learned_from, np.transpose(TESTED)], axis=1)
    frames = round(options.end / EVERY) + 1

    def run(task: tuple[float, int, int]) -> np.ndarray:
        gamma, seed, i = task
        system = Kac(temperature[i], gamma, field[i])
        sim = KacSimulation(
            system, options.micro_points * BLOCK, solver="midpoint", tau=0.05,
            seed=1000 * seed + i, comm=MPI.COMM_SELF,
        )  # fmt: skip
        length = min(4.0, options.micro_points / 8) * BLOCK
        sim.set_spins(
            initial.gaussian,
            magnetization=0.3 * ((i + i // len(LEARNED)) % 3 - 1),
            correlation_length=length,
            amplitude=0.5,
        )
        fields = []
        for frame in range(frames):
            if frame:
                sim.advance(EVERY)
            fields.append(sim.coarse_sums(BLOCK).reshape((options.micro_points,) * 2) / BLOCK**2)
        return np.stack(fields)

    kinds = [(g, seed) for g in options.gammas for seed in seeds(options)]
    made = farm([(*kind, i) for kind in kinds for i in range(total)], run, comm)
    times = np.arange(frames) * EVERY
    return {
        kind: FieldData(
            np.stack([made[*kind, i] for i in range(total)]), times, temperature, field
        )
        for kind in kinds
    }  # fmt: skip


def rates_of(task: Task, options: argparse.Namespace, micro: Micro) -> Rates:
    """The right estimator for each kind of noise; see mpiflow.learn.generator.data."""
    source, gamma, prior, _, seed = task
    if source == "micro":
        whole = micro[gamma, seed]
        data = whole.select(np.arange(len(whole.fields) - len(TESTED)))
    else:
        data = solutions(options, gamma, seed).with_noise(float(source), seed + 1)
    if prior == "linear":  # has no temperature
        data = data.select(data.temperature == LEARNED[0][0])
    if source == "micro":
        return data.rates_of("dynamic")
    if prior == "squares":
        return data.rates(window=options.window)
    rates = data.rates_of("measured" if float(source) else "none", options.window)
    return smooth(rates, "band" if prior == "band" else "gain") if prior in OF_NOISE else rates


# -- learning ------------------------------------------------------------------------------


def attempted(
    unit: list[Task], options: argparse.Namespace, micro: Micro, out: Path
) -> dict[str, dict[str, Any] | None]:
    """What was found for each prior; None, and a word, where there is no solution."""
    found: dict[str, dict[str, Any] | None] = {task[2]: None for task in unit}
    try:
        for task, model, errors in models(unit, options, micro):
            found[task[2]] = judged(model, errors, task, options, micro, out)
    except InputError as error:
        print(*unit[0], f"failed: {error}", flush=True)
    return found


def models(
    unit: list[Task], options: argparse.Namespace, micro: Micro
) -> Iterator[tuple[Task, Generator, dict[str, float]]]:
    """Train the models of tasks that share their first steps; each with its expected errors."""
    _, gamma, prior, kernel, seed = unit[0]
    rates = rates_of(unit[0], options, micro)
    points = rates.state.shape[1]
    radius = min(REACH * gamma / BLOCK, points // 2)
    torch.manual_seed(seed)
    mirror = not options.no_mirror
    model = Generator(PRIORS[prior], kernel, points, radius, mirror=mirror)  # type: ignore[arg-type]
    if model.network is None:
        solution = learn.solve(model, rates, tolerance=1e-5)
        yield unit[0], model, learn.errors(model, solution)
        return
    law, solution = find_kernel(model, rates, options.degree, 1e-4)
    schedule = Schedule(epochs=options.epochs, batch=256, patience=40)
    train_network(model, law, rates, options.bins, schedule, options.rounds, seed)
    for task in sorted(unit, key=lambda task: task[2] == "joint"):
        if task[2] == "joint":
            train_together(model, law, rates, options.rounds, min(CELLS, options.bins))
        model.card |= generator_goodness.judge(model, rates)
        yield task, model, learn.errors(model, solution)


def judged(
    model: Generator,
    errors: dict[str, float],
    task: Task,
    options: argparse.Namespace,
    micro: Micro,
    out: Path,
) -> dict[str, Any]:
    """Save one model and compare it with the truth."""
    source, gamma, _, _, seed = task
    result: dict[str, Any] = {"errors": errors}
    if model.network is None:
        result["constants"] = model.report()
    model.card |= {"source": source, "gamma": gamma, "block": BLOCK, "seed": seed}
    result |= {name: model.card[name] for name in ("goodness", "doubts")}
    model.save(out / "models" / "_".join(map(str, task)))
    result |= compared(model, task, options, micro)
    worst = max(run[-1] for run in result["rollout"])
    print(*task, f"kernel {100 * result['kernel']:.2f} %, rollout {100 * worst:.2f} %", flush=True)
    return result


def compared(
    model: Generator, task: Task, options: argparse.Namespace, micro: Micro
) -> dict[str, Any]:
    """Errors of kernel, law and rollouts; profiles for the figure."""
    source, gamma, _, _, seed = task
    prior = model.prior
    points = model.points
    truth = true_kernel(Kac(1.0, gamma), points, BLOCK)
    shape, b, c = in_gauge(truth)
    own = model.kernel_array()
    wanted = shape if prior == "mlp" else truth / (LEARNED[0][0] if prior == "linear" else 1.0)
    out: dict[str, Any] = {
        "kernel": distance(own, wanted),
        "shape": distance(in_gauge(own)[0], shape),
        "profile": own[0, : points // 2].tolist(),
        "profile_truth": wanted[0, : points // 2].tolist(),
    }
    held = list(TESTED[:2] if prior == "linear" else TESTED)
    lengths = (2.0, 4.0)
    starts = random_starts(len(held), points, seed + 50, lengths=lengths)
    if source == "micro":
        starts = micro[gamma, seed].fields[-len(TESTED) :, 0][: len(held)]
    pairs = np.array(held)
    times = np.linspace(0.0, options.end, 6)
    out["rollout"], test, guess = rollouts(model, gamma, starts, times, pairs)
    if source == "micro":
        # Against the spins themselves there is a floor: the noise of the block means.
        seen = micro[gamma, seed].fields[-len(TESTED) :, -1][: len(held)]
        out["floor"] = [distance(a, s) for a, s in zip(test.fields[:, -1], seen, strict=True)]
        out["against spins"] = [distance(a[-1], s) for a, s in zip(guess, seen, strict=True)]
    if prior != "linear":
        more = np.array(HELD_OUT)
        others = starts[np.arange(len(more)) % len(starts)]
        out["held out"], *_ = rollouts(model, gamma, others, times, more)
    # F on its domain: the values that I and m take in solutions that were not learned from.
    m = test.fields[:, ::2].reshape(-1, points, points)
    drive = np.fft.irfft2(np.fft.rfft2(m) * np.fft.rfft2(shape).real, s=m.shape[-2:])
    repeat = len(m) // len(held)
    beta, h = (np.repeat(v, repeat)[:, None, None] for v in (1 / pairs[:, 0], pairs[:, 1]))
    beta, h = np.broadcast_to(beta, m.shape), np.broadcast_to(h, m.shape)
    some = np.s_[:, ::4, ::4]
    drive, m, beta, h = drive[some], m[some], beta[some], h[some]
    exact = -m + np.tanh(beta * (b * drive + c * m + h))
    error = model.law_in_gauge(drive, m, beta, h) - exact
    out["law"] = float(np.sqrt(np.mean(error**2)))
    out["law relative"] = float(np.sqrt(np.mean(error**2) / np.mean(exact**2)))
    if prior == "mlp":
        out["structure"] = structure(model, drive, m, beta, h)
    return out


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def rollouts(
    model: Generator, gamma: float, starts: np.ndarray, times: np.ndarray, pairs: np.ndarray
) -> tuple[list[list[float]], FieldData, np.ndarray]:
    """Relative errors (runs, times) of rollouts, what they should be, and what they are."""
    exact = from_equation(
        kac_kernel(gamma), starts, times, pairs[:, 0], pairs[:, 1], block=BLOCK,
        comm=MPI.COMM_SELF,
    )  # fmt: skip
    step = 0.5 if model.prior == "mlp" else 0.25  # a network costs, and RK4 is that good
    guess = model.rollout(starts, times, pairs[:, 0], pairs[:, 1], step=step)
    errors = [
        [distance(a, b) for a, b in zip(x, y, strict=True)]
        for x, y in zip(guess, exact.fields, strict=True)
    ]
    return errors, exact, guess


def structure(
    model: Generator, drive: np.ndarray, m: np.ndarray, beta: np.ndarray, h: np.ndarray
) -> dict[str, float]:
    r"""Whether a network has found :math:`-A m + \tanh \beta (b I + c m + h)`, and its constants.

    Then :math:`\partial_m F = -A + (c / b)\,\partial_I F` at all points, and
    :math:`\mathrm{artanh}(F + A m) / \beta - h = b (I + (c / b) m)`.
    """
    given = [torch.as_tensor(a.ravel().copy()) for a in (drive, m, beta, h)]
    given[0].requires_grad_()
    given[1].requires_grad_()
    value = model.law(*given)
    by_drive, by_m = (g.numpy() for g in torch.autograd.grad(value.sum(), given[:2]))
    columns = np.stack([-np.ones_like(by_m), by_drive], axis=1)
    (a, ratio), *_ = np.linalg.lstsq(columns, by_m, rcond=None)
    x, y, s, f = (t.detach().numpy() for t in given)
    inside = value.detach().numpy() + a * y
    good = abs(inside) < 0.95
    u = np.arctanh(inside[good]) / s[good] - f[good]
    v = (x + ratio * y)[good]
    slope = float((u @ v) / (v @ v))
    unexplained = float(np.sqrt(np.mean((u - slope * v) ** 2) / np.mean(u**2)))
    return {"A": float(a), "B": slope, "C": slope * float(ratio), "unexplained": unexplained}


def estimator(name: str, options: argparse.Namespace, micro: Micro) -> float:
    """Error of the radial kernel (strong prior, first gamma) by other estimates of the rates."""
    gamma = options.gammas[0]
    data = solutions(options, gamma, options.seed)
    if name == "central":  # of microscopic runs: wrong
        data = micro[gamma, options.seed]
    noisy = data.with_noise(options.noise[-1], options.seed + 1)
    radius = min(REACH * gamma / BLOCK, data.points // 2)
    model = Generator("strong", "radial", data.points, radius)
    if name == "rollout":
        learn.solve(model, noisy.rates(window=options.window, instrument=True), tolerance=1e-3)
        loss = learn.rollout_loss(model, noisy, min(5, len(data.times) - 1), 32, options.seed)
        learn.polish(model, loss, 20)
    else:
        if name == "least squares":
            rates = noisy.rates(window=options.window)
        else:
            order = 2 if name == "central" else int(name[-1])
            rates = replace(data.rates(order, every=2), interval=0.0)
        try:
            learn.solve(model, rates, tolerance=1e-4)
        except InputError:
            return float("nan")
    return distance(model.kernel_array(), true_kernel(Kac(1.0, gamma), data.points, BLOCK))


# -- report --------------------------------------------------------------------------------


def finish(
    out: Path, found: dict[Task, dict[str, Any]], extra: dict[str, float],
    options: argparse.Namespace, failed: list[Task],
) -> None:  # fmt: skip
    """table.md and results.json."""
    report = Report(out)
    report.say(
        "Relative errors in percent, of the kernel with the one expected from the spread between "
        f"runs; rollouts at t = {options.end:g}: mean (worst) over held-out initial states, and at "
        "(T, h) = " + ", ".join(map(str, HELD_OUT)) + ", the last outside of what was learned."
    )
    report.table(
        *("data", "gamma", "prior", "kernel", "kernel error", "shape error", "A - 1", "B + C - 1"),
        *("D - 1", "F, rms", "rollout", "held out T, h"),
    )
    for kind in dict.fromkeys(task[:4] for task in found):
        row(report, kind, [r for task, r in found.items() if task[:4] == kind])
    goodness = generator_goodness.table({", ".join(map(str, t)): r for t, r in found.items()})
    report.say("\n".join(goodness))
    notes = {
        "order 1": "forward differences as they are, no noise",
        "order 2": "central differences, no noise",
        "order 4": "five points, no noise",
        "rollout": f"instruments, then rollouts of 5 frames, {100 * options.noise[-1]:g} % noise",
        "least squares": f"polynomials, no instruments, {100 * options.noise[-1]:g} % noise",
        "central": "central differences of microscopic runs",
    }
    if extra:
        report.table("estimate of the rates", "kernel error")
    for name, error in extra.items():
        report.row(notes[name], f"{100 * error:.2f}")
        report.add(f"kernel error, {notes[name]}", error)
    verification(report, {task: r for task, r in found.items() if task[4] == options.seed})
    if failed:
        names = "; ".join(" ".join(map(str, task)) for task in failed)
        report.say(f"Without a solution, and left out: {names}.")
    report.write()


def row(report: Report, kind: tuple[str, float, str, str], results: list[dict[str, Any]]) -> None:
    """A line of the table, and its entries: means over the seeds, with standard errors."""
    source, gamma, prior, kernel = kind
    form = PRIORS[prior]

    def of(values: list[float], form: str = ".2f") -> str:
        return with_error(100 * np.array(values), form).replace("± +", "± ")

    found = [constants(r, form) for r in results]
    last = np.array([[run[-1] for run in r["rollout"]] for r in results])
    bars = [r["errors"] for r in results]
    kernels = [r["kernel"] for r in results]
    bar = 100 * np.mean([e["kernel"] for e in bars])
    cells = [f"{of(kernels)} ({bar:.2f})", of([r["shape"] for r in results])]
    for name in ("A", "mass", "D"):
        text = of([c[name] - 1 for c in found], "+.2f") if name in found[0] else ""
        told = len(results) == 1 and name in bars[0]
        cells.append(text + (f" ± {100 * bars[0][name]:.2f}" if told else ""))
    held = np.array([[run[-1] for run in r.get("held out", [])] for r in results]).mean(axis=0)
    laws = [r["law"] for r in results]
    cells += [
        with_error(laws, ".1e"),
        f"{of(last.mean(axis=1).tolist())} ({100 * last.max(axis=1).mean():.2f})",
        ", ".join(f"{100 * v:.2f}" for v in held) or "-",
    ]
    source = source if source == "micro" else f"{100 * float(source):g} % noise"
    report.row(source, f"{gamma:g}", prior, kernel, *cells)
    name = f"{source}, gamma {gamma:g}, {prior}, {kernel}"
    report.add(f"kernel error, {name}", kernels, bars[0]["kernel"] if len(results) == 1 else None)
    report.add(f"worst rollout error, {name}", last.max(axis=1))
    report.add(f"rms of F, {name}", laws)


def constants(result: dict[str, Any], form: str) -> dict[str, float]:
    """A, B + C as ``mass``, and D of one model, as far as it has them."""
    known = result.get("constants", result.get("structure", {}))
    out = {"A": known["A"], "mass": known["B"] + known["C"] if form == "mlp" else known["mass"]}
    return out | ({"D": known["D"]} if form == "linear" else {})


def verification(report: Report, found: dict[Task, dict[str, Any]]) -> None:
    """How the learned structure is verified."""
    report.say(
        "How the structure is verified. (1) Only G = B J + C delta is identified (strong: "
        "B J + delta); mass and centre of J are a gauge, so kernels are compared in one. (2) A "
        "network that is told nothing must have dF/dm = -A + (C/B) dF/dI everywhere and "
        "artanh(F + A m) / beta - h linear in I; its unexplained part is below. (3) Temperatures "
        "and fields that were not learned from are predicted, above."
    )
    if any("structure" in r for r in found.values()):
        report.table("data", "prior", "kernel", "A", "B", "C", "unexplained")
    for (source, _, prior, kernel, _), r in found.items():
        if "structure" in r:
            report.row(source, prior, kernel, *(f"{v:.4f}" for v in r["structure"].values()))
    if not any("floor" in r for r in found.values()):
        return
    report.table("micro, gamma", "prior", "kernel", "against spins", "equation against spins")
    for (_, gamma, prior, kernel, _), r in found.items():
        if "floor" in r:
            pair = (f"{100 * np.mean(r[k]):.2f}" for k in ("against spins", "floor"))
            report.row(f"{gamma:g}", prior, kernel, *pair)


def draw(path: Path, found: dict[Task, dict[str, Any]], options: argparse.Namespace) -> None:
    """Kernels along an axis, and errors of rollouts in time."""
    picture = figure(10.4, 7.2)
    gamma, kernel = options.gammas[0], options.kernels[0]
    sources = [f"{options.noise[-1]:g}", "micro"][: 1 + any(task[0] == "micro" for task in found)]
    axes = picture.subplots(len(sources), 2, squeeze=False)
    for row, source in zip(axes, sources, strict=True):
        label = "microscopic runs" if source == "micro" else f"{100 * float(source):g} % noise"
        for prior, colour in zip(options.priors, COLOURS, strict=False):
            r = found.get((source, gamma, prior, kernel, options.seed))
            if r is None:
                continue
            reach = int(4 * gamma / BLOCK) + 1
            x = np.arange(len(r["profile"]))[:reach]
            row[0].plot(x, r["profile_truth"][:reach], color="k", lw=0.8)
            row[0].plot(x, r["profile"][:reach], "o", color=colour, ms=4, label=prior)
            times = np.linspace(0.0, options.end, len(r["rollout"][0]))
            row[1].plot(times, 100 * np.mean(r["rollout"], axis=0), color=colour, label=prior)
        row[0].set(xlabel="distance (points)", ylabel="kernel", title=f"{label}; line: truth")
        row[1].set(xlabel="time", ylabel="rollout error (%)", title=label)
        row[1].axhline(2.0, color="k", ls=":", lw=0.8)
        row[0].legend()
        row[1].legend()
    picture.savefig(path, dpi=130)


def check(options: argparse.Namespace) -> None:
    at_least(options, runs=len(LEARNED), epochs=1, seeds=1, bins=2)
    if options.micro_runs:  # or none
        at_least(options, micro_runs=len(LEARNED))
    if not options.noise or min(options.noise) < 0:
        raise InputError("noise", options.noise, "levels of 0 or more", "Leave it out.")
    for gamma in options.gammas:
        for points in (options.points, options.micro_points):
            kac_kernel(gamma).require_room((points * BLOCK,) * 2)
    if options.micro and len(options.gammas) != 1:
        raise InputError("gammas", options.gammas, "the one of the files", "Give one.")


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/learn_generator")
    add = parser.add_argument
    add("--micro", nargs="+", help="Trajectory files of kac runs, instead of own runs")
    add("--gammas", type=float, nargs="+", default=[16.0, 32.0], help="ranges of J in sites")
    add("--kernels", nargs="+", default=["radial", "free", "spectral"], help="parametrisations")
    add("--priors", nargs="+", default=["strong", "linear", "mlp", "joint", "smooth"],
        choices=PRIORS, help="what is learned")  # fmt: skip
    add("--noise", type=float, nargs="+", default=[0.0, 0.01, 0.05], help="levels of noise")
    add("--points", type=int, default=64, help="M of the equation")
    add("--micro-points", type=int, default=128, help="M of microscopic runs")
    add("--runs", type=int, default=36, help="solutions of the equation to learn from")
    add("--micro-runs", type=int, default=36, help="microscopic runs to learn from; 0: none")
    add("--window", type=int, default=7, help="frames of a local polynomial where there is noise")
    add("--degree", type=int, default=6, help="of the polynomials the network's kernel is found by")
    add("--bins", type=int, default=BINS, help="cells along I and along m for the network")
    add("--epochs", type=int, default=100, help="of the network")
    add("--rounds", type=int, default=12, help="of 20 steps of L-BFGS of the network")
    add("--no-mirror", action="store_true", help="do not tell the network F(-I,-m,-h) = -F(I,m,h)")
    add("--seed", type=int, default=1, help="of everything")
    add("--seeds", type=int, default=1, help="so many, one after another, for error bars")
    options = parser.parse_args()
    options.end = END
    if options.smoke:
        options.gammas, options.kernels, options.noise = [8.0], ["radial"], [0.05]
        options.points = options.micro_points = 16
        options.runs, options.micro_runs = 12, min(12, options.micro_runs)
        options.degree, options.epochs, options.rounds, options.bins = 3, 2, 1, 8
        options.end = 1.0
    return options


if __name__ == "__main__":
    main()
