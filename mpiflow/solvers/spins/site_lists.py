"""Sites of a box in lists, one for each class of rates, for the solvers of the n-fold way.

The lists share one pool with some free places between them, and one word for each site holds its
class and its place there. The word's type, and how many of its bits are the place, are the
solver's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mpiflow.core.device import copy_line, kernel
from mpiflow.core.noise import Word

# Words are unsigned throughout: Numba then leaves out the test for negative indices.
ONE = np.uint64(1)
#: No site.
NOWHERE = np.uint64(2**64 - 1)


class SiteLists(NamedTuple):
    """The lists of one box, or with an axis (B,) before those of the arrays those of all boxes.

    Attributes
    ----------
    info : (sites,) uint32 or uint64, the word of each site
    pool : (places,) uint32, the lists
    base : (classes + 1,) uint64, where each list starts in the pool, and the pool's end
    counts : (classes,) uint64, their lengths
    """

    info: np.ndarray
    pool: np.ndarray
    base: np.ndarray
    counts: np.ndarray


def lists_of(batch: int, sites: int, classes: int, word: type) -> SiteLists:
    """Lists of all sites in row-major order, not sorted yet, which no class says."""
    pool = np.empty((batch, sites + sites // 4 + 4 * classes), np.uint32)
    pool[:, :sites] = np.arange(sites, dtype=np.uint32)
    counts = np.zeros((batch, classes), np.uint64)
    counts[:, 0] = sites
    info: np.ndarray = np.full((batch, sites), np.iinfo(word).max, word)
    return SiteLists(info, pool, np.zeros((batch, classes + 1), np.uint64), counts)


@kernel
def lists_in(lists: SiteLists, b: int) -> SiteLists:
    """The lists of one box."""
    return SiteLists(lists.info[b], lists.pool[b], lists.base[b], lists.counts[b])


@kernel
def spread(base: np.ndarray, counts: np.ndarray, places: int) -> None:
    """Lay the lists out with equal room behind each."""
    free, classes = np.int64(places), counts.size
    for c in range(classes):
        free -= np.int64(counts[c])
    start = np.int64(0)
    for c in range(classes):
        base[c] = start
        start += np.int64(counts[c]) + free * (c + 1) // classes - free * c // classes
    base[classes] = places


@kernel
def make_room(new: np.uint64, pool: np.ndarray, base: np.ndarray, counts: np.ndarray) -> None:
    """Move the lists within the pool so that the list `new` can take one more site."""
    old = base.copy()
    counts[new] += ONE  # so that there is a place for it even if places are few
    spread(base, counts, pool.size)
    counts[new] -= ONE
    for c in range(counts.size):
        if base[c] < old[c]:
            for i in range(np.int64(counts[c])):
                pool[base[c] + np.uint64(i)] = pool[old[c] + np.uint64(i)]
    for c in range(counts.size - 1, -1, -1):
        if base[c] > old[c]:
            for i in range(np.int64(counts[c]) - 1, -1, -1):
                pool[base[c] + np.uint64(i)] = pool[old[c] + np.uint64(i)]


@kernel
def ordered(lists: SiteLists) -> np.ndarray:
    """The lists one after the other, (sites,) uint32."""
    order, n = np.empty(lists.info.size, np.uint32), np.int64(0)
    for c in range(lists.counts.size):
        count, start = np.int64(lists.counts[c]), np.int64(lists.base[c])
        copy_line(order[n : n + count], lists.pool[start:])
        n += count
    return order


@kernel
def lay_out(order: np.ndarray, lists: SiteLists, shift: Word) -> None:
    """Put sites whose words and numbers are known into the pool."""
    spread(lists.base, lists.counts, lists.pool.size)
    for i in range(order.size):
        word = np.uint64(lists.info[order[i]])
        place = word & ((ONE << shift) - ONE)
        lists.pool[lists.base[word >> shift] + place] = order[i]


@kernel
def surroundings(site: Word, ny: Word, nx: Word, closed: bool, near: np.ndarray) -> None:
    """The neighbours of a site at the edge of a box; NOWHERE beyond an edge that is not closed."""
    y, x = site // nx, site % nx
    near[1] = site - nx if y > 0 else (site + (ny - ONE) * nx if closed else NOWHERE)
    near[2] = site + nx if y < ny - ONE else (site - (ny - ONE) * nx if closed else NOWHERE)
    near[3] = site - ONE if x > 0 else (site + (nx - ONE) if closed else NOWHERE)
    near[4] = site + ONE if x < nx - ONE else (site - (nx - ONE) if closed else NOWHERE)
