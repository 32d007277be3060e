"""Compiled kernels on disk: no state of the folder ends a run, and none is of another source."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from numba.core import caching, event

from mpiflow.core import device, kernel_cache
from mpiflow.core.compiling import CLOCK

ROOT = Path(__file__).resolve().parents[2]


def tripled(n: int) -> int:
    return 3 * n


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kernels"
    monkeypatch.setattr(kernel_cache, "folder", lambda: path)
    monkeypatch.setattr(kernel_cache, "_warned", [])
    return path


def compiled(expected: str) -> None:
    """A kernel made anew: whether it came from the cache, was compiled, or could not be kept."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernel: Any = device.kernel(tripled)
        assert kernel(5) == 15
    loaded = bool(sum(kernel.stats.cache_hits.values()))
    said = "".join(str(w.message) for w in caught)
    assert not said or ("set NUMBA_CACHE_DIR to a folder" in said and "\n" not in said)
    assert (("loaded" if loaded else "compiled") + (" and said" if said else "")) == expected, said


def files(folder: Path, ending: str) -> list[Path]:
    return sorted(folder.rglob(f"*.{ending}"))


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", None])
@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_damaged_file_is_replaced(folder: Path, ending: str, content: bytes | None) -> None:
    compiled("compiled")
    compiled("loaded")
    (path,) = files(folder, ending)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    compiled("compiled")
    compiled("loaded")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_folder_that_takes_nothing(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once; what is there is still used."""
    compiled("compiled")
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(caching.IndexDataCacheFile, "_save_index", refuse)
    shutil.rmtree(folder)
    compiled("compiled and said")
    compiled("compiled")
    assert kernel_cache._warned == [os.strerror(number)]
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    compiled("loaded")
    (path,) = files(folder, "nbi")
    path.write_bytes(b"")
    compiled("compiled")


def run(folder: Path, **environment: str | None) -> str:
    """The folder of a process, and whether a kernel works there."""
    program = (
        "from mpiflow.core import device, kernel_cache\n"
        "from mpiflow.solvers.mean_field import exponential\n"
        "from mpiflow.core.streams import plain_warnings\n"
        "import numpy as np\n"
        "plain_warnings()\n"
        "assert 0 < exponential(np.uint64(2**63)) < 1\n"
        "print(kernel_cache.folder())\n"
    )
    names = ("HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    given = {k: v for k, v in environment.items() if v is not None}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, **given, "PYTHONPATH": str(ROOT)}, cwd=folder, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    said = done.stderr.splitlines()
    assert len(said) == (done.stdout == "None\n"), done.stderr
    assert all(line.startswith("mpiflow: warning: compiled kernels cannot be") for line in said)
    return done.stdout.strip()


def test_folders(tmp_path: Path) -> None:
    digest = kernel_cache.digest()
    own = tmp_path / "own"
    assert run(tmp_path, HOME=str(tmp_path), NUMBA_CACHE_DIR=str(own)) == (
        f"{own}/mpiflow-{digest}"
    )
    assert files(own / f"mpiflow-{digest}", "nbc")
    assert run(tmp_path, HOME=str(tmp_path / "none")) == "None"
    assert not (tmp_path / "none").exists()
    assert (
        run(tmp_path, XDG_CACHE_HOME=str(tmp_path / "x")) == f"{tmp_path}/x/mpiflow/numba/{digest}"
    )


def test_constants_count_as_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel has constants of other modules in it."""
    package = tmp_path / "mpiflow"
    for path in (ROOT / "mpiflow").rglob("*.py"):
        there = package / path.relative_to(ROOT / "mpiflow")
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there)
    monkeypatch.setattr(kernel_cache, "__file__", str(package / "core" / "kernel_cache.py"))
    digest = kernel_cache.digest.__wrapped__
    before = digest()
    assert before == kernel_cache.digest()
    for name, changes in (
        ("systems/alloy.py", True), ("core/noise.py", True), ("systems/ising.py", True),
        ("commands/export.py", False), ("cli.py", False),
    ):  # fmt: skip
        with open(package / name, "a") as file:
            file.write("# another\n")
        after = digest()
        assert (after != before) == changes, name
        before = after


def test_processes_take_turns(tmp_path: Path) -> None:
    """What one compiles the others find, also if all begin at once."""
    program = (
        "from mpiflow.core import compiling, noise\n"
        "noise.words(1, 'initial', 0, 0, [1, 2])\n"
        "print(compiling.CLOCK.functions)\n"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    counts = sorted(int(process.communicate()[0]) for process in both)
    assert counts[0] == 0 < counts[1]


def test_nobody_waits_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that holds all turns and does nothing, as one that is stopped or far away."""
    monkeypatch.setattr(kernel_cache, "PATIENCE", 0.2)
    folder.mkdir()
    program = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'w')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder / "turns")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        begun = time.monotonic()
        compiled("compiled")
        assert time.monotonic() - begun > 0.2
        compiled("loaded")
        holder.communicate("\n")


def test_what_python_has_called_is_not_compiled_again_for_kernels() -> None:
    def half(x: float) -> float:
        return x / 2

    half = device.outside(half)
    assert half(3.0) == 1.5

    def quarter(x: float) -> float:
        return half(x) / 2

    before = CLOCK.functions
    assert device.outside(quarter)(3.0) == 0.75
    assert CLOCK.functions == before + 1


def test_no_search_for_cycles_while_something_is_compiled() -> None:
    seen = []

    class Watch(event.Listener):
        def on_start(self, event: Any) -> None:
            seen.append(gc.isenabled())

        def on_end(self, event: Any) -> None:
            pass

    def one(x: float) -> float:
        return x + 1

    watch, before = Watch(), gc.isenabled()
    with event.install_listener("numba:compile", watch):
        for allowed in (True, False):
            (gc.enable if allowed else gc.disable)()
            try:
                device.outside(one)(1.0)
                assert gc.isenabled() == allowed
            finally:
                (gc.enable if before else gc.disable)()
    assert seen == [False, False]


def test_what_kernels_call_has_no_machine_code() -> None:
    """It is copied into the kernel; a function that Python calls has its own."""
    rule: Any = device.rule(tripled)

    def twice(n: int) -> int:
        return rule(rule(n))

    kernel: Any = device.outside(twice)
    assert kernel(2) == 18
    assert not rule.overloads
    assert rule(2) == 6
    (own,) = rule.overloads.values()
    (whole,) = kernel.overloads.values()
    assert own.library._emitted
    assert whole.library._emitted
    callees = [c for c in whole.library._linking_libraries if "tripled" in c.name]
    assert callees
    assert not any(callee._emitted for callee in callees)


def test_a_kernel_is_loaded_without_what_compiles(tmp_path: Path) -> None:
    """Neither what Numba can compile nor masked arrays are imported by what only loads."""
    program = """
import sys
import numpy as np
from mpiflow.core.device import copy_line
target = np.zeros(3)
copy_line(target, np.arange(3.0))
assert target.tolist() == [0.0, 1.0, 2.0]
print([name for name in ("numba.cpython.setobj", "numpy.ma") if name in sys.modules])
"""
    given = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    given.pop("NUMBA_DISABLE_JIT", None)
    command = [sys.executable, "-c", program]
    said = [
        subprocess.run(command, env=given, cwd=ROOT, check=True, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert "setobj" in said[0].stdout
    assert said[1].stdout == "[]\n"
