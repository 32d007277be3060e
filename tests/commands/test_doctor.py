"""The doctor sees what is wrong, says what to do, and never hangs; GPUs are not shared unasked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI

import mpiflow.core.device
from mpiflow.commands.doctor import (
    FAIL,
    OK,
    WARNING,
    Check,
    Site,
    examine,
    files,
    installation,
    ranks,
    run,
)
from mpiflow.commands.doctor.files import mount_of
from mpiflow.core.device import Device
from mpiflow.core.mpi import Alone

ALONE = MPI.COMM_SELF


def found(checks: list[Check], name: str) -> Check:
    (check,) = (check for check in checks if check.name == name)
    return check


def one(check: Callable[[Site], list[Check]], name: str, site: Site) -> Check:
    """A single check, run on all ranks as the doctor runs it."""
    modules = dict(run.CHECKS)[check]
    return found(run._run(check, modules, site), name)


def run_alone(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """A program outside of this process's MPI job, whose variables os.environ does not have."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ})


# -- the doctor ----------------------------------------------------------------------------


@pytest.mark.mpi
def test_this_installation_is_healthy(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    shown: list[Check] = []
    checks = examine(Site(comm, mpi_tmp_path), shown.append)
    assert shown == checks
    assert [c for c in checks if c.state == FAIL] == []
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    expected = "python packages mpi ranks launcher cores threads memory messages compiler torch"
    expected += " cuda limits folder commit fallocate flock h5py"
    assert set(expected.split()) <= set(names)
    assert "mpio" in names or "hdf5 file" in names
    assert all(check.remedy for check in checks if check.state == WARNING)
    assert comm.allgather(checks) == [checks] * comm.size
    comm.Barrier()
    assert list(mpi_tmp_path.iterdir()) == []  # it leaves nothing behind


@pytest.mark.mpi
def test_a_check_that_fails_on_one_rank_fails(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    last = comm.size - 1

    def fussy(site: Site) -> list[Check]:
        if site.comm.rank == last:
            raise OSError("no such luck")
        return [Check("fussy", OK, "fine")]

    (check,) = run._run(fussy, (), Site(comm, mpi_tmp_path))
    assert check.state == FAIL
    assert "no such luck" in check.found
    assert "fine" in check.found or comm.size == 1


@pytest.mark.mpi
def test_a_module_missing_on_one_rank_keeps_all_out_of_the_check(
    comm: MPI.Intracomm, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []
    if comm.rank == comm.size - 1:
        monkeypatch.setitem(sys.modules, "h5py", None)
    (check,) = run._run(
        lambda site: entered.append(1) or site.comm.Barrier() or [],  # type: ignore[func-returns-value]
        ("numpy", "h5py"),
        Site(comm, mpi_tmp_path),
    )
    assert check.state == FAIL
    assert "h5py does not import" in check.found
    assert entered == []


@pytest.mark.mpi
def test_a_folder_that_is_not_there(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    checks = examine(Site(comm, mpi_tmp_path / "none"))
    folder = found(checks, "folder")
    assert folder.state == FAIL
    assert "No such file" in folder.found
    for name in ("files", "flock", "mpio"):
        assert found(checks, name).state == WARNING


@pytest.mark.mpi(min_size=2)
def test_a_folder_that_one_rank_does_not_see(
    comm: MPI.Intracomm, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if comm.rank == 1:
        monkeypatch.setattr(files.os.path, "isdir", lambda path: False)
    site = Site(comm, mpi_tmp_path)
    check = one(files.check_folder, "folder", site)
    monkeypatch.undo()
    assert check.state == FAIL
    assert "not seen by rank 1" in check.found
    assert one(files.check_hdf5, "mpio", site).state == WARNING  # nobody waits for the others


@pytest.mark.mpi
def test_locks_that_do_not_lock(
    comm: MPI.Intracomm, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(comm, mpi_tmp_path, scratch=mpi_tmp_path)
    assert one(files.check_locks, "flock", site).state == OK
    monkeypatch.setattr(files.fcntl, "flock", lambda *_: None)
    check = one(files.check_locks, "flock", site)
    assert check.state == WARNING
    assert "did not stop" in check.found

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    assert "no locks: No locks available" in one(files.check_locks, "flock", site).found


@pytest.mark.mpi
@pytest.mark.parametrize("together", [True, False])
def test_a_file_that_cannot_be_written(
    together: bool, comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    import h5py

    together &= bool(h5py.get_config().mpi)
    site = Site(comm, mpi_tmp_path, scratch=mpi_tmp_path)
    assert files._file_of_all(site, mpi_tmp_path / "x.h5", together).state == OK
    comm.Barrier()
    check = files._file_of_all(site, mpi_tmp_path / "none" / "x.h5", together)
    assert check.state == FAIL
    assert "writing through" in check.found


def test_a_file_read_back_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr(np, "array_equal", lambda *_: False)
    check = files._file_of_all(Site(ALONE, tmp_path), tmp_path / "x.h5", False)
    assert (check.state, "read back wrong by rank 0" in check.found) == (FAIL, True)


@pytest.mark.mpi
def test_messages_that_change(comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(comm, Path())
    assert one(ranks.check_messages, "messages", site).state == OK
    import numpy as np

    if comm.rank == 0:
        monkeypatch.setattr(np, "array_equal", lambda *_: False)
    check = run._merge([(0, c) for c in ranks.check_messages(site)])
    assert check.state == (FAIL if comm.rank == 0 else OK)


def test_more_ranks_or_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    class Many(Alone):
        rows = 3

        def allgather(self, value: Any) -> list[Any]:
            return [value] * self.rows

    def machine() -> dict[str, Check]:
        return {c.name: c for c in ranks.check_machine(Site(Many(), Path()))}

    monkeypatch.setattr(ranks.os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(mpiflow.core.device, "threads", lambda: 1)
    assert machine()["cores"].state == WARNING
    Many.rows = 2
    assert machine()["cores"].state == OK
    assert machine()["threads"].state == OK
    monkeypatch.setattr(mpiflow.core.device, "threads", lambda: 2)
    assert "OMP_NUM_THREADS" in machine()["threads"].remedy
    monkeypatch.setattr(mpiflow.core.device, "threads", lambda: 1)
    monkeypatch.setattr(ranks, "_quota", lambda: 1)
    assert machine()["cores"].state == WARNING


def test_a_launcher_of_another_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(ALONE, Path())
    monkeypatch.setattr(MPI, "COMM_WORLD", ALONE)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    check = one(ranks.check_mpi, "ranks", site)
    assert (check.state, check.found) == (FAIL, "4 launched, 1 seen by each")
    monkeypatch.setattr(ranks, "_first_line", lambda *_: "HYDRA build details: 4.1.2")
    other = ranks._launcher("Open MPI v5.0.1")
    assert (other.state, "take its mpirun" in other.remedy) == (WARNING, True)
    for version in ("mpirun (Open MPI) 5.0.1", "orterun (OpenRTE) 5.0.1", "prterun (PRRTE) 3.0"):
        monkeypatch.setattr(ranks, "_first_line", lambda *_, version=version: version)
        assert ranks._launcher("Open MPI v5.0.1").state == OK


def test_packages_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = ["numpy>=99.0", 'absent-thing>=1; extra == "learn"', "missing-thing"]
    monkeypatch.setattr(installation.metadata, "requires", lambda name: wanted)
    check = one(installation.check_python, "packages", Site(ALONE, tmp_path))
    assert check.state == FAIL
    assert "< 99.0" in check.found
    assert "missing-thing" in check.found
    assert "absent-thing" not in check.found


@pytest.mark.parametrize(
    ("path", "kind", "state"),
    [
        ("/home/me/runs", "nfs4", WARNING),
        ("/home", "ext4", OK),
        ("/scratch/x", "lustre", OK),
        ("/mem/a", "tmpfs", WARNING),
        ("/with blank/x", "fuse.sshfs", WARNING),
        ("/homely", "ext4", OK),
    ],
)
def test_file_systems(path: str, kind: str, state: str) -> None:
    table = (
        "/dev/vda / ext4 rw 0 0\nhost:/me /home/me nfs4 rw 0 0\n"
        "a@b /scratch lustre rw 0 0\ntmpfs /mem tmpfs rw 0 0\n"
        "x:/y /with\\040blank fuse.sshfs rw 0 0\n"
    )
    found_kind, mount = mount_of(Path(path), table)
    assert found_kind == kind
    assert files._judge(found_kind, mount)[0] == state


def test_a_small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.resource, "getrlimit", lambda which: (100, 100))
    assert one(files.check_limits, "limits", Site(ALONE, Path())).state == WARNING


def test_a_check_that_hangs_ends_the_process() -> None:
    code = (
        "import time; from pathlib import Path; from mpiflow.commands.doctor import check, run\n"
        "check.PATIENCE = 0.5\n"
        "def stuck(site): time.sleep(60)\n"
        "from mpiflow.core.mpi import ALONE\n"
        "run._run(stuck, (), check.Site(ALONE, Path()))\n"
    )
    done = run_alone([sys.executable, "-c", code])
    assert done.returncode == 1
    assert "in stuck" in done.stderr


def test_without_mpi_the_rest_is_still_examined(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "import sys; from pathlib import Path; from mpiflow.commands import doctor\n"
        f"sys.exit(doctor.main(Path({str(tmp_path)!r}), as_json=True))\n"
    )
    done = run_alone([sys.executable, "-c", code])
    assert done.returncode == 1, done.stderr
    states = {check["name"]: check["state"] for check in json.loads(done.stdout)["checks"]}
    assert states["mpi"] == states["messages"] == FAIL
    assert states["commit"] == states["python"] == OK


def test_the_command_on_ranks(tmp_path: Path, mpirun: Callable[..., Any]) -> None:
    done = mpirun(2, "mpiflow", "doctor", "--json", "--folder", tmp_path, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["ok"] is True
    ranks = {check["name"]: check for check in report["checks"]}["ranks"]
    assert ranks["found"] == "2, as launched"


def test_the_command_fails_with_1(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "mpiflow"
    done = run_alone([program, "doctor", "--folder", tmp_path / "none"])
    assert done.returncode == 1
    assert "FAIL     folder" in done.stdout
    assert "-> Choose another" in done.stdout


# -- GPUs -----------------------------------------------------------------------------------


@pytest.fixture
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Give this process GPUs that do not exist."""

    def install(names: list[str]) -> None:
        monkeypatch.setattr(mpiflow.core.device, "gpus", lambda: names)

    monkeypatch.delenv("MPIFLOW_SHARE_GPU", raising=False)
    monkeypatch.setattr(mpiflow.core.device, "gpu_capabilities", lambda: ["9.0"])
    return install


@pytest.mark.mpi
def test_the_doctor_says_which_gpu_a_rank_has(
    comm: MPI.Intracomm,
    fake_gpus: Callable[[list[str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_gpus([f"GPU-{i}" for i in range(comm.size)])
    found = {check.name: check for check in ranks.check_cuda(Site(comm, Path(), "cuda"))}
    assert found["cuda"].state == OK
    assert f"device of each {', '.join(map(str, range(comm.size)))}" in found["cuda"].found
    assert "CUDA-aware: " in found["cuda mpi"].found
    if comm.size == 1:
        return
    fake_gpus([f"GPU-{i}" for i in range(comm.size - 1)])
    shared = one(ranks.check_cuda, "cuda", Site(comm, Path(), "cuda"))
    assert shared.state == WARNING
    assert "some ranks share one" in shared.found
    assert one(ranks.check_cuda, "cuda", Site(comm, Path(), "cpu")).state == OK
    monkeypatch.setenv("MPIFLOW_SHARE_GPU", "1")
    assert one(ranks.check_cuda, "cuda", Site(comm, Path(), "cuda")).state == OK


class FakeCuda:
    """What Device asks of numba.cuda."""

    gpus = (type("G", (), {"uuid": "GPU-a"}), type("G", (), {"uuid": "GPU-b"}))

    def __init__(self) -> None:
        self.selected: list[int] = []

    def is_available(self) -> bool:
        return True

    def select_device(self, number: int) -> None:
        self.selected.append(number)


def test_asking_for_a_gpu_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda()
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(mpiflow.core.device, "cuda", lambda: fake)
    assert mpiflow.core.device.gpus() == ["GPU-a", "GPU-b"]
    Device("cuda")
    assert fake.selected == []
    Device("cuda", 0)
    Device("cuda", 3)
    assert fake.selected == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7")
    assert mpiflow.core.device.gpus()[0] == "GPU-aMIG-7"


def test_the_simulator_has_gpus_for_all(
    mpirun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from mpi4py import MPI; from mpiflow import Simulation, Ising, initial\n"
        "sim = Simulation(Ising(2.5), (4, 8), device='cuda', comm=MPI.COMM_WORLD)\n"
        "sim.set_spins(initial.uniform_up); sim.advance(0.25)\n"
        "times = sim.comm.gather(sim.measure().time)\n"
        "if times: print(*times)\n"
    )
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    done = mpirun(2, "python", "-c", code)
    assert done.stdout.split() == ["0.25", "0.25"], done.stderr
