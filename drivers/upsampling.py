"""Hierarchical upsampling to 1024^2 and beyond: are its states those of direct simulations?

Beyond arXiv:2511.12842, whose section IV doubts the scheme for many levels and whose Table 3 has
two: 16^2 states are doubled six times. After each doubling: nothing; the published LocalRelax
(windows of 16^2 at a stride of 8, 256 flips each; closed on themselves at T = 2.5, in frozen
surroundings at 2.27); frozen windows for a time t (ours, mpiflow.scaleup.spins); the whole lattice
for a time t, or by t checkerboard sweeps. Two cases: T = 2.5, h = 0.1, on the way from M = -0.75 to
equilibrium; T = 2.27, h = 0, critical. The truth of every row has the row's own size: direct
trajectories from shuffled spins, or equilibrium states by Wolff's clusters, which have the engine's
law.

All differences are at fixed magnetisation (mpiflow.experiments.upsampling), since relaxation
changes M slowly. "Spreads" are standard deviations of direct states at fixed M and of that size:
below one, a state cannot be told from a direct one by that number alone. They fall as 1 / L. "One
doubling" starts from direct states of half the side: where it is as good as the whole ladder,
levels above have left no error. Ancestors of 16^2 are chosen by M, so that their descendants meet
direct states. Trials of windows count four times t, since each site is in four of them.

Settings chosen after looking at results: the window of M at T = 2.5, above -0.3 where histories
from M = -0.75 and -0.5 agree within 2 %; no relaxation was chosen by its result.
Writes into --out: results.json, table.md, upsampling.png, levels.h5.
In full 4 minutes on two cores.

    mpirun -n 2 .venv/bin/python drivers/upsampling.py --out results/upsampling
"""

from __future__ import annotations

import argparse
import math
import time as clock
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiflow import initial, observables
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.packed import BAND, WORD_SITES, PackedBlock
from mpiflow.experiments import upsampling
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import (
    Entry,
    FinishedParts,
    Report,
    Results,
    entry,
    farm,
    results_directory,
    table,
    trajectory,
)
from mpiflow.experiments.style import figure
from mpiflow.experiments.upsampling import COLUMNS, RADII, WAVELENGTHS, Difference, Relaxation
from mpiflow.files.schema import STANDARD, Variable
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.solvers.spins.cluster import flip_clusters
from mpiflow.systems.ising import Ising

SMALL, DT = 16, 0.25
#: States that reach each side; direct ones at a time, of each group.
REACH = {32: 1536, 64: 768, 128: 192, 256: 48, 512: 12, 1024: 12}
DIRECT = {16: 128, 32: 128, 64: 32, 128: 8, 256: 4, 512: 2, 1024: 1}
#: A deviation counts from so many standard errors on.
SIGMAS = 3.0
#: Ages of direct states and of the ancestors, T = 2.5.
AGES = (24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 112, 128, 160, 192, 256)
YOUNG = (8, 16, 24, 32)
#: Coarse blocks a side in the Trajectory file, which has so many members.
COARSE, SHOWN = 16, 4

#: case, what, scheme or side, group of direct states.
Task = tuple[str, str, str, int]
#: Differences by case, "ladder" or "once", relaxation, side.
Found = dict[tuple[str, str, str, int], Difference]


@dataclass(frozen=True)
class Case:
    """A system, the magnetisations to compare at, the published relaxation.

    ``ancestors`` are the magnetisations of the 16^2 states that go on, ``degree`` that of the
    polynomial in M.
    """

    name: str
    title: str
    system: Ising
    window: tuple[float, float]
    ancestors: tuple[float, float]
    degree: int
    published: Relaxation

    @property
    def critical(self) -> bool:
        return self.system.field == 0


CASES = {
    case.name: case
    for case in (
        Case(
            "quench",
            "T=2.5, h=0.1",
            Ising(2.5, 0.1),
            (-0.3, 1.0),
            (-0.6, 0.3),
            8,
            Relaxation("closed flips"),
        ),
        Case(
            "critical",
            "T=2.27, h=0",
            Ising(2.27),
            (0.0, 1.0),
            (0.0, 0.6),
            4,
            Relaxation("frozen flips"),
        ),
    )
}


