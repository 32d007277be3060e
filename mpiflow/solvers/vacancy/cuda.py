r"""Tiles of vacancies on a CUDA device: a block of threads lets a tile evolve for a whole window.

What :func:`mpiflow.solvers.vacancy.events.evolve` does for tile after tile, blocks of threads do
here for all tiles of a class at once, by the same rules in the same order: the same bits. The first
thread chooses hops and makes them, all of them read surroundings and evaluate barriers. Species,
lists, known rates and the network stay on the device; a pass costs one launch, and the host reads a
few numbers after it.

CUDA: simulated and assembled, not yet run on a GPU (docs/hpc.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import CudaKernel, Device, called, to_bare
from mpiflow.core.noise import wait_and_choice
from mpiflow.solvers.vacancy.barrier_kernels import BLOCK_FLOATS, on_block, on_device
from mpiflow.solvers.vacancy.changed_sites import fill, note, obey
from mpiflow.solvers.vacancy.events import Events, hop, write
from mpiflow.solvers.vacancy.lists import (
    Lists,
    Tiles,
    accept,
    choose_hop,
    first_in,
    last_in,
    list_row,
    lists,
    others_near,
    part_of,
    region_of,
)
from mpiflow.solvers.vacancy.rates import (
    WORDS,
    Evaluator,
    entry_of,
    hop_rate,
    packed,
    species_near,
    table,
    to_front,
)
from mpiflow.systems.alloy import NEIGHBOURS, VACANCY
from mpiflow.systems.barriers import SITES

#: Events of a tile whose noise is drawn at once, an event a thread.
_AHEAD = 32
#: Bytes of a vacancy in the lists, and of a set of known rates.
LISTED, KNOWN = 144, 384
#: Threads of a block at most.
_THREADS = 128
#: Hops of a tile that are kept in a launch; more of them take another.
_KEPT = 64
#: What is known of a tile: its first vacancy in the lists, their number, its hops in this pass and
#: in this launch, its records, and whether it is done.
_FIRST, _NUMBER, _HOPS, _NEW, _NOTED, _DONE, _FACTS = range(7)
#: What all tiles count together, from launch to launch: places taken in the lists, tiles that are
#: not done, tiles with too many hops, vacancies looked at, barriers of them computed; then the hops
#: of each box.
_TAKEN, _WAITING, _STOPPED, _LOOKS, _DONE_LOOKS, _MADE = range(6)
#: What threads of a block tell each other: vacancies to look at, vacancies around the one that is
#: looked at, whether the tile stops.
_COUNT, _NEAR, _STOP, _TOLD = range(4)


class Progress(NamedTuple):
    """How far the tiles of a class are, those of one box after those of another.

    Attributes
    ----------
    facts : (T, 6) int64
    clock : (T,) float64, time of the last hop
    sums : (5 + B,) int64
    """

    facts: Any
    clock: Any
    sums: Any


class Notes(NamedTuple):
    """What is written down of hops.

    Attributes
    ----------
    near : (3, 2) padded indices between which no other rank needs a site
    records : (room T, 4) sites that other ranks must know, every T-th of one tile; or none
    log : the hops of this launch, as many places for each tile; or none
    """

    near: Any
    records: Any
    log: Events


class CudaTiles:
    """The boxes of a block on a device, and passes over their tiles.

    Parameters
    ----------
    evaluator : of the box
    block : on the host: :meth:`load` and :meth:`save` copy its boxes
    vacancies : most that tiles of one class can hold together: all of the lattice
    groups : tiles of each class that run together
    near, records : as of :class:`Notes`, and how many of these there can be
    """

    def __init__(
        self,
        evaluator: Evaluator,
        block: Block,
        vacancies: int,
        groups: Sequence[Tiles],
        near: np.ndarray,
        records: int,
        device: Device,
    ) -> None:
        law, put = evaluator.law, device.put
        self._device, self._block = device, block
        self._law = law._replace(barriers=on_device(law.barriers, device), offsets=put(law.offsets))
        # No vacancy is in two tiles of a class: each is listed once.
        room = lists(vacancies)._replace(tree=np.zeros(4 * vacancies))
        self._lists = Lists(*map(put, room))
        most = block.batch * max((len(tiles.table) for tiles in groups), default=0)
        everyone = block.batch * sum(len(tiles.table) for tiles in groups)
        some = -(-vacancies // max(1, everyone))
        known = table(law.barriers, some)
        self._groups = {}
        for tiles in groups:
            t = block.batch * len(tiles.table)
            # Known rates are those of any tile, but two blocks must not write to one table.
            rates = [put(np.zeros((t, *part.shape), part.dtype)) for part in known[:2]]
            self._groups[id(tiles)] = tiles._replace(table=put(tiles.table)), *rates
        self._facts = np.zeros((most, _FACTS), np.int64)
        self._progress = Progress(
            put(self._facts), put(np.zeros(most)), put(np.zeros(_MADE + block.batch, np.int64))
        )
        self._sums = np.zeros(_MADE + block.batch, np.int64)
        self._near, self._records = put(near), put(np.zeros((records, 4), np.int64))
        self._log = self._no_log = Events(put(np.zeros(0)), put(np.zeros((0, 5), np.int64)))
        self._origins = put(block.origins - block.halo)
        self._members = put(block.members)
        self._whole: Any = None
        self._flat: Any = None
        self._before: Any = None

    @property
    def bytes(self) -> int:
        """What it has on the device."""
        arrays: list[Any] = [self._whole, self._before, *self._lists, *self._progress]
        arrays += [
            self._near,
            self._records,
            self._origins,
            self._members,
            *self._log,
            self._law.offsets,
        ]
        for tiles, *known in self._groups.values():
            arrays += [tiles.table, *known]
        arrays += [part for part in self._law.barriers if hasattr(part, "nbytes")]
        return sum(part.nbytes for part in arrays if part is not None)

    def load(self) -> None:
        """Take the boxes of the host."""
        self._whole = self._device.put(self._block.array)
        self._flat = self._whole.reshape(self._block.batch, math.prod(self._whole.shape[1:]))

    def save(self) -> None:
        """Give the host the boxes."""
        self._block.array[...] = self._device.get(self._whole)

    def keep(self) -> None:
        """Remember the boxes for :meth:`back`."""
        if self._before is None:
            self._before = self._device.duplicate(self._whole)
        else:
            self._before.copy_to_device(self._whole)

    def back(self) -> None:
        """The boxes are again what was kept."""
        self._whole.copy_to_device(self._before)

    @property
    def counts(self) -> tuple[float, float]:
        """Vacancies looked at, and barriers of them computed, so far."""
        return float(self._sums[_LOOKS]), float(self._sums[_DONE_LOOKS])

    def obey(self, records: np.ndarray) -> None:
        """Set the sites of records of other ranks."""
        rows = self._device.put(records)
        _obey.launch(len(records), self._whole[0], self._origins[0], self._law.sides, rows)

    def evolve(
        self,
        tiles: Tiles,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
        limit: int,
        most: int,
        told: Callable[[], bool],
        logs: list[Events] | None,
        notes: bool,
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Let some tiles of one class of all boxes evolve for a time.

        Parameters
        ----------
        keys : of member 0
        most : hops of a tile between two questions
        told : whether to leave out what is left
        logs : to which hops are appended, in order within a tile; None: they are not kept
        notes : whether other ranks must know changed sites

        Others are those of a pass in :mod:`mpiflow.solvers.vacancy.tiled`.

        Returns
        -------
        the hops of each box, records (n, 4) for other ranks, and the part of the window after which
        the first tile had to stop, 1 if none had to
        """
        on_device, *known = self._groups[id(tiles)]
        number, before = self._block.batch * len(tiles.table), self._sums
        if logs is not None:
            most = _KEPT
            if self._log is self._no_log:
                rows = len(self._facts) * most
                put = self._device.put
                self._log = Events(put(np.zeros(rows)), put(np.zeros((rows, 5), np.int64)))
        log = self._no_log if logs is None else self._log
        kept = Notes(self._near, self._records, log)
        fresh, share = True, 1.0
        while True:
            last = self._sums
            _evolve.launch_blocks(
                number, self._whole, self._flat, self._origins, self._members, on_device,
                self._law, *known, self._lists, self._progress, kept, keys, start, window, limit,
                most, notes, fresh, int(before[_TAKEN]),
            )  # fmt: skip
            fresh, self._sums = False, self._device.get(self._progress.sums)
            if logs is not None:
                logs.append(self._logged(number, most))
            if self._sums[_WAITING] == last[_WAITING] or told():
                break
        made = (self._sums - before)[_MADE:]
        noted = self._noted(number) if notes else np.empty((0, 4), np.int64)
        if self._sums[_STOPPED] > before[_STOPPED]:
            stopped = self._tell(number)[:, _HOPS] >= limit
            clocks = self._device.get(self._progress.clock)[:number][stopped]
            share = float(((clocks - start) / window).min())
        return made, noted, share

    def _tell(self, number: int) -> np.ndarray:
        return self._device.get(self._progress.facts)[:number]

    def _logged(self, number: int, most: int) -> Events:
        """The hops of the last launch."""
        made = np.arange(most) < self._tell(number)[:, _NEW, None]
        time, hops = map(self._device.get, self._log)
        rows = number * most
        return Events(time[:rows].reshape(-1, most)[made], hops[:rows].reshape(-1, most, 5)[made])

    def _noted(self, number: int) -> np.ndarray:
        """The records of all tiles."""
        count = self._tell(number)[:, _NOTED]
        rows = int(count.max(initial=0))
        records = self._device.get(self._records[: rows * number]).reshape(rows, number, 4)
        return records[np.arange(rows)[:, None] < count]


