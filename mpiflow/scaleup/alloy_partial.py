r"""The evolution of one vacancy of a large alloy: what its hops change, in a short time.

Partial evolution of Chen et al., "Scalable learning of macroscopic stochastic dynamics"
(arXiv:2511.12842), sections II.2 and III.3. States and members are those of
:mod:`mpiflow.scaleup.alloy`.

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

from dataclasses import dataclass

import numpy as np

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.core.noise import stream_key, threefry, uniform_below
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
from mpiflow.solvers.vacancy.events import Events, evolve
from mpiflow.solvers.vacancy.lists import Lists, first_of, put, scan, within
from mpiflow.systems import alloy
from mpiflow.systems.alloy import DIRECTIONS, NEIGHBOURS, REACH, VACANCY, Alloy
from mpiflow.systems.barriers import Barriers

#: Points of the lattices that are handled together where they are copied.
_CHUNK = 2**23


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
    require_surroundings(surroundings)
    most, until = require_stop(hops, duration)
    if mean_times and hops is None:
        raise InputError("mean_times", True, "a number of hops, not a duration", "Use hops.")
    if repeats is not None and repeats < 1:
        raise InputError("repeats", repeats, "1 or more, or None", "Leave it out for one.")
    species, sides = len(system.elements) + 1, states.shape[1:]
    found = require_lattices("states", states, species)
    if np.any(found == 0):
        raise InputError("states", "one", "a vacancy in each", "Use place_vacancies.")
    box = _box(sides, patch, buffer, surroundings == "wrap")
    keys = noise_keys(members, len(states))
    work = np.ascontiguousarray(states)
    room = int(found.max(initial=1)) if buffer else 1
    tools = tools_of(work, box, surroundings, system, model, room)
    shape = (len(states), 1 if repeats is None else repeats)
    number = _numbers(found, keys, shape, seed, which, repeats)
    change = np.zeros((*shape, species, species), np.int64)
    elapsed, made = np.zeros(shape), np.zeros(shape, np.int64)
    origin = np.zeros((*shape, 3), np.int64)
    kept = np.empty((2, *(shape if windows else (0, 0)), *(box + 2,) * 3), np.int8)
    key = stream_key(seed, "vacancy-partial")
    _evolve_one_each(
        work, keys, _places(work, number), key, until, most, mean_times, buffer > 0, tools,
        change, elapsed, made, origin, kept[0], kept[1],
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


def _box(sides: Shape, patch: int, buffer: int, closed: bool) -> int:
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
    box = patch + 2 * buffer
    if buffer:
        require_room("patch + 2 buffer", box, sides)
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
            number[b, p] = uniform_below(word, vacancies[b])


def _places(states: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Where the chosen vacancies are, (B, P, 3) int64."""
    out = np.empty((*number.shape, 3), np.int64)
    for state, chosen, place in zip(states, number, out, strict=True):
        flat = np.flatnonzero(state == VACANCY)[chosen]
        place[:] = np.stack(np.unravel_index(flat, state.shape), axis=-1)
    return out


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
def _replay(log: Events, count: int, tools: Tools, at: np.ndarray, change: np.ndarray) -> int:
    """Repeat logged hops in ``tools.copy``, counting those of the vacancy at a point.

    Returns their number; the point moves along.
    """
    sides, halo, copy = tools.evaluator.law.sides, tools.evaluator.law.halo, tools.copy
    hops = 0
    for r in range(count):
        row = log.hop[r]
        x, y, z, d = row[0], row[1], row[2], row[3]
        put(copy, sides, x, y, z, row[4])
        i, j, k = x + DIRECTIONS[d, 0], y + DIRECTIONS[d, 1], z + DIRECTIONS[d, 2]
        put(copy, sides, i, j, k, VACANCY)
        if at[0] % sides[0] != x or at[1] % sides[1] != y or at[2] % sides[2] != z:
            continue
        hops += 1
        _count_hop(copy, at[0], at[1], at[2], d, (at[0] - halo) % 2 == 0, change)
        x, y, z = at[0] + DIRECTIONS[d, 0], at[1] + DIRECTIONS[d, 1], at[2] + DIRECTIONS[d, 2]
        at[0], at[1], at[2] = within(halo, sides, tools.region.whole, x, y, z)
    return hops


@kernel
def _evolve_one(
    n: int,
    tools: Tools,
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
    found, region, grid, log = tools.evaluator, tools.region, tools.grid, tools.log
    tools.copy[...] = grid
    origin = np.zeros(3, np.int64)
    # No hop yet, only the rates.
    evolve(grid, origin, n, found, region, lists, keys, np.uint64(0), 0.0, until, 0, log, 0, True)
    # Mean times need the rates before every hop.
    room = 1 if mean_times else log.time.size
    mean, clock, hops, total = 0.0, 0.0, 0, 0
    while total < most:
        wait = 1.0 / lists.tree[1]
        wanted = min(room, most - total)
        done, clock = evolve(
            grid, origin, n, found, region, lists, keys, np.uint64(total), clock, until, wanted,
            log, 0, False,
        )  # fmt: skip
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
    places: np.ndarray,
    key: np.ndarray,
    until: float,
    most: int,
    mean_times: bool,
    others: bool,
    tools: Tools,
    change: np.ndarray,
    elapsed: np.ndarray,
    hops: np.ndarray,
    origins: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> None:
    """Partial evolution. Noise: step = number of the patch, site = event."""
    law, region, grid = tools.evaluator.law, tools.region, tools.grid
    at, frame = np.empty(3, np.int64), law.halo - 1
    inner = grid[frame:-frame, frame:-frame, frame:-frame]
    for b in range(places.shape[0]):
        for p in range(places.shape[1]):
            origin = origins[b, p]
            for a in range(3):
                middle = (region.high[a] - region.low[a]) // 2
                place = places[b, p, a]
                # As many corners before the vacancy as after it, or one more.
                first = (place - middle + 1) // 2 * 2
                at[a] = law.halo + place - first
                origin[a] = first % states.shape[1 + a]
            cut(states[b], origin, tools)
            if before.size > 0:
                before[b, p] = inner
            n = 1
            if others:
                n = scan(grid, law, region, tools.lists)
            else:
                tools.lists.place[0] = at
                tools.lists.flat[0] = (at[0] * grid.shape[1] + at[1]) * grid.shape[2] + at[2]
            keys = key[0], key[1] + members[b], np.uint64(p)
            elapsed[b, p], hops[b, p] = _evolve_one(
                n, tools, first_of(tools.lists, n), keys, until, most, mean_times, at, change[b, p]
            )
            if after.size > 0:
                after[b, p] = inner
