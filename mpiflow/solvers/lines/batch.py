"""Batches of independent lines of cells: what chains and predators and prey have in common.

Lines are dealt to ranks whole: the same bits on any number of them. Nothing communicates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mpiflow.core import arrays
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_finite, together
from mpiflow.core.lattice import split
from mpiflow.core.noise import stream_key
from mpiflow.core.schedule import after

if TYPE_CHECKING:
    from mpi4py import MPI

#: Counter word of the choice of a patch; those of cells are below.
CHOICE = np.uint64(2**63)


class LineBatch:
    """Lines of one system, with a ghost cell at either end of each.

    Parameters
    ----------
    system : with a number of ``sites``
    fields : of a cell: () for a number, (2,) for two
    dt : step
    stream, seed, first : of the noise, and the number of the first line
    members : number of lines, on all ranks together
    comm : communicator whose ranks share the lines; None for one process

    Attributes
    ----------
    numbers : (B,) the lines of this rank
    x : (B, *fields, sites) float64, which may be written to; NaN until it is set
    step : steps made
    """

    #: What to do where no state was set.
    unset = ""

    def __init__(
        self,
        system: Any,
        fields: tuple[int, ...],
        *,
        dt: float,
        stream: str,
        seed: int,
        members: int,
        first: int = 0,
        comm: MPI.Intracomm | None,
    ) -> None:
        if members < 1:
            raise InputError("members", members, "1 or more", "Leave it out for 1.")
        self._comm = comm
        ranks, rank = (comm.size, comm.rank) if comm is not None else (1, 0)
        self.system, self.dt, self.seed, self.step = system, float(dt), seed, 0
        self.numbers = first + np.arange(*split(members, ranks, rank))
        self._members = self.numbers.astype(np.uint64)
        self._key = stream_key(seed, stream)
        self._padded = np.full((len(self.numbers), *fields, system.sites + 2), np.nan)
        self.x = self._padded[..., 1:-1]

    @property
    def time(self) -> float:
        """Steps times dt."""
        return after(0.0, self.step, self.dt)

    def set(self, x: float | np.ndarray) -> None:
        """Start at time 0 from states that broadcast to :attr:`x`, all finite."""
        x = arrays.real("x", x)
        try:
            states = np.broadcast_to(x, self.x.shape)
        except ValueError:
            allowed = f"{self.x.shape} or what fills it"
            raise InputError("x", x.shape, allowed, "Reshape it.") from None
        self._require_possible(states)
        self.x[:] = states
        self.step = 0

    def _require_possible(self, states: np.ndarray) -> None:
        """Raise if a line cannot be in one of these states."""

    def require_state(self) -> None:
        """Raise, on all ranks that share the lines, unless they are set and finite."""
        with together(self._comm):
            require_finite("x", self.x, self.unset)


def require_step(dt: float, longest: float) -> None:
    if not 0 < dt < longest:
        allowed = f"above 0 and below {longest:.4g}, where steps are stable"
        raise InputError("dt", dt, allowed, "Try 0.01.")


def require_patches(sites: int, patch: int, **counts: int) -> None:
    """Raise unless patches of so many cells divide a line, and all counts are 1 or more."""
    if patch < 1 or sites % patch:
        raise InputError("patch", patch, f"a divisor of the {sites} sites", "Try 10.")
    for name, value in counts.items():
        if value < 1:
            raise InputError(name, value, "1 or more", "Leave it out for 1.")
