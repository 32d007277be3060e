r"""Averages of a potential over a Gaussian distance, and their derivatives.

For two independent Gaussian positions the distance is :math:`r \sim N(m, v)`, and

.. math:: G(m, v) = E[\phi(|r|)] \approx \sum_k w_k \, \phi(|m + \sqrt{v} z_k|)

with the nodes of Gauss and Hermite. All derivatives are those of the sum, not separate sums for
the derivatives of the integral: a free energy made of G and its gradient then agree to rounding,
and so do Newton's steps. They fulfil the heat equation :math:`G_v = G_{mm} / 2` as far as the sum
is converged, which with 16 nodes is 1e-9 of the depth for chains like that of the paper.

At r = 0 the pair potential has a spike 3e8 high and 0.01 wide, which no such sum sees. It counts
where atoms may pass through each other, as Gaussian ones may: from :math:`m^2 / (2 v) = 40` on,
which is alpha = 14 of neighbours, or beta = 65 at the ends of the chain of the paper. There the sum
is over nodes that are fixed in r, close together at the spike,

.. math:: G(m, v) \approx \sum_k W_k \, \phi(|r_k|) \, N(r_k; m, v),

and its derivatives are those of the density N. The two sums agree to 1e-9 where one takes over
from the other.
"""

from __future__ import annotations

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss

from mpiflow.core.device import kernel
from mpiflow.systems.binary_chain import Pair, confinement_terms, pair_terms

#: Smallest alpha = beta k / 2 of an atom for which the sums hold.
LEAST_ALPHA = 2.0
#: m^2 / (2 v) below which the spike counts.
_NEAR = 40.0

_NODES, _WEIGHTS = hermegauss(16)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
#: The outermost node, in standard deviations: what lies farther than this counts for nothing.
REACH = float(_NODES[-1])

_PANEL, _PANEL_WEIGHTS = leggauss(8)
#: Nodes and weights of panels of asinh(r / width of the spike), and in units of length beyond it.
_PANELS, _STEP = 12, 0.4

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
    for i in range(m.size):
        if m[i] * m[i] < 2.0 * _NEAR * v[i]:
            for row in range(6 if orders > 1 else 3):
                out[row, i] = 0.0
            _add_with_spike(pair, m[i], v[i], i, orders, out)


@kernel
def _add_with_spike(pair: Pair, m: float, v: float, i: int, orders: int, out: np.ndarray) -> None:
    """Add the average over nodes that resolve the spike, within one unit of length and beyond."""
    narrow = max(np.sqrt(pair.core / pair.stretch), 1e-6)
    end = np.arcsinh(1.0 / narrow)
    for panel in range(_PANELS):
        half = end / _PANELS
        for k in range(_PANEL.size):
            t = (2 * panel + 1 + _PANEL[k]) * half - end
            weight = _PANEL_WEIGHTS[k] * half * narrow * np.cosh(t)
            _add_node(pair, narrow * np.sinh(t), weight, m, v, i, orders, out)
    left = 1.0
    while left < pair.cutoff:
        half = 0.5 * (min(left + _STEP, pair.cutoff) - left)
        for k in range(_PANEL.size):
            r = left + (1.0 + _PANEL[k]) * half
            _add_node(pair, r, _PANEL_WEIGHTS[k] * half, m, v, i, orders, out)
        left += _STEP


@kernel
def _add_node(
    pair: Pair, r: float, weight: float, m: float, v: float, i: int, orders: int, out: np.ndarray
) -> None:
    """W phi(|r|) N(r; m, v) and its derivatives, by m those of the density, by v half of them."""
    q = (r - m) / v
    exponent = -0.5 * q * (r - m)
    if exponent < -60.0:
        return
    part = weight * pair_terms(abs(r), pair)[0] * np.exp(exponent) / np.sqrt(2.0 * np.pi * v)
    twice = q * q - 1.0 / v
    out[G, i] += part
    out[G_M, i] += part * q
    out[G_V, i] += 0.5 * part * twice
    if orders > 1:
        out[G_MM, i] += part * twice
        out[G_MV, i] += 0.5 * part * q * (twice - 2.0 / v)
        out[G_VV, i] += 0.25 * part * (q * q * (q * q - 6.0 / v) + 3.0 / (v * v))


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
