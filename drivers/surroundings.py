"""Patches in their true surroundings against self-periodic ones: what is left to tune of lambda.

Beyond arXiv:2511.12842, section III.2 (phase transition, h = 0): there patches of 16^2, closed on
themselves, evolve for 256 flips, and lambda was tuned for each size and temperature, to 0.44 to
0.67 K. Here nothing is trained: the minimum of the loss for a linear drift of M is a ratio of
moments (mpiflow.experiments.short_time.linear_minimiser) of increments from equilibrium states. Of
each way to evolve a patch the table gives

- lambda for the diffusion / K: diffusion at lambda = K over that of the whole lattice at the same
  duration, of M and of rho; lambda = K times this makes the diffusion right;
- the rate of the drift of M over the true one, which is known from E[dM^2] = -2 E[M dM];
- lambda for the variance / K: the variance of M that the linear SDE with lambda = K has at rest,
  over the true one; lambda = K times this makes the variance right, with the drift as it is.
  "none" where the drift leads away from the mean, so that no lambda does.

A linear model of M alone is not the published network, with its closure variables. Error bars
are jackknives over lattices. The last case, T = 2.5, h = 0.1, is well measured: M is fast there,
so that steps of 8 err: even right surroundings give (2 - a dt / K) / (2 - a dt), not 1.
Writes into --out: results.json, table.md, surroundings.png, truth.h5.
Full cost: 8 minutes on one core.

    mpirun -n 2 .venv/bin/python drivers/surroundings.py --out results/surroundings
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow import initial
from mpiflow.core import parallel
from mpiflow.core.block import Block
from mpiflow.core.noise import BIT_RNG
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import (
    FinishedParts,
    Report,
    farm,
    results_directory,
    table,
    trajectory,
    with_error,
)
from mpiflow.experiments.short_time import stationary_variance
from mpiflow.experiments.style import figure
from mpiflow.files.schema import STANDARD
from mpiflow.observables import intensive, spin_sums
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import Ising

PATCH, FLIPS = 16, 256
TEMPERATURES = (2.25, 2.26, 2.27, 2.28, 2.29)
#: Side to tuned lambda at each temperature, section III.2's published code.
PUBLISHED = {
    32: (2.5, 2.5, 2.2, 2.2, 2.0),
    48: (6.0, 6.0, 5.4, 5.0, 4.5),
    64: (10.0, 9.0, 10.0, 8.0, 7.0),
}
#: Temperature, field, side.
CASES = (*((t, 0.0, side) for side in PUBLISHED for t in TEMPERATURES), (2.5, 0.1, 64))
#: Sweeps before the first state, from ordered and from random states; between two states.
SWEEPS, BETWEEN = {32: 2000, 48: 4000, 64: 8000}, 8
#: What a patch evolves in: options of scaleup.partial_evolution, and at which of the states.
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "self-periodic, 256 flips": ({"halo": "wrap", "flips": FLIPS, "duration": None}, 1),
    "frozen, 256 flips": ({"flips": FLIPS, "duration": None}, 4),
    "self-periodic, 8": ({"halo": "wrap", "duration": 8.0}, 2),
    "frozen, 8": ({"duration": 8.0}, 2),
    "self-periodic, 0.5": ({"halo": "wrap", "duration": 0.5}, 1),
    "frozen, 0.5": ({"duration": 0.5}, 1),
    "buffer 8, 8": ({"buffer": 8, "duration": 8.0}, 2),
}
#: Its variance is E[dM dM'], M' of the patch and its buffer together.
JOINT = "buffer 8, 8, joint"
BUFFER, DT = 8, 0.25
#: Whole lattices at every so many states, up to these times.
WHOLE_EVERY, WHOLE_TIMES = 8, (0.5, 4.0, 8.0)
#: Blocks of the jackknife.
BLOCKS = 24
#: Sums over the states of a lattice, for M and rho.
SUMS = ("1", "z", "z^2", "dz", "z dz", "dt", "z dt", "z^2 dt", "dz^2 / dt")
COLUMNS = ("diffusion M", "diffusion rho", "rate", "variance")

#: Number of a case, seed.
Task = tuple[int, int]
Part = dict[str, np.ndarray]
#: A case and a way.
Found = tuple[tuple[float, float, int], str]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, seeds=3, lattices=8, states=1)
    out = results_directory(options.out, comm, options.device)
    facts = {name: getattr(options, name) for name in ("lattices", "states", "seed", "sweeps")}
    facts |= {"ways": WAYS, "cases": CASES, "times": WHOLE_TIMES}
    cases = [i for i, case in enumerate(CASES) if case in options.cases]
    tasks = [(case, seed) for seed in range(options.seeds) for case in cases]
    kept = FinishedParts(out / "parts", facts)
    parts = farm(tasks, lambda task: measure(task, options), comm, kept, "cases")
    if comm.rank == 0:
        write_truth(out / "truth.h5", parts[tasks[0]], CASES[cases[0]], options)
        merged = {
            CASES[i]: {
                name: np.concatenate([parts[i, seed][name] for seed in range(options.seeds)])
                for name in parts[i, 0]
                if name != "path"
            }
            for i in cases
        }
        finish(out, merged, options)


# -- measurement ---------------------------------------------------------------------------


def measure(task: Task, options: argparse.Namespace) -> Part:
    """Of each way the sums over states of each lattice, (lattices, len(SUMS), 2)."""
    case, number = task
    temperature, field, side = CASES[case]
    system, count = Ising(temperature, field), options.lattices
    seed = 1000 * options.seed + 100 * number + case
    block = started(side, count, seed)
    sweep, whole = Sublattice(system, np.inf), Sublattice(system, DT)
    sweeps = min(SWEEPS[side], options.sweeps)
    sweep.advance(block, sweeps, seed=seed)
    patches, sites = (side // PATCH) ** 2, side**2
    names = [*WAYS, JOINT, *(f"whole, {t:g}" for t in WHOLE_TIMES)]
    out = {name: np.zeros((count, len(SUMS), 2)) for name in names}
    path = []
    for state in range(options.states):
        sweep.advance(block, BETWEEN, seed=seed, first_step=sweeps + BETWEEN * state)
        states = np.ascontiguousarray(block.spins())
        z = intensive(spin_sums(block), sites)
        path.append(z[:8])
        members = count * state + np.arange(count)
        for name, (how, every) in WAYS.items():
            if state % every == 0:
                moved = scaleup.partial_evolution(
                    states, members, system, PATCH, seed=seed, dt=DT, **how
                )
                out[name] += summed(z, patches * change(moved.changes(), sites), moved.elapsed)
        if state % WAYS["buffer 8, 8"][1] == 0:
            dz, other = with_buffer(states, members, system, seed)
            own, joint = patches * dz / sites, patches * other / sites
            out[JOINT] += summed(z, own[:, None], np.full(count, 8.0), joint[:, None])
        if state % WHOLE_EVERY == 0:
            now, done = Block.periodic(states, members), 0
            for time in WHOLE_TIMES:
                steps = round(time / DT) - done
                whole.advance(now, steps, seed=seed, first_step=done)
                done += steps
                dz = intensive(spin_sums(now), sites) - z
                out[f"whole, {time:g}"] += summed(z, dz, np.full(count, time))
    return {**out, "path": np.stack(path)}


def started(side: int, count: int, seed: int) -> Block:
    """Lattices all up, all down, and of random spins: a quarter, a quarter and a half."""
    block = Block.periodic(np.ones((count, side, side), np.int8), np.arange(count))
    initial.shuffled(block, seed, np.resize([1.0, 0.0, -1.0, 0.0], count))
    return block


def change(sums: np.ndarray, sites: int) -> np.ndarray:
    """Changes of M and rho from those of the sums of spins and of bonds."""
    return sums * np.array([1.0, -0.25]) / sites


def with_buffer(
    states: np.ndarray, members: np.ndarray, system: Ising, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Changes of the sum of spins of a patch, and of it with its buffer, (B,) each."""
    across = states.shape[1] // PATCH
    index = scaleup.choose_patch(members, across**2, seed)
    corner = PATCH * np.stack(np.divmod(index, across), axis=1) - BUFFER
    block = Block.cut(states, corner, (PATCH + 2 * BUFFER,) * 2, members)
    before = block.spins().astype(int)
    Sublattice(system, DT).advance(block, round(8.0 / DT), seed=seed, stream="partial")
    moved = block.spins() - before
    inner = slice(BUFFER, BUFFER + PATCH)
    return moved[:, inner, inner].sum(axis=(1, 2)), moved.sum(axis=(1, 2))


