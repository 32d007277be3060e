"""A Block: boxes of global lattice sites plus a halo, and how the halo is filled.

One object does every job of the method; only the halo policy differs.

============  =========================================================
``exchange``  the boxes are the tiles of MPI ranks; halos come from the
              neighbouring ranks (this is the only place that does so)
``wrap``      each box is closed on itself, periodic
``frozen``    the halo holds the true surroundings at the time of the cut
              and never changes
============  =========================================================

A block is a batch of ``B`` equal boxes: ``B = 1`` for a rank's tile, many for
an ensemble of small lattices or for the patches of partial evolution. Kernels
see arrays and origins; they cannot see ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mpiflow.core.device import Device, Streams, kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import is_spins, no_state, spin_fault
from mpiflow.core.lattice import Lattice, Layout, Shape
from mpiflow.core.messages import DeviceMessages, Messages
from mpiflow.core.mpi import MPI, datatype
from mpiflow.core.noise import MAX_MEMBER
from mpiflow.core.parallel import agreed

HaloPolicy = Literal["exchange", "wrap", "frozen"]

#: Sites that are handled together where a whole tile would need too much memory.
BAND_SITES = 2**21


class HaloExchange:
    """Fill a field's halo from the neighbouring ranks of a Cartesian communicator.

    One axis after the other, the later ones including the halo of the earlier,
    so that corners arrive without diagonal messages. Requests are persistent and
    MPI reads and writes the field's own memory through subarray types. An axis
    with a single rank is wrapped by a copy.

    Parameters
    ----------
    cart : periodic Cartesian communicator
    array : (1, *padded) host array, fixed for the life of this object
    halo : width in sites
    """

    def __init__(self, cart: MPI.Cartcomm, array: np.ndarray, halo: int) -> None:
        self.array, self.halo = array, halo
        self.messages: list[Messages | None] = []
        padded = array.shape[1:]
        mpi_type = datatype(array.dtype)
        for axis, ranks in enumerate(cart.dims):
            sizes = list(padded)
            sizes[axis] = halo
            strips = [
                [array, 1, mpi_type.Create_subarray(padded, sizes, starts).Commit()]
                for starts in (
                    [start if a == axis else 0 for a in range(len(padded))]
                    for start in _strip_starts(padded[axis], halo)
                )
                if ranks > 1
            ]
            self.messages.append(Messages(cart, {axis: strips}) if strips else None)

    def __call__(self) -> None:
        for axis, messages in enumerate(self.messages):
            if messages:
                messages.start()
                messages.finish()
            else:
                _wrap_axis(Device("cpu"), self.array, axis + 1, self.halo)


def _strip_starts(padded: int, halo: int) -> tuple[int, int, int, int]:
    """First index of: low halo, low edge, high edge, high halo."""
    return 0, halo, padded - 2 * halo, padded - halo


def _strip(array: Any, axis: int, start: int, width: int) -> Any:
    index = [slice(None)] * len(array.shape)
    index[axis] = slice(start, start + width)
    return array[tuple(index)]


def _wrap_axis(device: Device, array: Any, axis: int, halo: int, stream: Any = 0) -> None:
    """Copy the opposite edges into the halo along one array axis."""
    low_halo, low_edge, high_edge, high_halo = (
        _strip(array, axis, start, halo) for start in _strip_starts(array.shape[axis], halo)
    )
    device.copy_box(low_halo, high_edge, stream)
    device.copy_box(high_halo, low_edge, stream)


class Boxes:
    """What a batch of equal boxes of a lattice can do, whatever holds its sites."""

    lattice: Lattice
    policy: HaloPolicy
    cart: MPI.Cartcomm | None
    #: How often sites were stored, and whether that is refused: what is stored in a copy is lost.
    writes = 0
    read_only = False

    @property
    def batch(self) -> int:
        """Number of boxes."""
        raise NotImplementedError

    @property
    def shape(self) -> Shape:
        """Inner sites along each axis."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether each box is a whole periodic lattice or closed on itself, on one rank."""
        return self.policy == "wrap" or (self.cart is not None and self.cart.size == 1)

    def bands(self) -> Iterator[slice]:
        """The inner rows in bands of at most :data:`BAND_SITES` sites, to bound memory."""
        rows, *rest = self.shape
        height = max(8, BAND_SITES // max(1, self.batch * math.prod(rest)))
        return (slice(start, min(start + height, rows)) for start in range(0, rows, height))

    def agreed(self) -> AbstractContextManager[None]:
        """An InputError raised inside on any tile's rank is raised on all. Collective."""
        return agreed(MPI.COMM_SELF if self.cart is None else self.cart)

    def _note_store(self) -> None:
        if self.read_only:
            raise InputError("state", "a copy", "to be read", "Use sim.set_spins to set spins.")
        self.writes += 1

    def check_spins(self) -> None:
        """Raise unless every site of this rank's boxes is a spin. Without communication."""
        raise NotImplementedError

    def require_spins(self) -> None:
        """Raise, on the ranks of all tiles, unless every site is a spin. Collective."""
        with self.agreed():
            self.check_spins()

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum integer values of shape (B, ...) over the tiles of a distributed lattice.

        For other blocks each box is a system of its own and values are returned
        as they are. Integers make the sum independent of the order of ranks.
        """
        if self.cart is None:
            return values
        out = np.empty_like(values)
        self.cart.Allreduce(np.ascontiguousarray(values), out, op=MPI.SUM)
        return out


def cartesian(layout: Layout, comm: MPI.Intracomm) -> MPI.Cartcomm:
    """A communicator that knows each rank's neighbours on the periodic lattice. Collective."""
    return comm.Create_cart(layout.ranks_grid, [True] * layout.lattice.ndim, reorder=False)


@dataclass
class Block(Boxes):
    """A batch of equal boxes with halos.

    Attributes
    ----------
    lattice : the global lattice that the boxes belong to
    array : (B, *padded) field on ``device``, ``padded = shape + 2 * halo``
    origins : (B, ndim) int64, global coordinates of each box's first inner site;
        a box may run over the periodic edge of the lattice
    members : (B,) uint64, the noise key of each box (see :mod:`mpiflow.core.noise`)
    halo : halo width in sites
    policy : how the halo is filled
    device : where the array is
    layout, cart : of boxes that are the tiles of ranks: which rank owns which, and the communicator
        in which neighbours exchange halos

    Raises
    ------
    InputError : by its methods: members, halos or spins that do not fit the boxes
    """

    lattice: Lattice
    array: Any
    origins: np.ndarray
    members: np.ndarray
    halo: int
    policy: HaloPolicy
    device: Device = field(default_factory=Device)
    layout: Layout | None = None
    cart: MPI.Cartcomm | None = None

    def __post_init__(self) -> None:
        self._require_room_for_halo()
        if len(self.members) != self.batch:  # kernels do not check bounds
            raise InputError(
                "members", len(self.members), f"{self.batch}, one for each box", "Pass as many."
            )
        if np.any(self.members >= MAX_MEMBER):  # it would draw another stream's noise
            raise InputError(
                "members", int(self.members.max()), f"below {MAX_MEMBER}", "Number them from 0."
            )
        self._sound = False  # of a CUDA field, which is slow to look at: seen to be spins
        self._exchange: HaloExchange | _DeviceHaloExchange | None = None
        # Of a CUDA device, where edges travel.
        self.streams: Streams | None = None
        if self.cart is not None and self.cart.size > 1:
            if self.device.is_cuda:
                self.streams = Streams()
                self._exchange = _DeviceHaloExchange(self)
            else:
                self._exchange = HaloExchange(self.cart, self.array, self.halo)

    # -- making blocks ---------------------------------------------------------

    @classmethod
    def tile(
        cls,
        layout: Layout,
        comm: MPI.Intracomm,
        *,
        halo: int = 1,
        dtype: Any = np.int8,
        device: Device | None = None,
        member: int = 0,
    ) -> Block:
        """This rank's tile of one distributed lattice (``exchange``), filled with zeros.

        Collective over ``comm``, whose size must be ``layout.ranks``.
        """
        device = device or Device()
        cart = cartesian(layout, comm)
        shape = layout.shape(cart.rank)
        padded = tuple(n + 2 * halo for n in shape)
        return cls(
            lattice=layout.lattice,
            array=device.put(np.zeros((1, *padded), dtype)),
            origins=np.array([layout.offset(cart.rank)], dtype=np.int64),
            members=np.array([member], dtype=np.uint64),
            halo=halo,
            policy="exchange",
            device=device,
            layout=layout,
            cart=cart,
        )

    @classmethod
    def cut(
        cls,
        states: np.ndarray,
        origins: np.ndarray | Shape,
        shape: Shape,
        members: np.ndarray,
        *,
        policy: HaloPolicy = "frozen",
        halo: int = 1,
        device: Device | None = None,
    ) -> Block:
        """Boxes of ``shape`` cut from whole periodic lattices, each in its true surroundings.

        Parameters
        ----------
        states : (B, *lattice) whole lattices
        origins : (B, ndim) or (ndim,) first inner site of each box
        members : (B,) noise keys
        policy : ``frozen`` keeps the surroundings, ``wrap`` closes each box on itself
        """
        device = device or Device()
        batch, sides = len(states), states.shape[1:]
        origins = np.broadcast_to(np.asarray(origins, dtype=np.int64), (batch, len(sides))).copy()
        array = np.empty((batch, *(n + 2 * halo for n in shape)), states.dtype)
        _cut_boxes(_in_3d(np.ascontiguousarray(states)), _corners(origins, halo), _in_3d(array))
        block = cls(
            lattice=Lattice(sides),
            array=device.put(array),
            origins=origins,
            members=np.asarray(members, dtype=np.uint64),
            halo=halo,
            policy=policy,
            device=device,
        )
        block.fill_halo()
        return block

    @classmethod
    def periodic(
        cls,
        states: np.ndarray,
        members: np.ndarray,
        *,
        halo: int = 1,
        device: Device | None = None,
    ) -> Block:
        """Whole small lattices, shape (B, *lattice), each periodic (``wrap``)."""
        sides = states.shape[1:]
        return cls.cut(
            states, (0,) * len(sides), sides, members, policy="wrap", halo=halo, device=device
        )

    # -- shape and content ---------------------------------------------------------

    @property
    def batch(self) -> int:
        return int(self.array.shape[0])

    @property
    def shape(self) -> Shape:
        """Inner sites along each axis."""
        return tuple(int(n) - 2 * self.halo for n in self.array.shape[1:])

    def spins(self) -> np.ndarray:
        """The inner sites on the host, (B, *shape), to be read: :meth:`load` sets them."""
        view: np.ndarray = self.inner(self.host()).view()
        view.flags.writeable = False
        return view

    def check_spins(self) -> None:
        if self.device.is_cuda and self._sound:
            return
        host = self.host()
        inner = self.inner(host)
        if not is_spins(host) and not is_spins(inner):  # all at once is faster
            if not inner.any():
                raise no_state("Set the spins, as sim.set_spins(initial.shuffled) does.")
            raise spin_fault(inner)
        self._sound = True

    def inner(self, array: np.ndarray | None = None) -> Any:
        """View of the field (or of a host copy of it) without its halo."""
        array = self.array if array is None else array
        inside = slice(self.halo, -self.halo)
        return array[(slice(None), *(inside,) * (len(array.shape) - 1))]

    def copy(self) -> Block:
        """The same boxes with a field of their own."""
        return replace(self, array=self.device.duplicate(self.array))

    def copy_from(self, other: Block) -> None:
        """Take the field, halo included, of a block of the same boxes."""
        self.device.copy_box(self.array, other.array)

    def host(self) -> np.ndarray:
        """The field with its halo on the host: the array itself on the CPU, else a copy."""
        return self.device.get(self.array)

    def store(self, rows: slice, spins: np.ndarray) -> None:
        """Set some inner rows from a host array (B, rows, ...); the halo is not touched.

        Raises
        ------
        InputError : numbers that the field cannot hold
        """
        self._note_store()
        given, self._sound = np.asarray(spins), False
        values = given
        if given.dtype != self.array.dtype:
            with np.errstate(invalid="ignore"):
                values = given.astype(self.array.dtype)
            if not np.array_equal(values, given):
                wrong = given[values != given][0].item()
                allowed = f"numbers that fit {self.array.dtype}"
                raise InputError("spins", wrong, allowed, "Look at the initial state.")
        inside = self.inner()[:, rows]
        self.device.copy_box(inside, self.device.put(values))

    def load(self, inner: np.ndarray) -> None:
        """Set the inner sites from a host array (B, *shape) and fill the halo. Collective."""
        with self.agreed():
            self.store(slice(0, self.shape[0]), inner)
        self.fill_halo()

    def paste(self, states: np.ndarray) -> None:
        """Write the inner sites back into the whole lattices they were cut from."""
        boxes = _in_3d(self.host())
        _paste_boxes(_in_3d(states), _corners(self.origins, self.halo), self.halo, boxes)

    def _require_room_for_halo(self) -> None:
        """Raise, on all ranks alike, if edges are thinner than the halos they fill."""
        shapes = [self.shape]
        if self.layout is not None:
            shapes = [self.layout.shape(rank) for rank in range(self.layout.ranks)]
        thinnest = min(min(shape) for shape in shapes)
        if self.policy != "frozen" and not 0 < self.halo <= thinnest:
            raise InputError(
                "halo",
                self.halo,
                f"at least 1 and at most {thinnest} sites, the shortest side of a box",
                "Use a larger lattice or fewer ranks.",
            )

    # -- communication -------------------------------------------------------------

    def update(self, part: Callable[[slice, slice, Any], None]) -> None:
        """Work on all of a 2-dimensional box, then bring the halo up to date. Collective.

        On a CUDA device with neighbours the edges come first, and the inside is worked on while
        these travel.

        Parameters
        ----------
        part : begins work on some rows and columns of the box in a stream of the device, 0 for
            that of all else; it must not matter which part is first
        """
        (ny, nx), halo, streams = self.shape, self.halo, self.streams
        if streams is None:
            part(slice(0, ny), slice(0, nx), 0)
            self.fill_halo()
            return
        y0, x0 = min(halo, ny), min(halo, nx)
        y1, x1 = max(y0, ny - halo), max(x0, nx - halo)
        inside = slice(y0, y1)
        streams.join()
        for rows in (slice(0, y0), slice(y1, ny)):
            part(rows, slice(0, nx), streams.edges)
        for columns in (slice(0, x0), slice(x1, nx)):
            part(inside, columns, streams.edges)
        part(inside, slice(x0, x1), streams.inside)
        self.fill_halo()
        streams.join()

    def fill_halo(self) -> None:
        """Bring the halo up to date, as the policy says. Collective for ``exchange``."""
        if self.policy == "frozen":
            return
        if self._exchange is None:
            for axis in range(1, len(self.array.shape)):
                _wrap_axis(self.device, self.array, axis, self.halo)
        else:
            self._exchange()


class _DeviceHaloExchange:
    """:class:`HaloExchange` of a CUDA field: strips are packed on the device, in one stream."""

    def __init__(self, block: Block) -> None:
        assert block.cart is not None  # noqa: S101 - for the type checker
        assert block.streams is not None  # noqa: S101
        self.device, self.array, self.halo = block.device, block.array, block.halo
        self.messages: list[DeviceMessages | None] = []
        self.stream = block.streams.edges
        for axis, ranks in enumerate(block.cart.dims):
            shape = _strip(self.array, axis + 1, 0, self.halo).shape
            strips = {axis: tuple(shape)} if ranks > 1 else {}
            one = (block.cart, self.device, strips, self.array.dtype, self.stream)
            self.messages.append(DeviceMessages(*one) if strips else None)

    def __call__(self) -> None:
        for axis, messages in enumerate(self.messages):
            if messages is None:
                _wrap_axis(self.device, self.array, axis + 1, self.halo, self.stream)
                continue
            low_halo, low_edge, high_edge, high_halo = (
                _strip(self.array, axis + 1, start, self.halo)
                for start in _strip_starts(self.array.shape[axis + 1], self.halo)
            )
            copy, edges, halos = self.device.copy_box, messages.edges[axis], messages.halos[axis]
            copy(edges[0], low_edge, self.stream)
            copy(edges[1], high_edge, self.stream)
            messages.start()
            messages.finish()
            copy(low_halo, halos[0], self.stream)
            copy(high_halo, halos[1], self.stream)


def gather_records(rows: np.ndarray, comm: MPI.Intracomm) -> np.ndarray | None:
    """Rows of all ranks, in rank order, on rank 0 (None elsewhere): one collective.

    ``rows`` is (n, ...) of any dtype without objects; n may differ between ranks,
    the rest may not.
    """
    rows = np.ascontiguousarray(rows)
    size = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    kind = MPI.BYTE.Create_contiguous(size).Commit()
    counts = comm.gather(len(rows))
    out = None if counts is None else np.empty((sum(counts), *rows.shape[1:]), rows.dtype)
    comm.Gatherv(
        [rows, len(rows), kind], None if out is None else [out, counts, None, kind], root=0
    )
    kind.Free()
    return out


@kernel
def _copy(source: np.ndarray, first: int, target: np.ndarray, at: int, count: int) -> None:
    # Unsigned: a test for negative indices in the loop would double its time.
    i, j = np.uint64(first), np.uint64(at)
    for k in range(count):
        target[j + np.uint64(k)] = source[i + np.uint64(k)]


def _in_3d(array: np.ndarray) -> np.ndarray:
    """The same field with three axes after that of the batch, new ones of length 1."""
    return array[(slice(None), *(None,) * (4 - array.ndim))]


def _corners(origins: np.ndarray, halo: int) -> np.ndarray:
    """First points of padded boxes, (B, 3): new axes have no halo."""
    return np.pad(origins - halo, ((0, 0), (3 - origins.shape[1], 0)))


@kernel
def _cut_boxes(states: np.ndarray, corners: np.ndarray, out: np.ndarray) -> None:
    """Copy a padded box out of each of B periodic lattices of three axes."""
    lz, ly, lx = states.shape[1:]
    source, target = states.reshape(-1), out.reshape(-1)
    depth, height, width = out.shape[1:]
    for b in range(out.shape[0]):
        first = corners[b, 2] % lx
        for k in range(depth):
            z, y = (corners[b, 0] + k) % lz, corners[b, 1] % ly
            for i in range(height):
                row, to = ((b * lz + z) * ly + y) * lx, ((b * depth + k) * height + i) * width
                # Stretches of columns that do not run over the periodic edge.
                x, j = first, 0
                while j < width:
                    count = min(lx - x, width - j)
                    _copy(source, row + x, target, to + j, count)
                    x, j = 0, j + count
                y = y + 1 if y + 1 < ly else 0


@kernel
def _paste_boxes(states: np.ndarray, corners: np.ndarray, halo: int, boxes: np.ndarray) -> None:
    """Copy the inner sites of padded boxes back into the lattices."""
    lz, ly, lx = states.shape[1:]
    flat = 0 if boxes.shape[1] == 1 else halo  # an axis of one site has no halo
    for b in range(boxes.shape[0]):
        for k in range(flat, boxes.shape[1] - flat):
            for i in range(halo, boxes.shape[2] - halo):
                row = states[b, (corners[b, 0] + k) % lz, (corners[b, 1] + i) % ly]
                for j in range(halo, boxes.shape[3] - halo):
                    row[(corners[b, 2] + j) % lx] = boxes[b, k, i, j]
