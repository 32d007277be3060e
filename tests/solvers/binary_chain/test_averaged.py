"""The averaged process: exact laws in time and at rest, windows, same bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from chain_law import DEEP, NEIGHBOURS, STATES, BondLaw, numbers
from exact import P_FLOOR, Z_CEILING, chi_square, deviate
from mpi4py import MPI

from mpiflow.core.block import gather_records
from mpiflow.core.errors import InputError
from mpiflow.solvers.binary_chain import gibbs
from mpiflow.solvers.binary_chain.averaged import AveragedSpins
from mpiflow.solvers.binary_chain.gibbs import mean_bond, positions
from mpiflow.solvers.binary_chain.langevin import SpinDiffusion
from mpiflow.systems.binary_chain import BinaryChain

ALTERNATING = np.array([-1, 1] * 4)
both = pytest.mark.parametrize("rates", ["tanh", "arrhenius"])


def deviates_of_bonds(sim: AveragedSpins, law: BondLaw) -> list[float]:
    """How far the mean bonds of the three kinds are off, in standard errors."""
    lengths, spins, out = np.diff(sim.x, axis=1), sim.spins, []
    for kind in ((1, 1), (-1, -1), (1, -1)):
        of_kind = spins[:, :-1] * spins[:, 1:] == kind[0] * kind[1]
        if kind[0] == kind[1]:
            of_kind &= spins[:, :-1] == kind[0]
        out.append(deviate(lengths[of_kind], law.mean_bond(kind)))
    return out


@pytest.mark.parametrize(
    ("system", "rates"), [(NEIGHBOURS, "tanh"), (NEIGHBOURS, "arrhenius"), (DEEP, "tanh")]
)
def test_the_law_at_any_time_is_that_of_the_mean_rates(system: BinaryChain, rates: str) -> None:
    """Against the master equation whose rates are integrals over two bonds (4.23), (4.25)."""
    law, count = BondLaw(system, rates), 24000 if system == DEEP else 6000
    balance = law.gibbs[:, None] * law.rates
    np.testing.assert_allclose(balance, balance.T, atol=1e-15)
    sim = AveragedSpins(system, rates=rates, members=count, seed=3)
    sim.set(ALTERNATING)
    for time in (0.7, 3.0) if system == DEEP else (0.7, 3.0, 12.0):
        sim.advance(time)
        expected = law.at(ALTERNATING, time)
        counts = np.bincount(numbers(sim.spins), minlength=20)
        assert chi_square(counts, count * expected) > P_FLOOR
        assert max(np.abs(deviates_of_bonds(sim, law))) < Z_CEILING
    assert 0.5 * abs(expected - law.at(ALTERNATING, 1.5)).sum() > 0.1
    assert sim.beyond.sum() < 2e-3 * sim.events.sum()
    assert sim.exchanges.min() < sim.exchanges.max()


def test_one_trajectory_is_enough_for_the_measure() -> None:
    """However dependent positions are on those before, what is at rest stays there."""
    law = BondLaw(NEIGHBOURS)
    sim = AveragedSpins(NEIGHBOURS, members=6000, seed=5, decorrelation=1)
    sim.set(STATES[np.random.default_rng(1).choice(20, 6000, p=law.gibbs)])
    sim.advance(8.0)
    assert chi_square(np.bincount(numbers(sim.spins), minlength=20), 6000 * law.gibbs) > P_FLOOR
    assert max(np.abs(deviates_of_bonds(sim, law))) < Z_CEILING


LONG = BinaryChain(64, beta=60.0)


def test_windows_leave_positions_in_equilibrium() -> None:
    """Four shells, a chain of several windows: lengths and what neighbours have in common."""
    sim = AveragedSpins(LONG, members=64, seed=8)
    assert sim._how.windows.window < 32
    sim.set(LONG.alternating())
    start = sim.x.copy()
    sim.advance(6.0)
    assert sim.exchanges.min() > 20
    assert (np.rint(sim.x * 2**32) == sim.x * 2**32).all()
    again = positions(LONG, sim.spins, sim.numbers + 1000, 9)
    assert (np.diff(start) != np.diff(sim.x)).mean() > 0.95
    assert abs(deviate(sim.x[:, -1] - again[:, -1], 0.0)) < Z_CEILING
    old, new = (np.diff(x, axis=1) for x in (again, sim.x))
    unlike = sim.spins[:, 1:] != sim.spins[:, :-1]
    for kind in (unlike, ~unlike):
        # Errors of the means, and of the variances, as of independent bonds, which they nearly are.
        a, b = old[kind], new[kind]
        assert abs(a.mean() - b.mean()) < Z_CEILING * math.sqrt((a.var() + b.var()) / len(a))
        a, b = (a - a.mean()) ** 2, (b - b.mean()) ** 2
        assert abs(a.mean() - b.mean()) < Z_CEILING * math.sqrt((a.var() + b.var()) / len(a))
    mean = old.mean()
    a, b = ((x[:, 1:] - mean) * (x[:, :-1] - mean) for x in (old, new))
    assert abs(a.mean() - b.mean()) < Z_CEILING * math.sqrt((a.var() + b.var()) / a.size)


def test_only_bonds_of_the_window_move() -> None:
    """8 on either side of an attempt, and the margin too where that ends at an end of the chain."""
    sim = AveragedSpins(LONG, members=64, seed=4)
    sim.set(LONG.alternating())
    lengths = np.diff(sim.x)
    sim.advance(50.0, 1)
    moved = np.diff(sim.x) != lengths
    assert moved.any(axis=1).mean() > 0.9
    for row in moved[moved.any(axis=1)]:
        first, last = np.flatnonzero(row)[[0, -1]]
        ends = sim._how.windows.margin * (first == 0 or last == 62)
        assert last - first + 1 == row.sum() == 2 * gibbs.AROUND + 1 + ends


def test_the_mean_bond_and_positions_at_the_start() -> None:
    sim = AveragedSpins(LONG, members=400, seed=2)
    sim.set(LONG.alternating())
    assert abs(deviate(sim.x[:, -1] / 63, sim.reference[0])) < Z_CEILING
    assert abs(sim.strain().mean()) < 2e-3
    other = mean_bond(LONG, LONG.alternating(), 7)
    assert other == pytest.approx(sim.reference[0], rel=1e-3)
    assert other != sim.reference[0]


@pytest.mark.validate
@both
def test_it_is_the_limit_of_the_process(rates: str) -> None:
    """N = 32, four shells: A-B bonds and lengths of the process at a small epsilon."""
    system, count = BinaryChain(32), 1500
    limit = AveragedSpins(system, rates=rates, members=count, seed=1)
    fast = SpinDiffusion(system, epsilon=0.01, dt=0.0025, rates=rates, members=count, seed=2)
    for sim in (limit, fast):
        sim.set(system.alternating())
    for time in (2.0, 10.0):
        limit.advance(time)
        fast.advance(round(time / fast.dt) - fast.step)
        for name in ("ab_bonds", "strain", "first_minimum"):
            difference = getattr(limit, name)() - getattr(fast, name)()
            assert abs(deviate(difference.astype(float), 0.0)) < Z_CEILING
        for site in (1, 2, 15):
            spins = limit.spins[:, site].astype(float) - fast.spins[:, site]
            assert abs(deviate(spins, 0.0)) < Z_CEILING


@pytest.mark.validate
def test_more_trajectories_change_nothing() -> None:
    """Two from one attempt to the next do what eight do, at the paper's chain."""
    system, seen = BinaryChain(32), []
    for trajectories in (2, 8):
        sim = AveragedSpins(system, members=3000, seed=trajectories, decorrelation=trajectories)
        sim.set(system.alternating())
        sim.advance(5.0)
        seen.append((sim.ab_bonds(), sim.exchanges.astype(float)))
    for a, b in zip(*seen, strict=True):
        assert abs(deviate(a - b, 0.0)) < Z_CEILING


