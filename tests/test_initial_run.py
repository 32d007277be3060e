"""A run starts from any frame and member of another one that kept its states."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from free_law import save_free_law
from mpi4py import MPI

from mpiflow.alloy_config import AlloyConfig
from mpiflow.alloy_run import simulate_alloy
from mpiflow.cli import invoke
from mpiflow.config import IsingConfig, StartConfig
from mpiflow.errors import InputError
from mpiflow.exports import export
from mpiflow.field_config import FieldConfig
from mpiflow.kac_config import KacConfig
from mpiflow.moments import Moment
from mpiflow.predict import predict
from mpiflow.resume import resume
from mpiflow.run import simulate
from mpiflow.trajectory import Trajectory

ISING = {"size": "8x16", "temperature": 3, "dt": 0.5, "time": 2, "save_every": 0.5}
KAC = {"size": 8, "gamma": 0, "temperature": 2, "time": 2, "save_every": 0.5}
ALLOY = {"cells": 4, "temperature": 2000, "time": 4e-9, "save_every": 1e-9}
FIELD = {"size": 16, "dt": 0.5, "time": 2, "save_every": 0.5}
#: System: configuration, options, what saves its states, their variable, sides of a state.
SYSTEMS: dict[str, Any] = {
    "ising": (IsingConfig, ISING, {"spins": True}, "spin"),
    "bits": (IsingConfig, ISING, {"spin_bits": True}, "spin_bits"),
    "kac": (KacConfig, KAC, {"spins": True}, "spin"),
    "alloy": (AlloyConfig, ALLOY, {"species": True}, "species"),
    "onsagerflow": (FieldConfig, FIELD, {}, "coarse_magnetization"),
}
by_system = pytest.mark.parametrize("system", SYSTEMS)


def run(system: str, out: Path, comm: MPI.Intracomm = MPI.COMM_SELF, **more: Any) -> StartConfig:
    model, options, keeps, _ = SYSTEMS[system]
    more = {"checkpoints": False, **options, **keeps, "out": out, "quiet": True, **more}
    if system == "onsagerflow":
        more.setdefault("model", out.parent / "model")
    config = model(**more)
    start = {"alloy": simulate_alloy, "onsagerflow": predict}.get(system, simulate)
    start(config, comm)
    return config


def states(system: str, path: Path) -> np.ndarray:
    """(frames, [members,] ...)"""
    with Trajectory(path) as file:
        return np.asarray(file[SYSTEMS[system][3]])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each system a run, and one of three members."""
    folder = tmp_path_factory.mktemp("made")
    save_free_law(folder / "model")
    for system in SYSTEMS:
        run(system, folder / f"{system}.h5", seed=1)
        run(system, folder / f"{system}-3.h5", seed=2, members=3)
    return folder


@by_system
def test_frames_by_number_and_by_time(system: str, made: Path, tmp_path: Path) -> None:
    """Fails where the last frame is all there is."""
    path = made / f"{system}.h5"
    model = {"model": made / "model"} if system == "onsagerflow" else {}
    known = states(system, path)
    with Trajectory(path) as file:
        times = file.time
    assert len(np.unique(known.reshape(len(known), -1), axis=0)) > 2
    for options, frame in (
        ({}, -1),
        ({"initial_frame": 1}, 1),
        ({"initial_frame": -4}, -4),
        ({"initial_time": float(times[2])}, 2),
    ):
        out = tmp_path / "new.h5"
        config = run(system, out, initial=str(path), overwrite=True, **options, **model)
        np.testing.assert_array_equal(states(system, out)[0], known[frame])
        with Trajectory(out) as file:
            stored = file.config
        wanted = range(len(known))[frame]
        assert (stored["initial_frame"], stored["initial_time"]) == (wanted, None)
        assert stored["inputs"]["initial"] == config.inputs["initial"]
    for options, says in (
        ({"initial_frame": 5}, r"^initial_frame=5: allowed is -5 to 4"),
        ({"initial_frame": -6}, r"^initial_frame=-6"),
        ({"initial_time": 100.0}, r"^initial_time=100.0: .*Near it are"),
        ({"initial_time": float(times[1]) * 1.01}, r"^initial_time=.*Near it are"),
        ({"initial_time": float(times[1]), "initial_frame": 1}, "^initial_time="),
        ({"initial_member": 1}, r"^initial_member=1: allowed is -1 to 0"),
    ):
        with pytest.raises(InputError, match=says):
            run(system, tmp_path / "bad.h5", initial=str(path), **options, **model)
    assert not (tmp_path / "bad.h5").exists()


@by_system
def test_members_start_from_their_own_or_from_one(system: str, made: Path, tmp_path: Path) -> None:
    path = made / f"{system}-3.h5"
    model = {"model": made / "model"} if system == "onsagerflow" else {}
    known = states(system, path)[2]
    assert len(np.unique(known.reshape(3, -1), axis=0)) == 3
    for options, members in (
        ({"members": 3}, [0, 1, 2]),
        ({"members": 2}, [0, 1]),
        ({"members": 2, "initial_member": 2}, [2, 2]),
        ({"initial_member": -2}, 1),
        ({}, 0),
    ):
        out = tmp_path / "new.h5"
        start = {"initial": str(path), "initial_frame": 2, "overwrite": True}
        run(system, out, **start, **options, **model)
        np.testing.assert_array_equal(states(system, out)[0], known[members])
    for options, says in (
        ({"members": 4}, r"^members=4: .*up to 3.*--initial-member"),
        ({"initial_member": 3}, r"^initial_member=3: allowed is -3 to 2"),
    ):
        with pytest.raises(InputError, match=says):
            run(system, tmp_path / "bad.h5", initial=str(path), **options, **model)


