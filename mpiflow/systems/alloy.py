r"""Body-centred cubic alloys whose atoms move by hops of vacancies.

The sites are the points of the integer grid whose three coordinates have equal parity, the
spacing of the grid being half a lattice constant: a box of L^3 cubic cells is a periodic
grid of (2 L)^3 points, n = 2 L^3 of them sites. Sites with even coordinates are *corners*,
those with odd ones *centres* of cells; the eight nearest neighbours of a site are all of the
other kind.

A vacancy changes places with one of its eight neighbours, an atom, at the rate

.. math:: k = k_0 \, e^{-E / k_B T}, \qquad k_0 = 10^{13} / \mathrm{s},

the barrier E depending on the 112 sites within :data:`CUTOFF` of the vacancy [Xing, Rupert,
Pan, Cao, Nat. Commun. 15, 3879 (2024)]. Vacancies do not change places with each other.

Species are numbers: 0 is a vacancy, 1, 2, ... the elements; :data:`NOT_A_SITE` marks grid
points that are no sites. Arrays are indexed (x, y, z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpiflow.core.errors import InputError

VACANCY, NOT_A_SITE = 0, -1

#: Boltzmann's constant in eV / K, and the prefactor of all rates in 1 / s.
BOLTZMANN = 8.617333e-5
ATTEMPT_FREQUENCY = 1e13
#: Lattice constant of NbMoTa in Angstrom; one step of the grid is half of it.
LATTICE_CONSTANT = 3.24
ELEMENTS = ("Nb", "Mo", "Ta")

#: Squared radius of the surroundings that set a barrier, in steps of the grid: 7.25 Angstrom.
CUTOFF = 20
#: Steps of the grid along an axis from a vacancy to the farthest site of its surroundings.
REACH = 4
#: Nearest neighbours of a site.
NEIGHBOURS = 8


def _surroundings() -> np.ndarray:
    axis = np.arange(-REACH, REACH + 1)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    square = (points**2).sum(axis=1)
    same = (points % 2 == points[:, :1] % 2).all(axis=1)
    points, square = points[same], square[same]
    near = (square > 0) & (square <= CUTOFF)
    return points[near][np.argsort(square[near], kind="stable")]


#: The 112 sites around a vacancy, (112, 3) int64: by distance, then by x, y, z.
SURROUNDINGS = _surroundings()
#: The eight hops of a vacancy, (8, 3) int64: (-, -, -), (-, -, +), ..., (+, +, +). They are
#: also the first eight of the surroundings.
DIRECTIONS = SURROUNDINGS[:NEIGHBOURS]


def _turned(points: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Points after the turn about z, and the mirror at z = 0, that bring a hop to (1, 1, 1)."""
    x, y, z = points.T
    turns = {(1, 1): (x, y), (-1, -1): (-x, -y), (-1, 1): (y, -x), (1, -1): (-y, x)}
    return np.stack([*turns[direction[0], direction[1]], z * direction[2]], axis=1)


def index_of(points: np.ndarray) -> np.ndarray:
    """Numbers in :data:`SURROUNDINGS` of points (..., 3), -1 for the origin and beyond."""
    table = np.full((4 * REACH + 1,) * 3, -1)
    table[tuple((SURROUNDINGS + 2 * REACH).T)] = np.arange(len(SURROUNDINGS))
    return table[tuple(np.moveaxis(points + 2 * REACH, -1, 0))]


def _orientations() -> np.ndarray:
    out = np.empty((NEIGHBOURS, len(SURROUNDINGS)), np.int64)
    for direction, row in zip(DIRECTIONS, out, strict=True):
        row[index_of(_turned(SURROUNDINGS, direction))] = np.arange(len(SURROUNDINGS))
    return out


#: Which site of the surroundings takes each place after the turn that brings hop d to
#: (1, 1, 1): (8, 112) int64. The turns are those of the published network: about z, then a
#: mirror of z.
ORIENTATIONS = _orientations()


def is_site(shape: tuple[int, ...], origin: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """Which points of a box are sites, (nx, ny, nz) bool; ``origin`` is the box's first point."""
    x, y, z = np.ogrid[tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))]
    return ((x - y) % 2 == 0) & ((x - z) % 2 == 0)


# -- order parameters ----------------------------------------------------------------------


def pair_names(species: Sequence[str]) -> list[str]:
    """Names of the unlike and like pairs: NbNb, NbMo, NbTa, MoMo, MoTa, TaTa."""
    return [a + b for i, a in enumerate(species) for b in species[i:]]


def bonds_of(species: np.ndarray, cells: Sequence[int], kinds: int) -> np.ndarray:
    """Bonds by species of the corner and of the centre, (kinds, kinds) int64.

    Parameters
    ----------
    species : of all sites of (Lx, Ly, Lz) cells in C order, (2 Lx Ly Lz,)
    """
    x, y, z = cells
    planes = species.reshape(2 * x, y, z)
    corners, centres = planes[::2].astype(np.int64) * kinds, planes[1::2]
    counts = np.zeros(kinds * kinds, np.int64)
    for shift in np.ndindex(2, 2, 2):
        ends = corners + np.roll(centres, shift, axis=(0, 1, 2))
        counts += np.bincount(ends.ravel(), minlength=kinds * kinds)
    return counts.reshape(kinds, kinds)


