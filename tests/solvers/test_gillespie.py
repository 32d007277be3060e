"""Gillespie's algorithm of a Kac model: laws, choices of sites, and what a call may not change."""

from __future__ import annotations

import math

import kac_law
import numpy as np
import pytest
from exact import P_FLOOR, Z_CEILING, chi_square, deviate, index, sample
from exact import threefry as plain_threefry
from mpi4py import MPI
from scipy.linalg import expm
from scipy.stats import kstest

from mpiflow import initial
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.noise import upper_half
from mpiflow.solvers.kac.gillespie import Gillespie, find, stamp, weighted_sums
from mpiflow.solvers.kac.tables import flip_table
from mpiflow.systems.kac import Kac, lookup

NEAREST, SHORT = Kac(0.7, 0.0, 0.1), Kac(0.6, 0.42, -0.2)
LAWS = [NEAREST, SHORT]


def spins(block: Block) -> np.ndarray:
    return np.array(block.spins())


def random_states(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


def ensemble(states: np.ndarray) -> Block:
    return Block.periodic(np.array(states), np.arange(len(states)))


# -- parts ------------------------------------------------------------------------------------


def test_share_is_the_top_of_the_product() -> None:
    rng = np.random.default_rng(0)
    edges = np.array([0, 2**64 - 1, 2**32, 2**32 - 1], np.uint64)
    words = np.concatenate([edges, rng.integers(0, 2**64, 2000, np.uint64)])
    totals = rng.integers(2**61, 2**62, words.size, np.uint64)
    totals >>= rng.integers(0, 61, words.size, np.uint64)
    for word, total in zip(words, totals, strict=True):
        assert int(upper_half(np.uint64(word), np.uint64(total))) == int(word) * int(total) >> 64


@pytest.mark.parametrize("size", [1, 5, 16, 17, 40, 64])
def test_find_is_the_entry_of_the_number(size: int) -> None:
    rng = np.random.default_rng(size)
    for dtype in (np.uint32, np.int64):
        amounts = (rng.integers(0, 50, size) * (rng.random(size) < 0.5)).astype(dtype)
        amounts[rng.integers(size)] = 7
        ends = np.cumsum(amounts.astype(np.int64))
        for number in range(ends[-1]):
            i, rest = find(amounts, np.uint64(number))
            assert i == np.searchsorted(ends, number, side="right")
            assert rest == number - (ends[i] - amounts[i])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.5])
def test_sums_are_those_of_the_coupling(gamma: float) -> None:
    system, shape = Kac(1.0, gamma), (19, 23)
    state = random_states(1, 2, *shape)
    expected = kac_law.fields(system, state.reshape(2, -1), shape) * system.kernel.norm
    sums = weighted_sums(state, system.kernel)
    assert np.abs(sums.reshape(2, -1) - expected).max() < 1e-6 * system.kernel.norm
    assert stamp(system.kernel).sum() == 2 * system.kernel.norm
    assert stamp(system.kernel)[system.kernel.reach, system.kernel.reach] == 0


CASES = [
    (Kac(1.0, 0.0, 0.3), (3, 7)),
    (Kac(0.02, 0.0, 0.0), (6, 5)),  # most rates are zero, some sums of rows too
    (Kac(40.0, 0.0, 0.0), (8, 8)),  # fields up to the ends of 32 bits
    (Kac(0.5, 0.5, -1.0), (5, 40)),
    (Kac(4.0, 2.0, 1.0), (33, 15)),  # the kernel is as wide as the lattice
    (Kac(1.0, 6.0, 0.25), (64, 70)),
    (Kac(2.0, 12.0, -3000.0), (96, 90)),  # a shift in place of a multiplier
]


@pytest.mark.parametrize(("system", "shape"), CASES, ids=str)
def test_rates_stay_those_of_the_spins(system: Kac, shape: tuple[int, int]) -> None:
    """After many flips everything kept is what :func:`lookup` gives for the spins, to the bit."""
    block = ensemble(random_states(2, 2, *shape))
    solver = Gillespie(system, 2)
    solver.advance(block, seed=4, flips=300)
    state = spins(block)
    assert solver._sites is not None
    kept, sums, external, rates, rows = solver._sites
    assert np.array_equal(kept, state)
    assert np.array_equal(sums, weighted_sums(state, system.kernel))
    table, shift, offset = flip_table(system, solver.scale)
    scale = solver.scale
    bounds = table.bounds
    for b, y, x in np.ndindex(state.shape):
        u = (scale.multiplier * int(sums[b, y, x]) >> scale.shift) + int(external[y, x])
        assert rates[b, y, x] == lookup(bounds, shift, offset, int(state[b, y, x]) * u)
    assert np.array_equal(rows, rates.sum(2, dtype=np.int64))
    exact = system.rates(state * (sums / system.kernel.norm + system.field))
    assert np.abs(rates * 2.0**-32 - exact).max() < 3e-5  # straight lines between 4097 points


