"""What commands make of a file with observables of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow import Ising, Observable, Simulation, Trajectory, initial, observables, record
from mpiflow.cli import invoke
from mpiflow.commands import plot as plot_run
from mpiflow.commands import verify
from mpiflow.core.errors import InputError
from mpiflow.run.plan import plan, read

CHOSEN = {
    "up": lambda spins: np.count_nonzero(spins > 0, axis=(1, 2)),
    "S": observables.structure_factor(coarse=1),
    "waves": observables.structure_factor(coarse=4, full=True),
    "clusters": "clusters",
    "first": Observable(lambda spins: spins[:, ::4, ::4] > 0, kind="field", coarse=4, units="m"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shown") / "run.h5"
    sim = Simulation(Ising(temperature=2.3), 32, members=2, seed=2, kernel="plain",
                     comm=MPI.COMM_SELF)  # fmt: skip
    sim.set_spins(initial.shuffled, magnetization=0.2)
    record(sim, out, time=3, save_every=1, coarse=8, observables=CHOSEN, progress=False)
    return out


def test_pages_and_pictures_show_them(run: Path, tmp_path: Path) -> None:
    with Trajectory(run) as opened:
        series, fields = plot_run._select(opened, None)
        assert {"up", "clusters"} <= {v.name for v in series}
        # Sixteen rings of k against time, and maps.
        assert {"S", "waves", "first"} <= {v.name for v in fields}
        text = "\n".join(plot_run.page(opened, ["up", "clusters", "S", "first"]))
        assert opened.read("k").size == 16
    for name in CHOSEN:
        assert name in text or name == "waves"
    assert "largest" in text
    picture = tmp_path / "run.png"
    plot_run.plot(run, picture)
    assert picture.stat().st_size > 10_000


def test_exports_hold_them(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.nc"
    invoke(["export", str(run), "--to", "netcdf", "--out", str(out)])
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(out) as copy, Trajectory(run) as opened:
        assert copy["first"].units == "m"
        for name in CHOSEN:
            assert np.array_equal(copy[name][:], opened[name])
    invoke(["export", str(run), "--to", "xdmf", "--out", str(tmp_path / "run.xdmf")])
    assert "first" in (tmp_path / "run.xdmf").read_text()


def test_verify_checks_them(run: Path, tmp_path: Path) -> None:
    assert verify.verify_file(run).good
    import h5py

    damaged = tmp_path / "damaged.h5"
    sim = Simulation(Ising(temperature=2.3), 8, seed=2, kernel="plain", comm=MPI.COMM_SELF)
    sim.set_spins(initial.shuffled, magnetization=0.0)

    class Ends(Exception):
        pass

    def end(sim: Simulation, sample: object) -> None:
        if sim.time == 2:
            raise Ends

    with pytest.raises(ValueError, match="Ends"):
        record(sim, damaged, time=3, save_every=1, callbacks=[end], progress=False,
               observables={"wave": np.sin})  # fmt: skip
    assert verify.verify_file(damaged).good  # a live file, that of an interrupted run
    with h5py.File(damaged, "r+") as file:
        file["wave"][1] = np.nan
    assert verify.verify_file(damaged).text == "corrupt: wave is not finite at frame 1"


def test_the_command_line_names_them(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    options = "--size 8 --temperature 2 --time 1 --dt 0.5 --quiet --kernel plain"
    chosen = "interface_length,cluster_sizes:bins=7"
    invoke(["simulate", "ising", *options.split(), "--observables", chosen, "--out", str(out)])
    with Trajectory(out) as opened:
        # The bonds between unlike neighbours are those of the density of walls.
        walls = opened["domain_wall_density"] * 2 * 64
        assert np.array_equal(opened["interface_length"], np.rint(walls))
        sizes = opened["cluster_sizes"]
        assert sizes.shape == (len(opened), 7)
    made = plan(read(out))  # of the configuration in the file
    planned = {s.name: s.total for s in made.stored if s.name in chosen}
    with Trajectory(out) as opened:
        assert planned == {name: opened[name].nbytes for name in planned}
    chain = "simulate linear-chain --size 8 --time 0.02 --save-every 0.02 --overwrite"
    with pytest.raises(InputError, match="on a square lattice"):  # not by the line about its sizes
        invoke([*chain.split(), "--observables", "correlation", "--out", str(out)])
