r"""Multi-spin coding: 64 sites decided at once by bit planes of shared thresholds.

A site flips (or is set) where a uniform number V is below a threshold T that
depends on its class only. V is compared bit by bit, 64 sites a word, least
significant plane first: with v and t a plane of V and of T,

.. math:: (V < T) \leftarrow (\bar v \wedge t) \vee (\overline{v \oplus t} \wedge (V < T)).

:data:`PLANES` planes leave a site undecided with probability :math:`2^{-12}`; it
draws 64 more bits of its own, so every probability holds to 76 bits. A plane of T
is a Boolean function of the class, written as the exclusive or of products
(algebraic normal form): one instruction a term [multi-spin coding: Zorn, Herrmann,
Rebbi, Comput. Phys. Commun. 23, 337 (1981); planes and residual: docs/performance.md].

The planes are words of sfc64 streams [C. Doty-Humphrey, PractRand], seeded by
Threefry for each word, pass and stretch of sites that share a stream. Every
stretch starts anew, so the noise at a site does not depend on ranks or threads.

Two layouts share all of this: :mod:`~mpiflow.solvers.spins.multispin` (bits are neighbouring
sites of one colour of a large lattice) and :mod:`~mpiflow.solvers.spins.sliced` (bits are 64
lattices or patches, one word for each site).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from mpiflow.core.device import cpu_has, inlined, intrinsic, rule
from mpiflow.core.noise import Word, threefry
from mpiflow.core.packed_words import popcount

#: Bit planes before the residual (measured: the optimum is flat from 11 to 13).
PLANES = 12
#: Words handled together; their working space stays in the first-level cache.
CHUNK = 128
#: Of GPUs: undecided sites that the queue of a block has room for; others are decided at once.
#: About 16 come in of 128 threads with eight words each.
QUEUE = 128

# The kind of draw, in the top bits of the step word of the noise (the plain kernel's is 0):
# the first two and the third seed word of a stream, and the bits beyond the planes.
SEED_AB, SEED_C, RESIDUAL = (np.uint64(kind << 60) for kind in (1, 2, 3))
SLICED_AB, SLICED_C, SLICED_RESIDUAL = (np.uint64(kind << 60) for kind in (4, 5, 6))

#: A word of no site.
NO_SITES = np.uint64(0)

Masks = tuple[tuple[Word, ...], ...]


@dataclass(frozen=True)
class Thresholds:
    """Integer thresholds of one pass, computed on the host and shared by all devices.

    Spins flip where they are below their threshold, or are set: up below it, else down.
    For flips, the class of a site is the number c = 0..4 of its neighbours that are opposite
    to it, and its spin: entry c for a down spin, 5 + c for an up spin. Where spins are set
    their own value does not matter: c is the number of neighbours that are up, and the
    second five are the first.

    Attributes
    ----------
    setting : a word of ones where spins are set, of zeros where they flip
    masks : for each plane, least significant first, 0 or all ones for the ten terms of
        the normal form, uint64
    residual : the next 64 bits of each class's threshold, (10,) uint64
    """

    masks: Masks
    residual: np.ndarray
    setting: Word = NO_SITES

    @property
    def shortest(self) -> Masks:
        """The masks without the five terms of the spin where all are zeros: where spins are set, or
        flip without a field.

        Kernels of the CPU are compiled for either number of terms.
        """
        terms = 10 if any(any(plane[5:]) for plane in self.masks) else 5
        return tuple(plane[:terms] for plane in self.masks)

    @property
    def halves(self) -> tuple[tuple[Any, ...], ...]:
        """:attr:`shortest` of 32 bits each, for the kernels of GPUs."""
        return tuple(tuple(np.uint32(mask & 2**32 - 1) for mask in p) for p in self.shortest)

    @classmethod
    def of(cls, probabilities: Sequence[float], planes: int = PLANES) -> Thresholds:
        """Thresholds of the flip probabilities of the ten classes."""
        one = 1 << (planes + 64)
        values = [min(int(Fraction(p) * one), one - 1) for p in probabilities]
        masks = tuple(_terms([(v >> (64 + i)) & 1 for v in values]) for i in range(planes))
        residual = np.array([v & (2**64 - 1) for v in values], np.uint64)
        return cls(masks, residual)

    @classmethod
    def to_set(cls, up: Sequence[float], planes: int = PLANES) -> Thresholds:
        """Thresholds that set spins, of the chances to be up with 0..4 neighbours up."""
        return replace(cls.of([*up, *up], planes), setting=~NO_SITES)


def _terms(plane: Sequence[int]) -> tuple[Word, ...]:
    """Coefficients of the normal form of one plane of the thresholds."""

    def of_count(f: Sequence[int]) -> list[int]:
        # f = c0 ^ c1 s0 ^ c2 s1 ^ c3 s0 s1 ^ c4 s2 for the count s0 + 2 s1 + 4 s2 = 0..4.
        return [f[0], f[0] ^ f[1], f[0] ^ f[2], f[0] ^ f[1] ^ f[2] ^ f[3], f[0] ^ f[4]]

    change = [down ^ up for down, up in zip(plane[:5], plane[5:], strict=True)]
    return tuple(np.uint64(-c % 2**64) for c in of_count(plane[:5]) + of_count(change))


# -- rules: the same on the CPU and on CUDA ----------------------------------------------------


@rule
def count_neighbours(n0: Word, n1: Word, n2: Word, n3: Word) -> tuple[Word, Word, Word]:
    """Binary digits of the number of set bits among four words, 0 to 4 at each bit."""
    x, y, z, q = n0 ^ n1, n0 & n1, n2 ^ n3, n2 & n3
    s2 = y & q
    return x ^ z, (y ^ q ^ (x & z)) & ~s2, s2


@rule
def compared(spins: Word, setting: Word) -> Word:
    """The spins that neighbours and thresholds are compared with: none where spins are set."""
    return spins & ~setting


@rule
def _sfc64(a: Word, b: Word, c: Word, count: Word) -> tuple[Word, Word, Word, Word]:
    """One step of sfc64 [Doty-Humphrey]: (word, a, b, c); the counter is the caller's."""
    word = a + b + count
    a = b ^ (b >> np.uint64(11))
    b = c + (c << np.uint64(3))
    c = ((c << np.uint64(24)) | (c >> np.uint64(40))) + word
    return word, a, b, c


