"""The variational free energy against its definition, bounds, differences and known minima."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad

from mpiflow.core.errors import InputError
from mpiflow.solvers.binary_chain.free_energy import A, FreeEnergy, S, X
from mpiflow.systems.binary_chain import BinaryChain, confinement_terms, pair_energies

SMALL = BinaryChain(8, beta=120.0, depth_bb=0.22, length_bb=2.65)  # h is not 0


def state(system: BinaryChain, seed: int = 0, size: float = 0.02) -> np.ndarray:
    """Random mean spins, near to their relaxed positions."""
    rng = np.random.default_rng(seed)
    y = FreeEnergy(system).relaxed(rng.uniform(-0.9, 0.9, system.sites))
    y[X, 1:] += size * rng.normal(size=system.sites - 1)
    y[A] += size * rng.normal(size=system.sites)
    return y


def entropy(y: np.ndarray) -> float:
    """Of independent spins and Gaussian positions."""
    p = 0.5 * (1 + np.stack([y[S], -y[S]]))
    spins = -np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0.0).sum()
    return float(spins + 0.5 * (np.log(math.pi) + 1 - y[A]).sum())


def test_it_is_the_mean_energy_less_the_entropy() -> None:
    """By Monte Carlo over the Gaussian measure, within five standard errors."""
    y, n = state(SMALL), SMALL.sites
    rng = np.random.default_rng(1)
    count = 40_000
    x = y[X] + rng.normal(size=(count, n)) * np.sqrt(0.5 * np.exp(-y[A]))
    spins = np.where(rng.uniform(size=(count, n)) < 0.5 * (1 + y[S]), 1, -1)
    energy = np.zeros(count)
    aa, bb, ab = SMALL.pairs()
    for i, j in itertools.combinations(range(n), 2):
        r = abs(x[:, j] - x[:, i])
        like = np.where(spins[:, i] > 0, pair_energies(r, aa), pair_energies(r, bb))
        energy += np.where(spins[:, i] == spins[:, j], like, pair_energies(r, ab))
    q = np.diff(x) / SMALL.confinement
    energy += np.where(q > 1, 0.25 * q**4 - q + 0.75, 0.0).sum(axis=1)
    error = energy.std() / math.sqrt(count)
    found = FreeEnergy(SMALL).value(y) + entropy(y) / SMALL.beta
    assert error < 1e-3
    assert abs(energy.mean() - found) < 5 * error


def test_it_bounds_the_exact_free_energy() -> None:
    """(3.9), with only neighbours in reach, where the partition function is a product.

    Both sides are of the bond lengths: those of the Gaussian measure are correlated, and where the
    chain as a whole is does not count.
    """
    system = BinaryChain(
        6, 150.0, depth_aa=0.9, depth_bb=0.9, depth_ab=0.75, cutoff=4.0, length_ab=2.5
    )
    beta, energy = system.beta, FreeEnergy(system)
    weights = np.empty((2, 2))
    aa, bb, ab = system.pairs()
    for s, t in itertools.product(range(2), repeat=2):
        pair = ab if s != t else bb if s == 0 else aa

        def boltzmann(r: float, pair: tuple = pair) -> float:
            confined = confinement_terms(r, system.confinement)[0]
            return math.exp(-beta * (float(pair_energies(r, pair)) + confined))

        weights[s, t] = quad(boltzmann, 1.0, 9.0, points=[2.2, 2.6, 3.0, 4.0], limit=200)[0]
    partition = np.linalg.matrix_power(weights, system.sites - 1).sum()
    gaps = []
    for seed in range(4):
        s = np.random.default_rng(seed).uniform(-1, 1, system.sites)
        y = energy.relaxed(s if seed else np.ones(system.sites))
        v = 0.5 * np.exp(-y[A])
        covariance = np.diag(v[1:] + v[:-1]) - np.diag(v[1:-1], 1) - np.diag(v[1:-1], -1)
        bonds = 0.5 * np.linalg.slogdet(2 * math.pi * math.e * covariance)[1]
        positions = 0.5 * np.log(2 * math.pi * math.e * v).sum()
        gaps.append(energy.value(y) + (positions - bonds + math.log(partition)) / beta)
    assert min(gaps) > 0
    assert gaps[0] < 0.1  # all A: what is missing is what spins and bonds could vary


@pytest.mark.parametrize("system", [BinaryChain(10), SMALL])
def test_gradient(system: BinaryChain) -> None:
    y, energy, h = state(system), FreeEnergy(system), 1e-5
    found = energy.gradient(y)
    for row, i in itertools.product(range(3), range(system.sites)):
        up, down = y.copy(), y.copy()
        up[row, i] += h
        down[row, i] -= h
        change = (energy.value(up) - energy.value(down)) / (2 * h)
        assert found[row, i] == pytest.approx(change, abs=1e-7)


@pytest.mark.parametrize(
    ("beta", "end", "alphas", "bond", "least"),
    [
        (80.0, 72.91055, (12.2978, 40.5363), 2.335790, -5.175755),
        (160.0, 71.94166, (25.1731, 82.9901), 2.306773, -5.353451),
    ],
)
def test_the_relaxed_start(
    beta: float, end: float, alphas: tuple[float, float], bond: float, least: float
) -> None:
    """Alternating spins, N = 32: values of an independent program."""
    system = BinaryChain(32, beta)
    energy = FreeEnergy(system)
    y = energy.relaxed(system.alternating(0.9998))
    assert y[X, 0] == 0.0
    assert y[X, -1] == pytest.approx(end, abs=1e-5)
    assert np.exp(y[A, [0, 15]]) == pytest.approx(alphas, abs=1e-4)
    assert y[X, 16] - y[X, 15] == pytest.approx(bond, abs=1e-6)
    assert energy.value(y) == pytest.approx(least, abs=1e-6)
    assert abs(energy.gradient(y)[1:]).max() < 1e-12
    assert energy.relax(y) == 1


@pytest.mark.parametrize(
    "system",
    [BinaryChain(500), SMALL, BinaryChain(30, 200.0, depth_ab=0.3), BinaryChain(32, 10.0)],
)
def test_relaxing_finds_a_minimum(system: BinaryChain) -> None:
    energy = FreeEnergy(system)
    rng = np.random.default_rng(2)
    y = energy.relaxed(rng.uniform(-1, 1, system.sites))
    assert abs(energy.gradient(y)[1:]).max() < 1e-11
    least = energy.value(y)
    for _ in range(5):
        other = y.copy()
        other[1:, 1:] += 1e-3 * rng.normal(size=(2, system.sites - 1))
        assert energy.value(other) > least


def test_a_compressed_start_is_relaxed() -> None:
    system = BinaryChain(32)
    energy = FreeEnergy(system)
    expected = energy.relaxed(system.alternating(0.5))
    y = expected.copy()
    y[X] *= 0.88
    y[A] += 0.4
    assert energy.relax(y) > 3
    np.testing.assert_allclose(y, expected, atol=1e-9)


def test_what_has_no_free_energy() -> None:
    system = BinaryChain(32)
    energy = FreeEnergy(system)
    y = energy.relaxed(system.alternating(0.5))
    for row, values, name in (
        (X, y[X][::-1], "x=.*atoms in order"),
        (X, 0.6 * y[X], "x=.*less compressed"),
        (A, y[A] - 3.0, "beta=.*alpha are 2 or more"),
    ):
        wrong = y.copy()
        wrong[row] = values
        with pytest.raises(InputError, match=name):
            energy.value(wrong)
    with pytest.raises(InputError, match=r"beta=0.5.*Take a lower temperature"):
        FreeEnergy(BinaryChain(32, 0.5)).relaxed(system.alternating(0.5))
