"""Files that a run is made from are known again by their SHA-256, wherever it goes on from."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from free_law import save_free_law
from mpi4py import MPI

from mpiflow.commands.export import export
from mpiflow.core.errors import InputError
from mpiflow.files import checkpoint
from mpiflow.files.trajectory import Trajectory
from mpiflow.run import follow as recording
from mpiflow.run.resume import resume
from mpiflow.run.simulate import simulate
from mpiflow.simulation.alloy.barrier_model import DEFAULT
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.ensemble.options import (
    ChainConfig,
    CurieWeissConfig,
    EnsembleConfig,
    PredatorPreyConfig,
)
from mpiflow.simulation.field.options import FieldConfig
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.options import RunConfig

RUNS: dict[str, Any] = {
    "ising": (IsingConfig, {"size": 8, "temperature": 2, "dt": 0.5, "time": 1, "save_every": 0.5}),
    "kac": (KacConfig, {"size": 8, "gamma": 0, "temperature": 1, "time": 1, "save_every": 0.5}),
    "alloy": (AlloyConfig, {"cells": 4, "temperature": 2000, "hops": 4, "save_every": 2}),
    "onsagerflow": (FieldConfig, {"size": 16, "dt": 0.5, "time": 1, "save_every": 0.5}),
    "linear-chain": (ChainConfig, {"size": 8, "dt": 0.125, "time": 1, "save_every": 0.5}),
    "curie-weiss": (CurieWeissConfig, {"size": 8, "temperature": 2, "time": 1, "save_every": 0.5}),
    "predator-prey": (PredatorPreyConfig, {"size": 8, "dt": 0.125, "time": 1, "save_every": 0.5}),
}
#: Input files of each system, by option.
CASES = [
    ("ising", "initial", "spins.npy"),
    ("ising", "initial", "spins.h5"),
    ("kac", "initial", "means.npy"),
    ("kac", "field_file", "field.npy"),
    ("alloy", "initial", "atoms.extxyz"),
    ("alloy", "initial", "atoms.h5"),
    ("alloy", "barriers", "barriers.safetensors"),
    ("onsagerflow", "model", "model"),
    ("onsagerflow", "initial", "blocks.npy"),
    ("linear-chain", "initial", "chain.npy"),
    ("curie-weiss", "initial", "mean.h5"),
    ("predator-prey", "initial", "line.h5"),
]
by_case = pytest.mark.parametrize(("system", "option", "name"), CASES)


def start(config: RunConfig, comm: MPI.Intracomm = MPI.COMM_SELF) -> None:
    if isinstance(config, AlloyConfig):
        simulate(config, comm)
    elif isinstance(config, FieldConfig):
        simulate(config, comm)
    elif isinstance(config, EnsembleConfig):
        simulate(config, comm)
    else:
        assert isinstance(config, IsingConfig | KacConfig)
        simulate(config, comm)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind, and ``other/`` with different ones of the same names."""
    folder = tmp_path_factory.mktemp("made")
    for where, seed in ((folder, 1), (folder / "other", 2)):
        where.mkdir(exist_ok=True)
        rng = np.random.default_rng(seed)
        np.save(where / "spins.npy", rng.choice([-1, 1], (8, 8)).astype(np.int8))
        np.save(where / "means.npy", rng.uniform(-1, 1, (4, 4)))
        np.save(where / "field.npy", rng.normal(size=(8, 8)))
        np.save(where / "blocks.npy", rng.uniform(-0.5, 0.5, (4, 4)))
        np.save(where / "chain.npy", rng.normal(size=8))
        quiet = {"seed": seed, "quiet": True, "checkpoints": False}
        start(IsingConfig(**RUNS["ising"][1], **quiet, spins=True, out=where / "spins.h5"))
        start(AlloyConfig(**RUNS["alloy"][1], **quiet, species=True, out=where / "atoms.h5"))
        start(CurieWeissConfig(**RUNS["curie-weiss"][1], **quiet, out=where / "mean.h5"))
        line = {**RUNS["predator-prey"][1], **quiet, "profile": True}
        start(PredatorPreyConfig(**line, out=where / "line.h5"))
        with Trajectory(where / "atoms.h5") as run:
            export(run, "extxyz", where / "atoms.extxyz", frame="-1", vacancies=True)
        save_free_law(where / "model", rate=float(seed))
    shutil.copy(DEFAULT, folder / "barriers.safetensors")
    (folder / "other/barriers.safetensors").write_bytes(DEFAULT.read_bytes() + b" ")
    return folder


def config(folder: Path, system: str, option: str, name: str, **more: Any) -> RunConfig:
    model, options = RUNS[system]
    if system == "onsagerflow" and option != "model":
        more = {"model": folder / "model", **more}
    return model(**{**options, option: name, "out": folder / "run.h5", "quiet": True, **more})


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the files."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder


