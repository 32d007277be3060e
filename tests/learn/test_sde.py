"""The macroscopic SDE: its loss, what it learns on exactly known processes, its rollouts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from far import bits_of_the_cpu
from torch.distributions import MultivariateNormal

from mpiflow.core.noise import normals, stream_key
from mpiflow.learn.layers import BLOCK
from mpiflow.learn.paths import normal_lanes
from mpiflow.learn.sde import LearnedSDE, MacroscopicSDE
from mpiflow.learn.training import Schedule, fit


def random_sde(dim: int = 3, factor: float = 4.0) -> MacroscopicSDE:
    torch.manual_seed(0)
    sde = MacroscopicSDE(dim, width=8, factor=factor)
    for p in sde.parameters():
        torch.nn.init.normal_(p, std=0.3)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(50, dim)) * np.arange(1, dim + 1) + 5.0
    sde.set_scales(z, rng.normal(size=(50, 2, dim)), np.full((50, 2), 0.5))
    return sde


def test_loss_is_the_gaussian_log_likelihood_with_covariance_factor() -> None:
    """Equation (7), up to the constants that do not depend on the networks."""
    sde = random_sde()
    rng = np.random.default_rng(1)
    z = torch.as_tensor(rng.normal(size=(7, 3)) + 5.0, dtype=torch.float32)
    increments = torch.as_tensor(rng.normal(size=(7, 4, 3)), dtype=torch.float32)
    dt = torch.as_tensor(rng.uniform(0.1, 1.0, size=(7, 4)), dtype=torch.float32)
    with torch.no_grad():
        loss = sde(z, increments, dt)
        drift, root = sde.drift(z), sde.cholesky(z)
        exact = torch.zeros(7)
        for b in range(7):
            for p in range(4):
                covariance = 4.0 * dt[b, p] * root[b] @ root[b].T
                normal = MultivariateNormal(drift[b] * dt[b, p], covariance)
                exact[b] -= 2.0 * normal.log_prob(increments[b, p]) / 4
        scale = torch.log(sde.std * sde.noise).sum()
        constant = 3 * np.log(2 * np.pi) + 2 * scale + 3 * torch.log(4.0 * dt).mean(dim=1)
    torch.testing.assert_close(loss + constant, exact, rtol=1e-4, atol=1e-4)


def test_pairs_of_one_state_count_as_pairs() -> None:
    sde = random_sde()
    rng = np.random.default_rng(2)
    z = torch.as_tensor(rng.normal(size=(5, 3)) + 5.0, dtype=torch.float32)
    increments = torch.as_tensor(rng.normal(size=(5, 3, 3)), dtype=torch.float32)
    dt = torch.full((5, 3), 0.25)
    apart = torch.stack([sde(z, increments[:, [p]], dt[:, [p]]) for p in range(3)]).mean(dim=0)
    torch.testing.assert_close(sde(z, increments, dt), apart)


def test_covariance_is_bounded_below_in_training_and_prediction() -> None:
    sde = random_sde()
    with torch.no_grad():
        for p in sde.sigma_net.parameters():
            p.fill_(-10.0)
        diagonal = torch.diagonal(sde.cholesky(torch.zeros(4, 3)), dim1=1, dim2=2)
    assert torch.all(diagonal >= 0.99e-3 * sde.std * sde.noise)
    assert torch.isfinite(sde(torch.zeros(4, 3), torch.zeros(4, 1, 3), torch.ones(4, 1))).all()


@pytest.mark.parametrize("patches", [1, 16])
def test_it_learns_an_ornstein_uhlenbeck_process_from_one_patch_of_k(patches: int) -> None:
    """N independent parts, the mean of which obeys dz = -A (z - c) dt + B dW / sqrt(K).

    A pair is the increment of one part: lambda = K must undo the extra noise.
    """
    rng = np.random.default_rng(3)
    rate = np.array([[0.5, 0.2], [-0.1, 0.3]])
    noise = np.array([[0.4, 0.0], [0.1, 0.2]])
    centre, dt, n, p = np.array([1.0, -0.5]), 0.1, 6000, 16
    z = centre + rng.normal(size=(n, 2)) * 0.8
    kicks = rng.normal(size=(n, p, 2)) @ noise.T * np.sqrt(dt)
    increments = (-(z - centre) @ rate.T * dt)[:, None] + kicks
    torch.manual_seed(0)
    sde = MacroscopicSDE(2, width=32, factor=float(patches))
    elapsed = np.full((n, p), dt)
    sde.set_scales(z, increments, elapsed)
    fit(sde, (z, increments, elapsed), seed=0, schedule=Schedule(epochs=25, batch=200))
    points = centre + np.array([[0.0, 0.0], [0.8, 0.0], [0.0, -0.8], [-0.5, 0.5]])
    with torch.no_grad():
        at = torch.as_tensor(points, dtype=torch.float32)
        drift, root = sde.drift(at).numpy(), sde.cholesky(at).numpy()
    # Sampling error of the drift: noise / sqrt(pairs nearby * dt), about 0.01 here.
    np.testing.assert_allclose(drift, -(points - centre) @ rate.T, atol=0.05)
    covariance = root @ root.transpose(0, 2, 1) * patches
    np.testing.assert_allclose(covariance, np.broadcast_to(noise @ noise.T, (4, 2, 2)), atol=0.012)


def test_rollout_is_euler_maruyama_with_the_right_moments() -> None:
    """An SDE of constant coefficients: mean and covariance at time t are known."""
    torch.manual_seed(0)
    sde = MacroscopicSDE(2, width=4, factor=1.0)
    z = np.array([[-100.0, -100.0], [100.0, 100.0]])
    sde.set_scales(z, np.array([[[0.3, 0.1]], [[-0.3, -0.1]]]), np.ones((2, 1)))
    with torch.no_grad():
        sde.drift_net[-1].bias.copy_(torch.tensor([0.5, -0.25]) / sde.std)  # type: ignore[operator]
    members = 20_000
    start = np.zeros((members, 2))
    path, clipped = sde.rollout(
        start, np.arange(members), dt=0.5, steps=8, save=np.array([0, 4, 8]), seed=1
    )
    assert clipped == 0
    assert path.shape == (3, members, 2)
    assert np.array_equal(path[0], start)
    with torch.no_grad():
        root = sde.cholesky(torch.zeros(1, 2))[0].numpy()
    for i, t in ((1, 2.0), (2, 4.0)):
        spread = np.sqrt(np.diag(root @ root.T) * t)
        error = spread / np.sqrt(members)
        assert np.all(np.abs(path[i].mean(axis=0) - np.array([0.5, -0.25]) * t) < 4 * error)
        np.testing.assert_allclose(path[i].std(axis=0), spread, rtol=0.02)


class Own(MacroscopicSDE):
    """The same equations under another name: torch computes it, in chunks."""

    chunk = 16

    def _rate(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return super()._rate(x, *context)


@bits_of_the_cpu
@pytest.mark.parametrize(("kind", "chunk"), [(MacroscopicSDE, BLOCK), (Own, Own.chunk)])
def test_a_trajectory_does_not_depend_on_its_company(
    kind: type[MacroscopicSDE], chunk: int
) -> None:
    sde = random_sde()
    sde.__class__ = kind
    z0 = np.random.default_rng(5).normal(size=(2 * chunk + 7, 3)) + 5.0
    keys = np.arange(len(z0))
    options = {"dt": 0.1, "steps": 6, "save": np.array([0, 6]), "seed": 3}
    whole, _ = sde.rollout(z0, keys, **options)
    for some in (slice(chunk, chunk + 50), slice(3, 4), slice(chunk - 3, chunk + 6)):
        part, _ = sde.rollout(z0[some], keys[some], **options)
        assert np.array_equal(whole[:, some], part)


@pytest.mark.parametrize(("dim", "context"), [(3, 0), (2, 1)])
def test_kernels_go_the_way_of_torch(dim: int, context: int) -> None:
    """Frames, held states and what is said of them, with the noise of the same keys."""
    rng = np.random.default_rng(dim)
    torch.manual_seed(1)
    z, given = rng.normal(size=(200, dim)) + 2.0, rng.normal(size=(200, context)) * 3.0 + 500.0
    sde = MacroscopicSDE(dim, 24, 2.0, context)
    for p in sde.parameters():
        torch.nn.init.normal_(p, std=0.2)
    sde.set_scales(z, rng.normal(size=(200, 1, dim)), np.full((200, 1), 0.5))
    if context:
        sde.set_context(given)
    save, found, said = np.array([0, 1, 7, 20]), [], []
    for kind in (MacroscopicSDE, Own):
        sde.__class__ = kind
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            path = sde.rollout(
                z, np.arange(100, 300), dt=0.1, steps=20, save=save, seed=4, noise=1.5,
                context=given if context else None,
            )  # fmt: skip
        found.append(path)
        said.append([str(w.message) for w in caught])
    np.testing.assert_allclose(found[0][0], found[1][0], atol=2e-5)
    assert found[0][1] == found[1][1] > 0
    assert said[0] == said[1] != []


def test_noise_of_lanes_is_that_of_a_member() -> None:
    members = np.arange(1000, 1000 + BLOCK, dtype=np.uint64)
    out, words = np.empty((4, BLOCK)), np.empty((2, BLOCK), np.uint64)
    normal_lanes(stream_key(6, "sde"), members, np.uint64(9), words, out)
    np.testing.assert_allclose(out[:3].T, normals(6, "sde", members, 9, 3), atol=1e-14)


def test_states_are_held_inside_the_training_range_and_counted() -> None:
    sde = random_sde()
    with torch.no_grad():
        sde.drift_net[-1].bias.fill_(1e3)  # type: ignore[union-attr]
    path, clipped = sde.rollout(
        np.full((5, 3), 5.0), np.arange(5), dt=1.0, steps=3, save=np.array([3]), seed=0
    )
    assert clipped == 15
    assert np.all(path <= sde.high.numpy() + 1e-6)


class Returning(LearnedSDE):
    """dx = -rate x dt + dB in one latent and a tenth of the rate in another."""

    def _rate(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return -x * torch.tensor([4.0, 0.4]).to(x.device)

    def _entries(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(x), 3, device=x.device)


@pytest.mark.parametrize(
    ("dt", "said"), [(0.02, ""), (0.1, "about 25% too"), (0.6, "without bound")]
)
def test_long_steps_are_warned_of(dt: float, said: str) -> None:
    """Euler and Maruyama: variances 1 / (1 - rate dt / 2) times as large, here at the rate 4."""
    sde, z = Returning(2), np.zeros((5, 2))
    sde.low.fill_(-100)
    sde.high.fill_(100)
    assert sde.relaxation(z) == pytest.approx(4, rel=1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sde.rollout(z, np.arange(5), dt=dt, steps=2, save=np.array([2]), seed=1)
    texts = [str(w.message) for w in caught]
    assert len(texts) == bool(said)
    assert not said or said in texts[0]


def test_residuals_are_white_and_drifts_in_the_same_units() -> None:
    """Of kicks that are known, with a covariance that depends on z."""
    sde, rng = random_sde(), np.random.default_rng(4)
    z = rng.normal(size=(50, 3)) * np.arange(1, 4) + 5.0
    dt = rng.uniform(0.1, 0.3, (50, 5))
    with torch.no_grad():
        at = torch.as_tensor(z, dtype=torch.float32)
        drift, root = sde.drift(at).numpy(), sde.cholesky(at).numpy()
    white = rng.normal(size=(50, 5, 3))
    unit = np.sqrt(sde.factor * dt)[..., None]
    moved = drift[:, None] * dt[..., None]
    rest, known = sde.white(z, moved + np.einsum("bij,bpj->bpi", root, white) * unit, dt)
    np.testing.assert_allclose(rest, white, atol=2e-3)
    np.testing.assert_allclose(np.einsum("bij,bpj->bpi", root, known) * unit, moved, atol=1e-4)