def test_it_goes_on_from_the_frame_of_then(made: Path, tmp_path: Path) -> None:
    """A negative number is stored as the frame that it was."""
    start = {"initial": str(made / "ising-3.h5"), "initial_frame": -2, "initial_member": -1}
    run("ising", tmp_path / "whole.h5", **start, time=3)
    config = run("ising", tmp_path / "part.h5", **start, checkpoints=True)
    resume(config.out, MPI.COMM_SELF, {"time": 3, "quiet": True})
    assert np.array_equal(*(states("ising", tmp_path / f"{n}.h5") for n in ("whole", "part")))
    with Trajectory(config.out) as file:
        chosen = {name: file.config[name] for name in ("initial_frame", "initial_member")}
    assert chosen == {"initial_frame": 3, "initial_member": 2}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("initial=up initial_frame=1", r"^initial_frame=.*with initial up"),
        ("initial=shuffled initial_member=1", r"^initial_member="),
        ("initial=a.npy initial_frame=1", r"^initial_frame=.*not the file of a run"),
        ("initial=a.npy initial_time=1", r"^initial_time=.*not the file of a run"),
        ("initial=alloy.h5", r"alloy.h5, of alloy.*Save with --spins or --spin-bits"),
        ("initial=bare.h5", r"bare.h5, of ising.*Save with --spins or --spin-bits"),
        ("initial=kac.h5", r"spins of shape \(8, 16\), the file has \(8, 8\)"),
        ("initial=ising.h5 initial_frame=true", "^initial_frame="),
    ],
)
def test_what_does_not_fit_is_refused(
    options: str, says: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    if not (made / "bare.h5").exists():
        run("ising", made / "bare.h5", spins=False)
        np.save(made / "a.npy", np.ones((8, 16), np.int8))
    given = dict(word.split("=") for word in options.split())
    if given.get("initial_frame") == "true":
        given["initial_frame"] = True  # type: ignore[assignment]
    with pytest.raises(InputError, match=says):
        run("ising", tmp_path / "x.h5", **given)


def test_structures_have_frames_and_the_command_line_has_the_options(
    made: Path, tmp_path: Path
) -> None:
    with Trajectory(made / "alloy.h5") as file:
        export(file, "extxyz", tmp_path / "a.extxyz", frame="all", vacancies=True)
    line = "simulate alloy --cells 4 --temperature 2000 --hops 2 --species --quiet --overwrite"
    line += f" --out {tmp_path.name}/x.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path.parent)
        invoke([*line.split(), "--initial", str(tmp_path / "a.extxyz"), "--initial-frame", "1"])
        assert np.array_equal(*(states("alloy", p)[i] for p, i in (
            (made / "alloy.h5", 1), (tmp_path / "x.h5", 0))))  # fmt: skip
        invoke([*line.split(), "--initial", str(made / "alloy-3.h5"), "--initial-time", "2e-9",
                "--initial-member", "1"])  # fmt: skip
    known = states("alloy", made / "alloy-3.h5")[2, 1]
    assert np.array_equal(states("alloy", tmp_path / "x.h5")[0], known)


@pytest.mark.mpi
@pytest.mark.parametrize("system", ["bits", "kac", "onsagerflow"])
def test_any_ranks_start_from_the_same_state(
    system: str, comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    model = {"model": mpi_tmp_path / "model"} if system == "onsagerflow" else {}
    if comm.rank == 0:
        save_free_law(mpi_tmp_path / "model")
        run(system, mpi_tmp_path / "a.h5", members=3, size=32)
    comm.Barrier()
    start = {"initial": str(mpi_tmp_path / "a.h5"), "initial_frame": 1, "size": 32, **model}
    for members, chosen in ((1, {"initial_member": 2}), (3, {})):
        out = mpi_tmp_path / f"{members}.h5"
        run(system, out, comm, members=members, **start, **chosen)
        if comm.rank == 0:
            known = states(system, mpi_tmp_path / "a.h5")[1]
            got = states(system, out)[0]
            np.testing.assert_array_equal(got, known[2] if members == 1 else known)
        comm.Barrier()
    with pytest.raises(InputError, match="^initial_frame=9"):
        run(system, mpi_tmp_path / "b.h5", comm, **start | {"initial_frame": 9})


def test_moments_of_files_that_grow() -> None:
    times = np.array([0.0, 0.1, 0.2, math.nan])  # the last one is not written yet
    assert Moment().frame_of(Path("a.h5"), times) == 2
    assert Moment(time=0.1).frame_of(Path("a.h5"), times) == 1
    with pytest.raises(InputError, match="a file with a frame"):
        Moment().frame_of(Path("a.h5"), times[3:])
