"""How many sites of each rate class there are in each tile of a lattice, kept up to date.

Of B boxes of ``ty x tx`` tiles: ``rows`` (B, ty * tx, CLASSES, side) uint8 is the number of sites
of each class in each row of a tile, ``totals`` (B, ty * tx, CLASSES) int64 in the whole tile. Both
are functions of the spins alone.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import copy_line, kernel
from mpiflow.core.errors import InputError
from mpiflow.solvers.spins.tile_rules import class_at, in_words
from mpiflow.systems.ising import CLASSES

_UP = np.uint8(128)


@kernel
def _row_shifts(above: np.ndarray, row: np.ndarray, below: np.ndarray, shifts: np.ndarray) -> bool:
    """For each site the place of its neighbour sum in a word of counts, and a bit for its spin.

    Returns whether all spins are -1 or 1.
    """
    fine = True
    for x in range(shifts.size):
        k = above[x + 1] + below[x + 1] + row[x] + row[x + 2]
        shifts[x] = np.uint8(6 * (k + 4)) | (_UP if row[x + 1] > 0 else np.uint8(0))
        fine &= (row[x + 1] == 1) | (row[x + 1] == -1)
    return fine


@kernel
def _count_words(shifts: np.ndarray, side: int, words: np.ndarray) -> None:
    """For each tile that a row crosses: two words with the counts of its ten classes there."""
    for j in range(words.shape[0]):
        first = np.uint64(j * side)  # unsigned: see _match
        every, ups = np.uint64(0), np.uint64(0)
        for i in range(side):
            shift = shifts[first + np.uint64(i)]
            one = np.uint64(1) << np.uint64(shift & np.uint8(63))
            every += one
            ups += one if shift >= _UP else np.uint64(0)
        words[j, 0] = every - ups
        words[j, 1] = ups


@kernel
def count(fields: np.ndarray, halo: int, side: int, rows: np.ndarray, totals: np.ndarray) -> bool:
    """Count the classes of all sites; False, without an end, if a spin is not -1 or 1."""
    ny, nx = fields.shape[1] - 2 * halo, fields.shape[2] - 2 * halo
    tx = nx // side
    shifts, words = np.empty(nx, np.uint8), np.empty((tx, 2), np.uint64)
    totals[:] = 0
    for b in range(fields.shape[0]):
        for y in range(ny):
            window = fields[b, halo + y - 1 : halo + y + 2, halo - 1 : halo + nx + 1]
            if not _row_shifts(window[0], window[1], window[2], shifts):
                return False
            _count_words(shifts, side, words)
            for j in range(tx):
                tile = y // side * tx + j
                for c in range(CLASSES):
                    n = in_words(words[j, 0], words[j, 1], c)
                    rows[b, tile, c, y % side] = n
                    totals[b, tile, c] += np.int64(n)
    return True


@kernel
def _shift(
    field: np.ndarray,
    halo: int,
    side: int,
    y: int,
    x: int,
    step: int,
    rows: np.ndarray,
    totals: np.ndarray,
) -> None:
    """Correct the counts for a site whose neighbour sum has become 2 * step larger."""
    tile = y // side * ((field.shape[1] - 2 * halo) // side) + x // side
    new = class_at(field, y + halo, x + halo)
    rows[tile, new - step, y % side] -= 1
    rows[tile, new, y % side] += 1
    totals[tile, new - step] -= 1
    totals[tile, new] += 1


@kernel
def copy_halos(fields: np.ndarray, halo: int, across: np.ndarray, down: np.ndarray) -> None:
    """The halo next to the boxes: rows above and below (B, 2, nx), columns aside (B, 2, ny)."""
    ny, nx = down.shape[2], across.shape[2]
    for b in range(fields.shape[0]):
        copy_line(across[b, 0], fields[b, halo - 1, halo:])
        copy_line(across[b, 1], fields[b, halo + ny, halo:])
        for y in range(ny):
            down[b, 0, y] = fields[b, halo + y, halo - 1]
            down[b, 1, y] = fields[b, halo + y, halo + nx]


@kernel
def _see_halos(
    fields: np.ndarray,
    halo: int,
    side: int,
    across: np.ndarray,
    down: np.ndarray,
    old_across: np.ndarray,
    old_down: np.ndarray,
    rows: np.ndarray,
    totals: np.ndarray,
) -> None:
    """Correct the counts at the edges of boxes where the halo is not as it was."""
    ny, nx = down.shape[2], across.shape[2]
    for b in range(fields.shape[0]):
        box = fields[b], halo, side
        for end in range(2):
            if _differ(across[b, end], old_across[b, end]):
                for x in range(1, nx - 1):
                    change = across[b, end, x] - old_across[b, end, x]
                    if change != 0:
                        _shift(*box, end * (ny - 1), x, change // 2, rows[b], totals[b])
            if _differ(down[b, end], old_down[b, end]):
                for y in range(1, ny - 1):
                    change = down[b, end, y] - old_down[b, end, y]
                    if change != 0:
                        _shift(*box, y, end * (nx - 1), change // 2, rows[b], totals[b])
        for corner in range(4):  # with two sites of the halo each
            end, aside = corner // 2, corner % 2
            y, x = end * (ny - 1), aside * (nx - 1)
            change = across[b, end, x] - old_across[b, end, x]
            change += down[b, aside, y] - old_down[b, aside, y]
            if change != 0:
                _shift(*box, y, x, change // 2, rows[b], totals[b])


@kernel
def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    differences = False
    for i in range(one.size):
        differences |= one[i] != other[i]
    return differences


@kernel
def pack(fields: np.ndarray, halo: int, bits: np.ndarray) -> bool:
    """Spins of eight rows in each byte of (B, ceil(ny / 8), nx) uint8; whether any was another."""
    ny, nx = fields.shape[1] - 2 * halo, bits.shape[2]
    row = np.empty(nx, np.uint8)
    changed = False
    for b in range(fields.shape[0]):
        for i in range(bits.shape[1]):
            row[:] = 0
            for y in range(8 * i, min(8 * i + 8, ny)):
                bit = np.uint8(1 << (y % 8))
                _pack_row(fields[b, halo + y, halo : halo + nx], bit, row)
            if _differ(row, bits[b, i]):
                changed = True
                copy_line(bits[b, i], row)
    return changed


@kernel
def _pack_row(spins: np.ndarray, bit: np.uint8, row: np.ndarray) -> None:
    for x in range(row.size):
        row[x] |= bit if spins[x] > 0 else np.uint8(0)


class TileCounts:
    """Numbers of sites of each rate class in the tiles of a block: a function of its spins.

    Attributes
    ----------
    rows, totals : as above
    bits : the spins that were counted, to notice when they were changed
    """

    def __init__(self, block: Block, tile: int) -> None:
        self.tile = tile
        batch, (ny, nx) = block.batch, block.shape
        tiles = (ny // tile) * (nx // tile)
        self.rows = np.empty((batch, tiles, CLASSES, tile), np.uint8)
        self.totals = np.empty((batch, tiles, CLASSES), np.int64)
        # The halo now and as last seen, see copy_halos.
        self.across, self.old_across = np.empty((2, batch, 2, nx), np.int8)
        self.down, self.old_down = np.empty((2, batch, 2, ny), np.int8)
        self.bits = np.empty((batch, -(-ny // 8), nx), np.uint8)
        self._recount(block)
        pack(block.array, block.halo, self.bits)

    def fit(self, block: Block) -> bool:
        """Whether these are the counts of boxes of this shape."""
        batch, _, nx = self.bits.shape
        return (batch, (self.down.shape[2], nx)) == (block.batch, block.shape)

    def update(self, block: Block) -> None:
        """Bring the counts up to date with spins that anyone may have changed."""
        if pack(block.array, block.halo, self.bits):
            self._recount(block)
        else:
            self.see_halo(block)

    def accept(self, block: Block) -> None:
        """Take the spins as those that are counted."""
        pack(block.array, block.halo, self.bits)

    def restore(self, block: Block) -> None:
        """Give the block the spins that were last accepted. Collective for ``exchange`` blocks."""
        halo, (ny, nx) = block.halo, block.shape
        for y in range(ny):
            up = self.bits[:, y // 8] >> np.uint8(y % 8) & np.uint8(1)
            block.array[:, halo + y, halo : halo + nx] = 2 * up.view(np.int8) - 1
        block.fill_halo()
        self._recount(block)

    def _recount(self, block: Block) -> None:
        if not count(block.array, block.halo, self.tile, self.rows, self.totals):
            raise InputError("spins", "another", "-1 or 1 at every site", "Set an initial state.")
        copy_halos(block.array, block.halo, self.across, self.down)

    def see_halo(self, block: Block) -> None:
        """Bring the counts up to date after the halo was filled."""
        self.across, self.old_across = self.old_across, self.across
        self.down, self.old_down = self.old_down, self.down
        copy_halos(block.array, block.halo, self.across, self.down)
        _see_halos(
            block.array,
            block.halo,
            self.tile,
            self.across,
            self.down,
            self.old_across,
            self.old_down,
            self.rows,
            self.totals,
        )
