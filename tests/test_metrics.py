"""Metrics against their definitions and against processes with known answers."""

from __future__ import annotations

from pathlib import Path

import exact
import numpy as np
import pytest
from mpi4py import MPI
from scipy.signal import lfilter

from mpiflow import Ising, Simulation, Trajectory, initial, metrics, record
from mpiflow.core.errors import InputError


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


# -- relaxation to a stationary state ------------------------------------------------------------


def relaxing(
    rng: np.random.Generator, runs: int, times: np.ndarray, rate: float, start: float, spread: float
) -> np.ndarray:
    """Ornstein-Uhlenbeck runs about 0, (runs, times, 1), exact at any step."""
    x = np.full(runs, start)
    out = [x]
    for step in np.diff(times):
        decay = np.exp(-rate * step)
        x = x * decay + spread * np.sqrt(1 - decay**2) * rng.normal(size=runs)
        out.append(x)
    return np.array(out).T[..., None]


def test_half_time_of_exponentials_and_lines() -> None:
    times = np.linspace(0.0, 10.0, 20001)
    rates = np.array([0.5, 1.0, 3.0])
    ends = np.array([2.0, -1.0, 0.5])
    decay = np.exp(-rates * times[:, None])
    values = ends + (1.0 - ends) * decay
    found = metrics.half_time(times, values, ends)
    np.testing.assert_allclose(found, np.log(2.0) / rates, rtol=1e-6)
    # Between two samples the value is on a line, at times that are not evenly spaced too.
    line = np.array([[0.0], [0.2], [1.0]])
    np.testing.assert_allclose(
        metrics.half_time(np.array([1.0, 2.0, 6.0]), line, np.array([1.0])), [2.0 + 4.0 * 0.3 / 0.8]
    )
    np.testing.assert_allclose(
        metrics.half_time(np.array([0.0, 3.0]), np.array([[4.0], [2.0]]), np.array([2.0])), [1.5]
    )


def test_half_time_is_nan_where_half_the_way_is_never_made() -> None:
    times = np.arange(4.0)
    # Not yet there; never moved, and need not; the wrong way; moved, and need not.
    columns = [[0.0, 0.1, 0.2, 0.4], [1.0] * 4, [0.0, -1.0, -2.0, -3.0], [1.0, 2.0, 3.0, 4.0]]
    values = np.array(columns).T
    found = metrics.half_time(times, values, np.array([1.0, 1.0, 1.0, 1.0]))
    assert np.isnan(found).all()
    broken = metrics.half_time(times, np.full((4, 1), np.nan), np.array([1.0]))
    assert np.isnan(broken).all()


def test_relaxation_of_an_ornstein_uhlenbeck_process() -> None:
    """Mean 0, spread and half-time log 2 / rate known exactly; the errors cover them."""
    rng = np.random.default_rng(6)
    times, rate, spread = np.linspace(0.0, 15.0, 301), 1.0, 0.3
    exact = {"mean": 0.0, "spread": spread, "half_time": np.log(2.0) / rate}
    scores: dict[str, list[float]] = {name: [] for name in exact}
    for _ in range(100):
        runs = relaxing(rng, 40, times, rate, -2.0, spread)
        found = metrics.relaxation(times, runs, 7.0)
        assert set(found) == {*exact, *(f"{name}_error" for name in exact)}
        for name, value in exact.items():
            assert found[name].shape == found[f"{name}_error"].shape == (1,)
            scores[name].append((found[name][0] - value) / found[f"{name}_error"][0])
    for name, values in scores.items():
        # Mean 0 and standard deviation 1, of 100 values with heavier tails than a Gaussian's.
        assert abs(np.mean(values)) < 0.4, name
        assert 0.8 < np.std(values) < 1.3, name


def test_relaxation_of_runs_known_by_hand() -> None:
    """Two runs that stand still: exact mean, spread, and errors of two values."""
    times = np.arange(5.0)
    runs = np.zeros((2, 5, 2))
    runs[0, 1:], runs[1, 1:] = [1.0, -2.0], [3.0, -4.0]
    found = metrics.relaxation(times, runs, 1.0)
    np.testing.assert_allclose(found["mean"], [2.0, -3.0])
    np.testing.assert_allclose(found["spread"], np.sqrt([2.0, 2.0]))
    assert np.isnan(found["spread_error"]).all()
    np.testing.assert_allclose(found["half_time"], [0.5, 0.5])
    np.testing.assert_allclose(found["mean_error"], [1.0, 1.0])
    np.testing.assert_allclose(found["half_time_error"], [0.0, 0.0], atol=1e-15)


