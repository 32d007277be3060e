r"""A slow closure of an Ising lattice without a field, and the reversible SDE of (M, closure).

Near the critical point the drift of the magnetisation M is what decides equilibrium, and it is
small beside its own scatter from state to state. So the closure is made to take that scatter away,

.. math:: \psi = M + \sum_k \alpha_k \varphi_k, \qquad
          \alpha = \arg\min \; \mathrm{Var}\big[ L\psi - b(M) \big],

with L the generator, :math:`\varphi_k` means over patches of what an encoder of patches sees (spins
by their number of equal neighbours, and cubes of the magnetisation of blocks), and b any odd
polynomial. Were :math:`\psi` an eigenfunction of L its drift would not scatter at all: the minimum
is the slow mode of the lattice as far as patches can see it.

For a reversible process in equilibrium, states at fixed M obey, for *any* :math:`\psi`,

.. math:: E[L\psi | M] \, p(M) = \tfrac12 \frac{d}{dM} \big( E[\Sigma_{M\psi} | M] \, p(M) \big)

up to 1 / N, with :math:`\Sigma` the covariance of increments per unit time. So the drift of the
closure tells the equilibrium law p(M), whatever the law of M among the states it was learned from.
Together with mean and variance of :math:`\psi` at fixed M the SDE of both follows [Onsager's form],

.. math:: dz = \tfrac12 \left( \Sigma \nabla \ln p + \nabla \cdot \Sigma \right) dt
               + \Sigma^{1/2} dB, \qquad
          \ln p = \ln p(M) + \ln \mathcal N(\psi; \, y(M), v(M)),

whose stationary law is p and which obeys detailed balance, to rounding. All functions of M are
polynomials by least squares, which is where the loss :math:`L_p` of :mod:`mpiflow.learn.sde` has
its minimum over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import is_spins, require_rule, spin_fault
from mpiflow.systems.ising import Ising

#: Numbers of equal neighbours 0 to 4.
EQUALS = 5
#: Terms of odd and of even polynomials of M.
ODD, EVEN = 7, 6
#: Smallest variance of the closure at fixed M, in its mean one.
LEAST = 0.01
#: Points of M, and nodes of the closure at each, where laws are integrated.
POINTS, NODES = 2001, 8


@dataclass(frozen=True)
class OddFeatures:
    """Odd features of states, (B, 5 + blocks), and what the generator makes of them.

    Attributes
    ----------
    values : sum of spins with 0, 1, ..., 4 equal neighbours, over N: together they are M; then
        the mean over blocks of each side of the cube of their magnetisation
    drift : the generator applied to them, per unit time
    cross : their covariance with M per unit time, times N
    """

    values: np.ndarray
    drift: np.ndarray
    cross: np.ndarray

    @classmethod
    def of(cls, states: np.ndarray, system: Ising, blocks: Sequence[int]) -> OddFeatures:
        """Of whole periodic lattices (B, L, L), int8; sides of blocks must divide L."""
        rates = _checked(states, system, blocks)
        columns = [np.zeros((len(states), EQUALS + len(blocks))) for _ in range(3)]
        _odd(states, rates, np.array(blocks, np.int64), *columns)
        return cls(*columns)

    @classmethod
    def joined(cls, parts: Sequence[OddFeatures]) -> OddFeatures:
        """Those of several sets of states."""
        names = ("values", "drift", "cross")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def magnetization(self) -> np.ndarray:
        """M, (B,)."""
        out: np.ndarray = self.values[:, :EQUALS].sum(axis=1)
        return out


def squares(
    states: np.ndarray, system: Ising, blocks: Sequence[int], weights: np.ndarray
) -> np.ndarray:
    """Variance per unit time, times N, of the features' weighted sum in each state, (B,)."""
    rates = _checked(states, system, blocks)
    out = np.zeros(len(states))
    w = np.asarray(weights, float)
    _squares(states, rates, np.array(blocks, np.int64), w[:EQUALS], w[EQUALS:], out)
    return out


