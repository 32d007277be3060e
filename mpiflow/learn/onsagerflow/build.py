"""The stochastic field of a learned model, from options."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from mpiflow.core import inputs
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.learn.onsagerflow.model import load_onsagerflow
from mpiflow.simulation.base import Built
from mpiflow.simulation.field.options import FieldConfig, describe
from mpiflow.simulation.field.simulation import FieldSimulation


def build(config: FieldConfig, comm: MPI.Intracomm, point: Checkpoint | None = None) -> Built:
    """The field of a configuration; in its initial state without a checkpoint. Collective."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        sim = _build(config, comm, point is None)
    digest = sim.law["model_sha256"]
    return Built(sim, {"model_sha256": digest}, list(dict.fromkeys(str(w.message) for w in caught)))


def _build(config: FieldConfig, comm: MPI.Intracomm, fresh: bool) -> FieldSimulation:
    with agreed(comm):
        model = load_onsagerflow(config.model)
    if config.structure is not None:
        model = model.with_structure(config.structure)
    field = model.field(
        config.temperature or 0.0,
        config.shape,
        block=config.block or 0,
        merge=config.merge,
        field=config.field,
        dt=config.dt,
        seed=config.seed,
        members=config.members,
        comm=comm,
        device=config.device,
    )
    law = {
        "field": config.field,
        "stretch": config.stretch,
        "model_sha256": inputs.sha256(config.model / "model.safetensors"),
        "model_form": json.dumps(describe(config.model)["form"], sort_keys=True),
    }
    sim = FieldSimulation(field, config.seed, config.members, law)
    if not fresh:
        return sim
    if config.initial == "uniform":
        field.set(config.initial_magnetization)
    else:
        sim.set_means(Path(config.initial), config.moment)
    return sim
