"""The atoms in files of other programs, as they stand: see :mod:`mpiflow.files.structure`.

LAMMPS dumps and extended XYZ are read here, POSCAR, LAMMPS data and CIF by ASE. Any of them may
be compressed with gzip. :func:`mpiflow.files.structure.read_structure` puts the atoms on a lattice,
:mod:`mpiflow.files.readers.atoms` reads all frames of a file.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, TypeVar

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


class Lines:
    """The lines of a file, with the number of the last one that was read."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.number = file, 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            line = next(self.file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            found = f"After line {self.number} gzip says: {error}"
            raise Unfit("a whole compressed file", f"{found.rstrip('.')}.") from None
        self.number += 1
        return line


@dataclass(frozen=True)
class Rows:
    """Rows of words, and the line of the file that the first one is on."""

    lines: list[str]
    first: int

    def words(self, width: int) -> list[list[str]]:
        """The words of each row."""
        table = [line.split() for line in self.lines]
        for number, words in enumerate(table, self.first):
            if len(words) != width:
                found = f"Line {number} has {len(words)}: {' '.join(words)[:60]!r}."
                raise Unfit(f"{width} words in each row of atoms", found)
        return table

    def numbers(self, table: Iterable[Sequence[str]], what: str) -> np.ndarray:
        """Words of each row as (n, m) float64."""
        rows = list(table)
        try:
            values = np.array(rows, np.float64)
        except ValueError:
            values = np.full((len(rows), 1), np.nan)
            for k, row in enumerate(rows):
                values[k] = 0.0 if all(map(is_number, row)) else np.nan
        wrong = ~np.isfinite(values).reshape(len(rows), -1).all(axis=1)
        if wrong.any():
            k = int(np.argmax(wrong))
            raise Unfit(f"finite numbers as {what}", f"Line {self.first + k} has {rows[k]}.")
        return values


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[str, Lines]]:
    """The first 60 lines of a file, unpacked, as one text, and all of its lines."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    # utf-8-sig: some editors of text begin with a mark.
    how = {"mode": "rt", "encoding": "utf-8-sig"}
    with gzip.open(path, **how) if packed else path.open(**how) as file:  # type: ignore[call-overload]
        head = "".join(islice(Lines(file), 60))
        file.seek(0)
        yield head, Lines(file)


def kind_of(head: str) -> str:
    """The format of a file that begins like this: dump, xyz, or ASE's name of it; or Unfit."""
    if head.startswith("ITEM:"):
        return "dump"
    if head.partition("\n")[0].strip().isdecimal():
        return "xyz"
    if kind := ase_kind(head):
        return kind
    found = f"It begins with {head.partition(chr(10))[0].strip()[:40]!r}."
    allowed = "a LAMMPS text dump or an extended XYZ file, or POSCAR, LAMMPS data or CIF"
    raise Unfit(allowed, found)


def read_atoms(path: Path, frame: int) -> Atoms:
    """The atoms of a frame of a file of any format, negative from the end, or Unfit."""
    with opened(path) as (head, lines):
        kind = kind_of(head)
        if kind == "dump":
            return from_dump(*_chosen(dump_frames(lines), frame))
        if kind == "xyz":
            return from_xyz(*_chosen(xyz_frames(lines), frame))
        return from_ase("".join(lines), kind, frame)


def _chosen(frames: Iterator[_T], number: int) -> _T:
    if number >= 0:
        chosen = next(islice(frames, number, None), None)
    else:
        last = deque(frames, maxlen=-number)
        chosen = last[0] if len(last) == -number else None
    if chosen is None:
        raise Unfit(f"a file with a frame {number}", "It has fewer frames.")
    return chosen


def _rows(lines: Lines, number: int, what: str) -> Rows:
    first = lines.number + 1
    rows = Rows(list(islice(lines, number)), first)
    if len(rows.lines) < number:
        found = f"It ends at line {lines.number}, after {len(rows.lines)} of {number} {what}."
        raise Unfit("a whole file", found)
    return rows


def _whole_number(text: str, what: str, line: int = 0) -> int:
    """A whole number, also one that is written as 1.0."""
    if not is_number(text) or not float(text).is_integer() or float(text) < 0:
        where = f"Line {line} has" if line else "It has"
        raise Unfit(f"a whole number as {what}", f"{where} {text.strip()[:40]!r}.")
    return int(float(text))


def kind_word(word: str) -> str:
    """A type as a word: some programs write 1.0 for 1."""
    return str(int(float(word))) if re.fullmatch(r"\d+\.0*", word) else word


def _straight(vectors: np.ndarray, what: str) -> np.ndarray:
    """The edges (3,) of a box along x, y and z, from its vectors (3, 3)."""
    box = np.diag(vectors)
    if np.abs(vectors - np.diag(box)).max() > 1e-6 * np.abs(box).max(initial=0.0):
        found = f"It is tilted or turned: {what} {vectors.round(6).tolist()}."
        raise Unfit("an orthogonal box with edges along x, y and z", found)
    return box


# -- LAMMPS dumps ------------------------------------------------------------------------------