@pytest.mark.parametrize("system", [NEAREST, SHORT, Kac(1.0, 1.5, 0.2)], ids=str)
def test_each_event_follows_the_documented_noise(system: Kac) -> None:
    """Waiting time -ln(u) / R and choice of the site, with Threefry written again (stream 22)."""
    shape, members, seed = (11, 13), np.array([0, 5, 2**40]), 77
    block = Block.periodic(random_states(1, 3, *shape), members)
    solver = Gillespie(system, 3)
    for event in range(30):
        before, clock = spins(block), solver.clock.copy()
        u = kac_law.fields(system, before.reshape(3, -1), shape).reshape(before.shape)
        rates = 1 / (1 + np.exp(2 * before * u / system.temperature))
        assert solver.advance(block, seed=seed, flips=1).tolist() == [1, 1, 1]
        after = spins(block)
        for b, member in enumerate(members):
            w0, w1 = plain_threefry((seed, 22 * 2**48 + int(member)), (0, event))
            wait = -math.log(((w0 >> 12) + 0.5) * 2.0**-52) / rates[b].sum()
            assert solver.clock[b] - clock[b] == pytest.approx(wait, rel=1e-4)
            flipped = np.flatnonzero(after[b] != before[b])
            assert flipped.size == 1
            ends = np.cumsum(rates[b].reshape(-1)) / rates[b].sum()
            low = ends[flipped[0] - 1] if flipped[0] else 0.0
            assert low - 1e-4 < w1 * 2.0**-64 < ends[flipped[0]] + 1e-4
        assert np.array_equal(block.host(), np.pad(after, ((0, 0), (1, 1), (1, 1)), "wrap"))
    assert solver.events.tolist() == [30] * 3
    assert solver.operations == 90 * solver.neighbours


# -- laws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", LAWS, ids=str)
def test_first_event_of_a_fixed_state(system: Kac) -> None:
    """Exponential waiting times with the total rate; sites in proportion to their rates."""
    count, shape = 100_000, (3, 4)
    state = random_states(3, *shape)
    u = kac_law.fields(system, state.reshape(-1), shape)
    rates = 1 / (1 + np.exp(2 * state.reshape(-1) * u / system.temperature))
    block, solver = ensemble(np.repeat(state[None], count, 0)), Gillespie(system, count)
    solver.advance(block, seed=5, flips=1)
    assert kstest(solver.clock, "expon", (0, 1 / rates.sum())).pvalue > P_FLOOR
    flipped = (spins(block) != state).reshape(count, -1)
    expected = count * rates / rates.sum()
    assert chi_square(flipped.sum(0), expected) > P_FLOOR
    early = solver.clock < np.median(solver.clock)
    assert chi_square(flipped[early].sum(0), expected * early.mean()) > P_FLOOR


@pytest.mark.parametrize("system", LAWS, ids=str)
@pytest.mark.parametrize("time", [0.3, 1.5])
def test_law_at_a_time(system: Kac, time: float) -> None:
    """The law of all 512 states of a 3 x 3 lattice from a fixed one: the matrix exponential."""
    count, shape = 200_000, (3, 3)
    state = random_states(6, 1, *shape)
    law = expm(time * kac_law.generator(system, shape))[index(state)[0]]
    block, solver = ensemble(np.repeat(state, count, 0)), Gillespie(system, count)
    for part in (0.4, 1.0):  # in two calls
        solver.advance(block, seed=8, until=part * time)
    observed = np.bincount(index(spins(block)), minlength=512)
    assert chi_square(observed, count * law) > P_FLOOR
    # The test can tell: a temperature 10 % higher fails it.
    wrong = Kac(1.1 * system.temperature, system.gamma, system.field)
    other = expm(time * kac_law.generator(wrong, shape))[index(state)[0]]
    assert chi_square(observed, count * other) < P_FLOOR


