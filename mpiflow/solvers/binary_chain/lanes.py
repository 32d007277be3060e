r"""Chains in lanes: their noise, the slopes of their energy, and moves of their bonds.

Many chains are followed side by side. The arrays have a row for each site, or bond, and in it a
column for each chain, and are flat, so that loops over them vectorise whatever the numbers of
chains and sites are. No number of a chain depends on the others.

Bond lengths :math:`b_i = x_{i+1} - x_i` are what moves. The slope of the energy along them is

.. math:: D_i = \partial V / \partial b_i = \sum_{j \le i < j + d} \phi'(x_{j+d} - x_j) + c'(b_i),

a sum over the pairs that span the bond, so that :math:`\partial V / \partial x_i` is
:math:`D_{i-1} - D_i`. Moves are rounded to multiples of 2^-32: then positions are sums of bond
lengths, and bond lengths differences of positions, without any further rounding, in chains up to
2^20 long.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.lattice import split
from mpiflow.core.noise import Word, threefry, word_normals
from mpiflow.systems.binary_chain import (
    BinaryChain,
    Pair,
    confinement_terms,
    pair_energy,
    pair_terms,
)

#: Adding and subtracting it rounds a number to a multiple of 2^-32.
ROUNDING = 1.5 * 2.0**20
#: Sites of the chains that are followed together.
TOGETHER = 4096
#: Pairs that are looked at together.
_CHUNK = 64


class Law(NamedTuple):
    """The energy of a chain, as kernels take it.

    Attributes
    ----------
    aa, bb, ab : potentials of the pairs
    alike : whether aa and bb are the same, for which a branch need not look at a spin
    confinement : r_f
    beta : inverse temperature
    """

    aa: Pair
    bb: Pair
    ab: Pair
    alike: bool
    confinement: float
    beta: float


def law_of(system: BinaryChain) -> Law:
    """The law of a chain."""
    alike = system.one_species_like_the_other
    return Law(*system.pairs(), alike, float(system.confinement), float(system.beta))


class Lanes(NamedTuple):
    """Chains side by side, flat arrays of rows of ``width``.

    Attributes
    ----------
    x : (N width,) positions
    spins : (N width,) float64
    """

    x: np.ndarray
    spins: np.ndarray


def lanes_of(x: np.ndarray, spins: np.ndarray) -> Lanes:
    """Chains side by side, copied from (B, N) arrays; positions rounded."""
    rows = np.ascontiguousarray(x.T, dtype=np.float64).reshape(-1)
    return Lanes(
        np.rint(rows * 2.0**32) * 2.0**-32,
        np.ascontiguousarray(spins.T, dtype=np.float64).reshape(-1),
    )


def parts(count: int, sites: int) -> list[slice]:
    """Of so many chains those that are followed together, so that their arrays fit a cache."""
    number = -(-count // max(1, TOGETHER // sites))
    return [slice(*split(count, number, part)) for part in range(number)]


class Space(NamedTuple):
    """What a step works with, flat.

    Attributes
    ----------
    keys, steps, sites : (N/2 width,) uint64, of the noise
    first, second : (N/2 width,) uint64, its words
    old, new : (N width,) normals of bonds, before the step and after it
    outer : (N width,) sums over pairs
    slope, other : ((N + 1) width,) slopes of bonds, behind a row of zeros
    excess : (N width,) half of what exchanges took from the slopes
    move : (N width,)
    found : (N/2 width + 1,) int64, where coins are small
    """

    keys: np.ndarray
    steps: np.ndarray
    sites: np.ndarray
    first: np.ndarray
    second: np.ndarray
    old: np.ndarray
    new: np.ndarray
    outer: np.ndarray
    slope: np.ndarray
    other: np.ndarray
    excess: np.ndarray
    move: np.ndarray
    found: np.ndarray


def space(keys: np.ndarray, rows: int) -> Space:
    """Working space of chains of so many sites whose second key words are ``keys``, (width,)."""
    width, half = len(keys), rows // 2
    pairs = np.arange(half, dtype=np.uint64)
    steps, first, second = (np.zeros(half * width, np.uint64) for _ in range(3))
    old, new, outer, excess, move = (np.zeros(rows * width) for _ in range(5))
    slope, other = (np.zeros((rows + 1) * width) for _ in range(2))
    return Space(
        np.tile(keys, half), steps, np.repeat(pairs, width), first, second, old, new, outer, slope,
        other, excess, move, np.zeros(half * width + 1, np.int64),
    )  # fmt: skip


# -- noise ---------------------------------------------------------------------------------------


@kernel
def draw(key: Word, step: Word, site: Word, space: Space, normals: np.ndarray) -> None:
    """The words of a step, and a normal for each bond from the first of them.

    Bonds p and p + N/2 share a call, at ``steps`` + step and p + site. Two loops: in one the
    compiler would have too much to check.
    """
    keys, steps, sites = space.keys, space.steps, space.sites
    first, second = space.first, space.second
    half = keys.size
    for k in range(half):
        w0, w1 = threefry(key, keys[k], steps[k] + step, sites[k] + site)
        first[k] = w0
        second[k] = w1
    near, far = normals[:half], normals[half:]
    for k in range(half):
        near[k], far[k] = word_normals(first[k])


# -- energy --------------------------------------------------------------------------------------


@kernel
def reach(x: np.ndarray, width: int, shells: int, cutoff: float) -> int:
    """At least as many shells of neighbours as the cut-off reaches; ``shells`` or more."""
    while (shells + 1) * width < x.size:
        near, far = x, x[(shells + 1) * width :]
        inside = 0
        for k in range(far.size):
            inside += 1 if far[k] - near[k] < cutoff else 0
        if inside == 0:
            break
        shells += 1
    return shells


@kernel
def _add_pairs(lanes: Lanes, offset: int, law: Law, out: np.ndarray) -> None:
    """Add the slopes of the pairs of one shell to the rows of their first atoms."""
    near, far = lanes.x, lanes.x[offset:]
    spins, spins_far = lanes.spins, lanes.spins[offset:]
    aa, bb, ab = law.aa, law.bb, law.ab
    for k in range(far.size):
        spin = spins[k]
        pair = ab if spin != spins_far[k] else (aa if spin > 0.0 else bb)
        _, push, _ = pair_terms(far[k] - near[k], pair)
        out[k] += push


@kernel
def _add_few_pairs(lanes: Lanes, offset: int, law: Law, out: np.ndarray) -> None:
    """The same of the outermost shell, of which few pairs are within the cut-off."""
    x, spins = lanes
    for start in range(0, x.size - offset, _CHUNK):
        end = min(start + _CHUNK, x.size - offset)
        near, far = x[start:end], x[start + offset : end + offset]
        some = 0
        for k in range(near.size):
            some += 1 if far[k] - near[k] < law.ab.cutoff else 0
        if some > 0:
            part = Lanes(x[start : end + offset], spins[start : end + offset])
            _add_pairs(part, offset, law, out[start:end])


@kernel
def _add_confinement(x: np.ndarray, width: int, radius: float, out: np.ndarray) -> None:
    near, far = x, x[width:]
    long = 0
    for k in range(far.size):
        long += 1 if far[k] - near[k] > radius else 0
    if long > 0:
        for k in range(far.size):
            _, push, _ = confinement_terms(far[k] - near[k], radius)
            out[k] += push


@kernel
def slopes(
    lanes: Lanes,
    width: int,
    shells: int,
    law: Law,
    outer: np.ndarray,
    slope: np.ndarray,
    other: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """D of all bonds, in the first of the two arrays that are returned, from row 1 on.

    From the outermost shell inwards: with Q the sum of the slopes of the pairs of this shell and
    those beyond, D_i becomes Q_i + D_(i-1), after which each pair is in all bonds that it spans.
    """
    outer[:] = 0.0
    other[:] = 0.0
    x = lanes.x
    for shell in range(shells, 0, -1):
        if shell == shells:
            _add_few_pairs(lanes, shell * width, law, outer)
        else:
            _add_pairs(lanes, shell * width, law, outer)
        if shell == 1:
            _add_confinement(x, width, law.confinement, outer)
        target = slope[width:]
        for k in range(x.size - shell * width):
            target[k] = outer[k] + other[k]
        slope, other = other, slope
    return other, slope


@kernel
def energies(
    lanes: Lanes, width: int, shells: int, law: Law, flat: np.ndarray, out: np.ndarray
) -> None:
    """V of each chain (2.1); ``flat`` (N width,) is scratch."""
    x, spins = lanes
    aa, bb, ab = law.aa, law.bb, law.ab
    flat[:] = 0.0
    for shell in range(1, shells + 1):
        far, spins_far = x[shell * width :], spins[shell * width :]
        for k in range(far.size):
            spin = spins[k]
            pair = ab if spin != spins_far[k] else (aa if spin > 0.0 else bb)
            flat[k] += pair_energy(far[k] - x[k], pair)
    far = x[width:]
    for k in range(far.size):
        held, _, _ = confinement_terms(far[k] - x[k], law.confinement)
        flat[k] += held
    out[:] = 0.0
    for row in range(x.size // width):
        for lane in range(width):
            out[lane] += flat[row * width + lane]


# -- moves --------------------------------------------------------------------------------------


@kernel
def move_bonds(x: np.ndarray, move: np.ndarray, width: int, preconditioned: bool) -> int:
    """Add moves of bonds, or of all atoms but the first, to the positions.

    Returns the number of bonds that are then no longer positive.
    """
    if preconditioned:
        sums = np.zeros(width)
        for row in range(1, x.size // width):
            here, bonds = x[row * width : (row + 1) * width], move[(row - 1) * width : row * width]
            for lane in range(width):
                sums[lane] += bonds[lane]
            for lane in range(width):
                here[lane] += sums[lane]
    else:
        atoms = x[width:]
        for k in range(atoms.size):
            atoms[k] += move[k]
    near, far = x, x[width:]
    wrong = 0
    for k in range(far.size):
        bond = far[k] - near[k]
        wrong += 0 if (bond > 0.0 and bond < 1e5) else 1
    return wrong
