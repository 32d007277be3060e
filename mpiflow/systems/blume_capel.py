r"""The Blume-Capel model: spins 1 with a crystal field, heat-bath dynamics.

.. math:: H = -J \sum_{\langle ij \rangle} s_i s_j + D \sum_i s_i^2 - h \sum_i s_i,
          \qquad s_i = -1, 0, 1,

each pair counted once [Blume, Phys. Rev. 141, 517 (1966); Capel, Physica 32, 966 (1966)]. A site
takes a new state at the rate 1, with the probability of its Boltzmann weight among the four
neighbours, so the unit of time is one attempt per site. :math:`D \to -\infty` is the Ising model.
On the square lattice without a field the line of continuous transitions, which starts there, ends
in a tricritical point near D = 1.966, T = 0.608, J = 1; a line of first order goes on to D = 2 at
T = 0 [Beale, Phys. Rev. B 33, 1717 (1986); Kwak et al., Phys. Rev. E 92, 022134 (2015)].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mpiflow.systems.rule import SpinRule, require_numbers, require_warm


@dataclass(frozen=True)
class BlumeCapel(SpinRule):
    """Parameters of the model.

    Parameters
    ----------
    temperature : T > 0, in units of J / k_B
    crystal_field : D, the energy of a spin that is not 0
    coupling : J
    field : external field h
    """

    temperature: float
    crystal_field: float = 0.0
    coupling: float = 1.0
    field: float = 0.0

    states = 3
    lowest = -1
    OBSERVABLES = {  # noqa: RUF012 - as in the base
        "energy": "energy per site",
        "magnetization": "mean spin",
        "density": "mean square of the spins, the fraction of spins that are not 0",
        "fraction": "fraction of the sites in each state, from -1 on",
    }

    def __post_init__(self) -> None:
        require_numbers(self, ("crystal_field", "coupling", "field"))
        largest = 4.0 * abs(self.coupling) + abs(self.crystal_field) + abs(self.field)
        require_warm(self.temperature, largest)

    @property
    def parameters(self) -> tuple[float, ...]:
        return self.temperature, self.coupling, self.crystal_field, self.field

    @staticmethod
    def weight(
        state: int, north: int, west: int, east: int, south: int, parameters: tuple[float, ...]
    ) -> float:
        temperature, coupling, crystal_field, field = parameters
        local = coupling * (north + west + east + south) + field
        return math.exp((local * state - crystal_field * state * state) / temperature)

    def pair_energy(self, a: int, b: int) -> float:
        return -self.coupling * a * b

    def site_energy(self, a: int) -> float:
        return self.crystal_field * a * a - self.field * a

    def observables(self, counts: np.ndarray, bonds: np.ndarray) -> dict[str, np.ndarray]:
        sites = counts.sum(axis=1)
        return {
            "energy": self.energy(counts, bonds),
            "magnetization": (counts[:, 2] - counts[:, 0]) / sites,
            "density": (counts[:, 2] + counts[:, 0]) / sites,
            "fraction": counts / sites[:, None],
        }
