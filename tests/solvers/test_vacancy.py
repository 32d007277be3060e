"""The serial and the tiled solver of vacancies against exact laws, and their promises."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise

import numpy as np
import pytest
import simulator
from exact import has_cuda
from lattice_gas import PairOnLattice
from mpi4py import MPI
from scipy.sparse.linalg import expm_multiply
from scipy.stats import chi2

from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.observables import bond_counts
from mpiflow.solvers.vacancy import barrier_kernels, events, lists, rates, tiled
from mpiflow.solvers.vacancy import cuda as vacancy_cuda
from mpiflow.solvers.vacancy.hop_log import Tracers
from mpiflow.solvers.vacancy.rates import decay, hop_rates
from mpiflow.solvers.vacancy.serial import VacancyKMC, total_rates, whole_lattice
from mpiflow.solvers.vacancy.tiled import TiledKMC
from mpiflow.systems import barriers
from mpiflow.systems.alloy import DIRECTIONS, NOT_A_SITE, VACANCY, Alloy, is_site

T = 1000.0
BONDS = np.array([[0.0, -0.1, -0.25], [-0.1, -0.2, -0.1], [-0.25, -0.1, -0.2]])
BASE = (1.2, 1.0)
SYSTEM = Alloy(T, ("A", "B"))
MODEL = barriers.pairwise(BASE, BONDS)
#: About the time of one hop.
HOP = 1.0 / (8 * 1e13 * math.exp(-1.2 / (8.617333e-5 * T)))


def boxes(grids: np.ndarray, halo: int = 5) -> Block:
    """Whole lattices, each periodic."""
    edge = ((0, 0), *((halo, halo),) * 3)
    return Block(
        Lattice(grids.shape[1:]),
        np.ascontiguousarray(np.pad(grids, edge, mode="wrap")),
        np.zeros((len(grids), 3), np.int64),
        np.arange(len(grids), dtype=np.uint64),
        halo,
        "wrap",
    )


def random_grid(
    sides: tuple[int, ...], vacancies: int, elements: int = 2, seed: int = 0
) -> np.ndarray:
    """One lattice in random order, equal numbers of atoms."""
    site = is_site(sides)
    species = np.arange(site.sum() - vacancies) % elements + 1
    species = np.concatenate([np.zeros(vacancies, int), species])
    grid = np.full((1, *sides), NOT_A_SITE, np.int8)
    grid[0, site] = np.random.default_rng(seed).permutation(species)
    return grid


def require_law(found: np.ndarray, law: np.ndarray, level: float = 1e-4) -> None:
    """Chi-square test of counts against probabilities; rare classes are merged."""
    order = np.argsort(law)
    expected, seen = law[order] * found.sum(), found[order]
    cut = np.searchsorted(np.cumsum(expected), 10.0) + 1
    expected = np.concatenate([[expected[:cut].sum()], expected[cut:]])
    seen = np.concatenate([[seen[:cut].sum()], seen[cut:]])
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(level, len(expected) - 1), (seen, expected)


def counts_by_distance(pair: PairOnLattice, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of states by distance of the pair, and by x of the vacancy."""
    v, a = pair.places(block.spins())
    x = np.bincount(pair.points[v, 0], minlength=pair.sides[0])
    return np.bincount(
        pair.distance_classes()[v, a], minlength=pair.distance_classes().max() + 1
    ), x


