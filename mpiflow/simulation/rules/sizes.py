"""Sizes of runs of spin rules."""

from __future__ import annotations

import math

from mpiflow.core.lattice import Lattice, Layout, Shape
from mpiflow.simulation.lattice import cut
from mpiflow.simulation.rules.options import RuleConfig
from mpiflow.simulation.sizes import (
    IMAGES,
    SPIN,
    Plan,
    Stored,
    _fixed,
    _kept,
    _numbers,
    _stored,
    cut_as,
    frames_of,
    planned,
    share,
)
from mpiflow.simulation.spins import sizes


def plan(config: RuleConfig, ranks: int) -> Plan:
    """What a run will need."""
    lattice, batch, rule = Lattice(config.size), -(-config.members // ranks), config.rule()
    nfold = config.solver == "nfold"
    if nfold:
        sizes.require_one_rank(config, config.solver, ranks)
    layout = Layout(lattice, (1, 1), config.coarse or 1)
    if config.members == 1:
        grid, blocks = config.ranks_grid, config.coarse or 1
        layout = cut(lattice, ranks, ranks_grid=grid, granularity=blocks)
    largest = share(layout, most=True)
    sites, padded = batch * math.prod(largest), batch * math.prod(n + 2 for n in largest)
    memory = {"field": sites, "halo": padded - sites}
    if config.in_site_field:
        memory["fields of sites"] = 8 * math.prod(largest)
    if nfold:
        # A word of a site, the lists with their gaps, and their order while they are made.
        memory["lists of sites"] = 17 * sites
    blocks = 8 * rule.states * sites // config.coarse**2 if config.coarse else 0
    # Bytes of sites, of which compression leaves a part, and the lists of sites in their order.
    whole = lattice.sites * config.members
    return planned(
        config,
        ranks,
        memory,
        _variables(config, rule.states, frames_of(config)),
        own=sites * config.spins + blocks // 2,
        making=sites * (config.spins + bool(config.coarse)) + 2 * blocks,
        checkpoint=math.ceil(SPIN * whole) + 4 * whole * nfold,
        gathered=IMAGES * (whole + 4 * whole * nfold),
        kernel=f"{config.solver} solver, {rule.states} states",
        steps=sizes.steps_of(config, None if nfold else config.dt),
        on_device=memory,
        **cut_as(layout),
    )


def _variables(config: RuleConfig, states: int, frames: int) -> tuple[Stored, ...]:
    """What the file holds."""
    members: Shape = (config.members,) if config.members > 1 else ()
    (ly, lx), coarse, rule = config.size, config.coarse, config.rule()
    driven = () if config.drive is None else config.drive.curves
    out = [_numbers(config, name, (), frames) for name in ("time", *driven)]
    for name in rule.OBSERVABLES:
        several = (states,) if name == "fraction" else ()
        out.append(_numbers(config, name, (*members, *several), frames))
    out.append(_numbers(config, "flips", members, frames))
    axes = states
    if coarse is not None:
        sides, kept = (ly // coarse, lx // coarse), _kept(coarse)
        out.append(_stored("coarse_fraction", (*members, states, *sides), 4, frames, kept))
        axes += sum(sides)
    if config.spins:
        out.append(_stored("site_state", (*members, ly, lx), 1, frames, 2 * SPIN))
        axes += ly + lx
    if config.in_site_field:
        out.append(_fixed("site_field", ly * lx, 8))
        axes += (ly + lx) * (not config.spins)
    return (*out, _fixed("coordinates", axes + sum(members), 8))
