"""The simulation of alloys: same bits on any number of ranks, times, ensembles, bad input."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact import has_cuda
from mpi4py import MPI

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import factorisations
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.simulation.alloy.barrier_model import load_barrier_model
from mpiflow.simulation.alloy.layout import default_tile
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.simulation.alloy.state import AlloyFrame
from mpiflow.solvers.vacancy import window_choice
from mpiflow.solvers.vacancy.hop_log import Tracers
from mpiflow.solvers.vacancy.tiled import TiledKMC
from mpiflow.systems import alloy, barriers
from mpiflow.systems.alloy import ATTEMPT_FREQUENCY, Alloy, is_site
from mpiflow.systems.barriers import Barriers

SYSTEM = Alloy(2000.0)
BONDS = np.zeros((4, 4))
BONDS[1:, 1:] = [[0.0, -0.05, 0.05], [-0.05, 0.08, -0.1], [0.05, -0.1, 0.05]]
BONDS[0, 1:] = BONDS[1:, 0] = [0.03, -0.03, 0.05]
PAIRWISE = barriers.pairwise([1.0, 1.1, 0.9], BONDS)
CONSTANT = barriers.constant([1.0, 1.0, 1.0])
#: So high that no vacancy ever hops.
STUCK = barriers.constant([200.0, 200.0, 200.0])
#: Mean time between hops of a vacancy over barriers of 1 eV, in s.
HOP = math.exp(SYSTEM.beta) / (8 * ATTEMPT_FREQUENCY)


def made(
    comm: MPI.Intracomm = MPI.COMM_SELF,
    cells: Any = 8,
    vacancies: int = 8,
    model: Barriers = PAIRWISE,
    **options: Any,
) -> AlloySimulation:
    """A simulation in a random state."""
    sim = AlloySimulation(SYSTEM, model, cells, comm=comm, **{"seed": 5} | options)
    sim.set_species(random_alloy, counts=counts_of(sim.sites, vacancies))
    return sim


def tiled(
    comm: MPI.Intracomm = MPI.COMM_SELF, cells: Any = 12, vacancies: int = 12, **options: Any
) -> AlloySimulation:
    given: dict[str, Any] = {"tile": 6, "window": 4 * HOP} | options
    return made(comm, cells, vacancies, solver="tiled", **given)


def same(a: AlloyFrame, b: AlloyFrame) -> bool:
    """Every number equal to the last bit."""
    return a.time == b.time and all(
        np.array_equal(values, b.scalars()[name]) for name, values in a.scalars().items()
    )


def whole(sim: AlloySimulation) -> np.ndarray:
    """All grids, on every rank."""
    return np.asarray(sim.comm.bcast(sim.gather()))


# -- any number of ranks ---------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("vacancies", [40, 2])
def test_same_bits_on_any_number_of_ranks(comm: MPI.Intracomm, vacancies: int) -> None:
    """All sites and all observables equal those on one rank; with 2 vacancies most ranks idle."""
    reference = tiled(vacancies=vacancies)
    every = 2 * reference.solver.time_per_step
    expected = list(reference.frames(4 * every, every))
    assert expected[-1].hops > 5 * vacancies
    for grid in factorisations(comm.size, 3):
        sim = tiled(comm, vacancies=vacancies, ranks_grid=grid)
        frames = list(sim.frames(4 * every, every))
        assert len(frames) == len(expected) == 5
        assert all(same(a, b) for a, b in zip(frames, expected, strict=True)), grid
        gathered = sim.gather()
        assert (gathered is None) == (comm.rank > 0)
        assert np.array_equal(whole(sim), reference.gather())
        assert comm.allreduce(sim.local_hops) == expected[-1].hops


@pytest.mark.mpi
def test_same_bits_with_the_default_barriers(comm: MPI.Intracomm) -> None:
    """A network, not a table; in slabs, whose sites are stretches of all sites in C order."""
    model = load_barrier_model("default").parameters
    options: dict[str, Any] = {"model": model, "vacancies": 30, "window": None}
    reference, sim = tiled(**options), tiled(comm, **options)
    assert sim.choose_windows().last == reference.choose_windows().last
    expected, frames = list(reference.frames(4e-9, 2e-9)), list(sim.frames(4e-9, 2e-9))
    assert all(same(a, b) for a, b in zip(frames, expected, strict=True))
    assert expected[-1].hops > 100
    sites = reference.species()
    assert sites.shape == (1, 2 * 12**3)
    assert np.array_equal(sim.species(), sites[:, sim.local_sites()])
    assert np.array_equal(whole(sim)[:, is_site((24,) * 3)], sites)


@pytest.mark.mpi
@pytest.mark.parametrize("members", [2, 3, 7])
@pytest.mark.parametrize("solver", ["serial", "tiled"])
def test_ensembles_do_not_depend_on_the_ranks(
    comm: MPI.Intracomm, solver: Any, members: int
) -> None:
    """Also with more ranks than members."""
    options: dict[str, Any] = {"members": members, "cells": (4, 6, 4), "vacancies": 2}
    if solver == "tiled":
        options |= {"solver": solver, "tile": (8, 6, 8), "window": 4 * HOP}
    reference, sim = made(**options), made(comm, **options)
    expected, frames = (list(s.frames(20 * HOP, 8 * HOP)) for s in (reference, sim))
    mine = sim.local_members
    assert [frame.time for frame in frames] == [frame.time for frame in expected]
    assert len(frames) == 4
    for a, b in zip(frames, expected, strict=True):
        for name, values in a.scalars().items():
            assert np.array_equal(values, b.scalars()[name][mine])
    assert np.array_equal(sim.species(), reference.species()[mine])
    assert np.array_equal(whole(sim), reference.gather())
    assert sim.local_sites() == slice(0, sim.sites)
    assert sim.numbers().tolist() == list(counts_of(sim.sites, 2))


@pytest.mark.parametrize("solver", ["serial", "tiled"])
def test_a_member_depends_on_its_number_alone(solver: str) -> None:
    options: dict[str, Any] = {"cells": (4, 6, 4), "vacancies": 2}
    if solver == "tiled":
        options |= {"solver": solver, "tile": (8, 6, 8), "window": 4 * HOP}
    one, few, many = (made(**options, members=n) for n in (1, 3, 9))
    for sim in (one, few, many):
        sim.advance(40 * HOP)
    assert np.array_equal(one.species(), many.species()[:1])
    assert np.array_equal(few.species(), many.species()[:3])
    assert np.array_equal(few.measure().hops, many.measure().hops[:3])
    assert len(np.unique(many.species(), axis=0)) == 9


def test_the_first_window_has_two_hops_of_a_vacancy() -> None:
    """All barriers are equal, so the rate is known exactly where vacancies do not touch."""
    sim = tiled(model=CONSTANT, vacancies=1, window=None)
    assert sim.choose_windows().last == pytest.approx(2 * HOP, rel=1e-6)  # barriers are float32
    assert sim.choose_windows(4.0).last == pytest.approx(4 * HOP, rel=1e-6)


# -- times and hops -----------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["serial", "tiled"])
@pytest.mark.parametrize(
    ("time", "every", "times"),
    [(8, 4, [0, 4, 8]), (20, 8, [0, 8, 16, 20]), (4, 8, [0, 4]), (12, 12, [0, 12])],
)
def test_frames_now_every_so_often_and_at_the_end(
    solver: str, time: int, every: int, times: list[int]
) -> None:
    sim = tiled() if solver == "tiled" else made()
    frames = list(sim.frames(time * HOP, every * HOP))
    np.testing.assert_allclose([frame.time for frame in frames], np.array(times) * HOP, rtol=1e-12)
    assert sim.time == frames[-1].time
    later = list(sim.frames(4 * HOP, 4 * HOP))
    assert same(later[0], frames[-1])
    assert later[-1].time == pytest.approx((times[-1] + 4) * HOP)


def test_a_frame_holds_the_state_in_force_at_its_time() -> None:
    """That after the last hop before it, found again from the log of all hops."""
    sim = made(cells=4, vacancies=2)
    sim.solver.log = []
    start, states, frames = sim.block.spins()[0].copy(), [], []
    for frame in sim.frames(30 * HOP, 3 * HOP):
        frames.append(frame)
        states.append(sim.species()[0].copy())
    (logs,) = sim.solver.log
    times = np.concatenate([log.time for log in logs])
    hops = np.concatenate([log.hop for log in logs])
    assert len(times) == frames[-1].hops > 30
    for frame, state in zip(frames, states, strict=True):
        before = times <= frame.time
        tracers = Tracers(start)
        tracers.follow([hops[before]])
        assert before.sum() == frame.hops
        assert np.array_equal(tracers.grid[is_site(start.shape)], state)


@pytest.mark.parametrize("solver", ["serial", "tiled"])
def test_how_the_time_is_cut_changes_nothing(solver: str) -> None:
    sims = [tiled() if solver == "tiled" else made() for _ in range(3)]
    sims[0].advance(24 * HOP)
    for part in (4, 12, 8):
        sims[1].advance(part * HOP)
    for _ in sims[2].frames(24 * HOP, 4 * HOP):
        sims[2].gather()  # looking at it does not change it
    for sim in sims[1:]:
        assert np.array_equal(sim.species(), sims[0].species())
        assert sim.measure().hops == sims[0].measure().hops
        assert sim.time == pytest.approx(sims[0].time, rel=1e-12)


def test_the_serial_solver_stops_at_exactly_so_many_hops() -> None:
    sim = made()
    frames = list(sim.frames_by_hops(100, 30))
    assert [int(frame.hops) for frame in frames] == [0, 30, 60, 90, 100]
    times = [frame.time for frame in frames]
    assert times[0] == 0.0
    assert np.all(np.diff(times) > 0)
    # The clock stands at the last hop: from there on, hops and times are the same run.
    more = list(sim.frames_by_hops(20, 20))
    assert [int(frame.hops) for frame in more] == [100, 120]
    other = made()
    other.advance(more[-1].time)
    assert np.array_equal(other.species(), sim.species())
    assert other.measure().hops == 120


@pytest.mark.mpi
def test_the_tiled_solver_stops_at_the_end_of_the_window(comm: MPI.Intracomm) -> None:
    sim = tiled(comm)
    frames = list(sim.frames_by_hops(500, 100))
    hops = [int(frame.hops) for frame in frames]
    assert hops[0] == 0
    assert hops[-1] >= 500
    assert np.all(np.diff(hops) > 0)
    steps = np.array([frame.time for frame in frames]) / (4 * HOP)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    before = tiled(comm)
    before.advance(frames[-1].time - 4 * HOP)
    assert before.measure().hops < 500
    # Rare frames where a window has more hops than lie between two.
    few = list(tiled(comm, window=100 * HOP).frames_by_hops(1000, 1))
    assert len({frame.time for frame in few}) == len(few) < 10
    assert few[-1].hops >= 1000


def test_time_does_not_go_back_to_a_hop() -> None:
    sim = made()
    sim.advance(10 * HOP)
    made_so_far = int(sim.measure().hops)
    for hops in (made_so_far, 1, 0):
        sim.advance_hops(hops)
        assert sim.time == 10 * HOP
        assert sim.measure().hops == made_so_far
    sim.advance_hops(made_so_far + 1)
    assert sim.time > 10 * HOP


def test_nothing_happens_where_nothing_can_hop() -> None:
    for sim in (made(model=STUCK), tiled(model=STUCK)):
        before = sim.species().copy()
        sim.advance(400 * HOP)
        assert np.array_equal(sim.species(), before)
        with pytest.raises(InputError, match="no vacancy can hop any more"):
            sim.advance_hops(5)


# -- observables and reports ------------------------------------------------------------------


def test_scalars_are_functions_of_the_bonds() -> None:
    sim = made(members=3)
    sim.advance(20 * HOP)
    frame, scalars = sim.measure(), sim.measure().scalars()
    assert list(scalars) == ["sro", "warren_cowley", "long_range_order", "bonds", "hops"]
    assert [v.shape for v in scalars.values()] == [(3, 6), (3, 6), (3, 3), (3, 4, 4), (3,)]
    assert frame.bonds.sum(axis=(1, 2)).tolist() == [8 * 512] * 3
    species = sim.species()
    counts = [np.bincount(row, minlength=4) for row in species]
    assert np.array_equal(alloy.species_numbers(frame.bonds), counts)
    grid = np.asarray(sim.gather())[1]
    like = sum(
        ((grid[::2, ::2, ::2] == 2) & (np.roll(grid, step, (0, 1, 2))[::2, ::2, ::2] == 2)).sum()
        for step in alloy.DIRECTIONS
    )
    assert scalars["sro"][1, 3] == pytest.approx(2 * like / counts[1][2] - 8 / 3)


@pytest.mark.mpi
def test_gather_and_places_of_sites(comm: MPI.Intracomm) -> None:
    sim = tiled(comm)
    everything = sim.gather(root=comm.size - 1)
    assert (everything is None) == (comm.rank < comm.size - 1)
    grid = comm.bcast(everything, root=comm.size - 1)
    assert grid.shape == (1, 24, 24, 24)
    assert grid.dtype == np.int8
    sites = grid[0][is_site((24, 24, 24))]
    assert np.array_equal(sim.species()[0], sites[sim.local_sites()])
    assert sim.local_members == slice(0, 1)
    assert np.bincount(sites).tolist() == list(counts_of(2 * 12**3, 12)) == sim.numbers().tolist()


def test_what_a_simulation_says_of_itself() -> None:
    assert made(vacancies=1).describe() == "1024 sites of 8 x 8 x 8 cells, 2000 K, serial, 1 rank"
    assert made(members=3, cells=(4, 5, 6)).describe() == (
        "3 lattices of 240 sites of 4 x 5 x 6 cells, 2000 K, serial, 1 rank"
    )
    text = tiled(window=1e-9).describe()
    assert text == (
        "3456 sites of 12 x 12 x 12 cells, 2000 K, tiles of 6 x 6 x 6 points, "
        "window 1e-09 s, 1 rank"
    )
    assert "windows of about 2 hops of a vacancy" in tiled(window=None).describe()


@pytest.mark.mpi
def test_the_load_of_every_rank(comm: MPI.Intracomm) -> None:
    """Also of ranks without vacancies, which do nothing."""
    sim = tiled(comm, vacancies=2)
    assert ("ranks" in sim.describe()) == (comm.size > 1)
    sim.advance(40 * HOP)
    hops = int(sim.measure().hops)
    text = sim.load()
    if comm.rank > 0:
        assert text == ""
        return
    title, *rows = text.splitlines()
    assert title.split() == ["rank", "hops", "looks", "evaluations", "seconds", "waiting"]
    assert [int(row.split()[0]) for row in rows] == list(range(comm.size))
    assert sum(float(row.split()[1]) for row in rows) == hops > 20
    serial = made()
    serial.advance(40 * HOP)
    row = serial.load().splitlines()[1].split()
    assert int(row[1]) == serial.measure().hops
    assert int(row[2]) >= int(row[3]) > 0


def test_lost_atoms_are_noticed() -> None:
    sim = made()
    sim.measure()
    sim.block.array[0, 7, 7, 7] = 1 + sim.block.array[0, 7, 7, 7] % 3
    sim.block.fill_halo()
    with pytest.raises(RuntimeError, match="atoms were lost"):
        sim.measure()
    sim.set_species(random_alloy, counts=counts_of(sim.sites, 3))  # a new state, new numbers
    sim.measure()


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name", "says"),
    [
        ({"cells": 3}, "cells", "4 or more"),
        ({"cells": (8, 8)}, "cells", "three axes"),
        ({"cells": (8, 8, 3)}, "cells", "4 or more"),
        ({"members": 0}, "members", "1 or more"),
        ({"solver": "exact"}, "solver", "'serial', 'absorbing' or 'tiled'"),
        ({"window": HOP}, "window", "serial"),
        ({"tile": 8}, "tile", "serial"),
        ({"device": "cuda"}, "device", "serial"),
        ({"solver": "tiled", "tile": 4}, "tile", "8 or 16"),
        ({"solver": "tiled", "tile": (8, 8, 6)}, "tile", "8 or 16"),
        ({"solver": "tiled", "tile": 8, "members": 2, "cells": (6, 8, 8)}, "tile", "6 or 12"),
        ({"solver": "tiled", "tile": 0}, "tile", "8 or 16"),
        ({"solver": "tiled", "tile": -8}, "tile", "8 or 16"),
        ({"solver": "tiled", "window": 0.0}, "window", "above 0"),
        ({"solver": "tiled", "window": math.nan}, "window", "finite"),
        ({"ranks_grid": (2, 1, 1)}, "ranks_grid", "a grid of 1 ranks"),
        ({"ranks_grid": (1, 1), "solver": "tiled"}, "ranks_grid", "3 positive numbers"),
        ({"model": barriers.constant([1.0, 1.0])}, "barriers", "a model of 3"),
        ({"model": barriers.constant([1.0] * 2), "solver": "tiled"}, "barriers", "a model of 3"),
    ],
)
def test_simulations_that_cannot_be(options: dict[str, Any], name: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        made(**options)
    assert caught.value.name == name
    assert says in str(caught.value)


@pytest.mark.kernel
@pytest.mark.skipif(not has_cuda(), reason="no CUDA device, no simulator")
def test_cuda_chooses_the_same_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two lattices, with windows that are taken back, and from one advance to the next."""
    monkeypatch.setattr(window_choice, "LIMIT", 0.1)
    taken, take_back = [], TiledKMC.take_back
    monkeypatch.setattr(
        TiledKMC, "take_back", lambda *given: taken.append(given) or take_back(*given)
    )
    options: dict[str, Any] = {"cells": 6, "vacancies": 4, "members": 2, "tile": (6, 12, 12)}
    one, other = (tiled(window=None, device=device, **options) for device in ("cpu", "cuda"))
    for sim in (one, other):
        for end in (0.4 * HOP, 0.6 * HOP):
            sim.advance(end - sim.time)
    assert len(taken) > 1
    assert one.choice is not None
    assert other.choice is not None
    np.testing.assert_array_equal(one.block.array, other.block.array)
    assert one.choice.numbers() == other.choice.numbers()
    assert one.local_hops == other.local_hops > 2


