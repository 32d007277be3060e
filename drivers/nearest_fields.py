r"""Magnetization and bonds of nearest-neighbour spins as fields, learned and used at any size.

The law of mpiflow.learn.onsagerflow.bonds is learned from counts of sites in blocks of 128^2 spins
of lattices of 512^2, at each temperature, with one seed held out: the share of the exact drift of
blocks that it has, of their mean in each frame, and what any function of m alone has at most. Then
it makes the fields of a large lattice, in blocks as large, from the fields of its first frame, with
the noise of its flips: magnetization, walls, S(k) of blocks, and at T = 1.8 the growth of domains:
the density of walls beyond that at rest, times the root of t.

Writes into --out: results.json, table.md, nearest_fields.png, parts/ (a stopped driver goes on).

    mpirun -n 2 .venv/bin/python drivers/nearest_fields.py --out results/nearest_fields
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from mpi4py import MPI
from scipy.optimize import brentq

from mpiflow import Ising, Simulation, initial, metrics, onsager_energy
from mpiflow.core import parallel
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import FinishedParts, Report, farm, results_directory
from mpiflow.experiments.style import figure
from mpiflow.learn.onsagerflow.bonds import (
    BondLaw,
    count_classes,
    exact_drift,
    fields_of,
    learn_bonds,
)

#: Steps of spins and of fields.
STEP, FIELD_STEP = 0.05, 0.1
TEMPERATURES = (5.0, 3.0, 1.8)
#: Degrees of s and of the shares.
DEGREES = {5.0: (6, 4), 3.0: (8, 5), 1.8: (10, 6)}
#: Large lattices: T, h, m of independent spins, end.
CASES = {
    "T = 5": (5.0, 0.0, 0.5, 5.0),
    "T = 3": (3.0, 0.0, 0.5, 8.0),
    "T = 3, h = 0.1": (3.0, 0.1, 0.0, 8.0),
    "quench to T = 1.8": (1.8, 0.0, 0.1, 100.0),
}
#: Edges of the rings of S(k), in waves a side, as far as there are such.
RINGS = np.array([0.5, 4.5, 8.5, 16.5, 32.5, 64.5])
Parts = dict[str, np.ndarray]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, seeds=2, members=2)
    out = results_directory(options.out, comm, options.device)
    about = {k: getattr(options, k) for k in ("small", "block", "seed", "smoke")}
    kept = FinishedParts(out / "parts", about)
    tasks = [(f"small {t:g}", i) for t in TEMPERATURES for i in range(options.seeds)]
    small = farm(tasks, lambda task: counted(task, options), comm, kept, "small lattices")
    big = FinishedParts(out / "parts", {**about, "size": options.size})
    large = farm([(n, options.size) for n in CASES], lambda t: truth(t[0], options), comm, big)
    if comm.rank == 0:
        write(out, small, {name: large[name, options.size] for name in CASES}, options)


# -- spins ---------------------------------------------------------------------------------


def starts(temperature: float, smoke: bool = False) -> list[tuple[float, float]]:
    """Magnetizations and fields of what is learned from.

    Above T_c there are starts without a field, and starts near to where their field lets them rest
    in the law of pairs, of which bonds and a few hundredths of m relax.
    """
    if temperature < 2.269:
        found = [(m, 0.0) for m in (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)]
        found += [(0.1, 0.05), (0.1, -0.05), (0.3, -0.1), (0.0, 0.1)]
    else:
        pairs = BondLaw.of_pairs()

        def off(c: float, m: float) -> float:
            return float(pairs.forces(np.array(m), np.array(c))[1] - 1 / temperature)

        found = [(m, 0.0) for m in (0.0, 0.2, 0.35, 0.5)] + [(0.0, 0.1)]
        for m in 0.93 * np.arange(1, 7) / 6:
            c = brentq(off, m * m, 1 - 1e-6, args=(m,))
            h = temperature * float(pairs.forces(np.array(m), np.array(c))[0])
            found.append((0.9 / 0.93 * m, h))
    return found[::4] if smoke else found


def frames(end: float, number: int) -> np.ndarray:
    """Times of frames: 0, then ever longer between them; whole steps."""
    return np.unique(np.r_[0.0, np.round(np.geomspace(0.25, end, number) / STEP) * STEP])


def spins(
    temperature: float, h: float, m: float, size: int, times: np.ndarray, block: int, seed: int
) -> np.ndarray:
    """Counts (frames, n, n, 10) of a run."""
    sim = Simulation(Ising(temperature, field=h), size, dt=STEP, seed=seed, comm=MPI.COMM_SELF)
    sim.set_spins(initial.independent, magnetization=m)
    found = []
    for time in times:
        sim.advance_to(float(time))
        found.append(count_classes(sim.spins()[0], block))
    return np.array(found, np.int32)


def counted(task: tuple[str, int], options: argparse.Namespace) -> Parts:
    """Runs from all starts of a temperature with one seed: counts (runs, frames, n, n, 10)."""
    t = float(task[0].split()[1])
    times = frames(5.0 if t > 2 else 100.0, 8 if options.smoke else 20 if t > 2 else 29)
    if options.smoke:
        times = times[times <= 5]
    seed = options.seed + 1000 * (task[1] + 1)
    runs = [
        spins(t, h, m, options.small, times, options.block, seed + i)
        for i, (m, h) in enumerate(starts(t, options.smoke))
    ]
    return {"counts": np.array(runs)}


def truth(name: str, options: argparse.Namespace) -> Parts:
    t, h, m, end = CASES[name]
    times = frames(min(end, 2.0) if options.smoke else end, 12)
    counts = spins(t, h, m, options.size, times, options.block, options.seed)
    return {"times": times, "fields": np.array(fields_of(counts))}


# -- the law -------------------------------------------------------------------------------


def alike(parts: list[Parts], h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts, summed over blocks of one field, frame and bin of m, and their fields."""
    everything = np.concatenate([p["counts"].reshape(*p["counts"].shape[:2], -1, 10)
                                 for p in parts], axis=2).astype(float)  # fmt: skip
    counts, fields = [], []
    for value in np.unique(h):
        for frame in everything[h == value].swapaxes(0, 1):
            blocks = frame.reshape(-1, 10)
            bins = np.floor(15 * (fields_of(blocks)[0] + 1)).astype(int)
            for one in np.unique(bins):
                counts.append(blocks[bins == one].sum(axis=0))
                fields.append(value)
    return np.array(counts), np.array(fields)


