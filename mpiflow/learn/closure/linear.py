r"""The macroscopic SDE with linear drift and constant diffusion of one variable.

.. math:: dz = (a z + b) \, dt + c \, dB.

Its loss on partially evolved pairs, :math:`L_p` of :mod:`mpiflow.learn.sde`, has one minimum,
known in closed form: a and b of the least squares of :math:`\Delta / \delta t` on z, and

.. math:: c^2 = \langle (\Delta - (a z + b) \, \delta t)^2 \rangle / (\lambda \, \delta t).

It needs six sums over pairs, so that data of any number take no memory and no training.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from mpiflow.core.errors import InputError
from mpiflow.learn.likelihood import FLOOR
from mpiflow.learn.sde import LearnedSDE

#: Slope a, bias b, diffusion c.
Coefficients = tuple[float, float, float]


def pair_sums(z: np.ndarray, increments: np.ndarray) -> np.ndarray:
    """Sums over the P pairs of each state: 1, z, z^2, D, z D, D^2.

    Parameters
    ----------
    z : (B,)
    increments : (B, P)

    Returns
    -------
    (B, 6) float64, to be added up
    """
    pairs = np.full_like(z, increments.shape[1])
    change, square = increments.sum(axis=1), (increments**2).sum(axis=1)
    return np.stack([pairs, pairs * z, pairs * z * z, change, z * change, square], axis=1)


def minimum(sums: np.ndarray, dt: float, factor: float) -> Coefficients:
    """a, b and c at the minimum of the loss.

    Parameters
    ----------
    sums : (6,) of :func:`pair_sums`
    dt : time between the states of a pair
    factor : lambda: K for pairs of which one patch of K evolved

    Raises
    ------
    InputError : dt or a factor that is not above 0, or states that are all alike
    """
    for name, value in (("dt", dt), ("factor", factor)):
        if not 0 < value < math.inf:
            raise InputError(name, value, "a finite number above 0", "Look at the pairs.")
    z, zz, d, zd, dd = (float(s) for s in sums[1:] / sums[0])
    variance = zz - z * z
    if not variance > 0:
        raise InputError("z", f"variance {variance}", "states that differ", "Start further apart.")
    covariance = zd - z * d
    slope = covariance / (variance * dt)
    residual = dd - d * d - covariance**2 / variance
    return slope, d / dt - slope * z, math.sqrt(max(residual, 0.0) / (factor * dt))


class LinearSDE(LearnedSDE):
    """Drift a z + b and diffusion c as three parameters, one variable.

    Parameters
    ----------
    factor : lambda, the covariance factor of the loss
    """

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__(1, factor)
        self.line = nn.Linear(1, 1)
        self.entry = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def _rate(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.line(x)
        return out

    def _entries(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return self.entry.expand(*x.shape[:-1], 1)

    @torch.no_grad()
    def coefficients(self) -> Coefficients:
        """a, b and c."""
        at = self.mean.new_tensor([[0.0], [1.0]])
        low, high = self.drift(at).double()[:, 0].tolist()
        return high - low, low, self.cholesky(at[:1]).item()

    @torch.no_grad()
    def set_coefficients(self, values: Coefficients, low: float, high: float) -> None:
        """Take a, b and c > 0, for states from ``low`` to ``high``."""
        slope, bias, diffusion = values
        if not diffusion > 0:
            raise InputError("diffusion", diffusion, "above 0", "Look at the pairs.")
        for buffer, value in (
            (self.mean, 0.0),
            (self.std, 1.0),
            (self.noise, diffusion),
            (self.low, low),
            (self.high, high),
            (self.line.weight, slope),
            (self.line.bias, bias),
            # So that the factor in units of the noise is 1; see LearnedSDE.
            (self.entry, math.log(math.expm1(1.0 - FLOOR)) - 0.5413),
        ):
            buffer.fill_(value)
