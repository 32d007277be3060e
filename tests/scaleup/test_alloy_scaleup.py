"""Assembling large alloys, local relaxation, and the evolution of one vacancy."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from exact import P_FLOOR, Z_CEILING
from lattice_gas import PairOnLattice
from scipy import stats

from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.noise import MAX_MEMBER
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.scaleup import alloy as scaleup
from mpiflow.scaleup import alloy_partial as partial
from mpiflow.solvers.vacancy.serial import VacancyKMC
from mpiflow.systems import barriers
from mpiflow.systems.alloy import (
    ATTEMPT_FREQUENCY,
    DIRECTIONS,
    NOT_A_SITE,
    Alloy,
    is_site,
    short_range_order,
)
from mpiflow.systems.barriers import Barriers

SYSTEM = Alloy(temperature=2000.0)
CONSTANT = barriers.constant([1.0, 1.1, 0.9])
BONDS = np.zeros((4, 4))
BONDS[1:, 1:] = [[0.0, -0.05, 0.05], [-0.05, 0.08, -0.1], [0.05, -0.1, 0.05]]
BONDS[0, 1:] = BONDS[1:, 0] = [0.03, -0.03, 0.05]
PAIRWISE = barriers.pairwise([1.0, 1.1, 0.9], BONDS)
#: Rate of a hop over 1 eV.
RATE = ATTEMPT_FREQUENCY * np.exp(-SYSTEM.beta)


def states_of(
    count: int, sides: tuple[int, int, int] = (16, 16, 16), vacancies: int = 4, seed: int = 0
) -> np.ndarray:
    block = Block.periodic(np.zeros((count, *sides), np.int8), np.arange(count))
    random_alloy(block, seed, counts_of(int(np.prod(sides)) // 4, vacancies))
    return block.spins().copy()


def bonds_of(grid: np.ndarray, species: int = 4) -> np.ndarray:
    """Bonds of a lattice, corner x centre, from the definition."""
    out = np.zeros((species, species), np.int64)
    corners = grid[::2, ::2, ::2]
    for step in product((-1, 1), repeat=3):
        others = np.roll(grid, tuple(-s for s in step), (0, 1, 2))[::2, ::2, ::2]
        np.add.at(out, (corners, others), 1)
    return out


def window_of(grid: np.ndarray, origin: np.ndarray, box: int) -> np.ndarray:
    return grid[
        np.ix_(*((o + np.arange(-1, box + 1)) % n for o, n in zip(origin, grid.shape, strict=True)))
    ]


def run(states: np.ndarray, model: Barriers = PAIRWISE, **options: Any) -> partial.AlloyPatches:
    options.setdefault("seed", 3)
    return partial.partial_evolution(
        states, np.arange(len(states)), SYSTEM, model, **({"patch": 8} | options)
    )


# -- assemble --------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_blocks_are_shifted_snapshots_but_for_the_fewest_changes(factor: int) -> None:
    snapshots = states_of(5, (8, 10, 12), vacancies=2)
    members = np.array([3, 8, 11])
    large, changed, _ = scaleup.assemble(snapshots, factor, members, seed=1)
    sites = factor**3 * 8 * 10 * 12 // 4
    wanted = np.array(counts_of(sites, factor**3 * 2))
    shifts = [2 * np.array(s) for s in np.ndindex(4, 5, 6)]
    for state, number in zip(large, changed, strict=True):
        assert np.array_equal(np.bincount(state[state >= 0], minlength=4), wanted)
        assert np.array_equal(state >= 0, is_site(state.shape))
        blocks = (
            state[8 * i : 8 * i + 8, 10 * j : 10 * j + 10, 12 * k : 12 * k + 12]
            for i, j, k in np.ndindex(factor, factor, factor)
        )
        total, before = 0, np.zeros(4, int)
        for block in blocks:
            rolled = [np.roll(s, t, (0, 1, 2)) for s in snapshots for t in shifts]
            best = min(rolled, key=lambda r: int((r != block).sum()))
            total += int((best != block).sum())
            before += np.bincount(best[best >= 0], minlength=4)
        assert total == number == np.maximum(before - wanted, 0).sum()


def test_counts_may_be_chosen_and_sites_are_changed_evenly() -> None:
    """Vacancies too; which of the surplus atoms, and into what, is uniform."""
    grid = np.where(is_site((8, 8, 8)), 1, NOT_A_SITE).astype(np.int8)
    members = np.arange(8000)
    counts = (4, 118, 4, 2)
    large, changed, _ = scaleup.assemble(grid[None], 1, members, seed=5, counts=counts)
    assert np.all(changed == 10)
    sites = large[:, is_site((8, 8, 8))]
    for kind, wanted in enumerate(counts):
        assert np.all((sites == kind).sum(axis=1) == wanted)
        share = wanted / 128
        z = ((sites == kind).mean(axis=0) - share) / np.sqrt(share * (1 - share) / len(sites))
        assert stats.chi2.sf((z**2).sum() * 127 / 128, 127) > P_FLOOR
    back, changed, _ = scaleup.assemble(large[:1], 1, members[:2], seed=5, counts=(1, 42, 42, 43))
    assert changed.tolist() == [79, 79]
    assert np.all((back == 0).sum(axis=(1, 2, 3)) == 1)


def test_pool_limits_the_snapshots() -> None:
    """Snapshots that can be told apart by their atoms, which are not repaired."""
    snapshots = np.repeat(states_of(1, (8, 8, 8), vacancies=1), 6, axis=0)
    site = is_site((8, 8, 8))
    for number, grid in enumerate(snapshots):
        grid[site] = 1
        grid[0, 0, 0] = 0
        grid[1, 1, 1] = 2 if number % 2 else 3
    pool = np.array([[0, 1], [1, 2], [0, 6]] * 40)
    counts = (8, 8 * 126, 0, 8)
    _, changed, _ = scaleup.assemble(snapshots, 2, np.arange(120), seed=2, counts=counts, pool=pool)
    assert np.all(changed[0::3] == 0)
    assert np.all(changed[1::3] == 8)
    assert abs(changed[2::3].mean() - 4) < Z_CEILING * np.sqrt(2 / 40)


def test_assembling_depends_on_the_member_alone() -> None:
    snapshots = states_of(6, (8, 8, 8), vacancies=1)
    pool = np.array([[0, 3], [1, 6], [0, 6], [2, 4]])
    members = np.array([5, 0, 7, 2])
    whole, *_ = scaleup.assemble(snapshots, 2, members, seed=1, pool=pool)
    for i, member in enumerate(members):
        one, *_ = scaleup.assemble(snapshots, 2, [member], seed=1, pool=pool[i : i + 1])
        assert np.array_equal(one[0], whole[i])
    other, *_ = scaleup.assemble(snapshots, 2, members, seed=2, pool=pool)
    assert not np.array_equal(other, whole)


def test_repeated_states_have_no_faces() -> None:
    """Each is one snapshot, shifted, over and over: its bonds are those of the snapshot."""
    snapshots = states_of(6, (8, 8, 8), vacancies=2)
    states, changed, sources = scaleup.assemble(snapshots, 2, np.arange(12), seed=1, repeated=True)
    assert not changed.any()
    bonds = np.array([bonds_of(s) for s in snapshots])
    found = set()
    for state, numbers in zip(states, sources, strict=True):
        block = state[:8, :8, :8]
        assert np.array_equal(state, np.tile(block, (2, 2, 2)))
        shifts = product(range(0, 8, 2), repeat=3)
        rolled = [np.roll(snapshots, s, axis=(1, 2, 3)) == block for s in shifts]
        (which,) = {int(k) for k in np.argwhere(np.array(rolled).all(axis=(2, 3, 4)))[:, 1]}
        assert np.array_equal(bonds_of(state), 8 * bonds[which])
        assert np.array_equal(numbers, np.full(8, which))
        found.add(which)
    assert len(found) > 3


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"factor": 0}, "factor"),
        ({"snapshots": np.ones((2, 8, 8, 8), np.int8)}, "snapshots"),
        ({"snapshots": np.full((2, 8, 8, 8), NOT_A_SITE, np.int8)}, "snapshots"),
        ({"snapshots": states_of(2, (8, 8, 8)).astype(np.int64)}, "snapshots"),
        ({"snapshots": states_of(2, (8, 8, 8))[:, 1:]}, "snapshots"),
        ({"elements": 2}, "snapshots"),
        ({"counts": (1, 2, 3, 4)}, "counts"),
        ({"counts": (-1, 513, 256, 256)}, "counts"),
        ({"counts": (512, 512)}, "counts"),
        ({"pool": np.array([[0, 3]])}, "pool"),
        ({"pool": np.array([[1, 1]])}, "pool"),
        ({"pool": np.array([[0, 1], [0, 1]])}, "pool"),
        ({"members": np.array([-1])}, "members"),
        ({"members": np.array([MAX_MEMBER])}, "members"),
        ({"seed": -1}, "seed"),
    ],
)
def test_assemble_refuses(change: dict[str, Any], name: str) -> None:
    given = {
        "snapshots": states_of(2, (8, 8, 8)), "factor": 2, "members": np.arange(1), "seed": 0,
    }  # fmt: skip
    with pytest.raises(InputError, match=f"^{name}"):
        scaleup.assemble(**(given | change))


def test_default_counts_need_equal_numbers_of_vacancies() -> None:
    snapshots = np.concatenate([states_of(1, (8, 8, 8), v) for v in (1, 2)])
    with pytest.raises(InputError, match="^counts"):
        scaleup.assemble(snapshots, 2, np.arange(1), seed=0)


# -- partial evolution: exactness ------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "frozen": {},
    "buffer": {"patch": 4, "buffer": 2},
    "whole": {"patch": 16},
    "whole and others": {"patch": 8, "buffer": 4},
    "thin wall": {"patch": 14},
    "closed": {"surroundings": "wrap"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", [{"hops": 300}, {"duration": 5.0 / RATE}])
def test_changes_are_exact(case: str, how: dict[str, Any]) -> None:
    """Against bonds counted by brute force in the lattice, or closed box, before and after."""
    options, vacancies = CASES[case], 1 if "others" in case or case == "buffer" else 5
    states = states_of(6, vacancies=vacancies)
    copy = states.copy()
    done = run(states, repeats=3, windows=True, **options, **how)
    assert np.array_equal(states, copy)
    box = options.get("patch", 8) + 2 * options.get("buffer", 0)
    assert done.before is not None
    assert done.after is not None
    assert done.closed == (case == "closed")
    for b, p in np.ndindex(6, 3):
        origin = done.origin[b, p]
        assert np.all(origin % 2 == 0)
        window = window_of(states[b], origin, box)
        if done.closed:
            window = np.pad(window[1:-1, 1:-1, 1:-1], 1, mode="wrap")
            before, after = window[1:-1, 1:-1, 1:-1], done.after[b, p, 1:-1, 1:-1, 1:-1]
            assert np.array_equal(done.after[b, p], np.pad(after, 1, mode="wrap"))
        else:
            before, after = states[b], states[b].copy()
            inside = np.ix_(*((o + np.arange(-1, box + 1)) % 16 for o in origin))
            after[inside] = done.after[b, p]
        assert np.array_equal(done.before[b, p], window)
        assert np.array_equal(done.change[b, p], bonds_of(after) - bonds_of(before))
        assert np.array_equal(np.sort(before, axis=None), np.sort(after, axis=None))
        place = (np.argwhere(states[b] == 0)[done.number[b, p]] - origin) % 16
        assert np.all(np.abs(place - box // 2) <= 1)
    assert np.any(done.change)
    assert np.array_equal(done.bonds_before, [bonds_of(grid) for grid in states])
    assert done.vacancies.tolist() == [vacancies] * 6
    assert done.sites == 1024
    if "hops" in how:
        assert np.all(done.hops == 300)
        assert np.all(done.elapsed > 0)
    else:
        assert np.all(done.elapsed == how["duration"])


@pytest.mark.parametrize("model", [CONSTANT, PAIRWISE], ids=["constant", "pairwise"])
def test_with_a_buffer_the_vacancies_share_all_changes(model: Barriers) -> None:
    """In a box as large as the lattice: the same run, counted for one vacancy or another."""
    state = states_of(1, (12, 12, 12), vacancies=40)
    number = np.arange(40)
    done = partial.partial_evolution(
        np.repeat(state, 40, axis=0), np.zeros(40, int), SYSTEM, model, seed=2, patch=4,
        buffer=4, hops=2000, which=number, windows=True,
    )  # fmt: skip
    assert done.after is not None
    # The boxes begin elsewhere, so the order of the list, and with it the run, may differ.
    same = np.all(done.origin == done.origin[0], axis=1)
    assert done.hops[same].sum() <= 2000
    for b in range(40):
        after = done.after[b, 1:-1, 1:-1, 1:-1]
        assert np.array_equal(np.bincount(after[after >= 0]), np.bincount(state[state >= 0]))


def exact_drift(grid: np.ndarray, which: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of the bonds per s, and of its products, from all hops of the whole lattice."""
    start, drift, square = bonds_of(grid), np.zeros((4, 4)), np.zeros((16, 16))

    def energy(g: np.ndarray) -> float:
        return float((bonds_of(g) * BONDS).sum())

    here = energy(grid)
    for number, v in enumerate(np.argwhere(grid == 0)):
        if which not in (None, number):
            continue
        for step in DIRECTIONS:
            target = tuple((v + step) % grid.shape)
            atom = grid[target]
            if atom == 0:
                continue
            after = grid.copy()
            after[tuple(v)], after[target] = atom, 0
            barrier = PAIRWISE.base[atom] + 0.5 * (energy(after) - here)
            rate = ATTEMPT_FREQUENCY * np.exp(-SYSTEM.beta * barrier)
            change = bonds_of(after) - start
            drift += rate * change
            square += rate * np.outer(change, change)
    return drift, square


