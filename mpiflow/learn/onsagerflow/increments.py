r"""Increments of fields of block means, and sums over them, streamed.

A run gives triples (field m(t), its place, m(t + tau) - m(t)) for several lags tau. Given the
field at time t, means over increments are without bias but of order tau: the *rates at lag 0*

.. math:: r = \sum_l w_l \frac{\delta_l}{\tau_l}, \qquad
          q = \frac N2 \sum_l w_l \frac{\delta_l^2}{\tau_l}, \qquad
          w_l = \prod_{k \ne l} \frac{\tau_k}{\tau_k - \tau_l},

extrapolate each increment by the polynomial through all lags, which leaves
:math:`O(\tau^L)` of L lags. Extrapolation makes a single r noisier, but errors of r at
successive frames cancel in sums: over slow fields these are as good as those of the first lag.

For independent flips of N spins with rates of heat bath, at :math:`x = \beta u`,

.. math:: E\,r = -m + \tanh x, \qquad E\,q = 1 - m \tanh x = (1 - m^2) - m\,E\,r,

so that :math:`q + m r` has the mean :math:`1 - m^2 = K / \beta` of local equilibrium (E r = 0) at
*any* x, where q alone has it in local equilibrium only. Sums are of fixed size and add up: over
runs, over files, over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiflow.core import arrays, inputs
from mpiflow.core.errors import InputError
from mpiflow.files.drives import require_constant
from mpiflow.files.runs import Paths, find_runs
from mpiflow.files.trajectory import Trajectory
from mpiflow.learn.run_dataset import RunDataset

if TYPE_CHECKING:
    from mpi4py import MPI

NAME = "coarse_magnetization"
LAGS = (1, 2, 3)
#: Part of the values that may be beyond -1 and 1, where Gaussian noise carries a few.
BEYOND = 0.01
#: Frames are read so many values at a time; runs are cut into so many groups for errors.
VALUES, SEGMENTS, GROUPS = 2**16, 4, 32


@dataclass(frozen=True)
class FieldRun:
    """Block means of one run.

    Parameters
    ----------
    fields : (frames, ..., M, M), -1 to 1; an array, or anything that gives arrays for slices
        of frames. Axes between are members
    interval : time between frames, in attempts per spin
    temperature : T > 0
    spins : N, spins in a block
    field : h, a number or (M, M)
    """

    fields: Any
    interval: float
    temperature: float
    spins: int
    field: float | np.ndarray = 0.0

    def __post_init__(self) -> None:
        shape = tuple(self.fields.shape)
        if len(shape) < 3 or shape[-1] != shape[-2] or shape[-1] < 4:
            raise InputError("fields", shape, "(frames, ..., M, M), M of 4 or more", "Reshape it.")
        for name in ("interval", "temperature", "spins"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise InputError(name, value, "a finite number above 0", "Look at the run.")
        h = np.asarray(self.field, float)
        if h.shape not in ((), shape[-2:]) or not np.isfinite(h).all():
            raise InputError("field", h.shape, f"finite, a number or {shape[-2:]}", "Cut it.")

    @property
    def beta(self) -> float:
        """1 / T."""
        return 1.0 / self.temperature

    def windows(self, lags: Sequence[int] = LAGS) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Fields m (n, M, M), increments (lags, n, M, M), and the group 0..3 by time.

        Raises
        ------
        InputError : lags do not rise from 1 or more, or the run has no frames for them
        """
        steps = _steps(lags)
        last, shape = int(steps[-1]), tuple(self.fields.shape)
        starts = shape[0] - last
        if starts < 1:
            raise InputError("frames", shape[0], f"more than the longest lag, {last}", "Save more.")
        chunk = max(1, VALUES // int(np.prod(shape[1:])))
        cuts = [starts * k // SEGMENTS for k in range(SEGMENTS + 1)]
        for group in range(SEGMENTS):
            for first in range(cuts[group], cuts[group + 1], chunk):
                n = min(chunk, cuts[group + 1] - first)
                seen = np.asarray(self.fields[first : first + n + last], np.float64)
                if not np.isfinite(seen).all():
                    raise InputError("fields", "nan or inf", "finite numbers", "Drop the run.")
                if np.mean(np.abs(seen) > 1) > BEYOND:
                    found = f"up to {np.abs(seen).max():g}"
                    remedy = "Import the field anew, with a --scale that keeps it within."
                    raise InputError("fields", found, "means between -1 and 1", remedy)
                m, grid = seen[:n], (-1, *shape[-2:])
                steps_of = [(seen[lag : lag + n] - m).reshape(grid) for lag in lags]
                yield m.reshape(grid), np.stack(steps_of), group


class _Frames:
    """Block means of some frames of a run of a dataset, read slice by slice."""

    def __init__(
        self, data: RunDataset, number: int, frames: np.ndarray, shape: tuple[int, ...]
    ) -> None:
        self.data, self.number, self.frames = data, number, frames
        self.shape = (len(frames), *shape)

    @property
    def path(self) -> Path:
        return self.data.paths[self.number]

    def __getitem__(self, some: slice) -> np.ndarray:
        frames = self.frames[some]
        if not len(frames):
            return np.empty((0, *self.shape[1:]), np.float32)
        first, last = int(frames[0]), int(frames[-1])
        return self.data.frames(self.number, slice(first, last + 1))[NAME][frames - first]


def runs_from_files(where: Paths | RunDataset) -> list[FieldRun]:
    """Runs of ``mpiflow simulate kac|ising --coarse b``; fields stay in the files.

    Files may have any numbers of frames. One that was resumed with other parameters, or another
    distance of frames, gives a run for each of its parts.

    Parameters
    ----------
    where : files, a folder, a pattern, or several, as for :func:`mpiflow.files.runs.find_runs`; or
    a
        dataset with ``coarse_magnetization``, for example one of the parts of a split

    Raises
    ------
    InputError : a file has no block means, no temperature, or frames at unequal times
    """
    if isinstance(where, RunDataset):
        if NAME not in where.variables:
            raise InputError("variables", where.variables, f"some with {NAME}", "Add it.")
        parts = [_runs(path, where, number) for number, path in enumerate(where.paths)]
    else:
        parts = [_runs(path) for path in find_runs(where)]
    return [run for some in parts for run in some]


def _runs(path: Path, data: RunDataset | None = None, number: int = 0) -> list[FieldRun]:
    """A run for each part of the file with its own parameters or distance of frames."""
    with Trajectory(path) as file:
        config, time = file.config, np.asarray(file.time)
        block = config.get("coarse")
        if NAME not in file or not block or "temperature" not in config:
            allowed, remedy = "a run of kac or ising with block means", "Save it with --coarse 8."
            if file.attributes["system"] == "imported":
                allowed = "an imported run with a temperature and block means"
                remedy = "Import it with --temperature, and of spins with --block 8."
            raise InputError("runs", str(path), allowed, remedy)
        require_constant(file, ("temperature", "field"))
        shape = tuple(file.sizes[d] for d in file.variables[NAME].dims)
        parts = [part for part in file.segments if len(part.frames)]
        fields_of_sites = file["site_field"][...] if "site_field" in file else None
    if shape[-1] != shape[-2] or shape[-1] < 4:
        found, allowed = f"{path}: {shape[-2:]} blocks", "as many along y as along x, 4 or more"
        raise InputError("runs", found, allowed, "Use runs of square lattices.")
    if data is None:  # runs need not be alike
        data = RunDataset(path, (NAME,), allow_incomplete=True)
    runs = []
    for part in parts:
        frames = part.equal(time, path)
        own = {**config, **part.config}
        h: float | np.ndarray = float(own.get("field") or 0.0)
        if fields_of_sites is not None:
            h = h + _means(fields_of_sites, shape[-2:], int(block))
        elif own.get("field_file") is not None:
            known = Path(own["field_file"])
            inputs.checked("field_file", [known], (config.get("inputs") or {}).get("field_file"))
            h = h + _block_means(known, shape[-2:], int(block))
        steps = np.diff(time[frames])
        interval = float(steps.mean()) if len(steps) else 1.0
        fields = _Frames(data, number, frames, shape)
        runs.append(FieldRun(fields, interval, float(own["temperature"]), int(block) ** 2, h))
    return runs


def _means(h: np.ndarray, shape: tuple[int, ...], block: int) -> np.ndarray:
    ny, nx = shape
    return np.asarray(h.reshape(ny, block, nx, block).mean(axis=(1, 3)), np.float64)


def _block_means(path: Path, shape: tuple[int, ...], block: int) -> np.ndarray:
    """h(x) of a run on its blocks."""
    allowed = f"h(x) of a lattice of {shape} blocks of {block}"
    h = arrays.mapped("field_file", path, allowed)
    try:
        return _means(h, shape, block)
    except ValueError as error:
        raise InputError("field_file", str(path), allowed, f"Reading said: {error}.") from error


def lag_weights(lags: Sequence[int] | np.ndarray) -> np.ndarray:
    """w (lags,): the polynomial through values at all lags has the value w @ values at 0."""
    t = np.asarray(lags, float)
    ratio = [np.delete(t, i) / (np.delete(t, i) - t[i]) for i in range(len(t))]
    return np.array([r.prod() for r in ratio])


def rates(
    increments: np.ndarray, interval: float, spins: int, lags: Sequence[int] = LAGS
) -> tuple[np.ndarray, np.ndarray]:
    """r and q of the module from increments (lags, ...), both (...)."""
    scaled = lag_weights(lags) / (interval * np.asarray(lags))
    r = np.tensordot(scaled, increments, 1)
    return r, 0.5 * spins * np.tensordot(scaled, increments * increments, 1)


@dataclass(frozen=True)
class Local:
    """Means in bins, each array (bins,) or (bins, bins of the second value).

    Attributes
    ----------
    count : how many increments
    m : the mean of m in the bin
    drift, drift_error : E r
    half_variance, half_variance_error : N / 2 times the variance of increments per time, E q
    equilibrium, equilibrium_error : E (q + m r), which is K / beta; see the module
    lag_bias : of the drift and of q, relative to the size of q: what the last lag changed
    """

    count: np.ndarray
    m: np.ndarray
    drift: np.ndarray
    drift_error: np.ndarray
    half_variance: np.ndarray
    half_variance_error: np.ndarray
    equilibrium: np.ndarray
    equilibrium_error: np.ndarray
    lag_bias: np.ndarray


def _steps(lags: Sequence[int]) -> np.ndarray:
    """Lags in frames; raises unless they rise from 1 or more."""
    steps = np.asarray(lags)
    if steps.ndim != 1 or steps.size == 0 or steps[0] < 1 or (np.diff(steps) < 1).any():
        raise InputError("lags", tuple(lags), "whole numbers rising from 1 or more", "Try 1,2.")
    return steps


class IncrementSums:
    """Sums over increments in bins of m, and of a second value if wanted; for one temperature.

    Parameters
    ----------
    edges : (bins + 1,) of m
    lags : in frames
    second_edges : of the second value; what is outside is left out

    Attributes
    ----------
    sums : (groups, bins, second bins, 2 + 3 lags): number, m, and for each lag the drift
        d / tau, N d^2 / 2 tau and m d / tau. Groups are parts of runs, for errors
    """

    def __init__(
        self,
        edges: np.ndarray | None = None,
        lags: Sequence[int] = LAGS,
        second_edges: np.ndarray | None = None,
    ) -> None:
        self.edges = np.linspace(-1, 1, 42) if edges is None else np.asarray(edges, float)
        self.second_edges = np.array([-np.inf, np.inf]) if second_edges is None else second_edges
        for name, e in (("edges", self.edges), ("second_edges", self.second_edges)):
            if np.ndim(e) != 1 or len(e) < 2 or not (np.diff(e) > 0).all():
                raise InputError(name, e, "rising numbers, 2 or more", "Use np.linspace.")
        _steps(lags)
        self.lags = tuple(lags)
        shape = (GROUPS, len(self.edges) - 1, len(self.second_edges) - 1, 2 + 3 * len(self.lags))
        self.sums = np.zeros(shape)

    def add(
        self,
        run: FieldRun,
        number: int = 0,
        second: Callable[[np.ndarray, FieldRun], np.ndarray] | None = None,
    ) -> None:
        """Add a run, the ``number``-th of all; ``second`` of fields (n, M, M) is the second value.

        Parts of runs go to groups in turn: the error is one of independent runs if there are many.
        """
        bins, others = self.sums.shape[1:3]
        scale = 1.0 / (run.interval * np.asarray(self.lags))
        for m, d, part in run.windows(self.lags):
            i = np.clip(np.digitize(m, self.edges[1:-1]), 0, bins - 1)
            inside = (m >= self.edges[0]) & (m <= self.edges[-1])
            if second is not None:
                j = np.digitize(second(m, run), self.second_edges) - 1
                inside &= (j >= 0) & (j < others)
                i = i * others + j
            i, m, d = i[inside], m[inside], d[:, inside]
            per_lag = (d * s for d, s in zip(d, scale, strict=True))
            columns = [np.ones_like(m), m]
            for raw, rate in zip(d, per_lag, strict=True):
                columns += [rate, 0.5 * run.spins * rate * raw, m * rate]
            size = bins * others
            total = np.stack([np.bincount(i, column, size) for column in columns], axis=-1)
            group = (number * SEGMENTS + part) % GROUPS
            self.sums[group] += total.reshape(bins, others, -1)

    def reduce(self, comm: MPI.Intracomm) -> None:
        """Add up what all ranks have. Collective."""
        self.sums = total(self.sums, comm)

    def __iadd__(self, other: IncrementSums) -> IncrementSums:
        self.sums += other.sums
        return self

    def at_lag(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean d / tau and N d^2 / 2 tau over bins at one of the lags, (bins, second bins)."""
        s = self.sums.sum(axis=0)
        with np.errstate(invalid="ignore"):
            return tuple(s[..., 2 + 3 * index + k] / s[..., 0] for k in (0, 1))

    def local(self) -> Local:
        """Means at lag 0 with jackknife errors over groups; nan in bins with no data."""
        used = self.sums[self.sums[..., 0].sum(axis=(1, 2)) > 0]
        if len(used) < 2:
            raise InputError("groups", len(used), "data in 2 or more", "Add longer runs.")
        whole = used.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self._means(whole)
            left = np.stack([self._means(whole - part) for part in used])
            n = len(used)
            error = np.sqrt((n - 1) / n * np.nansum((left - means) ** 2, axis=0))
            m = whole[..., 1] / whole[..., 0]
            last = abs(means[:2] - self._means(whole, len(self.lags) - 1)[:2]) / means[1]
        fields = [a for pair in zip(means, error, strict=True) for a in pair]
        arrays = [whole[..., 0], m, *fields, last.max(axis=0)]
        flat = (a[:, 0] if a.shape[1] == 1 else a for a in arrays)
        return Local(*flat)

    def _means(self, sums: np.ndarray, lags: int | None = None) -> np.ndarray:
        """E r, E q, E (q + m r) from the first ``lags`` lags, (3, bins, second bins)."""
        some = max(1, len(self.lags) if lags is None else lags)
        w = lag_weights(self.lags[:some])
        values = sums[..., 2:].reshape(*sums.shape[:-1], -1, 3)[..., :some, :]
        r, q, mr = np.moveaxis(np.tensordot(values, w, ((-2,), (0,))), -1, 0) / sums[..., 0]
        return np.stack([r, q, q + mr])


def total(values: np.ndarray, comm: MPI.Intracomm | None) -> np.ndarray:
    """The sum over all ranks. Collective; without a communicator the values themselves."""
    return values if comm is None else comm.allreduce(values)