@pytest.mark.parametrize("temperature", [0.12, 0.09, 0.088, 0.085, 0.058, 0.045])
def test_rare_events_are_as_right_as_others(temperature: float) -> None:
    """Spins all up turn, and back, at rates of 6e-8 to 5e-20; to a few per cent of noise.

    Of 1600 expected: 6.5 standard errors, a false alarm in 10^10. In units of 2^-32 there were
    none at T = 0.085, 1.75 and 1.07 times as many at 0.088 and 0.09.
    """
    system, sites, expected = Kac(temperature, 0.0), 32 * 32, 1600
    rate = float(system.rates(1.0))
    block, solver = ensemble(np.ones((16, 32, 32), np.int8)), Gillespie(system, 16)
    solver.advance(block, seed=3, until=expected / (16 * sites * rate))
    assert abs(solver.events.sum() / 2 - expected) < 6.5 * math.sqrt(expected)


@pytest.mark.parametrize("temperature", [0.09, 0.06])
def test_a_cold_trajectory_does_not_depend_on_its_calls(temperature: float) -> None:
    """Most draws are in vain, and units finer; a call may end between them."""
    system, start = Kac(temperature, 0.0), np.ones((2, 16, 18), np.int8)
    end = 20 / (start[0].size * float(system.rates(1.0)))
    whole, parts = ensemble(start), ensemble(start)
    one, two = Gillespie(system, 2), Gillespie(system, 2)
    one.advance(whole, seed=6, until=end)
    for k in range(1, 150):
        if k % 50 == 0:  # as after a restart
            kept, two = two, Gillespie(system, 2)
            two.clock[:], two.events[:], two.vain[:] = kept.clock, kept.events, kept.vain
        two.advance(parts, seed=6, until=end * k / 149)
    assert np.array_equal(whole.host(), parts.host())
    for name in ("clock", "events", "vain"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert (one.events > 10).all()


@pytest.mark.parametrize("system", LAWS, ids=str)
def test_gibbs_is_stationary(system: Kac) -> None:
    """exp(-H / T) with the quantised J: of the generator exactly, and of the solver."""
    count, shape = 200_000, (3, 3)
    law = kac_law.gibbs(system, shape)
    assert np.abs(law @ kac_law.generator(system, shape)).max() < 1e-15
    states = sample(law, shape, count, np.random.default_rng(1))
    block, solver = ensemble(states), Gillespie(system, count)
    solver.advance(block, seed=2, until=2.0)
    assert solver.events.mean() > 0.8
    assert chi_square(np.bincount(index(spins(block)), minlength=512), count * law) > P_FLOOR


def test_law_in_a_field_of_places() -> None:
    """An external field of each site's own, relaxed from all up to Gibbs."""
    count, shape, system = 100_000, (3, 3), Kac(1.2, 0.42)
    h = np.random.default_rng(2).normal(0, 0.5, shape)
    scale = system.scale(float(abs(h).max()))
    external = np.rint(h * scale.unit).astype(np.int64)
    block = ensemble(np.ones((count, *shape), np.int8))
    solver = Gillespie(system, count, external=external, scale=scale)
    solver.advance(block, seed=2, until=25.0)
    law = kac_law.gibbs(system, shape, h.reshape(-1))
    assert chi_square(np.bincount(index(spins(block)), minlength=512), count * law) > P_FLOOR


def test_no_coupling_to_itself_and_mean_field_at_once() -> None:
    """A wide kernel from a uniform state: m(t) starts as -m + tanh(beta (m + h)), J s = 1."""
    system, shape, time = Kac(1.5, 4.0, 0.4), (64, 64), 0.02
    block = ensemble(np.ones((400, *shape), np.int8))
    Gillespie(system, 400).advance(block, seed=1, until=time)
    flips = (1 - spins(block).mean((1, 2))) / 2
    rate = 1 / (1 + math.exp(2 * 1.4 / 1.5))
    # Flips back, and the fields of spins that turned, are of second order in time.
    assert abs(flips.mean() / (time * rate) - 1) < 2 * time + 4 * flips.std() / 20 / (time * rate)


# -- calls ------------------------------------------------------------------------------------


def test_a_trajectory_does_not_depend_on_its_calls() -> None:
    system, start = Kac(0.9, 1.0, 0.1), random_states(5, 3, 16, 18)
    whole, parts = ensemble(start), ensemble(start)
    one, two = Gillespie(system, 3), Gillespie(system, 3)
    one.advance(whole, seed=6, until=3.0)
    for until in (0.001, 0.7, 0.7, 1.9):
        two.advance(parts, seed=6, until=until)
    again = Gillespie(system, 3)  # as after a restart
    again.clock[:], again.events[:] = two.clock, two.events
    again.advance(parts, seed=6, until=3.0)
    assert np.array_equal(whole.host(), parts.host())
    assert np.array_equal(one.clock, again.clock)
    assert np.array_equal(one.events, again.events)
    assert (one.events > 300).all()
    # Nor on the boxes beside it, nor on the width of the halo.
    alone = Block.periodic(start[1:2], np.array([1]), halo=5)
    Gillespie(system).advance(alone, seed=6, until=3.0)
    assert np.array_equal(spins(alone)[0], spins(whole)[1])


def test_spins_may_change_between_calls() -> None:
    system, block = Kac(1.0, 1.0), ensemble(random_states(5, 1, 12, 12))
    solver = Gillespie(system)
    solver.advance(block, seed=1, until=1.0)
    initial.uniform_up(block)
    fresh, other = ensemble(np.ones((1, 12, 12), np.int8)), Gillespie(system)
    other.clock[:], other.events[:] = solver.clock, solver.events
    for one, state in ((solver, block), (other, fresh)):
        one.advance(state, seed=1, until=2.0)
    assert np.array_equal(block.host(), fresh.host())


def test_a_state_that_cannot_change_waits_for_ever() -> None:
    block = ensemble(np.ones((2, 8, 8), np.int8))
    solver = Gillespie(Kac(0.01, 0.0, 1.0), 2)
    assert solver.advance(block, seed=1, until=1e9).tolist() == [0, 0]
    assert solver.advance(block, seed=1, flips=5).tolist() == [0, 0]
    assert spins(block).min() == 1


def test_magnetisation_of_free_spins() -> None:
    """At a high temperature m(t) = tanh(beta h) (1 - exp(-t)), site by site independent."""
    system = Kac(1000.0, 1.0, 800.0)
    block = ensemble(random_states(1, 500, 12, 12))
    start = spins(block).mean((1, 2))
    Gillespie(system, 500).advance(block, seed=3, until=0.8)
    rest = spins(block).mean((1, 2)) - start * math.exp(-0.8)
    assert abs(deviate(rest, math.tanh(0.8) * (1 - math.exp(-0.8)))) < Z_CEILING


@pytest.mark.mpi
def test_members_are_the_same_on_any_rank(comm: MPI.Intracomm) -> None:
    """Every rank advances its own member; the last one is also computed by all."""
    system, shape = Kac(1.0, 1.0, 0.2), (10, 12)
    own = Block.periodic(np.zeros((1, *shape), np.int8), np.array([comm.rank]))
    everyone = Block.periodic(np.zeros((comm.size, *shape), np.int8), np.arange(comm.size))
    for block in (own, everyone):
        initial.independent(block, seed=2)
        Gillespie(system, block.batch).advance(block, seed=9, until=1.5)
    assert np.array_equal(own.host()[0], everyone.host()[comm.rank])


@pytest.mark.mpi(min_size=2)
def test_a_distributed_lattice_is_refused(comm: MPI.Intracomm) -> None:
    block = Block.tile(Layout.balanced(Lattice((32, 32)), comm.size), comm)
    initial.uniform_up(block)
    with pytest.raises(InputError, match="1 rank per lattice"):
        Gillespie(Kac(1.0, 1.0)).advance(block, seed=1, until=1.0)


def test_bad_input_is_refused() -> None:
    system, block = Kac(1.0, 1.0), ensemble(random_states(1, 2, 12, 12))
    with pytest.raises(InputError, match="batch=1"):
        Gillespie(system).advance(block, seed=1, until=1.0)
    solver = Gillespie(system, 2)
    for bad in ({}, {"until": float("nan")}, {"flips": -1}):
        with pytest.raises(InputError):
            solver.advance(block, seed=1, **bad)
    with pytest.raises(InputError, match="Use at least 15 sites a side"):
        Gillespie(Kac(1.0, 2.0), 2).advance(block, seed=1, until=1.0)
    for external in (np.zeros((1, 1)), np.zeros(3, int), np.full((1, 1), 2**30)):
        with pytest.raises(InputError, match="external"):
            Gillespie(system, 2, external=external)
    with pytest.raises(InputError, match="external"):
        Gillespie(system, 2, external=np.zeros((12, 13), int)).advance(block, seed=1, until=1.0)
    block.array[1, 3, 3] = 0
    with pytest.raises(InputError, match="spins"):
        solver.advance(block, seed=1, until=1.0)
    assert solver.events.tolist() == [0, 0]
