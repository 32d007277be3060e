"""What drivers leave behind, and parts that are kept for a restart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow import initial
from mpiflow.experiments import results as report
from mpiflow.experiments import style
from mpiflow.experiments.results import farm
from mpiflow.experiments.runs import recorded
from mpiflow.files.trajectory import Trajectory
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.systems.ising import Ising


def test_entries_have_mean_and_error_over_seeds() -> None:
    found = report.entry("chi", [1.0, 2.0, 3.0], published=2.5)
    assert found == {
        "quantity": "chi",
        "ours": 2.0,
        "stderr": pytest.approx(1.0 / 3**0.5),
        "published": 2.5,
        "exact": None,
    }
    assert report.entry("chi", 1.0)["stderr"] is None
    assert report.entry("chi", np.nan, stderr=np.inf)["ours"] is None
    assert report.with_error([1.0, 2.0, 3.0], ".2f") == "2.00 ± 0.58"
    assert report.with_error([1.0], ".2f") == "1.00"


def test_tables_and_results_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = report.table(["a", "b"], [["1", "2"]])
    assert text == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"
    found = report.Report(tmp_path)
    found.say(text)
    found.add("a", 1.0)
    found.write()
    assert (tmp_path / "table.md").read_text() == text
    assert json.loads((tmp_path / "results.json").read_text())[0]["ours"] == 1.0
    assert text in capsys.readouterr().out
    style.figure(3, 2).savefig(tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_a_report_grows_by_paragraphs_rows_and_entries(tmp_path: Path) -> None:
    found = report.Report(tmp_path)
    found.say("Two laws.")
    found.table("law", "ours")
    found.row("growth", "0.5")
    found.add("growth", [0.4, 0.6], exact=0.5)
    found.add("decay", np.float32(0.25), np.nan, published=0.3)
    found.say("At last.")
    found.write()
    text = "Two laws.\n\n| law | ours |\n| --- | --- |\n| growth | 0.5 |\n\nAt last.\n"
    assert (tmp_path / "table.md").read_text() == text
    growth, decay = json.loads((tmp_path / "results.json").read_text())
    assert growth == report.entry("growth", [0.4, 0.6], exact=0.5)
    assert decay == report.entry("decay", 0.25, published=0.3)


def test_kept_parts_are_taken_up_only_with_the_same_facts(tmp_path: Path) -> None:
    calls = []

    def work(task: tuple[int, str]) -> dict[str, np.ndarray | float]:
        calls.append(task)
        return {"x": np.arange(task[0]), "y": 0.1}

    tasks = [(2, "a"), (3, "b")]
    for facts, done in (({"n": 1}, 2), ({"n": 1}, 2), ({"n": 2}, 4)):
        found = farm(tasks, work, MPI.COMM_SELF, report.FinishedParts(tmp_path / "parts", facts))
        assert len(calls) == done
        np.testing.assert_array_equal(found[3, "b"]["x"], np.arange(3))
        assert float(found[2, "a"]["y"]) == 0.1
    assert not list((tmp_path / "parts").glob(".*"))


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flip"])
def test_a_damaged_part_is_made_again(tmp_path: Path, damage: str) -> None:
    kept = report.FinishedParts(tmp_path, {})
    kept.put("part", x=np.arange(1000))
    path = tmp_path / "part.npz"
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    path.write_bytes({"cut": whole[:-200], "empty": b"", "text": b"x", "flip": broken}[damage])
    assert kept.get("part") is None
    kept.put("part", x=np.arange(1000))
    np.testing.assert_array_equal(kept.get("part")["x"], np.arange(1000))  # type: ignore[index]


@pytest.mark.mpi
def test_a_run_is_recorded_once(mpi_tmp_path: Path, comm: MPI.Intracomm) -> None:
    path = mpi_tmp_path / "run.h5"

    def made(temperature: float = 2.0, time: float = 2.0, **about: int) -> tuple[str, list[float]]:
        """Name of the run in the file, another one if it was made again, and its cost."""
        sim = Simulation(Ising(temperature), 64, seed=1, comm=comm)
        sim.set_spins(initial.uniform_up)
        spent = recorded(sim, path, time=time, save_every=1.0, attributes=about)
        comm.Barrier()
        with Trajectory(path) as file:
            assert file.complete
            assert file.time[-1] == time
            return str(file.attributes["run"]), list(spent)

    first = made()
    assert made() == first  # the same file, and the seconds of back then
    names = [first[0]]
    for change in ({"temperature": 3.0}, {"time": 3.0}, {"start": 1}, {"start": 2}):
        names += [made(**change)[0]]  # type: ignore[arg-type]
        assert made(**change)[0] == names[-1]  # type: ignore[arg-type]
    assert len(set(names)) == 5
    comm.Barrier()
    if comm.rank == 0:
        path.write_bytes(path.read_bytes()[:-500])
    comm.Barrier()
    assert made(start=2)[0] not in names
