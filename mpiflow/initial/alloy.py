r"""Initial species of a bcc alloy, keyed by global site: the same on any number of ranks.

Every function fills the sites and the halo of a block of voxels (see
:mod:`mpiflow.systems.alloy`), which may be a tile of one distributed lattice
(``exchange``) or a batch of whole ones (``wrap``). Work is done in bands, so that a
tile may fill the memory and still be set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from mpiflow.core import arrays
from mpiflow.core.block import Block
from mpiflow.core.device import kernel, rule
from mpiflow.core.errors import InputError
from mpiflow.core.noise import Word, stream_key, threefry
from mpiflow.files import footer
from mpiflow.files.moments import Moment, times_of
from mpiflow.files.structure import cells_of, elements_of, planes_of, read_state
from mpiflow.initial.site_words import Boxes, bounds_of_smallest, boxes_of, count_digits
from mpiflow.systems.alloy import ELEMENTS, LATTICE_CONSTANT, NOT_A_SITE, REACH, VACANCY, is_site

#: Points a side that the noise counter can tell apart: 21 bits for each axis.
MAX_SIDE = 2**21
#: Cells a side at least: the surroundings of a vacancy reach just as far round the box.
MIN_CELLS = REACH
#: Suffixes of files of runs; all other files are text.
RUN_SUFFIXES = (".h5", ".hdf5", ".nc")


# -- how many of each --------------------------------------------------------------------------


def sites_of(cells: Sequence[int]) -> int:
    """Number of sites, 2 Lx Ly Lz, of a box of (Lx, Ly, Lz) cubic cells."""
    if len(cells) != 3 or any(not MIN_CELLS <= side <= MAX_SIDE // 2 for side in cells):
        raise InputError(
            "cells",
            tuple(cells),
            f"{MIN_CELLS} to {MAX_SIDE // 2} cells along each of three axes",
            f"A barrier depends on sites up to {REACH // 2} cells to each side of a vacancy.",
        )
    x, y, z = cells
    return 2 * x * y * z


def counts_of(
    sites: int,
    vacancies: int,
    composition: Sequence[float] | None = None,
    elements: int = 3,
) -> tuple[int, ...]:
    """Numbers of vacancies and of atoms of each element: (vacancies, n_1, n_2, ...).

    Parameters
    ----------
    sites : of the whole box, from :func:`sites_of`
    vacancies : at least 1, at most half of the sites
    composition : a number for each element. Fractions add up to 1; whole numbers that add
        up to at most 100 are parts or per cent; larger ones are numbers of atoms and add up
        to ``sites - vacancies``. Default: equal parts. What cannot be split goes to the
        largest remainders, of equal ones to the last: 1024 atoms are 341, 341, 342.
    elements : how many there are

    Raises
    ------
    InputError : the numbers do not fit together
    """
    fewest = 2 * MIN_CELLS**3
    if sites < fewest or sites % 2:
        raise InputError(
            "sites", sites, f"an even number from {fewest} on", f"Use {MIN_CELLS} cells or more."
        )
    if not 1 <= vacancies <= sites // 2:
        reason = "Without a vacancy nothing moves."
        if vacancies > 0:
            reason = "More vacancies than one sublattice holds: vacancies that touch cannot move."
        raise InputError("vacancies", vacancies, f"1 to {sites // 2}, half of the sites", reason)
    atoms = sites - vacancies
    parts = np.ones(elements) if composition is None else arrays.real("composition", composition)
    _require_composition(parts, elements, atoms)
    exact = atoms * (parts / parts.sum())
    numbers = np.floor(exact + 1e-9).astype(np.int64)
    # The last species first among equals. Rounded: what differs in the last bit is equal.
    remainders = np.round(exact - numbers, 9)
    order = np.lexsort((np.arange(elements), remainders))[::-1]
    numbers[order[: atoms - int(numbers.sum())]] += 1
    return (vacancies, *map(int, numbers))


def _require_composition(parts: np.ndarray, elements: int, atoms: int) -> None:
    allowed = (
        f"{elements} fractions that add up to 1, parts or per cent that add up to at most 100, "
        f"or numbers of atoms that add up to {atoms}"
    )
    given = parts.tolist()
    if parts.shape != (elements,) or not np.isfinite(parts).all():
        raise InputError("composition", given, allowed, "Give one number for each element.")
    if (parts < 0).any() or not parts.any():
        raise InputError("composition", given, allowed, "None may be negative, nor all zero.")
    total = float(parts.sum())
    if (parts == np.rint(parts)).all():
        fits = total <= 100 or total == atoms
    else:
        fits = abs(total - 1.0) <= 1e-3
    if not fits:
        raise InputError("composition", given, allowed, f"They add up to {total:g}.")


# -- a word for each site ----------------------------------------------------------------------


@rule
def site_counter(x: int, y: int, z: int) -> Word:
    """The counter word of global point (x, y, z), independent of the lattice's size."""
    return (np.uint64(x) << np.uint64(42)) | (np.uint64(y) << np.uint64(21)) | np.uint64(z)


