"""Files of other programs are read as they were written, and a fault says where it is."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_files import (
    CELLS,
    CONSTANT,
    FIELD,
    SPINS,
    VECTORS,
    ase_atoms,
    block_of,
    dataset,
    dump,
    fault,
    field_of,
    good,
    ovf,
    species,
    square,
)

import mpiflow
from mpiflow import InputError, import_array, import_trajectory
from mpiflow.cli import invoke
from mpiflow.files.structure import species_of
from mpiflow.initial.alloy import from_structure
from mpiflow.systems import alloy

# -- OVF -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("form", ["Text", "Binary 4", "Binary 8"])
def test_ovf(tmp_path: Path, version: int, form: str) -> None:
    for k, frame in enumerate(VECTORS):
        (tmp_path / f"m{k}.ovf").write_bytes(ovf(frame, version, form, time=k * 1e-12))
    times = {"time_step": 1.0} if version == 1 else {"time_unit": 1e12}
    for component, wanted in (("z", FIELD), ("0", 0.5 * FIELD)):
        out = import_trajectory(
            str(tmp_path / "m?.ovf"), tmp_path / f"{component}.h5", component=component, **times
        )
        good(out)
        assert np.array_equal(field_of(out), wanted.astype("f4"))
        with mpiflow.open(out) as run:
            assert np.allclose(run.time, range(4), atol=1e-12)


def test_ovf_in_the_other_order_of_bytes_and_in_other_units(tmp_path: Path) -> None:
    path = tmp_path / "m.ovf"
    for version in (1, 2):
        path.write_bytes(ovf(VECTORS[0], version, "Binary 8", swap=True))
        out = import_trajectory(path, tmp_path / "m.h5", component="y", overwrite=True)
        assert np.array_equal(field_of(out)[0], -FIELD[0].astype("f4"))
    path.write_bytes(ovf(VECTORS[0], 1, "Text", multiplier=2.0))
    out = import_trajectory(path, tmp_path / "m.h5", component="y", overwrite=True)
    assert np.array_equal(field_of(out)[0], -2 * FIELD[0].astype("f4"))
    two = np.concatenate(VECTORS[:2])
    path.write_bytes(ovf(two, 2, "Binary 4"))
    out = import_trajectory(path, tmp_path / "m.h5", component="m_z", layer=1, overwrite=True)
    assert np.array_equal(field_of(out)[0], FIELD[1].astype("f4"))
    fault(path, "--layer 0 to 1", component="z")
    fault(path, "layer 2", component="z", layer=2)
    segments = path.with_name("two.ovf")  # two frames in a file
    both = ovf(VECTORS[0], 2, "Binary 4") + ovf(VECTORS[1], 2, "Binary 4", 1.0).partition(b"\n")[2]
    segments.write_bytes(both)
    out = import_trajectory(segments, tmp_path / "two.h5", component="z")
    assert np.array_equal(field_of(out), FIELD[:2].astype("f4"))


def test_headers_of_other_programs(tmp_path: Path) -> None:
    """Scalars of ubermag without units; OOMMF's own words, spaces and ends of lines."""
    path = tmp_path / "m.ovf"
    text = ovf(VECTORS[0], 2, "Text").decode()
    head, _, _ = text.partition("# Begin: Data Text\n")
    head = head.replace("# valuedim: 3", "# valuedim: 1").replace("m_x m_y m_z", "{Total energy}")
    rows = "".join(f" {value!r}\n" for value in FIELD[0].ravel().tolist())
    path.write_text(head + "# Begin: Data Text\n" + rows + "# End: Data Text\n# End: Segment\n")
    out = import_trajectory(path, tmp_path / "m.h5")
    assert np.array_equal(field_of(out)[0], FIELD[0].astype("f4"))
    text = ovf(VECTORS[0], 1, "Text").decode().replace("# xnodes", "#  XNodes ")
    text = text.replace("# Begin: Data Text", "# Desc:  Total simulation time: 5e-10 s\n"
                        "##  a remark\n# begin: data text").replace("\n", "\r\n")  # fmt: skip
    path.write_bytes(text.encode())
    out = import_trajectory(path, tmp_path / "m.h5", component="Z", overwrite=True)
    assert np.array_equal(field_of(out)[0], FIELD[0].astype("f4"))
    with mpiflow.open(out) as run:
        assert run.time.tolist() == [5e-10]


