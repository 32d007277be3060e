"""Blocks: what stands in the halo under each policy, on any number of ranks."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from exact import has_cuda
from mpi4py import MPI

from mpiflow.core.block import Block, HaloPolicy, gather_records
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, factorisations

Run = Callable[..., subprocess.CompletedProcess[str]]

SUITE = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__)

needs_cuda = pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")


def owners(layout: Layout) -> np.ndarray:
    """The rank that owns each site."""
    out = np.empty(layout.lattice.shape, int)
    for rank in range(layout.ranks):
        out[layout.slices(rank)] = rank
    return out


def padded_box(
    field: np.ndarray, origin: tuple[int, ...], shape: tuple[int, ...], halo: int
) -> np.ndarray:
    """A box of a periodic field with its true surroundings."""
    axes = (
        np.arange(start - halo, start + n + halo) % side
        for start, n, side in zip(origin, shape, field.shape, strict=True)
    )
    return field[np.ix_(*axes)]


def grids(ranks: int) -> list[tuple[int, ...]]:
    """Every grid of ranks, (1, R) and (R, 1) among them."""
    return factorisations(ranks, 2)


# -- exchange between ranks ------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("halo", [1, 2, 3])
@pytest.mark.parametrize("shape", [(24, 24), (19, 30), (25, 18)])
def test_halo_holds_the_rank_of_the_neighbour(
    comm: MPI.Intracomm, shape: tuple[int, int], halo: int
) -> None:
    for grid in grids(comm.size):
        layout = Layout(Lattice(shape), grid)
        block = Block.tile(layout, comm, halo=halo)
        block.load(np.full((1, *block.shape), comm.rank, np.int8))
        expected = padded_box(owners(layout), layout.offset(comm.rank), block.shape, halo)
        assert np.array_equal(block.host()[0], expected), grid


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float32, np.float64])
def test_halo_holds_the_very_sites_beyond_the_edge(comm: MPI.Intracomm, dtype: type) -> None:
    """Rows and columns of the halo are in order, corners too, and every exchange is fresh."""
    lattice = Lattice((22, 27))
    sites = np.arange(lattice.sites).reshape(lattice.shape)
    for grid in grids(comm.size):
        layout = Layout(lattice, grid)
        block = Block.tile(layout, comm, halo=2, dtype=dtype)
        assert not block.host().any()
        for change in (0, 1, 57):
            whole: np.ndarray = ((sites * 31 + change) % 127).astype(dtype)
            if change:  # write in place, as kernels do, then exchange
                block.inner()[...] = whole[layout.slices(comm.rank)]
                block.fill_halo()
            else:
                block.load(whole[layout.slices(comm.rank)][None])
            expected = padded_box(whole, layout.offset(comm.rank), block.shape, 2)
            assert np.array_equal(block.host()[0], expected), (grid, change)


@pytest.mark.mpi
def test_tiles_of_one_site(comm: MPI.Intracomm) -> None:
    for grid in grids(comm.size):
        layout = Layout(Lattice(tuple(max(2, n) for n in grid)), grid)
        block = Block.tile(layout, comm)
        block.load(np.full((1, *block.shape), comm.rank, np.int8))
        expected = padded_box(owners(layout), layout.offset(comm.rank), block.shape, 1)
        assert np.array_equal(block.host()[0], expected), grid


@pytest.mark.mpi
def test_tiles_have_the_right_place_and_member(comm: MPI.Intracomm) -> None:
    layout = Layout.balanced(Lattice((50, 60)), comm.size, 2)
    block = Block.tile(layout, comm, member=5)
    assert tuple(block.origins[0]) == layout.offset(comm.rank)
    assert block.shape == layout.shape(comm.rank)
    assert block.members.tolist() == [5]
    assert block.members.dtype == np.uint64
    assert (block.batch, block.policy) == (1, "exchange")
    assert block.closed == (comm.size == 1)


@pytest.mark.mpi
def test_total_adds_integers_over_the_ranks(comm: MPI.Intracomm) -> None:
    block = Block.tile(Layout.balanced(Lattice((12, 12)), comm.size), comm)
    values = np.array([[comm.rank, 2**40], [1, -comm.rank]], np.int64)[:, ::-1]
    total = block.total(values)
    ranks, sum_of_ranks = comm.size, comm.size * (comm.size - 1) // 2
    assert total.tolist() == [[ranks * 2**40, sum_of_ranks], [-sum_of_ranks, ranks]]


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", [np.int8, np.float64, [("spin", np.int8, (3,)), ("time", float)]])
def test_records_are_gathered_in_the_order_of_ranks(comm: MPI.Intracomm, dtype: Any) -> None:
    """Different numbers on each rank, none on rank 1."""
    counts = [0 if rank == 1 else rank + 2 for rank in range(comm.size)]
    first = sum(counts[: comm.rank])
    numbers = np.arange(first, first + counts[comm.rank])
    rows = np.zeros((len(numbers), 2), dtype)
    rows[...] = np.stack([numbers, -numbers], 1)
    gathered = gather_records(rows, comm)
    assert (gathered is None) == (comm.rank > 0)
    if gathered is not None:
        expected = np.zeros((sum(counts), 2), dtype)
        expected[...] = np.stack([np.arange(sum(counts)), -np.arange(sum(counts))], 1)
        assert gathered.dtype == rows.dtype
        assert np.array_equal(gathered, expected)


@pytest.mark.mpi
def test_tiles_thinner_than_the_halo_are_refused(comm: MPI.Intracomm) -> None:
    layout = Layout(Lattice((2, 2 * comm.size)), (1, comm.size))
    Block.tile(layout, comm, halo=2)
    with pytest.raises(InputError, match=r"^halo=3: .*at most 2"):
        Block.tile(layout, comm, halo=3)


@pytest.mark.mpi
@pytest.mark.kernel
@needs_cuda
@pytest.mark.parametrize("aware", ["0", "1"])
def test_exchange_of_a_cuda_field(
    comm: MPI.Intracomm, aware: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips travel through pinned host memory, or as they are on the device."""
    monkeypatch.setenv("MPIFLOW_CUDA_AWARE_MPI", aware)
    lattice = Lattice((5, 7))
    whole = (np.arange(35).reshape(lattice.shape) % 100).astype(np.int8)
    for grid in [g for g in grids(comm.size) if g[0] <= 2 and g[1] <= 3]:
        layout = Layout(lattice, grid)
        block = Block.tile(layout, comm, halo=1, device=Device("cuda"))
        assert comm.size == 1 or any(
            messages.direct == (aware == "1") for messages in block._exchange.messages if messages
        )
        block.load(whole[layout.slices(comm.rank)][None])
        expected = padded_box(whole, layout.offset(comm.rank), block.shape, 1)
        assert np.array_equal(block.host()[0], expected), grid


