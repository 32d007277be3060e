r"""Compiled layers of small networks: values, gradients, the same bits for a row in any company.

A network of sizes :math:`n_0, \dots, n_L` maps rows x in float32 by

.. math:: h_0 = x, \quad a_l = b_l + W_l h_{l-1}, \quad h_l = s(a_l)\ (l < L), \quad y = a_L,
          \qquad s(a) = a / (1 + e^{-a}),

and the gradients with g = dL/dy are those of the chain rule. Every sum over units is one chain of
fused multiply-adds in the order of the units, every sum over rows one in the order of the rows, and
the exponential is a polynomial: the value of a row depends on no other row, and nothing on the CPU.

Parameters are one flat array in the order of ``torch.nn.Linear``: W (n_l, n_(l-1)) row by row,
then b (n_l,), layer by layer. Inside, widths are padded with zeros to multiples of 16.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from mpiflow.core.device import cpu_has, intrinsic, kernel, rule
from mpiflow.core.instructions import LANES, Code

#: Rows that go through a network together: their numbers stay in the nearest caches.
BLOCK = 64
#: Largest exponent of the exponential in :func:`silu`, where it is 1e-38.
_FAR = 87.0


# -- products ------------------------------------------------------------------------------------


def _tile(rows: int) -> Any:
    """Add sums of products to those of some rows, in a panel of 16 columns.

    Row r is that at ``start[s + r rs]``, plus the sum over j below ``count`` of
    ``left[a + r ra + j ja] * right[b + j jb]``, put at ``out[o + r ro]``; they may be the same.
    """

    def emit(  # type: ignore[no-untyped-def]
        ir, builder, left, a, ra, ja, right, b, jb, start, s, rs, out, o, ro, count
    ):
        code = Code(ir, builder)
        factors = [code.at(left, a, code.times(ra, r)) for r in range(rows)]

        def multiply(j: Any, sums: list[Any]) -> list[Any]:
            line, column = code.load(code.at(right, b, builder.mul(j, jb))), builder.mul(j, ja)
            given = [code.broadcast(code.at(factor, column)) for factor in factors]
            return [code.fma(x, line, v) for x, v in zip(given, sums, strict=True)]

        first = [code.load(code.at(start, s, code.times(rs, r))) for r in range(rows)]
        for r, v in enumerate(code.loop(count, 1, first, multiply)):
            code.store(v, code.at(out, o, code.times(ro, r)))

    return intrinsic(emit)


# Eight rows for 32 vector registers of 16 floats, four for 16 of 8 floats.
_ROWS = 8 if cpu_has("avx512f") else 4
_tile_of_rows = _tile(_ROWS)


@kernel
def product(
    left: np.ndarray,
    a: int,
    ra: int,
    ja: int,
    right: np.ndarray,
    b: int,
    jb: int,
    start: np.ndarray,
    s: int,
    rs: int,
    out: np.ndarray,
    o: int,
    ro: int,
    rows: int,
    width: int,
    count: int,
) -> None:
    """Sums as of a tile, of a number of rows that is a multiple of 8, of columns that is of 16."""
    for c in range(0, width, LANES):
        for r in range(0, rows, _ROWS):
            _tile_of_rows(
                left, a + r * ra, ra, ja, right, b + c, jb,
                start, s + r * rs + c, rs, out, o + r * ro + c, ro, count,
            )  # fmt: skip


# -- activation ----------------------------------------------------------------------------------


@intrinsic
def silu(ir, builder, values, at, slopes, to, count):  # type: ignore[no-untyped-def]
    """s(a) in place of a from ``values[at]`` on, and its slope from ``slopes[to]`` on.

    ``count`` is a multiple of 16, at least that. e^(-|a|) is 2^n times the Taylor series of the
    rest, which is at most ln 2 / 2, to the 7th power.
    """
    code = Code(ir, builder)
    integers = ir.VectorType(code.i32, LANES)
    bits_of_sign = ir.Constant(integers, [2**31 - 1] * LANES)

    def constant(value: float) -> Any:
        return ir.Constant(code.vector, [float(np.float32(value))] * LANES)

    one, magic = constant(1.0), constant(1.5 * 2.0**23)

    def here(k: Any, sums: list[Any]) -> list[Any]:
        place = code.at(values, at, k)
        a = code.load(place)
        size = builder.bitcast(
            builder.and_(builder.bitcast(a, integers), bits_of_sign), code.vector
        )
        far = builder.fcmp_ordered("<", size, constant(_FAR))
        size = builder.select(far, size, constant(_FAR))
        # Adding the magic number leaves the nearest whole number in the lowest bits.
        shifted = code.fma(size, constant(-math.log2(math.e)), magic)
        n = builder.fsub(shifted, magic)
        r = builder.fneg(code.fma(n, constant(0.693145751953125), size))
        r = code.fma(n, constant(-1.4286068203094172e-06), r)
        p = constant(1.0 / math.factorial(7))
        for power in range(6, -1, -1):
            p = code.fma(p, r, constant(1.0 / math.factorial(power)))
        whole = builder.add(
            builder.bitcast(shifted, integers), ir.Constant(integers, [127] * LANES)
        )
        scale = builder.shl(whole, ir.Constant(integers, [23] * LANES))
        e = builder.fmul(p, builder.bitcast(scale, code.vector))
        share = builder.fdiv(one, builder.fadd(one, e))
        positive = builder.fcmp_ordered(">=", a, constant(0.0))
        share = builder.select(positive, share, builder.fmul(e, share))
        h = builder.fmul(a, share)
        code.store(h, place)
        code.store(code.fma(h, builder.fsub(one, share), share), code.at(slopes, to, k))
        return []

    code.loop(count, LANES, [], here)


# -- networks ------------------------------------------------------------------------------------


@rule
def padded(count: int) -> int:
    """The next multiple of 16."""
    return (count + LANES - 1) // LANES * LANES


@rule
def eights(count: int) -> int:
    """The next multiple of 8."""
    return (count + 7) // 8 * 8


def _padded(count: int) -> int:
    return -(-count // LANES) * LANES


def table_size(sizes: np.ndarray) -> int:
    """Floats of :func:`fill_table`."""
    return sum(_padded(m) * (n + 1) + m * _padded(n) for n, m in pairwise(sizes.tolist()))


def kept_size(sizes: np.ndarray, rows: int) -> int:
    """Floats of what :func:`forward` keeps of so many rows, all or a block."""
    wide = [_padded(n) for n in sizes.tolist()]
    return (rows + 7) // 8 * 8 * (2 * sum(wide) - wide[0])


def space_size(sizes: np.ndarray) -> int:
    """Floats of the space of :func:`backward`: two blocks of the widest layer, a row of zeros."""
    return (2 * BLOCK + 1) * max(_padded(n) for n in sizes.tolist())


def sums_size(sizes: np.ndarray) -> int:
    """Floats of the sums of :func:`return_block`."""
    return sum(_padded(m) + (m + 7) // 8 * 8 * _padded(n) for n, m in pairwise(sizes.tolist()))


@kernel
def fill_table(sizes: np.ndarray, parameters: np.ndarray, table: np.ndarray) -> None:
    """Of each layer b, W transposed and W, padded, one after the other."""
    for i in range(table.size):
        table[i] = 0.0
    at, to = 0, 0
    for layer in range(1, sizes.size):
        n, m = sizes[layer - 1], sizes[layer]
        wide, deep = padded(m), padded(n)
        for i in range(m):
            table[to + i] = parameters[at + m * n + i]
        transposed, plain = to + wide, to + wide * (n + 1)
        for i in range(m):
            for k in range(n):
                w = parameters[at + i * n + k]
                table[transposed + k * wide + i] = w
                table[plain + i * deep + k] = w
        at += m * (n + 1)
        to = plain + m * deep


@kernel
def run_block(
    sizes: np.ndarray, table: np.ndarray, kept: np.ndarray, height: int, row: int, count: int
) -> int:
    """A network of ``count`` rows from ``row`` on, whose inputs are in ``kept``; where y is in it.

    Parameters
    ----------
    table : of :func:`fill_table`
    kept : of :func:`kept_size` of ``height`` rows, a multiple of 8: h_0, then each h_l and slope
        of s, padded
    """
    last, wide = sizes.size - 1, padded(sizes[0])
    h, base, to = row * wide, height * wide, 0
    for layer in range(1, sizes.size):
        n, m = sizes[layer - 1], padded(sizes[layer])
        here, slope = base + row * m, base + (height + row) * m
        product(
            kept, h, wide, 1, table, to + m, m, table, to, 0, kept, here, m, eights(count), m, n
        )  # fmt: skip
        if layer < last:
            silu(kept, here, kept, slope, count * m)
        base += 2 * height * m
        to += m * (n + 1) + sizes[layer] * wide
        h, wide = here, m
    return h


@kernel
def return_block(
    sizes: np.ndarray,
    table: np.ndarray,
    kept: np.ndarray,
    height: int,
    row: int,
    count: int,
    space: np.ndarray,
    zeros: np.ndarray,
    sums: np.ndarray,
    inputs: bool,
) -> int:
    """Add what rows of :func:`run_block` give to the gradient; where that by x is in ``space``.

    Parameters
    ----------
    space : 2 x BLOCK rows of the widest layer; at the beginning, dL/dy of the rows, padded
    zeros : as many as a row of it
    sums : of :func:`sums_size`: of each layer b and W, padded
    inputs : whether that by x is wanted
    """
    last = sizes.size - 1
    here, other = 0, BLOCK * zeros.size
    wide = padded(sizes[last])
    base, to, at = kept.size - 2 * height * wide, table.size, sums.size
    for layer in range(last, 0, -1):
        n, m = sizes[layer - 1], sizes[layer]
        deep = padded(n)
        at -= wide + eights(m) * deep
        bias = sums[at : at + wide]
        for r in range(count):
            line = space[here + r * wide : here + (r + 1) * wide]
            for k in range(wide):
                bias[k] += line[k]
        base -= height * deep * (2 if layer > 1 else 1)
        h = base + row * deep
        product(
            space, here, 1, wide, kept, h, deep,
            sums, at + wide, deep, sums, at + wide, deep, eights(m), deep, count,
        )  # fmt: skip
        to -= m * deep
        to -= wide * (n + 1)
        if layer > 1 or inputs:
            product(
                space, here, wide, 1, table, to + wide * (n + 1), deep,
                zeros, 0, 0, space, other, deep, eights(count), deep, m,
            )  # fmt: skip
            here, other = other, here
        if layer > 1:
            slope = kept[h + height * deep : h + (height + count) * deep]
            part = space[here : here + count * deep]
            for k in range(part.size):
                part[k] *= slope[k]
        wide = deep
    return here


@kernel
def unpad(sizes: np.ndarray, sums: np.ndarray, gradient: np.ndarray) -> None:
    """The gradient in the order of the parameters from the sums of :func:`return_block`."""
    at, to = 0, 0
    for layer in range(1, sizes.size):
        n, m = sizes[layer - 1], sizes[layer]
        wide, deep = padded(m), padded(n)
        for i in range(m):
            for k in range(n):
                gradient[to + i * n + k] = sums[at + wide + i * deep + k]
        for i in range(m):
            gradient[to + m * n + i] = sums[at + i]
        at += wide + eights(m) * deep
        to += m * (n + 1)


@kernel
def take_rows(source: np.ndarray, width: int, count: int, out: np.ndarray, wide: int) -> None:
    """Rows of ``width`` numbers, padded with zeros to ``wide``."""
    for r in range(count):
        for k in range(width):
            out[r * wide + k] = source[r * width + k]
        for k in range(width, wide):
            out[r * wide + k] = 0.0


# -- whole arrays --------------------------------------------------------------------------------


@kernel
def forward(
    sizes: np.ndarray,
    table: np.ndarray,
    x: np.ndarray,
    rows: int,
    height: int,
    kept: np.ndarray,
    y: np.ndarray,
) -> None:
    """y (rows n_L,) of x (rows n_0,); ``height`` is eights(rows) to keep all of them, or BLOCK."""
    inputs, outputs = sizes[0], sizes[-1]
    deep, wide = padded(inputs), padded(outputs)
    for first in range(0, rows, BLOCK):
        count = min(BLOCK, rows - first)
        row = first if height >= rows else 0
        take_rows(x[first * inputs :], inputs, count, kept[row * deep :], deep)
        at = run_block(sizes, table, kept, height, row, count)
        for r in range(count):
            for k in range(outputs):
                y[(first + r) * outputs + k] = kept[at + r * wide + k]


@kernel
def backward(
    sizes: np.ndarray,
    table: np.ndarray,
    kept: np.ndarray,
    rows: int,
    g: np.ndarray,
    space: np.ndarray,
    sums: np.ndarray,
    gradient: np.ndarray,
    by_x: np.ndarray,
) -> None:
    """The gradients by the parameters, and by x where ``by_x`` has room for it.

    Parameters
    ----------
    kept : of :func:`forward`, which kept all
    g : (rows n_L,) dL/dy
    space, sums : zeros, of :func:`space_size` and :func:`sums_size`
    gradient : as the parameters
    by_x : (rows n_0,), or empty
    """
    inputs, wanted = sizes[0], by_x.size > 0
    most, outputs = space.size // (2 * BLOCK + 1), sizes[-1]
    wide = padded(outputs)
    for first in range(0, rows, BLOCK):
        count = min(BLOCK, rows - first)
        take_rows(g[first * outputs :], outputs, count, space, wide)
        at = return_block(
            sizes, table, kept, eights(rows), first, count,
            space, space[2 * BLOCK * most :], sums, wanted,
        )  # fmt: skip
        if wanted:
            for r in range(count):
                for k in range(inputs):
                    by_x[(first + r) * inputs + k] = space[at + r * padded(inputs) + k]
    unpad(sizes, sums, gradient)


class Passes:
    """Rows that go through a network, and back for the gradient.

    Parameters
    ----------
    sizes : (L + 1,) of the network
    """

    def __init__(self, sizes: np.ndarray) -> None:
        self.sizes = sizes
        self._table = np.empty(table_size(sizes), np.float32)
        self._space = np.zeros(space_size(sizes), np.float32)
        self._sums = np.zeros(sums_size(sizes), np.float32)
        self._kept = np.empty(0, np.float32)
        self.parameters = sum(m * (n + 1) for n, m in pairwise(sizes.tolist()))

    def forward(self, parameters: np.ndarray, x: np.ndarray, *, keep: bool) -> np.ndarray:
        """The outputs, (B, n_L), of (B, n_0) float32; :meth:`backward` needs what was kept."""
        rows = len(x)
        y = np.empty((rows, int(self.sizes[-1])), np.float32)
        size = kept_size(self.sizes, rows if keep else BLOCK)
        # Memory that is new costs more time than what is put there.
        if size != len(self._kept):
            self._kept = np.empty(size, np.float32)
        fill_table(self.sizes, parameters, self._table)
        height = (rows + 7) // 8 * 8 if keep else BLOCK
        forward(
            self.sizes, self._table, x.reshape(-1), rows, height, self._kept, y.reshape(-1)
        )  # fmt: skip
        return y

    def backward(self, g: np.ndarray, gradient: np.ndarray, *, inputs: bool = False) -> np.ndarray:
        """Put the gradient by the parameters where it belongs; returns that by the inputs.

        Parameters
        ----------
        g : (B, n_L) float32, by the outputs of the last :meth:`forward`
        gradient : flat
        inputs : whether that by the inputs is wanted, (B, n_0); it is empty if not
        """
        self._sums[:] = 0.0
        by_x = np.empty((len(g) if inputs else 0, int(self.sizes[0])), np.float32)
        backward(
            self.sizes, self._table, self._kept, len(g), g.reshape(-1), self._space, self._sums,
            gradient, by_x.reshape(-1),
        )  # fmt: skip
        return by_x
