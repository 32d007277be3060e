"""The plain kernel: the documented bits on any tiling and target."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import simulator
from exact import documented_passes, has_cuda, heat_bath_pass
from exact import threefry as plain_threefry
from mpi4py import MPI

from mpiflow import initial
from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.lattice import Lattice, Layout, factorisations
from mpiflow.solvers.spins.rule_sublattice import RuleSublattice
from mpiflow.solvers.spins.site_field import SiteFieldSublattice
from mpiflow.solvers.spins.sublattice import Run, Sublattice
from mpiflow.systems.ising import Ising
from mpiflow.systems.potts import Potts

HOT = Ising(2.5, 0.1)

on_each_path = pytest.mark.parametrize(
    "path",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.kernel,
                pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator"),
            ],
        ),
    ],
)


def plain(dt: float, system: Ising = HOT) -> Sublattice:
    return Sublattice(system, dt, plain=True)


def random_states(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


def one_by_one(solver: Sublattice, first: int, steps: int) -> list[list[Run]]:
    """The passes of some steps from a given state; the bounds of the look belong together."""
    runs = solver._chain(first, steps, opening=True)
    single = [[Run(r.kind, n, r.system)] for r in runs for n in range(r.first, r.first + r.passes)]
    look = solver._look(first + steps)
    return [*single, look] if look else single


# -- the documentation, written again ----------------------------------------------------------


def documented_number(
    seed: int, member: int, number: int, block: Block, b: int
) -> Callable[[int, int], int]:
    """One call for two rows and one compressed column of the lattice; the row picks the word."""

    def uniform(y: int, x: int) -> int:
        gy, gx = ((block.origins[b] + (y, x)) % block.lattice.shape).tolist()
        words = plain_threefry((seed, 2**48 + member), (number, (gy // 2) * 2**32 + gx // 2))
        return words[gy % 2] >> 1

    return uniform


def thresholds(solver: Sublattice, what: str) -> tuple[list[int], list[int]]:
    """Lower and upper bounds of the ten classes in units of 2^-63."""

    def of(kind: str) -> list[int]:
        return [round(Fraction(p) * 2**63) for p in solver.probabilities(kind).tolist()]  # type: ignore[arg-type]

    return (of("lower"), of("upper")) if what == "look" else ([0] * 10, of(what))


def documented_run(
    solver: Sublattice, block: Block, seed: int, first: int, steps: int
) -> tuple[np.ndarray, list[int]]:
    """Fields with their halos after some steps, and flips, without touching the block."""
    fields, flips = block.host().copy(), []
    for b, member in enumerate(block.members.tolist()):
        count, parity = 0, int(block.origins[b].sum()) % 2
        for number, what in documented_passes(solver.dt, first, steps):
            count += heat_bath_pass(
                fields[b],
                block.halo,
                (number + parity) % 2,
                thresholds(solver, what),
                documented_number(seed, member, number, block, b),
            )
            if block.policy == "wrap":
                inner = fields[b][block.halo : -block.halo, block.halo : -block.halo]
                fields[b] = np.pad(inner, block.halo, mode="wrap")
        flips.append(count)
    return fields, flips


@on_each_path
@pytest.mark.parametrize("shape", [(2, 2), (2, 4), (6, 2), (4, 6)])
@pytest.mark.parametrize("dt", [0.4, math.inf])
def test_the_documented_bits_on_a_torus(path: str, shape: tuple[int, int], dt: float) -> None:
    """Counters, opening, whole passes, look, thresholds and flips, at a late step."""
    solver, steps = plain(dt), 1 if path == "cuda" else 3
    states = random_states(1, 2, *shape)
    block = Block.periodic(states, np.array([0, 7]), device=Device(path))
    fields, flips = documented_run(solver, block, 2**62 + 5, 2**40 + 1, steps)
    assert solver.advance(block, steps, seed=2**62 + 5, first_step=2**40 + 1).tolist() == flips
    assert np.array_equal(block.host(), fields)
    assert not np.array_equal(block.spins(), states)


@on_each_path
@pytest.mark.parametrize("halo", [1, 2])
@pytest.mark.parametrize("shape", [(3, 4), (5, 3)])
@pytest.mark.parametrize("origin", [(0, 0), (3, 2), (-2, 5), (5, 13)])
def test_the_documented_bits_in_frozen_boxes(
    path: str, shape: tuple[int, int], origin: tuple[int, int], halo: int
) -> None:
    """Both colours of the first site, over both edges of the lattice, halos of one and two."""
    solver, steps = plain(0.7), 1 if path == "cuda" else 3
    block = Block.cut(
        random_states(2, 2, 6, 8), origin, shape, np.array([3, 2**47]), halo=halo,
        device=Device(path),
    )  # fmt: skip
    fields, flips = documented_run(solver, block, 11, 2, steps)
    assert solver.advance(block, steps, seed=11, first_step=2).tolist() == flips
    assert np.array_equal(block.host(), fields)


# -- the same bits -----------------------------------------------------------------------------


def random_tiling(rng: np.random.Generator, side: int) -> list[tuple[int, int]]:
    """Intervals (start, width) that cover a periodic side, of any width from 1."""
    cuts = np.sort(rng.choice(side, rng.integers(1, side // 2 + 1), replace=False))
    return [
        (int(a), int(b - a) or side)
        for a, b in zip(cuts, np.append(cuts[1:], cuts[0] + side), strict=True)
    ]


@on_each_path
@pytest.mark.parametrize("dt", [0.3, math.inf])
def test_any_tiling_gives_the_same_bits(path: str, dt: float) -> None:
    """Tiles of one site and up, odd offsets, over the edge; halos renewed before each pass."""
    solver, seed = plain(dt), 99
    rng = np.random.default_rng(4)
    shape, batch = ((4, 6), 1) if path == "cuda" else ((10, 12), 3)
    members = np.arange(3, 3 + batch)
    whole = random_states(2, batch, *shape)
    reference = Block.periodic(whole, members)
    for runs in one_by_one(solver, 4, 1 if path == "cuda" else 4):
        expected_flips = solver._apply(reference, runs, seed, "sublattice")
        tiled, flips = np.zeros_like(whole), np.zeros(batch, np.int64)
        for y, height in random_tiling(rng, shape[0]):
            for x, width in random_tiling(rng, shape[1]):
                origin = (y - shape[0], x) if rng.random() < 0.2 else (y, x + shape[1])
                block = Block.cut(whole, origin, (height, width), members, device=Device(path))
                flips += solver._apply(block, runs, seed, "sublattice")
                block.paste(tiled)
        whole = tiled
        assert np.array_equal(whole, reference.spins())
        assert np.array_equal(flips, expected_flips)


@on_each_path
@pytest.mark.parametrize("dt", [0.5, math.inf])
def test_a_wide_margin_equals_the_full_run(path: str, dt: float) -> None:
    """The influence of a frozen halo moves one site a pass; also in boxes beyond the lattice."""
    solver, steps = plain(dt), 1 if path == "cuda" else 3
    margin = len(documented_passes(dt, 0, steps)) - 1
    side, batch, patch = (4, 1, 2) if path == "cuda" else (6, 18, 5)
    members = np.arange(batch)
    whole = random_states(5, batch, side, side)
    full, stepped = Block.periodic(whole, members), Block.periodic(whole, members)
    flips = solver.chain(full, steps, seed=8, first_step=1, opening=True)
    flips += solver.look(full, steps + 1, seed=8)
    assert np.array_equal(flips, solver.advance(stepped, steps, seed=8, first_step=1))
    assert np.array_equal(full.array, stepped.array)
    for origin in ((0, 0), (3, 4), (-1, 5)):
        corner = np.array(origin) - margin
        block = Block.cut(
            whole, corner, (patch + 2 * margin,) * 2, members, device=Device(path)
        )  # fmt: skip
        solver.advance(block, steps, seed=8, first_step=1)
        rows, columns = (np.arange(o, o + patch) % side for o in origin)
        inner = block.spins()[:, margin : margin + patch, margin : margin + patch]
        assert np.array_equal(inner, full.spins()[np.ix_(members, rows, columns)])


def test_a_margin_one_site_short_does_not() -> None:
    """Otherwise the test above would show nothing."""
    solver, steps, members = plain(math.inf), 2, np.arange(2000)
    margin = len(documented_passes(math.inf, 0, steps)) - 2
    whole = random_states(5, len(members), 20, 20)
    full, patch = Block.periodic(whole, members), Block.cut(whole, (0, 0), (12, 12), members)
    for block in (full, patch):
        solver.advance(block, steps, seed=8)
    differ = np.any(patch.spins() != full.spins()[:, :12, :12], axis=0)
    assert differ[margin : 12 - margin, margin : 12 - margin].any()
    assert not differ[margin + 1 : 11 - margin, margin + 1 : 11 - margin].any()


@on_each_path
def test_a_frozen_halo_never_changes(path: str) -> None:
    count = 2 if path == "cuda" else 20
    whole = random_states(5, count, 8, 8)
    block = Block.cut(whole, (6, 1), (3, 4), np.arange(count), device=Device(path))
    before = block.host().copy()
    plain(2.0).advance(block, 1, seed=0)
    ring = np.ones(before.shape, bool)
    ring[:, 1:-1, 1:-1] = False
    after = block.host()
    assert np.array_equal(after[ring], before[ring])
    assert not np.array_equal(after, before)


def test_boxes_do_not_depend_on_the_batch() -> None:
    """Boxes of both colourings, whose kernel is the plain one whatever is asked for."""
    whole = random_states(3, 20, 8, 8)
    origins = np.random.default_rng(1).integers(-8, 8, (20, 2))
    mixed = Block.cut(whole, origins, (5, 5), np.arange(100, 120))
    solver = Sublattice(HOT, 0.5)
    assert solver.kernel_for(mixed) == "plain"
    flips = solver.advance(mixed, 4, seed=3)
    for b in range(20):
        alone = Block.cut(whole[b : b + 1], origins[b], (5, 5), np.array([100 + b]))
        assert plain(0.5).advance(alone, 4, seed=3)[0] == flips[b]
        assert np.array_equal(mixed.array[b], alone.array[0])


@pytest.mark.parametrize(
    ("shape", "kernel"), [((98, 98), "sliced"), ((98, 100), "plain"), ((130, 140), "plain")]
)
def test_large_boxes_are_plain(shape: tuple[int, int], kernel: str) -> None:
    block = Block.periodic(np.ones((1, *shape), np.int8), np.arange(1))
    assert Sublattice(HOT, 0.5).kernel_for(block) == kernel
    assert plain(0.5).kernel_for(block) == "plain"


def test_flips_are_counted_in_one_large_lattice() -> None:
    """One pass at a time a flip is a changed spin; a run's count is the sum of its passes."""
    block = Block.periodic(np.ones((1, 130, 140), np.int8), np.arange(1))
    initial.independent(block, seed=1)
    copy = block.copy()
    solver, total = plain(0.4), 0
    for runs in one_by_one(solver, 0, 4):
        before = copy.spins().copy()
        flips = solver._apply(copy, runs, 6, "sublattice")
        assert flips[0] == np.count_nonzero(before != copy.spins())
        total += int(flips[0])
    assert solver.advance(block, 4, seed=6)[0] == total
    assert np.array_equal(block.array, copy.array)


