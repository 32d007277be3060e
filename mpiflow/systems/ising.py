r"""The nearest-neighbour Ising model with continuous-time Glauber dynamics.

.. math:: H = -J \sum_{\langle ij \rangle} s_i s_j - h \sum_i s_i, \qquad s_i = \pm 1,

each pair counted once. Spin :math:`i` flips at the rate [Glauber, J. Math.
Phys. 4, 294 (1963), heat-bath form]

.. math:: r_i = \frac{1}{1 + e^{\beta \Delta H_i}}, \qquad
          \Delta H_i = 2 s_i (J k_i + h), \qquad k_i = \sum_{j \sim i} s_j,

so the unit of time is one attempt per spin. Energies are in units of
:math:`k_B = 1`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from mpiflow.core.device import rule
from mpiflow.core.errors import InputError
from mpiflow.systems.rule import require_scalars

#: The values that the sum of the four neighbours can take.
NEIGHBOUR_SUMS = np.array([-4, -2, 0, 2, 4])
#: Critical temperature of the infinite square lattice, J = 1: sinh(2 / T) = 1.
CRITICAL_TEMPERATURE = 2.0 / np.log(1.0 + np.sqrt(2.0))
#: Number of rate classes: a neighbour sum and a spin.
CLASSES = 10


@rule
def _select(n: int, first: int, values: tuple[np.uint64, ...]) -> np.uint64:
    """``values[first + n]`` for n = 0..4, by selects, so that loops vectorise."""
    t = values[first]
    t = values[first + 1] if n == 1 else t
    t = values[first + 2] if n == 2 else t
    t = values[first + 3] if n == 3 else t
    return values[first + 4] if n == 4 else t


@rule
def resample(spin: np.int8, k: int, word: np.uint64, thresholds: tuple[np.uint64, ...]) -> np.int8:
    """The spin after a trial to flip it: it flips if the 63-bit uniform ``word >> 1`` is below
    the threshold of its class.

    ``thresholds`` are the flip probabilities of the ten classes in units of 2^-63, ordered
    as those of :meth:`Ising.flip_rates_by_opposites`; ``k`` is the sum of the neighbours.
    """
    opposite = (np.int64(4) - np.int64(spin) * k) >> 1
    down, up = _select(opposite, 0, thresholds), _select(opposite, 5, thresholds)
    threshold = up if spin > 0 else down
    return -spin if word >> np.uint64(1) < threshold else spin


@rule
def rate_class(spin: int, k: int) -> int:
    """The class 0..9 of a site: five neighbour sums of a down spin, then of an up spin."""
    return ((k + 4) >> 1) + 5 * ((spin + 1) >> 1)


@dataclass(frozen=True)
class Ising:
    """Parameters of the model.

    Parameters
    ----------
    temperature : T > 0, in units of J / k_B
    field : external field h
    coupling : J, 1 for the ferromagnet, -1 for the antiferromagnet

    Raises
    ------
    InputError : the temperature is not above 0, or a number is not finite
    """

    temperature: float
    field: float = 0.0
    coupling: float = 1.0

    #: Reach of the interaction: the halo a block needs.
    halo = 1

    def __post_init__(self) -> None:
        require_scalars(self, ("temperature", "field", "coupling"))
        if not (self.temperature > 0 and np.isfinite(self.temperature)):
            raise InputError(
                "temperature", self.temperature, "a finite number above 0", "Try 2.269 (critical)."
            )
        for name in ("field", "coupling"):
            if not np.isfinite(getattr(self, name)):
                raise InputError(name, getattr(self, name), "a finite number", "Try 0.1.")

    def up_probabilities(self) -> np.ndarray:
        """Heat-bath probability of spin up, ``p(k) = 1 / (1 + exp(-2 (J k + h) / T))``.

        Returns (5,) float64, for k = -4, -2, 0, 2, 4.
        """
        local = self.coupling * NEIGHBOUR_SUMS + self.field
        return _logistic(2.0 * local / self.temperature)

    def flip_rates(self) -> np.ndarray:
        """Flip rate of each of the ten classes of :func:`rate_class`, (10,) float64."""
        up = self.up_probabilities()
        # A down spin flips with p(k), an up spin with 1 - p(k); the latter is
        # computed directly because 1 - p loses its digits at low temperature.
        local = self.coupling * NEIGHBOUR_SUMS + self.field
        return np.concatenate([up, _logistic(-2.0 * local / self.temperature)])

    def flip_rates_by_opposites(self) -> np.ndarray:
        """The flip rates by number of opposite neighbours 0..4, first of a down spin, (10,).

        Without a field both halves are the same.
        """
        down, up = self.flip_rates().reshape(2, 5)
        return np.concatenate([down, up[::-1]])

    @staticmethod
    def observables(counts: np.ndarray) -> np.ndarray:
        """(M, rho) of whole lattices from their sites of each rate class, (B, 10) to (B, 2)."""
        spin, k = np.repeat([-1, 1], 5), np.tile(NEIGHBOUR_SUMS, 2)
        sites = counts.sum(axis=1)
        return np.stack([counts @ spin / sites, 0.5 - counts @ (spin * k) / (8.0 * sites)], axis=1)

    def short_time(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Drift and covariance of (M, rho) in a state, the limits of short times.

        The generator applied to z = (M, rho), M the magnetisation and rho the fraction of
        unsatisfied bonds:

        .. math:: \sum_i r_i \Delta_i z, \qquad \sum_i r_i \Delta_i z \, (\Delta_i z)^T, \qquad
                  \Delta_i z = \tfrac1N (-2 s_i, \; s_i k_i / 2) .

        Parameters
        ----------
        counts : (B, 10) sites of each rate class of whole lattices

        Returns
        -------
        (B, 2) float64, per unit time; (B, 3): M M, M rho, rho rho
        """
        sites = counts.sum(axis=1, keepdims=True)
        spin, k = np.repeat([-1, 1], 5), np.tile(NEIGHBOUR_SUMS, 2)
        moved, walls, rates = -2 * spin, 0.5 * spin * k, self.flip_rates()
        change = np.stack([moved, walls], axis=1)
        square = np.stack([moved**2, moved * walls, walls**2], axis=1)
        flips = counts * rates / sites
        return flips @ change, flips @ square / sites

    def energy(self, bonds: np.ndarray, spins: np.ndarray) -> np.ndarray:
        """Energy from the sum of s_i s_j over bonds and the sum of spins."""
        return -self.coupling * bonds - self.field * spins


def _logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def onsager_energy(temperature: float) -> float:
    r"""Equilibrium energy per site of the infinite lattice, J = 1, h = 0 [Onsager, 1944].

    .. math:: e = -\coth(2\beta) \left[ 1 + \tfrac{2}{\pi} (2 \tanh^2 2\beta - 1) K(k) \right],
              \qquad k = 2 \sinh(2\beta) / \cosh^2(2\beta) .

    Parameters
    ----------
    temperature : T = 1 / beta > 0, in units of J / k_B
    """
    x = 2.0 / temperature
    tanh, k = np.tanh(x), 2.0 * np.sinh(x) / np.cosh(x) ** 2
    return float(-(1.0 + 2.0 / np.pi * (2.0 * tanh**2 - 1.0) * scipy.special.ellipk(k**2)) / tanh)
