"""Barrier models in files, behind one interface.

    model = load_barrier_model("weights.npy", axis_order="nkk")
    model.barriers(grid, (4, 4, 4))  # (8,) eV

A model comes from the ``weights.npy`` of the published network or from a safetensors file
written here. ``weights.npy`` is a pickle, which could run any program when it is read. Here
it is read by an unpickler that knows three names and replaces all of them by records, so it
calls nothing; every array is then checked and made from its plain bytes.

A safetensors file holds the arrays as they are and one JSON text of metadata, with a
checksum over both. The arrays of each kind, for S species and vacancies:

============  ==============================================================================
``constant``  ``base`` (S + 1,) float64, eV by species, 0 for the vacancy
``pairwise``  ``base`` and ``bonds`` (S + 1, S + 1) float64, eV
``network``   ``W1``, ``b1``, ``W2``, ... float32, ``codes`` (S + 1, C) float32, ``pool``
              (1,) int64, all as in :func:`mpiflow.systems.barriers.network`
``nnk``       the 26 arrays of the published network, float32: ``W1``, ``b1``, ``gamma1``,
              ``beta1``, ``mean1``, ``variance1``, ..., ``W5``, ``b5``
============  ==============================================================================
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle  # only as the base of _Records, which calls nothing
import pickletools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from mpiflow.errors import InputError
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

AxisOrder = Literal["nkk", "paper"]
Kind = Literal["constant", "pairwise", "network", "nnk"]

#: The model that comes with mpiflow.
DEFAULT = Path(__file__).parent / "data" / "barriers_default.safetensors"
#: SHA-256 of weights.npy in github.com/UCICaoLab/NKK, and in the code of arXiv:2511.12842.
PUBLISHED_SHA256 = "4633e13ebe10e5a7baeaa704e4b3f0f9cca30bf3b9c98e22fcd5ce70ac7812ca"
#: Epsilon of batch normalisation that the network was trained with; the paper's copy has 1e-5.
BATCHNORM_EPSILON = 1e-3
LICENCE = "MIT, Copyright (c) 2024 UCICaoLab"
REFERENCE = "Xing, Rupert, Pan, Cao, Nat. Commun. 15, 3879 (2024)"

#: Larger files are refused unread; the published one has 0.6 MB.
MAX_BYTES = 64 * 2**20
_NPY_MAGIC = b"\x93NUMPY"
_FORMAT, _VERSION = "mpiflow-barriers", 1

_HIDDEN = 128
_IMAGE = 2 * REACH + 1
#: Names and shapes of the arrays of the published network, in the order of weights.npy.
NNK_SHAPES: dict[str, tuple[int, ...]] = {}
for _layer in range(1, 5):
    NNK_SHAPES[f"W{_layer}"] = (_IMAGE**3 if _layer == 1 else _HIDDEN, _HIDDEN)
    for _name in ("b", "gamma", "beta", "mean", "variance"):
        NNK_SHAPES[f"{_name}{_layer}"] = (_HIDDEN,)
NNK_SHAPES |= {"W5": (_HIDDEN, 1), "b5": (1,)}


class _Unusable(Exception):
    """What is wrong with the content of a file, as the end of 'This file ...'."""


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
        work = np.empty(barriers.work_size(self.parameters), np.float32)
        barriers.evaluate(self.parameters, grid[around].astype(np.uint8), work, out)
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
    tensors = {"base": np.array([0.0, *energies])}
    return _made("constant", tensors, species, name, card)


def pairwise_model(
    energies: Sequence[float],
    bonds: np.ndarray,
    *,
    species: Sequence[str] = ELEMENTS,
    name: str = "pairwise",
    card: Mapping[str, Any] | None = None,
) -> BarrierModel:
    """A model of :func:`mpiflow.systems.barriers.pairwise`: eV of each element and bond."""
    tensors = {"base": np.array([0.0, *energies]), "bonds": np.array(bonds, np.float64)}
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
    """A model of :func:`mpiflow.systems.barriers.network`, kept in float32."""
    tensors: dict[str, np.ndarray] = {
        "codes": np.array(codes, np.float32),
        "pool": np.array([pool], np.int64),
    }
    for number, (w, b) in enumerate(layers, 1):
        tensors |= {f"W{number}": np.array(w, np.float32), f"b{number}": np.array(b, np.float32)}
    return _made("network", tensors, species, name, card)


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
    except _Unusable as error:
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
        raise _Unusable(f"says that its kind is {kind!r:.40}")
    if not (
        isinstance(species, list)
        and 1 <= len(species) <= 100
        and all(isinstance(s, str) for s in species)
    ):
        raise _Unusable("does not name its species")
    if len(set(species)) < len(species):
        raise _Unusable("names a species twice")
    if not (isinstance(name, str) and isinstance(card, dict)):
        raise _Unusable("has no name or no card")
    for key, array in tensors.items():
        if not np.isfinite(array).all():
            raise _Unusable(f"holds numbers in {key} that are not finite")
    if kind == "nnk":
        used = card.get("batchnorm_epsilon") if epsilon is None else epsilon
        if not (isinstance(used, float | int) and 0 <= used < math.inf):
            raise _Unusable("does not say the epsilon of its batch normalisation")
        card = {**card, "batchnorm_epsilon": used}
        parameters = _nnk(tensors, len(species), axis_order, used)
    else:
        parameters = _plain(kind, tensors, len(species))
    order = axis_order if kind == "nnk" else None
    return BarrierModel(parameters, tuple(species), name, sha256, card, order, kind, tensors)


def _require(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], dtype: type
) -> None:
    """Refuse arrays that are not exactly these, of this type."""
    if set(tensors) != set(shapes):
        raise _Unusable(f"holds the arrays {sorted(tensors)!s:.200}, not {sorted(shapes)}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            has = f"{tensors[name].shape} {tensors[name].dtype}"
            raise _Unusable(f"holds {name} of {has}, not of {shape} {np.dtype(dtype)}")


def _plain(kind: Kind, tensors: dict[str, np.ndarray], species: int) -> barriers.Barriers:
    size = species + 1
    try:
        if kind == "network":
            return _network(tensors, size)
        shapes: dict[str, tuple[int, ...]] = {"base": (size,)}
        if kind == "pairwise":
            shapes["bonds"] = (size, size)
        _require(tensors, shapes, np.float64)
        if tensors["base"][VACANCY] != 0.0:
            raise _Unusable("gives the vacancy an energy of its own in base")
        energies = tensors["base"][1:].tolist()
        if kind == "constant":
            return barriers.constant(energies)
        return barriers.pairwise(energies, tensors["bonds"])
    except InputError as error:  # it names an argument, but users have given a whole model
        raise _Unusable(f"does not fit: {error.name} is {error.value}, not {error.allowed}") from (
            error
        )


def _network(tensors: dict[str, np.ndarray], size: int) -> barriers.Barriers:
    tensors = dict(tensors)
    codes, pool = tensors.pop("codes", np.empty(0)), tensors.pop("pool", np.empty(0))
    if codes.ndim != 2 or len(codes) != size or codes.shape[1] < 1 or codes.dtype != np.float32:
        raise _Unusable(f"holds codes of {codes.shape} {codes.dtype}, not of ({size}, C) float32")
    if pool.shape != (1,) or pool.dtype != np.int64 or pool[0] < 1:
        raise _Unusable("holds no pool, one integer of at least 1")
    count = len(tensors) // 2
    names = [name for n in range(1, count + 1) for name in (f"W{n}", f"b{n}")]
    if not count or set(tensors) != set(names):
        raise _Unusable(f"holds the layers {sorted(tensors)!s:.200}, not W1, b1, W2, b2, ...")
    for name in names:
        if tensors[name].ndim != (2 if name[0] == "W" else 1) or tensors[name].dtype != np.float32:
            raise _Unusable(f"holds {name} of {tensors[name].shape} {tensors[name].dtype}")
    layers = [(tensors[f"W{n}"], tensors[f"b{n}"]) for n in range(1, count + 1)]
    return barriers.network(layers, codes, int(pool[0]))


def _nnk(
    tensors: dict[str, np.ndarray], species: int, axis_order: AxisOrder, epsilon: float
) -> barriers.Barriers:
    r"""The published network with its batch normalisation folded in, in float64.

    .. math:: \gamma \frac{W^T x + b - \mu}{\sqrt{v + \epsilon}} + \beta
              = (s W)^T x + s (b - \mu) + \beta, \qquad s = \gamma / \sqrt{v + \epsilon}
    """
    if species != len(ELEMENTS):
        raise _Unusable(f"names {species} species, and this network has {len(ELEMENTS)}")
    _require(tensors, NNK_SHAPES, np.float32)
    layers = []
    for number in range(1, 5):
        names = (f"{name}{number}" for name in ("W", "b", "gamma", "beta", "mean", "variance"))
        w, b, gamma, beta, mean, variance = (tensors[name].astype(np.float64) for name in names)
        if np.any(variance <= 0):
            raise _Unusable(f"holds numbers in variance{number} that are not above 0")
        scale = gamma / np.sqrt(variance + epsilon)
        layers.append((w * scale, (b - mean) * scale + beta))
    layers[0] = (layers[0][0][_used_rows(axis_order)], layers[0][1])
    layers.append((tensors["W5"], tensors["b5"]))
    # Sums of a layer stay finite too if its numbers are far below the largest float32.
    if max(float(np.abs(array).max()) for layer in layers for array in layer) > 1e6:
        raise _Unusable("holds weights that are beyond 1e6 after the batch normalisation")
    # The image holds the number of the species itself, and 0 for a vacancy.
    codes = np.arange(species + 1, dtype=np.float32)[:, None]
    return barriers.network(layers, codes)


def _used_rows(axis_order: AxisOrder) -> np.ndarray:
    """Rows of the first matrix that belong to the 112 sites; all other inputs are zero."""
    image = SURROUNDINGS[:, [1, 0, 2]] if axis_order == "nkk" else SURROUNDINGS
    return (image + REACH) @ np.array([_IMAGE**2, _IMAGE, 1])


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
    npy = data.startswith(_NPY_MAGIC)
    try:
        tensors, about = _from_npy(data, path, sha256) if npy else _from_safetensors(data)
        return _model(tensors, about, sha256, axis_order, batchnorm_epsilon)
    except _Unusable as error:
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


def _from_npy(data: bytes, path: Path, sha256: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and description of a weights.npy."""
    tensors = dict(zip(NNK_SHAPES, _object_array(data), strict=True))
    published = sha256 == PUBLISHED_SHA256
    card = {
        "statement": "the published NNK network"
        if published
        else "not the published NNK network, but other weights of the same shapes",
        "published": published,
        "source": path.name,
        "source_sha256": sha256,
        "batchnorm_epsilon": BATCHNORM_EPSILON,
        "licence": LICENCE if published else "that of whoever gave you these weights",
        "reference": REFERENCE,
    }
    return tensors, {"kind": "nnk", "species": list(ELEMENTS), "name": "nnk", "card": card}


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
        raise _Unusable(f"is damaged or not of mpiflow: reading said {error!r:.200}") from error
    if version != _VERSION:
        raise _Unusable(f"has version {version!r:.20} of the format, and known is {_VERSION}")
    if checksum != _checksum(tensors, about):
        raise _Unusable("does not match its own checksum")
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


