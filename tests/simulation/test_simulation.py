"""The simulation: the same bits on any number of ranks, times, ensembles, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from exact import P_FLOOR, Z_CEILING, bonds, energies, gibbs, has_cuda, magnetizations, states
from kaufman import CRITICAL, kaufman_energy, strip
from mpi4py import MPI
from scipy.stats import t, ttest_ind

from mpiflow import initial
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, factorisations
from mpiflow.core.packed import PackedBlock
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.simulation.spins.simulation import Frame
from mpiflow.solvers.spins.nfold import NFold
from mpiflow.solvers.spins.sublattice import Sublattice
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
    assert expected[-1].flips > 0
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


@pytest.mark.parametrize(
    ("kernel", "size"), [("plain", (12, 10)), ("packed", (8, 128)), ("nfold", (12, 10))]
)
def test_a_member_is_the_single_lattice_of_its_number(kernel: Any, size: tuple[int, int]) -> None:
    options: dict[str, Any] = {"solver": "nfold"} if kernel == "nfold" else {"kernel": kernel}
    ensemble = alone(size=size, members=20, seed=5, **options)
    ensemble.advance(3.0)
    single = alone(size=size, seed=5, **options)
    single.advance(3.0)
    assert ensemble.kernel == single.kernel == kernel
    assert np.array_equal(ensemble.spins()[0], single.spins()[0])
    layout = single.block.layout
    assert layout is not None
    for member in (1, 19):
        tile = PackedBlock.tile if kernel == "packed" else Block.tile
        block: Any = tile(layout, MPI.COMM_SELF, member=member)
        initial.shuffled(block, seed=5, magnetization=0.5)
        if kernel == "nfold":
            flips = NFold(HOT).advance(block, seed=5, until=3.0)
        else:
            flips = Sublattice(HOT, 0.25).advance(block, 12, seed=5)
        assert np.array_equal(ensemble.spins()[member], block.spins()[0])
        assert ensemble.flips[member] == flips[0]


@pytest.mark.parametrize("kernel", ["packed", "sliced", "plain"])
def test_a_member_does_not_depend_on_the_others(kernel: Any) -> None:
    """More members than bits in a word, fewer, and other ones."""
    many, few = (alone(size=(8, 128), members=n, seed=6, kernel=kernel) for n in (70, 3))
    for sim in (many, few):
        sim.advance(1.5)
    assert np.array_equal(many.spins()[:3], few.spins())
    assert np.array_equal(many.flips[:3], few.flips)
    assert len(np.unique(many.spins().reshape(70, -1), axis=0)) == 70


@pytest.mark.parametrize("kernel", ["packed", "sliced", "plain"])
def test_a_rank_without_members_has_nothing_to_do(kernel: str) -> None:
    block: Any = Block.periodic(np.zeros((0, 8, 128), np.int8), np.arange(0))
    if kernel == "packed":
        block = PackedBlock.periodic(Lattice((8, 128)), np.arange(0))
    solver = Sublattice(HOT, 0.25, plain=kernel == "plain")
    assert solver.kernel_for(block) == kernel
    assert solver.advance(block, 3, seed=0).shape == (0,)


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
        Sublattice(HOT, 0.5, plain=True).advance(block, 3, seed=9)
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


@pytest.mark.parametrize(
    ("kernel", "size", "members"),
    [("packed", (16, 128), 1), ("packed", (8, 128), 3), ("sliced", (10, 12), 4),
     ("plain", (10, 12), 1), ("plain", (10, 12), 4), ("nfold", (10, 12), 1)],
)  # fmt: skip
def test_frames_hold_the_observables_of_the_spins(
    kernel: Any, size: tuple[int, int], members: int
) -> None:
    model, sites = Ising(2.2, 0.3, coupling=0.5), size[0] * size[1]
    options: dict[str, Any] = {"solver": "nfold"} if kernel == "nfold" else {"kernel": kernel}
    sim = alone(model, size, members=members, **options)
    assert sim.kernel == kernel
    flips = np.zeros(members, np.int64)
    before = sim.spins().copy()
    for frame in sim.frames(1.0, 0.25):
        now, found = sim.spins(), frame.scalars()
        assert np.array_equal(found["magnetization"], magnetizations(now) / sites)
        energy = (-0.5 * bonds(now) - 0.3 * magnetizations(now)) / sites
        assert np.array_equal(found["energy"], energy)
        assert np.array_equal(found["domain_wall_density"], 0.5 - bonds(now) / (4 * sites))
        assert np.array_equal(found["flips"], sim.flips)
        changed = (now != before).sum((1, 2))
        more = found["flips"] - flips
        assert ((more - changed) % 2 == 0).all()  # a spin that flips twice is back
        flips, before = found["flips"], now.copy()
    assert (flips > 0).all()
    assert set(frame.scalars()) == {"magnetization", "energy", "domain_wall_density", "flips"}


def test_a_frame_does_not_change_afterwards() -> None:
    sim = alone(members=2)
    frames = list(sim.frames(2.0, 0.5))
    assert (np.diff([frame.flips for frame in frames], axis=0) > 0).all()


def test_long_runs_keep_their_steps() -> None:
    """Late frames still fall on whole steps, at times as they are typed, after 10^8 steps."""
    sim = alone(size=2, dt=0.1)
    sim.step = 10**8
    sim.time = sim.step * 0.1
    # 0.1 * (10**8 + 2) is 10000000.200000001.
    assert [frame.time for frame in sim.frames(0.3, 0.1)] == [1e7, 1e7 + 0.1, 1e7 + 0.2, 1e7 + 0.3]
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


EVERY_KERNEL = [
    pytest.param({"kernel": "packed", "size": (16, 128)}, id="packed"),
    pytest.param({"kernel": "packed", "size": (8, 256), "members": 3}, id="packed members"),
    pytest.param({"kernel": "sliced", "size": (8, 10), "members": 3}, id="sliced"),
    pytest.param({"kernel": "plain", "size": (8, 10)}, id="plain"),
    pytest.param({"kernel": "plain", "size": (8, 10), "members": 3}, id="plain members"),
    pytest.param({"solver": "nfold", "size": (5, 7)}, id="nfold"),
    pytest.param({"solver": "tiled-nfold", "size": (32, 32), "tile": 16}, id="tiled-nfold"),
]


@pytest.mark.parametrize("options", EVERY_KERNEL)
@pytest.mark.parametrize("dt", [0.25, math.inf])
def test_a_run_does_not_depend_on_how_often_one_looks(options: dict[str, Any], dt: float) -> None:
    """Frames rarely, often, never, or twice at the same time: the same state at each time."""
    if math.isinf(dt) and "kernel" not in options:
        return
    options = options | {"dt": dt, "seed": 4}
    often, rarely, never = (alone(**options) for _ in range(3))
    unit = 0.25 if math.isfinite(dt) else 1.0
    frames = [list(often.frames(16 * unit, unit)), list(rarely.frames(16 * unit, 8 * unit))]
    for frame, other in zip(frames[0][::8], frames[1], strict=True):
        assert same(frame, other)
    for _ in range(4):
        never.advance(4 * unit)
    assert same(never.measure(), frames[0][-1])
    assert same(never.measure(), never.measure())
    assert np.array_equal(often.spins(), rarely.spins())
    assert np.array_equal(often.spins(), never.spins())
    for sim in (often, rarely, never):  # and go on from there
        sim.advance(3 * unit)
    assert np.array_equal(often.spins(), never.spins())
    assert np.array_equal(often.spins(), rarely.spins())
    assert np.array_equal(often.flips, never.flips)


@pytest.mark.parametrize("options", EVERY_KERNEL)
def test_spins_may_be_set_in_the_middle(options: dict[str, Any]) -> None:
    """Looked at before or not: the run goes on from the new spins, with this time's noise."""
    sims = [alone(**options, seed=4) for _ in range(3)]
    sims[0].advance(1.0)
    sims[1].advance(1.0)
    sims[1].measure()
    sims[2].advance(0.5)
    sims[2].measure()
    sims[2].advance(0.5)
    for sim in sims:
        sim.set_spins(initial.shuffled, magnetization=-0.2)
        assert np.array_equal(sim.spins(), alone_with(sim, options))
        assert sim.time == 1.0
    flips = sims[0].flips.copy()
    for sim in sims:
        sim.advance(0.5)
    for sim in sims[1:]:
        assert np.array_equal(sim.spins(), sims[0].spins())
    assert (sims[0].flips > flips).all()
    fresh = alone(**options, seed=4)
    fresh.set_spins(initial.shuffled, magnetization=-0.2)
    fresh.advance(0.5)
    assert not np.array_equal(fresh.spins(), sims[0].spins())  # other noise


