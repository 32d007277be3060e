"""Fields of each site's own: the right law, the same bits, files, and what is refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from exact import has_cuda
from mpi4py import MPI

from mpiflow import (
    BlumeCapel,
    InputError,
    Ising,
    Kac,
    Potts,
    RandomField,
    Simulation,
    SpinRule,
    Trajectory,
    initial,
    record,
)
from mpiflow.commands.verify.files import verify_file
from mpiflow.core.block import Block
from mpiflow.core.device import Device
from mpiflow.files import checkpoint
from mpiflow.learn.onsagerflow.increments import runs_from_files
from mpiflow.run.resume import resume
from mpiflow.run.simulate import simulate
from mpiflow.simulation import catalogue
from mpiflow.solvers.spins.rule_sublattice import RuleSublattice
from mpiflow.solvers.spins.rule_tables import shares
from mpiflow.solvers.spins.site_field import SiteFieldSublattice, decay, settled

SYSTEMS: dict[str, Any] = {
    "ising": Ising(2.0, 0.3),
    "potts": Potts(1.0, field=0.2),
    "blume-capel": BlumeCapel(2.0, 0.5, field=0.2),
}
SMALL = (2, 4)


def made(system: Any, size: Any, comm: MPI.Intracomm = MPI.COMM_SELF, **options: Any) -> Any:
    sim: Any = Simulation(system, size, seed=7, comm=comm, **options)
    if isinstance(system, Ising | Kac):
        sim.set_spins(initial.shuffled, magnetization=0.25)
    else:
        sim.set_states(initial.rule.independent)
    return sim


# -- the right law -----------------------------------------------------------------------------


def test_the_exponential_is_right_to_a_few_units_in_the_last_place() -> None:
    for x in (0.0, 1e-300, 1e-9, 0.5, 0.4999999, 3.7, 60.0, 699.9, 1e6):
        assert decay(x) == pytest.approx(math.exp(-min(x, 700.0)), rel=4e-15)


@pytest.mark.parametrize("h", [-1.7, 0.0, 0.4, 60.0])
def test_a_trial_is_the_heat_bath_of_the_site(h: float) -> None:
    """In any neighbourhood, whatever the state was: so detailed balance holds at each site.

    Chances are counted with 20000 evenly spaced numbers, each right to one of them.
    """
    rule, count = SYSTEMS["blume-capel"], 20000
    weights = shares(rule)
    coupled = np.array([-1.0, 0.0, 1.0]) / rule.temperature
    numbers = (np.arange(count) + 0.5) / count
    for near in (0, 17, 80):
        due = weights[near] * np.exp(h * coupled - abs(h) / rule.temperature)
        new = [settled(number, near, h, 3, weights, coupled) for number in numbers]
        found = np.bincount(new, minlength=3) / count
        assert np.abs(found - due / due.sum()).max() < 2.1 / count


@pytest.mark.parametrize("name", SYSTEMS)
def test_random_fields_on_a_small_lattice_against_enumeration(name: str) -> None:
    """Means of all sites and of the energy over 4000 lattices; false alarms: 9 times 1e-10."""
    system, members = SYSTEMS[name], 4000
    h = RandomField(1.0, seed=1)(np.arange(2)[:, None], np.arange(4))
    sim = made(system, SMALL, members=members, dt=0.5, site_field=h)
    sim.advance_to(60.0)
    spins = sim.spins().reshape(members, 8)
    values = [-1, 1] if name == "ising" else system.values.tolist()
    states = np.array(list(itertools.product(values, repeat=8)))
    lattice = states.reshape(-1, *SMALL)
    pairs = [(lattice, np.roll(lattice, 1, axis)) for axis in (1, 2)]
    energy = np.zeros(len(states))
    for a, b in pairs:
        energy -= ((a == b) if name == "potts" else a * b).sum(axis=(1, 2))
    coupled = (states == 0) if name == "potts" else states
    energy -= coupled @ (h.ravel() + system.field)
    energy += getattr(system, "crystal_field", 0.0) * (states**2).sum(axis=1)
    law = np.exp(-energy / system.temperature)
    law /= law.sum()
    found = ((spins == 0) if name == "potts" else spins).mean(axis=0)
    mean = law @ coupled
    spread = np.sqrt((law @ (coupled * coupled) - mean**2) / members)
    assert np.abs((found - mean) / spread).max() < 6.5
    due = law @ energy
    error = math.sqrt((law @ energy**2 - due**2) / members)
    assert abs(8 * sim.measure().energy.mean() - due) < 6.5 * error


@pytest.mark.parametrize("name", ["potts", "blume-capel"])
@pytest.mark.parametrize("dt", [0.25, math.inf])
def test_equal_fields_of_all_sites_are_the_uniform_field(name: str, dt: float) -> None:
    """The same trajectory: chances differ in the last digits alone."""
    system = SYSTEMS[name]
    uniform = made(type(system)(system.temperature, field=0.5), 12, dt=dt)
    sites = made(type(system)(system.temperature), 12, dt=dt, site_field=np.full((12, 12), 0.5))
    for a, b in zip(uniform.frames(6, 2), sites.frames(6, 2), strict=True):
        assert np.allclose(a.energy, b.energy, rtol=1e-13)
    assert np.array_equal(uniform.spins(), sites.spins())


def test_energies_have_the_fields_of_the_sites() -> None:
    h = np.random.default_rng(3).normal(size=(8, 12)) * 1e3
    for system in (Ising(2.0, 0.3), Kac(1.0, 0.5, 0.3), Potts(2.0, field=0.3)):
        with_field, without = made(system, (8, 12), site_field=h), made(system, (8, 12))
        state = with_field.spins()[0]
        part = (h * ((state == 0) if isinstance(system, Potts) else state)).sum() / 96
        difference = without.measure().energy - with_field.measure().energy
        assert difference == pytest.approx(part, rel=1e-6 if isinstance(system, Kac) else 1e-12)


# -- random fields -----------------------------------------------------------------------------


def test_random_fields_are_a_function_of_seed_and_site() -> None:
    field = RandomField(0.5, seed=3)
    y, x = np.arange(300)[:, None], np.arange(200)
    whole = field(y, x)
    assert np.array_equal(field(y[7:90], x[11:20]), whole[7:90, 11:20])
    assert not np.array_equal(RandomField(0.5, seed=4)(y, x), whole)
    # 60000 normal numbers: means and mean squares within 6.5 standard errors.
    assert abs(whole.mean()) < 6.5 * 0.5 / math.sqrt(whole.size)
    assert abs((whole**2).mean() / 0.25 - 1) < 6.5 * math.sqrt(2 / whole.size)
    both = RandomField(0.5, seed=3, kind="bimodal")(y, x)
    assert set(np.unique(both)) == {-0.5, 0.5}
    assert abs(both.mean()) < 6.5 * 0.5 / math.sqrt(both.size)


# -- the same bits -----------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("system", [*SYSTEMS.values(), Kac(1.0, 0.5, 0.1)], ids=str)
def test_same_bits_and_files_on_any_number_of_ranks(
    comm: MPI.Intracomm, mpi_tmp_path: Path, system: Any
) -> None:
    """With a field that is cut from an array, and a schedule beside it."""
    size = (6 * comm.size, 14)
    h = RandomField(0.7, seed=2)(np.arange(size[0])[:, None], np.arange(14))
    schedule = "temperature ramp 2 1.5 over 2; field ac 0.3 period 2"
    files = []
    for name, some in (("one.h5", MPI.COMM_SELF), ("all.h5", comm)):
        sim = made(system, size, some, site_field=h, schedule=schedule, granularity=2)
        if name == "all.h5" or comm.rank == 0:
            record(sim, mpi_tmp_path / name, time=3, save_every=1, spins=True, progress=False)
        files.append(mpi_tmp_path / name)
    comm.Barrier()
    if comm.rank == 0:
        with Trajectory(files[0]) as a, Trajectory(files[1]) as b:
            for variable in a.variables:
                assert np.array_equal(a[variable][...], b[variable][...]), variable
            assert np.array_equal(a["site_field"][...], h)
            assert a.config["site_field"] == b.config["site_field"]
        assert all(verify_file(path).good for path in files)


needs_cuda = pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")


@needs_cuda
@pytest.mark.kernel
@pytest.mark.parametrize("system", [Ising(2.0, 0.1), Potts(1.0)], ids=str)
def test_cpu_and_cuda_agree(system: Any) -> None:
    h = RandomField(0.7, seed=2)(np.arange(5)[:, None], np.arange(7))
    values = [-1, 1] if isinstance(system, Ising) else [0, 1, 2]
    states = np.random.default_rng(1).choice(values, (2, 6, 8)).astype(np.int8)
    found = []
    for device in ("cpu", "cuda"):
        block = Block.periodic(states, np.array([3, 5]), device=Device(device))
        solver = SiteFieldSublattice(system, 0.5, np.pad(h, ((0, 1), (0, 1))))
        changes = solver.advance(block, 2, seed=4, first_step=1)
        found.append((changes.tolist(), block.spins().tolist()))
    assert found[0] == found[1]


# -- files -------------------------------------------------------------------------------------


def test_a_run_goes_on_in_its_field_only(tmp_path: Path) -> None:
    field, out = RandomField(0.5, seed=3), tmp_path / "run.h5"
    about: dict[str, Any] = {
        "size": 16, "temperature": 2.0, "random_field_std": 0.5, "random_field_seed": 3,
        "spins": True, "save_every": 1, "quiet": True,
    }  # fmt: skip
    model = catalogue.options("ising")
    simulate(model(**about, time=4, out=tmp_path / "whole.h5"), MPI.COMM_SELF)
    simulate(model(**about, time=2, out=out), MPI.COMM_SELF)
    resume(out, MPI.COMM_SELF, {"time": 4})
    with Trajectory(tmp_path / "whole.h5") as a, Trajectory(out) as b:
        assert np.array_equal(a["spin"][:], b["spin"][:])
        assert np.array_equal(b["site_field"][...], field(np.arange(16)[:, None], np.arange(16)))
    point = checkpoint.newest(out, MPI.COMM_SELF)
    other = made(Ising(2.0), 16, site_field=RandomField(0.5, seed=4))
    with pytest.raises(InputError, match="site_field"):
        record(other, out, time=5, progress=False, point=point)
    # Fields of another run's file, by name.
    again = {k: v for k, v in about.items() if not k.startswith("random")}
    again |= {"field_file": out, "time": 4, "out": tmp_path / "again.h5"}
    simulate(model(**again), MPI.COMM_SELF)
    with Trajectory(tmp_path / "whole.h5") as a, Trajectory(tmp_path / "again.h5") as b:
        assert np.array_equal(a["spin"][:], b["spin"][:])
    with h5py.File(tmp_path / "again.h5", "r+") as file:
        file["site_field"][3, 4] += 1e-9
    found = verify_file(tmp_path / "again.h5")
    assert not found.good
    assert "site_field is not what the run was made with" in found.text


def test_learners_take_block_means_of_the_fields_and_no_changing_ones(tmp_path: Path) -> None:
    h = RandomField(0.5, seed=3)(np.arange(16)[:, None], np.arange(16))
    for system in (Ising(2.0, 0.2), Kac(1.0, 1, 0.2)):
        sim = made(system, 16, site_field=h, granularity=4)
        out = tmp_path / f"{type(system).__name__}.h5"
        record(sim, out, time=2, save_every=1, coarse=4, progress=False)
        (run,) = runs_from_files(out)
        assert np.allclose(run.field, 0.2 + h.reshape(4, 4, 4, 4).mean(axis=(1, 3)), rtol=1e-12)
    sim = made(Ising(2.0), 16, schedule="temperature ramp 2 1 over 2", granularity=4)
    record(sim, tmp_path / "ramp.h5", time=2, save_every=1, coarse=4, progress=False)
    with pytest.raises(InputError, match="temperature of .* which changes in time"):
        runs_from_files(tmp_path / "ramp.h5")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"random_field_std": 0.5, "solver": "nfold"}, "Use sublattice"),
        ({"random_field_std": 0.5, "solver": "tiled-nfold"}, "Use sublattice"),
        ({"random_field_std": 0.5, "kernel": "packed"}, "the plain one"),
        ({"random_field_seed": 3}, "without random_field_std"),
        ({"field_variable": "h"}, "without a field_file"),
        ({"random_field_std": 0.5, "field_file": "h.npy"}, "with a field_file"),
        ({"field_file": "h.npy", "field_variable": "h"}, "one array"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        catalogue.options("ising")(
            size=128, temperature=2, time=4, out=tmp_path / "run.h5", **options
        )


@dataclass(frozen=True)
class Voter(SpinRule):
    states: int = 3

    @staticmethod
    def rate(own, new, north, west, east, south, parameters):  # type: ignore[no-untyped-def]
        return 0.25 * ((north == new) + (west == new) + (east == new) + (south == new))


@dataclass(frozen=True)
class Cold(SpinRule):
    states: int = 3

    @staticmethod
    def weight(state, north, west, east, south, parameters):  # type: ignore[no-untyped-def]
        return 1.0 + (north == state)


@pytest.mark.parametrize(
    ("system", "options", "words"),
    [
        (Ising(2.0), {"site_field": np.zeros((4, 8))}, r"\(8, 8\), as the lattice"),
        (Ising(2.0), {"site_field": np.full((8, 8), np.nan)}, "finite"),
        (Ising(2.0), {"site_field": lambda y, x: np.zeros(3)}, "a value for each"),
        (Ising(2.0), {"site_field": lambda y, x: y > x}, "real numbers"),
        (Ising(2.0), {"site_field": np.zeros((8, 8)), "solver": "nfold"}, "Use sublattice"),
        (Ising(2.0), {"site_field": np.zeros((8, 8)), "kernel": "sliced"}, "auto or plain"),
        (Potts(2.0), {"site_field": np.zeros((8, 8)), "solver": "nfold"}, "Use sublattice"),
        (Potts(2.0, 20), {"site_field": np.zeros((8, 8))}, "up to 12 states"),
        (Voter(), {"site_field": np.zeros((8, 8))}, "given by weights"),
        (Cold(), {"site_field": np.zeros((8, 8))}, "a temperature"),
    ],
)
def test_what_cannot_be_is_refused(system: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Simulation(system, 8, comm=MPI.COMM_SELF, **options)


@pytest.mark.parametrize("system", [Ising, Potts, BlumeCapel, Kac])
def test_an_array_is_no_uniform_field(system: Any) -> None:
    with pytest.raises(InputError, match=r"field='an array \(4, 4\)'.*site_field="):
        system(1.0, field=np.zeros((4, 4)), **({"gamma": 1} if system is Kac else {}))


def test_a_rule_of_ones_own_says_what_a_field_favours() -> None:
    @dataclass(frozen=True)
    class Own(SpinRule):
        temperature: float = 1.0
        states: int = 3

        @staticmethod
        def weight(state, north, west, east, south, parameters):  # type: ignore[no-untyped-def]
            return 1.0

        def coupled(self, state: int) -> float:
            return 1.0 if state == 2 else 0.0

    h = np.where(np.arange(64) < 32, 50.0, -50.0) * np.ones((64, 1))
    sim = made(Own(), 64, site_field=h, dt=math.inf)
    sim.advance_to(1.0)
    assert (sim.spins()[0, :, :32] == 2).all()
    assert not (sim.spins()[0, :, 32:] == 2).any()
    assert isinstance(sim.solver, RuleSublattice)
