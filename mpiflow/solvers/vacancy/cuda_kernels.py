r"""Kernels of vacancies in tiles: a block of threads lets a tile evolve for a whole window.

What :func:`mpiflow.solvers.vacancy.events.evolve` does for tile after tile, blocks of threads do
here side by side, by the same rules in the same order: the same bits. The first thread chooses hops
and makes them, all of them read surroundings and evaluate barriers.

**Who waits for whom.** A launch has many passes, of one step or of several. Its tasks, a tile in a
pass each, are numbered pass after pass. A block takes the next number from a counter, waits until
the 26 tiles around it (fewer where an axis is not cut) and the tile itself have done all of their
earlier passes, lets its tile evolve, and says that it has. Tiles that touch are never at work at
the same time, and each sees what the passes before have left: that is all that the order of passes
means, for sites that a tile changes or reads lie less than a tile beyond it
(:mod:`mpiflow.solvers.vacancy.tiled`). So nobody waits for the slowest tile of a pass.

*It always ends.* A task waits only for tasks with lower numbers. Numbers are taken one after the
other by blocks that run, and a block that runs is not taken off before it ends: so at any time the
task with the lowest number that is not done is in the hands of a block which has nothing to wait
for. It needs neither a cooperative launch nor all blocks at once. Numba's simulator runs one block
after the other: the first one does all tasks, in their order.

*Memory.* Who has read that a tile is done sees what it wrote: the count is raised by an atomic
operation after a fence, and read by one with a fence after it, which also empties the fast memory
of a multiprocessor; the threads of a block meet before and after.

CUDA: simulated and assembled, not yet run on a GPU (docs/hpc.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mpiflow.core.device import CudaKernel, called, split, to_bare, unravel
from mpiflow.core.noise import wait_and_choice
from mpiflow.solvers.vacancy.barrier_kernels import BLOCK_FLOATS, on_block
from mpiflow.solvers.vacancy.changed_sites import fill, note, obey
from mpiflow.solvers.vacancy.events import Events, hop, write
from mpiflow.solvers.vacancy.lists import (
    accept,
    choose_hop,
    first_in,
    last_in,
    list_row,
    others_near,
    part_of,
    region_of,
)
from mpiflow.solvers.vacancy.rates import (
    WORDS,
    entry_of,
    hop_rate,
    packed,
    species_near,
    to_front,
)
from mpiflow.systems.alloy import NEIGHBOURS, VACANCY
from mpiflow.systems.barriers import SITES

#: Events of a tile whose noise is drawn at once, an event a thread.
_AHEAD = 32
#: Threads of a block at most.
_THREADS = 128
#: What is known of a tile: its first vacancy in the lists, their number, its hops in this pass and
#: in this launch, its records, whether it is done.
FIRST, NUMBER, HOPS, NEW, NOTED, DONE, FACTS = range(7)
#: What all tiles count together, from launch to launch: places taken in the lists, tasks taken,
#: tiles that are not done, tiles with too many hops, tiles that must be done otherwise, vacancies
#: looked at, barriers of them computed; then the hops of each box.
TAKEN, TASKS, WAITING, STOPPED, UNDONE, LOOKS, DONE_LOOKS, MADE = range(8)
#: What threads of a block tell each other: vacancies to look at, vacancies around the one that is
#: looked at, whether the tile stops, the number of the task, vacancies listed so far.
_COUNT, _NEAR, _STOP, _TASK, _LISTED, _TOLD = range(6)


class Progress(NamedTuple):
    """How far tiles are, those of one box after those of another.

    Attributes
    ----------
    facts : (T, 6) int64
    clock : (T,) float64, time of the last hop
    passes : (T,) int64, passes done, as numbers that never fall
    share : (1,) float64, the part of the window after which the first tile had too many hops
    sums : (7 + B,) int64
    """

    facts: Any
    clock: Any
    passes: Any
    share: Any
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


class Work(NamedTuple):
    """The tasks of a launch: some tiles of one class in one pass, or whole steps.

    Attributes
    ----------
    first, tiles : of the class, as rows of the table; in steps their number in each
    classes : of tiles; 0 for one pass
    passes : of all steps of the launch together
    task, stamp : tasks taken before, and passes
    grid : tiles of the lattice along each axis
    step : number of the first step, times are counted from its beginning; -1: from ``start``
    room : in the lists, that all blocks share
    own : beyond that, room that each block has; tiles with more vacancies take some of the former
    """

    first: int
    tiles: int
    classes: int
    passes: int
    task: int
    stamp: int
    grid: tuple[int, int, int]
    step: int
    room: int
    own: int


@CudaKernel
def set_sites_of_others(cuda: Any) -> Callable[..., None]:
    bare = to_bare()

    def set_sites(grid: Any, origin: Any, sides: Any, records: Any) -> None:
        r = cuda.grid(1)
        if r < records.shape[0]:
            obey(bare(grid), bare(origin), sides, bare(records), r)

    return set_sites


@CudaKernel
def evolve_tiles(cuda: Any) -> Callable[..., None]:
    evaluate, bare = on_block(cuda), to_bare()

    def wait_for(  # type: ignore[no-untyped-def]
        passes, box, number, work, step, number_of_pass, me, threads
    ):
        """Until a tile and those around it have done their earlier passes."""
        shape, a_step = work.grid, 2 * work.classes - 1
        for k in range(me, 27, threads):
            beyond = k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1
            there = unravel(number, shape[1], shape[2])
            kind, row = 0, 0
            for axis in range(3):
                if shape[axis] > 1:
                    at = there[axis] + beyond[axis]
                    at = at - shape[axis] if at >= shape[axis] else at
                    at = at + shape[axis] if at < 0 else at
                    kind, row = 2 * kind + at % 2, row * (shape[axis] // 2) + at // 2
            # The last pass of its class before this one.
            last = (step + 1) * a_step - 1 - kind
            last = step * a_step + kind if last >= number_of_pass else last
            last = step * a_step - 1 - kind if last >= number_of_pass else last
            place = box + kind * work.tiles + row
            while last >= 0 and cuda.atomic.add(passes, place, 0) <= work.stamp + last:
                pass
        cuda.threadfence()

    wait = called(cuda, wait_for)

    def evolve_tile(  # type: ignore[no-untyped-def]
        grids, flats, origins, members, tiles, law, keys_met, rates_met, lists, progress, notes,
        keys_of_0, start, window, limit, most, noting, fresh, taken, work,
    ):  # fmt: skip
        """A block of threads for each task; ``fresh`` begins a pass, else it goes on with that."""
        origins, members, tiles, law = bare(origins), bare(members), bare(tiles), bare(law)
        lists, progress, notes = bare(lists), bare(progress), bare(notes)
        me, threads = cuda.threadIdx.x, cuda.blockDim.x
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
        facts, sums, in_steps = progress.facts, progress.sums, work.classes > 0
        everyone, all_tiles = len(members) * work.tiles, tiles.table.shape[0]
        more, room_for_more = 0, 0
        while True:
            if me == 0:
                told[_TASK] = cuda.atomic.add(sums, TASKS, 1) - work.task
                told[_LISTED] = 0
            cuda.syncthreads()
            task = told[_TASK]
            if task >= everyone * work.passes:
                break
            number_of_pass, t = split(task, everyone)
            b, row_of_tile = split(t, work.tiles)
            begin, part_of_window = start, window
            if in_steps:
                step, of_step = split(number_of_pass, 2 * work.classes - 1)
                kind = min(of_step, 2 * work.classes - 2 - of_step)
                row_of_tile += kind * work.tiles
                part_of_window = window if kind == work.classes - 1 else 0.5 * window
                if work.step >= 0:
                    begin = np.float64(work.step + step) * window
                wait(
                    progress.passes, b * all_tiles, tiles.table[row_of_tile, 3], work, step,
                    number_of_pass, me, threads,
                )  # fmt: skip
                cuda.syncthreads()
            row_of_tile += work.first
            own = b * all_tiles + row_of_tile
            grid, flat = bare(grids)[b], bare(flats)[b]
            origin = origins[b, 0], origins[b, 1], origins[b, 2]
            keys = (
                keys_of_0[0],
                keys_of_0[1] + members[b],
                keys_of_0[2] + np.uint64(number_of_pass),
            )
            region = region_of(tiles, row_of_tile)
            halo, sides, whole, offsets = law.halo, law.sides, region.whole, law.offsets
            known_keys, known_rates = bare(keys_met)[own], bare(rates_met)[own]
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
                full, mine = listed.size, 0
                for r in range(me, rows, threads):  # there is no room from ``full`` on: it counts
                    above, beside = split(r, width)
                    x, y = x0 + above, y0 + beside
                    mine += list_row(grid, x, y, z0, z1, full, place, listed) - full
                someone = cuda.syncthreads_or(1 if mine > 0 else 0)
                if mine > 0:
                    cuda.atomic.add(told, _LISTED, mine)
                if someone:
                    cuda.syncthreads()
                if me == 0:
                    n, first = told[_LISTED], 0
                    if in_steps and n <= work.own:
                        first = work.room + work.own * cuda.blockIdx.x
                    elif in_steps and n <= room_for_more:
                        first = more
                    else:
                        first = cuda.atomic.add(sums, TAKEN, n) - taken
                        more, room_for_more = first, n
                        if first + n > work.room:
                            n, room_for_more = 0, 0
                            cuda.atomic.add(sums, UNDONE, 1)
                    facts[own, FIRST], facts[own, NUMBER], facts[own, HOPS] = first, n, 0
                    facts[own, NOTED], facts[own, DONE] = 0, n == 0
                    progress.clock[own] = begin
                if someone:
                    cuda.syncthreads()
                    at, round_of_rows = facts[own, FIRST], 0
                    if facts[own, NUMBER] == 0:
                        round_of_rows = rows
                    while round_of_rows < rows:
                        r, mine = round_of_rows + me, 0
                        above, beside = split(r, width)
                        x, y = x0 + above, y0 + beside
                        if r < rows:
                            mine = list_row(grid, x, y, z0, z1, full, place, listed) - full
                        counts[me] = mine
                        cuda.syncthreads()
                        round_of_rows += threads
                        ahead, total_of_rows = 0, 0
                        if mine > 0 or round_of_rows < rows:
                            for i in range(threads):
                                if i == me:
                                    ahead = total_of_rows
                                total_of_rows += counts[i]
                        if mine > 0:
                            list_row(grid, x, y, z0, z1, at + ahead, place, listed)
                        at += total_of_rows
                        cuda.syncthreads()
            cuda.syncthreads()
            n, hops = facts[own, NUMBER], facts[own, HOPS]
            if facts[own, DONE] == 0:
                part = part_of(lists, facts[own, FIRST], n)
                place, nearby, tree, found = part.place, part.near, part.tree, part.found
                some, until = min(most, limit - hops), begin + part_of_window
                counter = (np.uint64(tiles.table[row_of_tile, 3]) << np.uint64(32)) + np.uint64(
                    hops
                )
                clock, near, looks, computed = progress.clock[own], 0, 0, 0
                noted = t + facts[own, NOTED] * everyone
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
                                count = others_near(
                                    x, y, z, u, n, grid, flat, law, region, part, count
                                )
                                told[_COUNT] = count
                        looked += 1
                        cuda.syncthreads()
                    if made % _AHEAD == 0:
                        for i in range(me, _AHEAD, threads):
                            waits[i], choices[i] = wait_and_choice(
                                keys, counter + np.uint64(made + i)
                            )
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
                                x, y, z, atom = hop(
                                    grid, halo, sides, whole, place, part.flat, v, d
                                )
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
                    facts[own, HOPS], facts[own, NEW] = hops + made, made
                    facts[own, NOTED], facts[own, DONE] = (noted - t) // everyone, not waiting
                    progress.clock[own] = clock
                    if waiting:
                        cuda.atomic.add(sums, UNDONE if in_steps else WAITING, 1)
                    if stopped:
                        cuda.atomic.add(sums, STOPPED, 1)
                        share = (clock - begin) / part_of_window
                        cuda.atomic.min(progress.share, 0, share)
                    cuda.atomic.add(sums, MADE + b, made)
                    cuda.atomic.add(sums, LOOKS, looks)
                    cuda.atomic.add(sums, DONE_LOOKS, computed)
                cuda.syncthreads()
                if noting:
                    last_row = t + facts[own, NOTED] * everyone
                    for r in range(t + me * everyone, last_row, threads * everyone):
                        fill(grid, origin, sides, notes.records, r)
            elif me == 0:
                facts[own, NEW] = 0
            if in_steps:
                cuda.syncthreads()
                if me == 0:
                    cuda.threadfence()
                    cuda.atomic.max(progress.passes, own, work.stamp + number_of_pass + 1)

    return evolve_tile
