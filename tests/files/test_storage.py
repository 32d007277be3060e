"""Files that are there whole or not at all; locks; room."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mpiflow.core.errors import InputError
from mpiflow.files import storage


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    storage.commit(path, lambda file: file.write(b"old"))
    with pytest.raises(ZeroDivisionError):
        storage.commit(path, lambda file: file.write(b"new") // 0)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_not_replacing(tmp_path, monkeypatch, links):
    if not links:

        def none(*_: object) -> None:
            raise PermissionError(1, "no hard links here")

        monkeypatch.setattr(os, "link", none)
    path = tmp_path / "a"
    storage.commit(path, lambda file: file.write(b"first"), replace=False)
    with pytest.raises(FileExistsError):
        storage.commit(path, lambda file: file.write(b"second"), replace=False)
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


def test_room(tmp_path):
    storage.require_room(tmp_path, 2**20)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            storage.require_room(tmp_path, 2**21)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert os.listdir(tmp_path) == []


def test_room_that_a_file_holds(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"data")
    storage.reserve(path, 4, 2**16)
    assert path.read_bytes() == b"data" + bytes(2**16)
    os.truncate(path, 4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            storage.reserve(path, 4, 2**16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"data"


def test_room_behind_an_end_that_others_move(tmp_path, monkeypatch):
    path, asked = tmp_path / "a", []
    path.write_bytes(b"data")
    storage.hold(path, 2**16)
    assert path.read_bytes() == b"data"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            storage.hold(path, 2**16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.setattr(storage, "_hold", lambda *_: errno.EDQUOT)
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        storage.hold(path, 1)
    monkeypatch.setattr(storage, "_hold", lambda *_: errno.EOPNOTSUPP)
    monkeypatch.setattr(storage, "require_room", lambda *given: asked.append(given))
    storage.hold(path, 2**16)
    assert asked == [(tmp_path, 2**16)]


def test_a_lock_is_held_by_one_and_ends_with_its_process(tmp_path):
    path = tmp_path / "run.h5"
    lock = storage.Lock(path)
    with pytest.raises(InputError, match=rf"Process {os.getpid()} on {os.uname().nodename} is"):
        storage.Lock(path)
    lock.release()
    lock.release()
    assert os.listdir(tmp_path) == []
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mpiflow.files.storage import Lock\n"
        "lock = Lock(Path(sys.argv[1]))\nprint('held', flush=True)\nsignal.pause()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"Process {other.pid} "):
        storage.Lock(path)
    other.kill()
    other.wait()
    storage.Lock(path).release()  # its file is still there, and held by nobody
    assert os.listdir(tmp_path) == []


def test_without_locks_nothing_is_held(tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(storage.fcntl, "flock", none)
    storage.Lock(tmp_path / "run.h5").release()
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_locked(tmp_path):
    with pytest.raises(InputError, match="Create .*nowhere first"):
        storage.Lock(Path(tmp_path) / "nowhere" / "run.h5")
