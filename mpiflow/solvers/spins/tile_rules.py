"""What events in a tile of Ising spins are made of: rules that CPU and CUDA kernels share."""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import inlined, rule
from mpiflow.systems.ising import rate_class

# While counting: bits for each class of one spin in a word.
BITS = np.uint64(12)
MASK = np.uint64(2**12 - 1)


@rule
def tile_number(y: int, x: int, grid: tuple[int, int]) -> int:
    """The number of a tile of the lattice, row-major, from its row and column, periodic."""
    return y % grid[0] * grid[1] + x % grid[1]


@rule
def class_at(field: np.ndarray, y: int, x: int) -> int:
    """The rate class of a site."""
    k = field[y - 1, x] + field[y + 1, x] + field[y, x - 1] + field[y, x + 1]
    return rate_class(field[y, x], k)


@rule
def row_words(field: np.ndarray, y: int, x0: int, side: int) -> tuple[np.uint64, np.uint64]:
    """Numbers of down and of up spins of each class in a row of a tile, for :func:`in_words`."""
    downs, ups = np.uint64(0), np.uint64(0)
    for x in range(x0, x0 + side):
        c = class_at(field, y, x)
        one = np.uint64(1) << BITS * np.uint64(c % 5)
        downs += one if c < 5 else np.uint64(0)
        ups += one if c >= 5 else np.uint64(0)
    return downs, ups


@rule
def in_words(downs: np.uint64, ups: np.uint64, c: int) -> np.uint64:
    """How many sites of a class two words of counts hold."""
    return ((ups if c >= 5 else downs) >> BITS * np.uint64(c % 5)) & MASK


@rule
def is_match(
    field: np.ndarray, y: np.uint64, x: np.uint64, spin: np.int8, sums: np.int8
) -> np.uint8:
    """1 for a site that has this spin and neighbour sum, else 0."""
    one = np.uint64(1)  # unsigned: a test for negative indices would keep this from vectorising
    k = field[y - one, x] + field[y + one, x] + field[y, x - one] + field[y, x + one]
    return np.uint8(np.int8(k) == sums) & np.uint8(field[y, x] == spin)


@inlined
def shares_of(totals, tile, rates):  # type: ignore[no-untyped-def]
    """The rate of each class in a tile."""
    return (
        totals[tile, 0] * rates[0],
        totals[tile, 1] * rates[1],
        totals[tile, 2] * rates[2],
        totals[tile, 3] * rates[3],
        totals[tile, 4] * rates[4],
        totals[tile, 5] * rates[5],
        totals[tile, 6] * rates[6],
        totals[tile, 7] * rates[7],
        totals[tile, 8] * rates[8],
        totals[tile, 9] * rates[9],
    )


@rule
def nth_site(rest: float, inverse: float, count: int) -> int:
    """Which of the sites of a class flips: those before it take up the rest of its share."""
    return min(int(rest * inverse), count - 1)
