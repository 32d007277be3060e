"""This rank's part of a state: what lies around it, and what adds up over the ranks exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.block import HaloExchange, gather_records
from mpiflow.core.boxes import gather_boxes
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.core.mpi import MPI

Box = tuple[slice, ...]
#: Real numbers that are added up at once.
_AT_ONCE = 2**20


class Part:
    """This rank's part of a state, for what measures it. Its methods are collective.

    A member is cut over all ranks, or whole on its rank; then nothing is sent.

    Parameters
    ----------
    comm : the ranks of the run
    shape : sides of a member
    box : of it on this rank
    cut : whether the only member is cut over the ranks
    members : of the run
    is_site : which places of the box are sites, where not all are
    periodic : whether places beyond one end are those at the other

    Attributes
    ----------
    state : (members here, *sides here), to be read
    sites : of a member
    """

    state: np.ndarray

    def __init__(
        self,
        comm: MPI.Intracomm,
        shape: Shape,
        box: Box,
        *,
        cut: bool,
        members: int = 1,
        is_site: np.ndarray | None = None,
        periodic: bool = True,
    ) -> None:
        self.comm, self.shape, self.box, self.cut = comm, tuple(shape), box, cut
        self.members, self.is_site, self.periodic = members, is_site, periodic
        self.boxes: list[Box] = comm.allgather(box) if cut else [box]
        self.cart: MPI.Cartcomm | None = None
        if cut and comm.size > 1:
            grid = [len({box[axis].start for box in self.boxes}) for axis in range(len(shape))]
            if math.prod(grid) != comm.size:  # empty slabs begin where others do
                grid = [comm.size] + [1] * (len(shape) - 1)
            self.cart = comm.Create_cart(grid, [True] * len(shape), reorder=False)
        here = math.prod(self.sides) if is_site is None else int(np.count_nonzero(is_site))
        self.sites = int(self.total(np.array(here, np.int64)))
        self._exchanges: dict[tuple[int, str], HaloExchange] = {}

    def free(self) -> None:
        """Give back what MPI keeps for it: a program may record thousands of runs."""
        for exchange in self._exchanges.values():
            for messages in filter(None, exchange.messages):
                for request in messages.requests:
                    request.Free()
        self._exchanges.clear()
        if self.cart is not None:
            self.cart.Free()
            self.cart = None

    @property
    def sides(self) -> Shape:
        """Of this rank's box."""
        return tuple(edges.stop - edges.start for edges in self.box)

    # -- what lies around ------------------------------------------------------------

    def require_halo(self, halo: int) -> None:
        """Raise, on all ranks alike, unless parts have so many sites around them."""
        if halo and not self.periodic:
            remedy = "Leave it out: the function gets whole systems, index them."
            raise InputError("halo", halo, "0 for systems that are no periodic lattices", remedy)
        thinnest = min(edges.stop - edges.start for box in self.boxes for edges in box)
        if not 0 <= halo <= thinnest:
            allowed = f"0 to {thinnest} sites, the shortest side of a rank's part"
            remedy = "Use fewer ranks, or a larger lattice."
            raise InputError("halo", halo, allowed, remedy)

    def padded(self, halo: int) -> np.ndarray:
        """The state with so many sites of its periodic surroundings, to be read.

        The next call writes into the same array.
        """
        if not halo:
            return self.state
        if self.cart is None:
            axes = [(0, 0), *[(halo, halo)] * len(self.shape)]
            out = np.pad(self.state, axes, mode="wrap")
            out.flags.writeable = False
            return out
        key = halo, self.state.dtype.str
        if key not in self._exchanges:
            shape = (1, *(side + 2 * halo for side in self.sides))
            array = np.zeros(shape, self.state.dtype)
            self._exchanges[key] = HaloExchange(self.cart, array, halo)
        exchange = self._exchanges[key]
        inside = (slice(None), *[slice(halo, -halo)] * len(self.shape))
        exchange.array[inside] = self.state
        exchange()
        view = exchange.array.view()
        view.flags.writeable = False
        return view

    def of_next(self, edge: np.ndarray, axis: int) -> np.ndarray:
        """What the next part along an axis passed for its own first row; its own if it is alone."""
        if self.cart is None or self.cart.dims[axis] == 1:
            return edge
        before, behind = self.cart.Shift(axis, 1)
        out = np.empty_like(edge)
        self.cart.Sendrecv(np.ascontiguousarray(edge), before, recvbuf=out, source=behind)
        return out

    def before(self, number: int) -> int:
        """Sum of the numbers of the ranks before this one, of a member that is cut."""
        if self.cart is None:
            return 0
        return sum(self.cart.allgather(int(number))[: self.cart.rank])

    def joined(self, function: Callable[..., Any], *arrays: np.ndarray) -> Any:
        """What a function says of arrays, each joined along its rows from all parts of a member.

        Rank 0 calls it, with rows in the order of ranks; all ranks get what it returns.
        """
        if self.cart is None:
            return function(*arrays)
        everyone = [gather_records(array, self.cart) for array in arrays]
        return self.cart.bcast(function(*everyone) if self.cart.rank == 0 else None)

    # -- what adds up ----------------------------------------------------------------

    def total(self, counts: np.ndarray) -> np.ndarray:
        """Sums of integers over the parts of a member, int64."""
        return self._reduced(np.asarray(counts, np.int64), MPI.SUM)

    def largest(self, values: np.ndarray) -> np.ndarray:
        """The largest of numbers over the parts of a member."""
        return self._reduced(values, MPI.MAX)

    def _reduced(self, values: np.ndarray, operation: MPI.Op) -> np.ndarray:
        if self.cart is None:
            return values
        out = np.empty_like(values)
        self.cart.Allreduce(np.ascontiguousarray(values), out, op=operation)
        return out

    def of_all_members(self, counts: np.ndarray) -> np.ndarray:
        """Sum over members, too, of counts (members here, ...) that are those of whole members."""
        out = counts.sum(axis=0, dtype=np.int64)
        if self.members > 1:
            self.comm.Allreduce(MPI.IN_PLACE, out, op=MPI.SUM)
        return out

    def sum_of(self, values: np.ndarray) -> np.ndarray:
        """Sums over the sites of values (members here, ..., *sides here).

        The bits do not depend on how sites are cut: integers are added as such, real numbers as
        :func:`exact_sum` does.

        Returns
        -------
        (members here, ...), int64 of integers and truth values, else float64
        """
        lead = values.shape[: values.ndim - len(self.shape)]
        if self.is_site is not None:
            values = values[..., self.is_site]
        flat = values.reshape(math.prod(lead), math.prod(values.shape[len(lead) :]))
        if flat.dtype.kind in "biu":
            return self.total(flat.sum(axis=1, dtype=np.int64)).reshape(lead)
        return exact_sum(flat, self.sites, self.largest, self.total).reshape(lead)

    def coarse(self, side: int) -> np.ndarray | None:
        """Means over blocks of sites: of whole members those here, else all of it on rank 0.

        With blocks of one site it is the state itself, as it is. None on the other ranks.

        Returns
        -------
        (members here, *sides / side), float64 unless ``side`` is 1
        """
        whole = (len(self.state), *(n // side for n in self.shape))
        sums = self.state if side == 1 else self._block_sums(side)
        if self.cart is not None:
            place = tuple(slice(e.start // side, -(-e.stop // side)) for e in self.box)
            gathered = self._gathered(np.ascontiguousarray(sums), place, whole, side)
            if gathered is None:
                return None
            sums = gathered
        return sums if side == 1 else sums / side ** len(self.shape)

    def _gathered(self, sums: np.ndarray, place: Box, whole: Shape, side: int) -> np.ndarray | None:
        """Sums over all blocks on rank 0; blocks may lie on several ranks."""
        every = slice(None)
        if not any(n % side for box in self.boxes for e in box for n in (e.start, e.stop)):
            return gather_boxes(sums, (every, *place), whole, self.comm)
        pieces = self.comm.gather((place, sums))
        if pieces is None:
            return None
        out = np.zeros(whole, sums.dtype)
        for where, piece in pieces:
            out[(every, *where)] += piece
        return out

    def _block_sums(self, side: int) -> np.ndarray:
        """Sums over blocks, of those that this rank has a part of."""
        out = self.state
        kind = np.int64 if out.dtype.kind in "biu" else np.float64
        for axis, edges in reversed(list(enumerate(self.box, start=1))):
            first = np.arange(edges.start // side, -(-edges.stop // side)) * side
            out = np.add.reduceat(out, np.maximum(0, first - edges.start), axis, dtype=kind)
        return out


def exact_sum(
    values: np.ndarray,
    count: int,
    largest: Callable[[np.ndarray], np.ndarray] = np.asarray,
    total: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> np.ndarray:
    """Sums of rows of real numbers that do not depend on how a row is cut, or on its order.

    Each number becomes two integers in units of the largest of its row, which are added exactly.
    With n numbers in a row, these have 62 - log2(n) bits each; the second holds what rounding
    took from the first, so that the error is below n 2^(-2 bits) times the largest number: for
    up to 2^31 numbers 2^-60 times it and less for each, where plain sums have 2^-53.

    Parameters
    ----------
    values : (rows, here), finite
    count : of numbers in a whole row
    largest, total : of parts of rows on other ranks, for float64 and int64

    Returns
    -------
    (rows,) float64
    """
    bits = 62 - math.ceil(math.log2(max(2, count)))
    values = np.asarray(values, np.float64)
    top = np.maximum(values.max(axis=1, initial=0.0), -values.min(axis=1, initial=0.0))
    _, exponent = np.frexp(largest(top))
    sums = np.zeros((2, len(values)), np.int64)
    step = max(1, _AT_ONCE // max(1, len(values)))
    for start in range(0, values.shape[1], step):
        scaled = np.ldexp(values[:, start : start + step], (bits - exponent)[:, None])
        for digit in sums:
            whole = np.rint(scaled)
            digit += whole.astype(np.int64).sum(axis=1)
            scaled = np.ldexp(scaled - whole, bits)
    high, low = total(sums).tolist()
    units = exponent.tolist()
    return np.array([
        _scaled((h << bits) + rest, unit - 2 * bits)
        for h, rest, unit in zip(high, low, units, strict=True)
    ], np.float64)  # fmt: skip


def _scaled(number: int, exponent: int) -> float:
    """number times 2^exponent, rounded once; infinite beyond the largest float64."""
    try:
        return float(number << exponent) if exponent >= 0 else number / (1 << -exponent)
    except OverflowError:
        return math.copysign(math.inf, number)
