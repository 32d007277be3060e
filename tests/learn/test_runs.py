"""RunDataset: the right frames of the right runs, in any number of processes and threads."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import mpiflow
from mpiflow.core.errors import InputError
from mpiflow.files.runs import Runs, find_runs
from mpiflow.files.schema import STANDARD
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.learn import run_dataset as module
from mpiflow.learn.run_dataset import RunDataset


def field(run: int, frame: int, member: int = 0) -> np.ndarray:
    """Values that say where they come from, (3, 4) float32."""
    return np.arange(12.0, dtype="f4").reshape(3, 4) + 100 * frame + 10_000 * run + 0.25 * member


def make(
    path: Path,
    run: int,
    frames: int,
    *,
    members: int = 1,
    complete: bool = True,
    side: int = 4,
    every: float = 0.5,
    **config: Any,
) -> Path:
    ensemble = ("member",) if members > 1 else ()
    writer = TrajectoryWriter(
        path,
        dims={"y": 3, "x": side} | ({"member": members} if ensemble else {}),
        variables=[
            STANDARD["coarse_magnetization"].over(*ensemble, "y", "x"),
            STANDARD["magnetization"].over(*ensemble),
            *([STANDARD["initial_magnetization"]] if ensemble else []),
        ],
        attributes={
            "system": "test",
            "config_json": json.dumps({"temperature": 2.0 + run, "members": members, **config}),
            "seed": run,
            "rng": "none",
            "decomposition_invariant": 1,
        },
        overwrite=True,
    )
    if ensemble:
        writer.write_static("initial_magnetization", np.arange(float(members)))
    for t in range(frames):
        fields = np.stack([field(run, t, m)[:, :side] for m in range(members)])
        means = fields.mean(axis=(1, 2), dtype=float)
        values = {"coarse_magnetization": fields, "magnetization": means}
        # Times are not even: dt must be that of the frames.
        writer.append(
            every * t + 0.01 * t * t, values if ensemble else {k: v[0] for k, v in values.items()}
        )
    writer.close(complete)
    return path


LENGTHS = (7, 2, 12, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    for run, frames in enumerate(LENGTHS):
        make(path / f"{run}.h5", run, frames)
    return path


def check(item: dict[str, Any], window: int = 2, step: int = 1) -> None:
    run, first = int(item["run"]), int(item["frame"])
    frames = first + step * np.arange(window)
    assert item["coarse_magnetization"].tolist() == [field(run, t).tolist() for t in frames]
    times = 0.5 * frames + 0.01 * frames**2
    assert item["time"].dtype == item["dt"].dtype == torch.float64
    np.testing.assert_allclose(item["time"], times)
    np.testing.assert_allclose(item["dt"], np.diff(times))


@pytest.mark.parametrize(("window", "stride", "step"), [(2, 1, 1), (1, 1, 1), (3, 2, 2), (4, 5, 1)])
def test_items_are_all_windows_of_all_runs(
    folder: Path, window: int, stride: int, step: int
) -> None:
    data = RunDataset(folder, window=window, stride=stride, step=step)
    expected = [
        (run, first)
        for run, frames in enumerate(LENGTHS)
        for first in range(0, frames - (window - 1) * step, stride)
    ]
    assert [(item["run"], item["frame"]) for item in data] == expected
    assert len(data) == len(expected)
    for item in data:
        check(item, window, step)
    assert data[-1]["frame"] == expected[-1][1]
    with pytest.raises(IndexError):
        data[len(data)]


def test_variables_parameters_and_types(folder: Path) -> None:
    data = RunDataset(
        sorted(folder.glob("*.h5")),
        ("magnetization", "coarse_magnetization"),
        parameters=("temperature", "seed"),
        dtype=torch.float64,
        transform=lambda item: item | {"more": 1},
    )
    item = data[6]
    assert item["magnetization"].shape == (2,)
    assert item["coarse_magnetization"].dtype == torch.float64
    assert item["temperature"].dtype == torch.float64
    assert (item["temperature"], item["seed"], item["run"], item["more"]) == (3.0, 1, 1, 1)
    assert item["seed"].dtype == torch.int64


def test_members_of_ensembles(tmp_path: Path) -> None:
    make(tmp_path / "a.h5", 0, 3, members=3)
    make(tmp_path / "b.h5", 1, 2)  # a single lattice fits too
    variables = ("coarse_magnetization", "magnetization")
    data = RunDataset(tmp_path / "a.h5", (*variables, "initial_magnetization"))
    assert [(i["frame"], i["member"]) for i in data] == [(t, m) for t in (0, 1) for m in range(3)]
    item = data[5]
    assert item["coarse_magnetization"].tolist() == [field(0, t, 2).tolist() for t in (1, 2)]
    assert item["initial_magnetization"] == 2.0
    some = RunDataset(tmp_path / "a.h5", members=[2, 0])
    assert [item["member"] for item in some] == [2, 0] * 2
    together = RunDataset(tmp_path / "a.h5", variables, members="together")[1]
    assert together["coarse_magnetization"].shape == (2, 3, 3, 4)
    assert together["magnetization"].shape == (2, 3)
    assert "member" not in together
    with pytest.raises(InputError, match="numbers from 0 to 2"):
        RunDataset(tmp_path / "a.h5", members=[3])
    with pytest.raises(InputError, match="member"):
        RunDataset(tmp_path)


@pytest.mark.parametrize(
    ("workers", "start", "persistent"),
    [(0, None, False), (2, "fork", True), (4, "fork", False), (2, "spawn", True)],
)
def test_loader(folder: Path, workers: int, start: str | None, persistent: bool) -> None:
    data = RunDataset(folder, parameters=("temperature",), max_open=2)
    data[0]  # open files in the parent, which workers must not use
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_size=3,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=start,
        persistent_workers=persistent,
        generator=torch.Generator().manual_seed(1),
    )
    for _ in range(2):
        seen = []
        for batch in loader:
            assert batch["coarse_magnetization"].shape[1:] == (2, 3, 4)
            for i in range(len(batch["run"])):
                check({name: values[i] for name, values in batch.items()})
                seen.append((int(batch["run"][i]), int(batch["frame"][i])))
                assert batch["temperature"][i] == 2 + batch["run"][i]
        assert sorted(seen) == [data.place(i)[:2] for i in range(len(data))]


@pytest.mark.validate  # half a minute, on two cores
def test_loader_with_four_spawned_workers(folder: Path) -> None:
    loader: DataLoader[Any] = DataLoader(
        RunDataset(folder), num_workers=4, multiprocessing_context="spawn", batch_size=None
    )
    for item in loader:
        check(item)


def test_open_files_are_bounded_and_stay_in_their_process(folder: Path) -> None:
    data = RunDataset(folder, max_open=2)
    for item in data:
        check(item)
        assert len(data._files._open) <= 2
    before = {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n != "x"
              and os.path.islink(f"/proc/self/fd/{n}")}  # fmt: skip
    assert sum(str(folder) in name for name in before) == 2
    child = os.fork()
    if child == 0:  # no pytest in here
        code = 1
        try:
            links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
            inherited = [os.readlink(x) for x in links if os.path.islink(x)]
            check(data[8])
            code = 2 if any(str(folder) in name for name in inherited) else 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    check(data[0])
    data.close()
    assert not data._files._open
    check(data[0])


def test_a_fork_that_python_does_not_see(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = RunDataset(folder)
    data[0]
    old = data._files._open
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "getpid", lambda: -1)
        check(data[0])
        assert data._files._open is not old
        assert len(old) == 1  # kept, not closed: HDF5 is not called on it
    data.close()


def test_threads_share_a_dataset(folder: Path) -> None:
    data = RunDataset(folder, max_open=1)
    problems: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for i in np.random.default_rng(seed).integers(0, len(data), 60):
                check(data[int(i)])
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_runs_that_are_going(tmp_path: Path) -> None:
    make(tmp_path / "done.h5", 0, 3)
    with TrajectoryWriter(
        tmp_path / "going.h5",
        dims={"y": 3, "x": 4},
        variables=[STANDARD["coarse_magnetization"]],
        attributes={"system": "test", "config_json": "{}", "seed": 1, "rng": "none",
                    "decomposition_invariant": 1},
        flush_interval=0,
    ) as writer:  # fmt: skip
        for t in range(3):
            writer.append(0.5 * t + 0.01 * t * t, {"coarse_magnetization": field(1, t)})
        with pytest.raises(InputError, match="running or was interrupted"):
            RunDataset(tmp_path)
        data = RunDataset(tmp_path, allow_incomplete=True)
        assert len(data) == 4
        for t in range(3, 40):
            writer.append(0.5 * t + 0.01 * t * t, {"coarse_magnetization": field(1, t)})
            for i in (2, 3):
                check(data[i])
    assert len(data) == 4
    for item in data:
        check(item)  # sealed meanwhile
    assert len(RunDataset(tmp_path)) == 2 + 39


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"window": 0}, "window"),
        ({"window": 13}, "13 frames; runs have 12"),
        ({"variables": ()}, "one variable or more"),
        ({"variables": "spin"}, "some of"),
        ({"parameters": "pressure"}, "some of"),
        ({"parameters": "system"}, "parameters"),
        ({"variables": ("magnetization",) * 2}, "each name once"),
    ):
        with pytest.raises(InputError, match=message):
            RunDataset(folder, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not found"):
        RunDataset(tmp_path / "none")
    with pytest.raises(InputError, match="at least one run"):
        RunDataset(tmp_path)
    make(tmp_path / "narrow.h5", 0, 3, side=2)
    with pytest.raises(InputError, match=r"of shape \(3, 2\) in .*narrow.h5") as error:
        RunDataset([folder, tmp_path])
    assert "0.h5" in str(error.value)


def test_files_that_change_or_break(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    make(path, 0, 4)
    data = RunDataset(path)
    make(path, 0, 4, every=0.6)
    with pytest.raises(InputError, match="has changed since"):
        data[0]
    data = RunDataset(path)
    spoiled = bytearray(path.read_bytes())
    spoiled[len(spoiled) // 3] ^= 16
    path.write_bytes(spoiled)
    with pytest.raises(InputError, match="corrupt"):
        data[0]
    path.unlink()
    with pytest.raises(InputError, match="moved"):
        data[0]


def test_split_is_by_run(folder: Path, tmp_path: Path) -> None:
    for run in range(10):
        make(tmp_path / f"{run}.h5", run, 3)
    make(tmp_path / "same-as-0.h5", 0, 3, coarse=4)
    data = RunDataset(tmp_path)
    parts = data.split((0.7, 0.2, 0.1), seed=3)

    def seeds(part: RunDataset) -> set[int]:
        return {int(part.runs[item["run"]].path.stem.split("-")[-1]) for item in part}

    sets = [seeds(part) for part in parts]
    assert [len(s) for s in sets] == [7, 2, 1]
    assert set.union(*sets) == set(range(10))
    assert sum(map(len, parts)) == len(data)
    for part in parts:  # the two files of run 0 stay together
        names = {path.name for path in part.paths}
        assert ("0.h5" in names) == ("same-as-0.h5" in names)
    other_order = RunDataset(sorted(tmp_path.glob("*.h5"), reverse=True))
    assert [seeds(p) for p in other_order.split((0.7, 0.2, 0.1), seed=3)] == sets
    assert [seeds(p) for p in data.split((0.7, 0.2, 0.1), seed=4)] != sets
    assert [len(p.runs) for p in RunDataset(folder).split((0.98, 0.01, 0.01))] == [2, 1, 1]
    for fractions in ((0.5, 0.4), (1.5, -0.5), (0.2,) * 5):
        with pytest.raises(InputError, match="fractions"):
            RunDataset(folder).split(fractions)


# -- Runs, without torch -------------------------------------------------------------------


def test_open_gives_a_file_or_all_runs(folder: Path) -> None:
    with mpiflow.open(folder / "0.h5") as run:
        assert isinstance(run, Trajectory)
        assert len(run) == 7
    for where in (folder, f"{folder}/*.h5", sorted(folder.glob("*.h5"))):
        runs = mpiflow.open(where)
        assert isinstance(runs, Runs)
        assert runs.paths == [folder / f"{i}.h5" for i in range(4)]
        assert [len(run) for run in runs] == list(LENGTHS)
    assert len(runs[2]) == 12
    assert isinstance(runs[1:], Runs)
    assert runs[1:].paths == runs.paths[1:]
    with pytest.raises(InputError, match="none"):
        mpiflow.open(folder / "none.h5")


def test_table(folder: Path) -> None:
    table = Runs(folder).table()
    assert table["temperature"] == [2.0, 3.0, 4.0, 5.0]
    assert table["seed"] == [0, 1, 2, 3]
    assert table["frames"] == list(LENGTHS)
    assert table["complete"] == [True] * 4
    assert "members" not in table  # the same in all
    assert Runs(folder).table("members") == {"members": [1] * 4}
    with pytest.raises(InputError, match="pressure"):
        Runs(folder).table("pressure")


def test_runs_in_one_xarray(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    # Runs of different lengths are filled up.
    ragged = Runs(folder).to_xarray()
    assert ragged.frames.values.tolist() == list(LENGTHS)
    there = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    np.testing.assert_array_equal(np.isfinite(ragged.magnetization), there)
    np.testing.assert_array_equal(ragged.coarse_magnetization[3, 4], field(3, 4))
    (tmp_path / "others").mkdir()
    other = make(tmp_path / "others" / "other.h5", 9, 4, side=2)
    with pytest.raises(InputError, match="variables and shapes of 0.h5"):
        Runs([folder / "0.h5", other]).to_xarray()
    for run in range(3):
        make(tmp_path / f"{run}.h5", run, 4)
    data = Runs(tmp_path).to_xarray()
    assert data.coarse_magnetization.dims == ("run", "time", "y", "x")
    assert data.temperature.values.tolist() == [2.0, 3.0, 4.0]
    one = data.coarse_magnetization.sel(run=1).isel(time=3)
    assert one.values.tolist() == field(1, 3).tolist()
    make(tmp_path / "3.h5", 3, 4, every=0.7)
    data = Runs(tmp_path).to_xarray()
    assert data.coarse_magnetization.dims == ("run", "frame", "y", "x")
    assert data.time.dims == ("run", "frame")
    np.testing.assert_allclose(data.time[3], [0.0, 0.71, 1.44, 2.19])


def test_paths_are_found(folder: Path, tmp_path: Path) -> None:
    names: Sequence[Any] = [folder / "1.h5", str(folder), folder / "0.h5"]
    assert [p.name for p in find_runs(names)] == ["1.h5", "0.h5", "2.h5", "3.h5"]
    shutil.copy(folder / "0.h5", tmp_path / "[0].h5")
    assert [p.name for p in find_runs(tmp_path / "[0].h5")] == ["[0].h5"]
    (tmp_path / ".hidden.h5").touch()
    (tmp_path / "notes.txt").touch()
    assert len(find_runs(tmp_path)) == 1
