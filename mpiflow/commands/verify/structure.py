"""The structure of a Trajectory file: attributes, dimensions, types, times, parts of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.files import manifest
from mpiflow.files.schema import SCHEMA_VERSION, STANDARD, plain
from mpiflow.files.segments import Segment

_ATTRIBUTES = {
    "system": str,
    "config_json": str,
    "seed": int,
    "rng": str,
    "decomposition_invariant": int,
    "schema_version": int,
    "complete": int,
    "ranks": int,
    "mpiflow_version": str,
    "git_hash": str,
    "Conventions": str,
}


class Corrupt(Exception):
    """What is wrong with a file."""


def check_links(file: h5py.File) -> None:
    """Nothing may lead out of the file, whoever made it."""
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise Corrupt(f"{name} is a link to somewhere else")
        item = file[name]
        if not isinstance(item, h5py.Dataset):
            raise Corrupt(f"{name} is no dataset")
        if item.external or item.is_virtual:
            raise Corrupt(f"{name} has its data in another file")


def check_attributes(file: h5py.File) -> dict[str, Any]:
    about: dict[str, Any] = {}
    for name in file.attrs:  # all are read
        about[name] = plain(file.attrs[name])
    if "schema_version" not in about:
        raise InputError("file", file.filename, "a trajectory", "no trajectory of mpiflow")
    if missing := sorted(set(_ATTRIBUTES) - set(about)):
        raise Corrupt(f"attributes {', '.join(missing)} are missing")
    for name, kind in _ATTRIBUTES.items():
        if not isinstance(about[name], kind):
            raise Corrupt(f"attribute {name} is {about[name]!r}")
    if about["schema_version"] > SCHEMA_VERSION:
        raise InputError("file", file.filename, "an older schema", "too new: update mpiflow")
    for name in ("complete", "decomposition_invariant"):
        if about[name] not in (0, 1):
            raise Corrupt(f"attribute {name} is {about[name]}")
    if not isinstance(json.loads(about["config_json"]), dict):
        raise Corrupt("config_json is no object")
    return about


def check_structure(file: h5py.File, frames: int, complete: bool) -> None:
    """Dimensions, lengths and types."""
    if "time" not in file or file["time"].ndim != 1 or file["time"].dtype != np.float64:
        raise Corrupt("there is no time(time) float64")
    times = file["time"][:frames]
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise Corrupt("times are not finite and increasing")
    if complete and len(file["time"]) != frames:
        raise Corrupt(f"{len(file['time'])} times, but {frames} frames")
    for name, dataset in file.items():
        for _ in dataset.attrs.values():
            pass  # all are read
        if dataset.is_scale:
            if dataset.ndim != 1:
                raise Corrupt(f"dimension {name} is {dataset.ndim}-dimensional")
            continue
        for axis in range(dataset.ndim):
            _check_axis(dataset, axis, complete)
        standard = STANDARD.get(name)
        if standard is not None and dataset.dtype != np.dtype(standard.dtype):
            raise Corrupt(f"{name} is {dataset.dtype}, not {standard.dtype}")


def _check_axis(dataset: h5py.Dataset, axis: int, complete: bool) -> None:
    name, scales = dataset.name.strip("/"), dataset.dims[axis]
    if len(scales) != 1 or not scales[0].is_scale:
        raise Corrupt(f"axis {axis} of {name} has {len(scales)} dimensions")
    scale = scales[0]
    along_time = scale.name == "/time"
    if along_time and axis:
        raise Corrupt(f"time is not the first dimension of {name}")
    # A writer that is inside a flush, or died there, has variables of different lengths.
    if dataset.shape[axis] != scale.shape[0] and (complete or not along_time):
        sizes = f"{dataset.shape[axis]} values along {scale.name[1:]}, not {scale.shape[0]}"
        raise Corrupt(f"{name} has {sizes}")


def check_entry(about: dict[str, Any], times: np.ndarray, entry: manifest.Entry) -> None:
    span = (float(times[0]), float(times[-1])) if len(times) else None
    found = {"frames": len(times), "time": span, **{k: about[k] for k in ("system", "seed")}}
    found["mpiflow_version"] = about["mpiflow_version"]
    for name, value in found.items():
        if value != getattr(entry, name):
            raise Corrupt(f"{name} is {value}, but {getattr(entry, name)} in {manifest.NAME}")


def check_parts(parts: Sequence[Segment], times: np.ndarray) -> None:
    """Each part of the run begins between the last frame before it and its first one."""
    for part in parts[1:]:
        before, behind = times[: part.frames.start], times[part.frames.start :]
        if (before > part.time).any() or (behind < part.time).any():
            raise Corrupt(f"segments_json: time {part.time:g} is not before {part.frames}")
