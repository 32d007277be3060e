"""Encoders of patches and the exact drifts that they should explain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.learn.closure import encoders
from mpiflow.learn.closure.dataset import DataPlan, class_densities, generate_pairs
from mpiflow.learn.closure.model import latent_pairs
from mpiflow.learn.sde import MacroscopicSDE
from mpiflow.learn.training import Schedule
from mpiflow.observables import class_counts
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import Ising

SYSTEM = Ising(2.5, 0.1)
PLAN = DataPlan(large=32, patch=16, states=150, repeats=3)
QUICK = Schedule(epochs=4, batch=32)


@pytest.fixture(scope="module")
def pairs() -> encoders.SpinPairs:
    return encoders.generate_spin_pairs(SYSTEM, PLAN, seed=1, chunk=64)


def spins(count: int, side: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (count, side, side))


def test_pairs_with_spins_are_those_of_the_statistics(pairs: encoders.SpinPairs) -> None:
    """So that encoders of spins and of statistics learn from the same data."""
    data = generate_pairs(SYSTEM, PLAN, seed=1)
    assert data is not None
    for name in ("index", "changes", "elapsed", "observables"):
        np.testing.assert_array_equal(getattr(pairs, name), getattr(data, name))
    np.testing.assert_array_equal(class_counts(pairs.states, 16), data.counts)
    after = class_counts(pairs.after.reshape(-1, 16, 16), 16)[:, 0]
    np.testing.assert_array_equal(after.reshape(data.after.shape), data.after)
    encoder = encoders.train_encoder("ours", SYSTEM, pairs, 2, seed=2, schedule=QUICK)
    assert isinstance(encoder, encoders.DensityEncoder)
    for ours, theirs in zip(
        encoders.latent_pairs(pairs, encoder),
        latent_pairs(data, encoder.autoencoder, "partial"),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def test_patches_are_cut_in_the_order_of_the_classes() -> None:
    states = spins(3, 32, 3)
    alone = class_counts(encoders.cut(states, 8).reshape(-1, 8, 8), 8).reshape(3, 16, 10)
    np.testing.assert_array_equal(alone, class_counts(states, 8))


def test_the_convolution_on_patterns_is_that_on_spins(pairs: encoders.SpinPairs) -> None:
    patches = spins(5, 16, 4)
    torch.manual_seed(4)
    model = encoders.PatternAutoencoder(2)
    patterns = encoders.pattern_densities(patches)
    with torch.no_grad():
        sites = model.encoder(torch.as_tensor(nn_windows(patches)))
        expected = sites.mean(dim=1).numpy()
        np.testing.assert_allclose(model.encode(torch.as_tensor(patterns)), expected, atol=1e-5)
    encoder = encoders.train_encoder("convolution", SYSTEM, pairs, 2, seed=4, schedule=QUICK)
    # Where a motif lies does not matter, as long as its surroundings lie in the patch too.
    motif, empty = spins(1, 5, 5)[0], -np.ones((2, 16, 16), np.int8)
    empty[0, 3:8, 2:7] = empty[1, 8:13, 9:14] = motif
    here, there = encoder.of_patches(empty)
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)
    assert abs(encoder.of_patches(patches) - here).max() > 0.1


def test_conditioned_closures_are_the_same_but_for_the_observables() -> None:
    rng = np.random.default_rng(13)
    patterns = encoders.pattern_densities(spins(400, 16, 13))
    weights = rng.normal(size=(512, 3))
    better = patterns @ encoders.conditioned(weights, patterns)
    np.testing.assert_allclose(np.cov(better.T, bias=True), np.eye(3), atol=1e-4)
    # Centre spin and its bonds, of inner sites.
    spin = 2.0 * (np.arange(512) >> 4 & 1) - 1.0
    bonds = sum(spin * (2.0 * (np.arange(512) >> bit & 1) - 1.0) for bit in (1, 3, 5, 7))
    known = patterns @ np.stack([spin, bonds], axis=1)
    both = np.column_stack([np.ones(400), known])
    assert abs(both.T @ (better - better.mean(axis=0))).max() < 1e-3 * 400
    # And the old ones are linear in the observables and the new ones.
    terms, old = np.column_stack([both, better]), patterns @ weights
    rest = old - terms @ np.linalg.lstsq(terms, old, rcond=None)[0]
    assert abs(rest).max() < 1e-6 * abs(old).max() + 1e-5


def nn_windows(patches: np.ndarray) -> np.ndarray:
    """All 3 x 3 windows of patches, (B, sites, 9) float32, row-major."""
    view = np.lib.stride_tricks.sliding_window_view(patches, (3, 3), axis=(1, 2))
    return view.reshape(len(patches), -1, 9).astype(np.float32)


@pytest.mark.parametrize("kind", encoders.KINDS)
def test_closures_of_a_lattice_are_means_over_its_patches(
    kind: str, pairs: encoders.SpinPairs
) -> None:
    encoder = encoders.train_encoder(kind, SYSTEM, pairs, 2, seed=6, schedule=QUICK)
    states = pairs.states[:7]
    tiles = encoders.cut(states, 16)
    expected = np.mean([encoder.of_patches(tiles[:, k]) for k in range(4)], axis=0)
    np.testing.assert_allclose(encoder.of_states(states, 16), expected, atol=1e-5)
    again = encoders.train_encoder(kind, SYSTEM, pairs, 2, seed=6, schedule=QUICK)
    np.testing.assert_array_equal(again.of_states(states, 16), encoder.of_states(states, 16))
    assert encoder.of_states(states, 16).std(axis=0).min() > 0
    with pytest.raises(InputError, match="^closures="):
        encoders.train_encoder(kind, SYSTEM, pairs, 11, seed=6)


def test_linear_closures_are_what_the_observables_leave(pairs: encoders.SpinPairs) -> None:
    encoder = encoders.train_encoder("linear", SYSTEM, pairs, 4, seed=7)
    z = encoders.latent_pairs(pairs, encoder)[0]
    terms = encoders.polynomials(z[:, :2], 3)
    rest = z[:, 2:] - terms @ np.linalg.lstsq(terms, z[:, 2:], rcond=None)[0]
    covariance = rest.T @ rest / len(rest)
    variance = np.diag(covariance)
    assert (np.diff(variance) < 0).all()
    scale = np.sqrt(variance[:, None] * variance)
    np.testing.assert_allclose(covariance / scale, np.eye(4), atol=0.01)


def test_exact_drifts_are_the_mean_rates_of_change() -> None:
    """Many short evolutions of a few states, within error bars; off by the step, dt / 2."""
    dt, copies = 0.02, 3000
    states = spins(3, 16, 8)
    states[1] = np.where(np.arange(16) < 11, 1, -1)
    expected = encoders.exact_drift(SYSTEM, states)
    many = states.repeat(copies, axis=0)
    block = Block.periodic(many, np.arange(len(many)))
    before = encoders.observe(states)
    Sublattice(SYSTEM, dt).advance(block, 1, seed=9)
    change = (
        encoders.observe(np.array(block.inner())).reshape(3, copies, 2) - before[:, None]
    ) / dt
    error = change.std(axis=1, ddof=1) / np.sqrt(copies)
    assert (abs(change.mean(axis=1) - expected) < 4.5 * error + 2 * dt * abs(expected)).all()
    assert (abs(expected) > 4.5 * error).any(axis=1).all()


def test_closures_that_are_the_drifts_leave_none_of_them() -> None:
    rng = np.random.default_rng(10)
    observed, hidden = rng.uniform(-1, 1, (600, 2)), rng.normal(size=(600, 2))
    drift = np.stack([observed[:, 0] ** 2 + hidden[:, 0], 3.0 * hidden[:, 1]], axis=1)
    assert (encoders.unexplained(np.hstack([observed, hidden]), drift) < 1e-20).all()
    alone = encoders.unexplained(observed, drift)
    # Held out, so more than the variance of what is hidden, by about ten terms of 480.
    np.testing.assert_allclose(alone, [1.0, 9.0], rtol=0.25)
    half = encoders.unexplained(np.hstack([observed, hidden[:, :1]]), drift)
    assert half[0] < 1e-20
    np.testing.assert_allclose(half[1], 9.0, rtol=0.25)


def test_monomials_are_all_there_once() -> None:
    x = np.random.default_rng(11).normal(size=(40, 3))
    terms = encoders.polynomials(x, 3)
    assert terms.shape == (40, 20)
    assert np.linalg.matrix_rank(terms) == 20


def test_drift_weights_give_the_drift_of_whole_lattices_from_their_classes() -> None:
    """Of a periodic pattern the inside of a patch has the densities of the whole."""
    row = np.tile(np.array([1, 1, -1, -1], np.int8), 8)
    state = np.tile(row, (32, 1))[None]
    patch = state[:, 2:12, 3:13]  # its inner sites are two whole periods
    inside = class_densities(class_counts(np.ascontiguousarray(patch), 10)[:, 0], 10)
    np.testing.assert_allclose(
        inside @ encoders.drift_weights(SYSTEM), encoders.exact_drift(SYSTEM, state), atol=1e-7
    )


def test_the_loss_of_the_observables_is_that_of_the_marginal_gaussian() -> None:
    """Against the covariance written out, and against the whole loss without closures."""
    torch.manual_seed(12)
    rng = np.random.default_rng(12)
    z, dt = rng.normal(size=(20, 4)), rng.uniform(0.2, 0.5, (20, 3))
    increments = rng.normal(size=(20, 3, 4))
    sde = MacroscopicSDE(4, factor=3.0)
    sde.set_scales(z, increments, dt)
    for parameter in sde.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.as_tensor(z, dtype=torch.float32)
    with torch.no_grad():
        drift, factor = sde.drift(x).double().numpy(), sde.cholesky(x).double().numpy()
    expected = np.zeros(20)
    for i in range(20):
        covariance = (factor[i] @ factor[i].T)[:2, :2]
        for p in range(3):
            r = (increments[i, p] - drift[i] * dt[i, p])[:2]
            square = r @ np.linalg.solve(3.0 * dt[i, p] * covariance, r)
            expected[i] += (square + np.log(np.linalg.det(covariance))) / 3
    loss = encoders.observable_loss(sde, z, increments, dt)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_unknown_encoders_are_refused(pairs: encoders.SpinPairs) -> None:
    with pytest.raises(InputError, match="^kind="):
        encoders.train_encoder("fourier", SYSTEM, pairs, 2, seed=1)
    assert encoders.train_encoder("published", SYSTEM, pairs, 0, seed=1).closures == 0
