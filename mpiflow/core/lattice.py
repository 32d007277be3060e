"""The global lattice and how it is cut into one tile per MPI rank.

Nothing here communicates: every rank can answer for every other rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mpiflow.core.errors import InputError

Shape = tuple[int, ...]

# Noise counters give 32 bits to each axis (see noise.site_counter).
MAX_SIDE = 2**31


@dataclass(frozen=True)
class Lattice:
    """A periodic box of sites, row-major.

    Parameters
    ----------
    shape : (Ly, Lx), sites along each axis

    Raises
    ------
    InputError : a side is below 2 or too long
    """

    shape: Shape

    def __post_init__(self) -> None:
        if not self.shape or any(side < 2 or side > MAX_SIDE for side in self.shape):
            raise InputError(
                "size",
                self.shape,
                f"2 to {MAX_SIDE} sites a side",
                "Choose a larger lattice.",
            )

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @cached_property
    def sites(self) -> int:
        """Number of sites."""
        return math.prod(self.shape)

    def require_bipartite(self) -> None:
        """Raise unless the periodic lattice splits into two sublattices (even sides)."""
        if any(side % 2 for side in self.shape):
            even = tuple(side + side % 2 for side in self.shape)
            raise InputError(
                "size",
                self.shape,
                "an even number of sites on every side (two sublattices on a periodic lattice)",
                f"Use size {even}, or the n-fold solver.",
            )


def split(units: int, parts: int, index: int) -> tuple[int, int]:
    """Start and stop of part ``index`` when ``units`` are dealt out as evenly as possible."""
    return units * index // parts, units * (index + 1) // parts


#: What makes the units smaller that a lattice is cut in, where nothing else does.
COARSE = ("smaller coarse blocks",)


def other_cut(units: Sequence[int], smaller: Sequence[str]) -> str:
    """What to do where ranks are too many; a unit of one site cannot be smaller."""
    *most, last = "fewer ranks", "a larger lattice", *(smaller if max(units) > 1 else ())
    return f"Use {', '.join(most)} or {last}."


@dataclass(frozen=True)
class Layout:
    """Which rank owns which box of the lattice.

    Tiles are cut in units of ``granularity`` sites (a number, or one for each axis), so
    that a coarse block of that size never straddles two ranks. Ranks are numbered row-major
    in ``ranks_grid``, as MPI's Cartesian communicators number them.

    ``smaller`` says in words what would make the units smaller, where that is possible.
    With ``partial`` a side need not be a multiple of its unit: the last unit of it is shorter.

    Raises
    ------
    InputError : there are more ranks than units, or sides are no multiples of the unit
    """

    lattice: Lattice
    ranks_grid: Shape
    granularity: int | Shape = 1
    smaller: tuple[str, ...] = field(default=COARSE, compare=False, repr=False)
    partial: bool = False

    def __post_init__(self) -> None:
        lattice, grid, units = self.lattice, self.ranks_grid, self.units
        if len(grid) != lattice.ndim or any(n < 1 for n in grid):
            raise InputError(
                "ranks_grid",
                grid,
                f"{lattice.ndim} positive numbers, one for each axis",
                "Leave it out to let mpiflow choose.",
            )
        if any(
            unit < 1 or (side % unit and not self.partial)
            for side, unit in zip(lattice.shape, units, strict=True)
        ):
            raise InputError(
                "coarse",
                self.granularity,
                f"a divisor of every side of the lattice {lattice.shape}",
                f"Use one of {divisors(math.gcd(*lattice.shape))}.",
            )
        most = tuple(-(-side // unit) for side, unit in zip(lattice.shape, units, strict=True))
        if any(n > limit for n, limit in zip(grid, most, strict=True)):
            raise InputError(
                "ranks_grid",
                grid,
                f"at most {most} ranks along the axes "
                f"(lattice {lattice.shape} in units of {self.granularity} sites)",
                other_cut(units, self.smaller),
            )

    @classmethod
    def balanced(
        cls,
        lattice: Lattice,
        ranks: int,
        granularity: int | Shape = 1,
        smaller: tuple[str, ...] = COARSE,
        partial: bool = False,
    ) -> Layout:
        """The layout with the shortest tile boundary among all grids of ``ranks`` ranks."""
        sizes = _for_each_axis(granularity, lattice.ndim)
        units = [
            max(1, (side + (size - 1) * partial) // max(1, size))
            for side, size in zip(lattice.shape, sizes, strict=True)
        ]
        fitting = [
            grid
            for grid in factorisations(ranks, lattice.ndim)
            if all(n <= unit for n, unit in zip(grid, units, strict=True))
        ]
        if not fitting:
            raise InputError(
                "ranks",
                ranks,
                f"at most {math.prod(units)} tiles, cut from a {lattice.shape} lattice "
                f"in units of {granularity} sites",
                other_cut(sizes, smaller),
            )

        def largest_tile(grid: Shape) -> tuple[float, float]:
            tile = [-(-unit // n) for unit, n in zip(units, grid, strict=True)]
            surface = sum(
                math.prod(tile) / side for side, n in zip(tile, grid, strict=True) if n > 1
            )
            return math.prod(tile), surface

        # Of equals the one with the longest rows: they are contiguous in memory.
        return cls(lattice, min(reversed(fitting), key=largest_tile), granularity, smaller, partial)

    @property
    def units(self) -> Shape:
        """The granularity along each axis."""
        return _for_each_axis(self.granularity, self.lattice.ndim)

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return math.prod(self.ranks_grid)

    def coordinates(self, rank: int) -> Shape:
        """Position of ``rank`` in the grid of ranks."""
        out = []
        for n in reversed(self.ranks_grid):
            rank, position = divmod(rank, n)
            out.append(position)
        return tuple(reversed(out))

    def bounds(self, rank: int) -> tuple[tuple[int, int], ...]:
        """Global (start, stop) of the rank's tile along each axis."""
        return tuple(
            tuple(min(unit * edge, side) for edge in split(-(-side // unit), n, c))  # type: ignore[misc]
            for side, unit, n, c in zip(
                self.lattice.shape,
                self.units,
                self.ranks_grid,
                self.coordinates(rank),
                strict=True,
            )
        )

    def offset(self, rank: int) -> Shape:
        """Global coordinates of the first site of a rank's box."""
        return tuple(start for start, _ in self.bounds(rank))

    def shape(self, rank: int) -> Shape:
        """Sides of a rank's box, in sites."""
        return tuple(stop - start for start, stop in self.bounds(rank))

    def slices(self, rank: int, unit: int = 1) -> tuple[slice, ...]:
        """The rank's box as slices of a global array with one entry per ``unit`` sites."""
        return tuple(slice(start // unit, stop // unit) for start, stop in self.bounds(rank))


def _for_each_axis(value: int | Shape, axes: int) -> Shape:
    return (value,) * axes if isinstance(value, int) else value


def factorisations(number: int, factors: int) -> list[Shape]:
    """All ordered ways to write ``number`` as a product of ``factors`` positive integers."""
    if factors == 1:
        return [(number,)]
    return [
        (first, *rest)
        for first in divisors(number)
        for rest in factorisations(number // first, factors - 1)
    ]


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]
