"""Runs that go on differently: another step, other parameters, other distances of frames."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

import mpiflow
from mpiflow import initial
from mpiflow.commands import plot as plot_run
from mpiflow.commands import verify
from mpiflow.core.errors import InputError
from mpiflow.core.schedule import Clock, Schedule, after
from mpiflow.files import checkpoint, segments
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.learn.generator import data as field_data
from mpiflow.learn.onsagerflow.from_files import _long_enough
from mpiflow.learn.onsagerflow.increments import runs_from_files
from mpiflow.learn.run_dataset import RunDataset
from mpiflow.run.resume import resume
from mpiflow.run.simulate import simulate
from mpiflow.run.stopping import Keep
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.ensemble.options import (
    ChainConfig,
    CurieWeissConfig,
    PredatorPreyConfig,
)
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.options import RunConfig
from mpiflow.systems.ising import Ising

ISING = {"size": 16, "temperature": 2.3, "seed": 1, "quiet": True}
KAC = {"size": 16, "gamma": 2, "temperature": 0.8, "seed": 1, "quiet": True}
ALLOY = {"cells": "16x4x4", "temperature": 2000, "vacancies": 6, "tile": "8x8x8", "quiet": True}

#: Name: (configuration, its step, a step, another one), for runs over the time of 40 steps.
STEPS: dict[str, tuple[type[RunConfig], dict[str, Any], str, float, float]] = {
    "plain": (IsingConfig, {**ISING, "kernel": "plain"}, "dt", 0.25, 0.5),
    "packed": (IsingConfig, {**ISING, "size": "8x128"}, "dt", 0.25, 0.125),
    "sliced": (IsingConfig, {**ISING, "members": 70}, "dt", 0.2, 0.1),
    "tiled": (IsingConfig, {**ISING, "solver": "tiled-nfold", "tile": 8}, "dt", 1.0, 0.5),
    "kac": (KacConfig, KAC, "tau", 0.1, 0.2),
    "midpoint": (KacConfig, {**KAC, "solver": "midpoint"}, "tau", 0.1, 0.05),
    "leap": (KacConfig, {**KAC, "solver": "tau-leap"}, "tau", 0.1, 0.05),
    "alloy": (AlloyConfig, {**ALLOY, "solver": "tiled"}, "window", 1e-10, 2e-10),
    "chain": (ChainConfig, {"size": 8, "quiet": True}, "dt", 0.01, 0.02),
    "line": (PredatorPreyConfig, {"size": 16, "quiet": True}, "dt", 1e-4, 2e-4),
}


def run(config: RunConfig) -> None:
    simulate(config, MPI.COMM_SELF)


# -- times ---------------------------------------------------------------------------------------


def test_times_are_those_that_people_type():
    assert [after(0.0, n, 0.1) for n in (1, 3, 6, 7)] == [0.1, 0.3, 0.6, 0.7]
    assert after(0.1, 2, 0.1) == 0.3
    assert after(0.0, 3, 1e-10) == 3e-10
    assert after(0.0, 3, 1 / 3) == 1.0  # computed, not typed
    assert after(0.0, 10**15, 0.001) == 1e12


def test_a_clock_goes_on_with_another_step():
    clock = Clock(0.25)
    at = {"step": 16, "time": clock.time(16), **clock.numbers()}
    other = Clock.restored(at, 0.1)
    assert [other.time(n) for n in (16, 17, 19)] == [4.0, 4.1, 4.3]
    assert other.step(4.3) == 19
    again = {"step": 19, "time": other.time(19), **other.numbers()}
    assert Clock.restored(again, 0.1) == other
    assert Clock.restored({"step": 16, "time": 4.0}, 0.25) == Clock(0.25)  # an older checkpoint


@pytest.mark.parametrize("name", STEPS)
def test_time_goes_on_with_another_step(tmp_path: Path, name: str):
    """Of each solver: times are multiples of what was typed, before and behind the change."""
    kind, options, option, step, other = STEPS[name]
    times = [after(0.0, n, 4 * max(step, other)) for n in range(5)]
    out = tmp_path / "run.h5"
    run(kind(**options, **{option: step}, time=times[2], save_every=times[1], out=out))
    before = checkpoint.newest(out, MPI.COMM_SELF)
    resume(out, MPI.COMM_SELF, {"time": times[3], option: other})
    resume(out, MPI.COMM_SELF, {"time": times[4]})  # and once more, from that clock
    after_all = checkpoint.newest(out, MPI.COMM_SELF)
    assert before is not None
    assert after_all is not None
    with Trajectory(out) as done:
        assert done.time.tolist() == times
    if "step" in before.numbers and name not in ("kac", "midpoint", "leap"):
        # The keys of random numbers: they are counted on.
        made = round((times[4] - times[2]) / other)
        assert after_all.numbers["step"] == before.numbers["step"] + made


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["plain", "packed"])
def test_a_change_has_the_same_bits_on_any_ranks(
    comm: MPI.Intracomm, mpi_tmp_path: Path, name: str
):
    _, options, *_ = STEPS[name]
    options = {**options, "size": "26x44" if name == "plain" else "64x256", "dt": 0.5}
    outs = [mpi_tmp_path / "all.h5", mpi_tmp_path / "one.h5"]
    for ranks, out in zip((comm, MPI.COMM_SELF), outs, strict=True):
        if ranks is comm or comm.rank == 0:
            simulate(IsingConfig(**options, time=2, save_every=1, out=out), ranks)
            resume(out, ranks, {"time": 4, "temperature": 3, "dt": 0.25})
    comm.Barrier()
    with Trajectory(outs[0]) as one, Trajectory(outs[1]) as two:
        for variable in one:
            np.testing.assert_array_equal(one[variable], two[variable], err_msg=variable)


EVENTS: dict[str, tuple[type[RunConfig], dict[str, Any], float]] = {
    "nfold": (IsingConfig, {**ISING, "solver": "nfold"}, 0.1),
    "gillespie": (KacConfig, {**KAC, "solver": "gillespie"}, 0.1),
    "leaps": (KacConfig, {**KAC, "solver": "tau-leap"}, 0.1),
    "alloy": (AlloyConfig, {"cells": 4, "temperature": 2000, "quiet": True}, 1e-12),
    "curie-weiss": (CurieWeissConfig, {"size": 8, "temperature": 1.5, "quiet": True}, 0.1),
}


@pytest.mark.parametrize("name", EVENTS)
def test_times_of_exact_events_are_those_that_people_type(tmp_path: Path, name: str):
    kind, options, unit = EVENTS[name]
    out = tmp_path / "run.h5"
    run(kind(**options, time=5 * unit, save_every=unit, out=out))
    resume(out, MPI.COMM_SELF, {"time": after(0.0, 7, unit)})
    with Trajectory(out) as done:
        assert done.time.tolist() == [after(0.0, n, unit) for n in range(8)]


@pytest.mark.parametrize(
    ("kernel", "size", "members"), [("plain", 16, 1), ("packed", (8, 128), 1), ("sliced", 16, 70)]
)
@pytest.mark.parametrize("change", [{"dt": 1e-12}, {"system": Ising(1e9, coupling=0)}, {"seed": 8}])
def test_the_pass_before_a_change_ends_as_it_began(kernel, size, members, change):
    """The present lies within a pass of black sites, whose first half was seen in a frame."""
    common = {"size": size, "kernel": kernel, "members": members, "comm": MPI.COMM_SELF}
    options = {"system": Ising(2.3), "dt": 0.5, "seed": 1}
    first, second = (Simulation(**common, **some) for some in (options, options | change))
    first.set_spins(initial.shuffled, magnetization=0.2)
    first.advance(2.0)
    second.block.store(slice(0, first.block.shape[0]), first.block.spins())
    second.block.fill_halo()
    second.restore(first.state_of())
    np.testing.assert_array_equal(second.spins(), first.spins())
    np.testing.assert_array_equal(second.flips, first.flips)
    assert second.time == 2.0


# -- parts ---------------------------------------------------------------------------------------


def test_each_part_of_a_run_keeps_its_parameters(tmp_path: Path):
    out = tmp_path / "run.h5"
    run(IsingConfig(**ISING, dt=0.5, time=4, save_every=1, out=out))
    resume(out, MPI.COMM_SELF, {"time": 6})  # no part of its own
    resume(out, MPI.COMM_SELF, {"time": 8, "temperature": 3, "field": 0.5})
    resume(out, MPI.COMM_SELF, {"time": 9, "temperature": 5})
    resume(out, MPI.COMM_SELF, {"time": 10, "seed": 7})
    with Trajectory(out) as done:
        parts = done.segments
        assert [(p.frames, p.time) for p in parts] == [
            (range(7), 0.0), (range(7, 9), 6.0), (range(9, 10), 8.0), (range(10, 11), 9.0),
        ]  # fmt: skip
        assert [p.config["temperature"] for p in parts] == [2.3, 3, 5, 5]
        assert [p.config["field"] for p in parts] == [0, 0.5, 0.5, 0.5]
        assert [p.config["seed"] for p in parts] == [1, 1, 1, 7]
        said = done.summary()
    assert "from time 6, frame 7: seed 1, temperature 3.0, field 0.5" in said
    assert verify.verify_file(out).good
    with pytest.raises(InputError, match=r"temperature \[2.3, 3.0, 5.0, 5.0\].*resumed with other"):
        segments.require_one(parts, out, "this")


def test_a_checkpoint_before_a_change_has_no_part_of_it(tmp_path: Path):
    """A run that was killed behind a change, before a checkpoint, goes on without it."""
    out = tmp_path / "run.h5"
    run(IsingConfig(**ISING, dt=0.5, time=4, save_every=1, out=out))
    kept = [(path, path.read_bytes()) for path in checkpoint.paths(out)]
    resume(out, MPI.COMM_SELF, {"time": 8, "temperature": 3})
    for path in checkpoint.paths(out):
        path.unlink()
    for path, data in kept:
        path.write_bytes(data)
    resume(out, MPI.COMM_SELF, {"time": 8})
    with Trajectory(out) as done:
        assert [part.config["temperature"] for part in done.segments] == [2.3]
        assert done.time.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_another_distance_of_frames(tmp_path: Path):
    out = tmp_path / "run.h5"
    run(IsingConfig(**ISING, dt=0.25, time=3.5, save_every=1, out=out))
    with pytest.raises(InputError, match="override save_every"):
        run(IsingConfig(**ISING, dt=0.25, time=6, save_every=0.5, out=out, resume=True))
    resume(out, MPI.COMM_SELF, {"time": 5, "save_every": "0.5"})
    resume(out, MPI.COMM_SELF, {"time": 8, "save_every": "0.75", "dt": "0.15"})
    with Trajectory(out) as done:
        assert done.time.tolist() == [0, 1, 2, 3, 3.5, 4, 4.5, 5, 5.75, 6.5, 7.25, 8]
        assert [p.save_every for p in done.segments] == [1, 0.5, 0.75]
        regular = [p.regular(done.time).tolist() for p in done.segments]
        assert regular == [[0, 1, 2, 3], [5, 6, 7], [8, 9, 10, 11]]
        assert "frames every 0.75" in done.summary()
    with pytest.raises(InputError, match=r"time=8.1: .*whole steps of 0.15 more. Use 8.15"):
        resume(out, MPI.COMM_SELF, {"time": 8.1})
    with pytest.raises(InputError, match="multiple of the time step 0.15"):
        resume(out, MPI.COMM_SELF, {"time": 9, "save_every": 0.2})


def test_hops_at_another_distance(tmp_path: Path):
    out = tmp_path / "run.h5"
    run(AlloyConfig(cells=4, temperature=2000, quiet=True, hops=20, save_every=10, out=out))
    resume(out, MPI.COMM_SELF, {"hops": 35, "save_every": 5})
    with Trajectory(out) as done:
        assert done["hops"].tolist() == [0, 10, 20, 25, 30, 35]
        assert [p.unit for p in done.segments] == ["hops"] * 2


def test_an_odd_frame_is_kept_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "run.h5"
    options = {**ISING, "quiet": False}
    run(IsingConfig(**options, dt=0.1, time=1, save_every=0.3, out=out))
    resume(out, MPI.COMM_SELF, {"time": 1.5})
    assert "frame 4 of run.h5, that of an earlier end, lies between" in capsys.readouterr().err
    with Trajectory(out) as done:
        assert done.time.tolist() == [0, 0.3, 0.6, 0.9, 1.0, 1.2, 1.5]
        assert done.segments[0].odd_frames == (4,)
        assert done.segments[0].regular(done.time).tolist() == [0, 1, 2, 3, 5, 6]
        assert "odd frames  4 (time 1)" in done.summary()


def test_a_file_without_parts_is_one(tmp_path: Path):
    old = tmp_path / "old.h5"
    about = {"system": "ising", "config_json": '{"save_every": 1.5, "temperature": 2}', "seed": 1}
    about |= {"rng": "", "decomposition_invariant": 1}
    with TrajectoryWriter(old, dims={}, variables=[], attributes=about) as writer:
        for time in (0.0, 1.5, 3.0, 4.0):
            writer.append(time, {})
    with Trajectory(old) as run_of_then:
        (part,) = run_of_then.segments
        assert (part.frames, part.config["temperature"]) == (range(4), 2)
        assert part.regular(run_of_then.time).tolist() == [0, 1, 2]


# -- intervals -----------------------------------------------------------------------------------


def test_intervals_in_hops_and_in_python(tmp_path: Path):
    with pytest.raises(InputError, match="^save_every=30.*at most the hops of the run, 20"):
        AlloyConfig(cells=4, temperature=2000, hops=20, save_every=30, out=tmp_path / "run.h5")
    sim = Simulation(Ising(2.3), 16, solver="nfold", comm=MPI.COMM_SELF)
    with pytest.raises(InputError, match="frames"):
        sim.schedule(1.0, 1e-12)
    sim.set_spins(initial.uniform_up)
    with pytest.raises(InputError, match="finite"):
        sim.advance(math.inf)
    for bad in ({"every": 0.0}, {"every": math.nan}, {"walltime": -1.0}, {"walltime": math.inf}):
        with pytest.raises(InputError, match="a finite number above 0"):
            Keep(**bad)
    with pytest.raises(InputError, match="Times would be the same"):
        Schedule(1e9, 1e9 + 1e-3, 1e-5).check()


@pytest.mark.parametrize("change", [{"solver": "tiled-nfold"}, {"kernel": "plain"}])
def test_another_solver_is_another_run(tmp_path: Path, change: dict[str, str]):
    out = tmp_path / "run.h5"
    run(IsingConfig(**ISING, dt=0.5, time=2, save_every=1, out=out))
    with pytest.raises(InputError, match="as before.*start a run from a frame"):
        resume(out, MPI.COMM_SELF, {"time": 4, **change})


def test_intervals_of_a_run_that_goes_on(tmp_path: Path):
    out = tmp_path / "run.h5"
    run(IsingConfig(**ISING, solver="nfold", time=2, save_every=1, out=out))
    before = out.read_bytes()
    for change, message in (
        ({"checkpoint_every": 1e-20}, "checkpoints"),
        ({"save_every": 1e-12}, "frames"),
        ({"time": 1e12}, "frames"),
        ({"walltime": 0}, "walltime"),
    ):
        with pytest.raises(InputError, match=message):
            resume(out, MPI.COMM_SELF, {"time": 4, **change})
    assert out.read_bytes() == before


# -- learning from parts ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Kac run at 0.8, at 2 from time 1.5 on, with closer frames from time 3 on."""
    out = tmp_path_factory.mktemp("heated") / "run.h5"
    run(KacConfig(**KAC, tau=0.25, time=1.5, save_every=0.5, coarse=4, out=out))
    resume(out, MPI.COMM_SELF, {"time": 3, "temperature": 2, "field": 0.5})
    resume(out, MPI.COMM_SELF, {"time": 4, "save_every": 0.25})
    return out


