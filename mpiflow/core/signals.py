"""The wish to stop: signals are noted, and looked at between steps.

Programs listen from their first line on, before MPI and compilers are loaded: a batch system may
signal a job that has just started. While nothing can be lost (imports, initial states, the first
stretch of work, which compiles) nobody needs to wait for a step to end: a thread ends a program
that has not come to look at the wish within :data:`GRACE` seconds. It runs while kernels and the
compiler do, which hold up Python's own handlers. Programs that cannot go on where they were, as
drivers, never look: the thread ends them at once, as long as they run.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

#: Exit code of a run that wants to be started again, mostly with a checkpoint (EX_TEMPFAIL).
STOPPED = 75
#: Batch systems and launchers send these before they kill; of XCPU the system sends one a second.
NOTED = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP", "SIGXCPU")
    if hasattr(signal, name)
)
#: Seconds in which more signals are the same one: launchers and batch systems repeat theirs, and
#: a terminal sends Ctrl-C to mpirun and to its ranks.
REPEATED = 2.0
#: Seconds that a program with nothing to lose has to end by itself.
GRACE = 1.0
#: Seconds in which work that can be taken back may come to its end.
PATIENCE = 0.5

_before: dict[int, Any] = {}
_first: tuple[int, float] | None = None
_deadline = float("inf")
_vigil: Vigil | None = None


def listen() -> bool:
    """Note signals from now on; False if that is so already, or not this thread's right.

    SIGHUP stays ignored where it is, as nohup wants it.
    """
    if _before or threading.current_thread() is not threading.main_thread():
        return False
    for number in NOTED:
        if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        _before[number] = signal.signal(number, _note)
    return True


def listening() -> bool:
    """Whether signals are noted for the program to look at."""
    return bool(_before) and not (_vigil is not None and _vigil.lasting)


def stop_listening() -> None:
    """Signals act as before, and what was noted is forgotten."""
    global _first
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()
    _first = None


def received() -> int:
    """The signal that was noted for the program to look at; 0 if there was none."""
    return _first[0] if _first is not None and listening() else 0


def deadline(at: float) -> None:
    """When work is to be over, on the clock of :func:`time.monotonic`."""
    global _deadline
    _deadline = at


def over(since: float = -math.inf) -> bool:
    """Whether this process was told to stop, or its time is over.

    For work that takes long and can be taken back: ranks may differ.

    Parameters
    ----------
    since : when it was begun, on the clock of :func:`time.monotonic`. It may last :data:`PATIENCE`:
        most of it is done then, and not worth to be taken back
    """
    now = time.monotonic()
    return now >= since + PATIENCE and (received() != 0 or now >= _deadline)


def _note(number: int, frame: FrameType | None) -> None:
    global _first
    if _first is None:
        _first = number, time.monotonic()
    elif number in (signal.SIGTERM, signal.SIGINT) and time.monotonic() - _first[1] > REPEATED:
        # Somebody means it: at once, as if nobody had listened.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


# -- while nothing can be lost -----------------------------------------------------------------


class Vigil:
    """A thread that ends the program on a signal, or at a time, while nothing can be lost.

    Parameters
    ----------
    end : ends all ranks; called with the number of a signal, or 0 at the time
    lasting : as long as the program runs; then it does not wait for the program to look

    Attributes
    ----------
    deadline : on the clock of :func:`time.monotonic`
    """

    def __init__(self, end: Callable[[int], None], lasting: bool = False) -> None:
        self.deadline, self.lasting = float("inf"), lasting
        self._end, self._over = end, False
        self._lock = threading.Lock()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="mpiflow-vigil", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at the deadline anew."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def close(self) -> None:
        """From now on there is something to lose."""
        with self._lock:  # or the thread is ending the program at this moment
            self._over = True
        signal.set_wakeup_fd(-1)
        self.wake()
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    def _watch(self) -> None:
        number, until = 0, float("inf")
        while not self._over:
            until = min(until, self.deadline)
            left = max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self._read], [], [], min(left, 3600.0))
            if ready:
                for byte in os.read(self._read, 512):
                    if byte in NOTED and not number:
                        number = byte
                        until = time.monotonic() + (0.0 if self.lasting else GRACE)
            elif time.monotonic() >= until:
                with self._lock:
                    if not self._over:
                        self._end(number)
                return


def nothing_to_lose(end: Callable[[int], None], lasting: bool = False) -> None:
    """Call ``end`` with a signal that is noted from now on, :data:`GRACE` seconds later.

    Parameters
    ----------
    lasting : at once, and whatever the program does later
    """
    global _vigil
    if _before and _vigil is None:
        _vigil = Vigil(end, lasting)


def until(deadline: float) -> None:
    """While nothing can be lost, call its ``end`` at this time, of :func:`time.monotonic`."""
    if _vigil is not None:
        _vigil.deadline = deadline
        _vigil.wake()


def something_to_lose() -> None:
    """From now on a wish to stop waits for the program to look at it."""
    global _vigil
    if _vigil is not None and not _vigil.lasting:
        vigil, _vigil = _vigil, None
        vigil.close()


def name_of(number: int) -> str:
    """SIGTERM, for one; walltime for 0."""
    return signal.Signals(number).name if number else "walltime"
