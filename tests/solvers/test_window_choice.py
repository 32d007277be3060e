"""Windows of the tiled alloy that are chosen during the run: near their aim, the same bits."""

from __future__ import annotations

import json
import math
import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.core import signals
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import factorisations
from mpiflow.core.schedule import State
from mpiflow.files import checkpoint
from mpiflow.files.trajectory import Trajectory
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.run.resume import resume
from mpiflow.run.simulate import record, simulate
from mpiflow.run.stopping import Stopped
from mpiflow.simulation.alloy.barrier_model import load_barrier_model
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.simulation.alloy.windows import _later
from mpiflow.solvers.vacancy import tiled as tiled_vacancy
from mpiflow.solvers.vacancy.window_choice import MEMORY, WindowChoice, implied_bias
from mpiflow.systems.alloy import Alloy


def made(
    comm: MPI.Intracomm = MPI.COMM_SELF,
    temperature: float = 500.0,
    cells: Any = 8,
    vacancies: int = 4,
    **options: Any,
) -> AlloySimulation:
    model = load_barrier_model("default").parameters
    given: dict[str, Any] = {"solver": "tiled", "seed": 3} | options
    sim = AlloySimulation(Alloy(temperature), model, cells, comm=comm, **given)
    sim.set_species(random_alloy, counts=counts_of(sim.sites, vacancies))
    return sim


def whole(sim: AlloySimulation) -> np.ndarray:
    return np.asarray(sim.comm.bcast(sim.gather()))


# -- the rule ----------------------------------------------------------------------------------


def test_it_finds_the_rate_and_follows_it() -> None:
    """Three vacancies with known rates, each in turn; windows without a hop grow twofold."""
    choice = WindowChoice(3, 1e3)
    for rate in (1e-3, 7.0, 1e9):  # hops per time of all together
        for _ in range(40):
            window, _ = choice.ahead()
            choice.count(window, round(rate * window))
        assert choice.last == pytest.approx(2 * 3 / rate, rel=0.2)
    quiet = [choice.ahead()[0]]
    for _ in range(40):
        choice.count(quiet[-1], 0)
        quiet.append(choice.ahead()[0])
    assert quiet[-1] > 1e9 * quiet[0]
    assert max(np.divide(quiet[1:], quiet[:-1])) <= 2.0
    choice.count(1.0, int(10 * MEMORY * 3))  # at once
    assert choice.ahead()[0] == pytest.approx(2 / (10 * MEMORY))


@pytest.mark.parametrize("left", [0.3, 1.0, 2.5, 1e9])
def test_windows_go_into_what_is_left(left: float) -> None:
    choice, rest = WindowChoice(1, 1.0), left
    for _ in range(5):
        window, everything = choice.ahead(rest)
        assert window <= 1.0
        assert everything == (rest <= 1.0)
        parts = rest / window
        assert parts == pytest.approx(round(parts), rel=1e-12)
        assert round(parts) == math.ceil(rest)
        rest -= window
        if everything:
            break
    assert WindowChoice(1, 1.0).ahead() == (1.0, False)


def test_a_choice_is_kept_in_numbers() -> None:
    choice = WindowChoice(5, 1e-9, 1.5)
    for hops in (3, 0, 0, 400, 7):
        choice.count(choice.ahead()[0], hops)
    other = WindowChoice.restored(json.loads(json.dumps(choice.numbers())))
    assert vars(other) == vars(choice)
    with pytest.raises(InputError, match="hops"):
        WindowChoice(5, 1e-9, 0.0)


def test_times_between_two_floats() -> None:
    """A window is added that is far below the last bit of the time."""
    time, rest = 1e12, 0.0
    exact = Fraction(time)
    for step in (1e-9, 3e-5, 1e-4, 7e-17, 0.1):
        time, rest = _later(time, rest, step)
        exact += Fraction(step)
        assert float(abs(Fraction(time) + Fraction(rest) - exact)) < 1e-16
        assert Fraction(time) <= exact < Fraction(math.nextafter(time, math.inf))


def test_the_bias_that_is_said() -> None:
    assert implied_bias((16, 16, 16), (32, 32, 32), 2.0) == pytest.approx(0.4)
    assert implied_bias((16, 32, 32), (32, 32, 32), 4.0) == pytest.approx(1.6 / 3)
    assert implied_bias((8, 8, 8), (8, 8, 8), 2.0) == 0.0


