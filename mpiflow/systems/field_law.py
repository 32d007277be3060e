r"""The law of one block of spins: mobility K(m), entropic force s'(m), and how it jumps.

A block of N spins has the mean m and, from the others, the field u = J*m + h. With the chemical
potential :math:`\mu = s'(m) - u`, its mean moves by one of two structures:

``langevin``
    :math:`dm = [-K \mu + K' / (\beta N)]\, dt + \sqrt{2 K / (\beta N)}\, dW` (Ito).
``cosh``
    jumps of :math:`\pm 2 / N` at rates :math:`N \kappa (1 \mp m)(1 \pm \tanh x) / 4`,
    :math:`x = \operatorname{artanh} m - \beta \mu`. Then
    :math:`\dot m = \kappa (\tanh x - m)`, the variance rate is
    :math:`2 \kappa (1 - m \tanh x) / N`, and :math:`w_+ / w_- = e^{-2 \beta \mu}` at one m.

Near local equilibrium the second is the first with :math:`K = \kappa \beta (1 - m^2)`. Free
spins have :math:`s' = \operatorname{artanh}(m) / \beta`; Glauber flips of spins with a Kac
coupling have that, and kappa = 1. Time unit: one attempt per spin; k_B = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, get_args

import numpy as np
import scipy

from mpiflow.core.errors import InputError

Structure = Literal["langevin", "cosh"]


class Law(Protocol):
    r"""K, s' and kappa at one temperature: functions of m, arrays to arrays of the same shape.

    They hold for \|m\| <= 1; s' may be infinite at the ends. A law may have ``range``, the
    lowest and highest m that it was learned from.
    """

    @property
    def beta(self) -> float:
        """1 / T."""

    @property
    def structure(self) -> Structure:
        """How a block moves; see the module."""

    def mobility(self, m: np.ndarray) -> np.ndarray:
        """K(m) > 0, and 0 at the ends."""

    def mobility_slope(self, m: np.ndarray) -> np.ndarray:
        """K'(m)."""

    def entropy_derivative(self, m: np.ndarray) -> np.ndarray:
        """s'(m), per spin."""

    def entropy(self, m: np.ndarray) -> np.ndarray:
        """s(m), per spin; s(0) = 0."""

    def prefactor(self, m: np.ndarray) -> np.ndarray:
        """kappa(m) > 0."""


class ExactLaw:
    """Free spins, Glauber flips: K = beta (1 - m^2), s' = artanh(m) / beta, kappa = 1.

    Parameters
    ----------
    beta : 1 / T > 0
    structure : ``cosh`` is exact for flips in any field u, ``langevin`` near local equilibrium

    Raises
    ------
    InputError : no such beta or structure
    """

    def __init__(self, beta: float, structure: Structure = "langevin") -> None:
        self.beta, self.structure = checked(beta, structure)

    def mobility(self, m: np.ndarray) -> np.ndarray:
        return self.beta * (1 - m) * (1 + m)

    def mobility_slope(self, m: np.ndarray) -> np.ndarray:
        return -2 * self.beta * np.asarray(m, float)

    def entropy_derivative(self, m: np.ndarray) -> np.ndarray:
        return artanh(m) / self.beta

    def entropy(self, m: np.ndarray) -> np.ndarray:
        m = np.asarray(m, float)
        xlog1py = scipy.special.xlog1py
        return np.asarray(xlog1py(1 + m, m) + xlog1py(1 - m, -m)) / (2 * self.beta)

    def prefactor(self, m: np.ndarray) -> np.ndarray:
        return np.ones_like(m, float)


class Entropy:
    """s(m) of a law, the integral of its s' from 0, as a table.

    Parameters
    ----------
    beta : 1 / T
    excess : s' less that of free spins, a function of m inside (-1, 1)
    """

    def __init__(self, beta: float, excess: Callable[[np.ndarray], np.ndarray]) -> None:
        self._free = ExactLaw(beta)
        # Smooth up to the ends in phi = asin(m). Nodes are even about 0: s may be.
        phi = np.pi / 2 * np.linspace(-1, 1, 4097)
        m = np.clip(np.sin(phi), -1 + 1e-12, 1 - 1e-12)
        self._rest = scipy.interpolate.CubicSpline(phi, excess(m) * np.cos(phi)).antiderivative()

    def __call__(self, m: np.ndarray) -> np.ndarray:
        rest = self._rest(np.arcsin(m)) - self._rest(0.0)
        return np.asarray(self._free.entropy(m) + rest)


class FiniteLaw:
    r"""A law of infinitely many spins, corrected for a block of N; for ``langevin``.

    Two terms of s' go as 1 / N and decide about rare events, as N of them count in
    :math:`e^{-\beta N F}`. Free spins have the entropy of N of them, continued between multiples
    of 2 / N; and spins do not feel themselves, which the block's mean u does not know:

    .. math:: s'_N = s' + \frac1{2 \beta} \Big[ \psi\Big(N \frac{1 + m}2 + 1\Big) -
              \psi\Big(N \frac{1 - m}2 + 1\Big) \Big] - \frac{\operatorname{artanh} m}\beta -
              \frac{J_0 m}{N - 1},

    psi the digamma function. The counted flips of ``cosh`` have both without it.

    Parameters
    ----------
    law : a law whose s' is that of large blocks
    spins : N, 2 or more
    own : J_0, the block's coupling to itself,
    :attr:`mpiflow.solvers.field.stochastic.StochasticField.own`

    Raises
    ------
    InputError : a law of ``cosh``, or no such N
    """

    def __init__(self, law: Law, spins: int, own: float = 0.0) -> None:
        if law.structure != "langevin":
            raise InputError("law", law.structure, "one of langevin", "Use a law of cosh as it is.")
        if spins < 2:
            raise InputError("spins", spins, "2 or more", "Use larger blocks.")
        self.law, self.spins, self.own = law, spins, own
        self.beta, self.structure = law.beta, law.structure
        self.range: tuple[float, float] = getattr(law, "range", (-1.0, 1.0))
        self.mobility, self.mobility_slope = law.mobility, law.mobility_slope
        self.prefactor = law.prefactor

    def entropy_derivative(self, m: np.ndarray) -> np.ndarray:
        near = np.clip(m, -1 + 1e-9, 1 - 1e-9)  # finite at the ends: two infinities cancel
        up, down = (self.spins * (1 + side) / 2 + 1 for side in (near, -near))
        digamma = scipy.special.digamma
        free = (digamma(up) - digamma(down)) / 2 - np.arctanh(near)
        slope = self.law.entropy_derivative(near) + free / self.beta
        return slope - self.own * near / (self.spins - 1)

    def entropy(self, m: np.ndarray) -> np.ndarray:
        m, n = np.asarray(m, float), self.spins
        gammaln = scipy.special.gammaln
        ways = gammaln(n * (1 + m) / 2 + 1) + gammaln(n * (1 - m) / 2 + 1) - 2 * gammaln(n / 2 + 1)
        free = ways / (n * self.beta) - ExactLaw(self.beta).entropy(m)
        return self.law.entropy(m) + free - self.own * m * m / (2 * (n - 1))


def artanh(m: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # the ends are infinite
        return np.arctanh(m)


def checked(beta: float, structure: Structure) -> tuple[float, Structure]:
    if not (beta > 0 and math.isfinite(beta)):
        raise InputError("beta", beta, "a finite number above 0", "Try 1.")
    if structure not in get_args(Structure):
        raise InputError("structure", structure, f"one of {get_args(Structure)}", "Use langevin.")
    return float(beta), structure
