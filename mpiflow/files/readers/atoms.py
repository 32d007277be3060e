"""Atoms on lattices: LAMMPS dumps and data, those of SPPARKS, extended XYZ, POSCAR and CIF.

Atoms in a plane are sites of a square lattice, and a column of numbers is what a site holds. All
others are the species of a bcc lattice (:mod:`mpiflow.files.structure`). The box of the first
frame, and where its sites lie, are those of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mpiflow.files.readers.frames import Axes, Frame, Wanted, one_of
from mpiflow.files.structure import TOLERANCE, VACANCY_NAMES, placed
from mpiflow.files.structure_files import (
    Atoms,
    Lines,
    Rows,
    Unfit,
    dump_box,
    dump_columns,
    dump_frames,
    dump_time,
    from_ase,
    from_dump,
    from_xyz,
    is_number,
    kind_of,
    opened,
    xyz_box,
    xyz_columns,
    xyz_comment,
    xyz_frames,
)
from mpiflow.systems.alloy import ELEMENTS

#: Columns that are no value of a site.
_PLACES = {"id", "mol", "element", "mass", "species", "pos"} | {
    form.format(axis)
    for axis in "xyz"
    for form in ("{}", "{}u", "{}s", "{}su", "i{}", "v{}", "f{}")
}
#: Atoms are in a plane if they differ along z by less than this part of the box.
_FLAT = 1e-6


@dataclass(frozen=True)
class _Table:
    """The columns of the atoms of a frame, each (n, width) words, and the box."""

    columns: Mapping[str, tuple[int, int]]
    words: Sequence[Sequence[str]]
    rows: Rows
    origin: np.ndarray
    box: np.ndarray
    positions: np.ndarray

    def numbers(self, name: str) -> np.ndarray:
        """A column as numbers, (n, width) float64."""
        first, width = self.columns[name]
        words = (row[first : first + width] for row in self.words)
        return self.rows.numbers(words, name).reshape(len(self.words), width)


@dataclass
class _Lattice:
    """The lattice of the first frame, which all have."""

    wanted: Wanted
    cells: tuple[int, ...] | None = None
    sides: tuple[int, int] | None = None
    elements: Sequence[str] = ()
    shift: np.ndarray = field(default_factory=lambda: np.zeros(2))

    def is_flat(self, z: np.ndarray, depth: float) -> bool:
        """Whether the atoms are sites of a square lattice."""
        if self.wanted.lattice == "auto":
            return bool(np.ptp(z) <= _FLAT * max(abs(depth), 1e-30)) if len(z) else True
        return self.wanted.lattice == "square"

    def on_bcc(self, atoms: Atoms, time: float | None, where: str) -> Frame:
        """A frame of species."""
        for name in ("variable", "component", "layer"):
            if (value := getattr(self.wanted, name)) is not None:
                what = f"no {name} {value!r} of a bcc lattice, which has species"
                raise Unfit(what, f"{where}: leave --{name} out, or use --lattice square.")
        self.elements = self.elements or self.wanted.elements or _elements_of(atoms.species)
        try:
            found = placed(atoms, self.elements, self.cells)
        except Unfit as error:
            raise Unfit(error.allowed, f"{where}: {error.remedy}") from None
        self.cells = tuple(side // 2 for side in found.grid.shape)
        return Frame(found, time, where, tuple(self.elements))

    def on_square(self, table: _Table, time: float | None, where: str) -> Frame:
        """A frame of the values of a column."""
        names = [name for name in table.columns if name not in _PLACES]
        known = names if self.wanted.variable is None else list(table.columns)
        values = table.numbers(one_of(known, self.wanted.variable, "column"))
        component, _ = Axes(values.shape[1]).place(self.wanted)
        out = np.empty(self._sides(table))
        points = self._points(table)
        flat = np.ravel_multi_index((points[:, 1], points[:, 0]), out.shape)
        order = np.argsort(flat, kind="stable")
        if (twice := np.flatnonzero(np.diff(flat[order]) == 0)).size:
            lines = " and ".join(str(table.rows.first + order[twice[0] + i]) for i in (0, 1))
            raise Unfit("one atom at each site", f"Those of lines {lines} share one.")
        out.reshape(-1)[flat] = values[:, component]
        return Frame(out, time, where)

    def _sides(self, table: _Table) -> tuple[int, int]:
        """(ny, nx) sites, as many as there are atoms."""
        count, (width, height) = len(table.words), table.box[:2]
        if self.sides is None and count and width > 0 and height > 0:
            nx = max(1, round(float(np.sqrt(count * width / height))))
            self.sides = count // nx, nx
        sides = self.sides or (0, 0)
        if sides[0] * sides[1] != count or not count or not (table.box[:2] > 0).all():
            what = f"{count} atoms in a box of {width:g} x {height:g}"
            before = f", where the first frame had {sides[1]} x {sides[0]}" if sides[0] else ""
            found = f"From line {table.rows.first} on it has {what}{before}."
            raise Unfit("an atom at each site of a square lattice that fills the box", found)
        return sides

    def _points(self, table: _Table) -> np.ndarray:
        """Numbers of the sites along x and y, (n, 2)."""
        sides = np.array(self._sides(table)[::-1])
        steps = (table.positions[:, :2] - table.origin[:2]) / table.box[:2] * sides
        if not self.shift.any():
            angle = np.angle(np.exp(2j * np.pi * steps).mean(axis=0)) / (2 * np.pi)
            self.shift = (angle + 0.25) % 1 - 0.25  # in the middle of a cell, or at its corner
        steps = steps - self.shift
        points = np.rint(steps)
        if (far := np.abs(steps - points).max(axis=1) > TOLERANCE).any():
            k = int(np.argmax(far))
            place = ", ".join(f"{value:.6g}" for value in table.positions[k, :2])
            allowed = f"atoms on the {sides[0]} x {sides[1]} sites of a square lattice"
            found = f"Line {table.rows.first + k}: ({place}) is none; {far.sum()} such in all."
            raise Unfit(allowed, found)
        return points.astype(np.int64) % sides


def _elements_of(words: Sequence[str]) -> tuple[str, ...]:
    """Names of the elements of the first frame where they are not our own."""
    names = [w for w in dict.fromkeys(words) if w.lower() not in VACANCY_NAMES]
    if any(name.isdecimal() for name in names) or {*names} <= {*ELEMENTS}:
        return ELEMENTS
    return tuple(sorted(names))


def read_atoms_of(path: Path, wanted: Wanted) -> Iterator[Frame]:
    """The frames of a file of atoms; only one is in memory at a time."""
    lattice = _Lattice(wanted)
    with opened(path) as (head, lines):
        kind = kind_of(head)
        if kind == "dump":
            for sections, title, rows in dump_frames(lines):
                yield _of_dump(lattice, sections, title, rows)
        elif kind == "xyz":
            for comment, rows in xyz_frames(lines):
                yield _of_xyz(lattice, comment, rows)
        else:
            yield _of_ase(lattice, lines, kind)


def _of_dump(lattice: _Lattice, sections: Mapping[str, Rows], title: str, rows: Rows) -> Frame:
    where, time = f"line {rows.first}", dump_time(sections)
    columns = dump_columns(title)
    low, box = dump_box(sections, "")
    at = {name: (i, 1) for i, name in enumerate(columns)}
    styles = [s for s in ("{}", "{}u", "{}s", "{}su") if {s.format(a) for a in "xy"} <= {*columns}]
    if not styles:
        raise Unfit("columns x y z, xu yu zu or xs ys zs", f"It has {title}.")
    known = [styles[0].format(a) for a in "xyz" if styles[0].format(a) in columns]
    words, places = rows.words(len(columns)), [columns.index(name) for name in known]
    positions = np.zeros((len(words), 3))  # of sites in a plane z may be left out
    given = rows.numbers(([row[i] for i in places] for row in words), "positions")
    positions[:, : len(places)] = given.reshape(len(words), -1)
    if "s" in styles[0]:
        positions = low + positions * box
    if lattice.is_flat(positions[:, 2], float(box.max())):
        table = _Table(at, words, rows, low, box, positions)
        return lattice.on_square(table, time, where)
    return lattice.on_bcc(from_dump(sections, title, rows), time, where)


def _of_xyz(lattice: _Lattice, comment: str, rows: Rows) -> Frame:
    where, about = f"line {rows.first}", xyz_comment(comment)
    time = float(about["time"]) if is_number(about.get("time", "")) else None
    origin, box = xyz_box(about, Rows([comment], rows.first - 1), "")
    starts, width = xyz_columns(about.get("properties", "species:S:1:pos:R:3"))
    ends = [*sorted(starts.values())[1:], width]
    at = {name: (start, ends[i] - start) for i, (name, start) in enumerate(starts.items())}
    words = rows.words(width)
    blank = np.zeros((len(words), 3))
    table = _Table(at, words, rows, origin, box, blank)
    positions = table.numbers("pos")
    if lattice.is_flat(positions[:, 2], float(box.max())):
        table = _Table(at, words, rows, origin, box, positions)
        return lattice.on_square(table, time, where)
    return lattice.on_bcc(from_xyz(comment, rows), time, where)


def _of_ase(lattice: _Lattice, lines: Lines, kind: str) -> Frame:
    """The one frame of a file that ASE reads; its types or elements are its only column."""
    atoms = from_ase("".join(lines), kind, -1)
    if lattice.is_flat(atoms.positions[:, 2], float(atoms.box.max())):
        rows = Rows([" ".join(word) for word in atoms.species], 1)
        words = [[word] for word in atoms.species]
        box = {"type": (0, 1)}, words, rows, atoms.origin, atoms.box, atoms.positions
        return lattice.on_square(_Table(*box), None, "frame 0")
    return lattice.on_bcc(atoms, None, "frame 0")
