"""Initial states: exact counts, uniform arrangements, covariances, files; on any tiling."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
from exact import P_FLOOR, Z_CEILING, chi_square, deviate
from mpi4py import MPI

from mpiflow import initial
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, factorisations
from mpiflow.core.noise import site_counter, stream_key, words
from mpiflow.initial import site_words
from mpiflow.initial import smooth as fields


def ensemble(count: int, *shape: int) -> Block:
    """Whole lattices, waiting to be filled."""
    return Block.periodic(np.zeros((count, *shape), np.int8), np.arange(count))


def spins(block: Block) -> np.ndarray:
    return np.asarray(block.inner(block.host()))


# -- the same on any number of ranks -----------------------------------------------------------

FILLS: list[Callable[[Block], None]] = [
    lambda block: initial.uniform_up(block),
    lambda block: initial.independent(block, seed=3, magnetization=0.2),
    lambda block: initial.shuffled(block, seed=3, magnetization=-0.3),
    lambda block: initial.gaussian(block, seed=3, magnetization=0.1, correlation_length=3.0),
]
NAMES = ["up", "independent", "shuffled", "gaussian"]


@pytest.mark.mpi
@pytest.mark.parametrize("fill", FILLS, ids=NAMES)
@pytest.mark.parametrize("shape", [(26, 30), (25, 27)])
def test_same_spins_on_any_grid_of_ranks(
    comm: MPI.Intracomm, fill: Callable[[Block], None], shape: tuple[int, int]
) -> None:
    """Tiles of odd sides and offsets included; halos hold the neighbours' spins."""
    lattice = Lattice(shape)
    alone = Block.tile(Layout(lattice, (1, 1)), MPI.COMM_SELF)
    fill(alone)
    whole = spins(alone)[0]
    member = ensemble(1, *shape)
    fill(member)
    assert np.array_equal(spins(member)[0], whole)
    for grid in factorisations(comm.size, 2):
        layout = Layout(lattice, grid)
        block = Block.tile(layout, comm)
        fill(block)
        (top, bottom), (left, right) = layout.bounds(comm.rank)
        rows, columns = np.arange(top - 1, bottom + 1), np.arange(left - 1, right + 1)
        expected = whole[np.ix_(rows % shape[0], columns % shape[1])]
        assert np.array_equal(block.host()[0], expected), grid


@pytest.mark.mpi
@pytest.mark.parametrize("magnetization", [-1.0, -0.75, 0.0, 0.003, 0.5, 1.0])
def test_shuffled_has_the_exact_magnetisation_on_all_ranks(
    comm: MPI.Intracomm, magnetization: float
) -> None:
    lattice = Lattice((30, 22))
    block = Block.tile(Layout.balanced(lattice, comm.size), comm)
    for seed in range(5):
        initial.shuffled(block, seed=seed, magnetization=magnetization)
        up = block.total(np.array([np.count_nonzero(spins(block) == 1)]))
        assert up[0] == round(lattice.sites * (1 + magnetization) / 2)
        assert np.isin(spins(block), (-1, 1)).all()


