"""Networks in OnsagerFlow: laws by construction, and the synthetic law learned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
import torch
from mpi4py import MPI
from scipy.integrate import quad

from mpiflow.core.errors import InputError
from mpiflow.learn.generator.model import true_kernel
from mpiflow.learn.onsagerflow.fit import _Fit
from mpiflow.learn.onsagerflow.functions import Networks
from mpiflow.learn.onsagerflow.increments import FieldRun
from mpiflow.learn.onsagerflow.model import EDGE, Form, OnsagerFlow, load_onsagerflow
from mpiflow.learn.onsagerflow.net import _Loss, _samples, learn_network
from mpiflow.learn.training import Schedule
from mpiflow.systems.field_law import Structure
from mpiflow.systems.kac import Kac

SPINS, SIDE, INTERVAL = 64, 16, 0.02
KERNEL = true_kernel(Kac(1.0, 8.0), SIDE, 8)
M = np.linspace(-0.8, 0.8, 33)
TEMPERATURES = (0.8, 1.25)
#: Of the synthetic law: ln kappa and beta s' at 1 / T.
C, A = 0.3, 0.4


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Laws are asked far outside the data here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*learned")
        yield


def kappa(m: np.ndarray, t: float) -> np.ndarray:
    return np.exp(0.2 / t + C * (m * m - 0.5))


def entropy(m: np.ndarray, t: float) -> np.ndarray:
    """beta s'."""
    return np.arctanh(m) + A * m / t


def synthetic(structure: Structure, t: float, seed: int, pairs: int = 150) -> FieldRun:
    """Pairs of fields with Gaussian increments, near equilibrium in a field h(x)."""
    rng = np.random.default_rng(seed)

    def felt(m: np.ndarray) -> np.ndarray:
        return scipy.fft.irfft2(scipy.fft.rfft2(m) * scipy.fft.rfft2(KERNEL), s=m.shape[-2:])

    waves = rng.standard_normal((SIDE, SIDE))
    k = np.fft.fftfreq(SIDE)[:, None] ** 2 + np.fft.rfftfreq(SIDE) ** 2
    g = scipy.fft.irfft2(scipy.fft.rfft2(waves) * np.exp(-60 * k), s=(SIDE, SIDE))
    middle = 0.9 * np.tanh(1.5 * (g - g.mean()) / g.std())
    h = t * entropy(middle, t) - felt(middle)
    m = middle + rng.standard_normal((pairs, SIDE, SIDE)) * np.sqrt((1 - middle**2) / SPINS)
    m = np.clip(m, -0.96, 0.96)
    y = entropy(m, t) - (felt(m) + h) / t
    if structure == "cosh":
        th = np.tanh(np.arctanh(m) - y)
        d, v = kappa(m, t) * (th - m), kappa(m, t) * (1 - m * th)
    else:
        v = kappa(m, t) * (1 - m * m)
        d = -v * y + kappa(m, t) * (2 * C * m * (1 - m * m) - 2 * m) / (2 * SPINS)
    spread = np.sqrt(2 * v * INTERVAL / SPINS - (INTERVAL * d) ** 2)
    after = m + INTERVAL * d + spread * rng.standard_normal(m.shape)
    return FieldRun(np.stack([m, after]), INTERVAL, t, SPINS, h)


def runs(structure: Structure, seeds: int = 6, pairs: int = 150) -> list[FieldRun]:
    return [synthetic(structure, t, 10 * i + j, pairs)
            for i, t in enumerate(TEMPERATURES) for j in range(seeds)]  # fmt: skip


@cache
def learned(structure: Structure) -> OnsagerFlow:
    schedule = Schedule(epochs=8, batch=16, learning_rate=5e-3)
    return learn_network(runs(structure), structure=structure, lags=(1,), radius=4,
                         schedule=schedule)  # fmt: skip


@cache
def begun() -> OnsagerFlow:
    """Trained, but not long enough to know the law: what is kept and run needs no more."""
    return learn_network(runs("cosh", 2, 20), structure="cosh", lags=(1,), radius=4,
                         schedule=Schedule(epochs=1, batch=16, learning_rate=5e-3))  # fmt: skip


@pytest.mark.validate
@pytest.mark.parametrize("structure", ["cosh", "langevin"])
def test_the_synthetic_law_is_learned(structure: Structure) -> None:
    """K and s' within 3 % of their sizes at the temperatures of the data and between, J in 15 %."""
    model = learned(structure)
    for t in (0.8, 1.0, 1.25):
        k = model.mobility(M, t) * t / (kappa(M, t) * (1 - M * M)) - 1
        s = model.entropy_derivative(M, t) / t - entropy(M, t)
        assert abs(k).max() < 0.03
        assert np.linalg.norm(s) < 0.03 * np.linalg.norm(entropy(M, t))
    distance = np.linalg.norm(model.kernel_on(SIDE) - KERNEL) / np.linalg.norm(KERNEL)
    assert distance < 0.15
    assert distance < 2.5 * model.kernel_error
    assert model.kernel.sum() == pytest.approx(1.0, abs=1e-9)
    assert np.isnan(model.errors(M, 1.0)).all()
    log = model.card["training"]
    assert min(log["validation"]) < log["validation"][0]