def laws_by_distance(pair: PairOnLattice, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = p.reshape(pair.n, pair.n)
    x = np.bincount(pair.points[:, 0], p.sum(axis=1), pair.sides[0])
    return np.bincount(pair.distance_classes().ravel(), p.ravel()), x


def near_boundary(pair: PairOnLattice) -> tuple[int, int]:
    """A vacancy two points from the boundary of tiles at x = 0, an atom next to it."""
    v = int(pair.number[2, 2, 2])
    return v, int(pair.near[v, 0])


# -- arithmetic ----------------------------------------------------------------------------


def test_decay_is_exp():
    x = np.concatenate([np.linspace(-20, 690, 20001), np.array([0.0, 1e-300, 0.34657359])])
    ours = np.array([decay(value) for value in x])
    np.testing.assert_allclose(ours, np.exp(-x), rtol=6e-16, atol=0)


def test_rates_of_infinite_barriers_vanish():
    rates = np.empty(8)
    energies = np.array([np.inf, 1.0, 200.0, 0.0, -0.1, np.nan, 1e30, 1.7], np.float32)
    hop_rates(11.6, energies, rates)
    assert rates[0] == rates[2] == rates[5] == rates[6] == 0.0
    exact = 1e13 * np.exp(-11.6 * energies[[1, 3, 7]].astype(float))
    np.testing.assert_allclose(rates[[1, 3, 7]], exact, rtol=1e-15)


# -- the serial solver ---------------------------------------------------------------------


def test_serial_law_in_time_is_the_master_equation():
    pair = PairOnLattice((8, 8, 8), BASE, BONDS, T)
    v, a = near_boundary(pair)
    members = 4000
    block = boxes(pair.grids(np.full(members, v), np.full(members, a)))
    solver = VacancyKMC(SYSTEM, MODEL, members)
    p = np.zeros(pair.n**2)
    p[v * pair.n + a] = 1.0
    for number in (1, 2):  # the law does not depend on how the time is cut
        solver.advance(block, seed=3, until=3 * number * HOP)
        p = expm_multiply(pair.generator() * (3 * HOP), p)
        for found, law in zip(
            counts_by_distance(pair, block), laws_by_distance(pair, p), strict=True
        ):
            seen = law > 0
            assert not found[~seen].any()
            require_law(found[seen], law[seen])
    # The number of hops: its mean is the integral of the total rate.
    assert solver.hops.min() >= 0
    assert np.all(solver.clock <= 6 * HOP)


def test_serial_stationary_law_is_gibbs():
    pair = PairOnLattice((8, 8, 8), BASE, BONDS, T)
    v, a = near_boundary(pair)
    members = 1500
    block = boxes(pair.grids(np.full(members, v), np.full(members, a)))
    solver = VacancyKMC(SYSTEM, MODEL, members)
    solver.advance(block, seed=5, until=2000 * HOP)
    law = laws_by_distance(pair, pair.gibbs())[0]
    found = counts_by_distance(pair, block)[0]
    require_law(found[law > 0], law[law > 0])


def test_calls_do_not_matter_and_halo_is_current():
    grid = random_grid((8, 10, 12), 5)
    once, often = boxes(grid), boxes(grid)
    first, second = VacancyKMC(SYSTEM, MODEL), VacancyKMC(SYSTEM, MODEL)
    first.advance(once, seed=1, until=50 * HOP)
    for end in (10 * HOP, 10.001 * HOP, 37 * HOP, 50 * HOP):
        second.advance(often, seed=1, until=end)
    assert first.hops == second.hops > 100
    np.testing.assert_array_equal(once.array, often.array)
    np.testing.assert_array_equal(once.array, boxes(once.spins().copy()).array)
    third, counted = VacancyKMC(SYSTEM, MODEL), boxes(grid)
    made = third.advance(counted, seed=1, hops=60)
    third.advance(counted, seed=1, hops=int(first.hops[0]) - 60)
    assert made == 60
    np.testing.assert_array_equal(once.array, counted.array)
    assert third.clock == first.clock


def test_members_do_not_depend_on_each_other():
    grids = np.concatenate([random_grid((8, 8, 8), 2, seed=s) for s in range(3)])
    together, solver = boxes(grids), VacancyKMC(SYSTEM, MODEL, 3)
    solver.advance(together, seed=2, until=30 * HOP)
    alone = boxes(grids[2:])
    alone.members[:] = 2
    VacancyKMC(SYSTEM, MODEL).advance(alone, seed=2, until=30 * HOP)
    np.testing.assert_array_equal(together.array[2], alone.array[0])


def test_rates_after_many_hops_are_those_of_a_new_solver():
    """Vacancies near each other: every affected one must have been looked at again."""
    block, solver = boxes(random_grid((8, 8, 8), 12)), VacancyKMC(SYSTEM, MODEL)
    for _ in range(30):
        solver.advance(block, seed=4, hops=7)
        n, store, _ = solver._lists[0]
        kept = store.rates[:n].copy(), store.near[:n].copy()
        found = rates.evaluator(SYSTEM, MODEL, block, n)
        fresh = lists.lists(n)
        fresh.place[:], fresh.flat[:] = store.place[:n], store.flat[:n]
        zero = np.uint64(0)
        origin, log = np.zeros(3, np.int64), events.events(0)
        events.evolve(
            block.array[0], origin, n, found, whole_lattice(), fresh, (zero, zero, zero), zero, 0.0,
            0.0, 0, log, 0, True,
        )  # fmt: skip
        np.testing.assert_array_equal(kept[0], fresh.rates)
        np.testing.assert_array_equal(kept[1], fresh.near)
        np.testing.assert_array_equal(store.tree[: fresh.tree.size], fresh.tree)


def test_table_changes_no_bit():
    rng = np.random.default_rng(0)
    layers = [(rng.normal(size=s) * 0.05, rng.normal(size=s[1]) * 0.1) for s in ((112, 8), (8, 1))]
    layers[1][1][:] = 1.2
    model = barrier_kernels.network(layers, np.arange(3)[:, None])
    grids, cold = [], Alloy(400.0, ("A", "B"))
    for table in (rates.table, lambda m, n: rates.table(barriers.constant([1.0, 1.0]), n)):
        block, solver = boxes(random_grid((8, 8, 8), 1)), VacancyKMC(cold, model)
        solver._lists = [(0, lists.lists(1), table(model, 1))]
        solver.advance(block, seed=6, hops=2000)
        grids.append((block.array.copy(), solver.clock.copy(), solver.evaluations))
    np.testing.assert_array_equal(grids[0][0], grids[1][0])
    assert grids[0][1] == grids[1][1]
    assert grids[0][2][1] < 0.9 * grids[1][2][1] == 0.9 * grids[1][2][0]


def test_log_replays():
    grid = random_grid((8, 8, 8), 3)
    block, solver = boxes(grid), VacancyKMC(SYSTEM, MODEL)
    solver.log = []
    solver.advance(block, seed=7, hops=400)
    solver.advance(block, seed=7, until=solver.clock[0] + 20 * HOP)
    time = np.concatenate([events.time for events in solver.log[0]])
    hops = np.concatenate([events.hop for events in solver.log[0]])
    assert len(time) == solver.hops[0] > 400
    assert np.all(np.diff(time) > 0)
    tracers = Tracers(grid[0])
    tracers.follow([hops[:100], hops[100:]])
    np.testing.assert_array_equal(tracers.grid, block.spins()[0])
    # Every hop moves a vacancy and an atom against each other, and each ends where it is said to.
    assert np.array_equal(tracers.moved.sum(axis=0), [0, 0, 0])
    there = (np.argwhere(grid[0] >= 0) + tracers.moved) % 8
    np.testing.assert_array_equal(block.spins()[0][tuple(there.T)], tracers.species)
    assert tracers.mean_square(2)[0] > tracers.mean_square(2)[1] > 0
    with pytest.raises(InputError, match="hops"):
        Tracers(random_grid((8, 8, 8), 3, seed=5)[0]).follow(hops)


def test_a_lattice_without_vacancies_does_not_hang():
    block, solver = boxes(random_grid((8, 8, 8), 0)), VacancyKMC(SYSTEM, MODEL)
    assert solver.advance(block, seed=1, until=1.0) == 0
    assert solver.advance(block, seed=1, hops=10) == 0


def test_vacancies_never_swap_and_nothing_is_lost():
    grid = random_grid((8, 8, 8), 64)  # dense: they touch everywhere
    block, solver = boxes(grid), VacancyKMC(SYSTEM, MODEL)
    solver.advance(block, seed=1, hops=500)
    assert np.array_equal(np.bincount(block.spins().ravel() + 1), np.bincount(grid.ravel() + 1))
    assert bond_counts(block, 3).sum() == 8 * 64


def test_total_rates():
    block = boxes(random_grid((8, 8, 8), 4))
    flat = barriers.constant([1.0, 1.0])
    rates = total_rates(SYSTEM, flat, block)
    places = np.argwhere(block.spins()[0] == VACANCY)
    free = [sum(block.spins()[0][tuple((p + d) % 8)] > 0 for d in DIRECTIONS) for p in places]
    np.testing.assert_allclose(rates, np.array(free) * 1e13 * math.exp(-SYSTEM.beta), rtol=1e-13)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda b: (VacancyKMC(Alloy(T), MODEL), b), "barriers"),
        (lambda b: (VacancyKMC(SYSTEM, MODEL), boxes(random_grid((8,) * 3, 1), 3)), "halo"),
    ],
)
def test_bad_input(change, name: str):
    solver, block = change(boxes(random_grid((8, 8, 8), 1)))
    with pytest.raises(InputError, match=name):
        solver.advance(block, seed=1, hops=1)
    with pytest.raises(InputError, match="until"):
        VacancyKMC(SYSTEM, MODEL).advance(boxes(random_grid((8, 8, 8), 1)), seed=1)


