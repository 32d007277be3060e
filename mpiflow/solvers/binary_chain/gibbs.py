r"""Positions drawn from the Gibbs measure of given spins: hybrid Monte Carlo in bond lengths.

Where nothing but the positions moves, the bond lengths of a chain have the density
:math:`e^{-\beta V}`, and couplings between them that decay within a bond or two. Each gets a
normal momentum p, the equations of motion of :math:`\beta V + p^2 / 2` are solved by a few
leapfrog steps, and where that took the bonds is accepted with the probability
:math:`\min(1, e^{-\Delta})`, Delta the change of the sum [Duane et al., Phys. Lett. B 195, 216
(1987)]: exact at any step. All bonds are about as stiff, so that a quarter of an oscillation makes
them nearly independent of what they were.
"""

from __future__ import annotations

import math

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.noise import Word, stream_key, to_unit
from mpiflow.solvers.binary_chain.lanes import (
    ROUNDING,
    Lanes,
    Law,
    Space,
    draw,
    energies,
    lanes_of,
    law_of,
    move_bonds,
    parts,
    reach,
    slopes,
    space,
)
from mpiflow.solvers.spins.site_field import decay
from mpiflow.systems.binary_chain import BinaryChain, Pair, pair_terms

#: Leapfrog steps of a trajectory, and their length in units of the fastest oscillation's 1 / omega.
LEAPS, LEAP = 5, 0.42
#: Trajectories from a chain at rest to one in equilibrium.
SETTLING = 30
#: Chains and trajectories in a mean length, for a chain of 32 atoms: to 2e-4.
_LANES, _DRAWS = 64, 12800


def stiffness(system: BinaryChain) -> float:
    r"""The largest curvature of V along bond lengths of a chain at rest, energy / length^2.

    The largest eigenvalue of the Hessian of a long chain with equal bonds, of one species or
    alternating: :math:`\max_q \sum_d \phi''(d b) |\sum_{t < d} e^{iqt}|^2`.
    """
    aa, bb, ab = system.pairs()
    out = 0.0
    for odd, even in (((aa,), (aa,)), ((bb,), (bb,)), ((ab,), (aa, bb))):
        bond = rest_bond(system, odd, even)
        total = np.zeros(65)
        waves = np.exp(1j * np.linspace(0.0, math.pi, 65))
        for d in range(1, int(system.cutoff / bond) + 1):
            pairs = odd if d % 2 else even
            curvature = float(np.mean([pair_terms(d * bond, pair)[2] for pair in pairs]))
            total += curvature * abs(sum(waves**t for t in range(d))) ** 2
        out = max(out, float(total.max()))
    return out


def rest_bond(system: BinaryChain, odd: tuple[Pair, ...], even: tuple[Pair, ...]) -> float:
    """The bond length at which a long chain of equal bonds has the least energy."""

    def slope(bond: float) -> float:
        total = 0.0
        for d in range(1, int(system.cutoff / bond) + 1):
            pairs = odd if d % 2 else even
            total += d * float(np.mean([pair_terms(d * bond, pair)[1] for pair in pairs]))
        return total

    low, high = 0.6 * min(system.length_aa, system.length_bb, system.length_ab), system.cutoff
    for _ in range(60):  # the slope rises through 0 once, and ends at 0
        middle = 0.5 * (low + high)
        if slope(middle) < 0.0:
            low = middle
        else:
            high = middle
    return low