def alone_with(sim: Simulation, options: dict[str, Any]) -> np.ndarray:
    """The spins that set_spins was to set."""
    other = alone(**options, seed=4)
    other.set_spins(initial.shuffled, magnetization=-0.2)
    return other.spins().copy()


@pytest.mark.parametrize("kernel", ["packed", "sliced", "plain"])
def test_the_state_is_a_copy_that_does_not_disturb_the_run(kernel: Any) -> None:
    options: dict[str, Any] = {"size": (8, 128), "members": 2, "kernel": kernel, "seed": 7}
    sim, other = alone(**options), alone(**options)
    assert sim.present is sim.block  # nothing has been done yet
    for each in (sim, other):
        each.advance(1.0)
    state = sim.present
    assert state is not sim.block
    assert sim.present is state
    assert np.array_equal(state.spins(), sim.spins())
    black = np.add.outer(np.arange(8), np.arange(128)) % 2 == 0
    assert np.array_equal(state.spins()[:, ~black], sim.block.spins()[:, ~black])
    assert not np.array_equal(state.spins()[:, black], sim.block.spins()[:, black])
    sim.advance(1.0)
    other.advance(1.0)
    assert np.array_equal(sim.spins(), other.spins())
    sweeps = alone(**options | {"dt": math.inf})
    sweeps.advance(2.0)
    assert sweeps.present is sweeps.block