def schemes(case: Case, options: argparse.Namespace) -> dict[str, Relaxation]:
    """Relaxations by their names in the tables."""
    timed = [Relaxation("windows", t) for t in options.window_times]
    timed += [Relaxation("lattice", t) for t in options.times]
    timed += [Relaxation("sweeps", t) for t in options.sweeps]
    named = {"none": Relaxation("none"), "published": case.published}
    return named | {how.name.replace(" ", "-"): how for how in timed}


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        check(options)
    out = results_directory(options.out, comm, options.device)
    tasks = plan(options)
    facts = {"driver": "upsampling", **{k: v for k, v in vars(options).items() if k != "out"}}
    results = farm(tasks, worker(options), comm, FinishedParts(out / "parts", facts))
    far = beyond(options, comm)
    if comm.rank == 0:
        write_levels(out / "levels.h5", options)
        finish(out, results, far, options)


def check(options: argparse.Namespace) -> None:
    at_least(options, groups=3, thin=1)
    for name in ("largest", "beyond"):
        side = getattr(options, name)
        if side < 32 or 2 ** round(math.log2(side)) != side:
            raise InputError(name, side, "a power of two, 32 or more", "Leave it out.")
    if options.largest > 1024:
        raise InputError("largest", options.largest, "1024 or less", "Use --beyond for more.")
    for name in ("times", "window_times"):
        for t in getattr(options, name):
            if not t > 0 or t % DT:
                raise InputError(name, t, f"multiples of {DT:g} above 0", "Try 8.")
    for t in options.sweeps:
        if not t >= 1 or t % 1:
            raise InputError("sweeps", t, "whole numbers from 1 on", "Try 64.")
    if options.shown not in options.times:
        raise InputError("shown", options.shown, f"one of {options.times}", "Name one of them.")


def sides(options: argparse.Namespace) -> list[int]:
    return [side for side in REACH if side <= options.largest]


def plan(options: argparse.Namespace) -> list[Task]:
    tasks: list[Task] = []
    for case in CASES.values():
        tasks += [
            (case.name, "direct", str(side), group)
            for side in sides(options)
            for group in range(options.groups)
        ]
        tasks += [(case.name, "ladder", name, 0) for name in schemes(case, options)]
        tasks += [(case.name, "once", str(side), 0) for side in sides(options)[1:]]
    return tasks


def number(options: argparse.Namespace, use: int, which: int, group: int) -> int:
    """A seed for each use of random numbers."""
    return ((options.seed * 8 + use) * 2048 + which) * 1000 + group


