"""Barriers evaluated: kernels for the CPU and CUDA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpiflow.core.device import CudaKernel, Device, kernel
from mpiflow.core.errors import InputError
from mpiflow.core.instructions import LANES
from mpiflow.solvers.vacancy import dense
from mpiflow.systems.alloy import NEIGHBOURS, ORIENTATIONS
from mpiflow.systems.barriers import _BEYOND, CONSTANT, NETWORK, PAIRWISE, SITES, Barriers, _model


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
        elif model.kind == CONSTANT:
            out[d] = model.base[atom]
        elif model.kind == PAIRWISE:
            change = 0.0
            for i in range(NEIGHBOURS):
                if i != d:  # around the vacancy, where the atom goes
                    change += model.bonds[atom, types[i]] - model.bonds[0, types[i]]
                site = _BEYOND[d, i]
                if site >= 0:  # around the atom, where the vacancy goes
                    change += model.bonds[0, types[site]] - model.bonds[atom, types[site]]
            out[d] = model.base[atom] + 0.5 * change
        else:
            out[d] = work[found + d]


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


#: Floats of the widest layer on CUDA: two copies for eight hops share a block's fast memory.
_WIDEST_CUDA = 512


_HALF = NEIGHBOURS * _WIDEST_CUDA


_SHARED = 2 * _HALF


#: Threads of a block as CudaKernel launches it; another number gives the same results.
_BLOCK_CUDA = 128


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


def evaluate_many_cuda(model: Barriers, types: Any, out: Any) -> None:
    """:func:`evaluate_many` on CUDA: a model of :func:`on_device`, and arrays there.

    The same arithmetic in the same order, so the same bits as on a CPU.
    """
    _evaluate_cuda.launch(_BLOCK_CUDA * types.shape[0], *model, types, out)


@CudaKernel
def _evaluate_cuda(cuda: Any) -> Callable[..., None]:
    def evaluate_block(  # type: ignore[no-untyped-def]
        kind, base, bonds, codes, gather, layers, stride, pool, weights, types, out
    ):
        """One block of threads for each vacancy, one thread for a column of a layer."""
        # Value k of hop d is at 8 k + d of the half that holds the inputs, or outputs, of a layer.
        shared = cuda.shared.array(_SHARED, np.float32)
        me, threads = cuda.threadIdx.x, cuda.blockDim.x
        for e in range(cuda.blockIdx.x, types.shape[0], cuda.gridDim.x):
            x, y = 0, _HALF
            if kind == NETWORK:
                channels, inputs = codes.shape[1], gather.shape[1]
                for i in range(me, NEIGHBOURS * inputs, threads):
                    source = int(gather[i % NEIGHBOURS, i // NEIGHBOURS])
                    shared[i] = codes[types[e, source // channels], source % channels]
                cuda.syncthreads()
                last = layers.shape[0] - 1
                for layer in range(last):
                    count, panels, at = layers[layer, 0], layers[layer, 1], layers[layer, 2]
                    for column in range(me, panels * LANES, threads):
                        w = at + column // LANES * (count + 1) * LANES + column % LANES
                        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = weights[w]
                        for k in range(x, x + 8 * count, 8):
                            w += LANES
                            factor = weights[w]
                            s0 = cuda.fma(shared[k], factor, s0)
                            s1 = cuda.fma(shared[k + 1], factor, s1)
                            s2 = cuda.fma(shared[k + 2], factor, s2)
                            s3 = cuda.fma(shared[k + 3], factor, s3)
                            s4 = cuda.fma(shared[k + 4], factor, s4)
                            s5 = cuda.fma(shared[k + 5], factor, s5)
                            s6 = cuda.fma(shared[k + 6], factor, s6)
                            s7 = cuda.fma(shared[k + 7], factor, s7)
                        to = y + 8 * column
                        shared[to] = max(s0, np.float32(0))
                        shared[to + 1] = max(s1, np.float32(0))
                        shared[to + 2] = max(s2, np.float32(0))
                        shared[to + 3] = max(s3, np.float32(0))
                        shared[to + 4] = max(s4, np.float32(0))
                        shared[to + 5] = max(s5, np.float32(0))
                        shared[to + 6] = max(s6, np.float32(0))
                        shared[to + 7] = max(s7, np.float32(0))
                    cuda.syncthreads()
                    x, y = y, x
                    if layer == 0 and pool > 1:
                        part = 8 * (panels * LANES // pool)
                        for i in range(x + me, x + part, threads):
                            for other in range(1, pool):
                                shared[i] += shared[i + other * part]
                        cuda.syncthreads()
                # The lanes of the output, then their sum for each hop.
                count, at = layers[last, 0], layers[last, 2]
                for i in range(me, 8 * LANES, threads):
                    total = np.float32(0)
                    for k in range(i // 8, count, LANES):
                        total = cuda.fma(shared[x + 8 * k + i % 8], weights[at + k], total)
                    shared[y + i] = total
                cuda.syncthreads()
            for d in range(me, NEIGHBOURS, threads):
                atom = types[e, d]
                if kind == NETWORK:
                    half = LANES // 2
                    while half > 0:
                        for lane in range(half):
                            shared[y + 8 * lane + d] += shared[y + 8 * (lane + half) + d]
                        half //= 2
                    out[e, d] = shared[y + d] + weights[at + count]
                elif kind == CONSTANT:
                    out[e, d] = base[atom]
                else:
                    change = 0.0
                    for i in range(NEIGHBOURS):
                        near = types[e, i]
                        if i != d:
                            change += bonds[atom, near] - bonds[0, near]
                        if _BEYOND[d, i] >= 0:
                            near = types[e, _BEYOND[d, i]]
                            change += bonds[0, near] - bonds[atom, near]
                    out[e, d] = base[atom] + 0.5 * change
                if atom == 0:
                    out[e, d] = np.inf
            cuda.syncthreads()

    return evaluate_block
