"""``mpiflow verify``: whether files are what they should be, down to the physics in them.

=============  ===========================================================================
manifest       size and sha256 are those of ``manifest.json``, where the file has an entry
structure      dimensions, types, attributes; times finite and increasing; equal lengths
checksums      every chunk of every dataset is read
values         finite, in range, and such as a state can have
physics        sums over blocks and over spins are the total, exactly; energies follow from
               sums; atoms are conserved and order parameters follow from bonds; means of
               predicted blocks are the magnetization, and those of spins that flip are such;
               as many exact flips as the magnetization needs; means of profiles;
               fractions of states are of whole sites, and give what the rule makes of them
=============  ===========================================================================

Large fields are read in pieces of whole chunks: memory does not grow with the file.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import time as clock
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiflow.commands.verify_rules import RuleValues
from mpiflow.core.errors import InputError
from mpiflow.files import footer, manifest, possible
from mpiflow.files.runs import files_of
from mpiflow.files.schema import SCHEMA_VERSION, STANDARD, plain
from mpiflow.files.segments import Segment
from mpiflow.files.trajectory import CHANGED, Trajectory
from mpiflow.systems import alloy
from mpiflow.systems.curie_weiss import CurieWeiss
from mpiflow.systems.ising import Ising

#: Bytes of a field that are in memory at once, but at least a row of chunks.
PIECE = 2**23

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
#: Systems made of spins, whose values and sums obey laws. A learned model may leave its range,
#: but not that of blocks (:data:`_FIELDS`).
_SPINS = ("ising", "kac", "curie-weiss")
_FIELDS = ("onsagerflow",)
#: Systems on a line: what lies along it has the mean that the file holds too.
_LINES = ("linear-chain", "predator-prey")
_RANGES = {
    "magnetization": (-1.0, 1.0),
    "domain_wall_density": (0.0, 1.0),
    "coarse_magnetization": (-1.0, 1.0),
    "initial_magnetization": (-1.0, 1.0),
    "spin": (-1, 1),
}
# Of the alloy, recomputed from bonds: NaN for an element without atoms.
_FROM_BONDS = ("sro", "warren_cowley", "long_range_order")
_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_CHECKPOINT = re.compile(r".+\.\d{6,}")
# Exact sums divided once agree to the last bit; the energy is a sum of two products.
_ROUNDING = 1e-12
# The mean of float32 of -1 to 1: each is off by half of its last bit, at most this.
_FLOAT32 = 2.0**-25


class _Corrupt(Exception):
    """What is wrong with a file."""


@dataclass(frozen=True)
class Finding:
    """What was found out about a file.

    ``str(finding)`` is the line that ``mpiflow verify`` prints.
    """

    path: Path
    good: bool
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def verify(paths: Sequence[str | os.PathLike[str]], quick: bool = False) -> Iterator[Finding]:
    """Check files, and the runs and checkpoints of folders; a finding for each file.

    Parameters
    ----------
    quick : only the manifest (with sha256) and the structure, no values
    """
    for path in map(Path, paths):
        if path.is_dir():
            yield from _folder(path, quick)
        elif not path.exists():
            yield Finding(path, False, "not found")
        elif path.parent.name == "checkpoints" and _CHECKPOINT.fullmatch(path.name):
            yield _checkpoint(path)
        else:
            entries, broken = _entries(path.parent)
            if broken is not None:
                yield broken
            yield verify_file(path, quick, entries.get(path.name))


def _entries(folder: Path) -> tuple[dict[str, manifest.Entry], Finding | None]:
    try:
        return manifest.read(folder), None
    except InputError as error:
        return {}, Finding(folder / manifest.NAME, False, f"corrupt: {error.remedy}")


def _folder(folder: Path, quick: bool) -> Iterator[Finding]:
    entries, broken = _entries(folder)
    if broken is not None:
        yield broken
    files = sorted({*_runs_of(folder), *(folder / name for name in entries)})
    points = sorted((folder / "checkpoints").glob("*"))
    points = [path for path in points if _CHECKPOINT.fullmatch(path.name)]
    if not files and not points and broken is None:
        yield Finding(folder, False, "not found: there are no runs in this folder")
    for path in files:
        if path.exists():
            finding = verify_file(path, quick, entries.get(path.name))
            extra = finding.good and entries and path.name not in entries
            note = f", not in {manifest.NAME}" if extra else ""
            yield Finding(path, finding.good, finding.text + note)
        else:
            yield Finding(path, False, f"not found, but {manifest.NAME} has an entry for it")
    for path in points:
        yield _checkpoint(path)


def _runs_of(folder: Path) -> list[Path]:
    try:
        return files_of(folder, strict=False)
    except InputError:  # the manifest: reported by itself
        return files_of(folder, listed=False, strict=False)


def _checkpoint(path: Path) -> Finding:
    from mpiflow.files import checkpoint

    try:
        about = checkpoint.verify(path)
        return Finding(path, True, f"good, {about.removeprefix(f'{path}: ')}")
    except InputError as error:
        return Finding(path, False, f"corrupt: {error.remedy}")


def verify_file(
    path: str | os.PathLike[str], quick: bool = False, entry: manifest.Entry | None = None
) -> Finding:
    """Check a Trajectory file, also against its entry in a manifest."""
    path = Path(path)
    if not path.exists():
        return Finding(path, False, "not found")
    for patience in (0.2, 0.5, 0.0):
        try:
            return Finding(path, True, _check(path, quick, entry))
        except _Corrupt as error:
            finding = Finding(path, False, f"corrupt: {error}")
        except PermissionError as error:
            return Finding(path, False, f"cannot be read: {error.strerror}")
        except InputError as error:
            return Finding(path, False, error.remedy)
        except _UNREADABLE as error:
            finding = Finding(path, False, f"corrupt: {_one_line(error)}")
        # A reader that meets the middle of a writer's flush may see nonsense.
        if not path.with_name(f".{path.name}.lock").exists():
            break
        clock.sleep(patience)
    return finding


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _check(path: Path, quick: bool, entry: manifest.Entry | None) -> str:
    with open(path, "rb") as bits:
        if entry is None:
            return _check_content(path, quick, None)
        digest, size = manifest.fingerprint(bits)
    if (digest, size) == (entry.sha256, entry.bytes):
        return _check_content(path, quick, entry)
    if (state := _state(path)) == "running":
        raise InputError(
            "manifest",
            str(path),
            "no entry for a file that is not complete",
            f"stale entry in {manifest.NAME}: the file is not complete, a run started over it",
        )
    if state == "open":
        footer.check(path)
    if state in ("changed", "complete"):
        text = _check_content(path, quick, entry)
        raise InputError("file", str(path), "the file of the manifest", _changed(path, text))
    if size != entry.bytes:
        raise _Corrupt(f"{size} bytes, but {entry.bytes} in {manifest.NAME}")
    raise _Corrupt(f"sha256 is not that of {manifest.NAME}")


def _state(path: Path) -> str:
    """That of :func:`footer.examine`, or running, or complete for a live file that is."""
    try:
        if (state := footer.examine(path)) != "live":
            return state
        with h5py.File(path, "r", locking=False) as file:
            return "complete" if plain(file.attrs["complete"]) else "running"
    except _UNREADABLE:
        return "corrupt"


def _check_content(path: Path, quick: bool, entry: manifest.Entry | None) -> str:
    try:
        state = footer.examine(path)  # before HDF5, which damage can crash
    except InputError as error:
        raise _Corrupt(error.remedy.removeprefix("It is corrupt: ")) from error
    footer.check(path)  # not open elsewhere
    with h5py.File(path, "r", locking=False) as file:
        _check_links(file)
        about = _check_attributes(file)
    try:
        with warnings.catch_warnings(action="ignore"), Trajectory(path) as run:
            frames, last, complete = len(run), run.time[-1:].tolist(), run.complete
            parts = run.segments
            _check_parts(parts, run.time)
    except InputError as error:
        raise _Corrupt(error.remedy) from error
    # Room for the chunks of a row of large fields.
    with h5py.File(path, "r", locking=False, rdcc_nbytes=2 * PIECE) as file:
        _check_structure(file, frames, complete)
        if entry is not None:
            _check_entry(about, file["time"][:frames], entry)
        if not quick:
            _Values(file, about, frames, complete, parts).check()
    text = f"good, {frames} frame{'s' * (frames != 1)}"
    text += f" to time {last[0]:g}" if last else ""
    text += "" if complete else ", NOT complete"
    if state == "changed" and entry is None:
        raise InputError("file", str(path), "a file as it was sealed", _changed(path, text))
    return text + ("" if state == "sealed" else ", without checksums")


def _changed(path: Path, text: str) -> str:
    what = text.removeprefix("good, ").removesuffix(", without checksums")
    return f"changed: {CHANGED.format(path)}. All that can be checked is right: {what}"


def _check_entry(about: dict[str, Any], times: np.ndarray, entry: manifest.Entry) -> None:
    span = (float(times[0]), float(times[-1])) if len(times) else None
    found = {"frames": len(times), "time": span, **{k: about[k] for k in ("system", "seed")}}
    found["mpiflow_version"] = about["mpiflow_version"]
    for name, value in found.items():
        if value != getattr(entry, name):
            raise _Corrupt(f"{name} is {value}, but {getattr(entry, name)} in {manifest.NAME}")


def _check_parts(parts: Sequence[Segment], times: np.ndarray) -> None:
    """Each part of the run begins between the last frame before it and its first one."""
    for part in parts[1:]:
        before, behind = times[: part.frames.start], times[part.frames.start :]
        if (before > part.time).any() or (behind < part.time).any():
            raise _Corrupt(f"segments_json: time {part.time:g} is not before {part.frames}")


# -- structure ---------------------------------------------------------------------------


def _check_links(file: h5py.File) -> None:
    """Nothing may lead out of the file, whoever made it."""
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise _Corrupt(f"{name} is a link to somewhere else")
        item = file[name]
        if not isinstance(item, h5py.Dataset):
            raise _Corrupt(f"{name} is no dataset")
        if item.external or item.is_virtual:
            raise _Corrupt(f"{name} has its data in another file")


def _check_attributes(file: h5py.File) -> dict[str, Any]:
    about: dict[str, Any] = {}
    for name in file.attrs:  # all are read
        about[name] = plain(file.attrs[name])
    if "schema_version" not in about:
        raise InputError("file", file.filename, "a trajectory", "no trajectory of mpiflow")
    if missing := sorted(set(_ATTRIBUTES) - set(about)):
        raise _Corrupt(f"attributes {', '.join(missing)} are missing")
    for name, kind in _ATTRIBUTES.items():
        if not isinstance(about[name], kind):
            raise _Corrupt(f"attribute {name} is {about[name]!r}")
    if about["schema_version"] > SCHEMA_VERSION:
        raise InputError("file", file.filename, "an older schema", "too new: update mpiflow")
    for name in ("complete", "decomposition_invariant"):
        if about[name] not in (0, 1):
            raise _Corrupt(f"attribute {name} is {about[name]}")
    if not isinstance(json.loads(about["config_json"]), dict):
        raise _Corrupt("config_json is no object")
    return about


def _check_structure(file: h5py.File, frames: int, complete: bool) -> None:
    """Dimensions, lengths and types."""
    if "time" not in file or file["time"].ndim != 1 or file["time"].dtype != np.float64:
        raise _Corrupt("there is no time(time) float64")
    times = file["time"][:frames]
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise _Corrupt("times are not finite and increasing")
    if complete and len(file["time"]) != frames:
        raise _Corrupt(f"{len(file['time'])} times, but {frames} frames")
    for name, dataset in file.items():
        for _ in dataset.attrs.values():
            pass  # all are read
        if dataset.is_scale:
            if dataset.ndim != 1:
                raise _Corrupt(f"dimension {name} is {dataset.ndim}-dimensional")
            continue
        for axis in range(dataset.ndim):
            _check_axis(dataset, axis, complete)
        standard = STANDARD.get(name)
        if standard is not None and dataset.dtype != np.dtype(standard.dtype):
            raise _Corrupt(f"{name} is {dataset.dtype}, not {standard.dtype}")


def _check_axis(dataset: h5py.Dataset, axis: int, complete: bool) -> None:
    name, scales = dataset.name.strip("/"), dataset.dims[axis]
    if len(scales) != 1 or not scales[0].is_scale:
        raise _Corrupt(f"axis {axis} of {name} has {len(scales)} dimensions")
    scale = scales[0]
    along_time = scale.name == "/time"
    if along_time and axis:
        raise _Corrupt(f"time is not the first dimension of {name}")
    # A writer that is inside a flush, or died there, has variables of different lengths.
    if dataset.shape[axis] != scale.shape[0] and (complete or not along_time):
        sizes = f"{dataset.shape[axis]} values along {scale.name[1:]}, not {scale.shape[0]}"
        raise _Corrupt(f"{name} has {sizes}")


# -- values ------------------------------------------------------------------------------


def pieces(dataset: h5py.Dataset, limit: int | None = None) -> Iterator[tuple[slice, ...]]:
    """Boxes of whole chunks that cover a dataset, in C order, of about ``limit`` bytes each.

    The last axes grow first: a box is shorter than the dataset along an axis only if it is one
    chunk thick along all axes before. One chunk of every axis but the last is the least.
    """
    shape, limit = dataset.shape, limit or PIECE
    if not shape:
        return
    size = [min(n, c) for n, c in zip(shape, dataset.chunks or (1,) * len(shape), strict=True)]
    for axis in reversed(range(len(shape))):
        last = axis == len(shape) - 1
        step = math.prod(size) * dataset.dtype.itemsize
        times = -(-shape[axis] // max(1, size[axis])) if last else max(1, limit // max(1, step))
        whole, size[axis] = shape[axis], min(shape[axis], size[axis] * times)
        if size[axis] < whole:
            break
    starts = [range(0, n, max(1, s)) for n, s in zip(shape, size, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(slice(c, min(c + s, n)) for c, s, n in zip(corner, size, shape, strict=True))


class _Values:
    """Reads all data of a file once, and checks them."""

    def __init__(
        self,
        file: h5py.File,
        about: dict[str, Any],
        frames: int,
        complete: bool,
        parts: Sequence[Segment],
    ) -> None:
        self.file, self.frames, self.complete, self.parts = file, frames, complete, parts
        self.system: str = about["system"]
        self.config: dict[str, Any] = json.loads(about["config_json"])
        self.kernel: str = about.get("kernel", "")
        self.laws = self.system in _SPINS and "size" in self.config
        self.bounded = self.system in (*_SPINS, *_FIELDS)
        self.small: dict[str, np.ndarray] = {}
        self.spins: np.ndarray | None = None
        self.bonds: np.ndarray | None = None
        if self.laws:
            self._total()

    def check(self) -> None:
        if self.system == "alloy" and "bonds" in self.file:
            self._atoms()
        for name, dataset in self.file.items():
            if name == "coarse_magnetization" and self.laws:
                self._blocks(dataset)
            elif name == "coarse_magnetization" and self.system in _FIELDS:
                self._field(dataset)
            elif name in ("spin", "spin_bits") and self.laws:
                self._sites(name, dataset)
            elif name == "species" and self.system == "alloy":
                self._species(dataset)
            elif name.endswith("_profile") and self.system in _LINES:
                self._profile(name, dataset)
            else:
                self._read(name, dataset)
        self._counters()
        self._states()
        if "fraction" in self.file and "state" in self.file and "size" in self.config:
            self._of_rule()

    def _of_rule(self) -> None:
        """What only the states of a spin rule have."""
        self.sites = math.prod(self._size())
        rule = RuleValues(self.file, self.system, self.frames, self.parts, self.sites)
        for good, what in rule.check():
            self._equal(good, np.ones_like(good), what)

    def _states(self) -> None:
        """What only impossible states have."""
        if self.spins is not None and self.bonds is not None:
            for good, what in possible.of_spins(self.spins, self.bonds, self.sites):
                self._equal(good, np.ones(good.shape, bool), what)
        for part in self.parts if self.laws else ():
            here = slice(part.frames.start, part.frames.stop)
            for good, what in self._laws_of_part(here, part.config):
                same = np.ones((self.frames, *good.shape[1:]), bool)
                same[here] = good
                self._equal(same, np.ones_like(same), what)
        for name in ("prey", "predator") if self.system == "predator-prey" else ():
            means = self._series(name)
            for good, what in () if means is None else possible.of_lines(means):
                self._equal(good, np.ones(good.shape, bool), f"{name} {what}")

    def _laws_of_part(self, here: slice, config: Mapping[str, Any]) -> possible.Laws:
        """What the options of a part of the run say about its frames."""
        energy, flips, sites = self._series("energy"), self._series("flips"), self.sites
        if self.system == "kac" and self.spins is not None and energy is not None:
            bonds = None if self.bonds is None else self.bonds[here]
            m = self.spins[here] / sites
            yield from possible.of_kac(energy[here], m, bonds, config, sites)
        if flips is not None:
            times = self.file["time"][: self.frames][here]
            yield from possible.of_flips(flips[here], times, self.system, config, sites)

    def _read(self, name: str, dataset: h5py.Dataset) -> None:
        if _is_text(dataset):
            dataset.asstr()[()]
            return
        if not dataset.shape:
            self._plain(name, (), dataset[()])
        for box in pieces(dataset):
            self._plain(name, box, dataset[box])

    def _plain(self, name: str, box: tuple[slice, ...], values: Any) -> np.ndarray:
        """Finite and in range; returns the values of whole frames only."""
        dataset = self.file[name]
        if dataset.dtype.kind not in "fiu":
            return values
        timed = bool(dataset.ndim) and _dims(dataset)[0] == "time"
        if timed:
            values = values[: max(0, self.frames - box[0].start)]
        elif not self.complete:
            return values  # may not be written yet
        if dataset.dtype.kind == "f" and not (self.system == "alloy" and name in _FROM_BONDS):
            self._all(np.isfinite(values), name, box, timed, "not finite")
        if self.bounded and name in _RANGES:
            low, high = _RANGES[name]
            self._all((values >= low) & (values <= high), name, box, timed, "out of range")
            if name == "spin":
                self._all(values != 0, name, box, timed, "not 1 or -1")
        return values

    def _all(
        self, good: np.ndarray, name: str, box: Sequence[slice], timed: bool, what: str
    ) -> None:
        if not np.all(good):
            where = np.unravel_index(int(np.argmin(good)), good.shape)
            at = f" at frame {box[0].start + int(where[0])}" if timed else ""
            raise _Corrupt(f"{name} is {what}{at}")

    def _equal(self, found: np.ndarray, wanted: np.ndarray, what: str) -> None:
        same = np.asarray(found == wanted)
        if not same.all():
            frame = np.unravel_index(int(np.argmin(same)), same.shape)[0]
            raise _Corrupt(f"frame {frame}: {what}")

    def _series(self, name: str) -> np.ndarray | None:
        """A variable small enough to be held, whole frames; None if the file has none."""
        return self.file[name][: self.frames] if name in self.file else None

    # -- spins

    def _size(self) -> tuple[int, ...]:
        size = self.config["size"]
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
            raise _Corrupt(f"size is {size!r} in config_json")
        return sides

    def _total(self) -> None:
        """Sums of spins and of bonds of every frame, from the means in the file."""
        self.sides = self._size()
        sites = self.sites = math.prod(self.sides)
        m, walls = map(self._series, ("magnetization", "domain_wall_density"))
        if m is not None:
            self._all(np.isfinite(m), "magnetization", (slice(0, 0),), True, "not finite")
            self.spins = np.rint(m * sites)
            self._equal(self.spins / sites, m, "magnetization is no mean of spins")
            self._equal(
                self.spins % 2, np.full_like(m, sites % 2), "magnetization is no mean of ±1"
            )
        if walls is not None:
            self._all(np.isfinite(walls), "domain_wall_density", (slice(0, 0),), True, "not finite")
            self.bonds = np.rint(2 * sites * (1.0 - 2.0 * walls))
            mean = 0.5 * (1.0 - self.bonds / (2.0 * sites))
            self._equal(mean, walls, "domain_wall_density is no fraction of the bonds")
        self._energies()

    def _energies(self) -> None:
        """The energy follows from sums, by the law of the part of the run."""
        energy, spins, sites = self._series("energy"), self.spins, self.sites
        if energy is None or spins is None:
            return
        good = np.ones(energy.shape, bool)
        for part in self.parts:
            here = slice(part.frames.start, part.frames.stop)
            names = ("temperature", "field", "coupling")
            options = {n: part.config[n] for n in names if n in part.config}
            system: Ising | CurieWeiss
            if len(options) < len(names):
                continue
            if self.system == "ising" and self.bonds is not None:
                system = Ising(**options)
                wanted = system.energy(self.bonds[here], spins[here]) / sites
            elif self.system == "curie-weiss":
                system = CurieWeiss(**options)
                wanted = system.energy((spins[here] + sites) / 2, sites) / sites
            else:
                continue
            rounding = _ROUNDING * (2 * abs(system.coupling) + abs(system.field))
            good[here] = np.abs(energy[here] - wanted) <= rounding
        what = "energy does not follow from magnetization and domain_wall_density"
        self._equal(good, np.ones_like(good), what)

    def _blocks(self, dataset: h5py.Dataset) -> None:
        """Block means are of whole numbers of spins, and add up to the total."""
        rows, columns = self.sides[0] / dataset.shape[-2], self.sides[1] / dataset.shape[-1]
        block = rows * columns
        if not rows.is_integer() or not columns.is_integer():
            raise _Corrupt("blocks of coarse_magnetization do not divide the lattice")
        total = np.zeros((len(dataset), *dataset.shape[1:-2]), np.int64)
        for box in pieces(dataset):
            means = self._plain(dataset.name[1:], box, dataset[box])
            sums = np.rint(means.astype(np.float64) * block)
            if block < 2**24:  # float32 holds such sums exactly
                whole = ((sums / block).astype(np.float32) == means) & (sums % 2 == block % 2)
                self._all(whole, "coarse_magnetization", box, True, "no mean of spins")
            total[_lead(box, len(means))] += sums.sum(axis=(-2, -1)).astype(np.int64)
        if self.spins is not None and block < 2**24:
            what = "block sums of coarse_magnetization do not add up to magnetization"
            self._equal(total[: self.frames], self.spins, what)

    def _field(self, dataset: h5py.Dataset) -> None:
        """Means of blocks of a learned law: their mean is the total, those of spins are such."""
        spins = self.config["coarse"] ** 2
        total = np.zeros((len(dataset), *dataset.shape[1:-2]))
        for box in pieces(dataset):
            means = self._plain("coarse_magnetization", box, dataset[box]).astype(np.float64)
            if self.kernel == "cosh" and spins < 2**24:
                up = np.rint((means + 1) * (spins / 2))
                whole = (2 * up / spins - 1).astype(np.float32) == means.astype(np.float32)
                self._all(whole, "coarse_magnetization", box, True, "no mean of spins")
            total[_lead(box, len(means))] += means.sum(axis=(-2, -1))
        m = self._series("magnetization")
        if m is not None:
            found = total[: self.frames] / math.prod(dataset.shape[-2:])
            near = abs(found - m) <= _FLOAT32 + _ROUNDING
            self._equal(near, np.ones(m.shape, bool), "means of blocks do not give magnetization")

    def _profile(self, name: str, dataset: h5py.Dataset) -> None:
        """The mean along a line is the number that the file has too."""
        total, largest = np.zeros((2, len(dataset), *dataset.shape[1:-1]))
        for box in pieces(dataset):
            values = self._plain(name, box, dataset[box])
            lead = (slice(box[0].start, box[0].start + len(values)), *box[1:-1])
            total[lead] += values.sum(axis=-1)
            largest[lead] = np.maximum(largest[lead], abs(values).max(axis=-1))
        mean = self._series(name.removesuffix("_profile"))
        far = abs(total[: self.frames] / dataset.shape[-1] - mean)
        near = far <= _ROUNDING * largest[: self.frames]
        self._equal(near, np.ones(near.shape, bool), f"{name} does not give its mean")

    def _sites(self, name: str, dataset: h5py.Dataset) -> None:
        """Spins are ±1, and give magnetization and broken bonds."""
        over = dataset.shape[-2], dataset.shape[-1] * (8 if name == "spin_bits" else 1)
        if over != self.sides:
            raise _Corrupt(f"{name} is over {over}, the lattice is {self.sides}")
        shape = (len(dataset), *dataset.shape[1:-2])
        total, bonds = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        first = above = np.empty(0, np.int8)
        for box in pieces(dataset):
            s = self._plain(name, box, dataset[box])
            if name == "spin_bits":
                s = 2 * np.unpackbits(s, axis=-1).view(np.int8) - 1
            self._all(s != 0, name, box, True, "not 1 or -1")
            lead = _lead(box, len(s))
            total[lead] += s.sum(axis=(-2, -1), dtype=np.int64)
            bonds[lead] += _pairs(s, np.roll(s, -1, axis=-1))
            bonds[lead] += _pairs(s[..., 1:, :], s[..., :-1, :])
            # Bands of rows follow one another: pieces are whole along x, and y comes next.
            if box[-2].start == 0:
                first = s[..., :1, :]
            else:
                bonds[lead] += _pairs(s[..., :1, :], above)
            above = s[..., -1:, :]
            if box[-2].stop == dataset.shape[-2]:
                bonds[lead] += _pairs(above, first)
        for found, wanted, name in (
            (total, self.spins, "magnetization"),
            (bonds, self.bonds, "domain_wall_density"),
        ):
            if wanted is not None:
                self._equal(found[: self.frames], wanted, f"spins do not give {name}")

    def _counters(self) -> None:
        """Hops never go back. Flips may, by those of the half step before a frame."""
        sites = getattr(self, "sites", 0)
        if self.system == "curie-weiss":
            self._exact_flips()
            sites = 0
        for name, slack in (("hops", 0), ("flips", sites // 2)):
            counts = self._series(name)
            if counts is not None and counts.dtype.kind == "i":
                if (counts < 0).any() or (np.diff(counts, axis=0) < -slack).any():
                    raise _Corrupt(f"{name} go back")

    def _exact_flips(self) -> None:
        """Every flip changes the sum of the spins by 2."""
        flips = self._series("flips")
        if flips is not None and self.spins is not None and self.frames:
            made = abs(self.spins - self.spins[0]) / 2
            possible = (made <= flips - flips[0]) & ((made - flips + flips[0]) % 2 == 0)
            self._equal(possible, np.ones(flips.shape, bool), "flips do not give magnetization")

    # -- alloy

    def _atoms(self) -> None:
        """Bonds conserve the atoms, and order parameters follow from bonds."""
        bonds = self.file["bonds"]
        counts = None
        for start in range(0, self.frames, 1024):
            box = slice(start, min(start + 1024, self.frames))
            values = bonds[box]
            if (values < 0).any():
                raise _Corrupt("bonds are negative")
            for axis in (-1, -2):
                if (values.sum(axis=axis) % alloy.NEIGHBOURS).any():
                    raise _Corrupt("bonds do not add up to eight for each site")
            numbers = alloy.species_numbers(values)
            counts = numbers[0] if counts is None else counts
            if (numbers != counts).any():
                frame = start + int(np.argmax((numbers != counts).reshape(len(numbers), -1).any(1)))
                raise _Corrupt(f"frame {frame}: atoms are not conserved")
            rules = (alloy.short_range_order, alloy.warren_cowley, alloy.long_range_order)
            for name, rule in zip(_FROM_BONDS, rules, strict=True):
                if name in self.file:
                    wanted, found = rule(values), self.file[name][box]
                    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
                    self._all(same, name, (box,), True, "not what bonds give")
        cells = self.config.get("cells")
        if counts is not None and isinstance(cells, list):
            if (counts.sum(axis=-1) != 2 * math.prod(cells)).any():
                raise _Corrupt(f"there are not two sites for each of {cells} cells")

    def _species(self, dataset: h5py.Dataset) -> None:
        """Species are known ones, and their bonds are those of the file."""
        bonds = self.file.get("bonds")
        kinds = 1 + len(self.config.get("elements") or alloy.ELEMENTS)
        cells = tuple(self.config["cells"])
        if dataset.shape[-1] != 2 * math.prod(cells):
            raise _Corrupt(f"species has {dataset.shape[-1]} sites, not two for each cell")
        for frame in range(len(dataset)):
            values = dataset[frame]
            if frame >= self.frames:
                continue  # only its checksums
            box = (slice(frame, frame + 1),)
            known = (values >= 0) & (values < kinds)
            self._all(known[None], "species", box, True, "not a known one")
            for lattice, wanted in zip(
                values.reshape(-1, values.shape[-1]),
                [] if bonds is None else bonds[frame].reshape(-1, kinds, kinds),
                strict=bonds is not None,
            ):
                if (_bonds_of(lattice, cells, kinds) != wanted).any():
                    raise _Corrupt(f"frame {frame}: species do not give bonds")


def _is_text(dataset: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(dataset.dtype) is not None


def _dims(dataset: h5py.Dataset) -> list[str]:
    if dataset.is_scale:
        return [dataset.name.strip("/")]
    return [scales[0].name.strip("/") for scales in dataset.dims]


def _lead(box: tuple[slice, ...], frames: int) -> tuple[slice, ...]:
    """The box without y and x, and without frames that do not count."""
    return (slice(box[0].start, box[0].start + frames), *box[1:-2])


def _pairs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=(-2, -1), dtype=np.int64)


def _bonds_of(species: np.ndarray, cells: tuple[int, ...], kinds: int) -> np.ndarray:
    """Bonds by species of the corner and of the centre, of all sites in C order."""
    x, y, z = cells
    planes = species.reshape(2 * x, y, z)
    corners, centres = planes[::2].astype(np.int64) * kinds, planes[1::2]
    counts = np.zeros(kinds * kinds, np.int64)
    for shift in itertools.product((0, 1), repeat=3):
        ends = corners + np.roll(centres, shift, axis=(0, 1, 2))
        counts += np.bincount(ends.ravel(), minlength=kinds * kinds)
    return counts.reshape(kinds, kinds)
