"""Stays in basins against the master equation, and the absorbing solver against exact laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from lattice_gas import PairOnLattice
from scipy import stats
from scipy.linalg import expm
from scipy.sparse.linalg import expm_multiply
from test_vacancy import (
    BASE,
    BONDS,
    HOP,
    MODEL,
    SYSTEM,
    boxes,
    counts_by_distance,
    laws_by_distance,
    near_boundary,
    random_grid,
    require_law,
)

from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.noise import threefry
from mpiflow.observables import bond_counts
from mpiflow.solvers.vacancy import barrier_kernels, basin, draws, walkers
from mpiflow.solvers.vacancy.absorbing import AbsorbingKMC
from mpiflow.solvers.vacancy.hop_log import Tracers
from mpiflow.solvers.vacancy.serial import VacancyKMC
from mpiflow.systems import barriers
from mpiflow.systems.alloy import VACANCY, Alloy, is_site


def rugged() -> barriers.Barriers:
    """Barriers as of nothing in particular, over which vacancies flicker in the cold."""
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=s) * 0.08, rng.normal(size=s[1]) * 0.1) for s in ((112, 8), (8, 1))]
    layers[1][0][:] *= 6
    layers[1][1][:] = 0.7
    return barrier_kernels.network(layers, np.arange(3)[:, None])


COLD, RUGGED = Alloy(500.0, ("A", "B")), rugged()


# -- numbers -------------------------------------------------------------------------------


@kernel
def _draw_many(law: int, a: float, b: float, c: float, out: np.ndarray) -> None:
    for i in range(out.size):
        k0, k1 = threefry(np.uint64(1), np.uint64(2), np.uint64(i), np.uint64(law))
        if law == 0:
            out[i], _ = draws.gamma(int(a), k0, k1, 0)
        elif law == 1:
            out[i], _ = draws.beta(int(a), int(b), k0, k1, 0)
        elif law == 2:
            found, _ = draws.poisson(a, k0, k1, 0)
            out[i] = found
        elif law == 3:
            found, _ = draws.binomial(int(a), b, k0, k1, 0)
            out[i] = found
        else:
            found, _ = draws.hypergeometric(int(a), int(b), int(c), k0, k1, 0)
            out[i] = found


@pytest.mark.parametrize(
    ("law", "numbers", "exact"),
    [
        (0, (1,), stats.gamma(1)), (0, (5,), stats.gamma(5)), (0, (7,), stats.gamma(7)),
        (0, (300,), stats.gamma(300)), (1, (2, 9), stats.beta(2, 9)),
        (2, (3.0,), stats.poisson(3)), (2, (40.0,), stats.poisson(40)),
        (3, (30, 0.1), stats.binom(30, 0.1)), (3, (90, 0.8), stats.binom(90, 0.8)),
        (4, (5, 40, 30), stats.hypergeom(45, 5, 30)), (4, (40, 5, 30), stats.hypergeom(45, 40, 30)),
        (4, (200, 120, 90), stats.hypergeom(320, 200, 90)),
        (4, (120, 200, 290), stats.hypergeom(320, 120, 290)),
    ],
)  # fmt: skip
def test_numbers_have_their_laws(law: int, numbers: tuple, exact) -> None:
    out = np.empty(60_000)
    _draw_many(law, *(*map(float, numbers), 0.0, 0.0)[:3], out)
    if law < 2:
        assert stats.kstest(out, exact.cdf).pvalue > 1e-4
    else:
        low, high = int(exact.ppf(1e-9)), int(exact.ppf(1 - 1e-9))
        found = np.bincount(out.astype(int), minlength=high + 1)
        assert found.sum() == found[low : high + 1].sum()
        require_law(found[low : high + 1], exact.pmf(np.arange(low, high + 1)))


# -- one basin -----------------------------------------------------------------------------


def some_basin() -> tuple[np.ndarray, np.ndarray]:
    """Links and rates: a branched tree of six states that holds its walk for 70 hops or so."""
    rng = np.random.default_rng(4)
    link, rates = np.full((basin.STATES, 16), -1, np.int64), np.zeros((basin.STATES, 16))
    rates[:, :8] = 0.008 * rng.exponential(size=(basin.STATES, 8))
    for slot, (below, d) in enumerate([(0, 3), (0, 6), (1, 0), (1, 5), (3, 2)], start=1):
        link[below, d], link[slot, d ^ 7] = slot, below
        rates[below, d], rates[slot, d ^ 7] = rng.uniform(0.5, 2), rng.uniform(1, 6)
    return link, rates


@kernel
def _stay_many(  # type: ignore[no-untyped-def]
    link, rates, start, times, w, ends, slots, hops
) -> None:
    for i in range(len(ends)):
        k0, k1 = threefry(np.uint64(7), np.uint64(8), np.uint64(i), np.uint64(0))
        made, time, slot, way, _, _ = basin.draw(link, rates, 8, start, w, k0, k1)
        ends[i, 0], ends[i, 1], ends[i, 2], ends[i, 3] = made, time, slot, way
        for j in range(len(times)):
            slots[i, j], hops[i, j] = -1, made
            if times[j] < time:
                slots[i, j], hops[i, j] = basin.place_at(link, rates, 8, start, times[j], w, k0, k1)


@pytest.mark.parametrize("start", [0, 4, 5])
def test_a_stay_has_the_law_of_the_master_equation(start: int) -> None:
    """When and how it ends, where it is before at two times together, and its hops until then."""
    link, rates = some_basin()
    states, many = 6, 30_000
    q = np.zeros((states, states))  # d p / dt = q p, without what leaves
    for slot in range(states):
        for d in range(8):
            q[slot, slot] -= rates[slot, d]
            if link[slot, d] >= 0:
                q[link[slot, d], slot] += rates[slot, d]
    first = np.eye(states)[start]
    mean = -np.linalg.inv(q) @ first  # time in each state
    times = np.array([0.4, 1.0]) * mean.sum()
    ends, slots, hops = np.empty((many, 4)), np.empty((many, 2), int), np.empty((many, 2))
    _stay_many(link, rates, start, times, basin.walk(), ends, slots, hops)
    # The end: hop and state, time, hops.
    leaves = np.where(link[:states, :8] < 0, rates[:states, :8], 0) * mean[:, None]
    found = np.bincount((8 * ends[:, 2] + ends[:, 3]).astype(int), minlength=8 * states)
    assert not found[leaves.ravel() == 0].any()
    require_law(found[leaves.ravel() > 0], leaves.ravel()[leaves.ravel() > 0])
    cuts = np.linspace(0, 3, 12)[1:] * mean.sum()
    survival = np.array([1.0, *((expm(q * t) @ first).sum() for t in cuts), 0.0])
    require_law(np.histogram(ends[:, 1], [0, *cuts, np.inf])[0], -np.diff(survival))
    total = rates[:states, :8].sum(axis=1)
    error = ends[:, 0].std() / math.sqrt(many)
    assert ends[:, 0].mean() == pytest.approx(mean @ total, abs=4 * error)
    assert mean @ total > 30
    # The place at both times, -1 after the end.
    middle, then = expm(q * times[0]) @ first, expm(q * (times[1] - times[0]))
    joint = then * middle  # (later, earlier)
    joint = np.concatenate([joint, [middle - joint.sum(axis=0)]])
    seen = slots[:, 0] >= 0
    found = np.zeros((states + 1, states), int)
    np.add.at(found, (slots[seen, 1], slots[seen, 0]), 1)
    require_law(found.ravel(), joint.ravel() / joint.sum())
    assert seen.sum() == pytest.approx(many * middle.sum(), abs=4 * math.sqrt(many))
    for j, t in enumerate(times):
        spent = np.linalg.solve(q, (expm(q * t) - np.eye(states)) @ first)
        error = hops[:, j].std() / math.sqrt(many)
        assert hops[:, j].mean() == pytest.approx(spent @ total, abs=4 * error)


def test_traps_are_cut_not_waited_for() -> None:
    """A stay of 1e9 hops or more ends early, in the state where it began; exits are exact."""
    link, rates = np.full((basin.STATES, 16), -1, np.int64), np.zeros((basin.STATES, 16))
    link[0, 2], link[1, 5] = 1, 0
    rates[0, 2], rates[1, 5], rates[0, 0] = 1e9, 1e9, 1e-1
    ends, slots, hops = np.empty((200, 4)), np.empty((200, 1), int), np.empty((200, 1))
    _stay_many(link, rates, 0, np.array([1e-3]), basin.walk(), ends, slots, hops)
    cut = ends[:, 3] == basin.NOWHERE
    assert cut.sum() > 190
    assert (ends[cut, 2] == 0).all()
    assert ends[cut, 0] == pytest.approx(2 * (basin.MOST // 2 + 1))
    assert ends[:, 1].mean() == pytest.approx(ends[:, 0].mean() / 1e9, rel=0.01)
    assert hops[:, 0] == pytest.approx(1e6, rel=0.01)
    # States that hold it for as long, but another one is where it began: entered as by any hop.
    link[1, 3], link[2, 4] = 2, 1
    rates[0, 2], rates[1, 5], rates[1, 3], rates[2, 4] = 1.0, 1e-1, 1e9, 1e9
    ends = np.empty((50, 4))
    _stay_many(link, rates, 0, np.array([0.0]), basin.walk(), ends, slots[:50], hops[:50])
    assert (ends[:, 0] == 1).all()
    assert (ends[:, 3] == 2).sum() > 30


# -- the solver ----------------------------------------------------------------------------


def test_one_vacancy_has_the_law_of_the_master_equation() -> None:
    pair = PairOnLattice((8, 8, 8), BASE, BONDS, SYSTEM.temperature)
    v, a = near_boundary(pair)
    members = 1500
    block = boxes(pair.grids(np.full(members, v), np.full(members, a)))
    solver = AbsorbingKMC(SYSTEM, MODEL, members)
    p = np.zeros(pair.n**2)
    p[v * pair.n + a] = 1.0
    for number in (1, 2):
        solver.advance(block, seed=3, until=5 * number * HOP)
        p = expm_multiply(pair.generator() * (5 * HOP), p)
        for found, law in zip(
            counts_by_distance(pair, block), laws_by_distance(pair, p), strict=True
        ):
            seen = law > 0
            assert not found[~seen].any()
            require_law(found[seen], law[seen])
    assert solver.events.sum() < 0.97 * solver.hops.sum()


def test_two_vacancies_have_the_law_of_the_master_equation() -> None:
    """Where the second one is, seen from the first, and their hops: they meet, pair and part."""
    sides, kelvin, members = np.array((20, 8, 8)), 450.0, 800
    bonds, base = np.array([[0.0, 0.02], [0.02, 0.0]]), 0.5
    bonds[0, 0] = -0.02
    sites = np.argwhere(is_site(tuple(sides)))
    number = np.full(sides, -1)
    number[tuple(sites.T)] = np.arange(len(sites))
    steps = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    gap = np.minimum(sites, sides - sites)
    energy = np.where((gap == 1).all(axis=1), bonds[0, 0] - 2 * bonds[0, 1] + bonds[1, 1], 0.0)
    q, system = np.zeros((len(sites),) * 2), Alloy(kelvin, ("A",))
    for here, place in enumerate(sites):
        for there in number[tuple(((place + steps) % sides).T)]:
            if here and there:  # twice: either of them hops
                barrier = base + 0.5 * (energy[there] - energy[here])
                rate = 2 * 1e13 * math.exp(-system.beta * barrier)
                q[there, here] += rate
                q[here, here] -= rate
    grid = np.where(is_site(tuple(sides)), 1, -1).astype(np.int8)
    grid[0, 0, 0] = grid[2, 2, 2] = VACANCY
    block = boxes(np.repeat(grid[None], members, axis=0))
    solver = AbsorbingKMC(system, barriers.pairwise([base], bonds), members)
    time = 400 / -q.diagonal().min()
    solver.advance(block, seed=2, until=time)
    # With the mean number of hops as a last component of the law.
    counted = np.zeros((len(sites) + 1,) * 2)
    counted[:-1, :-1], counted[-1, :-1] = q, -q.diagonal()
    *p, hops = expm(counted * time)[:, number[2, 2, 2]]
    places = np.argwhere(block.spins() == VACANCY)[:, 1:].reshape(members, 2, 3)
    there = number[tuple(((places[:, 1] - places[:, 0]) % sides).T)]
    classes = np.unique(gap, axis=0, return_inverse=True)[1].ravel()
    require_law(np.bincount(classes[there], minlength=classes.max() + 1), np.bincount(classes, p))
    error = solver.hops.std() / math.sqrt(members)
    assert solver.hops.mean() == pytest.approx(hops, abs=4 * error)
    assert hops > 200


def test_many_vacancies_are_as_with_the_serial_solver() -> None:
    """Crowded, in groups and alone, in the cold: order, distances, hops and what was displaced."""
    members, grid = 250, random_grid((40, 8, 8), 18, seed=4)
    found = []
    for kind, seed in ((VacancyKMC, 1), (AbsorbingKMC, 2)):
        block, solver = boxes(np.repeat(grid, members, axis=0)), kind(COLD, RUGGED, members)
        numbers = []
        for until in (5e-8, 2e-7):
            solver.advance(block, seed=seed, until=until)
            species = block.spins()
            apart = [np.argwhere(box == VACANCY) for box in species]
            gaps = np.stack([np.abs(at[:, None] - at) for at in apart])
            gaps = np.minimum(gaps, np.array(grid.shape[1:]) - gaps)
            near = ((gaps**2).sum(axis=-1) <= 20).sum(axis=(1, 2))
            bonds = bond_counts(block, 3)
            changed = (species != grid).sum(axis=(1, 2, 3))
            numbers += [solver.hops.copy(), near, bonds[:, 1, 1], bonds[:, 1, 2], changed]
        found.append(np.array(numbers, float))
    assert solver.events.sum() < 0.97 * solver.hops.sum()
    whole = np.stack([known.stays.whole for known in solver._lattices])
    assert (whole[:, :, walkers.CROWDED] == 1).any()
    assert set(whole[:, :, walkers.SIZE].ravel()) >= {1, 2, 5, 6}
    for serial, ours in zip(*found, strict=True):
        assert stats.ks_2samp(serial, ours).pvalue > 1e-4


def test_every_end_of_a_stay_is_one_hop() -> None:
    """From where all are at the time before it, also where it interrupts other stays."""
    grid, system, meetings = random_grid((24, 16, 16), 20, seed=4), Alloy(700.0, ("A", "B")), 0
    ahead, behind = AbsorbingKMC(system, RUGGED), AbsorbingKMC(system, RUGGED)
    here, there, begun = boxes(grid), boxes(grid), np.zeros(20, np.int64)
    for _ in range(400):
        ahead.advance(here, seed=3, most=1)
        behind.advance(there, seed=3, until=np.nextafter(ahead.clock[0], 0))
        assert ahead.hops == behind.hops + 1
        assert (here.spins() != there.spins()).sum() == 2
        now = ahead._lattices[0].stays.whole[:, walkers.COUNT]
        meetings += (now > begun).sum() > 1
        begun = now.copy()
    assert meetings > 200
    assert ahead.hops > 1000


def test_cuts_looks_and_restarts_change_no_bit() -> None:
    for n, end in ((1, 5e-3), (5, 1e-4)):
        grid = random_grid((24, 8, 8), n, seed=n)
        once, often = boxes(grid), boxes(grid)
        first, second = AbsorbingKMC(COLD, RUGGED), AbsorbingKMC(COLD, RUGGED)
        first.advance(once, seed=1, until=end)
        looks = np.random.default_rng(5).uniform(0, end, 30)
        for number, until in enumerate([*np.sort(looks), end]):
            second.advance(often, seed=1, until=until, most=7)
            second.advance(often, seed=1, until=until)
            if number % 7 == 3:
                kept = {name: value.copy() for name, value in second.kept(often).items()}
                third, often = AbsorbingKMC(COLD, RUGGED), boxes(often.spins().copy())
                third.take(often, second.hops, kept)
                second = third
        np.testing.assert_array_equal(once.array, often.array)
        np.testing.assert_array_equal(once.array, boxes(once.spins().copy()).array)
        assert first.hops == second.hops > 500
        # Hops are counted by stays: the end of the first one that reaches their number.
        third, counted = AbsorbingKMC(COLD, RUGGED), boxes(grid)
        third.advance(counted, seed=1, hops=200)
        assert third.ended >= 200
        third.advance(counted, seed=1, hops=int(first.ended[0] - third.ended[0]))
        assert third.ended == first.ended
        third.advance(counted, seed=1, until=end)
        np.testing.assert_array_equal(once.array, counted.array)


def test_log_replays_what_the_grid_shows() -> None:
    grid = random_grid((8, 8, 8), 3)
    block, solver = boxes(grid), AbsorbingKMC(COLD, RUGGED)
    solver.log = []
    for until in (1e-5, 3e-5, 1e-4):
        solver.advance(block, seed=7, until=until)
    time = np.concatenate([events.time for events in solver.log[0]])
    assert (np.diff(time) >= 0).all()
    assert len(time) < solver.hops[0]
    tracers = Tracers(grid[0])
    tracers.follow([events.hop for events in solver.log[0]])
    np.testing.assert_array_equal(tracers.grid, block.spins()[0])


def test_other_species_begin_anew() -> None:
    """A state that is set from outside is gone on from; atoms alone may have changed."""
    grid = random_grid((8, 8, 8), 2)
    block, solver = boxes(grid), AbsorbingKMC(COLD, RUGGED)
    solver.advance(block, seed=1, until=1e-5)
    other = block.spins().copy()
    other[other > 0] = 3 - other[other > 0]
    changed = boxes(other)
    solver.advance(changed, seed=1, until=2e-5)
    fresh, again = AbsorbingKMC(COLD, RUGGED), boxes(other)
    fresh.clock[:], fresh._used[:] = 1e-5, solver._used + 1
    assert (solver._lattices[0].stays.rates >= 0).all()
    fresh.advance(again, seed=1, until=2e-5)
    assert np.array_equal(np.bincount(changed.spins().ravel() + 1), np.bincount(other.ravel() + 1))
    with pytest.raises(InputError, match="until"):
        solver.advance(changed, seed=1)