# -- the pickle inside weights.npy ---------------------------------------------------------

#: What numpy writes for arrays of arrays, with protocols 3 and 4.
_OPCODES = frozenset(
    "PROTO FRAME GLOBAL STACK_GLOBAL REDUCE BUILD MARK TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE "
    "EMPTY_LIST APPEND APPENDS BININT BININT1 BININT2 NONE NEWFALSE NEWTRUE BINUNICODE "
    "SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE "
    "STOP".split()
)
_MAX_OPERATIONS = 10_000  # the published file has 649


class _Record:
    """Stands for an object in a pickle: keeps what the file says of it and does nothing."""

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments: object) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_Record):
    """An array: state (1, shape, type, column-major, content)."""


class _Dtype(_Record):
    """A type of number."""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # numpy 2
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Dtype,
}


class _Records(pickle.Unpickler):
    """Reads a pickle of arrays into records. No name leads to anything that could be called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise _Unusable(f"asks for {f'{module}.{name}'!a:.80}, which is no plain array")
        return _ALLOWED[module, name]


def _object_array(data: bytes) -> list[np.ndarray]:
    """The 26 float32 arrays of the published network from the bytes of a .npy file."""
    file = io.BytesIO(data)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        shape, _, dtype = headers[np.lib.format.read_magic(file)](file)
    except Exception as error:  # whatever foreign bytes provoke
        raise _Unusable(f"has a damaged header: reading said {error!r:.200}") from error
    count = len(NNK_SHAPES)
    if shape != (count,) or dtype != np.dtype(object):
        raise _Unusable(f"holds an array {shape} of {dtype}, not ({count},) of objects")
    outer = _record(data[file.tell() :])
    state = _state(outer, ("O8", False, True), (3, "|", None, None, None, -1, -1, 63))
    if state[1] != (count,) or not isinstance(state[4], list) or len(state[4]) != count:
        raise _Unusable(f"does not hold {count} arrays")
    return [_float32(item, *what) for item, what in zip(state[4], NNK_SHAPES.items(), strict=True)]


def _record(data: bytes) -> object:
    """The record of what a pickle holds."""
    try:
        last, operations = 0, 0
        # Ahead of the unpickler: unknown or very many operations, and sizes that would make it
        # ask for memory that the file cannot fill.
        for opcode, argument, position in pickletools.genops(data):
            operations += 1
            last = 0 if position is None else position
            if opcode.name not in _OPCODES:
                raise _Unusable(f"uses {opcode.name}, which plain arrays do not need")
            largest = {"FRAME": len(data), "LONG_BINPUT": _MAX_OPERATIONS}.get(opcode.name)
            too_large = largest is not None and int(argument or 0) > largest
            if operations > _MAX_OPERATIONS or too_large:
                raise _Unusable("holds more objects than plain arrays need")
        if last + 1 != len(data):
            raise _Unusable("goes on after its end")
        return _Records(io.BytesIO(data)).load()
    except _Unusable:
        raise
    except Exception as error:  # whatever foreign bytes provoke
        raise _Unusable(f"is cut short or damaged: reading said {error!r:.200}") from error


def _state(record: object, dtype: tuple[object, ...], dtype_state: tuple[object, ...]) -> Any:
    """State of the record of an array of this type."""
    if not isinstance(record, _Array) or record.arguments != ("ndarray", (0,), b"b"):
        raise _Unusable(f"holds a {type(record).__name__.strip('_').lower()}, not an array")
    state = record.state
    if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1:
        raise _Unusable("holds an array without content")
    kind = state[2]
    if not isinstance(kind, _Dtype) or kind.arguments != dtype or kind.state != dtype_state:
        raise _Unusable(f"holds an array of another type than {dtype[0]}")
    return state


def _float32(item: object, name: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        state = _state(item, ("f4", False, True), (3, "<", None, None, None, -1, -1, 0))
    except _Unusable as error:
        raise _Unusable(f"is wrong in {name}: it {error}") from error
    _, found, _, column_major, content = state
    if found != shape:
        raise _Unusable(f"holds {name} of another shape than {shape}")
    if type(column_major) is not bool or not isinstance(content, bytes):
        raise _Unusable(f"is wrong in {name}: its content is not plain bytes")
    if len(content) != 4 * math.prod(shape):
        raise _Unusable(f"holds {len(content)} bytes for {name} of {shape} float32")
    values = np.frombuffer(content, "<f4").reshape(shape, order="F" if column_major else "C")
    return values.astype(np.float32, order="C")


# -- writing files -------------------------------------------------------------------------


def save_barrier_model(model: BarrierModel, out: str | Path, overwrite: bool = False) -> str:
    """Write a model to a .safetensors file. Returns the SHA-256 of the file.

    The same model gives the same bytes. An existing file is kept unless ``overwrite``.

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
    _write(data, path, overwrite)
    return hashlib.sha256(data).hexdigest()


def _write(data: bytes, path: Path, overwrite: bool) -> None:
    """Put a file in place whole; an old one stays until then."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        if path.exists() and not (overwrite and path.is_file()):
            remedy = "Choose another name, or use --overwrite."
            raise InputError("out", str(path), "a file that does not exist yet", remedy)
        try:
            with new.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        allowed = "a file in an existing folder that can be written"
        raise InputError("out", str(path), allowed, f"Writing said: {error.strerror}.") from error


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
