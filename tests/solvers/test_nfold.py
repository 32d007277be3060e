"""The n-fold way: exact waiting times, choices, laws; and what a call may not change."""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact import (
    P_FLOOR,
    Z_CEILING,
    chi_square,
    class_p_value,
    deviate,
    energies,
    generator,
    gibbs,
    index,
    law_p_value,
    magnetizations,
    neighbour_sums,
    sample,
    states,
)
from exact import threefry as plain_threefry
from mpi4py import MPI
from scipy.linalg import expm
from scipy.stats import kstest

from mpiflow import initial
from mpiflow.core.block import Block, HaloPolicy
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.noise import exponential
from mpiflow.solvers.spins.nfold import NFold, choose
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.systems.ising import Ising

HOT = Ising(2.5, 0.1)
MODELS = [HOT, Ising(1.3, -0.4), Ising(1.7, 0.3, coupling=-1.0)]


def spins(block: Block) -> np.ndarray:
    return np.array(block.inner(block.host()))


def random_states(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


def site_rates(whole: np.ndarray, model: Ising) -> np.ndarray:
    """Rate of every site of periodic lattices, from the definition."""
    local = model.coupling * neighbour_sums(whole) + model.field
    return 1.0 / (1.0 + np.exp(2.0 * whole * local / model.temperature))


def assert_lists_are_those_of_the_spins(solver: NFold, block: Block) -> None:
    """Each site is in the list of its class, once, at the place that its word names."""
    labels = (neighbour_sums(spins(block)) + 4) // 2 + 5 * (spins(block) > 0)
    for b, label in enumerate(labels.reshape(block.batch, -1)):
        assert np.array_equal(solver._lists.info[b] >> 28, label)
        assert np.array_equal(solver._lists.counts[b], np.bincount(label, minlength=10))
        for c in range(10):
            start, count = int(solver._lists.base[b, c]), int(solver._lists.counts[b, c])
            assert start + count <= int(solver._lists.base[b, c + 1])
            listed = solver._lists.pool[b, start : start + count]
            assert np.array_equal(np.sort(listed), np.flatnonzero(label == c))
            assert np.array_equal(solver._lists.info[b, listed] & (2**28 - 1), np.arange(count))
        assert solver._lists.base[b, 10] == solver._lists.pool.shape[1]


# -- one event ----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (2, 5), (8, 6)])
def test_each_event_follows_the_documented_noise(model: Ising, shape: tuple[int, int]) -> None:
    """Waiting time -ln(u) / R and choice of class, with Threefry written again (stream 2)."""
    whole, members, seed = random_states(1, 3, *shape), np.array([0, 5, 2**40]), 77
    block, solver = Block.periodic(whole, members), NFold(model, 3)
    for event in range(40):
        before, clock = spins(block), solver.clock.copy()
        rates = site_rates(before, model)
        assert solver.advance(block, seed=seed, flips=1).tolist() == [1, 1, 1]
        after = spins(block)
        for b, member in enumerate(members):
            key = (seed, 2 * 2**48 + int(member))
            w0, w1 = plain_threefry(key, (event, 0))
            u0, u1 = ((w >> 12) * 2.0**-52 + 2.0**-53 for w in (w0, w1))
            wait = -math.log(u0) / rates[b].sum()
            assert solver.clock[b] - clock[b] == pytest.approx(wait, rel=1e-9)
            assert np.count_nonzero(after[b] != before[b]) == 1
            # Classes in order of (spin, neighbour sum); the flipped site is in the chosen one.
            labels = (neighbour_sums(before[b]) + 4) // 2 + 5 * (before[b] > 0)
            shares = np.bincount(labels.reshape(-1), rates[b].reshape(-1), minlength=10)
            chosen = int(np.searchsorted(np.cumsum(shares), u1 * shares.sum()))
            assert labels[after[b] != before[b]] == chosen
        assert np.array_equal(block.host(), np.pad(after, ((0, 0), (1, 1), (1, 1)), "wrap"))
    assert solver.events.tolist() == [40, 40, 40]


def test_exponentials_are_logarithms() -> None:
    """To the last bit or the one before, over all magnitudes of the uniform, and near 1."""
    some = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    edges = np.array([0, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 4096], np.uint64)
    words = np.concatenate([some, edges, np.uint64(1) << np.arange(64, dtype=np.uint64)])
    for word in words:
        u = (int(word >> np.uint64(12)) + 0.5) * 2.0**-52
        assert exponential(word) == pytest.approx(-math.log(u), rel=2.0**-51)


def test_choice_of_a_class() -> None:
    """The share that holds the number, also with empty shares and at the very end."""
    rng = np.random.default_rng(1)
    for _ in range(3000):
        shares = rng.random(10) * 10.0 ** rng.integers(-12, 3, 10) * (rng.random(10) < 0.6)
        u = float(rng.random())
        total, chosen, rest = choose(u, tuple(shares))
        assert total == pytest.approx(shares.sum(), rel=1e-15)
        if total > 0:
            assert 0 <= rest <= shares[chosen] * (1 + 1e-9) + 1e-15 * total
            assert shares[chosen] > 0
            assert rest == pytest.approx(u * total - shares[:chosen].sum(), abs=1e-14 * total)
    for last in range(10):  # the largest number below 1 may be rounded up to the total
        shares = np.where(np.arange(10) <= last, 1.0 / 3.0, 0.0)
        assert choose(1 - 2.0**-53, tuple(shares))[1] == last
        assert choose(1.0, tuple(shares))[1] == last
        assert choose(2.0**-53, tuple(shares[::-1]))[1] == 9 - last


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_first_event_of_a_fixed_state(model: Ising) -> None:
    """Exponential waiting times with the total rate; sites in proportion to their rates."""
    count, shape = 200_000, (3, 4)
    state = random_states(3, 1, *shape)
    rates = site_rates(state, model)[0].reshape(-1)
    block, solver = (
        Block.periodic(np.repeat(state, count, 0), np.arange(count)),
        NFold(model, count),
    )
    solver.advance(block, seed=5, flips=1)
    assert kstest(solver.clock, "expon", (0, 1 / rates.sum())).pvalue > P_FLOOR
    assert abs(deviate(solver.clock, 1 / rates.sum())) < Z_CEILING
    flipped = (spins(block) != state).reshape(count, -1)
    assert (flipped.sum(1) == 1).all()
    expected = count * rates / rates.sum()
    assert chi_square(flipped.sum(0), expected) > P_FLOOR
    # The choice does not depend on the waiting time: early and late events choose alike.
    early = solver.clock < np.median(solver.clock)
    assert chi_square(flipped[early].sum(0), expected * early.mean()) > P_FLOOR


def test_waiting_times_along_a_trajectory() -> None:
    """Every wait times its total rate is a unit exponential, neighbours uncorrelated."""
    count = 400
    whole = random_states(2, count, 6, 7)
    block, solver = Block.periodic(whole, np.arange(count)), NFold(HOT, count)
    waits = []
    for _ in range(300):
        total, clock = site_rates(spins(block), HOT).sum((1, 2)), solver.clock.copy()
        solver.advance(block, seed=1, flips=1)
        waits.append((solver.clock - clock) * total)
    units = np.array(waits)
    assert kstest(units.reshape(-1), "expon").pvalue > P_FLOOR
    assert abs(deviate(units.reshape(-1), 1.0)) < Z_CEILING
    assert abs(deviate(((units[1:] - 1) * (units[:-1] - 1)).mean(0), 0.0)) < Z_CEILING


# -- laws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 4), (3, 3)])
def test_transient_law_solves_the_master_equation(shape: tuple[int, int]) -> None:
    """The law of all states after two times, the second reached in a second call."""
    count, rates = 100_000, generator(shape, 2.5, 0.1)
    for start in (2 ** math.prod(shape) - 1, 0b00110101):
        whole = np.repeat(states(shape)[start : start + 1], count, axis=0)
        block, solver = Block.periodic(whole, np.arange(count)), NFold(HOT, count)
        for time in (0.4, 1.5):
            solver.advance(block, seed=6 + start, until=time)
            assert law_p_value(spins(block), expm(time * rates)[start]) > P_FLOOR


@pytest.mark.parametrize(
    ("shape", "model"),
    [((3, 3), HOT), ((3, 3), Ising(1.6, -0.2, -1.0)), ((4, 4), HOT), ((4, 4), Ising(1.8, 0.1))],
    ids=str,
)
def test_stationary_law(shape: tuple[int, int], model: Ising) -> None:
    """Snapshots of independent members at a fixed time; members start from the law and move."""
    law, count = gibbs(shape, model.temperature, model.field, model.coupling), 50_000
    whole = sample(law, shape, count, np.random.default_rng(8))
    block, solver = Block.periodic(whole, np.arange(count)), NFold(model, count)
    flips = solver.advance(block, seed=9, until=4.0)
    assert class_p_value(spins(block), law, shape) > P_FLOOR
    if shape == (3, 3):
        assert law_p_value(spins(block), law) > P_FLOOR
    assert np.mean(index(spins(block)) != index(whole)) > 0.3
    # In equilibrium flips are as frequent as the mean total rate says.
    rate = float((law * site_rates(states(shape), model).sum((1, 2))).sum())
    assert abs(deviate(flips / 4.0, rate)) < Z_CEILING


@pytest.mark.parametrize("shape", [(3, 3), (4, 4)])
def test_every_start_ends_in_gibbs(shape: tuple[int, int]) -> None:
    count = 30_000
    whole = np.ones((count, *shape), np.int8)
    whole[::2] = -1
    block, solver = Block.periodic(whole, np.arange(count)), NFold(HOT, count)
    solver.advance(block, seed=10, until=150.0)
    assert class_p_value(spins(block), gibbs(shape, 2.5, 0.1), shape) > P_FLOOR


@pytest.mark.parametrize("shape", [(3, 3), (4, 4)])
def test_time_weighted_averages(shape: tuple[int, int]) -> None:
    """States weighted with the time spent in them have the Gibbs means; unweighted they do not."""
    model, count = Ising(2.2, 0.2), 4000
    law, everything = gibbs(shape, 2.2, 0.2), states(shape)
    means = [
        float((law * energies(everything, 0.2)).sum()),
        float((law * magnetizations(everything)).sum()),
        float((law * magnetizations(everything) ** 2).sum()),
    ]
    # The states between events have a stationary law of their own: Gibbs times total rate.
    visits = law * site_rates(everything, model).sum((1, 2))
    whole = sample(visits / visits.sum(), shape, count, np.random.default_rng(1))
    block, solver = Block.periodic(whole, np.arange(count)), NFold(model, count)
    weighted, total, plain = np.zeros((3, count)), np.zeros(count), np.zeros((3, count))
    for _ in range(80):
        now, clock = spins(block), solver.clock.copy()
        solver.advance(block, seed=2, flips=1)
        wait = solver.clock - clock
        values = energies(now, 0.2), magnetizations(now), magnetizations(now) ** 2.0
        weighted += wait * np.array(values)
        plain += np.array(values) / 80
        total += wait
    for i, mean in enumerate(means):
        # A ratio of averages over members, its error from the spread of the residuals.
        assert abs(deviate(weighted[i] - mean * total, 0.0)) < Z_CEILING
    assert abs(deviate(plain[0], means[0])) > 10


def test_magnetisation_relaxes_as_with_the_sublattice_solver() -> None:
    """m(t) of two independent solvers, T = 2.5, h = 0.1, from m = -0.5."""
    count, side = 3000, 16
    blocks = [
        Block.periodic(np.zeros((count, side, side), np.int8), np.arange(count)) for _ in range(2)
    ]
    for seed, block in enumerate(blocks):
        initial.shuffled(block, seed=seed, magnetization=-0.5)
    exact, split = NFold(HOT, count), Sublattice(HOT, 0.125)
    step = 0
    for time in (0.5, 1.0, 2.0, 4.0, 8.0):
        exact.advance(blocks[0], seed=3, until=time)
        steps = round(time / 0.125) - step
        split.advance(blocks[1], steps, seed=4, first_step=step)
        step += steps
        m = [spins(block).mean((1, 2)) for block in blocks]
        error = math.hypot(*(x.std(ddof=1) / math.sqrt(count) for x in m))
        assert error < 0.01
        assert abs(m[0].mean() - m[1].mean()) < Z_CEILING * error + 1e-4  # the step's own bias


# -- calls, boxes, limits -------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["wrap", "frozen"])
def test_a_trajectory_does_not_depend_on_the_calls(policy: HaloPolicy) -> None:
    """One call, many by time, and many by flips: the same spins and clock, bit for bit."""
    whole, members = random_states(4, 3, 12, 12), np.array([4, 9, 2])

    def start() -> tuple[Block, NFold]:
        block = Block.cut(whole, (8, 3), (8, 7), members, policy=policy)
        return block, NFold(HOT, 3)

    (one, solver), (many, halting), (by_flips, counting) = start(), start(), start()
    flips = solver.advance(one, seed=5, until=6.0)
    assert flips.min() > 30
    counted = np.zeros(3, np.int64)
    for time in (0.001, 0.5, 0.5, 1.7, 3.3, 5.9999, 6.0):
        counted += halting.advance(many, seed=5, until=time)
    assert np.array_equal(counted, flips)
    assert np.array_equal(one.array, many.array)
    assert np.array_equal(solver.clock, halting.clock)
    for _ in range(int(flips.max())):
        counting.advance(by_flips, seed=5, until=6.0, flips=1)
    assert np.array_equal(one.array, by_flips.array)
    assert np.array_equal(solver.clock, counting.clock)


def test_flips_mode_stops_after_so_many_events() -> None:
    whole = random_states(4, 5, 6, 6)
    block, solver = Block.periodic(whole, np.arange(5)), NFold(HOT, 5)
    assert solver.advance(block, seed=0, flips=17).tolist() == [17] * 5
    first = solver.clock.copy()
    assert (first > 0).all()
    assert solver.advance(block, seed=0, flips=3).tolist() == [3] * 5
    assert (solver.clock > first).all()
    assert solver.events.tolist() == [20] * 5
    # The spins after so many flips are those at the clock's time.
    again, timed = Block.periodic(whole, np.arange(5)), NFold(HOT, 5)
    for b in range(5):
        alone, one = Block.periodic(whole[b : b + 1], np.array([b])), NFold(HOT)
        assert one.advance(alone, seed=0, until=float(solver.clock[b])).tolist() == [20]
        assert np.array_equal(spins(alone)[0], spins(block)[b])
    assert timed.advance(again, seed=0, flips=100, until=0.0).tolist() == [0] * 5
    assert np.array_equal(spins(again), whole)


def test_a_frozen_halo_never_changes_and_is_felt() -> None:
    whole = random_states(6, 20, 8, 8)
    block = Block.cut(whole, (7, 2), (4, 5), np.arange(20))
    before = block.array.copy()
    solver = NFold(HOT, 20)
    for time in (0.5, 3.0):
        solver.advance(block, seed=1, until=time)
    ring = np.ones(before.shape, bool)
    ring[:, 1:-1, 1:-1] = False
    assert np.array_equal(block.array[ring], before[ring])
    # A patch of one site in frozen surroundings is a two-state chain with known rates.
    count, ups = 40_000, np.array([[-1, 1, -1], [1, -1, 1], [1, 1, 1]], np.int8)
    lattice = np.repeat(np.pad(ups, (0, 1), constant_values=1)[None], count, axis=0)
    one = Block.cut(lattice, (1, 1), (1, 1), np.arange(count))
    NFold(HOT, count).advance(one, seed=2, until=0.7)
    k = 1 + 1 + 1 + 1
    up = 1 / (1 + math.exp(-2 * (k + 0.1) / 2.5))
    expected = up * (1 - math.exp(-0.7))
    seen = np.mean(spins(one) == 1)
    assert abs(seen - expected) < Z_CEILING * math.sqrt(expected * (1 - expected) / count)


def test_a_patch_has_the_law_of_its_own_master_equation() -> None:
    """2 x 3 sites in frozen surroundings: 64 states, generator from the whole's energies."""
    whole, count, time = random_states(12, 1, 5, 6), 60_000, 1.2
    inner = states((2, 3))
    lattices = np.repeat(whole, 64, axis=0)
    lattices[:, 1:3, 2:5] = inner
    energy = energies(lattices, HOT.field)
    rates, every = np.zeros((64, 64)), np.arange(64)
    for site in range(6):
        flipped = every ^ (1 << site)
        rates[every, flipped] = 1 / (1 + np.exp((energy[flipped] - energy) / HOT.temperature))
    rates[every, every] = -rates.sum(1)
    start = index(whole[:, 1:3, 2:5])[0]
    block = Block.cut(np.repeat(whole, count, axis=0), (1, 2), (2, 3), np.arange(count))
    NFold(HOT, count).advance(block, seed=13, until=time)
    assert law_p_value(spins(block), expm(time * rates)[start]) > P_FLOOR


def test_members_do_not_depend_on_the_batch() -> None:
    whole = random_states(5, 7, 6, 6)
    many, alone = Block.periodic(whole, np.arange(7)), Block.periodic(whole[4:5], np.array([4]))
    both = NFold(HOT, 7), NFold(HOT)
    both[0].advance(many, seed=3, until=5.0)
    both[1].advance(alone, seed=3, until=5.0)
    assert np.array_equal(spins(many)[4], spins(alone)[0])
    assert both[0].clock[4] == both[1].clock[0]


@pytest.mark.parametrize("temperature", [0.3, 0.05, 0.005])
def test_low_temperature(temperature: float) -> None:
    """A total rate that is tiny, or zero in floating point: no flip in a finite time."""
    up = np.ones((2, 6, 6), np.int8)
    block, solver = Block.periodic(up, np.arange(2)), NFold(Ising(temperature, 0.1), 2)
    assert solver.advance(block, seed=0, until=1e3 if temperature < 0.2 else 1.0).tolist() == [0, 0]
    assert (spins(block) == 1).all()
    # By flips: a state that can never change is left as it is; else the clock jumps far.
    flips = solver.advance(block, seed=0, flips=3)
    if temperature < 0.01:
        assert flips.tolist() == [0, 0]
        assert (spins(block) == 1).all()
        assert solver.clock.tolist() == [0.0, 0.0]
    else:
        assert flips.tolist() == [3, 3]
        assert (solver.clock > 1e3).all()
    # A single wrong spin goes back at once, and then nothing happens any more.
    up[:, 2, 2] = -1
    block, solver = Block.periodic(up, np.arange(2)), NFold(Ising(0.005, 0.1), 2)
    assert solver.advance(block, seed=0, until=200.0).tolist() == [1, 1]
    assert (spins(block) == 1).all()


def test_lists_stay_consistent_in_long_runs() -> None:
    """After many events the kept classes still equal those of the spins: rates do not drift."""
    whole = random_states(5, 4, 5, 7)
    block, solver = Block.periodic(whole, np.arange(4)), NFold(HOT, 4)
    for _ in range(10):
        solver.advance(block, seed=3, flips=500)
        assert_lists_are_those_of_the_spins(solver, block)
    fresh, follow = Block.periodic(spins(block), np.arange(4)), NFold(HOT, 4)
    follow.events[:], follow.clock[:] = solver.events, solver.clock
    clock = solver.clock.copy()
    solver.advance(block, seed=3, flips=1)
    follow.advance(fresh, seed=3, flips=1)
    assert np.array_equal(solver.clock, follow.clock)
    assert (solver.clock > clock).all()


def test_more_sites_than_the_cache_holds() -> None:
    """Of these memory is asked ahead: also at the edges, and where a neighbour is missing."""
    states = random_states(3, 1, 258, 256)
    for block in (
        Block.periodic(states, np.array([4])),
        Block.cut(states, (1, 0), (257, 256), np.array([4]), policy="frozen"),
    ):
        solver = NFold(MODELS[0])
        assert solver.advance(block, seed=1, flips=3000).tolist() == [3000]
        whole, until = block.copy(), solver.clock.copy()
        again = NFold(MODELS[0])
        again.order = solver.order
        again.clock, again.events = until, solver.events.copy()
        flips = [
            each.advance(b, seed=1, flips=500) for each, b in ((solver, block), (again, whole))
        ]
        assert flips[0] == flips[1] == 500
        assert np.array_equal(block.array, whole.array)
        if block.policy == "wrap":
            assert_lists_are_those_of_the_spins(solver, block)


def test_lists_grow_and_shrink() -> None:
    """A quench moves most sites from list to list: the room between the lists must follow."""
    whole = random_states(5, 2, 48, 40)
    block, solver = Block.periodic(whole, np.arange(2)), NFold(Ising(0.8, 0.3), 2)
    for time in (0.05, 0.3, 1.0, 3.0, 10.0):
        solver.advance(block, seed=3, until=time)
        assert_lists_are_those_of_the_spins(solver, block)
    assert solver._lists.counts[:, 9].min() > 0.7 * 48 * 40
    hot = NFold(Ising(50.0), 2)
    hot.order, hot.clock, hot.events = solver.order, solver.clock, solver.events
    hot.advance(block, seed=3, until=15.0)
    assert_lists_are_those_of_the_spins(hot, block)


def test_memory() -> None:
    """Ten bytes for each site: spin, class and place, lists with room between them."""
    block, solver = Block.periodic(random_states(1, 1, 256, 256), np.arange(1)), NFold(HOT)
    solver.advance(block, seed=0, flips=1)
    kept = solver._lists
    assert spins(block).nbytes + sum(array.nbytes for array in kept) < 10.01 * 256**2


@pytest.mark.parametrize("policy", ["wrap", "frozen"])
def test_a_restart_goes_on_bit_for_bit(policy: HaloPolicy) -> None:
    """Spins, clock, events and order are the whole state."""
    whole, members = random_states(4, 3, 12, 12), np.array([4, 9, 2])
    one, block = (Block.cut(whole, (8, 3), (8, 7), members, policy=policy) for _ in range(2))
    solver, first = NFold(HOT, 3), NFold(HOT, 3)
    solver.advance(one, seed=5, until=6.0)
    first.advance(block, seed=5, until=2.0)
    again = NFold(HOT, 3)
    again.clock, again.events, again.order = first.clock, first.events, first.order
    assert np.array_equal(again.order, first.order)
    again.advance(block, seed=5, until=6.0)
    assert np.array_equal(one.array, block.array)
    assert np.array_equal(solver.clock, again.clock)
    assert np.array_equal(solver.order, again.order)
    assert_order_matters(whole, members, first)


def assert_order_matters(whole: np.ndarray, members: np.ndarray, first: NFold) -> None:
    """Otherwise the test above would show nothing."""
    ends = []
    for order in (first.order, first.order[:, ::-1]):
        block, solver = Block.cut(whole, (8, 3), (8, 7), members, policy="wrap"), NFold(HOT, 3)
        solver.order = order
        solver.advance(block, seed=5, until=6.0)
        ends.append(spins(block))
    assert not np.array_equal(*ends)


def test_spins_may_be_changed_between_calls() -> None:
    """One flipped spin, or all of them: as a new solver with the same clock, events, order."""
    members = np.arange(3)
    block, solver = Block.periodic(random_states(4, 3, 9, 12), members), NFold(HOT, 3)
    one = random_states(4, 3, 9, 12)
    for time, changed in enumerate((one, random_states(8, 3, 9, 12), -one, one)):
        solver.advance(block, seed=5, until=2.0 * time)
        after = spins(block)
        after[1:, 0, 11] *= -1  # the first box goes on undisturbed
        for states_now in (after, changed):
            follow, copy = NFold(HOT, 3), Block.periodic(states_now, members)
            follow.clock, follow.events = solver.clock.copy(), solver.events.copy()
            follow.order = solver.order
            block.load(states_now)
            for s, b in ((solver, block), (follow, copy)):
                s.advance(b, seed=5, flips=20)
            assert np.array_equal(block.array, copy.array)
            assert np.array_equal(solver.clock, follow.clock)
            assert np.array_equal(solver.order, follow.order)
            assert_lists_are_those_of_the_spins(solver, block)


def test_surroundings_may_be_changed_between_calls() -> None:
    whole = random_states(6, 2, 8, 8)
    block, solver = Block.cut(whole, (2, 2), (4, 4), np.arange(2)), NFold(HOT, 2)
    solver.advance(block, seed=1, until=1.0)
    block.array[:, 0, 3] *= -1
    follow, copy = NFold(HOT, 2), Block.cut(whole, (2, 2), (4, 4), np.arange(2))
    copy.array[...] = block.array
    follow.clock, follow.events, follow.order = (
        solver.clock.copy(),
        solver.events.copy(),
        solver.order,
    )
    solver.advance(block, seed=1, until=9.0)
    follow.advance(copy, seed=1, until=9.0)
    assert np.array_equal(block.array, copy.array)


@pytest.mark.parametrize(
    "order",
    [
        np.zeros((2, 16), int),
        np.arange(16)[None],
        np.arange(1, 17)[None].repeat(2, 0),
        np.arange(3),
    ],
    ids=["repeated", "one row", "from 1", "flat"],
)
def test_impossible_orders(order: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"^order=.*permutation"):
        NFold(HOT, 2).order = order


def test_too_many_sites() -> None:
    """Class and place of a site share 32 bits. (The zeros of the block take no memory.)"""
    NFold.check(Block.tile(Layout(Lattice((2**14, 2**14)), (1, 1)), MPI.COMM_SELF))
    block = Block.tile(Layout(Lattice((2**14 + 1, 2**14)), (1, 1)), MPI.COMM_SELF)
    with pytest.raises(InputError, match=r"^size=.*268435456 sites in a box.*sublattice"):
        NFold(HOT).advance(block, seed=0, until=1.0)


def test_an_empty_batch_is_allowed() -> None:
    block = Block.periodic(np.zeros((0, 4, 4), np.int8), np.arange(0))
    assert NFold(HOT, 0).advance(block, seed=0, until=1.0).shape == (0,)


def test_a_solver_follows_as_many_boxes_as_it_was_made_for() -> None:
    block = Block.periodic(np.ones((5, 4, 4), np.int8), np.arange(5))
    with pytest.raises(InputError, match=r"^batch=3: allowed is 5"):
        NFold(HOT, 3).advance(block, seed=0, until=1.0)


@pytest.mark.parametrize("until", [math.inf, math.nan])
def test_impossible_times(until: float) -> None:
    block = Block.periodic(np.ones((1, 4, 4), np.int8), np.arange(1))
    with pytest.raises(InputError, match=r"^until="):
        NFold(HOT).advance(block, seed=0, until=until)


def test_impossible_flips() -> None:
    block = Block.periodic(np.ones((1, 4, 4), np.int8), np.arange(1))
    with pytest.raises(InputError, match=r"^flips=-1"):
        NFold(HOT).advance(block, seed=0, flips=-1)


@pytest.mark.mpi
def test_one_lattice_needs_one_rank(comm: MPI.Intracomm) -> None:
    block = Block.tile(Layout.balanced(Lattice((8, 8)), comm.size), comm)
    initial.shuffled(block, seed=0)
    if comm.size == 1:
        NFold(HOT).advance(block, seed=0, until=1.0)
    else:
        with pytest.raises(InputError, match=r"^ranks=.*1 rank per lattice"):
            NFold(HOT).advance(block, seed=0, until=1.0)


def test_spins_that_are_none() -> None:
    """Fresh blocks hold zeros. The error comes before any box moves, and is no trap for later."""
    whole = random_states(1, 3, 6, 6)
    block, solver = Block.periodic(whole, np.arange(3)), NFold(HOT, 3)
    block.array[2, 3, 2] = 0
    with pytest.raises(InputError, match=r"^spins=0: allowed is \+1 and -1 only"):
        solver.advance(block, seed=0, until=1.0)
    assert np.array_equal(spins(block)[:2], whole[:2])
    block.load(whole)
    solver.advance(block, seed=0, until=1.0)
    assert_lists_are_those_of_the_spins(solver, block)
