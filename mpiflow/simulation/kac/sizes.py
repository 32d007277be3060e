"""Sizes of runs of Kac spins."""

from __future__ import annotations

from mpiflow.core.lattice import Lattice
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.lattice import cut_rows
from mpiflow.simulation.sizes import Plan, share
from mpiflow.simulation.spins import sizes
from mpiflow.solvers.kac.walks import TOGETHER
from mpiflow.systems.kac import kac_kernel


def plan(config: KacConfig, ranks: int) -> Plan:
    """What a run will need."""
    one, batch = config.members == 1, -(-config.members // ranks)
    if config.solver == "gillespie":
        sizes.require_one_rank(config, config.solver, ranks)
    layout = cut_rows(Lattice(config.size), ranks if one else 1, config.coarse or 1)
    ny, nx = share(layout, most=True)
    sites = batch * ny * nx
    memory = {"field": sites, "halo": batch * (ny + 2) * (nx + 2) - sites}
    memory["fields of sites"] = _kac_memory(config, ny, nx, batch)
    step = None if config.solver == "gillespie" else config.tau
    leaps = "" if config.eps is None else f"of {config.eps:g} / the largest rate"
    return sizes.plan(
        config,
        ranks,
        layout,
        memory,
        on_device=_on_device(config, ny, nx, batch),
        kernel=f"{config.solver} solver, gamma {config.gamma:g}",
        steps=sizes.steps_of(
            config,
            step,
            leaps or "events, not steps",
        ),
    )


def _on_device(config: KacConfig, ny: int, nx: int, batch: int) -> dict[str, int]:
    """As :class:`mpiflow.solvers.kac.cuda.CudaSites` has them."""
    kernel, sites = kac_kernel(config.gamma), batch * ny * nx
    around = 2 * kernel.reach + TOGETHER
    sums = batch * (ny + around) * nx + 4 * sites
    if not kernel.nearest:
        sums += 2 * batch * (nx + around) * ny
    state = batch * (ny + 2) * (nx + 2)
    there = {"field": state, "sums": sums, "fields of sites": 4 * ny * nx * config.in_site_field}
    if config.solver == "midpoint":
        there["midpoint"] = state + 4 * sites
    return there


def _kac_memory(config: KacConfig, ny: int, nx: int, batch: int) -> int:
    """The spins in reach, sums over neighbours and external fields."""
    sites = batch * ny * nx
    padded = batch * (ny + 2 * kac_kernel(config.gamma).reach) * nx
    external = 12 * ny * nx * config.in_site_field
    if config.solver == "gillespie":
        # The most is needed once, at the start, while the sums over neighbours are made. What is
        # kept of a site, its spin, sum and rate, takes 9 bytes of these.
        return 25 * sites + 4 * ny * nx + external
    band = 4 * min(sites, max(2**21, batch * 128 * nx))
    if config.method == "fft":
        band = 40 * sites
    kept = 4 * sites if config.solver == "midpoint" or config.eps is not None else 0
    return padded * (2 if config.solver == "midpoint" else 1) + band + kept + external
