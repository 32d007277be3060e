"""What experiments on binary chains count, and the tables of the paper."""

from __future__ import annotations

import numpy as np
import pytest

from mpiflow.core.errors import InputError
from mpiflow.experiments.chains import (
    effective_mobility,
    ensemble,
    feature_time,
    frame_times,
    interior,
    means,
    passage,
    phases,
    rms_difference,
    spin_error,
)
from mpiflow.solvers.binary_chain.averaged import AveragedSpins
from mpiflow.solvers.binary_chain.langevin import SpinDiffusion
from mpiflow.solvers.binary_chain.mean_field import MeanFieldChains
from mpiflow.systems.binary_chain import BinaryChain


def test_phases_are_stretches_of_one_sign_without_interfaces() -> None:
    s = np.array(
        [
            [-1.0, -0.9, -0.4, 0.3, 0.9, 0.8, 0.1, -0.6],
            [-1.0, -0.9, -0.8, 0.3, -0.9, -0.8, 0.1, -0.6],
            [-0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5],
            [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0],
        ]
    )
    np.testing.assert_array_equal(phases(s), [3, 1, 0, 8])


def test_the_interior_is_the_middle_quarter() -> None:
    s = np.ones((2, 32))
    s[:, 12:20] = 0.1
    np.testing.assert_array_equal(interior(s), [0.1, 0.1])
    s[1, 19] = -0.7
    np.testing.assert_array_equal(interior(s), [0.1, 0.7])


def test_a_model_with_its_effective_mobility_has_the_feature_in_time() -> None:
    system = BinaryChain(16, beta=160.0)
    reference = feature_time(system, "mean-field", 1e-3)
    trial = feature_time(system, "free-energy", 1e-3)
    mobility = effective_mobility("free-energy", trial, reference)
    again = feature_time(system, "free-energy", 1e-3, mobility)
    assert again == pytest.approx(reference, rel=0.01)  # of steps with errors of 1e-3
    assert trial > 5 * reference


def test_times_of_frames_are_multiples_of_a_tenth() -> None:
    times = frame_times(20.0)
    assert times[0] == 0.1
    assert times[-1] == 20.0
    assert {2.0, 15.0} <= set(times)
    assert (np.diff(times) > 0.05).all()
    np.testing.assert_allclose(times * 10, np.round(times * 10), atol=1e-9)


def test_an_ensemble_in_batches_is_the_ensemble() -> None:
    system, times = BinaryChain(8), np.array([0.1, 0.3])

    def followed(members: int, first: int) -> dict[str, np.ndarray]:
        chains = SpinDiffusion(system, epsilon=0.2, dt=0.05, seed=3, members=members, first=first)
        chains.set(system.alternating())
        return ensemble(chains, times)

    whole, parts = followed(5, 0), [followed(2, 0), followed(3, 2)]
    np.testing.assert_array_equal(whole["spins"], parts[0]["spins"] + parts[1]["spins"])
    for name in ("bonds", "strain"):
        np.testing.assert_array_equal(whole[name], np.hstack([part[name] for part in parts]))
    assert whole["bonds"].shape == (2, 5)


def test_an_ensemble_is_looked_at_where_it_is() -> None:
    system = BinaryChain(8)
    chains = AveragedSpins(system, seed=3, members=2)
    chains.set(system.alternating())
    found = ensemble(chains, np.array([0.5, 2.0]))
    assert (chains.clock <= 2.0).all()
    assert (chains.clock > 0.5).all()
    np.testing.assert_array_equal(found["spins"][-1], chains.spins.sum(axis=0))
    np.testing.assert_array_equal(found["bonds"][-1], chains.ab_bonds())


def test_where_a_model_is_refused_there_are_no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    system = BinaryChain(8)
    chains = MeanFieldChains(system, "mean-field", tolerance=1e-3)
    chains.set(system.alternating(0.9))
    advance = chains.advance

    def until_one(time: float) -> np.ndarray:
        if time > 1:
            raise InputError("beta", 1.0, "a lower temperature", "Take one.")
        return advance(time)

    monkeypatch.setattr(chains, "advance", until_one)
    found = means(chains, np.array([0.5, 1.0, 2.0]))
    assert "lower temperature" in str(found["refused"])
    for name in ("spins", "bonds", "strain"):
        assert np.isfinite(found[name][:2]).all()
        assert np.isnan(found[name][2:]).all()


def test_differences_without_noise() -> None:
    rng = np.random.default_rng(5)
    errors = np.full((40, 200), 0.3)
    for true in (0.0, 0.5):
        noisy = true + errors * rng.standard_normal(errors.shape)
        size, error = rms_difference(noisy, np.zeros_like(noisy), errors)
        assert abs(size - true) < 4 * error
        assert error < 0.2
        assert (size > 4 * error) == (true > 0)
    size, error = rms_difference(np.array([1.0, -1.0]), np.zeros(2), np.zeros(2))
    assert (size, error) == (1.0, 0.0)


def test_errors_of_mean_spins_have_no_bias() -> None:
    """Else what is left of differences would not go to 0 with few replicas."""
    replicas, mean, rng = 16, 0.3, np.random.default_rng(9)
    spins = np.where(rng.random((replicas, 20000)) < (1 + mean) / 2, 1, -1)
    means_of = spins.mean(axis=0)
    assert (spin_error(means_of, replicas) ** 2).mean() == pytest.approx(
        (1 - mean**2) / replicas, rel=0.01
    )
    assert (spin_error(np.ones(3), replicas) > 0).all()
    assert (spin_error(means_of, 1) == 0).all()


def test_passages_and_their_errors() -> None:
    times, rng = np.geomspace(1, 100, 41), np.random.default_rng(7)
    late = 10 * np.exp(0.3 * rng.standard_normal(200))
    curves = np.log(late / times[:, None])  # the mean passes 0 at the geometric mean of all
    time, error = passage(times, curves, 0.0)
    assert time == pytest.approx(np.exp(np.log(late).mean()), rel=1e-6)
    assert error == pytest.approx(time * np.log(late).std() / np.sqrt(200), rel=0.02)
    assert np.isnan(passage(times, curves, -10.0)).all()
    assert np.isnan(passage(times, curves[:, :1], 0.0)[1])
    assert passage(times, curves, 100.0)[0] == times[0]
