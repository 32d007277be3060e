r"""Equilibrium of M at zero field: states, pairs with little noise, and how models are judged.

Appendices D.3 and D.4 of arXiv:2511.12842. Near T_c the drift of the magnetisation of 64^2 spins
is about 1e-4, while one pair over 0.5 knows it to 0.06 only. So a state evolves many times. For
P pairs that share state and time the loss of :mod:`mpiflow.learn.sde` needs their mean and
covariance alone,

.. math:: \frac1P \sum_p r_p^T S^{-1} r_p = \bar r^T S^{-1} \bar r + \mathrm{tr}\, S^{-1} C,

so that 2 d increments :math:`\bar\Delta \pm \sqrt d\, L e_k`, :math:`L L^T = C`, stand for all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from mpi4py import MPI

from mpiflow import initial, metrics, observables, report, scaleup
from mpiflow.block import Block
from mpiflow.errors import InputError
from mpiflow.learn.sde import LearnedSDE
from mpiflow.noise import BIT_RNG, uniforms
from mpiflow.schema import STANDARD
from mpiflow.simulation import Simulation
from mpiflow.solvers.sublattice import Sublattice
from mpiflow.systems.ising import Ising
from mpiflow.trajectory import TrajectoryWriter

#: Members of an ensemble: as many as the bits of a vector.
MEMBERS = 256
#: States that evolve together.
CHUNK = 2048
#: Step of full and partial evolution and of the truth.
DT = 0.25

Kind = Literal["full", "partial"]
Source = Literal["snapshots", "naive", "hierarchical"]


# -- states ----------------------------------------------------------------------------------


def snapshots(
    system: Ising, size: int, states: int, *, burn: float, every: float, seed: int
) -> np.ndarray:
    """Snapshots of ensembles that start at uniform magnetisations, (states, size, size) int8.

    The first are taken after ``burn``, the others ``every`` apart, :data:`MEMBERS` at a time.
    """
    sim = Simulation(system, size, dt=DT, seed=seed, members=MEMBERS, comm=MPI.COMM_SELF)
    start = 2.0 * uniforms(seed, "sample", 0, 0, np.arange(MEMBERS))[:, 0] - 1.0
    sim.set_spins(initial.shuffled, magnetization=start)
    out = np.empty((states, size, size), np.int8)
    for first in range(0, states, MEMBERS):
        sim.advance(every if first else burn)
        out[first : first + MEMBERS] = sim.spins()[: states - first]
    return out


def training_states(
    system: Ising,
    source: Source,
    states: int,
    *,
    large: int = 64,
    small: int = 16,
    burn: float = 1500.0,
    every: float = 50.0,
    relax: float = 8.0,
    seed: int,
) -> np.ndarray:
    """The three kinds of x_t of appendix D.4, (states, large, large) int8.

    Parameters
    ----------
    source : ``snapshots`` of large trajectories; ``naive``, those of small ones with every spin
        made a block; ``hierarchical``, those of small ones doubled and relaxed in windows until
        they are large
    burn, every : time before the first snapshots of an ensemble, and between them
    relax : time of a window; the published one has 256 flips, about 10 units of time
    """
    if source == "snapshots":
        return snapshots(system, large, states, burn=burn, every=every, seed=seed)
    out = snapshots(system, small, states, burn=burn, every=every, seed=seed)
    if source == "naive":
        return scaleup.upsample(out, large // small)
    for level in range(round(np.log2(large / small))):
        out = scaleup.upsample(out)
        scaleup.local_relax(
            out,
            np.arange(states),
            system,
            seed=seed,
            window=small,
            duration=relax,
            dt=0.5,
            level=level,
        )
    return out


# -- pairs -----------------------------------------------------------------------------------


def features(states: np.ndarray, patch: int) -> np.ndarray:
    """y = (M, rho, mean class densities of the patches), (B, L, L) int8 to (B, 12)."""
    sums = observables.spin_sums(Block.periodic(states, np.arange(len(states))))
    counts = observables.class_counts(states, patch)
    densities = counts.mean(axis=1) / (patch - 2) ** 2
    return np.concatenate([observables.intensive(sums, states[0].size), densities], axis=1)


@dataclass(frozen=True)
class Pairs:
    """Increments of N states over one time, of features or of latents, P of each.

    Attributes
    ----------
    z : (N, d) features or latents
    mean : (N, d) mean increment
    covariance : (N, d, d) of the P increments about their mean, over P
    within : (N, d, d) about the means of each patch, without bias; as it is for whole lattices
    duration : their time
    """

    z: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    within: np.ndarray
    duration: float

    def latents(self, map_: np.ndarray) -> Pairs:
        """The pairs of the latents ``map_ @ z``; map_ is (d', d)."""
        turn = map_.T
        return replace(
            self,
            z=self.z @ turn,
            mean=self.mean @ turn,
            covariance=map_ @ self.covariance @ turn,
            within=map_ @ self.within @ turn,
        )

    def increments(self, within: bool = False) -> np.ndarray:
        """(N, 2 d, d) increments with this mean and covariance, see the module."""
        d = self.z.shape[1]
        # Of P <= d pairs the covariance is singular: eigenvectors, not Cholesky.
        values, vectors = np.linalg.eigh(self.within if within else self.covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0) * d)[:, None]
        columns = root.transpose(0, 2, 1)
        return self.mean[:, None] + np.concatenate([columns, -columns], axis=1)