def test_windows_of_a_dataset_lie_within_parts(heated: Path):
    data = RunDataset(heated, window=2, parameters=("temperature", "save_every"))
    found = [
        (item["frame"], item["temperature"].item(), item["save_every"].item(), item["dt"].item())
        for item in data
    ]
    assert found == [
        *((n, 0.8, 0.5, 0.5) for n in range(3)),
        *((n, 2.0, 0.5, 0.5) for n in range(4, 6)),
        *((n, 2.0, 0.25, 0.25) for n in range(7, 10)),
    ]
    with Trajectory(heated) as file:
        means = file["coarse_magnetization"]
    np.testing.assert_array_equal(data[3]["coarse_magnetization"], means[4:6])
    assert [data.place(i)[1] for i in range(len(data))] == [0, 1, 2, 4, 5, 7, 8, 9]
    with pytest.raises(InputError, match="5 frames; runs have 4"):
        RunDataset(heated, window=5)


def test_a_law_is_learned_from_each_part_with_its_parameters(heated: Path, tmp_path: Path):
    longer = tmp_path / "longer.h5"
    run(KacConfig(**KAC, tau=0.25, time=2.25, save_every=0.5, coarse=4, out=longer))
    resume(longer, MPI.COMM_SELF, {"time": 4.5})  # an odd frame at 2.25
    runs = runs_from_files([heated, longer])
    assert [(r.temperature, r.field, r.interval, r.fields.shape[0]) for r in runs] == [
        (0.8, 0.0, 0.5, 4), (2.0, 0.5, 0.5, 3), (2.0, 0.5, 0.25, 4), (0.8, 0.0, 0.5, 10),
    ]  # fmt: skip
    with Trajectory(longer) as file:
        means = np.delete(file["coarse_magnetization"], 5, axis=0)
    np.testing.assert_array_equal(runs[3].fields[3:7], means[3:7])
    np.testing.assert_array_equal(runs[3].fields[6:6], means[6:6])
    with pytest.warns(UserWarning, match="T = 2 has 3 frames: it is left out"):
        kept = _long_enough(runs, 3)
    assert kept == [runs[0], runs[2], runs[3]]
    with pytest.raises(InputError, match=r"temperature \[0.8, 2.0, 2.0\]"):
        field_data.from_files([heated])


