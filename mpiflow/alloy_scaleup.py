r"""From small alloys to large ones: assemble blocks, relax locally, evolve one vacancy.

All three follow Chen et al., "Scalable learning of macroscopic stochastic dynamics"
(arXiv:2511.12842), sections II.1, II.2 and III.3. States are whole periodic lattices, grids of
points (nx, ny, nz) int8 as in :mod:`mpiflow.systems.alloy`. Each rank works on its own members
of a data set; a member's noise is keyed by its index, so nothing depends on the number of ranks
or on who else is in the batch.

**Why one vacancy is enough.** Only vacancies move atoms, one hop at a time, so the generator of
the bonds' numbers is a sum over the V vacancies, :math:`L = \sum_v L_v`. The change
:math:`\Delta_v` that the hops of one vacancy, chosen uniformly, make in a short time dt obeys

.. math:: \mathbb{E}[V \Delta_v] = \sum_v L_v N \, dt = L N \, dt, \qquad
          \mathrm{Cov}[V \Delta_v] = V \sum_v \Gamma_v \, dt = V \, \Gamma \, dt

to first order in dt, with :math:`\Gamma` the covariance rate of the whole lattice. So
:math:`\lambda = V` in the loss of the learner, the part that the number K of patches plays for
spins. With a buffer the other vacancies nearby hop too, but their hops are not counted: they
only make the surroundings fluctuate as they do. In a box as large as the lattice the first
equation then is exact for any dt, because every hop of the whole is made by one vacancy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from mpiflow import observables
from mpiflow.block import Block
from mpiflow.device import kernel, rule
from mpiflow.errors import InputError
from mpiflow.initial_alloy import counts_of
from mpiflow.lattice import Shape
from mpiflow.noise import MAX_MEMBER, Word, stream_key, threefry
from mpiflow.solvers.vacancy import (
    HALO,
    Events,
    Law,
    Lists,
    Region,
    Scratch,
    Table,
    check,
    events,
    evolve,
    first_of,
    law,
    lists,
    put,
    refresh_all,
    scan,
    scratch,
    table,
    within,
)
from mpiflow.systems import alloy
from mpiflow.systems.alloy import DIRECTIONS, NEIGHBOURS, NOT_A_SITE, REACH, VACANCY, Alloy
from mpiflow.systems.barriers import Barriers

#: What lies around a box: its true surroundings, or, as published, itself once more.
Surroundings = Literal["frozen", "wrap"]

#: Points around a box: vacancies may step one point over its edge.
_HALO = HALO + 1
#: Hops that are followed together.
_ROOM = 256
_NO_LIMIT = np.iinfo(np.int64).max
#: Points of the lattices that are handled together where they are copied.
_CHUNK = 2**23


@rule
def _below(word: Word, bound: int) -> np.int64:
    """A uniform number 0..bound - 1: the top bits times the bound; bias below bound / 2^32."""
    return np.int64((word >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32))


# -- checks --------------------------------------------------------------------------------


@kernel
def _census(states: np.ndarray, species: int, vacancies: np.ndarray) -> int:
    """Count the vacancies (B,); returns the first state that is no lattice of sites, or -1."""
    for b in range(states.shape[0]):
        wrong, found = 0, 0
        for x in range(states.shape[1]):
            for y in range(states.shape[2]):
                row = states[b, x, y]
                if (x - y) % 2 == 0:
                    sites, rest = row[x % 2 :: 2], row[1 - x % 2 :: 2]
                    for t in sites:
                        wrong += (t < 0) | (t >= species)
                        found += t == VACANCY
                else:
                    rest = row[:]
                for t in rest:
                    wrong += t != NOT_A_SITE
        if wrong > 0:
            return b
        vacancies[b] = found
    return -1


def _require_lattices(name: str, states: np.ndarray, species: int) -> np.ndarray:
    """Numbers of vacancies (B,) of states, which must be lattices of such species."""
    shape = states.shape[1:]
    if states.ndim != 4 or states.dtype != np.int8 or any(n % 2 or n < 2 * REACH for n in shape):
        raise InputError(
            name,
            f"{states.dtype} {states.shape}",
            f"(B, nx, ny, nz) int8, even numbers from {2 * REACH} on",
            "Use grids of two points for each cell.",
        )
    vacancies = np.zeros(len(states), np.int64)
    bad = _census(np.ascontiguousarray(states), species, vacancies)
    if bad >= 0:
        raise InputError(
            name,
            f"state {bad}",
            f"species 0 to {species - 1} where coordinates have equal parity, else {NOT_A_SITE}",
            "Put sites on a grid of two points for each cell.",
        )
    return vacancies


def _keys(members: np.ndarray, count: int) -> np.ndarray:
    """Members as (B,) uint64, one for each state."""
    members = np.asarray(members)
    if members.shape != (count,):
        raise InputError("members", members.shape, f"({count},), one for each state", "Count them.")
    if count and not (0 <= members.min() and members.max() < MAX_MEMBER):
        raise InputError("members", members.max(), f"0 to {MAX_MEMBER - 1}", "Number from 0.")
    return members.astype(np.uint64)


def _require_stop(hops: int | None, duration: float | None) -> tuple[int, float]:
    """The largest number of hops and the last time of a run."""
    if (hops is None) == (duration is None):
        raise InputError("hops, duration", (hops, duration), "one of the two", "Give one.")
    if duration is not None:
        if not (duration > 0 and np.isfinite(duration)):
            raise InputError("duration", duration, "a finite number of s above 0", "Try 1e-9.")
        return _NO_LIMIT, float(duration)
    if hops is None or hops < 1:
        raise InputError("hops", hops, "1 or more", "Try 100.")
    return hops, np.inf


def _require_surroundings(surroundings: str) -> None:
    if surroundings not in ("frozen", "wrap"):
        raise InputError("surroundings", surroundings, "'frozen' or 'wrap'", "Use frozen.")


# -- assemble ------------------------------------------------------------------------------


class Assembled(NamedTuple):
    """Large states put together from small ones.

    Attributes
    ----------
    states : (B, f nx, f ny, f nz) int8
    changed : (B,) int64, sites whose species was changed to get the numbers of atoms right
    """

    states: np.ndarray
    changed: np.ndarray


def assemble(
    snapshots: np.ndarray,
    factor: int,
    members: np.ndarray,
    *,
    seed: int,
    counts: Sequence[int] | None = None,
    pool: np.ndarray | None = None,
    elements: int = len(alloy.ELEMENTS),
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

    Raises
    ------
    InputError : what is given does not fit together
    """
    if factor < 1:
        raise InputError("factor", factor, "an integer of 1 or more", "Try 2.")
    vacancies = _require_lattices("snapshots", snapshots, elements + 1)
    members = _keys(members, len(members))
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
    key = stream_key(seed, "source")
    _fill_blocks(np.ascontiguousarray(snapshots), factor, members, key, limits, states)
    _repair(states, members, key, wanted, changed)
    return Assembled(states, changed)


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
    states: np.ndarray,
) -> None:
    """Noise: step 0, site = number of the block, row-major."""
    nx, ny, nz = snapshots.shape[1:]
    shift = np.empty(3, np.int64)
    for b in range(states.shape[0]):
        for block in range(factor**3):
            w0, w1 = threefry(key[0], key[1] + members[b], np.uint64(0), np.uint64(block))
            number = limits[b, 0] + _below(w0, limits[b, 1] - limits[b, 0])
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
                    target[shift[2] :] = source[: nz - shift[2]]
                    target[: shift[2]] = source[nz - shift[2] :]


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
                j = i + _below(word, n - i)
                places[i], places[j] = places[j], places[i]
                chosen[made] = places[i]
                made += 1
                draws += 1
        into = 0
        for i in range(total):
            word = threefry(key[0], key[1] + members[b], np.uint64(2), np.uint64(i))[0]
            j = i + _below(word, total - i)
            chosen[i], chosen[j] = chosen[j], chosen[i]
            while surplus[into] >= 0:
                into += 1
            flat[chosen[i]] = into
            surplus[into] += 1


