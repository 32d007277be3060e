"""Structure files: the published one, round trips, other programs' readers, malformed ones."""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.files import structure
from mpiflow.files.schema import STANDARD, TIME
from mpiflow.files.structure import Snapshot, grid_of, read_structure, species_of
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.systems import alloy

WRITERS = {"dump": structure.write_lammpsdump, "xyz": structure.write_extxyz}
by_format = pytest.mark.parametrize("suffix", WRITERS)


def a_state(*cells: int, seed: int = 1, vacancies: int = 2) -> np.ndarray:
    """Random species with exactly so many vacancies."""
    generator = np.random.default_rng(seed)
    species = generator.integers(1, 4, 2 * math.prod(cells)).astype(np.int8)
    species[generator.permutation(species.size)[:vacancies]] = alloy.VACANCY
    return grid_of(species, cells)


def bonds(grid: np.ndarray) -> np.ndarray:
    """Numbers of neighbours by species of the corner and of the centre, (4, 4) int64."""
    out = np.zeros((4, 4), np.int64)
    for direction in alloy.DIRECTIONS:
        partner = np.roll(grid, -direction, (0, 1, 2))
        np.add.at(out, (grid[::2, ::2, ::2], partner[::2, ::2, ::2]), 1)
    return out


# -- sites and points --------------------------------------------------------------------------


def test_sites_are_the_points_in_c_order() -> None:
    cells = (2, 3, 4)
    species = np.arange(48, dtype=np.int8)
    grid = grid_of(species, cells)
    inside = alloy.is_site(grid.shape)
    assert grid.shape == (4, 6, 8)
    assert np.array_equal(grid[inside], species)
    assert (grid[~inside] == alloy.NOT_A_SITE).all()
    assert np.array_equal(species_of(grid), species)
    planes = structure.planes_of(species.reshape(4, 3, 4)[1:], first=1)
    assert np.array_equal(planes, grid[1:])


# -- the published starting state --------------------------------------------------------------


def test_the_published_state(shared_dir: Path) -> None:
    path = shared_dir / "reference" / "nnk" / "initial.dump"
    if not path.is_file():
        pytest.skip(f"no {path.name} beside the checkout")
    grid = read_structure(path)
    assert grid.shape == (16, 16, 16)
    assert grid.dtype == np.int8
    assert np.array_equal(read_structure(path, cells=(8, 8, 8)), grid)
    assert np.bincount(species_of(grid)).tolist() == [0, 341, 341, 342]
    assert grid[0, 0, 6] != alloy.NOT_A_SITE
    # The published runs put their vacancy at the origin, whatever is there.
    grid[0, 0, 0] = alloy.VACANCY
    sro = alloy.short_range_order(bonds(grid))
    assert np.allclose(sro, [0.072, -0.063, -0.019, 0.133, -0.087, 0.123], rtol=0, atol=5e-4)


# -- round trips -------------------------------------------------------------------------------


@by_format
@pytest.mark.parametrize("listed", [False, True], ids=["left out", "listed"])
@pytest.mark.parametrize("cells", [(4, 4, 4), (4, 5, 6), (9, 4, 4), (1, 1, 1)])
def test_what_is_written_is_read(
    tmp_path: Path, suffix: str, listed: bool, cells: tuple[int, int, int]
) -> None:
    path = tmp_path / f"state.{suffix}"
    states = [a_state(*cells, seed=seed, vacancies=min(3, seed)) for seed in range(3)]
    if cells == (1, 1, 1):
        states = states[:1]
    frames = [Snapshot(1e-9 * i, 10 * i, state) for i, state in enumerate(states)]
    written = WRITERS[suffix](path, iter(frames), vacancies=listed, lattice_constant=3.3)
    assert written == len(states)
    for number, state in enumerate(states):
        assert np.array_equal(read_structure(path, frame=number), state)
        assert np.array_equal(read_structure(path, frame=number - len(states)), state)
        assert np.array_equal(read_structure(path, frame=number, cells=cells), state)
    assert np.array_equal(read_structure(path), states[-1])
    for number in (len(states), -len(states) - 1):
        with pytest.raises(InputError, match=f"a frame {number}"):
            read_structure(path, frame=number)


