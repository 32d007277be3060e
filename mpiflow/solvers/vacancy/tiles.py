"""How a lattice is cut into tiles for vacancies, and what a rank keeps for its own."""

from __future__ import annotations

from itertools import product

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape, divisors
from mpiflow.core.messages import NeighbourMessages
from mpiflow.solvers.vacancy.cuda import CudaTiles
from mpiflow.solvers.vacancy.events import HALO
from mpiflow.solvers.vacancy.lists import Tiles, lists
from mpiflow.solvers.vacancy.rates import evaluator
from mpiflow.systems.alloy import Alloy
from mpiflow.systems.barriers import Barriers

#: Points along an axis: sites of a tile and what they see stay apart from the next of its class.
SMALLEST_TILE = HALO + 2


def check_tiles(tiles: Shape, block: Block) -> None:
    """Raise, on all ranks alike, if such tiles do not fit the lattice and all boxes."""
    sides = block.shape if block.policy == "wrap" else block.lattice.shape
    for axis, (side, tile) in enumerate(zip(sides, tiles, strict=True)):
        cuts = divisors(side // 2) if side % 2 == 0 else []
        fitting = [n for n in cuts if n >= SMALLEST_TILE and n % 2 == 0]
        if tile != side and tile not in fitting:
            raise InputError(
                "tile",
                tiles,
                f"along axis {axis} the whole side of {side} points, or an even length from "
                f"{SMALLEST_TILE} that goes an even number of times into it",
                f"Use {' or '.join(map(str, [*fitting, side]))} there.",
            )
    if block.layout is None:
        return
    for rank in range(block.layout.ranks):
        box = block.layout.offset(rank) + block.layout.shape(rank)
        if any(n % tile for n, tile in zip(box, 2 * tiles, strict=True)):
            raise InputError(
                "tile",
                tiles,
                f"whole tiles on every rank; rank {rank} has a box of {box[3:]} points",
                "Use smaller tiles or fewer ranks.",
            )


class Plan:
    """What a run keeps from pass to pass on one rank.

    Attributes
    ----------
    passes : the class of tiles, and the share of the window, of each pass of a step
    inner, border : of each class, the tiles that see no site of other ranks, and the rest
    near : (3, 2) padded indices between which no other rank needs a site
    together : the boxes that are done at once
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
        room = max(1, vacancies)
        self.evaluator, self.lists = evaluator(system, model, block, room), lists(room)
        sides, halo, shape = np.array(self.evaluator.law.sides), block.halo, np.array(tile)
        points = tile[0], tile[1], tile[2]
        x, y, z = (int(n) for n in shape == sides)
        ranks = block.layout.ranks_grid if block.layout is not None else (1, 1, 1)
        cut = np.array(ranks) > 1
        self.messages = (
            NeighbourMessages(block.cart, 4) if block.cart is not None and cut.any() else None
        )
        self.near = np.array(
            [(2 * halo, n) if c else (0, 2**40) for n, c in zip(block.shape, cut, strict=True)]
        )
        grid = sides // shape
        here = np.array(block.shape) // shape
        corner = block.origins[0] // shape
        classes = list(product(*(range(1 if n == 1 else 2) for n in grid)))
        half = [(c, 0.5) for c in range(len(classes) - 1)]
        self.passes = [*half, (len(classes) - 1, 1.0), *reversed(half)]
        self.inner: list[Tiles] = []
        self.border: list[Tiles] = []
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
                into.append(Tiles(np.array(group, np.int64).reshape(-1, 4), points, (x, y, z)))
        most = max(len(tiles.table) for tiles in self.border)
        sites = int(np.prod(shape // 2 + 1) * 2)
        room_of_records = most * sites if self.messages else 0
        self.cuda: CudaTiles | None = None
        if device.is_cuda:
            everyone = [*self.inner, *self.border]
            self.cuda = CudaTiles(
                self.evaluator, block, room, everyone, self.near, room_of_records, device
            )
            room_of_records = 0
        batch = block.batch
        self.together = [slice(b, b + 1) for b in range(batch)] if self.cuda is None else []
        if self.cuda is not None and batch:
            self.together = [slice(0, batch)]
        self.records = np.zeros((room_of_records, 4), np.int64)

    def counts(self) -> tuple[float, float]:
        """Vacancies looked at, and barriers of them computed, so far."""
        if self.cuda is not None:
            return self.cuda.counts
        looks, done = self.evaluator.table.counts
        return float(looks), float(done)
