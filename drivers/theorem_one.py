"""Theorem 1 measured: what patches and their surroundings do to the learned drift and diffusion.

Chen et al., arXiv:2511.12842, eq. 18: the minimisers of L (whole lattice) and of L_p (patches,
lambda = K) differ by at most first order in dt. Minimisers are conditional moments of increments
(mpiflow.experiments.short_time), so nothing is trained: from fixed states x of a 64^2 lattice the
whole lattice and every patch evolve many times with the same noise at the same sites. The drift
error is the root mean square over states of mu(partial) - mu(whole) at the same dt, in units of
the rms drift; the diffusion error is the mean over states, in units of the mean diffusion. Both
units are those of the generator, dt = 0. "joint" counts the bonds of a patch with the buffer's
spins, and takes the covariance with the increment of patch and buffer together. Not counted is the
variance over patches of their mean increments, of which whole lattices of one z have as much
between them.

Of frozen patches the first-order term of the drift is known for each state; the measured error is
projected on it. Error bars and those of orders are jackknives over states; orders are slopes over
dt <= 1 where the error is above three of its error bars. Writes into --out: results.json,
table.md, theorem_one.png, truth.h5. Full cost: 4 minutes on one core.

    mpirun -n 2 .venv/bin/python drivers/theorem_one.py --out results/theorem_one
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline

from mpiflow import initial
from mpiflow.core import parallel
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import (
    FinishedParts,
    Report,
    farm,
    results_directory,
    table,
    trajectory,
)
from mpiflow.experiments.short_time import (
    Surroundings,
    evolve,
    generator_moments,
    patch_increments,
    patch_moments,
    steps_between,
)
from mpiflow.experiments.style import figure
from mpiflow.files.schema import STANDARD
from mpiflow.learn.certificate.spins import terms
from mpiflow.observables import intensive, spin_sums
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import Ising

SIDE = 64
#: Temperature, field, initial magnetisation, sweeps, then time before a state is taken.
KINDS = {
    "T=2.5, h=0.1, at rest": (2.5, 0.1, 1.0, 200, 1.0),
    "T=2.5, h=0.1, t=2 from M=0": (2.5, 0.1, 0.0, 0, 2.0),
    "T=2.27, h=0, near rest": (2.27, 0.0, 1.0, 4000, 1.0),
}
TIMES = 2.0 ** np.arange(-4, 4)
FROZEN, WRAP = Surroundings(), Surroundings(halo="wrap")
BUFFERS = tuple(Surroundings(buffer=b) for b in (1, 2, 4, 8))
#: Patch sides and what they evolve in; the other sides are for the dependence on K.
SIDES = {16: (FROZEN, WRAP, *BUFFERS), 8: (FROZEN, WRAP), 32: (FROZEN, WRAP)}
QUANTITIES = ("drift M", "drift rho", "diffusion M", "diffusion rho")
#: Where errors are given in tables; orders are fitted up to the second.
SHOWN, FITTED = 0.5, 1.0
#: States of a task, and blocks of the jackknife.
TOGETHER, BLOCKS = 8, 16

#: Kind and number of a group of states.
Task = tuple[int, int]
Part = dict[str, np.ndarray]
#: Value and error bar.
Value = tuple[np.ndarray, np.ndarray]
Curves = Callable[[Part], np.ndarray]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        if options.groups < 2:
            raise InputError("groups", options.groups, "2 or more, for error bars", "Leave it out.")
        at_least(options, replicas=4)
    out = results_directory(options.out, comm, options.device)
    facts = {"replicas": options.replicas, "seed": options.seed, "kinds": KINDS, "sides": SIDES}
    tasks = [(kind, group) for kind in range(len(KINDS)) for group in range(options.groups)]
    kept = FinishedParts(out / "parts", {**facts, "times": TIMES})
    parts = farm(tasks, lambda task: measure(task, options), comm, kept, "states")
    if comm.rank == 0:
        write_truth(out / "truth.h5", parts[tasks[0]], options)
        kinds = {
            name: joined([parts[i, group] for group in range(options.groups)])
            for i, name in enumerate(KINDS)
        }
        finish(out, kinds, options)


# -- measurement ---------------------------------------------------------------------------


def prepared(task: Task, options: argparse.Namespace) -> tuple[Ising, np.ndarray]:
    """The model and some states of a kind, (together, L, L)."""
    kind, group = task
    temperature, field, magnetization, sweeps, time = list(KINDS.values())[kind]
    system = Ising(temperature, field)
    together = options.together
    members = together * (group + options.groups * kind) + np.arange(together)
    block = Block.periodic(np.ones((together, SIDE, SIDE), np.int8), members)
    initial.shuffled(block, options.seed, np.full(together, magnetization))
    Sublattice(system, np.inf).advance(block, sweeps // options.less, seed=options.seed)
    Sublattice(system, 0.25).advance(block, round(4 * time), seed=options.seed, first_step=sweeps)
    return system, block.spins().copy()


def measure(task: Task, options: argparse.Namespace) -> Part:
    """Everything that is measured of a group of states; arrays are (states, times, 2)."""
    system, states = prepared(task, options)
    replicas = options.replicas
    first = replicas * options.together * (task[1] + options.groups * task[0])
    members = first + np.arange(replicas * options.together)
    many = np.repeat(states, replicas, axis=0)
    steps, seed = steps_between(TIMES), options.seed
    units = np.array([1.0, -0.25]) / SIDE**2  # of M and rho, from sums of spins and of bonds
    shape = (len(TIMES), options.together, replicas)
    whole, part = _whole(system, states, many, members, steps, seed, shape)

    def by_state(values: np.ndarray, power: int) -> np.ndarray:
        """(times, states, 2) of sums to rates of M and rho, (states, times, 2)."""
        return np.moveaxis(values * units**power / TIMES[:, None, None], 0, 1)

    for side, kinds in SIDES.items():
        base = base_variance = np.zeros(0)
        for each in kinds:
            found = patch_increments(many, members, system, side, each, steps, seed)
            touching, exact, box = (a.reshape(*shape, -1, 2) for a in found)
            variants: list[tuple[str, np.ndarray, np.ndarray | None]]
            variants = [(str(each), touching, None)]
            if each.buffer:
                variants.append((f"{each}, joint", exact, box))
            for name, own, joint in variants:
                error = own.sum(axis=-2) - whole
                moments = patch_moments(own, joint)
                if each is FROZEN:  # patches that share no noise: the sum of variances is theirs
                    base = own.sum(axis=-2).var(axis=2, ddof=1)
                    base_variance = moments.variance
                diffusion = moments.variance - base_variance + base - whole.var(axis=2, ddof=1)
                key = f"{side} {name}"
                part[f"drift {key}"] = by_state(error.mean(axis=2), 1)
                part[f"noise {key}"] = by_state(
                    error.var(axis=2, ddof=1) / replicas / TIMES[:, None, None], 2
                )
                part[f"diffusion {key}"] = by_state(diffusion, 2)
                part[f"between {key}"] = by_state(moments.between, 2)
    return part


def _whole(
    system: Ising,
    states: np.ndarray,
    many: np.ndarray,
    members: np.ndarray,
    steps: list[tuple[float, int]],
    seed: int,
    shape: tuple[int, int, int],
) -> tuple[np.ndarray, Part]:
    """Increments of sums of whole lattices (times, states, replicas, 2), and their moments.

    The bias of the drift, E[dz] / dt - mu(x), is the time average of E[mu(x_s)] - mu(x): exact,
    and with much less noise than the increments.
    """
    block = Block.periodic(many, members)
    start = spin_sums(block)
    sums, drifts = [], [generator_moments(many, system)[0]]
    for now in evolve(block, system, steps, seed):
        sums.append(spin_sums(now))
        drifts.append(generator_moments(np.ascontiguousarray(now.spins()), system)[0])
    path = np.stack([start, *sums])
    whole = (path[1:] - start).reshape(*shape, 2)
    spline = CubicSpline(np.append(0.0, TIMES), np.stack(drifts))
    bias = np.stack([spline.integrate(0.0, t) / t for t in TIMES]) - drifts[0]
    bias = bias.reshape(*shape, 2)
    drift, diffusion = generator_moments(states, system)
    units = np.array([1.0, -0.25]) / SIDE**2
    variance = whole.var(axis=2, ddof=1) * units**2 / TIMES[:, None, None]
    return whole, {
        "generator drift": drift,
        "first order": terms(system, states, [16]).cuts[0].surroundings,
        "generator diffusion": np.diagonal(diffusion, axis1=1, axis2=2),
        "bias": np.moveaxis(bias.mean(axis=2), 0, 1),
        "bias noise": np.moveaxis(bias.var(axis=2, ddof=1) / shape[2], 0, 1),
        "variance": np.moveaxis(variance, 0, 1),
        "path": intensive(path.reshape(-1, *shape[1:], 2)[:, :, 0], SIDE**2),
    }


# -- analysis ------------------------------------------------------------------------------


def joined(parts: list[Part]) -> Part:
    """All states of a kind."""
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0] if name != "path"}


def jackknife(data: Part, function: Curves) -> Value:
    """Value of a function of the states, and its error bar by leaving out blocks of them."""
    count = len(data["bias"])
    groups = np.array_split(np.arange(count), min(BLOCKS, count))
    kept = np.array(
        [function({n: np.delete(a, g, axis=0) for n, a in data.items()}) for g in groups]
    )
    spread = ((kept - kept.mean(axis=0)) ** 2).sum(axis=0)
    return function(data), np.sqrt(spread * (len(groups) - 1) / len(groups))


def squares(key: str) -> Curves:
    """Errors of patches against the whole lattice at the same dt, (times, 4) as QUANTITIES.

    Of drifts the mean square over states, the noise of each taken off, which may leave less
    than nothing; of diffusions the error itself.
    """

    def function(data: Part) -> np.ndarray:
        unit = (data["generator drift"] ** 2).mean(axis=0)
        drift = (data[f"drift {key}"] ** 2 - data[f"noise {key}"]).mean(axis=0) / unit
        unit = data["generator diffusion"].mean(axis=0)
        return np.hstack([drift, data[f"diffusion {key}"].mean(axis=0) / unit])

    return function


def generator_squares(key: str | None) -> Curves:
    """The same against dt = 0, which an SDE needs; of the whole lattice without a key."""

    def function(data: Part) -> np.ndarray:
        unit = (data["generator drift"] ** 2).mean(axis=0)
        bias, noise = data["bias"], data["bias noise"]
        change = data["variance"] - data["generator diffusion"][:, None]
        if key is not None:  # their errors are not independent: the noise taken off is a bound
            bias, noise = bias + data[f"drift {key}"], noise + data[f"noise {key}"]
            change = change + data[f"diffusion {key}"]
        diffusion = change.mean(axis=0) / data["generator diffusion"].mean(axis=0)
        return np.hstack([(bias**2 - noise).mean(axis=0) / unit, diffusion])

    return function


def rooted(function: Curves) -> Curves:
    """Root mean squares of drifts; 0 where the noise is more than what was found."""

    def roots(data: Part) -> np.ndarray:
        found = function(data).copy()
        found[:, :2] = np.sqrt(np.maximum(found[:, :2], 0.0))
        return found

    return roots


def curves(key: str) -> Curves:
    """Relative errors of patches against the whole lattice, (times, 4)."""
    return rooted(squares(key))


def written(data: Part, function: Curves, digits: int) -> list[list[str]]:
    """Errors as text, (times, 4); of a drift whose square is not seen above its noise a bound, two
    standard errors on top of what was found."""
    value, bar = jackknife(data, rooted(function))
    square, error = jackknife(data, function)
    bound = np.sqrt(np.maximum(square, 0.0) + 2.0 * error)
    rows = []
    for t in range(len(value)):
        cells = [f"{v:.{digits}f} ± {e:.{digits}f}" for v, e in zip(value[t], bar[t], strict=True)]
        for i in range(2):
            if square[t, i] == 0.0 == error[t, i]:
                cells[i] = "none seen"
            elif square[t, i] < 2.0 * error[t, i]:
                cells[i] = f"< {bound[t, i]:.{digits}f}"
        rows.append(cells)
    return rows


def orders(data: Part, key: str) -> Value:
    """Slopes of log error over log dt, (4,); nan where fewer than three points can be seen."""
    value, error = jackknife(data, curves(key))
    seen = (abs(value) > 3.0 * error) & (error > 0.0) & (TIMES <= FITTED)[:, None]

    def slopes(some: Part) -> np.ndarray:
        size = np.log(np.maximum(abs(curves(key)(some)), 1e-300))
        return np.array(
            [
                np.polyfit(np.log(TIMES[use]), size[use, i], 1)[0] if use.sum() >= 3 else np.nan
                for i, use in enumerate(seen.T)
            ]
        )

    return jackknife(data, slopes)


def projected(data: Part) -> np.ndarray:
    """Error of the drift of frozen patches over its first-order term, (times, 2)."""
    term = data["first order"][:, None] * TIMES[:, None]
    return np.asarray((data["drift 16 frozen"] * term).sum(axis=0) / (term**2).sum(axis=0))


def between(data: Part) -> np.ndarray:
    """What the variance over frozen patches adds to the diffusion, (times, 2)."""
    unit = data["generator diffusion"].mean(axis=0)
    return np.asarray(data["between 16 frozen"].mean(axis=0) / unit)


def expected(name: str, quantity: str) -> float:
    """Order in dt by counting flips, see mpiflow.experiments.short_time."""
    if name == "self-periodic":
        return 0.0
    buffer = int(name.removeprefix("buffer ").split(",")[0]) if name != "frozen" else 0
    mended = name.endswith("joint") or quantity == "drift M"
    return buffer + 1.0 if mended else 1.0


# -- what is left behind -------------------------------------------------------------------


def finish(out: Path, kinds: dict[str, Part], options: argparse.Namespace) -> None:
    """Tables, results.json and the figure."""
    at = int(np.flatnonzero(TIMES == SHOWN)[0])
    names = [n.removeprefix("drift 16 ") for n in next(iter(kinds.values())) if "drift 16" in n]
    report = Report(out)
    report.say(f"Errors of patches of 16^2 against the whole lattice, dt = {SHOWN}.")
    titles = [title for q in QUANTITIES for title in (q, "order (by counting)")]
    report.table("states", "surroundings", *titles)
    for kind, data in kinds.items():
        for name in names:
            value, error = jackknife(data, curves(f"16 {name}"))
            shown = written(data, squares(f"16 {name}"), 4)[at]
            slope, bar = orders(data, f"16 {name}")
            cells = [kind, name]
            for i, quantity in enumerate(QUANTITIES):
                exact = expected(name, quantity)
                of = f"{quantity}, {name}, {kind}"
                report.add(f"error of {of}", value[at, i], error[at, i])
                report.add(f"order of {of}", slope[i], bar[i], exact=exact)
                order = "too small" if np.isnan(slope[i]) else f"{slope[i]:.2f} ± {bar[i]:.2f}"
                cells += [shown[i], f"{order} ({exact:g})"]
            if not name.startswith(("buffer 4", "buffer 8")):
                report.row(*cells)
        value, error = jackknife(data, projected)
        for i, quantity in enumerate(QUANTITIES[:2]):
            of = f"error over its first-order term, {quantity}, frozen, dt = {SHOWN}, {kind}"
            report.add(of, value[at, i], error[at, i])
    report.say(
        "Buffers of 4 and 8 are as those of 2. The noise of states is taken off the mean squares "
        "of drifts; where that leaves less than two of its standard errors, two of them on top of "
        "it are a bound: < 0.01. None seen: no evolution was any different."
    )
    report.say(first_order_table(kinds))
    report.say(sides_table(kinds, at))
    report.say(generator_table(kinds))
    report.say(
        f"{options.groups * options.together} states of each kind, "
        f"{options.replicas} evolutions of each."
        " Published: order 1 (eq. 18), for conditionally independent patches."
    )
    report.write()
    draw(out / "theorem_one.png", kinds, names)


def first_order_table(kinds: dict[str, Part]) -> str:
    """Frozen patches of 16^2: the drift against its exact first-order term; and between patches."""
    rows = []
    for kind, data in kinds.items():
        unit = np.sqrt((data["generator drift"] ** 2).mean(axis=0))
        slope = np.sqrt((data["first order"] ** 2).mean(axis=0)) / unit
        value, error = jackknife(data, projected)
        for i, quantity in enumerate(QUANTITIES[:2]):
            cells = [f"{v:.2f} ± {e:.2f}" for v, e in zip(value[:, i], error[:, i], strict=True)]
            rows.append(
                [kind, f"{quantity}, error over first-order term", f"{slope[i]:.4f}", *cells]
            )
        value, error = jackknife(data, between)
        for i, quantity in enumerate(QUANTITIES[2:]):
            cells = [f"{v:.3f} ± {e:.3f}" for v, e in zip(value[:, i], error[:, i], strict=True)]
            rows.append([kind, f"{quantity}, added between patches", "", *cells])
    titles = ["states", "frozen patches", "exact error per dt", *(f"dt = {t:g}" for t in TIMES)]
    return table(titles, rows)


def sides_table(kinds: dict[str, Part], at: int) -> str:
    """Errors against the side of patches, and the power of the side that they go with."""
    rows = []
    sides = sorted(SIDES)
    for kind, data in kinds.items():
        for name in ("frozen", "self-periodic"):
            found = [jackknife(data, curves(f"{side} {name}")) for side in sides]
            texts = [written(data, squares(f"{side} {name}"), 4)[at] for side in sides]

            def powers(some: Part, name: str = name) -> np.ndarray:
                size = np.array([abs(curves(f"{side} {name}")(some)[at]) for side in sides])
                return np.polyfit(np.log(sides), np.log(np.maximum(size, 1e-300)), 1)[0]

            power, bar = jackknife(data, powers)
            for i, quantity in enumerate(QUANTITIES):
                cells = [text[i] for text in texts]
                seen = all(abs(v[at, i]) > 2.0 * e[at, i] for v, e in found)
                text = f"{power[i]:.2f} ± {bar[i]:.2f}" if seen else "too small"
                rows.append([kind, name, quantity, *cells, text])
    titles = ["states", "surroundings", f"error at dt = {SHOWN}", *(f"{s}^2" for s in sides)]
    return table([*titles, "power of the side"], rows)


def generator_table(kinds: dict[str, Part]) -> str:
    """Errors against dt = 0 of patches of 16^2 and of the whole lattice, of all dt."""
    rows = []
    for kind, data in kinds.items():
        for name in (None, "frozen", "self-periodic", "buffer 2", "buffer 2, joint"):
            key = None if name is None else f"16 {name}"
            texts = written(data, generator_squares(key), 3)
            for i in (0, 2):
                cells = [text[i] for text in texts]
                rows.append([kind, name or "whole lattice", QUANTITIES[i], *cells])
    titles = ["states", "evolved", "error against dt = 0", *(f"dt = {t:g}" for t in TIMES)]
    return table(titles, rows)


def draw(path: Path, kinds: dict[str, Part], names: list[str]) -> None:
    """Errors against dt for each kind of states: drift and diffusion of M."""
    page = figure(4.2 * len(kinds) + 2.4, 7.5)
    axes = page.subplots(2, len(kinds), squeeze=False)
    for column, (kind, data) in enumerate(kinds.items()):
        for row, i in enumerate((0, 2)):
            panel = axes[row, column]
            value = abs(jackknife(data, rooted(generator_squares(None)))[0][:, i])
            panel.plot(TIMES, value, "k-", lw=1, label="whole lattice, against dt = 0")
            for mark, name in zip(cycle("osD^v"), names):
                if name.endswith("joint") and row == 0:
                    continue  # the same for M
                value, error = jackknife(data, curves(f"16 {name}"))
                seen = abs(value[:, i]) > 2.0 * error[:, i]
                panel.errorbar(
                    TIMES[seen], abs(value[seen, i]), error[seen, i],
                    fmt=mark + ("--" if name.endswith("joint") else "-"), ms=3, lw=1, label=name,
                )  # fmt: skip
            panel.plot(TIMES, 0.03 * TIMES, ":", color="0.6", label="first order")
            panel.set(xscale="log", yscale="log", xlabel="dt", ylim=(1e-4, 3), title=kind)
            panel.set_ylabel(f"relative error of the {QUANTITIES[i]}")
    # Of the lower row, which has them all; beside the panels, which are full of curves.
    page.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside right center")
    page.suptitle("Patches of 16^2 against the whole lattice at the same dt")
    page.savefig(path, dpi=130)


def write_truth(path: Path, part: Part, options: argparse.Namespace) -> None:
    """The whole lattices of the first group of states, one evolution of each."""
    temperature, field = next(iter(KINDS.values()))[:2]
    config = {"size": SIDE, "temperature": temperature, "field": field}
    names = ("magnetization", "domain_wall_density")
    with trajectory(
        path,
        "ising",
        config,
        options.seed,
        dims={"member": options.together},
        variables=[STANDARD[name].over("member") for name in names],
    ) as writer:
        for time, frame in zip(np.append(0.0, TIMES), part["path"], strict=True):
            writer.append(float(time), dict(zip(names, frame.T, strict=True)))


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/theorem_one")
    add = parser.add_argument
    add("--groups", type=int, default=4, help=f"groups of {TOGETHER} states of each kind")
    add("--replicas", type=int, default=64, help="evolutions of each state")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    options.together, options.less = TOGETHER, 1
    if options.smoke:
        options.groups, options.replicas, options.together, options.less = 2, 4, 2, 100
    return options


if __name__ == "__main__":
    main()
