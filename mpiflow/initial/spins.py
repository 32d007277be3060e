r"""Initial spins, keyed by global site: the same on any number of ranks.

Every function fills the inner sites and the halo of a block, which may be a tile
of one distributed lattice or a batch of whole ones. It works in bands of rows, so
that a tile may fill the memory and still be set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
import scipy.fft
from scipy.optimize import brentq
from scipy.special import ndtr

from mpiflow.core import arrays
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Shape
from mpiflow.core.noise import Word, site_counter, stream_key, threefry, to_unit, uniforms
from mpiflow.files import footer
from mpiflow.files.moments import Moment, times_of

_BINS = 2**19  # of all histograms of the selection together: 4 MB
_DIGITS = 16  # bits that a round of the selection settles at most
_STRIP = 256  # columns that are smoothed together: they stay in cache
_TALL = 64  # rows for which white noise costs little more than smoothing it
_FALL = 60.0  # -ln of the power of the shortest wave of a smooth profile
_CACHE = 2**24  # bytes: a row of compressed chunks of a large frame, which several bands share


class Spins(Protocol):
    """What a block offers to be filled: see :class:`~mpiflow.core.block.Block`.

    A block that stores its spins in another way, as bits for example, has the same.
    """

    @property
    def lattice(self) -> Lattice: ...
    @property
    def origins(self) -> np.ndarray: ...
    @property
    def members(self) -> np.ndarray: ...
    @property
    def batch(self) -> int: ...
    @property
    def shape(self) -> Shape: ...
    def bands(self) -> Iterator[slice]: ...
    def store(self, rows: slice, spins: np.ndarray) -> None: ...
    def fill_halo(self) -> None: ...
    def total(self, values: np.ndarray) -> np.ndarray: ...
    def agreed(self) -> AbstractContextManager[None]: ...


def _fill(block: Spins, bands: Iterator[slice], spins_of: Callable[[slice], np.ndarray]) -> None:
    """Set the spins band by band. ``spins_of(rows)`` is (B, rows, nx) int8."""
    for rows in bands:
        block.store(rows, spins_of(rows))
    block.fill_halo()


def _empty(block: Spins, rows: slice) -> np.ndarray:
    return np.empty((block.batch, rows.stop - rows.start, block.shape[1]), np.int8)


def uniform_up(block: Spins) -> None:
    """All spins up."""
    _fill(block, block.bands(), lambda rows: np.ones_like(_empty(block, rows)))


# -- a word for each site ---------------------------------------------------------------------


@kernel
def _run_words(k0: Word, k1: Word, first: Word, out: np.ndarray) -> None:
    """First words of neighbouring sites (a loop of its own: it compiles 40 times faster)."""
    for i in range(out.size):
        out[i] = threefry(k0, k1, np.uint64(0), first + np.uint64(i))[0]


@kernel
def _row_words(key: np.ndarray, member: Word, gy: int, gx: int, lx: int, out: np.ndarray) -> None:
    """First words of a row of sites from global (gy, gx) on, round the periodic edge."""
    done = 0
    while done < out.size:
        x = (gx + done) % lx
        width = min(out.size - done, lx - x)
        _run_words(key[0], key[1] + member, site_counter(gy, x), out[done : done + width])
        done += width


@kernel
def _mark_row(words: np.ndarray, shift: Word, bound: Word, up: np.ndarray) -> None:
    for i in range(words.size):
        up[i] = 1 if words[i] >> shift < bound else -1


@kernel
def _mark(
    origins: np.ndarray,
    members: np.ndarray,
    lattice: Shape,
    key: np.ndarray,
    top: int,
    shift: Word,
    bounds: np.ndarray,
    spins: np.ndarray,
) -> None:
    """Spins up where word >> shift is below the box's bound; ``top`` is the first row."""
    ly, lx = lattice
    words = np.empty(spins.shape[2], np.uint64)
    for b in range(spins.shape[0]):
        for i in range(spins.shape[1]):
            gy = (origins[b, 0] + top + i) % ly
            _row_words(key, members[b], gy, origins[b, 1], lx, words)
            _mark_row(words, shift, bounds[b], spins[b, i])