@pytest.mark.parametrize("options", [{}, {"buffer": 4}, {"patch": 4}], ids=str)
def test_increments_have_the_generators_mean_and_v_times_the_covariance(
    options: dict[str, Any],
) -> None:
    count, dt = 100_000, 0.01 / (8 * RATE)
    state = states_of(1, vacancies=6, seed=4)
    drift, square = exact_drift(state[0])
    done = run(state, repeats=count, duration=dt, **options)
    change = 6.0 * done.change[0].reshape(count, 16)
    moves = np.diag(square) > 0  # bonds that one hop can change: not those of two vacancies
    assert np.mean(np.any(change[:, ~moves] != 0, axis=1)) < 1e-4
    change, square = change[:, moves], square[np.ix_(moves, moves)]
    size = np.sqrt((change**2).mean(axis=0))
    mean, error = change.mean(axis=0), change.std(axis=0) / np.sqrt(count)
    exact = drift.reshape(16)[moves] * dt
    # Of second order in dt are two hops in a row; one in a hundred hops at all.
    assert 0.005 < np.mean(done.hops > 0) < 0.02
    assert np.all(np.abs(mean - exact) < Z_CEILING * error + 0.02 * np.abs(change).mean(axis=0))
    assert np.abs(exact / error).max() > 8
    mean = change.T @ change / count
    error = np.sqrt(((change**2).T @ (change**2) / count - mean**2) / count)
    exact = 6.0 * square * dt
    assert np.all(np.abs(mean - exact) < Z_CEILING * error + 0.02 * np.outer(size, size))
    assert np.abs(exact / np.maximum(error, 1e-12)).max() > 20


