"""States that are given as arrays or as functions of sites: this rank's part of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.boxes import scatter_boxes
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed

#: A state as it may be given: an array, nothing on ranks that have none, or a function of sites.
Given = np.ndarray | Callable[..., Any] | None


def part_of(
    given: Given, place: tuple[slice, ...], whole: Shape, comm: MPI.Intracomm, root: int = 0
) -> np.ndarray:
    """This rank's part of a state, (members here, *sides here) in the dtype it came in. Collective.

    Parameters
    ----------
    given : as of :meth:`~mpiflow.simulation.base.Simulated.set_state`
    place : of that part in the whole state
    whole : (members, *sides)
    root : the rank that has the whole state, if one has

    Raises
    ------
    InputError : on all ranks, if shapes do not fit or the function does not return numbers
    """
    here = tuple(side.stop - side.start for side in place)
    if all(comm.allgather(callable(given))):
        with agreed(comm):
            assert callable(given)  # noqa: S101 - for the type checker
            return _computed(given, place, here)
    with agreed(comm):
        values = None if given is None else _numbers(given)
    shapes: list[Shape | None] = comm.allgather(None if values is None else values.shape)
    if _fits(shapes[root], whole):
        one = shapes[root] == whole[1:]  # the same state for all members
        if values is not None and comm.rank == root:
            values = np.broadcast_to(values, whole)
        kept = place if not one else (slice(0, 1), *place[1:])
        part = scatter_boxes(values, kept, comm, root)
        return np.broadcast_to(part, here)
    with agreed(comm):
        if values is None or not _fits(values.shape, here):
            allowed = f"an array of {whole} (members, sides) on rank {root}, or of {here} here"
            remedy = "Give an array of the whole state, one of each rank's part, or a function."
            raise InputError("state", shapes[comm.rank], allowed, remedy)
    assert values is not None  # noqa: S101 - for the type checker
    return np.broadcast_to(values, here)


def _fits(shape: Shape | None, wanted: Shape) -> bool:
    """The axis of members may be left out: a state for all of them."""
    return shape == wanted or shape == wanted[1:]


def _numbers(given: Any) -> np.ndarray:
    values = np.asarray(given)
    if values.dtype.kind not in "iuf":
        remedy = "Of truth values b, 2 * b.astype('int8') - 1 are spins."
        raise InputError("state", f"an array of {values.dtype}", "numbers", remedy)
    return values


def _computed(given: Callable[..., Any], place: tuple[slice, ...], here: Shape) -> np.ndarray:
    """What a function of the coordinates of sites says of those of this rank."""
    members, *sites = np.ogrid[place]
    names = inspect.signature(given).parameters
    values = _numbers(given(*sites, **({"member": members} if "member" in names else {})))
    try:
        return np.broadcast_to(values, here)
    except ValueError:
        allowed = f"an array that broadcasts to {here}"
        remedy = "Return a value for each of the coordinates."
        raise InputError(
            "state", f"a function that returns {values.shape}", allowed, remedy
        ) from None
