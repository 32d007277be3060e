r"""Sublattice passes of heat-bath rules in a field of each site's own: CPU and CUDA.

As :mod:`~mpiflow.solvers.spins.rule_sublattice`, but that a site i takes a new state s with the
probability

.. math:: p_i(s) \propto w(s) \, e^{h_i c(s) / T},

w the heat-bath weights of the rule in its neighbourhood, from a table. The exponential is computed
at the site, by arithmetic that is IEEE everywhere: 8 bytes a site are kept, h itself, and
temperature and uniform field may change in time. The Ising model is a rule of two states here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import CudaKernel, kernel, rule
from mpiflow.core.errors import InputError
from mpiflow.solvers.spins.half_lattice import draw_words, place_in, site_of, word_of
from mpiflow.solvers.spins.rule_sublattice import Part, RuleSublattice
from mpiflow.solvers.spins.rule_tables import shares, tabled
from mpiflow.systems.ising import Ising
from mpiflow.systems.rule import SpinRule

#: e to minus 1, 2, 4, ...
POWERS = tuple(math.exp(-(2.0**bit)) for bit in range(10))
#: Coefficients of the exponential.
TAYLOR = tuple(1.0 / math.factorial(n) for n in range(16))


class Law(NamedTuple):
    """What a kernel decides by.

    Attributes
    ----------
    weights : (q^4, q) float64, heat-bath probabilities without the site field
    coupled : (q,) float64, c(s) / T
    """

    weights: Any
    coupled: Any


# -- the trial of a site ---------------------------------------------------------------------------


@rule
def decay(x: float) -> float:
    """e^-x for x >= 0, to 2e-15: powers of e for the bits of its whole part, then a series.

    Beyond 700, where a chance is none, that of 700.
    """
    x = min(x, 700.0)
    n = np.int64(x + 0.5)
    f = n - x
    p = TAYLOR[15]
    for k in range(14, -1, -1):
        p = TAYLOR[k] + f * p
    for bit in range(10):
        p = p * POWERS[bit] if n >> bit & 1 else p
    return p


@rule
def uniform(word: np.uint64) -> float:
    """A number from 0 up to 1 of the upper 63 bits."""
    return np.float64(np.int64(word >> np.uint64(1))) * 2.0**-63


@rule
def share(chance: float, lower: float) -> float:
    """What a state has that lies lower than the favoured one by so many temperatures."""
    return chance * decay(lower) if lower > 0.0 else chance


@kernel
def settled(
    number: float, near: int, h: float, q: int, weights: np.ndarray, coupled: np.ndarray
) -> int:
    """The new state, counted from 0, that a number from 0 to 1 chooses."""
    largest = h * coupled[0]
    for state in range(1, q):
        largest = max(largest, h * coupled[state])
    total = 0.0
    for state in range(q):
        total += share(weights[near, state], largest - h * coupled[state])
    left = number * total
    for state in range(q - 1):
        left -= share(weights[near, state], largest - h * coupled[state])
        if left < 0.0:
            return state
    return q - 1


# -- kernels ---------------------------------------------------------------------------------------


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
    shift: int,
    site_field: np.ndarray,
    part: float,
    law: Law,
    boxes: tuple[int, int],
    rows: tuple[int, int],
    counts: np.ndarray,
) -> None:
    """Passes of one colour over a range of boxes and rows; adds the changes of each box.

    A state is stored as ``lowest`` plus its number, shifted to the left. Nothing of the other
    colour changes in between, so that a row may have all passes at once.
    """
    weights, coupled = law
    nx, q = field.shape[2] - 2 * halo, coupled.size
    words = np.empty((2 * passes, nx // 2 + 2), np.uint64)
    for b in range(boxes[0], boxes[1]):
        box_key = key[0], key[1] + members[b]
        ix = 0
        while ix < nx:  # a stretch of columns that are contiguous in the lattice
            gx = (origins[b, 1] + ix) % lx
            width, filled = min(nx - ix, lx - gx), -1
            for iy in range(rows[0], rows[1]):
                gy, y = (origins[b, 0] + iy) % ly, iy + halo
                skip = (gx + gy + colour) & 1
                for k in range(passes):
                    if gy >> 1 != filled:
                        step = first + np.uint64(k)
                        draw_words(box_key, step, gy, gx, width, words[2 * k], words[2 * k + 1])
                    for j in range(skip, width, 2):
                        word = words[2 * k + (gy & 1), ((gx + j) >> 1) - (gx >> 1)]
                        u = uniform(word)
                        if u >= part:  # here, not in a call that counts references of arrays
                            continue
                        x = ix + j + halo
                        near = np.int64(field[b, y - 1, x]) - lowest >> shift
                        near = near * q + (np.int64(field[b, y, x - 1]) - lowest >> shift)
                        near = near * q + (np.int64(field[b, y, x + 1]) - lowest >> shift)
                        near = near * q + (np.int64(field[b, y + 1, x]) - lowest >> shift)
                        own = np.int64(field[b, y, x]) - lowest >> shift
                        new = settled(u / part, near, site_field[iy, ix + j], q, weights, coupled)
                        if new != own:
                            counts[b, 0] += 1
                            field[b, y, x] = lowest + (new << shift)
                filled = gy >> 1
            ix += width


@CudaKernel
def update_cuda(cuda: Any) -> Callable[..., None]:
    def update(  # type: ignore[no-untyped-def]
        field, halo, origins, members, ly, lx, key, first, passes, colour, lowest, shift,
        site_field, part, weights, coupled, counts, span,
    ):  # fmt: skip
        """One thread for each site of the colour in a span; same bits as the CPU kernel."""
        q = coupled.size
        b, iy, j = place_in(cuda.grid(1), span)
        if b < field.shape[0]:
            gy, gx, ix = site_of(iy, j, origins[b, 0], origins[b, 1], ly, lx, colour)
            if span[4] <= ix < span[5]:
                y, x = iy + halo, ix + halo
                near = np.int64(field[b, y - 1, x]) - lowest >> shift
                near = near * q + (np.int64(field[b, y, x - 1]) - lowest >> shift)
                near = near * q + (np.int64(field[b, y, x + 1]) - lowest >> shift)
                near = near * q + (np.int64(field[b, y + 1, x]) - lowest >> shift)
                own = np.int64(field[b, y, x]) - lowest >> shift
                h = site_field[iy, ix]
                largest = h * coupled[0]
                for state in range(1, q):
                    largest = max(largest, h * coupled[state])
                for k in range(passes):
                    # The simulator's rules take no arrays, and return Python ints.
                    word = word_of(key[0], key[1] + members[b], first + np.uint64(k), gy, gx)
                    u = uniform(np.uint64(word))
                    if u < part:
                        total = 0.0
                        for state in range(q):
                            total += share(weights[near, state], largest - h * coupled[state])
                        left, new = u / part * total, 0
                        while new < q - 1:
                            left -= share(weights[near, new], largest - h * coupled[new])
                            if left < 0.0:
                                break
                            new += 1
                        if new != own:
                            cuda.atomic.add(counts, (b, 0), 1)
                        own = np.int64(new)
                field[b, y, x] = lowest + (own << shift)

    return update


# -- the solver ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TwoStates(SpinRule):
    """An Ising model as a rule: state 0 is down, 1 is up."""

    temperature: float
    field: float = 0.0
    coupling: float = 1.0
    states = 2

    @property
    def parameters(self) -> tuple[float, ...]:
        return self.temperature, self.field, self.coupling

    @staticmethod
    def weight(
        state: int, north: int, west: int, east: int, south: int, parameters: tuple[float, ...]
    ) -> float:
        temperature, field, coupling = parameters
        local = (coupling * (2 * (north + west + east + south) - 4) + field) / temperature
        return math.exp(local * (2 * state - 1) - abs(local))

    def coupled(self, state: int) -> float:
        return 2.0 * state - 1.0


class SiteFieldSublattice(RuleSublattice):
    """Fixed-step solver for a rule given by weights, or an Ising model, in a field of each site.

    The same bits on any number of ranks and threads, on CPU and CUDA (CUDA: simulated and
    assembled, not yet run on a GPU; fused multiplications of a GPU change one trial in 10^15).

    Parameters
    ----------
    system : the rule, of up to 12 states and with a temperature; or an Ising model
    dt : time step, above 0; ``math.inf`` for full sweeps
    site_field : h of the sites of every box, (ny, nx) float64
    """

    def __init__(self, system: SpinRule | Ising, dt: float, site_field: np.ndarray) -> None:
        self.ising = isinstance(system, Ising)
        rule = _rule_of(system)
        super().__init__(rule, dt)
        if not self.ising:
            require_site_field(rule)
        self._rows, self._cuda = update_rows, update_cuda
        self.site_field = site_field
        self._on_device: Any = None

    def become(self, system: SpinRule | Ising) -> None:
        super().become(_rule_of(system))

    def _require_states(self, block: Block) -> None:
        if self.ising:
            block.require_spins()
        else:
            super()._require_states(block)

    def _coding(self) -> tuple[int, int]:
        return (-1, 1) if self.ising else (int(self.system.lowest), 0)

    def _chances_of(self, part: Part, block: Block) -> tuple[Any, ...]:
        put = block.device.put
        at: tuple[Part, bool] = ("half", block.device.is_cuda)
        if at not in self._chances:
            rule: Any = self.system
            coupled = [rule.coupled(state) / rule.temperature for state in rule.values.tolist()]
            law = Law(put(shares(rule)), put(np.array(coupled)))
            self._chances[at] = law if block.device.is_cuda else (law,)
        if self._on_device is None:
            self._on_device = put(self.site_field)
        time = self.dt / 2 if part == "half" else self.dt
        return self._on_device, -math.expm1(-time), *self._chances[at]


def _rule_of(system: SpinRule | Ising) -> SpinRule:
    if isinstance(system, Ising):
        return TwoStates(system.temperature, system.field, system.coupling)
    return system


def require_site_field(system: SpinRule) -> None:
    """Raise unless a rule can have a field of each site's own."""
    why = None
    if system.by_rate:
        why = "a rule given by weights: rates do not say what a field does to them"
    elif not tabled(system):
        why = "a rule of up to 12 states, whose weights fit a table"
    elif not isinstance(getattr(system, "temperature", None), int | float):
        why = "a rule with a temperature, which the field is divided by"
    if why is not None:
        remedy = "Put the field into the rule, or leave it out."
        raise InputError("site_field", type(system).__name__, why, remedy)


def require_steps(solver: str) -> None:
    """Raise for the n-fold ways, which sort sites by a few rates."""
    if solver != "sublattice":
        allowed = "'sublattice' with fields of sites: of others all sites have one field"
        raise InputError("solver", solver, allowed, "Use sublattice.")