# -- boxes ---------------------------------------------------------------------------------


class _Tools(NamedTuple):
    """What kernels need for boxes of one shape.

    Attributes
    ----------
    log : room for the hops of one call
    grid, copy : (x, y, z) int8, memory for padded boxes
    places : (3, most) int64, memory for where its points lie in the lattice
    """

    law: Law
    region: Region
    lists: Lists
    table: Table
    scratch: Scratch
    log: Events
    grid: np.ndarray
    copy: np.ndarray
    places: np.ndarray


def _tools(
    states: np.ndarray,
    box: Shape,
    surroundings: Surroundings,
    system: Alloy,
    model: Barriers,
    vacancies: int,
) -> _Tools:
    block = Block.cut(states[:1], (0, 0, 0), box, np.arange(len(states[:1])),
                      policy=surroundings, halo=_HALO)  # fmt: skip
    check(system, model, block)
    ours, end = law(system, model, block), tuple(_HALO + n for n in box)
    spans = tuple(int(n == side) for n, side in zip(box, ours.sides, strict=True))
    padded = tuple(n + 2 * _HALO for n in box)
    return _Tools(
        ours,
        Region((_HALO, _HALO, _HALO), (end[0], end[1], end[2]), (spans[0], spans[1], spans[2])),
        lists(vacancies),
        table(model, vacancies),
        scratch(model),
        events(_ROOM),
        np.empty(padded, np.int8),
        np.empty(padded, np.int8),
        np.empty((3, max(padded)), np.int64),
    )


