"""Predators and prey: both discretisations, their patches, what is learned, and the test of MMD."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from scipy import stats
from scipy.fft import dct
from scipy.integrate import solve_ivp
from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov

from mpiflow import metrics
from mpiflow.core.block import gather_records
from mpiflow.core.errors import InputError
from mpiflow.learn.closure.model import fit_sde
from mpiflow.learn.closure.predator_prey import (
    PatchAutoencoder,
    PredatorPreyPlan,
    initial_states,
    latent_pairs,
    learn,
    training_states,
)
from mpiflow.learn.models import load_model
from mpiflow.learn.training import Schedule
from mpiflow.simulation.ensemble.options import PredatorPreyConfig
from mpiflow.simulation.ensemble.simulation import build_lines
from mpiflow.solvers.lines.predator_prey import PredatorPreySimulation, evolve_patches
from mpiflow.systems.predator_prey import PredatorPrey, upsample

BOTH = [PredatorPrey(20), PredatorPrey(20, "pde", prey_diffusion=0.01)]
forms = pytest.mark.parametrize("system", BOTH, ids=lambda s: s.form)


def laplacian(n: int) -> np.ndarray:
    """Second differences with mirrored ends, from padded rows as in the published code."""
    padded = np.pad(np.eye(n), ((1, 1), (0, 0)), mode="edge")
    return np.asarray(padded[2:] - 2 * padded[1:-1] + padded[:-2])


def growth(system: PredatorPrey, x: np.ndarray) -> np.ndarray:
    u, v = x[..., 0, :], x[..., 1, :]
    return np.stack([u * (1 - u - v), system.growth * v * (u - system.death)], axis=-2)


def simulation(system: PredatorPrey, **options: Any) -> PredatorPreySimulation:
    sim = PredatorPreySimulation(system, **options)
    sim.set(system.start(0.5, 0.1))
    return sim


def sigmas(values: np.ndarray, expected: np.ndarray | float) -> np.ndarray:
    """How far means over axis 0 are off, in their standard errors."""
    error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return np.asarray((values.mean(axis=0) - expected) / error)


def random_states(system: PredatorPrey, count: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0.0, 0.05, (count, 2, system.sites))
    return np.asarray(system.start(0.5, 0.1) + noise)


# -- a step ------------------------------------------------------------------------------


@forms
def test_a_step_without_noise_is_the_published_equation(system: PredatorPrey) -> None:
    """Explicit, or (1 - dt coupling L)^-1 of the explicit growth; dt coupling is 4 for ``pde``."""
    system, dt = replace(system, noise=0.0, prey_diffusion=0.3), 0.01
    x = random_states(system, 3, 1)
    sim = PredatorPreySimulation(system, dt=dt, members=3)
    sim.set(x)
    sim.advance(2)
    diffusion = [dt * c * laplacian(20) for c in system.coupling]
    for _ in range(2):
        grown = x + dt * growth(system, x)
        if system.form == "pde":
            parts = [
                np.linalg.solve(np.eye(20) - d, grown[:, i].T).T for i, d in enumerate(diffusion)
            ]
        else:
            parts = [grown[:, i] + x[:, i] @ d.T for i, d in enumerate(diffusion)]
        x = np.stack(parts, axis=1)
    np.testing.assert_allclose(sim.x, x, rtol=0, atol=1e-13)


def test_the_published_diffusivity_is_that_of_a_grid() -> None:
    for n in (100, 200):
        assert PredatorPrey(n).diffusivity[1] == pytest.approx(n**-2.0)
        assert PredatorPrey(n, "pde").diffusivity == (0.0, pytest.approx(1.0))
    # At 200 cells and dt = 0.01 an explicit step of the equation as printed is 800 times too long.
    assert PredatorPrey(200, "pde").coupling[1] * 0.01 == 400
    mode = np.pi * np.arange(1, 4)
    np.testing.assert_allclose(PredatorPrey(200, "pde").rates()[1, 1:4], mode**2, rtol=2e-4)
    np.testing.assert_allclose(
        np.sort(np.linalg.eigvalsh(-laplacian(20))), PredatorPrey(20).rates()[1], atol=1e-12
    )


@forms
def test_a_cosine_decays_at_its_rate(system: PredatorPrey) -> None:
    """(1 - r dt) or 1 / (1 + r dt) a step, so e^-rt with an error of order dt; at any dt stable."""
    still = replace(system, growth=0.0, noise=0.0)
    rate, end = still.rates()[1, 2], 0.16
    wave = np.cos(2 * np.pi * (np.arange(20) + 0.5) / 20)
    errors = []
    for steps in (40, 80, 160):
        dt = end / steps
        sim = PredatorPreySimulation(still, dt=dt)
        sim.set(np.stack([0 * wave, 0.3 + wave]))
        sim.advance(steps)
        factor = 1 - rate * dt if system.form == "published" else 1 / (1 + rate * dt)
        left = (sim.x[0, 1] - 0.3) @ wave / (wave @ wave)
        assert left == pytest.approx(factor**steps, rel=1e-9)
        errors.append(abs(left - math.exp(-rate * end)))
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 1.0, atol=0.12)


def test_the_implicit_form_damps_what_the_explicit_one_could_not() -> None:
    fastest = np.cos(199 * np.pi * (np.arange(200) + 0.5) / 200)
    rough = np.stack([np.full(200, 0.4), 0.6 + 0.1 * fastest])
    sim = PredatorPreySimulation(PredatorPrey(200, "pde", noise=0.0), dt=0.01)
    sim.set(rough)
    sim.advance(1)
    assert np.ptp(sim.x[0, 1]) < 2e-3
    with pytest.raises(InputError, match="dt"):
        PredatorPreySimulation(PredatorPrey(200), dt=0.6)


@forms
def test_diffusion_conserves_the_mean(system: PredatorPrey) -> None:
    still = replace(system, growth=0.0, noise=0.0)
    sim = PredatorPreySimulation(still, members=4)
    sim.set(random_states(still, 4, 2))
    before = sim.means()[:, 1]
    sim.advance(500)
    np.testing.assert_allclose(sim.means()[:, 1], before, rtol=0, atol=1e-13)


@forms
def test_without_structure_it_is_the_equation_of_two_numbers(system: PredatorPrey) -> None:
    """Lotka and Volterra's with a limit, integrated by others; the error is of order dt."""
    system, end = replace(system, noise=0.0), 4.0
    exact = solve_ivp(
        lambda t, y: growth(system, y[:, None])[:, 0], (0, end), [0.5, 0.5], rtol=1e-10, atol=1e-12
    ).y[:, -1]
    errors = []
    for steps in (200, 400):
        sim = PredatorPreySimulation(system, dt=end / steps)
        sim.set(np.full((2, 20), 0.5))
        sim.advance(steps)
        assert np.ptp(sim.x, axis=2).max() < 1e-12
        errors.append(abs(sim.means()[0] - exact))
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 1.0, atol=0.1)
    np.testing.assert_allclose(growth(system, np.array([system.coexistence()]).T), 0.0, atol=1e-15)


