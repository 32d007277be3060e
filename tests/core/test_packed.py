"""Packed blocks: every bit is the site it should be, in the box and in its halo, on any ranks."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
from exact import bonds, has_cuda, magnetizations
from mpi4py import MPI

from mpiflow import initial, observables
from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, divisors, factorisations
from mpiflow.core.packed import BAND, CUT, WORD_SITES, PackedBlock, fits
from mpiflow.core.packed_words import popcount

Run = Callable[..., subprocess.CompletedProcess[str]]

needs_cuda = pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
on_each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.kernel, needs_cuda])]
)


def random_spins(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


def expected_words(spins: np.ndarray, colour: int) -> np.ndarray:
    """Words of a lattice (ny, nx) from the definition: x = 2 (64 w + b) + skip, then 0."""
    ny, nx = spins.shape
    sites = np.zeros((ny, 64 * -(-nx // WORD_SITES)), bool)
    for y in range(ny):
        sites[y, : nx // 2] = spins[y, (colour + y) % 2 :: 2] > 0
    return (
        np.packbits(sites.reshape(ny, -1, 64), axis=2, bitorder="little")
        .view("<u8")
        .reshape(ny, -1)
        .astype(np.uint64)
    )


def assert_halo(block: PackedBlock, wholes: np.ndarray) -> None:
    """Every site inside and above and below, and the one on either side."""
    ny, nx = block.shape
    y0, x0 = (int(start) for start in block.origins[0])
    side = wholes.shape[2]
    rows = (y0 + np.arange(-1, ny + 1)) % wholes.shape[1]
    for colour, words in enumerate(block.host()):
        assert words.shape == (len(wholes), ny + 2, -(-nx // WORD_SITES) + 2)
        for b, whole in enumerate(wholes):
            for i, y in enumerate(rows.tolist()):
                # Sites of a colour from the last one before the box to the first one after it.
                first = (colour + y) % 2
                sites = (x0 + first + 2 * np.arange(-1, nx // 2 + 1)) % side
                bits = np.unpackbits(words[b, i].astype("<u8").view(np.uint8), bitorder="little")
                bits = bits[63 : 65 + nx // 2]
                inside = slice(1, -1) if i in (0, ny + 1) else slice(None)  # no corners
                assert np.array_equal(bits[inside], (whole[y, sites] > 0)[inside])


def filled(spins: np.ndarray, device: str = "cpu") -> PackedBlock:
    """Periodic lattices (B, ny, nx)."""
    block = PackedBlock.periodic(
        Lattice(spins.shape[1:]), np.arange(len(spins)), device=Device(device)
    )
    block.store(slice(0, spins.shape[1]), spins)
    block.fill_halo()
    return block


# -- spins in and out ---------------------------------------------------------------------------


@on_each_device
@pytest.mark.parametrize(
    "shape", [(1, 8, 128), (3, 16, 256), (2, 24, 384), (2, 10, 64), (1, 14, 130), (2, 8, 254)]
)
def test_spins_come_back(device: str, shape: tuple[int, int, int]) -> None:
    spins = random_spins(1, *shape)
    block = filled(spins, device)
    assert (block.batch, block.shape, block.closed) == (shape[0], shape[1:], True)
    assert block.spins().dtype == np.int8
    assert np.array_equal(block.spins(), spins)
    assert_halo(block, spins)


@on_each_device
def test_bands_of_any_height_and_start(device: str) -> None:
    """Rows from an odd one on, a single row, and one band over another."""
    spins = random_spins(2, 2, 16, 128)
    block = PackedBlock.periodic(Lattice((16, 128)), np.arange(2), device=Device(device))
    assert (block.spins() == -1).all()
    for start, stop in ((0, 5), (5, 6), (6, 13), (13, 16)):
        block.store(slice(start, stop), spins[:, start:stop])
    assert np.array_equal(block.spins(), spins)
    spins[:, 3:8] = -spins[:, 3:8]
    block.store(slice(3, 8), spins[:, 3:8])
    for start, stop in ((0, 16), (1, 2), (3, 10), (15, 16)):
        assert np.array_equal(block.spins(slice(start, stop)), spins[:, start:stop])


def test_strided_spins_are_stored() -> None:
    spins = random_spins(3, 2, 8, 256)[:, :, ::2]
    assert np.array_equal(filled(spins).spins(), spins)


def test_a_single_spin_is_a_single_bit() -> None:
    """Each site of two rows, against the documented place of its bit."""
    block = PackedBlock.periodic(Lattice((8, 256)), np.arange(1))
    for y in (2, 5):
        for x in range(256):
            spins = np.full((1, 8, 256), -1, np.int8)
            spins[0, y, x] = 1
            block.store(slice(0, 8), spins)
            colour = (y + x) % 2
            inner = [words[0, 1:-1, 1:-1] for words in block.words]
            w, bit = divmod(x // 2, 64)
            assert inner[colour][y, w] == np.uint64(1) << np.uint64(bit)
            assert sum(np.count_nonzero(words) for words in inner) == 1


def test_bands_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that set spins do it in bands, whatever their height, with the same result."""
    blocks = []
    for sites in (2**21, 1):
        monkeypatch.setattr("mpiflow.core.block.BAND_SITES", sites)
        block = PackedBlock.periodic(Lattice((40, 128)), np.arange(3))
        bands = list(block.bands())
        assert [rows.start for rows in bands] == list(range(0, 40, 8 if sites == 1 else 40))
        initial.independent(block, seed=4, magnetization=0.3)
        blocks.append(block)
    assert np.array_equal(blocks[0].spins(), blocks[1].spins())
    plain = Block.periodic(np.ones((3, 40, 128), np.int8), np.arange(3))
    initial.independent(plain, seed=4, magnetization=0.3)
    assert np.array_equal(blocks[0].spins(), plain.spins())
    assert_halo(blocks[1], plain.spins())


