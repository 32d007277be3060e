r"""Predators and prey in steps of Euler and Maruyama, and partial evolution of their patches.

``published``: explicit,

.. math:: x_i \leftarrow x_i + [f_i(x) + \kappa (x_{i-1} - 2 x_i + x_{i+1})] \, \Delta t
          + s \sqrt{\Delta t} \, \xi_i.

``pde``: growth explicit and diffusion implicit, because :math:`\kappa \Delta t` is 400,

.. math:: (1 - \kappa \Delta t \, L) \, x' = x + f(x) \, \Delta t + s \sqrt{\Delta t} \,
          \left[\xi_i + \sqrt{\kappa \Delta t / 2} \, (\eta_{i+1/2} - \eta_{i-1/2})\right],

L the second difference. The noise :math:`\eta` of the edges between cells makes up for what
backward Euler takes away: a mode that decays at rate r has the variance of the continuous
equation, :math:`s^2 / 2 r`, at any :math:`r \Delta t`. It sums to zero, so that the means do not
feel it. Both are of order dt in law; a mode decays as 1 / (1 + r dt) a step.

The two noises of a cell or an edge are a function of (seed, member, step, cell). Lines are dealt
to ranks whole: the same bits on any number of them. Nothing communicates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mpiflow.core import arrays
from mpiflow.core.device import copy_line, kernel, rule
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.noise import Word, normal_pair, stream_key, threefry, uniform_below
from mpiflow.solvers.lines.batch import CHOICE, LineBatch, require_patches, require_step
from mpiflow.systems.predator_prey import PredatorPrey, predators, prey

if TYPE_CHECKING:
    from mpi4py import MPI

#: Counter words of edges, from here on; those of cells are below.
_EDGE = np.uint64(2**62)


class PredatorPreySimulation(LineBatch):
    """A batch of independent lines.

    Parameters
    ----------
    system : the line
    dt : step, above 0 and below ``system.longest_step``
    seed : of the noise
    members : number of lines, on all ranks together
    first : number of the first one; noise goes by numbers
    comm : communicator whose ranks share the lines; None for one process

    Attributes
    ----------
    numbers : (B,) the lines of this rank
    x : (B, 2, n) float64, u and v, which may be written to; NaN until they are set
    step : steps made
    """

    system: PredatorPrey
    unset = "Set the lines: sim.set(system.start(0.5, 0.1))."

    def __init__(
        self,
        system: PredatorPrey,
        *,
        dt: float = 0.01,
        seed: int = 0,
        members: int = 1,
        first: int = 0,
        comm: MPI.Intracomm | None = None,
    ) -> None:
        require_rule(system, PredatorPrey)
        require_step(dt, _longest_step(system))
        super().__init__(
            system, (2,), dt=dt, stream="predator-prey", seed=seed, members=members, first=first,
            comm=comm,
        )  # fmt: skip

    def _require_possible(self, states: np.ndarray) -> None:
        """A cell may be negative, where noise has put it, but not the mean of a line."""
        lowest = float(states.mean(axis=-1).min(initial=0.0))
        if lowest < 0:
            raise InputError("x", lowest, "means of prey and of predators of 0 or more", "Shift x.")

    def advance(self, steps: int) -> None:
        """Make steps of length dt.

        Raises
        ------
        InputError : a cell ran to infinity, as one does once u is far below 0
        """
        self.require_state()
        law = _law(self.system)
        _advance(self._padded, self._members, self._key, self.step, steps, self.dt, law)
        self.step += steps
        if not np.isfinite(self.x).all():
            allowed = f"so small that u stays positive (a cell is infinite at t = {self.time:g})"
            remedy = "A pde needs a prey diffusion above 0, such as 0.01."
            raise InputError("noise", self.system.noise, allowed, remedy)

    def means(self) -> np.ndarray:
        """Means of u and of v, (B, 2) float64."""
        self.require_state()
        return self.x.mean(axis=2)


def evolve_patches(
    system: PredatorPrey,
    states: np.ndarray,
    members: np.ndarray,
    patch: int,
    *,
    dt: float,
    draws: int = 1,
    seed: int = 0,
    mirrored: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    r"""One step of randomly chosen patches, while their surroundings stay as they are.

    A line is divided into K = n / ``patch`` patches. A draw takes one of them, each as likely, with
    one ghost cell on either side that holds the neighbouring patch's value; ends of the line stay
    mirrored. In the explicit form the mean over patches of the increments is exactly that of the
    whole line, in mean and in K times its variance, up to that of the drift over patches (order
    dt^2).

    In the implicit form frozen ghosts are felt far inside a patch: what grows in it, and its noise,
    leaks out through its ends. Of the growth of its mean is left

    .. math:: 1 - \tanh(y) / y, \qquad y = \ell / 2 \sqrt{D \Delta t}, \quad \ell = 1 / K:

    for v with D = 1 and K = 5 0.24 at dt = 0.01, 0.68 at 0.001 and 0.90 at 0.0001, an error of
    order :math:`\sqrt{\Delta t}`, where Theorem 1 asks for order dt. With mirrored ends nothing
    leaks, and because what flows between neighbouring patches cancels in the mean over them,
    increments of the means of u and v are right at any dt; what the patch looks like near its
    ends is not.

    Parameters
    ----------
    states : (B, 2, n)
    members : (B,) noise keys of the states
    patch : cells, a divisor of n
    draws : patches evolved from each state, each with noise of its own
    mirrored : no ghost cells of the neighbours, but mirrored ends

    Returns
    -------
    which patch, (B, draws) int64, and it after the step, (B, draws, 2, patch) float64
    """
    require_patches(system.sites, patch, draws=draws)
    states = arrays.real("states", states)
    if states.shape != (len(members), 2, system.sites):
        allowed = f"({len(members)}, 2, {system.sites})"
        raise InputError("states", states.shape, allowed, "Reshape them.")
    require_step(dt, _longest_step(system))
    require_rule(system, PredatorPrey)
    index = np.empty((len(members), draws), np.int64)
    after = np.empty((len(members), draws, 2, patch))
    key = stream_key(seed, "predator-prey-partial")
    keys = np.asarray(members, np.uint64)
    x = np.ascontiguousarray(states)
    _partial(x, keys, key, dt, mirrored, index, after, _law(system))
    return index, after


def _longest_step(system: PredatorPrey) -> float:
    return min(system.longest_step, 1.0)


class _Law(NamedTuple):
    """The parameters of a line, as its kernels take them."""

    growth: float
    death: float
    coupling: np.ndarray
    amplitude: float
    implicit: bool


def _law(system: PredatorPrey) -> _Law:
    return _Law(
        float(system.growth),
        float(system.death),
        np.array(system.coupling),
        system.amplitude,
        system.form == "pde",
    )


@rule
def _two_normals(k0: Word, k1: Word, step: Word, site: Word) -> tuple[float, float]:
    w0, w1 = threefry(k0, k1, step, site)
    return normal_pair(w0, w1)


@kernel
def _eliminate(ratio: float, left: bool, right: bool, pivot: np.ndarray) -> None:
    """Inverse pivots of 1 - ratio L; ``left`` and ``right`` say which ends are frozen."""
    n = pivot.size
    for i in range(n):
        diagonal = 1.0 + 2.0 * ratio
        if i == 0 and not left:
            diagonal -= ratio
        if i == n - 1 and not right:
            diagonal -= ratio
        if i > 0:
            diagonal -= ratio * ratio * pivot[i - 1]
        pivot[i] = 1.0 / diagonal


@kernel
def _solve(row: np.ndarray, ratio: float, left: bool, right: bool, pivot: np.ndarray) -> None:
    """Solve (1 - ratio L) x = row in place; the ends of ``row`` are ghosts."""
    n = pivot.size
    if left:
        row[1] += ratio * row[0]
    if right:
        row[n] += ratio * row[n + 1]
    row[1] *= pivot[0]
    for i in range(2, n + 1):
        row[i] = (row[i] + ratio * row[i - 1]) * pivot[i - 1]
    for i in range(n - 1, 0, -1):
        row[i] += ratio * pivot[i - 1] * row[i + 1]


@kernel
def _evolve(
    row: np.ndarray,
    origin: int,
    left: bool,
    right: bool,
    k0: Word,
    k1: Word,
    first: Word,
    steps: int,
    dt: float,
    pivot: np.ndarray,
    law: _Law,
) -> None:
    """Steps of the cells between the first and the last of a row (2, n + 2).

    ``left`` and ``right`` say which ends are frozen; the others are mirrored. ``pivot`` (2, n) is
    scratch.
    """
    coupling, implicit = law.coupling, law.implicit
    n, width = row.shape[1] - 2, law.amplitude * np.sqrt(dt)
    on_edge = width * np.sqrt(0.5 * dt * coupling)
    if implicit:
        for field in range(2):
            _eliminate(dt * coupling[field], left, right, pivot[field])
    for step in range(steps):
        now = first + np.uint64(step)
        if not left:
            row[0, 0], row[1, 0] = row[0, 1], row[1, 1]
        if not right:
            row[0, n + 1], row[1, n + 1] = row[0, n], row[1, n]
        before_u, before_v, edge_u, edge_v = row[0, 0], row[1, 0], 0.0, 0.0
        if implicit and left:
            edge_u, edge_v = _two_normals(k0, k1, now, _EDGE | np.uint64(origin))
        for i in range(1, n + 1):
            site = np.uint64(origin + i - 1)
            xi_u, xi_v = _two_normals(k0, k1, now, site)
            u, v = row[0, i], row[1, i]
            du, dv = prey(u, v), predators(u, v, law.growth, law.death)
            row[0, i] += width * xi_u
            row[1, i] += width * xi_v
            if implicit:
                next_u, next_v = 0.0, 0.0
                if i < n or right:
                    next_u, next_v = _two_normals(k0, k1, now, _EDGE | (site + np.uint64(1)))
                row[0, i] += on_edge[0] * (next_u - edge_u)
                row[1, i] += on_edge[1] * (next_v - edge_v)
                edge_u, edge_v = next_u, next_v
            else:
                du += coupling[0] * ((before_u - u) + (row[0, i + 1] - u))
                dv += coupling[1] * ((before_v - v) + (row[1, i + 1] - v))
                before_u, before_v = u, v
            row[0, i] += dt * du
            row[1, i] += dt * dv
        if implicit:
            for field in range(2):
                if coupling[field] > 0.0:
                    _solve(row[field], dt * coupling[field], left, right, pivot[field])


@kernel
def _advance(
    x: np.ndarray,
    members: np.ndarray,
    key: np.ndarray,
    first: int,
    steps: int,
    dt: float,
    law: _Law,
) -> None:
    pivot = np.empty((2, x.shape[2] - 2))
    for b in range(x.shape[0]):
        _evolve(
            x[b], 0, False, False, key[0], key[1] + members[b], np.uint64(first), steps, dt, pivot,
            law,
        )  # fmt: skip


@kernel
def _partial(
    x: np.ndarray,
    members: np.ndarray,
    key: np.ndarray,
    dt: float,
    mirrored: bool,
    index: np.ndarray,
    after: np.ndarray,
    law: _Law,
) -> None:
    sites, patch = x.shape[2], after.shape[3]
    row, pivot = np.empty((2, patch + 2)), np.empty((2, patch))
    for b in range(x.shape[0]):
        k1 = key[1] + members[b]
        for draw in range(index.shape[1]):
            word = threefry(key[0], k1, np.uint64(draw), CHOICE)[0]
            chosen = uniform_below(word, sites // patch)
            origin = chosen * patch
            left = origin > 0 and not mirrored
            right = origin + patch < sites and not mirrored
            for field in range(2):
                copy_line(row[field, 1:-1], x[b, field, origin:])
                if left:
                    row[field, 0] = x[b, field, origin - 1]
                if right:
                    row[field, patch + 1] = x[b, field, origin + patch]
            _evolve(
                row, origin, left, right, key[0], k1, np.uint64(draw), 1, dt, pivot, law
            )  # fmt: skip
            index[b, draw] = chosen
            after[b, draw] = row[:, 1:-1]
