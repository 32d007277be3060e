"""The simulation: the same bits on any number of ranks, times, ensembles, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from exact import bonds, has_cuda, magnetizations
from mpi4py import MPI

from mpiflow import initial
from mpiflow.block import Block
from mpiflow.errors import InputError
from mpiflow.lattice import factorisations
from mpiflow.simulation import Frame, Simulation
from mpiflow.solvers.nfold import NFold
from mpiflow.solvers.sublattice import Sublattice
from mpiflow.systems.ising import Ising

HOT = Ising(2.5, 0.1)
needs_cuda = pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")


def alone(system: Ising = HOT, size: Any = 16, **options: Any) -> Simulation:
    """A simulation on this rank only, half magnetised."""
    sim = Simulation(system, size, comm=MPI.COMM_SELF, **options)
    sim.set_spins(initial.shuffled, magnetization=0.5)
    return sim


def same(a: Frame, b: Frame) -> bool:
    """Every number equal to the last bit."""
    return a.time == b.time and all(
        np.array_equal(values, b.scalars()[name]) for name, values in a.scalars().items()
    )


# -- any number of ranks ---------------------------------------------------------------------

CASES = [
    (HOT, 60, 0.25, 2),
    (HOT, 50, 0.25, 1),  # tiles of odd sides and odd offsets
    (HOT, (26, 44), math.inf, 2),
    (Ising(1.5, -0.2), (18, 30), 1.0, 3),
    (Ising(2.0, 0.05, coupling=-1.0), 24, 0.1, 1),
]


@pytest.mark.mpi
@pytest.mark.parametrize(("system", "size", "dt", "granularity"), CASES, ids=str)
@pytest.mark.parametrize("start", [initial.shuffled, initial.uniform_up])
def test_same_bits_on_any_number_of_ranks(
    comm: MPI.Intracomm, system: Ising, size: Any, dt: float, granularity: int, start: Any
) -> None:
    """All spins and all observables equal those of a run on one rank."""
    reference = Simulation(system, size, dt=dt, seed=11, comm=MPI.COMM_SELF)
    reference.set_spins(start)
    every = 2 * reference.solver.time_per_step
    expected = list(reference.frames(4 * every, every))
    whole = reference.gather()
    assert whole is not None
    assert expected[-1].flips[0] > 0
    for grid in factorisations(comm.size, 2):
        sim = Simulation(
            system, size, dt=dt, seed=11, comm=comm, granularity=granularity, ranks_grid=grid
        )
        sim.set_spins(start)
        frames = list(sim.frames(4 * every, every))
        assert len(frames) == len(expected)
        assert all(same(a, b) for a, b in zip(frames, expected, strict=True)), grid
        assert np.array_equal(sim.spins(), whole[(slice(None), *sim.local_box())])
        gathered = sim.gather()
        assert (gathered is None) == (comm.rank > 0)
        assert gathered is None or np.array_equal(gathered, whole)


@pytest.mark.mpi
@pytest.mark.parametrize("solver", ["sublattice", "nfold"])
@pytest.mark.parametrize("members", [2, 3, 40])
def test_ensembles_do_not_depend_on_the_ranks(
    comm: MPI.Intracomm, solver: Any, members: int
) -> None:
    """Also with more ranks than members, and with few or many on a rank."""
    options: dict[str, Any] = {"solver": solver, "members": members, "seed": 3}
    reference = alone(size=(8, 10), **options)
    sim = Simulation(HOT, (8, 10), comm=comm, **options)
    sim.set_spins(initial.shuffled, magnetization=0.5)
    expected, frames = list(reference.frames(2.0, 0.5)), list(sim.frames(2.0, 0.5))
    mine = sim.local_members
    assert len(frames) == len(expected) == 5
    for a, b in zip(frames, expected, strict=True):
        assert a.time == b.time
        for name, values in a.scalars().items():
            assert np.array_equal(values, b.scalars()[name][mine])
    whole, gathered = reference.gather(), sim.gather()
    assert whole is not None
    assert np.array_equal(sim.spins(), whole[mine])
    assert comm.rank or np.array_equal(gathered, whole)


@pytest.mark.parametrize("solver", ["sublattice", "nfold"])
def test_a_member_is_the_single_lattice_of_its_number(solver: Any) -> None:
    ensemble = alone(size=12, members=20, seed=5, solver=solver)
    ensemble.advance(3.0)
    single = alone(size=12, seed=5, solver=solver)
    single.advance(3.0)
    assert np.array_equal(ensemble.spins()[0], single.spins()[0])
    layout = single.block.layout
    assert layout is not None
    for member in (1, 19):
        block = Block.tile(layout, MPI.COMM_SELF, member=member)
        initial.shuffled(block, seed=5, magnetization=0.5)
        if solver == "nfold":
            flips = NFold(HOT).advance(block, seed=5, until=3.0)
        else:
            flips = Sublattice(HOT, 0.25).advance(block, 12, seed=5)
        assert np.array_equal(ensemble.spins()[member], np.asarray(block.inner())[0])
        assert ensemble.flips[member] == flips[0]


@pytest.mark.mpi
def test_a_patch_with_a_wide_margin_equals_the_full_run(comm: MPI.Intracomm) -> None:
    """Partial evolution in a wide buffer is the run itself, over the periodic edge too."""
    sim = Simulation(HOT, 40, dt=0.5, seed=9, comm=comm)
    sim.set_spins(initial.shuffled, magnetization=0.2)
    before = comm.bcast(sim.gather())
    sim.advance(1.5)
    after = comm.bcast(sim.gather())
    margin, patch = 2 * 3 + 1, 6  # one site for each pass
    for origin in ((3, 5), (36, 38), (0, 17)):
        block = Block.cut(before, np.array(origin) - margin, (patch + 2 * margin,) * 2, range(1))
        Sublattice(HOT, 0.5).advance(block, 3, seed=9)
        rows, columns = ((o + np.arange(patch)) % 40 for o in origin)
        inner = np.asarray(block.inner())[0, margin:-margin, margin:-margin]
        assert np.array_equal(inner, after[0][np.ix_(rows, columns)])


@pytest.mark.mpi
@pytest.mark.parametrize("members", [1, 3])
def test_boxes_and_coarse_sums_fit_the_whole(comm: MPI.Intracomm, members: int) -> None:
    sim = Simulation(HOT, (24, 36), members=members, comm=comm, granularity=3)
    sim.set_spins(initial.shuffled)
    sim.advance(0.5)
    whole = comm.bcast(sim.gather())
    assert whole.shape == (members, 24, 36)
    coarse = whole.reshape(members, 8, 3, 12, 3).sum((2, 4))
    box = (sim.local_members, *sim.local_box(3))
    assert np.array_equal(sim.coarse_sums(3), coarse[box])
    assert np.array_equal(sim.spins(), whole[(sim.local_members, *sim.local_box())])


@pytest.mark.kernel
@needs_cuda
@pytest.mark.parametrize("members", [1, 2])
def test_same_bits_on_cuda(members: int) -> None:
    sims = [alone(size=4, dt=0.5, members=members, device=device) for device in ("cpu", "cuda")]
    frames = [list(sim.frames(1.0, 0.5)) for sim in sims]
    assert all(same(a, b) for a, b in zip(*frames, strict=True))
    assert np.array_equal(sims[0].spins(), sims[1].spins())


# -- times and frames -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "time", "every", "times"),
    [
        ({"dt": 0.25}, 1.0, 0.5, [0, 0.5, 1]),
        ({"dt": 0.25}, 1.25, 0.5, [0, 0.5, 1, 1.25]),
        ({"dt": 0.1}, 0.7, 0.1, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]),
        ({"dt": 0.25}, 0.5, 2.0, [0, 0.5]),
        ({"dt": 0.25}, 0.0, 1.0, [0]),
        ({"dt": math.inf}, 5, 2, [0, 2, 4, 5]),
        ({"solver": "nfold"}, 1.0, 0.3, [0, 0.3, 0.6, 0.9, 1.0]),
        ({"solver": "nfold"}, 0.0, 0.3, [0]),
    ],
)
def test_times_of_frames(
    options: dict[str, Any], time: float, every: float, times: list[float]
) -> None:
    sim = alone(**options)
    assert [frame.time for frame in sim.frames(time, every)] == pytest.approx(times, rel=1e-12)
    assert sim.time == pytest.approx(time, rel=1e-12)
    # Going on starts from here.
    more = [frame.time for frame in sim.frames(time, every)]
    assert more == pytest.approx([time + t for t in times], rel=1e-12)


def test_frames_hold_the_observables_of_the_spins() -> None:
    sim = alone(Ising(2.2, 0.3, coupling=0.5), (10, 12), members=4)
    flips = np.zeros(4, np.int64)
    before = sim.spins().copy()
    for frame in sim.frames(1.0, 0.25):
        now = sim.spins()
        assert np.array_equal(frame.magnetization, magnetizations(now) / 120)
        energy = (-0.5 * bonds(now) - 0.3 * magnetizations(now)) / 120
        assert np.array_equal(frame.energy, energy)
        assert np.array_equal(frame.domain_wall_density, 0.5 - bonds(now) / 480)
        changed = (now != before).sum((1, 2))
        more = frame.flips - flips
        assert (more >= changed).all()
        assert ((more - changed) % 2 == 0).all()  # a spin that flips twice is back
        flips, before = frame.flips.copy(), now.copy()
    assert (flips > 0).all()
    assert set(frame.scalars()) == {"magnetization", "energy", "domain_wall_density", "flips"}


def test_a_frame_does_not_change_afterwards() -> None:
    sim = alone(members=2)
    frames = list(sim.frames(2.0, 0.5))
    assert (np.diff([frame.flips for frame in frames], axis=0) > 0).all()


def test_long_runs_keep_their_steps() -> None:
    """Late frames still fall on whole steps: no error from rounded times after 10^8 steps."""
    sim = alone(size=2, dt=0.1)
    sim.step = 10**8
    sim.time = sim.step * 0.1
    assert [frame.time for frame in sim.frames(0.3, 0.1)] == [0.1 * (10**8 + i) for i in range(4)]
    assert sim.step == 10**8 + 3


def test_sweeps_count_one_unit_of_time() -> None:
    sim = alone(dt=math.inf)
    sim.advance(3)
    assert (sim.time, sim.step) == (3.0, 3)


def test_a_run_is_its_seed() -> None:
    runs = [alone(seed=seed) for seed in (1, 1, 2)]
    for sim in runs:
        sim.advance(1.0)
    assert np.array_equal(runs[0].spins(), runs[1].spins())
    assert not np.array_equal(runs[0].spins(), runs[2].spins())


def test_initial_states_get_the_seed_of_the_simulation() -> None:
    sim = Simulation(HOT, 16, seed=8, comm=MPI.COMM_SELF)
    sim.set_spins(initial.independent, magnetization=0.3)
    block = Block.periodic(np.zeros((1, 16, 16), np.int8), np.arange(1))
    initial.independent(block, seed=8, magnetization=0.3)
    assert np.array_equal(sim.spins(), np.asarray(block.inner()))
    sim.set_spins(initial.independent, seed=9, magnetization=0.3)
    assert not np.array_equal(sim.spins(), np.asarray(block.inner()))
    sim.set_spins(initial.uniform_up)
    assert (sim.spins() == 1).all()


def test_nfold_frames_do_not_depend_on_how_often_one_looks() -> None:
    often, rarely = (alone(size=(5, 7), solver="nfold", seed=4) for _ in range(2))
    last = [list(sim.frames(4.0, every))[-1] for sim, every in ((often, 0.125), (rarely, 4.0))]
    assert same(*last)
    assert np.array_equal(often.spins(), rarely.spins())


# -- impossible input -----------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 15}, r"^size=.*even number of sites.*\(16, 16\)"),
        ({"size": 1}, r"^size="),
        ({"dt": 0.0}, r"^dt="),
        ({"dt": -1.0}, r"^dt="),
        ({"members": 0}, r"^members=0"),
        ({"solver": "metropolis"}, r"^solver='metropolis'.*sublattice"),
        ({"seed": -1}, r"^seed=-1"),
        ({"granularity": 3}, r"^coarse=3.*\[1, 2, 4, 8, 16\]"),
        ({"granularity": 0}, r"^coarse=0"),
        ({"granularity": 3, "members": 4}, r"^coarse=3"),
        ({"ranks_grid": (7, 3)}, r"^ranks_grid=\(7, 3\).*a grid of"),
        ({"ranks_grid": (1,)}, r"^ranks_grid="),
        ({"device": "tpu"}, r"^device='tpu'"),
    ],
    ids=str,
)
def test_impossible_options_stop_every_rank(
    comm: MPI.Intracomm, options: dict[str, Any], message: str
) -> None:
    chosen = {"size": 16, "comm": comm} | options
    with pytest.raises(InputError, match=message):
        sim = Simulation(HOT, chosen.pop("size"), **chosen)
        sim.set_spins(initial.shuffled)


@pytest.mark.mpi
def test_more_ranks_than_tiles(comm: MPI.Intracomm) -> None:
    if comm.size > 1:
        with pytest.raises(InputError, match=rf"^ranks={comm.size}.*at most 1 tiles"):
            Simulation(HOT, 16, granularity=16, comm=comm)
        with pytest.raises(InputError, match=r"^ranks=.*1 rank per lattice"):
            Simulation(HOT, 16, solver="nfold", comm=comm)
    Simulation(HOT, 16, solver="nfold", members=8, comm=comm)


@pytest.mark.parametrize("duration", [-1.0, math.inf, math.nan, 0.3, 0.1])
def test_impossible_durations(duration: float) -> None:
    sim = alone(dt=0.25)
    with pytest.raises(InputError, match=r"^time="):
        sim.advance(duration)
    with pytest.raises(InputError, match=r"^time="):
        list(sim.frames(duration, 0.25))
    with pytest.raises(InputError, match=r"^save_every="):
        list(sim.frames(1.0, duration))
    assert sim.time == 0.0


def test_the_named_duration_works() -> None:
    sim = alone(dt=0.1)
    with pytest.raises(InputError, match=r"Use 0\.4") as caught:
        sim.advance(0.43)
    sim.advance(float(str(caught.value).split("Use ")[1].split(",")[0]))
    assert sim.step == 4


@pytest.mark.parametrize("solver", ["sublattice", "nfold"])
def test_frames_need_an_interval(solver: Any) -> None:
    with pytest.raises(InputError, match=r"^save_every=0"):
        list(alone(solver=solver).frames(1.0, 0.0))


def test_odd_lattices_are_for_the_n_fold_way() -> None:
    sim = alone(size=(5, 9), solver="nfold")
    sim.advance(2.0)
    assert sim.flips[0] > 0
