"""The transition of the Potts model: continuous for three states, with a jump for ten.

Each lattice is looked at from two starts, all sites alike and all sites by chance, at temperatures
around T_c = 1 / ln(1 + sqrt q), by sweeps of the sublattice solver (exact in equilibrium). Of each
run the second part is averaged: energy and order parameter, with errors by their integrated
autocorrelation times and the scatter of members.

- **q = 3**: both starts have one energy. At T_c it goes to the exact -(1 + 1 / sqrt q) of the
  infinite lattice like L^-(2 - 1 / nu), nu = 5 / 6, which two sides are extrapolated with.
- **q = 10**: at T_c each start stays in its phase where L is many correlation lengths (10.56, of
  the disordered one). The two energies are those of the exact latent heat [Baxter, J. Phys. C 6,
  L445 (1973)], and between them the histogram of energies is empty. Farther from T_c the phase
  that is not stable decays, a loop of hysteresis: errors of runs that decay say nothing.

Writes into --out: results.json, table.md, potts_transition.png, parts/ (a stopped driver goes on).
Full cost: 2 minutes on a core.

    mpirun -n 2 .venv/bin/python drivers/potts_transition.py --out results/potts_transition
"""

from __future__ import annotations

import argparse
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mpiflow import initial, metrics
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.options import driver_parser
from mpiflow.experiments.results import FinishedParts, Report, farm, results_directory
from mpiflow.experiments.style import figure
from mpiflow.simulation.rules.simulation import RuleSimulation
from mpiflow.systems.potts import Potts, critical_energy, critical_temperature, latent_heat

#: Side, members and sweeps by number of states; energies of each sweep are kept.
SIZES = {3: (32, 8, 30000), 10: (128, 2, 4000)}
#: 2 - 1 / nu, where the transition is continuous: the energy at T_c is looked at with two sides.
POWERS = {3: 0.8}
#: Part of the sweeps that is left out.
BURN = 0.3
#: T / T_c.
NEAR = (0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03)
STARTS = ("ordered", "disordered")
#: A start, the number of states, T / T_c, by how much the side is smaller.
Task = tuple[str, int, float, int]
Parts = dict[Any, dict[str, np.ndarray]]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        if not set(options.states) <= set(SIZES):
            raise InputError("states", options.states, f"some of {[*SIZES]}", "Leave it out.")
        if not 1 <= options.less <= 100:
            raise InputError("less", options.less, "1 to 100", "Leave it out.")
    out = results_directory(options.out, comm, options.device)
    kept = FinishedParts(out / "parts", {"seed": options.seed, "less": options.less, "of": SIZES})
    tasks = list(product(STARTS, options.states, NEAR, [1]))
    tasks += product(STARTS, [q for q in options.states if q in POWERS], [1.0], [2])
    parts = farm(tasks, lambda task: run(task, options), comm, kept, "sweeps of all temperatures")
    if comm.rank == 0:
        write(out, parts, options)