# -- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("vacancies", [1, 6])
@pytest.mark.parametrize("temperature", [300.0, 500.0, 800.0, 2000.0])
def test_hops_in_a_window_stay_near_the_aim(temperature: float, vacancies: int) -> None:
    """Whatever the initial state: a window from its rates has 0.002 to millions at 300 K."""
    for seed in range(8):
        sim = made(temperature=temperature, vacancies=vacancies, seed=seed)
        sim.advance_hops(200 * vacancies)
        assert 1.0 < sim.hops_made / (sim.step * vacancies) < 5.0, seed


@pytest.mark.mpi
def test_same_bits_on_any_number_of_ranks(comm: MPI.Intracomm) -> None:
    """Also of windows that are taken back, of which there are some at this temperature."""
    options: dict[str, Any] = {"cells": 12, "tile": 6, "temperature": 350.0, "seed": 4}
    reference = made(**options)
    reference.advance_hops(300)
    for grid in factorisations(comm.size, 3):
        sim = made(comm, ranks_grid=grid, **options)
        sim.advance_hops(300)
        assert (sim.time, sim.step, sim.hops_made) == (
            reference.time,
            reference.step,
            reference.hops_made,
        )
        assert np.array_equal(whole(sim), reference.gather())
        assert sim.choice is not None
        assert reference.choice is not None
        assert sim.choice.numbers() == reference.choice.numbers()


@pytest.mark.mpi
def test_members_share_their_windows(comm: MPI.Intracomm) -> None:
    options: dict[str, Any] = {"cells": 4, "members": 5, "vacancies": 1, "tile": (8, 8, 8)}
    reference, sim = made(**options), made(comm, **options)
    for one in (reference, sim):
        one.choose_windows()
        end = 40 * one.choice.last  # type: ignore[union-attr]
        frames = list(one.frames(end, end / 3))
    assert frames[-1].windows == reference.step > 3
    assert np.array_equal(whole(sim), reference.gather())


@pytest.mark.parametrize("temperature", [350.0, 2000.0])
def test_where_it_is_interrupted_changes_nothing(temperature: float) -> None:
    """After any window, in the middle between frames, and in another process."""
    straight, cut = made(temperature=temperature), made(temperature=temperature)
    end = 100 * straight.choose_windows().last
    straight.advance_to(end)
    while cut.time < end:
        assert cut.advance_some(cut.time + 0.3 * (end - cut.time), 1, end) >= 1
        state = cut.state_of()
        numbers = json.loads(json.dumps(state.numbers))
        other = made(temperature=temperature)
        other.block.array[...] = cut.block.array
        other.restore(State(numbers, state.arrays))
        cut = other
    assert (cut.time, cut.step) == (straight.time, straight.step)
    assert np.array_equal(cut.species(), straight.species())
    assert cut.hops_made == straight.hops_made


