"""OnsagerFlow: learned from exact Gaussian increments, and from a microscopic Kac run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from mpi4py import MPI

from mpiflow import initial
from mpiflow.core.errors import InputError
from mpiflow.learn.generator.model import true_kernel
from mpiflow.learn.onsagerflow.fit import binned, learn, local_means
from mpiflow.learn.onsagerflow.increments import FieldRun
from mpiflow.learn.onsagerflow.model import Form, OnsagerFlow, _rows, load_onsagerflow
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.solvers.field.transforms import TorchPulls
from mpiflow.systems.field_law import FiniteLaw, Law
from mpiflow.systems.kac import Kac

N, SIDE, GAMMA, BLOCK = 64, 24, 8.0, 8
KERNEL = true_kernel(Kac(1.0, GAMMA), SIDE, BLOCK)
M = np.linspace(-0.9, 0.9, 37)


def felt(m: np.ndarray) -> np.ndarray:
    return np.fft.irfft2(np.fft.rfft2(m) * np.fft.rfft2(KERNEL), s=m.shape[-2:])


def kappa(m: np.ndarray) -> np.ndarray:
    return np.exp(0.2 + 0.3 * (m * m - 0.5))


def entropy(m: np.ndarray) -> np.ndarray:
    """beta s' of the synthetic law."""
    return np.arctanh(m) + 0.4 * m


def synthetic(structure: str, temperature: float, seed: int, pairs: int = 300) -> FieldRun:
    """Pairs of fields, Gaussian increments whose first two moments are exactly those at lag 0.

    Pairs are members of a run of two frames. m is spread round local equilibrium as it is there,
    and h is different in each place.
    """
    rng, dt = np.random.default_rng(seed), 0.02
    waves = rng.standard_normal((pairs, SIDE, SIDE))
    k = np.fft.fftfreq(SIDE)[:, None] ** 2 + np.fft.rfftfreq(SIDE) ** 2
    g = np.fft.irfft2(np.fft.rfft2(waves) * np.exp(-60 * k), s=(SIDE, SIDE))
    middle = 0.9 * np.tanh(1.5 * g[:1] / g[0].std())
    h = temperature * entropy(middle) - felt(middle)
    m = middle + rng.standard_normal(waves.shape) * np.sqrt((1 - middle**2) / N)
    m = np.clip(m, -0.96, 0.96)
    y = entropy(m) - (felt(m) + h) / temperature
    x = np.arctanh(m) - y
    if structure == "cosh":
        d, v = kappa(m) * (np.tanh(x) - m), kappa(m) * (1 - m * np.tanh(x))
    else:
        v = kappa(m) * (1 - m * m)
        d = -v * y + kappa(m) * (0.6 * m * (1 - m * m) - 2 * m) / (2 * N)
    spread = np.sqrt(2 * v * dt / N - (dt * d) ** 2)
    after = m + dt * d + spread * rng.standard_normal(m.shape)
    return FieldRun(np.stack([m, after]), dt, temperature, N, h[0])


@cache
def learned(structure: str) -> OnsagerFlow:
    runs = [synthetic(structure, t, 10 * i + j)
            for i, t in enumerate((0.8, 1.25)) for j in range(8)]  # fmt: skip
    return learn(runs, structure=structure, lags=(1,), radius=4, within=4.0)


@pytest.mark.parametrize("structure", ["cosh", "langevin"])
def test_the_synthetic_law_is_learned_within_its_errors(structure: str) -> None:
    model = learned(structure)
    for t in (0.8, 1.25):
        error_k, error_s = model.errors(M, t)
        z_k = (model.mobility(M, t) - kappa(M) * (1 - M * M) / t) / error_k
        # In the gauge sum J = 1, which is that of KERNEL.
        z_s = (model.entropy_derivative(M, t) - t * entropy(M))[M != 0] / error_s[M != 0]
        assert np.mean(z_k**2) < 4
        assert np.mean(z_s**2) < 4
        assert (error_k / model.mobility(M, t)).max() < 0.05
        assert (error_s / t).max() < 0.05
    size = np.linalg.norm(KERNEL)
    distance = np.linalg.norm(model.kernel_on(SIDE) - KERNEL) / size
    assert distance < 0.1
    assert 0.4 < distance / model.kernel_error < 2.0
    assert model.kernel.sum() == pytest.approx(1.0, abs=1e-9)
    assert model.kernel.shape == (9, 9)
    assert model.kernel[4, 4] == pytest.approx(model.kernel.max())


def test_mobility_of_the_tables_is_that_of_the_variance() -> None:
    runs = [synthetic("cosh", 1.25, j) for j in range(8)]
    (table,) = (sums.local() for sums in binned(runs, (1,)).values())
    good = (table.count > 2000) & (abs(table.m) < 0.9)
    m = table.m[good]
    z = (table.equilibrium[good] - kappa(m) * (1 - m * m)) / table.equilibrium_error[good]
    assert good.sum() > 25
    assert np.mean(z**2) < 2.0


