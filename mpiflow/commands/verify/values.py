"""The values of a Trajectory file: read once, in pieces, finite, in range, as the system says."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np

#: Bytes of a field that are in memory at once, but at least a row of chunks.
from mpiflow.commands.verify.rules import RuleValues
from mpiflow.commands.verify.structure import Corrupt
from mpiflow.core.errors import InputError
from mpiflow.files import possible
from mpiflow.files.segments import Segment
from mpiflow.systems.drive import Drive
from mpiflow.systems.site_field import fingerprint, fingerprint_text

#: Bytes of a field that are in memory at once, but at least a row of chunks.
PIECE = 2**23

_RANGES = {
    "magnetization": (-1.0, 1.0),
    "domain_wall_density": (0.0, 1.0),
    "coarse_magnetization": (-1.0, 1.0),
    "initial_magnetization": (-1.0, 1.0),
    "spin": (-1, 1),
}


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


class Values:
    """Reads all data of a file once, and checks them. What a system says more is in a subclass.

    Parameters
    ----------
    about : attributes of the file
    frames : of it that count
    complete : whether the run came to its end
    parts : of the run, each with its options
    """

    #: Whether values have the range of spins.
    bounded = False
    #: Variables that may be NaN.
    may_be_nan: tuple[str, ...] = ()
    #: Flips that may be taken back between two frames.
    slack = 0
    #: What was not checked, for the line about the file.
    remark = ""

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

    def check(self) -> None:
        """Raise :class:`Corrupt` unless all is well."""
        self._totals()
        for name, dataset in self.file.items():
            self._variable(name, dataset)
        self._counters()
        self._schedules()
        self._site_field()
        self._states()
        if "fraction" in self.file and "state" in self.file and "size" in self.config:
            rule = RuleValues(
                self.file, self.system, self.frames, self.parts, math.prod(self._size())
            )
            self._hold(rule.check())
            if len(rule.rules) < len(self.parts):
                general = "is not known here: only what holds of any system is checked"
                self.remark = f"; the law of {self.system} {general}"

    # -- what a system says more

    def _totals(self) -> None:
        """Series that are small enough to be held, before the fields."""

    def _variable(self, name: str, dataset: h5py.Dataset) -> None:
        """One variable, all of it read."""
        self._read(name, dataset)

    def _states(self) -> None:
        """What only impossible states have."""

    # -- what they all need

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
        if dataset.dtype.kind == "f" and name not in self.may_be_nan:
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
            raise Corrupt(f"{name} is {what}{at}")

    def _equal(self, found: np.ndarray, wanted: np.ndarray, what: str) -> None:
        same = np.asarray(found == wanted)
        if not same.all():
            frame = np.unravel_index(int(np.argmin(same)), same.shape)[0]
            raise Corrupt(f"frame {frame}: {what}")

    def _series(self, name: str) -> np.ndarray | None:
        """A variable small enough to be held, whole frames; None if the file has none."""
        return self.file[name][: self.frames] if name in self.file else None

    # -- spins

    def _hold(self, laws: possible.Laws, subject: str = "") -> None:
        """Laws of whole series: where they hold, and what is wrong elsewhere."""
        for good, what in laws:
            self._equal(good, np.ones_like(good), subject + what)

    def _schedules(self) -> None:
        """Parameters that change go as the schedule of each part of the run says."""
        times = self._series("time")
        for part in self.parts:
            text, here = part.config.get("schedule"), slice(part.frames.start, part.frames.stop)
            try:
                drive = Drive.read(text) if isinstance(text, str) else None
            except InputError:  # of a file that may be gone, or a function
                continue
            for name in () if drive is None else drive.curves:
                found = self._series(name)
                if drive is None or found is None or times is None:
                    continue
                wanted = np.array([drive.at(time)[name] for time in times[here].tolist()])
                good = np.ones(len(times), bool)
                good[here] = np.isclose(found[here], wanted, rtol=1e-12, atol=1e-12)
                self._equal(good, np.ones_like(good), f"{name} is not what the schedule says")

    def _site_field(self) -> None:
        """Fields of sites are those that the run was made in."""
        if "site_field" not in self.file or not self.complete:
            return
        dataset = self.file["site_field"]
        words = np.zeros(2, np.uint64)
        for box in pieces(dataset):
            values = np.ascontiguousarray(dataset[box], np.float64)
            words += np.array(fingerprint(values, box[0].start, box[1].start), np.uint64)
        if fingerprint_text(words) != dataset.attrs.get("fingerprint"):
            raise Corrupt("site_field is not what the run was made with")

    def _size(self) -> tuple[int, ...]:
        size = self.config["size"]
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
            raise Corrupt(f"size is {size!r} in config_json")
        return sides

    def _counters(self) -> None:
        """Hops never go back. Flips may, by those of the half step before a frame."""
        for name, slack in (("hops", 0), ("flips", self.slack)):
            counts = self._series(name)
            if counts is not None and counts.dtype.kind == "i":
                if (counts < 0).any() or (np.diff(counts, axis=0) < -slack).any():
                    raise Corrupt(f"{name} go back")


class MeanValues(Values):
    """Spins or their means, of which no more is known than their range."""

    bounded = True


def _is_text(dataset: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(dataset.dtype) is not None


def _dims(dataset: h5py.Dataset) -> list[str]:
    if dataset.is_scale:
        return [dataset.name.strip("/")]
    return [scales[0].name.strip("/") for scales in dataset.dims]
