"""Rules too large for a table: their function compiled into the kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from exact import chi_square, has_cuda
from mpi4py import MPI
from rule_law import RARE, Voter, generator, index, of_one_state, random_states, strang

from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.noise import upper_half
from mpiflow.observables import observe
from mpiflow.solvers.spins import rule_compiled, rule_sublattice, rule_tables
from mpiflow.solvers.spins.rule_sublattice import RuleSublattice
from mpiflow.solvers.spins.rule_tables import tabled
from mpiflow.systems.blume_capel import BlumeCapel
from mpiflow.systems.potts import Potts
from mpiflow.systems.rule import SpinRule

POTTS = Potts(0.9, states=3, field=0.2)
CAPEL = BlumeCapel(0.8, crystal_field=1.4, field=-0.1)
MANY = [Potts(0.5, states=127, field=0.1), Voter(states=20, noise=0.01)]

needs_cuda = pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
of_many = pytest.mark.parametrize("rule", MANY, ids=str)


@pytest.fixture
def no_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule is too large."""
    monkeypatch.setattr(rule_tables, "LARGEST_TABLE", 1)


@pytest.mark.usefixtures("no_tables")
@pytest.mark.parametrize("rule", [POTTS, CAPEL, Voter()], ids=str)
@pytest.mark.parametrize(("dt", "steps"), [(0.5, 1), (3.0, 2)])
def test_compiled_kernels_have_the_law_of_the_splitting(
    rule: SpinRule, dt: float, steps: int
) -> None:
    """The law of all 81 states of a torus from one state; false alarms: 1e-9 each."""
    count, start = 60_000, random_states(rule, 7, 2, 2)
    parts = [generator(rule, (2, 2), colour) for colour in (0, 1)]
    law = strang(of_one_state(rule, start), parts[0], parts[1], dt, steps)
    block = Block.periodic(np.repeat(start[None], count, axis=0), np.arange(count))
    solver = RuleSublattice(rule, dt)
    assert not tabled(rule)
    before = block.spins().copy()
    changes = solver.advance(block, steps, seed=8, first_step=5)
    seen = np.bincount(index(rule, block.spins()), minlength=law.size)
    assert chi_square(seen, count * law) > RARE
    assert (changes >= (block.spins() != before).sum((1, 2))).all()


@pytest.mark.usefixtures("no_tables")
def test_a_sweep_takes_the_heat_bath_of_all_states() -> None:
    """dt = inf with frozen neighbours: all 3 states of one site by their weights."""
    count = 60_000
    whole = np.broadcast_to(random_states(POTTS, 3, 4, 4), (count, 4, 4)).copy()
    block = Block.cut(whole, (1, 2), (1, 1), np.arange(count))
    RuleSublattice(POTTS, math.inf).advance(block, 1, seed=2)
    near = [int(whole[0, y, x]) for y, x in ((0, 2), (1, 1), (1, 3), (2, 2))]
    weights = np.array([POTTS.weight(state, *near, POTTS.parameters) for state in range(3)])
    seen = np.bincount(block.spins().reshape(-1), minlength=3)
    assert chi_square(seen, count * weights / weights.sum()) > RARE


@pytest.mark.parametrize("word", [0, 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0])
@pytest.mark.parametrize("total", [1, 2**32 - 1, 2**56, 127 * 2**56, 2**64 - 1])
def test_the_share_of_a_word_is_the_upper_half_of_the_product(word: int, total: int) -> None:
    assert int(upper_half(np.uint64(word), np.uint64(total))) == word * total >> 64


