"""Rates of a Kac model as a table of integers, one for all solvers: none evaluates ``exp``.

Where many sites are looked up one after the other, :func:`refresh` does 16 at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpiflow.device import intrinsic
from mpiflow.systems.kac import Kac, Scale

#: Rates and probabilities are in units of 2^-32, and below 1.
BITS = 32
#: Sites whose rates :func:`refresh` finds together.
LANES = 16


def flip_table(system: Kac, scale: Scale) -> tuple[np.ndarray, int, int]:
    r"""Rates of flipping against :math:`v = s U`, for :func:`mpiflow.systems.kac.lookup`.

    Entry i holds :math:`2^{32} / (1 + e^{2 \beta u_i})`, rounded and below :math:`2^{32}`, at the
    fields :math:`u_i` of :meth:`~mpiflow.systems.kac.Kac.grid`.

    Returns
    -------
    table : (4097,) int64, not increasing
    shift, offset : int
    """
    u, shift, offset = system.grid(scale)
    return to_integers(system.rates(u)), shift, offset


def to_integers(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities, 0 to 1, in units of 2^-32: int64, at most 2^32 - 1."""
    return np.minimum(np.rint(probabilities * 2.0**BITS), 2.0**BITS - 1).astype(np.int64)


def uniform_field(system: Kac, scale: Scale) -> np.ndarray:
    """H of the uniform external field, (1, 1) int64, in units of ``1 / scale.unit``."""
    return np.array([[round(system.field * scale.unit)]], np.int64)


def in_32_bits(
    table: np.ndarray, shift: int, offset: int, scale: Scale
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The table, each entry with its step to the next, and the numbers, as refresh takes them."""
    packed = np.append(np.diff(table), 0) << BITS | table
    highest = (len(table) - 1 << shift) - 1 - offset
    halves = max(0, 16 - shift), max(0, shift - 16)
    return packed, (scale.multiplier, scale.shift, -offset, highest, shift, *halves)


@intrinsic
def refresh(
    ir: Any,
    builder: Any,
    spins: Any,
    sums: Any,
    external: Any,
    rates: Any,
    at: Any,
    stamp: Any,
    first: Any,
    count: Any,
    sign: Any,
    table: Any,
    multiplier: Any,
    down: Any,
    lowest: Any,
    highest: Any,
    shift: Any,
    left: Any,
    right: Any,
    gained: Any,
) -> None:
    """Add ``sign`` times the stamp from ``first`` on to the sums of ``count`` <= 16 sites ``at``.

    Their rates are those of :func:`mpiflow.systems.kac.lookup`, to the bit, in 32-bit arithmetic
    and with both entries in one word; what they gain is added to ``gained``. Written out
    because LLVM cannot know that a loop that stores does not change the table it reads.
    """
    i8, i32, i64 = (ir.IntType(bits) for bits in (8, 32, 64))
    few, words, longs = (ir.VectorType(kind, LANES) for kind in (i8, i32, i64))

    def call(name: str, result: Any, *arguments: Any) -> Any:
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(result, [a.type for a in arguments])
            function = ir.Function(builder.module, kind, name)
        return builder.call(function, arguments)

    def every(value: Any, kind: Any) -> Any:
        empty = ir.Constant(kind, ir.Undefined)
        one = builder.insert_element(empty, value, i32(0))
        return builder.shuffle_vector(one, one, ir.Constant(words, [0] * LANES))

    def word(value: Any) -> Any:
        return every(builder.trunc(value, i32), words)

    def constant(number: int, kind: Any = words) -> Any:
        return ir.Constant(kind, [number] * LANES)

    inside = builder.icmp_unsigned("<", ir.Constant(words, list(range(LANES))), word(count))

    def load(array: Any, place: Any, kind: Any = words, bits: int = 32) -> Any:
        pointer = builder.bitcast(builder.gep(array, [place]), kind.as_pointer())
        name = f"llvm.masked.load.v{LANES}i{bits}.p0"
        return call(name, kind, pointer, i32(bits // 8), inside, constant(0, kind))

    def store(value: Any, array: Any, place: Any) -> None:
        pointer = builder.bitcast(builder.gep(array, [place]), words.as_pointer())
        name = f"llvm.masked.store.v{LANES}i32.p0"
        call(name, ir.VoidType(), value, pointer, i32(4), inside)

    total = builder.add(load(sums, at), builder.mul(word(sign), load(stamp, first)))
    store(total, sums, at)
    u = builder.ashr(builder.mul(word(multiplier), total), word(down))
    u = builder.add(u, load(external, at))
    up = builder.icmp_signed(">", load(spins, at, few, 8), constant(0, few))
    v = builder.select(up, u, builder.sub(constant(0), u))
    # Clipped before the offset is added: nothing exceeds 32 bits.
    v = builder.select(builder.icmp_signed(">", v, word(lowest)), v, word(lowest))
    v = builder.select(builder.icmp_signed("<", v, word(highest)), v, word(highest))
    place = builder.sub(v, word(lowest))
    index = builder.lshr(place, word(shift))
    part = builder.sub(place, builder.shl(index, word(shift)))
    part = builder.lshr(builder.shl(part, word(left)), word(right))
    offset = builder.shl(builder.zext(index, longs), constant(3, longs))
    address = builder.add(every(builder.ptrtoint(table, i64), longs), offset)
    pointers = builder.inttoptr(address, ir.VectorType(table.type, LANES))
    gather = f"llvm.masked.gather.v{LANES}i64.v{LANES}p0"
    entry = call(gather, longs, pointers, i32(8), inside, constant(0, longs))
    slope = builder.trunc(builder.lshr(entry, constant(32, longs)), words)
    # (slope * part) >> 16 in two halves, of which none exceeds 32 bits.
    high = builder.mul(builder.ashr(slope, constant(16)), part)
    low = builder.mul(builder.and_(slope, constant(0xFFFF)), part)
    rate = builder.add(builder.trunc(entry, words), high)
    rate = builder.add(rate, builder.lshr(low, constant(16)))
    gain = builder.sub(builder.zext(rate, longs), builder.zext(load(rates, at), longs))
    gain = builder.select(inside, gain, constant(0, longs))
    store(rate, rates, at)
    gain = call(f"llvm.vector.reduce.add.v{LANES}i64", i64, gain)
    builder.store(builder.add(builder.load(gained), gain), gained)
