"""Exact references on small tori, written from the definitions and without mpiflow.

A state of a torus of N sites is a number from 0 to 2^N - 1: bit i is 1 when site
i (row-major) is up. A side of two sites is allowed; its two bonds count twice,
as four neighbours do in every kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import ellipk
from scipy.stats import chi2

#: Smallest p-value a test accepts. Seeds are fixed, so a test passes for ever or never.
P_FLOOR = 1e-4
#: The same for the absolute value of a normal deviate (two-sided p = 1e-4).
Z_CEILING = 3.9

Shape = tuple[int, int]


def has_cuda() -> bool:
    """Whether CUDA kernels can run here: on a GPU or in Numba's simulator."""
    try:
        from numba import cuda
    except Exception:  # numba-cuda without CUDA libraries raises one of its own
        return False
    return bool(cuda.is_available())


# -- states -----------------------------------------------------------------------------


def states(shape: Shape) -> np.ndarray:
    """Every state, (2^N, Ly, Lx) int8."""
    sites = shape[0] * shape[1]
    bits = (np.arange(2**sites)[:, None] >> np.arange(sites)) & 1
    return (2 * bits - 1).astype(np.int8).reshape(-1, *shape)


def index(spins: np.ndarray) -> np.ndarray:
    """The number of each state of a batch (B, Ly, Lx), (B,) int64."""
    bits = spins.reshape(len(spins), -1) > 0
    return bits @ (np.int64(1) << np.arange(bits.shape[1], dtype=np.int64))


def neighbour_sums(spins: np.ndarray) -> np.ndarray:
    """Sum of the four neighbours of every site of periodic lattices (..., Ly, Lx), int64."""
    wide = spins.astype(np.int64)
    rolled = [np.roll(wide, shift, axis) for shift in (1, -1) for axis in (-2, -1)]
    return np.sum(rolled, axis=0)


def bonds(spins: np.ndarray) -> np.ndarray:
    """Sum of s_i s_j over the 2N bonds of periodic lattices (..., Ly, Lx), int64."""
    wide = spins.astype(np.int64)
    return sum((wide * np.roll(wide, -1, axis)).sum((-2, -1)) for axis in (-2, -1))


def magnetizations(spins: np.ndarray) -> np.ndarray:
    """Sum of the spins, int64."""
    return spins.sum((-2, -1), dtype=np.int64)


def energies(spins: np.ndarray, field: float = 0.0, coupling: float = 1.0) -> np.ndarray:
    """H = -J sum_<ij> s_i s_j - h sum_i s_i."""
    return -coupling * bonds(spins) - field * magnetizations(spins)


# -- laws -------------------------------------------------------------------------------


def gibbs(
    shape: Shape, temperature: float, field: float = 0.0, coupling: float = 1.0
) -> np.ndarray:
    """Probability of every state, (2^N,)."""
    energy = energies(states(shape), field, coupling)
    weight = np.exp(-(energy - energy.min()) / temperature)
    return weight / weight.sum()


def generator(
    shape: Shape, temperature: float, field: float = 0.0, coupling: float = 1.0
) -> np.ndarray:
    """Rates of continuous-time Glauber dynamics, Q[from, to], rows summing to 0.

    The flip of one site has the rate 1 / (1 + exp(dH / T)) with dH from the energies.
    """
    every = np.arange(2 ** math.prod(shape))
    energy = energies(states(shape), field, coupling)
    out = np.zeros((every.size, every.size))
    for site in range(math.prod(shape)):
        flipped = every ^ (1 << site)
        out[every, flipped] = 1.0 / (1.0 + np.exp((energy[flipped] - energy) / temperature))
    out[every, every] = -out.sum(1)
    return out


def colour_of_sites(shape: Shape) -> np.ndarray:
    """0 (black) where y + x is even, else 1, for the sites in row-major order."""
    return np.add.outer(np.arange(shape[0]), np.arange(shape[1])).reshape(-1) & 1


def flip_classes(spins: np.ndarray) -> np.ndarray:
    """Class of every site of periodic lattices: opposite neighbours 0..4, plus 5 if it is up."""
    return (4 - spins * neighbour_sums(spins)) // 2 + 5 * (spins > 0)


def pass_matrix(shape: Shape, colour: int, chance: np.ndarray) -> np.ndarray:
    """Transition matrix P[from, to] of one pass: a site of a colour flips with its class's chance.

    ``chance`` is (10,), in the order of :func:`flip_classes`.
    """
    every = np.arange(2 ** math.prod(shape))
    of_site = chance[flip_classes(states(shape))].reshape(every.size, -1)
    out = np.eye(every.size)
    for site in np.flatnonzero(colour_of_sites(shape) == colour):
        # Sites of one colour are not neighbours: their matrices commute.
        flipped = every ^ (1 << site)
        out = out * (1 - of_site[:, site]) + out[:, flipped] * of_site[flipped, site]
    return out


# -- statistics -------------------------------------------------------------------------