def test_tables_pictures_and_exports_know_parts(heated: Path, tmp_path: Path):
    assert mpiflow.open([heated]).table("temperature")["temperature"] == [[0.8, 2.0, 2.0]]
    with Trajectory(heated) as file:
        text = file.attributes["segments_json"]
        assert "temperature 0.8, then 2.0" in plot_run._title(file)
        some = segments.read(segments.of_frames(text, range(2, 11, 2)), 5)
    assert [list(part.frames) for part in some] == [[0], [1, 2], [3, 4]]
    assert verify.verify_file(heated).good


def test_runs_of_different_lengths_are_joined(tmp_path: Path):
    """All frames are used, and no others: as if each run was alone."""
    outs = [tmp_path / f"{time:g}.h5" for time in (1.5, 3, 2.25)]
    for seed, out in enumerate(outs):
        options = {**KAC, "seed": seed, "temperature": 0.8 + 0.1 * seed}
        time = float(out.stem)
        run(KacConfig(**options, tau=0.25, time=time, save_every=0.5, coarse=4, out=out))
    together = field_data.from_files(outs)
    assert together.counts.tolist() == [4, 7, 5]
    np.testing.assert_array_equal(together.times, np.arange(7) / 2)
    for order, every in ((1, 1), (2, 1), (1, 2)):
        whole = together.rates(order, every=every)
        alone = [field_data.from_files([out]).rates(order, every=every) for out in outs]
        for name in ("state", "rate", "beta"):
            np.testing.assert_array_equal(
                getattr(whole, name), np.concatenate([getattr(one, name) for one in alone])
            )
        assert np.unique(whole.run).tolist() == [0, 1, 2]
    noisy = together.with_noise(0.1, seed=1).smoothed(0.5)
    assert np.isfinite(noisy.rates(4).rate).all()
    assert len(noisy.rates(4).rate) == 3 + 1
    assert together.select([0, 2]).counts.tolist() == [4, 5]
    assert [r.fields.shape[0] for r in runs_from_files(outs)] == [4, 7, 5]
    joined = mpiflow.open(outs).to_xarray()
    assert joined.frames.values.tolist() == [4, 7, 6]  # also that of the end at 2.25
    assert np.isfinite(joined.energy.values).sum() == 4 + 7 + 6


