r"""Networks for K(m, T) and s'(m, T) of :class:`~mpiflow.learn.onsagerflow.model.OnsagerFlow`.

Two small networks f and g of m and 1 / T; of :math:`m^2` if the law is symmetric:

.. math:: \ln \kappa = f(m, T), \qquad
          \beta s'(m, T) = \beta s'(0, T) + \int_0^m \frac{\rho(m', T)}{1 - m'^2}\, dm',
          \qquad \rho = e^g \text{ (monotone)}, \quad \rho = 1 + g \text{ (not)}.

So K > 0; s' rises in m by construction with :math:`e^g`, which can be any law that does; and an
even g makes s' odd, with s'(0) = 0. At f = g = 0 spins are free. The ends of
:math:`\rho`, constants over :math:`1 \mp m`, are integrated exactly. The rest is smooth up to the
ends: Gauss and Legendre's rule, and one rule for s too,
:math:`\beta s = \int_0^m (m - m') \beta s''\, dm'`.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import xlogy
from torch import nn

from mpiflow.learn.training import mlp

DOUBLE = torch.float64
#: Of 1 / T against m: functions bend less between temperatures than between values of m.
BEND = 0.3
#: Nodes of the integral; values at a time.
NODES, VALUES = 32, 2**19


class Networks(nn.Module):
    """The functions f and g, and s'(0) if the law is not symmetric; float64.

    Parameters
    ----------
    width : of two hidden layers
    monotone, symmetric : see the module
    """

    def __init__(self, width: int, monotone: bool, symmetric: bool) -> None:
        super().__init__()
        self.monotone, self.symmetric = monotone, symmetric
        sizes = (2, width, width, 1)
        self.of_k, self.of_s = (mlp(sizes, zero_last=True).double() for _ in range(2))
        self.offset = None if symmetric else mlp((1, width, 1), zero_last=True).double()

    @torch.no_grad()
    def set_start(self, value: float) -> None:
        """Let f and g of untrained networks be this constant."""
        for network in (self.of_k, self.of_s):
            last = list(network.parameters())[-1]
            last.fill_(value)

    def logarithm(self, m: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """ln kappa of m and of the scaled 1 / T, of one shape."""
        return self._of(self.of_k, m, z)

    def stiffness(self, m: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """rho, which is beta s'' (1 - m^2)."""
        g = self._of(self.of_s, m, z)
        return torch.exp(g) if self.monotone else 1.0 + g

    def middle(self, z: torch.Tensor) -> torch.Tensor:
        """beta s'(0)."""
        if self.offset is None:
            return torch.zeros_like(z)
        value: torch.Tensor = self.offset(z[..., None])[..., 0]
        return value

    def excess(self, m: torch.Tensor, z: torch.Tensor, low: torch.Tensor, high: torch.Tensor
               ) -> torch.Tensor:  # fmt: skip
        """beta s'' less what goes with the ends, rho(-1) and rho(1); for |m| < 1."""
        ends = 0.5 * (high * (1.0 + m) + low * (1.0 - m))
        return (self.stiffness(m, z) - ends) / ((1.0 - m) * (1.0 + m))

    def _of(self, network: nn.Module, m: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        first = 2.0 * m * m - 1.0 if self.symmetric else m
        value: torch.Tensor = network(torch.stack((first, BEND * z), dim=-1))[..., 0]
        return value

    # -- for the model --------------------------------------------------------------------------

    def log_prefactor(self, m: np.ndarray, z: np.ndarray, slope: bool = False) -> np.ndarray:
        """ln kappa, or its derivative by m, of m and z broadcast together."""
        m_t, z_t = _tensors(m, z)
        with torch.set_grad_enabled(slope):
            value = self.logarithm(m_t.requires_grad_(slope), z_t)
            if slope:
                (value,) = torch.autograd.grad(value.sum(), m_t)
        return value.numpy()

    @torch.no_grad()
    def entropy(self, m: np.ndarray, z: np.ndarray, integral: bool = False) -> np.ndarray:
        """beta s', or its integral from 0, of m (inside -1 to 1) and z broadcast together."""
        m_t, z_t = _tensors(m, z)
        high, low = (self.stiffness(torch.full_like(z_t, end), z_t) for end in (1.0, -1.0))
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        nodes, weights = 0.5 * (nodes + 1.0), 0.5 * weights
        weights = weights * (1.0 - nodes) if integral else weights
        rest = torch.empty_like(m_t)
        flat = [a.reshape(-1, 1) for a in (m_t, z_t, low, high, rest)]
        t, w = torch.as_tensor(nodes), torch.as_tensor(weights)
        for part in zip(*(a.split(VALUES // NODES) for a in flat), strict=True):
            at, *others, out = part
            inside = at * t
            out[:, 0] = self.excess(inside, *(a.expand_as(inside) for a in others)) @ w
        above, below = (xlogy(1.0 + a, 1.0 + a) - a if integral else np.log1p(a)
                        for a in (m_t.numpy(), -m_t.numpy()))  # fmt: skip
        side = 1.0 if integral else -1.0
        ends = 0.5 * (low.numpy() * above + side * high.numpy() * below)
        power = 2 if integral else 1
        first = self.middle(z_t).numpy() * (m_t.numpy() if integral else 1.0)
        return first + ends + (rest * m_t**power).numpy()


def _tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    """Arrays broadcast together."""
    return [torch.tensor(a, dtype=DOUBLE) for a in np.broadcast_arrays(*arrays)]
