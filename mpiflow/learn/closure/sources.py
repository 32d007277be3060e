"""Data of closures from anywhere: runs, tables of times and observables, and pairs of states.

==============  ==============================================================================
runs            files, folders and patterns: scalars of each frame, members as trajectories
``.npy``        (frames, 1 + d), or (members, frames, 1 + d): the time, then observables
``.csv``        the same as lines of numbers with commas, below a line of names or without
``.npz``        an array ``time`` (frames,), and arrays of observables by name: (frames,) or
                (members, frames), with a last axis if there are several of a name
``.npz``        pairs: ``z`` (N, d), ``dz`` (N, d) or (N, P, d), ``dt`` of a shape that fits; names
                of the observables in ``names``, lambda in ``patches``. For closures also numbers
                that say what a patch is like: ``statistics`` (N, K, S) of all K patches of a
                state, and of the one that evolved, ``before`` and ``after``, (N, S) or (N, P, S)
==============  ==============================================================================

In Python arrays and mappings of arrays stand for the files.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.files.runs import find_runs
from mpiflow.files.trajectory import Trajectory
from mpiflow.learn.closure.series import COARSE, Pairs, Series, checked, chosen, fault, of_run

#: What tables are called; all else is a run.
TABLES = (".npy", ".npz", ".csv")
#: Names of a time in a table.
_TIMES = ("time", "t")


def read(data: Any, observables: Sequence[str] = (), *, fields: bool = False) -> Any:
    """All :class:`Series` of some data as a list, or the :class:`Pairs` that they are.

    Parameters
    ----------
    data : paths, an array, a mapping, or several of them
    observables : names; by default the magnetization of runs, and all that a table has
    fields : also read coarse fields

    Raises
    ------
    InputError : there is nothing to read, or it is no such data: the place and what is wrong
    """
    found: list[Any] = []
    for where, one in _sources(data):
        if isinstance(one, Path):
            found += of_run(one, observables, fields)
        elif isinstance(one, Mapping):
            found += _of_mapping(one, where, observables)
        else:
            found += _of_table(np.asarray(one), where, (), observables)
    pairs = [one for one in found if isinstance(one, Pairs)]
    if pairs and len(pairs) < len(found):
        raise InputError("data", "pairs and series", "one of both", "Learn from each by itself.")
    names = {one.names for one in found}
    if len(names) > 1:
        allowed = f"the observables of the first, {','.join(found[0].names)}"
        other = next(one for one in found if one.names != found[0].names)
        raise InputError("data", ",".join(other.names), allowed, "Name them: --observables A,B.")
    if fields and any((one.patches if pairs else one.fields) is None for one in found):
        allowed = f"0 without runs that have {COARSE}, or statistics of patches"
        raise InputError("latents", "some", allowed, "Save runs with --coarse, or leave it out.")
    return _joined(pairs) if pairs else found


def _sources(data: Any) -> Iterator[tuple[str, Any]]:
    """What the data consist of, with names for messages: arrays, mappings, and paths of runs."""
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):  # a table of pandas
        data = {"table": data.to_numpy(), "columns": [str(name) for name in data.columns]}
    single = isinstance(data, str | os.PathLike | Trajectory | Mapping)
    if single or hasattr(data, "__array__"):
        data = [data]
    runs: list[Any] = []
    for number, one in enumerate(data):
        if isinstance(one, Trajectory):
            runs.append(one.path)
        elif not isinstance(one, str | os.PathLike):
            kind = "mapping" if isinstance(one, Mapping) else "array"
            yield f"{kind} {number}", one
        elif Path(one).suffix.lower() in TABLES:
            yield str(one), _loaded(Path(one))
        else:
            runs.append(one)
    if runs:
        yield from ((str(path), path) for path in find_runs(runs))


def _loaded(path: Path) -> Any:
    """Arrays of a file: one, or a mapping of several."""
    try:
        if path.suffix.lower() == ".csv":
            return _csv(path)
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except FileNotFoundError:
        raise InputError("data", str(path), "an existing file", "Check the path.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        said = " ".join(str(error).split())
        allowed = f"a whole {path.suffix} file of numbers"
        raise InputError("data", str(path), allowed, f"Reading said: {said}.") from error


def _csv(path: Path) -> dict[str, np.ndarray]:
    with open(path, encoding="utf-8-sig") as file:
        head = file.readline().strip().split(",")
    named = not all(_is_number(word) for word in head)
    if head == [""]:
        raise ValueError("it is empty")
    table = np.loadtxt(path, delimiter=",", skiprows=int(named), ndmin=2, encoding="utf-8-sig")
    names = [word.strip() for word in head] if named else ()
    return {"table": table, "columns": np.array(names, str)}


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


# -- tables --------------------------------------------------------------------------------


def _of_table(
    table: np.ndarray, where: str, columns: Sequence[str], observables: Sequence[str]
) -> list[Series]:
    """Of (frames, 1 + d) or (members, frames, 1 + d), the first column the time."""
    if table.dtype.kind not in "fiu" or table.ndim not in (2, 3) or table.shape[-1] < 2:
        found = f"{table.dtype} of shape {table.shape}"
        allowed = "numbers of shape (frames, 1 + d) or (members, frames, 1 + d), d of 1 or more"
        raise fault(where, found, allowed, "The first column is the time.")
    names = list(columns) or [_TIMES[0], *(f"z{i + 1}" for i in range(table.shape[-1] - 1))]
    time = next((names.index(name) for name in _TIMES if name in names), 0)
    known = [name for name in names if name != names[time]]
    some = chosen(observables, known, where)
    places = [names.index(name) for name in some]
    parts = table[None] if table.ndim == 2 else table
    label = [where] if len(parts) == 1 else [f"{where}, member {i}" for i in range(len(parts))]
    return [
        checked(text, some, part[:, time].astype(float), part[:, places].astype(float))
        for text, part in zip(label, parts, strict=True)
    ]


def _of_mapping(
    arrays: Mapping[str, Any], where: str, observables: Sequence[str]
) -> list[Series] | list[Pairs]:
    if "columns" in arrays and "table" in arrays:
        names = [str(name) for name in arrays["columns"]]
        table = np.asarray(arrays["table"])
        if names and len(names) != table.shape[-1]:
            found = f"{len(names)} names of {table.shape[-1]} columns"
            raise fault(where, found, "a name for each column", "Correct the first line.")
        return _of_table(table, where, names, observables)
    if "dz" in arrays:
        return [_of_pairs(arrays, where, observables)]
    time = next((name for name in _TIMES if name in arrays), None)
    if time is None or len(arrays) < 2:
        allowed = "arrays time and observables, or z, dz and dt"
        raise fault(where, f"arrays {', '.join(arrays) or 'none'}", allowed, "Add what lacks.")
    times = np.asarray(arrays[time])
    columns: dict[str, np.ndarray] = {}
    for name, given in arrays.items():
        values = np.asarray(given)
        if name in (time, "names"):
            continue
        fits = values.dtype.kind in "fiu" and times.ndim == 1
        if fits and values.shape == times.shape:
            columns[name] = values[None]
        elif fits and values.ndim == 2 and values.shape[1] == len(times) != values.shape[0]:
            columns[name] = values
        elif fits and values.ndim in (2, 3) and values.shape[-2] == len(times):
            several = values if values.ndim == 3 else values[None]
            one = several.shape[2] == 1
            for i in range(several.shape[2]):
                columns[name if one else f"{name}{i + 1}"] = several[:, :, i]
        else:
            found = f"{name} is {values.dtype} of shape {values.shape}"
            allowed = f"numbers of shape (frames,) or (members, frames), as time {times.shape}"
            raise fault(where, found, allowed, "Leave it out, or reshape it.")
    some = chosen(observables, list(columns), where)
    if len(members := {len(columns[name]) for name in some}) > 1:
        raise fault(where, f"{sorted(members)} members", "as many of each", "Reshape them.")
    whole = np.stack([columns[name] for name in some], axis=-1).astype(float)
    label = [where] if len(whole) == 1 else [f"{where}, member {i}" for i in range(len(whole))]
    return [
        checked(text, some, times.astype(float), values)
        for text, values in zip(label, whole, strict=True)
    ]


def _of_pairs(arrays: Mapping[str, Any], where: str, observables: Sequence[str]) -> Pairs:
    if lacking := [name for name in ("z", "dt") if name not in arrays]:
        raise fault(where, f"no {lacking[0]}", "arrays z, dz and dt", "Add it.")
    z, dz, dt = (np.asarray(arrays[name]) for name in ("z", "dz", "dt"))
    if any(a.dtype.kind not in "fiu" for a in (z, dz, dt)):
        raise fault(where, f"{z.dtype}, {dz.dtype}, {dt.dtype}", "numbers", "Convert them.")
    z = z[:, None] if z.ndim == 1 else z
    dz = dz[:, None] if dz.ndim == 1 else dz
    dz = dz[:, None] if dz.ndim == 2 else dz
    shape = dz.shape[:2]
    times = dt[:, None] if dt.ndim == 1 and len(dt) == shape[0] else dt
    good = z.ndim == 2 and dz.ndim == 3 and dz.shape == (len(z), shape[1], z.shape[1]) and len(z)
    try:
        times = np.broadcast_to(times, shape)
    except ValueError:
        good = False
    if not good:
        found = f"z {z.shape}, dz {np.shape(arrays['dz'])}, dt {dt.shape}"
        allowed = "z (N, d), dz (N, d) or (N, P, d), dt one number, (N,) or (N, P)"
        raise fault(where, found, allowed, "Reshape them.")
    for name, values in (("z", z), ("dz", dz), ("dt", times)):
        if len(bad := np.argwhere(~np.isfinite(values))):
            found = f"{name} is {values[tuple(bad[0])]} in pair {bad[0][0]}"
            raise fault(where, found, "finite numbers", "Leave out such pairs.")
    if not (times > 0).all():
        raise fault(where, f"dt of {times.min():g}", "above 0", "Leave out such pairs.")
    names = [str(name) for name in np.ravel(arrays.get("names", ()))]
    names = names or [f"z{i + 1}" for i in range(z.shape[1])]
    if len(names) != z.shape[1]:
        found = f"{len(names)} names of {z.shape[1]} columns"
        raise fault(where, found, "a name for each column", "Correct them.")
    some = chosen(observables, names, where)
    at = [names.index(name) for name in some]
    patches = _patches(arrays, where, shape)
    factor = float(np.asarray(arrays.get("patches", 1 if patches is None else patches[0].shape[1])))
    return Pairs(
        tuple(some), z[:, at].astype(float), dz[:, :, at].astype(float), times.astype(float),
        np.empty((len(z), 0)), (), factor, patches,
    )  # fmt: skip


def _patches(
    arrays: Mapping[str, Any], where: str, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Statistics of patches, for ``shape`` (N, P) pairs."""
    names = ("statistics", "before", "after")
    there = [name for name in names if name in arrays]
    if not there:
        return None
    if len(there) < 3:
        raise fault(where, f"{', '.join(there)} alone", f"all of {', '.join(names)}", "Add them.")
    whole, before, after = (np.asarray(arrays[name]) for name in names)
    before, after = (a[:, None] if a.ndim == 2 else a for a in (before, after))
    sides = (*shape, whole.shape[-1])
    if whole.ndim != 3 or len(whole) != shape[0] or not before.shape == after.shape == sides:
        found = f"statistics {whole.shape}, before {before.shape}, after {after.shape}"
        allowed = "statistics (N, K, S), before and after (N, S) or (N, P, S)"
        raise fault(where, found, allowed, "Reshape them.")
    for name, values in zip(names, (whole, before, after), strict=True):
        if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise fault(where, f"{name} with nan or inf", "finite numbers", "Drop such pairs.")
    return whole.astype(np.float32), before.astype(np.float32), after.astype(np.float32)


def _joined(pairs: Sequence[Pairs]) -> Pairs:
    if len({(one.increments.shape[1], one.factor) for one in pairs}) > 1:
        found = ", ".join(f"{p.increments.shape[1]} with {p.factor:g} patches" for p in pairs)
        allowed = "as many pairs of each state and patches everywhere"
        raise InputError("data", found, allowed, "Learn from each by itself.")
    columns = ((p.z, p.increments, p.dt, p.context) for p in pairs)
    z, increments, dt, context = (np.concatenate(c) for c in zip(*columns, strict=True))
    given = [p.patches for p in pairs if p.patches is not None]
    patches = None
    if len(given) == len(pairs):
        if len({one[0].shape[1:] for one in given}) > 1:
            raise InputError("data", "several shapes of statistics", "one (K, S)", "Choose.")
        whole, before, after = (np.concatenate(c) for c in zip(*given, strict=True))
        patches = whole, before, after
    return Pairs(pairs[0].names, z, increments, dt, context, (), pairs[0].factor, patches)
