"""Levels of upsampling, what is measured on them, and differences at fixed magnetisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.core.block import gather_records
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.packed import BAND, WORD_SITES, PackedBlock
from mpiflow.experiments import upsampling
from mpiflow.experiments.upsampling import COLUMNS, RADII, WAVELENGTHS, WIDTH, Relaxation
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.cluster import flip_clusters
from mpiflow.systems.ising import CRITICAL_TEMPERATURE, Ising, onsager_energy

WARM = Ising(3.0)  # correlation length 1.7, far below the sides here
LATTICE = Relaxation("lattice", 1.0)


def random_states(count: int, side: int, seed: int, up: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((count, side, side)) < up, 1, -1).astype(np.int8)


def equilibrium(system: Ising, count: int, side: int, seed: int, samples: int = 1) -> np.ndarray:
    """(samples, count, side, side) by clusters, samples far apart."""
    states = np.ones((count, side, side), np.int8)
    # In a warm system clusters are small: this many flip each site several times.
    each = side**2 // 4
    out = []
    for number in range(samples + 1):
        flip_clusters(
            states, np.arange(count), system, seed=seed, clusters=each, first=number * each
        )
        out.append(states.copy())
    return np.stack(out[1:])


# -- what is measured --------------------------------------------------------------------


def test_measurements_are_those_of_their_definitions() -> None:
    states = random_states(3, 32, 1)
    seen = upsampling.measure(states)
    assert seen.shape == (3, WIDTH)
    s = states.astype(float)
    m = s.mean(axis=(1, 2))
    np.testing.assert_allclose(seen[:, 0], m)
    right, down = np.roll(s, -1, 2), np.roll(s, -1, 1)
    unequal = 0.5 * ((s != right).mean(axis=(1, 2)) + (s != down).mean(axis=(1, 2)))
    np.testing.assert_allclose(seen[:, 1], unequal)
    k = right + down + np.roll(s, 1, 2) + np.roll(s, 1, 1)
    label = ((k + 4) / 2 + 5 * (s + 1) / 2).astype(int)
    patches = [
        np.bincount(label[0, y + 1 : y + 15, x + 1 : x + 15].ravel(), minlength=10) / 196
        for y in (0, 16)
        for x in (0, 16)
    ]
    np.testing.assert_allclose(seen[0, COLUMNS["classes"]], np.mean(patches, axis=0), atol=1e-6)
    spread = math.sqrt(np.var(patches, axis=0, ddof=1).sum())
    np.testing.assert_allclose(seen[0, COLUMNS["patch spread"]], spread, rtol=1e-5)
    correlation = seen[:, COLUMNS["correlation"]]
    for i, r in enumerate(RADII):
        if r < 16:
            both = [(s * np.roll(s, r, axis)).mean(axis=(1, 2)) - m**2 for axis in (1, 2)]
            np.testing.assert_allclose(correlation[:, i], np.mean(both, axis=0), atol=1e-12)
        else:
            assert np.isnan(correlation[:, i]).all()


def test_octaves_of_the_structure_factor_have_their_wavelengths() -> None:
    """Stripes of b sites have all their power at 2 b."""
    for block in (4, 8):
        x = np.indices((64, 64))[1] // block
        stripes = np.where(x % 2 == 0, 1, -1).astype(np.int8)[None]
        power = upsampling.measure(stripes)[0, COLUMNS["structure"]]
        assert WAVELENGTHS[int(np.nanargmax(power))] == 2 * block
        assert np.isnan(power[WAVELENGTHS.index(128) :]).all()
    white = upsampling.measure(random_states(200, 64, 2, up=0.5))[:, COLUMNS["structure"]]
    mean, error = white.mean(axis=0)[:5], white.std(axis=0)[:5] / math.sqrt(200)
    assert (abs(mean - 1.0) < 4 * error).all()


def test_oriented_states_point_up() -> None:
    states = random_states(4, 32, 3, up=0.4)
    seen = upsampling.measure(states, oriented=True)
    np.testing.assert_array_equal(seen, upsampling.measure(-states))
    assert (seen[:, 0] > 0).all()
    np.testing.assert_array_equal(seen, upsampling.measure(states * np.int8(-1), oriented=True))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    states = random_states(5, 32, 4)
    whole = upsampling.measure(states)
    monkeypatch.setattr(upsampling, "CHUNK_SITES", 2 * 32**2)
    np.testing.assert_allclose(upsampling.measure(states), whole, rtol=1e-12)


# -- levels ------------------------------------------------------------------------------


def test_doubling_alone_halves_the_walls_and_keeps_m() -> None:
    states = random_states(6, 32, 5)
    start = upsampling.measure(states)
    counts = {64: 6, 128: 4}
    none = Relaxation("none")
    for level, (side, found) in enumerate(
        upsampling.hierarchy(states, np.arange(6), WARM, none, counts, seed=1), start=1
    ):
        assert found.shape == (counts[side], side, side)
        seen = upsampling.measure(found)
        np.testing.assert_allclose(seen[:, 0], start[: len(seen), 0])
        np.testing.assert_allclose(seen[:, 1], start[: len(seen), 1] / 2**level)


@pytest.mark.parametrize("side", [32, 128])  # sliced and packed kernels
def test_relaxed_lattices_are_those_of_the_solver(side: int) -> None:
    states, members = random_states(3, side, 6), np.array([4, 0, 9])
    relaxed = states.copy()
    upsampling.relax(relaxed, members, WARM, LATTICE, seed=2, level=3, dt=0.5)
    assert not np.array_equal(relaxed, states)
    for i, member in enumerate(members):  # each as if it were alone
        alone = states[i : i + 1].copy()
        upsampling.relax(alone, np.array([member]), WARM, LATTICE, seed=2, level=3, dt=0.5)
        np.testing.assert_array_equal(alone[0], relaxed[i])
    again = states.copy()
    upsampling.relax(again, members, WARM, LATTICE, seed=2, level=4, dt=0.5)
    assert not np.array_equal(again, relaxed)


def test_published_windows_are_those_of_local_relax() -> None:
    states, members = random_states(2, 32, 7), np.arange(2)
    for kind, halo in (("closed flips", "wrap"), ("frozen flips", "frozen")):
        ours, theirs = states.copy(), states.copy()
        upsampling.relax(ours, members, WARM, Relaxation(kind), seed=3, level=2)  # type: ignore[arg-type]
        scaleup.local_relax(
            theirs,
            members,
            WARM,
            seed=3,
            window=16,
            stride=8,
            halo=halo,  # type: ignore[arg-type]
            duration=None,
            flips=256,
            level=2,
        )
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("how", [LATTICE, Relaxation("windows", 0.5), Relaxation("sweeps", 2.0)])
def test_equilibrium_stays(how: Relaxation) -> None:
    """Relaxed equilibrium states have no difference from others; doubled ones have."""
    truth = np.stack([upsampling.measure(x) for x in equilibrium(WARM, 40, 32, 8, samples=8)])
    states = equilibrium(WARM, 160, 32, 9)[0]
    upsampling.relax(states, np.arange(160), WARM, how, seed=4, level=1)
    d = upsampling.difference(upsampling.measure(states), truth, degree=2)
    known = np.isfinite(d.mean)
    known[0] = False  # the magnetisation at fixed magnetisation
    z = d.mean[known] / d.error[known]
    assert abs(z).max() < 4
    small = equilibrium(WARM, 160, 16, 10)[0]
    doubled = upsampling.measure(scaleup.upsample(small))
    d = upsampling.difference(doubled, truth, degree=2)
    assert d.mean[1] / d.error[1] < -50


def test_long_relaxation_forgets_the_doubling() -> None:
    """Above the critical temperature, in both kinds of windows of true surroundings."""
    truth = np.stack([upsampling.measure(x) for x in equilibrium(WARM, 40, 32, 11, samples=8)])
    small = equilibrium(WARM, 160, 16, 12)[0]
    off = []
    for t in (0.5, 4.0, 32.0):
        (_, found), *_ = upsampling.hierarchy(
            small, np.arange(160), WARM, Relaxation("lattice", t), {32: 160}, seed=5
        )
        d = upsampling.difference(upsampling.measure(found), truth, degree=2)
        off.append(d.mean[1] / d.error[1])
    assert off[0] < 2 * off[1] < 0
    assert abs(off[2]) < 4


def test_clusters_have_onsagers_energy() -> None:
    """The truth of the critical case; at T = 2.5 a side of 64 is as good as infinite."""
    system = Ising(2.5)
    states = equilibrium(system, 100, 64, 13)[0]
    energy = -2.0 * (1.0 - 2.0 * upsampling.measure(states)[:, 1])
    error = energy.std(ddof=1) / 10
    assert abs(energy.mean() - onsager_energy(2.5)) < 4 * error
    assert CRITICAL_TEMPERATURE < 2.27 < 2.5


# -- differences at fixed magnetisation ----------------------------------------------------


def planted(
    rng: np.random.Generator, groups: int, count: int, shift: float
) -> tuple[np.ndarray, np.ndarray]:
    """States and truth with a mean that is a cubic in M; states lie at other M."""

    def rows(m: np.ndarray, by: float) -> np.ndarray:
        y = 0.3 - 0.2 * m**2 + 0.1 * m**3 + by + 0.05 * rng.normal(size=m.shape)
        return np.stack([m, y], axis=-1)

    truth = rows(rng.uniform(-0.5, 0.9, (groups, count)), 0.0)
    return rows(rng.uniform(0.2, 1.2, 200), shift), truth


def test_a_planted_difference_is_found() -> None:
    rng = np.random.default_rng(14)
    z = []
    for _ in range(200):
        states, truth = planted(rng, 10, 30, 0.02)
        d = upsampling.difference(states, truth, degree=3)
        z.append((d.mean[1] - 0.02) / d.error[1])
        assert d.used < 200  # none above the largest M of the truth
        assert d.spread[1] == pytest.approx(0.05, rel=0.2)
    assert abs(np.mean(z)) < 4 / math.sqrt(200)
    assert np.std(z) == pytest.approx(1.0, abs=0.25)


def test_groups_that_differ_enter_the_error() -> None:
    rng = np.random.default_rng(15)
    states, truth = planted(rng, 10, 300, 0.0)
    alike = upsampling.difference(states, truth, degree=3).error[1]
    truth[..., 1] += 0.1 * rng.normal(size=(10, 1))
    apart = upsampling.difference(states, truth, degree=3).error[1]
    assert apart > 3 * alike
    assert apart == pytest.approx(0.1 / math.sqrt(10), rel=0.6)


def test_without_states_to_compare_there_is_no_difference() -> None:
    states, truth = planted(np.random.default_rng(16), 4, 50, 0.0)
    d = upsampling.difference(states, truth, degree=2, window=(-0.5, 0.1))
    assert d.used == 0
    assert np.isnan(d.mean).all()


# -- one lattice over ranks, and what is refused ---------------------------------------------


@pytest.mark.mpi
def test_a_lattice_cut_over_ranks_has_the_bits_of_a_whole_one(comm: MPI.Intracomm) -> None:
    ranks = 2 ** int(math.log2(comm.size))
    part = MPI.Intracomm(comm.Split(0 if comm.rank < ranks else MPI.UNDEFINED))
    if not part:
        return
    start, system = random_states(1, 256, 17), Ising(2.5, 0.1)
    layout = Layout(Lattice((256, 256)), (ranks, 1), (BAND, WORD_SITES))
    block = PackedBlock.tile(layout, part)
    block.store(slice(0, block.shape[0]), start[:, layout.slices(part.rank)[0]])
    block.fill_halo()
    large = upsampling.double_tile(block)
    upsampling.relax_block(large, system, 1.0, seed=6, level=32)
    rows = gather_records(large.spins()[0], part)
    ((_, whole),) = upsampling.hierarchy(
        start, np.arange(1), system, Relaxation("lattice", 1.0), {512: 1}, seed=6
    )
    if part.rank == 0:
        np.testing.assert_array_equal(rows, whole[0])
    part.Free()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="duration"):
        Relaxation("lattice")
    with pytest.raises(InputError, match="duration"):
        Relaxation("none", 1.0)
    states = random_states(2, 32, 18)
    with pytest.raises(InputError, match="duration"):
        upsampling.relax(states, np.arange(2), WARM, Relaxation("lattice", 0.3), seed=0, level=1)
    with pytest.raises(InputError, match="counts"):
        next(upsampling.hierarchy(states, np.arange(2), WARM, LATTICE, {128: 2}, seed=0))
    with pytest.raises(InputError, match="truth"):
        upsampling.difference(np.zeros((4, 2)), np.zeros((2, 5, 2)), degree=1)
    with pytest.raises(InputError, match="block"):
        upsampling.double_tile(PackedBlock.periodic(Lattice((128, 128)), np.arange(1)))


def test_costs_are_trials_of_a_site() -> None:
    assert Relaxation("none").updates(0.25) == 0
    assert Relaxation("lattice", 8.0).updates(0.25) == 32
    assert Relaxation("sweeps", 8.0).updates(0.25) == 8
    assert Relaxation("windows", 2.0).updates(0.25) == 32  # a site lies in four windows
    assert Relaxation("closed flips").updates(0.25) == 4
