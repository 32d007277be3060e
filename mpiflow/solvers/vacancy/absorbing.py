"""Kinetic Monte Carlo of vacancies without their flicker: exact, each lattice on one rank.

At low temperatures nearly all hops lead to and fro between a few states. Here a vacancy takes all
of them at once, with the law that they have (:mod:`mpiflow.solvers.vacancy.basin`); vacancies that
are apart have clocks of their own (:mod:`mpiflow.solvers.vacancy.stays`). Every hop is counted, and
at every time the grid has the law of :mod:`mpiflow.solvers.vacancy.serial`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.noise import stream_key
from mpiflow.solvers.event_limits import NO_LIMIT
from mpiflow.solvers.vacancy.basin import STATES, walk
from mpiflow.solvers.vacancy.events import (
    Events,
    check,
    events,
    number_of_vacancies,
    require_species,
)
from mpiflow.solvers.vacancy.lists import lists, scan
from mpiflow.solvers.vacancy.rates import Evaluator, Law, Table, law, scratch, table
from mpiflow.solvers.vacancy.serial import whole_lattice
from mpiflow.solvers.vacancy.stays import BEGIN, GO_ON, RESUME, run
from mpiflow.solvers.vacancy.walkers import (
    AT,
    COLUMNS,
    COUNT,
    LEADER,
    ROWS,
    WAYS,
    Box,
    Stays,
    stays,
)
from mpiflow.systems.alloy import VACANCY, Alloy
from mpiflow.systems.barriers import Barriers

#: Rows of a log that are filled in one go.
_ROOM = 2**16
#: Bytes that the basin of a vacancy takes, and that a checkpoint keeps of it.
STATE_BYTES = STATES * (16 * WAYS + 56) + 8 * COLUMNS + 80
KEPT_BYTES = STATES * (WAYS + 8) + 8 * (COLUMNS + 2)


@dataclass
class _Lattice:
    """The vacancies of a box, the rates that they met, and the grid that they left."""

    stays: Stays
    table: Table
    left: np.ndarray


class AbsorbingKMC:
    """Exact kinetic Monte Carlo of periodic boxes, each on one rank, that draws flicker as a whole.

    A trajectory depends on the species, the order of the vacancies and the seed, not on how it was
    cut into calls: calls, and the species between them, are looks at it.

    Parameters
    ----------
    system : temperature and elements
    model : barriers, see :mod:`mpiflow.systems.barriers`
    batch : number of boxes

    Attributes
    ----------
    clock : (B,) float64, the time that the species of each box are of, s
    hops : (B,) int64, hops so far, those of stays that have not ended included
    ended : (B,) int64, hops of stays that have ended
    events : (B,) int64, ends of stays so far
    log : None, or a list that every call appends an :class:`Events` of each box to: hops that the
        grid shows, from which flicker is left out, to be followed as any others
    """

    name = "absorbing"

    def __init__(self, system: Alloy, model: Barriers, batch: int = 1) -> None:
        require_rule(system, Alloy)
        self.system, self.model = system, model
        self.clock = np.zeros(batch)
        self.hops, self.ended, self.events = np.zeros((3, batch), np.int64)
        self.log: list[list[Events]] | None = None
        self._lattices: list[_Lattice] = []
        self._scratch, self._walk = scratch(model), walk()
        self._kept: dict[str, np.ndarray] | None = None
        self._used = np.zeros(batch, np.int64)  # stays of vacancies before those that are known

    @property
    def evaluations(self) -> tuple[int, int]:
        """How often rates of a vacancy were needed, and how often barriers were computed."""
        counts = sum((known.table.counts for known in self._lattices), np.zeros(2, np.int64))
        return int(counts[0]), int(counts[1])

    def advance(
        self,
        block: Block,
        *,
        seed: int,
        until: float = np.inf,
        hops: int | None = None,
        most: int | None = None,
        stream: str = "absorbing",
    ) -> np.ndarray:
        """Let every box go on to a time, or until stays with some hops have ended.

        Parameters
        ----------
        until : time in s since the first call
        hops : end with the stay with whose hops so many, or more, have ended in this call
        most : at most so many ends of stays in this call

        Returns
        -------
        (B,) int64, hops made in this call
        """
        check(self.system, self.model, block)
        if not block.closed:
            raise InputError(
                "ranks", "several", "1 rank for each lattice of the absorbing solver", "Use tiled."
            )
        require_species(block, len(self.system.elements))
        if hops is None and most is None and not np.isfinite(until):
            raise InputError("until", until, "a finite time, or a number of hops", "Give one.")
        key, rule = stream_key(seed, stream), law(self.system, self.model, block)
        before = self.hops.copy()
        for b in range(block.batch):
            known, first = self._lattice(block, b)
            box = self._box(block, b, rule, key, known)
            wanted = NO_LIMIT if hops is None else self.ended[b] + hops
            left = NO_LIMIT if most is None else most
            while True:
                room = _ROOM if self.log is not None else NO_LIMIT
                ended, made, clock, rows, partly = run(
                    box,
                    first,
                    float(self.clock[b]),
                    float(until),
                    wanted - self.ended[b],
                    left,
                    room,
                )
                self.ended[b] += ended
                self.events[b] += made
                self.clock[b] = clock
                left, first = left - made, GO_ON
                self._note(b, box.log, rows)
                if rows < room:
                    break
            self.hops[b] = self.ended[b] + partly
            known.left[...] = block.array[b]
        return np.asarray(self.hops - before)

    def _note(self, b: int, log: Events, rows: int) -> None:
        """Keep rows of a log of a box."""
        if self.log is not None:
            while len(self.log) <= b:
                self.log.append([])
            self.log[b].append(Events(log.time[:rows].copy(), log.hop[:rows].copy()))

    def _box(self, block: Block, b: int, rule: Law, key: np.ndarray, known: _Lattice) -> Box:
        n = known.stays.flat.size
        return Box(
            block.array[b],
            block.origins[b] - block.halo,
            Evaluator(rule, known.table, self._scratch),
            known.stays,
            self._walk,
            (key[0], key[1] + block.members[b]),
            events(0 if self.log is None else _ROOM + ROWS * (n + 2)),
        )

    def _lattice(self, block: Block, b: int) -> tuple[_Lattice, int]:
        """The vacancies of a box: new ones if its species are not those that were left."""
        grid = block.array[b]
        while len(self._lattices) <= b:
            nobody = np.zeros((0, 3), np.int64)
            none = stays(nobody, nobody[:, 0], np.zeros((1, 1, 1), np.int8))
            self._lattices.append(_Lattice(none, table(self.model, 1), np.zeros(0, np.int8)))
        known = self._lattices[b]
        if self._kept is not None and self._resume(block, b):
            return known, RESUME
        if np.array_equal(known.left, grid):
            return known, GO_ON
        n = number_of_vacancies(block.spins()[b])
        found, used = lists(max(1, n)), known.stays.whole[:, COUNT].max(initial=self._used[b])
        scan(grid, law(self.system, self.model, block), whole_lattice(), found)
        known.stays = stays(found.place[:n], found.flat[:n], grid)
        known.stays.whole[:, COUNT] = used
        known.table, known.left = table(self.model, max(1, n)), grid.copy()
        return known, BEGIN

    # -- to go on later --------------------------------------------------------------

    def kept(self, block: Block) -> dict[str, np.ndarray]:
        """What, with the species and the hops, trajectories go on from: for :meth:`take`.

        Returns
        -------
        clock, ended, as above; and of vacancies and their stays stays (B, n, 16) int64, the place
        where the grid shows them, in C order of the box, -1 where a box was set anew, and columns
        of :class:`~mpiflow.solvers.vacancy.walkers.Stays`; links (B, n, K, 48) int8; codes
        (B, n, K) uint64; begun (B, n)
        """
        n = max((known.stays.flat.size for known in self._lattices), default=0)
        out, begun = np.full((block.batch, n, 1 + COLUMNS), -1), np.zeros((block.batch, n))
        links = np.full((block.batch, n, STATES, WAYS), -1, np.int8)
        codes = np.zeros((block.batch, n, STATES), np.uint64)
        for b, known in enumerate(self._lattices):
            s, size = known.stays, known.stays.flat.size
            out[b, :size, 1:] = s.whole
            links[b, :size], codes[b, :size], begun[b, :size] = s.link, s.code, s.begun
            if np.array_equal(known.left, block.array[b]):
                inner = s.place - block.halo
                out[b, :size, 0] = np.ravel_multi_index(tuple(inner.T), block.shape)
        return {
            "clock": self.clock, "ended": self.ended, "stays": out, "links": links, "codes": codes,
            "begun": begun,
        }  # fmt: skip

    def take(self, block: Block, hops: np.ndarray, kept: Mapping[str, np.ndarray]) -> None:
        """Go on from what :meth:`kept` returned; the species are those of that time."""
        self.hops, self.clock = hops.copy(), kept["clock"].astype(np.float64)
        self.ended, self._lattices = kept["ended"].astype(np.int64), []
        self._kept = dict(kept)
        self._used = kept["stays"][:, :, 1 + COUNT].max(axis=1, initial=0)

    def _resume(self, block: Block, b: int) -> bool:
        """Take over the vacancies of a box and their stays, if such were kept."""
        assert self._kept is not None  # noqa: S101 - for the type checker
        rows, begun = self._kept["stays"][b], self._kept["begun"][b]
        links, codes = self._kept["links"][b], self._kept["codes"][b]
        if b == block.batch - 1:
            self._kept = None
        places, grid, known = rows[:, 0].astype(np.int64), block.array[b], self._lattices[b]
        if not places.size or places[0] < 0:
            return False
        place = np.stack(np.unravel_index(places, block.shape), axis=1) + block.halo
        flat = np.ravel_multi_index(tuple(place.T), grid.shape)
        vacancies = number_of_vacancies(block.spins()[b])
        if len(set(places.tolist())) < vacancies or (grid.reshape(-1)[flat] != VACANCY).any():
            raise InputError(
                "stays", b, "each vacancy of the box once", "Use the species of that time."
            )
        s = stays(place, flat, grid)
        s.whole[:], s.link[:], s.code[:], s.begun[:] = rows[:, 1:], links, codes, begun
        for v in range(len(flat)):  # which states there are; their places are found on the way
            s.spot[v, :, 0] = np.where((s.link[v] >= 0).any(axis=1), 0, -1)
            s.spot[v, s.whole[v, AT], 0] = 0 if s.whole[v, LEADER] == v else -1
        known.stays, known.table, known.left = s, table(self.model, len(flat)), grid.copy()
        return True
