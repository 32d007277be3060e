"""The commands of the README and of docs/systems.md, and the README's Python example, executed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mpiflow.cli import invoke

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SYSTEMS = (ROOT / "docs" / "systems.md").read_text()
PROGRAMS = Path(sys.executable).parent


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[str]:
    """Those of both pages, the README's first."""
    shown = [*blocks("sh"), *blocks("sh", SYSTEMS)]
    lines = [line.split("#")[0].strip() for block in shown for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("make ")]


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 500


def test_make_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"^make (\S+)", "\n".join(blocks("sh")), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{t}:", makefile, re.MULTILINE) for t in targets)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which the README's relative paths work."""
    path = tmp_path_factory.mktemp("readme")
    (path / "drivers").symlink_to(ROOT / "drivers")
    (path / ".venv").symlink_to(PROGRAMS.parent)
    return path


#: What these begin is started under mpirun, as written: a run of the README, a driver. Others
#: do the same work in this process: to start two ranks for each takes longer than their work.
STARTED = (".venv/bin/mpiflow simulate ising", "python drivers/")
#: tests/test_drivers.py has them all, on one rank.
LONG = "drivers/ising_closure.py"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=[pytest.mark.validate] if LONG in c else []) for c in commands()],
)
def test_command(command: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    if words[:3] == ["mpirun", "-n", "2"] and not any(c in command for c in STARTED):
        words = words[3:]
    if words[0] in (".venv/bin/mpiflow", "mpiflow"):
        monkeypatch.chdir(place)
        invoke(words[1:])
    else:
        done = subprocess.run(
            words, cwd=place, env=one_thread(), capture_output=True, text=True,
            timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert seen_by_git(place) == []


def seen_by_git(place: Path) -> list[str]:
    """What commands left in a folder that `git status` of a clone would show."""
    if not (ROOT / ".git").exists():  # an archive of the sources
        return []
    names = sorted({path.name for path in place.iterdir()} - {"drivers", "example.py", ".venv"})
    names = [f"{name}/" if (place / name).is_dir() else name for name in names]
    asked = ["git", "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(
        asked, cwd=ROOT, input="\n".join(names), capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return sorted(set(names) - set(done.stdout.splitlines()))


@pytest.mark.timeout(300)
def test_python_example(place: Path) -> None:
    (example,) = blocks("python")
    assert len(example.strip().splitlines()) <= 15
    (place / "example.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=place, env=one_thread(), capture_output=True,
        text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "t =   20" in done.stdout


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