@pytest.mark.validate
def test_six_ranks(mpirun: Run) -> None:
    """Grids (1,6), (2,3), (3,2), (6,1): the parallel tests of this file once more."""
    done = mpirun(6, *SUITE, "-m", "mpi", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


# -- boxes of whole lattices -----------------------------------------------------------------


def numbered(batch: int, shape: tuple[int, ...]) -> np.ndarray:
    """Lattices whose every site is different."""
    sites = batch * int(np.prod(shape))
    return np.arange(sites, dtype=np.int32).reshape(batch, *shape)


ORIGINS = np.array([[0, 0], [1, 3], [7, 9], [5, 8], [-1, -2]])


@pytest.mark.parametrize("halo", [1, 2])
@pytest.mark.parametrize("box", [(3, 4), (1, 1), (8, 10)])
def test_frozen_boxes_stand_in_their_true_surroundings(box: tuple[int, int], halo: int) -> None:
    """Also over the periodic edge, from negative origins and as large as the lattice."""
    states = numbered(len(ORIGINS), (8, 10))
    block = Block.cut(states, ORIGINS, box, np.arange(5), halo=halo)
    for b, origin in enumerate(ORIGINS):
        expected = padded_box(states[b], tuple(origin), box, halo)
        assert np.array_equal(block.array[b], expected)
    assert (block.batch, block.shape, block.closed) == (5, box, False)


def test_a_frozen_halo_never_changes() -> None:
    states = numbered(2, (8, 8))
    block = Block.cut(states, (2, 7), (3, 3), np.arange(2), halo=2)
    before = block.array.copy()
    states += 1000  # a cut is a copy
    block.load(-numbered(2, (3, 3)))
    block.fill_halo()
    assert np.array_equal(block.inner(), -numbered(2, (3, 3)))
    ring = np.ones(before.shape, bool)
    ring[:, 2:-2, 2:-2] = False
    assert np.array_equal(block.array[ring], before[ring])


@pytest.mark.parametrize("halo", [1, 2])
def test_wrapped_boxes_are_closed_on_themselves(halo: int) -> None:
    states = numbered(len(ORIGINS), (8, 10))
    block = Block.cut(states, ORIGINS, (4, 6), np.arange(5), policy="wrap", halo=halo)
    for b, origin in enumerate(ORIGINS):
        inner = padded_box(states[b], tuple(origin), (4, 6), 0)
        assert np.array_equal(block.array[b], np.pad(inner, halo, mode="wrap"))
    assert block.closed


@pytest.mark.parametrize("shape", [(2, 2), (2, 5), (6, 3), (4, 2, 6), (2, 3, 2)])
def test_periodic_lattices(shape: tuple[int, ...]) -> None:
    states = numbered(3, shape)
    block = Block.periodic(states, np.array([4, 5, 6]))
    for b in range(3):
        assert np.array_equal(block.array[b], np.pad(states[b], 1, mode="wrap"))
    new = states[::-1] * 7
    block.load(new)
    for b in range(3):
        assert np.array_equal(block.array[b], np.pad(new[b], 1, mode="wrap"))
    assert block.closed
    assert block.members.tolist() == [4, 5, 6]


@pytest.mark.parametrize("policy", ["frozen", "wrap"])
def test_paste_brings_back_exactly_the_box(policy: HaloPolicy) -> None:
    states = numbered(len(ORIGINS), (8, 10))
    block = Block.cut(states, ORIGINS, (3, 4), np.arange(5), policy=policy)
    back = states.copy()
    block.paste(back)
    assert np.array_equal(back, states)
    block.load(np.full((5, 3, 4), -1))
    block.paste(back)
    for b, (y, x) in enumerate(ORIGINS):
        marked = np.zeros((8, 10), bool)
        marked[np.ix_((y + np.arange(3)) % 8, (x + np.arange(4)) % 10)] = True
        assert (back[b][marked] == -1).all()
        assert np.array_equal(back[b][~marked], states[b][~marked])


on_each_device = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.kernel, needs_cuda])]
)