def test_faults_of_ovf(tmp_path: Path) -> None:
    path = tmp_path / "m.ovf"
    whole = ovf(VECTORS[0], 2, "Binary 4")
    start = whole.index(b"Data Binary 4\n") + len(b"Data Binary 4\n")
    path.write_bytes(whole)
    fault(path, "m_x or m_y or m_z")
    fault(path, "'q'", "m_x, m_y, m_z", component="q")
    path.write_bytes(whole[:-400])
    fault(path, "ends at byte", "too early", component="z")
    path.write_bytes(whole[:start] + b"\0\0" + whole[start + 2 :])
    fault(path, f"At byte {start}", "1234567", component="z")
    path.write_bytes(whole.replace(b"rectangular\n", b"irregular\n"))
    fault(path, "irregular", component="z")
    path.write_bytes(whole.replace(b"rectangular\n", b"irregular\n").replace(
        b"# OOMMF OVF 2.0", b"# OOMMF: irregular mesh v1.0"))  # fmt: skip
    fault(path, "irregular", component="z")
    path.write_bytes(whole.replace(b"count: 1", b"count: 2"))
    fault(path, "after 1 of 2 segments", component="z")
    path.write_bytes(whole.replace(b"ynodes: 8", b"ynodes: 7"))
    fault(path, "12 x 7 x 1 nodes of 3", "At byte", component="z")
    path.write_bytes(whole.replace(b"ynodes: 8", b"ynodes: 8000000000000"))
    fault(path, "too early", component="z")
    path.write_bytes(whole.replace(b"# ynodes: 8\n", b""))
    fault(path, "ynodes", component="z")
    path.write_bytes(whole[: start - 40])
    fault(path, "before its data", component="z")
    text = ovf(VECTORS[0], 1, "Text")
    lines = text.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-10]))
    fault(path, "after 88 of 96 nodes", component="z")
    path.write_bytes(b"".join([*lines[:-10], b"1 2\n", *lines[-10:]]))
    fault(path, f"Line {len(lines) - 9} has '1 2'", component="z")
    path.write_bytes(whole)
    other = tmp_path / "n.ovf"
    other.write_bytes(ovf(VECTORS[1], 2, "Binary 4", time=-1.0))
    fault(path, str(other), "time -1 comes after 0", files=[path, other], component="z",
          time_step=None)  # fmt: skip


# -- atoms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["extxyz", "vasp", "cif", "lammps-data", "lammps-dump"])
def test_alloys_of_ase(tmp_path: Path, form: str) -> None:
    """Two frames in files that ASE writes: POSCAR, CIF, LAMMPS data, dump and extended XYZ."""
    from ase.io import write

    frames = [species(1), species(2)]
    atoms = [ase_atoms(*frame) for frame in frames]
    path = tmp_path / f"a.{form}"
    files = [path]
    options: dict[str, Any] = {"time_step": 2.0}
    if form == "extxyz":
        write(path, atoms, format=form)
    elif form == "lammps-dump":
        path.write_text("".join(dump(k, one) for k, one in enumerate(atoms)))
        options = {"time_unit": 0.02}
    else:
        files = [tmp_path / f"{k}.{form}" for k in (0, 1)]
        more = {"specorder": ["Nb", "Mo", "Ta"], "masses": True} if form == "lammps-data" else {}
        for name, one in zip(files, atoms, strict=True):
            write(name, one, format=form, **more)
    packed = [name.with_name(name.name + ".gz") for name in files]
    for name, gz in zip(files, packed, strict=True):
        gz.write_bytes(gzip.compress(name.read_bytes()))
    for number, given in enumerate((files, packed)):
        out = import_trajectory(given, tmp_path / f"{number}.h5", **options)
        good(out)
        with mpiflow.open(out) as run:
            assert run.time.tolist() == [0, 2]
            assert run.config["cells"] == list(CELLS)
            assert run.attributes["lattice_constant_angstrom"] == pytest.approx(CONSTANT)
            for k, (grid, _) in enumerate(frames):
                assert np.array_equal(run["species"][k], species_of(grid))
            assert (alloy.species_numbers(run["bonds"]).sum(axis=-1) == 160).all()
    invoke(["export", str(out), "--to", "extxyz", "--frame", "all", "--out", str(tmp_path / "b")])
    again = import_trajectory(tmp_path / "b", tmp_path / "c.h5", time_step=2.0)
    with mpiflow.open(out) as one, mpiflow.open(again) as other:
        assert np.array_equal(one["species"], other["species"])


