"""What is measured on chains of two species."""

from __future__ import annotations

import numpy as np
import pytest

from mpiflow.solvers.binary_chain.observables import ab_bonds, first_minimum, length, strain


def test_strain_and_bonds_of_simple_chains() -> None:
    x = np.array([[0.0, 2.0, 4.0, 6.0], [1.0, 2.0, 3.0, 7.0]])
    assert length(x) == pytest.approx([2.0, 2.0])
    assert strain(x, np.array([2.0, 1.6])) == pytest.approx([0.0, 0.25])
    spins = np.array([[1, -1, 1, -1], [1, 1, -1, -1], [1, 1, 1, 1]], dtype=np.int8)
    assert ab_bonds(spins).tolist() == [3.0, 1.0, 0.0]
    assert ab_bonds(np.zeros((1, 5))).tolist() == [2.0]  # as likely unlike as like


@pytest.mark.parametrize("half", [1, 2, 3, 5])
def test_the_first_minimum_is_half_the_period(half: int) -> None:
    s = np.where(np.arange(60) // half % 2, 1.0, -1.0)
    slow = s.copy()
    slow[0] *= 0.5
    assert first_minimum(np.array([s, slow, -s])).tolist() == [half] * 3


def test_the_first_minimum_against_the_definition() -> None:
    rng = np.random.default_rng(3)
    s = rng.uniform(-1, 1, (40, 17))
    for row, found in zip(s, first_minimum(s), strict=True):
        c = np.correlate(row - row.mean(), row - row.mean(), "full")[16:]
        inner = [d for d in range(1, 16) if c[d - 1] > c[d] < c[d + 1]]
        assert found == (inner[0] if inner else 0)


def test_without_a_minimum_there_is_0() -> None:
    assert first_minimum(np.zeros((1, 8))).tolist() == [0]
