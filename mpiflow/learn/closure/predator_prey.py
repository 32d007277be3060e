r"""The macroscopic dynamics of predators and prey (section III.1 of arXiv:2511.12842).

z = (mean of u, mean of v, two closures). The closures are those of an autoencoder: one encoder
for the values of u and of v in a patch, mean over the K patches; a decoder from z to all cells.

The loss of :mod:`mpiflow.learn.sde` depends on lambda only through lambda Sigma. So models of
different lambda that start from the same weights are the same network, with a Sigma that is 1 /
lambda of another: one training is enough, and :meth:`PredatorPreyModel.rollout` takes any lambda.
The published loss adds eps = 1e-5 to lambda Sigma dt, which blurs that: see the driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mpiflow.core.errors import InputError
from mpiflow.core.noise import uniforms
from mpiflow.learn.closure.model import fit_sde
from mpiflow.learn.models import read_model, restore, tensors_of, write_model
from mpiflow.learn.pair_goodness import judge
from mpiflow.learn.sde import MacroscopicSDE
from mpiflow.learn.training import Schedule, fit, mlp
from mpiflow.solvers.lines.predator_prey import PredatorPreySimulation, evolve_patches
from mpiflow.systems.predator_prey import PredatorPrey, upsample

#: What model.json calls a model of this module.
KIND = "predator-prey"
#: Latent variables: two means, and the encoder's value of u and of v.
LATENTS = 4
#: States that are evolved and encoded together.
CHUNK = 1000


@dataclass(frozen=True)
class PredatorPreyPlan:
    """How the training set is made.

    Parameters
    ----------
    small : cells of the small lines; the large ones have twice as many
    patch : cells of a patch, a divisor of the large ones
    trajectories : small lines simulated, from m in (0.45, 0.55) and k in (0.05, 0.15)
    steps : length of a trajectory
    frames : about how many states of it are kept, at times in proportion to j^2: half of them in
        the first quarter, where the means change most. The published code keeps all 3000
    draws : partial evolutions of each state; the published code makes one of each of its states
    dt : step of everything
    mirrored : ends of patches are mirrored, instead of frozen ghost cells of the neighbours
    """

    small: int = 100
    patch: int = 40
    trajectories: int = 50
    steps: int = 3000
    frames: int = 300
    draws: int = 64
    dt: float = 0.01
    mirrored: bool = False

    def __post_init__(self) -> None:
        for name in ("small", "trajectories", "steps", "frames", "draws"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "1 or more", "Leave it out.")
        if self.patch < 1 or self.large % self.patch:
            raise InputError("patch", self.patch, f"a divisor of {self.large}", "Try 40.")

    @property
    def large(self) -> int:
        """Cells of the line whose dynamics is learned."""
        return 2 * self.small

    @property
    def patches(self) -> int:
        """K, the number of patches."""
        return self.large // self.patch


class PatchAutoencoder(nn.Module):
    """Closures of u and of v, means over patches, and the cells from them and the means.

    Parameters
    ----------
    sites, patch : cells of the line and of a patch
    width : units of the two hidden layers of either network
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, sites: int, patch: int, width: int = 32) -> None:
        super().__init__()
        self.sites, self.patch = sites, patch
        self.encoder = mlp([patch, width, width, 1])
        self.decoder = mlp([LATENTS, width, width, 2 * sites])
        self.register_buffer("mean", torch.zeros(2, 1))
        self.register_buffer("std", torch.ones(2, 1))

    def set_scales(self, states: np.ndarray) -> None:
        """Standardise u and v by states (N, 2, n)."""
        self.mean.copy_(torch.as_tensor(states.mean(axis=(0, 2)))[:, None])
        self.std.copy_(torch.as_tensor(states.std(axis=(0, 2)))[:, None])

    def encode(self, patches: torch.Tensor) -> torch.Tensor:
        """Closures of single patches, (..., 2, patch) to (..., 2)."""
        out: torch.Tensor = self.encoder((patches - self.mean) / self.std)
        return out[..., 0]

    def closures(self, states: torch.Tensor) -> torch.Tensor:
        """Closures of lines, (B, 2, n) to (B, 2)."""
        parts = states.reshape(len(states), 2, -1, self.patch).transpose(1, 2)
        return self.encode(parts).mean(dim=1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Mean squared error of the reconstruction of each line, in units of std^2, (B,)."""
        scaled = (states - self.mean) / self.std
        latents = torch.cat([scaled.mean(dim=2), self.closures(states)], dim=1)
        guess = self.decoder(latents).reshape(scaled.shape)
        return ((guess - scaled) ** 2).mean(dim=(1, 2))

    @torch.no_grad()
    def latents(self, states: np.ndarray) -> np.ndarray:
        """z of lines, (B, 2, n) to (B, 4) float64."""
        given = torch.as_tensor(states, dtype=torch.float32)
        return np.concatenate([states.mean(axis=2), self.closures(given).numpy()], axis=1)

    @torch.no_grad()
    def patch_latents(self, patches: np.ndarray) -> np.ndarray:
        """The same of single patches, (..., 2, patch) to (..., 4)."""
        given = torch.as_tensor(patches, dtype=torch.float32)
        return np.concatenate([patches.mean(axis=-1), self.encode(given).numpy()], axis=-1)


def initial_states(system: PredatorPrey, members: np.ndarray, seed: int) -> np.ndarray:
    """Random initial states of the training trajectories, (B, 2, n)."""
    u = np.concatenate(
        [uniforms(seed, "predator-prey-start", int(b), 0, np.zeros(1)) for b in members]
    )
    return system.start(0.45 + 0.1 * u[:, 0], 0.05 + 0.1 * u[:, 1])


def training_states(system: PredatorPrey, plan: PredatorPreyPlan, seed: int) -> np.ndarray:
    """Frames of small lines, made large; one line after the other, (N, 2, n) float64.

    Parameters
    ----------
    system : the large line
    """
    small = replace(system, sites=plan.small)
    sim = PredatorPreySimulation(small, dt=plan.dt, seed=seed, members=plan.trajectories)
    sim.set(initial_states(small, sim.numbers, seed))
    frames = []
    for step in np.unique(plan.steps * np.arange(plan.frames) ** 2 // plan.frames**2):
        sim.advance(step - sim.step)
        frames.append(upsample(sim.x))
    # Lines stay together: those held out in training were never seen.
    return np.concatenate(frames, axis=1).reshape(-1, 2, plan.large)


def latent_pairs(
    system: PredatorPrey,
    plan: PredatorPreyPlan,
    states: np.ndarray,
    autoencoder: PatchAutoencoder,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents of N states, increments and times of their P pairs: (N, d), (N, P, d), (N, P).

    An increment is the change of one patch's own latents, equation (3) of the paper.
    """
    n = len(states)
    z0 = np.empty((n, LATENTS))
    increments = np.empty((n, plan.draws, LATENTS), np.float32)
    for first in range(0, n, CHUNK):
        some = slice(first, min(first + CHUNK, n))
        members = np.arange(some.start, some.stop)
        x = states[some]
        z0[some] = autoencoder.latents(x)
        index, after = evolve_patches(
            system, x, members, plan.patch,
            dt=plan.dt, draws=plan.draws, seed=seed, mirrored=plan.mirrored,
        )  # fmt: skip
        parts = x.reshape(len(x), 2, plan.patches, plan.patch).transpose(0, 2, 1, 3)
        before = autoencoder.patch_latents(parts)
        chosen = np.take_along_axis(before, index[..., None], axis=1)
        increments[some] = autoencoder.patch_latents(after) - chosen
    return z0, increments, np.full((n, plan.draws), plan.dt)


@dataclass
class PredatorPreyModel:
    """A trained model.

    Attributes
    ----------
    autoencoder, sde : the networks
    plan : how the training data were made
    reconstruction, loss : best validation losses of either
    variance : (4,) of the training increments
    card : where the model comes from: system, seed, lambda, losses; and how well it fits
        (:mod:`mpiflow.learn.pair_goodness`)
    """

    autoencoder: PatchAutoencoder
    sde: MacroscopicSDE
    plan: PredatorPreyPlan
    reconstruction: float
    loss: float
    variance: np.ndarray
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def validity(self) -> dict[str, Any]:
        """Ranges of latents and conditions that the model knows."""
        known = {name: [value, value] for name, value in self.card.get("system", {}).items()}
        return {"latents": self.sde.validity(), "parameters": known}

    def rollout(
        self, z0: np.ndarray, *, factor: float, save: np.ndarray, seed: int
    ) -> tuple[np.ndarray, int]:
        """Trajectories of the model of lambda = ``factor`` from z0 (B, 4), as of rollout of sde.

        Members are numbered from 0. It has the noise of this network times the root of its own
        lambda over ``factor``.
        """
        return self.sde.rollout(
            z0,
            np.arange(len(z0)),
            dt=self.plan.dt,
            steps=int(save[-1]),
            save=save,
            seed=seed,
            noise=(self.sde.factor / factor) ** 0.5,
        )

    def save(self, directory: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a directory."""
        description = {
            "factor": self.sde.factor,
            "plan": asdict(self.plan),
            "reconstruction": self.reconstruction,
            "loss": self.loss,
            "variance": self.variance.tolist(),
            "card": self.card,
        }
        tensors = tensors_of(autoencoder=self.autoencoder, sde=self.sde)
        write_model(directory, KIND, description, tensors)


def load_predator_prey(directory: str | Path) -> PredatorPreyModel:
    """Load a model that :meth:`PredatorPreyModel.save` wrote; InputError if it cannot be."""
    return read_model(directory, KIND, built)


def built(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> PredatorPreyModel:
    """The model of a description and tensors as of :meth:`PredatorPreyModel.save`."""
    plan = PredatorPreyPlan(**description["plan"])
    autoencoder = PatchAutoencoder(plan.large, plan.patch)
    sde = MacroscopicSDE(LATENTS, factor=description["factor"])
    restore(tensors, autoencoder=autoencoder, sde=sde)
    variance = np.array(description["variance"])
    losses = (description["reconstruction"], description["loss"])
    return PredatorPreyModel(autoencoder, sde, plan, *losses, variance, description["card"])


def learn(
    system: PredatorPrey, plan: PredatorPreyPlan, *, seed: int, epochs: int = 40
) -> PredatorPreyModel:
    """Make a training set and learn a model of the large line from it, with lambda = K.

    ``epochs`` are those of the SDE; the autoencoder, which needs no more, gets half of them.
    """
    if system.sites != plan.large:
        raise InputError("sites", system.sites, f"{plan.large}, as planned", "Change either.")
    states = training_states(system, plan, seed)
    torch.manual_seed(seed)
    autoencoder = PatchAutoencoder(plan.large, plan.patch)
    autoencoder.set_scales(states)
    schedule = Schedule(epochs=max(1, epochs // 2), batch=256)
    first = fit(autoencoder, [states], seed=seed, schedule=schedule)
    data = latent_pairs(system, plan, states, autoencoder, seed)
    schedule = Schedule(epochs=epochs, batch=256, learning_rate=4e-3)
    sde, log = fit_sde(data, float(plan.patches), seed=seed, schedule=schedule)
    variance = data[1].var(axis=(0, 1), dtype=float)
    losses = (first.best_validation, log.best_validation)
    card = {
        "system": asdict(system),
        "seed": seed,
        "factor": sde.factor,
        "reconstruction_loss": losses[0],
        "validation_loss": losses[1],
        "best_epoch": log.best_epoch,
        "relaxation": sde.relaxation(data[0]),
        **judge(sde, *data),
    }
    return PredatorPreyModel(autoencoder, sde, plan, *losses, variance, card)