# -- the tiled solver ----------------------------------------------------------------------


def split_law(
    pair: PairOnLattice, tile: tuple[int, int, int], window: float, steps: int, p: np.ndarray
) -> np.ndarray:
    """The law after steps of the symmetric product over classes of tiles."""
    cut = [axis for axis in range(3) if tile[axis] < pair.sides[axis]]
    parity = pair.points // np.array(tile) % 2
    factors = []
    for index in range(2 ** len(cut)):
        wanted = [index >> (len(cut) - 1 - k) & 1 for k in range(len(cut))]
        factors.append(pair.generator((parity[:, cut] == wanted).all(axis=1)))
    order = [*range(len(factors)), *reversed(range(len(factors) - 1))]
    for _ in range(steps):
        for index in order:
            share = 1.0 if index == len(factors) - 1 else 0.5
            p = expm_multiply(factors[index] * (share * window), p)
    return p


@pytest.mark.parametrize(
    ("sides", "tile"), [((12, 8, 8), (6, 8, 8)), ((8, 8, 12), (8, 8, 6)), ((12, 12, 8), (6, 6, 8))]
)
def test_tiled_law_is_the_product_of_exponentials(sides, tile):
    pair = PairOnLattice(sides, BASE, BONDS, T)
    v, a = near_boundary(pair)
    members, window, steps = 1500, 4 * HOP, 2
    block = boxes(pair.grids(np.full(members, v), np.full(members, a)))
    TiledKMC(SYSTEM, MODEL, window, tile).advance(block, steps, seed=8)
    p = np.zeros(pair.n**2)
    p[v * pair.n + a] = 1.0
    p = split_law(pair, tile, window, steps, p)
    for found, law in zip(counts_by_distance(pair, block), laws_by_distance(pair, p), strict=True):
        seen = law > 1e-12
        assert not found[~seen].any()
        require_law(found[seen], law[seen])


