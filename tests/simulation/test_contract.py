"""What every system owes to a run, over the whole table of systems.

A run goes on with the same bits after any stop, on any ranks, and any ranks write the same file;
its plan has its sizes, its options survive every way in, every command knows its file, and what
makes no sense is refused in one sentence.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from interrupted import Interrupted
from mpi4py import MPI
from same_files import assert_same
from small_runs import RUNS, STARTS, Small, save_inputs, ways

from mpiflow.cli import invoke
from mpiflow.commands import verify
from mpiflow.core.errors import InputError
from mpiflow.files import checkpoint
from mpiflow.files.trajectory import Trajectory
from mpiflow.run import follow as recording
from mpiflow.run.plan import plan, read
from mpiflow.run.plan_time import estimate
from mpiflow.run.resume import configuration, resume
from mpiflow.run.simulate import simulate
from mpiflow.run.stopping import Stopped
from mpiflow.simulation import catalogue
from mpiflow.simulation.options import RunConfig

ALONE = MPI.COMM_SELF
by_run = pytest.mark.parametrize("small", RUNS.values(), ids=RUNS)

#: Systems of this package: others have tests of their own.
OURS = [name for name, row in catalogue.systems().items() if row.options.startswith("mpiflow.")]
by_system = pytest.mark.parametrize("system", OURS)


def firsts() -> dict[str, Small]:
    """A run of each system and solver, alone and of several members."""
    found: dict[Any, str] = {}
    for name, small in RUNS.items():
        key = (small.system, small.options.get("solver"), "members" in small.options)
        found.setdefault(key, name)
    return {name: RUNS[name] for name in found.values()}


FIRSTS = firsts()
by_first = pytest.mark.parametrize("small", FIRSTS.values(), ids=FIRSTS)


def leave_to_others(small: Small, comm: MPI.Intracomm) -> None:
    """Skip what the suite holds on another number of ranks.

    Lattices that are not cut are one rank's. Four ranks have every other run, also on their first
    one, two or three; fewer have one of each system and solver.
    """
    if comm.size > 1 and not small.cut:
        pytest.skip("one rank for each lattice")
    if comm.size < 4 and small.cut and small not in FIRSTS.values():
        pytest.skip("on four ranks")


@pytest.fixture
def files(comm: MPI.Intracomm, mpi_tmp_path: Path) -> Path:
    """Input files, the same for all ranks."""
    if comm.rank == 0:
        save_inputs(mpi_tmp_path / "files")
    comm.Barrier()
    return mpi_tmp_path / "files"


@by_system
def test_a_system_has_a_small_run_of_each_way_to_compute(system: str, tmp_path: Path) -> None:
    """If this fails, add lines to tests/tools/small_runs.py: all tests below then hold it."""
    save_inputs(tmp_path / "files")
    runs = [s for s in RUNS.values() if s.system == system]
    made = [small.config(tmp_path / "x.h5", tmp_path / "files") for small in runs]
    assert made, f"{system} has no small run"
    for name, offered in ways(system).items():
        tried = {getattr(one, name) for one in made}
        assert offered <= tried, (name, offered - tried)


# -- the same bits -------------------------------------------------------------------------------


@pytest.mark.mpi
@by_run
def test_ranks_and_writers_change_nothing(
    small: Small, comm: MPI.Intracomm, mpi_tmp_path: Path, files: Path
) -> None:
    """Neither the file nor the last checkpoint."""
    leave_to_others(small, comm)
    all_of_us, alone = mpi_tmp_path / "all.h5", mpi_tmp_path / "one.h5"
    if comm.rank == 0:
        simulate(small.config(alone, files), ALONE)
    ways: list[dict[str, Any]] = [{"writer": "gather"}]
    ways += [{"writer": "parallel"}] * bool(h5py.get_config().mpi)
    ways += [{"ranks_grid": (1, comm.size)}] * small.across
    for way in ways:
        simulate(small.config(all_of_us, files, **way, overwrite=True), comm)
        if comm.rank == 0:
            assert_same(all_of_us, alone)
            assert_same(*(checkpoint.paths(out)[0] for out in (all_of_us, alone)))
        comm.Barrier()


@pytest.mark.mpi
@by_run
def test_stopped_anywhere_it_goes_on_with_the_same_bits(
    small: Small,
    comm: MPI.Intracomm,
    mpi_tmp_path: Path,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """On all ranks, the first alone, all but one, the first two; it then goes on for longer."""
    leave_to_others(small, comm)
    monkeypatch.setattr(recording, "Watch", Interrupted)
    whole, parts = mpi_tmp_path / "whole.h5", small.config(mpi_tmp_path / "parts.h5", files)
    Interrupted.left = 10**9
    simulate(small.config(whole, files), comm)
    sizes = [comm.size, 1, max(1, comm.size - 1), min(2, comm.size)]
    looks = random.Random(request.node.callspec.id).randrange(2)  # noqa: S311 - where to stop
    for stops in range(1000):
        Interrupted.left = looks + stops  # in the end it gets through
        size, done = sizes[stops % len(sizes)], False
        some = comm.Split(0 if comm.rank < size else 1)
        if comm.rank < size:
            with contextlib.suppress(Stopped):
                if stops == 0:
                    simulate(parts, some)
                else:
                    resume(parts.out, some, {"quiet": True})
                done = True
        some.Free()
        if stops == 0 and comm.rank == 0:  # needed once
            for name in STARTS:
                (files / name).unlink()
        if comm.bcast(done):
            break
    assert stops >= 3
    if comm.rank == 0:
        assert_same(whole, parts.out)
        assert len(checkpoint.paths(parts.out)) == checkpoint.KEPT
    Interrupted.left = 10**9
    unit, longer = extent(parts, 2)
    resume(parts.out, comm, {unit: longer, "quiet": True})
    with Trajectory(parts.out) as run:
        assert run.complete
        last = run["hops" if unit == "hops" else "time"][-1]
        assert last >= longer if unit == "hops" else last == longer
    if comm.rank == 0:
        assert verify.verify_file(parts.out).good


def extent(config: RunConfig, factor: int) -> tuple[str, Any]:
    """So many times as long: the option, and its value."""
    unit = "time" if config.extent().get("hops") is None else "hops"
    return unit, factor * getattr(config, unit)


# -- options -------------------------------------------------------------------------------------


@by_run
def test_options_survive_json_toml_and_the_file(
    small: Small, recorded: Callable[[Small], Path], files: Path, tmp_path: Path
) -> None:
    one = small.config(tmp_path / "run.h5", files)
    assert type(one)(**json.loads(one.model_dump_json())) == one
    values = {n: v for n, v in json.loads(one.model_dump_json()).items() if v not in (None, {})}
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
    (tmp_path / "run.toml").write_text("".join(lines))
    assert read(tmp_path / "run.toml") == one
    out = recorded(small)
    with Trajectory(out) as run:
        again = configuration(run.config, out, {})
    once = {"out": out, "resume": True, "inputs": again.inputs}
    here = small.config(out, files)
    same = {name: getattr(again, name) for name in here.files()}  # beside another run
    assert again == here.model_copy(update=once | same)
    assert plan(read(out)).raw_bytes == plan(one).raw_bytes


#: Values that no run can have, by option, and what the message says of some of them.
NONSENSE: dict[str, dict[Any, str]] = {
    "time": {0: "", -1: "", math.nan: "", math.inf: ""},
    "save_every": {
        0: "", -1: "", math.nan: "", math.inf: "", 1e-30: "at most 1e.(09|15) frames|whole number",
        1e9: "at most the (time|hops) of the run",
    },
    "dt": {0: "", -1: "", math.nan: "", 1e-30: "at most 1e.15 steps"},
    "tau": {0: "", -1: "", math.nan: "", 1e-30: "at most 1e.15 steps"},
    "window": {0: "", -1: "", math.nan: "", math.inf: "", 1e-30: "at most 1e.15 steps"},
    "checkpoint_every": {0: "", -1: "", math.nan: "", 1e-30: "at most 1e.06 checkpoints"},
    "walltime": {0: "", -1: "", math.nan: "", math.inf: ""},
    "size": {0: "", -4: "", 2.5: "", "3x": "", "4x4x4x4": ""},
    "cells": {0: "", -4: "", 2.5: "", "3x": "", "4x4": ""},
    "temperature": {0: "", -1: "", math.nan: "", math.inf: ""},
    "members": {0: "", -1: "", 2.5: ""},
    "seed": {-1: "", 2**63: "", 0.5: ""},
    "coarse": {0: "", -1: "", 2.5: ""},
    "device": {"gpu": ""},
    "writer": {"serial": ""},
    "solver": {"frog": ""},
    "initial_frame": {0.5: ""},
    "hops": {0: "", -1: "", 2.5: ""},
}  # fmt: skip


@by_run
def test_what_makes_no_sense_is_refused_in_one_sentence(
    small: Small, files: Path, tmp_path: Path
) -> None:
    """Where options are read: no plan, and no run on any rank, begins."""
    good = small.config(tmp_path / "x.h5", files)
    model = type(good)
    for name, values in NONSENSE.items():
        steps = name in ("dt", "tau", "window")  # None: this way to compute has none
        if name not in model.options() or (steps and getattr(good, name) is None):
            continue
        if name in ("time", "hops") and getattr(good, name) is None:
            continue
        for value, says in values.items():
            if (name, value) == ("window", 1e-30) and good.extent().get("hops"):
                continue  # it has no end to compare with
            with pytest.raises(InputError) as caught:
                small.config(tmp_path / "x.h5", files, **{name: value})
            said = str(caught.value)
            assert caught.value.name == name, said
            assert "\n" not in said
            assert re.search(says, said), said
    with pytest.raises(InputError, match=r"^sed=.*Did you mean seed"):
        small.config(tmp_path / "x.h5", files, sed=1)


# -- its file, and all that reads it ---------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Small], Path]:
    """The file of a run, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("recorded")
    save_inputs(folder / "files")
    names = {id(small): name for name, small in RUNS.items()}

    def run(small: Small) -> Path:
        out = folder / f"{names[id(small)].replace(' ', '-')}.h5"
        if not out.exists():
            simulate(small.config(out, folder / "files"), ALONE)
        return out

    return run


