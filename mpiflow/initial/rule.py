"""Initial states of a spin rule, keyed by global site: the same on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.noise import stream_key
from mpiflow.files.moments import Moment
from mpiflow.initial.site_words import bounds_of_smallest, counting, words_of
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
    count = counting(block, key)
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
    for band in block.bands():
        states = np.full(_shape(block, band), rule.lowest, np.int8)
        for rows, words in words_of(block, key, band):
            words >>= np.uint64(shift)
            here = states[:, rows.start - band.start : rows.stop - band.start]
            for k in range(bounds.shape[1]):
                here += words >= bounds[:, None, None, k]
        block.store(band, states)
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
