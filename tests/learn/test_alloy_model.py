"""The alloy's learned dynamics: coordinates, laws of time, and what it learns where all is known.

The known truth is an Ornstein-Uhlenbeck process of the three like pairs, with centre, rates and
covariance that depend on the temperature; seconds per hop follow an Arrhenius law. A pair is the
exact increment of one of K = 8 independent patches over one unit of time.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mpiflow.core.errors import InputError
from mpiflow.learn.alloy.model import (
    AlloyModel,
    PairsData,
    TimeScale,
    fit_log_mean,
    independent,
    load_alloy_model,
    mean_durations,
    reconstruct,
    train_alloy,
)
from mpiflow.learn.closure.model import load_model
from mpiflow.learn.training import Schedule
from mpiflow.systems.alloy import BOLTZMANN, neighbour_numbers, row_sums, short_range_order

# -- coordinates ---------------------------------------------------------------------------


def random_bonds(rng: np.random.Generator, cells: int, shares: list[float]) -> np.ndarray:
    """Bonds (4, 4) of a random bcc crystal, corners x centres, counted one by one."""
    corners, centres = (rng.choice(4, size=(cells,) * 3, p=shares) for _ in range(2))
    bonds = np.zeros((4, 4), np.int64)
    for x in (0, -1):
        for y in (0, -1):
            for z in (0, -1):
                moved = np.roll(centres, (-x, -y, -z), axis=(0, 1, 2))
                np.add.at(bonds, (corners.ravel(), moved.ravel()), 1)
    return bonds


@pytest.mark.parametrize("shares", [[0.001, 0.333, 0.333, 0.333], [0.05, 0.15, 0.3, 0.5]])
def test_three_coordinates_give_back_all_six(shares: list[float]) -> None:
    """To machine precision, for any composition and any number of vacancies."""
    rng = np.random.default_rng(0)
    bonds = np.array([random_bonds(rng, 8, shares) for _ in range(20)])
    sro, numbers = short_range_order(bonds), neighbour_numbers(bonds)
    counts = numbers.sum(axis=-1)[:, 1:] / 8
    vacancies = numbers[:, 1:, 0] / counts
    again = reconstruct(independent(sro), counts, vacancies)
    np.testing.assert_allclose(again, sro, rtol=0, atol=1e-13)


def test_reconstruction_keeps_rows_whatever_the_coordinates() -> None:
    x = np.random.default_rng(1).normal(size=(5, 7, 3))
    sro = reconstruct(x, np.array([341.0, 341.0, 341.0]), 0.0078125)
    np.testing.assert_allclose(row_sums(sro, 3), -0.0078125, rtol=0, atol=1e-14)
    assert np.array_equal(independent(sro), x)


# -- laws of time --------------------------------------------------------------------------

BARRIER, TEMPERATURES = 1.6, np.array([600.0, 700, 850, 1000, 1200, 1500, 1800, 2200, 2600, 3000])


def seconds_per_unit(temperature: np.ndarray | float) -> np.ndarray:
    return 1e-12 * np.exp(BARRIER / (BOLTZMANN * np.asarray(temperature)))


def test_time_scale_recovers_an_arrhenius_law() -> None:
    """From times that fluctuate by a factor of e: its mean, not its mean logarithm."""
    rng = np.random.default_rng(2)
    kelvin = np.repeat(TEMPERATURES, 4000)
    spread = 1.0
    times = seconds_per_unit(kelvin) * np.exp(spread * rng.normal(size=len(kelvin)) - spread**2 / 2)
    law = TimeScale.fit(kelvin, times)
    # Standard error of a mean at one temperature: sqrt(e - 1) / sqrt(4000) = 0.021.
    grid = np.linspace(600.0, 3000.0, 200)
    np.testing.assert_allclose(np.log(law(grid)), np.log(seconds_per_unit(grid)), atol=0.08)
    exact = TimeScale.fit(TEMPERATURES, seconds_per_unit(TEMPERATURES))
    np.testing.assert_allclose(exact(grid), seconds_per_unit(grid), rtol=1e-5)
    assert np.all(np.diff(law(grid)) < 0)
    single = TimeScale.fit(np.full(10, 2000.0), np.full(10, 3e-9))
    np.testing.assert_allclose(single(2000.0), 3e-9)


def test_time_scale_refuses_times_that_are_none() -> None:
    with pytest.raises(InputError, match="time"):
        TimeScale.fit(np.array([1000.0, 2000.0]), np.array([1.0, 0.0]))


def test_fit_log_mean_gives_group_means() -> None:
    rng = np.random.default_rng(3)
    group = rng.integers(0, 3, 300)
    values = rng.exponential(10.0 ** np.array([-9, 0, 7])[group])
    features = np.stack([np.ones(300), group == 1, group == 2], axis=1).astype(float)
    means = [values[group == g].mean() for g in range(3)]
    fitted = np.exp(np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]]) @ fit_log_mean(features, values))
    np.testing.assert_allclose(fitted, means, rtol=1e-5)


# -- the exactly known process --------------------------------------------------------------

PATCHES, SITES = 8, 8192
RATES = np.array([[1.0, 0.2, -0.1], [-0.1, 0.8, 0.3], [0.05, -0.1, 1.3]])
ROOT = np.array([[0.085, 0.0, 0.0], [0.03, 0.095, 0.0], [-0.02, -0.04, 0.08]])


def centre(temperature: np.ndarray) -> np.ndarray:
    """Stationary mean, (..., 3): like the alloy's, saturating at low temperatures."""
    b = 1000.0 / np.asarray(temperature, float)[..., None]
    return b / (1 + (b / 1.3) ** 4) ** 0.25 * np.array([-0.11, -1.27, -0.68])