@by_run
def test_the_sizes_of_a_plan_are_those_of_the_run(
    small: Small, recorded: Callable[[Small], Path], files: Path, tmp_path: Path
) -> None:
    planned = plan(small.config(tmp_path / "run.h5", files))
    out = recorded(small)
    with h5py.File(out) as file:
        assert planned.frames == len(file["time"])
        frames = {name: d.nbytes for name, d in file.items() if d.maxshape[0] is None}
        assert {s.name: s.total for s in planned.stored if s.frame} == frames
        # Names are references, of 16 bytes in the file.
        sizes = [16 * d.size if d.dtype.kind == "O" else d.nbytes for d in file.values()]
        assert planned.raw_bytes == sum(sizes)
    with h5py.File(checkpoint.paths(out)[0]) as file:
        bits = file["sites"].compression is None
        # Numbers of a member are few; bits of sites stay as they are, others are compressed.
        kept = {n: d.nbytes for n, d in file.items() if n == "sites" or d.ndim > 1 or d.size > 70}
        everything = sum(d.nbytes for d in file.values())
    if bits:
        assert sum(kept.values()) <= planned.checkpoint <= everything
    assert 0.15 * sum(kept.values()) <= planned.checkpoint <= everything


@by_run
def test_damage_is_found_in_a_file_that_was_good(
    small: Small, recorded: Callable[[Small], Path], tmp_path: Path
) -> None:
    """A bit of the last chunk of a variable, and of the checkpoint: their checksums tell."""
    out = recorded(small)
    assert verify.verify_file(out).good
    with h5py.File(out) as file:
        framed = [name for name, d in file.items() if d.maxshape[0] is None]
        name = max(framed, key=lambda name: (file[name].nbytes, name))
        chunks = file[name].id
        where = chunks.get_chunk_info(chunks.get_num_chunks() - 1).byte_offset
    point = checkpoint.paths(out)[0]
    for path, byte in ((out, where), (point, point.stat().st_size // 2)):
        data = bytearray(path.read_bytes())
        data[byte] ^= 0x10
        (tmp_path / path.name).write_bytes(data)
        assert not verify.verify_file(tmp_path / path.name).good, path


@by_first
def test_other_commands_know_its_file(
    small: Small,
    recorded: Callable[[Small], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = recorded(small)
    out = Path(shutil.copy(source, tmp_path / "run.h5"))
    capsys.readouterr()

    def told(*line: str) -> str:
        invoke(list(line))
        return capsys.readouterr().out

    assert f"{small.system}, complete" in told("info", str(out))
    points = [str(point) for point in checkpoint.paths(source)]
    assert told("verify", str(out), *points).count("good") == 1 + len(points)
    with Trajectory(out) as run:
        shown = [n for n, v in run.variables.items() if v.dims == () or v.dims == ("member",)]
    text = told("plot", str(out))
    assert all(name in text for name in shown if name != "time")
    told("export", str(out), "--to", "netcdf", "--out", str(tmp_path / "run.nc"))
    assert_same(out, tmp_path / "run.nc")
    assert f"system    {small.system}" in told("plan", str(out), "--ranks", str(1 + small.cut))


@pytest.mark.mpi
@by_first
def test_a_measured_time(
    small: Small, comm: MPI.Intracomm, mpi_tmp_path: Path, files: Path
) -> None:
    if comm.size > 1 and not small.cut:
        pytest.skip("one rank for each lattice")
    short = small.config(mpi_tmp_path / "x.h5", files)
    unit, longer = extent(short, 1000)
    made = plan(small.config(mpi_tmp_path / "x.h5", files, **{unit: longer}), comm.size)
    assert "not measured" in made.text()
    timed = estimate(made, comm, seconds=0.01, repeats=3)
    assert timed.timing is not None
    middle, low, high = timed.timing.seconds
    assert 0 < low <= middle <= high
    assert middle >= timed.frames * timed.timing.frame
    assert timed.timing.step > 0
    assert "s a frame" in timed.text()
    assert len(set(comm.allgather(timed.timing.seconds[1] > 0))) == 1
