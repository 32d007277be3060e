"""``mpiflow experiment``: the drivers, from the source and from an installed package."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mpiflow.cli import invoke
from mpiflow.commands import experiments

ROOT = Path(__file__).resolve().parents[2]
DRIVERS = sorted(path.stem for path in (ROOT / "drivers").glob("*.py"))


def listed(text: str) -> dict[str, str]:
    """Names of the list with their lines."""
    lines = text.partition("Experiments:\n")[2].partition("\n\n")[0].splitlines()
    return {name: line for name, _, line in (line.strip().partition(" ") for line in lines)}


def test_all_are_listed_with_a_line_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    invoke(["experiment"])
    found = listed(capsys.readouterr().out)
    assert sorted(found) == DRIVERS
    for name, line in found.items():
        assert (
            (ROOT / "drivers" / f"{name}.py")
            .read_text()
            .partition('"""')[2]
            .startswith(line.strip())
        ), name
        assert line.endswith((".", "?")), name


def test_a_driver_says_its_options_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "-h"):
        with pytest.raises(SystemExit) as ended:
            invoke(["experiment", "window_bias", option])
        assert ended.value.code == 0
        assert "usage: mpiflow experiment window_bias [-h] [--out OUT]" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        invoke(["experiment", "window_bias", "--smoek"])
    assert ended.value.code == 2
    assert "arguments: --smoek. Did you mean --smoke?" in capsys.readouterr().err


def test_an_installed_package_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid out as setup.py says; ``make dist`` installs a real wheel."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: given.update(options))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    folders = {path.parent for path in (ROOT / "mpiflow").rglob("*.py")}
    names = {".".join(path.relative_to(ROOT).parts) for path in folders}
    assert {*names, "mpiflow.data", "mpiflow.drivers"} <= set(given["packages"])
    inside = tmp_path / "mpiflow"
    inside.mkdir()
    for path in (ROOT / "mpiflow").iterdir():
        (inside / path.name).symlink_to(path)
    for name, source in given["package_dir"].items():
        (tmp_path / name.replace(".", "/")).symlink_to(ROOT / source)
    program = (
        "from mpiflow.commands import experiments\n"
        "print(experiments.folder())\n"
        "experiments.run('window_bias', ['-h'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{inside / 'drivers'}\nusage: mpiflow experiment window_bias")
    assert experiments.folder() == ROOT / "drivers"
