r"""How a binary chain mixes, nucleates and coarsens in four mean-field models: figures 5.2 to 5.6.

The models of Farmer, Luskin, Plechac and Simpson start from alternating spins, -+0.9998, and are
followed over seven decades of time. The clocks of the free-energy models are set as in the paper,
by mobilities at which they have its feature when the mean-field model has it (see dmd_mobility.py).

- An **event** is a change of the first minimum of the spatial autocorrelation, half the period of
  the pattern. **Phases** are stretches of one sign with abs(s) > 1/2.
- **Nucleation** is complete when abs(s) > 1/2 in the middle quarter of the chain. Without noise the
  alternating pattern of a long chain dies down to rounding errors before another grows from them,
  while phases spread from the ends: then this time is one of the integrator, and the driver shows
  how it depends on a random perturbation of the start, ``--perturb``.
- The **free energy** falls along the free-energy models. It need not along the mean-field ones;
  its largest rise above what it was before is reported.

Writes into --out: results.json, table.md, dmd_coarsening.png (first minimum, strain, A-B bonds,
phases), profiles_beta_N.png, parts/ (a stopped driver goes on).

    mpirun -n 2 .venv/bin/python drivers/dmd_coarsening.py --out results/dmd_coarsening
"""

from __future__ import annotations

import argparse
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.chains import START, effective_mobility, feature_time, interior, phases
from mpiflow.experiments.options import at_least, driver_parser, list_of
from mpiflow.experiments.results import (
    FinishedParts,
    Report,
    Results,
    farm,
    results_directory,
    with_error,
)
from mpiflow.experiments.style import COLOURS, DASHES, figure
from mpiflow.initial.chain import perturbed
from mpiflow.solvers.binary_chain.mean_field import MOBILITIES, MeanFieldChains
from mpiflow.systems.binary_chain import BinaryChain

MODELS = ("mean-field", "point", *MOBILITIES)
#: Profiles are kept from this time on, so many in a decade.
EARLIEST, PROFILES = 1e-2, 20
#: When phases have nucleated at beta = 160, and few have met.
PLATEAU = 1e3
#: Of perturbations, so that no mean spin comes to 1.
LARGEST = 1e-4
#: A model, beta, N, the amplitude of a perturbation, and its number.
Task = tuple[str, float, int, float, int]
Part = dict[str, np.ndarray]
Parts = dict[Any, Part]
#: What chains measure themselves.
SCALARS = ("first_minimum", "strain", "ab_bonds", "free_energy")


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, starts=1)
        for beta, size in product(options.betas, options.sizes):
            # Which looks at them.
            MeanFieldChains(BinaryChain(size, beta=beta), tolerance=options.tolerance)
        if not EARLIEST < options.time < np.inf:
            raise InputError("time", options.time, f"above {EARLIEST}", "Try 1e5.")
        if not all(0 <= amplitude <= LARGEST for amplitude in options.perturb):
            raise InputError("perturb", options.perturb, f"0 to {LARGEST:g}", "Try 0,1e-6,1e-4.")
    out = results_directory(options.out, comm, options.device)
    facts = {"time": options.time, "tolerance": options.tolerance, "seed": options.seed}
    kept = FinishedParts(out / "parts", facts)
    # The long ones first, so that ranks end together.
    where = sorted(product(options.betas, options.sizes), key=lambda one: -one[1])
    times = farm(
        [(model, *one) for one in where for model in ("mean-field", *MOBILITIES)],
        lambda task: {"time": feature_time(BinaryChain(task[2], beta=task[1]), task[0])},
        comm,
        kept,
    )
    clocks: Results[float] = {}
    for model, one in product(MOBILITIES, where):
        reference = float(times["mean-field", *one]["time"])
        clocks[model, *one] = effective_mobility(
            model, float(times[model, *one]["time"]), reference
        )
    starts = [(a, number) for a in options.perturb for number in range(options.starts if a else 1)]
    tasks = [(model, *one, *start) for one in where for start in starts for model in MODELS]
    parts = farm(tasks, lambda task: run(task, clocks, options), comm, kept, "chains")
    if comm.rank == 0:
        write(out, parts, clocks, options)


