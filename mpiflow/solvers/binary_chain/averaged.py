r"""Spins of a chain where positions are infinitely fast: the averaged process (Approximation 2).

For epsilon to 0 spins are a Markov process of their own. Unlike interior neighbours i, i + 1 are
exchanged at the mean of the rates r over the Gibbs measure of the positions (4.23),

.. math:: \bar r_i(\sigma) = \int r(\Delta_i V(x, \sigma)) \, \mu(dx \,|\, \sigma), \qquad
          \mu(dx \,|\, \sigma) \propto e^{-\beta V(x, \sigma)} dx.

It goes from attempt to attempt, as the n-fold way. Each unlike bond is attempted at a rate R_i
that is no less than r, and one is drawn in proportion to it. The exchange happens with the
probability :math:`r(\Delta_i V(x, \sigma)) / R_i` at the present positions: exact thinning, without
any integral. Then, whether it happened or not, positions are drawn anew around it, so that those of
the next attempt know nothing of this one. (Anew after exchanges only they would be biased: where
none happened they are those at which it was unlikely.)

For tanh rates R = 1 / tau is a bound. Arrhenius rates have none: R is :data:`ROOM` times the rate
at equal bonds of the mean length. :attr:`AveragedSpins.beyond` counts the attempts at which r was
above it and had to be cut: of the chain of the paper at beta = 80, three in 100,000.

Positions are drawn in a window around the bond only (:mod:`mpiflow.solvers.binary_chain.gibbs`):
what an attempt costs does not depend on the length of the chain. That leaves the Gibbs measure of
spins and positions together exactly as it is, whatever the window and however few trajectories
there are; these decide how independent the positions are of those of the attempts before, which is
what averaging means.

Attempt n of a chain uses the noise of step n, so that an attempt beyond the end of a call is made
again, the same, in the next.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.noise import Word, exponential, stream_key, threefry, to_unit
from mpiflow.solvers.binary_chain import gibbs
from mpiflow.solvers.binary_chain.exchanges import exchange_energy, logistic
from mpiflow.solvers.binary_chain.lanes import Lanes, Law, Space, law_of, space
from mpiflow.solvers.binary_chain.langevin import SpinChains
from mpiflow.solvers.event_limits import NO_LIMIT
from mpiflow.solvers.spins.site_field import decay
from mpiflow.systems.binary_chain import BinaryChain, pair_energy

if TYPE_CHECKING:
    from mpi4py import MPI

#: Of an Arrhenius rate at equal bonds, what is taken for its bound.
ROOM = 4.0


class AveragedSpins(SpinChains):
    """Chains whose spins feel the mean of what positions do.

    To go on with a trajectory bit for bit, keep spins, positions, and the first two attributes.

    Parameters
    ----------
    decorrelation : trajectories from one sample of the positions to the next
    others : of :class:`SpinChains`

    Attributes
    ----------
    clock : (B,) float64, time of the last attempt of each chain
    events : (B,) int64, attempts so far
    beyond : (B,) int64, those of them at which an Arrhenius rate was above its bound
    """

    def __init__(
        self,
        system: BinaryChain,
        *,
        rates: str = "tanh",
        tau: float = 1.0,
        decorrelation: int = 2,
        seed: int = 0,
        members: int = 1,
        first: int = 0,
        comm: MPI.Intracomm | None = None,
    ) -> None:
        super().__init__(
            system, rates=rates, tau=tau, seed=seed, members=members, first=first, comm=comm
        )
        if decorrelation < 1:
            raise InputError("decorrelation", decorrelation, "1 or more", "Leave it out for 2.")
        self.decorrelation = int(decorrelation)
        count = len(self.numbers)
        self.clock = np.zeros(count)
        self.events, self.beyond = np.zeros(count, np.int64), np.zeros(count, np.int64)
        shells = np.zeros((2, 0))
        if rates == "arrhenius":
            shells = _couplings(system, gibbs.mean_bond(system, system.alternating(), seed))
        windows = gibbs.windows_of(system, self.decorrelation)
        self._how = _How(float(tau), rates == "arrhenius", shells, windows)
        self._law, self._key = law_of(system), stream_key(seed, "spin-diffusion-averaged")

    def _begin(self) -> None:
        for array in (self.clock, self.events, self.beyond):
            array[:] = 0

    def advance(self, until: float, most: int | None = None) -> np.ndarray:
        """Go on to a time, or by so many attempts of each chain if that is less.

        Returns
        -------
        (B,) int64, attempts made
        """
        self.require_state()
        if not math.isfinite(until):
            raise InputError("until", until, "a finite time", "Give one.")
        if most is not None and most < 0:
            raise InputError("most", most, "0 or more", "Leave it out.")
        before = self.events.copy()
        limit = np.full_like(before, NO_LIMIT) if most is None else before + most
        spins, width = self.spins.astype(np.float64), min(gibbs.WINDOWS, len(self.numbers))
        if width:
            keys = self._key[1] + self.numbers.astype(np.uint64)
            _advance(
                self.x, spins, self._key[0], keys, float(until), limit, self.clock, self.events,
                self.exchanges, self.beyond, self._how, self._law,
                space(keys[:width], self._how.windows.window),
            )  # fmt: skip
        self.spins[:] = spins
        return self.events - before


def _couplings(system: BinaryChain, bond: float) -> np.ndarray:
    """phi_AB - phi_AA, and less phi_BB, of neighbours 0, 1, ... equal bonds away, (2, shells)."""
    aa, bb, ab = system.pairs()
    r = bond * np.arange(int(system.cutoff / bond) + 2)
    return np.array([[pair_energy(d, ab) - pair_energy(d, own) for d in r] for own in (aa, bb)])


# -- kernels -------------------------------------------------------------------------------------


class _How(NamedTuple):
    """How attempts are made, as kernels take it.

    Attributes
    ----------
    tau, arrhenius : of the rates
    couplings : (2, shells), for bounds of Arrhenius rates
    windows : where positions are drawn
    """

    tau: float
    arrhenius: bool
    couplings: np.ndarray
    windows: gibbs.Windows


@kernel
def _bounds(spins: np.ndarray, how: _How, beta: float, out: np.ndarray) -> float:
    """Bounds of the rates of all bonds of a chain, in units of 1 / tau, and their sum."""
    total = 0.0
    reach = how.couplings.shape[1] - 1
    for i in range(1, spins.size - 2):
        out[i] = 0.0
        if spins[i] == spins[i + 1]:
            continue
        out[i] = 1.0
        if how.arrhenius:
            gain = 0.0
            for d in range(1, reach + 1):
                # The last of the couplings, one bond beyond the cut-off, is 0.
                if i - d >= 0:
                    own = 0 if spins[i - d] > 0.0 else 1
                    near, far = how.couplings[own, d], how.couplings[own, min(d + 1, reach)]
                    gain += spins[i - d] * (near - far)
                if i + 1 + d < spins.size:
                    own = 0 if spins[i + 1 + d] > 0.0 else 1
                    near, far = how.couplings[own, d], how.couplings[own, min(d + 1, reach)]
                    gain -= spins[i + 1 + d] * (near - far)
            z = 0.5 * beta * spins[i] * gain
            out[i] = ROOM * (decay(z) if z > 0.0 else 1.0 / decay(-z))
        total += out[i]
    return total


@kernel
def _next(
    b: int,
    key: Word,
    k1: Word,
    until: float,
    spins: np.ndarray,
    clock: np.ndarray,
    events: np.ndarray,
    how: _How,
    beta: float,
    bounds: np.ndarray,
) -> int:
    """The bond of the next attempt of a chain, whose clock is then at it; -1 if it is too late."""
    total = _bounds(spins, how, beta, bounds)
    if total == 0.0:
        return -1
    w0, w1 = threefry(key, k1, np.uint64(events[b]), np.uint64(0))
    time = clock[b] + exponential(w0) * how.tau / total
    if time > until:
        return -1
    clock[b] = time
    left, chosen = to_unit(w1) * total, -1
    for i in range(1, spins.size - 2):
        if bounds[i] > 0.0:
            chosen = i
            left -= bounds[i]
            if left < 0.0:
                break
    return chosen


@kernel
def _advance(
    x: np.ndarray,
    spins: np.ndarray,
    key: Word,
    keys: np.ndarray,
    until: float,
    limit: np.ndarray,
    clock: np.ndarray,
    events: np.ndarray,
    exchanges: np.ndarray,
    beyond: np.ndarray,
    how: _How,
    law: Law,
    room: Space,
) -> None:
    """Advance every chain to ``until`` or to a total of ``limit`` attempts.

    Chains go on in any order: none depends on another. Those that are not there yet are worked on
    together, a window of each.
    """
    count, sites = spins.shape
    width = room.keys.size // (how.windows.window // 2)
    waiting = np.arange(count)
    chains, centres = np.empty(width, np.int64), np.empty(width, np.int64)
    bounds, of_chosen = np.zeros(sites), np.empty(width)
    done = 0
    while True:
        # Fill the lanes: chains that have arrived are never looked at again.
        found, place = 0, done
        while found < width and place < count:
            b = waiting[place]
            bond = -1
            if events[b] < limit[b]:
                bond = _next(b, key, keys[b], until, spins[b], clock, events, how, law.beta, bounds)
            if bond < 0:
                waiting[place], waiting[done] = waiting[done], b
                done += 1
            else:
                chains[found], centres[found], of_chosen[found] = b, bond, bounds[bond]
                found += 1
            place += 1
        if found == 0:
            return
        for lane in range(found):
            b, i = chains[lane], centres[lane]
            z = law.beta * exchange_energy(Lanes(x[b], spins[b]), 1, i, law)
            rate = logistic(z)
            if how.arrhenius:
                rate = (decay(0.5 * z) if z > 0.0 else 1.0 / decay(-0.5 * z)) / of_chosen[lane]
                beyond[b] += 1 if rate > 1.0 else 0
            word, _ = threefry(key, keys[b], np.uint64(events[b]), np.uint64(1))
            if to_unit(word) < rate:
                spins[b, i], spins[b, i + 1] = spins[b, i + 1], spins[b, i]
                exchanges[b] += 1
        gibbs.sample_windows(
            x, spins, chains[:found], centres[:found], keys, events, 0, key, how.windows, law, room
        )
        for lane in range(found):
            events[chains[lane]] += 1
