"""How the lattice of an alloy is cut: into tiles of a solver, and those over the ranks."""

from __future__ import annotations

import math

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, Shape, factorisations
from mpiflow.solvers.vacancy.tiles import SMALLEST_TILE

#: Points of a tile along x, where the lattice is not smaller.
TILE = 16


def default_tile(shape: Shape) -> Shape:
    """Slabs of about :data:`TILE` points along x: fewer boundaries and passes than cubes.

    It must not depend on the ranks. Many of them need smaller tiles, given by the user.
    """
    x, y, z = shape
    fitting = [n for n in range(SMALLEST_TILE, x // 2 + 1, 2) if x % (2 * n) == 0]
    return min(fitting, key=lambda n: abs(n - TILE), default=x), y, z


def cut(lattice: Lattice, ranks: int, tile: Shape, ranks_grid: Shape | None = None) -> Layout:
    """Whole tiles on every rank. Tiles that do not fit the lattice are the solver's matter."""
    sides = lattice.shape
    fitting = all(n > 0 and side % n == 0 for side, n in zip(sides, tile, strict=True))
    unit: Shape = tile if fitting else (2, 2, 2)
    if ranks_grid is not None and math.prod(ranks_grid) != ranks:
        raise InputError(
            "ranks_grid",
            ranks_grid,
            f"a grid of {ranks} ranks",
            "Start as many ranks as the grid has.",
        )
    most = tuple(side // n for side, n in zip(sides, unit, strict=True))
    grids = factorisations(ranks, 3) if ranks_grid is None else [tuple(ranks_grid)]
    if not any(all(n <= m for n, m in zip(grid, most, strict=False)) for grid in grids):
        raise InputError(
            "ranks" if ranks_grid is None else "ranks_grid",
            ranks if ranks_grid is None else ranks_grid,
            f"at most {most} ranks along the axes, in whole tiles of {unit} points",
            "Use fewer ranks, smaller tiles or a larger lattice.",
        )
    if ranks_grid is not None:
        return Layout(lattice, tuple(ranks_grid), unit)
    if ranks <= most[0]:
        return Layout(lattice, (ranks, 1, 1), unit)
    return Layout.balanced(lattice, ranks, unit)
