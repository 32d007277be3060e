"""Scale-up on a device, one box a bit: the bits and the counts of the CPU."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from exact import has_cuda
from mpi4py import MPI

from mpiflow import observables
from mpiflow.core import gpu
from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.experiments import short_time
from mpiflow.learn.closure import equilibrium, lanes, plans
from mpiflow.learn.closure.dataset import DataPlan, PairData, generate_pairs
from mpiflow.scaleup import spins as scaleup
from mpiflow.solvers.spins.lane_block import LaneBlock
from mpiflow.systems.ising import Ising

Run = Callable[..., subprocess.CompletedProcess[str]]

SYSTEM = Ising(temperature=2.5, field=0.1)
#: Of two words, in disorder.
MEMBERS = np.array([70, 3, 64, 0, 5])

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator"),
]


@pytest.fixture
def on_device() -> Iterator[None]:
    with gpu.computing_on("cuda", MPI.COMM_SELF):
        yield


def lattices(count: int, *shape: int) -> np.ndarray:
    spins = np.array([-1, 1], np.int8)
    return np.random.default_rng(0).choice(spins, (count, *shape), p=[0.4, 0.6])


def test_windows_and_magnified_lattices() -> None:
    """Over the edges too; a window put back where it was, changed."""
    states = lattices(5, 4, 6)
    block = LaneBlock.periodic(states, MEMBERS, Device("cuda"))
    large = block.upsampled(3)
    assert np.array_equal(large.host(), Block.periodic(scaleup.upsample(states, 3), MEMBERS).host())
    for origin, policy in (((3, -2), "frozen"), ((2, 5), "wrap")):
        window = block.window(origin, (4, 2), policy)
        expected = Block.cut(states, origin, (4, 2), MEMBERS, policy=policy)
        assert np.array_equal(window.host(), expected.host())
    other = LaneBlock.periodic(-states, MEMBERS, Device("cuda"))
    other.put_back(window)
    other.fill_halo()
    pasted = -states
    expected.paste(pasted)
    assert np.array_equal(other.host(), Block.periodic(pasted, MEMBERS).host())
    block.take(other, np.array([1, 4]))
    states[[1, 4]] = pasted[[1, 4]]
    assert np.array_equal(block.spins(), states)


@pytest.mark.parametrize("buffer", [0, 1])
def test_patches_and_their_counts(buffer: int) -> None:
    """Cut from lattices in any order, some of them twice, with frames of their own."""
    states, of = lattices(5, 8, 12), np.array([4, 0, 4, 2, 1, 3])
    keys = np.array([200, 1, 64, 65, 0, 7])
    corners = np.array([[0, 0], [4, 8], [-2, 10], [6, 2], [0, 4], [4, 4]]) - buffer
    shape = (4 + 2 * buffer, 4 + 2 * buffer)
    boxes = LaneBlock.periodic(states, MEMBERS, Device("cuda")).cut(of, corners, shape, keys)
    expected = Block.cut(states[of], corners, shape, keys).host()
    assert np.array_equal(boxes.host(), expected)
    frame = boxes.copy()
    boxes.take(boxes.window((0, 0), shape), np.arange(6))  # lattices of another place
    after = boxes.host()
    framed = slice(buffer, buffer + 6)
    windows = after[:, framed, framed].copy()
    scaleup._copy_frames(expected[:, framed, framed], windows)
    for touching in (False, True):
        sums = boxes.sums(buffer, frame=frame, touching=touching)
        assert np.array_equal(sums, observables.patch_sums(windows, touching=touching))
    inner = np.ascontiguousarray(windows[:, 1:-1, 1:-1])
    assert np.array_equal(boxes.class_counts(4, buffer), observables.class_counts(inner, 4))


def test_counts_of_whole_lattices() -> None:
    """More sites in a row than are counted at once."""
    states, members = lattices(1, 70, 70), np.array([70])
    block = LaneBlock.periodic(states, members, Device("cuda"))
    whole = Block.periodic(states, members)
    assert np.array_equal(block.sums(), observables.spin_sums(whole))
    for patch in (70, 35):
        assert np.array_equal(block.class_counts(patch), observables.class_counts(states, patch))


@pytest.mark.usefixtures("on_device")
@pytest.mark.parametrize("halo", ["frozen", "wrap"])
def test_arrays_of_the_host(halo: str) -> None:
    """Windows that overlap, and patches with a buffer: the same arrays as on the CPU."""

    def made() -> tuple[np.ndarray, scaleup.Patches]:
        states = lattices(5, 8, 8)
        how = {"seed": 3, "halo": halo, "duration": 0.5, "dt": 0.5}
        scaleup.local_relax(states, MEMBERS, SYSTEM, window=4, stride=4, level=2, **how)
        buffer = 2 if halo == "frozen" else 0
        done = scaleup.partial_evolution(states, MEMBERS, SYSTEM, 4, buffer=buffer, **how)
        return states, done

    states, there = made()
    with gpu.computing_on("cpu", MPI.COMM_SELF):
        same, here = made()
    assert np.array_equal(states, same)
    assert not np.array_equal(states, lattices(5, 8, 8))
    for name in ("before", "after", "elapsed", "index"):
        assert np.array_equal(getattr(there, name), getattr(here, name)), name


PLANS = {
    "lattices": DataPlan(8, 4, 10, 2, small_time=2.0, relax=0.5, relax_dt=1.0),
    "windows": DataPlan(
        8, 4, 10, 1, small_time=1.0, relax=0.5, relax_dt=0.5, relaxation="windows", buffer=1
    ),
    "closed": DataPlan(4, 4, 10, 2, small_time=1.0, halo="wrap", dt=0.5),
}


@pytest.mark.usefixtures("on_device")
@pytest.mark.mpi
@pytest.mark.parametrize("name", PLANS)
def test_pairs_are_those_of_the_cpu(
    comm: MPI.Intracomm, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dealt to all ranks there, on one CPU here; states stop relaxing at different times."""
    few = name == "windows"  # which are many
    monkeypatch.setattr(plans, "GROWN_RELAX", (0.5,) if few else (0.5, 1.0))
    monkeypatch.setattr(plans, "RANDOM_RELAX", (0.0,) if few else (0.0, 0.5))
    plan = PLANS[name]
    assert lanes.fits(plan)
    there = generate_pairs(SYSTEM, plan, seed=5, comm=comm)
    if there is None:
        return
    with gpu.computing_on("cpu", MPI.COMM_SELF):
        here = generate_pairs(SYSTEM, plan, seed=5)
    assert here is not None
    for field in vars(PairData)["__dataclass_fields__"]:
        assert np.array_equal(getattr(there, field), getattr(here, field)), field


