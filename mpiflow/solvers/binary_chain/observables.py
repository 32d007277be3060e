r"""What is measured on chains of two species, of spins as of mean spins.

All functions take a batch: spins (B, N), of any real type, and positions (B, N) float64.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import kernel


def length(x: np.ndarray) -> np.ndarray:
    """The mean bond, (x_N - x_1) / (N - 1), of each chain, (B,) float64."""
    return (x[:, -1] - x[:, 0]) / (x.shape[1] - 1)


def strain(x: np.ndarray, reference: float | np.ndarray) -> np.ndarray:
    """How much longer each chain is than at its start, relative to that, (B,) float64.

    Parameters
    ----------
    x : (B, N) positions
    reference : mean bond of the start (:func:`length`), one or (B,)

    For mean-field models the start is the relaxed state of the spins at time 0, as in figures 5.4
    and 5.6 of the paper, which begin at 0.
    """
    return length(x) / reference - 1.0


def ab_bonds(s: np.ndarray) -> np.ndarray:
    r"""Bonds between unlike neighbours, :math:`\sum_i (1 - s_i s_{i+1}) / 2`, (B,) float64.

    Of mean spins it is the mean number where neighbours are independent.
    """
    s = np.asarray(s, dtype=np.float64)
    return 0.5 * (1.0 - s[:, :-1] * s[:, 1:]).sum(axis=1)


def first_minimum(s: np.ndarray) -> np.ndarray:
    r"""The first local minimum of the spatial autocorrelation of each chain, (B,) int64.

    The smallest d >= 1 at which

    .. math:: C(d) = \sum_{i=1}^{N-d} (s_i - \bar s)(s_{i+d} - \bar s)

    is below C(d - 1) and C(d + 1), over the whole chain, ends included: half the period of the
    pattern. It is 1 for alternating spins; that it leaves 1 is the feature by which Tables 5.1 and
    5.2 set the clock of a model. 0 where C has no such minimum.
    """
    out = np.empty(len(s), dtype=np.int64)
    _first_minimum(np.ascontiguousarray(s, dtype=np.float64), out)
    return out


@kernel
def _first_minimum(s: np.ndarray, out: np.ndarray) -> None:
    sites = s.shape[1]
    for b in range(s.shape[0]):
        mean = 0.0
        for i in range(sites):
            mean += s[b, i]
        mean /= sites
        before = here = np.inf
        out[b] = 0
        for d in range(sites):
            after = 0.0
            for i in range(sites - d):
                after += (s[b, i] - mean) * (s[b, i + d] - mean)
            if d > 1 and before > here and here < after:
                out[b] = d - 1
                break
            before, here = here, after
