"""The sublattice solver: chances, thresholds and the law of a step, exactly.

The law of what the kernels do is in test_sublattice_law.py, their bits in test_heatbath.py and
test_sliced.py.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from exact import (
    colour_of_sites,
    fitted_slope,
    generator,
    gibbs,
    pass_matrix,
)
from scipy.linalg import expm

from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.solvers.spins.bitplanes import PLANES, Thresholds
from mpiflow.solvers.spins.sublattice import BLACK, WHITE, Kind, Sublattice, fixed_point
from mpiflow.systems.ising import Ising

HOT = Ising(2.5, 0.1)
MODELS = [HOT, Ising(1.1, -0.2), Ising(2.0), Ising(1.7, 0.3, coupling=-1.0)]
STEPS = [0.1, 0.5, 1.0, math.inf]
KINDS: tuple[Kind, ...] = get_args(Kind)

of_each_model = pytest.mark.parametrize("model", MODELS, ids=str)


# -- what a uniform number is compared with ------------------------------------------------------


def exact_chances(model: Ising, dt: float, digits: int = 60) -> dict[str, list[Fraction]]:
    """The four bounds of the ten classes, from the definitions with many digits."""
    with localcontext(prec=digits):
        rates = []
        for spin in (-1, 1):
            for opposite in range(5):
                local = Decimal(model.coupling) * spin * (4 - 2 * opposite) + Decimal(model.field)
                rise = 2 * spin * local
                rates.append(Fraction(1 / (1 + (rise / Decimal(model.temperature)).exp())))
        q_half, q = (Fraction(1 - (-Decimal(t)).exp()) for t in (dt / 2, dt))
    halves = [q_half * r for r in rates]
    return {
        "opening": halves,
        "full": [q * r for r in rates],
        "lower": [p * (1 - p) for p in halves],
        "upper": [p * (1 - p) + p for p in halves],
    }


@pytest.mark.parametrize("model", [*MODELS, Ising(temperature=0.3, field=0.02)], ids=str)
@pytest.mark.parametrize("dt", [1e-6, 0.05, 0.25, 1.0, 30.0, math.inf])
def test_chances_to_the_last_digits(model: Ising, dt: float) -> None:
    """Also the rare ones: at T = 0.3 a spin leaves four like it with a chance of 1e-12."""
    solver, exact = Sublattice(model, dt), exact_chances(model, dt)
    for kind in KINDS:
        for ours, due in zip(solver.probabilities(kind).tolist(), exact[kind], strict=True):
            # Bounds of the middle are differences of numbers up to 1.
            rest = Fraction(1, 2**51) if kind in ("lower", "upper") and dt > 1 else 0
            assert abs(Fraction(ours) - due) <= due * Fraction(1, 2**46) + rest
            assert 0 <= ours <= 1


@of_each_model
@pytest.mark.parametrize("dt", [0.01, 0.25, 1.0, 4.0, 60.0])
def test_middle_and_end_of_a_pass_are_two_half_steps(model: Ising, dt: float) -> None:
    """Lengths of the intervals of u, of all classes, against products of two half steps."""
    lower, upper, full, half = (
        Sublattice(model, dt).probabilities(kind) for kind in ("lower", "upper", "full", "opening")
    )
    # Class c of a spin is class 4 - c once it has flipped.
    back = half.reshape(2, 5)[::-1, ::-1].reshape(10)
    flipped_and_stays = np.minimum(full, upper) - lower
    assert np.all((lower <= full) & (full <= upper * (1 + 1e-15)) & (upper <= 1))
    both = {"atol": 4e-16, "rtol": 1e-14}
    assert np.allclose(upper - lower, half, **both)
    assert np.allclose(flipped_and_stays, half * (1 - back), **both)
    assert np.allclose(upper - np.minimum(full, upper), half * back, **both)
    assert np.allclose(lower, (1 - half) * half, **both)
    assert np.allclose(1 - upper, (1 - half) ** 2, **both)


@of_each_model
@pytest.mark.parametrize("dt", [0.05, 0.25, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_integer_thresholds_are_the_chances(model: Ising, dt: float, kind: Kind) -> None:
    """Planes and residual put together are floor(2^76 p), below 1; 63 bits are rounded."""
    chances = Sublattice(model, dt).probabilities(kind)
    thresholds = Thresholds.of(chances.tolist())
    plain = fixed_point(chances)
    assert len(thresholds.masks) == PLANES
    for c in range(10):
        together = (normal_form(thresholds, c % 5, c // 5) << 64) + int(thresholds.residual[c])
        assert together == min(math.floor(Fraction(chances[c]) * 2**76), 2**76 - 1)
        assert abs(int(plain[c]) - Fraction(chances[c]) * 2**63) <= Fraction(1, 2)
    # Without a field the spin does not matter, and its terms cost nothing.
    assert any(any(masks[5:]) for masks in thresholds.masks) == (model.field != 0)


def normal_form(thresholds: Thresholds, opposite: int, up: int) -> int:
    """The planes of a class as a number: products of digits of its count and its spin."""
    s0, s1, s2 = opposite & 1, opposite >> 1 & 1, opposite >> 2
    terms = [1, s0, s1, s0 & s1, s2]
    terms += [up & term for term in terms]
    value = 0
    for place, masks in enumerate(thresholds.masks):
        assert all(int(mask) in (0, 2**64 - 1) for mask in masks)
        chosen = [mask for mask, term in zip(masks, terms, strict=True) if term]
        value |= (int(np.bitwise_xor.reduce(chosen)) & 1) << place
    return value


def test_thresholds_at_the_ends_and_in_between() -> None:
    """0, the smallest and the largest numbers, 1, and ten different planes at once."""
    edge = [0.0, 2.0**-76, 2.0**-77, 1.0, 1 - 2.0**-53, 0.5, 2.0**-12, 2.0**-13, 1 / 3, 0.7]
    thresholds = Thresholds.of(edge)
    together = [
        (normal_form(thresholds, c % 5, c // 5) << 64) + int(thresholds.residual[c])
        for c in range(10)
    ]
    top = 2**76
    assert together[:8] == [0, 1, 0, top - 1, top - 2**23, top // 2, 2**64, 2**63]
    assert together[8:] == [math.floor(Fraction(p) * top) for p in edge[8:]]


@of_each_model
@pytest.mark.parametrize("dt", [0.05, 0.25, 1.0, math.inf])
def test_detailed_balance_of_the_thresholds(model: Ising, dt: float) -> None:
    """Of the integers: the ratio of up and down is that of the Gibbs weights, for every sum."""
    for values in (
        fixed_point(Sublattice(model, dt).probabilities("full")),
        [
            (normal_form(t, c % 5, c // 5) << 64) + int(t.residual[c])
            for t in (Thresholds.of(Sublattice(model, dt).probabilities("full").tolist()),)
            for c in range(10)
        ],
    ):
        for opposite in range(5):  # of a down spin; its neighbours are 4 - opposite of an up spin
            local = Decimal(model.coupling) * (2 * opposite - 4) + Decimal(model.field)
            with localcontext(prec=60):
                ratio = Fraction((2 * local / Decimal(model.temperature)).exp())
            ours = Fraction(int(values[opposite]), int(values[5 + 4 - opposite]))
            assert abs(ours / ratio - 1) < Fraction(1, 2**45)


@pytest.mark.parametrize("dt", [0.0, -0.25, float("nan"), -math.inf])
def test_impossible_steps(dt: float) -> None:
    with pytest.raises(InputError, match=r"^dt=.*above 0, or inf"):
        Sublattice(HOT, dt)


@pytest.mark.parametrize("plain", [False, True])
def test_odd_lattices_have_no_two_colours(plain: bool) -> None:
    solver = Sublattice(HOT, 0.5, plain=plain)
    for shape in ((3, 4), (4, 5)):
        with pytest.raises(InputError, match="even number of sites"):
            solver.advance(Block.periodic(np.ones((1, *shape), np.int8), np.arange(1)), 1, seed=0)
    whole = np.ones((1, 8, 8), np.int8)
    with pytest.raises(InputError, match="even number of sites"):
        solver.advance(Block.cut(whole, (0, 0), (3, 4), np.arange(1), policy="wrap"), 1, seed=0)


@pytest.mark.parametrize("plain", [False, True])
def test_a_frozen_box_of_an_odd_lattice_must_stay_inside(plain: bool) -> None:
    """Over the edge of an odd lattice two neighbours would have one colour."""
    whole = np.ones((1, 9, 8), np.int8)
    solver = Sublattice(HOT, 0.5, plain=plain)
    solver.advance(Block.cut(whole, (3, 6), (6, 4), np.arange(1)), 1, seed=0)
    for origin in ((4, 0), (-1, 0), (40, 0)):
        with pytest.raises(InputError, match="even number of sites"):
            solver.advance(Block.cut(whole, origin, (6, 4), np.arange(1)), 1, seed=0)


# -- the law of a step, exactly -------------------------------------------------------------------


def matrix(solver: Sublattice, colour: int, kind: Kind, shape: tuple[int, int]) -> np.ndarray:
    return pass_matrix(shape, colour, solver.probabilities(kind))


def step_matrix(solver: Sublattice, shape: tuple[int, int]) -> np.ndarray:
    """exp(dt/2 L_b) exp(dt L_w) exp(dt/2 L_b) by the solver's chances; P[from, to]."""
    white = matrix(solver, WHITE, "full", shape)
    if math.isinf(solver.dt):
        return matrix(solver, BLACK, "full", shape) @ white
    black = matrix(solver, BLACK, "opening", shape)
    return black @ white @ black


