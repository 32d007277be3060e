"""Observables against sums over sites and bonds written out."""

from __future__ import annotations

import numpy as np
import pytest
from exact import bonds, magnetizations, neighbour_sums
from mpi4py import MPI

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.lattice import Lattice, Layout, factorisations
from mpiflow.core.packed import PackedBlock
from mpiflow.systems.ising import Ising

RNG = np.random.default_rng(8)


def random_spins(*shape: int) -> np.ndarray:
    return RNG.choice(np.array([-1, 1], np.int8), shape)


def periodic(spins: np.ndarray) -> Block:
    return Block.periodic(spins, np.arange(len(spins)))


@pytest.mark.parametrize("shape", [(2, 2), (2, 5), (3, 3), (16, 10)])
def test_sums_of_random_lattices(shape: tuple[int, int]) -> None:
    spins = random_spins(7, *shape)
    sums = observables.spin_sums(periodic(spins))
    assert sums.dtype == np.int64
    assert np.array_equal(sums[:, 0], magnetizations(spins))
    assert np.array_equal(sums[:, 1], bonds(spins))


def test_sums_of_known_states() -> None:
    up = np.ones((1, 400, 300), np.int8)  # sums beyond 16 bits
    board = np.where(np.add.outer(np.arange(400), np.arange(300)) % 2, -1, 1).astype(np.int8)
    stripes = np.where(np.arange(400)[:, None] % 2, -1, 1).astype(np.int8) * up
    for spins, total, bond_sum, walls in [
        (up, 120000, 240000, 0.0),
        (-up, -120000, 240000, 0.0),
        (board[None], 0, -240000, 1.0),
        (stripes, 0, 0, 0.5),
    ]:
        sums = observables.spin_sums(periodic(spins))
        assert sums.tolist() == [[total, bond_sum]]
        assert observables.domain_wall_density(sums[:, 1], 120000).tolist() == [walls]


def test_energy_and_walls_of_one_flipped_spin() -> None:
    spins = np.ones((1, 8, 8), np.int8)
    spins[0, 7, 0] = -1
    sums = observables.spin_sums(periodic(spins))
    assert Ising(1.0, field=0.5).energy(sums[:, 1], sums[:, 0]).tolist() == [-128 + 8 - 31]
    assert observables.domain_wall_density(sums[:, 1], 64).tolist() == [4 / 128]


def test_tiles_own_every_bond_once() -> None:
    """Cut boxes of a tiling, with odd offsets and sides, add up to the whole."""
    spins = random_spins(1, 12, 10)
    total = np.zeros(2, np.int64)
    for y, ny in ((3, 5), (8, 4), (0, 3)):
        for x, nx in ((7, 6), (3, 4)):
            total += observables.spin_sums(Block.cut(spins, (y, x), (ny, nx), np.arange(1)))[0]
    assert total.tolist() == [magnetizations(spins)[0], bonds(spins)[0]]