_Dump = tuple[Mapping[str, Rows], str, Rows]


def dump_frames(lines: Lines) -> Iterator[_Dump]:
    """For each frame its sections, with their titles' arguments, and the rows of the atoms."""
    sections: dict[str, Rows] = {}
    for line in lines:
        title = line.removeprefix("ITEM:").strip()
        if line.startswith("ITEM: ATOMS"):
            count = sections.get("NUMBER OF ATOMS", Rows([""], lines.number))
            number = _whole_number(count.lines[0], "ITEM: NUMBER OF ATOMS", count.first)
            yield sections, title, _rows(lines, number, "atoms")
            sections = {}
        elif line.startswith("ITEM: BOX BOUNDS"):
            bounds = _rows(lines, 3, "bounds of the box")
            sections["BOX BOUNDS"] = Rows([title, *bounds.lines], bounds.first - 1)
        elif line.startswith("ITEM:"):
            sections[title] = _rows(lines, 1, f"lines of {title}")
        elif line.strip():
            found = f"Line {lines.number} has {line.strip()[:40]!r} where a section begins."
            raise Unfit("a LAMMPS text dump", found)
    if sections:
        found = f"It ends at line {lines.number}, before the atoms of its last frame."
        raise Unfit("a whole file", found)


def dump_box(sections: Mapping[str, Rows], periodic: str = "xyz") -> tuple[np.ndarray, np.ndarray]:
    """Lower corner and edges of the box of a frame, which is ``periodic`` along these axes."""
    none = Rows([""], 0)
    flags, *bounds = sections.get("BOX BOUNDS", none).lines
    edges = [word for word in flags.split() if re.fullmatch(r"[pfsm]{2}", word)]
    open_axes = [a for a, e in zip("xyz", edges, strict=False) if e != "pp" and a in periodic]
    if open_axes:
        why = f"It has {' '.join(edges)}: {' and '.join(open_axes)} not periodic."
        raise Unfit("a box that is periodic along all axes, pp pp pp", why)
    rows = Rows(bounds, sections.get("BOX BOUNDS", none).first + 1)
    widths = {len(row.split()) for row in bounds}
    wanted = 4 if "abc" in flags else 3 if "xy" in flags else 2
    if len(bounds) != 3 or widths != {wanted}:
        raise Unfit("a lower and an upper bound of the box along three axes", "It has others.")
    values = rows.numbers((row.split() for row in bounds), "bounds of the box")
    if "abc" in flags:
        return values[:, 3], _straight(values[:, :3], "vectors")
    low, high = values[:, 0], values[:, 1]
    tilts = values[:, 2] if values.shape[1] > 2 else np.zeros(3)
    if np.abs(tilts).max() > 1e-6 * np.abs(high - low).max():
        found = f"It is triclinic: tilts {tilts.tolist()}."
        raise Unfit("an orthogonal box with edges along x, y and z", found)
    return low, high - low


def dump_columns(title: str) -> list[str]:
    """Names of the columns of the atoms; old programs name none."""
    return title.split()[1:] or ["id", "type", "x", "y", "z"]


def dump_time(sections: Mapping[str, Rows]) -> float:
    """The time of a frame: ITEM: TIME, what SPPARKS writes behind its step, or else the step."""
    for title in ("TIME", "TIMESTEP"):
        if rows := sections.get(title):
            words = rows.lines[0].split()[-1:]
            return float(rows.numbers([words or [""]], f"ITEM: {title}")[0, 0])
    raise Unfit("ITEM: TIMESTEP or ITEM: TIME in each frame", "It has none.")


def from_dump(sections: Mapping[str, Rows], title: str, rows: Rows) -> Atoms:
    low, box = dump_box(sections)
    columns = dump_columns(title)
    table = rows.words(len(columns))
    kind = "element" if "element" in columns else "type"
    styles = [s for s in ("{}", "{}u", "{}s", "{}su") if {s.format(a) for a in "xyz"} <= {*columns}]
    if kind not in columns or not styles:
        raise Unfit("columns type or element, and x y z, xu yu zu or xs ys zs", f"It has {title}.")
    at = [columns.index(styles[0].format(axis)) for axis in "xyz"]
    positions = rows.numbers(([row[i] for i in at] for row in table), "positions").reshape(-1, 3)
    if "s" in styles[0]:
        positions = low + positions * box
    named = columns.index("id") if "id" in columns else None
    names = [
        kind_word(row[named]) if named is not None else str(i) for i, row in enumerate(table, 1)
    ]
    word = columns.index(kind)
    return Atoms(names, [kind_word(row[word]) for row in table], positions, low, box)


# -- extended XYZ ------------------------------------------------------------------------------


def xyz_frames(lines: Lines) -> Iterator[tuple[str, Rows]]:
    """For each frame its comment and the rows of the atoms."""
    for line in lines:
        if line.strip():
            number = _whole_number(line, "the number of atoms", lines.number)
            (comment,) = _rows(lines, 1, "comments").lines
            yield comment, _rows(lines, number, "atoms")


