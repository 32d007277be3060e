"""Arrays that are cut into boxes over the ranks, whole on one of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mpiflow.core.lattice import Shape
from mpiflow.core.mpi import MPI


def gather_boxes(
    piece: np.ndarray, box: tuple[slice, ...], shape: Shape, comm: MPI.Intracomm, root: int = 0
) -> np.ndarray | None:
    """The array of which every rank has a box, on one rank (None elsewhere). Collective.

    Parameters
    ----------
    piece : of any dtype without objects. Where boxes are the same, any of them is taken
    box : its place in the array
    shape : of the array
    """
    boxes = comm.gather(box, root=root)
    if boxes is None:
        _send(piece, comm, root)
        return None
    whole = np.zeros(shape, piece.dtype)
    for rank, place in enumerate(boxes):
        if rank != comm.rank:
            whole[place] = _receive(whole[place].shape, whole.dtype, comm, rank)
    whole[box] = piece
    return whole


def scatter_boxes(
    whole: np.ndarray | None, box: tuple[slice, ...], comm: MPI.Intracomm, root: int = 0
) -> np.ndarray:
    """This rank's box of an array that one rank has. Collective.

    Parameters
    ----------
    whole : on ``root``, of any dtype without objects; elsewhere it is not looked at
    """
    boxes = comm.gather(box, root=root)
    kind = comm.bcast(None if whole is None else whole.dtype, root=root)
    if boxes is None:
        return _receive(tuple(side.stop - side.start for side in box), kind, comm, root)
    assert whole is not None  # noqa: S101 - for the type checker
    for rank, place in enumerate(boxes):
        if rank != comm.rank:
            _send(whole[place], comm, rank)
    return whole[box].copy()


def _send(piece: np.ndarray, comm: MPI.Intracomm, rank: int) -> None:
    piece = np.ascontiguousarray(piece)
    with _in_rows(piece) as message:
        comm.Send(message, rank, tag=2)


def _receive(shape: Shape, kind: np.dtype[Any], comm: MPI.Intracomm, rank: int) -> np.ndarray:
    out = np.empty(shape, kind)
    with _in_rows(out) as message:
        comm.Recv(message, rank, tag=2)
    return out


@contextmanager
def _in_rows(array: np.ndarray) -> Iterator[list[Any]]:
    """An array as a message of rows: of bytes there may be more than MPI counts."""
    kind = MPI.BYTE.Create_contiguous(array.itemsize * array.shape[-1]).Commit()
    yield [array, math.prod(array.shape[:-1]), kind]
    kind.Free()