@kernel
def trajectory(
    lanes: Lanes,
    width: int,
    mobile: np.ndarray,
    leaps: int,
    leap: float,
    law: Law,
    space: Space,
    energy: np.ndarray,
    uniform: np.ndarray,
    accepted: np.ndarray,
) -> None:
    """Move the chains once; the normals of bonds are in ``space.new``.

    Parameters
    ----------
    mobile : (N width,) 1 where a bond may move, else 0
    energy : (width,) V before, and after it
    uniform : (width,) what decides
    accepted : (width,) int64, how often moves were accepted, counted on
    """
    x, momentum, before, move = lanes.x, space.new, space.old, space.move
    slope, other = space.slope, space.other
    bonds = x.size - width
    push = -leap * law.beta
    for k in range(x.size):  # an assignment of slices takes seconds to compile
        before[k] = x[k]
    change = np.zeros(width)
    for row in range(bonds // width):
        for lane in range(width):
            k = row * width + lane
            momentum[k] *= mobile[k]
            change[lane] -= 0.5 * momentum[k] * momentum[k]
    shells = reach(x, width, 1, law.ab.cutoff)
    slope, other = slopes(lanes, width, shells, law, space.outer, slope, other)
    wrong = 0
    for _ in range(leaps):
        here = slope[width:]
        for k in range(bonds):
            momentum[k] += 0.5 * push * here[k] * mobile[k]
        for k in range(bonds):
            move[k] = (leap * momentum[k] + ROUNDING) - ROUNDING
        wrong = move_bonds(x, move, width, True)
        shells = reach(x, width, shells, law.ab.cutoff)
        slope, other = slopes(lanes, width, shells, law, space.outer, slope, other)
        here = slope[width:]
        for k in range(bonds):
            momentum[k] += 0.5 * push * here[k] * mobile[k]
    new_energy = np.empty(width)
    energies(lanes, width, shells, law, space.outer, new_energy)
    for row in range(bonds // width):
        for lane in range(width):
            k = row * width + lane
            change[lane] += 0.5 * momentum[k] * momentum[k]
            if wrong > 0 and not x[k + width] > x[k]:
                change[lane] = np.inf
    for lane in range(width):
        gain = change[lane] + law.beta * (new_energy[lane] - energy[lane])
        # Nothing that is no number is below another.
        if gain <= 0.0 or (gain < 700.0 and uniform[lane] < decay(gain)):
            energy[lane] = new_energy[lane]
            accepted[lane] += 1
        else:
            for row in range(x.size // width):
                x[row * width + lane] = before[row * width + lane]


@kernel
def sample(
    lanes: Lanes,
    width: int,
    mobile: np.ndarray,
    trajectories: int,
    leaps: int,
    leap: float,
    key: Word,
    step: Word,
    law: Law,
    space: Space,
    accepted: np.ndarray,
    lengths: np.ndarray,
) -> None:
    """Move the chains several times, and add up their lengths after each.

    Trajectory t of chains at their ``space.steps`` + step uses the noise of sites
    :math:`2^{32} (t + 1) + p`.
    """
    energy, uniform = np.empty(width), np.empty(width)
    shells = reach(lanes.x, width, 1, law.ab.cutoff)
    energies(lanes, width, shells, law, space.outer, energy)
    last = lanes.x.size - width
    for t in range(trajectories):
        draw(key, step, np.uint64(t + 1) << np.uint64(32), space, space.new)
        for lane in range(width):
            uniform[lane] = to_unit(space.second[lane])
        trajectory(lanes, width, mobile, leaps, leap, law, space, energy, uniform, accepted)
        for lane in range(width):
            lengths[lane] += lanes.x[last + lane]


def leap_of(system: BinaryChain, bonds: int) -> float:
    """The length of a leapfrog step of so many bonds, in bond length."""
    leap = LEAP / math.sqrt(system.beta * stiffness(system))
    return leap * min(1.0, 32.0 / bonds) ** 0.25


def positions(system: BinaryChain, spins: np.ndarray, members: np.ndarray, seed: int) -> np.ndarray:
    """Positions of chains in equilibrium at their spins, (B, N) float64 from spins (B, N)."""
    x, _ = _equilibrium(system, spins, members, seed, 0, SETTLING)
    return x


def mean_bond(system: BinaryChain, spins: np.ndarray, seed: int) -> float:
    """The mean bond length of a chain in equilibrium at its spins (N,), to 2e-4."""
    draws = max(4, _DRAWS // (_LANES * system.sites) * 32)
    chains = np.broadcast_to(spins, (_LANES, system.sites))
    x, _ = _equilibrium(system, chains, np.arange(_LANES), seed, 1, SETTLING)
    _, lengths = _equilibrium(system, chains, np.arange(_LANES), seed, 2, draws, x)
    return float(lengths.mean()) / draws / (system.sites - 1)


def _equilibrium(
    system: BinaryChain,
    spins: np.ndarray,
    members: np.ndarray,
    seed: int,
    step: int,
    trajectories: int,
    x: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (B, N) after trajectories from x or from rest, and the sums of lengths (B,)."""
    count, sites = spins.shape
    if x is None:
        aa, bb, ab = system.pairs()
        x = np.broadcast_to(rest_bond(system, (ab,), (aa, bb)) * np.arange(sites), spins.shape)
    out, lengths = np.empty((count, sites)), np.zeros(count)
    key, law = stream_key(seed, "spin-diffusion-start"), law_of(system)
    leap = leap_of(system, sites - 1)
    for part in parts(count, sites):
        keys = key[1] + members[part].astype(np.uint64)
        width = len(keys)
        lanes = lanes_of(x[part], spins[part])
        accepted, sums = np.zeros(width, np.int64), np.zeros(width)
        sample(
            lanes, width, np.ones(sites * width), trajectories, LEAPS, leap, key[0],
            np.uint64(step), law, space(keys, sites), accepted, sums,
        )  # fmt: skip
        out[part], lengths[part] = lanes.x.reshape(sites, width).T, sums
    return out, lengths
