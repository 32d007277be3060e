"""Spins and positions together: energies and slopes, the invariant measure, order, same bits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from chain_law import DEEP, NEIGHBOURS, STATES, BondLaw, numbers
from exact import P_FLOOR, Z_CEILING, chi_square, deviate, fitted_slope
from mpi4py import MPI
from scipy.linalg import expm

from mpiflow.core.block import gather_records
from mpiflow.core.errors import InputError
from mpiflow.core.noise import stream_key
from mpiflow.solvers.binary_chain import lanes as chains
from mpiflow.solvers.binary_chain.exchanges import (
    exchange,
    exchange_chance,
    exchange_energy,
    rates_of,
)
from mpiflow.solvers.binary_chain.langevin import SpinDiffusion
from mpiflow.systems.binary_chain import BinaryChain

#: Two species that are not alike, and all pairs interact.
UNLIKE = BinaryChain(12, depth_bb=0.25, length_bb=2.5)
ALTERNATING = np.array([-1, 1] * 4)
both = pytest.mark.parametrize("rates", ["tanh", "arrhenius"])


def some_chains(count: int, system: BinaryChain) -> tuple[np.ndarray, np.ndarray]:
    """Positions and spins, (B, N)."""
    rng = np.random.default_rng(7)
    bonds = rng.normal(2.5, 0.3, (count, system.sites - 1))
    bonds[0, 3] = 4.3  # beyond the confinement
    x = np.concatenate([np.zeros((count, 1)), bonds.cumsum(axis=1)], axis=1)
    return np.rint(x * 2**32) / 2**32, rng.choice([-1, 1], x.shape)


def slopes_of(x: np.ndarray, spins: np.ndarray, system: BinaryChain) -> np.ndarray:
    """D of all bonds, (B, N - 1)."""
    lanes, width = chains.lanes_of(x, spins), len(x)
    room = chains.space(np.zeros(width, np.uint64), system.sites)
    shells = chains.reach(lanes.x, width, 1, system.cutoff)
    law = chains.law_of(system)
    out, _ = chains.slopes(lanes, width, shells, law, room.outer, room.slope, room.other)
    return np.asarray(out).reshape(-1, width).T[:, 1:-1]


def stretched(x: np.ndarray, bond: int, by: float) -> np.ndarray:
    out = x.copy()
    out[bond + 1 :] += by
    return out


# -- energies and rates --------------------------------------------------------------------------


def test_energies_and_slopes_are_those_of_the_system() -> None:
    x, spins = some_chains(5, UNLIKE)
    lanes, law, energy = chains.lanes_of(x, spins), chains.law_of(UNLIKE), np.empty(5)
    shells = chains.reach(lanes.x, 5, 1, UNLIKE.cutoff)
    chains.energies(lanes, 5, shells, law, np.empty(lanes.x.size), energy)
    np.testing.assert_allclose(energy, [UNLIKE.energy(*row) for row in zip(x, spins, strict=True)])
    step = 1e-5
    for b, (row, s) in enumerate(zip(x, spins, strict=True)):
        differences = [
            (UNLIKE.energy(stretched(row, i, step), s) - UNLIKE.energy(stretched(row, i, -step), s))
            / (2 * step)
            for i in range(11)
        ]
        np.testing.assert_allclose(slopes_of(x, spins, UNLIKE)[b], differences, atol=3e-9)


def test_an_exchange_gains_what_the_system_says() -> None:
    x, spins = some_chains(4, UNLIKE)
    lanes, law = chains.lanes_of(x, spins), chains.law_of(UNLIKE)
    for b in range(4):
        for i in range(11):
            if spins[b, i] != spins[b, i + 1]:
                gain = exchange_energy(lanes, 4, i * 4 + b, law)
                expected = UNLIKE.exchange_energy(x[b], spins[b], i, i + 1)
                assert gain == pytest.approx(expected, abs=1e-12)


@both
def test_every_exchange_is_in_detailed_balance(rates: str) -> None:
    """(1.4) of probabilities at any duration, and the rates (4.33), (4.38) for short ones."""
    for duration in (1e-6, 0.3, 5.0):
        law = rates_of(NEIGHBOURS, rates == "arrhenius", duration)
        for z in (0.0, 0.3, 2.0, 11.0):
            there, back = exchange_chance(z, law), exchange_chance(-z, law)
            assert there == pytest.approx(back * math.exp(-z), rel=1e-9)
            if duration == 1e-6:
                tanh = 0.5 - 0.5 * math.tanh(z / 2)
                expected = math.exp(-z / 2) if rates == "arrhenius" else tanh
                assert there / duration == pytest.approx(expected, rel=3e-4)


def test_no_chance_is_above_its_bound() -> None:
    """Coins above it are not looked at; where bonds are short it comes close."""
    rng = np.random.default_rng(2)
    for system in (UNLIKE, BinaryChain(12)):
        rates, law, closest = rates_of(system, True, 0.01), chains.law_of(system), 0.0
        for _ in range(300):
            x = np.concatenate([[0.0], rng.normal(2.3, 0.15, 11).cumsum()])
            lanes = chains.lanes_of(x[None], rng.choice([-1, 1], (1, 12)))
            bound = rates.bounds[int(np.diff(lanes.x).min() / rates.unit)]
            for i in range(1, 10):
                if lanes.spins[i] != lanes.spins[i + 1]:
                    z = system.beta * exchange_energy(lanes, 1, i, law)
                    chance = exchange_chance(z, rates)
                    assert chance <= bound
                    closest = max(closest, chance / bound)
        assert closest > 0.1


@both
def test_sweeps_keep_the_measure_of_spins_at_fixed_positions(rates: str) -> None:
    """All 20 states of eight sites with all pairs interacting, from the exact law and to it."""
    system = BinaryChain(8, beta=40.0, depth_ab=0.17, depth_bb=0.21)
    x = np.concatenate([[0.0], np.cumsum([2.3, 2.5, 2.2, 2.4, 2.6, 2.3, 2.4])])
    weights = np.exp([-system.beta * system.energy(x, state) for state in STATES])
    gibbs = weights / weights.sum()
    count, some = 20000, 20
    starts = np.random.default_rng(4).integers(0, 20, count)
    lanes = chains.lanes_of(np.tile(x, (count, 1)), STATES[starts])
    key = stream_key(3, "spin-diffusion")
    room = chains.space(key[1] + np.arange(count, dtype=np.uint64), 8)
    law, laws, hits = chains.law_of(system), rates_of(system, rates == "arrhenius", 0.4), 0
    same = np.tile(x, (some, 1))
    before, exchanged = slopes_of(same, STATES[starts[:some]], system), np.zeros(count, np.int64)
    for step in range(150):
        chains.draw(key[0], np.uint64(step), np.uint64(0), room, room.new)
        exchange(lanes, count, key[0], np.uint64(step), room, laws, law, exchanged)
        if step < 10:
            # What moves the bonds is the mean of the slopes at the old and the new spins.
            now = slopes_of(same, lanes.spins.reshape(8, -1).T[:some], system)
            excess = room.excess.reshape(8, -1)[:7, :some].T
            np.testing.assert_allclose(now + excess, 0.5 * (before + now), atol=1e-13)
            hits, before = hits + np.count_nonzero(excess.any(axis=1)), now
    assert hits > 10
    counts = np.bincount(numbers(lanes.spins.reshape(8, -1).T.astype(int)), minlength=20)
    assert gibbs.max() > 5 * gibbs.min()
    assert chi_square(counts, count * gibbs) > P_FLOOR


@pytest.mark.parametrize("preconditioned", [True, False])
def test_a_step_is_that_of_leimkuhler_and_matthews(preconditioned: bool) -> None:
    """Half of the noise of two steps, and the mean of the slopes before and after exchanges."""
    count, h = 40, 0.05
    sim = SpinDiffusion(
        UNLIKE, epsilon=10.0, dt=10.0 * h, preconditioned=preconditioned, seed=5, members=count
    )
    spins = np.tile([-1, 1], (count, 6))
    sim.set(spins)
    key = stream_key(5, "spin-diffusion")
    room = chains.space(key[1] + np.arange(count, dtype=np.uint64), 12)
    noise = np.zeros((4, count, 11))
    for step in range(4):
        chains.draw(key[0], np.uint64(step), np.uint64(0), room, room.new)
        noise[step] = room.new.reshape(12, count).T[:, :11]
    assert abs(deviate(noise.reshape(-1), 0.0)) < Z_CEILING
    for step in range(3):
        x, old = sim.x.copy(), sim.spins.copy()
        sim.advance(1)
        assert (sim.spins != old).any(axis=1).sum() > count / 4
        slope = 0.5 * (slopes_of(x, old, UNLIKE) + slopes_of(x, sim.spins, UNLIKE))
        kick = math.sqrt(0.5 * h / UNLIKE.beta) * (noise[step] + noise[step + 1])
        if preconditioned:
            moves = np.cumsum(kick - h * slope, axis=1)
        else:
            moves = kick + h * (np.append(slope[:, 1:], np.zeros((count, 1)), axis=1) - slope)
        np.testing.assert_allclose(sim.x[:, 1:], x[:, 1:] + moves, rtol=0, atol=4e-9)


# -- the invariant measure -----------------------------------------------------------------------

LAW = BondLaw(NEIGHBOURS)
#: Langevin steps in bond lengths or atoms, Metropolis steps far too long for the others, Arrhenius.
KINDS: dict[str, dict[str, Any]] = {
    "preconditioned": {"dt": 0.06},
    "plain": {"dt": 0.02, "preconditioned": False},
    "metropolis": {"dt": 0.5, "metropolis": True},
    "arrhenius": {"dt": 0.06, "rates": "arrhenius"},
}


def assert_gibbs(spins: np.ndarray, x: np.ndarray) -> None:
    """Spins and bond lengths of many independent chains are those of the exact measure."""
    counts = np.bincount(numbers(spins), minlength=20)
    assert chi_square(counts, len(spins) * LAW.gibbs) > P_FLOOR
    lengths = np.diff(x, axis=1)
    for kind in ((1, 1), (-1, -1), (1, -1)):
        of_kind = spins[:, :-1] * spins[:, 1:] == kind[0] * kind[1]
        if kind[0] == kind[1]:
            of_kind &= spins[:, :-1] == kind[0]
        assert abs(deviate(lengths[of_kind], LAW.mean_bond(kind))) < Z_CEILING


@pytest.mark.parametrize("kind", KINDS)
def test_the_measure_is_gibbs(kind: str) -> None:
    # From spins that are all as likely, for five times the slowest relaxation, or from the measure.
    far = kind == "preconditioned"
    count, time = 4000, 80 if far else 20
    sim = SpinDiffusion(NEIGHBOURS, epsilon=0.2, members=count, seed=2, **KINDS[kind])
    sim.set(STATES[np.random.default_rng(5).choice(20, count, p=None if far else LAW.gibbs)])
    sim.advance(round(time / sim.dt))
    assert LAW.gibbs.max() > 10 * LAW.gibbs.min()
    assert_gibbs(sim.spins, sim.x)
    assert time / 3 < sim.exchanges.mean()
    if sim.metropolis:
        assert 0.3 < sim.accepted.mean() / sim.step < 0.95


def test_without_energy_it_is_the_exclusion_process() -> None:
    """Pairs that are all alike: means and pair correlations of the exact generator."""
    system = BinaryChain(8, depth_ab=0.2, length_ab=2.6)
    hops = np.zeros((20, 20))
    for n, state in enumerate(STATES):
        for i in range(1, 6):
            new = state.copy()
            new[[i, i + 1]] = state[[i + 1, i]]
            hops[n, numbers(new[None])[0]] += 0.5 if state[i] != state[i + 1] else 0.0
    start = np.eye(20)[numbers(ALTERNATING[None])[0]]
    sim = SpinDiffusion(system, epsilon=0.1, dt=0.025, members=6000, seed=4)
    sim.set(ALTERNATING)
    for time in (0.5, 2.0):
        sim.advance(round(time / sim.dt) - sim.step)
        law = start @ expm((hops - np.diag(hops.sum(axis=1))) * time)
        assert chi_square(np.bincount(numbers(sim.spins), minlength=20), 6000 * law) > P_FLOOR
        for i in range(1, 6):
            assert abs(deviate(sim.spins[:, i].astype(float), law @ STATES[:, i])) < Z_CEILING
            product = (sim.spins[:, i] * sim.spins[:, i + 1]).astype(float)
            expected = law @ (STATES[:, i] * STATES[:, i + 1])
            assert abs(deviate(product, expected)) < Z_CEILING


def test_positions_do_not_feel_the_ends_of_a_run_of_exchanges() -> None:
    """The composition and the end spins never change, and positions start at 0."""
    sim = SpinDiffusion(BinaryChain(32), epsilon=0.05, dt=0.01, members=5, seed=1)
    sim.set(sim.system.alternating())
    sim.advance(400)
    assert (sim.spins.sum(axis=1) == 0).all()
    assert (sim.spins[:, 0] == -1).all()
    assert (sim.spins[:, -1] == 1).all()
    assert (sim.x[:, 0] == 0).all()
    assert (np.rint(sim.x * 2**32) == sim.x * 2**32).all()
    assert sim.exchanges.min() > 10
    assert abs(sim.strain()).max() < 0.1


def moments(h: float, epsilon: float, count: int, law: BondLaw) -> tuple[np.ndarray, np.ndarray]:
    """Errors, with their standard errors, of the means of x_N and of the sum of (b - 3)^2.

    Of both what they are in the mean at the spins is taken away: that varies more than they do.
    """
    of_kind = {
        kind: law.w * density @ np.stack([law.r, (law.r - 3.0) ** 2], axis=1)
        for kind, density in law.density.items()
    }
    exact = np.array([sum(of_kind[k] for k in itertools.pairwise(s)) for s in STATES.tolist()])
    sim = SpinDiffusion(DEEP, epsilon=epsilon, dt=h * epsilon, members=count, seed=round(1000 * h))
    sim.set(STATES[np.random.default_rng(3).choice(20, count, p=law.gibbs)])
    sim.advance(round(20 / sim.dt))
    total = np.zeros((count, 2))
    for _ in range(40):
        sim.advance(max(1, round(2 / sim.dt)))
        seen = [sim.x[:, -1], ((np.diff(sim.x, axis=1) - 3.0) ** 2).sum(axis=1)]
        total += np.stack(seen, axis=1) - exact[numbers(sim.spins)]
    # Chains are independent of each other, whatever they are of themselves.
    return total.mean(axis=0) / 40, total.std(axis=0) / 40 / math.sqrt(count)


@pytest.mark.validate
def test_the_measure_has_no_error_of_first_order() -> None:
    """Euler's variance of a bond is half as large again at h = 0.5, and with the slopes at the new
    spins alone the second moment would be off by 0.012 at h = 0.8 and 0.0045 at h = 0.4."""
    law = BondLaw(DEEP)
    for h in (0.8, 0.4):
        error, sigma = moments(h, 2.0, 20000, law)
        assert sigma[1] < 3e-4
        assert abs(error[1]) < Z_CEILING * sigma[1] + 1e-3 * h**2
        assert abs(error[0]) < Z_CEILING * sigma[0] + 0.01 * h**2
    # What there is of an error falls with h^2 or faster.
    (long, _), (short, sigma) = moments(0.9, 0.5, 20000, law), moments(0.63, 0.5, 20000, law)
    assert long[0] > 5 * sigma[0]
    assert abs(short[0]) < 0.7**2 * long[0] + 2 * sigma[0]


@pytest.mark.validate
def test_the_distance_to_the_averaged_process_falls_as_epsilon() -> None:
    """A-B bonds at t = 3 against the exact master equation of the averaged rates."""
    law, count = BondLaw(DEEP), 1_000_000
    bonds = np.count_nonzero(np.diff(STATES), axis=1)
    exact, found, sigma = float(law.at(ALTERNATING, 3.0) @ bonds), [], 0.0
    epsilons = np.array([0.4, 0.2, 0.1])
    for epsilon in epsilons.tolist():
        sim = SpinDiffusion(
            DEEP, epsilon=epsilon, dt=0.25 * epsilon, members=count, seed=round(1000 * epsilon)
        )
        sim.set(ALTERNATING)
        sim.advance(round(3.0 / sim.dt))
        seen = sim.ab_bonds()
        found.append(seen.mean() - exact)
        sigma = float(seen.std()) / math.sqrt(count)
    slopes = np.array(found) / epsilons
    assert found[-1] > 4 * sigma
    assert fitted_slope(epsilons, found) == pytest.approx(1.0, abs=0.2)
    assert slopes[1] == pytest.approx(slopes[0], abs=Z_CEILING * sigma * math.hypot(2.5, 5.0))


# -- same bits -----------------------------------------------------------------------------------

CHAIN = BinaryChain(32, beta=40.0)
WAYS: list[dict[str, Any]] = [
    {},
    {"preconditioned": False, "dt": 0.004},
    {"rates": "arrhenius"},
    {"metropolis": True},
]


def run(steps: list[int], **options: Any) -> SpinDiffusion:
    sim = SpinDiffusion(CHAIN, **({"epsilon": 0.1, "dt": 0.02, "seed": 6, "members": 6} | options))
    sim.set(CHAIN.alternating())
    for count in steps:
        sim.advance(count)
    return sim


def state(sim: SpinDiffusion) -> np.ndarray:
    counts = np.stack([sim.exchanges, sim.accepted], axis=1)
    return np.concatenate([sim.spins, sim.x, counts, sim.reference[:, None]], axis=1)


@pytest.mark.parametrize("way", WAYS)
def test_same_bits_in_any_batch_and_any_parts(
    way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = state(run([37], **way))
    assert len(np.unique(whole[:, 8])) > 1 or len(np.unique(whole[:, 40])) > 1
    np.testing.assert_array_equal(state(run([1, 20, 0, 16], **way)), whole)
    np.testing.assert_array_equal(state(run([37], first=4, members=1, **way)), whole[4:5])
    monkeypatch.setattr(chains, "TOGETHER", 64)
    np.testing.assert_array_equal(state(run([37], **way)), whole)


def test_what_is_kept_goes_on_with_the_same_bits() -> None:
    sim, whole = run([25]), run([60])
    after = run([])
    after.spins[:], after.x[:], after.step = sim.spins, sim.x, sim.step
    after.exchanges[:] = sim.exchanges
    after.advance(35)
    np.testing.assert_array_equal(state(after), state(whole))
    again = SpinDiffusion(CHAIN, epsilon=0.1, dt=0.02, seed=6, members=6)
    again.set(sim.spins, sim.x)
    again.step = 25
    again.advance(35)
    np.testing.assert_array_equal(again.x, whole.x)


@pytest.mark.mpi
def test_same_bits_on_any_number_of_ranks(comm: MPI.Intracomm) -> None:
    rows = gather_records(state(run([20], comm=comm)), comm)
    if comm.rank == 0:
        np.testing.assert_array_equal(rows, state(run([20])))


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon=0.0"),
        ({"dt": math.nan}, "dt=nan"),
        ({"tau": -1.0}, "tau=-1.0"),
        ({"rates": "metropolis"}, "rates='metropolis'.*tanh"),
        ({"members": 0}, "members=0"),
        ({"dt": 0.4}, "dt=0.4.*below 0.1809.*Try 0.027"),
        ({"dt": 0.1, "preconditioned": False}, "dt=0.1.*below 0.045"),
        ({"metropolis": True, "dt": 0.01, "preconditioned": False}, "metropolis"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SpinDiffusion(CHAIN, **({"epsilon": 0.1, "dt": 0.02} | options))


def test_states_that_cannot_be() -> None:
    sim = SpinDiffusion(CHAIN, epsilon=0.1, dt=0.02, members=2)
    with pytest.raises(InputError, match="a state to start from"):
        sim.advance(1)
    with pytest.raises(InputError, match=r"spins=0.*\+1 and -1"):
        sim.set(np.zeros(32))
    with pytest.raises(InputError, match="spins.*Reshape"):
        sim.set(np.ones(30))
    x = np.arange(32.0)
    x[5] = x[4]
    with pytest.raises(InputError, match="rise from atom to atom"):
        sim.set(CHAIN.alternating(), x)
    sim.set(CHAIN.alternating())
    with pytest.raises(InputError, match="steps=-1"):
        sim.advance(-1)


@pytest.mark.mpi
def test_a_step_that_leaves_the_basin_is_one_clear_error(comm: MPI.Intracomm) -> None:
    """On all ranks, whichever has the chain; what there was is still there."""
    hot = BinaryChain(16, beta=3.0)
    sim = SpinDiffusion(hot, epsilon=0.1, dt=0.04, seed=3, members=4, comm=comm)
    sim.set(hot.alternating())
    before = sim.x.copy()
    with pytest.raises(InputError, match=r"epsilon=0.1.*dt = 0.04 \(member \d.*dt shorter: 0.01"):
        sim.advance(500)
    np.testing.assert_array_equal(sim.x, before)
