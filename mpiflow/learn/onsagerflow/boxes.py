r"""Magnetization and bonds of a closed box of nearest-neighbour spins, as a learned jump process.

All states of a periodic box with the same magnetization :math:`M = \sum s_i` and the same bonds
:math:`B = \sum_{\langle ij \rangle} s_i s_j` make a *cell*. They are equally likely in equilibrium,
whatever temperature and field. The flip of a spin s with the neighbour sum S leads from the cell x
to y = (M - 2 s, B - 2 s S); with n(x, s, S) the mean number of such spins in x, and r their rate,

.. math:: W(x \to y) = n(x, s, S) \, r(s, S), \qquad
          \Omega(x) \, n(x, s, S) = \Omega(y) \, n(y, -s, S),

with :math:`\Omega` the numbers of states, since each flip can be taken back. The first makes a
process of (M, B) for which a cell's states are forgotten at once [projective dynamics: Kolesik,
Novotny, Rikvold, Phys. Rev. Lett. 80, 3384 (1998)]; the second says Omega, but for a factor [broad
histogram: de Oliveira, Penna, Herrmann, Braz. J. Phys. 26, 677 (1996); transition matrix: Wang,
Swendsen, J. Stat. Phys. 106, 245 (2002)]. Neither n nor Omega knows T and h: both are learned once,
from equilibrium states of any temperatures that together visit the cells in question.

log Omega is that of least squares over all pairs of cells. Each pair then has one number of flips
between its cells, the mean of what both say, so that the rates obey detailed balance with
:math:`\Omega e^{-E/T}` to rounding at every T and h: noise and drift belong together.

Because cells forget, the process is too fast. A mean passage is the weight of the phase it leaves
over a capacity, and a capacity is a minimum over all functions of the state, here over those of
(M, B) only, so that it can but be too large [Bovier, den Hollander, *Metastability* (2015),
chapter 7].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.learn.onsagerflow.bonds import SPIN, SUM
from mpiflow.solvers import master_equation
from mpiflow.systems.ising import CLASSES, Ising

#: The class of a spin once it has flipped.
FLIPPED = (np.arange(CLASSES) + CLASSES // 2) % CLASSES


@dataclass(frozen=True, eq=False)
class BoxLaw:
    """The process of the module, at any temperature and field.

    Attributes
    ----------
    sites : N of the box
    cells : (n, 2) int64, M and B
    log_states : (n,) float64, log Omega, 0 where all spins are up
    pairs : (e, 2) int64, numbers of cells that a flip leads between
    classes : (e,) int64, the class of the spin that flips on the way from the first to the second
    log_flips : (e,) float64, log of Omega times n, the same both ways
    misfit : (float) mean over pairs of the squared difference of what both cells say, in errors
        of independent counts; counts in a state are not independent, so that it is below 1 if
        nothing is wrong
    """

    sites: int
    cells: np.ndarray
    log_states: np.ndarray
    pairs: np.ndarray
    classes: np.ndarray
    log_flips: np.ndarray
    misfit: float

    @classmethod
    def of_counts(cls, counts: np.ndarray) -> BoxLaw:
        """Learned from spins by class in equilibrium states, (states, 10), and their mirrors.

        Cells that no flips between cells seen join to the one with all spins up are left out.

        Raises
        ------
        InputError : no such cells, or counts of different boxes
        """
        counts = np.asarray(counts)
        if counts.ndim != 2 or counts.shape[1] != CLASSES or len(np.unique(counts.sum(axis=1))) > 1:
            raise InputError("counts", counts.shape, f"(states, {CLASSES}) of one size", "Count.")
        sites = int(counts[0].sum())
        counts = np.concatenate([counts, counts.reshape(-1, 2, 5)[:, ::-1, ::-1].reshape(-1, 10)])
        fields = np.stack([counts @ SPIN, counts @ (SPIN * SUM) // 2], axis=1)
        cells, of = np.unique(fields, axis=0, return_inverse=True)
        seen = np.bincount(of.ravel())
        found = np.stack([np.bincount(of.ravel(), weights=column) for column in counts.T], axis=1)
        number = {tuple(cell): i for i, cell in enumerate(cells.tolist())}
        start = number.get((sites, 2 * sites))
        if start is None:
            raise InputError("counts", counts.shape, "one of all spins up among them", "Add it.")
        ways = []  # from, to, class; each pair once, from the larger M
        for c in range(CLASSES // 2, CLASSES):
            there = (cells - np.array([2, 2 * SUM[c]])).tolist()
            ways += [
                (x, number[tuple(to)], c)
                for x, to in enumerate(there)
                if found[x, c] and tuple(to) in number and found[number[tuple(to)], FLIPPED[c]]
            ]
        if not ways:
            raise InputError("counts", counts.shape, "states that flips join", "Add more.")
        x, y, c = np.array(ways).T
        size = len(cells)
        _, part = connected_components(sparse.coo_matrix((c, (x, y)), (size, size)), directed=False)
        use, kept = part == part[start], part[x] == part[start]
        at = np.cumsum(use) - 1
        x, y, c = x[kept], y[kept], c[kept]
        # log n of both ends, and the variances of these if counts were Poisson numbers.
        here, there = found[x, c], found[y, FLIPPED[c]]
        log_here, log_there = np.log(here / seen[x]), np.log(there / seen[y])
        states, misfit = _potential(
            at[x], at[y], log_here - log_there, (1 / here + 1 / there) ** -0.5, at[start]
        )
        both = here * (states[at[x]] + log_here) + there * (states[at[y]] + log_there)
        pairs = np.stack([at[x], at[y]], axis=1)
        return cls(sites, cells[use], states, pairs, c, both / (here + there), misfit)

    @cached_property
    def magnetization(self) -> np.ndarray:
        """m of each cell, (n,)."""
        out: np.ndarray = self.cells[:, 0] / self.sites
        return out

    def weights(self, system: Ising) -> np.ndarray:
        """Probabilities of the cells in equilibrium, (n,)."""
        self._check(system)
        m, bonds = self.cells.T
        log = self.log_states + (system.field * m + system.coupling * bonds) / system.temperature
        weights = np.exp(log - log.max())
        out: np.ndarray = weights / weights.sum()
        return out

    def rates(self, system: Ising) -> sparse.csr_matrix:
        """W(x -> y) at row x and column y, (n, n) per unit time."""
        self._check(system)
        rates, (x, y), n = system.flip_rates(), self.pairs.T, len(self.cells)
        forth = np.exp(self.log_flips - self.log_states[x]) * rates[self.classes]
        back = np.exp(self.log_flips - self.log_states[y]) * rates[FLIPPED[self.classes]]
        ends = np.concatenate([x, y]), np.concatenate([y, x])
        return sparse.csr_matrix((np.concatenate([forth, back]), ends), (n, n))

    def passage_time(self, system: Ising, below: float) -> float:
        """Mean time from all spins up until m is ``below`` or less for the first time."""
        away = self._away(below)
        rates = self.rates(system)
        total = np.asarray(rates.sum(axis=1)).ravel()
        generator = (rates - sparse.diags(total)).tocsc()[away][:, away]
        times = spsolve(generator, -np.ones(np.count_nonzero(away)))
        return float(times[np.flatnonzero(away).searchsorted(self._start)])

    def passage_time_of_m(self, system: Ising, below: float) -> float:
        """The same of M alone: bonds are in equilibrium at each M at once."""
        self._away(below)
        weights, m = self.weights(system), (self.sites - self.cells[:, 0]) // 2
        flows = self.rates(system).multiply(weights[:, None]).tocoo()
        down = m[flows.col] > m[flows.row]
        of_m = np.bincount(m, weights=weights)
        flow = np.bincount(m[flows.row[down]], weights=flows.data[down], minlength=len(of_m) - 1)
        birth = np.append(flow, 0.0) / of_m
        death = np.insert(flow, 0, 0.0) / of_m
        goal = int(np.ceil(self.sites * (1 - below) / 2 - 1e-9))
        return float(master_equation.passage_times(birth, death)[:goal].sum())

    @property
    def _start(self) -> int:
        return int(np.flatnonzero(self.cells[:, 0] == self.sites)[0])

    def _away(self, below: float) -> np.ndarray:
        """Cells that are not at the goal yet."""
        away = self.magnetization > below + 1e-12
        if away.all() or not away[self._start]:
            allowed = f"from {self.magnetization.min():g} to below 1"
            raise InputError("below", below, allowed, "Learn from more states, or aim nearer.")
        return away

    def _check(self, system: Ising) -> None:
        require_rule(system, Ising)
        if not system.coupling > 0:
            raise InputError("coupling", system.coupling, "above 0", "Learn another law.")


def _potential(
    x: np.ndarray, y: np.ndarray, rise: np.ndarray, precision: np.ndarray, zero: int
) -> tuple[np.ndarray, float]:
    """Values with ``v[y] - v[x] = rise`` by least squares, 0 at ``zero``; mean square misfit."""
    count, edges = int(max(x.max(), y.max())) + 1, np.arange(len(x))
    ends = np.concatenate([edges, edges]), np.concatenate([y, x])
    terms = sparse.csr_matrix((np.concatenate([precision, -precision]), ends), (len(x), count))
    rest = np.arange(count) != zero
    values = np.zeros(count)
    squares = (terms.T @ terms).tocsc()[rest][:, rest]
    values[rest] = spsolve(squares, (terms.T @ (precision * rise))[rest])
    return values, float(np.mean((precision * rise - terms @ values) ** 2))
