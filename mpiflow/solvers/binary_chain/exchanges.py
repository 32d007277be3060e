"""Exchanges of unlike neighbours at fixed positions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.noise import Word, threefry, to_unit
from mpiflow.solvers.binary_chain.lanes import Lanes, Law, Space
from mpiflow.solvers.spins.site_field import decay
from mpiflow.systems.binary_chain import BinaryChain, pair_energies, pair_energy, pair_terms

#: Set in the counter of a step: the word that says whether an exchange happens.
HAPPENS = np.uint64(2**63)
_LOW, _HALF = np.uint64(2**32 - 1), np.uint64(32)
#: Coins that are looked at together: few enough that most times none of them is a small one.
_CHUNK = 16


class Rates(NamedTuple):
    """Of exchanges, as kernels take them.

    Attributes
    ----------
    arrhenius : (4.38), else tanh (4.33)
    duration : of a step, in units of tau
    most : the largest chance of an exchange in a step at tanh rates
    bounds : (n,) those at Arrhenius rates, where no bond is shorter than its index times ``unit``
    unit : see above
    """

    arrhenius: bool
    duration: float
    most: float
    bounds: np.ndarray
    unit: float


def rates_of(system: BinaryChain, arrhenius: bool, duration: float) -> Rates:
    """Rates of exchanges in steps of a duration, in units of tau."""
    points = 1024
    unit = system.cutoff / points
    bounds = np.ones(points)
    if arrhenius:
        # What a pair potential differs by between two distances of this or more, at most.
        r = np.arange(8 * points + 1) * (unit / 8)
        aa, bb, ab = (pair_energies(r, pair) for pair in system.pairs())
        within = np.zeros(len(r))
        for gain in (ab - aa, ab - bb):  # both end at 0
            gain = gain[::-1]
            spread = np.maximum.accumulate(gain) - np.minimum.accumulate(gain)
            within = np.maximum(within, spread[::-1])
        within = 1.01 * within[::8]
        for place in range(points // 20, points):
            # Of the two neighbours in each shell both distances are this shell's or more.
            z = min(2.0 * system.beta * float(within[place::place].sum()), 600.0)
            both = 2.0 * math.cosh(0.5 * z)
            bounds[place] = min(1.0, 1.000001 * -math.expm1(-duration * both) / (1 + math.exp(-z)))
    return Rates(arrhenius, duration, -math.expm1(-duration), bounds, unit)


@kernel
def exchange_energy(lanes: Lanes, width: int, here: int, law: Law) -> float:
    r"""Energy gained where unlike spins of a site and the next are exchanged (2.8).

    .. math:: \Delta V = \sigma_i \sum_k \sigma_k [g_k(|x_i - x_k|) - g_k(|x_{i+1} - x_k|)], \quad
              g_k = \phi_{AB} - \phi_{\sigma_k \sigma_k},

    the sum over all others within the cut-off.
    """
    x, spins = lanes
    low, high, cutoff = x[here], x[here + width], law.ab.cutoff
    total = 0.0
    for side in range(2):
        step = -width if side == 0 else width
        k = here - width if side == 0 else here + 2 * width
        while 0 <= k < x.size:
            r, s = abs(x[k] - low), abs(x[k] - high)
            if min(r, s) >= cutoff:
                break
            own = law.aa if law.alike or spins[k] > 0.0 else law.bb
            gain = pair_energy(r, law.ab) - pair_energy(r, own)
            gain -= pair_energy(s, law.ab) - pair_energy(s, own)
            total += spins[k] * gain
            k += step
    return spins[here] * total


@kernel
def _add_excess(lanes: Lanes, width: int, here: int, law: Law, excess: np.ndarray) -> None:
    """Add half of what an exchange will take from the slopes of bonds. Spins are those before."""
    x, spins = lanes
    low, high, cutoff = x[here], x[here + width], law.ab.cutoff
    for side in range(2):
        step = -width if side == 0 else width
        k = here - width if side == 0 else here + 2 * width
        while 0 <= k < x.size:
            r, s = abs(x[k] - low), abs(x[k] - high)
            if min(r, s) >= cutoff:
                break
            own = law.aa if law.alike or spins[k] > 0.0 else law.bb
            half = -0.5 * spins[here] * spins[k]
            of_this = half * (pair_terms(r, law.ab)[1] - pair_terms(r, own)[1])
            of_next = -half * (pair_terms(s, law.ab)[1] - pair_terms(s, own)[1])
            excess[here] += of_next if side == 0 else of_this
            bond = k if side == 0 else here + width
            end = here if side == 0 else k
            while bond < end:
                excess[bond] += of_this + of_next
                bond += width
            k += step


@kernel
def logistic(z: float) -> float:
    """1 / (1 + e^z), IEEE everywhere."""
    e = decay(abs(z))
    return e / (1.0 + e) if z > 0.0 else 1.0 / (1.0 + e)


@kernel
def exchange_chance(z: float, rates: Rates) -> float:
    r"""Probability that a pair of unlike spins is exchanged after a step.

    The pair alone goes to and fro between two states, z = beta Delta V apart, at the rates r and
    r'. That is solved exactly, so that every single exchange is in detailed balance at any
    duration: :math:`(1 - e^{-(r + r') t}) \, r / (r + r')`, where :math:`r / (r + r')` is
    :math:`1 / (1 + e^z)`, and r + r' is 1 for tanh (4.33) and 2 cosh(z / 2) for Arrhenius rates
    (4.38).
    """
    if rates.arrhenius:
        e = decay(0.5 * abs(z))
        return (1.0 - decay(rates.duration * (e + 1.0 / e))) * logistic(z)
    return rates.most * logistic(z)


@kernel
def exchange(
    lanes: Lanes,
    width: int,
    key: Word,
    step: Word,
    space: Space,
    rates: Rates,
    law: Law,
    count: np.ndarray,
) -> None:
    """A sweep over all interior bonds, forwards in even steps and backwards in odd ones.

    ``space.excess`` is what it does to the slopes of bonds, ``count`` (width,) of exchanges.
    """
    space.excess[:] = 0.0
    most = rates.most
    if rates.arrhenius:
        place = int(_shortest(lanes.x, width) / rates.unit)
        most = rates.bounds[min(place, rates.bounds.size - 1)]
    spins, found, half = lanes.spins, space.found, space.second.size
    forwards = step & np.uint64(1) == np.uint64(0)
    below = np.uint64(min(most * 2.0**32, 2.0**32 - 1.0)) + np.uint64(1)
    for part in range(2):
        upper = (part == 0) == forwards
        shift, offset = (_HALF, 0) if upper else (np.uint64(0), half)
        number = _small_coins(space.second, shift, below, found)
        for candidate in range(number):
            entry = found[candidate if forwards else number - 1 - candidate]
            here = entry + offset
            there = here + width
            if here < width or there >= spins.size - width or spins[here] == spins[there]:
                continue
            site, lane = here // width, here % width
            z = law.beta * exchange_energy(lanes, width, here, law)
            chance = exchange_chance(z, rates)
            # The coin is the upper half of a uniform number, and this the rest of it.
            rest = to_unit(threefry(key, space.keys[lane], step | HAPPENS, np.uint64(site))[0])
            if np.float64(space.second[entry] >> shift & _LOW) + rest < chance * 2.0**32:
                _add_excess(lanes, width, here, law, space.excess)
                spins[here], spins[there] = spins[there], spins[here]
                count[lane] += 1


@kernel
def _small_coins(coins: np.ndarray, shift: Word, below: Word, found: np.ndarray) -> int:
    """Where coins are below a number; how many are."""
    number, whole = 0, coins.size - coins.size % _CHUNK
    for start in range(0, coins.size, _CHUNK):
        end, some = coins.size, 1
        if start < whole:
            end, some = start + _CHUNK, 0
            for j in range(_CHUNK):
                some += 1 if coins[start + j] >> shift & _LOW < below else 0
        if some > 0:
            for j in range(start, end):
                found[number] = j
                number += 1 if coins[j] >> shift & _LOW < below else 0
    return number


@kernel
def _shortest(x: np.ndarray, width: int) -> float:
    """The shortest bond of all chains."""
    least = np.inf
    for k in range(x.size - width):
        least = min(least, x[k + width] - x[k])
    return least
