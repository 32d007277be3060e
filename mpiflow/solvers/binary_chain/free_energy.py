r"""The variational Gaussian free energy of a chain, its derivatives, and its minimum.

Each atom has a mean spin s, a mean position X and a precision alpha = beta k / 2, whose logarithm
a is the variable here: so alpha is above 0, and all variables are of order 1. With the pair
averages G of :mod:`gaussian_average` and v = (1/alpha_i + 1/alpha_j) / 2, equation (3.12) is

.. math:: F = \sum_{i<j} (f_{ij} - s_i s_j J_{ij} + (s_i + s_j) h_{ij}) + \sum_i c_{i,i+1}
          - \frac{N}{2\beta} + \frac1\beta \sum_i \Bigl[ \frac{1+s_i}{2} \ln\frac{1+s_i}{2}
          + \frac{1-s_i}{2} \ln\frac{1-s_i}{2} - \ln\sqrt{\pi/\alpha_i} \Bigr],

.. math:: J = \tfrac14 (2 G_{AB} - G_{AA} - G_{BB}), \quad h = \tfrac14 (G_{AA} - G_{BB}), \quad
          f = \tfrac14 (G_{AA} + G_{BB} + 2 G_{AB}).

(The paper prints the logarithm of Z_i outside of the factor 1/beta, where it does not belong.)
All pairs count whose quadrature reaches within the cut-off: F is as smooth as the potential.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.solvers.binary_chain.banded import factor, solve
from mpiflow.solvers.binary_chain.gaussian_average import (
    G_M,
    G_MM,
    G_MV,
    G_V,
    G_VV,
    LEAST_ALPHA,
    REACH,
    G,
    average_confinement,
    average_pair,
)
from mpiflow.systems.binary_chain import BinaryChain, Pair, pair_energies, pair_terms

#: Rows of a chain's variables.
S, X, A = range(3)
# Kernels pass orders of derivatives as np.int64(2): they would be compiled anew for a plain 2.
#: Pairs averaged at once, so that what is summed stays in the first cache.
_BLOCK = 128
#: Rows of the couplings of a pair.
J, J_M, J_V, H, H_M, H_V = range(6)


class Potentials(NamedTuple):
    """The potentials of a chain and its temperature, as kernels take them."""

    aa: Pair
    bb: Pair
    ab: Pair
    confinement: float
    beta: float
    alike: bool


class Tables(NamedTuple):
    """What kernels know of all pairs of a chain at one state.

    Attributes
    ----------
    energy : (shells, 6, N) the averaged energy of pairs (i, i + d) and its derivatives by m and v,
        in the order of :mod:`gaussian_average`
    coupling : (shells, 6, N) J and h of them, each with its derivatives by m and v
    drive : (shells, 6, N) the couplings that drive the spins: those, or those at the mean positions
    width : (N,) 1 / (2 alpha) of each atom, its variance
    field : (N,) scratch for f_i
    m, v, aa, bb, ab : scratch of averages
    """

    energy: np.ndarray
    coupling: np.ndarray
    drive: np.ndarray
    width: np.ndarray
    field: np.ndarray
    m: np.ndarray
    v: np.ndarray
    aa: np.ndarray
    bb: np.ndarray
    ab: np.ndarray


def potentials(system: BinaryChain) -> Potentials:
    aa, bb, ab = system.pairs()
    alike = system.one_species_like_the_other
    return Potentials(aa, bb, ab, float(system.confinement), float(system.beta), alike)


class FreeEnergy:
    """F of a chain, for states y (3, N) float64 with rows s, X and a = ln alpha.

    Raises
    ------
    InputError : atoms that are not in order, or an alpha too small for the averages
    """

    def __init__(self, system: BinaryChain) -> None:
        require_rule(system, BinaryChain)
        self.system, self.law, self._pairs = system, potentials(system), tables(system)

    def value(self, y: np.ndarray) -> float:
        """F (3.12)."""
        return value(y, self.law, self._pairs, self._fill(y))

    def gradient(self, y: np.ndarray) -> np.ndarray:
        """By s (3.13), X and a, (3, N); infinite by s where a spin is -1 or 1."""
        shells = self._fill(y)
        out = np.empty_like(y)
        slope(y, self.law, self._pairs, shells, out)
        potential_difference(y, self._pairs.drive, shells, out[S])
        with np.errstate(divide="ignore"):
            out[S] += np.arctanh(y[S]) / self.law.beta
        return out

    def relax(self, y: np.ndarray, most: int = 200) -> int:
        """Move X and a of a state to the minimum of F at its spins; the steps that it took.

        Newton's steps, in which no bond changes by more than a tenth of a unit and no alpha by more
        than a third. (A bound on the positions themselves would stall: those of a long chain move
        far.) Where F does not fall along a step, the matrix gets a multiple of that of springs.
        """
        shells, stiffer = self._fill(y), 0.0
        least = value(y, self.law, self._pairs, shells)
        for made in range(1, most + 1):
            step = self._newton(y, shells, stiffer)
            largest = max(10 * abs(np.diff(step[0])).max(), 3 * abs(step[1]).max())
            if not largest < math.inf:
                break
            new = y.copy()
            new[1:] += step / max(1.0, largest)
            shells = fill(new, self.law, 2, self._pairs)
            now = value(new, self.law, self._pairs, shells) if shells > 0 else math.inf
            if now <= least + 1e-12 * (1 + abs(least)):
                y[1:], least = new[1:], now
                stiffer = 0.25 * stiffer if stiffer > 1e-6 else 0.0
                if largest < 1e-10:
                    require_stiff(y[A], self.law.beta)
                    return made
            else:
                stiffer = max(4 * stiffer, 0.01)
                shells = fill(y, self.law, 2, self._pairs)
        remedy = "Try the depths and lengths of the paper, or a lower temperature."
        raise InputError("system", self.system, "a chain with a minimum of F", remedy)

    def _newton(self, y: np.ndarray, shells: int, stiffer: float) -> np.ndarray:
        """The step (2, N) in X and a at fixed spins, with springs of such a strength."""
        n, half = y.size, 3 * shells + 2
        band, lower = np.zeros((n, 3 * half + 1)), np.empty((n, half))
        curvature(y, self._pairs, shells, half, band)
        for row, spins in ((0, half % 3), (X, (half + 2) % 3), (A, (half + 1) % 3)):
            band[row::3, spins::3] = 0.0  # the columns of s, which are fixed, and its rows
        band[::3] = 0.0
        band[::3, half] = 1.0
        band[A::3, half] += stiffer
        band[X::3, half] += 2 * stiffer
        band[X + 3 :: 3, half - 3] -= stiffer
        band[X + 3 : -3 : 3, half + 3] -= stiffer
        band[X] = 0.0
        band[X, half] = 1.0
        right = np.zeros_like(y)
        slope(y, self.law, self._pairs, shells, right)
        right[X, 0] = y[X, 0]
        right = -right.T.ravel()
        pivots = np.empty((2, n), dtype=np.int64)
        if not factor(band, half, lower, pivots):
            return np.full((2, y.shape[1]), math.inf)
        solve(band, half, lower, pivots, right)
        return np.ascontiguousarray(right.reshape(-1, 3).T[1:])

    def relaxed(self, s: np.ndarray) -> np.ndarray:
        """The state of least F at mean spins (N,)."""
        y = np.empty((3, self.system.sites))
        y[S] = s
        spacing, alpha = self._guess(y[S])
        y[X], y[A] = spacing * np.arange(self.system.sites), np.log(alpha)
        self.relax(y)
        return y

    def _fill(self, y: np.ndarray) -> int:
        if not (np.diff(y[X]) > 0).all():
            raise InputError("x", float(np.diff(y[X]).min()), "atoms in order", "Sort them.")
        require_stiff(y[A], self.law.beta)
        shells = fill(y, self.law, 2, self._pairs)
        if shells < 0:
            remedy = "Start from relaxed positions."
            raise InputError("x", float(y[X, -1]), "a chain less compressed", remedy)
        return shells

    def _guess(self, s: np.ndarray) -> tuple[float, float]:
        """Spacing of least energy among equal ones, and alpha of an atom among fixed ones."""
        system, h = self.system, 1e-3
        shortest = min(system.length_aa, system.length_bb, system.length_ab)
        spacings = shortest * np.linspace(0.7, 1.1, 81)

        def energy(spacing: np.ndarray, moved: float = 0.0) -> np.ndarray:
            total = np.zeros_like(spacing)
            for d in range(1, min(system.bonds_within + 1, system.sites)):
                like, spin = (s[d:] * s[:-d]).mean(), s.mean()
                r = d * spacing + moved
                aa, bb, ab = (pair_energies(r, pair) for pair in system.pairs())
                total += 0.25 * (aa + bb + 2 * ab) - 0.25 * like * (2 * ab - aa - bb)
                total += 0.5 * spin * (aa - bb)
            return total

        best = spacings[[np.argmin(energy(spacings))]]
        stiffness = 2 * (energy(best, h) + energy(best, -h) - 2 * energy(best)) / h**2
        return float(best[0]), max(2 * LEAST_ALPHA, 0.5 * system.beta * float(stiffness[0]))


def require_stiff(log_alpha: np.ndarray, beta: float) -> None:
    """Raise if an alpha is below what the Gaussian averages hold for."""
    least = float(np.exp(log_alpha.min()))
    if not least >= LEAST_ALPHA:
        allowed = f"one at which all alpha are {LEAST_ALPHA:g} or more (the least is {least:.4g})"
        remedy = "Take a lower temperature: atoms so loose are not averaged right."
        raise InputError("beta", beta, allowed, remedy)


def tables(system: BinaryChain, point: bool = False) -> Tables:
    """Room for the pairs of a chain; with couplings at the mean positions if ``point``."""
    shells = min(system.bonds_within + 2, system.sites - 1)
    energy, coupling, drive = np.zeros((3, shells, 6, system.sites))
    averages = np.zeros((3, 6, _BLOCK))
    scratch = np.zeros((2, _BLOCK))
    drive = drive if point else coupling
    return Tables(energy, coupling, drive, *np.zeros((2, system.sites)), *scratch, *averages)


@kernel
def fill(y: np.ndarray, law: Potentials, orders: int, pairs: Tables) -> int:
    """Average all pairs of a chain y (3, N).

    Returns the number of shells of neighbours that count, or -1 where there is nothing to average:
    atoms that are not in order, an alpha below 1, or more shells than there is room for.
    """
    sites = y.shape[1]
    width = pairs.width
    for i in range(sites):
        if not (y[A, i] > 0.0 and (i == 0 or y[X, i] > y[X, i - 1])):
            return -1
        width[i] = 0.5 * np.exp(-y[A, i])
    for d in range(1, sites):
        near = False
        for i in range(sites - d):
            margin = y[X, i + d] - y[X, i] - law.ab.cutoff
            if margin < 0.0 or margin < REACH * np.sqrt(width[i] + width[i + d]):
                near = True
                break
        if not near and d > 1:
            return d - 1
        if d > pairs.energy.shape[0]:
            return -1
        _fill_shell(y, d, law, orders, pairs)
    return sites - 1


@kernel
def _fill_shell(y: np.ndarray, d: int, law: Potentials, orders: int, pairs: Tables) -> None:
    count = y.shape[1] - d
    rows = 6 if orders > 1 else 3
    for start in range(0, count, pairs.m.size):
        n = min(pairs.m.size, count - start)
        m, v = pairs.m[:n], pairs.v[:n]
        for i in range(n):
            m[i] = y[X, start + i + d] - y[X, start + i]
            v[i] = pairs.width[start + i] + pairs.width[start + i + d]
        average_pair(law.aa, m, v, orders, pairs.aa)
        average_pair(law.ab, m, v, orders, pairs.ab)
        other = pairs.aa
        if not law.alike:
            average_pair(law.bb, m, v, orders, pairs.bb)
            other = pairs.bb
        for k in range(rows):
            for i in range(n):
                s, t = y[S, start + i], y[S, start + i + d]
                aa, bb, ab = pairs.aa[k, i], other[k, i], pairs.ab[k, i]
                strength, own = 0.25 * (2.0 * ab - aa - bb), 0.25 * (aa - bb)
                energy = 0.25 * (aa + bb + 2.0 * ab) - s * t * strength + (s + t) * own
                pairs.energy[d - 1, k, start + i] = energy
                if k < 3:
                    pairs.coupling[d - 1, k, start + i] = strength
                    pairs.coupling[d - 1, k + 3, start + i] = own
        if d == 1:
            average_confinement(law.confinement, m, v, orders, pairs.bb)
            for k in range(rows):
                for i in range(n):
                    pairs.energy[0, k, start + i] += pairs.bb[k, i]


@kernel
def fill_points(y: np.ndarray, law: Potentials, shells: int, drive: np.ndarray) -> None:
    """J and h at the mean positions (5.1), which do not depend on alpha, and their slopes."""
    for d in range(1, shells + 1):
        for i in range(y.shape[1] - d):
            m = y[X, i + d] - y[X, i]
            aa, bb, ab = pair_terms(m, law.aa), pair_terms(m, law.bb), pair_terms(m, law.ab)
            for k in range(2):
                drive[d - 1, k, i] = 0.25 * (2.0 * ab[k] - aa[k] - bb[k])
                drive[d - 1, k + 3, i] = 0.25 * (aa[k] - bb[k])


@kernel
def value(y: np.ndarray, law: Potentials, pairs: Tables, shells: int) -> float:
    """F, once the pairs are averaged."""
    sites = y.shape[1]
    total = 0.0
    for d in range(1, shells + 1):
        for i in range(sites - d):
            total += pairs.energy[d - 1, G, i]
    entropy = -0.5 * sites * (1.0 + np.log(np.pi))
    for i in range(sites):
        entropy += 0.5 * y[A, i]
        for p in (0.5 * (1.0 + y[S, i]), 0.5 * (1.0 - y[S, i])):
            if p > 0.0:
                entropy += p * np.log(p)
    return total + entropy / law.beta


@kernel
def slope(y: np.ndarray, law: Potentials, pairs: Tables, shells: int, out: np.ndarray) -> None:
    """The gradient of F by X and a, into rows 1 and 2 of (3, N)."""
    sites = y.shape[1]
    out[X] = 0.0
    out[A] = 0.0
    for d in range(1, shells + 1):
        energy = pairs.energy[d - 1]
        for i in range(sites - d):
            out[X, i] -= energy[G_M, i]
            out[A, i] += energy[G_V, i]
        for i in range(sites - d):
            out[X, i + d] += energy[G_M, i]
            out[A, i + d] += energy[G_V, i]
    for i in range(sites):
        out[A, i] = 0.5 / law.beta - pairs.width[i] * out[A, i]


@kernel
def potential_difference(y: np.ndarray, pairs: np.ndarray, shells: int, out: np.ndarray) -> None:
    """The gradient of F by s without its entropy (3.18), -sum_j J_ij s_j + h_i, into (N,)."""
    sites = y.shape[1]
    out[:] = 0.0
    for d in range(1, shells + 1):
        drive = pairs[d - 1]
        for i in range(sites - d):
            out[i] += drive[H, i] - drive[J, i] * y[S, i + d]
        for i in range(sites - d):
            out[i + d] += drive[H, i] - drive[J, i] * y[S, i]


@kernel
def curvature(y: np.ndarray, pairs: Tables, shells: int, half: int, band: np.ndarray) -> None:
    """Add the rows of X and a of the Hessian of F, all columns, to a band of 3 N rows.

    The first atom is pinned: its row of X is that of the equation X_1 = 0.
    """
    sites = y.shape[1]
    for d in range(1, shells + 1):
        energy, coupling = pairs.energy[d - 1], pairs.coupling[d - 1]
        right, left = half + 3 * d, half - 3 * d
        for i in range(sites - d):
            j = i + d
            p, q = 3 * i + X, 3 * j + X
            ui, uj = pairs.width[i], pairs.width[j]
            mm, mv, vv = energy[G_MM, i], energy[G_MV, i], energy[G_VV, i]
            # by s: of dE/dm and dE/dv of the pair
            mi = coupling[H_M, i] - y[S, j] * coupling[J_M, i]
            mj = coupling[H_M, i] - y[S, i] * coupling[J_M, i]
            vi = coupling[H_V, i] - y[S, j] * coupling[J_V, i]
            vj = coupling[H_V, i] - y[S, i] * coupling[J_V, i]
            band[p, half - 1] -= mi
            band[p, half] += mm
            band[p, half + 1] += mv * ui
            band[p, right - 1] -= mj
            band[p, right] -= mm
            band[p, right + 1] += mv * uj
            band[q, left - 1] += mi
            band[q, left] -= mm
            band[q, left + 1] -= mv * ui
            band[q, half - 1] += mj
            band[q, half] += mm
            band[q, half + 1] -= mv * uj
            p, q = p + 1, q + 1
            band[p, half - 2] -= ui * vi
            band[p, half - 1] += mv * ui
            band[p, half] += ui * (vv * ui + energy[G_V, i])
            band[p, right - 2] -= ui * vj
            band[p, right - 1] -= mv * ui
            band[p, right] += vv * ui * uj
            band[q, left - 2] -= uj * vi
            band[q, left - 1] += mv * uj
            band[q, left] += vv * ui * uj
            band[q, half - 2] -= uj * vj
            band[q, half - 1] -= mv * uj
            band[q, half] += uj * (vv * uj + energy[G_V, i])
    band[X, :] = 0.0
    band[X, half] = 1.0
