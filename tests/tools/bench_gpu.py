"""All benchmarks that a GPU takes, in less than 8 minutes: ``make bench-gpu``.

    .venv-cuda/bin/python tests/tools/bench_gpu.py [--out results/bench-gpu.json] [--seconds N]

Each is a process of its own with a share of the time, so that one that fails or hangs leaves what
others have measured. The file has the rows of ``mpiflow bench NAME --device cuda --json``, what
machine and which packages these are of, and which benchmarks did not finish. It is written after
each of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import multispin_baseline
import simulator
from mpi4py import MPI

from mpiflow._version import __version__
from mpiflow.commands.bench import spins as bench
from mpiflow.core import device, gpu, parallel
from mpiflow.files.storage import write_folder

#: Seconds that each benchmark may take: 470 in all. The baseline is NVIDIA's way, written anew.
SHARES = {
    "baseline": 20.0, "ising": 150.0, "ising-exact": 30.0, "partial-evolution": 20.0, "kac": 60.0,
    "alloy": 90.0, "field": 40.0, "learning": 60.0,
}  # fmt: skip


def measure(out: Path, *, small: bool = False, seconds: float = sum(SHARES.values())) -> int:
    """Measure and write, in so many seconds; returns 1 if a benchmark did not finish, else 0.

    Raises
    ------
    InputError : there is no GPU here; nothing is written
    """
    gpu.kernels()
    print(f"bench-gpu: at most {seconds / 60:.1f} minutes", file=sys.stderr, flush=True)
    found: dict[str, Any] = {"facts": facts(), "rows": [], "unfinished": {}}
    for name, part in SHARES.items():
        share = part * seconds / sum(SHARES.values())
        began = time.monotonic()
        print(f"bench-gpu: {name}, at most {share:g} s", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--one", name, *["--small"] * small]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=share)
        except subprocess.TimeoutExpired as late:
            lines = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
            found["unfinished"][name] = f"took longer than {share:g} s"
        else:
            lines = done.stdout
            if done.returncode:
                found["unfinished"][name] = f"ended with {done.returncode}"
        found["rows"] += [json.loads(line) for line in lines.splitlines()]
        found["facts"]["seconds"][name] = round(time.monotonic() - began, 1)
        write_folder(out.parent, {out.name: json.dumps(found, indent=1) + "\n"})
    print(bench.table(found["rows"]))
    print(f"wrote {out}" + "".join(f"\n{n}: {why}" for n, why in found["unfinished"].items()))
    return min(1, len(found["unfinished"]))


def facts() -> dict[str, Any]:
    """The machine and the packages."""
    names = ["simulated"] if device.simulated() else _smi("--query-gpu=name,driver_version")
    packages = {}
    for name in ("numba", "numba-cuda", "torch", "numpy"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    commit = _said("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "gpus": names, "capabilities": device.gpu_capabilities(), **packages,
        "mpiflow": __version__, "commit": commit, "time": now, "seconds": {},
    }  # fmt: skip


def _smi(what: str) -> list[str]:
    return _said("nvidia-smi", what, "--format=csv,noheader").splitlines()


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/bench-gpu.json"))
    parser.add_argument("--seconds", type=float, default=sum(SHARES.values()), help="in all")
    parser.add_argument("--one", help="measure this one alone and print its rows")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    parallel.install_abort_hook()
    if options.one is None:
        return measure(options.out, small=options.small, seconds=options.seconds)
    simulator.wait_in_turn()
    if options.one == "baseline":
        rows = multispin_baseline.measured(small=options.small)
    else:
        rows = bench.run(options.one, MPI.COMM_WORLD, device="cuda", small=options.small)
    for row in rows:
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
