"""Slabs: surroundings, transforms and sums are those of the whole field, bit for bit."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from mpi4py import MPI
from scipy import fft

from mpiflow.core.errors import InputError
from mpiflow.core.slabs import Slabs

#: Powers of two, other even and odd sizes, primes (long ones go by Bluestein), fewer rows than 4.
SHAPES = [(64, 64), (30, 50), (13, 7), (37, 96), (5, 254), (128, 1018), (3, 20), (1, 9), (6, 1)]


def cuts(comm: MPI.Intracomm, rows: int) -> list[list[int] | None]:
    """The even cut, all rows on one rank or another, and uneven cuts with empty slabs."""
    ranks = comm.size
    rng = np.random.default_rng(rows)
    random = [[0, *np.sort(rng.integers(0, rows + 1, ranks - 1)), rows] for _ in range(3)]
    return [None, [0] * ranks + [rows], [0] + [rows] * ranks, *random]


@pytest.mark.mpi
@pytest.mark.parametrize("shape", SHAPES)
def test_transforms_have_the_bits_of_the_whole(comm: MPI.Intracomm, shape: tuple[int, int]) -> None:
    field = np.random.default_rng(3).standard_normal(shape)
    spectrum = fft.rfft2(field)
    # A spectrum of its own, so that a way back that undoes the way out's mistakes is found.
    other = fft.rfft2(np.random.default_rng(4).standard_normal(shape)) * spectrum
    for edges in cuts(comm, shape[0]):
        slabs = Slabs(comm, shape, edges)
        own = slabs.forward(field[slabs.rows])
        assert np.array_equal(own, spectrum[:, slabs.columns])
        given = other[:, slabs.columns].copy()
        back = slabs.backward(given)
        assert back.dtype == np.float64
        assert np.array_equal(back, fft.irfft2(other, shape)[slabs.rows])
        assert np.array_equal(given, other[:, slabs.columns])  # not written to
        assert np.array_equal(slabs.backward(given, overwrite=True), back)
    assert np.abs(slabs.backward(own) - field[slabs.rows]).max(initial=0) < 1e-14


@pytest.mark.parametrize("length", [7, 64, 94, 509, 1024])
def test_a_line_has_the_same_bits_in_any_batch(length: int) -> None:
    """What the transforms rest on: scipy takes 2, 4 or 8 lines at once where there are as many."""
    lines = np.random.default_rng(length).standard_normal((21, length))
    half = fft.rfft(lines, axis=1)
    columns = np.ascontiguousarray(fft.fft(lines.T, axis=0))
    for n in range(1, 20):
        part = slice(20 - n, 20)
        assert np.array_equal(fft.rfft(lines[part], axis=1), half[part])
        assert np.array_equal(
            fft.irfft(half[part], length, axis=1), fft.irfft(half, length, axis=1)[part]
        )
        assert np.array_equal(fft.fft(lines.T[:, part].copy(), axis=0), columns[:, part])
        assert np.array_equal(
            fft.ifft(columns[:, part].copy(), axis=0), fft.ifft(columns, axis=0)[:, part]
        )


@pytest.mark.mpi
@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float64, np.bool_])
@pytest.mark.parametrize("shape", [(24, 10), (7, 5), (3, 4)])
def test_surroundings_are_the_rows_beyond_the_edge(
    comm: MPI.Intracomm, shape: tuple[int, int], dtype: type
) -> None:
    ny = shape[0]
    rng = np.random.default_rng(5)
    stack = rng.integers(-9, 9, (2, 3, *shape)).astype(dtype)
    reaches = [(0, 0), (1, 1), (0, 2), (2, 0), (ny - 1, 0), (0, ny - 1), (ny // 2, (ny - 1) // 2)]
    for edges in cuts(comm, ny):
        slabs = Slabs(comm, shape, edges)
        for above, below in reaches:
            rows = np.arange(slabs.rows.start - above, slabs.rows.stop + below) % ny
            for field in (stack, stack[0], stack[1, 2]):
                got = slabs.around(field[..., slabs.rows, :], above, below)
                assert got.dtype == dtype
                assert np.array_equal(got, field[..., rows, :]), (edges, above, below)


@pytest.mark.mpi
def test_surroundings_by_rolling(comm: MPI.Intracomm) -> None:
    """A sum over rows near and far, as a stencil takes it, against shifts of the whole field."""
    field = np.random.default_rng(6).integers(-5, 5, (16, 8))
    weights = np.arange(1, 12)  # of rows -7 to 3
    whole = sum(w * np.roll(field, 7 - i, axis=0) for i, w in enumerate(weights))
    slabs = Slabs(comm, (16, 8))
    near = slabs.around(field[slabs.rows], 7, 3)
    n = slabs.local[0]
    assert np.array_equal(
        sum(w * near[i : i + n] for i, w in enumerate(weights)), whole[slabs.rows]
    )


@pytest.mark.mpi
def test_totals_are_exact_and_the_same_everywhere(comm: MPI.Intracomm) -> None:
    shape = (40, 33)
    rng = np.random.default_rng(7)
    field = rng.standard_normal(shape) * 10.0 ** rng.integers(-12, 12, shape)
    rows = field.sum(axis=1)
    exact = float(sum(map(Fraction, rows.tolist())))
    for edges in cuts(comm, shape[0]):
        slabs = Slabs(comm, shape, edges)
        assert slabs.total(rows[slabs.rows]) == exact == slabs.total(field[slabs.rows])
        assert slabs.total(np.ones(slabs.local[0])) == 40
        cancels = np.tile([2.0**60, 1.0, -(2.0**60), 0.5], 10)
        assert slabs.total(cancels[slabs.rows]) == 15
    assert Slabs(comm, shape).total(2**70 + comm.rank) == comm.size * 2**70 + sum(range(comm.size))
    assert slabs.total(np.int64(3)) == 3 * comm.size


@pytest.mark.mpi
@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_of_a_spectrum(comm: MPI.Intracomm, shape: tuple[int, int]) -> None:
    power = abs(fft.rfft2(np.random.default_rng(8).standard_normal(shape))) ** 2
    whole = Slabs(MPI.COMM_SELF, shape).centre(power)
    assert whole == pytest.approx(float(fft.irfft2(power, shape)[0, 0]), rel=1e-12)
    slabs = Slabs(comm, shape)
    assert slabs.centre(power[:, slabs.columns]) == whole
    assert slabs.centre(power, whole=True) == whole


@pytest.mark.mpi
def test_largest(comm: MPI.Intracomm) -> None:
    slabs = Slabs(comm, (8, 8))
    for chosen in range(comm.size):
        assert slabs.largest(-1.0 if comm.rank == chosen else -2.0 - comm.rank) == -1.0
        assert math.isnan(slabs.largest(math.nan if comm.rank == chosen else 5.0))


@pytest.mark.mpi
def test_slabs_are_dealt_out_evenly(comm: MPI.Intracomm) -> None:
    slabs = Slabs(None, (37, 24))
    assert comm.allreduce(slabs.local[0]) == 37
    assert comm.allreduce(slabs.columns.stop - slabs.columns.start) == 13
    sizes = comm.allgather(slabs.local[0])
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.mpi
def test_sizes_that_cannot_work_are_named(comm: MPI.Intracomm) -> None:
    ranks = comm.size
    for shape in [(0, 8), (8,), (4, 4, 4)]:
        with pytest.raises(InputError, match="shape"):
            Slabs(comm, shape)  # type: ignore[arg-type]
    for edges in [[0] * ranks, [1] + [8] * ranks, [0] * ranks + [7], [0] * ranks + [8, 8]]:
        with pytest.raises(InputError, match="edges"):
            Slabs(comm, (8, 8), edges)
    if ranks > 1:
        with pytest.raises(InputError, match="edges"):
            Slabs(comm, (8, 8), [0, 5] + [4] * (ranks - 2) + [8] if ranks > 2 else [0, 9, 8])
    slabs = Slabs(comm, (8, 8))
    field = np.zeros(slabs.local)
    for above, below in [(-1, 0), (0, -1), (4, 4), (8, 0)]:
        with pytest.raises(InputError, match="fewer than the field's 8"):
            slabs.around(field, above, below)
    with pytest.raises(InputError, match="field"):
        slabs.forward(np.zeros((9, 8)))
    with pytest.raises(InputError, match="field"):
        slabs.around(np.zeros((9, 8)), 1, 1)
    with pytest.raises(InputError, match="spectrum"):
        slabs.backward(np.zeros((8, 6), complex))
    with pytest.raises(InputError, match="values"):
        slabs.total(np.zeros(9))
