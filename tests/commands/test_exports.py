"""Exports are read back by the tools they are for: xarray, netCDF4, VTK (as in ParaView)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpiflow.cli import invoke
from mpiflow.commands import export as exports
from mpiflow.commands import netcdf as classic
from mpiflow.core.errors import InputError
from mpiflow.files.schema import STANDARD, Variable, block_centres
from mpiflow.files.structure import read_structure
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.systems.alloy import is_site

ABOUT: dict[str, Any] = {
    "system": "ising",
    "config_json": json.dumps({"size": [24, 40], "temperature": 2.5}),
    "seed": 2**63 + 7,
    "rng": "threefry2x64-13",
    "decomposition_invariant": True,
}
TIMES = [0.0, 0.5, 1.25, 7.0, 7.5]
#: Blocks of 8 x 8 sites on 24 x 40 sites: three rows of five.
DIMS = {"y": 3, "x": 5, "site_y": 24, "site_x": 40, "pair": 2}
COORDINATES = {
    "y": block_centres(24, 8),
    "x": block_centres(40, 8),
    "pair": np.array(["NbNb", "NbMo"]),
}
VARIABLES = [
    STANDARD["magnetization"],
    STANDARD["flips"],
    STANDARD["sro"],
    STANDARD["coarse_magnetization"],
    STANDARD["spin"].over("site_y", "site_x"),
    Variable("weight", ("x",), long_name="of a column", per_frame=False),
]


def frame(k: int) -> dict[str, Any]:
    rng = np.random.default_rng(k)
    return {
        "magnetization": np.nan if k == 1 else rng.normal(),
        "flips": 2**40 + k,
        "sro": rng.normal(size=2),
        "coarse_magnetization": rng.normal(size=(3, 5)).astype("f4"),
        "spin": rng.choice(np.array([-1, 1], np.int8), (24, 40)),
    }


WEIGHT = np.linspace(0.1, 1, 5)


def new_writer(path: Path) -> TrajectoryWriter:
    writer = TrajectoryWriter(
        path,
        dims=DIMS,
        variables=VARIABLES,
        coordinates=COORDINATES,
        attributes=ABOUT,
        flush_interval=0,
    )
    writer.write_static("weight", WEIGHT)
    return writer


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A complete run."""
    path = tmp_path / "run.h5"
    with new_writer(path) as writer:
        for k, time in enumerate(TIMES):
            writer.append(time, frame(k))
    return path


def same_bits(a: Any, b: Any) -> bool:
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def expected(name: str, steps: slice = slice(None)) -> np.ndarray:
    values = np.stack([np.asarray(frame(k)[name]) for k in range(len(TIMES))[steps]])
    return values.astype(STANDARD[name].dtype)


# -- netCDF ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_netcdf_opens_in_xarray_with_the_same_bits(run: Path, engine: str, capsys: Any) -> None:
    xarray = pytest.importorskip("xarray")
    invoke(["export", str(run), "--to", "netcdf"])
    assert capsys.readouterr().out == f"{run.with_suffix('.nc')}: 5 frames\n"
    with xarray.open_dataset(run.with_suffix(".nc"), engine=engine) as data:
        assert set(data.data_vars) == {v.name for v in VARIABLES}
        assert dict(data.sizes) == {"time": 5, **DIMS}
        for name in ("magnetization", "flips", "sro", "coarse_magnetization", "spin"):
            assert same_bits(data[name].values, expected(name)), name
            assert data[name].dims == ("time", *next(v.dims for v in VARIABLES if v.name == name))
            assert data[name].attrs["long_name"] == STANDARD[name].long_name
            assert data[name].attrs["units"] == "1"
        assert data["coarse_magnetization"].attrs["cell_methods"] == "time: point y: mean x: mean"
        assert same_bits(data["weight"].values, WEIGHT)
        assert same_bits(data["time"].values, np.array(TIMES))
        assert data["time"].attrs["axis"] == "T"
        assert data["time"].attrs["long_name"] == "time in attempts per spin"
        assert same_bits(data["y"].values, block_centres(24, 8))
        assert same_bits(data["x"].values, block_centres(40, 8))
        assert list(data["pair"].values) == ["NbNb", "NbMo"]
        assert data["y"].attrs == {"axis": "Y", "units": "1", "long_name": "y in sites"}
        assert data.attrs["seed"] == 2**63 + 7
        assert data.attrs["config_json"] == ABOUT["config_json"]
        assert data.attrs["Conventions"] == "CF-1.11"
        assert data.attrs["complete"] == 1
        assert "export --to netcdf run.h5" in data.attrs["history"]


