"""The linear chain against its moment equations, its patches against Theorem 1's conditions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from scipy import stats
from scipy.linalg import solve_discrete_lyapunov

from mpiflow.core.block import gather_records
from mpiflow.core.errors import InputError
from mpiflow.learn.closure.linear import LinearSDE, minimum, pair_sums
from mpiflow.learn.training import Schedule, fit
from mpiflow.solvers.lines.chain import ChainSimulation
from mpiflow.systems.linear_chain import LinearChain

LONG = LinearChain(20)


def published_drift(chain: LinearChain) -> tuple[np.ndarray, np.ndarray]:
    """A and F e_1 of the drift A x + F e_1, line by line as in the paper."""
    n, gamma, kappa = chain.sites, chain.friction, chain.coupling
    a, push = np.zeros((n, n)), np.zeros(n)
    for i in range(n):
        a[i, i] -= gamma
        for j in (i - 1, i + 1):
            if 0 <= j < n:
                a[i, i] -= kappa
                a[i, j] += kappa
    push[0] = chain.force
    return a, push


def simulation(chain: LinearChain, **options: Any) -> ChainSimulation:
    sim = ChainSimulation(chain, **options)
    sim.set(chain.resting())
    return sim


def sigmas(values: np.ndarray, expected: np.ndarray | float) -> np.ndarray:
    """How far means over axis 0 are off, in their standard errors."""
    error = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    return np.asarray((values.mean(axis=0) - expected) / error)


def chi_square(z: np.ndarray) -> float:
    """The chance of independent z at least so large."""
    return float(stats.chi2.sf((z**2).sum(), z.size))


# -- the whole chain ---------------------------------------------------------------------


def test_a_step_without_noise_is_the_published_drift() -> None:
    chain = LinearChain(7, force=2.0, friction=0.3, coupling=1.7, noise=0.0)
    a, push = published_drift(chain)
    x = np.random.default_rng(1).normal(size=(3, 7))
    sim = ChainSimulation(chain, dt=0.1, members=3)
    sim.set(x)
    sim.advance(2)
    for _ in range(2):
        x = x + 0.1 * (x @ a.T + push)
    np.testing.assert_allclose(sim.x, x, rtol=0, atol=1e-14)
    np.testing.assert_allclose(a @ chain.resting() + push, 0.0, atol=1e-13)


def test_the_mean_displacement_is_closed() -> None:
    """Rows of A sum to -gamma in every column: m has no need of the other modes."""
    chain = LinearChain(10)
    a, push = published_drift(chain)
    slope, bias, diffusion = chain.macroscopic()
    np.testing.assert_allclose(a.sum(axis=0), slope, atol=1e-15)
    assert bias == push.mean() == 1.5
    assert diffusion == pytest.approx(0.31623, abs=1e-5)
    assert LinearChain(100).macroscopic() == pytest.approx((-0.1, 0.15, 0.1))


def test_mean_and_covariance_follow_the_moment_equations() -> None:
    """Of steps of finite length, so that there is no error to allow for: all sites, all pairs."""
    chain, dt, steps, members = LinearChain(6), 0.2, 12, 20000
    a, push = published_drift(chain)
    step = np.eye(6) + dt * a
    mean, covariance = np.full(6, 3.0), np.zeros((6, 6))
    for _ in range(steps):
        mean = step @ mean + dt * push
        covariance = step @ covariance @ step.T + dt * np.eye(6)
    sim = ChainSimulation(chain, dt=dt, seed=2, members=members)
    sim.set(3.0)
    sim.advance(steps)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (sim.x - mean).T)
    means = white.mean(axis=1) * math.sqrt(members)
    squares = (white @ white.T / members - np.eye(6)) * math.sqrt(members)
    i, j = np.triu_indices(6, 1)
    z = np.concatenate([means, np.diag(squares) / math.sqrt(2), squares[i, j]])
    assert 1e-4 < chi_square(z) < 1 - 1e-4


def test_long_runs_have_the_stationary_law() -> None:
    chain, dt = LinearChain(6), 0.2
    a, _ = published_drift(chain)
    step = np.eye(6) + dt * a
    covariance = solve_discrete_lyapunov(step, dt * np.eye(6))
    sim = simulation(chain, dt=dt, seed=3, members=4000)
    sim.advance(400)  # 8 times the slowest relaxation
    white = np.linalg.solve(np.linalg.cholesky(covariance), (sim.x - chain.resting()).T)
    assert 1e-4 < stats.kstest(white.ravel(), "norm").pvalue
    assert 1e-4 < chi_square(white.mean(axis=1) * math.sqrt(4000)) < 1 - 1e-4


def test_exact_moments_are_those_of_short_steps() -> None:
    """The law of m from the recursion of its moments over ever shorter steps."""
    chain = LinearChain(10)
    (slope, bias, c), end = chain.macroscopic(), 7.0
    exact = np.ravel(chain.moments(np.array([end]), 2.0))
    errors = []
    for steps in (200, 400):
        dt, mean, variance = end / steps, 2.0, 0.0
        for _ in range(steps):
            mean += dt * (slope * mean + bias)
            variance = (1 + slope * dt) ** 2 * variance + c * c * dt
        errors.append(abs(np.array([mean, variance]) - exact))
    np.testing.assert_allclose(errors[1] / errors[0], 0.5, atol=0.01)
    assert (errors[1] < 2e-3 * exact).all()


def test_noise_is_white_over_sites_and_steps() -> None:
    chain = LinearChain(6, force=0.0, coupling=0.0)
    sim = ChainSimulation(chain, dt=0.25, seed=4, members=20000)
    sim.set(0.0)
    rows = []
    for _ in range(2):
        before = sim.x.copy()
        sim.advance(1)
        rows.append((sim.x - before * (1 - 0.25 * 0.1)) / 0.5)
    xi = np.concatenate(rows, axis=1)
    assert 1e-4 < stats.kstest(xi.ravel(), "norm").pvalue
    products = xi.T @ xi / math.sqrt(len(xi))
    assert 1e-4 < chi_square(products[np.triu_indices(12, 1)]) < 1 - 1e-4


# -- patches ---------------------------------------------------------------------------


def test_increments_of_patches_have_the_conditional_mean_and_variance_of_the_chain() -> None:
    """E[D | x] = (-gamma m + F / N) dt, exactly; the variance K c^2 dt and that of the drift."""
    dt, draws = 0.05, 200_000
    a, push = published_drift(LONG)
    slope, bias, c = LONG.macroscopic()
    sim = ChainSimulation(LONG, seed=5)
    x = LONG.resting() + np.random.default_rng(5).normal(size=20)
    sim.set(x)
    changes = sim.partial_evolution(5, dt=dt, draws=draws)[0]
    drifts = (a @ x + push).reshape(4, 5).mean(axis=1)
    assert drifts.mean() == pytest.approx(slope * x.mean() + bias, abs=1e-12)
    assert abs(sigmas(changes, drifts.mean() * dt)) < 4
    variance = 4 * c * c * dt + drifts.var() * dt**2
    assert drifts.var() * dt**2 > 0.01 * variance  # the test would see it missing
    assert abs(sigmas((changes - drifts.mean() * dt) ** 2, variance)) < 4
    np.testing.assert_array_equal(sim.x[0], x)


def test_without_noise_increments_are_the_drifts_of_the_patches() -> None:
    chain = LinearChain(20, noise=0.0)
    a, push = published_drift(chain)
    x = np.random.default_rng(6).normal(size=20)
    sim = ChainSimulation(chain, seed=6)
    sim.set(x)
    changes = sim.partial_evolution(5, dt=0.05, draws=4000)[0]
    drifts = 0.05 * (a @ x + push).reshape(4, 5).mean(axis=1)
    nearest = abs(changes[:, None] - drifts).argmin(axis=1)
    np.testing.assert_allclose(changes, drifts[nearest], atol=1e-14)
    assert stats.chisquare(np.bincount(nearest, minlength=4)).pvalue > 1e-4


def test_frozen_surroundings_cost_an_error_of_second_order_in_time() -> None:
    """The mean over all patches against the chain; Theorem 1 asks for C dt^2."""
    chain = LinearChain(20, noise=0.0)
    x = np.random.default_rng(7).normal(size=20)
    errors = []
    for time in (0.04, 0.02, 0.01):
        sim = ChainSimulation(chain, dt=time / 10, seed=7)
        sim.set(x)
        # Without noise a patch has one increment: the mean over those seen is over patches.
        seen = np.unique(sim.partial_evolution(5, dt=time / 10, steps=10, draws=200)[0])
        assert len(seen) == 4
        sim.advance(10)
        errors.append(abs(seen.mean() - (sim.mean_displacement()[0] - x.mean())))
    assert errors[0] > 1e-6
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 2.0, atol=0.06)


def test_the_only_patch_of_a_chain_is_the_chain() -> None:
    """Both ends free: exact in mean and variance over many steps, too."""
    chain, dt, steps = LinearChain(10), 0.1, 20
    sim = simulation(chain, seed=8)
    changes = sim.partial_evolution(10, dt=dt, steps=steps, draws=100_000)[0]
    slope, _, c = chain.macroscopic()
    factor = 1 + slope * dt
    variance = c * c * dt * (1 - factor ** (2 * steps)) / (1 - factor**2)
    assert abs(sigmas(changes, 0.0)) < 4
    assert abs(sigmas(changes**2, variance)) < 4


def test_increments_are_independent_of_each_other_and_of_the_next_step() -> None:
    sim = simulation(LONG, seed=9, members=50_000)
    before = sim.mean_displacement()
    changes = [*sim.partial_evolution(5, dt=0.01, draws=2).T]
    sim.advance(1)
    changes += [sim.mean_displacement() - before, *sim.partial_evolution(5, dt=0.01, draws=2).T]
    z = [stats.pearsonr(a, b)[0] for i, a in enumerate(changes) for b in changes[:i]]
    assert 1e-4 < chi_square(np.array(z) * math.sqrt(50_000)) < 1 - 1e-4


# -- the macroscopic SDE -----------------------------------------------------------------


@pytest.mark.parametrize(("sites", "draws"), [(10, 2), (100, 2)])
def test_what_is_learned_is_the_macroscopic_equation(sites: int, draws: int) -> None:
    """Slope, bias and diffusion from pairs, each against the exact one in standard errors."""
    chain, dt, members = LinearChain(sites), 0.005, 400
    sim = ChainSimulation(chain, seed=10, members=members)
    rng = np.random.default_rng(10)
    sim.set(chain.resting() + rng.uniform(-15, 15, (members, 1)))
    sums = np.zeros((members, 6))
    for _ in range(200):
        m = sim.mean_displacement()
        sums += pair_sums(m, sim.partial_evolution(10, dt=dt, draws=draws))
        sim.advance(1)
    factor = sites / 10
    groups = [minimum(part.sum(axis=0), dt, factor) for part in np.split(sums, 20)]
    whole = np.array(minimum(sums.sum(axis=0), dt, factor))
    error = np.std(groups, axis=0, ddof=1) / math.sqrt(20)
    assert (abs(whole - chain.macroscopic()) < 4 * error).all()
    # What errors must be: of a regression, and of a variance.
    pairs, z, zz = sums.sum(axis=0)[:3]
    spread = zz / pairs - (z / pairs) ** 2
    expected = [math.sqrt(0.1 / (pairs * dt * spread)), whole[2] / math.sqrt(2 * pairs)]
    np.testing.assert_allclose(error[[0, 2]], expected, rtol=0.6)
    # Without the factor K the noise would be that of a chain of one patch.
    if sites == 100:
        wrong = minimum(sums.sum(axis=0), dt, 1.0)
        assert wrong[:2] == tuple(whole[:2])
        assert wrong[2] == pytest.approx(0.31623, rel=0.01)


def loss(values: tuple[float, float, float], z: np.ndarray, d: np.ndarray, dt: float) -> float:
    slope, bias, c = values
    s = 3.0 * c * c * dt
    return float(((d - (slope * z + bias) * dt) ** 2 / s + math.log(s)).mean())


def test_no_other_coefficients_have_a_smaller_loss() -> None:
    rng = np.random.default_rng(11)
    z, dt = rng.normal(2.0, 1.0, 500), 0.1
    d = (0.7 - 0.4 * z) * dt + rng.normal(0.0, 0.2, 500)
    best = minimum(pair_sums(z, d[:, None]).sum(axis=0), dt, 3.0)
    least = loss(best, z, d, dt)
    for i in range(3):
        for change in (-1e-3, 1e-3):
            moved = [v + change * (j == i) for j, v in enumerate(best)]
            assert loss((moved[0], moved[1], moved[2]), z, d, dt) > least


def test_gradient_descent_on_the_loss_ends_at_its_minimum() -> None:
    """The loss of LearnedSDE with its one training loop: nothing but the way there differs."""
    rng = np.random.default_rng(12)
    z, dt = rng.normal(1.0, 1.5, 4000), 0.05
    d = (0.15 - 0.1 * z)[:, None] * dt + rng.normal(0.0, 0.3 * math.sqrt(dt), (4000, 2))
    torch.manual_seed(0)
    sde = LinearSDE(factor=10.0)
    times = np.full(d.shape, dt)
    sde.set_scales(z[:, None], d[..., None], times)
    schedule = Schedule(epochs=60, batch=400, learning_rate=2e-2, patience=60, validation=0.5)
    # Validated by the pairs that it learns from: their loss, not chance, says when it is least.
    data = [np.concatenate([a, a]) for a in (z[:, None], d[..., None], times)]
    fit(sde, data, seed=0, schedule=schedule)
    best = minimum(pair_sums(z, d).sum(axis=0), dt, 10.0)
    found = sde.coefficients()
    # The standard error of the slope of these pairs is 0.01.
    np.testing.assert_allclose(found, best, atol=2e-3)


def test_predictions_have_the_exact_moments() -> None:
    chain = LinearChain(100)
    sde = LinearSDE()
    sde.set_coefficients(chain.macroscopic(), -20.0, 20.0)
    np.testing.assert_allclose(sde.coefficients(), chain.macroscopic(), rtol=1e-6)
    times = np.array([0.0, 5.0, 20.0])
    path, clipped = sde.rollout_at(np.zeros((3000, 1)), np.arange(3000), times, dt=0.1, seed=1)
    mean, variance = chain.moments(times, 0.0)
    m = path[1:, :, 0].T
    assert clipped == 0
    # Steps of 0.1 are off by gamma dt / 2, half a percent.
    assert (abs(sigmas(m, mean[1:] * [1.004, 1.001])) < 4).all()
    assert (abs(sigmas((m - m.mean(axis=0)) ** 2, variance[1:])) < 4).all()


# -- ranks, and what is refused ------------------------------------------------------------


@pytest.mark.mpi
def test_same_bits_on_any_number_of_ranks(comm: MPI.Intracomm) -> None:
    def run(where: MPI.Intracomm | None) -> np.ndarray:
        sim = simulation(LONG, seed=13, members=6, comm=where)
        sim.advance(5)
        changes = sim.partial_evolution(5, dt=0.01, steps=3, draws=4)
        sim.advance(5)
        return np.concatenate([sim.x, changes], axis=1)

    rows = gather_records(run(comm), comm)
    if comm.rank == 0:
        np.testing.assert_array_equal(rows, run(None))


def test_a_wide_patch_has_the_bits_of_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the noise of the chain, sites that the frozen edge has not reached are the chain's."""
    from mpiflow.solvers.lines import chain as module

    sim = simulation(LONG, seed=14)
    row = np.zeros(13)  # sites 3 to 13, and two that are frozen
    row[:] = sim.x[0, 2:15]
    law = module._law(LONG)
    module._evolve(row, 3, 20, sim._key[0], sim._key[1], np.uint64(0), 4, 0.01, np.empty(11), law)
    sim.advance(4)
    np.testing.assert_array_equal(row[4:-4], sim.x[0, 6:11])
    assert row[1] != sim.x[0, 3]


