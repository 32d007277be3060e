"""A field cut into slabs of whole rows, one for each rank: surroundings, transforms and sums.

What every rank gets is the same to the last bit on any number of ranks. Rows are transformed
one by one, columns after a transpose, and :mod:`scipy.fft` gives a row the same bits whatever
stands beside it. Floating sums are taken row by row, and of the rows by :func:`math.fsum`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import numpy as np
import scipy

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import split
from mpiflow.core.mpi import MPI

#: A rank, and rows that go to it or come from it.
Part = tuple[int, int, int]
_TAG = 78


class Slabs:
    """Slabs of a periodic field of (ny, nx) points. All methods are collective.

    Parameters
    ----------
    comm : communicator, ``COMM_WORLD`` for None; rank r has slab r
    shape : (ny, nx), points of the whole field
    edges : (ranks + 1,) first row of each rank, then ny; dealt out evenly unless given.
        A slab may be empty.

    Attributes
    ----------
    rows : rows of the field that this rank has
    columns : columns that this rank has of the nx // 2 + 1 columns of the spectrum

    Raises
    ------
    InputError : no such shape, or edges that are not rising from 0 to ny in one step a rank
    """

    def __init__(
        self,
        comm: MPI.Intracomm | None,
        shape: tuple[int, int],
        edges: Sequence[int] | None = None,
    ) -> None:
        self.comm = MPI.COMM_WORLD if comm is None else comm
        ranks, rank = self.comm.size, self.comm.rank
        if len(shape) != 2 or min(shape) < 1:
            raise InputError("shape", tuple(shape), "rows and columns, 1 or more each", "Give two.")
        self.shape = ny, nx = int(shape[0]), int(shape[1])
        if edges is None:
            edges = [split(ny, ranks, r)[0] for r in range(ranks)] + [ny]
        self.edges = np.array(edges, np.int64)
        rises = len(self.edges) == ranks + 1 and (np.diff(self.edges) >= 0).all()
        if not (rises and self.edges[0] == 0 and self.edges[-1] == ny):
            raise InputError(
                "edges",
                list(map(int, edges)),
                f"{ranks + 1} numbers that never fall, from 0 to {ny}",
                "Leave them out to deal rows out evenly.",
            )
        self.rows = slice(int(self.edges[rank]), int(self.edges[rank + 1]))
        self._known: dict[tuple[int, int], tuple[list[Part], list[Part]]] = {}
        self._cuts = [split(nx // 2 + 1, ranks, r)[0] for r in range(ranks)] + [nx // 2 + 1]
        self.columns = slice(self._cuts[rank], self._cuts[rank + 1])

    @property
    def local(self) -> tuple[int, int]:
        """(n, nx), the shape of this rank's slab."""
        return self.rows.stop - self.rows.start, self.shape[1]

    # -- surroundings --------------------------------------------------------------------

    def around(self, field: np.ndarray, above: int, below: int) -> np.ndarray:
        """This rank's slab with the rows above and below it, round the periodic edge.

        They may come from any rank; no rank ever holds the whole field for it.

        Parameters
        ----------
        field : (..., n, nx) of any type, this rank's slab
        above, below : rows, the same on all ranks, and fewer than ny in all

        Returns
        -------
        (..., above + n + below, nx), a new array

        Raises
        ------
        InputError : negative, or so many rows that some would come twice
        """
        ny = self.shape[0]
        if min(above, below) < 0 or above + below >= ny:
            raise InputError(
                "reach",
                (above, below),
                f"0 or more rows each way, fewer than the field's {ny} in all",
                "Use a larger lattice or a shorter reach.",
            )
        self._require(field.shape[-2:])
        n, rank = self.local[0], self.comm.rank
        out = np.empty((*field.shape[:-2], above + n + below, self.shape[1]), field.dtype)
        out[..., above : above + n, :] = field
        gives, gets = self._neighbours(above, below)
        waits, requests = [], []
        for other, start, stop in gets:
            target = out[..., start:stop, :]
            if other == rank:
                continue
            there = target if target.flags.c_contiguous else np.empty_like(target)
            waits.append((target, there))
            requests.append(self.comm.Irecv(there, other, _TAG))
        sent = [
            (other, np.ascontiguousarray(field[..., start:stop, :])) for other, start, stop in gives
        ]
        requests += [self.comm.Isend(piece, other, _TAG) for other, piece in sent if other != rank]
        own = iter([piece for other, piece in sent if other == rank])
        for other, start, stop in gets:
            if other == rank:
                out[..., start:stop, :] = next(own)
        MPI.Request.Waitall(requests)
        for target, there in waits:
            if there is not target:
                target[...] = there
        return out

    def _neighbours(self, above: int, below: int) -> tuple[list[Part], list[Part]]:
        """Rows of the slab that ranks need, and of the result that ranks have: worked out once."""
        if (above, below) not in self._known:
            rank, ranks = self.comm.rank, range(self.comm.size)
            gives = [
                (other, piece.start, piece.stop)
                for other in ranks
                for _, piece in self._pieces(rank, other, above, below)
            ]
            gets = [
                (other, start, start + piece.stop - piece.start)
                for other in ranks
                for start, piece in self._pieces(other, rank, above, below)
            ]
            self._known[above, below] = gives, gets
        return self._known[above, below]

    def _pieces(self, owner: int, user: int, above: int, below: int) -> list[tuple[int, slice]]:
        """Surroundings of ``user`` that ``owner`` has: first row in the result, rows in the slab.

        Both ranks work it out alike, in the same order.
        """
        ny, (low, high) = self.shape[0], self.edges[owner : owner + 2]
        first, last = self.edges[user : user + 2]
        out = []
        for start, stop in ((first - above, first), (last, last + below)):
            for turn in (-ny, 0, ny):  # the owner's rows, as seen over the edge
                a, b = max(start, low + turn), min(stop, high + turn)
                if a < b:
                    own = slice(int(a - low - turn), int(b - low - turn))
                    out.append((int(a - first + above), own))
        return out

    # -- transforms ----------------------------------------------------------------------

    def forward(self, field: np.ndarray) -> np.ndarray:
        """The real Fourier transform: the same bits as :func:`scipy.fft.rfft2` of the whole.

        Parameters
        ----------
        field : (n, nx), taken as float64

        Returns
        -------
        (ny, columns) complex128: this rank's columns of the (ny, nx // 2 + 1)
        """
        self._require(field.shape)
        lines = np.empty((0, self._cuts[-1]), complex)
        if len(field):
            lines = scipy.fft.rfft(np.asarray(field, float), axis=1)
        if self.comm.size > 1:
            pieces = [lines[:, a:b] for a, b in zip(self._cuts, self._cuts[1:], strict=False)]
            width = self.columns.stop - self.columns.start
            sent = [piece.size for piece in pieces]
            counts = [int(n) * width for n in np.diff(self.edges)]
            lines = self._exchange(_pack(pieces, lines), sent, counts)
            lines = lines.reshape(self.shape[0], width)
        return scipy.fft.fft(lines, axis=0, overwrite_x=True) if lines.size else lines

    def backward(self, spectrum: np.ndarray, overwrite: bool = False) -> np.ndarray:
        """The inverse of :meth:`forward`: (ny, columns) complex128 to (n, nx) float64.

        The same bits as :func:`scipy.fft.irfft2` of the whole. ``overwrite`` allows to use the
        spectrum's memory, which saves a fifth of the time.
        """
        n, nx = self.local
        width = self.columns.stop - self.columns.start
        if spectrum.shape != (self.shape[0], width):
            raise InputError("spectrum", spectrum.shape, f"{(self.shape[0], width)}", "Cut it so.")
        lines = np.asarray(spectrum, complex)
        if width:
            # No factors before the last line.
            lines = scipy.fft.ifft(lines, axis=0, norm="forward", overwrite_x=overwrite)
        if self.comm.size > 1:
            sent = [int(rows) * width for rows in np.diff(self.edges)]
            counts = [n * (b - a) for a, b in zip(self._cuts, self._cuts[1:], strict=False)]
            received = self._exchange(np.ascontiguousarray(lines).ravel(), sent, counts)
            lines = np.empty((n, self._cuts[-1]), complex)
            ends = np.cumsum([0, *counts])
            for r, (a, b) in enumerate(zip(self._cuts, self._cuts[1:], strict=False)):
                lines[:, a:b] = received[ends[r] : ends[r + 1]].reshape(n, b - a)
        if n == 0:
            return np.empty((0, nx))
        field = scipy.fft.irfft(lines, nx, axis=1, norm="forward", overwrite_x=True)
        field *= 1 / (self.shape[0] * nx)
        return field

    # -- sums ----------------------------------------------------------------------------

    @overload
    def total(self, values: int | np.integer) -> int: ...

    @overload
    def total(self, values: np.ndarray) -> float: ...

    def total(self, values: int | np.integer | np.ndarray) -> int | float:
        """The sum over all ranks.

        Parameters
        ----------
        values : an integer, of any size; or (n,) or (n, ...) float64, the numbers of each row
        """
        if isinstance(values, int | np.integer):
            return int(self.comm.allreduce(int(values)))
        n = self.local[0]
        if values.shape[:1] != (n,):
            raise InputError("values", values.shape, f"numbers of each of {n} rows", "Cut it so.")
        sums = np.ascontiguousarray(values, float).reshape(n, -1).sum(axis=1) if n else np.empty(0)
        everyone = np.empty(self.shape[0])
        self.comm.Allgatherv(sums, [everyone, np.diff(self.edges)])
        return math.fsum(everyone)

    def centre(self, spectrum: np.ndarray, whole: bool = False) -> float:
        """The field at x = 0 of a real spectrum; the same bits on any number of ranks.

        Parameters
        ----------
        spectrum : (ny, columns) float64, of this rank; with ``whole`` every rank has all columns
        """
        ny, nx = self.shape
        sums = np.ascontiguousarray(spectrum.T).sum(axis=1)
        if not whole:
            sums = np.concatenate(self.comm.allgather(sums))
        twice = np.full(len(sums), 2.0)  # k and -k
        twice[0] = 1.0
        if nx % 2 == 0:
            twice[-1] = 1.0
        return float((twice * sums).sum() / (ny * nx))

    def largest(self, value: float) -> float:
        """The maximum over all ranks; NaN if it is NaN on any."""
        everyone = np.empty(self.comm.size)
        self.comm.Allgather(np.array([value], float), everyone)
        return float(everyone.max())

    def before(self, value: int) -> int:
        """The sum over all ranks with rows above these."""
        return int(self.comm.exscan(value) or 0)

    # ------------------------------------------------------------------------------------

    def _require(self, shape: tuple[int, ...]) -> None:
        if tuple(shape) != self.local:
            raise InputError(
                "field",
                tuple(shape),
                f"{self.local}: rows {self.rows.start} to {self.rows.stop} of {self.shape}",
                "Cut it by Slabs.rows.",
            )

    def _exchange(
        self, packed: np.ndarray, sent: Sequence[int], counts: Sequence[int]
    ) -> np.ndarray:
        """Numbers for rank 0, 1, ... one after the other; what came from rank 0, 1, ... alike."""
        if self.comm.size == 1:
            return packed
        out = np.empty(sum(counts), packed.dtype)
        self.comm.Alltoallv([packed, list(sent)], [out, list(counts)])
        return out


def _pack(pieces: Sequence[np.ndarray], like: np.ndarray) -> np.ndarray:
    """The numbers of arrays one after the other, in one new array; each is copied once."""
    out = np.empty(sum(piece.size for piece in pieces), like.dtype)
    used = 0
    for piece in pieces:
        out[used : used + piece.size].reshape(piece.shape)[...] = piece
        used += piece.size
    return out
