r"""Magnetization and bonds of nearest-neighbour spins as fields, learned and used at any size.

The law of mpiflow.learn.onsagerflow.bonds is learned from counts of sites in blocks of 128^2 spins
of lattices of 512^2, at each temperature, with one seed held out: the share of the exact drift of
blocks that it has, of their mean in each frame, and what any function of m alone has at most. Once
from all states, and once from those of the kind of the large lattices only: independent spins that
are left to themselves. What couples blocks is measured in smaller ones: how the exact drift of a
block depends on its neighbours' m, next to other blocks of the same frame. Then the laws make the
fields of large lattices, in blocks as large, from the fields of their first frames, with the noise
of flips: magnetization, walls, S(k) of blocks, covariances of neighbours, and at T = 1.8 the growth
of domains: the density of walls beyond that at rest, times the root of t.

Writes into --out: results.json, table.md, nearest_fields.png, parts/ (a stopped driver goes on).

    mpirun -n 2 .venv/bin/python drivers/nearest_fields.py --out results/nearest_fields
"""

from __future__ import annotations

import argparse
from itertools import pairwise, product
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
    SUM,
    BondLaw,
    count_classes,
    differences,
    exact_drift,
    fields_of,
    learn_bonds,
)

#: Steps of spins and of fields.
STEP, FIELD_STEP = 0.05, 0.1
TEMPERATURES = (5.0, 3.0, 1.8)
#: Degrees of s and of the shares.
DEGREES = {5.0: (6, 4), 3.0: (8, 5), 1.8: (12, 6)}
#: Ends of what is learned from.
ENDS = {5.0: 5.0, 3.0: 8.0, 1.8: 125.0}
#: What laws are learned from.
KINDS = ("all states", "left to themselves")
#: Times between which the coupling of blocks is measured; of blocks this much smaller, and of so
#: many seeds.
WINDOWS, SMALLER, BORDERS = (0.0, 0.05, 1.0, 3.0, 10.0, 30.0, 1000.0), 4, 16
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
Small = dict[tuple[str, int], Parts]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, seeds=2, runs=1, members=1)
    out = results_directory(options.out, comm, options.device)
    about = {k: getattr(options, k) for k in ("small", "block", "seed", "smoke")}
    # Large lattices know nothing of what laws are learned from.
    learning = {**about, "ends": ENDS, "degrees": DEGREES, "windows": WINDOWS, "borders": BORDERS}
    kept = FinishedParts(out / "parts", learning)
    tasks = [(f"small {t:g}", i) for t in TEMPERATURES for i in range(options.seeds)]
    small = farm(tasks, lambda task: counted(task, options), comm, kept, "small lattices")
    borders = farm(
        [f"borders {t:g}" for t in TEMPERATURES], lambda n: border(n, options), comm, kept
    )
    # A small lattice is the same however many there are; a law is not.
    learning["seeds"] = options.seeds
    laws = FinishedParts(out / "parts", learning)
    learned = farm(
        [(f"law {t:g}", kind) for t in TEMPERATURES for kind in KINDS],
        lambda task: learn(task, small, borders, options), comm, laws, "laws",
    )  # fmt: skip
    big = FinishedParts(out / "parts", {**about, "size": options.size})
    lattices = [(name, options.size, i) for name in reversed(CASES) for i in range(options.runs)]
    large = farm(lattices, lambda task: truth(task, options), comm, big, "large lattices")
    of_laws = {**learning, "size": options.size, "members": options.members}
    more = FinishedParts(out / "parts", of_laws)
    ours = farm(
        [(*task, kind) for kind in KINDS for task in lattices],
        lambda task: rollout(task, learned, large, options), comm, more, "their laws",
    )  # fmt: skip
    if comm.rank == 0:
        write(out, small, borders, learned, large, ours, options)


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
    times = frames(ENDS[t], 8 if options.smoke else 20 if t > 2 else 29)
    if options.smoke:
        times = times[times <= 5]
    seed = options.seed + 1000 * (task[1] + 1)
    runs = [
        spins(t, h, m, options.small, times, options.block, seed + i)
        for i, (m, h) in enumerate(starts(t, options.smoke))
    ]
    return {"counts": np.array(runs)}


def truth(task: tuple[str, int, int], options: argparse.Namespace) -> Parts:
    t, h, m, end = CASES[task[0]]
    times = frames(min(end, 2.0) if options.smoke else end, 12)
    seed = options.seed + 100_000 * task[2]
    counts = spins(t, h, m, options.size, times, options.block, seed)
    return {"times": times, "fields": np.array(fields_of(counts))}


