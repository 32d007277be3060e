r"""Linear chains in steps of Euler and Maruyama, and partial evolution of their patches.

.. math:: X_i \leftarrow X_i + f_i(X) \, \Delta t + \sigma \sqrt{\Delta t} \, \xi_i,

:math:`\xi` a function of (seed, chain, step, site). A step has the conditional mean and variance
of the macroscopic equation exactly: :math:`E[\Delta m | X] = (-\gamma m + F / N) \Delta t` and
:math:`\sigma^2 \Delta t / N`. So an increment over one step has no error of order dt; the states
that steps lead to have one (that of the stationary variance is relative
:math:`\lambda \Delta t / 2` for a mode of rate lambda).

Chains are dealt to ranks whole: the same bits on any number of them. Nothing communicates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mpiflow.core.device import copy_line, kernel
from mpiflow.core.guards import require_rule
from mpiflow.core.noise import Word, normal_pair, stream_key, threefry, uniform_below
from mpiflow.solvers.lines.batch import CHOICE, LineBatch, require_patches, require_step
from mpiflow.systems.linear_chain import LinearChain, drift

if TYPE_CHECKING:
    from mpi4py import MPI


class ChainSimulation(LineBatch):
    """A batch of independent chains.

    Parameters
    ----------
    system : the chain
    dt : step, above 0 and below ``system.longest_step``
    seed : of the noise
    members : number of chains, on all ranks together
    comm : communicator whose ranks share the chains; None for one process

    Attributes
    ----------
    numbers : (B,) the chains of this rank
    x : (B, N) float64 displacements, which may be written to; NaN until they are set
    step : steps made
    """

    system: LinearChain
    unset = "Set the displacements: sim.set(system.resting())."

    def __init__(
        self,
        system: LinearChain,
        *,
        dt: float = 0.01,
        seed: int = 0,
        members: int = 1,
        comm: MPI.Intracomm | None = None,
    ) -> None:
        require_rule(system, LinearChain)
        require_step(dt, system.longest_step)
        stream = "linear-chain"
        super().__init__(system, (), dt=dt, stream=stream, seed=seed, members=members, comm=comm)

    def advance(self, steps: int) -> None:
        """Make steps of length dt."""
        self.require_state()
        law = _law(self.system)
        _advance(self._padded, self._members, self._key, self.step, steps, self.dt, law)
        self.step += steps

    def mean_displacement(self) -> np.ndarray:
        """m of each chain, (B,) float64."""
        self.require_state()
        return self.x.mean(axis=1)

    def partial_evolution(
        self, patch: int, *, dt: float, steps: int = 1, draws: int = 1
    ) -> np.ndarray:
        r"""Changes of the mean displacement of patches that evolve alone, from the present state.

        A chain is divided into K = N / ``patch`` patches. A draw takes one of them, each as likely,
        and evolves it for ``steps`` steps of ``dt`` while its surroundings stay as they are; ends
        of the chain stay free. Each draw has noise of its own. With one step

        .. math:: E[\Delta_I | X] = (-\gamma m + F / N) \Delta t, \qquad
            \mathrm{Var}[\Delta_I | X] = K \sigma^2 \Delta t / N + v(X) \Delta t^2,

        v the variance of the drift over patches. Longer ones add an error of order time^2 to the
        mean, because what flows between neighbouring patches no longer cancels.

        Returns
        -------
        (B, draws) float64; the state stays as it is

        Raises
        ------
        InputError : a patch that does not divide the chain, or no such dt, steps or draws
        """
        require_patches(self.system.sites, patch, steps=steps, draws=draws)
        require_step(dt, self.system.longest_step)
        self.require_state()
        out = np.empty((len(self.numbers), draws))
        key = stream_key(self.seed, "linear-chain-partial")
        first = self.step * draws * steps
        law = _law(self.system)
        _partial(self._padded, self._members, key, patch, first, steps, dt, out, law)
        return out


class _Law(NamedTuple):
    """The parameters of a chain, as its kernels take them."""

    force: float
    friction: float
    coupling: float
    noise: float


def _law(system: LinearChain) -> _Law:
    return _Law(float(system.force), system.friction, float(system.coupling), float(system.noise))


@kernel
def _fill_normals(k0: Word, k1: Word, step: Word, origin: int, out: np.ndarray) -> None:
    """Standard normals of sites from ``origin`` on; two neighbours share a call."""
    last = origin + out.size
    for pair in range(origin // 2, (last + 1) // 2):
        w0, w1 = threefry(k0, k1, step, np.uint64(pair))
        first, second = normal_pair(w0, w1)
        if 2 * pair >= origin:
            out[2 * pair - origin] = first
        if 2 * pair + 1 < last:
            out[2 * pair + 1 - origin] = second


@kernel
def _evolve(
    row: np.ndarray,
    origin: int,
    sites: int,
    k0: Word,
    k1: Word,
    first: Word,
    steps: int,
    dt: float,
    xi: np.ndarray,
    law: _Law,
) -> None:
    """Steps of the sites between the first and the last of a row; ``xi`` is scratch."""
    n, width = row.size - 2, law.noise * np.sqrt(dt)
    for step in range(steps):
        _fill_normals(k0, k1, first + np.uint64(step), origin, xi)
        if origin == 0:
            row[0] = row[1]
        if origin + n == sites:
            row[n + 1] = row[n]
        left, push = row[0], law.force if origin == 0 else 0.0
        for i in range(1, n + 1):
            old = row[i]
            row[i] += dt * (drift(left, old, row[i + 1], law.friction, law.coupling) + push)
            row[i] += width * xi[i - 1]
            left, push = old, 0.0


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
    sites = x.shape[1] - 2
    xi = np.empty(sites)
    for b in range(x.shape[0]):
        _evolve(
            x[b], 0, sites, key[0], key[1] + members[b], np.uint64(first), steps, dt, xi, law
        )  # fmt: skip


@kernel
def _partial(
    x: np.ndarray,
    members: np.ndarray,
    key: np.ndarray,
    patch: int,
    first: int,
    steps: int,
    dt: float,
    out: np.ndarray,
    law: _Law,
) -> None:
    sites = x.shape[1] - 2
    row, xi = np.empty(patch + 2), np.empty(patch)
    for b in range(x.shape[0]):
        k1 = key[1] + members[b]
        for draw in range(out.shape[1]):
            step = np.uint64(first + draw * steps)
            word = threefry(key[0], k1, step, CHOICE)[0]
            origin = uniform_below(word, sites // patch) * patch
            copy_line(row, x[b, origin:])
            _evolve(row, origin, sites, key[0], k1, step, steps, dt, xi, law)
            change = 0.0
            for i in range(1, patch + 1):
                change += row[i] - x[b, origin + i]
            out[b, draw] = change / patch
