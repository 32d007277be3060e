r"""The macroscopic SDE of any observables, with closures of local fields.

.. math:: dz = \mu(z, c)\,dt + \Sigma^{1/2}(z, c)\,dB, \qquad
          z = (\text{observables}, \text{closures}),

with parameters c that a trajectory keeps, such as its temperature. Drift and diffusion are the
networks of :class:`~mpiflow.learn.sde.MacroscopicSDE`.

Closures are those of :mod:`mpiflow.learn.closure.closure` without its rate classes: a patch of
the coarse field m is known by means over its blocks of :data:`STATISTICS`, of m and of the mean
:math:`\bar m` of the four blocks around.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpiflow.core.errors import InputError
from mpiflow.learn.closure.closure import ClosureAutoencoder
from mpiflow.learn.models import read_model, restore, tensors_of, write_model
from mpiflow.learn.sde import MacroscopicSDE

#: What model.json calls a model of this module.
KIND = "closure"
#: What a patch is known by.
STATISTICS = ("m", "m^2", "m^3", "m^4", "m a", "m^3 a", "m^2 a^2", "a^2")
#: Blocks whose statistics are made at a time.
CHUNK = 2**20
#: Largest side of a patch in blocks, unless given.
MOST_PATCH = 8


def patch_side(shape: tuple[int, int], patch: int | None = None) -> int:
    """Blocks a side of a patch of fields of ``shape``: that given, or the largest up to 8.

    Raises
    ------
    InputError : it does not divide the field
    """
    common = math.gcd(*shape)
    if patch is not None and common % patch:
        raise InputError("patch", patch, f"a divisor of {shape} blocks", "Leave it out.")
    return patch or max(n for n in range(1, MOST_PATCH + 1) if common % n == 0)


def local_statistics(fields: np.ndarray, patch: int) -> np.ndarray:
    """Means of :data:`STATISTICS` over patches of periodic fields, a is the mean around.

    (n, y, x) to (n, K, 8) float32, K patches of ``patch`` x ``patch`` blocks.
    """
    n, height, width = np.shape(fields)
    patch_side((height, width), patch)
    some = max(1, CHUNK // (height * width))  # all terms of all frames may be a lot
    parts = [_statistics(fields[i : i + some], patch) for i in range(0, n, some)]
    return np.concatenate(parts) if parts else np.empty((0, 1, len(STATISTICS)), np.float32)


def _statistics(fields: np.ndarray, patch: int) -> np.ndarray:
    m = np.asarray(fields, np.float32)
    n, height, width = m.shape
    a = np.float32(0.25) * sum(np.roll(m, by, axis) for by in (1, -1) for axis in (1, 2))
    square = m * m
    whole = np.stack(
        [m, square, square * m, square**2, m * a, square * m * a, square * a * a, a * a], axis=-1
    )
    cut = whole.reshape(n, height // patch, patch, width // patch, patch, len(STATISTICS))
    return np.asarray(cut.mean(axis=(2, 4)).reshape(n, -1, len(STATISTICS)))


@dataclass
class ObservedModel:
    """A learned law of observables; see the module.

    Attributes
    ----------
    observables, parameters : names
    sde : the networks
    dt : step of predictions, the mean time of the pairs
    conditions : range of each of the parameters in the data
    autoencoder : of the closures, None without
    patch : blocks a side of their patches; 0 where the data brought statistics of their own
    card : where the model comes from: data, seed, lambda, losses, what was left out; and how well
        it fits (:mod:`mpiflow.learn.pair_goodness`)
    """

    observables: tuple[str, ...]
    sde: MacroscopicSDE
    dt: float
    parameters: tuple[str, ...] = ()
    conditions: dict[str, list[float]] = field(default_factory=dict)
    autoencoder: ClosureAutoencoder | None = None
    patch: int = 1
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        closures = self.sde.dim - len(self.observables)
        self.sde.names = (*self.observables, *(f"closure{i + 1}" for i in range(closures)))

    @property
    def names(self) -> tuple[str, ...]:
        """Of all latents."""
        return self.sde.names

    @property
    def validity(self) -> dict[str, Any]:
        """Ranges that the model knows: of latents, widened by a tenth, and of conditions."""
        return {"latents": self.sde.validity(), "parameters": self.conditions}

    @torch.no_grad()
    def closures(self, fields: np.ndarray) -> np.ndarray:
        """Closures of coarse fields, (n, y, x) to (n, k) float64."""
        if self.autoencoder is None or not self.patch:
            found = f"of shape {np.shape(fields)}"
            raise InputError("fields", found, "no value with this model", "Leave it out.")
        return encoded(self.autoencoder, local_statistics(fields, self.patch)).mean(axis=1)

    def latents(
        self,
        observed: np.ndarray,
        fields: np.ndarray | None = None,
        statistics: np.ndarray | None = None,
    ) -> np.ndarray:
        """Latents (n, d + k) of observables (n, d).

        Closures need coarse fields (n, y, x), or statistics of patches (n, K, S) if the model was
        learned from such.
        """
        if self.autoencoder is None:
            return np.asarray(observed, float)
        if self.patch:
            if fields is None:
                raise InputError("fields", None, "coarse fields, for the closures", "Give them.")
            return np.hstack([observed, self.closures(fields)])
        if statistics is None:
            raise InputError("statistics", None, "those of patches, for the closures", "Give them.")
        return np.hstack([observed, encoded(self.autoencoder, statistics).mean(axis=1)])

    def context(self, parameters: Mapping[str, float] | None, count: int) -> np.ndarray | None:
        """(count, c) of values by name, None for a law without parameters.

        Raises
        ------
        InputError : one is not given though the data have several, or is out of their range
        """
        given = dict(parameters or {})
        if unknown := [name for name in given if name not in self.conditions]:
            allowed = f"one of {', '.join(self.conditions) or 'none'}, of this model"
            raise InputError("parameters", unknown[0], allowed, "Leave it out.")
        for name, (low, high) in self.conditions.items():
            value = given.setdefault(name, low) if low == high else given.get(name)
            if value is None or not low <= value <= high:
                allowed = f"{low:g} to {high:g}, the range of the data"
                raise InputError(name, value, allowed, "Learn from runs there, too.")
        row = [float(given[name]) for name in self.parameters]
        return np.tile(row, (count, 1)) if row else None

    def drift(self, z: np.ndarray, parameters: Mapping[str, float] | None = None) -> np.ndarray:
        """mu of latents (n, d), a unit of time, (n, d) float64."""
        return self._at(self.sde.drift, z, parameters)

    def covariance(
        self, z: np.ndarray, parameters: Mapping[str, float] | None = None
    ) -> np.ndarray:
        """Sigma of latents (n, d), a unit of time, (n, d, d) float64."""
        factor = self._at(self.sde.cholesky, z, parameters)
        return np.asarray(factor @ factor.swapaxes(1, 2))

    @torch.no_grad()
    def _at(self, law: Any, z: np.ndarray, parameters: Mapping[str, float] | None) -> np.ndarray:
        context = self.context(parameters, len(z))
        given = () if context is None else (self.sde.mean.new_tensor(context),)
        out: np.ndarray = law(self.sde.mean.new_tensor(np.asarray(z)), *given).double().numpy()
        return out

    def rollout(
        self,
        z0: np.ndarray,
        times: np.ndarray,
        *,
        seed: int,
        members: np.ndarray | None = None,
        parameters: Mapping[str, float] | None = None,
        dt: float | None = None,
    ) -> tuple[np.ndarray, int]:
        """Trajectories from z0 (B, d) at ``times``, interpolated between steps of ``dt``.

        Warns (:class:`~mpiflow.learn.paths.OutsideData`) where they leave the range of the data.

        Parameters
        ----------
        members : (B,) noise keys, by default 0, 1, ...
        parameters : values by name, of those that differed in the data
        dt : by default that of the pairs, with which errors of their length cancel

        Returns
        -------
        (len(times), B, d), and the number of states that had to be held inside the range
        """
        keys = np.arange(len(z0)) if members is None else members
        context = self.context(parameters, len(z0))
        with warnings.catch_warnings():
            if dt is None:  # in equal steps a long one does to the variance what pairs undid
                warnings.filterwarnings("ignore", message="dt=.* is long for this model")
            return self.sde.rollout_at(
                np.asarray(z0, float), keys, times, dt=dt or self.dt, seed=seed, context=context
            )

    def save(self, directory: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a directory."""
        description = {
            "observables": self.observables,
            "closures": len(self.names) - len(self.observables),
            "parameters": self.parameters,
            "conditions": self.conditions,
            "validity": self.validity,
            "width": self.sde.width,
            "factor": self.sde.factor,
            "dt": self.dt,
            "patch": self.patch,
            "statistics": 0 if self.autoencoder is None else len(self.autoencoder.class_mean),
            "card": self.card,
        }
        networks: dict[str, torch.nn.Module] = {"sde": self.sde}
        if self.autoencoder is not None:
            networks["autoencoder"] = self.autoencoder
        write_model(directory, KIND, description, tensors_of(**networks))


