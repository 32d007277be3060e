"""Runs that are stopped anywhere and go on, on other ranks, as if nothing had happened."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from interrupted import Interrupted
from mpi4py import MPI
from same_files import assert_same

from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.files import checkpoint
from mpiflow.files.trajectory import Trajectory
from mpiflow.run import follow as recording
from mpiflow.run import stopping
from mpiflow.run.resume import resume
from mpiflow.run.simulate import simulate
from mpiflow.run.stopping import Keep, Stopped, Verdict, Watch
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.ensemble.options import CurieWeissConfig
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.options import RunConfig
from mpiflow.simulation.spin_diffusion.options import SpinDiffusionConfig


def run(config: RunConfig, comm: MPI.Intracomm) -> None:
    simulate(config, comm)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Interrupted]]:
    monkeypatch.setattr(recording, "Watch", Interrupted)
    return Interrupted


@pytest.mark.mpi
@pytest.mark.parametrize("size", [(26, 44), (64, 256)])
def test_a_spin_is_a_bit_of_a_checkpoint(comm, mpi_tmp_path, size):
    """The first in the highest bit of a byte, by the plain kernel and by the packed one."""
    out = mpi_tmp_path / "run.h5"
    options = {"temperature": 2.2, "dt": 0.25, "time": 2, "save_every": 1, "spins": True}
    run(IsingConfig(**options, size=size, seed=5, out=out, quiet=True), comm)
    with h5py.File(checkpoint.paths(out)[0]) as file, Trajectory(out) as trajectory:
        assert file["sites"].shape == (1, size[0], -(-size[1] // 8))
        bits = np.unpackbits(file["sites"][0], axis=-1)[:, : size[1]]
        ahead = trajectory.read("spin", -1)
        # The state waits before its next pass: one colour is that of the frame.
        colour = np.add.outer(*map(np.arange, size)) % 2
        same = bits == (ahead > 0)
        assert same[colour == 1].all() or same[colour == 0].all()


# -- bad files ---------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> RunConfig:
    """A finished run with two checkpoints."""
    config = IsingConfig(
        size=16, temperature=2, time=4, dt=0.5, save_every=1, checkpoint_every=1,
        out=tmp_path / "run.h5", quiet=True,
    )  # fmt: skip
    simulate(config, MPI.COMM_SELF)
    assert [p.name for p in checkpoint.paths(config.out)] == ["run.h5.000004", "run.h5.000003"]
    return config


def damage(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 0x10
    path.write_bytes(data)


def test_a_bad_newest_checkpoint_is_reported_and_the_one_before_is_used(two, tmp_path, capsys):
    shutil.copytree(tmp_path, tmp_path / "copy")
    copy = tmp_path / "copy" / "run.h5"
    resume(two.out, MPI.COMM_SELF, {"time": 6})
    for path in checkpoint.paths(copy)[:1]:
        damage(path, 1000)
    assert "is not the one written in it. It is corrupt" in refusal(checkpoint.paths(copy)[0])
    resume(copy, MPI.COMM_SELF, {"time": 6})
    assert_same(two.out, copy)
    said = capsys.readouterr().err
    assert "run.h5.000004" in said
    assert "corrupt" in said


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        checkpoint.verify(path)
    return str(caught.value)


def test_if_all_are_bad_nothing_is_done(two):
    before = two.out.read_bytes()
    for path in checkpoint.paths(two.out):
        path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="corrupt"):
        resume(two.out, MPI.COMM_SELF, {"time": 6})
    with pytest.raises(InputError, match="corrupt"):
        simulate(two.model_copy(update={"resume": True}), MPI.COMM_SELF)
    assert two.out.read_bytes() == before


def test_damage_anywhere_is_seen(two):
    path = checkpoint.paths(two.out)[0]
    good = path.read_bytes()
    assert "ising, 16 x 16, time 4" in checkpoint.verify(path)
    rng = random.Random(1)  # noqa: S311
    for _ in range(300):
        bad = bytearray(good)
        kind = rng.randrange(3)
        if kind == 0:
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            start = rng.randrange(len(bad))
            bad[start : start + 100] = bytes(len(bad[start : start + 100]))
        else:
            del bad[rng.randrange(len(bad)) :]
        if bad == good:  # zeros that were zeros
            continue
        path.write_bytes(bad)
        message = refusal(path)
        assert "corrupt" in message or "Update mpiflow" in message
    path.write_bytes(good)
    assert checkpoint.verify(path)


def test_a_checkpoint_of_another_run_does_not_fit(two, tmp_path):
    other = two.model_copy(update={"out": tmp_path / "other.h5", "seed": 9})
    simulate(other, MPI.COMM_SELF)
    shutil.copy(other.out, two.out)
    with pytest.raises(InputError, match="of another run"):
        resume(two.out, MPI.COMM_SELF, {"time": 6})


def test_a_new_run_forgets_the_checkpoints_of_the_old(two, tmp_path):
    again = two.model_copy(
        update={"overwrite": True, "checkpoints": False, "checkpoint_every": None}
    )
    simulate(again, MPI.COMM_SELF)
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(InputError, match="a run with checkpoints"):
        resume(two.out, MPI.COMM_SELF, {"time": 6})


def test_a_full_disk_leaves_the_old_checkpoint(two, monkeypatch):
    def full(path: Path, fill: Any, **_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = [p.read_bytes() for p in checkpoint.paths(two.out)]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.storage, "commit", full)
        with pytest.raises(InputError, match="No space left"):
            resume(two.out, MPI.COMM_SELF, {"time": 6})
    assert [p.read_bytes() for p in checkpoint.paths(two.out)] == before
    resume(two.out, MPI.COMM_SELF, {"time": 6})
    with Trajectory(two.out) as trajectory:
        assert trajectory.time.tolist() == [0, 1, 2, 3, 4, 5, 6]


# -- going on differently ------------------------------------------------------------------


def test_a_changed_configuration_is_refused_with_the_difference(two):
    changed = two.model_copy(update={"resume": True, "temperature": 2.5, "time": 6.0})
    with pytest.raises(InputError, match=r"temperature was 2\.0, is 2\.5.*--override temperature"):
        simulate(changed, MPI.COMM_SELF)
    with pytest.raises(InputError, match="save_every was 1.0, is 2.0"):
        simulate(two.model_copy(update={"resume": True, "save_every": 2.0}), MPI.COMM_SELF)


def test_other_options_from_here_on(two, tmp_path):
    same = tmp_path / "same"
    shutil.copytree(tmp_path, same, ignore=lambda *_: ["same"])
    resume(two.out, MPI.COMM_SELF, {"time": 6, "temperature": "3.5"})
    resume(same / "run.h5", MPI.COMM_SELF, {"time": 6})
    with Trajectory(two.out) as hot, Trajectory(same / "run.h5") as cold:
        assert hot.config["temperature"] == 3.5
        assert hot["energy"][:5].tolist() == cold["energy"][:5].tolist()
        assert hot["energy"][5:].tolist() != cold["energy"][5:].tolist()
    seeds = tmp_path / "seeds"
    shutil.copytree(same, seeds)
    resume(seeds / "run.h5", MPI.COMM_SELF, {"time": 8, "seed": "77"})
    with Trajectory(seeds / "run.h5") as other:
        assert other.attributes["seed"] == 77
        assert len(other) == 9


def test_a_longer_run_is_the_run_that_was_longer_from_the_start(tmp_path):
    options = {"size": 16, "temperature": 2, "dt": 0.5, "save_every": 1.5, "seed": 3, "quiet": True}
    simulate(IsingConfig(**options, time=9, out=tmp_path / "long.h5"), MPI.COMM_SELF)
    simulate(IsingConfig(**options, time=4, out=tmp_path / "short.h5"), MPI.COMM_SELF)
    resume(tmp_path / "short.h5", MPI.COMM_SELF, {"time": 9})
    with Trajectory(tmp_path / "long.h5") as one, Trajectory(tmp_path / "short.h5") as other:
        assert one.time.tolist() == [0, 1.5, 3, 4.5, 6, 7.5, 9]
        assert other.time.tolist() == [0, 1.5, 3, 4, 4.5, 6, 7.5, 9]  # 4 was its end
        keep = other.time != 4
        for name in one:
            np.testing.assert_array_equal(one[name], other[name][keep])
        assert one.config["time"] == other.config["time"]


def test_a_complete_run_is_left_alone(two, capsys):
    before = two.out.read_bytes()
    resume(two.out, MPI.COMM_SELF)
    assert two.out.read_bytes() == before
    assert "is complete: give a longer --time" in capsys.readouterr().err


def test_the_same_command_starts_and_goes_on(tmp_path, interrupted):
    options = {"size": 16, "temperature": 2, "time": 4, "dt": 0.5, "save_every": 1, "quiet": True}
    interrupted.left = 10**9
    simulate(IsingConfig(**options, out=tmp_path / "whole.h5"), MPI.COMM_SELF)
    config = IsingConfig(**options, out=tmp_path / "run.h5", resume=True)
    for looks in (2, 1):
        interrupted.left = looks
        with pytest.raises(Stopped) as caught:
            simulate(config, MPI.COMM_SELF)
        assert (caught.value.code, caught.value.reason) == (75, "SIGUSR1")
    interrupted.left = 10**9
    simulate(config, MPI.COMM_SELF)
    assert_same(tmp_path / "whole.h5", config.out)
    simulate(config, MPI.COMM_SELF)  # and when it is done, it is done
    assert_same(tmp_path / "whole.h5", config.out)


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path, monkeypatch):
    options = {"size": 16, "temperature": 2, "time": 4, "dt": 0.5, "save_every": 1, "quiet": True}
    simulate(IsingConfig(**options, out=tmp_path / "whole.h5"), MPI.COMM_SELF)
    config = IsingConfig(**options, out=tmp_path / "run.h5")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "write", killed)
        simulate(config, MPI.COMM_SELF)
    assert checkpoint.paths(config.out) == []
    resume(config.out, MPI.COMM_SELF)
    assert_same(tmp_path / "whole.h5", config.out)


def test_an_initial_file_may_be_gone(tmp_path):
    start = tmp_path / "start.npy"
    np.save(start, np.where(np.random.default_rng(1).random((16, 16)) < 0.5, -1, 1).astype(np.int8))
    options = {"size": 16, "temperature": 2, "dt": 0.5, "save_every": 1, "quiet": True}
    options["initial"] = str(start)
    simulate(IsingConfig(**options, time=6, out=tmp_path / "whole.h5"), MPI.COMM_SELF)
    simulate(IsingConfig(**options, time=4, out=tmp_path / "run.h5"), MPI.COMM_SELF)
    start.unlink()
    resume(tmp_path / "run.h5", MPI.COMM_SELF, {"time": 6})
    assert_same(tmp_path / "whole.h5", tmp_path / "run.h5")


def test_files_that_no_command_made(tmp_path, two):
    with pytest.raises(InputError, match="There is none"):
        resume(tmp_path / "nothing.h5", MPI.COMM_SELF)
    with pytest.raises(InputError, match="give --hops|idle|one of"):
        resume(two.out, MPI.COMM_SELF, {"hops": 100})


# -- when to look up -----------------------------------------------------------------------


def test_checkpoints_lie_where_they_were_asked_for(tmp_path, monkeypatch):
    config = IsingConfig(
        size=16, temperature=2, time=10, dt=0.5, save_every=4, checkpoint_every=1.3,
        out=tmp_path / "run.h5", quiet=True,
    )  # fmt: skip
    times, write = [], checkpoint.write

    def spy(out: Path, sim: Any, *rest: Any) -> Path:
        times.append(sim.time)
        return write(out, sim, *rest)

    monkeypatch.setattr(checkpoint, "write", spy)
    simulate(config, MPI.COMM_SELF)
    # The first whole step at or after each multiple of 1.3, and the end.
    assert times == [1.5, 3, 4, 5.5, 6.5, 8, 9.5, 10]


def test_walltime_counts_the_slowest_stretch_and_the_checkpoint(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stopping, "uptime", lambda: now[0])
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    watch = Watch(Keep(walltime=200.0), MPI.COMM_SELF, 1.0, 0.0)

    def work(seconds: float, position: float) -> str:
        now[0] += seconds
        return watch.look(position).reason

    assert work(60, 1) == ""  # compiles: does not count
    assert work(5, 2) == ""
    now[0] += 2
    watch.saved(2, 2.0)  # a checkpoint took two seconds
    assert work(5, 3) == ""
    assert work(8, 4) == ""  # at 180: 8 + 2 * 2 + 1 more would be 193
    assert work(7, 5) == "walltime"  # at 187: 200


def test_strides_grow_to_a_quarter_of_a_second_and_shrink_again(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    watch = Watch(Keep(), MPI.COMM_SELF, 1.0, 0.0)
    position, speed, strides = 0.0, 100.0, []
    for i in range(8):
        speed = 400.0 if i < 5 else 40.0
        stride = watch.ahead(position)
        position += stride
        now[0] += stride / speed
        strides.append(watch.look(position).stride)
    assert strides == pytest.approx([4, 16, 64, 100, 100, 10, 10, 10])


def test_a_stretch_is_longer_where_each_costs_the_same_at_least(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    watch = Watch(Keep(), MPI.COMM_SELF, 1.0, 0.0)
    spent = []
    for _ in range(15):
        spent.append(0.15 + 1e-6 * watch.events)
        now[0] += spent[-1]
        watch.look(0.0, watch.events)
    assert spent[-1] == pytest.approx(0.15 / stopping.SHARE, rel=0.01)
    assert max(spent) < 1


def test_work_that_cannot_be_divided_is_looked_up_from_each_time(monkeypatch):
    """Inner steps of a large field take half a second each: two in a stretch are only tried."""
    now = [0.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    watch = Watch(Keep(), MPI.COMM_SELF, 1.0, 0.0)
    made = []
    for i in range(12):
        made.append(watch.events)
        now[0] += (0.5 + 0.3 * (i % 3)) * watch.events  # beside other work
        watch.look(0.0, watch.events)
    assert max(made) == 2
    assert made[-7:] == [1] * 7


#: What may have a thousand events before its first frame. Name: (configuration, its simulation).
EVENT_DRIVEN = {
    "nfold": IsingConfig(size=16, temperature=2, solver="nfold", time=1e6, out="x"),
    "gillespie": KacConfig(
        size=16, gamma=2, temperature=0.8, solver="gillespie", time=1e6, out="x"
    ),
    "serial": AlloyConfig(cells=4, temperature=2000, time=1.0, out="x"),
    "members": AlloyConfig(cells=4, temperature=2000, time=1.0, members=3, out="x"),
    "curie-weiss": CurieWeissConfig(size=8, temperature=1, time=1e6, out="x"),
    "spin-diffusion": SpinDiffusionConfig(model="averaged", size=8, time=1e6, out="x"),
}


@pytest.mark.parametrize("name", EVENT_DRIVEN)
def test_the_first_stretches_are_short(tmp_path, monkeypatch, name):
    """A clock that only counts events: 1000 a second; stopped before the first frame of many."""
    made = [0.0]
    config = EVENT_DRIVEN[name].model_copy(
        update={"out": tmp_path / "run.h5", "walltime": 4.0, "quiet": True}
    )
    monkeypatch.setattr(stopping, "uptime", lambda: 1e-3 * made[0])
    monkeypatch.setattr(stopping.time, "monotonic", lambda: 1e-3 * made[0])
    look = Watch.look

    def counted(watch: Watch, position: float, events: float | None = None) -> Verdict:
        made[0] += events or 0
        return look(watch, position, events)

    monkeypatch.setattr(Watch, "look", counted)
    with pytest.raises(Stopped, match="75"):
        run(config, MPI.COMM_SELF)
    assert 2000 < made[0] <= 4000
    assert len(checkpoint.paths(config.out)) == 1


def test_config_of_walltime_and_checkpoints(tmp_path):
    options = {"size": 16, "temperature": 2, "time": 4, "out": tmp_path / "run.h5"}
    day = 86400
    for given, seconds in (
        ("1:02:03", 3723), ("02:03", 123), ("90:00", 5400), ("36:00:00", 1.5 * day), (7.5, 7.5),
        ("120", 120), ("1-12", 1.5 * day), ("2-00:30", 2 * day + 1800), ("0-0:0:9", 9),
        ("1-02:03:04", day + 7384),
    ):  # fmt: skip
        assert IsingConfig(**options, walltime=given).walltime == seconds, given
    for bad in (
        "1:2:3:4", "-5", "x", "0", "0:00", "1:60", "1:60:00", "1-24", "1-2-3", "1-", "-1:00",
        "1-02:60", "1:30.5", "1 - 2", "", ":30", "\u0661:00", "inf", "nan",
    ):  # fmt: skip
        with pytest.raises(InputError, match="HH:MM:SS"):
            IsingConfig(**options, walltime=bad)
    with pytest.raises(InputError, match="checkpoints"):
        IsingConfig(**options, walltime=7.5, checkpoints=False)
    stored = json.loads(IsingConfig(**options, walltime="1:02:03").model_dump_json())
    assert IsingConfig(**stored).walltime == 3723


def test_the_command(two):
    invoke(["resume", str(two.out), "--time", "6", "--override", "field=0.5", "--reseed", "7"])
    with Trajectory(two.out) as trajectory:
        assert trajectory.time.tolist() == [0, 1, 2, 3, 4, 5, 6]
        config = trajectory.config
        assert (config["time"], config["field"], config["seed"]) == (6, 0.5, 7)
    for arguments, message in (
        (["--override", "field"], "NAME=VALUE"),
        (["--override", "fild=1"], "Did you mean field"),
        (["--time", "-1"], "above 0"),
        (["--override", "size=32"], "members, sides"),
        (["--override", "coarse=4", "--time", "7"], "Save the same variables"),
    ):
        with pytest.raises(InputError, match=message):
            invoke(["resume", str(two.out), *arguments])
    with Trajectory(two.out) as trajectory:
        assert len(trajectory) == 7
