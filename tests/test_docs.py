"""The Python blocks of docs/: those with small data are run, of the others the imports."""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path

import matplotlib
import pytest

from mpiflow.cli import invoke

DOCS = Path(__file__).resolve().parent.parent / "docs"
RUN = (
    "simulate ising --size 64 --temperature 2.5 --time 4 --save-every 1 --coarse 8 --spins --quiet"
)
#: Pages whose blocks are run in their order, after these commands. All others need hours of data,
#: files of other people, or names from the text around them: their imports are run.
PAGES = {
    "file-format.md": [f"{RUN} --out run.h5"],
    "exports.md": [f"{RUN} --out a.h5", "export a.h5 --to netcdf --out part.nc"],
    "checkpoints.md": [],
    "adding-a-system.md": [],
}


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_blocks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    for line in PAGES[name]:
        invoke(line.split())
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(DOCS / name), 1):
        if "TrajectoryWriter(" in block:
            Path("run.h5").unlink()
        code = compile(block, f"{name}, block {number}", "exec", dont_inherit=True)
        exec(code, names)  # noqa: S102 - our own page


@pytest.mark.parametrize("name", sorted(page.name for page in DOCS.glob("*.md")))
def test_imports_of_blocks(name: str) -> None:
    for block in blocks(DOCS / name):
        tree = ast.parse(block)
        lines = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(ast.Module(lines, []), name, "exec"), {})  # noqa: S102
