"""The few LLVM instructions that tiles of dense layers are spelled out with.

Vectors have :data:`LANES` floats, whatever the width of the CPU's: LLVM splits them. A sum of
products is a chain of fused multiply-adds in an order that the tile fixes, so that its bits depend
neither on the CPU nor on the tile's shape. A CPU without fused multiply-adds computes them in the
C library: slow, but the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

#: Floats of a vector.
LANES = 16


class Code:
    """Writes them one after the other, in :func:`mpiflow.core.device.intrinsic`."""

    def __init__(self, ir: Any, builder: Any) -> None:
        self.ir, self.builder = ir, builder
        self.i32, self.i64 = ir.IntType(32), ir.IntType(64)
        self.vector = ir.VectorType(ir.FloatType(), LANES)
        self.zeros = ir.Constant(self.vector, [0.0] * LANES)

    def at(self, pointer: Any, *offsets: Any) -> Any:
        """The address some floats further on."""
        for offset in offsets:
            number = self.i64(offset) if isinstance(offset, int) else offset
            pointer = self.builder.gep(pointer, [number])
        return pointer

    def times(self, value: Any, number: int) -> Any:
        return self.builder.mul(value, self.i64(number))

    def plus(self, value: Any, number: int) -> Any:
        return self.builder.add(value, self.i64(number))

    def load(self, pointer: Any) -> Any:
        return self.builder.load(self.builder.bitcast(pointer, self.vector.as_pointer()), align=4)

    def store(self, vector: Any, pointer: Any) -> None:
        to = self.builder.bitcast(pointer, self.vector.as_pointer())
        self.builder.store(vector, to, align=4)

    def shuffle(self, vector: Any, lanes: Sequence[int]) -> Any:
        mask = self.ir.Constant(self.ir.VectorType(self.i32, len(lanes)), list(lanes))
        return self.builder.shuffle_vector(vector, vector, mask)

    def broadcast(self, pointer: Any) -> Any:
        """One float in all lanes."""
        empty, first = self.ir.Constant(self.vector, self.ir.Undefined), self.i32(0)
        one = self.builder.insert_element(empty, self.builder.load(pointer, align=4), first)
        return self.shuffle(one, [0] * LANES)

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = self.builder.module.globals.get(name)
        if function is None:
            kind = self.ir.FunctionType(result, [a.type for a in arguments])
            function = self.ir.Function(self.builder.module, kind, name)
        return self.builder.call(function, arguments)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        return self.call(f"llvm.fma.v{LANES}f32", self.vector, a, b, c)

    def fetch(self, pointer: Any) -> None:
        """Ask for a line of memory that will be read soon."""
        byte = self.builder.bitcast(pointer, self.ir.IntType(8).as_pointer())
        read, often, data = self.i32(0), self.i32(3), self.i32(1)
        self.call("llvm.prefetch.p0", self.ir.VoidType(), byte, read, often, data)

    def loop(
        self, count: Any, step: int, sums: list[Any], body: Callable[[Any, list[Any]], list[Any]]
    ) -> list[Any]:
        """Sums after ``sums = body(k, sums)`` for k = 0, step, ... below count, at least once."""
        before = self.builder.block
        inside, after = (self.builder.append_basic_block() for _ in range(2))
        self.builder.branch(inside)
        self.builder.position_at_end(inside)
        k, starts = self.builder.phi(self.i64), [self.builder.phi(s.type) for s in sums]
        ends = body(k, starts)
        following = self.plus(k, step)
        for phi, start, end in zip(
            [k, *starts], [self.i64(0), *sums], [following, *ends], strict=True
        ):
            phi.add_incoming(start, before)
            phi.add_incoming(end, inside)
        self.builder.cbranch(self.builder.icmp_signed("<", following, count), inside, after)
        self.builder.position_at_end(after)
        return ends
