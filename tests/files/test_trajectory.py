"""The Trajectory file: two writers, one schema; readable by others, while running and after."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import split
from mpiflow.files import storage
from mpiflow.files.schema import STANDARD, Variable, block_centres
from mpiflow.files.sealing import Continuation
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter

PARALLEL = bool(h5py.get_config().mpi)
BACKENDS = [
    pytest.param("parallel", marks=pytest.mark.skipif(not PARALLEL, reason="h5py without MPI")),
    "gather",
]
ABOUT: dict[str, Any] = {
    "system": "ising",
    "config_json": json.dumps({"size": 64, "temperature": 2.5}),
    "seed": 2**63 + 7,
    "rng": "threefry2x64-13",
    "decomposition_invariant": True,
}
DIMS = {"y": 64, "x": 37, "site_y": 1100, "site_x": 1030, "member": 3, "pair": 2}
COORDINATES = {
    "y": block_centres(512, 8),
    "x": block_centres(296, 8),
    "pair": np.array(["NbNb", "NbMo"]),
}
VARIABLES = [
    STANDARD["magnetization"],
    STANDARD["flips"],
    STANDARD["sro"],
    STANDARD["coarse_magnetization"],
    STANDARD["spin"].over("site_y", "site_x"),
    STANDARD["energy"].over("member"),
    STANDARD["initial_magnetization"],
    Variable("note", (), "int64", long_name="one number", per_frame=False),
]


def frame(t: int) -> dict[str, Any]:
    """The whole frame, as every rank could compute it."""
    rng = np.random.default_rng(t)
    return {
        "magnetization": rng.normal(),
        "flips": 10**12 * t,
        "sro": rng.normal(size=2),
        "coarse_magnetization": (rng.integers(-64, 65, (64, 37)) / 64).astype("f4"),
        "spin": rng.choice(np.array([-1, 1], np.int8), (1100, 1030)),
        "energy": rng.normal(size=3),
    }


def cut(whole: np.ndarray, comm: MPI.Intracomm, axis: int = 0) -> tuple[np.ndarray, Any]:
    """Unequal parts along an axis; with several ranks the last one has nothing."""
    owners = max(1, comm.size - 1)
    start, stop = split(whole.shape[axis], owners, comm.rank) if comm.rank < owners else (0, 0)
    box = [slice(0, n) for n in whole.shape]
    box[axis] = slice(start, stop)
    return whole[tuple(box)], tuple(box)


def values(t: int, comm: MPI.Intracomm) -> dict[str, Any]:
    whole = frame(t)
    return {
        **whole,
        "coarse_magnetization": cut(whole["coarse_magnetization"], comm),
        "spin": cut(whole["spin"], comm, axis=1),
        "energy": cut(whole["energy"], comm),
    }


def writer(path: Path, comm: MPI.Intracomm | None, **options: Any) -> TrajectoryWriter:
    settings: dict[str, Any] = {
        "dims": DIMS,
        "variables": VARIABLES,
        "coordinates": COORDINATES,
        "attributes": ABOUT,
    }
    return TrajectoryWriter(path, comm=comm, **(settings | options))


def record(
    path: Path, comm: MPI.Intracomm, frames: int = 4, complete: bool = True, **options: Any
) -> None:
    with writer(path, comm, **options) as out:
        out.write_static("initial_magnetization", cut(np.array([-0.5, 0.0, 0.5]), comm))
        out.write_static("note", 3)
        for t in range(frames):
            out.append(0.5 * t, values(t, comm))
        out.close(complete)
    comm.Barrier()


def small(path: Path, comm: MPI.Intracomm | None = None, **options: Any) -> TrajectoryWriter:
    """One scalar a frame."""
    settings = {"dims": {}, "coordinates": {}, "variables": [STANDARD["magnetization"]]}
    return writer(path, comm, **(settings | options))


def names(folder: Path) -> list[str]:
    """Files of a folder, but for the manifest of its runs."""
    return sorted(set(os.listdir(folder)) - {"manifest.json", ".manifest.lock"})


def structure(path: Path) -> dict[str, Any]:
    """Everything in an HDF5 file but the raw bytes: objects, types, layout, attributes, values."""
    found: dict[str, Any] = {}

    def plain(file: h5py.File, value: Any) -> Any:
        if isinstance(value, h5py.Reference):
            return file[value].name
        if isinstance(value, np.ndarray | np.void) and value.dtype.names:
            return sorted((file[row[0]].name, int(row[1])) for row in np.atleast_1d(value))
        if isinstance(value, np.ndarray) and value.dtype == object:
            return [plain(file, item) for item in value]
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else value

    with h5py.File(path, "r") as file:

        def visit(name: str, item: Any) -> None:
            about: dict[str, Any] = {"class": type(item).__name__}
            about["attributes"] = {
                key: (str(item.attrs.get_id(key).dtype), plain(file, value))
                for key, value in item.attrs.items()
            }
            if isinstance(item, h5py.Dataset):
                about["layout"] = (
                    *(str(item.dtype), item.shape, item.maxshape, item.chunks, item.shuffle),
                    *(item.compression, item.compression_opts, item.fletcher32),
                    *(repr(item.fillvalue), [dim.keys() for dim in item.dims], item.is_scale),
                )
                about["values"] = item[()].tolist()
            found[name] = about

        visit("/", file)
        file.visititems(visit)
    return found


# -- writing ---------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("interval", [0.0, 1e9])
@pytest.mark.parametrize("complete", [True, False])
def test_both_writers_leave_the_same_file(comm, mpi_tmp_path, interval, complete):
    paths = [mpi_tmp_path / name for name in ("gather.h5", "parallel.h5")]
    record(paths[0], comm, backend="gather", flush_interval=interval, complete=complete)
    with Trajectory(paths[0]) as trajectory:
        assert len(trajectory) == 4
        assert trajectory.complete == complete
        for t in range(4):
            for name, value in frame(t).items():
                np.testing.assert_array_equal(trajectory.read(name, t), value)
        assert trajectory["initial_magnetization"].tolist() == [-0.5, 0.0, 0.5]
        assert trajectory["note"] == 3
    if PARALLEL:
        record(paths[1], comm, backend="parallel", flush_interval=interval, complete=complete)
        one, other = (structure(path) for path in paths)
        assert one["/"]["attributes"].pop("run") != other["/"]["attributes"].pop("run")
        assert one == other


@pytest.mark.mpi
@pytest.mark.skipif(not PARALLEL, reason="h5py without MPI")
def test_parallel_file_is_written_by_mpi_io(comm, mpi_tmp_path):
    with small(mpi_tmp_path / "run.h5", comm, backend="parallel") as out:
        assert out.parallel
        assert out._file is not None
        assert out._file.driver == "mpio"


@pytest.mark.mpi
def test_auto_is_parallel_only_where_it_pays(comm, mpi_tmp_path, monkeypatch):
    monkeypatch.delenv("MPIFLOW_WRITER", raising=False)
    with small(mpi_tmp_path / "auto.h5", comm) as out:
        assert out.parallel == (PARALLEL and comm.size > 1)
    monkeypatch.setenv("MPIFLOW_WRITER", "gather")
    with small(mpi_tmp_path / "forced.h5", comm) as out:
        assert not out.parallel
    monkeypatch.setattr(h5py, "get_config", lambda: SimpleNamespace(mpi=False))
    monkeypatch.delenv("MPIFLOW_WRITER")
    with small(mpi_tmp_path / "serial.h5", comm) as out:
        assert not out.parallel
    with pytest.raises(InputError, match="this h5py has no MPI"):
        small(mpi_tmp_path / "no.h5", comm, backend="parallel")
    monkeypatch.setenv("MPIFLOW_WRITER", "fast")
    with pytest.raises(InputError, match="backend='fast'"):
        small(mpi_tmp_path / "no.h5", comm)


@pytest.mark.mpi
@pytest.mark.parametrize("backend", BACKENDS)
def test_ensemble_with_more_ranks_than_members(comm, mpi_tmp_path, backend):
    members = 3
    start, stop = split(members, comm.size, comm.rank)
    part = (slice(start, stop),)
    path = mpi_tmp_path / "ensemble.h5"
    magnetization = STANDARD["magnetization"].over("member")
    coarse = STANDARD["coarse_magnetization"].over("member", "y", "x")
    with writer(
        path,
        comm,
        dims={"member": members, "y": 4, "x": 5},
        coordinates={},
        variables=[magnetization, coarse],
        backend=backend,
    ) as out:
        for t in range(3):
            m = np.arange(members) + 10.0 * t
            field = np.arange(members * 20, dtype="f4").reshape(members, 4, 5) + t
            everything = (slice(start, stop), slice(None), slice(None))
            out.append(
                t,
                {
                    "magnetization": (m[part], part),
                    "coarse_magnetization": (field[part], everything),
                },
            )
    comm.Barrier()
    with Trajectory(path) as trajectory:
        assert trajectory["magnetization"].tolist() == [[0, 1, 2], [10, 11, 12], [20, 21, 22]]
        assert trajectory["coarse_magnetization"].shape == (3, 3, 4, 5)
        assert trajectory["coarse_magnetization"][2, 2, 3, 4] == 61
        assert trajectory.variables["coarse_magnetization"].dims == ("member", "y", "x")
        assert trajectory["member"].tolist() == [0, 1, 2]


_LOOK = """
import netCDF4, sys
with netCDF4.Dataset(sys.argv[1]) as f:
    spins = f['spin'][-1].sum(dtype='i8')
    print(f.dimensions['time'].size, *f['time'][:], spins, f.complete)
