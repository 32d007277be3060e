"""Exponents from data that scale by construction, with errors that are right."""

from __future__ import annotations

import numpy as np
import pytest

from mpiflow.core.errors import InputError
from mpiflow.experiments import finite_size
from mpiflow.systems.ising import CRITICAL_TEMPERATURE

SIDES = np.array([16, 32, 64, 128])
TEMPERATURES = np.array([2.25, 2.26, 2.27, 2.28, 2.29])


def scaling(beta: float, gamma: float, nu: float) -> np.ndarray:
    """abs(M), chi and U whose logarithms, and U, are parabolas in (T - T_c) L^(1/nu)."""
    x = (TEMPERATURES - CRITICAL_TEMPERATURE) * SIDES[:, None] ** (1.0 / nu)
    return np.stack(
        [
            SIDES[:, None] ** -beta * np.exp(-0.2 * x - 0.01 * x**2),
            0.07 * SIDES[:, None] ** gamma * np.exp(0.3 * x - 0.02 * x**2),
            0.61 - 0.03 * x - 0.004 * x**2,
        ],
        axis=2,
    )


@pytest.mark.parametrize(("beta", "gamma", "nu"), [(0.125, 1.75, 1.0), (0.2, 1.6, 0.8)])
def test_exponents_of_exact_scaling_are_found(beta: float, gamma: float, nu: float) -> None:
    values = scaling(beta, gamma, nu)
    found = finite_size.exponents(SIDES, TEMPERATURES, values, 0.01 * np.abs(values) + 1e-3)
    assert found["beta/nu"] == pytest.approx(beta, rel=1e-8)
    assert found["gamma/nu"] == pytest.approx(gamma, rel=1e-8)
    assert found["1/nu"] == pytest.approx(1.0 / nu, rel=1e-8)


def test_errors_of_exponents_are_those_of_repeated_measurements() -> None:
    values = scaling(0.125, 1.75, 1.0)
    errors = np.abs(values) * np.array([0.005, 0.02, 0.002])
    generator = np.random.default_rng(1)
    many = [
        finite_size.exponents(
            SIDES, TEMPERATURES, values + errors * generator.normal(size=values.shape), errors
        )
        for _ in range(400)
    ]
    claimed = finite_size.with_errors(SIDES, TEMPERATURES, values, errors, draws=400, seed=2)
    for name, (value, error) in claimed.items():
        spread = np.std([each[name] for each in many], ddof=1)
        assert error == pytest.approx(spread, rel=0.2)  # each known to 3.5 %
        assert abs(np.mean([each[name] for each in many]) - value) < 5.0 * spread / 20.0


def test_jackknife_knows_moments_and_their_errors() -> None:
    """Of Gaussian m: abs(M) = sqrt(2 / pi) s, chi = N s^2 (1 - 2 / pi) / T, U = 0."""
    generator = np.random.default_rng(3)
    found = []
    for _ in range(200):
        m = 0.1 * generator.normal(size=500)
        samples = np.stack([np.abs(m), m**2, m**4], axis=1)
        found.append(finite_size.jackknife(samples, 10, 2.0))
    values, errors = (np.array(part) for part in zip(*found, strict=True))
    exact = np.array([0.1 * np.sqrt(2 / np.pi), 0.5 * (1 - 2 / np.pi), 0.0])
    spread = values.std(axis=0, ddof=1)
    assert np.all(abs(values.mean(axis=0) - exact) < 4 * spread / 200**0.5 + [0, 2e-3, 1e-2])
    np.testing.assert_allclose(errors.mean(axis=0), spread, rtol=0.2)


def test_too_little_data_is_refused_and_impossible_values_are_nan() -> None:
    values = scaling(0.125, 1.75, 1.0)
    with pytest.raises(InputError, match="2 and 3"):
        finite_size.exponents(SIDES[:1], TEMPERATURES, values[:1], values[:1])
    with pytest.raises(InputError, match="samples"):
        finite_size.jackknife(np.ones((1, 3)), 16, 2.0)
    values[0, 0, 1] = -1.0
    assert np.isnan(
        finite_size.exponents(SIDES, TEMPERATURES, values, 1.0 + 0 * values)["gamma/nu"]
    )


def test_powers_and_times_come_with_their_errors() -> None:
    sides = np.array([16.0, 32.0, 64.0])
    values = 0.3 * sides**2.17
    assert finite_size.power_law(sides, values, 0.1 * values) == pytest.approx(
        (2.17, 0.1 / (np.log(2) * np.sqrt(2)))
    )
    generator, keep = np.random.default_rng(1), 0.9
    path = np.empty((600, 200))
    path[0] = generator.normal(size=200)
    for frame in range(1, len(path)):
        path[frame] = keep * path[frame - 1] + np.sqrt(1 - keep**2) * generator.normal(size=200)
    tau, error = finite_size.relaxation_time(path, 2.0)
    true = 2.0 * (0.5 + keep / (1 - keep))
    assert abs(tau - true) < 4 * error + 2 * np.exp(-5.0) * true
    assert 0.005 * true < error < 0.05 * true
    # Frames too far apart, and a run too short: trapezia would say half a frame.
    assert finite_size.relaxation_time(path[::100], 200.0) == (0.0, 0.0)
    assert finite_size.relaxation_time(path[:50], 2.0) == (0.0, 0.0)
