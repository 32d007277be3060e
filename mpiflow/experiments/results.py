"""What a driver leaves behind: results.json, table.md, figures; and parts kept for a restart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from mpiflow import metrics
from mpiflow._version import __version__
from mpiflow.files import storage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Entry = dict[str, Any]


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


def write(out: Path, text: str, entries: Sequence[Entry]) -> None:
    """Print a driver's tables and write them with its results; on one rank."""
    print(text)
    table_text = text if text.endswith("\n") else text + "\n"
    results = json.dumps(list(entries), indent=2) + "\n"
    storage.write_folder(out, {"table.md": table_text, "results.json": results})


def figure(width: float, height: float) -> Figure:
    """An empty figure that needs no screen; save it with ``savefig(path, dpi=130)``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    empty = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(empty)
    return empty


class Kept:
    """Finished parts of a long piece of work, so that a driver that was stopped goes on.

    A part is a dictionary of arrays in a file of its own. It is taken up again only if the
    facts it depends on are the same, so that a changed option never meets an old result.

    Parameters
    ----------
    directory : where the parts lie, made if needed
    facts : everything that decides the values of the parts, as JSON can hold it
    """

    def __init__(self, directory: str | Path, facts: Mapping[str, Any]) -> None:
        self.directory = Path(directory)
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
