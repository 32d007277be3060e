"""The training loop: best weights kept, early stop, seeds, DDP equal to one rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn

from mpiflow.core.errors import InputError
from mpiflow.learn.training import Schedule, TrainingLog, fit, mlp


class Regression(nn.Module):
    """y = x w + b with squared loss."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = mlp([3, 16, 1])

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = (self.net(x)[:, 0] - y) ** 2
        return out


def data(samples: int = 2003) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(samples, 3))
    return x, x @ np.array([1.0, -2.0, 0.5]) + 0.1 * rng.normal(size=samples)


SHORT = Schedule(epochs=6, batch=101, learning_rate=1e-2)


def weights(module: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])


def validation_loss(module: nn.Module, samples: tuple[np.ndarray, np.ndarray]) -> float:
    held_out = round(len(samples[0]) * 0.1)
    with torch.no_grad():
        tail = (torch.as_tensor(a[-held_out:], dtype=torch.float32) for a in samples)
        return float(module(*tail).mean())


def test_it_learns_and_keeps_the_best_weights() -> None:
    module, samples = Regression(), data()
    log = fit(module, samples, seed=0, schedule=Schedule(epochs=40, batch=100, learning_rate=0.03))
    assert log.best_validation < 0.02
    assert log.best_validation == min(log.validation)
    assert validation_loss(module, samples) == pytest.approx(log.best_validation, rel=1e-5)


def test_a_run_is_its_seed() -> None:
    logs, finals = [], []
    for seed in (0, 0, 1):
        module = Regression()
        logs.append(fit(module, data(), seed=seed, schedule=SHORT))
        finals.append(weights(module))
    assert np.array_equal(finals[0], finals[1])
    assert logs[0] == logs[1]
    assert not np.array_equal(finals[0], finals[2])


def test_early_stop() -> None:
    """Noise without signal: the validation loss soon stops falling."""
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(200, 3)), rng.normal(size=200)
    schedule = Schedule(epochs=400, batch=20, learning_rate=0.02, patience=5)
    module = Regression()
    log = fit(module, noise, seed=0, schedule=schedule)
    assert log.stopped_early
    assert len(log.train) == log.best_epoch + 1 + 5 < 400
    assert validation_loss(module, noise) == pytest.approx(log.best_validation, rel=1e-5)


def test_progress_sees_every_epoch() -> None:
    seen: list[int] = []
    fit(Regression(), data(), seed=0, schedule=SHORT, progress=lambda e, *_: seen.append(e))
    assert seen == list(range(SHORT.epochs))


def test_a_loss_that_is_not_finite_says_what_to_do() -> None:
    x, y = data()
    y[0] = np.nan
    with pytest.raises(InputError, match=r"learning_rate.*smaller"):
        fit(Regression(), (x, y), seed=0, schedule=Schedule(epochs=2, batch=2000))


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch": -1}, {"validation": 1.0}])
def test_schedule_refuses(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        Schedule(**bad)  # type: ignore[arg-type]


@pytest.mark.mpi
def test_ddp_gives_the_result_of_one_rank(comm: MPI.Intracomm) -> None:
    """Batches of 101 samples do not divide by the ranks: unequal shares must be weighted."""
    alone, together = Regression(), Regression()
    reference: TrainingLog = fit(alone, data(), seed=3, schedule=SHORT)
    log = fit(together, data(), seed=3, schedule=SHORT, comm=comm)
    np.testing.assert_allclose(weights(together), weights(alone), atol=2e-5)
    np.testing.assert_allclose(log.train, reference.train, rtol=1e-4)
    np.testing.assert_allclose(log.validation, reference.validation, rtol=1e-4)
    everywhere = comm.allgather(weights(together))
    assert all(np.array_equal(w, everywhere[0]) for w in everywhere)
