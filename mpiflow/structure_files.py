"""The atoms in text files of other programs: LAMMPS dumps and extended XYZ, as they stand.

:func:`mpiflow.structure.read_structure` puts them on a lattice.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TextIO, TypeVar

import numpy as np

_T = TypeVar("_T")


class Unfit(Exception):
    """What is wrong with a file; becomes an InputError that names it."""

    def __init__(self, allowed: str, remedy: str, atoms: int = 0) -> None:
        self.allowed, self.remedy, self.atoms = allowed, remedy, atoms
        super().__init__(remedy)


@dataclass(frozen=True)
class Atoms:
    """The atoms of one frame: names and words of their species (n,), positions (n, 3)."""

    names: Sequence[str]
    species: Sequence[str]
    positions: np.ndarray
    origin: np.ndarray
    box: np.ndarray


def read_atoms(file: TextIO, frame: int) -> Atoms:
    """The atoms of a frame of a file of either format, negative from the end, or Unfit."""
    start = file.readline()
    file.seek(0)
    if start.startswith("ITEM:"):
        return _from_dump(*_chosen(_dump_frames(file), frame))
    if start.strip().isdecimal():
        return _from_xyz(*_chosen(_xyz_frames(file), frame))
    found = f"It begins with {start.strip()[:40]!r}."
    raise Unfit("a LAMMPS text dump or an extended XYZ file", found)


def _chosen(frames: Iterator[_T], number: int) -> _T:
    if number >= 0:
        chosen = next(islice(frames, number, None), None)
    else:
        last = deque(frames, maxlen=-number)
        chosen = last[0] if len(last) == -number else None
    if chosen is None:
        raise Unfit(f"a file with a frame {number}", "It has fewer frames.")
    return chosen


def _rows(file: Iterator[str], number: int, what: str) -> list[str]:
    rows = list(islice(file, number))
    if len(rows) < number:
        raise Unfit("a whole file", f"It ends after {len(rows)} of {number} {what}.")
    return rows


def _whole_number(text: str, what: str) -> int:
    if not text.strip().isdecimal():
        raise Unfit(f"a whole number as {what}", f"It has {text.strip()[:40]!r}.")
    return int(text)


def _numbers(words: Iterable[Sequence[str]], what: str) -> np.ndarray:
    try:
        values = np.array(list(words), np.float64)
    except ValueError as error:
        raise Unfit(f"numbers as {what}", f"Reading said: {error}.") from None
    if not np.isfinite(values).all():
        raise Unfit(f"finite numbers as {what}", "It has others.")
    return values


def _columns(rows: Sequence[str], width: int) -> list[list[str]]:
    """The words of each row."""
    table = [row.split() for row in rows]
    for number, words in enumerate(table, 1):
        if len(words) != width:
            found = (
                f"Row {number} of the atoms has {len(words)}: {rows[number - 1].strip()[:60]!r}."
            )
            raise Unfit(f"{width} words in each row of atoms", found)
    return table


_Dump = tuple[Mapping[str, list[str]], str, list[str]]


def _dump_frames(file: TextIO) -> Iterator[_Dump]:
    """For each frame its sections, with their titles' arguments, and the rows of the atoms."""
    sections: dict[str, list[str]] = {}
    for line in file:
        title = line.removeprefix("ITEM:").strip()
        if line.startswith("ITEM: ATOMS"):
            number = sections.get("NUMBER OF ATOMS", [""])[0]
            atoms = _rows(file, _whole_number(number, "ITEM: NUMBER OF ATOMS"), "atoms")
            yield sections, title, atoms
            sections = {}
        elif line.startswith("ITEM: BOX BOUNDS"):
            sections["BOX BOUNDS"] = [title, *_rows(file, 3, "bounds of the box")]
        elif line.startswith("ITEM:"):
            sections[title] = _rows(file, 1, f"lines of {title}")
        elif line.strip():
            raise Unfit("a LAMMPS text dump", f"A section begins with {line.strip()[:40]!r}.")
    if sections:
        raise Unfit("a whole file", "It ends before the atoms of its last frame.")


