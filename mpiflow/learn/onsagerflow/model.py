r"""OnsagerFlow: a learned field equation of block means, with noise and dissipation of one K.

.. math:: \mu = s'(m, T) - J * m - h, \qquad y = \beta \mu, \qquad K = \beta \kappa (1 - m^2),

with N spins in a block and :math:`V = N / 2` times the variance of increments per time,

=============  =====================================================  ==========================
structure      drift                                                  V
=============  =====================================================  ==========================
``langevin``   :math:`-K \mu + K' / 2 \beta N`                        :math:`K / \beta`
``cosh``       :math:`\kappa (\tanh x - m)`, x = artanh m - y         :math:`\kappa (1-m\tanh x)`
=============  =====================================================  ==========================

The first is the paper's, exact near local equilibrium. The second is the gradient structure of
jumps with rates :math:`\kappa (1 \mp m)(1 \pm \tanh x) N / 4`, exact for Glauber flips.

**Block size.** s' is that of large blocks (:math:`\operatorname{artanh} m / \beta` for free
spins). A block of N spins has the entropy of N spins: by Stirling's formula s' less
:math:`m / \beta N (1 - m^2) = -K'/2 \beta N K`. In the Langevin equation of Ito with the drift
:math:`-K \mu + K'/\beta N`, whose density is :math:`e^{-\beta N F}`, this makes the drift above.
Integrators take the entropy of N spins itself (:class:`~mpiflow.systems.field_law.FiniteLaw`, which
:meth:`OnsagerFlow.field` puts in place). Jumps need no such term: binomials are built in.

**What can be known.** s' + c m and J(0) + c are the same law: the *gauge* here is sum J = 1.
The rest is known in absolute terms, since noise gives K.

**Forms.** ln kappa = sum of Legendre polynomials of m, so K > 0; beta s' = a artanh m + sum of
Legendre polynomials; even and odd ones only if the law is symmetric. All coefficients are
polynomials of 1 / T. Or both are networks (:mod:`mpiflow.learn.onsagerflow.functions`). J is a
sum of orbits of the square or of radial hats (:func:`mpiflow.learn.kernels.kernel_basis`),
on blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.polynomial import legendre

from mpiflow.core.errors import InputError
from mpiflow.learn.kernels import KernelKind, kernel_basis
from mpiflow.learn.models import read_model, write_model
from mpiflow.learn.onsagerflow.functions import Networks
from mpiflow.learn.paths import OutsideData
from mpiflow.learn.residuals import warn_of
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import Entropy, FiniteLaw, Law, Structure

KIND = "onsagerflow"
#: artanh is cut here; tables end here.
EDGE = 1.0 - 1e-12
#: Of the tensors of networks in files.
PREFIX = "networks."


@dataclass(frozen=True)
class Form:
    """Which functions a law is made of.

    Parameters
    ----------
    structure : see the module
    temperatures : (n,), those of the data
    mobility_terms : Legendre polynomials in ln kappa, degrees 0, 2, 4, ... (or 0, 1, 2, ...)
    entropy_terms : of beta s' beside artanh m, degrees 1, 3, 5, ... (or 0, 1, 2, ...)
    temperature_degree : of the coefficients as polynomials of 1 / T
    symmetric : K even and s' odd in m
    kernel : ``free`` or ``radial``
    radius : reach of J in blocks
    width : of networks in place of the polynomials; 0 for polynomials
    monotone : s' of networks rises in m by construction
    """

    structure: Structure
    temperatures: tuple[float, ...]
    mobility_terms: int = 4
    entropy_terms: int = 3
    temperature_degree: int = 0
    symmetric: bool = True
    kernel: KernelKind = "free"
    radius: int = 8
    width: int = 0
    monotone: bool = False

    def __post_init__(self) -> None:
        if self.structure not in get_args(Structure):
            raise InputError(
                "structure", self.structure, f"one of {get_args(Structure)}", "Use cosh."
            )
        if self.kernel not in ("free", "radial"):
            raise InputError("kernel", self.kernel, "free or radial", "Use free.")
        low = {"mobility_terms": 1, "entropy_terms": 0, "temperature_degree": 0, "radius": 2,
               "width": 0}  # fmt: skip
        for name, least in low.items():
            if getattr(self, name) < least:
                raise InputError(name, getattr(self, name), f"{least} or more", "Leave it out.")
        different = len(set(self.temperatures))
        if not self.temperatures or min(self.temperatures) <= 0:
            raise InputError("temperatures", self.temperatures, "some above 0", "Add runs.")
        if self.temperature_degree >= different:
            raise InputError(
                "temperature_degree", self.temperature_degree, f"below {different}, the number of "
                "temperatures", "Lower it.",
            )  # fmt: skip

    def _degrees(self, terms: int, odd: bool) -> np.ndarray:
        return np.arange(terms) * 2 + odd if self.symmetric else np.arange(terms)

    def mobility_basis(self, m: np.ndarray, derivative: bool = False) -> np.ndarray:
        """Functions of ln kappa, (terms, ...), or their derivatives by m."""
        return _legendre(m, self._degrees(self.mobility_terms, False), int(derivative))

    def entropy_basis(self, m: np.ndarray, integral: bool = False) -> np.ndarray:
        """Functions of beta s', (1 + terms, ...), or their integrals from 0."""
        m = np.clip(m, -EDGE, EDGE)
        first = np.arctanh(m)
        if integral:
            first = m * first + 0.5 * np.log1p(-m * m)
        rest = _legendre(m, self._degrees(self.entropy_terms, True), -int(integral))
        return np.concatenate([first[None], rest])

    def scaled(self, temperature: np.ndarray | float) -> np.ndarray:
        """1 / T, scaled to -1 to 1 on the data and held outside."""
        beta = 1.0 / np.asarray(self.temperatures)
        middle, half = (beta.max() + beta.min()) / 2, max(np.ptp(beta) / 2, 1e-12)
        return np.clip((1.0 / np.asarray(temperature, float) - middle) / half, -1.0, 1.0)

    def temperature_basis(self, temperature: np.ndarray | float) -> np.ndarray:
        """Legendre polynomials of the scaled 1 / T, (degree + 1, ...)."""
        return _legendre(self.scaled(temperature), np.arange(self.temperature_degree + 1), 0)

    def kernel_basis(self, points: int) -> np.ndarray:
        """Kernels (P, M, M) with x = 0 at [0, 0]."""
        if points < 2 * self.radius + 1:
            allowed = f"{2 * self.radius + 1} blocks a side or more"
            raise InputError("radius", self.radius, allowed + f", not {points}", "Lower it.")
        return kernel_basis(self.kernel, points, self.radius)

    def sizes(self) -> tuple[int, int, int]:
        """How many coefficients ln kappa, beta s' and J have; networks have their own."""
        t = self.temperature_degree + 1
        kernels = len(self.kernel_basis(2 * self.radius + 1))
        if self.width:
            return 0, 0, kernels
        return self.mobility_terms * t, (1 + self.entropy_terms) * t, kernels


