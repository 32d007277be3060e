"""Exact laws of one vacancy and one foreign atom on a small body-centred cubic lattice.

A state is the pair (site of the vacancy, site of the foreign atom); all other sites hold the
host. The generator is a sparse matrix over all pairs, written from the definition of the
rates alone, for a pairwise model: an independent computation of what the kernels do.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from mpiflow.systems.alloy import ATTEMPT_FREQUENCY, BOLTZMANN, is_site


class PairOnLattice:
    """A vacancy (0), one atom of species 2 and hosts of species 1 on a periodic box.

    Parameters
    ----------
    sides : points along each axis
    base : E_s in eV of species 1 and 2
    bonds : (3, 3) bond energies in eV
    """

    def __init__(
        self, sides: tuple[int, int, int], base: tuple[float, float], bonds: np.ndarray, t: float
    ) -> None:
        self.sides, self.beta = np.array(sides), 1.0 / (BOLTZMANN * t)
        self.points = np.argwhere(is_site(sides))
        self.number = np.full(sides, -1)
        self.number[tuple(self.points.T)] = np.arange(len(self.points))
        steps = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
        near = (self.points[:, None] + steps) % self.sides
        self.near = self.number[tuple(np.moveaxis(near, -1, 0))]
        self.base, self.bonds = (0.0, *base), bonds
        self.n = len(self.points)
        self.touching = (self.near[:, :, None] == np.arange(self.n)).sum(axis=1)

    def energy(self) -> np.ndarray:
        """H of every state relative to the same without a bond between the two, (n, n) eV."""
        e = self.bonds
        joined = e[0, 2] - e[0, 1] - e[2, 1] + e[1, 1]
        return self.touching * joined

    def gibbs(self) -> np.ndarray:
        """Stationary law over states (vacancy, atom), (n, n), 0 where they coincide."""
        weight = np.exp(-self.beta * self.energy())
        np.fill_diagonal(weight, 0.0)
        return weight / weight.sum()

    def generator(self, owned: np.ndarray | None = None) -> scipy.sparse.csc_matrix:
        """L with dP/dt = L P over states v n + a. ``owned`` (n,) says which corners' bonds work."""
        energy = self.energy()
        corner = self.points[:, 0] % 2 == 0
        rows, columns, rates = [], [], []
        v, a = np.divmod(np.arange(self.n**2), self.n)
        legal = v != a
        for d in range(8):
            target = self.near[v, d]
            works = legal.copy()
            if owned is not None:
                works &= owned[np.where(corner[v], v, target)]
            hit = target == a  # the foreign atom hops
            species = np.where(hit, 2, 1)
            new_v, new_a = target, np.where(hit, v, a)
            change = energy[new_v, new_a] - energy[v, a]
            barrier = np.array(self.base)[species] + 0.5 * change
            rate = ATTEMPT_FREQUENCY * np.exp(-self.beta * barrier)
            rows.append((new_v * self.n + new_a)[works])
            columns.append(np.arange(self.n**2)[works])
            rates.append(rate[works])
        i, j, r = (np.concatenate(part) for part in (rows, columns, rates))
        size = self.n**2
        gains = scipy.sparse.csc_matrix((r, (i, j)), (size, size))
        losses = np.bincount(j, r, size)
        return gains - scipy.sparse.diags(losses)

    def grids(self, v: np.ndarray, a: np.ndarray) -> np.ndarray:
        """States as grids (B, nx, ny, nz) int8."""
        grid = np.where(is_site(tuple(self.sides)), 1, -1).astype(np.int8)
        out = np.repeat(grid[None], len(v), axis=0)
        index = np.arange(len(v))
        out[(index, *self.points[a].T)] = 2
        out[(index, *self.points[v].T)] = 0
        return out

    def places(self, grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sites of the vacancy and of the atom in grids."""
        flat = grids.reshape(len(grids), -1)
        numbers = self.number.reshape(-1)
        return numbers[(flat == 0).argmax(axis=1)], numbers[(flat == 2).argmax(axis=1)]

    def distance_classes(self) -> np.ndarray:
        """A number for each squared distance of a pair, (n, n), 0 for the same site."""
        gap = np.abs(self.points[:, None] - self.points)
        gap = np.minimum(gap, self.sides - gap)
        return np.unique((gap**2).sum(axis=-1), return_inverse=True)[1].reshape(self.n, self.n)
