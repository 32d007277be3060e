r"""Encoders of patches that compete with ours, all on the spins of the same training pairs.

Closures of a lattice are the mean over its K patches of a function of one patch
(arXiv:2511.12842, equation (1)). That function is here one of

* ``ours``: a network of the patch's rate-class densities (:mod:`mpiflow.learn.closure.closure`);
* ``linear``: principal components of the densities, of what (M, rho) leave of them;
* ``drifts``: the drifts of M and rho, linear in the densities by the generator, two closures;
* ``convolution``: 3 x 3 convolution without padding, pointwise layers, mean over the patch: a
  translation-invariant network of spins. It is a mean over sites of a function of the 512
  patterns of nine spins, so it is trained on their densities, which is the same and cheap;
* ``published``: convolutions with padding, batch normalisation and pooling, flattened, trained
  to reconstruct the spins.

``ours`` and ``convolution`` have the same objective, ``published`` its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.learn.closure.closure import OBSERVABLES, ClosureAutoencoder
from mpiflow.learn.closure.dataset import DataPlan, class_densities, evolutions, training_states
from mpiflow.learn.sde import LearnedSDE
from mpiflow.learn.training import Schedule, fit, mlp
from mpiflow.systems.ising import CLASSES, NEIGHBOUR_SUMS, Ising

KINDS = ("ours", "linear", "drifts", "convolution", "published")
#: States encoded together: bounds the memory of their patches.
CHUNK = 256
#: Channels of the published convolutions, a quarter of the published 32, 64, 128.
CHANNELS = (8, 16, 32)
#: Neighbourhoods of nine spins.
PATTERNS = 512
SPIN = np.repeat([-1.0, 1.0], len(NEIGHBOUR_SUMS))
SUM = np.tile(NEIGHBOUR_SUMS, 2)


@dataclass(frozen=True)
class SpinPairs:
    """Training pairs with their spins. N states, P repeats.

    Attributes
    ----------
    plan : how they were made: the pairs of :func:`mpiflow.learn.closure.dataset.generate_pairs`
    states : (N, L, L) int8, the large states
    index : (N, P) which patch evolved
    after : (N, P, n, n) int8, that patch afterwards
    changes : (N, P, 2) exact changes of the sums of spins and of bonds
    elapsed : (N, P) time
    """

    plan: DataPlan
    states: np.ndarray
    index: np.ndarray
    after: np.ndarray
    changes: np.ndarray
    elapsed: np.ndarray

    @property
    def observables(self) -> np.ndarray:
        """(N, 2) magnetisation and domain-wall density."""
        return observe(self.states)


def observe(states: np.ndarray) -> np.ndarray:
    """Magnetisation and domain-wall density of whole periodic lattices, (N, 2)."""
    block = Block.periodic(states, np.arange(len(states)))
    return observables.intensive(observables.spin_sums(block), states[0].size)


def generate_spin_pairs(
    system: Ising, plan: DataPlan, *, seed: int, chunk: int = 2048
) -> SpinPairs:
    """Make the training pairs, on this rank."""
    parts = []
    for first in range(0, plan.states, chunk):
        members = np.arange(first, min(first + chunk, plan.states))
        states = training_states(system, plan, members, seed)
        evolved = list(evolutions(system, plan, states, members, seed))
        columns = (
            [p.index for p in evolved],
            [p.after[:, 1:-1, 1:-1] for p in evolved],
            [p.changes() for p in evolved],
            [p.elapsed for p in evolved],
        )
        parts.append((states, *(np.stack(column, axis=1) for column in columns)))
    return SpinPairs(plan, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def cut(states: np.ndarray, patch: int) -> np.ndarray:
    """The aligned patches of states, row-major: (N, L, L) to (N, K, n, n)."""
    count, side = len(states), states.shape[1] // patch
    tiles = states.reshape(count, side, patch, side, patch).swapaxes(2, 3)
    return np.ascontiguousarray(tiles).reshape(count, side * side, patch, patch)


# -- encoders ----------------------------------------------------------------------------------


class PatchEncoder(nn.Module):
    """Closures of single patches: their statistics, then a function of these.

    Parameters
    ----------
    closures : number of closure variables
    """

    def __init__(self, closures: int) -> None:
        super().__init__()
        self.closures = closures

    def statistics(self, patches: np.ndarray) -> np.ndarray:
        """What the encoder sees of patches: (B, n, n) int8 to (B, ...) float32."""
        patch = patches.shape[1]
        return class_densities(observables.class_counts(patches, patch)[:, 0], patch)

    def encode(self, statistics: torch.Tensor) -> torch.Tensor:
        """Closures (B, closures) from :meth:`statistics`."""
        raise NotImplementedError

    @torch.no_grad()
    def of_patches(self, patches: np.ndarray) -> np.ndarray:
        """Closures of patches (..., n, n) int8: (..., closures) float64."""
        self.eval()
        flat = patches.reshape(-1, *patches.shape[-2:])
        out = np.empty((len(flat), self.closures))
        size = 16 * CHUNK
        for i in range(0, len(flat), size):
            some = torch.as_tensor(self.statistics(flat[i : i + size]))
            out[i : i + size] = self.encode(some).numpy()
        return out.reshape(*patches.shape[:-2], self.closures)

    def of_states(self, states: np.ndarray, patch: int) -> np.ndarray:
        """Closures of whole lattices, mean over their patches: (N, closures) float64."""
        out = np.empty((len(states), self.closures))
        for i in range(0, len(states), CHUNK):
            out[i : i + CHUNK] = self.of_patches(cut(states[i : i + CHUNK], patch)).mean(axis=1)
        return out

    def latents(self, states: np.ndarray, patch: int) -> np.ndarray:
        """z = (M, rho, closures) of whole lattices, (N, 2 + closures)."""
        return np.concatenate([observe(states), self.of_states(states, patch)], axis=1)


class DensityEncoder(PatchEncoder):
    """The encoder of a :class:`~mpiflow.learn.closure.closure.ClosureAutoencoder`."""

    def __init__(self, autoencoder: ClosureAutoencoder) -> None:
        super().__init__(autoencoder.closures)
        self.autoencoder = autoencoder

    def encode(self, statistics: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.encode(statistics)


class LinearEncoder(PatchEncoder):
    """Closures linear in the class densities: weights (10, closures)."""

    weights: torch.Tensor

    def __init__(self, weights: np.ndarray) -> None:
        super().__init__(weights.shape[1])
        self.register_buffer("weights", torch.as_tensor(weights, dtype=torch.float32))

    def encode(self, statistics: torch.Tensor) -> torch.Tensor:
        return statistics @ self.weights


class PatternAutoencoder(ClosureAutoencoder):
    """Like its base, but the encoder is a translation-invariant convolution of spins."""

    patterns: torch.Tensor
    pattern_mean: torch.Tensor
    unit: torch.Tensor

    def __init__(self, closures: int = 2, width: int = 32) -> None:
        super().__init__(closures, width)
        bits = np.arange(PATTERNS)[:, None] >> np.arange(9) & 1
        self.encoder = mlp([9, width, width, closures])
        self.register_buffer("patterns", torch.as_tensor(2.0 * bits - 1.0, dtype=torch.float32))
        self.register_buffer("pattern_mean", torch.zeros(PATTERNS))
        self.register_buffer("unit", torch.ones(closures))

    @torch.no_grad()
    def set_pattern_scales(self, patterns: np.ndarray) -> None:
        """Centre, and give the closures of the untrained network a spread of 1: (B, 512)."""
        self.pattern_mean.copy_(torch.as_tensor(patterns.mean(axis=0)))
        self.unit.copy_(self.encode(torch.as_tensor(patterns)).std(dim=0).clamp(min=1e-6))

    def encode(self, densities: torch.Tensor) -> torch.Tensor:
        """Closures from pattern densities: (..., 512) to (..., closures)."""
        table: torch.Tensor = self.encoder(self.patterns) / self.unit
        return (densities - self.pattern_mean) @ table

    def forward(self, patterns: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        """Reconstruction loss of each state: (B, 512), (B, 2), (B, 10) to (B,)."""
        observed, densities = rest
        scaled = (observed - self.observable_mean) / self.observable_std
        decoded = self.decoder(torch.cat([scaled, self.encode(patterns)], dim=1))
        target = (densities - self.class_mean) / self.class_std
        return ((decoded - target) ** 2).mean(dim=1)


class PatternEncoder(LinearEncoder):
    """Closures linear in the pattern densities: weights (512, closures), a function of windows."""

    def statistics(self, patches: np.ndarray) -> np.ndarray:
        return pattern_densities(patches)


def conditioned(weights: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """The same closures without their part linear in M and rho, uncorrelated, of unit variance.

    All this is linear, so that it changes what (M, rho, closures) know by nothing, but an SDE of
    closures that are almost M is hard to learn.

    Parameters
    ----------
    weights : (512, closures)
    patterns : (N, 512) pattern densities of the training states
    """
    spins = 2.0 * (np.arange(PATTERNS)[:, None] >> np.arange(9) & 1) - 1.0
    centre = spins[:, 4]
    known = np.stack([centre, centre * spins[:, [1, 3, 5, 7]].sum(axis=1)], axis=1)
    away = patterns.astype(float) - patterns.mean(axis=0)
    weights = weights - known @ np.linalg.lstsq(away @ known, away @ weights, rcond=None)[0]
    _, spread, rows = np.linalg.svd(away @ weights, full_matrices=False)
    return np.asarray(weights @ rows.T * np.sqrt(len(away)) / np.maximum(spread, 1e-12))


def pattern_densities(patches: np.ndarray) -> np.ndarray:
    """Share of each of the 512 patterns of nine spins in patches: (B, n, n) to (B, 512) float32."""
    count, inner = len(patches), patches.shape[1] - 2
    up = patches > 0
    codes = np.zeros((count, inner, inner), np.int64)
    for bit in range(9):
        y, x = divmod(bit, 3)
        codes |= up[:, y : y + inner, x : x + inner].astype(np.int64) << bit
    codes += PATTERNS * np.arange(count)[:, None, None]
    counts = np.bincount(codes.ravel(), minlength=PATTERNS * count)
    return counts.reshape(count, PATTERNS).astype(np.float32) / np.float32(inner**2)


class PublishedEncoder(PatchEncoder):
    """The published autoencoder: Conv3x3, BatchNorm, LeakyReLU, MaxPool blocks; spins rebuilt.

    Parameters
    ----------
    closures : number of closure variables
    patch, large : sides of a patch and of the lattice
    channels : of the blocks; each halves the side
    """

    observable_mean: torch.Tensor
    observable_std: torch.Tensor

    def __init__(
        self, closures: int, patch: int, large: int, channels: tuple[int, ...] = CHANNELS
    ) -> None:
        super().__init__(closures)
        self.patch = patch
        rest = patch >> len(channels)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((1, *channels)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
            layers += [nn.LeakyReLU(0.2), nn.MaxPool2d(2)]
        layers += [nn.Flatten(), nn.Linear(channels[-1] * rest**2, closures)]
        self.encoder = nn.Sequential(*layers)
        wide = channels[-1]
        layers = [nn.Linear(OBSERVABLES + closures, 16 * wide), nn.Unflatten(1, (wide, 4, 4))]
        layers += [nn.LeakyReLU(0.2)]
        for _ in range(round(np.log2(large / 8))):
            narrow = max(8, wide // 2)
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1), nn.BatchNorm2d(narrow)]
            layers += [nn.LeakyReLU(0.2)]
            wide = narrow
        layers += [nn.ConvTranspose2d(wide, 1, 4, 2, 1)]
        self.decoder = nn.Sequential(*layers)
        self.register_buffer("observable_mean", torch.zeros(OBSERVABLES))
        self.register_buffer("observable_std", torch.ones(OBSERVABLES))

    def statistics(self, patches: np.ndarray) -> np.ndarray:
        return patches[:, None].astype(np.float32)

    def encode(self, statistics: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.encoder(statistics.contiguous(memory_format=torch.channels_last))
        return out

    def forward(self, states: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """Binary cross entropy of the spins of each state: (B, L, L), (B, 2) to (B,)."""
        count, side, patch = len(states), states.shape[1] // self.patch, self.patch
        tiles = states.reshape(count, side, patch, side, patch).transpose(2, 3)
        closures = self.encode(tiles.reshape(-1, 1, patch, patch)).reshape(count, side**2, -1)
        scaled = (observed - self.observable_mean) / self.observable_std
        logits = self.decoder(torch.cat([scaled, closures.mean(dim=1)], dim=1))[:, 0]
        up = 0.5 * (states + 1.0)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, up, reduction="none")
        return loss.mean(dim=(1, 2))


def train_encoder(
    kind: str,
    system: Ising,
    pairs: SpinPairs,
    closures: int,
    *,
    seed: int,
    schedule: Schedule | None = None,
) -> PatchEncoder:
    """An encoder of one of :data:`KINDS`, trained on the states of the pairs.

    Without closures it is the same for every kind.

    Raises
    ------
    InputError : an unknown kind, or a number of closures that it cannot have
    """
    most = 2 if kind == "drifts" else CLASSES
    if kind not in KINDS:
        raise InputError("kind", kind, f"one of {', '.join(KINDS)}", "Choose one.")
    if not 0 <= closures <= most:
        raise InputError("closures", closures, f"0 to {most} for {kind}", "Try 2.")
    if closures == 0:
        return LinearEncoder(np.zeros((CLASSES, 0)))
    if kind == "drifts":
        return LinearEncoder(drift_weights(system)[:, :closures])
    torch.manual_seed(seed)
    observed, patch = pairs.observables, pairs.plan.patch
    if kind == "published":
        # Few states: more and smaller batches, larger steps than the published 512 and 2e-4.
        channels = CHANNELS[: max(1, round(np.log2(patch)) - 1)]  # down to 2^2, as published
        published = PublishedEncoder(closures, patch, pairs.plan.large, channels)
        published.observable_mean.copy_(torch.as_tensor(observed.mean(axis=0)))
        published.observable_std.copy_(torch.as_tensor(observed.std(axis=0)))
        published.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        how = schedule or Schedule(epochs=5, batch=32, learning_rate=1e-3)
        fit(published, (pairs.states, observed), seed=seed, schedule=how)
        return published
    densities = class_densities(observables.class_counts(pairs.states, patch), patch)
    if kind == "linear":
        return LinearEncoder(_components(densities.mean(axis=1), observed)[:, :closures])
    how = schedule or Schedule(epochs=20)
    if kind == "ours":
        model = ClosureAutoencoder(closures)
        model.set_scales(densities, observed)
        fit(model, (densities, observed), seed=seed, schedule=how)
        return DensityEncoder(model)
    whole = np.concatenate(
        [
            _mean_patterns(pairs.states[i : i + CHUNK], patch)
            for i in range(0, len(pairs.states), CHUNK)
        ]
    )
    convolution = PatternAutoencoder(closures)
    convolution.set_scales(densities, observed)
    convolution.set_pattern_scales(whole)
    fit(convolution, (whole, observed, densities.mean(axis=1)), seed=seed, schedule=how)
    with torch.no_grad():
        table = convolution.encoder(convolution.patterns).double().numpy()
    return PatternEncoder(conditioned(table, whole))


def _mean_patterns(states: np.ndarray, patch: int) -> np.ndarray:
    tiles = cut(states, patch)
    densities = pattern_densities(tiles.reshape(-1, patch, patch))
    return np.asarray(densities.reshape(len(states), -1, PATTERNS).mean(axis=1))


def _components(densities: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Principal components of what cubics of (M, rho) leave of mean densities, (10, 10)."""
    scale = np.maximum(densities.std(axis=0), 1e-6)
    terms = polynomials(observed, 3)
    scaled = (densities - densities.mean(axis=0)) / scale
    rest = scaled - terms @ np.linalg.lstsq(terms, scaled, rcond=None)[0]
    _, _, rows = np.linalg.svd(rest, full_matrices=False)
    return np.asarray(rows.T / scale[:, None])


