"""Barrier models in files, behind one interface.

    model = load_barrier_model("weights.npy", axis_order="nkk")
    model.barriers(grid, (4, 4, 4))  # (8,) eV

A model comes from the ``weights.npy`` of the published network or from a safetensors file
written here. Neither runs anything; see :mod:`mpiflow.simulation.alloy.published_weights`.

A safetensors file holds the arrays as they are and one JSON text of metadata, with a
checksum over both. The arrays of each kind, for S species and vacancies:

============  ==============================================================================
``constant``  ``base`` (S + 1,) float64, eV by species, 0 for the vacancy
``pairwise``  ``base`` and ``bonds`` (S + 1, S + 1) float64, eV
``network``   ``W1``, ``b1``, ``W2``, ... float32, ``codes`` (S + 1, C) float32, ``pool``
              (1,) int64, all as in :func:`mpiflow.solvers.vacancy.barrier_kernels.network`
``nnk``       the 26 arrays of the published network, float32: ``W1``, ``b1``, ``gamma1``,
              ``beta1``, ``mean1``, ``variance1``, ..., ``W5``, ``b5``
============  ==============================================================================
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mpiflow.core.arrays import real
from mpiflow.core.errors import InputError
from mpiflow.files.storage import whole_file
from mpiflow.simulation.alloy.published_weights import (
    NNK_SHAPES,
    AxisOrder,
    Unusable,
    published_network,
    read_weights,
    require_arrays,
)
from mpiflow.solvers.vacancy import barrier_kernels
from mpiflow.systems import barriers
from mpiflow.systems.alloy import (
    ELEMENTS,
    NEIGHBOURS,
    NOT_A_SITE,
    REACH,
    SURROUNDINGS,
    VACANCY,
    index_of,
    is_site,
)

Kind = Literal["constant", "pairwise", "network", "nnk"]

#: The model that comes with mpiflow.
DEFAULT = Path(__file__).parents[2] / "data" / "barriers_default.safetensors"
#: First bytes of files that people have instead.
_OTHER_FILES = {b"\x1f\x8b": "compressed with gzip", b"PK": "an archive (.npz, .zip or of torch)"}
#: Larger files are refused unread; the published one has 0.6 MB.
MAX_BYTES = 64 * 2**20
_FORMAT, _VERSION = "mpiflow-barriers", 1


@dataclass(frozen=True, eq=False)
class BarrierModel:
    """Barriers of the hops of a vacancy, with what people need to know of their origin.

    Attributes
    ----------
    parameters : the model as kernels take it
    species : names of the elements 1, 2, ...
    name : a short name
    sha256 : of the bytes of the file it was loaded from; empty for a model made in memory
    card : where it comes from, its licence; can be written as JSON
    axis_order : of the image that the published network sees; None for other kinds, which
        have no such choice
    kind : of model
    tensors : arrays as they are saved
    """

    parameters: barriers.Barriers = field(repr=False)
    species: tuple[str, ...]
    name: str
    sha256: str
    card: dict[str, Any]
    axis_order: AxisOrder | None
    kind: Kind
    tensors: dict[str, np.ndarray] = field(repr=False)

    def barriers(
        self,
        grid: np.ndarray,
        vacancy_ijk: Sequence[int] | np.ndarray,
        directions: np.ndarray | Sequence[Sequence[int]] | None = None,
    ) -> np.ndarray:
        """Barriers in eV of the hops of one vacancy, (k,) float64; inf where a vacancy is.

        Parameters
        ----------
        grid : (nx, ny, nz) integers, periodic: -1 no site, 0 vacancy, 1, 2, ... the species.
            Points whose coordinates have equal parity are the sites. Sides are even and at
            least 8, so that no site is met twice.
        vacancy_ijk : its three coordinates
        directions : (k, 3) of +1 and -1, the hops; by default the 8 of ``alloy.DIRECTIONS``

        Raises
        ------
        InputError : for anything else
        """
        grid = np.asarray(grid)
        self._check_grid(grid)
        vacancy = _vacancy(grid, vacancy_ijk)
        wanted = np.arange(NEIGHBOURS) if directions is None else _numbers(directions)
        around = tuple(((vacancy + SURROUNDINGS) % grid.shape).T)
        out = np.empty(NEIGHBOURS, np.float32)
        work = np.empty(barrier_kernels.work_size(self.parameters), np.float32)
        barrier_kernels.evaluate(self.parameters, grid[around].astype(np.uint8), work, out)
        return out[wanted].astype(np.float64)

    def _check_grid(self, grid: np.ndarray) -> None:
        sides = f"three even sides of at least {2 * REACH}"
        if grid.ndim != 3 or any(n % 2 or n < 2 * REACH for n in grid.shape):
            remedy = "Repeat a small periodic grid until it is large enough."
            raise InputError("grid.shape", grid.shape, sides, remedy)
        if grid.dtype.kind not in "iu":
            raise InputError("grid.dtype", str(grid.dtype), "an integer type", "Try int8.")
        site = is_site(grid.shape)
        atoms = (grid >= VACANCY) & (grid <= len(self.species))
        wrong = np.where(site, ~atoms, grid != NOT_A_SITE)
        if wrong.any():
            i, j, k = map(int, np.argwhere(wrong)[0])
            names = ", ".join(f"{n} {s}" for n, s in enumerate(self.species, 1))
            raise InputError(
                f"grid[{i}, {j}, {k}]",
                int(grid[i, j, k]),
                f"{VACANCY} vacancy, {names} where all coordinates are even or all are odd, and "
                f"{NOT_A_SITE} elsewhere",
                "Shift the grid if its sites lie elsewhere.",
            )

    def summary(self) -> str:
        """What the model is, in a few lines for people."""
        lines = [f"{self.name}: barriers of {', '.join(self.species)}, kind {self.kind}"]
        lines += [str(self.card[key]) for key in ("statement", "reference") if key in self.card]
        lines += [f"licence: {self.card['licence']}"] if "licence" in self.card else []
        source = self.card.get("source_sha256", self.sha256)
        lines += [f"source sha256: {source}"] if source != self.sha256 else []
        lines += [f"sha256: {self.sha256}"] if self.sha256 else []
        return "\n".join(lines)


def _vacancy(grid: np.ndarray, vacancy_ijk: Sequence[int] | np.ndarray) -> np.ndarray:
    """The coordinates (3,) of a vacancy of a checked grid."""
    point = np.asarray(vacancy_ijk)
    inside = point.shape == (3,) and point.dtype.kind in "iu"
    if not inside or np.any(point < 0) or np.any(point >= grid.shape):
        raise InputError(
            "vacancy_ijk", vacancy_ijk, f"three integers inside {grid.shape}", "Count from 0."
        )
    value = int(grid[tuple(point)])
    if value != VACANCY:
        found = "no site" if value == NOT_A_SITE else f"an atom of species {value}"
        where = np.argwhere(grid == VACANCY)
        hint = f"One is at {tuple(where[0].tolist())}." if len(where) else "The grid has none."
        raise InputError(
            "vacancy_ijk", tuple(point.tolist()), f"a vacancy, and here is {found}", hint
        )
    return point.astype(np.int64)


def _numbers(directions: np.ndarray | Sequence[Sequence[int]]) -> np.ndarray:
    """Numbers in DIRECTIONS of hops (k, 3)."""
    given = np.asarray(directions)
    if given.ndim != 2 or given.shape[1] != 3 or not np.isin(given, (-1, 1)).all():
        allowed = "an array (k, 3) of hops such as (1, -1, 1)"
        remedy = "Leave it out for all eight, in the order of alloy.DIRECTIONS."
        raise InputError("directions", given.tolist(), allowed, remedy)
    return index_of(given.astype(np.int64))


# -- models made in memory -----------------------------------------------------------------


def constant_model(
    energies: Sequence[float],
    *,
    species: Sequence[str] = ELEMENTS,
    name: str = "constant",
    card: Mapping[str, Any] | None = None,
) -> BarrierModel:
    """A model of :func:`mpiflow.systems.barriers.constant`: eV of each element."""
    tensors = {"base": _base(energies)}
    return _made("constant", tensors, species, name, card)


def pairwise_model(
    energies: Sequence[float],
    bonds: np.ndarray,
    *,
    species: Sequence[str] = ELEMENTS,
    name: str = "pairwise",
    card: Mapping[str, Any] | None = None,
) -> BarrierModel:
    """A model of :func:`mpiflow.systems.barriers.pairwise`, which obeys detailed balance.

    Parameters
    ----------
    energies : (S,) in eV, of each element
    bonds : (S + 1, S + 1) symmetric, in eV, of bonds between species; 0 is the vacancy
    species : elements, the first that of species 1
    name : of the model, for files
    card : what else is known of it, as JSON

    Raises
    ------
    InputError : arrays that do not fit the species or each other
    """
    tensors = {"base": _base(energies), "bonds": real("bonds", bonds)}
    return _made("pairwise", tensors, species, name, card)


def network_model(
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    codes: np.ndarray,
    pool: int = 1,
    *,
    species: Sequence[str] = ELEMENTS,
    name: str = "network",
    card: Mapping[str, Any] | None = None,
) -> BarrierModel:
    """A model of :func:`mpiflow.solvers.vacancy.barrier_kernels.network`, kept in float32.

    Parameters
    ----------
    layers : (W, b) of each layer, W (in, out); the first takes 112 C inputs, place by place with
        its C channels together, the last gives one number in eV
    codes : (S + 1, C) input channels of each species, 0 being the vacancy
    pool : parts of the first layer that are added up
    species : elements, the first that of species 1
    name : of the model, for files
    card : what else is known of it, as JSON

    Raises
    ------
    InputError : arrays that do not fit the species or each other
    """
    tensors: dict[str, np.ndarray] = {
        "codes": real("codes", codes).astype(np.float32),
        "pool": np.array([pool], np.int64),
    }
    for number, (w, b) in enumerate(layers, 1):
        for name_of, values in ((f"W{number}", w), (f"b{number}", b)):
            tensors[name_of] = real(name_of, values).astype(np.float32)
    return _made("network", tensors, species, name, card)


def _base(energies: Sequence[float]) -> np.ndarray:
    """Energies by species in eV, that of the vacancy first."""
    return np.concatenate([[0.0], np.ravel(real("energies", energies))])


def _made(
    kind: Kind,
    tensors: dict[str, np.ndarray],
    species: Sequence[str],
    name: str,
    card: Mapping[str, Any] | None,
) -> BarrierModel:
    try:
        about = {"kind": kind, "species": list(species), "name": name, "card": dict(card or {})}
        return _model(tensors, about, "", "nkk", None)
    except Unusable as error:
        allowed = "arrays that fit the species and each other"
        raise InputError("model", name, allowed, f"This one {error}.") from error


# -- from arrays to a model ----------------------------------------------------------------


def _model(
    tensors: dict[str, np.ndarray],
    about: Mapping[str, Any],
    sha256: str,
    axis_order: AxisOrder,
    epsilon: float | None,
) -> BarrierModel:
    """The model of arrays and their description; both may come from a damaged file."""
    kind: Any = about.get("kind")
    species, name, card = about.get("species"), about.get("name"), about.get("card")
    if kind not in get_args(Kind):
        raise Unusable(f"says that its kind is {kind!r:.40}")
    if not (
        isinstance(species, list)
        and 1 <= len(species) <= 100
        and all(isinstance(s, str) for s in species)
    ):
        raise Unusable("does not name its species")
    if len(set(species)) < len(species):
        raise Unusable("names a species twice")
    if not (isinstance(name, str) and isinstance(card, dict)):
        raise Unusable("has no name or no card")
    for key, array in tensors.items():
        if not np.isfinite(array).all():
            raise Unusable(f"holds numbers in {key} that are not finite")
    if kind == "nnk":
        used = card.get("batchnorm_epsilon") if epsilon is None else epsilon
        if not (isinstance(used, float | int) and 0 <= used < math.inf):
            raise Unusable("does not say the epsilon of its batch normalisation")
        card = {**card, "batchnorm_epsilon": used}
        parameters = published_network(tensors, len(species), axis_order, used)
    else:
        parameters = _plain(kind, tensors, len(species))
    order = axis_order if kind == "nnk" else None
    return BarrierModel(parameters, tuple(species), name, sha256, card, order, kind, tensors)


def _plain(kind: Kind, tensors: dict[str, np.ndarray], species: int) -> barriers.Barriers:
    size = species + 1
    try:
        if kind == "network":
            return _network(tensors, size)
        shapes: dict[str, tuple[int, ...]] = {"base": (size,)}
        if kind == "pairwise":
            shapes["bonds"] = (size, size)
        require_arrays(tensors, shapes, np.float64)
        if tensors["base"][VACANCY] != 0.0:
            raise Unusable("gives the vacancy an energy of its own in base")
        energies = tensors["base"][1:].tolist()
        if kind == "constant":
            return barriers.constant(energies)
        return barriers.pairwise(energies, tensors["bonds"])
    except InputError as error:  # it names an argument, but users have given a whole model
        raise Unusable(f"does not fit: {error.name} is {error.value}, not {error.allowed}") from (
            error
        )


def _network(tensors: dict[str, np.ndarray], size: int) -> barriers.Barriers:
    tensors = dict(tensors)
    codes, pool = tensors.pop("codes", np.empty(0)), tensors.pop("pool", np.empty(0))
    if codes.ndim != 2 or len(codes) != size or codes.shape[1] < 1 or codes.dtype != np.float32:
        raise Unusable(f"holds codes of {codes.shape} {codes.dtype}, not of ({size}, C) float32")
    if pool.shape != (1,) or pool.dtype != np.int64 or pool[0] < 1:
        raise Unusable("holds no pool, one integer of at least 1")
    count = len(tensors) // 2
    names = [name for n in range(1, count + 1) for name in (f"W{n}", f"b{n}")]
    if not count or set(tensors) != set(names):
        raise Unusable(f"holds the layers {sorted(tensors)!s:.200}, not W1, b1, W2, b2, ...")
    for name in names:
        if tensors[name].ndim != (2 if name[0] == "W" else 1) or tensors[name].dtype != np.float32:
            raise Unusable(f"holds {name} of {tensors[name].shape} {tensors[name].dtype}")
    layers = [(tensors[f"W{n}"], tensors[f"b{n}"]) for n in range(1, count + 1)]
    return barrier_kernels.network(layers, codes, int(pool[0]))


# -- reading files -------------------------------------------------------------------------


def load_barrier_model(
    source: str | Path = "default",
    axis_order: AxisOrder = "nkk",
    *,
    batchnorm_epsilon: float | None = None,
) -> BarrierModel:
    """Load a barrier model.

    Parameters
    ----------
    source : "default" for the model that comes with mpiflow, a ``weights.npy`` of the
        published network, or a .safetensors file written by mpiflow
    axis_order : image axes of the published network: "nkk" as its authors build it, or
        "paper" as arXiv:2511.12842 does, with the first two axes swapped. Other models do
        not depend on it.
    batchnorm_epsilon : of the published network; by default that of the file, for
        ``weights.npy`` the trained one, 1e-3

    Raises
    ------
    InputError : for a missing, damaged, foreign or hostile file; nothing in it is executed
    """
    if axis_order not in get_args(AxisOrder):
        raise InputError("axis_order", axis_order, "'nkk' or 'paper'", "Try 'nkk'.")
    if batchnorm_epsilon is not None and not 0 <= batchnorm_epsilon < math.inf:
        allowed = "a finite number, 0 or above"
        raise InputError("batchnorm_epsilon", batchnorm_epsilon, allowed, "Leave it out for 1e-3.")
    path = DEFAULT if str(source) == "default" else Path(source)
    if path == DEFAULT and not path.is_file():
        raise InputError(
            "barriers",
            str(source),
            f"a path: this installation lacks {path}",
            "Give the path of weights.npy, or reinstall mpiflow.",
        )
    data = _read(path)
    sha256 = hashlib.sha256(data).hexdigest()
    npy = data.startswith(np.lib.format.MAGIC_PREFIX)
    try:
        for start, what in _OTHER_FILES.items():
            if data.startswith(start):
                raise Unusable(f"is {what}: unpack it first")
        if not data:
            raise Unusable("is empty")
        tensors, about = read_weights(data, path.name, sha256) if npy else _from_safetensors(data)
        return _model(tensors, about, sha256, axis_order, batchnorm_epsilon)
    except Unusable as error:
        raise InputError(
            "barriers",
            str(path),
            f"weights.npy of the published network, {len(NNK_SHAPES)} float32 arrays"
            if npy
            else "weights.npy of the published network, or an undamaged .safetensors of mpiflow",
            f"This file {error}. Get it anew, and only from where you trust it.",
        ) from error


def _read(path: Path) -> bytes:
    """The bytes of a file of bearable size, read once so that all checks see the same."""
    if not path.is_file():
        remedy = "It is a folder." if path.is_dir() else "There is no such file; check the path."
        raise InputError("barriers", str(path), "a file, or default", remedy)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        remedy = f"Reading said: {error.strerror}."
        raise InputError("barriers", str(path), "a readable file", remedy) from error
    if len(data) > MAX_BYTES:
        allowed = f"a file of at most {MAX_BYTES >> 20} MB"
        remedy = "This file is larger, so it is no barrier model; check the path."
        raise InputError("barriers", str(path), allowed, remedy)
    return data


def _from_safetensors(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and description of a safetensors file, once they match their checksum."""
    try:
        tensors = _safetensors().load(data)
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_FORMAT])
        version, checksum = about.pop("version"), about.pop("checksum")
    except InputError:
        raise
    except Exception as error:  # whatever foreign bytes provoke
        raise Unusable(f"is damaged or not of mpiflow: reading said {error!r:.200}") from error
    if version != _VERSION:
        raise Unusable(f"has version {version!r:.20} of the format, and known is {_VERSION}")
    if checksum != _checksum(tensors, about):
        raise Unusable("does not match its own checksum")
    return tensors, about


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        allowed = "a Python with the package safetensors"
        raise InputError("barriers", ".safetensors", allowed, "pip install safetensors.") from error
    return safetensors.numpy


