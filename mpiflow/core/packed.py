"""A PackedBlock: large boxes of spins as bits, 64 sites of one colour in a word.

Bit b of word w in row y of colour c is the site ``x = 2 (64 w + b) + (c + y) % 2``: set is
spin up. Each colour has a halo of one row above and below and of one word on either side.
A spin takes one bit, so 16384 x 16384 spins are 32 MB.

A row of a colour has half as many sites as the box has columns, any number of them. The bit
after the last one holds the neighbour beyond the edge: it is bit 0 of the halo word where the
last word is full, else a bit of the last word itself. What other bits of that word hold does
not matter. The neighbour before the first site is the last bit of the halo word there.

With one site in four corners unused, edges travel at once to all neighbours: rows as they
are, columns as one bit a row. A solver starts the exchange of one colour and works on the
inside of the other colour until :meth:`PackedBlock.finish_exchange`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from mpiflow.core.block import Boxes, HaloPolicy, cartesian
from mpiflow.core.device import Device, Streams
from mpiflow.core.errors import InputError
from mpiflow.core.guards import is_spins, no_state, spin_fault
from mpiflow.core.lattice import Lattice, Layout, Shape
from mpiflow.core.messages import DeviceMessages, Lines, Messages
from mpiflow.core.mpi import MPI
from mpiflow.core.noise import MAX_MEMBER
from mpiflow.core.packed_words import (
    close,
    close_cuda,
    copy_edges_cuda,
    move_columns,
    pack_rows,
    sums_of_aligned,
    sums_of_blocks,
    sums_of_box,
    unpack_rows,
)

#: Sites in a word along x; boxes begin at multiples of it.
WORD_SITES = 128
#: Rows that share one random stream: a box that begins within a band repeats its first draws.
BAND = 8
#: Where boxes may begin, along y and x: rows alternate in which colour comes first.
CUT = (2, WORD_SITES)
#: Columns below which words are too empty for packing to pay.
LEAST_COLUMNS = 64
#: Words that take the place of a row in the noise of a lattice whose rows run on.
LANES = 16
#: Columns and sites from which on rows never run on: noise in vain costs little there, and larger
#: lattices are worth more ranks and threads.
MOST_COLUMNS, MOST_SITES = 512, 2**20


def fits(lattice: Lattice) -> bool:
    """Whether the spins of a lattice can be packed: two colours, and words that are half full."""
    return (
        lattice.ndim == 2
        and not any(side % 2 for side in lattice.shape)
        and lattice.shape[0] >= BAND
        and lattice.shape[1] >= LEAST_COLUMNS
    )


def runs_on(lattice: Lattice) -> bool:
    """Whether noise belongs to words of 64 sites in the order of sites, whatever their rows.

    So it is where rows are short and not of whole words, and the lattice is small: of words of a
    row, and of bands of rows, too many bits would be no site. Sixteen words in turn then have the
    noise of a row of sixteen words.
    """
    ragged = lattice.shape[-1] % WORD_SITES != 0 and lattice.shape[-1] < MOST_COLUMNS
    return fits(lattice) and ragged and math.prod(lattice.shape) <= MOST_SITES


def cut_of(lattice: Lattice) -> Shape:
    """Units of rows and columns that solvers' tiles are cut in: whole rows where they run on."""
    return (CUT[0], lattice.shape[1]) if runs_on(lattice) else CUT