@pytest.mark.mpi(min_size=2)
def test_a_lattice_of_the_serial_solver_has_one_rank(comm: MPI.Intracomm) -> None:
    with pytest.raises(InputError, match="ranks=.*serial solver"):
        made(comm)
    with pytest.raises(InputError, match=f"ranks_grid=.*a grid of {comm.size} ranks"):
        tiled(comm, ranks_grid=(1, 1, 1))
    # Tiles of whole sides cannot be cut.
    with pytest.raises(InputError, match=r"ranks=.*at most \(1, 1, 1\) ranks.*smaller tiles"):
        tiled(comm, tile=24)
    with pytest.raises(InputError, match=r"ranks_grid=.*at most \(4, 1, 1\) ranks"):
        tiled(comm, tile=(6, 24, 24), ranks_grid=(1, 1, comm.size))
    sim = tiled(comm, ranks_grid=(1, 1, comm.size))
    with pytest.raises(InputError, match="slabs along x"):
        sim.local_sites()


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("time", "every", "name"),
    [
        (10 * HOP, 4 * HOP, "time"),
        (8 * HOP, 6 * HOP, "save_every"),
        (8 * HOP, 0, "save_every"),
        (8 * HOP, 1e-3 * HOP, "save_every"),
        (-4 * HOP, 4 * HOP, "time"),
        (math.inf, 4 * HOP, "time"),
        (math.nan, 4 * HOP, "time"),
    ],
)
def test_times_that_are_no_whole_windows(
    comm: MPI.Intracomm, time: float, every: float, name: str
) -> None:
    sim = tiled(comm)
    with pytest.raises(InputError) as caught:
        next(sim.frames(time, every))
    assert caught.value.name == name
    assert sim.time == 0.0


