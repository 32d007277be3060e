"""Records of sites near a rank's boundary that hops have changed, for the ranks around it.

A record is the site's x, y, z, modulo the lattice, and its new species. ``near`` (3, 2) are padded
indices between which no other rank needs a site.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import kernel
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
) -> int:
    """Put both sites of a hop among a tile's records if they lie near the box's boundary."""
    for end in range(2):
        inside = True
        point = np.empty(3, np.int64)
        for a in range(3):
            point[a] = (row[a] + end * DIRECTIONS[row[3], a]) % sides[a]
            inside &= near[a, 0] <= (point[a] - origin[a]) % sides[a] < near[a, 1]
        if inside:
            continue
        known = False
        for r in range(first, noted):
            known |= (
                records[r, 0] == point[0]
                and records[r, 1] == point[1]
                and records[r, 2] == point[2]
            )
        if not known:
            for a in range(3):
                records[noted, a] = point[a]
            noted += 1
    return noted


@kernel
def note_all(
    origin: np.ndarray,
    sides: Triple,
    near: np.ndarray,
    hops: np.ndarray,
    noted: int,
    records: np.ndarray,
) -> int:
    for r in range(hops.shape[0]):
        noted = note(origin, sides, near, hops[r], 0, noted, records)
    return noted


@kernel
def fill_species(
    grid: np.ndarray,
    origin: np.ndarray,
    sides: Triple,
    records: np.ndarray,
    noted: int,
) -> None:
    """Write into the records what the sites now hold."""
    for r in range(noted):
        x = (records[r, 0] - origin[0]) % sides[0]
        y = (records[r, 1] - origin[1]) % sides[1]
        z = (records[r, 2] - origin[2]) % sides[2]
        records[r, 3] = grid[x, y, z]


@kernel
def apply(grid: np.ndarray, origin: np.ndarray, sides: Triple, records: np.ndarray) -> None:
    """Set the sites of a neighbour's records that this box holds, its halo included."""
    for r in range(records.shape[0]):
        x = (records[r, 0] - origin[0]) % sides[0]
        y = (records[r, 1] - origin[1]) % sides[1]
        z = (records[r, 2] - origin[2]) % sides[2]
        put(grid, sides, x, y, z, records[r, 3])
