"""Run a learned stochastic field and record it in a Trajectory file: ``mpiflow predict``."""

from __future__ import annotations

import json
import time as clock
import warnings
from collections.abc import Container
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from mpi4py import MPI

from mpiflow.core import inputs
from mpiflow.files import checkpoint
from mpiflow.files.schema import STANDARD, block_centres
from mpiflow.files.trajectory import Value
from mpiflow.run.follow import Content, Walk, beginning, facts_of, follow, keep_of, unchanged
from mpiflow.run.plan import one_line
from mpiflow.run.stopping import say
from mpiflow.simulation.field.options import FieldConfig, describe
from mpiflow.simulation.field.simulation import FieldSimulation


def predict(
    config: FieldConfig, comm: MPI.Intracomm | None = None, *, changed: Container[str] = ()
) -> Path:
    """Run what a configuration says and write its file. Collective.

    Parameters
    ----------
    changed : options that may differ from those of the run that ``config.resume`` goes on with

    Raises
    ------
    InputError
        on all ranks, before the first step and before anything is written
    Stopped
        on all ranks, after a checkpoint: a signal, or the walltime
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    start = clock.monotonic()
    point, overwrite = beginning(config, comm, changed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        sim = build(config, comm, fresh=point is None)
    attributes = _attributes(config, sim)
    facts = facts_of(sim.facts(), attributes)
    facts |= {"field": config.field, "stretch": config.stretch}
    form = json.dumps(describe(config.model)["form"], sort_keys=True)
    facts |= {"model_sha256": attributes["model_sha256"], "model_form": form}
    # Before a file is made.
    schedule = sim.schedule(config.time, config.save_every, begun=point is not None)
    if comm.rank == 0 and not config.quiet:
        print(f"{config.out}: {sim.describe()}\n{config.out}: {one_line(config, comm.size)}")
    if point is not None:
        unchanged(point, facts, changed)
        checkpoint.load(point, sim)
    sim.field.require_state()
    follow(
        Walk(sim, schedule, lambda: sim.time, sim.advance_to, sim.grain, some=sim.advance_some),
        _content(sim, attributes, dict.fromkeys(str(w.message) for w in caught), config.quiet),
        config.out,
        facts=facts,
        point=point,
        keep=keep_of(config),
        overwrite=overwrite,
        writer=config.writer,
        progress=not config.quiet,
        changed=changed,
    )
    if comm.rank == 0 and not config.quiet:
        print(f"{config.out}: to time {sim.time:g} in {clock.monotonic() - start:.1f} s")
    return config.out


def build(config: FieldConfig, comm: MPI.Intracomm, fresh: bool = True) -> FieldSimulation:
    """The field of a configuration, in its initial state if ``fresh``. Collective."""
    # By name: what learns builds on runs, and it needs PyTorch, which takes seconds.
    made = import_module("mpiflow.learn.onsagerflow.build").build(config, comm, fresh)
    return cast(FieldSimulation, made)


def _attributes(config: FieldConfig, sim: FieldSimulation) -> dict[str, Any]:
    return {
        "system": "onsagerflow",
        "config_json": config.model_dump_json(),
        "seed": config.seed,
        "rng": sim.rng,
        "decomposition_invariant": 1,
        "kernel": sim.field.law.structure,
        "model_sha256": inputs.sha256(config.model / "model.safetensors"),
    }


def _content(
    sim: FieldSimulation, attributes: dict[str, Any], remarks: dict[str, None], quiet: bool
) -> Content:
    """Magnetization, free energy and the field itself; ``remarks`` are said with the first frame.

    Where m leaves what was learned it is said once, with the time.
    """
    one, side, box = sim.members == 1, sim.field.block, sim.local_box()
    dims = {} if one else {"member": sim.members}
    ensemble = tuple(dims)
    variables = [STANDARD[name].over(*ensemble) for name in ("magnetization", "free_energy")]
    variables.append(STANDARD["coarse_magnetization"].over(*ensemble, "y", "x"))
    dims |= dict(zip("yx", sim.lattice.shape, strict=True))
    coordinates = {axis: block_centres(dims[axis] * side, side) for axis in "yx"}
    members = () if one else (sim.local_members,)
    inside, blocks = True, sim.members * sim.lattice.sites

    def tell(text: str) -> None:
        if not quiet:
            say(sim.comm, text)

    def frame() -> tuple[float, dict[str, Value], dict[str, Any]]:
        nonlocal inside
        while remarks:
            tell(remarks.popitem()[0])
        if inside and (count := sim.outside()):
            inside = False
            low, high = sim.field.law.range  # type: ignore[attr-defined]
            tell(
                f"at time {sim.time:g} m of {count} of {blocks} blocks is beyond {low:.4g} to "
                f"{high:.4g}, where the law was learned"
            )
        now, m = sim.measure(), sim.field.m
        values: dict[str, Value] = {
            name: value[0] if one else (value, members)
            for name, value in (
                ("magnetization", now.magnetization),
                ("free_energy", now.free_energy),
            )
        }
        values["coarse_magnetization"] = (m[0] if one else m, (*members, *box))
        shown = {"m": float(now.magnetization[0])} if now.magnetization.size else {}
        return now.time, values, shown

    return Content(dims, coordinates, variables, attributes, frame)
