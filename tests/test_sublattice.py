"""The sublattice solver: the same bits on any tiling and target, the right law in every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from exact import (
    P_FLOOR,
    Z_CEILING,
    chi_square,
    class_p_value,
    colour_of_sites,
    deviate,
    fitted_slope,
    generator,
    gibbs,
    has_cuda,
    heat_bath_pass,
    index,
    law_p_value,
    neighbour_sums,
    onsager_energy,
    onsager_magnetization,
    pass_matrix,
    sample,
    states,
)
from exact import threefry as plain_threefry
from scipy.linalg import expm

from mpiflow import initial, observables
from mpiflow.block import Block, HaloPolicy
from mpiflow.device import Device
from mpiflow.errors import InputError
from mpiflow.noise import stream_key
from mpiflow.solvers import heatbath, sublattice
from mpiflow.solvers.sublattice import BLACK, WHITE, Pass, Sublattice
from mpiflow.systems.ising import NEIGHBOUR_SUMS, Ising

HOT = Ising(2.5, 0.1)
MODELS = [HOT, Ising(1.1, -0.2), Ising(2.0), Ising(1.7, 0.3, coupling=-1.0)]
STEPS = [0.1, 0.5, 1.0, math.inf]

on_each_path = pytest.mark.parametrize(
    "path",
    [
        "rows",
        "lanes",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.kernel,
                pytest.mark.skipif(
                    not has_cuda(),
                    reason="no CUDA device and no simulator",
                ),
            ],
        ),
    ],
)


def device_of(path: str) -> Device:
    return Device("cuda" if path == "cuda" else "cpu")


def run_passes(
    solver: Sublattice, block: Block, passes: list[Pass], path: str, seed: int
) -> np.ndarray:
    """Apply passes by one of the three kernels, whatever the solver would choose."""
    flips, key = np.zeros(block.batch, np.int64), stream_key(seed, "sublattice")
    if path == "lanes":
        solver._advance_lanes(block, passes, key, flips)
    elif path == "cuda":
        solver._advance_cuda(block, passes, key, flips)
    else:
        for number, colour, (up, attempt) in passes:
            heatbath.update_rows(
                block.array, block.halo, block.origins, block.members, *block.lattice.shape,
                key, np.uint64(number), colour, up, attempt, flips,
            )  # fmt: skip
            block.fill_halo()
    return flips


def spins(block: Block) -> np.ndarray:
    return np.array(block.inner(block.host()))


def random_states(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Force the solver's choice of kernel."""

    def choose(rows: bool) -> None:
        monkeypatch.setattr(sublattice, "_fits_lanes", lambda block: not rows)

    return choose


# -- the same bits ----------------------------------------------------------------------------


