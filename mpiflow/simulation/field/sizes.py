"""Sizes of runs of learned fields."""

from __future__ import annotations

import math

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.core.schedule import whole_steps
from mpiflow.simulation.field.options import FieldConfig, describe
from mpiflow.simulation.sizes import (
    IMAGES,
    REAL,
    Plan,
    Stored,
    _fixed,
    _itemsize,
    _kept,
    _numbers,
    _stored,
    frames_of,
    planned,
)
from mpiflow.solvers.field.flips import MOST


def field_memory(
    config: FieldConfig, structure: str, rows: int, batch: int, ranks: int
) -> dict[str, int]:
    """Bytes of the state, of J and of what is needed for a moment.

    Measured with tracemalloc in bytes a block.
    """
    (ny, nx), langevin = config.shape, structure == "langevin"
    blocks, cut = batch * rows * nx, ranks if config.members == 1 else 1
    return {
        "field": (8 if langevin else 4) * blocks,
        "coupling": 8 * ny * -(-(nx // 2 + 1) // cut),
        "means": 8 * blocks,
        # Numbers of the first half of a step, four a block or two, whose memory is kept.
        "first half": (32 if langevin else 16) * blocks,
        # Of a frame: besides what is kept a step needs no more, 16 to 48 bytes.
        "step or frame": (64 if langevin else 48) * blocks,
    }


def field_on_device(structure: str, blocks: int, columns: int) -> dict[str, int]:
    """Bytes on a GPU, as :mod:`mpiflow.solvers.field.cuda` has them, with transforms there.

    Parameters
    ----------
    columns : numbers of the spectrum
    """
    langevin = structure == "langevin"
    return {
        "field": (8 if langevin else 4) * blocks,
        "step": (32 if langevin else 24) * blocks,
        # What goes in and comes out, copies of cuFFT and its room to work.
        "transforms": 40 * blocks,
        "coupling": 8 * columns,
    }


def field_variables(config: FieldConfig, structure: str, frames: int) -> tuple[Stored, ...]:
    """What a file of a learned field holds."""
    members: Shape = (config.members,) if config.members > 1 else ()
    kept = _kept(config.block or 1) if structure == "cosh" else REAL / 4
    name = "coarse_magnetization"
    return (
        _numbers(config, "time", (), frames),
        *(_numbers(config, n, members, frames) for n in ("magnetization", "free_energy")),
        _stored(name, (*members, *config.shape), _itemsize(name), frames, kept),
        _fixed("coordinates", sum(config.shape) + sum(members), 8),
    )


def plan(config: FieldConfig, ranks: int) -> Plan:
    """What a run will need: slabs of rows of blocks, some of them empty if ranks are many."""
    (ny, nx), one, spins = config.shape, config.members == 1, (config.block or 1) ** 2
    structure = config.structure or describe(config.model)["form"]["structure"]
    if structure == "cosh" and spins > MOST:
        allowed = f"at most {math.isqrt(MOST)} sites a side, for cosh"
        raise InputError("block", config.block, allowed, "Use langevin for larger ones.")
    for name in ("save_every",) if config.resume else ("time", "save_every"):
        whole_steps(name, getattr(config, name), config.dt, other="another dt")
    batch = -(-config.members // ranks)
    rows = (ny // ranks, -(-ny // ranks)) if one else (ny, ny)
    checkpoint = config.members * (4 if structure == "cosh" else 8) * ny * nx
    memory = field_memory(config, structure, rows[1], batch, ranks)
    return planned(
        config,
        ranks,
        memory,
        field_variables(config, structure, frames_of(config)),
        on_device=field_on_device(structure, batch * rows[1] * nx, ny * (nx // 2 + 1)),
        own=4 * batch * rows[1] * nx,
        making=0,  # its means are counted: a step needs more
        stacked=1,
        checkpoint=checkpoint,
        # It is made when no step is, and a step has more in memory unless ranks are many.
        gathered=max(0, IMAGES * checkpoint - memory["step or frame"]),
        gathered_as="checkpoint beyond that",
        shape=config.shape,
        grid=(ranks, 1) if one else (1, 1),
        smallest=(rows[0], nx),
        largest=(rows[1], nx),
        kernel=f"{structure} structure",
        steps=f"{round(config.time / config.dt)} of {config.dt:g}",
        unit=f"blocks of {config.block} x {config.block} sites",
        what="fields",
    )
