"""Copies at several temperatures that exchange their states."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpiflow import InputError, Keep, checkpoint, initial, record, resume
from mpiflow.commands import verify
from mpiflow.files.trajectory import Trajectory
from mpiflow.metrics import correlated_error
from mpiflow.run.stopping import Stopped
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.simulation.tempering import Tempering
from mpiflow.systems.ising import Ising
from mpiflow.systems.kac import Kac
from mpiflow.systems.potts import Potts
from mpiflow.systems.site_field import RandomField

SELF = MPI.COMM_SELF


def ising(temperature: float, seed: int, comm: MPI.Intracomm, **options: Any) -> Any:
    sim = Simulation(Ising(temperature, field=0.1), seed=seed, comm=comm, **{"size": 8} | options)
    sim.set_spins(initial.shuffled)
    return sim


def potts(temperature: float, seed: int, comm: MPI.Intracomm) -> Any:
    sim: Any = Simulation(Potts(temperature), 8, seed=seed, comm=comm)
    sim.set_states(initial.rule.independent)
    return sim


def kac(temperature: float, seed: int, comm: MPI.Intracomm) -> Any:
    sim = KacSimulation(Kac(temperature, gamma=1), 16, seed=seed, comm=comm)
    sim.set_spins(initial.shuffled)
    return sim


COPIES: dict[str, Any] = {
    "plain": ising,
    "packed": partial(ising, size=(16, 128)),
    "n-fold": partial(ising, solver="nfold"),
    "tiled": partial(ising, solver="tiled-nfold", size=8, tile=4, dt=0.5),
    "potts": potts,
    "kac": kac,
}
LADDER = (1.2, 1.6, 2.1, 2.7, 3.4)


def contents(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: data[()] for name, data in file.items()}


def assert_same(first: Path, second: Path) -> None:
    a, b = contents(first), contents(second)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.mpi
@pytest.mark.parametrize("name", COPIES)
def test_any_ranks_exchange_the_same(name: str, comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    """And a run that was stopped, on one rank, goes on with the same bits on all."""
    quiet: dict[str, Any] = {"time": 12, "save_every": 2, "progress": False}
    whole, alone, parts = (mpi_tmp_path / f"{n}.h5" for n in ("whole", "alone", "parts"))
    make = lambda of: Tempering(COPIES[name], LADDER, every=1, seed=5, comm=of)  # noqa: E731
    record(make(comm), whole, **quiet)
    if comm.rank == 0:
        record(make(SELF), alone, **quiet)
        assert_same(whole, alone)
        with pytest.raises(Stopped):
            record(make(SELF), parts, keep=Keep(every=2, walltime=1e-3), **quiet)
    comm.Barrier()
    resume(parts, sim=make(comm), progress=False)
    if comm.rank == 0:
        assert_same(whole, parts)
        with Trajectory(whole) as run:
            replica, exchanges = run["replica"], run["exchanges"]
            assert (np.sort(replica, axis=1) == np.arange(len(LADDER))).all()
            assert exchanges[-1].sum() > 0
            assert list(run["copy_temperature"][0]) == list(LADDER)
            assert run.config["temperatures"] == list(LADDER)
        assert all(found.good for found in verify.verify([whole]))
        assert checkpoint.paths(parts.resolve())
    comm.Barrier()


#: +1 and -1 at random: on four spins a side it works against the coupling.
FRUSTRATED = RandomField(1.2, seed=3, kind="bimodal")


def exact(temperatures: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Mean energy per site of 4 x 4 spins by enumeration."""
    states = np.arange(2**16)
    spins = 1.0 - 2.0 * ((states[:, None] >> np.arange(16)) & 1).reshape(-1, 4, 4)
    bonds = (spins * (np.roll(spins, 1, 1) + np.roll(spins, 1, 2))).sum(axis=(1, 2))
    energy = -bonds - (field * spins).sum(axis=(1, 2))
    weight = np.exp(-(energy - energy.min()) / temperatures[:, None])
    return (weight * energy).sum(axis=1) / weight.sum(axis=1) / 16


def test_copies_keep_their_boltzmann_distributions(tmp_path: Path) -> None:
    """Against enumeration; six standard errors of four means: chance of a false alarm 1e-8."""
    temperatures = np.array([1.0, 1.5, 2.2, 3.2])
    make = partial(ising, size=4, kernel="plain", site_field=FRUSTRATED)
    sim = Tempering(make, temperatures, every=1, seed=2, comm=SELF)
    out = tmp_path / "run.h5"
    record(sim, out, time=1500, save_every=1, progress=False)
    with Trajectory(out) as run:
        energy, replica = run["energy"][50:], run["replica"]
    errors = np.array([correlated_error(series) for series in energy.T])
    assert (6 * errors < 0.2).all()  # copies differ by more
    y, x = np.indices((4, 4))
    due = exact(temperatures, 0.1 + FRUSTRATED(y, x))
    assert (abs(energy.mean(axis=0) - due) < 6 * errors).all()
    # Every state visits every temperature, and rates are those of the file.
    assert all(len(set(column)) == 4 for column in replica.T)
    rates = sim.exchange_rates()
    assert ((rates > 0.05) & (rates < 1)).all()
    assert "accepted exchanges" in sim.closing()[0]


def test_exchanges_that_make_no_sense_are_refused() -> None:
    for temperatures in ([2.0], [2.0, 1.0, 3.0], [2.0, 2.0], []):
        with pytest.raises(InputError, match="^temperatures="):
            Tempering(ising, temperatures, every=1, comm=SELF)
    with pytest.raises(InputError, match="^every=0.3"):
        Tempering(ising, [1, 2], every=0.3, comm=SELF)
    with pytest.raises(InputError, match="^every=0"):
        Tempering(ising, [1, 2], every=0, comm=SELF)
    with pytest.raises(InputError, match="^make="):
        Tempering(partial(ising, members=2), [1, 2], every=1, comm=SELF)
    sim = Tempering(ising, [1, 2], every=1, comm=SELF)
    with pytest.raises(InputError, match="^save_every=0.5"):
        record(sim, "none.h5", time=2, save_every=0.5)
    assert "T = 1 to 2" in repr(sim)
