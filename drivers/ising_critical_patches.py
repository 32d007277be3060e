"""Ising lattices at their critical point, learned from patches of 16^2 with a slow closure.

Chen et al., arXiv:2511.12842, section III.2, second part, where drivers/ising_critical.py learns a
polynomial of (M, rho):

- **states**: small systems of 16^2, doubled until they are large. After each doubling they relax
  for the same time whatever their side, so that a site costs the same. Doubling doubles the
  correlation length, so that T - T_c falls by 2^y, y = 1 / nu: states of L at T pass sides l at
  temperatures T_c + (T - T_c) (L / l)^y. y = 0 is what the publication does (all at T), y = 1 puts
  the exact exponent in. 1 / nu of the models, a function of y, is reported where it is y itself;
- **model**: the reversible SDE of M and a closure on patches (mpiflow.learn.closure.slow), which is
  learned to take away the scatter of the drift at fixed M; and that of M alone. Increments are the
  exact limit of partial evolutions of all patches for short times, where lambda = K holds;
  equilibrium and relaxation times are those of the SDE itself, without trajectories;
- **reference**: equilibrium by clusters, and relaxation times of the engine, at each side.

Errors: learned, over seeds (each and each side its own states), pooled over temperatures; direct,
over independent members. Exponents are redrawn within these errors. z is from the integrated
autocorrelation time of abs(M) at T = 2.27.

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

from mpiflow import observables
from mpiflow.core import parallel
from mpiflow.experiments import finite_size
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import (
    FinishedParts,
    Report,
    Results,
    farm,
    results_directory,
)
from mpiflow.experiments.style import figure
from mpiflow.experiments.upsampling import Relaxation, relax, whole_lattices
from mpiflow.learn.closure import slow
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.cluster import flip_clusters
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import CRITICAL_TEMPERATURE, Ising

Arrays = dict[str, np.ndarray]
#: Values and errors of each kind, (sides, temperatures, 3).
Values = dict[str, tuple[np.ndarray, np.ndarray]]
PATCH, TEMPERATURES, MIDDLE = 16, (2.25, 2.26, 2.27, 2.28, 2.29), 2.27
#: Grown states of each side; how often they are looked at, so many units of time apart.
STATES = {16: 16000, 32: 12000, 64: 6000, 128: 6000, 256: 3000}
LOOKS, APART = 6, 24.0
#: Clusters of small systems before; relaxation then and after each doubling, and its step.
CLUSTERS, RELAX, DT = 16, 256.0, 0.5
#: Sides of blocks whose magnetisation the encoder of patches sees.
BLOCKS = (2, 4, 8, 16)
#: One in so many states gives the variance of increments of the closure.
SOME = 8
#: Of the reference: members, clusters before the first look and between two, looks.
MEMBERS, BURN, BETWEEN, SEEN = {16: 4096, 32: 2048, 64: 1024, 128: 256, 256: 64}, 60, 4, 20
#: Of the engine: members, frames, and how many of them are in L^2.17 / 8 units of time.
RUNS, FRAMES, RESOLVED = {16: 2048, 32: 512, 64: 128, 128: 24, 256: 8}, 120, 2
STRETCHES = (1.0, 0.0)
MODELS = ("closure", "M alone")
EXPONENTS = ("beta/nu", "gamma/nu", "1/nu")


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, seeds=2)
    out = results_directory(options.out, comm, options.device)
    settings = [STATES, LOOKS, APART, CLUSTERS, RELAX, BLOCKS, MEMBERS, SEEN, RUNS, FRAMES]
    settings += [slow.ODD, slow.EVEN]
    facts = {"seed": options.seed, "less": options.less, "settings": settings}
    kept = FinishedParts(out / "parts", facts)
    sides = options.sides[::-1]
    direct: list[tuple[str | float, ...]]
    direct = [("reference", *place) for place in product(sides, TEMPERATURES)]
    direct += [("engine", side) for side in sides]
    # Seed by seed, so that a stopped driver can be told to report fewer of them.
    places = product(range(options.seeds), STRETCHES, sides, TEMPERATURES)
    tasks = [(*place, seed) for seed, *place in places]
    # Their noise is that of one more data set than there are.
    directly = FinishedParts(out / "parts", {**facts, "seeds": options.seeds})
    known = farm(direct, lambda task: simulated(task, options), comm, directly, "simulate")
    found = farm(tasks, lambda task: learned(task, options), comm, kept, "grow and learn")
    if comm.rank == 0:
        write(out, known, found, options)


def number_of(options: argparse.Namespace, seed: int, temperature: float, *more: int) -> int:
    """A seed of its own for each part: errors at different temperatures are independent."""
    places = (options.seed, seed, TEMPERATURES.index(temperature), *more)
    return int(np.ravel_multi_index(places, (2**31, 100, 10, 1000, 10)[: len(places)]))


# -- direct --------------------------------------------------------------------------------


def simulated(task: tuple[str | float, ...], options: argparse.Namespace) -> Arrays:
    """Means of abs(M), M^2 and M^4 of each member, (n, 3), or tau of abs(M) and its error."""
    kind, side, *rest = task
    side, temperature = int(side), float(rest[0]) if rest else MIDDLE
    system = Ising(temperature)
    count = (MEMBERS if kind == "reference" else RUNS)[side] // options.less
    seed = number_of(options, options.seeds, temperature, side, int(kind == "engine"))
    states, members = np.ones((count, side, side), np.int8), np.arange(count)
    flip_clusters(states, members, system, seed=seed, clusters=BURN)
    if kind == "reference":
        looks = max(2, SEEN // options.less)
        moments = np.zeros((count, 3))
        for look in range(looks):
            first = BURN + BETWEEN * look
            flip_clusters(states, members, system, seed=seed, clusters=BETWEEN, first=first)
            moments += finite_size.powers_of(states.mean(axis=(1, 2))) / looks
        return {"moments": moments}
    steps = max(1, round(side**2.17 / (8 * RESOLVED * DT)))
    frames = max(8, FRAMES // options.less)
    block, solver = whole_lattices(states, members), Sublattice(system, DT)
    path = np.empty((frames, count))
    for frame in range(frames):
        solver.advance(block, steps, seed=seed, first_step=frame * steps)
        path[frame] = np.abs(observables.spin_sums(block)[:, 0]) / side**2
    return {"tau": np.array(finite_size.relaxation_time(path, steps * DT))}


# -- learned -------------------------------------------------------------------------------


def relaxed(states: np.ndarray, system: Ising, time: float, seed: int, look: int) -> None:
    """Whole lattices after the dynamics, in place; each side and look has fresh noise."""
    level, members = 1000 * states.shape[1] + look, np.arange(len(states))
    relax(states, members, system, Relaxation("lattice", time), seed=seed, level=level, dt=DT)


def grown(count: int, side: int, temperature: float, stretch: float, seed: int) -> np.ndarray:
    """States (count, side, side) from small systems, doubled and relaxed; see the module."""
    states, length = np.ones((count, PATCH, PATCH), np.int8), PATCH
    while True:
        away = (temperature - CRITICAL_TEMPERATURE) * (side / length) ** stretch
        system = Ising(CRITICAL_TEMPERATURE + away)
        if length == PATCH:
            flip_clusters(states, np.arange(count), system, seed=seed, clusters=CLUSTERS)
        relaxed(states, system, RELAX, seed, 0)
        if length == side:
            return states
        states, length = scaleup.upsample(states), 2 * length


def learned(task: tuple[float, int, float, int], options: argparse.Namespace) -> Arrays:
    """Of both models: means of abs(M), M^2, M^4 (2, 3), tau of abs(M), scatter of drifts (2,)."""
    stretch, side, temperature, seed = task
    system, count = Ising(temperature), STATES[side] // options.less
    number = number_of(options, seed, temperature, side, STRETCHES.index(stretch))
    states = grown(count, side, temperature, stretch, number)
    blocks = [block for block in BLOCKS if block < side]
    parts = []
    for look in range(LOOKS):
        if look > 0:
            relaxed(states, system, APART, number, look)
        parts.append(slow.OddFeatures.of(states, system, blocks))
    features, few = slow.OddFeatures.joined(parts), states[: max(2, count // SOME)]
    some = slow.OddFeatures.of(few, system, blocks)
    models = []
    for weights in (slow.closure(features), slow.of_magnetization(features)):
        square = slow.squares(few, system, blocks, weights)
        models.append(slow.ReversibleSDE.fit(features, weights, side, some, square))
    return {
        "moments": np.array([model.moments() for model in models]),
        "tau": np.array([model.relaxation_time() for model in models]),
        "scatter": np.array([model.scatter[1] * side for model in models]),
    }


# -- what is left behind -------------------------------------------------------------------


def label(model: str, stretch: float) -> str:
    return model if stretch else f"{model}, y = 0"


def assemble(
    known: Results[Arrays], found: Results[Arrays], options: argparse.Namespace
) -> tuple[Values, Values]:
    """Values of every kind, and its tau of abs(M), (sides, temperatures) or (sides,)."""
    sides, seeds = options.sides, range(options.seeds)
    values, taus = {}, {}
    for stretch, (k, model) in product(STRETCHES, enumerate(MODELS)):
        rows = np.array([
            [[found[stretch, side, t, seed]["moments"][k] for seed in seeds] for t in TEMPERATURES]
            for side in sides
        ])  # fmt: skip
        each = np.stack(
            [
                [
                    finite_size.quantities(row, side, t)
                    for row, t in zip(of, TEMPERATURES, strict=True)
                ]
                for of, side in zip(rows, sides, strict=True)
            ]
        )
        both = each.mean(axis=2), each.std(axis=2, ddof=1) / np.sqrt(options.seeds)
        finite_size.pool(*both)
        values[label(model, stretch)] = both
        tau = np.array([
            [[found[stretch, side, t, seed]["tau"][k] for seed in seeds] for t in TEMPERATURES]
            for side in sides
        ])  # fmt: skip
        spread = tau.std(axis=2, ddof=1) / tau.mean(axis=2)
        relative = np.sqrt((spread**2).mean(axis=1) / options.seeds)
        middle = tau.mean(axis=2)[:, TEMPERATURES.index(MIDDLE)]
        taus[label(model, stretch)] = middle, middle * relative
    direct = [
        [
            finite_size.jackknife(known["reference", side, t]["moments"], side, t)
            for t in TEMPERATURES
        ]
        for side in sides
    ]
    values["reference"] = np.array(direct)[:, :, 0], np.array(direct)[:, :, 1]
    engine = np.array([known["engine", side]["tau"] for side in sides])
    taus["reference"] = engine[:, 0], engine[:, 1]
    return values, taus


def own(one: tuple[float, float], none: tuple[float, float]) -> tuple[float, float]:
    """The y of growth that the models find again, from what they find with y = 1 and y = 0."""
    draws = np.random.default_rng(0).normal(size=(2, 1000))
    a, b = (
        value + error * np.insert(d, 0, 0.0)
        for (value, error), d in zip((one, none), draws, strict=True)
    )
    y = b / (1.0 - (a - b))
    return float(y[0]), float(y[1:].std(ddof=1))


def write(
    out: Path, known: Results[Arrays], found: Results[Arrays], options: argparse.Namespace
) -> None:
    values, taus = assemble(known, found, options)
    sides, temperatures = np.array(options.sides), np.array(TEMPERATURES)
    report = Report(out)
    report.table("exponents at T_c", "L", *EXPONENTS, f"z of abs(M), T = {MIDDLE:g}")
    upto = range(len(sides), min(2, len(sides) - 1), -1)
    slopes = {}
    for kind, n in product(values, upto):
        best = finite_size.with_errors(sides[:n], temperatures, *(v[:n] for v in values[kind]))
        span = f"{sides[0]} to {sides[n - 1]}"
        slopes[kind, n] = best["1/nu"]
        cells = [kind, span]
        for exponent in EXPONENTS:
            value, error = best[exponent]
            exact = finite_size.EXACT[exponent]
            cell = f"{value:.4f} ± {error:.4f} ({100 * (value / exact - 1):+.1f} %)"
            cells.append(cell if np.isfinite(value) else "not known")
            report.add(f"{exponent} {kind} {span}", value, error, exact=exact)
        z, error = finite_size.power_law(sides[:n], *(v[:n] for v in taus[kind]))
        report.add(f"z {kind} {span}", z, error)
        report.row(*cells, f"{z:.3f} ± {error:.3f}")
    report.row(
        "exact", "", *(str(finite_size.EXACT[name]) for name in EXPONENTS), "2.167 (numerical)"
    )
    for n in upto:
        span = f"{sides[0]} to {sides[n - 1]}"
        y, error = own(slopes[MODELS[0], n], slopes[label(MODELS[0], 0.0), n])
        report.say(
            f"1/nu of the closure, L = {span}, where it is the y of growth: {y:.3f} ± {error:.3f}"
        )
        report.add(f"1/nu of its own y {span}", y, error, exact=1.0)
    kinds = [MODELS[0], label(MODELS[0], 0.0), MODELS[1], "reference"]
    report.table("L", "T", *(f"{name} {kind}" for name in finite_size.NAMES for kind in kinds))
    for (i, side), (j, t) in product(enumerate(sides), enumerate(TEMPERATURES)):
        cells = [str(side), f"{t:g}"]
        for q, name in enumerate(finite_size.NAMES):
            form, short = (".4g", ".2g") if q == 1 else (".4f", ".4f")
            for kind in kinds:
                value, error = (part[i, j, q] for part in values[kind])
                cells.append(f"{value:{form}} ± {error:{short}}")
            learnt = (part[i, j, q] for part in values[kinds[0]])
            report.add(f"{name} L={side} T={t:g}", *learnt, exact=values["reference"][0][i, j, q])
        report.row(*cells)
    write_times(report, taus, found, options)
    report.write()
    draw(out / "ising_critical_patches.png", values, taus, options)


def write_times(
    report: Report, taus: Values, found: Results[Arrays], options: argparse.Namespace
) -> None:
    """Relaxation times at the middle temperature, and how much drifts scatter at fixed M."""
    report.table(
        f"L, T = {MIDDLE:g}", "tau of abs(M), engine", *MODELS, *(f"L scatter, {m}" for m in MODELS)
    )
    for i, side in enumerate(options.sides):
        cells = [str(side)]
        for kind in ("reference", *MODELS):
            tau, error = (part[i] for part in taus[kind])
            cells.append(f"{tau:.4g} ± {error:.2g}" if tau else "not known")
        scatter = [found[1.0, side, MIDDLE, s]["scatter"] for s in range(options.seeds)]
        report.row(*cells, *(f"{s:.3f}" for s in np.mean(scatter, axis=0)))


def draw(path: Path, values: Values, taus: Values, options: argparse.Namespace) -> None:
    """abs(M), chi and U against T; tau against L."""
    page = figure(16, 3.8)
    axes = page.subplots(1, 4)
    for q, name in enumerate(finite_size.NAMES):
        for i, side in enumerate(options.sides):
            true = values["reference"][0][i, :, q]
            (curve,) = axes[q].plot(TEMPERATURES, true, "-", lw=1, label=f"{side}")
            guess, bar = (part[i, :, q] for part in values[MODELS[0]])
            colour = curve.get_color()
            axes[q].errorbar(TEMPERATURES, guess, bar, fmt="o", ms=4, color=colour, capsize=2)
        axes[q].set(xlabel="T", ylabel=name, yscale="log" if q == 1 else "linear")
    axes[0].legend(title="L; lines: reference")
    for kind, mark in zip(("reference", *MODELS), "-os", strict=True):
        tau, error = taus[kind]
        use = tau > 0
        axes[3].errorbar(np.array(options.sides)[use], tau[use], error[use], fmt=mark, label=kind)
    axes[3].set(xlabel="L", ylabel="tau of abs(M)", xscale="log", yscale="log")
    axes[3].legend()
    page.suptitle("Ising at the critical point; dots: M and a slow closure on patches of 16^2")
    page.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/ising_critical_patches")
    add = parser.add_argument
    add("--sides", type=int, nargs="+", choices=[*STATES], default=[*STATES])
    add("--seeds", type=int, default=3, help="independent data sets")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    options.less = 1
    if options.smoke:
        options.sides, options.seeds, options.less = [16, 32], 2, 64
    options.sides = sorted({PATCH, max(options.sides), *options.sides})
    return options


if __name__ == "__main__":
    main()
