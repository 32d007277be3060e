"""States in and out of every simulation: set_state, state and gather."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.simulate import record
from mpiflow.simulation import catalogue
from mpiflow.simulation.alloy.barrier_model import load_barrier_model
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.simulation.base import Simulated
from mpiflow.simulation.ensemble.simulation import Ensemble
from mpiflow.simulation.field.simulation import FieldSimulation
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems import alloy
from mpiflow.systems.alloy import Alloy
from mpiflow.systems.blume_capel import BlumeCapel
from mpiflow.systems.curie_weiss import CurieWeiss
from mpiflow.systems.field_law import ExactLaw
from mpiflow.systems.ising import Ising
from mpiflow.systems.kac import Kac, kac_kernel
from mpiflow.systems.linear_chain import LinearChain
from mpiflow.systems.potts import Potts
from mpiflow.systems.predator_prey import PredatorPrey

HOT = Ising(2.5, field=0.1)
SELF = MPI.COMM_SELF


def _ensemble(system: str, **options: Any) -> Callable[[MPI.Intracomm, int], Simulated]:
    def make(comm: MPI.Intracomm, members: int) -> Simulated:
        config = catalogue.options(system)(out="run.h5", members=members, time=1, **options)
        return catalogue.build(config, comm).sim

    return make


def _field(comm: MPI.Intracomm, members: int, structure: Any = "langevin") -> Simulated:
    law, kernel = ExactLaw(1.25, structure), kac_kernel(2.0)
    field = StochasticField(law, kernel, (8, 8), block=4, members=members, comm=comm)
    return FieldSimulation(field, 0, members)


def _alloy(solver: Any) -> Callable[[MPI.Intracomm, int], Simulated]:
    barriers = load_barrier_model("default").parameters
    return lambda comm, members: AlloySimulation(
        Alloy(2000.0), barriers, 8, solver=solver, tile=8 if solver == "tiled" else None,
        members=members, comm=comm,
    )  # fmt: skip


def _tiled(comm: MPI.Intracomm, members: int) -> Simulated:
    return Simulation(HOT, 16, comm=comm, members=members, solver="tiled-nfold", tile=4)


SPINS: dict[str, Callable[[MPI.Intracomm, int], Simulated]] = {
    "packed": lambda c, m: Simulation(HOT, (32, 256), comm=c, members=m),
    "plain": lambda c, m: Simulation(HOT, (14, 12), comm=c, members=m, kernel="plain"),
    "tiled n-fold": lambda c, m: _tiled(c, m),
    "kac": lambda c, m: KacSimulation(Kac(0.8, gamma=1), 16, comm=c, members=m),
    "potts": lambda c, m: Simulation(Potts(1.1, states=5), (14, 12), comm=c, members=m),
    "blume-capel": lambda c, m: Simulation(BlumeCapel(1.1), (14, 12), comm=c, members=m),
}  # fmt: skip
ALL = SPINS | {
    "tiled alloy": _alloy("tiled"),
    "linear-chain": _ensemble("linear-chain", size=10, dt=0.05),
    "predator-prey": _ensemble("predator-prey", size=40),
    "curie-weiss": _ensemble("curie-weiss", size="6x8", temperature=1.1),
    "field": _field,
}
#: On one rank only, or with members.
ALONE = ALL | {
    "n-fold": lambda c, m: Simulation(HOT, 14, comm=c, members=m, solver="nfold"),
    "potts n-fold": lambda c, m: Simulation(Potts(1.1), 14, comm=c, members=m, solver="nfold"),
    "sliced": lambda c, m: Simulation(HOT, 16, comm=c, members=m, kernel="auto"),
    "serial alloy": _alloy("serial"),
    "absorbing alloy": _alloy("absorbing"),
    "cosh field": lambda c, m: _field(c, m, "cosh"),
}


def possible(name: str, sim: Simulated) -> np.ndarray:
    """A state of the whole that such sites can have, (members, *sides)."""
    random, shape = np.random.default_rng(7), (sim.members, *sim.lattice.shape)
    if "alloy" in name:
        at = np.indices(shape[1:]) % 2
        grid = np.where((at[0] == at[1]) & (at[1] == at[2]), random.integers(1, 4, shape), -1)
        grid[:, 2, 2, 2] = alloy.VACANCY
        return grid
    if "potts" in name:
        return random.integers(0, 3, shape)
    if name == "blume-capel":
        return random.integers(-1, 2, shape)
    if name == "linear-chain":
        return random.normal(size=shape)
    if name == "predator-prey":
        return random.random(shape) + 0.1
    if name == "curie-weiss":
        up = random.integers(0, 49, shape[0])
        return np.stack([48 - up, up], axis=1)
    if "field" in name:  # whole numbers of spins of blocks of 16
        return random.integers(-8, 9, shape) / 8
    return 2 * random.integers(0, 2, shape) - 1


def part(sim: Simulated, whole: np.ndarray) -> np.ndarray:
    return whole[(sim.local_members, *sim.local_box())]


def assert_set(found: np.ndarray | None, given: np.ndarray) -> None:
    """Fields of Langevin's structure keep the arcsine of means: these are right to a rounding."""
    assert found is not None
    np.testing.assert_allclose(found, given, rtol=0, atol=1e-15 if found.dtype == float else 0)