@pytest.mark.parametrize("vacancies", [1, 30, 64])
def test_cells_are_found_where_vacancies_are_not_listed(tmp_path: Path, vacancies: int) -> None:
    for seed in range(5):
        state = a_state(4, 4, 4, seed=seed, vacancies=vacancies)
        path = tmp_path / "state.dump"
        structure.write_lammpsdump(path, [Snapshot(0.0, 0, state)], overwrite=True)
        assert np.array_equal(read_structure(path), state)


def test_few_atoms_need_the_cells(tmp_path: Path) -> None:
    state = a_state(4, 4, 4, vacancies=100)
    path = tmp_path / "state.xyz"
    structure.write_extxyz(path, [Snapshot(0.0, 0, state)])
    with pytest.raises(InputError, match="half of them taken at least|3 x 3 x 3 cubic cells"):
        read_structure(path)
    assert np.array_equal(read_structure(path, cells=(4, 4, 4)), state)


def test_the_order_of_rows_and_the_origin_do_not_matter(tmp_path: Path) -> None:
    state = a_state(4, 5, 6)
    path = tmp_path / "state.dump"
    structure.write_lammpsdump(path, [Snapshot(0.0, 0, state)])
    head, atoms = path.read_text().split("x y z\n")
    rows = [row.split() for row in atoms.splitlines()]
    np.random.default_rng(3).shuffle(rows)
    box = 1.62 * np.array(state.shape)
    for columns, change in {
        "x y z": lambda p: p + 7,
        "xu yu zu": lambda p: p + 7 + box * [1, -2, 0],
        "xs ys zs": lambda p: p / box,
        "xsu ysu zsu": lambda p: p / box - 1,
        "vx x y z": lambda p: np.append(0.3, p + 7 + 0.2),
    }.items():
        new = head.replace("\n0 ", "\n7 ").replace(" id type element ", f" id type {columns} ")
        for side in box:
            new = new.replace(f"7 {side:.10g}\n", f"7 {side + 7:.10g}\n")
        lines = [
            " ".join([row[0], row[1], *map(str, change(np.array(row[3:], float)))]) for row in rows
        ]
        path.write_text(new + "\n" + "\n".join(lines) + "\n")
        assert np.array_equal(read_structure(path), state), columns


def test_a_file_of_many_frames_is_written_as_it_comes(tmp_path: Path) -> None:
    alive = []

    def frames():
        for i in range(5):
            alive.append(i)
            yield Snapshot(float(i), i, a_state(4, 4, 4, seed=i))

    assert structure.write_extxyz(tmp_path / "a.xyz", frames()) == 5
    assert alive == [0, 1, 2, 3, 4]

    def broken():
        yield Snapshot(0.0, 0, a_state(4, 4, 4))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        structure.write_extxyz(tmp_path / "b.xyz", broken())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.xyz"], "no half of a file"


# -- other programs ----------------------------------------------------------------------------