def test_window_error_is_of_second_order_and_equilibrium_exact():
    pair = PairOnLattice((12, 8, 8), BASE, BONDS, T)
    v, a = near_boundary(pair)
    p = np.zeros(pair.n**2)
    p[v * pair.n + a] = 1.0
    time = 4 * HOP
    exact = expm_multiply(pair.generator() * time, p)
    errors = [
        np.abs(split_law(pair, (6, 8, 8), time / n, n, p) - exact).sum() / 2 for n in (2, 4, 8, 16)
    ]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert errors[0] > 1e-3
    assert orders[-1] == pytest.approx(2.0, abs=0.1)
    gibbs = pair.gibbs().ravel()
    np.testing.assert_allclose(split_law(pair, (6, 8, 8), time, 1, gibbs), gibbs, atol=1e-15)


def test_tiled_stationary_law_is_gibbs_for_a_wide_window():
    pair = PairOnLattice((12, 8, 8), BASE, BONDS, T)
    v, a = near_boundary(pair)
    members = 700
    block = boxes(pair.grids(np.full(members, v), np.full(members, a)))
    TiledKMC(SYSTEM, MODEL, 100 * HOP, (6, 8, 8)).advance(block, 30, seed=9)
    law = laws_by_distance(pair, pair.gibbs())[0]
    found = counts_by_distance(pair, block)[0]
    require_law(found[law > 0], law[law > 0])


