"""Functions that look at a run at its frames and between them, steer it and end it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow import Callback, Ising, Simulation, Trajectory, initial, record
from mpiflow.commands import verify
from mpiflow.core.errors import InputError
from mpiflow.files import checkpoint
from mpiflow.run.stopping import Keep


def simulation(comm: MPI.Intracomm, **solver: Any) -> Simulation:
    solver = solver or {"dt": 0.5, "kernel": "plain"}
    if "solver" in solver:  # the n-fold way has whole lattices on a rank
        solver["members"] = comm.size
    sim = Simulation(Ising(temperature=2.0), size=16, seed=3, comm=comm, **solver)
    sim.set_spins(initial.shuffled, magnetization=0.5)
    return sim


def run(out: Path, comm: MPI.Intracomm, *callbacks: Any, time: float = 4, **options: Any) -> None:
    record(simulation(comm), out, time=time, save_every=0.5, callbacks=callbacks, progress=False,
           **options)  # fmt: skip


@pytest.mark.mpi
def test_callbacks_see_the_frames_that_are_due(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    seen: dict[str, list[float]] = {"all": [], "third": [], "interval": []}

    def looks(name: str) -> Any:
        def look(sim: Simulation, sample: Any) -> None:
            assert sim.time == sample.time
            assert sample.here("magnetization") == sim.measure().magnetization
            seen[name].append(sample.time)

        return look

    out = mpi_tmp_path / "run.h5"
    run(out, comm, looks("all"), Callback(looks("third"), every=3),
        Callback(looks("interval"), interval=1.2))  # fmt: skip
    assert seen["all"] == [0.5 * n for n in range(9)]
    assert seen["third"] == [0.0, 1.5, 3.0]
    assert seen["interval"] == [0.0, 1.5, 2.5, 4.0]  # the first at or after 1.2, 2.4, 3.6
    with Trajectory(out) as trajectory:
        assert "stopped_early" not in trajectory.attributes


@pytest.mark.mpi
def test_any_rank_ends_the_run_for_all(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    def enough(sim: Simulation, sample: Any) -> bool:
        return comm.rank == comm.size - 1 and sample.time >= 1.5

    out = mpi_tmp_path / "run.h5"
    run(out, comm, enough, keep=Keep())
    comm.Barrier()
    with Trajectory(out) as trajectory:
        assert trajectory.complete
        assert trajectory.time.tolist() == [0.0, 0.5, 1.0, 1.5]
        assert trajectory.attributes["stopped_early"] == "enough ended the run at time 1.5"
        assert "enough ended the run at time 1.5" in trajectory.summary()
    assert verify.verify_file(out).good
    # It can go on, to the bits of a run that was not ended.
    run(out, comm, point=checkpoint.newest(out, comm))
    whole = mpi_tmp_path / "whole.h5"
    run(whole, comm)
    with Trajectory(out) as one, Trajectory(whole) as other:
        assert "stopped_early" not in one.attributes
        assert one.complete
        assert all(one[name].tobytes() == other[name].tobytes() for name in other)


SOLVERS: dict[str, dict[str, Any]] = {
    "steps": {"dt": 0.5, "kernel": "plain"},
    "events": {"solver": "nfold"},
}


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.mpi
def test_callbacks_are_called_between_frames(
    name: str, comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    """Where the run can stop: steps of 0.5 lead to 1.5, events to 1.25. No bits are changed."""
    seen: list[float] = []

    def look(sim: Simulation, sample: Any) -> None:
        assert np.all(sample.here("magnetization") == sim.measure().magnetization)
        seen.append(sample.time)

    out, whole = mpi_tmp_path / "run.h5", mpi_tmp_path / "whole.h5"
    options: dict[str, Any] = {"time": 8, "save_every": 2, "progress": False}
    watch = [Callback(look, interval=1.25)]
    record(simulation(comm, **SOLVERS[name]), out, callbacks=watch, **options)
    steps, events = [0, 1.5, 2.5, 4, 5, 6.5, 7.5], [1.25 * n for n in range(7)]
    assert seen == (steps if name == "steps" else events)
    record(simulation(comm, **SOLVERS[name]), whole, **options)
    comm.Barrier()
    with Trajectory(out) as one, Trajectory(whole) as other:
        assert all(one[name].tobytes() == other[name].tobytes() for name in other)


@pytest.mark.mpi
def test_a_run_may_end_between_frames(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    """The state is saved there; what goes on has the frames that were due, with the same bits."""
    seen: list[float] = []

    def enough(sim: Simulation, sample: Any) -> bool:
        seen.append(sample.time)
        return sample.time == 3.0

    out, whole = mpi_tmp_path / "run.h5", mpi_tmp_path / "whole.h5"
    options: dict[str, Any] = {"time": 8, "save_every": 2, "progress": False}
    watch = [Callback(enough, interval=1.5)]
    record(simulation(comm), out, callbacks=watch, keep=Keep(), **options)
    comm.Barrier()
    with Trajectory(out) as trajectory:
        assert trajectory.complete
        assert trajectory.time.tolist() == [0.0, 2.0, 3.0]
        assert trajectory.attributes["stopped_early"] == "enough ended the run at time 3"
    assert verify.verify_file(out).good
    record(simulation(comm), out, point=checkpoint.newest(out, comm), callbacks=watch, **options)
    assert seen == [0.0, 1.5, 3.0, 4.5, 6.0, 7.5]
    record(simulation(comm), whole, **options)
    comm.Barrier()
    assert verify.verify_file(out).good
    with Trajectory(out) as one, Trajectory(whole) as other:
        assert one.time.tolist() == [0, 2, 3, 4, 6, 8]
        regular = one.time != 3.0
        assert all(one[name][regular].tobytes() == other[name].tobytes() for name in other)


@pytest.mark.mpi
def test_what_a_callback_changes_is_where_the_run_goes_on(
    comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    def up(sim: Simulation, sample: Any) -> None:
        if sample.time == 1.0:
            sim.set_state(np.ones((16, 16)))

    out = mpi_tmp_path / "run.h5"
    run(out, comm, up, time=2)
    with Trajectory(out) as trajectory:
        m = trajectory["magnetization"]
    assert m[2] < 0.75 < m[3]


class Other(Exception):
    """Of one's own."""


