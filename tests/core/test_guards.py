"""States that are missing or impossible, and rules that kernels cannot honour, are refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact import has_cuda
from mpi4py import MPI

from mpiflow import initial
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.packed import PackedBlock
from mpiflow.files import checkpoint
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.run.simulate import record
from mpiflow.simulation import catalogue
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.simulation.ensemble.options import ChainConfig, CurieWeissConfig, PredatorPreyConfig
from mpiflow.simulation.ensemble.simulation import Chains, Lines, MeanFields
from mpiflow.simulation.field.simulation import FieldSimulation
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.simulation.spins.simulation import SpinSimulation
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.solvers.kac.gillespie import Gillespie
from mpiflow.solvers.lines.chain import ChainSimulation
from mpiflow.solvers.lines.predator_prey import PredatorPreySimulation, evolve_patches
from mpiflow.solvers.mean_field import MeanField, relax_windows
from mpiflow.solvers.spins.cluster import flip_clusters
from mpiflow.solvers.spins.nfold import NFold
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.solvers.spins.tiled import TiledNFold
from mpiflow.solvers.vacancy.serial import VacancyKMC
from mpiflow.systems import barriers
from mpiflow.systems.alloy import NOT_A_SITE, Alloy
from mpiflow.systems.curie_weiss import CurieWeiss
from mpiflow.systems.field_law import ExactLaw
from mpiflow.systems.ising import Ising
from mpiflow.systems.kac import Kac, kac_kernel
from mpiflow.systems.linear_chain import LinearChain
from mpiflow.systems.predator_prey import PredatorPrey

SELF = MPI.COMM_SELF
HOT, SOFT, ALLOY = Ising(2.3, field=0.1), Kac(0.8, 1.0), Alloy(2000.0)
CONSTANT = barriers.constant([1.0, 1.0, 1.0])

#: Name: a simulation of spins on a communicator, without a state.
SPINS: dict[str, Callable[[MPI.Intracomm], SpinSimulation]] = {
    "plain": lambda comm: Simulation(HOT, 16, kernel="plain", comm=comm),
    "packed": lambda comm: Simulation(HOT, (64, 128), comm=comm),
    "packed members": lambda comm: Simulation(HOT, (8, 128), members=5, comm=comm),
    "sliced": lambda comm: Simulation(HOT, 8, members=5, comm=comm),
    "sweeps": lambda comm: Simulation(HOT, 16, dt=np.inf, comm=comm),
    "n-fold": lambda comm: Simulation(HOT, 8, solver="nfold", members=5, comm=comm),
    "tiled": lambda comm: Simulation(HOT, 32, solver="tiled-nfold", tile=4, comm=comm),
    "kac": lambda comm: KacSimulation(SOFT, 24, members=5, comm=comm),
    "kac midpoint": lambda comm: KacSimulation(SOFT, 24, solver="midpoint", members=5, comm=comm),
    "kac leap": lambda comm: KacSimulation(SOFT, 24, solver="tau-leap", members=5, comm=comm),
    "kac exact": lambda comm: KacSimulation(SOFT, 24, solver="gillespie", members=5, comm=comm),
    "kac slabs": lambda comm: KacSimulation(SOFT, 24, comm=comm),
    "kac eps": lambda comm: KacSimulation(SOFT, 24, solver="tau-leap", eps=0.1, comm=comm),
}


def alloy(comm: MPI.Intracomm, solver: str) -> AlloySimulation:
    given: dict[str, Any] = {"tile": 6, "window": 1e-9} if solver == "tiled" else {"members": 5}
    return AlloySimulation(ALLOY, CONSTANT, 12, solver=solver, comm=comm, **given)  # type: ignore[arg-type]


def refused(*calls: Callable[[], Any], match: str = "^initial state=None") -> None:
    for call in calls:
        with pytest.raises(InputError, match=match):
            call()


@pytest.mark.mpi
@pytest.mark.parametrize("name", SPINS)
def test_no_spins_no_simulation(name: str, comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    sim, out = SPINS[name](comm), mpi_tmp_path / "run.h5"
    for spoilt in (None, 0, 2):
        if spoilt is not None:
            if isinstance(sim.block, PackedBlock):
                break
            sim.block.array[...] = spoilt
        refused(
            lambda: sim.advance(1.0),
            lambda: sim.advance_to(1.0),
            sim.measure,
            sim.spins,
            sim.gather,
            lambda: sim.coarse_sums(4),
            sim.state_of,
            lambda: list(sim.frames(1.0, 1.0)),
            lambda: record(sim, out, time=1.0, save_every=1.0, progress=False),
            lambda: checkpoint.write(out, sim, {}, {}),
            match="^spins=2" if spoilt else "^initial state=None",
        )
    assert not out.exists()
    sim.set_spins(initial.shuffled, magnetization=0.5)
    np.testing.assert_array_equal(sim.measure().magnetization, 0.5)


@pytest.mark.mpi
@pytest.mark.parametrize("solver", ["serial", "tiled"])
def test_no_species_no_simulation(solver: str, comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    sim, out = alloy(comm, solver), mpi_tmp_path / "run.h5"

    def all_refused(match: str) -> None:
        refused(
            lambda: sim.advance(1e-9),
            sim.measure,
            sim.species,
            sim.gather,
            sim.state_of,
            sim.numbers,
            lambda: list(sim.frames(1e-9, 1e-9)),
            lambda: record(sim, out, time=1e-9, progress=False),
            match=match,
        )

    all_refused("^initial state=None")
    assert not out.exists()
    chosen = AlloySimulation(ALLOY, CONSTANT, 12, solver="tiled", tile=6, comm=comm)
    refused(chosen.choose_windows, lambda: chosen.advance(1e-9), lambda: chosen.advance_hops(1))
    for species, match in ((4, "^species=4"), (-2, "^species=-2")):
        sim.set_species(random_alloy, counts=counts_of(sim.sites, 8))
        sim.block.array[sim.block.array == 1] = species
        sim._sound = False
        all_refused(match)
    sim.set_species(random_alloy, counts=counts_of(sim.sites, 8))
    inner = sim.block.inner()
    inner[:, 0, 0, 1] = 1  # between the sites
    refused(sim.measure, match="^species=1")
    inner[:, 0, 0, 1] = NOT_A_SITE
    assert sim.measure().bonds.sum() == 4 * sim.sites * np.size(sim.measure().hops)
    with pytest.raises(ValueError, match="read-only"):
        sim.species()[...] = 1


@pytest.mark.mpi
def test_no_displacements_nor_prey_no_simulation(comm: MPI.Intracomm) -> None:
    chain = ChainSimulation(LinearChain(6), members=5, comm=comm)
    line = PredatorPreySimulation(PredatorPrey(10), members=5, comm=comm)
    refused(
        lambda: chain.advance(1),
        chain.mean_displacement,
        lambda: chain.partial_evolution(2, dt=0.01),
        lambda: line.advance(1),
        line.means,
    )
    chain.x[...] = 0.0  # it may be written to
    chain.advance(1)
    chain.x[...] = np.inf
    if len(chain.x):
        chain.x[0, 0] = 0.0
    refused(lambda: chain.advance(1), match="^x=inf")
    refused(lambda: line.set(np.full((2, 10), -0.1)), match="^x=-0.1")
    line.set(line.system.start(0.5, 0.1))
    line.x[..., 3] = np.nan
    refused(lambda: line.advance(1), match="^x=nan")
    states = np.full((1, 2, 10), np.nan)
    patches = lambda: evolve_patches(line.system, states, np.arange(1), 5, dt=0.01)  # noqa: E731
    refused(patches, match="^states=")


@pytest.mark.mpi
@pytest.mark.parametrize("structure", ["langevin", "cosh"])
def test_no_means_no_field(structure: Any, comm: MPI.Intracomm) -> None:
    law = ExactLaw(1.25, structure)
    field = StochasticField(law, kac_kernel(2.0), (8, 8), block=4, comm=comm)
    sim = FieldSimulation(field, 0)
    refused(
        lambda: field.advance(1),
        lambda: field.m,
        field.measure,
        field.free_energy,
        lambda: list(field.run([0.1])),
        lambda: sim.advance_to(0.1),
        sim.measure,
        sim.state_of,
    )
    field.set(0.0)  # a mean of zero is a state
    assert field.measure().magnetization[0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        field.m[...] = 1.0
    field.state[...] = 100
    refused(lambda: field.advance(1), field.measure, match="^state=")


@pytest.mark.parametrize("value", [0, 2, -3])
def test_solvers_refuse_spins_that_are_none(value: int) -> None:
    """The same on blocks by hand: no kernel sees a 0."""
    members = np.arange(2)
    block = Block.periodic(np.full((2, 8, 8), value, np.int8), members)
    tiles = Block.tile(Simulation(HOT, 16, comm=SELF).block.layout, SELF)  # type: ignore[arg-type]
    tiles.load(np.full((1, 16, 16), value))
    refused(
        lambda: Sublattice(HOT, 0.25).advance(block, 1, seed=0),
        lambda: Sublattice(HOT, 0.25, plain=True).chain(block, 1, seed=0, opening=True),
        lambda: NFold(HOT, 2).advance(block, seed=0, until=1.0),
        lambda: TiledNFold(HOT, 1.0, 4).advance(tiles, 1, seed=0),
        lambda: Gillespie(Kac(0.8, 0.0), 2).advance(block, seed=0, until=1.0),
        match=f"^spins={value}" if value else "^initial state=None",
    )


def test_what_is_no_spin_is_not_stored() -> None:
    members = np.arange(2)
    packed = PackedBlock.periodic(Simulation(HOT, (8, 128), comm=SELF).lattice, members)
    solver = Sublattice(HOT, 0.25)
    refused(lambda: solver.advance(packed, 1, seed=0))
    for wrong in (np.zeros((2, 8, 128)), np.full((2, 8, 128), np.nan), np.full((2, 8, 128), 2)):
        refused(lambda: packed.load(wrong), match="^spins=(0|nan|2)")  # noqa: B023
    packed.store(slice(0, 4), np.ones((2, 4, 128), np.int8))
    refused(lambda: solver.advance(packed, 1, seed=0))  # half of the rows
    with pytest.raises(ValueError, match="read-only"):
        packed.spins()[...] = 1
    block = Block.periodic(np.ones((2, 8, 8), np.int8), members)
    for wrong in (np.full((2, 8, 8), np.nan), np.full((2, 8, 8), 0.5), np.full((2, 8, 8), 257)):
        refused(lambda: block.load(wrong), match=r"^spins=(nan|0\.5|257)")  # noqa: B023
    states = np.zeros((1, 8, 8), np.int8)
    refused(
        lambda: relax_windows(
            states, members[:1], CurieWeiss(1.1), np.zeros((1, 2), int), seed=0, window=4,
            duration=1.0,
        ),
        match="^spins=0",
    )  # fmt: skip
    mean = MeanField(CurieWeiss(1.1), 16, np.array([8]), members[:1])
    refused(
        lambda: flip_clusters(states, members[:1], Ising(2.3), clusters=1, seed=0),
        match="^spins=0",
    )
    refused(lambda: MeanField(CurieWeiss(1.1), 16, np.array([7.5]), members[:1]), match="^up=7.5")
    mean.up[:] = -1
    refused(lambda: mean.advance(seed=0, until=1.0), match="^up, group_up")


@pytest.mark.kernel
@pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
def test_a_device_without_spins_is_refused() -> None:
    for sim in (
        Simulation(HOT, 4, kernel="plain", device="cuda", comm=SELF),
        Simulation(HOT, (8, 128), device="cuda", comm=SELF),
        Simulation(HOT, 4, members=2, device="cuda", comm=SELF),
        KacSimulation(Kac(0.8, 0.0), 4, device="cuda", comm=SELF),
    ):
        refused(lambda: sim.advance(1.0), sim.measure, sim.spins)  # noqa: B023
        wrong = np.zeros((sim.members, *sim.lattice.shape), np.int8)
        wrong[..., 0] = 1
        with pytest.raises(InputError, match="^spins=0"):
            sim.set_spins(lambda block: block.load(wrong))  # noqa: B023
            sim.measure()


@pytest.mark.parametrize("name", SPINS)
def test_spins_cannot_be_written_to(name: str) -> None:
    sim = SPINS[name](SELF)
    sim.set_spins(initial.uniform_up)
    for spins in (sim.spins(), sim.block.spins()):
        with pytest.raises(ValueError, match="read-only"):
            spins[...] = -1


@pytest.mark.parametrize("size", [16, (8, 128)])
def test_spins_loaded_between_steps_are_the_state(size: Any) -> None:
    """The sublattice solver waits in the middle of a pass; what is loaded there is whole."""
    sim = Simulation(HOT, size, comm=SELF)
    sim.set_spins(initial.shuffled)
    sim.advance(1.0)
    with pytest.raises(InputError, match="^state='a copy'"):
        sim.present.load(np.ones((1, *sim.lattice.shape), np.int8))
    sim.block.load(np.ones((1, *sim.lattice.shape), np.int8))
    assert sim.measure().magnetization == 1.0
    assert (sim.spins() == 1).all()
    again = Simulation(HOT, size, comm=SELF)
    again.set_spins(initial.shuffled)
    again.advance(1.0)
    again.set_spins(initial.uniform_up)
    for one in (sim, again):
        one.advance(1.0)
    assert (sim.spins() == again.spins()).all()


# -- rules -------------------------------------------------------------------------------------


class Other(Ising):
    def up_probabilities(self) -> np.ndarray:
        return np.full(5, 0.5)


class OtherRates(Ising):
    def flip_rates(self) -> np.ndarray:
        return np.full(10, 0.5)


class Trusting(Ising):
    """Adds to the model, and changes nothing of it."""

    note = "critical"

    def __init__(self, field: float) -> None:
        super().__init__(2.269, field)

    def twice(self) -> float:
        return 2 * self.temperature


@dataclass(frozen=True)
class WithDefault(Ising):
    """Another default of a parameter, and one more."""

    temperature: float = 1.5
    label: str = "mine"


def test_a_rule_that_is_overridden_is_refused() -> None:
    class Moved(Kac):
        def rates(self, u: np.ndarray | float) -> np.ndarray:
            return np.asarray(u) * 0

    class Warm(Kac):
        @property
        def temperature(self) -> float:
            return 1.0

        @temperature.setter
        def temperature(self, value: float) -> None: ...

    class Pushed(LinearChain):
        longest_step = 10.0

    class Eaten(PredatorPrey):
        @property
        def amplitude(self) -> float:
            return 0.0

    class Cold(Alloy):
        @property
        def beta(self) -> float:
            return 1.0

    class Mean(CurieWeiss):
        def heat_bath(self, sites: int) -> np.ndarray:
            return np.ones((2, sites))

    patched = Ising(2.3)
    object.__setattr__(patched, "flip_rates", lambda: np.full(10, 0.5))
    for system in (Other(2.3), OtherRates(2.3), patched):
        refused(
            lambda: Simulation(system, 16, comm=SELF),  # noqa: B023
            lambda: Sublattice(system, 0.25),  # noqa: B023
            lambda: NFold(system),  # noqa: B023
            lambda: TiledNFold(system, 1.0),  # noqa: B023
            match="does not override '(up_probabilities|flip_rates)'",
        )
    refused(lambda: KacSimulation(Moved(0.8, 1.0), 16, comm=SELF), match="override 'rates'")
    refused(lambda: Gillespie(Moved(0.8, 1.0)), match="override 'rates'")
    refused(lambda: KacSimulation(Warm(0.8, 1.0), 16, comm=SELF), match="override 'temperature'")
    refused(lambda: ChainSimulation(Pushed(6)), match="override 'longest_step'")
    refused(lambda: PredatorPreySimulation(Eaten(10)), match="override 'amplitude'")
    refused(lambda: VacancyKMC(Cold(800.0), CONSTANT), match="override 'beta'")
    refused(lambda: AlloySimulation(Cold(800.0), CONSTANT, 8, comm=SELF), match="override 'beta'")
    one = np.ones(1, int)
    refused(lambda: MeanField(Mean(1.1), 16, one, one), match="override 'heat_bath'")
    refused(lambda: Simulation(3, 16, comm=SELF), match="^system='int'")  # type: ignore[arg-type]


def test_a_subclass_that_only_adds_runs_as_its_parent() -> None:
    runs = []
    for system in (Ising(2.269, 0.1), Trusting(0.1), WithDefault(2.269, 0.1)):
        sim = Simulation(system, 16, kernel="plain", comm=SELF, seed=3)
        sim.set_spins(initial.shuffled)
        sim.advance(1.0)
        runs.append(sim.spins().copy())
    assert (runs[0] == runs[1]).all()
    assert (runs[0] == runs[2]).all()


# -- what is said of it ------------------------------------------------------------------------


def test_long_steps_are_remarked_on() -> None:
    for options, words in (
        ({}, None),
        ({"dt": 0.5}, None),
        ({"dt": 1.0}, "dt 1 is long.* 4 % at 1"),
        ({"dt": np.inf}, "checkerboard"),
        ({"solver": "nfold"}, None),
        ({"solver": "tiled-nfold", "tile": 4, "dt": 1.0}, None),
        ({"solver": "tiled-nfold", "tile": 4, "dt": 2.0}, "window 2 is long"),
    ):
        remarks = Simulation(HOT, 16, comm=SELF, **options).remarks()
        assert len(remarks) == (words is not None)
        assert words is None or re.search(words, remarks[0])


def test_what_the_initial_state_cannot_have_is_said(tmp_path: Path) -> None:
    def remarks(size: Any, m: float, initial: str = "shuffled") -> list[str]:
        config = IsingConfig(
            size=size, temperature=2.3, time=1, out=tmp_path / "x.h5", seed=1, initial=initial,
            initial_magnetization=m, correlation_length=1.0 if initial == "gaussian" else None,
        )  # fmt: skip
        return catalogue.build(config, SELF).remarks

    assert remarks(4, 0.3) == [
        "the initial magnetization is 0.25, not 0.3: the nearest that 16 spins have"
    ]
    assert "independent" in remarks(16, 0.3, "random")[0]
    assert not remarks(4, 0.25)
    assert not remarks(64, 0.8, "gaussian")
    chain = ChainConfig(size=10, time=1, dt=0.1, out=tmp_path / "c.h5")
    assert (
        "0.5 % too large, and that of the shortest waves 26 %" in Chains(chain, SELF).remarks()[0]
    )
    assert not Chains(ChainConfig(size=10, time=1, out=tmp_path / "c.h5"), SELF).remarks()
    for size, said in ((5, "a mean of 0.4 "), (10, "a wave of "), (200, "")):
        lines = Lines(PredatorPreyConfig(size=size, time=1, out=tmp_path / "l.h5"), SELF)
        assert [said in text for text in lines.remarks()] == [True] * bool(said)
        with pytest.raises(ValueError, match="read-only"):
            lines.block.spins()[...] = 1.0
    spins = CurieWeissConfig(
        size=(3, 3), temperature=1.1, time=1, initial_magnetization=0.5, out=tmp_path / "m.h5"
    )
    assert "is 0.555556, not 0.5" in MeanFields(spins, SELF).remarks()[0]
