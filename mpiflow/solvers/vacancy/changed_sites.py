"""Records of sites near a rank's boundary that hops have changed, for the ranks around it.

A record is the site's x, y, z, modulo the lattice, and its new species. ``near`` (3, 2) are padded
indices between which no other rank needs a site.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import kernel, rule
from mpiflow.solvers.vacancy.lists import Triple, put
from mpiflow.systems.alloy import DIRECTIONS


@kernel
def note(
    origin: np.ndarray,
    sides: Triple,
    near: np.ndarray,
    row: np.ndarray,
    first: int,
    noted: int,
    records: np.ndarray,
    step: int,
) -> int:
    """Put both sites of a hop among a tile's records if they lie near the box's boundary.

    Those of the tile are every ``step``-th from ``first`` on; returns the next one, ``noted``.
    """
    d = row[3]
    for end in range(2):
        x = (row[0] + end * DIRECTIONS[d, 0]) % sides[0]
        y = (row[1] + end * DIRECTIONS[d, 1]) % sides[1]
        z = (row[2] + end * DIRECTIONS[d, 2]) % sides[2]
        inside = near[0, 0] <= (x - origin[0]) % sides[0] < near[0, 1]
        inside &= near[1, 0] <= (y - origin[1]) % sides[1] < near[1, 1]
        inside &= near[2, 0] <= (z - origin[2]) % sides[2] < near[2, 1]
        known = inside
        for r in range(first, noted, step):
            known |= records[r, 0] == x and records[r, 1] == y and records[r, 2] == z
        if not known:
            records[noted, 0], records[noted, 1], records[noted, 2] = x, y, z
            noted += step
    return noted


@rule
def fill(grid: np.ndarray, origin: np.ndarray, sides: Triple, records: np.ndarray, r: int) -> None:
    """Write into a record what the site now holds."""
    x = (records[r, 0] - origin[0]) % sides[0]
    y = (records[r, 1] - origin[1]) % sides[1]
    z = (records[r, 2] - origin[2]) % sides[2]
    records[r, 3] = grid[x, y, z]


@rule
def obey(grid: np.ndarray, origin: np.ndarray, sides: Triple, records: np.ndarray, r: int) -> None:
    """Set the site of a record if this box holds it, its halo included."""
    x = (records[r, 0] - origin[0]) % sides[0]
    y = (records[r, 1] - origin[1]) % sides[1]
    z = (records[r, 2] - origin[2]) % sides[2]
    put(grid, sides, x, y, z, records[r, 3])


@kernel
def fill_all(
    grid: np.ndarray,
    origin: np.ndarray,
    sides: Triple,
    records: np.ndarray,
    noted: int,
) -> None:
    """Write into the records what the sites now hold."""
    for r in range(noted):
        fill(grid, origin, sides, records, r)


@kernel
def obey_all(grid: np.ndarray, origin: np.ndarray, sides: Triple, records: np.ndarray) -> None:
    """Set the sites of a neighbour's records that this box holds, its halo included."""
    for r in range(records.shape[0]):
        obey(grid, origin, sides, records, r)
