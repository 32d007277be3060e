"""Barriers evaluated: kernels for the CPU and CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpiflow.core.device import Device, called, kernel, rule, simulated
from mpiflow.core.errors import InputError
from mpiflow.core.instructions import LANES
from mpiflow.solvers.vacancy import dense
from mpiflow.systems.alloy import NEIGHBOURS, ORIENTATIONS
from mpiflow.systems.barriers import _BEYOND, NETWORK, PAIRWISE, SITES, Barriers, _model


def network(
    layers: Sequence[tuple[np.ndarray, np.ndarray]], codes: np.ndarray, pool: int = 1
) -> Barriers:
    """A network of the surroundings.

    Parameters
    ----------
    layers : (W, b) of each layer, W (in, out); the first takes 112 C inputs, place by place
        with its C channels together, the last gives one number in eV
    codes : (S + 1, C) input channels of each species
    pool : parts of the first layer that are added up
    """
    codes = np.ascontiguousarray(codes, np.float32)
    channels = codes.shape[1]
    widths, given = [SITES * channels], SITES * channels
    for number, (w, b) in enumerate(layers):
        if w.ndim != 2 or w.shape[0] != given or b.shape != w.shape[1:]:
            raise InputError(
                "layers", (w.shape, b.shape), f"({given}, n) and (n,)", "Check the weights."
            )
        widths.append(w.shape[1])
        given = w.shape[1] // pool if number == 0 else w.shape[1]
    if widths[-1] != 1 or pool < 1 or widths[1] % pool or widths[0] >= 2**16:
        raise InputError("layers", widths, "one output, equal parts", "Check the weights.")
    table, weights = _packed(layers, pool)
    sites = ORIENTATIONS[:, :, None] * channels + np.arange(channels)
    return _model(NETWORK, np.zeros(len(codes)))._replace(
        codes=codes,
        gather=sites.reshape(NEIGHBOURS, -1).astype(np.uint16),
        layers=table,
        stride=int(max(widths[0], table[:, 1].max() * LANES)),
        pool=pool,
        weights=weights,
    )


def _packed(
    layers: Sequence[tuple[np.ndarray, np.ndarray]], pool: int
) -> tuple[np.ndarray, np.ndarray]:
    """Layers and weights as of :class:`Barriers`."""
    table, packed, at = [], [], 0
    for number, (w, b) in enumerate(layers):
        if number == 0:
            w, b = _apart(w, pool), _apart(b, pool)
        if number == len(layers) - 1:
            packed.append(dense.packed_output(w[:, 0], b[0]))
            table.append((dense.padded(len(w)), 0, at))
        else:
            packed.append(dense.packed_hidden(w, b))
            inputs, panels = dense.padded(len(w), dense.STEPS), dense.padded(len(b)) // LANES
            table.append((inputs, panels, at))
        at += len(packed[-1])
    # Begin with a line of the cache, so that no vector lies across two.
    room = np.zeros(at + LANES, np.float32)
    start = -room.ctypes.data % 64 // room.itemsize
    room[start : start + at] = np.concatenate(packed)
    return np.array(table, np.int64), room[start : start + at]


def _apart(array: np.ndarray, parts: int) -> np.ndarray:
    """The columns (last axis) of each of some equal parts, padded to whole panels."""
    split = array.reshape(*array.shape[:-1], parts, -1)
    zeros = dense.padded(split.shape[-1]) - split.shape[-1]
    wide = np.pad(split, [(0, 0)] * array.ndim + [(0, zeros)])
    return wide.reshape(*array.shape[:-1], -1)


def work_size(model: Barriers) -> int:
    """Floats of scratch memory that :func:`evaluate` needs."""
    return 2 * NEIGHBOURS * model.stride + model.gather.shape[1]


@kernel
def evaluate(model: Barriers, types: np.ndarray, work: np.ndarray, out: np.ndarray) -> None:
    """Barriers of the eight hops of a vacancy.

    Parameters
    ----------
    types : (112,) uint8, species of the surroundings
    work : float32 scratch memory, at least :func:`work_size`
    out : (8,) float32, filled with eV; inf where the neighbour is a vacancy

    Raises
    ------
    ValueError : if ``work`` is too small
    """
    found = 0
    if model.kind == NETWORK:
        found = _network(model, types, work)
    for d in range(NEIGHBOURS):
        atom = types[d]
        if atom == 0:
            out[d] = np.inf
        elif model.kind == NETWORK:
            out[d] = work[found + d]
        else:
            out[d] = plain_barrier(model.kind, model.base, model.bonds, types, d)


@rule
def plain_barrier(
    kind: int, base: np.ndarray, bonds: np.ndarray, types: np.ndarray, d: int
) -> float:
    """The barrier of a hop without a network."""
    atom, change = types[d], 0.0
    if kind == PAIRWISE:
        for i in range(NEIGHBOURS):
            if i != d:  # around the vacancy, where the atom goes
                change += bonds[atom, types[i]] - bonds[0, types[i]]
            site = _BEYOND[d, i]
            if site >= 0:  # around the atom, where the vacancy goes
                change += bonds[0, types[site]] - bonds[atom, types[site]]
    return base[atom] + 0.5 * change


@kernel
def _fill(model: Barriers, types: np.ndarray, work: np.ndarray) -> None:
    """The inputs of the network for each hop, at the beginning of ``work``."""
    channels, inputs = np.uint64(model.codes.shape[1]), np.uint64(model.gather.shape[1])
    codes = np.uint64(2 * NEIGHBOURS * model.stride)
    at = codes
    for i in range(SITES):
        for c in range(channels):
            work[at] = model.codes[types[i], c]
            at += np.uint64(1)
    for d in range(np.uint64(NEIGHBOURS)):
        start = d * np.uint64(model.stride)
        for i in range(inputs):
            work[start + i] = work[codes + np.uint64(model.gather[d, i])]


@kernel
def _network(model: Barriers, types: np.ndarray, work: np.ndarray) -> int:
    """Where in ``work`` the outputs of the network for the eight hops are."""
    stride = model.stride
    if work.size < 2 * NEIGHBOURS * stride + model.gather.shape[1]:
        raise ValueError("work is smaller than work_size(model)")
    _fill(model, types, work)
    x, y = 0, NEIGHBOURS * stride
    last = len(model.layers) - 1
    for layer in range(last):
        inputs, panels, at = model.layers[layer]
        dense.hidden(work, x, y, stride, model.weights, at, inputs, panels)
        if layer == 0 and model.pool > 1:
            dense.add_parts(work, y, stride, panels // model.pool, model.pool)
        x, y = y, x
    dense.output(work, x, y, stride, model.weights, model.layers[last, 2], model.layers[last, 0])
    return y


def evaluate_many(model: Barriers, types: np.ndarray, out: np.ndarray) -> None:
    """:func:`evaluate` for each of n vacancies: types (n, 112) uint8, out (n, 8) float32."""
    _evaluate_rows(model, types, np.empty(work_size(model), np.float32), out)


@kernel
def _evaluate_rows(model: Barriers, types: np.ndarray, work: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(types)):
        evaluate(model, types[i], work, out[i])


# -- CUDA ----------------------------------------------------------------------------------

#: Floats of the widest layer on CUDA: two copies for eight hops share a block's fast memory.
_WIDEST_CUDA = 512
_HALF = NEIGHBOURS * _WIDEST_CUDA
#: Floats of that memory which :func:`on_block` needs.
BLOCK_FLOATS = 2 * _HALF


def on_device(model: Barriers, device: Device) -> Barriers:
    """The model with its arrays on a device."""
    if device.is_cuda and model.stride > _WIDEST_CUDA:
        raise InputError(
            "layers",
            model.stride,
            f"at most {_WIDEST_CUDA} inputs and outputs on CUDA",
            "Use --device cpu.",
        )
    arrays = {k: device.put(v) for k, v in model._asdict().items() if isinstance(v, np.ndarray)}
    return model._replace(**arrays)


def on_block(cuda: Any) -> Callable[..., None]:
    """:func:`evaluate` for the threads of a block together, a function of their kernel.

    The same arithmetic in the same order, so the same bits as on a CPU: a thread does a column of a
    layer for all eight hops. Its ``shared`` are :data:`BLOCK_FLOATS` of the block; all threads see
    what it writes to ``out``.
    """

    twice = simulated()

    def fused(a, b, c):  # type: ignore[no-untyped-def]
        if twice:  # there it would round twice: in float64 the product is exact
            return np.float32(np.float64(a) * np.float64(b) + np.float64(c))
        return cuda.fma(a, b, c)

    fma = called(cuda, fused)

    def layer_of(  # type: ignore[no-untyped-def]
        shared, x, y, weights, at, count, panels, me, threads
    ):
        for column in range(me, panels * LANES, threads):
            w = at + column // LANES * (count + 1) * LANES + column % LANES
            s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = weights[w]
            for k in range(x, x + 8 * count, 8):
                w += LANES
                factor = weights[w]
                s0 = fma(shared[k], factor, s0)
                s1 = fma(shared[k + 1], factor, s1)
                s2 = fma(shared[k + 2], factor, s2)
                s3 = fma(shared[k + 3], factor, s3)
                s4 = fma(shared[k + 4], factor, s4)
                s5 = fma(shared[k + 5], factor, s5)
                s6 = fma(shared[k + 6], factor, s6)
                s7 = fma(shared[k + 7], factor, s7)
            to = y + 8 * column
            shared[to] = max(s0, np.float32(0))
            shared[to + 1] = max(s1, np.float32(0))
            shared[to + 2] = max(s2, np.float32(0))
            shared[to + 3] = max(s3, np.float32(0))
            shared[to + 4] = max(s4, np.float32(0))
            shared[to + 5] = max(s5, np.float32(0))
            shared[to + 6] = max(s6, np.float32(0))
            shared[to + 7] = max(s7, np.float32(0))

    layer_on_block = called(cuda, layer_of)

    def evaluate_on_block(model, types, shared, me, threads, out):  # type: ignore[no-untyped-def]
        # Value k of hop d is at 8 k + d of the half that holds the inputs, or outputs, of a layer.
        x, y = 0, _HALF
        layers, weights, last = model.layers, model.weights, model.layers.shape[0] - 1
        count, at = layers[last, 0], layers[last, 2]
        if model.kind == NETWORK:
            channels, inputs = model.codes.shape[1], model.gather.shape[1]
            for i in range(me, NEIGHBOURS * inputs, threads):
                source = int(model.gather[i % NEIGHBOURS, i // NEIGHBOURS])
                shared[i] = model.codes[types[source // channels], source % channels]
            cuda.syncthreads()
            for layer in range(last):
                panels = layers[layer, 1]
                layer_on_block(
                    shared, x, y, weights, layers[layer, 2], layers[layer, 0], panels, me, threads
                )
                cuda.syncthreads()
                x, y = y, x
                if layer == 0 and model.pool > 1:
                    part = 8 * (panels * LANES // model.pool)
                    for i in range(x + me, x + part, threads):
                        for other in range(1, model.pool):
                            shared[i] += shared[i + other * part]
                    cuda.syncthreads()
            # The lanes of the output, then their sum for each hop.
            for i in range(me, 8 * LANES, threads):
                total = np.float32(0)
                for k in range(i // 8, count, LANES):
                    total = fma(shared[x + 8 * k + i % 8], weights[at + k], total)
                shared[y + i] = total
            cuda.syncthreads()
        for d in range(me, NEIGHBOURS, threads):
            if types[d] == 0:
                out[d] = np.inf
            elif model.kind == NETWORK:
                half = LANES // 2
                while half > 0:
                    for lane in range(half):
                        shared[y + 8 * lane + d] += shared[y + 8 * (lane + half) + d]
                    half //= 2
                out[d] = shared[y + d] + weights[at + count]
            else:
                out[d] = plain_barrier(model.kind, model.base, model.bonds, types, d)
        cuda.syncthreads()

    return called(cuda, evaluate_on_block)