def chi_square(observed: np.ndarray, expected: np.ndarray, constraints: int = 1) -> float:
    """p-value of counts against expected counts, cells pooled until each expects 10."""
    order = np.argsort(expected, kind="stable")
    observed, expected = np.asarray(observed, float)[order], np.asarray(expected, float)[order]
    if observed[expected == 0].any():
        return 0.0
    cell = np.floor(np.cumsum(expected) / 10).astype(int)
    large = np.searchsorted(expected, 10.0)
    cell[large:] = cell[large - 1 if large else 0] + np.arange(len(cell) - large)
    _, cell = np.unique(cell, return_inverse=True)
    seen, due = np.bincount(cell, observed), np.bincount(cell, expected)
    if len(due) > 1 and due[0] < 10:  # a last small rest joins its neighbour
        seen, due = np.append(seen[0] + seen[1], seen[2:]), np.append(due[0] + due[1], due[2:])
    if len(due) <= constraints:
        raise ValueError("too few expected counts for a chi-square test")
    return float(chi2.sf(((seen - due) ** 2 / due).sum(), len(due) - constraints))


def law_p_value(spins: np.ndarray, law: np.ndarray) -> float:
    """p-value of independent states (B, Ly, Lx) against the law of all states."""
    return chi_square(np.bincount(index(spins), minlength=law.size), len(spins) * law)


def class_p_value(spins: np.ndarray, law: np.ndarray, shape: Shape) -> float:
    """The same, with states collected in classes of equal (bonds, magnetisation)."""
    everything = states(shape)
    sites = math.prod(shape)
    labels = (bonds(everything) + 2 * sites) * (2 * sites + 1) + magnetizations(everything) + sites
    _, label = np.unique(labels, return_inverse=True)
    seen = np.bincount(label[index(spins)], minlength=label.max() + 1)
    return chi_square(seen, len(spins) * np.bincount(label, law))


def sample(law: np.ndarray, shape: Shape, count: int, rng: np.random.Generator) -> np.ndarray:
    """Independent states drawn from a law, (count, Ly, Lx) int8."""
    return states(shape)[np.searchsorted(np.cumsum(law)[:-1], rng.random(count), side="right")]


def deviate(values: np.ndarray, expected: float) -> float:
    """(mean - expected) / standard error, for independent values."""
    return float((values.mean() - expected) / (values.std(ddof=1) / math.sqrt(len(values))))


def fitted_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of log y against log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# -- infinite lattice, no field ------------------------------------------------------------


def onsager_energy(temperature: float) -> float:
    """Energy per site of the infinite square lattice, J = 1 [Onsager 1944]."""
    twice = 2.0 / temperature
    modulus = 2.0 * math.sinh(twice) / math.cosh(twice) ** 2
    bracket = 2.0 * math.tanh(twice) ** 2 - 1.0
    return -(1.0 + 2.0 / math.pi * bracket * float(ellipk(modulus**2))) / math.tanh(twice)


def onsager_magnetization(temperature: float) -> float:
    """Spontaneous magnetisation below the critical temperature, J = 1 [Yang 1952]."""
    return (1.0 - math.sinh(2.0 / temperature) ** -4) ** 0.125


# -- noise and dynamics, a second time ---------------------------------------------------


def threefry(key: tuple[int, int], counter: tuple[int, int], rounds: int = 13) -> tuple[int, int]:
    """Threefry2x64 in plain Python integers, from the paper's description.

    [Salmon et al., SC11]: rotations repeat every eight rounds, a key word is added
    after every fourth.
    """
    mask = 2**64 - 1
    words = (*key, 0x1BD11BDAA9FC1A22 ^ key[0] ^ key[1])
    x0, x1 = (counter[0] + key[0]) & mask, (counter[1] + key[1]) & mask
    for number in range(rounds):
        turn = (16, 42, 12, 31, 16, 32, 24, 21)[number % 8]
        x0 = (x0 + x1) & mask
        x1 = ((x1 << turn) | (x1 >> (64 - turn))) & mask ^ x0
        if number % 4 == 3:
            injection = number // 4 + 1
            x0 = (x0 + words[injection % 3]) & mask
            x1 = (x1 + words[(injection + 1) % 3] + injection) & mask
    return x0, x1


def heat_bath_pass(
    box: np.ndarray,
    halo: int,
    colour: int,
    bounds: tuple[Sequence[int], Sequence[int]],
    number: Callable[[int, int], int],
) -> int:
    """One pass over a box and its halo in place, site by site; returns flips.

    Inner site (y, x) has the colour (y + x) % 2. It flips if ``number(y, x)`` is not below
    the lower and is below the upper bound of its class: 0..4 opposite neighbours of a down
    spin, then of an up spin.
    """
    flips = 0
    for y, x in np.ndindex(box.shape[0] - 2 * halo, box.shape[1] - 2 * halo):
        if (y + x) % 2 == colour:
            i, j = y + halo, x + halo
            around = (box[i - 1, j], box[i + 1, j], box[i, j - 1], box[i, j + 1])
            kind = sum(s != box[i, j] for s in around) + (5 if box[i, j] > 0 else 0)
            if bounds[0][kind] <= number(y, x) < bounds[1][kind]:
                box[i, j] *= -1
                flips += 1
    return flips


def documented_passes(dt: float, first: int, steps: int) -> list[tuple[int, str]]:
    """(number, what) of the passes of some steps from a given state, as the solver's page says.

    Black is even. The numbers of a half pass that opens lie apart, from 2^59.
    """
    if math.isinf(dt):
        return [(n, "full") for n in range(2 * first, 2 * (first + steps))]
    last = 2 * (first + steps)
    whole = [(n, "full") for n in range(2 * first + 1, last)]
    return [(2**59 + 2 * first, "opening"), *whole, (last, "look")]
