"""Data set, closures, latent pairs and the saved model."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.noise import uniforms
from mpiflow.experiments import ising as experiment
from mpiflow.experiments import results
from mpiflow.learn.closure.closure import ClosureAutoencoder
from mpiflow.learn.closure.dataset import (
    DataPlan,
    PairData,
    class_densities,
    generate_pairs,
    training_states,
)
from mpiflow.learn.closure.model import (
    MacroscopicModel,
    latent_pairs,
    load_model,
    train_autoencoder,
    train_sde,
)
from mpiflow.learn.closure.plans import RANDOM_RELAX
from mpiflow.learn.sde import MacroscopicSDE
from mpiflow.learn.training import Schedule
from mpiflow.scaleup import spins as scaleup
from mpiflow.systems.ising import Ising

SYSTEM = Ising(temperature=2.5, field=0.1)
PLAN = DataPlan(large=32, patch=8, states=60, repeats=3, small_time=4.0)
ONE_EPOCH = Schedule(epochs=2, batch=16)


@pytest.fixture(scope="module")
def data() -> PairData:
    pairs = generate_pairs(SYSTEM, PLAN, seed=1, comm=MPI.COMM_SELF)
    assert pairs is not None
    return pairs


def random_autoencoder() -> ClosureAutoencoder:
    torch.manual_seed(0)
    return ClosureAutoencoder()


# -- data set --------------------------------------------------------------------------


@pytest.mark.mpi
def test_training_set_does_not_depend_on_ranks(comm: MPI.Intracomm, data: PairData) -> None:
    gathered = generate_pairs(SYSTEM, PLAN, seed=1, comm=comm)
    assert (gathered is None) == (comm.rank > 0)
    if gathered is not None:
        for name in ("sums", "counts", "index", "changes", "patch_sums", "after", "elapsed"):
            assert np.array_equal(getattr(gathered, name), getattr(data, name)), name


def test_training_set_does_not_depend_on_chunks(data: PairData) -> None:
    again = generate_pairs(SYSTEM, PLAN, seed=1, chunk=7)
    assert again is not None
    assert np.array_equal(again.counts, data.counts)
    other = generate_pairs(SYSTEM, PLAN, seed=2)
    assert other is not None
    assert not np.array_equal(other.counts, data.counts)


@pytest.mark.parametrize("patch", [8, 16, 32])
def test_states_cover_the_magnetizations(patch: int) -> None:
    plan = replace(PLAN, patch=patch)
    states = training_states(SYSTEM, plan, np.arange(200), seed=3)
    assert states.shape == (200, 32, 32)
    assert set(np.unique(states)) == {-1, 1}
    m = states.mean(axis=(1, 2))
    assert m.min() < -0.6
    assert m.max() > 0.6
    assert 0.3 < m.std() < 0.7


def test_whole_lattices_relax_for_four_times_the_time() -> None:
    """Spins without coupling forget their magnetisation as e^-t."""
    plan, members = replace(PLAN, random_fraction=1.0), np.arange(1500)
    states = training_states(Ising(temperature=1e9), plan, members, seed=3)
    start = 2.0 * uniforms(3, "sample", 0, 0, members)[:, 0] - 1.0
    draw = (uniforms(3, "sample", 0, 1, members)[:, 1] * len(RANDOM_RELAX)).astype(int)
    for number, duration in enumerate(RANDOM_RELAX):
        some = draw == number
        m, m0 = states[some].mean(axis=(1, 2)), start[some]
        error = 1.0 / 32.0 / np.sqrt((m0**2).sum())  # of the slope, for 32^2 spins a state
        assert abs((m * m0).sum() / (m0**2).sum() - np.exp(-4.0 * duration)) < 4.5 * error + 1e-3


def test_statistics_are_those_of_the_states(data: PairData) -> None:
    members = np.arange(PLAN.states)
    states = training_states(SYSTEM, PLAN, members, seed=1)
    assert np.array_equal(data.sums, observables.spin_sums(Block.periodic(states, members)))
    patches = scaleup.partial_evolution(
        states, members * 3 + 1, SYSTEM, 8, seed=1, duration=PLAN.duration, dt=PLAN.dt
    )
    assert np.array_equal(data.index[:, 1], patches.index)
    assert np.array_equal(data.changes[:, 1], patches.changes())
    assert data.counts.sum(axis=2).max() == data.counts.sum(axis=2).min() == 36
    assert np.all(data.elapsed == PLAN.duration)


@pytest.mark.parametrize(
    "bad",
    [
        {"patch": 12},
        {"patch": 64},
        {"patch": 2},
        {"states": 1},
        {"repeats": 0},
        {"relaxation": "none"},
    ],
)
def test_plan_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"patch|states|relaxation"):
        replace(PLAN, **bad)


# -- closures and pairs ----------------------------------------------------------------


def test_class_counts_are_counts_inside_the_patch() -> None:
    rng = np.random.default_rng(0)
    states = np.where(rng.random((3, 16, 16)) < 0.6, 1, -1).astype(np.int8)
    counts = observables.class_counts(states, 8)
    expected = np.zeros((3, 4, 10), int)
    for b in range(3):
        for p in range(4):
            y0, x0 = 8 * (p // 2), 8 * (p % 2)
            for y in range(y0 + 1, y0 + 7):
                for x in range(x0 + 1, x0 + 7):
                    s = states[b].astype(int)
                    k = s[y - 1, x] + s[y + 1, x] + s[y, x - 1] + s[y, x + 1]
                    expected[b, p, (k + 4) // 2 + 5 * (s[y, x] > 0)] += 1
    assert np.array_equal(counts, expected)


def test_autoencoder_learns_and_is_its_seed(data: PairData) -> None:
    schedule = Schedule(epochs=30, batch=16, learning_rate=3e-3)
    model, log = train_autoencoder(data, seed=1, schedule=schedule)
    assert log.best_validation < 0.5 * log.validation[0]
    again, _ = train_autoencoder(data, seed=1, schedule=schedule)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_closures_of_a_state_are_the_mean_over_its_patches(data: PairData) -> None:
    model = MacroscopicModel(random_autoencoder(), MacroscopicSDE(4), PLAN, PLAN.duration)
    with torch.no_grad():
        each = model.autoencoder.encode(torch.as_tensor(data.densities)).numpy()
    np.testing.assert_allclose(model.closures(data.counts), each.mean(axis=1), atol=1e-6)


def test_partial_increments_are_k_times_the_change_of_the_whole_state(data: PairData) -> None:
    """Equation (3): z1 is the latent of the lattice with one patch replaced, K times over."""
    autoencoder = random_autoencoder()
    model = MacroscopicModel(autoencoder, MacroscopicSDE(4), PLAN, PLAN.duration)
    z0, increments, dt = latent_pairs(data, autoencoder, "partial")
    assert z0.shape == (60, 4)
    assert increments.shape == (60, 3, 4)
    assert dt.shape == (60, 3)
    members = np.arange(PLAN.states)
    states = training_states(SYSTEM, PLAN, members, seed=1)
    np.testing.assert_allclose(model.encode(states), z0, atol=1e-6)
    patches = scaleup.partial_evolution(
        states, members * 3 + 2, SYSTEM, 8, seed=1, duration=PLAN.duration, dt=PLAN.dt
    )
    for b, index in enumerate(patches.index):
        y, x = 8 * (index // 4), 8 * (index % 4)
        states[b, y : y + 8, x : x + 8] = patches.after[b, 1:-1, 1:-1]
    change = PLAN.patches * (model.encode(states) - z0)
    np.testing.assert_allclose(increments[:, 2], change, atol=2e-4)


def test_naive_increments_are_the_patch_minus_the_state(data: PairData) -> None:
    z0, increments, _ = latent_pairs(data, random_autoencoder(), "naive")
    z1 = z0[:, None] + increments
    np.testing.assert_allclose(z1[..., 0], data.patch_sums[..., 0] / 64, atol=1e-9)
    partial = latent_pairs(data, random_autoencoder(), "partial")[1]
    assert increments[..., 0].std() > 2 * partial[..., 0].std()


# -- saved models ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(data: PairData) -> MacroscopicModel:
    autoencoder, _ = train_autoencoder(data, schedule=ONE_EPOCH)
    sde, log = train_sde(data, autoencoder, schedule=ONE_EPOCH)
    assert sde.factor == PLAN.patches == 16
    assert train_sde(data, autoencoder, method="naive", schedule=ONE_EPOCH)[0].factor == 1
    return MacroscopicModel(autoencoder, sde, PLAN, PLAN.duration, {"loss": log.best_validation})


def test_saved_model_predicts_the_same_bits(model: MacroscopicModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert loaded.plan == PLAN
    assert loaded.card == model.card
    states = training_states(SYSTEM, PLAN, np.arange(5), seed=9)
    z0 = model.encode(states)
    assert np.array_equal(z0, loaded.encode(states))
    times = np.array([0.0, 1.0, 2.0])
    for a, b in zip(
        model.rollout(z0, times, seed=1), loaded.rollout(z0, times, seed=1), strict=True
    ):
        assert np.array_equal(a, b)


def test_times_between_steps_are_interpolated(model: MacroscopicModel) -> None:
    z0 = model.encode(training_states(SYSTEM, PLAN, np.arange(5), seed=9))
    steps, _ = model.rollout(z0, np.array([0.0, 0.5, 1.0, 1.5]), seed=1)
    between, _ = model.rollout(z0, np.array([0.0, 0.6, 1.25]), seed=1)
    np.testing.assert_array_equal(between[0], steps[0])
    np.testing.assert_allclose(between[1], 0.8 * steps[1] + 0.2 * steps[2], rtol=1e-9)
    np.testing.assert_allclose(between[2], 0.5 * (steps[2] + steps[3]), rtol=1e-9)


def test_pairs_of_a_number_of_flips_have_random_times() -> None:
    plan = replace(PLAN, duration=0.5, flips=30, states=40)
    data = generate_pairs(SYSTEM, plan, seed=1)
    assert data is not None
    assert data.elapsed.std() > 0
    assert data.step == pytest.approx(data.elapsed.mean())


def test_damaged_and_foreign_models_are_refused(model: MacroscopicModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model\.json"):
        load_model(tmp_path)
    model.save(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="undamaged"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    text = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(text.replace("ising-closure", "something else"))
    with pytest.raises(InputError, match="kind"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text(text[:50])
    with pytest.raises(InputError, match="undamaged"):
        load_model(tmp_path)


def test_factor_must_be_positive(data: PairData, model: MacroscopicModel) -> None:
    with pytest.raises(InputError, match="factor"):
        train_sde(data, model.autoencoder, factor=0.0)


# -- the whole comparison --------------------------------------------------------------


@pytest.mark.mpi
def test_truth_does_not_depend_on_ranks(comm: MPI.Intracomm, model: MacroscopicModel) -> None:
    times = np.array([0.0, 1.0, 3.0])
    runs = [
        experiment.simulate_truth(
            SYSTEM, 32, (-0.5, 0.5), 5, times, {"m": model}, seed=4, comm=each
        )
        for each in (comm, MPI.COMM_SELF)
    ]
    alone = runs[1]
    assert alone is not None
    assert alone.latents("m").shape == (3, 10, 4)
    if runs[0] is not None:
        assert np.array_equal(runs[0].observed, alone.observed)
        # Matrix products of other shapes may round differently.
        np.testing.assert_allclose(runs[0].closures["m"], alone.closures["m"], atol=1e-6)


@pytest.mark.mpi
def test_farm_runs_each_task_once_and_tells_everyone(comm: MPI.Intracomm) -> None:
    ran: list[int] = []

    def work(task: int) -> int:
        ran.append(task)
        return task * task

    tasks = [3, 1, 4, 15, 9]
    assert results.farm(tasks, work, comm) == {t: t * t for t in tasks}
    assert sorted(chain.from_iterable(comm.allgather(ran))) == sorted(tasks)


def test_comparison_of_the_truth_with_itself() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20, 14, 4)) + 3.0
    same = experiment.compare(z, z, 2, 0)
    assert same.error == same.observable_error == same.spread_error == 0.0
    assert same.floor > 0.0
    # Latents other than the magnetisation are scaled; the error must not care how.
    bent = z * np.array([1.0, 7.0, 0.1, 3.0]) + np.array([0.0, 5.0, -2.0, 1.0])
    moved = bent.copy()
    moved[..., 0] += 0.3
    shifted = z.copy()
    shifted[..., 0] += 0.3
    assert experiment.compare(bent, moved, 2, 0).error == pytest.approx(
        experiment.compare(z, shifted, 2, 0).error
    )


def test_densities_sum_to_one(data: PairData) -> None:
    np.testing.assert_allclose(class_densities(data.counts, 8).sum(axis=2), 1.0, rtol=1e-6)
