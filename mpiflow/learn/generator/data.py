r"""Fields of runs at equal times, and the rates of change that a generator is learned from.

Which estimate of :math:`\partial_t m` is right depends on where the noise comes from.

*Measured* noise: a smooth solution is observed with independent errors in every value. A rate
from frames on both sides (orders 2 and 4, or a local polynomial, Savitzky-Golay) has an error
that is independent of the value that it belongs to; order 1 shares a value with it, which biases
A by :math:`\sigma^2 / (\delta t \, \mathrm{var}\, m)`. What is left is that F is evaluated at
values with errors, which pulls all slopes down (errors in variables), most for short waves, of
which there is little. A second value of the field with independent errors, taken from other
frames round the same time, is an *instrument* that removes it to first order.

*Dynamic* noise: block means of a microscopic run are themselves the state. The rate of a block
of spins is :math:`-m + \langle \tanh \beta h_\gamma \rangle` with the noisy m of the same spins,
so that increments *forward* in time, :math:`E[m(t + \delta t) - m(t) \mid m(t)]`, are those of
the generator without any bias but of order :math:`\delta t`, which
:mod:`mpiflow.learn.generator.model` removes. Values before t are of no use: given m(t), the past
is correlated with the noise in it, so that central differences are wrong (at equilibrium they
vanish). Nor is the noise a nuisance: it excites all waves alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.fft

from mpiflow.core import noise
from mpiflow.core.errors import InputError
from mpiflow.files import segments
from mpiflow.files.drives import require_constant
from mpiflow.files.trajectory import Trajectory
from mpiflow.solvers.field.mesoscopic import NonlocalEquation
from mpiflow.systems.kac import KacKernel

if TYPE_CHECKING:
    from mpi4py import MPI

Noise = Literal["dynamic", "measured", "none"]
#: Finite differences: offsets of frames, and weights of the rate, by order.
DIFFERENCES = {
    1: ((0, 1), (-1.0, 1.0)),
    2: ((-1, 0, 1), (-0.5, 0.0, 0.5)),
    4: ((-2, -1, 0, 1, 2), (1 / 12, -2 / 3, 0.0, 2 / 3, -1 / 12)),
}


@dataclass(frozen=True)
class Rates:
    """Fields, their rates of change, and instruments.

    Attributes
    ----------
    state, rate : (n, M, M) float64, m and its observed rate
    instrument : (n, M, M), m with independent errors; ``state`` itself where it has none
    beta, field, run : (n,), inverse temperature, external field and number of the run
    interval : dt if ``rate`` is (m(t + dt) - m(t)) / dt, of which the error of order dt is to be
        removed; 0 if there is none worth removing
    apart : how many rows further in a run a rate has no frame in common with this one but, of
        forward increments, an end
    """

    state: np.ndarray
    rate: np.ndarray
    instrument: np.ndarray
    beta: np.ndarray
    field: np.ndarray
    run: np.ndarray
    interval: float = 0.0
    apart: int = 1


@dataclass(frozen=True)
class FieldData:
    """Observed fields.

    Parameters
    ----------
    fields : (runs, times, M, M) float64, -1 to 1 but for noise; NaN behind the end of a run
    times : (times,), with equal steps
    temperature, field : (runs,), of each run
    frames : (runs,), how many each run has; all of the ``times`` if left out
    """

    fields: np.ndarray
    times: np.ndarray
    temperature: np.ndarray
    field: np.ndarray
    frames: np.ndarray | None = None

    def __post_init__(self) -> None:
        fields, times = np.asarray(self.fields), np.asarray(self.times)
        if fields.ndim != 4 or fields.shape[2] != fields.shape[3] or fields.shape[2] < 4:
            raise InputError(
                "fields", fields.shape, "(runs, times, M, M) with M of 4 or more", "Reshape it."
            )
        runs, frames = fields.shape[:2]
        there = np.arange(frames) < self.counts[:, None]
        if not np.isfinite(fields[there]).all():
            raise InputError("fields", "nan or inf", "finite numbers", "Drop those runs.")
        for name, shape in (("times", (frames,)), ("temperature", (runs,)), ("field", (runs,))):
            if np.shape(getattr(self, name)) != shape:
                raise InputError(name, np.shape(getattr(self, name)), f"shape {shape}", "Fix it.")
        steps = np.diff(times)
        if frames < 2 or not (steps > 0).all() or np.ptp(steps) > 1e-6 * steps.mean():
            raise InputError("times", frames, "2 or more times in equal steps", "Save so.")
        if not np.all(np.asarray(self.temperature) > 0):
            raise InputError("temperature", self.temperature, "above 0", "Fix it.")
        if not np.isfinite(self.field).all():
            raise InputError("field", self.field, "finite numbers", "Fix it.")

    @property
    def points(self) -> int:
        """M, points a side."""
        return int(self.fields.shape[2])

    @property
    def interval(self) -> float:
        """Time between frames."""
        return float((self.times[-1] - self.times[0]) / (len(self.times) - 1))

    @property
    def counts(self) -> np.ndarray:
        """Frames of each run, (runs,)."""
        runs, frames = np.shape(self.fields)[:2]
        return np.full(runs, frames) if self.frames is None else np.asarray(self.frames)

    def select(self, runs: np.ndarray | Sequence[int]) -> FieldData:
        """Some of the runs, by a mask or by numbers."""
        some = np.asarray(runs)
        mine = self.fields[some], self.times, self.temperature[some], self.field[some]
        return FieldData(*mine, self.counts[some])

    def with_noise(self, level: float, seed: int) -> FieldData:
        """With independent Gaussian errors of ``level`` times the root mean square of the fields.

        Keyed by run and frame (stream "sample").
        """
        if not (level >= 0 and np.isfinite(level)):
            raise InputError("level", level, "a finite number, 0 or more", "Try 0.01.")
        if level == 0:
            return self
        size = level * float(np.sqrt(np.nanmean(self.fields**2)))
        members = np.arange(len(self.fields))
        out = np.array(self.fields, np.float64)
        for frame in range(len(self.times)):
            draws = noise.normals(seed, "sample", members, frame + 1, self.points**2)
            out[:, frame] += size * draws.reshape(out[:, frame].shape)
        return replace(self, fields=out)

    def smoothed(self, width: float) -> FieldData:
        """Fields smoothed in space by a Gaussian of ``width`` points, a fitted smooth function.

        The convolution with J commutes with it, so it biases F through its curvature only.
        """
        if not (width >= 0 and np.isfinite(width)):
            raise InputError("width", width, "a finite number, 0 or more", "Try 1.")
        k = 2 * np.pi * np.fft.fftfreq(self.points)
        line = np.exp(-0.5 * (width * k) ** 2)
        damped = scipy.fft.rfft2(self.fields) * (line[:, None] * line[: self.points // 2 + 1])
        return replace(self, fields=scipy.fft.irfft2(damped, s=(self.points,) * 2))

    def rates(
        self,
        order: int = 2,
        *,
        window: int = 0,
        degree: int = 3,
        instrument: bool = False,
        every: int = 1,
    ) -> Rates:
        """States and rates at all frames that have the neighbours needed.

        Parameters
        ----------
        order : 1 (forward, for microscopic runs), 2 or 4 (central differences)
        window : instead, the odd number of frames through which a polynomial of ``degree`` is
            fitted (Savitzky-Golay), which gives the state and its rate in their middle
        instrument : for measured noise: the state from every second frame of those that the rate
            takes, and an instrument from the others. Both have weights that are even in time
            and the rate odd ones, so that the errors of all three are uncorrelated
        every : take one frame of so many
        """
        offsets, value, slope = _stencil(order, window, degree)
        other = value
        if instrument:
            if order == 1 and not window:
                raise InputError("order", 1, "2 or 4 with instruments", "Use 2, or a window.")
            value, other = (_value(offsets, offsets % 2 == odd, degree) for odd in (0, 1))
        frames = len(self.times)
        middle = np.arange(-int(offsets.min()), frames - int(offsets.max()))[::every]
        if len(middle) == 0:
            raise InputError(
                "times", frames, f"more frames for order {order}, window {window}", "Save more."
            )

        def combined(weights: np.ndarray, at: np.ndarray) -> np.ndarray:
            total = sum(
                w * self.fields[:, at + int(o)]
                for o, w in zip(offsets, weights, strict=True)
                if w != 0
            )
            return np.asarray(total)[there]

        # Runs that are shorter than others have fewer of them.
        there = middle + int(offsets.max()) < self.counts[:, None]
        run = np.nonzero(there)[0]
        state = combined(value, middle)
        return Rates(
            state,
            combined(slope / self.interval, middle),
            combined(other, middle) if instrument else state,
            1.0 / np.asarray(self.temperature, float)[run],
            np.asarray(self.field, float)[run],
            run,
            self.interval if order == 1 and not window else 0.0,
            -(-int(np.ptp(offsets) + (order != 1 or window > 0)) // every),
        )

    def rates_of(self, noise: Noise, window: int = 7) -> Rates:
        """The right estimate for where the noise is from; see the module.

        Parameters
        ----------
        noise : ``dynamic``, ``measured`` or ``none``
        window : frames that a rate is taken from where it is measured
        """
        if noise == "measured":
            return self.rates(window=window, instrument=True)
        return self.rates(1 if noise == "dynamic" else 4)


def _stencil(order: int, window: int, degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets of frames, and the weights that make of them the state and its rate times dt."""
    if window:
        if window < 3 or window % 2 == 0 or not 1 <= degree < window:
            raise InputError(
                "window", window, f"odd, 3 or more, above the degree {degree}", "Try 7 and 3."
            )
        offsets = np.arange(window) - window // 2
        fit = np.linalg.pinv(np.vander(offsets.astype(float), degree + 1, increasing=True))
        return offsets, fit[0], fit[1]
    if order not in DIFFERENCES:
        raise InputError("order", order, f"one of {sorted(DIFFERENCES)}", "Use 2.")
    near, slope = DIFFERENCES[order]
    offsets = np.array(near)
    return offsets, (offsets == 0).astype(float), np.array(slope)


