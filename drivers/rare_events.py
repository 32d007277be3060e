"""Rare first passages by multilevel splitting: exact ones, direct runs, and a learned law.

Processes wait in one phase until they are in the other: a Curie-Weiss chain and all states of a
4 x 4 lattice with nearest neighbours, whose mean first passages are solved for exactly; the law of
blocks of spins with a Kac coupling, learned from large lattices that do not go over; and boxes of
these spins (--spins, minutes each). Splitting (mpiflow.first_passage) is compared with the
exact means, and with direct runs where these can be had.

The coordinate is the magnetization, with the sign turned round. Of boxes, home is the mean of it in
the phase, and the first level 1.5 times its spread beyond; of the chain and the lattice, the start
and one flip. All other levels are placed by trials. Errors are those between independent repeats,
each with levels of its own; of direct runs, the mean over the root of the number of passages.

Writes into --out: results.json, table.md, rare_events.png, model/, and parts/, by which a driver
that was stopped goes on.

    mpirun -n 2 .venv/bin/python drivers/rare_events.py --out results/rare_events
"""

from __future__ import annotations

import argparse
import time as clock
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiflow import CurieWeiss, FieldSimulation, Ising, KacSimulation, initial, metrics
from mpiflow.core import parallel
from mpiflow.experiments.kac_boxes import law_of_boxes, phase, waves
from mpiflow.experiments.options import at_least, driver_parser, list_of
from mpiflow.experiments.passages import Process, SmallLattice, birth_death, watched
from mpiflow.experiments.results import FinishedParts, Report, farm, results_directory
from mpiflow.experiments.style import figure
from mpiflow.learn.onsagerflow.model import OnsagerFlow, load_onsagerflow
from mpiflow.learn.splitting import first_passage, step_of
from mpiflow.solvers import master_equation
from mpiflow.systems.kac import Kac

#: Boxes: their step, how often they are looked at, and how long they take to forget their start.
STEP, EVERY, SETTLE = 0.2, 1.0, 30
#: Blocks of boxes, the width of the coupling and the reach of the learned J in blocks.
BLOCK, GAMMA, RADIUS = 4, 4.0, 4
#: Options that no part depends on, but for those of the learned law on its trials.
BESIDE = ("out", "split", "directly", "spins", "law_trials")
PROCESSES = ("chain", "lattice", "law", "spins")
NAMES = {
    "chain": "Curie-Weiss chain",
    "lattice": "4 x 4 lattice",
    "law": "learned law of a box",
    "spins": "spins of a box",
}
#: Process, temperature, splitting or direct.
Task = tuple[str, float, str]
Found = dict[Task, dict[str, np.ndarray]]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        trials = {"trials": 20, "law_trials": 20, "box_trials": 20}
        at_least(options, repeats=2, direct=10, sites=8, **trials)
    out = results_directory(options.out, comm, options.device)
    facts = {k: v for k, v in vars(options).items() if k not in BESIDE}
    of_law = ("learn", "learn_temperatures", "runs", "frames", "seed")
    learned = FinishedParts(out / "parts", {name: getattr(options, name) for name in of_law})
    model = box_law(options, comm, learned, out / "model")
    found: Found = {}
    for name in PROCESSES:
        tasks: list[Task] = [
            (name, t, way)
            for way, temperatures in (("splitting", options.split), ("direct", options.directly))
            for t in temperatures[name]
        ]
        more = {"law_trials": options.law_trials} if name == "law" else {}
        kept = FinishedParts(out / "parts", facts | more)
        found |= farm(tasks, lambda task: run(task, options, model), comm, kept, NAMES[name])
    if comm.rank == 0:
        write(out, found, options)


