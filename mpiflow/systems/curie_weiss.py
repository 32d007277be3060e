r"""The Curie-Weiss model: every spin feels all others alike, so the magnetisation is closed.

.. math:: H = -\frac{J}{2n} \Big( \sum_i s_i \Big)^2 - h \sum_i s_i, \qquad s_i = \pm 1,

(arXiv:2511.12842, appendix D.1). Flipping :math:`s_i` costs :math:`2 s_i u_i`, and it flips at
Glauber's rate,

.. math:: u_i = \frac{J}{n} \sum_{j \ne i} s_j + h, \qquad r_i = \frac{1}{1 + e^{2 \beta s_i u_i}} :

one attempt per spin and unit of time. The number N of spins that are up is a birth-death chain of
n + 1 states. Without fluctuations :math:`\dot m = \tanh \beta (J m + h) - m`; the critical
temperature is J.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from mpiflow.core.errors import InputError


@dataclass(frozen=True)
class CurieWeiss:
    """Parameters of the model.

    Parameters
    ----------
    temperature : T > 0, in units of J / k_B
    field : external field h
    coupling : J

    Raises
    ------
    InputError : the temperature is not above 0, or a number is not finite
    """

    temperature: float
    field: float = 0.0
    coupling: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and np.isfinite(self.temperature)):
            raise InputError(
                "temperature", self.temperature, "a finite number above 0", "Try 1.1 (critical: 1)."
            )
        for name in ("field", "coupling"):
            if not np.isfinite(getattr(self, name)):
                raise InputError(name, getattr(self, name), "a finite number", "Try 0.1.")

    def heat_bath(self, sites: int) -> np.ndarray:
        """Probabilities of a spin to be up, and down, when k of the others are up.

        They are the rates of a down spin and of an up spin to flip. Returns (2, sites) float64,
        for k = 0..sites - 1.
        """
        if sites < 1:
            raise InputError("sites", sites, "1 or more", "Try 4096.")
        others = 2.0 * np.arange(sites) - (sites - 1)
        u = self.coupling * others / sites + self.field
        return np.asarray(scipy.special.expit(np.stack([2.0 * u, -2.0 * u]) / self.temperature))

    def chain(self, sites: int) -> tuple[np.ndarray, np.ndarray]:
        """Rates of N -> N + 1 and of N -> N - 1, for N = 0..sites, each (sites + 1,) float64."""
        up, down = self.heat_bath(sites)
        number = np.arange(sites + 1)
        return (sites - number) * np.append(up, 0.0), number * np.append(0.0, down)

    def energy(self, up: np.ndarray, sites: int) -> np.ndarray:
        """H of a system of which ``up`` spins are up, float64."""
        total = 2.0 * np.asarray(up) - sites
        return -self.coupling * total**2 / (2.0 * sites) - self.field * total

    def drift(self, m: np.ndarray | float) -> np.ndarray:
        """dm/dt of infinitely many spins."""
        m = np.asarray(m)
        return np.asarray(np.tanh((self.coupling * m + self.field) / self.temperature) - m)

    def fixed_point(self) -> float:
        """The magnetisation of infinitely many spins at rest: the largest, if there are several."""
        grid = np.linspace(1.0, -1.0, 4001)
        sign = np.sign(self.drift(grid))
        i = int(np.argmax(sign[1:] != sign[0]))
        return float(scipy.optimize.brentq(lambda m: float(self.drift(m)), grid[i + 1], grid[i]))
