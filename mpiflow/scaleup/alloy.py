"""From small alloys to large ones: assemble blocks, relax locally.

Both follow Chen et al., "Scalable learning of macroscopic stochastic dynamics"
(arXiv:2511.12842), sections II.1 and III.3; :mod:`mpiflow.scaleup.alloy_partial` then evolves one
vacancy. States are whole periodic lattices, grids of points (nx, ny, nz) int8 as in
:mod:`mpiflow.systems.alloy`. Each rank works on its own members of a data set; a member's
noise is keyed by its index, so nothing depends on the number of ranks or on who else is in
the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from mpiflow.core.device import copy_line, kernel
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.core.noise import Word, stream_key, threefry, uniform_below
from mpiflow.initial.alloy import counts_of
from mpiflow.scaleup.boxes import (
    Surroundings,
    Tools,
    cut,
    noise_keys,
    require_lattices,
    require_room,
    require_stop,
    require_surroundings,
    tools_of,
)
from mpiflow.solvers.vacancy.events import evolve
from mpiflow.solvers.vacancy.lists import first_of, scan
from mpiflow.systems import alloy
from mpiflow.systems.alloy import REACH, Alloy
from mpiflow.systems.barriers import Barriers

# -- assemble ------------------------------------------------------------------------------


class Assembled(NamedTuple):
    """Large states put together from small ones.

    Attributes
    ----------
    states : (B, f nx, f ny, f nz) int8
    changed : (B,) int64, sites whose species was changed to get the numbers of atoms right
    sources : (B, f^3) int64, numbers of the snapshots that the blocks are, row-major
    """

    states: np.ndarray
    changed: np.ndarray
    sources: np.ndarray


def assemble(
    snapshots: np.ndarray,
    factor: int,
    members: np.ndarray,
    *,
    seed: int,
    counts: Sequence[int] | None = None,
    pool: np.ndarray | None = None,
    elements: int = len(alloy.ELEMENTS),
    repeated: bool = False,
) -> Assembled:
    """Large states of ``factor``^3 blocks, each a small state drawn at random.

    Every block of every member is a snapshot of the pool, all equally likely, shifted round
    its periodic edges by a random number of whole cells along each axis. Then as few sites as
    possible, chosen at random among those of the species that are too many, are changed until
    there are ``counts`` of each.

    Parameters
    ----------
    snapshots : (N, nx, ny, nz) int8, states of the small system
    members : (B,) noise keys, the index of each large state in the data set
    counts : numbers of vacancies and of atoms of each element of a large state. Default: as
        many vacancies as the blocks have, and equal parts of the elements.
    pool : (B, 2), first and one past the last snapshot that a member may use; default all.
        As published, the snapshots within 10 of a moment that the blocks have in common.
    elements : number of elements
    repeated : all blocks of a member are the same, so that they join without faces: bonds across
        the faces of blocks that know nothing of each other have no order, and it takes thousands of
        hops of each vacancy to bring it there

    Raises
    ------
    InputError : what is given does not fit together
    """
    if factor < 1:
        raise InputError("factor", factor, "an integer of 1 or more", "Try 2.")
    vacancies = require_lattices("snapshots", snapshots, elements + 1)
    members = noise_keys(members, len(members))
    small = snapshots.shape[1:]
    large = tuple(factor * n for n in small)
    wanted = _wanted(int(np.prod(large)) // 4, factor, vacancies, counts, elements)
    limits = np.array([[0, len(snapshots)]]) if pool is None else np.asarray(pool, np.int64)
    if pool is not None and limits.shape != (len(members), 2):
        raise InputError("pool", limits.shape, f"({len(members)}, 2)", "Give one for each member.")
    if np.any(limits[:, 0] < 0) or np.any(limits[:, 1] > len(snapshots)):
        raise InputError("pool", "some", f"numbers from 0 to {len(snapshots)}", "Clip it.")
    if np.any(limits[:, 0] >= limits[:, 1]):
        raise InputError("pool", "some", "start before stop", "Give every member a snapshot.")
    limits = np.ascontiguousarray(np.broadcast_to(limits, (len(members), 2)))
    states = np.empty((len(members), *large), np.int8)
    changed = np.zeros(len(members), np.int64)
    sources = np.empty((len(members), factor**3), np.int64)
    key = stream_key(seed, "source")
    work = np.ascontiguousarray(snapshots)
    _fill_blocks(work, factor, members, key, limits, repeated, states, sources)
    _repair(states, members, key, wanted, changed)
    return Assembled(states, changed, sources)


def _wanted(
    sites: int, factor: int, vacancies: np.ndarray, counts: Sequence[int] | None, elements: int
) -> np.ndarray:
    """Numbers of each species of a large state, (S + 1,) int64."""
    if counts is None:
        if len(vacancies) == 0 or vacancies.min() < vacancies.max():
            raise InputError(
                "counts", None, "numbers, unless all snapshots have as many vacancies", "Give them."
            )
        counts = counts_of(sites, factor**3 * int(vacancies[0]), elements=elements)
    wanted = np.asarray(counts, np.int64)
    if wanted.shape != (elements + 1,) or np.any(wanted < 0) or wanted.sum() != sites:
        raise InputError(
            "counts",
            wanted.tolist(),
            f"{elements + 1} numbers, of vacancies and of each element, that add up to {sites}",
            "Use counts_of to find them.",
        )
    return wanted


@kernel
def _fill_blocks(
    snapshots: np.ndarray,
    factor: int,
    members: np.ndarray,
    key: np.ndarray,
    limits: np.ndarray,
    repeated: bool,
    states: np.ndarray,
    sources: np.ndarray,
) -> None:
    """Noise: step 0, site = number of the block, row-major; that of the first if repeated."""
    nx, ny, nz = snapshots.shape[1:]
    shift = np.empty(3, np.int64)
    for b in range(states.shape[0]):
        for block in range(factor**3):
            site = np.uint64(0 if repeated else block)
            w0, w1 = threefry(key[0], key[1] + members[b], np.uint64(0), site)
            number = limits[b, 0] + uniform_below(w0, limits[b, 1] - limits[b, 0])
            sources[b, block] = number
            for a in range(3):  # 21 bits for each axis
                part = (w1 >> np.uint64(21 * a)) & np.uint64(2**21 - 1)
                cells = np.uint64(snapshots.shape[1 + a] // 2)
                shift[a] = 2 * np.int64(part * cells >> np.uint64(21))
            x0, y0 = block // factor**2 * nx, block // factor % factor * ny
            z0 = block % factor * nz
            for x in range(nx):
                for y in range(ny):
                    # np.roll by the shift
                    source = snapshots[number, (x - shift[0]) % nx, (y - shift[1]) % ny]
                    target = states[b, x0 + x, y0 + y, z0 : z0 + nz]
                    copy_line(target[shift[2] :], source)
                    copy_line(target[: shift[2]], source[nz - shift[2] :])


@kernel
def _repair(
    states: np.ndarray,
    members: np.ndarray,
    key: np.ndarray,
    wanted: np.ndarray,
    changed: np.ndarray,
) -> None:
    """Change as few sites as possible. Noise: steps 1 (which sites) and 2 (into what)."""
    species = wanted.size
    flats = states.reshape(states.shape[0], -1)
    for b in range(states.shape[0]):
        flat = flats[b]
        surplus = -wanted
        for i in range(flat.size):
            if flat[i] >= 0:
                surplus[flat[i]] += 1
        total = 0
        for s in range(species):
            total += max(surplus[s], 0)
        changed[b] = total
        chosen, made, draws = np.empty(total, np.int64), 0, 0
        for s in range(species):
            if surplus[s] <= 0:
                continue
            places = np.empty(wanted[s] + surplus[s], np.int64)
            n = 0
            for i in range(flat.size):
                if flat[i] == s:
                    places[n] = i
                    n += 1
            for i in range(surplus[s]):  # the first cards of a shuffled pack
                word = threefry(key[0], key[1] + members[b], np.uint64(1), np.uint64(draws))[0]
                j = i + uniform_below(word, n - i)
                places[i], places[j] = places[j], places[i]
                chosen[made] = places[i]
                made += 1
                draws += 1
        into = 0
        for i in range(total):
            word = threefry(key[0], key[1] + members[b], np.uint64(2), np.uint64(i))[0]
            j = i + uniform_below(word, total - i)
            chosen[i], chosen[j] = chosen[j], chosen[i]
            while surplus[into] >= 0:
                into += 1
            flat[chosen[i]] = into
            surplus[into] += 1


# -- local relaxation ----------------------------------------------------------------------


def window_origins(sides: Shape, window: int, stride: int) -> Iterator[Shape]:
    """First points of the windows, row-major, over the whole periodic lattice."""
    fits = all(n == window or (n > window and n % stride == 0) for n in sides)
    if window % 2 or stride % 2 or not 2 <= stride <= window or not fits:
        raise InputError(
            "window, stride",
            (window, stride),
            f"even, stride <= window <= side, stride dividing the sides {sides}",
            "Try a stride of half the window.",
        )
    return product(*(range(0, 1 if n == window else n, stride) for n in sides))


def local_relax(
    states: np.ndarray,
    members: np.ndarray,
    system: Alloy,
    model: Barriers,
    *,
    seed: int,
    window: int = 16,
    stride: int | None = None,
    surroundings: Surroundings = "frozen",
    hops: int | None = None,
    duration: float | None = None,
    level: int = 0,
) -> np.ndarray:
    """Relax whole lattices in overlapping windows, one after the other, in place.

    Algorithm 1's LocalRelax. With ``frozen`` surroundings all vacancies in a window hop along
    the bonds whose corner lies in it, everything else standing still: detailed balance holds,
    so for a duration the Gibbs measure stays invariant. ``wrap`` cuts the window, closes it on
    itself and pastes it back, as the published code does.

    Parameters
    ----------
    states : (B, nx, ny, nz) int8, changed in place
    members : (B,) noise keys, the index of each state in the data set
    window, stride : points along each axis, two to a cell; windows overlap when the stride
        (default window / 2) is smaller. An axis as long as the window is left periodic.
    hops : in each window that has a vacancy; or
    duration : of each window in s
    level : number of this relaxation, so that repeated ones draw fresh noise

    Returns
    -------
    (B,) int64, hops made in all windows of each state
    """
    require_surroundings(surroundings)
    if stride is None:
        stride = max(2, window // 4 * 2)
    most, until = require_stop(hops, duration)
    if not 0 <= level < 2**31:
        raise InputError("level", level, "0 to 2**31 - 1", "Count from 0.")
    found = require_lattices("states", states, len(system.elements) + 1)
    keys = noise_keys(members, len(states))
    sides = states.shape[1:]
    origins = np.array(list(window_origins(sides, window, stride)), np.int64)
    if surroundings == "frozen":
        require_room("window", window, sides)
    elif window < 2 * REACH:
        raise InputError(
            "window", window, f"{2 * REACH} points or more of a box closed on itself", "Try 16."
        )
    made = np.zeros(len(states), np.int64)
    tools = tools_of(states, window, surroundings, system, model, max(1, int(found.max(initial=0))))
    work = np.ascontiguousarray(states)
    key = stream_key(seed, "vacancy-relax")
    _relax(work, keys, origins, key, np.uint64(level << 32), until, most, tools, made)
    if work is not states:
        states[...] = work
    return made


@kernel
def _relax(
    states: np.ndarray,
    members: np.ndarray,
    origins: np.ndarray,
    key: np.ndarray,
    first: Word,
    until: float,
    most: int,
    tools: Tools,
    made: np.ndarray,
) -> None:
    law, region, grid, log = tools.evaluator.law, tools.region, tools.grid, tools.log
    zero = np.zeros(3, np.int64)
    # Centres one point before the window hop too, unless it is closed.
    start = law.halo - 1 + min(region.whole)
    sides = np.empty(3, np.int64)
    for a in range(3):
        sides[a] = region.high[a] - start
    for b in range(states.shape[0]):
        for window in range(origins.shape[0]):
            cut(states[b], origins[window], tools)
            n = scan(grid, law, region, tools.lists)
            if n == 0:
                continue
            here = first_of(tools.lists, n)
            keys = key[0], key[1] + members[b], first + np.uint64(window)
            # None is logged: there is no room from the row after the last one on.
            hops, _ = evolve(
                grid, zero, n, tools.evaluator, region, here, keys, np.uint64(0), 0.0, until, most,
                log, log.time.size, True,
            )  # fmt: skip
            if hops > 0:
                _paste(grid, tools.places, start, sides, states[b])
            made[b] += hops


@kernel
def _paste(
    grid: np.ndarray, places: np.ndarray, first: int, sides: np.ndarray, state: np.ndarray
) -> None:
    """Write the points from index ``first`` on, as many as ``sides``, back into the lattice."""
    for i in range(first, first + sides[0]):
        for j in range(first, first + sides[1]):
            row = state[places[0, i], places[1, j]]
            for k in range(first, first + sides[2]):
                row[places[2, k]] = grid[i, j, k]