@of_many
def test_where_a_run_is_cut_changes_nothing(
    rule: SpinRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do threads."""
    whole, solver = random_states(rule, 3, 2, 6, 8), RuleSublattice(rule, 0.5)
    straight, cut = (Block.periodic(whole, np.arange(2)) for _ in range(2))
    total = solver.advance(straight, 5, seed=4, first_step=2)
    monkeypatch.setattr(rule_sublattice, "SITES_PER_THREAD", 1)
    monkeypatch.setattr(rule_sublattice, "threads", lambda: 3)
    changes = solver.advance(cut, 2, seed=4, first_step=2)
    changes += solver.advance(cut, 3, seed=4, first_step=4)
    assert np.array_equal(cut.array, straight.array)
    assert np.array_equal(changes, total)
    assert total.all()


@pytest.mark.kernel
@needs_cuda
@of_many
def test_same_bits_on_cuda(rule: SpinRule) -> None:
    whole = random_states(rule, 6, 2, 4, 6)
    cpu, cuda = (
        Block.periodic(whole, np.arange(2), device=Device(name)) for name in ("cpu", "cuda")
    )
    solver = RuleSublattice(rule, 0.5)
    assert np.array_equal(solver.advance(cpu, 2, seed=2), solver.advance(cuda, 2, seed=2))
    assert np.array_equal(cpu.array, cuda.host())


@pytest.mark.mpi
@of_many
def test_same_bits_on_any_ranks(comm: MPI.Intracomm, rule: SpinRule) -> None:
    whole = random_states(rule, 5, 1, 10, 18)

    def outcome(on: MPI.Intracomm) -> tuple[np.ndarray, np.ndarray]:
        layout = Layout(Lattice((10, 18)), (1, on.size))
        block = Block.tile(layout, on)
        block.load(whole[(slice(None), *layout.slices(on.rank))])
        changes = RuleSublattice(rule, 0.4).advance(block, 4, seed=1)
        return observe(block, rule)["fraction"], block.total(changes)

    for ours, due in zip(outcome(comm), outcome(MPI.COMM_SELF), strict=True):
        assert np.array_equal(ours, due)


def test_what_users_compile_is_not_kept_on_disk() -> None:
    """There only the source of the package tells an old function from a new one."""
    kernels = rule_compiled.kernels(MANY[0])
    assert type(kernels.rows._cache).__name__ == "NullCache"


# -- what is refused ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trap(SpinRule):
    """Sound at every neighbourhood but one, which no test of the rule comes across."""

    wrong: float = -1.0
    states = 40

    @property
    def parameters(self) -> tuple[float, ...]:
        return (self.wrong,)

    @staticmethod
    def weight(state, north, west, east, south, parameters):  # type: ignore[no-untyped-def]
        if north == 7 and west == 39 and east == 1 and south == 22:
            return parameters[0]
        return 1.0


def trapped() -> Block:
    spins = np.zeros((2, 4, 4), np.int8)
    spins[1, 0, 1], spins[1, 1, 0], spins[1, 1, 2], spins[1, 2, 1] = 7, 39, 1, 22
    return Block.periodic(spins, np.arange(2))


@pytest.mark.parametrize("wrong", [-1.0, 0.0, 1e200])
def test_a_weight_that_is_none_is_found_where_it_occurs(wrong: float) -> None:
    with pytest.raises(InputError, match=r"weight='Trap': allowed is numbers from 0 to 1e\+150"):
        RuleSublattice(Trap(wrong), math.inf).advance(trapped(), 1, seed=0)


def test_rates_that_are_too_fast_for_a_step() -> None:
    fast = Voter(states=20, noise=1e4)
    block = Block.periodic(np.zeros((1, 4, 4), np.int8), np.arange(1))
    with pytest.raises(InputError, match="at most 512 changes of a site in a step"):
        RuleSublattice(fast, 0.5).advance(block, 1, seed=0)
    assert RuleSublattice(fast, 1e-4).advance(block, 1, seed=0) > 0


def test_a_function_that_does_not_compile() -> None:
    class Odd(SpinRule):
        states = 40

        @staticmethod
        def weight(state, north, west, east, south, parameters):  # type: ignore[no-untyped-def]
            return sum({"a": 1.0, 2: state}.values()) + 1.0

    with pytest.raises(InputError, match="weight='Odd': allowed is a function that Numba compiles"):
        RuleSublattice(Odd(), 0.5)