@rule
def skip(a: Word, b: Word, c: Word, count: Word) -> tuple[Word, Word, Word]:
    """The state of a stream after a word that nobody needs."""
    _, a, b, c = _sfc64(a, b, c, count)
    return a, b, c


_NO_TERMS = (np.uint64(0),) * 5


@rule
def _both(mask: Word) -> Word:
    """A mask of the lower half of a word, in both halves."""
    half = np.uint64(np.uint32(mask))
    return half | (half << np.uint64(32))


@rule
def _plane(
    a: Word,
    b: Word,
    c: Word,
    count: Word,
    m: tuple[Word, ...],
    s0: Word,
    s1: Word,
    s01: Word,
    s2: Word,
    spin: Word,
    below: Word,
    equal: Word,
) -> tuple[Word, Word, Word, Word, Word]:
    """One plane of the comparison: the stream's next state, V < T so far, V = T so far.

    Of five or ten masks the lower halves are looked at: GPUs have registers of 32 bits.
    """
    v, a, b, c = _sfc64(a, b, c, count)
    m = m + _NO_TERMS  # of five: the compiler leaves out what is constant
    t = _both(m[0]) ^ (_both(m[1]) & s0) ^ (_both(m[2]) & s1)
    t ^= (_both(m[3]) & s01) ^ (_both(m[4]) & s2)
    of_spin = _both(m[5]) ^ (_both(m[6]) & s0) ^ (_both(m[7]) & s1)
    t ^= spin & (of_spin ^ (_both(m[8]) & s01) ^ (_both(m[9]) & s2))
    differ = v ^ t
    return a, b, c, (below & ~differ) | (t & differ), equal & ~differ


