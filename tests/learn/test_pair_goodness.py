"""Whether learned SDEs say that they hold for the pairs that they are from.

A law that holds is doubted with a chance below 1e-8 (residuals.CHANCE for each of fewer than 50
values).
"""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

from mpiflow.learn.pair_goodness import REMEDY, goodness, judge, table
from mpiflow.learn.residuals import doubts, sure
from mpiflow.learn.sde import LearnedSDE

PATCHES, DT, STATES, PAIRS = 4.0, 0.1, 3000, 12
RATE, NOISE = np.array([[1.0, 0.3], [-0.2, 0.6]]), np.array([[0.5, 0.0], [0.2, 0.4]])


class Known(LearnedSDE):
    """dz = -RATE z dt + NOISE dB."""

    def __init__(self) -> None:
        super().__init__(2, PATCHES)

    def drift(self, z: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return -z @ z.new_tensor(RATE).T

    def cholesky(self, z: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return z.new_tensor(NOISE).expand(len(z), 2, 2)


def pairs(
    seed: int = 1,
    *,
    rate: np.ndarray = RATE,
    noise: np.ndarray = NOISE,
    hidden: float = 0.0,
    bent: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of that law with another rate or noise; ``hidden``: drifts that z does not tell."""
    rng = np.random.default_rng(seed)
    z = 2.0 * rng.standard_normal((STATES, 2))
    drift = -z @ rate.T + bent * z**3 + hidden * rng.standard_normal(z.shape)
    kicks = rng.standard_normal((STATES, PAIRS, 2)) @ noise.T
    increments = drift[:, None] * DT + np.sqrt(PATCHES * DT) * kicks
    return z, increments, np.full((STATES, PAIRS), DT)


def test_a_law_that_holds_is_not_doubted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        card = judge(Known(), *pairs())
    assert card["doubts"] == []
    of = card["goodness"]
    assert of["explained_drift"][0] > 0.97
    for name, value in (("variance", 1), ("mean", 0), ("kurtosis", 3), ("latent_correlation", 0)):
        assert len(of[name]) == (1 if name == "latent_correlation" else 2)
        for found, error in of[name]:
            assert abs(found - value) < of["sure"] * error < 0.3, name
    assert abs(of["state_correlation"][0]) < of["sure"] * of["state_correlation"][1]
    for parts in (of["drift_of_parts"], of["variance_of_parts"]):
        assert len(parts) == 4
        assert all(abs(found - 1) < of["sure"] * error for found, error in parts)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"rate": RATE * [[1, -3], [1, 1]]}, "of the predictable drift"),
        ({"rate": 0.8 * RATE}, "its drift is off by a factor of 0.[78]"),
        ({"bent": 0.05}, "of the predictable drift"),
        ({"noise": 1.1 * NOISE}, "the noise has 1.2. times its variance"),
        (
            {"noise": 0.9 * NOISE},
            "in a quarter of the states its noise is off by a factor of 0.[78]",
        ),
        ({"noise": NOISE * [[1, 0], [-1, 1]]}, "residuals of two latents are correlated: -0"),
        ({"hidden": 1.0}, "residuals of pairs of one state are correlated: 0.[01]"),
    ],
)
def test_one_that_does_not_says_in_what(wrong: dict[str, object], text: str) -> None:
    with pytest.warns(UserWarning, match="do not obey an equation of this kind") as seen:
        card = judge(Known(), *pairs(**wrong))  # type: ignore[arg-type]
    assert any(re.search(text, found) for found in card["doubts"]), card["doubts"]
    assert REMEDY in str(seen[0].message)
    told = table({"mine": [card, {}], "older": [{}]})
    assert f"1 of 1: {card['doubts'][0]}" in told
    assert "older" not in told


def test_errors_have_the_right_size() -> None:
    """Pulls over 20 sets: of 20 x 12 values a root mean square off by 0.3 has a chance of 1e-9."""
    pulls = []
    for seed in range(20):
        of = goodness(Known(), *pairs(100 + seed))
        assert doubts(of) == []
        for name, value in (("variance", 1), ("mean", 0), ("drift_of_parts", 1),
                            ("variance_of_parts", 1)):  # fmt: skip
            pulls += [(found - value) / error for found, error in of[name]]
    assert np.sqrt(np.mean(np.square(pulls))) == pytest.approx(1, abs=0.3)


def test_few_states_are_not_enough_for_a_doubt() -> None:
    z, increments, dt = (a[:6] for a in pairs(noise=3 * NOISE))
    for some in (slice(None), slice(1)):
        of = goodness(Known(), z, increments[:, some], dt[:, some])
        assert of["explained_drift"] is None
        assert of["variance"] == [None, None]
        assert doubts(of) == []
    assert sure(2) > 1e9