@pytest.mark.parametrize("duration", [-HOP, math.nan, math.inf])
def test_durations_that_are_none(duration: float) -> None:
    for sim in (made(), tiled()):
        with pytest.raises(InputError, match="time"):
            sim.advance(duration)
        assert sim.time == 0.0


def test_windows_that_cannot_be_chosen() -> None:
    for sim, says in (
        (made(), "without a window"),
        (tiled(model=STUCK, window=None), "vacancies that can hop"),
    ):
        with pytest.raises(InputError, match=says):
            sim.choose_windows()


@pytest.mark.parametrize(("hops", "every"), [(0, 1), (-3, 1), (10, 0), (10, -1)])
def test_numbers_of_hops_that_are_none(hops: int, every: int) -> None:
    with pytest.raises(InputError, match="above 0"):
        next(made().frames_by_hops(hops, every))


def test_members_have_no_common_number_of_hops() -> None:
    sim = made(members=2)
    with pytest.raises(InputError, match="clocks differ"):
        next(sim.frames_by_hops(10, 5))
    with pytest.raises(InputError, match="clocks differ"):
        sim.advance_hops(10)


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((16, 16, 16), (8, 16, 16)),
        ((24, 24, 24), (12, 24, 24)),
        ((64, 128, 40), (16, 128, 40)),
        ((8, 10, 14), (8, 10, 14)),
        ((12, 8, 96), (6, 8, 96)),
        ((40, 40, 40), (20, 40, 40)),
    ],
)
def test_default_tiles(shape: tuple[int, int, int], tile: tuple[int, int, int]) -> None:
    """Slabs near 16 points along x, an even number of times in the side, or all of it."""
    assert default_tile(shape) == tile


