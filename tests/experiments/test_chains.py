"""What experiments on binary chains count, and the tables of the paper."""

from __future__ import annotations

import numpy as np
import pytest

from mpiflow.experiments.chains import effective_mobility, feature_time, interior, phases
from mpiflow.systems.binary_chain import BinaryChain


def test_phases_are_stretches_of_one_sign_without_interfaces() -> None:
    s = np.array(
        [
            [-1.0, -0.9, -0.4, 0.3, 0.9, 0.8, 0.1, -0.6],
            [-1.0, -0.9, -0.8, 0.3, -0.9, -0.8, 0.1, -0.6],
            [-0.5, 0.5, -0.5, 0.5, -0.5, 0.5, -0.5, 0.5],
            [-1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0],
        ]
    )
    np.testing.assert_array_equal(phases(s), [3, 1, 0, 8])


def test_the_interior_is_the_middle_quarter() -> None:
    s = np.ones((2, 32))
    s[:, 12:20] = 0.1
    np.testing.assert_array_equal(interior(s), [0.1, 0.1])
    s[1, 19] = -0.7
    np.testing.assert_array_equal(interior(s), [0.1, 0.7])


def test_a_model_with_its_effective_mobility_has_the_feature_in_time() -> None:
    system = BinaryChain(16, beta=160.0)
    reference = feature_time(system, "mean-field", 1e-3)
    trial = feature_time(system, "free-energy", 1e-3)
    mobility = effective_mobility("free-energy", trial, reference)
    again = feature_time(system, "free-energy", 1e-3, mobility)
    assert again == pytest.approx(reference, rel=0.01)  # of steps with errors of 1e-3
    assert trial > 5 * reference


@pytest.mark.validate
@pytest.mark.parametrize(
    ("beta", "sites", "paper", "converged"),
    [
        (80.0, 500, (31, 25), (30.2, 23.1)),
        (80.0, 1000, (32, 25), (30.0, 23.3)),
        (80.0, 2000, (31, 26), (29.9, 23.5)),
        (160.0, 500, (46, 36), (45.3, 33.8)),
        (160.0, 1000, (47, 36), (44.9, 34.1)),
        (160.0, 2000, (46, 37), (44.6, 34.5)),
    ],
)
def test_tables_of_long_chains(
    beta: float, sites: int, paper: tuple[int, int], converged: tuple[float, float]
) -> None:
    """Tables 5.1 and 5.2; the converged values are of another implementation, to three digits."""
    system = BinaryChain(sites, beta=beta)
    reference = feature_time(system, "mean-field")
    models = ("free-energy", "free-energy-limited")
    found = [effective_mobility(m, feature_time(system, m), reference) for m in models]
    np.testing.assert_allclose(found, paper, rtol=0.1)
    np.testing.assert_allclose(found, converged, rtol=0.005)
