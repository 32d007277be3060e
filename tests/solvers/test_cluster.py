"""Wolff's clusters: the Gibbs measure, by enumeration; Onsager's energy; refusals."""

from __future__ import annotations

import numpy as np
import pytest

from mpiflow import metrics, observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.solvers.spins.cluster import flip_clusters
from mpiflow.systems.ising import CRITICAL_TEMPERATURE, Ising, onsager_energy


def sums(states: np.ndarray) -> np.ndarray:
    return observables.spin_sums(Block.periodic(states, np.arange(len(states))))


@pytest.mark.parametrize("temperature", [1.5, CRITICAL_TEMPERATURE, 4.0])
def test_clusters_leave_the_gibbs_measure_of_a_small_lattice(temperature: float) -> None:
    """All 4096 states of 3 x 4: law of (M, E), and moments, from independent chains."""
    bits = (np.arange(4096)[:, None] >> np.arange(12)) & 1
    every = np.ascontiguousarray((2 * bits - 1).astype(np.int8).reshape(-1, 3, 4))
    exact = sums(every)
    weight = np.exp(exact[:, 1] / temperature)
    weight /= weight.sum()
    chains, members = 20_000, np.arange(20_000)
    states = np.ones((chains, 3, 4), np.int8)
    flip_clusters(states, members, Ising(temperature), seed=3, clusters=60)
    found = sums(states)
    for values in (lambda s: np.abs(s[:, 0]), lambda s: s[:, 0] ** 4, lambda s: s[:, 1]):
        mean = (weight * values(exact)).sum()
        error = np.sqrt((weight * (values(exact) - mean) ** 2).sum() / chains)
        assert abs(values(found).mean() - mean) < 4.0 * error
    if temperature > 2:  # colder, nearly all is one cluster and M changes its sign every time
        assert abs(found[:, 0].mean()) < 4.0 * found[:, 0].std() / chains**0.5


def test_energy_of_a_large_lattice_is_onsagers() -> None:
    states = np.ones((8, 128, 128), np.int8)
    members = np.arange(8)
    system = Ising(2.6)  # away from T_c: corrections of the size are exponentially small
    flip_clusters(states, members, system, seed=1, clusters=3000)
    energy = []
    for look in range(10):
        flip_clusters(states, members, system, seed=1, clusters=300, first=3000 + 300 * look)
        energy.append(-sums(states)[:, 1] / 128**2)
    each = np.mean(energy, axis=0)
    assert abs(each.mean() - onsager_energy(2.6)) < 4.0 * metrics.standard_error(each)


def test_members_have_noise_of_their_own_and_calls_can_be_cut() -> None:
    system = Ising(2.27)
    whole = np.ones((6, 12, 16), np.int8)
    flip_clusters(whole, np.arange(6), system, seed=5, clusters=20)
    assert len({state.tobytes() for state in whole}) == 6
    part = np.ones((2, 12, 16), np.int8)
    flip_clusters(part, np.array([4, 1]), system, seed=5, clusters=8)
    flip_clusters(part, np.array([4, 1]), system, seed=5, clusters=12, first=8)
    np.testing.assert_array_equal(part, whole[[4, 1]])


@pytest.mark.parametrize(
    ("system", "shape", "clusters", "name"),
    [
        (Ising(2.0, 0.1), (1, 4, 4), 1, "field"),
        (Ising(2.0, 0.0, -1.0), (1, 4, 4), 1, "coupling"),
        (Ising(2.0), (1, 2, 4), 1, "states"),
        (Ising(2.0), (1, 4, 4), -1, "clusters"),
    ],
)
def test_what_clusters_cannot_do_is_refused(
    system: Ising, shape: tuple[int, int, int], clusters: int, name: str
) -> None:
    with pytest.raises(InputError, match=name):
        flip_clusters(np.ones(shape, np.int8), np.arange(1), system, seed=1, clusters=clusters)
    with pytest.raises(InputError, match="int8"):
        flip_clusters(np.ones((1, 4, 4)), np.arange(1), Ising(2.0), seed=1, clusters=1)