@on_each_device
def test_rows_are_stored_without_their_halo(device: str) -> None:
    states = (numbered(2, (6, 4)) % 100).astype(np.int8)
    block = Block.periodic(states, np.arange(2), device=Device(device))
    block.store(slice(2, 5), -states[:, 2:5])
    block.store(slice(0, 1), np.full((2, 1, 4), 7))  # of another type
    expected = states.copy()
    expected[:, 2:5] *= -1
    expected[:, 0] = 7
    assert np.array_equal(block.spins(), expected)
    assert np.array_equal(block.host()[:, 0, 1:-1], states[:, -1])  # the halo as it was
    assert np.array_equal(block.host()[:, -1, 1:-1], states[:, 0])
    block.fill_halo()
    for b in range(2):
        assert np.array_equal(block.host()[b], np.pad(expected[b], 1, mode="wrap"))


@on_each_device
def test_a_copy_has_a_field_of_its_own(device: str) -> None:
    """And all else of the block."""
    states = (numbered(2, (6, 4)) % 100).astype(np.int8)
    block = Block.cut(states, (5, 3), (3, 2), np.array([4, 9]), device=Device(device))
    before = block.host().copy()
    copy = block.copy()
    assert (copy.lattice, copy.policy, copy.halo) == (block.lattice, block.policy, block.halo)
    assert np.array_equal(copy.origins, block.origins)
    assert np.array_equal(copy.members, block.members)
    copy.store(slice(0, 3), np.zeros((2, 3, 2)))
    assert np.array_equal(block.host(), before)
    block.load(-np.ones((2, 3, 2)))
    copy.copy_from(block)
    assert np.array_equal(copy.host(), block.host())
    assert not np.array_equal(copy.host(), before)


@pytest.mark.mpi
def test_a_copy_of_a_tile_exchanges_its_own_halo(comm: MPI.Intracomm) -> None:
    lattice = Lattice((12, 14))
    sites = np.arange(lattice.sites, dtype=np.int32).reshape(lattice.shape)
    for grid in grids(comm.size):
        layout = Layout(lattice, grid)
        block = Block.tile(layout, comm, dtype=np.int32)
        box = (slice(None), *layout.slices(comm.rank))
        block.load(sites[None][box])
        copy = block.copy()
        copy.load(-sites[None][box])
        for some, sign in ((block, 1), (copy, -1)):
            some.fill_halo()
            expected = padded_box(sign * sites, layout.offset(comm.rank), block.shape, 1)
            assert np.array_equal(some.host()[0], expected), grid