def moved(sim: Simulated) -> np.ndarray | None:
    sim.advance_to(sim.time + (2e-9 if isinstance(sim, AlloySimulation) else 0.5))
    return sim.gather()


@pytest.mark.mpi
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("name", ALL)
def test_a_state_is_given_in_three_ways(name: str, members: int, comm: MPI.Intracomm) -> None:
    """And leads to the same ever after, which is what one rank makes of it too."""
    made = ALL[name]
    whole = possible(name, made(comm, members))

    def of_sites(*at: np.ndarray, member: np.ndarray) -> np.ndarray:
        return whole[(member, *at)]

    alone = made(SELF, members)
    alone.set_state(whole)
    assert_set(alone.gather(), whole)
    later = moved(alone)
    for way in ("root", "parts", "function"):
        sim = made(comm, members)
        given: Any = whole if comm.rank == 0 else None
        if way != "root":
            given = part(sim, whole).astype(float) if way == "parts" else of_sites
        sim.set_state(given)
        assert_set(sim.state, part(sim, whole))
        with pytest.raises(ValueError, match="read-only"):
            sim.state[...] = 1
        found, then = sim.gather(), moved(sim)
        if comm.rank == 0:
            assert_set(found, whole)
            np.testing.assert_array_equal(then, later)
        else:
            assert (found, then) == (None, None)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("name", ALONE)
def test_a_state_is_set_in_the_middle_of_a_run(name: str, members: int) -> None:
    """Time goes on, and events are not those that the old state would have made."""
    sim = ALONE[name](SELF, members)
    first = possible(name, sim)
    sim.set_state(first)
    moved(sim)
    time = sim.time
    sim.set_state(first[0])  # of one member: of all
    assert sim.time == time
    expected = np.broadcast_to(first[0], first.shape)
    assert_set(sim.gather(), expected)
    moved(sim)
    assert sim.time > time
    sim.set_state(sim.state)