@by_format
@pytest.mark.parametrize("listed", [False, True], ids=["left out", "listed"])
def test_ase_reads_both(tmp_path: Path, suffix: str, listed: bool) -> None:
    io = pytest.importorskip("ase.io")
    states = [a_state(4, 5, 6, seed=seed) for seed in range(2)]
    path = tmp_path / f"state.{suffix}"
    frames = [Snapshot(2.5e-9 * i, 10 * i, state) for i, state in enumerate(states)]
    WRITERS[suffix](path, frames, vacancies=listed)
    kind = {"dump": "lammps-dump-text", "xyz": "extxyz"}[suffix]
    images = io.read(path, index=":", format=kind)
    assert len(images) == 2
    for number, (atoms, state) in enumerate(zip(images, states, strict=True)):
        sites = np.argwhere(state > 0 if not listed else state >= 0)
        assert np.allclose(atoms.positions, sites * alloy.LATTICE_CONSTANT / 2, atol=1e-6)
        names = np.array(["X", *alloy.ELEMENTS])[state[tuple(sites.T)]]
        assert atoms.get_chemical_symbols() == names.tolist()
        assert np.allclose(atoms.cell.array, np.diag(1.62 * np.array(state.shape)))
        assert atoms.pbc.all()
        if suffix == "xyz":
            assert atoms.info["time"] == 2.5e-9 * number
            assert atoms.info["step"] == 10 * number
        else:
            assert atoms.info["timestep"] == 10 * number


def test_the_dump_has_times_in_picoseconds(tmp_path: Path) -> None:
    structure.write_lammpsdump(tmp_path / "a.dump", [Snapshot(2.5e-9, 7, a_state(4, 4, 4))])
    text = (tmp_path / "a.dump").read_text()
    assert text.startswith("ITEM: UNITS\nmetal\nITEM: TIME\n2500\nITEM: TIMESTEP\n7\n")


def frames_of_ovito(path: Path) -> list[tuple[float, int, int]]:
    """Times, steps and numbers of atoms of the frames that OVITO finds.

    It is too large to be installed for a test. Its reader, as its manual and that of LAMMPS
    describe the format (``dump_modify units yes time yes``), takes the units before the first
    frame; then every frame begins with TIME or TIMESTEP, and anything else is the end.
    """
    lines = iter(path.read_text().splitlines())
    found, line = [], next(lines)
    if line == "ITEM: UNITS":
        next(lines)
        line = next(lines)
    while line == "ITEM: TIME":
        time = float(next(lines))
        assert next(lines) == "ITEM: TIMESTEP"
        step = int(next(lines))
        assert next(lines) == "ITEM: NUMBER OF ATOMS"
        atoms = int(next(lines))
        assert next(lines) == "ITEM: BOX BOUNDS pp pp pp"
        assert all(len(next(lines).split()) == 2 for _ in range(3))
        columns = next(lines).removeprefix("ITEM: ATOMS ").split()
        assert all(len(next(lines).split()) == len(columns) for _ in range(atoms))
        found.append((time, step, atoms))
        line = next(lines, "")
    return found


def test_ovito_and_ase_find_every_frame(tmp_path: Path) -> None:
    """With the units in every frame, as mpiflow wrote them, OVITO found one of nine."""
    states = [a_state(4, 4, 4, seed=seed) for seed in range(9)]
    shots = [Snapshot(1e-9 * k, 5 * k, state) for k, state in enumerate(states)]
    path = tmp_path / "a.dump"
    assert structure.write_lammpsdump(path, shots, vacancies=True) == 9
    expected = [(pytest.approx(1000.0 * k), 5 * k, 128) for k in range(9)]
    assert frames_of_ovito(path) == expected
    io = pytest.importorskip("ase.io")
    read = io.read(path, index=":", format="lammps-dump-text")
    assert [len(atoms) for atoms in read] == [128] * 9
    assert [np.array_equal(read_structure(path, frame=k), states[k]) for k in range(9)] == [
        True
    ] * 9
    old = tmp_path / "old.dump"
    old.write_text(path.read_text().replace("ITEM: TIME\n", "ITEM: UNITS\nmetal\nITEM: TIME\n"))
    assert len(frames_of_ovito(old)) == 0, "twice at the beginning already"


def test_ovito_itself(tmp_path: Path) -> None:
    """Where a developer has it: 9 frames with ovito 3.17."""
    ovito = pytest.importorskip("ovito.io")
    shots = [Snapshot(1e-9 * k, 5 * k, a_state(4, 4, 4, seed=k)) for k in range(9)]
    for write, name in ((structure.write_lammpsdump, "a.dump"), (structure.write_extxyz, "a.xyz")):
        write(tmp_path / name, shots)
        assert ovito.import_file(str(tmp_path / name)).source.num_frames == 9


