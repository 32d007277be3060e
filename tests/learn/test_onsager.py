"""The OnsagerNet SDE: parts of its drift, its diffusion, its rollouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mpi4py import MPI

from mpiflow.learn.alloy.onsager_net import MOBILITY, OnsagerSDE
from mpiflow.learn.training import Schedule, fit

DIM = 3


def random_sde(*, force: bool = True, factor: float = 4.0) -> OnsagerSDE:
    """All weights random, so that no part vanishes."""
    torch.manual_seed(0)
    sde = OnsagerSDE(DIM, width=8, factor=factor, force=force)
    for p in sde.parameters():
        torch.nn.init.normal_(p, std=0.4)
    rng = np.random.default_rng(0)
    z = 0.3 * rng.normal(size=(50, DIM)) * np.arange(1, DIM + 1) + 0.5
    increments = 0.02 * rng.normal(size=(50, 2, DIM)) - 0.01 * (z - 0.5)[:, None]
    sde.set_conditions(z, increments, np.full((50, 2), 0.5), np.linspace(500.0, 3000.0, 50))
    sde.eval()
    return sde


def points(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised states and temperatures, (B, 3) and (B, 1) float64."""
    rng = np.random.default_rng(1)
    return torch.as_tensor(1.5 * rng.normal(size=(count, DIM))), torch.as_tensor(
        rng.uniform(500.0, 3000.0, size=(count, 1))
    )


def test_the_gradient_is_that_of_the_potential() -> None:
    sde = random_sde().double()
    x, temperature = points()
    gradient = sde.parts(x, temperature).gradient
    for i in range(DIM):
        shift = torch.zeros(DIM, dtype=x.dtype)
        shift[i] = 1e-5
        above, below = (sde.parts(x + s, temperature).potential for s in (shift, -shift))
        torch.testing.assert_close(
            gradient[:, i], (above - below).detach() / 2e-5, rtol=1e-6, atol=1e-7
        )


def test_the_drift_is_the_formula() -> None:
    """mu = -(M + W + alpha I) grad V + f, matrix by matrix, in units of speed and std."""
    sde = random_sde().double()
    x, temperature = points()
    with torch.no_grad():
        parts = sde.parts(x, temperature)
        drift = sde.drift(sde.mean + sde.std * x, temperature)
        for b in range(len(x)):
            matrix = parts.dissipation[b] + parts.conservation[b]
            expected = sde.std * sde.speed * (parts.force[b] - matrix @ parts.gradient[b])
            torch.testing.assert_close(drift[b], expected)
    assert parts.force.abs().min() > 0


def test_dissipation_is_positive_and_conservation_antisymmetric() -> None:
    sde = random_sde().double()
    with torch.no_grad():
        x, temperature = points()
        parts, s = sde.parts(x, temperature), sde.scale_of(temperature)
    assert torch.equal(parts.conservation, -parts.conservation.mT)
    assert parts.conservation.abs().max() > 1e-3
    torch.testing.assert_close(parts.dissipation, parts.dissipation.mT)
    unscaled = parts.dissipation / s[:, :, None] / s[:, None, :]
    assert torch.linalg.eigvalsh(unscaled).min() >= MOBILITY * (1 - 1e-6)


def test_without_force_the_potential_never_grows_and_confines() -> None:
    """dV/dt = -grad V . S (M + alpha I) S grad V; W does not enter."""
    sde = random_sde(force=False).double()
    x, temperature = points()
    with torch.no_grad():
        parts = sde.parts(x, temperature)
        change = (parts.gradient * parts.drift).sum(dim=1)
        pulled = sde.scale_of(temperature) * parts.gradient
        assert torch.all(change <= -MOBILITY * (pulled**2).sum(dim=1) * (1 - 1e-6))
        far = sde.parts(100.0 * x, temperature)
        assert torch.all(far.potential > 0.05 * (100.0 * x).square().sum(dim=1) * (1 - 1e-9))
        # Along the flow itself, with steps short enough for the stiffest potential.
        v = parts.potential
        for _ in range(200):
            x = x + 1e-4 * sde.parts(x, temperature).drift
            after = sde.parts(x, temperature).potential
            assert torch.all(after <= v)
            v = after


def test_diffusion_has_a_positive_cholesky_factor() -> None:
    sde = random_sde()
    x, temperature = points()
    with torch.no_grad():
        root = sde.cholesky((sde.mean + sde.std * x).float(), temperature.float())
    assert torch.equal(root, torch.tril(root))
    assert torch.all(torch.diagonal(root, dim1=1, dim2=2) > 0)
    assert torch.all(torch.linalg.eigvalsh(root @ root.mT) > 0)


