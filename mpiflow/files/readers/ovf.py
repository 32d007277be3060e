"""OVF 1.0 and 2.0, the vector fields of OOMMF, mumax3 and ubermag: text, binary 4 and binary 8.

The format is that of the OOMMF user's guide: a header of ``# name: value`` lines, then the values
of all nodes with x fastest, then y, then z. Binary data begin with a number that is known, by which
the order of the bytes is known, too: OVF 1.0 has the highest first, 2.0 the lowest, and programs
have mixed them up. A file may have several segments, each of which is a frame.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from mpiflow.files.readers.frames import Axes, Frame, Wanted
from mpiflow.files.structure_files import Unfit, is_number

MAGIC = b"# OOMMF"
#: The numbers that binary data begin with, by the bytes of a value.
CHECKS = {4: 1234567.0, 8: 123456789012345.0}
_TIME = re.compile(r"total simulation time:\s*(\S+)", re.IGNORECASE)


def read_ovf(path: Path, wanted: Wanted) -> Iterator[Frame]:
    """The frames of a file: its segments."""
    if wanted.variable is not None:
        raise Unfit(f"a variable {wanted.variable!r}", "OVF has components: use --component.")
    with path.open("rb") as file:
        lines = _Lines(file)
        first = lines.next().lower().replace(" ", "")
        version = 2 if "ovf2" in first else 1
        if not any(word in first for word in ("ovf2", "meshv1", "ovf1")):
            raise Unfit("OVF 1.0 or 2.0", f"Line 1 has {first[:40].strip()!r}.")
        count = "1"
        while header := _header(lines):
            count = header.get("segmentcount", count)
            yield _segment(lines, header, version, wanted)
    if lines.segments < (int(count) if count.isdecimal() else 1):
        found = f"It ends at line {lines.number} after {lines.segments} of {count} segments."
        raise Unfit("a whole file", found)


class _Lines:
    """Lines of the text between the data, with the number of the last one."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.number, self.segments = file, 0, 0

    def next(self) -> str:
        """The next line; empty at the end of the file."""
        line = self.file.readline(2**16)
        self.number += bool(line)
        return line.decode("utf-8", errors="replace")


def _header(lines: _Lines) -> dict[str, str]:
    """The fields of the next header in small letters, up to the line where data begin."""
    about: dict[str, str] = {}
    while line := lines.next():
        name, colon, value = line.strip().lstrip("#").partition(":")
        if not line.startswith("#") or line.startswith("##") or not colon:
            continue
        name = re.sub(r"[\s_]", "", name).lower()
        if name == "begin" and value.strip().lower().startswith("data"):
            return {**about, "data": value.strip().lower()}
        if name == "desc" and (found := _TIME.search(value)):
            about["time"] = found[1]
        elif name not in ("begin", "end", "desc", "title"):
            about[name] = value.strip()
    if about.keys() - {"segmentcount", "oommf"} and not lines.segments:
        raise Unfit("a whole file", f"It ends at line {lines.number}, before its data.")
    return {}


def _segment(lines: _Lines, about: Mapping[str, str], version: int, wanted: Wanted) -> Frame:
    lines.segments += 1
    where = f"segment {lines.segments}, line {lines.number}"
    if about.get("meshtype", "rectangular").lower() != "rectangular":
        allowed = "a rectangular mesh"
        raise Unfit(allowed, f"{where}: it is {about['meshtype']}. Sample it on a grid first.")
    nx, ny, nz = (_whole(about, f"{axis}nodes", where) for axis in "xyz")
    parts = _whole(about, "valuedim", where) if version == 2 else 3
    labels = about.get("valuelabels", "").split() if version == 2 else ["x", "y", "z"]
    axes = Axes(parts, nz, labels if len(labels) == parts else ())
    component, layer = axes.place(wanted)
    size = int(about["data"].split()[-1]) if about["data"].split()[-1].isdecimal() else 0
    binary = about["data"].startswith("data binary") and size in CHECKS
    numbers = nx * ny * nz * parts
    _require_size(lines, *((numbers + 1, size) if binary else (numbers, 2)))
    if binary:
        data = _binary(lines, size, numbers, version)
    elif about["data"].startswith("data text"):
        data = _text(lines, nx * ny * nz, parts)
    else:
        raise Unfit("data text, binary 4 or binary 8", f"{where}: it has {about['data']!r}.")
    _require_end(lines, f"{nx} x {ny} x {nz} nodes of {parts} numbers")
    values = data.reshape(nz, ny, nx, parts)[layer, ..., component]
    if version == 1 and is_number(unit := about.get("valuemultiplier", "1")) and float(unit) != 1:
        values = values * float(unit)
    time = about.get("time", "")
    return Frame(values, float(time) if is_number(time) else None, where)


def _require_size(lines: _Lines, numbers: int, size: int) -> None:
    """The file is long enough for so many numbers of so many bytes or more: before memory is."""
    place = lines.file.tell()
    end = lines.file.seek(0, os.SEEK_END)
    lines.file.seek(place)
    if (missing := numbers * size - (end - place)) > 0:
        found = f"It ends at byte {end}, {missing} bytes or more too early."
        raise Unfit("a whole file", found)


def _require_end(lines: _Lines, what: str) -> None:
    """Behind the data there is a comment, or nothing: else they were not what the header says."""
    place = lines.file.tell()
    behind = lines.file.read(64).lstrip()
    lines.file.seek(place)
    if behind and not behind.startswith(b"#"):
        raise Unfit(what, f"At byte {place}, behind them, there are more: {behind[:16]!r}.")


def _whole(about: Mapping[str, str], name: str, where: str) -> int:
    text = about.get(name, "")
    if not text.isdecimal() or int(text) < 1:
        raise Unfit(f"a whole number above 0 as {name}", f"{where}: it has {text or 'none'!r}.")
    return int(text)


def _binary(lines: _Lines, size: int, number: int, version: int) -> np.ndarray:
    """The values (number,) behind the check value, in the order of bytes that it has."""
    start = lines.file.tell()
    data = lines.file.read((number + 1) * size)
    for order in "<>" if version == 2 else "><":
        values = np.frombuffer(data, f"{order}f{size}")
        if values[0] == CHECKS[size]:
            return values[1:]
    found = f"At byte {start} it has {values[0]:.9g}, or {values[:1].byteswap()[0]:.9g}."
    allowed = f"the check value {CHECKS[size]:.0f} where binary data begin"
    raise Unfit(allowed, f"{found} It was damaged, perhaps as text: copy it as a binary file.")


def _text(lines: _Lines, rows: int, parts: int) -> np.ndarray:
    """The values (rows, parts) of lines of numbers."""
    out, filled = np.empty((rows, parts)), 0
    while filled < rows:
        line = lines.next()
        words = line.split()
        if not line or (line.startswith("#") and not line.startswith("##")):
            found = f"Line {lines.number}: data end after {filled} of {rows} nodes."
            raise Unfit("a whole file", found)
        if not words or line.startswith("##"):
            continue
        if len(words) != parts or not all(map(is_number, words)):
            found = f"Line {lines.number} has {' '.join(islice(words, 6))!r}."
            raise Unfit(f"{parts} numbers for each node", found)
        out[filled] = [float(word) for word in words]
        filled += 1
    return out
