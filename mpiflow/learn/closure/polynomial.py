r"""A macroscopic SDE of an Ising lattice with polynomials, from exact short-time increments.

.. math:: dz = \mu(z)\,dt + \Sigma^{1/2}(z)\,dB, \qquad z = (M, \rho),

M the magnetisation and rho the density of domain walls. As the time of a partial evolution goes
to zero, the mean increment of a state x over its noise and its K patches is the generator applied
to z, and the covariance of a patch's increment is K times that of the lattice,

.. math:: \frac{E[\Delta z | x]}{\delta t} \to \sum_i r_i \, (z(x^i) - z(x)), \qquad
          \frac{E[\Delta z \Delta z^T | x]}{\delta t} \to K \sum_i r_i \,
          (z(x^i) - z(x)) (z(x^i) - z(x))^T .

Both are sums over rate classes (:meth:`mpiflow.systems.ising.Ising.short_time`): a state gives
what infinitely many partial evolutions of its patches would. With the loss
:math:`L_p` of :mod:`mpiflow.learn.sde` the drift is the regression of the first on z, and Sigma
that of the second divided by lambda.

At h = 0 the dynamics is symmetric under M -> -M, which is built in: components of the drift and
of Sigma are even polynomials in M, or M times one.

If states have the equilibrium law *given z*, whatever the law of z, the stationary law of the
learned SDE is that of z in equilibrium, up to terms of order 1 / N: detailed balance says
:math:`\mu p = \frac12 \nabla \cdot (\Sigma p)` for the true p, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.noise import normal_pair, stream_key, threefry

#: Drift of M and of rho; covariance M M, M rho, rho rho: which of them are odd in M.
ODD = np.array([True, False, False, True, False])
#: Smallest diagonal of the Cholesky factor relative to the mean one.
_FLOOR = 1e-3


def exponents(*degrees: int) -> np.ndarray:
    """Powers (i, j) of M^2 and of y: i up to the degree given for each j = 0, 1, ..."""
    return np.array([(i, j) for j, degree in enumerate(degrees) for i in range(degree + 1)])


def _even(z: np.ndarray, count: int) -> np.ndarray:
    """Powers 1, M^2, M^4, ...: of the square, so that both signs have the same bits."""
    return np.asarray((z[:, :1] ** 2) ** np.arange(count))


@dataclass(frozen=True)
class Ridge:
    """Where states lie: y = (rho - sum_n curve_n M^(2 n)) / width is of order one.

    Attributes
    ----------
    curve : (n,) coefficients of powers of M^2
    width : spread of rho about the curve
    """

    curve: np.ndarray
    width: float

    @classmethod
    def of(cls, z: np.ndarray, degree: int = 4) -> Ridge:
        """From a first look at some states (B, 2), by least squares."""
        powers = _even(z, degree + 1)
        curve = np.linalg.lstsq(powers, z[:, 1], rcond=1e-12)[0]
        return cls(curve, float((z[:, 1] - powers @ curve).std()))

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """y of states (B, 2)."""
        powers = _even(z, len(self.curve))
        return np.asarray((z[:, 1] - powers @ self.curve) / self.width)


def normal_equations(
    z: np.ndarray, values: np.ndarray, powers: np.ndarray, ridge: Ridge
) -> np.ndarray:
    """Sums for the regressions, (2, k, k + 5): A^T A and A^T values, of even and of odd terms.

    Parameters
    ----------
    z : (B, 2) M and rho
    values : (B, 5) drift of both, then covariance, per unit time
    """
    m2, y = z[:, 0] ** 2, ridge(z)
    even = np.stack([m2**i * y**j for i, j in powers], axis=1)
    # einsum without BLAS: the bits of a sum must not depend on the machine's threads.
    return np.stack(
        [
            np.einsum("bi,bj->ij", terms, np.concatenate([terms, values], axis=1))
            for terms in (even, z[:, :1] * even)
        ]
    )


@dataclass(frozen=True)
class PolynomialSDE:
    """Drift and diffusion of (M, rho) as polynomials; see the module.

    Attributes
    ----------
    powers : (k, 2) of :func:`exponents`
    ridge : of rho
    coefficients : (5, k), of the drift of M and rho, then of Sigma: M M, M rho, rho rho
    low, high : (2,) where states are held: the range of the data
    """

    powers: np.ndarray
    ridge: Ridge
    coefficients: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def fit(
        cls,
        sums: np.ndarray,
        powers: np.ndarray,
        ridge: Ridge,
        low: np.ndarray,
        high: np.ndarray,
        *,
        factor: float = 1.0,
    ) -> PolynomialSDE:
        """The minimum of the loss, by least squares.

        Parameters
        ----------
        sums : of :func:`normal_equations`
        factor : lambda / K; Sigma is divided by it
        """
        if not factor > 0:
            raise InputError("factor", factor, "above 0", "Leave it out for lambda = K.")
        k = len(powers)
        solved = [np.linalg.lstsq(part[:, :k], part[:, k:], rcond=1e-12)[0] for part in sums]
        coefficients = np.stack([solved[int(odd)][:, i] for i, odd in enumerate(ODD)])
        coefficients[2:] /= factor
        reach = max(abs(low[0]), abs(high[0]))
        low, high = np.array([-reach, low[1]]), np.array([reach, high[1]])
        return cls(powers, ridge, coefficients, low, high)

    def at(self, z: np.ndarray) -> np.ndarray:
        """Drift and covariance at (B, 2), (B, 5)."""
        m2, y = z[:, 0] ** 2, self.ridge(z)
        even = np.stack([m2**i * y**j for i, j in self.powers], axis=1)
        return even @ self.coefficients.T * np.where(ODD, z[:, :1], 1.0)

    def rollout(
        self,
        z0: np.ndarray,
        members: np.ndarray,
        *,
        dt: float,
        frames: int,
        stride: int = 1,
        skip: int = 0,
        seed: int,
    ) -> tuple[np.ndarray, int]:
        """Euler-Maruyama trajectories, kept every ``stride`` steps after ``skip`` of them.

        Noise is keyed by (member, step). States are held in the range of the data.

        Returns
        -------
        (frames, B, 2) float64, number of steps that had to be held
        """
        if not dt > 0 or min(frames, stride) < 1 or skip < 0:
            raise InputError(
                "dt, frames, stride, skip", (dt, frames, stride, skip), "above 0, skip 0 or more",
                "Try dt=0.5, stride=1.",
            )  # fmt: skip
        out = np.empty((frames, len(z0), 2))
        held = np.zeros(len(z0), np.int64)
        floor = _FLOOR * np.sqrt(np.abs(self.coefficients[[2, 4], 0]))
        _roll(
            np.array(z0, float), np.asarray(members, np.uint64), stream_key(seed, "sde"),
            dt, stride, skip, self.powers, self.ridge.curve, self.ridge.width,
            self.coefficients, self.low, self.high, floor, out, held,
        )  # fmt: skip
        return out, int(held.sum())


@kernel
def _roll(
    z: np.ndarray,
    members: np.ndarray,
    key: np.ndarray,
    dt: float,
    stride: int,
    skip: int,
    powers: np.ndarray,
    curve: np.ndarray,
    width: float,
    coefficients: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    floor: np.ndarray,
    out: np.ndarray,
    held: np.ndarray,
) -> None:
    k, most = powers.shape[0], max(powers.max() + 1, curve.size)
    p2, py = np.ones(most), np.ones(most)
    root = np.sqrt(dt)
    for b in range(z.shape[0]):
        m, w = z[b, 0], z[b, 1]
        k1 = key[1] + members[b]
        for step in range(skip + stride * (out.shape[0] - 1) + 1):
            if step >= skip and (step - skip) % stride == 0:
                frame = (step - skip) // stride
                out[frame, b, 0], out[frame, b, 1] = m, w
            for n in range(1, most):
                p2[n] = p2[n - 1] * m * m
            y = w
            for n in range(curve.size):
                y -= curve[n] * p2[n]
            y /= width
            for n in range(1, most):
                py[n] = py[n - 1] * y
            am = aw = cmm = cmw = cww = 0.0
            for t in range(k):
                term = p2[powers[t, 0]] * py[powers[t, 1]]
                am += coefficients[0, t] * term
                aw += coefficients[1, t] * term
                cmm += coefficients[2, t] * term
                cmw += coefficients[3, t] * term
                cww += coefficients[4, t] * term
            l00 = max(np.sqrt(max(cmm, 0.0)), floor[0])
            l10 = m * cmw / l00
            l11 = max(np.sqrt(max(cww - l10 * l10, 0.0)), floor[1])
            w0, w1 = threefry(key[0], k1, np.uint64(step), np.uint64(0))
            x0, x1 = normal_pair(w0, w1)
            m += m * am * dt + l00 * root * x0
            w += aw * dt + (l10 * x0 + l11 * x1) * root
            inside = low[0] <= m <= high[0] and low[1] <= w <= high[1]
            if not inside:
                m, w = min(max(m, low[0]), high[0]), min(max(w, low[1]), high[1])
                held[b] += 1
        z[b, 0], z[b, 1] = m, w
