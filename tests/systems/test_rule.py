"""Spin rules: what is refused, tables against the definitions, Potts and Blume-Capel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from rule_law import Clock, Epidemic, Voter, energies, gibbs, random_states, states
from scipy.linalg import expm

from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.observables import observe
from mpiflow.solvers.spins.rule_tables import (
    check_rule,
    classes,
    propagators,
    shares,
    table,
    tabled,
    thresholds,
)
from mpiflow.systems import potts
from mpiflow.systems.blume_capel import BlumeCapel
from mpiflow.systems.ising import Ising
from mpiflow.systems.potts import Potts
from mpiflow.systems.rule import SpinRule

POTTS = Potts(0.9, states=3, field=0.2)
CAPEL = BlumeCapel(0.8, crystal_field=1.4, field=-0.1)
WEIGHTED = [POTTS, Potts(1.3, states=5, coupling=-1.0), Potts(0.7, 10), CAPEL, Clock()]
RATED = [Voter(), Epidemic(), Voter(noise=1e-9, states=5)]

of_weighted = pytest.mark.parametrize("rule", WEIGHTED, ids=str)
of_rated = pytest.mark.parametrize("rule", RATED, ids=str)
of_each = pytest.mark.parametrize("rule", [*WEIGHTED, *RATED], ids=str)


def around(rule: SpinRule, number: int) -> tuple[int, ...]:
    """Neighbours north, west, east, south of the neighbourhood of that number."""
    q = rule.states
    return tuple(number // q**place % q + rule.lowest for place in (3, 2, 1, 0))


# -- what is refused ----------------------------------------------------------------------------


def made(**content: Any) -> SpinRule:
    """A rule with these attributes."""
    given = {"states": 3, "weight": staticmethod(lambda s, n, w, e, so, p: 1.0), **content}
    return type("Made", (SpinRule,), given)()  # type: ignore[no-any-return]


def returns(value: Any) -> Any:
    return staticmethod(lambda *_: value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"states": 1}, "states=1: allowed is 2 to 127"),
        ({"states": 128}, "states=128: allowed is 2 to 127"),
        ({"states": 2.5}, r"states=2\.5: allowed is 2 to 127"),
        ({"states": True}, "states=True"),
        ({"lowest": -128}, "lowest=-128: allowed is a whole number from -127 to 125"),
        ({"lowest": 126}, "lowest=126"),
        ({"parameters": (1.0, math.nan)}, "parameters=nan: allowed is finite numbers"),
        ({"parameters": (math.inf,)}, "parameters=inf"),
        ({"parameters": ("warm",)}, "parameters='warm'"),
        ({"parameters": 2.0}, r"parameters=2\.0: allowed is a tuple"),
        ({"weight": None}, "a rule with one of the functions weight and rate"),
        ({"rate": returns(1.0)}, "a rule with one of the functions weight and rate"),
        ({"weight": lambda self, *_: 1.0}, "@staticmethod"),
        ({"weight": returns(-0.5)}, r"=-0\.5: allowed is a number from 0"),
        ({"weight": returns(math.nan)}, "=nan: allowed is a number from 0"),
        ({"weight": returns(math.inf)}, "=inf: allowed is a number from 0"),
        ({"weight": returns("much")}, "It raised ValueError"),
        ({"weight": returns(0.0)}, r"With the neighbours \(0, 0, 0, 0\) all are 0"),
        ({"weight": staticmethod(lambda s: 1.0)}, "It raised TypeError"),
        ({"weight": staticmethod(lambda *_: 1 / 0)}, "It raised ZeroDivisionError"),
        ({"states": 40, "weight": returns(-1.0)}, r"=-1\.0: allowed"),
        ({"states": 40, "weight": returns(0.0)}, "all are 0"),
        ({"weight": None, "rate": returns(-1.0)}, r"=-1\.0: allowed"),
        ({"weight": None, "rate": returns(math.nan), "states": 60}, "=nan: allowed"),
    ],
)
def test_a_rule_that_is_none_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_rule(made(**content))


def test_a_rule_says_how_many_states_it_has() -> None:
    with pytest.raises(InputError, match="states=None: allowed is 2 to 127"):
        check_rule(type("Made", (SpinRule,), {"weight": returns(1.0)})())


def test_only_rules_are_rules() -> None:
    with pytest.raises(InputError, match="system='Ising': allowed is a SpinRule"):
        check_rule(Ising(2.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Potts(0.0), "temperature=0.0: allowed is a finite number above 0"),
        (lambda: Potts(math.nan), "temperature=nan"),
        (lambda: Potts(-1.0), "temperature"),
        (lambda: Potts(0.001), r"temperature=0\.001: allowed is at least 0\.00588"),
        (lambda: Potts(1.0, 1), "states=1: allowed is 2 to 127"),
        (lambda: Potts(1.0, 128), "states=128"),
        (lambda: Potts(1.0, coupling=math.inf), "coupling=inf"),
        (lambda: Potts(1.0, field=math.nan), "field=nan"),
        (lambda: BlumeCapel(1.0, math.inf), "crystal_field=inf"),
        (lambda: BlumeCapel(0.0), "temperature"),
        (lambda: BlumeCapel(1.0, 1e4), "temperature=1.0: allowed is at least 29.4"),
    ],
)
def test_impossible_parameters(wrong: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrong()


def test_a_byte_holds_127_states_and_a_value_for_none() -> None:
    for rule in (made(states=127), made(states=127, lowest=-127), made(states=2, lowest=126)):
        check_rule(rule)
        for value in (rule.unset, *rule.values.tolist()):
            assert np.int8(value) == value
        assert rule.unset not in rule.values


# -- tables --------------------------------------------------------------------------------------


@of_each
def test_tables_are_the_function_at_every_neighbourhood(rule: SpinRule) -> None:
    numbers, values = table(rule), rule.values.tolist()
    assert tabled(rule)
    for number in np.random.default_rng(0).integers(0, rule.states**4, 50).tolist():
        near = around(rule, number)
        for i, own in enumerate(values):
            if not rule.by_rate:
                assert numbers[number, i] == rule.weight(own, *near, rule.parameters)
                continue
            for j, new in enumerate(values):
                due = 0.0 if i == j else rule.rate(own, new, *near, rule.parameters)
                assert numbers[number, i, j] == due


def chances(rule: SpinRule, time: float) -> np.ndarray:
    """What the integers of a table mean: chances (q^4, q, q) from own to new."""
    rows, q = thresholds(rule, time), rule.states
    assert rows.values.dtype == np.uint64
    assert (rows.around, rows.own) == ((q, 1) if rule.by_rate else (1, 0))
    each = np.diff(rows.values.astype(object), axis=1, prepend=0)
    assert (each >= 0).all()
    out = each.reshape(-1, q if rule.by_rate else 1, q) + np.zeros((1, q, 1), int)
    own = np.arange(q)
    out[:, own, own] += 2**63 - out.sum(axis=2)
    return np.asarray(out / 2**63, float)


@of_weighted
@pytest.mark.parametrize("time", [1e-6, 0.125, 2.0, math.inf])
def test_thresholds_are_the_heat_bath(rule: SpinRule, time: float) -> None:
    """Every chance by itself is right to its last digits or to 2^-63, also those that are rare."""
    rows, part = thresholds(rule, time), Fraction(-math.expm1(-time))
    for number in np.random.default_rng(1).integers(0, rule.states**4, 30).tolist():
        weights = [
            Fraction(rule.weight(own, *around(rule, number), rule.parameters))
            for own in rule.values.tolist()
        ]
        integers = [int(n) for n in rows.values[number]]
        each = [b - a for a, b in pairwise([0, *integers])]
        assert abs(integers[-1] - part * 2**63) <= Fraction(1, 2)
        for ours, weight in zip(each, weights, strict=True):
            due = part * weight / sum(weights) * 2**63
            rounding = 1 if weight < max(weights) else len(weights)
            assert abs(ours - due) <= due * Fraction(1, 2**48) + rounding


@of_weighted
def test_detailed_balance_of_the_tables(rule: SpinRule) -> None:
    """Of the integers: two states stand as the Boltzmann factors of the energies of the system."""
    temperature: float = rule.temperature  # type: ignore[attr-defined]
    rows, values = thresholds(rule, 0.25).values, rule.values.tolist()
    each = np.diff(rows.astype(object), axis=1, prepend=0)
    for number in np.random.default_rng(2).integers(0, rule.states**4, 60).tolist():
        energy = np.array(
            [
                sum(rule.pair_energy(own, near) for near in around(rule, number))
                + rule.site_energy(own)
                for own in values
            ]
        )
        due = np.exp(-(energy - energy.min()) / temperature)
        ours = np.array([float(n) for n in each[number]])
        assert np.allclose(ours / ours.sum(), due / due.sum(), rtol=1e-13, atol=1e-18)


@of_rated
@pytest.mark.parametrize("time", [1e-7, 0.25, 3.0, 300.0])
def test_thresholds_are_the_propagator(rule: SpinRule, time: float) -> None:
    ours, rates = chances(rule, time), table(rule)
    for number in np.random.default_rng(3).integers(0, rule.states**4, 30).tolist():
        chain = rates[number] - np.diag(rates[number].sum(axis=1))
        assert np.allclose(ours[number], expm(time * chain), rtol=1e-11, atol=1e-15)


@of_weighted
@pytest.mark.parametrize("time", [1e-12, 0.3, 40.0])
def test_propagators_of_heat_bath_rates_keep_all_digits(rule: SpinRule, time: float) -> None:
    """e^{tQ} is known: keep with e^{-t}, else the heat bath; relative errors, of rare ones too."""
    target = shares(rule)[:50]
    rates = np.repeat(target[:, None], rule.states, axis=1)
    own = np.arange(rule.states)
    rates[:, own, own] = 0.0
    due = -math.expm1(-time) * np.repeat(target[:, None], rule.states, axis=1)
    due[:, own, own] += math.exp(-time)
    assert np.allclose(propagators(rates, time), due, rtol=2e-14, atol=0.0)


def test_a_site_that_cannot_change_stays() -> None:
    still = made(weight=None, rate=returns(0.0))
    assert np.array_equal(chances(still, 1.0)[0], np.eye(3))
    assert classes(still).rates.tolist() == [0.0]


@of_each
def test_classes_are_the_total_rates(rule: SpinRule) -> None:
    found, q, values = classes(rule), rule.states, rule.values.tolist()
    assert (np.diff(found.rates) > 0).all()
    for number in np.random.default_rng(4).integers(0, q**4, 40).tolist():
        near = around(rule, number)
        for i, own in enumerate(values):
            others = [new for new in values if new != own]
            if rule.by_rate:
                due = sum(rule.rate(own, new, *near, rule.parameters) for new in others)
            else:
                weights = {new: rule.weight(new, *near, rule.parameters) for new in values}
                due = sum(weights[new] for new in others) / sum(weights.values())
            assert math.isclose(found.rates[found.of[number * q + i]], due, rel_tol=1e-13)


def test_classes_are_few() -> None:
    """Neighbours that are exchanged are of one class to the bit: like ones and how many."""
    assert len(classes(Potts(1.1, 3)).rates) == 9
    assert len(classes(Potts(0.8, 10)).rates) == 12
    assert len(classes(Potts(2.0, 2)).rates) == 5


# -- the systems ---------------------------------------------------------------------------------


@of_weighted
def test_observables_are_those_of_the_definitions(rule: SpinRule) -> None:
    spins = random_states(rule, 5, 3, 6, 4)
    spins[0] = rule.values[-1]
    ours = observe(Block.periodic(spins, np.arange(3)), rule)
    assert set(ours) == set(rule.OBSERVABLES)
    fractions = np.stack([(spins == value).mean((1, 2)) for value in rule.values], axis=1)
    assert np.allclose(ours["fraction"], fractions, atol=1e-15)
    if "energy" in ours:
        assert np.allclose(ours["energy"], energies(rule, spins) / 24, atol=1e-14)
    if isinstance(rule, Potts):
        order = (rule.states * fractions.max(axis=1) - 1) / (rule.states - 1)
        assert np.allclose(ours["magnetization"], order, atol=1e-15)
        assert ours["magnetization"][0] == 1.0
    else:
        assert np.allclose(ours["magnetization"], spins.mean((1, 2)), atol=1e-15)
    if isinstance(rule, BlumeCapel):
        assert np.allclose(ours["density"], (spins.astype(float) ** 2).mean((1, 2)), atol=1e-15)


def test_observables_of_many_states_in_many_boxes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Potts(1.0, 5)
    block = Block.periodic(random_states(rule, 6, 7, 4, 4), np.arange(7))
    whole = observe(block, rule)
    monkeypatch.setattr("mpiflow.observables.sums._COUNTS", 50)  # two boxes at once
    parts = observe(block, rule)
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_facts_of_the_potts_model() -> None:
    """q = 2 is Onsager's point at half the coupling; jumps of the energy as Baxter's formula has
    been printed: 0.05292 at q = 5, 0.20146 at 6, 0.69605 at 10."""
    assert math.isclose(potts.critical_temperature(2), 1.0 / math.log(1.0 + math.sqrt(2.0)))
    assert math.isclose(potts.critical_energy(2), -1.0 - math.sqrt(0.5))
    for states_, jump in ((4, 0.0), (5, 0.05292), (6, 0.20146), (10, 0.69605)):
        assert abs(potts.latent_heat(states_) - jump) < 6e-6


def test_two_states_are_ising() -> None:
    """Half the coupling and half the field, state 0 for up: the same chances in every class."""
    ising = Ising(1.3, field=0.15, coupling=0.5)
    up = shares(Potts(1.3, states=2, field=0.3))[:, 0]
    for number, ours in enumerate(up.tolist()):
        k = 4 - 2 * bin(number).count("1")
        assert math.isclose(ours, ising.up_probabilities()[(k + 4) // 2], rel_tol=1e-14)


def test_no_vacancies_are_ising() -> None:
    """D to minus infinity: 0 is never taken, and up and down are Ising's."""
    ising = Ising(2.1, field=0.2)
    ours = shares(BlumeCapel(2.1, crystal_field=-600.0, field=0.2))
    for number, row in enumerate(ours.tolist()):
        near = around(CAPEL, number)
        if 0 not in near:
            assert row[1] < 1e-100
            up = ising.up_probabilities()[(sum(near) + 4) // 2]
            assert math.isclose(row[2], up, rel_tol=1e-13)


def test_gibbs_of_two_states_is_that_of_ising() -> None:
    """Whole states of a torus: the constants of the energies do not matter."""
    from exact import gibbs as ising_gibbs

    rule = Potts(1.3, states=2, field=0.3)
    law = gibbs(rule, (2, 4), rule.temperature)
    up = (states(rule, (2, 4)) == 0).reshape(256, 8) @ (1 << np.arange(8))
    assert np.allclose(law, ising_gibbs((2, 4), 1.3, 0.15, 0.5)[up], rtol=1e-12)


def test_subclasses_are_honoured() -> None:
    """What overrides the weight is what the tables hold."""

    @dataclass(frozen=True)
    class Inverted(Potts):
        @staticmethod
        def weight(state, north, west, east, south, parameters):  # type: ignore[no-untyped-def]
            return 1.0 / Potts.weight(state, north, west, east, south, parameters)

    assert np.allclose(table(Inverted(1.0)), 1.0 / table(Potts(1.0)))
