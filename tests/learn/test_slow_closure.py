"""The slow closure: its features, the law its drift tells, and the SDE of it and M."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mpiflow.core.errors import InputError
from mpiflow.experiments import finite_size
from mpiflow.learn.closure import slow
from mpiflow.solvers.spins.cluster import flip_clusters
from mpiflow.systems.ising import Ising


def test_features_obey_detailed_balance_over_all_states_of_4_x_4() -> None:
    """<f L g> = -<Sigma_fg> / 2 in the Gibbs measure, of every feature with M and of a sum."""
    system = Ising(2.5)
    bits = (np.arange(2**16)[:, None] >> np.arange(16)) & 1
    states = (2 * bits - 1).astype(np.int8).reshape(-1, 4, 4)
    bonds = sum((states * np.roll(states, 1, axis)).sum(axis=(1, 2)) for axis in (1, 2))
    p = np.exp(np.asarray(bonds, float) / system.temperature)
    p /= p.sum()
    found = slow.OddFeatures.of(states, system, [2])
    m = found.magnetization
    np.testing.assert_allclose(m, states.mean(axis=(1, 2)), atol=1e-15)
    blocks = states.reshape(-1, 2, 2, 2, 2).mean(axis=(2, 4))
    np.testing.assert_allclose(found.values[:, 5], (blocks**3).mean(axis=(1, 2)), atol=1e-15)
    np.testing.assert_allclose((p * m) @ found.drift, -0.5 * p @ found.cross / 16, atol=1e-14)
    weights = np.array([0.3, -1.0, 0.7, 0.2, 1.5, -0.4])
    psi = found.values @ weights
    square = slow.squares(states, system, [2], weights)
    assert (p * psi) @ (found.drift @ weights) == pytest.approx(-0.5 * p @ square / 16, rel=1e-12)


def test_drifts_tell_equilibrium_whatever_the_law_of_m_among_states() -> None:
    system, side = Ising(2.27), 16
    states = np.ones((3000, side, side), np.int8)
    flip_clusters(states, np.arange(len(states)), system, seed=3, clusters=30)
    # Three quarters of the magnetised states are left out.
    kept = states[(abs(states.mean(axis=(1, 2))) < 0.7) | (np.arange(len(states)) % 4 == 0)]
    features = slow.OddFeatures.of(kept, system, [2, 4, 8])
    biased = abs(features.magnetization).mean()
    weights = slow.closure(features)
    square = slow.squares(kept, system, [2, 4, 8], weights)
    model = slow.ReversibleSDE.fit(features, weights, side, features, square)
    found = finite_size.quantities(model.moments(), side, 2.27)
    # ising_critical: 0.7129 of clusters; the error is that of ten such sets.
    assert biased < 0.62
    assert found[0] == pytest.approx(0.7129, abs=4 * 0.006)
    assert model.scatter[1] < 0.5 * model.scatter[0]


@pytest.fixture(scope="module")
def model() -> slow.ReversibleSDE:
    """Two wells, with a closure that lags behind; moments of order 1."""
    return slow.ReversibleSDE(
        scale=1.0,
        reach=3.0,
        drift=np.array([[0.5, -0.4, 0.0, 0.0, 0.0], [0.3, -0.25, 0.0, 0.0, 0.0]]),
        mean=np.array([1.1, -0.05, 0.0, 0.0, 0.0]),
        variance=np.array([0.1, 0.02, 0.0, 0.0]),
        sigma=np.array([[0.4, 0.05, 0, 0], [0.22, 0.02, 0, 0], [0.2, 0.02, 0, 0]]),
        scatter=np.array([1.0, 0.3]),
    )


def test_no_probability_flows_in_the_stationary_law(model: slow.ReversibleSDE) -> None:
    """mu p = div (Sigma p) / 2 at points of the plane, by differences."""

    def log_p(z: np.ndarray) -> np.ndarray:
        nodes, weights = np.polynomial.legendre.leggauss(20)
        m = z[:, :1]
        p = (weights * model.force(0.5 * m * (nodes + 1.0))).sum(axis=1) * 0.5 * m[:, 0]
        y = 1.1 * m[:, 0] - 0.05 * m[:, 0] ** 3
        v = 0.1 + 0.02 * m[:, 0] ** 2
        return np.asarray(p - 0.5 * np.log(v) - 0.5 * (z[:, 1] - y) ** 2 / v)

    z = np.random.default_rng(1).normal(size=(20, 2))
    drift, _ = model.rates(z)
    flow = np.zeros((20, 2))
    for i, h in enumerate(1e-4 * np.eye(2)):
        for sign in (1, -1):
            there = z + sign * h
            p = np.exp(log_p(there) - log_p(z))
            flow += sign * p[:, None] * model.rates(there)[1][:, i] / 2e-4
    np.testing.assert_allclose(drift, 0.5 * flow, atol=1e-5)


def test_times_are_those_of_the_sde(model: slow.ReversibleSDE) -> None:
    """One variable: by quadrature, exactly. Two: by Euler-Maruyama, within errors."""
    alone = replace(model, variance=np.zeros(4))
    m, p = alone.law()
    g = m - (p * m).sum()
    flux = np.cumsum(p * g)
    exact = (flux[:-1] ** 2 / (0.5 * (p[1:] + p[:-1]) * (0.2 + 0.025 * m[1:] ** 2))).sum()
    exact *= (m[1] - m[0]) ** 2 / (p * g**2).sum()
    assert alone.relaxation_time() == pytest.approx(exact, rel=0.01)
    assert alone.relaxation_time() < exact * 1.001
    generator, dt, every = np.random.default_rng(2), 0.02, 10
    z = np.zeros((1500, 2))
    z[:, 0] = generator.choice(m, len(z), p=p) * generator.choice([-1, 1], len(z))
    z[:, 1] = 1.1 * z[:, 0] - 0.05 * z[:, 0] ** 3
    z[:, 1] += np.sqrt(0.1 + 0.02 * z[:, 0] ** 2) * generator.normal(size=len(z))
    path = np.empty((150, len(z)))
    for step in range(every * len(path)):
        if step % every == 0:
            path[step // every] = abs(z[:, 0])
        drift, sigma = model.rates(z)
        noise = generator.normal(size=(len(z), 2, 1))
        z += drift * dt + np.sqrt(dt) * (np.linalg.cholesky(sigma) @ noise)[..., 0]
    assert path.mean() == pytest.approx(model.moments()[0], abs=0.02)
    tau, error = finite_size.relaxation_time(path, every * dt)
    assert abs(model.relaxation_time() - tau) < 4 * error + 0.03 * tau
    assert model.relaxation_time() > 1.05 * alone.relaxation_time()


def test_noise_stays_positive_where_there_were_no_states(model: slow.ReversibleSDE) -> None:
    """Below T_c no large lattice has M near 0, where polynomials of states of both signs end up."""
    beyond = replace(model, sigma=np.array([[-0.1, 0.55, 0, 0], *model.sigma[1:]]))
    beyond = replace(beyond, variance=np.array([-0.05, 0.15, 0.0, 0.0]))
    drift, covariance = beyond.rates(np.array([[0.0, 0.0], [0.2, 0.2], [1.0, 1.0]]))
    assert np.isfinite(drift).all()
    assert (np.linalg.eigvalsh(covariance) > 0).all()
    assert np.isfinite(beyond.force(np.linspace(0.0, beyond.reach, 50))).all()
    assert beyond.relaxation_time() > 0


def test_wrong_states_are_refused() -> None:
    states = np.ones((2, 4, 4), np.int8)
    for system, blocks, name in (
        (Ising(2.0, 0.1), [2], "field"),
        (Ising(2.0), [3], "blocks"),
    ):
        with pytest.raises(InputError, match=name):
            slow.OddFeatures.of(states, system, blocks)
