r"""The macroscopic dynamics of a Curie-Weiss model, learned from small systems.

Appendix D.1 of arXiv:2511.12842: z = M alone, without closures. The spins of the mean-field model
are imagined on a square lattice; snapshots of small systems are doubled and relaxed in
overlapping windows; then a patch of the small system's size evolves in the mean field of the whole.
Its spins flip at the true rates as long as the rest has not moved, so K times its increment has
the right mean, and 1 / K of the increment's variance, up to the first order in the duration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.learn.closure.dataset import PatchPlan, generate, shuffled_states, start_states
from mpiflow.learn.closure.model import Method, fit_sde
from mpiflow.learn.models import read_model, write_model
from mpiflow.learn.pair_goodness import judge
from mpiflow.learn.sde import LearnedSDE, MacroscopicSDE
from mpiflow.learn.training import Schedule, TrainingLog
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.mean_field import MeanField, relax_windows
from mpiflow.systems.curie_weiss import CurieWeiss

#: What model.json calls a model of this module.
KIND = "curie-weiss"


@dataclass(frozen=True)
class MeanFieldPlan(PatchPlan):
    """How the training set is made.

    Parameters
    ----------
    large, patch, states, repeats : see :class:`PatchPlan`
    duration : time of a partial evolution
    flips : length of a partial evolution in flips instead; the published code uses patch^2
    small_time : small systems are observed at times up to this one
    random_fraction : share of states that are random large ones
    relax : duration of the windows of LocalRelax
    """

    duration: float = 0.25
    flips: int | None = None
    small_time: float = 20.0
    random_fraction: float = 0.5
    relax: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.duration > 0 or (self.flips is not None and self.flips < 1):
            raise InputError("duration", self.duration, "above 0, flips 1 or more", "Try 0.25.")


@dataclass(frozen=True)
class MeanFieldPairs:
    """The training set, on one rank. N states, P repeats.

    Attributes
    ----------
    plan : how it was made
    up : (N,) how many spins of the large states are up
    before, after : (N, P) how many of the patch were and are up
    elapsed : (N, P) time
    """

    plan: MeanFieldPlan
    up: np.ndarray
    before: np.ndarray
    after: np.ndarray
    elapsed: np.ndarray

    def increments(self, method: Method) -> np.ndarray:
        """Increments of M, (N, P): equation (3) of the paper, and the naive baseline."""
        small, large = self.plan.patch**2, self.plan.large**2
        if method == "naive":
            return 2.0 * self.after / small - 2.0 * self.up[:, None] / large
        return np.asarray(2.0 * (self.after - self.before) / small)


def training_states(
    system: CurieWeiss, plan: MeanFieldPlan, members: np.ndarray, seed: int
) -> np.ndarray:
    """Large states of the given members of the data set, (B, large, large) int8.

    Small systems start at a uniform magnetisation and are seen at time ``age^2 small_time``, more
    of them early. Their spins are exchangeable, so a snapshot is its exact number of spins up,
    shuffled.
    """
    return start_states(
        plan, plan.random_fraction, members, seed, partial(_grown, system, plan, seed)
    )[0]


def _grown(
    system: CurieWeiss,
    plan: MeanFieldPlan,
    seed: int,
    members: np.ndarray,
    magnetization: np.ndarray,
    age: np.ndarray,
) -> np.ndarray:
    """Snapshots of small systems, doubled and relaxed until they are large."""
    sites = plan.patch**2
    up = np.rint(0.5 * (1.0 + magnetization) * sites).astype(np.int64)
    small = MeanField(system, sites, up, members)
    small.advance(seed=seed, until=age**2 * plan.small_time)
    states = shuffled_states(plan.patch, members, small.magnetization, seed)
    for level in range(plan.doublings):
        states = scaleup.upsample(states)
        corners = scaleup.window_origins(states.shape[1:], plan.patch, plan.patch // 2)
        relax_windows(
            states,
            members,
            system,
            np.array(list(corners)),
            seed=seed,
            window=plan.patch,
            duration=plan.relax,
            level=level,
        )
    return states


def generate_pairs(
    system: CurieWeiss,
    plan: MeanFieldPlan,
    *,
    seed: int,
    comm: MPI.Intracomm | None = None,
    chunk: int = 2048,
) -> MeanFieldPairs | None:
    """Make the training set; returned on rank 0, None on the others. Collective.

    It does not depend on the ranks.
    """
    names = ("before", "after", "elapsed")
    counts = [(n, np.float64 if n == "elapsed" else np.int32, (plan.repeats,)) for n in names]
    kind = np.dtype([("up", np.int32), *counts])

    def measured(members: np.ndarray) -> np.ndarray:
        states = training_states(system, plan, members, seed)
        some = np.zeros(len(members), kind)
        some["up"] = np.count_nonzero(states > 0, axis=(1, 2))
        side = plan.large // plan.patch
        blocks = states.reshape(-1, side, plan.patch, side, plan.patch) > 0
        counts = blocks.sum(axis=(2, 4)).reshape(len(states), -1)
        for repeat in range(plan.repeats):
            keys = members * plan.repeats + repeat
            index = scaleup.choose_patch(keys, plan.patches, seed)
            part = np.take_along_axis(counts, index[:, None], axis=1)[:, 0]
            group = MeanField(
                system, plan.large**2, some["up"], keys, group=plan.patch**2, group_up=part
            )
            until = plan.duration if plan.flips is None else np.inf
            group.advance(seed=seed, until=until, flips=plan.flips, stream="mean-field-partial")
            some["before"][:, repeat] = part
            some["after"][:, repeat] = group.group_up
            some["elapsed"][:, repeat] = plan.duration if plan.flips is None else group.clock
        return some

    fields = generate(plan.states, kind, measured, comm, chunk)
    return None if fields is None else MeanFieldPairs(plan, **fields)


def train_magnetization(
    pairs: MeanFieldPairs,
    *,
    method: Method = "partial",
    seed: int = 0,
    schedule: Schedule | None = None,
) -> tuple[MacroscopicSDE, TrainingLog]:
    """Train the SDE of M; lambda is K for ``partial`` and 1 for ``naive``."""
    z, increments = _latents(pairs, method)
    factor = float(pairs.plan.patches) if method == "partial" else 1.0
    data = z, increments, pairs.elapsed
    return fit_sde(data, factor, width=32, seed=seed, schedule=schedule)


@dataclass
class MagnetizationModel:
    """Macroscopic dynamics of a Curie-Weiss model, z = M.

    Attributes
    ----------
    sde : the trained networks
    plan : how the training data were made
    dt : time step of predictions
    card : where the model comes from: system, seed, method, lambda, losses; and how well it fits
        (:mod:`mpiflow.learn.pair_goodness`)
    """

    sde: MacroscopicSDE
    plan: MeanFieldPlan
    dt: float
    card: dict[str, Any]

    def __post_init__(self) -> None:
        self.sde.names = ("magnetization",)

    @property
    def validity(self) -> dict[str, Any]:
        """Ranges of M and of conditions that the model knows."""
        known = {name: [value, value] for name, value in self.card.get("system", {}).items()}
        return {"latents": self.sde.validity(), "parameters": known}

    def save(self, directory: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a directory."""
        description = {
            "sde_width": self.sde.width,
            "factor": self.sde.factor,
            "plan": asdict(self.plan),
            "dt": self.dt,
            "card": self.card,
        }
        tensors = {name: value.contiguous() for name, value in self.sde.state_dict().items()}
        write_model(directory, KIND, description, tensors)