def _checked(states: np.ndarray, system: Ising, blocks: Sequence[int]) -> np.ndarray:
    """Flip rates by the number of equal neighbours."""
    require_rule(system, Ising)
    if system.field != 0:
        raise InputError("field", system.field, "0 for the mirror symmetry", "Use closures.")
    side = states.shape[1]
    if states.shape[2] != side or any(side % block for block in blocks):
        raise InputError("blocks", blocks, f"divisors of the side {side}", "Leave some out.")
    if not is_spins(states):
        raise spin_fault(states)
    return system.flip_rates()[5:]


@kernel
def _count_equal(s: np.ndarray, equal: np.ndarray) -> None:
    """Number of equal neighbours of each site of a periodic lattice."""
    side = s.shape[0]
    for y in range(side):
        up, down = y - 1 if y > 0 else side - 1, y + 1 if y < side - 1 else 0
        for x in range(side):
            left, right = x - 1 if x > 0 else side - 1, x + 1 if x < side - 1 else 0
            k = s[up, x] + s[down, x] + s[y, left] + s[y, right]
            equal[y, x] = (k * s[y, x] + 4) // 2


@kernel
def _odd(
    states: np.ndarray, rates: np.ndarray, blocks: np.ndarray,
    values: np.ndarray, drift: np.ndarray, cross: np.ndarray,
) -> None:  # fmt: skip
    side = states.shape[1]
    equal, rate = np.empty((side, side), np.int64), np.empty((side, side))
    for b in range(states.shape[0]):
        s = states[b]
        _count_equal(s, equal)
        for y in range(side):
            for x in range(side):
                e, spin = equal[y, x], float(s[y, x])
                r = rate[y, x] = rates[e]
                values[b, e] += spin
                # The flip itself: the site leaves e, and comes to 4 - e with the other sign.
                for to in (e, 4 - e):
                    drift[b, to] -= r * spin
                    cross[b, to] += 2.0 * r
        for y in range(side):
            up, down = y - 1 if y > 0 else side - 1, y + 1 if y < side - 1 else 0
            for x in range(side):
                left, right = x - 1 if x > 0 else side - 1, x + 1 if x < side - 1 else 0
                # Flips of its neighbours: equal ones take it to e - 1, others to e + 1.
                e, spin = equal[y, x], float(s[y, x])
                same, other = 0.0, 0.0
                for yy, xx in ((up, x), (down, x), (y, left), (y, right)):
                    if s[yy, xx] == s[y, x]:
                        same += rate[yy, xx]
                    else:
                        other += rate[yy, xx]
                drift[b, e] -= spin * (same + other)
                cross[b, e] += 2.0 * (same - other)
                if e > 0:
                    drift[b, e - 1] += spin * same
                    cross[b, e - 1] -= 2.0 * same
                if e < 4:
                    drift[b, e + 1] += spin * other
                    cross[b, e + 1] += 2.0 * other
        for i in range(blocks.size):
            width = blocks[i]
            scale, column = float(width) ** 4, 5 + i
            for top in range(0, side, width):
                for start in range(0, side, width):
                    m, flips, pull = 0.0, 0.0, 0.0
                    for y in range(top, top + width):
                        for x in range(start, start + width):
                            m += s[y, x]
                            flips += rate[y, x]
                            pull += rate[y, x] * s[y, x]
                    # (m - 2 s)^3 - m^3, summed over flips; then times -2 s.
                    values[b, column] += m * m * m / scale
                    drift[b, column] += (12 * m * flips - (6 * m * m + 8) * pull) / scale
                    cross[b, column] += ((12 * m * m + 16) * flips - 24 * m * pull) / scale
        for k in range(values.shape[1]):
            values[b, k] /= side * side
            drift[b, k] /= side * side
            cross[b, k] /= side * side