def worker(options: argparse.Namespace) -> Callable[[Task], dict[str, Any]]:
    def work(task: Task) -> dict[str, Any]:
        name, what, scheme, group = task
        case = CASES[name]
        if what == "direct":
            side = int(scheme)
            count = max(1, DIRECT[side] // options.thin)
            frames = direct(case, side, count, number(options, 0, side, group))
            values = [upsampling.measure(x, oriented=case.critical) for x in frames]
            return {"values": np.concatenate(values)}
        if what == "once":
            return once(case, int(scheme), options)
        return ladder(case, schemes(case, options)[scheme], options)

    return work


# -- states --------------------------------------------------------------------------------------


def direct(case: Case, side: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Direct states (count, side, side), several times: of trajectories, or of Wolff's chain."""
    if case.critical:
        members, states = np.arange(count), np.ones((count, side, side), np.int8)
        # A cluster has about L^1.75 sites: this many flip every site about four times.
        clusters = math.ceil(4 * side**0.25)
        for sample in range(SAMPLES):
            first = 0 if sample == 0 else (BURN_IN + sample - 1) * clusters
            flips = clusters * (BURN_IN if sample == 0 else 1)
            flip_clusters(states, members, case.system, seed=seed, clusters=flips, first=first)
            yield states.copy()
        return
    sim = Simulation(case.system, side, dt=DT, seed=seed, members=count, comm=MPI.COMM_SELF)
    sim.set_spins(initial.shuffled, magnetization=-0.75)
    shift = seed % 1000 % 8  # groups are seen at other times, so that no M is left out
    for age in AGES:
        sim.advance_to(age + shift)
        yield sim.spins().copy()


#: Samples of a chain, and how many are thrown away before.
SAMPLES, BURN_IN = 12, 12


def ancestors(case: Case, count: int, seed: int) -> np.ndarray:
    """16^2 states whose M lies in the case's range, (count, 16, 16) int8."""
    low, high = case.ancestors
    members = np.arange(max(256, 8 * count))
    if case.critical:
        states = np.ones((len(members), SMALL, SMALL), np.int8)
        flip_clusters(states, members, case.system, seed=seed, clusters=100)
    else:
        sim = Simulation(
            case.system, SMALL, dt=DT, seed=seed, members=len(members), comm=MPI.COMM_SELF
        )
        sim.set_spins(initial.shuffled, magnetization=-0.75)
        states = np.empty((len(members), SMALL, SMALL), np.int8)
        for number, age in enumerate(YOUNG):  # each member at an age of its own
            sim.advance_to(age)
            states[number :: len(YOUNG)] = sim.spins()[number :: len(YOUNG)]
    m = states.mean(axis=(1, 2))
    m = abs(m) if case.critical else m
    good = states[(m >= low) & (m <= high)]
    if len(good) < count:
        raise InputError("seed", seed, "one with enough ancestors", "Use another seed.")
    return good[:count]


def reach(options: argparse.Namespace) -> dict[int, int]:
    return {side: max(2, REACH[side] // options.thin) for side in sides(options)}


def ladder(case: Case, how: Relaxation, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Measurements at each side, and CPU seconds of each level for a site."""
    counts = reach(options)
    # The same ancestors for every relaxation.
    states = ancestors(case, max(counts.values()), number(options, 1, 0, 0))
    members, out, spent = np.arange(len(states)), {}, []
    levels = upsampling.hierarchy(
        states, members, case.system, how, counts, seed=number(options, 2, 0, 0), dt=DT
    )
    start = clock.process_time()
    for side, found in levels:
        spent.append((clock.process_time() - start) / found.size)
        out[str(side)] = upsampling.measure(found, oriented=case.critical)
        start = clock.process_time()
    return out | {"seconds": np.array(spent)}


def few_times(options: argparse.Namespace) -> list[float]:
    """Every second time: those that single doublings are tried with."""
    return list(options.times[::2])


def once(case: Case, side: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Measurements at a side after each time, from direct states of half of it."""
    half, count, out = side // 2, reach(options)[side], {}
    groups = [
        direct(case, half, max(1, DIRECT[half] // options.thin), number(options, 3, side, group))
        for group in range(3)
    ]
    states = np.concatenate([frame for group in groups for frame in group])
    # Spread over trajectories and times alike; nothing depends on M.
    states = states[np.linspace(0, len(states) - 1, min(count, len(states))).astype(int)]
    members, key = np.arange(len(states)), number(options, 4, side, 0)
    for t in few_times(options):
        how, only = Relaxation("lattice", t), {side: len(states)}
        levels = upsampling.hierarchy(states, members, case.system, how, only, seed=key, dt=DT)
        for _, found in levels:
            out[f"{t:g}"] = upsampling.measure(found, oriented=case.critical)
    return out


@dataclass(frozen=True)
class Far:
    """A lattice beyond the direct ones: M, domain-wall density, and CPU ns a site of its level."""

    scheme: str
    side: int
    magnetization: float
    walls: float
    cost: float


def beyond(options: argparse.Namespace, comm: MPI.Intracomm) -> list[Far]:
    """One lattice cut over ranks for each of some relaxations, T = 2.5. Collective."""
    first = min(options.largest, 1024)
    tiles = first // max(BAND, 16)
    if options.beyond <= first or first < WORD_SITES:
        return []
    # Tiles double only if they are equal: the largest power of two of ranks.
    ranks = min(2 ** int(math.log2(comm.size)), tiles)
    part = MPI.Intracomm(comm.Split(0 if comm.rank < ranks else MPI.UNDEFINED))
    rows: list[Far] = []
    if part:
        schemes_here = [Relaxation("lattice", options.shown)]
        schemes_here += [Relaxation("sweeps", t) for t in options.sweeps]
        for how in schemes_here:
            rows += _far(how, first, options, part)
        part.Free()
    return rows


def _far(
    how: Relaxation, first: int, options: argparse.Namespace, part: MPI.Intracomm
) -> list[Far]:
    """The levels of one relaxation."""
    case, seed, rows = CASES["quench"], number(options, 5, 0, 0), []
    counts = {side: 1 for side in sides(options)}
    small, one = ancestors(case, 1, seed), np.arange(1)
    levels = upsampling.hierarchy(small, one, case.system, how, counts, seed=seed, dt=DT)
    *_, (_, states) = levels
    layout = Layout(Lattice((first, first)), (part.size, 1), (BAND, WORD_SITES))
    block = PackedBlock.tile(layout, part)
    rows_here, columns = layout.slices(part.rank)
    block.store(slice(0, block.shape[0]), states[:, rows_here, columns])
    side, step = first, math.inf if how.kind == "sweeps" else DT
    while side < options.beyond:
        side *= 2
        start = clock.process_time()
        block = upsampling.double_tile(block)
        upsampling.relax_block(
            block, case.system, how.duration, seed=seed, level=side // SMALL, dt=step
        )
        spent = part.allreduce(clock.process_time() - start) / side**2
        m, walls = observables.intensive(observables.spin_sums(block), side**2)[0]
        name = how.name.replace(" ", "-")
        rows.append(Far(name, side, float(m), float(walls), 1e9 * spent))
    return rows


# -- tables --------------------------------------------------------------------------------------


def compared(results: Results[dict[str, Any]], options: argparse.Namespace) -> Found:
    """{(case, ladder or once, scheme, side): difference}"""
    out = {}
    for case in CASES.values():
        for side in sides(options):
            truth = truth_of(results, case, side, options)
            found = {
                ("ladder", name): results[case.name, "ladder", name, 0][str(side)]
                for name in schemes(case, options)
            }
            if side > 2 * SMALL:
                single = results[case.name, "once", str(side), 0]
                times = few_times(options)
                found |= {("once", f"lattice-{t:g}"): single[f"{t:g}"] for t in times}
            for (what, name), rows in found.items():
                out[case.name, what, name, side] = upsampling.difference(
                    rows, truth, degree=case.degree, window=case.window
                )
    return out


def truth_of(
    results: Results[dict[str, Any]], case: Case, side: int, options: argparse.Namespace
) -> np.ndarray:
    groups = range(options.groups)
    return np.stack([results[case.name, "direct", str(side), g]["values"] for g in groups])


def value(d: Difference, name: str, unit: str) -> tuple[float, float]:
    """Deviation and its error: of the domain walls or of the worst class.

    In spreads, or in percent of the truth.
    """
    at = COLUMNS[name]
    mean, error, spread = d.mean[at], d.error[at], d.spread[at]
    scale = spread if unit == "spreads" else d.truth[at] / 100.0
    if not np.isfinite(mean).all():
        return math.nan, math.nan
    worst = int(np.argmax(abs(mean / spread)))
    return float(mean[worst] / scale[worst]), float(error[worst] / scale[worst])


def cell(d: Difference, name: str, unit: str) -> str:
    mean, error = value(d, name, unit)
    return "–" if math.isnan(mean) else f"{mean:+.2f} ± {error:.2f}"


def off(d: Difference, name: str) -> np.ndarray:
    """Which numbers deviate by more than SIGMAS standard errors."""
    at = COLUMNS[name]
    with np.errstate(invalid="ignore"):
        return np.asarray(abs(d.mean[at]) > SIGMAS * d.error[at])


def text_of(values: tuple[int, ...], which: np.ndarray) -> str:
    """The smallest and the largest of the values named, and how many they are."""
    named = [v for v, yes in zip(values, which, strict=True) if yes]
    if len(named) < 2:
        return str(named[0]) if named else "none"
    return f"{named[0]} to {named[-1]}"


def finish(
    out: Path,
    results: Results[dict[str, Any]],
    far: list[Far],
    options: argparse.Namespace,
) -> None:
    """Print and write the tables, results.json and the figure."""
    found = compared(results, options)
    last = sides(options)[-1]
    report = Report(out)
    for name, unit, label in (
        ("classes", "spreads", "Rate-class densities of 16^2 patches, the worst class"),
        ("walls", "%", "Domain-wall density"),
    ):
        report.say(f"{label}: ours less truth at the same M, in {unit}, after each level.")
        report.say(by_level(found, name, unit, options))
    report.say(f"All relaxations at {last}^2; r and wavelengths beyond {SIGMAS:g} sigma.")
    report.say(scan(results, found, last, options))
    report.say("Do errors build up? Domain-wall density in %, and worst class in spreads.")
    report.say(build_up(found, options))
    t = f"lattice-{options.shown:g}"
    report.say(f"G(r) at r sites: ours less truth at the same M, {t}.")
    report.say(profiles(found, "correlation", t, options))
    report.say(f"S(k) by longest wavelength of an octave: ours over truth, {t}.")
    report.say(profiles(found, "structure", t, options))
    report.say(
        "Doubling a critical field keeps its wavelengths' power by 2^(1/4) = 1.19 too high a "
        "level (S ~ k^-7/4); only relaxation takes that away."
    )
    report.say(
        "Shortest time t at every level from which on the worst class is within one spread, and "
        "the walls are within 1 %."
    )
    text, more = recommended(found, options)
    report.say(text)
    if far:
        report.say(f"Beyond, one lattice cut over ranks, T=2.5; truth: {last}^2 at its M.")
        text, beyond_entries = far_table(results, far, last, options)
        report.say(text)
        more += beyond_entries
    for (case, what, scheme, side), d in found.items():
        if what == "ladder":
            for name, unit in (("walls", "%"), ("classes", "spreads")):
                mean, error = value(d, name, unit)
                quantity = f"{name} {case} {scheme} {side} [{unit}]"
                report.add(quantity, mean, error, exact=0.0)
    report.entries += more
    report.write()
    draw(out / "upsampling.png", found, options)


def by_level(
    found: Found,
    name: str,
    unit: str,
    options: argparse.Namespace,
) -> str:
    """One row for each case and level, one column for each relaxation."""
    names = list(schemes(CASES["quench"], options))
    rows = []
    for case in CASES.values():
        for side in sides(options):
            truth = "Wolff" if case.critical else "direct"
            cells = [cell(found[case.name, "ladder", n, side], name, unit) for n in names]
            rows.append([case.title, f"{side}^2", f"{truth} {side}^2", *cells])
    return table(["case", "level", "truth", *names], rows)


def scan(
    results: Results[dict[str, Any]],
    found: Found,
    side: int,
    options: argparse.Namespace,
) -> str:
    """Quality and cost of all relaxations at one side."""
    titles = ["case", "relaxation", "trials per site", "CPU ns per site", "M", "compared"]
    titles += ["walls [spreads]", "worst class [spreads]", "patch spread [%]", "r off"]
    rows = []
    for case in CASES.values():
        for name, how in schemes(case, options).items():
            run = results[case.name, "ladder", name, 0]
            d = found[case.name, "ladder", name, side]
            m, spent = run[str(side)][:, 0], run["seconds"][-1] * 1e9
            flips = " flips" if how.kind.endswith("flips") else ""
            rows.append(
                [
                    case.title,
                    name,
                    f"{how.updates(DT):g}{flips}",
                    f"{spent:.0f}",
                    f"{m.mean():+.2f} ± {m.std():.2f}",
                    f"{d.used} of {len(m)}",
                    cell(d, "walls", "spreads"),
                    cell(d, "classes", "spreads"),
                    cell(d, "patch spread", "%"),
                    text_of(RADII, off(d, "correlation")) if d.used > 1 else "–",
                    text_of(WAVELENGTHS, off(d, "structure")) if d.used > 1 else "–",
                ]
            )
    return table([*titles, "wavelengths off"], rows)


def build_up(found: Found, options: argparse.Namespace) -> str:
    """The whole ladder beside one doubling of direct states."""
    kinds = ("ladder", "once")
    labels = {"ladder": "ladder", "once": "one doubling"}
    titles = ["case", "level", "t"]
    titles += [f"{labels[k]}, {q}" for q in ("walls", "class") for k in kinds]
    rows = []
    for case in CASES.values():
        for side in sides(options)[1:]:
            for t in few_times(options):
                pair = [found[case.name, kind, f"lattice-{t:g}", side] for kind in kinds]
                cells = [cell(d, "walls", "%") for d in pair]
                cells += [cell(d, "classes", "spreads") for d in pair]
                rows.append([case.title, f"{side}^2", f"{t:g}", *cells])
    return table(titles, rows)


def profiles(
    found: Found,
    name: str,
    scheme: str,
    options: argparse.Namespace,
) -> str:
    """Differences of G at each level for each distance, ratios of S for each wavelength."""
    ratio = name == "structure"
    values = WAVELENGTHS if ratio else RADII
    rows = []
    for case in CASES.values():
        for side in sides(options):
            d = found[case.name, "ladder", scheme, side]
            at = COLUMNS[name]
            cells = []
            for mean, error, truth in zip(d.mean[at], d.error[at], d.truth[at], strict=True):
                if not np.isfinite(mean) or truth == 0:  # too small a lattice has none
                    cells.append("–")
                elif ratio:
                    cells.append(f"{1 + mean / truth:.3f} ± {error / truth:.3f}")
                else:
                    cells.append(f"{mean:+.4f} ± {error:.4f}")
            rows.append([case.title, f"{side}^2", *cells])
    return table(["case", "level", *map(str, values)], rows)


def recommended(found: Found, options: argparse.Namespace) -> tuple[str, list[Entry]]:
    """For each level the shortest time from which on states are good enough, in two senses."""
    goals = (("classes", "spreads"), ("walls", "%"))
    rows, entries = [], []
    for case in CASES.values():
        for side in sides(options):
            cells = []
            for name, unit in goals:
                good = math.nan
                for t in sorted(options.times, reverse=True):
                    d = found[case.name, "ladder", f"lattice-{t:g}", side]
                    size = abs(value(d, name, unit)[0])
                    if size >= 1.0:
                        break
                    good = good if math.isnan(size) else t
                cells.append("longer than all tried" if math.isnan(good) else f"{good:g}")
                entries.append(entry(f"time to 1 {unit} of {name} {case.name} {side}", good))
            rows.append([case.title, f"{side}^2", *cells])
    return table(["case", "level", "t to 1 spread", "t to 1 % of the walls"], rows), entries


def far_table(
    results: Results[dict[str, Any]],
    far: list[Far],
    last: int,
    options: argparse.Namespace,
) -> tuple[str, list[Entry]]:
    """Domain-wall densities of single lattices; spreads are those of ``last`` by 1 / L."""
    case = CASES["quench"]
    truth = truth_of(results, case, last, options)
    rows, entries = [], []
    for one in far:
        state = np.full((2, upsampling.WIDTH), np.nan)
        state[:, :2] = one.magnetization, one.walls
        d = upsampling.difference(state, truth, degree=case.degree, window=case.window)
        spread = d.spread[1] * last / one.side
        error = math.hypot(d.error[1], spread)
        percent = 100.0 / d.truth[1]
        known = f"{d.truth[1]:.5f} ± {d.error[1]:.5f}"
        off_by = f"{d.mean[1] * percent:+.2f} ± {error * percent:.2f}"
        cells = [f"{one.magnetization:+.4f}", f"{one.walls:.5f}", known, off_by]
        cells += [f"{d.mean[1] / spread:+.1f}", f"{one.cost:.1f}"]
        rows.append([one.scheme, f"{one.side}^2", *cells])
        quantity = f"walls quench beyond {one.scheme} {one.side} [%]"
        entries.append(entry(quantity, d.mean[1] * percent, stderr=error * percent, exact=0.0))
    titles = ["relaxation", "level", "M", "walls", "truth", "off [%]", "off [spreads]"]
    return table([*titles, "CPU ns per site"], rows), entries


def draw(
    path: Path,
    found: Found,
    options: argparse.Namespace,
) -> None:
    """Deviation against time for each level, and against level for each relaxation."""
    empty = figure(11, 7)
    axes = empty.subplots(2, 2)
    for row, case in zip(axes, CASES.values(), strict=True):
        for side in sides(options):
            points = [found[case.name, "ladder", f"lattice-{t:g}", side] for t in options.times]
            values = np.array([value(d, "classes", "spreads") for d in points])
            row[0].errorbar(
                options.times, abs(values[:, 0]), values[:, 1], fmt="o-", ms=3, label=f"{side}^2"
            )
        row[0].set(xscale="log", yscale="log", xlabel="time t at each level")
        for name in schemes(case, options):
            points = [found[case.name, "ladder", name, side] for side in sides(options)]
            values = np.array([value(d, "walls", "%") for d in points])
            row[1].errorbar(sides(options), values[:, 0], values[:, 1], fmt="o-", ms=3, label=name)
        row[1].set(xscale="log", xlabel="side L")
        row[1].set_yscale("symlog", linthresh=1.0)
        row[0].axhline(1.0, color="0.6", lw=0.8)
        row[1].axhline(0.0, color="0.6", lw=0.8)
        row[0].set_ylabel("worst class [spreads]")
        row[1].set_ylabel("domain walls [%]")
        row[0].set_title(f"{case.title}: whole lattice relaxed")
        row[1].set_title("difference from direct states at the same M")
        row[0].legend()
        row[1].legend(ncols=2)
    empty.savefig(path, dpi=130)


def write_levels(path: Path, options: argparse.Namespace) -> None:
    """The levels of a few critical states as frames; time is the time of relaxation so far."""
    case, how = CASES["critical"], Relaxation("lattice", options.shown)
    counts = {side: SHOWN for side in sides(options)}
    states = ancestors(case, SHOWN, number(options, 6, 0, 0))
    config = {"temperature": case.system.temperature, "field": 0.0, "relaxation": how.name}
    centres = (np.arange(COARSE) + 0.5) / COARSE
    variables = [
        Variable("side", (), "int64", long_name="sites a side at this level"),
        STANDARD["magnetization"].over("member"),
        STANDARD["domain_wall_density"].over("member"),
        STANDARD["coarse_magnetization"].over("member", "y", "x"),
    ]
    with trajectory(
        path,
        "upsampled ising",
        config,
        options.seed,
        dims={"member": SHOWN, "y": COARSE, "x": COARSE},
        variables=variables,
        coordinates={"y": centres, "x": centres},
    ) as writer:
        seed = number(options, 6, 1, 0)
        levels = upsampling.hierarchy(
            states, np.arange(SHOWN), case.system, how, counts, seed=seed, dt=DT
        )
        for i, (side, found) in enumerate(levels, start=1):
            blocks = found.reshape(SHOWN, COARSE, side // COARSE, COARSE, side // COARSE)
            seen = upsampling.measure(found)
            writer.append(
                i * how.duration,
                {
                    "side": np.array(side),
                    "magnetization": seen[:, 0],
                    "domain_wall_density": seen[:, 1],
                    "coarse_magnetization": blocks.mean(axis=(2, 4)).astype(np.float32),
                },
            )


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/upsampling")
    add = parser.add_argument
    times, windows = [0.5, 1, 2, 4, 8, 16, 32, 64], [0.5, 2, 8]
    add("--largest", type=int, default=1024, help="sites a side of the last level compared")
    add("--beyond", type=int, default=8192, help="sites a side of one lattice cut over ranks")
    add("--times", type=float, nargs="+", default=times, help="relaxation of whole lattices")
    add("--window-times", type=float, nargs="+", default=windows, help="of frozen windows")
    add("--sweeps", type=float, nargs="+", default=[16, 64, 256], help="checkerboard sweeps")
    add("--shown", type=float, default=16, help="the time of the tables of G(r) and S(k)")
    add("--groups", type=int, default=8, help="independent groups of direct states")
    add("--thin", type=int, default=1, help="divide the numbers of states by this")
    add("--seed", type=int, default=20251112, help="of everything")
    options = parser.parse_args()
    if options.smoke:
        options.largest, options.beyond, options.times, options.window_times = 128, 256, [1, 4], [1]
        options.shown, options.groups, options.thin, options.sweeps = 4, 3, 64, [2]
    return options


if __name__ == "__main__":
    main()