def _legendre(m: np.ndarray, degrees: np.ndarray, derivatives: int) -> np.ndarray:
    """Legendre polynomials of some degrees, their derivatives (1) or integrals from 0 (-1)."""
    unit: np.ndarray = np.eye(int(degrees.max(initial=0)) + 1)[:, degrees]
    if derivatives > 0:
        unit = legendre.legder(unit)
    elif derivatives < 0:
        unit = legendre.legint(unit, lbnd=0)
    if unit.shape[1] == 0:
        return np.empty((0, *np.shape(m)))
    return np.asarray(legendre.legval(np.asarray(m, float), unit))


@dataclass
class OnsagerFlow:
    """A learned law; energies with k_B = 1, time in attempts per spin. See the module.

    Parameters
    ----------
    form : which functions
    coefficients : of ln kappa, beta s' and J, one after the other
    covariance : of the coefficients
    largest : \\|m\\| up to which there were data
    card : data, ranges, errors
    networks : of K and s', if the form has a ``width``
    """

    form: Form
    coefficients: np.ndarray
    covariance: np.ndarray
    largest: float
    card: dict[str, Any] = field(default_factory=dict)
    networks: Networks | None = None

    def __post_init__(self) -> None:
        size = sum(self.form.sizes())
        if self.coefficients.shape != (size,) or self.covariance.shape != (size, size):
            raise InputError("coefficients", self.coefficients.shape, f"({size},)", "Learn anew.")
        if (self.networks is None) == (self.form.width > 0):
            raise InputError("networks", self.networks, "some if width > 0", "Learn anew.")

    # -- functions of m and T -----------------------------------------------------------------

    def prefactor(self, m: np.ndarray, temperature: np.ndarray | float) -> np.ndarray:
        """kappa(m, T), of the shape of m and T broadcast together."""
        return np.exp(self._log_prefactor(np.asarray(m, float), temperature))

    def mobility(self, m: np.ndarray, temperature: np.ndarray | float) -> np.ndarray:
        """K(m, T) per energy and time."""
        self._warn(m, temperature)
        m = np.asarray(m, float)
        return self.prefactor(m, temperature) * (1.0 - m * m) / np.asarray(temperature, float)

    def mobility_slope(self, m: np.ndarray, temperature: np.ndarray | float) -> np.ndarray:
        """K'(m, T), by m."""
        m = np.asarray(m, float)
        slope = self._log_prefactor(m, temperature, slope=True)
        kappa = self.prefactor(m, temperature)
        return kappa * (slope * (1.0 - m * m) - 2.0 * m) / np.asarray(temperature, float)

    def entropy_derivative(self, m: np.ndarray, temperature: np.ndarray | float) -> np.ndarray:
        """s'(m, T), an energy, of large blocks, in the gauge sum J = 1."""
        self._warn(m, temperature)
        return self._entropy(np.asarray(m, float), temperature) * temperature

    def entropy(self, m: np.ndarray, temperature: np.ndarray | float) -> np.ndarray:
        """s(m, T), the integral of s' from 0."""
        return self._entropy(np.asarray(m, float), temperature, integral=True) * temperature

    def errors(self, m: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Standard errors of K and of s' at one temperature; nan, unknown, of networks."""
        m = np.asarray(m, float)
        if self.networks is not None:
            return np.full_like(m, np.nan), np.full_like(m, np.nan)
        out = []
        for part, basis in enumerate((self.form.mobility_basis(m), self.form.entropy_basis(m))):
            rows = _rows(basis, self.form.temperature_basis(temperature))
            block = self.covariance[self._part(part), self._part(part)]
            out.append(np.sqrt(np.einsum("i...,ij,j...->...", rows, block, rows)))
        return out[0] * self.mobility(m, temperature), out[1] * temperature

    def drift(self, m: np.ndarray, y: np.ndarray, temperature: float, spins: float) -> np.ndarray:
        """The mean rate of m where beta mu = y; see the module."""
        kappa, rest = self.prefactor(m, temperature), 1.0 - m * m
        if self.form.structure == "cosh":
            return kappa * (np.tanh(np.arctanh(np.clip(m, -EDGE, EDGE)) - y) - m)
        slope = self.mobility_slope(m, temperature) * temperature
        return -kappa * rest * y + slope / (2.0 * spins)

    def half_variance(self, m: np.ndarray, y: np.ndarray, temperature: float) -> np.ndarray:
        """V, N / 2 times the variance of increments per time, where beta mu = y."""
        kappa = self.prefactor(m, temperature)
        if self.form.structure == "cosh":
            return kappa * (1.0 - m * np.tanh(np.arctanh(np.clip(m, -EDGE, EDGE)) - y))
        return kappa * (1.0 - m * m)

    # -- J ------------------------------------------------------------------------------------

    @property
    def kernel(self) -> np.ndarray:
        """J between blocks, (2 radius + 1, 2 radius + 1) with x = 0 in the centre; sum 1."""
        shift = self.form.radius
        return np.roll(self.kernel_on(2 * shift + 1), (shift, shift), (0, 1))

    def kernel_on(self, points: int) -> np.ndarray:
        """J on a periodic grid, (M, M) with x = 0 at [0, 0]."""
        return np.tensordot(self.coefficients[self._part(2)], self.form.kernel_basis(points), 1)

    @property
    def kernel_error(self) -> float:
        """The expected relative L2 error of J."""
        flat = self.form.kernel_basis(2 * self.form.radius + 1)
        flat = flat.reshape(len(flat), -1)
        variance = np.trace(flat @ flat.T @ self.covariance[self._part(2), self._part(2)])
        return float(np.sqrt(variance) / np.linalg.norm(self.kernel))

    def with_structure(self, structure: Structure) -> OnsagerFlow:
        """The same K, s' and J in the other equation: one is the other near local equilibrium."""
        return replace(self, form=replace(self.form, structure=structure))

    # -- for integrators ----------------------------------------------------------------------

    def at(self, temperature: float) -> LearnedLaw:
        """The law of large blocks at one temperature."""
        self._warn(0.0, temperature)
        return LearnedLaw(self, float(temperature))

    def symbol(
        self, shape: tuple[int, int], merge: int = 1, columns: slice = slice(None)
    ) -> np.ndarray:
        r"""J in Fourier space on a periodic grid, (ny, nx // 2 + 1) float64, or some columns.

        What reaches around a small grid is folded onto it. With ``merge`` q a block is q x q of
        the learned ones: :math:`J'_n = q^{-2} \sum_{a, b} J_{n q + b - a}` over the places a, b
        in two of them, exact for fields that are smooth on a block.
        """
        (ny, nx), along = shape, _merging(self.form.radius, merge)
        rows, waves = (np.arange(ny), ny), (np.arange(nx // 2 + 1)[columns], nx)
        at = np.arange(len(along)) - len(along) // 2
        down, across = (np.cos(2 * np.pi / n * (np.outer(k, at) % n)) for k, n in (rows, waves))
        left = down @ (along @ self.kernel @ along.T)
        # Term by term: a product of matrices would have other bits for other columns.
        out = np.zeros((ny, len(across)))
        for of_y, of_x in zip(left.T, across.T, strict=True):
            out += np.multiply.outer(of_y, of_x)
        return out

    def field(
        self,
        temperature: float,
        shape: tuple[int, int],
        *,
        block: int,
        merge: int = 1,
        **options: Any,
    ) -> StochasticField:
        """The stochastic field of this law on (ny, nx) blocks of block x block spins.

        Parameters
        ----------
        merge : learned blocks a side in one of these; see :meth:`symbol`. With a ``block`` that
            is not ``merge`` times the learned one J reaches so many times further, as of a Kac
            coupling whose width grows with the lattice
        options : ``field``, ``dt``, ``seed``, ``members``, ``comm`` and ``device`` of
            :class:`~mpiflow.solvers.field.stochastic.StochasticField`
        """
        along = _merging(self.form.radius, merge)
        self.warn_of_doubts()
        law: Law = self.at(temperature)
        if law.structure == "langevin":
            at = np.arange(len(along)) - len(along) // 2
            here = np.ix_(at % shape[0] == 0, at % shape[1] == 0)  # what reaches around too
            own = float((along @ self.kernel @ along.T)[here].sum())
            law = FiniteLaw(law, block * block, own)
        return StochasticField(
            law, lambda columns: self.symbol(shape, merge, columns), shape, block=block, **options
        )

    def table(self, temperature: float, points: int = 1001) -> dict[str, np.ndarray]:
        """m, K, K', s', s and errors of K and s' on a grid of m, each (points,)."""
        m = np.linspace(-EDGE, EDGE, points)
        law = self.at(temperature)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            names = ("mobility", "mobility_slope", "entropy_derivative", "entropy")
            values = {name: getattr(law, name)(m) for name in names}
            errors = self.errors(m, temperature)
        return {"m": m, **values, "mobility_error": errors[0], "entropy_error": errors[1]}

    # -- inside -------------------------------------------------------------------------------

    def _part(self, number: int) -> slice:
        edges = np.cumsum([0, *self.form.sizes()])
        return slice(int(edges[number]), int(edges[number + 1]))

    def _log_prefactor(
        self, m: np.ndarray, temperature: np.ndarray | float, slope: bool = False
    ) -> np.ndarray:
        if self.networks is not None:
            return self.networks.log_prefactor(m, self.form.scaled(temperature), slope)
        return self._value(0, self.form.mobility_basis(m, slope), temperature)

    def _entropy(
        self, m: np.ndarray, temperature: np.ndarray | float, integral: bool = False
    ) -> np.ndarray:
        if self.networks is not None:
            m = np.clip(m, -EDGE, EDGE)
            return self.networks.entropy(m, self.form.scaled(temperature), integral)
        return self._value(1, self.form.entropy_basis(m, integral), temperature)

    def _value(self, part: int, basis: np.ndarray, temperature: np.ndarray | float) -> np.ndarray:
        c = self.coefficients[self._part(part)].reshape(len(basis), -1)
        by = self.form.temperature_basis(temperature)
        return np.asarray(sum(np.tensordot(c[:, k], basis, 1) * by[k] for k in range(len(by))))

    @property
    def validity(self) -> dict[str, Any]:
        """Ranges of m and of the temperature in the data."""
        kelvin = [min(self.form.temperatures), max(self.form.temperatures)]
        latents = {"m": [-self.largest, self.largest]}
        return {"latents": latents, "parameters": {"temperature": kelvin}}

    def warn_of_doubts(self) -> None:
        """Warn if the data that it was learned from do not obey such a law."""
        remedy = "larger blocks, other temperatures or a longer interval may do"
        warn_of(self.card.get("doubts", []), remedy)

    def _warn(self, m: np.ndarray | float, temperature: np.ndarray | float) -> None:
        known, given = self.form.temperatures, np.asarray(temperature, float)
        if given.size == 0 or np.size(m) == 0:
            return
        if not (given > 0).all():
            raise InputError("temperature", temperature, "above 0", "Give T.")
        if given.min() < min(known) * (1 - 1e-9) or given.max() > max(known) * (1 + 1e-9):
            warnings.warn(
                f"T from {given.min():g} to {given.max():g}; learned from {min(known):g} to "
                f"{max(known):g}: coefficients are held at the end", OutsideData, stacklevel=3,
            )  # fmt: skip
        if (far := float(np.max(np.abs(m)))) > self.largest + 1e-9:
            warnings.warn(
                f"|m| up to {far:.4g}; learned up to {self.largest:.4g}", OutsideData, stacklevel=3
            )

    # -- files --------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a directory."""
        names = ("coefficients", "covariance")
        tensors = {name: torch.as_tensor(getattr(self, name)).contiguous() for name in names}
        if self.networks is not None:
            tensors |= {PREFIX + name: v for name, v in self.networks.state_dict().items()}
        about = {"form": vars(self.form), "largest": self.largest, "card": self.card}
        write_model(directory, KIND, about, tensors)


@dataclass(frozen=True)
class LearnedLaw:
    """An :class:`OnsagerFlow` at one temperature, as a :class:`~mpiflow.systems.field_law.Law`."""

    model: OnsagerFlow
    temperature: float

    @property
    def beta(self) -> float:
        """1 / T."""
        return 1.0 / self.temperature

    @property
    def structure(self) -> Structure:
        return self.model.form.structure

    @property
    def range(self) -> tuple[float, float]:
        """What m there were data of."""
        return -self.model.largest, self.model.largest

    def prefactor(self, m: np.ndarray) -> np.ndarray:
        """kappa."""
        return self.model.prefactor(m, self.temperature)

    def mobility(self, m: np.ndarray) -> np.ndarray:
        """K."""
        m = np.asarray(m, float)
        return self.beta * self.prefactor(m) * (1.0 - m * m)

    def mobility_slope(self, m: np.ndarray) -> np.ndarray:
        """K'."""
        return self.model.mobility_slope(m, self.temperature)

    def entropy_derivative(self, m: np.ndarray) -> np.ndarray:
        """s'."""
        return self.model._entropy(np.clip(m, -EDGE, EDGE), self.temperature) * self.temperature

    def entropy(self, m: np.ndarray) -> np.ndarray:
        """s, 0 at m = 0, from a table: fields are large."""
        return self._entropy(m)

    @cached_property
    def _entropy(self) -> Entropy:
        return Entropy(self.beta, lambda m: self.entropy_derivative(m) - np.arctanh(m) / self.beta)


def _merging(radius: int, merge: int) -> np.ndarray:
    """Where entries of J go along one axis, (2 r + 1, 2 radius + 1), x = 0 in the centre."""
    if merge < 1:
        raise InputError("merge", merge, "1 or more learned blocks a side", "Use 1.")
    reach = -(-radius // merge)
    out = np.zeros((2 * reach + 1, 2 * radius + 1))
    for d in range(-radius, radius + 1):
        for a in range(merge):
            out[(a + d) // merge + reach, d + radius] += 1.0 / merge
    return out


def _rows(basis: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Products of functions of m (n, ...) and of T (k,), in the order of coefficients."""
    # The number is said: of a rank without a run there is nothing to tell it from.
    rows = len(basis) * len(by)
    return np.einsum("i...,k->ik...", basis, by).reshape(rows, *basis.shape[1:])


def load_onsagerflow(directory: str | Path) -> OnsagerFlow:
    """Load what :meth:`OnsagerFlow.save` wrote."""
    return read_model(directory, KIND, _built)


def _built(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> OnsagerFlow:
    about = dict(description["form"])
    form = Form(**{**about, "temperatures": tuple(about["temperatures"])})
    c, v = (tensors[name].numpy() for name in ("coefficients", "covariance"))
    networks = None
    if form.width:
        networks = Networks(form.width, form.monotone, form.symmetric)
        own = {k.removeprefix(PREFIX): t for k, t in tensors.items() if k.startswith(PREFIX)}
        networks.load_state_dict(own)
    return OnsagerFlow(form, c, v, description["largest"], description["card"], networks)