def tiled_run(
    comm: MPI.Intracomm,
    ranks_grid: tuple[int, int, int],
    tile: tuple[int, int, int],
    vacancies: int = 40,
    log: bool = False,
    device: str = "cpu",
    windows: float = 8.0,
    side: int = 24,
    steps: int = 5,
    model: barriers.Barriers = MODEL,
) -> tuple[np.ndarray, int, list]:
    """The whole lattice after a few steps, its hops, and this rank's log."""
    grid = random_grid((side,) * 3, vacancies, seed=11)
    layout = Layout(Lattice(grid.shape[1:]), ranks_grid, tile)
    block = Block.tile(layout, comm, halo=TiledKMC.halo)
    block.load(grid[(slice(None), *layout.slices(comm.rank))])
    solver = TiledKMC(SYSTEM, model, windows * HOP, tile, Device(device))
    solver.log = [] if log else None
    hops = solver.advance(block, 1, seed=10)
    hops = hops + solver.advance(block, steps - 1, seed=10, first_step=1)
    halo = block.array.copy()
    block.fill_halo()
    np.testing.assert_array_equal(block.array, halo)
    out = np.empty(grid.shape[1:], np.int8)
    for place, part in comm.allgather((layout.slices(comm.rank), block.spins()[0].copy())):
        out[place] = part
    assert np.array_equal(np.bincount(out.ravel() + 1), np.bincount(grid.ravel() + 1))
    return out, comm.allreduce(int(hops[0])), solver.log


