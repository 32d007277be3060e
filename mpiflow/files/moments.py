"""Which frame and which member of the file of a run a simulation starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.files import footer


@dataclass(frozen=True)
class Moment:
    """A frame by its number or its time, and a member.

    Attributes
    ----------
    frame : negative from the end; None for the last one, unless there is a time
    time : that of a saved frame
    member : of an ensemble, negative from the end, for all members of the simulation; None for
        each its own
    """

    frame: int | None = None
    time: float | None = None
    member: int | None = None

    def frame_of(self, path: Path, times: np.ndarray) -> int:
        """The number of the frame.

        Parameters
        ----------
        times : (frames,), NaN for those that were never written

        Raises
        ------
        InputError : there is no such frame
        """
        times = times[: int(np.isfinite(times).sum())]
        count = len(times)
        if count == 0:
            raise InputError("initial", str(path), "a file with a frame", "Save one.")
        if self.frame is not None and self.time is not None:
            given = self.frame, self.time
            raise InputError("initial_frame, initial_time", given, "one of the two", "Give one.")
        if self.time is not None:
            nearest = int(np.abs(times - self.time).argmin())
            if not np.isclose(times[nearest], self.time, rtol=1e-9, atol=0):
                near = " or ".join(f"{t:.12g}" for t in times[max(0, nearest - 1) : nearest + 2])
                allowed = f"the time of a frame of {path}"
                raise InputError("initial_time", self.time, allowed, f"Near it are {near}.")
            return nearest
        frame = -1 if self.frame is None else self.frame
        if not -count <= frame < count:
            allowed = f"{-count} to {count - 1}, as {path} has {count} frames"
            raise InputError("initial_frame", frame, allowed, "Leave it out for the last one.")
        return frame % count

    def members_of(self, path: Path, count: int, wanted: np.ndarray) -> np.ndarray:
        """Which member of the file each of some members starts from, (n,).

        Parameters
        ----------
        count : members of the file; 0 if it holds one system
        wanted : (n,) numbers of members of the simulation

        Raises
        ------
        InputError : there is no such member
        """
        own = np.asarray(wanted, np.int64)
        if self.member is None:
            if count and own.size and own.max() >= count:
                allowed = f"up to {count}, as {path} has"
                remedy = "Use fewer, or choose one for all with --initial-member."
                raise InputError("members", int(own.max()) + 1, allowed, remedy)
            return own if count else np.zeros_like(own)
        last = max(1, count)
        if not -last <= self.member < last:
            allowed = f"{-last} to {last - 1}, as {path} has {last}"
            raise InputError("initial_member", self.member, allowed, "Choose another.")
        return np.full_like(own, self.member % last)

    def places(
        self, path: Path, times: np.ndarray, count: int, wanted: np.ndarray
    ) -> list[tuple[int, ...]]:
        """Indices of what is read: one for all, or one for each of the ``wanted`` members.

        Parameters and errors as of :meth:`frame_of` and :meth:`members_of`.
        """
        frame = self.frame_of(path, times)
        own = dict.fromkeys(self.members_of(path, count, wanted).tolist())
        return [(frame, member) for member in own or [0]] if count else [(frame,)]

    def settled(self, path: Path) -> dict[str, int | None]:
        """Options that choose the same in words that do not depend on the rest of the file.

        Raises
        ------
        InputError : it cannot be read, or has no such frame
        """
        try:
            footer.check(path)
            with h5py.File(path, "r", locking=False) as file:
                if not isinstance(file.get("time"), h5py.Dataset) and self.time is None:
                    return {"initial_frame": self.frame, "initial_member": self.member}
                frame = self.frame_of(path, np.asarray(file["time"][()], float))
                count = len(file["member"]) if "member" in file else 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            remedy = f"Reading said: {error}."
            raise InputError("initial", str(path), "an intact file of a run", remedy) from error
        member = None
        if self.member is not None:
            member = int(self.members_of(path, count, np.zeros(1, int))[0])
        return {"initial_frame": frame, "initial_member": member}


def times_of(file: h5py.File, frames: int) -> np.ndarray:
    """Times of the frames; their numbers, in a file of another program that has none."""
    if not isinstance(file.get("time"), h5py.Dataset):
        return np.arange(float(frames))
    return np.asarray(file["time"][:frames], float)


def is_run(path: Path) -> bool:
    """Whether a file holds frames of a run."""
    return path.is_file() and bool(h5py.is_hdf5(path))