def test_one_hop_has_the_law_of_the_generator() -> None:
    """Times are exponential; change per time is the drift, whatever the time (but for float32)."""
    count = 60_000
    state = states_of(1, vacancies=6, seed=4)
    number = np.full((1, count), 2)
    drift, _ = exact_drift(state[0], which=2)
    done = run(state, repeats=count, hops=1, which=number)
    rate = 1.0 / run(state, hops=1, which=[2], mean_times=True).elapsed[0]
    assert stats.kstest(done.elapsed[0] * rate, "expon").pvalue > P_FLOOR
    mean, error = done.change[0].mean(axis=0), done.change[0].std(axis=0) / np.sqrt(count)
    assert np.all(np.abs(mean * rate - drift) <= Z_CEILING * error * rate + 1e-6 * rate)


def test_in_a_box_like_the_lattice_means_are_exact_for_long_times() -> None:
    """Every hop of the whole is made by one vacancy: V times its share has the mean of all."""
    count, dt = 8_000, 2.0 / RATE
    state = states_of(1, (8, 8, 8), vacancies=3, seed=7)
    done = run(state, repeats=count, patch=4, buffer=2, duration=dt)
    ours = 3.0 * done.change[0].reshape(count, 16)
    block = Block.periodic(np.repeat(state, count, axis=0), np.arange(count), halo=5)
    VacancyKMC(SYSTEM, PAIRWISE, count).advance(block, seed=11, until=dt)
    full = partial.whole_bonds(block.spins(), 4) - bonds_of(state[0])
    full = full.reshape(count, 16)
    error = np.sqrt((ours.var(axis=0) + full.var(axis=0)) / count)
    difference = np.abs(ours.mean(axis=0) - full.mean(axis=0))
    assert np.all(difference <= Z_CEILING * error)
    assert np.abs(full.mean(axis=0) / np.maximum(error, 1e-12)).max() > 8


