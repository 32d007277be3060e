r"""Kinetic Monte Carlo of vacancies in tiles: large alloys on any number of ranks.

The lattice, not the ranks, is cut into tiles, along some axes or all. Tiles of one parity
class are apart, so that with everything else frozen they evolve independently, each by the
exact serial method [synchronous sublattice algorithm, Shim and Amar, Phys. Rev. B 71, 125432
(2005)]. One step is the symmetric product of Strang [SIAM J. Numer. Anal. 5, 506 (1968)],

.. math:: e^{W L} \approx e^{\frac W2 L_1} \cdots e^{\frac W2 L_{c-1}} e^{W L_c}
          e^{\frac W2 L_{c-1}} \cdots e^{\frac W2 L_1},

over the c = 2, 4 or 8 classes: second order in the window W in law.

A tile owns bonds, not vacancies: those whose corner site lies in it. A hop and its reverse
use the same bond, so each factor keeps detailed balance, and where barriers have a Gibbs
measure it is exactly stationary for every W. (If tiles owned vacancies, one could leave its
tile within a factor but not come back, and the window would change equilibrium too.) The
vacancies of a tile are listed anew in every pass, in the order of their place: the result is
a pure function of (species, seed, step), the same bits on any number of ranks. Event ``e`` of
tile ``t`` (row-major on the whole lattice) in pass ``p`` of a step uses the noise at (``(2c - 1)
step + p``, counter ``t 2^32 + e``).

Sites change up to one point beyond a tile, and barriers see four points more. Tiles of six
points or more keep these apart from the next tile of their class.

Ranks tell each other changed sites near their boundaries, after every pass. A rank first
does the tiles that need no news from others, then reads the letters of the last pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

from mpiflow.core.block import Block, Letters
from mpiflow.core.device import Device, kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.lattice import Shape, divisors
from mpiflow.core.noise import stream_key
from mpiflow.solvers.vacancy.batched import Batches, region_of
from mpiflow.solvers.vacancy.events import (
    HALO,
    Events,
    Law,
    Lists,
    Scratch,
    Table,
    check,
    events,
    evolve,
    first_of,
    law,
    lists,
    put,
    require_species,
    scan,
    scratch,
    table,
)
from mpiflow.systems.alloy import DIRECTIONS, VACANCY, Alloy
from mpiflow.systems.barriers import Barriers

#: Points along an axis: sites of a tile and what they see stay apart from the next of its class.
SMALLEST_TILE = HALO + 2
#: No tile makes as many hops in a pass.
NO_LIMIT = np.iinfo(np.int64).max
#: Hops of a tile that are kept before they are noted.
_RECENT = 256
#: Hops between two looks at whether a window is still wanted.
STRETCH = 2**11


@kernel
def _note(
    origin: np.ndarray,
    sides: tuple[int, int, int],
    near: np.ndarray,
    row: np.ndarray,
    first: int,
    noted: int,
    records: np.ndarray,
) -> int:
    """Put both sites of a hop among a tile's records if they lie near the box's boundary."""
    for end in range(2):
        inside = True
        point = np.empty(3, np.int64)
        for a in range(3):
            point[a] = (row[a] + end * DIRECTIONS[row[3], a]) % sides[a]
            inside &= near[a, 0] <= (point[a] - origin[a]) % sides[a] < near[a, 1]
        if inside:
            continue
        known = False
        for r in range(first, noted):
            known |= (
                records[r, 0] == point[0]
                and records[r, 1] == point[1]
                and records[r, 2] == point[2]
            )
        if not known:
            for a in range(3):
                records[noted, a] = point[a]
            noted += 1
    return noted


@kernel
def _note_all(
    origin: np.ndarray,
    sides: tuple[int, int, int],
    near: np.ndarray,
    hops: np.ndarray,
    noted: int,
    records: np.ndarray,
) -> int:
    for r in range(hops.shape[0]):
        noted = _note(origin, sides, near, hops[r], 0, noted, records)
    return noted


@kernel
def _fill_species(
    grid: np.ndarray,
    origin: np.ndarray,
    sides: tuple[int, int, int],
    records: np.ndarray,
    noted: int,
) -> None:
    """Write into the records what the sites now hold."""
    for r in range(noted):
        x = (records[r, 0] - origin[0]) % sides[0]
        y = (records[r, 1] - origin[1]) % sides[1]
        z = (records[r, 2] - origin[2]) % sides[2]
        records[r, 3] = grid[x, y, z]


@kernel
def _pass(
    grid: np.ndarray,
    origin: np.ndarray,
    tiles: np.ndarray,
    shape: tuple[int, int, int],
    whole: tuple[int, int, int],
    law: Law,
    lists: Lists,
    table: Table,
    s: Scratch,
    keys: tuple[np.uint64, np.uint64, np.uint64],
    start: float,
    window: float,
    near: np.ndarray,
    hops: np.ndarray,
    limit: int,
    most: int,
    recent: Events,
    records: np.ndarray,
    log: Events,
    at: np.ndarray,
    since: np.ndarray,
) -> bool:
    """Let some tiles evolve for a time, or go on with that.

    Parameters
    ----------
    tiles : (n, 4) int64, first index in the padded box along each axis, number in the lattice
    shape, whole : points of a tile along each axis, and whether it spans the axis
    near : (3, 2) padded indices between which no other rank needs a site
    hops : (n,) filled with the hops of each tile
    limit : a tile that has made so many hops stops
    most : hops to make in this call
    recent : the last few hops of a tile; without room for any, nothing is noted or logged
    records : (room, 4) filled with the sites that other ranks must know
    log : filled with the hops of all tiles, in their order, as far as there is room
    at : where it is: the tile, its vacancies (-1 if they are not listed yet), its first record,
        the number of records, and that of the hops noted; (0, -1, 0, 0, 0) at first
    since : the time of the tile's last hop, and the part of the window after which the first
        tile had to stop, 1 if none had to

    Returns
    -------
    whether all tiles are done; if not, it goes on where it is, with the lists as they are
    """
    t, n, first, noted, logged = at[0], at[1], at[2], at[3], at[4]
    clock, room, left = since[0], recent.time.size, most
    while t < tiles.shape[0]:
        region = region_of(tiles, t, shape, whole)
        if n < 0:
            n = scan(grid, law, region, lists)
            clock, first, hops[t] = start, noted, 0
        here = first_of(lists, n)
        counter = np.uint64(tiles[t, 3]) << np.uint64(32)
        made, some = 0, 0
        while n > 0 and made == some and hops[t] < limit and left > 0:
            some = min(left, limit - hops[t])
            some = min(room, some) if room else some
            made, clock = evolve(
                grid,
                origin,
                n,
                law,
                region,
                here,
                table,
                s,
                keys,
                counter + np.uint64(hops[t]),
                clock,
                start + window,
                some,
                recent,
                0,
                hops[t] == 0,
            )
            hops[t] += made
            left -= made
            for r in range(min(made, room)):
                row = recent.hop[r]
                noted = _note(origin, law.sides, near, row, first, noted, records)
                if logged < log.time.size:
                    log.time[logged] = recent.time[r]
                    log.hop[logged] = row
                logged += 1
        if n > 0 and made == some and hops[t] < limit:
            break
        if n > 0 and hops[t] >= limit:
            since[1] = min(since[1], (clock - start) / window)
        t, n = t + 1, -1
    at[0], at[1], at[2], at[3], at[4] = t, n, first, noted, logged
    since[0] = clock
    return t == tiles.shape[0]


@kernel
def _apply(
    grid: np.ndarray, origin: np.ndarray, sides: tuple[int, int, int], letter: np.ndarray
) -> None:
    """Set the sites of a neighbour's letter that this box holds, its halo included."""
    for r in range(letter.shape[0]):
        x = (letter[r, 0] - origin[0]) % sides[0]
        y = (letter[r, 1] - origin[1]) % sides[1]
        z = (letter[r, 2] - origin[2]) % sides[2]
        put(grid, sides, x, y, z, letter[r, 3])