def test_relaxation_of_a_single_run_has_no_errors() -> None:
    times = np.linspace(0.0, 10.0, 101)
    run = (1.0 - np.exp(-times))[None, :, None]
    found = metrics.relaxation(times, run, 8.0)
    assert found["mean"] == pytest.approx(1.0, abs=1e-3)
    assert found["half_time"] == pytest.approx(np.log(2.0), rel=1e-2)
    for name in ("mean", "spread", "half_time"):
        assert np.isnan(found[f"{name}_error"]).all()


def test_errors_of_a_half_time_that_is_not_there() -> None:
    runs = np.zeros((4, 5, 1))
    found = metrics.relaxation(np.arange(5.0), runs, 2.0)
    assert np.isnan(found["half_time"]).all()
    assert np.isnan(found["half_time_error"]).all()
    assert found["mean"] == found["spread"] == found["mean_error"] == 0.0


def test_squared_mmd_of_normal_samples() -> None:
    """Of N(0, 1) and N(d, 1) with k of width s: closed form; unbiased has the mean 0 at d = 0."""
    rng = np.random.default_rng(5)
    s, d = 1.5, 0.7

    def overlap(shift: float) -> float:  # E k(x, y) for x - y of N(shift, 2)
        return s / np.sqrt(s * s + 2) * np.exp(-(shift**2) / (2 * (s * s + 2)))

    for shift in (0.0, d):
        expected = 2 * overlap(0.0) - 2 * overlap(shift)
        found = [
            metrics.squared_mmd(rng.normal(size=300), rng.normal(shift, 1, 300), [s])
            for _ in range(40)
        ]
        assert abs(np.mean(found) - expected) < 4 * np.std(found) / np.sqrt(40)
    x = rng.normal(size=(50, 2))
    assert metrics.squared_mmd(x, x, biased=True) == pytest.approx(0.0, abs=1e-12)
    assert metrics.squared_mmd(x, x) < 0


def test_structure_factor() -> None:
    rng = np.random.default_rng(6)
    edges = np.array([0.5, 2.5, 6.5, 12.5])
    value, count = metrics.structure_factor(rng.normal(0, 0.3, (200, 32, 32)), edges)
    error = 0.09 * np.sqrt(2 / count / 200)
    assert (abs(value.mean(axis=0) - 0.09) < 4 * error).all()
    x = np.arange(32)
    wave = 0.2 * np.cos(2 * np.pi * 3 * x / 32) + 5.0
    value, count = metrics.structure_factor(np.tile(wave, (32, 1)), edges)
    np.testing.assert_allclose(value * count, [0, 0.02 * 32**2, 0], atol=1e-10)  # all of m^2
    assert count[0] == 20  # of 25 in the square, without its corners and 0


def test_two_point_correlation() -> None:
    x = np.random.default_rng(9).normal(0.4, 1.0, (3, 8, 8))
    by_hand = [
        np.mean([x * np.roll(x, r, axis) for axis in (1, 2)], axis=(0, 2, 3))
        - x.mean(axis=(1, 2)) ** 2
        for r in range(4)
    ]
    np.testing.assert_allclose(metrics.two_point_correlation(x).T, by_hand, atol=1e-12)


def test_exponential_waits_that_were_cut_off() -> None:
    rng = np.random.default_rng(7)
    found = []
    for _ in range(300):
        waits = np.sort(rng.exponential(8.0, 40))
        cut = waits[24]  # until 25 have ended
        mean, error = metrics.exponential_mean(np.minimum(waits, cut), waits <= cut)
        assert error == pytest.approx(mean / 5)
        found.append(mean)
    assert abs(np.mean(found) - 8.0) < 4 * np.std(found) / np.sqrt(300)
    assert metrics.exponential_mean(np.ones(3), np.zeros(3))[0] == np.inf