def summed(
    z: np.ndarray, dz: np.ndarray, dt: np.ndarray, other: np.ndarray | None = None
) -> np.ndarray:
    """One state's share in SUMS, (lattices, len(SUMS), 2)."""
    dz = np.broadcast_to(dz, z.shape)
    dt = np.broadcast_to(dt[:, None], z.shape)
    square = dz * (dz if other is None else other) / dt
    one = np.ones_like(z)
    return np.stack([one, z, z * z, dz, z * dz, dt, z * dt, z * z * dt, square], axis=1)


# -- analysis ------------------------------------------------------------------------------


def fit(sums: np.ndarray, centre: np.ndarray | float) -> dict[str, np.ndarray]:
    """Minimum of the loss for dz = (c - a (z - centre)) dt + s dB at lambda = 1, (2,) each.

    Of c only that it is the mean increment over the mean time; SUMS (lattices, len(SUMS), 2).
    """
    n, z, zz, dz, zdz, dt, zdt, zzdt, square = sums.sum(axis=0)
    offset = dz / dt
    moment = zdz - centre * dz
    weight = zzdt - 2.0 * centre * zdt + centre**2 * dt
    rate = -moment / weight
    return {
        "dt": dt / n,
        "rate": rate,
        "offset": offset,
        "diffusion": (square - rate**2 * weight - offset**2 * dt) / n,
        "square": square / n,
        "variance": zz / n - 2.0 * centre * z / n + centre**2,
    }