def learn(
    system: CurieWeiss,
    pairs: MeanFieldPairs,
    *,
    method: Method = "partial",
    seed: int = 0,
    dt: float | None = None,
    schedule: Schedule | None = None,
) -> MagnetizationModel:
    """The model of a training set, with its card; warns if it does not hold for the pairs.

    Parameters
    ----------
    system : of which the pairs are
    dt : step of predictions, by default the mean time of the pairs
    method, seed, schedule : as of :func:`train_magnetization`
    """
    sde, log = train_magnetization(pairs, method=method, seed=seed, schedule=schedule)
    z, increments = _latents(pairs, method)
    card = {
        "system": {"temperature": system.temperature, "field": system.field},
        "method": method,
        "factor": sde.factor,
        "seed": seed,
        "validation_loss": log.best_validation,
        "best_epoch": log.best_epoch,
        "relaxation": sde.relaxation(z),
        **judge(sde, z, increments, pairs.elapsed),
    }
    return MagnetizationModel(sde, pairs.plan, dt or float(pairs.elapsed.mean()), card)


def _latents(pairs: MeanFieldPairs, method: Method) -> tuple[np.ndarray, np.ndarray]:
    """M of the states, and its increments: (N, 1), (N, P, 1)."""
    z = 2.0 * pairs.up[:, None] / pairs.plan.large**2 - 1.0
    return z, pairs.increments(method)[:, :, None]


