"""The law of what the kernels do: joint laws, frequencies, independence, the stationary law.

Of the plain and the sliced kernel of the sublattice solver; seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from exact import (
    P_FLOOR,
    Z_CEILING,
    chi_square,
    class_p_value,
    deviate,
    energies,
    flip_classes,
    gibbs,
    index,
    law_p_value,
    magnetizations,
    onsager_energy,
    onsager_magnetization,
    pass_matrix,
    sample,
    states,
)
from scipy.stats import chi2

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.solvers.spins.sublattice import BLACK, WHITE, Kind, Run, Sublattice
from mpiflow.systems.ising import Ising

HOT = Ising(2.5, 0.1)
START_STATES = [255, 0b00110101]

by_each_kernel = pytest.mark.parametrize("kernel", ["plain", "sliced"])


def solver_of(kernel: str, dt: float, system: Ising = HOT) -> Sublattice:
    return Sublattice(system, dt, plain=kernel == "plain")


def periodic(kernel: str, whole: np.ndarray, first: int = 0) -> Block:
    block = Block.periodic(whole, np.arange(first, first + len(whole)))
    assert solver_of(kernel, 1.0).kernel_for(block) == kernel
    return block


def looked(solver: Sublattice, block: Block, step: int, seed: int) -> np.ndarray:
    """Spins at a step, from a copy of what a chain left."""
    copy = block.copy()
    solver.look(copy, step, seed=seed)
    return copy.spins()


def random_states(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


# -- looks ------------------------------------------------------------------------------------


@by_each_kernel
@pytest.mark.parametrize("dt", [0.3, 2.0, math.inf])
def test_looking_changes_nothing(kernel: str, dt: float) -> None:
    """However a run is cut into chains, and wherever it is looked at: the same bits and flips."""
    solver, members, steps = solver_of(kernel, dt), 150, 7
    whole = random_states(1, members, 6, 8)
    straight = periodic(kernel, whole)
    total = solver.advance(straight, steps, seed=4, first_step=10)
    for cuts in ([7], [1, 6], [3, 0, 2, 2], [1] * 7):
        block, flips, step = periodic(kernel, whole), np.zeros(members, np.int64), 10
        for count in cuts:
            flips += solver.chain(block, count, seed=4, first_step=step, opening=step == 10)
            step += count
            before = block.array.copy()
            copy = block.copy()
            half = solver.look(copy, step, seed=4)
            changed = copy.spins() != block.spins()
            assert np.array_equal(half, changed.sum((1, 2)))
            assert not changed[:, *np.nonzero(np.indices((6, 8)).sum(0) % 2)].any()  # black only
            assert np.array_equal(block.array, before)
            stepped = periodic(kernel, whole)
            solver.advance(stepped, step - 10, seed=4, first_step=10)
            assert np.array_equal(copy.array, stepped.array)
        assert np.array_equal(copy.array, straight.array)
        assert np.array_equal(flips + half, total)


@by_each_kernel
def test_no_steps_change_nothing(kernel: str) -> None:
    whole = random_states(0, 20, 4, 4)
    block = periodic(kernel, whole)
    assert not solver_of(kernel, math.inf).advance(block, 0, seed=0).any()
    assert not solver_of(kernel, 0.5).chain(block, 0, seed=0, opening=True).any()
    assert not solver_of(kernel, 0.5).advance(block, 0, seed=0).any()
    assert np.array_equal(block.spins(), whole)


# -- the law of steps ---------------------------------------------------------------------------


def chances(system: Ising, time: float) -> np.ndarray:
    """Chance to flip within a time of the ten classes, from the definitions, (10,)."""
    spin, opposite = np.repeat([-1, 1], 5), np.tile(np.arange(5), 2)
    rise = 2 * (system.coupling * (4 - 2 * opposite) + spin * system.field)
    return -np.expm1(-time) / (1 + np.exp(rise / system.temperature))


def half_and_white(solver: Sublattice) -> tuple[np.ndarray, np.ndarray]:
    """exp(dt/2 L_b) and exp(dt L_w) of a 2 x 4 torus; of a sweep the whole black pass."""
    return (
        pass_matrix((2, 4), BLACK, chances(solver.system, solver.dt / 2)),
        pass_matrix((2, 4), WHITE, chances(solver.system, solver.dt)),
    )


def step_matrix(solver: Sublattice) -> np.ndarray:
    half, white = half_and_white(solver)
    return half @ white @ half if math.isfinite(solver.dt) else half @ white


@by_each_kernel
@pytest.mark.parametrize(("dt", "steps"), [(0.5, 1), (math.inf, 1), (0.25, 3), (3.0, 4)])
def test_kernels_have_the_law_of_the_matrix(kernel: str, dt: float, steps: int) -> None:
    """256-state law from a fixed state, in one call or one a step, which draw fresh noise."""
    solver, count = solver_of(kernel, dt), 100_000
    law = np.linalg.matrix_power(step_matrix(solver), steps)
    for start in START_STATES:
        for calls in {1, steps}:
            block = periodic(kernel, np.repeat(states((2, 4))[start][None], count, axis=0))
            for call in range(calls):
                each = steps // calls
                solver.advance(block, each, seed=10 * start + calls, first_step=7 + call * each)
            assert law_p_value(block.spins(), law[start]) > P_FLOOR


@by_each_kernel
@pytest.mark.parametrize("dt", [0.25, 1.0, 4.0])
def test_joint_law_of_the_state_in_the_middle_and_after(kernel: str, dt: float) -> None:
    """Of the state looked at, with the next chain's (to the end of the pass), and the next look."""
    solver, count = solver_of(kernel, dt), 400_000
    half, white = half_and_white(solver)
    for start in START_STATES:
        block = periodic(kernel, np.repeat(states((2, 4))[start][None], count, axis=0))
        solver.chain(block, 1, seed=start, first_step=3, opening=True)
        first = index(looked(solver, block, 4, start))
        solver.chain(block, 1, seed=start, first_step=4, opening=False)
        after, second = index(block.spins()), index(looked(solver, block, 5, start))
        law = (half @ white @ half)[start][:, None] * (half @ white)
        for seen, due in ((after, law), (second, law @ half)):
            counts = np.bincount(256 * first + seen, minlength=2**16)
            assert chi_square(counts, count * due.reshape(-1)) > P_FLOOR