@on_each_device
def test_copies_have_black_spins_of_their_own(device: str) -> None:
    """And share the white ones, as the look at the middle of a black pass needs."""
    spins = random_spins(5, 2, 8, 128)
    block = filled(spins, device)
    copy = block.copy()
    assert np.array_equal(copy.spins(), spins)
    black = np.add.outer(np.arange(8), np.arange(128)) % 2 == 0
    copy.store(slice(0, 8), np.where(black, -spins, spins))
    assert np.array_equal(block.spins(), spins)
    assert np.array_equal(copy.spins(), np.where(black, -spins, spins))
    block.store(slice(0, 8), -spins)
    assert np.array_equal(copy.spins(), -spins)  # black as set above, white the block's
    block.store(slice(0, 8), spins)
    copy.copy_from(block)
    assert np.array_equal(copy.spins(), spins)
    assert copy.lattice == block.lattice
    assert np.array_equal(copy.members, block.members)


def test_an_empty_batch_is_allowed() -> None:
    """A rank may hold no member of a small ensemble."""
    block = PackedBlock.periodic(Lattice((8, 128)), np.arange(0))
    block.fill_halo()
    assert (block.batch, block.shape, block.spins().shape) == (0, (8, 128), (0, 8, 128))
    assert block.sums().shape == (0, 2)
    assert block.block_sums(8).shape == (0, 1, 16)


# -- observables --------------------------------------------------------------------------------


def test_popcount() -> None:
    rng = np.random.default_rng(6)
    words = rng.integers(0, 2**64, 500, np.uint64) & rng.integers(0, 2**64, 500, np.uint64)
    for word in [*words, np.uint64(0), ~np.uint64(0), np.uint64(2**63), np.uint64(1)]:
        assert popcount(word) == int(word).bit_count()


@on_each_device
@pytest.mark.parametrize("shape", [(1, 8, 128), (3, 24, 128), (2, 16, 384)])
def test_sums(device: str, shape: tuple[int, int, int]) -> None:
    spins = random_spins(7, *shape)
    block = filled(spins, device)
    sums = observables.spin_sums(block)
    assert sums.dtype == np.int64
    assert np.array_equal(sums[:, 0], magnetizations(spins))
    assert np.array_equal(sums[:, 1], bonds(spins))
    assert np.array_equal(sums, block.sums())