def border(name: str, options: argparse.Namespace) -> Parts:
    """The coupling of smaller blocks in each window of times, and its standard error.

    In each frame the exact drift of blocks is fitted with a polynomial in their own m and c, and
    with the sum of differences to their neighbours' m times the mobility: the slope is kappa.
    """
    t, block = float(name.split()[1]), options.block // SMALLER
    times = frames(min(ENDS[t], 2.0) if options.smoke else ENDS[t], 14)
    given = [m for m, h in starts(t) if h == 0 and m < 0.6][: 2 if options.smoke else None]
    seeds = 2 if options.smoke else BORDERS
    counts = np.array([
        [spins(t, 0.0, m, options.small, times, block, options.seed + 50_000 + 100 * i + k)
         for k in range(seeds)] for i, m in enumerate(given)
    ])  # fmt: skip
    m, c = fields_of(counts)
    exact, _ = exact_drift(counts, t, np.zeros(m.shape))
    mobility = (counts / counts.sum(axis=-1, keepdims=True)) @ (1 - np.tanh(SUM / t) ** 2)
    found = []
    for since, until in pairwise(WINDOWS):
        drifts, pulls = [], []
        for frame in np.flatnonzero((times >= since) & (times < until)):
            for run in range(len(given)):
                here = run, slice(None), frame
                x, y = ((f[here] - f[here].mean()).ravel() / f[here].std() for f in (m, c))
                own = np.stack([x**i * y**j for i in range(5) for j in range(5 - i)], axis=1)
                basis, _ = np.linalg.qr(own)
                pull = mobility[here].mean() * differences(m[here]).ravel() / block
                for rest, of in ((drifts, exact[here].ravel()), (pulls, pull)):
                    rest.append(of - basis @ (basis.T @ of))
        if not drifts:
            found.append((np.nan, np.nan))
            continue
        drift, pull = np.concatenate(drifts), np.concatenate(pulls)
        found.append((drift @ pull / (pull @ pull), drift.std() / np.sqrt(pull @ pull)))
    return {"coupling": np.array(found)}


# -- the law -------------------------------------------------------------------------------


def left_alone(temperature: float, smoke: bool) -> np.ndarray:
    """Which starts are in the fields of the large lattices at this temperature."""
    fields = {h for t, h, *_ in CASES.values() if t == temperature}
    return np.array([h in fields for _, h in starts(temperature, smoke)])


def learn(
    task: tuple[str, str], small: Small, borders: dict[str, Parts], options: argparse.Namespace
) -> Parts:
    """A law, with the coupling of smaller blocks."""
    t = float(task[0].split()[1])
    given = np.array([h for _, h in starts(t, options.smoke)])
    chosen = left_alone(t, options.smoke) | (task[1] == KINDS[0])
    counts = np.stack([small[f"small {t:g}", i]["counts"] for i in range(options.seeds - 1)])
    of_s, of_shares = (4, 2) if options.smoke else DEGREES[t]
    sums, fields, pulls = alike(counts[:, chosen], given[chosen], options.block)
    law = learn_bonds(
        sums, t, fields, pulls, entropy_degree=of_s, share_degree=of_shares,
        coupling=mean_coupling(borders[f"borders {t:g}"]["coupling"], t),
    )  # fmt: skip
    return {
        "degrees": np.array([of_s, of_shares]),
        "coefficients": law.coefficients,
        "coupling": np.array(law.coupling),
    }


def mean_coupling(found: np.ndarray, temperature: float) -> float:
    """kappa of the windows, in the mean over the time that large lattices last.

    It falls while bonds form and domains grow, and acts as long as there are blocks to even out.
    """
    end = max(end for t, *_, end in CASES.values() if t == temperature)
    lasts = np.diff(np.minimum(WINDOWS, end))
    known = ~np.isnan(found[:, 0])
    return float(np.average(found[known, 0], weights=lasts[known]))


def law_of(part: Parts) -> BondLaw:
    return BondLaw(*map(int, part["degrees"]), part["coefficients"], float(part["coupling"]))