@CudaKernel
def _obey(cuda: Any) -> Callable[..., None]:
    bare = to_bare()

    def set_sites(grid: Any, origin: Any, sides: Any, records: Any) -> None:
        r = cuda.grid(1)
        if r < records.shape[0]:
            obey(bare(grid), bare(origin), sides, bare(records), r)

    return set_sites


@CudaKernel
def _evolve(cuda: Any) -> Callable[..., None]:
    evaluate, bare = on_block(cuda), to_bare()

    def before(counts, me, threads, mine):  # type: ignore[no-untyped-def]
        """The sum of a number of each thread before this one, and of all."""
        counts[me] = mine
        cuda.syncthreads()
        first, total = 0, 0
        for i in range(threads):
            if i == me:
                first = total
            total += counts[i]
        cuda.syncthreads()
        return first, total

    before_me = called(cuda, before)

    def evolve_tile(  # type: ignore[no-untyped-def]
        grids, flats, origins, members, tiles, law, keys_met, rates_met, lists, progress, notes,
        keys_of_0, start, window, limit, most, noting, fresh, taken,
    ):  # fmt: skip
        """A block of threads for each tile; ``fresh`` begins a pass, else it goes on with that."""
        origins, members, tiles, law = bare(origins), bare(members), bare(tiles), bare(law)
        lists, progress, notes = bare(lists), bare(progress), bare(notes)
        me, threads, t = cuda.threadIdx.x, cuda.blockDim.x, cuda.blockIdx.x
        everyone = cuda.gridDim.x
        b, row_of_tile = t // tiles.table.shape[0], t % tiles.table.shape[0]
        grid, flat = bare(grids)[b], bare(flats)[b]
        origin = origins[b, 0], origins[b, 1], origins[b, 2]
        keys = keys_of_0[0], keys_of_0[1] + members[b], keys_of_0[2]
        shared = cuda.shared.array(BLOCK_FLOATS, np.float32)
        types = cuda.shared.array(SITES, np.uint8)
        barriers = cuda.shared.array(NEIGHBOURS, np.float32)
        rates = cuda.shared.array(NEIGHBOURS, np.float64)
        key = cuda.shared.array(WORDS, np.uint64)
        waits = cuda.shared.array(_AHEAD, np.float64)
        choices = cuda.shared.array(_AHEAD, np.float64)
        counts = cuda.shared.array(_THREADS, np.int64)
        told = cuda.shared.array(_TOLD, np.int64)
        last_time = cuda.shared.array(1, np.float64)
        last_hop = cuda.shared.array((1, 5), np.int64)
        facts, sums = progress.facts, progress.sums
        region = region_of(tiles, row_of_tile)
        halo, sides, whole, offsets = law.halo, law.sides, region.whole, law.offsets
        known_keys, known_rates = bare(keys_met)[t], bare(rates_met)[t]
        sets = known_keys.shape[0]
        if fresh:
            x0, y0, z0 = (
                first_in(region, 0, halo),
                first_in(region, 1, halo),
                first_in(region, 2, halo),
            )
            x1, y1, z1 = (
                last_in(region, 0, halo, sides),
                last_in(region, 1, halo, sides),
                last_in(region, 2, halo, sides),
            )
            width, rows = y1 - y0, (x1 - x0) * (y1 - y0)
            place, listed = lists.place, lists.flat
            full = listed.size
            n = 0
            for row in range(0, rows, threads):  # there is no room from ``full`` on: it counts
                r, mine = row + me, 0
                if r < rows:
                    x, y = x0 + r // width, y0 + r % width
                    mine = list_row(grid, x, y, z0, z1, full, place, listed) - full
                n += before_me(counts, me, threads, mine)[1]
            if me == 0:
                first = cuda.atomic.add(sums, _TAKEN, n) - taken
                facts[t, _FIRST], facts[t, _NUMBER], facts[t, _HOPS] = first, n, 0
                facts[t, _NOTED], facts[t, _DONE] = 0, n == 0
                progress.clock[t] = start
            cuda.syncthreads()
            at = facts[t, _FIRST]
            for row in range(0, rows, threads):
                r, mine = row + me, 0
                x, y = x0 + r // width, y0 + r % width
                if r < rows:
                    mine = list_row(grid, x, y, z0, z1, full, place, listed) - full
                ahead, total = before_me(counts, me, threads, mine)
                if mine > 0:
                    list_row(grid, x, y, z0, z1, at + ahead, place, listed)
                at += total
            cuda.syncthreads()
        n, hops = facts[t, _NUMBER], facts[t, _HOPS]
        if facts[t, _DONE] == 0:
            part = part_of(lists, facts[t, _FIRST], n)
            place, nearby, tree, found = part.place, part.near, part.tree, part.found
            some, until = min(most, limit - hops), start + window
            counter = (np.uint64(tiles.table[row_of_tile, 3]) << np.uint64(32)) + np.uint64(hops)
            clock, near, looks, computed = progress.clock[t], 0, 0, 0
            noted = t + facts[t, _NOTED] * everyone
            x, y, z, made = 0, 0, 0, 0
            if me == 0:
                told[_COUNT] = n if hops == 0 else 0
                told[_NEAR] = 0
            if hops == 0:
                for i in range(me, tree.size, threads):
                    tree[i] = 0.0
                for i in range(me, n, threads):
                    found[i] = i
            while True:
                cuda.syncthreads()
                looked = 0
                while looked < told[_COUNT]:
                    u = found[looked]
                    here = np.uint64(part.flat[u])
                    for i in range(me, SITES, threads):
                        species = species_near(flat, here, offsets, i)
                        types[i] = species
                        if species == VACANCY:
                            cuda.atomic.add(told, _NEAR, 1)
                    cuda.syncthreads()
                    bucket, entry = np.uint64(0), -1
                    if sets > 0:
                        for w in range(me, WORDS, threads):
                            key[w] = packed(types, w)
                        cuda.syncthreads()
                        bucket, entry = entry_of(key[0], key[1], key[2], key[3], known_keys)
                        bucket = np.uint64(bucket)  # in the simulator a number of Python
                    if entry < 0:
                        evaluate(law.barriers, types, shared, me, threads, barriers)
                        for d in range(me, NEIGHBOURS, threads):
                            rates[d] = hop_rate(law.beta, barriers[d])
                    else:
                        for d in range(me, NEIGHBOURS, threads):
                            rates[d] = known_rates[bucket, np.uint64(entry), d]
                    cuda.syncthreads()
                    if me == 0:
                        if sets > 0 and entry != 0:
                            to_front(bucket, entry, known_keys, known_rates, key, rates)
                        accept(u, halo, region, place, part.rates, tree, rates)
                        nearby[u] = told[_NEAR]
                        told[_NEAR] = 0
                        looks += 1
                        computed += entry < 0
                        if looked == 0 and made > 0 and n > 1 and near + nearby[u] > 0:
                            # This one has hopped: those that see where it was, or where it is.
                            count = others_near(x, y, z, u, n, grid, flat, law, region, part, 1)
                            x, y, z = place[u, 0], place[u, 1], place[u, 2]
                            count = others_near(x, y, z, u, n, grid, flat, law, region, part, count)
                            told[_COUNT] = count
                    looked += 1
                    cuda.syncthreads()
                if made % _AHEAD == 0:
                    for i in range(me, _AHEAD, threads):
                        waits[i], choices[i] = wait_and_choice(keys, counter + np.uint64(made + i))
                    cuda.syncthreads()
                if me == 0:  # if others still ask: they have looked at one vacancy or more
                    told[_STOP] = 1
                    total = tree[1]
                    if made < some and total > 0.0:
                        time = clock + waits[made % _AHEAD] / total
                        if time <= until:
                            clock = time
                            v, d = choose_hop(tree, part.rates, choices[made % _AHEAD] * total)
                            near = nearby[v]
                            x, y, z, atom = hop(grid, halo, sides, whole, place, part.flat, v, d)
                            if notes.log.time.size > 0:
                                row = t * most + made
                                write(notes.log, row, clock, origin, sides, x, y, z, d, atom)
                            if noting:
                                last = Events(last_time, last_hop)
                                write(last, 0, clock, origin, sides, x, y, z, d, atom)
                                noted = note(
                                    origin, sides, notes.near, last_hop[0], t, noted,
                                    notes.records, everyone,
                                )  # fmt: skip
                            told[_STOP], told[_COUNT], found[0] = 0, 1, v
                cuda.syncthreads()
                if told[_STOP] == 1:
                    break
                made += 1
            if me == 0:
                stopped = hops + made >= limit
                waiting = made == some and not stopped
                facts[t, _HOPS], facts[t, _NEW] = hops + made, made
                facts[t, _NOTED], facts[t, _DONE] = (noted - t) // everyone, not waiting
                progress.clock[t] = clock
                if waiting:
                    cuda.atomic.add(sums, _WAITING, 1)
                if stopped:
                    cuda.atomic.add(sums, _STOPPED, 1)
                cuda.atomic.add(sums, _MADE + b, made)
                cuda.atomic.add(sums, _LOOKS, looks)
                cuda.atomic.add(sums, _DONE_LOOKS, computed)
            cuda.syncthreads()
            if noting:
                last_row = t + facts[t, _NOTED] * everyone
                for r in range(t + me * everyone, last_row, threads * everyone):
                    fill(grid, origin, sides, notes.records, r)
        elif me == 0:
            facts[t, _NEW] = 0

    return evolve_tile
