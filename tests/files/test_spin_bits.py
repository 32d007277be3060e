"""Spins saved as bits are read as spins: by Trajectory, xarray and the data sets of learners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpiflow import RunDataset, Runs
from mpiflow.commands.verify import verify
from mpiflow.core.errors import InputError
from mpiflow.files.schema import STANDARD, block_centres
from mpiflow.files.sealing import Continuation
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter

FRAMES, LY, LX = 5, 6, 24
ABOUT: dict[str, Any] = {
    "system": "ising",
    "config_json": '{"temperature": 2.0}',
    "seed": 1,
    "rng": "threefry2x64-13",
    "decomposition_invariant": True,
}
SPINS = np.random.default_rng(5).choice(np.array([-1, 1], np.int8), (FRAMES, 2, LY, LX))


def write(path: Path, bits: bool, members: int, coarse: bool = False) -> Path:
    """The same spins as bytes or as bits; with a coarse field they have axes of their own."""
    prefix = "site_" if coarse else ""
    lead = ("member",) * (members > 1)
    name, x = ("spin_bits", "x_byte") if bits else ("spin", f"{prefix}x")
    variables = [STANDARD[name].over(*lead, f"{prefix}y", x)]
    dims = {"member": members} if members > 1 else {}
    dims |= {f"{prefix}y": LY, x: LX // 8 if bits else LX}
    coordinates = {f"{prefix}y": np.arange(LY) + 0.0, x: np.arange(0.0, LX, 8 if bits else 1)}
    if coarse:
        variables.append(STANDARD["coarse_magnetization"].over(*lead, "y", "x"))
        dims |= {"y": 3, "x": 12}
        coordinates |= {"y": block_centres(LY, 2), "x": block_centres(LX, 2)}
    with TrajectoryWriter(
        path, dims=dims, variables=variables, coordinates=coordinates, attributes=ABOUT
    ) as writer:
        for k in range(FRAMES):
            spins = SPINS[k] if members > 1 else SPINS[k, 0]
            values = {name: np.packbits(spins > 0, axis=-1) if bits else spins}
            if coarse:
                values["coarse_magnetization"] = np.zeros((*spins.shape[:-2], 3, 12), np.float32)
            writer.append(float(k), values)
    return path


@pytest.mark.parametrize(("members", "coarse"), [(1, False), (1, True), (2, False), (2, True)])
def test_xarray_unpacks(members: int, coarse: bool, tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    opened = [
        Trajectory(write(tmp_path / f"{bits}.h5", bits, members, coarse)).to_xarray()
        for bits in (False, True)
    ]
    plain, packed = opened
    assert packed.spin.attrs["long_name"] == plain.spin.attrs["long_name"]
    for name in packed.spin.dims:
        xarray.testing.assert_identical(packed[name], plain[name])
    places: list[dict[str, Any]] = [
        {},
        {"time": 3},
        {"time": slice(1, 4, 2)},
        {packed.spin.dims[-1]: 13},
        {packed.spin.dims[-1]: slice(9, 22, 3), "time": -1},
        {packed.spin.dims[-1]: slice(21, 2, -4)},
        {packed.spin.dims[-1]: slice(7, 7)},
        {packed.spin.dims[-1]: [23, 0, 8], "time": [4, 1]},
        {packed.spin.dims[-2]: slice(None, None, -1)},
    ]
    for place in places:
        ours, theirs = packed.spin.isel(place), plain.spin.isel(place)
        assert ours.dtype == np.int8
        np.testing.assert_array_equal(ours, theirs, str(place))
    means = SPINS[:, :members].mean((-2, -1))
    np.testing.assert_array_equal(packed.spin.mean(packed.spin.dims[-2:]), means.squeeze())
    assert set(packed.data_vars) == set(plain.data_vars)
    assert "x_byte" not in packed.dims
    packed.drop_encoding().to_netcdf(tmp_path / "copy.nc")
    for data in opened:
        data.close()
    with xarray.open_dataset(tmp_path / "copy.nc", decode_times=False) as copy:
        np.testing.assert_array_equal(copy.spin, plain.spin)


def test_xarray_unpacks_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xarray")
    from mpiflow.files import spin_bits

    shapes: list[tuple[int, ...]] = []
    unpacked = spin_bits.unpacked

    def noted(bits: np.ndarray) -> np.ndarray:
        shapes.append(bits.shape)
        return unpacked(bits)

    monkeypatch.setattr(spin_bits, "unpacked", noted)
    with Trajectory(write(tmp_path / "run.h5", True, 1)) as run, run.to_xarray() as data:
        assert shapes == []
        data.spin.isel(time=2, x=slice(9, 12)).load()
    assert shapes == [(LY, 1)]


def test_many_runs_of_both_kinds_join(tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    paths = [write(tmp_path / f"{bits}.h5", bits, 1) for bits in (False, True)]
    data = Runs(paths).to_xarray()
    assert data.spin.dims == ("run", "time", "y", "x")
    np.testing.assert_array_equal(data.spin[0], data.spin[1])


@pytest.mark.parametrize("name", ["spin", "spins"])
def test_data_sets_of_learners_unpack(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "runs"
    folder.mkdir()
    for bits in (False, True):
        write(folder / f"{bits}.h5", bits, members=2)
    data = RunDataset(folder, (name,), window=2, stride=2)
    assert len(data) == 2 * 2 * 2  # runs, windows, members
    for run in range(2):
        for window, first in enumerate((0, 2)):
            for member in range(2):
                item = data[4 * run + 2 * window + member]
                assert (item["run"], item["frame"], item["member"]) == (run, first, member)
                assert item[name].dtype == torch.int8
                np.testing.assert_array_equal(item[name], SPINS[first : first + 2, member])
    together = RunDataset(folder / "True.h5", (name,), members="together", dtype=torch.float32)
    np.testing.assert_array_equal(together[1][name], SPINS[1:3])
    np.testing.assert_array_equal(together.frames(0, slice(1, 4))[name], SPINS[1:4])
    bytes_as_they_are = RunDataset(folder / "True.h5", ("spin_bits",))[0]["spin_bits"]
    assert bytes_as_they_are.shape == (2, LY, LX // 8)
    with pytest.raises(InputError, match=r"variables=\['spun'\].*spin_bits"):
        RunDataset(folder / "True.h5", ("spun",))


def test_bits_are_compressed_where_it_pays_once_they_are_sealed(tmp_path: Path) -> None:
    """Disordered spins have no shorter form: they are stored, and stay, as they are."""
    path, noise = (
        tmp_path / "run.h5",
        np.random.default_rng(3).integers(0, 256, (256, 64), np.uint8),
    )
    frames = [noise, np.full_like(noise, 0xFF), noise[::-1].copy()]
    dims = {"y": 256, "x_byte": 64}

    def writer(**options: Any) -> TrajectoryWriter:
        variables = [STANDARD["spin_bits"].over("y", "x_byte")]
        return TrajectoryWriter(path, dims=dims, variables=variables, attributes=ABOUT, **options)

    def packing(frame: int) -> tuple[int, int]:
        """Which filters a chunk went without, and its bytes."""
        with h5py.File(path, "r", locking=False) as file:
            mask, chunk = file["spin_bits"].id.read_direct_chunk((frame, 0, 0))
            return mask, len(chunk)

    with writer() as live:
        for k in (0, 1):
            live.append(float(k), {"spin_bits": frames[k]})
        run = live.run
        live.flush()
        assert packing(0) == packing(1) == (0, noise.nbytes + 4)  # and a checksum
    assert packing(0) == (0b011, noise.nbytes + 4)
    none, size = packing(1)
    assert none == 0
    assert size < noise.nbytes / 10
    (found,) = verify([path], quick=True)
    assert found.good, found
    with writer(resume=Continuation(2, run)) as again:
        again.append(2.0, {"spin_bits": frames[2]})
    with Trajectory(path) as whole:
        np.testing.assert_array_equal(whole.read("spin_bits"), frames)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(noise[0].tobytes()) + 5] ^= 1
    path.write_bytes(damaged)
    with h5py.File(path) as file, pytest.raises(OSError, match="checksum"):
        file["spin_bits"][0]
