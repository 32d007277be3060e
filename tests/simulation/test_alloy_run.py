"""``mpiflow simulate alloy``: what the file holds, on any number of ranks, and starting again."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from same_files import assert_same, contents

from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.files import structure
from mpiflow.files.trajectory import Trajectory
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.run.simulate import record, simulate
from mpiflow.simulation.alloy.barrier_model import load_barrier_model
from mpiflow.simulation.alloy.build import build
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.systems import alloy, barriers
from mpiflow.systems.alloy import Alloy

MpiRun = Callable[..., subprocess.CompletedProcess[str]]
PAIRS = ["NbNb", "NbMo", "NbTa", "MoMo", "MoTa", "TaTa"]

#: Small runs of one lattice, and of a tiled one that four ranks may share.
SMALL = "simulate alloy --cells 4 --temperature 2000 --seed 3".split()
TILED = "simulate alloy --cells 12 --temperature 2000 --seed 3 --solver tiled --tile 6".split()


def config(out: Path, **options: Any) -> AlloyConfig:
    """A small tiled run of everything that can be saved."""
    defaults: dict[str, Any] = {
        "cells": 12,
        "temperature": 2000,
        "vacancies": 12,
        "time": 2e-9,
        "save_every": 1e-9,
        "solver": "tiled",
        "tile": 6,
        "species": True,
        "seed": 5,
        "quiet": True,
    }
    return AlloyConfig(**defaults | options, out=out)


def command(*words: str | Path) -> None:
    invoke([str(word) for word in words])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 300 hops with all its species."""
    out = tmp_path_factory.mktemp("alloy") / "run.h5"
    config = AlloyConfig(
        cells="4x5x6", temperature=2000, vacancies=2, hops=300, save_every=100, species=True,
        seed=3, quiet=True, out=out,
    )  # fmt: skip
    simulate(config, MPI.COMM_SELF)
    return out


# -- what the file holds -------------------------------------------------------------------