@by_format
def test_files_of_ase_are_read(tmp_path: Path, suffix: str) -> None:
    """A random alloy built and written by ASE, with its own names of columns."""
    io, build = pytest.importorskip("ase.io"), pytest.importorskip("ase.build")
    atoms = build.bulk("Nb", "bcc", a=3.3, cubic=True).repeat((4, 5, 6))
    symbols = np.random.default_rng(0).choice(alloy.ELEMENTS, len(atoms))
    atoms.set_chemical_symbols(list(symbols))
    del atoms[17]
    path = tmp_path / f"ase.{suffix}"
    if suffix == "xyz":
        atoms.arrays["more"] = np.ones(len(atoms))
        io.write(path, atoms, format="extxyz")
    else:
        rows = zip(atoms.get_chemical_symbols(), atoms.get_scaled_positions(), strict=True)
        sides = "".join(f"0 {side}\n" for side in atoms.cell.lengths())
        head = f"ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n{len(atoms)}\nITEM: BOX BOUNDS\n{sides}"
        text = "".join(f"{name} {x} {y} {z}\n" for name, (x, y, z) in rows)
        path.write_text(head + "ITEM: ATOMS element xs ys zs\n" + text)
    grid = read_structure(path)
    assert grid.shape == (8, 10, 12)
    points = np.rint(atoms.positions / 1.65).astype(int)
    assert np.array([*alloy.ELEMENTS])[grid[tuple(points.T)] - 1].tolist() == [*atoms.symbols]
    assert (grid == 0).sum() == 1


# -- malformed files ---------------------------------------------------------------------------


