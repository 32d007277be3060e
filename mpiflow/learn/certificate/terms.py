r"""The terms of an expansion in short times, of which a certificate is made.

A law is learned from increments :math:`\Delta z` over a short time dt of one of K parts of the
lattice (a patch of spins, a vacancy of an alloy), multiplied by K [Chen et al., arXiv:2511.12842,
equation 7]. With L the generator of the whole lattice, L_I that of part I in its frozen
surroundings, and z a sum over sites,

.. math:: \frac{E[K \Delta z_I \mid x]}{dt} = L z + dt \left( \tfrac12 L^2 z + s \right)
          + O(dt^2), \qquad s = \tfrac12 \Bigl( \sum_I L_I^2 z - L^2 z \Bigr) :

``second`` is :math:`L^2 z`, what the time itself costs, and ``surroundings`` is s, what frozen
surroundings cost (Theorem 1 there). The variance of a single one is

.. math:: \mathrm{Var}[K \Delta z_I / dt \mid x] = \frac{K \, \Gamma}{dt}
          + \Bigl( K \sum_I (L_I z)^2 - (L z)^2 \Bigr) + O(1),

:math:`\Gamma = \sum_a r_a (\Delta_a z)^2` over all changes a (``square``); the second term, the
variance over the parts of what they drift (``between``), is there because the part is drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Cut(NamedTuple):
    """A way to cut lattices into parts that evolve by themselves; B states, d observables.

    Attributes
    ----------
    patch : side of a part, in sites (of an alloy in points of its grid)
    buffer : sites around it that evolve with it and are not counted
    parts : (B,) K, the number of parts
    evolving : sites that evolve for a pair, as a share of the lattice's
    surroundings : (B, d) s, per unit time squared
    between : (B, d) variance over the parts of what they drift, per unit time squared
    """

    patch: int
    buffer: int
    parts: np.ndarray
    evolving: float
    surroundings: np.ndarray
    between: np.ndarray


class Terms(NamedTuple):
    """The terms of some states.

    Attributes
    ----------
    names : of the d observables
    drift : (B, d) L z, per unit time
    square : (B, d) Gamma, per unit time
    second : (B, d) L^2 z, per unit time squared
    cuts : ways to cut the lattices
    """

    names: tuple[str, ...]
    drift: np.ndarray
    square: np.ndarray
    second: np.ndarray
    cuts: tuple[Cut, ...]


def joined(some: list[Terms]) -> Terms:
    """Those of all states of several groups, one after the other."""
    first = some[0]
    cuts = [
        first.cuts[i]._replace(
            parts=np.concatenate([t.cuts[i].parts for t in some]),
            surroundings=np.concatenate([t.cuts[i].surroundings for t in some]),
            between=np.concatenate([t.cuts[i].between for t in some]),
        )
        for i in range(len(first.cuts))
    ]
    return Terms(
        first.names,
        np.concatenate([t.drift for t in some]),
        np.concatenate([t.square for t in some]),
        np.concatenate([t.second for t in some]),
        tuple(cuts),
    )
