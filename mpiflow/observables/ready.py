r"""Observables that are ready, for ``observables=`` of a run, ``--observables`` and TOML files.

By name, with options behind colons, and with another name for the file before an equals sign:
``clusters``, ``structure_factor:coarse=8``, ``S8=structure_factor:coarse=8``. In Python each is a
function of the same options that makes an :class:`~mpiflow.observables.Observable`. They are of
square lattices; :func:`interface_length` and those of clusters are of whole numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiflow import metrics
from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.observables.clusters import Clusters, ClusterSizes
from mpiflow.observables.observable import Observable


def _require_square_lattice(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or min(shape) < 2:
        allowed = "sites or blocks on a square lattice, 2 or more a side"
        raise InputError("observables", f"{name} of {shape}", allowed, "Leave it out.")


@dataclass(frozen=True)
class StructureFactor:
    """S(k) of a field, over rings of wave vectors or over all of them."""

    full: bool = False
    state: int | None = None

    def dims(self, shape: tuple[int, ...], side: int) -> dict[str, np.ndarray]:
        """Wave numbers in radians a site, rising."""
        _require_square_lattice("structure_factor", shape)
        if not self.full:
            shortest = min(shape)
            return {"k": 2 * np.pi / (shortest * side) * np.arange(1, shortest // 2 + 1)}
        waves = (2 * np.pi * np.fft.fftshift(np.fft.fftfreq(n, side)) for n in shape)
        return dict(zip(("k_y", "k_x"), waves, strict=True))

    def __call__(self, field: np.ndarray) -> np.ndarray:
        values = field if self.state is None else field == self.state
        if self.full:  # one by one: the same bits however members are dealt
            return np.stack([np.fft.fftshift(metrics.spectrum(v)) for v in values])
        edges = np.arange(min(field.shape[1:]) // 2 + 1) + 0.5
        return np.stack([metrics.structure_factor(v, edges)[0] for v in values])


def structure_factor(
    coarse: int | None = None, full: bool = False, state: int | None = None
) -> Observable:
    r"""S(k) = \|sum_x m(x) e^{-i k x}\|^2 / N, mean over a ring of wave vectors or for each.

    N are the points of the field, so S of independent points of variance v is v, and the mean of S
    over all k is that of m^2 (Parseval). Rings are as wide as the least wave number of the shorter
    side, 2 pi / L, and k = 0 is in none of them.

    Parameters
    ----------
    coarse : of means over blocks of so many sites a side; unless given as the run saves them, or 1
    full : for every wave vector, over ``k_y`` and ``k_x``, not over ``k``
    state : of the field that is 1 where a site is in this state, else 0: what S of a Potts model
        means. Of sites only
    """
    what = StructureFactor(full, state)
    if state is not None and coarse not in (None, 1):
        raise InputError("coarse", coarse, "1 with state", "Leave it out.")
    return Observable(
        what,
        of="coarse",
        coarse=1 if state is not None else coarse,
        dims=what.dims,
        long_name="structure factor, \\|m_k\\|^2 / N".replace("\\", ""),
    )


@dataclass(frozen=True)
class Correlation:
    """C(r) of a field along its axes."""

    def dims(self, shape: tuple[int, ...], side: int) -> dict[str, np.ndarray]:
        """Distances in sites."""
        _require_square_lattice("correlation", shape)
        return {"r": side * np.arange(min(shape) // 2, dtype=np.float64)}

    def __call__(self, field: np.ndarray) -> np.ndarray:
        return np.stack([metrics.two_point_correlation(values) for values in field])


def correlation(coarse: int | None = None) -> Observable:
    """C(r) = <m(x) m(x + r)> - <m>^2, r along an axis, mean over x and over both axes.

    Parameters
    ----------
    coarse : as of :func:`structure_factor`
    """
    what = Correlation()
    name = "correlation of m at a distance along an axis"
    return Observable(what, of="coarse", coarse=coarse, dims=what.dims, long_name=name)


def clusters() -> Observable:
    """Clusters of equal neighbours on the periodic lattice: their number and sizes.

    ``number``, ``largest`` in sites, and ``mean``: of the cluster that a site is in,
    sum s^2 / sum s over clusters of s sites.
    """
    return Observable(
        Clusters(),
        of="part",
        dims={"clusters_of": ["number", "largest", "mean"]},
        long_name="clusters of equal neighbours: number, and largest and mean size in sites",
    )


def cluster_sizes(bins: int = 32) -> Observable:
    """How many clusters of equal neighbours there are of 1, 2 to 3, 4 to 7, ... sites.

    Parameters
    ----------
    bins : of sizes, each twice as large as the one before; larger clusters count in the last
    """
    _require("bins", bins, 1)
    return Observable(
        ClusterSizes(bins),
        of="part",
        dims={"log2_size": np.arange(bins)},
        long_name="clusters of 2^n sites up to twice as many",
    )


def unlike_pairs(states: np.ndarray) -> np.ndarray:
    """Bonds between unlike neighbours on the square lattice."""
    if states.ndim != 3 or states.dtype.kind == "f":
        shown = f"interface_length of {states.dtype} in {states.ndim - 1} dimensions"
        allowed = "whole numbers on a square lattice"
        raise InputError("observables", shown, allowed, "Leave it out.")
    own, right, down = states[:, 1:-1, 1:-1], states[:, 1:-1, 2:], states[:, 2:, 1:-1]
    return np.count_nonzero(own != right, (1, 2)) + np.count_nonzero(own != down, (1, 2))


def interface_length() -> Observable:
    """Bonds between unlike neighbours: the length of all interfaces in lattice constants."""
    return Observable(unlike_pairs, kind="sum", halo=1, long_name="bonds between unlike neighbours")


@dataclass(frozen=True)
class Histogram:
    """Counts of numbers in equal bins; those beyond the ends count in the first and the last."""

    bins: int
    low: float
    high: float

    def centres(self) -> np.ndarray:
        """Of the bins."""
        return self.low + (np.arange(self.bins) + 0.5) * (self.high - self.low) / self.bins

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(M, ...) to (M, bins) int64."""
        place = np.floor((values - self.low) * (self.bins / (self.high - self.low)))
        number = np.clip(place, 0, self.bins - 1).astype(np.int64)
        counts = [np.bincount(one.ravel(), minlength=self.bins) for one in number]
        return np.array(counts, np.int64).reshape(len(values), self.bins)