def test_fast_diffusion_ends_in_the_well_mixed_state() -> None:
    """From a wave, c = 1: after its end the means follow the equation of two numbers."""
    system = PredatorPrey(20, "pde", prey_diffusion=1.0, noise=0.0)
    sim = simulation(system, dt=0.001)
    sim.advance(1000)
    other = PredatorPreySimulation(system, dt=0.001)
    other.set(np.full((2, 20), 0.5))
    other.advance(1000)
    np.testing.assert_allclose(sim.x, other.x, atol=2e-4)
    assert np.ptp(sim.x, axis=2).max() < 1e-4


# -- noise -------------------------------------------------------------------------------


def test_modes_of_the_pde_have_the_variance_of_continuous_time() -> None:
    """s^2 / 2 r for each, from r dt = 0.1 to 10: the noise of edges makes it so."""
    system = PredatorPrey(16, "pde", growth=0.0)
    sim = PredatorPreySimulation(system, seed=3, members=6000)
    sim.set(np.full((2, 16), 0.4))
    sim.advance(100)
    modes = dct(sim.x[:, 1], norm="ortho", axis=1)[:, 1:]
    rates = system.rates()[1, 1:]
    assert rates[0] * sim.dt < 0.1
    assert rates[-1] * sim.dt > 10
    scaled = modes**2 / (system.amplitude**2 / (2 * rates))
    z = sigmas(scaled, 1.0)
    assert 1e-4 < stats.chi2.sf((z**2).sum(), len(z)) < 1 - 1e-4
    # Backward Euler with the noise of cells alone would be off by 1 + r dt / 2.
    assert abs(scaled.mean(axis=0)[-1] - 1) < 0.1


