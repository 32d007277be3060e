"""Clusters of equal neighbours on a periodic square lattice, cut over ranks or not.

Each rank labels the clusters of its part alone (scipy.ndimage). Labels on both sides of the
borders between parts, and of those where the lattice closes on itself, belong together where the
states are equal; rank 0 gets these pairs and the sizes of the clusters at borders, and joins them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiflow.core.errors import InputError


def cluster_counts(part: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Sizes of clusters and how many there are of each, of every member here. Collective.

    Parameters
    ----------
    part : a :class:`mpiflow.core.parts.Part` of whole numbers on a square lattice; of one that is
        cut, all ranks get the sizes of the whole lattice
    """
    state = part.state
    if not part.periodic or state.dtype.kind == "f" or len(part.shape) != 2:
        shown = f"clusters of {state.dtype} in {len(part.shape)} dimensions"
        allowed = "whole numbers on a periodic square lattice"
        raise InputError("observables", shown, allowed, "Leave it out.")
    return [_of_member(part, member) for member in state]


def _of_member(part: Any, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, number = _labelled(state)
    offset = part.before(number)
    sizes = np.bincount(labels.ravel(), minlength=number)
    pairs = []
    for axis in (0, 1):
        last = (-1,) if axis == 0 else (slice(None), -1)
        first = (0,) if axis == 0 else (slice(None), 0)
        edge = np.stack([labels[first] + offset, state[first].astype(np.int64)])
        labels_there, states_there = part.of_next(edge, axis)
        same = states_there == state[last]
        both = [labels[last][same] + offset, labels_there[same]]
        pairs.append(np.unique(np.stack(both, axis=1), axis=0))
    at_edges = np.zeros(number, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        at_edges[edge] = True
    place = np.flatnonzero(at_edges)
    open_ones = np.stack([place + offset, sizes[place]], axis=1)
    inside = np.stack(np.unique(sizes[~at_edges], return_counts=True), axis=1)
    joined: tuple[np.ndarray, np.ndarray] = part.joined(
        _joined, inside, open_ones, np.concatenate(pairs)
    )
    return joined


def _labelled(state: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels from 0 of the clusters of a box that ends at its borders, and their number."""
    from scipy import ndimage

    out, number = np.zeros(state.shape, np.int64), 0
    for value in np.unique(state):
        where = state == value
        found, more = ndimage.label(where)
        out[where] = found[where] + (number - 1)
        number += more
    return out, number


def _joined(
    inside: np.ndarray, open_ones: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and numbers of clusters of a lattice, from those of all parts."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    labels = open_ones[:, 0]  # rising, as parts come in order
    n = len(labels)
    ends = np.searchsorted(labels, pairs)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(n, n))
    number, which = connected_components(graph, directed=False)
    whole = np.zeros(number, np.int64)
    np.add.at(whole, which, open_ones[:, 1])
    sizes = np.concatenate([inside[:, 0], whole])
    counts = np.concatenate([inside[:, 1], np.ones(number, np.int64)])
    different, place = np.unique(sizes, return_inverse=True)
    total = np.zeros(len(different), np.int64)
    np.add.at(total, place, counts)
    return different, total


@dataclass(frozen=True)
class Clusters:
    """Number of clusters, and their largest and mean size."""

    def __call__(self, part: Any) -> np.ndarray:
        rows = []
        for sizes, counts in cluster_counts(part):
            squares = sum(n * s * s for s, n in zip(sizes.tolist(), counts.tolist(), strict=True))
            rows.append([counts.sum(), sizes[-1], squares / part.sites])
        return np.array(rows, np.float64).reshape(len(rows), 3)


@dataclass(frozen=True)
class ClusterSizes:
    """Numbers of clusters by their size, in bins of powers of 2."""

    bins: int

    def __call__(self, part: Any) -> np.ndarray:
        out = np.zeros((len(part.state), self.bins), np.int64)
        for row, (sizes, counts) in zip(out, cluster_counts(part), strict=True):
            _, exponent = np.frexp(sizes.astype(np.float64))
            np.add.at(row, np.minimum(exponent - 1, self.bins - 1), counts)
        return out
