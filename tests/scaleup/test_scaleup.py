"""Upsampling, local relaxation and partial evolution: exactness and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.sublattice import Sublattice
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


@pytest.mark.parametrize(
    "how", [{"duration": 0.5}, {"duration": 2.0, "dt": 2.0}, {"duration": None, "flips": 3}]
)
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


def corners(patches: scaleup.Patches, patch: int, across: int) -> np.ndarray:
    """Upper left sites (B, 2) of the patches, `across` of which lie side by side."""
    return patch * np.stack(np.divmod(patches.index, across), axis=1)


def test_wide_margin_equals_the_full_run() -> None:
    """Five passes reach four sites: a patch with that margin cannot tell the difference.

    Patches of an odd side have both colourings, so that the noise is that of their sites.
    """
    states, members = lattices(32, 30, seed=5), np.arange(32)
    patches = scaleup.partial_evolution(
        states, members, SYSTEM, 5, seed=9, buffer=4, duration=0.5, dt=0.25
    )
    block = Block.periodic(states, members)
    Sublattice(SYSTEM, 0.25, plain=True).advance(block, 2, seed=9, stream="partial")
    full = block.spins()
    for b, (y, x) in enumerate(corners(patches, 5, 6)):
        assert np.array_equal(patches.after[b, 1:-1, 1:-1], full[b, y : y + 5, x : x + 5])
    assert len(np.unique(corners(patches, 5, 6).sum(1) % 2)) == 2


@pytest.mark.parametrize(("buffer", "exact"), [(2, True), (0, False)])
def test_wide_margin_has_the_law_of_the_full_run(buffer: int, exact: bool) -> None:
    """Of patches of an even side: means of all sites and of pairs, at the same start.

    A margin of two sites is enough for the three passes of a step, none is not.
    """
    count, dt = 60_000, 2.0
    states = np.repeat(lattices(1, 16, seed=3), count, axis=0)
    members = np.arange(count)
    patches = scaleup.partial_evolution(
        states, members, SYSTEM, 8, seed=9, buffer=buffer, duration=dt, dt=dt
    )
    block = Block.periodic(states, members)
    Sublattice(SYSTEM, dt).advance(block, 1, seed=10)
    squares, terms = 0.0, 0
    for number in range(4):
        y, x = 8 * (number // 2), 8 * (number % 2)
        ours = patches.after[patches.index == number, 1:-1, 1:-1]
        full = block.spins()[:, y : y + 8, x : x + 8]
        for a, b in ((ours, full), (ours[:, 1:] * ours[:, :-1], full[:, 1:] * full[:, :-1])):
            difference = a.mean(0) - b.mean(0)
            variance = a.var(0) / len(a) + b.var(0) / len(b)
            squares, terms = squares + (difference**2 / variance).sum(), terms + variance.size
    if exact:
        # Neighbouring pairs are correlated a little, so that the sum spreads more.
        assert abs(squares - terms) < 6 * np.sqrt(2 * terms)
    else:
        assert squares > 2 * terms


@pytest.mark.parametrize("halo", ["frozen", "wrap"])
def test_a_patch_is_its_own_block(halo: str) -> None:
    """Of an even side: what the solver does to the boxes cut there, each a member."""
    states, members = lattices(300, 24, seed=6), 7 * np.arange(300)
    buffer = 3 if halo == "frozen" else 0
    patches = scaleup.partial_evolution(
        states, members, SYSTEM, 8, seed=9, buffer=buffer, halo=halo, duration=0.5
    )
    corner, side = corners(patches, 8, 3), 8 + 2 * buffer
    block = Block.cut(states, corner - buffer, (side, side), members, policy=halo)
    Sublattice(SYSTEM, 0.25).advance(block, 2, seed=9, stream="partial")
    inner = block.spins()[:, buffer : buffer + 8, buffer : buffer + 8]
    assert np.array_equal(patches.after[:, 1:-1, 1:-1], inner)
    assert np.all(patches.elapsed == 0.5)


@pytest.mark.parametrize("patch", [8, 5])
def test_a_patch_does_not_depend_on_the_others(patch: int) -> None:
    """However members are dealt to ranks, of either kernel."""
    states, members = lattices(200, 40, seed=6), np.arange(1000, 1200)
    options = {"seed": 9, "buffer": 1, "duration": 0.5}
    whole = scaleup.partial_evolution(states, members, SYSTEM, patch, **options)
    for share in (slice(0, 7), slice(150, 200), slice(None, None, -3)):
        part = scaleup.partial_evolution(states[share], members[share], SYSTEM, patch, **options)
        for name in ("before", "after", "index", "elapsed"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[share])


def test_narrow_margin_does_not() -> None:
    """With the noise of the sites: a margin too narrow for the passes is seen."""
    states, members = lattices(400, 30, seed=5), np.arange(400)
    run = [
        scaleup.partial_evolution(states, members, SYSTEM, 5, seed=9, buffer=b, duration=0.5)
        for b in (0, 4)
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