@pytest.mark.kernel
@pytest.mark.mpi
@pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
@pytest.mark.parametrize(
    ("kind", "halo"),
    [("plain", 1), ("plain", 2), ("rule", 2), ("compiled rule", 1), ("field of each site", 1)],
)
def test_edges_travel_while_the_inside_is_updated(
    comm: MPI.Intracomm, kind: str, halo: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU's bits on each grid of ranks, however late the inside is updated."""
    simulator.hold_back_insides(monkeypatch)
    whole = random_states(3, 1, 10, 12)
    if "rule" in kind:
        whole = (whole + 1) // 2
    fields = np.random.default_rng(4).normal(size=(10, 12))

    def advanced(block: Block, here: tuple[slice, ...]) -> int:
        solver: Any = plain(0.4)
        if "rule" in kind:  # rules of many states are compiled
            solver = RuleSublattice(Potts(0.9, states=3 if kind == "rule" else 20), 0.4)
        elif kind != "plain":
            solver = SiteFieldSublattice(HOT, 0.4, np.ascontiguousarray(fields[here]))
        return int(np.ravel(solver.advance(block, 2, seed=9, first_step=4))[0])

    alone = Block.periodic(whole.copy(), np.array([0]), halo=halo)
    flips = advanced(alone, np.s_[:, :])
    for grid in factorisations(comm.size, 2):
        layout = Layout(Lattice(whole.shape[1:]), grid)
        block = Block.tile(layout, comm, halo=halo, device=Device("cuda"))
        here = layout.slices(comm.rank)
        block.load(whole[(slice(None), *here)])
        assert comm.allreduce(advanced(block, here)) == flips
        y, x = layout.offset(comm.rank)
        rows, columns = (np.arange(-halo, n + halo) for n in block.shape)
        around = alone.spins()[0][np.ix_((y + rows) % 10, (x + columns) % 12)]
        np.testing.assert_array_equal(block.host()[0], around)
