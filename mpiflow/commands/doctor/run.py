"""All checks of the doctor, in order, on all ranks."""

from __future__ import annotations

import faulthandler
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from mpiflow.commands.doctor import check as settings
from mpiflow.commands.doctor import files, installation, ranks
from mpiflow.commands.doctor.check import FAIL, OK, WARNING, Check, Site, numbers
from mpiflow.core import gpu, mpi, parallel
from mpiflow.core.mpi import ALONE, MPI, Alone

_ORDER = {OK: 0, WARNING: 1, FAIL: 2}

#: The checks, in order, and the modules without which they cannot be made.
CHECKS: tuple[tuple[Callable[[Site], list[Check]], tuple[str, ...]], ...] = (
    (installation.check_python, ()),
    (ranks.check_mpi, ()),
    (ranks.check_machine, ("mpiflow.core.device",)),
    (ranks.check_messages, ("mpi4py.MPI", "numpy")),
    (installation.check_compiles, ("mpiflow.core.device",)),
    (installation.check_torch, ()),
    (ranks.check_cuda, ("mpiflow.core.device",)),
    (files.check_limits, ()),
    (files.check_folder, ()),
    (files.check_file_system, ()),
    (files.check_locks, ()),
    (files.check_hdf5, ("h5py", "numpy")),
)


def main(folder: Path, device: str = "cpu", as_json: bool = False) -> int:
    """Run all checks and print them. Returns the exit code: 0, or 1 if any fails. Collective."""
    gpu.require_known(device)
    comm = _communicator()
    if not isinstance(comm, Alone):
        parallel.install_abort_hook()
        parallel.mute_other_ranks()
    if comm.size == 1 and mpi.launched_rank() > 0:
        sys.stdout = open(os.devnull, "w")  # each process is alone: one voice is enough
    show = (lambda check: None) if as_json else (lambda check: print(check.line(), flush=True))
    checks = examine(Site(comm, folder, device), show)
    failed = sum(check.state == FAIL for check in checks)
    if as_json:
        print(json.dumps({"ok": failed == 0, "checks": [asdict(check) for check in checks]}))
    else:
        warned = sum(check.state == WARNING for check in checks)
        print(f"{len(checks)} checks: {failed} failed, {warned} warnings")
    return 1 if failed else 0


def examine(site: Site, show: Callable[[Check], object] = lambda check: None) -> list[Check]:
    """All checks, the same on all ranks. Collective. ``show`` gets each when it is done."""
    done: list[Check] = []
    try:
        for check, modules in CHECKS:
            for merged in _run(check, modules, site):
                show(merged)
                done.append(merged)
    finally:
        if site.scratch is not None and site.first:
            shutil.rmtree(site.scratch, ignore_errors=True)
    return done


def _run(check: Callable[[Site], list[Check]], modules: tuple[str, ...], site: Site) -> list[Check]:
    """One check on all ranks, its results merged. Ends the process if it takes too long."""
    # Written in C: it works while a library holds the interpreter. It ends the process, and
    # with it the launcher's job.
    faulthandler.dump_traceback_later(settings.PATIENCE, exit=True, file=2)
    name = check.__name__.removeprefix("check_")
    mine = [missing for module in modules if (missing := _import(name, module))]
    everyone = site.comm.allgather(mine)
    # A rank without a module must not leave the others waiting inside the check.
    if not any(everyone):
        try:
            mine = check(site)
        except Exception as error:  # a check that breaks is a finding
            mine = [Check(name, FAIL, f"{type(error).__name__}: {error}", "Report it.")]
        everyone = site.comm.allgather(mine)
    faulthandler.cancel_dump_traceback_later()
    names = dict.fromkeys(found.name for row in everyone for found in row)
    return [
        _merge([(rank, f) for rank, row in enumerate(everyone) for f in row if f.name == name])
        for name in names
    ]


def _import(check: str, module: str) -> Check | None:
    try:
        import_module(module)
    except Exception as error:
        text = f"{module} does not import: {' '.join(str(error).split())[:300]}"
        return Check(check, FAIL, text, "Run make setup.")
    return None


def _merge(found: list[tuple[int, Check]]) -> Check:
    """The worst state, and what each group of ranks that found the same has to say."""
    worst = max((check for _, check in found), key=lambda check: _ORDER[check.state])
    groups: dict[str, list[int]] = {}
    for rank, check in found:
        groups.setdefault(check.found, []).append(rank)
    text = worst.found
    if len(groups) > 1:
        parts = [f"{numbers(ranks)}: {what}" for what, ranks in groups.items()]
        text = "; ".join(parts[:4]) + ("; ..." if len(parts) > 4 else "")
    return Check(worst.name, worst.state, text, worst.remedy)


def _communicator() -> Any:
    try:
        mpi.require()
    except Exception:  # the check of MPI says what is wrong
        return ALONE
    return MPI.COMM_WORLD
