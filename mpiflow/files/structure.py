r"""Snapshots of bcc alloys as text files that other programs read and write.

=============  ======================================================================
LAMMPS dump    ``ITEM: ATOMS id type [element] x y z`` (or xs ys zs, xu yu zu); OVITO, ASE
extended XYZ   ``Lattice="..." Properties=species:S:1:pos:R:3``; OVITO, ASE
only read      POSCAR, LAMMPS data and CIF, by ASE (``mpiflow[structures]``)
=============  ======================================================================

A grid is (2 Lx, 2 Ly, 2 Lz) int8 over the points of :mod:`mpiflow.systems.alloy`; the sites
of a file of a run are those of the grid in C order, (2 Lx Ly Lz,). Atoms sit on the
undistorted lattice; a site that no atom of a file takes is a vacancy. Vacancies that a file
does list are called :data:`VACANCY_NAME`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.files.storage import whole_file
from mpiflow.files.structure_files import Atoms, Unfit, read_atoms
from mpiflow.systems.alloy import ELEMENTS, LATTICE_CONSTANT, NOT_A_SITE, VACANCY, is_site

#: What files call a vacancy: the symbol of no element, which ASE and OVITO know.
VACANCY_NAME = "X"
#: Other names of a vacancy, in any case, that are read; type 0 is one, too.
VACANCY_NAMES = ("x", "va", "vac", "vacancy", "0")
#: A type one beyond the elements is a vacancy if it has a smaller part of the sites than this.
FEW = 1 / 8
#: Farthest that an atom may lie from its site along an axis, in half lattice constants, and where
#: no site is in the corner of the box: then the corner is what fits the atoms best.
TOLERANCE, SHIFTED = 0.2, 0.1
#: Most by which the lattice constants along the three axes of a box may differ.
STRAIN = 0.01

PICOSECONDS = 1e12  # in a second


@dataclass(frozen=True)
class Snapshot:
    """A state to be written.

    Parameters
    ----------
    time : in s
    step : number of hops, or of the frame
    grid : (2 Lx, 2 Ly, 2 Lz) int8
    """

    time: float
    step: int
    grid: np.ndarray


@dataclass(frozen=True)
class Structure:
    """A state that was read.

    Attributes
    ----------
    grid : (2 Lx, 2 Ly, 2 Lz) int8
    lattice_constant : mean of the three axes, Angstrom
    """

    grid: np.ndarray
    lattice_constant: float


# -- sites in a row, points of a grid ----------------------------------------------------------


def planes_of(species: np.ndarray, first: int = 0) -> np.ndarray:
    """Planes of a grid, (n, 2 Ly, 2 Lz) int8, from the species of their sites (n, Ly, Lz).

    ``first`` is the x of the first plane; the sites of a plane share its parity.
    """
    planes, y, z = species.shape
    grid = np.full((planes, 2 * y, 2 * z), NOT_A_SITE, np.int8)
    for odd in (0, 1):
        start = (odd - first) % 2
        grid[start::2, odd::2, odd::2] = species[start::2]
    return grid


def grid_of(species: np.ndarray, cells: Sequence[int]) -> np.ndarray:
    """The grid, (2 Lx, 2 Ly, 2 Lz) int8, of the species of all sites (2 Lx Ly Lz,)."""
    x, y, z = cells
    return planes_of(np.reshape(species, (2 * x, y, z)))


def species_of(grid: np.ndarray) -> np.ndarray:
    """The species of all sites in C order, (2 Lx Ly Lz,) int8: the inverse of :func:`grid_of`."""
    return np.concatenate([_plane(grid, x) for x in range(len(grid))])


def _plane(grid: np.ndarray, x: int) -> np.ndarray:
    """Species of the sites with this x, (Ly Lz,)."""
    return np.ascontiguousarray(grid[x, x % 2 :: 2, x % 2 :: 2]).reshape(-1)


# -- reading -----------------------------------------------------------------------------------


def read_structure(
    path: str | Path,
    elements: Sequence[str] = ELEMENTS,
    *,
    cells: Sequence[int] | None = None,
    frame: int = -1,
) -> np.ndarray:
    """The grid of :func:`read_state`, (2 Lx, 2 Ly, 2 Lz) int8."""
    return read_state(path, elements, cells=cells, frame=frame).grid


def read_state(
    path: str | Path,
    elements: Sequence[str] = ELEMENTS,
    *,
    cells: Sequence[int] | None = None,
    frame: int = -1,
) -> Structure:
    """A frame of a LAMMPS text dump or extended XYZ file, or a POSCAR, LAMMPS data or CIF file.

    Any may be compressed with gzip. The box must be orthogonal and periodic along x, y and z.
    Its lattice constant and its origin may be any, and atoms may be displaced from their sites
    along each axis by up to :data:`TOLERANCE`. The number of cells is the smallest with room for
    all atoms in which every atom has a site of its own. Sites that no atom takes are vacancies;
    so are atoms with a name of :data:`VACANCY_NAMES` or of type 0, and those of the type after
    the last element if they are :data:`FEW`.

    Parameters
    ----------
    elements : names of species 1, 2, ..., which are also types 1, 2, ... of LAMMPS
    cells : (Lx, Ly, Lz), to be given where more than half of the sites are vacancies that
        the file does not list
    frame : number of the frame, negative from the end

    Raises
    ------
    InputError : the file cannot be read, or its atoms are not on such a lattice; names the
        line, or the first atom that is not
    """
    path = Path(path)
    if not path.is_file():
        raise InputError("file", str(path), "an existing structure file", "Check the path.")
    try:
        return placed(read_atoms(path, frame), elements, cells)
    except Unfit as error:
        raise InputError("file", str(path), error.allowed, error.remedy) from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        allowed = "a readable LAMMPS text dump or extended XYZ file"
        raise InputError("file", str(path), allowed, f"Reading said: {error}.") from error


def placed(
    atoms: Atoms, elements: Sequence[str] = ELEMENTS, cells: Sequence[int] | None = None
) -> Structure:
    """Atoms on the sites of a bcc lattice; see :func:`read_state`.

    Raises
    ------
    Unfit : they are not on such a lattice; names the first that is not
    """
    kinds = _kinds(atoms, elements)
    grid = _placed(atoms, kinds, cells) if cells else _placed_somehow(atoms, kinds)
    return Structure(grid, float(np.mean(2 * atoms.box / grid.shape)))


def _kinds(atoms: Atoms, elements: Sequence[str]) -> np.ndarray:
    """Species of the atoms, (n,) int8, from names of elements or from numbers."""
    known = dict.fromkeys(VACANCY_NAMES, VACANCY)
    known |= {str(i): i for i in range(1, len(elements) + 1)}
    known |= {name: i for i, name in enumerate(elements, 1)}
    one_more = str(len(elements) + 1)
    if 0 < atoms.species.count(one_more) <= FEW * len(atoms.species):
        known.setdefault(one_more, VACANCY)
    out = np.empty(len(atoms.species), np.int8)
    for k, word in enumerate(atoms.species):
        kind = known.get(word, known.get(word.lower()) if not word.isdecimal() else None)
        if kind is None:
            allowed = f"atoms of {', '.join(elements)} or types 1 to {len(elements)}"
            allowed += f", vacancies as X, type 0, or type {one_more} if they are few"
            others = sorted({w for w in atoms.species if w not in known})[:5]
            raise Unfit(allowed, f"Atom {atoms.names[k]} is {word!r}; others are {others}.")
        out[k] = kind
    return out


def _placed_somehow(atoms: Atoms, kinds: np.ndarray) -> np.ndarray:
    """The grid with the fewest cells that has a site for each atom."""
    closest: Unfit | None = None
    for cells in _possible_cells(atoms.box, len(kinds)):
        try:
            return _placed(atoms, kinds, cells)
        except Unfit as error:
            if closest is None or error.atoms < closest.atoms:
                closest = error
    if closest is None:
        box = " x ".join(f"{side:g}" for side in atoms.box)
        found = f"It has {len(kinds)} atoms in {box}."
        allowed = "a box of whole cubic cells with two sites each, half of them taken at least"
        raise Unfit(allowed, found)
    raise closest


def _possible_cells(box: np.ndarray, atoms: int) -> Iterator[tuple[int, ...]]:
    """Numbers of cubic cells in which 1/2 to 1 of the sites are taken, few cells first."""
    if not (box > 0).all():
        return
    for first in range(1, atoms + 1):
        cells = np.maximum(np.rint(box * (first / box[0])), 1)
        if not atoms <= 2 * cells.prod() <= 2 * atoms:
            continue
        if _is_cubic(box / cells):
            yield tuple(int(n) for n in cells)


def _is_cubic(spacing: np.ndarray) -> bool:
    return bool(np.ptp(spacing) <= STRAIN * spacing.min())


def _placed(atoms: Atoms, kinds: np.ndarray, cells: Sequence[int]) -> np.ndarray:
    """The grid of (Lx, Ly, Lz) cells with the atoms on it."""
    sides = 2 * np.asarray(cells)
    if sides.shape != (3,) or not (sides > 0).all() or not (atoms.box > 0).all():
        raise Unfit("a box of cells along three axes", f"It has {atoms.box}, cells {cells}.")
    if not _is_cubic(atoms.box / sides):
        sizes = "the same lattice constant along all axes"
        raise Unfit(f"{sizes} for {tuple(cells)} cells", f"It has {2 * atoms.box / sides}.")
    steps = (atoms.positions - atoms.origin) / atoms.box * sides
    points, wrong = _on_sites(steps, TOLERANCE)
    if wrong.any():
        shifted = _on_sites(_from_corner(steps), SHIFTED)
        if not shifted[1].any():
            points, wrong = shifted
    if wrong.any():
        first = int(np.argmax(wrong))
        where = ", ".join(f"{value:.6g}" for value in atoms.positions[first])
        raise Unfit(
            f"atoms within {TOLERANCE} of half a lattice constant of the sites of "
            f"{' x '.join(map(str, cells))} cubic cells",
            f"Atom {atoms.names[first]} at ({where}) is not; {wrong.sum()} such in all.",
            int(wrong.sum()),
        )
    points %= sides
    grid = np.where(is_site(tuple(sides)), np.int8(VACANCY), np.int8(NOT_A_SITE))
    flat = np.ravel_multi_index(tuple(points.T), tuple(sides))
    order = np.argsort(flat, kind="stable")
    twice = np.flatnonzero(np.diff(flat[order]) == 0)
    if twice.size:
        one, other = (atoms.names[order[twice[0] + i]] for i in (0, 1))
        found = f"Atoms {one} and {other} share one."
        raise Unfit("one atom at each site", found, twice.size)
    grid.reshape(-1)[flat] = kinds
    return grid


def _on_sites(steps: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """The points (n, 3) of the grid next to places in its steps, and which are no such sites."""
    with np.errstate(invalid="ignore"):  # a position beyond all integers is far, too
        points = np.rint(steps).astype(np.int64)
    far = np.abs(steps - points).max(axis=1, initial=0.0) > tolerance
    return points, far | ((points - points[:, :1]) % 2).any(axis=1)


def _from_corner(steps: np.ndarray) -> np.ndarray:
    """Places (n, 3) in steps of the grid, moved together so that most are near sites."""
    if not len(steps):
        return steps
    steps = steps - np.angle(np.exp(2j * np.pi * steps).mean(axis=0)) / (2 * np.pi)
    whole = np.rint(steps)
    return steps - ((whole - whole[:, :1]) % 2).mean(axis=0).round()


# -- writing -----------------------------------------------------------------------------------


def write_lammpsdump(
    path: str | Path,
    snapshots: Iterable[Snapshot],
    elements: Sequence[str] = ELEMENTS,
    *,
    vacancies: bool = False,
    lattice_constant: float = LATTICE_CONSTANT,
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
) -> int:
    """Write snapshots as frames of a LAMMPS text dump; returns how many.

    Units are LAMMPS' "metal": Angstrom and ps. The time step is ``Snapshot.step``. An atom's
    id is the number of its site, from 1: like the program, the file follows sites, not atoms.

    Parameters
    ----------
    snapshots : taken one by one, so that only one is in memory
    vacancies : also write vacancies, as one more type, element X
    overwrite : replace an existing file, once the new one is whole
    inputs : files that are read, and so are not to be replaced
    """
    names = [*elements, VACANCY_NAME]
    kinds = [f"{len(names)} {VACANCY_NAME}", *(f"{i} {name}" for i, name in enumerate(elements, 1))]

    def text(snapshot: Snapshot, number: int) -> Iterator[str]:
        atoms, box = _number(snapshot.grid, vacancies), _box(snapshot.grid, lattice_constant)
        if number == 0:  # LAMMPS says it once, and OVITO ends where it comes again
            yield "ITEM: UNITS\nmetal\n"
        yield f"ITEM: TIME\n{snapshot.time * PICOSECONDS:.16g}\n"
        yield f"ITEM: TIMESTEP\n{snapshot.step}\nITEM: NUMBER OF ATOMS\n{atoms}\n"
        yield "ITEM: BOX BOUNDS pp pp pp\n" + "".join(f"0 {side:.10g}\n" for side in box)
        yield "ITEM: ATOMS id type element x y z\n"
        for ids, words, places in _atoms_by_plane(
            snapshot.grid, kinds, vacancies, lattice_constant
        ):
            rows = zip(ids, words, places, strict=True)
            yield "".join(f"{i} {word} {place}\n" for i, word, place in rows)

    return _write(Path(path), snapshots, text, overwrite, inputs)


def write_extxyz(
    path: str | Path,
    snapshots: Iterable[Snapshot],
    elements: Sequence[str] = ELEMENTS,
    *,
    vacancies: bool = False,
    lattice_constant: float = LATTICE_CONSTANT,
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
) -> int:
    """Write snapshots as frames of an extended XYZ file; returns how many.

    Positions are in Angstrom; the comments have ``time`` in s and ``step``. The parameters
    are those of :func:`write_lammpsdump`.
    """
    kinds = [VACANCY_NAME, *elements]

    def text(snapshot: Snapshot, number: int) -> Iterator[str]:
        x, y, z = (f"{side:.10g}" for side in _box(snapshot.grid, lattice_constant))
        yield f'{_number(snapshot.grid, vacancies)}\nLattice="{x} 0 0 0 {y} 0 0 0 {z}" '
        yield f'Properties=species:S:1:pos:R:3 pbc="T T T" time={snapshot.time:.16g} time_unit=s '
        yield f"step={snapshot.step}\n"
        for _, words, places in _atoms_by_plane(snapshot.grid, kinds, vacancies, lattice_constant):
            rows = zip(words, places, strict=True)
            yield "".join(f"{word} {place}\n" for word, place in rows)

    return _write(Path(path), snapshots, text, overwrite, inputs)


def _number(grid: np.ndarray, vacancies: bool) -> int:
    return int(np.count_nonzero(grid >= VACANCY if vacancies else grid > VACANCY))


def _box(grid: np.ndarray, lattice_constant: float) -> list[float]:
    return [0.5 * lattice_constant * side for side in grid.shape]


def _atoms_by_plane(
    grid: np.ndarray, kinds: Sequence[str], vacancies: bool, lattice_constant: float
) -> Iterator[tuple[list[int], list[str], list[str]]]:
    """Ids, words for the species and for the positions of the atoms of each plane of sites."""
    x, y, z = ([f"{0.5 * lattice_constant * i:.10g}" for i in range(side)] for side in grid.shape)
    across = [[f"{b} {c}" for b in y[odd::2] for c in z[odd::2]] for odd in (0, 1)]
    for i in range(len(grid)):
        species, places = _plane(grid, i), across[i % 2]
        (taken,) = np.nonzero(species >= VACANCY if vacancies else species > VACANCY)
        first = i * species.size + 1
        words = [kinds[kind] for kind in species[taken].tolist()]
        yield (taken + first).tolist(), words, [f"{x[i]} {places[k]}" for k in taken.tolist()]


def _write(
    path: Path, snapshots: Iterable[Snapshot], text: Any, overwrite: bool, inputs: Sequence[Path]
) -> int:
    """Write a file beside and put it in its place once it is whole; returns its frames."""
    frames = 0
    with whole_file(path, overwrite=overwrite, inputs=inputs) as target:
        with target.open("w", encoding="utf-8") as file:
            for snapshot in snapshots:
                file.writelines(text(snapshot, frames))
                frames += 1
    return frames


# -- files of runs -----------------------------------------------------------------------------


class Run(Protocol):
    """What :func:`export` needs of a :class:`~mpiflow.files.trajectory.Trajectory`."""

    path: Path
    attributes: dict[str, Any]
    config: dict[str, Any]
    time: np.ndarray
    sizes: dict[str, int]

    def read(self, name: str, frames: int | slice = ...) -> np.ndarray: ...
    def __contains__(self, name: object) -> bool: ...


#: Formats of :func:`export`: the function that writes one, and the suffix of its files.
FORMATS = {"lammpsdump": (write_lammpsdump, ".dump"), "extxyz": (write_extxyz, ".xyz")}


def cells_of(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(Lx, Ly, Lz) of the configuration of a run; one number stands for a cube."""
    cells = config["cells"]
    x, y, z = (cells,) * 3 if isinstance(cells, int) else cells
    return int(x), int(y), int(z)


