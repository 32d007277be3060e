r"""A linear chain that is pushed at one end (arXiv:2511.12842, appendix D.2).

.. math:: dX_i = [\kappa (X_{i-1} - 2 X_i + X_{i+1}) - \gamma X_i + F \delta_{i0}] \, dt
          + \sigma \, dW_i, \qquad X_{-1} = X_0, \quad X_N = X_{N-1}:

free ends, as a halo that mirrors the outermost sites. The forces between neighbours cancel in
the sum, so that the mean displacement m is closed, whatever kappa is:

.. math:: dm = (-\gamma m + F / N) \, dt + \sigma / \sqrt N \, dB.

F acts on one site only: a longer chain has another drift, not just less noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy

from mpiflow.core.device import rule
from mpiflow.core.errors import InputError


@rule
def drift(left: float, x: float, right: float, friction: float, coupling: float) -> float:
    """Drift of a site without the force on the first one."""
    return coupling * ((left - x) + (right - x)) - friction * x


@dataclass(frozen=True)
class LinearChain:
    """Parameters of a chain; the defaults are the published ones.

    Parameters
    ----------
    sites : N, 2 or more
    force : F, on the first site
    friction : gamma > 0
    coupling : kappa, 0 or more
    noise : sigma, 0 or more

    Raises
    ------
    InputError : a parameter is not as said
    """

    sites: int
    force: float = 15.0
    friction: float = 0.1
    coupling: float = 1.0
    noise: float = 1.0

    def __post_init__(self) -> None:
        if self.sites < 2:
            raise InputError("sites", self.sites, "2 or more", "Try 10.")
        if not math.isfinite(self.force):
            raise InputError("force", self.force, "a finite number", "Try 15.")
        if not 0 < self.friction < math.inf:
            raise InputError("friction", self.friction, "a finite number above 0", "Try 0.1.")
        for name in ("coupling", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(name, getattr(self, name), "finite, 0 or more", "Try 1.")

    @property
    def longest_step(self) -> float:
        """Steps of Euler are stable below it: 2 over the largest rate, gamma + 4 kappa."""
        return 2.0 / (self.friction + 4.0 * self.coupling)

    def macroscopic(self) -> tuple[float, float, float]:
        """Slope a, bias b and diffusion c of dm = (a m + b) dt + c dB, exactly."""
        return -self.friction, self.force / self.sites, self.noise / math.sqrt(self.sites)

    def moments(self, times: np.ndarray, start: float) -> tuple[np.ndarray, np.ndarray]:
        """Exact mean and variance of m at ``times`` if it is ``start`` at 0, both (times,)."""
        slope, bias, diffusion = self.macroscopic()
        left = np.exp(slope * np.asarray(times, float))
        rest = -bias / slope
        return rest + (start - rest) * left, diffusion**2 * (left**2 - 1.0) / (2.0 * slope)

    def resting(self) -> np.ndarray:
        """Stationary mean of every site, (N,) float64."""
        bands = np.empty((2, self.sites))
        bands[0] = -self.coupling
        bands[1] = self.friction + 2.0 * self.coupling
        bands[1, [0, -1]] -= self.coupling
        push = np.zeros(self.sites)
        push[0] = self.force
        return np.asarray(scipy.linalg.solveh_banded(bands, push))
