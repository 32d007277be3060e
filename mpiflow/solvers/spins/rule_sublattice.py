r"""Sublattice-parallel dynamics of any spin rule: the Strang splitting of its generator.

With one sublattice frozen, the sites of the other are independent chains of q states, whose
propagator over a time is exact: in a table (:mod:`~mpiflow.solvers.spins.rule_tables`), or site
by site, of rules of more states than fit one (:mod:`~mpiflow.solvers.spins.rule_compiled`). A step
is :math:`e^{\frac{dt}{2} L_b} e^{dt L_w} e^{\frac{dt}{2} L_b}`: second order in dt in law (Strang,
SIAM J. Numer. Anal. 5, 506 (1968)). What all single sites leave invariant, as the heat bath leaves
the Gibbs measure, every step leaves invariant for every dt. ``dt = inf`` is the checkerboard sweep
of a rule given by weights, black then white.

The state after a step is the state of the block. A half pass that ends a step and the one that
begins the next meet in one loop over the sites where they follow in one call; each draws its own
numbers, so that where a run is cut into calls changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import in_threads, threads
from mpiflow.core.errors import InputError
from mpiflow.core.guards import no_state
from mpiflow.core.lattice import split
from mpiflow.core.noise import stream_key
from mpiflow.solvers.spins import rule_compiled, rule_kernels
from mpiflow.solvers.spins.half_lattice import launch_on
from mpiflow.solvers.spins.rule_tables import check_rule, numbers_of, tabled, thresholds
from mpiflow.solvers.spins.sublattice import BLACK, WHITE, require_two_colours
from mpiflow.systems.rule import SpinRule

#: Numbers of the half passes of a step, the noise counters: black, white, black.
PASSES = 3
#: Sites that keep a thread busy for longer than it takes to start it.
SITES_PER_THREAD = 2**16

#: What to say of a step above :data:`~mpiflow.solvers.spins.sublattice.LONG_STEP`.
LONG_STEP_ERROR = (
    "what is invariant at each site is right at any step, but relaxation is not: 20 after a quench "
    "of the three-state Potts model from disorder to T = 0.8 the energy above the ground state is "
    "2 % too high at dt 1 and 12 % at 2.5, and not by 1 % at 0.5"
)

Part = Literal["half", "full"]


class Pass(NamedTuple):
    """One loop over the sites of a colour; of two half passes in one the second follows."""

    colour: int
    first: int
    times: int
    part: Part


# -- the solver -----------------------------------------------------------------------------


class RuleSublattice:
    """Fixed-step solver for any :class:`~mpiflow.systems.rule.SpinRule`.

    The result is a pure function of (seed, stream, member, step, site): the same bits on any number
    of ranks and threads, and of a rule in a table on CPU and CUDA (CUDA: simulated and assembled,
    not yet run on a GPU). The function of a larger rule runs on the device itself, and bits agree
    where its arithmetic does: products, quotients, comparisons and parameters do, as those of
    Potts; ``exp``, ``cos`` and sums of products need not, nor the logarithms of waiting times.

    Parameters
    ----------
    system : the rule
    dt : time step, above 0; ``math.inf`` for full sweeps, if the rule is given by weights
    """

    name = "sublattice"

    def __init__(self, system: SpinRule, dt: float) -> None:
        check_rule(system)
        if not dt > 0:
            raise InputError("dt", dt, "a number above 0, or inf", "Try 0.25.")
        if math.isinf(dt) and system.by_rate:
            raise InputError(
                "dt", dt, "finite for a rule given by rates: it has no heat bath", "Try 0.25."
            )
        self.system, self.dt = system, float(dt)
        self._rows, self._cuda = rule_kernels.update_rows, rule_kernels.update_cuda
        if not tabled(system):
            self._rows, self._cuda = rule_compiled.kernels(system)
        self._chances: dict[tuple[Part, bool], tuple[Any, ...]] = {}

    def become(self, system: SpinRule) -> None:
        """Go on by the same rule with other parameters."""
        if system != self.system:
            check_rule(system)
            self.system, self._chances = system, {}

    @property
    def time_per_step(self) -> float:
        """``dt``, or 1 for full sweeps."""
        return self.dt if math.isfinite(self.dt) else 1.0

    def advance(
        self,
        block: Block,
        steps: int,
        *,
        seed: int,
        first_step: int = 0,
        stream: str = "rule-sublattice",
    ) -> np.ndarray:
        """Advance every box by ``steps`` whole steps in place.

        The halo must be current and is current again afterwards. The next call may go on from step
        ``first_step + steps``. Collective for ``exchange`` blocks.

        Returns
        -------
        (B,) int64, how often a site changed in each box on this rank: once a half pass at most

        Raises
        ------
        InputError : a site is in no state of the rule, or in a neighbourhood where a rule too
            large to be looked at as a whole returns what is none
        """
        require_two_colours(block)
        self._require_states(block)
        put, key = block.device.put, stream_key(seed, stream)
        box = (block.halo, put(block.origins), put(block.members), *block.lattice.shape, put(key))
        states = self._coding()
        counts = put(np.zeros((block.batch, 2), np.int64))
        for made in self._passes(first_step, steps):
            which = np.uint64(made.first), made.times, made.colour
            chances = self._chances_of(made.part, block)
            self._apply(block, (block.array, *box, *which, *states, *chances), counts)
        changes, faults = np.ascontiguousarray(block.device.get(counts).T)
        with block.agreed():
            if faults.any():
                raise rule_compiled.fault(self.system)
        return changes

    def _require_states(self, block: Block) -> None:
        require_states(block, self.system)

    def _coding(self) -> tuple[int, int]:
        """What says to a kernel how states are stored."""
        return int(self.system.lowest), int(self.system.states)

    def _passes(self, first: int, steps: int) -> Iterator[Pass]:
        for step in range(first, first + steps):
            number = PASSES * step
            if math.isinf(self.dt):
                yield Pass(BLACK, number, 1, "full")
                yield Pass(WHITE, number + 1, 1, "full")
                continue
            if step == first:
                yield Pass(BLACK, number, 1, "half")
            yield Pass(WHITE, number + 1, 1, "full")
            yield Pass(BLACK, number + 2, 1 if step == first + steps - 1 else 2, "half")

    def _chances_of(self, part: Part, block: Block) -> tuple[Any, ...]:
        """What a pass decides by: rows of a table, on the device of a block, or parameters."""
        time = self.dt / 2 if part == "half" else self.dt
        if not tabled(self.system):
            return numbers_of(self.system), time, rule_compiled.threshold(time)
        at = part, block.device.is_cuda
        if at not in self._chances:
            values, around, own = thresholds(self.system, time)
            self._chances[at] = block.device.put(values.reshape(-1)), around, own
        return self._chances[at]

    def _apply(self, block: Block, arguments: tuple[Any, ...], counts: Any) -> None:
        """A pass, and the halo after it."""
        (ny, nx), batch = block.shape, block.batch
        if block.device.is_cuda:
            block.update(partial(launch_on, self._cuda, batch, (*arguments, counts)))
            return
        workers = max(1, min(threads(), batch * ny * nx // SITES_PER_THREAD))
        by_box = batch >= workers  # else each thread has a band of rows of every box
        parts = [split(batch if by_box else ny, workers, i) for i in range(workers)]
        each = np.zeros((workers, batch, 2), np.int64)
        work = []
        for part, mine in zip(parts, each, strict=True):
            share = (part, (0, ny)) if by_box else ((0, batch), part)
            work.append(partial(self._rows, *arguments, *share, mine))
        in_threads(work)
        counts += each.sum(axis=0)
        block.fill_halo()


def require_states(block: Block, system: SpinRule) -> None:
    """Raise, on the ranks of all tiles, unless every site is in a state of the rule. Collective."""
    if block.halo < system.halo:
        raise InputError("halo", block.halo, f"{system.halo} or more", "Make a block with it.")
    with block.agreed():
        check_states(block, system)


def check_states(block: Block, system: SpinRule) -> None:
    """Raise unless every site of this block is in a state of the rule. Without communication."""
    host = block.host()
    if host.dtype != np.int8:
        raise InputError("states", str(host.dtype), "an array of int8", "Make the block so.")
    lowest, highest = int(system.values[0]), int(system.values[-1])
    if host.size and not (lowest <= host.min() and host.max() <= highest):
        inner = block.inner(host)
        if (inner == system.unset).all():
            raise no_state("Set the states first.")
        wrong = host[(host < lowest) | (host > highest)][0].item()
        allowed = f"whole numbers from {lowest} to {highest}"
        raise InputError("states", wrong, allowed, "Look at the initial state.")
