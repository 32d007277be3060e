"""Files of other programs, as they write them, and what is asked of every import of one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpiflow
from mpiflow import InputError, import_trajectory
from mpiflow.commands.verify import verify_file
from mpiflow.core.block import Block
from mpiflow.core.lattice import Lattice
from mpiflow.systems.alloy import NOT_A_SITE, is_site

_RNG = np.random.default_rng(3)
SPINS = np.where(_RNG.random((4, 8, 16)) < 0.3, -1, 1)
FIELD = np.round(_RNG.uniform(-0.9, 0.9, (4, 8, 12)), 4)


def field_of(path: Path) -> np.ndarray:
    with mpiflow.open(path) as run:
        return run["coarse_magnetization"]


def good(path: Path) -> None:
    """The file is a run like any other: verified, opened, summed up."""
    found = verify_file(path)
    assert found.good, found
    with mpiflow.open(path) as run:
        assert run.complete
        assert run.attributes["system"] == "imported"
        assert "imported    from" in run.summary()


def fault(path: Path, *words: str, files: Any = None, **options: Any) -> None:
    """A bad file is refused in one line that has these words; nothing is written."""
    before = contents(path.parent)
    options = {"time_step": 1.0, "out": path.parent / "bad.h5"} | options
    with pytest.raises(InputError) as caught:
        import_trajectory(files or path, **options)
    text = str(caught.value)
    assert "\n" not in text.replace("\\n", "")
    for word in words:
        assert word in text, text
    assert contents(path.parent) == before


def block_of(shape: tuple[int, ...]) -> Block:
    """A lattice that waits to be filled."""
    array = np.zeros((1, *(n + 2 for n in shape)), np.int8)
    origins, members = np.zeros((1, len(shape)), np.int64), np.zeros(1, np.uint64)
    return Block(Lattice(shape), array, origins, members, halo=1, policy="wrap")


def contents(folder: Path) -> dict[Path, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".manifest.lock"]
    return {p: p.read_bytes() for p in files}


# -- OVF -----------------------------------------------------------------------------------------

HEAD = """# Begin: Segment
# Begin: Header
# Title: m
# meshtype: rectangular
# meshunit: m
# xbase: 2e-09
# ybase: 2e-09
# zbase: 2e-09
# xstepsize: 4e-09
# ystepsize: 4e-09
# zstepsize: 4e-09
# xmin: 0
# ymin: 0
# zmin: 0
# xmax: 4.8e-08
# ymax: 3.2e-08
# zmax: {nz}e-09
# xnodes: 12
# ynodes: 8
# znodes: {nz}
"""
OF_1 = """# valueunit: A/m
# valuemultiplier: {multiplier}
# ValueRangeMinMag: 1e-08
# ValueRangeMaxMag: 1
"""
OF_2 = """# valuedim: 3
# valuelabels: m_x m_y m_z
# valueunits: 1 1 1
# Desc: Total simulation time:  {time}  s
"""


def ovf(vectors: np.ndarray, version: int, form: str, time: float = 0.0, swap: bool = False,
        multiplier: float = 1.0) -> bytes:  # fmt: skip
    """The bytes of a file of vectors (nz, ny, nx, 3), by the OOMMF user's guide."""
    first = {1: "# OOMMF: rectangular mesh v1.0\n", 2: "# OOMMF OVF 2.0\n"}[version]
    text = f"{first}#\n# Segment count: 1\n#\n{HEAD}{OF_1 if version == 1 else OF_2}"
    text = text.format(nz=len(vectors), time=time, multiplier=multiplier)
    text += f"# End: Header\n# Begin: Data {form}\n"
    if form == "Text":
        body = "".join(f"{x!r} {y!r} {z!r}\n" for x, y, z in vectors.reshape(-1, 3).tolist())
        data = body.encode()
    else:
        size = int(form[-1])
        order = "<" if (version == 2) != swap else ">"
        letter, check = {4: ("f", 1234567.0), 8: ("d", 123456789012345.0)}[size]
        data = struct.pack(f"{order}{letter}", check)
        data += vectors.astype(f"{order}f{size}").tobytes() + b"\n"
    return text.encode() + data + f"# End: Data {form}\n# End: Segment\n".encode()


