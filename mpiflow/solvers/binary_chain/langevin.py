r"""Spins and positions of a chain together: the spin-diffusion process (sections 1.2 and 4).

Positions follow Langevin's equation without inertia (1.3), faster than spins by 1 / epsilon, with
the first atom at 0; unlike interior neighbours exchange their species at the tanh (4.33) or
Arrhenius (4.38) rates r:

.. math:: dx = -\nabla_x V \, dt / \epsilon + \sqrt{2 / \beta \epsilon} \, dW, \qquad
          r_{tanh} = \frac{1}{2 \tau} \left[1 - \tanh(\beta \Delta V / 2)\right], \quad
          r_{Arrhenius} = e^{-\beta \Delta V / 2} / \tau.

Both leave :math:`e^{-\beta V}` as it is, of positions and spins together. So do, instead of noise
and friction of atoms, those of bond lengths b,

.. math:: db_i = -\frac{\partial V}{\partial b_i} dt / \epsilon + \sqrt{2 / \beta \epsilon} \, dW_i,

which is preconditioned by the inverse Laplacian of the chain: long waves then relax as fast as
short ones, where for atoms they take a time that grows as :math:`N^2`. It is what assumption 3 of
the paper allows, and the default.

A step exchanges at fixed positions (:mod:`mpiflow.solvers.binary_chain.exchanges`), one bond after
the other in a sweep whose direction alternates, and moves at fixed spins by the scheme of
Leimkuhler and Matthews [Appl. Math. Res. eXpress 2013, 34], in which the noise of a step is that
of the last half and of the next half, h = dt / epsilon:

.. math:: b \leftarrow b - h D + \sqrt{2 h / \beta} \, (\xi_n + \xi_{n+1}) / 2.

It is the limit of large friction of BAOAB, whose half kicks are before and after an exchange: so D
is the mean of the slopes at the spins before it and after it. With that the invariant measure has
an error of order h^2; with the slopes at either spins alone it would be of order epsilon h.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mpiflow.core import arrays
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import is_spins, no_state, require_rule, spin_fault, together
from mpiflow.core.lattice import split
from mpiflow.core.noise import Word, stream_key, threefry, to_unit
from mpiflow.core.schedule import after
from mpiflow.solvers.binary_chain import observables
from mpiflow.solvers.binary_chain.exchanges import HAPPENS, Rates, exchange, rates_of
from mpiflow.solvers.binary_chain.gibbs import mean_bond, positions, stiffness, trajectory
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
from mpiflow.systems.binary_chain import BinaryChain

if TYPE_CHECKING:
    from mpi4py import MPI

RATES = ("tanh", "arrhenius")
#: Counter word of what accepts a move; those of bonds are below.
ACCEPTED = np.uint64(2**62)


class SpinChains:
    """Chains with spins of 1 and -1: what the process and its averaged limit have in common.

    Parameters
    ----------
    system : the chain
    rates : "tanh" or "arrhenius"
    tau : time scale of exchanges
    seed : of the noise
    members : number of chains, on all ranks together
    first : number of the first one; noise goes by numbers
    comm : communicator whose ranks share the chains; None for one process

    Attributes
    ----------
    numbers : (B,) the chains of this rank
    spins : (B, N) int8; may be written to, and 0 until they are set
    x : (B, N) float64, positions, multiples of 2^-32; may be written to
    exchanges : (B,) int64, how many there were
    reference : (B,) float64, mean bond length in equilibrium at the spins of the start
    """

    def __init__(
        self,
        system: BinaryChain,
        *,
        rates: str,
        tau: float,
        seed: int,
        members: int,
        first: int,
        comm: MPI.Intracomm | None,
    ) -> None:
        require_rule(system, BinaryChain)
        if rates not in RATES:
            raise InputError("rates", rates, "'tanh' or 'arrhenius'", "Leave it out for tanh.")
        _require_positive("tau", tau, "Try 1.")
        if members < 1:
            raise InputError("members", members, "1 or more", "Leave it out for 1.")
        stream_key(seed, "spin-diffusion")  # which says what a seed may be
        self._comm = comm
        ranks, rank = (comm.size, comm.rank) if comm is not None else (1, 0)
        self.system, self.seed, self.rates, self.tau = system, seed, rates, float(tau)
        self.numbers = first + np.arange(*split(members, ranks, rank))
        shape = len(self.numbers), system.sites
        self.spins, self.x = np.zeros(shape, np.int8), np.full(shape, np.nan)
        self.exchanges = np.zeros(shape[0], np.int64)
        self.reference = np.full(shape[0], np.nan)

    def set(self, spins: np.ndarray, x: np.ndarray | None = None) -> None:
        """Start at time 0.

        Parameters
        ----------
        spins : (N,) or (B, N), 1 for A and -1 for B
        x : positions, (N,) or (B, N), which rise from atom to atom; by default drawn from the
            Gibbs measure of the spins

        Raises
        ------
        InputError : on all ranks, for spins or positions that cannot be
        """
        with together(self._comm):
            chosen = _filling("spins", np.asarray(spins), self.spins.shape)
            if not is_spins(chosen):
                raise spin_fault(chosen)
            if x is not None:
                given = _filling("x", arrays.real("x", x), self.x.shape)
                _require_order(given, "Look at the start.")
        self.spins[:] = chosen
        known: dict[bytes, float] = {}
        for b, row in enumerate(self.spins):
            if row.tobytes() not in known:
                known[row.tobytes()] = mean_bond(self.system, row, self.seed)
            self.reference[b] = known[row.tobytes()]
        if x is None:
            self.x[:] = positions(self.system, self.spins, self.numbers, self.seed)
        else:
            moved = np.rint((given - given[:, :1]) * 2.0**32)
            self.x[:] = moved * 2.0**-32
        self.exchanges[:] = 0
        self._begin()

    def _begin(self) -> None:
        """Be at time 0."""
        raise NotImplementedError

    def require_state(self) -> None:
        """Raise, on all ranks, unless spins and positions are set and possible."""
        with together(self._comm):
            if len(self.spins) and not self.spins.any():
                raise no_state("Set the chains: sim.set(system.alternating()).")
            if not is_spins(self.spins):
                raise spin_fault(self.spins)
            _require_order(self.x, "Look at the state.")

    def strain(self) -> np.ndarray:
        """How much longer each chain is than in equilibrium at the start, (B,) float64."""
        return observables.strain(self.x, self.reference)

    def ab_bonds(self) -> np.ndarray:
        """Bonds between unlike neighbours, (B,) float64."""
        return observables.ab_bonds(self.spins)

    def first_minimum(self) -> np.ndarray:
        """First minimum of the autocorrelation of each chain, (B,) int64."""
        return observables.first_minimum(self.spins)


class SpinDiffusion(SpinChains):
    """Chains whose positions move and whose spins are exchanged, in steps of one length.

    To go on with a trajectory bit for bit, keep spins, positions and :attr:`step`.

    Parameters
    ----------
    epsilon : how much slower spins are than positions
    dt : step, in the time of the exchanges; dt / epsilon is that of the positions
    preconditioned : noise and friction of bond lengths; else of atoms
    metropolis : accept or reject the moves of a chain as a whole, so that the measure is exact at
        any step. In long chains few moves are then accepted, and time slows down.
    others : of :class:`SpinChains`

    Attributes
    ----------
    step : steps made
    accepted : (B,) int64, moves that were accepted, where they may be rejected
    """

    #: Steps of this share of the longest have small errors and stay in their basin.
    USUAL: ClassVar[float] = 0.15

    def __init__(
        self,
        system: BinaryChain,
        *,
        epsilon: float,
        dt: float,
        rates: str = "tanh",
        tau: float = 1.0,
        preconditioned: bool = True,
        metropolis: bool = False,
        seed: int = 0,
        members: int = 1,
        first: int = 0,
        comm: MPI.Intracomm | None = None,
    ) -> None:
        super().__init__(
            system, rates=rates, tau=tau, seed=seed, members=members, first=first, comm=comm
        )
        _require_positive("epsilon", epsilon, "Try 0.05.")
        _require_positive("dt", dt, "Try a quarter of epsilon.")
        longest = longest_step(system, epsilon, preconditioned)
        if not (dt < longest or metropolis):
            allowed = f"below {longest:.4g}, 2 epsilon over the largest curvature: steps are stable"
            raise InputError("dt", dt, allowed, f"Try {self.USUAL * longest:.2g}.")
        if metropolis and not preconditioned:
            allowed = "False without preconditioning"
            raise InputError("metropolis", metropolis, allowed, "Precondition it.")
        self.epsilon, self.dt = float(epsilon), float(dt)
        self.preconditioned, self.metropolis = preconditioned, metropolis
        self.step = 0
        self.accepted = np.zeros(len(self.numbers), np.int64)
        self._rates = rates_of(system, rates == "arrhenius", dt / tau)
        self._law, self._key = law_of(system), stream_key(seed, "spin-diffusion")

    @property
    def time(self) -> float:
        """Steps times dt."""
        return after(0.0, self.step, self.dt)

    def _begin(self) -> None:
        self.step = 0
        self.accepted[:] = 0

    def advance(self, steps: int) -> None:
        """Make steps of length dt.

        Raises
        ------
        InputError : on all ranks, where a step took atoms past each other; nothing has changed then
        """
        if steps < 0:
            raise InputError("steps", steps, "0 or more", "Go on from an earlier state.")
        self.require_state()
        done, sites = [], self.system.sites
        with together(self._comm):
            for part in parts(len(self.numbers), sites):
                lanes = lanes_of(self.x[part], self.spins[part])
                counts = self.exchanges[part].copy(), self.accepted[part].copy()
                self._advance(lanes, self.numbers[part], steps, *counts)
                done.append((part, lanes, *counts))
        for part, lanes, exchanges, accepted in done:
            self.x[part] = lanes.x.reshape(sites, -1).T
            self.spins[part] = lanes.spins.reshape(sites, -1).T
            self.exchanges[part], self.accepted[part] = exchanges, accepted
        self.step += steps

    def _advance(
        self,
        lanes: Lanes,
        numbers: np.ndarray,
        steps: int,
        exchanges: np.ndarray,
        accepted: np.ndarray,
    ) -> None:
        width, h = len(numbers), self.dt / self.epsilon
        place = space(self._key[1] + numbers.astype(np.uint64), self.system.sites)
        common = self._rates, self._law, place, exchanges
        if self.metropolis:
            leap = math.sqrt(2.0 * h / self.system.beta)
            _advance_exactly(
                lanes, width, self._key[0], self.step, steps, 1, leap, *common, accepted
            )
            return
        amplitude = math.sqrt(0.5 * h / self.system.beta)
        wrong = _advance(
            lanes, width, self._key[0], self.step, steps, h, amplitude, self.preconditioned, *common
        )
        if wrong >= 0:
            bonds = np.diff(lanes.x.reshape(self.system.sites, width), axis=0)
            member = int(numbers[~(bonds > 0).all(axis=0)].min(initial=numbers.max()))
            allowed = (
                f"so large that atoms keep their order in steps of dt = {self.dt:g} (member "
                f"{member} does not at step {wrong + 1}, t = {after(0.0, wrong + 1, self.dt):g})"
            )
            remedy = f"Make dt shorter: {0.25 * self.dt:.2g}."
            raise InputError("epsilon", self.epsilon, allowed, remedy)


def longest_step(system: BinaryChain, epsilon: float, preconditioned: bool = True) -> float:
    """Longer steps are not stable: 2 epsilon over the largest curvature of V.

    That is taken where bonds have half of k_B T more than at rest: the hotter, the steeper are the
    walls that they run into. It takes shorter ones to never leave the basin.
    """
    # Of atoms, next neighbours pull from both sides.
    curvature = stiffness(system, 0.5 / system.beta) * (1.0 if preconditioned else 4.0)
    return 2.0 * epsilon / curvature


def _require_positive(name: str, value: float, remedy: str) -> None:
    if not 0 < value < math.inf:
        raise InputError(name, value, "a finite number above 0", remedy)


def _filling(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        raise InputError(name, values.shape, f"{shape} or what fills it", "Reshape it.") from None


def _require_order(x: np.ndarray, remedy: str) -> None:
    bonds = np.diff(x, axis=1)
    wrong = bonds[~((bonds > 0) & (bonds < 1e5))]
    if wrong.size:
        allowed = "positions that rise from atom to atom"
        raise InputError("x", f"a bond of length {wrong[0]:.4g}", allowed, remedy)


# -- kernels -------------------------------------------------------------------------------------


@kernel
def _advance(
    lanes: Lanes,
    width: int,
    key: Word,
    first: int,
    steps: int,
    h: float,
    amplitude: float,
    preconditioned: bool,
    rates: Rates,
    law: Law,
    space: Space,
    count: np.ndarray,
) -> int:
    """Make steps; which of them has left the basin of the chain, or -1."""
    x, excess, move = lanes.x, space.excess, space.move
    old, new, slope, other = space.old, space.new, space.slope, space.other
    draw(key, np.uint64(first), np.uint64(0), space, old)
    shells = 1
    for step in range(first, first + steps):
        draw(key, np.uint64(step + 1), np.uint64(0), space, new)
        exchange(lanes, width, key, np.uint64(step), space, rates, law, count)
        shells = reach(x, width, shells, law.ab.cutoff)
        slope, other = slopes(lanes, width, shells, law, space.outer, slope, other)
        here = slope[width:]
        if preconditioned:
            for k in range(move.size - width):
                gain = amplitude * (old[k] + new[k]) - h * (here[k] + excess[k])
                move[k] = (gain + ROUNDING) - ROUNDING
        else:
            after, excess_after = here[width:], excess[width:]
            for k in range(move.size - width):
                pull = (after[k] + excess_after[k]) - (here[k] + excess[k])
                gain = amplitude * (old[k] + new[k]) + h * pull
                move[k] = (gain + ROUNDING) - ROUNDING
        if move_bonds(x, move, width, preconditioned) > 0:
            return step
        old, new = new, old
    return -1


@kernel
def _advance_exactly(
    lanes: Lanes,
    width: int,
    key: Word,
    first: int,
    steps: int,
    leaps: int,
    leap: float,
    rates: Rates,
    law: Law,
    space: Space,
    count: np.ndarray,
    accepted: np.ndarray,
) -> None:
    """The same by Metropolis' rule: a trajectory of one leapfrog step is a step of Euler."""
    energy, uniform, mobile = np.empty(width), np.empty(width), np.ones(lanes.x.size)
    for step in range(first, first + steps):
        draw(key, np.uint64(step + 1), np.uint64(0), space, space.new)
        exchange(lanes, width, key, np.uint64(step), space, rates, law, count)
        shells = reach(lanes.x, width, 1, law.ab.cutoff)
        energies(lanes, width, shells, law, space.outer, energy)
        for lane in range(width):
            k1, at = space.keys[lane], np.uint64(step) | HAPPENS
            uniform[lane] = to_unit(threefry(key, k1, at, ACCEPTED)[0])
        trajectory(lanes, width, mobile, leaps, leap, law, space, energy, uniform, accepted)
