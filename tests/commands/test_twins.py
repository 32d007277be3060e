"""The commands as functions of Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI

import mpiflow
from mpiflow import InputError, Ising, Keep, Simulation, Trajectory
from mpiflow.cli import invoke
from mpiflow.run.plan import plan as planned
from mpiflow.run.stopping import Stopped

SELF = MPI.COMM_SELF
SHORT: dict[str, Any] = {
    "size": 16, "temperature": 2.5, "dt": 0.25, "time": 2, "save_every": 0.5, "coarse": 4,
    "seed": 3, "quiet": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("twins") / "run.h5"
    return mpiflow.simulate("ising", SELF, out=out, checkpoint_every=1, **SHORT)


def contents(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: data[()] for name, data in file.items()}


def assert_same(first: Path, second: Path) -> None:
    a, b = contents(first), contents(second)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_every_command_has_a_twin() -> None:
    from mpiflow import cli

    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    # Those about machines and terminals, a driver, and one whose twin is import_trajectory.
    others = {"doctor", "bench", "warmup", "watch", "report", "import-nnk", "import", "demo"}
    assert commands - others <= set(mpiflow.__all__)
    learners = {f"learn_{c.name}" for c in cli.learn_app.registered_commands}
    assert len(learners) == 4
    assert learners <= set(mpiflow.__all__)


def test_a_run_is_a_line(run: Path, tmp_path: Path) -> None:
    """The same as that of the command, of a TOML file and of other options."""
    out = tmp_path / "command.h5"
    words = [
        f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items() if name != "quiet"
    ]
    invoke(["simulate", "ising", *words, "--out", str(out), "--checkpoint-every=1", "--quiet"])
    assert_same(run, out)
    file = tmp_path / "run.toml"
    values = [f"{name} = {str(value).lower()}" for name, value in SHORT.items()]
    file.write_text("\n".join(['system = "ising"', 'out = "x.h5"', *values]))
    other = mpiflow.simulate(file, SELF, out=tmp_path / "toml.h5", checkpoint_every=1)
    assert_same(run, other)
    with mpiflow.open(run) as opened:
        assert isinstance(opened, Trajectory)
        assert opened.config["system"] == "ising"


def test_what_is_no_system_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^config='isng'.*Did you mean ising"):
        mpiflow.simulate("isng", SELF, out=tmp_path / "x.h5")
    with pytest.raises(InputError, match="temperature"):
        mpiflow.simulate("ising", SELF, **SHORT | {"temperature": -1}, out=tmp_path / "x.h5")
    with pytest.raises(InputError, match="temperatur"):
        mpiflow.simulate("ising", SELF, temperatur=2, out=tmp_path / "x.h5", **SHORT)


def test_a_run_is_planned_read_drawn_exported_and_verified(run: Path, tmp_path: Path) -> None:
    plan = mpiflow.plan("ising", ranks=2, **SHORT)
    assert plan.ranks == 2
    assert mpiflow.plan(run, ranks=2, time=4).frames == 9
    assert planned(mpiflow.run.simulate.configured(run, {"out": run})) == mpiflow.plan(run)
    assert "magnetization" in mpiflow.info(run)
    with Trajectory(run) as opened:
        assert mpiflow.info(opened) == mpiflow.info(run)
        figure = opened.plot()
        assert len(figure.axes) > 4
        mpiflow.plot(opened, tmp_path / "run.png", frame=0)
        written = mpiflow.export(opened, "netcdf", tmp_path / "run.nc", variables="magnetization")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert written == tmp_path / "run.nc"
    (finding,) = mpiflow.verify(run)
    assert finding.good
    (finding,) = mpiflow.verify(run.with_name("none.h5"))
    assert not finding.good


def test_a_run_goes_on_in_a_line(run: Path, tmp_path: Path) -> None:
    whole = mpiflow.simulate("ising", SELF, **SHORT | {"time": 4}, out=tmp_path / "whole.h5")
    out = tmp_path / "parts.h5"
    mpiflow.simulate("ising", SELF, **SHORT, checkpoint_every=1, out=out)
    assert mpiflow.resume(out, SELF, time=4) == out.resolve()
    assert_same(whole, out)


def made(seed: int = 3) -> Simulation:
    sim = Simulation(Ising(2.5), 16, seed=seed, comm=SELF)
    sim.set_state(lambda y, x: 1 - 2 * ((x + y) % 2))
    return sim


def test_a_run_of_python_goes_on_in_a_line(tmp_path: Path) -> None:
    """To its end where it was stopped, or to a later one."""
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    quiet: dict[str, Any] = {"progress": False, "save_every": 0.5}
    mpiflow.record(made(), whole, time=4, **quiet)
    with pytest.raises(Stopped):
        mpiflow.record(made(), parts, time=4, keep=Keep(every=1, walltime=1e-3), **quiet)
    with Trajectory(parts) as opened:
        assert len(opened) < 9
    mpiflow.resume(parts, sim=made(), progress=False)
    assert_same(whole, parts)
    mpiflow.resume(parts, sim=made(), time=6, progress=False)
    with Trajectory(parts) as opened:
        assert opened.time[-1] == 6
    with pytest.raises(InputError, match="seed"):
        mpiflow.resume(parts, sim=made(seed=4), time=8, progress=False)
    with pytest.raises(InputError, match="keep=Keep"):
        mpiflow.resume(whole, sim=made(), progress=False)
    with pytest.raises(InputError, match="sim=sim"):
        mpiflow.resume(parts, SELF, time=8)


@pytest.mark.parametrize("name", ["learn_onsagerflow", "network", "export"])
def test_options_that_are_handed_on_are_known(name: str, run: Path, tmp_path: Path) -> None:
    """A mistyped one is named with its nearest, not found by the function that is called last."""
    out = tmp_path / "out"
    with pytest.raises(
        InputError, match=r"option='(radiuss|frams)'.* Did you mean (radius|frames)"
    ):
        if name == "export":
            mpiflow.export(run, "netcdf", out, frams="1:2")
        else:
            mpiflow.learn_onsagerflow(run, out, network=name == "network", radiuss=4)
    assert not out.exists()
