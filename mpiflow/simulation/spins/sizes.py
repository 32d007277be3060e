"""Sizes of runs of spins, whatever their kernel."""

from __future__ import annotations

import math

from mpiflow.core.device import threads
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Layout, Shape
from mpiflow.core.schedule import whole_steps
from mpiflow.simulation.options import RunConfig
from mpiflow.simulation.sizes import (
    IMAGES,
    SPIN,
    Plan,
    Stored,
    _fixed,
    _itemsize,
    _kept,
    _numbers,
    _stored,
    cut_as,
    frames_of,
    planned,
    share,
)
from mpiflow.simulation.spins.options import SpinConfig


def require_one_rank(config: RunConfig, solver: str, ranks: int) -> None:
    """Refuse a lattice of an exact solver that would be cut."""
    if config.members == 1 and ranks > 1:
        allowed = f"1 for a lattice with the {solver} solver"
        raise InputError("ranks", ranks, allowed, "Use one rank.")


def steps_of(config: RunConfig, step: float | None, without: str = "events, not steps") -> str:
    """How many steps of one length, or what there is ``without`` such."""
    if step is None:
        return without
    sweeps = math.isinf(step)
    length = 1.0 if sweeps else step
    # A run that goes on may have made its first steps with another length.
    known = round(config.time / length)
    steps = known if config.resume else whole_steps("time", config.time, length)
    whole_steps("save_every", config.save_every, length)
    return f"{steps} full sweeps" if sweeps else f"{steps} of {step:g}"


def spin_variables(config: SpinConfig, frames: int) -> tuple[Stored, ...]:
    """What a file of spins holds."""
    members: Shape = (config.members,) if config.members > 1 else ()
    (ly, lx), coarse = config.size, config.coarse
    driven = () if config.drive is None else config.drive.curves
    out = [_numbers(config, name, (), frames) for name in ("time", *driven)]
    for name in ("magnetization", "energy", "domain_wall_density", "flips"):
        out.append(_numbers(config, name, members, frames))
    axes = 0
    if coarse is not None:
        sides = ly // coarse, lx // coarse
        name, kept = "coarse_magnetization", _kept(coarse)
        out.append(_stored(name, (*members, *sides), _itemsize(name), frames, kept))
        axes += sum(sides)
    if config.spins:
        out.append(_stored("spin", (*members, ly, lx), _itemsize("spin"), frames, SPIN))
        axes += ly + lx
    if config.spin_bits:
        out.append(_stored("spin_bits", (*members, ly, lx // 8), 1, frames))
        axes += ly * (not coarse or coarse > 1) + lx // 8
    if config.in_site_field:
        out.append(_fixed("site_field", ly * lx, 8))
        axes += (ly + lx) * (not config.spins)
    return (*out, _fixed("coordinates", axes + sum(members), 8))


def plan(
    config: SpinConfig,
    ranks: int,
    layout: Layout,
    memory: dict[str, int],
    *,
    kernel: str,
    steps: str,
    on_device: dict[str, int],
    order: int = 0,
) -> Plan:
    """The plan of a run of spins.

    Parameters
    ----------
    layout : how it is cut
    memory : bytes of the state and of what advances it
    kernel, steps : in words
    on_device : bytes on a GPU, if the run computes there
    order : bytes of a site that a checkpoint keeps besides
    """
    lattice, batch = layout.lattice, -(-config.members // ranks)
    here = math.prod(share(layout, most=True)) * batch
    blocks = here // config.coarse**2 if config.coarse else 0
    checkpoint = config.members * lattice.shape[0] * -(-lattice.shape[1] // 8)
    checkpoint += order * lattice.sites * config.members
    workers = threads() if kernel.endswith("packed kernel") and config.device == "cpu" else 1
    return planned(
        config,
        ranks,
        memory,
        spin_variables(config, frames_of(config)),
        own=here * config.spins + 4 * blocks,
        making=here * config.spins + 16 * blocks,
        checkpoint=checkpoint,
        gathered=IMAGES * checkpoint,
        kernel=f"{kernel}, {workers} thread{'s' * (workers > 1)}",
        steps=steps,
        on_device=on_device,
        **cut_as(layout),
    )
