r"""Wolff's clusters: equilibrium states of an Ising model, also near the critical temperature.

A cluster grows from a uniformly drawn site over bonds between equal spins, each taken with
probability

.. math:: p = 1 - e^{-2 J / T},

and is flipped as a whole: every cluster leaves the Gibbs measure of h = 0 invariant [Wolff, Phys.
Rev. Lett. 62, 361 (1989)]. Its time is no physical one. It makes initial states for the dynamics,
whose own relaxation time grows like :math:`L^{2.17}`, and references that do not depend on it.

Cold lattices are nearly one cluster: their M changes its sign with each, all members at a time.
The number of clusters must not depend on their sizes: "until so many spins were flipped" stops
after large clusters more often, and is biased.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import is_spins, require_rule, spin_fault
from mpiflow.core.noise import stream_key, threefry, uniform_below
from mpiflow.systems.ising import Ising

#: 63-bit uniforms.
_UNIT = 2.0**63


@kernel
def _grow(
    states: np.ndarray, members: np.ndarray, key: np.ndarray, first: int, clusters: int, below: int
) -> None:
    ly, lx = states.shape[1], states.shape[2]
    stack = np.empty(ly * lx, np.int64)
    threshold = np.uint64(below)
    for b in range(states.shape[0]):
        spins = states[b]
        k1 = key[1] + members[b]
        for cluster in range(first, first + clusters):
            step = np.uint64(cluster)
            w0, w1 = threefry(key[0], k1, step, np.uint64(0))
            y, x = uniform_below(w0, ly), uniform_below(w1, lx)
            old = spins[y, x]
            spins[y, x] = -old
            stack[0] = y * lx + x
            size = 1
            draw = np.uint64(1)
            while size > 0:
                size -= 1
                y, x = stack[size] // lx, stack[size] % lx
                up, down = y - 1 if y > 0 else ly - 1, y + 1 if y < ly - 1 else 0
                left, right = x - 1 if x > 0 else lx - 1, x + 1 if x < lx - 1 else 0
                w0, w1 = threefry(key[0], k1, step, draw)
                w2, w3 = threefry(key[0], k1, step, draw + np.uint64(1))
                draw += np.uint64(2)
                # A bond is tried once, from the end that was reached first: the other is flipped.
                if spins[up, x] == old and (w0 >> np.uint64(1)) < threshold:
                    spins[up, x] = -old
                    stack[size] = up * lx + x
                    size += 1
                if spins[down, x] == old and (w1 >> np.uint64(1)) < threshold:
                    spins[down, x] = -old
                    stack[size] = down * lx + x
                    size += 1
                if spins[y, left] == old and (w2 >> np.uint64(1)) < threshold:
                    spins[y, left] = -old
                    stack[size] = y * lx + left
                    size += 1
                if spins[y, right] == old and (w3 >> np.uint64(1)) < threshold:
                    spins[y, right] = -old
                    stack[size] = y * lx + right
                    size += 1


def flip_clusters(
    states: np.ndarray,
    members: np.ndarray,
    system: Ising,
    *,
    seed: int,
    clusters: int,
    first: int = 0,
) -> None:
    """Flip clusters of whole periodic lattices, in place.

    Parameters
    ----------
    states : (B, Ly, Lx) int8, +1 and -1, C-contiguous; sides of 3 or more
    members : (B,) noise keys
    clusters : how many each lattice flips
    first : number of the first, so that later calls draw fresh noise

    Raises
    ------
    InputError : a field, an antiferromagnet or a number of clusters below 0
    """
    require_rule(system, Ising)
    if system.field != 0:
        raise InputError("field", system.field, "0 for clusters", "Use the dynamics.")
    if not system.coupling > 0:
        raise InputError("coupling", system.coupling, "above 0 for clusters", "Use the dynamics.")
    if clusters < 0 or first < 0:
        raise InputError("clusters", (clusters, first), "0 or more", "Try 10.")
    if min(states.shape[1:]) < 3:  # two bonds to one neighbour
        raise InputError("states", states.shape, "sides of 3 or more", "Use larger lattices.")
    if states.dtype != np.int8 or not states.flags.c_contiguous:
        raise InputError("states", states.dtype, "C-contiguous int8", "Copy them.")
    if not is_spins(states):
        raise spin_fault(states)
    taken = -np.expm1(-2.0 * system.coupling / system.temperature)
    key = stream_key(seed, "cluster")
    _grow(states, np.asarray(members, np.uint64), key, first, clusters, round(taken * _UNIT))