"""


@pytest.mark.mpi
@pytest.mark.parametrize("backend", BACKENDS)
def test_live_file_is_readable_after_each_frame(comm, mpi_tmp_path, backend):
    path = mpi_tmp_path / "live.h5"
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PMI_"))}
    with writer(path, comm, backend=backend, flush_interval=0) as out:
        for name in ("initial_magnetization", "note"):
            out.write_static(name, np.zeros(3) if name != "note" else 0)
        for t in range(3):
            out.append(t, values(t, comm))
            if comm.rank == 0:
                # Another process with another HDF5 library, then another handle here.
                command = [sys.executable, "-c", _LOOK, path]
                seen = subprocess.run(command, capture_output=True, text=True, env=alone)
                assert seen.returncode == 0, seen.stderr
                expected = [t + 1, *range(t + 1), frame(t)["spin"].sum(dtype=int), 0]
                assert [float(word) for word in seen.stdout.split()] == expected
                with Trajectory(path) as trajectory:
                    assert trajectory.time.tolist() == list(range(t + 1))
                    assert not trajectory.complete
            comm.Barrier()
    comm.Barrier()
    with Trajectory(path) as trajectory:
        assert trajectory.complete


@pytest.mark.mpi
@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_are_held_back_until_a_flush(comm, mpi_tmp_path, backend):
    def seen() -> list[float]:
        comm.Barrier()
        with Trajectory(path) as trajectory:
            found = trajectory.read("energy").tolist()
        comm.Barrier()
        return found

    path, reused = mpi_tmp_path / "held.h5", np.zeros(1)
    energy = STANDARD["energy"].over("member")
    with small(
        path, comm, backend=backend, flush_interval=1e9, dims={"member": 1}, variables=[energy]
    ) as out:
        for t in range(3):
            reused[:] = t
            out.append(t, {"energy": reused})  # copied: the caller's array goes on changing
            assert seen() == [[0.0]]
        out.flush()
        assert seen() == [[0.0], [1.0], [2.0]]
        out.append(3, {"energy": reused})
    assert seen() == [[0.0], [1.0], [2.0], [2.0]]


@pytest.mark.mpi
def test_memory_of_held_frames_is_bounded(comm, mpi_tmp_path):
    field = STANDARD["energy"].over("member")
    dims = {"member": 2**18}  # 2 MiB a frame
    with small(
        mpi_tmp_path / "big.h5", comm, dims=dims, variables=[field], flush_interval=1e9
    ) as out:
        for t in range(6):
            out.append(t, {"energy": np.zeros(2**18)})
        assert len(out._held) == 1  # one at once, then four


# -- refusals --------------------------------------------------------------------------


@pytest.mark.mpi
def test_existing_file_is_refused_on_all_ranks_and_left_alone(comm, mpi_tmp_path):
    path = mpi_tmp_path / "run.h5"
    record(path, comm, frames=1)
    before = path.read_bytes()
    with pytest.raises(InputError, match="does not exist yet.*--overwrite") as caught:
        writer(path, comm)
    assert caught.value.name == "out"
    comm.Barrier()
    assert path.read_bytes() == before
    assert names(mpi_tmp_path) == ["run.h5"]


@pytest.mark.mpi
@pytest.mark.parametrize("backend", BACKENDS)
def test_overwrite_replaces_through_a_link_once_the_new_file_is_there(comm, mpi_tmp_path, backend):
    path, link = mpi_tmp_path / "old.h5", mpi_tmp_path / "link.h5"
    record(path, comm, frames=2)
    if comm.rank == 0:
        link.symlink_to(path)
    comm.Barrier()
    before = path.read_bytes()
    with pytest.raises(InputError, match="config_json"):
        writer(link, comm, overwrite=True, attributes={"system": "ising"})
    comm.Barrier()
    assert path.read_bytes() == before
    comm.Barrier()  # rank 0 puts the new one in its place
    with small(link, comm, overwrite=True, backend=backend) as out:
        out.append(0, {"magnetization": 0.25})
    comm.Barrier()
    assert link.is_symlink()
    with Trajectory(path) as trajectory:
        assert trajectory["magnetization"].tolist() == [0.25]
    assert names(mpi_tmp_path) == ["link.h5", "old.h5"]


@pytest.mark.mpi
@pytest.mark.parametrize("overwrite", [False, True])
def test_places_that_cannot_be_written(comm, mpi_tmp_path, overwrite):
    if comm.rank == 0:
        (mpi_tmp_path / "file").write_text("not a folder")
    comm.Barrier()
    for path, reason in [
        (mpi_tmp_path / "nowhere" / "run.h5", "No such file or directory. Create .*nowhere first"),
        (mpi_tmp_path / "file" / "run.h5", "Not a directory"),
        (Path("/sys/run.h5"), "denied|not permitted|Read-only"),
        (mpi_tmp_path, "not a regular file"),
        (Path("/dev/null"), "the name of a file"),
    ]:
        with pytest.raises(InputError, match=reason):
            small(path, comm, overwrite=overwrite)
    assert os.listdir(mpi_tmp_path) == ["file"]


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": {"y": 0}}, "positive sizes"),
        ({"dims": {"time": 3}}, "time left out"),
        ({"variables": [STANDARD["spin"]]}, "dimensions among"),
        ({"variables": [STANDARD["energy"]] * 2}, "each name once"),
        ({"coordinates": {"y": np.zeros(3)}}, "coordinate y"),
        ({"attributes": ABOUT | {"thing": object()}}, "attribute thing"),
    ],
)
def test_impossible_schema_writes_nothing(comm, mpi_tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        small(mpi_tmp_path / "run.h5", comm, **options)
    assert os.listdir(mpi_tmp_path) == []


@pytest.mark.mpi
def test_wrong_frames_are_refused(comm, mpi_tmp_path):
    field = STANDARD["coarse_magnetization"]
    with small(
        mpi_tmp_path / "run.h5",
        comm,
        dims={"y": 8, "x": 2},
        variables=[STANDARD["flips"], field],
    ) as out:
        whole = np.zeros((8, 2))
        with pytest.raises(InputError, match="exactly .*'flips'"):
            out.append(0, {"coarse_magnetization": whole})
        with pytest.raises(InputError, match=r"float64\(7, 2\).*float32\(8, 2\)"):
            out.append(0, {"flips": 0, "coarse_magnetization": whole[:7]})
        with pytest.raises(InputError, match="flips=.*int64"):
            out.append(0, {"flips": 0.5, "coarse_magnetization": whole})
        with pytest.raises(InputError, match="cover"):
            part = (slice(0, 7), slice(0, 2))
            out.append(0, {"flips": 0, "coarse_magnetization": (whole[part], part)})
        with pytest.raises(InputError, match="step 1"):
            part = (slice(0, 8, 2), slice(0, 2))
            out.append(0, {"flips": 0, "coarse_magnetization": (whole[part], part)})
        out.append(0, {"flips": 0, "coarse_magnetization": cut(whole, comm)})
        with pytest.raises(InputError, match="part of the first frame"):
            out.append(1, {"flips": 0, "coarse_magnetization": whole})
        for time in (0, -1, float("nan"), float("inf")):
            with pytest.raises(InputError, match="finite time after 0"):
                out.append(time, {"flips": 0, "coarse_magnetization": cut(whole, comm)})
        with pytest.raises(InputError, match="one of"):
            out.write_static("energy", 0)


@pytest.mark.mpi(min_size=2)
def test_parts_must_cover_once_and_all_ranks_hear_of_it(comm, mpi_tmp_path):
    energy = STANDARD["energy"].over("member")
    with small(mpi_tmp_path / "run.h5", comm, dims={"member": 8}, variables=[energy]) as out:
        overlap = (slice(0, 8),)
        with pytest.raises(InputError, match="cover"):
            out.append(0, {"energy": (np.zeros(8), overlap)})
        # Rank 0 knows it all, the others say they hold parts; and a slip on one rank only.
        mixed = np.zeros(8) if comm.rank == 0 else (np.zeros(8), overlap)
        with pytest.raises(InputError, match="on all ranks or on none"):
            out.append(0, {"energy": mixed})
        with pytest.raises(InputError, match=r"float64\(5,\)"):
            out.append(0, {"energy": np.zeros(5 if comm.rank == 1 else 8)})
        out.append(0, {"energy": np.zeros(8)})


def test_forgotten_static_variable(tmp_path):
    path = tmp_path / "run.h5"
    with pytest.raises(InputError, match=r"missing=\['note'\]"):
        with small(path, variables=[VARIABLES[-1]]):
            pass
    with Trajectory(path) as trajectory:
        assert not trajectory.complete


def test_complete_comes_last_and_with_the_whole_file(tmp_path, monkeypatch):
    path, seen, replace = tmp_path / "run.h5", [], Path.replace

    def spy(self: Path, target: Path) -> None:
        if Path(target) == path:
            with Trajectory(path) as old, Trajectory(self) as new:
                seen.append((len(old), old.complete, len(new), new.complete))
        replace(self, target)

    monkeypatch.setattr(Path, "replace", spy)
    with small(path, flush_interval=1e9) as out:
        for t in range(3):
            out.append(t, {"magnetization": 0.5})
    assert seen == [(3, False, 3, True)]


def test_without_room_to_seal_it_the_file_stays_live_and_is_complete(tmp_path, monkeypatch):
    def full(folder: Path, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with small(tmp_path / "run.h5") as out:
        out.append(0, {"magnetization": 0.5})
        monkeypatch.setattr(storage, "require_room", full)
        with pytest.warns(UserWarning, match="not sealed: No space left"):
            out.close()
    with Trajectory(tmp_path / "run.h5") as trajectory:
        assert trajectory.complete
        assert trajectory["magnetization"].tolist() == [0.5]


def test_a_full_disk_is_said_before_hdf5_meets_it(tmp_path, monkeypatch):
    path = tmp_path / "run.h5"
    with small(path, flush_interval=0) as out:
        out.append(0, {"magnetization": 0.5})
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
        try:
            with pytest.raises(InputError, match="1 frames are saved.*make room, then resume"):
                out.append(1, {"magnetization": 0.25})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
    with Trajectory(path) as trajectory:
        assert trajectory["magnetization"].tolist() == [0.5]
        assert not trajectory.complete


def test_the_room_of_the_next_frames_is_held_by_the_file(tmp_path, monkeypatch):
    """Nobody else can take it before they are written; what is not needed is given back."""
    path, sizes = tmp_path / "run.h5", []

    def spy(*given) -> None:
        storage.reserve(*given)
        sizes.append(path.stat().st_size)

    monkeypatch.setattr("mpiflow.files.writer.reserve", spy)
    with small(path, flush_interval=0, backend="gather") as out:
        for t in range(20):
            out.append(t, {"magnetization": 0.5})
            assert len(Trajectory(path)) == t + 1
            assert path.stat().st_size < 2**20 < sizes[-1] < 2**21
    assert len(sizes) == 20


@pytest.mark.mpi
@pytest.mark.parametrize("backend", BACKENDS)
def test_room_is_asked_for_whole_chunks(comm, mpi_tmp_path, backend, monkeypatch):
    """Chunks are allocated early: twenty small variables take more than their frame."""
    path, sizes = mpi_tmp_path / "run.h5", []
    given = "hold" if backend == "parallel" else "reserve"
    real = getattr(storage, given)

    def spy(file: Path, *rest: int) -> None:
        real(file, *rest)
        sizes.append(rest[-1])

    monkeypatch.setattr(f"mpiflow.files.writer.{given}", spy)
    names = [f"v{i}" for i in range(20)]
    variables = [Variable(name, ("member",), "float64") for name in names]
    with TrajectoryWriter(
        path, comm=comm, dims={"member": 8}, variables=variables, attributes=ABOUT,
        flush_interval=0, backend=backend,
    ) as out:  # fmt: skip
        before = path.stat().st_size
        out.append(0, dict.fromkeys(names, np.zeros(8)))
        comm.Barrier()
        grown = path.stat().st_size - before
    assert len(sizes) == (comm.rank == 0)
    assert sizes == [] or 20 * 2**16 < grown < sizes[0]


@pytest.mark.mpi
@pytest.mark.skipif(not PARALLEL, reason="h5py without MPI")
def test_the_room_of_the_next_frames_is_held_for_all_ranks(comm, mpi_tmp_path, monkeypatch):
    """What others take after it was asked for is not missing in the flush."""
    path, ends = mpi_tmp_path / "run.h5", []

    def spy(handle: int, start: int, size: int) -> int:
        ends.append(start - path.stat().st_size)
        return held(handle, start, size)

    held = storage._hold
    monkeypatch.setattr(storage, "_hold", spy)
    with small(path, comm, backend="parallel", flush_interval=0) as out:
        for t in range(3):
            out.append(t, {"magnetization": 0.5})
        assert ends == [0] * 3 * (comm.rank == 0)

        def full(file: Path, size: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("mpiflow.files.writer.hold", full)
        with pytest.raises(InputError, match="3 frames are saved. No space left on device: make"):
            out.append(3, {"magnetization": 0.25})
    comm.Barrier()
    with Trajectory(path) as trajectory:
        assert trajectory["magnetization"].tolist() == [0.5] * 3


def test_a_rank_that_alone_cannot_write_ends_all(tmp_path, mpirun):
    """Others wait for it inside of HDF5, as in a collective allocation of chunks."""
    path = tmp_path / "run.h5"
    program = (
        "import json, sys\n"
        "from mpiflow.core import parallel\n"
        "from mpiflow.files.schema import STANDARD\n"
        "from mpiflow.files.writer import TrajectoryWriter\n"
        "comm, parallel.PATIENCE = parallel.start(), 0.5\n"
        "inside = comm.Dup()\n"
        "class Writer(TrajectoryWriter):\n"
        "    def _store(self, *given):\n"
        "        if self._frames and comm.rank == 1:\n"
        "            raise OSError('Unable to extend (errno = 28, buf = 0x55fc02e6ebe8)')\n"
        "        if self._frames:\n"
        "            inside.Barrier()\n"
        "        super()._store(*given)\n"
        "with Writer(sys.argv[1], comm=comm, dims={}, variables=[STANDARD['magnetization']],\n"
        "            attributes=json.loads(sys.argv[2]), flush_interval=0) as out:\n"
        "    out.append(0, {'magnetization': 0.5})\n"
        "    out.append(1, {'magnetization': 0.5})\n"
    )
    done = mpirun(2, "python", "-c", program, path, json.dumps(ABOUT), check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said = "1 frames are saved. Writing said: No space left on device: make room, then resume."
    assert done.stderr.count(said) == 1
    with Trajectory(path) as trajectory:
        assert trajectory["magnetization"].tolist() == [0.5]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_limit_of_the_size_of_files(tmp_path, ranks, mpirun):
    """It is the whole file that meets it, not the next frames."""
    path = tmp_path / "run.h5"
    program = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from mpiflow import parallel\n"
        "from mpiflow.files.schema import Variable\n"
        "from mpiflow.files.writer import TrajectoryWriter\n"
        "comm, n = parallel.start(), 1024\n"
        "part = slice(n * comm.rank // comm.size, n * (comm.rank + 1) // comm.size)\n"
        "about = dict(system='s', config_json='{}', seed=1, rng='x', decomposition_invariant=1)\n"
        "with TrajectoryWriter(sys.argv[1], comm=comm, dims={'y': n, 'x': n}, attributes=about,\n"
        "                      variables=[Variable('v', ('y', 'x'), 'int8')]) as out:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (2**23, resource.RLIM_INFINITY))\n"
        "    for t in range(20):\n"
        "        noise = np.random.default_rng(t).integers(-99, 99, (n, n), np.int8)\n"
        "        out.append(t, {'v': (noise[part], (part, slice(0, n)))})\n"
        "        out.flush()\n"
    )
    done = mpirun(ranks, "python", "-c", program, path, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    found = re.search(r"(\d) frames are saved. File too large", done.stderr)
    assert found, done.stderr
    with Trajectory(path) as trajectory:
        assert len(trajectory) == int(found[1]) >= 5
        for t in range(len(trajectory)):
            noise = np.random.default_rng(t).integers(-99, 99, (1024, 1024), np.int8)
            assert np.array_equal(trajectory["v"][t], noise)


@pytest.mark.mpi
def test_one_writer_of_a_file(comm, mpi_tmp_path):
    path = mpi_tmp_path / "run.h5"
    with small(path, comm) as out:
        with pytest.raises(InputError, match=rf"no other run is writing.*{os.uname().nodename}"):
            small(path, comm, overwrite=True)
        out.append(0, {"magnetization": 0.5})
    with small(path, comm, overwrite=True):
        pass
    assert names(mpi_tmp_path) == ["run.h5"]


_wholes: list[tuple[str, dict[str, Any]]] = []


def uninterrupted(comm: MPI.Intracomm, folder: Path) -> tuple[str, dict[str, Any]]:
    """The run of a file of five frames and its structure but for that; written once for all."""
    if not _wholes:
        record(folder / "whole.h5", comm, frames=5)
        found = structure(folder / "whole.h5")
        _wholes.append((found["/"]["attributes"].pop("run"), found))
    return _wholes[0]


@pytest.mark.mpi
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("kept", [0, 2, 3])
def test_going_on_with_a_file(comm, mpi_tmp_path, backend, complete, kept):
    """Of a live and of a sealed file; what is behind the kept frames is written anew."""
    path, (another, whole) = mpi_tmp_path / "run.h5", uninterrupted(comm, mpi_tmp_path)
    record(path, comm, frames=3, complete=complete, backend=backend)
    with Trajectory(path) as old:
        run = old.attributes["run"]
    comm.Barrier()
    with writer(path, comm, resume=Continuation(kept, run), backend=backend) as out:
        assert (out.frames, out.run) == (kept, run)
        for t in range(kept, 5):
            out.append(0.5 * t, values(t, comm))
    comm.Barrier()
    if comm.rank == 0:  # the same file: one reader is enough
        found = structure(path)
        assert found["/"]["attributes"].pop("run") != another
        assert found == whole


def test_a_flush_torn_by_a_kill_costs_its_own_frame_only(tmp_path):
    """The index knows chunks of the third frame, the file's end is that of two frames."""
    path, whole = tmp_path / "run.h5", tmp_path / "whole.h5"
    comm = MPI.COMM_SELF
    record(whole, comm, frames=5)
    with writer(path, comm, flush_interval=0) as out:
        out.write_static("initial_magnetization", np.array([-0.5, 0.0, 0.5]))
        out.write_static("note", 3)
        for t in range(3):
            out.append(0.5 * t, values(t, comm))
            if t == 1:
                before = path.read_bytes()
        torn = bytearray(path.read_bytes())
        out.close(complete=False)
        run = out.run
    end = slice(40, 48)  # of a version 0 superblock
    assert torn[8] == 0
    assert torn[end] != before[end]
    torn[end] = before[end]
    path.write_bytes(torn)
    with h5py.File(path) as file, pytest.raises(OSError, match="overflow"):
        file["spin"][2]
    with Trajectory(path) as trajectory:
        assert trajectory.time.tolist() == [0, 0.5]
        for name, value in frame(1).items():
            np.testing.assert_array_equal(trajectory.read(name, -1), value)
    with writer(path, comm, resume=Continuation(2, run)) as out:
        for t in range(2, 5):
            out.append(0.5 * t, values(t, comm))
    one, other = structure(path), structure(whole)
    assert one["/"]["attributes"].pop("run") != other["/"]["attributes"].pop("run")
    assert one == other


