"""Data of other programs become runs: what is in them is in the run, or nothing is written."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from foreign_files import (
    FIELD,
    SPINS,
    ase_atoms,
    block_of,
    dump,
    fault,
    field_of,
    good,
    species,
)

import mpiflow
from mpiflow import InputError, import_array, import_trajectory
from mpiflow.cli import invoke
from mpiflow.commands.verify import verify_file
from mpiflow.files.moments import Moment
from mpiflow.initial.spin_files import from_file
from mpiflow.learn.run_dataset import RunDataset


def test_spins_are_those_of_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", SPINS)
    options = {"time_step": 0.5, "temperature": 2.0, "field": 0.1, "coupling": 1.0, "block": 4}
    out = import_trajectory(tmp_path / "s.npy", tmp_path / "s.h5", **options)
    good(out)
    with mpiflow.open(out) as run:
        assert np.array_equal(run.spins(), SPINS)
        assert "spin_bits" in run
        assert run.time.tolist() == [0, 0.5, 1, 1.5]
        assert np.array_equal(run["magnetization"], SPINS.mean(axis=(1, 2)))
        means = SPINS.reshape(4, 2, 4, 4, 4).mean(axis=(2, 4))
        assert np.array_equal(run["coarse_magnetization"], means.astype(np.float32))
        bonds = sum((SPINS * np.roll(SPINS, 1, axis)).sum(axis=(1, 2)) for axis in (1, 2))
        wanted = (-bonds - 0.1 * SPINS.sum(axis=(1, 2))) / 128
        assert np.allclose(run["energy"], wanted, rtol=0, atol=1e-12)
        assert run.config["temperature"] == 2.0
        digest = hashlib.sha256((tmp_path / "s.npy").read_bytes()).hexdigest()
        assert run.config["inputs"] == {"files": digest}
        assert run.attributes["source_files"] == f"{digest}  {tmp_path / 's.npy'}"


def test_spins_of_odd_rows_are_bytes(tmp_path: Path) -> None:
    out = import_array(SPINS[:, :5, :7], tmp_path / "s.h5", time_step=1)
    good(out)
    with mpiflow.open(out) as run:
        assert np.array_equal(run.spins(), SPINS[:, :5, :7])
        assert "spin_bits" not in run


def test_a_field_becomes_means_of_blocks(tmp_path: Path) -> None:
    out = import_array(3 * FIELD, tmp_path / "f.h5", time=[0, 1, 2, 5], spacing=8, block=32)
    good(out)  # also of values beyond 1
    with mpiflow.open(out) as run:
        wanted = 3 * FIELD.reshape(4, 2, 4, 3, 4).mean(axis=(2, 4))
        assert np.allclose(run["coarse_magnetization"], wanted, atol=1e-6)
        assert np.allclose(run["magnetization"], 3 * FIELD.mean(axis=(1, 2)), atol=1e-12)
        assert run.config["size"] == [64, 96]
        assert run.config["coarse"] == 32
        assert run["x"].tolist() == [15.5, 47.5, 79.5]
        assert run.time.tolist() == [0, 1, 2, 5]
        assert "temperature" not in run.config


def test_what_reads_runs_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.save("s.npy", SPINS)
    invoke("import s.npy --out s.h5 --block 4 --time-step 0.1 --temperature 2 --field 0".split())
    assert capsys.readouterr().out == "s.h5: 4 frames\n"
    for line in ("info s.h5", "verify s.h5", "plot s.h5", "plot s.h5 --out s.png",
                 "export s.h5 --to netcdf", "export s.h5 --to xdmf"):  # fmt: skip
        invoke(line.split())
    data = RunDataset("s.h5", window=2, parameters=("temperature", "field"))
    assert len(data) == 3
    assert data[0]["coarse_magnetization"].shape == (2, 2, 4)
    assert float(data[0]["temperature"]) == 2.0
    block = block_of((8, 16))
    from_file(block, "s.h5", moment=Moment(frame=2))
    assert np.array_equal(block.spins()[0], SPINS[2])
    with pytest.raises(InputError, match="checkpoint"):
        invoke("resume s.h5 --time 2".split())


def test_zeros_and_ones_become_spins(tmp_path: Path) -> None:
    ones = (SPINS + 1) // 2
    out = import_array(ones, tmp_path / "a.h5", offset=-0.5, scale=2, time_step=1)
    also = import_array(ones.astype(bool), tmp_path / "b.h5", time_step=1)
    for path in (out, also):
        with mpiflow.open(path) as run:
            assert np.array_equal(run.spins(), SPINS)


def test_a_first_frame_of_spins_may_be_one_of_a_field(tmp_path: Path) -> None:
    values = np.concatenate([SPINS[:1], 0.5 * SPINS[1:]])
    with pytest.raises(InputError, match=r"frame 1: at y = 0, x = 0 .*--kind field"):
        import_array(values, tmp_path / "a.h5", time_step=1)
    out = import_array(values, tmp_path / "a.h5", time_step=1, kind="field")
    assert np.array_equal(field_of(out), values)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = import_array(SPINS, tmp_path / "a.h5", time_step=1)
    with pytest.raises(InputError, match="overwrite"):
        import_array(SPINS, out, time_step=1)
    broken = SPINS.astype(float)
    broken[3, 2, 1] = np.nan
    before = out.read_bytes()
    with pytest.raises(InputError, match=r"frame 3: at y = 2, x = 1 it has nan"):
        import_array(broken, out, time_step=1, overwrite=True)
    assert out.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} <= {"a.h5", "manifest.json", ".manifest.lock"}
    import_array(SPINS[:2], out, time_step=1, overwrite=True)
    good(out)
    with mpiflow.open(out) as run:
        assert len(run) == 2


def test_arrays_of_python(tmp_path: Path) -> None:
    """Lists, masked arrays and what gives arrays frame by frame; ragged ones are refused."""
    out = import_array([[1, -1], [-1, 1]], tmp_path / "a.h5")
    with mpiflow.open(out) as run:
        assert run.spins().tolist() == [[[1, -1], [-1, 1]]]
    whole = np.ma.masked_invalid(FIELD)
    assert np.array_equal(field_of(import_array(whole, tmp_path / "b.h5", time_step=1)),
                          FIELD.astype("f4"))  # fmt: skip
    whole[2, 0, 0] = np.ma.masked
    for values, says in ((whole, "frame 2: some are masked"), ([[1, 2], [3]], "NumPy said"),
                         (5.0, "shape"), ([["a"]], "real numbers")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            import_array(values, tmp_path / "c.h5", time_step=1)
    for time, says in (([0, 1], "a time for each of 4 frames"), ([0, 1, 1, 2], "comes after 1"),
                       ("now", "time"), ([0, 1, np.nan, 2], "time")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            import_array(FIELD, tmp_path / "c.h5", time=time)
    assert not (tmp_path / "c.h5").exists()


@pytest.mark.parametrize("name", ["spins", "field", "species"])
def test_wrong_sums_are_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.dump"
    path.write_text(dump(0, ase_atoms(*species())))
    given = {"spins": SPINS, "field": FIELD}
    if name == "species":
        out = import_trajectory(path, tmp_path / "a.h5")
    else:
        out = import_array(given[name], tmp_path / "a.h5", time_step=1)
    with h5py.File(out, "r+") as file:
        if name == "species":
            file["sro"][0, 0] += 0.1
        else:
            file["magnetization"][1] += 2.0 / 128
    found = verify_file(out)
    assert not found.good
    assert {"spins": "spins do not give", "field": "means of blocks", "species": "sro"}[
        name
    ] in found.text


def test_imported_runs_are_a_set_of_data(tmp_path: Path) -> None:
    for k in range(3):
        np.save(tmp_path / f"{k}.npy", SPINS * (-1) ** k)
        options = {"temperature": 1.0 + k, "time_step": 1, "block": 4}
        import_trajectory(tmp_path / f"{k}.npy", tmp_path / f"{k}.h5", **options)
    data = RunDataset(tmp_path, parameters=("temperature",))
    one, two = data.split((0.5, 0.5))
    assert len(data) == len(one) + len(two) == 9
    joined = mpiflow.open(tmp_path).to_xarray()
    assert joined.temperature.values.tolist() == [1, 2, 3]
    assert joined.sizes["run"] == 3


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_memory_does_not_grow_with_the_stack(tmp_path: Path, name: str) -> None:
    """64 MB of frames of 256 kB, in less than half of that."""
    save = np.save if name == "a.npy" else np.savez_compressed
    save(tmp_path / name, np.ones((256, 512, 512), np.int8))
    tracemalloc.start()
    try:
        import_trajectory(tmp_path / name, tmp_path / "a.h5", time_step=1)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


@pytest.mark.mpi
def test_on_several_ranks(comm: Any, mpi_tmp_path: Path) -> None:
    if comm.rank == 0:
        np.save(mpi_tmp_path / "s.npy", SPINS)
    comm.Barrier()
    out = import_trajectory(mpi_tmp_path / "s.npy", mpi_tmp_path / "s.h5", time_step=1, comm=comm)
    with mpiflow.open(out) as run:
        assert np.array_equal(run.spins(), SPINS)
    with pytest.raises(InputError, match="time_step"):
        import_trajectory(mpi_tmp_path / "s.npy", mpi_tmp_path / "t.h5", comm=comm)
    comm.Barrier()


# -- NumPy -------------------------------------------------------------------------------------


def test_npy_of_one_or_of_many_frames(tmp_path: Path) -> None:
    names = [tmp_path / f"{k}.npy" for k in range(4)]
    for name, frame in zip(names, FIELD, strict=True):
        np.save(name, np.asfortranarray(frame.astype(">f4")))
    out = import_trajectory(str(tmp_path / "?.npy"), tmp_path / "f.h5", time_step=0.1)
    assert np.array_equal(field_of(out), FIELD.astype("f4"))
    with mpiflow.open(out) as run:
        assert run.config["sources"] == 4
        assert len(run.attributes["source_files"].splitlines()) == 4
    np.save(tmp_path / "v.npy", np.stack([0 * FIELD, 1 - FIELD, FIELD], axis=1))
    out = import_trajectory(tmp_path / "v.npy", tmp_path / "v.h5", component="z", time_step=1)
    assert np.allclose(field_of(out), FIELD, atol=1e-7)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_has_names_and_times(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "f.npz", m=FIELD, other=SPINS, time=np.array([0.0, 1, 3, 4]))
    out = import_trajectory(tmp_path / "f.npz", tmp_path / "f.h5", variable="m", time_unit=2)
    good(out)
    assert np.array_equal(field_of(out), FIELD.astype("f4"))
    with mpiflow.open(out) as run:
        assert run.time.tolist() == [0, 2, 6, 8]
    fault(tmp_path / "f.npz", "m, other", "--variable", time_step=None)
    fault(tmp_path / "f.npz", "'a'", "m, other", variable="a", time_step=None)


def test_faults_of_numpy(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    np.save(path, FIELD)
    data = path.read_bytes()
    path.write_bytes(data[:-8])
    fault(path, str(path), f"byte {len(data) - 8}")
    path.write_bytes(data[:40])
    fault(path, "byte 40")
    np.save(path, FIELD + 0j)
    fault(path, "complex128")
    np.save(path, np.array([{}, {}], dtype=object), allow_pickle=True)
    fault(path, "NumPy said")
    np.save(path, FIELD[0, 0])
    fault(path, "(12,)")
    np.save(path, np.stack([FIELD] * 2, axis=1))
    fault(path, "--component x or y")
    fault(path, "'z'", component="z")
    np.save(path, FIELD)
    fault(path, "--time-step", time_step=None)
    fault(path, "block", block=5)
    other = tmp_path / "g.npy"
    np.save(other, FIELD[:, :, :8])
    fault(path, str(other), "frame 0", "8 x 8", "8 x 12", files=[path, other])
    np.savez(tmp_path / "a.npz", FIELD)
    fault(path, "a.npz", "npy", files=[path, tmp_path / "a.npz"])
    packed = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(packed[: len(packed) // 2])
    fault(tmp_path / "a.npz", "Unpacking said")
    np.savez(tmp_path / "a.npz", m=FIELD, time=np.array([0.0, 2, 1, 3]))
    fault(tmp_path / "a.npz", "frame 2 of m", "time 1 comes after 2", time_step=None)
    (tmp_path / "t.txt").write_text("hello\n")
    fault(tmp_path / "t.txt", "'hello'", "OVF")
    (tmp_path / "e.npy").write_text("")
    fault(tmp_path / "e.npy", "empty")
    fault(tmp_path / "none.npy", "Check the path")
    fault(tmp_path, "no zarr store", out=tmp_path / "bad.h5")


def test_values_beyond_the_numbers_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"frame 0: it has 1e\+200. Use --scale"):
        import_array(np.full((1, 4, 4), 1e200), tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("name", "value"),
    [("time_unit", 2.0), ("scale", 0.0), ("block", 3), ("spacing", 2), ("elements", "A,B")],
)
def test_idle_options_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        import_array(SPINS, tmp_path / "a.h5", time_step=1, **{name: value})


def test_a_toml_file_has_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("s.npy", SPINS)
    Path("i.toml").write_text('files = ["s.npy"]\nout = "s.h5"\ntime_step = 2.0\nquiet = true\n')
    invoke(["import", "--config", "i.toml"])
    with mpiflow.open("s.h5") as run:
        assert json.loads(run.attributes["config_json"])["time_step"] == 2.0
