r"""Small dense layers for eight inputs at once, as fast as the CPU multiplies and the same bits.

A *hidden layer* and the *output* of a network are

.. math:: h_j = \max\Bigl(b_j + \sum_k x_k W_{kj},\; 0\Bigr), \qquad y = b + \sum_k x_k w_k,

for the eight rows x of a scratch array, in float32. The order of the arithmetic is fixed:

* hidden: one chain over k = 0, 1, ... of fused multiply-adds, beginning with :math:`b_j`;
* output: 16 such chains beginning with 0, chain i over k = i, i + 16, ...; then lanes i and
  i + 8 are added, i and i + 4, i and i + 2, i and i + 1; then b.

So results depend neither on the width of the CPU's vectors nor on the shape of a tile. A CPU
without fused multiply-adds computes them in the C library: slow, but the same bits.

A tile of rows times *panels*, 16 columns each, keeps its sums in registers while k runs.
LLVM does not find this shape in loops, so the tile is spelled out. Widths that do not fit
are padded with zeros, which changes no sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpiflow.core.device import cpu_has, intrinsic, kernel
from mpiflow.core.instructions import LANES, Code

#: Rows that go through a network together.
ROWS = 8
#: Steps of k in one turn of the loop; the inputs of a layer are padded to multiples of it.
STEPS = 4
# How far ahead weights are fetched into the first cache, in floats.
_AHEAD = 256


def padded(count: int, multiple: int = LANES) -> int:
    """The next multiple of some number."""
    return -(-count // multiple) * multiple


def packed_hidden(weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Weights (in, out) and bias (out,) as :data:`hidden` reads them, one panel after the other.

    A panel has its 16 biases, then 16 weights for each input.
    """
    inputs, outputs = weights.shape
    table = np.zeros((1 + padded(inputs, STEPS), padded(outputs)), np.float32)
    table[0, :outputs], table[1 : 1 + inputs, :outputs] = bias, weights
    return table.reshape(len(table), -1, LANES).swapaxes(0, 1).ravel()


def packed_output(weights: np.ndarray, bias: float) -> np.ndarray:
    """Weights (in,) and bias as :func:`output` reads them: padded, the bias last."""
    table = np.zeros(padded(len(weights)) + 1, np.float32)
    table[: len(weights)], table[-1] = weights, bias
    return table


def _tile(rows: int, panels: int) -> Any:
    """A hidden layer for some rows and panels."""

    def emit(ir, builder, work, x, y, stride, weights, at, inputs):  # type: ignore[no-untyped-def]
        code = Code(ir, builder)
        size = code.times(code.plus(inputs, 1), LANES)
        w = [code.at(weights, at, code.times(size, p)) for p in range(panels)]
        x_rows = [code.at(work, x, code.times(stride, r)) for r in range(rows)]

        def multiply(k: Any, sums: list[Any]) -> list[Any]:
            lines = [code.at(panel, code.times(k, LANES)) for panel in w]
            for step in range(STEPS):
                here = [code.at(line, (1 + step) * LANES) for line in lines]
                for line in here:
                    code.fetch(code.at(line, _AHEAD))
                factors = [code.load(line) for line in here]
                given = [code.broadcast(code.at(row, k, step)) for row in x_rows]
                sums = [
                    code.fma(given[i // panels], factors[i % panels], s) for i, s in enumerate(sums)
                ]
            return sums

        biases = [code.load(panel) for panel in w]
        for i, s in enumerate(code.loop(inputs, STEPS, biases * rows, multiply)):
            positive = builder.select(builder.fcmp_ordered(">", s, code.zeros), s, code.zeros)
            row, panel = divmod(i, panels)
            code.store(positive, code.at(work, y, code.times(stride, row), panel * LANES))

    return intrinsic(emit)


_tile_8x2, _tile_8x1, _tile_4x1 = _tile(8, 2), _tile(8, 1), _tile(4, 1)


@kernel
def hidden_wide(
    work: np.ndarray,
    x: int,
    y: int,
    stride: int,
    weights: np.ndarray,
    at: int,
    inputs: int,
    panels: int,
) -> None:
    """:data:`hidden` for 32 vector registers of 16 floats."""
    size = (1 + inputs) * LANES
    for p in range(0, panels - 1, 2):
        _tile_8x2(work, x, y + p * LANES, stride, weights, at + p * size, inputs)
    if panels % 2:
        p = panels - 1
        _tile_8x1(work, x, y + p * LANES, stride, weights, at + p * size, inputs)


@kernel
def hidden_narrow(
    work: np.ndarray,
    x: int,
    y: int,
    stride: int,
    weights: np.ndarray,
    at: int,
    inputs: int,
    panels: int,
) -> None:
    """:data:`hidden` for 16 vector registers of 8 floats, as of AVX2, or for any others."""
    size = (1 + inputs) * LANES
    for p in range(panels):
        for r in range(0, ROWS * stride, 4 * stride):
            _tile_4x1(work, x + r, y + r + p * LANES, stride, weights, at + p * size, inputs)


#: A hidden layer: rows at x and y of ``work``, each ``stride`` floats after the last, weights
#: from ``at`` on as of :func:`packed_hidden`, ``inputs`` after padding.
hidden = hidden_wide if cpu_has("avx512f") else hidden_narrow


@intrinsic
def _add_lanes(ir: Any, builder: Any, work: Any, to: Any, other: Any) -> None:
    code = Code(ir, builder)
    sums = builder.fadd(code.load(code.at(work, to)), code.load(code.at(work, other)))
    code.store(sums, code.at(work, to))


@kernel
def add_parts(work: np.ndarray, y: int, stride: int, part: int, parts: int) -> None:
    """Adds to the first panels of each row at y of ``work`` the ``parts`` - 1 sets that follow.

    A part has a number ``part`` of panels; they are added one after the other.
    """
    for row in range(ROWS):
        for panel in range(part):
            to = y + row * stride + panel * LANES
            for other in range(1, parts):
                _add_lanes(work, to, to + other * part * LANES)


@intrinsic
def output(ir, builder, work, x, y, stride, weights, at, inputs):  # type: ignore[no-untyped-def]
    """The output of each row at x of ``work``, put at y, one after the other."""
    code = Code(ir, builder)
    w = code.at(weights, at)

    def multiply(k: Any, sums: list[Any]) -> list[Any]:
        factor = code.load(code.at(w, k))
        rows = [code.load(code.at(work, x, code.times(stride, r), k)) for r in range(ROWS)]
        return [code.fma(row, factor, s) for row, s in zip(rows, sums, strict=True)]

    bias = builder.load(code.at(w, inputs), align=4)
    for r, s in enumerate(code.loop(inputs, LANES, [code.zeros] * ROWS, multiply)):
        half = LANES // 2
        while half:
            s = builder.fadd(code.shuffle(s, range(half)), code.shuffle(s, range(half, 2 * half)))
            half //= 2
        total = builder.fadd(builder.extract_element(s, code.i32(0)), bias)
        builder.store(total, code.at(work, y, r), align=4)