@pytest.mark.parametrize("complete", [True, False])
def test_files_that_cannot_be_gone_on_with_stay_as_they_are(tmp_path, complete):
    path = tmp_path / "run.h5"
    record(path, MPI.COMM_SELF, frames=3, complete=complete)
    with Trajectory(path) as old:
        run = old.attributes["run"]
    before = path.read_bytes()
    for frames, name, options, message in (
        (4, run, {}, "4 frames or more"),
        (2, "0" * 16, {}, "of another run"),
        (2, run, {"variables": VARIABLES[1:]}, "Save the same variables"),
        (2, run, {"dims": {**DIMS, "y": 32}, "coordinates": {}}, "Save the same variables"),
    ):
        with pytest.raises(InputError, match=message):
            writer(path, None, resume=Continuation(frames, name), **options)
        assert path.read_bytes() == before
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(InputError, match="corrupt"):
        writer(path, None, resume=Continuation(2, run))
    path.unlink()
    with pytest.raises(InputError, match="bring it back"):
        writer(path, None, resume=Continuation(2, run))


# -- failures --------------------------------------------------------------------------


def test_exception_on_one_rank_alone_keeps_the_frames(tmp_path):
    path = tmp_path / "run.h5"
    with pytest.raises(ZeroDivisionError), small(path, flush_interval=1e9) as out:
        for t in range(3):
            out.append(t, {"magnetization": 0.5})
        _ = 1 / 0
    with Trajectory(path) as trajectory:
        assert len(trajectory) == 3
        assert not trajectory.complete


