"""``mpiflow warmup``: compile kernels before the first run, on a login node or at set-up.

Each system is run at the sizes of :attr:`mpiflow.simulation.catalogue.Entry.short`, in a folder
that is removed. What is compiled so is what most runs need; a run with other options may still
compile a kernel of its own. ``learning`` is not a system: the kernels of closures of Ising
lattices, as of ``make demo``, and of the networks that are learned most.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mpiflow.core.compiling import CLOCK
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import launched_size
from mpiflow.simulation import catalogue

if TYPE_CHECKING:
    from mpi4py import MPI

LEARNING = "learning"


def warm_up(names: Sequence[str]) -> Iterator[str]:
    """Compile the kernels of systems (everything unless some are named); a line about each.

    Several systems are compiled side by side, each in a process of its own.

    Raises
    ------
    InputError : there is no such system, or this was started on several ranks
    """
    if launched_size() > 1:
        raise InputError("ranks", launched_size(), "one process", "Start it without mpirun.")
    # Those with most runs compile longest, and begin first.
    short = {name: len(entry.short) for name, entry in catalogue.systems().items() if entry.short}
    known = sorted(short, key=lambda name: -short[name])
    if find_spec("torch") is not None:
        known.insert(2, LEARNING)
    for name in names:
        if name not in known and not catalogue.entry(name).short:
            allowed = f"one or more of {', '.join(known)}"
            raise InputError("systems", name, allowed, "Its kernels are compiled by its first run.")
    chosen = list(dict.fromkeys(names or known))
    if len(chosen) == 1:
        yield compile_here(chosen[0])
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with ThreadPoolExecutor(cores) as pool:
        yield from pool.map(_in_a_process, chosen)


def compile_here(name: str) -> str:
    """Run a system's short runs in this process, and say what was compiled."""
    from mpiflow.core import kernel_cache
    from mpiflow.core.parallel import start

    comm, begun = start(), time.monotonic()
    before, functions = CLOCK.seconds, CLOCK.functions
    if name == LEARNING:
        _learn(comm)
    else:
        _run(name, comm)
    made, seconds = CLOCK.functions - functions, CLOCK.seconds - before
    place = kernel_cache.folder()
    if not made:
        return f"{name}: all compiled before, in {place}"
    spent = f"{seconds:.1f} s of {time.monotonic() - begun:.1f} s"
    return f"{name}: {made} functions compiled into {place}, {spent}"


def _run(name: str, comm: MPI.Intracomm) -> None:
    from mpiflow.run.simulate import simulate

    with tempfile.TemporaryDirectory() as folder:
        for number, options in enumerate(catalogue.entry(name).short):
            out = Path(folder) / f"{number}.h5"
            simulate(name, comm, out=out, quiet=True, checkpoints=True, **options)


def _learn(comm: MPI.Intracomm) -> None:
    """What drivers/demo.py does, of as little as can be."""
    from mpiflow.experiments import ising
    from mpiflow.learn.closure.dataset import DataPlan
    from mpiflow.learn.training import Schedule
    from mpiflow.systems.ising import Ising

    system, of, plan = Ising(2.5, 0.1), (4, 0), DataPlan(large=8, patch=4, states=64, repeats=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how well it fits
        data, schedule = ising.generate(system, {of: plan}, comm), Schedule(epochs=1)
        models = ising.learn(system, data, [(4, "partial", 0)], comm=comm, schedule=schedule)
        # So many that they are the bits of words.
        encoders = dict.fromkeys([of], *models.values())
        truth = ising.simulate_truth(
            system, 8, (0.0,), 512, np.arange(3.0), encoders, seed=0, comm=comm
        )
        ising.evaluate(models, truth, seed=0, comm=comm)


def _in_a_process(name: str) -> str:
    done = subprocess.run(  # noqa: S603 - this very program
        [sys.executable, "-m", "mpiflow", "warmup", name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return f"{name}: not compiled: {done.stderr.strip()}"
    return done.stdout.strip()
