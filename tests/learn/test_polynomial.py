"""The polynomial SDE of (M, rho): its data, its fit, its rollouts, its stationary law."""

from __future__ import annotations

import numpy as np
import pytest

from mpiflow import metrics, observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.noise import normals
from mpiflow.learn.closure.polynomial import ODD, PolynomialSDE, Ridge, exponents, normal_equations
from mpiflow.solvers.spins.cluster import flip_clusters
from mpiflow.systems.ising import Ising


def latents(states: np.ndarray) -> np.ndarray:
    block = Block.periodic(states, np.arange(len(states)))
    return observables.intensive(observables.spin_sums(block), states[0].size)


@pytest.mark.parametrize("system", [Ising(2.27), Ising(1.7, 0.3), Ising(2.0, -0.2, -1.0)])
def test_short_time_limits_are_the_generator(system: Ising) -> None:
    """Every flip of a lattice of 4 x 6, one after the other."""
    generator = np.random.default_rng(1)
    states = (2 * generator.integers(0, 2, (3, 4, 6)) - 1).astype(np.int8)
    counts = observables.lattice_class_counts(states)
    np.testing.assert_allclose(system.observables(counts), latents(states), atol=1e-15)
    drift, covariance = system.short_time(counts)
    rates = system.flip_rates()
    for b, state in enumerate(states):
        mean, square = np.zeros(2), np.zeros((2, 2))
        for y, x in np.ndindex(state.shape):
            flipped = state.copy()
            flipped[y, x] *= -1
            change = (latents(flipped[None]) - latents(state[None]))[0]
            k = sum(state[(y + a) % 4, (x + c) % 6] for a, c in ((0, 1), (1, 0), (0, -1), (-1, 0)))
            rate = rates[(int(k) + 4) // 2 + 5 * (state[y, x] > 0)]
            mean += rate * change
            square += rate * np.outer(change, change)
        np.testing.assert_allclose(drift[b], mean, atol=1e-14)
        np.testing.assert_allclose(covariance[b], square[[0, 0, 1], [0, 1, 1]], atol=1e-15)


def test_counts_of_a_lattice_are_those_of_its_sites() -> None:
    states = (2 * np.random.default_rng(2).integers(0, 2, (2, 6, 5)) - 1).astype(np.int8)
    k = sum(np.roll(states, shift, axis) for axis in (1, 2) for shift in (1, -1))
    classes = (k + 4) // 2 + 5 * (states > 0)
    expected = [np.bincount(c.ravel(), minlength=10) for c in classes]
    np.testing.assert_array_equal(observables.lattice_class_counts(states), expected)


def known(factor: float = 1.0) -> tuple[PolynomialSDE, np.ndarray, np.ndarray, np.ndarray]:
    """A model fitted to values of one that it can represent, the points and the values."""
    generator = np.random.default_rng(3)
    z = np.stack([generator.uniform(-0.9, 0.9, 400), generator.uniform(0.1, 0.3, 400)], axis=1)
    powers, ridge = exponents(2, 1), Ridge(np.array([0.2, -0.1]), 0.05)
    truth = generator.normal(size=(5, len(powers)))
    made = PolynomialSDE(powers, ridge, truth, z.min(axis=0), z.max(axis=0))
    values = made.at(z)
    parts = [normal_equations(z[i::4], values[i::4], powers, ridge) for i in range(4)]
    low, high = z.min(axis=0), z.max(axis=0)
    model = PolynomialSDE.fit(sum(parts[1:], parts[0]), powers, ridge, low, high, factor=factor)
    return model, z, values, truth


def test_fit_finds_what_it_can_represent_and_divides_sigma_by_lambda() -> None:
    model, z, values, truth = known()
    np.testing.assert_allclose(model.coefficients, truth, atol=1e-9)
    np.testing.assert_allclose(model.at(z), values, atol=1e-9)
    halved = known(2.0)[0]
    np.testing.assert_allclose(halved.coefficients[:2], truth[:2], atol=1e-9)
    np.testing.assert_allclose(halved.coefficients[2:], truth[2:] / 2.0, atol=1e-9)


def test_symmetry_under_reversal_of_all_spins_is_exact() -> None:
    model, z, _, _ = known()
    mirrored = model.at(z * [-1.0, 1.0])
    np.testing.assert_array_equal(mirrored, model.at(z) * np.where(ODD, -1.0, 1.0))


def linear(a: float, b: float, s: float, r: float) -> PolynomialSDE:
    """dM = -a M dt + s dB, drho = -b (rho - 0.2) dt + r dB', dB and dB' correlated by 0."""
    coefficients = np.zeros((5, 2))
    powers = np.array([(0, 0), (0, 1)])
    coefficients[0, 0], coefficients[1, 1] = -a, -b
    coefficients[2, 0], coefficients[4, 0] = s * s, r * r
    ridge = Ridge(np.array([0.2]), 1.0)
    return PolynomialSDE(powers, ridge, coefficients, np.array([-9.0, -9.0]), np.array([9.0, 9.0]))


def test_rollouts_are_euler_steps_with_the_noise_of_the_library() -> None:
    model = linear(0.3, 0.5, 0.2, 0.1)
    z0 = np.array([[0.1, 0.3], [-0.4, 0.2]])
    members = np.array([7, 3])
    path, held = model.rollout(z0, members, dt=0.1, frames=4, stride=2, skip=1, seed=5)
    z, expected = z0, []
    for step in range(8):
        if step in (1, 3, 5, 7):
            expected.append(z)
        xi = normals(5, "sde", members, step, 2)
        drift = np.stack([-0.3 * z[:, 0], -0.5 * (z[:, 1] - 0.2)], axis=1)
        z = z + 0.1 * drift + 0.1**0.5 * np.array([0.2, 0.1]) * xi
    np.testing.assert_allclose(path, expected, atol=1e-14)
    assert held == 0


def test_stationary_variance_of_a_linear_model() -> None:
    model = linear(0.2, 1.0, 0.3, 0.1)
    path, _ = model.rollout(
        np.tile([0.0, 0.2], (2000, 1)), np.arange(2000), dt=0.05, frames=20, stride=100,
        skip=600, seed=1,
    )  # fmt: skip
    # Of Euler steps: sigma^2 / (2 a - a^2 dt).
    for column, (a, s) in enumerate(((0.2, 0.3), (1.0, 0.1))):
        each = ((path[..., column] - 0.2 * column) ** 2).mean(axis=0)
        exact = s * s / (2 * a - a * a * 0.05)
        assert abs(each.mean() - exact) < 4.0 * metrics.standard_error(each)


def test_states_are_held_in_the_range_and_counted() -> None:
    model = linear(0.1, 0.1, 0.3, 0.1)
    narrow = PolynomialSDE(
        model.powers, model.ridge, model.coefficients, np.array([-0.1, 0.1]), np.array([0.1, 0.3])
    )
    path, held = narrow.rollout(
        np.tile([0.0, 0.2], (50, 1)), np.arange(50), dt=0.5, frames=40, seed=1
    )
    assert abs(path[..., 0]).max() <= 0.1
    assert 0 < held < 50 * 39


def test_model_of_equilibrium_states_has_the_equilibrium_law() -> None:
    """Detailed balance: the stationary law of (M, rho) is learned from short times alone."""
    system, side, count = Ising(2.4), 16, 4000
    members = np.arange(count)
    states = np.ones((count, side, side), np.int8)
    flip_clusters(states, members, system, seed=2, clusters=40)
    powers = exponents(5, 2)
    parts, firsts = [], []
    ridge = Ridge.of(latents(states))
    for look in range(10):
        flip_clusters(states, members, system, seed=2, clusters=6, first=40 + 6 * look)
        z = latents(states)
        values = np.concatenate(system.short_time(observables.lattice_class_counts(states)), axis=1)
        parts.append(normal_equations(z, values, powers, ridge))
        firsts.append(np.abs(z[:, 0]))
    found = []
    for half in (parts[:5], parts[5:]):
        model = PolynomialSDE.fit(
            sum(half[1:], half[0]), powers, ridge, np.array([-1.0, 0.0]), np.array([1.0, 0.5])
        )
        path, _ = model.rollout(z, members, dt=0.25, frames=10, stride=40, skip=1200, seed=4)
        found.append(np.abs(path[..., 0]).mean())
    true = np.mean(firsts)
    # Two halves of the data and what the members leave of noise, about 0.3 / sqrt(4000).
    assert abs(np.mean(found) - true) < 4.0 * np.hypot(0.3 / count**0.5, np.std(found))
    # The law is that of the noise, not of the start: with lambda = K / 4 it is wide.
    wide = PolynomialSDE.fit(
        sum(parts[1:], parts[0]), powers, ridge, np.array([-1.0, 0.0]), np.array([1.0, 0.5]),
        factor=0.25,
    )  # fmt: skip
    path, _ = wide.rollout(z, members, dt=0.25, frames=1, skip=1200, seed=4)
    assert np.abs(path[..., 0]).mean() > true + 4.0 * 0.3 / count**0.5


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="factor"):
        known(0.0)
    with pytest.raises(InputError, match="dt"):
        linear(1, 1, 1, 1).rollout(np.zeros((1, 2)), np.arange(1), dt=0.0, frames=1, seed=1)
