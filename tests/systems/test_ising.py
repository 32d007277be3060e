"""The model and its rules: rates, classes, thresholds of one site."""

from __future__ import annotations

import itertools
import warnings
from decimal import Decimal, localcontext

import numpy as np
import pytest
from exact import energies, flip_classes, neighbour_sums, states

from mpiflow.core.errors import InputError
from mpiflow.systems.ising import NEIGHBOUR_SUMS, Ising, rate_class, resample

MODELS = [
    Ising(temperature, field, coupling)
    for temperature, field, coupling in itertools.product(
        (0.05, 0.7, 2.0, 2.5, 40.0), (-0.3, 0.0, 0.1), (1.0, -1.0, 0.5)
    )
]
SPINS_AND_SUMS = list(itertools.product((-1, 1), (-4, -2, 0, 2, 4)))


def logistic(model: Ising, k: int, sign: int) -> Decimal:
    """1 / (1 + exp(-sign 2 (J k + h) / T)) with 60 digits, from the exact values of the floats."""
    with localcontext(prec=60):
        local = Decimal(model.coupling) * k + Decimal(model.field)
        return 1 / (1 + (-sign * 2 * local / Decimal(model.temperature)).exp())


def relative_error(value: float, exact: Decimal) -> float:
    return float(abs(Decimal(float(value)) / exact - 1))


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_probabilities_to_many_digits(model: Ising) -> None:
    """Also the small ones: 1 - p would have no digits left at low temperature."""
    rates = model.flip_rates()
    for i, k in enumerate(NEIGHBOUR_SUMS.tolist()):
        # The argument of exp has a few rounding errors of its own size.
        tolerance = 1e-15 * (4 + 12 * (4 * abs(model.coupling) + 1) / model.temperature)
        assert relative_error(model.up_probabilities()[i], logistic(model, k, 1)) < tolerance
        assert relative_error(rates[i], logistic(model, k, 1)) < tolerance
        assert relative_error(rates[5 + i], logistic(model, k, -1)) < tolerance


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_detailed_balance_of_the_rates(model: Ising) -> None:
    """rate(down to up) / rate(up to down) is the ratio of the Gibbs weights."""
    down, up = model.flip_rates()[:5], model.flip_rates()[5:]
    change = 2.0 * (model.coupling * NEIGHBOUR_SUMS + model.field) / model.temperature
    assert np.allclose(np.log(down) - np.log(up), change, rtol=1e-12, atol=1e-13)
    assert np.allclose(down + up, 1.0, rtol=0, atol=3e-16)
    mirrored = Ising(model.temperature, -model.field, model.coupling)
    assert np.array_equal(mirrored.flip_rates()[5:][::-1], down)


@pytest.mark.parametrize("model", [Ising(2.5, 0.1), Ising(1.3, -0.4, -1.0)], ids=str)
@pytest.mark.parametrize("shape", [(3, 3), (2, 4)])
def test_rates_follow_from_the_energy(model: Ising, shape: tuple[int, int]) -> None:
    """The class of a site gives 1 / (1 + exp(dH / T)) with dH from the definition of H."""
    every, rates = states(shape), model.flip_rates()
    sums = neighbour_sums(every)
    before = energies(every, model.field, model.coupling)
    for y, x in np.ndindex(*shape):
        flipped = every.copy()
        flipped[:, y, x] *= -1
        rise = energies(flipped, model.field, model.coupling) - before
        classes = [rate_class(s, k) for s, k in zip(every[:, y, x], sums[:, y, x], strict=True)]
        expected = 1.0 / (1.0 + np.exp(rise / model.temperature))
        assert np.allclose(rates[classes], expected, rtol=1e-12, atol=0)
        by_opposites = model.flip_rates_by_opposites()[flip_classes(every)[:, y, x]]
        assert np.array_equal(by_opposites, rates[classes])


def test_energy_from_the_two_sums() -> None:
    model = Ising(2.0, field=0.3, coupling=-1.5)
    assert model.energy(np.array([8]), np.array([-2])).tolist() == [1.5 * 8 + 0.3 * 2]


@pytest.mark.kernel
def test_every_pair_of_spin_and_sum_has_its_own_class() -> None:
    classes = [rate_class(np.int8(s), k) for s, k in SPINS_AND_SUMS]
    assert classes == list(range(10))
    # A flip adds five (modulo ten); a neighbour's flip up adds one.
    for s, k in SPINS_AND_SUMS:
        assert rate_class(np.int8(-s), k) == (rate_class(np.int8(s), k) + 5) % 10


@pytest.mark.kernel
def test_resample_at_every_boundary() -> None:
    """A spin flips below the threshold of its class and not at it; the lowest bit is unused."""
    table = (0, 1, 5, 2**40, 2**62, 7, 2**41, 2**63 - 1, 2**63, 3)
    numbers = tuple(np.uint64(t) for t in table)
    for s, k in SPINS_AND_SUMS:
        opposite = (4 - s * k) // 2
        t = table[opposite + (5 if s > 0 else 0)]
        for u in (u for u in {0, 1, t - 1, t, t + 1, 2**63 - 1} if 0 <= u < 2**63):
            for lowest in (0, 1):
                for sum_of_neighbours in (np.int8(k), np.int64(k)):
                    word = np.uint64(2 * u + lowest)
                    new = resample(np.int8(s), sum_of_neighbours, word, numbers)
                    assert new == (-s if u < t else s), (s, k, u)


@pytest.mark.parametrize("model", [Ising(1.3), Ising(0.7, coupling=-1.0)], ids=str)
def test_without_a_field_the_spin_does_not_matter(model: Ising) -> None:
    """To the last bit: the bit kernels then leave out the terms of the spin."""
    down, up = model.flip_rates_by_opposites().reshape(2, 5)
    assert np.array_equal(down, up)


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 1e300])
def test_extreme_temperatures(temperature: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an infinite exponent is fine
        rates = Ising(temperature, field=0.0).flip_rates()
    assert np.isfinite(rates).all()
    assert rates[2] == rates[7] == 0.5
    assert ((rates >= 0) & (rates <= 1)).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_temperatures(temperature: float) -> None:
    with pytest.raises(InputError, match=r"^temperature=.*finite number above 0"):
        Ising(temperature)


@pytest.mark.parametrize("name", ["field", "coupling"])
def test_parameters_must_be_finite(name: str) -> None:
    for value in (float("inf"), float("nan")):
        with pytest.raises(InputError, match=f"^{name}=.*finite number"):
            Ising(2.0, **{name: value})
