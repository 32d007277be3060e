"""Hops of vacancies as a record: replayed, and as displacements of atoms.

A row of ``hop`` is x, y, z of the vacancy before the hop, modulo the lattice, the number of
the direction, and the species of the atom that takes its place
(:class:`mpiflow.solvers.vacancy.events.Events`). Hops of tiles that are apart may stand in
any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.systems.alloy import DIRECTIONS, VACANCY


@kernel
def _replay(grid: np.ndarray, hops: np.ndarray, labels: np.ndarray, moved: np.ndarray) -> int:
    sides = grid.shape
    for r in range(hops.shape[0]):
        x, y, z, d = hops[r, 0], hops[r, 1], hops[r, 2], hops[r, 3]
        i = (x + DIRECTIONS[d, 0]) % sides[0]
        j = (y + DIRECTIONS[d, 1]) % sides[1]
        k = (z + DIRECTIONS[d, 2]) % sides[2]
        if grid[x, y, z] != VACANCY or grid[i, j, k] != hops[r, 4] or grid[i, j, k] == VACANCY:
            return r
        grid[x, y, z], grid[i, j, k] = grid[i, j, k], VACANCY
        atom, vacancy = labels[i, j, k], labels[x, y, z]
        labels[x, y, z], labels[i, j, k] = atom, vacancy
        for a in range(3):
            moved[atom, a] -= DIRECTIONS[d, a]
            moved[vacancy, a] += DIRECTIONS[d, a]
    return hops.shape[0]


class Tracers:
    """Atoms and vacancies that are followed through a record of hops.

    Parameters
    ----------
    grid : (nx, ny, nz) int8, the whole lattice before the first hop

    Attributes
    ----------
    grid : the lattice after the hops so far
    species : (sites,) int8, of each particle, in C order of the places it started from
    moved : (sites, 3) int64, how far it has come, in steps of the grid, periods not taken off
    """

    def __init__(self, grid: np.ndarray) -> None:
        self.grid = np.array(grid, np.int8)
        places = self.grid >= 0
        self.species = self.grid[places]
        self._labels = np.full(grid.shape, -1, np.int64)
        self._labels[places] = np.arange(len(self.species))
        self.moved = np.zeros((len(self.species), 3), np.int64)

    def follow(self, hops: np.ndarray | Sequence[np.ndarray]) -> None:
        """Make the hops of a record, (n, 5) int64, or of several in order.

        Raises
        ------
        InputError : a hop that is not possible, so the record is of another run
        """
        for part in [hops] if isinstance(hops, np.ndarray) else hops:
            done = _replay(self.grid, np.ascontiguousarray(part), self._labels, self.moved)
            if done < len(part):
                raise InputError(
                    "hops",
                    part[done].tolist(),
                    "a vacancy and the atom that hops into it",
                    "The record starts from another state.",
                )

    def mean_square(self, elements: int) -> np.ndarray:
        r"""Mean of :math:`|\Delta r|^2` of vacancies and of each element, (1 + elements,), steps^2.

        The tracer diffusion coefficient is this, times the square of half a lattice constant,
        over :math:`6 t`.
        """
        square = (self.moved**2).sum(axis=1)
        total = np.bincount(self.species, square, 1 + elements)
        with np.errstate(invalid="ignore"):
            return total / np.bincount(self.species, minlength=1 + elements)