def replace(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


def rows(text: str) -> int:
    """Where the atoms begin."""
    return text.index("x y z\n") + 6 if "ITEM" in text else text.index("step=0\n") + 7


def of_atoms(change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        at = rows(text)
        return text[:at] + "\n".join(change(text[at:].splitlines())) + "\n"

    return changed


# The third atom of both files is at (0, 0, 6.48), a Mo.
BOTH = {
    "cut in the atoms": (lambda text: text[: len(text) // 2], "(?:a whole file|words in each row)"),
    "cut before the atoms": (lambda text: text[: rows(text)], "It ends at line .* 0 of 126 atoms"),
    "empty": (lambda text: "", "It begins with ''"),
    "other text": (lambda text: "hello\n", "a LAMMPS text dump or an extended XYZ.*'hello'"),
    "a word short": (of_atoms(lambda a: [a[0][:-2], *a[1:]]), "Line (14|3) has [35]"),
    "no number": (of_atoms(lambda a: [a[0][:-1] + "q", *a[1:]]), "numbers as positions"),
    "not finite": (of_atoms(lambda a: [a[0][:-1] + "nan", *a[1:]]), "finite numbers as positions"),
    "off the lattice": (replace("0 0 6.48", "0 0.4 6.48"), r"Atom 3 at \(0, 0.4, 6.48\) is not"),
    "between sites": (replace("0 0 6.48", "0 0 4.86"), r"Atom 3 at \(0, 0, 4.86\) is not"),
    "far away": (replace("0 0 6.48", "0 0 1e300"), r"Atom 3 at .*is not"),
    "same site": (replace("0 0 6.48", "0 0 3.24"), "Atoms 2 and 3 share one"),
    "same site, next box": (replace("0 0 6.48", "12.96 0 -9.72"), "Atoms 2 and 3 share one"),
    "species": (replace("Mo 0 0 6.48", "W 0 0 6.48"), "atoms of Nb, Mo, Ta or .*Atom 3 is 'W'"),
}  # fmt: skip
DUMP = {
    "bounds missing": (replace("ITEM: BOX BOUNDS pp pp pp\n" + 3 * "0 12.96\n", ""), "bound"),
    "two bounds": (replace("0 12.96\nITEM", "ITEM"), "has .1 1 Nb|bounds? of the box"),
    "no tilts": (replace("pp pp pp", "xy xz yz pp pp pp"), "bound of the box"),
    "triclinic": (
        lambda t: t.replace("pp pp pp", "xy xz yz pp pp pp").replace("0 12.96\n", "0 12.96 1\n"),
        "an orthogonal box.*triclinic",
    ),
    "walls": (replace("pp pp pp", "pp ff ss"), "periodic along all axes.*y and z not periodic"),
    "box of no size": (replace("0 12.96", "0 0"), "a box of whole cubic cells"),
    "another box": (replace("0 12.96", "0 13.5"), "a box of whole cubic cells|Atom"),
    "all another box": (lambda t: t.replace("0 12.96\n", "0 13.5\n"), "Atom"),
    "no positions": (replace("element x y z", "element fx fy fz"), "columns type or element"),
    "no type": (replace("type element", "q w"), "columns type or element"),
    "number of atoms": (replace("ATOMS\n126", "ATOMS\nmany"), "a whole number as ITEM: NUMBER"),
    "too many atoms": (replace("ATOMS\n126", "ATOMS\n127"), "It ends at line .*126 of 127 atoms"),
    "too few atoms": (replace("ATOMS\n126", "ATOMS\n125"), "Line .* has .128.* section begins"),
}  # fmt: skip
XYZ = {
    "no lattice": (replace("Lattice", "Cell"), "nine numbers"),
    "eight numbers": (replace("0 0 0 12.96\"", "0 0 12.96\""), "nine numbers"),
    "tilted": (replace('"12.96 0 0', '"12.96 1 0'), "an orthogonal box"),
    "walls": (replace("T T T", "T T F"), "periodic along all axes.*z not periodic"),
    "properties": (replace("species:S:1", "mass:R:1"), "species:S:1 and pos:R:3"),
    "another box": (replace('"12.96', '"13.5'), "a box of whole cubic cells|Atom"),
    "too many atoms": (replace("126\n", "127\n"), "It ends at line .*126 of 127 atoms"),
    "too few atoms": (replace("126\n", "125\n"), "a whole number as the number of atoms"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("suffix", "how"),
    [(s, how) for s, own in (("dump", DUMP), ("xyz", XYZ)) for how in (*BOTH, *own)],
)
def test_malformed_files(tmp_path: Path, suffix: str, how: str) -> None:
    state = a_state(4, 4, 4)
    state[0, 0, 0], state[0, 0, 2], state[0, 0, 4] = 1, 1, 2
    state[state == 0] = 3
    state[7, 7, 5] = state[3, 3, 3] = 0
    path = tmp_path / f"bad.{suffix}"
    WRITERS[suffix](path, [Snapshot(0.0, 0, state)])
    assert np.array_equal(read_structure(path), state)
    change, says = {**BOTH, **(DUMP if suffix == "dump" else XYZ)}[how]
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=rf"(?s)^file=.*bad\.{suffix}.*(?:{says})"):
        read_structure(path)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.dump"
    path.write_bytes(bytes(range(256)))
    for bad in (path, tmp_path / "missing.dump", tmp_path):
        with pytest.raises(InputError, match="^file="):
            read_structure(bad)


def test_cells_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "state.xyz"
    structure.write_extxyz(path, [Snapshot(0.0, 0, a_state(4, 4, 4))])
    for cells in [(4, 4, 5), (4, 4), (0, 4, 4), (3, 3, 3), (5, 5, 5)]:
        with pytest.raises(InputError, match="^file="):
            read_structure(path, cells=cells)


# -- export ------------------------------------------------------------------------------------


def a_run(path: Path, *, system: str = "alloy", species: bool = True, frames: int = 3) -> list:
    """A file as runs write it; returns its states."""
    states = [a_state(4, 5, 6, seed=seed) for seed in range(frames)]
    config = {"cells": [4, 5, 6], "elements": ["Nb", "Mo", "Ta"]}
    about = {"system": system, "config_json": json.dumps(config), "seed": 1, "rng": "x"}
    variables = [STANDARD["hops"], *[STANDARD["species"]] * species]
    with TrajectoryWriter(
        path,
        dims={"site": 240},
        variables=variables,
        attributes={**about, "decomposition_invariant": True},
        time=TIME,
    ) as writer:
        for i, state in enumerate(states):
            values = {"hops": 100 * i} | ({"species": species_of(state)} if species else {})
            writer.append(1e-9 * i, values)
    return states


@pytest.mark.parametrize(("kind", "suffix"), [("lammpsdump", "dump"), ("extxyz", "xyz")])
def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, suffix: str) -> None:
    run, out = tmp_path / "run.h5", tmp_path / f"run.{suffix}"
    states = a_run(run)
    invoke(["export", "--to", kind, str(run)])
    assert capsys.readouterr().out == f"{out}: 1 frame\n"
    assert np.array_equal(read_structure(out), states[-1])
    with pytest.raises(InputError, match="1 frame|a frame"):
        read_structure(out, frame=1)
    assert ("200" in out.read_text().split()) == (kind == "lammpsdump"), "hops are the time step"
    line = ["export", str(run), "--to", kind, "--out", str(tmp_path / "all"), "--vacancies"]
    invoke([*line, "--frame", "all"])
    for number, state in enumerate(states):
        assert np.array_equal(read_structure(tmp_path / "all", frame=number), state)
    assert " X" in (tmp_path / "all").read_text() or "X " in (tmp_path / "all").read_text()
    for frame in ("1", "-2"):
        invoke([*line, "--frame", frame, "--overwrite"])
        assert np.array_equal(read_structure(tmp_path / "all", frame=0), states[1])
    assert run.stat().st_size > 0
    assert len(Trajectory(run)) == 3


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("run.h5 --to xdmff", "to='xdmff': allowed is one of lammpsdump, extxyz"),
        ("run.h5", "--to"),
        ("none.h5 --to extxyz", "an existing trajectory"),
        ("ising.h5 --to extxyz", "the file of an alloy run. It is of ising"),
        ("few.h5 --to extxyz", "Run it again with --species"),
        ("empty.h5 --to extxyz", "a file with frames"),
        ("run.h5 --to extxyz --frame 3", "frame=3: allowed is -3 to 2, or all"),
        ("run.h5 --to extxyz --frame -4", "frame=-4"),
        ("run.h5 --to extxyz --member 1", "member=1: allowed is 0 to 0"),
        ("run.h5 --to extxyz --frame last", "a whole number, or all"),
        ("run.h5 --to extxyz --out old.xyz", "a file that does not exist yet"),
        ("run.h5 --to extxyz --out run.h5 --overwrite", "another file than the input"),
        ("run.h5 --to extxyz --out no/such/x.xyz", "Create no/such first"),
        ("run.h5 --to extxyz --out . --overwrite", "not a regular file"),
    ],
)
def test_exports_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = line.split()[0]
    if name != "none.h5":
        a_run(
            Path(name),
            system="ising" if name == "ising.h5" else "alloy",
            species=name != "few.h5",
            frames=0 if name == "empty.h5" else 3,
        )
    Path("old.xyz").write_text("old")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError) as caught:
        invoke(["export", *line.split()])
    assert says in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_members_of_an_ensemble_are_exported(tmp_path: Path) -> None:
    states = [a_state(4, 4, 4, seed=seed) for seed in range(3)]
    about = {"system": "alloy", "config_json": '{"cells": [4, 4, 4]}', "seed": 1, "rng": "x"}
    with TrajectoryWriter(
        tmp_path / "run.h5",
        dims={"member": 3, "site": 128},
        variables=[STANDARD["hops"].over("member"), STANDARD["species"].over("member", "site")],
        attributes={**about, "decomposition_invariant": True},
    ) as writer:
        species = np.stack([species_of(state) for state in states])
        writer.append(0.0, {"hops": np.array([5, 6, 7]), "species": species})
    with Trajectory(tmp_path / "run.h5") as run:
        for member, state in enumerate(states):
            path, frames = structure.export(run, "extxyz", member=member, overwrite=True)
            assert frames == 1
            assert f"step={5 + member}\n" in path.read_text()
            assert np.array_equal(read_structure(path), state)


