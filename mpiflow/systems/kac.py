r"""The Ising model with a Kac coupling: every spin feels many others, each a little.

.. math:: H = -\tfrac12 \sum_{x \ne y} J(x - y) s_x s_y - \sum_x h_x s_x, \qquad
          u_x = h_x + \sum_{y \ne x} J(x - y) s_y,

with Glauber rates :math:`r_x = 1 / (1 + e^{2 \beta s_x u_x})` [De Masi et al., Nonlinearity
7, 633 (1994)]: one attempt per spin and unit of time. J is a Gaussian of standard deviation
gamma sites, with J(0) = 0 and sum 1, so that the critical temperature of mean field is 1.

Its weights are integers, so that sums of spins are exact in any order and by any method:

.. math:: J(x) = w_{|x_1|} w_{|x_2|} / Z, \quad x \ne 0, \qquad Z = S^2 - w_0^2, \quad
          S = \sum_k w_{|k|}.

This quantised kernel *is* the model's J, in the equations of
:mod:`mpiflow.solvers.field.mesoscopic` too. ``gamma = 0`` is the limit of short range: the four
nearest neighbours, J = 1/4 each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import scipy

from mpiflow.core.device import rule
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.systems.rule import require_scalars

#: Bound of S: every sum of S^2 signs fits int32, with room for sums of two.
MAX_SUM = 2**15 - 1
#: S of short kernels (12 bits), and the fewest levels of long ones.
SUM, LEVELS = 4095, 48
#: The smallest standard deviation that a Gaussian of integer weights can have here.
SMALLEST = 0.25


@dataclass(frozen=True, eq=False)
class KacKernel:
    """The quantised kernel.

    Attributes
    ----------
    gamma : the standard deviation asked for, in sites; 0 for nearest neighbours
    weights : (reach + 1,) int64, not increasing but for nearest neighbours: w_0, w_1, ...
    """

    gamma: float
    weights: np.ndarray

    @property
    def nearest(self) -> bool:
        """Whether J is 1/4 for the four nearest neighbours, which is no product."""
        return self.gamma == 0

    @property
    def reach(self) -> int:
        """The farthest neighbour along an axis, in sites."""
        return len(self.weights) - 1

    @cached_property
    def sum(self) -> int:
        """S, the sum of the weights of one axis."""
        return int(2 * self.weights.sum() - self.weights[0])

    @cached_property
    def norm(self) -> int:
        """Z, the sum of the integer weights of all neighbours."""
        return 2 * self.sum if self.nearest else self.sum**2 - int(self.weights[0]) ** 2

    @cached_property
    def largest(self) -> float:
        """max J: of the nearest of all neighbours."""
        near = int(self.weights[1])
        return near / self.norm if self.nearest else int(self.weights[0]) * near / self.norm

    @cached_property
    def drops(self) -> np.ndarray:
        """w_k - w_{k+1} for k = 0..reach, (reach + 1,) int64: few are not 0 if gamma is large."""
        return self.weights - np.append(self.weights[1:], 0)

    @cached_property
    def second_moment(self) -> float:
        r""":math:`\sum_x x_1^2 J(x)`, in sites squared: (gamma^2 plus what excluding 0 adds)."""
        k = np.arange(self.reach + 1)
        across = int(2 * (k * k * self.weights).sum())
        return across / self.norm if self.nearest else across * self.sum / self.norm

    def distance(self) -> float:
        """Half the sum of |J - Gaussian| over all sites but 0: 0 to 1; 0 for nearest neighbours."""
        if self.nearest:
            return 0.0
        k = np.arange(math.ceil(8 * self.gamma) + self.reach + 2)
        exact = np.exp(-0.5 * (k / self.gamma) ** 2)
        own = np.zeros(len(k))
        own[: self.reach + 1] = self.weights
        twice = np.where(k == 0, 1.0, 2.0)
        planes = []
        for w in (exact, own):
            plane = np.outer(w, w)
            plane[0, 0] = 0.0
            planes.append(plane / (np.outer(twice, twice) * plane).sum())
        return float(0.5 * (np.outer(twice, twice) * abs(planes[0] - planes[1])).sum())

    def require_room(self, shape: Shape) -> None:
        """Raise unless a site meets each of its neighbours once on a periodic lattice."""
        if 2 * self.reach + 1 > min(shape):
            raise InputError(
                "gamma",
                self.gamma,
                f"a kernel no wider than the lattice: it reaches {self.reach} sites each way, "
                f"a side has {min(shape)}",
                f"Use at least {2 * self.reach + 1} sites a side, or gamma below about "
                f"{min(shape) / 7:.3g}.",
            )

    def dense(self) -> np.ndarray:
        """J on its support, (2 reach + 1, 2 reach + 1) float64; the centre is x = 0."""
        line = np.concatenate([self.weights[:0:-1], self.weights])
        if self.nearest:
            origin = np.array([0, 1, 0])
            return (np.outer(line, origin) + np.outer(origin, line)) / self.norm
        out = np.outer(line, line).astype(float)
        out[self.reach, self.reach] = 0.0
        return out / self.norm

    def symbol(self, shape: Shape, block: int = 1) -> tuple[np.ndarray, np.ndarray, float]:
        r"""J in Fourier space, (a_y, a_x, c): :math:`\hat J(k) = a_y a_x - c`.

        For nearest neighbours it is :math:`a_y + a_x - c`. On a grid of blocks, the kernel
        is its mean over all pairs of sites of two blocks: exact for fields that are constant
        on blocks.

        Parameters
        ----------
        shape : points of the grid along each axis; the lattice has ``block`` times as many sites
        block : sites a side of a point of the grid

        Returns
        -------
        a_y (ny,), a_x (nx // 2 + 1,) float64, as :func:`scipy.fft.rfft2` orders them, and c
        """
        first = self._line(shape[0], block)
        second = self._line(shape[1], block)[: shape[1] // 2 + 1]
        if self.nearest:
            return first / self.norm, second / self.norm, 0.0
        scale = math.sqrt(self.norm)
        return first / scale, second / scale, int(self.weights[0]) ** 2 / self.norm

    def _line(self, points: int, block: int) -> np.ndarray:
        """The transform of the weights of one axis, blocks against blocks: (points,) float64."""
        k = np.arange(-self.reach, self.reach + 1)
        weights = self.weights[abs(k)]
        inside = np.arange(block)
        line = np.zeros(points)
        for i in inside:  # the site of the block that feels; all that it feels
            np.add.at(line, (i + k) // block % points, weights / block)
        return np.real(np.fft.fft(line))


@lru_cache(maxsize=32)
def kac_kernel(gamma: float) -> KacKernel:
    r"""The kernel of standard deviation ``gamma`` sites.

    Weights are :math:`w_k = \mathrm{round}(P e^{-k^2 / 2 \sigma^2})`. P gives sums S of about
    4095, and at least 48 levels for wide kernels as long as S < 2^15; sigma is such that
    :math:`\sum_k k^2 w_k / S` is as near to gamma^2 as rounding allows (gamma itself below 1).

    Raises
    ------
    InputError : gamma is neither 0 nor from 0.25 on, or too large for any weights
    """
    gamma = float(gamma)
    if gamma == 0:
        return KacKernel(0.0, np.array([0, 1]))
    widest = MAX_SUM / (4 * math.sqrt(2 * math.pi))
    if not SMALLEST <= gamma <= widest:
        raise InputError(
            "gamma",
            gamma,
            f"0 (nearest neighbours), or {SMALLEST} to {widest:.0f} sites",
            "Try 8.",
        )
    area = max(1.0, math.sqrt(2 * math.pi) * gamma)
    top = int(min(max(SUM / area, LEVELS), 0.99 * MAX_SUM / area))

    def weights_of(sigma: float) -> np.ndarray:
        k = np.arange(math.ceil(6 * sigma) + 2)
        weights = np.rint(top * np.exp(-0.5 * (k / sigma) ** 2)).astype(np.int64)
        return weights[weights > 0]

    def error_of(sigma: float) -> float:
        weights = weights_of(sigma)
        k = np.arange(len(weights))
        variance = 2 * (k * k * weights).sum() / (2 * weights.sum() - weights[0])
        return abs(float(variance) - gamma**2)

    # Of a few sites there is no more to match than the values of the Gaussian themselves.
    sigma = min(gamma * np.linspace(0.97, 1.08, 1101), key=error_of) if gamma >= 1 else gamma
    return KacKernel(gamma, weights_of(float(sigma)))


@rule
def lookup(table: np.ndarray, shift: int, offset: int, v: int) -> np.int64:
    """Value of a table at an integer, between its entries by a straight line.

    Integers throughout: the same on every device.
    """
    top = (np.int64(table.size - 1) << shift) - 1
    place = min(max(np.int64(v) + offset, np.int64(0)), top)
    i = place >> shift
    low, high = np.int64(table[i]), np.int64(table[i + 1])
    # 16 bits of the fraction: the product fits 64 bits.
    part = (place - (i << shift)) << 16 >> shift
    return low + ((high - low) * part >> 16)


@dataclass(frozen=True)
class Scale:
    """Fields as integers: U = (multiplier * sum >> shift) + H is the field times ``unit``."""

    multiplier: int
    shift: int
    unit: float


@dataclass(frozen=True)
class Kac:
    """A Kac-Ising model.

    Parameters
    ----------
    temperature : T > 0
    gamma : standard deviation of the coupling in sites; 0 for nearest neighbours
    field : uniform external field h

    Raises
    ------
    InputError : the temperature is not above 0, gamma is below 0, or a number is not finite
    """

    temperature: float
    gamma: float
    field: float = 0.0

    #: A table of rates has 4096 intervals for exponents 2 beta u of -24 to 24: below, rates differ
    #: from 1 by 4e-11. It goes on to 67, where rates are below 2^-96.
    INTERVALS, MIDDLE, HIGHEST = 4096, 24.0, 67.0
    #: Parameters that no schedule may change: the sums over neighbours are made for one kernel.
    FIXED = ("gamma",)

    def __post_init__(self) -> None:
        require_scalars(self, ("temperature", "gamma", "field"))
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise InputError("temperature", self.temperature, "a finite number above 0", "Try 1.")
        if not math.isfinite(self.field):
            raise InputError("field", self.field, "a finite number", "Try 0.")
        kac_kernel(self.gamma)  # says what is wrong

    @property
    def beta(self) -> float:
        """1 / T."""
        return 1.0 / self.temperature

    @property
    def kernel(self) -> KacKernel:
        """Its coupling, see :func:`kac_kernel`."""
        return kac_kernel(self.gamma)

    def scale(self, largest: float) -> Scale:
        """The integers of fields of up to 1 + ``largest``, the external one: below 2^30."""
        norm, room = self.kernel.norm, 2**30 / (1 + largest)
        if room < 2**16:
            raise InputError("field", largest, f"at most {2**14 - 1}", "Lower it.")
        shift = max(0, math.ceil(math.log2(norm / room)))
        multiplier = max(1, int(room / norm)) if shift == 0 else 1
        return Scale(multiplier, shift, norm * multiplier / 2**shift)

    def rates(self, u: np.ndarray | float) -> np.ndarray:
        """Rates of flipping against fields ``u = s_x u_x``, float64."""
        return np.asarray(scipy.special.expit(-2.0 * self.beta * np.asarray(u)))

    def grid(self, scale: Scale) -> tuple[np.ndarray, int, int]:
        """Fields u of the entries of a table, and the shift and offset of :func:`lookup`.

        Beyond the ends rates hardly change, or the field cannot be so large.
        """
        unit = scale.unit * 0.5 * self.temperature  # of an exponent of 1
        middle, highest = (min(2.0**30, unit * end) for end in (self.MIDDLE, self.HIGHEST))
        shift = max(0, math.ceil(math.log2(2 * middle / self.INTERVALS)))
        below = self.INTERVALS // 2
        above = max(below, math.ceil(highest / 2**shift))
        points = np.arange(-below, above + 1) << shift
        return points / scale.unit, shift, below << shift
