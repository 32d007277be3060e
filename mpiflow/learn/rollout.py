"""``mpiflow predict`` of models of few variables: trajectories from a state, in a file of a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.mpi import ALONE
from mpiflow.core.noise import RNG
from mpiflow.core.packages import explained
from mpiflow.core.parallel import agreed, world
from mpiflow.core.schedule import require_few
from mpiflow.files.schema import CLOCK, STANDARD, Variable
from mpiflow.files.storage import probe
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.learn.models import load_model
from mpiflow.learn.options import RolloutConfig

if TYPE_CHECKING:
    from mpi4py import MPI

#: Frames of a file, at most.
MOST_FRAMES = 10**7
#: Kinds of models that this module runs.
KINDS = ("closure", "ising-closure", "alloy-sro")


def runs_here(model: Any) -> bool:
    """Whether it is a folder with a model that this module runs."""
    return isinstance(model, str | os.PathLike) and kind_of(Path(model)) in KINDS


def kind_of(folder: Path) -> str | None:
    """What model.json calls the model of a folder; None if there is none that says it."""
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return str(about["kind"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def predict(config: RolloutConfig, comm: MPI.Intracomm | None = None) -> Path:
    """Run the model and write the file; returns its path. Collective, by rank 0.

    Raises
    ------
    InputError : on all ranks: no such device, a state or a condition that the model does not know,
        or bad output
    """
    with explained():
        from mpiflow.learn.devices import learning_on
    comm = comm or world() or ALONE
    with learning_on(config.device, comm), agreed(comm):
        if comm.rank == 0:
            _predict(config)
    return config.out


def _predict(config: RolloutConfig) -> None:
    every = config.save_every or config.time / 100
    require_few("save_every", every, config.time, MOST_FRAMES, "frames")
    probe(config.out, overwrite=config.overwrite)
    model = load_model(config.model)
    times = np.arange(math.floor(config.time / every * (1 + 1e-12)) + 1) * every
    kind = kind_of(config.model)
    run = _alloy if kind == "alloy-sro" else _closure
    if config.size is not None and kind != "alloy-sro":
        raise InputError("size", config.size, "no value with a closure", "Leave it out.")
    columns, coordinates = run(config, model, times)
    members = next(iter(columns.values())).shape[1]
    dims = ({"member": members} if members > 1 else {}) | {
        name: len(values) for name, values in coordinates.items()
    }
    variables = []
    for name, values in columns.items():
        known = STANDARD.get(name, Variable(name))
        inner = [*coordinates] if values.ndim == 3 else []
        variables.append(known.over(*(["member"] if members > 1 else []), *inner))
    given = json.loads(config.model_dump_json())
    with TrajectoryWriter(
        config.out,
        dims=dims,
        variables=variables,
        coordinates=coordinates,
        attributes={
            "system": kind,
            "config_json": json.dumps(given | {"save_every": every}),
            "seed": config.seed,
            "rng": RNG,
            "decomposition_invariant": 1,
        },
        time=CLOCK,
        overwrite=config.overwrite,
    ) as writer:
        for i, time in enumerate(times):
            frame = {name: values[i] if members > 1 else values[i, 0]
                     for name, values in columns.items()}  # fmt: skip
            writer.append(float(time), frame)


Columns = tuple[dict[str, np.ndarray], Mapping[str, np.ndarray]]


def _closure(config: RolloutConfig, model: Any, times: np.ndarray) -> Columns:
    """Latents by name, (times, members) each."""
    names = model.sde.names
    given = {n: v for n in ("temperature", "field") if (v := getattr(config, n)) is not None}
    start = _start(config, len(names), ",".join(names), lambda run, at: _latents(model, run, at))
    if start is None:
        remedy = f"Give {','.join(names)} as numbers with commas, or a run."
        raise InputError("initial", None, "a state to start from", remedy)
    if hasattr(model, "context"):
        path, _ = model.rollout(
            start, times, seed=config.seed, dt=config.dt, parameters=given or None
        )
    else:  # of Ising rate classes, for one temperature and field
        known = model.validity["parameters"]
        for name, value in given.items():
            if name in known and value != known[name][0]:
                allowed = f"{known[name][0]:g}, the one of the model"
                raise InputError(name, value, allowed, "Leave it out.")
        if config.dt is not None:
            raise InputError("dt", config.dt, "no value with this model", "Leave it out.")
        path, _ = model.rollout(start, times, seed=config.seed)
    return {name: path[..., i] for i, name in enumerate(names)}, {}


def _latents(model: Any, run: Trajectory, frame: int) -> np.ndarray:
    """Latents of a frame of a run, (members, d)."""
    if not hasattr(model, "observables"):
        spins = run.spins(frame)
        side = model.plan.large
        if spins.shape[-2:] != (side, side):
            allowed = f"a run of {side} x {side} sites with spins"
            raise InputError("initial", str(run.path), allowed, "Use one.")
        return np.asarray(model.encode(spins.reshape(-1, side, side)))
    from mpiflow.learn.closure.series import COARSE, scalars

    if model.autoencoder is not None and not model.patch:
        allowed = "numbers with commas: no run has the statistics of this model"
        raise InputError("initial", str(run.path), allowed, f"Give {','.join(model.names)}.")
    columns = [values[frame] for values in scalars(run, model.observables).values()]
    fields = None
    if model.autoencoder is not None:
        coarse = run.read(COARSE, frame)
        fields = coarse.reshape(-1, *coarse.shape[-2:])
    return np.asarray(model.latents(np.stack(columns, axis=-1), fields))


def _alloy(config: RolloutConfig, model: Any, times: np.ndarray) -> Columns:
    """The order of all pairs, (times, members, 6)."""
    names = ",".join(model.observables)
    start = _start(config, 6, names, lambda run, at: run.read("sro", at).reshape(-1, 6))
    low, high = model.temperatures
    kelvin = config.temperature if config.temperature is not None or low != high else low
    if kelvin is None:
        allowed = f"given, {low:g} to {high:g} K"
        raise InputError("temperature", None, allowed, f"Try {low:g}.")
    for name in ("field", "dt"):
        if getattr(config, name) is not None:
            allowed = "no value with a model of an alloy"
            raise InputError(name, getattr(config, name), allowed, "Leave it out.")
    members = (config.members or 1) if start is None else len(start)
    path, _ = model.rollout(
        kelvin, start, times, size=config.size or model.sites, seed=config.seed, members=members
    )
    return {"sro": path}, {"pair": np.array(model.observables)}


def _start(
    config: RolloutConfig,
    count: int,
    names: str,
    of_run: Callable[[Trajectory, int], np.ndarray],
) -> np.ndarray | None:
    """The state of each member, (members, count); None where nothing is said."""
    text = config.initial
    if text is None:
        if config.initial_frame is not None:
            frame = config.initial_frame
            raise InputError("initial_frame", frame, "no value without a run", "Leave it out.")
        return None
    try:
        row = [float(word) for word in text.split(",")]
    except ValueError:
        row = []
    if row:
        if len(row) != count or not np.isfinite(row).all():
            raise InputError("initial", text, f"{count} finite numbers: {names}", "Give them.")
        return np.tile(row, (config.members or 1, 1))
    frame = -1 if config.initial_frame is None else config.initial_frame
    with Trajectory(text) as run:
        if not -len(run) <= frame < len(run):
            allowed = f"{-len(run)} to {len(run) - 1} of {text}"
            raise InputError("initial_frame", frame, allowed, "Leave it out for the last one.")
        found = of_run(run, frame % len(run))
    members = config.members or len(found)
    if members % len(found):
        allowed = f"a multiple of the {len(found)} members of {text}"
        raise InputError("members", members, allowed, "Leave it out.")
    return np.tile(found, (members // len(found), 1))
