"""Increments of patches against the exact semigroups of small tori, and their orders in dt."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from exact import bonds, gibbs, index, magnetizations, neighbour_sums, states
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import expm_multiply

from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.experiments.short_time import (
    Surroundings,
    evolve,
    generator_moments,
    linear_minimiser,
    patch_increments,
    patch_moments,
    stationary_variance,
    steps_between,
)
from mpiflow.learn.certificate.spins import terms
from mpiflow.observables import spin_sums
from mpiflow.systems.ising import Ising

T, H = 2.5, 0.1
SYSTEM = Ising(T, H)
FROZEN, WRAP = Surroundings(), Surroundings(halo="wrap")
SQUARE = (4, 4)
Shape = tuple[int, int]


def rates(shape: Shape) -> np.ndarray:
    """Flip rate of every site in every state, (2^N, N), from the definition."""
    spins = states(shape).astype(float)
    cost = 2 * spins * (neighbour_sums(spins) + H)
    return (1 / (1 + np.exp(cost / T))).reshape(len(spins), -1)


def generator(shape: Shape, moving: np.ndarray, rate: np.ndarray | None = None) -> csr_matrix:
    """Q[from, to] with only the given sites moving, the others frozen."""
    rate = rates(shape) if rate is None else rate
    every = np.arange(len(rate))
    columns = [every, *(every ^ (1 << site) for site in moving)]
    values = [-rate[:, moving].sum(1), *(rate[:, site] for site in moving)]
    rows = np.tile(every, len(columns))
    return csr_matrix((np.concatenate(values), (rows, np.concatenate(columns))))


def sites_of(shape: Shape, corner: Shape, size: Shape) -> np.ndarray:
    rows = (corner[0] + np.arange(size[0])) % shape[0]
    columns = (corner[1] + np.arange(size[1])) % shape[1]
    return np.unique(rows[:, None] * shape[1] + columns)


def patch_sum(shape: Shape, sites: np.ndarray) -> np.ndarray:
    return states(shape).reshape(2 ** (shape[0] * shape[1]), -1)[:, sites].sum(1).astype(float)


def moments(q: csr_matrix, f: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of f after dt from every state, and its variance."""
    both = expm_multiply(dt * q, np.stack([f, f * f], axis=1))
    return both[:, 0] - f, both[:, 1] - both[:, 0] ** 2


# -- the theorem, exactly ------------------------------------------------------------------


def error_of_drift(shape: Shape, size: Shape, buffer: int, dt: float) -> float:
    """Largest error over all states of the drift of M, of patches beside each other in x."""
    whole = moments(generator(shape, np.arange(shape[0] * shape[1])), patch_sum(shape, ...), dt)[0]  # type: ignore[arg-type]
    parts = np.zeros_like(whole)
    for x in range(0, shape[1], size[1]):
        patch = sites_of(shape, (0, x), size)
        box = sites_of(shape, (0, x - buffer), (size[0], size[1] + 2 * buffer))
        parts += moments(generator(shape, box), patch_sum(shape, patch), dt)[0]
    return float(abs(parts - whole).max() / dt)


@pytest.mark.parametrize(("shape", "size", "buffer"), [((2, 4), (2, 2), 0), ((1, 12), (1, 6), 1)])
def test_order_of_the_drift_is_one_more_than_the_buffer(
    shape: Shape, size: Shape, buffer: int
) -> None:
    dts = np.array([0.04, 0.02, 0.01])
    errors = np.array([error_of_drift(shape, size, buffer, dt) for dt in dts])
    order = np.diff(np.log(errors)) / np.diff(np.log(dts))
    np.testing.assert_allclose(order, buffer + 1, atol=0.06 * (buffer + 1))
    assert abs(order[1] - buffer - 1) < abs(order[0] - buffer - 1)


def test_first_order_term_of_the_drift() -> None:
    """L^2 of the whole less that of the patches, from the generators of a 4 x 4 torus."""
    every, f = np.arange(2**16), [patch_sum(SQUARE, np.arange(16)) / 16]
    f.append(-bonds(states(SQUARE)).astype(float) / 64)
    rate, left = rates(SQUARE), np.zeros((2**16, 2))
    some = every[::1003]
    for i, values in enumerate(f):
        q = generator(SQUARE, np.arange(16), rate)
        left[:, i] = -(q @ (q @ values))
        for corner in product((0, 2), (0, 2)):
            part = generator(SQUARE, sites_of(SQUARE, corner, (2, 2)), rate)
            left[:, i] += part @ (part @ values)
    ours = terms(SYSTEM, states(SQUARE)[some], [2]).cuts[0].surroundings
    np.testing.assert_allclose(ours, 0.5 * left[some], atol=1e-12)


