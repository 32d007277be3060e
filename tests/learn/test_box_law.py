"""The law of magnetization and bonds of a box, held to all states of a 3 x 3 lattice."""

from __future__ import annotations

import numpy as np
import pytest

from mpiflow.core.errors import InputError
from mpiflow.experiments.passages import SmallLattice
from mpiflow.learn.onsagerflow.boxes import BoxLaw
from mpiflow.observables.sums import lattice_class_counts
from mpiflow.systems.ising import Ising

SIDE, SITES = 3, 9
SYSTEMS = (Ising(2.0), Ising(1.2, field=-0.3), Ising(3.0, field=0.2, coupling=0.7))


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    """All 512, (512, 3, 3)."""
    bits = (np.arange(2**SITES)[:, None] >> np.arange(SITES)) & 1
    return (1 - 2 * bits).reshape(-1, SIDE, SIDE).astype(np.int8)


@pytest.fixture(scope="module")
def counts(states: np.ndarray) -> np.ndarray:
    return lattice_class_counts(states)


@pytest.fixture(scope="module")
def law(counts: np.ndarray) -> BoxLaw:
    return BoxLaw.of_counts(counts)


def cells_of(states: np.ndarray) -> np.ndarray:
    """M and B of each state, by their definition."""
    spins = states.astype(int)
    bonds = sum((spins * np.roll(spins, 1, axis)).sum(axis=(1, 2)) for axis in (1, 2))
    return np.stack([spins.sum(axis=(1, 2)), bonds], axis=1)


def test_of_all_states_it_has_the_numbers_of_states_and_the_law_of_boltzmann(
    law: BoxLaw, states: np.ndarray
) -> None:
    cells, numbers = np.unique(cells_of(states), axis=0, return_counts=True)
    np.testing.assert_array_equal(law.cells, cells)
    np.testing.assert_allclose(law.log_states, np.log(numbers), atol=1e-10)
    assert law.misfit < 1e-20
    for system in SYSTEMS:
        m, bonds = cells.T
        weights = numbers * np.exp(
            (system.field * m + system.coupling * bonds) / system.temperature
        )
        np.testing.assert_allclose(law.weights(system), weights / weights.sum(), rtol=1e-9)


@pytest.mark.parametrize("system", SYSTEMS)
def test_its_rates_are_the_means_of_those_of_the_states_of_a_cell(
    law: BoxLaw, states: np.ndarray, system: Ising
) -> None:
    number = {tuple(cell): i for i, cell in enumerate(law.cells.tolist())}
    of = np.array([number[tuple(cell)] for cell in cells_of(states).tolist()])
    exact, n = SmallLattice(system, SIDE).rates, len(law.cells)
    rates = np.zeros((n, n))
    for site in range(SITES):
        np.add.at(rates, (of, of[np.arange(2**SITES) ^ (1 << site)]), exact[:, site])
    rates /= np.bincount(of)[:, None]
    np.testing.assert_allclose(law.rates(system).toarray(), rates, rtol=1e-9, atol=1e-14)


def test_detailed_balance_holds_to_rounding_whatever_it_was_learned_from(
    counts: np.ndarray,
) -> None:
    some = np.concatenate([counts[:1], counts[np.random.default_rng(3).integers(0, 512, 300)]])
    law = BoxLaw.of_counts(some)
    assert 0.01 < law.misfit < 3.0
    for system in SYSTEMS:
        flow = law.rates(system).multiply(law.weights(system)[:, None]).toarray()
        np.testing.assert_allclose(flow, flow.T, rtol=1e-11)


@pytest.mark.parametrize("system", SYSTEMS)
def test_passages_are_a_little_too_short_and_of_m_alone_shorter(law: BoxLaw, system: Ising) -> None:
    exact = SmallLattice(system, SIDE).mean_passage(7)
    ours, of_m = law.passage_time(system, -0.5), law.passage_time_of_m(system, -0.5)
    assert 0.9 * exact < of_m < ours < exact * (1 + 1e-9)


def test_what_cannot_be_learned_or_reached_is_refused(counts: np.ndarray, law: BoxLaw) -> None:
    with pytest.raises(InputError, match="all spins up"):
        BoxLaw.of_counts(counts[10:40])
    with pytest.raises(InputError, match="of one size"):
        BoxLaw.of_counts(np.concatenate([counts, 2 * counts]))
    with pytest.raises(InputError, match="that flips join"):
        BoxLaw.of_counts(counts[:1])
    for below in (1.0, -1.5):
        with pytest.raises(InputError, match="below"):
            law.passage_time(Ising(2.0), below)
    with pytest.raises(InputError, match="coupling"):
        law.rates(Ising(2.0, coupling=-1.0))
