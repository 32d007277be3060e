"""Learned order of NbMoTa, by models trained at several sizes, beside microscopic runs.

Needs the results of drivers/alloy_equilibrium.py (8192 sites, from random and from ordered states)
and of drivers/alloy_learn.py, a folder for each model. Every model is rolled out at the size it was
trained at, from random states, at all temperatures that both know; the last fifth counts. Means
do not depend on the size, but for parts of order 1 / sites; spreads fall with its root. What a
model is off has the errors of the truth and of the pairs it was learned from: these tell where the
drift ends as well as a straight line through the increments of states nearby does. Writes into
--out: results.json, table.md, alloy_sizes.png.

    mpirun -n 1 .venv/bin/python drivers/alloy_sizes.py --out results/alloy_sizes
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.alloy import LARGE, PAIRS
from mpiflow.experiments.figures import temperature_figure
from mpiflow.experiments.options import at_least, driver_parser, list_of
from mpiflow.experiments.pages import RESULTS
from mpiflow.experiments.results import Report, results_directory
from mpiflow.learn.alloy.data import load_pairs
from mpiflow.learn.alloy.model import AlloyModel, PairsData, independent, load_alloy_model

#: Looks at a rollout, and those that count.
LOOKS, LAST = 51, 40
#: States nearby are so many spreads from the mean; groups of them where lattices are not known.
NEAR, GROUPS = 3.0, 32
#: Means and errors (6,) of runs from a start, by temperature.
Truth = dict[float, dict[str, tuple[np.ndarray, np.ndarray]]]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, members=2)
        truth = truth_of(Path(options.equilibrium))
        models = {name: load_alloy_model(Path(name) / "model") for name in options.models}
        pairs = {name: load_pairs(Path(name) / "pairs.npz") for name in options.models}
    out = results_directory(options.out, comm, options.device)
    if comm.rank == 0:  # seconds of work
        write(out, options, models, pairs, truth)


def truth_of(folder: Path) -> Truth:
    """What drivers/alloy_equilibrium.py found."""
    path = folder / RESULTS
    if not path.is_file():
        raise InputError(
            "equilibrium", str(folder), "a folder of drivers/alloy_equilibrium.py", "Run it first."
        )
    rows = {entry["quantity"]: entry for entry in json.loads(path.read_text())}
    found: Truth = {}
    for name in rows:
        kelvin, _, rest = name.partition(" K ")
        pair, _, start = rest.partition(" ")
        if pair == PAIRS[0] and start in ("random", "ordered"):
            of = [rows[f"{kelvin} K {p} {start}"] for p in PAIRS]
            value, error = ([entry[key] for entry in of] for key in ("ours", "stderr"))
            found.setdefault(float(kelvin), {})[start] = np.array(value), np.array(error)
    return found


def error_of_pairs(
    pairs: PairsData, model: AlloyModel, temperature: float, mean: np.ndarray, spread: np.ndarray
) -> np.ndarray:
    """Standard error (6,) of the order at which a straight line says that the drift ends.

    The line is that of least squares through the increments of the states that lie near to a mean
    (6,), by its spread (6,); at least the nearer half of them, for a large lattice fluctuates too
    little to tell the line's slope. nan where there are not enough at this temperature.

    By the jackknife, which leaves out one small lattice after the other: pairs of its states share
    the places where its vacancies were. Where blocks come from several lattices, or these are not
    known, parts of the states are left out, and the error is too small.
    """
    here = np.flatnonzero(pairs.temperature == temperature)
    if len(here) < 8 * GROUPS:
        return np.full(len(mean), np.nan)
    z, middle = pairs.z0, independent(mean)
    away = (abs(z[here] - middle) / independent(spread)).max(axis=1)
    here = np.sort(here[np.argsort(away)[: max(len(here) // 2, (away < NEAR).sum())]])
    group_of = pairs.lattice[here]
    if group_of.min() < 0 or len(np.unique(group_of)) == 1:
        group_of = np.arange(len(here)) % GROUPS
    groups = np.unique(group_of)
    found = []
    for group in groups:
        some = here[group_of != group]
        terms = np.column_stack([np.ones(len(some)), z[some] - middle])
        line = np.linalg.lstsq(terms, pairs.increments[some].sum(axis=1), rcond=None)[0]
        found.append(model.expand(middle - np.linalg.solve(line[1:].T, line[0])))
    return np.asarray(np.sqrt(len(groups) - 1) * np.std(found, axis=0))


def write(
    out: Path, options: argparse.Namespace, models: dict[str, AlloyModel],
    pairs: dict[str, PairsData], truth: Truth,
) -> None:  # fmt: skip
    """Print and write the table, results.json and the figure."""
    report = Report(out)
    titles = ["T [K]", "model", "sites"]
    for pair in LARGE:
        titles += [f"{pair} learned", "from random", "from ordered", "off"]
    report.table(*titles, *(f"{pair} spread n^(1/2)" for pair in LARGE))
    series = {}
    for name, model in models.items():
        low, high = model.temperatures
        grid = [t for t in sorted(truth) if low <= t <= high]
        members = np.repeat(np.array(grid), options.members)
        ends = options.units * model.time_unit(members)
        times = np.linspace(0.0, 1.0, LOOKS)[:, None] * ends
        path, _ = model.rollout(members, None, times, size=model.sites, seed=options.seed)
        path = path.reshape(LOOKS, len(grid), options.members, -1)[LAST:]
        means, spreads = path.mean(axis=(0, 2)), path.std(axis=2).mean(axis=0)
        series[f"learned, {Path(name).name}"] = np.array(grid), means
        for temperature, mean, spread in zip(grid, means, spreads, strict=True):
            of_pairs = error_of_pairs(pairs[name], model, temperature, mean, spread)
            cells = [f"{temperature:g}", Path(name).name, f"{model.sites}"]
            for pair in LARGE:
                i, exact = PAIRS.index(pair), truth[temperature]
                both = [(exact[s][0][i], exact[s][1][i]) for s in ("random", "ordered")]
                middle = np.mean([value for value, _ in both])
                error = math.hypot(*(e for _, e in both)) / 2
                off = 100 * (mean[i] - middle) / abs(middle)
                cells += [f"{mean[i]:.3f}", *(f"{v:.3f} ± {e:.3f}" for v, e in both)]
                known = math.hypot(error, of_pairs[i])
                cells.append(f"{off:+.1f} ± {100 * known / abs(middle):.1f} %")
                quantity = f"{temperature:g} K {pair} {Path(name).name}"
                report.add(quantity, mean[i], known, exact=middle)
            for pair in LARGE:
                value = spread[PAIRS.index(pair)] * math.sqrt(model.sites)
                cells.append(f"{value:.2f}")
                report.add(f"{temperature:g} K {pair} {Path(name).name} spread n^(1/2)", value)
            report.row(*cells)
    report.say(
        f"{options.members} learned trajectories of {options.units:g} mean durations of a pair; "
        "off is against the middle of both starts, with the errors of these and of the pairs."
    )
    report.write()
    series["from random, 8192"] = (
        np.array(sorted(truth)), np.array([truth[t]["random"][0] for t in sorted(truth)]),
    )  # fmt: skip
    temperature_figure(out / "alloy_sizes.png", series, PAIRS)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/alloy_sizes")
    add = parser.add_argument
    add(
        "--equilibrium", default="results/alloy_equilibrium",
        help="results of drivers/alloy_equilibrium.py",
    )  # fmt: skip
    add(
        "--models", type=list_of(str), default=["results/alloy_learn"],
        help="results of drivers/alloy_learn.py, with commas",
    )  # fmt: skip
    add("--members", type=int, default=30, help="learned trajectories at each temperature")
    add("--units", type=float, default=5000.0, help="length of a trajectory, in t_0")
    add("--seed", type=int, default=0, help="of the rollouts")
    options = parser.parse_args()
    if options.smoke:
        options.members, options.units = 4, 20.0
    return options


if __name__ == "__main__":
    main()