def rates(temperature: np.ndarray) -> np.ndarray:
    """Relaxation matrix per unit of time, (..., 3, 3)."""
    speed = 0.0215 * np.exp(-1200.0 / np.asarray(temperature, float) + 0.6)
    return speed[..., None, None] * RATES


def patch_covariance(temperature: np.ndarray) -> np.ndarray:
    """Stationary covariance of one patch of 1024 sites, (..., 3, 3)."""
    growth = 1 + 0.3 * (1000.0 / np.asarray(temperature, float) - 0.5)
    return ROOT @ ROOT.T * growth[..., None, None]


def relaxation(temperature: np.ndarray, time: float = 1.0) -> np.ndarray:
    """exp(-rates time), (..., 3, 3)."""
    values, vectors = np.linalg.eig(RATES)
    speed = rates(temperature)[..., 0, 0] * time
    decay = np.exp(-speed[..., None, None] * np.diag(values))
    return np.real(vectors @ (decay * np.eye(3)) @ np.linalg.inv(vectors))


def sampled_pairs(
    states: int, seed: int, repeats: int = 1, breadth: float = 2.5, jitter: float = 0.3
) -> PairsData:
    """States from 0 to beyond the centre, and exact increments of one patch of each.

    ``breadth`` is their spread about this way, in standard deviations of the whole system.
    """
    rng = np.random.default_rng(seed)
    kelvin = rng.choice(TEMPERATURES, states)
    c, covariance = centre(kelvin), patch_covariance(kelvin)
    kicks = np.linalg.cholesky(covariance / PATCHES) @ rng.normal(size=(states, 3, 1))
    z0 = rng.uniform(-0.05, 1.35, (states, 1)) * c + breadth * kicks[..., 0]
    decay = relaxation(kelvin)
    noise = np.linalg.cholesky(covariance - decay @ covariance @ decay.swapaxes(-1, -2))
    mean = ((decay - np.eye(3)) @ (z0 - c)[..., None]).swapaxes(-1, -2)
    increments = mean + rng.normal(size=(states, repeats, 3)) @ noise.swapaxes(-1, -2)
    waits = rng.normal(size=(states, repeats)) * jitter - jitter**2 / 2
    dt = seconds_per_unit(kelvin)[:, None] * np.exp(waits)
    return PairsData(z0, increments, dt, kelvin, PATCHES, SITES)


def half_times(path: np.ndarray, times: np.ndarray, final: np.ndarray) -> np.ndarray:
    """First times at half of ``final``: (n, 3), (n,), (3,) to (3,)."""
    out = []
    for i in range(3):
        k = int(np.argmax(path[:, i] / final[i] > 0.5))
        share = (0.5 * final[i] - path[k - 1, i]) / (path[k, i] - path[k - 1, i])
        out.append(times[k - 1] + share * (times[k] - times[k - 1]))
    return np.array(out)


