"""The vacancies of a region of a lattice: their places, their rates, and a tree of their sums."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.device import inlined, kernel
from mpiflow.solvers.vacancy.rates import Law
from mpiflow.systems.alloy import DIRECTIONS, NEIGHBOURS, SURROUNDINGS, VACANCY
from mpiflow.systems.barriers import SITES

Triple = tuple[int, int, int]


class Lists(NamedTuple):
    """The vacancies of a region.

    Attributes
    ----------
    place : (n, 3) int64, indices in the padded box
    flat : (n,) int64, the same as one index
    rates : (n, 8) float64 in 1 / s, 0 for hops that are not the region's
    near : (n,) int64, vacancies among the 112
    tree : (2 m,) float64, sums of rates; leaves from m on, m a power of two of at least n
    found : (n,) int64, room for numbers of vacancies
    """

    place: np.ndarray
    flat: np.ndarray
    rates: np.ndarray
    near: np.ndarray
    tree: np.ndarray
    found: np.ndarray


class Region(NamedTuple):
    """The corners whose bonds may be used, as indices in the padded box from low to high - 1.

    Along an axis with ``whole`` 1 all may be, and the axis is periodic within the box.
    """

    low: Triple
    high: Triple
    whole: Triple


class Tiles(NamedTuple):
    """Tiles of one class on a rank.

    Attributes
    ----------
    table : (n, 4) int64, first index in the padded box along each axis, number in the lattice
    shape, whole : points of a tile along each axis, and whether it spans the axis
    """

    table: np.ndarray
    shape: Triple
    whole: Triple


@kernel
def region_of(tiles: Tiles, t: int) -> Region:
    """The region of a tile: row t of the table."""
    low = tiles.table[t, 0], tiles.table[t, 1], tiles.table[t, 2]
    shape = tiles.shape
    return Region(low, (low[0] + shape[0], low[1] + shape[1], low[2] + shape[2]), tiles.whole)


def lists(capacity: int) -> Lists:
    """Room for a number of vacancies."""
    leaves = 1 << max(0, capacity - 1).bit_length()
    return Lists(
        np.zeros((capacity, 3), np.int64),
        np.zeros(capacity, np.int64),
        np.zeros((capacity, NEIGHBOURS)),
        np.zeros(capacity, np.int64),
        np.zeros(2 * leaves),
        np.zeros(capacity, np.int64),
    )


@kernel
def first_of(lists: Lists, n: int) -> Lists:
    """The same lists with a tree for n vacancies, no higher than it must be."""
    leaves = 1
    while leaves < n:
        leaves *= 2
    tree = lists.tree[: 2 * leaves]
    return Lists(lists.place, lists.flat, lists.rates, lists.near, tree, lists.found)


@kernel
def part_of(lists: Lists, first: int, n: int) -> Lists:
    """Those of n vacancies from a number on. Trees lie apart, each in 4 n from 4 first on."""
    end = first + n
    part = Lists(
        lists.place[first:end],
        lists.flat[first:end],
        lists.rates[first:end],
        lists.near[first:end],
        lists.tree[4 * first : 4 * end],
        lists.found[first:end],
    )
    return first_of(part, n)


@inlined
def _set_leaf(tree: np.ndarray, v: int, value: float) -> None:
    node = np.uint64((tree.size >> 1) + v)
    tree[node] = value
    node >>= np.uint64(1)
    while node > 0:
        tree[node] = tree[node * np.uint64(2)] + tree[node * np.uint64(2) + np.uint64(1)]
        node >>= np.uint64(1)


@inlined
def _owns(region: Region, x: int, y: int, z: int) -> bool:
    low, high, whole = region.low, region.high, region.whole
    inside = (whole[0] == 1) | ((low[0] <= x) & (x < high[0]))
    inside &= (whole[1] == 1) | ((low[1] <= y) & (y < high[1]))
    inside &= (whole[2] == 1) | ((low[2] <= z) & (z < high[2]))
    return inside


@inlined
def accept(
    v: int,
    halo: int,
    region: Region,
    place: np.ndarray,
    rates: np.ndarray,
    tree: np.ndarray,
    fresh: np.ndarray,
) -> None:
    """Take the rates (8,) of a vacancy into its lists, those of the region's bonds."""
    x, y, z = place[v, 0], place[v, 1], place[v, 2]
    corner = (x - halo) & 1 == 0
    here = _owns(region, x, y, z)
    total = 0.0
    for d in range(NEIGHBOURS):
        there = _owns(region, x + DIRECTIONS[d, 0], y + DIRECTIONS[d, 1], z + DIRECTIONS[d, 2])
        rate = fresh[d] if (here if corner else there) else 0.0
        rates[v, d] = rate
        total += rate
    _set_leaf(tree, v, total)