@kernel
def _run_words(k0: Word, k1: Word, first: Word, out: np.ndarray) -> None:
    """First words of every second point (a loop of its own: it compiles much faster)."""
    for i in range(out.size):
        out[i] = threefry(k0, k1, np.uint64(0), first + np.uint64(2 * i))[0]


@kernel
def _row_words(
    key: np.ndarray, member: Word, x: int, y: int, z: int, side: int, out: np.ndarray
) -> None:
    """First words of sites (x, y, z), (x, y, z + 2), ... round the periodic edge."""
    done = 0
    while done < out.size:
        at = (z + 2 * done) % side
        width = min(out.size - done, (side - at + 1) // 2)
        _run_words(key[0], key[1] + member, site_counter(x, y, at), out[done : done + width])
        done += width


@kernel
def _only_atoms(row: np.ndarray, words: np.ndarray) -> int:
    """Move the words of atoms to the front; how many they are."""
    atoms = 0
    for i in range(row.size):
        words[atoms] = words[i]
        atoms += row[i] > VACANCY
    return atoms


@kernel
def _line(
    species: np.ndarray, boxes: Boxes, key: np.ndarray, top: int, b: int, i: int, j: int,
    words: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The sites along z at point (i, j) of box b, a view, and their words; none between sites.

    ``top`` is the first of the rows (x) that ``species`` has.
    """
    origins, members, lattice = boxes
    x, y = (origins[b, 0] + top + i) % lattice[0], (origins[b, 1] + j) % lattice[1]
    first = (x - origins[b, 2]) % 2 if (x - y) % 2 == 0 else species.shape[3]
    row = species[b, i, j, first::2]
    z = origins[b, 2] + first
    _row_words(key, members[b], x, y, z, lattice[2], words[: row.size])
    return row


@kernel
def _count(
    species: np.ndarray,
    boxes: Boxes,
    key: np.ndarray,
    left: np.ndarray,
    bounds: np.ndarray,
    shift: Word,
    counts: np.ndarray,
) -> None:
    """Histograms (B, digits) of the next digit of the words of all atoms."""
    words = np.empty(species.shape[3] // 2 + 1, np.uint64)
    for b in range(species.shape[0]):
        if left[b] == 0:
            continue
        for i in range(species.shape[1]):
            for j in range(species.shape[2]):
                row = _line(species, boxes, key, 0, b, i, j, words)
                atoms = _only_atoms(row, words)
                count_digits(words[:atoms], bounds[b], shift, counts[b])


@kernel
def _turn_row(row: np.ndarray, words: np.ndarray, bounds: np.ndarray) -> None:
    for i in range(row.size):
        if row[i] > VACANCY:
            for kind in range(bounds.size):
                if words[i] < bounds[kind]:
                    row[i] = kind
                    break


@kernel
def _turn(species: np.ndarray, boxes: Boxes, key: np.ndarray, top: int, bounds: np.ndarray) -> None:
    """Turn atoms into the first species whose bound (B, kinds) lies above their word."""
    words = np.empty(species.shape[3] // 2 + 1, np.uint64)
    for b in range(species.shape[0]):
        for i in range(species.shape[1]):
            for j in range(species.shape[2]):
                _turn_row(_line(species, boxes, key, top, b, i, j, words), words, bounds[b])


def _turn_smallest(block: Block, key: np.ndarray, numbers: np.ndarray) -> None:
    """Turn atoms into species 0, 1, ...: ``numbers`` (B, kinds) each, by the order of words.

    All bounds are found before anything changes. The halo is filled. Collective.
    """
    species, boxes = block.inner(block.host()), boxes_of(block)

    def count(left: np.ndarray, bounds: np.ndarray, shift: Word, counts: np.ndarray) -> None:
        _count(species, boxes, key, left, bounds, shift, counts)

    bounds = np.zeros(numbers.shape, np.uint64)
    for kind, wanted in enumerate(np.cumsum(numbers, axis=1).T):
        bounds[:, kind] = bounds_of_smallest(block, wanted, count)
    for rows in block.bands():
        band = np.ascontiguousarray(species[:, rows])
        _turn(band, boxes, key, rows.start, bounds)
        block.store(rows, band)
    block.fill_halo()


# -- random states -----------------------------------------------------------------------------


def random_alloy(block: Block, seed: int, counts: Sequence[int] | np.ndarray) -> None:
    """Exact numbers of each species, all arrangements equally likely. Collective.

    Every site draws a 64-bit word; the sites with the smallest words are vacancies, the next
    ones species 1, and so on. The words between are found as in
    :func:`mpiflow.initial.shuffled`, so no rank needs the whole lattice.

    Parameters
    ----------
    block : whose array is filled
    seed : of the arrangement
    counts : (n_vacancies, n_1, n_2, ...), which add up to the sites of the lattice; one for
        all boxes, or (B, species) one for each box of a batch. See :func:`counts_of`.

    Raises
    ------
    InputError : on all ranks alike
    """
    _require_bcc(block)
    sites = block.lattice.sites // 4
    numbers = np.asarray(counts)
    if (
        numbers.dtype.kind not in "iu"
        or numbers.ndim not in (1, 2)
        or (numbers < 0).any()
        or (numbers.sum(-1) != sites).any()
    ):
        allowed = f"numbers of vacancies and of each element that add up to {sites} sites"
        raise InputError("counts", numbers.tolist(), allowed, "Use counts_of to find them.")
    numbers = np.broadcast_to(numbers.astype(np.int64), (block.batch, numbers.shape[-1]))
    last = numbers.shape[1] - 1
    for rows in block.bands():
        band = np.empty((block.batch, rows.stop - rows.start, *block.shape[1:]), np.int8)
        for box, (x, *yz) in zip(band, block.origins, strict=True):
            box[...] = np.where(is_site(box.shape, (x + rows.start, *yz)), last, NOT_A_SITE)
        block.store(rows, band)
    # The last species has all that is left: it needs no bound.
    _turn_smallest(block, stream_key(seed, "initial-alloy"), numbers[:, :last])


def place_vacancies(block: Block, seed: int, number: int) -> None:
    """Turn ``number`` atoms, all choices equally likely, into vacancies. Collective.

    For states that come from a file without any; vacancies that are there stay.

    Raises
    ------
    InputError : on all ranks alike, if there are fewer atoms
    """
    _require_bcc(block)
    atoms, species = np.zeros(block.batch, np.int64), block.spins()
    for rows in block.bands():
        atoms += np.count_nonzero(species[:, rows] > VACANCY, axis=(1, 2, 3))
    atoms = block.total(atoms)
    fewest = int(atoms.min(initial=block.lattice.sites // 4))
    if not 0 <= number <= fewest:
        raise InputError("vacancies", number, f"0 to {fewest}, the number of atoms", "Place fewer.")
    wanted = np.full((block.batch, 1), number, np.int64)
    _turn_smallest(block, stream_key(seed, "vacancies"), wanted)


def _require_bcc(block: Block) -> None:
    """Raise unless the lattice is the voxel grid of whole cells, and the noise can tell it."""
    shape = block.lattice.shape
    if len(shape) != 3 or any(side % 2 or side > MAX_SIDE for side in shape):
        allowed = f"three even numbers of grid points up to {MAX_SIDE}"
        raise InputError("size", shape, allowed, "Use two grid points for each cell.")


# -- files -------------------------------------------------------------------------------------


def from_structure(
    block: Block,
    path: str | Path,
    elements: Sequence[str] = ELEMENTS,
    *,
    moment: Moment = Moment(),
) -> float:
    """Species from a structure file or from a frame of a run's ``species``. Collective.

    Text files (see :func:`mpiflow.files.structure.read_structure`) are read whole by every rank,
    of the HDF5 file of a run each rank reads its own rows. Every box of a batch gets the
    same state; of an ensemble each member its own, unless the moment names one.

    Parameters
    ----------
    elements : names of species 1, 2, ...
    moment : which frame, and which member of a run; the last frame by default

    Returns
    -------
    the lattice constant of the file in Angstrom

    Raises
    ------
    InputError : on all ranks alike
    """
    _require_bcc(block)
    path, cells = Path(path), tuple(side // 2 for side in block.lattice.shape)
    with block.agreed():
        if path.suffix in RUN_SUFFIXES:
            constant = _from_run(block, path, tuple(elements), moment)
        else:
            frame = -1 if moment.frame is None else moment.frame
            found = read_state(path, elements, frame=frame)
            grid, constant = found.grid, found.lattice_constant
            _require_cells(path, tuple(side // 2 for side in grid.shape), cells)
            for rows in block.bands():
                x, y, z = _box(block, rows)
                _store_same(block, rows, grid[x, y, z])
    block.fill_halo()
    return constant


def _box(block: Block, rows: slice) -> tuple[slice, slice, slice]:
    """Where some rows of the (first) box lie in the whole grid."""
    x, y, z = (int(o) for o in block.origins[0]) if block.batch else (0, 0, 0)
    _, height, width = block.shape
    return slice(x + rows.start, x + rows.stop), slice(y, y + height), slice(z, z + width)


def _store_same(block: Block, rows: slice, species: np.ndarray) -> None:
    block.store(rows, np.repeat(species[None], block.batch, axis=0))


def _require_cells(path: Path, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if found != wanted:
        allowed = f"a box of {wanted} cells, the file has {found}"
        raise InputError("initial", str(path), allowed, "Use matching --cells.")


def _from_run(block: Block, path: Path, elements: tuple[str, ...], moment: Moment) -> float:
    """Species from the HDF5 file of a run, and its lattice constant.

    A plane of its sites is a row of the file.
    """
    if not path.is_file():
        raise InputError("initial", str(path), "an existing file", "Check the path.")
    try:
        footer.check(path)
        with h5py.File(path, "r", locking=False) as file:
            if not isinstance(file.get("species"), h5py.Dataset):
                allowed = "the file of an alloy run that saved its species"
                raise InputError("initial", str(path), allowed, "Run it again with --species.")
            config, data = json.loads(file.attrs["config_json"]), file["species"]
            found = cells_of(config)
            _require_cells(path, found, tuple(side // 2 for side in block.lattice.shape))
            table = _translation(path, elements_of(config), elements)
            count = data.shape[1] if data.ndim > 2 else 0
            places = moment.places(path, times_of(file, len(data)), count, block.members)
            plane = found[1] * found[2]
            for rows in block.bands():
                x, y, z = _box(block, rows)
                part = slice(x.start * plane, x.stop * plane)
                sites = np.array([data[(*place, part)] for place in places])
                if not ((sites >= 0) & (sites < len(table))).all():
                    allowed = f"species 0 to {len(table) - 1} only"
                    raise InputError("initial", str(path), allowed, "Check the file.")
                grids = [
                    planes_of(each.reshape(-1, *found[1:]), x.start)[:, y, z]
                    for each in table[sites]
                ]
                every = (block.batch, *grids[0].shape)
                block.store(rows, np.ascontiguousarray(np.broadcast_to(grids, every)))
            return float(file.attrs.get("lattice_constant_angstrom", LATTICE_CONSTANT))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        allowed = "an intact file of an alloy run"
        raise InputError("initial", str(path), allowed, f"Reading said: {error}.") from error


def _translation(path: Path, theirs: tuple[str, ...], ours: tuple[str, ...]) -> np.ndarray:
    """Our number, int8, of each of their species; vacancies are 0 in both."""
    if missing := [name for name in theirs if name not in ours]:
        allowed = f"elements among {', '.join(ours)}, the file has {', '.join(missing)}"
        raise InputError("initial", str(path), allowed, "Use matching --elements.")
    return np.array([VACANCY, *(1 + ours.index(name) for name in theirs)], np.int8)