def _value(offsets: np.ndarray, some: np.ndarray, degree: int) -> np.ndarray:
    """Weights of the value in the middle of a polynomial through some of the frames."""
    out = np.zeros(len(offsets))
    powers = np.arange(min(degree + 1, some.sum()))
    out[some] = np.linalg.pinv(offsets[some, None].astype(float) ** powers)[0]
    return out


def random_starts(
    runs: int, points: int, seed: int, *, amplitude: float = 0.7, lengths: Sequence[float]
) -> np.ndarray:
    r"""Smooth random fields to start from, (runs, M, M) float64, inside (-1, 1).

    :math:`m = \tanh(\mu + a\,g)`, g a Gaussian field of covariance :math:`e^{-r^2/2\xi^2}`,
    with :math:`\mu` spread evenly over (-1/2, 1/2), by steps of the golden ratio from run to run.
    Run i has the correlation length ``lengths[i]`` points, over and over: the kernel is learned
    on the waves that are excited, the law on the values that I and m take, and on no others.
    """
    k = 2 * np.pi * np.fft.fftfreq(points)
    out = np.empty((runs, points, points))
    offset = noise.uniforms(seed, "sample", 0, 0, np.arange(1))[0, 0]
    mean = (offset + np.arange(runs) * (np.sqrt(5) - 1) / 2) % 1.0 - 0.5
    white = noise.normals(seed, "sample", np.arange(runs), 0, points**2)
    for i in range(runs):
        line = np.exp(-0.25 * (lengths[i % len(lengths)] * k) ** 2)
        filtered = np.outer(line, line[: points // 2 + 1])
        g = scipy.fft.irfft2(
            filtered * scipy.fft.rfft2(white[i].reshape(points, points)), s=(points,) * 2
        )
        out[i] = np.tanh(mean[i] + amplitude * g / g.std())
    return out


def from_equation(
    kernel: KacKernel,
    starts: np.ndarray,
    times: np.ndarray,
    temperature: np.ndarray,
    field: np.ndarray,
    *,
    block: int,
    comm: MPI.Intracomm,
    tolerance: float = 1e-8,
) -> FieldData:
    """Solutions of the nonlocal equation, tolerance as in :mod:`mpiflow.solvers.field.mesoscopic`.

    Parameters
    ----------
    starts : (runs, M, M), the fields at times[0]
    temperature, field : (runs,)
    block : sites a side of a point of the grid
    comm : ranks that share each field; every rank must hold whole fields, so one rank
    """
    if comm.size != 1:
        raise InputError("comm", comm.size, "a communicator of one rank", "Use COMM_SELF.")
    starts, times = np.asarray(starts, np.float64), np.asarray(times, np.float64)
    fields = np.empty((len(starts), len(times), *starts.shape[1:]))
    for i, start in enumerate(starts):
        equation = NonlocalEquation(
            kernel, temperature[i], start.shape, field=field[i], block=block, comm=comm
        )
        for j, (_, m) in enumerate(equation.evolve(start, (times - times[0]).tolist(), tolerance)):
            fields[i, j] = m
    return FieldData(fields, times, np.asarray(temperature, float), np.asarray(field, float))


def from_files(paths: Sequence[str | Path]) -> FieldData:
    """Data of Trajectory files of Kac runs: block means, times, temperature and field.

    Runs may have different numbers of frames, at the same distance; members are runs of their own.
    Fields of other programs will do, too, if their files say temperature and field.

    Raises
    ------
    InputError : no files, files without block means, or of different sizes, times or kernels
    """
    if not paths:
        raise InputError("files", "none", "one Trajectory file or more", "Name some.")
    fields: list[np.ndarray] = []
    times: list[np.ndarray] = []
    conditions: list[tuple[float, float]] = []
    first: tuple[Any, ...] | None = None
    for path in paths:
        with Trajectory(path) as file:
            config = file.config
            segments.require_one(file.segments, path, "a run of equal times")
            if "coarse_magnetization" not in file:
                raise InputError(
                    "files", str(path), "a run with block means", "Save it with --coarse."
                )
            if config.get("temperature") is None or config.get("field") is None:
                remedy = "Give --temperature and --field to mpiflow import."
                raise InputError("files", str(path), "known temperature and field", remedy)
            require_constant(file, ("temperature", "field"))
            if config.get("field_file") is not None or "site_field" in file:
                raise InputError("files", str(path), "a uniform field", "Leave it out.")
            mine = (
                config.get("gamma"), config.get("coarse"), file["coarse_magnetization"].shape[-2:],
            )  # fmt: skip
            if first is None:
                first = mine
            (part,) = [p for p in file.segments if len(p.frames)][:1] or file.segments[:1]
            some = part.equal(file.time, path)
            both = min(len(some), len(times[0])) if times else 0
            if len(part.frames) < len(file) or len(some) < 2:
                raise InputError("files", str(path), "frames at equal times", "Use another run.")
            if mine != first or (
                times and not np.allclose(times[0][:both], file.time[some][:both])
            ):
                raise InputError(
                    "files", str(path), f"gamma, blocks, shape and times of {paths[0]}: "
                    f"{json.dumps(first)}", "Learn from alike runs.",
                )  # fmt: skip
            seen = np.asarray(file["coarse_magnetization"][some], np.float64)
            members = seen.reshape(len(seen), -1, *seen.shape[-2:]).swapaxes(0, 1)
            fields += list(members)
            times += [file.time[some]] * len(members)
            conditions += [(float(config["temperature"]), float(config["field"]))] * len(members)
    counts = np.array([len(one) for one in fields])
    longest = int(np.argmax(counts))
    whole = np.full((len(fields), *fields[longest].shape), np.nan)
    for row, one in zip(whole, fields, strict=True):
        row[: len(one)] = one
    temperature, field = np.transpose(conditions)
    return FieldData(whole, times[longest], temperature, field, counts)
