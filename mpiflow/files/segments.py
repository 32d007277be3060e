"""The parts of a run: what a Trajectory says about frames that were made in different ways.

A run that goes on with other parameters, another seed or another distance of frames has a part
for each. The root attribute ``segments_json`` lists them (docs/file-format.md):

    [{"frame": 0, "time": 0.0, "save_every": 1.0, "config": {"temperature": 0.8, ...}},
     {"frame": 101, "time": 100.0, "save_every": 1.0, "config": {"temperature": 2.0, ...}}]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.inputs import STARTS

#: Options that say nothing about the trajectory.
FREE = frozenset(
    "time hops out overwrite resume writer quiet checkpoints checkpoint_every walltime device "
    "ranks_grid method frame".split()
)
#: Of a part: the state it starts from is that of the part before, or of the whole run.
_NOT_OF_A_PART = FREE | STARTS | {"save_every", "frames_per_decade", "inputs"}


@dataclass(frozen=True)
class Segment:
    """A part of a run with one configuration and one distance of frames.

    Attributes
    ----------
    frames : their numbers. Between two looks at a run that is going there may be none
    time : when it begins, in the run's unit of time; its first frame may be later
    config : the options in force, without those that do not change the trajectory
    save_every : distance of frames; None of a file that does not say it
    unit : of this distance, time or hops
    odd_frames : those at the end of an earlier, shorter run, between two that were due
    frames_per_decade : of frames whose distances grow, the first after ``save_every``; else None
    """

    frames: range
    time: float
    config: Mapping[str, Any]
    save_every: float | None = None
    unit: str = "time"
    odd_frames: tuple[int, ...] = ()
    frames_per_decade: int | None = None

    def regular(self, times: np.ndarray) -> np.ndarray:
        """Numbers of its frames at equal distances; those that are due, if distances are not equal.

        Parameters
        ----------
        times : of all frames of the run
        """
        numbers = np.array([n for n in self.frames if n not in self.odd_frames], np.int64)
        steps = np.diff(times[numbers])
        if self.unit == "hops" or self.frames_per_decade or not len(steps):
            return numbers
        every = self.save_every or float(np.median(steps))
        count = (times[numbers] - times[numbers[0]]) / every
        return numbers[np.abs(count - np.rint(count)) < 1e-6 * np.maximum(1.0, count)]

    def equal(self, times: np.ndarray, path: Any) -> np.ndarray:
        """Numbers of its frames at equal times: only those at the ends of runs may be at others.

        Raises
        ------
        InputError : so are others, of the file at ``path``
        """
        numbers = self.regular(times)
        steps = np.diff(times[numbers])
        if len(steps):
            span = times[self.frames[-1]] - times[numbers[0]]
            missing = math.floor(span / steps.mean() * (1 + 1e-9)) - len(steps)
            if missing or np.ptp(steps) > 1e-6 * steps.mean():
                raise InputError("runs", str(path), "frames at equal times", "Use --save-every.")
        return numbers


def entry(
    frame: int,
    time: float,
    save_every: float,
    unit: str,
    config: Mapping[str, Any],
    frames_per_decade: int | None = None,
) -> dict[str, Any]:
    """What the list says about a part that begins."""
    kept = {name: value for name, value in config.items() if name not in _NOT_OF_A_PART}
    about: dict[str, Any] = {"frame": frame, "time": time, "save_every": save_every, "unit": unit}
    if frames_per_decade is not None:
        about["frames_per_decade"] = frames_per_decade
    return {**about, "config": kept}


def gone_on(
    entries: Sequence[Mapping[str, Any]],
    new: Mapping[str, Any],
    *,
    apart: bool = False,
    odd: int | None = None,
) -> list[dict[str, Any]]:
    """The list of a run that goes on as ``new`` says, which is no part of its own if it is alike.

    Parameters
    ----------
    apart : frames are counted anew, so it is one
    odd : number of a frame that is between two that are due
    """
    out = [dict(one) for one in entries]
    last = out[-1]
    if odd is not None:
        last["odd_frames"] = sorted({*last.get("odd_frames", ()), odd})
    common = set(last["config"]) & set(new["config"])  # versions may have other options
    alike = all(last["config"][name] == new["config"][name] for name in common)
    spacing = ("save_every", "frames_per_decade")
    if alike and all(last.get(n) == new.get(n) for n in spacing) and not apart:
        return out
    if last["time"] == new["time"] and last["frame"] == new["frame"]:
        out.pop()  # nothing was done in it
    return [*out, dict(new)]


def read(text: str, frames: int) -> list[Segment]:
    """The parts of a Trajectory with so many frames.

    Raises
    ------
    ValueError : it is no such list
    """
    entries = json.loads(text)
    firsts = [one["frame"] for one in entries]
    times = [float(one["time"]) for one in entries]
    rising = all(a <= b for values in (firsts, times) for a, b in pairwise(values))
    if not (firsts and firsts[0] == 0 and rising and all(map(math.isfinite, times))):
        raise ValueError("its parts are not in order")
    ends = [*firsts[1:], frames]
    out = []
    for one, time, end in zip(entries, times, ends, strict=True):
        first = min(int(one["frame"]), frames)
        odd = tuple(int(n) for n in one.get("odd_frames", ()))
        every = None if one["save_every"] is None else float(one["save_every"])
        numbers = range(first, max(first, min(end, frames)))
        grows = one.get("frames_per_decade")
        out.append(Segment(numbers, time, dict(one["config"]), every, str(one["unit"]), odd, grows))
    return out


def of_frames(text: str, steps: range) -> str:
    """The list of a file that has only some of the frames."""
    out = []
    for one in json.loads(text):
        odd = [steps.index(n) for n in one.get("odd_frames", ()) if n in steps]
        entry = {**one, "frame": sum(n < one["frame"] for n in steps)}
        entry.pop("odd_frames", None)
        out.append({**entry, "odd_frames": odd} if odd else entry)
    return json.dumps(out)


def changes(segments: Sequence[Segment]) -> dict[str, list[Any]]:
    """Options that are not the same in all parts with frames, with a value for each part."""
    parts = [part.config for part in segments if len(part.frames)]
    names = dict.fromkeys(name for config in parts for name in config)
    values = {name: [config.get(name) for config in parts] for name in names}
    return {name: some for name, some in values.items() if any(v != some[0] for v in some)}


def describe(segments: Sequence[Segment], times: np.ndarray) -> list[str]:
    """Lines about the parts of a run, and about its odd frames; none for a run of one part."""
    lines = []
    if len(segments) > 1:
        varying = changes(segments)
        distances = {(part.save_every, part.frames_per_decade) for part in segments}
        lines.append(f"parts       {len(segments)}: it was resumed with other options")
        for part in segments:
            options = [f"{name} {part.config.get(name)}" for name in varying]
            if len(distances) > 1:
                grows = f", then {part.frames_per_decade} a decade" * bool(part.frames_per_decade)
                options.append(f"frames every {part.save_every:g}{grows}")
            about = ", ".join(options) or "frames counted anew"
            lines.append(f"  from time {part.time:g}, frame {part.frames.start}: {about}")
    odd = [n for part in segments for n in part.odd_frames if n < len(times)]
    if odd:
        listed = ", ".join(f"{n} (time {times[n]:g})" for n in odd)
        lines.append(f"odd frames  {listed}: of an earlier end, between two that were due")
    return lines


def require_one(segments: Sequence[Segment], path: Any, use: str) -> None:
    """Raise if parts of a run have different parameters.

    Parameters
    ----------
    use : what cannot use them
    """
    if mixed := changes(segments):
        listed = ", ".join(f"{name} {values}" for name, values in mixed.items())
        remedy = "It was resumed with other options; see mpiflow info. Use another run."
        raise InputError("runs", f"{path}: {listed}", f"one set of parameters for {use}", remedy)
