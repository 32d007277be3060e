"""The packed kernel: the bits that its documentation says, on any ranks, threads and devices;
the right frequencies, independent noise, and the exact law."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import variants
from exact import (
    P_FLOOR,
    Z_CEILING,
    chi_square,
    has_cuda,
    neighbour_sums,
    onsager_energy,
    onsager_magnetization,
    threefry,
)
from kaufman import CRITICAL, kaufman_energy
from mpi4py import MPI
from scipy.stats import chi2, t

from mpiflow import initial
from mpiflow.commands.bench import spins as bench
from mpiflow.core import device, messages, noise
from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, factorisations
from mpiflow.core.packed import CUT, PackedBlock, cut_of, runs_on
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.simulation.lattice import cut
from mpiflow.simulation.spins.simulation import Frame
from mpiflow.solvers.spins import multispin, multispin_cuda, multispin_whole, sublattice
from mpiflow.solvers.spins.bitplanes import PLANES, Thresholds, _sfc64, count_neighbours
from mpiflow.solvers.spins.sublattice import Kind, Run, Sublattice
from mpiflow.systems.ising import Ising

Mpirun = Callable[..., subprocess.CompletedProcess[str]]

HOT = Ising(2.5, 0.1)
SEED = 2**62 + 5

needs_cuda = pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
on_each_device = pytest.mark.parametrize(
    "where", ["cpu", pytest.param("cuda", marks=[pytest.mark.kernel, needs_cuda])]
)


def random_spins(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


def filled(spins: np.ndarray, members: np.ndarray | None = None, where: str = "cpu") -> PackedBlock:
    """Periodic lattices (B, ny, nx)."""
    members = np.arange(len(spins)) if members is None else members
    block = PackedBlock.periodic(Lattice(spins.shape[1:]), members, device=Device(where))
    block.store(slice(0, spins.shape[1]), spins)
    block.fill_halo()
    return block


def colours(shape: tuple[int, ...]) -> np.ndarray:
    return np.add.outer(np.arange(shape[0]), np.arange(shape[1])) % 2


# -- a second time, from the documentation ---------------------------------------------------------


def documented_words(seed: int, member: int, number: int, band: int, word: int) -> np.ndarray:
    """The draws of a stream by numpy's sfc64, eight rows of PLANES words each."""
    key = (seed, 2**48 + member)
    a, b = threefry(key, (number | 1 << 60, band << 32 | word))
    c, _ = threefry(key, (number | 2 << 60, band << 32 | word))
    generator = np.random.SFC64(0)
    state = generator.state
    state["state"]["state"] = np.array([a, b, c, 1], np.uint64)
    generator.state = state
    return generator.random_raw(8 * PLANES).reshape(8, PLANES)