def test_an_alloy_goes_on_as_ours(tmp_path: Path) -> None:
    grid, places = species()
    (tmp_path / "a.dump").write_text(dump(0, ase_atoms(grid, places)))
    out = import_trajectory(tmp_path / "a.dump", tmp_path / "a.h5")
    invoke(["export", str(out), "--to", "xdmf"])
    block = block_of(grid.shape)
    assert from_structure(block, out) == pytest.approx(CONSTANT)
    assert np.array_equal(block.spins()[0], grid)


def test_elements_are_those_of_the_file(tmp_path: Path) -> None:
    ase = pytest.importorskip("ase", reason="ASE writes the files")
    from ase.build import bulk
    from ase.io import write

    atoms = bulk("Fe", "bcc", a=2.87, cubic=True) * (4, 4, 4)
    atoms.symbols[:40] = "Cr"
    write(tmp_path / "a.xyz", atoms)
    out = import_trajectory(tmp_path / "a.xyz", tmp_path / "a.h5")
    good(out)
    with mpiflow.open(out) as run:
        assert run["element"].tolist() == ["Cr", "Fe"]
        assert alloy.species_numbers(run["bonds"])[0].tolist() == [0, 40, 88]
    given = import_trajectory(tmp_path / "a.xyz", tmp_path / "b.h5", elements="Fe,Co,Cr")
    with mpiflow.open(given) as run:
        assert alloy.species_numbers(run["bonds"])[0].tolist() == [0, 88, 0, 40]
    other = atoms.copy()
    other.symbols[0] = "Co"
    assert isinstance(other, ase.Atoms)
    write(tmp_path / "a.xyz", [atoms, other])
    fault(tmp_path / "a.xyz", "line 133: Atom 1 is 'Co'")


def test_faults_of_alloys(tmp_path: Path) -> None:
    path = tmp_path / "a.dump"
    grid, places = species()
    atoms = ase_atoms(grid, places, 0.0)
    text = dump(0, atoms) + dump(1, atoms)
    lines = text.splitlines(keepends=True)
    half = len(lines) // 2
    path.write_text("".join(lines[:-5]))
    fault(path, f"ends at line {len(lines) - 5}")
    path.write_text("".join([*lines[: half + 12], "1 2 3\n", *lines[half + 13 :]]))
    fault(path, f"Line {half + 13} has 3")
    path.write_text(text.replace("pp pp pp\n", "pp pp pp xy xz yz\n").replace(
        f"0 {CELLS[0] * CONSTANT}\n", f"0 {CELLS[0] * CONSTANT} 1.0\n").replace(
        f"0 {CELLS[1] * CONSTANT}\n", f"0 {CELLS[1] * CONSTANT} 0\n").replace(
        f"0 {CELLS[2] * CONSTANT}\n", f"0 {CELLS[2] * CONSTANT} 0\n"))  # fmt: skip
    fault(path, "triclinic")
    path.write_text(text.replace(" y\n", " w\n"))
    fault(path, "columns x y z")
    atoms.positions[7] += 0.5
    path.write_text(dump(0, ase_atoms(grid, places)) + dump(1, atoms))
    fault(path, f"line {half + 10}: Atom 8")
    path.write_text(text)
    fault(path, "'3'", "Atom", elements="Nb,Mo")
    fault(path, "times that rise", time_step=None, files=[path, path])
    fault(path, "--variable", variable="q")
    fault(path, "scale", scale=2.0)
    path.write_text(dump(1, atoms).replace("ITEM: ATOMS", "ITEM: ATOM"))
    fault(path, "Line 11 has")


