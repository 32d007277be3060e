"""Messages between ranks, from Python and from kernels."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.core import messages
from mpiflow.core.device import kernel
from mpiflow.core.lattice import factorisations
from mpiflow.core.messages import CODE, Lines, Messages, call_mpi


@kernel
def turns(lines: np.ndarray, group: int, times: int) -> int:
    """Exchanges until one fails; how many there were."""
    for number in range(times):
        for waits in (False, True):
            call_mpi(lines, group, waits)
            if lines[CODE]:
                return number
    return times


def neighbours(comm: MPI.Intracomm, grid: tuple[int, ...]) -> tuple[MPI.Cartcomm, dict, Messages]:
    cart = comm.Create_cart(grid, [True, True], reorder=False)
    buffers = {axis: np.zeros((4, axis + 2), np.int64) for axis in (0, 1)}
    return cart, buffers, Messages(cart, {axis: tuple(rows) for axis, rows in buffers.items()})


@pytest.mark.mpi
@pytest.mark.parametrize("compiled", [False, True], ids=["from Python", "from a kernel"])
def test_messages_reach_the_neighbours_on_their_side(comm: MPI.Intracomm, compiled: bool) -> None:
    """All axes at once, again and again; also where one rank is both neighbours, or itself."""
    for grid in factorisations(comm.size, 2):
        cart, buffers, these = neighbours(comm, grid)
        lines = Lines.of([these])
        assert lines is not None  # Open MPI and MPICH have what it takes
        for turn in range(3):
            for axis, rows in buffers.items():
                rows[1] = 1000 * turn + 10 * cart.rank + axis
                rows[2] = rows[1] + 5
                rows[::3] = -1
            if compiled:
                assert turns(lines.numbers, 0, 2) == 2
                lines.check()
            else:
                these.start()
                these.finish()
            for axis, rows in buffers.items():
                low, high = cart.Shift(axis, 1)
                assert (rows[0] == 1000 * turn + 10 * low + axis + 5).all()
                assert (rows[3] == 1000 * turn + 10 * high + axis).all()
        cart.Free()


@pytest.mark.parametrize("fails", ["start", "finish"])
def test_what_mpi_says_in_a_kernel_is_raised(comm: MPI.Intracomm, fails: str) -> None:
    """Once, after the kernel has ended early."""
    cart, _, these = neighbours(MPI.COMM_SELF, (1, 1))
    code = MPI.ERR_TRUNCATE
    broken = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda count: code)
    address = ctypes.cast(broken, ctypes.c_void_p).value
    found = messages.functions_of_mpi()
    assert address
    assert found
    functions = (address, found[1]) if fails == "start" else (found[0], address)
    lines = Lines(functions, [these])
    assert turns(lines.numbers, 0, 3) == 0
    with pytest.raises(MPI.Exception, match="truncated"):
        lines.check()
    lines.check()
    if fails == "finish":
        these.finish()
    cart.Free()
