"""The published barrier network: what its ``weights.npy`` holds, and how to read it safely.

``weights.npy`` of Xing et al. is a pickle, which could run any program when it is read. Here
it is read by an unpickler that knows three names and replaces all of them by records, so it
calls nothing; every array is then checked and made from its plain bytes.
"""

from __future__ import annotations

import io
import math
import pickle  # only as the base of _Records, which calls nothing
import pickletools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mpiflow.solvers.vacancy import barrier_kernels
from mpiflow.systems import barriers
from mpiflow.systems.alloy import ELEMENTS, REACH, SURROUNDINGS

AxisOrder = Literal["nkk", "paper"]

#: SHA-256 of weights.npy in github.com/UCICaoLab/NKK, and in the code of arXiv:2511.12842.
PUBLISHED_SHA256 = "4633e13ebe10e5a7baeaa704e4b3f0f9cca30bf3b9c98e22fcd5ce70ac7812ca"
#: Epsilon of batch normalisation that the network was trained with; the paper's copy has 1e-5.
BATCHNORM_EPSILON = 1e-3
LICENCE = "MIT, Copyright (c) 2024 UCICaoLab"
REFERENCE = "Xing, Rupert, Pan, Cao, Nat. Commun. 15, 3879 (2024)"

_HIDDEN = 128
_IMAGE = 2 * REACH + 1
#: Names and shapes of the arrays of the published network, in the order of weights.npy.
NNK_SHAPES: dict[str, tuple[int, ...]] = {}
for _layer in range(1, 5):
    NNK_SHAPES[f"W{_layer}"] = (_IMAGE**3 if _layer == 1 else _HIDDEN, _HIDDEN)
    for _name in ("b", "gamma", "beta", "mean", "variance"):
        NNK_SHAPES[f"{_name}{_layer}"] = (_HIDDEN,)
NNK_SHAPES |= {"W5": (_HIDDEN, 1), "b5": (1,)}


class Unusable(Exception):
    """What is wrong with the content of a file, as the end of 'This file ...'."""