def latent_pairs(
    pairs: SpinPairs, encoder: PatchEncoder
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, increments and times: (N, d), (N, P, d), (N, P); equation (3) of the paper.

    As those of :func:`mpiflow.learn.closure.model.latent_pairs`, of method ``partial``.
    """
    patch, count = pairs.plan.patch, len(pairs.states)
    closures = np.empty((count, pairs.plan.patches, encoder.closures))
    for i in range(0, count, CHUNK):
        closures[i : i + CHUNK] = encoder.of_patches(cut(pairs.states[i : i + CHUNK], patch))
    z0 = np.concatenate([pairs.observables, closures.mean(axis=1)], axis=1)
    before = np.take_along_axis(closures, pairs.index[:, :, None], axis=1)
    changes = pairs.changes / np.array([patch**2, -4.0 * patch**2])
    increments = np.concatenate([changes, encoder.of_patches(pairs.after) - before], axis=-1)
    return z0, increments, pairs.elapsed


# -- how much of the dynamics an encoder sees ---------------------------------------------------


def drift_weights(system: Ising) -> np.ndarray:
    r"""Weights (10, 2) of the class densities in the exact drifts of M and rho.

    .. math:: \dot M = -2 \sum_c s_c r_c f_c, \qquad
              \dot\rho = \tfrac12 \sum_c s_c k_c r_c f_c .
    """
    rates = system.flip_rates()
    return np.stack([-2.0 * SPIN * rates, 0.5 * SPIN * SUM * rates], axis=1)


def exact_drift(system: Ising, states: np.ndarray) -> np.ndarray:
    """Exact drifts of M and rho of whole periodic lattices, (N, 2) per unit of time."""
    return system.short_time(observables.lattice_class_counts(states))[0]


def polynomials(x: np.ndarray, degree: int) -> np.ndarray:
    """All monomials up to a degree of standardised variables: (N, d) to (N, terms)."""
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-12)
    terms = [(np.ones(len(x)), 0)]
    last = terms
    for _ in range(degree):
        # Each monomial once: a factor is never before the last one.
        last = [(value * x[:, i], i) for value, first in last for i in range(first, x.shape[1])]
        terms = terms + last
    return np.stack([value for value, _ in terms], axis=1)


def unexplained(z: np.ndarray, drift: np.ndarray, degree: int = 3, folds: int = 5) -> np.ndarray:
    """Variance of drifts (N, v) that polynomials of z (N, d) leave, held out, (v,).

    States that belong together must be neighbours: folds are contiguous.
    """
    terms = polynomials(z, degree)
    rest = np.empty_like(drift)
    for held in np.array_split(np.arange(len(z)), folds):
        kept = np.setdiff1d(np.arange(len(z)), held)
        rest[held] = (
            drift[held] - terms[held] @ np.linalg.lstsq(terms[kept], drift[kept], rcond=1e-6)[0]
        )
    return np.asarray((rest**2).mean(axis=0))


@torch.no_grad()
def observable_loss(
    sde: LearnedSDE, z: np.ndarray, increments: np.ndarray, dt: np.ndarray
) -> np.ndarray:
    """One-step loss of M and rho alone, of each state, (N,): the same for any closures.

    The Cholesky factor is lower triangular and M, rho are first, so that their covariance is
    that of its first two rows. Shapes as of :meth:`mpiflow.learn.sde.LearnedSDE.forward`; units
    of the latents, so that models may be compared on the same pairs.
    """
    x = sde.mean.new_tensor(z)
    drift = sde.drift(x).double().numpy()[:, None, :OBSERVABLES]
    factor = sde.cholesky(x).double().numpy()[:, None, :OBSERVABLES, :OBSERVABLES]
    time = dt[..., None]
    scaled = (increments[..., :OBSERVABLES] - drift * time) / np.sqrt(sde.factor * time)
    white = np.linalg.solve(np.broadcast_to(factor, (*scaled.shape, 2)), scaled[..., None])
    log_det = np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(axis=-1)
    return np.asarray(((white[..., 0] ** 2).sum(axis=-1) + 2.0 * log_det).mean(axis=1))