@pytest.mark.mpi
def test_sums_and_coarse_sums_of_a_distributed_lattice(comm: MPI.Intracomm) -> None:
    lattice = Lattice((30, 24))
    spins = np.random.default_rng(3).choice(np.array([-1, 1], np.int8), (1, *lattice.shape))
    coarse = spins[0].reshape(15, 2, 12, 2).sum((1, 3))
    for grid in factorisations(comm.size, 2):
        layout = Layout(lattice, grid, granularity=2)
        block = Block.tile(layout, comm)
        block.load(spins[(slice(None), *layout.slices(comm.rank))])
        sums = observables.spin_sums(block)
        assert sums.tolist() == [[magnetizations(spins)[0], bonds(spins)[0]]]
        mine = observables.block_sums(block, 2)
        assert np.array_equal(mine[0], coarse[layout.slices(comm.rank, 2)])


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_coarse_sums(size: int) -> None:
    spins = random_spins(3, 12, 18)
    expected = np.zeros((3, 12 // size, 18 // size), int)
    for b, y, x in np.ndindex(3, 12, 18):
        expected[b, y // size, x // size] += spins[b, y, x]
    coarse = observables.block_sums(periodic(spins), size)
    assert coarse.dtype == np.int32
    assert np.array_equal(coarse, expected)


def test_coarse_sums_of_large_blocks_do_not_overflow() -> None:
    spins = np.ones((1, 512, 256), np.int8)
    assert observables.block_sums(periodic(spins), 256).tolist() == [[[65536], [65536]]]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_packed_and_plain_blocks_have_the_same_observables(size: int) -> None:
    spins = random_spins(3, 24, 256)
    plain, packed = periodic(spins), PackedBlock.periodic(Lattice((24, 256)), np.arange(3))
    packed.store(slice(0, 24), spins)
    packed.fill_halo()
    assert np.array_equal(observables.spin_sums(plain), observables.spin_sums(packed))
    sums = [observables.block_sums(block, size) for block in (plain, packed)]
    assert np.array_equal(*sums)
    assert sums[0].dtype == sums[1].dtype


@pytest.mark.parametrize("shape", [(24, 256), (8, 64), (10, 66), (14, 100), (8, 130)])
def test_bits_of_spins(shape: tuple[int, int]) -> None:
    spins = random_spins(3, *shape)
    plain, packed = periodic(spins), PackedBlock.periodic(Lattice(shape), np.arange(3))
    packed.load(spins)
    expected = np.packbits(spins > 0, axis=-1)
    for block in (plain, packed):
        bits = observables.spin_bits(block)
        assert bits.flags.c_contiguous
        assert np.array_equal(bits, expected)


def test_intensive_observables() -> None:
    """Magnetisation and walls, from sums of any leading shape."""
    sums = np.array([[[64, 128], [0, -128]], [[-64, 128], [32, 0]]])
    expected = [[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [0.5, 0.5]]]
    assert observables.intensive(sums, 64).tolist() == expected


def test_patch_sums_own_or_touch_bonds() -> None:
    """Owned bonds of a tiling add up to the whole; touching bonds give the whole's change."""
    spins = random_spins(4, 12, 12)
    owned = np.zeros((4, 2), np.int64)
    for y in range(0, 12, 4):
        for x in range(0, 12, 4):
            windows = Block.cut(spins, (y, x), (4, 4), np.arange(4)).array
            owned += observables.patch_sums(windows)
            after = spins.copy()
            after[:, y : y + 4, x : x + 4] = random_spins(4, 4, 4)
            new = Block.cut(after, (y, x), (4, 4), np.arange(4)).array
            change = observables.patch_sums(new, True) - observables.patch_sums(windows, True)
            assert np.array_equal(change[:, 0], magnetizations(after) - magnetizations(spins))
            assert np.array_equal(change[:, 1], bonds(after) - bonds(spins))
    assert np.array_equal(owned, np.stack([magnetizations(spins), bonds(spins)], 1))


def test_class_counts_inside_patches() -> None:
    spins = random_spins(2, 8, 16)
    sums = neighbour_sums(spins)
    counts = observables.class_counts(spins, 4)
    assert counts.shape == (2, 8, 10)
    expected = np.zeros_like(counts)
    for b, y, x in np.ndindex(2, 8, 16):
        if y % 4 in (1, 2) and x % 4 in (1, 2):
            patch = y // 4 * 4 + x // 4
            expected[b, patch, (sums[b, y, x] + 4) // 2 + 5 * (spins[b, y, x] > 0)] += 1
    assert np.array_equal(counts, expected)


def test_class_counts_of_a_patch_wider_and_higher_than_its_counters() -> None:
    spins = np.ones((1, 140, 140), np.int8)
    spins[0, 70, 90] = -1
    counts = observables.class_counts(spins, 140)[0, 0]
    assert counts[[4, 8, 9]].tolist() == [1, 4, 138**2 - 5]
    assert counts.sum() == 138**2