def run(task: Task, clocks: Results[float], options: argparse.Namespace) -> Part:
    """What is measured after each step, (steps,) each, and profiles at growing distances."""
    model, beta, size, amplitude, number = task
    system = BinaryChain(size, beta=beta)
    start = system.alternating(START)[None]
    if amplitude:
        start = perturbed(start, amplitude, np.array([number]), options.seed)
    chains = MeanFieldChains(
        system, model, mobility=clocks.get((model, beta, size)), tolerance=options.tolerance
    )
    chains.set(start)
    rows: list[dict[str, float]] = []
    profiles: list[np.ndarray] = []
    when: list[float] = []
    while True:
        time = chains.time
        row = {"time": time, "phases": phases(chains.s)[0], "interior": interior(chains.s)[0]}
        rows.append({**row, **{name: getattr(chains, name)()[0] for name in SCALARS}})
        if time >= (max(EARLIEST, when[-1] * 10 ** (1 / PROFILES)) if when else 0):
            when.append(time)
            profiles.append(chains.s[0].astype(np.float32))
        if time >= options.time:
            break
        chains.advance(options.time, most=1)
    part = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {**part, "profile_time": np.array(when), "profiles": np.array(profiles)}


# -- what is left behind -------------------------------------------------------------------


def write(out: Path, parts: Parts, clocks: Results[float], options: argparse.Namespace) -> None:
    found = Report(out)
    cases = list(product(options.betas, options.sizes, MODELS, options.perturb))
    titles = (
        f"A-B bonds / N at t = {PLATEAU:g}",
        *(f"{title} at t = {options.time:g}" for title in ("A-B bonds / N", "phases", "strain")),
    )
    found.table("beta", "N", "model", "mobility", "perturbed by", "nucleation", *titles,
                "largest rise of F")  # fmt: skip
    for beta, size, model, amplitude in cases:
        some = [
            final(parts[model, beta, size, amplitude, number])
            for number in range(options.starts if amplitude else 1)
        ]
        name = f"{model}, beta = {beta:g}, N = {size}, perturb = {amplitude:g}"
        cells = []
        for quantity, form in FINAL.items():
            values = np.array([one[quantity] for one in some])
            found.add(f"{quantity}, {name}", values)
            cells.append(with_error(values, form) if np.isfinite(values).all() else "-")
        clock = clocks.get((model, beta, size))
        mobility = "-" if clock is None else f"{clock:.2f}"
        found.row(f"{beta:g}", f"{size}", model, mobility, f"{amplitude:g}", *cells)
    found.table("beta", "N", "model", "first minimum (since when)")
    for beta, size, model in product(options.betas, options.sizes, MODELS):
        happened = events(first(parts, model, beta, size, options))
        for number, (time, before, after) in enumerate(happened, 1):
            found.add(f"event {number} ({before} to {after}), {model}, beta = {beta:g}, N = {size}",
                      time)  # fmt: skip
        said = ", ".join(f"{after} ({time:.3g})" for time, _, after in happened)
        found.row(f"{beta:g}", f"{size}", model, said)
    found.write()
    draw(out / "dmd_coarsening.png", parts, options)
    for beta, size in product(options.betas, options.sizes):
        chosen = {model: first(parts, model, beta, size, options) for model in MODELS}
        draw_profiles(out / f"profiles_{beta:g}_{size}.png", chosen)


#: What is said of a chain in the end, and how.
FINAL = {"nucleation": ".1f", "A-B bonds / N of phases": ".4f", "A-B bonds / N": ".4f",
         "phases": ".1f", "strain": ".4f", "rise of F": ".1e"}  # fmt: skip


def final(part: Part) -> dict[str, float]:
    """The quantities of :data:`FINAL`; NaN where a run has not come to them."""
    free, bonds = part["free_energy"], part["ab_bonds"] / part["profiles"].shape[1]
    times = part["time"]
    return {
        "nucleation": nucleation(times, part["interior"]),
        "A-B bonds / N of phases": float(np.interp(PLATEAU, times, bonds, right=np.nan)),
        "A-B bonds / N": float(bonds[-1]),
        "phases": float(part["phases"][-1]),
        "strain": float(part["strain"][-1]),
        "rise of F": float((free - np.minimum.accumulate(free)).max()),
    }