def xyz_comment(comment: str) -> dict[str, str]:
    """What the comment of a frame says, by names in small letters."""
    found = re.findall(r"""([\w-]+)\s*=\s*(?:"([^"]*)"|\{([^}]*)\}|(\S+))""", comment)
    return {key.lower(): "".join(values) for key, *values in found}


def xyz_box(
    about: Mapping[str, str], here: Rows, periodic: str = "xyz"
) -> tuple[np.ndarray, np.ndarray]:
    """Origin and edges of the box of a frame, which is ``periodic`` along these axes."""
    vectors = here.numbers([about.get("lattice", "").split()], "Lattice").reshape(-1)
    if vectors.size != 9:
        raise Unfit('Lattice="..." with nine numbers in the comment', "It has none such.")
    box = _straight(vectors.reshape(3, 3), "Lattice")
    pbc = about.get("pbc", "T").upper().split()
    open_axes = [a for a, p in zip("xyz", pbc, strict=False) if p[0] not in "T1" and a in periodic]
    if open_axes:
        why = f"It has pbc={about['pbc']!r}: {' and '.join(open_axes)} not periodic."
        raise Unfit("a box that is periodic along all axes", why)
    return here.numbers([about.get("origin", "0 0 0").split()], "Origin").reshape(-1), box


def from_xyz(comment: str, rows: Rows) -> Atoms:
    about = xyz_comment(comment)
    origin, box = xyz_box(about, Rows([comment], rows.first - 1))
    at, width = xyz_columns(about.get("properties", "species:S:1:pos:R:3"))
    if "species" not in at:
        allowed = "Properties with species:S:1 and pos:R:3"
        raise Unfit(allowed, f"It has {', '.join(at)}.")
    table = rows.words(width)
    place = at["pos"]
    positions = rows.numbers((row[place : place + 3] for row in table), "positions").reshape(-1, 3)
    names = [str(i) for i in range(1, len(table) + 1)]
    species = [kind_word(row[at["species"]]) for row in table]
    return Atoms(names, species, positions, origin, box)


def xyz_columns(properties: str) -> tuple[dict[str, int], int]:
    """Where each property begins in a row, and the words of a row."""
    parts, at, width = properties.split(":"), {}, 0
    triples = list(zip(parts[0::3], parts[1::3], parts[2::3], strict=False))
    for name, _, number in triples:
        at[name.lower()] = width
        width += _whole_number(number, f"the width of property {name}")
    if len(parts) % 3 or ("pos", "R", "3") not in triples or _odd_species(triples):
        raise Unfit("Properties with species:S:1 and pos:R:3", f"It has {properties!r}.")
    return at, width


def _odd_species(triples: Iterable[tuple[str, str, str]]) -> bool:
    return any(one[0] == "species" and one[1:] != ("S", "1") for one in triples)


# -- formats that ASE reads --------------------------------------------------------------------

_NAMES = {"cif": "CIF", "vasp": "POSCAR", "lammps-data": "LAMMPS data"}


def ase_kind(head: str) -> str | None:
    """ASE's name of the format of a file that begins like this, None for another."""
    lines = head.splitlines()
    if re.search(r"^\s*_cell_length_a\b", head, re.MULTILINE) or head.lstrip().startswith("data_"):
        return "cif"
    if re.search(r"^\s*\d+\s+atoms\s*$", head, re.MULTILINE):
        return "lammps-data"
    scale = len(lines) > 4 and all(map(is_number, lines[1].split())) and lines[1].strip()
    if scale and all(
        len(line.split()) >= 3 and all(map(is_number, line.split()[:3])) for line in lines[2:5]
    ):
        return "vasp"
    return None


def from_ase(text: str, kind: str, frame: int) -> Atoms:
    try:
        from ase.io import read
    except ImportError:
        allowed = f"a LAMMPS dump or extended XYZ file, without ASE, which reads {_NAMES[kind]}"
        raise Unfit(allowed, "Install mpiflow[structures], or convert the file.") from None
    if kind != "cif" and frame not in (0, -1):
        raise Unfit(f"a file with a frame {frame}", f"A {_NAMES[kind]} file has one.")
    try:
        atoms: Any = read(io.StringIO(text), index=frame, format=kind)
        vectors, low = np.array(atoms.cell), np.array(atoms.get_celldisp()).reshape(3)
        species = list(map(str, atoms.get_chemical_symbols()))
        if kind == "lammps-data" and not re.search(r"^\s*Masses", text, re.MULTILINE):
            species = [str(number) for number in atoms.arrays["type"]]
    except Exception as error:  # whatever a parser raises at a broken file
        why = f"ASE said: {type(error).__name__} {error}"
        raise Unfit(f"a readable {_NAMES[kind]} file", f"{why.rstrip('.')}.") from None
    for site in (atoms.info.get("occupancy") or {}).values():
        if len(site) > 1 or abs(sum(site.values()) - 1.0) > 1e-3:
            raise Unfit("one whole atom at each site", f"It has {site} at one.")
    names = [str(i) for i in range(1, len(species) + 1)]
    return Atoms(names, species, np.array(atoms.positions), low, _straight(vectors, "cell"))
