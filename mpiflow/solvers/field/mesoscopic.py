r"""The Kac model on the scale of its kernel: a magnetisation m(t, x) and two equations for it.

Nonlocal [De Masi et al., Nonlinearity 7, 633 (1994)], the law of large numbers of the spins:

.. math:: \partial_t m = -m + \tanh(\beta (J * m + h)), \qquad
    F[m] = \langle -\tfrac12 m\, J * m - h m - S(m) / \beta \rangle,

with :math:`S = -\sum_\pm \frac{1 \pm m}2 \ln \frac{1 \pm m}2` and the mean over the grid.
Local (Allen-Cahn), for m small and smooth on the scale of the kernel:

.. math:: \partial_t m = \kappa \Delta m - r m - u m^3 + \beta h, \qquad
    \kappa = \beta M_2 / 2, \quad r = 1 - \beta, \quad u = \beta^3 / 3,

M_2 the second moment of the kernel along an axis. J is the quantised kernel of the spins
(:mod:`mpiflow.systems.kac`), so its sum is 1 and the critical temperature is 1.

Time unit: one attempt per spin. Energies are per site, k_B = 1. Both equations are solved on
:class:`~mpiflow.core.slabs.Slabs`, to the same bits on any number of ranks. On a GPU, of one rank,
PyTorch makes the same steps: within the same tolerance, and not to the same bits (simulated, not
yet run on a GPU).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from mpiflow.core import arrays, gpu
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.parallel import agreed
from mpiflow.core.slabs import Slabs
from mpiflow.solvers.field.transforms import TorchGrid, torch_device
from mpiflow.systems.kac import KacKernel

if TYPE_CHECKING:
    from mpi4py import MPI

#: Dormand and Prince, J. Comput. Appl. Math. 6, 19 (1980): stages 2 to 7, the last of which
#: is the new state, and new state less that of fourth order.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

_Start = tuple[np.ndarray, np.ndarray]
_Phi = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

#: Numbers that a sum of arrays handles at once: they stay in the cache.
_BAND = 2**13


class Equation:
    """What both equations share: the grid, the field h, steps under control.

    Parameters
    ----------
    kernel : the coupling of the spins
    temperature : T > 0
    shape : (ny, nx), points of the grid
    field : h, a number or (n, nx): this rank's slab
    block : sites a side of a grid point; the lattice has (ny block, nx block) sites
    comm : communicator, ``COMM_WORLD`` for None; every method is collective on it
    device : where :meth:`evolve` computes, ``cpu`` or, on one rank, ``cuda``; None: as the program
        has chosen

    Attributes
    ----------
    slabs : how the grid is cut; all fields are slabs (n, nx) float64
    evaluations : how often the right-hand side (or its nonlinear part) has been evaluated

    Raises
    ------
    InputError : no such shape, temperature, block, field or device, or a kernel too wide for the
        box
    """

    #: Bound of \|m\| by the equation, and the longest step.
    bound, longest = math.inf, math.inf
    #: What is of the grid beside the field h.
    constants: tuple[str, ...] = ()
    #: NumPy, or PyTorch where the state is on a device.
    _library: Any = np

    def __init__(
        self,
        kernel: KacKernel,
        temperature: float,
        shape: tuple[int, int],
        *,
        field: float | np.ndarray = 0.0,
        block: int = 1,
        comm: MPI.Intracomm | None = None,
        device: str | None = None,
    ) -> None:
        self.slabs = Slabs(comm, shape)
        self._device = self._torch_of(device)
        if not (temperature > 0 and math.isfinite(temperature)):
            raise InputError("temperature", temperature, "a finite number above 0", "Try 1.")
        if block < 1:
            raise InputError("block", block, "1 or more sites a side", "Try 8.")
        kernel.require_room((shape[0] * block, shape[1] * block))
        self.kernel, self.block = kernel, block
        self.temperature, self.beta = float(temperature), 1.0 / temperature
        with agreed(self.slabs.comm):
            self.field = arrays.real("field", field)
            if self.field.shape not in ((), self.slabs.local):
                allowed = f"a number or {self.slabs.local}"
                raise InputError("field", self.field.shape, allowed, "Cut it by rows.")
        self.evaluations = 0

    def _torch_of(self, name: str | None) -> Any:
        """The device of PyTorch that steps are made on; None: by NumPy. Collective."""
        here = gpu.of_simulation(name, self.slabs.comm, self.slabs.comm.size == 1)
        there = torch_device(Device(here.name, here.gpu)) if here.is_cuda else None
        if name == "cuda" and (there is None or self.slabs.comm.size > 1):
            allowed = "'cpu', or one rank with PyTorch on its GPU"
            raise InputError("device", name, allowed, "Use --device cpu, or comm=MPI.COMM_SELF.")
        return there

    # -- observables ---------------------------------------------------------------------

    def magnetization(self, m: np.ndarray) -> float:
        """The mean of m."""
        return self.slabs.total(m) / math.prod(self.slabs.shape)

    def phase_fraction(self, m: np.ndarray) -> float:
        """The share of grid points with m > 0."""
        return self.slabs.total(np.count_nonzero(m > 0)) / math.prod(self.slabs.shape)

    # -- time ----------------------------------------------------------------------------

    def evolve(
        self, m: np.ndarray, times: Sequence[float], tolerance: float = 1e-6
    ) -> Iterator[tuple[float, np.ndarray]]:
        """States at the given times; steps are as long as the tolerance allows, on all ranks.

        Parameters
        ----------
        m : (n, nx), the state at t = 0; it is not written to
        times : rising, 0 or later
        tolerance : largest error that a step may make at any point, by its own estimate

        Yields
        ------
        (t, m), m a new array that may be kept

        Raises
        ------
        InputError : m out of bounds or of another shape, times or a tolerance that cannot work
        """
        ends = [float(t) for t in times]
        rising = all(a < b for a, b in pairwise(ends))
        if not (rising and all(t >= 0 and math.isfinite(t) for t in ends)):
            raise InputError("times", ends[:8], "finite times, 0 or later, rising", "Sort them.")
        if not 1e-13 <= tolerance <= 0.1:  # more than rounding, less than m
            raise InputError("tolerance", tolerance, "1e-13 to 0.1", "Try 1e-6.")
        start = self._checked(m).copy()
        if self._device is None:
            return self._states(start, ends, tolerance)
        return self._states_there(start, ends, tolerance)

    def _states_there(
        self, m: np.ndarray, ends: list[float], tolerance: float
    ) -> Iterator[tuple[float, np.ndarray]]:
        """By PyTorch: this equation with all that is of the grid on its device."""
        import torch

        there: Any = copy.copy(self)
        there.slabs, there._library = TorchGrid(self.slabs.shape), torch
        for name in ("field", *self.constants):
            values = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            setattr(there, name, values.to(self._device))
        start = torch.as_tensor(m, dtype=torch.float64).to(self._device)
        for time, now in there._states(start, ends, tolerance):
            self.evaluations = there.evaluations
            yield time, now.cpu().numpy()

    def _states(
        self, m: np.ndarray, ends: list[float], tolerance: float
    ) -> Iterator[tuple[float, np.ndarray]]:
        t, aim = 0.0, 0.5 * tolerance**0.2
        start = self._start(m)
        for end in ends:
            while t < end:
                steps = math.ceil((end - t) / aim)  # as many of one length up to the end
                dt = (end - t) / steps
                new, new_start, error = self._step(m, start, dt)
                size = self.slabs.largest(error) / tolerance
                # Of fifth order for either kind of step. NaN is no error to accept.
                factor = 0.9 * size**-0.2 if size > 0 else 5.0
                aim = dt * min(max(factor, 0.2), 5.0) if size < math.inf else 0.2 * dt
                aim = min(aim, self.longest)
                if size <= 1:
                    t = end if steps == 1 else t + dt
                    m, start = new, new_start
                elif aim < 1e-12:
                    reach = f"one that steps can reach; at t = {t:.6g} none of {dt:.1g} did"
                    raise InputError("tolerance", tolerance, reach, "Look at the initial state.")
            yield end, _copy(m)

    def rhs(self, m: np.ndarray) -> np.ndarray:
        """d_t m, (n, nx)."""
        raise NotImplementedError

    def free_energy(self, m: np.ndarray) -> float:
        """F per site; it never increases along the equation at a fixed field h(x)."""
        raise NotImplementedError

    def _start(self, m: np.ndarray) -> Any:
        """What a step needs to know of the state that it starts from."""
        raise NotImplementedError

    def _step(self, m: np.ndarray, start: Any, dt: float) -> tuple[np.ndarray, Any, float]:
        """The state after dt, its own start, and the largest error on this rank."""
        raise NotImplementedError

    def _checked(self, m: np.ndarray) -> np.ndarray:
        with agreed(self.slabs.comm):
            m = arrays.real("m", m)
            if m.shape != self.slabs.local:
                raise InputError("m", m.shape, f"a slab of {self.slabs.local}", "Cut it by rows.")
            most = float(abs(m).max(initial=0.0))
            if not most <= self.bound:
                allowed = f"-{self.bound} to {self.bound} at all points"
                raise InputError("m", most, allowed, "Look at the field.")
        return m


class NonlocalEquation(Equation):
    r"""d_t m = -m + tanh(beta (J*m + h)), by steps of Dormand and Prince, 5(4).

    J*m is taken in Fourier space. The equation keeps \|m\| <= 1; a step that does not is
    refused and taken again shorter.

    Parameters
    ----------
    kernel, args, options : as for :class:`Equation`
    smooth : what m is between the points of a grid with block > 1. False: constant on blocks, J
        the mean over all pairs of sites of two blocks, which adds (block^2 - 1) / 6 to its
        second moment. True: a sum of the grid's Fourier modes, J that of the lattice; then
        block means of a smooth field follow the equation of the sites far more closely
        (measured in docs/theory.md).
    """

    constants = ("_symbol",)
    bound, longest = 1.0, 2.0  # up to there a step shrinks the error, and keeps its sign

    def __init__(self, kernel: KacKernel, *args: Any, smooth: bool = False, **options: Any) -> None:
        super().__init__(kernel, *args, **options)
        ny, nx = self.slabs.shape
        if smooth:
            along_y, along_x, rest = kernel.symbol((ny * self.block, nx * self.block))
            along_y = along_y[np.r_[0 : (ny + 1) // 2, -(ny // 2) : 0]]  # the grid's waves
        else:
            along_y, along_x, rest = kernel.symbol((ny, nx), self.block)
        along_y, along_x = along_y[:, None], along_x[self.slabs.columns]
        self._symbol = (along_y + along_x if kernel.nearest else along_y * along_x) - rest

    def convolve(self, m: np.ndarray) -> np.ndarray:
        """J*m, (n, nx)."""
        spectrum = self.slabs.forward(m)
        spectrum *= self._symbol
        return self.slabs.backward(spectrum, overwrite=True)

    def rhs(self, m: np.ndarray) -> np.ndarray:
        self.evaluations += 1
        out = self.convolve(m)
        out += self.field
        out *= self.beta
        self._library.tanh(out, out=out)
        out -= m
        return out

    def free_energy(self, m: np.ndarray) -> float:
        m = self._checked(m)
        density = m * (-0.5 * self.convolve(m) - self.field)
        entr = scipy.special.entr
        density -= self.temperature * (entr((1 + m) / 2) + entr((1 - m) / 2))
        return self.magnetization(density)  # the mean of any field

    def _start(self, m: np.ndarray) -> np.ndarray:
        return self.rhs(m)

    def _step(
        self, m: np.ndarray, start: np.ndarray, dt: float
    ) -> tuple[np.ndarray, np.ndarray, float]:
        slopes, new = [start], m
        for weights in _STAGES:
            new = _add(m, dt, weights, slopes)
            slopes.append(self.rhs(new))
        error = _largest(_add(self._library.zeros_like(m), dt, _ERROR, slopes))
        if _largest(new) > self.bound:
            error = math.inf
        return new, slopes[-1], error


class LocalEquation(Equation):
    r"""Allen-Cahn: d_t m = kappa Lap m - r m - u m^3 + beta h, by exponential steps.

    The Laplacian is that of Fourier space and the linear part is exact, so that no step is too
    long for kappa k^2. Steps of fourth order [Cox and Matthews, J. Comput. Phys. 176, 430
    (2002)], once whole and twice half; the halves count, the difference tells the error.

    The equation is :math:`\partial_t m = -\beta\, \delta F / \delta m` (mobility beta) with

    .. math:: F[m] = \frac1\beta \langle \tfrac\kappa2 |\nabla m|^2 + \tfrac r2 m^2
              + \tfrac u4 m^4 - \beta h m - \ln 2 \rangle.

    Up to m^2, and up to the second derivative, that is F of the nonlocal equation; the term of
    m^4 is beta^3 times it. \|m\| may exceed 1. Parameters as for :class:`Equation`.

    Attributes
    ----------
    kappa : in squares of grid points per time; kappa of the lattice over block^2
    r, u : coefficients of the reaction
    """

    constants = ("_linear",)

    def __init__(self, kernel: KacKernel, *args: Any, **options: Any) -> None:
        super().__init__(kernel, *args, **options)
        ny, nx = self.slabs.shape
        self.kappa = self.beta * kernel.second_moment / 2 / self.block**2
        self.r, self.u = 1.0 - self.beta, self.beta**3 / 3
        self.longest = self.temperature  # longer ones do not die out where 3 u m^2 is large
        along_y = (2 * math.pi * scipy.fft.fftfreq(ny)[:, None]) ** 2
        along_x = (2 * math.pi * scipy.fft.rfftfreq(nx)[self.slabs.columns]) ** 2
        self._linear = -self.kappa * (along_y + along_x) - self.r

    def rhs(self, m: np.ndarray) -> np.ndarray:
        self.evaluations += 1
        return self._flow(m) + self._reaction(m)

    def free_energy(self, m: np.ndarray) -> float:
        m = self._checked(m)
        density = m * (-0.5 * self._flow(m) + 0.25 * self.u * m**3 - self.beta * self.field)
        return self.temperature * (self.magnetization(density) - math.log(2))

    def _flow(self, m: np.ndarray) -> np.ndarray:
        return self.slabs.backward(self.slabs.forward(m) * self._linear)

    def _reaction(self, m: np.ndarray) -> np.ndarray:
        return -self.u * (m * m * m) + self.beta * self.field

    def _start(self, m: np.ndarray) -> _Start:
        return self.slabs.forward(m), self._pushed(m)

    def _pushed(self, m: np.ndarray) -> np.ndarray:
        self.evaluations += 1
        return self.slabs.forward(self._reaction(m))

    def _step(self, m: np.ndarray, start: _Start, dt: float) -> tuple[np.ndarray, _Start, float]:
        quarter = phi_functions(self._linear * (dt / 4), self._library)
        half = _doubled(*quarter)
        whole = self._exponential_step(start, dt, half, _doubled(*half))
        middle = self._exponential_step(start, dt / 2, quarter, half)
        new = self._exponential_step(self._start(middle), dt / 2, quarter, half)
        # The error is of fifth order: 1 of the whole step, 2 / 32 of the halves.
        return new, self._start(new), _largest(new - whole) / 15

    def _exponential_step(self, start: _Start, dt: float, half: _Phi, whole: _Phi) -> np.ndarray:
        """One step, with the phi functions of dt / 2 and of dt."""
        back = self.slabs.backward
        spectrum, push = start
        carried, first = half[0] * spectrum, dt / 2 * half[1]
        once = carried + first * push
        push_once = self._pushed(back(once))
        push_twice = self._pushed(back(carried + first * push_once, overwrite=True))
        last = half[0] * once + first * (2 * push_twice - push)
        push_end = self._pushed(back(last, overwrite=True))
        decay, one, two, three = whole
        out = decay * spectrum + (dt * (one - 3 * two + 4 * three)) * push
        out += (dt * (2 * two - 4 * three)) * (push_once + push_twice)
        out += (dt * (4 * three - two)) * push_end
        return back(out, overwrite=True)


def phi_functions(z: np.ndarray, library: Any = np) -> _Phi:
    r"""exp(z), and :math:`\phi_k(z) = \sum_j z^j / (j + k)!` for k = 1, 2, 3, at any real z.

    By the series where \|z\| < 1, else by :math:`\phi_{k+1} = (\phi_k - 1 / k!) / z`: each
    where it loses no digits.
    """
    near = abs(z) < 1
    x, far = z[near], z[~near]
    one, two, three = (library.empty_like(z) for _ in range(3))
    series = library.full_like(x, 1 / math.factorial(20))
    for j in range(19, 2, -1):
        series *= x
        series += 1 / math.factorial(j)
    three[near] = series
    two[near] = series = series * x + 0.5
    one[near] = series * x + 1.0
    one[~near] = ratio = library.expm1(far) / far
    two[~near] = ratio = (ratio - 1.0) / far
    three[~near] = (ratio - 0.5) / far
    return library.exp(z), one, two, three


def _doubled(exp: np.ndarray, one: np.ndarray, two: np.ndarray, three: np.ndarray) -> _Phi:
    """The phi functions of 2 z from those of z; only sums of positive terms."""
    return (
        exp * exp,
        (exp * one + one) / 2,
        (exp * two + one + two) / 4,
        (exp * three + one / 2 + two + three) / 8,
    )


def _add(
    m: np.ndarray, dt: float, weights: Sequence[float], slopes: Sequence[np.ndarray]
) -> np.ndarray:
    """m plus dt times the weighted sum of slopes, in a fixed order at every point."""
    if not isinstance(m, np.ndarray):
        total = _copy(m)
        for weight, slope in zip(weights, slopes, strict=True):
            if weight:
                total.add_(slope, alpha=dt * weight)
        return total
    out, rows = m.copy(), max(1, _BAND // max(1, m.shape[1]))
    term = np.empty((rows, m.shape[1]))
    for top in range(0, len(m), rows):
        band = out[top : top + rows]
        for weight, slope in zip(weights, slopes, strict=True):
            if weight:
                part = term[: len(band)]
                np.multiply(slope[top : top + rows], dt * weight, out=part)
                band += part
    return out


def _copy(m: Any) -> Any:
    """Of an array, or of a tensor of PyTorch."""
    return m.copy() if isinstance(m, np.ndarray) else m.clone()


def _largest(values: Any) -> float:
    """The largest size of a number; NaN if one is."""
    if isinstance(values, np.ndarray):
        return float(abs(values).max(initial=0.0))
    return float(abs(values).max())
