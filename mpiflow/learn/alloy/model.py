r"""Learned dynamics of the short-range order of a ternary alloy (arXiv:2511.12842, III.3).

**Coordinates.** With the numbers :math:`N_{ij}` of neighbours j of all atoms i, of which there
are :math:`n_i`, the six order parameters are :math:`\delta_{ij} = N_{ij} / n_i - 8/3`. Since
:math:`N_{ij} = N_{ji}` and :math:`\sum_j N_{ij} = 8 n_i - N_{i0}`, with :math:`N_{i0} / n_i = r_i`
vacancies next to an atom i, only three are independent: we take the like pairs and reconstruct

.. math:: N_{12} = \tfrac12 (R_1 + R_2 - R_3), \quad R_i = 8 n_i - N_{ii} - N_{i0},

and so on. The rows :math:`\sum_j \delta_{ij} = -r_i` then hold for ever, whatever the model does.

**Time.** Rates of hops span many decades between the lowest temperature and the highest. The
model's time is :math:`\tau = t / t_0(T)`, with :math:`t_0` the mean duration of a pair, of which
the logarithm is a polynomial in 1/T that is stored with the model.

**Size.** Order parameters are intensive: the drift does not depend on the number n of sites,
and :math:`\Sigma \propto 1 / n`. A model of one size predicts any other.

**Pairs.** Over a pair, a drift of rate k moves z by a share :math:`k\,\delta t` of its way, while
the noise of one patch is :math:`\sqrt{2 k\,\delta t}` of the patch's own spread: 0.02 and 0.2 for
124 hops. What the drift is known to depends on the total time of all pairs,
:math:`\mathrm{var}\,\mu = K \Sigma / \sum \delta t`, and not on how it is cut into pairs. Long
pairs cost accuracy of order :math:`k\,\delta t / 2`, which predictions with equal steps
undo; short ones see the vacancy hop back and forth, noise that does not last. What fixes the rate
of relaxation along a direction is how widely the states spread along it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpiflow.core.errors import InputError
from mpiflow.learn.alloy.onsager_net import OnsagerSDE
from mpiflow.learn.models import read_model, write_model
from mpiflow.learn.pair_goodness import judge
from mpiflow.learn.training import Schedule, TrainingLog, fit
from mpiflow.systems.alloy import ELEMENTS, NEIGHBOURS, pair_names

KIND = "alloy-sro"
#: Of the six pairs, the like ones: the coordinates of the model.
LIKE = (0, 3, 5)
#: Each row: what the unlike pairs 12, 13, 23 get from R_1, R_2, R_3, times two.
_SIGNS = np.array([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
#: Vacancies per site of the published alloy.
VACANCIES = 1.0 / 1024.0


# -- coordinates ---------------------------------------------------------------------------


def independent(sro: np.ndarray) -> np.ndarray:
    """Independent coordinates of order parameters: (..., 6) to (..., 3), the like pairs."""
    return np.asarray(sro)[..., LIKE]


def reconstruct(
    x: np.ndarray, counts: np.ndarray, vacancy_neighbours: np.ndarray | float
) -> np.ndarray:
    """All order parameters from the like pairs: (..., 3) to (..., 6) float64.

    The inverse of :func:`independent`, equation above; exact for any composition.

    Parameters
    ----------
    x : (..., 3), delta of the like pairs
    counts : (..., 3), numbers n_i of atoms above 0, or anything proportional to them
    vacancy_neighbours : (..., 3) or a number, r_i, mean number of vacancies next to an atom i
    """
    x, n = np.asarray(x, np.float64), np.asarray(counts, np.float64)
    reference = NEIGHBOURS / 3.0
    unlike = n * (NEIGHBOURS - vacancy_neighbours - (x + reference)) @ (0.5 * _SIGNS.T)
    out = np.empty((*np.broadcast_shapes(unlike.shape, x.shape)[:-1], 6))
    out[..., LIKE] = x
    out[..., (1, 2)] = unlike[..., :2] / n[..., :1] - reference
    out[..., 4] = unlike[..., 2] / n[..., 1] - reference
    return out


# -- laws of time --------------------------------------------------------------------------


def fit_log_mean(features: np.ndarray, values: np.ndarray, iterations: int = 60) -> np.ndarray:
    r"""Coefficients c of the mean :math:`m = e^{F c}` of positive values.

    Minimises the convex :math:`\sum_k (y_k / m_k + \log m_k)` by damped Newton steps: a fit of
    the mean, not of the mean logarithm, so m is right where y fluctuates by orders of magnitude.

    Parameters
    ----------
    features : (N, k), the first column ones
    values : (N,), above 0
    """
    shape = features.shape[1]
    ridge = 1e-9 * len(values) * np.eye(shape)
    c = np.linalg.solve(features.T @ features + ridge, features.T @ np.log(values))

    def loss(c: np.ndarray) -> float:
        exponent = features @ c
        with np.errstate(over="ignore"):
            return float((values * np.exp(-exponent) + exponent).sum())

    # Start with the right overall mean.
    c[0] += np.log(np.mean(values * np.exp(-(features @ c))))
    now = loss(c)
    for _ in range(iterations):
        ratio = values * np.exp(-(features @ c))
        hessian = features.T @ (features * ratio[:, None]) + ridge
        step = np.linalg.solve(hessian, features.T @ (ratio - 1.0))
        size = 1.0
        while not (new := loss(c + size * step)) <= now and size > 1e-6:
            size *= 0.5
        if size <= 1e-6:
            break
        c, converged, now = c + size * step, now - new < 1e-12 * abs(now), new
        if converged:
            break
    return c


@dataclass(frozen=True)
class TimeScale:
    r"""Smooth law :math:`\log t_0(T) = \sum_k c_k u^k`, u = 1 / T scaled to [-1, 1].

    Attributes
    ----------
    coefficients : c_k; two of them are an Arrhenius law
    low, high : temperatures in K where u is 1 and -1
    """

    coefficients: tuple[float, ...]
    low: float
    high: float

    @staticmethod
    def fit(temperature: np.ndarray, time: np.ndarray, degree: int = 3) -> TimeScale:
        """Law of the mean of ``time`` (N,) in s at ``temperature`` (N,) in K."""
        temperature, time = np.asarray(temperature, float), np.asarray(time, float)
        if not (np.all(temperature > 0) and np.all(time > 0) and np.all(np.isfinite(time))):
            raise InputError("time", "some", "above 0 and finite, at T > 0", "Drop the others.")
        distinct = len(np.unique(temperature))
        low, high = float(temperature.min()), float(temperature.max())
        law = TimeScale((0.0,) * (min(degree, distinct - 1) + 1), low, high)
        c = fit_log_mean(law.features(temperature), time)
        return TimeScale(tuple(c.tolist()), low, high)

    def features(self, temperature: np.ndarray) -> np.ndarray:
        """Powers of u, (..., k)."""
        inverse = 1.0 / np.asarray(temperature, np.float64)
        low, high = 1.0 / self.low, 1.0 / self.high
        u = (2.0 * inverse - low - high) / (low - high) if low > high else 0.0 * inverse
        return u[..., None] ** np.arange(len(self.coefficients))

    def __call__(self, temperature: np.ndarray | float) -> np.ndarray:
        """t_0 in s at temperatures (...) in K."""
        return np.exp(self.features(np.asarray(temperature)) @ np.array(self.coefficients))


# -- data ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairsData:
    """Pairs of partial evolution: N states with P pairs each.

    Parameters
    ----------
    z0 : (N, 3), like-pair order parameters of the whole system, see :func:`independent`
    increments : (N, P, 3), change of the same of the patch that evolved,
        z(patch after) - z(patch before)
    dt : (N, P), its duration in s. Pairs of one column are made alike (so many hops).
    temperature : (N,) in K
    patches : K, patches of the whole system
    sites : n, sites of the whole system
    counts : numbers of the atoms of each element, or anything proportional to them
    vacancy_neighbours : mean number of vacancies next to an atom of each element
    lattice : (N,), number of the small lattice that a state was made of, -1 where it is not known
        or there are several; states of one lattice are not independent
    """

    z0: np.ndarray
    increments: np.ndarray
    dt: np.ndarray
    temperature: np.ndarray
    patches: int
    sites: int
    counts: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vacancy_neighbours: tuple[float, float, float] = (NEIGHBOURS * VACANCIES,) * 3
    lattice: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        if self.lattice.size == 0:
            object.__setattr__(self, "lattice", np.full(len(self.z0), -1))
        states, pairs = self.dt.shape if self.dt.ndim == 2 else (-1, -1)
        shapes = {
            "z0": (states, 3),
            "increments": (states, pairs, 3),
            "dt": (states, pairs),
            "temperature": (states,),
            "lattice": (states,),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape:
                raise InputError(
                    name, value.shape, "z0 (N, 3), increments (N, P, 3), dt (N, P)", "Reshape it."
                )
            if not np.isfinite(value).all():
                raise InputError(name, "nan or inf", "finite numbers", "Drop those pairs.")
        for name in ("dt", "temperature"):
            if not np.all(getattr(self, name) > 0):
                raise InputError(name, getattr(self, name).min(), "above 0", "Drop those pairs.")
        if not (1 <= self.patches <= self.sites):
            raise InputError("patches", self.patches, f"1 to {self.sites}", "Use K.")


def mean_durations(pairs: PairsData, law: TimeScale) -> np.ndarray:
    r"""Mean duration of each pair, given state and temperature, (N, P) in s.

    A pair of a fixed number of hops lasts a random time, which at low temperatures varies by
    orders of magnitude. The change over those hops hardly depends on it, so neither
    :math:`E[\Delta^2 / \delta t]` nor :math:`E[\Delta\,\delta t] / E[\delta t^2]` is a rate;
    :math:`E[\Delta] / E[\delta t]` and :math:`E[\Delta^2] / E[\delta t]` are. We fit
    :math:`\log E[\delta t]` by a polynomial in z and 1/T.
    """
    states, columns = pairs.dt.shape
    x = (pairs.z0 - pairs.z0.mean(axis=0)) / np.maximum(pairs.z0.std(axis=0), 1e-8)
    powers = law.features(pairs.temperature)
    terms = [powers]
    terms += [powers[:, :3] * x[:, [i]] for i in range(3)]
    terms += [x[:, [i]] * x[:, [j]] for i, j in combinations_with_replacement(range(3), 2)]
    features = np.concatenate(terms, axis=1)
    # Each column of pairs has its own constant.
    whole = np.tile(features, (columns, 1))
    own = np.repeat(np.eye(columns)[:, 1:], states, axis=0)
    unit = law(pairs.temperature)[:, None]
    whole = np.concatenate([whole, own], axis=1)
    c = fit_log_mean(whole, (pairs.dt / unit).T.ravel())
    return unit * np.exp(whole @ c).reshape(columns, states).T


# -- model ---------------------------------------------------------------------------------


@dataclass
class AlloyModel:
    """Macroscopic dynamics of the short-range order at any temperature of a range.

    Attributes
    ----------
    sde : the trained networks, of the like pairs and in units of time t_0(T)
    time_scale : t_0(T)
    sites : number of sites whose noise ``sde`` has
    counts, vacancy_neighbours : see :class:`PairsData`
    step : time step of predictions, in units of t_0
    card : where the model comes from: seed, lambda, losses; and how well it fits
        (:mod:`mpiflow.learn.pair_goodness`)
    """

    sde: OnsagerSDE
    time_scale: TimeScale
    sites: int
    counts: tuple[float, float, float] = (1.0, 1.0, 1.0)
    vacancy_neighbours: tuple[float, float, float] = (NEIGHBOURS * VACANCIES,) * 3
    step: float = 1.0
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sde.names = tuple(f"sro {name}" for name in np.array(self.observables)[list(LIKE)])

    @property
    def validity(self) -> dict[str, Any]:
        """Ranges of the like pairs' order and of the temperature in K that the model knows."""
        kelvin = {"temperature": list(self.temperatures)}
        return {"latents": self.sde.validity(), "parameters": kelvin}

    @property
    def temperatures(self) -> tuple[float, float]:
        """Least and largest temperature of the training data in K; the model asks for no other."""
        return self.time_scale.low, self.time_scale.high

    @property
    def observables(self) -> list[str]:
        """Names of the six observables."""
        return pair_names(ELEMENTS)

    def random_start(self) -> np.ndarray:
        """Mean order parameters of a random mixture, (6,): close to 0."""
        shares = np.array(self.counts) / np.sum(self.counts)
        # A random mixture has the same vacancies next to every atom.
        occupied = NEIGHBOURS - float(np.mean(self.vacancy_neighbours))
        return self.expand(occupied * shares - NEIGHBOURS / 3.0)

    def expand(self, x: np.ndarray, counts: Sequence[float] | None = None) -> np.ndarray:
        """Six order parameters from the model's three coordinates, (..., 3) to (..., 6)."""
        given = np.array(self.counts if counts is None else counts)
        return reconstruct(x, given, np.array(self.vacancy_neighbours))

    def _checked(self, temperature: float | np.ndarray) -> np.ndarray:
        given = np.atleast_1d(np.asarray(temperature, np.float64))
        low, high = self.temperatures
        outside = given[~((given >= low) & (given <= high))]
        if len(outside):
            raise InputError(
                "temperature",
                float(outside[0]),
                f"{low:g} to {high:g} K, the range of the training data",
                "Train a model with data of this temperature.",
            )
        return given

    def time_unit(self, temperature: float | np.ndarray) -> np.ndarray:
        """t_0 in s: (...) K to (...)."""
        self._checked(np.ravel(temperature))
        return self.time_scale(temperature)

    def rollout(
        self,
        temperature: float | np.ndarray,
        sro0: np.ndarray | None,
        times: np.ndarray,
        *,
        size: int,
        seed: int,
        members: np.ndarray | int | None = None,
        counts: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, int]:
        """Trajectories of a system of ``size`` sites, interpolated between steps.

        Parameters
        ----------
        temperature : in K, one number or (B,)
        sro0 : (B, 6) or (6,) at time 0; None for a random mixture's mean. Only its like pairs
            are used: the others follow from the composition.
        times : (n,) in s, or (n, B) for times of each trajectory's own
        size : number of sites, vacancies included
        members : (B,) noise keys, or their number; by default 0, 1, ... for what is given
        counts : numbers of the atoms of each element, by default those of the training data

        Returns
        -------
        trajectories (n, B, 6) float64, and the number of states that had to be held inside the
        widened range of the training data, which should be 0
        """
        if size < 1:
            raise InputError("size", size, "1 or more sites", "Try 8192.")
        times = np.asarray(times, np.float64)
        if times.size == 0 or not np.all(times >= 0):
            raise InputError("times", times.tolist()[:3], "0 s or more", "Leave out the others.")
        given = self._checked(temperature)
        start = np.atleast_2d(self.random_start() if sro0 is None else sro0)
        if members is None:
            members = max(len(start), len(given), times.shape[1] if times.ndim == 2 else 1)
        keys = np.arange(members) if isinstance(members, (int, np.integer)) else members
        given = np.broadcast_to(given, (len(keys),))
        z0 = np.broadcast_to(independent(start), (len(keys), 3))
        each = times if times.ndim == 2 else times[:, None]
        path, held = self.sde.rollout_at(
            z0,
            keys,
            np.broadcast_to(each / self.time_scale(given), (len(times), len(keys))),
            dt=self.step,
            seed=seed,
            context=given[:, None],
            noise=float(np.sqrt(self.sites / size)),
            clock=self.time_scale(given),
        )
        return self.expand(path, counts), held

    def save(self, directory: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a directory."""
        description = {
            "observables": self.observables,
            "width": self.sde.width,
            "force": self.sde.force,
            "factor": self.sde.factor,
            "time_scale": asdict(self.time_scale),
            "sites": self.sites,
            "counts": list(self.counts),
            "vacancy_neighbours": list(self.vacancy_neighbours),
            "step": self.step,
            "card": self.card,
        }
        tensors = {name: value.contiguous() for name, value in self.sde.state_dict().items()}
        write_model(directory, KIND, description, tensors)


def load_alloy_model(directory: str | Path) -> AlloyModel:
    """Load a model that :meth:`AlloyModel.save` wrote."""
    return read_model(directory, KIND, _built)


def _built(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> AlloyModel:
    sde = OnsagerSDE(3, description["width"], description["factor"], force=description["force"])
    sde.load_state_dict(dict(tensors))
    sde.eval()
    law = description["time_scale"]
    return AlloyModel(
        sde,
        TimeScale(tuple(law["coefficients"]), law["low"], law["high"]),
        description["sites"],
        tuple(description["counts"]),
        tuple(description["vacancy_neighbours"]),
        description["step"],
        description["card"],
    )


# -- training ------------------------------------------------------------------------------


def default_schedule(states: int) -> Schedule:
    """30 epochs of about 50 steps, or of more steps with batches of 2048 states.

    A pair's drift is a small part of its noise: all pairs have to be averaged over at a small
    rate, which the end of the cosine does. Measured on a process that is known exactly: fewer
    steps leave rates too low, and batches of 512 means less certain. Averaging the weights of
    the second half of the epochs, twice the width, more epochs, or leaving out the force change
    errors by no more than another seed does.
    """
    return Schedule(epochs=30, batch=min(2048, max(64, states // 50)), learning_rate=5e-3)


def train_alloy(
    pairs: PairsData,
    *,
    seed: int = 0,
    width: int = 32,
    force: bool = True,
    factor: float | None = None,
    mean_times: bool = True,
    schedule: Schedule | None = None,
    comm: Any = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> tuple[AlloyModel, TrainingLog]:
    """Learn the dynamics from pairs of all temperatures together.

    The same pairs give the same model. States are shuffled first, so that the held-out ones
    are of all temperatures.

    Parameters
    ----------
    width, force : see :class:`mpiflow.learn.alloy.onsager_net.OnsagerSDE`
    factor : lambda, by default K
    mean_times : use :func:`mean_durations` instead of each pair's own duration. Right for
        pairs of fixed numbers of hops; for fixed durations it changes nothing.
    schedule : by default :func:`default_schedule`
    comm : communicator of the ranks that train together, see :func:`mpiflow.learn.training.fit`
    """
    factor = float(pairs.patches) if factor is None else factor
    if not factor > 0:
        raise InputError("factor", factor, "above 0", "Leave it out for lambda = K.")
    # Durations are the same or their means well known: any smooth law through them will do.
    kelvin = np.repeat(pairs.temperature, pairs.dt.shape[1])
    law = TimeScale.fit(kelvin, pairs.dt.ravel(), degree=7)
    seconds = mean_durations(pairs, law) if mean_times else pairs.dt
    tau = seconds / law(pairs.temperature)[:, None]
    torch.manual_seed(seed)
    sde = OnsagerSDE(3, width, factor, force=force)
    sde.set_conditions(pairs.z0, pairs.increments, tau, pairs.temperature)
    order = np.random.default_rng(seed).permutation(len(tau))
    data = (pairs.z0, pairs.increments, tau, pairs.temperature[:, None])
    log = fit(
        sde,
        [values[order] for values in data],
        seed=seed,
        schedule=schedule or default_schedule(len(tau)),
        comm=comm,
        progress=progress,
    )
    card = {
        "seed": seed,
        "states": len(tau),
        "pairs": tau.size,
        "patches": pairs.patches,
        "factor": factor,
        "mean_times": mean_times,
        "validation_loss": log.best_validation,
        "best_epoch": log.best_epoch,
        **judge(sde, pairs.z0, pairs.increments, tau, data[3]),
    }
    step = float(tau.mean())
    model = AlloyModel(sde, law, pairs.sites, pairs.counts, pairs.vacancy_neighbours, step, card)
    return model, log
