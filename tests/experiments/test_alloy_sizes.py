"""What pairs of an alloy's states know of the order at which the drift ends."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mpiflow.learn.alloy.model import LIKE, PairsData, reconstruct

ROOT = Path(__file__).resolve().parents[2]
END, SPREAD = np.array([0.1, -1.2, -0.7]), np.array([0.03, 0.05, 0.04])


def orders(x: np.ndarray) -> np.ndarray:
    """All six order parameters of the like pairs."""
    return reconstruct(x, np.ones(3), 0.01)


def test_the_error_of_pairs_is_that_of_the_end_of_a_linear_drift() -> None:
    """Noise over rate and the root of the number of pairs; other temperatures do not count.

    Of a lattice that hardly fluctuates the nearer half counts, whose line is less sure.
    """
    error_of_pairs = runpy.run_path(str(ROOT / "drivers" / "alloy_sizes.py"))["error_of_pairs"]
    rate, noise, states, pairs = 0.05, 0.02, 2000, 6
    model = SimpleNamespace(expand=orders)
    found, narrow = [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        z = END + SPREAD * rng.normal(size=(states, 3))
        increments = noise * rng.normal(size=(states, pairs, 3)) - rate * (z - END)[:, None]
        hot = np.arange(states) % 2 == 1
        increments[hot] += 1.0
        kelvin = np.where(hot, 2000.0, 1200.0)
        data = PairsData(z, increments, np.ones((states, pairs)), kelvin, 8, 8192)
        spread = np.full(6, SPREAD.max())
        found.append(error_of_pairs(data, model, 1200.0, orders(END), spread)[list(LIKE)])
        narrow.append(error_of_pairs(data, model, 1200.0, orders(END), spread / 100)[list(LIKE)])
        assert np.isnan(error_of_pairs(data, model, 1600.0, orders(END), spread)).all()
    expected = noise / rate / np.sqrt(states / 2 * pairs)
    assert np.mean(found, axis=0) == pytest.approx(expected, rel=0.15)
    of_half = np.mean(narrow, axis=0) / (np.sqrt(2) * expected)
    assert ((of_half > 1.0) & (of_half < 2.0)).all()


def test_states_of_one_small_lattice_share_their_error() -> None:
    """What all increments of a lattice have in common counts once, not once for each state."""
    error_of_pairs = runpy.run_path(str(ROOT / "drivers" / "alloy_sizes.py"))["error_of_pairs"]
    rate, noise, states, lattices = 0.05, 0.002, 2000, 20
    model = SimpleNamespace(expand=orders)
    found: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        lattice = rng.integers(lattices, size=states)
        z = END + SPREAD * rng.normal(size=(states, 3))
        common = noise * rng.normal(size=(lattices, 3))[lattice]
        increments = (common - rate * (z - END))[:, None]
        for known in found:
            of = lattice if known else np.full(states, -1)
            kelvin, one = np.full(states, 1200.0), np.ones((states, 1))
            data = PairsData(z, increments, one, kelvin, 8, 8192, lattice=of)
            error = error_of_pairs(data, model, 1200.0, orders(END), np.full(6, 1.0))
            found[known].append(error[list(LIKE)])
        alone = PairsData(z, increments, one, kelvin, 8, 8192, lattice=np.zeros(states))
        error = error_of_pairs(alone, model, 1200.0, orders(END), np.full(6, 1.0))
        assert (error > 0).all()  # no other lattice to leave this one out for: as if unknown
    expected = noise / rate / np.sqrt(lattices)
    assert np.mean(found[True], axis=0) == pytest.approx(expected, rel=0.2)
    assert np.mean(found[False]) < 0.2 * expected