def _checksum(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    """SHA-256 over the description, and the name, type, shape and bytes of all arrays."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# -- writing files -------------------------------------------------------------------------


def save_barrier_model(model: BarrierModel, out: str | Path, overwrite: bool = False) -> str:
    """Write a model to a .safetensors file. Returns the SHA-256 of the file.

    The same model gives the same bytes.

    Parameters
    ----------
    model : as of :func:`network_model` and others
    out : name of the file
    overwrite : replace an existing file

    Raises
    ------
    InputError : if the file exists or cannot be written, or the card is not JSON
    """
    path = Path(out)
    if path.suffix != ".safetensors":
        raise InputError("out", str(out), "a name that ends in .safetensors", "Rename it.")
    about = {
        "kind": model.kind,
        "name": model.name,
        "species": list(model.species),
        "card": model.card,
    }
    tensors = {name: np.ascontiguousarray(array) for name, array in model.tensors.items()}
    try:
        about = json.loads(json.dumps(about, allow_nan=False))  # tuples become lists
    except (TypeError, ValueError) as error:
        allowed = "names and plain values that JSON can hold"
        raise InputError("card", model.card, allowed, f"Writing said: {error}.") from error
    about |= {"checksum": _checksum(tensors, about), "version": _VERSION}
    # One key: safetensors writes several in no fixed order.
    metadata = {_FORMAT: json.dumps(about, sort_keys=True)}
    data = _safetensors().save(tensors, metadata=metadata)
    with whole_file(path, overwrite=overwrite) as target:
        target.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def import_nnk(weights_npy: str | Path, out: str | Path, overwrite: bool = False) -> BarrierModel:
    """Convert ``weights.npy`` of the published network to a .safetensors file.

    All arrays are kept unchanged. Other weights of the same shapes are taken too; the card
    says which. Returns the model as read back from the new file.

    Raises
    ------
    InputError : see :func:`load_barrier_model` and :func:`save_barrier_model`
    """
    model = load_barrier_model(weights_npy)
    if model.card.get("source_sha256") != model.sha256:
        raise InputError(
            "weights", str(weights_npy), "a weights.npy", "This file needs no conversion."
        )
    save_barrier_model(model, out, overwrite)
    return load_barrier_model(out)