def test_netcdf_is_plain_and_compressed(run: Path) -> None:
    netcdf = pytest.importorskip("netCDF4")
    with Trajectory(run) as trajectory:
        path, frames = exports.to_netcdf(trajectory)
    assert (path, frames) == (run.with_suffix(".nc"), 5)
    with netcdf.Dataset(path) as data:
        assert data.data_model == "NETCDF4"
        assert not data.groups
        assert data.dimensions["time"].isunlimited()
        assert {"CLASS", "NAME", "DIMENSION_LIST"}.isdisjoint(data["spin"].ncattrs())
        for name in ("spin", "coarse_magnetization", "flips"):
            filters = data[name].filters()
            assert (filters["zlib"], filters["shuffle"], filters["fletcher32"]) == (True,) * 3
        data.set_auto_mask(False)
        assert same_bits(data["spin"][:], expected("spin"))
        assert same_bits(data["flips"][:], expected("flips"))
        assert np.isnan(data["magnetization"][1])
        attributes = set(data["x"].ncattrs())
        assert attributes == {"axis", "units", "long_name"}, "no missing values in a coordinate"
        assert "schema_version" not in data.ncattrs(), "it is no Trajectory"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("1:4", slice(1, 4)),
        ("::2", slice(None, None, 2)),
        ("-2:", slice(-2, None)),
        ("3", slice(3, 4)),
        ("-1", slice(-1, None)),
        ("1:100:3", slice(1, None, 3)),
    ],
)
def test_netcdf_of_some_variables_and_frames(run: Path, text: str, steps: slice) -> None:
    netcdf = pytest.importorskip("netCDF4")
    out = run.with_name("part.nc")
    line = ["export", str(run), "--to", "netcdf", "--variables", "coarse_magnetization, flips"]
    invoke([*line, "--frames", text, "--out", str(out)])
    with netcdf.Dataset(out) as data:
        assert set(data.variables) == {"time", "y", "x", "coarse_magnetization", "flips"}
        assert set(data.dimensions) == {"time", "y", "x"}
        assert same_bits(data["time"][:].data, np.array(TIMES)[steps])
        for name in ("coarse_magnetization", "flips"):
            assert same_bits(data[name][:].data, expected(name, steps))