def test_spparks(tmp_path: Path) -> None:
    path = tmp_path / "s.dump"
    path.write_text("".join(square(1.5 + SPINS[k] / 2, 0.25 * k) for k in range(4)))
    out = import_trajectory(path, tmp_path / "s.h5", scale=2, offset=-1.5)
    good(out)
    with mpiflow.open(out) as run:
        assert np.array_equal(run.spins(), SPINS)
        assert run.time.tolist() == [0, 0.25, 0.5, 0.75]
    path.write_text("".join(square(SPINS[k], k, "y x i2 type z", " pp pp ff") for k in range(4)))
    out = import_trajectory(path, tmp_path / "t.h5", variable="type")
    with mpiflow.open(out) as run:
        assert np.array_equal(run.spins(), SPINS)
    fault(path, "column 'spin'", "type", variable="spin")
    fault(path, "i2, type: choose with --variable")
    path.write_text(square(SPINS[0], 0) + square(SPINS[1][:, :8], 1))
    fault(path, "From line 147 on it has 64 atoms", "had 16 x 8", time_step=None)
    path.write_text(square(SPINS[0], 1) + square(SPINS[1], 0))
    fault(path, "time 0 comes after 1", time_step=None)
    broken = square(SPINS[0], 0).splitlines(keepends=True)
    path.write_text("".join([*broken[:9], "999 1 3.5 2 0\n", *broken[10:]]))
    fault(path, "Line 10: (3.5, 2)")
    path.write_text("".join([*broken[:10], broken[9], *broken[11:]]))
    fault(path, "lines 10 and 11")
    path.write_text("".join([*broken[:9], "1 nan 3 2 0\n", *broken[10:]]))
    fault(path, "Line 10")


