"""Run the commands of the pages of results and put in their tables and figures: ``make results``.

A table stands between ``<!-- results/NAME -->`` and ``<!-- end -->``; the command above it, in
a fence, has ``--out results/NAME`` and leaves table.md there. A figure with
``<!-- results/NAME/FILE.png -->`` behind it is a copy of that file. Drivers keep what is finished,
so that a run which was stopped goes on; a complete one is reported again in seconds. The commit
that a run began with is said below its table. Commands above one of a table in its fence, without
a table of their own, make what it needs. Those that take the published barriers, weights.npy, which
do not come with mpiflow, are left out unless the file is there.

    .venv/bin/python docs/results.py [--paste] [NAME ...]
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(ROOT / "docs" / f"{name}.md" for name in ("results", "kac", "onsagerflow", "alloy"))
TABLE = re.compile(r"(?P<start><!-- results/(?P<name>[\w-]+) -->\n).*?(?P<end><!-- end -->)", re.S)
FIGURE = re.compile(r"\]\((images/[\w.-]+\.png)\)<!-- results/([\w-]+/[\w.-]+\.png) -->")
#: The published barriers.
WEIGHTS = "weights.npy"
#: Lines of a table that are shown at once.
LONG = 45
FENCE = re.compile(r"^```\w*\n(.*?)^```$", re.S | re.M)


@dataclass(frozen=True)
class Section:
    """A table of the page: its name, the command that makes it, and those that come before it."""

    name: str
    command: str
    needs: tuple[Section, ...] = ()


def sections(text: str) -> list[Section]:
    """The tables of a page with their commands, in its order."""
    tables = [match["name"] for match in TABLE.finditer(text)]
    known: dict[str, Section] = {}
    for fence in FENCE.findall(text):
        needs: tuple[Section, ...] = ()
        for line in fence.splitlines():
            out = re.search(r"--out results/([\w-]+)", line)
            if out and out[1] in tables:
                known[out[1]] = Section(out[1], line.strip(), needs)
            elif out:
                needs += (Section(out[1], line.strip()),)
    unknown = [name for name in tables if name not in known]
    if unknown:
        raise SystemExit(f"no command with --out results/{unknown[0]}")
    return [known[name] for name in tables]


def run(section: Section) -> None:
    """Run a command; what it took, over all restarts, is kept beside its results."""
    if WEIGHTS in section.command.split() and not (ROOT / WEIGHTS).exists():
        print(f"{section.name}: left out, there is no {WEIGHTS}", flush=True)
        return
    for need in section.needs:
        if not (ROOT / "results" / need.name / "results.json").exists():
            run(need)
    out = ROOT / "results" / section.name
    new = not (out / "results.json").exists()
    print(f"$ {section.command}", flush=True)
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout  # noqa: S603
    start = time.monotonic()
    subprocess.run(shlex.split(section.command), cwd=ROOT, check=True)  # noqa: S603 - our page
    clock = out / "seconds"
    if new:
        before = float(clock.read_text()) if clock.exists() else 0.0
        clock.write_text(f"{before + time.monotonic() - start:.0f}\n")
        (out / "commit").write_text(commit)


def paste(text: str, results: Path) -> str:
    """The page with the tables that there are."""

    def table(match: re.Match[str]) -> str:
        path = results / match["name"] / "table.md"
        if not path.exists():
            return match[0]
        text = _folded(path.read_text().strip())
        commit = path.with_name("commit")
        if commit.exists():
            text += f"\n\nMade by commit {commit.read_text().strip()}."
        return f"{match['start']}\n{text}\n\n{match['end']}"

    return TABLE.sub(table, text)


def copy_figures(text: str, results: Path, docs: Path) -> None:
    """Put the figures of a page that there are beside it."""
    for image, source in FIGURE.findall(text):
        if (results / source).exists():
            shutil.copyfile(results / source, docs / image)


def _folded(table: str) -> str:
    """What is long behind a line that opens it; the first table of several is seen."""
    if len(table.splitlines()) <= LONG:
        return table
    first, gap, rest = table.partition("\n\n")
    if not gap or len(first.splitlines()) > LONG:
        first, rest = "", table
    rows = len(rest.splitlines())
    summary = f"<details><summary>The table, {rows} lines</summary>"
    return f"{first}\n\n{summary}\n\n{rest}\n\n</details>".lstrip("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="tables, all unless given")
    parser.add_argument("--paste", action="store_true", help="only put the tables into the page")
    options = parser.parse_args()
    pages = {page: sections(page.read_text()) for page in PAGES}
    names = [section.name for known in pages.values() for section in known]
    unknown = set(options.names) - set(names)
    if unknown:
        raise SystemExit(f"no table {sorted(unknown)}; there are {names}")
    for page, known in pages.items():
        for section in known:
            if not options.paste and (not options.names or section.name in options.names):
                run(section)
                put(page)
        put(page)


def put(page: Path) -> None:
    """The tables and figures that there are, into a page."""
    page.write_text(paste(page.read_text(), ROOT / "results"))
    copy_figures(page.read_text(), ROOT / "results", page.parent)


if __name__ == "__main__":
    main()
