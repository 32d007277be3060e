r"""Tiles of vacancies on a CUDA device: what is kept there, and launches.

Species, lists, known rates and the network stay on the device. Where a lattice is not cut between
ranks, a launch makes whole steps, many of them if the caller wants that; else a pass. The host
reads a few numbers after it. What tiles do, and who waits for whom, is told in
:mod:`mpiflow.solvers.vacancy.cuda_kernels`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import MOST_THREADS, Device
from mpiflow.solvers.vacancy.barrier_kernels import on_device
from mpiflow.solvers.vacancy.cuda_kernels import (
    DONE_LOOKS,
    FACTS,
    LOOKS,
    MADE,
    NEW,
    NOTED,
    STOPPED,
    TAKEN,
    TASKS,
    UNDONE,
    WAITING,
    Notes,
    Progress,
    Work,
    evolve_tiles,
    set_sites_of_others,
)
from mpiflow.solvers.vacancy.events import Events
from mpiflow.solvers.vacancy.lists import Tiles, lists
from mpiflow.solvers.vacancy.rates import Evaluator, table

#: Bytes of a vacancy in the lists, and of a set of known rates.
LISTED, KNOWN = 144, 384
#: Hops of a tile that are kept in a launch; more of them take another.
_KEPT = 64
#: Blocks of threads of a launch: as many as the largest GPUs run at once, or more.
BLOCKS = 640
#: Vacancies beyond four times the mean of a tile that a block has room for.
OWN = 32


def places(vacancies: int, tiles: int, most: int) -> int:
    """Places in the lists of so many vacancies in all tiles, of which ``most`` are of one class."""
    return vacancies + _own(vacancies, tiles) * min(BLOCKS, most)


def _own(vacancies: int, tiles: int) -> int:
    return min(vacancies, OWN + 4 * -(-vacancies // tiles))


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
        sizes = [len(tiles.table) for tiles in groups]
        self._rows = dict(zip(map(id, groups), np.cumsum([0, *sizes]).tolist(), strict=False))
        rows = np.concatenate([tiles.table for tiles in groups])
        self._tiles = groups[0]._replace(table=put(rows))
        x, y, z = (s // n for s, n in zip(law.sides, groups[0].shape, strict=True))
        self._grid = x, y, z
        # A class of the whole lattice, if no rank has a part of it.
        self._count = sizes[0] if len(rows) == math.prod(self._grid) else 0
        everyone = block.batch * len(rows)
        most = block.batch * max(sizes)
        # No vacancy is in two tiles of a class: each is listed once.
        blocks = min(BLOCKS, most)
        self._room, self._own = vacancies, _own(vacancies, everyone)
        total = places(vacancies, everyone, most)
        room = lists(total)._replace(tree=np.zeros(4 * total))
        self._lists, self._blocks = type(room)(*map(put, room)), blocks
        # Known rates are those of any tile, but two blocks must not write to one table.
        known = table(law.barriers, -(-vacancies // everyone))
        self._known = [put(np.zeros((everyone, *part.shape), part.dtype)) for part in known[:2]]
        self._most = most
        self._sums = np.zeros(MADE + block.batch, np.int64)
        self._progress = Progress(
            put(np.zeros((everyone, FACTS), np.int64)), put(np.zeros(everyone)),
            put(np.zeros(everyone, np.int64)), put(np.ones(1)), put(self._sums),
        )  # fmt: skip
        self._stamp = 0
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
        arrays += [self._tiles.table, *self._known]
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
        return float(self._sums[LOOKS]), float(self._sums[DONE_LOOKS])

    def obey(self, records: np.ndarray) -> None:
        """Set the sites of records of other ranks."""
        rows = self._device.put(records)
        set_sites_of_others.launch(
            len(records), self._whole[0], self._origins[0], self._law.sides, rows
        )

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
        count, before = len(tiles.table), self._sums
        number, first = self._block.batch * count, self._rows[id(tiles)]
        if logs is not None:
            most = _KEPT
            if self._log is self._no_log:
                rows = self._most * most
                put = self._device.put
                self._log = Events(put(np.zeros(rows)), put(np.zeros((rows, 5), np.int64)))
        log = self._no_log if logs is None else self._log
        fresh, taken = True, before[TAKEN]
        while True:
            last = self._sums
            work = self._work(first, count, 0, 1, last, -1)
            self._launch(number, keys, start, window, limit, most, notes, fresh, taken, log, work)
            fresh = False
            if logs is not None:
                logs.append(self._logged(first, count, most))
            if self._sums[WAITING] == last[WAITING] or told():
                break
        made = (self._sums - before)[MADE:]
        noted = self._noted(first, count) if notes else np.empty((0, 4), np.int64)
        return made, noted, self._share(before)

    def steps(
        self,
        first: int,
        number: int,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float | None,
        window: float,
        limit: int,
        most: int,
    ) -> tuple[int, np.ndarray, float] | None:
        """Whole steps in one launch, if no other rank has a part of the lattice.

        Parameters
        ----------
        first, number : of the steps, of which there may be fewer made
        keys : of member 0, and of the first pass
        start : of the only step; None: a step begins at its number times the window
        most : hops of a tile in a pass; with more than that, nothing is changed

        Returns
        -------
        steps made, the hops of each box, and the part of a window after which the first tile had to
        stop; None if this is to be done pass by pass
        """
        classes, boxes = 2 ** sum(n > 1 for n in self._grid), self._block.batch
        # Tasks have numbers of 32 bits.
        number = min(number, MOST_THREADS // max(1, boxes * self._count * (2 * classes - 1)))
        if not self._count or not number:
            return None
        passes, before = (2 * classes - 1) * number, self._sums
        self.keep()
        work = self._work(0, self._count, classes, passes, before, first if start is None else -1)
        self._stamp += passes
        self._launch(
            boxes * self._count, keys, start or 0.0, window, limit, most, False, True,
            before[TAKEN], self._no_log, work,
        )  # fmt: skip
        share = self._share(before)
        if self._sums[UNDONE] > before[UNDONE]:
            self.back()
            return None
        return number, (self._sums - before)[MADE:], share

    def _work(
        self, first: int, count: int, classes: int, passes: int, sums: np.ndarray, step: int
    ) -> Work:
        return Work(
            first, count, classes, passes, int(sums[TASKS]), self._stamp, self._grid, step,
            self._room, self._own,
        )  # fmt: skip

    def _launch(
        self,
        tiles: int,
        keys: tuple[np.uint64, np.uint64, np.uint64],
        start: float,
        window: float,
        limit: int,
        most: int,
        notes: bool,
        fresh: bool,
        taken: int,
        log: Events,
        work: Work,
    ) -> None:
        kept = Notes(self._near, self._records, log)
        evolve_tiles.launch_blocks(
            min(tiles, self._blocks), self._whole, self._flat, self._origins, self._members,
            self._tiles, self._law, *self._known, self._lists, self._progress, kept, keys, start,
            window, limit, most, notes, fresh, int(taken), work,
        )  # fmt: skip
        self._sums = self._device.get(self._progress.sums)

    def _share(self, before: np.ndarray) -> float:
        """The part of the window after which a tile first had too many hops since then, or 1."""
        if self._sums[STOPPED] == before[STOPPED]:
            return 1.0
        share = float(self._device.get(self._progress.share)[0])
        self._progress.share.copy_to_device(np.ones(1))
        return share

    def _facts(self, first: int, count: int) -> np.ndarray:
        """What is known of the tiles of a class, those of one box after those of another."""
        facts = self._device.get(self._progress.facts).reshape(self._block.batch, -1, FACTS)
        return facts[:, first : first + count].reshape(-1, FACTS)

    def _logged(self, first: int, count: int, most: int) -> Events:
        """The hops of the last launch."""
        made = np.arange(most) < self._facts(first, count)[:, NEW, None]
        time, hops = map(self._device.get, self._log)
        rows = self._block.batch * count * most
        return Events(time[:rows].reshape(-1, most)[made], hops[:rows].reshape(-1, most, 5)[made])

    def _noted(self, first: int, tiles: int) -> np.ndarray:
        """The records of all tiles."""
        count = self._facts(first, tiles)[:, NOTED]
        number, rows = len(count), int(count.max(initial=0))
        records = self._device.get(self._records[: rows * number]).reshape(rows, number, 4)
        return records[np.arange(rows)[:, None] < count]
