"""Increments: extrapolation to lag 0, means in bins against exact laws, files, errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.core.errors import InputError
from mpiflow.files.schema import STANDARD
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.learn.onsagerflow.increments import (
    FieldRun,
    IncrementSums,
    lag_weights,
    rates,
    runs_from_files,
)
from mpiflow.learn.run_dataset import RunDataset

N, DT = 64, 0.1


def free_spins(x: float, frames: int, seed: int, side: int = 16) -> FieldRun:
    """Exact heat-bath dynamics of N free spins a block in a field: x = beta h, T = 1."""
    rng = np.random.default_rng(seed)
    up = rng.integers(0, N + 1, (side, side))
    fields = np.empty((frames, side, side))
    for i in range(frames):
        fields[i] = 2 * up / N - 1
        tried = rng.binomial(up, 1 - np.exp(-DT)), rng.binomial(N - up, 1 - np.exp(-DT))
        up = up - tried[0] + rng.binomial(tried[0] + tried[1], 1 / (1 + np.exp(-2 * x)))
    return FieldRun(fields, DT, 1.0, N, x)


@pytest.mark.parametrize("lags", [(1,), (1, 2), (1, 2, 3), (1, 2, 4)])
def test_extrapolation_is_exact_for_polynomials_of_all_lags(lags: tuple[int, ...]) -> None:
    t = np.array(lags, float)
    for power in range(len(lags)):
        assert lag_weights(lags) @ t**power == pytest.approx(float(power == 0), abs=1e-12)
    # One more power is the error that is left.
    assert abs(lag_weights(lags) @ t ** len(lags)) == pytest.approx(t.prod())


@pytest.mark.parametrize("lags", [(1,), (1, 2), (1, 2, 3)])
def test_rates_at_lag_0_have_the_order_of_the_number_of_lags(lags: tuple[int, ...]) -> None:
    """Of a field that relaxes without noise the rate is exact but for dt^L."""
    errors = []
    for dt in (0.1, 0.05):
        decay = np.exp(-dt * np.array(lags)) - 1.0
        r, _ = rates(0.7 * decay[:, None, None], dt, N, lags)
        errors.append(abs(r[0, 0] + 0.7))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(len(lags), abs=0.15)


def test_free_spins_have_the_exact_drift_and_variance() -> None:
    """Bins of one value of m each; the exact laws are those of the module."""
    x, th = 0.5, np.tanh(0.5)
    sums = IncrementSums(np.linspace(-1, 1, N + 2))
    for number in range(8):
        sums.add(free_spins(x, 1500, number), number)
    local = sums.local()
    good = local.count > 5000
    m = local.m[good]
    assert good.sum() > 20
    for value, error, exact in (
        (local.drift, local.drift_error, th - m),
        (local.half_variance, local.half_variance_error, 1 - m * th),
        (local.equilibrium, local.equilibrium_error, 1 - m * m),
    ):
        z = (value[good] - exact) / error[good]
        assert np.mean(z**2) < 1.8
        assert abs(z).max() < 4.5
        assert np.median(error[good]) < 0.03
    # One x only: the variance alone is not K / beta = 1 - m^2 away from m = tanh x.
    z = (local.half_variance[good] - (1 - m * m)) / local.half_variance_error[good]
    assert np.mean(z**2) > 20
    # At lag 1 the variance is short by (3/2) dt or so of itself: this is what lags are for.
    short = sums.at_lag(0)[1][good, 0] / (1 - m * th) - 1
    assert abs(np.average(short, weights=local.count[good])) > 0.02


def test_sums_add_up_over_runs_and_ranks() -> None:
    a, b = free_spins(0.2, 40, 1), free_spins(0.2, 40, 2)
    both, one, two = IncrementSums(), IncrementSums(), IncrementSums()
    both.add(a, 0)
    both.add(b, 1)
    one.add(a, 0)
    two.add(b, 1)
    one += two
    np.testing.assert_allclose(one.sums, both.sums, atol=1e-12)
    one.reduce(MPI.COMM_SELF)
    np.testing.assert_allclose(one.sums, both.sums, atol=1e-12)
    assert both.sums[..., 0].sum() == 2 * (40 - 3) * 16 * 16


def test_a_second_value_splits_the_bins() -> None:
    run = free_spins(0.2, 40, 1)
    whole = IncrementSums()
    whole.add(run)
    split = IncrementSums(second_edges=np.array([-2.0, 0.0, 2.0]))
    split.add(run, second=lambda m, run: m + 0.1 * run.beta)
    np.testing.assert_allclose(split.sums.sum(axis=2), whole.sums[:, :, 0], atol=1e-12)
    m = split.local().m
    assert np.nanmax(m[:, 0]) < -0.05
    assert split.local().drift.shape == (41, 2)


def write(path: Path, frames: np.ndarray, times: np.ndarray, **config: object) -> None:
    about = {"system": "kac", "seed": 0, "rng": "none", "decomposition_invariant": 1}
    with TrajectoryWriter(
        path,
        dims={"y": frames.shape[1], "x": frames.shape[2]},
        variables=[STANDARD["coarse_magnetization"]],
        attributes={**about, "config_json": json.dumps(config)},
    ) as out:
        for time, frame in zip(times, frames, strict=True):
            out.append(time, {"coarse_magnetization": frame})


def test_runs_of_files_give_the_windows_of_their_arrays(tmp_path: Path) -> None:
    frames = np.random.default_rng(5).uniform(-1, 1, (9, 8, 8)).astype(np.float32)
    h = np.random.default_rng(6).uniform(-1, 1, (32, 32))
    np.save(tmp_path / "h.npy", h)
    config = {"gamma": 4.0, "coarse": 4, "temperature": 1.5, "field": 0.1}
    write(tmp_path / "a.h5", frames, 0.2 * np.arange(9), **config)
    times = np.append(0.2 * np.arange(8), 1.5)  # the end is no multiple of the interval
    write(tmp_path / "b.h5", frames, times, **config, field_file=str(tmp_path / "h.npy"))
    a, b = runs_from_files(tmp_path)
    assert (a.temperature, a.spins, a.field) == (1.5, 16, 0.1)
    assert a.interval == pytest.approx(0.2)
    np.testing.assert_allclose(b.field, 0.1 + h.reshape(8, 4, 8, 4).mean(axis=(1, 3)))
    for run, n in ((a, 9), (b, 8)):
        array = FieldRun(frames[:n], 0.2, 1.5, 16)
        pairs = list(zip(run.windows((1, 2)), array.windows((1, 2)), strict=True))
        assert sum(len(given[0]) for given, _ in pairs) == n - 2
        for given, expected in pairs:
            for one, two in zip(given, expected, strict=True):
                np.testing.assert_array_equal(one, two)
    data = RunDataset([tmp_path / "b.h5", tmp_path / "a.h5"])
    one, two = runs_from_files(data)
    np.testing.assert_array_equal(one.fields[2:5], frames[2:5])
    assert np.ndim(two.field) == 0
    (part,) = runs_from_files(data.of_runs([1]))
    np.testing.assert_array_equal(part.fields[0:9], frames)
    with pytest.raises(InputError, match="coarse_magnetization"):
        data.variables = ("energy",)
        runs_from_files(data)
    first, second, _ = zip(*a.windows((1, 2)), strict=True)
    np.testing.assert_array_equal(np.concatenate(first), frames[:7].astype(float))
    steps = np.concatenate(second, axis=1)
    np.testing.assert_array_equal(steps[1], frames[2:].astype(float) - frames[:7])


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    fields = np.zeros((5, 8, 8))
    good = FieldRun(fields, 0.1, 1.0, 64)
    for change in ({"fields": np.zeros((5, 8, 6))}, {"interval": 0.0}, {"temperature": -1.0},
                   {"spins": 0}, {"field": np.zeros(3)}):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(change))):
            FieldRun(**{**vars(good), **change})
    for lags in ((), (0, 1), (2, 1), (1, 1)):
        with pytest.raises(InputError, match="lags"):
            list(good.windows(lags))
    with pytest.raises(InputError, match="frames"):
        list(good.windows((5,)))
    with pytest.raises(InputError, match="edges"):
        IncrementSums(np.array([1.0, 0.0]))
    with pytest.raises(InputError, match="groups"):
        IncrementSums().local()
    with pytest.raises(InputError, match="fields"):
        list(FieldRun(fields * np.nan, 0.1, 1.0, 64).windows((1,)))
    write(tmp_path / "a.h5", fields, np.arange(5) ** 2.0, coarse=8, temperature=1.0)
    with pytest.raises(InputError, match="equal times"):
        runs_from_files(tmp_path / "a.h5")
    write(tmp_path / "b.h5", fields, np.arange(5.0), temperature=1.0)
    with pytest.raises(InputError, match="--coarse"):
        runs_from_files(tmp_path / "b.h5")
    write(tmp_path / "c.h5", fields[..., :6], np.arange(5.0), coarse=8, temperature=1.0)
    with pytest.raises(InputError, match=r"c\.h5.*square"):
        runs_from_files(tmp_path / "c.h5")
