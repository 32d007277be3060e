"""Fields of magnetization and bonds: entropy and forces, detailed balance, learning from counts."""

from __future__ import annotations

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow import InputError, Ising, Simulation, initial
from mpiflow.learn.onsagerflow.bonds import (
    BondLaw,
    S,
    count_classes,
    differences,
    exact_drift,
    fields_of,
    learn_bonds,
)
from mpiflow.systems.ising import rate_class


def some_law() -> BondLaw:
    rng = np.random.default_rng(1)
    law = BondLaw.of_pairs(4, 3)
    return BondLaw(4, 3, 0.1 * rng.standard_normal(len(law.coefficients)))


M, C = np.array([0.0, 0.3, -0.5, 0.7]), np.array([0.2, 0.4, 0.5, 0.65])


def slope(function, step: float) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Of fourth order."""
    return (8 * (function(step) - function(-step)) - function(2 * step) + function(-2 * step)) / (
        12 * step
    )


def test_forces_are_the_slopes_of_the_entropy() -> None:
    law = some_law()
    h, k = law.forces(M, C)
    np.testing.assert_allclose(slope(lambda d: law.entropy(M + d, C), 1e-3), -h, atol=1e-9)
    np.testing.assert_allclose(slope(lambda d: law.entropy(M, C + d), 1e-3), -2 * k, atol=1e-9)


def test_flips_are_in_detailed_balance_with_the_free_energy() -> None:
    """To rounding at any state; so at rest the noise keeps the spread that the free energy has."""
    law, temperature, field = some_law(), 1.7, 0.2
    h, k = law.forces(M, C)
    up, down = law.flips(M, C, temperature, field)
    falls = 2 * (field / temperature - h)[:, None] + 2 * (1 / temperature - k)[:, None] * S
    np.testing.assert_allclose(np.log(up / down), falls, atol=1e-12)
    # Lyapunov: A C + C A^T + D = 0 with the inverse of the second derivatives as C.
    law, temperature = BondLaw.of_pairs(), 4.0
    at = np.array([0.3, 0.2])
    for _ in range(400):
        at = np.array(law.step(at[:1], at[1:], temperature, field, dt=0.2, sites=1)).ravel()

    def along(i: int, function):  # type: ignore[no-untyped-def]
        way = np.eye(2)[i]
        return slope(lambda d: np.ravel(function(*(at + d * way)[:, None])), 1e-3)

    drift = np.stack(
        [along(i, lambda m, c: np.concatenate(law.drift(m, c, temperature, field)))
         for i in (0, 1)], axis=1,
    )  # fmt: skip
    bend = np.stack(
        [along(i, lambda m, c: np.concatenate([law.forces(m, c)[0], 2 * law.forces(m, c)[1]]))
         for i in (0, 1)], axis=1,
    )  # fmt: skip
    up, down = law.flips(at[:1], at[1:], temperature, field)
    jumps = np.stack([np.full(5, 2.0), S])
    noise = (jumps * (up + down)) @ jumps.T
    spread = np.linalg.inv(bend)
    np.testing.assert_allclose(drift @ spread + spread @ drift.T, -noise, atol=1e-8)


def test_exact_drifts_are_those_of_the_generator() -> None:
    counts = np.random.default_rng(5).integers(1, 100, (3, 10))
    fields = np.array([0.0, 0.1, -0.4])
    found = np.stack(exact_drift(counts, 1.8, fields), axis=1)
    for row, h, one in zip(counts, fields, found, strict=True):
        drift, _ = Ising(1.8, field=h).short_time(row[None])
        # c = 1 - 2 rho.
        np.testing.assert_allclose(one, drift[0] * (1, -2), rtol=1e-12, atol=1e-14)


def test_of_independent_spins_the_law_of_pairs_is_exact() -> None:
    m = np.array([0.0, 0.4, -0.8])
    law = BondLaw.of_pairs()
    up = (1 + m) / 2
    counts = np.stack(
        [(up if s > 0 else 1 - up) * [1, 4, 6, 4, 1][k] * up**k * (1 - up) ** (4 - k)
         for s in (-1, 1) for k in range(5)], axis=-1,
    )  # fmt: skip
    assert np.allclose(fields_of(counts), [m, m**2])
    np.testing.assert_allclose(law.predicted(m, m**2), counts, atol=1e-12)
    for found, exact in zip(
        law.drift(m, m**2, 2.0, 0.1), exact_drift(counts, 2.0, 0.1), strict=True
    ):
        np.testing.assert_allclose(found, exact, atol=1e-12)


def test_coefficients_move_shares_as_their_derivatives_say() -> None:
    law = some_law()
    by = law._jacobian(M, C)
    for i in range(0, len(law.coefficients), 5):
        way = np.eye(len(law.coefficients))[i]
        moved = slope(
            lambda d, w=way: BondLaw(4, 3, law.coefficients + d * w).predicted(M, C), 1e-3
        )
        np.testing.assert_allclose(moved, by[..., i], atol=1e-9)


def test_sites_are_counted_by_class() -> None:
    spins = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (6, 9))
    found = count_classes(spins, 3)
    wanted = np.zeros((2, 3, 10), int)
    for y, x in np.ndindex(6, 9):
        k = sum(int(spins[(y + a) % 6, (x + b) % 9]) for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0)))
        wanted[y // 3, x // 3, rate_class(int(spins[y, x]), k)] += 1
    np.testing.assert_array_equal(found, wanted)
    with pytest.raises(InputError, match="spins"):
        count_classes(spins, 4)


def test_coupled_blocks_follow_the_slope_of_their_differences() -> None:
    """b_S gains what the further term of F loses by a flip: detailed balance stays."""
    law, rng = some_law(), np.random.default_rng(3)
    m, c = rng.uniform(-0.5, 0.5, (2, 3, 4)), np.full((2, 3, 4), 0.4)
    coupled = BondLaw(4, 3, law.coefficients, 0.7)

    def energy(m: np.ndarray) -> np.ndarray:
        return sum(0.7 / (2 * 8) * ((m - np.roll(m, 1, axis)) ** 2).sum() for axis in (-1, -2))

    pull = np.zeros(m.shape)
    for at in np.ndindex(m.shape):
        way = np.zeros(m.shape)
        way[at] = 1.0
        pull[at] = -slope(lambda d, w=way: energy(m + d * w), 1e-2)
    np.testing.assert_allclose(0.7 / 8 * differences(m), pull, atol=1e-12)
    short = 1e-7
    found = coupled.step(m, c, 1.7, 0.2, dt=short, sites=64)
    rates = law.drift(m, c, 1.7, 0.2 + 1.7 * pull)
    for now, before, rate in zip(found, (m, c), rates, strict=True):
        np.testing.assert_allclose((now - before) / short, rate, atol=1e-6)


def test_independent_spins_couple_their_blocks_by_the_bonds_over_borders() -> None:
    """kappa is 1 / T at high T: a site at a border has one bond of four into the other block."""
    rng, temperature, block = np.random.default_rng(2), 4.0, 8
    of_blocks = rng.choice([-0.3, 0.0, 0.3], (160, 160))
    m = np.kron(of_blocks, np.ones((block, block)))
    spins = np.where(rng.random(m.shape) < (1 + m) / 2, 1, -1).astype(np.int8)
    counts = count_classes(spins, block)
    pull = differences(fields_of(counts)[0]) / block
    bins = np.stack([of_blocks, np.round(differences(of_blocks), 1)], axis=-1).reshape(-1, 2)
    _, one, number = np.unique(bins, axis=0, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(one.ravel(), k) for k in counts.reshape(-1, 10).T], axis=1)
    pulls = np.bincount(one.ravel(), pull.ravel()) / number
    law = learn_bonds(sums, temperature, 0.0, pulls, entropy_degree=2, share_degree=1)
    assert law.coupling == pytest.approx(1 / temperature, rel=0.1)
    given = learn_bonds(
        sums, temperature, 0.0, pulls, coupling=0.3, entropy_degree=2, share_degree=1
    )
    assert given.coupling == 0.3


def test_a_law_learned_from_small_lattices_has_the_drift_of_others() -> None:
    def rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
        found, fields = [], []
        for m, h in ((0.0, 0.0), (0.3, 0.0), (0.6, 0.0), (0.9, 0.3), (0.3, 0.5), (0.0, 0.3)):
            sim = Simulation(
                Ising(2.6, field=h), 128, dt=0.125, seed=seed, members=8, comm=MPI.COMM_SELF
            )
            sim.set_spins(initial.independent, magnetization=m)
            for _ in range(10):
                found.append(sum(count_classes(s, 128)[0, 0] for s in sim.spins()))
                fields.append(h)
                sim.advance(0.25)
        return np.array(found), np.array(fields)

    counts, fields = rows(1)
    law = learn_bonds(counts, 2.6, fields, entropy_degree=4, share_degree=2)
    others, fields = rows(2)
    for found, exact, pairs in zip(
        law.drift(*fields_of(others), 2.6, fields), exact_drift(others, 2.6, fields),
        BondLaw.of_pairs().drift(*fields_of(others), 2.6, fields), strict=True,
    ):  # fmt: skip
        missed = ((found - exact) ** 2).sum() / (exact**2).sum()
        assert missed < 1e-3
        assert missed < 0.5 * ((pairs - exact) ** 2).sum() / (exact**2).sum()
