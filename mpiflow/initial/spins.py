r"""Initial spins, keyed by global site: the same on any number of ranks.

Every function fills the inner sites and the halo of a block, which may be a tile
of one distributed lattice or a batch of whole ones. It works in bands of rows, so
that a tile may fill the memory and still be set.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core import arrays
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.noise import stream_key
from mpiflow.initial.site_words import (
    Boxes,
    Spins,
    bounds_of_smallest,
    boxes_of,
    counting,
    empty,
    fill,
    fill_below,
    row_words,
)


def uniform_up(block: Spins) -> None:
    """All spins up."""
    fill(block, block.bands(), lambda rows: np.ones_like(empty(block, rows)))


def independent(block: Spins, seed: int, magnetization: float = 0.0) -> None:
    r"""Independent spins with mean ``magnetization`` m, -1 to 1.

    A site is up if the top 53 bits k of its word are below a bound:

    .. math:: 2^{-53} k < \tfrac12 (1 + m) \iff k < \lceil 2^{52} (1 + m) \rceil.
    """
    require_magnetization(magnetization)
    # Exact: halving and the power of two change only the exponent.
    bound = int(np.ceil(0.5 * (1.0 + magnetization) * 2.0**53))
    bounds = np.full(block.batch, bound, np.uint64)
    fill_below(block, stream_key(seed, "initial"), 11, bounds)


def shuffled(block: Spins, seed: int, magnetization: float | np.ndarray = 0.0) -> None:
    """Exactly ``round(N (1 + m) / 2)`` spins up, all arrangements equally likely.

    Every site draws a 64-bit word and the sites with the smallest words are up.
    The bound between up and down is found digit by digit from histograms summed
    over the ranks, so no rank needs the whole lattice.

    Parameters
    ----------
    magnetization : -1 to 1; one number, or (B,) one for each box of a batch
    """
    target = np.broadcast_to(np.asarray(magnetization, float), (block.batch,))
    for m in target:
        require_magnetization(float(m))
    wanted = np.rint(0.5 * (1.0 + target) * block.lattice.sites).astype(np.int64)
    key = stream_key(seed, "initial")
    bounds = bounds_of_smallest(block, wanted, counting(block, key))
    fill_below(block, key, 0, bounds)


# -- a given local mean -----------------------------------------------------------------------


@kernel
def _mark_each(words: np.ndarray, bounds: np.ndarray, up: np.ndarray) -> None:
    for i in range(words.size):
        up[i] = 1 if words[i] >> np.uint64(11) < bounds[i] else -1


@kernel
def _bounds_of_row(means: np.ndarray, gx: int, lx: int, bounds: np.ndarray) -> bool:
    """Bounds (columns,) of the sites from global gx on; whether all means are -1 to 1."""
    width = lx // means.size
    fine = True
    x, i = gx % lx, 0
    while i < bounds.size:
        mean = means[x // width]
        fine &= -1.0 <= mean <= 1.0
        bound = np.uint64(np.ceil(0.5 * (1.0 + mean) * 2.0**53)) if fine else np.uint64(0)
        stop = min(i + width - x % width, bounds.size)
        x = (x + stop - i) % lx
        while i < stop:
            bounds[i] = bound
            i += 1
    return fine


@kernel
def _mark_profile(
    boxes: Boxes, key: np.ndarray, top: int, means: np.ndarray, spins: np.ndarray
) -> bool:
    """Spins with local means; ``top`` is the first row. Whether all means are -1 to 1."""
    origins, members, (ly, lx) = boxes
    height = ly // means.shape[0]
    words, bounds = np.empty(spins.shape[2], np.uint64), np.empty(spins.shape[2], np.uint64)
    fine = True
    for b in range(spins.shape[0]):
        last = -1
        for i in range(spins.shape[1]):
            gy = (origins[b, 0] + top + i) % ly
            if gy // height != last:
                last = gy // height
                fine &= _bounds_of_row(means[last], origins[b, 1], lx, bounds)
            row_words(key, members[b], gy, origins[b, 1], lx, words)
            _mark_each(words, bounds, spins[b, i])
    return fine


def profile(block: Spins, seed: int, means: np.ndarray) -> None:
    """Independent spins, each with the mean of its place.

    With the same ``means`` everywhere the spins are those of :func:`independent`.

    Parameters
    ----------
    means : (ny, nx) numbers of -1 to 1, one for each block of sites; the sides divide the
        lattice's. The same on all ranks; every member starts from them, with its own noise.
    """
    with block.agreed():
        store_profile(block, seed, arrays.real("means", means), "means", "an array")
    block.fill_halo()


def store_profile(block: Spins, seed: int, means: np.ndarray, name: str, value: str) -> None:
    """Set the inner spins; ``name`` and ``value`` are what errors call the means."""
    lattice = block.lattice.shape
    if means.ndim != 2 or any(
        n < 1 or side % n for n, side in zip(means.shape, lattice, strict=True)
    ):
        raise InputError(
            name,
            value,
            f"means on a grid whose sides divide the lattice's, {lattice}; it is {means.shape}",
            "Use another grid or size.",
        )
    means = np.ascontiguousarray(means, np.float64)
    key = stream_key(seed, "initial")
    for rows in block.bands():
        spins = empty(block, rows)
        if not _mark_profile(boxes_of(block), key, rows.start, means, spins):
            raise InputError(name, value, "means of -1 to 1", "Scale or clip them.")
        block.store(rows, spins)


def require_magnetization(m: float) -> None:
    """Raise unless a mean spin is -1 to 1."""
    if not -1.0 <= m <= 1.0:
        raise InputError("initial_magnetization", m, "-1 to 1", "Try 0.5.")
