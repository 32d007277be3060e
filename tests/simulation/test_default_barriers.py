"""The barrier model that comes with mpiflow: symmetry, range, error, and that it is the one."""

from __future__ import annotations

import sys
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

import mpiflow
from mpiflow.simulation.alloy.barrier_model import (
    DEFAULT,
    BarrierModel,
    load_barrier_model,
    network_model,
)
from mpiflow.simulation.alloy.published_weights import LICENCE, PUBLISHED_SHA256
from mpiflow.solvers.vacancy.barrier_kernels import evaluate_many
from mpiflow.systems.alloy import (
    DIRECTIONS,
    ELEMENTS,
    NEIGHBOURS,
    ORIENTATIONS,
    SURROUNDINGS,
    index_of,
)

SHA256 = "0897259d4bb612948c301b6cf371be4383614acec506e55ce4ac3f17e35588c9"
#: The 48 operations of the cube, as matrices.
OPERATIONS = [
    np.eye(3, dtype=np.int64)[list(axes)] * np.array(signs)
    for axes in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]


@pytest.fixture(scope="module")
def model() -> BarrierModel:
    return load_barrier_model("default")


@pytest.fixture(scope="module")
def stated(model: BarrierModel) -> dict[str, dict[str, float]]:
    """What the card says of errors and biases, by name."""
    return {entry["quantity"]: entry for entry in model.card["errors_and_biases"]}


def environments(count: int, seed: int = 0) -> np.ndarray:
    """Random surroundings (n, 112), some with vacancies."""
    rng = np.random.default_rng(seed)
    types = rng.integers(1, 4, (count, len(SURROUNDINGS))).astype(np.uint8)
    types[: count // 4][rng.random((count // 4, len(SURROUNDINGS))) < 0.03] = 0
    return types


def barriers(model: BarrierModel, types: np.ndarray) -> np.ndarray:
    out = np.empty((len(types), NEIGHBOURS), np.float32)
    evaluate_many(model.parameters, np.ascontiguousarray(types), out)
    return out


def test_this_is_the_file(model: BarrierModel) -> None:
    assert model.sha256 == SHA256
    assert mpiflow.load_barrier_model().sha256 == SHA256
    assert DEFAULT.stat().st_size < 200_000
    assert model.species == ELEMENTS
    assert model.kind == "network"


def test_it_says_where_it_comes_from(model: BarrierModel) -> None:
    assert model.card["distilled_from"]["sha256"] == PUBLISHED_SHA256
    assert LICENCE in model.card["licence"]
    assert "drivers/alloy_barriers.py" in model.card["command"]
    assert PUBLISHED_SHA256 in model.summary()
    assert all(array.size < 12_000 for array in model.tensors.values())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda m: str(m.tolist()))
def test_turning_the_crystal_turns_the_barriers(model: BarrierModel, operation: np.ndarray) -> None:
    types = environments(200)
    turned, hops = np.empty_like(types), index_of(DIRECTIONS @ operation)
    turned[:, index_of(SURROUNDINGS @ operation)] = types
    # The images are added up in another order: the last bits of float32 may differ.
    np.testing.assert_allclose(barriers(model, turned)[:, hops], barriers(model, types), atol=3e-6)


def test_barriers_are_energies_of_hops(model: BarrierModel) -> None:
    types = environments(2000)
    energies = barriers(model, types)
    atoms = types[:, :NEIGHBOURS]
    np.testing.assert_array_equal(np.isinf(energies), atoms == 0)
    assert energies.min() > 0.5
    assert energies[np.isfinite(energies)].max() < 3.0
    # Molybdenum hops least easily, as in the published network.
    means = [energies[atoms == number].mean(dtype=np.float64) for number in (1, 2, 3)]
    np.testing.assert_allclose(means, [1.60, 2.01, 1.67], atol=0.08)


def test_error_against_the_published_network(
    model: BarrierModel,
    stated: dict[str, dict[str, float]],
    shared_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = shared_dir / "reference" / "nnk" / "weights.npy"
    if not weights.is_file():
        pytest.skip(f"no {weights}")
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "drivers"))
    import alloy_barriers  # type: ignore[import-not-found]

    teacher = load_barrier_model(weights).parameters
    met = [alloy_barriers.environments_of_run(teacher, (99, 0, run)) for run in range(8)]
    types = np.concatenate([*met, alloy_barriers.random_environments(240, (99, 1))])
    raw, target = alloy_barriers.labels(teacher, types)
    guess, ok = barriers(model, types), np.isfinite(target)
    for name, truth in (("as it is", raw), ("symmetrised", target)):
        error = 1e3 * alloy_barriers.rms(guess[ok] - truth[ok])
        assert error < 1.1 * stated[f"RMSE, test, teacher {name} [meV]"]["ours"]
    assert abs(1e3 * (guess[ok] - target[ok]).mean(dtype=np.float64)) < 2.0
    sys.modules.pop("alloy_barriers")


def test_labels_are_averages_over_the_images_of_each_hop(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "drivers"))
    import alloy_barriers  # type: ignore[import-not-found]

    rng = np.random.default_rng(3)
    shapes = [(len(SURROUNDINGS), 32), (32, 1)]
    layers = [(rng.normal(0, 0.1, shape), rng.normal(0, 0.1, shape[1])) for shape in shapes]
    rough = network_model(layers, np.arange(4)[:, None])
    types = environments(100)
    raw, target = alloy_barriers.labels(rough.parameters, types)
    np.testing.assert_array_equal(raw, barriers(rough, types))
    ok = np.isfinite(raw)
    assert alloy_barriers.rms(raw[ok] - target[ok]) > 0.01
    hop = int(index_of(np.array([1, 1, 1])))
    images = [index_of(SURROUNDINGS[:, axes]) for axes in permutations(range(3))]
    for d, turn in enumerate(ORIENTATIONS):
        seen = [barriers(rough, types[:, turn][:, image])[:, hop] for image in images]
        np.testing.assert_allclose(target[:, d], np.mean(seen, axis=0), rtol=1e-5)
    sys.modules.pop("alloy_barriers")


def test_stated_errors_are_small(stated: dict[str, dict[str, float]]) -> None:
    assert stated["RMSE, test, teacher symmetrised [meV]"]["ours"] < 20.0
    for name, entry in stated.items():
        if name.startswith("order") and "2000 K" in name:
            assert abs(entry["ours"] - entry["exact"]) < 0.03, name