@inlined
def compare(
    a: Word,
    b: Word,
    c: Word,
    count: Word,
    masks: Masks,
    s0: Word,
    s1: Word,
    s2: Word,
    spin: Word,
) -> tuple[Word, Word, Word, Word, Word]:
    """Draw a number for each of 64 sites: stream's next state, below threshold, undecided.

    Written without a loop over the planes so that the compiler vectorises over words.
    """
    s01 = s0 & s1
    lt, eq = np.uint64(0), ~np.uint64(0)
    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64(0), masks[0], s0, s1, s01, s2, spin, lt, eq)
    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64(1), masks[1], s0, s1, s01, s2, spin, lt, eq)
    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64(2), masks[2], s0, s1, s01, s2, spin, lt, eq)
    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64(3), masks[3], s0, s1, s01, s2, spin, lt, eq)
    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64(4), masks[4], s0, s1, s01, s2, spin, lt, eq)
    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64(5), masks[5], s0, s1, s01, s2, spin, lt, eq)
    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64(6), masks[6], s0, s1, s01, s2, spin, lt, eq)
    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64(7), masks[7], s0, s1, s01, s2, spin, lt, eq)
    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64(8), masks[8], s0, s1, s01, s2, spin, lt, eq)
    a, b, c, lt, eq = _plane(a, b, c, count + np.uint64(9), masks[9], s0, s1, s01, s2, spin, lt, eq)
    a, b, c, lt, eq = _plane(
        a, b, c, count + np.uint64(10), masks[10], s0, s1, s01, s2, spin, lt, eq
    )
    a, b, c, lt, eq = _plane(
        a, b, c, count + np.uint64(11), masks[11], s0, s1, s01, s2, spin, lt, eq
    )
    return a, b, c, lt, eq


@rule
def class_at(bit: Word, s0: Word, s1: Word, s2: Word, spin: Word) -> Word:
    """The class, 0 to 9, of the site at a bit: :class:`Thresholds`."""
    one = np.uint64(1)
    kind = ((s0 >> bit) & one) + np.uint64(2) * ((s1 >> bit) & one)
    return kind + np.uint64(4) * ((s2 >> bit) & one) + np.uint64(5) * ((spin >> bit) & one)


@inlined
def settle(  # type: ignore[no-untyped-def]
    undecided, key0, key1, key_step, step, site, site_step, s0, s1, s2, spin, residual
):
    """Of the sites that the planes left undecided, a bit for each that is below its threshold.

    The one at bit i has the noise of (key1 + i key_step, site + i site_step); ``step`` carries the
    kind of draw. ``residual`` is that of :class:`Thresholds`, an array or a tuple.
    """
    below, one = np.uint64(0), np.uint64(1)
    while undecided:
        rest = np.uint64(undecided & (undecided - one))  # without the lowest bit that is set
        bit = np.uint64(popcount((undecided ^ rest) - one))
        undecided = rest
        kind = class_at(bit, s0, s1, s2, spin)
        word = threefry(key0, key1 + bit * key_step, step, site + bit * site_step)[0]
        below |= np.uint64(word < residual[np.int64(kind)]) << bit
    return below


# -- CPU ----------------------------------------------------------------------------------------

# Rows of the working space of one chunk of words. All in one array: with several, the
# compiler's checks for overlap are too many for it to vectorise.
S0, S1, S2, SPIN, STATE_A, STATE_B, STATE_C, BELOW, EQUAL = (np.uint64(CHUNK * i) for i in range(9))
SPACE = 9 * CHUNK


#: Words that are compared together: two vectors of AVX-512. What bounds the speed is not how many
#: instructions there are but how long each waits for the one before.
WIDE = 16 if cpu_has("avx512f") else 8


