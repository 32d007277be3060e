"""The potentials of the chain of two species against the paper's formulae and each other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mpiflow.core.errors import InputError
from mpiflow.systems.binary_chain import (
    BinaryChain,
    confinement_terms,
    pair_energy,
    pair_terms,
)

CHAIN = BinaryChain(32)
AA, BB, AB = CHAIN.pairs()
UNLIKE = BinaryChain(6, depth_bb=0.23, length_bb=2.7)  # B attracts B otherwise than A attracts A


def published(r: float, depth: float, length: float, softening: float = 0.99) -> float:
    """(A.1) and (A.2) as they are printed, with r_c = 10.5."""

    def phi(r: float) -> float:
        u = 0.5 * (1 - softening) ** 2 + 2 * (r / length) ** 2
        return 4 * softening**2 * depth * (u**-2 - u**-1)

    h = 1e-4
    slope = (8 * (phi(10.5 + h) - phi(10.5 - h)) - phi(10.5 + 2 * h) + phi(10.5 - 2 * h)) / 12 / h
    return phi(r) - phi(10.5) - slope * (r - 10.5) if r < 10.5 else 0.0


@pytest.mark.parametrize("r", [0.3, 1.5, 2.3, 2.6, 4.7, 9.9, 10.5, 12.0])
def test_the_pair_potential_is_the_published_one(r: float) -> None:
    assert pair_terms(r, AA)[0] == pytest.approx(published(r, 0.2, 2.6), rel=1e-9, abs=1e-12)
    assert pair_terms(r, AB)[0] == pytest.approx(published(r, 0.18, 2.55), rel=1e-9, abs=1e-12)
    assert pair_energy(r, AB) == pair_terms(r, AB)[0]


@pytest.mark.parametrize("pair", [AA, AB])
@pytest.mark.parametrize("r", [0.5, 1.9, 2.35, 2.6, 4.7, 9.4, 10.4])
def test_derivatives_of_the_pair_potential(r: float, pair: tuple) -> None:
    h = 1e-3 * r
    e = [pair_terms(r + k * h, pair)[0] for k in (-2, -1, 0, 1, 2)]
    _, first, second = pair_terms(r, pair)
    scale = abs(first) + abs(second) + abs(e[2]) / r
    assert first == pytest.approx((8 * (e[3] - e[1]) - e[4] + e[0]) / 12 / h, abs=1e-8 * scale)
    change = (16 * (e[3] + e[1]) - e[4] - e[0] - 30 * e[2]) / 12 / h**2
    assert second == pytest.approx(change, abs=1e-6 * scale)


def test_the_minimum_is_at_u_equal_2() -> None:
    r = math.sqrt((2 - AA.core) / AA.stretch)
    shift = -AA.at_cutoff - AA.slope * (r - AA.cutoff)
    assert r == pytest.approx(2.6, rel=2e-5)
    assert pair_terms(r, AA)[0] - shift == pytest.approx(-(0.99**2) * 0.2, rel=1e-12)
    assert pair_terms(r, AA)[1] == pytest.approx(-AA.slope, abs=1e-14)


def test_the_cut_is_smooth_and_the_curvature_jumps() -> None:
    below, above = pair_terms(AA.cutoff - 1e-9, AA), pair_terms(AA.cutoff, AA)
    assert above == (0.0, 0.0, 0.0)
    assert abs(below[0]) < 1e-16
    assert abs(below[1]) < 1e-11
    assert abs(below[2]) > 1e-4


@pytest.mark.parametrize("r", [3.0, 3.825, 3.9, 5.0])
def test_the_confinement(r: float) -> None:
    q = r / 3.825
    energy, first, second = confinement_terms(r, 3.825)
    assert energy == pytest.approx(0.25 * q**4 - q + 0.75 if q > 1 else 0.0, abs=1e-15)
    if q > 1:
        h = 1e-4
        near = [confinement_terms(r + k * h, 3.825) for k in (-1, 1)]
        assert first == pytest.approx((near[1][0] - near[0][0]) / 2 / h, rel=1e-6)
        assert second == pytest.approx((near[1][1] - near[0][1]) / 2 / h, rel=1e-6)
    else:
        assert (first, second) == (0.0, 0.0)


@pytest.mark.parametrize("chain", [BinaryChain(6), UNLIKE])
def test_the_energy_in_spins_is_that_of_the_pairs(chain: BinaryChain) -> None:
    """(2.6) = (2.5) for all 2^4 inner spins, and (2.8) is the change of V."""
    x = np.array([0.0, 2.2, 4.7, 7.1, 9.6, 14.0])  # the last bond is confined
    coupling, own, rest = chain.couplings(x)
    assert chain.one_species_like_the_other == (not own.any())
    for inner in itertools.product((-1, 1), repeat=4):
        spins = np.array([-1, *inner, 1])
        quadratic = -0.5 * spins @ coupling @ spins + own @ spins + rest
        energy = chain.energy(x, spins)
        assert quadratic == pytest.approx(energy, abs=1e-14)
        for i, j in itertools.combinations(range(6), 2):
            swapped = spins.copy()
            swapped[[i, j]] = spins[[j, i]]
            change = chain.energy(x, swapped) - energy
            assert chain.exchange_energy(x, spins, i, j) == pytest.approx(change, abs=1e-14)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sites", 31),
        ("sites", 4),
        ("beta", 0.0),
        ("beta", math.nan),
        ("depth_ab", -0.1),
        ("length_aa", math.inf),
        ("softening", 1.5),
        ("cutoff", 2.5),
        ("cutoff", math.nan),
        ("confinement", 2.0),
    ],
)
def test_impossible_parameters(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name}=.*allowed"):
        BinaryChain(**{"sites": 32, name: value})