def _require_room(name: str, length: int, box: Shape, sides: Shape) -> None:
    """Vacancies of a box must not see each other round the lattice."""
    for side, n in zip(sides, box, strict=True):
        if n != side and side - n <= REACH:
            raise InputError(
                name,
                length,
                f"the whole side of {side} points, or at most {side - REACH - 2} in all",
                "Vacancies in the box would meet round the lattice.",
            )


@kernel
def _cut(
    state: np.ndarray, origin: np.ndarray, law: Law, grid: np.ndarray, places: np.ndarray
) -> None:
    """Copy a box with what is around it: of a closed box, whose sides the law has, itself."""
    for a in range(3):
        for i in range(grid.shape[a]):
            places[a, i] = (origin[a] + (i - law.halo) % law.sides[a]) % state.shape[a]
    ny, nz, width = state.shape[1], state.shape[2], grid.shape[2]
    source, target = state.reshape(-1), grid.reshape(-1)
    first = 0
    while first < width:  # stretches of z that follow each other in the lattice too
        count = 1
        while first + count < width and places[2, first + count] == places[2, first] + count:
            count += 1
        to = np.uint64(first)
        for i in range(grid.shape[0]):
            for j in range(grid.shape[1]):
                at = np.uint64((places[0, i] * ny + places[1, j]) * nz + places[2, first])
                for k in range(np.uint64(count)):
                    target[to + k] = source[at + k]
                to += np.uint64(width)
        first += count


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
    _require_surroundings(surroundings)
    if stride is None:
        stride = max(2, window // 4 * 2)
    most, until = _require_stop(hops, duration)
    if not 0 <= level < 2**31:
        raise InputError("level", level, "0 to 2**31 - 1", "Count from 0.")
    found = _require_lattices("states", states, len(system.elements) + 1)
    keys = _keys(members, len(states))
    sides = states.shape[1:]
    origins = np.array(list(window_origins(sides, window, stride)), np.int64)
    box = (window,) * 3
    if surroundings == "frozen":
        _require_room("window", window, box, sides)
    else:
        _require_closed("window", window)
    made = np.zeros(len(states), np.int64)
    tools = _tools(states, box, surroundings, system, model, max(1, int(found.max(initial=0))))
    work = np.ascontiguousarray(states)
    key = stream_key(seed, "vacancy-relax")
    _relax(work, keys, origins, key, np.uint64(level << 32), until, most, tools, made)
    if work is not states:
        states[...] = work
    return made


def _require_closed(name: str, length: int) -> None:
    if length < 2 * REACH:
        raise InputError(
            name, length, f"{2 * REACH} points or more of a box closed on itself", "Try 16."
        )


@kernel
def _relax(
    states: np.ndarray,
    members: np.ndarray,
    origins: np.ndarray,
    key: np.ndarray,
    first: Word,
    until: float,
    most: int,
    tools: _Tools,
    made: np.ndarray,
) -> None:
    law, region, table, s, grid = tools.law, tools.region, tools.table, tools.scratch, tools.grid
    flat, zero = grid.reshape(-1), np.zeros(3, np.int64)
    # Centres one point before the window hop too, unless it is closed.
    start = law.halo - 1 + min(region.whole)
    sides = np.empty(3, np.int64)
    for a in range(3):
        sides[a] = region.high[a] - start
    for b in range(states.shape[0]):
        for window in range(origins.shape[0]):
            _cut(states[b], origins[window], law, grid, tools.places)
            n = scan(grid, law, region, tools.lists)
            if n == 0:
                continue
            here = first_of(tools.lists, n)
            refresh_all(n, flat, law, region, here, table, s)
            hops, _ = evolve(
                grid,
                zero,
                n,
                law,
                region,
                here,
                table,
                s,
                (key[0], key[1] + members[b], first + np.uint64(window)),
                np.uint64(0),
                0.0,
                until,
                most,
                tools.log,
                _ROOM,  # none is logged
            )
            if hops > 0:
                _paste(grid, tools.places, start, sides, states[b])
            made[b] += hops


# -- partial evolution ---------------------------------------------------------------------


@dataclass(frozen=True)
class AlloyPatches:
    """What the hops of one vacancy of each state change.

    The axis of P patches is there only if repeats were asked for; S is the number of elements.

    Attributes
    ----------
    bonds_before : (B, S + 1, S + 1) int64, bonds of the whole lattice, corner x centre
    change : (B, [P,] S + 1, S + 1) int64, exact change of the lattice's bonds, of a closed
        box's own, by the hops of the chosen vacancy
    elapsed : (B, [P]) float64, time that passed, s
    hops : (B, [P]) int64, hops of the chosen vacancy
    number : (B, [P]) int64, which of the V vacancies in C order of their places was chosen
    origin : (B, [P,] 3) int64, first point of each box
    vacancies : (B,) int64, V, the vacancies of each state
    sites : of the lattice
    closed : whether the boxes are closed on themselves
    before, after : None, or (B, [P,] n + 2, n + 2, n + 2) int8, the boxes with a frame of one
        point of their surroundings. With a buffer the hops of all vacancies are in them.
    """

    bonds_before: np.ndarray
    change: np.ndarray
    elapsed: np.ndarray
    hops: np.ndarray
    number: np.ndarray
    origin: np.ndarray
    vacancies: np.ndarray
    sites: int
    closed: bool
    before: np.ndarray | None = None
    after: np.ndarray | None = None

    def sro(self) -> np.ndarray:
        """Order parameters of the whole states, (B, pairs) float64."""
        return alloy.short_range_order(self.bonds_before)

    def increments(self) -> np.ndarray:
        r"""Increments of the order parameters, (B, [P,] pairs) float64.

        .. math:: V \, \Delta N_{ij} / n_i,

        V times the change by one vacancy: of the right mean, and of V times the covariance of
        the whole lattice's, so that :math:`\lambda = V`, to first order in ``elapsed``.
        """
        numbers = alloy.neighbour_numbers(self.change)[..., 1:, 1:]
        counts = alloy.species_numbers(self.bonds_before)[..., 1:]
        rows, columns = np.triu_indices(counts.shape[-1])
        factor = self.vacancies[:, None] / counts[:, rows]
        if numbers.ndim == 4:
            factor = factor[:, None]
        return factor * numbers[..., rows, columns]


def partial_evolution(
    states: np.ndarray,
    members: np.ndarray,
    system: Alloy,
    model: Barriers,
    *,
    seed: int,
    patch: int = 16,
    surroundings: Surroundings = "frozen",
    buffer: int = 0,
    hops: int | None = None,
    duration: float | None = None,
    mean_times: bool = False,
    repeats: int | None = None,
    which: np.ndarray | None = None,
    windows: bool = False,
) -> AlloyPatches:
    """Let one uniformly chosen vacancy of each state hop for a short time.

    With ``frozen`` surroundings it hops in a box around it, along the bonds whose corner lies
    in the box; all else stands still. With a ``buffer`` the box is wider and all vacancies in
    it hop, but only the hops of the chosen one are counted in ``change``. ``wrap`` is the
    published variant: the box is cut, closed on itself, and the chosen vacancy hops in it,
    others that happen to be there standing still (the published boxes have none, for vacancies
    were moved apart by hand).

    A vacancy that comes to the edge of its box is turned back, so hops and durations should be
    short: after h free hops it is about sqrt(3 h) points away.

    Parameters
    ----------
    states : (B, nx, ny, nz) int8, not changed
    members : (B,) noise keys
    patch : points along each axis, even, 4 or more, 8 or more if closed
    buffer : points around the patch, even
    hops : stop after so many hops in the box; ``elapsed`` is the time of the last. Or
    duration : time in s
    mean_times : with ``hops``, add up mean waiting times 1 / R instead of the random ones, as
        published. The mean of ``elapsed`` is the same.
    repeats : number P of patches of each state, chosen independently; None for one, without
        an axis for it
    which : (B, [P]) numbers of the vacancies to take, 0 to V - 1 in C order of their places;
        default random
    windows : keep the boxes before and after

    Raises
    ------
    InputError : what is given does not fit together
    """
    _require_surroundings(surroundings)
    most, until = _require_stop(hops, duration)
    if mean_times and hops is None:
        raise InputError("mean_times", True, "a number of hops, not a duration", "Use hops.")
    if repeats is not None and repeats < 1:
        raise InputError("repeats", repeats, "1 or more, or None", "Leave it out for one.")
    species, sides = len(system.elements) + 1, states.shape[1:]
    found = _require_lattices("states", states, species)
    if np.any(found == 0):
        raise InputError("states", "one", "a vacancy in each", "Use place_vacancies.")
    box = _box(sides, patch, buffer, surroundings == "wrap")
    keys = _keys(members, len(states))
    work = np.ascontiguousarray(states)
    room = int(found.max(initial=1)) if buffer else 1
    tools = _tools(work, box, surroundings, system, model, room)
    shape = (len(states), 1 if repeats is None else repeats)
    number = _numbers(found, keys, shape, seed, which, repeats)
    change = np.zeros((*shape, species, species), np.int64)
    elapsed, made = np.zeros(shape), np.zeros(shape, np.int64)
    origin = np.zeros((*shape, 3), np.int64)
    kept = np.empty((2, *(shape if windows else (0, 0)), *(n + 2 for n in box)), np.int8)
    _evolve_one_each(
        work, keys, number, stream_key(seed, "vacancy-partial"), until, most, mean_times,
        buffer > 0, tools, change, elapsed, made, origin, kept[0], kept[1],
    )  # fmt: skip

    def shaped(array: np.ndarray) -> np.ndarray:
        return array[:, 0] if repeats is None else array

    return AlloyPatches(
        whole_bonds(work, species),
        shaped(change),
        shaped(elapsed),
        shaped(made),
        shaped(number),
        shaped(origin),
        found,
        int(np.prod(sides)) // 4,
        surroundings == "wrap",
        shaped(kept[0]) if windows else None,
        shaped(kept[1]) if windows else None,
    )


def whole_bonds(states: np.ndarray, species: int) -> np.ndarray:
    """Bonds of whole lattices (B, nx, ny, nz), (B, species, species) int64, corner x centre."""
    out = np.zeros((len(states), species, species), np.int64)
    step = max(1, _CHUNK // max(1, int(np.prod(states.shape[1:]))))
    for i in range(0, len(states), step):
        part = states[i : i + step]
        block = Block.periodic(part, np.arange(len(part)))
        out[i : i + step] = observables.bond_counts(block, species)
    return out


def _box(sides: Shape, patch: int, buffer: int, closed: bool) -> Shape:
    """Points of the boxes of partial evolution along each axis."""
    least = 2 * REACH if closed else 4  # below, a vacancy in it could not make all eight hops
    if patch % 2 or not least <= patch <= min(sides):
        raise InputError(
            "patch", patch, f"an even number from {least} to {min(sides)} points", "Try 16."
        )
    if buffer % 2 or buffer < 0 or (buffer and closed) or patch + 2 * buffer > min(sides):
        raise InputError(
            "buffer",
            buffer,
            f"an even number from 0 to {(min(sides) - patch) // 4 * 2}, 0 of a closed box",
            "Use a thinner buffer.",
        )
    box = (patch + 2 * buffer,) * 3
    if buffer:
        _require_room("patch + 2 buffer", box[0], box, sides)
    return box


def _numbers(
    vacancies: np.ndarray,
    members: np.ndarray,
    shape: tuple[int, int],
    seed: int,
    which: np.ndarray | None,
    repeats: int | None,
) -> np.ndarray:
    """Numbers of the chosen vacancies, (B, P) int64."""
    if which is None:
        number = np.empty(shape, np.int64)
        _choose_numbers(vacancies, members, stream_key(seed, "patch"), number)
        return number
    which = np.asarray(which, np.int64)
    if which.shape != (shape if repeats is not None else shape[:1]):
        raise InputError("which", which.shape, "one for each patch", "See repeats.")
    number = np.ascontiguousarray(which).reshape(shape)
    if np.any(number < 0) or np.any(number >= vacancies[:, None]):
        raise InputError("which", "some", "0 to the number of vacancies - 1", "Check them.")
    return number


@kernel
def _choose_numbers(
    vacancies: np.ndarray, members: np.ndarray, key: np.ndarray, number: np.ndarray
) -> None:
    """Noise: step = number of the patch, site = 0."""
    for b in range(number.shape[0]):
        for p in range(number.shape[1]):
            word = threefry(key[0], key[1] + members[b], np.uint64(p), np.uint64(0))[0]
            number[b, p] = _below(word, vacancies[b])


@kernel
def _list_vacancies(state: np.ndarray, places: np.ndarray) -> None:
    """Points (V, 3) of all vacancies in C order."""
    n = 0
    for x in range(state.shape[0]):
        for y in range(x % 2, state.shape[1], 2):
            row = state[x, y]
            low = np.uint8(255)
            for i in range(row.size):  # a byte that is no site is 255
                low = min(low, np.uint8(row[i]))
            if low != VACANCY:
                continue
            for i in range(row.size):
                if row[i] == VACANCY:
                    places[n, 0] = x
                    places[n, 1] = y
                    places[n, 2] = i
                    n += 1


@kernel
def _count_bonds(
    grid: np.ndarray, x: int, y: int, z: int, corner: bool, new: int, old: int, out: np.ndarray
) -> None:
    """Change of the bonds of a site from old to new, its neighbours being as they are."""
    for d in range(NEIGHBOURS):
        other = grid[x + DIRECTIONS[d, 0], y + DIRECTIONS[d, 1], z + DIRECTIONS[d, 2]]
        if corner:
            out[new, other] += 1
            out[old, other] -= 1
        else:
            out[other, new] += 1
            out[other, old] -= 1


@kernel
def _count_hop(
    grid: np.ndarray, x: int, y: int, z: int, d: int, corner: bool, out: np.ndarray
) -> None:
    """Change of the bonds by hop d of a vacancy from a point, after it was made."""
    atom = grid[x, y, z]
    _count_bonds(grid, x, y, z, corner, atom, VACANCY, out)
    x, y, z = x + DIRECTIONS[d, 0], y + DIRECTIONS[d, 1], z + DIRECTIONS[d, 2]
    _count_bonds(grid, x, y, z, not corner, VACANCY, atom, out)
    # Their own bond was taken for one of each kind, but only turned round.
    out[VACANCY, VACANCY] += 1
    out[atom, atom] += 1
    out[VACANCY, atom] -= 1
    out[atom, VACANCY] -= 1


@kernel
def _replay(log: Events, count: int, tools: _Tools, at: np.ndarray, change: np.ndarray) -> int:
    """Repeat logged hops in ``tools.copy``, counting those of the vacancy at a point.

    Returns their number; the point moves along.
    """
    sides, halo, copy = tools.law.sides, tools.law.halo, tools.copy
    hops = 0
    for r in range(count):
        row = log.hop[r]
        x, y, z, d = row[0], row[1], row[2], row[3]
        put(copy, sides, x, y, z, row[4])
        put(
            copy,
            sides,
            x + DIRECTIONS[d, 0],
            y + DIRECTIONS[d, 1],
            z + DIRECTIONS[d, 2],
            VACANCY,
        )
        if at[0] % sides[0] != x or at[1] % sides[1] != y or at[2] % sides[2] != z:
            continue
        hops += 1
        _count_hop(copy, at[0], at[1], at[2], d, (at[0] - halo) % 2 == 0, change)
        x, y, z = at[0] + DIRECTIONS[d, 0], at[1] + DIRECTIONS[d, 1], at[2] + DIRECTIONS[d, 2]
        at[0], at[1], at[2] = within(tools.law, tools.region, x, y, z)
    return hops


@kernel
def _evolve_one(
    n: int,
    tools: _Tools,
    lists: Lists,
    keys: tuple[np.uint64, np.uint64, np.uint64],
    until: float,
    most: int,
    mean_times: bool,
    at: np.ndarray,
    change: np.ndarray,
) -> tuple[float, int]:
    """Let the n listed vacancies of a box hop, counting what the one at a point does.

    Returns the time that passed and the hops of that one.
    """
    rule, region, grid, log = tools.law, tools.region, tools.grid, tools.log
    refresh_all(n, grid.reshape(-1), rule, region, lists, tools.table, tools.scratch)
    tools.copy[...] = grid
    origin = np.zeros(3, np.int64)
    # Mean times need the rates before every hop.
    room = 1 if mean_times else log.time.size
    mean, clock, hops, total = 0.0, 0.0, 0, 0
    while total < most:
        wait = 1.0 / lists.tree[1]
        wanted = min(room, most - total)
        done, clock = evolve(
            grid,
            origin,
            n,
            rule,
            region,
            lists,
            tools.table,
            tools.scratch,
            keys,
            np.uint64(total),
            clock,
            until,
            wanted,
            log,
            0,
        )
        hops += _replay(log, done, tools, at, change)
        total += done
        if done < wanted:  # the time is over, or nothing can hop
            break
        mean += wait
    if until < np.inf:
        clock = until
    return mean if mean_times else clock, hops


@kernel
def _evolve_one_each(
    states: np.ndarray,
    members: np.ndarray,
    number: np.ndarray,
    key: np.ndarray,
    until: float,
    most: int,
    mean_times: bool,
    others: bool,
    tools: _Tools,
    change: np.ndarray,
    elapsed: np.ndarray,
    hops: np.ndarray,
    origins: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> None:
    """Partial evolution. Noise: step = number of the patch, site = event."""
    law, region, grid = tools.law, tools.region, tools.grid
    places = np.empty((states[:1].size // 4, 3), np.int64)
    at, frame = np.empty(3, np.int64), law.halo - 1
    inner = grid[frame:-frame, frame:-frame, frame:-frame]
    for b in range(number.shape[0]):
        _list_vacancies(states[b], places)
        for p in range(number.shape[1]):
            origin = origins[b, p]
            for a in range(3):
                middle = (region.high[a] - region.low[a]) // 2
                place = places[number[b, p], a]
                # As many corners before the vacancy as after it, or one more.
                first = (place - middle + 1) // 2 * 2
                at[a] = law.halo + place - first
                origin[a] = first % states.shape[1 + a]
            _cut(states[b], origin, law, grid, tools.places)
            if before.size > 0:
                before[b, p] = inner
            n = 1
            if others:
                n = scan(grid, law, region, tools.lists)
            else:
                tools.lists.place[0] = at
                tools.lists.flat[0] = (at[0] * grid.shape[1] + at[1]) * grid.shape[2] + at[2]
            elapsed[b, p], hops[b, p] = _evolve_one(
                n,
                tools,
                first_of(tools.lists, n),
                (key[0], key[1] + members[b], np.uint64(p)),
                until,
                most,
                mean_times,
                at,
                change[b, p],
            )
            if after.size > 0:
                after[b, p] = inner