@pytest.mark.parametrize("dt", [0.1, 0.6, 5.0])
@of_each_model
def test_two_half_passes_are_one(model: Ising, dt: float) -> None:
    """What lets neighbouring half steps merge; and the state of a look is half a pass on."""
    solver, shape = Sublattice(model, dt), (2, 4)
    half, full = (matrix(solver, BLACK, kind, shape) for kind in ("opening", "full"))
    assert np.abs(half @ half - full).max() < 1e-14
    look = solver.probabilities("upper") - solver.probabilities("lower")
    assert np.abs(pass_matrix(shape, BLACK, look) - half).max() < 1e-14


@of_each_model
@pytest.mark.parametrize("dt", STEPS)
@pytest.mark.parametrize("shape", [(2, 4), (4, 2)])
def test_gibbs_is_invariant_for_every_step(model: Ising, dt: float, shape: tuple[int, int]) -> None:
    step = step_matrix(Sublattice(model, dt), shape)
    law = gibbs(shape, model.temperature, model.field, model.coupling)
    assert np.abs(step.sum(1) - 1).max() < 1e-12
    assert np.abs(law @ step - law).sum() < 1e-12
    for _ in range(24):  # the only law: 16 million steps from any state lead to it
        step = step @ step
    assert np.abs(step - law).sum(1).max() < 1e-6