def explained(
    law: BondLaw, parts: list[Parts], temperature: float, given: np.ndarray
) -> dict[str, float]:
    """Shares of the exact drift of held-out blocks, and of its mean over each frame."""
    found = {}
    counts = np.concatenate([p["counts"] for p in parts])
    h = np.tile(given, len(parts))[:, None, None, None]
    fields = fields_of(counts)
    exact = exact_drift(counts, temperature, np.broadcast_to(h, fields[0].shape))
    ours = law.drift(*fields, temperature, np.broadcast_to(h, fields[0].shape))
    for what, a, b in zip(("m", "c"), exact, ours, strict=True):
        found[f"{what} of blocks"] = share(a, b)
        found[f"{what}, mean"] = share(a.mean(axis=(2, 3)), b.mean(axis=(2, 3)))
    # The best function of m and h alone, fitted to these blocks themselves.
    m, here = fields[0].ravel(), np.broadcast_to(h, fields[0].shape).ravel()
    terms = np.stack([m**i * (here == v) for i in range(10) for v in np.unique(here)], axis=1)
    best = terms @ np.linalg.lstsq(terms, exact[0].ravel(), rcond=None)[0]
    found["m of blocks, by m alone"] = share(exact[0].ravel(), best)
    return found


def share(exact: np.ndarray, found: np.ndarray) -> float:
    return float(1 - ((exact - found) ** 2).sum() / (exact**2).sum())


