"""Boxes of large alloys in which vacancies hop, and the checks of what is cut into them.

States are whole periodic lattices, grids of points (nx, ny, nz) int8 as in
:mod:`mpiflow.systems.alloy`. What :mod:`mpiflow.scaleup.alloy` and
:mod:`mpiflow.scaleup.alloy_partial` share.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.core.noise import MAX_MEMBER
from mpiflow.solvers.event_limits import NO_LIMIT
from mpiflow.solvers.vacancy.events import HALO, Events, check, events
from mpiflow.solvers.vacancy.lists import Lists, Region, lists
from mpiflow.solvers.vacancy.rates import Evaluator, evaluator
from mpiflow.systems.alloy import NOT_A_SITE, REACH, VACANCY, Alloy
from mpiflow.systems.barriers import Barriers

#: What lies around a box: its true surroundings, or, as published, itself once more.
Surroundings = Literal["frozen", "wrap"]

#: Points around a box: vacancies may step one point over its edge.
_HALO = HALO + 1
#: Hops that are followed together.
_ROOM = 256


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


def require_lattices(name: str, states: np.ndarray, species: int) -> np.ndarray:
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


def noise_keys(members: np.ndarray, count: int) -> np.ndarray:
    """Members as (B,) uint64, one for each state."""
    members = np.asarray(members)
    if members.shape != (count,):
        raise InputError("members", members.shape, f"({count},), one for each state", "Count them.")
    if count and not (0 <= members.min() and members.max() < MAX_MEMBER):
        raise InputError("members", members.max(), f"0 to {MAX_MEMBER - 1}", "Number from 0.")
    return members.astype(np.uint64)


def require_stop(hops: int | None, duration: float | None) -> tuple[int, float]:
    """The largest number of hops and the last time of a run."""
    if (hops is None) == (duration is None):
        raise InputError("hops, duration", (hops, duration), "one of the two", "Give one.")
    if duration is not None:
        if not (duration > 0 and np.isfinite(duration)):
            raise InputError("duration", duration, "a finite number of s above 0", "Try 1e-9.")
        return NO_LIMIT, float(duration)
    if hops is None or hops < 1:
        raise InputError("hops", hops, "1 or more", "Try 100.")
    return hops, np.inf


def require_surroundings(surroundings: str) -> None:
    if surroundings not in ("frozen", "wrap"):
        raise InputError("surroundings", surroundings, "'frozen' or 'wrap'", "Use frozen.")


# -- boxes ---------------------------------------------------------------------------------


class Tools(NamedTuple):
    """What kernels need for boxes of one shape.

    Attributes
    ----------
    log : room for the hops of one call
    grid, copy : (x, y, z) int8, memory for padded boxes
    places : (3, x) int64, memory for where its points lie in the lattice
    """

    evaluator: Evaluator
    region: Region
    lists: Lists
    log: Events
    grid: np.ndarray
    copy: np.ndarray
    places: np.ndarray


def tools_of(
    states: np.ndarray,
    box: int,
    surroundings: Surroundings,
    system: Alloy,
    model: Barriers,
    vacancies: int,
) -> Tools:
    """Tools for cubic boxes of these lattices, with room for a number of vacancies."""
    first, shape, padded = states[:1], (box,) * 3, (box + 2 * _HALO,) * 3
    block = Block.cut(
        first, (0, 0, 0), shape, np.arange(len(first)), policy=surroundings, halo=_HALO
    )
    check(system, model, block)
    ours, end = evaluator(system, model, block, vacancies), _HALO + box
    x, y, z = (int(box == side) for side in ours.law.sides)
    return Tools(
        ours,
        Region((_HALO, _HALO, _HALO), (end, end, end), (x, y, z)),
        lists(vacancies),
        events(_ROOM),
        np.empty(padded, np.int8),
        np.empty(padded, np.int8),
        np.empty((3, padded[0]), np.int64),
    )


def require_room(name: str, box: int, sides: Shape) -> None:
    """Vacancies of a box must not see each other round the lattice."""
    for side in sides:
        if box != side and side - box <= REACH:
            raise InputError(
                name,
                box,
                f"the whole side of {side} points, or at most {side - REACH - 2} in all",
                "Vacancies in the box would meet round the lattice.",
            )


@kernel
def cut(state: np.ndarray, origin: np.ndarray, tools: Tools) -> None:
    """Copy a box with what is around it: of a closed box, whose sides the law has, itself."""
    law, grid, places = tools.evaluator.law, tools.grid, tools.places
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
