r"""Energy barriers of the hops of a vacancy, as rules that run inside kernels.

Three kinds of model, all functions of the species of the 112 sites around the vacancy
(:data:`~mpiflow.systems.alloy.SURROUNDINGS`):

============  ===============================================================
``CONSTANT``  :math:`E = E_s` with s the species of the atom that hops
``PAIRWISE``  :math:`E = E_s + \tfrac12 (H' - H)`, H the sum of bond energies
              over nearest neighbours, H' the same after the hop
``NETWORK``   a network of the surroundings, turned so that the hop goes along (1, 1, 1)
============  ===============================================================

The first two obey detailed balance exactly: of ``PAIRWISE`` the stationary law is
:math:`e^{-\beta H}`, of ``CONSTANT`` the uniform one. A network is

.. math:: x = (c(t_1), c(t_2), \dots), \quad h = P \max(W_1^T x + b_1, 0), \quad
          h \leftarrow \max(W_l^T h + b_l, 0), \quad E = w^T h + b,

in float32, c the input channels of a species and P the sum over ``pool`` equal parts of the
first layer (turned images of the same filters, which makes E exactly symmetric). Its
arithmetic is that of :mod:`~mpiflow.solvers.vacancy.dense`, then the parts are added one after the
other: the same bits on every CPU and GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.systems.alloy import DIRECTIONS, NEIGHBOURS, SURROUNDINGS, index_of

CONSTANT, PAIRWISE, NETWORK = 0, 1, 2
SITES = len(SURROUNDINGS)

#: For each hop, the seven other neighbours of the site that the vacancy hops to, as numbers
#: in the surroundings, and -1 for the vacancy itself: (8, 8) int64.
_BEYOND = index_of(DIRECTIONS[:, None] + DIRECTIONS)


class Barriers(NamedTuple):
    """A model as kernels take it.

    Attributes
    ----------
    kind : CONSTANT, PAIRWISE or NETWORK
    base : (S + 1,) float64, E_s in eV by species
    bonds : (S + 1, S + 1) float64, bond energies in eV, symmetric
    codes : (S + 1, C) float32, the input channels of each species
    gather : (8, 112 C) uint16, which channel of which site is each input when hop d goes
        along (1, 1, 1): number C * site + channel
    layers : (layers, 3) int64, of each layer its inputs after padding, its panels of 16
        outputs (0 for the output of the network), and where its weights begin
    stride : floats from one hop to the next in scratch memory: the widest layer
    pool : parts of the first layer that are added up, 1 for none
    weights : float32, the layers packed as of :mod:`~mpiflow.solvers.vacancy.dense`
    """

    kind: int
    base: np.ndarray
    bonds: np.ndarray
    codes: np.ndarray
    gather: np.ndarray
    layers: np.ndarray
    stride: int
    pool: int
    weights: np.ndarray


def _model(kind: int, base: np.ndarray, bonds: np.ndarray | None = None) -> Barriers:
    """A model without a network."""
    species = len(base)
    return Barriers(
        kind,
        np.ascontiguousarray(base, np.float64),
        np.zeros((species, species)) if bonds is None else np.ascontiguousarray(bonds, np.float64),
        codes=np.zeros((species, 1), np.float32),
        gather=np.zeros((NEIGHBOURS, SITES), np.uint16),
        layers=np.zeros((1, 3), np.int64),
        stride=0,
        pool=1,
        weights=np.zeros(1, np.float32),
    )


def constant(energies: Sequence[float]) -> Barriers:
    """The same barrier in all surroundings, in eV for each element."""
    _require_finite("energies", energies)
    return _model(CONSTANT, np.array([0.0, *energies]))


def pairwise(energies: Sequence[float], bonds: np.ndarray) -> Barriers:
    """Barriers that obey detailed balance for a sum of bond energies.

    Parameters
    ----------
    energies : E_s in eV for each element
    bonds : (S + 1, S + 1) symmetric energies in eV of bonds between species, 0 the vacancy
    """
    bonds = np.asarray(bonds, np.float64)
    _require_finite("energies", energies)
    size = len(energies) + 1
    if bonds.shape != (size, size) or not np.isfinite(bonds).all() or np.any(bonds != bonds.T):
        raise InputError(
            "bonds", bonds.shape, f"a symmetric matrix {(size, size)} of finite numbers", "Check."
        )
    return _model(PAIRWISE, np.array([0.0, *energies]), bonds)


def _require_finite(name: str, energies: Sequence[float]) -> None:
    if not len(energies) or not np.isfinite(energies).all():
        raise InputError(name, energies, "a finite number of eV for each element", "Try 1.7.")


# -- CUDA ----------------------------------------------------------------------------------
