r"""Mean-field models of a chain of two species: mean spins, with positions and widths at rest.

The six laws of :mod:`fluxes` behind one class. Two integrators: RODAS3 for the equation with
constraints (:mod:`stiff`), and, as in the paper, backward differentiation of the stiff equations
(5.2) in which positions and widths follow the gradient of the free energy with a rate of 1e9.

Chains are dealt to ranks whole: the same bits on any number of them. Nothing communicates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from scipy.integrate import BDF
from scipy.sparse import csr_array, dia_array

from mpiflow.core import arrays
from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.core.guards import require_finite, together
from mpiflow.core.lattice import split
from mpiflow.solvers.binary_chain import observables
from mpiflow.solvers.binary_chain.fluxes import MODELS, Dynamics, jacobian, right_side
from mpiflow.solvers.binary_chain.free_energy import (
    A,
    FreeEnergy,
    S,
    X,
    require_stiff,
    tables,
)
from mpiflow.solvers.binary_chain.stiff import DONE, rodas3
from mpiflow.systems.binary_chain import BinaryChain

if TYPE_CHECKING:
    from mpi4py import MPI

INTEGRATORS = ("rodas3", "bdf")
#: Default rates of the models whose rate is a mobility; that of the others is 1 / (2 tau).
MOBILITIES = {"free-energy": 4.0, "free-energy-limited": 1.0}
#: The rate at which positions and widths relax where they are not constraints.
_ETA = 1e9


class MeanFieldChains:
    """A batch of chains, each with a clock of its own.

    Parameters
    ----------
    system : the chain
    model : one of ``fluxes.MODELS``
    members, first : number of chains, on all ranks together, and the number of the first
    comm : communicator whose ranks share the chains; None for one process
    tau : unit of time of exchanges, above 0
    mobility : k_c, k_r or kappa e^(-beta Q), 0 or more; None for 4, 1 (the runs behind Tables 5.1
        and 5.2) or 1 / (2 tau). Only of the models that have one
    tolerance : error of a step in any mean spin, bond length and ln(alpha); None for 1e-5. Of
        "bdf" the relative one, the absolute one is 1e-3 of it; None for 1e-3, as in the paper
    integrator : "rodas3" or "bdf"

    Attributes
    ----------
    numbers : (B,) the chains of this rank
    y : (B, 3, N) float64, mean spins, mean positions, ln(alpha); NaN until they are set
    s, x, log_alpha : (B, N) views of them
    clock : (B,) float64 time of each
    next_step : (B,) float64 size of the step to try next
    steps : (B,) int64 steps made since the start
    reference : (B,) float64 mean bond of the start, which strains refer to

    Arrays of a chain, restored together, go on with the same bits.
    """

    def __init__(
        self,
        system: BinaryChain,
        model: str = "mean-field",
        *,
        members: int = 1,
        first: int = 0,
        comm: MPI.Intracomm | None = None,
        tau: float = 1.0,
        mobility: float | None = None,
        tolerance: float | None = None,
        integrator: str = "rodas3",
    ) -> None:
        self.energy = FreeEnergy(system)
        if model not in MODELS:
            guess = did_you_mean(model, MODELS) or "Try 'mean-field'."
            raise InputError("model", model, ", ".join(MODELS), guess)
        if integrator not in INTEGRATORS:
            raise InputError("integrator", integrator, " or ".join(INTEGRATORS), "Try rodas3.")
        if members < 1:
            raise InputError("members", members, "1 or more", "Leave it out for 1.")
        if tolerance is not None and not 1e-12 <= tolerance <= 0.1:
            raise InputError("tolerance", tolerance, "1e-12 to 0.1", "Leave it out.")
        self.system, self.model, self.integrator = system, model, integrator
        self.tolerance = tolerance or (1e-3 if integrator == "bdf" else 1e-5)
        self.rate = _rate(model, tau, mobility)
        self._comm = comm
        ranks, rank = (comm.size, comm.rank) if comm is not None else (1, 0)
        self.numbers = first + np.arange(*split(members, ranks, rank))
        count = len(self.numbers)
        self.y = np.full((count, 3, system.sites), np.nan)
        self.s, self.x, self.log_alpha = self.y[:, S], self.y[:, X], self.y[:, A]
        self.clock, self.next_step = np.zeros(count), np.zeros(count)
        self.reference, self.steps = np.full(count, np.nan), np.zeros(count, dtype=np.int64)
        self._dynamics = Dynamics(MODELS.index(model), self.rate)
        self._pairs = tables(system, point=model == "point")

    @property
    def time(self) -> float:
        """The earliest clock, or 0 without chains."""
        return float(self.clock.min()) if len(self.clock) else 0.0

    def set(self, s: np.ndarray) -> None:
        """Start at time 0 from mean spins (N,) or (B, N); positions and widths are relaxed.

        Raises
        ------
        InputError : spins that are none, or no state to relax to
        """
        s = np.asarray(arrays.real("s", s), dtype=np.float64)
        with together(self._comm):
            try:
                spins = np.broadcast_to(s, self.s.shape)
            except ValueError:
                allowed = f"{self.s.shape} or what fills it"
                raise InputError("s", s.shape, allowed, "Reshape it.") from None
            self._require_spins(spins)
            self.s[:] = spins
            self.relax()
        self.clock[:], self.steps[:] = 0.0, 0
        self.reference[:] = observables.length(self.x)

    def relax(self) -> None:
        """Put positions and widths to rest at the present mean spins.

        For spins that were set, or where another system goes on with those of this one.

        Raises
        ------
        InputError : there is no such state
        """
        before: np.ndarray | None = None
        for b, row in enumerate(self.s):
            same = before is not None and np.array_equal(before[S], row)
            self.y[b] = before if same else self.energy.relaxed(row.copy())
            before = self.y[b]
            self.next_step[b] = self._first_step(self.y[b])

    def advance(
        self, until: float, most: int | None = None, target: float | None = None
    ) -> np.ndarray:
        """Advance all chains to ``until``, each in at most so many steps; (B,) steps made.

        Only a step that would pass ``target``, where the next frame is, is shortened to end there:
        where a run is interrupted before it changes no bits. So clocks may pass ``until``. "bdf"
        keeps what it knows of earlier steps only up to a frame, and goes to ``target`` at once.

        Parameters
        ----------
        until : time
        most : steps; None for as many as it takes
        target : time, not before ``until``; None for ``until``

        Raises
        ------
        InputError : no state, or one that cannot be followed
        """
        self.require_state()
        target = until if target is None else target
        if not until <= target < math.inf:
            raise InputError("target", target, f"{until:g} or later", "Leave it out.")
        limit = 2**62 if most is None else most
        made = np.zeros(len(self.y), dtype=np.int64)
        with together(self._comm):
            for b in range(len(self.y)):
                made[b] = self._advance(b, until, limit, target)
        self.steps += made
        return made

    def first_time(
        self, happened: Callable[[np.ndarray], bool], limit: float, precision: float = 1e-4
    ) -> np.ndarray:
        """When the mean spins (N,) of each chain first fulfil a condition, (B,) float64.

        Looked for after each step, and within it by halving, down to a relative ``precision``.
        NaN for chains that have not come to it by ``limit``. They are left where it ends.
        """
        self.require_state()
        times = np.full(len(self.y), np.nan)
        with together(self._comm):
            for b in range(len(self.y)):
                while self.clock[b] < limit and not happened(self.s[b]):
                    before, start = self.y[b].copy(), self.clock[b]
                    self.steps[b] += self._advance(b, limit, 1, limit)
                    if not happened(self.s[b]):
                        continue
                    low, high = start, float(self.clock[b])
                    while high - low > precision * high:
                        middle = 0.5 * (low + high)
                        self._restart(b, before, start, middle)
                        low, high = (low, middle) if happened(self.s[b]) else (middle, high)
                    self._restart(b, before, start, high)
                if happened(self.s[b]):
                    times[b] = self.clock[b]
        return times

    def require_state(self) -> None:
        """Raise, on all ranks that share the chains, unless they are set and possible."""
        with together(self._comm):
            require_finite("y", self.y, "Set the spins: chains.set(system.alternating(0.9998)).")
            self._require_spins(self.s)
            gaps = np.diff(self.x)
            if not (gaps > 0).all():
                raise InputError("x", float(gaps.min()), "atoms in order, none overlap", "Use set.")

    # -- what is measured ------------------------------------------------------------------

    def strain(self) -> np.ndarray:
        """How much longer each chain is than at its start, relative to that, (B,) float64."""
        return observables.strain(self.x, self.reference)

    def ab_bonds(self) -> np.ndarray:
        """Mean number of bonds between unlike neighbours, (B,) float64."""
        return observables.ab_bonds(self.s)

    def first_minimum(self) -> np.ndarray:
        """First local minimum of the autocorrelation of the mean spins, (B,) int64."""
        return observables.first_minimum(self.s)

    def free_energy(self) -> np.ndarray:
        """F (3.12) of each chain, (B,) float64."""
        return np.array([self.energy.value(y) for y in self.y])

    # -- one chain -------------------------------------------------------------------------

    def derivative(self, y: np.ndarray) -> np.ndarray:
        """ds/dt of a state (3, N), and minus the gradient of F by X and ln(alpha), (3, N)."""
        out = np.empty_like(y)
        if right_side(y, self.energy.law, self._dynamics, np.int64(1), self._pairs, out) < 0:
            out[:] = np.nan
        return out

    def _advance(self, b: int, until: float, most: int, target: float) -> int:
        if self.integrator == "bdf":
            return self._advance_bdf(b, until, target)
        ended, self.clock[b], self.next_step[b], made = rodas3(
            self.y[b],
            self.energy.law,
            self._dynamics,
            self._pairs,
            self.tolerance,
            self.clock[b],
            self.next_step[b],
            float(until),
            float(target),
            most,
        )
        require_stiff(self.log_alpha[b], self.system.beta)
        if ended != DONE:
            raise self._stuck(b)
        return made

    def _stuck(self, b: int) -> InputError:
        where = f"one that steps can hold at time {self.clock[b]:g} of chain {self.numbers[b]}"
        return InputError("tolerance", self.tolerance, where, "Look at the state, or try another.")

    def _restart(self, b: int, y: np.ndarray, time: float, end: float) -> None:
        """One step from a state at a time to a later one, whatever its error."""
        self.y[b], self.clock[b] = y, time
        if self.integrator == "bdf":
            self._advance_bdf(b, end, end)
            return
        size = self.next_step[b]
        law, pairs = self.energy.law, self._pairs
        rodas3(self.y[b], law, self._dynamics, pairs, 1e9, time, end - time, end, end, 1)
        self.clock[b], self.next_step[b] = end, size

    def _first_step(self, y: np.ndarray) -> float:
        """A step whose error, of order 3, is about a thousandth of the tolerance."""
        fastest = abs(self.derivative(y)[S]).max()
        longest = 0.1 / self.rate if self.rate else 1.0
        return 0.1 * min(self.tolerance ** (1 / 3) / max(fastest, 1e-300), longest)

    def _advance_bdf(self, b: int, until: float, target: float) -> int:
        """(5.2) from here to the target; scale turns constraints into fast relaxation."""
        if not self.clock[b] < until:
            return 0
        sites, made = self.system.sites, 0
        scale = np.tile([1.0, _ETA, _ETA], sites)

        def speed(_: float, flat: np.ndarray) -> np.ndarray:
            return self.derivative(np.ascontiguousarray(flat.reshape(-1, 3).T)).T.ravel() * scale

        def matrix(_: float, flat: np.ndarray) -> csr_array:
            return _scaled_jacobian(self, np.ascontiguousarray(flat.reshape(-1, 3).T), scale)

        solver = BDF(
            speed,
            float(self.clock[b]),
            self.y[b].T.ravel(),
            target,
            rtol=self.tolerance,
            atol=1e-3 * self.tolerance,
            jac=matrix,
            first_step=min(self.next_step[b], target - float(self.clock[b])),
        )
        while solver.status == "running":
            try:
                solver.step()
            except RuntimeError as error:  # a matrix that is singular, or has no numbers
                raise self._stuck(b) from error
            made += 1
        ends = self.s[b, [0, -1]]
        self.y[b] = solver.y.reshape(-1, 3).T
        self.s[b, [0, -1]], self.x[b, 0] = ends, 0.0  # nothing moves them but rounding
        self.clock[b] = solver.t
        require_stiff(self.log_alpha[b], self.system.beta)
        if solver.status == "failed":
            raise self._stuck(b)
        return made

    def _require_spins(self, s: np.ndarray) -> None:
        require_finite("s", s, "Give mean spins.")
        logarithm = self.model.startswith("free-energy")
        inner = float(abs(s[:, 1:-1]).max(initial=0.0))
        if logarithm and inner >= 1:
            remedy = "Try 0.9998, as the paper: the free energy has the logarithm of 1 - |s|."
            raise InputError("s", inner, f"between -1 and 1 for the model {self.model}", remedy)
        if abs(s).max(initial=0.0) > 1:
            raise InputError("s", float(abs(s).max()), "from -1 to 1", "Scale the mean spins.")


def _rate(model: str, tau: float, mobility: float | None) -> float:
    """r of the fluxes."""
    if not 0 < tau < math.inf:
        raise InputError("tau", tau, "a finite time above 0", "Leave it out for 1.")
    if mobility is None:
        return MOBILITIES.get(model, 0.5 / tau)
    if model not in (*MOBILITIES, "master"):
        remedy = "Leave it out: the rate of this model is 1 / (2 tau)."
        raise InputError("mobility", mobility, f"none for the model {model}", remedy)
    if not 0 <= mobility < math.inf:
        raise InputError("mobility", mobility, "a finite number, 0 or more", "Leave it out.")
    return float(mobility)


def _scaled_jacobian(chains: MeanFieldChains, y: np.ndarray, scale: np.ndarray) -> csr_array:
    """The derivative of (5.2), which scipy factorises as a sparse matrix."""
    law, dynamics, pairs, n = chains.energy.law, chains._dynamics, chains._pairs, y.size
    shells = right_side(y, law, dynamics, np.int64(2), pairs, np.empty_like(y))
    if shells < 0:
        return csr_array((n, n))
    half = 3 * shells + 5
    band = np.empty((n, 3 * half + 1))
    jacobian(y, law, dynamics, shells, pairs, band)
    diagonals = np.zeros((2 * half + 1, n))
    for c in range(2 * half + 1):  # scipy aligns diagonals by columns
        offset = c - half
        rows = slice(max(0, -offset), min(n, n - offset))
        diagonals[c, rows.start + offset : rows.stop + offset] = -(scale * band[:, c])[rows]
    return csr_array(dia_array((diagonals, np.arange(-half, half + 1)), shape=(n, n)))
