"""Pairs with little noise, mirror symmetry, and the law that a drift of M has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpiflow.core.errors import InputError
from mpiflow.experiments import equilibrium
from mpiflow.learn.closure import equilibrium as eq
from mpiflow.learn.closure import mirror
from mpiflow.learn.sde import MacroscopicSDE
from mpiflow.systems.ising import Ising

SYSTEM = Ising(temperature=2.25)
RNG = np.random.default_rng(3)


def some_pairs(count: int = 50, d: int = 4, repeats: int = 30) -> tuple[eq.Pairs, np.ndarray]:
    """Pairs and the increments they stand for."""
    each = RNG.normal(size=(count, repeats, d)) @ RNG.normal(size=(d, d)) + RNG.normal(size=d)
    mean = each.mean(axis=1)
    away = each - mean[:, None]
    covariance = np.einsum("npi,npj->nij", away, away) / repeats
    return eq.Pairs(RNG.normal(size=(count, d)), mean, covariance, covariance, 0.5), each


def randomise(module: torch.nn.Module) -> None:
    """Weights of which none is zero, as some are in the beginning."""
    torch.manual_seed(2)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def test_few_increments_have_the_loss_of_all() -> None:
    pairs, each = some_pairs()
    few = pairs.increments()
    assert few.shape == (50, 8, 4)
    sde = MacroscopicSDE(4).double()
    randomise(sde)
    z = torch.as_tensor(pairs.z)
    losses = [
        sde(z, torch.as_tensor(d), torch.full(d.shape[:2], 0.5, dtype=torch.float64))
        for d in (each, few)
    ]
    torch.testing.assert_close(*losses, rtol=1e-9, atol=0)


def test_features_of_a_turned_state_are_those_of_the_mirror() -> None:
    states = RNG.choice(np.array([-1, 1], np.int8), (6, 32, 32))
    y, turned = eq.features(states, 16), eq.features(-states, 16)
    np.testing.assert_allclose(turned[:, 0], -y[:, 0])
    np.testing.assert_allclose(turned[:, 1], y[:, 1])
    np.testing.assert_allclose(turned[:, 2:], y[:, :1:-1])


@pytest.mark.parametrize("closures", [1, 2, 3])
def test_latents_have_their_signs(closures: int) -> None:
    states = RNG.choice(np.array([-1, 1], np.int8), (40, 16, 16))
    both = np.concatenate([eq.features(states, 16), eq.features(-states, 16)])
    latents = mirror.train_closures(both, closures=closures, seed=1, epochs=2)
    # An even closure may have a constant, which is the same for both images.
    z, turned = np.split(both @ latents.T, 2)
    np.testing.assert_allclose(turned, z * mirror.signs(latents), atol=1e-5)


def test_drift_and_covariance_turn_with_the_state() -> None:
    sign = np.array([-1.0, 1.0, 1.0, -1.0])
    sde = mirror.MirrorSDE(sign)
    randomise(sde)
    sde.mean.copy_(torch.tensor([0.0, 0.3, 0.1, 0.0]))
    z, s = torch.randn(20, 4), sde.signs
    with torch.no_grad():
        torch.testing.assert_close(sde.drift(z * s), sde.drift(z) * s)
        root, turned = sde.cholesky(z), sde.cholesky(z * s)
        sigma = root @ root.mT
        torch.testing.assert_close(turned @ turned.mT, sigma * s[:, None] * s)
    assert not torch.allclose(sde.drift(z), -sde.drift(z))


def test_partial_and_full_evolution_have_the_same_drift_and_covariance() -> None:
    """Theorem 1, lambda = K, for short times; the covariance about the means of each patch."""
    states = eq.training_states(SYSTEM, "snapshots", 256, burn=50.0, seed=4)
    short = {"patch": 16, "duration": 0.25, "seed": 1}
    whole = eq.evolve(SYSTEM, states, kind="full", repeats=32, **short)  # type: ignore[arg-type]
    part = eq.evolve(SYSTEM, states, kind="partial", repeats=512, **short)  # type: ignore[arg-type]
    difference = (part.mean - whole.mean)[:, :2]
    error = difference.std(axis=0, ddof=1) / 16
    assert (abs(difference.mean(axis=0)) < 4 * error).all()
    variance = [p.within[:, [0, 1], [0, 1]].mean(axis=0) for p in (part, whole)]
    # Frozen surroundings and the finite time: a few percent.
    np.testing.assert_allclose(variance[0] / 16, variance[1], rtol=0.05)
    # The published covariance holds the variance of the drift over patches, too.
    assert (part.covariance[:, [0, 1], [0, 1]].mean(axis=0) > variance[0] * 0.99).all()


def test_the_minimum_finds_the_polynomials_of_a_known_sde() -> None:
    m = RNG.uniform(-0.9, 0.9, 40_000)
    a, c = np.array([0.3, -0.5, 0.2, -0.1]), np.array([0.02, -0.01, -0.002])
    drift = sum(a[k] * m ** (2 * k + 1) for k in range(4))
    variance = sum(c[k] * m ** (2 * k) for k in range(3))
    dt, factor, repeats = 0.25, 4.0, 16
    noise = RNG.normal(size=(len(m), repeats)) * np.sqrt(factor * variance * dt)[:, None]
    each = drift[:, None] * dt + noise
    covariance = each.var(axis=1)[:, None, None]
    pairs = eq.Pairs(m[:, None], each.mean(axis=1)[:, None], covariance, covariance, dt)
    sde = mirror.minimum(pairs, factor=factor)
    grid = torch.linspace(-0.8, 0.8, 17)[:, None]
    exact = sum(a[k] * grid ** (2 * k + 1) for k in range(4))
    # 6.4e5 pairs of noise 2 (factor c / dt)^1/2 at most: 0.0007 for each of few numbers.
    torch.testing.assert_close(sde.drift(grid), exact, rtol=0, atol=0.006)
    exact = sum(c[k] * grid ** (2 * k) for k in range(3))
    torch.testing.assert_close(sde.cholesky(grid)[:, 0] ** 2, exact, rtol=0.02, atol=0)


def test_a_prediction_has_the_stationary_law() -> None:
    """Ornstein-Uhlenbeck: variance c / 2a, symmetric."""
    sde = mirror.MagnetizationSDE()
    sde.odd.copy_(torch.tensor([-0.5, 0, 0, 0]))
    sde.even.copy_(torch.tensor([0.04, 0, 0]))
    sde.low.fill_(-5)
    sde.high.fill_(5)
    watch = equilibrium.Watch(burn=10.0, every=5.0, frames=20)
    done = equilibrium.predict(sde, np.zeros((400, 1)), watch, dt=0.05, seed=1, free=5.0)
    # Euler steps: c / (2 a - a^2 dt).
    each = (done.m**2).mean(axis=0)
    assert abs(each.mean() - 0.04 / (1 - 0.25 * 0.05)) < 4 * each.std() / 20
    assert (done.held, done.edge, done.lost) == (0, 0, 0)
    sde.odd.copy_(torch.tensor([0.5, 0, 0, 0]))
    wild = equilibrium.predict(sde, np.full((10, 1), 2.0), watch, dt=0.05, seed=1, free=5.0)
    assert wild.held > 0
    assert wild.edge == 1
    assert wild.lost == 1


def test_reversals_need_both_thresholds() -> None:
    m = np.array([0.0, 0.6, -0.1, 0.6, -0.7, -0.2, 0.3, -0.8, 0.9])
    assert equilibrium.reversals(m[:, None], 0.5) == [2]
    assert equilibrium.reversals(m[:, None], 0.05) == [6]
    assert equilibrium.reversals(np.zeros((5, 1)), 0.5) == [0]


def test_distances_of_known_laws() -> None:
    x, y = RNG.normal(size=(2, 200, 500)) * 0.3
    assert equilibrium.kolmogorov(x, x) == 0
    assert equilibrium.kolmogorov(x, y) < 0.006  # 1e5 each
    # N(0, 1) and N(0, 4): the densities cross at x^2 = 8/3 ln 2, KS is 0.1608.
    assert equilibrium.kolmogorov(x, 2 * y) == pytest.approx(0.1608, abs=0.006)
    assert equilibrium.discrepancy(x, y) < 1e-4 < 0.01 < equilibrium.discrepancy(x, 2 * y)


def test_a_truth_at_high_temperature_has_the_known_susceptibility() -> None:
    """Independent spins: N <M^2> = 1 whatever the start."""
    watch = equilibrium.Watch(burn=20.0, every=5.0, frames=20)
    m, spins = equilibrium.truth(Ising(temperature=1e6), 16, watch, seed=2)
    each = 256 * (m**2).mean(axis=0)
    assert abs(each.mean() - 1) < 4 * each.std() / 16
    np.testing.assert_allclose(spins.mean(axis=(1, 2)), m[-1])


def test_bad_numbers_are_refused() -> None:
    states = np.ones((4, 32, 32), np.int8)
    with pytest.raises(InputError, match="repeats=4"):
        eq.evolve(SYSTEM, states, kind="partial", patch=16, repeats=4, seed=1)
    with pytest.raises(InputError, match="frames=1"):
        equilibrium.Watch(burn=0.0, every=1.0, frames=1)