def test_one_number_of_cells_is_a_cube() -> None:
    assert structure.cells_of({"cells": 5}) == (5, 5, 5)
    assert structure.cells_of({"cells": [4, 5, 6]}) == (4, 5, 6)


# -- files as people have them -----------------------------------------------------------------


def by_type(text: str, *, vacancy: str = "4", number: str = "{}") -> str:
    """A dump without names of elements, as most are."""
    new = "ITEM: ATOMS y type z id x"
    lines = text.replace("ITEM: ATOMS id type element x y z", new).splitlines()
    for k, line in enumerate(lines):
        if len(words := line.split()) == 6 and words[0].isdecimal():
            i, kind, _, x, y, z = words
            kind = vacancy if kind == "4" else kind
            lines[k] = f"{y} {number.format(kind)} {z} {number.format(i)} {x}"
    return "\n".join(lines) + "\n"


ODD = {
    "carriage returns": lambda t: t.replace("\n", "\r\n"),
    "a mark of bytes": lambda t: "\ufeff" + t,
    "blank lines": lambda t: t + "\n  \n\n",
}
ODD_DUMPS = {
    "types in another order of columns": by_type,
    "vacancies of type 0": lambda t: by_type(t, vacancy="0"),
    "numbers as 1.0": lambda t: by_type(t, number="{}.0").replace("\n128\n", "\n128.0\n", 1),
    "vacancies called Va": lambda t: t.replace(" 4 X ", " 4 Va "),
    "tilts of 0": lambda t: t.replace("S pp", "S xy xz yz pp").replace("0 12.96\n", "0 12.96 0\n"),
    "a general box": lambda t: t.replace("S pp", "S abc origin pp").replace(
        "0 12.96\n0 12.96\n0 12.96\n", "12.96 0 0 0\n0 12.96 0 0\n0 0 12.96 0\n"
    ),
    "another corner": lambda t: t.replace("0 12.96\n", "-0.81 12.15\n"),
    "a corner between": lambda t: t.replace("0 12.96\n", "-1.62 11.34\n", 1),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("suffix", "how"),
    [(s, how) for s, own in (("dump", ODD_DUMPS), ("xyz", {})) for how in (*ODD, *own)],
)
def test_files_as_people_have_them(tmp_path: Path, suffix: str, how: str, packed: bool) -> None:
    """Each is the same state, up to a shift of the whole where the corner is another."""
    state, path = a_state(4, 4, 4, vacancies=5), tmp_path / f"x.{suffix}"
    WRITERS[suffix](path, [Snapshot(0.0, 0, state)] * 2, vacancies=True)
    data = {**ODD, **ODD_DUMPS}[how](path.read_text()).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    for frame in (0, 1, -1):
        found = read_structure(path, frame=frame)
        assert (found == 0).sum() == 5
        shifts = [(0, 0, 0)] if "corner" not in how else np.ndindex(8, 8, 8)
        assert any(np.array_equal(np.roll(found, by, (0, 1, 2)), state) for by in shifts)


