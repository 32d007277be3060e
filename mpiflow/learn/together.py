"""What fronts of learners have in common: one rank learns and saves, all have the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mpiflow.core.errors import InputError
from mpiflow.core.mpi import ALONE
from mpiflow.core.parallel import agreed, world
from mpiflow.files.storage import probe_folder
from mpiflow.learn.devices import learning_on

if TYPE_CHECKING:
    from mpi4py import MPI


class Saved(Protocol):
    """A model."""

    def save(self, directory: str | Path) -> None: ...


M = TypeVar("M", bound=Saved)


def explained_drift(goodness: Mapping[str, Any]) -> str:
    """The share of the predictable drift that a law explains and its error, for a table."""
    share = goodness["explained_drift"]
    # With an error like this the data say nothing of the drift.
    if share is None or not share[1] < 1:
        return "drift explained unknown"
    return f"drift explained {share[0]:.3f}({share[1]:.3f})"


def learned(
    learn: Callable[[], M],
    out: str | Path,
    overwrite: bool,
    comm: MPI.Intracomm | None,
    device: str = "cpu",
) -> M:
    """The model that rank 0 learns and saves, on all ranks; an error of it is one of all.

    One rank is what networks of this size are trained fastest on, and its bits do not depend on
    how many wait.

    Parameters
    ----------
    out : folder; what is wrong with it is said before anything is learned
    device : that networks are trained on

    Raises
    ------
    InputError : on all ranks: no such device, there is a model already, or what ``learn`` raises
    """
    comm, out = comm or world(), Path(out)

    def work() -> M:
        probe_folder(out, files=("model.safetensors", "model.json"))
        if (out / "model.json").exists() and not overwrite:
            remedy = "Use --overwrite to replace it."
            raise InputError("out", str(out), "a folder without a model", remedy)
        model = learn()
        model.save(out)
        return model

    model: M | None = None
    with learning_on(device, comm or ALONE):
        if comm is None or comm.size == 1:
            return work()
        with agreed(comm):
            if comm.rank == 0:
                model = work()
    shared: M = comm.bcast(model)
    return shared
