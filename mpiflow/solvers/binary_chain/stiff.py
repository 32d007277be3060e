r"""Stiff integration of a chain's mean spins, positions and widths: an equation with constraints.

With y = (s, X, a) of all sites, M y' = f(y), where M is 1 for s and 0 for the others: positions and
widths minimise the free energy at each time (a differential-algebraic equation of index 1). The
method is RODAS3 (Sandu and others, Atmospheric Environment 31 (1997) 3459): Rosenbrock, 4 stages,
order 3, with an embedded solution of order 2, L-stable and stiffly accurate, so that constraints
hold at the end of a step as well as after a step of Newton's:

.. math:: \Bigl(\frac{2}{h} M - f'\Bigr) k_i = f(Y_i) + \frac{M}{h} \sum_{j<i} c_{ij} k_j, \quad
          Y = (y, \; y, \; y + 2 k_1, \; y + 2 k_1 + k_3), \quad y \leftarrow Y_4 + k_4,

c_21 = 4, c_31 = 1, c_32 = -1, c_41 = 1, c_42 = -1, c_43 = -8/3; k_4 is the estimate of the error.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.solvers.binary_chain.banded import factor, solve
from mpiflow.solvers.binary_chain.fluxes import Dynamics, jacobian, right_side
from mpiflow.solvers.binary_chain.free_energy import A, Potentials, S, Tables, X

#: How an integration may end: as asked, or because no step was small enough.
DONE, STUCK = range(2)

#: A step is at least this fraction of the time it starts from, plus this much of a unit of time.
_SMALLEST = 1e-13


@kernel
def rodas3(
    y: np.ndarray,
    law: Potentials,
    dynamics: Dynamics,
    pairs: Tables,
    tolerance: float,
    time: float,
    step: float,
    until: float,
    target: float,
    most: int,
) -> tuple[int, float, float, int]:
    """Advance a chain y (3, N) from ``time``, with steps that the error controls.

    The largest error of any mean spin, bond length and logarithm of alpha in a step is at most
    ``tolerance``: a bound for each site, so that accuracy does not depend on the length of a chain.

    Parameters
    ----------
    step : the size to try first
    until : no step begins here or later
    target : a step that would pass it is shortened to end there, and does not count for the size
        of those after it
    most : number of steps at most

    Returns
    -------
    how it ended, the time, the size of the next step, and how many steps were made
    """
    sites = y.shape[1]
    half = 0
    matrix = factors = lower = np.empty((0, 0))
    pivots = np.empty((2, 3 * sites), dtype=np.int64)
    k = np.empty((4, 3 * sites))
    start, side = np.empty((3, sites)), np.empty((3, sites))
    state = np.empty((3, sites))
    made = 0
    while time < until and made < most:
        shells = right_side(y, law, dynamics, np.int64(2), pairs, start)
        if shells < 0:
            return STUCK, time, step, made
        if half != 3 * shells + 5:
            half = 3 * shells + 5
            matrix = np.empty((3 * sites, 3 * half + 1))
            factors = np.empty((3 * sites, 3 * half + 1))
            lower = np.empty((3 * sites, half))
        jacobian(y, law, dynamics, shells, pairs, matrix)
        natural, refused = step, False
        while True:
            shortened = time + natural * (1.0 + 1e-12) >= target
            h = target - time if shortened else natural
            if not h > _SMALLEST * (1.0 + time) and not shortened:
                return STUCK, time, step, made
            error = np.inf
            for i in range(3 * sites):
                for c in range(2 * half + 1):
                    factors[i, c] = matrix[i, c]
                if i % 3 == S:
                    factors[i, half] += 2.0 / h
            if factor(factors, half, lower, pivots):
                elimination = (factors, half, lower, pivots)
                error = _stages(y, law, dynamics, pairs, h, start, elimination, k, side, state)
            scaled = error / tolerance
            if scaled <= 1.0:
                break
            refused = True
            natural = h * (max(0.2, 0.9 * scaled ** (-1.0 / 3.0)) if scaled < np.inf else 0.2)
        for i in range(sites):
            for row in range(3):
                y[row, i] = state[row, i]
        time = target if shortened else time + h
        made += 1
        if shortened:
            step = natural
        else:
            growth = 0.9 * max(scaled, 1e-6) ** (-1.0 / 3.0)
            step = h * min(1.0 if refused else 5.0, max(0.2, growth))
    return DONE, time, step, made


@kernel
def _stages(
    y: np.ndarray,
    law: Potentials,
    dynamics: Dynamics,
    pairs: Tables,
    h: float,
    start: np.ndarray,
    elimination: tuple[np.ndarray, int, np.ndarray, np.ndarray],
    k: np.ndarray,
    side: np.ndarray,
    state: np.ndarray,
) -> float:
    """One step into ``state``; its largest error, infinite where a stage is no state."""
    sites = y.shape[1]
    factors, half, lower, pivots = elimination
    for stage in range(4):
        c = ((0.0, 0.0, 0.0), (4.0, 0.0, 0.0), (1.0, -1.0, 0.0), (1.0, -1.0, -8.0 / 3.0))[stage]
        source = start
        if stage >= 2:
            source = side
            for i in range(sites):
                for row in range(3):
                    more = k[2, 3 * i + row] if stage == 3 else 0.0
                    state[row, i] = y[row, i] + 2.0 * k[0, 3 * i + row] + more
            if right_side(state, law, dynamics, np.int64(1), pairs, side) < 0:
                return np.inf
        right = k[stage]
        for i in range(sites):
            known = 0.0
            for j in range(stage):
                known += c[j] * k[j, 3 * i]
            right[3 * i] = source[S, i] + known / h
            right[3 * i + X] = source[X, i]
            right[3 * i + A] = source[A, i]
        solve(factors, half, lower, pivots, right)
    return _finish(y, k, state)


@kernel
def _finish(y: np.ndarray, k: np.ndarray, state: np.ndarray) -> float:
    """The new state from the stages, and the error."""
    sites = y.shape[1]
    # What flows from site to site adds up to 0; what elimination makes of that, to rounding.
    # Taking the rest from all alike keeps such errors from adding up over steps.
    lost = 0.0
    for i in range(1, sites - 1):
        lost += 2.0 * k[0, 3 * i] + k[2, 3 * i] + k[3, 3 * i]
    lost /= sites - 2
    worst = 0.0
    for i in range(sites):
        for row in range(3):
            change = 2.0 * k[0, 3 * i + row] + k[2, 3 * i + row] + k[3, 3 * i + row]
            if row == S:  # nothing flows into the ends
                change = change - lost if 0 < i < sites - 1 else 0.0
            elif row == X and i == 0:
                change = 0.0
            state[row, i] = y[row, i] + change
            error = k[3, 3 * i + row]
            if row == X and i:
                error -= k[3, 3 * i - 3 + X]
            if not abs(error) <= worst:
                worst = abs(error) if np.isfinite(error) else np.inf
        if not (abs(state[S, i]) <= 1.0 and state[A, i] > 0.0):
            return np.inf
        if i and not state[X, i] > state[X, i - 1]:
            return np.inf
    return worst
