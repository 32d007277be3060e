"""The one-way line of imports, who may communicate, and what no module may do.

A new module needs a place in LAYERS; that is the moment to think about where it belongs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mpiflow"

#: From the ground up: a folder imports from those before it, and from itself.
LAYERS = (
    "_build",
    "_version",
    "core",
    "systems",
    "solvers",
    "metrics",
    "observables",
    "files",
    "initial",
    "simulation",
    "run",
    "scaleup",
    "learn",
    "experiments",
    "commands",
    "cli",
    "__main__",
)

#: Which methods of a communicator a module may call; ANY for those whose work it is.
ANY = frozenset({"*"})
COMMUNICATES = {
    "commands.certify": frozenset({"allgather"}),  # the terms of all states
    "simulation.in_field": frozenset({"allreduce"}),  # what tells a field from another
    "core.slabs": ANY,  # rows around a slab, transposes, sums
    "core.block": ANY,  # halos, sums over tiles, gathered records
    "core.messages": ANY,  # edges and records to neighbours
    "core.boxes": ANY,  # a whole array on one rank
    "core.parallel": ANY,  # ending together
    "core.gpu": frozenset({"Split_type", "Free", "allgather"}),  # who has which GPU
    "core.parts": ANY,  # surroundings, sums and gathered means of what is measured
    "files.writer": ANY,
    "files.checkpoint": ANY,
    "run.simulate": ANY,
    "run.follow": ANY,
    "run.callbacks": frozenset({"allreduce"}),  # whether any rank wants to end
    "simulation.measures": frozenset({"allgather", "bcast"}),  # what a function returns
    "run.stopping": ANY,  # one answer for all ranks
    "run.resume": ANY,
    "run.sweep": ANY,
    "run.progress": ANY,
    "run.plan_time": ANY,
    "commands.bench.spins": ANY,
    "commands.bench.meter": ANY,
    "commands.bench.ranks": ANY,
    "commands.bench.files": frozenset({"bcast", "Barrier"}),  # where files are
    "commands.doctor.ranks": ANY,
    "commands.doctor.files": ANY,
    "commands.doctor.run": ANY,
    "learn.together": frozenset({"bcast"}),  # the model that rank 0 learned
    "learn.training": ANY,  # gradients
    "experiments.ising": ANY,
    "experiments.results": frozenset({"allgather", "bcast"}),  # work dealt to ranks
    "experiments.runs": frozenset({"allreduce", "bcast"}),  # what is kept; seconds of all ranks
    "learn.onsagerflow.increments": frozenset({"allreduce"}),  # sums over increments
    "simulation.spin_diffusion.process": frozenset({"allreduce"}),  # rates beyond their bound
    "simulation.tempering": ANY,  # states that copies exchange
    "simulation.states": frozenset({"allgather"}),  # who gave what
    "simulation.alloy.simulation": frozenset({"gather"}),  # the work of every rank
    "simulation.alloy.state": frozenset({"bcast"}),  # numbers of atoms
    "simulation.alloy.windows": frozenset({"bcast", "allreduce"}),  # rates, ends of windows
}
#: May name communicators, so may import mpi4py, but leave all communication to the above.
TAKES_A_COMMUNICATOR = {
    "simulation.driven_options",
    "simulation.ensemble.front",
    "commands.twins",
    "experiments.equilibrium",
    "experiments.kac_boxes",
    "learn.closure.equilibrium",
    "solvers.lines.predator_prey",
    "commands.bench.alloy",
    "commands.importing.run",
    "commands.bench.kac",
    "commands.bench.learning",
    "commands.bench.field",
    "commands.bench.chains",
    "commands.warmup",
    "simulation.kac.simulation",
    "simulation.ising.simulation",
    "solvers.field.mesoscopic",
    "solvers.field.stochastic",
    "simulation.field.simulation",
    "simulation.ensemble.simulation",
    "simulation.base",
    "simulation.lattice",
    "simulation.catalogue",
    "simulation.rules.build",
    "simulation.rules.simulation",
    "simulation.ising.build",
    "simulation.kac.build",
    "simulation.alloy.build",
    "simulation.spins.build",
    "simulation.spin_diffusion.build",
    "simulation.spin_diffusion.simulation",
    "learn.onsagerflow.build",
    "learn.alloy.data",
    "learn.generator.data",
    "learn.onsagerflow.from_files",
    "learn.goodness",
    "learn.onsagerflow.fit",
    "learn.onsagerflow.net",
    "learn.closure.curie_weiss",
    "learn.closure.from_data",
    "learn.rollout",
    "learn.devices",
    "learn.generator.from_files",
    "learn.alloy.from_files",
    "solvers.lines.batch",
    "solvers.lines.chain",
    "solvers.binary_chain.langevin",
    "solvers.binary_chain.averaged",
    "solvers.binary_chain.mean_field",
    "core.packed",
    "cli",
    "core.guards",
    "run.plan",
    "learn.closure.dataset",
    "learn.closure.model",
}
COMMUNICATORS = {"comm", "cart", "world", "comm_world", "comm_self", "node", "prequest", "request"}

FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
#: May use pickle, as test_the_unpickler_calls_nothing says: the published network is a pickle.
MAY_UNPICKLE = {"simulation.alloy.published_weights"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """Dotted name inside the package; '' for mpiflow/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Of the syntax tree of a file, the whole first."""
    return tuple(ast.walk(ast.parse(path.read_text(), str(path))))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Full names of everything a file imports, also inside functions and for types."""
    found: list[str] = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += (f"{node.module}.{alias.name}" for alias in node.names)
    return tuple(found)


