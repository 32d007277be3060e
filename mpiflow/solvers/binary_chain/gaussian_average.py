r"""Averages of a potential over a Gaussian distance, and their derivatives.

For two independent Gaussian positions the distance is :math:`r \sim N(m, v)`, and

.. math:: G(m, v) = E[\phi(|r|)] \approx \sum_k w_k \, \phi(|m + \sqrt{v} z_k|)

with the nodes of Gauss and Hermite. All derivatives are those of the sum, not separate sums for
the derivatives of the integral: a free energy made of G and its gradient then agree to rounding,
and so do Newton's steps. They fulfil the heat equation :math:`G_v = G_{mm} / 2` as far as the sum
is converged, which with 16 nodes is 1e-9 of the depth for precisions alpha = 1 / (2 v) as below.

At r = 0 the pair potential has a spike 3e8 high and 0.01 wide, which no such sum sees. For bonds
of atoms with alpha >= :data:`LEAST_ALPHA` it is out of reach; below, whoever takes the averages
has to refuse (the Gaussian itself, which lets atoms pass through each other, is wrong there).
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial.hermite_e import hermegauss

from mpiflow.core.device import kernel
from mpiflow.systems.binary_chain import Pair, confinement_terms, pair_terms

#: Smallest alpha = beta k / 2 of an atom for which the sums hold.
LEAST_ALPHA = 10.0

_NODES, _WEIGHTS = hermegauss(16)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
#: The outermost node, in standard deviations: what lies farther than this counts for nothing.
REACH = float(_NODES[-1])

#: Rows of an average: G, and its derivatives by m, by v, and twice.
G, G_M, G_V, G_MM, G_MV, G_VV = range(6)


@kernel
def average_pair(pair: Pair, m: np.ndarray, v: np.ndarray, orders: int, out: np.ndarray) -> None:
    """Averages of a pair potential, for n distances at once.

    Parameters
    ----------
    pair : the potential
    m, v : (n,) float64 mean and variance, above 0, of each distance
    orders : of derivatives that are asked for, 1 or 2
    out : (6, n) float64 that takes G, G_m, G_v, and of order 2 also G_mm, G_mv, G_vv
    """
    root = np.sqrt(v)
    out[: 6 if orders > 1 else 3] = 0.0
    for k in range(_NODES.size):
        z, w = _NODES[k], _WEIGHTS[k]
        for i in range(m.size):  # distances innermost: the loop vectorises, a sum over k would not
            r = m[i] + root[i] * z
            energy, slope, _ = pair_terms(abs(r), pair)
            slope = w * (slope if r >= 0.0 else -slope)
            out[G, i] += w * energy
            out[G_M, i] += slope
            out[G_V, i] += slope * z
        if orders > 1:
            for i in range(m.size):
                curvature = w * pair_terms(abs(m[i] + root[i] * z), pair)[2]
                out[G_MM, i] += curvature
                out[G_MV, i] += curvature * z
                out[G_VV, i] += curvature * z * z
    _by_variance(v, root, orders, out)


@kernel
def average_confinement(
    radius: float, m: np.ndarray, v: np.ndarray, orders: int, out: np.ndarray
) -> None:
    """The same of the confinement of adjacent atoms."""
    root = np.sqrt(v)
    out[: 6 if orders > 1 else 3] = 0.0
    for i in range(m.size):
        if m[i] + REACH * root[i] <= radius:
            continue  # as nearly all bonds
        for k in range(_NODES.size):
            z, w = _NODES[k], _WEIGHTS[k]
            energy, slope, curvature = confinement_terms(m[i] + root[i] * z, radius)
            out[G, i] += w * energy
            out[G_M, i] += w * slope
            out[G_V, i] += w * slope * z
            if orders > 1:
                out[G_MM, i] += w * curvature
                out[G_MV, i] += w * curvature * z
                out[G_VV, i] += w * curvature * z * z
    _by_variance(v, root, orders, out)


@kernel
def _by_variance(v: np.ndarray, root: np.ndarray, orders: int, out: np.ndarray) -> None:
    """From sums with z to derivatives by v: dr/dv = z / (2 sqrt(v))."""
    for i in range(v.size):
        half = 0.5 / root[i]
        out[G_V, i] *= half
        if orders > 1:
            out[G_MV, i] *= half
            out[G_VV, i] = 0.25 * out[G_VV, i] / v[i] - 0.5 * out[G_V, i] / v[i]
