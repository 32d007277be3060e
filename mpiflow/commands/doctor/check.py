"""What a check of the doctor finds, and what it works on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

OK, WARNING, FAIL = "ok", "warning", "FAIL"

#: Seconds after which a check is taken to hang, and the program ends.
PATIENCE = 120.0


@dataclass(frozen=True)
class Check:
    """What a check found.

    Attributes
    ----------
    state : ``ok``, ``warning`` or ``FAIL``
    found : in words
    remedy : what to do, "" if nothing
    """

    name: str
    state: str
    found: str
    remedy: str = ""

    def line(self) -> str:
        text = f"{self.state:8} {self.name:12} {self.found}"
        return f"{text}\n{'':21} -> {self.remedy}" if self.remedy else text


@dataclass
class Site:
    """What checks work on.

    Attributes
    ----------
    comm : all ranks
    folder : to write to
    device : cpu or cuda, what runs are meant for
    scratch : a new folder in it that all ranks see, None if there is none
    """

    comm: Any
    folder: Path
    device: str = "cpu"
    scratch: Path | None = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that does what one rank must do."""
        return bool(self.comm.rank == 0)


def numbers(ranks: list[int]) -> str:
    few = ", ".join(map(str, ranks[:4])) + (", ..." if len(ranks) > 4 else "")
    return f"rank{'s' * (len(ranks) > 1)} {few}"


def count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"