def test_sums_of_known_states() -> None:
    """More spins than 16 bits count; a domain wall along either axis; single spins at edges."""
    up = np.ones((1, 512, 384), np.int8)
    board = np.where(np.add.outer(np.arange(512), np.arange(384)) % 2, -1, 1).astype(np.int8)
    sites = 512 * 384
    for spins, total, bond_sum in [
        (up, sites, 2 * sites),
        (-up, -sites, 2 * sites),
        (board[None], 0, -2 * sites),
        (np.where(np.arange(384) < 100, -1, 1).astype(np.int8) * up, 184 * 512, 2 * sites - 2048),
        (np.where(np.arange(512) < 9, -1, 1)[:, None].astype(np.int8) * up, 494 * 384,
         2 * sites - 4 * 384),
    ]:  # fmt: skip
        assert observables.spin_sums(filled(spins)).tolist() == [[total, bond_sum]]
    for y, x in [(0, 0), (511, 383), (0, 383), (511, 0), (7, 127), (8, 128), (100, 255)]:
        spins = up.copy()
        spins[0, y, x] = -1
        assert observables.spin_sums(filled(spins)).tolist() == [[sites - 2, 2 * sites - 8]]


SIZES = [n for n in divisors(math.gcd(384, 768)) if n <= 384]


