"""Does a certificate hold? Its stated errors of the drift, and those that patches really have.

mpiflow certify proposes for how long patches may evolve from exact terms of first order in dt
(mpiflow.learn.certificate, beyond arXiv:2511.12842). Here they do evolve, for the time that is
proposed for an error of 20 % and of 10 %, so that it can be seen above the noise: from states of
runs, every patch of 16^2 by itself, many times, and for an alloy the chosen vacancy. With d the
drift of a state and c dt the error that its terms say, the measured error is the stated one times

    a = sum (shown - d) c dt / sum (c dt)^2

over states, which is 1 up to the next order in dt. Error bars are over groups of replicas. The
settings were fixed before any result was seen. Writes into --out: results.json, table.md. Full
cost: 4 minutes on one core.

    mpirun -n 2 .venv/bin/python drivers/certificate.py --out results/certificate
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from typing import Any

import numpy as np

from mpiflow.commands.certify import frames
from mpiflow.core import parallel
from mpiflow.core.block import Block
from mpiflow.core.mpi import MPI
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import FinishedParts, Report, farm, results_directory
from mpiflow.learn.certificate import alloy, spins
from mpiflow.learn.certificate.proposal import Aim, Proposal, proposals
from mpiflow.learn.certificate.terms import Terms, joined
from mpiflow.metrics import standard_error
from mpiflow.run.simulate import configured
from mpiflow.scaleup.alloy_partial import partial_evolution
from mpiflow.simulation import catalogue
from mpiflow.solvers.spins.rule_sublattice import RuleSublattice
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import Ising

SPINS: dict[str, Any] = {"size": 64, "time": 20, "save_every": 4, "members": 8}
#: Runs from disorder: the system, and its options.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Ising, T = 1.8, h = 0.1": ("ising", {"temperature": 1.8, "field": 0.1, **SPINS}),
    "Ising, T = 2.27, h = 0.1": ("ising", {"temperature": 2.27, "field": 0.1, **SPINS}),
    "Ising, T = 3.5, h = 0.1": ("ising", {"temperature": 3.5, "field": 0.1, **SPINS}),
    "Potts, q = 3, T = 1.1": ("potts", {"temperature": 1.1, **SPINS, "initial": "ordered"}),
    "NbMoTa, 1500 K": (
        "alloy",
        {
            "cells": 8, "temperature": 1500, "vacancies": 1, "time": 2e-8, "save_every": 4e-9,
            "members": 8, "initial": "random",
        },
    ),
}  # fmt: skip
PATCH, STEPS = 16, 4
ERRORS = (0.2, 0.1)
GROUPS = 8

#: Number of a case, of an error, and of a group of replicas.
Task = tuple[int, int, int]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, replicas=2, pairs=2)
    out = results_directory(options.out, comm, options.device)
    facts = {name: getattr(options, name) for name in ("replicas", "pairs", "seed", "less")}
    shape = (len(CASES), len(ERRORS), GROUPS)
    tasks = [(int(c), int(e), int(g)) for c, e, g in np.ndindex(shape)]
    kept = FinishedParts(out / "parts", {**facts, "cases": CASES, "errors": ERRORS})
    parts = farm(tasks, lambda task: measure(task, options), comm, kept, "replicas")
    if comm.rank == 0:
        finish(Report(out), parts, options)


# -- measurement ---------------------------------------------------------------------------


@lru_cache(maxsize=2)
def prepared(case: int, seed: int, less: int) -> tuple[Any, np.ndarray, Terms]:
    """A simulation, states of its run (B, ...), and their terms."""
    name, given = list(CASES.values())[case]
    config = configured(name, {"out": "run.h5"}, seed=seed, **given, quiet=True)
    if less > 1:
        config = config.model_copy(update={"members": 2, "time": config.time / 5})
    sim: Any = catalogue.build(config, MPI.COMM_SELF).sim
    seen = [np.array(states) for _, states in frames(config, sim)]
    if name == "alloy":
        return sim, np.concatenate(seen), joined([_of_alloy(sim, s) for s in seen])
    terms = joined([spins.terms(sim.system, s, [PATCH]) for s in seen])
    return sim, np.concatenate(seen), terms


def _of_alloy(sim: Any, states: np.ndarray) -> Terms:
    return alloy.terms(sim.system, sim.barriers, states)


def proposed(terms: Terms, error: int) -> Proposal:
    """For frozen surroundings without a buffer, the first of the cuts."""
    return proposals(terms, np.zeros(len(terms.drift)), Aim(error=ERRORS[error]))[0]


def measure(task: Task, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """The measured error over the stated one, by observable, of a group of replicas."""
    case, error, group = task
    sim, states, terms = prepared(case, options.seed, options.less)
    dt = proposed(terms, error).duration
    if list(CASES.values())[case][0] == "alloy":
        shown = of_vacancies(sim, states, dt, options.pairs, options.seed + group)
    else:
        shown = of_patches(sim.system, states, dt, options.replicas, options.seed + group)
    said = dt * (0.5 * terms.second + terms.cuts[0].surroundings)
    share = ((shown - terms.drift) * said).sum(axis=0) / (said**2).sum(axis=0)
    return {"share": share}


def of_patches(system: Any, states: np.ndarray, dt: float, replicas: int, seed: int) -> np.ndarray:
    """Drift that all patches of each state show together over dt, (B, d), the mean of replicas."""
    count, side = len(states), states.shape[1]
    corners = PATCH * np.stack(np.divmod(np.arange((side // PATCH) ** 2), side // PATCH), axis=1)
    many = np.repeat(states, len(corners), axis=0)
    origins = np.tile(corners, (count, 1))
    parts = spins.parts_of(system)
    make = Sublattice if isinstance(system, Ising) else RuleSublattice
    solver, total = make(system, dt / STEPS), np.zeros((count, len(parts.names)))
    for replica in range(replicas):
        members = np.arange(len(many)) + replica * len(many)
        block = Block.cut(many, origins, (PATCH, PATCH), members, policy="frozen")
        before = parts.touching(block.array)
        solver.advance(block, STEPS, seed=seed, stream="partial")
        change = parts.touching(block.array) - before
        total += change.reshape(count, len(corners), -1).sum(axis=1)
    return total / (side**2 * dt * replicas)


def of_vacancies(sim: Any, states: np.ndarray, dt: float, pairs: int, seed: int) -> np.ndarray:
    """The same of a randomly chosen vacancy of each state, (B, d)."""
    found = partial_evolution(
        states, np.arange(len(states)), sim.system, sim.barriers,
        seed=seed, duration=dt, repeats=pairs,
    )  # fmt: skip
    return np.asarray(found.increments().mean(axis=1) / dt)


# -- results -------------------------------------------------------------------------------


def finish(
    report: Report, parts: dict[Task, dict[str, np.ndarray]], options: argparse.Namespace
) -> None:
    report.table("states", "K", "dt", "observable", "stated error", "measured error")
    for case, name in enumerate(CASES):
        terms = prepared(case, options.seed, options.less)[2]
        for error in range(len(ERRORS)):
            one = proposed(terms, error)
            share = np.array([parts[case, error, g]["share"] for g in range(GROUPS)])
            for i, observable in enumerate(terms.names):
                measured = share[:, i] * one.error[i]
                mean, bar = measured.mean(), standard_error(measured)
                report.row(
                    name, f"{one.parts:g}", f"{one.duration:.3g}", observable,
                    f"{100 * one.error[i]:.2f} %", f"{100 * mean:.2f} ± {100 * bar:.2f} %",
                )  # fmt: skip
                quantity = f"error of {observable}, dt = {one.duration:.3g}, {name}"
                report.add(quantity, float(mean), float(bar), exact=float(one.error[i]))
    report.write()


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/certificate")
    add = parser.add_argument
    add("--replicas", type=int, default=256, help="of each state of spins, in a group")
    add("--pairs", type=int, default=20_000, help="of each state of an alloy, in a group")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    options.less = 1
    if options.smoke:
        options.replicas, options.pairs, options.less = 2, 4, 5
    return options


if __name__ == "__main__":
    main()
