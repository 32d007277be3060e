"""Trajectories of observables, and the pairs of states that a law is learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.files.trajectory import Trajectory

COARSE = "coarse_magnetization"
#: Options of runs that laws depend on, unless told others.
CONDITIONS = ("temperature", "field")


@dataclass(frozen=True)
class Series:
    """A trajectory at equal times.

    Attributes
    ----------
    where : for messages
    names : of the d observables
    values : (frames, d) float64
    step : time between frames
    options : of the run that it is from: numbers, or one of each frame where a schedule changed it
    fields : (frames, y, x), the coarse fields, if closures are asked for
    """

    where: str
    names: tuple[str, ...]
    values: np.ndarray
    step: float
    options: Mapping[str, float | np.ndarray]
    fields: np.ndarray | None = None


@dataclass(frozen=True)
class Pairs:
    """States, and how they changed.

    Attributes
    ----------
    names : of the d latents
    z, increments, dt : (N, d), (N, P, d), (N, P), as of :class:`~mpiflow.learn.sde.LearnedSDE`
    context : (N, c), values of the ``parameters``
    parameters : names of the numbers that the law depends on
    factor : lambda, K where only one of K patches evolved
    patches : statistics of the patches of a state (N, K, S), and of the one that evolved before
        and after that (N, P, S) each; None where there are none
    """

    names: tuple[str, ...]
    z: np.ndarray
    increments: np.ndarray
    dt: np.ndarray
    context: np.ndarray
    parameters: tuple[str, ...] = ()
    factor: float = 1.0
    patches: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


def fault(where: str, found: object, allowed: str, remedy: str) -> InputError:
    return InputError("data", f"{where}: {found}", allowed, remedy)


def checked(
    where: str,
    names: Sequence[str],
    times: np.ndarray,
    values: np.ndarray,
    options: Mapping[str, float | np.ndarray] | None = None,
    fields: np.ndarray | None = None,
) -> Series:
    """A checked series."""
    for name, column in zip(("time", *names), (times, *values.T), strict=True):
        if len(bad := np.flatnonzero(~np.isfinite(column))):
            found = f"{name} is {column[bad[0]]} in frame {bad[0]}"
            raise fault(where, found, "finite numbers", "Leave out such frames, or give pairs.")
    if len(times) < 2:
        raise fault(where, f"{len(times)} frames", "2 or more", "Save more frames.")
    steps = np.diff(times)
    if not (steps > 0).all():
        at = int(np.argmin(steps > 0))
        raise fault(where, f"time {times[at]:g}, then {times[at + 1]:g}", "rising times",
                     "The first column is the time; give trajectories one by one.")  # fmt: skip
    if np.ptp(steps) > 1e-4 * steps.mean():
        found = f"steps of {steps.min():g} to {steps.max():g}"
        remedy = "Give pairs instead (z, dz, dt), which may have any dt."
        raise fault(where, found, "times in equal steps", remedy)
    step = float((times[-1] - times[0]) / len(steps))
    return Series(where, tuple(names), values, step, options or {}, fields)


def chosen(wanted: Sequence[str], known: Sequence[str], where: str) -> list[str]:
    if unknown := [name for name in wanted if name not in known]:
        allowed = f"some of {','.join(known)} in {where}"
        raise InputError("observables", ",".join(unknown), allowed, "Correct it.")
    return list(wanted or known)


# -- runs ----------------------------------------------------------------------------------


def of_run(path: Path, observables: Sequence[str], fields: bool) -> list[Series]:
    """A series for each member and each part of a run with its own parameters."""
    with Trajectory(path) as file:
        if not file.complete:
            remedy = "It is running or was interrupted: wait, or resume it."
            raise InputError("data", str(path), "a complete run", remedy)
        columns = scalars(file, observables)
        members = next(iter(columns.values())).shape[1]
        changing = {
            name: np.asarray(file[name], float) for name in CONDITIONS if _changes(file, name)
        }
        coarse = None
        if fields and COARSE in file:
            coarse = file[COARSE]
            # (frames, members, y, x)
            coarse = coarse.reshape(len(file), members, *coarse.shape[-2:])
        time, config, parts = np.asarray(file.time), file.config, file.segments
    whole = np.stack(list(columns.values()), axis=-1)
    out = []
    for part in parts:
        if not len(part.frames):
            continue
        frames = part.equal(time, path)
        known = {**config, **part.config}
        numbers: dict[str, float | np.ndarray] = {
            name: float(value)
            for name, value in known.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        numbers |= {name: values[frames] for name, values in changing.items()}
        for member in range(members):
            label = str(path) if members == 1 else f"{path}, member {member}"
            own = None if coarse is None else coarse[frames, member]
            out.append(
                checked(label, list(columns), time[frames], whole[frames, member], numbers, own)
            )
    return out


def _changes(file: Trajectory, name: str) -> bool:
    """Whether an option is a number of each frame, as of a schedule."""
    return name in file.variables and file.variables[name].per_frame


def scalars(file: Trajectory, observables: Sequence[str]) -> dict[str, np.ndarray]:
    """Scalars of each frame by name, (frames, members) float64; those of vectors one by one."""
    known: dict[str, tuple[str, int | None]] = {}
    for name, about in file.variables.items():
        inner = [d for d in about.dims if d != "member"]
        if not about.per_frame or np.dtype(about.dtype).kind not in "fiu" or len(inner) > 1:
            continue
        if not inner:
            known[name] = name, None
        elif file.sizes[inner[0]] <= 32 and about.dims[-1] == inner[0]:
            known |= {f"{name}{i + 1}": (name, i) for i in range(file.sizes[inner[0]])}
    if not observables and "magnetization" not in known:
        allowed = f"some of {','.join(known)} in {file.path}"
        raise InputError("observables", None, allowed, "Name them: --observables A,B.")
    out = {}
    for name in chosen(observables or ("magnetization",), list(known), str(file.path)):
        stored, place = known[name]
        values = np.asarray(file[stored], float)
        values = values if place is None else values[..., place]
        out[name] = values.reshape(len(file), -1)
    members = max(values.shape[1] for values in out.values())  # a schedule is that of all
    return {n: np.broadcast_to(v, (len(file), members)) for n, v in out.items()}


# -- pairs ---------------------------------------------------------------------------------


def conditions(series: Sequence[Series], parameters: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the options that a law of these runs depends on.

    Raises
    ------
    InputError : a run does not have one of them
    """
    for name in parameters:
        for one in series:
            if name not in one.options:
                known = ",".join(sorted(one.options)) or "none, as it is no run"
                allowed = f"some of the numbers of {one.where}: {known}"
                raise InputError("parameters", name, allowed, "Correct it.")
    if parameters:
        return tuple(parameters)
    found: list[str] = []
    for name in CONDITIONS:
        low, high = span([one for one in series if name in one.options], name)
        if low < high:
            found += conditions(series, [name])
    return tuple(found)


