r"""The terms of spins on the square lattice: of the Ising model, and of rules of a few states.

Observables are sums over sites and bonds, :math:`z = \frac1N \bigl( \sum_i g(s_i) +
\sum_{\langle ij \rangle} e(s_i, s_j) \bigr)`. A site changes to the state a at the rate
:math:`r_i^a`, by which z changes by :math:`v_i^a / N`, and :math:`f_i = \sum_a r_i^a v_i^a` is what
the site adds to the drift. It depends on the site and its four neighbours, so that

.. math:: L z = \frac1N \sum_i f_i, \qquad L^2 z = \frac1N \sum_j \sum_a r_j^a
          \sum_{i = j, \, i \sim j} \bigl[ f_i(x^{j \to a}) - f_i(x) \bigr] .

Frozen surroundings leave out the pairs of neighbours i, j in different patches:

.. math:: s = - \frac1{2 N} \sum_{i \sim j, \, I(i) \ne I(j)} \sum_a r_j^a
          \bigl[ f_i(x^{j \to a}) - f_i(x) \bigr] .

With a buffer of one site or more the rate of i is right, but the bond between i and j is counted as
if j had not changed (:meth:`mpiflow.scaleup.spins.Patches.changes`): of the bracket is left

.. math:: \sum_b r_i^b(x^{j \to a}) [v_i^b(x^{j \to a}) - v_i^b(x)],

of observables of bonds alone. All are sums over tables of the neighbourhoods, without sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.learn.certificate.terms import Cut, Terms, joined
from mpiflow.solvers.spins.rule_tables import shares, table
from mpiflow.systems.ising import Ising
from mpiflow.systems.rule import SpinRule

#: Most states of a rule: the tables have q^6 numbers for each observable.
MOST_STATES = 8
#: Where the neighbours are: axis of (B, Ly, Lx), and the shift that brings one to its site. Their
#: order is that of the tables, north, west, east, south.
_NEIGHBOURS = ((1, 1), (2, 1), (2, -1), (1, -1))
#: Sites of the buffer of a proposal: what they leave out of rates is of third order in dt.
BUFFER = 2


class Parts(NamedTuple):
    """What observables are sums of.

    Attributes
    ----------
    names : of the d observables
    lowest, spacing : states are ``lowest + spacing n``, n = 0 to q - 1
    site : (q, d) g, by the state of a site
    bond : (q, q, d) e, by the states of its ends
    """

    names: tuple[str, ...]
    lowest: int
    spacing: int
    site: np.ndarray
    bond: np.ndarray

    def number(self, states: np.ndarray) -> np.ndarray:
        """n of some states, int64."""
        return (states.astype(np.int64) - self.lowest) // self.spacing

    def touching(self, windows: np.ndarray) -> np.ndarray:
        """Sums over the sites of patches and every bond that touches them, (B, d) float64.

        Parameters
        ----------
        windows : (B, n + 2, n + 2), patches with one site of surroundings
        """
        number = self.number(windows)
        inner, rows, columns = number[:, 1:-1, 1:-1], number[:, 1:-1], number[:, :, 1:-1]
        total = self.site[inner].sum(axis=(1, 2))
        total += self.bond[rows[:, :, 1:], rows[:, :, :-1]].sum(axis=(1, 2))
        return np.asarray(total + self.bond[columns[:, 1:], columns[:, :-1]].sum(axis=(1, 2)))


class Tables(NamedTuple):
    """A rule and its observables by neighbourhood; q states, d observables.

    Attributes
    ----------
    parts : of the observables
    rates : (q^4, q, q) from own to new, 0 on the diagonal; the first index is
        ((north q + west) q + east) q + south
    drift, square : (q^4, q, d) f, and the same with the square of v
    bond : (q^4, q, q, d) sum over new states b of r^b [e(b, n) - e(own, n)], of the bond to a
        neighbour in the state n
    """

    parts: Parts
    rates: np.ndarray
    drift: np.ndarray
    square: np.ndarray
    bond: np.ndarray


def parts_of(system: Ising | SpinRule) -> Parts:
    """The observables of a system: M and rho of the Ising model, the fractions of the sites in each
    state and, where there is one, the energy per site of a rule."""
    if isinstance(system, Ising):
        spin = np.array([-1.0, 1.0])
        bond = np.stack([np.zeros((2, 2)), 0.25 * (1.0 - np.outer(spin, spin))], axis=-1)
        site = np.stack([spin, np.zeros(2)], axis=-1)
        return Parts(("magnetization", "domain_wall_density"), -1, 2, site, bond)
    values, q = system.values.tolist(), int(system.states)
    names = tuple(f"fraction of {value}" for value in values)
    site, bond = np.eye(q), np.zeros((q, q, q))
    try:
        pairs = [[system.pair_energy(a, b) for b in values] for a in values]
    except NotImplementedError:  # a rule need not have an energy
        return Parts(names, int(system.lowest), 1, site, bond)
    alone = [system.site_energy(a) for a in values]
    site = np.concatenate([site, np.reshape(alone, (q, 1))], axis=-1)
    bond = np.concatenate([bond, np.reshape(pairs, (q, q, 1))], axis=-1)
    return Parts((*names, "energy"), int(system.lowest), 1, site, bond)


def tables(system: Ising | SpinRule) -> Tables:
    """The tables of a system.

    Raises
    ------
    InputError : more than :data:`MOST_STATES` states
    """
    if isinstance(system, Ising):
        return _tables(parts_of(system), _ising_rates(system))
    q = int(system.states)
    if q > MOST_STATES:
        allowed = f"at most {MOST_STATES}, of which a certificate has tables"
        raise InputError("states", system.states, allowed, "Try a model of fewer states.")
    if system.by_rate:
        rates = table(system).copy()
    else:
        rates = np.repeat(shares(system)[:, None], q, axis=1)
    rates[:, np.arange(q), np.arange(q)] = 0.0
    return _tables(parts_of(system), rates)


def _ising_rates(system: Ising) -> np.ndarray:
    """Flip rates by neighbourhood, (16, 2, 2)."""
    ups = np.array([bin(n).count("1") for n in range(16)])
    down, up = system.flip_rates().reshape(2, 5)
    rates = np.zeros((16, 2, 2))
    rates[:, 0, 1], rates[:, 1, 0] = down[ups], up[ups]
    return rates


def _tables(parts: Parts, rates: np.ndarray) -> Tables:
    site, bond, q = parts.site, parts.bond, len(parts.site)
    near = np.stack(np.unravel_index(np.arange(q**4), (q,) * 4), axis=-1)
    # What a site in each state has, with its four bonds: (q^4, q, d).
    value = site + np.moveaxis(bond[:, near].sum(axis=2), 0, 1)
    drift, square = np.zeros_like(value), np.zeros_like(value)
    of_bond = np.zeros((q**4, q, *bond.shape[1:]))
    for new in range(q):
        rate = rates[:, :, new, None]
        change = value[:, new, None] - value
        drift += rate * change
        square += rate * change**2
        of_bond += rate[..., None] * (bond[new] - bond)
    return Tables(parts, rates, drift, square, of_bond)


def terms(system: Ising | SpinRule, states: np.ndarray, patches: Sequence[int]) -> Terms:
    """The terms of some states, for patches of some sides.

    Parameters
    ----------
    states : (B, Ly, Lx), three sites a side or more
    patches : sides of patches, divisors of those of the lattice; each without and with a buffer

    Raises
    ------
    InputError : a lattice of two sites a side, a patch that does not divide it, too many states
    """
    sides = states.shape[1:]
    if min(sides) < 3:
        raise InputError("size", sides, "3 sites a side or more", "Try 64.")
    for patch in patches:
        if patch < 1 or any(side % patch for side in sides):
            raise InputError("patch", patch, f"a divisor of the sides {sides}", "Try 16.")
    made = tables(system)
    # One by one: the bits of a sum must not depend on how many states a rank has.
    return joined([_of_state(made, state[None], patches) for state in states])


def _of_state(made: Tables, states: np.ndarray, patches: Sequence[int]) -> Terms:
    ly, lx = states.shape[1:]
    sites, q = ly * lx, made.rates.shape[-1]
    own = made.parts.number(states)
    near = np.zeros_like(own)
    for axis, shift in _NEIGHBOURS:
        near = near * q + np.roll(own, shift, axis)
    drift, leaving = made.drift[near, own], made.rates[near, own]
    second = np.zeros((len(states), drift.shape[-1]))
    for new in range(q):
        effect = leaving[..., new, None] * (made.drift[near, new] - drift)
        second += effect.sum(axis=(1, 2))
    # By line of sites along the border of a patch: what a change of the neighbour beyond it does.
    lines = []
    for number, (axis, shift) in enumerate(_NEIGHBOURS):
        other, rate = np.roll(own, shift, axis), np.roll(leaving, shift, axis)
        whole, bonds = np.zeros_like(drift), np.zeros_like(drift)
        for new in range(q):
            changed = near + (new - other) * q ** (3 - number)
            weight = rate[..., new, None]
            whole += weight * (made.drift[changed, own] - drift)
            bonds += weight * (made.bond[changed, own, new] - made.bond[changed, own, other])
        second += whole.sum(axis=(1, 2))
        lines.append((shift, whole.sum(axis=3 - axis), bonds.sum(axis=3 - axis)))
    mean = drift.sum(axis=(1, 2))
    cuts = []
    for patch in patches:
        k = sites // patch**2
        own_drift = drift.reshape(-1, ly // patch, patch, lx // patch, patch, drift.shape[-1])
        each = own_drift.sum(axis=(2, 4))
        between = np.maximum(k * (each**2).sum(axis=(1, 2)) - mean**2, 0.0) / sites**2
        for buffer in (0, BUFFER):
            side = patch + 2 * buffer
            if buffer and side > min(ly, lx):
                continue
            lost = np.zeros_like(second)
            for shift, whole, bonds in lines if k > 1 else ():
                crossing = slice(0 if shift == 1 else patch - 1, None, patch)
                lost += (bonds if buffer else whole)[:, crossing].sum(axis=1)
            cuts.append(
                Cut(
                    patch,
                    buffer,
                    np.full(len(states), k),
                    side**2 / sites,
                    -0.5 * lost / sites,
                    between,
                )
            )
            if k == 1:  # the whole lattice has no surroundings
                break
    square = made.square[near, own].sum(axis=(1, 2)) / sites**2
    return Terms(made.parts.names, mean / sites, square, second / sites, tuple(cuts))
