"""Sizes of a run before it runs: how it is cut, memory, bytes on disk, and time if measured.

It works on numbers alone, in milliseconds: a lattice that fits no machine is planned like any
other. tests/run/test_plan.py holds the sizes against real runs. Times come from a few real steps
(:mod:`mpiflow.run.plan_time`).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from mpiflow.core import gpu
from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.core.machine import machine_memory
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.core.toml_files import read_toml
from mpiflow.files.trajectory import Trajectory
from mpiflow.observables.choice import chosen
from mpiflow.simulation import catalogue
from mpiflow.simulation.options import RunConfig
from mpiflow.simulation.sizes import (
    CHECKPOINTS,
    LARGE,
    Plan,
    Stored,
    _ranks,
    _size,
)


def plan(config: RunConfig, ranks: int = 1, *, here: int | None = None) -> Plan:
    """Plan a run. Nothing of the size of the lattice is allocated.

    Parameters
    ----------
    config : of the run
    ranks : how many
    here : how many of them on this machine, for the warning about memory; all unless given

    Raises
    ------
    InputError : the run would be refused for its size, its ranks or its times
    """
    if ranks < 1:
        raise InputError("ranks", ranks, "1 or more", "Leave it out for those that run this.")
    made: Plan = catalogue.plan(config, ranks)
    if config.observables:
        made = _with_observables(made)
    return replace(made, warnings=tuple(_warnings(made, ranks if here is None else here)))


def _with_observables(made: Plan) -> Plan:
    """With what observables put into the file, and what those of whole lattices take on rank 0."""
    stored, gathered = list(made.stored), 0
    config, coarse = made.config, made.config.saved().get("coarse")
    members = config.members if config.members > 1 else 1
    for name, one in chosen(config.observables).items():
        side = one.coarse or (coarse if one.of == "coarse" else 1) or 1
        points = tuple(n // side for n in made.shape)
        try:
            dims = one.sizes(points, side)
        except InputError:  # not of such a system: the run says so, on all ranks together
            continue
        sizes = (n if isinstance(n, int) else len(n) for n in dims.values())
        frame = 8 * math.prod(sizes) * (1 if one.pooled else members)
        stored.append(Stored(name, frame, made.frames * frame, made.frames * frame))
        if one.of == "coarse":  # the field, and its Fourier transform with a copy
            gathered = max(gathered, 48 * math.prod(points))
    memory = {**made.memory, "observables": gathered} if gathered else made.memory
    first_only = made.first_only + (gathered if made.ranks > 1 and members == 1 else 0)
    return replace(made, stored=tuple(stored), memory=memory, first_only=first_only)


def one_line(config: RunConfig, ranks: int) -> str:
    """Frames, disk and memory of a run, in milliseconds."""
    return plan(config, ranks).one_line()


def read(
    path: str | os.PathLike[str],
    system: str | None = None,
    changes: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The configuration of a TOML file, or that of a Trajectory.

    Parameters
    ----------
    system : its system, where the file does not say it
    changes : options that replace those of the file
    defaults : options where the file has none; unless given, a name for its output
    """
    values: dict[str, Any] = {"out": "run.h5"} if defaults is None else dict(defaults)
    path = Path(path)
    if path.is_file() and h5py.is_hdf5(path):
        with Trajectory(path) as run:
            stored = run.config
            # A Python script may have recorded less, or facts that are no options.
            system = system or run.attributes["system"]
            known = set()
            if system in catalogue.systems():
                known = {*catalogue.options(system).options(), "inputs"}
            values |= {k: v for k, v in stored.items() if k in known and v is not None}
    else:
        values |= read_toml(path)
    values |= changes or {}
    system = system or values.get("system")
    return catalogue.options(str(system))(**values | {"system": system})


def of_words(what: str, system: str | None, texts: Iterable[str]) -> RunConfig:
    """The configuration of a command line: a file and options that replace those of it.

    In place of a file there may be the name of a system, or nothing, so that ``what`` is an option.
    """
    if os.path.exists(what):
        return read(what, system, named_values(texts))
    if "=" in what:
        texts = [what, *texts]
    elif what in catalogue.systems() and system in (None, what):
        system = what
    else:
        hint = did_you_mean(what, catalogue.systems()) or f"See that {what} exists."
        allowed = "a TOML file, a Trajectory, or the name of a system"
        raise InputError("config", what, allowed, hint)
    values: dict[str, Any] = {"out": "run.h5", **named_values(texts)}
    system = system or values.get("system")
    return catalogue.options(str(system))(**values | {"system": system})


def named_values(texts: Iterable[str]) -> dict[str, str]:
    """Options as a command line of ``mpiflow plan`` has them, "name=value" each."""
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError("option", text, "name=value", f"Try {text}=..., without dashes.")
        values[name.lstrip("-").replace("-", "_")] = value
    return values


def require_device(config: RunConfig, comm: MPI.Intracomm) -> None:
    """Raise where a run finds no GPU, or one with less memory than it takes. Collective.

    Raises
    ------
    InputError : on all ranks
    """
    if config.device != "cuda":
        return
    here = gpu.of_simulation(config.device, comm)
    with agreed(comm):
        made: Plan = catalogue.plan(config, comm.size)
        need, room = here.sharing * made.device_bytes, gpu.memory(here.gpu)
        if room is not None and need > room:
            many = f"{_ranks(here.sharing)} need {_size(need)} of a GPU with {_size(room)}"
            raise InputError(
                "device", f"cuda: {many}", "a run that fits into the memory of its GPUs",
                "Use more GPUs, or a smaller lattice; mpiflow plan says what takes how much.",
            )  # fmt: skip


# -- what stands in the way -------------------------------------------------------------------


def _warnings(made: Plan, here: int) -> list[str]:
    out = []
    there = machine_memory()
    # The interpreter is measured only where it may matter: a run asks for this, too.
    close = here * (made.rank_bytes + LARGE) > there
    if close and (need := made.machine_bytes(here)) > there:
        out.append(
            f"{_ranks(here)} need {_size(need)} of memory and this machine has {_size(there)}: "
            "use more machines, or a smaller lattice"
        )
    room = gpu.memory() if made.on_device else None
    if room is not None and made.device_bytes > room:
        out.append(
            f"a rank needs {_size(made.device_bytes)} of a GPU, and that of this machine has "
            f"{_size(room)}: use more GPUs, or a smaller lattice"
        )
    folder = Path(made.config.out).resolve().parent
    if not folder.is_dir():
        out.append(f"{folder} does not exist: create it")
        return out
    # At its end a run is written once more, before the old file goes.
    room, fixed = shutil.disk_usage(folder).free, CHECKPOINTS * made.checkpoint
    likely, most = 2 * made.disk_bytes + fixed, 2 * made.raw_bytes + fixed
    if min(likely, most) > room:
        out.append(
            f"{folder} has {_size(room)} free, and files and checkpoints need about "
            f"{_size(min(likely, most))}: make room, or save less"
        )
    elif most > room:
        out.append(
            f"{folder} has {_size(room)} free; uncompressed it would be {_size(most)} with "
            "checkpoints and the copy at the end"
        )
    return out


# -- words --------------------------------------------------------------------------------------