@kernel
def first_in(region: Region, axis: int, halo: int) -> int:
    """The first index along an axis at which a vacancy may use a bond of the region."""
    return halo if region.whole[axis] == 1 else region.low[axis] - 1


@kernel
def last_in(region: Region, axis: int, halo: int, sides: Triple) -> int:
    """One beyond the last index at which it may."""
    return halo + sides[axis] if region.whole[axis] == 1 else region.high[axis]


@kernel
def scan(grid: np.ndarray, law: Law, region: Region, lists: Lists) -> int:
    """List the vacancies that may use a bond of the region, in the order of their place.

    Returns their number; if it is above the room in the lists, only so many are listed.
    """
    n, place, flat, halo, sides = 0, lists.place, lists.flat, law.halo, law.sides
    y0, z0 = first_in(region, 1, halo), first_in(region, 2, halo)
    y1, z1 = last_in(region, 1, halo, sides), last_in(region, 2, halo, sides)
    for x in range(first_in(region, 0, halo), last_in(region, 0, halo, sides)):
        odd = (x - halo) % 2
        for y in range(y0 + (y0 - halo + odd) % 2, y1, 2):
            row = grid[x, y, z0:z1]
            low = np.uint8(255)
            for i in range(row.size):  # a byte that is no site is 255
                low = min(low, np.uint8(row[i]))
            if low == VACANCY:
                n = list_row(grid, x, y, z0, z1, n, place, flat)
    return n


@kernel
def list_row(
    grid: np.ndarray, x: int, y: int, z0: int, z1: int, n: int, place: np.ndarray, flat: np.ndarray
) -> int:
    """List the vacancies of a row from the number n on, as far as there is room; the next n."""
    ny, nz = grid.shape[1], grid.shape[2]
    for z in range(z0, z1):
        if grid[x, y, z] == VACANCY:
            if n < flat.size:
                place[n, 0] = x
                place[n, 1] = y
                place[n, 2] = z
                flat[n] = (x * ny + y) * nz + z
            n += 1
    return n


@kernel
def put(grid: np.ndarray, sides: Triple, x: int, y: int, z: int, value: int) -> None:
    """Set a point, given by its index modulo the lattice, and its images in the padded box."""
    for i in range(x % sides[0], grid.shape[0], sides[0]):
        for j in range(y % sides[1], grid.shape[1], sides[1]):
            for k in range(z % sides[2], grid.shape[2], sides[2]):
                grid[i, j, k] = value


@inlined
def within(halo: int, sides: Triple, whole: Triple, x: int, y: int, z: int) -> Triple:
    """A point with its coordinates along whole axes brought into the box."""
    x = halo + (x - halo) % sides[0] if whole[0] == 1 else x
    y = halo + (y - halo) % sides[1] if whole[1] == 1 else y
    z = halo + (z - halo) % sides[2] if whole[2] == 1 else z
    return x, y, z


@kernel
def others_near(
    x: int,
    y: int,
    z: int,
    v: int,
    n: int,
    grid: np.ndarray,
    flat: np.ndarray,
    law: Law,
    region: Region,
    lists: Lists,
    count: int,
) -> int:
    """Add the listed vacancies but v around a point to the first ``count`` of ``found``.

    ``flat`` is the grid as a line.
    """
    ny, nz = grid.shape[1], grid.shape[2]
    at = np.uint64((x * ny + y) * nz + z)
    offsets, known, found = law.offsets, lists.flat, lists.found
    halo, sides, whole = law.halo, law.sides, region.whole
    for i in range(SITES):
        if flat[at + offsets[i]] != VACANCY:
            continue
        x1, y1, z1 = within(
            halo,
            sides,
            whole,
            x + SURROUNDINGS[i, 0],
            y + SURROUNDINGS[i, 1],
            z + SURROUNDINGS[i, 2],
        )
        target = (x1 * ny + y1) * nz + z1
        for u in range(n):
            if known[u] == target and u != v:
                new = True
                for k in range(count):
                    new &= found[k] != u
                if new:
                    found[count] = u
                    count += 1
    return count


@inlined
def choose_hop(tree: np.ndarray, rates: np.ndarray, target: float) -> tuple[int, int]:
    """The vacancy and hop at which the running sum of rates passes the target."""
    leaves = np.uint64(tree.size >> 1)
    node = np.uint64(1)
    while node < leaves:
        node *= np.uint64(2)
        if target >= tree[node] and tree[node + np.uint64(1)] > 0.0:
            target -= tree[node]
            node += np.uint64(1)
    v = int(node - leaves)
    chosen = 0
    for d in range(NEIGHBOURS):
        rate = rates[v, d]
        if rate > 0.0:  # the last possible one stands if rounding leaves a rest
            chosen = d
            if target < rate:
                break
            target -= rate
    return v, chosen
