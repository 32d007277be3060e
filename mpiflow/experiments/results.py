"""What drivers share: their work dealt to ranks, and what they leave. Needs no torch.

A driver leaves results.json, table.md and figures in its directory, and parts by which it goes on
after it was stopped.
"""

from __future__ import annotations

import atexit
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from zipfile import BadZipFile

import numpy as np

from mpiflow import metrics
from mpiflow._version import __version__
from mpiflow.core import gpu
from mpiflow.core.errors import InputError
from mpiflow.core.packages import explained
from mpiflow.core.parallel import agreed, end_on_signals
from mpiflow.experiments import pages
from mpiflow.files import storage
from mpiflow.run.progress import Progress

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiflow.files.writer import TrajectoryWriter

#: One quantity of results.json, as :func:`entry` makes it.
Entry = dict[str, Any]
T = TypeVar("T")
#: What was found for each task.
Results = dict[Any, T]


def results_directory(path: str | Path, comm: MPI.Intracomm, device: str = "cpu") -> Path:
    """Make a driver's directory for results before the work begins. Collective.

    From here on the program computes on the device, if there is one, and a signal ends the driver
    with one line.

    Raises
    ------
    InputError : on all ranks: no such device, no such directory, or no matplotlib for a driver that
        draws; nothing is written
    """
    path = Path(path)
    needs = [gpu.kernels]
    if "torch" in sys.modules:  # which drivers that learn have loaded, and no others
        from mpiflow.learn import devices

        needs.append(devices.gpus)
    gpu.choose(device, comm, needs)
    with agreed(comm), explained():
        if comm.rank == 0 and "mpiflow.experiments.style" in sys.modules:
            importlib.import_module("matplotlib")  # else it would be missed after hours, at the end
    end_on_signals(f"ended before the results were complete; what is finished is in {path}")
    with agreed(comm):
        if comm.rank == 0:
            storage.probe_folder(path, files=("table.md", "results.json"))
            storage.write_folder(path, {})
    return path


def entry(
    quantity: str,
    ours: float | np.ndarray | Sequence[float],
    *,
    stderr: float | None = None,
    published: float | None = None,
    exact: float | None = None,
) -> Entry:
    """One entry of results.json; ``ours`` may be the values of several seeds.

    Of several values the mean is taken and, unless ``stderr`` is given, its standard error.
    What is no finite number is null.
    """
    values = np.atleast_1d(np.asarray(ours, float))
    error = metrics.standard_error(values) if stderr is None and values.size > 1 else stderr

    def number(value: float | None) -> float | None:
        return None if value is None or not np.isfinite(value) else float(value)

    return {
        "quantity": quantity,
        "ours": number(values.mean()),
        "stderr": number(error),
        "published": number(published),
        "exact": number(exact),
    }


def with_error(values: np.ndarray | Sequence[float], form: str = ".5f") -> str:
    """Mean and standard error over seeds, as text."""
    values = np.asarray(values, float)
    error = metrics.standard_error(values) if values.size > 1 else np.nan
    mean = f"{values.mean():{form}}"
    return mean if np.isnan(error) else f"{mean} ± {error:{form}}"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


