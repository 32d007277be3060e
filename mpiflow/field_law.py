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

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.special import digamma, gammaln, xlog1py

import mpiflow
from mpiflow import storage
from mpiflow.errors import InputError

Structure = Literal["langevin", "cosh"]
#: What model.json calls a table.
KIND = "field-law"


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
        self.beta, self.structure = _checked(beta, structure)

    def mobility(self, m: np.ndarray) -> np.ndarray:
        return self.beta * (1 - m) * (1 + m)

    def mobility_slope(self, m: np.ndarray) -> np.ndarray:
        return -2 * self.beta * np.asarray(m, float)

    def entropy_derivative(self, m: np.ndarray) -> np.ndarray:
        return _artanh(m) / self.beta

    def entropy(self, m: np.ndarray) -> np.ndarray:
        m = np.asarray(m, float)
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
        self._rest = CubicSpline(phi, excess(m) * np.cos(phi)).antiderivative()

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
    own : J_0, the block's coupling to itself, :attr:`mpiflow.stochastic_field.StochasticField.own`

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
        free = (digamma(up) - digamma(down)) / 2 - np.arctanh(near)
        slope = self.law.entropy_derivative(near) + free / self.beta
        return slope - self.own * near / (self.spins - 1)

    def entropy(self, m: np.ndarray) -> np.ndarray:
        m, n = np.asarray(m, float), self.spins
        ways = gammaln(n * (1 + m) / 2 + 1) + gammaln(n * (1 - m) / 2 + 1) - 2 * gammaln(n / 2 + 1)
        free = ways / (n * self.beta) - ExactLaw(self.beta).entropy(m)
        return self.law.entropy(m) + free - self.own * m * m / (2 * (n - 1))


class TableLaw:
    r"""A law from its values at some m, at one temperature.

    Between them :math:`K / (1 - m^2)` and kappa are monotone cubics of m, and s' one of
    artanh(m), so that the exact law comes back exactly and nothing overshoots. Beyond the first
    and last m the two ratios stay what they are there, and s' rises as that of free spins,
    :math:`\operatorname{artanh}(m) / \beta` plus a constant: flipped spins are then few and far
    between. Values asked for there are counted, and the first ones give a warning.

    Parameters
    ----------
    beta : 1 / T
    m : (n,) rising, inside (-1, 1)
    mobility : (n,) K > 0; None for kappa beta (1 - m^2)
    entropy_derivative : (n,) s'
    prefactor : (n,) kappa > 0; None for K / (beta (1 - m^2)), and for 1 without K
    structure : see the module
    symmetric : m, from 0 or above on, is mirrored: K and kappa are even, s' is odd
    card : where the values come from; saved with them

    Attributes
    ----------
    range : lowest and highest m of the table
    outside : values of m asked for so far beyond it

    Raises
    ------
    InputError : arrays of other lengths, not finite, or values that no law can have
    """

    def __init__(
        self,
        beta: float,
        m: np.ndarray,
        mobility: np.ndarray | None,
        entropy_derivative: np.ndarray,
        prefactor: np.ndarray | None = None,
        *,
        structure: Structure = "langevin",
        symmetric: bool = False,
        card: dict[str, Any] | None = None,
    ) -> None:
        self.beta, self.structure = _checked(beta, structure)
        self.symmetric, self.card = bool(symmetric), dict(card or {})
        given = {
            "m": m,
            "mobility": mobility,
            "entropy_derivative": entropy_derivative,
            "prefactor": prefactor,
        }
        self._arrays = {
            name: np.array(values, float) for name, values in given.items() if values is not None
        }
        _check_table(self._arrays, self.symmetric)
        m, slope = self._arrays["m"], self._arrays["entropy_derivative"]
        ratios = [
            self._arrays[name] / scale
            for name, scale in (("mobility", self.beta * (1 - m * m)), ("prefactor", 1.0))
            if name in self._arrays
        ] or [np.ones_like(m)]
        if symmetric:
            keep = slice(1 if m[0] == 0 else 0, None)  # m = 0 once, with s' = 0
            m, slope = (np.append(-a[keep][::-1], a) for a in (m, slope))
            slope[m == 0] = 0.0
            ratios = [np.append(a[keep][::-1], a) for a in ratios]
        self.range, self.outside = (float(m[0]), float(m[-1])), 0
        self._ratio, self._kappa = (PchipInterpolator(m, a) for a in (ratios[0], ratios[-1]))
        self._slope = PchipInterpolator(np.arctanh(m), slope)
        self._entropy = Entropy(self.beta, self._excess)

    def mobility(self, m: np.ndarray) -> np.ndarray:
        m = self._counted(m)
        return self.beta * (1 - m) * (1 + m) * self._ratio(self._inside(m))

    def mobility_slope(self, m: np.ndarray) -> np.ndarray:
        m = self._counted(m)
        near = self._inside(m)
        slope = np.where(m == near, self._ratio(near, 1), 0.0)
        return self.beta * ((1 - m) * (1 + m) * slope - 2 * m * self._ratio(near))

    def entropy_derivative(self, m: np.ndarray) -> np.ndarray:
        m = self._counted(m)
        return _artanh(m) / self.beta + self._excess(m)

    def entropy(self, m: np.ndarray) -> np.ndarray:
        return self._entropy(self._counted(m))

    def prefactor(self, m: np.ndarray) -> np.ndarray:
        return np.asarray(self._kappa(self._inside(self._counted(m))))

    def _excess(self, m: np.ndarray) -> np.ndarray:
        """s' less that of free spins; constant beyond the table."""
        a = np.arctanh(self._inside(m))
        return self._slope(a) - a / self.beta

    def _inside(self, m: np.ndarray) -> np.ndarray:
        return np.clip(m, *self.range)

    def _counted(self, m: np.ndarray) -> np.ndarray:
        m = np.asarray(m, float)
        low, high = self.range
        beyond = int(np.count_nonzero((m < low) | (m > high)))
        if beyond and not self.outside:
            warnings.warn(
                f"this law was learned for m from {low:.4g} to {high:.4g}; {beyond} values are "
                "beyond, where it goes on as that of free spins",
                stacklevel=3,
            )
        self.outside += beyond
        return m

    # -- files -------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a directory."""
        whole = {
            "kind": KIND,
            "mpiflow_version": mpiflow.__version__,
            "beta": self.beta,
            "structure": self.structure,
            "symmetric": self.symmetric,
            "range": self.range,
            "card": self.card,
        }
        text = json.dumps(whole, indent=2) + "\n"
        files: dict[str, bytes | str] = {
            "model.safetensors": save(self._arrays),
            "model.json": text,
        }
        storage.write_folder(directory, files)


