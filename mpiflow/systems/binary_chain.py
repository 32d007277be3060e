r"""A chain of atoms of two species on a line (Farmer, Luskin, Plechac, Simpson; "the paper" below).

Sites i = 1..N have a position :math:`x_i`, the first one at 0, and a spin :math:`\sigma_i`, +1 for
species A and -1 for species B. The first and the last spin never change. All pairs within the
cut-off attract each other, and adjacent ones are confined, so that the chain stays whole:

.. math:: V(x, \sigma) = \sum_{i<j} \phi_{\sigma_i \sigma_j}(|x_i - x_j|)
          + \sum_i c(|x_{i+1} - x_i|).

The pair potential is a soft-core 4-2 potential, cut off so that it and its slope end at 0
(equations (A.1) and (A.2)),

.. math:: \phi(r) = 4 \lambda^2 A (u^{-2} - u^{-1}), \quad
          u = \tfrac12 (1 - \lambda)^2 + 2 (r / r_{eq})^2, \quad
          \phi_{cut}(r) = \phi(r) - \phi(r_c) - \phi'(r_c) (r - r_c),

whose minimum is :math:`-\lambda^2 A` at u = 2, next to :math:`r_{eq}`. The confinement (A.3) is
:math:`c(r) = (r / r_f)^4 / 4 - r / r_f + 3/4` beyond :math:`r_f`. In spins (2.6)

.. math:: V = -\sum_{i<j} J_{ij} \sigma_i \sigma_j + \sum_i h_i \sigma_i + f, \quad
          J = \tfrac14 (2 \phi_{AB} - \phi_{AA} - \phi_{BB}), \quad
          h_i = \tfrac14 \sum_{j \ne i} (\phi_{AA} - \phi_{BB}).

Lengths and energies are in the units of the paper; ``beta`` is 1 over :math:`k_B T` in them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mpiflow.core.device import rule
from mpiflow.core.errors import InputError


class Pair(NamedTuple):
    """The potential of a pair of species, as kernels take it.

    Attributes
    ----------
    scale : 4 lambda^2 A
    core, stretch : u = core + stretch r^2
    cutoff : r_c
    at_cutoff, slope : phi and its derivative there, without the cut
    """

    scale: float
    core: float
    stretch: float
    cutoff: float
    at_cutoff: float
    slope: float


@rule
def pair_energy(r: float, pair: Pair) -> float:
    """phi_cut at the distance r >= 0. Without branches, so that loops over it vectorise."""
    v = 1.0 / (pair.core + pair.stretch * r * r)
    phi = pair.scale * (v * v - v) - pair.at_cutoff - pair.slope * (r - pair.cutoff)
    return phi if r < pair.cutoff else 0.0


@rule
def pair_terms(r: float, pair: Pair) -> tuple[float, float, float]:
    """phi_cut and its first two derivatives at the distance r >= 0; the second jumps at r_c."""
    v = 1.0 / (pair.core + pair.stretch * r * r)
    phi = pair.scale * (v * v - v) - pair.at_cutoff - pair.slope * (r - pair.cutoff)
    du = 2.0 * pair.stretch * r
    by_u = pair.scale * v * v * (1.0 - 2.0 * v)
    by_u_twice = pair.scale * v * v * v * (6.0 * v - 2.0)
    first = by_u * du - pair.slope
    second = by_u_twice * du * du + by_u * 2.0 * pair.stretch
    inside = r < pair.cutoff
    return phi if inside else 0.0, first if inside else 0.0, second if inside else 0.0


@rule
def confinement_terms(r: float, radius: float) -> tuple[float, float, float]:
    """The confinement c and its first two derivatives; 0 up to the radius. The second jumps."""
    q = r / radius
    inside = q <= 1.0
    energy = 0.25 * q * q * q * q - q + 0.75
    first, second = (q * q * q - 1.0) / radius, 3.0 * q * q / (radius * radius)
    return 0.0 if inside else energy, 0.0 if inside else first, 0.0 if inside else second


@dataclass(frozen=True)
class BinaryChain:
    """Parameters of a chain; the defaults are those of the paper's test problem.

    Parameters
    ----------
    sites : N, even, 6 or more
    beta : inverse temperature, above 0
    depth_aa, depth_bb, depth_ab : A of pairs of A, of B, and of both; above 0
    length_aa, length_bb, length_ab : r_eq of them, above 0
    softening : lambda, above 0 and at most 1
    cutoff : r_c, longer than every r_eq
    confinement : r_f, at least the longest r_eq; infinity for none

    Raises
    ------
    InputError : a parameter is not as said
    """

    sites: int
    beta: float = 80.0
    depth_aa: float = 0.2
    depth_bb: float = 0.2
    depth_ab: float = 0.18
    length_aa: float = 2.6
    length_bb: float = 2.6
    length_ab: float = 2.55
    softening: float = 0.99
    cutoff: float = 10.5
    confinement: float = 3.825

    def __post_init__(self) -> None:
        if self.sites < 6 or self.sites % 2:
            raise InputError("sites", self.sites, "an even number, 6 or more", "Try 32.")
        positive = ["beta"] + [f"{a}_{b}" for a in ("depth", "length") for b in ("aa", "bb", "ab")]
        for name in positive:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                default = type(self).__dataclass_fields__[name].default
                raise InputError(name, value, "a finite number above 0", f"Try {default:g}.")
        if not 0 < self.softening <= 1:
            raise InputError("softening", self.softening, "above 0, at most 1", "Try 0.99.")
        longest = max(self.length_aa, self.length_bb, self.length_ab)
        if not longest < self.cutoff < math.inf:
            allowed = f"finite, above {longest:g}, the longest bond"
            raise InputError("cutoff", self.cutoff, allowed, "Try 10.5.")
        if not longest <= self.confinement:  # and no number
            allowed = f"{longest:g} or more, the longest bond"
            raise InputError("confinement", self.confinement, allowed, "Try 3.825.")

    @property
    def bonds_within(self) -> int:
        """How many shells of neighbours the cut-off reaches in a chain at rest."""
        shortest = min(self.length_aa, self.length_bb, self.length_ab)
        return math.ceil(self.cutoff / (0.85 * shortest))

    @property
    def one_species_like_the_other(self) -> bool:
        """Whether A and B attract their own kind alike, so that all h_i are 0."""
        return (self.depth_aa, self.length_aa) == (self.depth_bb, self.length_bb)

    def pairs(self) -> tuple[Pair, Pair, Pair]:
        """The potentials of the pairs AA, BB and AB."""
        return (
            self._pair(self.depth_aa, self.length_aa),
            self._pair(self.depth_bb, self.length_bb),
            self._pair(self.depth_ab, self.length_ab),
        )

    def _pair(self, depth: float, length: float) -> Pair:
        scale = 4.0 * self.softening**2 * depth
        core, stretch = 0.5 * (1.0 - self.softening) ** 2, 2.0 / length**2
        v = 1.0 / (core + stretch * self.cutoff**2)
        slope = scale * v * v * (1.0 - 2.0 * v) * 2.0 * stretch * self.cutoff
        return Pair(scale, core, stretch, float(self.cutoff), scale * (v * v - v), slope)

    # -- the whole chain at once: the plain form of what solvers do ---------------------

    def couplings(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """J (N, N) with zeros on the diagonal, h (N,), and f of (2.6), for positions (N,)."""
        r = abs(x[:, None] - x[None, :])
        aa, bb, ab = (pair_energies(r, pair) for pair in self.pairs())
        apart = ~np.eye(len(x), dtype=bool)
        coupling = 0.25 * (2.0 * ab - aa - bb) * apart
        own = 0.25 * ((aa - bb) * apart).sum(axis=1)
        rest = 0.125 * ((aa + bb + 2.0 * ab) * apart).sum() + self._confined(x)
        return coupling, own, float(rest)

    def energy(self, x: np.ndarray, spins: np.ndarray) -> float:
        """V of (2.1), with the confinement; ``spins`` are -1 and 1, (N,)."""
        total = self._confined(x)
        aa, bb, ab = self.pairs()
        for i in range(len(x)):
            for j in range(i + 1, len(x)):
                pair = ab if spins[i] != spins[j] else aa if spins[i] > 0 else bb
                total += float(pair_energies(abs(x[j] - x[i]), pair))
        return total

    def exchange_energy(self, x: np.ndarray, spins: np.ndarray, i: int, j: int) -> float:
        """V after the spins of i and j are exchanged, less V before (2.8)."""
        coupling, own, _ = self.couplings(x)
        others = np.ones(len(x), bool)
        others[[i, j]] = False
        inner = -((coupling[i] - coupling[j]) * spins)[others].sum() + own[i] - own[j]
        return float((spins[j] - spins[i]) * inner)

    def _confined(self, x: np.ndarray) -> float:
        q = abs(np.diff(x)) / self.confinement
        return float(np.where(q > 1, 0.25 * q**4 - q + 0.75, 0.0).sum())

    def alternating(self, amount: float = 1.0) -> np.ndarray:
        """The start of the paper, -a, a, -a ... a, (N,) float64."""
        out = np.full(self.sites, float(amount))
        out[::2] *= -1.0
        return out


def pair_energies(r: np.ndarray, pair: Pair) -> np.ndarray:
    """phi_cut of many distances."""
    v = 1.0 / (pair.core + pair.stretch * np.asarray(r) ** 2)
    phi = pair.scale * (v * v - v) - pair.at_cutoff - pair.slope * (r - pair.cutoff)
    return np.where(r < pair.cutoff, phi, 0.0)