def internal_imports(path: Path) -> Iterator[str]:
    """Names inside the package of the modules that a file imports."""
    for name in imports(path):
        if name.startswith("mpiflow."):
            inside = name.removeprefix("mpiflow.")
            while inside and inside not in MODULES:
                inside = inside.rpartition(".")[0]
            if inside:  # else a public name or __version__ of the package itself
                yield inside


def layer(name: str) -> int:
    top = name.partition(".")[0]
    assert top in LAYERS, f"give mpiflow/{top} a place in LAYERS of tests/test_imports.py"
    return LAYERS.index(top)


#: The module of each file but mpiflow/__init__.py. A law of all modules is one test: to collect
#: one for each of them would take every process of the suite longer than to read the files.
MODULES = {name_of(path): path for path in sources() if name_of(path)}


def test_imports_point_one_way() -> None:
    assert not [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in internal_imports(path)
        if layer(other) > layer(name)
    ]


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {name: set(internal_imports(path)) for name, path in MODULES.items()}
    while graph:
        free = {name for name, others in graph.items() if not others & graph.keys()}
        assert free, f"a circle of imports among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_only_device_compiles() -> None:
    compilers = {"numba", "llvmlite", "cupy"}
    loading = {n for n, p in MODULES.items() if {i.split(".")[0] for i in imports(p)} & compilers}
    assert loading == {"core.device", "core.kernel_cache", "core.machine_code"}


def communications(path: Path) -> Iterator[str]:
    """Methods called on something named like a communicator or request."""
    for node in nodes(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            last = getattr(owner, "attr", getattr(owner, "id", ""))
            if last.lower().strip("_") in COMMUNICATORS:
                yield node.func.attr


def test_only_blocks_and_files_communicate() -> None:
    for name, path in MODULES.items():
        allowed = COMMUNICATES.get(name, frozenset())
        if allowed is not ANY:
            assert set(communications(path)) <= allowed, name
        if not allowed and name not in TAKES_A_COMMUNICATOR | {"core.mpi"}:
            named = ("mpi4py", "mpiflow.core.mpi")
            assert not [n for n in imports(path) if n.startswith(named)], name


def test_only_one_module_loads_mpi() -> None:
    """Others take its ``MPI``, which loads when used: what only reads must run without MPI."""
    loading = set()
    for name, path in MODULES.items():
        for node in nodes(path):
            for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            lines = getattr(node, "body", [])
            for line in lines if isinstance(lines, list) and not for_types else []:
                if isinstance(line, ast.ImportFrom | ast.Import) and "mpi4py" in ast.unparse(line):
                    loading.add(name)
    assert loading == {"core.mpi"}


def test_rules_of_a_system_are_physics_only() -> None:
    allowed = {"__future__", "dataclasses", "math", "numpy", "scipy", "typing", "collections"}
    allowed |= {"bisect", "functools", "itertools", "mpiflow"}
    rules = {name: path for name, path in MODULES.items() if name.startswith("systems.")}
    assert rules
    for name, path in rules.items():
        assert {n.split(".")[0] for n in imports(path)} <= allowed, name


def test_nothing_is_unpickled_or_evaluated() -> None:
    for path in [*sources(), *sorted((ROOT / "drivers").glob("*.py"))]:
        inside = name_of(path) if path.is_relative_to(PACKAGE) else ""
        forbidden = FORBIDDEN_MODULES - ({"pickle"} if inside in MAY_UNPICKLE else set())
        assert not {n.split(".")[0] for n in imports(path)} & forbidden, path
        for node in nodes(path):
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
    path = PACKAGE / f"{name.replace('.', '/')}.py"
    inside = nodes(path)
    assert [n for n in imports(path) if n.split(".")[0] == "pickle"] == ["pickle"]
    assert sum(isinstance(node, ast.Name) and node.id == "pickle" for node in inside) == 1
    classes = [node for node in inside if isinstance(node, ast.ClassDef)]
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
            "from mpiflow import Simulation, Trajectory, upsample",
            "torch pydantic typer",
        ),
        ("import mpiflow.core.lattice", "mpi4py numba numpy"),
        (
            "import mpiflow.cli, mpiflow.run.simulate, mpiflow.simulation.ising.build",
            "torch matplotlib scipy.special scipy.optimize scipy.interpolate scipy.fft",
        ),
        ("import mpiflow.experiments.results", "mpi4py.MPI torch numba matplotlib"),
        ("import mpiflow.learn.models, mpiflow.learn.kernels", "mpi4py.MPI torch numba"),
        (
            "from mpiflow.experiments import alloy, figures, finite_size, short_time, upsampling",
            "torch matplotlib",
        ),
    ],
)
def test_imports_are_no_heavier_than_needed(statement: str, absent: str) -> None:
    code = f"import sys; {statement}; print(*(set('{absent}'.split()) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_no_two_files_of_tests_have_the_same_name() -> None:
    """pytest would refuse to collect both, and with them the whole suite."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
