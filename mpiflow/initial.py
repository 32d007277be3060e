r"""Initial spins, keyed by global site: the same on any number of ranks.

Every function fills a :class:`~mpiflow.block.Block`'s inner sites and halo. The
block may be a tile of one distributed lattice or a batch of whole ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from mpiflow.block import Block
from mpiflow.device import kernel
from mpiflow.errors import InputError
from mpiflow.noise import site_counter, stream_key, threefry, to_unit

_DIGITS = 8  # bits settled by each round of the selection


@kernel
def _row_words(k0: np.uint64, k1: np.uint64, first: np.uint64, out: np.ndarray) -> None:
    """First words of neighbouring sites (a loop of its own: it compiles 40 times faster)."""
    for i in range(out.size):
        out[i] = threefry(k0, k1, np.uint64(0), first + np.uint64(i))[0]


@kernel
def _site_words(
    halo: int,
    origins: np.ndarray,
    members: np.ndarray,
    ly: int,
    lx: int,
    key: np.ndarray,
    out: np.ndarray,
) -> None:
    """First word of every site of a box with margin `halo` (two words would be too many)."""
    for b in range(out.shape[0]):
        for i in range(out.shape[1]):
            gy = (origins[b, 0] + i - halo) % ly
            j = 0
            while j < out.shape[2]:
                gx = (origins[b, 1] + j - halo) % lx
                width = min(out.shape[2] - j, lx - gx)
                first = site_counter(gy, gx)
                _row_words(key[0], key[1] + members[b], first, out[b, i, j : j + width])
                j += width


def _words(block: Block, seed: int, stream: str, margin: int = 0) -> np.ndarray:
    ny, nx = block.shape
    out = np.empty((block.batch, ny + 2 * margin, nx + 2 * margin), np.uint64)
    _site_words(
        margin,
        block.origins,
        block.members,
        *block.lattice.shape,
        stream_key(seed, stream),
        out,
    )
    return out


def uniform_up(block: Block) -> None:
    """All spins up."""
    block.load(np.ones((block.batch, *block.shape), np.int8))


def independent(block: Block, seed: int, magnetization: float = 0.0) -> None:
    """Independent spins with mean ``magnetization``, -1 to 1."""
    _require_magnetization(magnetization)
    u = (_words(block, seed, "initial") >> np.uint64(11)) * 2.0**-53
    block.load(np.where(u < 0.5 * (1.0 + magnetization), 1, -1).astype(np.int8))


def shuffled(block: Block, seed: int, magnetization: float | np.ndarray = 0.0) -> None:
    """Exactly ``round(N (1 + m) / 2)`` spins up, all arrangements equally likely.

    Every site draws a 64-bit word and the sites with the smallest words are up.
    The largest word that is still up is found digit by digit from histograms
    summed over the ranks, so no rank needs the whole lattice.

    Parameters
    ----------
    magnetization : -1 to 1; one number, or (B,) one for each box of a batch
    """
    target = np.broadcast_to(np.asarray(magnetization, float), (block.batch,))
    for m in target:
        _require_magnetization(float(m))
    sites = block.lattice.sites
    wanted = np.rint(0.5 * (1.0 + target) * sites).astype(np.int64)
    words = _words(block, seed, "initial")
    spins = np.full(words.shape, -1, np.int8)
    for row, up, count in zip(words, spins, wanted, strict=True):
        up[_smallest(row, count, block.total)] = 1
    block.load(spins)


def _smallest(
    words: np.ndarray, wanted: int, total: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Mark the ``wanted`` smallest words of a lattice whose sites may be spread over ranks.

    Radix selection from the top digit down; ``total`` sums counts over ranks. Two
    equal words at the boundary (probability below 1e-9 for 1e5 sites) would be
    marked or left together.
    """
    prefix, remaining = 0, int(wanted)
    candidates = words.reshape(-1)
    for shift in range(64 - _DIGITS, -1, -_DIGITS):
        digits = (candidates >> np.uint64(shift)) & np.uint64(2**_DIGITS - 1)
        counts = total(np.bincount(digits.astype(np.int64), minlength=2**_DIGITS))
        below = np.cumsum(counts)
        # The digit in which the count of smaller words first exceeds what is wanted.
        digit = min(int(np.searchsorted(below, remaining, side="right")), 2**_DIGITS - 1)
        remaining -= int(below[digit] - counts[digit])
        prefix = (prefix << _DIGITS) | digit
        candidates = candidates[digits == digit]
    return words < np.uint64(prefix)


