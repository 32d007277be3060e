"""The n-fold way of spin rules: its law in time, boxes, and that calls do not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact import chi_square
from rule_law import (
    RARE,
    Epidemic,
    Voter,
    evolve,
    generator,
    gibbs,
    index,
    neighbours,
    of_one_state,
    random_states,
    states,
)

from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.observables import observe
from mpiflow.solvers.spins.nfold import NFold
from mpiflow.solvers.spins.rule_nfold import RuleNFold
from mpiflow.solvers.spins.rule_sublattice import RuleSublattice
from mpiflow.solvers.spins.rule_tables import classes
from mpiflow.systems.blume_capel import BlumeCapel
from mpiflow.systems.potts import Potts
from mpiflow.systems.rule import SpinRule

POTTS = Potts(0.9, states=3, field=0.2)
CAPEL = BlumeCapel(0.8, crystal_field=1.4, field=-0.1)
RULES = [POTTS, CAPEL, Voter(), Epidemic()]

of_each = pytest.mark.parametrize("rule", RULES, ids=str)


def copies(spins: np.ndarray, count: int) -> Block:
    return Block.periodic(np.repeat(spins[None], count, axis=0), np.arange(count))


# -- the law ------------------------------------------------------------------------------------


@of_each
@pytest.mark.parametrize("time", [0.2, 1.5])
def test_the_law_is_the_master_equation(rule: SpinRule, time: float) -> None:
    """All 81 states of a torus after a time, in one call and in two; false alarms: 1e-9 each."""
    count, start = 60_000, random_states(rule, 7, 2, 2)
    law = evolve(of_one_state(rule, start), generator(rule, (2, 2)), time)
    block, solver = copies(start, count), RuleNFold(rule, count)
    solver.advance(block, seed=1, until=0.3 * time)
    made = solver.advance(block, seed=1, until=time)
    seen = np.bincount(index(rule, block.spins()), minlength=law.size)
    assert chi_square(seen, count * law) > RARE
    assert (solver.clock <= time).all()
    assert made.sum() > 0


def test_samples_of_gibbs_stay_samples_of_gibbs() -> None:
    """Of a 3 x 4 torus without double bonds, an odd side, three states: by magnetisation and
    number of bonds between unlike sites; a false alarm had the chance 1e-9."""
    rule, shape, count = Potts(1.2, states=2, field=0.3), (3, 4), 60_000
    law, every = gibbs(rule, shape, rule.temperature), states(rule, shape)
    drawn = np.random.default_rng(2).choice(law.size, count, p=law)
    block = Block.periodic(every[drawn], np.arange(count))
    RuleNFold(rule, count).advance(block, seed=3, until=1.0)
    unlike = (neighbours(every) != every[..., None]).sum((1, 2, 3))
    _, label = np.unique(unlike * 100 + every.sum((1, 2)), return_inverse=True)
    seen = np.bincount(label[index(rule, block.spins())], minlength=label.max() + 1)
    assert chi_square(seen, count * np.bincount(label, law)) > RARE


@of_each
def test_waiting_times_and_events_from_one_state(rule: SpinRule) -> None:
    """The first event: exponential with the total rate, and in proportion to the rates."""
    count, start = 40_000, random_states(rule, 8, 4, 4)
    found, q = classes(rule), rule.states
    at = start.astype(int) - rule.lowest
    near = neighbours(at) @ q ** np.array([3, 2, 1, 0])
    total = found.rates[found.of[near * q + at]]
    block, solver = copies(start, count), RuleNFold(rule, count)
    assert (solver.advance(block, seed=4, flips=1) == 1).all()
    changed = block.spins() != start
    assert (changed.sum((1, 2)) == 1).all()
    assert chi_square(changed.sum(0).reshape(-1), count * (total / total.sum()).reshape(-1)) > RARE
    cells = np.minimum((-np.expm1(-solver.clock * total.sum()) * 20).astype(int), 19)
    assert chi_square(np.bincount(cells, minlength=20), np.full(20, count / 20)) > RARE


@pytest.mark.parametrize("rule", [Potts(0.7, 5), CAPEL, Voter()], ids=str)
def test_the_sublattice_solver_relaxes_alike(rule: SpinRule) -> None:
    """Mean fractions and energy after a quench; 6 sigma, and a splitting error that is smaller."""
    start, members = np.full((24, 24), rule.lowest, np.int8), 150
    exact, split = copies(start, members), copies(start, members)
    RuleNFold(rule, members).advance(exact, seed=5, until=3.0)
    RuleSublattice(rule, 0.125).advance(split, 24, seed=6)
    ours, theirs = observe(exact, rule), observe(split, rule)
    for name in ours:
        error = np.sqrt((ours[name].var(0) + theirs[name].var(0)) / members)
        assert (abs(ours[name].mean(0) - theirs[name].mean(0)) < 6 * error + 1e-3).all()


# -- the same, however it is done ----------------------------------------------------------------


@of_each
def test_where_a_run_is_cut_changes_nothing(rule: SpinRule) -> None:
    """Times, numbers of events, and another solver that goes on with what was kept."""
    whole = random_states(rule, 9, 3, 7, 5)
    straight, solver = Block.periodic(whole, np.arange(3)), RuleNFold(rule, 3)
    solver.advance(straight, seed=7, until=4.0)
    block, other = Block.periodic(whole, np.arange(3)), RuleNFold(rule, 3)
    other.advance(block, seed=7, until=0.9)
    other.advance(block, seed=7, until=4.0, flips=11)
    kept = Block.periodic(block.spins().copy(), np.arange(3))
    again = RuleNFold(rule, 3)
    again.clock, again.events, again.order = other.clock, other.events, other.order
    again.advance(kept, seed=7, until=4.0)
    assert np.array_equal(kept.array, straight.array)
    assert np.array_equal(again.clock, solver.clock)
    assert np.array_equal(again.events, solver.events)
    assert np.array_equal(again.order, solver.order)


def test_lists_are_those_of_the_states() -> None:
    """After many events, and after states were set from outside: sites sorted as a new solver."""
    block, solver = (
        Block.periodic(random_states(POTTS, 10, 1, 12, 9), np.arange(1)),
        RuleNFold(POTTS),
    )
    for _ in range(3):
        solver.advance(block, seed=8, flips=2000)
        at = block.spins()[0].astype(int)
        of = classes(POTTS).of[neighbours(at) @ 3 ** np.array([3, 2, 1, 0]) * 3 + at].reshape(-1)
        assert (np.diff(of[solver.order[0]]) >= 0).all()
        assert sorted(solver.order[0].tolist()) == list(range(108))
        edge = np.pad(block.spins()[0], 1, mode="wrap")
        assert np.array_equal(block.array[0], edge)
        block.load(random_states(POTTS, 11, 1, 12, 9))


@of_each
def test_frozen_boxes_keep_their_surroundings(rule: SpinRule) -> None:
    """The law of a box of two sites in its true surroundings, over the edge; chance 1e-9."""
    whole, count = random_states(rule, 12, 5, 6), 60_000
    block = Block.cut(
        np.broadcast_to(whole, (count, 5, 6)).copy(), (4, 5), (1, 2), np.arange(count)
    )
    before = block.array.copy()
    RuleNFold(rule, count).advance(block, seed=9, until=0.8)
    block.inner(before)[:] = block.inner()
    assert np.array_equal(block.array, before)
    # The same two sites of the whole lattice, all others standing still.
    rates, law = np.zeros((9, 9)), np.zeros(9)
    sites = [(4, 5), (4, 0)]
    for number in range(9):
        digits = divmod(number, 3)
        lattice = whole.copy()
        for site, digit in zip(sites, digits, strict=True):
            lattice[site] = rule.values[digit]
        near = neighbours(lattice)
        for i, site in enumerate(sites):
            for new in range(3):
                if new == digits[i]:
                    continue
                asked = near[site].tolist()
                if rule.by_rate:
                    rate = rule.rate(
                        int(lattice[site]), int(rule.values[new]), *asked, rule.parameters
                    )
                else:
                    weights = [
                        rule.weight(s, *asked, rule.parameters) for s in rule.values.tolist()
                    ]
                    rate = weights[new] / sum(weights)
                to = new * 3 + digits[1] if i == 0 else digits[0] * 3 + new
                rates[number, to] += rate
                rates[number, number] -= rate
    from scipy.linalg import expm

    start = [int(whole[site]) - rule.lowest for site in sites]
    law = expm(0.8 * rates)[start[0] * 3 + start[1]]
    inner = block.inner()[:, 0].astype(int) - rule.lowest
    seen = np.bincount(inner[:, 0] * 3 + inner[:, 1], minlength=9)
    assert chi_square(seen, count * law) > RARE


def test_a_state_that_cannot_change_waits_for_ever() -> None:
    """All of one mind, and no noise: also when so many events are asked for."""
    silent = Voter(noise=0.0)
    block, solver = copies(np.ones((4, 4), np.int8), 2), RuleNFold(silent, 2)
    assert not solver.advance(block, seed=0, flips=5).any()
    assert not solver.advance(block, seed=0, until=1e6).any()
    assert not solver.clock.any()


def test_rare_events_are_chosen_by_their_rates() -> None:
    """Rates over twelve orders of magnitude, and new states a million times rarer than others."""

    class Rare(SpinRule):
        states = 4

        @staticmethod
        def rate(own, new, north, west, east, south, parameters):  # type: ignore[no-untyped-def]
            if own == 0:
                return (0.0, 1.0, 1e-3, 1e-12)[new]
            return 1e-9 if new == 0 else 0.0

    rule, count = Rare(), 200_000
    block, solver = copies(np.zeros((2, 2), np.int8), count), RuleNFold(rule, count)
    solver.advance(block, seed=3, flips=4)
    seen = np.bincount(block.spins().reshape(-1), minlength=4)
    assert seen[0] == seen[3] == 0  # expected: 1e-8 and 1e-6
    assert chi_square(seen[1:3], 4 * count * np.array([1.0, 1e-3]) / 1.001) > RARE
    assert (solver.advance(block, seed=3, flips=1) == 1).all()
    assert abs((solver.clock * 4e-9).mean() - 1.0) < 6 / math.sqrt(count)  # 2e-9


# -- what is refused ---------------------------------------------------------------------------


def test_what_is_refused() -> None:
    assert isinstance(RuleNFold(POTTS), NFold)
    with pytest.raises(InputError, match="states=13: allowed is at most 12 for the n-fold way"):
        RuleNFold(Potts(1.0, 13))
    with pytest.raises(InputError, match="states=9: allowed is at most 8 for the n-fold way"):
        RuleNFold(Voter(states=9))
    block = copies(np.zeros((4, 4), np.int8), 2)
    with pytest.raises(InputError, match="batch=1"):
        RuleNFold(POTTS).advance(block, seed=0, until=1.0)
    with pytest.raises(InputError, match="until=inf"):
        RuleNFold(POTTS, 2).advance(block, seed=0)
    with pytest.raises(InputError, match="states=5: allowed is whole numbers from 0 to 2"):
        RuleNFold(POTTS).advance(copies(np.full((4, 4), 5, np.int8), 1), seed=0, until=1.0)


@pytest.mark.kernel
def test_not_on_cuda() -> None:
    from exact import has_cuda

    if has_cuda():
        block = Block.periodic(np.zeros((1, 4, 4), np.int8), np.arange(1), device=Device("cuda"))
        with pytest.raises(InputError, match="'cpu' for the n-fold solver"):
            RuleNFold(POTTS).advance(block, seed=0, until=1.0)
