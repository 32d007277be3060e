"""What exports and plots take of a run: frames, variables, a member, and what is said of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import h5py

from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.files.schema import Variable
from mpiflow.files.trajectory import Trajectory

# What HDF5 and netCDF-4 keep in attributes for themselves.
_INTERNAL = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_NCProperties", "_FillValue"}


def attributes_of(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Attributes of each variable and coordinate of a Trajectory file, of the file under ""."""

    def own(attributes: Any) -> dict[str, Any]:
        names = [n for n in attributes if n not in _INTERNAL and not n.startswith("_Netcdf4")]
        values = {name: attributes[name] for name in names}
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}

    with h5py.File(path, "r", locking=False) as file:
        return {"": own(file.attrs)} | {name: own(item.attrs) for name, item in file.items()}


def steps_of(run: Trajectory, frames: slice) -> range:
    """Numbers of the frames to write, at least one."""
    steps = range(len(run))[frames]
    if not steps:
        if not len(run):
            raise InputError("file", str(run.path), "a file with frames", "It has none yet.")
        allowed = f"a part of the frames 0 to {len(run) - 1}"
        text = ":".join("" if n is None else str(n) for n in (frames.start, frames.stop))
        raise InputError("frames", text, allowed, "Leave it out for all.")
    return steps


def check_member(run: Trajectory, member: int) -> None:
    """Refuse a member that the run does not have."""
    members = run.sizes.get("member", 1)
    if not 0 <= member < members:
        raise InputError("member", member, f"0 to {members - 1}", f"{run.path} has {members}.")


def chosen(run: Trajectory, names: Iterable[str] | None, fit: Sequence[str]) -> list[Variable]:
    """Variables of the names, or those that fit; refuses names that do not fit."""
    wanted = list(dict.fromkeys(fit if names is None else names))
    for name in wanted:
        if name not in fit:
            if name in run.variables:
                remedy = f"{name} is over ({', '.join(run.variables[name].dims)})."
            else:
                remedy = did_you_mean(name, fit) or "See mpiflow info."
            raise InputError("variable", name, f"of {', '.join(fit) or 'none'}", remedy)
    return [run.variables[name] for name in wanted]