def ar1(phi: float, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Stationary series of variance 1, (times, members)."""
    rng = np.random.default_rng(seed)
    kicks = rng.normal(size=shape)
    kicks[1:] *= np.sqrt(1 - phi**2)
    return lfilter([1.0], [1.0, -phi], kicks, axis=0)


def test_errors_of_autocorrelation_times_are_their_spread() -> None:
    phi = 0.8
    exact = (1 + phi) / (1 - phi)
    found = np.array([metrics.autocorrelation_time(x) for x in ar1(phi, (20_000, 100), 3).T])
    mean, spread, error = found[:, 0].mean(), found[:, 0].std(ddof=1), found[:, 1].mean()
    # Of a hundred series, spread and mean are known to 7 and 10 % of the spread: 6 of these.
    assert abs(mean - exact) < 0.6 * spread + 0.02 * exact  # the window leaves out e^-5
    assert 0.58 < error / spread < 1.42
    # Of members together: one of a hundred times as many samples.
    value, error = metrics.autocorrelation_time(ar1(phi, (2_000, 100), 4))
    assert abs(value - exact) < 6 * error + 0.02 * exact
    assert error < 0.15 * exact


def test_errors_of_variances_are_their_spread() -> None:
    found = np.array([metrics.fluctuation(x) for x in ar1(0.8, (5_000, 200), 5).T])
    mean, spread, error = found[:, 0].mean(), found[:, 0].std(ddof=1), found[:, 1].mean()
    assert abs(mean - 1.0) < 6 * spread / np.sqrt(200)
    assert 0.7 < error / spread < 1.3  # each of the 200 is known to some 20 %
    assert np.isnan(metrics.fluctuation(np.arange(3.0))[1])


def enumerated(temperature: float) -> tuple[float, float, float]:
    """Specific heat and susceptibilities, of m and of |m|, of all states of 4 x 4 spins."""
    law, states = exact.gibbs((4, 4), temperature), exact.states((4, 4))

    def variance(x: np.ndarray) -> float:
        return float((law * x * x).sum() - (law * x).sum() ** 2)

    m = exact.magnetizations(states)
    heat = variance(exact.energies(states)) / 16 / temperature**2
    return heat, variance(m) / 16 / temperature, variance(abs(m)) / 16 / temperature


def test_fluctuations_of_sixteen_spins_are_those_of_all_states(tmp_path: Path) -> None:
    temperature, out = 3.0, tmp_path / "run.h5"
    sim = Simulation(Ising(temperature), 4, dt=0.5, members=64, seed=6, comm=MPI.COMM_SELF)
    sim.set_spins(initial.shuffled, magnetization=0.0)
    record(sim, out, time=1020, save_every=1, progress=False)  # steps leave this law as it is
    heat, of_m, of_size = enumerated(temperature)
    with Trajectory(out) as run:
        found = [
            (metrics.specific_heat(run, after=20), heat),
            (metrics.susceptibility(run, after=20), of_m),
            (metrics.susceptibility(run, after=20, absolute=True), of_size),
        ]
        m = run["magnetization"][20:]
    assert metrics.susceptibility(m, temperature=temperature, sites=16) == found[1][0]
    for (value, error), known in found:  # six standard errors: one run in 5e8 fails
        assert abs(value - known) < 6 * error
        assert error < 0.03 * known
    with pytest.raises(InputError, match="temperature, sites"):
        metrics.susceptibility(m)
    with Trajectory(out) as run, pytest.raises(InputError, match="2 frames or more"):
        metrics.specific_heat(run, after=2000)


def test_spectra_of_rectangles_add_up_and_have_their_wave_numbers() -> None:
    field = np.random.default_rng(7).normal(size=(12, 20))
    assert metrics.spectrum(field).mean() == pytest.approx((field**2).mean(), rel=1e-12)
    x = np.tile(np.arange(20), (12, 1))
    wave = np.cos(2 * np.pi * x * 5 / 20)  # 3 in units of 2 pi / 12
    value, count = metrics.structure_factor(wave, np.arange(7) + 0.5)
    assert np.argmax(value) == 2
    assert value[2] * count[2] == pytest.approx(120.0)  # half of N in each of two waves
    by_hand = [
        0.5 * ((wave * np.roll(wave, r, 0)).mean() + (wave * np.roll(wave, r, 1)).mean())
        for r in range(6)
    ]
    np.testing.assert_allclose(metrics.two_point_correlation(wave), by_hand, atol=1e-12)