def test_a_lone_vacancy_in_a_box_like_the_lattice_is_the_full_evolution() -> None:
    states = states_of(20, (8, 8, 8), vacancies=1)
    done = run(states, hops=200, windows=True)
    assert done.after is not None
    block = Block.periodic(states, np.arange(20), halo=5)
    solver = VacancyKMC(SYSTEM, PAIRWISE, 20)
    solver.advance(block, seed=3, hops=200, stream="vacancy-partial")
    after = np.array([np.roll(a[1:-1, 1:-1, 1:-1], o, (0, 1, 2))
                      for a, o in zip(done.after, done.origin, strict=True)])  # fmt: skip
    assert np.array_equal(after, block.spins())
    assert np.array_equal(done.elapsed, solver.clock)


# -- partial evolution: variants -------------------------------------------------------


@pytest.mark.parametrize("surroundings", ["frozen", "wrap"])
def test_only_the_chosen_vacancy_hops_without_a_buffer(surroundings: str) -> None:
    states = states_of(10, vacancies=60)
    done = run(states, repeats=4, hops=100, surroundings=surroundings, windows=True)
    assert done.before is not None
    assert done.after is not None
    inner = (..., *(slice(1, -1),) * 3)
    vanished = (done.before[inner] == 0) & (done.after[inner] != 0)
    assert np.all(vanished.sum(axis=(2, 3, 4)) <= 1)
    assert np.all(done.hops == 100)