def compared(data: Part, name: str, case: tuple[float, float, int]) -> np.ndarray:
    """COLUMNS of a way; the last as its inverse, which passes through zero, not infinity."""
    patches = (case[2] // PATCH) ** 2
    pooled = np.concatenate([data[way] for way in WAYS]).sum(axis=0)
    centre = pooled[1] / pooled[0] if case[1] else np.array([0.0, pooled[1, 1] / pooled[0, 1]])
    way = fit(data[name], centre)
    whole = [fit(data[f"whole, {t:g}"], centre) for t in WHOLE_TIMES]

    def at(quantity: str) -> np.ndarray:
        """Of the whole lattice at the duration of the way, linear in log t."""
        times = np.log(WHOLE_TIMES)
        rows = np.array([w[quantity] for w in whole])
        return np.array([np.interp(np.log(way["dt"][0]), times, row) for row in rows.T])

    diffusion = way["diffusion"] / patches / at("diffusion")
    # -2 E[z dz] = E[dz^2] at rest, of the whole lattice.
    true_rate = 0.5 * (at("square") - at("offset") ** 2 * way["dt"]) / way["variance"]
    rate, dt = way["rate"][0], way["dt"][0]
    found = stationary_variance(abs(rate), way["diffusion"][0] / patches, dt)
    inverse = np.sign(rate) * way["variance"][0] / found
    return np.array([*diffusion, rate / true_rate[0], inverse])


def jackknife(data: Part, function: Callable[[Part], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Value of a function of the lattices, and its error bar by leaving out blocks of them."""
    count = len(next(iter(data.values())))
    groups = np.array_split(np.arange(count), min(BLOCKS, count))
    kept = np.array(
        [function({n: np.delete(a, g, axis=0) for n, a in data.items()}) for g in groups]
    )
    spread = ((kept - kept.mean(axis=0)) ** 2).sum(axis=0)
    return function(data), np.sqrt(spread * (len(groups) - 1) / len(groups))


def lambda_text(inverse: float, error: float) -> str:
    """lambda / K for the variance from its inverse."""
    if inverse < -2.0 * error:
        return "none"
    if inverse < 2.0 * error:
        return f"> {1.0 / (inverse + 2.0 * error):.2f}"
    return f"{1.0 / inverse:.3f} ± {error / inverse**2:.3f}"


def finish(
    out: Path, cases: dict[tuple[float, float, int], Part], options: argparse.Namespace
) -> None:
    """Table, results.json and the figure."""
    report, rows, found = Report(out), [], {}
    for case, data in cases.items():
        temperature, field, side = case
        patches = (side // PATCH) ** 2
        published = None
        if field == 0.0:
            published = PUBLISHED[side][TEMPERATURES.index(temperature)] / patches
        for name in (*WAYS, JOINT):
            value, error = jackknife(data, lambda some, n=name, c=case: compared(some, n, c))  # type: ignore[misc]
            found[case, name] = value, error
            surroundings, duration = name.split(", ", 1)
            cells = [f"{v:.3f} ± {e:.3f}" for v, e in zip(value[:3], error[:3], strict=True)]
            if name == JOINT:
                cells[1] = ""
            rows.append(
                [
                    f"{temperature:g}", f"{field:g}", str(side), surroundings, duration,
                    *cells, lambda_text(value[3], error[3]),
                    "" if published is None else f"{published:.3f}",
                ]
            )  # fmt: skip
            of = f"{name}, T={temperature:g}, L={side}"
            told = published if name == "self-periodic, 256 flips" else None
            exact = 1.0 if field == 0.0 and name in ("frozen, 8", "frozen, 0.5") else None
            inverse, bar = value[3], error[3]
            report.add(f"rate over true rate, {of}", value[2], error[2])
            report.add(f"lambda / K for the diffusion of M, {of}", value[0], error[0])
            report.add(
                f"lambda / K for the variance of M, {of}",
                1.0 / inverse if inverse > 2.0 * bar else np.nan,
                bar / inverse**2,
                published=told,
                exact=exact,
            )
    titles = ["T", "h", "L", "surroundings", "duration", "lambda for the diffusion of M / K"]
    titles += ["of rho / K", "rate of the drift of M / true", "lambda for the variance of M / K"]
    report.say(pooled(found))
    report.say(table([*titles, "published lambda / K"], rows))
    report.say(starts(cases))
    report.write()
    draw(out / "surroundings.png", found)


def pooled(found: dict[Found, tuple[np.ndarray, np.ndarray]]) -> str:
    """Weighted means over the cases without a field, and the chi^2 that all rates are true."""
    rows = []
    for name in (*WAYS, JOINT):
        cases = [both for (case, n), both in found.items() if n == name and case[1] == 0.0]
        value, error = (np.array(part) for part in zip(*cases, strict=True))
        weight = error**-2.0
        mean, bar = (weight * value).sum(axis=0) / weight.sum(axis=0), weight.sum(axis=0) ** -0.5
        chi = (((value[:, 2] - 1.0) / error[:, 2]) ** 2).sum()
        cells = [f"{mean[i]:.3f} ± {bar[i]:.3f}" for i in (0, 2, 3)]
        rows.append([*name.split(", ", 1), *cells, f"{chi:.0f} of {len(value)}"])
    titles = ["h = 0, all T and L: surroundings", "duration", "lambda for the diffusion of M / K"]
    titles += ["rate of the drift of M / true", "K / lambda for the variance of M"]
    return table([*titles, "chi^2 of rate = true"], rows)


def starts(cases: dict[tuple[float, float, int], Part]) -> str:
    """<M^2> from ordered and from random starts: whether the states are at rest."""
    rows = []
    for (temperature, field, side), data in cases.items():
        sums = data["frozen, 0.5"]
        squares = sums[:, 2, 0] / sums[:, 0, 0]
        halves = squares[::2], squares[1::2]
        rows.append([f"{temperature:g}", f"{field:g}", str(side), *map(with_error, halves)])
    return table(["T", "h", "L", "<M^2>, from ordered states", "from random ones"], rows)


def draw(
    path: Path,
    found: dict[Found, tuple[np.ndarray, np.ndarray]],
) -> None:
    """lambda / K that makes the variance right, and the rate of the drift, against T."""
    page = figure(12, 6.5)
    sides = sorted({side for (_, field, side), _ in found if field == 0.0})
    axes = page.subplots(2, len(sides), squeeze=False, sharex=True, sharey="row")
    for column, side in enumerate(sides):
        upper, lower = axes[:, column]
        temperatures = [t for t in TEMPERATURES if ((t, 0.0, side), JOINT) in found]
        for shift, name in enumerate((*WAYS, JOINT)):
            if name.endswith("0.5"):
                continue
            values = np.array([found[(t, 0.0, side), name][0] for t in temperatures])
            errors = np.array([found[(t, 0.0, side), name][1] for t in temperatures])
            x = np.array(temperatures) + 0.0005 * (shift - 3)
            lower.errorbar(x, values[:, 2], errors[:, 2], fmt="o-", ms=3, lw=1, label=name)
            good = values[:, 3] > 2.0 * errors[:, 3]
            inverse = values[good, 3]
            bar = errors[good, 3] / inverse**2
            upper.errorbar(x[good], 1.0 / inverse, bar, fmt="o-", ms=3, lw=1, label=name)
        known = [PUBLISHED[side][TEMPERATURES.index(t)] for t in temperatures]
        upper.plot(temperatures, np.array(known) / (side / PATCH) ** 2, "ks", label="published")
        upper.set(title=f"L = {side}", ylim=(0, 2))
        lower.set(xlabel="T")
        for panel in (upper, lower):
            panel.axhline(1.0, color="0.6", lw=0.8)
    axes[0, 0].set_ylabel("lambda for the variance of M / K")
    axes[1, 0].set_ylabel("rate of the drift of M / true")
    page.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    page.savefig(path, dpi=130)


def write_truth(
    path: Path, part: Part, case: tuple[float, float, int], options: argparse.Namespace
) -> None:
    """M and rho of a few lattices of the first case; time counts sweeps."""
    temperature, field, side = case
    config = {"size": side, "temperature": temperature, "field": field}
    names = ("magnetization", "domain_wall_density")
    with trajectory(
        path,
        "ising",
        config,
        options.seed,
        rng=BIT_RNG,
        dims={"member": part["path"].shape[1]},
        variables=[STANDARD[name].over("member") for name in names],
    ) as writer:
        for state, frame in enumerate(part["path"]):
            columns = dict(zip(names, np.ascontiguousarray(frame.T), strict=True))
            writer.append(float(BETWEEN * state), columns)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/surroundings")
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="independent sets of lattices, 3 or more")
    add("--lattices", type=int, default=512, help="lattices of each set")
    add("--states", type=int, default=160, help=f"states of each, {BETWEEN} sweeps apart")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    options.cases, options.sweeps = list(CASES), max(SWEEPS.values())
    if options.smoke:
        options.lattices, options.states, options.sweeps = 8, 8, 50
        options.cases = [(2.27, 0.0, 32), CASES[-1]]
    return options


if __name__ == "__main__":
    main()