@forms
def test_small_noise_has_the_covariance_of_the_linear_equation(system: PredatorPrey) -> None:
    """Around coexistence u and v of each mode are a linear recursion: its Lyapunov equation."""
    dt, noise = 0.05, 1e-4
    system = replace(system, sites=8, noise=noise)
    sim = PredatorPreySimulation(system, dt=dt, seed=4, members=3000)
    rest = np.array(system.coexistence())
    sim.set(np.broadcast_to(rest[:, None], (2, 8)))
    sim.advance(1000)  # ten times the relaxation of 1 / 0.2
    modes = dct(sim.x - rest[:, None], norm="ortho", axis=2)
    z = []
    for k in (0, 1, 5):
        decay = dt * system.rates()[:, k]
        step, kick = np.eye(2) + dt * system.jacobian(), np.full(2, system.amplitude**2 * dt)
        if system.form == "pde":
            step = step / (1 + decay[:, None])
            kick = kick * (1 + decay / 2) / (1 + decay) ** 2
        else:
            step = step - np.diag(decay)
        covariance = solve_discrete_lyapunov(step, np.diag(kick))
        white = np.linalg.solve(np.linalg.cholesky(covariance), modes[:, :, k].T).T
        z += [*sigmas(white**2, 1.0), sigmas(white[:, 0] * white[:, 1], 0.0)]
    assert 1e-4 < stats.chi2.sf(np.square(z).sum(), len(z)) < 1 - 1e-4


@pytest.mark.parametrize("n", [10, 40])
@forms
def test_noise_of_the_means(system: PredatorPrey, n: int) -> None:
    """sigma sqrt(dt) on any grid for the pde, less by root n for the published form; white."""
    system, members = replace(system, sites=n), 20_000
    sim = simulation(system, dt=0.01, seed=5, members=members)
    expected = sim.means() + 0.01 * growth(system, sim.x).mean(axis=2)
    sim.advance(1)
    kicks = sim.means() - expected
    width = 0.02 * 0.1 / (1 if system.form == "pde" else math.sqrt(n))
    assert 1e-4 < stats.kstest((kicks / width).ravel(), "norm").pvalue
    assert abs(stats.pearsonr(*kicks.T)[0]) * math.sqrt(members) < 4