def test_long_hot_chains_start_in_equilibrium_as_short_ones() -> None:
    """Far from rest, and with as many moves accepted: bonds of the middle, means and variances."""
    middles = []
    for sites, members in ((200, 32), (40, 256)):
        hot = BinaryChain(sites, beta=10.0)
        spins = np.tile(hot.alternating(), (members, 1))
        lengths = np.diff(positions(hot, spins, np.arange(members), 4), axis=1)[:, 10:-10]
        middles.append((lengths.mean(axis=1), ((lengths - 2.9) ** 2).mean(axis=1)))
    for a, b in zip(*middles, strict=True):
        error = math.hypot(a.std() / math.sqrt(len(a)), b.std() / math.sqrt(len(b)))
        assert abs(a.mean() - b.mean()) < Z_CEILING * error
        assert error < 0.02


# -- same bits -----------------------------------------------------------------------------------


def run(parts: list[tuple[float, int | None]], **options: Any) -> AveragedSpins:
    sim = AveragedSpins(LONG, **({"seed": 6, "members": 6} | options))
    sim.set(LONG.alternating())
    for until, most in parts:
        sim.advance(until, most)
    return sim


def state(sim: AveragedSpins) -> np.ndarray:
    counts = [sim.clock, sim.events, sim.exchanges, sim.beyond, sim.reference]
    return np.concatenate([sim.spins, sim.x, np.stack(counts, axis=1)], axis=1)