def nucleation(times: np.ndarray, inside: np.ndarray) -> float:
    """When there are phases in the middle of the chain, after it had mixed; from step to step."""
    mixed = np.flatnonzero(inside < 0.1)
    if not mixed.size:
        return float("nan")
    later = np.flatnonzero(inside[mixed[0] :] > 0.5) + mixed[0]
    if not later.size:
        return float("nan")
    around = slice(later[0] - 1, later[0] + 1)
    return float(np.interp(np.log(0.5), np.log(inside[around]), times[around]))


def first(parts: Parts, model: str, beta: float, size: int, options: argparse.Namespace) -> Part:
    """The run that is drawn, with the first of the amplitudes."""
    return parts[model, beta, size, options.perturb[0], 0]


def events(part: Part) -> list[tuple[float, int, int]]:
    """Changes of the first minimum: the time of the step that ends it, before, after."""
    times, places = part["time"].tolist(), part["first_minimum"].tolist()
    found = zip(times[1:], pairwise(places), strict=True)
    return [(time, before, after) for time, (before, after) in found if before != after]


def draw(path: Path, parts: Parts, options: argparse.Namespace) -> None:
    """Observables against time, a row for each beta: colours are models, lines are sizes."""
    picture = figure(15, 3.6 * len(options.betas))
    rows = picture.subplots(len(options.betas), 4, squeeze=False)
    names = ("first_minimum", "strain", "ab_bonds", "phases")
    labels = ("first minimum of C(d)", "strain", "A-B bonds / N", "phases / N")
    for row, beta in zip(rows, options.betas, strict=True):
        for number, size in enumerate(options.sizes):
            for colour, model in enumerate(MODELS):
                part = first(parts, model, beta, size, options)
                seen = part["time"] >= EARLIEST
                look = {"color": COLOURS[colour], "ls": DASHES[number % len(DASHES)], "lw": 1}
                for panel, name in zip(row, names, strict=True):
                    values = part[name] / (size if name in ("ab_bonds", "phases") else 1)
                    label = f"{model}, N = {size}"
                    panel.plot(part["time"][seen], values[seen], label=label, **look)
        for panel, label in zip(row, labels, strict=True):
            panel.set(xscale="log", xlabel="t", ylabel=label, title=f"beta = {beta:g}")
        row[0].set_yscale("log")
        row[3].set_yscale("log")
    picture.legend(*rows[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    picture.savefig(path, dpi=130)


def draw_profiles(path: Path, parts: dict[str, Part]) -> None:
    """Mean spins over sites and the logarithm of time, a panel for each model."""
    picture = figure(9, 6.4)
    panels = picture.subplots(2, 2, sharex=True, sharey=True)
    for panel, (model, part) in zip(panels.ravel(), parts.items(), strict=True):
        seen = part["profile_time"] > 0
        s = part["profiles"][seen]
        times, sites = part["profile_time"][seen], np.arange(1, s.shape[1] + 1)
        image = panel.pcolormesh(
            times, sites, s.T, cmap="RdBu_r", vmin=-1, vmax=1, shading="nearest", rasterized=True
        )
        panel.set(xscale="log", title=model)
    for panel in panels[:, 0]:
        panel.set_ylabel("site")
    for panel in panels[-1]:
        panel.set_xlabel("t")
    picture.colorbar(image, ax=panels, label="mean spin", shrink=0.8)
    picture.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/dmd_coarsening")
    add = parser.add_argument
    add("--sizes", type=list_of(int), default=[32, 500, 1000, 2000], help="N, as in 32,500")
    add("--betas", type=list_of(float), default=[80.0, 160.0])
    add("--time", type=float, default=1e5, help="until when")
    amplitudes = "amplitudes of perturbations of the start, for nucleation"
    add("--perturb", type=list_of(float), default=[0.0, 1e-6, 1e-4], help=amplitudes)
    add("--starts", type=int, default=1, help="how many perturbations of each amplitude")
    add("--tolerance", type=float, default=1e-4, help="error of a step")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.smoke:
        options.sizes, options.betas, options.perturb = [16], [160.0], [0.0]
        options.time, options.tolerance = 10.0, 1e-3
    return options


if __name__ == "__main__":
    main()