def _fill_below(block: Spins, key: np.ndarray, shift: int, bounds: np.ndarray) -> None:
    """Up are the spins whose word, without its ``shift`` lowest bits, is below a bound.

    ``bounds`` is (B,) uint64, one for each box.
    """

    def spins_of(rows: slice) -> np.ndarray:
        spins = _empty(block, rows)
        boxes = block.origins, block.members, block.lattice.shape
        _mark(*boxes, key, rows.start, np.uint64(shift), bounds, spins)
        return spins

    _fill(block, block.bands(), spins_of)


def independent(block: Spins, seed: int, magnetization: float = 0.0) -> None:
    r"""Independent spins with mean ``magnetization`` m, -1 to 1.

    A site is up if the top 53 bits k of its word are below a bound:

    .. math:: 2^{-53} k < \tfrac12 (1 + m) \iff k < \lceil 2^{52} (1 + m) \rceil.
    """
    _require_magnetization(magnetization)
    # Exact: halving and the power of two change only the exponent.
    bound = int(np.ceil(0.5 * (1.0 + magnetization) * 2.0**53))
    bounds = np.full(block.batch, bound, np.uint64)
    _fill_below(block, stream_key(seed, "initial"), 11, bounds)


# -- exactly so many up -----------------------------------------------------------------------


def shuffled(block: Spins, seed: int, magnetization: float | np.ndarray = 0.0) -> None:
    """Exactly ``round(N (1 + m) / 2)`` spins up, all arrangements equally likely.

    Every site draws a 64-bit word and the sites with the smallest words are up.
    The bound between up and down is found digit by digit from histograms summed
    over the ranks, so no rank needs the whole lattice. Words are drawn anew in
    each round, which is faster than to store them.

    Parameters
    ----------
    magnetization : -1 to 1; one number, or (B,) one for each box of a batch
    """
    target = np.broadcast_to(np.asarray(magnetization, float), (block.batch,))
    for m in target:
        _require_magnetization(float(m))
    wanted = np.rint(0.5 * (1.0 + target) * block.lattice.sites).astype(np.int64)
    key = stream_key(seed, "initial")

    def count(left: np.ndarray, bounds: np.ndarray, shift: Word, counts: np.ndarray) -> None:
        boxes = block.origins, block.members, block.lattice.shape
        _count(*boxes, key, block.shape, left, bounds, shift, counts)

    _fill_below(block, key, 0, bounds_of_smallest(block, wanted, count))