def test_states(tmp_path: Path) -> None:
    """States of a Potts model by SPPARKS: fractions, walls, and a simulation that starts there."""
    states = np.random.default_rng(5).integers(1, 4, (3, 8, 16))
    path = tmp_path / "s.dump"
    path.write_text("".join(square(frame, k) for k, frame in enumerate(states)))
    out = import_trajectory(path, tmp_path / "s.h5", states="1,4", block=4)
    good(out)
    with mpiflow.open(out) as run:
        assert run["state"].tolist() == [1, 2, 3, 4]
        assert np.array_equal(run["site_state"], states)
        each = np.stack([states == k for k in range(1, 5)], axis=1)
        assert np.array_equal(run["fraction"], each.mean(axis=(2, 3)))
        blocks = each.reshape(3, 4, 2, 4, 4, 4).mean(axis=(3, 5))
        assert np.array_equal(run["coarse_fraction"], blocks.astype("f4"))
        walls = sum((states != np.roll(states, 1, axis)).mean(axis=(1, 2)) for axis in (1, 2)) / 2
        assert np.allclose(run["domain_wall_density"], walls, rtol=1e-15)
    with mpiflow.open(import_array(states, tmp_path / "t.h5", kind="states", time_step=1)) as run:
        assert run["state"].tolist() == [1, 2, 3]
    states[1, 2, 3] = 7
    for values, says in ((states, "frame 1: at y = 2, x = 3 it has 7"), (FIELD, "it has"),
                         (states * 100, "-128 to 127")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            import_array(values, tmp_path / "u.h5", kind="states", time_step=1)
    for options in ({"states": "4,1"}, {"states": "1,4", "kind": "field"}, {"states": "1"}):
        with pytest.raises(InputError, match="states"):
            import_array(states, tmp_path / "u.h5", time_step=1, **options)


def test_vectors_of_atoms(tmp_path: Path) -> None:
    """Extended XYZ as ASE writes it, with a vector at each site of a square lattice."""
    ase = pytest.importorskip("ase", reason="ASE writes the files")
    from ase.io import write

    y, x = np.mgrid[:8, :12]
    places = np.stack([x, y, 0 * x], axis=-1).reshape(-1, 3) * 2.5 + 1.25
    frames = []
    for k, field in enumerate(FIELD):
        atoms = ase.Atoms("Fe96", positions=places, cell=[30, 20, 10], pbc=[True, True, False])
        moments = np.stack([field, 0 * field, -field], axis=-1).reshape(-1, 3)
        atoms.set_array("spin", moments)
        atoms.info["time"] = 0.5 * k
        frames.append(atoms)
    write(tmp_path / "a.xyz", frames, format="extxyz")
    out = import_trajectory(tmp_path / "a.xyz", tmp_path / "a.h5", variable="spin", component="z")
    good(out)
    assert np.allclose(field_of(out), -FIELD, atol=1e-6)
    with mpiflow.open(out) as run:
        assert run.time.tolist() == [0, 0.5, 1, 1.5]
    fault(tmp_path / "a.xyz", "--component x or y or z", time_step=None)


# -- netCDF and zarr -----------------------------------------------------------------------------


def test_netcdf_and_zarr(tmp_path: Path) -> None:
    data, stores = dataset(), []
    for number, settings in enumerate(
        ({"engine": "netcdf4"}, {"engine": "h5netcdf"}, {"format": "NETCDF3_64BIT"})
    ):
        data.to_netcdf(tmp_path / f"{number}.nc", **settings)
        stores.append(tmp_path / f"{number}.nc")
    pytest.importorskip("zarr", reason="zarr stores are read by it")
    for form in (2, 3):
        data.to_zarr(tmp_path / f"{form}.zarr", zarr_format=form, consolidated=False)
        stores.append(tmp_path / f"{form}.zarr")
    for store in stores:
        out = import_trajectory(store, tmp_path / "m.h5", variable="m", overwrite=True)
        good(out)
        assert np.array_equal(field_of(out), FIELD.astype("f4"))
        with mpiflow.open(out) as run:
            assert run.time.tolist() == [0, 1, 2.5, 3]
            assert "xarray" in run.config["reader"]
        options = {"variable": "v", "component": "2", "overwrite": True}
        out = import_trajectory(store, tmp_path / "v.h5", **options)
        assert np.allclose(field_of(out), -FIELD, atol=1e-7)


def test_dimensions_are_known_by_name_or_axis(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray", reason="xarray writes the files")
    stack, path = np.stack([FIELD, -FIELD]), tmp_path / "a.nc"  # (z, time, y, x)
    named = xarray.Dataset({"m": (("z", "time", "y", "x"), stack)})
    along = {
        "lat": ("lat", np.arange(8.0), {"axis": "Y"}),
        "lon": ("lon", np.arange(12.0), {"axis": "X"}),
        "k": ("k", [0.0, 1], {"axis": "Z"}),
        "n": ("n", np.arange(4.0)),
    }
    by_axis = xarray.Dataset({"m": (("k", "n", "lat", "lon"), stack)}, along)
    plain = xarray.Dataset({"m": (("a", "b", "c"), FIELD)})
    for data in (named, named.transpose(), by_axis.transpose(), plain):
        data.to_netcdf(path)
        options = {} if data is plain else {"layer": 1}
        out = import_trajectory(path, tmp_path / "m.h5", overwrite=True, time_step=1, **options)
        assert np.allclose(field_of(out), FIELD if data is plain else -FIELD, atol=1e-7)
    named.to_netcdf(path)
    fault(path, "--layer 0 to 1")
    xarray.Dataset({"m": (("time", "pair"), FIELD[0])}).to_netcdf(path)
    fault(path, "m is over time, pair")


def test_faults_of_netcdf(tmp_path: Path) -> None:
    data, path = dataset(), tmp_path / "a.nc"
    data.to_netcdf(path)
    fault(path, "m, v", "--variable", time_step=None)
    fault(path, "variable 'energy'", variable="energy", time_step=None)
    fault(path, "choose with --component 1 or 2", variable="v", time_step=None)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fault(path, str(path), variable="m", time_step=None)
    data = data.assign_coords(time=[0.0, 2.0, 1.0, 3.0])
    data.to_netcdf(path)
    fault(path, "frame 2 of m", "time 1 comes after 2", variable="m", time_step=None)
    data["m"][1, 2, 3] = np.nan
    data.to_netcdf(path)
    fault(path, "frame 1 of m: at y = 2, x = 3", variable="m")
    out = import_array(SPINS, tmp_path / "run.h5", time_step=1)
    fault(out, "a run already")


def test_a_library_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset().to_netcdf(tmp_path / "a.nc")
    monkeypatch.setitem(sys.modules, "xarray", None)
    fault(tmp_path / "a.nc", "xarray", "mpiflow[import]", variable="m")