def evolve(
    system: Ising,
    states: np.ndarray,
    *,
    kind: Kind,
    patch: int,
    repeats: int,
    duration: float = 0.5,
    seed: int,
) -> Pairs:
    """Evolve every state ``repeats`` times and keep sums over the increments of its features.

    ``full``: the whole lattice; ``partial``: one uniformly chosen patch of each, equation (3)
    of arXiv:2511.12842, in its true surroundings.
    """
    patches = states[0].size // patch**2 if kind == "partial" else 1
    if repeats < 2 * patches:
        allowed = f"{2 * patches} or more, for the covariance within a patch"
        raise InputError("repeats", repeats, allowed, "Try 32, or 512 of one of 16 patches.")
    parts = []
    for i in range(0, len(states), CHUNK):
        x, members = states[i : i + CHUNK], np.arange(i, min(i + CHUNK, len(states)))
        y, rows = features(x, patch), np.arange(len(x))
        own = observables.class_counts(x, patch)
        number = np.zeros((len(x), patches))
        first = np.zeros((len(x), patches, y.shape[1]))
        second = np.zeros((len(x), y.shape[1], y.shape[1]))
        for repeat in range(repeats):
            keys = repeat * len(states) + members  # neighbours share vectors of lanes
            index = np.zeros(len(x), np.int64)
            if kind == "full":
                block = Block.periodic(x, keys)
                solver = Sublattice(system, DT)
                solver.advance(block, round(duration / DT), seed=seed, stream="partial")
                d = features(block.spins(), patch) - y
            else:
                done = scaleup.partial_evolution(
                    x, keys, system, patch, seed=seed, duration=duration, dt=DT
                )
                index = done.index
                d = _increments(done, own[rows, index], patch)
            number[rows, index] += 1
            first[rows, index] += d
            second += d[:, :, None] * d[:, None]
        parts.append((y, *_moments(number, first, second)))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    z, mean, covariance, within = columns
    return Pairs(z, mean, covariance, within, duration)


def _increments(done: scaleup.Patches, before: np.ndarray, patch: int) -> np.ndarray:
    """Increments of the features of one patch of each state, (B, 12)."""
    inner = np.ascontiguousarray(done.after[:, 1:-1, 1:-1])
    after = observables.class_counts(inner, patch)[:, 0]
    # From sums of spins and of bonds to M and to the density of walls.
    changes = done.changes() / (patch**2 * np.array([1.0, -4.0]))
    return np.concatenate([changes, (after - before) / (patch - 2) ** 2], axis=1)


def _moments(
    number: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, covariance, covariance within patches from sums (B, K), (B, K, d), (B, d, d)."""
    total = number.sum(axis=1)
    mean = first.sum(axis=1) / total[:, None]
    covariance = second / total[:, None, None] - mean[:, :, None] * mean[:, None]
    seen = np.maximum(number, 1)[..., None]
    between = np.einsum("bki,bkj->bij", first / seen, first)
    free = total - np.count_nonzero(number, axis=1)
    return mean, covariance, (second - between) / free[:, None, None]


# -- equilibrium ------------------------------------------------------------------------------


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


# -- what drivers write -----------------------------------------------------------------------


def truth_rows(
    true: np.ndarray, again: np.ndarray, watch: Watch, blank: int = 1
) -> tuple[list[list[str]], list[report.Entry]]:
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
        entries += [
            report.entry(f"{q} of the {name}", found[q], stderr=error.get(q)) for q in QUANTITIES
        ]
    return rows, entries


def model_row(
    name: str, found: Sequence[dict[str, float]], exact: dict[str, float]
) -> tuple[list[str], list[report.Entry]]:
    """Cells of a table and entries for the summaries of several seeds of a model."""
    columns = {q: [each[q] for each in found] for q in QUANTITIES}
    cells = [report.with_error(columns[q], form) for q, form in QUANTITIES.items()]
    entries = [report.entry(f"{q} {name}", columns[q], exact=exact[q]) for q in QUANTITIES]
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
    with TrajectoryWriter(
        path,
        dims={"member": m.shape[1]},
        variables=[STANDARD["magnetization"].over("member")],
        attributes={
            "system": "ising",
            "config_json": json.dumps(config),
            "seed": seed,
            "rng": BIT_RNG,
            "decomposition_invariant": 1,
        },
        comm=MPI.COMM_SELF,
        overwrite=True,
    ) as writer:
        for frame, row in enumerate(m):
            writer.append(watch.burn + watch.every * frame, {"magnetization": row})


def draw(
    path: Path, panels: dict[str, np.ndarray], true: dict[str, np.ndarray], columns: int
) -> None:
    """Histograms of M (frames, trajectories) and mirror images, each beside its truth."""
    rows = -(-len(panels) // columns)
    figure = report.figure(3.0 * columns, 2.5 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axis, (title, m) in zip(axes.flat, panels.items(), strict=False):
        for values, style in ((true[title], {"color": "0.8"}), (m, {"histtype": "step"})):
            both = np.concatenate([values.ravel(), -values.ravel()])
            axis.hist(both[np.isfinite(both)], np.linspace(-1, 1, 61), density=True, **style)
        axis.set_title(title, fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("magnetization", fontsize=8)
    figure.savefig(path, dpi=130)