def bounds_of_smallest(
    block: Spins, wanted: np.ndarray, count: Callable[..., None], most: int = 64
) -> np.ndarray:
    """Bounds (B,) uint64 below which lie exactly ``wanted`` (B,) words of each box. Collective.

    Radix selection from the top digit down. It ends when all boxes are settled,
    after two or three rounds on all ranks alike. Two equal words at a bound
    (probability below 1e-9 for 1e5 sites) would be marked or left together.

    Parameters
    ----------
    count : ``count(left, bounds, shift, counts)`` adds the words of this rank's sites to the
        histograms ``counts`` (B, digits), with :func:`count_digits`; boxes with ``left`` = 0
        are settled and need no counting
    most : bits of a round at most, where ``count`` needs much memory of its own
    """
    bits = max(2, min(most, _DIGITS, (_BINS // max(1, block.batch)).bit_length() - 1))
    bounds, left, shift = np.zeros(block.batch, np.uint64), wanted.copy(), 64
    while shift > 0 and left.any():
        digits = min(bits, shift)
        shift -= digits
        counts = np.zeros((block.batch, 2**digits), np.int64)
        count(left, bounds, np.uint64(shift), counts)
        _descend(block.total(counts), np.uint64(shift), left, bounds)
    return bounds


@kernel
def count_digits(words: np.ndarray, bound: Word, shift: Word, counts: np.ndarray) -> None:
    """Add the next digits of words that share all digits above with a bound to a histogram."""
    bins = np.uint64(counts.size)
    for i in range(words.size):
        digit = (words[i] - bound) >> shift  # huge for words below the bound: they wrap round
        if digit < bins:
            counts[digit] += 1


@kernel
def _count(
    origins: np.ndarray,
    members: np.ndarray,
    lattice: Shape,
    key: np.ndarray,
    shape: Shape,
    left: np.ndarray,
    bounds: np.ndarray,
    shift: Word,
    counts: np.ndarray,
) -> None:
    """Histograms (B, 2^digits) of the next digit, over the words that share the digits above."""
    ly, lx = lattice
    words = np.empty(shape[1], np.uint64)
    for b in range(counts.shape[0]):
        if left[b] == 0:
            continue
        for i in range(shape[0]):
            gy = (origins[b, 0] + i) % ly
            _row_words(key, members[b], gy, origins[b, 1], lx, words)
            count_digits(words, bounds[b], shift, counts[b])


@kernel
def _descend(counts: np.ndarray, shift: Word, left: np.ndarray, bounds: np.ndarray) -> None:
    """Raise each bound to the digit that holds the next word; ``left`` remain to be marked."""
    for b in range(counts.shape[0]):
        digit = 0
        while left[b] > 0 and counts[b, digit] <= left[b] and digit < counts.shape[1] - 1:
            left[b] -= counts[b, digit]
            digit += 1
        bounds[b] += np.uint64(digit) << shift


# -- a smooth local mean ----------------------------------------------------------------------


def gaussian(
    block: Spins,
    seed: int,
    magnetization: float = 0.0,
    correlation_length: float = 8.0,
    amplitude: float = 0.5,
) -> None:
    r"""Spins with a smooth random local mean, exactly ``round(N (1 + m) / 2)`` of them up.

    .. math:: P(s_i = 1) = (1 + m_i) / 2, \quad m_i = \mathrm{clip}(\mu + a g_i, -1, 1),

    where g is a Gaussian random field of unit variance and covariance
    :math:`e^{-r^2 / 2 \xi^2}`: white noise smoothed with a Gaussian of standard
    deviation :math:`\xi / \sqrt{2}`, cut at four of them. Clipping would move the mean, and so
    would the waves that are longer than the lattice: :math:`\mu` is the number for which this
    lattice has the magnetization m. With the uniform number u of a site it is up if

    .. math:: 2 u - 1 - a g_i < \mu,

    so the sites with the smallest such numbers are up, which are selected as in :func:`shuffled`.

    Parameters
    ----------
    magnetization : m, -1 to 1, to the nearest spin
    correlation_length : xi in sites; the kernel must fit into the lattice
    amplitude : a, 0 or more
    """
    _require_magnetization(magnetization)
    _require_amplitude(amplitude)
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
    streams = "initial-radius", "initial-angle", "initial"
    keys = np.array([stream_key(seed, stream) for stream in streams])

    boxes = block.origins, block.members, block.lattice.shape
    height = max((r.stop - r.start for r in _merged(block.bands(), _TALL)), default=0)
    field = np.empty((height, block.shape[1] + 2 * margin))

    def count(left: np.ndarray, bounds: np.ndarray, shift: Word, counts: np.ndarray) -> None:
        for rows in _merged(block.bands(), _TALL):
            here = keys, rows.start, weights, float(amplitude), field[: rows.stop - rows.start]
            _count_levels(*boxes, *here, left, bounds, shift, counts)

    up = int(np.rint(0.5 * (1.0 + magnetization) * block.lattice.sites))
    bounds = bounds_of_smallest(block, np.full(block.batch, up, np.int64), count, 14)

    def spins_of(rows: slice) -> np.ndarray:
        spins = _empty(block, rows)
        here = keys, rows.start, weights, float(amplitude), field[: spins.shape[1]]
        _toss(*boxes, *here, bounds, spins)
        return spins

    _fill(block, _merged(block.bands(), _TALL), spins_of)


def _merged(bands: Iterator[slice], height: int) -> Iterator[slice]:
    """Bands of at least ``height`` rows (but the last), each of one or more of ``bands``."""
    start = stop = 0
    for band in bands:
        stop = band.stop
        if stop - start >= height:
            yield slice(start, stop)
            start = stop
    if start < stop:
        yield slice(start, stop)


@kernel
def _to_normal(words: np.ndarray, other: np.ndarray, out: np.ndarray) -> None:
    for i in range(words.size):
        out[i] = np.sqrt(-2.0 * np.log(to_unit(words[i]))) * np.cos(2.0 * np.pi * to_unit(other[i]))


@kernel
def _add_scaled(weight: float, row: np.ndarray, out: np.ndarray) -> None:
    for i in range(out.size):
        out[i] += weight * row[i]


@kernel
def _smooth_columns(
    keys: np.ndarray,
    member: Word,
    gy: int,
    gx: int,
    lattice: Shape,
    weights: np.ndarray,
    out: np.ndarray,
) -> None:
    """White noise smoothed along y, from global (gy, gx) on, to ``out`` (rows, columns).

    Each row of noise (standard normals by Box-Muller) is drawn once for a strip of
    columns and added to all rows that it reaches.
    """
    ly, lx = lattice
    margin = weights.size // 2
    rows, columns = out.shape
    out[:] = 0.0
    strip = min(_STRIP, columns)
    radius, angle = np.empty(strip, np.uint64), np.empty(strip, np.uint64)
    noise = np.empty(strip)
    for left in range(0, columns, strip):
        right = min(left + strip, columns)
        row = noise[: right - left]
        for y in range(-margin, rows + margin):
            at = (gy + y) % ly
            _row_words(keys[0], member, at, gx + left, lx, radius)
            _row_words(keys[1], member, at, gx + left, lx, angle)
            _to_normal(radius, angle, noise)
            for i in range(max(0, y - margin), min(rows, y + margin + 1)):
                _add_scaled(weights[y - i + margin], row, out[i, left:right])


@kernel
def _smooth_box(
    keys: np.ndarray,
    member: Word,
    gy: int,
    gx: int,
    lattice: Shape,
    weights: np.ndarray,
    field: np.ndarray,
) -> None:
    """White noise smoothed along y, then x, from global (gy, gx) on.

    ``field`` (rows, columns + 2 margins) has the result in its first columns. Every
    site has a fixed order of additions: the same bits on any tiling, in any bands.
    """
    margin = weights.size // 2
    _smooth_columns(keys, member, gy, gx - margin, lattice, weights, field)
    smooth = np.empty(field.shape[1] - 2 * margin)
    for i in range(field.shape[0]):
        smooth[:] = 0.0
        for offset in range(weights.size):
            _add_scaled(weights[offset], field[i, offset:], smooth)
        field[i, : smooth.size] = smooth


@kernel
def _to_levels(words: np.ndarray, field: np.ndarray, a: float) -> None:
    """Turn words of a row into the numbers 2 u - 1 - a g, as 53 bits in their order, in place."""
    reach = 1.0 + 10.0 * a  # g is beyond 9 in one of 10^18 sites
    for i in range(words.size):
        u = np.float64(words[i] >> np.uint64(11)) * 2.0**-53
        place = (2.0 * u - 1.0 - a * field[i] + reach) * (2.0**52 / reach)
        words[i] = np.uint64(min(max(place, 0.0), 2.0**53 - 1.0)) << np.uint64(11)


@kernel
def _count_levels(
    origins: np.ndarray,
    members: np.ndarray,
    lattice: Shape,
    keys: np.ndarray,
    top: int,
    weights: np.ndarray,
    a: float,
    field: np.ndarray,
    left: np.ndarray,
    bounds: np.ndarray,
    shift: Word,
    counts: np.ndarray,
) -> None:
    """Histograms (B, digits) of the next digit of the levels of rows from ``top`` on."""
    ly, lx = lattice
    words = np.empty(field.shape[1] - weights.size // 2 * 2, np.uint64)
    for b in range(counts.shape[0]):
        if left[b] == 0:
            continue
        gy, gx = origins[b, 0] + top, origins[b, 1]
        _smooth_box(keys, members[b], gy, gx, lattice, weights, field)
        for i in range(field.shape[0]):
            _row_words(keys[2], members[b], (gy + i) % ly, gx, lx, words)
            _to_levels(words, field[i], a)
            count_digits(words, bounds[b], shift, counts[b])


@kernel
def _toss(
    origins: np.ndarray,
    members: np.ndarray,
    lattice: Shape,
    keys: np.ndarray,
    top: int,
    weights: np.ndarray,
    a: float,
    field: np.ndarray,
    bounds: np.ndarray,
    spins: np.ndarray,
) -> None:
    """Up are spins whose level is below a bound; ``field`` is room for g, ``top`` the first row."""
    ly, lx = lattice
    words = np.empty(spins.shape[2], np.uint64)
    for b in range(spins.shape[0]):
        gy, gx = origins[b, 0] + top, origins[b, 1]
        _smooth_box(keys, members[b], gy, gx, lattice, weights, field)
        for i in range(spins.shape[1]):
            _row_words(keys[2], members[b], (gy + i) % ly, gx, lx, words)
            _to_levels(words, field[i], a)
            _mark_row(words, np.uint64(0), bounds[b], spins[b, i])


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
    origins: np.ndarray,
    members: np.ndarray,
    lattice: Shape,
    key: np.ndarray,
    top: int,
    means: np.ndarray,
    spins: np.ndarray,
) -> bool:
    """Spins with local means; ``top`` is the first row. Whether all means are -1 to 1."""
    ly, lx = lattice
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
            _row_words(key, members[b], gy, origins[b, 1], lx, words)
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
        _store_profile(block, seed, arrays.real("means", means), "means", "an array")
    block.fill_halo()


def _store_profile(block: Spins, seed: int, means: np.ndarray, name: str, value: str) -> None:
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
        spins = _empty(block, rows)
        boxes = block.origins, block.members, lattice
        if not _mark_profile(*boxes, key, rows.start, means, spins):
            raise InputError(name, value, "means of -1 to 1", "Scale or clip them.")
        block.store(rows, spins)


def smooth_profile(
    shape: Shape,
    seed: int,
    *,
    correlation_length: float,
    magnetization: float = 0.0,
    amplitude: float = 0.5,
) -> np.ndarray:
    r"""A smooth random field of means on a periodic grid, for :func:`profile` and equations.

    .. math:: m_0 = \mathrm{clip}(\mu + a g, -1, 1), \qquad
        g(x) = \mathrm{Re} \sum_n \sqrt{S_n}\, (a_n - i b_n) e^{2 \pi i n x / L}, \quad
        S_n \propto e^{-2 \pi^2 \xi^2 n^2 / L^2},

    with normal :math:`a_n, b_n` of each wave n alone: g has unit variance and the covariance
    :math:`e^{-r^2 / 2 \xi^2}`, summed over periodic images. The sum is that of all waves
    that matter, also of ones too short for the grid, at the centres x of its cells: a finer
    grid with as much longer a ``correlation_length`` shows the same field in more detail.

    Parameters
    ----------
    shape : (ny, nx), points of the grid
    correlation_length : xi in points of the grid, from 1 to a fifth of the shorter side
    magnetization : m, -1 to 1, on average
    amplitude : a, 0 or more

    Returns
    -------
    (ny, nx) float64
    """
    _require_magnetization(magnetization)
    _require_amplitude(amplitude)
    if not 1.0 <= correlation_length <= min(shape) / 5:
        raise InputError(
            "correlation_length",
            correlation_length,
            f"1 to {min(shape) / 5:g} points of this grid",
            "Choose another one, or another grid.",
        )
    waves, falls, phases = [], [], []
    for side in shape:
        # Beyond the last wave amplitudes are below e^-30 of the largest.
        last = int(np.ceil(side / (2 * np.pi * correlation_length) * np.sqrt(2 * _FALL)))
        n = np.arange(-last, last + 1)
        waves.append(n)
        falls.append(0.5 * (2 * np.pi * correlation_length / side * n) ** 2)
        phases.append(np.exp(1j * np.pi * n / side))  # to the centre of a cell
    norm = np.exp(-falls[0]).sum() * np.exp(-falls[1]).sum()
    spectrum = np.zeros(shape, np.complex128)
    for y, fall, phase in zip(waves[0].tolist(), falls[0], phases[0], strict=True):
        near = fall + falls[1] <= _FALL
        x = waves[1][near]
        sites = np.uint64((y + 2**31) << 32) | (x + 2**31).astype(np.uint64)
        # The counters of initial-radius have step 0 in :func:`gaussian`.
        u = uniforms(seed, "initial-radius", 0, 1, sites)
        normals = np.sqrt(-2.0 * np.log(u[:, 0])) * np.exp(2j * np.pi * u[:, 1])
        sizes = np.sqrt(np.exp(-fall - falls[1][near]) / norm)
        terms = sizes * normals * phase * phases[1][near]
        np.add.at(spectrum[y % shape[0]], x % shape[1], terms)
    field = scipy.fft.ifft2(spectrum, norm="forward").real
    return np.asarray(np.clip(unclipped(magnetization, amplitude) + amplitude * field, -1.0, 1.0))


def unclipped(m: float, a: float) -> float:
    r"""The number mu for which clip(mu + a g, -1, 1), g normal, has the mean m.

    .. math:: m = -1 + \int_{-1}^{1} \Phi \left( \frac{\mu - x}{a} \right) dx
              = -1 + a \left[ F \left( \frac{\mu + 1}{a} \right)
                - F \left( \frac{\mu - 1}{a} \right) \right], \qquad F(z) = z \Phi(z) + \phi(z).
    """
    if a == 0 or m == 0:
        return float(m)

    def excess(mu: float) -> float:
        z = np.array([mu + 1.0, mu - 1.0]) / a
        above = z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
        return float(a * (above[0] - above[1]) - 1.0 - m)

    far = 1.0 + 40.0 * a  # there everything is clipped
    if excess(far) <= 0 or excess(-far) >= 0:
        return float(np.copysign(far, m))
    return float(brentq(excess, -far, far, xtol=1e-14))


# -- files ------------------------------------------------------------------------------------


def from_file(block: Spins, path: str | Path, seed: int = 0, *, moment: Moment = Moment()) -> None:
    """Spins from a ``.npy`` file, or from a frame of the ``spin`` or ``spin_bits`` of a run.

    The array must be (Ly, Lx) of +1 and -1. Each rank reads only its own box, and all
    stop together if one cannot use what it finds. A ``.npy`` of floating-point numbers holds
    the means of a :func:`profile` with this ``seed``. Of an ensemble each member starts from its
    own, unless the moment names one.

    Parameters
    ----------
    moment : which frame and member of a run; the last frame by default
    """
    path = Path(path)
    top, left = (int(o) for o in block.origins[0]) if block.batch else (0, 0)
    with block.agreed(), opened(path, block, moment) as read:
        if isinstance(read, np.ndarray):
            _store_profile(block, seed, read, "initial", str(path))
        else:
            for rows in block.bands():
                box = slice(top + rows.start, top + rows.stop), slice(left, left + block.shape[1])
                spins = read(box)  # (members or 1, rows, columns)
                if not ((spins == 1) | (spins == -1)).all():
                    raise InputError(
                        "initial", str(path), "values +1 and -1 only", "Check the file."
                    )
                every = (block.batch, *spins.shape[1:])
                block.store(rows, np.ascontiguousarray(np.broadcast_to(spins, every), np.int8))
    block.fill_halo()


@contextmanager
def opened(
    path: Path,
    block: Spins,
    moment: Moment,
    names: Sequence[str] = ("spin_bits", "spin"),
    remedy: str = "Save with --spins or --spin-bits.",
) -> Iterator[Callable[[tuple[slice, ...]], np.ndarray] | np.ndarray]:
    """A function that reads a box of the lattice from the file, or all means, mapped.

    Parameters
    ----------
    names : variables of a run that hold sites, the best first
    """
    if not path.is_file():
        raise InputError("initial", str(path), "an existing file", "Check the path.")
    try:
        if arrays.is_array_file(path):
            if _mapped(path).dtype.kind == "f":
                yield _mapped(path)
                return
            # Mapped anew for each box: the pages that were read leave the memory.
            _require_shape(path, _mapped(path).shape, block)
            yield lambda box: np.array(_mapped(path)[box])[None]
            return
        footer.check(path)
        with h5py.File(path, "r", locking=False, rdcc_nbytes=_CACHE) as file:
            name = next((n for n in names if n in file), names[-1])
            if not isinstance(file.get(name), h5py.Dataset):
                found = f"{path}, of {file.attrs.get('system', 'another program')}"
                allowed = f"a Trajectory that holds {' or '.join(map(repr, names[::-1]))}"
                raise InputError("initial", found, allowed, remedy)
            data = file[name]
            if data.ndim not in (3, 4):
                allowed = f"{name} over time, y and x, perhaps members, not {data.ndim} dimensions"
                raise InputError("initial", str(path), allowed, "Check the file.")
            *shape, last = data.shape[-2:]
            _require_shape(path, (*shape, last * (8 if name == "spin_bits" else 1)), block)
            count = data.shape[1] if data.ndim == 4 else 0
            places = moment.places(path, times_of(file, len(data)), count, block.members)
            read = _from_bits if name == "spin_bits" else _values
            yield lambda box: np.array([read(data, place, *box) for place in places])
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "initial", str(path), "a readable .npy or mpiflow HDF5 file", f"Reading said: {error}."
        ) from error


def _values(data: h5py.Dataset, place: tuple[int, ...], rows: slice, columns: slice) -> np.ndarray:
    """Spins of a box of a frame, of a member, of ``spin``."""
    return np.asarray(data[(*place, rows, columns)])


def _from_bits(
    data: h5py.Dataset, place: tuple[int, ...], rows: slice, columns: slice
) -> np.ndarray:
    """Spins of a box of a frame, of a member, of ``spin_bits``."""
    bytes_ = data[(*place, rows, slice(columns.start // 8, -(-columns.stop // 8)))]
    first = columns.start % 8
    bits = np.unpackbits(bytes_, axis=-1)[:, first : first + columns.stop - columns.start]
    return 2 * bits.view(np.int8) - 1


def _mapped(path: Path) -> np.ndarray:
    return arrays.mapped(
        "initial", path, "a readable .npy of spins +1 and -1, or of means of -1 to 1"
    )


def _require_shape(path: Path, shape: tuple[int, ...], block: Spins) -> None:
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


def _require_amplitude(amplitude: float) -> None:
    if not (amplitude >= 0 and np.isfinite(amplitude)):
        raise InputError("amplitude", amplitude, "a finite number, 0 or more", "Try 0.5.")