def test_displaced_atoms_and_a_box_that_is_no_cube(tmp_path: Path) -> None:
    state, rng = a_state(4, 6, 5, vacancies=3), np.random.default_rng(1)
    path = tmp_path / "x.dump"
    structure.write_lammpsdump(path, [Snapshot(0.0, 0, state)], lattice_constant=3.19)
    head, rows = path.read_text().split("x y z\n")
    moved = []
    for row in rows.splitlines():
        *words, x, y, z = row.split()
        shaken = np.array([x, y, z], float) + rng.uniform(-0.3, 0.3, 3)
        moved.append(" ".join([*words, *map(str, shaken)]))
    path.write_text(head + "x y z\n" + "\n".join(moved))
    found = structure.read_state(path)
    assert np.array_equal(found.grid, state)
    assert found.lattice_constant == pytest.approx(3.19)


def test_files_that_end_too_early(tmp_path: Path) -> None:
    path = tmp_path / "x.dump.gz"
    structure.write_lammpsdump(tmp_path / "x", [Snapshot(0.0, 0, a_state(4, 4, 4))])
    path.write_bytes(gzip.compress((tmp_path / "x").read_bytes())[:-300])
    with pytest.raises(InputError, match=r"x\.dump\.gz.*a whole compressed file. After line \d+"):
        read_structure(path)
    path.write_bytes(b"\x1f\x8b no gzip")
    with pytest.raises(InputError, match=r"x\.dump\.gz"):
        read_structure(path)


