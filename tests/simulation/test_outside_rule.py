"""The package in examples/voter: a system that is not in mpiflow is installed, found and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpiflow.commands import verify
from mpiflow.simulation import catalogue

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Programs for which the package is installed, without a network, in a folder of its own."""
    folder = tmp_path_factory.mktemp("voter")
    shutil.copytree(ROOT / "examples" / "voter", folder / "source")  # a build leaves files there
    places = [str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}

    def start(*arguments: str | Path, check: bool = True) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], env=env, capture_output=True, text=True, cwd=folder
        )
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout + done.stderr

    pip = "-m pip install --quiet --no-deps --no-build-isolation --no-index --no-compile".split()
    start(*pip, "--disable-pip-version-check", "--target", folder / "site", folder / "source")
    return start


#: Commands one after the other in one process, with a line between what they print.
COMMANDS = """
import json, sys
from mpiflow.cli import invoke
for line in json.loads(sys.argv[1]):
    print("== next", flush=True)
    invoke(line)
"""


def told(run: Run, *lines: list[str | Path]) -> list[str]:
    """What each command prints."""
    said = run("-c", COMMANDS, json.dumps([[str(word) for word in line] for line in lines]))
    return said.split("== next\n")[1:]


SHORT = "--opinions 3 --noise 0.01 --size 12x16 --save-every 1 --spins --seed 5 --quiet".split()


def test_every_command_knows_it(run: Run, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.h5", tmp_path / "parts.h5"
    voter = ["simulate", "voter", *SHORT, "--time"]
    listed, *_, about, checked, shown, planned = told(
        run,
        ["simulate", "--help"],
        [*voter, "4", "--out", whole],
        [*voter, "2", "--out", parts],
        ["resume", parts, "--time", "4", "--quiet"],
        ["info", whole],
        ["verify", whole],
        ["plot", whole],
        ["plan", whole],
    )
    assert "Voters who copy" in listed
    assert "voter, complete" in about
    assert "good" in checked
    assert "fraction" in shown
    assert "3 states" in planned
    with h5py.File(whole) as one, h5py.File(parts) as other:
        assert one.attrs["system"] == "voter"
        assert {"magnetization", "fraction", "site_state", "flips"} < set(one)
        for name in one:
            np.testing.assert_array_equal(one[name][()], other[name][()], err_msg=name)
        states = one["site_state"][()]
        assert set(np.unique(states)) == {0, 1, 2}
        assert one["flips"][-1] > 100
        np.testing.assert_array_equal(one["magnetization"], states.mean(axis=(1, 2)))
    said = run("-m", "mpiflow", *voter, "4", "--noise=-1", check=False)
    assert "noise='-1': allowed is a finite number, 0 or more" in said


def test_a_script_passes_the_rule_to_a_simulation(run: Run, tmp_path: Path) -> None:
    """The state is that of the command with the same seed."""
    run("-m", "mpiflow", "simulate", "voter", *SHORT, "--time", "2", "--out", tmp_path / "run.h5")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "import numpy as np\n"
        "from mpiflow import Simulation, initial\n"
        "from voter.rule import Voter\n"
        "sim = Simulation(Voter(states=3, noise=0.01), (12, 16), seed=5)\n"
        "sim.set_states(initial.rule.shuffled)\n"
        "sim.advance(2)\n"
        "np.save(sys.argv[1], sim.gather()[0])\n"
    )
    run(script, tmp_path / "states.npy")
    with h5py.File(tmp_path / "run.h5") as file:
        np.testing.assert_array_equal(file["site_state"][-1], np.load(tmp_path / "states.npy"))


def test_a_file_is_verified_where_its_package_is_missing(run: Run, tmp_path: Path) -> None:
    """What needs no rule is checked all the same."""
    out = tmp_path / "run.h5"
    run("-m", "mpiflow", "simulate", "voter", *SHORT, "--time", "2", "--out", out)
    assert verify.verify_file(out).good
    with h5py.File(out, "r+") as file:
        file["site_state"][1, 0, 0] = (file["site_state"][1, 0, 0] + 1) % 3
    assert "frame 1: the states of the sites do not give fraction" in verify.verify_file(out).text


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("no_such_module:ENTRY", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("mpiflow.systems.potts:nothing", "AttributeError"),
        ("mpiflow.systems.potts:Potts", "is no mpiflow.simulation.catalogue.Entry"),
    ],
)
def test_a_broken_package_takes_no_other_system_along(
    value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [EntryPoint("broken", value, catalogue.GROUP), EntryPoint("ising", value, "any")]
    monkeypatch.setattr(catalogue, "entry_points", lambda group: points)
    with pytest.warns(UserWarning, match=f"^system 'broken' of mpiflow.systems.*{says}") as told:
        found = catalogue.systems.__wrapped__()
    assert list(found) == list(catalogue._OWN)
    assert len(told) == 1