def test_a_run_of_hops(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.h5"
    command(*SMALL, "--hops", "1000", "--save-every", "300", "--species", "--out", out)
    told = capfd.readouterr()
    name = load_barrier_model("default").name
    what = f"{out}: 128 sites of 4 x 4 x 4 cells, 2000 K, serial, 1 rank, barriers {name}\n"
    assert told.out.startswith(what)
    assert "evaluations" in told.out
    assert "100 %" in told.err
    with Trajectory(out) as run:
        assert run.complete
        assert run["hops"].tolist() == [0, 300, 600, 900, 1000]
        times = run["time"]
        assert times[0] == 0.0
        assert np.all(np.diff(times) > 0)
        species = run["species"]
        assert species.shape == (5, 128)
        assert species.dtype == np.int8
        counts = [np.bincount(row, minlength=4).tolist() for row in species]
        assert counts == [list(counts_of(128, 1))] * 5
        assert np.array_equal(run["sro"], alloy.short_range_order(run["bonds"]))
        assert np.array_equal(alloy.species_numbers(run["bonds"]), counts)
        assert "alloy, complete" in run.summary()
    # The mean time between hops at 2000 K is 1.6e-10 s, with the published barriers.
    assert 0.5e-10 < times[-1] / 1000 < 5e-10


def test_names_units_and_dimensions(saved: Path) -> None:
    with h5py.File(saved) as file:
        assert file["pair"].asstr()[()].tolist() == PAIRS
        assert file["element"].asstr()[()].tolist() == ["Nb", "Mo", "Ta"]
        assert file["corner_species"].asstr()[()].tolist() == ["vacancy", "Nb", "Mo", "Ta"]
        assert file["time"].attrs["units"] == "s"
        dims = {
            name: [dim[0].name.strip("/") for dim in file[name].dims]
            for name in ("sro", "bonds", "hops", "species", "long_range_order")
        }
        assert dims == {
            "sro": ["time", "pair"],
            "bonds": ["time", "corner_species", "centre_species"],
            "hops": ["time"],
            "species": ["time", "site"],
            "long_range_order": ["time", "element"],
        }
        about = dict(file.attrs)
    assert (about["system"], about["seed"], about["rng"]) == ("alloy", 3, "threefry2x64-13")
    assert (about["complete"], about["decomposition_invariant"]) == (1, 1)
    model = load_barrier_model("default")
    assert (about["barriers"], about["barriers_sha256"]) == (model.name, model.sha256)
    assert about["lattice_constant_angstrom"] == 3.24
    stored = json.loads(about["config_json"])
    assert AlloyConfig(**stored).cells == (4, 5, 6)


def test_opens_in_xarray(saved: Path) -> None:
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(saved) as run:
        assert run["sro"].dims == ("time", "pair")
        assert [str(pair) for pair in run["pair"].values] == PAIRS
        assert run["sro"].sel(pair="MoTa").shape == (4,)
        assert run["species"].dims == ("time", "site")
        assert run["time"].attrs["long_name"] == "time"
        # Seconds, as numbers: not turned into dates.
        assert run["time"].dtype == np.float64
        assert 0 < float(run["time"][-1]) < 1e-6


def test_a_frame_at_t_holds_the_state_in_force_then(tmp_path: Path) -> None:
    """The run to a time is the run of so many hops, looked at between two of them."""
    line = [*SMALL, "--species", "--quiet"]
    command(*line, "--hops", "60", "--save-every", "1", "--out", tmp_path / "hops.h5")
    every = float(contents(tmp_path / "hops.h5")["time"][-1]) / 7.3
    times = ["--time", repr(5.5 * every), "--save-every", repr(every)]
    command(*line, *times, "--out", tmp_path / "time.h5")
    by_hops, by_time = contents(tmp_path / "hops.h5"), contents(tmp_path / "time.h5")
    assert np.array_equal(by_hops["hops"], np.arange(61))
    expected = [*(every * np.arange(6)), 5.5 * every]
    np.testing.assert_allclose(by_time["time"], expected, rtol=1e-14)
    last = np.searchsorted(by_hops["time"], by_time["time"], side="right") - 1
    assert last[-1] > last[1] > 0
    for name in ("hops", "species", "bonds", "sro"):
        assert np.array_equal(by_time[name], by_hops[name][last]), name


@pytest.mark.mpi
def test_an_ensemble_has_a_member_dimension(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    """Dealt to the ranks it is as on one, and member 0 is the single run."""
    options = {"cells": "4x4x5", "vacancies": 1, "solver": "serial", "tile": None}
    simulate(config(mpi_tmp_path / "all.h5", **options, members=3), comm)
    if comm.rank > 0:
        return
    simulate(config(mpi_tmp_path / "one.h5", **options, members=3), MPI.COMM_SELF)
    assert_same(mpi_tmp_path / "all.h5", mpi_tmp_path / "one.h5")
    simulate(config(mpi_tmp_path / "single.h5", **options), MPI.COMM_SELF)
    every, single = contents(mpi_tmp_path / "all.h5"), contents(mpi_tmp_path / "single.h5")
    assert every["sro"].shape == (3, 3, 6)
    assert every["species"].shape == (3, 3, 160)
    for name in ("sro", "bonds", "hops", "species"):
        assert np.array_equal(every[name][:, 0], single[name]), name
    assert not np.array_equal(every["species"][0, 1], every["species"][0, 0])


def test_quiet_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command(*SMALL, "--hops", "5", "--quiet", "--out", tmp_path / "run.h5")
    assert capfd.readouterr() == ("", "")


# -- from Python ----------------------------------------------------------------------------


@pytest.mark.mpi
def test_a_run_from_python_needs_no_configuration(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    model = barriers.constant([1.0, 1.0])
    sim = AlloySimulation(
        Alloy(1500.0, ("A", "B")), model, 8, solver="tiled", tile=(8, 16, 16), seed=1,
        comm=MPI.COMM_SELF,
    )  # fmt: skip
    sim.set_species(random_alloy, counts=counts_of(sim.sites, 4, elements=2))
    out = mpi_tmp_path / f"a{comm.rank}.h5"
    record(sim, out, time=2e-9, progress=False)
    # The simulation goes on where it was.
    record(sim, out.with_suffix(".b.h5"), hops=50, progress=False)
    a, b = contents(out), contents(out.with_suffix(".b.h5"))
    assert a["time"].tolist() == [0.0, pytest.approx(2e-9)]
    assert a["hops"][-1] == b["hops"][0]
    assert b["hops"][-1] >= b["hops"][0] + 50
    assert np.array_equal(a["bonds"][-1], b["bonds"][0])
    assert "species" not in a
    with Trajectory(out) as run:
        stored, about = json.loads(run.attributes["config_json"]), run.attributes
        assert [str(p) for p in run["pair"]] == ["AA", "AB", "BB"]
    assert (stored["temperature"], stored["cells"], stored["seed"]) == (1500.0, [8, 8, 8], 1)
    assert about["window_hops"] == 2.0
    assert list(about["tile_points"]) == [8, 16, 16]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "one of the two"),
        ({"time": 1e-9, "hops": 5}, "one of the two"),
        ({"time": 1e-9, "save_every": 0}, "save_every"),
        ({"time": -1e-9}, "time="),
        ({"hops": 0}, "hops="),
        ({"hops": 10, "save_every": 2.5}, "whole number of hops"),
        ({"hops": 10, "save_every": 0.5}, "whole number of hops"),
        ({"hops": 10, "save_every": 0}, "save_every"),
        ({"hops": 10, "save_every": float("nan")}, "whole number of hops"),
        ({"hops": 10, "members": 2}, "clocks differ"),
    ],
)
def test_runs_from_python_that_cannot_be(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    members = options.pop("members", 1)
    model = barriers.constant([1.0] * 3)
    sim = AlloySimulation(Alloy(2000.0), model, 4, members=members, comm=MPI.COMM_SELF)
    sim.set_species(random_alloy, counts=counts_of(sim.sites, 1))
    with pytest.raises(InputError) as caught:
        record(sim, tmp_path / "x.h5", progress=False, **options)
    assert says in str(caught.value)
    assert not list(tmp_path.iterdir())


# -- programs on several ranks ----------------------------------------------------------------


def test_each_rank_says_what_it_did(
    mpirun: MpiRun, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two vacancies: most of four ranks have nothing to do. One rank is this process."""
    line = [*TILED, *"--vacancies 2 --time 4e-9 --save-every 2e-9 --species".split()]
    command(*line, "--out", tmp_path / "1.h5")
    told = {1: capfd.readouterr().out}
    told[4] = mpirun(4, "mpiflow", *line, "--out", tmp_path / "4.h5").stdout
    for ranks, text in told.items():
        rows = text.split("waiting\n")[1].splitlines()
        assert [int(row.split()[0]) for row in rows] == list(range(ranks))
        hops = [float(row.split()[1]) for row in rows]
        assert sum(hops) == contents(tmp_path / f"{ranks}.h5")["hops"][-1] > 10
    assert_same(tmp_path / "1.h5", tmp_path / "4.h5")


# -- starting from files --------------------------------------------------------------------


def states(path: Path) -> np.ndarray:
    return contents(path)["species"]


def test_a_run_starts_from_the_end_of_another(saved: Path, tmp_path: Path) -> None:
    out, line = tmp_path / "next.h5", "simulate alloy --cells 4x5x6 --temperature 1500".split()
    command(*line, "--hops", "5", "--initial", saved, "--species", "--quiet", "--out", out)
    assert np.array_equal(states(out)[0], states(saved)[-1])
    assert contents(out)["hops"][0] == 0
    with Trajectory(out) as run:
        assert json.loads(run.attributes["config_json"])["vacancies"] is None


@pytest.mark.parametrize("to", ["lammpsdump", "extxyz"])
def test_exported_files_start_a_run_and_are_read_by_ase(
    saved: Path, tmp_path: Path, to: str
) -> None:
    """The last frame: the same species at the same places; vacancies are where no atom is."""
    ase_io = pytest.importorskip("ase.io")
    file = tmp_path / ("end.dump" if to == "lammpsdump" else "end.xyz")
    command("export", saved, "--to", to, "--out", file)
    atoms = ase_io.read(file, format="lammps-dump-text" if to == "lammpsdump" else "extxyz")
    last = states(saved)[-1]
    assert len(atoms) == (last > 0).sum() == 238
    sides = np.array([8, 10, 12])
    np.testing.assert_allclose(atoms.cell.lengths(), sides * 1.62)
    assert atoms.pbc.all()
    points = np.rint(atoms.positions / 1.62).astype(int)
    np.testing.assert_allclose(points * 1.62, atoms.positions, atol=1e-6)
    grid = np.zeros(sides, np.int8)
    kinds = {"Nb": 1, "Mo": 2, "Ta": 3}
    grid[tuple(points.T)] = [kinds[symbol] for symbol in atoms.get_chemical_symbols()]
    assert np.array_equal(grid[alloy.is_site(tuple(sides))], last)
    out = tmp_path / "next.h5"
    line = [*"simulate alloy --cells 4x5x6 --temperature 1500 --hops 5".split(), "--initial", file]
    command(*line, "--species", "--quiet", "--out", out)
    assert np.array_equal(states(out)[0], last)


def test_a_file_without_vacancies_gets_some(tmp_path: Path) -> None:
    """Random ones, the same for a seed; all other atoms stay."""
    file = tmp_path / "full.xyz"
    sites = np.argwhere(alloy.is_site((8, 8, 8)))
    names = np.array(["Nb", "Mo", "Ta"])[np.random.default_rng(1).integers(0, 3, len(sites))]
    rows = [f"{n} {x} {y} {z}" for n, (x, y, z) in zip(names, sites * 1.62, strict=True)]
    box = 'Lattice="12.96 0 0 0 12.96 0 0 0 12.96" Properties=species:S:1:pos:R:3'
    file.write_text("\n".join([str(len(sites)), box, *rows]) + "\n")
    line = [*SMALL, "--hops", "5", "--initial", file, "--species", "--quiet"]
    before = np.array([{"Nb": 1, "Mo": 2, "Ta": 3}[n] for n in names])
    starts = []
    for seed, options in enumerate([[], ["--vacancies", "4"], ["--vacancies", "4"]]):
        out = tmp_path / f"{seed}.h5"
        command(*line, *options, "--seed", str(7 + seed // 2), "--out", out)
        starts.append(states(out)[0])
        vacant = starts[-1] == 0
        assert vacant.sum() == (4 if options else 1)
        assert np.array_equal(starts[-1][~vacant], before[~vacant])
    assert not np.array_equal(starts[1], starts[2])
    with pytest.raises(InputError, match=r"^vacancies=65: .*half of the sites"):
        command(*line, "--vacancies", "65", "--out", tmp_path / "x.h5")


def test_numbers_of_vacancies_that_differ_from_the_file(
    mpirun: MpiRun, saved: Path, tmp_path: Path
) -> None:
    line = "simulate alloy --cells 4x5x6 --temperature 2000 --hops 5 --vacancies 3".split()
    with pytest.raises(InputError, match=r"vacancies=3: allowed is 2, as in .*run.h5"):
        command(*line, "--initial", saved, "--out", tmp_path / "x.h5")
    tiled = [*line, "--solver", "tiled", "--tile", "8,10,6", "--ranks-grid", "1,1,2"]
    done = mpirun(2, "mpiflow", *tiled, "--initial", saved, "--out", tmp_path / "x.h5", check=False)
    assert done.returncode == 2
    assert done.stderr.count("mpiflow: vacancies=3") == 1
    assert not list(tmp_path.iterdir())


def test_species_are_named_by_the_elements(saved: Path, tmp_path: Path) -> None:
    line = [*"simulate alloy --cells 4x5x6 --temperature 2000 --hops 5".split(), "--initial", saved]
    command(*line, "--elements", "Mo,Nb,Ta", "--species", "--quiet", "--out", tmp_path / "a.h5")
    turned = np.array([0, 2, 1, 3])[states(saved)[-1]]
    assert np.array_equal(states(tmp_path / "a.h5")[0], turned)
    with pytest.raises(InputError, match="the file has Ta"):
        command(*line, "--elements", "Mo,Nb,W", "--out", tmp_path / "b.h5")


# -- bad runs write nothing -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--hops 5 --vacancies 65", "vacancies=65: allowed is 1 to 64, half of the sites"),
        ("--hops 5 --composition 1,1", "composition=[1.0, 1.0]: allowed is 3 fractions"),
        ("--hops 5 --composition 1,1,-1", "None may be negative"),
        ("--hops 5 --composition 0,0,0", "nor all zero"),
        ("--hops 5 --composition 0.5,0.5,0.5", "They add up to 1.5"),
        ("--hops 5 --composition 50,50,50", "add up to 127"),
        ("--hops 5 --elements A,B", "barriers"),
        ("--hops 5 --barriers no/such/file.npy", "no/such/file.npy"),
        ("--hops 5 --time 1e-9", "one of the two"),
        ("--time 1e-9 --solver tiled --tile 5", "tile=(5, 5, 5)"),
        ("--time 1e-9 --solver tiled --window 2e-10 --save-every 5e-10", "save_every=5e-10"),
        ("--time 1e-9 --solver tiled --window 3e-10 --save-every 3e-10", "time=1e-09"),
        ("--time 1e-9 --solver tiled --ranks-grid 1,2,1", "a grid of 1 ranks"),
        ("--time 1e-9 --initial run.h5", "existing file"),
        ("--hops 5 --out no/such/dir/x.h5", "no/such/dir"),
    ],
)
def test_bad_runs_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        command(*SMALL, "--out", "x.h5", *options.split())
    assert says in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_go_on_says_so(tmp_path: Path) -> None:
    """So cold that rates vanish: its file holds what there is, and is marked."""
    out = tmp_path / "x.h5"
    with pytest.raises(InputError, match="no vacancy can hop any more"):
        command(*SMALL, "--hops", "5", "--temperature", "1", "--quiet", "--out", out)
    with Trajectory(out) as run:
        assert not run.complete
        assert run["hops"].tolist() == [0]
    command(*SMALL, "--time", "5", "--temperature", "1", "--quiet", "--overwrite", "--out", out)
    assert contents(out)["hops"].tolist() == [0] * 101


def test_files_of_other_sizes(saved: Path, tmp_path: Path) -> None:
    command("export", saved, "--to", "extxyz", "--out", tmp_path / "a.xyz")
    for file in (saved, tmp_path / "a.xyz"):
        with pytest.raises(InputError, match="Use matching --cells"):
            command(*SMALL, "--hops", "5", "--initial", file, "--out", tmp_path / "x.h5")
    command(*SMALL, "--hops", "5", "--quiet", "--out", tmp_path / "bare.h5")
    with pytest.raises(InputError, match="--species"):
        command(*SMALL, "--hops", "5", "--initial", tmp_path / "bare.h5", "--out", tmp_path / "x")


def test_the_lattice_constant_is_kept(tmp_path: Path) -> None:
    """From a structure through the run, its resume and each export, and from run to run."""
    state = np.full((8, 8, 8), -1, np.int8)
    state[alloy.is_site(state.shape)] = [0, *np.arange(127) % 3 + 1]
    given = tmp_path / "given.dump"
    structure.write_lammpsdump(given, [structure.Snapshot(0.0, 0, state)], lattice_constant=3.19)
    line = ["simulate", "alloy", "--cells", "4", "--temperature", "2000", "--species", "--quiet"]
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    command(*line, "--hops", "5", "--initial", given, "--out", one)
    given.unlink()
    invoke(["resume", str(one), "--hops", "10"])
    command(*line, "--hops", "5", "--initial", one, "--out", two)
    for out in (one, two):
        with Trajectory(out) as run:
            assert run.attributes["lattice_constant_angstrom"] == pytest.approx(3.19)
        for kind, suffix in (("lammpsdump", "dump"), ("extxyz", "xyz")):
            invoke(["export", "--to", kind, str(out)])
            found = structure.read_state(out.with_suffix(f".{suffix}"))
            assert found.lattice_constant == pytest.approx(3.19)


def test_an_existing_file_needs_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    line = [*SMALL, "--hops", "5", "--quiet", "--out", out]
    command(*line)
    before = out.read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        command(*line, "--seed", "9")
    assert out.read_bytes() == before
    command(*line, "--seed", "9", "--overwrite")
    assert out.read_bytes() != before


@pytest.mark.mpi(min_size=2)
def test_many_ranks_and_what_they_cannot_do(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    out = mpi_tmp_path / "x.h5"
    with pytest.raises(InputError, match="ranks="):
        simulate(config(out, solver="serial", tile=None), comm)
    with pytest.raises(InputError, match="slabs along x"):
        simulate(config(out, ranks_grid=(1, 1, comm.size)), comm)
    with pytest.raises(InputError, match="smaller tiles"):
        simulate(config(out, tile=24), comm)
    assert not list(mpi_tmp_path.iterdir())


def test_the_first_window_is_that_of_the_state(tmp_path: Path) -> None:
    given = config(tmp_path / "run.h5", time=4e-9, save_every=None)
    sim = build(given, MPI.COMM_SELF).sim
    assert given.save_every == pytest.approx(4e-11)
    assert sim.choice is not None
    assert sim.choice.last == pytest.approx(4 * 1.6e-10, rel=0.7)


@pytest.mark.parametrize(("time", "every"), [(5e-9, 3e-9), (1.6e-9, 1.2e-9), (2.5e-9, 1e-9)])
def test_a_chosen_window_divides_the_run_too(tmp_path: Path, time: float, every: float) -> None:
    """Nobody asked for a window, so nobody is told that theirs does not fit."""
    given = config(tmp_path / "run.h5", time=time, save_every=every)
    simulate(given, MPI.COMM_SELF)
    count = int(time // every)
    times = contents(tmp_path / "run.h5")["time"]
    np.testing.assert_allclose(times, [*(every * np.arange(count + 1)), time], rtol=1e-12)
    with Trajectory(tmp_path / "run.h5") as run:
        assert (np.diff(run["windows"]) >= 1).all()
