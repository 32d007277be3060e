r"""Positions drawn from the Gibbs measure of given spins: hybrid Monte Carlo in bond lengths.

Where nothing but the positions moves, the bond lengths of a chain have the density
:math:`e^{-\beta V}`, and couplings between them that decay within a bond or two. Each gets a
normal momentum p, the equations of motion of :math:`\beta V + p^2 / 2` are solved by a few
leapfrog steps, and where that took the bonds is accepted with the probability
:math:`\min(1, e^{-\Delta})`, Delta the change of the sum [Duane et al., Phys. Lett. B 195, 216
(1987)]: exact at any step. All bonds are about as stiff, so that a quarter of an oscillation makes
them nearly independent of what they were.

A window of a chain at a time is moved, :data:`AROUND` bonds on either side of a place, with the
rest of the chain as it is. What is beyond feels the change no more than bonds a few places away
feel each other, and as many moves are accepted in long chains as in short ones.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

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
    law_of,
    move_bonds,
    reach,
    slopes,
    space,
)
from mpiflow.solvers.spins.site_field import decay
from mpiflow.systems.binary_chain import BinaryChain, confinement_terms, pair_terms

#: Leapfrog steps of a trajectory, and their length in units of the fastest oscillation's 1 / omega.
LEAPS, LEAP = 5, 0.42
#: Bonds on either side of a place whose lengths are drawn together.
AROUND = 8
#: Windows that are worked on together.
WINDOWS = 64
#: Sweeps from a chain at rest to one in equilibrium.
SETTLING = 30
#: Chains and trajectories in a mean length, for a chain of 32 atoms: to 2e-4.
_LANES, _DRAWS = 64, 12800


class Windows(NamedTuple):
    """How positions are drawn, as kernels take it.

    Attributes
    ----------
    trajectories, leaps, leap : of a sample, and of a trajectory
    window : sites of a window with its margins
    margin : bonds at its ends that stay as they are, where they are not those of the chain
    """

    trajectories: int
    leaps: int
    leap: float
    window: int
    margin: int


@lru_cache(maxsize=64)
def _equal_bonds(system: BinaryChain) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""Long chains of equal bonds, of A, of B and alternating, on a grid of bond lengths.

    Returns the lengths (L,), the energies of a bond and the largest curvatures along bond lengths,
    (3, L): the eigenvalues :math:`\sum_d \phi''(d b) |\sum_{t < d} e^{iqt}|^2 + c''(b)` of the
    Hessian.
    """
    aa, bb, ab = system.pairs()
    lengths = system.length_aa, system.length_bb, system.length_ab
    grid = np.arange(0.4 * min(lengths), 1.6 * max(lengths), 0.005 * min(lengths))
    energy, curvature = np.zeros((2, 3, len(grid)))
    waves = np.exp(1j * np.linspace(0.0, math.pi, 33))
    for kind, (odd, even) in enumerate((((aa,), (aa,)), ((bb,), (bb,)), ((ab,), (aa, bb)))):
        for k, bond in enumerate(grid.tolist()):
            total = np.zeros(len(waves))
            for d in range(1, int(system.cutoff / bond) + 1):
                terms = [pair_terms(d * bond, pair) for pair in (odd if d % 2 else even)]
                energy[kind, k] += sum(term[0] for term in terms) / len(terms)
                wave = abs((waves[:, None] ** np.arange(d)).sum(axis=1)) ** 2
                total += sum(term[2] for term in terms) / len(terms) * wave
            held, _, bent = confinement_terms(bond, system.confinement)
            energy[kind, k] += held
            curvature[kind, k] = total.max() + bent
    return grid, energy, curvature


def stiffness(system: BinaryChain, above: float = 0.0) -> float:
    """The largest curvature of V along bond lengths of chains of equal bonds, energy / length^2.

    Of those with an energy of at most ``above`` a bond more than at rest.
    """
    _, energy, curvature = _equal_bonds(system)
    near = energy <= energy.min(axis=1, keepdims=True) + above
    return float(curvature[near].max())