def box_law(
    options: argparse.Namespace, comm: MPI.Intracomm, kept: FinishedParts, out: Path
) -> OnsagerFlow:
    """The law of blocks, learned from lattices of which none goes over; what is there is kept."""
    if not comm.bcast(kept.get("law") is not None and (out / "model.json").exists()):
        about: dict[str, Any] = {
            "size": options.learn, "block": BLOCK, "gamma": GAMMA, "frames": options.frames,
            "seed": options.seed,
        }  # fmt: skip
        runs = [(t, i) for t in options.learn_temperatures for i in range(options.runs)]
        seen = farm(runs, lambda one: waves(*one, **about), comm)
        model = law_of_boxes(list(seen.values()), RADIUS, comm)
        with parallel.agreed(comm):
            if comm.rank == 0:
                model.save(out)
                kept.put("law", learned=1.0)
    comm.Barrier()
    with parallel.agreed(comm):
        return load_onsagerflow(out)


# -- processes -----------------------------------------------------------------------------


def small(
    name: str, temperature: float, options: argparse.Namespace
) -> tuple[Process, int, Callable[[], float]]:
    """A process with an exact mean first passage: it, the goal, and what finds the mean."""
    if name == "lattice":
        lattice = SmallLattice(Ising(temperature))
        goal = lattice.sites - 2
        return lattice.process(), goal, lambda: lattice.mean_passage(goal)
    system, n = CurieWeiss(temperature), options.sites
    down, up = (rates[::-1] for rates in system.chain(n))  # of the number of spins down
    birth, death = up, down
    start, goal = round(n * (1 - system.fixed_point()) / 2), n // 2
    times = master_equation.passage_times(birth, death)[start:goal]
    return birth_death(birth, death, start), goal, lambda: float(times.sum())


