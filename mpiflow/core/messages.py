"""Messages between ranks, and how compiled loops start and finish them.

Kernels call MPI itself, so that a pass over a thin tile waits for neighbours and not for Python.
What they need is numbers: addresses of two functions in the library that mpi4py has loaded, and of
the handles of persistent requests. None is compiled in, so that kernels can be kept on disk.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from mpiflow.core.device import Device, intrinsic
from mpiflow.core.gpu import mpi_takes_device_memory
from mpiflow.core.mpi import MPI

#: Places in :attr:`Lines.numbers`; the handles of each group of messages follow.
_START, _FINISH, _COUNT, _STATUSES, CODE, _HANDLES = range(6)
#: The numbers of a kernel that sends nothing.
NO_LINES = np.empty(0, np.int64)


class Messages:
    """Persistent messages to and from the neighbours along axes of a Cartesian communicator.

    All axes travel at once, so nothing arrives from diagonal neighbours.

    Parameters
    ----------
    cart : periodic Cartesian communicator
    buffers : for each axis (low halo, low edge, high edge, high halo), anything that mpi4py
        takes as a buffer; fixed for the life of this object
    """

    def __init__(self, cart: MPI.Cartcomm, buffers: Mapping[int, Sequence[Any]]) -> None:
        self.requests: list[MPI.Prequest] = []
        for axis, (low_halo, low_edge, high_edge, high_halo) in buffers.items():
            low_rank, high_rank = cart.Shift(axis, 1)
            up, down = 2 * axis, 2 * axis + 1  # tags: two ranks may be both neighbours
            self.requests += [
                cart.Recv_init(low_halo, low_rank, up),
                cart.Recv_init(high_halo, high_rank, down),
                cart.Send_init(high_edge, high_rank, up),
                cart.Send_init(low_edge, low_rank, down),
            ]

    def start(self) -> None:
        MPI.Prequest.Startall(self.requests)

    def finish(self) -> None:
        MPI.Prequest.Waitall(self.requests)


class DeviceMessages:
    """The same for the memory of a GPU: edges to be sent and halos that came, one box each.

    MPI that knows GPUs takes them as they are; else they are copied to and from pinned host memory,
    while kernels of other streams run.

    Parameters
    ----------
    cart : periodic Cartesian communicator
    shapes : for each axis the shape of an edge
    dtype : of the numbers
    stream : in which edges are packed and halos unpacked

    Attributes
    ----------
    edges, halos : for each axis (2, *shape) on the device: low and high; what is written into the
        first in ``stream`` is sent by :meth:`start`, and the second is there after :meth:`finish`
    """

    def __init__(
        self, cart: MPI.Cartcomm, device: Device, shapes: Mapping[int, Any], dtype: Any, stream: Any
    ) -> None:
        self.stream, self.direct = stream, mpi_takes_device_memory()
        pairs = {axis: (2, *shape) for axis, shape in shapes.items()}
        self.edges, self.halos = (
            {axis: device.empty(shape, dtype) for axis, shape in pairs.items()} for _ in range(2)
        )
        # For the host: as many in pinned memory.
        self._sent, self._got = (
            {} if self.direct else {axis: device.pinned(s, dtype) for axis, s in pairs.items()}
            for _ in range(2)
        )
        buffers: dict[int, list[Any]] = {}
        for axis in shapes:
            if self.direct:
                edges, halos = self.edges[axis], self.halos[axis]
                ends = halos[0], edges[0], edges[1], halos[1]
                buffers[axis] = [device.memory(end) for end in ends]
            else:
                sent, got = self._sent[axis], self._got[axis]
                buffers[axis] = [got[0], sent[0], sent[1], got[1]]
        self._messages = Messages(cart, buffers)

    def start(self) -> None:
        """Send the edges, once they are packed."""
        for axis, host in self._sent.items():
            self.edges[axis].copy_to_host(host, stream=self.stream)
        self.stream.synchronize()
        self._messages.start()

    def finish(self) -> None:
        """Wait for the halos."""
        self._messages.finish()
        for axis, host in self._got.items():
            self.halos[axis].copy_to_device(host, stream=self.stream)


class Lines:
    """Groups of as many persistent messages each, for kernels: :func:`call_mpi`.

    Attributes
    ----------
    numbers : int64, what kernels take
    """

    def __init__(self, functions: tuple[int, int], groups: Sequence[Messages]) -> None:
        self.groups = groups  # MPI frees requests that nobody has
        self._handles = [_handles(group.requests) for group in groups]
        count = len(groups[0].requests)
        # Real ones: MPI_STATUSES_IGNORE is another address in each MPI.
        self._statuses = np.zeros(count * MPI._sizeof(MPI.Status), np.uint8)
        places = [array.ctypes.data for array in (self._statuses, *self._handles)]
        start, finish = functions
        self.numbers = np.array([start, finish, count, places[0], 0, *places[1:]], np.int64)

    @classmethod
    def of(cls, groups: Sequence[Messages]) -> Lines | None:
        """None where the functions of MPI were not found: messages then start from Python."""
        functions = functions_of_mpi()
        return None if functions is None else cls(functions, groups)

    def check(self) -> None:
        """Raise what MPI said in a kernel, which has ended early then."""
        code, self.numbers[CODE] = int(self.numbers[CODE]), 0
        if code:
            raise MPI.Exception(code)


def _handles(requests: Sequence[MPI.Prequest]) -> np.ndarray:
    """Handles as they lie in an array of C, whatever they are: addresses or numbers."""
    size = MPI._sizeof(MPI.Request)
    parts = [ctypes.string_at(MPI._addressof(request), size) for request in requests]
    return np.frombuffer(b"".join(parts), np.uint8).copy()


@lru_cache(maxsize=1)
def functions_of_mpi() -> tuple[int, int] | None:
    """Addresses of MPI_Startall and MPI_Waitall in mpi4py's library; None if not found."""
    try:
        # What a module of Python was linked with is looked through after itself.
        library = ctypes.CDLL(sys.modules[MPI.Request.__module__].__file__)
        said, length = ctypes.create_string_buffer(2**14), ctypes.c_int()
        library.MPI_Get_library_version(said, ctypes.byref(length))
        if said.value.decode() != MPI.Get_library_version().rstrip("\0"):
            return None  # another MPI that happens to be in this process
        start, finish = (
            ctypes.cast(function, ctypes.c_void_p).value
            for function in (library.MPI_Startall, library.MPI_Waitall)
        )
    except (AttributeError, OSError, TypeError, UnicodeError):
        return None
    return None if start is None or finish is None else (start, finish)


