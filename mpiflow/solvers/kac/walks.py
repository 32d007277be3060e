r"""Weighted sums along an axis: each row from the one before, many lines of the axis side by side.

A staircase of weights w gains and loses one number at each step of its own:

.. math:: n_{y+1} - n_y = \sum_k (w_k - w_{k+1}) (b_{y+1+k} - b_{y-k}).

Numbers lie in strips: a row of as many as an instruction takes, 64 bytes, for each place along the
axis, so that what a kernel reaches stays in the nearest cache, and no load crosses a line of it.
Differences are added up in the strip's own integers as long as they fit, then in wider ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mpiflow.core.device import intrinsic
from mpiflow.systems.kac import KacKernel

#: Numbers of a row of a strip of bytes, and of one of 16 bits; rows that are done together.
BYTES, WORDS, TOGETHER = 64, 32, 4


class Stairs(NamedTuple):
    """The steps of a staircase of weights in runs of one height.

    Attributes
    ----------
    places : (K,) int64, k of steps w_k > w_{k+1}, in numbers of a strip
    ends : (R + 1,) int64, where runs begin and end among the places
    heights : (R,) int64
    """

    places: np.ndarray
    ends: np.ndarray
    heights: np.ndarray


def stairs_of(kernel: KacKernel, lanes: int, most: int) -> Stairs:
    """The steps of a kernel, in runs of no more than ``most``."""
    drops = kernel.drops
    places: list[int] = []
    ends, heights = [0], []
    for height in np.unique(drops[drops > 0]):
        same = [int(k) for k in np.flatnonzero(drops == height)]
        for i in range(0, len(same), most):
            places += same[i : i + most]
            ends.append(len(places))
            heights.append(int(height))
    return Stairs(
        np.array(places, np.int64) * lanes, np.array(ends, np.int64), np.array(heights, np.int64)
    )


def aligned(shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """Zeros that begin at a line of the cache."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(kind).reshape(shape)


class _Rows:
    """Instructions for rows of a strip."""

    def __init__(self, ir: Any, builder: Any, bits: int, lanes: int) -> None:
        self.ir, self.builder, self.lanes = ir, builder, lanes
        self.i32, self.i64 = ir.IntType(32), ir.IntType(64)
        self.size = bits // 8
        self.kind = ir.VectorType(ir.IntType(bits), lanes)

    def at(self, array: Any, place: Any, kind: Any = None) -> Any:
        pointer = self.builder.gep(array, [place])
        return self.builder.bitcast(pointer, (kind or self.kind).as_pointer())

    def load(self, array: Any, place: Any, kind: Any = None) -> Any:
        pointer = self.at(array, place, kind)
        return self.builder.load(pointer, align=self.size)

    def store(self, value: Any, array: Any, place: Any) -> None:
        self.builder.store(value, self.at(array, place, value.type), align=self.size)

    def loop(self, first: Any, last: Any, values: list[Any], body: Callable[..., Any]) -> list[Any]:
        """``values = body(i, values)`` for i from ``first`` to below ``last``: there is one."""
        builder = self.builder
        before = builder.block
        block = builder.append_basic_block("rows")
        after = builder.append_basic_block("done")
        builder.branch(block)
        builder.position_at_end(block)
        i = builder.phi(self.i64)
        i.add_incoming(first, before)
        phis = [builder.phi(value.type) for value in values]
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, before)
        new = body(i, phis)
        following = builder.add(i, self.i64(1))
        end = builder.block
        i.add_incoming(following, end)
        for phi, value in zip(phis, new, strict=True):
            phi.add_incoming(value, end)
        builder.cbranch(builder.icmp_signed("<", following, last), block, after)
        builder.position_at_end(after)
        return list(new)


