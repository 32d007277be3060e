"""What drivers of alloys share: pairs, published tables, ordered states, and blocks of lattices."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpiflow import metrics
from mpiflow.core.block import Block
from mpiflow.systems.alloy import NEIGHBOURS, NOT_A_SITE, neighbour_numbers, pair_names

#: Pairs of elements, and those whose half-times are told: the others change too little.
PAIRS = pair_names(("Nb", "Mo", "Ta"))
LARGE = ("MoMo", "MoTa", "TaTa")


def published_order(
    path: Path, sites: int, pairs: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Final mean and spread (6,) and half-times (6,) in s of a published table of order in time.

    None without the table or a model of so many sites in it.
    """
    if not path.is_file():
        return None
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["n_atoms"]) == sites]
    if not rows:
        return None
    times = np.array([float(row["kmc_time_s"]) for row in rows])
    mean, std = (
        np.array([[float(row[f"{kind}_{pair}"]) for pair in pairs] for row in rows])
        for kind in ("mean", "std")
    )
    late = times >= 0.5 * times[-1]
    final = mean[late].mean(axis=0)
    return final, std[late].mean(axis=0), metrics.half_time(times, mean, final)


def published_temperatures(path: Path) -> dict[float, list[float]]:
    """Order (6,) at each temperature in K of a published table of 8192 sites; none without it."""
    if not path.is_file():
        return {}
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {float(row["T"]): [float(row[pair]) for pair in PAIRS] for row in rows}


# -- states and blocks ---------------------------------------------------------------------


def ordered(block: Block, seed: int, counts: tuple[int, ...]) -> None:
    """Mo on the corners, Ta in the centres, Nb and vacancies by chance in what is left of both.

    Parameters
    ----------
    block : a whole lattice
    counts : of vacancies, Nb, Mo and Ta
    """
    vacancies, _, mo, ta = counts
    rng = np.random.default_rng(seed)
    state = np.full(block.lattice.shape, NOT_A_SITE, np.int8)
    for first, atoms, species, empty in (
        (0, mo, 2, vacancies // 2),
        (1, ta, 3, vacancies - vacancies // 2),
    ):
        part = state[first::2, first::2, first::2]
        kinds = np.ones(part.size, np.int8)
        kinds[:atoms], kinds[atoms : atoms + empty] = species, 0
        part[...] = rng.permutation(kinds).reshape(part.shape)
    block.load(state[None])
    block.fill_halo()


def bonds_of_blocks(species: np.ndarray, cells: int, side: int, kinds: int) -> np.ndarray:
    """Bonds whose corners lie in each block, (blocks, blocks, blocks, kinds, kinds) int64.

    Parameters
    ----------
    species : of all sites of cells^3 cells in C order
    side : cells a side of a block
    """
    planes = species.reshape(2 * cells, cells, cells)
    corners, centres = planes[::2], planes[1::2]
    along, number = np.arange(cells) // side, cells // side
    first = (along[:, None, None] * number + along[:, None]) * number + along
    first = (first * kinds**2).astype(np.int32) + corners.astype(np.int32) * kinds
    counts = np.zeros(number**3 * kinds**2, np.int64)
    for shift in np.ndindex(2, 2, 2):
        ends = first + np.roll(centres, shift, axis=(0, 1, 2))
        counts += np.bincount(ends.ravel(), minlength=counts.size)
    return counts.reshape(number, number, number, kinds, kinds)


def joined(bonds: np.ndarray) -> np.ndarray:
    """Bonds of blocks of twice the side."""
    n = len(bonds) // 2
    parts = bonds[: 2 * n, : 2 * n, : 2 * n].reshape(n, 2, n, 2, n, 2, *bonds.shape[3:])
    return np.asarray(parts.sum(axis=(1, 3, 5)))


def left_over(bonds: np.ndarray) -> np.ndarray:
    """Order of the like pairs that the numbers of atoms of a block do not explain, (blocks, 3)."""
    kinds = bonds.shape[-1]
    flat = bonds.reshape(-1, kinds, kinds)
    atoms = (flat.sum(axis=1) + flat.sum(axis=2)) / NEIGHBOURS  # whole only of the whole lattice
    like = np.diagonal(neighbour_numbers(flat), axis1=1, axis2=2)[:, 1:] / atoms.mean(axis=0)[1:]
    # All kinds but the last and a constant: together they are the number of sites.
    given = np.column_stack([np.ones(len(flat)), atoms[:, :-1] - atoms[:, :-1].mean(axis=0)])
    return np.asarray(like - given @ np.linalg.lstsq(given, like, rcond=None)[0])


def spread_of(rest: np.ndarray, kinds: int = 4) -> np.ndarray:
    """Spread (3,) of what is left, a degree of freedom lost for each number that was fitted."""
    return np.asarray(np.sqrt((rest**2).sum(axis=0) / (len(rest) - kinds)))