@kernel
def _squares(
    states: np.ndarray, rates: np.ndarray, blocks: np.ndarray,
    weights: np.ndarray, cubes: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    side = states.shape[1]
    equal = np.empty((side, side), np.int64)
    sums = np.empty((blocks.size, side, side))
    for b in range(states.shape[0]):
        s = states[b]
        sums[:] = 0.0
        _count_equal(s, equal)
        for y in range(side):
            for x in range(side):
                for i in range(blocks.size):
                    sums[i, y // blocks[i], x // blocks[i]] += s[y, x]
        for y in range(side):
            up, down = y - 1 if y > 0 else side - 1, y + 1 if y < side - 1 else 0
            for x in range(side):
                left, right = x - 1 if x > 0 else side - 1, x + 1 if x < side - 1 else 0
                spin, e = float(s[y, x]), equal[y, x]
                change = -spin * (weights[e] + weights[4 - e])
                for yy, xx in ((up, x), (down, x), (y, left), (y, right)):
                    old = equal[yy, xx]
                    new = old - 1 if s[yy, xx] == s[y, x] else old + 1
                    change += s[yy, xx] * (weights[new] - weights[old])
                for i in range(blocks.size):
                    m = sums[i, y // blocks[i], x // blocks[i]]
                    cube = 12 * m - (6 * m * m + 8) * spin
                    change += cubes[i] * cube / float(blocks[i]) ** 4
                out[b] += rates[e] * change * change / (side * side)


# -- the closure and its SDE ----------------------------------------------------------------


def _odd_powers(x: np.ndarray) -> np.ndarray:
    return np.stack([x ** (2 * k + 1) for k in range(ODD)], axis=-1)


def _even_powers(x: np.ndarray) -> np.ndarray:
    return np.stack([x ** (2 * k) for k in range(EVEN)], axis=-1)


def _fitted(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(terms, values, rcond=None)[0]


def _positive(terms: np.ndarray, values: np.ndarray) -> np.ndarray:
    """With weights of 1 / fit^2, which likelihood asks of variances: they are small at large M."""
    weight = np.ones(len(values))
    for _ in range(4):
        found = _fitted(terms * weight[:, None], values * weight)
        weight = 1.0 / np.maximum(terms @ found, LEAST * values.mean())
    return found


def _law(odd: np.ndarray, even: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance at fixed M, by generalised least squares."""
    weight = np.ones(len(values))
    for _ in range(2):
        mean = _fitted(odd * weight[:, None], values * weight)
        squares = (values - odd @ mean) ** 2
        if squares.mean() < 1e-20 * (values**2).mean():
            return mean, np.zeros(even.shape[1])
        variance = _positive(even, squares)
        weight = np.maximum(even @ variance, LEAST * squares.mean()) ** -0.5
    return mean, variance


def of_magnetization(features: OddFeatures) -> np.ndarray:
    """Weights of M itself, no closure."""
    return (np.arange(features.values.shape[1]) < EQUALS).astype(float)


def closure(features: OddFeatures) -> np.ndarray:
    """Weights of psi, see the module."""
    m = features.magnetization
    odd = _odd_powers(m / np.sqrt((m**2).mean()))
    rest = features.drift - odd @ _fitted(odd, features.drift)
    # One number of equal neighbours goes with M.
    columns = [k for k in range(rest.shape[1]) if k != EQUALS - 1]
    weights = of_magnetization(features)
    found = np.linalg.lstsq(rest[:, columns], rest[:, :EQUALS].sum(axis=1), rcond=1e-10)[0]
    weights[columns] -= found
    return weights


@dataclass(frozen=True)
class ReversibleSDE:
    """The SDE of (M, psi), or of M alone; see the module.

    Attributes
    ----------
    scale, reach : root mean square and largest abs(M) of the states
    drift : (2, ODD) of E[L M] and E[L psi] at fixed M, coefficients of powers of M / scale
    mean : (ODD,) of E[psi]
    variance : (EVEN,) of that of psi; zero for M alone
    sigma : (3, EVEN) of Sigma: M M, M psi, psi psi
    scatter : (2,) root mean squares of L M and L psi about their means at fixed M
    """

    scale: float
    reach: float
    drift: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    sigma: np.ndarray
    scatter: np.ndarray

    @classmethod
    def fit(
        cls, features: OddFeatures, weights: np.ndarray, side: int,
        some: OddFeatures, square: np.ndarray,
    ) -> ReversibleSDE:  # fmt: skip
        """By least squares.

        Parameters
        ----------
        weights : of :func:`closure` or :func:`of_magnetization`
        side : L
        some, square : features of some states, and their :func:`squares`
        """
        m, n = features.magnetization, side**2
        scale = float(np.sqrt((m**2).mean()))
        odd, even = _odd_powers(m / scale), _even_powers(m / scale)
        alone = of_magnetization(features)
        psi, moved = features.values @ weights, features.drift @ np.stack([alone, weights], axis=1)
        drift = np.array([_law(odd, even, column)[0] for column in moved.T])
        mean, spread = _law(odd, even, psi)
        if np.array_equal(weights, alone):
            spread *= 0.0
        few = _even_powers(some.magnetization / scale)
        sigma = [
            _positive(even, features.cross @ alone) / n,
            _positive(even, features.cross @ weights) / n,
            _positive(few, square) / n,
        ]
        scatter = (moved - odd @ drift.T).std(axis=0)
        reach = float(abs(m).max())
        return cls(scale, reach, drift, mean, spread, np.array(sigma), scatter)

    def _at(self, m: np.ndarray, coefficients: np.ndarray, odd: bool = False) -> np.ndarray:
        """A polynomial and its derivative, (2, ...)."""
        law = np.zeros(2 * len(coefficients))
        law[int(odd) :: 2] = coefficients
        x = m / self.scale
        p = np.polynomial.Polynomial(law)
        return np.array([p(x), p.deriv()(x) / self.scale])

    def _spread(self, m: np.ndarray) -> np.ndarray:
        """Variance of psi at fixed M and its derivative, (2, ...)."""
        least = LEAST * self.variance.sum()  # its value at M = scale, where there are states
        v, dv = self._at(m, self.variance)
        return np.stack([np.maximum(v, least), np.where(v > least, dv, 0.0)])

    def _sigma(self, m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sigma, and its row of M derived by M: (3, ...), (2, ...); positive also beyond data."""
        mm, mp, pp = (self._at(m, row) for row in self.sigma)
        # All powers are 1 at M = scale, where there are states; at M = 0 there may be none.
        least = LEAST * self.sigma[0].sum()
        mm = np.stack([np.maximum(mm[0], least), np.where(mm[0] > least, mm[1], 0.0)])
        most = np.maximum(pp[0], (1.0 + LEAST) * mp[0] ** 2 / mm[0])
        return np.stack([mm[0], mp[0], most]), np.stack([mm[1], mp[1]])

    def force(self, m: np.ndarray) -> np.ndarray:
        """d ln p(M) / dM.

        From the drift of psi, and where increments of M and psi have little to do with each other,
        at the largest M, from that of M: by the fourth power of what each knows.
        """
        known, forces = [], []
        rows, slopes = self._sigma(m)
        for drift, s, slope, scatter in zip(self.drift, rows, slopes, self.scatter, strict=False):
            known.append((s / scatter) ** 4)
            # Times known, so that nothing is divided by what may be 0.
            pull = 2.0 * self._at(m, drift, odd=True)[0] - slope
            forces.append(pull * s**3 / scatter**4)
        return np.asarray((forces[0] + forces[1]) / (known[0] + known[1]))

    def law(self) -> tuple[np.ndarray, np.ndarray]:
        """abs(M), (POINTS,), evenly from 0 to the reach of the states, and their probabilities."""
        m = np.linspace(0.0, self.reach, POINTS)
        f = self.force(m)
        log = np.concatenate([[0.0], np.cumsum(0.5 * (f[1:] + f[:-1]) * m[1])])
        p = np.exp(log - log.max())
        p[[0, -1]] *= 0.5
        return m, p / p.sum()

    def moments(self) -> np.ndarray:
        """Means of abs(M), M^2 and M^4 in equilibrium, (3,)."""
        m, p = self.law()
        return np.array([(p * m**k).sum() for k in (1, 2, 4)])

    def rates(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Drift (B, 2) and covariance (B, 2, 2) per unit time at (M, psi), (B, 2)."""
        m = z[:, 0]
        y, dy = self._at(m, self.mean, odd=True)
        v, dv = self._spread(m)
        (mm, mp, pp), (dmm, dmp) = self._sigma(m)
        away = (z[:, 1] - y) / v
        # Of ln p, by M and by psi; Sigma depends on M alone.
        by_m = self.force(m) - 0.5 * dv / v + away * dy + 0.5 * away**2 * dv
        drift = 0.5 * np.stack([mm * by_m - mp * away + dmm, mp * by_m - pp * away + dmp], axis=1)
        return drift, np.stack([mm, mp, mp, pp], axis=1).reshape(-1, 2, 2)

    def relaxation_time(self, powers: int = 6) -> float:
        r"""Integrated autocorrelation time of abs(M), by Ritz's principle, from below.

        .. math:: \tau = \sup_u \frac{2 \langle g, u \rangle - \mathcal E(u, u)}
                  {\langle g, g \rangle}, \qquad
                  \mathcal E = \tfrac12 \langle \nabla u \cdot \Sigma \nabla u \rangle,
                  \quad g = |M| - \langle |M| \rangle,

        over even functions u: abs(M) and powers of M, times Hermite polynomials up to the second
        of x = (psi - y(M)) / v(M)^(1/2).
        """
        m, p = self.law()
        x, w = np.polynomial.hermite_e.hermegauss(NODES)
        if not self.variance.any():
            x, w = np.zeros(1), np.ones(1)
        weight = p[:, None] * w / w.sum()
        u, by_m, by_psi = self._functions(m, x, powers)
        mm, mp, pp = (weight * row[:, None] for row in self._sigma(m)[0])

        def product(a: np.ndarray, b: np.ndarray, by: np.ndarray) -> np.ndarray:
            flat = (by * b).reshape(len(b), -1)
            return np.asarray(a.reshape(len(a), -1) @ flat.T)

        mixed = product(by_m, by_psi, mp)
        form = 0.5 * (product(by_m, by_m, mm) + mixed + mixed.T + product(by_psi, by_psi, pp))
        g = (m - (p * m).sum())[:, None]
        overlap = (u * (g * weight)).sum(axis=(1, 2))
        size = np.sqrt(np.diag(form))
        values, vectors = np.linalg.eigh(form / np.outer(size, size))
        kept = values > 1e-11 * values[-1]
        along = (vectors[:, kept].T @ (overlap / size)) ** 2 / values[kept]
        return float(along.sum() / (p * g[:, 0] ** 2).sum())

    def _functions(
        self, m: np.ndarray, x: np.ndarray, powers: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Functions of :meth:`relaxation_time` and their derivatives by M and psi, (f, m, x)."""
        t = (m / self.scale)[:, None]
        one = np.ones_like(x)
        # Powers of M / scale, the functions of x they are multiplied with, and the derivative.
        sets: list[tuple[list[int], np.ndarray, np.ndarray]]
        sets = [([1, *range(2, 2 * powers, 2)], one, 0.0 * x)]
        if self.variance.any():
            sets.append(([*range(1, 2 * powers, 2)], x, one))
            sets.append(([*range(0, 2 * powers, 2)], x**2 - 1.0, 2.0 * x))
        u = np.stack([t**k * h for ks, h, _ in sets for k in ks])
        by_t = np.stack([k * t ** max(k - 1, 0) * h for ks, h, _ in sets for k in ks])
        if not self.variance.any():
            return u, by_t / self.scale, 0.0 * u
        by_x = np.stack([t**k * dh for ks, _, dh in sets for k in ks])
        _, dy = self._at(m[:, None], self.mean, odd=True)
        v, dv = self._spread(m[:, None])
        # At fixed psi, x moves with M.
        return u, by_t / self.scale - by_x * (dy / np.sqrt(v) + 0.5 * x * dv / v), by_x / np.sqrt(v)
