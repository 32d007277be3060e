r"""Smooth initial states: Gaussian random fields as the local mean of spins and of equations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy

from mpiflow.core.device import copy_line, kernel
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.core.noise import Word, normal_pair, stream_key, to_half_open_unit, uniforms
from mpiflow.initial.site_words import (
    Boxes,
    Spins,
    bounds_of_smallest,
    boxes_of,
    count_digits,
    empty,
    fill,
    mark_row,
    row_words,
)
from mpiflow.initial.spins import require_magnetization

#: Of a field of rows from ``top`` on: keys (3, 2) of the streams, the kernel's weights, the
#: amplitude a, and room (rows, columns + 2 margins) for g.
Smoothed = tuple[np.ndarray, np.ndarray, float, np.ndarray]

_STRIP = 256  # columns that are smoothed together: they stay in cache
_TALL = 64  # rows for which white noise costs little more than smoothing it
_FALL = 60.0  # -ln of the power of the shortest wave of a smooth profile

# -- spins of a smooth local mean -------------------------------------------------------------


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
    require_magnetization(magnetization)
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

    height = max((r.stop - r.start for r in _merged(block.bands(), _TALL)), default=0)
    field = np.empty((height, block.shape[1] + 2 * margin))

    def count(left: np.ndarray, bounds: np.ndarray, shift: Word, counts: np.ndarray) -> None:
        for rows in _merged(block.bands(), _TALL):
            here = keys, weights, float(amplitude), field[: rows.stop - rows.start]
            _count_levels(boxes_of(block), rows.start, here, left, bounds, shift, counts)

    up = int(np.rint(0.5 * (1.0 + magnetization) * block.lattice.sites))
    bounds = bounds_of_smallest(block, np.full(block.batch, up, np.int64), count, 14)

    def spins_of(rows: slice) -> np.ndarray:
        spins = empty(block, rows)
        here = keys, weights, float(amplitude), field[: spins.shape[1]]
        _toss(boxes_of(block), rows.start, here, bounds, spins)
        return spins

    fill(block, _merged(block.bands(), _TALL), spins_of)


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
        out[i] = normal_pair(words[i], other[i])[0]


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
            row_words(keys[0], member, at, gx + left, lx, radius)
            row_words(keys[1], member, at, gx + left, lx, angle)
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
        copy_line(field[i, : smooth.size], smooth)


@kernel
def _to_levels(words: np.ndarray, field: np.ndarray, a: float) -> None:
    """Turn words of a row into the numbers 2 u - 1 - a g, as 53 bits in their order, in place."""
    reach = 1.0 + 10.0 * a  # g is beyond 9 in one of 10^18 sites
    for i in range(words.size):
        u = to_half_open_unit(words[i])
        place = (2.0 * u - 1.0 - a * field[i] + reach) * (2.0**52 / reach)
        words[i] = np.uint64(min(max(place, 0.0), 2.0**53 - 1.0)) << np.uint64(11)


@kernel
def _count_levels(
    boxes: Boxes,
    top: int,
    smoothed: Smoothed,
    left: np.ndarray,
    bounds: np.ndarray,
    shift: Word,
    counts: np.ndarray,
) -> None:
    """Histograms (B, digits) of the next digit of the levels of rows from ``top`` on."""
    origins, members, (ly, lx) = boxes
    keys, weights, a, field = smoothed
    words = np.empty(field.shape[1] - weights.size // 2 * 2, np.uint64)
    for b in range(counts.shape[0]):
        if left[b] == 0:
            continue
        gy, gx = origins[b, 0] + top, origins[b, 1]
        _smooth_box(keys, members[b], gy, gx, (ly, lx), weights, field)
        for i in range(field.shape[0]):
            row_words(keys[2], members[b], (gy + i) % ly, gx, lx, words)
            _to_levels(words, field[i], a)
            count_digits(words, bounds[b], shift, counts[b])


@kernel
def _toss(
    boxes: Boxes, top: int, smoothed: Smoothed, bounds: np.ndarray, spins: np.ndarray
) -> None:
    """Up are spins whose level is below a bound; ``top`` is the first row."""
    origins, members, (ly, lx) = boxes
    keys, weights, a, field = smoothed
    words = np.empty(spins.shape[2], np.uint64)
    for b in range(spins.shape[0]):
        gy, gx = origins[b, 0] + top, origins[b, 1]
        _smooth_box(keys, members[b], gy, gx, (ly, lx), weights, field)
        for i in range(spins.shape[1]):
            row_words(keys[2], members[b], (gy + i) % ly, gx, lx, words)
            _to_levels(words, field[i], a)
            mark_row(words, np.uint64(0), bounds[b], spins[b, i])


# -- means on a grid --------------------------------------------------------------------------


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
    require_magnetization(magnetization)
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
        # Complex: NumPy's exp of an array, whose bits a rule for one pair does not have.
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
        above = z * scipy.special.ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)
        return float(a * (above[0] - above[1]) - 1.0 - m)

    far = 1.0 + 40.0 * a  # there everything is clipped
    if excess(far) <= 0 or excess(-far) >= 0:
        return float(np.copysign(far, m))
    return float(scipy.optimize.brentq(excess, -far, far, xtol=1e-14))


def _require_amplitude(amplitude: float) -> None:
    if not (amplitude >= 0 and np.isfinite(amplitude)):
        raise InputError("amplitude", amplitude, "a finite number, 0 or more", "Try 0.5.")
