"""Ising lattices at their critical point: learned models and direct simulation, with exponents.

Chen et al., arXiv:2511.12842, section III.2, second part: small systems of 16^2, large ones of 16,
32, 48 and 64 (here also 128 and 256) at h = 0, T = 2.25 to 2.29. Equilibrium abs(M), chi and the
Binder cumulant U, and beta/nu, gamma/nu and nu, of

- **learned** models: snapshots of 16^2 systems are upsampled to L (doubled; three-fold for 48) and
  relaxed as whole lattices after each step, and the SDE of (M, rho) is learned from the exact
  short-time limit of partial evolution (mpiflow.learn.closure.polynomial); lambda = K, untuned.
  Then tuned: the lambda for which the model's abs(M) is that of the reference, as the publication
  did for each (L, T), interpolated between rollouts at K and 0.8 K with the same noise;
- **the engine**: continuous-time dynamics, from starts that clusters brought to equilibrium;
- **the reference**: the clusters themselves (mpiflow.solvers.spins.cluster).

Errors: learned, over seeds (each its own data and rollouts); direct, over independent members, so
that no autocorrelation enters. Exponents redrawn within these errors.

What a learned model costs at the critical point: the slope of the drift of M in equilibrium is
G / (2 N <M^2>), G four times the flips of a spin in a unit of time (0.56), and n pairs of patches
of n_s spins over t know it to sqrt(G / (n_s t n <M^2>)): for 64^2, n_s = 16^2 and the published
400,000 pairs over 7 units, to 25 %. That is what tuning lambda had to make up for. The exact
short-time limit takes away the noise of pairs. What is left is that of states, and the error of
abs(M) still grows like L / sqrt(states): hence the error bars at 128 and 256.

Doubling a state doubles its correlation length: it halves T - T_c, a relevant direction. What is
longer than the relaxation reaches (its time to the power 1 / 2.17) stays too close to critical,
and the models of large sides depend too little on T. --share has states relax for a share of
L^2.17, which costs what a direct simulation does.

Writes into --out: results.json, table.md, ising_critical.png, rollout.h5, parts/ (a stopped driver
goes on). Full cost: 17 minutes on two cores.

    mpirun -n 2 .venv/bin/python drivers/ising_critical.py --out results/ising_critical
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow import observables
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments import finite_size
from mpiflow.experiments.options import driver_parser
from mpiflow.experiments.results import (
    FinishedParts,
    Report,
    farm,
    results_directory,
    trajectory,
    with_error,
)
from mpiflow.experiments.style import figure
from mpiflow.experiments.upsampling import Relaxation, relax, whole_lattices
from mpiflow.files.schema import STANDARD
from mpiflow.learn.closure.polynomial import PolynomialSDE, Ridge, exponents, normal_equations
from mpiflow.run.progress import Progress
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.cluster import flip_clusters
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import Ising

SMALL = 16
TEMPERATURES = (2.25, 2.26, 2.27, 2.28, 2.29)
#: How a side is grown from a smaller one.
GROWN = {32: (16, 2), 48: (16, 3), 64: (32, 2), 128: (64, 2), 256: (128, 2)}
#: Grown states, trajectories of a rollout and members of a direct simulation.
STATES = {16: 16000, 32: 16000, 48: 8000, 64: 8000, 128: 3000, 256: 800}
TRAJECTORIES = {16: 4096, 32: 2048, 48: 1024, 64: 1024, 128: 384, 256: 128}
MEMBERS = {16: 4096, 32: 2048, 48: 1024, 64: 1024, 128: 256, 256: 64}
#: Step of the engine; relaxation after a step of growth, then snapshots and their distance.
DT, RELAX, SNAPSHOTS, APART = 0.5, 256.0, 16, 4.0
#: Powers of M^2 with y^0 and with y^1; see learn.polynomial.
DEGREES = (5, 2)
#: Clusters before the first state (smaller in disordered lattices), and between two; states.
BURN, BETWEEN, LOOKS = {16: 60, 32: 60, 48: 60, 64: 60, 128: 60, 256: 120}, 4, 40
#: Spin updates of the engine for each (L, T).
UPDATES = 3e10
#: lambda / K of the second rollout, from which the tuned one is interpolated.
OTHER = 0.8
#: Largest side that lambda is tuned for: beyond, abs(M) of the model hardly knows it.
TUNED = 64
#: Published exponents, of version 2 of the preprint.
PUBLISHED = {"beta/nu": 0.129, "gamma/nu": 1.670, "1/nu": 1.035}
#: Published abs(M), chi, U (digitised) and tuned lambda / K by temperature.
PUBLISHED_VALUES = {
    16: [
        (0.7436, 3.037, 0.6243), (0.7262, 3.524, 0.6162), (0.7074, 3.800, 0.6100),
        (0.6982, 3.962, 0.6066), (0.6799, 4.354, 0.5976),
    ],
    32: [
        (0.7004, 9.790, 0.6277), (0.6883, 10.740, 0.6228), (0.6650, 13.493, 0.6096),
        (0.6372, 15.287, 0.5977), (0.6185, 17.809, 0.5831),
    ],
}  # fmt: skip
PUBLISHED_FACTOR = {
    16: [1.0] * 5,
    32: [2.5 / 4, 2.5 / 4, 2.2 / 4, 2.2 / 4, 2.0 / 4],
    48: [6 / 9, 6 / 9, 5.4 / 9, 5 / 9, 4.5 / 9],
    64: [10 / 16, 9 / 16, 10 / 16, 8 / 16, 7 / 16],
}
KINDS = ("learned", "tuned", "engine", "reference")


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        if options.seeds < 2:
            raise InputError("seeds", options.seeds, "2 or more, for error bars", "Try 3.")
        if not 0 <= options.share <= 10:
            raise InputError("share", options.share, "0 to 10", "Try 0.25.")
        if not set(options.sides) <= set(STATES) or len(options.sides) < 2:
            raise InputError("sides", options.sides, f"2 or more of {[*STATES]}", "Leave it out.")
    out = results_directory(options.out, comm, options.device)
    shared = {"seeds": options.seeds, "seed": options.seed, "less": options.less}
    learning = {**shared, "settings": [STATES, TRAJECTORIES, DT, RELAX, SNAPSHOTS, APART, DEGREES]}
    longer = {"share": options.share} if options.share else {}
    learnt = FinishedParts(out / "parts", {**learning, "largest": max(options.sides), **longer})
    known = {**shared, "settings": [MEMBERS, BURN, BETWEEN, LOOKS, UPDATES, DT]}
    directly = FinishedParts(out / "parts", known)
    grown = [("grown", t, seed) for t, seed in product(TEMPERATURES, range(options.seeds))]
    direct = [("direct", *place) for place in product(options.sides[::-1], TEMPERATURES)]
    # Equal work side by side, so that ranks have the same.
    rolled = [("rollout", side, *task[1:]) for side in options.sides[::-1] for task in grown]
    total = sum(len(tasks[comm.rank :: comm.size]) for tasks in (grown, direct, rolled))
    with Progress(max(1, total), "grow, simulate, predict", comm) as progress:
        done = 0

        def counted(work: Any, task: Any) -> Any:
            nonlocal done
            result = work(task)
            done += 1
            progress.update(done)
            return result

        data = farm(grown, lambda t: counted(lambda x: grow(x, options), t), comm, learnt)
        simulated = farm(
            direct, lambda t: counted(lambda x: simulate(x, options), t), comm, directly
        )
        found = farm(
            rolled,
            lambda t: counted(lambda x: predict(x, data["grown", *x[2:]], options), t),
            comm,
            learnt,
        )
    if comm.rank == 0:
        write(out, data, simulated, found, options)


# -- data ----------------------------------------------------------------------------------


def number_of(options: argparse.Namespace, seed: int, temperature: float, side: int = 0) -> int:
    """A seed of its own for each part: errors at different temperatures are independent."""
    places = (options.seed, seed, TEMPERATURES.index(temperature))
    return 1000 * int(np.ravel_multi_index(places, (2**31, 100, 10))) + side


def latents(states: np.ndarray, system: Ising) -> tuple[np.ndarray, np.ndarray]:
    """(M, rho) of states, (B, 2), and what the generator makes of them, (B, 5)."""
    counts = observables.lattice_class_counts(states)
    return system.observables(counts), np.concatenate(system.short_time(counts), axis=1)


def relaxed(
    states: np.ndarray, members: np.ndarray, system: Ising, seed: int, look: int, time: float
) -> np.ndarray:
    """Whole lattices after the engine's dynamics; each side and look has fresh noise."""
    level = 1000 * states.shape[1] + look
    how = Relaxation("lattice", time)
    relax(states, members, system, how, seed=seed, level=level, dt=DT)
    return states


