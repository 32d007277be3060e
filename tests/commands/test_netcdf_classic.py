"""netCDF for readers of the classic model: what they can hold, and what CF asks for.

What is asked of attributes here is what compliance-checker 6.1 (cf:1.11) and cfchecker 4.1 asked
for, which the suite does not download; docs/exports.md says how to run them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpiflow.cli import invoke
from mpiflow.commands import netcdf as exports
from mpiflow.core.errors import InputError
from mpiflow.files.schema import STANDARD, Variable, block_centres
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter

netcdf = pytest.importorskip("netCDF4")

FORMS = {
    "classic": "NETCDF3_CLASSIC",
    "64bit": "NETCDF3_64BIT_OFFSET",
    "netcdf4-classic": "NETCDF4_CLASSIC",
}
CLASSIC_TYPES = {"int8", "int16", "int32", "float32", "float64", "|S1"}
TIMES = [0.0, 0.5, 1.25]
LY, LX = 16, 24
RNG = np.random.default_rng(8)
SPINS = RNG.choice(np.array([-1, 1], np.int8), (3, LY, LX))
VALUES: dict[str, np.ndarray] = {
    "magnetization": np.array([0.25, np.nan, -0.5]),
    "flips": np.array([0, 1, 2**40]),
    "hops": np.array([0, 7, 2**31 - 1]),
    "sro": RNG.normal(size=(3, 2)),
    "coarse_magnetization": RNG.normal(size=(3, 2, 3)).astype("f4"),
    "spin_bits": np.packbits(SPINS > 0, axis=-1),
    "large": np.array([0, 1, 2**32 - 1], np.uint32),
    "small": np.array([0, 1, 255], np.uint8),
}
VARIABLES = [
    *(STANDARD[n] for n in ("magnetization", "flips", "hops", "sro", "coarse_magnetization")),
    STANDARD["spin_bits"].over("site_y", "x_byte"),
    Variable("large", (), "uint32", long_name="whole numbers without a sign"),
    Variable("small", (), "uint8", long_name="whole numbers without a sign"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classic") / "run.h5"
    with TrajectoryWriter(
        path,
        dims={"y": 2, "x": 3, "site_y": LY, "x_byte": LX // 8, "pair": 2},
        variables=VARIABLES,
        coordinates={
            "y": block_centres(LY, 8),
            "x": block_centres(LX, 8),
            "site_y": block_centres(LY, 1),
            "x_byte": np.arange(0.0, LX, 8),
            "pair": np.array(["NbMo", "µ"]),
        },
        attributes={
            "system": "ising",
            "config_json": json.dumps({"size": [LY, LX]}),
            "seed": 2**63 + 7,
            "rng": "threefry2x64-13",
            "decomposition_invariant": True,
        },
    ) as writer:
        for k, time in enumerate(TIMES):
            writer.append(time, {name: values[k] for name, values in VALUES.items()})
    return path


@pytest.fixture(params=FORMS)
def exported(run: Path, request: pytest.FixtureRequest) -> Path:
    out = run.with_name(f"{request.param}.nc")
    line = ["export", str(run), "--to", "netcdf", "--netcdf-format", request.param]
    invoke([*line, "--out", str(out), "--overwrite"])
    with netcdf.Dataset(out) as data:
        assert data.data_model == FORMS[request.param]
    return out


def test_types_are_of_the_classic_model(exported: Path) -> None:
    with netcdf.Dataset(exported) as data:
        data.set_auto_maskandscale(False)
        data.set_auto_chartostring(False)
        types = {name: str(v.dtype) for name, v in data.variables.items()}
        assert set(types.values()) <= CLASSIC_TYPES, types
        assert [types[n] for n in ("flips", "hops", "large", "small", "spin")] == [
            "float64", "int32", "float64", "int16", "int8"
        ]  # fmt: skip
        for name in ("flips", "hops", "large", "small", "sro", "coarse_magnetization"):
            np.testing.assert_array_equal(data[name][:], VALUES[name], name)
        np.testing.assert_array_equal(data["spin"][:], SPINS)
        assert data["spin"].dimensions == ("time", "site_y", "site_x")
        assert data["magnetization"][:].tolist() == [0.25, exports.FILL, -0.5]
        assert data["magnetization"]._FillValue == exports.FILL
        assert data["pair_name"][:].tobytes() == b"NbMo\xc2\xb5\0\0"
        assert data.dimensions["time"].isunlimited()
        for owner in (data, *data.variables.values()):
            for name in owner.ncattrs():
                value = owner.getncattr(name)
                assert isinstance(value, str) or str(np.asarray(value).dtype) in CLASSIC_TYPES
        assert data.seed == str(2**63 + 7)
        assert "--netcdf-format" in data.history


def test_coordinates_are_as_cf_asks(exported: Path) -> None:
    with netcdf.Dataset(exported) as data:
        assert data.Conventions == "CF-1.11"
        assert data.title
        assert data.source.startswith("mpiflow")
        time = data["time"]
        assert (time.axis, time.standard_name, time.calendar) == ("T", "time", "standard")
        assert time.units == "seconds since 1970-01-01 00:00:00"
        assert time.units_metadata == "leap_seconds: none"
        assert "a unit of time is written as one" in time.comment
        assert time[:].tolist() == TIMES
        for name, axis, half in (("x", "X", 4), ("y", "Y", 4), ("site_x", "X", 0.5)):
            v = data[name]
            standard = f"projection_{axis.lower()}_coordinate"
            assert (v.axis, v.standard_name, v.units) == (axis, standard, "m")
            assert "metre" in v.comment
            edges = data[v.bounds][:]
            np.testing.assert_array_equal(edges, v[:][:, None] + np.array([-half, half]))
        assert data["sro"].coordinates == "pair_name"
        assert "pair" not in data.variables  # a coordinate variable is of numbers
        for name, v in data.variables.items():
            assert name.replace("_", "").isalnum()
            plain = name.endswith("_bounds") or v.dtype.kind == "S"
            assert plain or (v.units and (name in data.dimensions or v.long_name)), name


def test_a_second_implementation_reads_it(run: Path) -> None:
    """SciPy's own reader of CDF-1 and CDF-2, xarray's decoding, and ncdump where it is."""
    from scipy.io import netcdf_file

    xarray = pytest.importorskip("xarray")
    for form in ("classic", "64bit"):
        out = run.with_name("second.nc")
        with Trajectory(run) as trajectory:
            exports.to_netcdf(trajectory, out, form, frames=slice(1, None), overwrite=True)
        with netcdf_file(out, mmap=False) as data:
            np.testing.assert_array_equal(data.variables["spin"][:], SPINS[1:])
            assert data.variables["flips"][:].tolist() == [1, 2**40]
        with xarray.open_dataset(out, decode_times=False) as data:
            assert data.pair_name.values.tolist() == ["NbMo", "µ"]
            assert np.isnan(data.magnetization[0])
            np.testing.assert_array_equal(data.sro, VALUES["sro"][1:])
        if ncdump := shutil.which("ncdump"):
            kind = subprocess.run([ncdump, "-k", out], capture_output=True, text=True, check=True)
            assert kind.stdout.strip() == {"classic": "classic", "64bit": "64-bit offset"}[form]


def test_the_cf_reader_of_paraview_reads_it(exported: Path) -> None:
    module = pytest.importorskip("vtkmodules.vtkIONetCDF")
    from vtkmodules.util.numpy_support import vtk_to_numpy

    fields: dict[str, Any] = {"coarse_magnetization": ("(y, x)", VALUES["coarse_magnetization"])}
    fields["spin"] = ("(site_y, site_x)", SPINS)
    for name, (dims, values) in fields.items():
        reader = module.vtkNetCDFCFReader()
        reader.SetFileName(str(exported))
        reader.SphericalCoordinatesOff()
        reader.UpdateMetaData()
        reader.SetDimensions(dims)
        reader.UpdateInformation()
        pipeline = reader.GetExecutive()
        assert list(pipeline.GetOutputInformation(0).Get(pipeline.TIME_STEPS())) == TIMES
        reader.UpdateTimeStep(TIMES[1])
        grid = reader.GetOutputDataObject(0)
        # Values are points at the centres of their cells.
        shown = vtk_to_numpy(grid.GetPointData().GetArray(name))
        np.testing.assert_array_equal(shown, values[1].ravel())
        first = (LX // values.shape[2] - 1) / 2
        assert grid.GetBounds()[:4] == (first, LX - 1 - first, first, LY - 1 - first)


def test_refusals(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["export", str(run), "--overwrite", "--to"]
    with pytest.raises(InputError, match=r"netcdf_format='netcdf3'.*netcdf4-classic.*Did you mean"):
        invoke([*line, "netcdf", "--netcdf-format", "netcdf3"])
    with pytest.raises(InputError, match="netcdf_format='classic'.*xdmf"):
        invoke([*line, "xdmf", "--netcdf-format", "classic"])
    monkeypatch.setattr(exports, "_FILE_BYTES", 3 * LY * LX)
    with pytest.raises(InputError, match=r"netcdf_format='classic': .*2 GiB.*64bit"):
        invoke([*line, "netcdf", "--netcdf-format", "classic", "--out", str(run) + ".nc"])
    monkeypatch.setattr(exports, "_VARIABLE_BYTES", LY * LX - 1)
    with pytest.raises(InputError, match=r"netcdf_format='64bit': .*4 GiB a frame"):
        invoke([*line, "netcdf", "--netcdf-format", "64bit", "--out", str(run) + ".nc"])
    assert not run.with_name("run.h5.nc").exists()