def run(task: Task, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Energy and order parameter of each sweep after the first ones, (sweeps, members) each."""
    start, states, near, smaller = task
    _, members, sweeps = SIZES[states]
    sweeps //= options.less
    sim = RuleSimulation(
        Potts(near * critical_temperature(states), states),
        side_of(states, options) // smaller,
        dt=math.inf,
        seed=options.seed + STARTS.index(start),  # so that the starts are independent
        members=2 if options.smoke else members,
        comm=MPI.COMM_SELF,
    )
    if start == "ordered":
        sim.set_states(initial.rule.uniform, value=0)
    else:
        sim.set_states(initial.rule.independent)
    burn = round(BURN * sweeps)
    sim.advance(burn)
    rows = [(f.energy, f.magnetization) for f in sim.frames(time=sweeps - burn, every=1)]
    return {"energy": np.array([r[0] for r in rows]), "order": np.array([r[1] for r in rows])}


def mean_of(series: np.ndarray) -> tuple[float, float]:
    """Mean over sweeps and members (sweeps, members), and its error.

    It is that of correlated sweeps or that of independent members, whichever is larger: the first
    is too small where a run is not many times as long as its correlations, the second is itself
    uncertain of a few members.
    """
    each = [metrics.correlated_error(column) for column in series.T]
    within = math.sqrt(sum(error**2 for error in each)) / len(each)
    between = metrics.standard_error(series.mean(axis=0)) if series.shape[1] > 1 else 0.0
    return float(series.mean()), max(within, between)


# -- what is left behind -------------------------------------------------------------------


def write(out: Path, parts: Parts, options: argparse.Namespace) -> None:
    found = Report(out)
    for states in options.states:
        size = side_of(states, options)
        found.say(f"q = {states}, L = {size}, T_c = {critical_temperature(states):.6f}\n")
        found.table("T / T_c", *(f"{what}, {s}" for what in ("energy", "order") for s in STARTS))
        for near in NEAR:
            cells = []
            for what, start in product(("energy", "order"), STARTS):
                value, error = mean_of(parts[start, states, near, 1][what])
                cells.append(f"{value:.4f} ± {error:.4f}")
                name = f"{what} q={states} T/T_c={near:g} {start}"
                found.add(name, value, error, exact=exact(what, states, near, start))
            found.row(f"{near:g}", *cells)
    for states in options.states:
        jump(found, states, parts)
        if states in POWERS:
            extrapolate(found, states, parts)
    found.write()
    draw(out / "potts_transition.png", parts, options)


def side_of(states: int, options: argparse.Namespace) -> int:
    return 16 if options.smoke else SIZES[states][0]


def exact(what: str, states: int, near: float, start: str) -> float | None:
    """The energy of the infinite lattice in one of two phases, at T_c."""
    if what != "energy" or near != 1.0 or states <= 4:
        return None
    side = -0.5 if start == "ordered" else 0.5
    return critical_energy(states) + side * latent_heat(states)


def extrapolate(found: Report, states: int, parts: Parts) -> None:
    """The energy at T_c of the infinite lattice, from two sides and both starts of each."""
    share = 2.0 ** -POWERS[states]
    means = []
    for smaller in (1, 2):
        both = [mean_of(parts[start, states, 1.0, smaller]["energy"]) for start in STARTS]
        means.append((both[0][0] + both[1][0], math.hypot(both[0][1], both[1][1])))
    (large, a), (small, b) = ((value / 2, error / 2) for value, error in means)
    value, error = ((large - share * small) / (1 - share), math.hypot(a, share * b) / (1 - share))
    exactly = critical_energy(states)
    found.add(f"energy q={states} at T_c, infinite lattice", value, error, exact=exactly)
    found.say(
        f"q = {states} at T_c: energy {small:.4f} ± {b:.4f} of half the side, "
        f"{large:.4f} ± {a:.4f} of the side, {value:.4f} ± {error:.4f} of the infinite lattice; "
        f"exact {exactly:.4f}."
    )


def jump(found: Report, states: int, parts: Parts) -> None:
    """The energies of the two starts at T_c, and how many sweeps lie between them."""
    cold, hot = (parts[start, states, 1.0, 1]["energy"] for start in STARTS)
    (low, a), (high, b) = mean_of(cold), mean_of(hot)
    error = math.hypot(a, b)
    found.add(f"jump q={states}", high - low, error, exact=latent_heat(states))
    middle = (low + high) / 2
    both = np.concatenate([cold.ravel(), hot.ravel()])
    width = max(latent_heat(states), 4 * both.std()) / 8
    between = float((abs(both - middle) < width).mean())
    found.add(f"between q={states}", between)
    found.say(
        f"q = {states} at T_c: the starts differ by {high - low:.4f} ± {error:.4f}, exact latent "
        f"heat {latent_heat(states):.4f}; {100 * between:.1f} % of all sweeps are within "
        f"{width:.3f} of the middle, {middle:.4f}."
    )


def draw(path: Path, parts: Parts, options: argparse.Namespace) -> None:
    """Energy and order against T, and the energies at T_c, in a row for each number of states."""
    picture = figure(13, 3.4 * len(options.states))
    axes = picture.subplots(len(options.states), 3, squeeze=False)
    for row, states in zip(axes, options.states, strict=True):
        for start, mark in zip(STARTS, "os", strict=True):
            for panel, what in zip(row, ("energy", "order"), strict=False):
                means = [mean_of(parts[start, states, near, 1][what]) for near in NEAR]
                values, errors = np.transpose(means)
                panel.errorbar(NEAR, values, errors, fmt=f"{mark}-", ms=4, lw=1, label=start)
            energies = parts[start, states, 1.0, 1]["energy"].ravel()
            row[2].hist(energies, bins=40, density=True, alpha=0.6, label=start)
        half = latent_heat(states) / 2
        for side in {-half, half}:
            row[0].axhline(critical_energy(states) + side, color="0.5", lw=0.8, ls=":")
            row[2].axvline(critical_energy(states) + side, color="0.5", lw=0.8, ls=":")
        row[0].set(xlabel="T / T_c", ylabel="energy", title=f"q = {states}")
        row[1].set(xlabel="T / T_c", ylabel="order parameter")
        row[2].set(xlabel="energy at T_c", ylabel="density")
        row[0].legend()
    picture.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/potts_transition")
    add = parser.add_argument
    add("--states", type=int, nargs="+", default=[*SIZES], help="numbers of states")
    add("--less", type=int, default=1, help="so many times fewer sweeps")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.smoke:
        options.less = 100
    options.states = sorted(set(options.states))
    return options


if __name__ == "__main__":
    main()