def grow(task: tuple[Any, ...], options: argparse.Namespace) -> dict[str, np.ndarray | float]:
    """Sums for the regressions and latents to start from, of every side, at one temperature."""
    _, temperature, seed = task
    system = Ising(temperature)
    number = number_of(options, seed, temperature)
    states: dict[int, np.ndarray] = {}
    out: dict[str, np.ndarray | float] = {}
    powers = exponents(*DEGREES)
    for side in (SMALL, *(s for s in GROWN if s <= max(options.sides))):
        count = STATES[side] // options.less
        members = np.arange(count)
        if side == SMALL:
            # Snapshots of small systems in equilibrium.
            now = np.ones((count, SMALL, SMALL), np.int8)
            flip_clusters(now, members, system, seed=number, clusters=BURN[SMALL])
        else:
            source, factor = GROWN[side]
            now = np.ascontiguousarray(scaleup.upsample(states[source][:count], factor))
        share = options.share * side**2.17
        now = relaxed(now, members, system, number, 0, max(RELAX, DT * np.rint(share / DT)))
        ridge, ends = None, []
        sums = np.zeros((2, len(powers), len(powers) + 5))
        for look in range(SNAPSHOTS):
            if look > 0:
                now = relaxed(now, members, system, number, look, APART)
            z, values = latents(now, system)
            ridge = ridge or Ridge.of(z)
            sums = sums + normal_equations(z, values, powers, ridge)
            ends.append((z.min(axis=0), z.max(axis=0)))
        states[side] = now
        assert ridge is not None
        out |= {
            f"sums_{side}": sums,
            f"curve_{side}": ridge.curve,
            f"width_{side}": ridge.width,
            f"low_{side}": np.min([low for low, _ in ends], axis=0),
            f"high_{side}": np.max([high for _, high in ends], axis=0),
            f"start_{side}": z[: TRAJECTORIES[side] // options.less],
        }
    return out


def simulate(task: tuple[Any, ...], options: argparse.Namespace) -> dict[str, np.ndarray | float]:
    """Moments of members (n, 3) from clusters and from the engine; tau of abs(M)."""
    _, side, temperature = task
    system = Ising(temperature)
    count = MEMBERS[side] // options.less
    members = np.arange(count)
    number = number_of(options, options.seeds, temperature, side)
    states = np.ones((count, side, side), np.int8)
    flip_clusters(states, members, system, seed=number, clusters=BURN[side])
    looks = max(2, LOOKS // options.less)
    moments = np.zeros((count, 3))
    for look in range(looks):
        first = BURN[side] + BETWEEN * look
        flip_clusters(states, members, system, seed=number, clusters=BETWEEN, first=first)
        moments += finite_size.powers_of(states.mean(axis=(1, 2))) / looks
    time = UPDATES / options.less**2 * DT / states.size
    frames = 100
    step = max(1.0, np.rint(time / frames / DT) * DT)
    path = np.empty((frames, count))
    block = whole_lattices(states, members)
    solver = Sublattice(system, DT)
    for frame in range(frames):
        steps = round(step / DT)
        solver.advance(block, steps, seed=number, first_step=frame * steps)
        path[frame] = observables.spin_sums(block)[:, 0] / side**2
    return {
        "reference": moments,
        "engine": finite_size.powers_of(path).mean(axis=0),
        "tau": finite_size.relaxation_time(np.abs(path), step)[0],
        "time": frames * step,
    }


# -- models --------------------------------------------------------------------------------


def model_of(data: dict[str, np.ndarray], side: int, factor: float) -> PolynomialSDE:
    """The model of a side with lambda = factor K."""
    ridge = Ridge(data[f"curve_{side}"], float(data[f"width_{side}"]))
    return PolynomialSDE.fit(
        data[f"sums_{side}"], exponents(*DEGREES), ridge,
        data[f"low_{side}"], data[f"high_{side}"], factor=factor,
    )  # fmt: skip


def timing(side: int) -> tuple[float, int, int]:
    """Step, steps to skip and between frames of a rollout: some L^2.17, and 4 of them in 80."""
    dt = 0.5 if side <= 64 else 1.0
    slow = side**2.17 / dt
    return dt, round(slow), max(1, round(slow / 20))


def predict(
    task: tuple[Any, ...], data: dict[str, np.ndarray], options: argparse.Namespace
) -> dict[str, np.ndarray | float]:
    """Moments (3,) of rollouts with lambda = K and the other one, held steps, tau."""
    _, side, temperature, seed = task
    start = data[f"start_{side}"]
    dt, skip, stride = timing(side)
    out: dict[str, np.ndarray | float] = {}
    for name, factor in (("K", 1.0), ("other", OTHER)):
        path, held = model_of(data, side, factor).rollout(
            start, np.arange(len(start)), dt=dt, frames=80, stride=max(1, stride // options.less),
            skip=skip // options.less, seed=number_of(options, seed, temperature, side),
        )  # fmt: skip
        m = path[..., 0]
        steps = len(start) * (skip + 79 * stride) / options.less
        out |= {name: finite_size.powers_of(m).mean(axis=(0, 1)), f"held_{name}": held / steps}
        if name == "K":
            out["tau"] = finite_size.relaxation_time(np.abs(m), stride * dt)[0]
    return out


# -- what is left behind -------------------------------------------------------------------

Values = dict[str, tuple[np.ndarray, np.ndarray]]


def assemble(
    simulated: dict[Any, Any], found: dict[Any, Any], options: argparse.Namespace
) -> tuple[Values, np.ndarray]:
    """Values and errors (l, t, 3) of every kind; the tuned lambda / K (l, t, seeds)."""
    shape = (len(options.sides), len(TEMPERATURES), 3)
    values: Values = {kind: (np.empty(shape), np.empty(shape)) for kind in KINDS}
    tuned = np.empty((*shape[:2], options.seeds))
    for (i, side), (j, t) in product(enumerate(options.sides), enumerate(TEMPERATURES)):
        direct = simulated["direct", side, t]
        for kind in ("engine", "reference"):
            both = finite_size.jackknife(direct[kind], side, t)
            values[kind][0][i, j], values[kind][1][i, j] = both
        rows: dict[str, list[np.ndarray]] = {"learned": [], "tuned": []}
        for seed in range(options.seeds):
            part = found["rollout", side, t, seed]
            here, there = part["K"], part["other"]
            # Linear in 1 / lambda, which is what Sigma is.
            weight = (values["reference"][0][i, j, 0] - here[0]) / (there[0] - here[0])
            tuned[i, j, seed] = 1.0 / (1.0 + weight * (1.0 / OTHER - 1.0))
            rows["learned"].append(finite_size.quantities(here, side, t))
            rows["tuned"].append(finite_size.quantities(here + weight * (there - here), side, t))
        for kind, each in rows.items():
            values[kind][0][i, j] = np.mean(each, axis=0)
            values[kind][1][i, j] = np.std(each, axis=0, ddof=1) / np.sqrt(options.seeds)
    for kind in ("learned", "tuned"):
        finite_size.pool(*values[kind])
    # The tuned abs(M) is that of the reference by construction.
    values["tuned"][1][..., 0] = values["reference"][1][..., 0]
    return values, tuned


def write(
    out: Path,
    data: dict[Any, Any],
    simulated: dict[Any, Any],
    found: dict[Any, Any],
    options: argparse.Namespace,
) -> None:
    values, tuned = assemble(simulated, found, options)
    report = Report(out)
    report.table("exponents at T_c", "L", *PUBLISHED)
    sides, temperatures = np.array(options.sides), np.array(TEMPERATURES)
    upto = {"all": np.ones(len(sides), bool), f"to {TUNED}": sides <= TUNED}
    for kind, (name, use) in product(KINDS, upto.items()):
        wide = name == "all" and not upto[f"to {TUNED}"].all()
        if use.sum() < 2 or (name == f"to {TUNED}" and use.all()) or (kind == "tuned" and wide):
            continue
        best = finite_size.with_errors(
            sides[use], temperatures, values[kind][0][use], values[kind][1][use]
        )
        label = f"{sides[use][0]} to {sides[use][-1]}"
        cells = [kind, label]
        for exponent, (value, error) in best.items():
            exact = finite_size.EXACT[exponent]
            cells.append(f"{value:.4f} ± {error:.4f} ({100 * (value / exact - 1):+.1f} %)")
            told = PUBLISHED[exponent] if kind == "tuned" else None
            report.add(f"{exponent} {kind} {label}", value, error, published=told, exact=exact)
        report.row(*cells)
    report.row("published (tuned)", "16 to 128 and 16 to 64", *map(str, PUBLISHED.values()))
    report.row("exact", "", *map(str, finite_size.EXACT.values()))
    report.say(
        "A parabola holds for U(T) up to abs(T - T_c) L of about one: 1/nu is that up to 64."
    )
    titles = [
        title
        for name in finite_size.NAMES
        for title in (f"{name} published", "learned, lambda = K", "engine", "reference")
    ]
    report.table("L", "T", *titles, "tuned lambda / K", "published")
    for (i, side), (j, t) in product(enumerate(options.sides), enumerate(TEMPERATURES)):
        known = PUBLISHED_VALUES.get(side)
        cells = [str(side), f"{t:g}"]
        for q, name in enumerate(finite_size.NAMES):
            form = ".4f" if q != 1 else ".4g"
            cells.append("" if known is None else f"{known[j][q]:{form}}")
            for kind in ("learned", "engine", "reference"):
                value, error = (part[i, j, q] for part in values[kind])
                cells.append(f"{value:{form}} ± {error:{'.4f' if q != 1 else '.2g'}}")
            report.add(
                f"{name} L={side} T={t:g}", *(part[i, j, q] for part in values["learned"]),
                published=None if known is None else known[j][q],
                exact=values["reference"][0][i, j, q],
            )  # fmt: skip
        theirs = PUBLISHED_FACTOR.get(side)
        cells += [
            with_error(tuned[i, j], ".2f"),
            "" if theirs is None else f"{theirs[j]:.2f}",
        ]
        report.row(*cells)
    middle = TEMPERATURES[len(TEMPERATURES) // 2]
    report.table(f"L, T = {middle:g}", "tau of abs(M), engine", "learned", "share of held steps")
    for side in options.sides:
        taus = [float(found["rollout", side, middle, s]["tau"]) for s in range(options.seeds)]
        true = float(simulated["direct", side, middle]["tau"])
        held = np.mean([found["rollout", side, middle, s]["held_K"] for s in range(options.seeds)])
        report.row(
            str(side),
            f"{true:.0f}" if true else "not known",
            with_error(taus, ".0f") if all(taus) else "not known",
            f"{held:.1e}",
        )
    report.write()
    draw(out / "ising_critical.png", values, options)
    write_rollout(out / "rollout.h5", data, options)


def draw(path: Path, values: Values, options: argparse.Namespace) -> None:
    """abs(M), chi and U against T, and their collapse with the exact exponents."""
    page = figure(13, 7)
    axes = page.subplots(2, 3)
    t = np.array(TEMPERATURES)
    critical = finite_size.CRITICAL_TEMPERATURE
    for q, (name, power) in enumerate(zip(finite_size.NAMES, (0.125, -1.75, 0.0), strict=True)):
        for i, side in enumerate(options.sides):
            true = values["reference"][0][i, :, q]
            (line,) = axes[0, q].plot(t, true, "-", lw=1, label=f"{side}")
            colour = line.get_color()
            guess, bar = (part[i, :, q] for part in values["learned"])
            axes[0, q].errorbar(t, guess, bar, fmt="o", ms=4, color=colour, capsize=2)
            scale, x = float(side) ** power, (t - critical) * side
            axes[1, q].plot(x, true * scale, "-", lw=1, color=colour)
            axes[1, q].errorbar(x, guess * scale, bar * scale, fmt="o", ms=4, color=colour)
        axes[0, q].set(xlabel="T", ylabel=name, yscale="log" if q == 1 else "linear")
        axes[1, q].set(xlabel="(T - T_c) L", ylabel=f"{name} L^{power:g}")
    axes[0, 0].legend(title="L; lines: reference")
    page.suptitle("Ising at the critical point; dots: learned with lambda = K")
    page.savefig(path, dpi=130)


def write_rollout(path: Path, data: dict[Any, Any], options: argparse.Namespace) -> None:
    """A few trajectories of the largest side up to 64 at T = 2.27."""
    side = max(s for s in options.sides if s <= 64)
    t = TEMPERATURES[2]
    part = data["grown", t, 0]
    dt, _, stride = timing(side)
    start = part[f"start_{side}"][:16]
    model = model_of(part, side, 1.0)
    z, _ = model.rollout(
        start, np.arange(len(start)), dt=dt, frames=200, stride=stride, seed=options.seed
    )
    with trajectory(
        path,
        "macroscopic ising",
        {"size": side, "temperature": t, "dt": dt},
        options.seed,
        dims={"member": len(start)},
        variables=[STANDARD[n].over("member") for n in ("magnetization", "domain_wall_density")],
    ) as writer:
        for frame, row in enumerate(z):
            now = {"magnetization": row[:, 0], "domain_wall_density": row[:, 1]}
            writer.append(frame * stride * dt, now)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/ising_critical")
    add = parser.add_argument
    add("--sides", type=int, nargs="+", default=[*STATES], help="sides of the lattices")
    add("--seeds", type=int, default=3, help="independent data sets and rollouts")
    add("--share", type=float, default=0.0, help="share of L^2.17 that grown states relax at least")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    options.less = 1
    if options.smoke:
        options.sides, options.seeds, options.less = [16, 32], 2, 64
    options.sides = sorted(set(options.sides))
    return options


if __name__ == "__main__":
    main()
