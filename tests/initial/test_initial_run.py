"""A run starts from any frame and member of another one that kept its states."""

from __future__ import annotations

import fcntl
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from free_law import save_free_law
from mpi4py import MPI

from mpiflow.cli import invoke
from mpiflow.commands.export import export
from mpiflow.commands.verify import verify_file
from mpiflow.core.errors import InputError
from mpiflow.files.moments import Moment
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.plan import plan
from mpiflow.run.resume import resume
from mpiflow.run.simulate import simulate
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.ensemble.options import ChainConfig, CurieWeissConfig, PredatorPreyConfig
from mpiflow.simulation.field.options import FieldConfig
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.options import StartConfig

ISING = {"size": "8x16", "temperature": 3, "dt": 0.5, "time": 2, "save_every": 0.5}
KAC = {"size": 8, "gamma": 0, "temperature": 2, "time": 2, "save_every": 0.5}
ALLOY = {"cells": 4, "temperature": 2000, "time": 4e-9, "save_every": 1e-9}
CHAIN = {"size": 8, "dt": 0.125, "time": 2, "save_every": 0.5}
MEAN = {"size": "24x16", "temperature": 2.0, "field": 0.1, "time": 2, "save_every": 0.5}
LINE = {"size": 8, "dt": 0.125, "time": 2, "save_every": 0.5}
FIELD = {"size": 16, "dt": 0.5, "time": 2, "save_every": 0.5}
#: System: configuration, options, what saves its states, their variable, sides of a state.
SYSTEMS: dict[str, Any] = {
    "ising": (IsingConfig, ISING, {"spins": True}, "spin"),
    "bits": (IsingConfig, ISING, {"spin_bits": True}, "spin_bits"),
    "kac": (KacConfig, KAC, {"spins": True}, "spin"),
    "alloy": (AlloyConfig, ALLOY, {"species": True}, "species"),
    "onsagerflow": (FieldConfig, FIELD, {}, "coarse_magnetization"),
    "linear-chain": (ChainConfig, CHAIN, {"profile": True}, "displacement_profile"),
    "curie-weiss": (CurieWeissConfig, MEAN, {}, "magnetization"),
    "predator-prey": (PredatorPreyConfig, LINE, {"profile": True}, "prey_profile"),
}
ENSEMBLES = ["linear-chain", "curie-weiss", "predator-prey"]
by_system = pytest.mark.parametrize("system", SYSTEMS)


def run(system: str, out: Path, comm: MPI.Intracomm = MPI.COMM_SELF, **more: Any) -> StartConfig:
    model, options, keeps, _ = SYSTEMS[system]
    more = {"checkpoints": False, **options, **keeps, "out": out, "quiet": True, **more}
    if system == "onsagerflow":
        more.setdefault("model", out.parent / "model")
    config = model(**more)
    starts: dict[str, Any] = {"alloy": simulate, "onsagerflow": simulate}
    starts |= dict.fromkeys(ENSEMBLES, simulate)
    starts.get(system, simulate)(config, comm)
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


