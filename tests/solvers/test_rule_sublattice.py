"""The sublattice solver of spin rules: documented bits, the law of a step, and its order."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from exact import chi_square, fitted_slope, has_cuda
from exact import threefry as plain_threefry
from mpi4py import MPI
from rule_law import (
    RARE,
    Clock,
    Epidemic,
    Voter,
    energies,
    evolve,
    generator,
    gibbs,
    index,
    of_one_state,
    random_states,
    states,
    strang,
)

from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.initial import rule as initial_rule
from mpiflow.observables import observe
from mpiflow.solvers.spins import rule_sublattice
from mpiflow.solvers.spins.rule_sublattice import RuleSublattice, require_states
from mpiflow.solvers.spins.rule_tables import thresholds
from mpiflow.systems.blume_capel import BlumeCapel
from mpiflow.systems.potts import Potts
from mpiflow.systems.rule import SpinRule

POTTS = Potts(0.9, states=3, field=0.2)
CAPEL = BlumeCapel(0.8, crystal_field=1.4, field=-0.1)
RULES = [POTTS, CAPEL, Voter(), Epidemic()]

needs_cuda = pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
on_each_path = pytest.mark.parametrize(
    "path", ["cpu", pytest.param("cuda", marks=[pytest.mark.kernel, needs_cuda])]
)
of_each = pytest.mark.parametrize("rule", RULES, ids=str)


# -- the documentation, written again ----------------------------------------------------------


def documented_passes(dt: float, first: int, steps: int) -> list[tuple[int, int, float]]:
    """(noise counter, colour, time) of each half pass, black first; black is even."""
    out = []
    for step in range(first, first + steps):
        out.append((3 * step, 0, dt if math.isinf(dt) else dt / 2))
        out.append((3 * step + 1, 1, dt))
        if math.isfinite(dt):
            out.append((3 * step + 2, 0, dt / 2))
    return out


def documented_number(seed: int, member: int, number: int, gy: int, gx: int) -> int:
    """One call for two rows and one compressed column of the lattice; the row picks the word."""
    words = plain_threefry((seed, 37 * 2**48 + member), (number, (gy // 2) * 2**32 + gx // 2))
    return words[gy % 2] >> 1


def documented_run(
    rule: SpinRule, dt: float, block: Block, seed: int, first: int, steps: int
) -> tuple[np.ndarray, list[int]]:
    """Inner states after some steps, and changes, without touching the block."""
    fields, halo, q = block.host().astype(int) - rule.lowest, block.halo, rule.states
    tables = {time: thresholds(rule, time) for time in (dt / 2, dt)}
    changes = [0] * block.batch
    for number, colour, time in documented_passes(dt, first, steps):
        values, around, by_own = tables[time]
        for b, member in enumerate(block.members.tolist()):
            box = fields[b]
            for y, x in np.ndindex(*block.shape):
                gy, gx = ((block.origins[b] + (y, x)) % block.lattice.shape).tolist()
                i, j = y + halo, x + halo
                if (block.origins[b].sum() + y + x) % 2 != colour:
                    continue
                near = ((box[i - 1, j] * q + box[i, j - 1]) * q + box[i, j + 1]) * q + box[i + 1, j]
                row = values[near * around + box[i, j] * by_own].tolist()
                word = documented_number(seed, member, number, gy, gx)
                if word < row[-1]:
                    new = next(k for k, bound in enumerate(row) if word < bound)
                    changes[b] += new != box[i, j]
                    box[i, j] = new
            if block.policy == "wrap":
                inner = box[halo:-halo, halo:-halo]
                fields[b] = np.pad(inner, halo, mode="wrap")
    return block.inner(fields + rule.lowest), changes


@on_each_path
@of_each
@pytest.mark.parametrize(("shape", "dt"), [((2, 4), 0.4), ((6, 2), 2.0), ((4, 6), math.inf)])
def test_the_documented_bits_on_a_torus(
    path: str, rule: SpinRule, shape: tuple[int, int], dt: float
) -> None:
    """Counters, passes and tables, at a late step and with large seeds, changes too."""
    dt = 0.7 if rule.by_rate and math.isinf(dt) else dt
    spins, steps = random_states(rule, 1, 2, *shape), 1 if path == "cuda" else 3
    block = Block.periodic(spins, np.array([0, 7]), device=Device(path))
    due, changes = documented_run(rule, dt, block, 2**62 + 5, 2**40 + 1, steps)
    solver = RuleSublattice(rule, dt)
    made = solver.advance(block, steps, seed=2**62 + 5, first_step=2**40 + 1)
    assert made.tolist() == changes
    assert np.array_equal(block.spins(), due)
    assert not np.array_equal(block.spins(), spins)


@on_each_path
@pytest.mark.parametrize("origin", [(0, 0), (3, 2), (-2, 5), (5, 13)])
@pytest.mark.parametrize("halo", [1, 2])
def test_the_documented_bits_in_frozen_boxes(path: str, origin: tuple[int, int], halo: int) -> None:
    """Origins of both colours and over the edge; surroundings stay as they are."""
    whole = random_states(POTTS, 2, 2, 8, 10)
    origins = np.array([origin, (origin[0], origin[1] + 1)])
    block = Block.cut(whole, origins, (3, 4), np.arange(2), halo=halo, device=Device(path))
    due, changes = documented_run(POTTS, 0.6, block, 3, 0, 2)
    assert RuleSublattice(POTTS, 0.6).advance(block, 2, seed=3).tolist() == changes
    assert np.array_equal(block.spins(), due)


# -- the same bits, however it is done -----------------------------------------------------------


@of_each
def test_where_a_run_is_cut_changes_nothing(rule: SpinRule) -> None:
    """Half passes that meet draw what they draw apart, and count alike."""
    whole, solver = random_states(rule, 3, 5, 6, 8), RuleSublattice(rule, 0.5)
    straight = Block.periodic(whole, np.arange(5))
    total = solver.advance(straight, 7, seed=4, first_step=10)
    for cuts in ([1, 6], [3, 0, 2, 2], [1] * 7):
        assert not solver.advance(straight, 0, seed=4, first_step=17).any()
        block, changes, step = Block.periodic(whole, np.arange(5)), 0, 10
        for count in cuts:
            changes = changes + solver.advance(block, count, seed=4, first_step=step)
            step += count
        assert np.array_equal(block.array, straight.array)
        assert np.array_equal(changes, total)


@pytest.mark.parametrize("members", [1, 6])
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch, members: int) -> None:
    """Bands of rows or of boxes, also an odd number of rows in a band."""
    whole, solver = random_states(POTTS, 4, members, 14, 10), RuleSublattice(POTTS, 0.5)
    alone, together = (Block.periodic(whole, np.arange(members)) for _ in range(2))
    due = solver.advance(alone, 3, seed=1)
    monkeypatch.setattr(rule_sublattice, "SITES_PER_THREAD", 1)
    monkeypatch.setattr(rule_sublattice, "threads", lambda: 4)
    assert np.array_equal(solver.advance(together, 3, seed=1), due)
    assert np.array_equal(together.array, alone.array)


@of_each
@pytest.mark.parametrize("origin", [(5, 4), (20, 19)])
def test_a_patch_with_a_wide_margin_is_the_full_run(
    rule: SpinRule, origin: tuple[int, int]
) -> None:
    """In its true surroundings, also over the edge: three half passes a step reach three sites."""
    whole, solver = random_states(rule, 13, 1, 24, 24), RuleSublattice(rule, 0.8)
    full = Block.periodic(whole, np.array([3]))
    patch = Block.cut(whole, origin, (13, 14), np.array([3]))
    solver.advance(full, 2, seed=5, first_step=9)
    solver.advance(patch, 2, seed=5, first_step=9)
    rolled = np.roll(full.spins()[0], (-origin[0], -origin[1]), (0, 1))[:13, :14]
    assert np.array_equal(patch.spins()[0, 6:-6, 6:-6], rolled[6:-6, 6:-6])
    assert not np.array_equal(patch.spins()[0], rolled)


def test_members_are_their_own_trajectories() -> None:
    whole, solver = random_states(CAPEL, 5, 3, 6, 6), RuleSublattice(CAPEL, 0.5)
    block = Block.periodic(whole, np.array([4, 2, 9]))
    solver.advance(block, 4, seed=1)
    alone = Block.periodic(whole[1:2], np.array([2]))
    solver.advance(alone, 4, seed=1)
    assert np.array_equal(block.spins()[1], alone.spins()[0])


@pytest.mark.mpi
@of_each
def test_same_bits_on_any_ranks_and_rectangles(comm: MPI.Intracomm, rule: SpinRule) -> None:
    """Initial states, steps, changes and observables of a lattice that is cut, odd tiles too."""
    shape, dt = (14, 22), 0.3
    grids = {(comm.size, 1), (1, comm.size)} | (
        {(2, comm.size // 2)} if comm.size % 2 == 0 else set()
    )

    def outcome(on: MPI.Intracomm, grid: tuple[int, int]) -> list[np.ndarray]:
        layout = Layout(Lattice(shape), grid)
        block = Block.tile(layout, on)
        initial_rule.independent(block, rule, seed=3, fractions=[0.5, 0.3, 0.2])
        changes = RuleSublattice(rule, dt).advance(block, 6, seed=3, first_step=2)
        seen = observe(block, rule)
        pieces = on.allgather((layout.slices(on.rank), block.spins()[0].copy()))
        whole = np.empty(shape, np.int8)
        for box, piece in pieces:
            whole[box] = piece
        return [whole, block.total(changes), *seen.values()]

    due = outcome(MPI.COMM_SELF, (1, 1))
    for grid in sorted(grids):
        for ours, expected in zip(outcome(comm, grid), due, strict=True):
            assert np.array_equal(ours, expected)


@pytest.mark.kernel
@needs_cuda
@of_each
def test_same_bits_on_cuda(rule: SpinRule) -> None:
    whole = random_states(rule, 6, 2, 6, 8)
    cpu, cuda = (
        Block.periodic(whole, np.arange(2), device=Device(name)) for name in ("cpu", "cuda")
    )
    solver = RuleSublattice(rule, 0.5)
    assert np.array_equal(solver.advance(cpu, 3, seed=2), solver.advance(cuda, 3, seed=2))
    assert np.array_equal(cpu.array, cuda.host())
    ours, theirs = observe(cpu, rule), observe(cuda, rule)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


# -- the law of steps ---------------------------------------------------------------------------


def parts(rule: SpinRule, shape: tuple[int, int]) -> list[np.ndarray]:
    return [generator(rule, shape, colour) for colour in (0, 1)]


@of_each
@pytest.mark.parametrize(("dt", "steps"), [(0.5, 1), (0.25, 3), (3.0, 2)])
def test_kernels_have_the_law_of_the_splitting(rule: SpinRule, dt: float, steps: int) -> None:
    """The law of all 81 states of a torus from one state, against matrices from the rule's
    own function; a false alarm had the chance 1e-9."""
    count, start = 60_000, random_states(rule, 7, 2, 2)
    law = strang(of_one_state(rule, start), *parts(rule, (2, 2)), dt, steps)
    block = Block.periodic(np.repeat(start[None], count, axis=0), np.arange(count))
    RuleSublattice(rule, dt).advance(block, steps, seed=8, first_step=5)
    seen = np.bincount(index(rule, block.spins()), minlength=law.size)
    assert chi_square(seen, count * law) > RARE


@pytest.mark.parametrize("rule", [POTTS, CAPEL], ids=str)
@pytest.mark.parametrize("dt", [0.3, math.inf])
def test_samples_of_gibbs_stay_samples_of_gibbs(rule: Potts | BlumeCapel, dt: float) -> None:
    """Of a 2 x 4 torus, 6561 states collected by their energy; after some steps."""
    shape, count = (2, 4), 60_000
    law, every = gibbs(rule, shape, rule.temperature), states(rule, shape)
    drawn = np.random.default_rng(9).choice(law.size, count, p=law)
    block = Block.periodic(every[drawn], np.arange(count))
    RuleSublattice(rule, dt).advance(block, 5, seed=10)
    energy = np.round(energies(rule, every), 9)
    _, label = np.unique(energy, return_inverse=True)
    seen = np.bincount(label[index(rule, block.spins())], minlength=label.max() + 1)
    assert chi_square(seen, count * np.bincount(label, law)) > RARE
    assert (block.spins() != every[drawn]).any((1, 2)).mean() > 0.2


@pytest.mark.parametrize("rule", [POTTS, CAPEL, Clock(0.9, states=3)], ids=str)
@pytest.mark.parametrize("dt", [0.1, 1.0, 20.0])
def test_gibbs_is_invariant_for_every_step(rule: Potts | BlumeCapel | Clock, dt: float) -> None:
    """Of the matrices: the law of a 2 x 4 torus with 3 states goes over into itself."""
    law = gibbs(rule, (2, 4), rule.temperature)
    assert abs(strang(law, *parts(rule, (2, 4)), dt, 1) - law).sum() < 1e-11


@of_each
def test_strang_is_second_order_in_law(rule: SpinRule) -> None:
    """Total-variation error of a transient law against the master equation, from the rules'
    functions; that the kernels have the law of the matrices is tested above."""
    shape, time = (2, 2), 2.0
    start = of_one_state(rule, random_states(rule, 11, *shape))
    exact, black_white = evolve(start, generator(rule, shape), time), parts(rule, shape)
    steps = [0.5, 0.25, 0.125]
    errors = [abs(strang(start, *black_white, dt, round(time / dt)) - exact).sum() for dt in steps]
    assert 1.8 < fitted_slope(steps, errors) < 2.2


def test_two_states_relax_as_ising() -> None:
    """The mean after a quench, against Ising's own kernel with half the coupling: 6 sigma, 2e-9."""
    from mpiflow.solvers.spins.sublattice import Sublattice
    from mpiflow.systems.ising import Ising

    start = np.ones((400, 16, 16), np.int8)
    ising = Block.periodic(start, np.arange(400))
    Sublattice(Ising(1.4, coupling=0.5), 0.25, plain=True).advance(ising, 8, seed=1)
    potts = Block.periodic(0 * start, np.arange(400))
    RuleSublattice(Potts(1.4, states=2), 0.25).advance(potts, 8, seed=1)
    ours, theirs = 1.0 - 2.0 * potts.spins().mean((1, 2)), ising.spins().mean((1, 2))
    error = math.sqrt((ours.var() + theirs.var()) / 400)
    assert abs(ours.mean() - theirs.mean()) < 6 * error < 0.03


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0.0, -1.0, math.nan])
def test_impossible_steps(dt: float) -> None:
    with pytest.raises(InputError, match=r"^dt=.*above 0, or inf"):
        RuleSublattice(POTTS, dt)


