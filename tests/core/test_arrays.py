"""Arrays that users give: what is taken as it is meant, and what is refused by its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow import initial
from mpiflow.core import arrays
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.files.moments import Moment
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.initial.block_means import means_of_file
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.solvers.field.mesoscopic import NonlocalEquation
from mpiflow.solvers.lines.chain import ChainSimulation
from mpiflow.systems.kac import Kac, kac_kernel
from mpiflow.systems.linear_chain import LinearChain

SIDE = 16
SPINS = np.random.default_rng(1).choice([-1, 1], (SIDE, SIDE)).astype(np.int8)


def block_of() -> Block:
    return Block.tile(Layout(Lattice((SIDE, SIDE)), (1, 1)), MPI.COMM_SELF)


def as_spins(path: Path) -> np.ndarray:
    block = block_of()
    initial.from_file(block, path)
    return block.spins()[0].copy()


def as_field(path: Path) -> np.ndarray:
    config = KacConfig(
        size=SIDE, gamma=0, temperature=1, time=1, field_file=path, out=path.with_suffix(".h5")
    )
    field = config.site_field(MPI.COMM_SELF)
    sim = KacSimulation(Kac(1, 0), SIDE, site_field=field, comm=MPI.COMM_SELF)
    return np.sign(sim.fields.external)[:SIDE]  # in units of its own


def as_blocks(path: Path) -> np.ndarray:
    with means_of_file(path, Moment(), 1, (SIDE, SIDE)) as read:
        return np.array(read(0, slice(0, SIDE)))


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "initial": as_spins,
    "field_file": as_field,
    "predict": as_blocks,
}
by_reader = pytest.mark.parametrize("reader", READERS)

#: What a file holds, and what is said of it.
BAD: dict[str, tuple[Any, str]] = {
    "complex": (SPINS.astype(complex), "complex numbers: convert them"),
    "complex64": (SPINS.astype(np.complex64), "complex numbers"),
    "objects": (SPINS.astype(object), "Reading said"),
    "text": (SPINS.astype(str), "texts"),
    "bytes": (SPINS.astype("S4"), "texts"),
    "records": (SPINS.astype([("s", "i1")]), "records"),
    "truth": (SPINS > 0, "truth values"),
    "dates": (SPINS.astype("M8[s]"), "dates"),
    "durations": (SPINS.astype("m8[s]"), "durations"),
    "nan": (np.where(SPINS > 0, np.nan, -1.0), "-1 to 1|finite"),
    "inf": (np.where(SPINS > 0, np.inf, -1.0), "-1 to 1|finite"),
    "empty": (np.empty((0, SIDE)), "empty"),
    "nothing": (np.empty((0,), np.int8), "empty"),
    "line": (np.ones(SIDE), "grid|matching|means of blocks"),
    "cube": (np.ones((1, SIDE, SIDE)), "grid|matching|means of blocks"),
    "scalar": (np.float64(1), "grid|matching|means of blocks"),
    "wrong": (np.ones((SIDE, SIDE + 1)), "grid|matching|multiple"),
}


@by_reader
@pytest.mark.parametrize("kind", BAD)
def test_files_of_other_things_are_refused_by_their_reason(
    reader: str, kind: str, tmp_path: Path
) -> None:
    """Fails where complex spins lose their imaginary part."""
    values, says = BAD[kind]
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(InputError, match=says):
        READERS[reader](tmp_path / "a.npy")


@by_reader
@pytest.mark.parametrize("kind", ["npz", "npz as npy", "short", "header", "no bytes", "garbage"])
def test_damaged_files_and_archives(reader: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.npz" if kind == "npz" else "a.npy")
    np.save(tmp_path / "good.npy", SPINS.astype(float))
    good = (tmp_path / "good.npy").read_bytes()
    if kind.startswith("npz"):
        with path.open("wb") as file:
            np.savez(file, spins=SPINS)
    else:
        cut = {"short": len(good) - 9, "header": 20, "no bytes": 0}.get(kind)
        path.write_bytes(good[:cut] if cut is not None else b"\x93NUMPY\x01\x00\xff\xff garbage")
    with pytest.raises(InputError, match=".npz" if kind.startswith("npz") else "Reading said"):
        READERS[reader](path)


@by_reader
@pytest.mark.parametrize("dtype", ["i1", "<i8", ">i2", "<f4", ">f4", "<f8", ">f8", "f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_orders_of_bytes_and_of_axes_do_not_matter(
    reader: str, dtype: str, order: Any, tmp_path: Path
) -> None:
    """Floats of exactly +1 and -1 are spins: their means are certain."""
    np.save(tmp_path / "a.npy", np.asarray(SPINS.astype(dtype), order=order))
    np.testing.assert_array_equal(READERS[reader](tmp_path / "a.npy"), SPINS)


@pytest.mark.parametrize("bad", [0, 2, -128])
def test_whole_numbers_are_spins_only(bad: int, tmp_path: Path) -> None:
    spins = SPINS.copy()
    spins[3, 4] = bad
    np.save(tmp_path / "a.npy", spins)
    with pytest.raises(InputError, match=r"values \+1 and -1 only"):
        as_spins(tmp_path / "a.npy")


def test_a_name_says_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", SPINS)
    (tmp_path / "a.npy").rename(tmp_path / "a.spins")
    np.testing.assert_array_equal(as_spins(tmp_path / "a.spins"), SPINS)


# -- from Python -------------------------------------------------------------------------------


def means(values: Any) -> None:
    initial.profile(block_of(), 1, values)


def external(values: Any) -> None:
    KacSimulation(Kac(1, 0), SIDE, site_field=np.asanyarray(values), comm=MPI.COMM_SELF)


def equation_field(values: Any) -> None:
    NonlocalEquation(kac_kernel(0), 1.0, (SIDE, SIDE), field=values, comm=MPI.COMM_SELF)


def equation_start(values: Any) -> None:
    equation = NonlocalEquation(kac_kernel(0), 1.0, (SIDE, SIDE), comm=MPI.COMM_SELF)
    next(equation.evolve(values, [0.0]))


def chain(values: Any) -> None:
    ChainSimulation(LinearChain(SIDE), dt=0.01, members=SIDE).set(values)


@pytest.mark.parametrize("give", [means, external, equation_field, equation_start, chain])
@pytest.mark.parametrize("kind", ["complex", "objects", "text", "truth", "nan", "inf"])
def test_arrays_of_other_things_are_refused(give: Callable[[Any], None], kind: str) -> None:
    with pytest.raises(InputError, match=r"numbers|finite"):
        give(BAD[kind][0])


def test_counts_are_whole_numbers() -> None:
    with pytest.raises(InputError, match="^composition="):
        counts_of(128, 1, [1j, 1, 1], 3)  # type: ignore[list-item]
    block = Block.tile(Layout(Lattice((8, 8, 8)), (1, 1, 1)), MPI.COMM_SELF)
    with pytest.raises(InputError, match="^counts="):
        random_alloy(block, 1, np.array([1.5, 42.5, 42, 42]))


def test_real_numbers() -> None:
    for values in (1, [1, 2], np.float32(2), np.array([1, 2], ">i4")):
        got = arrays.real("x", values)
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, values)
    with pytest.raises(InputError, match="NumPy said"):
        arrays.real("x", [[1, 2], [3]])