def gaussian(
    block: Block,
    seed: int,
    magnetization: float = 0.0,
    correlation_length: float = 8.0,
    amplitude: float = 0.5,
) -> None:
    r"""Spins with a smooth random local mean.

    .. math:: P(s_i = 1) = (1 + m_i) / 2, \quad m_i = \mathrm{clip}(m + a g_i, -1, 1),

    where g is a Gaussian random field of unit variance and covariance
    :math:`e^{-r^2 / 2 \xi^2}`: white noise smoothed with a Gaussian of standard
    deviation :math:`\xi / \sqrt{2}`, cut at four of them.

    Parameters
    ----------
    correlation_length : xi in sites; the kernel must fit into the lattice
    amplitude : a, 0 or more
    """
    _require_magnetization(magnetization)
    if not (amplitude >= 0 and np.isfinite(amplitude)):
        raise InputError("amplitude", amplitude, "a finite number, 0 or more", "Try 0.5.")
    width = correlation_length / np.sqrt(2.0)
    widest = (min(block.lattice.shape) - 1) // 2
    if not 0.0 < 4.0 * width <= widest:
        raise InputError(
            "correlation_length",
            correlation_length,
            f"above 0 and at most {np.floor(353 * widest) / 1000:g} sites on this lattice",
            "Choose a shorter one or a larger lattice.",
        )
    margin = int(np.ceil(4.0 * width))
    weights = np.exp(-0.5 * (np.arange(-margin, margin + 1) / width) ** 2)
    weights /= np.sqrt(np.sum(weights**2))  # unit variance
    field = _normal_field(block, seed, margin)
    # A fixed order of additions for each site: the same bits on any tiling.
    for axis in (1, 2):
        n = field.shape[axis] - 2 * margin
        index = [slice(None)] * 3
        smooth: np.ndarray | float = 0.0
        for offset, weight in enumerate(weights):
            index[axis] = slice(offset, offset + n)
            smooth = smooth + weight * field[tuple(index)]
        field = np.asarray(smooth)
    local = np.clip(magnetization + amplitude * field, -1.0, 1.0)
    u = (_words(block, seed, "initial") >> np.uint64(11)) * 2.0**-53
    block.load(np.where(u < 0.5 * (1.0 + local), 1, -1).astype(np.int8))


@kernel
def _to_normal(words: np.ndarray, other: np.ndarray, out: np.ndarray) -> None:
    for i in range(words.size):
        out[i] = np.sqrt(-2.0 * np.log(to_unit(words[i]))) * np.cos(2.0 * np.pi * to_unit(other[i]))


def _normal_field(block: Block, seed: int, margin: int) -> np.ndarray:
    """Standard normals at every site of a box with a margin (Box-Muller)."""
    radius = _words(block, seed, "initial-radius", margin)
    angle = _words(block, seed, "initial-angle", margin)
    out = np.empty(radius.shape)
    _to_normal(radius.reshape(-1), angle.reshape(-1), out.reshape(-1))
    return out


def from_file(block: Block, path: str | Path) -> None:
    """Spins from a ``.npy`` file or from the last frame of a Trajectory's ``spin``.

    The array must be (Ly, Lx) of +1 and -1. Each rank reads only its own box, and all
    stop together if one cannot use what it finds.
    """
    path = Path(path)
    with block.agreed():
        spins = _read_box(path, block)
        if not np.isin(spins, (-1, 1)).all():
            raise InputError("initial", str(path), "values +1 and -1 only", "Check the file.")
    block.load(spins.astype(np.int8)[None])


def _read_box(path: Path, block: Block) -> np.ndarray:
    origin = block.origins[0] if block.batch else (0,) * block.lattice.ndim
    box = tuple(slice(int(o), int(o) + n) for o, n in zip(origin, block.shape, strict=True))
    if not path.is_file():
        raise InputError("initial", str(path), "an existing file", "Check the path.")
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            _require_shape(path, array.shape, block)
            return np.array(array[box])
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("spin"), h5py.Dataset):
                raise InputError(
                    "initial", str(path), "a Trajectory that holds 'spin'", "Save with --spins."
                )
            data = file["spin"]
            _require_shape(path, data.shape[1:], block)
            if len(data) == 0:
                raise InputError("initial", str(path), "a file with a frame", "Save one.")
            return np.asarray(data[(-1, *box)])
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "initial", str(path), "a readable .npy or mpiflow HDF5 file", f"Reading said: {error}."
        ) from error


def _require_shape(path: Path, shape: tuple[int, ...], block: Block) -> None:
    if tuple(shape) != block.lattice.shape:
        raise InputError(
            "initial",
            str(path),
            f"spins of shape {block.lattice.shape}, the file has {tuple(shape)}",
            "Use a matching --size.",
        )


def _require_magnetization(m: float) -> None:
    if not -1.0 <= m <= 1.0:
        raise InputError("initial_magnetization", m, "-1 to 1", "Try 0.5.")