def test_rates_have_no_sweep() -> None:
    with pytest.raises(InputError, match="dt=inf: allowed is finite for a rule given by rates"):
        RuleSublattice(Voter(), math.inf)


def block_with(value: int) -> Block:
    spins = np.zeros((1, 4, 4), np.int8)
    spins[0, 1, 2] = value
    return Block.periodic(spins, np.arange(1))


@pytest.mark.parametrize("value", [-1, 3, 127, -128])
def test_values_that_are_no_states(value: int) -> None:
    block = block_with(value)
    before = block.array.copy()
    with pytest.raises(InputError, match=rf"states={value}: allowed is whole numbers from 0 to 2"):
        RuleSublattice(POTTS, 0.5).advance(block, 1, seed=0)
    assert np.array_equal(block.array, before)


def test_a_block_that_nothing_has_set() -> None:
    block = block_with(0)
    block.load(np.full((1, 4, 4), POTTS.unset, np.int8))
    with pytest.raises(InputError, match="initial state=None"):
        require_states(block, POTTS)


def test_odd_lattices_and_wrong_blocks() -> None:
    solver: Callable[..., np.ndarray] = RuleSublattice(POTTS, 0.5).advance
    with pytest.raises(InputError, match="even number of sites"):
        solver(Block.periodic(np.zeros((1, 3, 4), np.int8), np.arange(1)), 1, seed=0)
    with pytest.raises(InputError, match="int8"):
        block = block_with(0)
        block.array = block.array.astype(np.int64)
        solver(block, 1, seed=0)