WRONG: dict[str, Any] = {
    "plain": 0, "packed": 2, "kac": 0.5, "potts": 7, "blume-capel": 2, "tiled alloy": 9,
    "linear-chain": np.nan, "predator-prey": -1e9, "curie-weiss": 0.5, "field": 1.5,
}  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("name", WRONG)
def test_a_state_that_is_none_changes_nothing(name: str, comm: MPI.Intracomm) -> None:
    sim = ALL[name](comm, 1)
    whole = possible(name, sim)
    sim.set_state(whole if comm.rank == 0 else None)
    wrong = whole.astype(float)
    wrong[(0, *(n - 2 for n in wrong.shape[1:]))] = WRONG[name]  # of the last rank alone
    with pytest.raises(InputError):
        sim.set_state(wrong if comm.rank == 0 else None)
    assert_set(sim.state, part(sim, whole))
    wrongs: list[Any] = [None, wrong[..., :-1], lambda *at: np.ones(3), np.full(wrong.shape, "up")]
    for given in wrongs:
        with pytest.raises(InputError, match="^state="):
            sim.set_state(given)
    some = wrong if comm.rank else None  # rank 0 has none, and of others it is no part
    with pytest.raises(InputError, match="^state="):
        sim.set_state(some if comm.size > 1 else None)
    assert_set(sim.state, part(sim, whole))


def test_a_function_of_sites_is_told_members_only_if_it_asks() -> None:
    sim = Simulation(HOT, 8, members=3, comm=SELF)
    sim.set_state(lambda y, x: 1 - 2 * ((x + y) % 2))
    assert isinstance(sim.block, Block)
    assert (sim.state.sum(axis=(1, 2)) == 0).all()
    sim.set_state(lambda y, x, member: np.where(member == 1, 1, -1))
    assert (sim.measure().magnetization == [-1, 1, -1]).all()


@pytest.mark.parametrize("name", ALONE)
def test_a_simulation_says_what_it_is(name: str) -> None:
    text = repr(ALONE[name](SELF, 2))
    assert text.startswith("<")
    assert "1 rank" in text
    assert "time 0" in text


FRONT: dict[str, tuple[Any, dict[str, Any], str]] = {
    "KacSimulation": (Kac(0.8, gamma=1), {"size": 16, "tau": 0.1}, "kac"),
    "RuleSimulation": (Potts(1.1), {"size": 16, "dt": 0.25}, "potts"),
    "Chains": (LinearChain(10), {"dt": 0.25, "members": 3}, "linear-chain"),
    "MeanFields": (CurieWeiss(1.1), {"size": "6x8"}, "curie-weiss"),
    "Lines": (PredatorPrey(40), {"dt": 0.01}, "predator-prey"),
    "Simulation": (HOT, {"size": 16}, "plain"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", FRONT)
def test_every_system_is_run_by_one_name(
    name: str, comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    system, options, kind = FRONT[name]
    sim: Any = Simulation(system, **options, seed=5, comm=comm)
    assert type(sim).__name__ == name
    whole = possible(kind, sim)
    sim.set_state(whole if comm.rank == 0 else None)
    record(sim, mpi_tmp_path / "run.h5", time=0.5, progress=False)
    with Trajectory(mpi_tmp_path / "run.h5") as run:
        assert len(run) == 2
        assert run.attributes["seed"] == 5
    with pytest.raises(InputError, match="^system='int'"):
        Simulation(3, 16, comm=comm)  # type: ignore[arg-type]


def test_an_alloy_is_run_by_the_same_name(tmp_path: Path) -> None:
    sim: Any = Simulation(Alloy(2000.0), 8, seed=5, comm=SELF)
    assert isinstance(sim, AlloySimulation)
    sim.set_state(possible("alloy", sim))
    record(sim, tmp_path / "run.h5", time=2e-9, progress=False)
    with Trajectory(tmp_path / "run.h5") as run:
        assert run.attributes["system"] == "alloy"


@pytest.mark.parametrize("name", ALONE)
def test_numbers_of_one_lattice_are_numbers(name: str) -> None:
    for members in (1, 2):
        sim: Any = ALONE[name](SELF, members)
        if isinstance(sim, Ensemble):
            continue
        sim.set_state(possible(name, sim))
        frame = sim.measure()
        number = frame.hops if isinstance(sim, AlloySimulation) else frame.magnetization
        assert np.shape(number) == (() if members == 1 else (2,))
        if members == 1:
            assert f"{number:.3f}" == f"{float(number):.3f}"
        if hasattr(frame, "scalars"):
            assert all(len(value) == members for value in frame.scalars().values())