@pytest.mark.mpi
@pytest.mark.parametrize("tile", [(6, 6, 6), (6, 12, 12), (6, 24, 24)])
@pytest.mark.parametrize("vacancies", [40, 3])
def test_same_bits_on_any_number_of_ranks(comm, tile, vacancies):
    """With 3 vacancies most ranks have none: they must not hang."""
    alone, hops, _ = tiled_run(MPI.COMM_SELF, (1, 1, 1), tile, vacancies)
    assert hops > 20 * vacancies
    grids = {1: [(1, 1, 1)], 2: [(2, 1, 1), (1, 1, 2)], 4: [(4, 1, 1), (2, 1, 2), (1, 2, 2)]}
    for grid in grids.get(comm.size, [(comm.size, 1, 1)]):
        if any(24 // t < n for t, n in zip(tile, grid, strict=True)):
            continue
        together, theirs, _ = tiled_run(comm, grid, tile, vacancies)
        np.testing.assert_array_equal(together, alone)
        assert theirs == hops


def test_tiled_log_replays():
    out, hops, log = tiled_run(MPI.COMM_SELF, (1, 1, 1), (6, 6, 12), log=True)
    tracers = Tracers(random_grid((24, 24, 24), 40, seed=11)[0])
    tracers.follow([events.hop for events in log])
    assert sum(len(events.hop) for events in log) == hops
    np.testing.assert_array_equal(tracers.grid, out)


@pytest.mark.kernel
@pytest.mark.mpi
@pytest.mark.skipif(not has_cuda(), reason="no CUDA device, no simulator")
@pytest.mark.parametrize("kind", ["pairwise", "network"])
def test_cuda_makes_the_same_hops(comm, kind, monkeypatch):
    """Dense, so that vacancies see each other; in several launches, and with rates known before."""
    monkeypatch.setattr(vacancy_cuda, "_KEPT", 3)
    tile, known = (6, 6, 12), MODEL
    if kind == "network":
        rng = np.random.default_rng(3)
        layers = [(rng.normal(0, 0.05, (112, 3)), np.zeros(3)), (np.ones((3, 1)), np.array([1.0]))]
        known = barrier_kernels.network(layers, np.array([[0], [1], [-1]]))
    some = {"vacancies": 6, "windows": 0.5, "side": 12, "steps": 2, "model": known, "log": True}
    alone, hops, log = tiled_run(MPI.COMM_SELF, (1, 1, 1), tile, **some)
    blocks, theirs, kept = tiled_run(comm, (comm.size, 1, 1), tile, device="cuda", **some)
    assert theirs == hops > 8
    np.testing.assert_array_equal(blocks, alone)
    rows, logged = (
        sorted((time, *hop.tolist()) for events in part for time, hop in zip(*events, strict=True))
        for part in (itertools.chain(*comm.allgather(kept)), log)
    )
    assert rows == logged


@pytest.mark.kernel
@pytest.mark.skipif(not has_cuda(), reason="no CUDA device, no simulator")
@pytest.mark.parametrize("part", ["own room", "room of all", "too many hops"])
def test_whole_steps_in_one_launch(part, monkeypatch):
    """Tiles that wait for their neighbours only, whichever block of threads is the fastest; the
    CPU's bits, too, if more vacancies or hops come together than there is room or time for."""
    some = {"own room": (3, 2**11), "room of all": (-3, 2**11), "too many hops": (3, 2)}[part]
    monkeypatch.setattr(vacancy_cuda, "BLOCKS", 3)
    monkeypatch.setattr(vacancy_cuda, "OWN", some[0])
    monkeypatch.setattr(tiled, "_STEPS", 3)
    monkeypatch.setattr(tiled, "STRETCH", some[1])
    launches, steps = [], vacancy_cuda.CudaTiles.steps
    monkeypatch.setattr(
        vacancy_cuda.CudaTiles,
        "steps",
        lambda self, *given: launches.append(steps(self, *given)) or launches[-1],
    )
    if part == "own room":
        simulator.blocks_at_once(monkeypatch, seed=5)
    grids = np.concatenate([random_grid((24, 12, 12), 8, seed=seed) for seed in (1, 2)])
    blocks = [boxes(grids) for _ in range(2)]
    hops = [
        TiledKMC(SYSTEM, MODEL, 0.5 * HOP, (6, 6, 12), Device(name)).advance(
            block, 4, seed=3, first_step=5
        )
        for block, name in zip(blocks, ("cpu", "cuda"), strict=True)
    ]
    np.testing.assert_array_equal(blocks[0].array, blocks[1].array)
    assert hops[0].min() > 20
    np.testing.assert_array_equal(*hops)
    made = [launch and launch[0] for launch in launches]
    assert made == ([None, None] if part == "too many hops" else [3, 1])


def test_random_walk_of_a_vacancy():
    """All barriers equal: <r^2> = 3 steps^2 a hop for the vacancy."""
    block = boxes(random_grid((8, 8, 8), 1))
    flat = barriers.constant([1.0, 1.0])
    squares = []
    for seed in range(400):
        solver, run = VacancyKMC(SYSTEM, flat), boxes(block.spins().copy())
        solver.log = []
        solver.advance(run, seed=seed, hops=40)
        tracers = Tracers(block.spins()[0])
        tracers.follow([events.hop for events in solver.log[0]])
        squares.append(tracers.mean_square(2)[0])
    error = np.std(squares) / 20.0
    assert np.mean(squares) == pytest.approx(120.0, abs=4 * error)


def test_tiles_of_whole_sides_are_the_serial_law():
    """One tile is the whole lattice: a step is the exact dynamics."""
    pair = PairOnLattice((8, 8, 8), BASE, BONDS, T)
    v, a = near_boundary(pair)
    members = 1500
    block = boxes(pair.grids(np.full(members, v), np.full(members, a)))
    TiledKMC(SYSTEM, MODEL, 4 * HOP, (8, 8, 8)).advance(block, 1, seed=12)
    p = np.zeros(pair.n**2)
    p[v * pair.n + a] = 1.0
    p = expm_multiply(pair.generator() * (4 * HOP), p)
    law = laws_by_distance(pair, p)[0]
    require_law(counts_by_distance(pair, block)[0][law > 0], law[law > 0])


@pytest.mark.parametrize("tile", [(4, 8, 8), (5, 8, 8), (8, 8, 8), (6, 8, 4), (24, 8, 8)])
def test_tiles_that_do_not_fit(tile):
    block = boxes(random_grid((12, 8, 8), 1))
    with pytest.raises(InputError, match="tile"):
        TiledKMC(SYSTEM, MODEL, HOP, tile).advance(block, 1, seed=1)


@pytest.mark.parametrize("window", [0.0, -1.0, math.inf, math.nan])
def test_bad_windows(window):
    with pytest.raises(InputError, match="window"):
        TiledKMC(SYSTEM, MODEL, window)
    with pytest.raises(InputError, match="window"):
        TiledKMC(SYSTEM, MODEL, None, (6, 8, 8)).advance(
            boxes(random_grid((12, 8, 8), 1)), 1, seed=1
        )
