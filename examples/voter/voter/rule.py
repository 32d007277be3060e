r"""The noisy voter model on the square lattice.

A site in the state a takes the state b at the rate

.. math:: r(a \to b) = \tfrac14 \, n_b + \epsilon ,

n_b of its four neighbours being in the state b: it copies one of them at the rate 1, and each of
the other opinions comes from nowhere at the rate epsilon [Granovsky and Madras, Stoch. Proc. Appl.
55, 23 (1995)]. Without noise one opinion wins at last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpiflow import InputError, SpinRule


@dataclass(frozen=True)
class Voter(SpinRule):
    """Parameters of the model.

    Parameters
    ----------
    states : opinions, 2 to 127
    noise : epsilon, the rate at which an opinion comes from nowhere
    """

    states: int = 2
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise InputError("noise", self.noise, "a finite number, 0 or more", "Try 0.01.")

    @property
    def parameters(self) -> tuple[float, ...]:
        return (self.noise,)

    @staticmethod
    def rate(
        own: int,
        new: int,
        north: int,
        west: int,
        east: int,
        south: int,
        parameters: tuple[float, ...],
    ) -> float:
        like = (north == new) + (west == new) + (east == new) + (south == new)
        return 0.25 * like + parameters[0]
