r"""The terms of an alloy whose vacancies hop: of its order parameters.

The parts are the V vacancies, K = V (:mod:`mpiflow.scaleup.alloy_partial`). With r the rates of
hops and v what they change of the order parameters, the drift of vacancy u is
:math:`L_u z = \sum_d r_{ud} v_{ud}`, and

.. math:: L z = \sum_u L_u z, \qquad L^2 z = \sum_w \sum_d r_{wd} \sum_u
          \bigl[ (L_u z)(x^{wd}) - (L_u z)(x) \bigr],

of which frozen surroundings leave out the pairs of different vacancies. With a buffer that holds
those within each other's reach nothing is left out, for every hop is counted as it is made. The
edge of a patch of p points is p / 2 - 1 hops away, so it costs nothing at this order.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.learn.certificate.terms import Cut, Terms, joined
from mpiflow.solvers.vacancy.barrier_kernels import evaluate, work_size
from mpiflow.solvers.vacancy.rates import hop_rates
from mpiflow.systems.alloy import (
    DIRECTIONS,
    NEIGHBOURS,
    REACH,
    SURROUNDINGS,
    VACANCY,
    Alloy,
    neighbour_numbers,
    pair_names,
)
from mpiflow.systems.barriers import Barriers

#: Points of a patch, and of the buffer that holds all vacancies whose hops change its rates.
PATCH, BUFFER = 16, REACH + 2
#: Vacancies of a state at most: each asks for the rates of all around it after each of its hops.
MOST_VACANCIES = 64


def terms(system: Alloy, model: Barriers, states: np.ndarray) -> Terms:
    """The terms of some states.

    Parameters
    ----------
    states : (B, nx, ny, nz) int8, grids of points as in :mod:`mpiflow.systems.alloy`

    Raises
    ------
    InputError : a state has no vacancy, or more than :data:`MOST_VACANCIES`
    """
    return joined([_of_state(_Lattice(system, model, state)) for state in states])


class _Lattice:
    """A state, the rates of its vacancies, and what their hops change."""

    def __init__(self, system: Alloy, model: Barriers, state: np.ndarray) -> None:
        self.system, self.model, self.grid = system, model, state.copy()
        self.sides = np.array(state.shape)
        self.places = np.argwhere(state == VACANCY)
        if not 1 <= len(self.places) <= MOST_VACANCIES:
            allowed = f"1 to {MOST_VACANCIES}, for each of whose hops all rates are found anew"
            raise InputError(
                "vacancies", len(self.places), allowed,
                "Their density is what counts: try fewer on a smaller lattice.",
            )  # fmt: skip
        self.species = len(system.elements) + 1
        counts = np.bincount(state[state >= 0], minlength=self.species)[1:]
        if counts.min() == 0:
            missing = system.elements[int(counts.argmin())]
            raise InputError("composition", f"no {missing}", "atoms of all elements", "Add some.")
        self.rows, self.columns = np.triu_indices(self.species - 1)
        self.numbers = counts[self.rows]
        self.work = np.zeros(work_size(model), np.float32)

    def around(self, place: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Species at some offsets from a point."""
        at = (place + offsets) % self.sides
        return self.grid[at[:, 0], at[:, 1], at[:, 2]]

    def rates(self, place: np.ndarray) -> np.ndarray:
        """The rates of the eight hops of the vacancy at a point, (8,)."""
        barriers, rates = np.zeros(NEIGHBOURS, np.float32), np.zeros(NEIGHBOURS)
        types = self.around(place, SURROUNDINGS).astype(np.uint8)
        evaluate(self.model, types, self.work, barriers)
        hop_rates(self.system.beta, barriers, rates)
        return rates

    def change(self, place: np.ndarray, d: int) -> np.ndarray:
        """What hop d of the vacancy at a point adds to the order parameters, (pairs,)."""
        target = (place + DIRECTIONS[d]) % self.sides
        atom = self.grid[tuple(target)]
        bonds = np.zeros((self.species, self.species), np.int64)
        # The sites around them but for each other: the bond between the two keeps its species.
        for point, old, new in ((place, VACANCY, atom), (target, atom, VACANCY)):
            near = self.around(point, DIRECTIONS)
            other = target if point is place else place
            apart = ((point + DIRECTIONS) % self.sides != other).any(axis=1)
            np.add.at(bonds[new], near[apart], 1)
            np.add.at(bonds[old], near[apart], -1)
        numbers = neighbour_numbers(bonds)[1:, 1:]
        return np.asarray(numbers[self.rows, self.columns] / self.numbers)

    def drift(self, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rates (8,), drift (pairs,) and squares (pairs,) of a vacancy."""
        rates = self.rates(place)
        changes = np.zeros((NEIGHBOURS, len(self.rows)))
        for d in np.flatnonzero(rates):
            changes[d] = self.change(place, int(d))
        return rates, rates @ changes, rates @ changes**2

    def hop(self, u: int, target: np.ndarray) -> None:
        """Let vacancy u change places with the atom at a point."""
        place = self.places[u].copy()
        self.grid[tuple(place)], self.grid[tuple(target)] = self.grid[tuple(target)], VACANCY
        self.places[u] = target


def _of_state(lattice: _Lattice) -> Terms:
    places = lattice.places
    count = len(places)
    found = [lattice.drift(place) for place in places]
    drifts, squares = (np.array([row[i] for row in found]) for i in (1, 2))
    second, crossed = np.zeros_like(drifts[0]), np.zeros_like(drifts[0])
    for w in range(count):
        start = places[w].copy()
        apart = (places - start + lattice.sides // 2) % lattice.sides - lattice.sides // 2
        # A hop moves a vacancy and an atom by one point, and a drift sees one point beyond rates.
        near = np.flatnonzero(abs(apart).max(axis=1) <= REACH + 2)
        for d in np.flatnonzero(found[w][0]):
            lattice.hop(w, (start + DIRECTIONS[d]) % lattice.sides)
            for u in near:
                effect = found[w][0][d] * (lattice.drift(places[u])[1] - drifts[u])
                second += effect
                if u != w:
                    crossed += effect
            lattice.hop(w, start)
    mean = drifts.sum(axis=0)
    between = np.maximum(count * (drifts**2).sum(axis=0) - mean**2, 0.0)
    points = float(np.prod(lattice.sides))
    patch = min(PATCH, int(lattice.sides.min()))
    cuts = []
    for buffer, lost in ((0, crossed), (BUFFER, np.zeros_like(crossed))):
        side = patch + 2 * buffer
        if buffer and (count == 1 or side > lattice.sides.min() - REACH - 2):
            continue
        one = np.array([count])
        share = min(1.0, side**3 / points)
        cuts.append(Cut(patch, buffer, one, share, -0.5 * lost[None], between[None]))
    names = tuple(pair_names(lattice.system.elements))
    return Terms(names, mean[None], squares.sum(axis=0)[None], second[None], tuple(cuts))