def check_learned(
    model: AlloyModel,
    kelvin: list[float],
    total: int,
    mean: float,
    spread: float,
    half: float,
) -> None:
    """Stationary mean, spread at two sizes and half-times against the exact process.

    ``mean`` is a share of the largest stationary mean; the others are relative.
    """
    at = np.array(kelvin)
    # Nine times that are about as good as four: a spread is known to 1 / sqrt(8 members).
    members = total // len(at)
    # In relaxation times of the middle mode, of which the slowest takes 1.25.
    units = np.concatenate([np.linspace(0.0, 5.0, 201), np.linspace(8.0, 16.0, 9)])
    unit = seconds_per_unit(at) / rates(at)[:, 0, 0]
    times = units[:, None] * np.repeat(unit, members)
    for size in (SITES, 8 * SITES):
        sro, held = model.rollout(np.repeat(at, members), np.zeros(6), times, size=size, seed=5)
        assert held == 0
        np.testing.assert_allclose(row_sums(sro, 3), -0.0078125, rtol=0, atol=1e-12)
        paths = independent(sro).reshape(len(units), len(at), members, 3)
        still = paths[201:].swapaxes(1, 2).reshape(-1, len(at), 3)
        final = still.mean(axis=0)
        expected = np.sqrt(np.diagonal(patch_covariance(at), axis1=1, axis2=2) * 1024 / size)
        for b, c in enumerate(centre(at)):
            named = f"{kelvin[b]} K, {size} sites"
            assert np.abs(final[b] - c).max() < mean * np.abs(c).max(), named
            np.testing.assert_allclose(
                still[:, b].std(axis=0), expected[b], rtol=spread, err_msg=named
            )
            exact = [c - relaxation(at[b], t / rates(at[b])[0, 0]) @ c for t in units]
            truth = half_times(np.array(exact), units, c)
            # NbNb hardly moves: its noise is no smaller than its way.
            learned = half_times(paths[:, b].mean(axis=1), units, final[b])
            np.testing.assert_allclose(learned[1:], truth[1:], rtol=half, err_msg=named)


@pytest.mark.validate
def test_it_learns_the_process_at_all_temperatures_and_sizes() -> None:
    """1350 K is none of the training temperatures.

    150,000 pairs: a drift known to 0.02 / sqrt(15000) = 1.6e-4 at one temperature moves a mean
    by 1.6e-4 / 0.02 = 0.008, 1 % of the largest. A linear regression with the right form of the
    drift has errors of 1.5 % in means, 4 % in half-times (of which the start is the end of the
    states) and 5 % in spreads, rms over temperatures. Three to four such errors are allowed.
    """
    model, log = train_alloy(sampled_pairs(50_000, seed=1, repeats=3), seed=1)
    assert log.best_epoch > 0
    check_learned(model, [1000.0, 1350.0, 2200.0], 250, mean=0.045, spread=0.2, half=0.15)
    # The process is of the kind: doubts would be of the training; their chance is below 1e-8.
    assert model.card["doubts"] == []


@pytest.mark.validate
def test_it_learns_the_process_well_from_many_pairs() -> None:
    """Three times as many pairs, so 1.7 times smaller errors, and three times the trajectories.

    One error: 1 % of the largest mean, 3 % of a spread and as much from 125 trajectories, 2.5 %
    of a half-time. With 18 numbers of a kind, three to four such errors are allowed.
    """
    model, _ = train_alloy(sampled_pairs(120_000, seed=2, repeats=4), seed=2)
    kelvin = [700.0, 1000.0, 1100.0, 1350.0, 2000.0, 2800.0]
    check_learned(model, kelvin, 750, mean=0.03, spread=0.15, half=0.09)


def test_noisy_durations_leave_rates_and_noise_right() -> None:
    """Each pair's own duration would make the noise E[1 / dt] E[dt] = e^(s^2) too strong."""
    data = sampled_pairs(20_000, seed=3, jitter=1.0)
    law = TimeScale.fit(data.temperature, data.dt[:, 0])
    exact = seconds_per_unit(data.temperature)[:, None]
    errors = mean_durations(data, law) / exact - 1.0
    # 20,000 times that vary by 1.3 of their mean, 24 coefficients: 1.3 sqrt(24 / 20000) = 0.045.
    assert np.sqrt(np.mean(errors**2)) < 0.07
    few = Schedule(epochs=12, batch=500)
    z, kelvin = torch.zeros(1, 3), torch.full((1, 1), 1500.0)
    strengths = []
    for mean_times in (True, False):
        model, _ = train_alloy(data, schedule=few, mean_times=mean_times)
        with torch.no_grad():
            root = model.sde.cholesky(z, kelvin)[0].numpy()
        strengths.append(np.diag(root @ root.T))
    at = np.array(1500.0)
    rate, covariance = rates(at), patch_covariance(at) / PATCHES
    truth = np.diag(rate @ covariance + covariance @ rate.T)
    np.testing.assert_allclose(strengths[0], truth, rtol=0.15)
    assert np.all(strengths[1] > 1.5 * truth)