def elements_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of species 1, 2, ... of the configuration of a run."""
    return tuple(config.get("elements") or ELEMENTS)


def frame_number(text: str) -> int | None:
    """The frame that a user asks for; None for "all"."""
    if text == "all":
        return None
    if not re.fullmatch(r"-?\d+", text):
        raise InputError("frame", text, "a whole number, or all", "Try -1, the last.")
    return int(text)


def export(
    run: Run,
    to: str,
    out: str | Path | None = None,
    *,
    frame: int | None = -1,
    member: int = 0,
    vacancies: bool = False,
    overwrite: bool = False,
) -> tuple[Path, int]:
    """Write the species of a run to a file of another format: its path and number of frames.

    Parameters
    ----------
    to : one of :data:`FORMATS`
    out : default is the path of the run with another suffix
    frame : its number, negative from the end, or None for all
    member : of an ensemble
    vacancies : also write vacancies, as atoms of element X

    Raises
    ------
    InputError : not an alloy run, no species saved, no such frame, member or format, bad output
    """
    if to not in FORMATS:
        raise InputError("to", to, f"one of {', '.join(FORMATS)}", "Choose one of them.")
    write, suffix = FORMATS[to]
    system = run.attributes.get("system")
    if system != "alloy" and run.config.get("kind") != "species":  # imported
        raise InputError("file", str(run.path), "the file of an alloy run", f"It is of {system}.")
    if "species" not in run:
        allowed = "a run that saved its species"
        raise InputError("file", str(run.path), allowed, "Run it again with --species.")
    count = len(run.time)
    frames = range(count)
    if frame is not None:
        if not -count <= frame < count:
            allowed = f"{-count} to {count - 1}, or all" if count else "a file with frames"
            raise InputError("frame", frame, allowed, f"{run.path} has {count} frames.")
        frames = range(count)[frame : frame + 1 or None]
    members = run.sizes.get("member", 1)
    if not 0 <= member < members:
        raise InputError("member", member, f"0 to {members - 1}", f"{run.path} has {members}.")
    path = Path(out) if out is not None else run.path.with_suffix(suffix)
    cells = cells_of(run.config)

    def snapshots() -> Iterator[Snapshot]:
        for k in frames:
            # With a dimension for the members, or without where there is one.
            species = np.atleast_2d(run.read("species", k))[member]
            step = np.atleast_1d(run.read("hops", k))[member] if "hops" in run else k
            yield Snapshot(float(run.time[k]), int(step), grid_of(species, cells))

    elements = elements_of(run.config)
    settings: dict[str, Any] = {"vacancies": vacancies, "overwrite": overwrite}
    about = run.attributes
    settings["lattice_constant"] = float(about.get("lattice_constant_angstrom", LATTICE_CONSTANT))
    return path, write(path, snapshots(), elements, **settings, inputs=[run.path])