@pytest.mark.mpi
@pytest.mark.parametrize("fill", FILLS, ids=NAMES)
def test_same_spins_in_any_bands(
    comm: MPI.Intracomm, fill: Callable[[Block], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "_TALL", 1)
    tile = Block.tile(Layout.balanced(Lattice((50, 30)), comm.size), comm)
    for block in (tile, ensemble(3, 33, 27)):
        fill(block)
        expected = block.host().copy()
        for sites in (1, 9 * block.batch * block.shape[1]):  # bands of 8 and 9 rows
            with monkeypatch.context() as patch:
                patch.setattr("mpiflow.core.block.BAND_SITES", sites)
                assert sum(1 for _ in block.bands()) > 1
                block.array[:] = 0
                fill(block)
            assert np.array_equal(block.host(), expected)


def test_bands_are_merged_to_a_height() -> None:
    bands = [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    for height, ends in [(1, [3, 6, 9, 10]), (4, [6, 10]), (5, [6, 10]), (7, [9, 10]), (99, [10])]:
        merged = list(fields._merged(iter(bands), height))
        assert merged == [slice(*ab) for ab in itertools.pairwise([0, *ends])]
    assert list(fields._merged(iter([]), 4)) == []


@pytest.mark.parametrize("fill", [*FILLS, "npy", "h5"], ids=[*NAMES, "npy", "h5"])
def test_memory_is_bounded(
    fill: Callable[[Block], None] | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In narrow bands, everything that is needed beside the tile is less than half of it."""
    side = 2048
    block = Block.tile(Layout(Lattice((side, side)), (1, 1)), MPI.COMM_SELF)
    if isinstance(fill, str):
        path = write(tmp_path / f"start.{fill}", a_state((side, side)))
        fill = lambda block: initial.from_file(block, path)  # noqa: E731
    monkeypatch.setattr("mpiflow.core.block.BAND_SITES", 2**16)
    fill(block)  # compile
    tracemalloc.start()
    fill(block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2**16 < peak < block.array.nbytes / 2


class Bits:
    """Spins of whole lattices, a bit each: no int8 array to look into, and bands of 3 rows."""

    def __init__(self, block: Block) -> None:
        self.lattice, self.origins, self.members = block.lattice, block.origins, block.members
        self.batch, self.shape = block.batch, block.shape
        self.bits = np.zeros((block.batch, block.shape[0], -(-block.shape[1] // 8)), np.uint8)
        self.filled = 0

    def bands(self) -> Iterator[slice]:
        return (slice(i, min(i + 3, self.shape[0])) for i in range(0, self.shape[0], 3))

    def store(self, rows: slice, spins: np.ndarray) -> None:
        assert spins.dtype == np.int8
        assert spins.shape == (self.batch, rows.stop - rows.start, self.shape[1])
        assert spins.flags.c_contiguous
        self.bits[:, rows] = np.packbits(spins > 0, axis=2)

    def fill_halo(self) -> None:
        self.filled += 1

    def total(self, values: np.ndarray) -> np.ndarray:
        return values

    def agreed(self) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.mark.parametrize("fill", [*FILLS, "file"], ids=[*NAMES, "file"])
def test_a_block_need_not_hold_bytes(
    fill: Callable[[Block | Bits], None] | str, tmp_path: Path
) -> None:
    block = ensemble(2, 25, 27)
    bits = Bits(block)
    if isinstance(fill, str):
        path = write(tmp_path / "start.npy", a_state((25, 27)))
        fill = lambda block: initial.from_file(block, path)  # noqa: E731
    fill(block)
    fill(bits)
    up = np.unpackbits(bits.bits, axis=2, count=27)
    assert np.array_equal(2 * up.astype(np.int8) - 1, spins(block))
    assert bits.filled == 1


def test_members_differ_but_not_with_the_batch() -> None:
    for fill in FILLS[1:]:
        many = ensemble(6, 26, 26)
        fill(many)
        assert len({state.tobytes() for state in spins(many)}) == 6
        some = Block.periodic(np.zeros((2, 26, 26), np.int8), np.array([4, 1]))
        fill(some)
        assert np.array_equal(spins(some), spins(many)[[4, 1]])


@pytest.mark.parametrize("fill", FILLS, ids=NAMES)
def test_a_rank_without_members_is_no_problem(fill: Callable[[Block], None]) -> None:
    block = ensemble(0, 26, 26)
    fill(block)
    assert block.array.shape == (0, 28, 28)


# -- laws -----------------------------------------------------------------------------------


def test_all_up() -> None:
    block = ensemble(2, 4, 6)
    initial.uniform_up(block)
    assert (block.array == 1).all()


@pytest.mark.parametrize("magnetization", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_independent_spins_have_the_mean(magnetization: float) -> None:
    block = ensemble(40, 32, 32)
    initial.independent(block, seed=1, magnetization=magnetization)
    values = spins(block).astype(float)
    if abs(magnetization) == 1.0:
        assert (values == magnetization).all()
        return
    assert abs(deviate(values.reshape(-1), magnetization)) < Z_CEILING
    for axis in (1, 2):
        pairs = (values - magnetization) * (np.roll(values, 1, axis) - magnetization)
        assert abs(deviate(pairs.mean((1, 2)), 0.0)) < Z_CEILING


def test_independent_uses_the_documented_counter() -> None:
    block = ensemble(2, 6, 8)
    initial.independent(block, seed=9, magnetization=0.3)
    sites = [[int(site_counter(y, x)) for x in range(8)] for y in range(6)]
    for member in range(2):
        u = words(9, "initial", member, 0, np.array(sites, np.uint64))[..., 0] * 2.0**-64
        assert np.array_equal(spins(block)[member], np.where(u < 0.65, 1, -1))


@pytest.mark.parametrize("digits", [16, 9, 5, 2])
def test_shuffled_marks_the_smallest_words(digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For any width of the digits, and every count."""
    monkeypatch.setattr(site_words, "_DIGITS", digits)
    block = ensemble(36, 5, 7)
    wanted = np.arange(36)
    initial.shuffled(block, seed=9, magnetization=2 * wanted / 35 - 1)
    sites = np.array([[int(site_counter(y, x)) for x in range(7)] for y in range(5)], np.uint64)
    for count in wanted:
        word = words(9, "initial", count, 0, sites)[..., 0].reshape(-1)
        up = np.flatnonzero(spins(block)[count].reshape(-1) == 1)
        assert sorted(up) == sorted(np.argsort(word)[:count])


def test_all_arrangements_are_equally_likely() -> None:
    """Six arrangements of two up among four sites, 2 x 2."""
    block = ensemble(3000, 2, 2)
    initial.shuffled(block, seed=5, magnetization=0.0)
    up = spins(block).reshape(-1, 4) == 1
    counts = np.bincount(up @ np.array([1, 2, 4, 8]), minlength=16)
    pairs = [n for n in range(16) if n.bit_count() == 2]
    assert counts.sum() == counts[pairs].sum()
    assert chi_square(counts[pairs], np.full(6, 500.0)) > P_FLOOR


@pytest.mark.parametrize("magnetization", [-0.75, 0.0, 0.5])
def test_shuffled_sites_and_pairs(magnetization: float) -> None:
    """Every site is up equally often; pairs have the correlation of drawing without return."""
    count, side = 2000, 6
    block = ensemble(count, side, side)
    initial.shuffled(block, seed=2, magnetization=magnetization)
    up = (spins(block) == 1).reshape(count, -1)
    sites = up.shape[1]
    n_up = round(sites * (1 + magnetization) / 2)
    assert (up.sum(1) == n_up).all()
    share = n_up / sites
    # Counts at the sites have covariance n p (1-p) (1 + 1/(N-1)) (delta - 1/N): a chi-square.
    excess = up.sum(0) - count * share
    scale = count * share * (1 - share) * sites / (sites - 1)
    value = float((excess**2).sum() / scale)
    assert abs(value - (sites - 1)) < Z_CEILING * np.sqrt(2 * (sites - 1))
    # The pairs of neighbours, by row and by column: E s s' = (m^2 N - 1) / (N - 1).
    m = 2 * share - 1
    values = np.where(up, 1.0, -1.0).reshape(count, side, side)
    for axis in (1, 2):
        correlation = (values * np.roll(values, 1, axis)).mean((1, 2))
        assert abs(deviate(correlation, (m * m * sites - 1) / (sites - 1))) < Z_CEILING


def test_each_box_may_have_its_own_magnetisation() -> None:
    block = ensemble(5, 10, 10)
    wanted = np.array([-1.0, -0.5, 0.0, 0.26, 1.0])
    initial.shuffled(block, seed=0, magnetization=wanted)
    assert spins(block).sum((1, 2)).tolist() == [-100, -50, 0, 26, 100]


def test_gaussian_field_has_the_covariance() -> None:
    """exp(-r^2 / 2 xi^2) with unit variance, along rows, columns and diagonals."""
    xi, side, count = 4.0, 40, 400
    block = ensemble(count, side, side)
    # Behind the clip and the coin toss: reach the smooth field through the spins' mean.
    # With a small amplitude E s_i s_j = a^2 cov(r), free of the clip's effect.
    amplitude = 0.2
    initial.gaussian(block, seed=4, correlation_length=xi, amplitude=amplitude)
    values = spins(block).astype(float)
    assert (values.sum((1, 2)) == 0).all()
    # As many up as down: what all sites have in common is taken off.
    common = (amplitude**2 * (2 * np.pi * xi**2 - 1) + 1) / side**2
    for dy, dx in [(0, 1), (1, 0), (2, 0), (0, 4), (3, 3), (-4, 4), (8, 0), (0, 16)]:
        products = (values * np.roll(values, (dy, dx), (1, 2))).mean((1, 2))
        covariance = amplitude**2 * np.exp(-(dy**2 + dx**2) / (2 * xi**2)) - common
        assert abs(deviate(products, covariance)) < Z_CEILING, (dy, dx)


@pytest.mark.parametrize("m", [-1.0, -0.97, 0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("amplitude", [0.0, 0.5, 20.0])
def test_gaussian_states_have_the_magnetization(m: float, amplitude: float) -> None:
    """To the nearest spin, in spite of the clip: 0.8 was 0.69."""
    block = ensemble(3, 26, 26)
    initial.gaussian(block, 3, magnetization=m, correlation_length=2.0, amplitude=amplitude)
    assert (spins(block).sum((1, 2)) == 2 * round(338 * (1 + m)) - 676).all()


def test_the_field_decides_which_spins_are_up() -> None:
    """Spins are those with the smallest 2 u - 1 - a g, by the documented counters."""
    width, member = 2.0 / np.sqrt(2.0), 1
    margin = int(np.ceil(4 * width))
    weights = np.exp(-0.5 * (np.arange(-margin, margin + 1) / width) ** 2)
    field = smooth(weights / np.sqrt((weights**2).sum()), member, 0, 36, 40)
    sites = np.array([[int(site_counter(y, x)) for x in range(40)] for y in range(36)], np.uint64)
    u = words(7, "initial", member, 0, sites)[..., 0] * 2.0**-64
    block = ensemble(2, 36, 40)
    initial.gaussian(block, 7, magnetization=0.4, correlation_length=2.0, amplitude=0.7)
    levels = 2 * u - 1 - 0.7 * field
    up = levels < np.sort(levels.reshape(-1))[round(720 * 1.4)]
    assert np.array_equal(spins(block)[member] == 1, up)


def smooth(weights: np.ndarray, member: int, origin: int, *shape: int) -> np.ndarray:
    """The field behind a box of a 36 x 40 lattice."""
    keys = np.array([stream_key(7, name) for name in ("initial-radius", "initial-angle")])
    field = np.empty((shape[0], shape[1] + len(weights) - 1))
    fields._smooth_box(keys, np.uint64(member), origin, origin, (36, 40), weights, field)
    return field[:, : shape[1]]


def test_white_noise_behind_the_gaussian_field() -> None:
    noise = np.array([smooth(np.ones(1), member, 0, 36, 40) for member in range(300)])
    assert abs(deviate(noise.mean((1, 2)), 0.0)) < Z_CEILING
    assert abs(deviate((noise**2).mean((1, 2)), 1.0)) < Z_CEILING


def test_smoothing_goes_round_the_periodic_edge() -> None:
    """In both axes and corners; more than one strip of columns, too."""
    weights = np.array([0.1, 0.5, -1.0, 0.3, 0.2])
    noise = smooth(np.ones(1), 2, 0, 36, 40)
    for axis in (0, 1):
        noise = sum(w * np.roll(noise, 2 - i, axis) for i, w in enumerate(weights))
    field = smooth(weights, 2, 30, 36, 700)
    expected = np.take(np.take(noise, np.arange(30, 66) % 36, 0), np.arange(30, 730) % 40, 1)
    assert np.allclose(field, expected, rtol=0, atol=1e-12)


def test_gaussian_states_are_patchy() -> None:
    smooth, rough = ensemble(50, 64, 64), ensemble(50, 64, 64)
    initial.gaussian(smooth, seed=1, correlation_length=10.0, amplitude=2.0)
    initial.gaussian(rough, seed=1, correlation_length=1.0, amplitude=2.0)
    bonds = [
        (s * np.roll(s, 1, 2)).mean() for s in (spins(smooth).astype(float), spins(rough) * 1.0)
    ]
    assert bonds[0] > bonds[1] + 0.1


# -- files ----------------------------------------------------------------------------------


def a_state(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(12).choice(np.array([-1, 1], np.int8), shape)


def write(path: Path, state: np.ndarray) -> Path:
    """The state as .npy, or as the last frame of a file with 'spin(time, y, x)'."""
    if path.suffix == ".npy":
        np.save(path, state)
    else:
        with h5py.File(path, "w") as file:
            file["spin"] = np.stack([-state, state])
    return path


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["start.npy", "start.h5"])
@pytest.mark.parametrize("dtype", [np.int8, np.float64])
def test_states_from_a_file(
    comm: MPI.Intracomm,
    mpi_tmp_path: Path,
    name: str,
    dtype: type,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mpiflow.core.block.BAND_SITES", 1)  # two bands where there is one rank
    lattice = Lattice((14, 18))
    state = a_state((14, 18))
    if comm.rank == 0:
        write(mpi_tmp_path / name, state.astype(dtype))
    comm.Barrier()
    for grid in factorisations(comm.size, 2):
        layout = Layout(lattice, grid)
        block = Block.tile(layout, comm)
        initial.from_file(block, mpi_tmp_path / name)
        assert np.array_equal(spins(block)[0], state[layout.slices(comm.rank)])
        assert block.host().all(), "the halo is filled too"


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["start.npy", "start.h5"])
def test_one_bad_value_stops_every_rank(
    comm: MPI.Intracomm, mpi_tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one rank reads the bad value; all must raise, or the others would hang."""
    monkeypatch.setattr("mpiflow.core.block.BAND_SITES", 1)
    state = a_state((14, 18))
    state[13, 17] = 0
    if comm.rank == 0:
        write(mpi_tmp_path / name, state)
    comm.Barrier()
    block = Block.tile(Layout.balanced(Lattice((14, 18)), comm.size), comm)
    with pytest.raises(InputError, match=r"^initial=.*\+1 and -1 only"):
        initial.from_file(block, mpi_tmp_path / name)


@pytest.mark.parametrize("members", [0, 1, 3])
def test_every_member_starts_from_the_file(tmp_path: Path, members: int) -> None:
    state = a_state((6, 8))
    block = ensemble(members, 6, 8)
    initial.from_file(block, write(tmp_path / "start.npy", state))
    assert np.array_equal(spins(block), np.repeat(state[None], members, axis=0))


def test_a_matrix_of_objects_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "objects.npy"
    np.save(path, np.full((6, 8), None), allow_pickle=True)
    with pytest.raises(InputError, match=r"^initial=.*readable"):
        initial.from_file(ensemble(1, 6, 8), path)


def spoil(path: Path, how: str) -> None:
    """Make a file that cannot be a state of a 6 x 8 lattice."""
    good = a_state((6, 8))
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not a file of spins")
    elif how == "short":
        write(path, good)
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "shape":
        write(path, a_state((8, 6)))
    elif how == "dimensions":
        write(path, good[None, None] if path.suffix == ".h5" else good[None])
    elif how == "no spin":
        with h5py.File(path, "w") as file:
            file["magnetization"] = np.zeros(3)
    elif how == "no frame":
        with h5py.File(path, "w") as file:
            file["spin"] = np.zeros((0, 6, 8), np.int8)
    elif how == "group":
        with h5py.File(path, "w") as file:
            file.create_group("spin")
    elif how == "scalar":
        with h5py.File(path, "w") as file:
            file["spin"] = 1


@pytest.mark.parametrize(
    ("name", "how"),
    [("start.npy", how) for how in ("missing", "empty", "text", "short", "shape", "dimensions")]
    + [
        ("start.h5", how)
        for how in (
            "missing", "empty", "text", "short", "shape", "dimensions", "no spin", "no frame",
            "group", "scalar",
        )
    ],
)  # fmt: skip
def test_unusable_files(tmp_path: Path, name: str, how: str) -> None:
    path = tmp_path / name
    spoil(path, how)
    with pytest.raises(InputError, match=r"^initial=") as caught:
        initial.from_file(ensemble(1, 6, 8), path)
    assert name in str(caught.value)


# -- impossible values ------------------------------------------------------------------------


@pytest.mark.parametrize("magnetization", [1.01, -1.5, float("nan")])
@pytest.mark.parametrize("fill", [initial.independent, initial.shuffled, initial.gaussian])
def test_impossible_magnetisations(fill: Callable[..., None], magnetization: float) -> None:
    with pytest.raises(InputError, match=r"^initial_magnetization=.*-1 to 1"):
        fill(ensemble(1, 64, 64), seed=0, magnetization=magnetization)


@pytest.mark.parametrize("length", [0.0, -2.0, 30.0, float("nan"), float("inf")])
def test_impossible_correlation_lengths(length: float) -> None:
    with pytest.raises(InputError, match=r"^correlation_length=.*above 0 and at most"):
        initial.gaussian(ensemble(1, 64, 64), seed=0, correlation_length=length)


@pytest.mark.parametrize("amplitude", [-0.1, float("nan"), float("inf")])
def test_impossible_amplitudes(amplitude: float) -> None:
    with pytest.raises(InputError, match=r"^amplitude="):
        initial.gaussian(ensemble(1, 64, 64), seed=0, amplitude=amplitude)


def test_the_longest_correlation_length_that_is_named_works() -> None:
    block = ensemble(1, 64, 64)
    with pytest.raises(InputError) as caught:
        initial.gaussian(block, seed=0, correlation_length=50.0)
    longest = float(str(caught.value).split("at most ")[1].split()[0])
    initial.gaussian(block, seed=0, correlation_length=longest)
    with pytest.raises(InputError):
        initial.gaussian(block, seed=0, correlation_length=1.1 * longest)