def test_mean_durations_follow_state_and_column() -> None:
    data = sampled_pairs(20_000, seed=4, repeats=2, jitter=0.5)
    slow = np.exp(1.5 * data.z0[:, [1]]) * np.array([1.0, 4.0])
    expected = seconds_per_unit(data.temperature)[:, None] * slow
    data = replace(data, dt=data.dt * slow)
    law = TimeScale.fit(np.repeat(data.temperature, 2), data.dt.ravel())
    np.testing.assert_allclose(mean_durations(data, law) / expected, 1.0, atol=0.1)


# -- the model as a whole --------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick() -> AlloyModel:
    model, _ = train_alloy(sampled_pairs(2000, seed=5), schedule=Schedule(epochs=2, batch=200))
    return model


def test_training_is_its_seed(quick: AlloyModel) -> None:
    data, schedule = sampled_pairs(2000, seed=5), Schedule(epochs=2, batch=200)
    again, _ = train_alloy(data, schedule=schedule)
    other, _ = train_alloy(data, schedule=schedule, seed=1)
    for a, b, c in zip(*(m.sde.parameters() for m in (quick, again, other)), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c) or not a.any()


def test_saved_model_predicts_the_same(quick: AlloyModel, tmp_path: Path) -> None:
    quick.save(tmp_path)
    loaded = load_alloy_model(tmp_path)
    times = np.linspace(0.0, 20.0, 7) * quick.time_unit(1500.0)
    options = {"size": 65536, "seed": 3, "members": 5}
    expected, _ = quick.rollout(1500.0, None, times, **options)
    again, _ = loaded.rollout(1500.0, None, times, **options)
    assert np.array_equal(expected, again)
    assert again.shape == (7, 5, 6)
    assert loaded.card == json.loads(json.dumps(quick.card))
    assert loaded.observables == ["NbNb", "NbMo", "NbTa", "MoMo", "MoTa", "TaTa"]
    assert loaded.temperatures == (600.0, 3000.0)


def test_random_start_is_a_random_mixture(quick: AlloyModel) -> None:
    start, _ = quick.rollout(2000.0, None, np.zeros(1), size=8192, seed=0)
    np.testing.assert_allclose(start[0, 0], -8.0 / 1024 / 3, atol=1e-7)  # z is float32


def test_temperatures_together_are_those_alone(quick: AlloyModel) -> None:
    """Each trajectory in its own time: a table of temperatures is one rollout."""
    kelvin = np.array([700.0, 1500.0, 2900.0])
    times = np.array([0.0, 3.0, 7.25])[:, None] * quick.time_unit(kelvin)
    options = {"size": 8192, "seed": 1}
    together, _ = quick.rollout(kelvin, None, times, **options)
    for b in range(3):
        alone, _ = quick.rollout(kelvin[b], None, times[:, b], members=np.array([b]), **options)
        np.testing.assert_allclose(together[:, b], alone[:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kelvin", [599.0, 3001.0, np.nan, np.array([1000.0, 3500.0])])
def test_other_temperatures_are_refused(quick: AlloyModel, kelvin: float) -> None:
    with pytest.raises(InputError, match="600 to 3000 K"):
        quick.rollout(kelvin, None, np.zeros(1), size=8192, seed=0)


def test_senseless_arguments_are_refused(quick: AlloyModel) -> None:
    with pytest.raises(InputError, match="size"):
        quick.rollout(1000.0, None, np.zeros(1), size=0, seed=0)
    with pytest.raises(InputError, match="times"):
        quick.rollout(1000.0, None, np.array([-1.0]), size=1024, seed=0)
    data = sampled_pairs(20, seed=0)
    with pytest.raises(InputError, match="factor"):
        train_alloy(data, factor=0.0)
    for name, value in {
        "z0": data.z0[:, :2],
        "temperature": -data.temperature,
        "dt": 0 * data.dt,
        "increments": np.nan * data.increments,
        "patches": 0,
    }.items():
        with pytest.raises(InputError, match=name):
            replace(data, **{name: value})


def test_each_loader_names_the_kind_it_wants(quick: AlloyModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.json"):
        load_alloy_model(tmp_path)
    quick.save(tmp_path)
    with pytest.raises(InputError, match="ising-closure"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="undamaged"):
        load_alloy_model(tmp_path)
    (tmp_path / "model.json").write_text('{"kind": "ising-closure"}')
    with pytest.raises(InputError, match="alloy-sro"):
        load_alloy_model(tmp_path)