def box(
    name: str, temperature: float, side: int, members: int, seed: int, model: OnsagerFlow
) -> FieldSimulation | KacSimulation:
    """Boxes in one phase, of spins or of the learned law, on one rank."""
    m = phase(temperature)
    if name == "spins":
        sim = KacSimulation(
            Kac(temperature, GAMMA, 0.0), side, solver="midpoint", tau=STEP, seed=seed,
            members=members, comm=MPI.COMM_SELF,
        )  # fmt: skip
        sim.set_spins(initial.independent, magnetization=m)
        return sim
    field = model.field(
        temperature, (side // BLOCK,) * 2, block=BLOCK, dt=STEP, seed=seed, members=members,
        comm=MPI.COMM_SELF,
    )  # fmt: skip
    field.set(m)
    return FieldSimulation(field, seed, members)


def turned(states: np.ndarray) -> np.ndarray:
    """Minus the magnetization of boxes."""
    return -states.mean(axis=(1, 2), dtype=float)


def run(task: Task, options: argparse.Namespace, model: OnsagerFlow) -> dict[str, np.ndarray]:
    begun = clock.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # m beyond what was learned
        way = split if task[2] == "splitting" else direct
        found = way(task[0], task[1], options, model)
    return {**found, "seconds": np.array(clock.process_time() - begun)}


def split(
    name: str, temperature: float, options: argparse.Namespace, model: OnsagerFlow
) -> dict[str, np.ndarray]:
    seed = options.seed + round(1000 * temperature)
    exact = np.nan
    if name in PROCESSES[:2]:
        process, goal, solved = small(name, temperature, options)
        exact = solved()
        home = float(process.start) if name == "chain" else 0.0
        ways: dict[str, Any] = {"home": home, "goal": goal, "first": home + 1}
        ways |= {"trials": options.trials}
    else:
        members = min(100, options.box_trials)
        sim = box(name, temperature, options.box, members, seed, model)
        process = Process(step_of(sim, EVERY), turned, np.array(0))
        sim.advance_to(SETTLE * EVERY)
        seen = []
        for _ in range(SETTLE):
            sim.advance_to(sim.time + EVERY)
            seen.append(turned(sim.state))
        home, spread = float(np.median(seen)), float(np.std(seen))
        start = sim.state[np.argmin(turned(sim.state))].copy()
        process = Process(process.step, turned, start)
        trials = options.law_trials if name == "law" else options.box_trials
        ways = {"home": home, "goal": phase(temperature) / 2, "trials": trials}
        ways["first"] = min(home + 1.5 * spread, home + (ways["goal"] - home) / 2)
    passage = first_passage(
        process.step, process.coordinate, process.start, share=options.share,
        repeats=options.repeats, seed=seed, **ways,
    )  # fmt: skip
    return {
        "mean": np.array(passage.mean),
        "error": np.array(passage.error),
        "chance": np.array(passage.chance),
        "levels": np.array([len(levels) for levels in passage.levels]),
        "steps": np.array(passage.steps),
        "exact": np.array(exact),
    }


def direct(
    name: str, temperature: float, options: argparse.Namespace, model: OnsagerFlow
) -> dict[str, np.ndarray]:
    seed, copies = options.seed + 7 + round(1000 * temperature), options.direct
    if name in PROCESSES[:2]:
        process, goal, _ = small(name, temperature, options)
        waited = np.zeros(copies)
        states, rng = np.repeat(process.start[None], copies, axis=0), np.random.default_rng(seed)
        moving = np.arange(copies)
        while len(moving):
            new, took = process.step(states[moving], rng)
            states[moving] = new
            waited[moving] += took
            moving = moving[process.coordinate(new) < goal]
        return {"waited": waited, "passed": np.ones(copies, bool)}
    sim = box(name, temperature, options.box, copies, seed, model)
    goal_at = phase(temperature) / 2
    waited, passed = watched(
        lambda: sim.advance_to(sim.time + EVERY), lambda: turned(sim.state) >= goal_at, copies,
        EVERY, options.horizon,
    )  # fmt: skip
    return {"waited": waited, "passed": passed}


# -- what is left --------------------------------------------------------------------------


def write(out: Path, found: Found, options: argparse.Namespace) -> None:
    report = Report(out)
    report.table(
        *("process", "T", "exact", "direct", "splitting", "error"),
        *("to exact, spins or direct", "levels", "CPU s: splitting, direct"),
    )
    for name in PROCESSES:
        for t in options.split[name]:
            one, by_hand = found[name, t, "splitting"], found.get((name, t, "direct"))
            mean, error = float(one["mean"]), float(one["error"])
            exact = float(one["exact"])
            cells = [NAMES[name], f"{t:g}", "" if np.isnan(exact) else f"{exact:.4g}"]
            seconds = f"{float(one['seconds']):.0f}"
            if by_hand is not None:
                seen, spread = metrics.exponential_mean(by_hand["waited"], by_hand["passed"])
                cells.append(f"{seen:.4g} ± {spread:.2g}")
                seconds += f", {float(by_hand['seconds']):.0f}"
                report.add(f"{name}, T={t:g}: direct", seen, spread, exact=exact)
            else:
                seen, spread = np.nan, np.nan
                cells.append("")
            report.add(f"{name}, T={t:g}: splitting", mean, error, exact=exact)
            against = reference(name, t, found, exact, (seen, spread))
            cells += [f"{mean:.4g} ± {error:.2g}", f"{error / mean:.1%}"]
            if against is None:
                cells.append("")
            else:
                ratio = mean / against[0]
                own = ratio * np.hypot(error / mean, against[1] / against[0])
                cells.append(f"{ratio:.3f} ± {own:.3f}")
                report.add(f"{name}, T={t:g}: ratio", ratio, own, exact=1.0)
            cells += [f"{one['levels'].mean():.1f}", seconds]
            report.row(*cells)
    report.say(
        f"{options.repeats} repeats of {options.trials} trials a level (boxes "
        f"of spins {options.box_trials}, of the law {options.law_trials}); {options.direct} direct "
        f"runs; chain of {options.sites} spins; boxes of {options.box}^2 spins, gamma = {GAMMA:g}, "
        f"blocks of {BLOCK}^2, looked at every {EVERY:g}; law learned from {options.learn}^2 spins."
    )
    report.write()
    draw(out / "rare_events.png", found, options)


def reference(
    name: str, t: float, found: Found, exact: float, seen: tuple[float, float]
) -> tuple[float, float] | None:
    """What splitting is compared with, and its error: the exact mean, that of spins by splitting
    for the law, or of direct runs."""
    if not np.isnan(exact):
        return exact, 0.0
    spins = found.get(("spins", t, "splitting"))
    if name == "law" and spins is not None:
        return float(spins["mean"]), float(spins["error"])
    return None if np.isnan(seen[0]) else seen


def draw(path: Path, found: Found, options: argparse.Namespace) -> None:
    """Splitting beside what it is compared with, over 1 / T."""
    page = figure(11.0, 3.8)
    for panel, names in zip(page.subplots(1, 3), (("chain",), ("lattice",), ("law", "spins")),
                            strict=True):  # fmt: skip
        for name in filter(options.split.get, names):
            at = sorted(options.split[name])
            mean, error, exact = (
                np.array([float(found[name, t, "splitting"][key]) for t in at])
                for key in ("mean", "error", "exact")
            )
            panel.errorbar(1 / np.array(at), mean, error, fmt="o", ms=4, label=f"{name}, splitting")
            if not np.isnan(exact).any():
                panel.plot(1 / np.array(at), exact, "k-", lw=0.8, label="exact")
            there = [t for t in at if (name, t, "direct") in found]
            values: Callable[[float], tuple[float, float]] = lambda t, name=name: (  # noqa: E731
                metrics.exponential_mean(
                    *(found[name, t, "direct"][k] for k in ("waited", "passed"))
                )
            )
            if there:
                direct_mean, spread = np.transpose([values(t) for t in there])
                panel.errorbar(
                    1 / np.array(there), direct_mean, spread, fmt="x", ms=7, label=f"{name}, direct"
                )
        panel.set(xlabel="1 / T", ylabel="mean first passage", yscale="log")
        panel.legend()
    page.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/rare_events")
    add, floats = parser.add_argument, list_of(float)
    add("--sites", type=int, default=100, help="spins of the Curie-Weiss chain")
    add("--repeats", type=int, default=8, help="independent estimates, for errors")
    add("--trials", type=int, default=4000, help="from each level, of the chain and the lattice")
    add("--box", type=int, default=32, help="spins a side of a box, 32 or more, a multiple of 8")
    add("--box-trials", type=int, default=200, help="from each level, of boxes of spins")
    add("--law-trials", type=int, default=800, help="from each level, of the learned law of boxes")
    add("--share", type=float, default=0.2, help="of trials that get to the next level")
    add("--direct", type=int, default=100, help="direct runs of each process")
    add("--horizon", type=float, default=1e5, help="longest direct run of boxes")
    add("--learn", type=int, default=512, help="spins a side of what the law is learned from")
    add("--learn-temperatures", type=floats, default=[0.95, 0.91, 0.85], help="its temperatures")
    add("--runs", type=int, default=4, help="such runs at each temperature")
    add("--frames", type=int, default=200, help="frames of each, 0.1 apart")
    add("--seed", type=int, default=1)
    temperatures = list_of(float, empty=True)
    add("--spins", type=temperatures, default=[], help="temperatures of boxes of spins, splitting")
    options = parser.parse_args()
    options.split = {
        "chain": [0.8, 0.75, 0.7, 0.65, 0.62],
        "lattice": [2.0, 1.6, 1.4, 1.2, 1.0],
        "law": [0.95, 0.91, 0.85],
        "spins": options.spins,
    }
    options.directly = {
        "chain": [0.8, 0.75],
        "lattice": [2.0, 1.6, 1.4],
        "law": [0.95],
        "spins": options.spins,
    }
    if options.smoke:
        options.sites, options.repeats, options.trials, options.box_trials = 30, 2, 50, 20
        options.law_trials = 20
        options.learn, options.learn_temperatures, options.runs, options.frames = 64, [0.96], 2, 30
        options.split = {"chain": [0.8], "lattice": [2.0], "law": [0.9], "spins": []}
        options.directly = {"chain": [0.8], "lattice": [2.0], "law": [0.9], "spins": []}
        options.direct, options.horizon, options.box = 10, 20.0, 16
    return options


if __name__ == "__main__":
    main()