@cache
def microscopic(temperature: float, members: int, seed: int) -> FieldRun:
    """A Kac lattice with h(x) that holds m of all sizes near local equilibrium."""
    target = initial.smooth_profile((SIDE, SIDE), seed=seed, correlation_length=4, amplitude=1.0)
    target = 0.93 * np.tanh(1.2 * target)
    h = temperature * np.arctanh(target) - target
    system = Kac(temperature, GAMMA, 0.0)
    sim = KacSimulation(
        system, SIDE * BLOCK, solver="midpoint", tau=0.1, seed=seed, granularity=BLOCK,
        comm=MPI.COMM_SELF, site_field=np.kron(h, np.ones((BLOCK, BLOCK))),
    )  # fmt: skip
    sim.set_spins(initial.profile, means=0.8 * target)
    frames = []
    for _ in range(members):
        frames.append(sim.coarse_sums(BLOCK)[0] / BLOCK**2)
        sim.advance(0.1)
    return FieldRun(np.array(frames), 0.1, temperature, N, h)


def kac_runs() -> list[FieldRun]:
    return [microscopic(t, 150, seed) for t in (0.8, 1.25) for seed in (1, 2, 3)]


@cache
def kac_model() -> OnsagerFlow:
    return learn(kac_runs(), radius=4, mobility_terms=3, entropy_terms=2, temperature_degree=1)


def test_a_microscopic_run_of_a_second_gives_k_s_and_j() -> None:
    """The exact law: K = beta (1 - m^2), s' = artanh(m) / beta, J that of blocks."""
    model = kac_model()
    for t in (0.8, 1.25):
        k = model.mobility(M, t) * t / (1 - M * M) - 1
        s = model.entropy_derivative(M, t) / t - np.arctanh(M)
        assert np.sqrt(np.mean(k * k)) < 0.05
        assert np.linalg.norm(s) / np.linalg.norm(np.arctanh(M)) < 0.05
    distance = np.linalg.norm(model.kernel_on(SIDE) - KERNEL) / np.linalg.norm(KERNEL)
    assert distance < min(0.25, 2.5 * model.kernel_error)
    assert model.card["monotone"]


def test_cosh_is_right_where_a_single_mobility_is_not() -> None:
    """Away from local equilibrium, at y of 0.4 and m of 0.6, variance and drift differ from K."""
    model = kac_model()
    runs = [run for run in kac_runs() if run.temperature == 0.8]
    edges, y_edges = np.linspace(-0.85, 0.85, 18), np.linspace(-0.55, 0.55, 12)
    local = local_means(model, runs, edges, y_edges)
    middle = 0.5 * (y_edges[1:] + y_edges[:-1])
    y = np.broadcast_to(middle, local.m.shape)
    good = (local.count > 500) & (abs(y) > 0.15) & (abs(local.m) > 0.4)
    assert good.sum() > 20
    chi = {}
    for structure in ("cosh", "langevin"):
        v = model.with_structure(structure).half_variance(local.m, y, 0.8)
        z = (local.half_variance - v)[good] / local.half_variance_error[good]
        chi[structure] = float(np.mean(z**2))
    assert chi["cosh"] < 2.5
    assert chi["langevin"] > 2 * chi["cosh"]


