"""Sizes of runs of systems that are whole on a rank."""

from __future__ import annotations

from mpiflow.core.lattice import Shape
from mpiflow.simulation.ensemble.options import CurieWeissConfig, EnsembleConfig
from mpiflow.simulation.sizes import (
    DOUBLE,
    IMAGES,
    Plan,
    Stored,
    _fixed,
    _itemsize,
    _numbers,
    _stored,
    frames_of,
    planned,
)


def plan(config: EnsembleConfig, ranks: int) -> Plan:
    """Of systems that are whole on a rank, a single one on every rank."""
    one, shape = config.members == 1, config.shape
    batch, dt = -(-config.members // ranks), config.step
    # Numbers of spins that are down and up, a clock and the flips; or all sites.
    profiles = 8 * shape[-1] * len(config.profiles)
    checkpoint = config.members * (profiles or 32)
    own = batch * profiles * config.saves_profiles
    return planned(
        config,
        ranks,
        ensemble_memory(config, batch),
        ensemble_variables(config, frames_of(config)),
        own=own,
        making=own,
        checkpoint=checkpoint,
        gathered=IMAGES * checkpoint,
        shape=shape,
        grid=(1,) * len(shape),
        smallest=shape,
        largest=shape,
        members_here=(1, 1) if one else (config.members // ranks, batch),
        kernel=config.moves,
        steps="events, not steps" if dt is None else f"{round(config.time / dt)} of {dt:g}",
        what="systems",
        whole=one,
    )


def ensemble_memory(config: EnsembleConfig, batch: int) -> dict[str, int]:
    """Bytes of the state, and of the table of rates of a mean field."""
    if isinstance(config, CurieWeissConfig):
        return {"field": 40 * batch, "rates": 16 * config.sites}
    row = 8 * (config.shape[-1] + 2) * len(config.profiles)  # with its halo
    return {"field": batch * row, "scratch": 2 * row}


def ensemble_variables(config: EnsembleConfig, frames: int) -> tuple[Stored, ...]:
    """What a file of systems that are whole on a rank holds."""
    members: Shape = (config.members,) if config.members > 1 else ()
    out = [_numbers(config, "time", (), frames)]
    out += [_numbers(config, name, members, frames) for name in config.scalars]
    along = 0
    if config.saves_profiles:
        along = config.shape[-1]
        for name in config.profiles:
            out.append(_stored(name, (*members, along), _itemsize(name), frames, DOUBLE / 8))
    return (*out, _fixed("coordinates", along + sum(members), 8))
