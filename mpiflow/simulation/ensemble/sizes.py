"""Sizes of runs of systems that are whole on a rank."""

from __future__ import annotations

from collections.abc import Mapping

from mpiflow.core.lattice import Shape
from mpiflow.simulation.ensemble.options import CurieWeissConfig, EnsembleConfig
from mpiflow.simulation.sizes import (
    DOUBLE,
    IMAGES,
    Plan,
    Stored,
    _fixed,
    _numbers,
    _stored,
    frames_of,
    planned,
)


def plan(config: EnsembleConfig, ranks: int) -> Plan:
    """Of systems that are whole on a rank, a single one on every rank."""
    batch = -(-config.members // ranks)
    # Numbers of spins that are down and up, a clock and the flips; or all sites.
    profiles = 8 * config.shape[-1] * len(config.profiles)
    return whole_systems(
        config, ranks, ensemble_memory(config, batch), ensemble_variables(config), profiles or 32
    )


def whole_systems(
    config: EnsembleConfig,
    ranks: int,
    memory: dict[str, int],
    stored: tuple[Stored, ...],
    kept: int,
    steps: str = "events, not steps",
) -> Plan:
    """The plan of systems that are whole on a rank.

    Parameters
    ----------
    memory : bytes of the state and of what advances it, of the rank that has the most
    stored : what the file holds
    kept : bytes of a system in a checkpoint
    steps : in words, where they have no length of their own
    """
    one, shape, dt = config.members == 1, config.shape, config.step
    batch, checkpoint = -(-config.members // ranks), config.members * kept
    profiles = sum(s.frame for s in stored if s.name in config.profiles)
    own = -(-profiles * batch // config.members)
    return planned(
        config,
        ranks,
        memory,
        stored,
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
        steps=steps if dt is None else f"{round(config.time / dt)} of {dt:g}",
        what="systems",
        whole=one,
    )


def ensemble_memory(config: EnsembleConfig, batch: int) -> dict[str, int]:
    """Bytes of the state, of the table of rates of a mean field, and of what makes them at first.

    Measured with tracemalloc.
    """
    if isinstance(config, CurieWeissConfig):
        return {"field": 40 * batch, "numbers of a frame": 32 * batch, "rates": 48 * config.sites}
    row = 8 * (config.shape[-1] + 2) * len(config.profiles)  # with its halo
    return {"field": batch * row, "numbers of a frame": 96 * batch, "scratch": 6 * row}


def ensemble_variables(
    config: EnsembleConfig, packing: Mapping[str, tuple[int, float]] | None = None
) -> tuple[Stored, ...]:
    """What a file of systems that are whole on a rank holds.

    Parameters
    ----------
    packing : of profiles, bytes of a number and what compression leaves of it; 8 and
        :data:`~mpiflow.simulation.sizes.DOUBLE` unless given
    """
    members: Shape = (config.members,) if config.members > 1 else ()
    frames = frames_of(config)
    out = [_numbers(config, "time", (), frames)]
    out += [_numbers(config, name, members, frames) for name in config.scalars]
    along = 0
    if config.saves_profiles:
        along = config.shape[-1]
        for name in config.profiles:
            itemsize, left = (packing or {}).get(name, (8, DOUBLE))
            out.append(_stored(name, (*members, along), itemsize, frames, left / itemsize))
    return (*out, _fixed("coordinates", along + sum(members), 8))
