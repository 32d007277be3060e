"""Files of rules that a script made: their law is found, or it is said that none was checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
from mpi4py import MPI

from mpiflow import BlumeCapel, Potts, Simulation, SpinRule, initial, record
from mpiflow.commands.verify import verify_file


@dataclass(frozen=True)
class OwnPotts(Potts):
    """A rule that no catalogue has."""


def recorded(rule: SpinRule, path: Path) -> Path:
    sim = Simulation(rule, size=(4, 6), seed=7, comm=MPI.COMM_SELF)
    sim.set_states(initial.rule.shuffled)
    record(sim, path, time=1, save_every=0.5, spins=True, progress=False)
    return path


def test_the_law_of_a_rule_of_mpiflow_is_found(tmp_path: Path):
    path = recorded(BlumeCapel(temperature=0.8, crystal_field=1.2), tmp_path / "run.h5")
    assert verify_file(path).text == "good, 3 frames to time 1"
    with h5py.File(path, "r+") as file:
        assert file.attrs["system"] == "blume-capel"
        file["energy"][1] += 1.0
    assert "energy does not follow" in verify_file(path).text


def test_it_is_said_where_no_law_is_known(tmp_path: Path):
    path = recorded(OwnPotts(temperature=1.1), tmp_path / "run.h5")
    found = verify_file(path)
    assert found.good
    assert "the law of own-potts is not known here: only what holds of any system" in found.text
    assert "not known" not in verify_file(path, quick=True).text