def test_with_a_buffer_others_hop_and_are_not_counted() -> None:
    states = states_of(10, vacancies=60)
    done = run(states, repeats=4, hops=400, buffer=4, windows=True)
    assert done.before is not None
    assert done.after is not None
    vanished = (done.before == 0) & (done.after != 0)
    assert vanished.sum(axis=(2, 3, 4)).max() > 2
    assert done.hops.max() < 100
    assert np.all(done.change.sum(axis=(2, 3)) == 0)
    # Too little time has passed for the chosen vacancy to leave: it counts for itself.
    assert 400 / 60 / 4 < done.hops.mean() < 400 * 4 / 60


@pytest.mark.parametrize("surroundings", ["frozen", "wrap"])
def test_mean_times_have_the_mean_of_the_random_ones(surroundings: str) -> None:
    states = states_of(4000, (8, 8, 8), vacancies=2)
    options = {"hops": 10, "surroundings": surroundings}
    random, mean = run(states, **options), run(states, mean_times=True, **options)
    assert np.array_equal(random.change, mean.change)
    difference = random.elapsed - mean.elapsed
    assert abs(difference.mean()) < Z_CEILING * difference.std() / np.sqrt(len(difference))
    assert np.log(mean.elapsed).std() < 0.8 * np.log(random.elapsed).std()
    pure = np.where(is_site((8, 8, 8)), 1, NOT_A_SITE).astype(np.int8)[None]
    pure[0, 0, 0, 0] = 0
    assert run(pure, CONSTANT, mean_times=True, **options).elapsed * RATE == pytest.approx(10 / 8)


def test_increments_are_v_times_the_change_of_the_order_parameters() -> None:
    states = states_of(5, vacancies=3)
    done = run(states, hops=50)
    after = short_range_order(done.bonds_before + done.change)
    assert np.allclose(done.sro(), short_range_order(done.bonds_before), atol=0)
    assert np.allclose(done.increments(), 3 * (after - done.sro()), atol=1e-12)
    several = run(states, hops=50, repeats=2)
    assert several.increments().shape == (5, 2, 6)
    assert np.array_equal(several.increments()[:, 0], done.increments())
    for name in ("change", "elapsed", "hops", "number", "origin"):
        assert np.array_equal(getattr(several, name)[:, 0], getattr(done, name))


def test_vacancies_are_equally_likely_and_independent() -> None:
    done = run(states_of(3, vacancies=5), hops=1, repeats=5000)
    for numbers in done.number:
        assert stats.chisquare(np.bincount(numbers, minlength=5)).pvalue > P_FLOOR
        pairs = 5 * numbers[::2] + numbers[1::2]
        assert stats.chisquare(np.bincount(pairs, minlength=25)).pvalue > P_FLOOR


