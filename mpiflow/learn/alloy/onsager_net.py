r"""SDE whose drift is an OnsagerNet and depends on the temperature.

.. math:: dz = \mu(z, T)\,d\tau + \Sigma^{1/2}(z, T)\,dB, \qquad
          \mu = -S\,(M + W + \alpha I)\,S\,\nabla V + S^2 f,

arXiv:2511.12842, equations (5) and (31), on standardised latents x = (z - mean) / std:

* M(x, T) = L L^T with L lower triangular: symmetric, positive, dissipation;
* W(x, T) antisymmetric: moves that conserve V;
* V(x, T) = beta / 2 |x|^2 + |A x + b(x, T)|^2: bounded below and coercive, its gradient by
  autograd;
* f(x, T): what no potential explains, as in the published network. Barriers that obey no
  detailed balance need it; without it, V never grows along the drift.

S(T) is diagonal, the strength of the noise at T over its mean, a polynomial in 1/T fitted to the
data before training: where atoms hardly move the drift is small as the noise is, and temperatures
of all strengths weigh the same.

A temperature enters all networks through a small embedding e(T). Sigma has a Cholesky factor
with a positive diagonal, see :mod:`mpiflow.learn.sde`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from mpiflow.learn.sde import LearnedSDE
from mpiflow.learn.training import mlp

#: Least mobility alpha, and beta, the least curvature of the potential.
MOBILITY = 0.1
CURVATURE = 0.1
#: Coefficients of the polynomial of log S in 1 / T, and the least S that it is fitted to.
TERMS = 6
FAINTEST = 0.02


class Parts(NamedTuple):
    """Parts of an OnsagerNet drift at B states, on standardised latents.

    Attributes
    ----------
    potential : V, (B,)
    gradient : of V, (B, d)
    dissipation : S (M + alpha I) S, (B, d, d), symmetric and positive definite
    conservation : S W S, (B, d, d), antisymmetric
    force : S^2 f, (B, d)
    """

    potential: torch.Tensor
    gradient: torch.Tensor
    dissipation: torch.Tensor
    conservation: torch.Tensor
    force: torch.Tensor

    @property
    def drift(self) -> torch.Tensor:
        """-S (M + W + alpha I) S grad V + S^2 f, (B, d)."""
        matrix = self.dissipation + self.conservation
        return self.force - (matrix @ self.gradient[..., None])[..., 0]


class OnsagerSDE(LearnedSDE):
    """Temperature-dependent SDE with OnsagerNet drift and full, positive diffusion.

    Its context is the temperature in K, (B, 1).

    Parameters
    ----------
    dim : number of latent variables
    width : units of the hidden layers
    factor : lambda, the covariance factor of the loss
    force : whether the drift has a part f
    """

    #: Small ensembles are the rule, so few trajectories are evaluated together.
    chunk = 256
    EMBEDDING = 6

    kelvin: torch.Tensor
    strength: torch.Tensor
    speed: torch.Tensor
    identity: torch.Tensor

    def __init__(
        self, dim: int, width: int = 32, factor: float = 1.0, *, force: bool = True
    ) -> None:
        super().__init__(dim, factor)
        self.width, self.force = width, force
        entries = dim * (dim + 1) // 2
        self.embedding = mlp([2, 32, self.EMBEDDING])
        self.trunk = mlp([dim + self.EMBEDDING, width, width])
        self.mobility = mlp([width, entries + dim * (dim - 1) // 2], zero_last=True)
        self.well = nn.Linear(width, 2 * dim)
        self.frame = nn.Linear(dim, 2 * dim, bias=False)
        if force:
            self.push = mlp([width, dim], zero_last=True)
        self.sigma_net = mlp([dim + self.EMBEDDING, width, width, entries], zero_last=True)
        nn.init.normal_(self.well.weight, std=0.1 / width**0.5)
        nn.init.zeros_(self.well.bias)
        nn.init.orthogonal_(self.frame.weight, gain=0.5**0.5)
        self.register_buffer("kelvin", torch.tensor([1.0, 2.0]))
        self.register_buffer("speed", torch.ones(()))
        self.register_buffer("strength", torch.zeros(TERMS, dim))
        self.register_buffer("identity", torch.eye(dim), persistent=False)

    def set_conditions(
        self, z: np.ndarray, increments: np.ndarray, dt: np.ndarray, temperature: np.ndarray
    ) -> None:
        """Set all scales: (N, d), (N, P, d), (N, P), (N,) K, see :meth:`forward`.

        The drift is measured in units of the mean rate of relaxation, from the linear
        regression of the increments on x.
        """
        self.set_scales(z, increments, dt)
        self.kelvin.copy_(torch.as_tensor([temperature.min(), temperature.max()]))
        self.strength.copy_(torch.as_tensor(self._fit_strength(increments, dt, temperature)))
        x = (z - z.mean(axis=0)) / np.maximum(z.std(axis=0), 1e-8)
        pace = increments.sum(axis=1) / dt.sum(axis=1)[:, None] / np.maximum(z.std(axis=0), 1e-8)
        slope = -float((x * pace).mean())
        self.speed.fill_(max(slope, 1e-3 * float(self.noise.mean()) ** 2))

    def _fit_strength(
        self, increments: np.ndarray, dt: np.ndarray, temperature: np.ndarray
    ) -> np.ndarray:
        """Polynomial in the inverse temperature of the logarithm of the noise, (TERMS, d)."""
        kelvin, counts = np.unique(temperature, return_counts=True)
        groups = [temperature == t for t in kelvin]
        if counts.min() < 10:  # groups of neighbouring temperatures
            groups = np.array_split(np.argsort(temperature), min(2 * TERMS, len(temperature)))
            kelvin = np.array([temperature[group].mean() for group in groups])
        rate = increments / self.std.numpy() / np.sqrt(self.factor * dt)[..., None]
        noise = np.array([rate[group].std(axis=(0, 1)) for group in groups])
        noise = np.maximum(noise / self.noise.numpy(), FAINTEST)
        terms = min(TERMS, len(kelvin))
        powers = self._inverse(torch.as_tensor(kelvin)).numpy()[:, None] ** np.arange(terms)
        out = np.zeros((TERMS, self.dim))
        out[:terms] = np.linalg.lstsq(powers, np.log(noise), rcond=None)[0]
        return out

    def _inverse(self, temperature: torch.Tensor) -> torch.Tensor:
        """1 / T scaled to [-1, 1]."""
        low, high = self.kelvin
        if low == high:
            return torch.zeros_like(temperature)
        return (2.0 / temperature - 1.0 / low - 1.0 / high) / (1.0 / low - 1.0 / high)

    def scale_of(self, temperature: torch.Tensor) -> torch.Tensor:
        """S(T), noise in units of its mean over all temperatures: (B, 1) K to (B, d)."""
        powers = self._inverse(temperature) ** torch.arange(TERMS, device=temperature.device)
        return (powers.to(self.strength.dtype) @ self.strength).exp()

    def _noise(self, *context: torch.Tensor) -> torch.Tensor:
        return self.noise * self.scale_of(context[0])

    def embed(self, temperature: torch.Tensor) -> torch.Tensor:
        """e(T) from 1 / T and log T, either scaled to [-1, 1]: (B, 1) K to (B, 6)."""
        low, high = self.kelvin
        inverse = self._inverse(temperature)
        logarithm = torch.zeros_like(temperature)
        if low != high:
            span = high.log() - low.log()
            logarithm = (2.0 * temperature.log() - low.log() - high.log()) / span
        out: torch.Tensor = self.embedding(torch.cat([inverse, logarithm], dim=-1))
        return out

    def _potential(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        well = self.frame(x) + self.well(hidden)
        return 0.5 * CURVATURE * (x**2).sum(dim=-1) + (well**2).sum(dim=-1)

    def parts(self, x: torch.Tensor, temperature: torch.Tensor) -> Parts:
        """Parts of the drift in units of ``speed``: (B, d) standardised, (B, 1) K."""
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            embedded = self.embed(temperature)
            hidden = nn.functional.silu(self.trunk(torch.cat([x, embedded], dim=-1)))
            potential = self._potential(x, hidden)
            (gradient,) = torch.autograd.grad(potential.sum(), x, create_graph=self.training)
        numbers = self.mobility(hidden)
        entries = len(self.rows)
        factor = numbers.new_zeros(*x.shape[:-1], self.dim, self.dim)
        factor[..., self.rows, self.columns] = numbers[..., :entries]
        factor = factor + self.identity
        upper = numbers.new_zeros(*x.shape[:-1], self.dim, self.dim)
        off = self.rows != self.columns
        upper[..., self.columns[off], self.rows[off]] = numbers[..., entries:]
        s = self.scale_of(temperature)
        both = s[:, :, None] * s[:, None, :]
        return Parts(
            potential,
            gradient,
            both * (factor @ factor.mT + MOBILITY * self.identity),
            both * (upper - upper.mT),
            s**2 * self.push(hidden) if self.force else torch.zeros_like(x),
        )

    def _rate(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return self.speed * self.parts(x, context[0]).drift

    def _entries(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.sigma_net(torch.cat([x, self.embed(context[0])], dim=-1))
        return out
