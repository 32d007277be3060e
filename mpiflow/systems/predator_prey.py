r"""Prey u and predators v on a line, with noise (arXiv:2511.12842, equation (20)).

.. math:: du &= [u (1 - u - v) + c \, u_{xx}] \, dt + \sigma \, dW_u, \\
          dv &= [a v (u - b) + v_{xx}] \, dt + \sigma \, dW_v, \qquad 0 \le x \le 1,

mirrored at both ends, on n cells with centres :math:`x_i = (i - 1/2) \Delta x`, dx = 1 / n. Two
forms:

``published``
    What the published code does: the stencil [1, -2, 1] without 1 / dx^2, noise
    :math:`\sigma \sqrt{dt}` in each cell. So the diffusivity of v is not 1 but dx^2, 1e-4 on 100
    cells and 2.5e-5 on 200: a front moves about a cell in a unit of time, and the two grids are
    two different equations. The noise of the means is :math:`\sigma / \sqrt n`, that of a grid.
``pde``
    What the paper prints: 1 / dx^2, and space-time white noise,
    :math:`\sigma \sqrt{dt / dx}` in each cell. The means have noise :math:`\sigma` on any grid.
    With c = 0, as published, it has no limit: nothing smooths u, whose variance in a cell is
    :math:`\sigma^2 n / 2 b`, so that the mean of u^2 in its drift grows with n; and a cell
    with u < 0 runs to minus infinity. At n = 200, :math:`\sigma` = 0.02 it does so within a
    few units of time. It needs c > 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mpiflow.core.device import rule
from mpiflow.core.errors import InputError

Form = Literal["published", "pde"]


@rule
def prey(u: float, v: float) -> float:
    """Growth of the prey in a cell."""
    return u * (1.0 - u - v)


@rule
def predators(u: float, v: float, growth: float, death: float) -> float:
    """Growth of the predators in a cell."""
    return growth * v * (u - death)


@dataclass(frozen=True)
class PredatorPrey:
    """Parameters; the defaults are the published ones.

    Parameters
    ----------
    sites : n, 2 or more
    form : ``published`` or ``pde``
    growth : a, 0 or more
    death : b, 0 or more
    prey_diffusion : c, 0 or more
    noise : sigma, 0 or more

    Raises
    ------
    InputError : a parameter is not as said
    """

    sites: int = 200
    form: Form = "published"
    growth: float = 3.0
    death: float = 0.4
    prey_diffusion: float = 0.0
    noise: float = 0.02

    def __post_init__(self) -> None:
        if self.sites < 2:
            raise InputError("sites", self.sites, "2 or more", "Try 200.")
        if self.form not in get_args(Form):
            allowed = " or ".join(get_args(Form))
            raise InputError("form", self.form, allowed, "Try published.")
        for name in ("growth", "death", "prey_diffusion", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(name, getattr(self, name), "finite, 0 or more", "Leave it out.")

    @property
    def coupling(self) -> tuple[float, float]:
        """Rates of exchange between neighbouring cells, of u and of v."""
        scale = float(self.sites**2) if self.form == "pde" else 1.0
        return self.prey_diffusion * scale, scale

    @property
    def diffusivity(self) -> tuple[float, float]:
        """Of u and of v, in units of the length of the line squared: coupling times dx^2."""
        first, second = self.coupling
        return first / self.sites**2, second / self.sites**2

    @property
    def amplitude(self) -> float:
        """Noise of a cell per root of time; that of a mean is this over root n."""
        return self.noise * math.sqrt(self.sites) if self.form == "pde" else self.noise

    @property
    def longest_step(self) -> float:
        """Steps of Euler are stable below it, as far as diffusion goes: 2 over its largest rate.

        Infinite for ``pde``, whose diffusion is implicit.
        """
        return math.inf if self.form == "pde" else 0.5 / max(self.coupling)

    def rates(self) -> np.ndarray:
        """Decay rates of the cosine modes by diffusion, (2, n) float64 for u and v."""
        mode = np.arange(self.sites)
        shape = 4.0 * np.sin(0.5 * np.pi * mode / self.sites) ** 2
        return np.outer(self.coupling, shape)

    def coexistence(self) -> tuple[float, float]:
        """Where both live and neither changes: u = b, v = 1 - b."""
        return self.death, 1.0 - self.death

    def jacobian(self) -> np.ndarray:
        """Of the growth of both there, (2, 2) float64."""
        u, v = self.coexistence()
        return np.array([[-u, -u], [self.growth * v, 0.0]])

    def excess(self, dt: float) -> np.ndarray | None:
        """How much too large steps of dt make stationary variances near coexistence, (2, 2).

        Of the means of u and v, then of a cell's, relative: exactly, of the linear equation
        there, mode by mode. None if it rests nowhere: a step or the equation is unstable.
        """
        one, both = np.eye(2), np.eye(4)
        rates = self.rates().T[:, :, None] * one  # (n, 2, 2)
        inner = self.jacobian() - rates
        if self.form == "pde":
            left = 1.0 / (1.0 + dt * self.rates().T)
            step = left[:, :, None] * (one + dt * self.jacobian())
            noise = left[:, :, None] ** 2 * (one + 0.5 * dt * rates)
        else:
            step, noise = one + dt * inner, np.broadcast_to(one, inner.shape)
        steady = np.linalg.eigvals(inner).real.max() < 0 and abs(np.linalg.eigvals(step)).max() < 1
        if not steady:
            return None
        square = np.einsum("kab,kcd->kacbd", step, step).reshape(-1, 4, 4)
        found = np.linalg.solve(both - square, dt * noise.reshape(-1, 4, 1))
        rate = np.einsum("kab,cd->kacbd", inner, one) + np.einsum("ab,kcd->kacbd", one, inner)
        exact = -np.linalg.solve(rate.reshape(-1, 4, 4), one.reshape(4, 1)[None])
        found, exact = (a[:, [0, 3], 0] for a in (found, exact))  # the variances
        return np.stack([found[0] / exact[0], found.sum(axis=0) / exact.sum(axis=0)]) - 1.0

    def start(self, mean: np.ndarray | float, wave: np.ndarray | float) -> np.ndarray:
        """Initial states u = m + k cos(10 pi x), v = (1 - m) - k cos(10 pi x).

        As in the published code; the paper prints cos(0 pi x) and other ranges.

        Parameters
        ----------
        mean, wave : m and k, numbers or (B,)

        Returns
        -------
        (2, n) or (B, 2, n) float64
        """
        x = (np.arange(self.sites) + 0.5) / self.sites
        m, k = np.broadcast_arrays(np.asarray(mean, float), np.asarray(wave, float))
        shape = k[..., None] * np.cos(10.0 * np.pi * x)
        return np.stack([m[..., None] + shape, 1.0 - m[..., None] - shape], axis=-2)


def upsample(states: np.ndarray) -> np.ndarray:
    """Twice as many cells, linear between their centres and constant beyond the outermost.

    Parameters
    ----------
    states : (..., n)

    Returns
    -------
    (..., 2 n) float64. The mean stays as it is, but for a quarter of a cell at either end;
    noise that is independent in each cell loses 3/8 of its variance.
    """
    states = np.asarray(states, float)
    wide = np.concatenate([states[..., :1], states, states[..., -1:]], axis=-1)
    pairs = [
        0.75 * wide[..., 1:-1] + 0.25 * wide[..., :-2],
        0.75 * wide[..., 1:-1] + 0.25 * wide[..., 2:],
    ]
    return np.stack(pairs, axis=-1).reshape(*states.shape[:-1], -1)