_DYING = """
import os, signal, sys
from mpiflow.core.errors import InputError
from mpiflow.core.parallel import start
from mpiflow.files.schema import STANDARD
from mpiflow.files.writer import TrajectoryWriter
import numpy as np

path, backend, end = sys.argv[1:]
comm = start()
about = dict(system="x", config_json="{}", seed=0, rng="none", decomposition_invariant=1)
field = STANDARD["spin"]
box = (slice(32 * comm.rank, 32 * comm.rank + 32), slice(0, 80))
with TrajectoryWriter(path, comm=comm, dims={"y": 32 * comm.size, "x": 80}, variables=[field],
                      attributes=about, backend=backend, flush_interval=0) as out:
    for t in range(100):
        if t == 3:
            if end == "input":
                raise InputError("t", t, "less", "Stop earlier.")
            if comm.rank == comm.size - 1:
                if end == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("one rank fails")
        out.append(t, {"spin": (np.full((32, 80), t, np.int8), box)})
"""


@pytest.mark.parametrize("end", ["input", "raise", "kill"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_failing_run_ends_and_leaves_its_frames(mpirun, tmp_path, backend, end):
    path, script = tmp_path / "run.h5", tmp_path / "dying.py"
    script.write_text(_DYING)
    done = mpirun(2, "python", script, path, backend, end, timeout=60, check=False)
    assert done.returncode not in (0, 124, 137 if end != "kill" else -1), done.stderr
    if end == "input":
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("Stop earlier") == 1
    with Trajectory(path) as trajectory:
        assert not trajectory.complete
        assert trajectory.time.tolist() == [0, 1, 2]
        assert (trajectory["spin"] == np.arange(3)[:, None, None]).all()


# -- reading ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trajectory") / "run.h5"
    record(path, MPI.COMM_SELF)
    return path


def test_reader(finished):
    with Trajectory(finished) as trajectory:
        assert trajectory.time.tolist() == [0, 0.5, 1, 1.5]
        assert trajectory.sizes == {**DIMS, "time": 4}
        assert trajectory.config == {"size": 64, "temperature": 2.5}
        about = trajectory.attributes
        assert about["seed"] == 2**63 + 7
        assert about["decomposition_invariant"] == 1
        assert about["Conventions"] == "CF-1.11"
        assert (about["ranks"], about["complete"], about["schema_version"]) == (1, 1, 1)
        assert about["git_hash"] == "unknown" or len(about["git_hash"]) == 40
        assert all(isinstance(value, str | int) for value in about.values())
        assert set(trajectory) == {v.name for v in VARIABLES}
        for variable in VARIABLES:
            assert trajectory.variables[variable.name] == variable
        assert trajectory["pair"].tolist() == ["NbNb", "NbMo"]
        assert trajectory["y"][:2].tolist() == [3.5, 11.5]
        flips = trajectory["flips"]
        assert trajectory.read("flips", -1) == flips[-1]
        assert trajectory.read("flips", slice(-2, None)).tolist() == flips[-2:].tolist()
        assert trajectory.read("flips", slice(3, 1)).size == 0
        with pytest.raises(InputError, match="variable='nothing'.*'flips'"):
            trajectory["nothing"]
        with pytest.raises(IndexError):
            trajectory.read("flips", 4)
        with pytest.raises(InputError, match="forward"):
            trajectory.read("flips", slice(None, None, -1))
        assert repr(trajectory).endswith(
            "4 frames, complete; coarse_magnetization, energy, flips, "
            "initial_magnetization, magnetization, note, spin, sro>"
        )
        for text in ("ising, complete", "4, time 0 to 1.5", "sro(time, pair)", "seed 92233"):
            assert text in trajectory.summary()


def test_reader_leaves_out_a_broken_frame(tmp_path):
    path = tmp_path / "broken.h5"
    record(path, MPI.COMM_SELF, complete=False)
    with h5py.File(path, "r+") as file:
        file["flips"].resize(3, axis=0)
        file["time"][2] = np.nan
    with Trajectory(path) as trajectory:
        assert len(trajectory) == 2
        assert len(trajectory["magnetization"]) == 2
        assert trajectory.read("flips", -1) == 10**12
        with trajectory.to_xarray() as data:
            assert data.sizes["time"] == 2


def test_unusable_files(finished, tmp_path):
    text, empty, foreign = (tmp_path / name for name in ("text.h5", "empty.h5", "foreign.h5"))
    text.write_text("time,magnetization\n" * 100)
    empty.touch()
    with h5py.File(foreign, "w") as file:
        file["magnetization"] = np.zeros(3)
    short, newer = tmp_path / "short.h5", tmp_path / "newer.h5"
    short.write_bytes(finished.read_bytes()[:-1000])
    record(newer, MPI.COMM_SELF, complete=False)
    with h5py.File(newer, "r+") as file:
        file.attrs["schema_version"] = 99
    for path, message in [
        (tmp_path / "none.h5", "an existing trajectory"),
        (tmp_path, "an existing trajectory"),
        (text, "It is text, and begins with 'time,magnetization'"),
        (empty, "corrupt"),
        (short, "corrupt"),
        (foreign, "of another program; it holds magnetization"),
        (newer, "update mpiflow"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            Trajectory(path)
        assert caught.value.value == str(path)
        assert "not found" not in str(caught.value)


@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf"])
def test_xarray_opens_it_as_it_is(finished, engine):
    xarray = pytest.importorskip("xarray")
    with xarray.open_dataset(finished, engine=engine) as data:
        assert dict(data.sizes) == {**DIMS, "time": 4}
        assert data.coarse_magnetization.dims == ("time", "y", "x")
        assert data.coarse_magnetization.dtype == np.float32
        assert data.spin.dtype == np.int8
        assert data.spin.dims == ("time", "site_y", "site_x")
        assert data.sro.sel(pair="NbMo").values[1] == frame(1)["sro"][1]
        assert data.y.values[0] == 3.5
        assert data.y.attrs == {"axis": "Y", "units": "1", "long_name": "y in sites"}
        assert data.magnetization.attrs["cell_methods"] == "time: point area: mean"
        assert data.attrs["complete"] == 1
        assert data.attrs["seed"] == 2**63 + 7
        assert json.loads(data.attrs["config_json"])["size"] == 64
        np.testing.assert_array_equal(data.spin[2].values, frame(2)["spin"])
        again = finished.with_name(f"again-{engine}.nc")
        data[["magnetization", "coarse_magnetization"]].to_netcdf(again, engine=engine)
        with xarray.open_dataset(again) as copy:
            np.testing.assert_array_equal(copy.magnetization, data.magnetization)


def test_to_xarray_and_netcdf(finished):
    netcdf = pytest.importorskip("netCDF4")
    with Trajectory(finished) as trajectory, trajectory.to_xarray() as data:
        assert float(data.flips[-1]) == 3e12
    with netcdf.Dataset(finished) as data:
        assert data.dimensions["time"].isunlimited()
        assert not data.dimensions["y"].isunlimited()
        assert data["spin"].dimensions == ("time", "site_y", "site_x")
        assert data["pair"][:].tolist() == ["NbNb", "NbMo"]
        assert data.mpiflow_version


def test_missing_xarray(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with Trajectory(finished) as trajectory, pytest.raises(InputError, match=r"mpiflow\[plot\]"):
        trajectory.to_xarray()


@pytest.mark.parametrize("block", [3, 8, 10, 100, 4095])
def test_block_sums_come_back_from_float32_means(block):
    sites = block**2
    sums = np.random.default_rng(block).integers(-sites, sites + 1, 10_000)
    means = (sums / sites).astype(STANDARD["coarse_magnetization"].dtype)
    np.testing.assert_array_equal(np.rint(means.astype(float) * sites), sums)
