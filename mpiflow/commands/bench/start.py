"""What ``mpiflow bench start`` measures: the time from nothing to the first result of a run."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mpiflow.core.errors import InputError
from mpiflow.simulation import catalogue

#: Of a launcher: a program that is started here must not take itself for one of its ranks.
_LAUNCHER = ("OMPI_", "PMIX_", "PMI_", "PRTE_")


class Spent(NamedTuple):
    """Seconds of a program's processor and of the clock on the wall, and its memory in MB."""

    cpu: float
    wall: float
    memory: float


def cases(small: bool) -> Iterator[tuple[str, str, list[float]]]:
    """Name, unit and values of each case: of every system that has short runs.

    Each runs in a process of its own, which finds no kernels (cold), then those of the run before
    (warm, three times).
    """
    for system, entry in catalogue.systems().items():
        if small and system != "curie-weiss":
            continue
        for options in entry.short:
            name = " ".join(
                [system, *(str(options[n]) for n in ("size", "solver") if n in options)]
            )
            with tempfile.TemporaryDirectory() as folder:
                cold = _run(Path(folder), system, options)
                warm = [_run(Path(folder), system, options) for _ in range(1 if small else 3)]
            yield f"{name}, cold", "CPU s", [cold.cpu]
            yield f"{name}, warm", "CPU s", [spent.cpu for spent in warm]
            yield f"{name}, warm, to wait", "s", [spent.wall for spent in warm]
            yield f"{name}, warm, memory", "MB", [spent.memory for spent in warm]


def _run(folder: Path, system: str, options: Mapping[str, Any]) -> Spent:
    """What a short run spends; its kernels are kept in the folder."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(_LAUNCHER)}
    # As installed: Python keeps what it compiled of modules.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(  # noqa: S603 - this very program
        [sys.executable, "-c", _PROGRAM, "simulate", system, *words, "--overwrite", "--out=run.h5"],
        cwd=folder,
        env={**kept, "NUMBA_CACHE_DIR": str(folder / "kernels")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise InputError("bench", "start", "a machine on which runs start", done.stderr.strip())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(cpu, wall, float(done.stdout.split()[-1]))


# Not what getrusage says, where /proc tells: on Linux that is no less than what the process which
# started this one had.
_PROGRAM = """
import pathlib, resource
import mpiflow.cli
mpiflow.cli.main()
told = pathlib.Path("/proc/self/status")
lines = told.read_text().splitlines() if told.exists() else []
most = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
print((most or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] / 1024)
"""
