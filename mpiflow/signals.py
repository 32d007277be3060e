"""The wish to stop: SIGTERM, SIGUSR1 and SIGINT are noted, and looked at between steps.

Programs listen from their first line on, before MPI and compilers are loaded: a batch system may
signal a job that has just started.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

NOTED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
#: Seconds in which more signals are the same one: launchers and batch systems repeat theirs, and
#: a terminal sends Ctrl-C to mpirun and to its ranks.
REPEATED = 2.0

_before: dict[int, Any] = {}
_first: tuple[int, float] | None = None


def listen() -> bool:
    """Note signals from now on; False if that is so already, or not this thread's right."""
    if _before or threading.current_thread() is not threading.main_thread():
        return False
    for number in NOTED:
        _before[number] = signal.signal(number, _note)
    return True


def stop_listening() -> None:
    """Signals act as before, and what was noted is forgotten."""
    global _first
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()
    _first = None


def received() -> int:
    """The signal that was noted; 0 if there was none."""
    return 0 if _first is None else _first[0]


def _note(number: int, frame: FrameType | None) -> None:
    global _first
    if _first is None:
        _first = number, time.monotonic()
    elif number != signal.SIGUSR1 and time.monotonic() - _first[1] > REPEATED:
        # Somebody means it: at once, as if nobody had listened.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
