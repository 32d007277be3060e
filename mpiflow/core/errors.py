"""The one exception users see: what is wrong, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value that cannot be used.

    Parameters
    ----------
    name, value : the option or argument, and what was given
    allowed : what would have been accepted
    remedy : the next thing to try
    """

    def __init__(self, name: str, value: object, allowed: str, remedy: str) -> None:
        self.name, self.value, self.allowed, self.remedy = name, value, allowed, remedy
        super().__init__(f"{name}={value!r}: allowed is {allowed}. {remedy}")

    def __reduce__(self) -> tuple[type, tuple[str, object, str, str]]:
        # An exception with four arguments does not unpickle by default, and
        # errors travel between processes.
        return type(self), (self.name, self.value, self.allowed, self.remedy)


def place_of(error: Exception) -> str:
    """' in FILE:LINE' of the function whose call raised an error, where it is caught; or ''."""
    place = error.__traceback__
    if place is None or place.tb_next is None:
        return ""
    return f" in {place.tb_next.tb_frame.f_code.co_filename}:{place.tb_next.tb_lineno}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'Did you mean ...?', or nothing when no known word is close."""
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), names, n=1)
    match = [names[name] for name in found]
    return f"Did you mean {match[0]}?" if match else ""