def _from_dump(sections: Mapping[str, list[str]], title: str, rows: list[str]) -> Atoms:
    flags, *bounds = sections.get("BOX BOUNDS", [""])
    if any(word in flags for word in ("xy", "abc")):
        raise Unfit("an orthogonal box", f"It has {flags!r}.")
    if set(flags.split()[2:]) - {"pp"}:
        raise Unfit("a box that is periodic along all axes, pp pp pp", f"It has {flags!r}.")
    if len(bounds) != 3 or any(len(row.split()) != 2 for row in bounds):
        raise Unfit("a lower and an upper bound of the box along three axes", "It has others.")
    low, high = _numbers((row.split() for row in bounds), "bounds of the box").T
    columns = title.split()[1:]
    table = _columns(rows, len(columns))
    kind = "element" if "element" in columns else "type"
    styles = [s for s in ("{}", "{}u", "{}s", "{}su") if {s.format(a) for a in "xyz"} <= {*columns}]
    if kind not in columns or not styles:
        raise Unfit("columns type or element, and x y z, xu yu zu or xs ys zs", f"It has {title}.")
    at = [columns.index(styles[0].format(axis)) for axis in "xyz"]
    positions = _numbers(([row[i] for i in at] for row in table), "positions").reshape(-1, 3)
    if "s" in styles[0]:
        positions = low + positions * (high - low)
    named = columns.index("id") if "id" in columns else None
    names = [row[named] if named is not None else str(i) for i, row in enumerate(table, 1)]
    word = columns.index(kind)
    return Atoms(names, [row[word] for row in table], positions, low, high - low)


def _xyz_frames(file: TextIO) -> Iterator[tuple[str, list[str]]]:
    """For each frame its comment and the rows of the atoms."""
    for line in file:
        if line.strip():
            number = _whole_number(line, "the number of atoms")
            (comment,) = _rows(file, 1, "comments")
            yield comment, _rows(file, number, "atoms")


def _from_xyz(comment: str, rows: list[str]) -> Atoms:
    found = re.findall(r"""([\w-]+)\s*=\s*(?:"([^"]*)"|\{([^}]*)\}|(\S+))""", comment)
    about = {key.lower(): "".join(values) for key, *values in found}
    vectors = _numbers([about.get("lattice", "").split()], "Lattice of the comment").reshape(-1)
    if vectors.size != 9:
        raise Unfit('Lattice="..." with nine numbers in the comment', "It has none such.")
    box = np.diag(vectors.reshape(3, 3))
    if np.abs(vectors.reshape(3, 3) - np.diag(box)).max() > 1e-6 * np.abs(box).max():
        raise Unfit("an orthogonal box along the axes", f"It has Lattice={vectors.tolist()}.")
    if set(about.get("pbc", "T").upper().split()) - {"T", "TRUE", "1"}:
        raise Unfit("a box that is periodic along all axes", f"It has pbc={about['pbc']!r}.")
    at, width = _xyz_columns(about.get("properties", "species:S:1:pos:R:3"))
    table = _columns(rows, width)
    place = at["pos"]
    positions = _numbers((row[place : place + 3] for row in table), "positions").reshape(-1, 3)
    origin = _numbers([about.get("origin", "0 0 0").split()], "Origin of the comment").reshape(-1)
    names = [str(i) for i in range(1, len(table) + 1)]
    return Atoms(names, [row[at["species"]] for row in table], positions, origin, box)


def _xyz_columns(properties: str) -> tuple[dict[str, int], int]:
    """Where each property begins in a row, and the words of a row."""
    parts, at, width = properties.split(":"), {}, 0
    triples = list(zip(parts[0::3], parts[1::3], parts[2::3], strict=False))
    for name, _, number in triples:
        at[name.lower()] = width
        width += _whole_number(number, f"the width of property {name}")
    if len(parts) % 3 or not {("species", "S", "1"), ("pos", "R", "3")} <= set(triples):
        raise Unfit("Properties with species:S:1 and pos:R:3", f"It has {properties!r}.")
    return at, width
