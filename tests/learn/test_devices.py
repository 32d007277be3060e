"""Networks go to another device to be trained and run, and come back; who carries gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from far import FAR, far_device
from mpi4py import MPI
from torch import nn

from mpiflow import InputError
from mpiflow.core import gpu
from mpiflow.core.gpu import Choice
from mpiflow.learn import devices
from mpiflow.learn.alloy.onsager_net import OnsagerSDE
from mpiflow.learn.closure.closure import ClosureAutoencoder
from mpiflow.learn.closure.mirror import MirrorSDE
from mpiflow.learn.generator.model import Generator
from mpiflow.learn.sde import LearnedSDE, MacroscopicSDE
from mpiflow.learn.training import Schedule, fit

REAL = torch.cuda.is_available()
THERE = torch.device("cuda") if REAL else FAR
#: A GPU adds in another order; the device of far.py is the CPU, but for our own kernels.
CLOSE = {"rtol": 2e-3, "atol": 2e-4} if REAL else {"rtol": 2e-4, "atol": 2e-5}
RNG = np.random.default_rng(5)
pytestmark = pytest.mark.filterwarnings("ignore::mpiflow.learn.paths.OutsideData")
STATES, DIM = 96, 2
Z = RNG.normal(size=(STATES, DIM))
PAIRS = (Z, -0.1 * Z[:, None] + 0.3 * RNG.normal(size=(STATES, 3, DIM)), np.full((STATES, 3), 0.1))
KELVIN = np.linspace(500.0, 900.0, STATES)[:, None]


@pytest.fixture
def networks_elsewhere() -> None:
    """These tests say themselves where networks are, whatever tests/learn/conftest.py does."""


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks compute on a device that is not the CPU: a GPU, where there is one."""
    with nullcontext() if REAL else far_device():
        monkeypatch.setattr(devices, "here", lambda: THERE)
        yield


def macroscopic() -> tuple[nn.Module, tuple[np.ndarray, ...]]:
    sde = MacroscopicSDE(DIM, width=8, context=1)
    sde.set_scales(*PAIRS)
    sde.set_context(KELVIN)
    return sde, (*PAIRS, KELVIN)


def alloy() -> tuple[nn.Module, tuple[np.ndarray, ...]]:
    sde = OnsagerSDE(DIM, width=8)
    sde.set_conditions(*PAIRS, KELVIN[:, 0])
    return sde, (*PAIRS, KELVIN)


def mirror() -> tuple[nn.Module, tuple[np.ndarray, ...]]:
    sde = MirrorSDE([-1.0, 1.0], width=8)
    sde.set_scales(*PAIRS)
    return sde, PAIRS


def closure() -> tuple[nn.Module, tuple[np.ndarray, ...]]:
    densities = RNG.dirichlet(np.ones(10), size=(STATES, 4)).astype(np.float32)
    model = ClosureAutoencoder(2, width=8)
    model.set_scales(densities, Z)
    return model, (densities, Z)


def generator() -> tuple[nn.Module, tuple[np.ndarray, ...]]:
    model = Generator("mlp", points=8, radius=3, width=8, mirror=True)
    model.weights.requires_grad_(False)
    return model.float(), tuple(RNG.normal(size=(6, STATES)))


LEARNERS = (macroscopic, alloy, mirror, closure, generator)


@pytest.mark.parametrize("make", LEARNERS)
def test_training_there_is_training_here(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """By the same graph: of the CPU's own kernels, which round otherwise, no bits are asked."""
    finals: list[dict[str, torch.Tensor]] = []
    path = RNG.bit_generator.state
    for there in (False, True):
        if there:
            request.getfixturevalue("far")
        RNG.bit_generator.state = path
        torch.manual_seed(3)
        module, data = make()
        fit(module, data, seed=1, schedule=Schedule(epochs=2, batch=32, learning_rate=1e-2))
        finals.append(dict(module.state_dict()))
        assert all(value.is_cpu for value in finals[-1].values())
        if isinstance(module, LearnedSDE):
            context = (KELVIN,) if len(data) == 4 else ()
            ends, held = run(module, *context)
            finals[-1] |= {"rollout": torch.as_tensor(ends), "held": torch.tensor(float(held))}
    assert finals[0].keys() == finals[1].keys()
    for name, value in finals[0].items():
        torch.testing.assert_close(finals[1][name], value, **CLOSE, msg=name)


def run(sde: LearnedSDE, context: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Long enough that some states are held at the edge of the data."""
    return sde.rollout(
        2.0 * Z, np.arange(STATES), dt=0.02, steps=10, save=np.array([0, 5, 10]), seed=2,
        context=context,
    )  # fmt: skip


def test_fields_run_there(far: None) -> None:
    torch.manual_seed(0)
    model = Generator("mlp", points=8, radius=3, width=8, mirror=True)
    model.card["validity"] = {"latents": {"m": [-9, 9]}, "parameters": {}}
    start = RNG.uniform(-0.5, 0.5, size=(2, 8, 8))
    there = model.rollout(start, np.array([0.0, 0.3]), 1.0, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "here", lambda: devices.CPU)
        here = model.rollout(start, np.array([0.0, 0.3]), 1.0, 0.1)
        np.testing.assert_allclose(here, there, rtol=1e-9)


def test_what_is_on_two_devices_is_refused(far: None) -> None:
    """Else the tests above could not fail."""
    layer = nn.Linear(2, 2).to(THERE)
    with pytest.raises(RuntimeError, match="same device"):
        layer(torch.ones(1, 2))
    with pytest.raises(TypeError):
        layer(torch.ones(1, 2).to(THERE)).detach().numpy()


@pytest.mark.parametrize(
    ("device", "shared", "nccl", "named"),
    [
        ("cpu", False, True, "gloo"),
        ("cuda:1", False, True, "cpu:gloo,cuda:nccl"),
        ("cuda:1", True, True, "gloo"),
        ("cuda:1", False, False, "gloo"),
    ],
)
def test_who_carries_gradients(
    device: str, shared: bool, nccl: bool, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    assert devices.backend(torch.device(device), shared) == named


def test_a_rank_computes_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(gpu, "_choices", [Choice()])
    assert devices.here() == devices.CPU
    monkeypatch.setattr(gpu, "_choices", [Choice("cuda", 3)])
    assert devices.here() == torch.device("cuda", 3)
    assert taken == [3]
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    assert devices.gpus() == []
    assert devices.here() == devices.CPU


def test_without_a_gpu_pytorch_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    with pytest.raises(InputError, match=r"device='cuda'.*PyTorch.*--device cpu"):
        gpu.choose("cuda", MPI.COMM_SELF, (devices.gpus,))
    assert gpu.chosen() == Choice()