def documented_flips(
    spins: np.ndarray, number: int, solver: Sublattice, how: Kind, seed: int, member: int
) -> np.ndarray:
    """Which sites (ny, nx) change in a pass: have a number below the threshold of their class
    where spins flip, or are not what it sets them to in a full sweep."""
    ny, nx = spins.shape
    colour = number % 2
    one = 1 << (PLANES + 64)
    sets = math.isinf(solver.dt)
    chances = solver.system.up_probabilities() if sets else solver.probabilities(how)
    thresholds = [min(int(Fraction(p) * one), one - 1) for p in chances.tolist()]
    # Neighbours opposite to the spin, and 5 more for an up spin.
    kind = (4 - spins * neighbour_sums(spins)) // 2 + 5 * (spins > 0)
    if sets:  # neighbours that are up
        kind = (4 + neighbour_sums(spins)) // 2
    out = np.zeros(spins.shape, bool)
    words: dict[tuple[int, int], np.ndarray] = {}
    runs_on = nx % 128 != 0 and nx < 512 and nx * ny <= 2**20
    for y, j in np.ndindex(ny, nx // 2):
        x = 2 * j + (colour + y) % 2
        line, at = y, j
        if runs_on:  # lines of sixteen words, in the order of sites
            line, at = divmod(y * nx // 2 + j, 1024)
        stream = line // 8, at // 64
        if stream not in words:
            words[stream] = documented_words(seed, member, number, *stream)
        draws, bit = words[stream][line % 8], at % 64
        value = sum((int(draws[i]) >> bit & 1) << i for i in range(PLANES))
        threshold = thresholds[kind[y, x]]
        if value == threshold >> 64:
            key, counter = (seed, 2**48 + member), (number | 3 << 60, y << 32 | x)
            rest, _ = threefry(key, counter)
            out[y, x] = rest < threshold % 2**64
        else:
            out[y, x] = value < threshold >> 64
        out[y, x] ^= sets and spins[y, x] > 0
    return out


def documented_steps(
    solver: Sublattice, spins: np.ndarray, first: int, steps: int, seed: int, member: int
) -> int:
    """Whole steps in place as the module of the solver describes them; returns flips."""
    finite, last = math.isfinite(solver.dt), 2 * (first + steps)
    flips = 0
    for number in range(2 * first, last):
        kind: Kind = "opening" if finite and number == 2 * first else "full"
        number += 2**59 if kind == "opening" else 0
        change = documented_flips(spins, number, solver, kind, seed, member)
        spins[change] *= -1
        flips += int(change.sum())
    if finite:
        low, high = (
            documented_flips(spins, last, solver, kind, seed, member) for kind in ("lower", "upper")
        )
        assert not (low & ~high).any()
        spins[high & ~low] *= -1
        flips += int((high & ~low).sum())
    return flips


@pytest.mark.parametrize("dt", [0.25, math.inf])
@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        ((8, 128), 3),
        ((16, 256), 2),
        ((8, 128 * 131), 1),
        ((8 * 130, 128), 1),
        ((10, 64), 3),
        ((22, 330), 2),
        ((8 * 22 + 4, 128 * 6 - 2), 1),
    ],
    ids=[
        "8x128",
        "16x256",
        "more words than a chunk",
        "more bands than a chunk",
        "half a word",
        "part of the last word and band",
        "two chunks, all but a site of the last word",
    ],
)
def test_steps_equal_the_plain_reference(
    dt: float, shape: tuple[int, int], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams, planes, residual, merged passes, looks and flips, written again.

    Where rows are short: of the kernel for whole lattices, and of that for all others.
    """
    solver, first = Sublattice(Ising(2.2, 0.15), dt), 5
    members = np.array([7]) if shape[0] * shape[1] > 10_000 else np.array([0, 2**48 - 1])
    before = random_spins(1, len(members), *shape)
    found = []
    for short in {multispin_whole.fits(filled(before)), filled(before).runs_on}:
        monkeypatch.setattr(multispin_whole, "fits", lambda block, whole=short: whole)
        block = filled(before, members)
        found.append((block, solver.advance(block, steps, seed=SEED, first_step=first)))
        words = [words.copy() for words in block.words]
        block.fill_halo()
        assert all(map(np.array_equal, block.words, words))
    for b, member in enumerate(members.tolist()):
        expected = before[b].copy()
        count = documented_steps(solver, expected, first, steps, SEED, member)
        for block, flips in found:
            assert np.array_equal(block.spins()[b], expected)
            assert flips[b] == count > 0


def test_kernel_of_whole_lattices_takes_short_rows_that_stay_in_the_cache() -> None:
    for shape, whole in (
        ((8, 64), True),
        ((768, 768), True),
        ((8, 770), False),
        ((2**15, 64), False),
    ):
        block = PackedBlock.periodic(Lattice(shape), np.arange(1))
        assert multispin_whole.fits(block) == whole, shape


@on_each_device
@pytest.mark.parametrize("columns", [166, 514], ids=["rows run on", "rows of words"])
@pytest.mark.parametrize("kind", ["opening", "full", "upper", "lower"])
def test_each_kind_of_pass_equals_the_plain_reference(where: str, kind: Kind, columns: int) -> None:
    """Also every member's own noise and, where it may be, the other colour."""
    solver = Sublattice(Ising(1.9, -0.2), 0.6)
    members = np.array([3, 70])
    before = random_spins(2, 2, 12, columns)
    numbers = [6, 7] if kind in ("opening", "full") else [6]
    for number in numbers:
        block = filled(before, members, where)
        flips = solver._apply(block, [Run(kind, number, solver.system)], SEED, "sublattice")
        for b, member in enumerate(members.tolist()):
            change = documented_flips(before[b], number, solver, kind, SEED, member)
            assert np.array_equal(block.spins()[b] != before[b], change)
            assert flips[b] == (-1 if kind == "lower" else 1) * change.sum()


def test_sfc64_known_answers() -> None:
    """Against numpy's, from the same state and counter."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b, c, count = (np.uint64(n) for n in rng.integers(0, 2**64, 4, np.uint64))
        generator = np.random.SFC64(0)
        state = generator.state
        state["state"]["state"] = np.array([a, b, c, count])
        generator.state = state
        for expected in generator.random_raw(20):
            word, a, b, c = (np.uint64(n) for n in _sfc64(a, b, c, count))
            count = np.uint64((int(count) + 1) % 2**64)
            assert word == expected


def test_counting_neighbours() -> None:
    for case in range(16):
        words = [np.uint64(-(case >> i & 1) % 2**64) for i in range(4)]
        digits = [int(word) & 1 for word in count_neighbours(*words)]
        assert digits[0] + 2 * digits[1] + 4 * digits[2] == case.bit_count()


def test_normal_form_of_the_thresholds() -> None:
    """The terms of each plane give back every class's threshold."""
    probabilities = np.random.default_rng(1).random(10)
    thresholds = Thresholds.of(probabilities.tolist())
    for c in range(5):
        for spin in range(2):
            s0, s1, s2 = c & 1, c >> 1 & 1, c >> 2
            terms = [1, s0, s1, s0 & s1, s2]
            terms += [spin & term for term in terms]
            value = int(thresholds.residual[c + 5 * spin])
            for i, plane in enumerate(thresholds.masks):
                bits = [int(mask) & 1 & term for mask, term in zip(plane, terms, strict=True)]
                value |= sum(bits) % 2 << (64 + i)
            assert value == int(Fraction(float(probabilities[c + 5 * spin])) * 2 ** (PLANES + 64))


def test_certain_and_impossible_flips() -> None:
    """At a low temperature: up to what 76 bits hold, never a whole wrong class."""
    model = Ising(0.05)
    up = np.ones((1, 64, 128), np.int8)
    block = filled(up)
    assert not Sublattice(model, math.inf).advance(block, 20, seed=1).any()
    black = np.where(colours((64, 128)) == 0, -1, 1).astype(np.int8)[None]
    block = filled(black)  # every spin against all its neighbours
    flips = Sublattice(model, math.inf).advance(block, 1, seed=1)
    assert flips[0] == 64 * 64
    assert (block.spins() == 1).all()


# -- the same bits however it is computed ----------------------------------------------------------


def outcome(
    dt: float = 0.25, size: Any = (48, 640), system: Ising = HOT, **options: Any
) -> tuple[Any, ...]:
    """Final spins and all flips and observables of a run with looks."""
    options = {"comm": MPI.COMM_SELF, "seed": 11} | options
    sim = Simulation(system, size, dt=dt, **options)
    assert sim.kernel == "packed"
    sim.set_spins(initial.independent, magnetization=0.3)
    frames = list(sim.frames(3 * sim.solver.time_per_step, sim.solver.time_per_step))
    return sim.gather(), frames


def assert_same(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    assert a[0] is None or b[0] is None or np.array_equal(a[0], b[0])
    assert len(a[1]) == len(b[1])
    for one, other in zip(a[1], b[1], strict=True):
        assert one.time == other.time
        for name, values in one.scalars().items():
            assert np.array_equal(values, other.scalars()[name]), name


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Have every block updated by some number of threads, however small it is."""
    pools = []

    def choose(number: int) -> None:
        pools.append(ThreadPoolExecutor(number))
        monkeypatch.setattr(sublattice, "threads", lambda: number)
        monkeypatch.setattr(device, "_pool", lambda: pools[-1])
        monkeypatch.setattr(sublattice, "SITES_PER_THREAD", 1)

    yield choose
    for pool in pools:
        pool.shutdown()


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("dt", [0.25, math.inf])
def test_same_bits_with_any_number_of_threads(
    workers: Callable[[int], None], dt: float, members: int
) -> None:
    """One calls the kernel for many passes, more for one pass and a share of the bands."""
    expected = outcome(dt, members=members)
    for number in (2, 3, 7):
        workers(number)
        assert_same(outcome(dt, members=members), expected)


@pytest.mark.parametrize(
    ("kernel", "columns", "dt"),
    [(multispin, 896, 0.25), (multispin, 896, math.inf), (multispin_whole, 640, math.inf)],
    ids=["0.25", "inf", "whole lattices"],
)
def test_same_bits_with_thresholds_compiled_in(
    monkeypatch: pytest.MonkeyPatch, kernel: Any, columns: int, dt: float
) -> None:
    """Those of the benchmarks: their tests compile them once for all."""
    case: Any = {"size": (48, columns), "system": bench.CRITICAL}
    expected = outcome(dt, **case)
    monkeypatch.setattr(sublattice, "COMPILE_IN_AFTER", 0)
    compiled = []
    monkeypatch.setattr(
        kernel, "packed_with", lambda masks, f=kernel.packed_with: compiled.append(1) or f(masks)
    )
    assert_same(outcome(dt, **case), expected)
    assert compiled


def test_thresholds_are_compiled_in_during_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Part of a run before, part after: the same as neither."""
    case: Any = {"size": (48, 896), "system": bench.CRITICAL}
    expected = outcome(**case)
    monkeypatch.setattr(sublattice, "COMPILE_IN_AFTER", 4 * 48 * 896)
    assert_same(outcome(**case), expected)


HASH = """
import hashlib, math
from mpi4py import MPI
from mpiflow import Ising, Simulation, initial
from mpiflow.core.device import threads
sim = Simulation(Ising(2.5, 0.1), (2048, 1024), dt={dt}, seed=3, comm=MPI.COMM_SELF)
sim.set_spins(initial.independent)
sim.advance(4 * sim.solver.time_per_step)
print(threads(), hashlib.sha256(sim.spins().tobytes()).hexdigest(), sim.flips[0])
"""


@pytest.mark.parametrize("dt", [0.25, math.inf])
def test_same_bits_in_a_process_with_two_threads(
    dt: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two million sites, which two threads share: nothing is patched."""
    said = []
    for number in ("1", "2"):
        monkeypatch.setenv("NUMBA_NUM_THREADS", number)
        code = HASH.format(dt="math.inf" if math.isinf(dt) else dt)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        said.append(done.stdout.split())
    assert [words[0] for words in said] == ["1", "2"]
    assert said[0][1:] == said[1][1:]


@pytest.mark.kernel
@needs_cuda
@pytest.mark.parametrize(
    ("dt", "members", "room", "columns"),
    [(0.5, 1, 128, 514), (0.5, 2, 1, 256), (math.inf, 2, 1, 256), (0.5, 2, 1, 230)],
)
def test_same_bits_on_cuda(
    dt: float, members: int, room: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the queue of undecided sites overflows, with thresholds compiled in, and where
    rows run on."""
    size = 14, columns
    expected = outcome(dt, size, members=members)
    monkeypatch.setattr(multispin_cuda, "QUEUE", room)
    if members > 1:
        monkeypatch.setattr(sublattice, "COMPILE_IN_AFTER", 0)
    assert_same(outcome(dt, size, members=members, device="cuda"), expected)


def groups_of_ranks(comm: MPI.Intracomm) -> Iterator[MPI.Intracomm]:
    """Communicators of the first ranks, for those that are in them."""
    for ranks in (1, 2, 3, 4, 6, 8):
        if ranks <= comm.size:
            some = comm.Split(0 if comm.rank < ranks else MPI.UNDEFINED)
            if some != MPI.COMM_NULL:
                yield some
                some.Free()


@pytest.mark.mpi
@pytest.mark.parametrize("dt", [0.25, math.inf])
@pytest.mark.parametrize(
    "size", [(96, 1024), (16, 128 * 40), (22, 1000), (64, 8200), (70, 66), (40, 410)], ids=str
)
def test_same_bits_on_any_number_of_ranks(
    comm: MPI.Intracomm, size: tuple[int, int], dt: float
) -> None:
    """All grids, tiles of different sizes, with and without an inside that needs no halo, that
    begin within a band, and within a word of rows that run on."""
    expected = outcome(dt, size)
    assert expected[1][-1].flips > 0
    for some in groups_of_ranks(comm):
        for grid in factorisations(some.size, 2):
            if grid[1] <= (1 if runs_on(Lattice(size)) else size[1] // 128):
                ours = outcome(dt, size, comm=some, ranks_grid=grid)
                assert (ours[0] is None) == (some.rank > 0)
                assert_same(ours, expected)


@pytest.mark.mpi
def test_same_bits_on_ranks_with_threads(
    comm: MPI.Intracomm, workers: Callable[[int], None]
) -> None:
    expected = outcome(size=(96, 1024))
    workers(2)
    for grid in factorisations(comm.size, 2):
        assert_same(outcome(size=(96, 1024), comm=comm, ranks_grid=grid), expected)


@pytest.mark.mpi
def test_same_bits_where_kernels_cannot_call_mpi(
    comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outcome(size=(96, 1024))
    monkeypatch.setattr(messages, "functions_of_mpi", lambda: None)
    for grid in factorisations(comm.size, 2):
        assert_same(outcome(size=(96, 1024), comm=comm, ranks_grid=grid), expected)


@pytest.mark.mpi
@pytest.mark.parametrize("members", [2, 5])
def test_ensembles_do_not_depend_on_the_ranks(comm: MPI.Intracomm, members: int) -> None:
    """Also with more ranks than members."""
    expected = outcome(size=(16, 256), members=members)
    ours = outcome(size=(16, 256), members=members, comm=comm)
    mine = Simulation(HOT, (16, 256), members=members, comm=comm).local_members
    assert comm.rank or np.array_equal(ours[0], expected[0])
    for a, b in zip(ours[1], expected[1], strict=True):
        for name, values in a.scalars().items():
            assert np.array_equal(values, b.scalars()[name][mine])


MORE_RANKS = """
import numpy as np
from mpi4py import MPI
from mpiflow import Ising, Simulation, initial
from mpiflow.core.lattice import factorisations

def run(comm, grid):
    sim = Simulation(Ising(2.5, 0.1), (96, 1024), seed=3, comm=comm, ranks_grid=grid)
    sim.set_spins(initial.independent)
    frames = list(sim.frames(0.75, 0.25))
    return sim.gather(), [[int(frame.flips), frame.energy] for frame in frames]

expected, frames = run(MPI.COMM_SELF, (1, 1))
for ranks in (3, 6, 8):
    some = MPI.COMM_WORLD.Split(0 if MPI.COMM_WORLD.rank < ranks else MPI.UNDEFINED)
    if some != MPI.COMM_NULL:
        for grid in factorisations(ranks, 2):
            whole, others = run(some, grid)
            if whole is not None:
                print(ranks, grid, np.array_equal(whole, expected) and others == frames)
"""


@pytest.mark.validate
def test_three_six_and_eight_ranks(mpirun: Mpirun) -> None:
    """With more ranks than this machine may have cores, in every grid."""
    done = mpirun(8, "python", "-c", MORE_RANKS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 + 4 + 4
    assert all(line.endswith(" True") for line in lines), lines


@pytest.mark.mpi
@pytest.mark.kernel
@needs_cuda
def test_ranks_on_cuda(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns by way of the host, rows as they are on the device; and rows that run on."""
    for size, columns in (((12, 514), 2), ((12, 230), 1)):
        expected = outcome(0.5, size)
        for grid in factorisations(comm.size, 2):
            monkeypatch.setenv("MPIFLOW_CUDA_AWARE_MPI", str(int(grid[0] > 1)))
            if grid[1] <= columns:
                ours = outcome(0.5, size, comm=comm, ranks_grid=grid, device="cuda")
                assert_same(ours, expected)


def test_seed_member_step_and_stream_all_matter() -> None:
    def run(seed: int = 0, member: int = 0, first: int = 0, stream: str = "sublattice") -> bytes:
        block = filled(np.ones((1, 16, 128), np.int8), np.array([member]))
        Sublattice(HOT, math.inf).advance(block, 1, seed=seed, first_step=first, stream=stream)
        return block.spins().tobytes()

    runs = [run(), run(seed=1), run(member=1), run(first=1), run(stream="partial")]
    assert len(set(runs)) == 5
    assert run() == runs[0]


def test_columns_of_rows_that_run_on_cannot_be_apart() -> None:
    """Nor are they cut by a grid that is asked for, or to use more ranks than there are rows."""
    lattice = Lattice((12, 300))
    for options in ({"ranks_grid": (1, 2)}, {}):
        with pytest.raises(InputError, match=r"units of .*300\) sites.*kernel='plain'"):
            cut(
                lattice,
                2 if options else 7,
                unit=cut_of(lattice),
                smaller="kernel='plain'",
                **options,
            )
    layout = Layout(lattice, (1, 2), CUT, partial=True)
    tile = PackedBlock(
        lattice, 128, filled(random_spins(0, 1, 12, 128)).words, np.array([layout.offset(0)]),
        np.arange(1, dtype=np.uint64), "exchange",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"tile=\(12, 128\).*whole rows of 300 sites"):
        Sublattice(HOT, 0.25)._apply(tile, [Run("full", 0, HOT)], 0, "sublattice")


def test_the_name_of_the_noise_tells_where_rows_run_on() -> None:
    """By which checkpoints of other noise are refused."""
    names = [Simulation(HOT, size, comm=MPI.COMM_SELF).rng for size in ((300, 300), (512, 512))]
    assert names == [f"{noise.BIT_RNG}, in the order of sites", noise.BIT_RNG]


def test_no_steps_change_nothing() -> None:
    spins = random_spins(4, 2, 16, 128)
    block = filled(spins)
    layout = Layout(Lattice((16, 128)), (1, 1))
    tile = PackedBlock.tile(layout, MPI.COMM_SELF)
    tile.store(slice(0, 16), spins[:1])
    tile.fill_halo()
    for some in (block, tile):
        assert not Sublattice(HOT, math.inf).advance(some, 0, seed=0).any()
        assert np.array_equal(some.spins(), spins[: some.batch])


# -- frequencies ---------------------------------------------------------------------------------


def flip_chances(model: Ising, time: float) -> np.ndarray:
    """Of the ten classes by (sum of neighbours + 4) / 2 and 5 for up, from the definition."""
    k, s = np.tile(np.arange(-4, 5, 2), 2), np.repeat([-1, 1], 5)
    energy = 2 * s * (model.coupling * k + model.field)
    return (1 - math.exp(-time)) / (1 + np.exp(energy / model.temperature))


def classes(spins: np.ndarray) -> np.ndarray:
    return (neighbour_sums(spins) + 4) // 2 + 5 * (spins > 0)


def frequency_p_value(kind: np.ndarray, changed: np.ndarray, chance: np.ndarray) -> float:
    """Of flips and non-flips in each cell, `kind` being the cell of each try."""
    tried = np.bincount(kind, minlength=len(chance)).astype(float)
    flipped = np.bincount(kind[changed], minlength=len(chance)).astype(float)
    return chi_square(
        np.append(flipped, tried - flipped),
        np.append(tried * chance, tried * (1 - chance)),
        constraints=len(chance),
    )


BOTH_FORMS = pytest.mark.parametrize("kernel", ["packed", "whole"], indirect=True)


@BOTH_FORMS
@pytest.mark.parametrize("dt", [0.25, 1.0, math.inf])
def test_flip_frequencies_of_all_ten_classes(dt: float, kernel: str) -> None:
    """By class, and with it by colour and row of the band, and by bit of the word.

    Ten million draws; the chances are those of the definition.
    """
    model = Ising(2.2, 0.15)
    solver = Sublattice(model, dt)
    batch, ny, nx, passes = 8, 256, 512, 20
    before = random_spins(11, batch, ny, nx)
    chance = flip_chances(model, dt)
    kind = classes(before)
    colour = np.broadcast_to(colours((ny, nx)), before.shape)
    row, bit = np.broadcast_arrays(np.arange(ny)[:, None] % 8, np.arange(nx) // 2 % 64)
    tried = [np.zeros((n, 10)) for n in (1, 16, 64)]
    flipped = [np.zeros((n, 10)) for n in (1, 16, 64)]
    cells = [kind, 10 * (8 * colour + row) + kind, 10 * bit + kind]
    of_colour = [
        [
            np.bincount(cell[colour == c], minlength=n.size)
            for cell, n in zip(cells, tried, strict=True)
        ]
        for c in range(2)
    ]
    for number in range(passes):
        block = filled(before)
        solver._apply(block, [Run("full", number, solver.system)], 21, "sublattice")
        changed = block.spins() != before
        assert not changed[colour != number % 2].any()
        for i, cell in enumerate(cells):
            tried[i] += of_colour[number % 2][i].reshape(-1, 10)
            flipped[i] += np.bincount(cell[changed], minlength=tried[i].size).reshape(-1, 10)
    assert tried[0].sum() >= 1e7
    for n, seen in zip(tried, flipped, strict=True):
        due = n * chance
        p = chi_square(np.append(seen, n - seen), np.append(due, n - due), constraints=n.size)
        assert p > P_FLOOR
    z = (flipped[0] - tried[0] * chance) / np.sqrt(tried[0] * chance * (1 - chance))
    assert np.abs(z).max() < Z_CEILING + 0.5, z  # the largest of ten


@BOTH_FORMS
def test_half_and_whole_pass_have_the_law_of_two_half_steps(kernel: str) -> None:
    """Of each class: flipped by the middle, by the end, both, neither; from one number."""
    model, dt = Ising(2.2, 0.15), 0.7
    solver = Sublattice(model, dt)
    before = random_spins(12, 8, 256, 512)
    rate = flip_chances(model, math.inf)
    half, whole = 1 - math.exp(-dt / 2), 1 - math.exp(-dt)
    by_middle, by_end = half * rate, whole * rate
    both = by_middle * (1 - half) + half**2 * rate**2
    chance = np.stack([both, by_middle - both, by_end - both, 1 - by_middle - by_end + both], 1)
    counts, tried = np.zeros((10, 4)), np.zeros(10)
    black = np.broadcast_to(colours((256, 512)) == 0, before.shape)
    kind = classes(before)[black]
    opening = np.zeros(10)
    for number in range(0, 16, 2):
        changes = []
        for runs in (
            [Run("upper", number, solver.system), Run("lower", number, solver.system)],
            [Run("full", number, solver.system)],
        ):
            block = filled(before)
            flips = solver._apply(block, runs, 22, "sublattice")
            changed = block.spins() != before
            assert np.array_equal(flips, changed.sum((1, 2)))
            assert not changed[~black].any()
            changes.append(changed[black])
        middle, end = changes
        cell = 4 * kind + np.select([middle & end, middle, end], [0, 1, 2], 3)
        counts += np.bincount(cell, minlength=40).reshape(10, 4)
        tried += np.bincount(kind, minlength=10)
        block = filled(before)
        solver._apply(block, [Run("opening", number, solver.system)], 23, "sublattice")
        opening += np.bincount(kind[(block.spins() != before)[black]], minlength=10)
    assert chi_square(counts.ravel(), (tried[:, None] * chance).ravel(), constraints=10) > P_FLOOR
    due = tried * by_middle
    seen = np.append(opening, tried - opening)
    assert chi_square(seen, np.append(due, tried - due), constraints=10) > P_FLOOR


# -- independence ----------------------------------------------------------------------------------


def flips_from_all_up(
    number: int, members: np.ndarray, seed: int = 5, kernel: str = "packed"
) -> np.ndarray:
    """Centred flips, of variance 1, of one pass over up spins; 0 on the other colour."""
    solver, side = Sublattice(Ising(6.0), math.inf, plain=kernel == "plain"), 512
    if kernel == "sliced":
        side = 64
    before = np.ones((len(members), side, side), np.int8)
    block = filled(before, members) if kernel == "packed" else Block.periodic(before, members)
    assert solver.kernel_for(block) == kernel
    solver._apply(block, [Run("full", number, solver.system)], seed, "sublattice")
    p = 1 / (1 + math.exp(8 / 6.0))
    centred = ((block.spins() < 0) - p) / math.sqrt(p * (1 - p))
    return np.where(colours((side, side)) == number % 2, centred, 0.0)


def assert_uncorrelated(a: np.ndarray, b: np.ndarray, odd: bool, itself: bool = False) -> None:
    """Of fields (n, side, side): normal deviates of the correlations at all distances."""
    product = np.fft.rfft2(a) * np.conj(np.fft.rfft2(b))
    side = a.shape[1]
    z = np.fft.irfft2(product.sum(0), s=(side, side)) / math.sqrt(len(a) * side * side / 2)
    assert np.abs(z[colours((side, side)) != odd]).max() < 1e-6
    z = z[colours((side, side)) == odd]
    if itself:  # the variance, and every pair twice
        z = z[1:]
    assert np.abs(z).max() < 6.0
    # The mean square of so many is 1 within 1%; of a few that are wrong the largest tells.
    # Their sum is one over products of powers at side^2 / 4 independent wave vectors.
    spread = 2 / side * math.sqrt(1 + 2 / len(a))
    assert abs((z**2).mean() - 1) < Z_CEILING * spread


EVERY_KERNEL = pytest.mark.parametrize(
    ("kernel", "members"),
    [("packed", 4), ("whole", 4), ("sliced", 128), ("plain", 4)],
    indirect=["kernel"],
)


@EVERY_KERNEL
def test_flips_are_independent_in_space(kernel: str, members: int) -> None:
    """All distances: neighbouring bits, words, rows, bands and everything else."""
    for number in (0, 1, 2):
        flips = flips_from_all_up(number, np.arange(members), kernel=kernel)
        assert_uncorrelated(flips, flips, odd=False, itself=True)


@EVERY_KERNEL
def test_flips_are_independent_in_time(kernel: str, members: int) -> None:
    """Both colours and several passes."""
    first = flips_from_all_up(0, np.arange(members), kernel=kernel)
    for number in (1, 2, 3, 4, 2**20, 2**59):
        other = flips_from_all_up(number, np.arange(members), kernel=kernel)
        assert_uncorrelated(first, other, odd=number % 2 == 1)


@EVERY_KERNEL
def test_flips_are_independent_between_members_and_seeds(kernel: str, members: int) -> None:
    some = 2 * np.arange(members)
    first = flips_from_all_up(0, some, kernel=kernel)
    for others, seed in ((some + 1, 5), (some + 4096, 5), (some, 6)):
        other = flips_from_all_up(0, others, seed, kernel)
        assert_uncorrelated(first, other, odd=False)


def stream_words(seed: int, member: int, number: int, bands: int, across: int) -> np.ndarray:
    """Draws (bands, across, 8 PLANES) of neighbouring streams, by the documented seeds."""
    sites = np.arange(bands, dtype=np.uint64)[:, None] << np.uint64(32) | np.arange(
        across, dtype=np.uint64
    )
    ab = noise.words(seed, "sublattice", member, number | 1 << 60, sites)
    a, b = ab[..., 0], ab[..., 1]
    c = noise.words(seed, "sublattice", member, number | 2 << 60, sites)[..., 0]
    out = np.empty((*sites.shape, 8 * PLANES), np.uint64)
    for i in range(out.shape[-1]):
        out[..., i] = a + b + np.uint64(1 + i)
        a, b = b ^ (b >> np.uint64(11)), c + (c << np.uint64(3))
        c = ((c << np.uint64(24)) | (c >> np.uint64(40))) + out[..., i]
    return out


def test_neighbouring_streams_share_nothing() -> None:
    """Words of 9,600 streams: none twice, each bit fair, bits of neighbours independent."""
    words = np.stack([stream_words(9, m, n, 40, 40) for m in (0, 1) for n in (0, 1, 2)]).reshape(
        2, 3, 40, 40, -1
    )
    assert np.array_equal(words[1, 2, 3, 5], documented_words(9, 1, 2, 3, 5).ravel())
    assert np.unique(words).size == words.size
    pairs = {
        "fair": words,
        "column": words[:, :, :, 1:] ^ words[:, :, :, :-1],
        "two columns": words[:, :, :, 2:] ^ words[:, :, :, :-2],
        "band": words[:, :, 1:] ^ words[:, :, :-1],
        "pass": words[:, 1:] ^ words[:, :-1],
        "same colour": words[:, 2:] ^ words[:, :-2],
        "member": words[1:] ^ words[:-1],
        "next draw": words[..., 1:] ^ words[..., :-1],
        "a row": words[..., PLANES:] ^ words[..., :-PLANES],
    }
    for name, some in pairs.items():
        flat = some.reshape(-1, some.shape[-1])
        # Bits that are set, for each place in the word and each draw of the streams.
        ones = np.zeros((some.shape[-1], 64))
        for bit in range(64):
            ones[:, bit] = ((flat >> np.uint64(bit)) & np.uint64(1)).sum(0)
        z = (ones - len(flat) / 2) / math.sqrt(len(flat) / 4)
        assert np.abs(z).max() < 5.5, name
        assert P_FLOOR < chi2.sf((z**2).sum(), z.size) < 1 - P_FLOOR, name


def test_pairs_of_bits_of_neighbouring_streams() -> None:
    """All 64 x 64 pairs of bits of adjacent columns, bands and passes."""
    words = np.stack([stream_words(10, 0, n, 32, 32) for n in (0, 1)])
    bits = ((words[..., None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).astype(np.float32)
    bits = 2 * bits - 1
    for a, b in (
        (bits[:, :, 1:], bits[:, :, :-1]),
        (bits[:, 1:], bits[:, :-1]),
        (bits[1], bits[0]),
        (bits[..., 1:, :], bits[..., :-1, :]),
    ):
        a, b = a.reshape(-1, 64), b.reshape(-1, 64)
        z = a.T @ b / math.sqrt(len(a))
        assert np.abs(z).max() < 5.5
        assert P_FLOOR < chi2.sf(float((z.astype(float) ** 2).sum()), z.size) < 1 - P_FLOOR


# -- the law ---------------------------------------------------------------------------------------


def member_means(
    model: Ising,
    shape: tuple[int, int],
    dt: float,
    members: int,
    sweeps: tuple[int, int],
    every: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Time averages (members,) of energy and magnetisation of independent members.

    From all up: `sweeps` to forget that and `sweeps` to average over.
    """
    sim = Simulation(model, shape, dt=dt, members=members, seed=31, comm=MPI.COMM_SELF)
    assert sim.kernel == "packed"
    sim.set_spins(initial.uniform_up)
    sim.advance(sweeps[0])
    frames: list[Frame] = []
    for _ in range(sweeps[1] // every):
        sim.advance(every)
        frames.append(sim.measure())
    return (
        np.mean([frame.energy for frame in frames], 0),
        np.mean([frame.magnetization for frame in frames], 0),
    )


def mean_p_value(values: np.ndarray, expected: float) -> float:
    """Two-sided p-value of independent values that should have this mean (Student)."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    return float(2 * t.sf(abs(values.mean() - expected) / error, len(values) - 1))


def assert_onsager(temperature: float, dt: float, sweeps: int, error: float) -> None:
    energy, magnetization = member_means(
        Ising(temperature), (256, 256), dt, members=12, sweeps=(400, sweeps), every=4
    )
    assert energy.std(ddof=1) / math.sqrt(12) < error
    assert mean_p_value(energy, onsager_energy(temperature)) > P_FLOOR
    expected = onsager_magnetization(temperature) if temperature < 2.2 else 0.0
    assert mean_p_value(magnetization, expected) > P_FLOOR


@pytest.mark.parametrize("dt", [0.25, math.inf])
@pytest.mark.parametrize("temperature", [2.0, 2.5])
def test_energy_and_magnetisation_of_the_infinite_lattice(
    temperature: float, dt: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Onsager and Yang; errors from the members' own averages.

    Compiled-in thresholds, which a test above holds to the same bits, would take longer to
    compile than these runs take.
    """
    monkeypatch.setattr(sublattice, "COMPILE_IN_AFTER", math.inf)
    assert_onsager(temperature, dt, sweeps=400 if dt < 1 else 800, error=1e-3)


@pytest.mark.validate
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dt", [0.25, 1.0, math.inf])
@pytest.mark.parametrize("temperature", [2.0, 2.5])
def test_onsager_to_four_digits(temperature: float, dt: float) -> None:
    assert_onsager(temperature, dt, sweeps=20_000, error=2e-4)


def test_critical_energy_of_a_finite_lattice() -> None:
    """Kaufman's, of 16 x 128 sites, where the critical state is soon forgotten."""
    energy, _ = member_means(Ising(CRITICAL), (16, 128), math.inf, 48, (4000, 8000), 5)
    assert energy.std(ddof=1) / math.sqrt(48) < 1.2e-3
    assert mean_p_value(energy, kaufman_energy((16, 128), CRITICAL)) > P_FLOOR


@pytest.mark.validate
@pytest.mark.timeout(1800)
def test_critical_energy_of_128_sites_a_side() -> None:
    """Five million sweeps in all, 100,000 before of each member: some ten relaxation times."""
    energy, magnetization = member_means(
        Ising(CRITICAL), (128, 128), math.inf, 16, (100_000, 300_000), 20
    )
    error = energy.std(ddof=1) / 4
    assert kaufman_energy((128, 128), CRITICAL) == pytest.approx(-1.41908, abs=5e-6)
    assert error < 6e-4
    assert mean_p_value(energy, kaufman_energy((128, 128), CRITICAL)) > P_FLOOR
    assert mean_p_value(magnetization, 0.0) > P_FLOOR


# -- the residual ----------------------------------------------------------------------------------


@pytest.mark.validate
def test_three_planes_have_the_same_law(tmp_path: Path) -> None:
    """An eighth of the sites is then decided by the bits beyond the planes: in a copy of the
    package, the reference, the frequencies and the exact means once more."""
    variant = variants.make(tmp_path / "variant", variants.fewer_planes(3))
    law = Path(__file__).parents[1] / "simulation/test_simulation.py::test_every_kernel_has"
    done = variants.run(
        variant,
        [
            f"{__file__}::test_planes_of_this_package",
            f"{__file__}::test_steps_equal_the_plain_reference[8x128-0.25]",
            f"{__file__}::test_flip_frequencies_of_all_ten_classes",
            f"{__file__}::test_half_and_whole_pass_have_the_law_of_two_half_steps",
            f"{__file__}::test_flips_are_independent_in_space[packed-4]",
            f"{__file__}::test_flips_are_independent_in_time[sliced-128]",
            f"{law}_the_exact_law[field-0.25-packed]",
            f"{law}_the_exact_law[no field-inf-packed]",
            f"{law}_the_exact_law[field-inf-sliced]",
        ],
        environment={"PLANES_OF_THIS_PACKAGE": "3"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_planes_of_this_package() -> None:
    assert int(os.environ.get("PLANES_OF_THIS_PACKAGE", "12")) == PLANES
