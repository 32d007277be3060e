"""The sliced kernel: the documented bits, whatever else is in the batch, on every target."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from exact import documented_passes, has_cuda
from exact import threefry as plain_threefry

from mpiflow.commands.bench import spins as bench
from mpiflow.core.block import Block, HaloPolicy
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.solvers.spins import sliced, sublattice
from mpiflow.solvers.spins.bitplanes import CHUNK
from mpiflow.solvers.spins.sublattice import Run, Sublattice
from mpiflow.systems.ising import Ising

HOT = Ising(2.5, 0.1)
#: Kinds of draw: two seed words, the third, and what the planes leave undecided.
SEED_AB, SEED_C, RESIDUAL = 4 << 60, 5 << 60, 6 << 60

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


def random_states(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


def advance(block: Block, dt: float, steps: int, system: Ising = HOT, **options: int) -> np.ndarray:
    """Flips; by the sliced kernel."""
    solver = Sublattice(system, dt)
    assert solver.kernel_for(block) == "sliced"
    return solver.advance(block, steps, **{"seed": 3, **options})


# -- the documentation, written again ----------------------------------------------------------


def planes(seed: int, group: int, number: int, row: int) -> Iterator[np.ndarray]:
    """For one site of a row after the other: twelve bits of each of 64 lanes, as (64,) int64.

    NumPy's own sfc64, put into the documented state: three seed words and the count 1.
    """
    key = (seed, 2**48 + group)
    state = np.array(
        [
            *plain_threefry(key, (number | SEED_AB, row)),
            plain_threefry(key, (number | SEED_C, row))[0],
            1,
        ],
        np.uint64,
    )
    stream = np.random.SFC64()
    stream.state = {
        "bit_generator": "SFC64", "state": {"state": state}, "has_uint32": 0, "uinteger": 0
    }  # fmt: skip
    lanes, weights = np.arange(64, dtype=np.uint64), 1 << np.arange(12)
    while True:
        words = stream.random_raw(12)  # least significant plane first
        yield ((words[:, None] >> lanes) & np.uint64(1)).astype(np.int64).T @ weights


def documented_flips(
    fields: np.ndarray, halo: int, lanes: list[int], key: tuple[int, int, int], parity: int,
    thresholds: list[int],
) -> np.ndarray:  # fmt: skip
    """Which sites (B, H, W) of boxes in one group flip for thresholds in units of 2^-76.

    ``key`` is (seed, group, number of the pass); sites of its colour are tried.
    """
    seed, group, number = key
    out = np.zeros(fields.shape, bool)
    above = np.array([t >> 64 for t in thresholds])
    for y in range(fields.shape[1] - 2 * halo):
        source = planes(seed, group, number, y)
        for x in range((number + parity + y) % 2, fields.shape[2] - 2 * halo, 2):
            i, j = y + halo, x + halo
            spin = fields[:, i, j]
            around = (
                fields[:, i - 1, j], fields[:, i + 1, j], fields[:, i, j - 1], fields[:, i, j + 1]
            )  # fmt: skip
            kind = sum((s != spin).astype(int) for s in around) + 5 * (spin > 0)
            if len(above) == 5:  # a full sweep: neighbours that are up
                kind = sum((s > 0).astype(int) for s in around)
            v = next(source)[lanes]
            flip = v < above[kind]
            for b in np.flatnonzero(v == above[kind]):
                member = (seed, 2**48 + 64 * group + lanes[b])
                rest, _ = plain_threefry(member, (number | RESIDUAL, y * 2**32 + x))
                flip[b] = rest < thresholds[kind[b]] % 2**64
            out[:, i, j] = flip ^ (spin > 0) if len(above) == 5 else flip
    return out


def documented_run(
    solver: Sublattice, block: Block, seed: int, first: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fields with their halos after some steps, and flips, without touching the block."""

    def thresholds(kind: str) -> list[int]:
        sets = math.isinf(solver.dt)
        chances = (
            solver.system.up_probabilities() if sets else solver.probabilities(kind)  # type: ignore[arg-type]
        ).tolist()
        return [min(math.floor(Fraction(p) * 2**76), 2**76 - 1) for p in chances]

    fields, count = block.host().copy(), np.zeros(block.batch, np.int64)
    halo, parity = block.halo, int(block.origins[0].sum()) % 2
    for group in np.unique(block.members // np.uint64(64)).tolist():
        of_group = np.flatnonzero(block.members // np.uint64(64) == group)
        lanes = (block.members[of_group] % np.uint64(64)).astype(int).tolist()
        for number, what in documented_passes(solver.dt, first, steps):
            some = fields[of_group], halo, lanes, (seed, group, number), parity
            if what == "look":
                flips = documented_flips(*some, thresholds("upper"))
                flips &= ~documented_flips(*some, thresholds("lower"))
            else:
                flips = documented_flips(*some, thresholds(what))
            fields[of_group] *= np.where(flips, -1, 1).astype(np.int8)
            count[of_group] += flips.sum((1, 2))
            if block.policy == "wrap":
                inner = fields[of_group, halo:-halo, halo:-halo]
                fields[of_group] = np.pad(inner, ((0, 0), (halo,) * 2, (halo,) * 2), mode="wrap")
    return fields, count


@on_each_path
@pytest.mark.parametrize("shape", [(2, 2), (2, 4), (6, 2), (4, 6)])
@pytest.mark.parametrize("dt", [0.4, math.inf])
def test_the_documented_bits_on_a_torus(path: str, shape: tuple[int, int], dt: float) -> None:
    """Streams, planes, opening, whole passes, look, thresholds and flips, at a late step."""
    solver, steps = Sublattice(HOT, dt), 1 if path == "cuda" else 3
    members = np.array([2**47 + 1, 70, 3, 0, 63, 64])
    states = random_states(1, 6, *shape)
    block = Block.periodic(states, members, device=Device(path))
    fields, flips = documented_run(solver, block, 2**62 + 5, 2**40 + 1, steps)
    ours = advance(block, dt, steps, seed=2**62 + 5, first_step=2**40 + 1)
    assert np.array_equal(ours, flips)
    assert np.array_equal(block.host(), fields)
    assert not np.array_equal(block.spins(), states)


@on_each_path
@pytest.mark.parametrize("halo", [1, 2])
@pytest.mark.parametrize("origin", [(0, 0), (3, 2), (-2, 5), (5, 13)])
@pytest.mark.parametrize(
    ("shape", "policy"), [((3, 4), "frozen"), ((5, 3), "frozen"), ((4, 2), "wrap")]
)
def test_the_documented_bits_in_boxes(
    path: str, shape: tuple[int, int], origin: tuple[int, int], halo: int, policy: HaloPolicy
) -> None:
    """Both colours of the first site, over both edges of the lattice, halos of one and two."""
    solver, steps = Sublattice(HOT, 0.7), 1 if path == "cuda" else 2
    block = Block.cut(
        random_states(2, 3, 6, 8), origin, shape, np.array([5, 66, 2**47]), halo=halo,
        policy=policy, device=Device(path),
    )  # fmt: skip
    fields, flips = documented_run(solver, block, 11, 2, steps)
    assert np.array_equal(advance(block, 0.7, steps, seed=11, first_step=2), flips)
    assert np.array_equal(block.host(), fields)


@pytest.mark.parametrize("dt", [2e-4, 1.0])
def test_the_residual_decides_what_the_planes_leave_open(dt: float) -> None:
    """One lane of 4096, here a hundred of all classes; chances below 2^-12 are residual alone."""
    solver, steps = Sublattice(HOT, dt), 4 if dt < 1 else 1
    block = Block.periodic(random_states(3, 128, 32, 32), np.arange(64, 192))
    fields, flips = documented_run(solver, block, 5, 0, steps)
    assert (solver.probabilities("full").max() < 2**-12) == (dt < 1)
    assert np.array_equal(advance(block, dt, steps, seed=5), flips)
    assert np.array_equal(block.host(), fields)
    assert flips.sum() > 20


# -- what else is in the batch ------------------------------------------------------------------


def test_a_box_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any subset, any order, groups spread out, and few words at a time."""
    rng = np.random.default_rng(6)
    members = rng.permutation(np.unique(np.append(rng.integers(0, 3000, 700), [0, 63, 2**47])))
    states = random_states(4, len(members), 6, 4)
    origins = 2 * rng.integers(-8, 8, (len(members), 2))
    whole = Block.cut(states, origins, (4, 4), members)
    flips = advance(whole, 0.5, 3)
    for size in (1, 2, 65, 300):
        some = rng.choice(len(members), size, replace=False)
        block = Block.cut(states[some], origins[some], (4, 4), members[some])
        assert np.array_equal(advance(block, 0.5, 3), flips[some])
        assert np.array_equal(block.array, whole.array[some])
    again = Block.cut(states, origins, (4, 4), members)
    monkeypatch.setattr(sliced, "CACHE_WORDS", 0)  # eight words together, the least there is
    assert len(list(sliced.lanes(members.astype(np.uint64), 36))) > 5
    assert np.array_equal(advance(again, 0.5, 3), flips)
    assert np.array_equal(again.array, whole.array)


def test_batches_of_more_than_one_chunk() -> None:
    """More words than are handled together: the first and the last, and those at the seam."""
    count = 64 * CHUNK + 130
    states = random_states(5, count, 4, 4)
    many = Block.periodic(states, np.arange(count))
    flips = advance(many, 0.5, 2)
    assert len(list(sliced.lanes(many.members, 36))) == 2
    some = np.r_[0:65, 64 * CHUNK - 1 : 64 * CHUNK + 2, count - 70 : count]
    few = Block.periodic(states[some], some)
    assert np.array_equal(advance(few, 0.5, 2), flips[some])
    assert np.array_equal(few.array, many.array[some])


def test_rows_that_go_together_do_not_matter() -> None:
    """How many there are follows from the number of words. Odd sides: a row may lack a site."""
    states = random_states(5, 64 * 50, 7, 9)
    many = Block.cut(states, (1, 0), (5, 7), np.arange(len(states)))
    flips = advance(many, 0.5, 2)
    some = np.r_[0:3, 640, len(states) - 1]
    few = Block.cut(states[some], (1, 0), (5, 7), some)
    assert np.array_equal(advance(few, 0.5, 2), flips[some])
    assert np.array_equal(few.array, many.array[some])
    changed = (few.array != Block.cut(states[some], (1, 0), (5, 7), some).array).any(axis=0)
    assert changed[1:-1, 1:-1].mean() > 0.8
    assert changed.sum() == changed[1:-1, 1:-1].sum()


def test_seed_member_step_and_stream_all_matter() -> None:
    def run(seed: int = 0, member: int = 0, first: int = 0, stream: str = "sublattice") -> bytes:
        block = Block.periodic(np.ones((1, 16, 16), np.int8), np.array([member]))
        Sublattice(HOT, math.inf).advance(block, 1, seed=seed, first_step=first, stream=stream)
        return block.spins().tobytes()

    runs = [
        run(), run(seed=1), run(member=1), run(member=64), run(first=1), run(stream="partial")
    ]  # fmt: skip
    assert len(set(runs)) == 6
    assert run() == runs[0]


def test_members_are_given_once() -> None:
    """Two boxes of one number would be one lane."""
    block = Block.periodic(np.ones((3, 4, 4), np.int8), np.array([7, 130, 7]))
    with pytest.raises(InputError, match=r"^members=7: .*once"):
        Sublattice(HOT, 0.5).advance(block, 1, seed=0)


@on_each_path
def test_a_frozen_halo_never_changes(path: str) -> None:
    block = Block.cut(
        random_states(5, 20, 8, 8), (6, 1), (3, 4), np.arange(20), halo=2, device=Device(path)
    )
    before = block.host().copy()
    advance(block, 2.0, 1)
    ring = np.ones(before.shape, bool)
    ring[:, 2:-2, 2:-2] = False
    after = block.host()
    assert np.array_equal(after[ring], before[ring])
    assert not np.array_equal(after, before)


# -- flips and thresholds -------------------------------------------------------------------------


def test_flips_are_changed_spins() -> None:
    """One pass at a time, of each box; a run's count is the sum of its passes."""
    count = 150
    block = Block.periodic(random_states(7, count, 12, 14), 5 * np.arange(count))
    copy, solver, total = block.copy(), Sublattice(HOT, 0.4), np.zeros(count, np.int64)
    chain = [
        Run(r.kind, n, r.system)
        for r in solver._chain(2, 3, True)
        for n in range(r.first, r.first + r.passes)
    ]
    for runs in [*([one] for one in chain), solver._look(5)]:
        before = copy.spins().copy()
        flips = solver._apply(copy, runs, 6, "sublattice")
        assert np.array_equal(flips, (before != copy.spins()).sum((1, 2)))
        total += flips
    assert np.array_equal(solver.advance(block, 3, seed=6, first_step=2), total)
    assert np.array_equal(block.array, copy.array)
    assert total.min() > 0


@pytest.mark.parametrize("side", [22, 24, 46, 48])
def test_every_site_flips(side: int) -> None:
    """The fullest counters: 242 and 288 sites of a colour, and four times as many."""
    block = Block.periodic(-np.ones((70, side, side), np.int8), np.arange(70))
    flips = advance(block, math.inf, 1, Ising(1.0, field=100.0))
    assert (flips == side * side).all()
    assert (block.array == 1).all()


@on_each_path
@pytest.mark.parametrize(
    ("system", "dt"), [(bench.CRITICAL, math.inf), (Ising(1.9), 0.4)], ids=["field", "no field"]
)
def test_thresholds_compiled_in_give_the_same_bits(
    path: str, dt: float, system: Ising, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the benchmark's, which its test compiles too; one without a field."""
    states, members = random_states(8, 80, 4, 6), 3 * np.arange(80)
    steps = 1 if path == "cuda" else 4
    general = Block.periodic(states, members)
    flips = advance(general, dt, steps, system)
    calls = []
    name = "sliced_cuda_with" if path == "cuda" else "sliced_with"
    compile_in = getattr(sliced, name)
    monkeypatch.setattr(sublattice, "COMPILE_IN_AFTER", 0)
    monkeypatch.setattr(sliced, name, lambda masks: calls.append(masks) or compile_in(masks))
    block = Block.periodic(states, members, device=Device(path))
    assert np.array_equal(advance(block, dt, steps, system), flips)
    assert np.array_equal(block.host(), general.host())
    assert len(calls) == 1
    for choice in (False, True):
        block = Block.periodic(states, members, device=Device(path))
        Sublattice(system, dt, compile_in=choice).advance(block, steps, seed=3)
        assert np.array_equal(block.host(), general.host())
        assert len(calls) == 1 + choice


@on_each_path
@pytest.mark.parametrize(
    ("count", "shape", "spread"), [(3, (2, 130), 50), (70, (4, 4), 5), (64, (16, 16), 1)]
)
def test_chains_and_looks_on_each_path(
    path: str, count: int, shape: tuple[int, int], spread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look into a copy, and on; flips of each. Rows of more sites than a counter of CUDA counts;
    the last case has residuals to draw, for which its queue is too small."""
    monkeypatch.setattr(sliced, "QUEUE", 1)
    states, members = random_states(8, count, *shape), spread * np.arange(count)
    runs = []
    for device in ("cpu", path):
        block = Block.periodic(states, members, device=Device(device))
        solver = Sublattice(HOT, 0.6)
        flips = [solver.chain(block, 1, seed=4, first_step=1, opening=True)]
        copy = block.copy()
        flips += [solver.look(copy, 2, seed=4)]
        flips += [solver.chain(block, 1, seed=4, first_step=2, opening=False)]
        runs.append((block.host(), copy.host(), np.array(flips)))
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    expected = Block.periodic(states, members)
    assert np.array_equal(advance(expected, 0.6, 1, seed=4, first_step=1), runs[0][2][:2].sum(0))
    assert np.array_equal(expected.host(), runs[0][1])


# -- layout ------------------------------------------------------------------------------------


def test_boxes_come_back_from_their_lanes() -> None:
    rng = np.random.default_rng(2)
    members = rng.choice(10_000, 500, replace=False).astype(np.uint64)
    boxes = random_states(9, 500, 35)
    out = np.zeros_like(boxes)
    for lanes in sliced.lanes(members, 35):
        field = lanes.pack(boxes)
        assert field.shape == (35, len(lanes.groups))
        for box, lane in zip(lanes.boxes[:40], lanes.lane[:40], strict=True):
            word, bit = divmod(int(lane), 64)
            assert 64 * int(lanes.groups[word]) + bit == members[box]
            up = field[:, word] >> np.uint64(bit) & np.uint64(1)
            assert np.array_equal(up == 1, boxes[box] > 0)
        lanes.unpack(field, out)
    assert np.array_equal(out, boxes)


@pytest.mark.parametrize(
    ("start", "same"), [((0, 0), True), ((1, 1), True), ((1, 0), False), ((0, 3), False)]
)
def test_boxes_of_both_colourings_do_not_go_together(start: tuple[int, int], same: bool) -> None:
    block = Block.cut(random_states(1, 2, 8, 8), np.array([(2, 4), start]), (4, 4), np.arange(2))
    assert Sublattice(HOT, 0.5).kernel_for(block) == ("sliced" if same else "plain")