@pytest.mark.parametrize("size", SIZES)
def test_coarse_sums(size: int) -> None:
    """All divisors of 384: odd ones, of a word or not, several words."""
    spins = random_spins(8, 2, 384, 768)
    coarse = spins.reshape(2, 384 // size, size, 768 // size, size).sum((2, 4), dtype=np.int64)
    ours = observables.block_sums(filled(spins), size)
    assert ours.dtype == np.int32
    assert np.array_equal(ours, coarse)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((200, 3200), 100), ((200, 3200), 25), ((40, 640), 5), ((40, 640), 40), ((56, 896), 7),
     ((56, 896), 14), ((1024, 1024), 512), ((1024, 1024), 1024), ((104, 1664), 13)],
)  # fmt: skip
def test_coarse_sums_of_other_sizes(shape: tuple[int, int], size: int) -> None:
    spins = random_spins(9, 1, *shape)
    coarse = spins.reshape(1, shape[0] // size, size, shape[1] // size, size).sum((2, 4))
    assert np.array_equal(observables.block_sums(filled(spins), size), coarse)


@on_each_device
def test_coarse_sums_on_each_device(device: str) -> None:
    spins = random_spins(10, 2, 8, 128)
    for size in (1, 2, 4, 8):
        coarse = spins.reshape(2, 8 // size, size, 128 // size, size).sum((2, 4))
        assert np.array_equal(observables.block_sums(filled(spins, device), size), coarse)


# -- halo on one rank and on many -----------------------------------------------------------------


def grids(ranks: int) -> list[tuple[int, ...]]:
    return factorisations(ranks, 2)


def tile_of(layout: Layout, comm: MPI.Intracomm, whole: np.ndarray, device: str) -> PackedBlock:
    block = PackedBlock.tile(layout, comm, device=Device(device))
    box = layout.slices(comm.rank)
    block.store(slice(0, block.shape[0]), whole[None][(slice(None), *box)])
    return block


@pytest.mark.mpi
@pytest.mark.parametrize("cut", [(BAND, WORD_SITES), CUT], ids=["whole bands", "even rows"])
@pytest.mark.parametrize("per_rank", [(8, 128), (136, 256), (10, 164)])
def test_halo_holds_the_sites_beyond_the_edge(
    comm: MPI.Intracomm, per_rank: tuple[int, int], cut: tuple[int, int]
) -> None:
    """Also of tiles of more than 64 rows, of different sizes, and after every change."""
    for grid in grids(comm.size):
        extra = (BAND if grid[0] > 1 else 0, WORD_SITES if grid[1] > 1 else 0)  # uneven tiles
        shape = tuple(n * g + e for n, g, e in zip(per_rank, grid, extra, strict=True))
        layout = Layout(Lattice(shape), grid, cut, partial=True)
        whole = random_spins(11, *shape)
        block = tile_of(layout, comm, whole, "cpu")
        for _ in range(3):
            block.fill_halo()
            assert_halo(block, whole[None])
            whole = -np.roll(whole, 1, 1)
            box = (slice(None), *layout.slices(comm.rank))
            block.store(slice(0, block.shape[0]), whole[None][box])
        assert block.wraps == (grid[0] == 1, grid[1] == 1)
        assert block.closed == (comm.size == 1)
        assert tuple(block.origins[0]) == layout.offset(comm.rank)


@pytest.mark.mpi
def test_one_colour_is_exchanged_without_the_other(comm: MPI.Intracomm) -> None:
    """And finishing what was not started does nothing."""
    layout = Layout(Lattice((16 * comm.size, 128)), (comm.size, 1), (BAND, WORD_SITES))
    whole = random_spins(12, *layout.lattice.shape)
    block = tile_of(layout, comm, whole, "cpu")
    block.finish_exchange(0)
    for colour in (1, 0):
        before = [words.copy() for words in block.host()]
        block.start_exchange(colour)
        block.finish_exchange(colour)
        block.finish_exchange(colour)
        assert np.array_equal(block.host()[1 - colour], before[1 - colour])
    assert_halo(block, whole[None])


@pytest.mark.mpi
def test_sums_and_coarse_sums_of_a_distributed_lattice(comm: MPI.Intracomm) -> None:
    whole = random_spins(13, 60, 1004)
    coarse = whole.reshape(15, 4, 251, 4).sum((1, 3))
    for grid in grids(comm.size):
        layout = Layout(Lattice(whole.shape), grid, (4, WORD_SITES), partial=True)
        block = tile_of(layout, comm, whole, "cpu")
        block.fill_halo()
        sums = observables.spin_sums(block)
        assert sums.tolist() == [[magnetizations(whole), bonds(whole)]]
        mine = observables.block_sums(block, 4)
        assert np.array_equal(mine[0], coarse[layout.slices(comm.rank, 4)])
        assert np.array_equal(block.spins()[0], whole[layout.slices(comm.rank)])


@pytest.mark.mpi
@pytest.mark.kernel
@needs_cuda
@pytest.mark.parametrize("aware", ["0", "1"])
def test_exchange_of_cuda_words(
    comm: MPI.Intracomm, aware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and packed columns travel through pinned host memory, or as they are on the device."""
    monkeypatch.setenv("MPIFLOW_CUDA_AWARE_MPI", aware)
    for grid in grids(comm.size):
        for shape in ((8 * grid[0], 128 * grid[1]), (10 * grid[0], 128 * grid[1] - 54)):
            layout = Layout(Lattice(shape), grid, CUT, partial=True)
            whole = random_spins(14, *layout.lattice.shape)
            block = tile_of(layout, comm, whole, "cuda")
            block.fill_halo()
            assert_halo(block, whole[None])


# -- what does not fit ----------------------------------------------------------------------------


def test_which_lattices_fit() -> None:
    for shape in [(8, 128), (24, 384), (1024, 1024), (10, 64), (100, 100), (1000, 1000)]:
        assert fits(Lattice(shape))
    for shape in [(6, 128), (9, 128), (8, 62), (8, 129), (128, 8), (8, 8, 128)]:
        assert not fits(Lattice(shape))


@pytest.mark.parametrize("shape", [(6, 128), (8, 62), (8, 201), (131, 128), (8, 8, 128)])
def test_lattices_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^size=.*8 rows and 64 columns.*plain"):
        PackedBlock.periodic(Lattice(shape), np.arange(1))
    with pytest.raises(InputError, match=r"^size=.*8 rows and 64 columns.*plain"):
        PackedBlock.tile(Layout(Lattice(shape), (1,) * len(shape)), MPI.COMM_SELF)


@pytest.mark.mpi
def test_tiles_that_do_not_fit_are_refused_on_all_ranks(comm: MPI.Intracomm) -> None:
    """The first rank's tile starts at a word; others' do not."""
    if comm.size == 1:
        return
    for grid, shape in (
        ((comm.size, 1), (8 * comm.size + 2 * (comm.size - 1), 128)),
        ((1, comm.size), (8, 128 * (comm.size + 1))),
    ):
        layout = Layout(Lattice(shape), grid, 1)
        assert any(layout.offset(r)[0] % 2 or layout.offset(r)[1] % 128 for r in range(comm.size))
        with pytest.raises(InputError, match=r"^tile=.*even rows and multiples of 128 columns"):
            PackedBlock.tile(layout, comm)


def test_a_noise_key_beyond_its_stream_is_refused() -> None:
    with pytest.raises(InputError, match="members="):
        PackedBlock.periodic(Lattice((8, 128)), np.array([2**48]))
    with pytest.raises(InputError, match="members="):
        PackedBlock.tile(Layout(Lattice((8, 128)), (1, 1)), MPI.COMM_SELF, member=2**48)