def span(series: Sequence[Series], name: str) -> tuple[float, float]:
    """Least and largest value of an option; nan without series."""
    values = [np.ravel(one.options[name]) for one in series]
    whole = np.concatenate(values) if values else np.array([np.nan])
    return float(whole.min()), float(whole.max())


def pairs_of(
    series: Sequence[Series],
    lag: int = 1,
    parameters: Sequence[str] = (),
    closures: Sequence[np.ndarray] | None = None,
) -> Pairs:
    """The increments of series over ``lag`` frames, one trajectory after the other.

    Parameters
    ----------
    closures : (frames, k) of each series, further latents

    Raises
    ------
    InputError : a series is too short
    """
    columns: list[tuple[np.ndarray, ...]] = []
    for i, one in enumerate(series):
        values = one.values if closures is None else np.hstack([one.values, closures[i]])
        if len(values) <= lag:
            allowed = f"more than {lag}, the lag"
            raise fault(one.where, f"{len(values)} frames", allowed, "Save more frames.")
        count = len(values) - lag
        context = np.empty((count, len(parameters)))
        for k, name in enumerate(parameters):
            whole = np.broadcast_to(one.options[name], len(values))
            context[:, k] = 0.5 * (whole[:-lag] + whole[lag:])  # in the middle of a pair
        columns.append((
            values[:-lag], (values[lag:] - values[:-lag])[:, None],
            np.full((count, 1), lag * one.step), context,
        ))  # fmt: skip
    z, increments, dt, context = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    more = 0 if closures is None else closures[0].shape[1]
    names = (*series[0].names, *(f"closure{i + 1}" for i in range(more)))
    return Pairs(names, z, increments, dt, context, tuple(parameters))