def alike(
    counts: np.ndarray, h: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts, summed over blocks of one field, frame, bin of m and bin of its neighbours' pull.

    Returns them with the fields and mean pulls; ``counts`` is (seeds, runs, frames, n, n, 10).
    """
    of_m = fields_of(counts)[0]
    towards, sums, fields, pulls = differences(of_m), [], [], []
    for value in np.unique(h):
        for frame in range(counts.shape[2]):
            here = (slice(None), h == value, frame)
            m, pull = of_m[here].ravel(), towards[here].ravel()
            bins = np.stack([np.floor(15 * (m + 1)), np.floor(4 * pull)], axis=1)
            _, one, number = np.unique(bins, axis=0, return_inverse=True, return_counts=True)
            blocks = counts[here].reshape(-1, 10)
            sums.append(np.stack([np.bincount(one.ravel(), of) for of in blocks.T], axis=1))
            fields.append(np.full(len(number), value))
            pulls.append(np.bincount(one.ravel(), pull) / number / block)
    return np.concatenate(sums), np.concatenate(fields), np.concatenate(pulls)


def explained(
    law: BondLaw, counts: np.ndarray, temperature: float, given: np.ndarray, block: int
) -> dict[str, float]:
    """Shares of the exact drift of held-out blocks (runs, frames, n, n, 10), and of frames."""
    found = {}
    fields = fields_of(counts)
    h = np.broadcast_to(given[:, None, None, None], fields[0].shape)
    exact = exact_drift(counts, temperature, h)
    pulled = h + temperature * law.coupling * differences(fields[0]) / block
    ours = law.drift(*fields, temperature, pulled)
    for what, a, b in zip(("m", "c"), exact, ours, strict=True):
        found[f"{what} of blocks"] = share(a, b)
        found[f"{what}, mean"] = share(a.mean(axis=(2, 3)), b.mean(axis=(2, 3)))
    # The best function of m and h alone, fitted to these blocks themselves.
    m, here = fields[0].ravel(), h.ravel()
    terms = np.stack([m**i * (here == v) for i in range(10) for v in np.unique(here)], axis=1)
    best = terms @ np.linalg.lstsq(terms, exact[0].ravel(), rcond=None)[0]
    found["m of blocks, by m alone"] = share(exact[0].ravel(), best)
    return found


def share(exact: np.ndarray, found: np.ndarray) -> float:
    return float(1 - ((exact - found) ** 2).sum() / (exact**2).sum())


def rollout(
    task: tuple[str, int, int, str], learned: dict[tuple[str, str], Parts],
    large: dict[tuple[str, int, int], Parts], options: argparse.Namespace,
) -> Parts:  # fmt: skip
    """Fields (2, frames, members, n, n) from those of the first frame."""
    t, h, *_ = CASES[task[0]]
    law, part = law_of(learned[f"law {t:g}", task[3]]), large[task[:3]]
    rng = np.random.default_rng((options.seed, task[2]))
    m, c = (np.repeat(f[None, 0], options.members, axis=0) for f in part["fields"])
    out, now = [(m, c)], 0.0
    for time in part["times"][1:]:
        steps = int(np.ceil((time - now) / FIELD_STEP - 1e-9))
        for _ in range(steps):
            m, c = law.step(m, c, t, h, dt=(time - now) / steps, sites=options.block**2, rng=rng)
        out.append((m, c))
        now = time
    return {"fields": np.array(out).swapaxes(0, 1)}


# -- what is left --------------------------------------------------------------------------


def write(
    out: Path, small: Small, borders: dict[str, Parts], learned: dict[tuple[str, str], Parts],
    large: dict[tuple[str, int, int], Parts], ours: dict[tuple[str, int, int, str], Parts],
    options: argparse.Namespace,
) -> None:  # fmt: skip
    report = Report(out)
    drifts(small, learned, report, options)
    couplings(borders, learned, report)
    barriers(law_of(learned["law 1.8", KINDS[1]]), report)
    report.table(
        *("large lattice", "law learned from", "m: spins, law at the end", "m, largest error"),
        *("walls, largest relative error", "S(k, t), rings of 1000 waves", "S beyond 3 sigma"),
        "covariance of neighbours over variance: spins, law",
    )
    spun, made = {}, {}
    for name in CASES:
        keys = [(name, options.size, i) for i in range(options.runs)]
        times = large[keys[0]]["times"]
        spun[name] = times, np.stack([large[key]["fields"] for key in keys], axis=2)
        for kind in KINDS:
            made[name, kind] = np.concatenate([ours[*key, kind]["fields"] for key in keys], axis=2)
            compare(name, kind, spun[name][1], made[name, kind], report)
    report.say(
        f"{options.runs} x {options.size}^2 spins in blocks of {options.block}^2; "
        f"{options.members} members of the law from the first frame of each; errors are the "
        "largest over all frames after the first, of m relative to the largest of |m| of a run; "
        "sigma of S(k) is that of so many independent waves."
    )
    quench = "quench to T = 1.8"
    for kind in KINDS:
        growth(*spun[quench], kind, made[quench, kind], report)
    report.write()
    draw(out / "nearest_fields.png", spun, {name: made[name, KINDS[1]] for name in CASES})


def drifts(
    small: Small, learned: dict[tuple[str, str], Parts], report: Report,
    options: argparse.Namespace,
) -> None:  # fmt: skip
    report.table(
        *("T", "learned from", "drift of m of held-out blocks", "of their mean", "by m alone"),
        *("drift of c of blocks", "of their mean"),
    )
    order = ("m of blocks", "m, mean", "m of blocks, by m alone", "c of blocks", "c, mean")
    for t, kind in product(TEMPERATURES, KINDS):
        given = np.array([h for _, h in starts(t, options.smoke)])
        chosen = left_alone(t, options.smoke) | (kind == KINDS[0])
        held = small[f"small {t:g}", options.seeds - 1]["counts"][chosen]
        law = law_of(learned[f"law {t:g}", kind])
        found = explained(law, held, t, given[chosen], options.block)
        report.row(f"{t:g}", kind, *(f"{found[name]:.2%}" for name in order))
        for name in order:
            report.add(f"T={t:g}, {kind}: drift of {name}", found[name], exact=1.0)
    report.say(
        f"Learned from {options.seeds - 1} seeds of {options.small}^2 spins in blocks of "
        f"{options.block}^2; one more is held out."
    )


def couplings(
    borders: dict[str, Parts], learned: dict[tuple[str, str], Parts], report: Report
) -> None:
    spans = (f"t = {a:g} to {b:g}" for a, b in pairwise(WINDOWS[1:-1]))
    report.table(
        *(
            "T",
            "kappa of independent spins",
            "of small blocks: t = 0",
            *spans,
            f"from {WINDOWS[-2]:g} on",
        ),
        "of the laws",
    )
    for t in TEMPERATURES:
        found = borders[f"borders {t:g}"]["coupling"]
        report.row(
            f"{t:g}", f"{of_independent(t):.3f}",
            *("" if np.isnan(k) else f"{k:.3f} ± {error:.3f}" for k, error in found),
            f"{float(learned[f'law {t:g}', KINDS[0]]['coupling']):.3f}",
        )  # fmt: skip
        report.add(
            f"T={t:g}: coupling of independent spins", float(found[0, 0]), exact=of_independent(t)
        )


def of_independent(t: float) -> float:
    """kappa at m = 0: what a spin next to a site does to tanh(S / T), over the mobility.

    One of the four bonds of a site at a border leads into the next block.
    """
    others, spins = np.array([-3, -1, 1, 3]), np.array([-4, -2, 0, 2, 4])
    pull = np.average(np.tanh((others + 1) / t) - np.tanh((others - 1) / t), weights=[1, 3, 3, 1])
    return float(pull / 2 / np.average(1 - np.tanh(spins / t) ** 2, weights=[1, 4, 6, 4, 1]))


def barriers(law: BondLaw, report: Report) -> None:
    """What m = 0 costs a box of the law, and what the two walls across it cost [Onsager 1944]."""
    t = 1.8
    wall = 2 + t * np.log(np.tanh(1 / t))

    def least(m: float) -> tuple[float, float]:
        c = np.linspace(m * m + 1e-3, 0.945, 400)
        of_c = law.free_energy(np.full(c.shape, m), c, t)
        return float(of_c.min()), float(c[of_c.argmin()])

    at_rest = (1 - np.sinh(2 / t) ** -4) ** 0.125
    (top, c), (bottom, _) = least(0.0), least(at_rest)
    report.say(
        f"T = {t:g}, {KINDS[1]}: F / T of a spin at m = 0 is least at walls of {(1 - c) / 2:.3f}, "
        f"{top - bottom:.4f} above that at rest. Of boxes of 8, 12, 16 and 32 spins a side that is "
        + ", ".join(f"{side**2 * (top - bottom):.1f}" for side in (8, 12, 16, 32))
        + "; two walls across them cost "
        + ", ".join(f"{2 * wall * side / t:.1f}" for side in (8, 12, 16, 32))
        + "."
    )
    report.add("T=1.8: barrier of a box of 16^2", 256 * (top - bottom), exact=2 * wall * 16 / t)


def compare(name: str, kind: str, spun: np.ndarray, made: np.ndarray, report: Report) -> None:
    """Fields (2, frames, runs, n, n) of spins and those of a law (2, frames, members, n, n)."""
    (m, c), (of_m, of_c) = (f.mean(axis=(2, 3, 4)) for f in (spun, made))
    off = float((abs(of_m - m) / abs(m).max())[1:].max())
    off_walls = float(abs((1 - of_c) / (1 - c) - 1)[1:].max())
    rings = RINGS[: np.count_nonzero(RINGS < spun.shape[-1] / 2 + 1)]
    (of_spins, waves), (of_law, _) = (metrics.structure_factor(f[0, 1:], rings)
                                      for f in (spun, made))  # fmt: skip
    differ = abs(of_law.mean(axis=1) / of_spins.mean(axis=1) - 1)
    # A wave and its negative are one; each has the variance S^2.
    sigma = np.sqrt(2 / waves * (1 / of_spins.shape[1] + 1 / of_law.shape[1]))
    off_s = float(differ[:, waves >= min(1000, waves.max())].max())
    beyond = float(np.maximum(0, differ - 3 * sigma).max())
    near = [neighbours(f[0, -1]) for f in (spun, made)]
    report.row(
        name, kind, f"{m[-1]:.4f}, {of_m[-1]:.4f}", f"{off:.2%}", f"{off_walls:.2%}",
        f"{off_s:.1%}", f"{beyond:.1%}", f"{near[0]:.2%}, {near[1]:.2%}",
    )  # fmt: skip
    for what, value in (("m", off), ("walls", off_walls), ("S", off_s), ("S beyond", beyond)):
        report.add(f"{name}, {kind}: largest error of {what}", value, exact=0.0)


def neighbours(m: np.ndarray) -> float:
    """Covariance of m of neighbouring blocks over its variance, of (..., n, n)."""
    rest = m - m.mean(axis=(-1, -2), keepdims=True)
    return float(1 + (rest * differences(rest)).mean() / (4 * (rest**2).mean()))


def growth(
    times: np.ndarray, spun: np.ndarray, kind: str, made: np.ndarray, report: Report
) -> None:
    """Walls beyond those at rest fall as t^-1/2: the amplitude and the power, from t = 10 on."""
    late = times >= (10.0 if times[-1] > 10 else times[-1] / 4)
    at_rest = (1 + float(onsager_energy(1.8)) / 2) / 2
    found = []
    for fields in (spun, made):
        walls = (1 - fields[1].mean(axis=(1, 2, 3))) / 2 - at_rest
        power = np.polyfit(np.log(times[late]), np.log(walls[late]), 1)[0]
        found.append((power, float(np.mean(walls[late] * np.sqrt(times[late])))))
    (power, amplitude), (of_law, ours_at) = found
    report.say(
        f"T = 1.8, t >= {times[late][0]:g}, {kind}: walls beyond {at_rest:.4f} fall as "
        f"t^{power:.3f} of spins and t^{of_law:.3f} of the law; times t^1/2 they are "
        f"{amplitude:.4f} and {ours_at:.4f}, {ours_at / amplitude - 1:+.1%}."
    )
    report.add(f"T=1.8, {kind}: power of walls", of_law, exact=float(power))
    report.add(f"T=1.8, {kind}: amplitude of walls", ours_at, exact=amplitude)


def draw(
    path: Path, spun: dict[str, tuple[np.ndarray, np.ndarray]], made: dict[str, np.ndarray]
) -> None:
    page = figure(13.0, 4.2)
    panels = of_m, of_c, of_s = page.subplots(1, 3)

    def curves(fields: np.ndarray) -> tuple[np.ndarray, ...]:
        m, c = fields
        return m.mean(axis=(1, 2, 3)), (1 - c.mean(axis=(1, 2, 3))) / 2, m.var((2, 3)).mean(axis=1)

    for name, (times, spins) in spun.items():
        for spin, law, panel in zip(curves(spins), curves(made[name]), panels, strict=True):
            (line,) = panel.plot(times[1:], spin[1:], "o", ms=4, label=name)
            panel.plot(times[1:], law[1:], color=line.get_color(), lw=1)
    for panel, label in (
        (of_m, "m"),
        (of_c, "density of walls"),
        (of_s, "variance of m of blocks"),
    ):
        panel.set(xlabel="time", ylabel=label, xscale="log")
    of_s.set(yscale="log")
    names = of_m.get_legend_handles_labels()
    page.legend(*names, title="dots: spins, lines: law", loc="outside lower center", ncols=4)
    page.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/nearest_fields")
    add = parser.add_argument
    add("--small", type=int, default=512, help="spins a side of what is learned from")
    add("--block", type=int, default=128, help="spins a side of a block")
    add("--seeds", type=int, default=257, help="runs of each start; the last is held out")
    add("--size", type=int, default=16384, help="spins a side of the large lattices")
    add("--runs", type=int, default=2, help="large lattices of each case")
    add("--members", type=int, default=4, help="realisations of the law of each")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.smoke:
        options.small, options.block, options.seeds, options.size = 64, 32, 2, 256
        options.members = 2
    return options


if __name__ == "__main__":
    main()