@both
def test_same_bits_in_any_batch_and_any_parts(rates: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = state(run([(3.0, None)], rates=rates))
    parts = [(0.5, None), (2.0, 3), (3.0, 0), (1.1, None), (3.0, 7), (3.0, None)]
    np.testing.assert_array_equal(state(run(parts, rates=rates)), whole)
    one = run([(3.0, None)], rates=rates, first=4, members=1)
    np.testing.assert_array_equal(state(one), whole[4:5])
    monkeypatch.setattr(gibbs, "WINDOWS", 4)
    np.testing.assert_array_equal(state(run([(3.0, None)], rates=rates)), whole)


def test_attempts_are_counted_and_limited() -> None:
    sim = run([])
    made = sim.advance(50.0, 9)
    assert made.tolist() == [9] * 6
    assert (sim.clock < 50.0).all()
    clock = sim.clock.copy()
    assert sim.advance(clock.max(), 1).max() == 1
    assert (sim.clock <= clock.max()).all()


def test_what_is_kept_goes_on_with_the_same_bits() -> None:
    sim, after = run([(1.5, None)]), run([])
    for name in ("spins", "x", "clock", "events", "exchanges"):
        getattr(after, name)[:] = getattr(sim, name)
    after.advance(3.0)
    np.testing.assert_array_equal(state(after), state(run([(3.0, None)])))


@pytest.mark.mpi
def test_same_bits_on_any_number_of_ranks(comm: MPI.Intracomm) -> None:
    rows = gather_records(state(run([(1.0, None)], comm=comm)), comm)
    if comm.rank == 0:
        np.testing.assert_array_equal(rows, state(run([(1.0, None)])))


def test_chains_that_have_nothing_to_exchange_stay() -> None:
    system = BinaryChain(8)
    sim = AveragedSpins(system, members=2)
    sim.set(np.array([[-1] * 7 + [1], [1] * 8]))
    assert sim.advance(100.0).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decorrelation": 0}, "decorrelation=0"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"rates": "kmc"}, "rates='kmc'"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AveragedSpins(LONG, **options)
    sim = run([])
    with pytest.raises(InputError, match="until=inf"):
        sim.advance(math.inf)
    with pytest.raises(InputError, match="most=-1"):
        sim.advance(1.0, -1)
