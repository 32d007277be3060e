"""mpiflow report: one page that needs nothing from elsewhere and says what was done."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpiflow.cli import invoke
from mpiflow.commands.plot import _coarser
from mpiflow.core.errors import InputError
from mpiflow.experiments import pages
from mpiflow.experiments.results import Report

RUN = "simulate ising --size 32 --temperature 2.5 --time 4 --save-every 1 --coarse 8 --quiet"


class Page(HTMLParser):
    """What a browser would load from elsewhere, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and value and not value.startswith("data:"):
                self.loaded.append(value)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "run.h5"
    invoke([*RUN.split(), "--out", str(out)])
    return out


def test_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Facts, options, the verdict of verify, every variable, a field that plays."""
    invoke(["report", str(run), "--overwrite"])
    page = run.with_suffix(".html")
    assert capsys.readouterr().out == f"wrote {page}\n"
    text = page.read_text()
    read = Page(text)
    assert read.loaded == []
    facts = ("system ising", "state complete", "time 0 to 4", "good, 5 frames", "32x32")
    for words in (*facts, "field 0", "initial_magnetization 0"):  # a value of 0 is one, too
        assert words in read.text, words
    figures = re.findall(r"Plotly.newPlot", text.split("plotly-graph-div", 1)[1])
    assert len(figures) == 5  # four variables and the field
    assert text.count('"name":"4"') >= 1  # the last frame of the film


def test_a_damaged_run_is_told_as_such(run: Path, tmp_path: Path) -> None:
    """A value that another program changed: the page says so, and not that all is well."""
    copy = tmp_path / "copy.h5"
    copy.write_bytes(run.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["magnetization"][3] = 0.123456
    invoke(["report", str(copy)])
    text = copy.with_suffix(".html").read_text()
    assert 'class="warning"' in text
    assert 'class="good"' not in text


def test_a_folder_with_a_broken_run(run: Path, tmp_path: Path) -> None:
    """The others are told of; what cannot be read is a warning."""
    (tmp_path / "good.h5").write_bytes(run.read_bytes())
    (tmp_path / "cut.h5").write_bytes(run.read_bytes()[:2000])
    invoke(["report", str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    assert "cut.h5: cannot be read" in text
    assert "good, 5 frames" in text


def test_large_fields_are_told_by_means() -> None:
    """Cells of a mean are next to each other, and the mean of all stays."""
    plane = np.arange(12.0 * 8).reshape(12, 8).astype(np.float32)
    coarse = _coarser(plane, 4)
    assert coarse.shape == (4, 4)
    assert coarse[0, 0] == plane[:3, :2].mean()
    assert np.isclose(coarse.mean(), plane.mean())
    assert np.array_equal(_coarser(plane, 12), plane)


def test_results_of_a_driver(tmp_path: Path) -> None:
    """Tables, pictures, and how far values are from exact ones; names are text, not HTML."""
    folder = tmp_path / "results"
    folder.mkdir()
    report = Report(folder)
    report.table("law", "ours")
    report.row("t^n <b>", "0.5")
    report.add("growth <i>", np.array([0.51, 0.53]), exact=0.5)
    report.write()
    (folder / "figure.png").write_bytes(b"\x89PNG not drawn")
    invoke(["report", str(folder), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    read = Page(text)
    assert read.loaded == []
    assert "t^n <b>" in read.text
    assert "growth <i> 0.52 0.01 0.5 +2.0" in read.text
    assert "data:image/png;base64," in text
    assert "Plotly" not in text  # no interactive figure, no library


@pytest.mark.parametrize(
    ("words", "says"),
    [("nothing", "a run, or a folder with runs"), ("none.h5", "an existing trajectory")],
)
def test_nothing_to_tell(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nothing").mkdir()
    with pytest.raises(InputError, match=says):
        invoke(["report", words])
    assert [p.name for p in tmp_path.iterdir()] == ["nothing"]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"Install mpiflow\[report\]"):
        pages.page("title", [])
