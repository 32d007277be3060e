"""When solvers that go from event to event stop."""

from __future__ import annotations

import numpy as np

from mpiflow.core.errors import InputError

NO_LIMIT = np.iinfo(np.int64).max


def last_events(events: np.ndarray, batch: int, until: float, flips: int | None) -> np.ndarray:
    """The total of events at which each box stops, (B,) int64, if its time is not over before.

    Parameters
    ----------
    events : (B,) int64, those so far
    batch : number of boxes that are to go on
    until, flips : a time, or so many more events, as the user gave them
    """
    if len(events) != batch:
        raise InputError("batch", len(events), f"{batch}, as many as boxes", "Make a new solver.")
    if np.isnan(until) or (flips is None and np.isinf(until)):
        raise InputError("until", until, "a finite time, or flips", "Give one of them.")
    if flips is not None and flips < 0:
        raise InputError("flips", flips, "0 or more", "Try the number of sites.")
    return np.full_like(events, NO_LIMIT) if flips is None else events + flips