def test_many_atoms_of_one_type_more_are_no_vacancies(tmp_path: Path) -> None:
    state = a_state(4, 4, 4, vacancies=40)
    path = tmp_path / "x.dump"
    structure.write_lammpsdump(path, [Snapshot(0.0, 0, state)], vacancies=True)
    path.write_text(by_type(path.read_text()))
    with pytest.raises(InputError, match=r"or type 4 if they are few.*is '4'"):
        read_structure(path)


@pytest.mark.parametrize("kind", ["vasp", "lammps-data", "cif"])
def test_formats_that_ase_reads(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    io = pytest.importorskip("ase.io")
    state, path = a_state(4, 5, 4, vacancies=2), tmp_path / "state"
    structure.write_extxyz(tmp_path / "x.xyz", [Snapshot(0.0, 0, state)], lattice_constant=3.3)
    atoms = io.read(tmp_path / "x.xyz")
    more = {"lammps-data": {"masses": True}, "vasp": {"sort": True}}.get(kind, {})
    io.write(path, atoms, format=kind, **more)
    found = structure.read_state(path)
    assert np.array_equal(found.grid, state)
    assert found.lattice_constant == pytest.approx(3.3)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(read_structure(path), state)
    monkeypatch.setitem(sys.modules, "ase.io", None)
    with pytest.raises(InputError, match=r"state.*without ASE.*Install mpiflow\[structures\]"):
        read_structure(path)
    monkeypatch.undo()
    path.write_text(path.with_name("x.xyz").read_text().replace(" Nb", "")[:40])
    with pytest.raises(InputError, match="state"):
        read_structure(path)


def test_lammps_data_without_masses_and_tilted(tmp_path: Path) -> None:
    pytest.importorskip("ase.io")
    state, path = a_state(4, 4, 4, vacancies=2), tmp_path / "data.alloy"
    sites = np.argwhere(state > 0)
    box = "".join(f"0 12.96 {a}lo {a}hi\n" for a in "xyz")
    text = f"# by hand\n\n{len(sites)} atoms\n3 atom types\n\n{box}\nAtoms # atomic\n\n"
    for number, place in enumerate(sites, 1):
        text += f"{number} {state[tuple(place)]} {' '.join(map(str, 1.62 * place))}\n"
    path.write_text(text)
    assert np.array_equal(read_structure(path), state)
    path.write_text(text.replace("zhi\n", "zhi\n1.0 0 0 xy xz yz\n"))
    with pytest.raises(InputError, match="orthogonal box.*tilted or turned"):
        read_structure(path)