def load_law(directory: str | Path) -> TableLaw:
    """Load what :meth:`TableLaw.save` wrote, or say in one line why not."""
    directory = Path(directory)
    if not (directory / "model.json").is_file():
        raise InputError("law", str(directory), "a directory with model.json", "Save one first.")
    try:
        text = json.loads((directory / "model.json").read_text())
        if text.get("kind") != KIND:
            raise InputError("law", str(directory), f"kind '{KIND}'", "Use the tool that made it.")
        arrays = load_file(directory / "model.safetensors")
        return TableLaw(
            text["beta"],
            arrays["m"],
            arrays.get("mobility"),
            arrays["entropy_derivative"],
            arrays.get("prefactor"),
            structure=text["structure"],
            symmetric=text["symmetric"],
            card=text["card"],
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "law", str(directory), "an undamaged mpiflow law", f"Loading said: {error!r}."
        ) from error


def _artanh(m: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # the ends are infinite
        return np.arctanh(m)


def _checked(beta: float, structure: Structure) -> tuple[float, Structure]:
    if not (beta > 0 and math.isfinite(beta)):
        raise InputError("beta", beta, "a finite number above 0", "Try 1.")
    if structure not in get_args(Structure):
        raise InputError("structure", structure, f"one of {get_args(Structure)}", "Use langevin.")
    return float(beta), structure


def _check_table(arrays: dict[str, np.ndarray], symmetric: bool) -> None:
    m = arrays["m"]
    low = 0.0 if symmetric else -1.0
    rises = m.ndim == 1 and m.size >= 2 and bool((np.diff(m) > 0).all())
    if not (rises and m[0] >= low and abs(m[[0, -1]]).max() < 1):
        bounds = "0 or more and below 1" if symmetric else "inside (-1, 1)"
        raise InputError("m", m[:4], f"2 or more rising numbers, {bounds}", "Drop the others.")
    for name, values in arrays.items():
        if values.shape != m.shape or not np.isfinite(values).all():
            allowed = f"{m.size} finite numbers, as m"
            raise InputError(name, values.shape, allowed, "Give one for each m.")
        if name in ("mobility", "prefactor") and not (values > 0).all():
            raise InputError(name, float(values.min()), "above 0", "Leave out empty bins.")
