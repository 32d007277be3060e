"""Spins with a given local mean, smooth random means, and files of means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exact import Z_CEILING
from mpi4py import MPI

from mpiflow import initial
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, factorisations


def ensemble(count: int, *shape: int) -> Block:
    return Block.periodic(np.zeros((count, *shape), np.int8), np.arange(count))


def tile(shape: tuple[int, int], grid: tuple[int, int], comm: MPI.Intracomm) -> Block:
    return Block.tile(Layout(Lattice(shape), grid), comm)


def some_means(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, shape)


# -- spins with given means ---------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("grid", [(24, 30), (6, 5), (2, 30), (1, 1)])
def test_same_spins_on_any_grid_of_ranks(
    comm: MPI.Intracomm, grid: tuple[int, int], mpi_tmp_path: Path
) -> None:
    """From an array and from a file; tiles may cut through the blocks of the means."""
    shape, means = (24, 30), some_means(*grid)
    if comm.rank == 0:
        np.save(mpi_tmp_path / "means.npy", means)
    comm.Barrier()
    alone = tile(shape, (1, 1), MPI.COMM_SELF)
    initial.profile(alone, 5, means)
    whole = alone.spins()[0]
    for ranks in factorisations(comm.size, 2):
        block = tile(shape, ranks, comm)
        layout = Layout(Lattice(shape), ranks)
        (top, bottom), (left, right) = layout.bounds(comm.rank)
        rows, columns = np.arange(top - 1, bottom + 1) % 24, np.arange(left - 1, right + 1) % 30
        for fill in (
            lambda block: initial.profile(block, 5, means),
            lambda block: initial.from_file(block, mpi_tmp_path / "means.npy", seed=5),
        ):
            block.array[:] = 0
            fill(block)
            assert np.array_equal(block.host()[0], whole[np.ix_(rows, columns)])


@pytest.mark.parametrize("m", [-1.0, -0.75, 0.003, 1 - 2**-53, 1.0])
def test_equal_means_are_independent_spins(m: float) -> None:
    one, other = ensemble(2, 64, 48), ensemble(2, 64, 48)
    initial.profile(one, 4, np.full((8, 4), m))
    initial.independent(other, 4, m)
    assert np.array_equal(one.host(), other.host())


def test_blocks_have_their_means() -> None:
    """Block means against the binomial law: z of each, and their chi^2 about 1 per block."""
    means, count = some_means(6, 8), 400
    means[0, 0], means[0, 1] = 1.0, -1.0
    block = ensemble(count, 24, 48)
    initial.profile(block, 11, means)
    sums = block.spins().reshape(count, 6, 4, 8, 6).sum((2, 4), dtype=np.int64)
    assert (sums[:, 0, 0] == 24).all()
    assert (sums[:, 0, 1] == -24).all()
    free = np.abs(means) < 1
    variance = 24 * (1 - means[free] ** 2)
    z = (sums.sum(0)[free] - 24 * count * means[free]) / np.sqrt(count * variance)
    assert np.abs(z).max() < 4.5  # the largest of 46
    assert abs((z**2).sum() - z.size) < Z_CEILING * np.sqrt(2 * z.size)
    # Spins of a block are independent, and so are members: binomial variances.
    spread = sums[:, free].var(0, ddof=1) / variance
    assert abs(spread.mean() - 1) < Z_CEILING * np.sqrt(2 / (count * z.size))


def test_patches_over_the_edge_take_global_places() -> None:
    """Boxes anywhere on the lattice, round its edge too, agree with the whole."""
    shape, means = (24, 30), some_means(6, 5)
    whole = ensemble(1, *shape)
    initial.profile(whole, 5, means)
    origins = np.array([[20, 27], [3, 7], [0, 0]])
    states = np.zeros((3, *shape), np.int8)
    patch = Block.cut(states, origins, (9, 8), np.zeros(3, np.uint64))
    initial.profile(patch, 5, means)
    for spins, (y, x) in zip(patch.spins(), origins, strict=True):
        expected = np.roll(whole.spins()[0], (-y, -x), (0, 1))[:9, :8]
        assert np.array_equal(spins, expected)


def test_same_spins_in_any_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    means, block, narrow = some_means(9, 4), ensemble(2, 45, 32), ensemble(2, 45, 32)
    initial.profile(block, 5, means)
    monkeypatch.setattr("mpiflow.core.block.BAND_SITES", 1)
    assert sum(1 for _ in narrow.bands()) > 1
    initial.profile(narrow, 5, means)
    assert np.array_equal(block.host(), narrow.host())


@pytest.mark.mpi
def test_bad_means_are_refused(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    """On all ranks alike, also when only one has the place that is wrong."""
    lattice = Lattice((24, 32))
    block = Block.tile(Layout.balanced(lattice, comm.size), comm)
    wrong = some_means(24, 32)
    wrong[23, 31] = 1.0001
    lost = some_means(6, 4)
    lost[0, 0] = np.nan
    for number, means in enumerate([wrong, lost, some_means(5, 4), some_means(32, 24), np.ones(8)]):
        with pytest.raises(InputError, match="means"):
            initial.profile(block, 1, means)
        if comm.rank == 0:
            np.save(mpi_tmp_path / f"{number}.npy", means)
        comm.Barrier()
        with pytest.raises(InputError, match="initial"):
            initial.from_file(block, mpi_tmp_path / f"{number}.npy", seed=1)


# -- files --------------------------------------------------------------------------------------


def test_files_of_spins_stay_spins(tmp_path: Path) -> None:
    """Whole numbers as before; +1. and -1. as means are the same spins, whatever the seed."""
    state = np.random.default_rng(0).choice([-1, 1], (12, 10))
    for dtype in (np.int8, np.int64, np.float64, np.float32):
        np.save(tmp_path / "start.npy", state.astype(dtype))
        for seed in (0, 7):
            block = ensemble(2, 12, 10)
            initial.from_file(block, tmp_path / "start.npy", seed=seed)
            assert (block.spins() == state).all()
    np.save(tmp_path / "coarse.npy", np.ones((6, 5), int))
    with pytest.raises(InputError, match="spins of shape"):
        initial.from_file(ensemble(1, 12, 10), tmp_path / "coarse.npy")


def test_a_file_of_means_is_their_profile(tmp_path: Path) -> None:
    means = some_means(6, 5).astype(np.float32)
    np.save(tmp_path / "means.npy", means)
    one, other, third = (ensemble(2, 12, 10) for _ in range(3))
    initial.from_file(one, tmp_path / "means.npy", seed=3)
    initial.profile(other, 3, means)
    initial.from_file(third, tmp_path / "means.npy", seed=4)
    assert np.array_equal(one.host(), other.host())
    assert not np.array_equal(one.host(), third.host())


# -- smooth random means --------------------------------------------------------------------------


def smooth(shape: tuple[int, int], seed: int, xi: float) -> np.ndarray:
    """g itself: an amplitude too small to be clipped."""
    return initial.smooth_profile(shape, seed, correlation_length=xi, amplitude=0.1) / 0.1


@pytest.mark.parametrize(("shape", "xi"), [((30, 30), 4.0), ((20, 45), 1.0), ((16, 16), 3.0)])
def test_finer_grids_show_the_same_field(shape: tuple[int, int], xi: float) -> None:
    """The centre of a cell is that of the middle one of 3 x 3, to rounding."""
    coarse = smooth(shape, 3, xi)
    fine = smooth((3 * shape[0], 3 * shape[1]), 3, 3 * xi)
    assert np.abs(fine[1::3, 1::3] - coarse).max() < 1e-10
    assert np.std(coarse) > 0.2


def test_twice_as_fine_is_between() -> None:
    """Means of 2 x 2 cells, up to the curvature of a field that varies over 8 cells."""
    coarse, fine = smooth((64, 64), 5, 8.0), smooth((128, 128), 5, 16.0)
    means = fine.reshape(64, 2, 64, 2).mean((1, 3))
    difference = means - coarse
    # A quarter of a cell either way: h^2 / 32 times the Laplacian, whose spread is sqrt(8) / xi^2.
    assert np.std(difference) < 2 * np.sqrt(8) / 64 / 32
    assert np.std(difference) > 0


def test_variance_and_covariance() -> None:
    """exp(-r^2 / 2 xi^2) along both axes and across, over seeds, within standard errors."""
    (ny, nx), xi, seeds = (32, 40), 4.0, 600
    fields = np.array([smooth((ny, nx), seed, xi) for seed in range(seeds)])
    assert abs(fields.mean((1, 2)).mean()) < Z_CEILING * fields.mean((1, 2)).std() / seeds**0.5

    def images(r: int, side: int) -> float:
        return float(np.exp(-0.5 * ((r + side * np.arange(-4, 5)) / xi) ** 2).sum())

    norm = images(0, ny) * images(0, nx)
    for dy, dx in [(0, 0), (3, 0), (0, 3), (2, 5), (8, 0), (0, 12), (16, 20)]:
        products = (fields * np.roll(fields, (dy, dx), (1, 2))).mean((1, 2))
        expected = images(dy, ny) * images(dx, nx) / norm
        error = products.std(ddof=1) / seeds**0.5
        assert abs(products.mean() - expected) < Z_CEILING * error, (dy, dx)
        assert error < 0.03
    # Gaussian: the fourth moment at a place is 3.
    fourth = fields[:, ::16, ::20] ** 4
    assert abs(fourth.mean() - 3) < Z_CEILING * np.sqrt(96 / (seeds * 4))


def test_mean_amplitude_and_clipping() -> None:
    shape = (24, 24)
    g = smooth(shape, 2, 3.0)
    given = initial.smooth_profile(
        shape, 2, correlation_length=3.0, magnetization=0.3, amplitude=0.9
    )
    assert np.allclose(given, np.clip(initial.unclipped(0.3, 0.9) + 0.9 * g, -1, 1), atol=1e-12)
    assert given.max() == 1.0
    flat = initial.smooth_profile(shape, 2, correlation_length=3, magnetization=-0.2, amplitude=0)
    assert (flat == -0.2).all()
    assert not np.allclose(g, smooth(shape, 3, 3.0))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("correlation_length", {"correlation_length": 0.9}),
        ("correlation_length", {"correlation_length": 5.0}),
        ("correlation_length", {"correlation_length": float("nan")}),
        ("amplitude", {"amplitude": -0.1}),
        ("initial_magnetization", {"magnetization": 1.5}),
        ("seed", {"seed": -1}),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, float]) -> None:
    given = {"shape": (24, 32), "seed": 1, "correlation_length": 4.0, **options}
    with pytest.raises(InputError, match=name):
        initial.smooth_profile(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("m", "a"), [(0.8, 0.5), (-0.95, 0.3), (0.1, 3.0), (0.999, 1.0)])
def test_clipped_profiles_have_the_mean_on_average(m: float, a: float) -> None:
    """By the integral over the normal law; 0.8 was 0.75. And at no other value is it so."""
    points = np.linspace(-9, 9, 200_001)
    weight = np.exp(-0.5 * points**2) / np.sqrt(2 * np.pi) * (points[1] - points[0])
    mu = initial.unclipped(m, a)
    assert (np.clip(mu + a * points, -1, 1) * weight).sum() == pytest.approx(m, abs=1e-6)
    assert initial.unclipped(-m, a) == pytest.approx(-mu)
    assert initial.unclipped(0.0, a) == 0.0
    assert initial.unclipped(m, 0.0) == m
    field = initial.smooth_profile(
        (40, 40), 3, correlation_length=2.0, magnetization=m, amplitude=a
    )
    g = smooth((40, 40), 3, 2.0)
    np.testing.assert_allclose(field, np.clip(mu + a * g, -1, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("m", [-1.0, 1.0])
def test_a_profile_of_spins_alike(m: float) -> None:
    field = initial.smooth_profile((40, 40), 3, correlation_length=2.0, magnetization=m)
    np.testing.assert_allclose(field, m, rtol=0, atol=1e-6)
