"""Rates of a Kac model as tables of integers, for all solvers: none evaluates ``exp``.

A probability has 96 bits, so that events that are rare are as right as others. Its first 32 decide
nearly always: a random word below :attr:`Table.bounds` is compared with all of them, and with a
second word, only within :data:`ROOM` of the bound, once in some 10^9 words.

Where many sites are looked up one after the other, 16 are done at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiflow.core.device import intrinsic, rule
from mpiflow.core.noise import Word
from mpiflow.systems.kac import Kac, Scale

#: Bounds of rates and probabilities are in units of 2^-32, and below 1.
BITS = 32
#: A word that is less than its bound by more than this is less than the probability.
ROOM = 6
#: Of 32 bits, in a probability.
DIGITS = 3
#: Sites whose rates are found together.
LANES = 16
#: Added to the step of the noise where a second word is drawn.
RESIDUAL = np.uint64(1 << 63)
_MASK = 2**32 - 1


@dataclass(frozen=True, eq=False)
class Table:
    r"""Probabilities at the points of a grid as integers, the same on every device.

    Attributes
    ----------
    digits : (points, 3) int64, the probabilities in units of 2^-96, 32 bits each, the first ones
        first; straight lines between the points: :func:`digits_at`
    bounds : (points,) int64, for :func:`mpiflow.systems.kac.lookup`: in units of 2^-32, above the
        probability by at most 2. 0 where that is 0
    """

    digits: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray) -> Table:
        """The table of probabilities of 0 to 1, of which the largest is taken for 1 - 2^-31."""
        rest = np.minimum(probabilities, 1.0 - 2.0**-31)
        digits = np.empty((len(rest), DIGITS), np.int64)
        for j in range(DIGITS):  # exact: nothing but powers of two
            rest = rest * 2.0**32
            digits[:, j] = rest
            rest = rest - digits[:, j]
        more = (digits[:, 1:] > 0).any(axis=1)
        bounds = np.where(digits.any(axis=1), digits[:, 0] + more + 1, 0)
        return cls(digits, bounds)


def flip_table(system: Kac, scale: Scale, finer: int = 0) -> tuple[Table, int, int]:
    r"""Rates of flipping against :math:`v = s U`.

    Entry i holds :math:`1 / (1 + e^{2 \beta u_i})` at the fields :math:`u_i` of
    :meth:`~mpiflow.systems.kac.Kac.grid`; below 2^-96 it is 0.

    Parameters
    ----------
    finer : all rates times 2 to this power, and below 1

    Returns
    -------
    table : not increasing
    shift, offset : int
    """
    u, shift, offset = system.grid(scale)
    rates = system.rates(u)
    rates = np.where(rates < 2.0**-96, 0.0, rates) * 2.0**finer
    return Table.of(rates), shift, offset


@rule
def _between(low: int, high: int, part: int) -> np.int64:
    """2^16 times a digit between those of two entries, ``part`` / 2^16 of the way, exactly."""
    return (np.int64(low) << 16) + (np.int64(high) - np.int64(low)) * part


@rule
def digits_at(
    digits: np.ndarray, shift: int, offset: int, v: int
) -> tuple[np.int64, np.int64, np.int64]:
    """2^16 times the three digits of a :class:`Table` at an integer."""
    top = (np.int64(digits.shape[0] - 1) << shift) - 1
    place = min(max(np.int64(v) + offset, np.int64(0)), top)
    i = place >> shift
    part = (place - (i << shift)) << 16 >> shift
    return (
        _between(digits[i, 0], digits[i + 1, 0], part),
        _between(digits[i, 1], digits[i + 1, 1], part),
        _between(digits[i, 2], digits[i + 1, 2], part),
    )


@rule
def falls_below(word: int, more: Word, first: np.int64, second: np.int64, third: np.int64) -> bool:
    """Whether the number of 96 bits, ``word`` and 64 ``more``, is less than that of the digits.

    The digits are those of :func:`digits_at`, or sums of such: they may exceed 32 bits and be
    negative.
    """
    low = third - (np.int64(more & np.uint64(_MASK)) << 16)
    middle = second - (np.int64(more >> np.uint64(32)) << 16) + (low >> 32)
    high = first - (np.int64(word) << 16) + (middle >> 32)
    rest = (middle | low) & np.int64(_MASK)
    return bool(high > 0 or (high == 0 and rest != 0))


def uniform_field(system: Kac, scale: Scale) -> np.ndarray:
    """H of the uniform external field, (1, 1) int64, in units of ``1 / scale.unit``."""
    return np.array([[round(system.field * scale.unit)]], np.int64)


def in_32_bits(
    bounds: np.ndarray, shift: int, offset: int, scale: Scale
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Bounds, each with its step to the next, and the numbers of the intrinsics."""
    packed = np.append(np.diff(bounds), 0) << BITS | bounds
    highest = (len(bounds) - 1 << shift) - 1 - offset
    halves = max(0, 16 - shift), max(0, shift - 16)
    return packed, (scale.multiplier, scale.shift, -offset, highest, shift, *halves)


