"""Files that another program opened for writing: read, said, sealed anew; and files of others."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mpiflow
from mpiflow.cli import invoke
from mpiflow.commands import verify
from mpiflow.core.errors import InputError
from mpiflow.files import footer, manifest
from mpiflow.files.trajectory import Trajectory

RUN = "simulate ising --size 8x6 --temperature 2.3 --time 2 --save-every 0.25 --spins --quiet"


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("origin") / "run.h5"
    invoke([*RUN.split(), "--out", str(path)])
    return path


@pytest.fixture
def run(origin: Path, tmp_path: Path) -> Path:
    """A finished run with its manifest and checkpoints."""
    shutil.copytree(origin.parent, tmp_path / "runs")
    return tmp_path / "runs" / "run.h5"


def opened(path: Path) -> None:
    h5py.File(path, "r+").close()


def annotated(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = "mine"
        file["energy"].attrs["seen"] = 1


def rewritten(path: Path) -> None:
    """As nccopy does."""
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(path, decode_times=False, engine="h5netcdf") as data:
        whole = data.load()
    whole.to_netcdf(path, engine="netcdf4")


CHANGES = [opened, annotated, rewritten]


@pytest.mark.filterwarnings("ignore:.*another program has changed it")
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_read_and_said_to_be_changed(
    run: Path, change: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Trajectory(run) as before:
        spins, energy = before.spins(), before["energy"]
    change(run)
    assert footer.examine(run) == "changed"
    with pytest.warns(UserWarning, match="another program has changed it.*verify --seal"):
        trajectory = Trajectory(run)
    with trajectory:
        assert np.array_equal(trajectory.spins(), spins)
        assert np.array_equal(trajectory["energy"], energy)
    (finding,) = verify.verify([run])
    assert not finding.good
    assert finding.text.startswith("changed: another program has changed it since it was sealed")
    assert "All that can be checked is right: 9 frames to time 2" in finding.text
    (run.parent / "manifest.json").unlink()
    (other,) = verify.verify([run])
    assert other.text == finding.text, "also without the manifest"
    invoke(["info", str(run)])
    assert "changed     another program has changed it" in capsys.readouterr().out
    invoke(["plot", str(run), "--out", str(tmp_path / "a.png")])
    invoke(["export", str(run), "--to", "netcdf", "--out", str(tmp_path / "a.nc")])
    for text in (finding.text, str(finding)):
        assert "corrupt" not in text
        assert "overwrite" not in text


@pytest.mark.filterwarnings("ignore:.*another program has changed it")
@pytest.mark.parametrize("change", [opened, annotated])
def test_a_changed_run_goes_on(run: Path, change: Callable[[Path], None]) -> None:
    change(run)
    invoke(["resume", str(run), "--time", "3", "--quiet"])
    with Trajectory(run) as more:
        assert (len(more), more.complete, more.changed) == (13, True, False)
    assert all(finding.good for finding in verify.verify([run]))


@pytest.mark.filterwarnings("ignore:.*another program has changed it")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("listed", [True, False])
def test_it_is_sealed_anew(
    run: Path, change: Callable[[Path], None], listed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    bits = run.read_bytes()
    run.chmod(0o640)
    change(run)
    if not listed:
        (run.parent / "manifest.json").unlink()
    invoke(["verify", "--seal", str(run)])
    said = capsys.readouterr().out
    same = change is opened
    assert "sealed anew" in said
    assert ("the bytes of before" in said) == (same and listed)
    assert (run.read_bytes() == bits) == same
    assert run.stat().st_mode & 0o777 == 0o640
    assert footer.examine(run) == "sealed"
    assert all(finding.good for finding in verify.verify([run.parent]))
    if change is annotated:
        with h5py.File(run) as file:
            assert (file.attrs["note"], file["energy"].attrs["seen"]) == ("mine", 1)
    assert not list(run.parent.glob(".*.new"))


def other_values(file: h5py.File) -> None:
    file["energy"][3] += 0.1


def other_seed(file: h5py.File) -> None:
    file.attrs.modify("seed", np.int64(5))


def not_complete(file: h5py.File) -> None:
    file.attrs.modify("complete", np.int8(0))


@pytest.mark.filterwarnings("ignore:.*another program has changed it")
@pytest.mark.parametrize(
    ("how", "says"),
    [
        (other_values, "energy does not follow"),
        (other_seed, "in manifest.json"),
        (not_complete, "NOT complete"),
    ],
)
def test_what_is_not_right_is_not_sealed(run: Path, how: Callable[[Any], None], says: str) -> None:
    from mpiflow.commands import reseal

    with h5py.File(run, "r+") as file:
        how(file)
    before = {path.name: path.read_bytes() for path in run.parent.iterdir() if path.is_file()}
    (finding,) = reseal.seal([run])
    assert not finding.good
    assert says in finding.text
    assert {p.name: p.read_bytes() for p in run.parent.iterdir() if p.is_file()} == before
    (finding,) = verify.verify([run])
    assert not finding.good


def test_damage_is_no_change(run: Path) -> None:
    from mpiflow.commands import reseal

    bits = bytearray(run.read_bytes())
    end = footer.superblock(bytes(bits[:48])).end
    for size in (end - 1, end + 1, end // 2):  # not where HDF5 cuts
        run.write_bytes(bits[:size])
        with pytest.raises(InputError, match="It is corrupt"):
            footer.examine(run)
    flagged = bits.copy()
    flagged[11] ^= 1  # as if it were open, but the superblock has a checksum
    run.write_bytes(flagged)
    for finding in (*verify.verify([run]), *reseal.seal([run])):
        assert not finding.good
        assert "its structure or attributes" in finding.text or "sha256" in finding.text


def hold(path: Path, pipe: Any) -> None:
    file = h5py.File(path, "r+")
    file.attrs["note"] = 1
    file.flush()
    pipe.send("open")
    pipe.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_file_that_is_open_elsewhere_or_was_left_open(run: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    other = context.Process(target=hold, args=(run, theirs))
    other.start()
    try:
        assert ours.poll(120)
        ours.recv()
        for line in ("info", "plot", "verify --seal", "export --to xdmf"):
            expected = SystemExit if "verify" in line else InputError
            with pytest.raises(expected) as caught:
                invoke([*line.split(), str(run)])
            if expected is InputError:
                assert "has it open for writing" in str(caught.value).replace(
                    "Another program has,", "Another program has it open for writing,"
                )
        start = [*RUN.split(), "--initial", str(run), "--out", str(tmp_path / "new.h5")]
        with pytest.raises(InputError, match="no other program has open for writing"):
            invoke(start)
        (finding,) = verify.verify([run])
        assert "Another program has" in finding.text
    finally:
        ours.send("end")
        other.join()
    (finding,) = verify.verify([run])
    assert "verify --seal" in finding.text, "left open"
    invoke(["verify", "--seal", str(run)])
    with Trajectory(run) as again:
        assert len(again) == 9
        assert again.attributes["note"] == 1
    invoke(start)


def test_readers_do_not_mind_locks(origin: Path) -> None:
    """A lock that others hold for reading or writing is no matter for who only reads."""
    import fcntl

    pytest.importorskip("h5netcdf")
    with open(origin, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with Trajectory(origin) as run, run.to_xarray() as data:
            assert data.sizes["time"] == 9
        assert len(mpiflow.open(origin)) == 9


# -- files of other programs -------------------------------------------------------------------


def test_what_a_file_is_if_it_is_no_run(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("netCDF4")
    invoke(["export", str(run), "--to", "netcdf"])
    with h5py.File(tmp_path / "other.h5", "w", libver="v110") as file:
        file["x"] = np.arange(3)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["x"] = np.arange(3)
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "text.h5").write_text("hello\nyou")
    (tmp_path / "empty.h5").touch()
    (checkpoint,) = (run.parent / "checkpoints").glob("run.h5.000001")
    for path, says in {
        run.with_suffix(".nc"): "It is a netCDF file that mpiflow export wrote",
        tmp_path / "other.h5": "It is an HDF5 file of another program; it holds x",
        tmp_path / "old.h5": "It is an HDF5 file of another program; it holds x",
        tmp_path / "a.npy": "It is a NumPy array",
        tmp_path / "text.h5": "It is text, and begins with 'hello'",
        tmp_path / "empty.h5": "It is empty, so corrupt",
        checkpoint: "It is a checkpoint",
    }.items():
        for command in (["info"], ["plot"], ["export", "--to", "xdmf"]):
            with pytest.raises(InputError) as caught:
                invoke([*command, str(path)])
            assert says in str(caught.value)
            assert "of another program" not in says or "corrupt" not in str(caught.value)


def test_a_folder_has_all_its_runs_and_no_other_files(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.parent
    for name in ("plain", "run.hdf", "data.v2"):
        shutil.copy(run, folder / name)
    (folder / "manifest.json").unlink()
    invoke(["export", str(run), "--to", "netcdf"])
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["x"] = np.arange(3)
    (folder / "text.h5").write_text("hello")
    (folder / "notes.txt").write_text("hello")
    with pytest.warns(UserWarning, match="is left out") as noted:
        runs = mpiflow.open(folder)
    assert [path.name for path in runs.paths] == ["data.v2", "plain", "run.h5", "run.hdf"]
    said = sorted(str(note.message) for note in noted)
    assert len(said) == 2
    assert "foreign.h5 is left out. It is an HDF5 file of another program" in said[0]
    assert "text.h5 is left out. It is text" in said[1]
    assert [len(one) for one in runs] == [9] * 4
    damaged = bytearray(run.read_bytes())
    damaged[len(damaged) // 3] ^= 4
    (folder / "damaged.h5").write_bytes(damaged[:-1])
    with pytest.warns(UserWarning, match="is left out"):
        assert folder / "damaged.h5" in mpiflow.open(folder).paths, "never left out in silence"
    found = {finding.path.name: finding for finding in verify.verify([folder])}
    assert {name for name, finding in found.items() if finding.good} >= {"plain", "run.hdf"}
    assert found["foreign.h5"].text == "no trajectory of mpiflow"


# -- paths that are not UTF-8, and shells of srun ------------------------------------------------


def mpiflow_in_a_shell(*arguments: str | bytes, **more: str) -> subprocess.CompletedProcess[bytes]:
    mpi = ("OMPI_", "PMI", "SLURM_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(mpi) or "ALLOW" in k} | more
    command = [sys.executable, "-m", "mpiflow", *arguments]
    return subprocess.run(
        command, env=env, capture_output=True, stdin=subprocess.DEVNULL, timeout=200, check=False
    )


def test_info_in_a_shell_of_srun(origin: Path) -> None:
    """Open MPI would end it: the step has one task, and this process is not it."""
    step = dict.fromkeys(("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_PROCID", "SLURM_JOB_ID"), "0")
    step |= {"SLURM_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}
    done = mpiflow_in_a_shell("info", str(origin), **step)
    assert done.returncode == 0, done.stderr.decode()
    assert b"9" in done.stdout


def test_paths_need_not_be_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"d\xff")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    path = folder / os.fsdecode(b"r\xfe.h5")
    invoke([*RUN.split(), "--out", str(path)])
    invoke(["resume", str(path), "--time", "3", "--quiet"])
    assert manifest.read(folder)[path.name].frames == 13
    assert all(finding.good for finding in verify.verify([folder, path]))
    invoke([*RUN.split(), "--initial", str(path), "--out", str(folder / "next.h5")])
    invoke(["plot", str(path), "--out", str(folder / "a.png")])
    invoke(["export", str(path), "--to", "netcdf"])
    with pytest.raises(InputError, match="a path in UTF-8"):
        invoke(["export", str(path), "--to", "xdmf"])
    with Trajectory(path) as run:
        assert Path(run.config["out"]) == path
        assert run.to_xarray().sizes["time"] == 13
    done = mpiflow_in_a_shell("info", os.fsencode(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(os.fsencode(path))