def require_arrays(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], dtype: type
) -> None:
    """Refuse arrays that are not exactly these, of this type."""
    if set(tensors) != set(shapes):
        raise Unusable(f"holds the arrays {sorted(tensors)!s:.200}, not {sorted(shapes)}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            has = f"{tensors[name].shape} {tensors[name].dtype}"
            raise Unusable(f"holds {name} of {has}, not of {shape} {np.dtype(dtype)}")


def published_network(
    tensors: dict[str, np.ndarray], species: int, axis_order: AxisOrder, epsilon: float
) -> barriers.Barriers:
    r"""The published network with its batch normalisation folded in, in float64.

    .. math:: \gamma \frac{W^T x + b - \mu}{\sqrt{v + \epsilon}} + \beta
              = (s W)^T x + s (b - \mu) + \beta, \qquad s = \gamma / \sqrt{v + \epsilon}
    """
    if species != len(ELEMENTS):
        raise Unusable(f"names {species} species, and this network has {len(ELEMENTS)}")
    require_arrays(tensors, NNK_SHAPES, np.float32)
    layers = []
    for number in range(1, 5):
        names = (f"{name}{number}" for name in ("W", "b", "gamma", "beta", "mean", "variance"))
        w, b, gamma, beta, mean, variance = (tensors[name].astype(np.float64) for name in names)
        if np.any(variance <= 0):
            raise Unusable(f"holds numbers in variance{number} that are not above 0")
        scale = gamma / np.sqrt(variance + epsilon)
        layers.append((w * scale, (b - mean) * scale + beta))
    layers[0] = (layers[0][0][_used_rows(axis_order)], layers[0][1])
    layers.append((tensors["W5"], tensors["b5"]))
    # Sums of a layer stay finite too if its numbers are far below the largest float32.
    if max(float(np.abs(array).max()) for layer in layers for array in layer) > 1e6:
        raise Unusable("holds weights that are beyond 1e6 after the batch normalisation")
    # The image holds the number of the species itself, and 0 for a vacancy.
    codes = np.arange(species + 1, dtype=np.float32)[:, None]
    return barrier_kernels.network(layers, codes)


def _used_rows(axis_order: AxisOrder) -> np.ndarray:
    """Rows of the first matrix that belong to the 112 sites; all other inputs are zero."""
    image = SURROUNDINGS[:, [1, 0, 2]] if axis_order == "nkk" else SURROUNDINGS
    return (image + REACH) @ np.array([_IMAGE**2, _IMAGE, 1])


def read_weights(
    data: bytes, source: str, sha256: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and description of the bytes of a weights.npy, whose checksum tells whose it is."""
    tensors = dict(zip(NNK_SHAPES, _object_array(data), strict=True))
    published = sha256 == PUBLISHED_SHA256
    card = {
        "statement": "the published NNK network"
        if published
        else "not the published NNK network, but other weights of the same shapes",
        "published": published,
        "source": source,
        "source_sha256": sha256,
        "batchnorm_epsilon": BATCHNORM_EPSILON,
        "licence": LICENCE if published else "that of whoever gave you these weights",
        "reference": REFERENCE,
    }
    return tensors, {"kind": "nnk", "species": list(ELEMENTS), "name": "nnk", "card": card}


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
            raise Unusable(f"asks for {f'{module}.{name}'!a:.80}, which is no plain array")
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
        raise Unusable(f"has a damaged header: reading said {error!r:.200}") from error
    count = len(NNK_SHAPES)
    if shape != (count,) or dtype != np.dtype(object):
        raise Unusable(f"holds an array {shape} of {dtype}, not ({count},) of objects")
    outer = _record(data[file.tell() :])
    state = _state(outer, ("O8", False, True), (3, "|", None, None, None, -1, -1, 63))
    if state[1] != (count,) or not isinstance(state[4], list) or len(state[4]) != count:
        raise Unusable(f"does not hold {count} arrays")
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
                raise Unusable(f"uses {opcode.name}, which plain arrays do not need")
            largest = {"FRAME": len(data), "LONG_BINPUT": _MAX_OPERATIONS}.get(opcode.name)
            too_large = largest is not None and int(argument or 0) > largest
            if operations > _MAX_OPERATIONS or too_large:
                raise Unusable("holds more objects than plain arrays need")
        if last + 1 != len(data):
            raise Unusable("goes on after its end")
        return _Records(io.BytesIO(data)).load()
    except Unusable:
        raise
    except Exception as error:  # whatever foreign bytes provoke
        raise Unusable(f"is cut short or damaged: reading said {error!r:.200}") from error


def _state(record: object, dtype: tuple[object, ...], dtype_state: tuple[object, ...]) -> Any:
    """State of the record of an array of this type."""
    if not isinstance(record, _Array) or record.arguments != ("ndarray", (0,), b"b"):
        raise Unusable(f"holds a {type(record).__name__.strip('_').lower()}, not an array")
    state = record.state
    if not isinstance(state, tuple) or len(state) != 5 or state[0] != 1:
        raise Unusable("holds an array without content")
    kind = state[2]
    if not isinstance(kind, _Dtype) or kind.arguments != dtype or kind.state != dtype_state:
        raise Unusable(f"holds an array of another type than {dtype[0]}")
    return state


def _float32(item: object, name: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        state = _state(item, ("f4", False, True), (3, "<", None, None, None, -1, -1, 0))
    except Unusable as error:
        raise Unusable(f"is wrong in {name}: it {error}") from error
    _, found, _, column_major, content = state
    if found != shape:
        raise Unusable(f"holds {name} of another shape than {shape}")
    if type(column_major) is not bool or not isinstance(content, bytes):
        raise Unusable(f"is wrong in {name}: its content is not plain bytes")
    if len(content) != 4 * math.prod(shape):
        raise Unusable(f"holds {len(content)} bytes for {name} of {shape} float32")
    values = np.frombuffer(content, "<f4").reshape(shape, order="F" if column_major else "C")
    return values.astype(np.float32, order="C")
