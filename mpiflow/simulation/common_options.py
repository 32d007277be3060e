"""Options that several systems have, each written here once.

Each name makes the option of that name, ``size: Sides = common.size()``; a system says in keywords
of :func:`~mpiflow.simulation.options.option` what is different there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from mpiflow.simulation.options import FRAMES, option

size = partial(
    option,
    default=...,
    description="Sites a side, or LYxLX.",
    metavar="SIZE",
    allowed="a number of sites a side, or LYxLX",
    remedy="Try 64, or 64x128.",
)
temperature = partial(
    option, default=..., description="Temperature in units of J / k_B.", gt=0, remedy="Try 1."
)
field = partial(option, default=0.0, description="External field h.", remedy="Try 0.1.")
coupling = partial(
    option, default=1.0, description="Coupling J: 1 is the ferromagnet, -1 the antiferromagnet."
)
#: The time step of spins: a finite one, or full sweeps.
dt = partial(
    option,
    default=None,
    gt=0,
    allow_inf_nan=True,
    allowed="a number above 0, or inf",
    remedy="Try 0.25.",
)
time = partial(
    option,
    default=...,
    description="Time to simulate, in attempts per spin.",
    gt=0,
    remedy="Try 10.",
)
save_every = partial(
    option,
    default=None,
    description="Time between saved frames.",
    shown=f"a {FRAMES}th of the time, in whole steps",
    gt=0,
    remedy="Try 1.",
)
coarse = partial(
    option,
    default=None,
    shown="none",
    ge=1,
    allowed="a divisor of every side of the lattice",
    remedy="Try 8.",
)
initial_magnetization = partial(option, default=0.0, ge=-1, le=1, remedy="Try 0.5.")
ranks_grid = partial(
    option,
    default=None,
    description="Ranks along y and x.",
    metavar="NY,NX",
    shown="the shortest boundaries",
    allowed="two positive numbers NY,NX whose product is the number of ranks",
    remedy="Leave it out to let mpiflow choose.",
)


def initial(kinds: Sequence[str], description: str, file: str = "the path of a file") -> Any:
    """The initial state: one of some kinds, the first unless given, or a file."""
    return option(
        kinds[0],
        description,
        metavar=f"{kinds[0] if len(kinds) == 1 else 'KIND'}|PATH",
        allowed=f"{', '.join(kinds)}, or {file}",
    )
