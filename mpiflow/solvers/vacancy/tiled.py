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
does the tiles that need no news from others, then reads the messages of the last pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import Device, kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.lattice import Shape
from mpiflow.core.noise import stream_key
from mpiflow.solvers.event_limits import NO_LIMIT
from mpiflow.solvers.vacancy.changed_sites import fill_all, note, obey_all
from mpiflow.solvers.vacancy.events import (
    HALO,
    Events,
    check,
    events,
    evolve,
    number_of_vacancies,
    require_species,
)
from mpiflow.solvers.vacancy.lists import Lists, Tiles, first_of, region_of, scan
from mpiflow.solvers.vacancy.rates import Evaluator
from mpiflow.solvers.vacancy.tiles import Plan, check_tiles
from mpiflow.systems.alloy import Alloy
from mpiflow.systems.barriers import Barriers

#: Hops of a tile that are kept before they are noted.
_RECENT = 256
#: Steps of a launch on a GPU at most.
_STEPS = 64
#: Hops between two looks at whether a window is still wanted.
STRETCH = 2**11


def _never() -> bool:
    return False


@kernel
def _pass(
    grid: np.ndarray,
    origin: np.ndarray,
    tiles: Tiles,
    evaluator: Evaluator,
    lists: Lists,
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
    law = evaluator.law
    while t < tiles.table.shape[0]:
        region = region_of(tiles, t)
        if n < 0:
            n = scan(grid, law, region, lists)
            clock, first, hops[t] = start, noted, 0
        here = first_of(lists, n)
        counter = np.uint64(tiles.table[t, 3]) << np.uint64(32)
        made, some = 0, 0
        while n > 0 and made == some and hops[t] < limit and left > 0:
            some = min(left, limit - hops[t])
            some = min(room, some) if room else some
            made, clock = evolve(
                grid, origin, n, evaluator, region, here, keys, counter + np.uint64(hops[t]),
                clock, start + window, some, recent, 0, hops[t] == 0,
            )  # fmt: skip
            hops[t] += made
            left -= made
            for r in range(min(made, room)):
                row = recent.hop[r]
                noted = note(origin, law.sides, near, row, first, noted, records, 1)
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
    return t == tiles.table.shape[0]


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
        in tiles, seconds waiting for messages
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
        self._over: Callable[[], bool] = _never
        self._plan: Any = None
        self._before: Any = None

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
        key, step, end = stream_key(seed, stream), first_step, first_step + steps
        self.share, self._limit, self.abandoned, self._over = 1.0, NO_LIMIT, False, _never
        while step < end:
            number = min(end - step, _STEPS)
            if made := self._in_one_launch(step, number, key, None, width):
                out, step = out + made[1], step + made[0]
                continue
            for _ in range(number):
                out += self._pass_by_pass(block, step, key, step * width, width)
                step += 1
        self.settle(block)
        self.finish(block)
        return out

    def prepare(self, block: Block) -> None:
        """Make ready for calls of :meth:`step`. Collective for ``exchange`` blocks."""
        self.check(block)
        require_species(block, len(self.system.elements))
        self._plan = self._planned(block)
        if self._plan.cuda is not None:
            self._plan.cuda.load()

    def keep(self, block: Block) -> None:
        """Remember the boxes, settled, so that steps can be taken back."""
        if self._plan.cuda is not None:
            self._plan.cuda.keep()
        elif self._before is None or self._before.shape != block.array.shape:
            self._before = block.array.copy()
        else:
            np.copyto(self._before, block.array)

    def take_back(self, block: Block) -> None:
        """Give the boxes what :meth:`keep` found there."""
        if self._plan.cuda is not None:
            self._plan.cuda.back()
        else:
            np.copyto(block.array, self._before)

    def finish(self, block: Block) -> None:
        """Make the block what the steps have made of it, for others to read."""
        self._before = None
        if self._plan.cuda is not None:
            self._plan.cuda.save()

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
        over: Callable[[], bool] = _never,
    ) -> np.ndarray:
        """One step of any window, after :meth:`prepare`; after the last, settle and finish.

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
        key = stream_key(seed, stream)
        self.share, self._limit = 1.0, limit
        self.abandoned, self._over = False, over
        if made := self._in_one_launch(step, 1, key, start, window):
            return made[1]
        return self._pass_by_pass(block, step, key, start, window)

    def _pass_by_pass(
        self, block: Block, step: int, key: np.ndarray, start: float, window: float
    ) -> np.ndarray:
        plan, out = self._plan, np.zeros(block.batch, np.int64)
        for number, (group, share) in enumerate(plan.passes, len(plan.passes) * step):
            keys = key[0], key[1], np.uint64(number)
            for boxes in plan.together:
                out[boxes] += self._one_pass(block, boxes, group, keys, start, share * window)
        return out

    def _in_one_launch(
        self, step: int, number: int, key: np.ndarray, start: float | None, window: float
    ) -> tuple[int, np.ndarray] | None:
        """At most so many whole steps on a device; how many, and their hops; None: none of them."""
        plan = self._plan
        if plan.cuda is None or plan.messages is not None or self.log is not None:
            return None
        if self._told():
            return None
        begin = time.perf_counter()
        keys = key[0], key[1], np.uint64(len(plan.passes) * step)
        found = plan.cuda.steps(step, number, keys, start, window, self._limit, STRETCH)
        if found is not None:
            self.share = min(self.share, found[2])
            self.load["hops"] += int(found[1].sum())
        self.load["looks"], self.load["evaluations"] = plan.counts()
        self.load["seconds"] += time.perf_counter() - begin
        return None if found is None else found[:2]

    def settle(self, block: Block) -> None:
        """Bring the halo up to date. Collective for ``exchange`` blocks."""
        self._read(block)

    def _one_pass(
        self,
        block: Block,
        boxes: slice,
        group: int,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
    ) -> np.ndarray:
        """One class of tiles of some boxes: first those that need no messages; their hops.

        ``keys`` are those of member 0.
        """
        plan = self._plan
        hops, _ = self._tiles(block, boxes, plan.inner[group], keys, start, window)
        self._read(block)
        made, records = self._tiles(block, boxes, plan.border[group], keys, start, window)
        if plan.messages is not None:
            plan.messages.post(records)
        return hops + made

    def _tiles(
        self,
        block: Block,
        boxes: slice,
        tiles: Tiles,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Let some tiles evolve; returns the hops of boxes and the records for other ranks."""
        plan = self._plan
        if not len(tiles.table) or self._told():
            return np.zeros(1, np.int64), plan.records[:0]
        begin = time.perf_counter()
        if plan.cuda is not None:
            made, records, logs = self._on_device(tiles, keys, start, window)
        else:
            made, records, logs = self._in_turn(block, boxes.start, tiles, keys, start, window)
        if self.log is not None:
            self.log += logs
        self.load["hops"] += int(made.sum())
        self.load["looks"], self.load["evaluations"] = plan.counts()
        self.load["seconds"] += time.perf_counter() - begin
        return made, records

    def _in_turn(
        self,
        block: Block,
        b: int,
        tiles: Tiles,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
    ) -> tuple[np.ndarray, np.ndarray, list[Events]]:
        """Tile after tile of one box on the CPU; hops, records, log."""
        plan, keys = self._plan, (keys[0], keys[1] + block.members[b], keys[2])
        noting = self.log is not None or plan.messages is not None
        recent = events(_RECENT if noting else 0)
        log = events(0 if self.log is None else _RECENT * len(tiles.table))
        before = None if self.log is None else block.array[b].copy()
        hops, origin = np.zeros(len(tiles.table), np.int64), block.origins[b] - block.halo
        while True:
            hops[...] = 0
            at, since = np.array([0, -1, 0, 0, 0]), np.array([start, 1.0])
            while not _pass(
                block.array[b], origin, tiles, plan.evaluator, plan.lists, keys, start, window,
                plan.near, hops, self._limit, STRETCH, recent, plan.records, log, at, since,
            ):  # fmt: skip
                if self._told():
                    break
            noted, logged = int(at[3]), int(at[4])
            if before is None or logged <= len(log.time):
                break
            block.array[b][...] = before  # once more, with enough room
            log = events(2 * logged)
        self.share = min(self.share, float(since[1]))
        if plan.messages is not None:
            fill_all(block.array[b], origin, plan.evaluator.law.sides, plan.records, noted)
        made = hops.sum(keepdims=True)
        return made, plan.records[:noted], [Events(log.time[:logged], log.hop[:logged])]

    def _told(self) -> bool:
        """Whether the step is to be left; it stays so."""
        self.abandoned = self.abandoned or self._over()
        return self.abandoned

    def _on_device(
        self,
        tiles: Tiles,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
    ) -> tuple[np.ndarray, np.ndarray, list[Events]]:
        """Those tiles of all boxes at once on the device; hops, records, log."""
        plan = self._plan
        logs: list[Events] | None = None if self.log is None else []
        notes = plan.messages is not None and any(tiles is group for group in plan.border)
        made, records, share = plan.cuda.evolve(
            tiles, keys, start, window, self._limit, STRETCH, self._told, logs, notes
        )
        self.share = min(self.share, share)
        return made, records, logs or []

    def _read(self, block: Block) -> None:
        """Bring the box up to date with the messages of other ranks."""
        messages, cuda = self._plan.messages, self._plan.cuda
        if messages is None:
            return
        begin = time.perf_counter()
        for records in messages.collect():
            # Only a lattice that is cut has messages, and that is one box.
            if len(records) and cuda is not None:
                cuda.obey(records)
            elif len(records):
                origin, sides = block.origins[0] - block.halo, self._plan.evaluator.law.sides
                obey_all(block.array[0], origin, sides, records)
        self.load["waiting"] += time.perf_counter() - begin

    def _planned(self, block: Block) -> Plan:
        """What is fixed for a block, made anew if the block or its vacancies are others."""
        vacancies = int(block.total(np.array([number_of_vacancies(block.inner())]))[0])
        plan = self._plan
        if plan is None or plan.block is not block or plan.vacancies != vacancies:
            plan = Plan(self.system, self.model, block, self.tile, vacancies, self.device)
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
        check_tiles(self.tile, block)
