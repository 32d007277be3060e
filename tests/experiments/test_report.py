"""What drivers leave behind, and parts that are kept for a restart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.experiments import results as report
from mpiflow.experiments import style
from mpiflow.experiments.results import farm


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
