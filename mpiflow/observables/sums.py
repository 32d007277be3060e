"""Observables: local integer sums; division comes last, so no result depends on ranks."""

from __future__ import annotations

from functools import cache

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import kernel
from mpiflow.core.packed import PackedBlock
from mpiflow.systems.ising import CLASSES, rate_class
from mpiflow.systems.rule import SpinRule

#: Counts of bonds that are held at once, whatever the batch.
_COUNTS = 2**22
#: Words of a colour that become bytes at once: what they need stays in the cache.
_WORDS = 2**14


@kernel
def _row_sums(row: np.ndarray, below: np.ndarray) -> tuple[int, int]:
    """Of spins and bonds of a row of ``below.size`` sites (a loop of its own: it vectorises)."""
    spins = bonds = np.int32(0)
    for x in range(below.size):
        s = np.int32(row[x])
        spins += s
        bonds += s * (np.int32(below[x]) + np.int32(row[x + 1]))
    return int(spins), int(bonds)


@kernel
def _spin_sums(field: np.ndarray, halo: int, out: np.ndarray) -> None:
    ny, nx = field.shape[1], field.shape[2]
    out[:] = 0
    for b in range(field.shape[0]):
        for y in range(halo, ny - halo):
            row, below = field[b, y, halo : nx - halo + 1], field[b, y + 1, halo : nx - halo]
            spins, bonds = _row_sums(row, below)
            out[b, 0] += spins
            out[b, 1] += bonds


def spin_sums(block: Block | PackedBlock) -> np.ndarray:
    """Sum of spins and of s_i s_j over bonds, (B, 2) int64, over the whole lattice.

    A box counts the bonds to the right and down of its sites, so that the boxes
    of a tiling count every bond once. The halo must be current. Collective for
    ``exchange`` blocks.
    """
    if isinstance(block, PackedBlock):
        return block.total(block.sums())
    out = np.empty((block.batch, 2), np.int64)
    _spin_sums(block.host(), block.halo, out)
    return block.total(out)


