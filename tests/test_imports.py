"""The one-way line of imports, who may communicate, and what no module may do.

A new module needs a place in LAYERS; that is the moment to think about where it belongs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mpiflow"

#: A module imports from lower layers, or from its own folder; the line of DESIGN, section 4.
LAYERS = {
    "kernel_cache": -1,
    "streams": -1,
    "errors": -1,
    "device": 0,
    "lattice": 1,
    "parallel": 1,
    "guards": 2,
    "doctor": 3,
    "progress": 1,
    "schedule": 1,
    "segments": 2,
    "arrays": 1,
    "inputs": 1,
    "moments": 2,
    "toml_files": 1,
    "storage": 1,
    "signals": 0,
    "stopping": 1,
    "metrics": 1,
    "report": 2,
    "config": 3,
    "dense": 2,
    "noise": 2,
    "block": 3,
    "packed": 4,
    "systems": 4,
    "observables": 5,
    "initial": 5,
    "initial_rule": 5,
    "slabs": 5,
    "kac_config": 5,
    "field_config": 5,
    "ensemble_config": 5,
    "published_weights": 5,
    "barrier_files": 6,
    "structure_files": 4,
    "structure": 5,
    "initial_alloy": 6,
    "solvers": 6,
    "alloy_config": 5,
    "simulation": 7,
    "alloy_simulation": 7,
    "schema": 5,
    "manifest": 6,
    "sealing": 7,
    "footer": 1,
    "foreign": 2,
    "mesoscopic": 7,
    "field_law": 6,
    "field_steps": 7,
    "stochastic_field": 8,
    "field_simulation": 9,
    "kac_simulation": 8,
    "chain_simulation": 7,
    "predator_prey_simulation": 7,
    "ensemble_simulation": 8,
    "trajectory": 8,
    "checkpoint": 9,
    "runs": 9,
    "recording": 10,
    "possible": 1,
    "verify": 10,
    "reseal": 11,
    "plan_cut": 8,
    "plan_disk": 6,
    "plan_sizes": 7,
    "plan": 10,
    "run": 11,
    "plan_time": 13,
    "alloy_run": 11,
    "predict": 12,
    "ensemble_run": 11,
    "resume": 13,
    "alloy_boxes": 7,
    "alloy_scaleup": 10,
    "alloy_partial": 10,
    "scaleup": 10,
    "plots": 10,
    "exports": 10,
    "plot_run": 11,
    "learn": 11,
    "alloy_bench": 12,
    "kac_bench": 12,
    "field_bench": 12,
    "bench": 13,
    "cli": 14,
    "__main__": 15,
}

#: Which methods of a communicator a module may call; ANY for those whose work it is.
ANY = frozenset({"*"})
COMMUNICATES = {
    "slabs": ANY,  # rows around a slab, transposes, sums
    "block": ANY,  # halos, sums over tiles, gathered records
    "parallel": ANY,  # ending together
    "trajectory": ANY,
    "checkpoint": ANY,
    "run": ANY,
    "recording": ANY,
    "stopping": ANY,  # one answer for all ranks
    "resume": ANY,
    "alloy_run": ANY,
    "progress": ANY,
    "bench": ANY,
    "plan_time": ANY,
    "doctor": ANY,
    "learn.training": ANY,  # gradients
    "learn.experiment": ANY,
    "learn.increments": frozenset({"allreduce"}),  # sums over increments
    # gather() is an explicit request for the whole lattice; the rest finds this rank's GPU.
    "simulation": frozenset({"gather"}),
    "alloy_simulation": frozenset({"gather", "bcast", "allreduce"}),
}
#: May name communicators, so may import mpi4py, but leave all communication to the above.
TAKES_A_COMMUNICATOR = {
    "learn.equilibrium",
    "predator_prey_simulation",
    "alloy_bench",
    "kac_bench",
    "field_bench",
    "kac_simulation",
    "mesoscopic",
    "stochastic_field",
    "field_simulation",
    "ensemble_simulation",
    "ensemble_run",
    "predict",
    "learn.alloy_data",
    "learn.field_data",
    "learn.from_files",
    "learn.generator_fit",
    "learn.goodness",
    "learn.onsagerflow_fit",
    "learn.onsagerflow_net",
    "learn.curie_weiss",
    "chain_simulation",
    "packed",
    "cli",
    "guards",
    "initial",
    "learn.dataset",
    "learn.model",
}
COMMUNICATORS = {"comm", "cart", "world", "comm_world", "comm_self", "node", "prequest", "request"}

FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
#: May use pickle, as test_the_unpickler_calls_nothing says: the published network is a pickle.
MAY_UNPICKLE = {"published_weights"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name inside the package; '' for mpiflow/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """Full names of everything a file imports, also inside functions and for types."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def internal_imports(path: Path) -> Iterator[str]:
    """Names inside the package of the modules that a file imports."""
    known = {name_of(source) for source in sources()} - {""}
    for name in imports(path):
        if name.startswith("mpiflow."):
            inside = name.removeprefix("mpiflow.")
            while inside and inside not in known:
                inside = inside.rpartition(".")[0]
            if inside:  # else a public name or __version__ of the package itself
                yield inside


