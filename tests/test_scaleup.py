"""Upsampling, local relaxation and partial evolution: exactness and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mpiflow import observables, scaleup
from mpiflow.block import Block
from mpiflow.errors import InputError
from mpiflow.solvers.sublattice import Sublattice
from mpiflow.systems.ising import Ising

SYSTEM = Ising(temperature=2.5, field=0.1)


def lattices(count: int, side: int, seed: int = 0, mean: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((count, side, side)) < 0.5 * (1 + mean), 1, -1).astype(np.int8)


def whole_sums(states: np.ndarray) -> np.ndarray:
    return observables.spin_sums(Block.periodic(states, np.arange(len(states))))


# -- upsample --------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_upsample_keeps_magnetization_and_divides_domain_walls(factor: int) -> None:
    states = lattices(5, 8)
    large = scaleup.upsample(states, factor)
    assert large.shape == (5, 8 * factor, 8 * factor)
    assert np.array_equal(large[:, factor // 2 :: factor, factor // 2 :: factor], states)
    small, big = whole_sums(states), whole_sums(large)
    assert np.array_equal(big[:, 0], factor**2 * small[:, 0])
    walls = observables.domain_wall_density(small[:, 1], 64)
    assert observables.domain_wall_density(big[:, 1], 64 * factor**2) == pytest.approx(
        walls / factor
    )


def test_upsample_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="factor=0"):
        scaleup.upsample(lattices(1, 4), 0)


# -- local_relax -----------------------------------------------------------------------


def gibbs_samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact samples of a 4x4 torus, and the law of its (energy, magnetisation) classes."""
    bits = (np.arange(2**16)[:, None] >> np.arange(16)) & 1
    states = (2 * bits - 1).astype(np.int8).reshape(-1, 4, 4)
    sums = whole_sums(states)
    weight = np.exp((sums[:, 1] + SYSTEM.field * sums[:, 0]) / SYSTEM.temperature)
    weight /= weight.sum()
    chosen = np.random.default_rng(seed).choice(2**16, size=count, p=weight)
    label = sums[:, 1] * 100 + sums[:, 0]
    kinds, index = np.unique(label, return_inverse=True)
    return states[chosen], kinds, np.bincount(index, weight)


def gibbs_p_value(states: np.ndarray, kinds: np.ndarray, law: np.ndarray) -> float:
    sums = whole_sums(states)
    index = np.searchsorted(kinds, sums[:, 1] * 100 + sums[:, 0])
    counts = np.bincount(index, minlength=len(kinds))
    expected = law * len(states)
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    return float(stats.chisquare(observed, np.append(expected[~rare], expected[rare].sum())).pvalue)


@pytest.mark.parametrize("how", [{"duration": 0.5}, {"duration": None, "flips": 3}])
def test_frozen_windows_leave_the_gibbs_measure_invariant(how: dict[str, float]) -> None:
    states, kinds, law = gibbs_samples(40_000, 1)
    scaleup.local_relax(states, np.arange(len(states)), SYSTEM, seed=3, window=2, stride=1, **how)
    p = gibbs_p_value(states, kinds, law)
    if "flips" in how:
        # Events counted in flips sample the jump chain, whose law is another one.
        assert p < 1e-4
    else:
        assert p > 1e-4


def test_windows_closed_on_themselves_do_not() -> None:
    """The published variant: the test above must be able to see the difference."""
    states, kinds, law = gibbs_samples(40_000, 1)
    scaleup.local_relax(
        states, np.arange(len(states)), SYSTEM, seed=3, window=2, stride=1, halo="wrap",
        duration=0.5,
    )  # fmt: skip
    assert gibbs_p_value(states, kinds, law) < 1e-6


def test_local_relax_does_not_depend_on_how_members_are_dealt() -> None:
    whole, members = lattices(24, 16), np.arange(24)
    parts = [whole[:5].copy(), whole[5:].copy()]
    scaleup.local_relax(whole, members, SYSTEM, seed=1, window=8, duration=0.5)
    for part, keys in zip(parts, (members[:5], members[5:]), strict=True):
        scaleup.local_relax(part, keys, SYSTEM, seed=1, window=8, duration=0.5)
    assert np.array_equal(whole, np.concatenate(parts))


def test_levels_and_windows_draw_fresh_noise() -> None:
    first, second = lattices(20, 16), lattices(20, 16)
    for level, states in enumerate((first, second)):
        scaleup.local_relax(states, np.arange(20), SYSTEM, seed=1, window=8, level=level)
    assert not np.array_equal(first, second)


def test_window_as_large_as_the_lattice_is_periodic() -> None:
    states = lattices(20, 8)
    block = Block.periodic(states.copy(), np.arange(20))
    Sublattice(SYSTEM, 0.25).advance(block, 4, seed=1, stream="relax")
    scaleup.local_relax(states, np.arange(20), SYSTEM, seed=1, window=8, duration=1.0)
    assert np.array_equal(states, block.inner())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"window": 6, "stride": 5}, "window"),
        ({"window": 4, "stride": 8}, "window"),
        ({"window": 32}, "window"),
        ({"duration": 0.3}, "duration"),
        ({"duration": None}, "duration"),
        ({"duration": 1.0, "flips": 3}, "duration"),
        ({"duration": None, "flips": 0}, "flips"),
    ],
)
def test_local_relax_refuses(options: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=name):
        scaleup.local_relax(lattices(1, 16), np.arange(1), SYSTEM, seed=0, **options)


# -- partial_evolution -----------------------------------------------------------------


def test_wide_margin_equals_the_full_run() -> None:
    """Five passes reach five sites: a patch with that margin cannot tell the difference."""
    states, members = lattices(32, 32, seed=5), np.arange(32)
    patches = scaleup.partial_evolution(
        states, members, SYSTEM, 8, seed=9, buffer=6, duration=0.5, dt=0.25
    )
    block = Block.periodic(states, members)
    Sublattice(SYSTEM, 0.25).advance(block, 2, seed=9, stream="partial")
    full = block.inner()
    for b, index in enumerate(patches.index):
        y, x = 8 * (index // 4), 8 * (index % 4)
        assert np.array_equal(patches.after[b, 1:-1, 1:-1], full[b, y : y + 8, x : x + 8])


def test_narrow_margin_does_not() -> None:
    states, members = lattices(64, 32, seed=5), np.arange(64)
    run = [
        scaleup.partial_evolution(states, members, SYSTEM, 8, seed=9, buffer=b, duration=0.5)
        for b in (0, 6)
    ]
    assert not np.array_equal(run[0].after, run[1].after)


@pytest.mark.parametrize("buffer", [0, 1, 3])
@pytest.mark.parametrize("how", [{"duration": 0.5}, {"duration": None, "flips": 20}])
def test_changes_are_the_exact_changes_of_the_whole_lattice(
    buffer: int, how: dict[str, float]
) -> None:
    states, members = lattices(40, 16), np.arange(40)
    patches = scaleup.partial_evolution(states, members, SYSTEM, 8, seed=2, buffer=buffer, **how)
    after = states.copy()
    for b, index in enumerate(patches.index):
        y, x = 8 * (index // 2), 8 * (index % 2)
        assert np.array_equal(patches.before[b, 1:-1, 1:-1], states[b, y : y + 8, x : x + 8])
        after[b, y : y + 8, x : x + 8] = patches.after[b, 1:-1, 1:-1]
    assert np.array_equal(patches.changes(), whole_sums(after) - whole_sums(states))
    assert np.any(patches.changes())


def test_patch_as_large_as_the_lattice_is_the_full_evolution() -> None:
    states, members = lattices(20, 8), np.arange(20)
    patches = scaleup.partial_evolution(states, members, SYSTEM, 8, seed=4, duration=0.5)
    block = Block.periodic(states, members)
    Sublattice(SYSTEM, 0.25).advance(block, 2, seed=4, stream="partial")
    assert np.array_equal(patches.after[:, 1:-1, 1:-1], block.inner())
    assert np.array_equal(patches.changes(), observables.spin_sums(block) - whole_sums(states))


def test_published_variant_closes_the_patch_on_itself() -> None:
    states, members = lattices(20, 16), np.arange(20)
    patches = scaleup.partial_evolution(
        states, members, SYSTEM, 8, seed=4, halo="wrap", duration=0.5
    )
    assert patches.closed
    assert np.array_equal(patches.after[:, 0, 1:-1], patches.after[:, -2, 1:-1])
    assert np.array_equal(patches.before[:, 1:-1, -1], patches.before[:, 1:-1, 1])


def test_mean_short_time_change_is_the_generators_drift() -> None:
    """K times the mean change of a patch over dt tends to dM/dt and drho/dt of the lattice."""
    state = lattices(1, 16, seed=8)
    count, dt = 60_000, 0.0625
    spins, k = np.repeat([-1, 1], 5), np.tile(np.arange(-4, 5, 2), 2)
    framed = np.pad(state, ((0, 0), (1, 1), (1, 1)), mode="wrap")
    density = observables.class_counts(framed, 18)[0, 0] / 256.0
    rates = SYSTEM.flip_rates()
    drift = np.array([density @ (-2 * spins * rates), density @ (-2 * spins * k * rates)])
    patches = scaleup.partial_evolution(
        np.repeat(state, count, axis=0), np.arange(count), SYSTEM, 8, seed=1, duration=dt, dt=dt
    )
    changes = 4 * patches.changes() / 256.0 / dt  # K = 4 patches
    mean, stderr = changes.mean(axis=0), changes.std(axis=0) / np.sqrt(count)
    # Second order in dt in law, first order in the difference quotient.
    assert np.all(np.abs(mean - drift) < 4 * stderr + dt * np.abs(drift))


def test_flips_mode_counts_flips_and_keeps_time() -> None:
    count = 4000
    state = lattices(1, 8, seed=3)
    patches = scaleup.partial_evolution(
        np.repeat(state, count, axis=0), np.arange(count), SYSTEM, 8, seed=1,
        duration=None, flips=1,
    )  # fmt: skip
    assert np.all((patches.after != patches.before)[:, 1:-1, 1:-1].sum(axis=(1, 2)) == 1)
    framed = np.pad(state, ((0, 0), (1, 1), (1, 1)), mode="wrap")
    total = observables.class_counts(framed, 10)[0, 0] @ SYSTEM.flip_rates()
    assert stats.kstest(patches.elapsed * total, "expon").pvalue > 1e-4


def test_every_patch_is_equally_likely() -> None:
    index = scaleup.choose_patch(np.arange(64_000), 16, seed=7)
    assert stats.chisquare(np.bincount(index, minlength=16)).pvalue > 1e-4


@pytest.mark.parametrize(
    ("patch", "options", "name"),
    [
        (5, {}, "patch"),
        (32, {}, "patch"),
        (1, {}, "patch"),
        (8, {"buffer": 5}, "buffer"),
        (8, {"buffer": -1}, "buffer"),
        (8, {"halo": "wrap", "buffer": 1}, "buffer"),
        (8, {"dt": -1.0}, "dt"),
    ],
)
def test_partial_evolution_refuses(patch: int, options: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=name):
        scaleup.partial_evolution(lattices(1, 16), np.arange(1), SYSTEM, patch, seed=0, **options)