VECTORS = np.stack([0.5 * FIELD, -FIELD, FIELD], axis=-1)[:, None]  # (time, z, y, x, component)


# -- atoms ---------------------------------------------------------------------------------------

CELLS, CONSTANT = (4, 4, 5), 3.2


def species(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bcc alloy: the grid of its species, and positions and species of its atoms."""
    grid = np.where(is_site(tuple(2 * n for n in CELLS)), np.int8(1), np.int8(NOT_A_SITE))
    sites = grid == 1
    grid[sites] = np.random.default_rng(seed).integers(1, 4, sites.sum())
    grid[0, 0, 0] = 0
    places = np.argwhere(grid > 0)
    return grid, places


def ase_atoms(grid: np.ndarray, places: np.ndarray, jitter: float = 0.1) -> Any:
    ase = pytest.importorskip("ase", reason="ASE writes the files")
    names = np.array(["X", "Nb", "Mo", "Ta"])[grid[tuple(places.T)]]
    shifts = np.random.default_rng(1).uniform(-jitter, jitter, places.shape)
    at = (places + shifts) * CONSTANT / 2
    box = [n * CONSTANT for n in CELLS]
    return ase.Atoms(list(names), positions=at, cell=box, pbc=True)


def dump(step: int, atoms: Any) -> str:
    """A frame of a LAMMPS dump, its columns in an odd order and its rows in another."""
    box = "".join(f"{low} {low + side}\n" for low, side in zip((0, 0, 0), atoms.cell.lengths()))  # noqa: B905
    types = {"Nb": 1, "Mo": 2, "Ta": 3}
    order = np.random.default_rng(2).permutation(len(atoms))
    rows = "".join(
        f"{atoms.positions[i, 2]} 0.5 {types[atoms.symbols[i]]} {atoms.positions[i, 0]} "
        f"{i + 1} {atoms.positions[i, 1]}\n"
        for i in order
    )
    return (
        f"ITEM: TIMESTEP\n{step * 100}\nITEM: NUMBER OF ATOMS\n{len(atoms)}\n"
        f"ITEM: BOX BOUNDS pp pp pp\n{box}ITEM: ATOMS z q type x id y\n{rows}"
    )


def square(values: np.ndarray, time: float, columns: str = "id type x y z", flags: str = "") -> str:
    """A frame of a SPPARKS dump, its sites in an odd order."""
    ny, nx = values.shape
    order = np.random.default_rng(2).permutation(values.size)
    known = [{"id": i + 1, "type": values.flat[i], "x": i % nx, "y": i // nx, "z": 0, "i2": 7}
             for i in order]  # fmt: skip
    rows = "".join(" ".join(f"{row[c]:g}" for c in columns.split()) + " \n" for row in known)
    return (
        f"ITEM: TIMESTEP\n{int(time)} {time:10g}\nITEM: NUMBER OF ATOMS\n{values.size}\n"
        f"ITEM: BOX BOUNDS{flags}\n0 {nx}\n0 {ny}\n-0.5 0.5\nITEM: ATOMS {columns} \n{rows}"
    )


# -- netCDF --------------------------------------------------------------------------------------


def dataset() -> Any:
    xarray = pytest.importorskip("xarray", reason="xarray writes the files")
    vectors = np.stack([FIELD, -FIELD], axis=1)
    return xarray.Dataset(
        {
            "m": (("time", "y", "x"), FIELD.astype("f4")),
            "v": (("time", "part", "y", "x"), vectors),
            "energy": (("time",), np.zeros(4)),
        },
        {"time": ("time", [0.0, 1.0, 2.5, 3.0], {"units": "s"}), "part": [1, 2]},
    )