@dataclass(frozen=True)
class OfMembers:
    """The histogram of means of whole members."""

    of: Histogram

    def __call__(self, part: Any) -> np.ndarray:
        return self.of(part.sum_of(part.state) / part.sites)


def magnetization_histogram(
    bins: int = 50, low: float = -1.0, high: float = 1.0, coarse: int = 0
) -> Observable:
    """Histogram of m: of the members of an ensemble, or of blocks of sites of each member.

    Parameters
    ----------
    bins, low, high : equal bins; what lies beyond counts in the first and the last
    coarse : of means over blocks of so many sites a side; 0: of means of whole members
    """
    _require("bins", bins, 1)
    _require("coarse", coarse, 0)
    if not low < high:
        raise InputError("low, high", (low, high), "two rising numbers", "Try -1 and 1.")
    counts = Histogram(bins, low, high)
    dims = {"m": counts.centres()}
    if coarse:
        name = f"blocks of {coarse} x {coarse} sites with such a mean"
        return Observable(counts, of="coarse", coarse=coarse, dims=dims, long_name=name)
    name = "members with such a mean"
    return Observable(OfMembers(counts), of="part", dims=dims, long_name=name, pooled=True)


def _require(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(name, value, f"a whole number from {least} on", "Leave it out.")


#: By the names that options know them by.
READY: dict[str, Callable[..., Observable]] = {
    "structure_factor": structure_factor,
    "correlation": correlation,
    "clusters": clusters,
    "cluster_sizes": cluster_sizes,
    "interface_length": interface_length,
    "magnetization_histogram": magnetization_histogram,
}


def listed(texts: Sequence[str]) -> dict[str, Observable]:
    """Ready observables by their names in the file.

    Raises
    ------
    InputError : there is no such, or two have one name
    """
    out: dict[str, Observable] = {}
    for text in texts:
        first, colon, options = text.partition(":")
        own, equals, name = (word.strip() for word in first.partition("="))
        if own in out:
            allowed = "a name of its own for each"
            raise InputError("observables", text, allowed, f"Try {own}_2={text}.")
        out[own] = ready(f"{name if equals else own}{colon}{options}")
    return out


def ready(text: str) -> Observable:
    """The observable that a text names: ``NAME`` or ``NAME:OPTION=VALUE:...``.

    Raises
    ------
    InputError : there is none of that name, or it has no such option or value
    """
    name, *options = (word.strip() for word in text.split(":"))
    if name not in READY:
        remedy = did_you_mean(name, READY) or "See docs/observables.md."
        raise InputError("observables", name, f"one of {', '.join(READY)}", remedy)
    known = inspect.signature(READY[name]).parameters
    given: dict[str, Any] = {}
    for option in options:
        key, equals, value = (word.strip() for word in option.partition("="))
        if key not in known or not equals:
            words = ", ".join(f"{word}=" for word in known)
            allowed = f"{name}, with any of {words}" if known else f"{name}, which has no options"
            remedy = did_you_mean(key, known) or f"Try {name}."
            raise InputError("observables", text, allowed, remedy)
        given[key] = _read(text, key, value, str(known[key].annotation))
    return READY[name](**given)


def _read(text: str, key: str, value: str, annotation: str) -> Any:
    """The value of an option, of the type that its function names."""
    if annotation == "bool":
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise InputError("observables", text, f"{key}=true or {key}=false", "Correct it.")
    whole = annotation.startswith("int")
    try:
        return int(value) if whole else float(value)
    except ValueError:
        allowed = f"{key}= a {'whole ' if whole else ''}number"
        raise InputError("observables", text, allowed, "Correct it.") from None
