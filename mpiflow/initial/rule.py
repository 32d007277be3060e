"""Initial states of a spin rule, keyed by global site: the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.noise import site_counter, stream_key, threefry
from mpiflow.systems.rule import SpinRule


def uniform(block: Block, rule: SpinRule, *, value: int) -> None:
    """All sites in one state. Collective for ``exchange`` blocks."""
    with block.agreed():
        if value not in rule.values:
            allowed = f"{rule.values[0]} to {rule.values[-1]}"
            raise InputError("value", value, allowed, "Take a state of the rule.")
    for rows in block.bands():
        block.store(rows, np.full(_shape(block, rows), value, np.int8))
    block.fill_halo()


def independent(
    block: Block, rule: SpinRule, *, seed: int, fractions: Sequence[float] | None = None
) -> None:
    """Independent sites. Collective for ``exchange`` blocks.

    Parameters
    ----------
    fractions : probability of each state, (q,), adding up to 1; equal ones if left out
    """
    with block.agreed():
        bounds = _bounds(rule, fractions)
    key = stream_key(seed, "initial")
    for rows in block.bands():
        states = np.empty(_shape(block, rows), np.int8)
        boxes = block.origins, block.members, block.lattice.shape
        _draw(*boxes, key, rows.start, int(rule.lowest), bounds, states)
        block.store(rows, states)
    block.fill_halo()


def _shape(block: Block, rows: slice) -> tuple[int, int, int]:
    return block.batch, rows.stop - rows.start, block.shape[1]


def _bounds(rule: SpinRule, fractions: Sequence[float] | None) -> np.ndarray:
    """Running sums in units of 2^-63 that random words are compared with, (q,) uint64."""
    q = rule.states
    if fractions is None:
        fractions = (1.0 / q,) * q
    given = [float(part) for part in fractions]
    if len(given) != q or not all(0 <= part <= 1 for part in given) or abs(sum(given) - 1) > 1e-9:
        raise InputError(
            "fractions",
            given,
            f"{q} numbers, 0 or more, that add up to 1",
            "Leave them out for equal ones.",
        )
    total = math.fsum(given)
    sums = [math.fsum(given[: i + 1]) / total for i in range(q)]
    return np.array([round(math.ldexp(part, 63)) for part in sums], np.uint64)


@kernel
def _draw(
    origins: np.ndarray,
    members: np.ndarray,
    lattice: tuple[int, int],
    key: np.ndarray,
    top: int,
    lowest: int,
    bounds: np.ndarray,
    states: np.ndarray,
) -> None:
    ly, lx = lattice
    for b in range(states.shape[0]):
        for i in range(states.shape[1]):
            gy = (origins[b, 0] + top + i) % ly
            for j in range(states.shape[2]):
                counter = site_counter(gy, (origins[b, 1] + j) % lx)
                word = threefry(key[0], key[1] + members[b], np.uint64(0), counter)[0]
                state = 0
                for k in range(bounds.size - 1):
                    state += int(word >> np.uint64(1) >= bounds[k])
                states[b, i, j] = state + lowest