def fails(sim: Simulation, sample: Any) -> None:
    """On the last rank only, while the others are in a method of the simulation."""
    if sample.time >= 1.0 and sim.comm.rank == sim.comm.size - 1:
        raise Other("mine")


MISTAKES: dict[str, tuple[Any, str]] = {
    "raises": (fails, r"callback fails='Other: mine in .*test_callbacks.py:\d+'"),
    "returns": (lambda sim, sample: 1.5 if sample.time >= 1.0 else None, "True to end the run"),
    "asks": (lambda sim, s: sim.advance(0.3) if s.time >= 1.0 else None, "multiple"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_all_ranks_with_one_message_and_keeps_the_frames(
    name: str, comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    callback, said = MISTAKES[name]
    out = mpi_tmp_path / "run.h5"
    with pytest.raises(InputError, match=said) as caught:
        run(out, comm, callback)
    everyone = comm.allgather(str(caught.value))
    assert set(everyone) == {everyone[0]}
    comm.Barrier()
    with Trajectory(out) as trajectory:
        assert not trajectory.complete
        assert trajectory.time.tolist() == [0.0, 0.5, 1.0]


def test_a_rank_that_fails_alone_does_not_leave_others_waiting(mpirun: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"""
import mpiflow
from mpiflow import Ising, Simulation, initial, parallel, record

parallel.PATIENCE = 0.5
comm = parallel.start()
sim = Simulation(Ising(temperature=2.0), size=16, kernel="plain")
sim.set_spins(initial.shuffled, magnetization=0.5)

def look(sim, sample):
    if sim.comm.rank == 1:
        raise ValueError("alone")
    sim.gather()

record(sim, {str(tmp_path / "run.h5")!r}, time=2, callbacks=[look], progress=False)
""")
    done = mpirun(2, "python", program, check=False)
    assert done.returncode != 0
    assert done.stderr.count("callback look='ValueError: alone") == 1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"every": 0}, "every"),
        ({"every": 1.5}, "every"),
        ({"interval": 0.0}, "interval"),
        ({"interval": 1.0, "every": 2}, "every, interval"),
    ],
)
def test_callbacks_that_make_no_sense_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError) as caught:
        Callback(fails, **options)
    assert caught.value.name == name
    with pytest.raises(InputError, match="function of a simulation"):
        Callback(7)  # type: ignore[arg-type]