@pytest.mark.parametrize("sites", [1, 200, 2**21])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_bands_are_all_rows_once(monkeypatch: pytest.MonkeyPatch, batch: int, sites: int) -> None:
    """Of at most so many sites, but of eight rows at least."""
    monkeypatch.setattr("mpiflow.core.block.BAND_SITES", sites)
    block = Block.periodic(np.zeros((batch, 43, 6), np.int8), np.arange(batch))
    bands = list(block.bands())
    assert [row for rows in bands for row in range(rows.start, rows.stop)] == list(range(43))
    heights = {rows.stop - rows.start for rows in bands[:-1]}
    assert all(height == 8 or 8 < height <= sites // max(1, 6 * batch) for height in heights)


def test_one_origin_serves_all_boxes() -> None:
    states = numbered(3, (6, 6))
    block = Block.cut(states, (5, 5), (2, 2), np.arange(3))
    assert block.origins.tolist() == [[5, 5]] * 3
    block.origins[0] = 1  # a copy of its own, not a view of a broadcast
    assert block.origins.tolist() == [[1, 1], [5, 5], [5, 5]]


def test_values_of_separate_boxes_are_not_added() -> None:
    block = Block.periodic(numbered(3, (4, 4)), np.arange(3))
    values = np.arange(6).reshape(3, 2)
    assert np.array_equal(block.total(values), values)


def test_every_box_needs_its_own_noise_key() -> None:
    with pytest.raises(InputError, match=r"^members=2: allowed is 3"):
        Block.periodic(numbered(3, (4, 4)), np.arange(2))


def test_a_noise_key_beyond_its_stream_is_refused() -> None:
    with pytest.raises(InputError, match="members="):
        Block.periodic(np.ones((1, 4, 4), np.int8), np.array([2**48]))


@pytest.mark.parametrize("policy", ["frozen", "wrap"])
@pytest.mark.parametrize(("box", "halo"), [((3, 4, 5), 2), ((8, 6, 10), 5), ((1, 2, 1), 1)])
def test_boxes_of_three_axes(box: tuple[int, ...], halo: int, policy: HaloPolicy) -> None:
    """Cut, fill the halo, paste: also over the periodic edge, and larger than the lattice."""
    states = numbered(3, (8, 6, 10))
    origins = np.array([[0, 0, 0], [7, 5, 9], [-3, 2, -1]])
    block = Block.cut(states, origins, box, np.arange(3), policy=policy, halo=halo)
    for b, origin in enumerate(origins):
        expected = padded_box(states[b], tuple(origin), box, halo)
        if policy == "wrap":
            inner = padded_box(states[b], tuple(origin), box, 0)
            expected = np.pad(inner, halo, mode="wrap")
        assert np.array_equal(block.array[b], expected)
    back = states.copy()
    block.load(np.full((3, *box), -1, states.dtype))
    block.paste(back)
    for b, origin in enumerate(origins):
        marked = np.zeros(states.shape[1:], bool)
        axes = (
            (o + np.arange(n)) % side for o, n, side in zip(origin, box, (8, 6, 10), strict=True)
        )
        marked[np.ix_(*axes)] = True
        assert (back[b][marked] == -1).all()
        assert np.array_equal(back[b][~marked], states[b][~marked])


def test_an_empty_batch_is_allowed() -> None:
    """A rank may hold no member of a small ensemble."""
    block = Block.periodic(np.zeros((0, 4, 4), np.int8), np.arange(0))
    block.fill_halo()
    assert (block.batch, block.shape, block.array.shape) == (0, (4, 4), (0, 6, 6))


def test_closed_boxes_thinner_than_the_halo_are_refused() -> None:
    states = numbered(1, (8, 8))
    Block.cut(states, (0, 0), (1, 2), np.arange(1), halo=3)
    with pytest.raises(InputError, match=r"^halo=3: .*at most 2"):
        Block.cut(states, (0, 0), (4, 2), np.arange(1), policy="wrap", halo=3)


@pytest.mark.kernel
@needs_cuda
@pytest.mark.parametrize("policy", ["frozen", "wrap"])
def test_a_cuda_field_is_filled_like_a_host_field(policy: HaloPolicy) -> None:
    states = (numbered(2, (4, 6)) % 100).astype(np.int8)
    new = (-numbered(2, (2, 3)) % 100).astype(np.int8)
    blocks = [
        Block.cut(states, (3, 5), (2, 3), np.arange(2), policy=policy, device=Device(name))
        for name in ("cpu", "cuda")
    ]
    assert np.array_equal(blocks[0].host(), blocks[1].host())
    for block in blocks:
        block.load(new)
    assert np.array_equal(blocks[0].host(), blocks[1].host())
    pasted = [states.copy(), states.copy()]
    for block, back in zip(blocks, pasted, strict=True):
        block.paste(back)
    assert np.array_equal(pasted[0], pasted[1])
