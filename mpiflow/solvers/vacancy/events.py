r"""Kinetic Monte Carlo of vacancies without rejections, in a region of a lattice.

Every vacancy v has eight rates, one for each hop. The time to the next hop is exponential
with their sum R, and the hop is chosen with probability rate / R [Bortz, Kalos, Lebowitz, J.
Comput. Phys. 17, 10 (1975); Gillespie, J. Comput. Phys. 22, 403 (1976)]. A binary tree of
sums finds the vacancy. After a hop only the vacancies are looked at again that have one of
the two changed sites among their 112, so a hop costs the same for any number of vacancies.

A region owns bonds: those whose corner site (see :mod:`mpiflow.systems.alloy`) lies in it.
Every bond has one corner, so regions that tile the lattice own each bond once; a hop and its
reverse use the same bond, so within a region each hop can be undone, and detailed balance
holds region by region. The whole periodic lattice is one region for
:mod:`mpiflow.solvers.vacancy.serial`, the reference; tiles are regions for
:mod:`mpiflow.solvers.vacancy.tiled`; a patch in its surroundings is one for partial evolution.

A barrier depends on 112 species alone. Where these fit 28 bytes, they are the exact key of
a small table of rates met before: vacancies flicker to and fro, so it saves a third of the
evaluations at 2000 K and nine tenths at 800 K, and changes no bit of the result. Rates are
computed from barriers by arithmetic that is IEEE everywhere, in fixed order.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import inlined, kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import no_state, require_rule
from mpiflow.core.noise import threefry, to_unit
from mpiflow.solvers.spins.nfold import exponential
from mpiflow.solvers.vacancy.barrier_kernels import evaluate, work_size
from mpiflow.systems.alloy import (
    ATTEMPT_FREQUENCY,
    DIRECTIONS,
    NEIGHBOURS,
    NOT_A_SITE,
    REACH,
    SURROUNDINGS,
    VACANCY,
    Alloy,
)
from mpiflow.systems.barriers import NETWORK, SITES, Barriers

#: Halo of a block for vacancies inside it; one more if they may step over its edge.
HALO = REACH
_WAYS, _WORDS, _PER_WORD = 4, 4, 28
#: Entries of the table of rates for each vacancy; more only cost memory traffic.
_ENTRIES = 16
#: The largest table: 4096 sets of four entries of 96 bytes.
_MOST_SETS = 4096


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


class Table(NamedTuple):
    """Rates met before, by their surroundings.

    Attributes
    ----------
    keys : (sets, 4, 4) uint64, the 112 species at two bits each; the top bit marks an entry
    rates : (sets, 4, 8) float64
    counts : (2,) int64, evaluations asked for and evaluations done
    """

    keys: np.ndarray
    rates: np.ndarray
    counts: np.ndarray


class Scratch(NamedTuple):
    """Memory for one evaluation: (112,) uint8, float32, (8,) float32, (8,) float64, (4,) uint64."""

    types: np.ndarray
    work: np.ndarray
    barriers: np.ndarray
    rates: np.ndarray
    key: np.ndarray


class Law(NamedTuple):
    """What sets the rates: the barriers, 1 / k_B T, and the lattice.

    Attributes
    ----------
    offsets : (112,) uint64, the surroundings as differences of the flat index, modulo 2^64
    sides : points of the periodic lattice along each axis
    halo : of the box
    """

    barriers: Barriers
    beta: float
    offsets: np.ndarray
    sides: tuple[int, int, int]
    halo: int


Triple = tuple[int, int, int]


class Region(NamedTuple):
    """The corners whose bonds may be used, as indices in the padded box from low to high - 1.

    Along an axis with ``whole`` 1 all may be, and the axis is periodic within the box.
    """

    low: tuple[int, int, int]
    high: tuple[int, int, int]
    whole: tuple[int, int, int]


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


def table(model: Barriers, vacancies: int) -> Table:
    """An empty table of rates, of no size where it would not pay or the key not be exact."""
    sets = 0
    if model.kind == NETWORK and len(model.codes) <= 4:
        wanted = max(_ENTRIES * vacancies // _WAYS, 4)
        sets = min(1 << (wanted - 1).bit_length(), _MOST_SETS)
    return Table(
        np.zeros((sets, _WAYS, _WORDS), np.uint64),
        np.zeros((sets, _WAYS, NEIGHBOURS)),
        np.zeros(2, np.int64),
    )


def scratch(model: Barriers) -> Scratch:
    return Scratch(
        np.zeros(SITES, np.uint8),
        np.zeros(work_size(model), np.float32),
        np.zeros(NEIGHBOURS, np.float32),
        np.zeros(NEIGHBOURS),
        np.zeros(_WORDS, np.uint64),
    )


def law(system: Alloy, model: Barriers, block: Block) -> Law:
    """The law on blocks of this shape."""
    _, ny, nz = block.array.shape[1:]
    offsets = (SURROUNDINGS[:, 0] * ny + SURROUNDINGS[:, 1]) * nz + SURROUNDINGS[:, 2]
    x, y, z = block.lattice.shape if block.policy != "wrap" else block.shape
    return Law(model, system.beta, offsets.astype(np.uint64), (x, y, z), block.halo)


def check(system: Alloy, model: Barriers, block: Block) -> None:
    """Raise if blocks and models do not go with the solvers of vacancies."""
    require_rule(system, Alloy)
    if block.halo < HALO or len(block.shape) != 3:
        raise InputError("halo", block.halo, f"{HALO} or more points in 3-D", "Make it wider.")
    if len(model.base) != len(system.elements) + 1:
        raise InputError(
            "barriers",
            f"{len(model.base) - 1} elements",
            f"a model of {len(system.elements)}: {', '.join(system.elements)}",
            "Use another model, or name as many elements.",
        )
    if block.device.is_cuda:
        raise InputError("device", "cuda", "'cpu' for the serial solver", "Use --solver tiled.")


def check_species(block: Block, elements: int) -> None:
    """Raise unless every site of this rank's boxes has a species. Without communication.

    Kernels look barriers up by species, and check no bounds.
    """
    for box, origin in zip(block.spins(), block.origins, strict=True):
        for parity in product((0, 1), repeat=3):
            part = box[
                tuple(slice((o + p) % 2, None, 2) for o, p in zip(origin, parity, strict=True))
            ]
            site = len(set(parity)) == 1
            low, high = (VACANCY, elements) if site else (NOT_A_SITE, NOT_A_SITE)
            if not part.size or (low <= part.min() and part.max() <= high):
                continue
            if site and (part == NOT_A_SITE).all():
                raise no_state("Set the species: sim.set_species(random_alloy, counts=...).")
            raise InputError(
                "species",
                part[(part < low) | (part > high)][0].item(),
                f"0 (vacancy) to {elements} where coordinates have equal parity, else {NOT_A_SITE}",
                "Look at the initial state.",
            )


def require_species(block: Block, elements: int) -> None:
    """:func:`check_species` on the ranks of all tiles. Collective."""
    with block.agreed():
        check_species(block, elements)


# -- rates ---------------------------------------------------------------------------------


@kernel
def decay(x: float) -> float:
    r"""exp(-x) for \|x\| < 700, by arithmetic that is IEEE everywhere.

    2^k e^r with \|r\| <= ln 2 / 2 and the Taylor series of e^r to the 13th power; the error is
    below two units in the last place.
    """
    k = np.floor(0.5 - x * 1.4426950408889634)
    r = (-x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    s = 1.0 / 6227020800.0
    s = s * r + 1.0 / 479001600.0
    s = s * r + 1.0 / 39916800.0
    s = s * r + 1.0 / 3628800.0
    s = s * r + 1.0 / 362880.0
    s = s * r + 1.0 / 40320.0
    s = s * r + 1.0 / 5040.0
    s = s * r + 1.0 / 720.0
    s = s * r + 1.0 / 120.0
    s = s * r + 1.0 / 24.0
    s = s * r + 1.0 / 6.0
    s = s * r + 0.5
    s = s * r + 1.0
    s = s * r + 1.0
    return s * np.int64((np.int64(k) + 1023) << 52).view(np.float64)


@kernel
def hop_rates(beta: float, barriers: np.ndarray, rates: np.ndarray) -> None:
    """k0 exp(-E / k_B T) of eight barriers; 0 for infinite ones and beyond the range of decay."""
    for d in range(NEIGHBOURS):
        x = beta * np.float64(barriers[d])
        rates[d] = ATTEMPT_FREQUENCY * decay(x) if abs(x) < 700.0 else 0.0


@inlined
def look(flat: np.ndarray, at: int, offsets: np.ndarray, types: np.ndarray) -> int:
    """Read the surroundings of a point; returns the number of vacancies in them."""
    start = np.uint64(at)
    near = 0
    for i in range(SITES):
        t = flat[start + offsets[i]]
        types[i] = t
        near += t == VACANCY
    return near


@inlined
def _pack(types: np.ndarray, w: int) -> np.uint64:
    """A word of the key: 28 species at two bits each."""
    word = np.uint64(0)
    for i in range(_PER_WORD):
        word |= np.uint64(types[w * _PER_WORD + i]) << np.uint64(2 * i)
    return word


@inlined
def _recall(
    types: np.ndarray, keys: np.ndarray, known: np.ndarray, key: np.ndarray, rates: np.ndarray
) -> tuple[np.uint64, int]:
    """Set rates to those of the table, if it has these surroundings; the set, and entry or -1."""
    k0, k1 = _pack(types, 0) | np.uint64(1) << np.uint64(63), _pack(types, 1)
    k2, k3 = _pack(types, 2), _pack(types, 3)
    h = k0 * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(32)) ^ k1) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(32)) ^ k2) * np.uint64(0x94D049BB133111EB)
    h = (h ^ (h >> np.uint64(32)) ^ k3) * np.uint64(0x9E3779B97F4A7C15)
    bucket = (h >> np.uint64(40)) & np.uint64(keys.shape[0] - 1)  # a power of two
    key[0], key[1], key[2], key[3] = k0, k1, k2, k3
    entry = -1
    for w in range(_WAYS):
        i = np.uint64(w)
        if (
            (keys[bucket, i, 0] == k0)
            & (keys[bucket, i, 1] == k1)
            & (keys[bucket, i, 2] == k2)
            & (keys[bucket, i, 3] == k3)
        ):
            entry = w
            for d in range(NEIGHBOURS):
                rates[d] = known[bucket, i, d]
            break
    return bucket, entry


@kernel
def _to_front(
    bucket: np.uint64,
    entry: int,
    keys: np.ndarray,
    known: np.ndarray,
    key: np.ndarray,
    rates: np.ndarray,
) -> None:
    """Make these the first entry of a set, in place of one or of the last."""
    for w in range(entry if entry >= 0 else _WAYS - 1, 0, -1):
        i = np.uint64(w)
        for d in range(_WORDS):
            keys[bucket, i, d] = keys[bucket, i - np.uint64(1), d]
        for d in range(NEIGHBOURS):
            known[bucket, i, d] = known[bucket, i - np.uint64(1), d]
    for d in range(_WORDS):
        keys[bucket, 0, d] = key[d]
    for d in range(NEIGHBOURS):
        known[bucket, 0, d] = rates[d]


@kernel
def _compute(law: Law, s: Scratch) -> None:
    """All eight rates in the surroundings that scratch holds."""
    evaluate(law.barriers, s.types, s.work, s.barriers)
    hop_rates(law.beta, s.barriers, s.rates)


# -- lists ---------------------------------------------------------------------------------


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
def _first(region: Region, axis: int, law: Law) -> int:
    """The first index along an axis at which a vacancy may use a bond of the region."""
    return law.halo if region.whole[axis] == 1 else region.low[axis] - 1


@kernel
def _last(region: Region, axis: int, law: Law) -> int:
    """One beyond the last index at which it may."""
    return law.halo + law.sides[axis] if region.whole[axis] == 1 else region.high[axis]


@kernel
def scan(grid: np.ndarray, law: Law, region: Region, lists: Lists) -> int:
    """List the vacancies that may use a bond of the region, in the order of their place.

    Returns their number; if it is above the room in the lists, only so many are listed.
    """
    n, most = 0, lists.flat.size
    ny, nz = grid.shape[1], grid.shape[2]
    place, flat, halo = lists.place, lists.flat, law.halo
    y0, z0 = _first(region, 1, law), _first(region, 2, law)
    y1, z1 = _last(region, 1, law), _last(region, 2, law)
    for x in range(_first(region, 0, law), _last(region, 0, law)):
        odd = (x - halo) % 2
        for y in range(y0 + (y0 - halo + odd) % 2, y1, 2):
            row = grid[x, y, z0:z1]
            low = np.uint8(255)
            for i in range(row.size):  # a byte that is no site is 255
                low = min(low, np.uint8(row[i]))
            if low != VACANCY:
                continue
            for i in range(row.size):
                if row[i] == VACANCY:
                    if n < most:
                        place[n, 0] = x
                        place[n, 1] = y
                        place[n, 2] = z0 + i
                        flat[n] = (x * ny + y) * nz + z0 + i
                    n += 1
    return n


@kernel
def put(grid: np.ndarray, sides: tuple[int, int, int], x: int, y: int, z: int, value: int) -> None:
    """Set a point, given by its index modulo the lattice, and its images in the padded box."""
    for i in range(x % sides[0], grid.shape[0], sides[0]):
        for j in range(y % sides[1], grid.shape[1], sides[1]):
            for k in range(z % sides[2], grid.shape[2], sides[2]):
                grid[i, j, k] = value


@inlined
def within(halo: int, sides: Triple, whole: Triple, x: int, y: int, z: int) -> tuple[int, int, int]:
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
    law: Law,
    region: Region,
    lists: Lists,
    count: int,
) -> int:
    """Add the listed vacancies but v around a point to the first ``count`` of ``found``."""
    ny, nz = grid.shape[1], grid.shape[2]
    flat = grid.reshape(-1)
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


@inlined
def hop(
    grid: np.ndarray,
    halo: int,
    sides: Triple,
    whole: Triple,
    place: np.ndarray,
    flat: np.ndarray,
    v: int,
    d: int,
) -> tuple[int, int, int, int]:
    """Let a vacancy hop; returns the place it left, and the species of the atom."""
    x, y, z = place[v, 0], place[v, 1], place[v, 2]
    i, j, k = x + DIRECTIONS[d, 0], y + DIRECTIONS[d, 1], z + DIRECTIONS[d, 2]
    atom = grid[i, j, k]
    put(grid, sides, x, y, z, atom)
    put(grid, sides, i, j, k, VACANCY)
    i, j, k = within(halo, sides, whole, i, j, k)
    place[v, 0], place[v, 1], place[v, 2] = i, j, k
    flat[v] = (i * grid.shape[1] + j) * grid.shape[2] + k
    return x, y, z, atom


class Events(NamedTuple):
    """Where hops are written, if there is room.

    Attributes
    ----------
    time : (room,) float64, in s
    hop : (room, 5) int64: x, y, z of the vacancy before the hop, modulo the lattice, the number
        of the direction, and the species of the atom
    """

    time: np.ndarray
    hop: np.ndarray


def events(room: int) -> Events:
    return Events(np.zeros(room), np.zeros((room, 5), np.int64))


@kernel
def evolve(
    grid: np.ndarray,
    origin: np.ndarray,
    n: int,
    law: Law,
    region: Region,
    lists: Lists,
    table: Table,
    s: Scratch,
    keys: tuple[np.uint64, np.uint64, np.uint64],
    counter: np.uint64,
    clock: float,
    until: float,
    most: int,
    log: Events,
    logged: int,
    everything: bool,
) -> tuple[int, float]:
    """Let the n listed vacancies of a region hop.

    Parameters
    ----------
    grid, origin : padded box (nx, ny, nz) int8, and the lattice's point at its first index
    keys : seed, stream and member, first counter word
    counter : second counter word of the next event; later ones follow
    clock : time of the last event, s
    until : hops that would come after this time wait
    most : stop after so many hops
    log, logged : hops are written from this row on, as far as there is room
    everything : look at all vacancies first; without it rates must be up to date, as every call
        leaves them

    Returns
    -------
    the number of hops, and the time of the last one
    """
    flat = grid.reshape(-1)
    # Names for all arrays: reading one from its tuple costs as much as a division, and handing
    # a whole tuple to an inlined function as much for each of its arrays.
    place, at, nearby, rates = lists.place, lists.flat, lists.near, lists.rates
    tree, found = lists.tree, lists.found
    keys_met, rates_met, counts = table.keys, table.rates, table.counts
    types, fresh, key = s.types, s.rates, s.key
    offsets, sides, halo, whole = law.offsets, law.sides, law.halo, region.whole
    sets, room = keys_met.shape[0], log.time.size
    hops, count = 0, 0
    if everything:
        count = n
        tree[:] = 0.0
        for u in range(n):
            found[u] = u
    x, y, z, near = 0, 0, 0, 0
    while True:
        looked = 0
        while looked < count:
            u = found[looked]
            nearby[u] = look(flat, at[u], offsets, types)
            counts[0] += 1
            bucket, entry = np.uint64(0), -1
            if sets > 0:
                bucket, entry = _recall(types, keys_met, rates_met, key, fresh)
            if entry < 0:
                counts[1] += 1
                _compute(law, s)
            if sets > 0 and entry != 0:
                _to_front(bucket, entry, keys_met, rates_met, key, fresh)
            accept(u, halo, region, place, rates, tree, fresh)
            looked += 1
            if looked == 1 and hops > 0 and n > 1 and near + nearby[u] > 0:
                # This one has hopped: those that see the place it left, or the one it came to.
                count = others_near(x, y, z, u, n, grid, law, region, lists, count)
                i, j, k = place[u, 0], place[u, 1], place[u, 2]
                count = others_near(i, j, k, u, n, grid, law, region, lists, count)
        total = tree[1]
        if hops >= most or not total > 0.0:
            break
        w0, w1 = threefry(keys[0], keys[1], keys[2], counter)
        time = clock + exponential(w0) / total
        if not time <= until:
            break
        clock = time
        counter += np.uint64(1)
        v, d = choose_hop(tree, rates, to_unit(w1) * total)
        near = nearby[v]
        x, y, z, atom = hop(grid, halo, sides, whole, place, at, v, d)
        if logged + hops < room:
            row = log.hop[logged + hops]
            log.time[logged + hops] = clock
            row[0] = (origin[0] + x) % sides[0]
            row[1] = (origin[1] + y) % sides[1]
            row[2] = (origin[2] + z) % sides[2]
            row[3] = d
            row[4] = atom
        hops += 1
        found[0], count = v, 1
    return hops, clock
