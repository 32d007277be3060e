"""Foreign files become runs: what is in them is in the run, and a fault says where it is."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import mpiflow
from mpiflow import InputError, import_array, import_trajectory
from mpiflow.cli import invoke
from mpiflow.commands.verify import verify_file
from mpiflow.core.block import Block
from mpiflow.core.lattice import Lattice
from mpiflow.files.moments import Moment
from mpiflow.files.structure import species_of
from mpiflow.initial.alloy import from_structure
from mpiflow.initial.spin_files import from_file
from mpiflow.learn.run_dataset import RunDataset
from mpiflow.systems import alloy
from mpiflow.systems.alloy import NOT_A_SITE, is_site

RNG = np.random.default_rng(3)
SPINS = np.where(RNG.random((4, 8, 16)) < 0.3, -1, 1)
FIELD = np.round(RNG.uniform(-0.9, 0.9, (4, 8, 12)), 4)


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


# -- what a run holds -------------------------------------------------------------------------


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
    path.write_text(_dump(0, ase_atoms(*species())))
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


# -- OVF ---------------------------------------------------------------------------------------

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


# -- atoms --------------------------------------------------------------------------------------

CELLS, CONSTANT = (4, 4, 5), 3.2


def species() -> tuple[np.ndarray, np.ndarray]:
    """A bcc alloy: the grid of its species, and positions and species of its atoms."""
    grid = np.where(is_site(tuple(2 * n for n in CELLS)), np.int8(1), np.int8(NOT_A_SITE))
    sites = grid == 1
    grid[sites] = RNG.integers(1, 4, sites.sum())
    grid[0, 0, 0] = 0
    places = np.argwhere(grid > 0)
    return grid, places


def ase_atoms(grid: np.ndarray, places: np.ndarray, jitter: float = 0.1) -> Any:
    ase = pytest.importorskip("ase", reason="ASE writes the files")
    names = np.array(["X", "Nb", "Mo", "Ta"])[grid[tuple(places.T)]]
    at = (places + RNG.uniform(-jitter, jitter, places.shape)) * CONSTANT / 2
    box = [n * CONSTANT for n in CELLS]
    return ase.Atoms(list(names), positions=at, cell=box, pbc=True)


@pytest.mark.parametrize("form", ["extxyz", "vasp", "cif", "lammps-data", "lammps-dump"])
def test_alloys_of_ase(tmp_path: Path, form: str) -> None:
    """Two frames in files that ASE writes: POSCAR, CIF, LAMMPS data, dump and extended XYZ."""
    from ase.io import write

    frames = [species(), species()]
    atoms = [ase_atoms(*frame) for frame in frames]
    path = tmp_path / f"a.{form}"
    files = [path]
    options: dict[str, Any] = {"time_step": 2.0}
    if form == "extxyz":
        write(path, atoms, format=form)
    elif form == "lammps-dump":
        path.write_text("".join(_dump(k, one) for k, one in enumerate(atoms)))
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


def _dump(step: int, atoms: Any) -> str:
    """A frame of a LAMMPS dump, its columns in an odd order and its rows in another."""
    box = "".join(f"{low} {low + side}\n" for low, side in zip((0, 0, 0), atoms.cell.lengths()))  # noqa: B905
    types = {"Nb": 1, "Mo": 2, "Ta": 3}
    order = RNG.permutation(len(atoms))
    rows = "".join(
        f"{atoms.positions[i, 2]} 0.5 {types[atoms.symbols[i]]} {atoms.positions[i, 0]} "
        f"{i + 1} {atoms.positions[i, 1]}\n"
        for i in order
    )
    return (
        f"ITEM: TIMESTEP\n{step * 100}\nITEM: NUMBER OF ATOMS\n{len(atoms)}\n"
        f"ITEM: BOX BOUNDS pp pp pp\n{box}ITEM: ATOMS z q type x id y\n{rows}"
    )


def test_an_alloy_goes_on_as_ours(tmp_path: Path) -> None:
    grid, places = species()
    (tmp_path / "a.dump").write_text(_dump(0, ase_atoms(grid, places)))
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
    text = _dump(0, atoms) + _dump(1, atoms)
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
    path.write_text(_dump(0, ase_atoms(grid, places)) + _dump(1, atoms))
    fault(path, f"line {half + 10}: Atom 8")
    path.write_text(text)
    fault(path, "'3'", "Atom", elements="Nb,Mo")
    fault(path, "times that rise", time_step=None, files=[path, path])
    fault(path, "--variable", variable="q")
    fault(path, "scale", scale=2.0)
    path.write_text(_dump(1, atoms).replace("ITEM: ATOMS", "ITEM: ATOM"))
    fault(path, "Line 11 has")


def square(values: np.ndarray, time: float, columns: str = "id type x y z", flags: str = "") -> str:
    """A frame of a SPPARKS dump, its sites in an odd order."""
    ny, nx = values.shape
    order = RNG.permutation(values.size)
    known = [{"id": i + 1, "type": values.flat[i], "x": i % nx, "y": i // nx, "z": 0, "i2": 7}
             for i in order]  # fmt: skip
    rows = "".join(" ".join(f"{row[c]:g}" for c in columns.split()) + " \n" for row in known)
    return (
        f"ITEM: TIMESTEP\n{int(time)} {time:10g}\nITEM: NUMBER OF ATOMS\n{values.size}\n"
        f"ITEM: BOX BOUNDS{flags}\n0 {nx}\n0 {ny}\n-0.5 0.5\nITEM: ATOMS {columns} \n{rows}"
    )


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


# -- netCDF and zarr ----------------------------------------------------------------------------


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
    import sys

    monkeypatch.setitem(sys.modules, "xarray", None)
    fault(tmp_path / "a.nc", "xarray", "mpiflow[import]", variable="m")


def test_a_toml_file_has_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("s.npy", SPINS)
    Path("i.toml").write_text('files = ["s.npy"]\nout = "s.h5"\ntime_step = 2.0\nquiet = true\n')
    invoke(["import", "--config", "i.toml"])
    with mpiflow.open("s.h5") as run:
        assert json.loads(run.attributes["config_json"])["time_step"] == 2.0
