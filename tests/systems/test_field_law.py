"""Laws of one block: exact formulas, tables between and beyond their points, files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from mpiflow.core.errors import InputError
from mpiflow.simulation.field.law_files import TableLaw, load_law
from mpiflow.systems.field_law import ExactLaw, FiniteLaw, Law, Structure

INNER = np.linspace(-0.97, 0.97, 41)
ENDS = np.array([-1.0, 1.0])


def bent(symmetric: bool = False, structure: Structure = "langevin", **more: Any) -> TableLaw:
    """A law far from the exact one, with all three of its functions given."""
    m = np.linspace(0.0 if symmetric else -0.9, 0.92, 25)
    tilt = 0.0 if symmetric else 0.2
    ratio = 1 - 0.5 * m**2 + tilt * m
    slope = 1.3 * np.arctanh(m) - 0.8 * m + tilt
    return TableLaw(
        1.25,
        m,
        1.25 * (1 - m**2) * ratio,
        slope,
        0.7 + 0.2 * m**2,
        structure=structure,
        symmetric=symmetric,
        **more,
    )


@pytest.mark.parametrize("beta", [0.4, 2.0])
def test_exact_formulas(beta: float) -> None:
    law = ExactLaw(beta)
    assert np.allclose(law.mobility(INNER), beta * (1 - INNER**2), rtol=1e-14)
    assert np.allclose(law.entropy_derivative(INNER), np.arctanh(INNER) / beta, rtol=1e-14)
    up, down = (1 + INNER) / 2, (1 - INNER) / 2
    entropy = (up * np.log(up) + down * np.log(down) + np.log(2)) / beta
    assert np.allclose(law.entropy(INNER), entropy, rtol=1e-12, atol=1e-16)
    assert np.array_equal(law.prefactor(INNER), np.ones(41))
    # At and next to the ends: no loss of digits, no warnings.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(law.mobility(ENDS), [0, 0])
        assert np.allclose(law.entropy(ENDS), np.log(2) / beta, rtol=1e-15)
        assert np.array_equal(law.entropy_derivative(ENDS), [-np.inf, np.inf])
    near = 1 - 2.0**-50
    assert law.mobility(np.array(near)) == pytest.approx(beta * 2.0**-49, rel=1e-14)


@pytest.mark.parametrize(
    "law",
    [ExactLaw(1.5), bent(), bent(True), FiniteLaw(bent(), 16, 0.4)],
    ids=["exact", "bent", "even", "finite"],
)
def test_slopes_are_those_of_the_functions(law: Law) -> None:
    """Central differences; the table's points, where K' has a kink, are left out."""
    m, h = INNER[::3] + 1e-3, 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for function, slope in (
            (law.mobility, law.mobility_slope),
            (law.entropy, law.entropy_derivative),
        ):
            difference = (function(m + h) - function(m - h)) / (2 * h)
            assert np.abs(difference - slope(m)).max() < 2e-6
        for at in (0.5, -0.8, 0.99):
            area = quad(lambda x: float(law.entropy_derivative(np.array(x))), 0, at, limit=200)
            assert float(law.entropy(np.array(at))) == pytest.approx(area[0], abs=2e-7)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_table_of_the_exact_law_is_the_exact_law(symmetric: bool) -> None:
    """Everywhere, also beyond its points: a few of them are enough."""
    m = np.array([0.1, 0.3, 0.8]) if symmetric else np.array([-0.6, -0.1, 0.2, 0.8])
    exact = ExactLaw(0.8)
    law = TableLaw(0.8, m, exact.mobility(m), exact.entropy_derivative(m), symmetric=symmetric)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("mobility", "mobility_slope", "entropy_derivative", "entropy", "prefactor"):
            got, expected = getattr(law, name)(INNER), getattr(exact, name)(INNER)
            assert np.allclose(got, expected, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("spins", [4, 49])
def test_blocks_of_few_spins_have_their_entropy(spins: int) -> None:
    """The law of N spins with all couplings alike, J / (N - 1): binomials, and no self."""
    beta, own = 1.25, 0.9
    law = FiniteLaw(ExactLaw(beta), spins, own)
    m = 2 * np.arange(spins + 1) / spins - 1
    ways = stats.binom(spins, 0.5).logpmf(np.arange(spins + 1))
    pairs = 0.5 * beta * own / (spins - 1) * ((spins * m) ** 2 - spins)
    got = -beta * spins * (law.entropy(m) - own * m**2 / 2)
    assert np.abs(np.diff(got - ways - pairs)).max() < 1e-10
    assert np.isfinite(law.entropy_derivative(ENDS)).all()
    large = FiniteLaw(ExactLaw(beta), 10**7).entropy_derivative(INNER)
    assert np.allclose(large, np.arctanh(INNER) / beta, atol=1e-5)
    with pytest.raises(InputError, match="^law="):
        FiniteLaw(ExactLaw(1.0, "cosh"), 16)
    with pytest.raises(InputError, match="^spins="):
        FiniteLaw(ExactLaw(1.0), 1)


def test_between_points_values_are_met_and_nothing_overshoots() -> None:
    rng = np.random.default_rng(0)
    m = np.sort(rng.uniform(-0.95, 0.95, 15))
    slope, ratio = np.sort(rng.normal(size=15)), rng.uniform(0.2, 3, 15)
    law = TableLaw(2.0, m, 2 * (1 - m**2) * ratio, slope)
    assert np.allclose(law.entropy_derivative(m), slope, atol=1e-13)
    assert np.allclose(law.mobility(m), 2 * (1 - m**2) * ratio, rtol=1e-13)
    fine = np.linspace(m[0], m[-1], 5001)
    assert (np.diff(law.entropy_derivative(fine)) >= -1e-13).all()
    between = law.mobility(fine) / (2 * (1 - fine**2))
    low, high = (
        np.minimum(ratio[:-1], ratio[1:]),
        np.maximum(ratio[:-1], ratio[1:]),
    )
    piece = np.clip(np.searchsorted(m, fine, side="right") - 1, 0, 13)
    assert (between > low[piece] - 1e-12).all()
    assert (between < high[piece] + 1e-12).all()


def test_a_mirrored_table_is_even_and_odd() -> None:
    law = bent(True)
    m = np.linspace(0, 0.92, 50)
    for even in (law.mobility, law.entropy, law.prefactor):
        assert np.allclose(even(-m), even(m), rtol=1e-13, atol=1e-14)
    for odd in (law.mobility_slope, law.entropy_derivative):
        assert np.allclose(odd(-m), -odd(m), rtol=1e-13, atol=1e-14)
    assert law.range == (-0.92, 0.92)
    assert law.outside == 0
    # 0 may be among the points, or not.
    without = TableLaw(1.0, m[1:], 1 - m[1:] ** 2, np.arctanh(m[1:]), symmetric=True)
    assert without.entropy_derivative(np.zeros(1))[0] == pytest.approx(0, abs=1e-15)


def test_beyond_its_points_a_table_goes_on_as_free_spins_and_counts() -> None:
    law, beyond = bent(), np.array([0.95, 0.99, 1.0])
    with pytest.warns(UserWarning, match=r"from -0.9 to 0.92; 3 values"):
        mobility = law.mobility(beyond)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # only the first ones warn
        ratio = mobility[:2] / (1 - beyond[:2] ** 2)
        assert np.allclose(ratio, law.mobility(np.array(0.92)) / (1 - 0.92**2), rtol=1e-12)
        assert mobility[2] == 0
        grown = law.entropy_derivative(beyond) - law.entropy_derivative(np.array(0.92))
        expected = (np.arctanh(beyond[:2]) - np.arctanh(0.92)) / 1.25
        assert np.allclose(grown[:2], expected, atol=1e-12)
        assert np.isposinf(grown[2])
        assert np.isfinite(law.entropy(ENDS)).all()
        assert law.outside == 3 + 3 + 2
        law.prefactor(np.array([0.0, 0.92, -0.9]))
    assert law.outside == 8


def test_what_is_left_out_of_a_table() -> None:
    m = np.linspace(-0.8, 0.8, 9)
    kappa, slope = 0.6 + 0.1 * m, np.arctanh(m)
    only_kappa = TableLaw(1.0, m, None, slope, kappa, structure="cosh")
    assert np.allclose(only_kappa.mobility(m), kappa * (1 - m**2), rtol=1e-13)
    only_mobility = TableLaw(1.0, m, kappa * (1 - m**2), slope, structure="cosh")
    assert np.allclose(only_mobility.prefactor(m), kappa, rtol=1e-13)
    neither = TableLaw(1.0, m, None, slope)
    assert np.allclose(neither.mobility(m), 1 - m**2, rtol=1e-13)


@pytest.mark.parametrize("symmetric", [False, True])
def test_files_give_the_same_bits(tmp_path: Path, symmetric: bool) -> None:
    law = bent(symmetric, structure="cosh", card={"T": 0.8, "errors": {"K": 0.02}})
    law.save(tmp_path / "law")
    again = load_law(tmp_path / "law")
    assert (again.beta, again.structure, again.range) == (1.25, "cosh", law.range)
    assert again.card == {"T": 0.8, "errors": {"K": 0.02}}
    m = np.linspace(*law.range, 301)
    for name in ("mobility", "mobility_slope", "entropy_derivative", "entropy", "prefactor"):
        assert np.array_equal(getattr(again, name)(m), getattr(law, name)(m)), name
    assert {path.name for path in (tmp_path / "law").iterdir()} == {
        "model.safetensors",
        "model.json",
    }


def test_files_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"law=.*model.json"):
        load_law(tmp_path)
    bent().save(tmp_path)
    text = json.loads((tmp_path / "model.json").read_text())
    for damage in (
        {"kind": "other"},
        {"beta": -1},
        {"beta": "x"},
        {"structure": "none"},
        {"card": 7},
    ):
        (tmp_path / "model.json").write_text(json.dumps(text | damage))
        with pytest.raises(InputError):
            load_law(tmp_path)
    (tmp_path / "model.json").write_text("[")
    with pytest.raises(InputError, match="undamaged"):
        load_law(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(text))
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + bytes(15))
    with pytest.raises(InputError, match="undamaged"):
        load_law(tmp_path)


def test_values_that_no_law_can_have_are_named() -> None:
    m = np.array([-0.5, 0.0, 0.5])
    good = 1 - m**2

    def refused(name: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(InputError, match=f"^{name}="):
            TableLaw(*arguments, **options)

    for beta in (0.0, -1.0, np.nan, np.inf):
        refused("beta", beta, m, good, m)
        with pytest.raises(InputError, match="^beta="):
            ExactLaw(beta)
    refused("structure", 1.0, m, good, m, structure="other")
    for bad in (m[::-1], m[:1], np.array([-1.0, 0.0, 0.5]), np.array([0.0, 0.5, 1.0]), m * np.nan):
        refused("m", 1.0, bad, good[: bad.size], bad)
    refused("m", 1.0, m, good, m, symmetric=True)
    refused("mobility", 1.0, m, good * np.array([1, 0, 1]), m)
    refused("mobility", 1.0, m, good[:2], m)
    refused("prefactor", 1.0, m, good, m, -good)
    refused("entropy_derivative", 1.0, m, good, np.array([0.0, 1.0, np.inf]))
