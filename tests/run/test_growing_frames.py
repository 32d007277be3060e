"""Frames whose distances grow: so many a decade, kept over stops, parts and steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow import CurieWeiss, Ising, Simulation, initial
from mpiflow.commands import plot, verify
from mpiflow.core.errors import InputError
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.plan import plan
from mpiflow.run.resume import resume
from mpiflow.run.simulate import record, simulate
from mpiflow.run.stopping import Keep
from mpiflow.simulation import catalogue

ALONE = MPI.COMM_SELF


def config(system: str, out: Path, **options: Any) -> Any:
    """A run of a millisecond, with frames at 0, 0.1, 0.2, 0.3, 0.5, 1, ..."""
    short: dict[str, Any] = {"time": 2, "save_every": 0.1, "frames_per_decade": 4, "seed": 5}
    short |= {"linear-chain": {"size": 8, "dt": 0.1}, "curie-weiss": {"size": 6, "temperature": 2}}[
        system
    ]
    return catalogue.options(system)(**short | {"out": out, "quiet": True} | options)


def times(path: Path) -> list[float]:
    assert verify.verify_file(path).good
    with Trajectory(path) as run:
        return run.time.tolist()


def test_steps_round_them_and_events_do_not(tmp_path: Path) -> None:
    chain, spins = (
        config(name, tmp_path / f"{name}.h5") for name in ("linear-chain", "curie-weiss")
    )
    for one in (chain, spins):
        simulate(one, ALONE)
        assert plan(one).frames == len(times(one.out))
        assert "the first after 0.1, then 4 a decade" in plan(one).text()
    assert times(chain.out) == [0, 0.1, 0.2, 0.3, 0.6, 1, 1.8, 2]
    assert times(spins.out) == [0, 0.1, 0.177828, 0.316228, 0.562341, 1, 1.77828, 2]


def test_a_longer_run_goes_on_with_them(tmp_path: Path) -> None:
    """The end of the shorter one is then an odd frame."""
    for system in ("linear-chain", "curie-weiss"):
        parts, whole = (config(system, tmp_path / name) for name in ("parts.h5", "whole.h5"))
        simulate(parts, ALONE, overwrite=True)
        resume(parts.out, ALONE, time=20, quiet=True)
        simulate(whole, ALONE, time=20, overwrite=True)
        found = times(parts.out)
        assert found == sorted({*times(whole.out), 2.0})
        with Trajectory(parts.out) as run, Trajectory(whole.out) as other:
            (part,) = run.segments
            assert part.odd_frames == (found.index(2.0),)
            assert (part.save_every, part.frames_per_decade) == (0.1, 4)
            last = next(name for name in run.variables if name != "time")
            assert run[last][-1] == other[last][-1]
            with pytest.raises(InputError, match="frames at equal times"):
                part.equal(run.time, parts.out)


def test_other_distances_are_asked_for_and_are_a_part(tmp_path: Path) -> None:
    made = config("curie-weiss", tmp_path / "run.h5")
    simulate(made, ALONE)
    with pytest.raises(InputError, match=r"^frames_per_decade=2: .*was 4, is 2"):
        simulate(made, ALONE, resume=True, frames_per_decade=2, time=50)
    resume(made.out, ALONE, frames_per_decade=2, time=50, quiet=True)
    assert times(made.out)[-4:] == [2, 3.16228, 10, 31.6228, 50][-4:]
    with Trajectory(made.out) as run:
        assert [part.frames_per_decade for part in run.segments] == [4, 2]
        assert "frames every 0.1, then 2 a decade" in run.summary()


def test_another_step_rounds_those_that_are_due_anew(tmp_path: Path) -> None:
    made = config("linear-chain", tmp_path / "run.h5")
    simulate(made, ALONE)
    resume(made.out, ALONE, dt=0.05, time=20, quiet=True)
    assert times(made.out)[-6:] == [2, 3.15, 5.6, 10, 17.8, 20]


def test_python_may_have_them_of_any_system(tmp_path: Path) -> None:
    sim = Simulation(Ising(2.2), 16, dt=0.25, seed=3, comm=ALONE)
    sim.set_spins(initial.shuffled)
    out, how = tmp_path / "run.h5", {"save_every": 0.5, "frames_per_decade": 3, "progress": False}
    record(sim, out, time=3, keep=Keep(), **how)
    again = Simulation(Ising(2.2), 16, dt=0.25, seed=3, comm=ALONE)
    resume(out, sim=again, time=12, progress=False)
    assert times(out) == [0, 0.5, 1, 2.25, 3, 5, 10.75, 12]
    with Trajectory(out) as run:
        (part,) = json.loads(run.attributes["segments_json"])
        assert part["frames_per_decade"] == 3
    with pytest.raises(InputError, match=r"^save_every=0.3: allowed is a multiple"):
        record(again, tmp_path / "x.h5", time=1, save_every=0.3, frames_per_decade=2)
    mean = Simulation(CurieWeiss(2.0), 6, comm=ALONE)
    record(mean, tmp_path / "mean.h5", time=1, save_every=0.01, frames_per_decade=1, progress=False)
    np.testing.assert_array_equal(times(tmp_path / "mean.h5"), [0, 0.01, 0.1, 1])


def test_plots_have_a_logarithmic_axis_of_time(tmp_path: Path) -> None:
    """From the first frame after 0; each column of a profile shows the state of its time."""
    made = config("linear-chain", tmp_path / "run.h5", time=100, noise=0.0, profile=True)
    simulate(made, ALONE)
    with Trajectory(made.out) as run:
        lines = plot.page(run)
        assert "against time, logarithmic" in lines
        assert any(line.split() == ["0.1", "100"] for line in lines)
        assert any("logarithmic time 0.1 to 100" in line for line in lines)
        field = plot.profile_of(run, run.variables["displacement_profile"], 0)
        (values,), last = field.values, run["displacement_profile"][-1]
        assert values.shape == (8, plot.MOMENTS)
        np.testing.assert_array_equal(values[:, 0], run["displacement_profile"][1])
        np.testing.assert_array_equal(values[:, -1], last)
        middle = run.time.tolist().index(3.2)  # of 0.1 and 100 as factors
        np.testing.assert_array_equal(
            values[:, plot.MOMENTS // 2], run["displacement_profile"][middle]
        )
        figure = plot.picture(run, None)
        scales = [axes.get_xscale() for part in figure.subfigs for axes in part.axes]
        assert scales.count("log") == 2
    again = config("linear-chain", tmp_path / "even.h5", frames_per_decade=None)
    simulate(again, ALONE)
    with Trajectory(again.out) as run:
        assert "against time" in plot.page(run)
