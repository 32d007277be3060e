"""manifest.json: entries, jobs that write at once, and manifests that are broken or hostile."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from mpiflow.core.errors import InputError
from mpiflow.files import manifest
from mpiflow.files.schema import STANDARD
from mpiflow.files.writer import TrajectoryWriter

ABOUT = {"system": "test", "config_json": "{}", "seed": 2**63 + 7, "rng": "none"}


def make(path: Path, frames: int = 3, complete: bool = True) -> Path:
    """A run, without its entry."""
    writer = TrajectoryWriter(
        path,
        dims={},
        variables=[STANDARD["magnetization"]],
        attributes=ABOUT | {"decomposition_invariant": 1},
        overwrite=True,
    )
    for t in range(frames):
        writer.append(0.5 * t, {"magnetization": 0.0})
    writer.close(complete)
    (path.parent / manifest.NAME).unlink(missing_ok=True)
    (path.parent / manifest.LOCK).unlink(missing_ok=True)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make(tmp_path / "run.h5")


def test_an_entry_says_what_a_run_is(run: Path) -> None:
    manifest.enter(run)
    written = json.loads((run.parent / "manifest.json").read_text())
    assert written["schema"] == 1
    assert set(written["runs"]["run.h5"]) == {
        "sha256", "bytes", "frames", "time", "system", "seed", "mpiflow_version",
    }  # fmt: skip
    entry = manifest.read(run.parent)["run.h5"]
    assert entry.sha256 == hashlib.sha256(run.read_bytes()).hexdigest()
    assert entry.bytes == run.stat().st_size
    assert (entry.frames, entry.time, entry.system) == (3, (0.0, 1.0), "test")
    assert entry.seed == 2**63 + 7


def test_entering_again_replaces_and_forgetting_removes(run: Path) -> None:
    manifest.enter(run)
    text = (run.parent / manifest.NAME).read_bytes()
    make(run, 5)
    (run.parent / manifest.NAME).write_bytes(text)
    assert manifest.enter(run).frames == 5
    assert manifest.read(run.parent)["run.h5"].frames == 5
    manifest.forget(run)
    manifest.forget(run)
    assert manifest.read(run.parent) == {}


def test_a_run_without_frames_has_no_times(tmp_path: Path) -> None:
    run = make(tmp_path / "empty.h5", 0)
    assert manifest.enter(run).time is None
    assert manifest.read(tmp_path)["empty.h5"].frames == 0


def test_forgetting_makes_no_manifest(run: Path) -> None:
    manifest.forget(run)
    assert manifest.read(run.parent) == {}
    assert not (run.parent / manifest.LOCK).exists()


def test_only_a_complete_trajectory_enters(tmp_path: Path) -> None:
    running = make(tmp_path / "running.h5", complete=False)
    with pytest.raises(InputError, match="running, or was interrupted"):
        manifest.enter(running)
    running.write_bytes(b"no HDF5 " * 100)
    with pytest.raises(InputError, match="corrupt"):
        manifest.enter(running)
    with pytest.raises(InputError, match="not found"):
        manifest.enter(tmp_path / "none.h5")
    assert not (tmp_path / manifest.NAME).exists()


def _enter(path: Path) -> None:
    for _ in range(5):
        manifest.enter(path)


def test_jobs_of_an_array_lose_no_entry(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"{i}.h5", i) for i in range(1, 9)]
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.map(_enter, paths, chunksize=1)
    assert {k: e.frames for k, e in manifest.read(tmp_path).items()} == {
        f"{i}.h5": i for i in range(1, 9)
    }
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".new")]


def test_waits_for_the_lock_but_not_for_ever(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "PATIENCE", 0.1)
    with open(run.parent / manifest.LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="Another job has held"):
            manifest.enter(run)
    manifest.enter(run)


def test_goes_on_where_there_are_no_locks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    manifest.enter(run)
    assert "run.h5" in manifest.read(run.parent)


@pytest.mark.parametrize("call", ["enter", "forget"])
def test_a_broken_manifest_is_said_and_kept(run: Path, call: str) -> None:
    path = run.parent / manifest.NAME
    path.write_text('{"schema": 1, "runs": {"run.h5"')
    with pytest.raises(InputError, match="corrupt"):
        getattr(manifest, call)(run)
    assert path.read_text() == '{"schema": 1, "runs": {"run.h5"'


@pytest.mark.parametrize("at", ["open", "replace", "fsync"])
def test_a_failing_disk_leaves_the_old_manifest(
    run: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest.enter(run)
    old = (run.parent / manifest.NAME).read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"open": (os, "open"), "replace": (Path, "replace"), "fsync": (os, "fsync")}[at]
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        with pytest.raises(InputError, match="No space left"):
            manifest.forget(run)
    assert (run.parent / manifest.NAME).read_bytes() == old
    assert not list(run.parent.glob(".*.new"))


ENTRY = {
    "sha256": "0" * 64,
    "bytes": 10,
    "frames": 2,
    "time": [0.0, 1.0],
    "system": "ising",
    "seed": 7,
    "mpiflow_version": "0.1.0",
}


def with_entry(name: str = "run.h5", **fields: Any) -> str:
    return json.dumps({"schema": 1, "runs": {name: ENTRY | fields}})


def test_the_entry_of_these_tests_is_a_good_one(tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_text(with_entry())
    assert manifest.read(tmp_path)["run.h5"].time == (0.0, 1.0)


HOSTILE = {
    "path up": with_entry("../run.h5"),
    "absolute path": with_entry("/etc/passwd"),
    "backslash": with_entry("a\\b"),
    "dots": with_entry(".."),
    "no name": with_entry(""),
    "null byte": with_entry("a\0b"),
    "line": with_entry("a\nb"),
    "half a character": '{"schema": 1, "runs": {"\\ud800": ' + json.dumps(ENTRY) + "}}",
    "long name": with_entry("x" * 300),
    "hash not hexadecimal": with_entry(sha256="g" * 64),
    "hash too short": with_entry(sha256="0" * 63),
    "hash with a line": with_entry(sha256="0" * 64 + "\n"),
    "boolean": with_entry(bytes=True),
    "negative": with_entry(frames=-1),
    "fraction": with_entry(frames=1.5),
    "huge integer": with_entry(seed=2**64),
    "digits without end": with_entry().replace('"seed": 7', '"seed": ' + "9" * 10_000),
    "text for a number": with_entry(bytes="10"),
    "NaN": with_entry(time=[0.0, float("nan")]),
    "infinite by exponent": with_entry().replace("1.0]", "1e999]"),
    "huge time": with_entry(time=[0, 10**400]),
    "times back": with_entry(time=[1.0, 0.0]),
    "three times": with_entry(time=[0.0, 1.0, 2.0]),
    "frames without time": with_entry(time=None),
    "nothing in a text": with_entry(system=""),
    "escape codes": with_entry(system="\x1b[2J"),
    "another field": json.dumps({"schema": 1, "runs": {"r": ENTRY | {"__class__": "os.system"}}}),
    "a field less": json.dumps({"schema": 1, "runs": {"r": {"sha256": "0" * 64}}}),
    "entry is a list": json.dumps({"schema": 1, "runs": {"r": [1]}}),
    "runs is a list": json.dumps({"schema": 1, "runs": []}),
    "no schema": json.dumps({"runs": {}}),
    "schema is true": json.dumps({"schema": True, "runs": {}}),
    "twice": '{"schema": 1, "schema": 1, "runs": {}}',
    "deep": "[" * 200_000,
    "nothing": "",
    "list": "[]",
    "pickle": "\x80\x04cposix\nsystem\n",
    "yaml": "!!python/object/apply:os.system ['true']",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_manifest_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / manifest.NAME).write_text(HOSTILE[kind])
    with pytest.raises(InputError, match="corrupt"):
        manifest.read(tmp_path)


def test_a_manifest_of_another_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / manifest.NAME
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="corrupt"):
        manifest.read(tmp_path)
    path.write_text(json.dumps({"schema": 2, "runs": {}}))
    with pytest.raises(InputError, match="update"):
        manifest.read(tmp_path)
    path.write_text(with_entry())
    monkeypatch.setattr(manifest, "MAX_BYTES", 10)
    with pytest.raises(InputError, match="at most 10 bytes"):
        manifest.read(tmp_path)
    path.unlink()
    os.mkfifo(path)  # must not hang
    with pytest.raises(InputError, match="no regular file"):
        manifest.read(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError):
        manifest.read(tmp_path)