def test_an_untrained_model_relaxes_to_the_mean_of_the_data() -> None:
    """At the rate that a regression sees: a safe start of training."""
    rng = np.random.default_rng(4)
    z = 0.3 * rng.normal(size=(2000, DIM)) + 0.5
    increments = -0.02 * (z - 0.5)[:, None] + 0.002 * rng.normal(size=(2000, 1, DIM))
    torch.manual_seed(0)
    sde = OnsagerSDE(DIM)
    sde.set_conditions(z, increments, np.ones((2000, 1)), np.linspace(500.0, 3000.0, 2000))
    np.testing.assert_allclose(sde.speed, 0.02, rtol=0.02)
    x, temperature = (t.float() for t in points())
    with torch.no_grad():
        drift = sde.drift(sde.mean + sde.std * x, temperature) / sde.std
    pull = -(drift * x).sum(dim=1) / (x**2).sum(dim=1)
    far = x.norm(dim=1) > 1.0
    assert torch.all((pull[far] > 0.005) & (pull[far] < 0.08))


def test_training_sees_the_gradient_of_every_parameter() -> None:
    """Double backward works, and no parameter is idle: DDP would wait for it."""
    sde = random_sde().train()
    rng = np.random.default_rng(2)
    z = torch.as_tensor(rng.normal(size=(20, DIM)), dtype=torch.float32)
    increments = torch.as_tensor(rng.normal(size=(20, 2, DIM)), dtype=torch.float32)
    temperature = torch.linspace(500.0, 3000.0, 20)[:, None]
    sde(z, increments, torch.ones(20, 2), temperature).sum().backward()
    for name, p in sde.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_evaluation_and_training_mode_agree() -> None:
    sde = random_sde()
    x, temperature = (t.float() for t in points())
    with torch.no_grad():
        before = sde.eval().drift(x, temperature)
        after = sde.train().drift(x, temperature)
    torch.testing.assert_close(before, after)


def test_a_trajectory_does_not_depend_on_its_company() -> None:
    sde = random_sde()
    size = sde.chunk + 30
    z0 = 0.5 + 0.1 * np.random.default_rng(5).normal(size=(size, DIM))
    kelvin = np.linspace(600.0, 2900.0, size)[:, None]
    keys = np.arange(size)
    options = {"dt": 0.01, "steps": 6, "save": np.array([6]), "seed": 3}
    whole, _ = sde.rollout(z0, keys, context=kelvin, **options)
    some = slice(sde.chunk, sde.chunk + 9)
    part, _ = sde.rollout(z0[some], keys[some], context=kelvin[some], **options)
    assert np.array_equal(whole[:, some], part)


def test_noise_of_a_rollout_scales() -> None:
    """The first step from one state: z + mu dt + noise L sqrt(dt) xi."""
    sde = random_sde()
    z0, keys = np.full((4, DIM), 0.5), np.arange(4)
    options = {"dt": 1e-3, "steps": 1, "save": np.array([1]), "seed": 3}
    kelvin = np.full((4, 1), 2000.0)
    steps = [sde.rollout(z0, keys, context=kelvin, noise=s, **options)[0][0] for s in (0, 1, 3)]
    np.testing.assert_allclose(steps[2] - steps[0], 3 * (steps[1] - steps[0]), rtol=1e-3, atol=1e-6)
    assert np.ptp(steps[0], axis=0).max() == 0


@pytest.mark.mpi(min_size=2)
def test_it_trains_over_ranks(comm: MPI.Intracomm) -> None:
    """The same result as on one rank, up to rounding."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(64, DIM))
    data = (z, -0.1 * z[:, None], np.ones((64, 1)), np.linspace(500.0, 3000.0, 64)[:, None])
    results = []
    for ranks in (None, comm):
        torch.manual_seed(0)
        sde = OnsagerSDE(DIM, width=8)
        sde.set_conditions(*data[:3], data[3][:, 0])
        fit(sde, data, seed=0, schedule=Schedule(epochs=2, batch=16), comm=ranks)
        results.append(torch.cat([p.detach().ravel() for p in sde.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)


def test_strength_of_the_noise_by_temperature() -> None:
    """An Arrhenius law of the noise is found; the model's noise then has it untrained."""
    rng = np.random.default_rng(6)
    kelvin = np.repeat(np.linspace(800.0, 3000.0, 12), 500)
    law = np.exp(-2000.0 / kelvin)
    increments = law[:, None, None] * rng.normal(size=(6000, 2, DIM))
    sde = OnsagerSDE(DIM)
    sde.set_conditions(rng.normal(size=(6000, DIM)), increments, np.ones((6000, 2)), kelvin)
    grid = torch.linspace(800.0, 3000.0, 40)[:, None]
    with torch.no_grad():
        scale = sde.scale_of(grid).numpy()
        cholesky = sde.cholesky(sde.mean + 0.0 * sde.std.repeat(40, 1), grid)
    exact = np.exp(-2000.0 / grid.numpy())
    np.testing.assert_allclose(scale / scale[-1], np.repeat(exact / exact[-1], DIM, 1), rtol=0.1)
    found = torch.diagonal(cholesky, dim1=1, dim2=2).numpy()
    np.testing.assert_allclose(found, np.repeat(exact, DIM, 1), rtol=0.1)
