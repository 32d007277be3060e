"""The tiled n-fold way: documented noise, exact law of a step, the same bits on any ranks."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from exact import (
    P_FLOOR,
    Z_CEILING,
    bonds,
    class_p_value,
    deviate,
    energies,
    fitted_slope,
    gibbs,
    has_cuda,
    index,
    law_p_value,
    magnetizations,
    neighbour_sums,
    onsager_energy,
    onsager_magnetization,
    sample,
    states,
)
from exact import threefry as plain_threefry
from mpi4py import MPI
from scipy.linalg import expm
from scipy.sparse import csr_array
from scipy.sparse.linalg import expm_multiply

from mpiflow import initial, observables
from mpiflow.core import signals
from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, factorisations
from mpiflow.core.noise import STREAMS
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.resume import resume
from mpiflow.run.simulate import simulate
from mpiflow.run.stopping import Stopped
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.solvers.spins import tiled
from mpiflow.solvers.spins.nfold import NFold
from mpiflow.solvers.spins.tile_counts import TileCounts
from mpiflow.solvers.spins.tiled import PASSES, TiledNFold
from mpiflow.systems.ising import Ising

HOT = Ising(2.5, 0.1)
MODELS = [HOT, Ising(1.3, -0.4), Ising(1.7, 0.3, coupling=-1.0)]


def spins(block: Block) -> np.ndarray:
    return np.array(block.inner(block.host()))


def random_states(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


def assert_counts_are_those_of_the_spins(solver: TiledNFold, block: Block) -> None:
    kept, fresh = solver._counts, TileCounts(block, solver.tile)
    assert kept is not None
    assert np.array_equal(kept.rows, fresh.rows)
    assert np.array_equal(kept.totals, fresh.totals)


# -- one step, written a second time -----------------------------------------------------------


def plain_step(
    whole: np.ndarray, model: Ising, window: float, tile: int, seed: int, member: int, step: int
) -> int:
    """One step of one periodic lattice in place, from the definition; returns the flips."""
    flips, tiles = 0, [side // tile for side in whole.shape]
    for number, (row, column, share) in enumerate(PASSES):
        for ti, tj in product(range(row, tiles[0], 2), range(column, tiles[1], 2)):
            inside = np.s_[ti * tile : (ti + 1) * tile, tj * tile : (tj + 1) * tile]
            time, event = 0.0, 0
            while True:
                sums = neighbour_sums(whole)[inside]
                local = whole[inside] * (model.coupling * sums + model.field)
                rates = 1.0 / (1.0 + np.exp(2.0 * local / model.temperature))
                key = (seed, STREAMS["tiled-nfold"] * 2**48 + member)
                counter = (7 * step + number, (ti * tiles[1] + tj) * 2**32 + event)
                w0, w1 = plain_threefry(key, counter)
                u0, u1 = ((w >> 12) * 2.0**-52 + 2.0**-53 for w in (w0, w1))
                time -= math.log(u0) / rates.sum()
                if time > share * window:
                    break
                # Sites in order of class (spin, neighbour sum), then row-major.
                labels = ((sums + 4) // 2 + 5 * (whole[inside] > 0)).reshape(-1)
                order = np.argsort(labels, kind="stable")
                shares = np.cumsum(rates.reshape(-1)[order])
                chosen = order[np.searchsorted(shares, u1 * shares[-1])]
                whole[inside][np.divmod(chosen, tile)] *= -1
                event += 1
            flips += event
    return flips


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize(("shape", "tile"), [((4, 4), 2), ((8, 12), 2), ((6, 12), 3), ((8, 16), 4)])
def test_a_step_follows_the_documented_noise(
    model: Ising, shape: tuple[int, int], tile: int
) -> None:
    """Passes, windows, waiting times and the choice of sites, with Threefry written again."""
    members, seed, first = np.array([0, 2**40]), 2**60 + 7, 5
    whole = random_states(1, 2, *shape)
    block, solver = Block.periodic(whole, members), TiledNFold(model, 1.3, tile)
    flips = solver.advance(block, 3, seed=seed, first_step=first)
    for b, member in enumerate(members):
        expected = [
            plain_step(whole[b], model, 1.3, tile, seed, int(member), first + n) for n in range(3)
        ]
        assert sum(expected) == flips[b] > 5
        assert np.array_equal(spins(block)[b], whole[b])
    assert np.array_equal(block.host(), np.pad(whole, ((0, 0), (1, 1), (1, 1)), "wrap"))


# -- laws --------------------------------------------------------------------------------------

SMALL = (4, 4)


def site_rates(model: Ising) -> np.ndarray:
    """Rate of flipping each site in each state of the small torus, (2^16, 16)."""
    every = states(SMALL)
    local = model.coupling * neighbour_sums(every) + model.field
    return (1 / (1 + np.exp(2 * every * local / model.temperature))).reshape(len(every), -1)


def tile_propagator(
    rates: np.ndarray, row: int, column: int, time: float
) -> Callable[[np.ndarray], np.ndarray]:
    """exp(time L) of the 2 x 2 tile (row, column) of the small torus, acting on a law (2^16,)."""
    sites = [4 * (2 * row + i) + 2 * column + j for i in range(2) for j in range(2)]
    inside = sum((np.arange(16) >> bit & 1) << site for bit, site in enumerate(sites))
    outside = np.flatnonzero((np.arange(2**16) & inside.max()) == 0)
    numbers = outside[:, None] | inside  # (surroundings, states of the tile)
    generators = np.zeros((len(outside), 16, 16))
    for bit, site in enumerate(sites):
        generators[:, np.arange(16), np.arange(16) ^ (1 << bit)] = rates[numbers, site]
    generators[:, np.arange(16), np.arange(16)] = -generators.sum(2)
    matrices = expm(time * generators)

    def act(law: np.ndarray) -> np.ndarray:
        out = np.empty_like(law)
        out[numbers] = np.einsum("ni,nij->nj", law[numbers], matrices)
        return out

    return act


def law_after(law: np.ndarray, model: Ising, window: float, steps: int) -> np.ndarray:
    """The law after some steps of tiled dynamics with tiles of 2 x 2 sites."""
    rates = site_rates(model)
    symmetric = [tile_propagator(rates, *tile, share * window) for *tile, share in PASSES[:4]]
    for _ in range(steps):
        for act in symmetric + symmetric[2::-1]:
            law = act(law)
    return law


def exact_law_after(law: np.ndarray, model: Ising, time: float) -> np.ndarray:
    """The law that solves the master equation of the whole torus."""
    rates, every = site_rates(model), np.arange(2**16)
    flipped = every[:, None] ^ (1 << np.arange(16))
    generator = csr_array(
        (rates.reshape(-1), (flipped.reshape(-1), np.repeat(every, 16))), shape=(2**16, 2**16)
    )
    total = csr_array((rates.sum(1), (every, every)), shape=(2**16, 2**16))
    return expm_multiply(time * (generator - total), law)


def point_law(state: int) -> np.ndarray:
    law = np.zeros(2**16)
    law[state] = 1.0
    return law


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_law_of_steps_is_the_product_of_the_split_generators(model: Ising) -> None:
    """All 65536 states of a 4 x 4 torus after one step, and after two more."""
    start, count, window = 0b0110_1100_0001_1101, 80_000, 0.8
    whole = np.repeat(states(SMALL)[start : start + 1], count, axis=0)
    block, solver = Block.periodic(whole, np.arange(count)), TiledNFold(model, window, tile=2)
    law = law_after(point_law(start), model, window, 1)
    solver.advance(block, 1, seed=3)
    assert law_p_value(spins(block), law) > P_FLOOR
    assert class_p_value(spins(block), law, SMALL) > P_FLOOR
    law = law_after(law, model, window, 2)
    solver.advance(block, 2, seed=3, first_step=1)
    assert law_p_value(spins(block), law) > P_FLOOR
    assert class_p_value(spins(block), law, SMALL) > P_FLOOR


@pytest.mark.parametrize("window", [0.3, 2.0, 20.0])
def test_gibbs_is_invariant_for_every_window(window: float) -> None:
    law, count = gibbs(SMALL, 2.5, 0.1), 60_000
    assert np.abs(law_after(law, HOT, window, 1) - law).sum() < 1e-12
    whole = sample(law, SMALL, count, np.random.default_rng(2))
    block = Block.periodic(whole, np.arange(count))
    TiledNFold(HOT, window, tile=2).advance(block, 3, seed=4)
    assert class_p_value(spins(block), law, SMALL) > P_FLOOR
    assert np.mean(index(spins(block)) != index(whole)) > 0.5
    expected = float((law * energies(states(SMALL), 0.1)).sum())
    assert abs(deviate(energies(spins(block), 0.1), expected)) < Z_CEILING
    expected = float((law * magnetizations(states(SMALL))).sum())
    assert abs(deviate(magnetizations(spins(block)), expected)) < Z_CEILING


def test_second_order_in_the_window() -> None:
    """Total variation between the law of the steps and the master equation, time 1."""
    start, windows = point_law(0b0110_1100_0001_1101), [0.5, 0.25, 0.125]
    exact = exact_law_after(start, HOT, 1.0)
    errors = [
        np.abs(law_after(start, HOT, window, round(1 / window)) - exact).sum() / 2
        for window in windows
    ]
    assert errors[0] < 0.01
    assert fitted_slope(windows, errors) == pytest.approx(2, abs=0.05)


@pytest.mark.validate
def test_second_order_in_the_window_as_sampled() -> None:
    """Bias of the observable that tells the laws apart best: its slope in W is 2."""
    model, count, windows, time = Ising(1.3, -0.4), 400_000, [2.0, 1.0, 0.5], 2.0
    start = 0b0110_1100_0001_1101
    exact = exact_law_after(point_law(start), model, time)
    laws = [law_after(point_law(start), model, w, round(time / w)) for w in windows]
    observable = np.sign(laws[1] - exact)
    biases, errors = [], []
    for window, law in zip(windows, laws, strict=True):
        whole = np.repeat(states(SMALL)[start : start + 1], count, axis=0)
        block = Block.periodic(whole, np.arange(count))
        TiledNFold(model, window, tile=2).advance(block, round(time / window), seed=5)
        seen = observable[index(spins(block))]
        assert abs(deviate(seen, float(observable @ law))) < Z_CEILING
        biases.append(float(seen.mean() - observable @ exact))
        errors.append(float(seen.std() / math.sqrt(count)))
    weights = np.array(biases) / np.array(errors)  # 1 / error of the logarithms
    assert weights.min() > 5
    x, y = np.log(windows), np.log(biases)
    (slope, _), covariance = np.polyfit(x, y, 1, w=weights, cov="unscaled")
    assert math.sqrt(covariance[0, 0]) < 0.05
    assert abs(slope - 2) < 0.1 + Z_CEILING * math.sqrt(covariance[0, 0])


def test_equilibrium_of_a_large_lattice() -> None:
    """Energy and magnetisation at T = 2, 128^2 sites, tiles of 32: Onsager and Yang.

    Each lattice gives one time average; the errors come from the lattices, which are
    independent, so no autocorrelation enters.
    """
    count, side, temperature = 40, 128, 2.0
    block = Block.periodic(np.ones((count, side, side), np.int8), np.arange(count))
    solver = TiledNFold(Ising(temperature), 1.0, tile=32)
    solver.advance(block, 30, seed=1)
    energy, magnetization = np.zeros(count), np.zeros(count)
    for i in range(40):
        solver.advance(block, 4, seed=1, first_step=30 + 4 * i)
        energy += -bonds(spins(block)) / (40 * side**2)
        magnetization += magnetizations(spins(block)) / (40 * side**2)
    assert energy.std(ddof=1) / math.sqrt(count) < 1e-3
    assert magnetization.std(ddof=1) / math.sqrt(count) < 1e-3
    assert abs(deviate(energy, onsager_energy(temperature))) < Z_CEILING
    assert abs(deviate(magnetization, onsager_magnetization(temperature))) < Z_CEILING
    assert_counts_are_those_of_the_spins(solver, block)


@pytest.mark.validate
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_coarsening_equals_the_serial_solver(temperature: float) -> None:
    """Domain walls after a quench from m = 0, with windows of 0.5: no bias beyond 1 percent."""
    count, side, times = 200, 128, (10.0, 20.0)
    blocks = [Block.periodic(random_states(s, count, side, side), np.arange(count)) for s in (1, 2)]
    exact, tiled = NFold(Ising(temperature), count), TiledNFold(Ising(temperature), 0.5, tile=64)
    step = 0
    for time in times:
        exact.advance(blocks[0], seed=3, until=time)
        tiled.advance(blocks[1], round(time / 0.5) - step, seed=4, first_step=step)
        step = round(time / 0.5)
        walls = [observables.domain_wall_density(bonds(spins(b)), side**2) for b in blocks]
        error = math.hypot(*(x.std(ddof=1) / math.sqrt(count) for x in walls))
        assert error < 0.01 * walls[0].mean()
        assert abs(walls[1].mean() - walls[0].mean()) < 0.01 * walls[0].mean() + Z_CEILING * error


# -- the same bits ------------------------------------------------------------------------------


def test_calls_and_restarts_change_nothing() -> None:
    """One call, one solver in many calls, and a new solver from the spins alone for each step."""
    whole, members = random_states(3, 2, 16, 24), np.array([4, 9])
    one, many, restarted = (Block.periodic(whole, members) for _ in range(3))
    flips = TiledNFold(HOT, 0.7, 4).advance(one, 9, seed=1, first_step=2)
    solver, counted = TiledNFold(HOT, 0.7, 4), np.zeros(2, np.int64)
    for first, steps in ((2, 1), (3, 0), (3, 5), (8, 3)):
        counted += solver.advance(many, steps, seed=1, first_step=first)
        assert_counts_are_those_of_the_spins(solver, many)
    for step in range(2, 11):
        again = Block.periodic(spins(restarted), members)
        TiledNFold(HOT, 0.7, 4).advance(again, 1, seed=1, first_step=step)
        restarted.load(spins(again))
    assert np.array_equal(one.array, many.array)
    assert np.array_equal(one.array, restarted.array)
    assert np.array_equal(flips, counted)


@pytest.mark.parametrize("stretch", [1, 5])
def test_where_a_pass_is_interrupted_changes_nothing(
    stretch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two flips, also the last of a tile, and with boxes where nothing happens."""
    blocks = [Block.periodic(random_states(3, 3, 8, 12), np.arange(3)) for _ in range(2)]
    for block in blocks:
        block.array[1] = 1
        block.fill_halo()
    flips = [TiledNFold(HOT, 2.0, 2).advance(blocks[0], 3, seed=1)]
    monkeypatch.setattr(tiled, "STRETCH", stretch)
    flips.append(TiledNFold(HOT, 2.0, 2).advance(blocks[1], 3, seed=1))
    np.testing.assert_array_equal(flips[0], flips[1])
    np.testing.assert_array_equal(spins(blocks[0]), spins(blocks[1]))


