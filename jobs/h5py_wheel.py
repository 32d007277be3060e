"""Builds a wheel of the h5py whose source lies in a folder: what pip would, in half the time.

    CC=mpicc HDF5_MPI=ON HDF5_DIR=DIR python jobs/h5py_wheel.py SOURCE WHEELS

pip has Cython translate one module after the other, and half of that is Python's search for cycles.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import Cython.Build
from setuptools import build_meta

# Some 400 MB for each process, however many cores there are.
PROCESSES = min(len(os.sched_getaffinity(0)), 4)


def main() -> None:
    source, wheels = (Path(word).resolve() for word in sys.argv[1:])
    gc.disable()
    # setup.py of h5py asks for this function when it runs, below.
    Cython.Build.cythonize = partial(Cython.Build.cythonize, nthreads=PROCESSES)
    os.chdir(source)
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as settings:
        settings.write(f"[build_ext]\nparallel = {PROCESSES}\n")
        settings.flush()
        os.environ["DIST_EXTRA_CONFIG"] = settings.name
        build_meta.build_wheel(str(wheels))


if __name__ == "__main__":
    main()
