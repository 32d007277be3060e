r"""Chains of two species in experiments: features of models, ensembles of the stochastic process.

Needs no torch.

The models have no common clock: the mobilities of the free-energy models are free parameters. The
paper (Farmer, Luskin, Plechac, Simpson, section 5.2) sets them by a feature that all models have,
the first time at which the first local minimum of the spatial autocorrelation leaves d = 1: the
alternating pattern of the start gives way to phases.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.solvers.binary_chain.averaged import AveragedSpins
from mpiflow.solvers.binary_chain.langevin import SpinChains, SpinDiffusion
from mpiflow.solvers.binary_chain.mean_field import MOBILITIES, MeanFieldChains
from mpiflow.solvers.binary_chain.observables import first_minimum
from mpiflow.systems.binary_chain import BinaryChain

#: Mean spins of the paper's start are plus and minus this, in turn.
START = 0.9998
#: The feature is looked for until then, and to this relative precision.
_LONGEST, _PRECISION = 1e4, 1e-4
#: Sites of a block.
_BLOCK = 6


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


# -- the stochastic process ----------------------------------------------------------------


def frame_times(until: float) -> np.ndarray:
    """Seven times in each decade from 0.1 on, multiples of 0.1, (T,) float64."""
    decades = 10.0 ** np.arange(-1, np.ceil(np.log10(until)) + 1)
    times = np.unique(np.round(np.outer(decades, (1, 1.5, 2, 3, 4, 5, 7)), 1))
    return times[times <= until * (1 + 1e-12)]


def ensemble(chains: SpinChains, times: np.ndarray) -> dict[str, np.ndarray]:
    """What chains that are set do until some times.

    Parameters
    ----------
    times : (T,) increasing; of :class:`SpinDiffusion` multiples of dt

    Returns
    -------
    spins : (T, N) int64, sums over the chains
    bonds, strain : (T, B) float64, A-B bonds and strain of each
    """
    spins, bonds, strain = [], [], []
    for time in times.tolist():
        if isinstance(chains, SpinDiffusion):
            chains.advance(round(time / chains.dt) - chains.step)
        elif isinstance(chains, AveragedSpins):
            chains.advance(time)
        spins.append(chains.spins.sum(axis=0, dtype=np.int64))
        bonds.append(chains.ab_bonds())
        strain.append(chains.strain())
    return {"spins": np.array(spins), "bonds": np.array(bonds), "strain": np.array(strain)}


def means(chains: MeanFieldChains, times: np.ndarray) -> dict[str, np.ndarray]:
    """The same of one chain of mean spins: ``spins`` (T, N), ``bonds`` and ``strain`` (T, 1).

    NaN from where the model does not hold any more: ``refused`` says why, or is empty.
    """
    sites, refused = chains.system.sites, ""
    spins, bonds, strain = (
        np.full((len(times), sites), np.nan),
        *np.full((2, len(times), 1), np.nan),
    )
    for k, time in enumerate(times.tolist()):
        try:
            chains.advance(time)
        except InputError as error:
            refused = str(error)
            break
        spins[k], bonds[k], strain[k] = chains.s[0], chains.ab_bonds(), chains.strain()
    return {"spins": spins, "bonds": bonds, "strain": strain, "refused": np.array(refused)}


def spin_error(mean: np.ndarray, replicas: int) -> np.ndarray:
    """Standard errors of mean spins over replicas, whose squares are without bias.

    Not below that of a spin in which one replica differs from the others. 0 of a single chain.
    """
    if replicas == 1:
        return np.zeros_like(mean)
    return np.asarray(np.sqrt(np.maximum(1 - mean**2, 1 / replicas) / (replicas - 1)))


def rms_difference(ours: np.ndarray, other: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """The root mean square of differences without what noise makes of it, and its error.

    Noise adds its variance to the mean of the squares, which is taken off; 0 where less than
    nothing is left. The standard error is that of normal errors which are independent from site to
    site and the same at all times, for replicas remember their past; or, if that is larger, it is
    by the scatter of blocks of six sites, for neighbours lie in one phase.

    Parameters
    ----------
    ours, other : two sets of values, (T,) or (T, N)
    error : standard error of each difference
    """
    square, variance = (ours - other) ** 2, error**2
    left = float((square - variance).mean())
    spread = 2 * variance**2 + 4 * variance * np.maximum(square - variance, 0.0)
    spread = spread.reshape(len(spread), -1)
    unsure = float(np.sqrt(spread.sum(axis=1)).mean()) / spread.shape[1]
    if square.ndim == 2:
        sites = (square - variance).mean(axis=0)
        width = max(1, min(_BLOCK, len(sites) // 4))
        blocks = sites[: len(sites) // width * width].reshape(-1, width).mean(axis=1)
        unsure = max(unsure, float(blocks.std(ddof=1) / np.sqrt(len(blocks))))
    size = np.sqrt(max(left, 0.0))
    # d(x^2) = 2 x dx, unless x is 0 within its error
    return float(size), unsure / (2 * size) if left > unsure else float(np.sqrt(unsure))


def passage(times: np.ndarray, curves: np.ndarray, level: float) -> tuple[float, float]:
    """When the mean of curves (T, B) first falls below a level, and its error by the jackknife.

    Interpolated in the logarithm of time. NaN if it does not; an error NaN if without one of the
    curves it does not, or if there is but one.
    """
    count, total = curves.shape[1], curves.sum(axis=1)
    whole = _passage(times, total / count, level)
    if count < 2:
        return whole, float("nan")
    others = (total[:, None] - curves) / (count - 1)
    each = np.array([_passage(times, column, level) for column in others.T])
    return whole, float(np.sqrt((count - 1) / count * ((each - each.mean()) ** 2).sum()))


def _passage(times: np.ndarray, curve: np.ndarray, level: float) -> float:
    below = np.flatnonzero(curve < level)
    if not below.size:
        return float("nan")
    k = below[0]
    if k == 0:
        return float(times[0])
    share = (curve[k - 1] - level) / (curve[k - 1] - curve[k])
    return float(times[k - 1] * (times[k] / times[k - 1]) ** share)