def rollout(law: BondLaw, name: str, part: Parts, members: int, block: int, seed: int) -> Parts:
    """Fields (2, frames, members, n, n) from those of the first frame."""
    t, h, *_ = CASES[name]
    rng = np.random.default_rng(seed)
    m, c = (np.repeat(f[None, 0], members, axis=0) for f in part["fields"])
    out, now = [(m, c)], 0.0
    for time in part["times"][1:]:
        steps = int(np.ceil((time - now) / FIELD_STEP - 1e-9))
        for _ in range(steps):
            m, c = law.step(m, c, t, h, dt=(time - now) / steps, sites=block**2, rng=rng)
        out.append((m, c))
        now = time
    return {"fields": np.array(out).swapaxes(0, 1), "times": part["times"]}


# -- what is left --------------------------------------------------------------------------


def write(
    out: Path, small: dict[tuple[str, int], Parts], large: dict[str, Parts],
    options: argparse.Namespace,
) -> None:  # fmt: skip
    report, laws = Report(out), {}
    report.table(
        *("T", "drift of m of held-out blocks", "of their mean", "by m alone"),
        *("drift of c of blocks", "of their mean"),
    )
    for t in TEMPERATURES:
        parts = [small[f"small {t:g}", i] for i in range(options.seeds)]
        given = np.array([field for _, field in starts(t, options.smoke)])
        counts, fields = alike(parts[:-1], given)
        degrees = (4, 2) if options.smoke else DEGREES[t]
        law = learn_bonds(counts, t, fields, entropy_degree=degrees[0], share_degree=degrees[1])
        laws[t], found = law, explained(law, parts[-1:], t, given)
        order = ("m of blocks", "m, mean", "m of blocks, by m alone", "c of blocks", "c, mean")
        report.row(f"{t:g}", *(f"{found[name]:.2%}" for name in order))
        for name in order:
            report.add(f"T={t:g}: drift of {name}", found[name], exact=1.0)
    report.say(
        f"Learned from {options.seeds - 1} seeds of {options.small}^2 spins in blocks of "
        f"{options.block}^2; one more is held out."
    )
    report.table(
        *("large lattice", "m: spins, law at the end", "m, largest error"),
        *("walls, largest relative error", "S(k, t), largest", "beyond 3 sigma"),
    )
    pictures = {}
    for name, part in large.items():
        law = laws[CASES[name][0]]
        ours = rollout(law, name, part, options.members, options.block, options.seed)
        pictures[name] = ours
        compare(name, part, ours, report)
    growth(large["quench to T = 1.8"], pictures["quench to T = 1.8"], report)
    report.say(
        f"{options.size}^2 spins in blocks of {options.block}^2; {options.members} members of the "
        "law; errors are the largest over all frames after the first, of m relative to the largest "
        "of |m| of a run."
    )
    report.write()
    draw(out / "nearest_fields.png", large, pictures)


def compare(name: str, part: Parts, ours: Parts, report: Report) -> None:
    (m, c), (of_m, of_c) = part["fields"], ours["fields"]
    mean, guess = m.mean(axis=(1, 2)), of_m.mean(axis=(1, 2, 3))
    off = float((abs(guess - mean) / abs(mean).max())[1:].max())
    walls = (1 - c.mean(axis=(1, 2))) / 2
    off_walls = float(abs((1 - of_c.mean(axis=(1, 2, 3))) / 2 / walls - 1)[1:].max())
    rings = RINGS[: np.count_nonzero(RINGS < m.shape[1] / 2 + 1)]
    spins_s = metrics.structure_factor(m[:, None], rings)[0][1:, 0]
    law_s = metrics.structure_factor(of_m, rings)[0][1:]
    difference = abs(law_s.mean(axis=1) - spins_s)
    spread = law_s.std(axis=1, ddof=1) * np.sqrt(1 + 1 / law_s.shape[1])
    off_s = float((difference / spins_s).max())
    beyond = float((np.maximum(0, difference - 3 * spread) / spins_s).max())
    report.row(
        name, f"{mean[-1]:.4f}, {guess[-1]:.4f}", f"{off:.2%}", f"{off_walls:.2%}", f"{off_s:.1%}",
        f"{beyond:.1%}",
    )  # fmt: skip
    for what, value in (("m", off), ("walls", off_walls), ("S", off_s), ("S beyond", beyond)):
        report.add(f"{name}: largest error of {what}", value, exact=0.0)


