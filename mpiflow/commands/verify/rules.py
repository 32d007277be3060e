"""What the values of a spin rule obey, for ``mpiflow verify``: all of it is known to the rule.

The fractions of a frame are whole numbers of sites, which the blocks and the sites of the frame
give too, and observables that follow from the numbers of sites in each state, and of bonds between
them, are what the rule makes of these. Systems of other packages are asked for their rule; where
their package is not installed, what needs no rule is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import h5py
import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.files.segments import Segment
from mpiflow.simulation import catalogue
from mpiflow.systems.rule import SpinRule

#: Observables are sums of products: equal but for the order of a sum of another release.
_ROUNDING = 1e-12
#: Counts of bonds, and values of a field, that are held at once.
_COUNTS, _VALUES = 2**20, 2**18
#: Where a law holds, and what is wrong elsewhere.
Found = Iterator[tuple[np.ndarray, str]]


def rule_of(system: str, config: Mapping[str, Any]) -> SpinRule | None:
    """The rule of a system with such options; None if it is none, or no longer known here."""
    try:
        kind = catalogue.options(system)
        made: Any = kind.model_construct(**config)
        rule = made.rule()
    except (AttributeError, ImportError, InputError, TypeError, ValueError):
        return None
    return rule if isinstance(rule, SpinRule) else None


def counts_of(fractions: np.ndarray, sites: int) -> tuple[np.ndarray, Found]:
    """Sites in each state of every frame, (..., q) int64, and what is wrong with the fractions."""
    counts = np.rint(np.nan_to_num(fractions) * sites).astype(np.int64)

    def laws() -> Found:
        yield (counts / sites == fractions).all(axis=-1), "fraction is no share of whole sites"
        yield counts.sum(axis=-1) == sites, "fractions do not add up to 1"

    return counts, laws()


def of_counts(
    rule: SpinRule, counts: np.ndarray, bonds: np.ndarray | None, values: Mapping[str, np.ndarray]
) -> Found:
    """Observables that are not what the rule makes of a frame.

    Parameters
    ----------
    counts, bonds : (n, q) and (n, q, q) int64; without bonds, what hangs on them is left out
    values : observables of the file, (n, ...)
    """
    few = np.zeros((*counts.shape, counts.shape[-1]), np.int64) if bonds is None else bonds
    due = rule.observables(counts, few)
    if bonds is None:
        # With any other bonds, what hangs on them is another number.
        any_bonds = np.random.default_rng(0).integers(1, 2**20, few.shape)
        other = rule.observables(counts, any_bonds)
        due = {name: v for name, v in due.items() if np.array_equal(v, other[name])}
    for name in due.keys() & values.keys():
        near = np.isclose(values[name], due[name], rtol=_ROUNDING, atol=_ROUNDING)
        source = "the states of the sites" if bonds is not None else "fraction"
        yield near.reshape(len(near), -1).all(axis=1), f"{name} does not follow from {source}"


def of_changes(counts: np.ndarray, flips: np.ndarray) -> Found:
    """A change of a site takes one site out of a state and puts it into another."""
    moved = abs(np.diff(counts, axis=0)).sum(axis=-1) // 2
    good = np.ones(flips.shape, bool)
    good[1:] = np.diff(flips, axis=0) >= moved
    yield good, "flips are fewer than fraction needs"


def bonds_of(states: np.ndarray, below: np.ndarray, q: int) -> np.ndarray:
    """Bonds of rows of sites to their right and down, (B, q, q) int64.

    Parameters
    ----------
    states : (B, ny, nx) int64 from 0 to q - 1, whole along x; there may be no rows
    below : the next row, (B, 1, nx)
    """
    lattices = np.arange(len(states))[:, None, None]
    own = (lattices * q + states) * q
    down = np.concatenate([states[:, 1:], below], axis=1)
    size = len(states) * q * q
    counts = sum(
        np.bincount((own + other).ravel(), minlength=size)
        for other in (np.roll(states, -1, axis=-1), down)
    )
    return np.reshape(counts, (-1, q, q))


class RuleValues:
    """The checks of a file.

    Parameters
    ----------
    file : with the variable ``fraction`` over (time, ..., state)
    frames : of it that count
    parts : of the run, each with its options
    sites : of a lattice
    """

    def __init__(
        self, file: h5py.File, system: str, frames: int, parts: Sequence[Segment], sites: int
    ) -> None:
        self.file, self.frames, self.sites = file, frames, sites
        self.states = file["state"][()].astype(np.int64)
        rules = [(part, rule_of(system, part.config)) for part in parts]
        self.rules = [(p, r) for p, r in rules if r and np.array_equal(r.values, self.states)]
        self.counts, self._laws = counts_of(file["fraction"][:frames], sites)

    def check(self) -> Found:
        yield from self._laws
        if "flips" in self.file:
            yield from of_changes(self.counts, self.file["flips"][: self.frames])
        members = self.counts.shape[1] if self.counts.ndim == 3 else 1
        most = max(1, _COUNTS // len(self.states) ** 2)
        groups = [slice(k, min(k + most, members)) for k in range(0, members, most)]
        for part, rule in self.rules:
            stop, step = min(part.frames.stop, self.frames), max(1, most // members)
            if self._changing(rule):
                step = 1  # each frame has its own
            for first in range(part.frames.start, stop, step):
                for group in groups:
                    here = slice(first, min(first + step, stop))
                    yield from self._of_part(rule, here, group, None)
        for frame in range(self.frames):
            for group in groups:
                if "coarse_fraction" in self.file:
                    yield from self._of_blocks(frame, group)
                if "site_state" in self.file:
                    yield from self._of_sites(frame, group)

    def _of_part(
        self, rule: SpinRule, here: slice, group: slice, bonds: np.ndarray | None
    ) -> Found:
        """Observables of some frames, or of some members of a frame."""
        changing = {name: float(self.file[name][here.start]) for name in self._changing(rule)}
        rule = replace(rule, **changing) if changing else rule  # type: ignore[type-var]
        place = (here, group) if self.counts.ndim == 3 else (here,)
        counts = self.counts[place]
        lead = counts.shape[:-1]
        flat = counts.reshape(-1, counts.shape[-1])
        names = [name for name in rule.OBSERVABLES if name in self.file]
        if "site_field" in self.file:  # which the rule does not know
            names = [name for name in names if name != "energy"]
        values = {name: self.file[name][place] for name in names}
        values = {n: v.reshape(len(flat), *v.shape[len(lead) :]) for n, v in values.items()}
        for good, what in of_counts(rule, flat, bonds, values):
            yield self._at(here, good.reshape(len(counts), -1).all(axis=1)), what

    def _changing(self, rule: SpinRule) -> list[str]:
        """Parameters that the file has a value of for each frame."""
        known: tuple[Any, ...] = fields(rule) if is_dataclass(rule) else ()
        return [f.name for f in known if f.name in self.file and f.name not in rule.OBSERVABLES]

    def _of_blocks(self, frame: int, group: slice) -> Found:
        """Blocks are whole numbers of sites, and together they are the lattice."""
        shape = self.file["coarse_fraction"].shape
        sites = self.sites // (shape[-1] * shape[-2])
        if sites >= 2**24:  # float32 does not hold such sums exactly
            return
        total, here = np.zeros(1), slice(frame, frame + 1)
        for blocks in self._bands("coarse_fraction", frame, group):
            counts = np.rint(blocks.astype(np.float64) * sites)
            whole = ((counts / sites).astype(np.float32) == blocks).all()
            whole &= (counts.sum(axis=1) == sites).all()
            yield self._at(here, whole), "coarse_fraction is no share of whole sites"
            total = total + counts.sum(axis=(-2, -1))
        same = np.array_equal(total, self._counts(frame, group))
        yield self._at(here, same), "blocks of coarse_fraction do not add up to fraction"

    def _of_sites(self, frame: int, group: slice) -> Found:
        """States of the rule, which give the fractions and all observables."""
        q, lowest, here = len(self.states), int(self.states[0]), slice(frame, frame + 1)
        lattices = group.stop - group.start
        counts, bonds = np.zeros((lattices, q), np.int64), np.zeros((lattices, q, q), np.int64)
        first = last = np.empty((lattices, 0, 0), np.int64)
        for band in self._bands("site_state", frame, group):
            states = band.astype(np.int64) - lowest
            known = ((states >= 0) & (states < q)).all()
            yield self._at(here, known), "site_state is no state of the system"
            if not first.size:
                first = states[:, :1]
            else:  # the last row of a band has its bonds down to the next band
                bonds += bonds_of(last, states[:, :1], q)
            counts += (states[..., None] == np.arange(q)).sum(axis=(1, 2))
            last = states[:, -1:]
            bonds += bonds_of(states[:, :-1], last, q)
        bonds += bonds_of(last, first, q)
        same = np.array_equal(counts, self._counts(frame, group))
        yield self._at(here, same), "the states of the sites do not give fraction"
        for part, rule in self.rules:
            if frame in part.frames:
                yield from self._of_part(rule, here, group, bonds)

    def _bands(self, name: str, frame: int, group: slice) -> Iterator[np.ndarray]:
        """Rows of a field that are held at once, (members, ..., rows, columns)."""
        dataset = self.file[name]
        lead = (frame, group) if self.counts.ndim == 3 else (slice(frame, frame + 1),)
        between = len(self.states) if "coarse" in name else 1
        row = (group.stop - group.start) * between * dataset.shape[-1]
        rows = max(1, _VALUES // row)
        for start in range(0, dataset.shape[-2], rows):
            yield dataset[(*lead, ..., slice(start, start + rows), slice(None))]

    def _counts(self, frame: int, group: slice) -> np.ndarray:
        counts = self.counts[frame].reshape(-1, len(self.states))
        return counts[group]

    def _at(self, here: slice, good: Any) -> np.ndarray:
        """Good everywhere but there."""
        out = np.ones(self.frames, bool)
        out[here] = good
        return out
