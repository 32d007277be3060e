"""Barrier models in files: the published network, our own, and files that are not what they say."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shlex
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpiflow
from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.simulation.alloy import barrier_model as barrier_files
from mpiflow.simulation.alloy.barrier_model import (
    BarrierModel,
    constant_model,
    import_nnk,
    load_barrier_model,
    network_model,
    pairwise_model,
    save_barrier_model,
)
from mpiflow.simulation.alloy.published_weights import NNK_SHAPES, PUBLISHED_SHA256
from mpiflow.systems.alloy import DIRECTIONS, SURROUNDINGS, is_site

VACANCY_AT = (5, 3, 1)


def random_arrays(seed: int = 0) -> list[np.ndarray]:
    """Weights of the shapes of the published network, with activations of order one."""
    rng = np.random.default_rng(seed)
    out = []
    for name, shape in NNK_SHAPES.items():
        if name.startswith("W"):
            values = rng.normal(0, 1 / np.sqrt(min(shape[0], 112)), shape)
        elif name.startswith(("gamma", "variance")):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.3, shape)
        out.append(values.astype(np.float32))
    return out


def write_npy(path: Path, arrays: Any) -> Path:
    """What the authors did: np.save of an object array."""
    objects = np.empty(len(arrays), object)
    for i, array in enumerate(arrays):
        objects[i] = array
    np.save(path, objects, allow_pickle=True)
    return path


def write_pickle(path: Path, payload: bytes, shape: str = "(26,)") -> Path:
    """A .npy whose header promises 26 objects, and any pickle after it."""
    header = f"{{'descr': '|O', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
    with path.open("ab") as file:
        file.write(payload)
    return path


def random_grid(sides: tuple[int, int, int] = (8, 12, 10), seed: int = 1) -> np.ndarray:
    """Random atoms and a few vacancies, one of them at VACANCY_AT."""
    rng = np.random.default_rng(seed)
    grid = rng.choice(4, sides, p=[0.05, 0.35, 0.3, 0.3]).astype(np.int8)
    grid[~is_site(sides)] = -1
    grid[VACANCY_AT] = 0
    # Not among the nearest, so that every hop has a barrier.
    for d in DIRECTIONS:
        near = tuple((VACANCY_AT + d) % sides)
        grid[near] = grid[near] or 2
    return grid


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_npy(tmp_path / "weights.npy", random_arrays())


@pytest.fixture
def published(shared_dir: Path) -> Path:
    path = shared_dir / "reference" / "nnk" / "weights.npy"
    if not path.is_file():
        pytest.skip(f"no {path.name} of the published network")
    return path


def refused(path: Path, *says: str) -> None:
    """Loading names the file, what is wrong, what is allowed and what to do."""
    with pytest.raises(InputError) as caught:
        load_barrier_model(path)
    text = str(caught.value)
    assert text.startswith(f"barriers={str(path)!r}: allowed is ")
    for part in says:
        assert part in text


def loads(path: Path) -> bool:
    """Whether a file loads; if it does not, the error is the one for users and names the file."""
    try:
        load_barrier_model(path)
    except InputError as error:
        if error.value != str(path):
            raise
        return False
    return True


# -- the published network -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "epsilon", "key"),
    [
        ("nkk", None, "barriers_nkk_order_eV"),
        ("paper", None, "barriers_paper_order_eV"),
        ("paper", 1e-5, "barriers_paper_order_bn1e5_eV"),
    ],
)
@pytest.mark.parametrize("converted", [False, True])
def test_published_barriers(
    published: Path, tmp_path: Path, order: Any, epsilon: float | None, key: str, converted: bool
):
    path = published
    if converted:
        path = tmp_path / "nnk.safetensors"
        import_nnk(published, path)
    model = load_barrier_model(path, order, batchnorm_epsilon=epsilon)
    with np.load(published.with_name("barriers_check.npz")) as check:
        grids, numbers = check["grids_1024"], check["env_grid_index"]
        where, directions, expected = check["env_vacancy_ijk"], check["directions"], check[key]
    pairs = zip(numbers, where, strict=True)
    found = np.array([model.barriers(grids[n], ijk, directions) for n, ijk in pairs])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert model.axis_order == order
    assert model.species == ("Nb", "Mo", "Ta")


def test_the_published_file_is_recognised(published: Path):
    model = load_barrier_model(published)
    assert model.sha256 == PUBLISHED_SHA256
    assert model.card["published"]
    assert "Copyright (c) 2024 UCICaoLab" in model.summary()
    assert sum(array.size for array in model.tensors.values()) == 145_153


def image_barrier(arrays: list[np.ndarray], grid: np.ndarray, d: np.ndarray, order: str) -> float:
    """The recipe of the published code, on its 9 x 9 x 9 image, without any shortcut."""
    box = [np.arange(-4, 5) + at for at in VACANCY_AT]
    image = grid[np.ix_(*(axis % n for axis, n in zip(box, grid.shape, strict=True)))].astype(float)
    steps = np.indices((9, 9, 9)) - 4
    # The lattice ends at 7.5 Angstrom, and a voxel is 1.62 wide.
    image[(image < 0) | ((steps**2).sum(axis=0) * 1.62**2 > 7.5**2)] = 0
    turns = {(1, 1): 0, (-1, -1): 2, (-1, 1): -1, (1, -1): 1}
    image = np.rot90(image, turns[d[0], d[1]])
    if d[2] < 0:
        image = image[:, :, ::-1]
    if order == "nkk":
        image = image.transpose(1, 0, 2)
    x = image.ravel()
    for i in range(0, 24, 6):
        w, b, gamma, beta, mean, variance = (a.astype(float) for a in arrays[i : i + 6])
        x = np.maximum(gamma * (x @ w + b - mean) / np.sqrt(variance + 1e-3) + beta, 0)
    return float((x @ arrays[24] + arrays[25])[0])


@pytest.mark.parametrize("order", ["nkk", "paper"])
def test_any_weights_follow_the_published_recipe(weights: Path, order: Any):
    model, grid = load_barrier_model(weights, order), random_grid()
    expected = [image_barrier(random_arrays(), grid, d, order) for d in DIRECTIONS]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(model.barriers(grid, VACANCY_AT), expected, atol=1e-5)
    assert not model.card["published"]
    assert "not the published NNK network" in model.summary()
    assert model.axis_order == order


def test_the_paper_sees_what_nkk_sees_in_the_mirror(weights: Path):
    grid, mirror = random_grid(), [1, 0, 2]
    there = load_barrier_model(weights, "paper").barriers(grid, VACANCY_AT)
    here = load_barrier_model(weights, "nkk").barriers(
        grid.transpose(mirror), np.array(VACANCY_AT)[mirror], DIRECTIONS[:, mirror]
    )
    np.testing.assert_allclose(here, there, atol=1e-5)
    same = load_barrier_model(weights, "nkk").barriers(grid, VACANCY_AT)
    assert np.abs(same - there).max() > 1e-3


def test_a_turn_about_z_permutes_the_barriers(weights: Path):
    model, grid = load_barrier_model(weights), random_grid((10, 10, 8))
    turned = np.rot90(grid)  # (x, y) goes to (-1 - y, x): shift, so that sites stay sites
    turned = np.roll(turned, 1, axis=0)
    x, y, z = VACANCY_AT
    hops = np.stack([-DIRECTIONS[:, 1], DIRECTIONS[:, 0], DIRECTIONS[:, 2]], axis=1)
    found = model.barriers(turned, (-y % 10, x, z), hops)
    np.testing.assert_allclose(found, model.barriers(grid, VACANCY_AT), atol=1e-5)


def test_batchnorm_epsilon(weights: Path, tmp_path: Path):
    grid = random_grid()
    trained = load_barrier_model(weights).barriers(grid, VACANCY_AT)
    other = load_barrier_model(weights, batchnorm_epsilon=1e-1)
    assert other.card["batchnorm_epsilon"] == 1e-1
    assert np.abs(other.barriers(grid, VACANCY_AT) - trained).max() > 1e-4
    # It is kept in a file of ours, and can still be chosen there.
    save_barrier_model(other, tmp_path / "x.safetensors")
    again = load_barrier_model(tmp_path / "x.safetensors")
    assert np.array_equal(again.barriers(grid, VACANCY_AT), other.barriers(grid, VACANCY_AT))
    again = load_barrier_model(tmp_path / "x.safetensors", batchnorm_epsilon=1e-3)
    assert np.array_equal(again.barriers(grid, VACANCY_AT), trained)
    for wrong in (-1.0, np.inf, np.nan):
        with pytest.raises(InputError, match="batchnorm_epsilon"):
            load_barrier_model(weights, batchnorm_epsilon=wrong)


def test_column_major_arrays_and_other_protocols(tmp_path: Path):
    grid = random_grid()
    expected = load_barrier_model(write_npy(tmp_path / "a.npy", random_arrays()))
    columns = [np.asfortranarray(array) for array in random_arrays()]
    objects = np.empty(26, object)
    objects[:] = columns
    for protocol in (3, 4):
        path = write_pickle(tmp_path / "b.npy", pickle.dumps(objects, protocol))
        model = load_barrier_model(path)
        assert np.array_equal(model.barriers(grid, VACANCY_AT), expected.barriers(grid, VACANCY_AT))
        assert all(array.flags.c_contiguous for array in model.tensors.values())


# -- damaged and hostile npy files ---------------------------------------------------------


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class WithState(Call):
    """Pickles as a call of any function, and a state to be set after it."""

    def __reduce__(self) -> Any:
        return (*self.call, {"__class__": 1})


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_hostile_files_are_refused_and_run_nothing(tmp_path: Path, protocol: int):
    proof, path = tmp_path / "proof", tmp_path / "weights.npy"
    command = f"touch {shlex.quote(str(proof))}"
    good = random_arrays()
    for call in (
        Call(os.system, command),
        Call(eval, f"open({str(proof)!r}, 'w')"),
        Call(exec, f"open({str(proof)!r}, 'w')"),
        Call(np.save, str(proof), np.zeros(1)),
        Call(np.ndarray, (10**12,), "f4"),
        Call(np.array, [1.0]),
        Call(getattr, "text", "upper"),
        WithState(np.dtype, "f4"),
    ):
        for content in (call, [call] * 26, [*good[:-1], call], {"a": call}):
            refused(write_pickle(path, pickle.dumps(content, protocol)), "This file ")
        objects = np.empty(26, object)
        objects[:] = [*good[:-1], call]
        refused(write_pickle(path, pickle.dumps(objects, protocol)), "This file ")
    assert not list(tmp_path.glob("proof*"))
    pickle.loads(pickle.dumps(Call(os.system, command), protocol))  # noqa: S301 - the payload works
    assert proof.exists()


def test_a_call_is_named(tmp_path: Path):
    path = write_npy(tmp_path / "weights.npy", [Call(os.system, "false")] * 26)
    refused(path, "asks for 'posix.system'", "26 float32 arrays", "only from where you trust it")
    path = write_npy(tmp_path / "weights.npy", [Call(eval, "1")] * 26)
    refused(path, "asks for 'builtins.eval'")


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (b"\x80\x04r\xff\xff\xff\x7f.", "more objects"),  # a memo of 2^31 places
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", "more objects"),  # a frame of 2^63 bytes
        (b"\x80\x04B\xff\xff\xff\xffab.", "cut short"),  # 4 GB of content in 2 bytes
        (b"\x80\x04" + b"N" * 20_000 + b".", "more objects"),
        (b"\x80\x04" + b")" + b"\x85" * 9000 + b".", "holds a tuple"),  # ((((...))))
        (b"\x80\x04Pid\n.", "uses PERSID"),
        (b"\x80\x04\x82\x01.", "uses EXT1"),
        (b"\x80\x04cnumpy\ndtype\n\x81.", "uses NEWOBJ"),
        (b"\x80\x04cnumpy\ndtype\n)b.", "is cut short or damaged"),  # a state for the class
        (b"\x80\x04cnumpy\nndarray\n)R.", "is cut short or damaged"),
        (b"\x80\x04cnumpy\ndtype\n)R.", "holds a dtype, not an array"),
        (b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n)R.", "not an array"),
        (b"\x80\x04cnumpy\nload\n.", "asks for 'numpy.load'"),
        (b"\x80\x04R.", "cut short or damaged"),
        (b"\x80\x04N.N", "goes on after its end"),
        (b"", "cut short"),
    ],
)
def test_hand_made_pickles(tmp_path: Path, payload: bytes, says: str):
    refused(write_pickle(tmp_path / "weights.npy", payload), says)


def with_array(name: str, value: Any) -> list[Any]:
    arrays: list[Any] = random_arrays()
    arrays[list(NNK_SHAPES).index(name)] = value
    return arrays


def filled(name: str, value: float) -> list[Any]:
    array = random_arrays()[list(NNK_SHAPES).index(name)]
    array.flat[3] = value
    return with_array(name, array)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: random_arrays()[:-1], "holds an array (25,) of object, not (26,)"),
        (lambda: with_array("W1", np.zeros((128, 729), np.float32)), "W1 of another shape"),
        (lambda: with_array("gamma3", np.zeros(127, np.float32)), "gamma3 of another shape"),
        (lambda: with_array("W5", np.zeros((128, 1))), "wrong in W5: it holds an array of another"),
        (lambda: with_array("b2", np.zeros(128, ">f4")), "wrong in b2"),
        (lambda: with_array("b2", np.zeros(128, np.int32)), "wrong in b2"),
        (lambda: with_array("b2", np.array([None] * 128)), "wrong in b2"),
        (lambda: with_array("b2", [0] * 128), "wrong in b2: it holds a list, not an array"),
        (lambda: with_array("b2", []), "wrong in b2: it holds a list, not an array"),
        (lambda: with_array("b2", "text"), "wrong in b2: it holds a str"),
        (lambda: with_array("b2", (1, 2)), "wrong in b2: it holds a tuple"),
        (lambda: filled("variance2", 0.0), "variance2 that are not above 0"),
        (lambda: filled("variance2", -1.0), "variance2 that are not above 0"),
        (lambda: filled("W3", np.nan), "W3 that are not finite"),
        (lambda: filled("mean4", np.inf), "mean4 that are not"),
        (lambda: filled("W3", 1e30), "beyond 1e6"),
    ],
)
def test_wrong_contents(tmp_path: Path, make: Callable[[], list[Any]], says: str):
    refused(write_npy(tmp_path / "weights.npy", make()), says)


def test_other_npy_files(tmp_path: Path):
    path = tmp_path / "weights.npy"
    np.save(path, np.zeros((26,), np.float32))
    refused(path, "of float32, not (26,) of objects")
    np.save(path, np.zeros((26, 1), object), allow_pickle=True)
    refused(path, "holds an array (26, 1) of object")
    path.write_bytes(b"\x93NUMPY\x03\x00" + b"\x00" * 50)
    refused(path, "damaged header")
    path.write_bytes(b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16)
    refused(path, "damaged header")
    path.write_bytes(b"PK not numpy")
    refused(path, "an archive")
    path.write_bytes(b"")
    refused(path, "is empty")


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")  # of broken text
def test_truncated_and_flipped_files(weights: Path, tmp_path: Path):
    data, path = weights.read_bytes(), tmp_path / "damaged.npy"
    for length in [*range(0, 600, 7), *range(1000, len(data), 50_000), len(data) - 1]:
        path.write_bytes(data[:length])
        refused(path)
    # A flipped bit either leaves numbers that could be weights, or is refused: no other end.
    rng = np.random.default_rng(2)
    for at in [*range(0, 700, 2), *rng.integers(0, len(data), 100)]:
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        if loads(path):
            assert not load_barrier_model(path).card["published"]


def test_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path):
    monkeypatch.setattr(barrier_files, "MAX_BYTES", 500_000)
    refused(weights, "This file is larger")
    sparse = tmp_path / "huge.npy"
    with sparse.open("wb") as file:
        file.truncate(2**40)
    refused(sparse, "This file is larger")


def test_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    refused(tmp_path / "no.npy", "There is no such file")
    refused(tmp_path, "It is a folder")
    monkeypatch.setattr(barrier_files, "DEFAULT", tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"^barriers='default'.*lacks.*none.safetensors.*weights"):
        load_barrier_model()
    save_barrier_model(constant_model([1.7] * 3), tmp_path / "none.safetensors")
    assert load_barrier_model().kind == "constant"
    assert mpiflow.load_barrier_model("default").kind == "constant"


def test_axis_order_must_be_known(weights: Path):
    wrong: Any = "xyz"
    with pytest.raises(InputError, match=r"axis_order='xyz': allowed is 'nkk' or 'paper'"):
        load_barrier_model(weights, wrong)


# -- our own files -------------------------------------------------------------------------


def small_network(pool: int = 2) -> BarrierModel:
    rng = np.random.default_rng(4)
    shapes = [(336, 12), (12 // pool, 5), (5, 1)]
    layers = [(rng.normal(0, 0.1, s), rng.normal(0, 0.1, s[1])) for s in shapes]
    return network_model(layers, np.eye(4)[:, 1:], pool, name="small", card={"loss": 0.5})


def bond_energies() -> np.ndarray:
    bonds = np.random.default_rng(5).normal(0, 0.1, (4, 4))
    return bonds + bonds.T


MODELS: dict[str, Callable[[], BarrierModel]] = {
    "constant": lambda: constant_model([1.6, 2.0, 1.7]),
    "pairwise": lambda: pairwise_model([1.6, 2.0, 1.7], bond_energies(), card={"made": "by hand"}),
    "network": small_network,
    "binary": lambda: constant_model([1.0, 2.0], species=("A", "B"), name="two"),
}


@pytest.mark.parametrize("which", MODELS)
def test_round_trip(tmp_path: Path, which: str):
    model, path = MODELS[which](), tmp_path / "model.safetensors"
    sha256 = save_barrier_model(model, path)
    again = load_barrier_model(path)
    assert (again.kind, again.name, again.species, again.card) == (
        model.kind,
        model.name,
        model.species,
        model.card,
    )
    assert again.sha256 == sha256
    assert model.sha256 == ""
    assert again.axis_order is None
    assert again.tensors.keys() == model.tensors.keys()
    for name, array in model.tensors.items():
        assert np.array_equal(again.tensors[name], array)
        assert again.tensors[name].dtype == array.dtype
    grid = np.minimum(random_grid(), len(model.species)).astype(np.int8)
    expected = model.barriers(grid, VACANCY_AT)
    assert np.isfinite(expected).all()
    assert np.array_equal(again.barriers(grid, VACANCY_AT), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]


def test_barriers_of_our_own_kinds():
    grid = random_grid()
    atoms = [int(grid[tuple((VACANCY_AT + d) % grid.shape)]) for d in DIRECTIONS]
    found = constant_model([1.6, 2.0, 1.7]).barriers(grid, VACANCY_AT)
    np.testing.assert_allclose(found, np.array([0, 1.6, 2.0, 1.7])[atoms], rtol=1e-6)

    # A bond model knows no directions: any turn or mirror of the crystal permutes its barriers.
    model, grid = pairwise_model([1.6, 2.0, 1.7], bond_energies()), random_grid((10, 10, 10))
    expected = model.barriers(grid, VACANCY_AT)
    for axes in ([1, 0, 2], [2, 0, 1], [0, 2, 1]):
        moved = model.barriers(
            grid.transpose(axes), np.array(VACANCY_AT)[axes], DIRECTIONS[:, axes]
        )
        np.testing.assert_allclose(moved, expected, atol=1e-6)
    mirrored = np.roll(grid[::-1], 1, axis=0)
    x, y, z = VACANCY_AT
    moved = model.barriers(mirrored, (-x % 10, y, z), DIRECTIONS * [-1, 1, 1])
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_a_pairwise_hop_and_its_reverse_differ_by_the_energy():
    bonds, grid = bond_energies(), random_grid((10, 10, 10))
    model = pairwise_model([1.6, 2.0, 1.7], bonds)

    def energy(state: np.ndarray) -> float:
        near = [np.roll(state, tuple(-d), (0, 1, 2)) for d in DIRECTIONS[4:]]
        sites = state >= 0
        return float(sum(bonds[state[sites], other[sites]].sum() for other in near))

    for d in DIRECTIONS:
        after, target = grid.copy(), tuple((VACANCY_AT + d) % grid.shape)
        after[VACANCY_AT], after[target] = grid[target], 0
        there = model.barriers(grid, VACANCY_AT, d[None])[0]
        back = model.barriers(after, target, -d[None])[0]
        assert there - back == pytest.approx(energy(after) - energy(grid), abs=1e-5)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, weights: Path):
    import_nnk(weights, tmp_path / "a.safetensors")
    import_nnk(weights, tmp_path / "b.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    assert data == (tmp_path / "b.safetensors").read_bytes()
    again = load_barrier_model(tmp_path / "a.safetensors", "paper")
    assert again.axis_order == "paper"
    save_barrier_model(again, tmp_path / "c.safetensors")
    assert data == (tmp_path / "c.safetensors").read_bytes()


def test_existing_files_are_kept(tmp_path: Path):
    path = tmp_path / "precious.safetensors"
    path.write_bytes(b"years of work")
    with pytest.raises(InputError, match="--overwrite"):
        save_barrier_model(constant_model([1.0] * 3), path)
    assert path.read_bytes() == b"years of work"
    save_barrier_model(constant_model([1.0] * 3), path, overwrite=True)
    assert load_barrier_model(path).kind == "constant"
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_cannot_be_written(tmp_path: Path):
    model = constant_model([1.0] * 3)
    with pytest.raises(InputError, match="ends in .safetensors"):
        save_barrier_model(model, tmp_path / "x.npy")
    with pytest.raises(InputError, match="existing directory"):
        save_barrier_model(model, tmp_path / "no" / "x.safetensors")
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(InputError, match="the name of a file"):
        save_barrier_model(model, tmp_path / "d.safetensors", overwrite=True)
    for card in ({"x": np.zeros(2)}, {"x": np.nan}):
        with pytest.raises(InputError, match=r"card=.*JSON"):
            save_barrier_model(replace(model, card=card), tmp_path / "y.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]


@pytest.mark.parametrize("which", ["constant", "network"])
def test_damaged_safetensors(tmp_path: Path, which: str):
    path = tmp_path / "model.safetensors"
    save_barrier_model(MODELS[which](), path)
    data = path.read_bytes()
    for at in np.unique(np.linspace(0, len(data) - 1, 600).astype(int)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        # Only a blank in the padding of the header is no loss.
        assert not loads(path) or data[at] == ord(" ")
    for length in (0, 4, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        refused(path)
    damaged = bytearray(data)
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    refused(path, "does not match its own checksum", "an undamaged .safetensors of mpiflow")


def rewrite(path: Path, model: BarrierModel, **changes: Any) -> Path:
    """A file with a right checksum and wrong contents."""
    changed = replace(model, **changes)
    save_barrier_model(changed, path, overwrite=True)
    return path


def test_safetensors_with_wrong_contents(tmp_path: Path, weights: Path):
    path = tmp_path / "x.safetensors"
    constant, pairwise, network = (MODELS[k]() for k in ("constant", "pairwise", "network"))
    nnk, base = load_barrier_model(weights), constant.tensors["base"]
    refused(rewrite(path, constant, kind="magic"), "kind is 'magic'")
    refused(rewrite(path, constant, species=()), "species")
    refused(rewrite(path, constant, species=("Nb", "Nb", "Ta")), "twice")
    refused(rewrite(path, constant, species=("Nb",)), "base of (4,) float64, not of (2,)")
    refused(rewrite(path, constant, card=[]), "no card")
    refused(rewrite(path, constant, tensors={"base": base + 1}), "energy of its own")
    refused(rewrite(path, constant, tensors={"base": np.where(base, np.inf, 0)}), "not finite")
    refused(rewrite(path, constant, tensors={"base": base.astype(np.float32)}), "float32")
    refused(rewrite(path, constant, tensors={"other": base}), "holds the arrays ['other']")
    skew = {**pairwise.tensors, "bonds": np.arange(16.0).reshape(4, 4)}
    refused(rewrite(path, pairwise, tensors=skew), "symmetric")
    for name, value, says in (
        ("pool", np.array([0]), "pool"),
        ("pool", np.array([5]), "does not fit"),
        ("codes", np.ones((3, 3), np.float32), "codes of (3, 3)"),
        ("W2", np.ones((7, 5), np.float32), "does not fit"),
        ("b2", np.ones(4, np.float32), "does not fit"),
        ("W2", np.ones(5, np.float32), "W2 of (5,)"),
        ("W9", np.ones(5, np.float32), "not W1, b1"),
    ):
        refused(rewrite(path, network, tensors={**network.tensors, name: value}), says)
    refused(rewrite(path, nnk, card={}), "epsilon")
    refused(rewrite(path, nnk, species=("A", "B")), "names 2 species")
    wrong = {**nnk.tensors, "b1": np.zeros(5, np.float32)}
    refused(rewrite(path, nnk, tensors=wrong), "b1 of (5,)")


def test_foreign_safetensors(tmp_path: Path):
    from safetensors.numpy import save_file

    path, array = tmp_path / "x.safetensors", {"base": np.zeros(4)}
    save_file(array, path)
    refused(path, "not of mpiflow")
    save_file(array, path, metadata={"mpiflow-barriers": json.dumps([1])})
    refused(path, "not of mpiflow")
    save_file(array, path, metadata={"mpiflow-barriers": json.dumps({"version": 9, "checksum": 1})})
    refused(path, "version 9")


def test_models_made_from_arrays_that_do_not_fit():
    for make in (
        lambda: constant_model([1.0]),
        lambda: constant_model([1.0, np.nan, 1.0]),
        lambda: pairwise_model([1.0] * 3, np.zeros((3, 3))),
        lambda: pairwise_model([1.0] * 3, np.arange(16).reshape(4, 4)),
        lambda: network_model([(np.zeros((112, 1)), np.zeros(1))], np.zeros((4, 2))),
        lambda: network_model([], np.zeros((4, 1))),
        lambda: small_network(pool=5),
    ):
        with pytest.raises(InputError):
            make()


# -- the interface -------------------------------------------------------------------------


def test_directions_choose_and_order(weights: Path):
    model, grid = load_barrier_model(weights), random_grid()
    every = model.barriers(grid, VACANCY_AT)
    assert (every.shape, every.dtype) == ((8,), np.float64)
    for chosen in ([7, 0, 3], [2, 2], []):
        found = model.barriers(grid, list(VACANCY_AT), DIRECTIONS[chosen].astype(np.int8))
        assert np.array_equal(found, every[chosen])
    assert model.barriers(grid, VACANCY_AT, [(1, 1, 1)]) == every[7:]
    for wrong in ([(1, 1)], (1, 1, 1), [(1, 1, 0)], [(2, 1, 1)], [(1, 1, np.nan)]):
        with pytest.raises(InputError, match=r"^directions="):
            model.barriers(grid, VACANCY_AT, np.array(wrong))


@pytest.mark.parametrize("kind", ["nnk", *MODELS])
def test_no_hop_onto_a_vacancy(weights: Path, kind: str):
    model = load_barrier_model(weights) if kind == "nnk" else MODELS[kind]()
    grid = np.minimum(random_grid(), len(model.species))
    grid[tuple((VACANCY_AT + DIRECTIONS[3]) % grid.shape)] = 0
    found = model.barriers(grid, VACANCY_AT)
    assert np.array_equal(np.isinf(found), np.arange(8) == 3)
    assert found[3] > 0


def test_only_the_surroundings_matter_and_the_box_is_periodic(weights: Path):
    model, grid = load_barrier_model(weights), random_grid((12, 12, 12))
    expected = model.barriers(grid, VACANCY_AT)
    far = is_site(grid.shape)
    far[tuple(((np.array(VACANCY_AT) + SURROUNDINGS) % 12).T)] = False
    far[VACANCY_AT] = False
    other = np.where(far, 4 - np.maximum(grid, 1), grid)
    assert np.array_equal(model.barriers(other, VACANCY_AT), expected)
    shift = (3, -5, 7)
    rolled = np.roll(grid, shift, (0, 1, 2))
    moved = (np.array(VACANCY_AT) + shift) % 12
    assert np.array_equal(model.barriers(rolled, moved), expected)
    # Any memory layout and integer type.
    assert np.array_equal(model.barriers(np.asfortranarray(grid, np.int64), VACANCY_AT), expected)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        (np.zeros((8, 8), np.int8), r"grid.shape=\(8, 8\): .* at least 8"),
        (np.zeros((8, 8, 6), np.int8), r"grid.shape=.*Repeat"),
        (np.zeros((8, 9, 8), np.int8), "even sides"),
        (random_grid().astype(float), "grid.dtype='float64'"),
        (random_grid() > 0, "grid.dtype='bool'"),
        (np.zeros((8, 8, 8), np.int8), r"grid\[0, 0, 1\]=0: .*-1 elsewhere"),
        (np.roll(random_grid(), 1, 0), r"grid\[0, 0, 0\]=-1: .*0 vacancy, 1 Nb, 2 Mo, 3 Ta"),
        (np.where(random_grid() == 3, 4, random_grid()), r"=4: .*Shift"),
    ],
)
def test_grids_that_cannot_be(grid: np.ndarray, says: str):
    with pytest.raises(InputError, match=says):
        constant_model([1.0] * 3).barriers(grid, VACANCY_AT)


def test_vacancies_that_are_none():
    model, grid = constant_model([1.0] * 3), random_grid()
    grid[4, 2, 2] = 1
    for wrong, says in (
        ((4, 2, 2), "an atom of species 1"),
        ((4, 2, 3), "here is no site"),
        ((8, 2, 2), "inside"),
        ((-1, 2, 2), "inside"),
        ((4, 2), "three integers"),
        ((4.0, 2.0, 2.0), "three integers"),
        ("abc", "three integers"),
    ):
        place: Any = wrong
        with pytest.raises(InputError, match=rf"^vacancy_ijk=.*{says}"):
            model.barriers(grid, place)
    grid[grid == 0] = 1
    with pytest.raises(InputError, match="The grid has none"):
        model.barriers(grid, VACANCY_AT)


# -- import-nnk ----------------------------------------------------------------------------


def test_import_keeps_everything(weights: Path, tmp_path: Path):
    model = import_nnk(weights, tmp_path / "nnk.safetensors")
    for name, given in zip(NNK_SHAPES, random_arrays(), strict=True):
        assert model.tensors[name].dtype == np.float32
        assert np.array_equal(model.tensors[name], given)
    source = load_barrier_model(weights)
    assert model.card == source.card
    assert model.card["source_sha256"] == source.sha256 != model.sha256
    with pytest.raises(InputError, match="needs no conversion"):
        import_nnk(tmp_path / "nnk.safetensors", tmp_path / "again.safetensors")


def test_import_on_the_command_line(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "nnk.safetensors"
    line = ["import-nnk", str(weights), str(out)]
    invoke(line)
    text = capsys.readouterr().out
    assert text.startswith(f"wrote {out}\n")
    assert f"sha256: {load_barrier_model(out).sha256}" in text
    assert "not the published NNK network" in text
    assert f"source sha256: {load_barrier_model(weights).sha256}" in text
    with pytest.raises(InputError, match=r"^out=.*--overwrite"):
        invoke(line)
    invoke([*line, "--overwrite"])
    with pytest.raises(InputError, match="no such file"):
        invoke(["import-nnk", str(tmp_path / "no.npy"), str(out)])
    with pytest.raises(InputError, match="arguments="):
        invoke(["import-nnk", str(weights)])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1j, 1.0, 1.0], "complex numbers"),
        (["a", 1, 1], "texts"),
        (np.array([1.0, None, 1.0], object), "Python objects"),
        ([1.0, np.nan, 1.0], "finite numbers"),
        ([[1.0], [1.0, 2.0], 3.0], "NumPy said"),
        ([1.0, 1.0], r"\(3,\)"),
    ],
)
def test_energies_that_are_none(values: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        constant_model(values)
    with pytest.raises(InputError, match=says):
        pairwise_model(values, np.zeros((4, 4)))


def test_bonds_lose_no_imaginary_part_and_bytes_may_be_turned() -> None:
    with pytest.raises(InputError, match="bonds=.*complex numbers"):
        pairwise_model([1.0] * 3, np.eye(4) * 1j)
    model = constant_model(np.array([1.0, 2.0, 3.0], ">f8"))
    assert model.tensors["base"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert model.tensors["base"].dtype == np.float64


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(b"weights", mtime=0), "compressed with gzip"),
        (b"PK\x03\x04", "an archive"),
        (b"", "is empty"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "weights.npy"
    path.write_bytes(data)
    refused(path, says)