def _walk(  # type: ignore[no-untyped-def]
    ir, builder, bits, lanes, strip, at, places, ends, heights, runs, total, out, to, apart
):
    rows = _Rows(ir, builder, bits, lanes)
    i64 = rows.i64
    wide = ir.VectorType(ir.IntType(2 * bits), lanes)
    zero, none = ir.Constant(rows.kind, None), ir.Constant(wide, None)

    def number(array: Any, i: Any) -> Any:
        return builder.load(builder.gep(array, [i]))

    def step(i: Any, sums: list[Any]) -> list[Any]:
        k = number(places, i)
        high = builder.add(builder.add(at, i64(lanes)), k)
        low = builder.sub(at, k)
        new = []
        for j, value in enumerate(sums):
            gained = rows.load(strip, builder.add(high, i64(lanes * j)))
            lost = rows.load(strip, builder.add(low, i64(lanes * j)))
            new.append(builder.sub(builder.add(value, gained), lost))
        return new

    def run(r: Any, sums: list[Any]) -> list[Any]:
        first, last = number(ends, r), number(ends, builder.add(r, i64(1)))
        gains = rows.loop(first, last, [zero] * TOGETHER, step)
        if heights is None:
            wider = [builder.sext(gain, wide) for gain in gains]
            return [builder.add(value, gain) for value, gain in zip(sums, wider, strict=True)]
        height = builder.trunc(number(heights, r), ir.IntType(2 * bits))
        one = builder.insert_element(ir.Constant(wide, ir.Undefined), height, rows.i32(0))
        places_of_one = ir.Constant(ir.VectorType(rows.i32, lanes), [0] * lanes)
        every = builder.shuffle_vector(one, one, places_of_one)
        return [
            builder.add(value, builder.mul(builder.sext(gain, wide), every))
            for value, gain in zip(sums, gains, strict=True)
        ]

    changes = rows.loop(i64(0), runs, [none] * TOGETHER, run)
    value = rows.load(total, i64(0), wide)
    for j, change in enumerate(changes):
        value = builder.add(value, change)
        rows.store(value, out, builder.add(to, builder.mul(apart, i64(j))))
    rows.store(value, total, i64(0))


@intrinsic
def walk_bytes(  # type: ignore[no-untyped-def]
    ir, builder, strip, at, places, ends, heights, runs, total, out, to, apart
):
    """Four more rows of sums of int8, as int16, to ``out`` from ``to`` on, ``apart`` numbers apart.

    ``total`` is the row before them, which row ``at`` of the strip belongs to, and then the last.
    """
    given = strip, at, places, ends, heights, runs, total, out, to, apart
    _walk(ir, builder, 8, BYTES, *given)


@intrinsic
def walk_words(  # type: ignore[no-untyped-def]
    ir, builder, strip, at, places, ends, heights, runs, total, out, to, apart
):
    """The same of int16, as int32."""
    given = strip, at, places, ends, heights, runs, total, out, to, apart
    _walk(ir, builder, 16, WORDS, *given)


@intrinsic
def walk_plain(ir, builder, strip, at, places, ends, runs, total, out, to, apart):  # type: ignore[no-untyped-def]
    """The same where all steps have the height 1."""
    _walk(ir, builder, 16, WORDS, strip, at, places, ends, None, runs, total, out, to, apart)


def _transpose(ir, builder, bits, side, source, at, apart, out, to, out_apart):  # type: ignore[no-untyped-def]
    """A square of numbers, by interleaving its halves as often as it takes."""
    rows = _Rows(ir, builder, bits, side)
    i64, half = rows.i64, side // 2
    lines = [rows.load(source, builder.add(at, builder.mul(apart, i64(i)))) for i in range(side)]
    masks = []
    for first in (0, half):
        mask = [n for i in range(first, first + half) for n in (i, side + i)]
        masks.append(ir.Constant(ir.VectorType(rows.i32, side), mask))
    for _ in range(side.bit_length() - 1):
        pairs = zip(lines[:half], lines[half:], strict=True)
        lines = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
    for i, line in enumerate(lines):
        rows.store(line, out, builder.add(to, builder.mul(out_apart, i64(i))))


@intrinsic
def transpose_words(ir, builder, source, at, apart, out, to, out_apart):  # type: ignore[no-untyped-def]
    """32 x 32 int16, whose rows are so far apart."""
    _transpose(ir, builder, 16, WORDS, source, at, apart, out, to, out_apart)


@intrinsic
def transpose_sums(ir, builder, source, at, apart, out, to, out_apart):  # type: ignore[no-untyped-def]
    """16 x 16 int32, whose rows are so far apart."""
    _transpose(ir, builder, 32, WORDS // 2, source, at, apart, out, to, out_apart)
