"""Runs that go on differently: another step, other parameters, other distances of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow import checkpoint, initial
from mpiflow.alloy_config import AlloyConfig
from mpiflow.alloy_run import simulate_alloy
from mpiflow.config import IsingConfig, RunConfig
from mpiflow.ensemble_config import (
    ChainConfig,
    CurieWeissConfig,
    EnsembleConfig,
    PredatorPreyConfig,
)
from mpiflow.ensemble_run import simulate_ensemble
from mpiflow.kac_config import KacConfig
from mpiflow.resume import resume
from mpiflow.run import simulate
from mpiflow.schedule import Clock, after
from mpiflow.simulation import Simulation
from mpiflow.systems.ising import Ising
from mpiflow.trajectory import Trajectory

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
    if isinstance(config, AlloyConfig):
        simulate_alloy(config, MPI.COMM_SELF)
    elif isinstance(config, EnsembleConfig):
        simulate_ensemble(config, MPI.COMM_SELF)
    else:
        assert isinstance(config, IsingConfig | KacConfig)
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
