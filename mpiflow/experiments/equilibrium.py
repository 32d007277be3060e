"""Equilibrium of the macroscopic observable: the truth, predictions, and how far they are apart."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mpiflow import metrics
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.noise import BIT_RNG
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import (
    Entry,
    FinishedParts,
    entry,
    results_directory,
    trajectory,
    with_error,
)
from mpiflow.experiments.style import figure
from mpiflow.files.schema import STANDARD
from mpiflow.learn.closure.equilibrium import DT, MEMBERS
from mpiflow.learn.sde import LearnedSDE
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.systems.ising import Ising


@dataclass(frozen=True)
class Watch:
    """When M is looked at.

    Parameters
    ----------
    burn : time from the start until the first frame
    every : time between frames
    frames : number of frames
    """

    burn: float
    every: float
    frames: int

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise InputError("frames", self.frames, "2 or more", "Try 100.")
        if not (self.burn >= 0 and self.every > 0):
            raise InputError("burn, every", (self.burn, self.every), "0 or more", "Try 1000, 20.")


def parse(doc: str | None, out: str, repeats: str, frames: int) -> argparse.Namespace:
    """The options of drivers that learn equilibrium, and what ``--smoke`` makes of them.

    Parameters
    ----------
    doc, out : as of :func:`mpiflow.experiments.options.driver_parser`
    repeats : what the option of this name is
    frames : of a learned trajectory
    """
    parser = driver_parser(doc, out)
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="data sets and trainings, 2 or more")
    add("--states", type=int, default=20_480, help="states in each training set")
    add("--repeats", type=int, default=16, help=repeats)
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    options.burn, options.every = 1500.0, 50.0
    options.watch = Watch(burn=4000.0, every=20.0, frames=801)
    options.predicted = Watch(burn=1000.0, every=20.0, frames=frames)
    options.epochs = 20
    if options.smoke:
        options.seeds, options.states, options.repeats, options.epochs = 2, 256, 2, 2
        options.burn, options.every = 2.0, 1.0
        options.watch = options.predicted = Watch(burn=2.0, every=1.0, frames=4)
    return options


def begin(options: argparse.Namespace) -> tuple[MPI.Intracomm, Path, FinishedParts]:
    """Check the options: the ranks, the folder of results, the parts that are done. Collective."""
    comm = parallel.start()
    with parallel.agreed(comm):
        if options.seeds < 2:
            raise InputError("seeds", options.seeds, "2 or more, for error bars", "Leave it out.")
        at_least(options, states=256)
    out = results_directory(options.out, comm, options.device)
    facts = {k: v for k, v in vars(options).items() if k not in ("out", "seeds")}
    return comm, out, FinishedParts(out / "parts", facts)


def truth(
    system: Ising, size: int, watch: Watch, *, members: int = MEMBERS, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """M of direct simulations (frames, members), and their last states (members, size, size).

    One half starts with all spins up, the other with all down. So no slow reversal is needed
    for the equilibrium of the ensemble: only either half has to come to rest.
    """
    sim = Simulation(system, size, dt=DT, seed=seed, members=members, comm=MPI.COMM_SELF)
    sign = np.where(np.arange(members) % 2 == 0, 1, -1).astype(np.int8)
    sim.block.store(slice(0, size), np.broadcast_to(sign[:, None, None], (members, size, size)))
    sim.block.fill_halo()
    m = np.empty((watch.frames, members))
    for frame in range(watch.frames):
        sim.advance(watch.every if frame else watch.burn)
        m[frame] = sim.measure().magnetization
    return m, sim.spins().copy()


@dataclass(frozen=True)
class Prediction:
    """Trajectories of a model.

    Attributes
    ----------
    m : (frames, trajectories) magnetisation
    held : share of steps that had to be held inside the training range
    edge : share of trajectories that were seen at its edge
    lost : share that without being held is not finite or has M outside [-1, 1] in the end
    """

    m: np.ndarray
    held: float
    edge: float
    lost: float


def predict(
    sde: LearnedSDE,
    z0: np.ndarray,
    watch: Watch,
    *,
    dt: float,
    seed: int,
    noise: float = 1.0,
    free: float = 0.0,
) -> Prediction:
    """Trajectories from latents (B, d); ``free`` is the time of a second run that is not held."""
    members = np.arange(len(z0))
    save = np.rint((watch.burn + watch.every * np.arange(watch.frames)) / dt).astype(int)
    last = int(save[-1])
    path, held = sde.rollout(z0, members, dt=dt, steps=last, save=save, seed=seed, noise=noise)
    low, high = sde.low.numpy().copy(), sde.high.numpy().copy()
    edge = ((path <= low) | (path >= high)).any(axis=(0, 2))
    lost = float("nan")
    if free > 0:
        sde.low.fill_(-torch.inf)
        sde.high.fill_(torch.inf)
        steps = max(1, round(free / dt))
        end, _ = sde.rollout(
            z0, members, dt=dt, steps=steps, save=np.array([steps]), seed=seed, noise=noise
        )
        sde.low.copy_(torch.as_tensor(low))
        sde.high.copy_(torch.as_tensor(high))
        inside = np.isfinite(end[0]).all(axis=1) & (abs(end[0][:, 0]) <= 1.0)
        lost = float(1.0 - inside.mean())
    share = held / (len(z0) * last)
    return Prediction(path[..., 0], share, float(edge.mean()), lost)


def reversals(m: np.ndarray, threshold: float) -> np.ndarray:
    """How often each trajectory went from M > threshold to M < -threshold or back.

    Parameters
    ----------
    m : (frames, trajectories)

    Returns
    -------
    (trajectories,) int64; what is between the thresholds keeps its last sign
    """
    sign = np.where(m > threshold, 1, np.where(m < -threshold, -1, 0))
    last = np.where(sign != 0, np.arange(len(m))[:, None], 0)
    kept = np.take_along_axis(sign, np.maximum.accumulate(last, axis=0), axis=0)
    return np.count_nonzero(kept[1:] * kept[:-1] < 0, axis=0)


def kolmogorov(x: np.ndarray, y: np.ndarray) -> float:
    """Largest distance of the distributions of M of two ensembles, mirror images included."""
    a, b = (np.sort(np.concatenate([v.ravel(), -v.ravel()])) for v in (x, y))
    both = np.concatenate([a, b])
    ranks = (np.searchsorted(v, both, side="right") / v.size for v in (a, b))
    first, second = ranks
    return float(abs(first - second).max())


def discrepancy(x: np.ndarray, y: np.ndarray, points: int = 512) -> float:
    """Squared MMD of the same distributions by their quantiles, M in standard deviations of y."""
    at = (np.arange(points) + 0.5) / points
    scale = float(np.sqrt((y**2).mean()))
    a, b = (np.quantile(np.concatenate([v.ravel(), -v.ravel()]), at) / scale for v in (x, y))
    return metrics.squared_mmd(a, b, biased=True)


#: What :func:`summary` gives, and its form in tables.
QUANTITIES = {
    "KS": ".3f",
    "MMD^2": ".5f",
    "mean abs M": ".4f",
    "mean M^2": ".4f",
    "reversals per 1e5": ".2f",
}


def summary(m: np.ndarray, watch: Watch, true: np.ndarray) -> dict[str, float]:
    """The quantities of an ensemble m (frames, trajectories) beside the true one.

    Reversals have thresholds at half of the true mean of |M|.
    """
    # A network that is beside itself may give nan: that is no distribution.
    if not np.isfinite(m).all():
        return dict.fromkeys(QUANTITIES, float("nan"))
    duration = watch.every * (watch.frames - 1)
    happened = reversals(m, 0.5 * float(abs(true).mean())).mean()
    values = (
        kolmogorov(m, true),
        discrepancy(m, true),
        abs(m).mean(),
        (m**2).mean(),
        1e5 * happened / duration,
    )
    return dict(zip(QUANTITIES, map(float, values), strict=True))


def sampling_errors(m: np.ndarray, watch: Watch, true_mean: float) -> dict[str, float]:
    """Standard errors of the averages of :func:`summary`, over independent trajectories."""
    happened = reversals(m, 0.5 * true_mean) / (watch.every * (watch.frames - 1))
    each = abs(m).mean(axis=0), (m**2).mean(axis=0), 1e5 * happened
    return dict(zip(list(QUANTITIES)[2:], map(metrics.standard_error, each), strict=True))


def truth_rows(
    true: np.ndarray, again: np.ndarray, watch: Watch, blank: int = 1
) -> tuple[list[list[str]], list[Entry]]:
    """Rows of a table for the truth and for an independent one of the same size, and entries."""
    rows, entries = [], []
    mean = float(abs(true).mean())
    for name, m in (("truth", true), ("second truth", again)):
        found, error = summary(m, watch, true), sampling_errors(m, watch, mean)
        cells = [
            f"{found[q]:{form}}" + (f" ± {error[q]:{form}}" if q in error else "")
            for q, form in QUANTITIES.items()
        ]
        rows.append([name, *[""] * (blank - 1), *cells])
        entries += [entry(f"{q} of the {name}", found[q], stderr=error.get(q)) for q in QUANTITIES]
    return rows, entries


def model_row(
    name: str, found: Sequence[dict[str, float]], exact: dict[str, float]
) -> tuple[list[str], list[Entry]]:
    """Cells of a table and entries for the summaries of several seeds of a model."""
    columns = {q: [each[q] for each in found] for q in QUANTITIES}
    cells = [with_error(columns[q], form) for q, form in QUANTITIES.items()]
    entries = [entry(f"{q} {name}", columns[q], exact=exact[q]) for q in QUANTITIES]
    return cells, entries


def note(watch: Watch, predicted: Watch, true: np.ndarray) -> str:
    """What the numbers of the table are."""
    return (
        f"KS and MMD^2 of M and its mirror image against the truth: {true.shape[1]} lattices over "
        f"{watch.every * (watch.frames - 1):g} units of time after {watch.burn:g}, models over "
        f"{predicted.every * (predicted.frames - 1):g} after {predicted.burn:g}. Reversals: from "
        f"M > {0.5 * abs(true).mean():.3f} to below the negative, of a trajectory, per 1e5 units "
        f"of time, seen every {watch.every:g}. Errors of the truth over trajectories, of models "
        "over seeds of data and training.\n"
    )


def write_truth(
    path: Path, system: Ising, size: int, watch: Watch, m: np.ndarray, seed: int
) -> None:
    """Write M (frames, members) of direct simulations as a Trajectory file; on one rank."""
    config = {"size": size, "temperature": system.temperature, "field": system.field, "dt": DT}
    with trajectory(
        path,
        "ising",
        config,
        seed,
        rng=BIT_RNG,
        dims={"member": m.shape[1]},
        variables=[STANDARD["magnetization"].over("member")],
    ) as writer:
        for frame, row in enumerate(m):
            writer.append(watch.burn + watch.every * frame, {"magnetization": row})


def draw(
    path: Path, panels: dict[str, np.ndarray], true: dict[str, np.ndarray], columns: int
) -> None:
    """Histograms of M (frames, trajectories) and mirror images, each beside its truth."""
    rows = -(-len(panels) // columns)
    page = figure(3.0 * columns, 2.5 * rows)
    axes = page.subplots(rows, columns, squeeze=False, sharex=True)
    for axis, (title, m) in zip(axes.flat, panels.items(), strict=False):
        for values, style in ((true[title], {"color": "0.8"}), (m, {"histtype": "step"})):
            both = np.concatenate([values.ravel(), -values.ravel()])
            axis.hist(both[np.isfinite(both)], np.linspace(-1, 1, 61), density=True, **style)
        axis.set_title(title, fontsize=8)  # of three lines and more
        axis.set_ylabel("density")
    for axis in axes[-1]:
        axis.set_xlabel("magnetization")
    page.savefig(path, dpi=130)
