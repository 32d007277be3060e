"""Ising lattices at their critical point as the paper learns them: closures and patches of 16^2.

Chen et al., arXiv:2511.12842, section III.2, second part, by the paper's own way and our best
means, where drivers/ising_critical.py learns a polynomial of (M, rho) from whole lattices:

- **states**: equilibrium of small systems of 16^2, doubled until they are large. After each
  doubling they relax for the same time whatever their side, so that a site costs the same;
- **pairs**: patches of 16^2 evolve for half a unit of time in their true surroundings, and the
  noise of a patch is taken for that of the lattice with lambda = K, untuned. The covariance is that
  within patches. The mean increments of M and rho are those of
  :func:`~mpiflow.learn.closure.equilibrium.compensated`: at the critical point the drift of M
  is so small beside the noise of pairs that 10^7 of them would know it to a tenth at 64^2;
- **law**: two trained closures beside M and rho, and networks for drift and covariance, with the
  mirror symmetry of h = 0 (:mod:`mpiflow.learn.closure.mirror`);
- **reference**: equilibrium by clusters, at each side.

Errors: learned, over seeds (each its own states, pairs, training and rollouts), pooled over
temperatures; reference, over independent members. Exponents are redrawn within these errors.
Settings were fixed before a table was looked at.

Writes into --out: results.json, table.md, ising_critical_patches.png, parts/ (a stopped driver
goes on).

    mpirun -n 2 .venv/bin/python drivers/ising_critical_patches.py \\
        --out results/ising_critical_patches
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np

from mpiflow.core import parallel
from mpiflow.experiments import equilibrium, finite_size
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import (
    FinishedParts,
    Report,
    Results,
    farm,
    results_directory,
)
from mpiflow.experiments.style import figure
from mpiflow.experiments.upsampling import Relaxation, relax
from mpiflow.learn.closure import equilibrium as eq
from mpiflow.learn.closure import mirror
from mpiflow.learn.training import Schedule
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.cluster import flip_clusters
from mpiflow.systems.ising import Ising

Arrays = dict[str, np.ndarray]
PATCH = 16
TEMPERATURES = (2.25, 2.26, 2.27, 2.28, 2.29)
#: Grown states of each side, and how often they are taken, so many units of time apart.
STATES, LOOKS, APART = {16: 16384, 32: 16384, 64: 8192, 128: 4096}, 4, 16.0
#: Relaxation after each doubling, and its step.
RELAX, DT = 256.0, 0.5
#: Time of a partial evolution, and repeats of it for each state and patch.
DURATION, REPEATS, FEWEST = 0.5, 2, 32
EPOCHS, CLOSURES, TRAJECTORIES = 20, 2, 512
#: Of the reference: members, clusters before the first look and between two, looks.
MEMBERS, BURN, BETWEEN, SEEN = {16: 4096, 32: 2048, 64: 1024, 128: 256}, 60, 4, 40
KINDS = ("learned", "reference")


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, seeds=2)
    out = results_directory(options.out, comm, options.device)
    facts = {"sides": options.sides, "seed": options.seed, "less": options.less}
    kept = FinishedParts(out / "parts", facts)
    direct = [("direct", *place) for place in product(options.sides[::-1], TEMPERATURES)]
    simulated = farm(direct, lambda task: reference(task, options), comm, kept, "reference")
    tasks = list(product(TEMPERATURES, range(options.seeds)))
    found = farm(tasks, lambda task: learned(task, options), comm, kept, "models")
    if comm.rank == 0:
        write(out, simulated, found, options)


def number_of(options: argparse.Namespace, seed: int, temperature: float, side: int) -> int:
    """A seed of its own for each part: errors at different temperatures are independent."""
    places = (options.seed, seed, TEMPERATURES.index(temperature))
    return 1000 * int(np.ravel_multi_index(places, (2**31, 100, 10))) + side


def clusters(count: int, side: int, system: Ising, seed: int) -> np.ndarray:
    """Equilibrium states, (count, side, side) int8."""
    states = np.ones((count, side, side), np.int8)
    flip_clusters(states, np.arange(count), system, seed=seed, clusters=BURN)
    return states


def reference(task: tuple[str, int, float], options: argparse.Namespace) -> Arrays:
    """Means of abs(M), M^2 and M^4 of each member, (n, 3)."""
    _, side, temperature = task
    system, count = Ising(temperature), MEMBERS[side] // options.less
    seed = number_of(options, options.seeds, temperature, side)
    states, members = clusters(count, side, system, seed), np.arange(count)
    looks = max(2, SEEN // options.less)
    moments = np.zeros((count, 3))
    for look in range(looks):
        first = BURN + BETWEEN * look
        flip_clusters(states, members, system, seed=seed, clusters=BETWEEN, first=first)
        moments += finite_size.powers_of(states.mean(axis=(1, 2))) / looks
    return {"moments": moments}


def learned(task: tuple[float, int], options: argparse.Namespace) -> Arrays:
    """Means of abs(M), M^2 and M^4 of the models of all sides, (sides, 3); shares of held steps."""
    temperature, seed = task
    system = Ising(temperature)
    number = number_of(options, seed, temperature, 0)
    states = clusters(STATES[PATCH] // options.less, PATCH, system, number)
    moments, held = [], []
    for side in options.sides:
        if side > PATCH:
            states = scaleup.upsample(states[: STATES[side] // options.less])
            relaxed(states, system, RELAX, number, 0)
        model, closures, seen = model_of(states, system, number + side, options)
        slow = max(2, round(side**2.17 / (20 * DT)) // options.less) * DT
        watch = equilibrium.Watch(burn=20 * slow, every=slow, frames=61)
        z0 = seen[: TRAJECTORIES // options.less] @ closures.T
        done = equilibrium.predict(model, z0, watch, dt=DT, seed=number + side)
        moments.append(finite_size.powers_of(done.m).mean(axis=(0, 1)))
        held.append(done.held)
    return {"moments": np.array(moments), "held": np.array(held)}


def relaxed(states: np.ndarray, system: Ising, time: float, seed: int, look: int) -> None:
    """Whole lattices after the dynamics, in place; each side and look has fresh noise."""
    level, members = 1000 * states.shape[1] + look, np.arange(len(states))
    relax(states, members, system, Relaxation("lattice", time), seed=seed, level=level, dt=DT)


def model_of(
    states: np.ndarray, system: Ising, seed: int, options: argparse.Namespace
) -> tuple[mirror.MirrorSDE, np.ndarray, np.ndarray]:
    """The SDE learned from states and some later ones; the map to its latents; features."""
    side = states.shape[1]
    patches, parts = (side // PATCH) ** 2, []
    for look in range(LOOKS):
        if look > 0:
            relaxed(states, system, APART, seed, look)
        pairs = eq.evolve(
            system,
            states,
            kind="partial" if patches > 1 else "full",
            patch=PATCH,
            repeats=max(FEWEST, REPEATS * patches),
            duration=DURATION,
            seed=seed + 200 * look,
        )
        parts.append(eq.compensated(pairs, states, system))
    pairs = eq.joined(parts)
    closures = mirror.train_closures(pairs.z, closures=CLOSURES, seed=seed, epochs=options.epochs)
    model = mirror.train(
        pairs.latents(closures),
        mirror.signs(closures),
        factor=float(patches),
        within=patches > 1,
        seed=seed,
        schedule=Schedule(epochs=options.epochs),
    )
    return model, closures, parts[-1].z


# -- what is left behind -------------------------------------------------------------------


def write(
    out: Path,
    simulated: Results[Arrays],
    found: Results[Arrays],
    options: argparse.Namespace,
) -> None:
    sides, temperatures = np.array(options.sides), np.array(TEMPERATURES)
    shape = (len(sides), len(temperatures), 3)
    values = {kind: (np.empty(shape), np.empty(shape)) for kind in KINDS}
    for (i, side), (j, t) in product(enumerate(options.sides), enumerate(TEMPERATURES)):
        both = finite_size.jackknife(simulated["direct", side, t]["moments"], side, t)
        values["reference"][0][i, j], values["reference"][1][i, j] = both
        rows = [
            finite_size.quantities(found[t, seed]["moments"][i], side, t)
            for seed in range(options.seeds)
        ]
        values["learned"][0][i, j] = np.mean(rows, axis=0)
        values["learned"][1][i, j] = np.std(rows, axis=0, ddof=1) / np.sqrt(options.seeds)
    finite_size.pool(*values["learned"])
    report = Report(out)
    report.table("exponents at T_c", "L", *finite_size.EXACT)
    upto = {len(sides), *((3,) if len(sides) > 3 else ())}
    for kind, n in product(KINDS, sorted(upto, reverse=True)):
        best = finite_size.with_errors(sides[:n], temperatures, *(v[:n] for v in values[kind]))
        label = f"{sides[0]} to {sides[n - 1]}"
        cells = [kind, label]
        for exponent, (value, error) in best.items():
            exact = finite_size.EXACT[exponent]
            cells.append(f"{value:.4f} ± {error:.4f} ({100 * (value / exact - 1):+.1f} %)")
            report.add(f"{exponent} {kind} {label}", value, error, exact=exact)
        report.row(*cells)
    report.row("exact", "", *map(str, finite_size.EXACT.values()))
    titles = [f"{name} {kind}" for name in finite_size.NAMES for kind in KINDS]
    report.table("L", "T", *titles, "share of held steps")
    for (i, side), (j, t) in product(enumerate(options.sides), enumerate(TEMPERATURES)):
        cells = [str(side), f"{t:g}"]
        for q, name in enumerate(finite_size.NAMES):
            for kind in KINDS:
                value, error = (part[i, j, q] for part in values[kind])
                form, short = (".4g", ".2g") if q == 1 else (".4f", ".4f")
                cells.append(f"{value:{form}} ± {error:{short}}")
            learnt = (part[i, j, q] for part in values["learned"])
            exact = values["reference"][0][i, j, q]
            report.add(f"{name} L={side} T={t:g}", *learnt, exact=exact)
        held = np.mean([found[t, seed]["held"][i] for seed in range(options.seeds)])
        report.row(*cells, f"{held:.1e}")
    report.write()
    draw(out / "ising_critical_patches.png", values, options)


def draw(
    path: Path, values: dict[str, tuple[np.ndarray, np.ndarray]], options: argparse.Namespace
) -> None:
    """abs(M), chi and U against T."""
    page = figure(13, 3.8)
    axes = page.subplots(1, 3)
    for q, name in enumerate(finite_size.NAMES):
        for i, side in enumerate(options.sides):
            true = values["reference"][0][i, :, q]
            (curve,) = axes[q].plot(TEMPERATURES, true, "-", lw=1, label=f"{side}")
            guess, bar = (part[i, :, q] for part in values["learned"])
            colour = curve.get_color()
            axes[q].errorbar(TEMPERATURES, guess, bar, fmt="o", ms=4, color=colour, capsize=2)
        axes[q].set(xlabel="T", ylabel=name, yscale="log" if q == 1 else "linear")
    axes[0].legend(title="L; lines: reference")
    page.suptitle("Ising at the critical point; dots: closures and networks on patches")
    page.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/ising_critical_patches")
    add = parser.add_argument
    add("--sides", type=int, nargs="+", choices=[*STATES], default=[*STATES], help="in order")
    add("--seeds", type=int, default=3, help="independent data sets, trainings and rollouts")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    options.less, options.epochs = 1, EPOCHS
    if options.smoke:
        options.sides, options.seeds, options.less, options.epochs = [16, 32], 2, 256, 1
    largest = max(options.sides)
    options.sides = [side for side in STATES if side <= largest]
    return options


if __name__ == "__main__":
    main()
