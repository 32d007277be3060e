"""Reading needs neither MPI nor torch: commands in a process where importing them fails."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.cli import invoke
from mpiflow.core import mpi, parallel
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import ALONE, Alone
from mpiflow.core.packages import MissingPackage, explained, missing

#: Puts what fails before all other finders of modules. ``mpi4py.MPI`` alone fails as mpi4py's
#: wheel does where there is no library.
BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "mpi4py.MPI":
            raise RuntimeError("cannot load MPI library")
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

gone = set(sys.argv[1].split(","))
sys.meta_path.insert(0, Block())

from mpiflow.cli import invoke
from mpiflow.core.errors import InputError

def run(*words):
    try:
        invoke(words)
    except InputError as error:
        print("REFUSED", error)

folder = sys.argv[2]
path = f"{folder}/run.h5"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a run that has fields and spins."""
    made = tmp_path_factory.mktemp("reading")
    words = "simulate ising --size 64 --temperature 4 --time 25 --save-every 0.25 --coarse 8"
    invoke([*words.split(), "--spins", "--seed", "1", "--quiet", "--out", str(made / "run.h5")])
    return made


def blocked(gone: str, folder: Path, code: str, **environment: str) -> str:
    """What a program prints in which some packages cannot be imported, nor mpi4py.MPI."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code, gone, folder],
        env={"PATH": "/usr/bin:/bin", **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


READ = """
run("info", path)
print("LOADED", *({"numba", "mpi4py.MPI", "torch"} & set(sys.modules)))
run("plot", path)
run("plot", path, "--out", f"{folder}/run.png", "--overwrite")
run("export", path, "--to", "xdmf", "--overwrite")
run("export", path, "--to", "netcdf", "--overwrite")
run("verify", path)
import mpiflow
print(mpiflow.open(path)["magnetization"].shape, mpiflow.open(folder).table("frames"))
print("LOADED", *({"mpi4py.MPI", "torch"} & set(sys.modules)))
run("simulate", "ising", "--size", "8", "--temperature", "2", "--time", "1", "--out", "no.h5")
run("learn", "onsagerflow", "--runs", path, "--out", f"{folder}/model")
mean = {"size": 8, "temperature": 2, "time": 1, "out": "no.h5"}
for call in (
    lambda: mpiflow.Simulation(mpiflow.Ising(2.5), 8),
    lambda: mpiflow.simulate("curie-weiss", **mean),  # exchanges nothing, and is refused, too
    lambda: mpiflow.learn_onsagerflow(path, f"{folder}/model"),
    lambda: mpiflow.RunDataset(path),
):
    try:
        call()
    except InputError as error:
        print("REFUSED", error)
"""


def test_runs_are_read_without_mpi_and_torch(folder: Path) -> None:
    said = blocked("torch", folder, READ).splitlines()
    assert [line for line in said if line.startswith("LOADED")] == ["LOADED", "LOADED"]
    refused = [line for line in said if line.startswith("REFUSED")]
    without_mpi = "REFUSED MPI='cannot load MPI library'"
    without_torch = "REFUSED torch=\"No module named 'torch'\""
    assert [line.split(":")[0] for line in refused] == [
        *(without_mpi, without_torch),  # commands
        *(without_mpi, without_mpi, without_torch, without_torch),  # and from Python
    ]
    text = "\n".join(said)
    assert "coarse_magnetization(time, y, x)" in text  # info
    assert "run.xdmf: 101 frames" in text
    assert "run.nc: 101 frames" in text
    assert "run.h5: good" in text  # verify
    assert "(101,) {'frames': [101]}" in text
    assert (folder / "run.png").stat().st_size > 1000


def test_data_are_imported_without_mpi(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 8, 8)))
    code = """
run("import", f"{folder}/a.npy", "--time-step", "1", "--block", "4", "--out", f"{folder}/a.h5")
run("info", f"{folder}/a.h5")
print("LOADED", "mpi4py.MPI" in sys.modules)
"""
    said = blocked("mpi4py,torch,numba", tmp_path, code)
    assert "a.h5: 2 frames" in said
    assert "imported    from npy" in said
    assert "LOADED False" in said


def test_one_process_learns_without_mpi(folder: Path) -> None:
    code = """
