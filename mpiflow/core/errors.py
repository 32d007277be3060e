"""The one exception users see: what is wrong, what is allowed, what to do."""

from __future__ import annotations


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