@pytest.mark.mpi
def test_a_run_goes_on_from_its_checkpoint(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    """With the windows that it would have had, which are in the file."""
    options: dict[str, Any] = {
        "cells": 8, "tile": 8, "vacancies": 4, "temperature": 500.0, "solver": "tiled", "seed": 3,
        "save_every": 500.0, "quiet": True,
    }  # fmt: skip
    whole, parts = (mpi_tmp_path / f"{name}.h5" for name in ("whole", "parts"))
    if comm.rank == 0:
        simulate(AlloyConfig(**options, time=3000.0, out=whole), MPI.COMM_SELF)
    comm.Barrier()
    simulate(AlloyConfig(**options, time=1500.0, out=parts), comm)
    longer = AlloyConfig(**options, time=3000.0, out=parts, resume=True)
    simulate(longer, comm, changed={"time"})
    with Trajectory(whole) as a, Trajectory(parts) as b:
        for name in a.variables:
            assert np.array_equal(a[name], b[name]), name
        assert a.attributes["window_hops"] == 2.0
        bias = implied_bias((8, 8, 8), (16,) * 3, 2.0)
        assert a.attributes["window_bias_percent"] == pytest.approx(-bias)
        assert a.variables["window"].units == "s"
        assert a["windows"][0] == 0
        assert (np.diff(a["windows"]) > 0).all()
        assert (a["window"] > 0).all()
        assert 2 * a["windows"][-1] * 4 > 0.2 * a["hops"][-1] > 0


# -- windows that take long ------------------------------------------------------------------------


class Told:
    """Says on one rank, at one of the times that it is asked, that it is over."""

    def __init__(self, comm: MPI.Intracomm, call: int) -> None:
        self.left = call if comm.rank == comm.size - 1 else -1

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.mpi
@pytest.mark.parametrize("given", [True, False], ids=["given", "chosen"])
def test_a_window_may_be_left_anywhere(
    given: bool, comm: MPI.Intracomm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as if it had not begun, on all ranks, and made anew with the same bits."""
    options: dict[str, Any] = {"tile": 8, "temperature": 2000.0, "seed": 5}
    first = made(**options).choose_windows().last
    options["window"] = 30 * first if given else None
    whole_run, cut = made(**options), made(comm, **options)
    end = (3 if given else 20) * 30 * first
    whole_run.advance_to(end)
    monkeypatch.setattr(tiled_vacancy, "STRETCH", 3)
    left = 0
    for call in range(1, 10_000):
        before = cut.step, cut.time, cut.hops_made, whole(cut)
        monkeypatch.setattr(signals, "over", Told(comm, (3 if given else 1) * call))
        done = cut.advance_some(end, 1, end)
        if done == 0:
            left += 1
            after = cut.step, cut.time, cut.hops_made, whole(cut)
            assert before[:3] == after[:3]
            assert np.array_equal(before[3], after[3])
        if cut.time >= end:
            break
    assert left > 2
    assert (cut.step, cut.hops_made) == (whole_run.step, whole_run.hops_made)
    assert np.array_equal(whole(cut), whole_run.gather())


def test_a_long_window_is_left_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A given window may hold millions of hops: it is begun again where the run goes on."""
    first = made(temperature=2000.0).choose_windows().last
    options: dict[str, Any] = {
        "cells": 8, "tile": 8, "vacancies": 4, "temperature": 2000.0, "solver": "tiled", "seed": 3,
        "window": 50 * first, "time": 150 * first, "save_every": 50 * first, "quiet": True,
    }  # fmt: skip
    simulate(AlloyConfig(**options, out=tmp_path / "whole.h5"), MPI.COMM_SELF)
    asked = 0

    def received() -> int:
        nonlocal asked
        asked += 1
        return signal.SIGUSR1 if asked > 60 else 0

    monkeypatch.setattr(tiled_vacancy, "STRETCH", 3)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(signals, "received", received)
        simulate(AlloyConfig(**options, out=tmp_path / "parts.h5"), MPI.COMM_SELF)
    said = capsys.readouterr().err
    assert "is taken back after" in said
    hopeless = "none: if no job can, resume with more time or a shorter --override window=" in said
    assert hopeless == ("stopped at time 0;" in said)
    point = checkpoint.newest(tmp_path / "parts.h5", MPI.COMM_SELF)
    assert point is not None
    assert point.numbers["step"] == point.numbers["frames"] - 1 < 2
    resume(tmp_path / "parts.h5", MPI.COMM_SELF, {"quiet": True})
    with Trajectory(tmp_path / "whole.h5") as a, Trajectory(tmp_path / "parts.h5") as b:
        for name in a.variables:
            assert np.array_equal(a[name], b[name]), name


def test_windows_without_a_hop_are_counted_too() -> None:
    """A run that counts hops comes to look up where windows are far shorter than a hop."""
    first = made(temperature=2000.0).choose_windows().last
    sim = made(temperature=2000.0, window=first * 1e-9)
    assert sim.advance_some_hops(1, 20) == 20
    assert (sim.step, sim.hops_made) == (20, 0)


def test_a_long_window_is_spoken_of() -> None:
    first = made(temperature=2000.0, tile=8).choose_windows().last
    (remark,) = made(temperature=2000.0, tile=8, window=1e5 * first).remarks()
    assert "about 2e+05 hops of a vacancy" in remark
    assert f"--window {first:.2g}" in remark
    for quiet in ({"window": first}, {"window": 1e5 * first, "tile": 16}, {}):
        assert made(**{"temperature": 2000.0, "tile": 8} | quiet).remarks() == []


def test_a_window_that_is_given_stays(tmp_path: Path) -> None:
    window = made(temperature=2000.0).choose_windows().last
    sim = made(temperature=2000.0, window=window)
    with pytest.raises(InputError, match="Leave it out"):
        sim.choose_windows()
    record(sim, tmp_path / "x.h5", time=20 * window, save_every=5 * window, progress=False)
    with Trajectory(tmp_path / "x.h5") as run:
        assert run.attributes["window_s"] == window
        assert "window_hops" not in run.attributes
        assert run["windows"].tolist() == [0, 5, 10, 15, 20]
        assert (run["window"] == window).all()
