"""Serial kinetic Monte Carlo of vacancies: exact, each periodic lattice on one rank.

The reference for :mod:`mpiflow.solvers.vacancy.tiled`: the whole lattice is one region of
:mod:`mpiflow.solvers.vacancy.events`, where the method is told.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.noise import stream_key
from mpiflow.solvers.event_limits import NO_LIMIT
from mpiflow.solvers.vacancy.events import (
    Events,
    check,
    events,
    evolve,
    number_of_vacancies,
    require_species,
)
from mpiflow.solvers.vacancy.lists import Lists, Region, lists, scan
from mpiflow.solvers.vacancy.rates import Evaluator, Law, Table, evaluator, law, scratch, table
from mpiflow.systems.alloy import VACANCY, Alloy
from mpiflow.systems.barriers import Barriers


def whole_lattice() -> Region:
    """All bonds of a periodic box."""
    return Region((0, 0, 0), (0, 0, 0), (1, 1, 1))


@kernel
def _keep(grid: np.ndarray, n: int, lists: Lists, law: Law, region: Region) -> int:
    """The number of vacancies if the list still holds them all, else they are listed anew."""
    flat = grid.reshape(-1)
    found = 0
    for v in range(n):
        found += flat[lists.flat[v]] == VACANCY
    h, s = law.halo, law.sides
    inner = grid[h : h + s[0], h : h + s[1], h : h + s[2]]
    present = 0
    for x in range(inner.shape[0]):
        for y in range(x % 2, inner.shape[1], 2):
            for z in range(inner.shape[2]):
                present += inner[x, y, z] == VACANCY
    return n if n > 0 and found == n and present == n else scan(grid, law, region, lists)


class VacancyKMC:
    """Serial rejection-free kinetic Monte Carlo of periodic boxes, each on one rank.

    The vacancies of a box keep their order for its life: a trajectory depends on the species,
    that order and the number of events so far, not on how it was cut into calls. Event e of
    a box uses the noise at (its member, counter e).

    Parameters
    ----------
    system : temperature and elements
    model : barriers, see :mod:`mpiflow.systems.barriers`
    batch : number of boxes

    Attributes
    ----------
    clock : (B,) float64, time of the last hop of each box, s
    hops : (B,) int64, hops so far
    log : None, or a list that every call appends an :class:`Events` of each box to
    """

    name = "serial"

    def __init__(self, system: Alloy, model: Barriers, batch: int = 1) -> None:
        require_rule(system, Alloy)
        self.system, self.model = system, model
        self.clock = np.zeros(batch)
        self.hops = np.zeros(batch, np.int64)
        self.log: list[list[Events]] | None = None
        self._lists: list[tuple[int, Lists, Table]] = []
        self._scratch = scratch(model)

    @property
    def events(self) -> np.ndarray:
        """(B,) int64, hops so far: each is an event of its own."""
        return self.hops

    ended = events

    @property
    def evaluations(self) -> tuple[int, int]:
        """How often rates of a vacancy were needed, and how often barriers were computed."""
        counts = sum((table.counts for _, _, table in self._lists), np.zeros(2, np.int64))
        return int(counts[0]), int(counts[1])

    def order(self, block: Block) -> np.ndarray:
        """(B, n) int64, the places of each box's vacancies in their order, in C order of the box.

        Set it, the clock and the hops to go on with a trajectory. -1 where a box has fewer;
        nothing before the first call.
        """
        most = max((n for n, _, _ in self._lists), default=0)
        out = np.full((block.batch, most), -1, np.int64)
        for b, (n, store, _) in enumerate(self._lists):
            inner = store.place[:n] - block.halo
            out[b, :n] = np.ravel_multi_index(tuple(inner.T), block.shape)
        return out

    def set_order(self, block: Block, order: np.ndarray) -> None:
        """Take over what :meth:`order` returned; the species are those of that time."""
        self._lists = []
        for b in range(block.batch):
            places = order[b][order[b] >= 0]
            place = np.stack(np.unravel_index(places, block.shape), axis=1) + block.halo
            index = np.ravel_multi_index(tuple(place.T), block.array.shape[1:])
            if (
                len(set(places.tolist())) < len(places)
                or (block.array[b].reshape(-1)[index] != VACANCY).any()
            ):
                raise InputError(
                    "order", b, "each vacancy of the box once", "Use the species of that time."
                )
            store = lists(max(1, len(places)))
            store.place[: len(places)], store.flat[: len(places)] = place, index
            self._lists.append((len(places), store, table(self.model, max(1, len(places)))))

    def kept(self, block: Block) -> dict[str, np.ndarray]:
        """What, with the species and the hops, trajectories go on from: for :meth:`take`."""
        return {"clock": self.clock, "order": self.order(block)}

    def take(self, block: Block, hops: np.ndarray, kept: Mapping[str, np.ndarray]) -> None:
        """Go on from what :meth:`kept` returned; the species are those of that time."""
        self.clock, self.hops = kept["clock"].astype(np.float64), hops.copy()
        self.set_order(block, kept["order"])

    def advance(
        self,
        block: Block,
        *,
        seed: int,
        until: float = np.inf,
        hops: int | None = None,
        most: int | None = None,
        stream: str = "vacancy",
    ) -> np.ndarray:
        """Let every box hop to a time, or for a number of hops, whichever comes first.

        Parameters
        ----------
        until : time in s since the first call; a hop that would come later waits
        hops, most : at most so many in this call

        Returns
        -------
        (B,) int64, hops made in this call
        """
        check(self.system, self.model, block)
        if not block.closed:
            raise InputError(
                "ranks", "several", "1 rank for each lattice of the serial solver", "Use tiled."
            )
        require_species(block, len(self.system.elements))
        if most is not None:
            hops = most if hops is None else min(hops, most)
        if hops is None and not np.isfinite(until):
            raise InputError("until", until, "a finite time, or a number of hops", "Give one.")
        key = stream_key(seed, stream)
        rule, region = law(self.system, self.model, block), whole_lattice()
        made = np.zeros(block.batch, np.int64)
        grids = block.array
        for b in range(block.batch):
            if len(self._lists) <= b:
                self._lists.append((0, lists(1), table(self.model, 1)))
            while made[b] < (NO_LIMIT if hops is None else hops):
                n, store, met = self._lists[b]
                most = NO_LIMIT if hops is None else hops - int(made[b])
                log = events(0 if self.log is None else 2**16)
                most = most if self.log is None else min(most, 2**16)
                keys = key[0], key[1] + block.members[b], np.uint64(0)
                n = _keep(grids[b], n, store, rule, region)
                if n > store.flat.size:
                    self._lists[b] = (0, lists(n), table(self.model, n))
                    continue
                count, clock = evolve(
                    grids[b], block.origins[b] - block.halo, n,
                    Evaluator(rule, met, self._scratch), region, store, keys,
                    np.uint64(self.hops[b]), float(self.clock[b]), float(until), most, log, 0, True,
                )  # fmt: skip
                self._lists[b] = (n, store, met)
                made[b] += count
                self.hops[b] += count
                self.clock[b] = clock
                if self.log is not None:
                    while len(self.log) <= b:
                        self.log.append([])
                    self.log[b].append(Events(log.time[:count], log.hop[:count]))
                if count < most:  # the time is over, or nothing can hop
                    break
        return made


def total_rates(system: Alloy, model: Barriers, block: Block) -> np.ndarray:
    """Sum of the eight rates of every vacancy in the boxes, (n,) float64 in 1 / s, box by box."""
    check(system, model, block)
    require_species(block, len(system.elements))
    found, region, out = evaluator(system, model, block, 1), whole_lattice(), [np.empty(0)]
    for grid in block.array:
        inner = grid[(slice(block.halo, -block.halo),) * 3]
        store = lists(max(1, number_of_vacancies(inner)))
        # A box of a rank, not closed, has its bounds; the vacancies in it use any bond.
        box = found.law._replace(sides=(block.shape[0], block.shape[1], block.shape[2]))
        found, zero = found._replace(law=box), np.uint64(0)
        n, origin, keys = scan(grid, box, region, store), np.zeros(3, np.int64), (zero, zero, zero)
        evolve(
            grid, origin, n, found, region, store, keys, zero, 0.0, 0.0, 0, events(0), 0, True
        )  # fmt: skip
        out.append(store.rates[:n].sum(axis=1))
    return np.concatenate(out)