def load_observed(directory: str | Path) -> ObservedModel:
    """Load a model that :meth:`ObservedModel.save` wrote; InputError if it cannot be."""
    return read_model(directory, KIND, _built)


@torch.no_grad()
def encoded(autoencoder: ClosureAutoencoder, statistics: np.ndarray) -> np.ndarray:
    """Closures of single patches, (..., S) to (..., k) float64."""
    autoencoder.eval()
    given = torch.as_tensor(np.asarray(statistics, np.float32))
    out: np.ndarray = autoencoder.encode(given).double().numpy()
    return out


def _built(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> ObservedModel:
    names, closures = tuple(description["observables"]), description["closures"]
    parameters = tuple(description["parameters"])
    dim = len(names) + closures
    sde = MacroscopicSDE(dim, description["width"], description["factor"], len(parameters))
    networks: dict[str, torch.nn.Module] = {"sde": sde}
    autoencoder = None
    if closures:
        statistics = description["statistics"]
        autoencoder = ClosureAutoencoder(closures, statistics=statistics, observables=len(names))
        networks["autoencoder"] = autoencoder
    restore(tensors, **networks)
    return ObservedModel(
        names, sde, description["dt"], parameters, description["conditions"], autoencoder,
        description["patch"], description["card"],
    )  # fmt: skip
