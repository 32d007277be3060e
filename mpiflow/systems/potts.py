r"""The q-state Potts model with heat-bath dynamics.

.. math:: H = -J \sum_{\langle ij \rangle} \delta(s_i, s_j) - h \sum_i \delta(s_i, 0),
          \qquad s_i = 0, \dots, q - 1,

each pair counted once [Potts, Math. Proc. Camb. Phil. Soc. 48, 106 (1952); Wu, Rev. Mod. Phys. 54,
235 (1982)]. A site takes a new state at the rate 1, with the probability of its Boltzmann weight
among the four neighbours, so the unit of time is one attempt per site. Two states are the Ising
model with half the coupling and half the field, state 0 for up.

On the infinite square lattice without a field it orders at :math:`T_c = J / \ln(1 + \sqrt q)`,
continuously for q = 2, 3, 4 and with a jump of the energy for more. Energies are in units of
:math:`k_B = 1`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.systems.rule import MOST_STATES, SpinRule, require_numbers, require_warm


@dataclass(frozen=True)
class Potts(SpinRule):
    """Parameters of the model.

    Parameters
    ----------
    temperature : T > 0, in units of J / k_B
    states : q, 2 to 127
    coupling : J, 1 for the ferromagnet, -1 for the antiferromagnet
    field : h, which favours the state 0

    Raises
    ------
    InputError : a parameter is not as said
    """

    temperature: float
    states: int = 3
    coupling: float = 1.0
    field: float = 0.0

    OBSERVABLES = {  # noqa: RUF012 - as in the base
        "energy": "energy per site",
        "magnetization": "order parameter (q max fraction - 1) / (q - 1)",
        "fraction": "fraction of the sites in each state",
    }

    def __post_init__(self) -> None:
        require_numbers(self, ("coupling", "field"))
        require_warm(self.temperature, 2.0 * abs(self.coupling) + abs(self.field))
        if not 2 <= self.states <= MOST_STATES:
            raise InputError("states", self.states, f"2 to {MOST_STATES}", "Try 3.")

    @property
    def parameters(self) -> tuple[float, ...]:
        """Boltzmann factors: of 0 to 4 neighbours in the same state, and of the field."""
        beta = 1.0 / self.temperature
        bonds = (math.exp(beta * self.coupling * (equal - 2)) for equal in range(5))
        return (*bonds, math.exp(beta * self.field))

    @staticmethod
    def weight(
        state: int, north: int, west: int, east: int, south: int, parameters: tuple[float, ...]
    ) -> float:
        equal = (north == state) + (west == state) + (east == state) + (south == state)
        return parameters[equal] * (parameters[5] if state == 0 else 1.0)

    def pair_energy(self, a: int, b: int) -> float:
        return -self.coupling if a == b else 0.0

    def site_energy(self, a: int) -> float:
        return -self.field if a == 0 else 0.0

    def coupled(self, a: int) -> float:
        return 1.0 if a == 0 else 0.0

    def observables(self, counts: np.ndarray, bonds: np.ndarray) -> dict[str, np.ndarray]:
        sites, q = counts.sum(axis=1), self.states
        return {
            "energy": self.energy(counts, bonds),
            "magnetization": (q * counts.max(axis=1) - sites) / ((q - 1) * sites),
            "fraction": counts / sites[:, None],
        }


def critical_temperature(states: int) -> float:
    """Transition temperature of the infinite square lattice, J = 1, h = 0, any q >= 2."""
    return 1.0 / math.log1p(math.sqrt(states))


def critical_energy(states: int) -> float:
    r"""Energy per site there, :math:`-(1 + 1 / \sqrt q)`: exact up to q = 4, by duality.

    For more states it is the mean of the energies of the two phases, which :func:`latent_heat`
    tells apart.
    """
    return -(1.0 + 1.0 / math.sqrt(states))


def latent_heat(states: int) -> float:
    r"""Jump of the energy per site at the transition, J = 1; 0 up to q = 4 [Baxter, 1973].

    .. math:: 2 \left(1 + \tfrac1{\sqrt q}\right) \tanh \tfrac\Theta2
              \prod_{n=1}^\infty \tanh^2 n \Theta, \qquad 2 \cosh \Theta = \sqrt q .
    """
    if states <= 4:
        return 0.0
    theta = math.acosh(math.sqrt(states) / 2.0)
    terms = math.prod(math.tanh(n * theta) ** 2 for n in range(1, 2 + int(20.0 / theta)))
    return 2.0 * (1.0 + 1.0 / math.sqrt(states)) * math.tanh(theta / 2.0) * terms