class Vectors:
    """Vectors of a number of words, in the place that calls an intrinsic.

    Rows of the working space are named by where they begin in it.
    """

    def __init__(self, ir: Any, builder: Any, words: int) -> None:
        self.ir, self.builder, self.words = ir, builder, words
        self.kind = ir.VectorType(ir.IntType(64), words)

    def every(self, value: Any) -> Any:
        """A word, a number or a value of the place that calls, in all of a vector."""
        if isinstance(value, int):
            return self.ir.Constant(self.kind, [value] * self.words)
        i32 = self.ir.IntType(32)
        first = self.ir.Constant(self.ir.VectorType(i32, self.words), [0] * self.words)
        nothing = self.ir.Constant(self.kind, self.ir.Undefined)
        one = self.builder.insert_element(nothing, value, i32(0))
        return self.builder.shuffle_vector(one, one, first)

    def _pointer(self, array: Any, at: Any, row: Any) -> Any:
        if row is not None:
            at = self.builder.add(at, self.ir.IntType(64)(int(row)))
        return self.builder.bitcast(self.builder.gep(array, [at]), self.kind.as_pointer())

    def load(self, array: Any, at: Any, row: Any = None) -> Any:
        return self.builder.load(self._pointer(array, at, row), align=8)

    def store(self, value: Any, array: Any, at: Any, row: Any = None) -> None:
        self.builder.store(value, self._pointer(array, at, row), align=8)

    def popcount(self, value: Any) -> Any:
        """Number of bits that are set, of each word."""
        kind = self.ir.FunctionType(self.kind, [self.kind])
        count = self.builder.module.declare_intrinsic(f"llvm.ctpop.v{self.words}i64", (), kind)
        return self.builder.call(count, [value])

    def compare(self, state: Any, count: Any, masks: Any, classes: Any) -> tuple[Any, Any, Any]:
        """:func:`compare` of vectors: the streams' next state, below threshold, undecided.

        ``state`` is (a, b, c), ``classes`` (s0, s1, s2, spin).
        """
        builder, every = self.builder, self.every
        (a, b, c), (s0, s1, s2, spin) = state, classes
        s01 = builder.and_(s0, s1)
        shift = [every(n) for n in (11, 3, 24, 40)]
        ones = every(2**64 - 1)
        below, equal = every(0), ones
        for i, m in enumerate(masks):
            number = builder.add(count, self.ir.IntType(64)(i))
            v = builder.add(builder.add(a, b), every(number))
            a = builder.xor(b, builder.lshr(b, shift[0]))
            b = builder.add(c, builder.shl(c, shift[1]))
            c = builder.add(builder.or_(builder.shl(c, shift[2]), builder.lshr(c, shift[3])), v)
            terms = []
            for first in range(0, len(m), 5):
                part = every(m[first])
                for digit, mask in zip((s0, s1, s01, s2), m[first + 1 : first + 5], strict=True):
                    part = builder.xor(part, builder.and_(every(mask), digit))
                terms.append(part)
            t = terms[0] if len(m) == 5 else builder.xor(terms[0], builder.and_(spin, terms[1]))
            differ = builder.xor(v, t)
            same = builder.xor(differ, ones)
            below = builder.or_(builder.and_(below, same), builder.and_(t, differ))
            equal = builder.and_(equal, same)
        return (a, b, c), below, equal


@intrinsic
def _compare_wide(ir, builder, space, at, count, masks):  # type: ignore[no-untyped-def]
    """:func:`compare` of :data:`WIDE` words of the working space from ``at`` on."""
    vectors = Vectors(ir, builder, WIDE)
    state = [vectors.load(space, at, row) for row in (STATE_A, STATE_B, STATE_C)]
    classes = [vectors.load(space, at, row) for row in (S0, S1, S2, SPIN)]
    state, below, equal = vectors.compare(state, count, masks, classes)
    rows = STATE_A, STATE_B, STATE_C, BELOW, EQUAL
    for row, value in zip(rows, (*state, below, equal), strict=True):
        vectors.store(value, space, at, row)


@inlined
def compare_words(space, n, count, masks):  # type: ignore[no-untyped-def]
    """Compare n words of the working space with their thresholds, and some beyond: to fill the
    last vectors costs less than a loop over what is left of them."""
    for i in range(0, n, WIDE):
        _compare_wide(space, i, count, masks)
