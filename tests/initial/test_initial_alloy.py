"""Initial species of an alloy: exact numbers, equal chances, the same on any number of ranks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from exact import P_FLOOR, Z_CEILING, chi_square, deviate
from mpi4py import MPI

from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout, factorisations
from mpiflow.core.noise import words
from mpiflow.files import structure
from mpiflow.files.moments import Moment
from mpiflow.files.structure import Snapshot
from mpiflow.initial import alloy as initial_alloy
from mpiflow.initial import site_words
from mpiflow.initial.alloy import counts_of, from_structure, place_vacancies, random_alloy, sites_of
from mpiflow.systems import alloy

CELLS = (4, 5, 6)
COUNTS = (7, 70, 80, 83)


def ensemble(members: Sequence[int], *cells: int) -> Block:
    """Whole lattices, waiting to be filled."""
    shape, halo = tuple(2 * n for n in cells), 2
    return Block(
        lattice=Lattice(shape),
        array=np.full((len(members), *(n + 2 * halo for n in shape)), 99, np.int8),
        origins=np.zeros((len(members), 3), np.int64),
        members=np.array(members, np.uint64),
        halo=halo,
        policy="wrap",
    )


def tile(
    comm: MPI.Intracomm, cells: Sequence[int], grid: Sequence[int], unit: int = 1, halo: int = 3
) -> Block:
    layout = Layout(Lattice(tuple(2 * n for n in cells)), tuple(grid), unit)
    return Block.tile(layout, comm, halo=halo)


def with_halo(whole: np.ndarray, block: Block) -> np.ndarray:
    """What a block with its halo holds of a whole state."""
    axes = (
        np.arange(o - block.halo, o + n + block.halo) % side
        for o, n, side in zip(block.origins[0], block.shape, whole.shape, strict=True)
    )
    return whole[np.ix_(*axes)]


def fill(block: Block) -> None:
    random_alloy(block, 3, COUNTS)


def fill_and_place(block: Block) -> None:
    random_alloy(block, 3, (0, 70, 80, 90))
    place_vacancies(block, 3, 9)


FILLS: list[Callable[[Block], None]] = [fill, fill_and_place]
by_fill = pytest.mark.parametrize("fill", FILLS, ids=["random", "placed"])


def numbers(states: np.ndarray, kinds: int = 4) -> np.ndarray:
    """Numbers of each species, (B, kinds)."""
    return np.stack([(states == kind).sum((1, 2, 3)) for kind in range(kinds)], axis=1)


# -- the same on any number of ranks -----------------------------------------------------------


@pytest.mark.mpi
@by_fill
def test_same_species_on_any_grid_of_ranks(
    comm: MPI.Intracomm, fill: Callable[[Block], None]
) -> None:
    """Tiles of odd sides and offsets included; halos hold the neighbours' species."""
    alone = tile(MPI.COMM_SELF, CELLS, (1, 1, 1))
    fill(alone)
    whole = alone.spins()[0]
    member = ensemble([0], *CELLS)
    fill(member)
    assert np.array_equal(member.spins()[0], whole)
    assert np.array_equal(member.host()[0], with_halo(whole, member))
    tried = 0
    for grid in factorisations(comm.size, 3):
        if all(2 * n // ranks >= 3 for n, ranks in zip(CELLS, grid, strict=True)):
            block = tile(comm, CELLS, grid)
            fill(block)
            assert np.array_equal(block.host()[0], with_halo(whole, block)), grid
            tried += 1
    assert tried


@pytest.mark.mpi
@by_fill
def test_same_species_in_any_bands(
    comm: MPI.Intracomm, fill: Callable[[Block], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in (tile(comm, CELLS, (1, 1, comm.size)), ensemble([0, 5], 11, 4, 5)):
        counts = COUNTS if block.cart else (7, 200, 200, 440 - 407)
        random_alloy(block, 3, counts)
        place_vacancies(block, 3, 4)
        expected = block.host().copy()
        for sites in (1, 9 * block.batch * block.shape[1] * block.shape[2]):
            with monkeypatch.context() as patch:
                patch.setattr("mpiflow.core.block.BAND_SITES", sites)
                assert sum(1 for _ in block.bands()) >= 1 + (block.shape[0] > 9)
                block.array[:] = 0
                random_alloy(block, 3, counts)
                place_vacancies(block, 3, 4)
            assert np.array_equal(block.host(), expected)


@by_fill
def test_members_differ_but_not_with_the_batch(fill: Callable[[Block], None]) -> None:
    many = ensemble(range(6), *CELLS)
    fill(many)
    assert len({state.tobytes() for state in many.spins()}) == 6
    some = ensemble([4, 1], *CELLS)
    fill(some)
    assert np.array_equal(some.spins(), many.spins()[[4, 1]])


@by_fill
def test_a_rank_without_members_is_no_problem(fill: Callable[[Block], None]) -> None:
    fill(ensemble([], *CELLS))


def test_seeds_and_streams_differ() -> None:
    states = []
    for seed in (1, 2):
        block = ensemble([0], *CELLS)
        random_alloy(block, seed, (120, 120))
        states.append(block.spins().copy())
        random_alloy(block, seed, (0, 240))
        place_vacancies(block, seed, 120)
        states.append(block.spins().copy())
    assert len({state.tobytes() for state in states}) == 4


@pytest.mark.mpi
def test_a_box_may_start_anywhere(comm: MPI.Intracomm) -> None:
    """A box over the periodic edge has the words of the sites where it lies."""
    whole = ensemble([0], *CELLS)
    random_alloy(whole, 3, COUNTS)
    shifted = ensemble([0], *CELLS)
    shifted.origins[:] = (5, 9, 3)
    random_alloy(shifted, 3, COUNTS)
    assert np.array_equal(shifted.spins()[0], np.roll(whole.spins()[0], (-5, -9, -3), (0, 1, 2)))


# -- exact numbers -----------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize(
    "counts", [COUNTS, (0, 0, 0, 240), (240, 0, 0), (1, 239), (1, 0, 239), (60, 60, 60, 60)]
)
def test_exact_numbers_on_all_ranks(comm: MPI.Intracomm, counts: tuple[int, ...]) -> None:
    block = tile(comm, CELLS, (1, 1, comm.size))
    for seed in range(4):
        random_alloy(block, seed, counts)
        assert tuple(block.total(numbers(block.spins(), len(counts)))[0]) == counts
        inside = alloy.is_site(block.shape, block.origins[0])
        assert np.array_equal(block.spins()[0] != alloy.NOT_A_SITE, inside)


@pytest.mark.mpi
def test_placed_vacancies_replace_atoms_only(comm: MPI.Intracomm) -> None:
    block = tile(comm, CELLS, (1, 1, comm.size))
    random_alloy(block, 3, COUNTS)
    before = block.spins().copy()
    place_vacancies(block, 8, 20)
    after = block.spins()
    changed = before != after
    assert block.total(np.array([changed.sum()]))[0] == 20
    assert (after[changed] == alloy.VACANCY).all()
    assert (before[changed] > alloy.VACANCY).all()
    place_vacancies(block, 8, 0)
    assert np.array_equal(block.spins(), after)
    place_vacancies(block, 8, 240 - 27)
    assert np.isin(block.spins(), (alloy.VACANCY, alloy.NOT_A_SITE)).all()


def test_each_box_may_have_its_own_numbers() -> None:
    block = ensemble([0, 1, 2], *CELLS)
    counts = np.array([COUNTS, (0, 240, 0, 0), (100, 100, 20, 20)])
    random_alloy(block, 0, counts)
    assert np.array_equal(numbers(block.spins()), counts)


@pytest.mark.parametrize("digits", [16, 5])
def test_the_order_of_the_documented_words(digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_words, "_DIGITS", digits)
    block = ensemble([3, 8], *CELLS)
    random_alloy(block, 9, COUNTS)
    points = np.argwhere(alloy.is_site(block.shape)).astype(np.uint64)
    assert initial_alloy.site_counter(3, 5, 7) == 3 << 42 | 5 << 21 | 7
    sites = points[:, 0] << np.uint64(42) | points[:, 1] << np.uint64(21) | points[:, 2]
    for member, state in zip((3, 8), block.spins(), strict=True):
        word = words(9, "initial-alloy", member, 0, sites)[:, 0]
        expected = np.empty(len(word), np.int8)
        expected[np.argsort(word)] = np.repeat(np.arange(4), COUNTS)
        assert np.array_equal(state[tuple(points.astype(int).T)], expected)


# -- equal chances -----------------------------------------------------------------------------


def test_all_arrangements_are_equally_likely() -> None:
    """One vacancy, one atom A and two B on the four sites of two cells: 12 arrangements."""
    block = Block(
        lattice=Lattice((4, 2, 2)),
        array=np.zeros((6000, 6, 4, 4), np.int8),
        origins=np.zeros((6000, 3), np.int64),
        members=np.arange(6000, dtype=np.uint64),
        halo=1,
        policy="wrap",
    )
    sites = np.nonzero(alloy.is_site((4, 2, 2)))

    def counted() -> np.ndarray:
        codes = block.spins()[(slice(None), *sites)] @ 3 ** np.arange(4)
        allowed = {
            sum(s * 3**i for i, s in enumerate(p)) for p in itertools.permutations((0, 1, 2, 2))
        }
        return np.array([(codes == code).sum() for code in sorted(allowed)])

    random_alloy(block, 5, (1, 1, 2))
    assert counted().sum() == 6000
    assert chi_square(counted(), np.full(12, 500.0)) > P_FLOOR
    # Atom A is somewhere among three B, of which one becomes the vacancy (or A itself).
    random_alloy(block, 6, (0, 1, 3))
    place_vacancies(block, 6, 1)
    kept = counted()
    lost = 6000 - kept.sum()
    assert chi_square(np.append(kept, lost), np.append(np.full(12, 375.0), 1500.0)) > P_FLOOR


def test_sites_and_neighbours_of_many_states() -> None:
    """Every site has each species equally often; pairs are those of drawing without return."""
    count = 1000
    block = ensemble(range(count), 4, 4, 4)
    counts = (16, 32, 48, 32)
    random_alloy(block, 2, counts)
    states = block.spins()
    inside = alloy.is_site(block.shape)
    n = 128
    for kind, number in enumerate(counts):
        share = number / n
        excess = (states[:, inside] == kind).sum(0) - count * share
        value = float((excess**2).sum() / (count * share * (1 - share) * n / (n - 1)))
        assert abs(value - (n - 1)) < Z_CEILING * np.sqrt(2 * (n - 1)), kind
    for one, other in [(0, 0), (1, 2), (3, 3), (0, 3)]:
        expected = counts[one] * (counts[other] - (one == other)) / (n - 1)
        for direction in alloy.DIRECTIONS[:2]:
            shifted = np.roll(states, direction, (1, 2, 3))
            pairs = ((states == one) & (shifted == other)).sum((1, 2, 3))
            assert abs(deviate(pairs, expected)) < Z_CEILING


# -- how many of each --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "vacancies", "composition", "expected"),
    [
        (1024, 1, None, (1, 341, 341, 341)),
        (1026, 2, None, (2, 341, 341, 342)),
        (1024, 2, None, (2, 340, 341, 341)),
        (8192, 8, None, (8, 2728, 2728, 2728)),
        (1024, 1, (341, 342, 340), (1, 341, 342, 340)),
        (1024, 4, (1, 1, 2), (4, 255, 255, 510)),
        (1024, 24, (50, 30, 20), (24, 500, 300, 200)),
        (1024, 24, (0.5, 0.3, 0.2), (24, 500, 300, 200)),
        (1024, 1, (0.333, 0.333, 0.334), (1, 340, 341, 342)),
        (1024, 1, (0.0, 0.0, 1.0), (1, 0, 0, 1023)),
        (128, 64, (0.1, 0.1, 0.8), (64, 6, 7, 51)),
    ],
)
def test_numbers_of_a_composition(
    sites: int, vacancies: int, composition: tuple[float, ...] | None, expected: tuple[int, ...]
) -> None:
    assert counts_of(sites, vacancies, composition) == expected
    assert sum(expected) == sites


def test_numbers_are_near_the_fractions_for_any_composition() -> None:
    generator = np.random.default_rng(1)
    for elements in (1, 2, 3, 5):
        for _ in range(50):
            parts = generator.dirichlet(np.ones(elements))
            vacancies, *found = counts_of(1024, 3, parts, elements)
            assert vacancies == 3
            assert sum(found) == 1021
            assert np.abs(np.array(found) - 1021 * parts).max() < 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((1024, 0), "vacancies=0: allowed is 1 to 512.*nothing moves"),
        ((1024, 513), "vacancies=513: .*More vacancies than one sublattice holds"),
        ((1024, -1), "vacancies=-1"),
        ((54, 1), "sites=54: .*4 cells"),
        ((1024, 1, (341, 341, 340)), "numbers of atoms that add up to 1023.*add up to 1022"),
        ((1024, 1, (0.3, 0.3, 0.3)), "add up to 0.9"),
        ((1024, 1, (-1, 1, 1)), "negative"),
        ((1024, 1, (0, 0, 0)), "nor all zero"),
        ((1024, 1, (1, 1)), "one number for each element"),
        ((1024, 1, (1, 1, float("nan"))), "finite numbers"),
    ],
)
def test_impossible_numbers(arguments: tuple, says: str) -> None:
    with pytest.raises(InputError, match=says):
        counts_of(*arguments)