# -- against the published program ------------------------------------------------------------

#: NbMoTa at 2000 K in equilibrium, from 15 runs of the published program, and standard errors.
STATIONARY = np.array([-0.062, 0.169, -0.116, -0.649, 0.469, -0.347])
STATIONARY_ERROR = np.array([0.009, 0.008, 0.005, 0.016, 0.011, 0.009])


@pytest.mark.validate
@pytest.mark.timeout(3000)
def test_short_range_order_is_that_of_the_published_program(shared_dir: Path) -> None:
    """The published barriers, from random states of 1024 sites: on the way, and in the end."""
    weights = shared_dir / "reference" / "nnk" / "weights.npy"
    table = shared_dir / "reference" / "alloy_kmc_sro_2000K.csv"
    for path in (weights, table):
        if not path.is_file():
            pytest.skip(f"no {path}")
    model = load_barrier_model(weights, "paper")  # as that program reads them
    members = 100
    sim = made(cells=8, vacancies=1, members=members, model=model.parameters, seed=1)
    frames = {}
    for time in (1.0, *np.arange(3.0, 5.01, 0.25)):  # in 1e-6 s
        sim.advance(1e-6 * time - sim.time)
        frames[time] = sim.measure().scalars()["sro"]
    with table.open() as file:
        rows = {
            round(1e6 * float(row["kmc_time_s"]), 6): row
            for row in csv.DictReader(file)
            if row["init"] == "random"
        }
    pairs = alloy.pair_names(SYSTEM.elements)
    for time in (1.0, 5.0):
        mean, std = (
            np.array([float(rows[time][f"{kind}_{pair}"]) for pair in pairs])
            for kind in ("mean", "std")
        )
        ours = frames[time]
        error = np.hypot(ours.std(axis=0, ddof=1) / np.sqrt(members), std / np.sqrt(6))
        z = (ours.mean(axis=0) - mean) / error
        print(f"{time} us: {ours.mean(axis=0)}, z = {z}")
        assert np.all(np.abs(z) < 3), (time, z)
    late = np.mean([sro for time, sro in frames.items() if time >= 3.0], axis=0)
    error = np.hypot(late.std(axis=0, ddof=1) / np.sqrt(members), STATIONARY_ERROR)
    z = (late.mean(axis=0) - STATIONARY) / error
    print(f"in the end: {late.mean(axis=0)}, z = {z}")
    assert np.all(np.abs(z) < 3), z