def load_magnetization(directory: str | Path) -> MagnetizationModel:
    """Load a model that :meth:`MagnetizationModel.save` wrote; InputError if it cannot be."""
    return read_model(directory, KIND, _built)


def _built(
    description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> MagnetizationModel:
    sde = MacroscopicSDE(1, description["sde_width"], description["factor"])
    sde.load_state_dict(dict(tensors))
    sde.eval()
    plan = MeanFieldPlan(**description["plan"])
    return MagnetizationModel(sde, plan, description["dt"], description["card"])


def after_flips(
    start: np.ndarray, birth: np.ndarray, death: np.ndarray, flips: int
) -> Iterator[np.ndarray]:
    """The law of a chain after 0, ``flips``, 2 ``flips``, ... of its events, without end.

    Frames of a number of events are no frames of time: where rates are high they are short.

    Parameters
    ----------
    start : (starts, n + 1) laws of the number of spins up
    birth, death : (n + 1,) rates, the total never 0

    Yields
    ------
    (starts, n + 1)
    """
    up, down = birth / (birth + death), death / (birth + death)
    law = np.array(start, float)
    while True:
        yield law.copy()
        for _ in range(flips):
            after = np.zeros_like(law)
            after[:, 1:] = law[:, :-1] * up[:-1]
            after[:, :-1] += law[:, 1:] * down[1:]
            law = after


@dataclass(frozen=True)
class LearnedLaw:
    """The law of a learned SDE of one variable, by quadrature.

    Attributes
    ----------
    grid : (points,) values of the variable
    mean, std : (times, starts) of the variable
    stationary : (mean, std) of the stationary law
    gap : smallest relaxation rate
    """

    grid: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    stationary: tuple[float, float]
    gap: float


@torch.no_grad()
def learned_law(
    sde: LearnedSDE, starts: np.ndarray, *, dt: float, steps: int, frames: int
) -> LearnedLaw:
    r"""The exact law of Euler-Maruyama steps :math:`z \leftarrow z + \mu dt + L \sqrt{dt}\, \xi`.

    The density of a step is Gaussian; on a grid of its smallest spread (within the range of the
    training data) sums stand for integrals with an error of about :math:`e^{-2 \pi^2}`, 3e-9.

    Parameters
    ----------
    starts : (starts,) values at time 0
    dt, steps : step, and how many make a frame
    frames : number of frames after the first
    """
    low, high = float(sde.low), float(sde.high)

    def moments(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = sde.mean.new_tensor(z)[:, None]
        return (z + sde.drift(x)[:, 0].numpy() * dt, sde.cholesky(x)[:, 0, 0].numpy() * dt**0.5)

    smallest = float(moments(np.linspace(low, high, 201))[1].min())
    grid = np.linspace(low, high, min(2000, max(200, int((high - low) / smallest))))

    def density(z: np.ndarray) -> np.ndarray:
        mean, std = moments(z)
        out = np.exp(-0.5 * ((grid - mean[:, None]) / std[:, None]) ** 2)
        return np.asarray(out / out.sum(axis=1, keepdims=True))

    step = density(grid)
    frame = np.linalg.matrix_power(step, steps)
    now = density(starts) @ np.linalg.matrix_power(step, steps - 1)
    laws = []
    for _ in range(frames):
        laws.append(now)
        now = now @ frame
    values = np.stack(laws)
    mean, square = values @ grid, values @ grid**2
    std = np.sqrt(np.maximum(square - mean**2, 0.0))
    eigenvalues, vectors = np.linalg.eig(frame.T)
    order = np.argsort(-abs(eigenvalues))
    rest = np.real(vectors[:, order[0]])
    rest = rest / rest.sum()
    center = float(rest @ grid)
    return LearnedLaw(
        grid,
        np.concatenate([starts[None], mean]),
        np.concatenate([np.zeros((1, len(starts))), std]),
        (center, float(np.sqrt(rest @ (grid - center) ** 2))),
        float(-np.log(abs(eigenvalues[order[1]])) / (dt * steps)),
    )
