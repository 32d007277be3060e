"""Whether a learned law says that it holds for its data, and how large its errors are."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.learn.onsagerflow.fit import learn
from mpiflow.learn.onsagerflow.from_files import table
from mpiflow.learn.onsagerflow.increments import FieldRun
from mpiflow.learn.onsagerflow.model import OnsagerFlow, load_onsagerflow
from mpiflow.learn.residuals import doubts
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import ExactLaw
from mpiflow.systems.kac import kac_kernel

SIDE, BLOCK, GAMMA, FRAMES = 16, 8, 4.0, 41
KERNEL = kac_kernel(GAMMA)


def field(seed: int, temperature: float, mean: float) -> StochasticField:
    """Jumps of spins with the exact law, from a rough field."""
    law = ExactLaw(1 / temperature, "cosh")
    out = StochasticField(
        law, KERNEL, (SIDE, SIDE), block=BLOCK, dt=0.05, seed=seed, comm=MPI.COMM_SELF
    )
    waves = np.random.default_rng(seed).standard_normal((SIDE, SIDE))
    k = np.fft.fftfreq(SIDE)[:, None] ** 2 + np.fft.rfftfreq(SIDE) ** 2
    rough = np.fft.irfft2(np.fft.rfft2(waves) * np.exp(-20 * k), s=(SIDE, SIDE))
    out.set(np.tanh(mean + 0.7 * rough / rough.std()))
    return out


def observed(seed: int, hidden: bool = False) -> list[FieldRun]:
    """Four runs; ``hidden``: time passes three times as fast at first, which no m tells."""
    runs = []
    for number, (t, mean) in enumerate(((0.8, -0.3), (0.8, 0.4), (1.25, 0.0), (1.25, 0.6))):
        moving = field(10 * seed + number, t, mean)
        frames = [moving.m[0]]
        for frame in range(FRAMES - 1):
            moving.advance((6 if frame < FRAMES // 2 else 2) if hidden else 2)
            frames.append(moving.m[0])
        runs.append(FieldRun(np.stack(frames), 0.1, t, BLOCK**2))
    return runs


def learned(seed: int, hidden: bool = False) -> OnsagerFlow:
    return learn(
        observed(seed, hidden), radius=3, mobility_terms=2, entropy_terms=1, temperature_degree=0,
        iterations=40,
    )  # fmt: skip


@cache
def good() -> OnsagerFlow:
    return learned(1)


def pulls(model: OnsagerFlow) -> tuple[np.ndarray, np.ndarray]:
    """Differences to the truth over errors: of ln kappa and beta s', and of J."""
    basis = model.form.kernel_basis(SIDE).reshape(-1, SIDE * SIDE)
    hat = field(0, 1.0, 0.0)._symbol
    dense = np.fft.irfft2(hat, s=(SIDE, SIDE)).ravel()
    of_j = np.linalg.lstsq(basis.T, dense, rcond=None)[0]
    assert np.allclose(of_j @ basis, dense, atol=1e-4)
    truth = np.concatenate([[0.0, 0.0, 1.0, 0.0], of_j])
    off = (model.coefficients - truth) / np.sqrt(np.diag(model.covariance))
    return off[:4], off[4:]


def test_a_law_that_holds_is_not_doubted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = good()
    assert model.card["doubts"] == []
    for row in model.card["temperatures"].values():
        of = row["goodness"]
        assert of["explained_drift"][0] > 0.97
        for name, value in (("variance", 1), ("time_correlation", 0), ("space_correlation", 0),
                            ("mean", 0), ("kurtosis", of["expected_kurtosis"])):  # fmt: skip
            assert abs(of[name][0] - value) < 6 * of[name][1] + 0.02, (name, of[name])
        for parts in (of["drift_of_parts"], of["variance_of_parts"]):
            assert len(parts) == 4
            assert all(abs(v - 1) < 5 * e for v, e in parts)


def test_one_that_does_not_hold_says_so_everywhere(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="do not obey an equation of this kind.*T = 0.8: in a"):
        model = learned(1, hidden=True)
    text = " ".join(model.card["doubts"])
    assert "its drift is off by a factor of" in text
    assert "its noise is off by a factor of" in text
    assert "warning: the data do not obey such a law: T = 0.8: in a quarter" in table(model, "x")
    model.save(tmp_path / "model")
    again = load_onsagerflow(tmp_path / "model")
    assert again.card["doubts"] == model.card["doubts"]
    with pytest.warns(UserWarning, match="do not obey"):
        again.field(0.8, (8, 8), block=BLOCK)


def test_memory_is_found() -> None:
    """Increments that go on: what they do next can be told from the step before, and not from m."""
    rng, runs = np.random.default_rng(3), []
    for number in range(2):
        moving = field(number, 1.25, 0.3)
        m, kept = moving.m[0], np.zeros((SIDE, SIDE))
        frames = [m]
        for _ in range(80):
            pull = np.tanh((moving.convolve(m[None])[0]) / 1.25) - m
            noise = np.sqrt(0.2 * (1 - m * m) / BLOCK**2) * rng.standard_normal(m.shape)
            kept = 0.1 * pull + 0.5 * kept + noise
            m = np.clip(m + kept, -0.97, 0.97)
            frames.append(m)
        runs.append(FieldRun(np.stack(frames), 0.1, 1.25, BLOCK**2))
    with pytest.warns(UserWarning, match="do not obey"):
        model = learn(runs, radius=3, mobility_terms=2, entropy_terms=1, iterations=40)
    report = model.card["temperatures"]["1.25"]["goodness"]
    assert report["explained_drift"][0] < 0.9
    assert any("correlated in time" in text for text in doubts(report))


def test_errors_are_the_right_size() -> None:
    """Of J, s' and K by one set of runs: 10 pulls of J, 4 others; chance below 1e-8 each."""
    of_laws, of_j = pulls(good())
    assert 0.25 < np.sqrt(np.mean(of_j**2)) < 2.5
    assert np.abs(of_laws).max() < 6


@pytest.mark.validate
def test_pulls_have_a_standard_deviation_of_one() -> None:
    """48 sets of runs. Pulls of one set are correlated, so that 0.1 is about two errors."""
    found = [pulls(learned(seed)) for seed in range(48)]
    of_laws, of_j = (np.array(column) for column in zip(*found, strict=True))
    assert np.sqrt(np.mean(of_laws**2)) == pytest.approx(1, abs=0.2)
    assert np.sqrt(np.mean(of_j**2)) == pytest.approx(1, abs=0.1)
