"""Standard output and error that cannot end a run: a full disk, a closed pipe or no stream at all.

What cannot be written is dropped, from then on for good: results are in files, not in a log.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import Any


class Forgiving:
    """A text stream that goes mute where writing fails."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except UnicodeEncodeError:  # a name that the terminal's encoding does not have
            encoding = self._stream.encoding or "ascii"
            plain = text.encode(encoding, "backslashreplace").decode(encoding)
            return int(self._stream.write(plain))
        except (OSError, ValueError):
            self._mute()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._mute()

    def _mute(self) -> None:
        """The descriptor, too: the interpreter flushes what is left when it ends."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def forgive() -> None:
    """Let this program's standard streams go mute where they cannot be written.

    A descriptor that the parent has closed is opened on the null device: the next file that is
    opened, perhaps that of a run, would get its number, and with it all messages.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif not isinstance(stream, Forgiving):
            setattr(sys, name, Forgiving(stream))


def plain_warnings() -> None:
    """Let this program show each warning for its users as one line, like its other messages.

    Warnings for developers, such as deprecations, stay as Python shows them.
    """
    warnings.formatwarning = _line


_AS_EVER = warnings.formatwarning


def _line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int,
    line: str | None = None,
) -> str:  # fmt: skip
    if issubclass(category, UserWarning):
        return f"mpiflow: warning: {message}\n"
    return _AS_EVER(message, category, filename, lineno, line)
