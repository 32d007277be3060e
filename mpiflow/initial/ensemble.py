"""Initial states, from files, of systems that are whole on a rank: chains, lines, mean fields."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from mpiflow.core import arrays
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.files import footer
from mpiflow.files.moments import Moment, times_of

#: Numbers of a file that are in memory at once, about.
VALUES = 2**22


class StateForm(NamedTuple):
    """What a state is made of.

    Attributes
    ----------
    system : whose state it is
    states : variables of the file that make it up
    shape : sides of the system, in sites
    part : sides of each of the ``states``
    axis : name of their last axis
    """

    system: str
    states: tuple[str, ...]
    shape: Shape
    part: Shape
    axis: str


def states_of_file(
    path: Path, moment: Moment, form: StateForm, wanted: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """States in an initial file, a few members at a time.

    Parameters
    ----------
    path : a ``.npy``, or the file of a run
    moment : of a run
    form : what a state is made of
    wanted : (B,) numbers of members. A ``.npy`` holds one state for all of them; of an ensemble
        in the file of a run each starts from its own, unless the moment names one

    Yields
    ------
    which of the ``wanted``, and (n, ``form.states``, *``form.part``) float64

    Raises
    ------
    InputError : the file cannot be read, or holds no states of such a system
    """
    parts = (len(form.states), *form.part)
    rows = max(1, VALUES // math.prod(parts))
    groups = [slice(i, min(i + rows, len(wanted))) for i in range(0, len(wanted), rows)]
    try:
        if arrays.is_array_file(path):
            state = _of_array(form, path).reshape(1, *parts)
            yield slice(0, len(wanted)), np.asarray(state, float)
            return
        footer.check(path)
        with h5py.File(path, "r", locking=False) as file:
            data = _of_run(form, path, file)
            frame = moment.frame_of(path, times_of(file, len(data[0])))
            several = data[0].ndim > 1 + len(form.part)
            own = moment.members_of(path, data[0].shape[1] if several else 0, wanted)
            for group in groups if several and moment.member is None else [slice(0, len(wanted))]:
                # Each its own: neighbours. One for all is read once.
                places = slice(own[group][0], own[group][-1] + 1) if own[group].size else slice(0)
                at = (frame, places) if several else frame
                read = [each[at] for each in data]
                states = np.stack(read, axis=int(several)).reshape(-1, *parts)
                yield group, np.asarray(states, float)
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        allowed = "a readable .npy or mpiflow HDF5 file"
        raise InputError("initial", str(path), allowed, f"Reading said: {error}.") from error


def _of_array(form: StateForm, path: Path) -> np.ndarray:
    """A state in a ``.npy``, mapped."""
    shape = (len(form.states),) * (len(form.states) > 1) + form.part
    wanted = f"numbers of shape {shape}" if shape else "a magnetization, one number"
    values = arrays.mapped("initial", path, f"a readable .npy of {wanted}")
    if values.shape != shape and not (shape == () and values.shape == (1,)):
        allowed = f"{wanted}; the file has shape {values.shape}"
        raise InputError("initial", str(path), allowed, "Use a matching --size, or reshape it.")
    return values


def _of_run(form: StateForm, path: Path, file: h5py.File) -> list[h5py.Dataset]:
    """What makes up the states of a run, over time, perhaps members, and a part of a state."""
    system = file.attrs.get("system", "")
    found = [file.get(name) for name in form.states]
    if system not in ("", form.system) or not all(isinstance(d, h5py.Dataset) for d in found):
        allowed = f"a run of {form.system} that holds {' and '.join(form.states)}"
        remedy = "Save it with --profile." if system == form.system else "Use such a run."
        shown = f"{path}, of {system or 'another program'}"
        raise InputError("initial", shown, allowed, remedy)
    part, shape = len(form.part), form.shape
    for data in found:
        if data.ndim not in (1 + part, 2 + part) or data.shape != found[0].shape:
            allowed = f"{' and '.join(form.states)} over time, perhaps members, {form.axis}"
            raise InputError("initial", str(path), allowed, "Check the file.")
    about = json.loads(file.attrs.get("config_json", "{}"))
    theirs = found[0].shape[found[0].ndim - part :] if part else about.get("size", shape)
    if math.prod(theirs) != math.prod(shape):
        allowed = f"a state of shape {shape}, the file has {tuple(theirs)}"
        raise InputError("initial", str(path), allowed, "Use a matching --size.")
    return found