def test_the_split_parts_are_the_generator() -> None:
    """One colour's pass is exp(dt L_colour), with L_black + L_white the whole generator."""
    rates, colours = generator((2, 4), 2.5, 0.1), colour_of_sites((2, 4))
    every, parts = np.arange(256), []
    for colour in (BLACK, WHITE):
        part = np.zeros_like(rates)
        for site in np.flatnonzero(colours == colour):
            part[every, every ^ (1 << site)] = rates[every, every ^ (1 << site)]
        part[every, every] = -part.sum(1)
        parts.append(part)
        for kind, time in (("full", 0.7), ("opening", 0.35)):
            ours = matrix(Sublattice(HOT, 0.7), colour, kind, (2, 4))
            assert np.abs(expm(time * part) - ours).max() < 1e-13
    assert np.abs(sum(parts) - rates).max() < 1e-14


@pytest.mark.parametrize(("start", "time"), [(255, 2.0), (0, 1.0), (0b00110101, 3.0)])
def test_strang_is_second_order_in_law(start: int, time: float) -> None:
    """Total-variation error of a transient law against the master equation."""
    exact = expm(time * generator((2, 4), 2.5, 0.1))[start]
    steps = [1.0, 0.5, 0.25, 0.125]
    errors = []
    for dt in steps:
        # As the passes go: merged between the steps, and a look at the end.
        solver = Sublattice(HOT, dt)
        black, white = (matrix(solver, colour, "full", (2, 4)) for colour in (BLACK, WHITE))
        look = solver.probabilities("upper") - solver.probabilities("lower")
        merged = np.linalg.matrix_power(white @ black, round(time / dt) - 1) @ white
        law = matrix(solver, BLACK, "opening", (2, 4))[start] @ merged
        errors.append(0.5 * np.abs(law @ pass_matrix((2, 4), BLACK, look) - exact).sum())
    assert fitted_slope(steps, errors) == pytest.approx(2.0, abs=0.2)
    assert 1e-3 < errors[0] < 5e-2
