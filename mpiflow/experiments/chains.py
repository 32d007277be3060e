r"""Chains of two species in experiments: features of their mean-field models. Needs no torch.

The models have no common clock: the mobilities of the free-energy models are free parameters. The
paper (Farmer, Luskin, Plechac, Simpson, section 5.2) sets them by a feature that all models have,
the first time at which the first local minimum of the spatial autocorrelation leaves d = 1: the
alternating pattern of the start gives way to phases.
"""

from __future__ import annotations

import numpy as np

from mpiflow.solvers.binary_chain.mean_field import MOBILITIES, MeanFieldChains
from mpiflow.solvers.binary_chain.observables import first_minimum
from mpiflow.systems.binary_chain import BinaryChain

#: Mean spins of the paper's start are plus and minus this, in turn.
START = 0.9998
#: The feature is looked for until then, and to this relative precision.
_LONGEST, _PRECISION = 1e4, 1e-4


def feature_time(
    system: BinaryChain,
    model: str,
    tolerance: float | None = None,
    mobility: float | None = None,
) -> float:
    """When a model has the feature, with tau = 1; NaN if it never has.

    Parameters
    ----------
    tolerance, mobility : of :class:`~mpiflow.solvers.binary_chain.mean_field.MeanFieldChains`
    """
    chains = MeanFieldChains(system, model, mobility=mobility, tolerance=tolerance)
    chains.set(system.alternating(START))
    return float(chains.first_time(_has_left_one, _LONGEST, _PRECISION)[0])


def _has_left_one(s: np.ndarray) -> bool:
    return bool(first_minimum(s[None])[0] > 1)


def effective_mobility(model: str, time: float, reference: float) -> float:
    """The mobility with which a free-energy model has the feature at the time ``reference``.

    Parameters
    ----------
    time : when it has it with its default mobility (:func:`feature_time`)
    reference : when the mean-field model has it
    """
    return MOBILITIES[model] * time / reference


def phases(s: np.ndarray) -> np.ndarray:
    """How many phases there are in each chain, (B,) int64, of mean spins (B, N).

    Stretches of one sign among the sites with abs(s) > 1/2: interfaces belong to none.
    """
    return np.array([_phases(row) for row in s], np.int64)


def _phases(s: np.ndarray) -> int:
    signs = np.sign(s[abs(s) > 0.5])
    return int(np.count_nonzero(np.diff(signs)) + (signs.size > 0))


def interior(s: np.ndarray) -> np.ndarray:
    """The largest abs(s) in the middle quarter of each chain, (B,), of mean spins (B, N)."""
    sites = s.shape[1]
    return np.asarray(abs(s[:, 3 * sites // 8 : sites - 3 * sites // 8]).max(axis=1))