class Report:
    """What a driver found, as it will stand in table.md and results.json.

    Parameters
    ----------
    out : the driver's directory

    Attributes
    ----------
    entries : of results.json, in order
    lines : of table.md, in order
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.entries: list[Entry] = []
        self.lines: list[str] = []

    def add(
        self,
        quantity: str,
        ours: float | np.ndarray | Sequence[float],
        stderr: float | None = None,
        *,
        published: float | None = None,
        exact: float | None = None,
    ) -> None:
        """One more :func:`entry`."""
        self.entries.append(entry(quantity, ours, stderr=stderr, published=published, exact=exact))

    def say(self, text: str) -> None:
        """One more paragraph, or a table that was made by :func:`table`."""
        text = text.rstrip("\n")
        self.lines += ["", text] if self.lines else [text]

    def table(self, *titles: str) -> None:
        """Begin a table, whose rows follow."""
        self.say(table(titles, []))

    def row(self, *cells: str) -> None:
        """One more row of the table begun last."""
        self.lines.append("| " + " | ".join(cells) + " |")

    def write(self) -> None:
        """Print the tables and write them with the entries; on one rank."""
        text = "\n".join(self.lines) + "\n"
        print(text)
        results = json.dumps(self.entries, indent=2) + "\n"
        storage.write_folder(self.out, {"table.md": text, "results.json": results})
        atexit.register(_show, self.out)  # once there are pictures, too


def _show(folder: Path) -> None:
    """One page with all that a driver left, where the libraries for it are there."""
    with suppress(InputError, OSError):
        if folder.is_dir():
            text = pages.page(folder.name, pages.of_results(folder))
            storage.write_folder(folder, {pages.PAGE: text})


def trajectory(
    path: str | Path,
    system: str,
    config: Mapping[str, Any],
    seed: int,
    *,
    rng: str | None = None,
    **about: Any,
) -> TrajectoryWriter:
    """A Trajectory file of frames that a driver has made, on one rank, over an older one.

    Its random numbers are those of sites unless ``rng`` names others; ``about`` are dimensions,
    variables and what else :class:`~mpiflow.files.writer.TrajectoryWriter` takes.
    """
    from mpiflow.core.noise import RNG
    from mpiflow.files.writer import TrajectoryWriter

    attributes = {"system": system, "config_json": json.dumps(config), "seed": seed}
    attributes |= {"rng": rng or RNG, "decomposition_invariant": 1}
    return TrajectoryWriter(path, attributes=attributes, overwrite=True, **about)


class FinishedParts:
    """Finished parts of a long piece of work, so that a driver that was stopped goes on.

    A part is a dictionary of arrays in a file of its own. It is taken up again only if the
    facts it depends on are the same, so that a changed option never meets an old result.

    Parameters
    ----------
    directory : where the parts lie, made if needed
    facts : everything that decides the values of the parts, as JSON can hold it; a GPU does, on
        which networks have other bits
    """

    def __init__(self, directory: str | Path, facts: Mapping[str, Any]) -> None:
        self.directory = Path(directory)
        here = {"device": gpu.chosen().name} if gpu.chosen().is_cuda else {}
        facts = {name: value for name, value in facts.items() if name != "device"} | here
        self.facts = json.dumps({**facts, "mpiflow": __version__}, sort_keys=True, default=str)

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.npz"

    def get(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of a part; None if it is not there, is damaged or has other facts."""
        try:
            with np.load(self._path(name), allow_pickle=False) as file:
                if str(file["facts"]) != self.facts:
                    return None
                return {key: file[key] for key in file.files if key != "facts"}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return None

    def put(self, name: str, **arrays: np.ndarray | float) -> None:
        """Keep a part; it is there whole or not at all."""
        self.directory.mkdir(parents=True, exist_ok=True)
        facts = np.array(self.facts)
        storage.commit(
            self._path(name), lambda file: np.savez(file, allow_pickle=False, facts=facts, **arrays)
        )


def farm(
    tasks: Sequence[Any],
    work: Callable[[Any], T],
    comm: MPI.Intracomm,
    kept: FinishedParts | None = None,
    label: str = "",
) -> Results[T]:
    """``{task: work(task)}`` on every rank; task i runs on rank i modulo ranks. Collective.

    Parameters
    ----------
    kept : where results are kept, which must be dictionaries of arrays or numbers then, and
        taken from if they are there
    label : of a line of progress, which counts the tasks of rank 0
    """

    def done(task: Any) -> Any:
        if kept is None:
            return work(task)
        name = "-".join(map(str, task)) if isinstance(task, tuple) else str(task)
        result = kept.get(name)
        if result is None:
            kept.put(name, **work(task))  # type: ignore[arg-type]
            result = kept.get(name)  # the same types, new or old
        if result is None:
            raise OSError(f"{kept.directory}: {name} could not be read back")
        return result

    mine: dict[Any, Any] = {}
    share = tasks[comm.rank :: comm.size]
    with Progress(max(1, len(share)), label, comm) if label else nullcontext() as progress:
        for task in share:
            mine[task] = done(task)
            if progress is not None:
                progress.update(len(mine))
    everywhere = comm.allgather(mine)
    return {task: everywhere[i % comm.size][task] for i, task in enumerate(tasks)}


def once(
    name: str,
    make: Callable[[], dict[str, np.ndarray] | None],
    comm: MPI.Intracomm,
    kept: FinishedParts | None,
) -> dict[str, np.ndarray] | None:
    """Arrays on rank 0, None on the others; made by all ranks unless they are kept. Collective.

    Parameters
    ----------
    make : collective; returns arrays on rank 0 and None on the others
    """
    found = kept.get(name) if kept is not None and comm.rank == 0 else None
    if comm.bcast(found is not None):
        return found
    made = make()
    if kept is not None and made is not None:
        kept.put(name, **made)
    return made


def reporter(
    progress: Progress, before: float, amount: float, **facts: Any
) -> Callable[[float], None]:
    """A function that reports the share, 0 to 1, that is done of one piece of the whole work.

    The piece begins after ``before`` of the whole and is ``amount`` of it; ``facts`` are shown.
    """

    def report(share: float) -> None:
        progress.update(before + share * amount, **facts)

    return report