# -- other names ---------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [False, True])
def test_a_renamed_run_goes_on(tmp_path: Path, copied: bool):
    whole, out, other = (tmp_path / name for name in ("whole.h5", "run.h5", "other.h5"))
    run(IsingConfig(**ISING, dt=0.5, time=6, save_every=1, out=whole))
    run(IsingConfig(**ISING, dt=0.5, time=4, save_every=1, out=out))
    (shutil.copy if copied else shutil.move)(out, other)
    resume(other, MPI.COMM_SELF, {"time": 6})
    with Trajectory(whole) as one, Trajectory(other) as two:
        np.testing.assert_array_equal(one["energy"], two["energy"])
    assert len(checkpoint.paths(other)) >= 1
    assert (len(checkpoint.paths(out)) > 0) == copied


def test_a_moved_folder_goes_on(tmp_path: Path):
    (tmp_path / "here").mkdir()
    run(IsingConfig(**ISING, dt=0.5, time=4, save_every=1, out=tmp_path / "here" / "run.h5"))
    (tmp_path / "here").rename(tmp_path / "there")
    resume(tmp_path / "there" / "run.h5", MPI.COMM_SELF, {"time": 6})
    with Trajectory(tmp_path / "there" / "run.h5") as done:
        assert len(done) == 7