def wild(monotone: bool = True, symmetric: bool = True, seed: int = 0) -> OnsagerFlow:
    """Random weights, larger than any that are learned."""
    torch.manual_seed(seed)
    form = Form("cosh", TEMPERATURES, symmetric=symmetric, radius=2, width=16, monotone=monotone)
    networks = Networks(form.width, form.monotone, form.symmetric)
    with torch.no_grad():
        for p in networks.parameters():
            p.normal_(0.0, 0.7)
    size = form.sizes()[2]
    return OnsagerFlow(form, np.eye(size)[0], np.zeros((size, size)), 0.9, {}, networks)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("symmetric", [True, False])
def test_any_weights_give_a_law(seed: int, symmetric: bool) -> None:
    """K > 0 and s' rises, up to the ends and at any T; symmetric laws are so exactly."""
    model = wild(symmetric=symmetric, seed=seed)
    m = np.tanh(np.linspace(-7, 7, 1001))
    for t in (0.05, 0.8, 1.0, 30.0):
        k, s = model.mobility(m, t), model.entropy_derivative(m, t)
        assert np.isfinite(s).all()
        assert (k > 0).all()
        assert (np.diff(s) > 0).all()
        if symmetric:
            np.testing.assert_allclose(k, model.mobility(-m, t), rtol=1e-12)
            np.testing.assert_allclose(s, -model.entropy_derivative(-m, t), rtol=1e-12)
    falls = [wild(False, symmetric, s).entropy_derivative(m, 1.0) for s in range(5)]
    assert any((np.diff(s) < 0).any() for s in falls)


def slope(function: Callable[[np.ndarray], np.ndarray], m: np.ndarray) -> np.ndarray:
    return (function(m + 1e-5) - function(m - 1e-5)) / 2e-5