def kill(config: RunConfig, monkeypatch: pytest.MonkeyPatch, comm: MPI.Intracomm) -> None:
    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "write", end)
        start(config, comm)


def stored(path: Path) -> dict[str, Any]:
    with Trajectory(path) as run:
        return run.config


@by_case
def test_a_run_without_a_checkpoint_starts_from_the_same_file_or_not_at_all(
    system: str, option: str, name: str, here: Path, tmp_path: Path, monkeypatch
) -> None:
    """Fails where the file is found again by its name alone: the other folder has one of it."""
    given = config(here, system, option, name)
    kill(given, monkeypatch, MPI.COMM_SELF)
    noted = stored(given.out)
    assert noted[option] == str(here / name)
    if (here / name).is_file():
        assert noted["inputs"][option] == digest_of(here / name)
    digest = noted["inputs"][option]

    monkeypatch.chdir(here / "other")  # the file of here is meant all the same
    start(given.model_copy(update={"resume": True}))
    assert stored(given.out)["inputs"][option] == digest

    monkeypatch.chdir(here)
    kill(config(here, system, option, name, overwrite=True), monkeypatch, MPI.COMM_SELF)
    elsewhere = (here / name).rename(tmp_path / name)
    with pytest.raises(InputError, match=rf"^{option}=.*{digest}.*not there.*--override {option}="):
        resume(given.out, MPI.COMM_SELF, {"quiet": True})
    (here / "other" / name).rename(here / name)
    with pytest.raises(InputError, match=rf"^{option}=.*{digest}.*changed.* SHA-256 is [0-9a-f]+"):
        resume(given.out, MPI.COMM_SELF, {"quiet": True})
    resume(given.out, MPI.COMM_SELF, {"quiet": True, option: str(elsewhere)})
    after = stored(given.out)
    assert (after[option], after["inputs"][option]) == (str(elsewhere), digest)


@by_case
def test_what_a_checkpoint_holds_is_not_needed_again(
    system: str, option: str, name: str, here: Path
) -> None:
    longer = {"quiet": True, **({"hops": 8} if system == "alloy" else {"time": 2})}
    given = config(here, system, option, name)
    start(given)
    before = stored(given.out)
    (here / name).rename(here / f"gone-{name}")
    if option == "initial":
        resume(given.out, MPI.COMM_SELF, longer)
        after = stored(given.out)
        assert (after[option], after["inputs"]) == (before[option], before["inputs"])
        # The command line of a batch job starts and goes on.
        again = config(here, system, option, name, resume=True, **longer)
        start(again)
    else:
        with pytest.raises(InputError, match=rf"^{option}=.*not there"):
            resume(given.out, MPI.COMM_SELF, longer)
        resume(given.out, MPI.COMM_SELF, longer | {option: str(here / f"gone-{name}")})


def test_another_initial_state_needs_a_new_run(here: Path, monkeypatch) -> None:
    given = config(here, "ising", "initial", "spins.npy")
    kill(given, monkeypatch, MPI.COMM_SELF)
    for other in ("up", "other/spins.npy"):
        with pytest.raises(InputError, match="^initial="):
            start(config(here, "ising", "initial", other, resume=True))
    start(config(here, "ising", "initial", "spins.npy", resume=True))
    # It has a checkpoint now: an explicit other file is not what it was started from.
    with pytest.raises(InputError, match=r"^initial=.*changed"):
        resume(given.out, MPI.COMM_SELF, {"time": 2, "initial": "other/spins.npy"})


@pytest.mark.mpi
def test_all_ranks_refuse_together(
    comm: MPI.Intracomm, mpi_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = dict(RUNS["kac"][1], field_file=mpi_tmp_path / "h.npy", out=mpi_tmp_path / "run.h5")
    if comm.rank == 0:
        np.save(mpi_tmp_path / "h.npy", np.ones((8, 8)))
    comm.Barrier()
    kill(KacConfig(**options, quiet=True), monkeypatch, comm)
    # What another rank sees there does not matter: the first one looks.
    if comm.rank == 0:
        np.save(mpi_tmp_path / "h.npy", np.zeros((8, 8)))
    comm.Barrier()
    with pytest.raises(InputError, match=r"^field_file=.*changed"):
        resume(mpi_tmp_path / "run.h5", comm, {"quiet": True})
    comm.Barrier()
    if comm.rank == 0:
        (mpi_tmp_path / "h.npy").unlink()
    comm.Barrier()
    with pytest.raises(InputError, match=r"^field_file=.*not there"):
        resume(mpi_tmp_path / "run.h5", comm, {"quiet": True})


def test_a_run_of_before_is_told_by_the_path(here: Path) -> None:
    given = config(here, "kac", "field_file", "field.npy")
    old = {"field_file": "field.npy", "initial": "shuffled"}
    assert recording._same_files(given, old) == {"field_file"}
    assert recording._same_files(given, old | {"field_file": "other/field.npy"}) == set()
