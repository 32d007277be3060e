r"""NVIDIA's way with the Ising model, written anew, to run beside ours on a GPU.

Four bits a spin, sixteen spins of a colour in a word of 64: sums of neighbours of sixteen spins are
three additions. Metropolis without a field: with c of four neighbours opposite, a spin flips with
probability 1 for c of 2 or more, :math:`e^{-4/T}` for 1 and :math:`e^{-8/T}` for 0. Sixteen random
bits a spin decide all classes at once: a number below the smaller threshold is below the larger
one, too. [M. Romero, M. Bisson, M. Fatica, M. Bernaschi, Comput. Phys. Commun. 256, 107473 (2020);
16 bits a spin: NVIDIA's cuIsing, 2025.] The numbers are Philox4x32-10's [Salmon et al., SC11].
Probabilities are multiples of 2^-16, where ours hold to 2^-76.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.commands.bench.meter import Meter, Row
from mpiflow.core.device import CudaKernel, Device, cuda, rule, split
from mpiflow.core.mpi import MPI

#: Spins of a colour in a word.
SPINS = 16
#: Rows that a thread does, of one word.
ROWS = 8
#: The lowest bit of each.
ONES = np.uint64(0x1111111111111111)
CRITICAL = 2.269

Words4 = tuple[Any, Any, Any, Any]


@rule
def _round(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> Words4:
    low, high = np.uint64(np.uint32(c0)), np.uint64(np.uint32(c2))
    p, q = low * np.uint64(0xD2511F53), high * np.uint64(0xCD9E8D57)
    half = np.uint64(32)
    first = np.uint32(q >> half) ^ np.uint32(c1) ^ np.uint32(k0)
    third = np.uint32(p >> half) ^ np.uint32(c3) ^ np.uint32(k1)
    return np.uint32(first), np.uint32(q), np.uint32(third), np.uint32(p)


@rule
def philox(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int) -> Words4:
    """Philox4x32-10 of a counter of four words and a key of two, all of 32 bits."""
    k0, k1 = np.uint32(k0), np.uint32(k1)
    c = np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)
    for _ in range(10):
        c = _round(c[0], c[1], c[2], c[3], k0, k1)
        k0, k1 = np.uint32(k0 + np.uint32(0x9E3779B9)), np.uint32(k1 + np.uint32(0xBB67AE85))
    return c


@rule
def _below(words: Words4, limit: int) -> Any:
    """For eight spins a bit each, in the lowest of four: is its half of a word below the limit?

    Both halves at once: where their top bits agree, the difference of the others decides.
    """
    out, top = np.uint32(0), np.uint32(0x80008000)
    bound = np.uint32(limit * 0x10001)
    rest = np.uint32(bound & ~top)
    for i in range(4):
        word = np.uint32(words[i])
        least = np.uint32(np.uint32(word | top) - rest)
        below = np.uint32((~word & bound) | (~(word ^ bound) & ~least))
        out = np.uint32(np.uint32(out >> np.uint32(4)) | (below & top))
    return np.uint64(np.uint32(out >> np.uint32(3)))


@CudaKernel
def update_nibbles(cuda: Any) -> Callable[..., None]:
    def update(mine, other, rows, words, number, seed, likely, rare):  # type: ignore[no-untyped-def]
        """One pass, black where its number is even; a thread does a word of some rows.

        Parameters
        ----------
        mine, other : words of its colour and of the other one, (rows * words,) uint64
        seed : below 2^32
        likely, rare : chances to flip with one and with no opposite neighbour, times 2^16
        """
        strip, w = split(cuda.grid(1), words)
        first = strip * ROWS
        if first < rows:
            four, half, line = np.uint64(4), np.uint64(32), np.uint64(words)
            at, above = np.uint64(first * words + w), first - 1 if first > 0 else rows - 1
            right = np.uint64(first * words + (w + 1 if w + 1 < words else 0))
            left = np.uint64(first * words + (w - 1 if w > 0 else words - 1))
            north, here = other[np.uint64(above * words + w)], other[at]
            for y in range(np.int32(first), np.int32(min(first + ROWS, rows))):
                south = other[at + line if y + 1 < rows else np.uint64(w)]
                s = mine[at]
                if (y + number) & 1:
                    side = here >> four | other[right] << np.uint64(60)
                else:
                    side = here << four | other[left] >> np.uint64(60)
                opposite = (north ^ s) + (south ^ s) + (here ^ s) + (side ^ s)
                drawn = philox(np.uint32(at), number, 0, 0, seed, 0)
                more = philox(np.uint32(at), number, 1, 0, seed, 0)
                one = np.uint64(_below(drawn, likely)) | np.uint64(_below(more, likely)) << half
                none = np.uint64(_below(drawn, rare)) | np.uint64(_below(more, rare)) << half
                surely = (opposite >> np.uint64(1)) | (opposite >> np.uint64(2))
                mine[at] = s ^ ((surely | opposite & one | none) & ONES)
                north, here = here, south
                at, left, right = at + line, left + line, right + line

    return update


def limits(temperature: float) -> tuple[int, int]:
    """Chances to flip with one and with no opposite neighbour, times 2^16."""
    likely, rare = (round(2**16 * math.exp(-n / temperature)) for n in (4, 8))
    return likely, rare


class Nibbles:
    """A periodic lattice (ny, nx) of this kind, nx a multiple of 32, ny even; all spins down."""

    def __init__(self, ny: int, nx: int, temperature: float) -> None:
        self.rows, self.words, self.limits = ny, nx // (2 * SPINS), limits(temperature)
        size = ny * self.words
        self.colours = [Device("cuda").put(np.zeros(size, np.uint64)) for _ in range(2)]

    def apply(self, number: int, seed: int) -> None:
        """One pass."""
        mine, other = self.colours[number % 2], self.colours[1 - number % 2]
        threads = -(-self.rows // ROWS) * self.words
        arguments = mine, other, self.rows, self.words, number, seed, *self.limits
        update_nibbles.launch(threads, *arguments)

    def store(self, spins: np.ndarray) -> None:
        """Spins (ny, nx) of +1 and -1."""
        up = spins > 0
        for colour in (0, 1):
            words = np.zeros((self.rows, self.words), np.uint64)
            for y in range(self.rows):
                row = up[y, (y + colour) % 2 :: 2].reshape(self.words, SPINS)
                for k in range(SPINS):
                    words[y] |= row[:, k].astype(np.uint64) << np.uint64(4 * k)
            self.colours[colour].copy_to_device(words.reshape(-1))

    def spins(self) -> np.ndarray:
        """The same, read."""
        out = np.empty((self.rows, 2 * SPINS * self.words), np.int8)
        places = np.uint64(4) * np.arange(SPINS, dtype=np.uint64)
        for colour in (0, 1):
            words = self.colours[colour].copy_to_host().reshape(self.rows, self.words)
            bits = (words[:, :, None] >> places & np.uint64(1)).astype(np.int8)
            for y in range(self.rows):
                out[y, (y + colour) % 2 :: 2] = 2 * bits[y].reshape(-1) - 1
        return out


def measured(*, small: bool = False) -> list[Row]:
    """Updates per nanosecond, as rows of ``mpiflow bench``."""
    meter = Meter("baseline", MPI.COMM_SELF, repeats=5, seconds=1e-9 if small else 0.2)
    for side in (64,) if small else (16384, 32768):
        lattice = Nibbles(8 if small else side, side, CRITICAL)
        done = 0

        def sweeps(count: int, lattice: Nibbles = lattice) -> int:
            nonlocal done
            for number in range(2 * done, 2 * (done + count)):
                lattice.apply(number, 1)
            done += count
            cuda().synchronize()
            return count * lattice.rows * lattice.words * 2 * SPINS

        meter.rate(f"{side}^2, h=0, Metropolis, 16 bits a spin", "updates/ns", 1e-9, sweeps)
    return meter.rows
