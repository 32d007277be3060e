"""Copies of the package with its source changed in named places, to run tests against."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Change(NamedTuple):
    """In ``file`` of the package, ``old`` becomes ``new`` in all of the ``times`` places
    where it stands."""

    file: str
    old: str
    new: str
    times: int = 1


def make(folder: Path, changes: Sequence[Change] = ()) -> Path:
    """Copy the package into a new folder and change it; returns what PYTHONPATH must name."""
    package = folder / "mpiflow"
    shutil.copytree(ROOT / "mpiflow", package, ignore=shutil.ignore_patterns("__pycache__"))
    for change in changes:
        path = package / change.file
        source = path.read_text()
        found = source.count(change.old)
        if found != change.times:
            raise ValueError(
                f"{change.file} has {found} times, not {change.times}, the text {change.old!r}"
            )
        path.write_text(source.replace(change.old, change.new))
    return folder


def run(
    variant: Path,
    arguments: Sequence[str],
    *,
    ranks: int = 1,
    environment: dict[str, str] | None = None,
    timeout: float = 240,
) -> subprocess.CompletedProcess[str]:
    """pytest of this suite against a variant, with kernels compiled for it alone.

    A first line of output says which package it was; a run with another one fails.
    """
    start = (
        "import sys, mpiflow, pytest; from pathlib import Path; "
        f"assert Path(mpiflow.__file__).is_relative_to({str(variant)!r}), mpiflow.__file__; "
        "sys.exit(pytest.main(sys.argv[1:]))"
    )
    options = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    command = [sys.executable, "-c", start, *options, *arguments]
    if ranks > 1:
        command = ["mpirun", "-n", str(ranks), *command]
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    return subprocess.run(
        ["timeout", "-k", "10", str(timeout), *command],
        cwd=variant,
        env={
            **os.environ,
            "PYTHONPATH": str(variant),
            "NUMBA_CACHE_DIR": str(variant / "numba-cache"),
            "NUMBA_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": os.pathsep.join(paths),
            **(environment or {}),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


# -- fewer planes ------------------------------------------------------------------------------

_SHORT = (
    "    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64({0}), masks[{0}], "
    "s0, s1, s01, s2, spin, lt, eq)\n"
)
_LONG = (
    "    a, b, c, lt, eq = _plane(\n"
    "        a, b, c, count + np.uint64({0}), masks[{0}], s0, s1, s01, s2, spin, lt, eq\n"
    "    )\n"
)


def fewer_planes(planes: int) -> list[Change]:
    """Changes that leave more sites undecided for the residual: 2^-planes of them."""
    file = "solvers/spins/bitplanes.py"
    lines = [(_SHORT if i < 10 else _LONG).format(i) for i in range(planes, 12)]
    return [
        Change(file, "PLANES = 12\n", f"PLANES = {planes}\n"),
        *(Change(file, line, "") for line in lines),
    ]
