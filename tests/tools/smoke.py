"""Runs drivers with --smoke, one after the other in the same processes. No test by itself.

Says after each driver if torch has been loaded by then, and what is wrong with its figures.

mpirun -n 2 python tests/tools/smoke.py OUT '[["demo", []], ["alloy_report", ["--truth", "OUT/x"]]]'
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import layout
from mpi4py import MPI

DRIVERS = Path(__file__).resolve().parents[2] / "drivers"


def main() -> None:
    out, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, options in jobs:
        driver = str(DRIVERS / f"{name}.py")
        print(f"== {name}", flush=True)  # the last one is the one that failed
        sys.argv = [driver, "--smoke", *options, "--out", str(out / name)]
        with layout.watched(lambda fault, name=name: print(f"!! {name}: {fault}", flush=True)):
            runpy.run_path(driver, run_name="__main__")
        if "torch" in sys.modules:
            print(f"-- torch after {name}", flush=True)
        MPI.COMM_WORLD.Barrier()


if __name__ == "__main__":
    main()