def growth(part: Parts, ours: Parts, report: Report) -> None:
    """Walls beyond those at rest fall as t^-1/2: the amplitude and the power, from t = 10 on."""
    times = part["times"]
    late = times >= (10.0 if times[-1] > 10 else times[-1] / 4)
    at_rest = (1 + float(onsager_energy(1.8)) / 2) / 2
    found = []
    for fields in (part["fields"][1][:, None], ours["fields"][1]):
        walls = (1 - fields.mean(axis=(1, 2, 3))) / 2 - at_rest
        power = np.polyfit(np.log(times[late]), np.log(walls[late]), 1)[0]
        found.append((power, float(np.mean(walls[late] * np.sqrt(times[late])))))
    (power, amplitude), (of_law, ours_at) = found
    report.say(
        f"T = 1.8, t >= {times[late][0]:g}: walls beyond {at_rest:.4f} fall as t^{power:.3f} of "
        f"spins and t^{of_law:.3f} of the law; times t^1/2 they are {amplitude:.4f} and "
        f"{ours_at:.4f}, {ours_at / amplitude - 1:+.1%}."
    )
    report.add("T=1.8: power of walls", of_law, exact=float(power))
    report.add("T=1.8: amplitude of walls", ours_at, exact=amplitude)


def draw(path: Path, large: dict[str, Parts], pictures: dict[str, Parts]) -> None:
    page = figure(13.0, 3.6)
    of_m, of_c, of_s = page.subplots(1, 3)
    for name, part in large.items():
        times, ours = part["times"], pictures[name]["fields"]
        values = [(part["fields"][0].mean(axis=(1, 2)), ours[0].mean(axis=(1, 2, 3)), of_m)]
        walls = [(1 - f) / 2 for f in (part["fields"][1].mean(axis=(1, 2)),
                                       ours[1].mean(axis=(1, 2, 3)))]  # fmt: skip
        values.append((walls[0], walls[1], of_c))
        values.append(
            (part["fields"][0].var(axis=(1, 2)), ours[0].var(axis=(2, 3)).mean(axis=1), of_s)
        )
        for spin, law, panel in values:
            (line,) = panel.plot(times[1:], spin[1:], "o", ms=4, label=name)
            panel.plot(times[1:], law[1:], color=line.get_color(), lw=1)
    for panel, label in (
        (of_m, "m"),
        (of_c, "density of walls"),
        (of_s, "variance of m of blocks"),
    ):
        panel.set(xlabel="time", ylabel=label, xscale="log")
    of_s.set(yscale="log")
    of_m.legend(title="dots: spins, lines: law")
    page.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/nearest_fields")
    add = parser.add_argument
    add("--small", type=int, default=512, help="spins a side of what is learned from")
    add("--block", type=int, default=128, help="spins a side of a block")
    add("--seeds", type=int, default=9, help="runs of each start; the last is held out")
    add("--size", type=int, default=8192, help="spins a side of the large lattices")
    add("--members", type=int, default=4, help="realisations of the law")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.smoke:
        options.small, options.block, options.seeds, options.size = 64, 32, 2, 256
        options.members = 2
    return options


if __name__ == "__main__":
    main()