def test_the_diffusion_is_of_first_order_and_its_limit_is_the_generator() -> None:
    """lambda = K: variance of the patches' sums, and the variance over patches of their means."""
    shape, errors = (2, 6), []
    spins = states(shape)
    limit = 4 * rates(shape).sum(1)
    dts = np.array([0.04, 0.02, 0.01])
    for dt in dts:
        whole = moments(generator(shape, np.arange(12)), patch_sum(shape, np.arange(12)), dt)[1]
        patches = [sites_of(shape, (0, x), (2, 2)) for x in (0, 2, 4)]
        each = [moments(generator(shape, p), patch_sum(shape, p), dt) for p in patches]
        means = np.array([mean for mean, _ in each])
        partial = sum(variance for _, variance in each) + len(each) * means.var(axis=0)
        errors.append((abs(partial - whole).max() / dt, abs(partial / dt - limit).max()))
    order = np.diff(np.log(errors), axis=0) / np.diff(np.log(dts))[:, None]
    np.testing.assert_allclose(order, 1, atol=0.06)
    assert len(spins) == len(limit)


def test_closed_patches_are_wrong_however_short_the_time() -> None:
    shape, dts = (2, 6), np.array([0.02, 0.01])
    closed = np.zeros((2**12, 12))
    for y, x in product(range(2), range(6)):
        # In a patch of two columns closed on itself both neighbours in x are the same site.
        beside = (x // 2) * 2 + 1 - x % 2
        spins = states(shape).astype(float)
        k = 2 * spins[:, 1 - y, x] + 2 * spins[:, y, beside]
        closed[:, 6 * y + x] = 1 / (1 + np.exp(2 * spins[:, y, x] * (k + H) / T))
    f = patch_sum(shape, np.arange(12))
    errors = []
    for dt in dts:
        ours = moments(generator(shape, np.arange(12), closed), f, dt)[0]
        errors.append(abs(ours - moments(generator(shape, np.arange(12)), f, dt)[0]).max() / dt)
    assert errors[1] > 0.95 * errors[0] > 1.0


def test_invariance_ties_drift_to_noise_for_any_duration() -> None:
    """-2 E[M dM_I] = E[dM_I^2] of a frozen patch, so lambda = K gives the variance of M."""
    shape, dt = (2, 4), 3.0
    law, m = gibbs(shape, T, H), magnetizations(states(shape)).astype(float)
    patch = sites_of(shape, (0, 0), (2, 2))
    mean, variance = moments(generator(shape, patch), patch_sum(shape, patch), dt)
    assert law @ mean == pytest.approx(0, abs=1e-12)
    assert -2 * law @ (m * mean) == pytest.approx(law @ (variance + mean**2), rel=1e-9)


# -- the measurement -----------------------------------------------------------------------


def test_steps_between() -> None:
    steps = steps_between([0.0625, 0.125, 1.125, 9.125])
    assert steps == [(0.015625, 4), (0.015625, 4), (0.25, 4), (0.25, 32)]
    for times in ([], [1.0, 1.0], [0.0, 1.0]):
        with pytest.raises(InputError, match="times"):
            steps_between(times)


def test_moments_of_the_generator_are_sums_over_flips() -> None:
    every = states(SQUARE)[::97]
    change = np.zeros((len(every), 16, 2))
    for site in range(16):
        flipped = every.copy()
        flipped[:, site // 4, site % 4] *= -1
        change[:, site, 0] = (magnetizations(flipped) - magnetizations(every)) / 16
        change[:, site, 1] = -(bonds(flipped) - bonds(every)) / 64
    rate = rates(SQUARE)[::97]
    drift, diffusion = generator_moments(every, SYSTEM)
    np.testing.assert_allclose(drift, np.einsum("bs,bsi->bi", rate, change), atol=1e-14)
    exact = np.einsum("bs,bsi,bsj->bij", rate, change, change)
    np.testing.assert_allclose(diffusion, exact, atol=1e-14)


def test_increments_have_the_exact_moments() -> None:
    """Of the whole 4 x 4 torus and of its frozen patches, from one state."""
    count, times = 20_000, [0.25, 1.0]
    start = np.where(np.random.default_rng(3).random(SQUARE) < 0.6, 1, -1).astype(np.int8)
    here = int(index(start[None])[0])
    many, members = np.repeat(start[None], count, axis=0), np.arange(count)
    steps = steps_between(times, longest=0.0625)
    whole = patch_increments(many, members, SYSTEM, 4, FROZEN, steps, 1).touching[..., 0, :]
    parts = patch_increments(many, members, SYSTEM, 2, FROZEN, steps, 1).touching
    every = [bonds(states(SQUARE)).astype(float)]
    for i, dt in enumerate(times):
        cases = [(whole[i], generator(SQUARE, np.arange(16)))]
        for k, corner in enumerate(product((0, 2), (0, 2))):
            cases.append((parts[i, :, k], generator(SQUARE, sites_of(SQUARE, corner, (2, 2)))))
        for ours, q in cases:
            for f, values in zip((patch_sum(SQUARE, np.arange(16)), *every), ours.T, strict=True):
                mean, variance = (m[here] for m in moments(q, f, dt))
                # A step of 1/16 errs in its second order.
                assert abs(values.mean() - mean) < 4 * np.sqrt(variance / count) + 1e-3 * dt
                assert abs(values.var() / variance - 1) < 6 * np.sqrt(2 / count) + 2e-3


def test_equal_noise_until_the_outside_is_felt() -> None:
    """A wide buffer sees what the whole lattice does; its own bonds add up to those of all."""
    rng = np.random.default_rng(5)
    many = np.where(rng.random((6, 32, 32)) < 0.6, 1, -1).astype(np.int8)
    members, steps = np.arange(6), [(0.25, 3)]
    whole = patch_increments(many, members, SYSTEM, 32, FROZEN, steps, 2).touching
    wide = patch_increments(many, members, SYSTEM, 8, Surroundings(buffer=8), steps, 2)
    none = patch_increments(many, members, SYSTEM, 8, FROZEN, steps, 2)
    np.testing.assert_array_equal(wide.exact.sum(axis=2), whole[:, :, 0])
    np.testing.assert_array_equal(wide.touching[..., 0], wide.exact[..., 0])
    assert np.any(wide.touching.sum(axis=2)[..., 1] != whole[:, :, 0, 1])  # both ends flipped
    assert np.any(none.touching.sum(axis=2)[..., 0] != whole[:, :, 0, 0])
    block = Block.periodic(many, members)
    before = spin_sums(block)
    for now in evolve(block, SYSTEM, steps, 2):
        np.testing.assert_array_equal(spin_sums(now) - before, whole[0, :, 0])


@pytest.mark.parametrize("halo", ["frozen", "wrap"])
def test_increments_do_not_depend_on_how_states_are_dealt(halo: str) -> None:
    many = np.where(np.random.default_rng(1).random((8, 16, 16)) < 0.5, 1, -1).astype(np.int8)
    steps = steps_between([0.5, 1.0])
    around = Surroundings(halo=halo)  # type: ignore[arg-type]
    whole = patch_increments(many, np.arange(8), SYSTEM, 8, around, steps, 3).touching
    for part in (slice(0, 3), slice(3, 8)):
        ours = patch_increments(many[part], np.arange(8)[part], SYSTEM, 8, around, steps, 3)
        np.testing.assert_array_equal(ours.touching, whole[:, part])


def test_moments_of_patches_are_without_bias() -> None:
    """Few replicas of patches with known means, variances and correlation."""
    rng = np.random.default_rng(7)
    mean, spread = np.array([0.5, -1.0, 2.0, 0.0]), np.array([1.0, 2.0, 0.5, 1.5])
    own = mean + spread * rng.standard_normal((20_000, 4, 4))
    box = own + rng.standard_normal(own.shape)
    plain = patch_moments(own[..., None])
    joint = patch_moments(own[..., None], (2.0 * own + box)[..., None])
    exact = (spread**2).sum(), 4 * mean.var(), 3 * (spread**2).sum()
    for found, true in zip((plain.variance, plain.between, joint.variance), exact, strict=True):
        assert abs(found.mean() - true) < 4 * found.std() / np.sqrt(len(found))


def test_linear_minimiser_finds_its_own_model_and_variance() -> None:
    rng = np.random.default_rng(2)
    n, rate, diffusion, dt = 400_000, 0.3, 0.5, 0.5
    z = rng.standard_normal(n) * stationary_variance(rate, diffusion, dt) ** 0.5
    noise = rng.standard_normal(n) * np.sqrt(4.0 * diffusion * dt)
    a, s2 = linear_minimiser(z, -rate * z * dt + noise, dt, 4.0)
    assert abs(a - rate) < 4 * np.sqrt(4.0 * diffusion / dt / (z @ z))
    assert abs(s2 / diffusion - 1) < 4 * np.sqrt(2 / n)
    after = z - rate * z * dt + 0.5 * noise
    assert after.var() == pytest.approx(z.var(), rel=0.02)
    assert stationary_variance(-0.1, 1.0, 0.5) == np.inf
    assert stationary_variance(3.0, 1.0, 1.0) == np.inf


@pytest.mark.parametrize(
    ("patch", "around", "name"),
    [
        (6, FROZEN, "patch"),
        (8, Surroundings(halo="wrap", buffer=1), "buffer"),
        (8, Surroundings(buffer=5), "buffer"),
    ],
)
def test_what_makes_no_sense_is_refused(patch: int, around: Surroundings, name: str) -> None:
    many = np.ones((1, 16, 16), np.int8)
    with pytest.raises(InputError, match=name):
        patch_increments(many, np.arange(1), SYSTEM, patch, around, [(0.25, 4)], 1)
    assert [str(s) for s in (FROZEN, WRAP, Surroundings(buffer=2))] == [
        "frozen",
        "self-periodic",
        "buffer 2",
    ]
