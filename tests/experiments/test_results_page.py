"""Pages of results: each table has a command, each command a driver; tables are put in place."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("results_page", ROOT / "docs" / "results.py")
assert spec is not None
assert spec.loader is not None
page = importlib.util.module_from_spec(spec)
sys.modules["results_page"] = page
spec.loader.exec_module(page)

#: Drivers whose tables are elsewhere in docs/.
ELSEWHERE = {
    "alloy_barriers", "alloy_learn",
    "alloy_truth", "alloy_window", "demo",
    "dmd_coarsening", "dmd_mobility", "spin_diffusion_vs_meanfield",
    "hysteresis", "large_ising",
    "potts_transition", "window_bias",
}  # fmt: skip


def test_every_driver_of_the_paper_is_on_the_page() -> None:
    commands = [s.command for path in page.PAGES for s in page.sections(path.read_text())]
    used = {re.search(r"drivers/(\w+)\.py", command)[1] for command in commands}  # type: ignore[index]
    drivers = {path.stem for path in (ROOT / "drivers").glob("*.py")}
    assert used == drivers - ELSEWHERE
    assert drivers >= ELSEWHERE


def test_no_table_of_the_page_is_empty() -> None:
    names = []
    for path in page.PAGES:
        for match in page.TABLE.finditer(path.read_text()):
            assert "|" in match[0], match["name"]
            names.append(match["name"])
    assert len(set(names)) == len(names)  # a place for each in results/


TEXT = """# Page
```
mpirun -n 2 python drivers/a.py --out results/a
python drivers/b.py --smoke --out results/b-2
```
<!-- results/a -->
old
<!-- end -->
words
<!-- results/b-2 -->
<!-- end -->
"""


def test_tables_are_pasted_between_their_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    found = page.sections(TEXT)
    assert [s.name for s in found] == ["a", "b-2"]
    assert found[1].command == "python drivers/b.py --smoke --out results/b-2"
    assert page.paste(TEXT, tmp_path) == TEXT
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "table.md").write_text("| x |\n|---|\n| 1 |\n")
    once = page.paste(TEXT, tmp_path)
    assert once == TEXT.replace("old\n", "\n| x |\n|---|\n| 1 |\n\n")
    assert page.paste(once, tmp_path) == once


def test_a_table_says_its_commit_and_a_figure_is_a_copy(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "docs" / "images").mkdir(parents=True)
    (tmp_path / "a" / "table.md").write_text("| x |\n|---|\n| 1 |\n")
    (tmp_path / "a" / "commit").write_text("abc1234\n")
    (tmp_path / "a" / "b.png").write_bytes(b"new")
    text = TEXT + "![words](images/mine.png)<!-- results/a/b.png -->\n![x](images/x.png)\n"
    once = page.paste(text, tmp_path)
    assert "| 1 |\n\nMade by commit abc1234.\n\n<!-- end -->" in once
    assert page.paste(once, tmp_path) == once
    page.copy_figures(once, tmp_path, tmp_path / "docs")
    assert [p.name for p in (tmp_path / "docs" / "images").iterdir()] == ["mine.png"]
    assert (tmp_path / "docs" / "images" / "mine.png").read_bytes() == b"new"


def test_long_tables_are_folded(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "table.md").write_text("| x |\n|---|\n" + "| 1 |\n" * page.LONG)
    text = page.paste(TEXT, tmp_path)
    assert f"{page.LONG + 2} lines</summary>\n\n| x |" in text
    assert page.paste(text, tmp_path) == text
    short = "| y |\n|---|\n| 2 |\n\n"
    (tmp_path / "a" / "table.md").write_text(short + "| x |\n|---|\n" + "| 1 |\n" * page.LONG)
    assert f"-->\n\n{short}<details>" in page.paste(TEXT, tmp_path)


def test_a_table_without_a_command_is_refused() -> None:
    with pytest.raises(SystemExit, match="results/c"):
        page.sections("<!-- results/c -->\n<!-- end -->\n")


def test_what_a_table_needs_is_made_first_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands above it without a table; none of them without the published barriers."""
    (table,) = page.sections(TEXT.replace("results/a -->", "none -->"))
    assert [need.name for need in table.needs] == ["a"]
    asked: list[str] = []

    def answer(words: list[str], **options: object) -> object:
        asked.append(" ".join(words))
        return subprocess.CompletedProcess(words, 0, stdout="abc1234\n")

    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(page.subprocess, "run", answer)
    for name in ("a", "b-2"):
        (tmp_path / "results" / name).mkdir(parents=True)
    page.run(table)
    made = [words for words in asked if "git" not in words]
    assert [re.search(r"results/(\S+)", words)[1] for words in made] == ["a", "b-2"]  # type: ignore[index]
    (tmp_path / "results" / "a" / "results.json").touch()
    asked.clear()
    page.run(table)
    assert sum("git" not in words for words in asked) == 1
    asked.clear()
    page.run(page.Section("a", f"python a.py --barriers {page.WEIGHTS}", table.needs))
    assert not asked
    assert "a: left out, there is no weights.npy" in capsys.readouterr().out
