"""Gaussian averages of the potentials against adaptive quadrature and against themselves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad

from mpiflow.solvers.binary_chain.gaussian_average import (
    G_M,
    G_MM,
    G_MV,
    G_V,
    G_VV,
    G,
    average_confinement,
    average_pair,
)
from mpiflow.systems.binary_chain import BinaryChain, confinement_terms, pair_energy

CHAIN = BinaryChain(32)
AA, _, AB = CHAIN.pairs()


def averages(pair: tuple | None, m: float, v: float) -> np.ndarray:
    out = np.full((6, 1), np.nan)
    place = (np.array([m]), np.array([v]), 2, out)
    if pair is None:
        average_confinement(CHAIN.confinement, *place)
    else:
        average_pair(pair, *place)
    return out[:, 0]


def integral(pair: tuple | None, m: float, v: float) -> float:
    """E phi(|r|), with the spike at 0."""
    s = math.sqrt(v)

    def density(r: float) -> float:
        r_abs = abs(r)
        value = (
            confinement_terms(r, CHAIN.confinement)[0] if pair is None else pair_energy(r_abs, pair)
        )
        return value * math.exp(-((r - m) ** 2) / (2 * v)) / (s * math.sqrt(2 * math.pi))

    spike = [sign * size for size in (0.01, 0.03, 0.1, 0.3, 1.0) for sign in (-1, 1)]
    breaks = sorted([*spike, 0.0, m - 3 * s, m, m + 3 * s, 3.825, 10.5, m + 9 * s])
    total = 0.0
    for low, high in itertools.pairwise(breaks):
        if low >= -1 and high <= m + 9 * s:
            total += quad(density, low, high, epsabs=1e-14, epsrel=1e-12, limit=200)[0]
    return total


@pytest.mark.parametrize("pair", [AA, AB])
@pytest.mark.parametrize("alpha", [10.0, 14.0, 25.0, 40.0, 80.0, 200.0])
@pytest.mark.parametrize("m", [2.3, 2.4, 4.75, 7.1, 9.4])
def test_averages_against_quadrature(pair: tuple, alpha: float, m: float) -> None:
    """Of two atoms with this alpha."""
    v = 1 / alpha
    assert averages(pair, m, v)[G] == pytest.approx(integral(pair, m, v), abs=1e-9)


@pytest.mark.parametrize(
    ("m", "v"), [(2.35, 0.09), (2.4, 0.12), (2.5, 0.2), (2.7, 0.3), (3.5, 0.5)]
)
def test_atoms_that_pass_through_each_other(m: float, v: float) -> None:
    """As Gaussian ones do at high temperature: the spike is part of the average."""
    found = averages(AA, m, v)
    assert found[G] == pytest.approx(integral(AA, m, v), abs=1e-9)
    assert found[G_V] == pytest.approx(found[G_MM] / 2, rel=1e-14)


def test_one_sum_takes_over_from_the_other() -> None:
    m, v = np.full(2, 2.35), 2.35**2 / 80 * np.array([1 - 1e-12, 1 + 1e-12])
    out = np.empty((6, 2))
    average_pair(AA, m, v, 2, out)
    assert (out[:, 0] != out[:, 1]).any()  # there are two
    np.testing.assert_allclose(out[:3, 0], out[:3, 1], atol=1e-8)
    assert out[G, 0] == pytest.approx(out[G, 1], abs=2e-10)


@pytest.mark.parametrize("alpha", [20.0, 40.0, 80.0, 200.0])
@pytest.mark.parametrize("m", [2.3, 2.4, 4.75, 7.1])
def test_averages_obey_the_heat_equation(alpha: float, m: float) -> None:
    found = averages(AA, m, 1 / alpha)
    assert found[G_V] == pytest.approx(found[G_MM] / 2, abs=1e-9)


@pytest.mark.parametrize("pair", [AA, AB, None])
@pytest.mark.parametrize(
    ("m", "v"), [(2.35, 0.05), (4.7, 0.02), (9.4, 0.03), (3.9, 0.02), (2.4, 0.1)]
)
def test_derivatives_are_those_of_the_sum(pair: tuple | None, m: float, v: float) -> None:
    """To differences, also where the sum is far from the integral (the confinement's corner)."""
    h = 1e-5

    def change(of: int, dm: float, dv: float) -> float:
        up, down = averages(pair, m + dm, v + dv), averages(pair, m - dm, v - dv)
        return (up[of] - down[of]) / (2 * (dm + dv))

    found = averages(pair, m, v)
    assert found[G_M] == pytest.approx(change(G, h, 0), abs=1e-8)
    assert found[G_V] == pytest.approx(change(G, 0, h), abs=1e-8)
    assert found[G_MM] == pytest.approx(change(G_M, h, 0), abs=1e-7)
    assert found[G_MV] == pytest.approx(change(G_M, 0, h), abs=1e-7)
    assert found[G_MV] == pytest.approx(change(G_V, h, 0), abs=1e-7)
    assert found[G_VV] == pytest.approx(change(G_V, 0, h), abs=1e-6)


def test_first_derivatives_alone_are_the_same() -> None:
    m, v = np.linspace(2.2, 14.0, 9), np.linspace(0.02, 0.05, 9)
    both = np.full((2, 6, 9), np.nan)
    for k in range(2):
        average_pair(AA, m, v, k + 1, both[k])
    assert (both[0, :3] == both[1, :3]).all()
    assert np.isnan(both[0, 3:]).all()
    assert np.isfinite(both[1]).all()
    assert (both[1, :, -1] == 0).all()  # wholly beyond the cut-off