def neighbour_numbers(bonds: np.ndarray) -> np.ndarray:
    """Numbers N_ij of neighbours j of all atoms i, from bonds (..., S, S) corner x centre.

    Exact: every row of species i sums to 8 n_i, the neighbours of its n_i atoms.
    """
    return bonds + np.swapaxes(bonds, -1, -2)


def species_numbers(bonds: np.ndarray) -> np.ndarray:
    """Numbers n_i of sites of each species, (..., S) int64, from bonds (..., S, S)."""
    eights = neighbour_numbers(bonds).sum(axis=-1)
    if np.any(eights % NEIGHBOURS):
        raise AssertionError("the bonds do not add up to eight for each site")
    return eights // NEIGHBOURS


def short_range_order(bonds: np.ndarray) -> np.ndarray:
    r"""Order parameters of the pairs of elements, (..., pairs) float64, as published.

    .. math:: \delta_{ij} = \frac{N_{ij}}{n_i} - \frac{8}{S}, \qquad i \le j,

    for S elements, in the order of :func:`pair_names` [arXiv:2511.12842, equation (30)]: the
    mean number of neighbours j of an atom i, the first element of the pair, beyond 8 / S. For
    each i, the sum over all j is minus the mean number of vacancies among the neighbours of i,
    exactly.

    With equal numbers of atoms of all elements it is 0 in a random mixture, positive where i
    and j attract each other, and the same for j, i. For any other composition none of the three
    holds: with c_j the share of j among all sites, a random mixture has 8 (c_j - 1 / S), and
    :math:`n_i (\delta_{ij} + 8 / S) = n_j (\delta_{ji} + 8 / S)`. Attraction shows in the sign of
    :func:`warren_cowley`, whatever the composition: :math:`\delta_{ij} = 8 c_j (1 -
    \alpha_{ij}) - 8 / S`. Values lie between -8 / S and min(8, 8 n_j / n_i) - 8 / S; NaN where
    there is no atom i.

    Parameters
    ----------
    bonds : (..., S + 1, S + 1) int64, bonds by species of the corner and of the centre
    """
    numbers, counts = neighbour_numbers(bonds)[..., 1:, 1:], species_numbers(bonds)[..., 1:]
    rows, columns = np.triu_indices(numbers.shape[-1])
    elements = numbers.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return numbers[..., rows, columns] / counts[..., rows] - NEIGHBOURS / elements


def warren_cowley(bonds: np.ndarray) -> np.ndarray:
    r"""Warren-Cowley parameters of the pairs of elements, (..., pairs) float64.

    .. math:: \alpha_{ij} = 1 - \frac{N_{ij}}{8 n_i c_j}

    with c_j the share of j among all sites [Cowley, Phys. Rev. 77, 669 (1950)]. For any
    composition it is the same for j, i, 0 in a random mixture of many sites, negative where i
    and j attract each other, and between 1 - 1 / max(c_i, c_j) and 1, which means no such pair;
    NaN where an element has no atoms.

    Parameters
    ----------
    bonds : (..., S + 1, S + 1) int64, bonds by species of the corner and of the centre
    """
    numbers, counts = neighbour_numbers(bonds), species_numbers(bonds)
    shares = counts / counts.sum(axis=-1, keepdims=True)
    rows, columns = np.triu_indices(numbers.shape[-1] - 1)
    rows, columns = rows + 1, columns + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = NEIGHBOURS * counts[..., rows] * shares[..., columns]
        return 1.0 - numbers[..., rows, columns] / expected


def long_range_order(bonds: np.ndarray) -> np.ndarray:
    r"""B2 order of each element, (..., S): (corners - centres) / (corners + centres)."""
    corners, centres = bonds.sum(axis=-1)[..., 1:], bonds.sum(axis=-2)[..., 1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (corners - centres) / (corners + centres)


def row_sums(sro: np.ndarray, elements: int) -> np.ndarray:
    """Sums over all partners of each element, (..., S), from order parameters (..., pairs).

    For equal numbers of atoms of all elements, where delta_ij = delta_ji.
    """
    rows, columns = np.triu_indices(elements)
    matrix = np.empty((*sro.shape[:-1], elements, elements))
    matrix[..., rows, columns] = sro
    matrix[..., columns, rows] = sro
    return matrix.sum(axis=-1)


# -- the system ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Alloy:
    """Parameters of the alloy but its barriers.

    Parameters
    ----------
    temperature : in K, above 0
    elements : names of species 1, 2, ...

    Raises
    ------
    InputError : the temperature is not above 0, or names of elements are none
    """

    temperature: float
    elements: tuple[str, ...] = ELEMENTS

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and np.isfinite(self.temperature)):
            raise InputError(
                "temperature", self.temperature, "a finite number of K above 0", "Try 2000."
            )
        if not 1 <= len(self.elements) <= 100 or len(set(self.elements)) < len(self.elements):
            raise InputError("elements", self.elements, "different names", "Try Nb, Mo, Ta.")

    @property
    def beta(self) -> float:
        """1 / (k_B T) in 1 / eV."""
        return 1.0 / (BOLTZMANN * self.temperature)