def test_ranks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks one after the other: the sums of each are what it would send."""
    runs = [synthetic("cosh", 1.25, j, pairs=20) for j in range(4)]

    class Rank:
        size = 2

        def __init__(self, rank: int) -> None:
            self.rank = rank

        @staticmethod
        def allreduce(values: np.ndarray) -> np.ndarray:
            return values

    (whole,) = binned(runs, (1,)).values()
    parts = [next(iter(binned(runs, (1,), comm=Rank(r)).values())) for r in (0, 1)]  # type: ignore
    np.testing.assert_allclose(parts[0].sums + parts[1].sums, whole.sums)


def test_a_saved_model_is_the_same_and_warns_outside(tmp_path: Path) -> None:
    model = learned("cosh")
    model.save(tmp_path / "model")
    again = load_onsagerflow(tmp_path / "model")
    assert again.form == model.form
    assert json.loads(json.dumps(model.card)) == again.card
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in (0.8, 1.0, 1.25):
            np.testing.assert_array_equal(again.mobility(M, t), model.mobility(M, t))
        t = np.array([[0.9], [1.1]])
        assert model.mobility(M, t).shape == (2, 37)
        np.testing.assert_allclose(model.entropy_derivative(M, t)[1],
                                   model.entropy_derivative(M, 1.1))  # fmt: skip
    np.testing.assert_array_equal(again.kernel, model.kernel)
    with pytest.warns(UserWarning, match="learned from 0.8 to 1.25"):
        model.mobility(M, 2.0)
    with pytest.warns(UserWarning, match="learned up to 0.9"):
        model.entropy_derivative(np.array([0.999]), 1.0)
    with pytest.raises(InputError, match="temperature"):
        model.mobility(M, -1.0)
    (tmp_path / "model" / "model.json").write_text("{}")
    with pytest.raises(InputError, match="onsagerflow"):
        load_onsagerflow(tmp_path / "model")


def slope(function: Callable[[np.ndarray], np.ndarray], m: np.ndarray) -> np.ndarray:
    return (function(m + 1e-5) - function(m - 1e-5)) / 2e-5


@pytest.mark.parametrize("structure", ["cosh", "langevin"])
def test_laws_for_integrators_are_consistent(structure: str) -> None:
    law = learned(structure).at(0.9)
    assert law.structure == structure
    assert law.beta == pytest.approx(1 / 0.9)
    np.testing.assert_allclose(slope(law.entropy, M), law.entropy_derivative(M), atol=1e-7)
    np.testing.assert_allclose(slope(law.mobility, M), law.mobility_slope(M), atol=1e-7)
    assert law.entropy(np.zeros(1))[0] == 0
    assert (law.mobility(np.linspace(-1, 1, 99)) >= 0).all()
    share = 1 - M * M
    np.testing.assert_allclose(law.mobility(M), law.beta * law.prefactor(M) * share)
    table = learned(structure).table(0.9, 101)
    assert all(len(v) == 101 and np.isfinite(v).all() for v in table.values())


@pytest.mark.parametrize("merge", [1, 2, 3])
def test_kernels_of_merged_blocks(merge: int) -> None:
    """J of merged blocks is the mean of J over pairs of their parts; small grids fold it."""
    model = learned("cosh")
    points = 3 * merge * (2 * model.form.radius // merge + 1)
    fine = model.kernel_on(points)
    rows = (np.arange(points)[:, None] - np.arange(points)) % points
    dense = fine[rows[:, None, :, None], rows[None, :, None, :]]
    n = points // merge
    shape = (n, merge, n, merge, n, merge, n, merge)
    mean = dense.reshape(shape).sum(axis=(5, 7)).mean(axis=(1, 3))[0, 0]
    got = scipy.fft.irfft2(model.symbol((n, n), merge), s=(n, n))
    np.testing.assert_allclose(got, mean, atol=1e-12)
    small = scipy.fft.irfft2(model.symbol((n // 3, n), merge), s=(n // 3, n))
    np.testing.assert_allclose(small, mean.reshape(3, n // 3, n).sum(axis=0), atol=1e-12)
    whole = model.symbol((n, 64), merge)
    for first in range(33):  # ranks have other columns, and the same bits
        for last in (first + 1, min(first + 3, 33), 33):
            part = model.symbol((n, 64), merge, slice(first, last))
            np.testing.assert_array_equal(part, whole[:, first:last])
    with pytest.raises(InputError, match="merge"):
        model.symbol((8, 8), 0)


@pytest.mark.parametrize("structure", ["cosh", "langevin"])
def test_a_field_of_a_learned_law(structure: str) -> None:
    """Its blocks have the entropy of their spins, and feel J; the same from parts by hand."""
    model = learned(structure)
    field = model.field(0.9, (6, 8), block=8, field=0.1, dt=0.1, seed=3)
    law: Law = model.at(0.9)
    if structure == "langevin":
        law = FiniteLaw(law, 64, field.own)
    other = StochasticField(law, model.symbol((6, 8)), (6, 8), block=8, field=0.1, dt=0.1, seed=3)
    for f in (field, other):
        f.set(0.3)
        f.advance(5)
    np.testing.assert_array_equal(field.m, other.m)
    np.testing.assert_allclose(field.convolve(np.full(field.local, 0.5)), 0.5, atol=1e-12)


def test_what_cannot_be_learned_is_refused() -> None:
    run = synthetic("cosh", 1.0, 1, pairs=5)
    with pytest.raises(InputError, match="runs"):
        learn([])
    with pytest.raises(InputError, match="structure"):
        learn([run], structure="other", lags=(1,))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="interval"):
        learn([run, FieldRun(run.fields, 0.1, 1.0, N)], lags=(1,))
    with pytest.raises(InputError, match="radius"):
        learn([run], radius=20, lags=(1,))
    for name, value in (("kernel", "spectral"), ("radius", 1), ("mobility_terms", 0),
                        ("temperature_degree", 1), ("temperatures", ())):  # fmt: skip
        with pytest.raises(InputError, match=name):
            Form(**{"structure": "cosh", "temperatures": (1.0,), name: value})


def test_a_rank_without_a_run_has_rows_of_nothing() -> None:
    """More ranks than runs are no fault: the sums of some ranks are empty."""
    assert _rows(np.zeros((3, 0)), np.ones(2)).shape == (6, 0)
    assert _rows(np.zeros((3, 4)), np.ones(2)).shape == (6, 4)


def test_pulls_by_pytorch_are_those_of_scipy() -> None:
    """Of odd and even sides, in a field of the site; means of several members stay as they are."""
    rng = np.random.default_rng(0)
    for shape in ((5, 6), (4, 7)):
        symbol, field = rng.standard_normal((shape[0], shape[1] // 2 + 1)), rng.random(shape)
        m = torch.as_tensor(rng.standard_normal((3, *shape)))
        before = m.clone()
        u = TorchPulls(torch.device("cpu"), symbol, shape, field)(m)
        expected = scipy.fft.irfft2(scipy.fft.rfft2(before.numpy()) * symbol, shape) + field
        np.testing.assert_allclose(u.numpy(), expected, rtol=0, atol=1e-13)
        assert torch.equal(m, before)
