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
from mpiflow.core.noise import wait_and_choice
from mpiflow.solvers.vacancy.lists import (
    Lists,
    Region,
    Triple,
    accept,
    choose_hop,
    others_near,
    put,
    within,
)
from mpiflow.solvers.vacancy.rates import Evaluator, compute, look, recall, to_front
from mpiflow.systems.alloy import DIRECTIONS, NOT_A_SITE, REACH, VACANCY, Alloy
from mpiflow.systems.barriers import Barriers

#: Halo of a block for vacancies inside it; one more if they may step over its edge.
HALO = REACH


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


def number_of_vacancies(species: np.ndarray) -> int:
    """Vacancies of grids (..., ny, nz), plane by plane: a mask of all would be as large as they."""
    planes = np.ndindex(species.shape[:-2])
    return sum(int(np.count_nonzero(species[plane] == VACANCY)) for plane in planes)


# -- events --------------------------------------------------------------------------------


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
    put(grid, sides, i, j, k, np.int8(VACANCY))
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


@inlined
def write(log, row, time, origin, sides, x, y, z, d, atom):  # type: ignore[no-untyped-def]
    """Note a hop in a row of the log."""
    log.time[row] = time
    log.hop[row, 0] = (origin[0] + x) % sides[0]
    log.hop[row, 1] = (origin[1] + y) % sides[1]
    log.hop[row, 2] = (origin[2] + z) % sides[2]
    log.hop[row, 3] = d
    log.hop[row, 4] = atom


@kernel
def evolve(
    grid: np.ndarray,
    origin: np.ndarray,
    n: int,
    evaluator: Evaluator,
    region: Region,
    lists: Lists,
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
    law, table, s = evaluator
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
                bucket, entry = recall(types, keys_met, rates_met, key, fresh)
            if entry < 0:
                counts[1] += 1
                compute(law, s)
            if sets > 0 and entry != 0:
                to_front(bucket, entry, keys_met, rates_met, key, fresh)
            accept(u, halo, region, place, rates, tree, fresh)
            looked += 1
            if looked == 1 and hops > 0 and n > 1 and near + nearby[u] > 0:
                # This one has hopped: those that see the place it left, or the one it came to.
                count = others_near(x, y, z, u, n, grid, flat, law, region, lists, count)
                i, j, k = place[u, 0], place[u, 1], place[u, 2]
                count = others_near(i, j, k, u, n, grid, flat, law, region, lists, count)
        total = tree[1]
        if hops >= most or not total > 0.0:
            break
        wait, choice = wait_and_choice(keys, counter)
        time = clock + wait / total
        if not time <= until:
            break
        clock = time
        counter += np.uint64(1)
        v, d = choose_hop(tree, rates, choice * total)
        near = nearby[v]
        x, y, z, atom = hop(grid, halo, sides, whole, place, at, v, d)
        if logged + hops < room:
            write(log, logged + hops, clock, origin, sides, x, y, z, d, atom)
        hops += 1
        found[0], count = v, 1
    return hops, clock
