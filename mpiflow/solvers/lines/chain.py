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

from typing import TYPE_CHECKING

import numpy as np

from mpiflow.core import arrays
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_finite, require_rule, together
from mpiflow.core.lattice import split
from mpiflow.core.noise import Word, stream_key, threefry, to_unit
from mpiflow.core.schedule import after
from mpiflow.systems.linear_chain import LinearChain, drift

if TYPE_CHECKING:
    from mpi4py import MPI

#: Counter word of the choice of a patch; those of sites are below.
_CHOICE = np.uint64(2**63)


class ChainSimulation:
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
        _require_step(system, dt)
        if members < 1:
            raise InputError("members", members, "1 or more", "Leave it out for one chain.")
        self._comm = comm
        ranks, rank = (comm.size, comm.rank) if comm is not None else (1, 0)
        self.system, self.dt, self.seed, self.step = system, float(dt), seed, 0
        self.numbers = np.arange(*split(members, ranks, rank))
        self._members = self.numbers.astype(np.uint64)
        self._key = stream_key(seed, "linear-chain")
        self._padded = np.full((len(self.numbers), system.sites + 2), np.nan)  # not set yet
        self.x = self._padded[:, 1:-1]

    @property
    def time(self) -> float:
        """Steps times dt."""
        return after(0.0, self.step, self.dt)

    def set(self, x: float | np.ndarray) -> None:
        """Start at time 0 from displacements: a number, (N,), (B, 1) or (B, N), all finite."""
        x = arrays.real("x", x)
        try:
            fits = np.broadcast_shapes(x.shape, self.x.shape) == self.x.shape
        except ValueError:
            fits = False
        if not fits:
            raise InputError("x", x.shape, f"a number or {self.x.shape}", "Reshape it.")
        self.x[:] = x
        self.step = 0

    def require_state(self) -> None:
        """Raise, on all ranks that share the chains, unless they are set and finite."""
        with together(self._comm):
            require_finite("x", self.x, "Set the displacements: sim.set(system.resting()).")

    def advance(self, steps: int) -> None:
        """Make steps of length dt."""
        self.require_state()
        numbers = _numbers(self.system)
        _advance(self._padded, self._members, self._key, self.step, steps, self.dt, *numbers)
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
        sites = self.system.sites
        if patch < 1 or sites % patch:
            raise InputError("patch", patch, f"a divisor of the {sites} sites", "Try 10.")
        for name, value in (("steps", steps), ("draws", draws)):
            if value < 1:
                raise InputError(name, value, "1 or more", "Leave it out for 1.")
        _require_step(self.system, dt)
        self.require_state()
        out = np.empty((len(self.numbers), draws))
        key = stream_key(self.seed, "linear-chain-partial")
        first = self.step * draws * steps
        numbers = _numbers(self.system)
        _partial(self._padded, self._members, key, patch, first, steps, dt, out, *numbers)
        return out


def _require_step(system: LinearChain, dt: float) -> None:
    if not 0 < dt < system.longest_step:
        allowed = f"above 0 and below {system.longest_step:.4g}, where steps are stable"
        raise InputError("dt", dt, allowed, "Try 0.01.")


def _numbers(system: LinearChain) -> tuple[float, float, float, float]:
    return float(system.force), system.friction, float(system.coupling), float(system.noise)


@kernel
def _fill_normals(k0: Word, k1: Word, step: Word, origin: int, out: np.ndarray) -> None:
    """Standard normals of sites from ``origin`` on; two neighbours share a call."""
    last = origin + out.size
    for pair in range(origin // 2, (last + 1) // 2):
        w0, w1 = threefry(k0, k1, step, np.uint64(pair))
        radius = np.sqrt(-2.0 * np.log(to_unit(w0)))
        angle = 2.0 * np.pi * to_unit(w1)
        if 2 * pair >= origin:
            out[2 * pair - origin] = radius * np.cos(angle)
        if 2 * pair + 1 < last:
            out[2 * pair + 1 - origin] = radius * np.sin(angle)


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
    force: float,
    friction: float,
    coupling: float,
    noise: float,
) -> None:
    """Steps of the sites between the first and the last of a row; ``xi`` is scratch."""
    n, width = row.size - 2, noise * np.sqrt(dt)
    for step in range(steps):
        _fill_normals(k0, k1, first + np.uint64(step), origin, xi)
        if origin == 0:
            row[0] = row[1]
        if origin + n == sites:
            row[n + 1] = row[n]
        left, push = row[0], force if origin == 0 else 0.0
        for i in range(1, n + 1):
            old = row[i]
            row[i] += dt * (drift(left, old, row[i + 1], friction, coupling) + push)
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
    force: float,
    friction: float,
    coupling: float,
    noise: float,
) -> None:
    sites = x.shape[1] - 2
    xi = np.empty(sites)
    for b in range(x.shape[0]):
        _evolve(
            x[b], 0, sites, key[0], key[1] + members[b], np.uint64(first), steps, dt, xi,
            force, friction, coupling, noise,
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
    force: float,
    friction: float,
    coupling: float,
    noise: float,
) -> None:
    sites = x.shape[1] - 2
    patches = np.uint64(sites // patch)
    row, xi = np.empty(patch + 2), np.empty(patch)
    for b in range(x.shape[0]):
        k1 = key[1] + members[b]
        for draw in range(out.shape[1]):
            step = np.uint64(first + draw * steps)
            word = threefry(key[0], k1, step, _CHOICE)[0]
            # The top bits times K: bias below K / 2^32.
            index = ((word >> np.uint64(32)) * patches) >> np.uint64(32)
            origin = int(index) * patch
            row[:] = x[b, origin : origin + patch + 2]
            _evolve(
                row, origin, sites, key[0], k1, step, steps, dt, xi,
                force, friction, coupling, noise,
            )  # fmt: skip
            change = 0.0
            for i in range(1, patch + 1):
                change += row[i] - x[b, origin + i]
            out[b, draw] = change / patch