def test_netcdf_is_copied_in_batches(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netcdf = pytest.importorskip("netCDF4")
    monkeypatch.setattr(classic, "_BATCH_BYTES", 2 * 15 * 4)  # two coarse fields, no two of spins
    read, most = Trajectory.read, {}

    def noting(self: Trajectory, name: str, frames: Any = slice(None)) -> np.ndarray:
        values = read(self, name, frames)
        most[name] = max(len(values), most.get(name, 0))
        return values

    monkeypatch.setattr(Trajectory, "read", noting)
    with Trajectory(run) as trajectory:
        path, _ = exports.to_netcdf(trajectory, frames=slice(1, None))
    assert most["spin"] == 1
    assert most["coarse_magnetization"] == 2
    with netcdf.Dataset(path) as data:
        for name in ("spin", "coarse_magnetization", "sro"):
            assert same_bits(data[name][:].data, expected(name, slice(1, None))), name


def test_netcdf_chunks_stay_small() -> None:
    for shape, size in [((), 8), ((6,), 8), ((128, 128), 4), ((16384, 16384), 1), ((3, 5000), 8)]:
        chunks = classic._chunks(shape, size, 10**6)
        assert 2**14 < np.prod(chunks) * size <= 2**20, (shape, chunks)
        assert all(c <= n for c, n in zip(chunks[1:], shape, strict=True))
    assert classic._chunks((2,), 8, 3) == [3, 2]


# -- XDMF --------------------------------------------------------------------------------------


def vtk_frames(path: Path) -> Iterator[tuple[float, list[Any]]]:
    """What VTK reads: the time of each step and its grids."""
    module = pytest.importorskip("vtkmodules.vtkIOXdmf2")
    reader = module.vtkXdmfReader()
    reader.SetFileName(str(path))
    reader.UpdateInformation()
    pipeline = reader.GetExecutive()
    for time in pipeline.GetOutputInformation(0).Get(pipeline.TIME_STEPS()):
        reader.UpdateTimeStep(time)
        data = reader.GetOutputDataObject(0).NewInstance()  # the reader fills its own again
        data.ShallowCopy(reader.GetOutputDataObject(0))
        assert data.GetInformation().Get(data.DATA_TIME_STEP()) == time
        many = data.IsA("vtkMultiBlockDataSet")
        yield time, [data.GetBlock(i) for i in range(data.GetNumberOfBlocks())] if many else [data]


def vtk_values(arrays: Any, name: str) -> np.ndarray:
    from vtkmodules.util.numpy_support import vtk_to_numpy

    return np.array(vtk_to_numpy(arrays.GetArray(name)))


def check_fields(path: Path, steps: slice = slice(None)) -> None:
    """Both fields of ``frame``, every cell at its place."""
    numbers = range(len(TIMES))[steps]
    found = list(vtk_frames(path))
    assert [time for time, _ in found] == [TIMES[k] for k in numbers]
    for k, (_, grids) in zip(numbers, found, strict=True):
        blocks, sites = grids
        for grid, name, side in ((blocks, "coarse_magnetization", 8), (sites, "spin", 1)):
            values = frame(k)[name]
            rows, columns = values.shape
            assert grid.GetBounds() == (-0.5, 39.5, -0.5, 23.5, -0.5, 0.5)
            assert grid.GetDimensions() == (columns + 1, rows + 1, 2)
            shown = vtk_values(grid.GetCellData(), name)
            assert shown.dtype == values.dtype
            assert same_bits(shown, values.ravel())
            # The same by place: the cell around a site has the value of that site's block.
            for y, x in ((0, 0), (0, 39), (23, 0), (9, 17)):
                cell = grid.FindCell([x, y, 0.1], None, 0, 1e-9, *_scratch())
                assert shown[cell] == values[y // side, x // side], (name, y, x)


def _scratch() -> tuple[Any, list[float], list[float]]:
    from vtkmodules.vtkCommonCore import reference

    return reference(0), [0.0] * 3, [0.0] * 8


def test_xdmf_of_a_sealed_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(run) as file:
        assert file["spin"].fletcher32
        assert file["spin"].compression == "gzip"
        assert file["spin"].shuffle
        assert file.id.get_create_plist().get_version()[0] >= 2, "libver v110"
    invoke(["export", str(run), "--to", "xdmf"])
    monkeypatch.chdir("/")  # paths in the text are relative to the text
    check_fields(run.with_suffix(".xdmf"))
    assert sorted(p.name for p in run.parent.iterdir() if p.suffix in (".h5", ".xdmf")) == [
        "run.h5",
        "run.xdmf",
    ], "no copy of the data"


def test_xdmf_in_another_folder_with_odd_names(run: Path, tmp_path: Path) -> None:
    odd = run.rename(tmp_path / "run of é & 1.h5")
    out = tmp_path / "a folder"
    out.mkdir()
    line = ["export", str(odd), "--to", "xdmf", "--out", str(out / "o.xdmf")]
    invoke([*line, "--frames", "::2"])
    check_fields(out / "o.xdmf", slice(None, None, 2))


def test_xdmf_of_a_live_run_which_then_grows(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    with new_writer(path) as writer:
        for k in range(4):
            writer.append(TIMES[k], frame(k))
        with Trajectory(path) as trajectory:
            assert not trajectory.complete
            text, frames = exports.to_xdmf(trajectory)
        assert frames == 4
        with h5py.File(path, locking=False) as file:
            assert file.id.get_create_plist().get_version()[0] == 0, "the live format"
        check_fields(text, slice(0, 4))
        writer.append(TIMES[4], frame(4))
        check_fields(text, slice(0, 4))
    check_fields(text, slice(0, 4))


def test_xdmf_of_one_field(run: Path) -> None:
    out = run.with_name("spins.xdmf")
    invoke(["export", str(run), "--to", "xdmf", "--variables", "spin", "--out", str(out)])
    for k, (_, grids) in enumerate(vtk_frames(out)):
        (grid,) = grids
        assert grid.GetCellData().GetNumberOfArrays() == 1
        assert same_bits(vtk_values(grid.GetCellData(), "spin"), frame(k)["spin"].ravel())


def test_xdmf_of_a_field_in_three_dimensions_and_float64(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(2, 2, 3, 4))
    path = tmp_path / "run.h5"
    with TrajectoryWriter(
        path,
        dims={"z": 2, "y": 3, "x": 4},
        variables=[Variable("density", ("z", "y", "x"))],
        coordinates={"z": [0.5, 2.5], "y": [11.0, 14.0, 17.0], "x": 5.0 + np.arange(4)},
        attributes=ABOUT,
    ) as writer:
        for k in range(2):
            writer.append(k, {"density": values[k]})
    with Trajectory(path) as trajectory:
        text, _ = exports.to_xdmf(trajectory)
    for k, (_, (grid,)) in enumerate(vtk_frames(text)):
        assert grid.GetBounds() == (4.5, 8.5, 9.5, 18.5, -0.5, 3.5)
        assert grid.GetDimensions() == (5, 4, 3)
        assert same_bits(vtk_values(grid.GetCellData(), "density"), values[k].ravel())


def ensemble(path: Path) -> np.ndarray:
    values = np.random.default_rng(2).normal(size=(2, 3, 1, 5)).astype("f4")
    with TrajectoryWriter(
        path,
        dims={"member": 3, "y": 1, "x": 5},
        variables=[STANDARD["coarse_magnetization"].over("member", "y", "x")],
        coordinates={"y": block_centres(4, 4), "x": block_centres(20, 4)},
        attributes=ABOUT,
    ) as writer:
        for k in range(2):
            writer.append(k, {"coarse_magnetization": values[k]})
    return values


@pytest.mark.parametrize("member", [0, 2])
def test_xdmf_of_a_member(tmp_path: Path, member: int) -> None:
    values = ensemble(tmp_path / "run.h5")
    invoke(["export", str(tmp_path / "run.h5"), "--to", "xdmf", "--member", str(member)])
    for k, (_, (grid,)) in enumerate(vtk_frames(tmp_path / "run.xdmf")):
        assert grid.GetBounds() == (-0.5, 19.5, -0.5, 3.5, -0.5, 0.5), "also of a lone row"
        shown = vtk_values(grid.GetCellData(), "coarse_magnetization")
        assert same_bits(shown, values[k, member].ravel())


def test_xdmf_of_the_components_of_a_field(tmp_path: Path) -> None:
    """Fractions of blocks in each state are arrays of their own, beside a plain field."""
    values = np.random.default_rng(3).random((2, 2, 3, 2, 4)).astype("f4")
    plain = np.random.default_rng(4).random((2, 2, 2, 4)).astype("f4")
    path = tmp_path / "run.h5"
    names = ("coarse_fraction", "coarse_magnetization")
    with TrajectoryWriter(
        path,
        dims={"member": 2, "state": 3, "y": 2, "x": 4},
        variables=[STANDARD[n].over("member", *STANDARD[n].dims) for n in names],
        coordinates={"state": np.array([-1, 0, 1], np.int8)},
        attributes=ABOUT,
    ) as writer:
        for k in range(2):
            writer.append(k, dict(zip(names, (values[k], plain[k]), strict=True)))
    invoke(["export", str(path), "--to", "xdmf", "--member", "1"])
    for k, (_, (grid,)) in enumerate(vtk_frames(tmp_path / "run.xdmf")):
        assert grid.GetCellData().GetNumberOfArrays() == 4
        for i, state in enumerate((-1, 0, 1)):
            shown = vtk_values(grid.GetCellData(), f"coarse_fraction state {state}")
            assert same_bits(shown, values[k, 1, i].ravel())
        assert same_bits(vtk_values(grid.GetCellData(), names[1]), plain[k, 1].ravel())


def alloy(path: Path, species: bool = True) -> list[np.ndarray]:
    """A run on 2 x 3 x 4 cells; returns the species of its frames."""
    states = [np.random.default_rng(k).integers(0, 4, 48).astype(np.int8) for k in range(3)]
    with TrajectoryWriter(
        path,
        dims={"site": 48},
        variables=[STANDARD["hops"], *[STANDARD["species"]] * species],
        attributes={**ABOUT, "system": "alloy", "config_json": '{"cells": [2, 3, 4]}'},
    ) as writer:
        for k, state in enumerate(states):
            writer.append(1e-9 * k, {"hops": k} | ({"species": state} if species else {}))
    return states


def test_xdmf_of_an_alloy_is_its_sites(tmp_path: Path) -> None:
    pytest.importorskip("vtkmodules")
    states = alloy(tmp_path / "run.h5")
    invoke(["export", str(tmp_path / "run.h5"), "--to", "xdmf"])
    from vtkmodules.util.numpy_support import vtk_to_numpy

    found = list(vtk_frames(tmp_path / "run.xdmf"))
    assert [time for time, _ in found] == [0.0, 1e-9, 2e-9]
    for (_, (grid,)), state in zip(found, states, strict=True):
        points = vtk_to_numpy(grid.GetPoints().GetData())
        np.testing.assert_allclose(points, np.argwhere(is_site((4, 6, 8))) * 1.62, rtol=1e-6)
        assert grid.GetNumberOfCells() == 48
        assert same_bits(vtk_values(grid.GetPointData(), "species"), state)
    # The same atoms at the same places as in the other formats.
    invoke(["export", str(tmp_path / "run.h5"), "--to", "extxyz"])
    grid_of_atoms = read_structure(tmp_path / "run.xyz", cells=(2, 3, 4))
    at = np.rint(points / 1.62).astype(int)
    assert np.array_equal(grid_of_atoms[tuple(at.T)], states[-1])


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("run.h5 --to netcf", "Did you mean netcdf?"),
        ("run.h5 --to netcdf --frame 3", "frame='3': allowed is no value with --to netcdf"),
        ("run.h5 --to netcdf --member 0", "member=0: allowed is no value"),
        ("run.h5 --to xdmf --vacancies", "vacancies=True: allowed is no value"),
        ("alloy.h5 --to extxyz --frames 1:2", "frames='1:2': allowed is no value with --to ext"),
        ("alloy.h5 --to extxyz --variables hops", "variables='hops': allowed is no value"),
        ("run.h5 --to netcdf --variables magnetisation", "Did you mean magnetization?"),
        ("run.h5 --to xdmf --variables flips", "of coarse_magnetization, spin"),
        ("run.h5 --to netcdf --frames 5:", "a part of the frames 0 to 4"),
        ("run.h5 --to netcdf --frames 1:2:3:4", "START:STOP:STEP"),
        ("run.h5 --to netcdf --frames ::-1", "a step of 1 or more"),
        ("run.h5 --to netcdf --frames x", "START:STOP:STEP"),
        ("run.h5 --to xdmf --member 1", "member=1: allowed is 0 to 0"),
        ("few.h5 --to xdmf", "Run it again with --species"),
        ("empty.h5 --to netcdf", "a file with frames"),
        ("empty.h5 --to xdmf", "a file with frames"),
        ("none.h5 --to xdmf", "an existing trajectory"),
        ("run.h5 --to netcdf --out old", "a file that does not exist yet"),
        ("run.h5 --to xdmf --out old", "a file that does not exist yet"),
        ("run.h5 --to netcdf --out run.h5 --overwrite", "another file than the input"),
        ("run.h5 --to xdmf --out run.h5 --overwrite", "another file than the input"),
        ("run.h5 --to netcdf --out no/such/x.nc", "Create no/such first"),
        ("run.h5 --to xdmf --out no/such/x.xdmf", "Create no/such first"),
        ("run.h5 --to xdmf --out . --overwrite", "not a regular file"),
        ("a:b.h5 --to xdmf", "a path in UTF-8 without a colon"),
        ("alloy.h5 --to xdmf --out beside.xdmf", "out='beside.sites.hdf'"),
    ],
)
def test_exports_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = Path(line.split()[0])
    if name.name in ("alloy.h5", "few.h5"):
        alloy(name, species=name.name == "alloy.h5")
    elif name.name != "none.h5":
        with new_writer(name) as writer:
            for k in range(0 if name.name == "empty.h5" else 5):
                writer.append(TIMES[k], frame(k))
    Path("old").write_text("old")
    Path("beside.sites.hdf").write_text("old")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError) as caught:
        invoke(["export", *line.split()])
    assert says in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_missing_library_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "netCDF4", None)
    with Trajectory(run) as trajectory, pytest.raises(InputError, match=r"mpiflow\[plot\]"):
        exports.to_netcdf(trajectory)
    assert not run.with_suffix(".nc").exists()


