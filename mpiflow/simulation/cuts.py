"""How a run is cut, by which kernel, and into which steps: asked of classes that are not built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, Shape
from mpiflow.core.packed import BAND, WORD_SITES, fits
from mpiflow.simulation.ising.simulation import SpinSimulation
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.options import IsingConfig
from mpiflow.solvers.spins.sublattice import SLICED_SITES


@dataclass
class Ranks:
    size: int


@dataclass
class Unbuilt:
    """What a simulation must know to cut its lattice and to count its steps; no sites."""

    lattice: Lattice
    comm: Ranks
    tile: Shape = ()
    step_length: float | None = None
    time: float = 0.0


def share(layout: Layout, most: bool) -> Shape:
    """Sides of the largest (smallest) tile. Of a layout with many ranks too: without a loop."""
    return tuple(
        unit * (-(-(side // unit) // n) if most else side // unit // n)
        for side, unit, n in zip(layout.lattice.shape, layout.units, layout.ranks_grid, strict=True)
    )


def kernel_of(config: IsingConfig | KacConfig, lattice: Lattice) -> tuple[str, Shape]:
    """Which kernel advances it, and in units of how many sites tiles are cut."""
    if not isinstance(config, IsingConfig):
        return "plain", (1, 1)
    if config.solver == "tiled-nfold":
        tile = config.tile or 64
        if any(n % (2 * tile) for n in lattice.shape):
            raise InputError(
                "tile", tile, f"an even number of times in every side of {lattice.shape}", "Try 32."
            )
        return config.solver, (tile, tile)
    if config.solver == "nfold":
        return config.solver, (1, 1)
    small = config.members > 1 and math.prod(n + 2 for n in lattice.shape) <= SLICED_SITES
    kernel: str = config.kernel
    if kernel == "auto":
        kernel = "packed" if fits(lattice) else "sliced" if small else "plain"
    if kernel == "packed" and not fits(lattice):
        raise InputError(
            "size",
            lattice.shape,
            f"a multiple of {BAND} rows and of {WORD_SITES} columns for the packed kernel",
            "Leave the kernel out.",
        )
    return kernel, (BAND, WORD_SITES) if kernel == "packed" else (1, 1)


def spin_steps(config: IsingConfig | KacConfig) -> tuple[int | None, str]:
    """Number of steps, None where a solver has none of a fixed length, and a word about them."""
    step = config.tau if isinstance(config, KacConfig) else config.dt
    if step is None:
        if isinstance(config, KacConfig) and config.eps is not None:
            return None, f"of {config.eps:g} / the largest rate"
        return None, "events, not steps"
    sweeps = math.isinf(step)
    unbuilt = cast(
        Any, Unbuilt(Lattice(config.size), Ranks(1), step_length=1.0 if sweeps else step)
    )
    # A run that goes on may have made its first steps with another length.
    known = round(config.time / unbuilt.step_length)
    steps = known if config.resume else SpinSimulation.steps_in(unbuilt, config.time, "time")
    SpinSimulation.steps_in(unbuilt, config.save_every, "save_every")
    return steps, "full sweeps" if sweeps else f"of {step:g}"