def moments(system: PredatorPrey, time: float, members: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log variance of the means, and their errors, (2, 2, 2)."""
    sim = simulation(system, dt=0.02, seed=6, members=members)
    sim.advance(round(time / sim.dt))
    m = sim.means()
    spread = m.std(axis=0, ddof=1)
    value = np.array([m.mean(axis=0), 2 * np.log(spread)])
    return value, np.array([spread / math.sqrt(members), np.full(2, math.sqrt(2 / members))])


def test_statistics_of_the_pde_do_not_depend_on_the_grid_those_of_the_published_form_do() -> None:
    values = {}
    for form, c in (("published", 0.0), ("pde", 0.01)):
        for n in (40, 80):
            system = PredatorPrey(n, form, prey_diffusion=c)  # type: ignore[arg-type]
            values[form, n] = moments(system, 6.0, 600)

    def apart(form: str) -> np.ndarray:
        (a, error_a), (b, error_b) = values[form, 40], values[form, 80]
        return np.asarray((b - a) / np.hypot(error_a, error_b))

    assert (abs(apart("pde")) < 4).all()
    assert (apart("published")[1] < -6).all()
    # Half the variance, as half the noise squared.
    ratio = values["published", 80][0][1] - values["published", 40][0][1]
    np.testing.assert_allclose(ratio, math.log(0.5), atol=4 * math.sqrt(4 / 600))


def test_without_diffusion_of_the_prey_the_pde_has_no_limit() -> None:
    """The variance of u in a cell grows with n; at the published noise u runs away."""
    local = []
    for n in (10, 40):
        system = PredatorPrey(n, "pde", noise=1e-4)
        sim = PredatorPreySimulation(system, dt=0.02, seed=7, members=100)
        sim.set(np.broadcast_to(np.array(system.coexistence())[:, None], (2, n)))
        sim.advance(1000)
        local.append(sim.x[:, 0].var(axis=1, ddof=1).mean())
    assert local[1] / local[0] == pytest.approx(4.0, rel=0.25)
    # b / 2 from 1 / (2 |df/du|), df/du = -b.
    assert local[1] == pytest.approx(1e-8 * 40 / (2 * 0.4), rel=0.2)
    with pytest.raises(InputError, match="prey diffusion above 0"):
        simulation(PredatorPrey(200, "pde"), members=4).advance(3000)


def test_noise_is_white_over_cells_fields_steps_and_members() -> None:
    system = PredatorPrey(4, growth=0.0, prey_diffusion=0.0)
    sim = PredatorPreySimulation(system, seed=8, members=20_000)
    sim.set(np.zeros((2, 4)))
    rows = []
    for _ in range(2):
        before = sim.x.copy()
        sim.advance(1)
        drift = 0.01 * growth(system, before)
        drift[:, 1] += 0.01 * before[:, 1] @ laplacian(4).T
        rows.append(((sim.x - before - drift) / (0.02 * 0.1)).reshape(20_000, -1))
    xi = np.concatenate(rows, axis=1)
    assert 1e-4 < stats.kstest(xi.ravel(), "norm").pvalue
    products = (xi.T @ xi / math.sqrt(len(xi)))[np.triu_indices(16, 1)]
    assert 1e-4 < stats.chi2.sf((products**2).sum(), products.size) < 1 - 1e-4


# -- states ------------------------------------------------------------------------------


def test_initial_states_are_those_of_the_published_code() -> None:
    x = (np.arange(1, 101) - 0.5) / 100
    state = PredatorPrey(100).start(np.array([0.45, 0.5]), 0.1)
    np.testing.assert_allclose(state[0, 0], 0.45 + 0.1 * np.cos(10 * np.pi * x))
    np.testing.assert_allclose(state[1, 1], 0.5 - 0.1 * np.cos(10 * np.pi * x))
    np.testing.assert_allclose(state.sum(axis=1), 1.0)
    drawn = initial_states(PredatorPrey(100), np.arange(400), 9)
    m, k = drawn[:, 0].mean(axis=1), np.ptp(drawn[:, 0], axis=1) / 2 / np.cos(0.05 * np.pi)
    assert stats.kstest(m, "uniform", (0.45, 0.1)).pvalue > 1e-4
    assert stats.kstest(k, "uniform", (0.05, 0.1)).pvalue > 1e-4
    assert abs(stats.pearsonr(m, k)[0]) < 0.2


def test_upsampling_is_linear_between_cell_centres() -> None:
    rng = np.random.default_rng(10)
    x = rng.normal(size=(3, 2, 10))
    other = torch.nn.functional.interpolate(torch.as_tensor(x), scale_factor=2, mode="linear")
    np.testing.assert_allclose(upsample(x), other.numpy(), atol=1e-14)
    white = upsample(rng.normal(size=(1000, 50)))[:, 1:-1]
    assert white.var() == pytest.approx(5 / 8, rel=0.02)


# -- patches -----------------------------------------------------------------------------


def test_patches_of_the_published_form_are_the_line() -> None:
    """Without noise each is bit for bit what the whole line makes of it; each as likely."""
    system = PredatorPrey(20, noise=0.0, prey_diffusion=0.2)
    x = random_states(system, 300, 11)
    sim = PredatorPreySimulation(system, members=300)
    sim.set(x)
    index, after = evolve_patches(system, x, sim.numbers, 5, dt=sim.dt, draws=4)
    sim.advance(1)
    whole = sim.x.reshape(300, 2, 4, 5).transpose(0, 2, 1, 3)
    chosen = whole[np.arange(300)[:, None], index]
    np.testing.assert_array_equal(after, chosen)
    assert stats.chisquare(np.bincount(index.ravel(), minlength=4)).pvalue > 1e-4
    np.testing.assert_allclose(whole.mean(axis=(1, 3)), sim.means(), atol=1e-15)


@pytest.mark.parametrize("mirrored", [False, True])
@forms
def test_increments_of_patches_have_the_conditional_law(
    system: PredatorPrey, mirrored: bool
) -> None:
    """Drift of the line, and K times its variance; not for frozen ghosts of the implicit form."""
    dt, draws, patches = 0.01, 40_000, 4
    x = random_states(system, 1, 12)
    index, after = evolve_patches(
        system, x, np.arange(1), 5, dt=dt, draws=draws, seed=12, mirrored=mirrored
    )
    before = x.reshape(2, patches, 5).mean(axis=2).T
    changes = after[0].mean(axis=2) - before[index[0]]
    silent = PredatorPreySimulation(replace(system, noise=0.0), dt=dt)
    silent.set(x)
    old = silent.means()
    silent.advance(1)
    drift = (silent.means() - old)[0]
    # The variance over patches of their drifts, each from the draws of it.
    own = np.array([changes[index[0] == i].mean(axis=0) for i in range(patches)])
    noise = changes - own[index[0]]
    variance = system.amplitude**2 * dt / 5
    off = abs(sigmas(changes, drift)), abs(sigmas(noise**2, variance))
    if system.form == "pde" and not mirrored:
        assert off[1][1] > 40  # v leaks
    elif system.form == "pde" or not mirrored:
        assert max(off[0].max(), off[1].max()) < 4


def test_mirrored_patches_have_the_drift_of_the_line_exactly() -> None:
    system = PredatorPrey(20, "pde", noise=0.0, prey_diffusion=0.01)
    x = random_states(system, 1, 13)
    sim = PredatorPreySimulation(system)
    sim.set(x)
    sim.advance(1)
    index, after = evolve_patches(system, x, np.arange(1), 5, dt=0.01, draws=200, mirrored=True)
    means = [after[0][index[0] == i][0].mean(axis=1) for i in range(4)]
    np.testing.assert_allclose(np.mean(means, axis=0), sim.means()[0], rtol=0, atol=1e-15)


@pytest.mark.parametrize("dt", [1e-2, 1e-3, 1e-4])
def test_what_leaks_out_of_frozen_patches(dt: float) -> None:
    """1 - tanh(y) / y of the growth of v in a uniform line is left, y = l / 2 sqrt(D dt)."""
    system = PredatorPrey(1000, "pde", noise=0.0)
    x = np.full((1, 2, 1000), 0.5)
    _, after = evolve_patches(system, x, np.arange(1), 200, dt=dt, draws=200)
    grown = dt * growth(system, x)[0, 1, 0]
    inner = np.min((after[0, :, 1].mean(axis=1) - 0.5) / grown)  # ends of the line are mirrored
    y = 0.2 / (2 * math.sqrt(dt))
    assert inner == pytest.approx(1 - math.tanh(y) / y, abs=0.01)


def test_draws_are_independent_of_each_other_and_of_the_next_step() -> None:
    system, members = PredatorPrey(20), 20_000
    sim = simulation(system, seed=14, members=members)
    index, after = evolve_patches(system, sim.x, sim.numbers, 20, dt=0.01, draws=2, seed=14)
    assert not index.any()
    sim.advance(1)
    values = [*after.mean(axis=3).transpose(1, 2, 0).reshape(4, -1), *sim.means().T]
    z = [stats.pearsonr(a, b)[0] for i, a in enumerate(values) for b in values[:i]]
    square = members * np.square(z).sum()
    assert 1e-4 < stats.chi2.sf(square, len(z)) < 1 - 1e-4


# -- learning ----------------------------------------------------------------------------

PLAN = PredatorPreyPlan(small=20, patch=8, trajectories=6, steps=200, frames=10, draws=16)
SMALL = PredatorPrey(40)


def test_latents_of_a_line_are_means_over_its_patches() -> None:
    torch.manual_seed(0)
    net = PatchAutoencoder(40, 8)
    x = random_states(SMALL, 5, 15)
    net.set_scales(x)
    parts = x.reshape(5, 2, 5, 8).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(net.latents(x), net.patch_latents(parts).mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(net.latents(x)[:, :2], x.mean(axis=2))


def test_pairs_have_the_drift_and_k_times_the_variance_of_the_means() -> None:
    states = training_states(SMALL, PLAN, 16)
    assert states.shape == (60, 2, 40)
    torch.manual_seed(0)
    net = PatchAutoencoder(40, 8)
    many = replace(PLAN, draws=2000)
    z0, increments, dt = latent_pairs(SMALL, many, states, net, 16)
    assert (dt == 0.01).all()
    np.testing.assert_allclose(z0, net.latents(states))
    drift = 0.01 * growth(SMALL, states).mean(axis=2)
    z = ((increments[..., :2].mean(axis=1) - drift) / increments[..., :2].std(axis=1)) * 2000**0.5
    assert 1e-4 < stats.chi2.sf((z**2).sum(), z.size) < 1 - 1e-4
    # And its square is K sigma^2 dt / n, and the variance of the drift over patches.
    variance = increments[..., 0].var(axis=1).mean()
    assert variance == pytest.approx(5 * 0.02**2 * 0.01 / 40, rel=0.02)


def test_lambda_is_a_factor_of_sigma_and_nothing_else() -> None:
    """Trainings with lambda 1 and 5 from the same weights: one network, Sigma five times apart."""
    states = training_states(SMALL, PLAN, 17)
    torch.manual_seed(0)
    data = latent_pairs(SMALL, PLAN, states, PatchAutoencoder(40, 8), 17)
    schedule = Schedule(epochs=4, batch=16)
    one, five = (fit_sde(data, f, seed=17, schedule=schedule)[0] for f in (1.0, 5.0))
    z = torch.as_tensor(data[0], dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(one.drift(z), five.drift(z), rtol=1e-3, atol=1e-4)
        ratio = one.cholesky(z) / five.cholesky(z)
    rows, columns = np.tril_indices(4)
    diagonal = ratio[:, rows[rows == columns], columns[rows == columns]]
    torch.testing.assert_close(diagonal, torch.full_like(diagonal, 5**0.5), rtol=1e-3, atol=0)


def test_models_are_learned_and_predict_with_any_lambda(tmp_path: Path) -> None:
    model = learn(SMALL, PLAN, seed=18, epochs=3)
    assert len(model.card["goodness"]["variance"]) == 4
    assert model.card["doubts"] == []  # 60 states are too few for one
    assert model.card["system"]["sites"] == 40
    model.save(tmp_path)
    again = load_model(tmp_path)
    assert (again.card, again.plan, again.loss) == (model.card, PLAN, model.loss)
    for old, new in zip(model.sde.parameters(), again.sde.parameters(), strict=True):
        assert torch.equal(old, new)
    z0 = model.autoencoder.latents(random_states(SMALL, 400, 18))
    z0[:] = z0[0]
    save = np.array([0, 1])
    wide, narrow = (model.rollout(z0, factor=f, save=save, seed=1)[0] for f in (1.25, 20.0))
    np.testing.assert_allclose(wide[0], z0, rtol=1e-5)
    ratio = wide[1].std(axis=0) / narrow[1].std(axis=0)
    np.testing.assert_allclose(ratio, 4.0, rtol=0.01)
    with pytest.raises(InputError, match="sites"):
        learn(PredatorPrey(60), PLAN, seed=1)


# -- the test of MMD -----------------------------------------------------------------------


def test_the_permutation_statistic_is_the_mmd_averaged_over_time_and_groups() -> None:
    rng = np.random.default_rng(19)
    x, y = rng.normal(size=(3, 2, 6, 2)), rng.normal(0.5, 1, (3, 2, 8, 2))
    biased, unbiased, p = metrics.permutation_test(x, y, rounds=19)
    for value, flag in ((biased, True), (unbiased, False)):
        each = [
            metrics.squared_mmd(x[t, g], y[t, g], biased=flag) for t in range(3) for g in (0, 1)
        ]
        assert value == pytest.approx(np.mean(each), abs=1e-12)
    assert 1 / 20 <= p <= 1
    assert metrics.permutation_test(x, y, rounds=19) == (biased, unbiased, p)


def test_p_values_are_uniform_if_there_is_no_difference_however_long_the_memory() -> None:
    """Trajectories that never move: of frames dealt one by one all would look different."""
    rng = np.random.default_rng(20)
    p = []
    for i in range(200):
        values = np.broadcast_to(rng.normal(size=(1, 2, 12, 1)), (5, 2, 12, 1))
        p.append(metrics.permutation_test(values[:, :, :6], values[:, :, 6:], rounds=99, seed=i)[2])
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    shifted = values + np.r_[np.zeros(6), np.full(6, 2.5)][:, None]
    assert metrics.permutation_test(shifted[:, :, :6], shifted[:, :, 6:])[2] < 0.01


# -- ranks, and what is refused ------------------------------------------------------------


@pytest.mark.mpi
@forms
def test_same_bits_on_any_number_of_ranks(comm: MPI.Intracomm, system: PredatorPrey) -> None:
    def run(where: MPI.Intracomm | None) -> np.ndarray:
        sim = simulation(system, seed=21, members=5, comm=where)
        sim.advance(20)
        _, after = evolve_patches(system, sim.x, sim.numbers, 5, dt=0.01, draws=3, seed=21)
        sim.advance(20)
        count = len(sim.numbers)
        return np.concatenate([sim.x.reshape(count, 40), after.reshape(count, 30)], axis=1)

    rows = gather_records(run(comm), comm)
    if comm.rank == 0:
        np.testing.assert_array_equal(rows, run(None))


@forms
def test_runs_go_on_where_they_stopped_and_noise_goes_by_numbers(system: PredatorPrey) -> None:
    whole, parts = (simulation(system, seed=22, members=3) for _ in range(2))
    last = simulation(system, seed=22, first=2)
    whole.advance(10)
    parts.advance(4)
    parts.advance(6)
    last.advance(10)
    np.testing.assert_array_equal(whole.x, parts.x)
    np.testing.assert_array_equal(whole.x[2], last.x[0])
    assert whole.time == pytest.approx(0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"sites": 1},
        {"form": "printed"},
        {"growth": -1.0},
        {"death": math.nan},
        {"prey_diffusion": -0.1},
        {"noise": math.inf},
    ],
)
def test_systems_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        PredatorPrey(**options)


def test_steps_patches_starts_and_plans_that_cannot_work_are_refused() -> None:
    system = PredatorPrey(20)
    for dt in (0.0, system.longest_step, math.nan):
        with pytest.raises(InputError, match="dt"):
            PredatorPreySimulation(system, dt=dt)
    with pytest.raises(InputError, match="members"):
        PredatorPreySimulation(system, members=0)
    sim = simulation(system)
    for bad in (np.zeros(3), np.full((2, 20), math.nan)):
        with pytest.raises(InputError, match="x="):
            sim.set(bad)
    x = sim.x
    for name, patch, states, draws in (
        ("patch", 3, x, 1),
        ("draws", 5, x, 0),
        ("states", 5, x[:, :, 1:], 1),
    ):
        with pytest.raises(InputError, match=name):
            evolve_patches(system, states, sim.numbers, patch, dt=0.01, draws=draws)
    for name, value in (("patch", 33), ("draws", 0), ("frames", 0)):
        with pytest.raises(InputError, match=name):
            PredatorPreyPlan(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["published", "pde"])
def test_what_a_step_does_to_the_noise_is_known(form: Any) -> None:
    """Of the means: Lyapunov's equations in discrete and in continuous time, solved by scipy."""
    system, dt = PredatorPrey(30, form, prey_diffusion=0.1), 0.1
    found = system.excess(dt)
    assert found is not None
    jacobian = system.jacobian()
    discrete = solve_discrete_lyapunov(np.eye(2) + dt * jacobian, dt * np.eye(2))
    exact = solve_continuous_lyapunov(jacobian, -np.eye(2))
    assert np.allclose(found[0], np.diag(discrete) / np.diag(exact) - 1)
    assert found[0].min() > 0.2  # such a step is accepted, and said to be long
    assert np.abs(system.excess(0.01)).max() < 0.02
    assert system.excess(0.9 if form == "published" else 0.99) is None  # unstable there


def test_a_long_step_is_said_in_the_log() -> None:
    def remarks(**options: Any) -> list[str]:
        config = PredatorPreyConfig(size=100, time=1, out=Path("x.h5"), **options)
        return build_lines(config, MPI.COMM_SELF).sim.remarks()

    assert "of the means 24 %" in " ".join(remarks(dt=0.1))
    assert remarks(dt=0.01) == remarks(dt=0.1, noise=0.0) == []
