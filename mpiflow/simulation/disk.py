"""Bytes of a finished file: of what is small from made-up frames, compressed as HDF5 does it.

Observables are quotients of whole numbers, counters and clocks: how far they compress depends on
the number of sites and on how far frames are apart. Numbers of the same kind are drawn and packed,
which takes milliseconds and knows no file. Of large fields the measured shares of
:mod:`mpiflow.simulation.sizes` are taken.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpiflow.core.lattice import Shape

# Of the schema: frames and bytes of a chunk of small frames, and of a chunk of large ones.
_ROWS, _SMALL_CHUNK, _LARGE_CHUNK = 1024, 2**16, 2**20
# Most bytes that are packed to learn a share.
_SAMPLE = 2**16
# Bytes around the data, fitted to files of all systems within a tenth: of the file, a variable, a
# dimension, a chunk, and the index of a variable of many chunks.
_FILE, _VARIABLE, _DIMENSION, _CHUNK, _INDEX = 6000, 1000, 900, 25, 1000


def around(variables: Sequence[tuple[int, int]], dimensions: int) -> int:
    """Bytes of a sealed file beside its values.

    Parameters
    ----------
    variables : bytes of a frame and number of frames of each
    dimensions : how many, time included
    """
    chunks = [_chunks(frame, frames) for frame, frames in variables]
    indexed = sum(number > 4 for number in chunks)
    size = _FILE + _VARIABLE * (len(chunks) - 1) + _DIMENSION * dimensions
    return size + _CHUNK * (sum(chunks) + dimensions - 1) + _INDEX * indexed


def _rows(frame: int) -> int:
    return max(1, min(_ROWS, _SMALL_CHUNK // frame))


def _chunks(frame: int, frames: int) -> int:
    if frame < 4096:
        return -(-frames // _rows(frame))
    return frames * -(-frame // _LARGE_CHUNK)


def packed(values: np.ndarray, rows: int) -> int:
    """Bytes of frames, (n, ...), in a chunk of so many rows: shuffled, gzip 1, a checksum."""
    fill = np.full(
        (rows - len(values), *values.shape[1:]), np.nan if values.dtype.kind == "f" else 0
    )
    whole = np.ascontiguousarray(np.concatenate([values, fill.astype(values.dtype)]))
    by_byte = whole.view(np.uint8).reshape(-1, values.dtype.itemsize).T
    return len(zlib.compress(by_byte.tobytes(), 1)) + 4


def numbers(config: Any, name: str, shape: Shape, frames: int) -> int:
    """Bytes of all frames of a variable that is not a field: a number, or one for each member."""
    count, width = math.prod(shape), 8
    rows = _rows(width * count) if width * count < 4096 else 1
    members = min(count, _SAMPLE // (width * rows))
    part = count / members  # more members than are drawn

    def chunk(n: int) -> float:
        drawn = _draw(config, name, (n, members), count)
        return part * packed(drawn, rows)

    whole, rest = divmod(frames, rows)
    size = whole * chunk(rows) if whole else 0.0
    return math.ceil(size + (chunk(rest) if rest else 0.0))


# -- made-up frames ------------------------------------------------------------------------------


def _draw(config: Any, name: str, shape: tuple[int, int], count: int) -> np.ndarray:
    """Numbers like those of a variable, (frames, values)."""
    rng = np.random.default_rng(0)
    if name == "time":
        return _times(config, shape[0], rng)[:, None]
    make = _MAKERS.get(name)
    values = None if make is None else make(config, shape, rng)
    if values is None:  # numbers without a pattern
        values = rng.normal(size=shape)
    return values


def _times(config: Any, frames: int, rng: np.random.Generator) -> np.ndarray:
    if getattr(config, "hops", None) is not None:
        return np.cumsum(rng.exponential(1e-9, frames))
    if getattr(config, "frames_per_decade", None) is not None:
        due = config.frames_due()
        return np.array([due.target(number) for number in range(min(frames, due.last + 1))])
    every = config.save_every or config.time
    return np.arange(frames) * float(every)


def _sites(config: Any) -> int:
    size = config.size
    return math.prod(size) if isinstance(size, tuple | list) else int(size)


def _means(parts: int, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Quotients of whole numbers, which fluctuate as sums of so many parts do."""
    x = 0.3 + 2.0 * rng.normal(size=shape) / math.sqrt(parts)
    return np.rint(np.clip(x, -1, 1) * parts) / parts


def _magnetization(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray | None:
    # The mean of a learned field of float64 has no pattern.
    if config.system == "onsagerflow":
        return None
    sites = _sites(config)
    return 2 * np.rint(_means(sites, shape, rng) * sites / 2) / sites


def _walls(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray:
    return _means(2 * _sites(config), shape, rng)


def _energy(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray | None:
    if config.system == "ising":
        w, m = _walls(config, shape, rng), _magnetization(config, shape, rng)
        return -2 * config.coupling * (1 - 2 * w) - config.field * m
    if config.system == "curie-weiss":
        m = _magnetization(config, shape, rng)
        return -0.5 * config.coupling * m * m - config.field * m
    return None  # Kac couplings


def _flips(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray:
    mean = min(0.25 * _sites(config) * config.save_every, 1e15)
    return np.cumsum(rng.poisson(mean, shape), axis=0)


def _hops(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray:
    if config.hops is None:
        return np.cumsum(rng.poisson(100, shape), axis=0)
    return np.repeat(np.arange(shape[0])[:, None] * int(config.save_every or 1), shape[1], 1)


def _bonds(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray:
    """Counts of bonds, which a hop changes by a few."""
    hops = float(config.save_every or 1) if config.hops is not None else 100.0
    steps = rng.normal(size=shape) * math.sqrt(hops) / 2
    start = 8 * math.prod(config.cells) / (len(config.elements) + 1) ** 2
    return np.maximum(1, np.rint(start + np.cumsum(steps, axis=0))).astype(np.int64)


def _order(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray:
    """An order parameter of such counts and of the number of atoms of a kind."""
    atoms = 2 * math.prod(config.cells) / (len(config.elements) or 1)
    return _bonds(config, shape, rng) / atoms - 1 / 3


def _window(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray:
    return np.full(shape, 4.7e-11)  # chosen at the beginning, and now and then


def _windows(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray:
    return np.cumsum(rng.poisson(100, shape), axis=0)


def _exchanges(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray:
    mean = min(0.1 * _sites(config) * (config.save_every or 1.0), 1e15)
    return np.cumsum(rng.poisson(mean, shape), axis=0)


def _minimum(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray:
    return 1 + np.arange(shape[0])[:, None] * 6 // shape[0] + np.zeros((1, shape[1]), np.int64)


def _ab_bonds(config: Any, shape: tuple[int, int], rng: Any) -> np.ndarray | None:
    """Whole numbers of the process, mean ones of equations."""
    if not config.stochastic:
        return None
    return np.rint(0.5 * _sites(config) + np.sqrt(_sites(config)) * rng.normal(size=shape))


_MAKERS: dict[str, Any] = {
    "magnetization": _magnetization,
    "domain_wall_density": _walls,
    "energy": _energy,
    "flips": _flips,
    "exchanges": _exchanges,
    "first_minimum": _minimum,
    "ab_bonds": _ab_bonds,
    "hops": _hops,
    "window": _window,
    "windows": _windows,
    "bonds": _bonds,
    "sro": _order,
    "warren_cowley": _order,
    "long_range_order": _order,
}