def rest_bond(system: BinaryChain) -> float:
    """The bond length at which a long alternating chain of equal bonds has the least energy."""
    grid, energy, _ = _equal_bonds(system)
    return float(grid[energy[2].argmin()])


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
def sample_windows(
    x: np.ndarray,
    spins: np.ndarray,
    chains: np.ndarray,
    centres: np.ndarray,
    keys: np.ndarray,
    events: np.ndarray,
    first: int,
    key: Word,
    how: Windows,
    law: Law,
    room: Space,
) -> None:
    """Draw new bond lengths around bonds of some chains.

    Parameters
    ----------
    x, spins : (B, N) positions, which are changed, and spins, float64
    chains, centres : (L,) which chains, and the bonds around which
    keys, events : (B,) second words of their keys, and the steps of their noise
    first : number of the first trajectory. Number t uses the sites :math:`2^{32} (t + 1) + p`
    """
    width, window, sites = chains.size, how.window, x.shape[1]
    size, half = window * width, window // 2 * width
    lanes = Lanes(np.empty(size), np.empty(size))
    mobile = np.zeros(size)
    part = Space(
        room.keys[:half], room.steps[:half], room.sites[:half], room.first[:half],
        room.second[:half], room.old[:size], room.new[:size], room.outer[:size],
        room.slope[: size + width], room.other[: size + width], room.excess[:size],
        room.move[:size], room.found,
    )  # fmt: skip
    part.slope[:width] = 0.0
    part.other[:width] = 0.0
    starts = np.empty(width, np.int64)
    for lane in range(width):
        b = chains[lane]
        start = min(max(centres[lane] - AROUND - how.margin, 0), sites - window)
        starts[lane] = start
        low = 0 if start == 0 else how.margin
        high = window - 1 if start + window == sites else window - 1 - how.margin
        for row in range(window):
            k = row * width + lane
            lanes.x[k], lanes.spins[k] = x[b, start + row] - x[b, start], spins[b, start + row]
            mobile[k] = 1.0 if low <= row < high else 0.0
        for p in range(window // 2):
            k = p * width + lane
            part.keys[k], part.steps[k] = keys[b], np.uint64(events[b])
            part.sites[k] = np.uint64(p)
    energy, uniform, accepted = np.empty(width), np.empty(width), np.zeros(width, np.int64)
    shells = reach(lanes.x, width, 1, law.ab.cutoff)
    energies(lanes, width, shells, law, part.outer, energy)
    for t in range(first, first + how.trajectories):
        draw(key, np.uint64(0), np.uint64(t + 1) << np.uint64(32), part, part.new)
        for lane in range(width):
            uniform[lane] = to_unit(part.second[lane])
        trajectory(lanes, width, mobile, how.leaps, how.leap, law, part, energy, uniform, accepted)
    for lane in range(width):
        b, start = chains[lane], starts[lane]
        last = start + window - 1
        longer = lanes.x[(window - 1) * width + lane] - (x[b, last] - x[b, start])
        for row in range(1, window):
            x[b, start + row] = x[b, start] + lanes.x[row * width + lane]
        for i in range(last + 1, sites):
            x[b, i] += longer


def windows_of(system: BinaryChain, trajectories: int) -> Windows:
    """Windows of a chain that are moved by so many trajectories each time."""
    margin = system.bonds_within
    # Where the potential is flat at rest it is still not so a little above.
    stiff = max(stiffness(system), 0.25 * stiffness(system, 0.5 / system.beta))
    leap = LEAP / math.sqrt(system.beta * stiff)
    window = min(system.sites, 2 * (AROUND + margin) + 2)
    return Windows(trajectories, LEAPS, leap, window, margin)


def positions(system: BinaryChain, spins: np.ndarray, members: np.ndarray, seed: int) -> np.ndarray:
    """Positions of chains in equilibrium at their spins, (B, N) float64 from spins (B, N)."""
    x = _at_rest(system, spins)
    _sweep(system, x, spins, members, seed, 0, SETTLING)
    return x


def mean_bond(system: BinaryChain, spins: np.ndarray, seed: int) -> float:
    """The mean bond length of a chain in equilibrium at its spins (N,).

    To 2e-4 of it at beta = 80, to 1e-3 at beta = 10.
    """
    draws = max(4, _DRAWS * 32 // (_LANES * system.sites))
    chains, members = np.tile(spins, (_LANES, 1)), np.arange(_LANES)
    x = _at_rest(system, chains)
    _sweep(system, x, chains, members, seed, 1, SETTLING)
    lengths = _sweep(system, x, chains, members, seed, 2, draws)
    return float(lengths.mean()) / draws / (system.sites - 1)


def _at_rest(system: BinaryChain, spins: np.ndarray) -> np.ndarray:
    """Chains with equal bonds, (B, N)."""
    x = np.rint(rest_bond(system) * 2.0**32) * 2.0**-32 * np.arange(system.sites)
    return np.tile(x, (len(spins), 1))


def _sweep(
    system: BinaryChain,
    x: np.ndarray,
    spins: np.ndarray,
    members: np.ndarray,
    seed: int,
    step: int,
    sweeps: int,
) -> np.ndarray:
    """Move chains (B, N), in place, window by window; sums of their lengths after each sweep."""
    key, how, width = stream_key(seed, "spin-diffusion-start"), windows_of(system, 1), len(x)
    lengths, steps = np.zeros(width), np.full(width, step, np.int64)
    if width:
        keys = key[1] + members.astype(np.uint64)
        together = min(WINDOWS, width)
        _sweep_chains(
            x, spins.astype(np.float64), keys, steps, sweeps, key[0], how, law_of(system),
            space(keys[:together], how.window), lengths,
        )  # fmt: skip
    return lengths


@kernel
def _sweep_chains(
    x: np.ndarray,
    spins: np.ndarray,
    keys: np.ndarray,
    steps: np.ndarray,
    sweeps: int,
    key: Word,
    how: Windows,
    law: Law,
    room: Space,
    lengths: np.ndarray,
) -> None:
    """Windows overlap by half, so that every bond is in the inner part of one."""
    count, sites = x.shape
    width = room.keys.size // (how.window // 2)
    places = max(1, -(-(sites - 1) // AROUND) - 1)
    centres = np.empty(width, np.int64)
    for start in range(0, count, width):
        chains = np.arange(start, min(start + width, count))
        for sweep in range(sweeps):
            for place in range(places):
                centres[:] = (place + 1) * AROUND
                first = (sweep * places + place) * how.trajectories
                sample_windows(
                    x, spins, chains, centres[: chains.size], keys, steps, first, key, how, law,
                    room,
                )  # fmt: skip
            for b in chains:
                lengths[b] += x[b, sites - 1]