@pytest.mark.mpi
@pytest.mark.parametrize("looks", [0, 1, 40])
def test_windows_that_are_over_are_taken_back(
    comm: MPI.Intracomm, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all ranks, though only one was told; what is made anew has the same bits."""
    monkeypatch.setattr(tiled, "STRETCH", 1)
    layout = Layout.balanced(Lattice((16, 16)), comm.size, 4)
    blocks = [Block.tile(layout, comm, halo=1) for _ in range(2)]
    for block in blocks:
        initial.independent(block, magnetization=0.0, seed=5)
    asked = []

    def over() -> bool:
        asked.append(None)
        return comm.rank == comm.size - 1 and len(asked) > looks

    solvers = [TiledNFold(HOT, 1.0, 4) for _ in range(2)]
    for solver, block in zip(solvers, blocks, strict=True):
        solver.advance(block, 1, seed=2)
    before = spins(blocks[0]).copy()
    solvers[0].attempt(blocks[0], 3, over=over, seed=2, first_step=1)
    assert solvers[0].abandoned == (comm.rank == comm.size - 1)
    solvers[0].settle(blocks[0], back=True)
    np.testing.assert_array_equal(spins(blocks[0]), before)
    assert_counts_are_those_of_the_spins(solvers[0], blocks[0])
    made = [s.advance(b, 3, seed=2, first_step=1) for s, b in zip(solvers, blocks, strict=True)]
    np.testing.assert_array_equal(*made)
    np.testing.assert_array_equal(spins(blocks[0]), spins(blocks[1]))


def test_a_long_window_is_left_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is begun again where the run goes on; that none has ended is said."""
    options = {"size": 16, "temperature": 2.5, "field": 0.1, "solver": "tiled-nfold", "tile": 8}
    options |= {"dt": 50.0, "time": 150.0, "save_every": 50.0, "seed": 3, "quiet": True}
    simulate(IsingConfig(**options, out=tmp_path / "whole.h5"), MPI.COMM_SELF)
    asked = 0

    def received() -> int:
        nonlocal asked
        asked += 1
        return signal.SIGUSR1 if asked > 9 else 0

    monkeypatch.setattr(tiled, "STRETCH", 3)
    monkeypatch.setattr(signals, "PATIENCE", 0.0)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(signals, "received", received)
        simulate(IsingConfig(**options, out=tmp_path / "parts.h5"), MPI.COMM_SELF)
    said = capsys.readouterr().err
    assert re.search(
        r"taken back after \d+ events, .*finished none: .*shorter --override dt=", said
    )
    assert "stopped at time 0;" in said
    resume(tmp_path / "parts.h5", MPI.COMM_SELF, {"quiet": True})
    with Trajectory(tmp_path / "whole.h5") as a, Trajectory(tmp_path / "parts.h5") as b:
        for name in ("time", *a.variables):
            assert np.array_equal(a[name], b[name]), name


def test_spins_may_be_changed_between_calls() -> None:
    """A solver that has counts of other spins, or of another block, goes on like a new one."""
    members = np.arange(2)
    old, new = random_states(4, 2, 16, 16), random_states(5, 2, 16, 16)
    used, block = TiledNFold(HOT, 0.5, 4), Block.periodic(old, members)
    used.advance(block, 2, seed=1)
    expected = Block.periodic(new, members)
    TiledNFold(HOT, 0.5, 4).advance(expected, 3, seed=1)
    block.load(new)
    used.advance(block, 3, seed=1)
    assert np.array_equal(block.array, expected.array)
    assert_counts_are_those_of_the_spins(used, block)
    single = spins(block)
    single[1, 15, 15] *= -1  # in the last corner, seen by two other tiles through the halo
    block.load(single)
    expected = Block.periodic(single, members)
    for solver, b in ((used, block), (TiledNFold(HOT, 0.5, 4), expected)):
        solver.advance(b, 3, seed=2)
    assert np.array_equal(block.array, expected.array)
    other = Block.periodic(new[:1, :8], np.array([7]))
    used.advance(other, 1, seed=1)
    assert_counts_are_those_of_the_spins(used, other)


@pytest.mark.parametrize("tile", [2, 4, 8])
def test_flips_at_the_edge_of_a_tile_are_seen_by_its_neighbours(tile: int) -> None:
    """After many passes the counts, kept flip by flip, are those of the spins."""
    block = Block.periodic(random_states(6, 3, 16, 32), np.arange(3))
    solver = TiledNFold(HOT, 1.0, tile)
    for step in range(20):
        flips = solver.advance(block, 1, seed=8, first_step=step)
        assert flips.min() > 50
        assert_counts_are_those_of_the_spins(solver, block)


def test_memory() -> None:
    """Besides the spins, less than a third of a byte for each site."""
    block, solver = (
        Block.periodic(random_states(1, 1, 256, 256), np.arange(1)),
        TiledNFold(HOT, 0.5),
    )
    solver.advance(block, 1, seed=0)
    assert solver._counts is not None
    kept = [array for array in vars(solver._counts).values() if isinstance(array, np.ndarray)]
    assert len(kept) == 7
    assert sum(array.nbytes for array in kept) < 256**2 / 3


def test_members_and_origins() -> None:
    """A box does not depend on its batch; its tiles carry their numbers on the lattice."""
    whole = random_states(7, 4, 16, 16)
    many, alone = Block.periodic(whole, np.arange(4)), Block.periodic(whole[2:3], np.array([2]))
    TiledNFold(HOT, 0.5, 4).advance(many, 4, seed=3)
    TiledNFold(HOT, 0.5, 4).advance(alone, 4, seed=3)
    assert np.array_equal(spins(many)[2], spins(alone)[0])
    # The whole lattice as a box that starts elsewhere and runs over the edge.
    moved = Block.cut(whole, (4, 12), (16, 16), np.arange(4), policy="wrap")
    TiledNFold(HOT, 0.5, 4).advance(moved, 4, seed=3)
    assert np.array_equal(np.roll(spins(moved), (4, 12), (1, 2)), spins(many))


def test_seed_member_step_and_stream_all_matter() -> None:
    def run(seed: int = 0, member: int = 0, first: int = 0, stream: str = "tiled-nfold") -> bytes:
        block = Block.periodic(np.ones((1, 16, 16), np.int8), np.array([member]))
        TiledNFold(HOT, 1.0, 4).advance(block, 1, seed=seed, first_step=first, stream=stream)
        return spins(block).tobytes()

    runs = [run(), run(seed=1), run(member=1), run(first=1), run(stream="nfold")]
    assert len(set(runs)) == 5
    assert run() == runs[0]


def test_low_temperature_and_zero_rates() -> None:
    up = np.ones((1, 16, 16), np.int8)
    up[0, 5, 8] = -1
    block, solver = Block.periodic(up, np.arange(1)), TiledNFold(Ising(0.005), 100.0, 4)
    assert solver.advance(block, 1, seed=0).tolist() == [1]
    assert (spins(block) == 1).all()
    assert solver.advance(block, 5, seed=0, first_step=1).tolist() == [0]


@pytest.mark.mpi
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_the_same_bits_on_any_ranks(comm: MPI.Intracomm, axis: int | None) -> None:
    """Each grid of ranks against the whole lattice on one rank, with halos from elsewhere."""
    lattice, tile = Lattice((32, 16)), 4
    grids = [Layout.balanced(lattice, comm.size, tile).ranks_grid]
    if axis is not None:
        grids = [grid for grid in factorisations(comm.size, 2) if grid[axis] == 1]
    whole = random_states(9, 1, *lattice.shape)
    alone = Block.periodic(whole, np.array([3]))
    flips = TiledNFold(HOT, 0.6, tile).advance(alone, 6, seed=2)
    for grid in grids:
        layout = Layout(lattice, grid, tile)
        block = Block.tile(layout, comm, member=3)
        mine = (slice(None), *layout.slices(comm.rank))
        block.load(whole[mine])
        solver = TiledNFold(HOT, 0.6, tile)
        here = solver.advance(block, 2, seed=2)
        here += solver.advance(block, 4, seed=2, first_step=2)
        assert np.array_equal(spins(block), spins(alone)[mine])
        assert np.array_equal(block.total(here), flips)
        assert_counts_are_those_of_the_spins(solver, block)
        # One rank changes its spins; its neighbours notice by the halo only.
        changed = spins(alone)
        changed[0, :4, :4] *= -1
        block.load(changed[mine])
        solver.advance(block, 1, seed=2, first_step=6)
        expected = Block.periodic(changed, np.array([3]))
        TiledNFold(HOT, 0.6, tile).advance(expected, 1, seed=2, first_step=6)
        assert np.array_equal(spins(block), spins(expected)[mine])


def test_initial_states_and_equilibrium_on_one_rank_block() -> None:
    """An exchange block on one rank is a periodic lattice."""
    layout = Layout.balanced(Lattice((16, 16)), 1, 4)
    block = Block.tile(layout, MPI.COMM_SELF)
    initial.independent(block, seed=3)
    alone = Block.periodic(spins(block), np.array([0]))
    for b in (block, alone):
        TiledNFold(HOT, 0.5, 4).advance(b, 3, seed=1)
    assert np.array_equal(block.array, alone.array)


# -- what cannot be used --------------------------------------------------------------------------


@pytest.mark.parametrize("window", [0.0, -1.0, math.inf, math.nan])
def test_impossible_windows(window: float) -> None:
    with pytest.raises(InputError, match=r"^window=.*finite number above 0"):
        TiledNFold(HOT, window)


@pytest.mark.parametrize("tile", [0, 1, 256])
def test_impossible_tiles(tile: int) -> None:
    with pytest.raises(InputError, match=r"^tile=.*2 to 255"):
        TiledNFold(HOT, 0.5, tile)


@pytest.mark.parametrize(
    ("shape", "tile", "remedy"),
    [
        ((24, 36), 4, "a tile of 2 or 3 or 6, or fewer ranks"),
        ((6, 6), 2, "a tile of 3, or fewer ranks"),
        ((6, 10), 2, "fewer ranks, or a size that is a multiple of 128"),
        ((16, 15), 4, "fewer ranks, or a size that is a multiple of 128"),
        ((16, 16), 16, "a tile of 2 or 4 or 8, or fewer ranks"),
    ],
)
def test_lattices_that_tiles_do_not_fit(shape: tuple[int, int], tile: int, remedy: str) -> None:
    block = Block.periodic(np.ones((1, *shape), np.int8), np.arange(1))
    with pytest.raises(InputError, match=f"^tile={tile}: .*Use {remedy}"):
        TiledNFold(HOT, 0.5, tile).advance(block, 1, seed=0)


@pytest.mark.parametrize(
    ("origin", "shape", "fitting"), [((2, 4), (8, 8), "2"), ((0, 0), (4, 8), "2")]
)
def test_boxes_that_tiles_do_not_fit(
    origin: tuple[int, int], shape: tuple[int, int], fitting: str
) -> None:
    whole = np.ones((1, 16, 16), np.int8)
    block = Block.cut(whole, origin, shape, np.arange(1), policy="wrap")
    with pytest.raises(InputError, match=f"^tile=4: .*Use a tile of {fitting},"):
        TiledNFold(HOT, 0.5, 4).advance(block, 1, seed=0)
    TiledNFold(HOT, 0.5, 2).advance(block, 1, seed=0)


def test_every_rank_checks_the_boxes_of_all() -> None:
    """The box of the first of three ranks has 8 rows, the others have 12: all must raise."""
    block = Block.tile(Layout(Lattice((32, 16)), (1, 1)), MPI.COMM_SELF)
    TiledNFold(HOT, 0.5, 8).check(block)
    block.layout = Layout(Lattice((32, 16)), (3, 1), granularity=4)
    assert [block.layout.shape(rank)[0] for rank in range(3)] == [8, 12, 12]
    with pytest.raises(InputError, match=r"^tile=8: .*Use a tile of 2 or 4, or fewer ranks"):
        TiledNFold(HOT, 0.5, 8).check(block)


def test_frozen_surroundings() -> None:
    block = Block.cut(np.ones((1, 16, 16), np.int8), (0, 0), (8, 8), np.arange(1))
    with pytest.raises(InputError, match=r"^policy='frozen': .*n-fold solver"):
        TiledNFold(HOT, 0.5, 4).advance(block, 1, seed=0)


@pytest.mark.kernel
@pytest.mark.mpi
@pytest.mark.skipif(not has_cuda(), reason="no CUDA device, no simulator")
@pytest.mark.parametrize("model", MODELS[:2], ids=["hot", "cold"])
def test_cuda_makes_the_same_flips(comm: MPI.Intracomm, model: Ising) -> None:
    """On any ranks, with more events of a tile than are drawn at once, and steps taken back."""
    layout = Layout.balanced(Lattice((16, 16)), comm.size, 4)
    blocks = [Block.tile(layout, comm, halo=1, device=Device(name)) for name in ("cpu", "cuda")]
    for block in blocks:
        initial.independent(block, magnetization=0.0, seed=5)
    here, there = blocks
    solvers = [TiledNFold(model, 6.0, 4) for _ in blocks]
    solvers[1].attempt(there, 1, over=lambda: comm.rank == 0, seed=2)
    assert solvers[1].abandoned == (comm.rank == 0)
    solvers[1].settle(there, back=True)
    np.testing.assert_array_equal(there.host(), here.array)
    flips = [
        solver.advance(block, 1, seed=2) for solver, block in zip(solvers, blocks, strict=True)
    ]
    assert comm.allreduce(int(flips[0][0])) > 200
    np.testing.assert_array_equal(*flips)
    np.testing.assert_array_equal(there.host(), here.array)


def test_an_empty_batch_is_allowed() -> None:
    block = Block.periodic(np.zeros((0, 8, 8), np.int8), np.arange(0))
    assert TiledNFold(HOT, 0.5, 4).advance(block, 1, seed=0).shape == (0,)


@pytest.mark.mpi
def test_spins_that_are_none(comm: MPI.Intracomm) -> None:
    """Fresh blocks hold zeros. The error comes on all ranks, and is no trap for later."""
    block = Block.tile(Layout.balanced(Lattice((32, 16)), comm.size, 4), comm)
    initial.independent(block, seed=1)
    start, solver = spins(block), TiledNFold(HOT, 0.5, 4)
    if comm.rank == comm.size - 1:
        block.array[0, 3, 2] = 0
    with pytest.raises(InputError, match=r"^spins=0: allowed is \+1 and -1 only"):
        solver.advance(block, 1, seed=0)
    block.load(start)
    solver.advance(block, 1, seed=0)
    assert_counts_are_those_of_the_spins(solver, block)