class TiledKMC:
    """Kinetic Monte Carlo of vacancies in tiles, on any number of ranks.

    The result is a pure function of (species, seed, stream, member, step). To go on with a
    run bit for bit, keep the species and the step.

    Parameters
    ----------
    system : temperature and elements
    model : barriers, see :mod:`mpiflow.systems.barriers`
    window : W in s, above 0; the error of the law falls as its square. None: each call of
        :meth:`step` has its own.
    tile : points of a tile along each axis, even and at least 6; an axis as long as the tile
        is not cut. Pairs of tiles must fit the others.

    Attributes
    ----------
    load : hops on this rank, vacancies that were looked at, barriers of them computed, seconds
        in tiles, seconds waiting for letters
    log : None, or a list that every pass appends its :class:`Events` on this rank to
    share : part of the last step after which the first tile of this rank had made too many hops
    abandoned : whether this rank left out a part of the last step
    """

    name = "tiled"
    #: Halo that blocks need: vacancies step one point over the edge of a box.
    halo = HALO + 1

    def __init__(
        self,
        system: Alloy,
        model: Barriers,
        window: float | None,
        tile: int | Shape = 16,
        device: Device | None = None,
    ) -> None:
        require_rule(system, Alloy)
        if window is not None and not (window > 0 and math.isfinite(window)):
            raise InputError("window", window, "a finite number of seconds above 0", "Try 1e-9.")
        self.system, self.model, self.window = system, model, window
        self.device = device or Device()
        self.tile = (tile,) * 3 if isinstance(tile, int) else tuple(tile)
        self.log: list[Events] | None = None
        self.load = dict.fromkeys(("hops", "looks", "evaluations", "seconds", "waiting"), 0.0)
        self.share, self._limit = 1.0, NO_LIMIT
        self.abandoned = False
        self._over: Callable[[], bool] = lambda: False
        self._plan: Any = None

    @property
    def time_per_step(self) -> float:
        """``window``, which must be set by now."""
        if self.window is None:
            raise InputError("window", None, "a number of seconds", "Set it first.")
        return self.window

    def advance(
        self,
        block: Block,
        steps: int,
        *,
        seed: int,
        first_step: int = 0,
        stream: str = "tiled-vacancy",
    ) -> np.ndarray:
        """Advance every box by ``steps`` steps in place.

        The halo must be current and is current again afterwards. Collective for ``exchange``
        blocks.

        Returns
        -------
        (B,) int64, hops on this rank
        """
        self.prepare(block)
        width, out = self.time_per_step, np.zeros(block.batch, np.int64)
        for step in range(first_step, first_step + steps):
            out += self.step(block, step, step * width, width, seed=seed, stream=stream)
        self.settle(block)
        return out

    def prepare(self, block: Block) -> None:
        """Make ready for calls of :meth:`step`. Collective for ``exchange`` blocks."""
        self.check(block)
        require_species(block, len(self.system.elements))
        self._plan = self._planned(block)

    def step(
        self,
        block: Block,
        step: int,
        start: float,
        window: float,
        *,
        seed: int,
        stream: str = "tiled-vacancy",
        limit: int = NO_LIMIT,
        over: Callable[[], bool] = lambda: False,
    ) -> np.ndarray:
        """One step of any window, after :meth:`prepare`; :meth:`settle` follows the last.

        Parameters
        ----------
        step : its number, which its noise depends on
        start : the time that logged hops are counted from, s
        window : in s
        limit : a tile stops after so many hops in a pass. Such a step is to be taken back, and
            done again with a shorter window: :attr:`share` says how much
        over : asked now and then; if it says so on any rank, :attr:`abandoned` is set there, the
            rest of the step is left out, and the step is to be taken back on all ranks

        Returns
        -------
        (B,) int64, hops on this rank
        """
        plan, key = self._plan, stream_key(seed, stream)
        out = np.zeros(block.batch, np.int64)
        self.share, self._limit = 1.0, limit
        self.abandoned, self._over = False, over
        for number, (group, share) in enumerate(plan.passes, len(plan.passes) * step):
            for b in range(block.batch):
                keys = key[0], key[1] + block.members[b], np.uint64(number)
                out[b] += self._one_pass(block, b, group, keys, start, share * window)
        return out

    def settle(self, block: Block) -> None:
        """Bring the halo up to date. Collective for ``exchange`` blocks."""
        self._read(block)

    def _one_pass(
        self,
        block: Block,
        b: int,
        group: int,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
    ) -> int:
        """One class of tiles of one box: first those that need no letters; returns the hops."""
        plan = self._plan
        hops, _ = self._tiles(block, b, plan.inner[group], keys, start, window)
        self._read(block)
        made, records = self._tiles(block, b, plan.border[group], keys, start, window)
        if plan.letters is not None:
            plan.letters.post(records)
        return hops + made

    def _tiles(
        self,
        block: Block,
        b: int,
        tiles: np.ndarray,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
    ) -> tuple[int, np.ndarray]:
        """Let some tiles evolve; returns their hops and the records for other ranks."""
        plan = self._plan
        if not len(tiles) or self._told():
            return 0, plan.records[:0]
        begin = time.perf_counter()
        if plan.batches is not None:
            made, noted, logs = self._in_step(block, b, tiles, keys, start, window)
        else:
            made, noted, logs = self._in_turn(block, b, tiles, keys, start, window)
        if self.log is not None:
            self.log += logs
        self.load["hops"] += made
        self.load["looks"], self.load["evaluations"] = plan.counts()
        self.load["seconds"] += time.perf_counter() - begin
        return made, plan.records[:noted]

    def _in_turn(
        self,
        block: Block,
        b: int,
        tiles: np.ndarray,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
    ) -> tuple[int, int, list[Events]]:
        """Tile after tile on the CPU; hops, records, log."""
        plan = self._plan
        noting = self.log is not None or plan.letters is not None
        recent = events(_RECENT if noting else 0)
        log = events(0 if self.log is None else _RECENT * len(tiles))
        before = None if self.log is None else block.array[b].copy()
        hops, origin = np.zeros(len(tiles), np.int64), block.origins[b] - block.halo
        while True:
            hops[...] = 0
            at, since = np.array([0, -1, 0, 0, 0]), np.array([start, 1.0])
            while not _pass(
                block.array[b],
                origin,
                tiles,
                plan.shape,
                plan.whole,
                plan.law,
                plan.lists,
                plan.table,
                plan.scratch,
                keys,
                start,
                window,
                plan.near,
                hops,
                self._limit,
                STRETCH,
                recent,
                plan.records,
                log,
                at,
                since,
            ):
                if self._told():
                    break
            noted, logged = int(at[3]), int(at[4])
            if before is None or logged <= len(log.time):
                break
            block.array[b][...] = before  # once more, with enough room
            log = events(2 * logged)
        self.share = min(self.share, float(since[1]))
        if plan.letters is not None:
            _fill_species(block.array[b], origin, plan.law.sides, plan.records, noted)
        return int(hops.sum()), noted, [Events(log.time[:logged], log.hop[:logged])]

    def _told(self) -> bool:
        """Whether the step is to be left; it stays so."""
        self.abandoned = self.abandoned or self._over()
        return self.abandoned

    def _in_step(
        self,
        block: Block,
        b: int,
        tiles: np.ndarray,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
    ) -> tuple[int, int, list[Events]]:
        """All tiles together, barriers on the device; hops, records, log."""
        plan, origin = self._plan, block.origins[b] - block.halo
        logs, share = plan.batches.evolve(
            block.array[b],
            origin,
            tiles,
            plan.shape,
            plan.whole,
            keys,
            start,
            window,
            self._limit,
            self._told,
        )
        self.share = min(self.share, share)
        noted = 0
        if plan.letters is not None:
            for log in logs:
                noted = _note_all(origin, plan.law.sides, plan.near, log.hop, noted, plan.records)
            _fill_species(block.array[b], origin, plan.law.sides, plan.records, noted)
        return sum(len(log.time) for log in logs), noted, logs

    def _read(self, block: Block) -> None:
        """Bring the box up to date with the letters of other ranks."""
        letters = self._plan.letters
        if letters is None:
            return
        begin = time.perf_counter()
        for letter in letters.collect():
            if len(letter):
                for b in range(block.batch):
                    origin = block.origins[b] - block.halo
                    _apply(block.array[b], origin, self._plan.law.sides, letter)
        self.load["waiting"] += time.perf_counter() - begin

    def _planned(self, block: Block) -> _Plan:
        """What is fixed for a block, made anew if the block or its vacancies are others."""
        inner = block.inner()
        vacancies = int(block.total(np.array([(inner == VACANCY).sum()]))[0])
        plan = self._plan
        if plan is None or plan.block is not block or plan.vacancies != vacancies:
            plan = _Plan(self.system, self.model, block, self.tile, vacancies, self.device)
        return plan

    def check(self, block: Block) -> None:
        """Raise, on all ranks alike, if the blocks cannot be advanced by this solver."""
        check(self.system, self.model, block)
        if block.halo != self.halo:
            raise InputError("halo", block.halo, f"{self.halo} points", "Make such a block.")
        if block.policy == "frozen":
            raise InputError(
                "policy", block.policy, "'exchange' or 'wrap'", "Use partial evolution."
            )
        sides = block.shape if block.policy == "wrap" else block.lattice.shape
        for axis, (side, tile) in enumerate(zip(sides, self.tile, strict=True)):
            cuts = divisors(side // 2) if side % 2 == 0 else []
            fitting = [n for n in cuts if n >= SMALLEST_TILE and n % 2 == 0]
            if tile != side and tile not in fitting:
                raise InputError(
                    "tile",
                    self.tile,
                    f"along axis {axis} the whole side of {side} points, or an even length from "
                    f"{SMALLEST_TILE} that goes an even number of times into it",
                    f"Use {' or '.join(map(str, [*fitting, side]))} there.",
                )
        if block.layout is None:
            return
        for rank in range(block.layout.ranks):
            box = block.layout.offset(rank) + block.layout.shape(rank)
            if any(n % tile for n, tile in zip(box, 2 * self.tile, strict=True)):
                raise InputError(
                    "tile",
                    self.tile,
                    f"whole tiles on every rank; rank {rank} has a box of {box[3:]} points",
                    "Use smaller tiles or fewer ranks.",
                )


class _Plan:
    """What a run keeps from pass to pass on one rank.

    Attributes
    ----------
    passes : the class of tiles, and the share of the window, of each pass of a step
    inner, border : of each class, the tiles that see no site of other ranks, and the rest:
        (n, 4), first index in the padded box and number in the lattice
    near : (3, 2) padded indices between which no other rank needs a site
    """

    def __init__(
        self,
        system: Alloy,
        model: Barriers,
        block: Block,
        tile: Shape,
        vacancies: int,
        device: Device,
    ) -> None:
        self.block, self.vacancies = block, vacancies
        self.law = law(system, model, block)
        self.lists, self.table = lists(max(1, vacancies)), table(model, max(1, vacancies))
        self.scratch = scratch(model)
        self.batches = Batches(self.law, max(1, vacancies), device) if device.is_cuda else None
        sides, halo, shape = np.array(self.law.sides), block.halo, np.array(tile)
        self.shape = tile
        self.whole = tuple(int(n == side) for n, side in zip(tile, sides, strict=True))
        ranks = block.layout.ranks_grid if block.layout is not None else (1, 1, 1)
        cut = np.array(ranks) > 1
        self.letters = Letters(block.cart, 4) if block.cart is not None and cut.any() else None
        self.near = np.array(
            [(2 * halo, n) if c else (0, 2**40) for n, c in zip(block.shape, cut, strict=True)]
        )
        grid = sides // shape
        here = np.array(block.shape) // shape
        corner = block.origins[0] // shape
        classes = list(product(*(range(1 if n == 1 else 2) for n in grid)))
        half = [(c, 0.5) for c in range(len(classes) - 1)]
        self.passes = [*half, (len(classes) - 1, 1.0), *reversed(half)]
        self.inner: list[np.ndarray] = []
        self.border: list[np.ndarray] = []
        for parity in classes:
            groups: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = ([], [])
            for place in np.ndindex(*here):
                there = corner + place
                if any(there[a] % 2 != parity[a] for a in range(3) if grid[a] > 1):
                    continue
                edge = any(c and p in (0, n - 1) for p, n, c in zip(place, here, cut, strict=True))
                number = int((there[0] * grid[1] + there[1]) * grid[2] + there[2])
                groups[edge].append((*(halo + np.array(place) * shape), number))
            for group, into in zip(groups, (self.inner, self.border), strict=True):
                into.append(np.array(group, np.int64).reshape(-1, 4))
        most = max(len(tiles) for tiles in self.border)
        sites = int(np.prod(shape // 2 + 1) * 2)
        self.records = np.zeros((most * sites if self.letters else 0, 4), np.int64)

    def counts(self) -> tuple[float, float]:
        """Vacancies looked at, and barriers of them computed, so far."""
        if self.batches is not None:
            return float(self.batches.evaluations), float(self.batches.evaluations)
        looks, done = self.table.counts
        return float(looks), float(done)