def test_sites_of_a_box() -> None:
    assert sites_of((8, 8, 8)) == 1024
    assert sites_of((4, 5, 6)) == 240
    for cells in [(3, 8, 8), (8, 8), (8, 8, 2**21)]:
        with pytest.raises(InputError, match="^cells="):
            sites_of(cells)


def test_states_that_do_not_fit() -> None:
    block = ensemble([0], *CELLS)
    for counts in [(1, 1), (-1, 241), (240, 1, -1), 240]:
        with pytest.raises(InputError, match=r"^counts=.*240 sites"):
            random_alloy(block, 0, counts)
    random_alloy(block, 0, COUNTS)
    for number in (-1, 234):
        with pytest.raises(InputError, match=r"^vacancies=.*0 to 233"):
            place_vacancies(block, 0, number)
    flat = Block.periodic(np.zeros((1, 6, 6), np.int8), np.zeros(1))
    with pytest.raises(InputError, match="^size="):
        random_alloy(flat, 0, (1, 2))


# -- files -------------------------------------------------------------------------------------


def a_state() -> np.ndarray:
    block = ensemble([0], *CELLS)
    random_alloy(block, 12, COUNTS)
    return block.spins()[0].copy()


def write(path: Path, *states: np.ndarray, elements: Sequence[str] = alloy.ELEMENTS) -> Path:
    """States as the frames of a file of any kind; those of a run are all that is needed."""
    snapshots = [Snapshot(float(i), i, state) for i, state in enumerate(states)]
    if path.suffix == ".dump":
        structure.write_lammpsdump(path, snapshots, elements)
    elif path.suffix == ".xyz":
        structure.write_extxyz(path, snapshots, elements)
    else:
        with h5py.File(path, "w") as file:
            cells = [side // 2 for side in states[0].shape]
            file.attrs["config_json"] = json.dumps({"cells": cells, "elements": elements})
            file["time"] = np.arange(len(states), dtype=float)
            file["species"] = np.stack([structure.species_of(state) for state in states])
    return path


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["start.dump", "start.xyz", "start.h5"])
def test_states_from_a_file(
    comm: MPI.Intracomm, mpi_tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpiflow.core.block.BAND_SITES", 1)
    state = a_state()
    if comm.rank == 0:
        write(mpi_tmp_path / name, np.where(state > 0, 1, state), state)
    comm.Barrier()
    for grid in factorisations(comm.size, 3):
        if all(2 * n // ranks >= 3 for n, ranks in zip(CELLS, grid, strict=True)):
            block = tile(comm, CELLS, grid)
            from_structure(block, mpi_tmp_path / name)
            assert np.array_equal(block.host()[0], with_halo(state, block))
            from_structure(block, mpi_tmp_path / name, moment=Moment(frame=0))
            assert set(np.unique(block.spins())) <= {-1, 0, 1}


@pytest.mark.mpi
def test_one_bad_value_stops_every_rank(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    state = a_state()
    state[-1, -1, -1] = 7
    if comm.rank == 0:
        write(mpi_tmp_path / "start.h5", state)
    comm.Barrier()
    block = tile(comm, CELLS, (1, 1, comm.size))
    with pytest.raises(InputError, match=r"^initial=.*species 0 to 3 only"):
        from_structure(block, mpi_tmp_path / "start.h5")


@pytest.mark.parametrize("members", [0, 1, 3])
@pytest.mark.parametrize("name", ["start.dump", "start.h5"])
def test_every_member_starts_from_the_file(tmp_path: Path, members: int, name: str) -> None:
    state = a_state()
    block = ensemble(range(members), *CELLS)
    from_structure(block, write(tmp_path / name, state))
    assert np.array_equal(block.spins(), np.repeat(state[None], members, axis=0))


def test_the_state_of_a_member_of_an_ensemble(tmp_path: Path) -> None:
    states = ensemble([0, 1], *CELLS)
    random_alloy(states, 12, COUNTS)
    path = write(tmp_path / "start.h5", *states.spins())
    with h5py.File(path, "r+") as file:
        species = file["species"][()]
        del file["species"], file["time"]
        file["species"], file["time"] = species[None], np.zeros(1)
    block = ensemble([0], *CELLS)
    for member in (0, 1):
        from_structure(block, path, moment=Moment(member=member))
        assert np.array_equal(block.spins()[0], states.spins()[member])
    with pytest.raises(InputError, match=r"-2 to 1, as .* has 2"):
        from_structure(block, path, moment=Moment(member=2))


@pytest.mark.parametrize("name", ["start.xyz", "start.h5"])
def test_species_are_told_by_name(tmp_path: Path, name: str) -> None:
    state = a_state()
    path = write(tmp_path / name, state, elements=("Ta", "Nb", "Mo"))
    block = ensemble([0], *CELLS)
    from_structure(block, path)
    assert np.array_equal(block.spins()[0] == 1, state == 2)
    assert np.array_equal(block.spins()[0] == 3, state == 1)
    with pytest.raises(InputError, match="Ta"):
        from_structure(block, path, ("Nb", "Mo", "W"))


@pytest.mark.parametrize("name", ["start.dump", "start.xyz", "start.h5"])
@pytest.mark.parametrize("cells", [(4, 5, 7), (6, 5, 4), (8, 10, 12)])
def test_another_size_is_refused(tmp_path: Path, name: str, cells: tuple[int, ...]) -> None:
    path = write(tmp_path / name, a_state())
    with pytest.raises(InputError, match=r"^initial=.*the file has \(4, 5, 6\)"):
        from_structure(ensemble([0], *cells), path)


@pytest.mark.parametrize("how", ["missing", "text", "no species", "no frame", "no config", "short"])
def test_unusable_runs(tmp_path: Path, how: str) -> None:
    path = tmp_path / "start.h5"
    if how == "text":
        path.write_text("not a run")
    elif how != "missing":
        write(path, a_state())
        with h5py.File(path, "r+") as file:
            if how in ("no species", "short"):
                del file["species"]
            if how == "short":
                file["species"] = np.zeros((1, 100), np.int8)
            if how == "no frame":
                del file["time"]
                file["time"] = np.array([np.nan])
            if how == "no config":
                del file.attrs["config_json"]
    with pytest.raises(InputError, match=r"^initial=.*start\.h5"):
        from_structure(ensemble([0], *CELLS), path)