run("learn", "onsagerflow", "--runs", path, "--out", f"{folder}/model", "--lags", "1",
    "--radius", "2", "--mobility-terms", "2", "--entropy-terms", "2", "--overwrite")
run("learn", "closure", path, "--epochs", "1", "--width", "8", "--out", f"{folder}/closure")
run("predict", f"{folder}/closure", "--initial", path, "--time", "1", "--out", f"{folder}/z.h5")
print("LOADED", "mpi4py.MPI" in sys.modules)
"""
    said = blocked("mpi4py", folder, code)
    assert said.count("saved to") == 2
    assert "wrote " in said
    assert "LOADED False" in said


def test_several_processes_need_mpi(folder: Path) -> None:
    """Each would take itself for the only one; and rank 0 alone says why not."""
    code = f"{BLOCK}from mpiflow.cli import main; sys.argv[1:] = ['info', path]; main()"
    for rank, lines in ((0, 1), (1, 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, "mpi4py", folder],
            env={"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": str(rank)},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (parallel.BAD_INPUT, "")
        assert len(done.stderr.splitlines()) == lines
        assert done.stderr.startswith("mpiflow: MPI='mpi4py is not installed'") == (lines == 1)


def test_reading_starts_no_mpi_unless_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in mpi.RANKS:
        monkeypatch.delenv(name, raising=False)
    assert not mpi.by_itself()  # this process has loaded it
    monkeypatch.delitem(sys.modules, "mpi4py.MPI")
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert mpi.by_itself()
    assert parallel.start_reading() is ALONE
    monkeypatch.setenv("PALS_RANKID", "0")  # a launcher whose count of ranks we do not know
    assert not mpi.by_itself()
    monkeypatch.delenv("PALS_RANKID")
    monkeypatch.setenv("SLURM_PROCID", "0")  # batch scripts have it, too
    assert mpi.by_itself()


def test_alone_has_what_it_sends() -> None:
    comm = Alone()
    assert (comm.rank, comm.size, comm.Dup(), comm.Split_type(0)) == (0, 1, comm, comm)
    assert (comm.bcast("a"), comm.allreduce(3, op=MPI.MAX)) == ("a", 3)
    assert (comm.gather(1), comm.allgather(2)) == ([1], [2])
    with pytest.raises(InputError, match=r"comm='one process, without Isend'.*MPI.COMM_WORLD"):
        comm.Isend([])
    assert not hasattr(comm, "__len__")
    parallel.raise_together(ALONE, None)
    with pytest.raises(InputError, match="a=1"), parallel.agreed(ALONE):
        raise InputError("a", 1, "none", "")


def test_packages_that_do_not_load_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an h5py of a machine with MPI, on one without."""
    (tmp_path / "h5py.py").write_text("raise ImportError('libmpi.so.40: cannot open it')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "h5py")
    with pytest.raises(MissingPackage, match=r"h5py='libmpi.*--only-binary h5py") as caught:
        with explained():
            importlib.import_module("h5py")
    assert isinstance(caught.value, ImportError)  # as programs that try an import expect
    assert missing(ValueError("torch")) is missing(ImportError("other", name="x")) is None


def test_a_torch_whose_libraries_do_not_load_is_said_in_one_line(tmp_path: Path) -> None:
    """PyTorch raises OSError there, as others do for files: theirs stay what they are."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        'raise OSError("libtorch_cpu.so: no such file")'
    )
    code = (
        "from mpiflow.core.packages import explained\n"
        "for statement in ('import torch', 'open(\"/nowhere\")'):\n"
        "    try:\n"
        "        with explained():\n"
        "            exec(statement)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        },
    )
    torch, file = done.stdout.splitlines()
    assert torch.startswith("MissingPackage torch='libtorch_cpu.so: no such file'"), torch
    assert file.startswith("FileNotFoundError"), file
