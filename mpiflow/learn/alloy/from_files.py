"""``mpiflow learn alloy``: from files of runs, or of pairs, to a saved model of the order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.files.runs import find_runs
from mpiflow.files.trajectory import Trajectory
from mpiflow.learn.alloy.data import load_pairs, moving
from mpiflow.learn.alloy.model import (
    AlloyModel,
    PairsData,
    default_schedule,
    independent,
    train_alloy,
)
from mpiflow.learn.options import AlloyConfig
from mpiflow.learn.together import explained_drift, learned
from mpiflow.systems.alloy import neighbour_numbers, short_range_order, species_numbers

if TYPE_CHECKING:
    from mpi4py import MPI


def learn(config: AlloyConfig, comm: MPI.Intracomm | None = None) -> AlloyModel:
    """Learn from the files, and save the model. Collective, by rank 0.

    Raises
    ------
    InputError : on all ranks: runs or options do not fit, or there is a model already
    """
    return learned(lambda: _model(config), config.out, config.overwrite, comm, config.device)


def _model(config: AlloyConfig) -> AlloyModel:
    tables = [path for path in config.data if path.suffix == ".npz"]
    runs = [path for path in config.data if path.suffix != ".npz"]
    if tables and runs:
        raise InputError("data", str(tables[0]), "runs, or pairs", "Learn from each by itself.")
    if tables and config.lag != 1:
        raise InputError("lag", config.lag, "1: pairs have their own duration", "Leave it out.")
    parts = (
        [load_pairs(path) for path in tables]
        if tables
        else [part for path in find_runs(runs) for part in of_run(path, config.lag)]
    )
    pairs = _moving(_joined(parts))
    if len(pairs.z0) < 20:
        raise InputError("data", f"{len(pairs.z0)} states", "20 or more", "Save more frames.")
    schedule = replace(default_schedule(len(pairs.z0)), epochs=config.epochs)
    return train_alloy(
        pairs,
        seed=config.seed,
        width=config.width,
        # Only pairs of a number of hops have random durations.
        mean_times=bool(tables),
        schedule=schedule,
    )[0]


def of_run(path: Path, lag: int = 1) -> list[PairsData]:
    """Pairs of frames of a run of a ternary alloy by time, of each of its parts; lambda is 1.

    Raises
    ------
    InputError : it is no such run, or too short
    """

    def fault(found: str, allowed: str, remedy: str) -> InputError:
        return InputError("data", f"{path}: {found}", allowed, remedy)

    with Trajectory(path) as file:
        if not file.complete:
            raise fault("not complete", "a complete run", "Wait, or resume it.")
        if "bonds" not in file or file.variables["bonds"].dims[-2:] != (
            "corner_species",
            "centre_species",
        ):
            raise fault("no bonds", "a run of an alloy", "Use mpiflow simulate alloy.")
        bonds, time = file["bonds"], np.asarray(file.time)
        config, segments = file.config, file.segments
    if bonds.shape[-1] != 4:
        found = f"{bonds.shape[-1] - 1} elements"
        raise fault(found, "three, as the model has", "Use another run.")
    bonds = bonds.reshape(len(time), -1, 4, 4)
    numbers = species_numbers(bonds)
    near = (neighbour_numbers(bonds)[..., 1:, 0] / numbers[..., 1:]).mean(axis=(0, 1))
    counts = tuple(float(n) for n in numbers[0, 0, 1:])
    z = independent(short_range_order(bonds))
    out = []
    for part in segments:
        if not len(part.frames):
            continue
        if part.unit == "hops":
            remedy = "States after so many hops are those that a vacancy leaves fast: run by time."
            raise fault("frames by hops", "a run by time", remedy)
        kelvin = {**config, **part.config}.get("temperature")
        if kelvin is None:
            raise fault("no temperature", "a run at one", "Give it to mpiflow import.")
        frames = part.equal(time, path)
        if len(frames) <= lag:
            raise fault(f"{len(frames)} frames", f"more than {lag}, the lag", "Save more frames.")
        seen = z[frames]
        start, change = seen[:-lag].reshape(-1, 3), (seen[lag:] - seen[:-lag]).reshape(-1, 1, 3)
        step = float((time[frames[-1]] - time[frames[0]]) / (len(frames) - 1))
        out.append(
            PairsData(
                start,
                change,
                np.full((len(start), 1), lag * step),
                np.full(len(start), float(kelvin)),
                patches=1,
                sites=int(numbers[0, 0].sum()),
                counts=(counts[0], counts[1], counts[2]),
                vacancy_neighbours=(float(near[0]), float(near[1]), float(near[2])),
            )
        )
    return out


def _joined(parts: Sequence[PairsData]) -> PairsData:
    """All pairs together; they must be of one alloy and size."""
    first = parts[0]
    for one in parts:
        alike = (one.patches, one.sites, one.counts, one.dt.shape[1])
        wanted = (first.patches, first.sites, first.counts, first.dt.shape[1])
        if alike != wanted:
            allowed = f"(patches, sites, atoms, pairs of a state) of the first, {wanted}"
            raise InputError("data", alike, allowed, "Learn from alike runs.")
    names = ("z0", "increments", "dt", "temperature", "lattice")
    near = np.mean([one.vacancy_neighbours for one in parts], axis=0)
    whole: dict[str, Any] = {
        name: np.concatenate([getattr(one, name) for one in parts]) for name in names
    }
    whole["vacancy_neighbours"] = tuple(near.tolist())
    return replace(first, **whole)


def _moving(pairs: PairsData) -> PairsData:
    """Without temperatures at which most pairs show no change."""
    kelvin = np.unique(pairs.temperature)
    of = {t: {"increments": pairs.increments[pairs.temperature == t]} for t in kelvin}
    kept = moving(of)
    if not kept:
        raise InputError(
            "data", "pairs of frames that are alike", "vacancies that move between frames",
            "Use a longer --lag, or runs with a longer --save-every.",
        )  # fmt: skip
    if still := [f"{t:g}" for t in kelvin if t not in kept]:
        text = f"vacancies hardly move within a pair at {', '.join(still)} K: left out"
        warnings.warn(text, stacklevel=2)
    some = np.isin(pairs.temperature, list(kept))
    names = ("z0", "increments", "dt", "temperature", "lattice")
    return replace(pairs, **{name: getattr(pairs, name)[some] for name in names})


def table(model: AlloyModel, out: Any) -> str:
    """Lines about a learned model: data, fit, range, and where it is."""
    card, (low, high) = model.card, model.temperatures
    lines = [
        f"short-range order of {model.sites} sites from {card['pairs']} pairs, lambda = "
        f"{card['factor']:g}",
        f"range: temperature {low:g} to {high:g} K",
        *(f"range: {n} {a:.6g} to {b:.6g}" for n, (a, b) in model.validity["latents"].items()),
        f"{explained_drift(card['goodness'])}; validation loss {card['validation_loss']:.4g}",
    ]
    lines += [f"warning: the data do not obey such a law: {text}" for text in card["doubts"]]
    lines.append(f"saved to {out}")
    return "\n".join(lines)
