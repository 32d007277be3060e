"""How long this process has compiled kernels: no part of the work, and said when it is a wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds of compiling after which a user wants to know.
A_WAIT = 1.0


class Clock:
    """Of all compilations of this process, which :mod:`mpiflow.core.kernel_cache` reports.

    Attributes
    ----------
    seconds : so far, without the one that goes on
    functions : how many were compiled, kernels and what they call
    """

    def __init__(self) -> None:
        self.seconds, self.functions = 0.0, 0
        self._say: Callable[[], object] | None = None
        self._depth, self._start = 0, 0.0

    @property
    def running(self) -> bool:
        """Whether something is being compiled just now."""
        return self._depth > 0

    def begin(self) -> None:
        """A function is compiled, perhaps because one that is being compiled calls it."""
        if self._depth == 0:
            self._start = time.monotonic()
        self._depth += 1

    def end(self) -> None:
        self._depth, self.functions = self._depth - 1, self.functions + 1
        if self._depth == 0:
            self.seconds += time.monotonic() - self._start
            if self.seconds > A_WAIT and self._say is not None:
                self._say()
                self._say = None

    @contextmanager
    def said(self, say: Callable[[], object] | None) -> Iterator[None]:
        """In the block ``say`` is called once, as soon as compiling has become a wait."""
        before, self._say = self._say, say
        try:
            yield
        finally:
            self._say = before


CLOCK = Clock()
