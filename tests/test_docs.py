"""The Python blocks of docs/: those with small data are run, of the others the imports.

And the names of modules, functions, classes and files that the pages mention: all exist.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import runpy
import shlex
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

import mpiflow
from mpiflow.cli import invoke

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
RUN = (
    "simulate ising --size 64 --temperature 2.5 --time 4 --save-every 1 --coarse 8 --spins --quiet"
)
#: Pages whose blocks are run in their order, after these commands. All others need hours of data,
#: files of other people, or names from the text around them: their imports are run.
PAGES = {
    "file-format.md": [f"{RUN} --out run.h5"],
    "exports.md": [f"{RUN} --out a.h5", "export a.h5 --to netcdf --out part.nc"],
    "checkpoints.md": [],
    "first-run.md": [],
    "python.md": [],
    "observables.md": [],
    "import.md": [],
    "learning.md": [],
    "adding-a-system.md": [],
    "spin-diffusion.md": [],
    "driven.md": [
        "simulate ising --size 64 --temperature 1.5 --random-field-std 1 --random-field-seed 3 "
        "--initial random --time 50 --save-every 1 --spins --out random.h5 --quiet",
        "verify random.h5",
    ],
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


@pytest.mark.parametrize(
    "name", ["first-run.md", pytest.param("systems.md", marks=pytest.mark.validate)]
)
def test_commands_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the pages for beginners, on one rank; make and drivers have tests of their own."""
    monkeypatch.chdir(tmp_path)
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", (DOCS / name).read_text(), re.DOTALL | re.M))
    commands = re.findall(r"^(?:mpirun -n 2 )?mpiflow (.+)$", lines, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        invoke(shlex.split(command))


# What tutorials say of their outcomes, asked of what their cells have left. Seeds are fixed.


def _patches(left: dict[str, Any]) -> None:
    """The learned law predicts mean and spread of m, and keeps within the range of its data."""
    truth, learned = left["truth"][-1, 0], left["predicted"][-1, :, 0]
    assert left["held"] == 0
    assert abs(learned.mean() - truth.mean()) < 4 * left["errors"]
    assert abs(learned.std() / truth.std() - 1) < 0.2


def _own_data(left: dict[str, Any]) -> None:
    """No doubts, Kramers' rate, a straight line over ln t, and opinions that are conserved."""
    assert left["law"].card["doubts"] == []
    kramers = np.sqrt(2) / np.pi * np.exp(-0.25 / (0.25 / 2))
    assert abs(left["rate"] / kramers - 1) < 0.15
    off = (left["inverse"] - np.polyval(left["line"], np.log(left["t"]))) / left["error"]
    assert np.sqrt(np.mean(off**2)) < 1.5
    end = left["end"]
    assert np.all(abs(end.mean(axis=0) - 1 / 3) < 3 * end.std(axis=0, ddof=1) / 4)


def _first_plot(left: dict[str, Any]) -> None:
    """A slope a little smaller than 1/2; energies about an error from Onsager's, some two."""
    assert -0.5 < left["slope"] < -0.35
    off = (left["table"]["energy"] - left["exact"]) / left["table"]["energy_error"]
    assert np.all(abs(off) < 3)


def _kac_to_field(left: dict[str, Any]) -> None:
    """Most of the difference is noise; s' is found, and what was learned shows the pattern."""
    assert left["noise"] < left["difference"] < 1.5 * left["noise"]
    assert abs(left["off"]).max() < 0.02
    one, other = left["one"].ravel(), left["other"].ravel()
    assert np.corrcoef(one, other)[0, 1] > 0.8
    assert abs(other.std() / one.std() - 1) < 0.1


def _alloy(left: dict[str, Any]) -> None:
    """Mo and Ta attract each other, Ta avoids Ta, at 1000 K more than at 2000 K."""
    names, late = left["pairs"], {}
    for T in (1000, 2000):
        with mpiflow.open(f"alloy{T}.h5") as run:
            values = run["warren_cowley"][len(run.time) // 2 :].mean(axis=0)
        late[T] = dict(zip(names, values, strict=True))
    assert late[1000]["MoTa"] < 1.5 * late[2000]["MoTa"] < -0.1
    assert late[1000]["TaTa"] > 1.5 * late[2000]["TaTa"] > 0.1


OUTCOMES = {
    "patches": _patches,
    "own-data": _own_data,
    "first-plot": _first_plot,
    "kac-to-field": _kac_to_field,
    "alloy": _alloy,
}

#: Tutorials, and whether they are left to ``make test-validate``, which bounds the time of a suite.
TUTORIALS = {
    "patches": False,
    "own-data": False,
    "first-plot": True,
    "kac-to-field": False,
    "alloy": False,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[pytest.mark.validate] if long else [])
        for n, long in TUTORIALS.items()
    ],
)
def test_tutorial(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells in their order, as ``make docs`` runs them in a kernel."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    text = (DOCS / "tutorials" / f"{name}.md").read_text()
    cells = re.findall(r"^```{code-cell} python3\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(cells) >= 5
    names: dict[str, object] = {}
    with matplotlib.rc_context():
        for number, cell in enumerate(cells, 1):
            code = compile(cell, f"{name}, cell {number}", "exec", dont_inherit=True)
            exec(code, names)  # noqa: S102 - our own page
            pyplot.close("all")
    OUTCOMES[name](names)


def test_all_tutorials_are_tested() -> None:
    assert set(TUTORIALS) == {page.stem for page in (DOCS / "tutorials").glob("*.md")} - {"index"}


def test_each_page_has_a_place_in_the_contents() -> None:
    """And each place a page: ``make docs`` says so, too, but only where Sphinx is."""
    listed: set[Path] = {DOCS / "index.md"}
    for index in DOCS.rglob("index.md"):
        for tree in re.findall(r"^```{toctree}\n(.*?)^```", index.read_text(), re.DOTALL | re.M):
            names = re.findall(r"^\w[\w/-]*$", tree, re.MULTILINE)
            listed |= {index.parent / f"{name}.md" for name in names}
    built = DOCS / "_build"
    assert listed == {page for page in DOCS.rglob("*.md") if built not in page.parents}


def test_versions_of_the_site(tmp_path: Path) -> None:
    """Each keeps its place, the newest comes first, and the first page leads to the newest tag."""
    versions = runpy.run_path(str(DOCS / "versions.py"))
    html, site = tmp_path / "html", tmp_path / "site"
    html.mkdir()
    for name in ("0.9.0", "latest", "0.10.0", "latest"):
        (html / "index.html").write_text(name)
        names = versions["publish"](html, site, name)
    assert names == ["latest", "0.10.0", "0.9.0"]
    assert (site / "versions.js").read_text() == (
        'window.mpiflow_versions = ["latest", "0.10.0", "0.9.0"];\n'
    )
    assert [(site / name / "index.html").read_text() for name in names] == names
    assert "url=0.10.0/index.html" in (site / "index.html").read_text()
    assert versions["name_here"]()


def headings(page: Path) -> set[str]:
    """Places of a page that a link may name, as GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


def test_links_between_pages_lead_somewhere() -> None:
    gone = []
    for page in [ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("*/*.md")]:
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            target, _, place = link.partition("#")
            if re.match(r"\w+:", link) or "*" in link:
                continue
            there = (page.parent / target).resolve() if target else page
            if not there.exists() or (place and place not in headings(there)):
                gone.append(f"{page.name}: {link}")
    assert not gone


def test_public_names_are_in_the_reference() -> None:
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    listed = re.findall(r"^\.\. (?:auto|py:)\w+:: mpiflow\.(\w+)$", text, re.MULTILINE)
    assert {*listed, "record_alloy"} == {*mpiflow.__all__, "open"}
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("name", sorted({*mpiflow.__all__, "open"} - {"STANDARD"}))
def test_a_public_name_has_a_docstring(name: str) -> None:
    """Which names all parameters of a function or class."""
    thing = getattr(mpiflow, name)
    text = inspect.getdoc(thing)
    assert text
    if inspect.ismodule(thing) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return
    if "raise InputError" in inspect.getsource(thing):
        assert "InputError :" in text or "InputError\n" in text, (
            f"{name} does not say what it refuses"
        )
    missing = [p for p in inspect.signature(thing).parameters if not re.search(rf"\b{p}\b", text)]
    assert not missing, f"{name} does not say what these are"


@pytest.mark.parametrize("name", sorted(page.name for page in DOCS.glob("*.md")))
def test_imports_of_blocks(name: str) -> None:
    for block in blocks(DOCS / name):
        tree = ast.parse(block)
        lines = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(ast.Module(lines, []), name, "exec"), {})  # noqa: S102


def test_what_pages_import_is_public() -> None:
    """Only the page about the inside names the modules that things live in."""
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        text = page.read_text()
        if page.name != "adding-a-system.md":
            assert not re.findall(r"from mpiflow\.\S+ import .*", text), page.name
        for line in re.findall(r"from mpiflow import ([\w, ]+)", text):
            names = {part.split(" as ")[0].strip() for part in line.split(",")}
            assert names <= {*mpiflow.__all__, "open"}, page.name


def test_a_star_leaves_the_names_of_the_language() -> None:
    names: dict[str, object] = {}
    exec("from mpiflow import *", names)  # noqa: S102
    assert not set(mpiflow.__all__) & set(dir(builtins))
    assert names.keys() >= {"Kac", "Alloy", "predict", "record_alloy", "initial"}
    assert "open" not in names
    assert callable(mpiflow.open)


# -- names ---------------------------------------------------------------------------------

#: Variables of examples, libraries of others: what follows them is not ours.
OTHERS = {"block", "data", "h5py", "model", "numpy", "run", "sim"}
#: Endings of files, of which :func:`files_of` takes those that must be here.
ENDINGS = {"h5", "hdf", "json", "md", "npy", "png", "py", "safetensors", "toml", "xdmf"}


def members(node: ast.ClassDef) -> Iterator[str]:
    """Attributes and methods of a class, also those that its methods set."""
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef):
            yield part.name
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield part.attr
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            yield part.id


def defined(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If):
            yield from defined(node.body)


@cache
def known() -> frozenset[str]:
    """Every dotted name of the package, from any of its parts on."""
    names: set[tuple[str, ...]] = set()
    classes: dict[str, tuple[set[str], list[str]]] = {}
    places: list[tuple[tuple[str, ...], str]] = []
    for path in sorted((ROOT / "mpiflow").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        place = parts[:-1] if parts[-1] == "__init__" else parts
        names.add(place)
        for node in defined(ast.parse(path.read_text()).body):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases]
                classes[node.name] = (set(members(node)), bases)
                places.append((place, node.name))
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add((*place, node.name))
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names |= {(*place, alias.asname or alias.name) for alias in node.names}
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                stored = (n.id for n in ast.walk(node) if isinstance(n, ast.Name))
                names |= {(*place, name) for name in stored}

    def inherited(name: str) -> set[str]:
        own, bases = classes.get(name, (set(), []))
        return own.union(*(inherited(base) for base in bases if base != name))

    names |= {(*place, name, part) for place, name in places for part in inherited(name)}
    return frozenset(".".join(name[i:]) for name in names for i in range(len(name)))


def mentioned(text: str) -> Iterator[str]:
    """Dotted names of a page: all that begin with the package, and of others those in backticks."""
    yield from re.findall(r"\bmpiflow(?:\.[A-Za-z_]\w*)+", text)
    for name in re.findall(r"`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?=[`(])", text):
        first, *_, last = name.split(".")
        if first not in OTHERS and last not in ENDINGS:
            yield name


def files_of(text: str) -> Iterator[str]:
    """Paths of a page: below the root, and in backticks also below the package."""
    folders = r"(?:mpiflow|drivers|tests|examples|jobs)"
    yield from re.findall(rf"\b{folders}/[\w/.-]*\w\.(?:py|sh|slurm)\b", text)
    yield from re.findall(r"`([\w/]+\.py)`", text)


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("tutorials/*.md"))],
    ids=lambda page: page.stem,
)
def test_names_on_a_page_exist(page: Path) -> None:
    text = page.read_text()
    gone = [name for name in mentioned(text) if name not in known()]
    sources = [
        path for top in ("mpiflow", "drivers", "tests") for path in (ROOT / top).rglob("*.py")
    ]
    whole = [f"/{path.relative_to(ROOT)}" for path in sources]
    for path in files_of(text):
        if not (ROOT / path).is_file() and not any(name.endswith(f"/{path}") for name in whole):
            gone.append(path)
    assert not gone, f"{page.name} names what is not there"


def test_tests_that_pages_name_exist() -> None:
    """Tables say which test holds a function to its equation."""
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^ *def (test_\w+)", sources, re.MULTILINE))
    for page in DOCS.glob("*.md"):
        names = set(re.findall(r"`(test_\w+)`", page.read_text()))
        assert names <= there, page.name


def test_a_name_that_is_gone_is_noticed() -> None:
    text = "`learn.short_time`, `alloy_scaleup.assemble`, mpiflow.solvers.kac_field, `Kac.gone`"
    assert len(list(mentioned(text))) == 4
    assert not known().intersection(mentioned(text))
    assert known().issuperset(("mpiflow.open", "noise.STREAMS", "MacroscopicSDE.relaxation"))
    assert list(files_of("mpiflow/gone.py and `solvers/gone.py`")) == [
        "mpiflow/gone.py",
        "solvers/gone.py",
    ]