def test_runs_go_on_where_they_stopped() -> None:
    whole, parts = (simulation(LONG, seed=15, members=2) for _ in range(2))
    whole.advance(10)
    parts.advance(3)
    parts.partial_evolution(5, dt=0.01)  # leaves no trace
    parts.advance(7)
    np.testing.assert_array_equal(whole.x, parts.x)
    assert whole.time == parts.time == pytest.approx(0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"sites": 1},
        {"friction": 0.0},
        {"friction": math.nan},
        {"coupling": -1.0},
        {"noise": math.inf},
        {"force": math.nan},
    ],
)
def test_chains_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        LinearChain(**{"sites": 10, **options})


def test_steps_patches_and_starts_that_cannot_work_are_refused() -> None:
    for dt in (0.0, LONG.longest_step, math.nan):
        with pytest.raises(InputError, match="dt"):
            ChainSimulation(LONG, dt=dt)
    with pytest.raises(InputError, match="members"):
        ChainSimulation(LONG, members=0)
    sim = simulation(LONG)
    for bad in (np.zeros(3), np.zeros((2, 20))):
        with pytest.raises(InputError, match="x="):
            sim.set(bad)
    with pytest.raises(InputError, match="x="):
        sim.set(math.nan)
    for name, options in (
        ("patch", {"patch": 3}),
        ("dt", {"dt": 1.0}),
        ("steps", {"steps": 0}),
        ("draws", {"draws": 0}),
    ):
        with pytest.raises(InputError, match=name):
            sim.partial_evolution(**{"patch": 5, "dt": 0.01, **options})  # type: ignore[arg-type]


def test_a_step_below_the_longest_is_stable() -> None:
    """By the eigenvalues of a long chain; just above it is not."""
    chain = LinearChain(400)
    rates = np.linalg.eigvalsh(-published_drift(chain)[0])
    assert abs(1 - chain.longest_step * rates).max() <= 1
    assert abs(1 - 1.001 * chain.longest_step * rates).max() > 1


def test_pairs_that_say_nothing_are_refused() -> None:
    sums = pair_sums(np.ones(4), np.zeros((4, 1))).sum(axis=0)
    with pytest.raises(InputError, match="differ"):
        minimum(sums, 0.1, 1.0)
    good = pair_sums(np.arange(4.0), np.zeros((4, 1))).sum(axis=0)
    with pytest.raises(InputError, match="factor"):
        minimum(good, 0.1, 0.0)
    with pytest.raises(InputError, match="diffusion"):
        LinearSDE().set_coefficients(minimum(good, 0.1, 1.0), 0.0, 1.0)
