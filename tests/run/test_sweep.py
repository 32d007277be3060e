"""``mpiflow sweep``: many runs of one configuration."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from mpi4py import MPI

from mpiflow import InputError, simulate, sweep, verify
from mpiflow.cli import invoke
from mpiflow.run import sweep as sweeps

SELF = MPI.COMM_SELF
BASE: dict[str, Any] = {"size": 8, "dt": 0.25, "time": 4, "save_every": 0.5, "kernel": "plain"}
TOML = """
system = "ising"
size = 8
dt = 0.25
time = 4
save_every = 0.5
kernel = "plain"

[sweep]
temperature = [1.5, 2.5, 4.0]
seed = {start = 1, stop = 2, count = 2}
"""


def same(first: Path, second: Path) -> bool:
    with h5py.File(first) as a, h5py.File(second) as b:
        return a.keys() == b.keys() and all(np.array_equal(a[n][()], b[n][()]) for n in a)


@pytest.mark.mpi
def test_points_are_the_runs_of_simulate(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    """On any number of ranks, more than points or fewer."""
    folder = sweep(
        "ising",
        {"temperature": [1.5, 2.5], "seed": [3]},
        out=mpi_tmp_path / "few",
        comm=comm,
        **BASE,
    )
    if comm.rank == 0:
        for number, temperature in enumerate((1.5, 2.5)):
            alone = mpi_tmp_path / f"alone{number}.h5"
            simulate("ising", SELF, temperature=temperature, seed=3, out=alone, quiet=True, **BASE)
            assert same(folder / f"000{number}.h5", alone)
    comm.Barrier()


def test_a_sweep_is_a_table_and_a_data_set(tmp_path: Path) -> None:
    config = tmp_path / "sweep.toml"
    config.write_text(TOML)
    out = tmp_path / "out"
    invoke(["sweep", str(config), "field=0.1", "--out", str(out), "--discard", "1"])
    with open(out / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(float(r["temperature"]), int(r["seed"])) for r in rows] == [
        (t, seed) for t in (1.5, 2.5, 4.0) for seed in (1, 2)
    ]
    with xarray.open_dataset(out / "sweep.nc", decode_times=False) as data:
        assert data.energy.dims == ("temperature", "seed", "time")
        assert list(data.time.values) == [0.5 * n for n in range(9)]
        one = data.energy.sel(temperature=2.5, seed=2)
        with h5py.File(out / "0003.h5") as run:
            assert np.array_equal(one, run["energy"])
        late = one.sel(time=slice(1, None))
        assert float(rows[3]["energy"]) == pytest.approx(float(late.mean()), abs=1e-12)
        assert float(rows[3]["energy_error"]) > 0
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    with pytest.raises(InputError, match="out"):
        invoke(["sweep", str(config), "field=0.1", "--out", str(out)])
    for lost in (out / "0004.h5", *out.glob("checkpoints/0004*")):
        lost.unlink()
    invoke(["sweep", str(config), "field=0.1", "--out", str(out), "--resume"])
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.h5")}
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == {"0004.h5"}


@pytest.mark.parametrize("quiet", [False, True])
def test_a_quiet_sweep_says_nothing(
    quiet: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    over, settings = {"temperature": [1.5, 2.5]}, {**BASE, "quiet": quiet, "comm": SELF}
    sweep("ising", over, out=tmp_path / "plain", **settings)
    sweep("ising", over, out=tmp_path / "tempered", exchange_every=0.5, **settings)
    assert (capsys.readouterr().out == "") is quiet


def test_a_list_runs_side_by_side(tmp_path: Path) -> None:
    over = {"temperature": [1.5, 2.5], "time": [4, 2]}
    folder = sweep("ising", over, out=tmp_path / "s", mode="list", comm=SELF, **BASE)
    with xarray.open_dataset(folder / "sweep.nc", decode_times=False) as data:
        assert data.energy.dims == ("point", "frame")
        assert int(np.isnan(data.energy).sum()) == 4  # the second one is shorter
    # Members are a dimension too, and words are values.
    over = {"initial": ["shuffled", "up"]}
    folder = sweep("ising", over, out=tmp_path / "m", members=3, comm=SELF, **BASE, temperature=2)
    with xarray.open_dataset(folder / "sweep.nc", decode_times=False) as data:
        assert data.energy.dims == ("initial", "time", "member")
        assert float(data.magnetization.sel(initial="up")[0].mean()) == 1


@pytest.mark.mpi
def test_temperatures_of_a_sweep_exchange_states(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    """A file for each seed, which has members at all temperatures."""
    over = {"temperature": [1.5, 2.0, 2.5], "seed": [1, 2]}
    settings: dict[str, Any] = {**BASE, "exchange_every": 0.5, "comm": comm}
    folder = sweep("ising", over, out=mpi_tmp_path / "t", **settings)
    if comm.rank == 0:
        assert sorted(path.name for path in folder.glob("*.h5")) == ["0000.h5", "0001.h5"]
        with xarray.open_dataset(folder / "sweep.nc", decode_times=False) as data:
            assert data.energy.dims == ("seed", "time", "member")
            assert list(data.copy_temperature[0, 0].values) == [1.5, 2.0, 2.5]
            assert int(data.exchanges[0, -1].sum()) > 0
            assert not np.array_equal(data.energy[0], data.energy[1])
        with open(folder / "sweep.csv", newline="") as file:
            rows = [(int(r["seed"]), float(r["temperature"])) for r in csv.DictReader(file)]
        assert rows == [(seed, t) for seed in (1, 2) for t in (1.5, 2.0, 2.5)]
        assert all(found.good for found in verify(folder))
    comm.Barrier()
    sweep("ising", over, out=folder, **settings, resume=True)  # all are finished
    with pytest.raises(InputError, match="^exchange_every="):
        sweep("ising", {"seed": [1, 2]}, out=mpi_tmp_path / "no", **settings)


@pytest.mark.parametrize(
    ("over", "options", "message"),
    [
        ({"temperatur": [1]}, {}, "^sweep='temperatur'"),
        ({"temperature": []}, {}, r"^temperature=\[\]"),
        ({"temperature": "hot"}, {}, "^temperature='hot'"),
        ({"temperature": [2, -1]}, {}, "^temperature=-1"),
        ({"seed": {"start": 1}}, {}, "^seed="),
        ({}, {}, "^sweep"),
        ({"out": ["a", "b"]}, {}, "^sweep='out'"),
        ({"temperature": [1, 2], "field": [0]}, {"mode": "list"}, "^sweep="),
        ({"temperature": [2]}, {"mode": "tree"}, "^mode='tree'"),
        ({"temperature": [2]}, {"discard": 9.0}, "^discard=9"),
        ({"temperature": [2]}, {"discard": -1.0}, "^discard=-1"),
    ],
)
def test_what_makes_no_sweep_is_refused(
    over: Any, options: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        sweep("ising", over, out=tmp_path / "s", comm=SELF, **BASE, **options)
    assert not list(tmp_path.glob("s/*.h5")) or "discard" in options


@pytest.mark.mpi
def test_a_bad_point_ends_all_ranks_and_keeps_the_others(
    comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    """A file is in the way of the second point."""
    out = mpi_tmp_path / "s"
    if comm.rank == 0:
        out.mkdir()
        (out / "0001.h5").write_text("mine")
    comm.Barrier()
    with pytest.raises(InputError, match="0001.h5"):
        sweep("ising", {"temperature": [1.5, 2.5, 3.5]}, out=out, comm=comm, **BASE)
    comm.Barrier()
    assert (out / "0001.h5").read_text() == "mine"
    assert (out / "0002.h5").exists()
    assert not (out / sweeps.TABLE).exists()