class _Lanes:
    """Instructions for up to 16 neighbouring sites at once, for the two intrinsics below."""

    def __init__(self, ir: Any, builder: Any, count: Any) -> None:
        self.ir, self.builder = ir, builder
        self.i8, self.i32, self.i64 = (ir.IntType(bits) for bits in (8, 32, 64))
        kinds = self.i8, self.i32, self.i64
        self.few, self.words, self.longs = (ir.VectorType(kind, LANES) for kind in kinds)
        places = ir.Constant(self.words, list(range(LANES)))
        self.inside = builder.icmp_unsigned("<", places, self.word(count))

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = self.builder.module.globals.get(name)
        if function is None:
            kind = self.ir.FunctionType(result, [a.type for a in arguments])
            function = self.ir.Function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def every(self, value: Any, kind: Any) -> Any:
        empty = self.ir.Constant(kind, self.ir.Undefined)
        one = self.builder.insert_element(empty, value, self.i32(0))
        return self.builder.shuffle_vector(one, one, self.constant(0))

    def word(self, value: Any) -> Any:
        return self.every(self.builder.trunc(value, self.i32), self.words)

    def constant(self, number: int, kind: Any = None) -> Any:
        return self.ir.Constant(kind or self.words, [number] * LANES)

    def load(self, array: Any, place: Any, kind: Any = None, bits: int = 32) -> Any:
        kind = kind or self.words
        pointer = self.builder.bitcast(self.builder.gep(array, [place]), kind.as_pointer())
        name, rest = f"llvm.masked.load.v{LANES}i{bits}.p0", self.constant(0, kind)
        return self.call(name, kind, pointer, self.i32(bits // 8), self.inside, rest)

    def store(self, value: Any, array: Any, place: Any) -> None:
        pointer = self.builder.bitcast(self.builder.gep(array, [place]), self.words.as_pointer())
        name = f"llvm.masked.store.v{LANES}i32.p0"
        self.call(name, self.ir.VoidType(), value, pointer, self.i32(4), self.inside)

    def rates(
        self, sums: Any, external: Any, spins: Any, at: Any, table: Any, numbers: Sequence[Any]
    ) -> Any:
        """Entries of the table at s U, to the bit those of :func:`mpiflow.systems.kac.lookup`."""
        builder, word, constant = self.builder, self.word, self.constant
        multiplier, down, lowest, highest, shift, left, right = numbers
        u = builder.ashr(builder.mul(word(multiplier), sums), word(down))
        u = builder.add(u, self.load(external, at))
        up = builder.icmp_signed(">", self.load(spins, at, self.few, 8), constant(0, self.few))
        v = builder.select(up, u, builder.sub(constant(0), u))
        # Clipped before the offset is added: nothing exceeds 32 bits.
        v = builder.select(builder.icmp_signed(">", v, word(lowest)), v, word(lowest))
        v = builder.select(builder.icmp_signed("<", v, word(highest)), v, word(highest))
        place = builder.sub(v, word(lowest))
        index = builder.lshr(place, word(shift))
        part = builder.sub(place, builder.shl(index, word(shift)))
        part = builder.lshr(builder.shl(part, word(left)), word(right))
        offset = builder.shl(builder.zext(index, self.longs), constant(3, self.longs))
        start = self.every(builder.ptrtoint(table, self.i64), self.longs)
        pointers = builder.inttoptr(
            builder.add(start, offset), self.ir.VectorType(table.type, LANES)
        )
        gather, none = f"llvm.masked.gather.v{LANES}i64.v{LANES}p0", constant(0, self.longs)
        entry = self.call(gather, self.longs, pointers, self.i32(8), self.inside, none)
        slope = builder.trunc(builder.lshr(entry, constant(32, self.longs)), self.words)
        # (slope * part) >> 16 in two halves, of which none exceeds 32 bits.
        high = builder.mul(builder.ashr(slope, constant(16)), part)
        low = builder.mul(builder.and_(slope, constant(0xFFFF)), part)
        rate = builder.add(builder.trunc(entry, self.words), high)
        return builder.add(rate, builder.lshr(low, constant(16)))


@intrinsic
def look_up(ir, builder, spins, sums, external, at, count, table, numbers, out):  # type: ignore[no-untyped-def]
    """Table entries of ``count`` <= 16 neighbouring sites from ``at`` on, to ``out`` there.

    ``table`` and ``numbers`` are those of :func:`in_32_bits`.
    """
    lanes = _Lanes(ir, builder, count)
    lanes.store(lanes.rates(lanes.load(sums, at), external, spins, at, table, numbers), out, at)


@intrinsic
def refresh(  # type: ignore[no-untyped-def]
    ir, builder, spins, sums, external, rates, at, stamp, first, count, sign, table, numbers, gained
):
    """Add ``sign`` times the stamp from ``first`` on to the sums of ``count`` <= 16 sites ``at``.

    Their rates are brought up to date; what they gain is added to ``gained``. Written out
    because LLVM cannot know that a loop that stores does not change the table it reads.
    """
    lanes = _Lanes(ir, builder, count)
    total = builder.add(
        lanes.load(sums, at), builder.mul(lanes.word(sign), lanes.load(stamp, first))
    )
    lanes.store(total, sums, at)
    rate = lanes.rates(total, external, spins, at, table, numbers)
    before = builder.zext(lanes.load(rates, at), lanes.longs)
    gain = builder.sub(builder.zext(rate, lanes.longs), before)
    gain = builder.select(lanes.inside, gain, lanes.constant(0, lanes.longs))
    lanes.store(rate, rates, at)
    gain = lanes.call(f"llvm.vector.reduce.add.v{LANES}i64", lanes.i64, gain)
    builder.store(builder.add(builder.load(gained), gain), gained)