@pytest.mark.usefixtures("on_device")
def test_increments_of_equilibrium_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight repeats of four states, three at a time."""
    monkeypatch.setattr(equilibrium, "PAIRS", 12)

    def made() -> equilibrium.Pairs:
        states = lattices(4, 8, 8)
        how = {"patch": 4, "repeats": 8, "duration": 0.25, "seed": 2}
        return equilibrium.evolve(SYSTEM, states, kind="partial", **how)  # type: ignore[arg-type]

    there = made()
    with gpu.computing_on("cpu", MPI.COMM_SELF):
        here = made()
    for name, values in vars(here).items():
        assert np.array_equal(getattr(there, name), values), name


@pytest.mark.usefixtures("on_device")
def test_increments_of_short_times_are_those_of_the_cpu() -> None:
    """By the plain kernel; buffers that are thrown away."""

    def made() -> short_time.Increments:
        around, steps = short_time.Surroundings("frozen", 1), [(0.25, 1), (0.5, 1)]
        members = np.array([2**40, 3])
        return short_time.patch_increments(lattices(2, 6, 6), members, SYSTEM, 2, around, steps, 1)

    there = made()
    with gpu.computing_on("cpu", MPI.COMM_SELF):
        here = made()
    assert all(np.array_equal(a, b) for a, b in zip(there, here, strict=True))
    assert any(a.any() for a in here)


@pytest.mark.validate
def test_two_ranks_in_the_simulator(mpirun: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are cut otherwise than members are dealt."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    suite = "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__
    done = mpirun(2, *suite, "-m", "mpi and kernel", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_what_stays_on_the_cpu() -> None:
    """Exact events, patches of odd sides, lattices too large for lanes; boxes of two colours."""
    for other in (
        DataPlan(8, 4, flips=3), DataPlan(10, 5), DataPlan(128, 16), DataPlan(8, 4, buffer=50)
    ):  # fmt: skip
        assert not lanes.fits(other)
    states = lattices(3, 4, 4)
    with pytest.raises(InputError, match=r"^members=281474976710656"):
        LaneBlock.periodic(states, np.array([0, 1, 2**48]), Device("cuda"))
    with pytest.raises(InputError, match=r"^origins="):
        block = LaneBlock.periodic(states, np.arange(3), Device("cuda"))
        block.cut(np.arange(2), np.array([[0, 0], [0, 1]]), (3, 3), np.arange(2))
