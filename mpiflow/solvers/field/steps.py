r"""One step of a field of block means, by either structure of :mod:`mpiflow.systems.field_law`.

Blocks of N spins with means m feel u = J*m + h, given by ``drive``.

``langevin``
    In the coordinate z with K = beta c (1 - z^2) (dm/dz)^2 the noise alone is Brownian motion on
    a sphere: z is the height of the point, c / N the rate. Turning the point by a Gaussian angle
    leaves the sphere's measure as it is, however long the step; no boundary is ever met, so
    \|m\| < 1 needs no clipping. For K = beta (1 - m^2), z = m and c = 1.
    A step is half a step of noise, a step of the drift

    .. math:: \frac{d}{dt} \operatorname{artanh} z = \beta c \Big[ -\mu \frac{dm}{dz} +
              \frac{1}{\beta N} \frac{d}{dz} \ln \frac{dm}{dz} \Big]

    by the explicit midpoint rule, J*m at both of its stages, and half a step of noise. Of
    second order in law at a time, and of the stationary law: each part alone keeps what it
    should, both together have variances that are :math:`(\lambda \tau)^2 / 2` too large, lambda
    the rate at which z relaxes. ``longest`` bounds tau by it.

``cosh``
    Every block counts its k spins that are up. Each spin is a chain of two states,

    .. math:: a = \kappa\, \frac{1 + \tanh x_+}2 \text{ (up)}, \quad
              b = \kappa\, \frac{1 - \tanh x_-}2 \text{ (down)}, \quad
              x = \beta u + \operatorname{artanh} m - \beta s'(m),

    kappa and artanh m - beta s' halfway between the two m of the jump, and J*m without the
    spin that flips: :math:`x_\pm` have :math:`u \pm J_0 (1 \pm m) / (N - 1)`, J_0 the
    block's coupling to itself. Then what goes up and what comes down is in detailed balance with

    .. math:: \prod_i \binom{N}{k_i} \exp \Big( \beta N \big[ \tfrac12 m_i (J * m)_i + h_i m_i
              + \tfrac{J_0}{2} \tfrac{m_i^2}{N - 1} \big] + 2 \sum_{j < k_i} r_{j + 1/2} \Big),
              \quad r = \operatorname{artanh} m - \beta s',

    which has the entropy of N spins, not of infinitely many. Drift and variance are those of
    :mod:`mpiflow.systems.field_law` up to (J_0 / N)^2, and up to slopes of kappa and r over N.
    Steps as ``midpoint`` of :mod:`mpiflow.solvers.kac.steps`: half a step at frozen rates, half a
    step at rates extrapolated to its end, cut at 0. Second order in law, and exact for spins
    without coupling; m stays a multiple of 2 / N. Where one flip changes rates by a factor of two,
    the cut makes it first order: ``longest`` bounds the step by the coupling and by that factor.

How long a step may be is a matter of the stationary law. The bounds below were chosen so that
variances of blocks are within 1 % of those of the law above, and fourth moments within 2 %, for
N = 1 to 64, T = 0.05 to 5, couplings of either sign and fields: by the exact stationary laws of
the steps, which ``tests/solvers/test_field_stationary.py`` computes for the longest ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.noise import Word, site_counter, threefry

#: u of block means, both (B, n, nx).
Drive = Callable[[np.ndarray], np.ndarray]
#: Key, members, half step, first row.
Noise = tuple[np.ndarray, np.ndarray, np.uint64, int]

#: Blocks that are worked on together: all that is known of them stays in the nearest cache.
TOGETHER = 512


@dataclass(frozen=True)
class Pull:
    r"""Bounds of what blocks feel from each other and from outside.

    Attributes
    ----------
    low, high : of :math:`\hat J(k)`
    own : J_0, the coupling of a block to itself
    other : the largest \|J\| between two blocks
    field : the largest \|h\|
    """

    low: float
    high: float
    own: float
    other: float
    field: float

    @property
    def strongest(self) -> float:
        """Of J*m, for m of a single wave."""
        return max(abs(self.low), abs(self.high))


@kernel
def draw(
    key: np.ndarray,
    members: np.ndarray,
    step: Word,
    top: int,
    shape: tuple[int, int],
    start: int,
    many: int,
    keys: np.ndarray,
    sites: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
) -> None:
    """Two words for each of ``many`` blocks from the flat place ``start`` on.

    ``shape`` is that of one member; ``keys`` and ``sites`` are what they are made of, uint64 too.
    """
    n, nx = shape
    row, x, done = start // nx, start % nx, 0
    while done < many:
        run = min(nx - x, many - done)
        member, site = key[1] + members[row // n], site_counter(top + row % n, x)
        place = np.uint64(done)
        for k in range(run):
            keys[place + np.uint64(k)] = member
            sites[place + np.uint64(k)] = site + np.uint64(k)
        done, row, x = done + run, row + 1, 0
    for k in range(many):
        w0, w1 = threefry(key[0], keys[k], step, sites[k])
        first[k] = w0
        second[k] = w1