def test_what_is_missing_is_named(tmp_path: Path):
    out = tmp_path / "run.h5"
    run(IsingConfig(**ISING, dt=0.5, time=4, save_every=1, out=out))
    with Trajectory(out) as done:
        name = done.attributes["run"]
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(InputError, match=rf"run.h5.000001 or so in .*checkpoints.*run {name} "):
        resume(out, MPI.COMM_SELF, {"time": 6})


class Killed(Exception):
    """Of a run that leaves a file which is not complete."""


@pytest.mark.parametrize("change", [{"temperature": 3}, {"checkpoint_every": 1}, {}])
def test_more_than_its_seed_does_not_start_again(tmp_path, monkeypatch, change, capsys):
    """Without its checkpoints; one that was killed before the first does."""
    out = tmp_path / "run.h5"
    run(IsingConfig(**ISING, dt=0.5, time=2, save_every=1, out=out))

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint, "write", killed)
        if change:
            resume(out, MPI.COMM_SELF, {"time": 6, "quiet": False, **change})
        else:
            run(IsingConfig(**ISING, dt=0.5, time=6, save_every=1, out=out, overwrite=True))
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    if not change:
        resume(out, MPI.COMM_SELF, {"quiet": False})
        assert "no checkpoint run.h5.* in" in capsys.readouterr().err
        return
    with pytest.raises(InputError, match="Bring them back"):
        resume(out, MPI.COMM_SELF)