@pytest.mark.parametrize("case", CASES)
def test_a_patch_depends_on_the_member_alone(case: str) -> None:
    states, members = states_of(7, vacancies=9), 1000 - np.arange(7)
    options: dict[str, Any] = {"seed": 9, "hops": 60, "repeats": 2, "patch": 8} | CASES[case]
    whole = partial.partial_evolution(states, members, SYSTEM, PAIRWISE, **options)
    for share in (slice(0, 3), slice(6, 7), slice(None, None, -2)):
        part = partial.partial_evolution(states[share], members[share], SYSTEM, PAIRWISE, **options)
        for name in ("bonds_before", "change", "elapsed", "hops", "number", "origin"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[share])


def test_no_states_are_no_patches() -> None:
    done = run(states_of(2)[:0], hops=3)
    assert done.increments().shape == (0, 6)
    assert scaleup.local_relax(states_of(2)[:0], [], SYSTEM, PAIRWISE, seed=0, hops=1).size == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"patch": 7}, "patch"),
        ({"patch": 2}, "patch"),
        ({"patch": 18}, "patch"),
        ({"patch": 6, "surroundings": "wrap"}, "patch"),
        ({"surroundings": "wrap", "buffer": 2}, "buffer"),
        ({"buffer": 1}, "buffer"),
        ({"buffer": -2}, "buffer"),
        ({"buffer": 6}, "buffer"),
        ({"patch": 10, "buffer": 2}, "patch"),  # too close to itself round the lattice
        ({"surroundings": "open"}, "surroundings"),
        ({"hops": None}, "hops"),
        ({"duration": 1e-9}, "hops"),
        ({"hops": 0}, "hops"),
        ({"hops": None, "duration": np.inf}, "duration"),
        ({"hops": None, "duration": -1.0}, "duration"),
        ({"hops": None, "duration": 1e-9, "mean_times": True}, "mean_times"),
        ({"repeats": 0}, "repeats"),
        ({"which": [4]}, "which"),
        ({"which": [0, 1]}, "which"),
        ({"model": barriers.constant([1.0])}, "barriers"),
        ({"states": states_of(1, (8, 8, 8), 1).clip(1)}, "states"),
        ({"states": np.where(states_of(1) == 0, 1, states_of(1)).astype(np.int8)}, "states"),
    ],
)
def test_partial_evolution_refuses(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}"):
        run(**({"states": states_of(1), "hops": 5} | options))


# -- local relaxation ------------------------------------------------------------------


def gibbs(count: int, sides: tuple[int, int, int]) -> tuple[Any, np.ndarray, np.ndarray, Barriers]:
    """Exact samples of a vacancy and a foreign atom, and the law of their squared distances."""
    bonds = np.zeros((3, 3))
    bonds[0, 2] = bonds[2, 0] = -0.3
    model = barriers.pairwise([1.0, 0.9], bonds)
    pair = PairOnLattice(sides, (1.0, 0.9), bonds, 2000.0)
    weight = pair.gibbs().reshape(-1)
    chosen = np.random.default_rng(1).choice(len(weight), count, p=weight)
    law = np.bincount(pair.distance_classes().reshape(-1), weight)
    return pair, pair.grids(*np.divmod(chosen, pair.n)), law, model


def p_value(pair: PairOnLattice, states: np.ndarray, law: np.ndarray) -> float:
    classes = pair.distance_classes()[pair.places(states)]
    counts, expected = np.bincount(classes, minlength=len(law)), law * len(states)
    rare = expected < 10
    return float(
        stats.chisquare(
            np.append(counts[~rare], counts[rare].sum()) + 1e-9,
            np.append(expected[~rare], expected[rare].sum()) + 1e-9,
        ).pvalue
    )


@pytest.mark.parametrize(
    ("window", "how", "invariant"),
    [
        (4, {"duration": 1.0 / RATE, "stride": 4}, True),
        pytest.param(6, {"duration": 0.3 / RATE, "stride": 6}, True, marks=pytest.mark.validate),
        (8, {"duration": 0.5 / RATE}, True),
        # Windows counted in hops sample the law of the jumps, which is another one.
        (4, {"hops": 3, "stride": 4}, False),
        # Closed windows do not see the attraction across their edges, or see one that is not.
        (8, {"duration": 1.0 / RATE, "surroundings": "wrap"}, False),
    ],
    ids=str,
)
def test_frozen_windows_leave_the_gibbs_measure_invariant(
    window: int, how: dict[str, Any], invariant: bool
) -> None:
    sides = (16, 8, 8) if window == 8 else (24, 12, 12)
    pair, states, law, model = gibbs(20_000 if window < 8 else 40_000, sides)
    before = states.copy()
    scaleup.local_relax(
        states, np.arange(len(states)), Alloy(2000.0, ("A", "B")), model, seed=3, window=window,
        **how,
    )  # fmt: skip
    assert np.all((states == 0).sum(axis=(1, 2, 3)) == 1)
    assert np.all((states == 2).sum(axis=(1, 2, 3)) == 1)
    assert np.mean(np.any(states != before, axis=(1, 2, 3))) > 0.5
    p = p_value(pair, states, law)
    assert p > P_FLOOR if invariant else p < 1e-6


