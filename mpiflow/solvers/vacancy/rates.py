"""Rates of the eight hops of a vacancy, from the 112 species around it.

Where these fit 28 bytes, they are the exact key of a small table of rates met before: vacancies
flicker to and fro, so it saves a third of the evaluations of barriers at 2000 K and nine tenths at
800 K, and changes no bit of the result. Rates are computed from barriers by arithmetic that is
IEEE everywhere, in fixed order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import inlined, kernel, rule
from mpiflow.solvers.vacancy.barrier_kernels import evaluate, work_size
from mpiflow.systems.alloy import ATTEMPT_FREQUENCY, NEIGHBOURS, SURROUNDINGS, VACANCY, Alloy
from mpiflow.systems.barriers import NETWORK, SITES, Barriers

_WAYS, WORDS, _PER_WORD = 4, 4, 28
#: Entries of the table of rates for each vacancy; more only cost memory traffic.
_ENTRIES = 16
#: The largest table: 4096 sets of four entries of 96 bytes.
_MOST_SETS = 4096


class Table(NamedTuple):
    """Rates met before, by their surroundings.

    Attributes
    ----------
    keys : (sets, 4, 4) uint64, the 112 species at two bits each; the top bit marks an entry
    rates : (sets, 4, 8) float64
    counts : (2,) int64, evaluations asked for and evaluations done
    """

    keys: np.ndarray
    rates: np.ndarray
    counts: np.ndarray


class Scratch(NamedTuple):
    """Memory for one evaluation: (112,) uint8, float32, (8,) float32, (8,) float64, (4,) uint64."""

    types: np.ndarray
    work: np.ndarray
    barriers: np.ndarray
    rates: np.ndarray
    key: np.ndarray


class Law(NamedTuple):
    """What sets the rates: the barriers, 1 / k_B T, and the lattice.

    Attributes
    ----------
    offsets : (112,) uint64, the surroundings as differences of the flat index, modulo 2^64
    sides : points of the periodic lattice along each axis
    halo : of the box
    """

    barriers: Barriers
    beta: float
    offsets: np.ndarray
    sides: tuple[int, int, int]
    halo: int


class Evaluator(NamedTuple):
    """All that rates of vacancies are found with."""

    law: Law
    table: Table
    scratch: Scratch


def table(model: Barriers, vacancies: int) -> Table:
    """An empty table of rates, of no size where it would not pay or the key not be exact."""
    sets = 0
    if model.kind == NETWORK and len(model.codes) <= 4:
        sets = table_sets(vacancies)
    return Table(
        np.zeros((sets, _WAYS, WORDS), np.uint64),
        np.zeros((sets, _WAYS, NEIGHBOURS)),
        np.zeros(2, np.int64),
    )


def table_sets(vacancies: int) -> int:
    """Sets of a table for so many vacancies."""
    wanted = max(_ENTRIES * vacancies // _WAYS, 4)
    return min(1 << (wanted - 1).bit_length(), _MOST_SETS)


def scratch(model: Barriers) -> Scratch:
    return Scratch(
        np.zeros(SITES, np.uint8),
        np.zeros(work_size(model), np.float32),
        np.zeros(NEIGHBOURS, np.float32),
        np.zeros(NEIGHBOURS),
        np.zeros(WORDS, np.uint64),
    )


def law(system: Alloy, model: Barriers, block: Block) -> Law:
    """The law on blocks of this shape."""
    _, ny, nz = block.array.shape[1:]
    offsets = (SURROUNDINGS[:, 0] * ny + SURROUNDINGS[:, 1]) * nz + SURROUNDINGS[:, 2]
    x, y, z = block.lattice.shape if block.policy != "wrap" else block.shape
    return Law(model, system.beta, offsets.astype(np.uint64), (x, y, z), block.halo)


def evaluator(system: Alloy, model: Barriers, block: Block, vacancies: int) -> Evaluator:
    """For blocks of this shape, with a table for a number of vacancies."""
    return Evaluator(law(system, model, block), table(model, vacancies), scratch(model))


@rule
def decay(x: float) -> float:
    r"""exp(-x) for \|x\| < 700, by arithmetic that is IEEE everywhere.

    2^k e^r with \|r\| <= ln 2 / 2 and the Taylor series of e^r to the 13th power; the error is
    below two units in the last place.
    """
    k = np.float64(math.floor(0.5 - x * 1.4426950408889634))
    r = (-x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    s = 1.0 / 6227020800.0
    s = s * r + 1.0 / 479001600.0
    s = s * r + 1.0 / 39916800.0
    s = s * r + 1.0 / 3628800.0
    s = s * r + 1.0 / 362880.0
    s = s * r + 1.0 / 40320.0
    s = s * r + 1.0 / 5040.0
    s = s * r + 1.0 / 720.0
    s = s * r + 1.0 / 120.0
    s = s * r + 1.0 / 24.0
    s = s * r + 1.0 / 6.0
    s = s * r + 0.5
    s = s * r + 1.0
    s = s * r + 1.0
    return s * np.int64((np.int64(k) + 1023) << 52).view(np.float64)


@rule
def hop_rate(beta: float, barrier: np.float32) -> float:
    """k0 exp(-E / k_B T); 0 for an infinite barrier and beyond the range of decay."""
    x = beta * np.float64(barrier)
    return ATTEMPT_FREQUENCY * decay(x) if abs(x) < 700.0 else 0.0


@kernel
def hop_rates(beta: float, barriers: np.ndarray, rates: np.ndarray) -> None:
    """The rates of eight barriers."""
    for d in range(NEIGHBOURS):
        rates[d] = hop_rate(beta, barriers[d])


@rule
def species_near(flat: np.ndarray, start: np.uint64, offsets: np.ndarray, i: int) -> np.int8:
    """The species of a site of the surroundings of a point."""
    return flat[start + offsets[i]]


@inlined
def look(flat: np.ndarray, at: int, offsets: np.ndarray, types: np.ndarray) -> int:
    """Read the surroundings of a point; returns the number of vacancies in them."""
    start = np.uint64(at)
    near = 0
    for i in range(SITES):
        t = species_near(flat, start, offsets, i)
        types[i] = t
        near += t == VACANCY
    return near


@inlined
def packed(types: np.ndarray, w: int) -> np.uint64:
    """A word of the key: 28 species at two bits each; the first one has the mark of an entry."""
    word = np.uint64(w == 0) << np.uint64(63)
    for i in range(_PER_WORD):
        word |= np.uint64(types[w * _PER_WORD + i]) << np.uint64(2 * i)
    return word


@inlined
def entry_of(
    k0: np.uint64, k1: np.uint64, k2: np.uint64, k3: np.uint64, keys: np.ndarray
) -> tuple[np.uint64, int]:
    """The set of the table in which a key would be, and its entry there or -1."""
    h = k0 * np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(32)) ^ k1) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(32)) ^ k2) * np.uint64(0x94D049BB133111EB)
    h = (h ^ (h >> np.uint64(32)) ^ k3) * np.uint64(0x9E3779B97F4A7C15)
    bucket = (h >> np.uint64(40)) & np.uint64(keys.shape[0] - 1)  # a power of two
    entry = -1
    for w in range(_WAYS):
        i = np.uint64(w)
        if (
            (keys[bucket, i, 0] == k0)
            & (keys[bucket, i, 1] == k1)
            & (keys[bucket, i, 2] == k2)
            & (keys[bucket, i, 3] == k3)
        ):
            entry = w
            break
    return bucket, entry


@inlined
def recall(
    types: np.ndarray, keys: np.ndarray, known: np.ndarray, key: np.ndarray, rates: np.ndarray
) -> tuple[np.uint64, int]:
    """Set rates to those of the table, if it has these surroundings; the set, and entry or -1."""
    k0, k1, k2, k3 = packed(types, 0), packed(types, 1), packed(types, 2), packed(types, 3)
    key[0], key[1], key[2], key[3] = k0, k1, k2, k3
    bucket, entry = entry_of(k0, k1, k2, k3, keys)
    if entry >= 0:
        for d in range(NEIGHBOURS):
            rates[d] = known[bucket, np.uint64(entry), d]
    return bucket, entry


@kernel
def to_front(
    bucket: np.uint64,
    entry: int,
    keys: np.ndarray,
    known: np.ndarray,
    key: np.ndarray,
    rates: np.ndarray,
) -> None:
    """Make these the first entry of a set, in place of one or of the last."""
    for w in range(entry if entry >= 0 else _WAYS - 1, 0, -1):
        i = np.uint64(w)
        for d in range(WORDS):
            keys[bucket, i, d] = keys[bucket, i - np.uint64(1), d]
        for d in range(NEIGHBOURS):
            known[bucket, i, d] = known[bucket, i - np.uint64(1), d]
    for d in range(WORDS):
        keys[bucket, 0, d] = key[d]
    for d in range(NEIGHBOURS):
        known[bucket, 0, d] = rates[d]


@kernel
def compute(law: Law, s: Scratch) -> None:
    """All eight rates in the surroundings that scratch holds."""
    evaluate(law.barriers, s.types, s.work, s.barriers)
    hop_rates(law.beta, s.barriers, s.rates)


@kernel
def find(flat: np.ndarray, at: int, evaluator: Evaluator, rates: np.ndarray, first: int) -> None:
    """The rates of a vacancy at a place of a grid, from the table if it knows them.

    Parameters
    ----------
    rates : where they are put, from the number ``first`` on
    """
    law, table, s = evaluator
    types, fresh, key, met = s.types, s.rates, s.key, table.keys
    look(flat, at, law.offsets, types)
    table.counts[0] += 1
    bucket, entry, sets = np.uint64(0), -1, met.shape[0]
    if sets > 0:
        bucket, entry = recall(types, met, table.rates, key, fresh)
    if entry < 0:
        table.counts[1] += 1
        compute(law, s)
    if sets > 0 and entry != 0:
        to_front(bucket, entry, met, table.rates, key, fresh)
    for d in range(NEIGHBOURS):
        rates[first + d] = fresh[d]
