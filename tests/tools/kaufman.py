"""Exact references on tori that enumeration cannot reach: Kaufman's partition function, and
transfer matrices of narrow strips in a field. Written from the definitions, without mpiflow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, int]

#: Where the infinite lattice becomes ordered, J = 1.
CRITICAL = 2.0 / math.log(1.0 + math.sqrt(2.0))


def log_partition(shape: Shape, k: float) -> float:
    """ln Z of a torus without a field, K = J / T [Kaufman, Phys. Rev. 76, 1232 (1949)].

    Z is half the sum of four products; of their signs only that of the last can be negative.
    """
    rows, columns = shape
    numbers = np.arange(2 * columns)
    # acosh(c) of c = 1 + d, without losing the digits of a small d.
    d = (math.sqrt(math.cosh(2 * k) / math.tanh(2 * k)) - 1.0) * (
        math.sqrt(math.cosh(2 * k) / math.tanh(2 * k)) + 1.0
    ) - np.cos(numbers * math.pi / columns)
    gamma = np.log1p(d + np.sqrt(d * (d + 2.0)))
    gamma[0] = 2.0 * k + math.log(math.tanh(k))  # with its sign
    half = rows * gamma / 2.0
    magnitude = np.abs(half)
    cosh = magnitude + np.log1p(np.exp(-2.0 * magnitude))  # ln 2 cosh, ln 2 |sinh|
    sinh = magnitude + np.log(-np.expm1(-2.0 * magnitude))
    logs = np.array([cosh[1::2].sum(), sinh[1::2].sum(), cosh[::2].sum(), sinh[::2].sum()])
    largest = logs.max()
    total = np.exp(logs - largest) @ np.array([1.0, 1.0, 1.0, math.copysign(1.0, gamma[0])])
    sites = rows * columns
    return sites / 2.0 * math.log(2.0 * math.sinh(2.0 * k)) + largest + math.log(total / 2.0)


def kaufman_energy(shape: Shape, temperature: float) -> float:
    """Energy per site of a torus without a field, J = 1."""
    k = 1.0 / temperature
    return -_slope(lambda x: log_partition(shape, x), k, 2e-5) / math.prod(shape)


class Strip(NamedTuple):
    """Exact means per site of a torus: energy, magnetisation, and its square."""

    energy: float
    magnetization: float
    squared: float


def strip(shape: Shape, temperature: float, field: float = 0.0, coupling: float = 1.0) -> Strip:
    """A torus of few rows: Z is the trace of a power of the transfer matrix of its columns."""
    sites, beta = math.prod(shape), 1.0 / temperature

    def of_field(h: float) -> float:
        return _log_trace(shape, beta, h, coupling)

    step = 2e-4
    first = _slope(of_field, field, step) / beta  # of M = d ln Z / d (beta h)
    logs = [of_field(field + i * step) for i in (-2, -1, 0, 1, 2)]
    second = (-logs[0] + 16 * logs[1] - 30 * logs[2] + 16 * logs[3] - logs[4]) / (12 * step**2)
    energy = -_slope(lambda b: _log_trace(shape, b, field, coupling), beta, 2e-4)
    squared = second / beta**2 + first**2
    return Strip(energy / sites, first / sites, squared / sites**2)


def _log_trace(shape: Shape, beta: float, field: float, coupling: float) -> float:
    rows, columns = shape
    spins = 2.0 * ((np.arange(2**rows)[:, None] >> np.arange(rows)) & 1) - 1.0
    # A side of two sites has two bonds between the same sites, as in every kernel.
    inside = coupling * (spins * np.roll(spins, 1, 1)).sum(1) + field * spins.sum(1)
    exponent = coupling * spins @ spins.T + (inside[:, None] + inside) / 2.0
    shift = beta * exponent.max()
    values = np.linalg.eigvalsh(np.exp(beta * exponent - shift))
    largest = np.abs(values).max()
    return columns * (shift + math.log(largest)) + math.log(((values / largest) ** columns).sum())


def _slope(f: Callable[[float], float], x: float, step: float) -> float:
    """First derivative to fourth order in the step."""
    return (f(x - 2 * step) - 8 * f(x - step) + 8 * f(x + step) - f(x + 2 * step)) / (12 * step)
