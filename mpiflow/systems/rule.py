r"""A spin rule: what a lattice model of q states says of one site, and nothing else.

A site of the square lattice is in one of q states, 2 to 127, and its four neighbours decide how it
changes. A rule says so in one of two ways, as a plain function of numbers:

``weight(state, north, west, east, south, parameters)``
    The heat-bath weight of a state, 0 or more, for a model in equilibrium
    :math:`e^{-E(\text{state})/T}` with the energy of the site and its four bonds; a factor that
    all states share does not matter. At the rate 1 the site forgets its state and takes a new one:

    .. math:: r(\text{own} \to \text{new}) = \frac{w(\text{new})}{\sum_s w(s)} .

``rate(own, new, north, west, east, south, parameters)``
    The rate of a change itself, 0 or more per unit of time: any dynamics, also one without an
    energy. It is not asked with ``own == new``.

States are the whole numbers that an int8 array of sites holds, ``lowest`` to
``lowest + states - 1``. Both solvers ask the rule itself for its numbers, so whatever a subclass
overrides is what runs.

Examples
--------
Every site takes the state of a neighbour at the rate 1 / 4 each:

>>> @dataclass(frozen=True)
... class Voter(SpinRule):
...     states: int = 3
...
...     @staticmethod
...     def rate(own, new, north, west, east, south, parameters):
...         return 0.25 * ((north == new) + (west == new) + (east == new) + (south == new))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from mpiflow.core.errors import InputError

MOST_STATES = 127
#: Largest exponent of a Boltzmann factor of one site, so that products of a few are finite.
LARGEST_EXPONENT = 340.0


class SpinRule:
    """A model of q states on the square lattice; a system is a frozen dataclass that inherits it.

    Attributes
    ----------
    states : q, 2 to 127
    lowest : the first state; the others follow it, up to 127
    parameters : what the function gets as its last argument, a tuple of float
    weight, rate : static methods, see :mod:`mpiflow.systems.rule`: one of the two. They return 0
        to 1e150
    OBSERVABLES : what :meth:`observables` returns, and what it means
    """

    states: int
    lowest: int = 0
    weight: Any = None
    rate: Any = None

    #: Reach of the interaction: the halo a block needs.
    halo: ClassVar[int] = 1
    OBSERVABLES: ClassVar[dict[str, str]] = {
        "magnetization": "mean of the states as numbers",
        "fraction": "fraction of the sites in each state",
    }

    @property
    def parameters(self) -> tuple[float, ...]:
        """What ``weight`` or ``rate`` gets as its last argument."""
        return ()

    @property
    def values(self) -> np.ndarray:
        """The states, (q,) int8."""
        return np.arange(self.lowest, self.lowest + self.states).astype(np.int8)

    @property
    def unset(self) -> int:
        """What a site holds that was never set: no state, though 0 may be one."""
        return self.lowest - 1

    @property
    def by_rate(self) -> bool:
        """Whether the rule is given by rates, else by weights."""
        return self.rate is not None

    # -- observables ---------------------------------------------------------------

    def pair_energy(self, a: int, b: int) -> float:
        """Energy of a bond between sites in the states a and b; a rule need not have one."""
        raise NotImplementedError

    def site_energy(self, a: int) -> float:
        """Energy of a site by itself."""
        return 0.0

    def coupled(self, a: int) -> float:
        """What a field h of a site's own multiplies there: its energy is -h times this."""
        return float(a)

    def energy(self, counts: np.ndarray, bonds: np.ndarray) -> np.ndarray:
        """Energy per site from the sites in each state and the bonds between them, (B,) float64.

        Parameters
        ----------
        counts : (B, q) int64
        bonds : (B, q, q) int64, each bond once
        """
        total = np.zeros(len(counts))
        values = self.values.tolist()
        # One term after the other, so that the sum does not depend on the size of the batch.
        for i, a in enumerate(values):
            total += counts[:, i] * self.site_energy(a)
            for j, b in enumerate(values):
                if energy := self.pair_energy(a, b):
                    total += bonds[:, i, j] * energy
        return total / counts.sum(axis=1)

    def observables(self, counts: np.ndarray, bonds: np.ndarray) -> dict[str, np.ndarray]:
        """Observables of whole lattices from such counts, (B,) or (B, q) float64 each."""
        sites = counts.sum(axis=1)
        return {
            "magnetization": counts @ self.values.astype(np.int64) / sites,
            "fraction": counts / sites[:, None],
        }


def require_fractions(name: str, fractions: Sequence[float], states: int) -> None:
    """Raise unless these are the fractions of the sites in each state; ``name`` says of what."""
    fine = len(fractions) == states and all(0 <= part <= 1 for part in fractions)
    if not fine or abs(math.fsum(fractions) - 1) > 1e-9:
        allowed = f"{states} numbers, 0 or more, that add up to 1"
        raise InputError(name, list(fractions), allowed, "Leave it out for equal ones.")


# -- for the parameters of rules ------------------------------------------------------------------


def require_scalars(system: object, names: tuple[str, ...]) -> None:
    """Raise for an array in place of one of these parameters."""
    for name in names:
        if shape := np.shape(getattr(system, name)):
            remedy = "Fields of sites go to the simulation: Simulation(..., site_field=...)."
            raise InputError(name, f"an array {shape}", "a number", remedy)


def require_numbers(system: object, names: tuple[str, ...]) -> None:
    """Raise unless these parameters are finite numbers."""
    require_scalars(system, names)
    for name in names:
        if not math.isfinite(getattr(system, name)):
            raise InputError(name, getattr(system, name), "a finite number", "Try 0.1.")


def require_warm(temperature: float, largest: float) -> None:
    """Raise unless float64 holds the Boltzmann factors of energies up to ``largest``."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InputError("temperature", temperature, "a finite number above 0", "Try 1.0.")
    if largest > LARGEST_EXPONENT * temperature:
        raise InputError(
            "temperature",
            temperature,
            f"at least {largest / LARGEST_EXPONENT:.3g} with these energies of a site",
            "Colder than that nothing is left to chance.",
        )
