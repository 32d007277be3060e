"""Initial states of a spin rule, keyed by global site: the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.noise import Word, site_counter, stream_key, threefry
from mpiflow.files.moments import Moment
from mpiflow.initial.site_words import Boxes, bounds_of_smallest, boxes_of, count_words
from mpiflow.initial.spin_files import opened
from mpiflow.systems.rule import SpinRule, require_fractions


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
        parts = _running(rule, fractions)
    bounds = np.array([round(math.ldexp(part, 63)) for part in parts], np.uint64)
    _fill(block, rule, seed, 1, np.tile(bounds, (block.batch, 1)))


def shuffled(
    block: Block, rule: SpinRule, *, seed: int, fractions: Sequence[float] | None = None
) -> None:
    """As many sites in each state as the fractions say, all arrangements equally likely.

    As :func:`mpiflow.initial.shuffled` of spins: the sites with the smallest words take the first
    state. Collective for ``exchange`` blocks.

    Parameters
    ----------
    fractions : of the sites in each state, (q,), adding up to 1; equal ones if left out. Running
        sums are rounded to whole sites.
    """
    with block.agreed():
        parts = _running(rule, fractions)
    key = stream_key(seed, "initial")

    def count(left: np.ndarray, bounds: np.ndarray, shift: Word, counts: np.ndarray) -> None:
        count_words(boxes_of(block), key, block.shape, left, bounds, shift, counts)

    bounds = np.empty((block.batch, len(parts)), np.uint64)
    for i, part in enumerate(parts):
        wanted = np.full(block.batch, round(part * block.lattice.sites), np.int64)
        bounds[:, i] = bounds_of_smallest(block, wanted, count)
    _fill(block, rule, seed, 0, bounds)


def from_file(block: Block, rule: SpinRule, *, path: str | Path, moment: Moment = Moment()) -> None:
    """States from a ``.npy`` of whole numbers, (Ly, Lx), or from ``site_state`` of a run.

    Each rank reads only its own box. Of an ensemble each member starts from its own, unless the
    moment names one. Collective for ``exchange`` blocks.

    Parameters
    ----------
    moment : which frame and member of a run; the last frame by default

    Raises
    ------
    InputError : the file cannot be read, or a value is no state of the rule
    """
    path, known = Path(path), rule.values
    top, left = (int(o) for o in block.origins[0]) if block.batch else (0, 0)
    names, remedy = ("site_state",), "Save with --spins."
    with block.agreed(), opened(path, block, moment, names, remedy) as read:
        for rows in block.bands():
            box = slice(top + rows.start, top + rows.stop), slice(left, left + block.shape[1])
            states = read[box][None] if isinstance(read, np.ndarray) else read(box)
            wrong = ~np.isin(states, known)
            if wrong.any():
                found = f"{path}, with {states[wrong][0].item():g}"
                allowed = f"states {known[0]} to {known[-1]} only"
                raise InputError("initial", found, allowed, "Check the file.")
            every = (block.batch, *states.shape[1:])
            block.store(rows, np.ascontiguousarray(np.broadcast_to(states, every), np.int8))
    block.fill_halo()


def _fill(block: Block, rule: SpinRule, seed: int, shift: int, bounds: np.ndarray) -> None:
    """Each site takes the state that its word, without its lowest bits, is among the bounds of."""
    key = stream_key(seed, "initial")
    for rows in block.bands():
        states = np.empty(_shape(block, rows), np.int8)
        _draw(boxes_of(block), key, rows.start, int(rule.lowest), np.uint64(shift), bounds, states)
        block.store(rows, states)
    block.fill_halo()


def _shape(block: Block, rows: slice) -> tuple[int, int, int]:
    return block.batch, rows.stop - rows.start, block.shape[1]


def _running(rule: SpinRule, fractions: Sequence[float] | None) -> list[float]:
    """Running sums of the fractions, but for the last, which is 1."""
    q = rule.states
    if fractions is None:
        fractions = (1.0 / q,) * q
    given = [float(part) for part in fractions]
    require_fractions("fractions", given, q)
    total = math.fsum(given)
    return [math.fsum(given[: i + 1]) / total for i in range(q - 1)]


@kernel
def _draw(
    boxes: Boxes,
    key: np.ndarray,
    top: int,
    lowest: int,
    shift: Word,
    bounds: np.ndarray,
    states: np.ndarray,
) -> None:
    origins, members, (ly, lx) = boxes
    for b in range(states.shape[0]):
        for i in range(states.shape[1]):
            gy = (origins[b, 0] + top + i) % ly
            for j in range(states.shape[2]):
                counter = site_counter(gy, (origins[b, 1] + j) % lx)
                word = threefry(key[0], key[1] + members[b], np.uint64(0), counter)[0] >> shift
                state = 0
                for k in range(bounds.shape[1]):
                    state += int(word >= bounds[b, k])
                states[b, i, j] = state + lowest
