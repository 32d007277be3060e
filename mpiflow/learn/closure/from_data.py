"""``mpiflow learn closure``: from runs, tables or pairs to a saved law of observables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mpiflow.core.errors import InputError
from mpiflow.learn.closure.closure import ClosureAutoencoder
from mpiflow.learn.closure.model import fit_sde
from mpiflow.learn.closure.observed import (
    ObservedModel,
    encoded,
    local_statistics,
    patch_side,
)
from mpiflow.learn.closure.series import CONDITIONS, Pairs, Series, conditions, pairs_of, span
from mpiflow.learn.closure.sources import read
from mpiflow.learn.options import ClosureConfig
from mpiflow.learn.pair_goodness import judge
from mpiflow.learn.together import explained_drift, learned
from mpiflow.learn.training import Schedule, fit

if TYPE_CHECKING:
    from mpi4py import MPI

#: Parts that pairs are cut into, of which some are held out: in time, neighbours are alike.
PARTS = 20
#: Smallest share of the noise of a latent that the others do not have.
ALIKE = 1e-6


def learn(config: ClosureConfig, data: Any, comm: MPI.Intracomm | None = None) -> ObservedModel:
    """Learn from the data, and save the model. Collective, by rank 0: the same bits on any ranks.

    Parameters
    ----------
    data : as of :func:`mpiflow.learn.closure.sources.read`; the configuration's is only its name

    Raises
    ------
    InputError : on all ranks: data or options do not fit, or there is a model already
    """
    return learned(
        lambda: model_of(config, data), config.out, config.overwrite, comm, config.device
    )


def model_of(config: ClosureConfig, data: Any) -> ObservedModel:
    """The model of :func:`learn`, which is not saved."""
    found = read(data, config.observables, fields=config.latents > 0)
    autoencoder, patch = None, 1
    known: dict[str, list[float]] = {}
    if isinstance(found, Pairs):
        if config.parameters:
            allowed = "none: pairs do not say them"
            raise InputError("parameters", config.parameters[0], allowed, "Learn from runs.")
        if config.lag != 1:
            raise InputError("lag", config.lag, "1: pairs have their own dt", "Leave it out.")
        pairs = found
        if config.latents:
            autoencoder, patch, pairs = _closed_by_statistics(config, found)
    else:
        parameters = conditions(found, config.parameters)
        closures = None
        if config.latents:
            autoencoder, patch, closures = _closures(config, found)
        pairs = pairs_of(found, config.lag, parameters, closures)
        for name in dict.fromkeys((*CONDITIONS, *parameters)):
            if all(name in one.options for one in found):
                known[name] = list(span(found, name))
    if config.factor is not None:
        pairs = replace(pairs, factor=config.factor)
    _require_own_noise(pairs)
    mixed = _mixed(pairs, config.seed)
    data_of = [mixed.z, mixed.increments, mixed.dt]
    if mixed.parameters:
        data_of.append(mixed.context)
    sde, log = fit_sde(
        data_of, pairs.factor, width=config.width, seed=config.seed,
        schedule=_schedule(config.epochs, len(pairs.z)),
    )  # fmt: skip
    model = ObservedModel(
        pairs.names[: len(pairs.names) - config.latents], sde, float(pairs.dt.mean()),
        pairs.parameters, known, autoencoder, patch,
    )  # fmt: skip
    model.card = {
        "pairs": pairs.dt.size,
        "trajectories": None if isinstance(found, Pairs) else len(found),
        "seed": config.seed,
        "factor": pairs.factor,
        "validation_loss": log.best_validation,
        "best_epoch": log.best_epoch,
        "stopped_early": log.stopped_early,
        "relaxation": sde.relaxation(pairs.z, pairs.context if pairs.parameters else None),
        "left_out": _left_out(config, pairs),
        **judge(sde, *data_of),
    }
    return model


def _schedule(epochs: int, samples: int) -> Schedule:
    """Twenty steps an epoch or more, as far as samples allow."""
    return Schedule(epochs=epochs, batch=max(32, min(512, samples // 20)))


def _left_out(config: ClosureConfig, pairs: Pairs) -> list[str]:
    """What the published closure has and these data do not."""
    out = []
    if pairs.factor == 1:
        out.append("partial evolution: pairs are of the whole system, lambda = 1")
    if config.latents and pairs.patches is None:
        out.append("statistics of patches, as densities of rate classes: closures are of coarse "
                   "fields")  # fmt: skip
    elif not config.latents:
        out.append("closures: the law is of the observables alone")
    return out


def _require_own_noise(pairs: Pairs) -> None:
    """Latents that are constant, or that the others say, have no law of their own."""
    rate = (pairs.increments / np.sqrt(pairs.dt)[..., None]).reshape(-1, len(pairs.names))
    if len(rate) < 20:
        raise InputError("data", f"{len(rate)} pairs", "20 or more", "Give more frames.")
    for name, column, change in zip(pairs.names, pairs.z.T, rate.T, strict=True):
        if not (np.ptp(column) > 0 and change.std() > 1e-9 * np.ptp(column)):
            remedy = "Leave it out: --observables A,B."
            raise InputError("observables", name, "one that changes", remedy)
    scaled = (rate - rate.mean(axis=0)) / rate.std(axis=0)
    values, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    if values[0] < ALIKE**2 * len(values) or values[0] < 1e-9:
        some = [n for n, v in zip(pairs.names, vectors[:, 0], strict=True) if abs(v) > 0.05]
        allowed = "observables of which none follows from the others"
        raise InputError("observables", ",".join(some), allowed, "Leave one of them out.")


def _mixed(pairs: Pairs, seed: int) -> Pairs:
    """The pairs in parts of neighbours, in a random order: the last ones are held out."""
    count = min(PARTS, len(pairs.z))
    parts = np.array_split(np.arange(len(pairs.z)), count)
    order = np.concatenate([parts[i] for i in np.random.default_rng(seed).permutation(count)])
    columns = {n: getattr(pairs, n)[order] for n in ("z", "increments", "dt", "context")}
    return replace(pairs, **columns)


def _closures(
    config: ClosureConfig, series: Sequence[Series]
) -> tuple[ClosureAutoencoder, int, list[np.ndarray]]:
    """The autoencoder of local fields, the side of its patches, and closures of each series."""
    fields = [np.asarray(one.fields) for one in series]
    if len({one.shape[1:] for one in fields}) > 1:
        shapes = ", ".join(str(s) for s in sorted({one.shape[1:] for one in fields}))
        raise InputError("data", f"fields of {shapes} blocks", "fields of one shape", "Choose.")
    patch = patch_side(fields[0].shape[1:], config.patch)
    statistics = np.concatenate([local_statistics(one, patch) for one in fields])
    model = _autoencoder(config, statistics, np.concatenate([one.values for one in series]))
    ends = np.cumsum([len(one) for one in fields])[:-1]
    return model, patch, np.split(encoded(model, statistics).mean(axis=1), ends)


def _closed_by_statistics(
    config: ClosureConfig, pairs: Pairs
) -> tuple[ClosureAutoencoder, int, Pairs]:
    """The autoencoder of given statistics, no side, and the pairs with closures.

    The change of a closure is that of the patch that evolved, equation (3) of arXiv:2511.12842.
    """
    if pairs.patches is None:
        raise AssertionError("read() asks for them")
    if config.patch is not None:
        raise InputError("patch", config.patch, "no value with statistics", "Leave it out.")
    whole, before, after = pairs.patches
    model = _autoencoder(config, whole, pairs.z)
    names = (*pairs.names, *(f"closure{i + 1}" for i in range(config.latents)))
    z = np.hstack([pairs.z, encoded(model, whole).mean(axis=1)])
    change = encoded(model, after) - encoded(model, before)
    increments = np.concatenate([pairs.increments, change], axis=-1)
    return model, 0, replace(pairs, names=names, z=z, increments=increments)


def _autoencoder(
    config: ClosureConfig, statistics: np.ndarray, observed: np.ndarray
) -> ClosureAutoencoder:
    """Trained on states with statistics (N, K, S) and observables (N, d)."""
    order = np.random.default_rng(config.seed).permutation(len(observed))
    torch.manual_seed(config.seed)
    model = ClosureAutoencoder(
        config.latents, statistics=statistics.shape[-1], observables=observed.shape[1]
    )
    model.set_scales(statistics, observed)
    schedule = _schedule(max(1, config.epochs // 2), len(order))
    fit(model, (statistics[order], observed[order]), seed=config.seed, schedule=schedule)
    return model


def table(model: ObservedModel, out: Any) -> str:
    """Lines about a learned law: data, fit, range, warnings, and where it is."""
    card = model.card
    of = "" if card["trajectories"] is None else f" of {card['trajectories']} trajectories"
    lines = [
        f"dz = mu dt + Sigma^(1/2) dB of {', '.join(model.names)} from {card['pairs']} pairs{of} "
        f"over {model.dt:.6g}, lambda = {model.sde.factor:g}"
    ]
    lines += _ranges("range", model.validity["latents"])
    lines += _ranges("depends on" if model.parameters else "learned at", model.conditions)
    goodness = card["goodness"]
    noise = ", ".join("unknown" if v is None else f"{v[0]:.3f}" for v in goodness["variance"])
    lines.append(f"{explained_drift(goodness)}; noise over that of the law {noise}")
    if (share := 0.5 * card["relaxation"] * model.dt) > 0.05:
        lines.append(
            f"warning: pairs are long: the fastest rate is about {share:.0%} too small in the law. "
            "Steps of the same length undo it; shorter ones of the data avoid it"
        )
    lines += [f"left out: {text}" for text in card["left_out"]]
    lines += [f"warning: the data do not obey such a law: {text}" for text in card["doubts"]]
    lines.append(f"saved to {out}")
    return "\n".join(lines)


def _ranges(label: str, ranges: Mapping[str, Sequence[float]]) -> list[str]:
    return [f"{label}: {name} {low:.6g} to {high:.6g}" for name, (low, high) in ranges.items()]
