r"""Six laws by which mean spins flow along a chain, and the derivatives of what they lead to.

What crosses the bond of the neighbours i and j = i + 1 from j to i is w, with
:math:`f_i = -\sum_k J_{ik} s_k + h_i` (3.18), :math:`g_i = f_i + \beta^{-1} artanh s_i` (3.13)
and :math:`D = f_i - f_j + J_{ij} (s_j - s_i)`, which is (4.36):

========================= =======================================================================
``mean-field`` (4.35)     r [(s_j - s_i) - (1 - s_i s_j) tanh(beta D)], r = 1 / (2 tau)
``point`` (5.1)           the same with J and h at the mean positions
``arrhenius`` (4.39)      r [(1 - s_i)(1 + s_j) e^(-beta D) - (1 + s_i)(1 - s_j) e^(beta D)]
``free-energy`` (3.14)    r (g_j - g_i), r = k_c
``free-energy-limited``   r (1 + s_i)(1 - s_j)(g_j - g_i) if g_i > g_j,
(3.15)                    else r (1 - s_i)(1 + s_j)(g_j - g_i), r = k_r
``master`` (3.16)-(3.18)  as ``arrhenius`` with f_i - f_j for D, r = kappa e^(-beta Q)
========================= =======================================================================

Only bonds between spins that move have a flux, so that the sum of all mean spins stays. Positions
and widths minimise the free energy at each time: together 0 = dF/dX, 0 = dF/da and ds/dt are the
equations M y' = f(y) that :mod:`stiff` integrates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.device import kernel, rule
from mpiflow.solvers.binary_chain.free_energy import (
    H_M,
    H_V,
    J_M,
    J_V,
    A,
    J,
    Potentials,
    S,
    Tables,
    X,
    curvature,
    fill,
    fill_points,
    potential_difference,
    slope,
)

#: The laws, by the numbers that kernels know them by.
MODELS = ("mean-field", "point", "arrhenius", "free-energy", "free-energy-limited", "master")
_POINT, _ARRHENIUS, _FREE_ENERGY, _LIMITED, _MASTER = range(1, 6)


class Dynamics(NamedTuple):
    """A law and its rate r, as kernels take them."""

    model: int
    rate: float


@rule
def flux(
    s: float, t: float, difference: float, coupling: float, beta: float, law: Dynamics
) -> tuple[float, float, float, float, float]:
    """w of a bond, and its derivatives by s_i, s_j, f_i - f_j and J_ij.

    No number where a logarithm has none.

    Parameters
    ----------
    s, t : s_i and s_j
    difference : f_i - f_j
    coupling : J_ij
    """
    r = law.rate
    if law.model == _FREE_ENERGY or law.model == _LIMITED:
        change = (np.arctanh(t) - np.arctanh(s)) / beta - difference
        by_s, by_t = -1.0 / (beta * (1.0 - s * s)), 1.0 / (beta * (1.0 - t * t))
        if law.model == _FREE_ENERGY:
            return r * change, r * by_s, r * by_t, -r, 0.0
        if change < 0.0:
            mobility, slope_s, slope_t = r * (1.0 + s) * (1.0 - t), r * (1.0 - t), -r * (1.0 + s)
        else:
            mobility, slope_s, slope_t = r * (1.0 - s) * (1.0 + t), -r * (1.0 + t), r * (1.0 - s)
        by_s, by_t = mobility * by_s + slope_s * change, mobility * by_t + slope_t * change
        return mobility * change, by_s, by_t, -mobility, 0.0
    alone = 0.0 if law.model == _MASTER else coupling
    barrier = beta * (difference + alone * (t - s))
    if law.model == _ARRHENIUS or law.model == _MASTER:
        here, back = r * np.exp(-barrier), r * np.exp(barrier)
        w = (1.0 - s) * (1.0 + t) * here - (1.0 + s) * (1.0 - t) * back
        by_barrier = -beta * ((1.0 - s) * (1.0 + t) * here + (1.0 + s) * (1.0 - t) * back)
        by_s = -(1.0 + t) * here - (1.0 - t) * back
        by_t = (1.0 - s) * here + (1.0 + s) * back
    else:
        bend = np.tanh(barrier)
        w = r * (t - s - (1.0 - s * t) * bend)
        by_barrier = -r * beta * (1.0 - s * t) * (1.0 - bend * bend)
        by_s, by_t = r * (t * bend - 1.0), r * (s * bend + 1.0)
    by_coupling = 0.0 if law.model == _MASTER else by_barrier * (t - s)
    return w, by_s - by_barrier * alone, by_t + by_barrier * alone, by_barrier, by_coupling


@kernel
def right_side(
    y: np.ndarray, law: Potentials, dynamics: Dynamics, orders: int, pairs: Tables, out: np.ndarray
) -> int:
    """f of M y' = f(y): ds/dt, -dF/dX (that of the first atom: -X_1) and -dF/da, into (3, N).

    Returns the shells that count, or -1 where there is no such state (see :func:`fill`). With
    derivatives of order 2, :func:`jacobian` may follow.
    """
    sites = y.shape[1]
    shells = fill(y, law, orders, pairs)
    if shells < 0:
        return -1
    if dynamics.model == _POINT:
        fill_points(y, law, shells, pairs.drive)
    slope(y, law, pairs, shells, out)
    for i in range(sites):
        out[X, i], out[A, i] = -out[X, i], -out[A, i]
    out[X, 0] = -y[X, 0]
    field = pairs.field
    potential_difference(y, pairs.drive, shells, field)
    out[S] = 0.0
    for i in range(1, sites - 2):
        difference, coupling = field[i] - field[i + 1], pairs.drive[0, J, i]
        w = flux(y[S, i], y[S, i + 1], difference, coupling, law.beta, dynamics)[0]
        out[S, i] += w
        out[S, i + 1] -= w
    return shells


@kernel
def jacobian(
    y: np.ndarray,
    law: Potentials,
    dynamics: Dynamics,
    shells: int,
    pairs: Tables,
    band: np.ndarray,
) -> None:
    """Minus the derivative of :func:`right_side`, site by site (s, X, a), into a band of 3 N rows.

    Its half bandwidth is 3 shells + 5: the flux of a bond is felt by both of its atoms, and driven
    by all within reach of either.
    """
    sites = y.shape[1]
    half = 3 * shells + 5
    band[:] = 0.0
    curvature(y, pairs, shells, half, band)
    field = pairs.field
    potential_difference(y, pairs.drive, shells, field)
    size = 3 * (2 * shells + 2)  # the atoms that drive a bond's flux, from i - shells on
    row = np.zeros(size)
    for i in range(1, sites - 2):
        drive = pairs.drive[0]
        s, t = y[S, i], y[S, i + 1]
        difference = field[i] - field[i + 1]
        _, by_s, by_t, by_f, by_j = flux(s, t, difference, drive[J, i], law.beta, dynamics)
        row[:] = 0.0
        here, there = 3 * shells, 3 * shells + 3
        row[here] += by_s
        row[there] += by_t
        _add_potential(y, pairs.drive, pairs.width, i, shells, by_f, here, row)
        _add_potential(y, pairs.drive, pairs.width, i + 1, shells, -by_f, there, row)
        row[here + X] -= by_j * drive[J_M, i]
        row[there + X] += by_j * drive[J_M, i]
        row[here + A] -= by_j * drive[J_V, i] * pairs.width[i]
        row[there + A] -= by_j * drive[J_V, i] * pairs.width[i + 1]
        for c in range(size):
            band[3 * i, half - here + c] -= row[c]
            band[3 * i + 3, half - there + c] += row[c]


@kernel
def _add_potential(
    y: np.ndarray,
    couplings: np.ndarray,
    width: np.ndarray,
    i: int,
    shells: int,
    factor: float,
    here: int,
    row: np.ndarray,
) -> None:
    """Add ``factor`` times the derivatives of f_i; those by s_i, X_i and a_i are at ``here``."""
    sites = y.shape[1]
    for d in range(1, shells + 1):
        for side in range(2):
            k = i + d if side else i - d
            if k < 0 or k >= sites:
                continue
            sign, first = (factor, i) if side else (-factor, k)
            pair = couplings[d - 1]
            at = here + 3 * (k - i)
            by_m = pair[H_M, first] - y[S, k] * pair[J_M, first]
            by_v = factor * (pair[H_V, first] - y[S, k] * pair[J_V, first])
            row[at] -= factor * pair[J, first]
            row[at + X] += sign * by_m
            row[here + X] -= sign * by_m
            row[at + A] -= by_v * width[k]
            row[here + A] -= by_v * width[i]