@pytest.fixture(scope="module")
def arrays(made: Path) -> Path:
    """Arrays beside the runs, good ones and others."""
    rng = np.random.default_rng(3)
    chain, line = rng.normal(size=8), rng.uniform(0.1, 0.9, (2, 8))
    for name, values in {
        "chain": chain,
        "chain-nan": np.where(chain == chain[3], np.nan, chain),
        "line": line,
        "line-below": line - [[1.0], [0.0]],
        "mean": np.array(-0.25),
        "mean-of-one": np.array([-0.25]),
        "mean-odd": np.array(0.3),
        "mean-large": np.array(1.5),
        "complex": chain * 1j,
    }.items():
        np.save(made / f"{name}.npy", values)
    for system in ("linear-chain", "predator-prey"):
        run(system, made / f"{system}-bare.h5", profile=False)
    whole = (made / "linear-chain.h5").read_bytes()
    (made / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(made / "linear-chain.h5") as file:
        start = file["displacement_profile"].id.get_chunk_info(0).byte_offset
    (made / "damaged.h5").write_bytes(whole[:start] + bytes(64) + whole[start + 64 :])
    (made / "text.txt").write_text("no state")
    return made


@pytest.mark.parametrize(
    ("system", "name", "wanted"),
    [
        ("linear-chain", "chain", "displacement_profile"),
        ("predator-prey", "line", "prey_profile predator_profile"),
        ("curie-weiss", "mean", "magnetization"),
        ("curie-weiss", "mean-of-one", "magnetization"),
    ],
)
def test_systems_whole_on_a_rank_start_from_arrays(
    system: str, name: str, wanted: str, arrays: Path, tmp_path: Path
) -> None:
    known = np.load(arrays / f"{name}.npy")
    for members in (1, 3):
        out = tmp_path / f"{members}.h5"
        run(system, out, initial=str(arrays / f"{name}.npy"), members=members)
        with Trajectory(out) as file:
            got = np.stack([file[variable][0] for variable in wanted.split()])
            assert file.config["initial"] == str(arrays / f"{name}.npy")
        got = got[:, 0] if members > 1 else got
        np.testing.assert_array_equal(got.ravel(), known.ravel())
        assert verify_file(out).good


def test_prey_and_predators_go_on_from_both_profiles(made: Path, tmp_path: Path) -> None:
    run("predator-prey", tmp_path / "x.h5", initial=str(made / "predator-prey.h5"))
    with Trajectory(made / "predator-prey.h5") as first, Trajectory(tmp_path / "x.h5") as second:
        for name in ("prey", "predator", "prey_profile", "predator_profile"):
            np.testing.assert_array_equal(second[name][0], first[name][-1])


@pytest.mark.parametrize(
    ("system", "options", "says"),
    [
        ("linear-chain", "initial=rset", "^initial='rset': .*Did you mean rest"),
        ("linear-chain", "initial=none.npy", "^initial='none.npy': allowed is rest, or the path"),
        ("linear-chain", "initial=rest initial_frame=0", "^initial_frame=.*with initial rest"),
        ("linear-chain", "initial=chain.npy initial_frame=0", "^initial_frame=.*not the file of a"),
        ("linear-chain", "initial=chain.npy initial_displacement=1", "^initial_displ.*fixes"),
        ("predator-prey", "initial=line.npy initial_wave=0.2", "^initial_wave=.*fixes the state"),
        ("curie-weiss", "initial=mean.npy initial_magnetization=1", "^initial_magn.*fixes the"),
        ("linear-chain", "initial=chain.npy size=9", r"of shape \(9,\); the file has shape \(8,\)"),
        ("predator-prey", "initial=chain.npy", r"of shape \(2, 8\); the file has shape \(8,\)"),
        ("curie-weiss", "initial=chain.npy", r"one number; the file has shape \(8,\)"),
        ("linear-chain", "initial=complex.npy", "^initial=.*complex"),
        ("linear-chain", "initial=chain-nan.npy", "^initial=.*finite numbers"),
        ("predator-prey", "initial=line-below.npy", "^initial=.*means of prey and of predators"),
        ("curie-weiss", "initial=mean-odd.npy", "^initial=.*magnetizations that 384 spins can"),
        ("curie-weiss", "initial=mean-large.npy", "^initial=.*magnetizations that 384 spins can"),
        ("linear-chain", "initial=linear-chain.h5 size=9", r"shape \(9,\), the file has \(8,\)"),
        ("predator-prey", "initial=predator-prey.h5 size=9", r"shape \(9,\), the file has \(8,\)"),
        ("curie-weiss", "initial=curie-weiss.h5 size=9", r"\(9, 9\), the file has \(24, 16\)"),
        ("linear-chain", "initial=linear-chain-bare.h5", "of linear-chain.*Save it with --profile"),
        ("predator-prey", "initial=predator-prey-bare.h5", "predator-prey.*Save it with --profile"),
        ("linear-chain", "initial=predator-prey.h5", "h5, of predator-prey.*a run of linear-chain"),
        ("curie-weiss", "initial=ising.h5", "h5, of ising.*a run of curie-weiss"),
        ("linear-chain", "initial=linear-chain-3.h5 members=4", "^members=4: allowed is up to 3"),
        ("linear-chain", "initial=linear-chain-3.h5 initial_member=3", "^initial_member=3"),
        ("linear-chain", "initial=cut.h5", "^(initial|file)=.*cut.h5"),
        ("linear-chain", "initial=damaged.h5", "^(initial|file)=.*damaged.h5"),
        ("linear-chain", "initial=text.txt", "^initial=.*text.txt"),
    ],
)
def test_what_no_ensemble_can_start_from_is_refused(
    system: str,
    options: str,
    says: str,
    arrays: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(arrays)
    given = dict(word.split("=") for word in options.split())
    with pytest.raises(InputError, match=says):
        run(system, tmp_path / "x.h5", **given)
    assert not (tmp_path / "x.h5").exists()


@pytest.mark.mpi
def test_a_bad_state_of_one_member_stops_all_ranks(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    if comm.rank == 0:
        run("linear-chain", mpi_tmp_path / "a.h5", members=3)
        with h5py.File(mpi_tmp_path / "a.h5", "r+") as file:
            file["displacement_profile"][-1, 2, 5] = np.nan  # of the last rank
    comm.Barrier()
    with pytest.raises(InputError, match="^initial=.*a.h5.*finite numbers"):
        run("linear-chain", mpi_tmp_path / "b.h5", comm, members=3,
            initial=str(mpi_tmp_path / "a.h5"))  # fmt: skip


def test_runs_that_others_hold_open_are_read(made: Path, tmp_path: Path) -> None:
    """A lock of another program is no matter; as of a run that is going on."""
    with (made / "linear-chain.h5").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run("linear-chain", tmp_path / "x.h5", initial=str(made / "linear-chain.h5"))
    np.testing.assert_array_equal(
        states("linear-chain", tmp_path / "x.h5")[0],
        states("linear-chain", made / "linear-chain.h5")[-1],
    )


@by_system
def test_plan_and_info_say_what_a_run_starts_from(
    system: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = made / f"{system}-3.h5", tmp_path / "x.h5"
    start = {"initial": str(path), "initial_frame": 2, "initial_member": 1}
    model = {"model": made / "model"} if system == "onsagerflow" else {}
    config = run(system, out, **start, **model)
    said = f"{path}, frame 2, member 1"
    assert said in plan(config).text()
    invoke(["info", str(out)])
    assert f"started     from {said} (SHA-256 {config.inputs['initial'][:12]}" in (
        capsys.readouterr().out
    )


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
@pytest.mark.parametrize("system", ["bits", "kac", "onsagerflow", *ENSEMBLES])
def test_any_ranks_start_from_the_same_state(
    system: str, comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    model = {"model": mpi_tmp_path / "model"} if system == "onsagerflow" else {}
    if comm.rank == 0:
        save_free_law(mpi_tmp_path / "model")
        run(system, mpi_tmp_path / "a.h5", members=3, size=32)
    comm.Barrier()
    start = {"initial": str(mpi_tmp_path / "a.h5"), "initial_frame": 1, "size": 32, **model}
    for members, chosen in ((1, {"initial_member": 2}), (3, {}), (2, {"initial_member": 1})):
        out = mpi_tmp_path / f"{members}.h5"
        run(system, out, comm, members=members, **start, **chosen)
        if comm.rank == 0:
            known = states(system, mpi_tmp_path / "a.h5")[1]
            got = states(system, out)[0]
            np.testing.assert_array_equal(got, known[{1: 2, 2: [1, 1], 3: slice(3)}[members]])
        comm.Barrier()
    with pytest.raises(InputError, match="^initial_frame=9"):
        run(system, mpi_tmp_path / "b.h5", comm, **start | {"initial_frame": 9})


def test_moments_of_files_that_grow() -> None:
    times = np.array([0.0, 0.1, 0.2, math.nan])  # the last one is not written yet
    assert Moment().frame_of(Path("a.h5"), times) == 2
    assert Moment(time=0.1).frame_of(Path("a.h5"), times) == 1
    with pytest.raises(InputError, match="a file with a frame"):
        Moment().frame_of(Path("a.h5"), times[3:])
