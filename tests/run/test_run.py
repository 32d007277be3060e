"""Recorded runs: what the file holds, and that it does not depend on ranks or on the writer."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from same_files import assert_same, contents

from mpiflow import initial
from mpiflow.cli import invoke
from mpiflow.commands.verify import verify
from mpiflow.core.compiling import CLOCK
from mpiflow.core.errors import InputError
from mpiflow.files.trajectory import Trajectory
from mpiflow.run import progress
from mpiflow.run.progress import Progress
from mpiflow.run.simulate import record, simulate
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.systems.ising import Ising

MpiRun = Callable[..., subprocess.CompletedProcess[str]]


def config(out: Path, **options: Any) -> IsingConfig:
    """A small run of everything that can be saved."""
    defaults: dict[str, Any] = {
        "size": "24x16",
        "temperature": 2.5,
        "field": 0.1,
        "time": 3,
        "save_every": 1,
        "coarse": 4,
        "spins": True,
        "initial_magnetization": 0.25,
        "seed": 5,
        "quiet": True,
    }
    return IsingConfig(**defaults | options, out=out)


# -- what the file holds -------------------------------------------------------------------


@pytest.mark.mpi
def test_values_agree_with_the_spins(comm: MPI.Intracomm, mpi_tmp_path: Path):
    simulate(config(mpi_tmp_path / "run.h5"), comm)
    with Trajectory(mpi_tmp_path / "run.h5") as run:
        spins = run["spin"].astype(np.int64)
        assert np.array_equal(run["time"], [0, 1, 2, 3])
        assert spins.shape == (4, 24, 16)
        assert np.array_equal(run["magnetization"], spins.mean(axis=(1, 2)))
        assert run["magnetization"][0] == 0.25
        bonds = sum((spins * np.roll(spins, -1, axis)).sum(axis=(1, 2)) for axis in (1, 2))
        assert np.allclose(
            run["energy"], (-bonds - 0.1 * spins.sum(axis=(1, 2))) / spins[0].size, rtol=1e-14
        )
        assert np.array_equal(run["domain_wall_density"], (1 - bonds / (2 * spins[0].size)) / 2)
        blocks = spins.reshape(4, 6, 4, 4, 4).mean(axis=(2, 4))
        assert np.array_equal(run["coarse_magnetization"], blocks.astype(np.float32))
        assert run["flips"][0] == 0
        changed = (spins[1:] != spins[:-1]).sum(axis=(1, 2))
        assert np.all(np.diff(run["flips"]) >= changed)
        assert np.all((np.diff(run["flips"]) - changed) % 2 == 0)


@pytest.mark.mpi
def test_attributes_tell_how_to_run_it_again(comm: MPI.Intracomm, mpi_tmp_path: Path):
    given = config(mpi_tmp_path / "run.h5", dt="inf")
    simulate(given, comm)
    with Trajectory(mpi_tmp_path / "run.h5") as run:
        about = run.attributes
        assert run.complete
    assert IsingConfig(**json.loads(about["config_json"])) == given
    assert (about["system"], about["seed"], about["rng"]) == ("ising", 5, "threefry2x64-13")
    assert (about["decomposition_invariant"], about["ranks"]) == (1, comm.size)


@pytest.mark.mpi
def test_an_ensemble_has_a_member_dimension(comm: MPI.Intracomm, mpi_tmp_path: Path):
    simulate(config(mpi_tmp_path / "all.h5", members=3, kernel="plain"), comm)
    single = contents(mpi_tmp_path / "all.h5")
    assert single["spin"].shape == (4, 3, 24, 16)
    assert single["magnetization"].shape == (4, 3)
    simulate(config(mpi_tmp_path / "one.h5"), comm)
    first = contents(mpi_tmp_path / "one.h5")
    for name in ("magnetization", "energy", "flips", "coarse_magnetization", "spin"):
        assert np.array_equal(single[name][:, 0], first[name]), "member 0 is the single run"
    assert not np.array_equal(single["spin"][:, 1], single["spin"][:, 0])


@pytest.mark.mpi
def test_a_run_from_python_needs_no_configuration(comm: MPI.Intracomm, mpi_tmp_path: Path):
    sim = Simulation(Ising(2.5), 16, seed=1, comm=comm, granularity=2)
    sim.set_spins(initial.shuffled)
    record(sim, mpi_tmp_path / "a.h5", time=1, save_every=0.5, coarse=2, progress=False)
    # The simulation goes on where it was.
    record(sim, mpi_tmp_path / "b.h5", time=1, save_every=0.5, coarse=2, progress=False)
    a, b = contents(mpi_tmp_path / "a.h5"), contents(mpi_tmp_path / "b.h5")
    assert np.array_equal(b["time"], [1, 1.5, 2])
    assert a["magnetization"][-1] == b["magnetization"][0]
    with Trajectory(mpi_tmp_path / "a.h5") as run:
        stored = json.loads(run.attributes["config_json"])
    assert (stored["temperature"], stored["size"], stored["seed"]) == (2.5, [16, 16], 1)
    assert stored["coarse"] == 2


def test_opens_in_xarray(tmp_path: Path):
    xarray = pytest.importorskip("xarray")
    simulate(config(tmp_path / "run.h5"), MPI.COMM_SELF)
    simulate(config(tmp_path / "spins.h5", coarse=None), MPI.COMM_SELF)
    with xarray.open_dataset(tmp_path / "run.h5") as run:
        assert run["coarse_magnetization"].dims == ("time", "y", "x")
        assert run["spin"].dims == ("time", "site_y", "site_x")
        assert list(run["x"].values) == [1.5, 5.5, 9.5, 13.5]
    with xarray.open_dataset(tmp_path / "spins.h5") as run:
        assert run["spin"].dims == ("time", "y", "x")


def test_quiet_is_silent_and_the_rest_says_where_the_file_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    simulate(config(tmp_path / "a.h5"), MPI.COMM_SELF)
    assert capfd.readouterr() == ("", "")
    simulate(config(tmp_path / "b.h5", quiet=False), MPI.COMM_SELF)
    captured = capfd.readouterr()
    assert str(tmp_path / "b.h5") in captured.out
    assert "100 %" in captured.err


# -- the same bits -------------------------------------------------------------------------


def test_programs_on_1_and_4_ranks_write_the_same(mpirun: MpiRun, tmp_path: Path):
    line = (
        "simulate ising --size 48 --temperature 2.5 --field 0.1 --time 3 --save-every 1.5 "
        "--coarse 8 --initial-magnetization 0.3 --seed 1 --spins --quiet"
    ).split()
    invoke([*line, "--out", str(tmp_path / "1.h5")])
    mpirun(4, "mpiflow", *line, "--ranks-grid", "4,1", "--out", tmp_path / "4.h5")
    assert_same(tmp_path / "1.h5", tmp_path / "4.h5")


def test_the_cuda_simulator_writes_the_same(
    mpirun: MpiRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    line = "simulate ising --size 8 --temperature 2.5 --time 1 --spins --coarse 2 --quiet".split()
    invoke([*line, "--out", str(tmp_path / "cpu.h5")])
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    mpirun(2, "mpiflow", *line, "--device", "cuda", "--out", tmp_path / "cuda.h5")
    assert_same(tmp_path / "cpu.h5", tmp_path / "cuda.h5")


# -- initial states from files, and bad ones --------------------------------------------------


@pytest.mark.mpi
def test_a_run_starts_from_the_end_of_another(comm: MPI.Intracomm, mpi_tmp_path: Path):
    start = {"initial": str(mpi_tmp_path / "a.h5"), "initial_magnetization": 0}
    simulate(config(mpi_tmp_path / "a.h5", coarse=None), comm)
    simulate(config(mpi_tmp_path / "b.h5", coarse=None, seed=6, **start), comm)
    simulate(config(mpi_tmp_path / "c.h5", coarse=None, members=2, **start), comm)
    end = contents(mpi_tmp_path / "a.h5")["spin"][-1]
    assert np.array_equal(contents(mpi_tmp_path / "b.h5")["spin"][0], end)
    assert np.array_equal(contents(mpi_tmp_path / "c.h5")["spin"][0], [end, end])


def _hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["other"] = np.ones(3)


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "text.npy": (lambda p: p.write_text("no numpy here"), "a readable"),
    "text.h5": (lambda p: p.write_text("no HDF5 here"), "a readable"),
    "empty.npy": (lambda p: p.write_bytes(b""), "a readable"),
    "pickle.npy": (lambda p: np.save(p, np.array([{}]), allow_pickle=True), "readable"),
    "shape.npy": (lambda p: np.save(p, np.ones((4, 4), np.int8)), "a matching --size"),
    "zeros.npy": (lambda p: np.save(p, np.zeros((24, 16), np.int8)), "+1 and -1"),
    "foreign.h5": (_hdf5, "holds 'spin'"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", BAD_FILES)
def test_unreadable_and_foreign_initial_files(comm: MPI.Intracomm, mpi_tmp_path: Path, name: str):
    make, says = BAD_FILES[name]
    if comm.rank == 0:
        make(mpi_tmp_path / name)
    comm.Barrier()
    given = config(mpi_tmp_path / "x.h5", initial=str(mpi_tmp_path / name), initial_magnetization=0)
    with pytest.raises(InputError) as caught:
        simulate(given, comm)
    assert says in str(caught.value)
    assert not (mpi_tmp_path / "x.h5").exists()


@pytest.mark.mpi
def test_a_bad_value_in_one_ranks_part_stops_all_ranks(comm: MPI.Intracomm, mpi_tmp_path: Path):
    if comm.rank == 0:
        spins = np.ones((24, 16), np.int8)
        spins[-1, -1] = 7
        np.save(mpi_tmp_path / "spins.npy", spins)
    comm.Barrier()
    start = {"initial": str(mpi_tmp_path / "spins.npy"), "initial_magnetization": 0}
    with pytest.raises(InputError, match="values"):
        simulate(config(mpi_tmp_path / "x.h5", **start), comm)


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"time": 3.1}, "time=3.1: allowed is a multiple of the time step 0.25"),
        ({"save_every": 0.3}, "save_every=0.3"),
        ({"ranks_grid": "5,7"}, "ranks_grid"),
        ({"solver": "nfold", "members": 1, "device": "cuda"}, "device"),
    ],
)
def test_bad_runs_write_nothing(
    comm: MPI.Intracomm, mpi_tmp_path: Path, options: dict[str, Any], says: str
):
    with pytest.raises(InputError) as caught:
        simulate(config(mpi_tmp_path / "x.h5", **options), comm)
    assert says in str(caught.value)
    assert not list(mpi_tmp_path.iterdir())


@pytest.mark.mpi
@pytest.mark.parametrize("every", [0, -1, 0.3, float("nan")])
def test_a_bad_pause_from_python_writes_nothing(
    comm: MPI.Intracomm, mpi_tmp_path: Path, every: float
):
    sim = Simulation(Ising(2.5), 16, comm=comm)
    with pytest.raises(InputError, match="save_every"):
        record(sim, mpi_tmp_path / "x.h5", time=1, save_every=every, progress=False)
    assert not list(mpi_tmp_path.iterdir())


@pytest.mark.mpi
def test_blocks_must_fit_into_tiles(comm: MPI.Intracomm, mpi_tmp_path: Path):
    sim = Simulation(Ising(2.5), (12, 2), comm=comm, ranks_grid=(comm.size, 1))
    for coarse, says in ((5, "divisor"), (2, "granularity=2")):
        if coarse == 2 and 12 // comm.size % 2 == 0:
            continue
        with pytest.raises(InputError, match=says):
            record(sim, mpi_tmp_path / "x.h5", time=1, save_every=1, coarse=coarse, progress=False)
    assert not list(mpi_tmp_path.iterdir())


@pytest.mark.mpi
def test_an_existing_file_needs_overwrite(comm: MPI.Intracomm, mpi_tmp_path: Path):
    out = mpi_tmp_path / "run.h5"
    simulate(config(out), comm)
    before = out.read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        simulate(config(out, seed=6), comm)
    assert out.read_bytes() == before
    comm.Barrier()
    simulate(config(out, seed=6, overwrite=True), comm)
    assert out.read_bytes() != before


# -- progress ----------------------------------------------------------------------------------


@pytest.mark.mpi
def test_progress_is_shown_by_rank_zero_alone(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with Progress(10, "work", comm) as bar:
        bar.update(10, loss=0.123456)
    expected = ["work 100 %  0.0 s  loss 0.1235"] if comm.rank == 0 else []
    assert log.getvalue().splitlines() == expected


def test_a_batch_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with Progress(1000, "train") as bar:
        for done in range(1, 1001):
            now[0] += 0.5  # 500 s
            bar.update(done)
    lines = log.getvalue().splitlines()
    assert 20 < len(lines) < 60
    assert lines[0] == "train   2 %  10.0 s, 0:08:10 left"
    assert lines[-1] == "train 100 %  0:08:20"
    log.truncate(0)
    with Progress(100, "first") as bar:
        bar.update(0)
        CLOCK.begin()
        now[0] += 30
        CLOCK.end()
        now[0] += 10
        bar.update(50)
    lines = log.getvalue().strip("\0").splitlines()
    assert lines[0] == "first  50 %  40.0 s, 10.0 s left (30.0 s were to compile, once)"
    log.truncate(0)
    with Progress(1000, "fast") as bar:
        for done in range(1, 1001):
            now[0] += 0.003  # 3 s
            bar.update(done)
    assert len(log.getvalue().splitlines()) <= 4


def test_a_failed_run_does_not_claim_to_be_done(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())

    def fail() -> None:
        with Progress(10, "work") as bar:
            bar.update(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert log.getvalue() == ""


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """If it can show one; else lines, as a log."""

    class ZMQInteractiveShell:
        pass

    shown: list[int | None] = []
    notebook = SimpleNamespace(get_ipython=ZMQInteractiveShell)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    real = progress._bar(80)
    monkeypatch.setattr(progress, "_bar", lambda width: shown.append(width) or real)
    monkeypatch.setattr(progress, "terminal_width", lambda: None)
    for installed, bars in ((None, []), ("here", [None])):
        monkeypatch.setattr(progress, "find_spec", lambda name, found=installed: found)
        with Progress(2, "train") as bar:
            bar.update(2)
        assert shown == bars
        assert ("train 100 %" in capsys.readouterr().err) is not bool(bars)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch):
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 90, 0, 0))
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert progress.terminal_width() == 90
        with Progress(10, "work") as bar:
            bar.update(5, loss=0.5)
        shown = b""
        while select.select([reader], [], [], 0.2)[0]:
            shown += os.read(reader, 4096)
        assert b"50%" in shown
        assert b"loss 0.5" in shown
    os.close(reader)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    assert progress.terminal_width() is None


@pytest.mark.mpi
@pytest.mark.parametrize("options", [{}, {"size": "64x128"}, {"members": 3}, {"coarse": None}])
def test_spins_as_bits_are_the_spins(comm, mpi_tmp_path, options):
    options = {"size": "24x48", **options}
    simulate(config(mpi_tmp_path / "bytes.h5", **options), comm)
    simulate(config(mpi_tmp_path / "bits.h5", **options, spins=False, spin_bits=True), comm)
    with Trajectory(mpi_tmp_path / "bytes.h5") as a, Trajectory(mpi_tmp_path / "bits.h5") as b:
        assert b["spin_bits"].nbytes * 8 == a["spin"].nbytes
        np.testing.assert_array_equal(a["spin"], b.spins())
        np.testing.assert_array_equal(a.spins(-1), b.spins(-1))
        assert a.time.tolist() == b.time.tolist()
    if comm.rank == 0:
        assert [
            str(finding) for finding in verify([mpi_tmp_path / "bits.h5"]) if not finding.good
        ] == []
    comm.Barrier()


@pytest.mark.mpi
def test_a_run_starts_from_the_bits_of_another(comm, mpi_tmp_path):
    for name, form in (("bytes", {"spins": True}), ("bits", {"spins": False, "spin_bits": True})):
        simulate(config(mpi_tmp_path / f"{name}.h5", size="24x48", **form), comm)
        simulate(
            config(mpi_tmp_path / f"from_{name}.h5", size="24x48", time=1,
                   initial=str(mpi_tmp_path / f"{name}.h5"), initial_magnetization=0), comm,
        )  # fmt: skip
    assert_same(mpi_tmp_path / "from_bytes.h5", mpi_tmp_path / "from_bits.h5")


def test_bits_need_whole_bytes(tmp_path):
    with pytest.raises(InputError, match="spin_bits=.*multiple of 8"):
        config(tmp_path / "a.h5", size="24x44", spins=False, spin_bits=True)
    with pytest.raises(InputError, match="spin_bits"):
        config(tmp_path / "a.h5", size="24x48", spin_bits=True)
    sim = Simulation(Ising(2.0), (24, 48), comm=MPI.COMM_SELF)
    sim.set_spins(initial.uniform_up)
    record(sim, tmp_path / "b.h5", time=1, save_every=1, spin_bits=True, progress=False)
