"""The learned macroscopic model: closures, SDE, scales; saved as safetensors and JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.learn.closure.closure import OBSERVABLES, ClosureAutoencoder
from mpiflow.learn.closure.dataset import DataPlan, PairData, class_densities
from mpiflow.learn.models import read_model, restore, tensors_of, write_model
from mpiflow.learn.sde import MacroscopicSDE
from mpiflow.learn.training import Schedule, TrainingLog, fit

Method = Literal["partial", "naive"]
#: What model.json calls a model of this module.
KIND = "ising-closure"
#: Latent variables that are not closures.
NAMES = ("magnetization", "domain_wall_density")


@dataclass
class MacroscopicModel:
    """Macroscopic dynamics of an Ising lattice, z = (M, rho, closures).

    Attributes
    ----------
    autoencoder, sde : the trained networks
    plan : how the training data were made
    dt : time step of predictions, the mean time of the partial evolutions
    card : where the model comes from: system, seed, method, lambda, losses; and how well it fits
        (:mod:`mpiflow.learn.pair_goodness`)
    """

    autoencoder: ClosureAutoencoder
    sde: MacroscopicSDE
    plan: DataPlan
    dt: float
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sde.names = (*NAMES, *(f"closure{i + 1}" for i in range(self.sde.dim - 2)))

    @property
    def validity(self) -> dict[str, Any]:
        """Ranges of latents and conditions that the model knows."""
        known = {name: [value, value] for name, value in self.card.get("system", {}).items()}
        return {"latents": self.sde.validity(), "parameters": known}

    @torch.no_grad()
    def closures(self, counts: np.ndarray) -> np.ndarray:
        """Closures from patch class counts (B, K, 10) of observables.class_counts: (B, c)."""
        self.autoencoder.eval()
        out = [
            self.autoencoder.encode(
                torch.as_tensor(class_densities(counts[i : i + 4096], self.plan.patch))
            ).mean(dim=1)
            for i in range(0, len(counts), 4096)
        ]
        return torch.cat(out).numpy() if out else np.empty((0, self.autoencoder.closures))

    def latents(self, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Latents (B, 2 + c) from sums (B, 2) and patch class counts (B, K, 10)."""
        observed = observables.intensive(sums, self.plan.large**2)
        return np.concatenate([observed, self.closures(counts)], axis=1)

    def encode(self, states: np.ndarray) -> np.ndarray:
        """Latents of whole periodic lattices, (B, large, large) int8 to (B, 2 + c)."""
        block = Block.periodic(states, np.arange(len(states)))
        return self.latents(
            observables.spin_sums(block), observables.class_counts(states, self.plan.patch)
        )

    def rollout(
        self, z0: np.ndarray, times: np.ndarray, *, seed: int, members: np.ndarray | None = None
    ) -> tuple[np.ndarray, int]:
        """Trajectories from z0 (B, d) at ``times``, interpolated between steps of ``dt``.

        Returns (len(times), B, d) and the number of states that had to be clipped.
        """
        members = np.arange(len(z0)) if members is None else members
        return self.sde.rollout_at(z0, members, times, dt=self.dt, seed=seed)

    def parts(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """A description that JSON can hold, and the tensors: the model for :func:`built`."""
        description = {
            "closures": self.autoencoder.closures,
            "autoencoder_width": self.autoencoder.width,
            "sde_width": self.sde.width,
            "factor": self.sde.factor,
            "plan": asdict(self.plan),
            "dt": self.dt,
            "card": self.card,
        }
        return description, tensors_of(autoencoder=self.autoencoder, sde=self.sde)

    def save(self, directory: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a directory."""
        write_model(directory, KIND, *self.parts())


def load_model(directory: str | Path) -> MacroscopicModel:
    """Load a model that :meth:`MacroscopicModel.save` wrote."""
    return read_model(directory, KIND, built)


def built(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> MacroscopicModel:
    """The model of :meth:`MacroscopicModel.parts`."""
    autoencoder = ClosureAutoencoder(description["closures"], description["autoencoder_width"])
    sde = MacroscopicSDE(
        OBSERVABLES + description["closures"],
        description["sde_width"],
        description["factor"],
    )
    restore(tensors, autoencoder=autoencoder, sde=sde)
    # Before there was a choice, windows were relaxed.
    plan = DataPlan(**{"relaxation": "windows", **description["plan"]})
    return MacroscopicModel(autoencoder, sde, plan, description["dt"], description["card"])


def train_autoencoder(
    data: PairData,
    *,
    closures: int = 2,
    seed: int = 0,
    schedule: Schedule | None = None,
    comm: MPI.Intracomm | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> tuple[ClosureAutoencoder, TrainingLog]:
    """Train the closures of a data set (equation in :mod:`mpiflow.learn.closure.closure`)."""
    torch.manual_seed(seed)
    model = ClosureAutoencoder(closures)
    densities, observed = data.densities, data.observables
    model.set_scales(densities, observed)
    log = fit(
        model,
        (densities, observed),
        seed=seed,
        schedule=schedule or Schedule(epochs=20),
        comm=comm,
        progress=progress,
    )
    return model, log


def latent_pairs(
    data: PairData, autoencoder: ClosureAutoencoder, method: Method
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Latents of N states, increments and times of their P pairs: (N, d), (N, P, d), (N, P).

    ``partial`` (arXiv:2511.12842, equation (3)): the change of the patch,
    :math:`z_1 - z_0 = \varphi(x_{I,t+\delta t}) - \varphi(x_{I,t})`; for the observables this
    is K times the exact change of the whole lattice's value.
    ``naive``: :math:`z_1 = \varphi(x_{I,t+\delta t})`.
    """
    plan, (n, p) = data.plan, data.index.shape
    unused = MacroscopicSDE(OBSERVABLES + autoencoder.closures)
    model = MacroscopicModel(autoencoder, unused, plan, data.step)
    z0 = model.latents(data.sums, data.counts)
    sites = plan.patch**2

    def closures(counts: np.ndarray) -> np.ndarray:
        return model.closures(counts.reshape(n * p, 1, -1)).reshape(n, p, -1)

    after = closures(data.after)
    if method == "naive":
        z1 = np.concatenate([observables.intensive(data.patch_sums, sites), after], axis=-1)
        increments = z1 - z0[:, None]
    else:
        before = closures(np.take_along_axis(data.counts, data.index[:, :, None], axis=1))
        changes = data.changes / np.array([sites, -4.0 * sites])
        increments = np.concatenate([changes, after - before], axis=-1)
    return z0, increments, data.elapsed


def train_sde(
    data: PairData,
    autoencoder: ClosureAutoencoder,
    *,
    method: Method = "partial",
    factor: float | None = None,
    seed: int = 0,
    schedule: Schedule | None = None,
    comm: MPI.Intracomm | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> tuple[MacroscopicSDE, TrainingLog]:
    """Train the macroscopic SDE on a data set's latent pairs.

    ``factor`` is lambda: by default K for ``partial`` and 1 for ``naive``.
    """
    if factor is None:
        factor = float(data.plan.patches) if method == "partial" else 1.0
    if not factor > 0:
        raise InputError("factor", factor, "above 0", "Leave it out for lambda = K.")
    z0, increments, dt = latent_pairs(data, autoencoder, method)
    return fit_sde(
        (z0, increments, dt), factor, seed=seed, schedule=schedule, comm=comm, progress=progress
    )


def fit_sde(
    data: Sequence[np.ndarray],
    factor: float,
    *,
    width: int = 64,
    seed: int,
    **how: Any,
) -> tuple[MacroscopicSDE, TrainingLog]:
    """A new SDE trained on latents, increments and times with lambda = ``factor``.

    A fourth array is a context (N, c) of the states, see
    :class:`~mpiflow.learn.sde.MacroscopicSDE`. ``how`` are further arguments of
    :func:`mpiflow.learn.training.fit`.
    """
    z, increments, dt, *context = data
    torch.manual_seed(seed)
    sde = MacroscopicSDE(z.shape[1], width, factor, sum(c.shape[1] for c in context))
    sde.set_scales(z, increments, dt)
    for values in context:
        sde.set_context(values)
    return sde, fit(sde, data, seed=seed, **how)