@pytest.mark.parametrize("monotone", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
def test_slopes_and_integrals(monotone: bool, symmetric: bool) -> None:
    model = wild(monotone, symmetric, 3)
    law, m = model.at(0.9), np.linspace(-0.95, 0.95, 39)
    force = law.entropy_derivative(m)
    np.testing.assert_allclose(slope(law.mobility, m), law.mobility_slope(m), atol=1e-6)
    np.testing.assert_allclose(slope(law.entropy, m), force, atol=1e-6 * abs(force).max())
    assert law.entropy(np.zeros(1))[0] == 0
    z = torch.as_tensor(model.form.scaled(0.9)[None])

    def density(x: float) -> float:
        rho = model.networks.stiffness(torch.tensor([x], dtype=torch.float64), z)  # type: ignore
        return float(rho.detach()) / (1 - x * x)

    middle = float(law.entropy_derivative(np.zeros(1))[0])
    for at, s in zip(m[::6], force[::6], strict=True):
        exact = middle + 0.9 * quad(density, 0.0, at, epsabs=1e-10)[0]
        assert s == pytest.approx(exact, abs=1e-7 * (1 + abs(force).max()))
    table = model.table(0.9, 101)
    assert all(np.isfinite(table[k]).all() for k in ("mobility", "entropy_derivative", "entropy"))


def test_free_spins_are_the_start() -> None:
    """With weights 0 of the last layers K = beta (1 - m^2) and s' = artanh(m) / beta, s too."""
    form = Form("cosh", (1.0,), radius=2, width=8, monotone=True)
    size = form.sizes()[2]
    networks = Networks(8, True, True)
    model = OnsagerFlow(form, np.eye(size)[0], np.zeros((size, size)), 1.0, {}, networks)
    m = np.append(np.linspace(-0.999, 0.999, 99), EDGE)
    np.testing.assert_allclose(model.mobility(m, 2.0), (1 - m * m) / 2, rtol=1e-12)
    np.testing.assert_allclose(model.entropy_derivative(m, 2.0), 2 * np.arctanh(m), atol=1e-12)
    s = (1 + m) * np.log1p(m) + (1 - m) * np.log1p(-m)
    np.testing.assert_allclose(model.entropy(m, 2.0), s, atol=1e-12)
    networks.set_start(0.3)  # another kappa and rho, the same at all m and T
    more = np.exp(0.3)
    np.testing.assert_allclose(model.mobility(m, 2.0), more * (1 - m * m) / 2, rtol=1e-12)
    np.testing.assert_allclose(model.entropy(m, 2.0), more * s, atol=1e-12)


def test_a_saved_model_has_the_same_bits(tmp_path: Path) -> None:
    for model in (wild(), wild(False, False), begun()):
        model.save(tmp_path / "model")
        again = load_onsagerflow(tmp_path / "model")
        assert again.form == model.form
        assert again.card == model.card
        t = np.array([[0.9], [1.1]])
        for name in ("mobility", "mobility_slope", "entropy_derivative", "entropy"):
            got, had = (getattr(a, name)(M, t) for a in (again, model))
            assert got.shape == (2, 33)
            np.testing.assert_array_equal(got, had)
        np.testing.assert_array_equal(again.kernel, model.kernel)
    (tmp_path / "model" / "model.json").write_text("{}")
    with pytest.raises(InputError, match="onsagerflow"):
        load_onsagerflow(tmp_path / "model")


@pytest.mark.parametrize("structure", ["cosh", "langevin"])
def test_a_field_of_networks_runs(structure: Structure) -> None:
    model = begun().with_structure(structure)
    field = model.field(0.9, (6, 8), block=8, dt=0.1, seed=3, comm=MPI.COMM_SELF)
    field.set(0.3)
    field.advance(5)
    assert np.isfinite(field.m).all()
    assert abs(field.m).max() <= 1


@pytest.mark.parametrize("structure", ["cosh", "langevin"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_loss_is_of_the_law(structure: Structure, symmetric: bool) -> None:
    """Training interpolates in cells; the model's own drift and kappa give the same loss."""
    data = [synthetic(structure, t, seed, 5) for seed, t in enumerate(TEMPERATURES)]
    model = wild(symmetric=symmetric, seed=2).with_structure(structure)
    start = _Fit(replace(model.form, width=0), data, (1,), 3.0, None)
    fields = _samples(OnsagerFlow(start.form, start.theta, start.covariance, 1.0), data, (1,))
    loss = _Loss(model.form, data, start, fields[1].shape)
    assert model.networks is not None
    loss.networks = model.networks
    model = replace(model, coefficients=loss.kernel().detach().numpy())
    got = loss(*(torch.as_tensor(a) for a in fields)).detach().numpy()
    symbol = model.symbol((SIDE, SIDE))
    for number, m, r, q, weight, value in zip(*fields, got, strict=True):
        run, m = data[int(number)], m.astype(float)
        u = scipy.fft.irfft2(scipy.fft.rfft2(m) * symbol, s=m.shape) + run.field
        t, share = run.temperature, 1 - m * m
        d = model.drift(m, (model.entropy_derivative(m, t) - u) / t, t, SPINS)
        part = (weight > 0) * (share / (share + 1 / SPINS)) ** 2
        seen = (q if structure == "langevin" else q + m * r) / (model.prefactor(m, t) * share)
        of_k = part * (np.log(model.prefactor(m, t)) + seen)
        assert value == pytest.approx((of_k + weight * (r - d) ** 2).mean(), rel=2e-4)
    assert 0.1 < (fields[4] > 0).mean() <= 1.0


@pytest.mark.mpi
def test_ranks_learn_the_same(comm: MPI.Intracomm) -> None:
    """Up to rounding, and the same bits on all of them."""
    data = runs("cosh", 2, 21)
    schedule = Schedule(epochs=2, batch=7, learning_rate=5e-3)
    alone, together = (
        learn_network(data, lags=(1,), radius=2, width=8, schedule=schedule, comm=c)
        for c in (None, comm)
    )
    for t in TEMPERATURES:
        for name in ("mobility", "entropy_derivative"):
            one, all_ranks = (getattr(model, name)(M, t) for model in (alone, together))
            np.testing.assert_allclose(all_ranks, one, atol=1e-7)
            assert len(set(comm.allgather(all_ranks.tobytes()))) == 1
    np.testing.assert_allclose(together.kernel, alone.kernel, atol=1e-7)


def test_what_cannot_be_learned_is_refused() -> None:
    run = synthetic("cosh", 1.0, 1, 5)
    smaller = replace(run, fields=run.fields[..., :8, :8], field=0.0)
    for bad, name in (
        ([], "runs"), ([run, smaller], "blocks"), ([run, replace(run, interval=1.0)], "interval")
    ):  # fmt: skip
        with pytest.raises(InputError, match=name):
            learn_network(bad, lags=(1,), radius=2)
    for options, name in (({"width": 0}, "width"), ({"structure": "x"}, "structure"),
                          ({"radius": 20}, "radius")):  # fmt: skip
        with pytest.raises(InputError, match=name):
            learn_network([run], lags=(1,), **{"radius": 2, **options})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="networks"):
        replace(wild(), networks=None)
    with pytest.raises(InputError, match="width"):
        Form("cosh", (1.0,), width=-1)