@intrinsic
def call_mpi(ir: Any, builder: Any, lines: Any, group: Any, waits: Any) -> None:
    """Start the messages of a group of :attr:`Lines.numbers`, or wait for them.

    What MPI says is in ``lines[CODE]``: 0 if all went well. In a kernel that calls this once or
    twice it compiles in a tenth of the time that functions of Python would take.
    """
    number, place = ir.IntType(32), ir.IntType(8).as_pointer()

    def at(index: Any) -> Any:
        return builder.load(builder.gep(lines, [index]))

    def call(function: int, *places: Any) -> None:
        given = [builder.trunc(at(group.type(_COUNT)), number)]
        given += [builder.inttoptr(at(index), place) for index in places]
        kind = ir.FunctionType(number, [a.type for a in given]).as_pointer()
        said = builder.call(builder.inttoptr(at(group.type(function)), kind), given)
        builder.store(builder.sext(said, group.type), builder.gep(lines, [group.type(CODE)]))

    handles = builder.add(group, group.type(_HANDLES))
    with builder.if_else(builder.icmp_signed("!=", waits, group.type(0))) as (then, otherwise):
        with then:
            call(_FINISH, handles, group.type(_STATUSES))
        with otherwise:
            call(_START, handles)


class NeighbourMessages:
    """Records of any number to and from all neighbouring ranks, diagonal ones too.

    One message a call to every neighbour, the same to all; those that are posted need not be
    waited for until the next are. For a few scattered changes they are cheaper than halos.

    Parameters
    ----------
    cart : periodic Cartesian communicator
    columns : int64 numbers of a record
    """

    _TAG = 77

    def __init__(self, cart: MPI.Cartcomm, columns: int) -> None:
        self.cart, self.columns = cart, columns
        near = [
            {(c + step) % n for step in (-1, 0, 1)}
            for c, n in zip(cart.Get_coords(cart.rank), cart.dims, strict=True)
        ]
        ranks = {cart.Get_cart_rank(list(place)) for place in product(*near)}
        self.neighbours = sorted(ranks - {cart.rank})
        self._sent: list[MPI.Request] = []
        self._message = np.empty((0, columns), np.int64)
        self._posted = 0

    def post(self, records: np.ndarray) -> None:
        """Send records (n, columns) int64 to every neighbour."""
        MPI.Request.Waitall(self._sent)
        self._message = records.copy()
        self._sent = [self.cart.Isend(self._message, rank, self._TAG) for rank in self.neighbours]
        self._posted += 1

    def collect(self) -> Iterator[np.ndarray]:
        """The records of every message that neighbours have posted as often as this rank has."""
        for _ in range(self._posted):
            for rank in self.neighbours:
                status = MPI.Status()
                message = self.cart.Mprobe(rank, self._TAG, status)
                records = np.empty(status.Get_count(MPI.INT64_T), np.int64)
                message.Recv(records)
                yield records.reshape(-1, self.columns)
        self._posted = 0
