r"""A field of block means that fluctuates: a law, a coupling and noise, in steps of one length.

Blocks of N = block^2 spins have means m_i and feel :math:`u = J * m + h`. With

.. math:: F = \sum_i s(m_i) - \tfrac12 m_i (J * m)_i - h_i m_i

they move by one of the structures of :mod:`mpiflow.systems.field_law`, whose equations have the
stationary law :math:`e^{-\beta N F}`, for ``cosh`` with the entropy of N spins that do not feel
themselves, which :class:`~mpiflow.systems.field_law.FiniteLaw` gives the other. J is that of
:class:`~mpiflow.solvers.field.mesoscopic.NonlocalEquation`.

The steps of both are described in :mod:`mpiflow.solvers.field.steps`, and of second order: a
step dt is made of as many equal inner steps as it takes for variances within 1 % of that law: more
for longer dt, lower temperatures, stronger fields and couplings. Noise is a function of (seed,
member, half step, inner step, global row and column): the same bits on any number of ranks. Time
unit: one attempt per spin; k_B = 1.

On a GPU (simulated and assembled, not yet run on one) blocks advance by the same rules and the same
noise. J*m is that of :mod:`~mpiflow.solvers.field.transforms`: by PyTorch there the law is the
same; by the host's transforms the bits are.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from mpiflow.core import arrays, gpu
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.core.guards import no_state, require_finite
from mpiflow.core.lattice import split
from mpiflow.core.noise import stream_key
from mpiflow.core.parallel import agreed
from mpiflow.core.schedule import after
from mpiflow.core.slabs import Slabs
from mpiflow.solvers.field import cuda
from mpiflow.solvers.field.flips import FlipSteps
from mpiflow.solvers.field.langevin import LangevinSteps
from mpiflow.solvers.field.steps import Pull
from mpiflow.solvers.field.transforms import pulls
from mpiflow.systems.field_law import Law
from mpiflow.systems.kac import KacKernel

if TYPE_CHECKING:
    from mpi4py import MPI


#: :math:`\hat J(k)` for some columns of the spectrum, (ny, columns) float64.
Symbol = Callable[[slice], np.ndarray]
#: Inner steps of a step at most, and the bit of the noise's step that they count from.
INNER, INNER_BIT = 4096, 48


@dataclass(frozen=True)
class FieldSample:
    """Observables at one time.

    Arrays have one entry for each member of this rank; a single field is one for all ranks.
    """

    time: float
    magnetization: np.ndarray
    free_energy: np.ndarray


class StochasticField:
    r"""The field of block means, in steps of dt. All methods are collective.

    One field is cut into slabs of rows. Of more members every rank holds whole fields.

    Parameters
    ----------
    law : K, s', kappa and the structure; its beta is the temperature
    coupling : the spins' kernel, or :math:`\hat J(k)` on the grid of blocks, real, of shape
        (ny, nx // 2 + 1) as :func:`scipy.fft.rfft2` orders it, or a function of a slice of its
        columns, so that no rank has all of it
    shape : (ny, nx) blocks
    block : sites a side; a block has N = block^2 spins
    field : h, a number or this rank's slab; (ny, nx) with members
    dt : step, at most 1
    seed, members : of the noise; members are independent copies
    comm : communicator, ``COMM_WORLD`` for None
    device : ``cpu`` or ``cuda``; None: as the program has chosen

    Attributes
    ----------
    numbers : members that this rank has, B of them
    state : (B, n, nx): z, or the numbers of spins that are up (int32). All that a step starts
        from, with ``step``. On the host: to look at it brings it there from a GPU.
    step : steps made
    own : J_0, the coupling of a block to itself
    inner : inner steps that a step is made of, see the module
    begun : inner steps made of the step that is under way, 0 if there is none
    parts : inner steps of the step that is under way, or of the next
    outside : values of m that were beyond the range of the law at the end of an ``advance``

    Raises
    ------
    InputError : any of these that cannot work, a law that is not finite and positive, or a step
        that would take more than :data:`INNER` inner ones
    """

    def __init__(
        self,
        law: Law,
        coupling: KacKernel | np.ndarray | Symbol,
        shape: tuple[int, int],
        *,
        block: int,
        field: float | np.ndarray = 0.0,
        dt: float = 0.1,
        seed: int = 0,
        members: int = 1,
        comm: MPI.Intracomm | None = None,
        device: str | None = None,
    ) -> None:
        if members < 1:
            raise InputError("members", members, "1 or more", "Leave it out for one field.")
        if block < 1:
            raise InputError("block", block, "1 or more sites a side", "Try 8.")
        if not 0 < dt <= 1:
            raise InputError("dt", dt, "above 0, at most 1", "Try 0.1.")
        self.slabs = slabs = Slabs(comm, shape)
        self.numbers = np.arange(1)
        if members > 1:
            self.numbers = np.arange(*split(members, slabs.comm.size, slabs.comm.rank))
        self.local = (len(self.numbers), *(slabs.local if members == 1 else slabs.shape))
        self._cut = members == 1
        self.law, self.block, self.spins, self.dt = law, block, block * block, float(dt)
        self.beta, self._key = float(law.beta), stream_key(seed, "stochastic-field")
        self._top = slabs.rows.start if self._cut else 0
        columns = slabs.columns if self._cut else slice(0, slabs.shape[1] // 2 + 1)
        self._symbol = _symbol(coupling, slabs.shape, block, columns)
        self.own = slabs.centre(self._symbol, whole=not self._cut)
        with agreed(slabs.comm):
            self.field = arrays.real("field", field)
            if self.field.shape not in ((), self.local[1:]):
                allowed = f"a number or {self.local[1:]}"
                raise InputError("field", self.field.shape, allowed, "Cut it by rows.")
        quiet = copy.copy(law)  # what its tables ask for is nothing that a field did
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._motion: LangevinSteps | FlipSteps = (
                LangevinSteps(quiet, self.spins)
                if law.structure == "langevin"
                else FlipSteps(quiet, self.spins, self.own)
            )
        self.inner = self._inner_steps()
        self.step, self.begun, self.outside = 0, 0, 0
        self._parts = 1
        here = gpu.of_simulation(device, slabs.comm)
        self.device = Device(here.name, here.gpu)
        #: The state on the device, where it is newer than what is on the host.
        self._there: Any = None
        if self.device.is_cuda:
            self._motion_there = cuda.on_device(self._motion, self.device)
            whole = not self._cut or slabs.comm.size == 1
            about = self._symbol, slabs.shape, self.field, whole
            self._pulls = pulls(self.device, *about, self._drive)
        state = self._motion.state(np.zeros(self.local))
        state[...] = np.nan if state.dtype.kind == "f" else -1  # not set yet
        self._state = state

    def _inner_steps(self) -> int:
        """How many inner steps keep the stationary law. Collective."""
        slabs, symbol = self.slabs, self._symbol
        other = slabs.backward(symbol.astype(complex)) if self._cut else _whole(symbol, slabs.shape)
        if other.size and (not self._cut or slabs.rows.start == 0):
            other[0, 0] = 0.0
        values = [-symbol.min(initial=np.inf), symbol.max(initial=-np.inf)]
        values += [float(abs(a).max(initial=0.0)) for a in (other, self.field)]
        low, high, most, field = (slabs.largest(float(value)) for value in values)
        longest = self._motion.longest(Pull(-low, high, self.own, most, field))
        # A step as long as the longest is one, also if it is a little more by rounding.
        inner = max(1.0, np.ceil(self.dt / longest * (1 - 1e-9)))
        if not inner <= INNER:
            allowed = (
                f"at most {longest * INNER:.3g} with this law, coupling and field: inner steps of "
                f"{longest:.2g} keep their stationary law, and a step has up to {INNER}"
            )
            raise InputError("dt", self.dt, allowed, "Use a shorter step, or a weaker field.")
        return int(inner)

    # -- state -------------------------------------------------------------------------------

    @property
    def state(self) -> np.ndarray:
        """See the class. Whoever has it may write to it: what was on a device is old then."""
        if self._there is not None:
            self._state[...] = self.device.get(self._there)
            self._there = None
        return self._state

    @state.setter
    def state(self, state: np.ndarray) -> None:
        self._state, self._there = state, None

    @property
    def rng(self) -> str:
        """Name of the generator and of what steps make of its words, for files."""
        return self._motion.rng

    @property
    def time(self) -> float:
        """Steps times dt."""
        return after(0.0, self.step, self.dt)

    @property
    def parts(self) -> int:
        """See the class."""
        return self._parts if self.begun else self.inner

    @property
    def m(self) -> np.ndarray:
        """Block means, (B, n, nx) float64, to be read: :meth:`set` sets them."""
        self._check_state()
        if self._there is None:
            m = self._motion.means(self.state)
        else:
            m = self.device.get(self._motion_there.means(self._there))
        m.flags.writeable = False  # what is written there would be lost
        return m

    def set(self, m: float | np.ndarray) -> None:
        r"""Start from block means at time 0.

        Those of ``cosh`` are whole numbers of spins: what rounding a block adds or drops goes to
        the next one, along rows, so that the mean of all is right to one spin.

        Parameters
        ----------
        m : a number, or (n, nx), or (B, n, nx), \|m\| <= 1
        """
        with agreed(self.slabs.comm):
            m = arrays.real("m", m)
            if m.shape not in ((), self.local[1:], self.local):
                allowed = f"a number, {self.local[1:]} or {self.local}"
                raise InputError("m", m.shape, allowed, "Cut it by rows.")
            most = float(abs(m).max(initial=0.0))
            if not most <= 1:
                raise InputError("m", most, "-1 to 1 at all points", "Look at the field.")
        m = np.broadcast_to(m, self.local)
        flips = isinstance(self._motion, FlipSteps)
        self.state = self._to_spins(m) if flips else self._motion.state(m)
        self.step, self.begun = 0, 0

    def _to_spins(self, m: np.ndarray) -> np.ndarray:
        """Numbers of spins that are up, whose sum is right in the whole field. Collective."""
        exact = (m + 1) * (self.spins / 2)
        low = np.floor(np.round(exact, 9))
        rest = np.rint(np.clip(exact - low, 0, 1) * 2**32).astype(np.int64)
        rest = rest.reshape(len(m), math.prod(m.shape[1:]))  # a rank may have no member
        ends = np.cumsum(rest, axis=1) + 2**31
        if self._cut:  # integers: the same on any number of ranks
            ends += self.slabs.before(int(rest.sum()))
        more = (ends >> 32) - (ends - rest >> 32)
        return (low + more.reshape(m.shape)).astype(np.int32)

    def require_state(self) -> None:
        """Raise, on all ranks alike, unless the state was set and is possible. Collective."""
        with agreed(self.slabs.comm):
            self._check_state()

    def _check_state(self) -> None:
        """Raise unless this rank's part of the state is one."""
        remedy = "Set the block means: field.set(0.0)."
        low, high = (-1, 1) if self._state.dtype.kind == "f" else (0, self.spins)
        if self._there is not None:
            if cuda.count_wrong(self.device, self._there, low, high):
                raise InputError("state", "some", f"{low} to {high} at every block", remedy)
            return
        state = self.state
        if state.dtype.kind == "f":
            require_finite("state", state, remedy)
        elif state.size and (state == -1).all():
            raise no_state(remedy)
        if state.size and not (low <= state.min() and state.max() <= high):
            raise InputError("state", "some", f"{low} to {high} at every block", remedy)

    # -- observables -------------------------------------------------------------------------

    def convolve(self, m: np.ndarray) -> np.ndarray:
        """J*m, (B, n, nx)."""
        if self._cut:
            spectrum = self.slabs.forward(m[0])
            spectrum *= self._symbol
            return self.slabs.backward(spectrum, overwrite=True)[None]
        if not m.size:
            return np.empty(m.shape)
        spectrum = scipy.fft.rfft2(m)
        spectrum *= self._symbol
        return scipy.fft.irfft2(spectrum, self.slabs.shape, overwrite_x=True)

    def free_energy(self, m: np.ndarray | None = None) -> np.ndarray:
        """F / (ny nx), per spin, of fields (B, n, nx) or of the state: (B,) float64.

        s(0) = 0: it is that of :class:`~mpiflow.solvers.field.mesoscopic.NonlocalEquation` plus T
        ln 2.
        """
        m = self.m if m is None else m
        density = self.law.entropy(m) - m * (0.5 * self.convolve(m) + self.field)
        return self._means_of(density)

    def measure(self) -> FieldSample:
        """The observables of the state."""
        self.require_state()
        m = self.m
        return FieldSample(self.time, self._means_of(m), self.free_energy(m))

    def _means_of(self, values: np.ndarray) -> np.ndarray:
        if self._cut:
            return np.array([self.slabs.total(values[0]) / math.prod(self.slabs.shape)])
        return values.reshape(len(values), math.prod(self.slabs.shape)).mean(axis=1)

    # -- time --------------------------------------------------------------------------------

    def advance(self, steps: int) -> None:
        """Make steps of length dt; the first one ends a step that is under way."""
        for _ in range(steps):
            self.advance_some(self.parts - self.begun)
        self._count_outside()

    def advance_some(self, inner: int) -> None:
        """Make inner steps: the work of a step may take minutes."""
        self.require_state()
        self._parts, members = self.parts, self.numbers.astype(np.uint64)
        motion: Any = self._motion
        drive: Any = self._drive
        self._state = state = np.ascontiguousarray(self._state)
        if self.device.is_cuda:
            motion, drive = self._motion_there, self._pulls
            self._there = state = (
                self.device.put(self._state) if self._there is None else self._there
            )
        for _ in range(inner):
            # Another dt later on never asks for the same noise again.
            half = np.uint64(2 * self.step | self.begun << INNER_BIT)
            noise = self._key, members, half, self._top
            motion.step(state, drive, self.dt / self.parts, noise)
            self.begun += 1
            if self.begun == self.parts:
                self.step, self.begun, self._parts = self.step + 1, 0, self.inner

    def go_on(self, step: int, begun: int = 0, parts: int = 1) -> None:
        """Go on in a step that had so many inner steps, of which some were made.

        With a law that needs more of them than the step had, the others are cut finer.
        """
        finer = 1 if begun == 0 or parts >= self.inner else -(-self.inner // parts)
        self.step, self.begun, self._parts = step, begun * finer, parts * finer

    def run(self, times: Sequence[float]) -> Iterator[tuple[float, np.ndarray]]:
        """States at times from now on, which are multiples of dt.

        Yields
        ------
        (t, m), m (B, n, nx), a new array that may be kept

        Raises
        ------
        InputError : times that fall, are past, or are no multiples of dt
        """
        steps = [round(t / self.dt) if math.isfinite(t) else -1 for t in times]
        near = all(abs(n * self.dt - t) < 1e-6 * self.dt for n, t in zip(steps, times, strict=True))
        rise = all(a <= b for a, b in pairwise([self.step, *steps]))
        if not (near and rise):
            allowed = f"multiples of dt={self.dt:g} from {self.time:g} on, rising"
            raise InputError("times", list(times)[:8], allowed, "Change the times or dt.")
        return self._states(steps)

    def _states(self, steps: list[int]) -> Iterator[tuple[float, np.ndarray]]:
        for step in steps:
            self.advance(step - self.step)
            yield self.time, self.m.copy()

    def _drive(self, m: np.ndarray) -> np.ndarray:
        out = self.convolve(m)
        out += self.field
        return out

    def _count_outside(self) -> None:
        low, high = getattr(self.law, "range", (-1.0, 1.0))
        if -1 < low or high < 1:
            m = self.m
            beyond = int(np.count_nonzero((m < low) | (m > high)))
            if beyond and not self.outside:
                warnings.warn(
                    f"{beyond} blocks have m beyond {low:.4g} to {high:.4g}, where the law was "
                    "learned; their number is counted",
                    stacklevel=3,
                )
            self.outside += beyond


def _whole(symbol: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """J of its spectrum, (ny, nx)."""
    return np.asarray(scipy.fft.irfft2(symbol, shape))


def _symbol(
    coupling: KacKernel | np.ndarray | Symbol, shape: tuple[int, int], block: int, columns: slice
) -> np.ndarray:
    """J in Fourier space, some columns of (ny, nx // 2 + 1) float64."""
    if isinstance(coupling, KacKernel):
        coupling.require_room((shape[0] * block, shape[1] * block))
        along_y, along_x, rest = coupling.symbol(shape, block)
        join = np.add.outer if coupling.nearest else np.multiply.outer
        return np.asarray(join(along_y, along_x[columns]) - rest)
    wanted = (shape[0], columns.stop - columns.start)
    if callable(coupling):
        symbol = np.asarray(coupling(columns))
    else:
        symbol, wanted = np.asarray(coupling), (shape[0], shape[1] // 2 + 1)
    if symbol.shape != wanted or np.iscomplexobj(symbol) or not np.isfinite(symbol).all():
        given = f"{symbol.shape} {symbol.dtype}"
        allowed = f"a Kac kernel, or finite real numbers of shape {wanted}"
        raise InputError("coupling", given, allowed, "Take rfft2(J).real of an even J.")
    return np.array(symbol if callable(coupling) else symbol[:, columns], float)
