"""One suite for any number of ranks: ``pytest`` or ``mpirun -n R python -m pytest -m mpi``."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import simulator
from mpi4py import MPI

ROOT = Path(__file__).resolve().parent.parent
# Tests that start Python themselves need the helpers, too.
TOOLS = str(ROOT / "tests" / "tools")
os.environ["PYTHONPATH"] = os.pathsep.join([TOOLS, *filter(None, [os.environ.get("PYTHONPATH")])])
WORLD = MPI.COMM_WORLD

# Help is as wide as the terminal: tests read it on one that does not cut words.
os.environ["COLUMNS"] = "100"
# For tests that start mpirun: as root, and with more ranks than cores (the last is Open MPI 5).
for name, value in {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}.items():
    os.environ.setdefault(name, value)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--validate", action="store_true", help="also run the long physics tests")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None):
        # Processes of pytest-xdist must not inherit what MPI_Init put into the environment of this
        # one: their mpirun would take itself for a part of our job. os.environ is as it was.
        now = subprocess.run(["env", "-0"], capture_output=True, text=True, check=True).stdout
        for name in {line.partition("=")[0] for line in now.split("\0")} - {"", *os.environ}:
            os.unsetenv(name)
    launched = next(
        (os.environ[n] for n in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE") if n in os.environ), WORLD.size
    )
    if int(launched) != WORLD.size:
        # Otherwise every rank would run alone and the parallel tests would pass untested.
        pytest.exit(f"started on {launched} ranks, but mpi4py sees {WORLD.size}: two MPIs here?", 4)
    if WORLD.rank > 0:
        # The reporter takes sys.stdout right after this; output of tests is captured as ever.
        log = ROOT / "test-logs" / f"rank{WORLD.rank}.log"
        log.parent.mkdir(exist_ok=True)
        sys.stdout = log.open("w", buffering=1)
    if WORLD.size > 1:
        # pytest-mpi skips what is not marked mpi: tests of one process, which may start ranks.
        config.option.with_mpi, config.option.only_mpi = False, True
        # Ranks that shared pytest's numbered folders would remove each other's.
        made = tempfile.mkdtemp(prefix="mpiflow-tests-") if WORLD.rank == 0 else None
        config.option.basetemp = Path(WORLD.bcast(made)) / f"rank{WORLD.rank}"
    simulator.wait_in_turn()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    validate = config.getoption("--validate")
    for item in items:
        if not validate and item.get_closest_marker("validate"):
            item.add_marker(pytest.mark.skip(reason="long physics: run with --validate"))
    if hasattr(config, "workerinput"):
        items[:] = for_two_processes(items)


def for_two_processes(items: list[pytest.Item]) -> list[pytest.Item]:
    """In an order that leaves neither idle, nor compiling what the other does at the time.

    Each begins with a half, and takes from the other what is left. One has the benchmarks soon,
    and with them the kernels of most systems; the other has the solvers of chains first, and what
    runs all systems only when their kernels are there. The smoke runs of all drivers, the longest
    test, come well before the end.
    """
    parts: dict[str, list[pytest.Item]] = {"solvers": [], "simulation": [], "smoke": [], "": []}
    for item in items:
        folder = item.path.parent.relative_to(ROOT / "tests").parts[:1]
        name = "smoke" if item.name.startswith("test_smoke") else "".join(folder)
        parts[name if name in parts else ""].append(item)
    systems, middle = parts["simulation"], len(items) // 2
    few = max(0, middle - len(parts[""]))
    order = [*parts[""], *systems[:few], *parts["solvers"], *systems[few:]]
    late = 3 * len(order) // 4
    return [*order[:late], *parts["smoke"], *order[late:]]


def pytest_collection_finish() -> None:
    """To look for cycles among all that is imported, and every 700 objects, takes a tenth."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """End all ranks when a test fails on one: the others may wait for it for ever."""
    if report.failed and WORLD.size > 1:
        title = f"rank {WORLD.rank} of {WORLD.size}: {report.nodeid} failed"
        sections = "".join(f"\n--- {name}\n{text}" for name, text in report.sections)
        print(f"\n=== {title}\n{report.longreprtext}{sections}", file=sys.stderr, flush=True)
        time.sleep(1)  # ranks that failed in the same place print their report too
        WORLD.Abort(1)


pytest_collectreport = pytest_runtest_logreport


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A rank that stops for any other reason must not leave the others waiting either."""
    fine = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if WORLD.size == 1:
        return
    if exitstatus not in fine:
        WORLD.Abort(exitstatus)
    WORLD.Barrier()  # nobody uses the folders any more
    if WORLD.rank == 0:
        shutil.rmtree(session.config.option.basetemp.parent, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, None, None]:
    """Print what pytest-mpi says without the NUL byte that Open MPI ends its version with.

    A single one makes ``grep`` and ``less`` take the log of the whole suite for a binary file.
    """
    write = terminalreporter.write

    def printable(content: str, **options: Any) -> None:
        write(content.replace("\0", ""), **options)

    terminalreporter.write = printable  # type: ignore[method-assign]
    try:
        yield
    finally:
        terminalreporter.write = write  # type: ignore[method-assign]


@pytest.fixture(autouse=True, scope="session")
def _no_process_is_measured() -> Iterator[None]:
    """Plans take an interpreter's memory from a table: otherwise every process of the suite would
    start one for each system. Tests of plans have the measurement, in processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpiflow.simulation.sizes.empty_process", lambda module: 250_000_000)
        yield


@pytest.fixture(autouse=True, scope="session")
def _disks_may_be_late() -> Iterator[None]:
    """No test cuts the power, so nothing waits for the disk: on a busy one that took a quarter of
    the time of all systems on four ranks, on a quiet one hardly any. Tests of what happens when
    ``fsync`` fails put one in place of this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture
def comm() -> MPI.Intracomm:
    """All ranks that run the suite."""
    return WORLD


@pytest.fixture
def mpi_tmp_path(mpi_tmp_path: Path) -> Iterator[Path]:
    """The folder of pytest-mpi, rank 0's own: not removed before every rank is done with it."""
    yield mpi_tmp_path
    WORLD.Barrier()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of checks and reference data beside the checkout."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"no {path.name}/ beside the checkout")
    return path


@pytest.fixture
def mpirun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Start ``mpirun -n ranks command...`` as a user would; output is captured, hangs are ended.

    For one-rank tests of whole programs. ``.venv`` programs are given by name: ``python``,
    ``mpiflow``.
    """

    def run(
        ranks: int, *command: str | Path, timeout: float = 240, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        scripts = Path(sys.executable).parent
        # os.environ is what it was at the start: MPI_Init added variables of this process's own
        # job to the real environment, which would confuse the new launcher.
        path = f"{os.environ['PATH']}{os.pathsep}{scripts}"
        one_thread = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        # timeout ends mpirun politely, and mpirun its ranks; killing mpirun would orphan them.
        guard = ["timeout", "-k", "10", str(timeout)]
        return subprocess.run(
            [*guard, "mpirun", "-n", str(ranks), scripts / command[0], *command[1:]],
            env={**os.environ, **one_thread, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=check,
        )

    return run


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel of the Ising model, for ``indirect`` parameters.

    The packed kernel has two forms, with the same bits: "whole" is that for whole lattices of short
    rows, which the small lattices of tests would all take, and "packed" is that for all others.
    """
    from mpiflow.solvers.spins import multispin_whole

    name = str(request.param)
    if name not in ("packed", "whole"):
        return name
    monkeypatch.setattr(multispin_whole, "fits", lambda _: name == "whole")
    return "packed"