def test_many_vacancies_keep_their_uniform_law() -> None:
    """Constant barriers: all arrangements stay equally likely, also of vacancies that touch."""
    states = states_of(400, (16, 8, 8), vacancies=40)
    start = partial.whole_bonds(states, 4)
    scaleup.local_relax(
        states, np.arange(400), SYSTEM, CONSTANT, seed=3, window=8, duration=1.0 / RATE
    )
    end = partial.whole_bonds(states, 4)
    fresh = partial.whole_bonds(states_of(400, (16, 8, 8), vacancies=40, seed=1), 4)
    for bonds in (start, end):
        error = np.sqrt((bonds.var(axis=0) + fresh.var(axis=0)) / 400)
        assert np.all(np.abs(bonds.mean(axis=0) - fresh.mean(axis=0)) < Z_CEILING * error)


@pytest.mark.parametrize("surroundings", ["frozen", "wrap"])
def test_relaxing_depends_on_the_member_alone(surroundings: str) -> None:
    whole = states_of(7, (24, 24, 16), vacancies=12)
    before, members = whole.copy(), np.arange(7)
    options: dict[str, Any] = {"seed": 1, "window": 16, "hops": 20, "surroundings": surroundings}
    options["stride"] = 8
    made = scaleup.local_relax(whole, members, SYSTEM, PAIRWISE, **options)
    parts = [before[:3].copy(), before[3:].copy()[:, ::1]]
    for part, keys in zip(parts, (members[:3], members[3:]), strict=True):
        scaleup.local_relax(part, keys, SYSTEM, PAIRWISE, **options)
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.all(made % 20 == 0)
    assert np.all(made > 0)
    assert np.array_equal(np.sort(whole.reshape(7, -1)), np.sort(before.reshape(7, -1)))
    turned = before.transpose(0, 2, 1, 3).copy().transpose(0, 2, 1, 3)  # not contiguous
    scaleup.local_relax(turned, members, SYSTEM, PAIRWISE, **options)
    assert np.array_equal(turned, whole)
    other = before.copy()
    scaleup.local_relax(other, members, SYSTEM, PAIRWISE, level=1, **options)
    assert not np.array_equal(other, whole)


def test_window_as_large_as_the_lattice_is_periodic() -> None:
    states = states_of(10, (8, 8, 8), vacancies=3)
    block = Block.periodic(states, np.arange(10), halo=5)
    VacancyKMC(SYSTEM, PAIRWISE, 10).advance(block, seed=1, hops=100, stream="vacancy-relax")
    scaleup.local_relax(states, np.arange(10), SYSTEM, PAIRWISE, seed=1, window=8, hops=100)
    assert np.array_equal(states, block.spins())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"window": 7}, "window"),
        ({"window": 24}, "window"),
        ({"window": 8, "stride": 3}, "window"),
        ({"window": 8, "stride": 10}, "window"),
        ({"window": 8, "stride": 6}, "window"),
        ({"window": 12, "stride": 4}, "window"),  # too close to itself round the lattice
        ({"window": 4, "surroundings": "wrap"}, "window"),
        ({"surroundings": "open"}, "surroundings"),
        ({"hops": None}, "hops"),
        ({"duration": 1.0}, "hops"),
        ({"level": -1}, "level"),
        ({"members": np.arange(2)}, "members"),
        ({"states": np.zeros((1, 8, 8, 8), np.int8)}, "states"),
    ],
)
def test_local_relax_refuses(options: dict[str, Any], name: str) -> None:
    given = {"states": states_of(1), "members": np.arange(1), "hops": 3, "window": 8}
    with pytest.raises(InputError, match=f"^{name}"):
        scaleup.local_relax(system=SYSTEM, model=PAIRWISE, seed=0, **(given | options))
