"""Metrics against their definitions and against processes with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from mpiflow import metrics


def test_mean_error_is_the_published_formula() -> None:
    true = np.array([[1.0, 2.0], [3.0, 4.0]])
    predicted = true + np.array([[0.1, 0.0], [0.0, 0.2]])
    assert metrics.mean_error(predicted, true) == pytest.approx((0.01 + 0.04) / 30.0)
    assert metrics.mean_error(true, true) == 0.0


def test_spread_error_of_spreads_ten_percent_too_wide() -> None:
    spread = np.random.default_rng(0).uniform(0.1, 1.0, (50, 2))
    assert metrics.spread_error(1.1 * spread, spread) == pytest.approx(0.1)


def test_noise_floor_is_the_error_of_a_perfect_model() -> None:
    rng = np.random.default_rng(1)
    mean, std, samples = np.linspace(1.0, 2.0, 40)[:, None], 0.3, 25
    errors = []
    for _ in range(400):
        a, b = (mean + std * rng.normal(size=(40, samples)) for _ in range(2))
        truth = a.mean(axis=1, keepdims=True)
        errors.append(metrics.mean_error(b.mean(axis=1, keepdims=True), truth))
    floor = metrics.noise_floor(np.full((40, 1), std**2), samples, mean)
    stderr = np.std(errors) / np.sqrt(len(errors))
    assert abs(np.mean(errors) - floor) < 4 * stderr


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_autocorrelation_time_of_an_ar1_process(phi: float) -> None:
    rng = np.random.default_rng(2)
    n = 200_000
    x = np.zeros(n)
    kicks = rng.normal(size=n)
    for i in range(1, n):
        x[i] = phi * x[i - 1] + kicks[i]
    exact = (1 + phi) / (1 - phi)
    assert metrics.integrated_autocorrelation_time(x) == pytest.approx(exact, rel=0.1)


def test_autocorrelation_time_agrees_with_emcee() -> None:
    emcee = pytest.importorskip("emcee")
    x = np.convolve(np.random.default_rng(3).normal(size=20_000), np.ones(8), "valid")
    theirs = emcee.autocorr.integrated_time(x, c=5, quiet=True)[0]
    assert metrics.integrated_autocorrelation_time(x) == pytest.approx(theirs, rel=1e-6)


def test_correlated_error_covers_the_true_mean() -> None:
    rng = np.random.default_rng(4)
    scores = []
    for _ in range(200):
        x = np.convolve(rng.normal(size=4015), np.ones(16), "valid")
        scores.append(x.mean() / metrics.correlated_error(x))
    assert 0.8 < np.std(scores) < 1.25


def test_errors_of_constants_and_single_values() -> None:
    assert metrics.integrated_autocorrelation_time(np.ones(10)) == 1.0
    assert np.isnan(metrics.standard_error(np.array([1.0])))
    assert metrics.standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)
