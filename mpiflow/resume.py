"""Go on with a run from its file: ``mpiflow resume run.h5``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpi4py import MPI

from mpiflow import checkpoint
from mpiflow.alloy_config import AlloyConfig
from mpiflow.config import IsingConfig, RunConfig
from mpiflow.ensemble_config import (
    ChainConfig,
    CurieWeissConfig,
    EnsembleConfig,
    PredatorPreyConfig,
)
from mpiflow.errors import InputError
from mpiflow.field_config import FieldConfig
from mpiflow.kac_config import KacConfig
from mpiflow.parallel import agreed
from mpiflow.trajectory import Trajectory

#: Configurations by what ``system`` says, and what an initial file is replaced by: it may be gone.
#: None for systems that never start from a file.
_SYSTEMS: dict[str, tuple[type[RunConfig], str | None]] = {
    "ising": (IsingConfig, "up"),
    "kac": (KacConfig, "up"),
    "alloy": (AlloyConfig, "random"),
    "onsagerflow": (FieldConfig, "uniform"),
    "linear-chain": (ChainConfig, None),
    "curie-weiss": (CurieWeissConfig, None),
    "predator-prey": (PredatorPreyConfig, None),
}


def resume(
    path: str | Path, comm: MPI.Intracomm | None = None, changes: Mapping[str, Any] | None = None
) -> Path:
    """Go on with a run, on any number of ranks, as if it had never stopped. Collective.

    Parameters
    ----------
    path : the Trajectory; its checkpoints are in ``checkpoints/`` beside it
    changes : options in place of those of the run; ``time`` (or ``hops``) counts from its start

    Raises
    ------
    InputError : on all ranks: there is nothing to go on with, or a change makes no sense
    Stopped : on all ranks, after the next checkpoint
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    changes = dict(changes or {})
    out = Path(path).resolve()
    point = checkpoint.newest(out, comm)
    with agreed(comm):
        if point is not None:
            stored = point.config
        else:
            with Trajectory(path) as trajectory:
                stored = trajectory.config
        config = configuration(stored, out, changes, begun=point is not None)
    if isinstance(config, AlloyConfig):
        from mpiflow.alloy_run import simulate_alloy

        return simulate_alloy(config, comm, changed=changes)
    if isinstance(config, FieldConfig):
        from mpiflow.predict import predict

        return predict(config, comm, changed=changes)
    if isinstance(config, EnsembleConfig):
        from mpiflow.ensemble_run import simulate_ensemble

        return simulate_ensemble(config, comm, changed=changes)
    from mpiflow.run import simulate

    assert isinstance(config, IsingConfig | KacConfig)  # noqa: S101 - for the type checker
    return simulate(config, comm, changed=changes)


def configuration(
    stored: Mapping[str, Any], out: Path, changes: Mapping[str, Any], begun: bool
) -> RunConfig:
    """The configuration of a run from the one in its file, with changes.

    Where it has ``begun``, with a checkpoint, it does not need its initial file any more.
    """
    system = stored.get("system")
    if system not in _SYSTEMS or "out" not in stored:
        remedy = "A run that Python made goes on in Python: see record(point=...)."
        raise InputError("file", str(out), "a run of mpiflow simulate or predict", remedy)
    model, state = _SYSTEMS[str(system)]
    values = {**stored, "overwrite": False, **changes, "out": out, "resume": True}
    kinds = ("shuffled", "random", "up", "gaussian", "uniform")
    if state is not None and begun and values["initial"] not in kinds:
        if not Path(str(values["initial"])).is_file():
            values["initial"] = state
    if "time" in changes and stored.get("hops") is not None:
        raise InputError("time", changes["time"], "hops", "The run counts hops: give --hops.")
    return model(**values)
