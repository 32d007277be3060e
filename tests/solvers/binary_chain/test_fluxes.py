"""The six laws of mean spins against the paper's formulae, exact linear laws, and symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpiflow.solvers.binary_chain.fluxes import MODELS, Dynamics, jacobian, right_side
from mpiflow.solvers.binary_chain.free_energy import A, FreeEnergy, S, X, tables
from mpiflow.solvers.binary_chain.gaussian_average import average_pair
from mpiflow.solvers.binary_chain.mean_field import MeanFieldChains
from mpiflow.systems.binary_chain import BinaryChain

PAPER = BinaryChain(32, 80.0)
UNLIKE = BinaryChain(12, 80.0, length_bb=2.7, depth_bb=0.22)
RATES = {"mean-field": 0.5, "point": 0.5, "arrhenius": 0.5}
RATES |= {"free-energy": 4.0, "free-energy-limited": 1.0, "master": 0.5}


def couplings(system: BinaryChain, y: np.ndarray, point: bool) -> tuple[np.ndarray, np.ndarray]:
    """J (N, N) and h (N,), averaged over the Gaussian positions or at their means."""
    if point:
        return system.couplings(y[X])[:2]
    n = system.sites
    i, j = np.triu_indices(n, 1)
    m, v = y[X, j] - y[X, i], 0.5 * (np.exp(-y[A, i]) + np.exp(-y[A, j]))
    aa, bb, ab = np.zeros((3, 6, len(i)))
    for pair, out in zip(system.pairs(), (aa, bb, ab), strict=True):
        average_pair(pair, m, v, 1, out)
    strength, own = np.zeros((n, n)), np.zeros((n, n))
    strength[i, j] = 0.25 * (2 * ab - aa - bb)[0]
    own[i, j] = 0.25 * (aa - bb)[0]
    return strength + strength.T, (own + own.T).sum(axis=1)


def published(model: str, system: BinaryChain, y: np.ndarray) -> np.ndarray:
    """ds/dt of each site by its neighbours, as the equations are printed."""
    beta, s, r = system.beta, y[S], RATES[model]
    strength, own = couplings(system, y, model == "point")
    f = own - strength @ s
    g = f + np.arctanh(s) / beta
    out = np.zeros_like(s)
    for i in range(1, system.sites - 1):
        for j in (i - 1, i + 1):
            if not 1 <= j <= system.sites - 2:
                continue
            others = [k for k in range(system.sites) if k not in (i, j)]
            change = own[i] - own[j]
            change -= sum((strength[i, k] - strength[j, k]) * s[k] for k in others)  # (4.36)
            forward, back = (1 - s[i]) * (1 + s[j]), (1 + s[i]) * (1 - s[j])
            if model in ("mean-field", "point"):  # (4.35)
                out[i] += r * (s[j] - s[i] - (1 - s[i] * s[j]) * math.tanh(beta * change))
            elif model == "arrhenius":  # (4.39)
                out[i] += r * (forward * math.exp(-beta * change) - back * math.exp(beta * change))
            elif model == "master":  # (4.48), which is (3.16) by the identity (4.41)
                extra = strength[i, j] * (s[j] - s[i])
                out[i] += r * forward * math.exp(beta * (extra - change))
                out[i] -= r * back * math.exp(beta * (change - extra))
                assert f[i] - f[j] == pytest.approx(change - extra, abs=1e-15)
            elif model == "free-energy":  # (1.2), (3.14)
                out[i] += r * (g[j] - g[i])
            else:  # (3.15)
                out[i] += r * (back if g[i] > g[j] else forward) * (g[j] - g[i])
    return out


def state(system: BinaryChain, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y = FreeEnergy(system).relaxed(rng.uniform(-0.8, 0.8, system.sites))
    y[:, 1:] += 0.01 * rng.normal(size=(3, system.sites - 1))
    return y


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("system", [PAPER, UNLIKE])
def test_fluxes_are_the_published_ones(model: str, system: BinaryChain) -> None:
    y = state(system)
    found = MeanFieldChains(system, model).derivative(y)
    np.testing.assert_allclose(found[S], published(model, system, y), rtol=1e-11, atol=1e-13)
    assert found[S, 0] == found[S, -1] == 0.0
    assert abs(found[S].sum()) < 1e-14
    expected = -FreeEnergy(system).gradient(y)
    expected[X, 0] = -y[X, 0]
    np.testing.assert_array_equal(found[1:], expected[1:])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mean-field", (-0.954398, -1.238250)),
        ("free-energy", (-0.485541, -0.926286)),
        ("free-energy-limited", (-0.485444, -0.926101)),
        ("arrhenius", (-1.910767, -2.678231)),
        ("master", (-3.298722, -4.215280)),
    ],
)
def test_the_first_derivatives(model: str, expected: tuple[float, float]) -> None:
    """At the alternating start: values of an independent program."""
    y = FreeEnergy(PAPER).relaxed(PAPER.alternating(0.9998))
    found = MeanFieldChains(PAPER, model).derivative(y)[S]
    assert found[[1, 15]] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("system", [BinaryChain(10, 80.0), UNLIKE])
def test_jacobian(model: str, system: BinaryChain) -> None:
    """All derivatives by spins, positions and widths against differences."""
    y, n, step = state(system, 1), system.sites, 1e-5
    chains = MeanFieldChains(system, model)
    law, dynamics = chains.energy.law, Dynamics(MODELS.index(model), RATES[model])
    pairs = tables(system, model == "point")
    shells = right_side(y, law, dynamics, 2, pairs, np.empty_like(y))
    half = 3 * shells + 5
    band = np.empty((3 * n, 3 * half + 1))
    jacobian(y, law, dynamics, shells, pairs, band)
    dense = np.zeros((3 * n, 3 * n))
    for i in range(3 * n):
        for c in range(2 * half + 1):
            if 0 <= i + c - half < 3 * n:
                dense[i, i + c - half] = -band[i, c]
    for column in range(3 * n):
        up, down = y.copy(), y.copy()
        up[column % 3, column // 3] += step
        down[column % 3, column // 3] -= step
        change = (chains.derivative(up) - chains.derivative(down)) / (2 * step)
        scale = 1 + abs(change).max()
        np.testing.assert_allclose(dense[:, column], change.T.ravel(), atol=2e-9 * scale)


# -- what is known exactly ---------------------------------------------------------------


def omega(model: str, system: BinaryChain, q: float, y: np.ndarray) -> float:
    """Rate of growth of a wave about s = 0 in the middle of a long chain."""
    middle = system.sites // 2
    strength = couplings(system, y, model == "point")[0]
    bonds = np.array([strength[middle, middle + d] for d in range(1, 6)])
    wave = 2 * (bonds * np.cos(q * np.arange(1, 6))).sum()
    beta, r = system.beta, RATES[model]
    prefactor = {"arrhenius": 4 * r, "master": 4 * r, "mean-field": 2 * r, "point": 2 * r}
    own = bonds[0] if model in ("mean-field", "point", "arrhenius") else 0.0
    factor = prefactor.get(model, 2 * r / beta)
    return float(factor * (1 - math.cos(q)) * (-1 + beta * (wave + own)))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("beta", "q"), [(160.0, 0.56), (160.0, math.pi), (80.0, 0.39)])
def test_waves_grow_at_their_rates(model: str, beta: float, q: float) -> None:
    """Positions and widths respond at second order, so the law is exact far from the ends."""
    system = BinaryChain(64, beta)
    s = 1e-8 * np.cos(q * (np.arange(64) - 30))
    s[[0, -1]] = 0.0
    y = FreeEnergy(system).relaxed(s)
    found = MeanFieldChains(system, model).derivative(y)[S]
    middle = slice(24, 40)
    expected = omega(model, system, q, y) * s[middle]
    np.testing.assert_allclose(found[middle], expected, atol=1e-3 * abs(expected).max())


@pytest.mark.parametrize(
    ("beta", "fastest", "alternating"),
    [(160.0, (0.146, 0.072), (-1.46, -2.60)), (80.0, (0.018, 0.003), (-1.77, -2.35))],
)
def test_rates_of_the_mixed_state(
    beta: float, fastest: tuple[float, float], alternating: tuple[float, float]
) -> None:
    """Of the mean-field and the free-energy law; the latter in units of its mobility, 2 k / beta.
    Values of an independent program."""
    system = BinaryChain(64, beta)
    y = FreeEnergy(system).relaxed(np.zeros(64))
    for k, model in enumerate(("mean-field", "free-energy")):
        unit = 2 * RATES["free-energy"] / beta if k else 1.0
        rates = [omega(model, system, q, y) / unit for q in np.linspace(0.01, math.pi, 400)]
        assert max(rates) == pytest.approx(fastest[k], abs=6e-4)
        assert rates[-1] == pytest.approx(alternating[k], abs=6e-3)


@pytest.mark.parametrize("model", MODELS)
def test_the_mirror_with_the_species_exchanged(model: str) -> None:
    y = state(PAPER, 2)
    mirror = y[:, ::-1].copy()
    mirror[S] *= -1
    mirror[X] = y[X, -1] - y[X, ::-1]
    chains = MeanFieldChains(PAPER, model)
    found = chains.derivative(mirror)[S]
    np.testing.assert_allclose(found, -chains.derivative(y)[S, ::-1], atol=1e-13)