def spin_bits(block: Block | PackedBlock) -> np.ndarray:
    """Spins as bits, (B, ny, nx / 8 rounded up) uint8, the first site in the highest bit.

    Of this rank. Words of a packed block become bytes without being unpacked.
    """
    if not isinstance(block, PackedBlock):
        return np.packbits(block.spins() > 0, axis=-1)
    even, odd = (_spread_bits() >> place for place in (0, 1))
    colours = [words[:, 1:-1, 1:-1] for words in block.host()]
    ny, nx = block.shape
    out = np.empty((block.batch, ny, 4 * colours[0].shape[2]), np.uint32)
    step = 2 * max(1, _WORDS // max(1, block.batch * colours[0].shape[2]))
    for first in range(0, ny, step):
        for parity in (0, 1):  # of the row, whose even sites are of this colour
            rows = slice(first + parity, first + step, 2)
            pair = [np.ascontiguousarray(c[:, rows]).view(np.uint16) for c in colours]
            spread = even.take(pair[parity], mode="clip")
            spread |= odd.take(pair[1 - parity], mode="clip")
            out[:, rows] = spread
    bits = out.view(np.uint8)[..., : -(-nx // 8)]
    bits[..., nx // 8 :] &= 0xFF00 >> nx % 8 & 0xFF  # behind the last site
    return np.ascontiguousarray(bits)


@cache
def _spread_bits() -> np.ndarray:
    """Of each number of 16 bits, from the lowest on, at every second place of 32, (2^16,) uint32.

    Places count from the highest bit of the byte that comes first in memory.
    """
    numbers = np.arange(2**16, dtype=np.uint16)[:, None].view(np.uint8)
    places = np.zeros((2**16, 32), np.uint8)
    places[:, ::2] = np.unpackbits(numbers, axis=1, bitorder="little")
    return np.packbits(places, axis=1).view(np.uint32)[:, 0]


@kernel
def _edge_bonds(windows: np.ndarray, out: np.ndarray) -> None:
    """Add the bonds from the patch's first row up and first column left."""
    for b in range(windows.shape[0]):
        for i in range(1, windows.shape[1] - 1):
            out[b, 1] += np.int64(windows[b, i, 1]) * np.int64(windows[b, i, 0])
        for i in range(1, windows.shape[2] - 1):
            out[b, 1] += np.int64(windows[b, 1, i]) * np.int64(windows[b, 0, i])


def patch_sums(windows: np.ndarray, touching: bool = False) -> np.ndarray:
    """Sum of spins and of s_i s_j over bonds of patches: (B, 2) int64.

    ``windows`` is (B, n + 2, n + 2): patches with one site of surroundings. By
    default a patch owns the bonds to the right and down of its sites, so the
    patches of a tiling own every bond once. With ``touching``, every bond that
    touches the patch counts: the difference of two such sums with the same
    surroundings is the exact change of the whole lattice's sum.
    """
    windows = np.ascontiguousarray(windows)
    out = np.empty((len(windows), 2), np.int64)
    _spin_sums(windows, 1, out)
    if touching:
        _edge_bonds(windows, out)
    return out


@kernel
def _count_rows(spins: np.ndarray, first: int, end: int, columns: np.ndarray) -> None:
    """Count the classes of some rows of a lattice in each column, six bits for each class.

    Without a place in memory that waits for the site before: columns go side by side.
    """
    for y in range(first, end):
        above, here, below = spins[y - 1], spins[y], spins[y + 1]
        for x in range(1, columns.size - 1):
            k = above[x] + below[x] + here[x - 1] + here[x + 1]
            columns[x] += np.uint64(1) << np.uint64(6 * rate_class(here[x], k))


@kernel
def _add_columns(columns: np.ndarray, out: np.ndarray) -> None:
    """Add the counts of columns to those of the ten classes, by way of twelve bits for each."""
    alternate, field = np.uint64(0x3F03F03F03F03F), np.uint64(4095)
    for first in range(0, columns.size, 65):  # 65 times 63 has twelve bits
        even = odd = np.uint64(0)
        for x in range(first, min(first + 65, columns.size)):
            even += columns[x] & alternate
            odd += columns[x] >> np.uint64(6) & alternate
        for c in range(CLASSES // 2):
            out[2 * c] += np.int32(even >> np.uint64(12 * c) & field)
            out[2 * c + 1] += np.int32(odd >> np.uint64(12 * c) & field)


@kernel
def _class_counts(states: np.ndarray, patch: int, out: np.ndarray) -> None:
    across = states.shape[2] // patch
    columns = np.empty(states.shape[2], np.uint64)
    for b in range(states.shape[0]):
        for top in range(0, states.shape[1], patch):
            for first in range(top + 1, top + patch - 1, 63):
                columns[:] = 0
                _count_rows(states[b], first, min(first + 63, top + patch - 1), columns)
                for p in range(across):
                    inside = columns[p * patch + 1 : (p + 1) * patch - 1]
                    _add_columns(inside, out[b, top // patch * across + p])


def class_counts(states: np.ndarray, patch: int) -> np.ndarray:
    """Sites of each rate class inside each aligned patch, (B, K, 10) int32.

    Only sites whose four neighbours lie in the patch are counted, so that the
    counts are a function of the patch alone: ``(patch - 2)^2`` sites.
    ``states`` is (B, Ly, Lx) int8 with sides that are multiples of ``patch``.
    """
    patches = (states.shape[1] // patch) * (states.shape[2] // patch)
    out = np.zeros((len(states), patches, CLASSES), np.int32)
    _class_counts(np.ascontiguousarray(states), patch, out)
    return out


@kernel
def _lattice_counts(states: np.ndarray, out: np.ndarray) -> None:
    ly, lx = states.shape[1], states.shape[2]
    for b in range(states.shape[0]):
        spins, row = states[b], out[b]
        for y in range(ly):
            above, here = spins[y - 1 if y > 0 else ly - 1], spins[y]
            below = spins[y + 1 if y < ly - 1 else 0]
            for x in range(lx):
                k = above[x] + below[x]
                k += here[x - 1 if x > 0 else lx - 1] + here[x + 1 if x < lx - 1 else 0]
                row[rate_class(here[x], k)] += 1


def lattice_class_counts(states: np.ndarray) -> np.ndarray:
    """Sites of each rate class of whole periodic lattices, (B, Ly, Lx) int8 to (B, 10) int64."""
    out = np.zeros((len(states), CLASSES), np.int64)
    _lattice_counts(np.ascontiguousarray(states), out)
    return out


@kernel
def _block_sums(field: np.ndarray, halo: int, size: int, out: np.ndarray) -> None:
    for b in range(out.shape[0]):
        for y in range(size * out.shape[1]):
            for x in range(out.shape[2]):
                total = np.int32(0)
                for k in range(halo + size * x, halo + size * (x + 1)):
                    total += field[b, halo + y, k]
                out[b, y // size, x] += total


def block_sums(block: Block | PackedBlock, size: int) -> np.ndarray:
    """Sums of spins over coarse blocks of ``size`` sites a side, (B, ny, nx) int32.

    The box's sides must be multiples of ``size``.
    """
    if isinstance(block, PackedBlock):
        return block.block_sums(size)
    ny, nx = block.shape
    out = np.zeros((block.batch, ny // size, nx // size), np.int32)
    _block_sums(block.host(), block.halo, size, out)
    return out


def intensive(sums: np.ndarray, sites: int) -> np.ndarray:
    """Magnetisation and domain-wall density, (..., 2), from sums of spins and of bonds (..., 2)."""
    walls = domain_wall_density(sums[..., 1], sites)
    return np.stack([sums[..., 0] / sites, walls], axis=-1)


def domain_wall_density(bonds: np.ndarray, sites: int) -> np.ndarray:
    r"""Fraction of unsatisfied bonds, :math:`\rho = (1 - \sum s_i s_j / 2N) / 2`."""
    return 0.5 * (1.0 - bonds / (2.0 * sites))


@kernel
def _state_counts(
    field: np.ndarray, halo: int, lowest: int, counts: np.ndarray, bonds: np.ndarray
) -> None:
    for b in range(field.shape[0]):
        for y in range(halo, field.shape[1] - halo):
            for x in range(halo, field.shape[2] - halo):
                own = np.int64(field[b, y, x]) - lowest
                counts[b, own] += 1
                bonds[b, own, np.int64(field[b, y + 1, x]) - lowest] += 1
                bonds[b, own, np.int64(field[b, y, x + 1]) - lowest] += 1


def observe(block: Block, rule: SpinRule) -> dict[str, np.ndarray]:
    """The observables of a rule, each (B,) or (B, q) float64, of whole lattices.

    The halo must be current. Collective for ``exchange`` blocks.
    """
    host, q = block.host(), int(rule.states)
    at_once = max(1, _COUNTS // q**2)
    parts = []
    for first in range(0, max(1, block.batch), at_once):
        boxes = host[first : first + at_once]
        counts, bonds = np.zeros((len(boxes), q), np.int64), np.zeros((len(boxes), q, q), np.int64)
        _state_counts(boxes, block.halo, int(rule.lowest), counts, bonds)
        parts.append(rule.observables(block.total(counts), block.total(bonds)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@kernel
def _bond_counts(field: np.ndarray, halo: int, out: np.ndarray) -> None:
    nx, ny, nz = field.shape[1:]
    for b in range(field.shape[0]):
        for x in range(halo, nx - halo, 2):
            for y in range(halo, ny - halo, 2):
                for z in range(halo, nz - halo, 2):
                    row = out[b, field[b, x, y, z]]
                    for dx in (-1, 1):
                        for dy in (-1, 1):
                            row[field[b, x + dx, y + dy, z - 1]] += 1
                            row[field[b, x + dx, y + dy, z + 1]] += 1


def bond_counts(block: Block, species: int) -> np.ndarray:
    """Nearest-neighbour bonds of a body-centred cubic lattice by the species of their ends.

    Returns (B, species, species) int64 over the whole lattice, first the corner's species, then
    the centre's (:mod:`mpiflow.systems.alloy`). Boxes start and end at even points, and the halo
    must be current. Collective for ``exchange`` blocks.
    """
    out = np.zeros((block.batch, species, species), np.int64)
    _bond_counts(block.host(), block.halo, out)
    return block.total(out)