@pytest.mark.validate
@by_each_kernel
@pytest.mark.parametrize("dt", [0.25, 1.0, math.inf])
def test_joint_law_of_two_steps_in_millions(kernel: str, dt: float) -> None:
    solver, count, each = solver_of(kernel, dt), 20_000_000, 500_000
    start, step = START_STATES[1], step_matrix(solver_of(kernel, dt))
    seen = np.zeros(2**16)
    for first in range(0, count, each):
        block = periodic(kernel, np.repeat(states((2, 4))[start][None], each, axis=0), first)
        solver.chain(block, 1, seed=15, opening=True)
        one = index(looked(solver, block, 1, 15))
        solver.chain(block, 1, seed=15, first_step=1, opening=False)
        seen += np.bincount(256 * one + index(looked(solver, block, 2, 15)), minlength=2**16)
    assert chi_square(seen, count * (step[start][:, None] * step).reshape(-1)) > P_FLOOR


# -- single flips ---------------------------------------------------------------------------------


@by_each_kernel
@pytest.mark.parametrize("dt", [0.25, 1.0, math.inf])
def test_flip_frequencies_of_all_ten_classes(kernel: str, dt: float) -> None:
    """Of each colour and parity of the row; then of each row, column and lane: all as due."""
    solver = solver_of(kernel, dt, Ising(2.2, 0.15))
    shape = (1, 768, 768) if kernel == "plain" else (1024, 24, 24)
    whole = random_states(11, *shape)
    y, x = np.indices(shape[1:])
    colour_of = np.broadcast_to((y + x) % 2, shape)
    kind = flip_classes(whole)
    cells = {
        "class": (kind * 2 + y % 2) * 2 + colour_of,
        "row": np.broadcast_to(y, shape),
        "column": np.broadcast_to(x, shape),
        "member": np.broadcast_to(np.arange(shape[0])[:, None, None], shape),
        "lane": np.broadcast_to(np.arange(shape[0])[:, None, None] % 64, shape),
    }
    excess = {name: np.zeros(cell.max() + 1) for name, cell in cells.items()}
    spread = {name: np.zeros(cell.max() + 1) for name, cell in cells.items()}
    total = np.zeros((2, 10))
    passes: list[tuple[Kind | None, int]] = [("full", n) for n in range(20, 26)]
    if math.isfinite(dt):
        passes += [("opening", 30), ("opening", 32), (None, 34), (None, 36), (None, 38)]
    for what, number in passes:
        block = periodic(kernel, whole)
        if what:
            solver._apply(block, [Run(what, number, solver.system)], 21, "sublattice")
        else:
            solver.look(block, number // 2, seed=21)
        chance = chances(solver.system, dt if what == "full" else dt / 2)[kind]
        tried, flipped = colour_of == number % 2, block.spins() != whole
        assert not flipped[~tried].any()
        for name, cell in cells.items():
            more = (flipped - chance)[tried]
            variance = (chance * (1 - chance))[tried]
            excess[name] += np.bincount(cell[tried], more, minlength=len(excess[name]))
            spread[name] += np.bincount(cell[tried], variance, minlength=len(excess[name]))
        total += [
            np.bincount(kind[tried], more, minlength=10),
            np.bincount(kind[tried], variance, minlength=10),
        ]
    assert spread["class"].min() > 20
    for name, values in excess.items():
        squares = values**2 / spread[name]
        assert chi2.sf(squares.sum(), len(squares)) > P_FLOOR, name
    assert np.abs(total[0] / np.sqrt(total[1])).max() < Z_CEILING + 0.5  # the largest of ten


@by_each_kernel
def test_flips_are_independent(kernel: str) -> None:
    """Neighbours in the lattice, members, groups of lanes, passes, and half and whole passes."""
    solver = solver_of(kernel, math.inf, Ising(3.0))
    shape = (30, 256, 256) if kernel == "plain" else (64 * 30, 32, 32)
    half = Sublattice(Ising(3.0), 0.8, plain=kernel == "plain")
    black = np.indices(shape[1:]).sum(0) % 2 == 0
    block = periodic(kernel, np.ones(shape, np.int8))

    def centred(solver: Sublattice, runs: list[Run]) -> np.ndarray:
        block.load(np.ones(shape, np.int8))
        solver._apply(block, runs, 2, "sublattice")
        p = chances(solver.system, solver.dt if runs[0].kind == "full" else solver.dt / 2)[5]
        tried = black if runs[0].first % 2 == 0 else ~black
        return np.where(tried, (block.spins() < 0) - p, 0.0) / math.sqrt(p * (1 - p))

    first, white, third = (centred(solver, [Run("full", n, solver.system)]) for n in (0, 1, 2))
    opening, look = centred(half, half._chain(0, 1, True)[:1]), centred(half, half._look(1))
    pairs = {
        "diagonal": (first, np.roll(first, (1, 1), (1, 2))),
        "other diagonal": (first, np.roll(first, (1, -1), (1, 2))),
        "row": (first, np.roll(first, 2, 2)),
        "column": (first, np.roll(first, 2, 1)),
        "second row": (first, np.roll(first, (2, 2), (1, 2))),
        "next pass": (first, np.roll(white, 1, 2)),
        "next pass below": (first, np.roll(white, 1, 1)),
        "next pass of the colour": (first, third),
        "member": (first, np.roll(first, 1, 0)),
        "two members": (first, np.roll(first, 2, 0)),
        "opening": (first, opening),
        "opening and look": (opening, look),
        "look": (first, look),
    }
    if kernel == "sliced":
        pairs["group"] = (first, np.roll(first, 64, 0))
        pairs["next pass of the group"] = (third, np.roll(first, 64, 0))
        pairs["half a word"] = (first, np.roll(first, 32, 0))
    for kind, (a, b) in pairs.items():
        z = (a * b).sum() / math.sqrt(math.prod(shape) / 2)
        assert abs(z) < Z_CEILING, kind


# -- the stationary law -----------------------------------------------------------------------


def assert_gibbs(spins: np.ndarray, law: np.ndarray, system: Ising) -> None:
    """Energy, magnetisation and all classes of both, of independent 4 x 4 lattices."""
    shape = spins.shape[1:]
    everything = states(shape)
    assert class_p_value(spins, law, shape) > P_FLOOR
    for seen, every in (
        (energies(spins, system.field), energies(everything, system.field)),
        (magnetizations(spins), magnetizations(everything)),
    ):
        mean = law @ every
        spread = math.sqrt(law @ (every - mean) ** 2 / len(spins))
        assert abs(seen.mean() - mean) / spread < Z_CEILING


@by_each_kernel
@pytest.mark.parametrize("dt", [0.25, 1.0, math.inf])
@pytest.mark.parametrize("system", [HOT, Ising(1.8, 0.1)], ids=str)
def test_gibbs_stays_gibbs_on_4x4(kernel: str, system: Ising, dt: float) -> None:
    """Members drawn from the exact law still have it after ten steps, and have moved."""
    law, count = gibbs((4, 4), system.temperature, system.field), 100_000
    whole = sample(law, (4, 4), count, np.random.default_rng(3))
    block, solver = periodic(kernel, whole), solver_of(kernel, dt, system)
    for first, steps in ((0, 1), (1, 9)):
        solver.chain(block, steps, seed=31, first_step=first, opening=first == 0)
        spins = looked(solver, block, first + steps, 31)
        assert_gibbs(spins, law, system)
    assert np.mean(index(spins) != index(whole)) > 0.3


@pytest.mark.parametrize(
    ("kernel", "shape", "dt", "time"),
    [
        ("plain", (2, 6), math.inf, 150),
        ("sliced", (2, 6), math.inf, 300),
        ("sliced", (4, 4), 0.5, 600),
    ],
)
def test_every_start_ends_in_gibbs(
    kernel: str, shape: tuple[int, int], dt: float, time: float
) -> None:
    """Independent members, half all up and half all down, long after the relaxation time."""
    law, count = gibbs(shape, 2.5, 0.1), 40_000
    whole = np.ones((count, *shape), np.int8)
    whole[::2] = -1
    block, solver = periodic(kernel, whole), solver_of(kernel, dt)
    solver.advance(block, round(time / solver.time_per_step), seed=4)
    assert_gibbs(block.spins(), law, HOT)
    sites = block.spins().mean(0).reshape(-1)  # no site is special
    spread = math.sqrt((law * states(shape).reshape(len(law), -1)[:, 0] ** 2).sum() / count)
    assert np.abs(sites - sites.mean()).max() < 5 * spread


def equilibrium(
    kernel: str, temperature: float, dt: float, sweeps: int, skip: int, members: int = 128
) -> Iterator[np.ndarray]:
    """Sums (members, 2) of an ensemble of 64 x 64 lattices, once every `skip`.

    All up at the start; above the critical temperature every second member all down.
    """
    whole = np.ones((members, 64, 64), np.int8)
    whole[::2] = 1 if temperature < 2.2 else -1
    block = periodic(kernel, whole)
    solver = solver_of(kernel, dt, Ising(temperature))
    view, each = block.copy(), round(skip / solver.time_per_step)
    for step in range(0, each * (sweeps // skip), each):
        solver.chain(block, each, seed=33, first_step=step, opening=step == 0)
        view.copy_from(block)
        solver.look(view, step + each, seed=33)
        yield observables.spin_sums(view)


def assert_onsager(sums: np.ndarray, temperature: float, precision: float) -> None:
    """(times, members, 2): means over the members, which are independent."""
    per_site = sums.mean(0) / 64**2
    energy = -per_site[:, 1]
    assert energy.std(ddof=1) / math.sqrt(len(energy)) < precision
    assert abs(deviate(energy, onsager_energy(temperature))) < Z_CEILING
    expected = onsager_magnetization(temperature) if temperature < 2.2 else 0.0
    assert abs(deviate(per_site[:, 0], expected)) < Z_CEILING


@pytest.mark.parametrize(
    ("kernel", "temperature", "dt"),
    [
        ("plain", 2.0, 0.5),
        ("sliced", 2.0, math.inf),
        ("sliced", 2.5, 0.5),
        *(
            pytest.param(*other, marks=pytest.mark.validate)
            for other in [("plain", 2.0, math.inf), ("sliced", 2.0, 0.5), ("sliced", 2.5, math.inf)]
        ),
    ],
)
def test_energy_and_magnetisation_of_the_infinite_lattice(
    kernel: str, temperature: float, dt: float
) -> None:
    """Onsager and Yang off criticality, where 64 sites are more than ten correlation lengths."""
    sums = np.stack(list(equilibrium(kernel, temperature, dt, sweeps=800, skip=5))[40:])
    assert_onsager(sums, temperature, 8e-4)


@pytest.mark.validate
@pytest.mark.timeout(1800)
@by_each_kernel
@pytest.mark.parametrize("temperature", [2.0, 2.5])
@pytest.mark.parametrize("dt", [0.25, 1.0, math.inf])
def test_onsager_to_four_digits(kernel: str, temperature: float, dt: float) -> None:
    sums = np.stack(list(equilibrium(kernel, temperature, dt, sweeps=9000, skip=5))[60:])
    assert_onsager(sums, temperature, 2.5e-4)


def test_the_onsager_formulas() -> None:
    assert onsager_energy(2.0) == pytest.approx(-1.745565, abs=5e-7)
    assert onsager_energy(2.5) == pytest.approx(-1.106079, abs=5e-7)
    assert onsager_magnetization(2.0) == pytest.approx(0.911319, abs=5e-7)