# -- the law ------------------------------------------------------------------------------------

KERNELS = ["packed", "sliced", "plain"]
EVERY_KERNEL = pytest.mark.parametrize("kernel", [*KERNELS, "whole"], indirect=True)


def ensemble(kernel: Any, model: Ising, dt: float, members: int, **options: Any) -> Simulation:
    """Many lattices of 8 x 128 sites, all up."""
    sim = Simulation(
        model, (8, 128), dt=dt, members=members, kernel=kernel, comm=MPI.COMM_SELF, **options
    )
    assert sim.kernel == kernel
    sim.set_spins(initial.uniform_up)
    return sim


def test_the_references_of_strips() -> None:
    """Kaufman's formula and the transfer matrix against all states of small tori."""
    for shape in ((4, 4), (2, 4), (4, 3), (2, 6)):
        sites, every = shape[0] * shape[1], states(shape)
        for temperature, field, coupling in (
            (CRITICAL, 0.0, 1.0), (3.0, 0.0, 1.0), (1.5, 0.1, 1.0), (2.2, 0.2, -1.0)
        ):  # fmt: skip
            law = gibbs(shape, temperature, field, coupling)
            ours = strip(shape, temperature, field, coupling)
            energy = law @ energies(every, field, coupling) / sites
            total = magnetizations(every)
            assert ours.energy == pytest.approx(energy, abs=1e-9)
            assert ours.magnetization == pytest.approx(law @ total / sites, abs=1e-8)
            assert ours.squared == pytest.approx(law @ total**2 / sites**2, abs=1e-7)
            if field == 0.0:
                assert kaufman_energy(shape, temperature) == pytest.approx(energy, abs=1e-8)
    assert kaufman_energy((128, 128), CRITICAL) == pytest.approx(-1.41908, abs=5e-6)
    assert kaufman_energy((8, 128), CRITICAL) == pytest.approx(strip((8, 128), CRITICAL).energy)