def documented_word(seed: int, member: int, number: int) -> Callable[[int, int], int]:
    """One call for two rows and one compressed column; the row's parity picks the word."""

    def word(y: int, x: int) -> int:
        counter = (number, (y // 2) * 2**32 + x // 2)
        return plain_threefry((seed, 2**48 + member), counter)[y % 2]

    return word


@on_each_path
@pytest.mark.parametrize("shape", [(2, 2), (2, 4), (6, 2), (4, 6)])
@pytest.mark.parametrize("dt", [0.4, math.inf])
def test_kernels_equal_the_plain_reference(path: str, shape: tuple[int, int], dt: float) -> None:
    """Counters, merged passes, thresholds and flips, with Threefry and the rule written again."""
    solver, seed, members = Sublattice(Ising(2.5, 0.1), dt), 2**62 + 5, np.array([0, 7])
    first, steps = 5, 1 if path == "cuda" else 3
    before = random_states(1, 2, *shape)
    block = Block.periodic(before, members, device=device_of(path))
    flips = run_passes(solver, block, list(solver._passes(first, steps)), path, seed)

    half, full = solver.thresholds(dt / 2), solver.thresholds(dt)
    order: list[tuple[int, int, sublattice.Thresholds]] = []
    for step in range(first, first + steps):
        if math.isinf(dt):
            order += [(3 * step, BLACK, full), (3 * step + 1, WHITE, full)]
        else:
            order += [(3 * step, BLACK, half)] if step == first else []
            last = step == first + steps - 1
            order += [(3 * step + 1, WHITE, full), (3 * step + 2, BLACK, half if last else full)]
    for b, member in enumerate(members):
        expected = before[b].copy()
        count = sum(
            heat_bath_pass(
                expected, colour, up, attempt, documented_word(seed, int(member), number)
            )
            for number, colour, (up, attempt) in order
        )
        assert np.array_equal(spins(block)[b], expected)
        assert flips[b] == count
        assert np.array_equal(block.host()[b], np.pad(expected, 1, mode="wrap"))


def random_tiling(rng: np.random.Generator, side: int) -> list[tuple[int, int]]:
    """Intervals (start, width) that cover a periodic side, of any width from 1."""
    cuts = np.sort(rng.choice(side, rng.integers(1, side // 2 + 1), replace=False))
    return [
        (int(a), int(b - a) or side)
        for a, b in zip(cuts, np.append(cuts[1:], cuts[0] + side), strict=True)
    ]


@on_each_path
@pytest.mark.parametrize("dt", [0.3, math.inf])
def test_any_tiling_gives_the_same_bits(path: str, dt: float) -> None:
    """Tiles of one site and up, odd offsets, over the edge; halos renewed before each pass."""
    solver, seed = Sublattice(HOT, dt), 99
    rng = np.random.default_rng(4)
    shape, batch = ((4, 6), 1) if path == "cuda" else ((10, 12), 3)
    members = np.arange(3, 3 + batch)
    whole = random_states(2, batch, *shape)
    reference = Block.periodic(whole, members)
    for one in list(solver._passes(4, 1 if path == "cuda" else 6)):
        expected_flips = run_passes(solver, reference, [one], "rows", seed)
        tiled, flips = np.zeros_like(whole), np.zeros(batch, np.int64)
        for y, height in random_tiling(rng, shape[0]):
            for x, width in random_tiling(rng, shape[1]):
                origin = (y - shape[0], x) if rng.random() < 0.2 else (y, x + shape[1])
                block = Block.cut(whole, origin, (height, width), members, device=device_of(path))
                flips += run_passes(solver, block, [one], path, seed)
                block.paste(tiled)
        whole = tiled
        assert np.array_equal(whole, spins(reference))
        assert np.array_equal(flips, expected_flips)


@pytest.mark.parametrize("parity", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("policy", ["frozen", "wrap"])
def test_lanes_with_different_origins_equal_rows(
    parity: tuple[int, int], policy: HaloPolicy
) -> None:
    """Boxes of one parity anywhere on the lattice, more of them than one group of lanes."""
    count = heatbath.LANES + 37
    rng = np.random.default_rng(6)
    origins = 2 * rng.integers(-8, 8, (count, 2)) + np.array(parity)
    whole = random_states(3, count, 8, 10)
    members = rng.integers(0, 2**47, count)
    blocks = [Block.cut(whole, origins, (6, 4), members, policy=policy) for _ in range(3)]
    solver = Sublattice(HOT, 0.5)
    assert sublattice._fits_lanes(blocks[2])
    passes = list(solver._passes(0, 3))
    flips = [run_passes(solver, blocks[0], passes, "rows", 1)]
    flips += [run_passes(solver, blocks[1], passes, "lanes", 1)]
    flips += [solver.advance(blocks[2], 3, seed=1)]
    for other in (1, 2):
        assert np.array_equal(blocks[0].array, blocks[other].array)
        assert np.array_equal(flips[0], flips[other])


def test_boxes_of_both_parities_go_by_rows() -> None:
    whole = random_states(3, 20, 8, 8)
    origins = np.arange(40).reshape(20, 2) // 2  # mixed parities
    mixed = Block.cut(whole, origins, (5, 5), np.arange(20))
    assert not sublattice._fits_lanes(mixed)
    alone = [Block.cut(whole[b : b + 1], origins[b], (5, 5), np.array([b])) for b in range(20)]
    solver = Sublattice(HOT, 0.5)
    solver.advance(mixed, 4, seed=3)
    for b, block in enumerate(alone):
        solver.advance(block, 4, seed=3)
        assert np.array_equal(mixed.array[b], block.array[0])


@on_each_path
def test_a_wide_margin_equals_the_full_run(path: str) -> None:
    """The influence of a frozen halo moves one site a pass; also in boxes beyond the lattice."""
    solver, steps = Sublattice(HOT, 0.5), 1 if path == "cuda" else 3
    passes = list(solver._passes(0, steps))
    side, margin = (4, 2) if path == "cuda" else (6, len(passes) - 1)
    batch, patch = (1, 2) if path == "cuda" else (18, 5)
    members = np.arange(batch)
    whole = random_states(5, batch, side, side)
    full = Block.periodic(whole, members)
    run_passes(solver, full, passes, "rows", 8)
    for origin in ((0, 0), (3, 4), (-1, 5)):
        corner = np.array(origin) - margin
        block = Block.cut(whole, corner, (patch + 2 * margin,) * 2, members, device=device_of(path))
        if path == "lanes":
            solver.advance(block, steps, seed=8)  # which must notice that lanes wrap only once
        else:
            run_passes(solver, block, passes, path, 8)
        rows, columns = (np.arange(o, o + patch) % side for o in origin)
        inner = spins(block)[:, margin:-margin, margin:-margin]
        assert np.array_equal(inner, spins(full)[np.ix_(members, rows, columns)])


def test_a_thin_margin_does_not() -> None:
    """Otherwise the test above would show nothing."""
    solver = Sublattice(HOT, 0.5)
    whole = random_states(5, 40, 12, 12)
    full, patch = Block.periodic(whole, np.arange(40)), Block.cut(whole, (3, 3), (6, 6), range(40))
    for block in (full, patch):
        solver.advance(block, 3, seed=8)
    assert not np.array_equal(spins(patch), spins(full)[:, 3:9, 3:9])


@on_each_path
def test_a_frozen_halo_never_changes(path: str) -> None:
    count = 2 if path == "cuda" else 20
    whole = random_states(5, count, 8, 8)
    block = Block.cut(whole, (6, 1), (3, 4), np.arange(count), device=device_of(path))
    before = block.host().copy()
    solver = Sublattice(HOT, math.inf)
    run_passes(solver, block, list(solver._passes(0, 1)), path, 0)
    ring = np.ones(before.shape, bool)
    ring[:, 1:-1, 1:-1] = False
    after = block.host()
    assert np.array_equal(after[ring], before[ring])
    assert not np.array_equal(after, before)


def test_members_do_not_depend_on_the_batch() -> None:
    whole = random_states(5, 24, 8, 8)
    many = Block.periodic(whole, np.arange(100, 124))
    alone = Block.periodic(whole[17:18], np.array([117]))
    solver = Sublattice(HOT, 0.25)
    flips = solver.advance(many, 5, seed=3), solver.advance(alone, 5, seed=3)
    assert np.array_equal(spins(many)[17], spins(alone)[0])
    assert flips[0][17] == flips[1][0]


def test_seed_member_step_and_stream_all_matter() -> None:
    def run(seed: int = 0, member: int = 0, first: int = 0, stream: str = "sublattice") -> bytes:
        block = Block.periodic(np.ones((1, 16, 16), np.int8), np.array([member]))
        Sublattice(HOT, math.inf).advance(block, 1, seed=seed, first_step=first, stream=stream)
        return spins(block).tobytes()

    runs = [run(), run(seed=1), run(member=1), run(first=1), run(stream="partial")]
    assert len(set(runs)) == 5
    assert run() == runs[0]


def test_no_steps_change_nothing() -> None:
    whole = random_states(0, 20, 4, 4)
    block = Block.periodic(whole, np.arange(20))
    assert not Sublattice(HOT, 0.5).advance(block, 0, seed=0).any()
    assert np.array_equal(spins(block), whole)


# -- thresholds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [*MODELS, Ising(temperature=0.3)], ids=str)
@pytest.mark.parametrize("dt", [1e-6, 0.05, 0.25, 1.0, 30.0, math.inf])
def test_thresholds_are_the_probabilities(model: Ising, dt: float) -> None:
    """Chances to go up and down against 60 digits, the rarer one to the last bits of a float64.

    At T = 0.3 a spin flips against its neighbours with a probability of 1e-12: taken as
    the difference of two numbers near 1, it would have four digits.
    """
    up, attempt = Sublattice(model, dt).thresholds(dt)
    with localcontext(prec=60):
        q = Fraction(1 - (-Decimal(dt)).exp())
        assert abs(int(attempt) - q * 2**63) <= Fraction(1, 2) + q * 2**12
        for t, k in zip(up, NEIGHBOUR_SUMS.tolist(), strict=True):
            local = Decimal(model.coupling) * k + Decimal(model.field)
            p = Fraction(1 / (1 + (-2 * local / Decimal(model.temperature)).exp()))
            chance, share = (int(t), p) if p < Fraction(1, 2) else (int(attempt) - int(t), 1 - p)
            assert abs(chance - q * share * 2**63) <= Fraction(1, 2) + q * share * 2**15
            assert 0 <= int(t) <= int(attempt) <= 2**63


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("dt", [0.05, 0.25, 1.0, math.inf])
def test_detailed_balance_of_the_thresholds(model: Ising, dt: float) -> None:
    """Of the integers themselves: #up / #down is the ratio of Gibbs weights, for every k.

    Up to the rounding of p(k), which is relative for the smaller of p and 1 - p.
    """
    up, attempt = Sublattice(model, dt).thresholds(dt)
    with localcontext(prec=60):
        for t, k in zip(up, NEIGHBOUR_SUMS.tolist(), strict=True):
            local = Decimal(model.coupling) * k + Decimal(model.field)
            ratio = Fraction((2 * local / Decimal(model.temperature)).exp())
            tolerance = Fraction(1, 2**51) * (16 + ratio + 1 / ratio)
            assert abs(Fraction(int(t), int(attempt) - int(t)) / ratio - 1) < tolerance


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_two_half_passes_are_one(model: Ising) -> None:
    """What lets neighbouring half steps merge."""
    solver = Sublattice(model, 0.6)
    half = pass_matrix((2, 4), BLACK, *solver.thresholds(0.3))
    full = pass_matrix((2, 4), BLACK, *solver.thresholds(0.6))
    assert np.abs(half @ half - full).max() < 1e-14


@pytest.mark.parametrize("dt", [0.0, -0.25, float("nan"), -math.inf])
def test_impossible_steps(dt: float) -> None:
    with pytest.raises(InputError, match=r"^dt=.*above 0, or inf"):
        Sublattice(HOT, dt)


def test_odd_lattices_have_no_two_colours() -> None:
    solver = Sublattice(HOT, 0.5)
    for shape in ((3, 4), (4, 5)):
        with pytest.raises(InputError, match="even number of sites"):
            solver.advance(Block.periodic(random_states(0, 1, *shape), np.arange(1)), 1, seed=0)
    whole = random_states(0, 1, 8, 8)
    with pytest.raises(InputError, match="even number of sites"):
        solver.advance(Block.cut(whole, (0, 0), (3, 4), np.arange(1), policy="wrap"), 1, seed=0)


def test_a_frozen_box_of_an_odd_lattice_must_stay_inside() -> None:
    """Over the edge of an odd lattice two neighbours would have one colour."""
    whole = random_states(0, 1, 9, 8)
    solver = Sublattice(HOT, 0.5)
    solver.advance(Block.cut(whole, (3, 6), (6, 4), np.arange(1)), 1, seed=0)
    for origin in ((4, 0), (-1, 0), (40, 0)):
        with pytest.raises(InputError, match="even number of sites"):
            solver.advance(Block.cut(whole, origin, (6, 4), np.arange(1)), 1, seed=0)


# -- the law of a step ------------------------------------------------------------------------


def step_matrix(solver: Sublattice, shape: tuple[int, int]) -> np.ndarray:
    """exp(dt/2 L_b) exp(dt L_w) exp(dt/2 L_b) as the solver's integers have it; P[from, to]."""
    white = pass_matrix(shape, WHITE, *solver.thresholds(solver.dt))
    if math.isinf(solver.dt):
        return pass_matrix(shape, BLACK, *solver.thresholds(math.inf)) @ white
    black = pass_matrix(shape, BLACK, *solver.thresholds(solver.dt / 2))
    return black @ white @ black


@pytest.mark.parametrize("model", MODELS, ids=str)
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
        exact = expm(0.7 * part)
        ours = pass_matrix((2, 4), colour, *Sublattice(HOT, 0.7).thresholds(0.7))
        assert np.abs(exact - ours).max() < 1e-13
    assert np.abs(sum(parts) - rates).max() < 1e-14


@pytest.mark.parametrize(("start", "time"), [(255, 2.0), (0, 1.0), (0b00110101, 3.0)])
def test_strang_is_second_order_in_law(start: int, time: float) -> None:
    """Total-variation error of a transient law against the master equation."""
    exact = expm(time * generator((2, 4), 2.5, 0.1))[start]
    steps = [1.0, 0.5, 0.25, 0.125]
    errors = []
    for dt in steps:
        power = np.linalg.matrix_power(step_matrix(Sublattice(HOT, dt), (2, 4)), round(time / dt))
        errors.append(0.5 * np.abs(power[start] - exact).sum())
    assert fitted_slope(steps, errors) == pytest.approx(2.0, abs=0.2)
    assert 1e-3 < errors[0] < 5e-2


START_STATES = [255, 0b00110101]


@pytest.mark.parametrize("rows", [False, True], ids=["lanes", "rows"])
@pytest.mark.parametrize(("dt", "steps"), [(0.5, 1), (math.inf, 1), (0.25, 3)])
def test_kernels_have_the_law_of_the_matrix(
    by_rows: Callable[[bool], None], rows: bool, dt: float, steps: int
) -> None:
    """256-state law from a fixed state, merged half steps included, one call or one a step."""
    by_rows(rows)
    solver, count = Sublattice(HOT, dt), 100_000
    step = np.linalg.matrix_power(step_matrix(solver, (2, 4)), steps)
    for start in START_STATES:
        for calls in {1, steps}:
            whole = np.repeat(states((2, 4))[start : start + 1], count, axis=0)
            block = Block.periodic(whole, np.arange(count))
            for call in range(calls):
                each = steps // calls
                solver.advance(block, each, seed=10 * start + calls, first_step=7 + call * each)
            assert law_p_value(spins(block), step[start]) > P_FLOOR


@pytest.mark.validate
@pytest.mark.parametrize("dt", [0.25, math.inf])
def test_kernels_have_the_law_of_the_matrix_in_millions(dt: float) -> None:
    solver, count, each = Sublattice(HOT, dt), 10_000_000, 500_000
    law = step_matrix(solver, (2, 4))[START_STATES[1]]
    seen = np.zeros(256)
    for first in range(0, count, each):
        whole = np.repeat(states((2, 4))[START_STATES[1]][None], each, axis=0)
        block = Block.periodic(whole, np.arange(first, first + each))
        solver.advance(block, 1, seed=15)
        seen += np.bincount(index(spins(block)), minlength=256)
    assert chi_square(seen, count * law) > P_FLOOR


@pytest.mark.parametrize("dt", [0.3, math.inf])
def test_flip_frequencies_of_all_ten_classes(dt: float) -> None:
    """By class (k, s), colour and parity of the row: each word of the noise, each threshold."""
    solver = Sublattice(Ising(2.2, 0.15), dt)
    up, attempt = solver.thresholds(dt)
    p = np.array([float(t) for t in up]) / 2.0**63
    chance = np.concatenate([p, float(attempt) / 2.0**63 - p])
    side = 512
    whole = random_states(11, 1, side, side)
    place = (neighbour_sums(whole[0]) + 4) // 2 + 5 * (whole[0] > 0)
    row_parity = np.arange(side)[:, None] % 2
    colour_of = np.add.outer(np.arange(side), np.arange(side)) % 2
    cell = (place * 2 + row_parity) * 2 + colour_of
    tried, flipped = np.zeros(40), np.zeros(40)
    for number in range(12):
        for colour in (BLACK, WHITE):
            block = Block.periodic(whole, np.arange(1))
            run_passes(solver, block, [(number, colour, (up, attempt))], "rows", 21)
            changed = spins(block)[0] != whole[0]
            assert not changed[colour_of != colour].any()
            tried += np.bincount(cell[colour_of == colour], minlength=40)
            flipped += np.bincount(cell[changed], minlength=40)
    assert tried.min() > 20_000
    expected = tried * chance.repeat(4)
    z = (flipped - expected) / np.sqrt(expected * (1 - chance.repeat(4)))
    assert np.abs(z).max() < Z_CEILING + 0.7, z  # the largest of 40
    assert chi_square(np.append(flipped, tried - flipped),
                      np.append(expected, tried - expected), constraints=40) > P_FLOOR  # fmt: skip


def test_neighbouring_flips_are_independent() -> None:
    """Sites of one colour: pairs that share a call, the next call, the next row, two passes."""
    side, count = 256, 30
    block = Block.periodic(np.ones((count, side, side), np.int8), np.arange(count))
    solver = Sublattice(Ising(3.0), math.inf)
    flipped = []
    for number in (0, 1):
        block.load(np.ones((count, side, side), np.int8))
        run_passes(solver, block, [(number, BLACK, solver.thresholds(math.inf))], "rows", 2)
        flipped.append(spins(block) < 0)
    black = np.add.outer(np.arange(side), np.arange(side)) % 2 == 0
    share = 1 - float(solver.thresholds(math.inf)[0][4]) / 2.0**63
    centred = [np.where(black, f - share, 0.0) for f in flipped]
    pairs = {
        "diagonal": (centred[0], np.roll(centred[0], (1, 1), (1, 2))),
        "other diagonal": (centred[0], np.roll(centred[0], (1, -1), (1, 2))),
        "row": (centred[0], np.roll(centred[0], 2, 2)),
        "column": (centred[0], np.roll(centred[0], 2, 1)),
        "pass": tuple(centred),
        "member": (centred[0], np.roll(centred[0], 1, 0)),
    }
    for kind, (a, b) in pairs.items():
        z = (a * b).sum() / (share * (1 - share) * math.sqrt(count * side * side / 2))
        assert abs(z) < Z_CEILING, kind


# -- the stationary law -----------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0.25, 1.0, math.inf])
@pytest.mark.parametrize("model", [HOT, Ising(1.8, 0.1)], ids=str)
def test_gibbs_stays_gibbs_on_4x4(model: Ising, dt: float) -> None:
    """Members drawn from the exact law still have it after ten steps, and have moved."""
    law, count = gibbs((4, 4), model.temperature, model.field), 50_000
    whole = sample(law, (4, 4), count, np.random.default_rng(3))
    block = Block.periodic(whole, np.arange(count))
    Sublattice(model, dt).advance(block, 10, seed=12)
    assert class_p_value(spins(block), law, (4, 4)) > P_FLOOR
    assert np.mean(index(spins(block)) != index(whole)) > 0.3


@pytest.mark.parametrize("shape", [(4, 4), (2, 6)])
@pytest.mark.parametrize("dt", [0.5, math.inf])
def test_every_start_ends_in_gibbs(shape: tuple[int, int], dt: float) -> None:
    """Independent members, half all up and half all down, long after the relaxation time."""
    law, count = gibbs(shape, 2.5, 0.1), 40_000
    whole = np.ones((count, *shape), np.int8)
    whole[::2] = -1
    block = Block.periodic(whole, np.arange(count))
    solver = Sublattice(HOT, dt)
    solver.advance(block, round(150 / solver.time_per_step), seed=4)
    assert class_p_value(spins(block), law, shape) > P_FLOOR
    sites = spins(block).mean(0).reshape(-1)  # no site is special
    spread = math.sqrt((law * states(shape).reshape(len(law), -1)[:, 0] ** 2).sum() / count)
    assert np.abs(sites - sites.mean()).max() < 5 * spread


def equilibrium(temperature: float, dt: float, sweeps: int, skip: int) -> Iterator[np.ndarray]:
    """Sums (members, 2) of an ensemble of 64 x 64 lattices from all up, once every `skip`."""
    block = Block.periodic(np.ones((96, 64, 64), np.int8), np.arange(96))
    solver = Sublattice(Ising(temperature), dt)
    steps = round(skip / solver.time_per_step)
    for i in range(sweeps // skip):
        solver.advance(block, steps, seed=33, first_step=i * steps)
        yield observables.spin_sums(block)


@pytest.mark.parametrize(("temperature", "dt"), [(2.0, 0.5), (2.0, math.inf), (2.5, math.inf)])
def test_energy_and_magnetisation_of_the_infinite_lattice(temperature: float, dt: float) -> None:
    """Onsager and Yang off criticality, where 64 sites are more than ten correlation lengths.

    Errors from the spread of the members' own averages: members are independent.
    """
    sums = np.stack(list(equilibrium(temperature, dt, sweeps=800, skip=5))[30:]) / 64**2
    energy = -sums[..., 1].mean(0)
    assert energy.std(ddof=1) / math.sqrt(96) < 8e-4
    assert abs(deviate(energy, onsager_energy(temperature))) < Z_CEILING
    expected = onsager_magnetization(temperature) if temperature < 2.2 else 0.0
    assert abs(deviate(sums[..., 0].mean(0), expected)) < Z_CEILING


@pytest.mark.validate
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("temperature", [2.0, 2.5])
@pytest.mark.parametrize("dt", [0.25, 1.0, math.inf])
def test_onsager_to_four_digits(temperature: float, dt: float) -> None:
    sums = np.stack(list(equilibrium(temperature, dt, sweeps=12_000, skip=5))[60:]) / 64**2
    energy = -sums[..., 1].mean(0)
    assert energy.std(ddof=1) / math.sqrt(96) < 2.5e-4
    assert abs(deviate(energy, onsager_energy(temperature))) < Z_CEILING
    expected = onsager_magnetization(temperature) if temperature < 2.2 else 0.0
    assert abs(deviate(sums[..., 0].mean(0), expected)) < Z_CEILING


def test_the_onsager_formulas() -> None:
    assert onsager_energy(2.0) == pytest.approx(-1.745565, abs=5e-7)
    assert onsager_energy(2.5) == pytest.approx(-1.106079, abs=5e-7)
    assert onsager_magnetization(2.0) == pytest.approx(0.911319, abs=5e-7)


def test_flips_are_counted_in_one_large_lattice() -> None:
    """One pass at a time a flip is a changed spin; a run's count is the sum of its passes."""
    block = Block.periodic(np.ones((1, 130, 140), np.int8), np.arange(1))
    initial.independent(block, seed=1)
    copy = Block.periodic(spins(block), np.arange(1))
    solver, total = Sublattice(HOT, 0.4), 0
    for one in solver._passes(0, 4):
        before = spins(copy)
        flips = run_passes(solver, copy, [one], "rows", 6)
        assert flips[0] == np.count_nonzero(before != spins(copy))
        total += int(flips[0])
    assert solver.advance(block, 4, seed=6)[0] == total
    assert np.array_equal(spins(block), spins(copy))