def words_across(columns: int) -> int:
    """Words of one colour in a row of a box."""
    return -(-columns // WORD_SITES)


@dataclass
class PackedBlock(Boxes):
    """A batch of equal boxes of Ising spins, one bit a spin.

    Attributes
    ----------
    lattice, origins, members, policy, device, layout, cart : as of
        :class:`~mpiflow.core.block.Block`
    columns : sites of a row, nx
    words : black and white, each (B, ny + 2, ceil(nx / 128) + 2) uint64 on ``device``
    """

    lattice: Lattice
    columns: int
    words: tuple[Any, Any]
    origins: np.ndarray
    members: np.ndarray
    policy: HaloPolicy
    device: Device = field(default_factory=Device)
    layout: Layout | None = None
    cart: MPI.Cartcomm | None = None

    def __post_init__(self) -> None:
        if np.any(self.members >= MAX_MEMBER):  # it would draw another stream's noise
            raise InputError(
                "members", int(self.members.max()), f"below {MAX_MEMBER}", "Number them from 0."
            )
        self._exchanges: tuple[_Edges | _DeviceEdges, _Edges | _DeviceEdges] | None = None
        # Of a CUDA device, where edges travel.
        self.streams: Streams | None = None
        # Of both colours: bits before the first, of the first, of the last column and after it.
        self.columns_sent = np.zeros((2, 4, 0), np.uint64)
        self._unset = np.ones(self.shape[0], bool)

    @classmethod
    def tile(
        cls, layout: Layout, comm: MPI.Intracomm, *, device: Device | None = None, member: int = 0
    ) -> PackedBlock:
        """This rank's tile of one distributed lattice, not set yet. Collective."""
        _require_words(layout.lattice, [layout.offset(rank) for rank in range(layout.ranks)])
        cart = cartesian(layout, comm)
        block = cls(
            lattice=layout.lattice,
            columns=layout.shape(cart.rank)[1],
            words=_empty(1, layout.shape(cart.rank), device),
            origins=np.array([layout.offset(cart.rank)], dtype=np.int64),
            members=np.array([member], dtype=np.uint64),
            policy="exchange",
            device=device or Device(),
            layout=layout,
            cart=cart,
        )
        if cart.size > 1:
            block.streams = Streams() if block.device.is_cuda else None
            if cart.dims[1] > 1 and not block.streams:
                block.columns_sent = np.zeros((2, 4, -(-block.shape[0] // 64)), np.uint64)
            kind = _DeviceEdges if block.streams else _Edges
            black, white = (kind(block, colour) for colour in (0, 1))
            block._exchanges = black, white
        return block

    @classmethod
    def periodic(
        cls, lattice: Lattice, members: np.ndarray, *, device: Device | None = None
    ) -> PackedBlock:
        """Whole lattices, one for each member, each periodic, not set yet."""
        _require_words(lattice)
        return cls(
            lattice=lattice,
            columns=lattice.shape[1],
            words=_empty(len(members), lattice.shape, device),
            origins=np.zeros((len(members), 2), np.int64),
            members=np.asarray(members, dtype=np.uint64),
            policy="wrap",
            device=device or Device(),
        )

    @property
    def batch(self) -> int:
        return int(self.words[0].shape[0])

    @cached_property
    def runs_on(self) -> bool:
        """Whether noise is in the order of sites: :func:`runs_on` of the lattice."""
        return runs_on(self.lattice)

    @property
    def shape(self) -> Shape:
        """Inner sites along each axis."""
        return int(self.words[0].shape[1]) - 2, self.columns

    def copy(self) -> PackedBlock:
        """The same spins, black ones in memory of their own, without a halo exchange."""
        black = self.device.duplicate(self.words[0])
        other = replace(self, words=(black, self.words[1]))
        other._unset = self._unset
        return other

    def copy_from(self, other: PackedBlock) -> None:
        """Take the black spins of the block that this is a copy of; it shares the white ones."""
        self.device.copy_box(self.words[0], other.words[0])

    def host(self) -> tuple[np.ndarray, np.ndarray]:
        """Both colours on the host: the arrays themselves on the CPU, else copies."""
        return self.device.get(self.words[0]), self.device.get(self.words[1])

    # -- spins in and out ----------------------------------------------------------

    def store(self, rows: slice, spins: np.ndarray) -> None:
        """Set some inner rows from a host array (B, rows, nx) of +1 and -1; all else is refused."""
        self._note_store()
        spins = np.asarray(spins)
        if not is_spins(spins):
            raise spin_fault(spins)
        self._unset[rows] = False
        first, count = rows.start + 1, rows.stop - rows.start
        inside = (slice(None), slice(first, first + count), slice(1, -1))
        packed = np.empty((2, self.batch, count, words_across(self.columns)), np.uint64)
        pack_rows(np.ascontiguousarray(spins), rows.start, packed)
        for words, new in zip(self.words, packed, strict=True):
            self.device.copy_box(words[inside], self.device.put(new))

    def spins(self, rows: slice | None = None) -> np.ndarray:
        """Some inner rows (all) as a host array (B, rows, nx) int8, to be read."""
        rows = slice(0, self.shape[0]) if rows is None else rows
        out = np.empty((self.batch, rows.stop - rows.start, self.shape[1]), np.int8)
        unpack_rows(*self.host(), rows.start, out)
        out.flags.writeable = False  # what is written there would be lost
        return out

    def check_spins(self) -> None:
        # Bits are always spins, if all were set; words may have been written to directly.
        if not self.batch or not self._unset.any():
            return
        if not self._unset.all() or not any(words.any() for words in self.host()):
            raise no_state("Set all spins, as sim.set_spins(initial.shuffled) does.")

    def load(self, spins: np.ndarray) -> None:
        """Set all spins from a host array (B, ny, nx) and fill the halos. Collective."""
        with self.agreed():
            self.store(slice(0, self.shape[0]), spins)
        self.fill_halo()

    def sums(self) -> np.ndarray:
        """Sum of spins and of s_i s_j over the bonds of black sites, (B, 2) int64, of this rank.

        Every bond has one black end, so the tiles of a lattice count each once.
        """
        out = np.zeros((self.batch, 2), np.int64)
        sums_of_box(*self.host(), self.columns // 2, out)
        return out

    def block_sums(self, size: int) -> np.ndarray:
        """Sums of spins over coarse blocks of ``size`` sites a side, (B, ny, nx) int32."""
        ny, nx = self.shape
        out = np.zeros((self.batch, ny // size, nx // size), np.int32)
        if size % 2 == 0 and (WORD_SITES % size == 0 or size % WORD_SITES == 0):
            sums_of_aligned(*self.host(), size, out)
        else:
            sums_of_blocks(*self.host(), size, out)
        return out

    # -- halo ----------------------------------------------------------------------

    @cached_property
    def wraps(self) -> tuple[bool, bool]:
        """Whether the box meets itself at its ends, along y and along x."""
        if self.cart is None:
            return True, True
        return self.cart.dims[0] == 1, self.cart.dims[1] == 1

    @cached_property
    def lines(self) -> Lines | None:
        """How kernels exchange edges of black and of white words; None where they cannot."""
        if self._exchanges is None:
            return None
        edges = [edges for edges in self._exchanges if isinstance(edges, _Edges)]
        return Lines.of([each.messages for each in edges]) if edges else None

    def start_exchange(self, colour: int, columns: bool = True) -> None:
        """Wrap one colour's edges onto itself, and begin to send those that other ranks need.

        ``columns=False`` where a solver has wrapped the columns already.
        """
        array, (wrap_y, wrap_x), half = self.words[colour], self.wraps, self.columns // 2
        wrap_x = wrap_x and columns
        if wrap_y or wrap_x:
            if self.device.is_cuda:
                stream: Any = 0
                if self.streams:  # not for the edges: they are on their way sooner
                    stream = self.streams.inside
                    self.streams.wait(stream, self.streams.edges)
                threads = array.shape[0] * max(array.shape[1:])
                wraps = int(wrap_y), int(wrap_x)
                close_cuda.launch(threads, array, half, *wraps, stream=stream)
            else:
                close(array, half, wrap_y, wrap_x)
        if self._exchanges:
            self._exchanges[colour].start()

    def exchange_started(self, colour: int) -> None:
        """A kernel has begun to send one colour's edges."""
        if self._exchanges:
            self._exchanges[colour].on_their_way = True

    def finish_exchange(self, colour: int) -> None:
        """Wait for the neighbours' edges of one colour."""
        if self._exchanges:
            self._exchanges[colour].finish()

    def fill_halo(self) -> None:
        """Bring both halos up to date. Collective for ``exchange``."""
        for colour in (0, 1):
            self.start_exchange(colour)
        for colour in (0, 1):
            self.finish_exchange(colour)


def _require_words(lattice: Lattice, corners: Sequence[Shape] = ()) -> None:
    """Raise, on all ranks alike, if spins do not pack, or a tile would begin within a word."""
    if not fits(lattice):
        raise InputError(
            "size",
            lattice.shape,
            f"even sides of at least {BAND} rows and {LEAST_COLUMNS} columns for packed spins",
            "Use kernel 'plain'.",
        )
    wrong = [corner for corner in corners if any(at % n for at, n in zip(corner, CUT, strict=True))]
    if wrong:
        raise InputError(
            "tile",
            wrong[0],
            f"tiles that begin at even rows and multiples of {WORD_SITES} columns",
            "Use fewer ranks, ranks_grid with fewer columns, or kernel 'plain'.",
        )


def _empty(batch: int, shape: Shape, device: Device | None) -> tuple[Any, Any]:
    device = device or Device()
    padded = batch, shape[0] + 2, words_across(shape[1]) + 2
    black, white = (device.put(np.zeros(padded, np.uint64)) for _ in range(2))
    return black, white


class _Edges:
    """Sends the edges of one colour's words to the neighbouring ranks and receives theirs.

    Rows are words as they are in the array. Of the words in the first and last column a
    neighbour needs one bit a row: these go as packed bits.
    """

    #: With ``start`` and ``finish``: :class:`Messages`, or those of device memory.
    messages: Any

    def __init__(self, block: PackedBlock, colour: int) -> None:
        assert block.cart is not None  # noqa: S101 - for the type checker
        self.array, self.half = block.words[colour], block.columns // 2
        dims, rows = block.cart.dims, self.array.shape[1]
        # For each axis: low halo, low edge, high edge, high halo.
        self.staged: dict[int, np.ndarray] = {}
        strips: dict[int, Sequence[np.ndarray]] = {}
        if dims[1] > 1:
            self.staged[1] = block.columns_sent[colour]
        if dims[0] > 1:
            strips[0] = [self.array[0, y] for y in (0, 1, rows - 2, rows - 1)]  # MPI's own way
        strips |= {axis: list(buffers) for axis, buffers in self.staged.items()}
        self.messages = Messages(block.cart, strips)
        self.on_their_way = False

    def _move(self, into: bool) -> None:
        """Take the edges out of the array, or put what has come into its halo."""
        for buffers in self.staged.values():
            move_columns(self.array, self.half, buffers, into)

    def start(self) -> None:
        self._move(False)
        self.messages.start()
        self.on_their_way = True

    def finish(self) -> None:
        if not self.on_their_way:
            return
        self.messages.finish()
        self.on_their_way = False
        self._move(True)


class _DeviceEdges(_Edges):
    """The same on a CUDA device, in the stream of the edges: the inside goes on meanwhile."""

    def __init__(self, block: PackedBlock, colour: int) -> None:
        assert block.cart is not None  # noqa: S101 - as above
        assert block.streams is not None  # noqa: S101
        self.array, self.half = block.words[colour], block.columns // 2
        dims, (_, rows, width) = block.cart.dims, self.array.shape
        words = {0: width, 1: -(-(rows - 2) // 64)}  # rows as they are, columns as bits
        shapes = {axis: (n,) for axis, n in words.items() if dims[axis] > 1}
        stream = block.streams.edges
        self.messages = DeviceMessages(block.cart, block.device, shapes, np.uint64, stream)
        self.on_their_way = False

    def _move(self, into: bool) -> None:
        messages, out = self.messages, int(not into)
        for axis, edges in (messages.halos if into else messages.edges).items():
            copy_edges_cuda.launch(
                edges.shape[1], self.array, self.half, axis, edges, out, stream=messages.stream
            )