@EVERY_KERNEL
@pytest.mark.parametrize("dt", [0.25, math.inf])
@pytest.mark.parametrize("model", [Ising(2.7), Ising(2.5, 0.1)], ids=["no field", "field"])
def test_every_kernel_has_the_exact_law(kernel: Any, dt: float, model: Ising) -> None:
    """Energy, magnetisation and its square of 8 x 128 sites, from the transfer matrix.

    Time averages of independent members, after three relaxation times and more.
    """
    members, sweeps = 64, (300, 900) if dt < 1 else (300, 2700)
    sim = ensemble(kernel, model, dt, members, seed=13)
    sim.advance(sweeps[0])
    frames: list[Frame] = []
    for _ in range(sweeps[1] // 3):
        sim.advance(3.0)
        frames.append(sim.measure())
    exact = strip((8, 128), model.temperature, model.field)
    magnetization = np.array([frame.magnetization for frame in frames])
    seen = {
        "energy": (np.mean([frame.energy for frame in frames], 0), exact.energy, 2.5e-3),
        "magnetization": (magnetization.mean(0), exact.magnetization, 1e-2),
        "squared": ((magnetization**2).mean(0), exact.squared, 4e-3),
    }
    for name, (values, expected, largest) in seen.items():
        error = values.std(ddof=1) / math.sqrt(members)
        assert error < largest, name
        p = 2 * t.sf(abs(values.mean() - expected) / error, members - 1)
        assert p > P_FLOOR, (name, values.mean(), error, expected)


@EVERY_KERNEL
@pytest.mark.parametrize("dt", [0.25, 1.0])
def test_spins_without_coupling_relax_exactly(kernel: Any, dt: float) -> None:
    r"""m(t) = m + (1 - m) e^-t at every step, and flips at the rate 2 r+ r- / (r+ + r-) at last.

    The flips of a pass are those from its start to its end.
    """
    field, temperature, members = 0.4, 1.5, 1024
    sim = ensemble(kernel, Ising(temperature, field, coupling=0.0), dt, members, seed=14)
    m = math.tanh(field / temperature)
    sites = members * 1024
    for i in range(5):
        frame = sim.measure()
        expected = m + (1 - m) * math.exp(-i * dt)
        error = math.sqrt(max(1 - expected**2, 1e-9) / sites)
        assert abs(frame.magnetization.mean() - expected) < Z_CEILING * error
        sim.advance(dt)
    sim.advance(20.0)
    before, flips, steps = sim.spins().copy(), sim.flips.copy(), 4
    sim.advance(steps * dt)
    now = sim.spins()
    correlation = (before.astype(np.int64) * now).mean()
    expected = m**2 + (1 - m**2) * math.exp(-steps * dt)
    assert abs(correlation - expected) < Z_CEILING / math.sqrt(sites)
    # Half of the sites are white; black passes are cut by the looks, alike at both ends.
    rate = steps * (1 - math.exp(-dt)) * (1 - m**2) / 2
    assert (sim.flips - flips).sum() / sites == pytest.approx(
        rate, abs=Z_CEILING * math.sqrt(2 * rate / sites)
    )


@pytest.mark.parametrize("dt", [0.25, math.inf])
def test_all_kernels_relax_alike(dt: float) -> None:
    """Energy and magnetisation after one, two and five steps from all up, pair by pair."""
    members, sims = 256, []
    for seed, kernel in enumerate(KERNELS):
        sims.append(ensemble(kernel, Ising(2.4, -0.1), dt, members, seed=seed))
    for steps in (1, 1, 3):
        frames = []
        for sim in sims:
            sim.advance(steps * sim.solver.time_per_step)
            frames.append(sim.measure())
        for a, b in ((0, 1), (0, 2), (1, 2)):
            for name in ("energy", "magnetization", "flips"):
                values = frames[a].scalars()[name], frames[b].scalars()[name]
                assert ttest_ind(*values).pvalue > P_FLOOR, (KERNELS[a], KERNELS[b], name)


# -- which kernel ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "options", "kernel"),
    [
        ((8, 128), {}, "packed"),
        (256, {}, "packed"),
        ((8, 128), {"members": 2}, "packed"),
        ((8, 128), {"kernel": "packed"}, "packed"),
        ((8, 128), {"kernel": "plain"}, "plain"),
        ((8, 128), {"kernel": "plain", "members": 2}, "plain"),
        ((8, 128), {"kernel": "sliced", "members": 2}, "sliced"),
        ((12, 128), {}, "packed"),
        (64, {}, "packed"),
        ((64, 62), {}, "plain"),
        ((6, 128), {}, "plain"),
        (62, {"members": 2}, "sliced"),
        (64, {"members": 255}, "packed"),
        (64, {"members": 256}, "sliced"),
        (100, {"members": 256}, "packed"),
        (64, {"members": 2, "kernel": "sliced"}, "sliced"),
        ((8, 128), {"solver": "nfold"}, "nfold"),
        ((128, 128), {"solver": "tiled-nfold"}, "tiled-nfold"),
    ],
)
def test_the_kernel_follows_from_the_size(size: Any, options: dict[str, Any], kernel: str) -> None:
    sim = Simulation(HOT, size, comm=MPI.COMM_SELF, **options)
    assert sim.kernel == kernel
    assert kernel in sim.describe()
    assert isinstance(sim.block, PackedBlock) == (kernel == "packed")
    assert sim.dt == (None if kernel == "nfold" else 0.25)


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (62, {"kernel": "packed"}, r"^size=\(62, 62\).*8 rows and 64 columns"),
        ((6, 128), {"kernel": "packed"}, r"^size=\(6, 128\)"),
        ((8, 128), {"kernel": "sliced"}, r"^kernel='sliced'.*several members"),
        (192, {"kernel": "sliced", "members": 2}, r"^kernel='sliced'.*several members"),
        (64, {"kernel": "fast"}, r"^kernel='fast'.*'packed'"),
    ],
)
def test_kernels_that_do_not_fit(size: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Simulation(HOT, size, comm=MPI.COMM_SELF, **options)


@pytest.mark.mpi
def test_packed_tiles_are_whole_words(comm: MPI.Intracomm) -> None:
    """Coarse blocks of any size and all grids; too many ranks say so on every rank."""
    for granularity in (1, 3, 16):
        sim = Simulation(HOT, (48 * comm.size, 384), comm=comm, granularity=granularity)
        assert sim.kernel == "packed"
        for box, unit in zip(sim.local_box(), (8, 128), strict=True):
            assert box.start % math.lcm(unit, granularity) == 0
        # Fewer bands than ranks: then any even row will do.
        few = Simulation(HOT, (4 * comm.size + 2, 100), comm=comm) if comm.size > 1 else sim
        assert few.kernel == "packed"
        assert few.local_box()[0].start % 2 == 0
        sim.set_spins(initial.shuffled)
        whole = comm.bcast(sim.gather())
        coarse = whole[0].reshape(
            whole.shape[1] // granularity, granularity, 384 // granularity, granularity
        )
        mine = coarse.sum((1, 3))[sim.local_box(granularity)]
        assert np.array_equal(sim.coarse_sums(granularity)[0], mine)
    if comm.size > 1:
        with pytest.raises(InputError, match=rf"^ranks={comm.size}.*kernel='plain'"):
            Simulation(HOT, (8, 128), comm=comm, granularity=8)
        with pytest.raises(InputError, match=r"^ranks_grid=.*kernel='plain'"):
            Simulation(HOT, (8 * comm.size, 128), comm=comm, ranks_grid=(1, comm.size))
    assert Simulation(HOT, (8, 128), comm=comm, kernel="plain").kernel == "plain"


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