def layer(name: str) -> int:
    top = name.partition(".")[0]
    assert top in LAYERS, f"give mpiflow/{top} a place in LAYERS of tests/test_imports.py"
    return LAYERS[top]


MODULES = [path for path in sources() if name_of(path)]
by_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


@by_module
def test_imports_point_one_way(path: Path) -> None:
    name = name_of(path)
    for other in internal_imports(path):
        same_folder = "." in name and other.partition(".")[0] == name.partition(".")[0]
        assert layer(other) < layer(name) or same_folder, f"{name} imports {other}"


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name_of(path): set(internal_imports(path)) for path in MODULES}
    while graph:
        free = {name for name, others in graph.items() if not others & graph.keys()}
        assert free, f"a circle of imports among {sorted(graph)}"
        for name in free:
            del graph[name]


@by_module
def test_only_device_compiles(path: Path) -> None:
    if name_of(path) not in ("device", "kernel_cache"):
        assert not [n for n in imports(path) if n.split(".")[0] in ("numba", "llvmlite", "cupy")]


def communications(path: Path) -> Iterator[str]:
    """Methods called on something named like a communicator or request."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            last = getattr(owner, "attr", getattr(owner, "id", ""))
            if last.lower().strip("_") in COMMUNICATORS:
                yield node.func.attr


@by_module
def test_only_blocks_and_files_communicate(path: Path) -> None:
    name = name_of(path)
    allowed = COMMUNICATES.get(name, frozenset())
    if allowed is not ANY:
        assert set(communications(path)) <= allowed
    if not allowed and name not in TAKES_A_COMMUNICATOR:
        assert not [n for n in imports(path) if n.split(".")[0] == "mpi4py"]


@by_module
def test_rules_of_a_system_are_physics_only(path: Path) -> None:
    if name_of(path).startswith("systems."):
        outside = {n.split(".")[0] for n in imports(path)} - {"mpiflow"}
        allowed = {"__future__", "dataclasses", "math", "numpy", "scipy", "typing", "collections"}
        allowed |= {"functools"}
        assert outside <= allowed


@pytest.mark.parametrize(
    "path", [*sources(), *sorted((ROOT / "drivers").glob("*.py"))], ids=lambda p: p.stem
)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    inside = name_of(path) if path.is_relative_to(PACKAGE) else ""
    forbidden = FORBIDDEN_MODULES - ({"pickle"} if inside in MAY_UNPICKLE else set())
    assert not {n.split(".")[0] for n in imports(path)} & forbidden
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in FORBIDDEN_CALLS, f"{path}: {called} in line {node.lineno}"
        assert called not in ("torch.load", "yaml.load"), f"{path}: {called} runs what it reads"
        for keyword in node.keywords:
            if keyword.arg in ("allow_pickle", "shell"):
                assert ast.unparse(keyword.value) == "False", f"{path}: {keyword.arg}"


@pytest.mark.parametrize("name", sorted(MAY_UNPICKLE))
def test_the_unpickler_calls_nothing(name: str) -> None:
    """pickle is only the base of one class, whose own ``find_class`` decides about all names."""
    path = PACKAGE / f"{name}.py"
    nodes = list(ast.walk(tree(path)))
    assert [n for n in imports(path) if n.split(".")[0] == "pickle"] == ["pickle"]
    assert sum(isinstance(node, ast.Name) and node.id == "pickle" for node in nodes) == 1
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    bases = {node.name: [ast.unparse(base) for base in node.bases] for node in classes}
    (unpickler,) = (node for node in classes if "pickle.Unpickler" in bases[node.name])
    assert bases[unpickler.name] == ["pickle.Unpickler"]
    methods = [item for item in unpickler.body if isinstance(item, ast.FunctionDef)]
    assert [method.name for method in methods] == ["find_class"]
    # It looks names up in a table: it can neither import nor ask its base to do so.
    text = ast.unparse(methods[0])
    assert not any(word in text for word in ("super", "import", "getattr", "Unpickler"))


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mpiflow", "mpi4py torch numba h5py"),
        (
            "import mpiflow.simulation.ising.simulation, mpiflow.scaleup.spins, mpiflow.files.trajectory",
            "torch pydantic typer",
        ),
        ("import mpiflow.core.lattice", "mpi4py numba numpy"),
    ],
)
def test_imports_are_no_heavier_than_needed(statement: str, absent: str) -> None:
    code = f"import sys; {statement}; print(*(set('{absent}'.split()) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []
