r"""Sublattice-parallel dynamics of any spin rule: the Strang splitting of its generator.

With one sublattice frozen, the sites of the other are independent chains of q states, whose
propagator over a time is exact and in a table (:mod:`~mpiflow.solvers.spins.rule_tables`). One
step is
:math:`e^{\frac{dt}{2} L_b} e^{dt L_w} e^{\frac{dt}{2} L_b}`: second order in dt in law (Strang,
SIAM J. Numer. Anal. 5, 506 (1968)). What all single sites leave invariant, as the heat bath leaves
the Gibbs measure, every step leaves invariant for every dt. ``dt = inf`` is the checkerboard sweep
of a rule given by weights, black then white.

The state after a step is the state of the block. A half pass that ends a step and the one that
begins the next meet in one loop over the sites where they follow in one call; each draws its own
numbers, so that where a run is cut into calls changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import CudaKernel, in_threads, kernel, threads
from mpiflow.core.errors import InputError
from mpiflow.core.guards import no_state
from mpiflow.core.lattice import split
from mpiflow.core.noise import stream_key, threefry
from mpiflow.solvers.spins.heatbath import _fill_words
from mpiflow.solvers.spins.rule_tables import Rows, check_rule, thresholds
from mpiflow.solvers.spins.sublattice import BLACK, WHITE, _require_two_colours
from mpiflow.systems.rule import SpinRule

#: Numbers of the half passes of a step, the noise counters: black, white, black.
PASSES = 3
#: Sites that keep a thread busy for longer than it takes to start it.
SITES_PER_THREAD = 2**16

Part = Literal["half", "full"]


class Pass(NamedTuple):
    """One loop over the sites of a colour; of two half passes in one the second follows."""

    colour: int
    first: int
    times: int
    part: Part


# -- kernels --------------------------------------------------------------------------------


@kernel
def renewed(own: int, word: np.uint64, thresholds: np.ndarray, states: int, row: int) -> int:
    """The state, counted from 0, after a trial that a random word decides."""
    # Unsigned: Numba then leaves out the test for negative indices.
    at, last = np.uint64(row) * np.uint64(states), np.uint64(states - 1)
    value = word >> np.uint64(1)
    if value >= thresholds[at + last]:
        return own
    new = 0
    for state in range(states - 1):
        new += int(value >= thresholds[at + np.uint64(state)])
    return new


@kernel
def _update_row(
    north: np.ndarray,
    row: np.ndarray,
    south: np.ndarray,
    count: int,
    words: np.ndarray,
    lowest: int,
    states: int,
    thresholds: np.ndarray,
    around: int,
    by_own: int,
) -> np.int64:
    """A trial of the sites 1, 3, 5, ... of `row`; returns how many changed."""
    q, changes = states, np.int64(0)
    offset = lowest * (q * q * q + q * q + q + 1)
    for j in range(count):
        # Unsigned: Numba then leaves out the test for negative indices.
        west = np.uint64(2 * j)
        x = west + np.uint64(1)
        near = (np.int64(north[x]) * q + row[west]) * q + row[x + np.uint64(1)]
        near = near * q + south[x] - offset
        own = np.int64(row[x]) - lowest
        new = renewed(own, words[np.uint64(j)], thresholds, q, near * around + own * by_own)
        row[x] = new + lowest
        changes += np.int64(new != own)
    return changes


@kernel
def update_rows(
    field: np.ndarray,
    halo: int,
    origins: np.ndarray,
    members: np.ndarray,
    ly: int,
    lx: int,
    key: np.ndarray,
    first: np.uint64,
    passes: int,
    colour: int,
    lowest: int,
    states: int,
    thresholds: np.ndarray,
    around: int,
    by_own: int,
    boxes: tuple[int, int],
    rows: tuple[int, int],
    changes: np.ndarray,
) -> None:
    """Passes of one colour over a range of boxes and rows; adds the changes of each box.

    Nothing of the other colour changes in between, so that a row may have all passes at once.
    """
    nx = field.shape[2] - 2 * halo
    words = np.empty((2 * passes, nx // 2 + 2), np.uint64)
    for b in range(boxes[0], boxes[1]):
        box_key = key[0], key[1] + members[b]
        # A box may run over the periodic edge: take the stretches of columns
        # that are contiguous in the lattice one after the other.
        ix = 0
        while ix < nx:
            gx = (origins[b, 1] + ix) % lx
            width = min(nx - ix, lx - gx)
            left = gx >> 1
            filled = -1
            for iy in range(rows[0], rows[1]):
                gy = (origins[b, 0] + iy) % ly
                skip = (gx + gy + colour) & 1
                start = ix + skip + halo - 1
                count = (width - skip + 1) // 2
                for k in range(passes):
                    if gy >> 1 != filled:
                        counter = np.uint64(gy >> 1) << np.uint64(32)
                        drawn = ((gx + width - 1) >> 1) - left + 1
                        _fill_words(
                            box_key,
                            first + np.uint64(k),
                            counter,
                            left,
                            drawn,
                            words[2 * k],
                            words[2 * k + 1],
                        )
                    changes[b] += _update_row(
                        field[b, iy + halo - 1, start:],
                        field[b, iy + halo, start:],
                        field[b, iy + halo + 1, start:],
                        count,
                        words[2 * k + (gy & 1), ((gx + skip) >> 1) - left :],
                        lowest,
                        states,
                        thresholds,
                        around,
                        by_own,
                    )
                filled = gy >> 1
            ix += width


@CudaKernel
def update_cuda(cuda: Any) -> Callable[..., None]:
    def update(
        field: Any,
        halo: int,
        origins: Any,
        members: Any,
        ly: int,
        lx: int,
        key: Any,
        first: Any,
        passes: int,
        colour: int,
        lowest: int,
        states: int,
        thresholds: Any,
        around: int,
        by_own: int,
        changes: Any,
    ) -> None:
        """One thread for each site of the colour; same bits as the CPU kernel."""
        i = cuda.grid(1)
        ny, nx = field.shape[1] - 2 * halo, field.shape[2] - 2 * halo
        half = (nx + 1) // 2
        if i < field.shape[0] * ny * half:
            b, iy, j = i // (ny * half), i // half % ny, i % half
            gy = (origins[b, 0] + iy) % ly
            ix = 2 * j + ((origins[b, 1] % lx + gy + colour) & 1)
            if ix < nx:
                gx = (origins[b, 1] + ix) % lx
                counter = (np.uint64(gy >> 1) << np.uint64(32)) | np.uint64(gx >> 1)
                q, y, x = states, iy + halo, ix + halo
                near = np.int64(field[b, y - 1, x]) - lowest
                near = near * q + field[b, y, x - 1] - lowest
                near = near * q + field[b, y, x + 1] - lowest
                near = near * q + field[b, y + 1, x] - lowest
                own = np.int64(field[b, y, x]) - lowest
                for k in range(passes):
                    even, odd = threefry(key[0], key[1] + members[b], first + np.uint64(k), counter)
                    word = np.uint64(odd if gy & 1 else even)  # the simulator has Python ints
                    value, at = word >> np.uint64(1), (near * around + own * by_own) * q
                    if value < thresholds[at + q - 1]:
                        new = np.int64(0)
                        while value >= thresholds[at + new]:
                            new += 1
                        if new != own:
                            cuda.atomic.add(changes, b, 1)
                        own = new
                field[b, y, x] = own + lowest

    return update


# -- the solver -----------------------------------------------------------------------------


class RuleSublattice:
    """Fixed-step solver for any :class:`~mpiflow.systems.rule.SpinRule`.

    The result is a pure function of (seed, stream, member, step, site): the same bits on any number
    of ranks and threads, on CPU and CUDA (CUDA: simulated and assembled, not yet run on a GPU).

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
        self._rows: dict[tuple[Part, bool], Rows] = {}

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
        """
        _require_two_colours(block)
        require_states(block, self.system)
        put, key = block.device.put, stream_key(seed, stream)
        box = (block.halo, put(block.origins), put(block.members), *block.lattice.shape, put(key))
        changes = np.zeros(block.batch, np.int64)
        counts = put(changes)
        for made in self._passes(first_step, steps):
            rows = self._rows_of(made.part, block)
            self._apply(
                block,
                (
                    block.array, *box, np.uint64(made.first), made.times, made.colour,
                    int(self.system.lowest), int(self.system.states), *rows,
                ),
                counts,
            )  # fmt: skip
            block.fill_halo()
        return block.device.get(counts)

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

    def _rows_of(self, part: Part, block: Block) -> Rows:
        """The table of a pass, on the device of a block."""
        at = part, block.device.is_cuda
        if at not in self._rows:
            rows = thresholds(self.system, self.dt / 2 if part == "half" else self.dt)
            self._rows[at] = rows._replace(values=block.device.put(rows.values.reshape(-1)))
        return self._rows[at]

    def _apply(self, block: Block, arguments: tuple[Any, ...], counts: Any) -> None:
        (ny, nx), batch = block.shape, block.batch
        if block.device.is_cuda:
            update_cuda.launch(batch * ny * ((nx + 1) // 2), *arguments, counts)
            return
        workers = max(1, min(threads(), batch * ny * nx // SITES_PER_THREAD))
        whole = batch >= workers  # else each thread has a band of rows of every box
        parts = [split(batch if whole else ny, workers, i) for i in range(workers)]
        each = np.zeros((workers, batch), np.int64)
        in_threads(
            [
                partial(
                    update_rows,
                    *arguments,
                    part if whole else (0, batch),
                    (0, ny) if whole else part,
                    mine,
                )
                for part, mine in zip(parts, each, strict=True)
            ]
        )
        counts += each.sum(axis=0)


def require_states(block: Block, system: SpinRule) -> None:
    """Raise, on the ranks of all tiles, unless every site is in a state of the rule. Collective."""
    if block.halo < system.halo:
        raise InputError("halo", block.halo, f"{system.halo} or more", "Make a block with it.")
    with block.agreed():
        if block.device.is_cuda and block._sound:
            return
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
        block._sound = True