@pytest.mark.parametrize("to", ["netcdf", "xdmf"])
def test_an_old_file_is_replaced_only_by_a_whole_one(
    run: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    out = run.with_suffix(".nc" if to == "netcdf" else ".xdmf")
    out.write_text("old")
    line = ["export", str(run), "--to", to, "--overwrite"]
    with monkeypatch.context() as broken:
        broken.setattr(classic, "_create", _fail)
        broken.setattr(exports, "_attribute", _fail)
        with pytest.raises(KeyboardInterrupt):
            invoke(line)
    assert out.read_text() == "old"
    names = {path.name for path in run.parent.iterdir()}
    assert not [name for name in names if name.endswith(".new")]
    invoke(line)
    assert out.read_bytes()[:4] == (b"\x89HDF" if to == "netcdf" else b"<?xm")


def _fail(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("form", ["netcdf4", "classic"])
def test_a_full_disk_is_an_error_and_leaves_the_old_file(run: Path, form: str) -> None:
    """The limit on the size of a file stands for the disk: both fail in the middle of a write."""
    pytest.importorskip("netCDF4")
    out = run.with_suffix(".nc")
    out.write_text("old")
    code = (
        "import resource, signal, mpiflow.cli\n"
        "mpiflow.cli.parallel.start()\n"  # MPI writes files, too
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "mpiflow.cli.main()"
    )
    line = ["export", str(run), "--to", "netcdf", "--netcdf-format", form, "--overwrite"]
    command = [sys.executable, "-c", code, *line]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "a file in an existing directory that can be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert out.read_text() == "old"
    assert not list(run.parent.glob(".*.new"))
