"""Tiles of vacancies in step with each other, so that one launch evaluates all barriers.

What :func:`mpiflow.solvers.vacancy.events.evolve` does tile after tile, here all tiles do
together: in each round every tile that has time left makes one hop, and the barriers of all
vacancies that have to be looked at again are computed in one batch, on a CUDA device. Tiles of a
class do not see each other, so the result is the same: the same bits as far as the barriers are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mpiflow.core.device import Device, kernel
from mpiflow.core.noise import exponential, threefry, to_unit
from mpiflow.solvers.vacancy.barrier_kernels import evaluate_many_cuda, on_device
from mpiflow.solvers.vacancy.events import Events, events, hop, write
from mpiflow.solvers.vacancy.lists import (
    Lists,
    Region,
    Triple,
    accept,
    choose_hop,
    first_of,
    lists,
    others_near,
    scan,
)
from mpiflow.solvers.vacancy.rates import Law, hop_rates, look
from mpiflow.systems.alloy import NEIGHBOURS
from mpiflow.systems.barriers import SITES


class Progress(NamedTuple):
    """The tiles that have vacancies, and where these stand in lists shared by all.

    Attributes
    ----------
    tile : (T,) int64, row of the tile in the table of tiles
    first, number : (T,) int64, its vacancies
    clock, made : (T,) time of the last hop, and hops so far
    alive : (T,) uint8, whether it has time left
    """

    tile: np.ndarray
    first: np.ndarray
    number: np.ndarray
    clock: np.ndarray
    made: np.ndarray
    alive: np.ndarray


class Queue(NamedTuple):
    """Vacancies whose barriers are wanted: (n, 2) int64 tile and number in it, (n, 112) uint8."""

    who: np.ndarray
    types: np.ndarray


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


@kernel
def _part(lists: Lists, first: int, n: int) -> Lists:
    """The lists of one tile. Trees lie apart: one of n leaves has room in 4 n from 4 first on."""
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


@kernel
def _ask(flat: np.ndarray, t: int, v: int, law: Law, part: Lists, queue: Queue, asked: int) -> int:
    part.near[v] = look(flat, part.flat[v], law.offsets, queue.types[asked])
    queue.who[asked, 0] = t
    queue.who[asked, 1] = v
    return asked + 1


@kernel
def _open(
    grid: np.ndarray,
    tiles: Tiles,
    law: Law,
    lists: Lists,
    progress: Progress,
    start: float,
    queue: Queue,
) -> tuple[int, int]:
    """List the vacancies of all tiles and ask for all their barriers; tiles, and asked."""
    flat = grid.reshape(-1)
    found, first, asked = 0, 0, 0
    for t in range(tiles.table.shape[0]):
        room = _part(lists, first, lists.flat.size - first)
        n = scan(grid, law, region_of(tiles, t), room)
        if n == 0:
            continue
        part = _part(lists, first, n)
        part.tree[:] = 0.0
        progress.tile[found] = t
        progress.first[found] = first
        progress.number[found] = n
        progress.clock[found] = start
        progress.made[found] = 0
        progress.alive[found] = 1
        for v in range(n):
            asked = _ask(flat, found, v, law, part, queue, asked)
        found += 1
        first += n
    return found, asked


@kernel
def _answer(
    asked: int,
    barriers: np.ndarray,
    rates: np.ndarray,
    tiles: Tiles,
    law: Law,
    lists: Lists,
    progress: Progress,
    queue: Queue,
) -> None:
    """Take barriers (n, 8) into the lists."""
    for q in range(asked):
        t, v = queue.who[q, 0], queue.who[q, 1]
        part = _part(lists, progress.first[t], progress.number[t])
        hop_rates(law.beta, barriers[q], rates)
        region = region_of(tiles, progress.tile[t])
        accept(v, law.halo, region, part.place, part.rates, part.tree, rates)


@kernel
def _round(
    grid: np.ndarray,
    origin: np.ndarray,
    tiles: Tiles,
    law: Law,
    lists: Lists,
    progress: Progress,
    found: int,
    keys: tuple[np.uint64, np.uint64, np.uint64],
    until: float,
    queue: Queue,
    log: Events,
) -> tuple[int, int]:
    """One hop of every tile that has time left; the hops, and the barriers asked for."""
    flat = grid.reshape(-1)
    sides = law.sides
    hops, asked = 0, 0
    for t in range(found):
        if progress.alive[t] == 0:
            continue
        n = progress.number[t]
        part = _part(lists, progress.first[t], n)
        row = progress.tile[t]
        region = region_of(tiles, row)
        total = part.tree[1]
        counter = (np.uint64(tiles.table[row, 3]) << np.uint64(32)) + np.uint64(progress.made[t])
        w0, w1 = threefry(keys[0], keys[1], keys[2], counter)
        time = progress.clock[t] + exponential(w0) / total
        if not time <= until or not total > 0.0:
            progress.alive[t] = 0
            continue
        v, d = choose_hop(part.tree, part.rates, to_unit(w1) * total)
        near = part.near[v]
        x, y, z, atom = hop(grid, law.halo, sides, tiles.whole, part.place, part.flat, v, d)
        progress.clock[t] = time
        progress.made[t] += 1
        write(log, hops, time, origin, sides, x, y, z, d, atom)
        hops += 1
        asked = _ask(flat, t, v, law, part, queue, asked)
        if n > 1 and near + part.near[v] > 0:
            count = others_near(x, y, z, v, n, grid, law, region, part, 0)
            x, y, z = part.place[v, 0], part.place[v, 1], part.place[v, 2]
            count = others_near(x, y, z, v, n, grid, law, region, part, count)
            for other in range(count):
                asked = _ask(flat, t, part.found[other], law, part, queue, asked)
    return hops, asked


class Batches:
    """Tiles in step, their barriers computed on a CUDA device.

    Parameters
    ----------
    law : of the box
    vacancies : most that tiles of one class can hold together: all of the lattice
    device : where barriers are computed
    """

    def __init__(self, law: Law, vacancies: int, device: Device) -> None:
        self.law, self.device = law, device
        self.model = on_device(law.barriers, device)
        # No vacancy is in two tiles of a class: each is listed once.
        self.lists = lists(vacancies)._replace(tree=np.zeros(4 * vacancies))
        self.progress = Progress(
            np.zeros(vacancies, np.int64),
            np.zeros(vacancies, np.int64),
            np.zeros(vacancies, np.int64),
            np.zeros(vacancies),
            np.zeros(vacancies, np.int64),
            np.zeros(vacancies, np.uint8),
        )
        self.queue = Queue(
            np.zeros((vacancies, 2), np.int64), np.zeros((vacancies, SITES), np.uint8)
        )
        self.evaluations = 0

    def evolve(
        self,
        grid: np.ndarray,
        origin: np.ndarray,
        tiles: Tiles,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
        limit: int,
        told: Callable[[], bool],
    ) -> tuple[list[Events], float]:
        """Let some tiles of one class evolve for a time; returns their hops, round by round.

        What is left is left out if ``told`` to.

        Parameters are those of the pass in :mod:`mpiflow.solvers.vacancy.tiled`, and so is the
        part of the window that is also returned.
        """
        where = tiles, self.law, self.lists, self.progress
        out: list[Events] = []
        found, asked = _open(grid, *where, start, self.queue)
        rates = np.zeros(NEIGHBOURS)
        while asked and len(out) < limit and not told():
            self.evaluations += asked
            _answer(asked, self._barriers(asked), rates, *where, self.queue)
            log = events(found)
            hops, asked = _round(grid, origin, *where, found, keys, start + window, self.queue, log)
            out.append(Events(log.time[:hops], log.hop[:hops]))
        stopped = self.progress.made[:found] >= limit
        clocks = self.progress.clock[:found][stopped]
        return out, float((clocks.min(initial=start + window) - start) / window)

    def _barriers(self, asked: int) -> np.ndarray:
        types = self.device.put(self.queue.types[:asked])
        out = self.device.put(np.zeros((asked, NEIGHBOURS), np.float32))
        evaluate_many_cuda(self.model, types, out)
        return self.device.get(out)
